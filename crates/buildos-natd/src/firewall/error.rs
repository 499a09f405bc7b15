//! Defines the errors of reading and replacing tables in nf_tables.

use std::io;

/// nf_tables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The process has no file descriptor left, or its sandbox forbids
    /// AF_NETLINK.
    #[error("cannot open an nfnetlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused to list objects, or did not answer.
    #[error("cannot read the {objects} of nf_tables")]
    Read {
        /// Kind of the objects.
        objects: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// An object of the kernel cannot be decoded.
    #[error("cannot decode an object of nf_tables")]
    Malformed(#[source] netlink_packet_core::DecodeError),
    /// Another process committed a change during each attempt to read the ruleset.
    #[error("the ruleset changes faster than it can be read")]
    Unstable,
    /// The kernel refused an object, and with it the transaction.
    #[error("nf_tables refused {object}; is the kernel module for it loaded?")]
    Refused {
        /// The object, as nft(8) writes it.
        object: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer to a transaction.
    #[error("cannot commit a transaction to nf_tables")]
    Commit(#[source] io::Error),
    /// The kernel returns a table that differs from the installed table.
    #[error("{table} reads back different from the one installed: {difference}")]
    ReadBack {
        /// The table, as nft(8) writes it.
        table: String,
        /// The first difference.
        difference: String,
    },
    /// The ports of the bridges cannot be listed.
    #[error("cannot list the ports of bridges")]
    Ports(#[source] io::Error),
    /// Receiving notifications failed.
    #[error("lost the notifications of nf_tables")]
    Disconnected(#[source] io::Error),
}

impl FirewallError {
    /// Returns true if the kernel does not have what a rule uses.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Refused { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT))
            }
            Self::Open(_)
            | Self::Read { .. }
            | Self::Malformed(_)
            | Self::Unstable
            | Self::Commit(_)
            | Self::ReadBack { .. }
            | Self::Ports(_)
            | Self::Disconnected(_) => false,
        }
    }
}
