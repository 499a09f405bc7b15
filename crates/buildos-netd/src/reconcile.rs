//! Brings the kernel into the desired state.
//!
//! ```text
//!  carrier, packets, time                     configuration
//!            |                                      |
//!            v                                      v
//!   observed --> candidates --> election --> desired state
//!      ^                                            |
//!      |                                            v
//!      +------------- apply <---------------- plan (difference)
//! ```
//!
//! One event takes as many rounds as the plan needs: three from an empty kernel to two
//! configured bridges. The last observation is reused in the first round unless the kernel
//! reported changes, and after a round that replaced lifetimes only, as a renewal does.
//!
//! Messages are received between the operations too, and answered at once. A message that
//! changes the desired state ends the round.
//!
//! | event | reaction |
//! |---|---|
//! | the kernel refuses an operation | log once, apply the others, retry in 2 s |
//! | the kernel refuses to detach the former uplink | do not attach the new one |
//! | an operation is needed although the desired state did not change | log a repair |
//! | the kernel accepts an operation without effect | log once, apply the others, retry in 2, 4, … 64 s |
//! | the plan is not empty after eight rounds | retry in 2 s: another program undoes the changes |
//!
//! The daemon, `buildosctl simulate` and the model test drive the same [`Reconciler`], with
//! different implementations of [`Kernel`] and [`Network`].

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use buildos_dhcp::address_conflict::Report;
use buildos_dhcp::{Event, Instant, Lease, Transmit, arp};
use buildos_service::text;
use buildos_types::{LinkIndex, MacAddress, PrivateNetwork};

use crate::desired::Desired;
use crate::lldp::{Frame, Neighbours};
use crate::messages;
use crate::observed::{Link, Observed, PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use crate::original_mtus::OriginalMtus;
use crate::plan::{self, Op};
use crate::private_network::{self, Occupied};
use crate::settings::{Ipv6, Settings};
use crate::sockets::{Incoming, Message};
use crate::uplink::candidate::{self, Candidate};
use crate::uplink::election::{Effect, Election, Rules};
use crate::uplink::gateway::Request;
use crate::uplink::listeners::{Listen, listeners, receiving_link};
use crate::uplink::notice::Notice;

/// Limit of rounds for one event.
const ROUNDS: usize = 8;
/// Limit of messages that are taken in a row: they can arrive faster than netd answers.
const MESSAGES: usize = 64;
/// Delay before a refused operation is applied again.
pub const RETRY: Duration = Duration::from_secs(2);

/// The kernel's clock and network configuration.
pub trait Kernel {
    /// Reason why an observation failed, or an operation was refused.
    type Error: std::error::Error + 'static;

    /// Returns the time since boot (CLOCK_BOOTTIME).
    fn now(&self) -> Instant;

    /// Reads the network configuration.
    fn observe(&mut self) -> impl Future<Output = Result<Observed, Self::Error>>;

    /// Returns true if the link exists, by another source than [`Kernel::observe`].
    fn has_link(&self, _: &Link) -> bool {
        false
    }

    /// Applies one operation. `observed` supplies the names of links.
    fn apply(
        &mut self,
        op: &Op,
        observed: &Observed,
    ) -> impl Future<Output = Result<(), Self::Error>>;
}

/// The sockets of the DHCP clients, and the observer of their events.
pub trait Network {
    /// Returns the next received message, without waiting for one.
    fn received(&mut self) -> Option<Incoming> {
        None
    }

    /// Opens the given sockets in addition to the open ones.
    fn listen(&mut self, listeners: &[(LinkIndex, Listen)]);

    /// Sends a DHCP message of a client by its NIC.
    fn transmit(&mut self, nic: &Candidate, transmit: &Transmit);

    /// Broadcasts an ARP packet of a client by a link: its NIC, or br0 if the NIC is a port
    /// of it, so that the packet reaches br0's other ports.
    fn send_arp(&mut self, nic: &Candidate, link: LinkIndex, packet: &arp::Packet);

    /// Sends an ARP request to a gateway, by the same link.
    fn ask_gateway(&mut self, nic: &Candidate, link: LinkIndex, request: &Request);

    /// Records an event of a client.
    fn record(&mut self, nic: &Candidate, event: &Event);

    /// Records a finding about another host and the address of a client.
    fn report(&mut self, nic: &Candidate, address: Ipv4Addr, report: Report);

    /// Records that a NIC went, and its lease with it.
    fn record_gone(&mut self, nic: &Candidate, lease: &Lease);

    /// Records a decision of the election.
    fn notify(&mut self, nic: &Candidate, notice: &Notice);
}

/// The uplink of an earlier netd, of this boot or the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct FormerUplink {
    pub mac: MacAddress,
    /// Hardware address of the gateway, if it answered.
    pub gateway_mac: Option<MacAddress>,
    /// Hardware address of br0, if another NIC had the lease first.
    pub identity: Option<MacAddress>,
    pub lease: Lease,
}

/// The reconcile loop and its state.
#[derive(Debug)]
pub struct Reconciler {
    settings: Settings,
    election: Election,
    observed: Observed,
    /// The desired state that the kernel had, apart from refused operations, at the end of
    /// the last reconciliation.
    settled: Option<Desired>,
    private: Option<PrivateNetwork>,
    original_mtus: OriginalMtus,
    neighbours: Neighbours,
    /// What `private` overlaps with: no private network is free.
    overlap: Option<Occupied>,
    /// The next step reads the kernel before it plans.
    observe_due: bool,
    /// Author of the last change by others, as a netlink port.
    changed_by: Option<u32>,
    /// Operations that the kernel refused in the last reconciliation.
    refused: Vec<Op>,
    /// Reconciliations in a row with operations without effect.
    ineffective: u32,
    retry_at: Option<Instant>,
}

impl Reconciler {
    /// Returns a reconciler that has observed nothing. All randomness derives from `seed`.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            election: Election::new(Rules::from(&settings), seed),
            settings,
            observed: Observed::default(),
            settled: None,
            private: None,
            original_mtus: OriginalMtus::default(),
            neighbours: Neighbours::default(),
            overlap: None,
            observe_due: false,
            changed_by: None,
            refused: Vec::new(),
            ineffective: 0,
            retry_at: None,
        }
    }

    /// Observes the kernel, resumes the uplink of an earlier netd of this boot, and
    /// reconciles. The former lease remains in use while its server confirms it. br1
    /// keeps its network.
    ///
    /// # Errors
    ///
    /// An observation failed.
    pub async fn start<H: Kernel + Network>(
        &mut self,
        host: &mut H,
        former: Option<FormerUplink>,
    ) -> Result<(), H::Error> {
        self.observed = host.observe().await?;
        self.private = self.private_network_of_br1();
        let candidates = candidate::list(&self.observed, &self.settings);
        let former = former.and_then(|former| {
            let nic = candidates.iter().find(|nic| nic.mac == former.mac)?;
            Some((nic.clone(), former))
        });
        if let Some((nic, former)) = former {
            let (lease, gateway, identity) = (former.lease, former.gateway_mac, former.identity);
            self.election
                .resume(host.now(), nic, lease, gateway, identity);
        }
        self.update_candidates(host);
        self.reconcile(host, false).await
    }

    /// Asks for the lease of the boot before, unless br0 has one: beside the search, which does
    /// not wait.
    pub fn ask_for_former_lease(&mut self, now: Instant, former: FormerUplink) {
        // br0 had the hardware address of a different NIC: the lease belongs to that one.
        if former
            .identity
            .is_none_or(|identity| identity == former.mac)
        {
            self.election
                .ask_for_former_lease(now, former.mac, former.lease);
        }
    }

    /// Reconciles if a change, a retry or an outcome of the election requires it. Call it
    /// after every input.
    ///
    /// # Errors
    ///
    /// An observation failed.
    pub async fn step<H: Kernel + Network>(&mut self, host: &mut H) -> Result<(), H::Error> {
        self.exchange(host);
        let observe = std::mem::take(&mut self.observe_due);
        let desired = self.desired(host.now());
        if observe || self.settled != Some(desired) {
            self.reconcile(host, observe).await?;
        }
        Ok(())
    }

    /// Makes the next step read the kernel. `by` is the netlink port of the process that
    /// made the change, if it is a single process.
    pub fn kernel_changed(&mut self, by: Option<u32>) {
        self.observe_due = true;
        self.changed_by = by;
    }

    /// Replaces the settings. Chooses the private network anew if its preferences changed.
    pub fn configure(&mut self, now: Instant, settings: Settings) {
        if settings.private != self.settings.private {
            self.private = None;
        }
        self.settings = settings;
        self.election.set_rules(now, Rules::from(&self.settings));
        self.observe_due = true;
    }

    /// Replaces the hostname that DHCP servers learn.
    pub fn set_hostname(&mut self, now: Instant, hostname: Option<String>) {
        let hostname = hostname.and_then(|name| self.settings.send_name.option(name));
        self.election.set_hostname(now, hostname);
    }

    /// Processes a message of a NIC's network.
    pub fn receive(&mut self, now: Instant, incoming: &Incoming) {
        match &incoming.message {
            Message::Dhcp(payload) => self.packet(now, incoming.client, payload),
            Message::Arp(packet) => self.arp(now, incoming.client, packet),
            Message::Lldp(frame) => self.lldp(now, incoming.client, frame.clone()),
        }
    }

    /// Processes a DHCP message for the client of a NIC.
    pub fn packet(&mut self, now: Instant, nic: LinkIndex, payload: &[u8]) {
        self.election.packet(now, nic, payload);
    }

    /// Processes an ARP packet from the network of a NIC.
    pub fn arp(&mut self, now: Instant, nic: LinkIndex, packet: &arp::Packet) {
        self.election.arp(now, nic, packet);
    }

    /// Processes an LLDP frame that a NIC received.
    pub fn lldp(&mut self, now: Instant, nic: LinkIndex, frame: Frame) {
        if self.settings.lldp {
            self.neighbours.receive(now, nic, frame);
        }
    }

    /// Requests an extension of the lease now.
    pub fn renew(&mut self, now: Instant) {
        self.election.renew(now);
    }

    /// Processes the timers that are due. Call it at [`Reconciler::deadline`].
    pub fn timeout(&mut self, now: Instant) {
        self.observe_due |= self.retry_at.is_some_and(|retry| retry <= now);
        self.election.timeout(now);
        self.neighbours.timeout(now);
    }

    /// Returns the latest time for the next call of [`Reconciler::timeout`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.election.deadline(),
            self.neighbours.deadline(),
            self.retry_at,
        ];
        deadlines.into_iter().flatten().min()
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn election(&self) -> &Election {
        &self.election
    }

    /// Returns the state of the kernel at the last observation.
    #[must_use]
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Returns what LLDP says about the other ends of the cables.
    #[must_use]
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// Returns the desired network of br1.
    #[must_use]
    pub fn private_network(&self) -> Option<PrivateNetwork> {
        self.private
    }

    /// Returns what the network of br1 overlaps with, if no private network is free.
    #[must_use]
    pub fn overlap(&self) -> Option<Occupied> {
        self.overlap
    }

    /// Returns true if the kernel had the desired state at the end of the last reconciliation.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled.is_some() && self.retry_at.is_none()
    }

    /// Returns the operations that the kernel refused in the last reconciliation.
    #[must_use]
    pub fn refused(&self) -> &[Op] {
        &self.refused
    }

    /// Returns the sockets that the clients need now.
    #[must_use]
    pub fn listeners(&self) -> Vec<(LinkIndex, Listen)> {
        listeners(&self.election, &self.observed, self.settings.lldp)
    }

    async fn reconcile<H: Kernel + Network>(
        &mut self,
        host: &mut H,
        observe: bool,
    ) -> Result<(), H::Error> {
        let mut refused: Vec<Op> = Vec::new();
        let mut applied: Vec<Op> = Vec::new();
        let mut applied_for: Option<Desired> = None;
        let mut has_ineffective = false;
        let mut observe = observe;
        for _ in 0..ROUNDS {
            if observe {
                self.take_received(host);
                self.observe(host).await?;
                self.update_candidates(host);
                self.take_received(host);
            }
            let desired = self.desired(host.now());
            // A different uplink needs operations again that the one before it needed.
            if applied_for.as_ref() != Some(&desired) {
                applied.clear();
                applied_for = Some(desired.clone());
            }
            let mut ops = plan::plan(&desired, &self.observed);
            let done = ops.is_empty();
            refused.retain(|op| ops.contains(op));
            ops.retain(|op| !refused.contains(op));
            // Accepted before, and needed again: a retry in this reconciliation is futile.
            let (futile, mut ops): (Vec<_>, Vec<_>) =
                ops.into_iter().partition(|op| applied.contains(op));
            for op in futile {
                has_ineffective = true;
                self.report_ineffective(&op);
                refused.push(op);
            }
            if ops.is_empty() {
                self.ineffective = match has_ineffective {
                    true => self.ineffective.saturating_add(1),
                    false => 0,
                };
                let retry_at = host.now().saturating_add(self.retry_delay());
                self.retry_at = (!done).then_some(retry_at);
                self.settled = Some(desired);
                self.refused = refused;
                return Ok(());
            }
            if self.settled.take().as_ref() == Some(&desired) {
                self.report_repairs(&ops);
            }
            let before = refused.len();
            self.apply(host, &desired, &mut ops, &mut refused).await;
            ops.retain(|op| !refused.contains(op));
            observe = refused.len() > before || !self.set_lifetimes(&ops);
            applied.extend(ops);
        }
        self.refused = refused;
        self.retry_at = Some(host.now().saturating_add(RETRY));
        Ok(())
    }

    /// Takes over the lifetimes that the operations set, and returns true if they set nothing
    /// else: the kernel need not be observed then.
    fn set_lifetimes(&mut self, ops: &[Op]) -> bool {
        let lifetimes = ops.iter().map(|op| op.only_lifetime(&self.observed));
        let Some(lifetimes) = lifetimes.collect::<Option<Vec<_>>>() else {
            return false;
        };
        for address in lifetimes {
            self.observed.set_lifetime(address);
        }
        true
    }

    /// Applies the operations and adds those that the kernel refuses to `refused`. One refusal
    /// does not stop the others: a NIC that cannot be set up must not cost the host its network.
    /// The exception is a port that remains in br0: a second one would close a loop.
    ///
    /// A message that changes the desired state ends the round. It removes the operations that
    /// were not tried from `ops`.
    async fn apply<H: Kernel + Network>(
        &mut self,
        host: &mut H,
        desired: &Desired,
        ops: &mut Vec<Op>,
        refused: &mut Vec<Op>,
    ) {
        let mut tried = 0;
        for op in &*ops {
            if self.take_received(host) && self.desired(host.now()) != *desired {
                break;
            }
            tried += 1;
            if is_blocked(op, refused) {
                refused.push(op.clone());
                continue;
            }
            let operation = op.describe(&self.observed);
            tracing::debug!("{operation}");
            if let Err(error) = host.apply(op, &self.observed).await {
                // The kernel did not refuse a blocked operation, so nothing was logged.
                let was_refused = self.refused.contains(op) && !is_blocked(op, &self.refused);
                if !was_refused {
                    let error = text::chain(&error);
                    tracing::error!(message_id = messages::KERNEL, "{error}");
                }
                refused.push(op.clone());
            }
        }
        ops.truncate(tried);
    }

    /// Returns the delay of the next retry: operations without effect are retried more and
    /// more rarely.
    fn retry_delay(&self) -> Duration {
        const LONGEST_SHIFT: u32 = 5;
        RETRY * (1 << self.ineffective.saturating_sub(1).min(LONGEST_SHIFT))
    }

    /// Logs an operation that the kernel accepted, and that is needed again.
    fn report_ineffective(&self, op: &Op) {
        if !self.refused.contains(op) {
            tracing::error!(
                message_id = messages::KERNEL,
                "cannot {}: the kernel accepts the operation without effect, or a different \
                 program undoes it",
                op.describe(&self.observed)
            );
        }
    }

    /// Logs the operations that undo a change by others. Retries of refused operations are
    /// not repairs.
    fn report_repairs(&self, ops: &[Op]) {
        let undoes_change =
            |op: &&Op| !self.refused.contains(op) && !op.only_rounds(&self.observed);
        for op in ops.iter().filter(undoes_change) {
            messages::repaired(&op.describe(&self.observed), self.changed_by);
        }
    }

    /// Processes the messages that were received meanwhile, and sends the answers. Returns
    /// false if there were none. After true, call [`Reconciler::step`].
    pub fn take_received<H: Kernel + Network>(&mut self, host: &mut H) -> bool {
        let mut any = false;
        for _ in 0..MESSAGES {
            let Some(incoming) = host.received() else {
                break;
            };
            self.receive(host.now(), &incoming);
            any = true;
        }
        if any {
            self.exchange(host);
        }
        any
    }

    /// Derives the candidates from the observed links.
    fn update_candidates<H: Kernel + Network>(&mut self, host: &mut H) {
        let candidates = candidate::list(&self.observed, &self.settings);
        let before = self.election.contenders().map(|c| &c.candidate);
        messages::candidates_changed(&before.collect::<Vec<_>>(), &candidates);
        let own = self.observed.links.values().filter_map(|link| link.mac);
        self.election.set_own_macs(own.collect::<BTreeSet<_>>());
        self.set_ipv6();
        let has_carrier = |link| {
            let candidate = candidates.iter().find(|candidate| candidate.nic == link);
            candidate.is_some_and(|candidate| candidate.carrier)
        };
        let lldp = self.settings.lldp;
        self.neighbours.retain(|link| lldp && has_carrier(link));
        self.election.set_candidates(host.now(), candidates);
        let port = self.election.port().map(|port| port.candidate.index);
        let mut ports = self.observed.ports(PUBLIC_BRIDGE);
        let is_attached = ports.any(|link| Some(link.index) == port);
        drop(ports);
        if is_attached {
            self.election.port_attached();
        }
        self.exchange(host);
    }

    /// Reads the kernel. A link that exists although it is missing in the answer stays as it was:
    /// netd cannot decode the kernel's message about it, which must not cost a lease.
    async fn observe<H: Kernel>(&mut self, host: &mut H) -> Result<(), H::Error> {
        let mut observed = host.observe().await?;
        for (index, link) in &self.observed.links {
            if !observed.links.contains_key(index) && host.has_link(link) {
                tracing::debug!("{}: the kernel's message is not understood", link.name);
                observed.links.insert(*index, link.clone());
            }
        }
        self.observed = observed;
        Ok(())
    }

    /// Passes the state of IPv6 to the election.
    fn set_ipv6(&mut self) {
        let br0 = self.observed.bridge(PUBLIC_BRIDGE).map(|br0| br0.index);
        let mut addresses = self.observed.ipv6.iter();
        let has_address = addresses.any(|(link, net)| Some(*link) == br0 && is_global(&net.addr()));
        let possible = self.settings.ipv6 == Ipv6::Auto && !self.observed.ipv6_disabled;
        self.election.set_ipv6(possible, has_address);
    }

    /// Opens sockets for the clients and performs their actions, which may start clients
    /// that need further sockets.
    fn exchange<H: Network>(&mut self, host: &mut H) {
        loop {
            host.listen(&self.listeners());
            let mut idle = true;
            while let Some(effect) = self.election.poll() {
                idle = false;
                self.perform(host, &effect);
            }
            if idle {
                return;
            }
        }
    }

    fn perform<H: Network>(&self, host: &mut H, effect: &Effect) {
        let index = match effect {
            Effect::Transmit(index, _)
            | Effect::Arp(index, _)
            | Effect::AskGateway(index, _)
            | Effect::Event(index, _)
            | Effect::Report(index, ..)
            | Effect::Notice(index, _) => index,
            Effect::Gone(nic, lease) => return host.record_gone(nic, lease),
        };
        let Some(contender) = self.election.contender(*index) else {
            return;
        };
        let nic = &contender.candidate;
        match effect {
            // By the NIC: br0 may not have noticed yet that its port has carrier.
            Effect::Transmit(_, transmit) => host.transmit(nic, transmit),
            Effect::Arp(_, packet) => {
                let link = receiving_link(contender, &self.observed);
                host.send_arp(nic, link, packet);
            }
            Effect::AskGateway(_, request) => {
                let link = receiving_link(contender, &self.observed);
                host.ask_gateway(nic, link, request);
            }
            Effect::Event(_, event) => host.record(nic, event),
            Effect::Report(_, address, report) => host.report(nic, *address, *report),
            Effect::Gone(..) => {}
            Effect::Notice(_, notice) => host.notify(nic, notice),
        }
    }

    /// Derives the desired state. Changes the private network if the uplink overlaps with it.
    fn desired(&mut self, now: Instant) -> Desired {
        let occupied = self.election.lease().map(private_network::occupied);
        let occupied = occupied.unwrap_or_default();
        let private = private_network::choose(&self.settings.private, self.private, &occupied);
        if let Some((old, new)) = self.private.zip(private).filter(|(old, new)| old != new) {
            let overlap = private_network::overlapping(&occupied, old);
            let overlap = overlap.map(|overlap| format!(": the lease has the {overlap}"));
            tracing::warn!(
                message_id = messages::PRIVATE,
                "br1 changes from {old} to {new}{}",
                overlap.unwrap_or_default()
            );
        }
        self.private = private;
        self.update_overlap(&occupied);
        let (settings, observed) = (&self.settings, &self.observed);
        let mut desired = Desired::new(&self.election, settings, observed, private, now);
        let nics = desired.used_nics(observed);
        self.original_mtus
            .update(desired.mtu.is_some(), nics, observed);
        if desired.mtu.is_none() {
            desired.original_mtus.clone_from(self.original_mtus.get());
        }
        desired
    }

    /// Logs that no private network is free, once.
    fn update_overlap(&mut self, occupied: &[Occupied]) {
        let private = self.private;
        let overlap = private.and_then(|private| private_network::overlapping(occupied, private));
        if let Some((private, with)) = private.zip(overlap).filter(|_| overlap != self.overlap) {
            tracing::warn!(
                message_id = messages::OVERLAP,
                "every private network overlaps with the lease; br1 keeps {private}, and machines \
                 do not reach the {with}"
            );
        }
        self.overlap = overlap;
    }

    fn private_network_of_br1(&self) -> Option<PrivateNetwork> {
        let br1 = self.observed.bridge(PRIVATE_BRIDGE)?.index;
        let mut addresses = self.observed.addresses.iter();
        let address = addresses.find(|address| address.link == br1)?;
        address.net.to_string().parse().ok()
    }
}

/// Returns true for an address that is not link-local (fe80::/10).
pub(crate) fn is_global(address: &Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 != 0xfe80
}

/// Returns true if the operation must not follow these refusals: while the former uplink
/// remains a port of br0, no other NIC may become one.
fn is_blocked(op: &Op, refused: &[Op]) -> bool {
    matches!(op, Op::Attach { .. }) && refused.iter().any(Op::is_detach)
}
