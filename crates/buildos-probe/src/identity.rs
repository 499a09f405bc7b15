//! Defines the hardware address and the interface names of the probe.

use buildos_types::MacAddress;

/// Hardware address on br1, locally administered. It is fixed, so that all probes share
/// one lease.
pub const MAC: MacAddress = MacAddress([0x02, 0xbd, 0x00, 0x50, 0x52, 0x42]);

/// Host's end of the veth pair.
pub const INTERFACE: &str = "buildos-probe";

/// Probe's end of the veth pair.
pub(crate) const PROBE_END: &str = "eth0";
