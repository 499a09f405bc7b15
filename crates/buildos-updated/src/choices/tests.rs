//! Tests of the file, of its merge with the former boot, and of changes.

use std::fs;

use buildos_fuzz::{Generator, executions, mutate_text};

use super::change::{Change, Known, apply};
use super::*;
use crate::retention::Placed;
use buildos_channel::Digest;
use buildos_channel::model::Kind;
use buildos_volumes::report::Report;

const SAMPLE: &str = r#"{"schema":1,"hold":"release week","added":["a","b"],"removed":["c"],"pinned":{"b":3,"d":4},"merged":true}"#;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn parsed(text: &str) -> Choices {
    Choices::parse(text.as_bytes()).unwrap()
}

#[test]
fn choices_are_read_back() {
    let choices = parsed(SAMPLE);
    assert_eq!(choices.hold.as_deref(), Some("release week"));
    let pins = ["a", "b", "c", "d"].map(|text| choices.pinned(&name(text)));
    assert_eq!(pins, [None, Some(3), None, Some(4)]);
    assert!(choices.is_added(&name("b")) && choices.is_removed(&name("c")));
    assert_eq!(Choices::parse(&choices.text()), Ok(choices));
    let none = Choices::default();
    assert_eq!(Choices::parse(&none.text()), Ok(none));
    // Keys of later versions are ignored; a later schema is not.
    assert_eq!(parsed(r#"{"schema":1,"new":1}"#), Choices::default());
}

#[test]
fn damaged_choices_are_refused() {
    for bad in [
        "",
        "{}",
        r#"{"schema":2}"#,
        r#"{"schema":1,"added":["a/b"]}"#,
        r#"{"schema":1,"pinned":{"a":0}}"#,
        r#"{"schema":1,"pinned":{"a":1000000000}}"#,
        r#"{"schema":1,"removed":["a"],"pinned":{"a":1}}"#,
        r#"{"schema":1,"removed":["a"],"added":["a"]}"#,
        r#"{"schema":1,"hold":""}"#,
        r#"{"schema":1,"hold":"two\nlines"}"#,
    ] {
        assert!(Choices::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    let many: Vec<_> = (0..=MACHINES).map(|n| format!("\"m{n}\"")).collect();
    let text = format!(r#"{{"schema":1,"removed":[{}]}}"#, many.join(","));
    assert_eq!(Choices::parse(text.as_bytes()), Err(Damaged::TooMany));
}

#[test]
fn mutated_files_are_refused_or_read_back() {
    let parts = [
        "{", "}", "[", "]", "\"", ",", ":", "null", "-1", "1e9", "\"a\"", "\\u0000",
    ];
    let mut random = Generator::new(1);
    let mut valid = 0u64;
    for _ in 0..executions(20_000) {
        let mut bytes = SAMPLE.as_bytes().to_vec();
        mutate_text(&mut bytes, &parts, &mut random);
        if let Ok(choices) = Choices::parse(&bytes) {
            valid += 1;
            assert_eq!(Choices::parse(&choices.text()), Ok(choices));
        }
    }
    assert!(valid > 0);
}

#[test]
fn choices_of_this_boot_win_over_those_of_the_former() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::new(root.path());
    let write = |path: &Path, text: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    assert_eq!(settle(&paths), load(&paths));
    assert!(
        !paths.choices().exists(),
        "a host without choices has no file"
    );
    write(&paths.choices(), r#"{"schema":1,"pinned":{"a":2}}"#);
    assert!(load(&paths).unwrap().hold.is_none());
    // The volume appears.
    let former = r#"{"schema":1,"hold":"x","removed":["a"],"added":["b"],"merged":true}"#;
    write(&paths.former_choices(), former);
    let choices = settle(&paths).unwrap();
    assert_eq!(choices.pinned(&name("a")), Some(2));
    assert!(choices.is_added(&name("b")) && choices.merged);
    assert_eq!(choices.hold.as_deref(), Some("x"));
    // The file of the former boot counts once.
    store(
        &paths,
        &Choices {
            merged: true,
            ..Choices::default()
        },
    )
    .unwrap();
    assert!(load(&paths).unwrap().machines.is_empty());
    write(&paths.choices(), "{");
    let error = load(&paths).unwrap_err();
    assert!(error.contains("choices.json: it is not JSON"), "{error}");
    assert!(
        error.ends_with("remove the file to forget all choices"),
        "{error}"
    );
}

#[test]
fn choices_of_the_former_boot_are_awaited_while_the_volume_is_read() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::new(root.path());
    let volume = |state, saved_usec| {
        let report = Report {
            state: VolumeState::Mounted,
            ..Report::default()
        };
        report::write_selected(root.path(), &report).unwrap();
        let status = Report {
            state,
            saved_usec,
            ..report
        };
        report::write_status(root.path(), &status).unwrap();
    };
    fs::create_dir_all(paths.choices().parent().unwrap()).unwrap();
    let pin = r#"{"schema":1,"pinned":{"a":2}}"#;
    fs::write(paths.choices(), pin).unwrap();
    for state in [VolumeState::Mounted, VolumeState::Slow] {
        volume(state, 0);
        assert_eq!(settle(&paths), Err(AWAITED.to_owned()), "{state:?}");
        assert!(are_awaited(&paths));
        assert_eq!(fs::read_to_string(paths.choices()).unwrap(), pin);
    }
    for (state, saved_usec) in [(VolumeState::Active, 1), (VolumeState::Slow, 1)] {
        volume(state, saved_usec);
        assert!(load(&paths).unwrap().merged, "{state:?}");
        assert!(are_kept(&paths));
    }
    fs::write(root.path().join(report::SELECTED), "{").unwrap();
    assert!(are_awaited(&paths));
    // What is merged needs no volume.
    volume(VolumeState::Active, 1);
    settle(&paths).unwrap();
    volume(VolumeState::Slow, 0);
    assert_eq!(load(&paths).unwrap().pinned(&name("a")), Some(2));
    assert!(!are_awaited(&paths));
}

fn placed(machine: &str, revision: u64) -> Placed {
    Placed {
        kind: Kind::Machine,
        name: name(machine),
        revision,
        id: Digest::of(&revision.to_be_bytes()),
    }
}

#[test]
fn changes_are_applied_or_refused_with_advice() {
    let on_volume = [placed("box", 3), placed("box", 4), placed("own", 1)];
    let channel = [name("box"), name("other"), name("x-large")];
    let known = Known {
        channel: Some(&channel),
        placed: &on_volume,
        current: &[placed("box", 4)],
        patterns: &["*o*".parse().unwrap()],
    };
    let text = |text: &str| text.to_owned();
    let mut choices = Choices::default();
    for (change, expected) in [
        (Change::Resume, Err("updates are not held")),
        (
            Change::Hold(text("a\nb")),
            Err("the reason is not one line of at most 200 characters"),
        ),
        (Change::Hold(text("release")), Ok(r#""hold":"release""#)),
        (Change::Resume, Ok(r#""added":[]"#)),
        (
            Change::Pin(text("boxx"), None),
            Err("there is no machine boxx on the volume; the nearest name is box"),
        ),
        (
            Change::Pin(text("box"), Some(5)),
            Err("revision 5 of machine box is not on the volume; revisions 3, 4 are there"),
        ),
        (
            Change::Pin(text("own"), None),
            Err("no revision of machine own is current: name one of 1"),
        ),
        (Change::Pin(text("box"), None), Ok(r#""pinned":{"box":4}"#)),
        (
            Change::Pin(text("box"), Some(3)),
            Ok(r#""pinned":{"box":3}"#),
        ),
        (
            Change::Unpin(text("own")),
            Err("machine own is not pinned; pinned are box"),
        ),
        (
            Change::Remove(text("box")),
            Ok(r#""removed":["box"],"pinned":{}"#),
        ),
        (
            Change::Remove(text("box")),
            Err("machine box is removed already"),
        ),
        (
            Change::Pin(text("box"), Some(3)),
            Err("machine box is removed: add it first, with buildosctl machines add box"),
        ),
        (Change::Add(text("box")), Ok(r#""removed":[]"#)),
        (
            Change::Add(text("box")),
            Err("machine box is taken already"),
        ),
        (
            Change::Remove(text("x-large")),
            Err("machine x-large is not taken: no pattern of machines.select matches it"),
        ),
        (Change::Add(text("x-large")), Ok(r#""added":["x-large"]"#)),
        (
            Change::Remove(text("x-large")),
            Ok(r#""added":[],"removed":[]"#),
        ),
        (
            Change::Add(text("../etc")),
            Err("there is no machine ../etc in the channel"),
        ),
    ] {
        let before = choices.clone();
        match (apply(&change, &mut choices, &known), expected) {
            (Ok(()), Ok(part)) => {
                let text = String::from_utf8(choices.text()).unwrap();
                assert!(text.contains(part), "{change:?}: {text}");
            }
            (Err(refused), Err(expected)) => {
                assert_eq!(refused.to_string(), expected, "{change:?}");
                assert_eq!(choices, before);
            }
            (result, _) => panic!("{change:?}: {result:?}"),
        }
    }
    let unknown = Known {
        channel: None,
        ..known
    };
    let refused = apply(&Change::Add(text("box")), &mut choices, &unknown);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .starts_with("no channel was accepted")
    );
}

#[test]
fn unpinned_machine_stays_added() {
    let mut choices = parsed(r#"{"schema":1,"added":["box"],"pinned":{"box":3}}"#);
    let known = Known {
        channel: None,
        placed: &[placed("box", 3)],
        current: &[],
        patterns: &[],
    };
    apply(&Change::Unpin("box".to_owned()), &mut choices, &known).unwrap();
    assert_eq!(choices, parsed(r#"{"schema":1,"added":["box"]}"#));
    apply(&Change::Remove("box".to_owned()), &mut choices, &known).unwrap();
    assert_eq!(choices, Choices::default());
}

#[test]
fn choices_that_could_not_be_read_again_are_not_stored() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::new(root.path());
    fs::create_dir_all(paths.choices().parent().unwrap()).unwrap();
    let many = |count: usize| {
        let pinned = |n| {
            (
                name(&format!("m{n:0>0$}", Name::LONGEST - 1)),
                Choice::Added { pin: Some(1) },
            )
        };
        Choices {
            machines: (0..count).map(pinned).collect(),
            ..Choices::default()
        }
    };
    let mut most = 0;
    for count in [1, MACHINES / 2, MACHINES] {
        let choices = many(count);
        if store(&paths, &choices).is_ok() {
            most = count;
        }
        assert_eq!(read(&paths.choices()), Ok(Some(many(most))));
    }
    assert!((1..MACHINES).contains(&most), "{most}");
}
