//! Defines what a description contains.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use buildos_types::{InterfaceName, MacAddress};
use ipnet::Ipv4Net;
use serde::Deserialize;

/// Limit of a time in seconds: a year.
const LONGEST_S: f64 = 365.0 * 24.0 * 3600.0;
/// Default delay of an answer.
const DELAY: Duration = Duration::from_millis(1);

/// An Ethernet segment: a frame reaches every NIC, server and neighbour on it.
pub(crate) type Segment = Word;

/// A description.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Topology {
    /// Simulated time.
    pub(crate) duration: Option<Moment>,
    /// Kernel command line.
    pub(crate) cmdline: String,
    /// Configuration files of daemons (`…/netd.conf.d/10.toml`), relative to the description.
    pub(crate) files: Vec<PathBuf>,
    /// By daemon: the content of another configuration file.
    pub(crate) config: BTreeMap<Word, String>,
    /// The host's NICs.
    pub(crate) nics: BTreeMap<InterfaceName, Nic>,
    /// DHCP servers.
    pub(crate) servers: BTreeMap<Word, Server>,
    /// Other hosts that use an address.
    pub(crate) neighbours: BTreeMap<Word, Neighbour>,
    /// Ports that other programs add to br0 or br1.
    pub(crate) ports: BTreeMap<InterfaceName, Port>,
}

/// A point in time, in seconds since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "f64")]
pub(crate) struct Moment(pub(crate) Duration);

impl TryFrom<f64> for Moment {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, Self::Error> {
        match seconds {
            seconds if (0.0..=LONGEST_S).contains(&seconds) => {
                Ok(Self(Duration::from_secs_f64(seconds)))
            }
            _ => Err(format!(
                "{seconds} is not a number of seconds from 0 to a year"
            )),
        }
    }
}

/// A name in the description: letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Word(pub(crate) String);

impl Default for Word {
    fn default() -> Self {
        Self("lan".to_owned())
    }
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match (1..=64).contains(&text.len()) && text.chars().all(is_allowed) {
            true => Ok(Self(text.to_owned())),
            false => Err("a name has letters, digits, '-', '_' and '.', 64 at most".to_owned()),
        }
    }
}

impl TryFrom<String> for Word {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// An interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Hardware address; all zeros if missing.
    pub(crate) mac: MacAddress,
    /// Segment at the other end of its cable.
    pub(crate) segment: Segment,
    /// Its cable is plugged in at the start.
    pub(crate) carrier: bool,
    /// Times at which its cable is plugged in.
    pub(crate) plug: Vec<Moment>,
    /// Times at which its cable is unplugged.
    pub(crate) unplug: Vec<Moment>,
    /// Largest packet in bytes.
    pub(crate) mtu: u32,
    /// Link kind (`veth`); [`None`] for hardware.
    pub(crate) kind: Option<String>,
    /// A wireless interface.
    pub(crate) wireless: bool,
}

impl Default for Nic {
    fn default() -> Self {
        Self {
            mac: MacAddress([0; 6]),
            segment: Segment::default(),
            carrier: true,
            plug: Vec::new(),
            unplug: Vec::new(),
            mtu: 1500,
            kind: None,
            wireless: false,
        }
    }
}

/// A DHCP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// Its segment.
    pub(crate) segment: Segment,
    /// Its address (option 54); 0.0.0.0 if missing.
    pub(crate) address: Ipv4Addr,
    /// Addresses that it grants, in order, with the mask.
    pub(crate) offers: Vec<Ipv4Net>,
    /// Its answers to DISCOVER and REQUEST.
    pub(crate) behaviour: Behaviour,
    /// Answers a REQUEST for an address that it has not granted with NAK.
    pub(crate) authoritative: bool,
    /// Delay of an answer.
    pub(crate) delay: Duration,
    /// Delay of an OFFER, if different: some servers probe an address before they offer it.
    pub(crate) offer_delay: Option<Duration>,
    /// Time of its first answers.
    pub(crate) from: Moment,
    /// End of its answers.
    pub(crate) until: Option<Moment>,
    /// Options by code, as in a message.
    pub(crate) options: BTreeMap<u8, Vec<u8>>,
    /// Codes of omitted options.
    pub(crate) without: BTreeSet<u8>,
    /// Tag of its frames, on a port of a switch that carries several VLANs.
    pub(crate) vlan: Option<Vlan>,
}

impl Default for Server {
    fn default() -> Self {
        let mut server = Self {
            segment: Segment::default(),
            address: Ipv4Addr::UNSPECIFIED,
            offers: Vec::new(),
            behaviour: Behaviour::Good,
            authoritative: true,
            delay: DELAY,
            offer_delay: None,
            from: Moment::default(),
            until: None,
            options: BTreeMap::new(),
            without: BTreeSet::new(),
            vlan: None,
        };
        server.set_lease_time(3600);
        server
    }
}

impl Server {
    pub(super) fn set_lease_time(&mut self, seconds: u32) {
        self.options.insert(51, seconds.to_be_bytes().to_vec());
    }

    pub(super) fn set_addresses(&mut self, code: u8, addresses: &[Ipv4Addr]) {
        let bytes = addresses.iter().flat_map(Ipv4Addr::octets).collect();
        self.options.insert(code, bytes);
    }

    pub(super) fn set_text(&mut self, code: u8, text: &str) {
        self.options.insert(code, text.as_bytes().to_vec());
    }
}

/// Answers of a server to DISCOVER and REQUEST.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Behaviour {
    /// Answers DISCOVER with OFFER, REQUEST with ACK.
    Good,
    /// Answers nothing.
    Silent,
    /// Answers DISCOVER with OFFER, REQUEST with nothing.
    OffersOnly,
    /// Answers DISCOVER with OFFER, REQUEST with NAK.
    Denies,
}

/// The VLAN in the tag of a frame; 0 for a tag with a priority only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub(crate) struct Vlan(pub(crate) u16);

impl TryFrom<i64> for Vlan {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, Self::Error> {
        match u16::try_from(number) {
            Ok(vlan) if vlan <= 4094 => Ok(Self(vlan)),
            Ok(_) | Err(_) => Err(format!("{number} is not a VLAN from 0 to 4094")),
        }
    }
}

/// Another host with an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// Its segment.
    pub(crate) segment: Segment,
    /// Its address; 0.0.0.0 if missing.
    pub(crate) address: Ipv4Addr,
    /// Hardware address.
    pub(crate) mac: MacAddress,
    /// Answers ARP for every address, as a router with proxy ARP.
    pub(crate) proxy_arp: bool,
    /// Tag of its frames.
    pub(crate) vlan: Option<Vlan>,
    /// End of its answers.
    pub(crate) until: Option<Moment>,
}

impl Default for Neighbour {
    fn default() -> Self {
        Self {
            segment: Segment::default(),
            address: Ipv4Addr::UNSPECIFIED,
            mac: MacAddress([2, 0, 0, 0, 0xff, 1]),
            proxy_arp: false,
            vlan: None,
            until: None,
        }
    }
}

/// A link that another program adds to br0 or br1, such as an agent for a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Port {
    /// The bridge.
    pub(crate) bridge: Bridge,
    /// Time of the addition.
    pub(crate) at: Moment,
}

/// The two bridges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Bridge {
    /// The public one.
    Br0,
    /// The private one.
    #[default]
    Br1,
}

impl Bridge {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Br0 => "br0",
            Self::Br1 => "br1",
        }
    }
}
