//! The drop-in that gives a unit its command line.
//!
//! `ExecStart=` takes a fixed program, so a template cannot get its command
//! from an environment file without a wrapper that hides it. With a drop-in in
//! `/run/systemd/system`, `systemctl cat` shows the very command that runs,
//! and what an operator writes with `systemctl edit` comes later and wins
//! (systemd.unit(5)).

use std::collections::{BTreeMap, BTreeSet};

use crate::agent::id::Id;
use crate::unit::command::{Command, Word};

/// Name of the drop-in; the unit's assertion repeats it.
pub const FILE: &str = "50-buildos.conf";

/// The slice that every agent is in.
pub const SLICE: &str = "buildos-agents.slice";

/// The directory of a unit's drop-ins, beside the units.
#[must_use]
pub fn directory(id: &Id) -> String {
    format!("{}.d", id.unit())
}

/// The agent that such a directory belongs to.
#[must_use]
pub fn agent_of(directory: &str) -> Option<Id> {
    Id::from_unit(directory.strip_suffix(".d")?)
}

/// The drop-in that makes a unit execute the command.
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
        text.push_str(&format!("LoadCredential={credential}\n"));
    }
    if let Some(threads) = command.limits.cpu {
        text.push_str(&format!("CPUQuota={}%\n", u64::from(threads.get()) * 100));
    }
    if let Some(mebibytes) = command.limits.memory {
        text.push_str(&format!("MemoryMax={mebibytes}M\n"));
    }
    // The empty one takes back the template's.
    text.push_str("ExecStart=\nExecStart=");
    text.push_str(&command_line(command));
    text.push('\n');
    text
}

/// The value of `ExecStart=`.
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

/// The drop-in that keeps all agents together to this much RAM, MiB. Nothing is left
/// when RAM could not be read, or a mistake reserves all of it: then there is no
/// limit, rather than one that ends every agent at once.
#[must_use]
pub fn slice(memory: u64) -> String {
    let limit = match memory {
        0 => "infinity".to_owned(),
        memory => format!("{memory}M"),
    };
    format!(
        "# Written by buildos-agentd: RAM less memory_reserve_mib of\n\
         # buildos-agentd.conf(5). A build that wants more is ended, not a service.\n\
         [Slice]\n\
         MemoryMax={limit}\n"
    )
}

/// What is to be done to the drop-ins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The agent is no longer configured: it is stopped and its drop-in removed.
    Remove(Id),
    /// The same, but the configuration has errors: nothing is done.
    Keep(Id),
    /// The drop-in gets this text.
    Write(Id, String),
}

/// The way from the drop-ins that are there to those that are wished for.
///
/// `configured` may contain agents without a wish, those whose configuration
/// makes no command: what they have is left alone. An agent that is no longer
/// configured is only removed when the configuration is `sound`: a typing error
/// that hides a table must not end a build.
#[must_use]
pub fn plan(
    configured: &BTreeSet<Id>,
    wished: &BTreeMap<Id, String>,
    present: &BTreeMap<Id, String>,
    sound: bool,
) -> Vec<Op> {
    let gone = present.keys().filter(|id| !configured.contains(id));
    let remove = if sound { Op::Remove } else { Op::Keep };
    let changed = wished
        .iter()
        .filter(|(id, text)| present.get(id) != Some(text));
    gone.map(|id| remove(id.clone()))
        .chain(changed.map(|(id, text)| Op::Write(id.clone(), text.clone())))
        .collect()
}

/// A word of `ExecStart=` (systemd.service(5), "Command lines"): `$` would be
/// replaced by a variable.
fn argument(text: &str) -> String {
    quote(text, true)
}

/// A word of `Environment=` (systemd.exec(5)): `$` has no meaning there.
fn assignment(text: &str) -> String {
    quote(text, false)
}

/// The word as systemd reads it back: quoted where it must be, `%` doubled
/// because it begins a specifier in either place.
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
    use crate::unit::command::{Argument, Limits, Variable};
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
    fn an_ordinary_command_needs_no_quotes() {
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
    fn the_rest_is_quoted() {
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

    /// systemd's way back: `extract_first_word` with EXTRACT_UNQUOTE and
    /// EXTRACT_CUNESCAPE, specifiers, then variables.
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
        fn systemd_reads_back_what_was_meant(words: Vec<String>) {
            let words: Vec<_> = words.into_iter().map(|w| w.replace('\0', "")).collect();
            let line = words.iter().map(|w| argument(w)).collect::<Vec<_>>().join(" ");
            prop_assert!(!line.contains(['\n', '\0']));
            prop_assert_eq!(read_back(&line, true), words.clone());
            let line = words.iter().map(|w| assignment(w)).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(read_back(&line, false), words);
        }
    }

    #[test]
    fn the_slice_is_limited_to_what_there_is() {
        assert!(slice(1024).ends_with("[Slice]\nMemoryMax=1024M\n"));
        assert!(slice(0).ends_with("[Slice]\nMemoryMax=infinity\n"));
    }

    #[test]
    fn directories_name_agents() {
        let id = id("bbot@default");
        assert_eq!(directory(&id), "buildos-bbot@default.service.d");
        assert_eq!(agent_of(&directory(&id)), Some(id));
        assert_eq!(agent_of("buildos-natd.service.d"), None);
        assert_eq!(agent_of("buildos-bbot@.service.d"), None);
    }

    #[test]
    fn only_what_differs_is_touched() {
        let texts = |pairs: &[(&str, &str)]| -> BTreeMap<Id, String> {
            pairs
                .iter()
                .map(|(i, t)| (id(i), (*t).to_owned()))
                .collect()
        };
        let present = texts(&[
            ("bbot@a", "1"),
            ("bbot@b", "1"),
            ("bbot@c", "1"),
            ("bbot@d", "1"),
        ]);
        let wished = texts(&[("bbot@a", "1"), ("bbot@b", "2"), ("bbot@e", "1")]);
        // bbot@c is configured, but its configuration makes no command.
        let configured: BTreeSet<_> = ["bbot@a", "bbot@b", "bbot@c", "bbot@e"]
            .map(id)
            .into_iter()
            .collect();
        let write = |i: &str, text: &str| Op::Write(id(i), text.to_owned());
        assert_eq!(
            plan(&configured, &wished, &present, true),
            [
                Op::Remove(id("bbot@d")),
                write("bbot@b", "2"),
                write("bbot@e", "1")
            ]
        );
        assert_eq!(
            plan(&configured, &wished, &present, false),
            [
                Op::Keep(id("bbot@d")),
                write("bbot@b", "2"),
                write("bbot@e", "1")
            ]
        );
    }
}
