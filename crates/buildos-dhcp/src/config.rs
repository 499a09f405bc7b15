//! Defines the configuration of a client and the leases that it permits.

use std::net::Ipv4Addr;

use buildos_types::MacAddress;
use ipnet::Ipv4Net;

use crate::client_name::ClientName;
use crate::identity::Identity;
use crate::lease::Lease;
use crate::refusal::Refusal;

/// The configuration of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Hardware address of the link.
    pub mac: MacAddress,
    /// Identification of the client.
    pub identity: Identity,
    /// Name sent to the server.
    pub name: Option<ClientName>,
    /// Accepted server identifiers (option 54); empty accepts all.
    pub allowed_servers: Vec<Ipv4Addr>,
    /// Networks in which no address is accepted.
    pub denied_networks: Vec<Ipv4Net>,
    /// Moves T1 and T2 to earlier times, each by up to a tenth of the time before it. Hosts
    /// that start together must not renew in the same instant (RFC 2131, section 4.4.5).
    pub jitter: bool,
    /// Asks servers to broadcast their answers, for a link whose hardware address is not
    /// `mac` (RFC 2131, section 4.1).
    pub broadcast: bool,
}

impl Config {
    /// Returns the configuration of a client that sends no name, accepts every server, and
    /// renews at T1.
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            identity: Identity::default(),
            name: None,
            allowed_servers: Vec::new(),
            denied_networks: Vec::new(),
            jitter: false,
            broadcast: false,
        }
    }

    pub(crate) fn allows(&self, server: Ipv4Addr) -> bool {
        self.allowed_servers.is_empty() || self.allowed_servers.contains(&server)
    }

    pub(crate) fn check(&self, lease: &Lease) -> Result<(), Refusal> {
        if !self.allows(lease.server) {
            return Err(Refusal::ServerNotAllowed(lease.server));
        }
        if self
            .denied_networks
            .iter()
            .any(|network| network.contains(&lease.address))
        {
            return Err(Refusal::NetworkDenied(lease.address));
        }
        Ok(())
    }
}
