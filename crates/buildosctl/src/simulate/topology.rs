//! What is simulated: NICs, the networks behind them, and what the host is told. One
//! TOML file, read by the parser that the daemons have for their configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use buildos_service::config::{Fragment, Origin, Schema, evaluate};
use buildos_types::InterfaceName;
use buildos_types::MacAddress;
use ipnet::Ipv4Net;
use serde::Deserialize;

/// A year: whoever wants to see more has another question.
const LONGEST_S: f64 = 365.0 * 24.0 * 3600.0;
/// Until an answer arrives when nothing delays it.
const DELAY: Duration = Duration::from_millis(1);

/// A network in which frames reach everybody.
pub(crate) type Segment = Word;

/// Everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Topology {
    /// How long, when it says so.
    pub(crate) duration: Option<Moment>,
    /// The kernel command line.
    pub(crate) cmdline: String,
    /// Files of daemons (`…/netd.conf.d/10.toml`), relative to the topology's.
    pub(crate) files: Vec<PathBuf>,
    /// By daemon: text as of one more file.
    pub(crate) config: BTreeMap<Word, String>,
    /// The host's NICs.
    pub(crate) nics: BTreeMap<LinkName, Nic>,
    /// DHCP servers.
    pub(crate) servers: BTreeMap<Word, Server>,
    /// Others that use an address.
    pub(crate) neighbours: BTreeMap<Word, Neighbour>,
    /// Ports that others put into a bridge of ours.
    pub(crate) ports: BTreeMap<LinkName, Port>,
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
                "{seconds} is no number of seconds from 0 to a year"
            )),
        }
    }
}

/// A name that somebody chose: letters, digits, `-`, `_` and `.`.
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
        let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match (1..=64).contains(&text.len()) && text.chars().all(fit) {
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

/// A name that the kernel takes for an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkName(pub(crate) String);

impl FromStr for LinkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = InterfaceName::new(text).map_err(|error| error.to_string())?;
        Ok(Self(name.to_string()))
    }
}

/// An interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Hardware address; all zeros stands for "not said".
    pub(crate) mac: MacAddress,
    /// Where its cable leads.
    pub(crate) segment: Segment,
    /// Whether it is plugged in at the start.
    pub(crate) carrier: bool,
    /// When it is plugged in.
    pub(crate) plug: Vec<Moment>,
    /// When it is unplugged.
    pub(crate) unplug: Vec<Moment>,
    /// Largest packet.
    pub(crate) mtu: u32,
    /// Link kind of what is no hardware (`veth`).
    pub(crate) kind: Option<String>,
    /// Whether it is a radio.
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
    /// Where it is.
    pub(crate) segment: Segment,
    /// Its address (option 54); 0.0.0.0 stands for "not said".
    pub(crate) address: Ipv4Addr,
    /// What it gives, in this order, with the mask.
    pub(crate) offers: Vec<Ipv4Net>,
    /// How it behaves.
    pub(crate) behaviour: Behaviour,
    /// From a message to its answer.
    pub(crate) delay: Duration,
    /// The same for an OFFER, when the server tries an address before it offers it.
    pub(crate) offer_delay: Option<Duration>,
    /// When it begins to answer.
    pub(crate) from: Moment,
    /// When it ceases to.
    pub(crate) until: Option<Moment>,
    /// Options by code, as they are on the wire.
    pub(crate) options: BTreeMap<u8, Vec<u8>>,
    /// Codes of options that it leaves out.
    pub(crate) without: BTreeSet<u8>,
}

impl Default for Server {
    fn default() -> Self {
        let mut server = Self {
            segment: Segment::default(),
            address: Ipv4Addr::UNSPECIFIED,
            offers: Vec::new(),
            behaviour: Behaviour::Good,
            delay: DELAY,
            offer_delay: None,
            from: Moment::default(),
            until: None,
            options: BTreeMap::new(),
            without: BTreeSet::new(),
        };
        server.lease(3600);
        server
    }
}

impl Server {
    fn lease(&mut self, seconds: u32) {
        self.options.insert(51, seconds.to_be_bytes().to_vec());
    }

    fn addresses(&mut self, code: u8, addresses: &[Ipv4Addr]) {
        let bytes = addresses.iter().flat_map(Ipv4Addr::octets).collect();
        self.options.insert(code, bytes);
    }

    fn text(&mut self, code: u8, text: &str) {
        self.options.insert(code, text.as_bytes().to_vec());
    }
}

/// How a server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Behaviour {
    /// Offers and grants.
    Good,
    /// Says nothing.
    Silent,
    /// Offers and does not grant.
    OffersOnly,
    /// Offers and denies.
    Denies,
}

/// Somebody else with an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// Where.
    pub(crate) segment: Segment,
    /// Which; 0.0.0.0 stands for "not said".
    pub(crate) address: Ipv4Addr,
    /// Hardware address.
    pub(crate) mac: MacAddress,
}

impl Default for Neighbour {
    fn default() -> Self {
        Self {
            segment: Segment::default(),
            address: Ipv4Addr::UNSPECIFIED,
            mac: MacAddress([2, 0, 0, 0, 0xff, 1]),
        }
    }
}

/// A link that others put into a bridge of ours: a machine's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Port {
    /// Which bridge.
    pub(crate) bridge: Bridge,
    /// When.
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

/// A name as option 81 has it (RFC 4702): flags, two unused octets, then labels.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Fqdn(Vec<u8>);

impl TryFrom<String> for Fqdn {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let mut bytes = vec![0x04, 0, 0];
        for label in name.trim_end_matches('.').split('.') {
            let length = u8::try_from(label.len()).unwrap_or(u8::MAX);
            if !(1..=63).contains(&length) {
                return Err(format!("{label:?} in {name:?} is no label of a name"));
            }
            bytes.push(length);
            bytes.extend(label.bytes());
        }
        bytes.push(0);
        Ok(Self(bytes))
    }
}

/// Classless routes (RFC 3442), each as `10.0.0.0/8 via 192.0.2.254`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Via(Ipv4Net, Ipv4Addr);

impl TryFrom<String> for Via {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let route = text.split_once(" via ").and_then(|(net, gateway)| {
            let net: Ipv4Net = net.trim().parse().ok()?;
            Some(Self(net.trunc(), gateway.trim().parse().ok()?))
        });
        route.ok_or(format!(
            "{text:?} is no route such as \"10.0.0.0/8 via 192.0.2.254\""
        ))
    }
}

impl Via {
    fn encode(&self) -> Vec<u8> {
        let prefix = self.0.prefix_len();
        let significant = usize::from(prefix.div_ceil(8));
        let mut bytes = vec![prefix];
        bytes.extend(&self.0.network().octets()[..significant]);
        bytes.extend(self.1.octets());
        bytes
    }
}

/// Bytes in hexadecimal, as `05dc`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Hex(Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let pairs = text.as_bytes().chunks(2).map(|pair| {
            let digits = std::str::from_utf8(pair)
                .ok()
                .filter(|pair| pair.len() == 2)?;
            digits
                .bytes()
                .all(|b| b.is_ascii_hexdigit())
                .then_some(())?;
            u8::from_str_radix(digits, 16).ok()
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        bytes
            .filter(|bytes| bytes.len() <= 255)
            .map(Self)
            .ok_or(format!(
                "{text:?} is no option: pairs of hexadecimal digits, 255 at most"
            ))
    }
}

/// Reads the text of a file. `path` is for messages.
///
/// # Errors
///
/// All mistakes, one line each.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Topology, Vec<String>> {
    let fragment = Fragment {
        origin: Origin::File(path.to_owned()),
        text: text.to_owned(),
    };
    let loaded = evaluate(&schema(), &[fragment]);
    let mut problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    if problems.is_empty() {
        let contradictions = contradictions(&loaded.settings);
        problems.extend(
            contradictions
                .iter()
                .map(|what| format!("{}: {what}", path.display())),
        );
    }
    match problems.is_empty() {
        true => Ok(loaded.settings),
        false => Err(problems),
    }
}

/// What no key by itself is to blame for.
fn contradictions(topology: &Topology) -> Vec<String> {
    let mut found = Vec::new();
    if topology.nics.is_empty() {
        found.push("there is no NIC; describe one as [nic.enp1s0] with its mac".to_owned());
    }
    let mut macs = BTreeMap::new();
    for (LinkName(name), nic) in &topology.nics {
        if nic.mac.0 == [0; 6] {
            found.push(format!("nic.{name}: mac is missing"));
        } else if let Some(other) = macs.insert(nic.mac, name) {
            found.push(format!("nic.{name}: has the mac of nic.{other}"));
        }
        if ["br0", "br1", "lo"].contains(&name.as_str()) {
            found.push(format!("nic.{name}: a NIC cannot have this name"));
        }
    }
    let segments: BTreeSet<&Segment> = topology.nics.values().map(|nic| &nic.segment).collect();
    let reached = |what: String, segment: &Segment| {
        (!segments.contains(segment)).then(|| {
            let known: Vec<_> = segments.iter().map(|Word(name)| name.as_str()).collect();
            let (known, Word(segment)) = (known.join(", "), segment);
            format!("{what}: no NIC is on segment {segment:?}; those of the NICs are {known}")
        })
    };
    for (Word(name), server) in &topology.servers {
        if server.address.is_unspecified() {
            found.push(format!("server.{name}: address is missing"));
        }
        if server.offers.is_empty() && server.behaviour != Behaviour::Silent {
            found.push(format!(
                "server.{name}: offers is missing (\"192.0.2.10/24\")"
            ));
        }
        found.extend(reached(format!("server.{name}"), &server.segment));
    }
    for (Word(name), neighbour) in &topology.neighbours {
        if neighbour.address.is_unspecified() {
            found.push(format!("neighbour.{name}: address is missing"));
        }
        found.extend(reached(format!("neighbour.{name}"), &neighbour.segment));
    }
    for LinkName(name) in topology.ports.keys() {
        if topology.nics.contains_key(&LinkName(name.clone())) {
            found.push(format!("port.{name}: is described as a NIC, too"));
        }
    }
    found
}

/// The keys of the file.
fn schema() -> Schema<Topology> {
    let schema = Schema::new("simulation")
        .key(
            "duration_s",
            "Seconds that are simulated (60).",
            |t: &mut Topology, seconds| {
                t.duration = Some(seconds);
            },
        )
        .key(
            "cmdline",
            "The kernel command line.",
            |t: &mut Topology, line| t.cmdline = line,
        )
        .key("files", "Files of daemons.", |t: &mut Topology, files| {
            t.files = files
        })
        .named(
            "config.*",
            "Configuration of a daemon.",
            |t: &mut Topology, name, text| {
                t.config.insert(name, text);
            },
        );
    ports(neighbours(servers(nics(schema))))
}

type Keys = Schema<Topology>;

fn nics(schema: Keys) -> Keys {
    fn nic(topology: &mut Topology, name: LinkName) -> &mut Nic {
        topology.nics.entry(name).or_default()
    }
    schema
        .table("nic.*", |t: &mut Topology, name| {
            nic(t, name);
        })
        .named("nic.*.mac", "Hardware address.", |t, n, mac| {
            nic(t, n).mac = mac
        })
        .named("nic.*.segment", "Where its cable leads.", |t, n, s| {
            nic(t, n).segment = s
        })
        .named("nic.*.carrier", "Plugged in at the start.", |t, n, is| {
            nic(t, n).carrier = is
        })
        .named("nic.*.plug_s", "When it is plugged in.", |t, n, at| {
            nic(t, n).plug = at
        })
        .named("nic.*.unplug_s", "When it is unplugged.", |t, n, at| {
            nic(t, n).unplug = at
        })
        .named("nic.*.mtu", "Largest packet.", |t, n, mtu| {
            nic(t, n).mtu = mtu
        })
        .named("nic.*.wireless", "A radio.", |t, n, is| {
            nic(t, n).wireless = is
        })
        .named(
            "nic.*.kind",
            "Kind of a virtual link.",
            |t, n, Word(kind)| {
                nic(t, n).kind = Some(kind);
            },
        )
}

fn servers(schema: Keys) -> Keys {
    fn server(topology: &mut Topology, name: Word) -> &mut Server {
        topology.servers.entry(name).or_default()
    }
    fn addresses(schema: Keys, path: &'static str, doc: &'static str, code: u8) -> Keys {
        schema.named(path, doc, move |t, n, addresses: Vec<Ipv4Addr>| {
            server(t, n).addresses(code, &addresses);
        })
    }
    fn text(schema: Keys, path: &'static str, doc: &'static str, code: u8) -> Keys {
        schema.named(path, doc, move |t, n, text: String| {
            server(t, n).text(code, &text)
        })
    }
    let schema = schema
        .table("server.*", |t: &mut Topology, name| {
            server(t, name);
        })
        .named("server.*.segment", "Where it is.", |t, n, s| {
            server(t, n).segment = s
        })
        .named("server.*.address", "Its address.", |t, n, a| {
            server(t, n).address = a
        })
        .named("server.*.offers", "What it gives.", |t, n, nets| {
            server(t, n).offers = nets
        })
        .named("server.*.behaviour", "How it behaves.", |t, n, how| {
            server(t, n).behaviour = how
        })
        .named("server.*.delay_ms", "Until it answers.", |t, n, ms: u32| {
            server(t, n).delay = Duration::from_millis(ms.into());
        })
        .named(
            "server.*.offer_delay_ms",
            "Until it offers.",
            |t, n, ms: u32| {
                server(t, n).offer_delay = Some(Duration::from_millis(ms.into()));
            },
        )
        .named("server.*.from_s", "When it begins.", |t, n, at| {
            server(t, n).from = at
        })
        .named("server.*.until_s", "When it ceases.", |t, n, at| {
            server(t, n).until = Some(at)
        })
        .named("server.*.lease_s", "Lease time.", |t, n, seconds| {
            server(t, n).lease(seconds)
        })
        .named("server.*.mtu", "Option 26.", |t, n, mtu: u16| {
            server(t, n).options.insert(26, mtu.to_be_bytes().to_vec());
        })
        .named("server.*.fqdn", "Option 81.", |t, n, Fqdn(name)| {
            server(t, n).options.insert(81, name);
        })
        .named(
            "server.*.routes",
            "Option 121.",
            |t, n, routes: Vec<Via>| {
                let bytes = routes.iter().flat_map(Via::encode).collect();
                server(t, n).options.insert(121, bytes);
            },
        )
        .named(
            "server.*.without",
            "Codes that it leaves out.",
            |t, n, codes| {
                server(t, n).without = codes;
            },
        )
        .named(
            "server.*.options",
            "Codes and bytes.",
            |t, n, options: BTreeMap<Code, Hex>| {
                let options = options
                    .into_iter()
                    .map(|(Code(code), Hex(bytes))| (code, bytes));
                server(t, n).options.extend(options);
            },
        );
    let schema = addresses(schema, "server.*.router", "Option 3.", 3);
    let schema = addresses(schema, "server.*.dns", "Option 6.", 6);
    let schema = addresses(schema, "server.*.ntp", "Option 42.", 42);
    let schema = text(schema, "server.*.domain", "Option 15.", 15);
    text(schema, "server.*.hostname", "Option 12.", 12)
}

/// Number of an option, which TOML has for a key and therefore as text.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct Code(u8);

impl TryFrom<String> for Code {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let code = text.parse().ok().filter(|code| (1..=254).contains(code));
        code.map(Self)
            .ok_or(format!("{text:?} is no option from 1 to 254"))
    }
}

fn neighbours(schema: Keys) -> Keys {
    fn neighbour(topology: &mut Topology, name: Word) -> &mut Neighbour {
        topology.neighbours.entry(name).or_default()
    }
    schema
        .table("neighbour.*", |t: &mut Topology, name| {
            neighbour(t, name);
        })
        .named("neighbour.*.segment", "Where.", |t, n, s| {
            neighbour(t, n).segment = s
        })
        .named("neighbour.*.address", "Its address.", |t, n, a| {
            neighbour(t, n).address = a
        })
        .named("neighbour.*.mac", "Hardware address.", |t, n, mac| {
            neighbour(t, n).mac = mac
        })
}

fn ports(schema: Keys) -> Keys {
    fn port(topology: &mut Topology, name: LinkName) -> &mut Port {
        topology.ports.entry(name).or_default()
    }
    schema
        .table("port.*", |t: &mut Topology, name| {
            port(t, name);
        })
        .named("port.*.bridge", "br0 or br1.", |t, n, bridge| {
            port(t, n).bridge = bridge
        })
        .named("port.*.at_s", "When it is put there.", |t, n, at| {
            port(t, n).at = at
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_man_page_has_every_key() {
        let manual = include_str!("../../../../docs/man/buildosctl.1");
        let (_, manual) = manual.split_once(".Sh DESCRIBED NETWORKS").unwrap();
        let (manual, _) = manual.split_once(".Sh ENVIRONMENT").unwrap();
        let words: BTreeSet<&str> = manual.split([' ', ',', '\n']).collect();
        for key in schema().keys() {
            for word in key.path.split('.').filter(|word| *word != "*") {
                assert!(words.contains(word), "{} is not in buildosctl(1)", key.path);
            }
        }
    }

    #[test]
    fn options_are_as_on_the_wire() {
        let text = "[nic.a]\nmac = \"02:00:00:00:00:01\"\n[server.s]\naddress = \"192.0.2.1\"\n\
                    offers = [\"192.0.2.9/24\"]\nfqdn = \"a.example.\"\n\
                    routes = [\"10.0.0.0/8 via 192.0.2.2\"]\noptions = { 43 = \"00ff\" }\n";
        let topology = parse(Path::new("x"), text).unwrap();
        let options = &topology.servers[&Word("s".to_owned())].options;
        assert_eq!(options[&51], [0, 0, 0x0e, 0x10]);
        assert_eq!(options[&81], *b"\x04\0\0\x01a\x07example\0");
        assert_eq!(options[&121], [8, 10, 192, 0, 2, 2]);
        assert_eq!(options[&43], [0, 255]);
    }
}
