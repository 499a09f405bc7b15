//! The kernel of [`buildos_netd::kernel::fake`], with fixed indices and addresses.

use buildos_netd::kernel::fake;
use buildos_netd::mac::MacAddress;
use buildos_netd::observed::Link;
use buildos_netd::plan::{Observed, Op, PUBLIC_BRIDGE};
use buildos_types::MacAddress;

/// Index that br0 gets.
pub(crate) const BR0: u32 = 10;
/// Index that br1 gets.
pub(crate) const BR1: u32 = 11;

/// A NIC that nobody has touched.
pub(crate) fn link(index: u32, name: &str) -> Link {
    Link {
        mac: Some(MacAddress([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])),
        ..fake::nic(index, name)
    }
}

/// Does one operation.
pub(crate) fn apply(observed: &mut Observed, op: &Op) {
    let public = matches!(op, Op::CreateBridge(PUBLIC_BRIDGE, _));
    let created = if public { BR0 } else { BR1 };
    fake::apply(observed, op, created);
}
