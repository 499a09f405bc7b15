//! Renders the synopsis of the commands as text (`--help`) and as mdoc(7) (man page).

use super::commands::{COMMANDS, Command, DEFAULT, Flag, Form, Operands};

/// Most commands that share a line, which has at most 80 columns.
const SHARED: usize = 4;

/// One line of the synopsis. Commands that are called in the same way share a line.
struct Line {
    commands: Vec<&'static Command>,
    form: &'static Form,
}

/// Returns the lines for all commands.
fn lines() -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for command in &COMMANDS {
        for form in command.forms {
            let has_flags = !form.required.is_empty() || !form.optional.is_empty();
            let is_open = |line: &&mut Line| line.form == form && line.commands.len() < SHARED;
            let shared = lines.iter_mut().find(is_open);
            match shared.filter(|_| has_flags) {
                Some(line) => line.commands.push(command),
                None => lines.push(Line {
                    commands: vec![command],
                    form,
                }),
            }
        }
    }
    lines
}

/// Returns the synopsis of all commands as lines of text.
pub(crate) fn text() -> Vec<String> {
    lines().iter().map(Line::text).collect()
}

/// Returns the synopsis of a command as text, with a line for each form.
pub(crate) fn text_of(command: &'static Command) -> Vec<String> {
    let of = |form| Line {
        commands: vec![command],
        form,
    };
    command.forms.iter().map(|form| of(form).text()).collect()
}

impl Line {
    fn names(&self) -> String {
        let names: Vec<_> = self.commands.iter().map(|command| command.name).collect();
        names.join(" | ")
    }

    fn is_default(&self) -> bool {
        self.commands.contains(&DEFAULT)
    }

    fn text(&self) -> String {
        let mut parts = vec!["buildosctl".to_owned()];
        parts.push(match self.is_default() {
            true => format!("[{}]", self.names()),
            false => self.names(),
        });
        parts.extend(self.form.verb.map(str::to_owned));
        parts.extend(self.form.required.iter().map(|flag| flag_text(*flag)));
        let optional = self.form.optional.iter();
        parts.extend(optional.map(|flag| format!("[{}]", flag_text(*flag))));
        match self.form.operands {
            Operands::None => {}
            Operands::Agents => parts.push("[AGENT...]".to_owned()),
            Operands::Journalctl => parts.push("[JOURNALCTL ARGUMENT...]".to_owned()),
            Operands::Files => parts.push("FILE...".to_owned()),
            Operands::File => parts.push("FILE".to_owned()),
            Operands::Directory => parts.push("DIR".to_owned()),
            Operands::Tap => parts.push("TAP".to_owned()),
            Operands::TapAndPort => parts.push("TAP PORT".to_owned()),
            Operands::Volume => parts.push("state|machines".to_owned()),
            Operands::Name => parts.push("NAME".to_owned()),
            Operands::NameAndRevision => parts.push("NAME [REVISION]".to_owned()),
            Operands::Reason => parts.push("[REASON...]".to_owned()),
        }
        parts.join(" ")
    }

    #[cfg(test)]
    fn mdoc(&self) -> String {
        let mut out = String::from(".Nm\n");
        out += if self.is_default() { ".Op Cm " } else { ".Cm " };
        out += &self.names();
        if let Some(verb) = self.form.verb {
            out += &format!(" {verb}");
        }
        out.push('\n');
        for flag in self.form.required {
            out += &format!(".{}\n", flag_mdoc(*flag));
        }
        for flag in self.form.optional {
            out += &format!(".Op {}\n", flag_mdoc(*flag));
        }
        out += match self.form.operands {
            Operands::None => "",
            Operands::Agents => ".Op Ar agent ...\n",
            Operands::Journalctl => ".Op Ar journalctl argument ...\n",
            // mdoc(7) writes `file ...` if Ar has no argument.
            Operands::Files => ".Ar\n",
            Operands::File => ".Ar file\n",
            Operands::Directory => ".Ar dir\n",
            Operands::Tap => ".Ar tap\n",
            Operands::TapAndPort => ".Ar tap port\n",
            Operands::Volume => ".Cm state | machines\n",
            Operands::Name => ".Ar name\n",
            Operands::NameAndRevision => ".Ar name Op Ar revision\n",
            Operands::Reason => ".Op Ar reason ...\n",
        };
        out
    }
}

/// Returns `--json`, or `--budget SECONDS`.
pub(crate) fn flag_text(flag: Flag) -> String {
    match flag.value() {
        Some(value) => format!("--{} {}", flag.long(), value.placeholder()),
        None => format!("--{}", flag.long()),
    }
}

#[cfg(test)]
fn flag_mdoc(flag: Flag) -> String {
    match flag.value() {
        Some(value) => format!(
            "Fl -{} Ar {}",
            flag.long(),
            value.placeholder().to_lowercase()
        ),
        None => format!("Fl -{}", flag.long()),
    }
}

/// Returns the section SYNOPSIS of buildosctl(1).
#[cfg(test)]
pub(crate) fn mdoc() -> String {
    let mut out = String::from(
        ".Sh SYNOPSIS\n.\\\" Made by docs/generate-buildosctl from crates/buildosctl/src/cli/commands.rs.\n",
    );
    for line in lines() {
        out += &line.mdoc();
    }
    out + ".Nm\n.Op Ar command\n.Fl -help\n.Nm\n.Fl -version\n"
}
