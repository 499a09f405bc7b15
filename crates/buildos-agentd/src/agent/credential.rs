//! Validates and locates the secrets of an agent.
//!
//! systemd passes them as credentials (systemd.exec(5), `LoadCredential=`). They appear
//! neither on a command line nor in the environment, and the agent's user can read them
//! only through its unit. systemd decrypts those of systemd-creds(1) when it starts the unit.

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

/// Directories that systemd searches for an encrypted credential without a path.
const ENCRYPTED_STORES: [&str; 4] = [
    "/run/credentials/@encrypted",
    "/etc/credstore.encrypted",
    "/run/credstore.encrypted",
    "/usr/lib/credstore.encrypted",
];

/// Begins an encrypted credential. A path cannot follow it, so a credential with the name
/// `encrypted` is distinct.
const ENCRYPTED: &str = "encrypted:";

/// Credential: a name, and a path unless systemd searches its stores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Credential {
    name: String,
    path: Option<String>,
    encrypted: bool,
}

/// Error: the text is not a valid [`Credential`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a credential: NAME or NAME:/PATH is expected, of letters, digits and ._+@- (and / in PATH), or encrypted:NAME, encrypted:NAME:/PATH"
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
            None => self
                .stores()
                .map(|store| Path::new(store).join(&self.name))
                .collect(),
        }
    }

    fn stores(&self) -> impl Iterator<Item = &'static str> {
        let stores = match self.encrypted {
            true => ENCRYPTED_STORES,
            false => STORES,
        };
        stores.into_iter()
    }

    /// Returns the line of the unit that passes the credential.
    #[must_use]
    pub fn setting(&self) -> String {
        let path = self.path.as_ref().map(|path| format!(":{path}"));
        let path = path.unwrap_or_default();
        match self.encrypted {
            true => format!("LoadCredentialEncrypted={}{path}", self.name),
            false => format!("LoadCredential={}{path}", self.name),
        }
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.encrypted {
            f.write_str(ENCRYPTED)?;
        }
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
        let encrypted = text
            .strip_prefix(ENCRYPTED)
            .filter(|rest| !rest.starts_with('/'));
        let plain_text = encrypted.unwrap_or(text);
        let (name, path) = match plain_text.split_once(':') {
            Some((name, path)) => (name, Some(path)),
            None => (plain_text, None),
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
                encrypted: encrypted.is_some(),
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
    fn encrypted_credential_has_stores_and_setting_of_its_own() {
        for (text, setting, path) in [
            (
                "encrypted:key",
                "LoadCredentialEncrypted=key",
                "/etc/credstore.encrypted/key",
            ),
            (
                "encrypted:key:/etc/bbot/key.cred",
                "LoadCredentialEncrypted=key:/etc/bbot/key.cred",
                "/etc/bbot/key.cred",
            ),
            // Its name is `encrypted`.
            ("encrypted:/x", "LoadCredential=encrypted:/x", "/x"),
            ("key", "LoadCredential=key", "/etc/credstore/key"),
        ] {
            let credential: Credential = text.parse().unwrap();
            assert_eq!(credential.to_string(), text);
            assert_eq!(credential.setting(), setting);
            assert!(credential.paths().contains(&path.into()), "{text}");
        }
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
            "encrypted:",
            "encrypted:a:b",
        ] {
            assert_eq!(
                bad.parse::<Credential>(),
                Err(CredentialError(bad.to_owned())),
                "{bad}"
            );
        }
    }
}
