//! Defines the decisions of the election that are not events of a DHCP client.

use buildos_dhcp::Lease;
use buildos_types::InterfaceName;

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
}
