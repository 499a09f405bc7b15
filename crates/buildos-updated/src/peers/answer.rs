//! buildos-pieces: answers questions of the LAN for pieces.
//!
//! systemd starts it with the socket as its standard input when a question comes, and it ends
//! when no more come. The spool is its only state: `objects/SHA256` is there, and
//! `parts/SHA256` is being fetched while it grows.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use buildos_channel::Digest;
use buildos_channel::query::{Cookie, LONGEST, Query, State};
use nix::sys::socket::{setsockopt, sockopt::DontRoute};

use super::ask::peer;
use crate::offer;
use crate::paths::Paths;

/// Ends after this time without a question.
const IDLE: Duration = Duration::from_secs(10);
/// A part that has not grown for this time is not being fetched.
const STALLED: Duration = Duration::from_secs(30);
/// Answers to one address in a second.
const PER_SOURCE: u32 = 20;
/// Answers in a second.
const PER_SECOND: u32 = 200;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match run(&Paths::new(Path::new("/"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("buildos-pieces: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(paths: &Paths) -> Result<(), String> {
    let cookie = Cookie::of(&offer::host_id(paths)?);
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let socket = UdpSocket::from(socket.map_err(|error| format!("no socket: {error}"))?);
    // No host behind a router gets an answer, and no machine behind another host.
    setsockopt(&socket, DontRoute, &true)
        .map_err(io::Error::from)
        .and_then(|()| socket.set_ttl(1))
        .and_then(|()| socket.set_read_timeout(Some(IDLE)))
        .map_err(|error| format!("standard input is not a socket of UDP: {error}"))?;
    let mut rate = Rate::default();
    let mut buffer = [0; LONGEST + 1];
    // An error is the end of the idle time.
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let question = buffer.get(..length).and_then(Query::parse);
        let (Some(question), Some(address)) = (question, peer(from)) else {
            continue;
        };
        if !rate.permits(address, Instant::now()) {
            continue;
        }
        let now = SystemTime::now();
        let pieces = paths.pieces();
        let answer = question.answer(cookie, |sha256| state(&pieces, sha256, now));
        if let Some(answer) = answer {
            // A lost answer is as none.
            let _ = socket.send_to(answer.text().as_bytes(), from);
        }
    }
    Ok(())
}

/// Returns what the host has of a piece. `pieces` is the link to the objects of the spool,
/// which exists while pieces are shared.
fn state(pieces: &Path, sha256: &Digest, now: SystemTime) -> Option<State> {
    let name = sha256.to_string();
    if pieces.join(&name).is_file() {
        return Some(State::Have);
    }
    let objects = pieces.read_link().ok()?;
    let part: PathBuf = objects.parent()?.join("parts").join(name);
    let changed = part.metadata().and_then(|part| part.modified()).ok()?;
    let age = now.duration_since(changed).unwrap_or_default();
    (age < STALLED).then_some(State::Part)
}

/// Limits answers per second.
#[derive(Debug, Default)]
struct Rate {
    since: Option<Instant>,
    all: u32,
    of: BTreeMap<IpAddr, u32>,
}

impl Rate {
    fn permits(&mut self, address: IpAddr, now: Instant) -> bool {
        let second = Duration::from_secs(1);
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= second)
        {
            *self = Self {
                since: Some(now),
                ..Self::default()
            };
        }
        if self.all >= PER_SECOND {
            return false;
        }
        let count = self.of.entry(address).or_default();
        if *count >= PER_SOURCE {
            return false;
        }
        *count += 1;
        self.all += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    #[test]
    fn answers_are_limited_per_address_and_in_all() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let flood = (0..100).filter(|_| rate.permits(address(1), start)).count();
        assert_eq!(flood, 20);
        let all = (2..=250)
            .filter(|n| rate.permits(address(*n), start))
            .count();
        assert_eq!(all, 180);
        assert!(rate.permits(address(1), start + Duration::from_secs(1)));
    }

    #[test]
    fn state_of_a_piece_follows_from_the_spool() {
        let directory = tempfile::tempdir().unwrap();
        let (objects, parts) = (
            directory.path().join("objects"),
            directory.path().join("parts"),
        );
        for path in [&objects, &parts] {
            fs::create_dir(path).unwrap();
        }
        let digest = |n: u8| Digest::of(&[n]);
        fs::write(objects.join(digest(1).to_string()), "").unwrap();
        for n in [2, 3] {
            fs::write(parts.join(digest(n).to_string()), "").unwrap();
        }
        let now = SystemTime::now();
        let stalled = File::options()
            .write(true)
            .open(parts.join(digest(3).to_string()));
        stalled.unwrap().set_modified(now - STALLED).unwrap();
        let link = directory.path().join("pieces");
        assert_eq!(state(&link, &digest(1), now), None, "not shared");
        symlink(&objects, &link).unwrap();
        let found = [1, 2, 3, 4].map(|n| state(&link, &digest(n), now));
        assert_eq!(found, [Some(State::Have), Some(State::Part), None, None]);
    }
}
