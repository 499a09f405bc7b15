//! What is executed: program, arguments, environment.

use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;
use std::str::FromStr;

use buildos_dbus_api::agent1::Kind;
use serde::Deserialize;

use crate::agent::bbot_option::{OptionNames, Setting};
use crate::agent::credential::Credential;
use crate::agent::id::Id;
use crate::agent::user::User;
use crate::resources::Allotment;
use crate::settings::AgentSettings;

/// Absolute path of a program, without anything that a unit file would read
/// as something else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Program(String);

/// One argument: any text that execve(2) can pass.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Argument(String);

/// One `NAME=VALUE` of the environment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Variable(String);

/// Why a configured text cannot be part of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// No [`Program`].
    #[error("{0:?} is no program: an absolute path of letters, digits and ._+@- is expected")]
    Program(String),
    /// No [`Argument`].
    #[error("an argument cannot contain a NUL character: {0:?}")]
    Argument(String),
    /// No [`Variable`].
    #[error("{0:?} is no environment variable: NAME=VALUE without control characters is expected")]
    Variable(String),
}

impl Program {
    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A path of ours, which a test has seen to be valid.
    pub(crate) fn known(path: &'static str) -> Self {
        Self(path.to_owned())
    }
}

impl FromStr for Program {
    type Err = PartError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let element = |element: &str| {
            !matches!(element, "" | "." | "..")
                && element
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._+@-".contains(&b))
        };
        match text.strip_prefix('/') {
            Some(path) if path.split('/').all(element) => Ok(Self(text.to_owned())),
            Some(_) | None => Err(PartError::Program(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Program {
    type Error = PartError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Argument {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A value of ours, which is shown as text and never contains NUL.
    fn of(value: impl fmt::Display) -> Self {
        Self(value.to_string())
    }
}

impl TryFrom<String> for Argument {
    type Error = PartError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.contains('\0') {
            Err(PartError::Argument(text))
        } else {
            Ok(Self(text))
        }
    }
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Variable {
    /// `NAME=VALUE`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Variable {
    type Error = PartError;

    /// What systemd would drop from `Environment=` is refused here, where the
    /// operator sees it (`env_assignment_is_valid` in src/basic/env-util.c).
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let name_fits = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let value_fits = |value: &str| {
            !value.contains(|c: char| c.is_ascii_control() && !matches!(c, '\t' | '\n'))
        };
        match text.split_once('=') {
            Some((name, value)) if name_fits(name) && value_fits(value) => Ok(Self(text)),
            Some(_) | None => Err(PartError::Variable(text)),
        }
    }
}

/// What the unit of an agent executes, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program.
    pub program: Program,
    /// Its arguments.
    pub arguments: Vec<Word>,
    /// Added to the environment that systemd gives to every service.
    pub environment: Vec<Variable>,
    /// Whom it runs as, when not as the template says.
    pub user: Option<User>,
    /// Secrets that it gets.
    pub credentials: Vec<Credential>,
    /// What systemd keeps it to, beyond the limits of its slice.
    pub limits: Limits,
}

/// One word of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// As it stands.
    Text(Argument),
    /// Where systemd puts the credential of this name.
    CredentialPath(String),
}

/// What the unit of an agent may take at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Hardware threads.
    pub cpu: Option<NonZeroU32>,
    /// RAM, MiB.
    pub memory: Option<NonZeroU32>,
}

/// The configuration of an agent does not make a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// bbot-agent ends at once without a controller.
    #[error("no controller is configured (controllers of {0})")]
    NoController(Id),
}

impl Command {
    /// The command of an agent.
    ///
    /// # Errors
    ///
    /// Something that the program cannot do without is not configured.
    pub fn new(
        id: &Id,
        settings: &AgentSettings,
        options: &OptionNames,
        allotment: Allotment,
    ) -> Result<Self, CommandError> {
        let written = settings.arguments.iter().cloned().map(Word::Text);
        let mut arguments = Vec::new();
        let limits = match id.kind {
            Kind::Bbot => {
                if settings.controllers.is_empty() {
                    return Err(CommandError::NoController(id.clone()));
                }
                arguments.extend(bbot_options(id, settings, options, allotment));
                arguments.extend(written);
                arguments.extend(settings.controllers.iter().map(Word::of));
                // It keeps its machines to what it was told.
                Limits::default()
            }
            // Its options are not public: all of them are configuration, and it
            // cannot be told what it may take.
            Kind::Bslave => {
                arguments.extend(written);
                Limits {
                    cpu: settings.cpu,
                    memory: settings.ram_mib,
                }
            }
        };
        let credentials = settings.auth_key.iter().chain(&settings.credentials);
        Ok(Self {
            program: settings.program.clone(),
            arguments,
            environment: settings.environment.clone(),
            user: settings.user.clone(),
            credentials: credentials.cloned().collect(),
            limits,
        })
    }
}

impl Word {
    fn of(value: impl fmt::Display) -> Self {
        Self::Text(Argument::of(value))
    }
}

fn bbot_options(
    id: &Id,
    settings: &AgentSettings,
    options: &OptionNames,
    allotment: Allotment,
) -> Vec<Word> {
    // An agent serves one toolchain; unless told otherwise, that of its name.
    let toolchain_name = match &settings.toolchain_name {
        Some(name) => name.clone(),
        None => Argument::of(&id.name),
    };
    let values = [
        (Setting::SystemdDaemon, Value::Flag),
        (Setting::ToolchainName, Value::of(Some(toolchain_name))),
        (Setting::InstanceMax, Value::of(settings.instance_max)),
        (Setting::Cpu, Value::of(Some(allotment.cpu))),
        (Setting::BuildRam, Value::of(Some(allotment.ram_kib()))),
        (
            Setting::AuthKey,
            settings.auth_key.as_ref().map_or(Value::Unset, |key| {
                Value::Is(Word::CredentialPath(key.name().to_owned()))
            }),
        ),
        (Setting::Bridge, Value::of(Some(&settings.bridge))),
    ];
    let mut arguments = Vec::new();
    for (setting, value) in values {
        let Some(option) = options.get(setting) else {
            continue;
        };
        match value {
            Value::Flag => arguments.push(Word::of(option)),
            Value::Is(value) => arguments.extend([Word::of(option), value]),
            Value::Unset => {}
        }
    }
    arguments
}

/// What follows an option.
enum Value {
    /// Nothing: the option itself says it.
    Flag,
    /// A value.
    Is(Word),
    /// The option is not passed; the program's own default holds.
    Unset,
}

impl Value {
    fn of(value: Option<impl fmt::Display>) -> Self {
        value.map_or(Self::Unset, |value| Self::Is(Word::of(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(id: &str, change: impl FnOnce(&mut AgentSettings, &mut OptionNames)) -> String {
        let id: Id = id.parse().unwrap();
        let mut settings = AgentSettings::new(id.kind);
        let mut options = OptionNames::default();
        change(&mut settings, &mut options);
        let allotment = Allotment {
            cpu: NonZeroU32::new(2).unwrap(),
            ram_mib: 4096,
            tasks: NonZeroU32::MIN,
        };
        match Command::new(&id, &settings, &options, allotment) {
            Ok(command) => {
                let arguments = command.arguments.iter().map(|word| match word {
                    Word::Text(text) => text.to_string(),
                    Word::CredentialPath(name) => format!("%d/{name}"),
                });
                let words: Vec<_> = [command.program.to_string()]
                    .into_iter()
                    .chain(arguments)
                    .collect();
                words.join(" ")
            }
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn an_agent_with_a_controller_is_complete() {
        let command = command("bbot@default", |s, _| {
            s.controllers = vec!["https://ci.example.org".parse().unwrap()];
        });
        assert_eq!(
            command,
            "/usr/bin/bbot-agent --systemd-daemon --toolchain-name default --cpu 2 --build-ram 4194304 --bridge br1 https://ci.example.org"
        );
    }

    #[test]
    fn everything_that_can_be_set() {
        let command = command("bbot@gcc", |s, o| {
            s.program = "/opt/bbot/bin/bbot-agent".parse().unwrap();
            s.controllers = vec![
                "0100=https://a.example.org".parse().unwrap(),
                "https://b.example.org".parse().unwrap(),
            ];
            s.toolchain_name = Some(Argument::of("public"));
            s.instance_max = std::num::NonZeroU32::new(4);
            s.auth_key = Some("key".parse().unwrap());
            s.bridge = "br0".parse().unwrap();
            s.arguments = vec![Argument::of("--verbose"), Argument::of(2)];
            o.set(Setting::Cpu, "--threads".to_owned().try_into().unwrap());
            o.set(Setting::SystemdDaemon, String::new().try_into().unwrap());
            o.set(Setting::BuildRam, String::new().try_into().unwrap());
        });
        assert_eq!(
            command,
            "/opt/bbot/bin/bbot-agent --toolchain-name public --instance-max 4 --threads 2 --auth-key %d/key --bridge br0 --verbose 2 0100=https://a.example.org https://b.example.org"
        );
    }

    #[test]
    fn an_agent_without_controllers_is_not_started() {
        assert_eq!(
            command("bbot@default", |_, _| {}),
            "error: no controller is configured (controllers of bbot@default)"
        );
    }

    #[test]
    fn bslave_gets_what_the_operator_wrote() {
        assert_eq!(command("bslave@default", |_, _| {}), "/usr/bin/bslave");
        let command = command("bslave@default", |s, _| {
            s.arguments = vec![Argument::of("--port"), Argument::of(1)];
        });
        assert_eq!(command, "/usr/bin/bslave --port 1");
    }

    #[test]
    fn what_cannot_be_part_of_a_command() {
        for bad in [
            "",
            "bslave",
            "/",
            "/usr//x",
            "/usr/../x",
            "/a b",
            "/a%b",
            "/a$b",
            "/usr/x/",
        ] {
            assert!(bad.parse::<Program>().is_err(), "{bad}");
        }
        for bad in ["", "A", "=b", "1A=b", "A B=c", "A=\u{1b}"] {
            assert!(Variable::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert!(Variable::try_from("_A1=x=y\n".to_owned()).is_ok());
        assert!(Argument::try_from("a\0b".to_owned()).is_err());
    }
}
