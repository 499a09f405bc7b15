//! Errors of reading or replacing tables in nf_tables.

use std::io;

use crate::netlink::TIMEOUT;

/// nf_tables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The process has no file descriptor left, or its sandbox forbids
    /// AF_NETLINK.
    #[error("cannot open an nfnetlink socket")]
    Open(#[source] io::Error),
    /// Sending or receiving failed.
    #[error("lost the connection to nf_tables")]
    Disconnected(#[source] io::Error),
    /// The kernel refused an object, and with it the transaction.
    #[error("nf_tables refused {object}; is the kernel module for it loaded?")]
    Refused {
        /// The object, as nft(8) writes it.
        object: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer in time.
    #[error("nf_tables did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// An answer of the kernel cannot be parsed.
    #[error("cannot parse an answer of nf_tables")]
    Malformed(#[source] netlink_packet_core::DecodeError),
    /// The kernel returns a different table than the one just installed.
    #[error("table inet {table} reads back different from the one installed: {difference}")]
    ReadBack {
        /// Name of the table.
        table: String,
        /// The first difference.
        difference: String,
    },
    /// Each attempt to read the ruleset met a commit of another process.
    #[error("the ruleset changes faster than it can be read")]
    Unstable,
}
