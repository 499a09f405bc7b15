//! Defines the decisions of the election that are not events of a DHCP client.

use std::net::Ipv4Addr;

use buildos_dhcp::Lease;
use buildos_types::InterfaceName;
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
    /// The gateway of br0 answered ARP before, and does not any more.
    GatewaySilent(Ipv4Addr),
    /// The gateway of br0 answers ARP again.
    GatewayAnswers(Ipv4Addr),
}
