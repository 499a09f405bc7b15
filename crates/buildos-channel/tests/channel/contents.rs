//! Content ids and changes.

use std::collections::BTreeMap;

use buildos_channel::Digest;
use buildos_channel::contents::{Change, Contents, Entry};
use proptest::prelude::*;

fn entry(mode: u32, data: &[u8]) -> Entry {
    Entry {
        mode,
        size: data.len() as u64,
        sha256: Digest::of(data),
    }
}

fn contents(files: &[(&str, Entry)]) -> Contents {
    let files = files.iter();
    Contents(
        files
            .map(|(path, entry)| (path.as_bytes().to_vec(), *entry))
            .collect(),
    )
}

#[test]
fn id_is_digest_of_sorted_lines() {
    let contents = contents(&[
        ("b", entry(0o100_755, b"abc")),
        ("a", entry(0o40_755, b"")),
        ("a/l\nk\\", entry(0o120_777, b"../b")),
    ]);
    let text = format!(
        "40755 0 {} a\n120777 4 {} a/l\\nk\\\\\n100755 3 {} b\n",
        Digest::of(b""),
        Digest::of(b"../b"),
        Digest::of(b"abc")
    );
    assert_eq!(contents.text(), text.as_bytes());
    assert_eq!(contents.id(), Digest::of(text.as_bytes()));
    assert_eq!(Contents::parse(text.as_bytes()), Ok(contents.clone()));
    assert_eq!(contents.size(), 7);
}

#[test]
fn changes_are_listed_by_path() {
    let before = contents(&[
        ("gone", entry(0o100_644, b"x")),
        ("mode", entry(0o100_644, b"y")),
        ("same", entry(0o100_644, b"z")),
    ]);
    let after = contents(&[
        ("mode", entry(0o100_755, b"y")),
        ("new", entry(0o100_644, b"n")),
        ("same", entry(0o100_644, b"z")),
    ]);
    let changes = before.changes(&after);
    let shown: Vec<_> = changes
        .iter()
        .map(|(path, change)| format!("{}{}", change.sign(), String::from_utf8_lossy(path)))
        .collect();
    assert_eq!(shown, ["-gone", "~mode", "+new"]);
    assert_eq!(
        changes[b"new".as_slice()],
        Change::Added(entry(0o100_644, b"n"))
    );
    assert_eq!(after.changes(&after).len(), 0);
}

#[test]
fn invalid_lists_are_refused_with_the_line() {
    let digest = Digest::of(b"");
    for (text, line) in [
        (format!("40755 0 {digest} a"), 1),
        (format!("40755 0 {digest} a\n40755 0 {digest} a\n"), 2),
        (format!("40755 0 {digest} b\n40755 0 {digest} a\n"), 2),
        (format!("40755 0 {digest} \n"), 1),
        (format!("040755 0 {digest} a\n"), 1),
        (format!("40755 +0 {digest} a\n"), 1),
        (format!("40755 0 {digest} a\\b\n"), 1),
        ("\n".to_owned(), 1),
    ] {
        let error = Contents::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.line, line, "{text:?}");
    }
}

proptest! {
    #[test]
    fn any_paths_are_read_back(
        files: BTreeMap<Vec<u8>, (u16, u64, Vec<u8>)>
    ) {
        let files = files.into_iter().filter(|(path, _)| !path.is_empty());
        let contents = Contents(files.map(|(path, (mode, size, data))| {
            (path, Entry { mode: mode.into(), size, sha256: Digest::of(&data) })
        }).collect());
        prop_assert_eq!(Contents::parse(&contents.text()), Ok(contents));
    }

    #[test]
    fn different_contents_have_different_ids(
        first: BTreeMap<Vec<u8>, u8>, second: BTreeMap<Vec<u8>, u8>
    ) {
        let of = |files: &BTreeMap<Vec<u8>, u8>| {
            let files = files.iter().filter(|(path, _)| !path.is_empty());
            Contents(files.map(|(path, data)| (path.clone(), entry(0o100_644, &[*data]))).collect())
        };
        let (first, second) = (of(&first), of(&second));
        prop_assert_eq!(first == second, first.id() == second.id());
        prop_assert_eq!(first == second, first.changes(&second).is_empty());
    }
}
