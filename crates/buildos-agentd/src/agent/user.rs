//! Validates the user that an agent runs as.

use std::fmt;

use serde::Deserialize;

/// Longest user name that systemd accepts: the size of the field in utmp.
const LIMIT: usize = 31;

/// User name that is valid in `User=` (systemd.exec(5)).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct User(String);

/// Error: the text is not a valid [`User`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a user name: up to {LIMIT} letters, digits, '-' and '_' are expected, the first a letter or '_'"
)]
pub struct UserError(String);

impl TryFrom<String> for User {
    type Error = UserError;

    /// Applies the strict rule of systemd (`valid_user_group_name` in
    /// src/basic/user-util.c).
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fits = text.len() <= LIMIT
            && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if fits {
            Ok(Self(text))
        } else {
            Err(UserError(text))
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_name_is_checked_as_by_systemd() {
        for good in ["root", "build", "_x-1"] {
            assert!(User::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "1a", "-a", "a b", "a%", "a\n", &"x".repeat(LIMIT + 1)] {
            assert!(User::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
