//! Fetches files with curl(1), within limits.

use std::path::Path;
use std::process::Command;

use buildos_service::text;

use super::capture::{self, ProgramError};
use crate::settings::Settings;

/// Exit status of curl if the server cannot send the rest of a file.
const CANNOT_RESUME: [i32; 2] = [33, 36];
/// Slower than this, in bytes per second, for so many seconds, ends a transfer.
const SLOWEST: &str = "512";
const SLOW_SECONDS: &str = "30";
/// Longest time of one transfer in seconds.
const LONGEST: &str = "7200";

/// A file was not fetched.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server cannot send the rest of a file: it has to be fetched from the beginning.
    CannotResume,
    /// Any other reason.
    Other(String),
}

/// Fetches `url` into the file `to`, of at most `most` bytes. What the file already has is
/// the beginning of the content.
///
/// # Errors
///
/// The transfer is not complete; the file has what arrived.
pub fn fetch(
    program: &Path,
    url: &str,
    to: &Path,
    most: u64,
    settings: &Settings,
) -> Result<(), Failure> {
    let mut command = Command::new(program);
    // No file of a user, no other protocol, no second host by a redirection.
    command.args([
        "--disable",
        "--silent",
        "--show-error",
        "--fail",
        "--globoff",
    ]);
    command.args(["--proto", "=http,https", "--connect-timeout", "20"]);
    command.args(["--max-time", LONGEST]);
    command.args(["--speed-limit", SLOWEST, "--speed-time", SLOW_SECONDS]);
    command.arg("--max-filesize").arg(most.to_string());
    if settings.rate_kib > 0 {
        command
            .arg("--limit-rate")
            .arg(format!("{}k", settings.rate_kib));
    }
    if let Some(proxy) = &settings.proxy {
        command.arg("--proxy").arg(proxy.as_str());
    }
    command.args(["--continue-at", "-", "--output"]).arg(to);
    command.arg("--").arg(url);
    match capture::output(&mut command, "curl", 4096) {
        Ok(_) => Ok(()),
        Err(ProgramError::Failed { status, .. })
            if status
                .code()
                .is_some_and(|code| CANNOT_RESUME.contains(&code)) =>
        {
            Err(Failure::CannotResume)
        }
        Err(ProgramError::Failed { message, .. }) if !message.is_empty() => {
            Err(Failure::Other(format!("{url}: {message}")))
        }
        Err(error) => Err(Failure::Other(format!("{url}: {}", text::chain(&error)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn with_script(script: &str) -> Result<(), Failure> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("curl");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let settings = Settings {
            rate_kib: 7,
            ..Settings::default()
        };
        fetch(&program, "http://x/y", Path::new("to"), 99, &settings)
    }

    #[test]
    fn arguments_have_all_limits() {
        let needed = "--max-filesize 99 --limit-rate 7k --continue-at - --output to -- http://x/y";
        assert_eq!(
            with_script(&format!("case \"$*\" in *'{needed}') ;; *) exit 1;; esac")),
            Ok(())
        );
    }

    #[test]
    fn status_says_whether_to_begin_again() {
        assert_eq!(with_script("exit 33"), Err(Failure::CannotResume));
        assert_eq!(
            with_script("echo 'curl: (22) error: 404' >&2; exit 22"),
            Err(Failure::Other(
                "http://x/y: curl: (22) error: 404".to_owned()
            ))
        );
    }
}
