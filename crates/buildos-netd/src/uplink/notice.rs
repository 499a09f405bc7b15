//! Defines the decisions of the election that are not events of a DHCP client.

use std::net::Ipv4Addr;

use buildos_dhcp::Lease;
use buildos_types::{InterfaceName, MacAddress};
use ipnet::Ipv4Net;

/// A decision about a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Another NIC took br0 over. The lease of this NIC ended.
    Replaced {
        /// The former lease of br0.
        lease: Box<Lease>,
        /// The NIC that is the port of br0 now.
        by: InterfaceName,
        /// The reason, for operators.
        reason: String,
    },
    /// Neither server nor gateway confirmed the lease, which ended with an offer of a
    /// different network.
    Moved {
        /// The former lease.
        lease: Box<Lease>,
        /// The server of the offer.
        server: Ipv4Addr,
        /// The network of the offer.
        network: Ipv4Net,
    },
    /// No server grants a lease; br0 has the static address.
    FallbackUsed(Box<Lease>),
    /// The lease expired; br0 keeps its address.
    Kept(Box<Lease>),
    /// Another host has the static address, or that of the expired lease. br0 does not have it.
    FallbackClaimed {
        #[allow(missing_docs)]
        address: Ipv4Addr,
        /// Hardware address of the other host.
        by: MacAddress,
    },
    /// A server granted a lease with a different address than br0 had without it.
    FallbackEnded {
        /// The former address.
        address: Ipv4Addr,
        /// The address of the lease.
        granted: Ipv4Addr,
    },
    /// The NIC took br0 over with its lease, as it is on the same LAN as the former port.
    TakenOver {
        /// The lease of br0.
        lease: Box<Lease>,
        /// The former port of br0.
        from: InterfaceName,
        /// The reason to leave it, for operators.
        reason: &'static str,
        /// The proof that both are on one LAN, for operators.
        confirmed_by: &'static str,
    },
    /// No server grants a lease. The NIC becomes the port of br0 for IPv6.
    Ipv6Only,
    /// The gateway of br0 answered ARP before, and does not any more.
    GatewaySilent(Ipv4Addr),
    /// The gateway of br0 answers ARP again.
    GatewayAnswers(Ipv4Addr),
}
