//! Parses the command line of the daemons.

use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Run,
    Check { root: PathBuf },
    Print { root: PathBuf },
    Help,
    Version,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("unknown argument {0:?}; see --help")]
    Unknown(OsString),
    #[error("--root needs a directory")]
    RootWithoutDirectory,
    #[error("--root requires {}", dry_run_options(*.0))]
    RootWithoutDryRun(bool),
    #[error("--check and --print exclude each other")]
    CheckAndPrint,
}

/// Returns the options of which `--root` requires one.
const fn dry_run_options(prints: bool) -> &'static str {
    if prints {
        "--check or --print"
    } else {
        "--check"
    }
}

/// Parses the arguments. `prints` is true for a daemon with `--print`.
pub(crate) fn parse(
    arguments: impl Iterator<Item = OsString>,
    prints: bool,
) -> Result<Command, ArgumentError> {
    let mut check = false;
    let mut print = false;
    let mut root = None;
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--check") => check = true,
            Some("--print") if prints => print = true,
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
    let below = |root: Option<OsString>| root.unwrap_or_else(|| "/".into()).into();
    match (check, print, root) {
        (true, false, root) => Ok(Command::Check { root: below(root) }),
        (false, true, root) => Ok(Command::Print { root: below(root) }),
        (true, true, _) => Err(ArgumentError::CheckAndPrint),
        (false, false, None) => Ok(Command::Run),
        (false, false, Some(_)) => Err(ArgumentError::RootWithoutDryRun(prints)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Command, String> {
        parse(words.iter().map(OsString::from), false).map_err(|e| e.to_string())
    }

    fn printing(words: &[&str]) -> Result<Command, String> {
        parse(words.iter().map(OsString::from), true).map_err(|e| e.to_string())
    }

    #[test]
    fn each_command_is_parsed() {
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
    fn print_is_refused_unless_the_daemon_prints() {
        assert_eq!(
            printing(&["--print", "--root", "/mnt"]),
            Ok(Command::Print {
                root: "/mnt".into()
            })
        );
        assert_eq!(
            parsed(&["--print"]),
            Err("unknown argument \"--print\"; see --help".into())
        );
        assert_eq!(
            printing(&["--print", "--check"]),
            Err("--check and --print exclude each other".into())
        );
        assert_eq!(
            printing(&["--root", "/mnt"]),
            Err("--root requires --check or --print".into())
        );
    }

    #[test]
    fn invalid_argument_is_named() {
        assert_eq!(
            parsed(&["--chekc"]),
            Err("unknown argument \"--chekc\"; see --help".into())
        );
        assert_eq!(parsed(&["--root"]), Err("--root needs a directory".into()));
        assert_eq!(
            parsed(&["--root", "/mnt"]),
            Err("--root requires --check".into())
        );
    }
}
