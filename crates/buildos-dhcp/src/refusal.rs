//! Lists the defects for which a client refuses an OFFER or an ACK.

use std::net::Ipv4Addr;

use buildos_types::MacAddress;

/// A defect of a server's message.
///
/// With an impossible configuration the host would be off the network for the
/// whole lease. Without it the host can take the next server's OFFER at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Option 54 is missing or malformed.
    #[error("no server identifier (option 54)")]
    NoServer,
    /// Option 54 is an address that no server can have.
    #[error("server identifier {0} is not a host's address")]
    BadServer(Ipv4Addr),
    /// The address is one that no host can have.
    #[error("address {0} is not a host's address")]
    BadAddress(Ipv4Addr),
    /// The address is the server identifier.
    #[error("address {0} is the server's own")]
    ServerAddress(Ipv4Addr),
    /// The ACK grants an address other than the requested one.
    #[error("address {granted} differs from the requested {requested}")]
    OtherAddress {
        /// Address in the REQUEST.
        requested: Ipv4Addr,
        /// Address in the ACK.
        granted: Ipv4Addr,
    },
    /// Option 1 is missing or malformed.
    #[error("no subnet mask (option 1)")]
    NoMask,
    /// Option 1 is not contiguous, or zero.
    #[error("subnet mask {0} is not a prefix")]
    BadMask(Ipv4Addr),
    /// Option 51 is missing or malformed.
    #[error("no lease time (option 51)")]
    NoLeaseTime,
    /// Option 51 is zero.
    #[error("lease time is zero")]
    ZeroLeaseTime,
    /// Option 3 is not a list of addresses.
    #[error("router list (option 3) is malformed")]
    BadRouters,
    /// The default gateway is an address that no other host can have.
    #[error("gateway {0} is not the address of another host")]
    BadGateway(Ipv4Addr),
    /// The server is not in [`Config::allowed_servers`](crate::Config::allowed_servers).
    #[error("server {0} is not allowed by the configuration")]
    ServerNotAllowed(Ipv4Addr),
    /// The address is in [`Config::denied_networks`](crate::Config::denied_networks).
    #[error("address {0} is in a network denied by the configuration")]
    NetworkDenied(Ipv4Addr),
    /// The server's last OFFER led to no lease, less than a minute ago.
    #[error("server {0} did not grant its last OFFER")]
    RecentFailure(Ipv4Addr),
    /// Another host has the address, which the client declined.
    #[error("address {address} is in use by {mac}")]
    InUse {
        /// The address offered.
        address: Ipv4Addr,
        /// Hardware address of the other host.
        mac: MacAddress,
    },
    /// The client holds the maximum number of OFFERs.
    #[error("too many OFFERs are held already")]
    TooManyOffers,
    /// A saved lease was acquired later than now.
    #[error("lease was acquired in the future")]
    AcquiredInFuture,
}
