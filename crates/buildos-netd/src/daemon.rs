//! The loop: events come in, the race decides, the kernel follows, the picture
//! goes out. Nothing here waits for anything but the kernel.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use buildos_dhcp::{Instant, State};
use buildos_service::{Request, Service, file, text};
use tokio::sync::{mpsc, watch};

use crate::bus::{self, Command};
use crate::config::Settings;
use crate::kernel::{Kernel, KernelError};
use crate::picture::{self, Clocks, Picture};
use crate::plan::{self, LeaseWish, Observed, PUBLIC_BRIDGE, Wish};
use crate::private::{self, PrivateNetwork};
use crate::race::{Candidate, Effect, Race, Rules};
use crate::wire::{Listen, Wire};
use crate::{candidate, clock, messages, state, views};

/// Files for others, and for a later netd.
const RUNTIME_DIRECTORY: &str = "/run/buildos/netd";
/// Rounds of observe, plan, apply for one event. Three are needed from nothing.
const ROUNDS: usize = 5;
/// Until the kernel is asked again for what it refused.
const RETRY: Duration = Duration::from_secs(2);
/// Requests from the bus that may wait.
const COMMANDS: usize = 4;

/// Runs until systemd asks for the end. Everything in the kernel stays as it
/// is then: a restart must not cut anybody's network.
///
/// # Errors
///
/// The kernel cannot be spoken to.
pub async fn run(mut service: Service<Settings>) -> Result<(), KernelError> {
    let mut netd = Netd::new(service.settings().clone(), Kernel::open()?).await?;
    netd.resume();
    netd.look(&mut service).await?;
    let (command_sender, mut commands) = mpsc::channel(COMMANDS);
    let bus = tokio::spawn(bus::serve(netd.pictures.subscribe(), command_sender));
    service.ready();
    loop {
        let deadline = netd.deadline();
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
            changed = netd.kernel.changed() => changed?,
            incoming = netd.wire.receive() => {
                netd.race.packet(clock::now(), incoming.client, &incoming.payload);
            }
            () = until(deadline) => netd.race.timeout(clock::now()),
        }
        if reloaded {
            netd.configure(service.reload().clone());
        }
        netd.look(&mut service).await?;
        if reloaded {
            service.ready();
        }
    }
    bus.abort();
    Ok(())
}

struct Netd {
    settings: Settings,
    kernel: Kernel,
    wire: Wire,
    race: Race,
    observed: Observed,
    private: Option<PrivateNetwork>,
    /// When to try again what the kernel refused.
    retry: Option<Instant>,
    /// What was refused last, so that it is reported once.
    refused: BTreeSet<String>,
    pictures: watch::Sender<Picture>,
}

impl Netd {
    async fn new(settings: Settings, kernel: Kernel) -> Result<Self, KernelError> {
        let observed = kernel.observe().await?;
        let race = Race::new(rules(&settings), seed());
        let clocks = clocks();
        let empty = picture::draw(&observed, &race, &settings, None, Vec::new(), clocks);
        Ok(Self {
            settings,
            kernel,
            wire: Wire::default(),
            race,
            observed,
            private: None,
            retry: None,
            refused: BTreeSet::new(),
            pictures: watch::Sender::new(empty),
        })
    }

    /// Takes up what an earlier netd of this boot left: the lease goes on, and
    /// is confirmed while its address stays where it is.
    fn resume(&mut self) {
        let Some(resume) = state::read(&Path::new(RUNTIME_DIRECTORY).join("state.json")) else {
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
        self.settings = settings;
        self.race.set_rules(clock::now(), rules(&self.settings));
    }

    fn deadline(&self) -> Option<Instant> {
        self.race.deadline().into_iter().chain(self.retry).min()
    }

    /// Looks again: brings race, kernel and picture into agreement.
    async fn look(&mut self, service: &mut Service<Settings>) -> Result<(), KernelError> {
        self.retry = None;
        for _ in 0..ROUNDS {
            self.observed = self.kernel.observe().await?;
            let candidates = self.candidates();
            self.report_candidates(&candidates);
            self.race.set_candidates(clock::now(), candidates);
            self.exchange();
            let ops = plan::plan(&self.wish(), &self.observed);
            if ops.is_empty() || !self.apply(&ops).await {
                break;
            }
        }
        self.publish(service);
        Ok(())
    }

    /// Applies the operations. One that fails does not keep the others from
    /// being tried: a NIC that cannot be set up must not cost the rest its network.
    async fn apply(&mut self, ops: &[plan::Op]) -> bool {
        let mut refused = BTreeSet::new();
        for op in ops {
            tracing::debug!(?op, "applying");
            if let Err(error) = self.kernel.apply(op).await {
                let error = text::chain(&error);
                if !self.refused.contains(&error) {
                    tracing::error!(message_id = messages::KERNEL, "{error}");
                }
                refused.insert(error);
            }
        }
        self.refused = refused;
        if !self.refused.is_empty() {
            self.retry = Some(clock::now().saturating_add(RETRY));
        }
        self.refused.is_empty()
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
                match effect {
                    Effect::Transmit(client, transmit) => {
                        if let Err(error) = self.wire.send(client, &transmit) {
                            tracing::debug!(client, %error, "cannot send {}", transmit.kind);
                        }
                    }
                    Effect::Event(client, event) => {
                        let runner = self.race.runners().find(|r| r.candidate.index == client);
                        if let Some(runner) = runner {
                            messages::log(&runner.candidate, &event);
                        }
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn listeners(&self) -> Vec<(u32, Listen)> {
        let public = self.observed.bridge(PUBLIC_BRIDGE);
        let mut listeners = Vec::new();
        for runner in self.race.runners() {
            let link = self.observed.links.get(&runner.candidate.index);
            let bridge = public.filter(|b| link.and_then(|l| l.controller) == Some(b.index));
            let index = bridge.map_or(runner.candidate.index, |bridge| bridge.index);
            let listen = match runner.client.state() {
                State::Init | State::InitReboot => continue,
                State::Bound | State::Renewing | State::Rebinding => {
                    Listen::Udp(PUBLIC_BRIDGE.to_owned())
                }
                State::Selecting | State::Requesting | State::Rebooting => {
                    Listen::Packet(index, runner.candidate.mac)
                }
            };
            listeners.push((runner.candidate.index, listen));
        }
        listeners
    }

    fn candidates(&self) -> Vec<Candidate> {
        let public = self
            .observed
            .bridge(PUBLIC_BRIDGE)
            .map(|bridge| bridge.index);
        let links = self.observed.links.values();
        links
            .filter(|link| {
                let Settings {
                    include, exclude, ..
                } = &self.settings;
                candidate::check(link, public, include, exclude).is_ok()
            })
            .filter_map(|link| {
                Some(Candidate {
                    index: link.index,
                    name: link.name.clone(),
                    mac: link.mac?,
                    carrier: link.up && link.carrier,
                })
            })
            .collect()
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

    fn wish(&mut self) -> Wish {
        let lease = self.race.lease();
        let occupied: Vec<_> = lease
            .iter()
            .flat_map(|lease| {
                let routes = lease
                    .routes
                    .iter()
                    .filter(|r| !r.is_default())
                    .map(|r| r.destination);
                routes.chain([lease.network()])
            })
            .collect();
        let private = private::choose(&self.settings.private, self.private, &occupied);
        let wish = Wish {
            up: self
                .race
                .runners()
                .map(|runner| runner.candidate.index)
                .collect(),
            uplink: self.race.port().map(|port| port.candidate.index),
            lease: lease.map(|lease| LeaseWish {
                net: ipnet::Ipv4Net::new_assert(lease.address, lease.prefix),
                remaining: lease.remaining(clock::now()),
                routes: lease
                    .routes
                    .iter()
                    .map(|r| (r.destination, r.gateway, r.onlink))
                    .collect(),
                mtu: lease.mtu.map(u32::from),
            }),
            private: private.map(PrivateNetwork::net),
        };
        if let (Some(old), Some(new)) = (self.private, private) {
            if old != new {
                tracing::warn!(
                    message_id = messages::PRIVATE,
                    "br1 changes from {old} to {new}: the uplink's networks overlap with the former"
                );
            }
        }
        self.private = private;
        wish
    }

    fn publish(&mut self, service: &mut Service<Settings>) {
        let new = picture::draw(
            &self.observed,
            &self.race,
            &self.settings,
            self.private,
            service.problems(),
            clocks(),
        );
        service.status(&new.reason);
        let files = [
            ("state.json", state::encode(&new)),
            ("resolv.conf", views::resolv_conf(&new).into_bytes()),
            ("interfaces", views::interfaces(&new).into_bytes()),
        ];
        for (name, content) in files {
            if let Err(error) =
                file::replace(&Path::new(RUNTIME_DIRECTORY).join(name), &content, 0o644)
            {
                tracing::error!(message_id = messages::FILE, "{}", text::chain(&error));
            }
        }
        self.pictures.send_if_modified(|old| {
            let modified = *old != new;
            *old = new;
            modified
        });
    }
}

fn rules(settings: &Settings) -> Rules {
    Rules {
        bootif: settings.bootif,
        head_start: settings.head_start,
        carrier_grace: settings.carrier_grace,
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

fn until(deadline: Option<Instant>) -> impl Future<Output = ()> {
    let wait = deadline.map(|deadline| deadline.saturating_sub(clock::now()));
    async move {
        match wait {
            Some(wait) => tokio::time::sleep(wait).await,
            None => std::future::pending().await,
        }
    }
}
