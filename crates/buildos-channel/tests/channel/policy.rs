//! Files that a host accepts and refuses.

use buildos_channel::model::Channel;
use buildos_channel::policy::{Accepted, Clock, Refusal, Terms, Verdict, Verified, judge};
use buildos_channel::{Digest, Timestamp, write};
use proptest::prelude::*;

use crate::sample::{channel, name, time};

fn terms() -> Terms {
    Terms {
        name: name("stable"),
        signatures: 2,
    }
}

fn digest(channel: &Channel) -> Digest {
    Digest::of(write::text(channel).as_bytes())
}

fn verified(channel: &Channel) -> Verified<'_> {
    Verified {
        channel,
        digest: digest(channel),
        signatures: 2,
    }
}

fn now() -> Clock {
    Clock::Set(time("2027-01-01T00:00:00Z"))
}

#[test]
fn newer_file_is_accepted_and_same_file_is_unchanged() {
    let channel = channel();
    let accepted = Accepted {
        serial: 42,
        digest: digest(&channel),
    };
    let judged = |last| judge(verified(&channel), &terms(), last, now());
    assert_eq!(judged(None), Ok(Verdict::New(accepted)));
    assert_eq!(judged(Some(accepted)), Ok(Verdict::Unchanged));
    let before = Accepted {
        serial: 41,
        digest: Digest::of(b""),
    };
    assert_eq!(judged(Some(before)), Ok(Verdict::New(accepted)));
}

#[test]
fn serial_never_goes_down() {
    let last = Accepted {
        serial: 43,
        digest: Digest::of(b""),
    };
    let refusal = judge(verified(&channel()), &terms(), Some(last), now()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "its serial 42 is lower than 43, which this host has accepted; copy the newest channel to \
         the server"
    );
}

#[test]
fn different_file_with_same_serial_is_refused() {
    let last = Accepted {
        serial: 42,
        digest: Digest::of(b""),
    };
    let refusal = judge(verified(&channel()), &terms(), Some(last), now());
    assert_eq!(refusal, Err(Refusal::SameSerial { serial: 42 }));
}

#[test]
fn validity_needs_clock_and_ends_in_time() {
    let channel = channel();
    let judged = |clock| judge(verified(&channel), &terms(), None, clock);
    assert_eq!(judged(Clock::NotSet), Err(Refusal::ClockNotSet));
    let at = |text: &str| Clock::Set(time(text));
    assert!(judged(at("2027-01-31T11:59:59Z")).is_ok());
    let expired = judged(at("2027-01-31T12:00:00Z")).unwrap_err();
    assert_eq!(
        expired.to_string(),
        "it expired at 2027-01-31T12:00:00Z; promote it again"
    );
    assert!(judged(at("2025-12-27T12:00:00Z")).is_ok());
    let too_long = judged(at("2025-12-27T11:59:59Z")).unwrap_err();
    assert!(
        matches!(too_long, Refusal::ValidTooLong { .. }),
        "{too_long}"
    );
}

#[test]
fn file_of_other_channel_is_refused() {
    let terms = Terms {
        name: name("canary"),
        ..terms()
    };
    let refusal = judge(verified(&channel()), &terms, None, now()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "it is the file of channel stable, not of canary; copy the right file to the server"
    );
}

#[test]
fn too_few_signatures_are_refused_and_zero_is_never_enough() {
    let channel = channel();
    let judged = |signatures, required| {
        let file = Verified {
            signatures,
            ..verified(&channel)
        };
        let terms = Terms {
            signatures: required,
            ..terms()
        };
        judge(file, &terms, None, now())
    };
    assert!(judged(2, 2).is_ok() && judged(3, 2).is_ok() && judged(1, 0).is_ok());
    assert_eq!(
        judged(1, 2).unwrap_err().to_string(),
        "1 valid signatures, and 2 are required; promote it with more keys"
    );
    assert!(judged(0, 0).is_err());
}

proptest! {
    /// A host that sees any files in any order only ever goes up, and never takes two
    /// files with one serial.
    #[test]
    fn accepted_serials_only_grow(
        files in proptest::collection::vec((1u64..6, 0u8..3, 0u64..4, 1u8..4), 1..40)
    ) {
        let start = time("2027-01-01T00:00:00Z").seconds();
        let mut last: Option<Accepted> = None;
        for (serial, percent, day, signatures) in files {
            let mut channel = channel();
            channel.serial = serial;
            channel.rollout.since = 1;
            channel.rollout.percent = percent;
            channel.valid_until = Timestamp::from_seconds(start + 2 * 86_400);
            let file = Verified { signatures, ..verified(&channel) };
            let clock = Clock::Set(Timestamp::from_seconds(start + day * 86_400));
            match judge(file, &terms(), last, clock) {
                Ok(Verdict::New(accepted)) => {
                    prop_assert!(last.is_none_or(|last| last.serial < accepted.serial));
                    prop_assert!(signatures >= 2 && day < 2);
                    last = Some(accepted);
                }
                Ok(Verdict::Unchanged) => {
                    prop_assert_eq!(last.map(|last| last.digest), Some(digest(&channel)));
                }
                Err(_) => {}
            }
        }
    }
}
