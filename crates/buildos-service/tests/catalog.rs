//! Compares message identifiers in the code with the entries of the journal catalogue.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn catalogue_entries_match_message_ids_in_code() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut sources = Vec::new();
    for entry in fs::read_dir(top.join("crates")).unwrap() {
        collect(&entry.unwrap().path().join("src"), &mut sources);
    }
    let in_code: BTreeSet<String> = sources
        .iter()
        .flat_map(|path| quoted_ids(&fs::read_to_string(path).unwrap()))
        .collect();
    let mut in_catalogue = BTreeSet::new();
    for entry in fs::read_dir(top.join("units/systemd/catalog")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for id in text.lines().filter_map(|line| line.strip_prefix("-- ")) {
            assert!(is_id(id), "{id} is not a message identifier");
            assert!(
                in_catalogue.insert(id.to_owned()),
                "{id} is explained twice"
            );
        }
    }
    assert!(!in_code.is_empty());
    assert_eq!(in_code, in_catalogue);
}

fn collect(directory: &Path, sources: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else {
            sources.push(path);
        }
    }
}

fn quoted_ids(text: &str) -> Vec<String> {
    let quoted = text.split('"').filter(|part| is_id(part));
    quoted.map(str::to_owned).collect()
}

fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
