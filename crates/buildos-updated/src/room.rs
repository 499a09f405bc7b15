//! Reckons the room that a machine needs on its volume. Pure.

use buildos_channel::model::Machine;
use buildos_channel::plan::Candidate;

/// The free part of a volume that stays free, in percent: btrfs needs room to change
/// anything, and tasks need it. Below 5 %, buildos-agentd drains agents.
pub const RESERVE_PERCENT: u64 = 10;
/// An increment of compressed data becomes at most so many times its size.
const GROWTH: u64 = 4;

/// The room of a volume in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Room {
    pub size: u64,
    pub free: u64,
}

/// A volume has too little room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs {} on the volume, which has {} free, of which {} stay free",
    buildos_service::text::size(*need),
    buildos_service::text::size(room.free),
    buildos_service::text::size(room.reserve())
)]
pub struct TooLittle {
    #[allow(missing_docs)]
    pub need: u64,
    #[allow(missing_docs)]
    pub room: Room,
}

impl Room {
    /// Returns the bytes that stay free.
    #[must_use]
    pub const fn reserve(&self) -> u64 {
        self.size / 100 * RESERVE_PERCENT
    }

    /// Checks that `need` bytes fit.
    ///
    /// # Errors
    ///
    /// Less than the reserve would be free afterwards.
    pub const fn check(self, need: u64) -> Result<(), TooLittle> {
        match need.saturating_add(self.reserve()) <= self.free {
            true => Ok(()),
            false => Err(TooLittle { need, room: self }),
        }
    }
}

/// Returns the bytes that the files of a machine take at most, if it comes by `candidate`.
#[must_use]
pub fn unpacked(machine: &Machine, candidate: &Candidate) -> u64 {
    match candidate.from {
        None => machine.size,
        Some(_) => machine
            .size
            .min(candidate.stream.size.saturating_mul(GROWTH)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::Digest;
    use buildos_channel::model::{Kind, Stream};

    #[test]
    fn reserve_stays_free() {
        let room = Room {
            size: 1000,
            free: 500,
        };
        assert_eq!(room.check(400), Ok(()));
        assert_eq!(room.check(401), Err(TooLittle { need: 401, room }));
        assert!(Room::default().check(u64::MAX).is_err());
        let error = TooLittle {
            need: 3 << 30,
            room: Room {
                size: 100 << 30,
                free: 2 << 30,
            },
        };
        assert_eq!(
            error.to_string(),
            "it needs 3.00 GiB on the volume, which has 2.00 GiB free, of which 10.0 GiB stay free"
        );
    }

    #[test]
    fn increment_needs_less_than_the_whole() {
        let stream = |size| Stream {
            size,
            pieces: Digest::of(b""),
        };
        let machine = Machine {
            kind: Kind::Machine,
            name: "m".parse().unwrap(),
            revision: 1,
            id: Digest::of(b""),
            size: 1000,
            whole: stream(400),
            increments: Vec::new(),
        };
        let by = |from, size| Candidate {
            from,
            stream: stream(size),
        };
        assert_eq!(unpacked(&machine, &by(None, 400)), 1000);
        assert_eq!(unpacked(&machine, &by(Some(Digest::of(b"")), 10)), 40);
        assert_eq!(unpacked(&machine, &by(Some(Digest::of(b"")), 300)), 1000);
    }
}
