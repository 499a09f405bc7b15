//! What should be in force, all of it, as one value.

use buildos_probe::Request;

use crate::config::{BridgeNetfilter, Settings};
use crate::dnsmasq::config as dnsmasq;
use crate::firewall::bytecode::KernelTable;
use crate::firewall::policy;
use crate::probe_scheduler;
use crate::uplink_network::UplinkNetwork;

/// What should be in force for a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Where.
    pub network: UplinkNetwork,
    /// Our table.
    pub table: KernelTable,
    /// Content of [`dnsmasq::CONFIGURATION`].
    pub dnsmasq: String,
    /// Content of [`dnsmasq::RESOLV`].
    pub resolv: String,
    /// Whether frames that are bridged on br1 pass iptables.
    pub bridge_netfilter: BridgeNetfilter,
    /// Whether the ports of br1 are isolated from each other.
    pub isolate: bool,
    /// What is to be tried out; the number does not count.
    pub probe: Option<Request>,
}

impl Desired {
    /// The wish for a network under these settings.
    #[must_use]
    pub fn new(network: UplinkNetwork, settings: &Settings) -> Self {
        Self {
            table: KernelTable::compile(&policy::table(&network, settings)),
            dnsmasq: dnsmasq::configuration(&network, settings.lease),
            resolv: dnsmasq::resolv(&network.dns),
            bridge_netfilter: settings.bridge_netfilter,
            isolate: settings.isolate,
            probe: probe_scheduler::wish(&network, settings),
            network,
        }
    }
}
