//! Accepts or refuses a channel file whose signature was verified.
//!
//! | attack | refused because |
//! |---|---|
//! | a file of another channel | [`Refusal::OtherChannel`] |
//! | an old file that a mirror kept | [`Refusal::SerialWentDown`], [`Refusal::Expired`] |
//! | a file that hides every newer one | [`Refusal::Expired`], [`Refusal::ValidTooLong`] |
//! | two files with one serial for different hosts | [`Refusal::SameSerial`] |
//! | a host whose clock was never set | [`Refusal::ClockNotSet`] |
//! | one stolen key of several | [`Refusal::TooFewSignatures`] |

use crate::digest::Digest;
use crate::model::Channel;
use crate::name::Name;
use crate::time::Timestamp;

/// Longest time in days from now to `valid_until`: a file that is valid for years lets a
/// mirror hide every newer one.
pub const LONGEST_VALIDITY_DAYS: u32 = 400;

/// The clock of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// It was not set from a trusted source since boot.
    NotSet,
    /// The current time.
    Set(Timestamp),
}

/// What a host requires of a channel file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Name of the channel that the host follows.
    pub name: Name,
    /// Signatures of different keys, at least 1; 0 counts as 1.
    pub signatures: u8,
}

/// A file with a verified signature.
#[derive(Debug, Clone, Copy)]
pub struct Verified<'a> {
    /// What the signed text says.
    pub channel: &'a Channel,
    /// Digest of the signed text.
    pub digest: Digest,
    /// Valid signatures of different keys that the host trusts.
    pub signatures: u8,
}

/// The file that a host accepted last. It must survive a reboot to be of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    #[allow(missing_docs)]
    pub serial: u64,
    /// Digest of the signed text.
    pub digest: Digest,
}

/// A channel file that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is newer than the last one.
    New(Accepted),
    /// It is the last one.
    Unchanged,
}

/// The reason to refuse a channel file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("{found} valid signatures, and {required} are required; promote it with more keys")]
    TooFewSignatures { found: u8, required: u8 },
    #[error(
        "the clock of this host is not set, so the validity of the channel is not known; look at timedatectl timesync-status"
    )]
    ClockNotSet,
    #[error(
        "it is the file of channel {found}, not of {expected}; copy the right file to the server"
    )]
    OtherChannel { found: Name, expected: Name },
    #[error("it expired at {valid_until}; promote it again")]
    Expired { valid_until: Timestamp },
    #[error(
        "it is valid until {valid_until}, which is more than {LONGEST_VALIDITY_DAYS} days away; promote it for fewer days"
    )]
    ValidTooLong { valid_until: Timestamp },
    #[error(
        "its serial {found} is lower than {accepted}, which this host has accepted; copy the newest channel to the server"
    )]
    SerialWentDown { found: u64, accepted: u64 },
    #[error(
        "this host has accepted a different file with the same serial {serial}; promote the draft again, at one desk"
    )]
    SameSerial { serial: u64 },
}

/// Judges a channel file. `last` is the file that the host accepted last.
///
/// # Errors
///
/// Returns the first reason to refuse the file.
pub fn judge(
    file: Verified<'_>,
    terms: &Terms,
    last: Option<Accepted>,
    clock: Clock,
) -> Result<Verdict, Refusal> {
    let channel = file.channel;
    let required = terms.signatures.max(1);
    if file.signatures < required {
        return Err(Refusal::TooFewSignatures {
            found: file.signatures,
            required,
        });
    }
    let Clock::Set(now) = clock else {
        return Err(Refusal::ClockNotSet);
    };
    if channel.name != terms.name {
        return Err(Refusal::OtherChannel {
            found: channel.name.clone(),
            expected: terms.name.clone(),
        });
    }
    let valid_until = channel.valid_until;
    if valid_until <= now {
        return Err(Refusal::Expired { valid_until });
    }
    if valid_until > now.plus_days(LONGEST_VALIDITY_DAYS) {
        return Err(Refusal::ValidTooLong { valid_until });
    }
    let accepted = Accepted {
        serial: channel.serial,
        digest: file.digest,
    };
    match last {
        Some(last) if accepted.serial < last.serial => Err(Refusal::SerialWentDown {
            found: accepted.serial,
            accepted: last.serial,
        }),
        Some(last) if accepted == last => Ok(Verdict::Unchanged),
        Some(last) if accepted.serial == last.serial => Err(Refusal::SameSerial {
            serial: last.serial,
        }),
        Some(_) | None => Ok(Verdict::New(accepted)),
    }
}
