//! `org.build2.buildos.nat1` of buildos-natd: NAT, DHCP and DNS for the machines on
//! br1.

use std::collections::HashMap;

use serde::Deserialize;
use zbus::zvariant::{Type, as_value};

use crate::string_enum::string_enum;
use crate::watch::{Snapshot, Watch};

/// Bus name of buildos-natd.
pub const NAME: &str = "org.build2.buildos.nat1";
/// Object that serves [`ManagerProxy`].
pub const PATH: &str = "/org/build2/buildos/nat1";

string_enum! {
    /// State of the network for machines on br1.
    State("nat1 state") {
        /// A requirement is missing: the network of br1, its dnsmasq, an uplink, or the
        /// first probe.
        Waiting = "waiting",
        /// The table is installed, forwarding is on, dnsmasq serves br1, and a
        /// probe has passed.
        Active = "active",
        /// A part does not work; the reason names it.
        Degraded = "degraded",
    }
}

string_enum! {
    /// State of the probe, which measures the network of br1.
    ProbeState("nat1 probe state") {
        /// The configuration switches probes off.
        Off = "off",
        /// No probe has ended since the last change.
        Pending = "pending",
        /// The last probe passed.
        Passed = "passed",
        /// The last probe failed.
        Failed = "failed",
    }
}

string_enum! {
    /// A resource that machines share.
    Resource("nat1 resource") {
        /// Addresses of the private network.
        Addresses = "addresses",
        /// Connections that the kernel tracks.
        Connections = "connections",
        /// Connections that one machine may have.
        MachineConnections = "machine-connections",
        /// Names that one machine may ask for.
        Names = "names",
    }
}

/// NAT, DHCP and DNS on br1.
#[zbus::proxy(
    interface = "org.build2.buildos.nat1.Manager",
    default_service = "org.build2.buildos.nat1",
    default_path = "/org/build2/buildos/nat1",
    gen_blocking = false
)]
pub trait Manager {
    /// A [`State`].
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// One line for operators: what is active, or what is missing.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// True in state `active`.
    #[zbus(property)]
    fn ready(&self) -> zbus::Result<bool>;
    /// True once natd has installed table `inet buildos` and read it back.
    #[zbus(property)]
    fn table_installed(&self) -> zbus::Result<bool>;
    /// True while dnsmasq serves the private bridge.
    #[zbus(property, name = "DHCPServing")]
    fn dhcp_serving(&self) -> zbus::Result<bool>;
    /// Address of the host on the private bridge with its prefix, or empty.
    #[zbus(property)]
    fn private_network(&self) -> zbus::Result<String>;
    /// First and last address of dnsmasq's pool, or empty.
    #[zbus(property, name = "DHCPRange")]
    fn dhcp_range(&self) -> zbus::Result<Vec<String>>;
    /// Name servers that dnsmasq forwards queries to.
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> zbus::Result<Vec<String>>;
    /// Chains of other tables that drop packets of machines, one line each.
    #[zbus(property)]
    fn foreign_drops(&self) -> zbus::Result<Vec<String>>;
    /// Chains of other tables that can drop packets of machines, depending on
    /// conditions that natd does not evaluate. Empty while probes pass.
    #[zbus(property)]
    fn foreign_suspects(&self) -> zbus::Result<Vec<String>>;
    /// True if bridged frames of br1 pass iptables.
    #[zbus(property)]
    fn bridge_netfilter(&self) -> zbus::Result<bool>;
    /// A [`ProbeState`].
    #[zbus(property)]
    fn probe(&self) -> zbus::Result<String>;
    /// The step that the last probe failed at (`link`, `lease`, `names`,
    /// `outside`), or empty.
    #[zbus(property)]
    fn probe_step(&self) -> zbus::Result<String>;
    /// Result of the last probe, on one line, or empty.
    #[zbus(property)]
    fn probe_result(&self) -> zbus::Result<String>;
    /// End of the last probe (microseconds, CLOCK_REALTIME), or 0.
    #[zbus(property, name = "ProbeUSec")]
    fn probe_usec(&self) -> zbus::Result<u64>;
    /// Each [`Resource`] that is nearly used up, with one line for operators.
    #[zbus(property)]
    fn shortages(&self) -> zbus::Result<HashMap<String, String>>;
    /// Errors in the configuration, one line each; empty if there are none.
    #[zbus(property)]
    fn configuration_problems(&self) -> zbus::Result<Vec<String>>;
}

/// Use of br1. natd reads the values for each call, and signals no changes.
#[zbus::proxy(
    interface = "org.build2.buildos.nat1.Usage",
    default_service = "org.build2.buildos.nat1",
    default_path = "/org/build2/buildos/nat1",
    gen_blocking = false
)]
pub trait Usage {
    /// Machines with a lease: address, hardware address, end of the lease
    /// (seconds since 1970, 0 for never).
    #[zbus(property(emits_changed_signal = "false"))]
    fn machines(&self) -> zbus::Result<Vec<(String, String, u64)>>;
    /// Packets and bytes for each kind of rule, since the table was installed. `new
    /// connections` counts one packet for each connection.
    #[zbus(property(emits_changed_signal = "false"))]
    fn counters(&self) -> zbus::Result<HashMap<String, (u64, u64)>>;
    /// Number and limit of connections tracked by the kernel, including the host's own.
    #[zbus(property(emits_changed_signal = "false"))]
    fn tracked_connections(&self) -> zbus::Result<(u32, u32)>;
}

/// Ports of machines that are open on br0. Only root calls the methods.
#[zbus::proxy(
    interface = "org.build2.buildos.nat1.Ports",
    default_service = "org.build2.buildos.nat1",
    default_path = "/org/build2/buildos/nat1",
    gen_blocking = false
)]
pub trait Ports {
    /// Opens a TCP port of the machine at a port of br1 for some seconds. `outside` is the
    /// port of br0, or 0 for any. Returns the port of br0, and the end (microseconds,
    /// CLOCK_REALTIME).
    fn open_port(
        &self,
        link: &str,
        port: u16,
        outside: u16,
        seconds: u32,
    ) -> zbus::Result<(u16, u64)>;
    /// Closes a port of br0, and ends its connections.
    fn close_port(&self, outside: u16) -> zbus::Result<()>;
    /// The open ports: port of br0, address of the machine, its port of br1, its TCP port,
    /// end (microseconds, CLOCK_REALTIME).
    #[zbus(property)]
    fn open_ports(&self) -> zbus::Result<Vec<(u16, String, String, u16, u64)>>;
}

/// Properties of [`ManagerProxy`] that other daemons use, read in one call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
pub struct Nat {
    /// A [`State`], or empty.
    #[serde(with = "as_value")]
    pub state: String,
    /// One line for operators.
    #[serde(with = "as_value")]
    pub reason: String,
    /// True in state `active`.
    #[serde(with = "as_value")]
    pub ready: bool,
}

impl Snapshot for Nat {
    const INTERFACE: &'static str = "org.build2.buildos.nat1.Manager";
    const CACHED: bool = true;
}

/// Follows natd.
///
/// # Errors
///
/// As [`Watch::new`].
pub async fn watch(connection: &zbus::Connection) -> zbus::Result<Watch<Nat>> {
    Watch::new(connection, NAME, PATH).await
}
