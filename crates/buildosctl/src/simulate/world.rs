//! The host in stepped time: the decisions are those of the daemons' own pure code; what
//! is simulated here is the kernel, the cables and who answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use buildos_dbus_api::network1::{LinkRole, Network, State};
use buildos_dhcp::{Event, Instant, MessageKind, Transmit, arp};
use buildos_hostnamed::choice::{self, Choice};
use buildos_natd::site::Site;
use buildos_natd::{dnsmasq, ruleset};
use buildos_netd::desired::{self, Wish};
use buildos_netd::kernel::fake;
use buildos_netd::mac::MacAddress;
use buildos_netd::plan::{self, Observed, Op, PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use buildos_netd::private::PrivateNetwork;
use buildos_netd::status::{self, Clocks, Picture};
use buildos_netd::uplink::candidate;
use buildos_netd::uplink::election::{Effect, Race, Rules};

use super::server::Server;
use super::settings::Settings;
use super::topology::{LinkName, Nic, Segment, Topology, Word};

/// What is simulated when the description does not say for how long.
const DURATION: Duration = Duration::from_secs(60);
/// What the boot clock shows at the start; it never shows zero.
const EPOCH: Duration = Duration::from_secs(10);
/// Until a neighbour's ARP packet arrives.
const ARP_DELAY: Duration = Duration::from_millis(1);
/// Rounds of plan and apply for one event, as many as netd takes.
const ROUNDS: usize = 5;
/// Index of the first link; 1 is the loopback's.
const FIRST_INDEX: u32 = 2;
/// Where all randomness begins: the same file gives the same answer.
const SEED: u64 = 1;
/// A timeline that nobody reads any more.
const LONGEST: usize = 100_000;

/// One line of the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Since the start.
    pub(crate) at: Duration,
    /// A NIC, or who decides or changes something.
    pub(crate) who: String,
    /// What happens.
    pub(crate) what: String,
}

/// What natd would have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Nat {
    /// Its table, as nft(8) lists it.
    pub(crate) table: String,
    /// What dnsmasq runs with.
    pub(crate) dnsmasq: String,
    /// Whom dnsmasq asks.
    pub(crate) resolv: String,
}

/// Something on its way.
enum Due {
    Cable {
        nic: u32,
        plugged: bool,
    },
    Message {
        nic: u32,
        text: String,
        payload: Vec<u8>,
    },
    Arp {
        nic: u32,
        text: String,
        packet: arp::Packet,
    },
    Port(LinkName),
}

/// Everything.
pub(crate) struct World {
    settings: Settings,
    topology: Topology,
    now: Instant,
    nics: BTreeMap<u32, (String, Nic)>,
    plugged: BTreeSet<u32>,
    servers: BTreeMap<Word, Server>,
    /// In the order of time, then of being sent.
    due: BTreeMap<(Instant, usize), Due>,
    sent: usize,
    race: Race,
    observed: Observed,
    private: Option<PrivateNetwork>,
    picture: Option<Picture>,
    choice: Option<Choice>,
    nat: Result<Nat, String>,
    timeline: Vec<Entry>,
}

impl World {
    /// A host before its daemons start.
    pub(crate) fn new(topology: Topology, settings: Settings) -> Self {
        let nics: BTreeMap<u32, (String, Nic)> = (FIRST_INDEX..)
            .zip(&topology.nics)
            .map(|(index, (LinkName(name), nic))| (index, (name.clone(), nic.clone())))
            .collect();
        let servers = topology.servers.iter();
        let mut world = Self {
            now: EPOCH,
            plugged: BTreeSet::new(),
            servers: servers
                .map(|(name, spec)| (name.clone(), Server::new(spec.clone())))
                .collect(),
            due: BTreeMap::new(),
            sent: 0,
            race: Race::new(Rules::from(&settings.netd), SEED),
            observed: Observed::default(),
            private: None,
            picture: None,
            choice: None,
            nat: Err(String::new()),
            timeline: Vec::new(),
            nics,
            settings,
            topology,
        };
        world.wire_up();
        world
    }

    fn wire_up(&mut self) {
        for (index, (name, nic)) in self.nics.clone() {
            let link = buildos_netd::observed::Link {
                mac: Some(nic.mac),
                mtu: nic.mtu,
                wireless: nic.wireless,
                device: nic.kind.is_none(),
                kind: nic.kind,
                ..fake::nic(index, &name)
            };
            self.observed.links.insert(index, link);
            if nic.carrier {
                self.plugged.insert(index);
            }
            for (times, plugged) in [(nic.plug, true), (nic.unplug, false)] {
                for at in times {
                    let cable = Due::Cable {
                        nic: index,
                        plugged,
                    };
                    self.post(EPOCH.saturating_add(at.0), cable);
                }
            }
        }
        for (name, port) in self.topology.ports.clone() {
            self.post(EPOCH.saturating_add(port.at.0), Due::Port(name));
        }
    }

    /// Lets all the time pass.
    ///
    /// # Errors
    ///
    /// More happens than anybody wants to read.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        let duration = self.topology.duration.map_or(DURATION, |moment| moment.0);
        let end = EPOCH.saturating_add(duration);
        self.step();
        while let Some(next) = self.next().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.expire();
            while let Some(due) = self.due.first_entry().filter(|due| due.key().0 <= self.now) {
                let due = due.remove();
                self.arrive(due);
            }
            if self
                .race
                .deadline()
                .is_some_and(|deadline| deadline <= self.now)
            {
                self.race.timeout(self.now);
            }
            self.step();
            if self.timeline.len() > LONGEST {
                return Err(format!(
                    "more than {LONGEST} things happen within {} s; make duration_s less",
                    self.since(self.now).as_secs()
                ));
            }
        }
        self.now = end;
        Ok(())
    }

    fn next(&self) -> Option<Instant> {
        let due = self.due.keys().next().map(|(at, _)| *at);
        let expiry = self
            .observed
            .addresses
            .iter()
            .filter_map(|address| address.expires);
        due.into_iter()
            .chain(self.race.deadline())
            .chain(expiry)
            .min()
    }

    /// The kernel's part: an address goes with its lifetime, its routes with it.
    fn expire(&mut self) {
        let now = self.now;
        let over = |address: &plan::Address| address.expires.is_some_and(|at| at <= now);
        for address in self
            .observed
            .addresses
            .iter()
            .filter(|a| over(a))
            .cloned()
            .collect::<Vec<_>>()
        {
            self.observed.addresses.retain(|other| *other != address);
            self.observed
                .routes
                .retain(|route| route.source != address.net.addr());
            self.tell("kernel", format!("the lifetime of {} is over", address.net));
        }
    }

    fn arrive(&mut self, due: Due) {
        match due {
            Due::Cable { nic, plugged } => {
                let changed = match plugged {
                    true => self.plugged.insert(nic),
                    false => self.plugged.remove(&nic),
                };
                if changed {
                    let what = if plugged { "plugged in" } else { "unplugged" };
                    self.tell_nic(nic, what.to_owned());
                }
            }
            Due::Message { nic, text, payload } if self.plugged.contains(&nic) => {
                self.tell_nic(nic, text);
                self.race.packet(self.now, nic, &payload);
            }
            Due::Arp { nic, text, packet } if self.plugged.contains(&nic) => {
                self.tell_nic(nic, text);
                self.race.arp(self.now, nic, &packet);
            }
            Due::Message { .. } | Due::Arp { .. } => {}
            Due::Port(name) => self.put_port(&name),
        }
    }

    /// Somebody puts a machine's link into a bridge; later when the bridge is not there.
    fn put_port(&mut self, name: &LinkName) {
        let Some(port) = self.topology.ports.get(name).cloned() else {
            return;
        };
        let bridge = port.bridge.as_str();
        let Some(controller) = self.observed.bridge(bridge).map(|bridge| bridge.index) else {
            let later = self.now.saturating_add(Duration::from_millis(1));
            return self.post(later, Due::Port(name.clone()));
        };
        let LinkName(name) = name;
        let index = self.unused_index();
        let link = buildos_netd::observed::Link {
            mac: Some(MacAddress([
                0x02,
                0,
                0,
                0,
                0xfe,
                u8::try_from(index).unwrap_or(u8::MAX),
            ])),
            up: true,
            carrier: true,
            controller: Some(controller),
            kind: Some("tun".to_owned()),
            device: false,
            ..fake::nic(index, name)
        };
        self.observed.links.insert(index, link);
        self.tell(name, format!("somebody puts it into {bridge}"));
    }

    fn unused_index(&self) -> u32 {
        let last = self.observed.links.keys().next_back();
        last.map_or(FIRST_INDEX, |last| last.saturating_add(1))
    }

    /// What follows from what has happened, as in the daemons: the network, then the
    /// name, then what machines have, until nothing changes any more.
    fn step(&mut self) {
        for _ in 0..ROUNDS {
            self.reconcile();
            let picture = self.draw();
            let network = picture.published();
            self.report(&picture);
            self.picture = Some(picture);
            self.nat(&network);
            if !self.name(&network) {
                return;
            }
        }
    }

    /// netd: brings race and kernel into agreement.
    fn reconcile(&mut self) {
        for _ in 0..ROUNDS {
            self.look();
            self.exchange();
            self.private = desired::private(&self.race, &self.settings.netd, self.private);
            let nics = candidate::nics(&self.observed, &self.settings.netd.include);
            let wish = Wish::new(&self.race, nics, self.private, self.now);
            let ops = plan::plan(&wish, &self.observed);
            if ops.is_empty() {
                return;
            }
            for op in &ops {
                self.apply(op);
            }
        }
    }

    fn look(&mut self) {
        let up = |index: &u32, link: &buildos_netd::observed::Link| {
            link.up && self.plugged.contains(index)
        };
        let mut carrying = BTreeSet::new();
        for (index, link) in &mut self.observed.links {
            if self.nics.contains_key(index) {
                link.carrier = up(index, link);
            }
            if link.carrier {
                carrying.extend(link.controller);
            }
        }
        for link in self
            .observed
            .links
            .values_mut()
            .filter(|link| link.bridge.is_some())
        {
            link.carrier = link.up && carrying.contains(&link.index);
        }
        let own = self.observed.links.values().filter_map(|link| link.mac);
        self.race.set_own(own.collect());
        let candidates = candidate::list(&self.observed, &self.settings.netd);
        self.race.set_candidates(self.now, candidates);
    }

    fn apply(&mut self, op: &Op) {
        self.tell("kernel", op.describe(&self.observed));
        let created = self.unused_index();
        fake::apply(&mut self.observed, op, created);
    }

    fn exchange(&mut self) {
        while let Some(effect) = self.race.poll() {
            match effect {
                Effect::Transmit(nic, transmit) => self.transmit(nic, &transmit),
                Effect::Arp(nic, packet) => self.arp(nic, &packet),
                Effect::Event(nic, event) => {
                    self.tell_nic(nic, in_words(&event));
                }
            }
        }
    }

    fn transmit(&mut self, nic: u32, transmit: &Transmit) {
        self.tell_nic(nic, sent(transmit));
        let Some(segment) = self.reached(nic) else {
            return;
        };
        let at = self.since(self.now);
        let mut replies = Vec::new();
        for (Word(name), server) in &mut self.servers {
            if server.spec().segment != segment || !server.hears(at, transmit.destination) {
                continue;
            }
            if let Some(reply) = server.answer(transmit.kind, &transmit.payload) {
                let of = reply
                    .address
                    .map(|net| format!(" of {net}"))
                    .unwrap_or_default();
                let lease = server
                    .lease_seconds()
                    .filter(|_| reply.kind == MessageKind::Ack);
                let lease = lease.map(|s| format!(" for {s} s")).unwrap_or_default();
                let text = format!("{}{of}{lease} comes from {name}", reply.kind);
                replies.push((server.delay(reply.kind), text, reply.payload));
            }
        }
        for (delay, text, payload) in replies {
            self.post(
                self.now.saturating_add(delay),
                Due::Message { nic, text, payload },
            );
        }
    }

    fn arp(&mut self, nic: u32, packet: &arp::Packet) {
        let asks = packet.sender.is_unspecified();
        self.tell_nic(
            nic,
            match asks {
                true => format!("asks by ARP who has {}", packet.target),
                false => format!("tells by ARP that it has {}", packet.target),
            },
        );
        let Some(segment) = self.reached(nic) else {
            return;
        };
        let neighbours = self.topology.neighbours.iter();
        let owners = neighbours.filter(|(_, n)| n.segment == segment && n.address == packet.target);
        let answers: Vec<_> = owners
            .map(|(Word(name), neighbour)| {
                let packet = arp::Packet {
                    sender_mac: neighbour.mac,
                    sender: neighbour.address,
                    target: packet.sender,
                };
                let text = format!("{name} answers by ARP that it has {}", neighbour.address);
                Due::Arp { nic, text, packet }
            })
            .collect();
        for answer in answers {
            self.post(self.now.saturating_add(ARP_DELAY), answer);
        }
    }

    /// The segment that a NIC's frames reach now.
    fn reached(&self, nic: u32) -> Option<Segment> {
        let plugged = self.plugged.contains(&nic);
        self.nics
            .get(&nic)
            .filter(|_| plugged)
            .map(|(_, nic)| nic.segment.clone())
    }

    fn draw(&self) -> Picture {
        let clocks = Clocks {
            boottime: self.now,
            realtime: self.now,
        };
        let (netd, problems) = (&self.settings.netd, Vec::new());
        status::draw(
            &self.observed,
            &self.race,
            netd,
            self.private,
            problems,
            clocks,
        )
    }

    /// Tells what has become of the network, and of links that take no part.
    fn report(&mut self, picture: &Picture) {
        let before = self.picture.as_ref();
        let ignored = picture
            .links
            .iter()
            .filter(|link| link.role == LinkRole::Ignored);
        let new = ignored.filter(|link| {
            before.is_none_or(|picture| picture.links.iter().all(|other| other.index != link.index))
        });
        let ours = |name: &str| self.nics.values().any(|(nic, _)| nic == name);
        let mut lines: Vec<_> = new
            .filter(|link| ours(&link.name))
            .map(|link| (link.name.clone(), format!("takes no part: {}", link.reason)))
            .collect();
        // While it looks for a lease every message changes the reason.
        let what = |p: &Picture| {
            (
                p.state,
                p.lease.as_ref().map(|l| l.address),
                p.uplink.clone(),
            )
        };
        if before.is_none_or(|before| what(before) != what(picture)) {
            let text = match picture.state {
                State::Acquiring => picture.state.as_str().to_owned(),
                State::NoCarrier | State::Online | State::CarrierLost => {
                    format!("{}: {}", picture.state, picture.reason)
                }
            };
            lines.push(("netd".to_owned(), text));
        }
        let private = |picture: &Picture| picture.private.map(|network| network.to_string());
        let old = before.and_then(private);
        match (old, private(picture)) {
            (Some(old), Some(new)) if old != new => lines.push((
                "netd".to_owned(),
                format!("br1 changes from {old} to {new}, as the uplink's networks overlap"),
            )),
            _ => {}
        }
        for (who, what) in lines {
            self.tell(&who, what);
        }
    }

    /// hostnamed, and the way of its name back to the servers. Whether there is a new one.
    fn name(&mut self, network: &Network) -> bool {
        // Nobody names the host here but the configuration, whose name comes first anyway.
        let Some(choice) = choice::choose(&self.settings.hostnamed, Some(network), &[]) else {
            return false;
        };
        if self.choice.as_ref() == Some(&choice) {
            return false;
        }
        let known = self.choice.iter().flat_map(|choice| &choice.refused);
        let known: Vec<_> = known.cloned().collect();
        for refused in choice
            .refused
            .iter()
            .filter(|refused| !known.contains(refused))
        {
            self.tell("hostnamed", format!("refuses {refused}"));
        }
        self.tell(
            "hostnamed",
            format!("this host is {}: {}", choice.name, choice.reason),
        );
        let told = self.settings.netd.send_name.told(choice.name.to_string());
        self.choice = Some(choice);
        self.race.set_name(self.now, told);
        true
    }

    /// natd.
    fn nat(&mut self, network: &Network) {
        let settings = &self.settings.natd;
        let nat = UplinkNetwork::try_from(network)
            .map_err(|error| error.to_string())
            .map(|network| Nat {
                table: policy::table(&network, settings).to_string(),
                dnsmasq: dnsmasq::configuration(&network, settings.lease),
                resolv: dnsmasq::resolv(&network.dns),
            });
        if nat == self.nat {
            return;
        }
        let before = self.nat.clone().unwrap_or_default();
        let mut lines = Vec::new();
        match &nat {
            Err(why) => lines.push(format!("waits: {why}")),
            Ok(nat) => {
                if nat.table != before.table {
                    lines.push(format!(
                        "puts table inet {} in place for {}",
                        policy::TABLE,
                        network.private_network
                    ));
                }
                if nat.dnsmasq != before.dnsmasq {
                    lines.push(format!("configures dnsmasq for {}", network.private_bridge));
                }
                if nat.resolv != before.resolv {
                    lines.push(match network.dns.as_slice() {
                        [] => "has no name server to forward to".to_owned(),
                        servers => format!("forwards names to {}", servers.join(", ")),
                    });
                }
            }
        }
        self.nat = nat;
        for line in lines {
            self.tell("natd", line);
        }
    }

    fn post(&mut self, at: Instant, due: Due) {
        self.sent = self.sent.saturating_add(1);
        self.due.insert((at, self.sent), due);
    }

    fn since(&self, now: Instant) -> Duration {
        now.saturating_sub(EPOCH)
    }

    fn tell_nic(&mut self, nic: u32, what: String) {
        let name = self
            .nics
            .get(&nic)
            .map_or_else(String::new, |(name, _)| name.clone());
        self.tell(&name, what);
    }

    fn tell(&mut self, who: &str, what: String) {
        self.timeline.push(Entry {
            at: self.since(self.now),
            who: who.to_owned(),
            what,
        });
    }

    /// What happened.
    pub(crate) fn timeline(&self) -> &[Entry] {
        &self.timeline
    }

    /// What the host has in the end.
    pub(crate) fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What netd says in the end.
    pub(crate) fn picture(&self) -> Picture {
        self.draw()
    }

    /// The host's name, once it has one.
    pub(crate) fn choice(&self) -> Option<&Choice> {
        self.choice.as_ref()
    }

    /// What natd has in the end, or what it waits for.
    pub(crate) fn natd(&self) -> Result<&Nat, &str> {
        self.nat.as_ref().map_err(String::as_str)
    }

    /// How long all of it was.
    pub(crate) fn duration(&self) -> Duration {
        self.since(self.now)
    }

    /// From a point of the host's clock to the end, in seconds.
    pub(crate) fn seconds_until(&self, at: Instant) -> u64 {
        at.saturating_sub(self.now).as_secs()
    }

    /// Names of the ports of a bridge.
    pub(crate) fn ports(&self, bridge: &str) -> Vec<String> {
        let picture = self.draw();
        match bridge {
            PUBLIC_BRIDGE => picture.public_ports,
            PRIVATE_BRIDGE => picture.private_ports,
            _ => Vec::new(),
        }
    }
}

/// A message that is sent, as a sentence.
fn sent(transmit: &Transmit) -> String {
    match transmit.destination {
        to if to.is_broadcast() => format!("sends {}", transmit.kind),
        to => format!("sends {} to {to}", transmit.kind),
    }
}

/// What happens to a client, as a sentence.
fn in_words(event: &Event) -> String {
    match event {
        Event::Offered { server, address } => format!("is offered {address} by {server}"),
        Event::Refused {
            kind,
            server,
            reason,
        } => {
            let of = server.map(|server| format!(" of {server}"));
            format!("refuses the {kind}{}: {reason}", of.unwrap_or_default())
        }
        Event::RequestFailed { server, reason } => format!("gives up on {server}: {reason}"),
        Event::Bound(lease) => format!("is bound to {} by {}", lease.address, lease.server),
        Event::Renewed(lease) => format!("has {} extended by {}", lease.address, lease.server),
        Event::Unconfirmed(lease) => format!("keeps {}, which nobody confirms", lease.address),
        Event::Lost { lease, reason } => format!("loses {}: {reason}", lease.address),
    }
}
