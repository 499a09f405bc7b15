//! The loop: events come in, the race decides, the kernel follows, the picture
//! goes out. Nothing here waits for anything but the kernel.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use buildos_dhcp::{Instant, State};
use buildos_service::{Refused, Request, Service, file, text};
use tokio::sync::{mpsc, watch};

use crate::clock::Alarm;
use crate::config::Settings;
use crate::dbus::{self, Command};
use crate::desired::{self, Wish};
use crate::history::Ledger;
use crate::hostname::Hostname;
use crate::kernel::{Change, Kernel, KernelError};
use crate::plan::{self, Observed, Op, PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use crate::private::PrivateNetwork;
use crate::sockets::{Incoming, Listen, Message, Wire};
use crate::status::{self, Clocks, Picture};
use crate::uplink::candidate;
use crate::uplink::election::{Candidate, Effect, Race, Rules, Runner};
use crate::{clock, exports, messages, other_manager, state_file};

/// Files for others, and for a later netd.
const RUNTIME_DIRECTORY: &str = "/run/buildos/netd";
/// Rounds of observe, plan, apply for one event. Three are needed from nothing.
const ROUNDS: usize = 5;
/// Until the kernel is asked again for what it refused.
const RETRY: Duration = Duration::from_secs(2);
/// Requests from the bus that may wait.
const COMMANDS: usize = 4;

/// Why netd cannot work.
#[derive(Debug, thiserror::Error)]
pub enum NetdError {
    /// The kernel's network configuration is out of reach.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// No packet sockets.
    #[error("cannot open a packet socket (CAP_NET_RAW is needed)")]
    Socket(#[source] io::Error),
    /// No timers.
    #[error("cannot set a timer")]
    Timer(#[source] io::Error),
    /// Somebody else configures the network.
    #[error("nothing is done")]
    Rival(#[source] Refused),
}

/// Runs until systemd asks for the end. Everything in the kernel stays as it
/// is then: a restart must not cut anybody's network.
///
/// # Errors
///
/// The kernel cannot be spoken to; or somebody else configures the network.
pub async fn run(mut service: Service<Settings>) -> Result<(), NetdError> {
    // Whoever has the network keeps it: netd, too, that starts again in the same boot.
    let resumes = state_file().exists();
    if let Some(rival) = other_manager::find(Path::new("/")).filter(|_| !resumes) {
        return Err(NetdError::Rival(Refused {
            message_id: messages::RIVAL,
            reason: rival.to_string(),
        }));
    }
    let mut netd = Netd::new(service.settings().clone(), Kernel::open()?).await?;
    netd.resume();
    netd.step(&mut service, true).await?;
    let alarm = Alarm::new().map_err(NetdError::Timer)?;
    let (command_sender, mut commands) = mpsc::channel(COMMANDS);
    let bus = tokio::spawn(dbus::serve(netd.pictures.subscribe(), command_sender));
    service.ready();
    loop {
        let deadline = netd.deadline();
        let mut look = false;
        let mut reloaded = false;
        tokio::select! {
            request = service.request() => match request {
                Request::Stop => break,
                Request::Reload => reloaded = true,
            },
            Some(command) = commands.recv() => match command {
                Command::Renew => netd.race.renew(clock::now()),
                Command::Reconfigure => reloaded = true,
            },
            change = netd.kernel.changed() => {
                netd.last_change = Some(change?);
                look = true;
            }
            incoming = netd.wire.receive() => netd.receive(&incoming),
            () = renamed(netd.hostname.as_mut()) => netd.tell_name(),
            woken = alarm.wait(deadline) => {
                woken.map_err(NetdError::Timer)?;
                look = netd.retry.is_some_and(|retry| retry <= clock::now());
                netd.race.timeout(clock::now());
            }
        }
        if reloaded {
            netd.configure(service.reload().clone());
        }
        netd.step(&mut service, look || reloaded).await?;
        if reloaded {
            service.ready();
        }
    }
    bus.abort();
    Ok(())
}

/// What an earlier netd of this boot knew.
fn state_file() -> PathBuf {
    Path::new(RUNTIME_DIRECTORY).join("state.json")
}

async fn renamed(hostname: Option<&mut Hostname>) {
    match hostname {
        Some(hostname) => hostname.changed().await,
        None => std::future::pending().await,
    }
}

struct Netd {
    settings: Settings,
    kernel: Kernel,
    wire: Wire,
    hostname: Option<Hostname>,
    race: Race,
    ledger: Ledger,
    observed: Observed,
    /// The wish that the kernel's state agreed with when it was last looked at.
    settled: Option<Wish>,
    private: Option<PrivateNetwork>,
    /// The last change of the network by somebody else.
    last_change: Option<Change>,
    /// What the kernel refused, so that it is reported once.
    refused: Vec<Op>,
    /// When to try that again.
    retry: Option<Instant>,
    pictures: watch::Sender<Picture>,
    /// The files as they were written last.
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Netd {
    async fn new(settings: Settings, kernel: Kernel) -> Result<Self, NetdError> {
        let observed = kernel.observe().await?;
        let race = Race::new(Rules::from(&settings), seed());
        let clocks = clocks();
        let empty = status::draw(&observed, &race, &settings, None, Vec::new(), clocks);
        let mut netd = Self {
            settings,
            kernel,
            wire: Wire::open().map_err(NetdError::Socket)?,
            hostname: Hostname::open().ok(),
            race,
            ledger: Ledger::default(),
            observed,
            settled: None,
            private: None,
            last_change: None,
            refused: Vec::new(),
            retry: None,
            pictures: watch::Sender::new(empty),
            files: BTreeMap::new(),
        };
        netd.tell_name();
        Ok(netd)
    }

    /// Takes up what an earlier netd of this boot left: the lease goes on, and
    /// is confirmed while its address stays where it is; the private network stays.
    fn resume(&mut self) {
        let bridge = self
            .observed
            .bridge(PRIVATE_BRIDGE)
            .map(|bridge| bridge.index);
        let mut addresses = self.observed.addresses.iter();
        let private = addresses.find(|address| Some(address.link) == bridge);
        self.private = private.and_then(|address| address.net.to_string().parse().ok());
        let Some(resume) = state_file::read(&state_file()) else {
            return;
        };
        let uplink = self
            .candidates()
            .into_iter()
            .find(|c| c.mac == resume.uplink);
        if let Some(uplink) = uplink {
            self.race.resume(clock::now(), uplink, resume.lease);
        }
    }

    fn configure(&mut self, settings: Settings) {
        if settings.private != self.settings.private {
            // Another one is preferred: choose anew.
            self.private = None;
        }
        self.settings = settings;
        self.race
            .set_rules(clock::now(), Rules::from(&self.settings));
        self.tell_name();
    }

    /// Has servers told the host's name.
    fn tell_name(&mut self) {
        let name = self.hostname.as_mut().and_then(Hostname::read);
        let name = name.and_then(|name| self.settings.send_name.told(name));
        self.race.set_name(clock::now(), name);
    }

    fn receive(&mut self, incoming: &Incoming) {
        let (now, client) = (clock::now(), incoming.client);
        match &incoming.message {
            Message::Dhcp(payload) => self.race.packet(now, client, payload),
            Message::Arp(packet) => self.race.arp(now, client, packet),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.race.deadline().into_iter().chain(self.retry).min()
    }

    /// Draws the consequences of what happened. The kernel is looked at when it may
    /// have changed, or when something else is wished for than it was found to have.
    async fn step(
        &mut self,
        service: &mut Service<Settings>,
        look: bool,
    ) -> Result<(), KernelError> {
        self.exchange();
        let wish = self.wish();
        if look || self.settled != Some(wish) {
            self.reconcile(look).await?;
        }
        self.publish(service);
        // Last: the kernel takes up to 20 ms to close a packet socket.
        self.wire.close_others(&self.listeners());
        Ok(())
    }

    /// Brings race and kernel into agreement, and looks whether they are. What was
    /// seen last is good enough to begin with unless the kernel told of changes.
    async fn reconcile(&mut self, look: bool) -> Result<(), KernelError> {
        let mut refused: Vec<Op> = Vec::new();
        for round in 0..ROUNDS {
            if look || round > 0 {
                self.look().await?;
            }
            let wish = self.wish();
            let ops = plan::plan(&wish, &self.observed);
            let left: Vec<Op> = ops
                .iter()
                .filter(|op| !refused.contains(op))
                .cloned()
                .collect();
            if left.is_empty() {
                let retry = clock::now().saturating_add(RETRY);
                self.retry = (!ops.is_empty()).then_some(retry);
                self.settled = Some(wish);
                self.refused = refused;
                return Ok(());
            }
            if self.settled.take() == Some(wish) {
                self.report_repairs(&left);
            }
            refused.extend(self.apply(&left).await);
        }
        // Somebody else changes it as fast as we do.
        self.refused = refused;
        self.retry = Some(clock::now().saturating_add(RETRY));
        Ok(())
    }

    /// Looks at the kernel and lets the race know.
    async fn look(&mut self) -> Result<(), KernelError> {
        self.observed = self.kernel.observe().await?;
        let candidates = self.candidates();
        self.report_candidates(&candidates);
        let own = self.observed.links.values().filter_map(|link| link.mac);
        self.race.set_own(own.collect());
        self.race.set_candidates(clock::now(), candidates);
        self.exchange();
        Ok(())
    }

    /// Applies the operations and returns those that the kernel refused. One that
    /// fails does not keep the others from being tried: a NIC that cannot be set up
    /// must not cost the rest its network.
    async fn apply(&self, ops: &[Op]) -> Vec<Op> {
        let mut refused = Vec::new();
        for op in ops {
            tracing::debug!("{}", op.describe(&self.observed));
            if let Err(error) = self.kernel.apply(op, &self.observed).await {
                if !self.refused.contains(op) {
                    let error = text::chain(&error);
                    tracing::error!(message_id = messages::KERNEL, "{error}");
                }
                refused.push(op.clone());
            }
        }
        refused
    }

    /// What is to be done although nothing else is wished for than before: somebody
    /// undid it, or the kernel refused it before.
    fn report_repairs(&self, ops: &[Op]) {
        let by = self.last_change.and_then(|change| change.by);
        let undone = |op: &&Op| !self.refused.contains(op) && !op.only_rounds(&self.observed);
        for op in ops.iter().filter(undone) {
            messages::repaired(&op.describe(&self.observed), by);
        }
    }

    /// Opens sockets for the clients and carries out what they want.
    fn exchange(&mut self) {
        // Events of one round may start clients that then want sockets.
        loop {
            for (client, error) in self.wire.listen(&self.listeners()) {
                tracing::debug!(client, %error, "cannot listen");
            }
            let mut quiet = true;
            while let Some(effect) = self.race.poll() {
                quiet = false;
                self.carry_out(effect);
            }
            if quiet {
                return;
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let (Effect::Transmit(client, _) | Effect::Arp(client, _) | Effect::Event(client, _)) =
            effect;
        let Some(runner) = self.race.runners().find(|r| r.candidate.index == client) else {
            return;
        };
        let (name, usec) = (runner.candidate.name.as_str(), clocks().realtime_usec());
        match effect {
            // By the NIC itself: br0 may not have noticed yet that its port has carrier.
            Effect::Transmit(_, transmit) => {
                self.ledger.sent(usec, name, &transmit);
                if let Err(error) = self.wire.send(client, client, &transmit) {
                    tracing::debug!(client, %error, "cannot send {}", transmit.kind);
                }
            }
            // To whoever is on br0, too.
            Effect::Arp(_, packet) => {
                if let Err(error) = self.wire.send_arp(self.listening_link(runner), &packet) {
                    tracing::debug!(client, %error, "cannot send ARP");
                }
            }
            Effect::Event(_, event) => {
                self.ledger.event(usec, name, &event);
                messages::log(&runner.candidate, &event);
            }
        }
    }

    fn listeners(&self) -> Vec<(u32, Listen)> {
        let mut listeners = Vec::new();
        for runner in self.race.runners() {
            let Candidate { index, mac, .. } = runner.candidate;
            let link = self.listening_link(runner);
            let messages = match runner.client.state() {
                State::Init | State::InitReboot => None,
                State::Bound | State::Renewing | State::Rebinding => self
                    .observed
                    .bridge(PUBLIC_BRIDGE)
                    .map(|bridge| Listen::Udp(bridge.index, PUBLIC_BRIDGE)),
                State::Selecting | State::Requesting | State::Rebooting => {
                    Some(Listen::Replies(link, mac))
                }
            };
            let claims = runner.watched().map(|a| Listen::Claims(link, a, mac));
            let wanted = messages.into_iter().chain(claims);
            listeners.extend(wanted.map(|listen| (index, listen)));
        }
        listeners
    }

    /// The link where packet sockets see what comes in by a NIC: br0 when the NIC is
    /// its port.
    fn listening_link(&self, runner: &Runner) -> u32 {
        let nic = runner.candidate.index;
        let controller = self.observed.links.get(&nic).and_then(|l| l.controller);
        let public = self.observed.bridge(PUBLIC_BRIDGE);
        match public.filter(|bridge| controller == Some(bridge.index)) {
            Some(bridge) => bridge.index,
            None => nic,
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        candidate::list(&self.observed, &self.settings)
    }

    fn report_candidates(&self, candidates: &[Candidate]) {
        for now in candidates {
            let before = self.race.runners().find(|r| r.candidate.index == now.index);
            let before = before.map(|runner| runner.candidate.carrier);
            let interface = now.name.as_str();
            let what = match (before, now.carrier) {
                (Some(old), new) if old == new => continue,
                (_, true) => "carrier",
                (Some(_), false) => "carrier lost",
                (None, false) => "no carrier",
            };
            tracing::info!(
                message_id = messages::CANDIDATE,
                interface,
                "{interface}: {what}"
            );
        }
        for runner in self.race.runners() {
            if candidates.iter().all(|c| c.index != runner.candidate.index) {
                let interface = runner.candidate.name.as_str();
                tracing::info!(
                    message_id = messages::CANDIDATE,
                    interface,
                    "{interface}: gone"
                );
            }
        }
    }

    /// What to have now. The private network changes when the uplink brings an
    /// overlap.
    fn wish(&mut self) -> Wish {
        let private = desired::private(&self.race, &self.settings, self.private);
        if let (Some(old), Some(new)) = (self.private, private) {
            if old != new {
                tracing::warn!(
                    message_id = messages::PRIVATE,
                    "br1 changes from {old} to {new}: the uplink's networks overlap with the former"
                );
            }
        }
        self.private = private;
        let nics = candidate::nics(&self.observed, &self.settings.include);
        Wish::new(&self.race, nics, private, clock::now())
    }

    fn publish(&mut self, service: &mut Service<Settings>) {
        let new = status::draw(
            &self.observed,
            &self.race,
            &self.settings,
            self.private,
            service.problems(),
            clocks(),
        );
        service.status(&new.reason);
        let mut files = Vec::new();
        if let Some(ledger) = self.ledger.take_changes() {
            files.push(("ledger.json", ledger));
        }
        let changed = self.pictures.send_if_modified(|old| {
            let modified = *old != new;
            *old = new;
            modified
        });
        if changed || self.files.is_empty() {
            let picture = self.pictures.borrow();
            files.extend([
                ("state.json", state_file::encode(&picture)),
                ("resolv.conf", exports::resolv_conf(&picture).into_bytes()),
                ("interfaces", exports::interfaces(&picture).into_bytes()),
            ]);
            let time = exports::timesyncd_conf(&picture);
            files.extend(time.map(|text| ("timesyncd.conf", text.into_bytes())));
        }
        for (name, content) in files {
            self.write(name, content);
        }
    }

    fn write(&mut self, name: &'static str, content: Vec<u8>) {
        if self.files.get(name) == Some(&content) {
            return;
        }
        match file::replace(&Path::new(RUNTIME_DIRECTORY).join(name), &content, 0o644) {
            Ok(_) => drop(self.files.insert(name, content)),
            Err(error) => tracing::error!(message_id = messages::FILE, "{}", text::chain(&error)),
        }
    }
}

fn clocks() -> Clocks {
    let realtime = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Clocks {
        boottime: clock::now(),
        realtime,
    }
}

/// Transaction ids need to differ between hosts and starts, not to be secret.
fn seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    // Keyed by getrandom(2).
    RandomState::new().hash_one(clock::now())
}
