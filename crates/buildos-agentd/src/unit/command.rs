//! Derives the command of an agent from its settings: program, arguments, environment.

use std::fmt;
use std::num::NonZeroU32;

use buildos_dbus_api::agent1::Kind;

use crate::agent::bbot_option::{OptionNames, Setting};
use crate::agent::credential::Credential;
use crate::agent::exec::{Argument, Program, Variable};
use crate::agent::id::Id;
use crate::agent::settings::AgentSettings;
use crate::agent::user::User;
use crate::resources::Resources;

/// Command of a unit, with its environment and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// `ExecStart=`, first word.
    pub program: Program,
    /// `ExecStart=`, other words.
    pub arguments: Vec<Word>,
    /// `Environment=`.
    pub environment: Vec<Variable>,
    /// `User=`; default: the user of the template unit.
    pub user: Option<User>,
    /// `LoadCredential=` and `LoadCredentialEncrypted=`.
    pub credentials: Vec<Credential>,
    /// Limits in addition to those of the slice.
    pub limits: Limits,
}

/// Word of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Literal text.
    Text(Argument),
    /// Path of the credential with this name.
    CredentialPath(String),
}

/// Resource limits of a unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// `CPUQuota=`, in hardware threads.
    pub cpu: Option<NonZeroU32>,
    /// `MemoryMax=`, MiB.
    pub memory: Option<NonZeroU32>,
}

/// Reason why the settings of an agent yield no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Without a controller bbot-agent ends at once.
    #[error("no controller is configured (controllers of {0})")]
    NoController(Id),
}

impl Command {
    /// Derives the command of an agent.
    ///
    /// # Errors
    ///
    /// A setting that the program requires is missing.
    pub fn new(
        id: &Id,
        settings: &AgentSettings,
        options: &OptionNames,
        resources: Resources,
    ) -> Result<Self, CommandError> {
        let configured = settings.arguments.iter().cloned().map(Word::Text);
        let mut arguments = Vec::new();
        let limits = match id.kind {
            Kind::Bbot => {
                if settings.controllers.is_empty() {
                    return Err(CommandError::NoController(id.clone()));
                }
                arguments.extend(bbot_options(id, settings, options, resources));
                arguments.extend(configured);
                arguments.extend(settings.controllers.iter().map(Word::of));
                // bbot-agent limits its machines by its options.
                Limits::default()
            }
            // bslave has no public options: all arguments are configuration, and systemd
            // enforces the limits.
            Kind::Bslave => {
                arguments.extend(configured);
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
    resources: Resources,
) -> Vec<Word> {
    // An agent serves one toolchain, by default the one with its own name.
    let toolchain_name = match &settings.toolchain_name {
        Some(name) => name.clone(),
        None => Argument::of(&id.name),
    };
    let values = [
        (Setting::SystemdDaemon, Value::Flag),
        (Setting::ToolchainName, Value::of(Some(toolchain_name))),
        (
            Setting::ToolchainVersion,
            Value::of(settings.toolchain_version.as_ref()),
        ),
        (
            Setting::ToolchainId,
            Value::of(settings.toolchain_id.as_ref()),
        ),
        (Setting::ToolchainNumber, Value::of(resources.number)),
        (Setting::InstanceMax, Value::of(settings.instance_max)),
        (Setting::Cpu, Value::of(Some(resources.cpu))),
        (Setting::BuildRam, Value::of(Some(resources.ram_kib()))),
        // Without this value in a request, controllers draw auxiliary machines of any size.
        (
            Setting::AuxiliaryRam,
            Value::of(Some(resources.auxiliary_kib())),
        ),
        (Setting::Nice, Value::of(settings.nice)),
        (Setting::Interactive, Value::of(settings.interactive)),
        (Setting::Trust, Value::each(&settings.trust)),
        (Setting::Machines, Value::of(settings.machines.as_ref())),
        (Setting::Tftp, Value::of(settings.tftp.as_ref())),
        (Setting::TftpPort, Value::of(settings.tftp_port)),
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
            Value::Each(values) => {
                for value in values {
                    arguments.extend([Word::of(option), value]);
                }
            }
            Value::Unset => {}
        }
    }
    arguments
}

/// Value of an option.
enum Value {
    /// No value: the option is a flag.
    Flag,
    /// One word.
    Is(Word),
    /// The option occurs once for each word.
    Each(Vec<Word>),
    /// The option is left out; the default of the program applies.
    Unset,
}

impl Value {
    fn of(value: Option<impl fmt::Display>) -> Self {
        value.map_or(Self::Unset, |value| Self::Is(Word::of(value)))
    }

    fn each(values: &[impl fmt::Display]) -> Self {
        Self::Each(values.iter().map(Word::of).collect())
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
        let resources = Resources {
            cpu: NonZeroU32::new(2).unwrap(),
            ram_mib: 4096,
            auxiliary_mib: 0,
            number: None,
            tasks: NonZeroU32::MIN,
        };
        match Command::new(&id, &settings, &options, resources) {
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
    fn bbot_with_controller_has_default_options() {
        let command = command("bbot@default", |s, _| {
            s.controllers = vec!["https://ci.example.org".parse().unwrap()];
        });
        assert_eq!(
            command,
            "/usr/bin/bbot-agent --systemd-daemon --toolchain-name default --cpu 2 --build-ram 4194304 --auxiliary-ram 0 --bridge br1 https://ci.example.org"
        );
    }

    #[test]
    fn bbot_settings_become_options() {
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
            "/opt/bbot/bin/bbot-agent --toolchain-name public --instance-max 4 --threads 2 --auxiliary-ram 0 --auth-key %d/key --bridge br0 --verbose 2 0100=https://a.example.org https://b.example.org"
        );
    }

    #[test]
    fn bbot_without_controllers_is_refused() {
        assert_eq!(
            command("bbot@default", |_, _| {}),
            "error: no controller is configured (controllers of bbot@default)"
        );
    }

    #[test]
    fn bslave_gets_configured_arguments_only() {
        assert_eq!(command("bslave@default", |_, _| {}), "/usr/bin/bslave");
        let command = command("bslave@default", |s, _| {
            s.arguments = vec![Argument::of("--port"), Argument::of(1)];
        });
        assert_eq!(command, "/usr/bin/bslave --port 1");
    }
}
