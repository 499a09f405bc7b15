//! Indices, hardware addresses and links of NICs.

#![allow(dead_code)] // Each test uses a part of it.

use buildos_netd::kernel::fake;
use buildos_netd::observed::Link;
use buildos_types::{LinkIndex, MacAddress};

pub(crate) fn index(index: u32) -> LinkIndex {
    LinkIndex::new(index).unwrap()
}

/// Returns the hardware address of a NIC.
pub(crate) fn mac(index: LinkIndex) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, u8::try_from(index.get()).unwrap()])
}

/// Returns a NIC in its initial state.
pub(crate) fn nic(index: LinkIndex, name: &str) -> Link {
    Link {
        mac: Some(mac(index)),
        ..fake::nic(index, name.parse().unwrap())
    }
}
