//! `org.build2.buildos.hostname1` of buildos-hostnamed: the name of the host and its
//! source.

use serde::Deserialize;
use zbus::zvariant::{Type, as_value};

use crate::string_enum::string_enum;
use crate::watch::{Snapshot, Watch};

/// Bus name of buildos-hostnamed.
pub const NAME: &str = "org.build2.buildos.hostname1";
/// Object that serves [`ManagerProxy`].
pub const PATH: &str = "/org/build2/buildos/hostname1";

string_enum! {
    /// Source of the name, in order of preference.
    Source("hostname1 source") {
        /// An administrator's name (`/etc/hostname`, hostnamectl(1)), which hostnamed keeps.
        Static = "static",
        /// Configuration: `hostname` in a file or `buildos.hostname=`.
        Configuration = "configuration",
        /// DHCP option 81.
        DhcpFqdn = "dhcp-fqdn",
        /// DHCP option 12.
        DhcpHostname = "dhcp-hostname",
        /// `build-` and the last ten hexadecimal digits of the uplink's MAC.
        Mac = "mac",
        /// There is no name yet.
        None = "none",
    }
}

/// The name and its source.
#[zbus::proxy(
    interface = "org.build2.buildos.hostname1.Manager",
    default_service = "org.build2.buildos.hostname1",
    default_path = "/org/build2/buildos/hostname1",
    gen_blocking = false
)]
pub trait Manager {
    /// The active name, read back from systemd-hostnamed; empty until hostnamed has
    /// chosen one.
    #[zbus(property)]
    fn hostname(&self) -> zbus::Result<String>;
    /// A [`Source`].
    #[zbus(property)]
    fn source(&self) -> zbus::Result<String>;
    /// One line for operators: the reason for this name, or what hostnamed waits for.
    #[zbus(property)]
    fn reason(&self) -> zbus::Result<String>;
    /// Refused names, each with the reason, escaped.
    #[zbus(property)]
    fn refused(&self) -> zbus::Result<Vec<String>>;
    /// Errors in the configuration, one line each; empty if there are none.
    #[zbus(property)]
    fn configuration_problems(&self) -> zbus::Result<Vec<String>>;
}

/// Properties of [`ManagerProxy`] that other daemons use, read in one call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
pub struct Naming {
    /// The active name, or empty.
    #[serde(with = "as_value")]
    pub hostname: String,
    /// A [`Source`], or empty.
    #[serde(with = "as_value")]
    pub source: String,
    /// One line for operators.
    #[serde(with = "as_value")]
    pub reason: String,
}

impl Naming {
    /// Returns true once hostnamed has chosen and set the name.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let source = self.source.parse::<Source>();
        !self.hostname.is_empty() && source.is_ok_and(|source| source != Source::None)
    }
}

impl Snapshot for Naming {
    const INTERFACE: &'static str = "org.build2.buildos.hostname1.Manager";
    const CACHED: bool = true;
}

/// Follows hostnamed.
///
/// # Errors
///
/// As [`Watch::new`].
pub async fn watch(connection: &zbus::Connection) -> zbus::Result<Watch<Naming>> {
    Watch::new(connection, NAME, PATH).await
}
