//! `org.build2.buildos.nat1`, served by buildos-natd: NAT, DHCP and DNS for
//! the machines on br1.

use serde::Deserialize;
use zbus::zvariant::{Type, as_value};

use crate::watch::{Snapshot, Watch};
use crate::words::words;

/// Bus name of buildos-natd.
pub const NAME: &str = "org.build2.buildos.nat1";
/// Object that serves [`ManagerProxy`].
pub const PATH: &str = "/org/build2/buildos/nat1";

words! {
    /// Whether a machine on br1 could work now.
    State("nat1 state") {
        /// br1 has no network yet, or its dnsmasq does not run yet.
        Waiting = "waiting",
        /// The table is installed, forwarding is on, dnsmasq serves br1.
        Active = "active",
        /// A part does not work; the reason says which.
        Degraded = "degraded",
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
    /// One line for people: what is in force, or what is missing.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// True in state `active`.
    #[zbus(property)]
    fn ready(&self) -> zbus::Result<bool>;
    /// Whether table `inet buildos` was installed and read back.
    #[zbus(property)]
    fn table_installed(&self) -> zbus::Result<bool>;
    /// Whether dnsmasq serves the private bridge.
    #[zbus(property, name = "DHCPServing")]
    fn dhcp_serving(&self) -> zbus::Result<bool>;
    /// Address of the host on the private bridge with its prefix, or empty.
    #[zbus(property)]
    fn private_network(&self) -> zbus::Result<String>;
    /// First and last address that dnsmasq hands out, or empty.
    #[zbus(property, name = "DHCPRange")]
    fn dhcp_range(&self) -> zbus::Result<Vec<String>>;
    /// Name servers that dnsmasq forwards to.
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> zbus::Result<Vec<String>>;
    /// Errors in the configuration, one line each; empty when it is sound.
    #[zbus(property)]
    fn configuration_problems(&self) -> zbus::Result<Vec<String>>;
}

/// The properties of [`ManagerProxy`] that other daemons act on, read at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
pub struct Nat {
    /// A [`State`], or empty.
    #[serde(with = "as_value")]
    pub state: String,
    /// One line for people.
    #[serde(with = "as_value")]
    pub reason: String,
    /// True in state `active`.
    #[serde(with = "as_value")]
    pub ready: bool,
}

impl Snapshot for Nat {
    const INTERFACE: &'static str = "org.build2.buildos.nat1.Manager";
}

/// Follows natd.
///
/// # Errors
///
/// As [`Watch::new`].
pub async fn watch(connection: &zbus::Connection) -> zbus::Result<Watch<Nat>> {
    Watch::new(connection, NAME, PATH).await
}
