//! Defines the pair of files that an operating system boots from, and finds the pair that runs.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use buildos_channel::Digest;
use buildos_channel::model::Os;
use buildos_service::cmdline;
use serde::{Deserialize, Serialize};

/// Kernel parameter that names the pair that runs.
pub const PARAMETER: &str = "buildos.running";

/// The digests of `buildos-image` and `buildos-initrd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[allow(missing_docs)]
pub struct Pair {
    pub image: Digest,
    pub initrd: Digest,
}

/// A text is not a [`Pair`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not IMAGE_SHA256:INITRD_SHA256")]
pub struct InvalidPair;

impl Pair {
    /// Returns the pair of a channel.
    #[must_use]
    pub const fn of(os: &Os) -> Self {
        Self {
            image: os.image.sha256,
            initrd: os.initrd.sha256,
        }
    }
}

impl FromStr for Pair {
    type Err = InvalidPair;

    fn from_str(text: &str) -> Result<Self, InvalidPair> {
        let (image, initrd) = text.split_once(':').ok_or(InvalidPair)?;
        Ok(Self {
            image: image.parse().map_err(|_| InvalidPair)?,
            initrd: initrd.parse().map_err(|_| InvalidPair)?,
        })
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.image, self.initrd)
    }
}

impl From<Pair> for String {
    fn from(pair: Pair) -> Self {
        pair.to_string()
    }
}

impl TryFrom<String> for Pair {
    type Error = InvalidPair;

    fn try_from(text: String) -> Result<Self, InvalidPair> {
        text.parse()
    }
}

/// Returns the pair that runs.
///
/// # Errors
///
/// The kernel command line does not name it.
pub fn running(root: &Path) -> Result<Pair, String> {
    let path = root.join("proc/cmdline");
    let line =
        fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let parameters = cmdline::parse(&String::from_utf8_lossy(&line));
    let value = cmdline::last(&parameters, PARAMETER).ok_or_else(|| {
        format!(
            "the kernel command line has no {PARAMETER}=, so there is no way back: \
             boot this host from what image/serve made"
        )
    })?;
    value
        .parse()
        .map_err(|error| format!("{PARAMETER}= of the kernel command line is {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_pair_is_that_of_the_command_line() {
        let root = tempfile::tempdir().unwrap();
        let found = |line: &str| {
            fs::create_dir_all(root.path().join("proc")).unwrap();
            fs::write(root.path().join("proc/cmdline"), line).unwrap();
            running(root.path())
        };
        let pair = Pair {
            image: Digest::of(b"image"),
            initrd: Digest::of(b"initrd"),
        };
        assert_eq!(
            found(&format!("quiet buildos.running={pair} x\n")),
            Ok(pair)
        );
        assert!(
            found("quiet\n")
                .unwrap_err()
                .contains("no buildos.running=")
        );
        for bad in ["", "x", &pair.image.to_string()] {
            let error = found(&format!("buildos.running={bad}")).unwrap_err();
            assert!(
                error.ends_with("is not IMAGE_SHA256:INITRD_SHA256"),
                "{error}"
            );
        }
        let json = serde_json::to_string(&pair).unwrap();
        assert_eq!(serde_json::from_str::<Pair>(&json).unwrap(), pair);
    }
}
