//! Defines the keys of a description.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_service::config::Schema;
use buildos_types::InterfaceName;

use super::dhcp_options::{Code, Fqdn, Hex, Via};
use super::model::{Neighbour, Nic, Port, Server, Topology, Word};

/// Returns the keys.
pub(super) fn schema() -> Schema<Topology> {
    let schema = Schema::new("simulation")
        .key(
            "duration_s",
            "Simulated seconds (60).",
            |t: &mut Topology, seconds| {
                t.duration = Some(seconds);
            },
        )
        .key(
            "cmdline",
            "Kernel command line.",
            |t: &mut Topology, line| t.cmdline = line,
        )
        .key(
            "files",
            "Configuration files of daemons.",
            |t: &mut Topology, files| t.files = files,
        )
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
    fn nic(topology: &mut Topology, name: InterfaceName) -> &mut Nic {
        topology.nics.entry(name).or_default()
    }
    schema
        .table("nic.*", |t: &mut Topology, name| {
            nic(t, name);
        })
        .named("nic.*.mac", "Hardware address.", |t, n, mac| {
            nic(t, n).mac = mac
        })
        .named("nic.*.segment", "Segment of its cable.", |t, n, s| {
            nic(t, n).segment = s
        })
        .named("nic.*.carrier", "Plugged in at the start.", |t, n, is| {
            nic(t, n).carrier = is
        })
        .named("nic.*.plug_s", "Times of plugging in.", |t, n, at| {
            nic(t, n).plug = at
        })
        .named("nic.*.unplug_s", "Times of unplugging.", |t, n, at| {
            nic(t, n).unplug = at
        })
        .named("nic.*.mtu", "Largest packet.", |t, n, mtu| {
            nic(t, n).mtu = mtu
        })
        .named("nic.*.wireless", "Wireless.", |t, n, is| {
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
            server(t, n).set_addresses(code, &addresses);
        })
    }
    fn text(schema: Keys, path: &'static str, doc: &'static str, code: u8) -> Keys {
        schema.named(path, doc, move |t, n, text: String| {
            server(t, n).set_text(code, &text)
        })
    }
    let schema = schema
        .table("server.*", |t: &mut Topology, name| {
            server(t, name);
        })
        .named("server.*.segment", "Its segment.", |t, n, s| {
            server(t, n).segment = s
        })
        .named("server.*.address", "Its address.", |t, n, a| {
            server(t, n).address = a
        })
        .named(
            "server.*.offers",
            "Addresses that it grants.",
            |t, n, nets| server(t, n).offers = nets,
        )
        .named("server.*.behaviour", "Its answers.", |t, n, behaviour| {
            server(t, n).behaviour = behaviour
        })
        .named(
            "server.*.authoritative",
            "Whether it refuses unknown addresses with NAK.",
            |t, n, authoritative| server(t, n).authoritative = authoritative,
        )
        .named("server.*.delay_ms", "Delay of answers.", |t, n, ms: u32| {
            server(t, n).delay = Duration::from_millis(ms.into());
        })
        .named(
            "server.*.offer_delay_ms",
            "Delay of OFFERs.",
            |t, n, ms: u32| {
                server(t, n).offer_delay = Some(Duration::from_millis(ms.into()));
            },
        )
        .named(
            "server.*.from_s",
            "Time of its first answer.",
            |t, n, at| server(t, n).from = at,
        )
        .named(
            "server.*.until_s",
            "Time of its last answer.",
            |t, n, at| server(t, n).until = Some(at),
        )
        .named("server.*.lease_s", "Lease time.", |t, n, seconds| {
            server(t, n).set_lease_time(seconds)
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
            "Codes of omitted options.",
            |t, n, codes| {
                server(t, n).without = codes;
            },
        )
        .named("server.*.vlan", "Tag of its frames.", |t, n, vlan| {
            server(t, n).vlan = Some(vlan)
        })
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

fn neighbours(schema: Keys) -> Keys {
    fn neighbour(topology: &mut Topology, name: Word) -> &mut Neighbour {
        topology.neighbours.entry(name).or_default()
    }
    schema
        .table("neighbour.*", |t: &mut Topology, name| {
            neighbour(t, name);
        })
        .named("neighbour.*.segment", "Its segment.", |t, n, s| {
            neighbour(t, n).segment = s
        })
        .named("neighbour.*.address", "Its address.", |t, n, a| {
            neighbour(t, n).address = a
        })
        .named("neighbour.*.mac", "Hardware address.", |t, n, mac| {
            neighbour(t, n).mac = mac
        })
        .named(
            "neighbour.*.proxy_arp",
            "Answers ARP for every address.",
            |t, n, yes| neighbour(t, n).proxy_arp = yes,
        )
        .named("neighbour.*.vlan", "Tag of its frames.", |t, n, vlan| {
            neighbour(t, n).vlan = Some(vlan)
        })
        .named(
            "neighbour.*.until_s",
            "Time of its last answer.",
            |t, n, at| neighbour(t, n).until = Some(at),
        )
}

fn ports(schema: Keys) -> Keys {
    fn port(topology: &mut Topology, name: InterfaceName) -> &mut Port {
        topology.ports.entry(name).or_default()
    }
    schema
        .table("port.*", |t: &mut Topology, name| {
            port(t, name);
        })
        .named("port.*.bridge", "br0 or br1.", |t, n, bridge| {
            port(t, n).bridge = bridge
        })
        .named("port.*.at_s", "Time of the addition.", |t, n, at| {
            port(t, n).at = at
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn man_page_has_every_key() {
        let manual = include_str!("../../../../../docs/man/buildosctl.1");
        let (_, manual) = manual.split_once(".Sh DESCRIBED NETWORKS").unwrap();
        let (manual, _) = manual.split_once(".Sh ENVIRONMENT").unwrap();
        let words: BTreeSet<&str> = manual.split([' ', ',', '\n']).collect();
        for key in schema().keys() {
            for word in key.path.split('.').filter(|word| *word != "*") {
                assert!(words.contains(word), "{} is not in buildosctl(1)", key.path);
            }
        }
    }
}
