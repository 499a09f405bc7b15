//! The command line of every daemon.

use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Run,
    Check { root: PathBuf },
    Help,
    Version,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("unknown argument {0:?}; see --help")]
    Unknown(OsString),
    #[error("--root needs a directory")]
    RootWithoutDirectory,
    #[error("--root goes with --check")]
    RootWithoutCheck,
}

pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, ArgumentError> {
    let mut check = false;
    let mut root = None;
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--check") => check = true,
            Some("--root") => {
                root = Some(
                    arguments
                        .next()
                        .ok_or(ArgumentError::RootWithoutDirectory)?,
                );
            }
            Some("--help" | "-h") => return Ok(Command::Help),
            Some("--version" | "-V") => return Ok(Command::Version),
            _ => return Err(ArgumentError::Unknown(argument)),
        }
    }
    match (check, root) {
        (true, root) => Ok(Command::Check {
            root: root.unwrap_or_else(|| "/".into()).into(),
        }),
        (false, None) => Ok(Command::Run),
        (false, Some(_)) => Err(ArgumentError::RootWithoutCheck),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Command, String> {
        parse(words.iter().map(OsString::from)).map_err(|e| e.to_string())
    }

    #[test]
    fn commands() {
        assert_eq!(parsed(&[]), Ok(Command::Run));
        assert_eq!(
            parsed(&["--check"]),
            Ok(Command::Check { root: "/".into() })
        );
        assert_eq!(
            parsed(&["--root", "/mnt", "--check"]),
            Ok(Command::Check {
                root: "/mnt".into()
            })
        );
        assert_eq!(parsed(&["--help"]), Ok(Command::Help));
        assert_eq!(parsed(&["--version"]), Ok(Command::Version));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            parsed(&["--chekc"]),
            Err("unknown argument \"--chekc\"; see --help".into())
        );
        assert_eq!(parsed(&["--root"]), Err("--root needs a directory".into()));
        assert_eq!(
            parsed(&["--root", "/mnt"]),
            Err("--root goes with --check".into())
        );
    }
}
