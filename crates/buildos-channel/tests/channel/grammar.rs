//! Channel files, valid and invalid.

use buildos_channel::grammar::parse;
use buildos_channel::model::{Kind, Limits, Rollout};
use buildos_channel::write;
use proptest::prelude::*;

use crate::sample::{channel, machine, name, time};

/// Returns the text of the sample with a part replaced.
fn with(old: &str, new: &str) -> String {
    let text = write::text(&channel());
    assert!(text.contains(old), "{old}");
    text.replacen(old, new, 1)
}

/// Returns the mistakes in a text, one a line.
fn mistakes(text: &str) -> Vec<String> {
    let problems = parse(text).unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn written_channel_is_read_back() {
    let channel = channel();
    let parsed = parse(&write::text(&channel)).unwrap();
    assert_eq!(parsed.channel, channel);
    assert_eq!(parsed.unknown, []);
}

#[test]
fn kind_of_a_container_is_read_back() {
    let mut channel = channel();
    channel.machines[0].kind = Kind::Container;
    let text = write::text(&channel);
    assert_eq!(text.matches("kind = \"container\"").count(), 1);
    assert_eq!(parse(&text).unwrap().channel, channel);
    let other = text.replace("\"container\"", "\"jail\"");
    assert_eq!(
        mistakes(&other),
        ["line 23: machine.kind: neither \"machine\" nor \"container\""]
    );
}

#[test]
fn smallest_channel_is_taken_by_all_hosts() {
    let text = "format = 1\nname = \"a\"\nserial = 7\nvalid_until = 2027-01-01T00:00:00Z\n";
    let channel = parse(text).unwrap().channel;
    assert_eq!(channel.name, name("a"));
    assert_eq!(channel.valid_until, time("2027-01-01T00:00:00Z"));
    let everyone = Rollout {
        percent: 100,
        since: 7,
    };
    assert_eq!(channel.rollout, everyone);
    assert!(channel.os.is_none() && channel.machines.is_empty());
}

#[test]
fn unknown_keys_are_ignored_and_named_with_the_nearest_key() {
    let text = with("revision = 3", "revision = 3\nrevison = 4\nmood = \"good\"");
    let text = text.replacen("serial = 42", "serial = 42\nsince = 1", 1);
    let text = format!("{text}\n[[plugin]]\nx = 1\n");
    let parsed = parse(&text).unwrap();
    assert_eq!(parsed.channel, channel());
    let unknown: Vec<_> = parsed.unknown.iter().map(ToString::to_string).collect();
    assert_eq!(
        unknown,
        [
            "line 4: unknown key \"since\"",
            "line 25: unknown key \"machine.revison\"; the nearest valid key is \"machine.revision\"",
            "line 26: unknown key \"machine.mood\"",
            "line 62: unknown key \"plugin\"",
        ]
    );
}

#[test]
fn newer_format_is_refused_without_other_mistakes() {
    let text = "format = 2\nserial = \"new\"\n";
    assert_eq!(
        mistakes(text),
        ["a newer format: this version reads format 1"]
    );
}

#[test]
fn mistakes_are_named_with_their_line() {
    for (old, new, expected) in [
        (
            "serial = 42",
            "serial = 0",
            "line 3: serial: not a whole number from 1 to 999999999",
        ),
        (
            "serial = 42",
            "serial = -1",
            "line 3: serial: not a whole number from 1 to 999999999",
        ),
        (
            "serial = 42",
            "serial = 1e3",
            "line 3: serial: not a whole number from 1 to 999999999",
        ),
        ("serial = 42\n", "", "serial is missing"),
        (
            "name = \"stable\"",
            "name = 1",
            "line 2: name: not a text in quotes",
        ),
        (
            "2027-01-31T12:00:00Z",
            "2027-01-31",
            "line 4: valid_until: not a time in UTC with whole seconds, such as 2027-01-31T12:00:00Z",
        ),
        (
            "2027-01-31T12:00:00Z",
            "\"later\"",
            "line 4: valid_until: not a time such as 2027-01-31T12:00:00Z",
        ),
        (
            "format = 1",
            "format = ",
            "line 1: not TOML: string values must be quoted, expected literal string",
        ),
        (
            "serial = 42",
            "serial = 42\nserial = 43",
            "line 4: not TOML: duplicate key",
        ),
        ("version = \"0.2.0\"\n", "", "line 6: os.version is missing"),
        (
            "percent = 10",
            "percent = 101",
            "line 56: rollout.percent: not a whole number from 0 to 100",
        ),
        (
            "since = 41",
            "since = 43",
            "line 57: rollout.since: not a whole number from 1 to 42",
        ),
        ("[os]", "[[os]]", "line 6: os: not a table"),
        (
            "[[agent]]",
            "[agent]",
            "line 11: agent: not an array of tables",
        ),
        (
            "name = \"m\"",
            "name = \"x86_64-linux_debian_13-gcc\"",
            "line 38: the name x86_64-linux_debian_13-gcc is used twice",
        ),
        ("revision = 3\n", "", "line 21: machine.revision is missing"),
        (
            "whole = { size = 987654321,",
            "whole = { size = 0,",
            "line 21: machine.whole.size: a stream is never empty",
        ),
        (
            "name = \"m\"",
            "name = \"../m\"",
            "line 39: machine.name: not a name: it has letters, digits, '.', '_', '+' and '-', begins with a letter, a digit or '_', and has at most 100 characters",
        ),
    ] {
        assert_eq!(mistakes(&with(old, new)), [expected], "{new}");
    }
}

#[test]
fn digest_in_upper_case_is_refused() {
    let id = machine("m").id.to_string();
    assert_eq!(
        mistakes(&with(&id, &id.to_uppercase())),
        [
            "line 41: machine.id: not a SHA-256 digest, which has 64 hexadecimal digits in lower case"
        ]
    );
}

#[test]
fn increment_from_own_id_or_from_one_id_twice_is_refused() {
    let machine = machine("x86_64-linux_debian_13-gcc");
    let first = machine.increments[0].from.to_string();
    for other in [machine.id, machine.increments[1].from] {
        let found = mistakes(&with(&first, &other.to_string()));
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains("the id of this revision, or used twice"),
            "{found:?}"
        );
    }
}

#[test]
fn extension_of_two_agents_is_refused() {
    let mut channel = channel();
    let mut other = channel.agents[0].clone();
    other.name = name("other");
    channel.agents.push(other);
    let found = mistakes(&write::text(&channel));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].ends_with("agent other: the extension is that of another agent"),
        "{found:?}"
    );
}

#[test]
fn all_mistakes_are_reported_at_once_and_their_number_is_bounded() {
    let text = with("serial = 42", "serial = 0").replace("revision = 3", "revision = 0");
    let found = mistakes(&text);
    assert_eq!(found.len(), 3, "{found:?}");
    let text = with(
        "[rollout]",
        &format!("{}[rollout]", "[[machine]]\n".repeat(490)),
    );
    assert_eq!(mistakes(&text).len(), 50);
    let unknown: Vec<_> = (0..1000).map(|number| format!("x{number} = 1\n")).collect();
    let text = with("serial", &format!("{}serial", unknown.concat()));
    assert_eq!(parse(&text).unwrap().unknown.len(), 50);
}

#[test]
fn file_of_most_machines_fits_and_one_more_is_refused() {
    let mut channel = channel();
    let machines = (0..Limits::MACHINES).map(|number| {
        let long = format!("{number}{}", "x".repeat(60));
        machine(&long)
    });
    channel.machines = machines.collect();
    let text = write::text(&channel);
    assert!(text.len() < Limits::TEXT, "{}", text.len());
    assert_eq!(parse(&text).unwrap().channel, channel);
    channel.machines.push(machine("last"));
    let found = mistakes(&write::text(&channel));
    assert_eq!(found.len(), 1);
    assert!(
        found[0].ends_with("machine: 501 tables, at most 500"),
        "{found:?}"
    );
}

#[test]
fn text_beyond_the_limit_is_refused_before_it_is_parsed() {
    let text = "[".repeat(Limits::TEXT + 1);
    assert_eq!(mistakes(&text), ["524289 bytes, at most 524288"]);
}

#[test]
fn text_of_problems_is_on_one_line() {
    let unknown = with("serial", "\"a\\nb\" = 1\nserial");
    let unknown = parse(&unknown).unwrap().unknown;
    assert_eq!(unknown[0].to_string(), "line 3: unknown key \"a\\u{a}b\"");
}

proptest! {
    #[test]
    fn any_numbers_and_names_are_read_back(
        serial in 1..=Limits::NUMBER,
        seconds in 0..=253_402_300_799u64,
        percent in 0u8..=100,
        size in 1..=Limits::SIZE,
        names in proptest::collection::btree_set("[A-Za-z0-9_][A-Za-z0-9._+-]{0,20}", 0..8),
    ) {
        let mut channel = channel();
        channel.serial = serial;
        channel.valid_until = buildos_channel::Timestamp::from_seconds(seconds);
        channel.rollout = Rollout { percent, since: serial };
        channel.machines = names.iter().map(|name| machine(name)).collect();
        for machine in &mut channel.machines {
            machine.whole.size = size;
        }
        prop_assert_eq!(parse(&write::text(&channel)).unwrap().channel, channel);
    }
}
