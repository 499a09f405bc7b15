//! Simulates the kernel of the host, its cables, and the servers and neighbours behind them.
//!
//! [`Lan`] is the [`Kernel`] and the [`Network`] of netd's reconciler. Messages and other
//! future events wait in a queue until their time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::address_conflict::Report;
use buildos_dhcp::socket_filter::is_of_other_vlan;
use buildos_dhcp::{Event, Instant, Lease, MessageKind, Transmit, arp};
use buildos_netd::history::GONE;
use buildos_netd::kernel::fake::{self, FakeKernel, Refused};
use buildos_netd::observed::{Link, Observed};
use buildos_netd::plan::Op;
use buildos_netd::reconcile::{Kernel, Network, Reconciler};
use buildos_netd::uplink::candidate::Candidate;
use buildos_netd::uplink::gateway::Request;
use buildos_netd::uplink::listeners::Listen;
use buildos_netd::uplink::notice::Notice;
use buildos_types::{InterfaceName, LinkIndex, MacAddress};

use super::server::Server;
use super::timeline::{self, EPOCH, Timeline, since_start};
use super::topology::{Neighbour, Nic, Port, Segment, Topology, Vlan, Word};

/// Delay of a neighbour's ARP packet.
const ARP_DELAY: Duration = Duration::from_millis(1);
/// Delay before a port is added again to a bridge that did not exist.
const PORT_RETRY: Duration = Duration::from_millis(1);

/// A future event.
enum Due {
    Cable {
        nic: LinkIndex,
        plugged: bool,
    },
    Message {
        nic: LinkIndex,
        text: String,
        payload: Vec<u8>,
    },
    Arp {
        nic: LinkIndex,
        text: String,
        packet: arp::Packet,
    },
    /// A frame that the socket filters drop.
    Dropped {
        nic: LinkIndex,
        text: String,
    },
    /// An answer of a gateway, which the timeline omits.
    Answer {
        nic: LinkIndex,
        packet: arp::Packet,
    },
    Port(InterfaceName, Port),
}

/// Returns the addition to a sentence about a frame with that tag, and true if the frame is of
/// another VLAN than that of the link.
fn tagged(vlan: Option<Vlan>, own: Option<u16>) -> (String, bool) {
    let Some(Vlan(vlan)) = vlan else {
        return (String::new(), own.is_some());
    };
    let is_other = own.map_or_else(|| is_of_other_vlan(vlan), |own| own != vlan);
    let suffix = if is_other { ", which is not ours" } else { "" };
    (format!(" with the tag of VLAN {vlan}{suffix}"), is_other)
}

/// Returns true if a frame of a VLAN reaches a host that sends with that tag. Frames without a tag
/// reach every host of the segment: the description does not say to which VLAN they belong.
fn is_reached(vlan: Option<Vlan>, own: Option<u16>) -> bool {
    own.is_none() || vlan.map(|Vlan(vlan)| vlan) == own
}

/// Returns the hardware address of a server: locally administered, with its IP address.
fn server_mac(address: Ipv4Addr) -> MacAddress {
    let [a, b, c, d] = address.octets();
    MacAddress([0x02, 0xfd, a, b, c, d])
}

/// The simulated surroundings of netd.
pub(crate) struct Lan {
    kernel: FakeKernel,
    nics: BTreeMap<LinkIndex, (InterfaceName, Segment)>,
    servers: BTreeMap<Word, Server>,
    neighbours: BTreeMap<Word, Neighbour>,
    /// Future events, by their time and number.
    due: BTreeMap<(Instant, usize), Due>,
    /// Number of the last event in `due`.
    number: usize,
    timeline: Timeline,
}

impl Lan {
    pub(crate) fn new(topology: &Topology) -> Self {
        let servers = topology.servers.iter();
        let mut lan = Self {
            kernel: FakeKernel::new(EPOCH),
            nics: BTreeMap::new(),
            servers: servers
                .map(|(name, spec)| (name.clone(), Server::new(spec.clone())))
                .collect(),
            neighbours: topology.neighbours.clone(),
            due: BTreeMap::new(),
            number: 0,
            timeline: Timeline::default(),
        };
        for (name, nic) in &topology.nics {
            lan.add_nic(name, nic);
        }
        for (name, port) in &topology.ports {
            let at = EPOCH.saturating_add(port.at.0);
            lan.schedule(at, Due::Port(name.clone(), port.clone()));
        }
        lan
    }

    fn add_nic(&mut self, name: &InterfaceName, nic: &Nic) {
        let Some(index) = self.kernel.unused_index() else {
            return;
        };
        self.kernel.add_link(Link {
            mac: Some(nic.mac),
            mtu: nic.mtu,
            wireless: nic.wireless,
            device: nic.kind.is_none(),
            kind: nic.kind.clone(),
            ..fake::nic(index, name.clone())
        });
        self.kernel.plug(index, nic.carrier);
        self.nics.insert(index, (name.clone(), nic.segment.clone()));
        for (times, plugged) in [(&nic.plug, true), (&nic.unplug, false)] {
            for at in times {
                let cable = Due::Cable {
                    nic: index,
                    plugged,
                };
                self.schedule(EPOCH.saturating_add(at.0), cable);
            }
        }
    }

    /// Returns the time of the next event or end of a lifetime.
    pub(crate) fn next(&self) -> Option<Instant> {
        let due = self.due.keys().next().map(|(at, _)| *at);
        due.into_iter().chain(self.kernel.next_expiry()).min()
    }

    /// Advances the clock to `now`, and delivers the events that are due.
    pub(crate) fn advance(&mut self, now: Instant, reconciler: &mut Reconciler) {
        for address in self.kernel.advance(now) {
            let text = format!("the lifetime of {} is over", address.net);
            self.record_for("kernel", text);
            reconciler.kernel_changed(None);
        }
        while let Some(due) = self.due.first_entry().filter(|due| due.key().0 <= now) {
            let due = due.remove();
            self.deliver(due, reconciler);
        }
    }

    fn deliver(&mut self, due: Due, reconciler: &mut Reconciler) {
        let now = self.now();
        match due {
            Due::Cable { nic, plugged } => {
                if self.kernel.plug(nic, plugged) {
                    let text = if plugged { "plugged in" } else { "unplugged" };
                    self.record_for_nic(nic, text);
                    reconciler.kernel_changed(None);
                }
            }
            Due::Message { nic, text, payload } if self.is_plugged(nic) => {
                self.record_for_nic(nic, text);
                reconciler.packet(now, nic, &payload);
            }
            Due::Arp { nic, text, packet } if self.is_plugged(nic) => {
                self.record_for_nic(nic, text);
                reconciler.arp(now, nic, &packet);
            }
            Due::Answer { nic, packet } if self.is_plugged(nic) => {
                reconciler.arp(now, nic, &packet);
            }
            Due::Dropped { nic, text } if self.is_plugged(nic) => {
                self.record_for_nic(nic, text);
            }
            Due::Message { .. } | Due::Arp { .. } | Due::Answer { .. } | Due::Dropped { .. } => {}
            Due::Port(name, port) => {
                self.add_port(name, port);
                reconciler.kernel_changed(None);
            }
        }
    }

    /// Adds the link of a machine to a bridge, or tries again later if there is no bridge.
    fn add_port(&mut self, name: InterfaceName, port: Port) {
        let bridge = port.bridge.as_str();
        let controller = self.kernel.observed.bridge(bridge).map(|link| link.index);
        let (Some(controller), Some(index)) = (controller, self.kernel.unused_index()) else {
            let later = self.now().saturating_add(PORT_RETRY);
            return self.schedule(later, Due::Port(name, port));
        };
        let last_octet = u8::try_from(index.get()).unwrap_or(u8::MAX);
        self.record_for(&name, format!("is added to {bridge} by another program"));
        self.kernel.add_link(Link {
            mac: Some(MacAddress([0x02, 0, 0, 0, 0xfe, last_octet])),
            up: true,
            carrier: true,
            controller: Some(controller),
            kind: Some("tun".to_owned()),
            device: false,
            ..fake::nic(index, name)
        });
    }

    /// Returns the segment that frames of a NIC reach now.
    fn segment(&self, nic: LinkIndex) -> Option<Segment> {
        let (_, segment) = self.nics.get(&self.kernel.observed.nic_of(nic))?;
        self.is_plugged(nic).then(|| segment.clone())
    }

    /// Returns true if the cable of a NIC, or of the NIC of a VLAN, is connected.
    fn is_plugged(&self, link: LinkIndex) -> bool {
        let is_there = self.kernel.observed.links.contains_key(&link);
        is_there && self.kernel.is_plugged(self.kernel.observed.nic_of(link))
    }

    /// Returns the number of the VLAN that netd made a link for.
    fn own_vlan(&self, link: LinkIndex) -> Option<u16> {
        let link = self.kernel.observed.links.get(&link)?;
        link.own_vlan().map(|vlan| vlan.id)
    }

    fn schedule(&mut self, at: Instant, due: Due) {
        self.number = self.number.saturating_add(1);
        self.due.insert((at, self.number), due);
    }

    /// Returns true for the name of a described NIC.
    pub(crate) fn is_nic(&self, name: &InterfaceName) -> bool {
        self.nics.values().any(|(nic, _)| nic == name)
    }

    /// Adds a line to the timeline.
    pub(crate) fn record_for(&mut self, subject: impl ToString, text: impl Into<String>) {
        self.timeline.add(self.kernel.now(), subject, text);
    }

    fn record_for_nic(&mut self, nic: LinkIndex, text: impl Into<String>) {
        if let Some(link) = self.kernel.observed.links.get(&nic) {
            self.timeline.add(self.kernel.now(), &link.name, text);
        }
    }

    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timeline
    }
}

impl Kernel for Lan {
    type Error = Refused;

    fn now(&self) -> Instant {
        self.kernel.now()
    }

    async fn observe(&mut self) -> Result<Observed, Refused> {
        self.kernel.observe().await
    }

    async fn apply(&mut self, op: &Op, observed: &Observed) -> Result<(), Refused> {
        // With the names of links that exist now, which `observed` may lack.
        let text = op.describe(&self.kernel.observed);
        self.record_for("kernel", text);
        self.kernel.apply(op, observed).await
    }
}

impl Network for Lan {
    fn listen(&mut self, _: &[(LinkIndex, Listen)]) {}

    fn transmit(&mut self, nic: &Candidate, transmit: &Transmit) {
        self.record_for(&nic.name, timeline::sent(transmit));
        let Some(segment) = self.segment(nic.index) else {
            return;
        };
        let (now, own) = (self.now(), self.own_vlan(nic.index));
        let mut replies = Vec::new();
        for (Word(name), server) in &mut self.servers {
            let receives = server.spec().segment == segment
                && is_reached(server.spec().vlan, own)
                && server.receives(since_start(now), transmit.destination);
            if !receives {
                continue;
            }
            if let Some(reply) = server.answer(transmit.kind, &transmit.payload) {
                let of = reply.address.map(|net| format!(" of {net}"));
                let lease = server
                    .lease_seconds()
                    .filter(|_| reply.kind == MessageKind::Ack)
                    .map(|seconds| format!(" for {seconds} s"));
                let (of, lease) = (of.unwrap_or_default(), lease.unwrap_or_default());
                let (tag, is_other) = tagged(server.spec().vlan, own);
                let text = format!("{}{of}{lease} comes from {name}{tag}", reply.kind);
                let (nic, payload) = (nic.index, reply.payload);
                let due = match is_other {
                    true => Due::Dropped { nic, text },
                    false => Due::Message { nic, text, payload },
                };
                replies.push((server.delay(reply.kind), due));
            }
        }
        for (delay, due) in replies {
            self.schedule(now.saturating_add(delay), due);
        }
    }

    fn send_arp(&mut self, nic: &Candidate, _: LinkIndex, packet: &arp::Packet) {
        let target = packet.target;
        self.record_for(
            &nic.name,
            match packet.sender {
                sender if sender == target => format!("announces {target} by ARP"),
                sender if sender.is_unspecified() => format!("probes for {target} by ARP"),
                _ => format!("asks for {target} by ARP"),
            },
        );
        let Some(segment) = self.segment(nic.index) else {
            return;
        };
        let neighbours = self.neighbours.iter();
        let (now, own) = (since_start(self.now()), self.own_vlan(nic.index));
        let owners = neighbours.filter(|(_, n)| {
            let is_alive = n.until.is_none_or(|until| now < until.0);
            let is_reached = n.segment == segment && is_reached(n.vlan, own);
            is_alive && is_reached && (n.proxy_arp || n.address == target)
        });
        let answers: Vec<_> = owners
            .map(|(Word(name), neighbour)| {
                let (nic, (tag, is_other)) = (nic.index, tagged(neighbour.vlan, own));
                let text = format!("{name} claims {target} by ARP{tag}");
                let packet = arp::Packet {
                    sender_mac: neighbour.mac,
                    sender: target,
                    target: packet.sender,
                };
                match is_other {
                    true => Due::Dropped { nic, text },
                    false => Due::Arp { nic, text, packet },
                }
            })
            .collect();
        for answer in answers {
            self.schedule(self.now().saturating_add(ARP_DELAY), answer);
        }
    }

    fn ask_gateway(&mut self, nic: &Candidate, _: LinkIndex, request: &Request) {
        let (target, now) = (request.packet.target, self.now());
        let own = self.own_vlan(nic.index);
        let Some(segment) = self.segment(nic.index) else {
            return;
        };
        let server = self.servers.values().any(|server| {
            let spec = server.spec();
            spec.segment == segment
                && spec.address == target
                && !tagged(spec.vlan, own).1
                && server.receives(since_start(now), target)
        });
        let is_alive = |n: &Neighbour| n.until.is_none_or(|until| since_start(now) < until.0);
        let is_heard = |n: &&Neighbour| is_alive(n) && !tagged(n.vlan, own).1;
        let mut neighbours = self.neighbours.values().filter(is_heard);
        let neighbour =
            neighbours.find(|n| n.segment == segment && (n.proxy_arp || n.address == target));
        let mac = neighbour
            .map(|n| n.mac)
            .or(server.then(|| server_mac(target)));
        if let Some(sender_mac) = mac {
            let answer = Due::Answer {
                nic: nic.index,
                packet: arp::Packet {
                    sender_mac,
                    sender: target,
                    target: request.packet.sender,
                },
            };
            self.schedule(now.saturating_add(ARP_DELAY), answer);
        }
    }

    fn record(&mut self, nic: &Candidate, event: &Event) {
        self.record_for(&nic.name, timeline::event(event));
    }

    fn report(&mut self, nic: &Candidate, address: Ipv4Addr, report: Report) {
        self.record_for(&nic.name, timeline::report(address, report));
    }

    fn record_gone(&mut self, nic: &Candidate, lease: &Lease) {
        self.record_for(&nic.name, format!("loses {}: {GONE}", lease.address));
    }

    fn notify(&mut self, nic: &Candidate, notice: &Notice) {
        self.record_for(&nic.name, timeline::notice(notice));
    }
}
