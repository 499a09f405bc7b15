//! What should be in force, all of it, as one value.

use buildos_probe::Request;

use crate::config::{BridgeNetfilter, Settings};
use crate::dnsmasq;
use crate::firewall::bytecode::Image;
use crate::firewall::policy;
use crate::prober;
use crate::site::Site;

/// What should be in force for a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Where.
    pub site: Site,
    /// Our table.
    pub table: Image,
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

impl Wish {
    /// The wish for a site under these settings.
    #[must_use]
    pub fn new(site: Site, settings: &Settings) -> Self {
        Self {
            table: Image::of(&policy::table(&site, settings)),
            dnsmasq: dnsmasq::configuration(&site, settings.lease),
            resolv: dnsmasq::resolv(&site.dns),
            bridge_netfilter: settings.bridge_netfilter,
            isolate: settings.isolate,
            probe: prober::wish(&site, settings),
            site,
        }
    }
}
