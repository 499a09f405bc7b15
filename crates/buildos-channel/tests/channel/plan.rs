//! Plans of what a host fetches.

use std::collections::BTreeSet;

use buildos_channel::pieces::{PIECE, PieceList};
use buildos_channel::plan::{plan, streams};
use buildos_channel::{Digest, HostId};
use proptest::prelude::*;

use crate::sample::{host, machine};

fn list(digests: &[Digest], last: u64) -> PieceList {
    let lines: Vec<_> = digests.iter().map(|digest| format!("{digest}\n")).collect();
    let size = (digests.len() as u64 - 1) * PIECE + last;
    PieceList::parse(lines.concat().as_bytes(), size).unwrap()
}

fn digests(count: u32) -> Vec<Digest> {
    (0..count)
        .map(|number| Digest::of(&number.to_be_bytes()))
        .collect()
}

#[test]
fn smallest_stream_that_the_host_can_use_is_first() {
    let machine = machine("m");
    let from = |installed: &[Digest]| -> Vec<_> {
        let installed = installed.iter().copied().collect();
        let found = streams(&machine, &installed);
        found.iter().map(|candidate| candidate.from).collect()
    };
    let (second, first) = (machine.increments[0].from, machine.increments[1].from);
    assert_eq!(from(&[]), [None]);
    assert_eq!(from(&[first]), [Some(first), None]);
    assert_eq!(from(&[first, second]), [Some(second), Some(first), None]);
    assert_eq!(from(&[second, machine.id]), []);
    assert_eq!(from(&[Digest::of(b"another machine")]), [None]);
}

#[test]
fn whole_stream_is_first_if_it_is_smaller_than_the_increment() {
    let mut machine = machine("m");
    machine.whole.size = 1;
    let installed = BTreeSet::from([machine.increments[0].from]);
    assert_eq!(streams(&machine, &installed)[0].from, None);
}

#[test]
fn plan_has_missing_pieces_only() {
    let all = digests(5);
    let list = list(&all, 7);
    let have = [all[1], all[4]];
    let found = plan(&list, &host(1), |digest| have.contains(digest));
    let mut indexes: Vec<_> = found.fetch.iter().map(|piece| piece.index).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, [0, 2, 3]);
    assert_eq!((found.bytes, found.total), (3 * PIECE, 4 * PIECE + 7));
    let nothing = plan(&list, &host(1), |_| true);
    assert_eq!((nothing.fetch.len(), nothing.bytes), (0, 0));
}

#[test]
fn piece_that_is_in_the_stream_twice_is_fetched_once() {
    let one = Digest::of(b"zeros");
    let list = list(&[one, one, Digest::of(b"x"), one], PIECE);
    let found = plan(&list, &host(1), |_| false);
    assert_eq!((found.fetch.len(), found.bytes), (2, 2 * PIECE));
}

#[test]
fn empty_stream_needs_nothing() {
    let list = PieceList::parse(b"", 0).unwrap();
    assert_eq!(plan(&list, &host(1), |_| false).fetch, []);
}

#[test]
fn hosts_begin_at_different_pieces() {
    let list = list(&digests(64), 1);
    let begins = |host: &HostId| plan(&list, host, |_| false).fetch[0].index;
    let firsts: BTreeSet<_> = (0..64).map(|number| begins(&host(number))).collect();
    // 64 hosts that choose at random begin at 40 of 64 pieces.
    assert!(firsts.len() > 30, "{}", firsts.len());
    assert_eq!(begins(&host(1)), begins(&host(1)));
}

proptest! {
    #[test]
    fn plan_is_the_missing_pieces_rotated(count in 1u32..40, have: u64, number: u32, last in 1..=PIECE) {
        let all = digests(count);
        let list = list(&all, last);
        let has = |index: usize| (have >> index) & 1 == 1;
        let found = plan(&list, &host(number), |digest| {
            has(all.iter().position(|other| other == digest).unwrap())
        });
        let indexes: Vec<_> = found.fetch.iter().map(|piece| piece.index).collect();
        let missing: BTreeSet<_> = (0..all.len()).filter(|index| !has(*index)).collect();
        prop_assert_eq!(indexes.iter().copied().collect::<BTreeSet<_>>(), missing);
        let descents = indexes.windows(2).filter(|pair| pair[0] > pair[1]).count();
        prop_assert!(descents <= 1, "{:?}", indexes);
        prop_assert_eq!(found.bytes, found.fetch.iter().map(|piece| piece.size).sum::<u64>());
        prop_assert!(found.bytes <= found.total);
        for piece in &found.fetch {
            prop_assert_eq!(piece.sha256, all[piece.index]);
        }
    }
}
