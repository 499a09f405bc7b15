//! The names of bbot-agent's options, as data: its versions need not agree on
//! them, so the configuration may give every one another name, or none.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// What agentd can tell bbot-agent by an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// Log to standard error, each line with its priority.
    SystemdDaemon,
    /// Name of the toolchain that tasks are asked for.
    ToolchainName,
    /// How many tasks may run at the same time.
    InstanceMax,
    /// How many hardware threads a task may use.
    Cpu,
    /// How much RAM the machine of a task has, KiB.
    BuildRam,
    /// File with the key that signs answers to a controller's challenge.
    AuthKey,
    /// Bridge that machines are connected to.
    Bridge,
}

/// Setting, its name in the configuration, and bbot-agent's name for it.
const TABLE: [(Setting, &str, &str); 7] = [
    (Setting::SystemdDaemon, "systemd_daemon", "--systemd-daemon"),
    (Setting::ToolchainName, "toolchain_name", "--toolchain-name"),
    (Setting::InstanceMax, "instance_max", "--instance-max"),
    (Setting::Cpu, "cpu", "--cpu"),
    (Setting::BuildRam, "build_ram", "--build-ram"),
    (Setting::AuthKey, "auth_key", "--auth-key"),
    (Setting::Bridge, "bridge", "--bridge"),
];

/// There is no such [`Setting`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bbot-agent has no option for {0:?}; the known ones are {known}", known = known())]
pub struct SettingError(String);

fn known() -> String {
    TABLE.map(|(_, name, _)| name).join(", ")
}

impl FromStr for Setting {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TABLE
            .iter()
            .find(|(_, name, _)| *name == text)
            .map(|(setting, _, _)| *setting)
            .ok_or_else(|| SettingError(text.to_owned()))
    }
}

/// Name of an option (`--cpu`); empty where the program has no such option.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct OptionName(String);

/// A text cannot name an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no option: --NAME is expected, or nothing when there is no such option")]
pub struct OptionNameError(String);

impl TryFrom<String> for OptionName {
    type Error = OptionNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let name = text.trim_start_matches('-');
        let fits = text.is_empty()
            || text.starts_with('-')
                && !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if fits {
            Ok(Self(text))
        } else {
            Err(OptionNameError(text))
        }
    }
}

impl fmt::Display for OptionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The names in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OptionNames {
    configured: BTreeMap<Setting, OptionName>,
}

impl OptionNames {
    /// Gives an option another name.
    pub fn set(&mut self, setting: Setting, name: OptionName) {
        self.configured.insert(setting, name);
    }

    /// The option that carries a setting, unless the program has none.
    #[must_use]
    pub fn get(&self, setting: Setting) -> Option<&str> {
        let name = match self.configured.get(&setting) {
            Some(name) => &name.0,
            None => TABLE
                .iter()
                .find(|(other, _, _)| *other == setting)
                .map(|(_, _, option)| *option)?,
        };
        Some(name).filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Result<OptionName, OptionNameError> {
        text.to_owned().try_into()
    }

    #[test]
    fn every_setting_has_a_name_and_an_option() {
        for (setting, key, option) in TABLE {
            assert_eq!(key.parse(), Ok(setting));
            assert_eq!(OptionNames::default().get(setting), Some(option));
            assert!(name(option).is_ok());
        }
    }

    #[test]
    fn options_are_renamed_and_dropped() {
        let mut names = OptionNames::default();
        names.set(Setting::Cpu, name("--threads").unwrap());
        names.set(Setting::Bridge, name("").unwrap());
        assert_eq!(names.get(Setting::Cpu), Some("--threads"));
        assert_eq!(names.get(Setting::Bridge), None);
    }

    #[test]
    fn what_is_no_option() {
        for bad in ["cpu", "--", "-", "--cpu=1", "--c pu", "--$x"] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(
            "gpu".parse::<Setting>().unwrap_err().to_string(),
            "bbot-agent has no option for \"gpu\"; the known ones are systemd_daemon, toolchain_name, instance_max, cpu, build_ram, auth_key, bridge"
        );
    }
}
