//! Pieces of streams.

use std::collections::BTreeMap;
use std::convert::Infallible;

use buildos_channel::Digest;
use buildos_channel::model::Limits;
use buildos_channel::pieces::{Cutter, ListError, PIECE, PieceList};

/// Cuts data that arrives in parts of `part` bytes; returns the list and the pieces.
fn cut(data: &[u8], part: usize) -> (PieceList, BTreeMap<Digest, Vec<u8>>) {
    let mut stored = BTreeMap::new();
    let mut cutter = Cutter::default();
    let mut store = |digest, piece: &[u8]| {
        assert_eq!(Digest::of(piece), digest);
        stored.insert(digest, piece.to_vec());
        Ok::<_, Infallible>(())
    };
    for part in data.chunks(part) {
        cutter.push(part, &mut store).unwrap();
    }
    let list = cutter.finish(&mut store).unwrap();
    (list, stored)
}

/// Returns data without repetition.
fn data(size: usize) -> Vec<u8> {
    let words = (0..size.div_ceil(8) as u64).flat_map(u64::to_le_bytes);
    words.take(size).collect()
}

#[test]
fn pieces_make_the_stream_again_however_it_arrives() {
    let piece = PIECE as usize;
    for (size, part) in [
        (1, 1),
        (piece - 1, 65_536),
        (piece, piece),
        (piece + 1, 1_000_003),
        (2 * piece + 5, 3 * piece),
    ] {
        let data = data(size);
        let (list, stored) = cut(&data, part);
        assert_eq!(list.size(), size as u64);
        let again: Vec<u8> = list
            .iter()
            .flat_map(|(_, digest, length)| {
                assert_eq!(stored[&digest].len() as u64, length);
                stored[&digest].clone()
            })
            .collect();
        assert!(again == data, "{size} bytes in parts of {part}");
        assert_eq!(list, cut(&data, 4096).0);
    }
}

#[test]
fn list_is_read_back_and_has_the_computed_size() {
    let (list, _) = cut(&data(PIECE as usize + 1), 1 << 20);
    let text = list.text();
    assert_eq!(text.lines().count(), 2);
    assert_eq!(PieceList::text_size(list.size()), text.len() as u64);
    assert_eq!(
        PieceList::parse(text.as_bytes(), list.size()),
        Ok(list.clone())
    );
    assert_eq!(list.digest(), Digest::of(text.as_bytes()));
    let (empty, _) = cut(b"", 1);
    assert_eq!(PieceList::parse(b"", 0), Ok(empty));
}

#[test]
fn list_of_other_length_or_form_is_refused() {
    let (list, _) = cut(&data(PIECE as usize + 1), 1 << 20);
    let text = list.text();
    let parsed = |text: &str, size| PieceList::parse(text.as_bytes(), size);
    for (text, size) in [
        (text.as_str(), PIECE),
        (text.as_str(), 2 * PIECE + 1),
        (text.trim_end(), PIECE + 1),
        ("", 1),
    ] {
        assert!(matches!(parsed(text, size), Err(ListError::Length { .. })));
    }
    let upper = text.to_uppercase();
    assert_eq!(
        parsed(&upper, PIECE + 1)
            .unwrap_err()
            .to_string()
            .split(": ")
            .next(),
        Some("line 1")
    );
    let spaces = text.replace('\n', " ");
    assert!(matches!(
        parsed(&spaces, PIECE + 1),
        Err(ListError::Line { line: 1, .. })
    ));
    let too_large = parsed("", Limits::SIZE + 1).unwrap_err();
    assert!(matches!(too_large, ListError::TooLarge { .. }));
}

#[test]
fn error_of_store_ends_the_stream() {
    let mut cutter = Cutter::default();
    let full = |_, _: &[u8]| Err("disk full");
    assert_eq!(cutter.push(b"x", full), Ok(()));
    assert_eq!(cutter.finish(full), Err("disk full"));
}
