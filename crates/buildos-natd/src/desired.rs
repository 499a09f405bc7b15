//! Derives the desired state of everything that natd controls, as one value.

use buildos_probe::Request;

use crate::dnsmasq::config::{configuration, resolv};
use crate::firewall::bytecode::KernelTable;
use crate::firewall::port_policy::{self, Dispatch};
use crate::firewall::{arp_policy, model, policy};
use crate::open_port::OpenPort;
use crate::ports::Ports;
use crate::probe_request;
use crate::settings::{BridgeNetfilter, Settings};
use crate::uplink_network::UplinkNetwork;

/// The desired state for an uplink network under some settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The bridges, the private network and the uplink.
    pub network: UplinkNetwork,
    /// Table `inet buildos`.
    pub table: KernelTable,
    /// Table `bridge buildos`.
    pub port_table: KernelTable,
    /// Table `arp buildos`.
    pub arp_table: KernelTable,
    /// Content of [`crate::dnsmasq::paths::DESIRED`].
    pub dnsmasq: String,
    /// Content of [`crate::dnsmasq::paths::RESOLV`].
    pub resolv: String,
    /// Decides whether frames bridged on br1 pass iptables.
    pub bridge_netfilter: BridgeNetfilter,
    /// The request to the probe, without its number; [`None`] if probes are off.
    pub probe: Option<Request>,
}

impl Desired {
    /// Derives the desired state.
    #[must_use]
    pub fn new(
        network: UplinkNetwork,
        settings: &Settings,
        ports: &Ports,
        dispatch: Dispatch,
        open: &[OpenPort],
    ) -> Self {
        let port_table = port_policy::table(&network, settings, ports, dispatch);
        Self {
            port_table: KernelTable::compile(&port_table),
            arp_table: KernelTable::compile(&arp_policy::table()),
            table: KernelTable::compile(&policy::table(&network, settings, ports, open)),
            dnsmasq: configuration(&network, settings.lease),
            resolv: resolv(&network.dns),
            bridge_netfilter: settings.bridge_netfilter,
            probe: probe_request::desired(&network, settings),
            network,
        }
    }

    /// Returns the tables with their families.
    #[must_use]
    pub fn tables(&self) -> [(model::Family, &KernelTable); 3] {
        [
            (model::Family::Inet, &self.table),
            (model::Family::Bridge, &self.port_table),
            (model::Family::Arp, &self.arp_table),
        ]
    }
}
