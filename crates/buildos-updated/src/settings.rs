//! Defines the settings: `updated.conf.d` and `buildos.updated.*`.

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use buildos_channel::Name;
use buildos_service::config::{Schema, evaluate, sources};
use serde::Deserialize;

use crate::layout::{Layout, LinkTemplate, SubvolumeTemplate};
use crate::pattern::Pattern;

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
    /// Machines of the channel that the host takes.
    pub select: Vec<Pattern>,
    /// Names of subvolumes and links.
    pub layout: Layout,
    /// Previous revisions of a machine that stay.
    pub keep: u8,
    /// Volume that gets the machines.
    pub volume: Name,
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
            select: vec![Pattern::all()],
            layout: Layout::default(),
            keep: 1,
            volume: name("default").unwrap_or_else(fallback),
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
             machines.select = [\"x86_64-*\"]\nmachines.subvolume = \"{name}/{name}-1.{revision}\"\n\
             machines.link = \"{name}/{name}-1\"\nmachines.keep = 0\nmachines.volume = \"fast\"\n",
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
            "machines.select = [\"a/b\"]",
            "machines.subvolume = \"{name}\"",
            "machines.link = \"{name}-{revision}\"",
            "update.channel = \"a/b\"",
        ] {
            let (settings, problems) = load(bad);
            assert_eq!(settings, Settings::default(), "{bad}");
            assert_eq!(problems.len(), 1, "{bad}: {problems:?}");
        }
    }
}
