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

/// Exit statuses of curl(1): an error of HTTP, a transfer that broke off, a file that cannot be
/// written, a time that is over, a file that is too large.
const HTTP_ERROR: i32 = 22;
const PARTIAL: i32 = 18;
const WRITE: i32 = 23;
const TIMEOUT: i32 = 28;
const TOO_LARGE: i32 = 63;
/// Exit statuses of curl(1): no connection, an empty answer, a connection that the server closed.
const REFUSED: [i32; 4] = [7, 52, 55, 56];
/// Time to connect to a peer in seconds.
const PEER_CONNECT: &str = "1";
/// A peer that is slower than this, in bytes per second, is left for another or the origin.
const PEER_RATE: u64 = 256 * 1024;
/// Time in seconds after which a peer is found to be slow.
const PEER_SECONDS: &str = "4";

/// Remedy for a file that the server does not have as the channel describes it.
pub const COPY_AGAIN: &str = "copy the file to the server again";

/// A file was not fetched.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server cannot send the rest of a file: it has to be fetched from the beginning.
    CannotResume,
    /// Any other reason.
    Other(String),
}

/// A peer did not send a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum PeerFailure {
    /// It does not have it.
    Absent,
    /// It does not answer, or not in time.
    Unreachable(String),
    /// It refuses connections: it sends to as many hosts as it can, or it no longer shares.
    Refused(String),
    /// It is slower than [`PEER_RATE`].
    Slow(String),
    /// It sent something else than the piece.
    Bad(String),
    /// This host cannot fetch anything.
    Local(String),
}

/// Returns curl without files of a user, other protocols, and a second host by a redirection.
fn curl(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args([
        "--disable",
        "--silent",
        "--show-error",
        "--fail",
        "--globoff",
    ]);
    command.args(["--proto", "=http,https"]);
    command
}

/// Fetches `url` of a peer into the file `to`, of at most `most` bytes, through `link` only if
/// there is one.
///
/// # Errors
///
/// The transfer is not complete; the file has what arrived.
pub fn fetch_from_peer(
    program: &Path,
    url: &str,
    link: Option<&str>,
    to: &Path,
    most: u64,
    settings: &Settings,
) -> Result<(), PeerFailure> {
    let mut command = curl(program);
    command.args(["--noproxy", "*", "--connect-timeout", PEER_CONNECT]);
    if let Some(link) = link {
        // The kernel permits it without capabilities (SO_BINDTODEVICE).
        command.args(["--interface", link]);
    }
    let mut rate = PEER_RATE;
    if settings.rate_kib > 0 {
        let limit = u64::from(settings.rate_kib);
        command.arg("--limit-rate").arg(format!("{limit}k"));
        rate = rate.min(limit.saturating_mul(512));
    }
    // The slowest peer that is not excluded, with time for its start.
    let longest = (most / rate.max(1)).saturating_add(10);
    command.arg("--max-time").arg(longest.to_string());
    command.arg("--speed-limit").arg(rate.to_string());
    command.args(["--speed-time", PEER_SECONDS]);
    command.arg("--max-filesize").arg(most.to_string());
    command.arg("--output").arg(to).arg("--").arg(url);
    let error = match capture::output(&mut command, "curl", 4096) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let reason = text::chain(&error);
    let ProgramError::Failed { status, .. } = error else {
        return Err(PeerFailure::Local(reason));
    };
    let has_begun = to.metadata().is_ok_and(|found| found.len() > 0);
    Err(match status.code() {
        Some(HTTP_ERROR) => PeerFailure::Absent,
        Some(TIMEOUT) if has_begun => PeerFailure::Slow(reason),
        Some(code) if REFUSED.contains(&code) && !has_begun => PeerFailure::Refused(reason),
        Some(WRITE) => PeerFailure::Local(reason),
        Some(PARTIAL | TOO_LARGE) => PeerFailure::Bad(reason),
        _ => PeerFailure::Unreachable(reason),
    })
}

/// Answer of a server to a request for a whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It still has the file of the condition.
    Unchanged,
    /// It sent the file.
    Fetched(Validators),
}

/// Headers of an answer that make a later request conditional; empty without one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Validators {
    pub etag: String,
    pub last_modified: String,
}

/// Writes the status and the validators of an answer, one on a line.
const HEADERS: &str = "%{http_code}\\n%header{etag}\\n%header{last-modified}\\n";
/// Bytes of these lines: curl(1) takes headers of at most 100 KiB.
const HEADERS_SIZE: usize = 256 * 1024;
/// Longest validator in bytes. Without it a request is not conditional.
const VALIDATOR: usize = 200;
/// Time to connect, and of the whole request, in seconds.
const SMALL_CONNECT: &str = "10";
const SMALL_LONGEST: &str = "30";

/// Fetches the small file `url` of at most `most` bytes into the new file `to`, unless the server
/// still has the one of `known`.
///
/// # Errors
///
/// The transfer is not complete; the file can have what arrived.
pub fn fetch_if_changed(
    program: &Path,
    url: &str,
    known: Option<&Validators>,
    to: &Path,
    most: u64,
    settings: &Settings,
) -> Result<Answer, Failure> {
    let mut command = curl(program);
    command.args(["--connect-timeout", SMALL_CONNECT]);
    command.args(["--max-time", SMALL_LONGEST]);
    command.arg("--max-filesize").arg(most.to_string());
    if let Some(proxy) = &settings.proxy {
        command.arg("--proxy").arg(proxy.as_str());
    }
    let known = known.cloned().unwrap_or_default();
    for (header, value) in [
        ("If-None-Match", known.etag),
        ("If-Modified-Since", known.last_modified),
    ] {
        if !value.is_empty() {
            command.arg("--header").arg(format!("{header}: {value}"));
        }
    }
    command.args(["--write-out", HEADERS, "--output"]).arg(to);
    command.arg("--").arg(url);
    let out = capture::output(&mut command, "curl", HEADERS_SIZE)
        .map_err(|error| Failure::Other(reason(url, &error)))?;
    answer(&String::from_utf8_lossy(&out))
        .ok_or_else(|| Failure::Other(format!("{url}: neither 200 nor 304")))
}

/// Reads what curl wrote about an answer.
fn answer(text: &str) -> Option<Answer> {
    let mut lines = text.lines();
    let status = lines.next()?;
    let mut validator = || {
        let value = lines.next().unwrap_or_default().trim();
        let is_plain = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        match is_plain && value.len() <= VALIDATOR {
            true => value.to_owned(),
            false => String::new(),
        }
    };
    match status {
        "304" => Some(Answer::Unchanged),
        "200" => Some(Answer::Fetched(Validators {
            etag: validator(),
            last_modified: validator(),
        })),
        _ => None,
    }
}

/// Returns the reason of a failure of curl in one line.
fn reason(url: &str, error: &ProgramError) -> String {
    let ProgramError::Failed {
        status, message, ..
    } = error
    else {
        return format!("{url}: {}", text::chain(error));
    };
    let remedy = match status.code() {
        Some(HTTP_ERROR | TOO_LARGE) => format!("; {COPY_AGAIN}"),
        _ => String::new(),
    };
    match message.is_empty() {
        true => format!("{url}: {}{remedy}", text::chain(error)),
        false => format!("{url}: {message}{remedy}"),
    }
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
    let mut command = curl(program);
    command.args(["--connect-timeout", "20"]);
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
        Err(error) => Err(Failure::Other(reason(url, &error))),
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
    fn answers_are_bounded_and_plain() {
        let fetched = |etag: &str, last_modified: &str| {
            Some(Answer::Fetched(Validators {
                etag: etag.to_owned(),
                last_modified: last_modified.to_owned(),
            }))
        };
        let date = "Mon, 30 Nov 2026 23:59:59 GMT";
        assert_eq!(answer("304\n\n\n"), Some(Answer::Unchanged));
        assert_eq!(answer("200\n\n\n"), fetched("", ""));
        assert_eq!(
            answer(&format!("200\nW/\"a\"\n{date}\n")),
            fetched("W/\"a\"", date)
        );
        assert_eq!(answer("200\na\tb\n\u{e4}\n"), fetched("", ""));
        let long = "x".repeat(VALIDATOR + 1);
        assert_eq!(answer(&format!("200\n{long}\n{date}\n")), fetched("", date));
        for other in ["", "206\n", "301\n\n\n", "000\n", "\u{0}"] {
            assert_eq!(answer(other), None, "{other:?}");
        }
    }

    #[test]
    fn failures_of_peers_follow_from_the_status() {
        let directory = tempfile::tempdir().unwrap();
        let (program, to) = (directory.path().join("curl"), directory.path().join("to"));
        let fetch = |script: &str| {
            let _ = fs::remove_file(&to);
            fs::write(
                &program,
                format!("#!/bin/sh\nto={}\n{script}\n", to.display()),
            )
            .unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            fetch_from_peer(
                &program,
                "http://x/y",
                Some("br0"),
                &to,
                99,
                &Settings::default(),
            )
            .unwrap_err()
        };
        let interface = "case \"$*\" in *'--interface br0 '*) exit 22;; esac; exit 1";
        assert_eq!(fetch(interface), PeerFailure::Absent);
        for status in REFUSED {
            let found = fetch(&format!("exit {status}"));
            assert!(matches!(found, PeerFailure::Refused(_)), "{found:?}");
        }
        let found = fetch("exit 28");
        assert!(matches!(found, PeerFailure::Unreachable(_)), "{found:?}");
        let found = fetch("echo x >$to; exit 56");
        assert!(matches!(found, PeerFailure::Unreachable(_)), "{found:?}");
        let found = fetch("echo x >$to; exit 28");
        assert!(matches!(found, PeerFailure::Slow(_)), "{found:?}");
    }

    #[test]
    fn status_says_whether_to_begin_again() {
        assert_eq!(with_script("exit 33"), Err(Failure::CannotResume));
        assert_eq!(
            with_script("echo 'curl: (22) error: 404' >&2; exit 22"),
            Err(Failure::Other(
                "http://x/y: curl: (22) error: 404; copy the file to the server again".to_owned()
            ))
        );
    }
}
