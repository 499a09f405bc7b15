//! Maps settings to the options of bbot-agent.
//!
//! Versions of bbot-agent may name options differently or lack them. The table
//! `[bbot_option]` of the configuration therefore renames or drops each of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Setting that agentd passes to bbot-agent as an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// Log to standard error, each line with its priority.
    SystemdDaemon,
    /// Toolchain that the agent requests tasks for.
    ToolchainName,
    /// Version of this toolchain.
    ToolchainVersion,
    /// Identifier of this toolchain: of the same name and version, but different content.
    ToolchainId,
    /// Number that separates the ports and links of agents on one host.
    ToolchainNumber,
    /// Limit of concurrent tasks.
    InstanceMax,
    /// Hardware threads of a task.
    Cpu,
    /// RAM of the machine of a task, KiB.
    BuildRam,
    /// RAM of the auxiliary machines of a task, KiB.
    AuxiliaryRam,
    /// Scheduling priority of the machines.
    Nice,
    /// Builds with or without a login.
    Interactive,
    /// Fingerprint of a trusted package repository; the option may occur several times.
    Trust,
    /// Directory of the machines.
    Machines,
    /// Directory of the files that machines fetch and store by TFTP.
    Tftp,
    /// Port of the TFTP server.
    TftpPort,
    /// File with the key that signs answers to a controller's challenge.
    AuthKey,
    /// Bridge of the machines.
    Bridge,
}

/// Settings with their names in the configuration and their options of bbot-agent.
const TABLE: [(Setting, &str, &str); 17] = [
    (Setting::SystemdDaemon, "systemd_daemon", "--systemd-daemon"),
    (Setting::ToolchainName, "toolchain_name", "--toolchain-name"),
    (
        Setting::ToolchainVersion,
        "toolchain_version",
        "--toolchain-ver",
    ),
    (Setting::ToolchainId, "toolchain_id", "--toolchain-id"),
    (Setting::ToolchainNumber, "toolchain_num", "--toolchain-num"),
    (Setting::InstanceMax, "instance_max", "--instance-max"),
    (Setting::Cpu, "cpu", "--cpu"),
    (Setting::BuildRam, "build_ram", "--build-ram"),
    (Setting::AuxiliaryRam, "auxiliary_ram", "--auxiliary-ram"),
    (Setting::Nice, "nice", "--nice"),
    (Setting::Interactive, "interactive", "--interactive"),
    (Setting::Trust, "trust", "--trust"),
    (Setting::Machines, "machines", "--machines"),
    (Setting::Tftp, "tftp", "--tftp"),
    (Setting::TftpPort, "tftp_port", "--tftp-port"),
    (Setting::AuthKey, "auth_key", "--auth-key"),
    (Setting::Bridge, "bridge", "--bridge"),
];

/// Error: the text does not name a [`Setting`].
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

/// Name of an option (`--cpu`); empty if the program has no such option.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct OptionName(String);

/// Error: the text is not a valid [`OptionName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an option: --NAME is expected, or \"\" if the program has no such option")]
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

/// Options that the program understands: the defaults, with the configured changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OptionNames {
    configured: BTreeMap<Setting, OptionName>,
}

impl OptionNames {
    /// Changes the option of a setting.
    pub fn set(&mut self, setting: Setting, name: OptionName) {
        self.configured.insert(setting, name);
    }

    /// Returns the option of a setting; [`None`] if the program has no such option.
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
    fn every_setting_has_key_and_default_option() {
        for (setting, key, option) in TABLE {
            assert_eq!(key.parse(), Ok(setting));
            assert_eq!(OptionNames::default().get(setting), Some(option));
            assert!(name(option).is_ok());
        }
    }

    #[test]
    fn configured_option_replaces_or_drops_default() {
        let mut names = OptionNames::default();
        names.set(Setting::Cpu, name("--threads").unwrap());
        names.set(Setting::Bridge, name("").unwrap());
        assert_eq!(names.get(Setting::Cpu), Some("--threads"));
        assert_eq!(names.get(Setting::Bridge), None);
    }

    #[test]
    fn invalid_option_is_refused() {
        for bad in ["cpu", "--", "-", "--cpu=1", "--c pu", "--$x"] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(
            "gpu".parse::<Setting>().unwrap_err().to_string(),
            "bbot-agent has no option for \"gpu\"; the known ones are systemd_daemon, toolchain_name, toolchain_version, toolchain_id, toolchain_num, instance_max, cpu, build_ram, auxiliary_ram, nice, interactive, trust, machines, tftp, tftp_port, auth_key, bridge"
        );
    }
}
