//! Defines what a channel file says.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::name::Name;
use crate::time::Timestamp;

/// The version of the format that this crate reads. It grows only if a host that ignores
/// new keys would do harm.
pub const FORMAT: u64 = 1;

/// The limits of a channel file. A file beyond them is refused before it takes memory.
#[derive(Debug)]
pub struct Limits;

impl Limits {
    /// Bytes of the text. 500 machines with two increments each fit.
    pub const TEXT: usize = 512 * 1024;
    /// Machines: what fits into one request of bbot-agent to a controller.
    pub const MACHINES: usize = 500;
    /// Agents, and toolchains.
    pub const PROGRAMS: usize = 32;
    /// Increments of a machine.
    pub const INCREMENTS: usize = 2;
    /// Greatest serial, and revision: a mistyped one leaves room for the next.
    pub const NUMBER: u64 = 999_999_999;
    /// Bytes of an agent that a host takes: without a disk it is in RAM.
    pub const EXTENSION: u64 = 256 << 20;
    /// Bytes of a stream, an object, or a machine: 1 TiB.
    pub const SIZE: u64 = 1 << 40;
}

/// A channel: what the hosts of a farm run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Name, equal to that of the file: a host takes no file of another channel.
    pub name: Name,
    /// Number of the publication, from 1; never goes down.
    pub serial: u64,
    /// End of validity: a server cannot hold hosts back with an old file any longer.
    pub valid_until: Timestamp,
    /// The operating system.
    pub os: Option<Os>,
    /// Agents, by name.
    pub agents: Vec<Agent>,
    /// Toolchains, by name.
    pub toolchains: Vec<Toolchain>,
    /// Build machines, by name.
    pub machines: Vec<Machine>,
    /// Which hosts take this publication already.
    pub rollout: Rollout,
}

/// A file `objects/<sha256>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Object {
    pub sha256: Digest,
    /// In bytes.
    pub size: u64,
}

/// The two files of the operating system.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Os {
    pub version: Name,
    /// `buildos-image`.
    pub image: Object,
    /// `buildos-initrd`.
    pub initrd: Object,
}

/// An agent as a system extension.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Agent {
    pub name: Name,
    pub version: Name,
    pub extension: Object,
}

/// A toolchain, by the file `toolchain.sha256` that names all of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Toolchain {
    pub name: Name,
    pub version: Name,
    pub list: Object,
}

/// A build machine: a tree of files, as streams of btrfs-send(8) compressed by zstd(1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    #[allow(missing_docs)]
    pub name: Name,
    #[allow(missing_docs)]
    pub kind: Kind,
    /// Number of the revision, from 1.
    pub revision: u64,
    /// Content id: equal ids are equal files, whichever stream brought them.
    pub id: Digest,
    /// Sum of the sizes of its files in bytes.
    pub size: u64,
    /// The stream that needs nothing on the host.
    pub whole: Stream,
    /// Streams that need a previous revision.
    pub increments: Vec<Increment>,
}

/// Program that runs a build machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// bbot-agent, which lists the machines of a volume itself.
    #[default]
    Machine,
    /// systemd-nspawn(1), usually as a program of the build slave.
    Container,
}

/// A text is not a [`Kind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither \"machine\" nor \"container\"")]
pub struct InvalidKind;

impl Kind {
    /// Returns the kind as a channel file has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Container => "container",
        }
    }
}

impl FromStr for Kind {
    type Err = InvalidKind;

    fn from_str(text: &str) -> Result<Self, InvalidKind> {
        let all = [Self::Machine, Self::Container];
        let found = all.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or(InvalidKind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A stream in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// Bytes of all pieces.
    pub size: u64,
    /// The object with the list of pieces, see [`crate::pieces::PieceList`].
    pub pieces: Digest,
}

/// A stream that makes a machine from a previous revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Increment {
    /// Content id of the previous revision.
    pub from: Digest,
    #[allow(missing_docs)]
    pub stream: Stream,
}

/// Which hosts take a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollout {
    /// Percentage of the hosts, 0 to 100.
    pub percent: u8,
    /// Serial with which the rollout began. It chooses the hosts, so that a host keeps its
    /// place while the percentage grows.
    pub since: u64,
}
