//! Simulates the host in stepped time, from deadline to deadline.
//!
//! ```text
//!   Lan  <-->  Reconciler (netd)  -->  Status  -->  hostnamed  -->  hostname, back to netd
//!                                        |
//!                                        +------->  natd
//! ```
//!
//! The daemons' own pure code makes all decisions.

use std::time::Duration;

use buildos_dbus_api::network1::{LinkRole, Network, State};
use buildos_dhcp::Instant;
use buildos_hostnamed::choice::{self, Choice};
use buildos_netd::kernel::fake;
use buildos_netd::observed::Observed;
use buildos_netd::reconcile::{Kernel as _, Reconciler};
use buildos_netd::status::{Clocks, Status};

use super::lan::Lan;
use super::nat::Nat;
use super::settings::Settings;
use super::timeline::{EPOCH, Timeline, since_start};
use super::topology::Topology;

/// Duration of a simulation without `duration_s`.
const DURATION: Duration = Duration::from_secs(60);
/// Limit of rounds for one event. A name set by hostnamed causes a second round.
const ROUNDS: usize = 5;
/// Seed of all randomness: the same description has the same result.
const SEED: u64 = 1;
/// Limit of lines in the timeline.
const LONGEST: usize = 100_000;

/// Why a simulation ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimulationError {
    /// The timeline is too long to be read.
    #[error("more than {LONGEST} events within {0} s; reduce duration_s")]
    TooLong(u64),
    /// The fake kernel refused an observation, or netd waited for something outside of it.
    #[error("the simulated kernel failed")]
    Kernel,
}

/// The simulated host.
pub(crate) struct World {
    settings: Settings,
    duration: Duration,
    lan: Lan,
    reconciler: Reconciler,
    status: Option<Status>,
    choice: Option<Choice>,
    nat: Result<Nat, String>,
}

impl World {
    /// Returns a host whose daemons have not started yet.
    pub(crate) fn new(topology: &Topology, settings: Settings) -> Self {
        Self {
            duration: topology.duration.map_or(DURATION, |moment| moment.0),
            lan: Lan::new(topology),
            reconciler: Reconciler::new(settings.netd.clone(), SEED),
            status: None,
            choice: None,
            nat: Err(String::new()),
            settings,
        }
    }

    /// Runs the simulation to its end.
    pub(crate) fn run(&mut self) -> Result<(), SimulationError> {
        let end = EPOCH.saturating_add(self.duration);
        let start = self.reconciler.start(&mut self.lan, None);
        completed(fake::run(start))?;
        self.step()?;
        while let Some(next) = self.next().filter(|next| *next <= end) {
            let now = next.max(self.lan.now());
            self.lan.advance(now, &mut self.reconciler);
            if self.reconciler.deadline().is_some_and(|at| at <= now) {
                self.reconciler.timeout(now);
            }
            self.step()?;
            if self.timeline().entries().len() > LONGEST {
                return Err(SimulationError::TooLong(since_start(now).as_secs()));
            }
        }
        self.lan.advance(end, &mut self.reconciler);
        Ok(())
    }

    fn next(&self) -> Option<Instant> {
        let deadline = self.reconciler.deadline();
        self.lan.next().into_iter().chain(deadline).min()
    }

    /// Runs the daemons until none of them changes anything.
    fn step(&mut self) -> Result<(), SimulationError> {
        for _ in 0..ROUNDS {
            completed(fake::run(self.reconciler.step(&mut self.lan)))?;
            let status = self.current_status();
            let network = status.published();
            self.report(&status);
            self.status = Some(status);
            self.update_nat(&network);
            if !self.update_hostname(&network) {
                break;
            }
        }
        Ok(())
    }

    fn current_status(&self) -> Status {
        let clocks = Clocks {
            boottime: self.lan.now(),
            realtime: self.lan.now(),
        };
        Status::new(&self.reconciler, Vec::new(), clocks)
    }

    /// Records changes of the network, and links that are not candidates.
    fn report(&mut self, status: &Status) {
        let before = self.status.take();
        let known = |index| {
            let links = before.iter().flat_map(|before| &before.links);
            links.into_iter().any(|link| link.index == index)
        };
        let ignored = status.links.iter().filter(|link| {
            link.role == LinkRole::Ignored && !known(link.index) && self.lan.is_nic(&link.name)
        });
        let mut lines: Vec<_> = ignored
            .map(|link| {
                let text = format!("is not a candidate: {}", link.reason);
                (link.name.to_string(), text)
            })
            .collect();
        // While netd acquires a lease, every message changes the reason.
        let relevant = |status: &Status| {
            let address = status.lease.as_ref().map(|lease| lease.address);
            (status.state, address, status.uplink.clone())
        };
        if before.as_ref().map(relevant) != Some(relevant(status)) {
            let text = match status.state {
                State::Acquiring => status.state.as_str().to_owned(),
                State::NoCarrier | State::Online | State::NoDefaultRoute | State::CarrierLost => {
                    format!("{}: {}", status.state, status.reason)
                }
            };
            lines.push(("netd".to_owned(), text));
        }
        let former = before.and_then(|before| before.private);
        if let Some((old, new)) = former.zip(status.private).filter(|(old, new)| old != new) {
            let text = format!("br1 changes from {old} to {new}, as the uplink's networks overlap");
            lines.push(("netd".to_owned(), text));
        }
        for (subject, text) in lines {
            self.lan.record_for(subject, text);
        }
    }

    /// Runs hostnamed, and passes its name to netd. Returns true if the name changed.
    fn update_hostname(&mut self, network: &Network) -> bool {
        // Only the configuration can name a simulated host, and it has precedence anyway.
        let Some(choice) = choice::choose(&self.settings.hostnamed, Some(network), &[]) else {
            return false;
        };
        if self.choice.as_ref() == Some(&choice) {
            return false;
        }
        let known = self.choice.iter().flat_map(|choice| &choice.refused);
        let known: Vec<_> = known.cloned().collect();
        for refused in choice.refused.iter().filter(|name| !known.contains(name)) {
            self.lan
                .record_for("hostnamed", format!("refuses {refused}"));
        }
        let text = format!("sets the hostname {}: {}", choice.name, choice.reason);
        self.lan.record_for("hostnamed", text);
        let (now, name) = (self.lan.now(), choice.name.to_string());
        self.choice = Some(choice);
        self.reconciler.set_hostname(now, Some(name));
        true
    }

    /// Runs natd.
    fn update_nat(&mut self, network: &Network) {
        let nat = Nat::new(network, &self.settings.natd);
        if nat == self.nat {
            return;
        }
        let before = self.nat.clone().unwrap_or_default();
        let lines = match &nat {
            Err(why) => vec![format!("waits: {why}")],
            Ok(nat) => nat.changes(&before, network),
        };
        self.nat = nat;
        for line in lines {
            self.lan.record_for("natd", line);
        }
    }

    pub(crate) fn timeline(&self) -> &Timeline {
        self.lan.timeline()
    }

    /// Returns the kernel's state as netd last observed it.
    pub(crate) fn observed(&self) -> &Observed {
        self.reconciler.observed()
    }

    pub(crate) fn status(&self) -> Status {
        self.current_status()
    }

    /// Returns the hostname, if hostnamed has set one.
    pub(crate) fn choice(&self) -> Option<&Choice> {
        self.choice.as_ref()
    }

    /// Returns natd's configuration, or what natd waits for.
    pub(crate) fn nat(&self) -> Result<&Nat, &str> {
        self.nat.as_ref().map_err(String::as_str)
    }

    /// Returns the simulated time.
    pub(crate) fn duration(&self) -> Duration {
        since_start(self.lan.now())
    }

    /// Returns the seconds from the end of the simulation to a time of the boot clock.
    pub(crate) fn seconds_until(&self, at: Instant) -> u64 {
        at.saturating_sub(self.lan.now()).as_secs()
    }
}

fn completed<T, E>(result: Option<Result<T, E>>) -> Result<T, SimulationError> {
    result.and_then(Result::ok).ok_or(SimulationError::Kernel)
}
