//! Derives the desired state of everything that natd controls, as one value.

use buildos_probe::Request;

use crate::dnsmasq::config::{configuration, resolv};
use crate::firewall::bytecode::KernelTable;
use crate::firewall::policy;
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
    /// Content of [`crate::dnsmasq::paths::DESIRED`].
    pub dnsmasq: String,
    /// Content of [`crate::dnsmasq::paths::RESOLV`].
    pub resolv: String,
    /// Decides whether frames bridged on br1 pass iptables.
    pub bridge_netfilter: BridgeNetfilter,
    /// True if the ports of br1 are to be isolated from each other.
    pub isolate: bool,
    /// The request to the probe, without its number; [`None`] if probes are off.
    pub probe: Option<Request>,
}

impl Desired {
    /// Derives the desired state.
    #[must_use]
    pub fn new(network: UplinkNetwork, settings: &Settings) -> Self {
        Self {
            table: KernelTable::compile(&policy::table(&network, settings)),
            dnsmasq: configuration(&network, settings.lease),
            resolv: resolv(&network.dns),
            bridge_netfilter: settings.bridge_netfilter,
            isolate: settings.isolate,
            probe: probe_request::desired(&network, settings),
            network,
        }
    }
}
