//! Reads a signed channel file: signatures, grammar, policy, rollout.
//!
//! The daemon and the helper that places machines both do it, each with its own memory of
//! the serial. The helper runs as root and believes nothing that the daemon says.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use buildos_channel::model::Limits;
use buildos_channel::policy::{Accepted, Clock, Terms, Verified, judge};
use buildos_channel::{Channel, Digest, HostId, Timestamp, grammar, rollout};
use buildos_service::clock;
use buildos_service::file::read_bounded;

use crate::durable;
use crate::messages;
use crate::paths::Paths;
use crate::programs::curl::{self, Answer, Failure, Validators};
use crate::programs::sqv;
use crate::seen::{self, Seen};
use crate::settings::{Settings, Source};
use crate::state::{self, Volumes};

/// Bytes of a signed file: the text, its escaped lines and some signatures.
pub const SIGNED: usize = 2 * Limits::TEXT + 64 * 1024;
/// Bytes of the memory.
const MEMORY: usize = 200;

/// A channel file that is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    #[allow(missing_docs)]
    pub channel: Channel,
    /// What to remember.
    pub accepted: Accepted,
    /// The signed file.
    pub file: Vec<u8>,
    /// False while the rollout leaves this host out.
    pub includes_host: bool,
}

/// Fetches the channel, judges it, and remembers what is accepted.
///
/// # Errors
///
/// The server does not send it, or it is refused.
pub fn fetch(paths: &Paths, settings: &Settings, source: &Source) -> Result<Offer, String> {
    let path = paths.channel();
    let fetched = path.with_extension("new");
    // A file of the run before is not the beginning of this one.
    let _ = fs::remove_file(&fetched);
    let url = url(settings, source);
    let curl = Path::new("curl");
    match curl::fetch_if_changed(curl, &url, None, &fetched, SIGNED as u64, settings) {
        Ok(Answer::Fetched(validators)) => note(paths, &url, validators, &fetched),
        Ok(Answer::Unchanged) => return Err(format!("{url}: 304 without a condition")),
        Err(Failure::Other(reason)) => return Err(reason),
        Err(Failure::CannotResume) => return Err(format!("{url}: the transfer broke off")),
    }
    let memory = paths.memory();
    let placed: Option<Volumes> = state::read(&paths.placed());
    let last = later(
        remembered(&memory),
        placed.and_then(|placed| placed.accepted()),
    );
    let offer = read(&fetched, paths, settings, last)
        .map_err(|reason| format!("{url} is refused: {reason}"))?;
    durable::replace(&memory, self::memory(offer.accepted).as_bytes())?;
    fs::rename(&fetched, &path)
        .map_err(|error| format!("cannot keep {}: {error}", path.display()))?;
    if last != Some(offer.accepted) {
        messages::accepted(&offer.channel);
    }
    Ok(offer)
}

/// Returns the URL of the channel file.
#[must_use]
pub fn url(settings: &Settings, source: &Source) -> String {
    source.file(&format!("channel/{}", settings.channel))
}

/// Notes which file was fetched, before it is judged: looks do not repeat a refusal.
fn note(paths: &Paths, url: &str, validators: Validators, fetched: &Path) {
    if let Ok(file) = read_bounded(fetched, SIGNED) {
        let seen = Seen {
            url: url.to_owned(),
            validators,
            digest: Digest::of(&file),
        };
        seen::note(paths, &seen);
    }
}

/// Reads and judges the signed file at `path`. `last` is what was accepted before.
///
/// # Errors
///
/// The reason for which the file is refused.
pub fn read(
    path: &Path,
    paths: &Paths,
    settings: &Settings,
    last: Option<Accepted>,
) -> Result<Offer, String> {
    let place = path.display();
    let file =
        read_bounded(path, SIGNED).map_err(|error| format!("cannot read {place}: {error}"))?;
    let signed = verify(&file, &keyrings(paths), settings.signatures)?;
    let parsed = grammar::parse(&signed.text).map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        format!("{}; promote a corrected draft", problems.join("; "))
    })?;
    let verified = Verified {
        channel: &parsed.channel,
        digest: Digest::of(signed.text.as_bytes()),
        signatures: signed.signatures,
    };
    let terms = Terms {
        name: settings.channel.clone(),
        signatures: settings.signatures,
    };
    let clock = match clock::is_synchronised(paths.root()) {
        true => Clock::Set(now()),
        false => Clock::NotSet,
    };
    judge(verified, &terms, last, clock).map_err(|refusal| refusal.to_string())?;
    let accepted = Accepted {
        serial: parsed.channel.serial,
        digest: verified.digest,
    };
    let host = host_id(paths)?;
    Ok(Offer {
        includes_host: rollout::includes(&parsed.channel, &host),
        channel: parsed.channel,
        accepted,
        file,
    })
}

/// Lets sqv(1) read a private copy: the file can belong to another user, who changes it.
fn verify(file: &[u8], keyrings: &[PathBuf], required: u8) -> Result<sqv::Signed, String> {
    if keyrings.is_empty() {
        return Err(
            "no keys are trusted: put OpenPGP certificates (.gpg, .asc, .pgp) into /etc/buildos/keys"
                .to_owned(),
        );
    }
    let directory = tempfile::tempdir()
        .map_err(|error| format!("cannot make a temporary directory: {error}"))?;
    let copy = directory.path().join("signed");
    fs::write(&copy, file).map_err(|error| format!("cannot copy the channel: {error}"))?;
    sqv::verify(Path::new("sqv"), &copy, keyrings, required).map_err(|reason| {
        format!(
            "{reason}; copy the channel to the server again, or the key of its signer to /etc/buildos/keys"
        )
    })
}

/// Returns the files with trusted keys, in order of their names.
#[must_use]
pub fn keyrings(paths: &Paths) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in paths.keys() {
        let entries = fs::read_dir(directory).into_iter().flatten();
        let files = entries.filter_map(Result::ok).map(|entry| entry.path());
        let is_key = |path: &PathBuf| {
            let end = path.extension().and_then(|end| end.to_str());
            end.is_some_and(|end| ["gpg", "asc", "pgp"].contains(&end)) && path.is_file()
        };
        let mut keys: Vec<_> = files.filter(is_key).collect();
        keys.sort();
        found.extend(keys);
    }
    found
}

/// Returns the identity of this host: its machine id (machine-id(5)).
///
/// # Errors
///
/// It has none.
pub fn host_id(paths: &Paths) -> Result<HostId, String> {
    let path = paths.root().join("etc/machine-id");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    text.trim()
        .parse()
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Reads what was accepted before. A file that cannot be read counts as none.
#[must_use]
pub fn remembered(path: &Path) -> Option<Accepted> {
    let content = read_bounded(path, MEMORY).ok()?;
    let text = std::str::from_utf8(&content).ok()?;
    let (serial, digest) = text.trim_end().split_once(' ')?;
    Some(Accepted {
        serial: serial.parse().ok()?,
        digest: digest.parse().ok()?,
    })
}

/// Returns the text that [`remembered`] reads.
#[must_use]
pub fn memory(accepted: Accepted) -> String {
    format!("{} {}\n", accepted.serial, accepted.digest)
}

/// Returns the later one of two memories.
#[must_use]
pub fn later(a: Option<Accepted>, b: Option<Accepted>) -> Option<Accepted> {
    [a, b]
        .into_iter()
        .flatten()
        .max_by_key(|accepted| accepted.serial)
}

/// Returns the time of this host.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp::from_seconds(since.map_or(0, |since| since.as_secs()))
}

/// Returns the time of this host in microseconds since 1970.
#[must_use]
pub fn now_usec() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_back_and_the_later_one_counts() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("accepted");
        assert_eq!(remembered(&path), None);
        let accepted = |serial| Accepted {
            serial,
            digest: Digest::of(b"x"),
        };
        fs::write(&path, memory(accepted(42))).unwrap();
        assert_eq!(remembered(&path), Some(accepted(42)));
        assert_eq!(
            later(remembered(&path), Some(accepted(43))),
            Some(accepted(43))
        );
        assert_eq!(later(remembered(&path), None), Some(accepted(42)));
        for bad in ["", "42", "x y", "42 00"] {
            fs::write(&path, bad).unwrap();
            assert_eq!(remembered(&path), None, "{bad}");
        }
    }

    #[test]
    fn keys_are_files_of_two_directories() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        assert!(keyrings(&paths).is_empty());
        for (directory, file) in [
            ("usr/share/buildos/keys", "b.gpg"),
            ("etc/buildos/keys", "a.asc"),
            ("etc/buildos/keys", "README"),
        ] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
            fs::write(root.path().join(directory).join(file), "").unwrap();
        }
        let found = keyrings(&paths);
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["b.gpg", "a.asc"]);
    }

    #[test]
    fn host_without_keys_refuses_every_channel() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("channel");
        fs::write(&path, "x").unwrap();
        let error = read(&path, &Paths::new(root.path()), &Settings::default(), None);
        assert!(error.unwrap_err().starts_with("no keys are trusted"));
    }
}
