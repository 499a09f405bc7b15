//! Generates the drop-ins that hold the command lines, and plans their changes.
//!
//! `ExecStart=` takes a fixed program, so a template could get its command from an
//! environment file only through a wrapper. With a drop-in in `/run/systemd/system`,
//! `systemctl cat` shows the command that runs. Drop-ins of `systemctl edit` are read
//! later and take precedence (systemd.unit(5)).

use std::collections::{BTreeMap, BTreeSet};

use super::command::{Command, Word};
use crate::agent::id::Id;

/// Name of the drop-in. `AssertPathExists=` of the template units repeats it.
pub const FILE: &str = "50-buildos.conf";

/// Slice of all agents.
pub const SLICE: &str = "buildos-agents.slice";

/// Returns the name of the drop-in directory of an agent.
#[must_use]
pub fn directory(id: &Id) -> String {
    format!("{}.d", id.unit())
}

/// Returns the agent of a drop-in directory.
#[must_use]
pub fn agent_of(directory: &str) -> Option<Id> {
    Id::from_unit(directory.strip_suffix(".d")?)
}

/// Returns the drop-in that makes a unit execute the command.
#[must_use]
pub fn text(command: &Command) -> String {
    let mut text = String::from(
        "# Written by buildos-agentd from its configuration; changes here are lost.\n\
         # To change the command see buildos-agentd.conf(5), to change the unit use\n\
         # systemctl edit.\n\
         [Service]\n",
    );
    for variable in &command.environment {
        text.push_str(&format!("Environment={}\n", assignment(variable.as_str())));
    }
    if let Some(user) = &command.user {
        text.push_str(&format!("User={user}\n"));
    }
    for credential in &command.credentials {
        text.push_str(&format!("{}\n", credential.setting()));
    }
    if let Some(threads) = command.limits.cpu {
        text.push_str(&format!("CPUQuota={}%\n", u64::from(threads.get()) * 100));
    }
    if let Some(mib) = command.limits.memory {
        text.push_str(&format!("MemoryMax={mib}M\n"));
    }
    // The empty value removes the ExecStart= of the template.
    text.push_str("ExecStart=\nExecStart=");
    text.push_str(&command_line(command));
    text.push('\n');
    text
}

/// Returns the value of `ExecStart=`.
fn command_line(command: &Command) -> String {
    let words = command.arguments.iter().map(|word| match word {
        Word::Text(text) => argument(text.as_str()),
        Word::CredentialPath(name) => format!("%d/{name}"),
    });
    let words: Vec<_> = std::iter::once(command.program.to_string())
        .chain(words)
        .collect();
    words.join(" ")
}

/// Returns the drop-in that limits the RAM of all agents together, MiB.
///
/// 0 means no limit: RAM could not be read, or the configuration reserves all of it. A
/// limit of 0 would kill every agent at once.
#[must_use]
pub fn slice(memory: u64) -> String {
    let limit = match memory {
        0 => "infinity".to_owned(),
        memory => format!("{memory}M"),
    };
    format!(
        "# Written by buildos-agentd: RAM less memory_reserve_mib of\n\
         # buildos-agentd.conf(5). The kernel kills a build that exceeds it.\n\
         [Slice]\n\
         MemoryMax={limit}\n"
    )
}

/// Change of the drop-ins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Stop an agent that is no longer configured, and remove its drop-in.
    Remove(Id),
    /// Keep an agent that is no longer configured: the configuration has errors.
    Keep(Id),
    /// Write the drop-in.
    Write(Id, String),
}

/// Returns the changes from the observed to the desired drop-ins.
///
/// `configured` may contain agents that are not in `desired`: their settings yield no
/// command, and their drop-ins are kept. An agent that is no longer configured is removed
/// only if the configuration is `valid`: a typing error that hides a table must not end a
/// build.
#[must_use]
pub fn plan(
    configured: &BTreeSet<Id>,
    desired: &BTreeMap<Id, String>,
    observed: &BTreeMap<Id, String>,
    valid: bool,
) -> Vec<Op> {
    let gone = observed.keys().filter(|id| !configured.contains(id));
    let remove = if valid { Op::Remove } else { Op::Keep };
    let changed = desired
        .iter()
        .filter(|(id, text)| observed.get(id) != Some(text));
    gone.map(|id| remove(id.clone()))
        .chain(changed.map(|(id, text)| Op::Write(id.clone(), text.clone())))
        .collect()
}

/// Quotes a word of `ExecStart=` (systemd.service(5), "Command lines"), where `$` begins
/// a variable.
fn argument(text: &str) -> String {
    quote(text, true)
}

/// Quotes a word of `Environment=` (systemd.exec(5)), where `$` is a plain character.
fn assignment(text: &str) -> String {
    quote(text, false)
}

/// Quotes a word if necessary. `%` is doubled, as it begins a specifier in both places.
fn quote(text: &str, variables: bool) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '%' => quoted.push_str("%%"),
            '$' if variables => quoted.push_str("$$"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::exec::{Argument, Variable};
    use crate::unit::command::Limits;
    use proptest::prelude::*;

    fn command(arguments: &[&str], environment: &[&str]) -> Command {
        let argument = |text: &&str| Word::Text(Argument::try_from((*text).to_owned()).unwrap());
        let variable = |text: &&str| Variable::try_from((*text).to_owned()).unwrap();
        Command {
            program: "/usr/bin/bbot-agent".parse().unwrap(),
            arguments: arguments.iter().map(argument).collect(),
            environment: environment.iter().map(variable).collect(),
            user: None,
            credentials: Vec::new(),
            limits: Limits::default(),
        }
    }

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    #[test]
    fn plain_words_are_not_quoted() {
        let text = text(&command(
            &[
                "--systemd-daemon",
                "--bridge",
                "br1",
                "0100=https://ci.example.org:8080/x?y",
            ],
            &["TMPDIR=/build/tmp"],
        ));
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "[Service]",
                "Environment=TMPDIR=/build/tmp",
                "ExecStart=",
                "ExecStart=/usr/bin/bbot-agent --systemd-daemon --bridge br1 \"0100=https://ci.example.org:8080/x?y\"",
            ]
        );
    }

    #[test]
    fn special_characters_are_quoted() {
        for (text, in_command, in_environment) in [
            ("", r#""""#, r#""""#),
            ("a b", r#""a b""#, r#""a b""#),
            ("100%", r#""100%%""#, r#""100%%""#),
            ("$HOME", r#""$$HOME""#, r#""$HOME""#),
            (r#"say "x""#, r#""say \"x\"""#, r#""say \"x\"""#),
            (r"a\b", r#""a\\b""#, r#""a\\b""#),
            ("a\nb\tc\u{7}", r#""a\nb\tc\x07""#, r#""a\nb\tc\x07""#),
            (";", r#"";""#, r#"";""#),
            ("#x", r##""#x""##, r##""#x""##),
            ("'", r#""'""#, r#""'""#),
            ("grün", r#""grün""#, r#""grün""#),
        ] {
            assert_eq!(argument(text), in_command);
            assert_eq!(assignment(text), in_environment);
        }
    }

    /// Parses as systemd does: `extract_first_word` with EXTRACT_UNQUOTE and
    /// EXTRACT_CUNESCAPE, then specifiers, then variables.
    fn read_back(line: &str, variables: bool) -> Vec<String> {
        let mut words = Vec::new();
        let mut rest = line.chars().peekable();
        loop {
            while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
            if rest.peek().is_none() {
                return words;
            }
            let mut word = String::new();
            let mut quoted = false;
            while let Some(c) = rest.next() {
                match c {
                    '"' => quoted = !quoted,
                    '\\' => match rest.next().unwrap() {
                        'n' => word.push('\n'),
                        't' => word.push('\t'),
                        'x' => {
                            let digits: String = rest.by_ref().take(2).collect();
                            let byte = u8::from_str_radix(&digits, 16).unwrap();
                            word.push(char::from(byte));
                        }
                        c => word.push(c),
                    },
                    c if c.is_ascii_whitespace() && !quoted => break,
                    c => word.push(c),
                }
            }
            let word = word.replace("%%", "%");
            words.push(if variables {
                word.replace("$$", "$")
            } else {
                word
            });
        }
    }

    proptest! {
        #[test]
        fn quoted_words_are_read_back_unchanged(words: Vec<String>) {
            let words: Vec<_> = words.into_iter().map(|w| w.replace('\0', "")).collect();
            let line = words.iter().map(|w| argument(w)).collect::<Vec<_>>().join(" ");
            prop_assert!(!line.contains(['\n', '\0']));
            prop_assert_eq!(read_back(&line, true), words.clone());
            let line = words.iter().map(|w| assignment(w)).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(read_back(&line, false), words);
        }
    }

    #[test]
    fn slice_has_limit_unless_zero() {
        assert!(slice(1024).ends_with("[Slice]\nMemoryMax=1024M\n"));
        assert!(slice(0).ends_with("[Slice]\nMemoryMax=infinity\n"));
    }

    #[test]
    fn dropin_directory_is_named_after_agent() {
        let id = id("bbot@default");
        assert_eq!(directory(&id), "buildos-bbot@default.service.d");
        assert_eq!(agent_of(&directory(&id)), Some(id));
        assert_eq!(agent_of("buildos-natd.service.d"), None);
        assert_eq!(agent_of("buildos-bbot@.service.d"), None);
    }

    #[test]
    fn plan_touches_changed_dropins_only() {
        let texts = |pairs: &[(&str, &str)]| -> BTreeMap<Id, String> {
            pairs
                .iter()
                .map(|(i, t)| (id(i), (*t).to_owned()))
                .collect()
        };
        let observed = texts(&[
            ("bbot@a", "1"),
            ("bbot@b", "1"),
            ("bbot@c", "1"),
            ("bbot@d", "1"),
        ]);
        let desired = texts(&[("bbot@a", "1"), ("bbot@b", "2"), ("bbot@e", "1")]);
        // bbot@c is configured, but its settings yield no command.
        let configured: BTreeSet<_> = ["bbot@a", "bbot@b", "bbot@c", "bbot@e"]
            .map(id)
            .into_iter()
            .collect();
        let write = |i: &str, text: &str| Op::Write(id(i), text.to_owned());
        assert_eq!(
            plan(&configured, &desired, &observed, true),
            [
                Op::Remove(id("bbot@d")),
                write("bbot@b", "2"),
                write("bbot@e", "1")
            ]
        );
        assert_eq!(
            plan(&configured, &desired, &observed, false),
            [
                Op::Keep(id("bbot@d")),
                write("bbot@b", "2"),
                write("bbot@e", "1")
            ]
        );
    }
}
