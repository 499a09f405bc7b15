//! Validates and locates the secrets of an agent.
//!
//! systemd passes them as credentials (systemd.exec(5), `LoadCredential=`). They appear
//! neither on a command line nor in the environment, and the agent's user can read them
//! only through its unit.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

/// Directories that systemd searches for a credential without a path, in its order. The
/// first holds the credentials that the host received at boot.
const STORES: [&str; 4] = [
    "/run/credentials/@system",
    "/etc/credstore",
    "/run/credstore",
    "/usr/lib/credstore",
];

/// Credential: a name, and a path unless systemd searches its stores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Credential {
    name: String,
    path: Option<String>,
}

/// Error: the text is not a valid [`Credential`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a credential: NAME or NAME:/PATH is expected, of letters, digits and ._+@- (and / in PATH)"
)]
pub struct CredentialError(String);

impl Credential {
    /// Returns the name of its file in `$CREDENTIALS_DIRECTORY`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the files that may hold it. One existing file is enough.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        match &self.path {
            Some(path) => vec![path.into()],
            None => STORES
                .iter()
                .map(|store| Path::new(store).join(&self.name))
                .collect(),
        }
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.path {
            Some(path) => write!(f, ":{path}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Credential {
    type Err = CredentialError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // These characters have no special meaning in unit files.
        let plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._+@-".contains(&b))
        };
        let (name, path) = match text.split_once(':') {
            Some((name, path)) => (name, Some(path)),
            None => (text, None),
        };
        let name_fits = plain(name) && !matches!(name, "" | "." | "..") && name.len() <= 255;
        let path_fits = path.is_none_or(|path| {
            path.strip_prefix('/')
                .is_some_and(|rest| rest.split('/').all(|e| plain(e) && !matches!(e, "" | "..")))
        });
        if name_fits && path_fits {
            Ok(Self {
                name: name.to_owned(),
                path: path.map(str::to_owned),
            })
        } else {
            Err(CredentialError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Credential {
    type Error = CredentialError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_has_path_or_is_searched_in_stores() {
        let stored: Credential = "auth-key".parse().unwrap();
        assert_eq!(stored.name(), "auth-key");
        assert!(stored.paths().contains(&"/etc/credstore/auth-key".into()));
        let with_path: Credential = "auth-key:/etc/bbot/key.pem".parse().unwrap();
        assert_eq!(with_path.paths(), [PathBuf::from("/etc/bbot/key.pem")]);
        assert_eq!(with_path.to_string(), "auth-key:/etc/bbot/key.pem");
    }

    #[test]
    fn invalid_credential_is_refused() {
        for bad in [
            "",
            ".",
            "a/b",
            "a:b",
            "a:",
            "a:/",
            "a:/x/../y",
            "a b",
            "a%b",
            "a:/x y",
        ] {
            assert_eq!(
                bad.parse::<Credential>(),
                Err(CredentialError(bad.to_owned())),
                "{bad}"
            );
        }
    }
}
