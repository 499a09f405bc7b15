//! Derives what natd would configure, with natd's own code.

use buildos_dbus_api::network1::Network;
use buildos_natd::dnsmasq::config as dnsmasq;
use buildos_natd::firewall::policy;
use buildos_natd::ports::Ports;
use buildos_natd::settings::Settings;
use buildos_natd::uplink_network::UplinkNetwork;

/// Configuration by natd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Nat {
    /// The table, as nft(8) lists it.
    pub(crate) table: String,
    /// Configuration file of dnsmasq.
    pub(crate) dnsmasq: String,
    /// Name servers of dnsmasq, as resolv.conf(5).
    pub(crate) resolv: String,
}

impl Nat {
    /// Returns what natd would configure.
    ///
    /// # Errors
    ///
    /// Returns what natd waits for.
    pub(crate) fn new(network: &Network, settings: &Settings) -> Result<Self, String> {
        let uplink = UplinkNetwork::try_from(network).map_err(|error| error.to_string())?;
        Ok(Self {
            table: policy::table(&uplink, settings, &Ports::default(), &[]).to_string(),
            dnsmasq: dnsmasq::configuration(&uplink, settings.lease),
            resolv: dnsmasq::resolv(&uplink.dns),
        })
    }

    /// Returns sentences about the changes since `before`.
    pub(crate) fn changes(&self, before: &Self, network: &Network) -> Vec<String> {
        let mut changes = Vec::new();
        if self.table != before.table {
            changes.push(format!(
                "installs table inet {} for {}",
                policy::TABLE,
                network.private_network
            ));
        }
        if self.dnsmasq != before.dnsmasq {
            changes.push(format!("configures dnsmasq for {}", network.private_bridge));
        }
        if self.resolv != before.resolv {
            changes.push(match network.dns.as_slice() {
                [] => "has no name server for dnsmasq".to_owned(),
                servers => format!("has dnsmasq forward names to {}", servers.join(", ")),
            });
        }
        changes
    }
}
