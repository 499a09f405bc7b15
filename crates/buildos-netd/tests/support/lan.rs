//! A host with a fake kernel, and one DHCP server on the network of each NIC.

#![allow(dead_code)] // Each test uses a part of it.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::address_conflict::Report;
use buildos_dhcp::{Event, Instant, Lease, MessageKind, Transmit, arp};
use buildos_netd::kernel::fake::{FakeKernel, Refused};
use buildos_netd::observed::{Link, Observed, PUBLIC_BRIDGE};
use buildos_netd::plan::Op;
use buildos_netd::reconcile::{Kernel, Network};
use buildos_netd::sockets::{Incoming, Message};
use buildos_netd::uplink::candidate::Candidate;
use buildos_netd::uplink::gateway::Request;
use buildos_netd::uplink::listeners::Listen;
use buildos_netd::uplink::notice::Notice;
use buildos_types::{LinkIndex, MacAddress};

use crate::servers::{Server, answer, client_nic, reply};

pub(crate) struct Lan {
    pub(crate) kernel: FakeKernel,
    /// Behaviour and lease time in seconds of the server on the network of each NIC.
    pub(crate) servers: BTreeMap<LinkIndex, (Server, u32)>,
    /// End of the last lease that was granted to the hardware address of a NIC (the first
    /// index) by the server on the network of a NIC (the second). After a failover, netd asks
    /// for one lease on several NICs, and takes the first answer.
    pub(crate) granted: BTreeMap<(LinkIndex, LinkIndex), Instant>,
    /// Messages from servers that the host has not received yet.
    pub(crate) replies: VecDeque<(LinkIndex, Vec<u8>)>,
    /// Hardware address of the gateway that answers ARP on the network of a NIC.
    pub(crate) gateways: BTreeMap<LinkIndex, MacAddress>,
    /// ARP answers that the host has not received yet.
    pub(crate) answers: VecDeque<(LinkIndex, arp::Packet)>,
    /// netd receives messages between operations, too.
    pub(crate) immediate: bool,
    /// Number of times that netd looks for a message between operations before one is there.
    pub(crate) looks: usize,
    /// Times at which netd read the kernel.
    pub(crate) observed_at: Vec<Instant>,
    /// Number of messages that netd had sent when it read the kernel.
    pub(crate) sent_when_observed: Vec<usize>,
    /// A link whose message netd cannot decode.
    pub(crate) undecodable: Option<LinkIndex>,
    /// Messages that netd sent.
    pub(crate) sent: Vec<(LinkIndex, MessageKind)>,
    /// Links and ARP packets that netd broadcast.
    pub(crate) arp: Vec<(LinkIndex, arp::Packet)>,
    /// Operations that netd requested.
    pub(crate) attempts: Vec<Op>,
    /// Operations that the kernel refused, with their times.
    pub(crate) refused: Vec<(Instant, Op)>,
}

impl Lan {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            kernel: FakeKernel::new(now).with_whole_seconds(),
            servers: BTreeMap::new(),
            granted: BTreeMap::new(),
            replies: VecDeque::new(),
            gateways: BTreeMap::new(),
            answers: VecDeque::new(),
            immediate: false,
            looks: 0,
            observed_at: Vec::new(),
            sent_when_observed: Vec::new(),
            undecodable: None,
            sent: Vec::new(),
            arp: Vec::new(),
            attempts: Vec::new(),
            refused: Vec::new(),
        }
    }
}

impl Kernel for Lan {
    type Error = Refused;

    fn now(&self) -> Instant {
        self.kernel.now()
    }

    async fn observe(&mut self) -> Result<Observed, Refused> {
        self.observed_at.push(self.now());
        self.sent_when_observed.push(self.sent.len());
        let mut observed = self.kernel.observe().await?;
        observed
            .links
            .retain(|index, _| Some(*index) != self.undecodable);
        Ok(observed)
    }

    fn has_link(&self, link: &Link) -> bool {
        self.kernel.observed.links.contains_key(&link.index)
    }

    async fn apply(&mut self, op: &Op, observed: &Observed) -> Result<(), Refused> {
        let result = self.kernel.apply(op, observed).await;
        self.attempts.push(op.clone());
        if result.is_err() {
            self.refused.push((self.now(), op.clone()));
        }
        let ports = self.kernel.observed.ports(PUBLIC_BRIDGE);
        let nics = ports.filter(|port| port.kind.is_none() || port.vlan.is_some());
        assert!(nics.count() <= 1, "two NICs in br0 after {op:?}");
        result
    }
}

impl Network for Lan {
    fn received(&mut self) -> Option<Incoming> {
        if !self.immediate {
            return None;
        }
        if self.looks > 0 {
            self.looks -= 1;
            return None;
        }
        let (client, payload) = self.replies.pop_front()?;
        let message = Message::Dhcp(payload);
        Some(Incoming { client, message })
    }

    fn listen(&mut self, _: &[(LinkIndex, Listen)]) {}

    fn transmit(&mut self, nic: &Candidate, transmit: &Transmit) {
        self.sent.push((nic.index, transmit.kind));
        // A VLAN of a NIC leads to the NIC's server.
        let (server, lease) = self.servers[&nic.nic];
        let reached =
            self.kernel.is_plugged(nic.nic) && self.kernel.observed.links.contains_key(&nic.index);
        let Some(kind) = answer(server, transmit).filter(|_| reached) else {
            return;
        };
        if transmit.kind == MessageKind::Request && server == Server::Good {
            let until = self.now() + Duration::from_secs(lease.into());
            let owner = client_nic(transmit);
            self.granted.insert((owner, nic.nic), until);
        }
        let message = reply(server, nic.nic, transmit, kind, lease);
        self.replies.push_back((nic.index, message));
    }

    fn send_arp(&mut self, _: &Candidate, link: LinkIndex, packet: &arp::Packet) {
        self.arp.push((link, *packet));
    }

    fn ask_gateway(&mut self, nic: &Candidate, _: LinkIndex, request: &Request) {
        let gateway = self.gateways.get(&nic.nic);
        if let Some(mac) = gateway.filter(|_| self.kernel.is_plugged(nic.nic)) {
            let answer = arp::Packet {
                sender_mac: *mac,
                sender: request.packet.target,
                target: request.packet.sender,
            };
            self.answers.push_back((nic.index, answer));
        }
    }

    fn record(&mut self, _: &Candidate, _: &Event) {}

    fn report(&mut self, _: &Candidate, _: Ipv4Addr, _: Report) {}

    fn record_gone(&mut self, _: &Candidate, _: &Lease) {}

    fn notify(&mut self, _: &Candidate, _: &Notice) {}
}
