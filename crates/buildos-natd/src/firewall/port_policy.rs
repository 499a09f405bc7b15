//! Builds table `bridge buildos`: what a port of a bridge may send.
//!
//! A machine has a port of br1. It may send frames with the addresses that dnsmasq leased
//! to it, and before that only DHCP requests.
//!
//! | set | key | a rule adds it |
//! |---|---|---|
//! | [`HARDWARE_ADDRESSES`] | MAC address that a port owns | at the first DHCP request |
//! | [`PORTS`] | MAC address, port | at the first DHCP request |
//! | [`ADDRESSES`] | MAC address, IPv4 address, port | when dnsmasq's DHCPACK leaves the host |
//! | [`FULL_PORTS`] | port | never: natd does, while the port has [`hardware_address_limit`] MAC addresses |
//! | [`REQUESTS`], [`NEW_HARDWARE_ADDRESSES`] | port, with a token bucket | at DHCP requests |
//!
//! The rules learn a lease from the DHCPACK itself. A machine therefore never has a lease
//! that its port may not use. A port is the index of an interface, which the kernel does
//! not use again before 2³¹ interfaces.
//!
//! | chain | frames |
//! |---|---|
//! | prerouting | from ports of br1: addresses of their leases in IPv4 and ARP; nothing else |
//! | dhcp | DHCP requests of machines |
//! | others | from ports of other bridges: on br0 no DHCP server beside the uplink |
//! | forward | between machines, if they are isolated |
//! | output | dnsmasq's DHCPACK |
//!
//! # Limits
//!
//! Without NFT_BRIDGE_META in the kernel, rules know the ports of other bridges by name
//! ([`Dispatch::Ports`]). Until natd has added a new port of br0, it counts as a machine.
//!
//! A port that becomes the uplink while natd does not run must be one of the candidates
//! that netd published.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_types::MacAddress;
use ipnet::Ipv4Net;

use crate::dnsmasq::config;
use crate::firewall::model::{
    Chain, CompareOp, Elements, Family, Field, Hook, Interval, KeyPart, Kind, Match, Priority,
    RateLimit, Rule, Set, Table, Transport, Update, Verdict,
};
use crate::firewall::policy::TABLE;
use crate::ports::Ports;
use crate::settings::{LeaseLimit, Settings};
use crate::uplink_network::UplinkNetwork;

/// Set of MAC addresses that a port owns.
pub const HARDWARE_ADDRESSES: &str = "hardware_addresses";
/// Set of MAC addresses with the port that owns them.
pub const PORTS: &str = "ports";
/// Set of MAC addresses with their IPv4 address and port.
pub const ADDRESSES: &str = "addresses";
/// Set of ports without room for a further MAC address. natd adds and removes its elements,
/// see [`crate::bindings`].
pub const FULL_PORTS: &str = "full_ports";
/// Set of the token buckets of DHCP requests.
const REQUESTS: &str = "requests";
/// Set of the token buckets of new MAC addresses.
const NEW_HARDWARE_ADDRESSES: &str = "new_hardware_addresses";
/// Set of the ports of other bridges than br1, for [`Dispatch::Ports`].
const OTHER_PORTS: &str = "other_ports";
/// Set of the ports of br0, for [`Dispatch::Ports`].
const PUBLIC_PORTS: &str = "public_ports";
/// Set of the links that can be the uplink.
const UPLINKS: &str = "uplinks";

/// Chain for DHCP requests of machines.
const DHCP: &str = "dhcp";
/// Chain for frames from ports of other bridges.
const OTHERS: &str = "others";

/// Room for the addresses of a /16. A port cannot fill it: see [`MACS_OF_PORT`].
const SET_SIZE: u32 = 65_536;

/// DHCP requests of a port. A client repeats a message after seconds (RFC 2131, section
/// 4.1), and dnsmasq answers thousands in a second.
const REQUESTS_OF_PORT: RateLimit = RateLimit {
    tokens: 20,
    interval: Interval::Second,
    burst: 50,
};
/// New MAC addresses of a port at once, and thereby its leases. Machines that follow each other
/// on a port can have random addresses.
const NEW_MACS: u32 = 8;
/// MAC addresses of a port, without a setting. Behind a port can be a host with virtual
/// machines.
const MACS_OF_PORT: u32 = 64;
/// Ports that fill the network together, without a setting, if it is small.
const PORTS_THAT_FILL: u32 = 4;

/// Time from the first DHCP request to the lease.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Time from the end of a lease to the end of its key: a renewal in the last second is
/// late by that.
pub const LEASE_MARGIN: Duration = Duration::from_secs(60);

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;

const PORT: &[Field] = &[Field::InputInterface];
const SENDER: &[Field] = &[Field::EthernetSource];
const SENDER_ON_PORT: &[Field] = &[Field::EthernetSource, Field::InputInterface];
const SENDER_OF_IP: &[Field] = &[Field::EthernetSource, Field::Source, Field::InputInterface];
const SENDER_OF_ARP: &[Field] = &[
    Field::EthernetSource,
    Field::ArpAddress,
    Field::InputInterface,
];
const SUBJECT_OF_ARP: &[Field] = &[
    Field::ArpHardwareAddress,
    Field::ArpAddress,
    Field::InputInterface,
];
const PROBING_MAC: &[Field] = &[Field::ArpHardwareAddress, Field::InputInterface];
const REQUESTING_CLIENT: &[Field] = &[Field::DhcpHardwareAddress, Field::InputInterface];
const ANSWERED_CLIENT: &[Field] = &[Field::DhcpHardwareAddress, Field::OutputInterface];
const CLIENT: &[Field] = &[Field::DhcpHardwareAddress];
const LEASE: &[Field] = &[
    Field::DhcpHardwareAddress,
    Field::DhcpAddress,
    Field::OutputInterface,
];

/// Returns the largest number of MAC addresses, and thereby of leases, of a port.
#[must_use]
pub fn hardware_address_limit(network: &UplinkNetwork, settings: &Settings) -> u32 {
    let share = config::machines(network.private_network) / PORTS_THAT_FILL;
    let suited = share.clamp(1, MACS_OF_PORT);
    settings.leases.map_or(suited, LeaseLimit::get)
}

/// How rules recognise ports of br1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispatch {
    /// By the name of their bridge (NFT_BRIDGE_META).
    Bridge,
    /// By their own name, which is not that of a port of another bridge.
    Ports,
}

/// Builds the table.
#[must_use]
pub fn table(
    network: &UplinkNetwork,
    settings: &Settings,
    ports: &Ports,
    dispatch: Dispatch,
) -> Table {
    let rules = Rules {
        network,
        settings,
        ports,
        dispatch,
    };
    let mut chains = vec![
        chain(Hook::Called(DHCP), rules.dhcp()),
        chain(Hook::Called(OTHERS), rules.others()),
        chain(Hook::Prerouting, rules.prerouting()),
        chain(Hook::Output, rules.output()),
    ];
    if settings.isolate {
        let isolated = dropped(vec![rules.sent_by_machine()], "machines are kept apart");
        chains.push(chain(Hook::Forward, vec![isolated]));
    }
    Table {
        family: Family::Bridge,
        name: TABLE,
        sets: rules.sets(),
        chains,
    }
}

fn chain(hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain {
        hook,
        kind: Kind::Filter,
        priority: Priority::BridgeFilter,
        rules,
    }
}

fn accepted(matches: Vec<Match>) -> Rule {
    Rule::new(matches, Verdict::Accept)
}

fn dropped(matches: Vec<Match>, comment: &'static str) -> Rule {
    Rule::new(matches, Verdict::Drop).counted().comment(comment)
}

fn is_in(key: &'static [Field], set: &'static str) -> Match {
    Match::Key(CompareOp::Equal, key, set)
}

const IPV4: Match = Match::Ipv4Frame;

struct Rules<'a> {
    network: &'a UplinkNetwork,
    settings: &'a Settings,
    ports: &'a Ports,
    dispatch: Dispatch,
}

impl Rules<'_> {
    fn sets(&self) -> Vec<Set> {
        let learned = |name, parts| Set {
            name,
            elements: Elements::Learned(parts, SET_SIZE),
        };
        let mut sets = vec![
            learned(HARDWARE_ADDRESSES, &[KeyPart::HardwareAddress]),
            learned(PORTS, &[KeyPart::HardwareAddress, KeyPart::Interface]),
            learned(
                ADDRESSES,
                &[
                    KeyPart::HardwareAddress,
                    KeyPart::Address,
                    KeyPart::Interface,
                ],
            ),
            learned(FULL_PORTS, &[KeyPart::Interface]),
            learned(REQUESTS, &[KeyPart::Interface]),
            learned(NEW_HARDWARE_ADDRESSES, &[KeyPart::Interface]),
        ];
        let mut interfaces = |name, names: Vec<_>| {
            let elements = Elements::Interfaces(names);
            sets.push(Set { name, elements });
        };
        interfaces(UPLINKS, self.network.uplinks.clone());
        if self.dispatch == Dispatch::Ports {
            let mut others = [self.ports.other.clone(), self.network.uplinks.clone()].concat();
            others.sort();
            others.dedup();
            interfaces(OTHER_PORTS, others);
            interfaces(PUBLIC_PORTS, self.ports.public.clone());
        }
        sets
    }

    fn sent_by_machine(&self) -> Match {
        match self.dispatch {
            Dispatch::Bridge => {
                Match::InputBridge(CompareOp::Equal, self.network.private_bridge.clone())
            }
            Dispatch::Ports => Match::InputIn(CompareOp::NotEqual, OTHER_PORTS),
        }
    }

    fn sent_by_others(&self) -> Match {
        match self.dispatch {
            Dispatch::Bridge => {
                Match::InputBridge(CompareOp::NotEqual, self.network.private_bridge.clone())
            }
            Dispatch::Ports => Match::InputIn(CompareOp::Equal, OTHER_PORTS),
        }
    }

    /// The rules for most frames come as early as they can.
    fn prerouting(&self) -> Vec<Rule> {
        let tcp = Match::Protocol(CompareOp::Equal, Transport::Tcp);
        let uplinks = self.ports.uplinks.iter().cloned();
        let mut rules: Vec<Rule> = uplinks
            .map(|link| accepted(vec![Match::InputLink(link)]))
            .collect();
        let dispatch = Rule::new(vec![self.sent_by_others()], Verdict::Jump(OTHERS));
        if self.settings.require_lease {
            // A key has a port of br1. On other bridges, all frames of TCP pass.
            rules.extend(self.ipv4(vec![IPV4, tcp]));
            rules.push(dispatch);
        } else {
            rules.push(dispatch);
            rules.extend(self.ipv4(vec![IPV4, tcp]));
        }
        rules.extend([
            dropped(
                vec![IPV4, Match::SourcePort(Transport::Udp, DHCP_SERVER)],
                "a machine as DHCP server",
            ),
            Rule::new(
                vec![IPV4, Match::Port(Transport::Udp, DHCP_SERVER)],
                Verdict::Jump(DHCP),
            ),
        ]);
        rules.extend(self.ipv4(vec![IPV4]));
        rules.extend(self.arp());
        let host: Ipv4Net = self.network.private_network.address().into();
        rules.extend([
            dropped(
                vec![Match::Source(CompareOp::Equal, host)],
                "a machine under the host's address",
            ),
            dropped(
                vec![Match::ArpSource(CompareOp::Equal, host)],
                "a machine under the host's address",
            ),
            dropped(vec![IPV4], "a machine under a foreign address"),
            dropped(vec![Match::Arp], "a machine under a foreign address"),
            dropped(vec![], "a machine without IPv4"),
        ]);
        rules
    }

    /// Accepts IPv4 with the addresses of a machine.
    fn ipv4(&self, mut matches: Vec<Match>) -> Vec<Rule> {
        match self.settings.require_lease {
            true => matches.push(is_in(SENDER_OF_IP, ADDRESSES)),
            false => matches.extend(self.any_machine(Match::Source)),
        }
        vec![accepted(matches)]
    }

    /// Accepts ARP with the addresses of a machine, and its probes (RFC 5227, section
    /// 1.1).
    fn arp(&self) -> Vec<Rule> {
        let unspecified = Ipv4Addr::UNSPECIFIED.into();
        let probe = Match::ArpSource(CompareOp::Equal, unspecified);
        if !self.settings.require_lease {
            return vec![
                accepted(self.any_machine(Match::ArpSource).into()),
                accepted(vec![probe]),
            ];
        }
        vec![
            accepted(vec![
                Match::Arp,
                is_in(SENDER_OF_ARP, ADDRESSES),
                is_in(SUBJECT_OF_ARP, ADDRESSES),
            ]),
            accepted(vec![
                probe,
                is_in(SENDER_ON_PORT, PORTS),
                is_in(PROBING_MAC, PORTS),
            ]),
        ]
    }

    /// Matches any address of br1's network except the host's.
    fn any_machine(&self, field: fn(CompareOp, Ipv4Net) -> Match) -> [Match; 2] {
        let network = self.network.private_network;
        [
            field(CompareOp::Equal, network.network()),
            field(CompareOp::NotEqual, network.address().into()),
        ]
    }

    /// Accepts DHCP requests of a machine in its own name, and limits them.
    fn dhcp(&self) -> Vec<Rule> {
        let unspecified: Ipv4Net = Ipv4Addr::UNSPECIFIED.into();
        let foreign = "a DHCP request in the name of another machine";
        let mut rules = vec![
            dropped(
                vec![Match::RateOver {
                    set: REQUESTS,
                    key: PORT,
                    limit: REQUESTS_OF_PORT,
                }],
                "a machine with too many DHCP requests",
            ),
            accepted(vec![
                is_in(SENDER_ON_PORT, PORTS),
                is_in(REQUESTING_CLIENT, PORTS),
                Match::Source(CompareOp::Equal, unspecified),
            ]),
            accepted(vec![
                is_in(SENDER_OF_IP, ADDRESSES),
                is_in(REQUESTING_CLIENT, PORTS),
            ]),
            dropped(vec![is_in(SENDER_ON_PORT, PORTS)], foreign),
        ];
        rules.extend(self.reserved_hardware_addresses());
        rules.extend([
            // A renewal after the key has ended has the machine's address.
            dropped(
                vec![
                    Match::Source(CompareOp::NotEqual, unspecified),
                    Match::Source(CompareOp::NotEqual, self.network.private_network.network()),
                ],
                "a machine under a foreign address",
            ),
            dropped(
                vec![is_in(PORT, FULL_PORTS)],
                "a machine with too many leases",
            ),
            // Until natd has added a port to the set.
            dropped(
                vec![Match::RateOver {
                    set: NEW_HARDWARE_ADDRESSES,
                    key: PORT,
                    limit: self.new_hardware_addresses(),
                }],
                "a machine with too many hardware addresses",
            ),
            Rule::new(vec![], Verdict::Continue)
                .updating(requested(SENDER, HARDWARE_ADDRESSES))
                .updating(requested(SENDER_ON_PORT, PORTS)),
            accepted(vec![is_in(REQUESTING_CLIENT, PORTS)]),
            dropped(vec![], foreign),
        ]);
        rules
    }

    fn new_hardware_addresses(&self) -> RateLimit {
        RateLimit {
            tokens: 1,
            interval: Interval::Minute,
            burst: hardware_address_limit(self.network, self.settings).min(NEW_MACS),
        }
    }

    /// Drops requests with hardware addresses of the host, the probe and other machines.
    fn reserved_hardware_addresses(&self) -> Vec<Rule> {
        let is_not_probe = || Match::NotFrom(buildos_probe::INTERFACE);
        let has = |address| Match::EthernetSource(CompareOp::Equal, address);
        let mut rules: Vec<Rule> = self
            .ports
            .private_address
            .into_iter()
            .map(|host: MacAddress| dropped(vec![has(host)], "the hardware address of the host"))
            .collect();
        // A probe has the address of the previous one, whose port is gone.
        rules.extend([
            dropped(
                vec![is_not_probe(), has(buildos_probe::MAC)],
                "the hardware address of the host",
            ),
            dropped(
                vec![is_not_probe(), is_in(SENDER, HARDWARE_ADDRESSES)],
                "the hardware address of another machine",
            ),
        ]);
        rules
    }

    /// Limits ports of br0 other than the uplink, and accepts the rest.
    fn others(&self) -> Vec<Rule> {
        let not_public = match self.dispatch {
            Dispatch::Bridge => {
                Match::InputBridge(CompareOp::NotEqual, self.network.public_bridge.clone())
            }
            Dispatch::Ports => Match::InputIn(CompareOp::NotEqual, PUBLIC_PORTS),
        };
        let mut rules = vec![
            accepted(vec![Match::InputIn(CompareOp::Equal, UPLINKS)]),
            accepted(vec![not_public]),
            dropped(
                vec![IPV4, Match::SourcePort(Transport::Udp, DHCP_SERVER)],
                "a DHCP server behind the host",
            ),
        ];
        rules.extend(self.network.address.map(|address| {
            dropped(
                vec![Match::ArpSource(CompareOp::Equal, address.into())],
                "the host's address on br0",
            )
        }));
        rules.push(accepted(vec![]));
        rules
    }

    /// Learns leases from dnsmasq's DHCPACK. A broadcast DHCPACK leaves by every port, and
    /// is learned for the port of its client.
    fn output(&self) -> Vec<Rule> {
        let to_machine = match self.dispatch {
            Dispatch::Bridge => Match::OutputBridge(self.network.private_bridge.clone()),
            Dispatch::Ports => Match::OutputNotIn(OTHER_PORTS),
        };
        let lease = config::lease_time(self.network.private_network, self.settings.lease);
        let timeout = lease + LEASE_MARGIN;
        let leased = |key, set| Update {
            set,
            key,
            timeout,
            renew: true,
        };
        vec![
            Rule::new(
                vec![
                    // Most frames are no datagrams.
                    Match::SourcePort(Transport::Udp, DHCP_SERVER),
                    Match::Port(Transport::Udp, DHCP_CLIENT),
                    IPV4,
                    to_machine,
                    Match::DhcpAcknowledgement,
                    Match::DhcpAddress(self.network.private_network.network()),
                    is_in(ANSWERED_CLIENT, PORTS),
                ],
                Verdict::Accept,
            )
            .updating(leased(CLIENT, HARDWARE_ADDRESSES))
            .updating(leased(ANSWERED_CLIENT, PORTS))
            .updating(leased(LEASE, ADDRESSES))
            .counted()
            .comment("leases of machines"),
        ]
    }
}

fn requested(key: &'static [Field], set: &'static str) -> Update {
    Update {
        set,
        key,
        timeout: REQUEST_TIMEOUT,
        renew: false,
    }
}
