//! Renders `--help`, for all commands or for one.

use super::commands::{COMMANDS, Command, Flag, GLOBAL};
use super::synopsis;

const EXIT_STATUS: &str = "\
Exit status: 0; 1 if a daemon does not answer or refuses, if check or simulate
finds a mistake, or if publish fails; 2 if the arguments are invalid. For why,
see buildosctl why --help.
";

/// Returns the help of all commands.
pub(crate) fn all() -> String {
    let mut out = usage(&synopsis::text());
    out += "\nQueries the daemons of this build host over the system bus.\n\nCommands:\n";
    for command in &COMMANDS {
        out += &format!("  {:COMMANDS_WIDTH$} {}\n", command.name, command.summary);
    }
    out += "\nOptions:\n";
    let mut flags: Vec<Flag> = Vec::new();
    for flag in COMMANDS.iter().flat_map(Command::flags).chain(GLOBAL) {
        if !flags.contains(&flag) {
            flags.push(flag);
        }
    }
    for flag in flags {
        let mut of = COMMANDS
            .iter()
            .filter(|command| command.flags().contains(&flag));
        // A flag of a single command names it.
        let summary = match (of.next(), of.next()) {
            (Some(command), None) => format!("{}: {}", command.name, flag.summary()),
            _ => flag.summary().to_owned(),
        };
        out += &format!("  {:FLAGS_WIDTH$} {summary}\n", names(flag));
    }
    out + "\n" + EXIT_STATUS
}

/// Returns the help of one command.
pub(crate) fn of(command: &'static Command) -> String {
    let mut out = usage(&synopsis::text_of(command));
    out += &format!("\n{}.\n", command.summary);
    if !command.details.is_empty() {
        out += &format!("\n{}", command.details);
    }
    out += "\nOptions:\n";
    for flag in command.flags().into_iter().chain([Flag::Help]) {
        out += &format!("  {:FLAGS_WIDTH$} {}\n", names(flag), flag.summary());
    }
    out
}

fn usage(lines: &[String]) -> String {
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        out += if i == 0 { "Usage: " } else { "       " };
        out += &wrapped(line);
        out.push('\n');
    }
    out
}

/// Breaks a line of the synopsis at the width of a terminal, between arguments.
fn wrapped(line: &str) -> String {
    let mut arguments: Vec<String> = Vec::new();
    for word in line.split(' ') {
        // A flag and its value are one argument, in brackets.
        let open = |last: &&mut String| last.starts_with('[') && !last.ends_with(']');
        match arguments.last_mut().filter(open) {
            Some(last) => *last += &format!(" {word}"),
            None => arguments.push(word.to_owned()),
        }
    }
    let mut out = String::new();
    let mut width = USAGE_INDENT;
    for argument in &arguments {
        if width + 1 + argument.len() > TERMINAL {
            out += "\n           ";
            width = USAGE_INDENT + 4;
        } else if !out.is_empty() {
            out.push(' ');
            width += 1;
        }
        out += argument;
        width += argument.len();
    }
    out
}

/// Columns of a terminal.
const TERMINAL: usize = 80;
/// Columns before a line of the synopsis.
const USAGE_INDENT: usize = 7;

/// Width of the column of commands.
const COMMANDS_WIDTH: usize = 10;
/// Width of the column of flags.
const FLAGS_WIDTH: usize = 18;

/// Returns `-h, --help`, or `--budget SECONDS`.
fn names(flag: Flag) -> String {
    match flag.short() {
        Some(short) => format!("-{short}, {}", synopsis::flag_text(flag)),
        None => synopsis::flag_text(flag),
    }
}
