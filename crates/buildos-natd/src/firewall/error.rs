//! Errors of the conversation with nf_tables.

use std::io;

/// The kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No socket: out of file descriptors, or the sandbox forbids AF_NETLINK.
    #[error("cannot open an nfnetlink socket")]
    Socket(#[source] io::Error),
    /// The socket failed in the middle.
    #[error("lost the conversation with nf_tables")]
    Conversation(#[source] io::Error),
    /// The kernel refused one object, and with it the whole transaction.
    #[error("nf_tables refused {object}; is the kernel's module for it there?")]
    Refused {
        /// The object, as `nft` writes it.
        object: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer in time.
    #[error("nf_tables did not answer within {} s", crate::netlink::TIMEOUT.as_secs())]
    Timeout,
    /// What the kernel said makes no sense to us.
    #[error("cannot understand what nf_tables says")]
    Malformed(#[source] netlink_packet_core::DecodeError),
    /// What was installed is not what stands.
    #[error("table inet {table} does not read back as it was installed: {difference}")]
    Different {
        /// Name of the table.
        table: String,
        /// The first difference.
        difference: String,
    },
    /// The ruleset changed each time while it was being read.
    #[error("the ruleset changes faster than it can be read")]
    Restless,
}
