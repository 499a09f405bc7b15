//! Defines the settings: `updated.conf.d` and `buildos.updated.*`.

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use buildos_channel::Name;
use buildos_channel::swarm::PEERS;
use buildos_service::config::{Schema, evaluate, sources};
use serde::Deserialize;

use crate::layout::{Layout, LinkTemplate, SubvolumeTemplate};
use crate::os::window::Window;
use crate::pattern::Pattern;
use crate::ram;

/// Settings of the daemon and of its helpers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the channel and its objects are; without it nothing is fetched.
    pub source: Option<Source>,
    /// Channel that the host follows.
    pub channel: Name,
    /// Signatures of different keys that a channel needs.
    pub signatures: u8,
    /// Maximum rate of downloads in KiB/s; 0 for no limit.
    pub rate_kib: u32,
    /// Proxy of curl(1), if it does not come from the environment.
    pub proxy: Option<Source>,
    /// Other hosts of the LAN get pieces from this host, and this host from them.
    pub share: bool,
    /// Servers with pieces that are asked before the source.
    pub peers: Vec<Source>,
    /// How the host takes an operating system.
    pub os: OsSettings,
    /// Machines of the channel that the host takes.
    pub select: Vec<Pattern>,
    /// Agents of the channel that the host takes.
    pub agents: Vec<Pattern>,
    /// Names of subvolumes and links.
    pub layout: Layout,
    /// Previous revisions of a machine that stay.
    pub keep: u8,
    /// Volume that gets the machines.
    pub volume: Name,
    /// Size of this volume in RAM, in MiB, on a host without a disk for it; 0 for none.
    pub ram_mib: u32,
}

/// Settings of updates of the operating system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsSettings {
    /// How another operating system is started.
    pub method: Method,
    /// Times in which an update may begin; any time if there are none.
    pub windows: Vec<Window>,
    /// FleetLock server that permits restarts.
    pub lock: Option<Source>,
    /// Group of this host at the FleetLock server.
    pub lock_group: Name,
    /// Seconds after which tasks are stopped that did not end; 0 for never.
    pub force_after_s: u32,
    /// Seconds that a new operating system has to prove itself.
    pub trial_s: u32,
}

/// How another operating system is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// By kexec, with the system that runs as the way back.
    #[default]
    Kexec,
    /// By a reboot: the boot server decides what starts.
    Reboot,
    /// Not at all.
    Off,
}

/// The URL of a server or a proxy, by HTTP or HTTPS, without a `/` at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(String);

/// A text is not a [`Source`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a URL such as https://updates.example.com/buildos, without query and blanks")]
pub struct InvalidSource;

/// Longest URL in bytes.
const LONGEST_URL: usize = 1000;
/// Most windows: each is evaluated by a program.
const WINDOWS: usize = 16;
/// Seconds of a trial: a host has to boot, and to work for two minutes.
const SHORTEST_TRIAL: u32 = 180;
const LONGEST_TRIAL: u32 = 86_400;
/// Most signatures and most previous revisions.
const MOST: u8 = 9;
/// Name of the daemon in files and on the kernel command line.
pub const NAME: &str = "updated";

impl Default for Settings {
    fn default() -> Self {
        // These constants are names.
        let name = |text: &str| text.parse().ok();
        let fallback = || Name::from_str("x").unwrap_or_else(|_| unreachable!());
        Self {
            source: None,
            channel: name("stable").unwrap_or_else(fallback),
            signatures: 1,
            rate_kib: 0,
            proxy: None,
            share: true,
            peers: Vec::new(),
            os: OsSettings {
                method: Method::default(),
                windows: Vec::new(),
                lock: None,
                lock_group: name("default").unwrap_or_else(fallback),
                force_after_s: 0,
                trial_s: 900,
            },
            select: vec![Pattern::all()],
            agents: Vec::new(),
            layout: Layout::default(),
            keep: 1,
            volume: name("default").unwrap_or_else(fallback),
            ram_mib: 0,
        }
    }
}

/// A value that parses from a string.
#[derive(Deserialize)]
#[serde(
    try_from = "String",
    bound(deserialize = "T: FromStr, T::Err: Display")
)]
struct Text<T>(T);

impl<T: FromStr<Err: Display>> TryFrom<String> for Text<T> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|error: T::Err| error.to_string())
    }
}

/// A list of URLs.
#[derive(Deserialize)]
#[serde(try_from = "Vec<Text<Source>>")]
struct Urls(Vec<Source>);

impl TryFrom<Vec<Text<Source>>> for Urls {
    type Error = String;

    fn try_from(urls: Vec<Text<Source>>) -> Result<Self, String> {
        match urls.len() {
            count if count > PEERS => Err(format!("{count} URLs: at most {PEERS}")),
            _ => Ok(Self(urls.into_iter().map(|url| url.0).collect())),
        }
    }
}

/// A list of windows.
#[derive(Deserialize)]
#[serde(try_from = "Vec<Text<Window>>")]
struct Windows(Vec<Window>);

impl TryFrom<Vec<Text<Window>>> for Windows {
    type Error = String;

    fn try_from(windows: Vec<Text<Window>>) -> Result<Self, String> {
        match windows.len() {
            count if count > WINDOWS => Err(format!("{count} windows: at most {WINDOWS}")),
            _ => Ok(Self(windows.into_iter().map(|window| window.0).collect())),
        }
    }
}

/// Seconds of a trial.
#[derive(Deserialize)]
#[serde(try_from = "u32")]
struct TrialSeconds(u32);

impl TryFrom<u32> for TrialSeconds {
    type Error = String;

    fn try_from(seconds: u32) -> Result<Self, String> {
        match (SHORTEST_TRIAL..=LONGEST_TRIAL).contains(&seconds) {
            true => Ok(Self(seconds)),
            false => Err(format!(
                "{seconds} is not from {SHORTEST_TRIAL} to {LONGEST_TRIAL}"
            )),
        }
    }
}

/// A number from `LEAST` to 9.
#[derive(Deserialize)]
#[serde(try_from = "i64")]
struct Few<const LEAST: u8>(u8);

impl<const LEAST: u8> TryFrom<i64> for Few<LEAST> {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        u8::try_from(number)
            .ok()
            .filter(|number| (LEAST..=MOST).contains(number))
            .map(Self)
            .ok_or_else(|| format!("{number} is not a number from {LEAST} to {MOST}"))
    }
}

/// A size in MiB: 0, or at least [`ram::LEAST`].
#[derive(Deserialize)]
#[serde(try_from = "u32")]
struct RamSize(u32);

impl TryFrom<u32> for RamSize {
    type Error = String;

    fn try_from(mib: u32) -> Result<Self, String> {
        match mib {
            1..ram::LEAST => Err(format!("{mib} is less than {} MiB", ram::LEAST)),
            mib => Ok(Self(mib)),
        }
    }
}

/// Returns the keys of the configuration.
#[must_use]
pub fn schema() -> Schema<Settings> {
    Schema::new(NAME)
        .key(
            "update.source",
            "URL below which the server has channel/ and objects/.",
            |settings: &mut Settings, Text(source)| settings.source = Some(source),
        )
        .key(
            "update.channel",
            "Name of the channel.",
            |settings: &mut Settings, Text(name)| settings.channel = name,
        )
        .key(
            "update.signatures",
            "Signatures of different keys that a channel needs.",
            |settings: &mut Settings, count: Few<1>| settings.signatures = count.0,
        )
        .key(
            "update.rate_kib",
            "Maximum rate of downloads in KiB/s; 0 for no limit.",
            |settings: &mut Settings, rate| settings.rate_kib = rate,
        )
        .key(
            "update.proxy",
            "URL of a proxy.",
            |settings: &mut Settings, Text(proxy)| settings.proxy = Some(proxy),
        )
        .key(
            "update.share",
            "Share pieces with the other hosts of the LAN of br0.",
            |settings: &mut Settings, share| settings.share = share,
        )
        .key(
            "update.peers",
            "URLs of servers with pieces, before the source; at most 16.",
            |settings: &mut Settings, Urls(peers)| settings.peers = peers,
        )
        .key(
            "update.method",
            "How an operating system of the channel is started: kexec, reboot, or off.",
            |settings: &mut Settings, method| settings.os.method = method,
        )
        .key(
            "update.window",
            "Times in which an OS update may begin, such as Mon..Fri 22:00 + 8h.",
            |settings: &mut Settings, Windows(windows)| settings.os.windows = windows,
        )
        .key(
            "update.lock",
            "URL of a FleetLock server that permits restarts.",
            |settings: &mut Settings, Text(lock)| settings.os.lock = Some(lock),
        )
        .key(
            "update.lock_group",
            "Group of this host at the FleetLock server.",
            |settings: &mut Settings, Text(name)| settings.os.lock_group = name,
        )
        .key(
            "update.force_after_s",
            "Seconds after which an OS update stops tasks; 0 for never.",
            |settings: &mut Settings, seconds| settings.os.force_after_s = seconds,
        )
        .key(
            "update.trial_s",
            "Seconds that a new operating system has to prove itself; from 180.",
            |settings: &mut Settings, seconds: TrialSeconds| settings.os.trial_s = seconds.0,
        )
        .key(
            "agents.select",
            "Agents of the channel that this host takes, as patterns with * and ?.",
            |settings: &mut Settings, patterns: Vec<Text<Pattern>>| {
                settings.agents = patterns.into_iter().map(|pattern| pattern.0).collect();
            },
        )
        .key(
            "machines.select",
            "Machines of the channel that this host takes, as patterns with * and ?.",
            |settings: &mut Settings, patterns: Vec<Text<Pattern>>| {
                settings.select = patterns.into_iter().map(|pattern| pattern.0).collect();
            },
        )
        .key(
            "machines.subvolume",
            "Path of a revision, with {name} and {revision}.",
            |settings: &mut Settings, Text(template): Text<SubvolumeTemplate>| {
                settings.layout.subvolume = template;
            },
        )
        .key(
            "machines.link",
            "Path of the link to the current revision, with {name}.",
            |settings: &mut Settings, Text(template): Text<LinkTemplate>| {
                settings.layout.link = template;
            },
        )
        .key(
            "machines.keep",
            "Previous revisions of a machine that stay.",
            |settings: &mut Settings, count: Few<0>| settings.keep = count.0,
        )
        .key(
            "machines.volume",
            "Name of the volume that gets the machines.",
            |settings: &mut Settings, Text(name)| settings.volume = name,
        )
        .key(
            "machines.ram_mib",
            "MiB of RAM for this volume on a host without a disk for it; 0 for none.",
            |settings: &mut Settings, size: RamSize| settings.ram_mib = size.0,
        )
}

/// Reads the settings below `root`, with the mistakes, one line each. The helpers of the
/// daemon use it.
#[must_use]
pub fn load(root: &Path) -> (Settings, Vec<String>) {
    let (fragments, unreadable) = sources::read(root, NAME);
    let loaded = evaluate(&schema(), &fragments);
    let problems = unreadable.iter().chain(&loaded.problems);
    let problems = problems.map(ToString::to_string).collect();
    (loaded.settings, problems)
}

impl Source {
    /// Returns the URL without a `/` at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the URL of a file below the source.
    #[must_use]
    pub fn file(&self, path: &str) -> String {
        format!("{}/{path}", self.0)
    }
}

impl FromStr for Source {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        let rest = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"))
            .ok_or(InvalidSource)?;
        // curl(1) gives a meaning to braces and brackets.
        let valid = |byte: u8| byte.is_ascii_graphic() && !b"{}[]<>\"'`\\^|?#".contains(&byte);
        let host = rest.split('/').next().unwrap_or_default();
        let ok = text.len() <= LONGEST_URL && !host.is_empty() && rest.bytes().all(valid);
        match ok {
            true => Ok(Self(text.trim_end_matches('/').to_owned())),
            false => Err(InvalidSource),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_service::config::{Fragment, Origin};

    fn load(toml: &str) -> (Settings, Vec<String>) {
        let fragment = Fragment {
            origin: Origin::File("x.toml".into()),
            text: toml.to_owned(),
        };
        let loaded = evaluate(&schema(), &[fragment]);
        let problems = loaded.problems.iter().map(ToString::to_string).collect();
        (loaded.settings, problems)
    }

    #[test]
    fn keys_are_read() {
        let (settings, problems) = load(
            "update.source = \"https://updates.example.com/b/\"\nupdate.channel = \"canary\"\n\
             update.signatures = 2\nupdate.rate_kib = 500\nupdate.proxy = \"http://proxy:3128\"\n\
             update.method = \"reboot\"\nupdate.window = [\"Sat 22:00 + 8h\"]\n\
             update.lock = \"http://lock:3333\"\nupdate.lock_group = \"rack1\"\n\
             update.force_after_s = 7200\nupdate.trial_s = 600\n\
             update.share = false\nupdate.peers = [\"http://mirror/x\"]\n\
             machines.select = [\"x86_64-*\"]\nmachines.subvolume = \"{name}/{name}-1.{revision}\"\n\
             machines.link = \"{name}/{name}-1\"\nmachines.keep = 0\nmachines.volume = \"fast\"\n\
             machines.ram_mib = 8192\nagents.select = [\"bbot-*\"]\n",
        );
        assert_eq!(problems, [""; 0]);
        let source = settings.source.unwrap();
        assert_eq!(
            source.file("channel/x"),
            "https://updates.example.com/b/channel/x"
        );
        assert_eq!(settings.proxy.unwrap().as_str(), "http://proxy:3128");
        let numbers = (settings.signatures, settings.rate_kib, settings.keep);
        assert_eq!(numbers, (2, 500, 0));
        assert_eq!(settings.channel.as_str(), "canary");
        assert_eq!(settings.volume.as_str(), "fast");
        assert_eq!(settings.ram_mib, 8192);
        assert_eq!(settings.agents, ["bbot-*".parse().unwrap()]);
        assert!(!settings.share);
        let expected = OsSettings {
            method: Method::Reboot,
            windows: vec!["Sat 22:00 + 8h".parse().unwrap()],
            lock: Some("http://lock:3333".parse().unwrap()),
            lock_group: "rack1".parse().unwrap(),
            force_after_s: 7200,
            trial_s: 600,
        };
        assert_eq!(settings.os, expected);
        assert_eq!(settings.peers[0].as_str(), "http://mirror/x");
    }

    #[test]
    fn defaults_have_names() {
        let settings = Settings::default();
        assert_eq!(settings.channel.as_str(), "stable");
        assert_eq!(settings.volume.as_str(), "default");
    }

    #[test]
    fn mistakes_keep_the_defaults() {
        for bad in [
            "update.source = \"ftp://x\"",
            "update.source = \"http://\"",
            "update.source = \"http://a/{b}\"",
            "update.signatures = 0",
            "machines.keep = 10",
            "machines.keep = -1",
            "machines.ram_mib = 255",
            "machines.select = [\"a/b\"]",
            "machines.subvolume = \"{name}\"",
            "machines.link = \"{name}-{revision}\"",
            "update.channel = \"a/b\"",
            "update.peers = [\"mirror\"]",
            "update.method = \"now\"",
            "update.window = [\"22:00\"]",
            "update.lock_group = \"a/b\"",
            "update.trial_s = 10",
            &format!("update.peers = [{}]", "\"http://x\",".repeat(17)),
        ] {
            let (settings, problems) = load(bad);
            assert_eq!(settings, Settings::default(), "{bad}");
            assert_eq!(problems.len(), 1, "{bad}: {problems:?}");
        }
    }
}
