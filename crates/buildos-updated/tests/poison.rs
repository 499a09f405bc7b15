//! Damages the objects of a spool and the channels of a server, as an attacker between desk and
//! helper can: by default 10,000 attacks on objects, and 10,000 on channels, see
//! [`buildos_fuzz`].
//!
//! A buffer replaces `btrfs receive`. The system lane attacks the real daemon, and verifies
//! altered texts with sqv(1).

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in test functions, not in what these share"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use buildos_channel::model::{self, Channel, Rollout};
use buildos_channel::pieces::{Cutter, PIECE, PieceList};
use buildos_channel::policy::{Accepted, Clock, Refusal, Terms, Verified, judge};
use buildos_channel::{Digest, Timestamp, grammar, write};
use buildos_fuzz::{Generator, mutate};
use buildos_updated::spool::Spool;
use buildos_updated::volume::stream::Stream;

/// A stream as a desk publishes it.
struct Published {
    stream: model::Stream,
    list: PieceList,
    pieces: Vec<(Digest, Vec<u8>)>,
}

fn publish(size: usize, random: &mut Generator) -> Published {
    let mut content = vec![0; size];
    for part in content.chunks_mut(8) {
        let number = random.next().to_le_bytes();
        part.copy_from_slice(&number[..part.len()]);
    }
    let mut pieces = Vec::new();
    let mut store = |digest, piece: &[u8]| -> Result<(), String> {
        pieces.push((digest, piece.to_vec()));
        Ok(())
    };
    let mut cutter = Cutter::default();
    cutter.push(&content, &mut store).unwrap();
    let list = cutter.finish(&mut store).unwrap();
    let stream = model::Stream {
        size: list.size(),
        pieces: list.digest(),
    };
    Published {
        stream,
        list,
        pieces,
    }
}

impl Published {
    /// Returns names and contents of the objects, the list first.
    fn objects(&self) -> Vec<(Digest, Vec<u8>)> {
        let list = (self.stream.pieces, self.list.text().into_bytes());
        [list].into_iter().chain(self.pieces.clone()).collect()
    }

    fn put(&self, spool: &Spool) {
        for (name, content) in self.objects() {
            fs::write(spool.object(&name), content).unwrap();
        }
    }

    /// Returns the bytes of the stream before a piece, which counts from 1.
    fn before(&self, piece: usize) -> Vec<u8> {
        let pieces = self.pieces.iter().take(piece - 1);
        pieces.flat_map(|(_, content)| content.clone()).collect()
    }
}

/// Replaces an object by something else. `others` are contents of other objects.
fn damage(path: &Path, others: &[Vec<u8>], elsewhere: &Path, random: &mut Generator) {
    let mut content = fs::read(path).unwrap();
    let size = content.len();
    let at = random.below(size);
    match random.below(11) {
        // Poisoned, in the same size.
        0 => content[at] ^= 1 << random.below(8),
        1 => content.fill(0),
        2 => {
            let to = random.below(size);
            content.swap(at, to);
        }
        // Truncated or longer.
        3 => content.truncate(at),
        4 => content.push(b'x'),
        5 => mutate(&mut content, at, random),
        // Exchanged with a different object, also cut to its size.
        6 => content.clone_from(random.one_of(others)),
        7 => {
            content.clone_from(random.one_of(others));
            content.resize(size, b'x');
        }
        // Its parts in a different order: of a list, the lines.
        8 => {
            let middle = (at / 65 * 65).max(65).min(size);
            content.rotate_left(middle);
        }
        kind => {
            fs::remove_file(path).unwrap();
            match kind {
                9 => symlink(elsewhere, path).unwrap(),
                _ if random.below(2) == 0 => fs::create_dir(path).unwrap(),
                _ => {}
            }
            return;
        }
    }
    // ext4 writes a file to the disk at once that replaces its content.
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
}

/// Reads a stream as the helper does. `exchange` runs after the list was read.
fn read(
    spool: &Spool,
    stream: model::Stream,
    out: &mut Vec<u8>,
    exchange: impl FnOnce(),
) -> Result<(), String> {
    let Some(stream) = Stream::new(spool, stream)? else {
        return Err("the list of pieces is missing".to_owned());
    };
    if let Some(piece) = stream.missing() {
        return Err(format!("piece {piece} is missing"));
    }
    exchange();
    stream.feed(out)
}

#[test]
fn damaged_objects_are_refused_by_name_and_no_byte_of_them_is_received() {
    let mut random = Generator::new(1);
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("objects")).unwrap();
    let spool = Spool::new(directory.path());
    let small: Vec<_> = (0..4)
        .map(|number| publish(900 + 700 * number, &mut random))
        .collect();
    let large = publish(PIECE as usize + 5000, &mut random);
    let contents = small.iter().flat_map(Published::objects);
    let contents: Vec<_> = contents.map(|(_, content)| content).collect();
    let elsewhere = directory.path().join("elsewhere");
    let mut refused = 0u64;
    let executions = buildos_fuzz::executions(10_000);
    for number in 0..executions {
        // A stream of two pieces takes longer.
        let published = match number % 1000 {
            0 => &large,
            _ => random.one_of(&small),
        };
        spool.keep_only(&BTreeSet::new()).unwrap();
        published.put(&spool);
        // A link leads to the right content.
        let _ = fs::remove_file(&elsewhere);
        let objects = published.objects();
        let attacked = random.below(objects.len());
        let (name, good) = &objects[attacked];
        fs::write(&elsewhere, good).unwrap();
        let path = spool.object(name);
        let late = attacked > 0 && random.below(3) == 0;
        let mut attack = || damage(&path, &contents, &elsewhere, &mut random);
        if !late {
            attack();
        }
        let before = path.symlink_metadata().is_ok_and(|found| found.is_file());
        let before = before && fs::read(&path).unwrap() == *good;
        let mut unchanged = before;
        let mut out = Vec::new();
        let result = read(&spool, published.stream, &mut out, || {
            if late {
                attack();
                unchanged = path.symlink_metadata().is_ok_and(|found| found.is_file())
                    && fs::read(&path).unwrap() == *good;
            }
        });
        match result {
            Ok(()) => {
                assert!(unchanged, "attack {number} was not noticed");
                assert_eq!(out, published.before(objects.len()));
            }
            Err(reason) => {
                refused += 1;
                let named = match attacked {
                    0 => "the list of pieces".to_owned(),
                    piece => format!("piece {piece}"),
                };
                assert!(reason.contains(&named), "attack {number}: {reason}");
                // Whole pieces before the damaged one can have been passed on.
                let before = published.before(attacked.max(1));
                assert!(
                    out.is_empty() || out == before,
                    "attack {number}: {reason}: {} bytes were received",
                    out.len()
                );
            }
        }
    }
    // Some mutations change nothing.
    assert!(refused > executions * 9 / 10, "only {refused} refused");
}

#[test]
fn objects_of_an_old_revision_under_the_names_of_a_new_one_are_refused() {
    let mut random = Generator::new(2);
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("objects")).unwrap();
    let spool = Spool::new(directory.path());
    let (old, new) = (publish(5000, &mut random), publish(5000, &mut random));
    for ((name, _), (_, content)) in new.objects().iter().zip(old.objects()) {
        fs::write(spool.object(name), content).unwrap();
    }
    let mut out = Vec::new();
    let reason = read(&spool, new.stream, &mut out, || {}).unwrap_err();
    assert_eq!(
        reason,
        "the list of pieces in the spool has a different digest"
    );
    assert!(out.is_empty());
}

fn channel(name: &str, serial: u64, valid_until: Timestamp, percent: u8) -> String {
    write::text(&Channel {
        name: name.parse().unwrap(),
        serial,
        valid_until,
        os: None,
        agents: Vec::new(),
        toolchains: Vec::new(),
        machines: Vec::new(),
        rollout: Rollout { percent, since: 1 },
    })
}

#[test]
fn replayed_expired_foreign_and_unsigned_channels_are_refused_by_name() {
    let mut random = Generator::new(3);
    let now: Timestamp = "2027-01-15T12:00:00Z".parse().unwrap();
    let good = now.plus_days(30);
    let terms = Terms {
        name: "stable".parse().unwrap(),
        signatures: 1,
    };
    let mut last: Option<Accepted> = None;
    let mut served: Vec<String> = Vec::new();
    let mut serial = 0;
    let mut refused = 0u64;
    let executions = buildos_fuzz::executions(10_000);
    for number in 0..executions {
        let mut signatures = 1;
        let attack = match random.below(8) {
            _ if served.is_empty() => 0,
            attack => attack,
        };
        let text = match attack {
            // What the desk publishes.
            0 => channel("stable", serial + 1, good, 100),
            // Replayed.
            1 | 2 => random.one_of(&served).clone(),
            3 => channel("canary", serial + 1, good, 100),
            4 => {
                let seconds = now.seconds() - random.next() % 10_000_000;
                channel("stable", serial + 1, Timestamp::from_seconds(seconds), 100)
            }
            5 => channel("stable", serial + 1, now.plus_days(500), 100),
            // Two files with one serial.
            6 => channel("stable", serial, good, 1 + (random.next() % 99) as u8),
            // A serial that hides all later ones, without the key.
            _ => {
                signatures = 0;
                channel("stable", 999_999_999, good, 100)
            }
        };
        let parsed = grammar::parse(&text).unwrap();
        let verified = Verified {
            channel: &parsed.channel,
            digest: Digest::of(text.as_bytes()),
            signatures,
        };
        let accepted = Accepted {
            serial: parsed.channel.serial,
            digest: verified.digest,
        };
        match judge(verified, &terms, last, Clock::Set(now)) {
            Ok(_) => {
                let replayed = [1, 2].contains(&attack) && last == Some(accepted);
                assert!(attack == 0 || replayed, "case {number}: {text}");
                if attack == 0 {
                    last = Some(accepted);
                    served.push(text);
                    serial += 1;
                }
            }
            Err(refusal) => {
                refused += 1;
                let named = match refusal {
                    Refusal::TooFewSignatures { .. } => attack == 7,
                    Refusal::OtherChannel { .. } => attack == 3,
                    Refusal::Expired { .. } => attack == 4,
                    Refusal::ValidTooLong { .. } => attack == 5,
                    Refusal::SerialWentDown { .. } => [1, 2].contains(&attack),
                    Refusal::SameSerial { .. } => attack == 6,
                    Refusal::ClockNotSet => false,
                };
                assert!(named, "case {number}: attack {attack}: {refusal}");
            }
        }
    }
    assert!(refused > executions / 2, "only {refused} refused");
}
