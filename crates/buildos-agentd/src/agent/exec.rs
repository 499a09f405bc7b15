//! Validates what a unit executes: program, arguments, environment variables.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;

/// Absolute path of a program, without characters that are special in unit files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Program(String);

/// Argument: any text that execve(2) can pass.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Argument(String);

/// Environment variable, `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Variable(String);

/// Reason why a text cannot be part of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// The text is not a valid [`Program`].
    #[error("{0:?} is not a program: an absolute path of letters, digits and ._+@- is expected")]
    Program(String),
    /// The text is not a valid [`Argument`].
    #[error("an argument cannot contain a NUL character: {0:?}")]
    Argument(String),
    /// The text is not a valid [`Variable`].
    #[error(
        "{0:?} is not an environment variable: NAME=VALUE without control characters is expected"
    )]
    Variable(String),
}

impl Program {
    /// Returns `/usr/bin/bbot-agent`, the path in the package of bbot-agent.
    #[must_use]
    pub fn bbot_agent() -> Self {
        Self("/usr/bin/bbot-agent".to_owned())
    }

    /// Returns the programs that bbot-agent calls: the dependencies of buildos-bbot-runtime.
    #[must_use]
    pub fn bbot_tools() -> Vec<Self> {
        [
            "/usr/bin/btrfs",
            "/usr/bin/curl",
            "/usr/bin/ip",
            "/usr/bin/lz4",
            "/usr/bin/openssl",
            "/usr/bin/qemu-system-x86_64",
            "/usr/bin/sudo",
            "/usr/sbin/in.tftpd",
            "/usr/sbin/iptables",
        ]
        .map(|path| Self(path.to_owned()))
        .into()
    }

    /// Returns `/usr/bin/bslave`, the path in the package of bslave.
    #[must_use]
    pub fn bslave() -> Self {
        Self("/usr/bin/bslave".to_owned())
    }

    /// Returns the path.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl FromStr for Program {
    type Err = ExecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let element = |element: &str| {
            !matches!(element, "" | "." | "..")
                && element
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._+@-".contains(&b))
        };
        match text.strip_prefix('/') {
            Some(path) if path.split('/').all(element) => Ok(Self(text.to_owned())),
            Some(_) | None => Err(ExecError::Program(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Program {
    type Error = ExecError;

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
    /// Returns the argument as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Formats a value whose text cannot contain NUL: a number or a validated name.
    pub(crate) fn of(value: impl fmt::Display) -> Self {
        Self(value.to_string())
    }
}

impl TryFrom<String> for Argument {
    type Error = ExecError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.contains('\0') {
            Err(ExecError::Argument(text))
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
    /// Returns `NAME=VALUE`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Variable {
    type Error = ExecError;

    /// Refuses what systemd would drop from `Environment=` with a warning in the journal
    /// only (`env_assignment_is_valid` in src/basic/env-util.c).
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
            Some(_) | None => Err(ExecError::Variable(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_program_argument_and_variable_are_refused() {
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

    #[test]
    fn default_programs_are_valid() {
        let mut programs = Program::bbot_tools();
        programs.extend([Program::bbot_agent(), Program::bslave()]);
        for program in programs {
            assert_eq!(program.0.parse(), Ok(program));
        }
    }
}
