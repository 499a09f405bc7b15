//! Fuzzes every parser with mutated files: by default 20,000 per target, see
//! [`buildos_fuzz`].

use buildos_channel::contents::{Contents, Entry};
use buildos_channel::grammar::parse;
use buildos_channel::model::Limits;
use buildos_channel::pieces::{PIECE, PieceList};
use buildos_channel::plan::plan;
use buildos_channel::{Digest, rollout, write};
use buildos_fuzz::{Generator, mutate_text};

use crate::sample::{channel, host};

fn executions() -> u64 {
    buildos_fuzz::executions(20_000)
}

/// Parts of TOML that a mutation inserts.
const PARTS: [&str; 28] = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "\"",
    "'",
    "\"\"\"",
    "=",
    ".",
    ",",
    "\n",
    "\r\n",
    "#",
    "-",
    "0",
    "18446744073709551616",
    "0x7fffffffffffffff",
    "nan",
    "true",
    "\u{feff}",
    "\\u0000",
    "é",
    "[[machine]]\n",
    "[[machine.increment]]\n",
    "2027-02-30T25:61:61Z",
    "format = 2\n",
];

#[test]
fn mutated_channels_are_valid_or_refused_with_reasons() {
    let mut small = channel();
    small.machines.truncate(1);
    small.machines[0].increments.truncate(1);
    let corpus = [write::text(&channel()), write::text(&small)];
    let mut random = Generator::new(1);
    let mut valid = 0u64;
    for _ in 0..executions() {
        let mut bytes = corpus[random.below(corpus.len())].clone().into_bytes();
        mutate_text(&mut bytes, &PARTS, &mut random);
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        match parse(&text) {
            Ok(parsed) => {
                valid += 1;
                let channel = parsed.channel;
                assert!((1..=Limits::NUMBER).contains(&channel.serial));
                assert!(channel.rollout.percent <= 100);
                assert!(channel.rollout.since <= channel.serial);
                for machine in &channel.machines {
                    assert!(!machine.name.as_str().contains('/'));
                    assert!(machine.whole.size > 0 && machine.whole.size <= Limits::SIZE);
                    assert!(
                        machine
                            .increments
                            .iter()
                            .all(|other| other.from != machine.id)
                    );
                }
                assert!(rollout::place(&channel, &host(1)) < 10_000);
                // What was read means the same once it is written.
                assert_eq!(parse(&write::text(&channel)).unwrap().channel, channel);
            }
            Err(problems) => {
                assert!(!problems.is_empty() && problems.len() <= 50);
                for problem in problems {
                    let shown = problem.to_string();
                    assert!(!shown.chars().any(char::is_control), "{shown:?}");
                    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
                    assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)));
                }
            }
        }
    }
    assert!(valid > executions() / 50, "only {valid} valid files");
}

#[test]
fn mutated_lists_of_pieces_are_read_or_refused() {
    let mut random = Generator::new(2);
    let lines: Vec<_> = (0..5u8)
        .map(|number| format!("{}\n", Digest::of(&[number])))
        .collect();
    let text = lines.concat().into_bytes();
    let mut valid = 0u64;
    for _ in 0..executions() {
        let mut bytes = text.clone();
        if random.below(4) != 0 {
            mutate_text(&mut bytes, &PARTS, &mut random);
        }
        let size = match random.below(4) {
            0 => random.next(),
            1 => PIECE * random.below(7) as u64,
            _ => 4 * PIECE + 1 + random.next() % PIECE,
        };
        if let Ok(list) = PieceList::parse(&bytes, size) {
            valid += 1;
            assert_eq!(list.text().as_bytes(), bytes);
            let plan = plan(&list, &host(1), |_| false);
            assert!(plan.bytes <= list.size() && list.size() == size);
        }
    }
    assert!(valid > executions() / 50, "only {valid} valid lists");
}

#[test]
fn mutated_contents_are_read_or_refused() {
    let mut random = Generator::new(3);
    let entry = |number: u8| Entry {
        mode: 0o100_644,
        size: number.into(),
        sha256: Digest::of(&[number]),
    };
    let files = [&b"a"[..], b"a/b\\c", b"d e", b"f\n\xff"]
        .into_iter()
        .zip(0..);
    let files = files.map(|(path, number)| (path.to_vec(), entry(number)));
    let text = Contents(files.collect()).text();
    let mut valid = 0u64;
    for _ in 0..executions() {
        let mut bytes = text.clone();
        mutate_text(&mut bytes, &PARTS, &mut random);
        if let Ok(contents) = Contents::parse(&bytes) {
            valid += 1;
            assert_eq!(contents.text(), bytes);
        }
    }
    assert!(valid > executions() / 100, "only {valid} valid lists");
}
