//! Why an OFFER or an ACK is not taken.

use std::net::Ipv4Addr;

use crate::Mac;
use crate::text::mac as mac_text;

/// What is wrong with a configuration that a server sent.
///
/// A host that takes impossible data is off the network for as long as the
/// lease runs; one that refuses it hears the next server a moment later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No usable option 54.
    #[error("no server identifier (option 54)")]
    NoServer,
    /// Option 54 is not an address that a server can have.
    #[error("server identifier {0} is not a host's address")]
    BadServer(Ipv4Addr),
    /// The address is not one that a host can have.
    #[error("address {0} is not a host's address")]
    BadAddress(Ipv4Addr),
    /// The address is the server's own.
    #[error("address {0} is the server's own")]
    ServersOwn(Ipv4Addr),
    /// An ACK for another address than the one asked for.
    #[error("address {got} is not {asked}, which was asked for")]
    OtherAddress {
        /// In the REQUEST.
        asked: Ipv4Addr,
        /// In the ACK.
        got: Ipv4Addr,
    },
    /// No usable option 1.
    #[error("no subnet mask (option 1)")]
    NoMask,
    /// Option 1 has holes or is empty.
    #[error("subnet mask {0} is not a prefix")]
    BadMask(Ipv4Addr),
    /// No usable option 51.
    #[error("no lease time (option 51)")]
    NoLeaseTime,
    /// Option 51 is zero.
    #[error("lease time is zero")]
    ZeroLeaseTime,
    /// Option 3 is there, but it is no list of addresses.
    #[error("router list (option 3) is malformed")]
    BadRouters,
    /// The default gateway cannot be reached from the address.
    #[error("gateway {0} is not on the link")]
    GatewayOffLink(Ipv4Addr),
    /// The server is not in the configured list.
    #[error("server {0} is not allowed by the configuration")]
    ServerNotAllowed(Ipv4Addr),
    /// The address is in a network that the configuration denies.
    #[error("address {0} is in a network denied by the configuration")]
    NetworkDenied(Ipv4Addr),
    /// The server did not keep its word a moment ago.
    #[error("server {0} is shunned: its last OFFER was not kept")]
    Shunned(Ipv4Addr),
    /// Another host has the address; the server was told by DECLINE.
    #[error("address {address} is in use by {}", mac_text(mac))]
    InUse {
        /// The address offered.
        address: Ipv4Addr,
        /// Hardware address of the other host.
        mac: Mac,
    },
    /// More servers than anybody needs.
    #[error("enough OFFERs are held already")]
    TooMany,
    /// A saved lease says that it begins later than now.
    #[error("lease was acquired in the future")]
    FromTheFuture,
}
