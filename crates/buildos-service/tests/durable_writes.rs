//! Kills a writer at random moments: no acknowledged record is lost, no file is unreadable.
//!
//! `BUILDOS_KILLS=1000` sets the number of kills.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use buildos_service::file::replace_durably;
use buildos_service::random::seed;

const DIRECTORY: &str = "BUILDOS_TEST_DIRECTORY";
const KILLS: &str = "BUILDOS_KILLS";
const USUAL_KILLS: usize = 100;
/// Longest run of a writer, microseconds: some hundred records.
const LONGEST: u64 = 20_000;
/// More than a page, so that a record is not written at once.
const FILLER: usize = 20_000;

fn record(number: u64) -> Vec<u8> {
    format!("{number}\n{}\n{number}\n", "x".repeat(FILLER)).into_bytes()
}

/// Returns the number of a whole record.
fn number(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let number = text.lines().next()?.parse().ok()?;
    assert_eq!(text.as_bytes(), record(number), "a part of a record");
    Some(number)
}

/// Writes records until it is killed, and acknowledges each on standard output. Does nothing
/// unless the other test starts it.
#[test]
fn writer() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        return;
    };
    let path = PathBuf::from(directory).join("record");
    let first = number(&path).map_or(0, |number| number + 1);
    let mut out = std::io::stdout();
    for number in first.. {
        replace_durably(&path, &record(number), 0o600).unwrap();
        writeln!(out, "written {number}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn killed_writer_loses_no_acknowledged_record() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("record");
    let kills = env::var(KILLS).map_or(USUAL_KILLS, |kills| kills.parse().unwrap());
    let mut acknowledged = None;
    let mut records = 0;
    for _ in 0..kills {
        let mut writer = Command::new(env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        // The harness prints lines of its own.
        let acknowledgement = |line: std::io::Result<String>| {
            let line = line.unwrap();
            let number = line.rsplit_once("written ").map(|(_, number)| number);
            number.and_then(|number| number.parse::<u64>().ok())
        };
        let mut line = || lines.next().map(acknowledgement);
        // Kills before the first record show little.
        while line().expect("the writer ended").is_none() {}
        thread::sleep(Duration::from_micros(seed() % LONGEST));
        writer.kill().unwrap();
        while let Some(number) = line() {
            acknowledged = acknowledged.max(number);
            records += 1;
        }
        writer.wait().unwrap();
        assert!(number(&path) >= acknowledged, "{acknowledged:?} was lost");
    }
    println!("{kills} kills, {records} records");
    assert!(acknowledged.is_some());
}
