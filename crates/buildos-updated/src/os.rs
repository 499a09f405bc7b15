//! Updates the operating system: decides, fetches, drains, and hands over.
//!
//! | file | does |
//! |---|---|
//! | [`lifecycle`] | states and events of an update; pure |
//! | [`decide`] | what holds an update, and by which method it takes place; pure |
//! | [`window`] | times in which an update may begin |
//! | [`pair`] | the two files of an operating system, and those that run |
//! | [`memory`] | RAM that kexec needs |
//! | [`fetch`] | fetches both pairs |
//! | [`records`] | pairs that came back, and the last changes |
//! | [`trial`] | verdict about the pair that runs |
//! | [`agents`] | drains agents, and ends the drain |
//! | [`handover`] | request to the helper, which runs as root |
//!
//! # Limits
//!
//! The daemon writes a request. The helper verifies the channel and the objects again, and starts
//! the new pair.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use buildos_channel::HostId;
use buildos_channel::model::Os;
use buildos_dbus_api::update1::{Cause, OsState};
use buildos_service::random;

use crate::durable;
use crate::messages;
use crate::offer::{self, Offer};
use crate::os_handover::files::TrialState;
use crate::os_handover::record::{self, Request, TrialTerms};
use crate::os_handover::why;
use crate::paths::Paths;
use crate::programs::fleet_lock::{Answer, FleetLock};
use crate::progress::Progress;
use crate::settings::{Method, Settings, Source};
use crate::spool::Spool;
use crate::state;

pub mod agents;
pub mod decide;
mod fetch;
pub mod handover;
pub mod lifecycle;
pub mod memory;
pub mod pair;
pub mod records;
pub mod trial;
pub mod window;

use decide::{Facts, Hold};
use lifecycle::{Action, Event};
use pair::Pair;
use records::{Bad, Entry, Pending, Records};
use trial::Trial;
use window::{Open, Windows};

/// A drain gives up after this time. The next run tries again.
const LONGEST_DRAIN: Duration = Duration::from_secs(24 * 3600);
/// A run waits so long for the lock. The next run tries again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Shortest interval between two requests for the lock.
const LOCK_RETRY: Duration = Duration::from_secs(20);
/// Most steps of a run: more is a defect.
const STEPS: usize = 20;
/// Seconds for `buildosctl why`, and its exit status after them.
const WHY_SECONDS: &str = "60";
const WHY_TIMEOUT: u8 = 124;
/// Reason of a hold by a choice during a run.
const INTERRUPTED: &str = "interrupted by a choice of the operator";
/// Reason of a hold by the end of a window during a run.
const CLOSED: &str = "the window closed";

/// Connects an update with the run that it belongs to.
pub struct Run<'a> {
    #[allow(missing_docs)]
    pub paths: &'a Paths,
    #[allow(missing_docs)]
    pub settings: &'a Settings,
    #[allow(missing_docs)]
    pub progress: &'a Progress,
    #[allow(missing_docs)]
    pub source: &'a Source,
    #[allow(missing_docs)]
    pub offer: &'a Offer,
    #[allow(missing_docs)]
    pub host: &'a HostId,
    /// True if an operator asked for the update now.
    pub is_now: bool,
    /// Shows a state.
    pub show: &'a mut dyn FnMut(&state::Os),
}

/// An update.
struct Update<'a, 'b> {
    run: &'b mut Run<'a>,
    spool: Spool,
    records: Records,
    status: state::Os,
    /// The state at the begin of the run.
    last: state::Os,
    running: Result<Pair, String>,
    boot: String,
    method: Method,
    /// What is known about the last hold or fault.
    hold: Option<Hold>,
    /// The trial, or the pair that did not come up.
    verdict: Option<Bad>,
    /// Agents that took tasks before the drain.
    polled: Vec<String>,
    why_before: i64,
}

/// Ends the drain of a run that was killed.
///
/// # Errors
///
/// buildos-agentd does not answer, or the helper still runs.
pub fn recover(paths: &Paths) -> Result<(), String> {
    handover::withdraw(paths)?;
    agents::resume(paths)
}

/// Releases the slot of the FleetLock server, once in a boot and after the trial. Other hosts wait
/// for it, so it depends on neither the channel nor the machines.
pub fn release(paths: &Paths, settings: &Settings, status: &mut state::Os) {
    if status.is_released || settings.os.lock.is_none() || trial::is_on(paths) {
        return;
    }
    let released = offer::host_id(paths).and_then(|host| match lock(settings, &host) {
        Some(lock) => lock.release(Path::new("curl")),
        None => Ok(Answer::Granted),
    });
    match released {
        Ok(Answer::Granted) => status.is_released = true,
        Ok(Answer::Refused(reason)) | Err(reason) => messages::os_lock_kept(&reason),
    }
}

fn lock(settings: &Settings, host: &HostId) -> Option<FleetLock> {
    let server = settings.os.lock.as_ref()?;
    Some(FleetLock::new(server, &settings.os.lock_group, host))
}

/// Notes in the state that an operator holds updates.
pub fn hold(status: &mut state::Os, reason: &str) {
    match status.state {
        OsState::Offered
        | OsState::Held
        | OsState::Fetching
        | OsState::Fetched
        | OsState::Draining
        | OsState::HandedOver => {
            status.state = OsState::Held;
            status.cause = Some(Cause::Operator);
            status.reason = format!("updates are held: {reason}");
        }
        OsState::Idle | OsState::Trial | OsState::Proven | OsState::Returned | OsState::Bad => {}
    }
}

/// Returns a state in one line for operators; empty if there is nothing to say.
#[must_use]
pub fn line(status: &state::Os) -> String {
    let version = &status.version;
    match status.state {
        OsState::Idle => String::new(),
        OsState::Held => format!("os {version} is held: {}", status.reason),
        OsState::Bad => format!("os {version} is not taken: it came back: {}", status.reason),
        OsState::Offered => format!("os {version} is offered"),
        OsState::Fetching => format!("os {version} is fetched"),
        OsState::Fetched => format!("os {version}: both pairs are there"),
        OsState::Draining => format!("os {version}: {}", status.reason),
        OsState::HandedOver => format!("os {version} is started"),
        OsState::Trial => format!("os {version} is on trial"),
        OsState::Proven => format!("os {version} has passed its trial"),
        OsState::Returned => format!("os {version} came back: {}", status.reason),
    }
}

/// Carries out an update as far as possible. Returns the state, and a fault.
pub fn run(run: &mut Run<'_>, last: &state::Os) -> (state::Os, Option<String>) {
    let records = match records::load(run.paths) {
        Ok(records) => records,
        Err(reason) => {
            let mut status = last.clone();
            if run.offer.channel.os.is_some() {
                status.state = OsState::Held;
                status.cause = Some(Cause::Fault);
                status.reason.clone_from(&reason);
            }
            return (status, Some(reason));
        }
    };
    let boot = fs::read_to_string(run.paths.root().join("proc/sys/kernel/random/boot_id"));
    let mut update = Update {
        spool: Spool::new(&run.paths.os_spool()),
        running: pair::running(run.paths.root()),
        boot: boot.unwrap_or_default().trim().to_owned(),
        status: last.clone(),
        last: last.clone(),
        method: run.settings.os.method,
        hold: None,
        verdict: None,
        polled: Vec::new(),
        why_before: -1,
        records,
        run,
    };
    let fault = update.steps();
    (update.status, fault)
}

impl<'a> Update<'a, '_> {
    /// Follows the table from the begin of a run to a state that lasts.
    fn steps(&mut self) -> Option<String> {
        let mut fault = None;
        let mut event = self.begin();
        for _ in 0..STEPS {
            let Some((next, action)) = lifecycle::transition(self.status.state, event) else {
                return Some(format!(
                    "defect: {event:?} of an OS update in state {}",
                    self.status.state
                ));
            };
            if let (OsState::Held, Some(hold)) = (next, &self.hold) {
                if hold.cause == Cause::Fault {
                    fault = Some(format!("{}: {}", self.title(), hold.reason));
                }
            }
            self.enter(next);
            event = match action {
                Action::Stay => return fault,
                Action::Tidy => return fault.or_else(|| self.tidy().err()),
                Action::Compare => self.compare(),
                Action::Check => self.check(),
                Action::Fetch => self.fetch(),
                Action::Drain => self.drain(),
                Action::HandOver => self.hand_over(),
                Action::GiveUp => return self.give_up().err().or(fault),
                Action::Note => match self.note() {
                    Ok(()) => self.compare(),
                    Err(reason) => self.failed(reason),
                },
            };
        }
        Some("defect: an OS update takes too many steps".to_owned())
    }

    fn os(&self) -> Option<&Os> {
        self.run.offer.channel.os.as_ref()
    }

    fn title(&self) -> String {
        format!("os {}", self.status.version)
    }

    /// Enters a state, and shows it.
    fn enter(&mut self, next: OsState) {
        let before = self.status.clone();
        let (cause, reason) = match (next, &self.hold) {
            (OsState::Held, Some(hold)) => (Some(hold.cause), hold.reason.clone()),
            (OsState::Bad | OsState::Returned, _) => (None, self.bad_reason()),
            _ => (None, String::new()),
        };
        if next == OsState::Returned {
            if let Some(bad) = &self.verdict {
                self.status.version.clone_from(&bad.version);
            }
        }
        self.status.state = next;
        self.status.cause = cause;
        self.status.reason = reason;
        if before.state != next {
            self.status.since_usec = offer::now_usec();
        }
        let known = state::Os {
            since_usec: self.last.since_usec,
            is_released: self.last.is_released,
            is_noted: self.last.is_noted,
            ..self.status.clone()
        };
        // A hold that lasts is one hold, also if each run finds it again.
        let is_known = known == self.last;
        if is_known {
            self.status.since_usec = known.since_usec;
        }
        if next == OsState::Held && before != self.status && !is_known {
            messages::os_held(&self.status.version, &self.status.reason);
        }
        (self.run.show)(&self.status);
    }

    fn bad_reason(&self) -> String {
        let of_channel = self.os().map(Pair::of);
        let known = of_channel.and_then(|pair| self.records.bad(&pair));
        let reason = self.verdict.as_ref().or(known);
        reason.map(|bad| bad.reason.clone()).unwrap_or_default()
    }

    fn failed(&mut self, reason: String) -> Event {
        self.hold = Some(Hold::new(Cause::Fault, reason));
        Event::Failed
    }

    fn held(&mut self, cause: Cause, reason: impl Into<String>) -> Event {
        self.hold = Some(Hold::new(cause, reason));
        Event::Hold
    }

    fn record(&mut self, state: OsState, version: &str, reason: &str) -> Result<(), String> {
        self.records.add(Entry {
            usec: offer::now_usec(),
            version: version.to_owned(),
            state: state.to_string(),
            reason: reason.to_owned(),
        });
        records::store(self.run.paths, &self.records)
    }

    /// Finds out what became of the pair that the host went to.
    fn begin(&mut self) -> Event {
        let trial = trial::read(self.run.paths);
        if let Some(trial) = &trial {
            self.status.version.clone_from(&trial.version);
        }
        if trial::is_on(self.run.paths) {
            return Event::OnTrial;
        }
        let pending = self.records.pending.clone();
        let pending = pending.filter(|pending| pending.boot != self.boot);
        let trial = trial.filter(|trial| is_of_last(trial, pending.as_ref()));
        match (trial, pending) {
            (Some(trial), pending) if trial.state == TrialState::Returned => {
                let version = version_of(&trial, pending.as_ref(), self.os());
                self.verdict = Some(Bad {
                    pair: trial.pair,
                    version,
                    reason: trial.reason,
                    usec: offer::now_usec(),
                });
                Event::CameBack
            }
            (Some(trial), _) => self.passed(&trial.version),
            (None, Some(pending)) if self.running == Ok(pending.pair) => {
                self.passed(&pending.version)
            }
            // By the boot server: `decide` holds the next attempt.
            (None, Some(pending)) if pending.by_reboot => self.compare(),
            (None, Some(pending)) => {
                self.verdict = Some(Bad {
                    pair: pending.pair,
                    version: pending.version,
                    reason: "it did not come up, or stopped during its trial: \
                             the host booted from its boot server"
                        .to_owned(),
                    usec: offer::now_usec(),
                });
                Event::CameBack
            }
            (None, None) => self.compare(),
        }
    }

    /// Notes once in a boot that a pair has passed its trial.
    fn passed(&mut self, version: &str) -> Event {
        if self.status.is_noted {
            return self.compare();
        }
        version.clone_into(&mut self.status.version);
        self.records.pending = None;
        self.records.failed = None;
        match self.record(OsState::Proven, version, "") {
            Ok(()) => {
                self.status.is_noted = true;
                messages::os_proven(version);
                Event::Passed
            }
            Err(reason) => self.failed(reason),
        }
    }

    /// Notes that a pair is bad.
    fn note(&mut self) -> Result<(), String> {
        let Some(bad) = self.verdict.take() else {
            return Ok(());
        };
        self.records.pending = None;
        if self.records.note(bad.clone()) {
            messages::os_returned(&bad.version, &bad.reason);
            return self.record(OsState::Returned, &bad.version, &bad.reason);
        }
        Ok(())
    }

    fn compare(&mut self) -> Event {
        let Some((pair, version)) = self.os().map(|os| (Pair::of(os), os.version.to_string()))
        else {
            return Event::Same;
        };
        self.status.version = version;
        self.status.pair = pair.to_string();
        if self.running == Ok(pair) {
            return Event::Same;
        }
        match self.records.bad(&pair) {
            Some(_) => Event::KnownBad,
            None => Event::New,
        }
    }

    /// Decides whether the update goes on.
    fn check(&mut self) -> Event {
        let agents = match agents::list() {
            Ok(agents) => agents,
            Err(reason) => return self.failed(reason),
        };
        let is_fetched = self.status.state == OsState::Fetched;
        let decided = self.facts(&agents).and_then(|facts| decide::decide(&facts));
        match decided {
            Ok(method) => {
                self.method = method;
                match is_fetched {
                    true => self.take_lock(),
                    false => Event::Clear,
                }
            }
            Err(hold) => {
                self.hold = Some(hold);
                Event::Hold
            }
        }
    }

    fn facts(&self, agents: &[agents::Found]) -> Result<Facts, Hold> {
        let settings = &self.run.settings.os;
        let Some(os) = self.os() else {
            return Err(Hold::new(Cause::Policy, "the channel has no [os]"));
        };
        let pair = Pair::of(os);
        let channel = &self.run.offer.channel;
        let drained = agents.iter().filter(|agent| agent.is_out_of_service());
        let pending = self.records.pending.as_ref();
        Ok(Facts {
            method: settings.method,
            is_now: self.run.is_now,
            left_out: (!self.run.offer.includes_host).then_some(channel.rollout.percent),
            windows: window::evaluate(&settings.windows, offer::now().seconds()),
            unknown: self.running.clone().err(),
            memory: self.memory(os).check().err(),
            is_kept: crate::choices::are_kept(self.run.paths),
            was_rebooted: pending.is_some_and(|pending| pending.by_reboot && pending.pair == pair),
            failed: self.records.given_up(&pair).map(str::to_owned),
            drained: drained.map(|agent| agent.name.clone()).collect(),
        })
    }

    /// Returns the window that is open.
    fn window(&self) -> Result<Open<'a>, Hold> {
        let settings: &'a Settings = self.run.settings;
        let windows = &settings.os.windows;
        if self.run.is_now {
            return Ok(Open::until(windows, u64::MAX));
        }
        let found = window::evaluate(windows, offer::now().seconds());
        match (decide::closed(&found), found) {
            (None, Ok(Windows::Open(end))) => Ok(Open::until(windows, end)),
            (hold, _) => Err(hold.unwrap_or_else(|| Hold::new(Cause::Window, CLOSED))),
        }
    }

    /// Waits for a slot of the FleetLock server while a window is open.
    fn take_lock(&mut self) -> Event {
        let Some(lock) = lock(self.run.settings, self.run.host) else {
            return Event::Clear;
        };
        // A slot can be taken although its answer is lost.
        self.status.is_released = false;
        (self.run.show)(&self.status);
        let mut window = match self.window() {
            Ok(window) => window,
            Err(hold) => {
                self.hold = Some(hold);
                return Event::Hold;
            }
        };
        let began = Instant::now();
        loop {
            let reason = match lock.take(Path::new("curl")) {
                Ok(Answer::Granted) => return Event::Clear,
                Ok(Answer::Refused(reason)) | Err(reason) => reason,
            };
            if window.is_over(offer::now().seconds()) || began.elapsed() >= LONGEST_WAIT {
                self.release();
                return self.held(Cause::Lock, reason);
            }
            self.status.cause = Some(Cause::Lock);
            self.status.reason = reason;
            (self.run.show)(&self.status);
            // Hosts that wait together do not ask together.
            let jitter = Duration::from_millis(random::seed() % 20_000);
            if self.run.progress.wait_until_held(LOCK_RETRY + jitter) {
                self.release();
                return self.held(Cause::Operator, INTERRUPTED);
            }
            if window.is_over(offer::now().seconds()) {
                self.release();
                return self.held(Cause::Window, CLOSED);
            }
        }
    }

    /// Releases the lock once in a boot.
    fn release(&mut self) {
        release(self.run.paths, self.run.settings, &mut self.status);
    }

    /// Lets the tasks of agents end.
    fn drain(&mut self) -> Event {
        let mut window = match self.window() {
            Ok(window) => window,
            Err(hold) => {
                self.hold = Some(hold);
                return Event::Hold;
            }
        };
        let agents = match agents::list() {
            Ok(agents) => agents,
            Err(reason) => return self.failed(reason),
        };
        let polled = agents.iter().filter(|agent| agent.is_running());
        self.polled = polled.map(|agent| agent.name.clone()).collect();
        self.why_before = why_status();
        let force = self.run.settings.os.force_after_s;
        messages::os_draining(&self.status.version);
        if let Err(reason) = agents::drain(self.run.paths, &agents, force) {
            return self.failed(reason);
        }
        let began = Instant::now();
        let force_after = Duration::from_secs(force.into());
        let mut is_forced = false;
        let version = self.status.version.clone();
        let run = &mut *self.run;
        let status = &mut self.status;
        let waited = agents::wait(|agents| {
            let busy: Vec<_> = agents.iter().filter(|agent| !agent.is_quiet()).collect();
            let busy: Vec<_> = busy.iter().map(|agent| agent.name.as_str()).collect();
            let reason = format!("waiting for tasks of {}", busy.join(", "));
            if run.progress.is_held() {
                return Some(Hold::new(Cause::Operator, INTERRUPTED));
            }
            if force > 0 && !is_forced && began.elapsed() >= force_after {
                is_forced = true;
                messages::os_forced(&version, &busy.join(", "));
            }
            let ends = if window.is_over(offer::now().seconds()) {
                Some((Cause::Window, CLOSED))
            } else if began.elapsed() >= LONGEST_DRAIN {
                Some((Cause::Tasks, "a day passed"))
            } else {
                None
            };
            if let Some((cause, text)) = ends {
                return Some(Hold::new(cause, format!("{text} while {reason}")));
            }
            if status.reason != reason {
                status.reason = reason;
                (run.show)(status);
            }
            None
        });
        match waited {
            Ok(None) if window.is_over(offer::now().seconds()) => self.held(Cause::Window, CLOSED),
            Ok(None) => Event::Drained,
            Ok(Some(hold)) => {
                self.hold = Some(hold);
                Event::Hold
            }
            Err(reason) => self.failed(reason),
        }
    }

    /// Fetches the channel again: a drain can take a day. Returns its serial.
    fn confirm(&mut self, pair: Pair) -> Result<u64, Event> {
        let run = &*self.run;
        let fresh = match offer::fetch(run.paths, run.settings, run.source) {
            Ok(fresh) => fresh,
            Err(reason) => return Err(self.failed(reason)),
        };
        let channel = &fresh.channel;
        if channel.os.as_ref().map(Pair::of) != Some(pair) {
            let reason = "the channel has a different one since this run began";
            return Err(self.held(Cause::Policy, reason));
        }
        if !fresh.includes_host && !self.run.is_now {
            return Err(self.held(Cause::Policy, decide::left_out(channel.rollout.percent)));
        }
        match durable::replace(&self.spool.channel(), &fresh.file) {
            Ok(()) => Ok(channel.serial),
            Err(reason) => Err(self.failed(reason)),
        }
    }

    /// Lets the helper start the new pair. Returns only if the host still runs.
    fn hand_over(&mut self) -> Event {
        let Some(pair) = self.os().map(Pair::of) else {
            return Event::Failed;
        };
        let serial = match self.confirm(pair) {
            Ok(serial) => serial,
            Err(event) => return event,
        };
        let version = self.status.version.clone();
        self.records.pending = Some(Pending {
            pair,
            version: version.clone(),
            by_reboot: self.method == Method::Reboot,
            boot: self.boot.clone(),
        });
        if let Err(reason) = self.record(OsState::HandedOver, &version, "") {
            return self.failed(reason);
        }
        let request = Request {
            version: version.clone(),
            serial,
            method: match self.method {
                Method::Reboot => record::Method::Reboot,
                Method::Kexec | Method::Off => record::Method::Kexec,
            },
            trial: TrialTerms {
                deadline_s: self.run.settings.os.trial_s.into(),
                agents: self.polled.clone(),
                why_before: self.why_before,
            },
        };
        let progress = self.run.progress;
        let mut is_loaded = false;
        let loaded = || {
            is_loaded = true;
            messages::os_handed_over(&version);
        };
        let result = handover::request(self.run.paths, &request, loaded, |time| {
            progress.wait_until_held(time)
        });
        match result {
            Ok(()) => Event::Loaded,
            Err(_) if progress.is_held() => self.held(Cause::Operator, INTERRUPTED),
            Err(reason) => self.failed(reason),
        }
    }

    /// Lets the host work again, unless the helper still runs: it can stop all tasks.
    fn give_up(&mut self) -> Result<(), String> {
        handover::withdraw(self.run.paths)?;
        let resumed = agents::resume(self.run.paths);
        self.release();
        let mut recorded = Ok(());
        if let Some(pending) = self.records.pending.take() {
            if self.status.cause == Some(Cause::Fault) {
                self.records.count_failed(pending.pair, &self.status.reason);
            }
            let (version, reason) = (self.status.version.clone(), self.status.reason.clone());
            recorded = self.record(OsState::Held, &version, &reason);
        }
        resumed.and(recorded).and(self.tidy())
    }

    /// Empties the spool: it can be in RAM. What only waits is not fetched again.
    fn tidy(&self) -> Result<(), String> {
        let _ = fs::remove_file(self.spool.channel());
        let needed = match self.hold.as_ref().map(|hold| hold.cause) {
            Some(Cause::Lock) => self.needed(),
            Some(Cause::Window) if !memory::is_in_ram(&self.run.paths.os_spool()) => self.needed(),
            _ => BTreeSet::new(),
        };
        self.spool.keep_only(&needed)
    }
}

/// Returns false for the return from a pair before the one that the host went to last: the firmware
/// also remembers that.
fn is_of_last(trial: &Trial, pending: Option<&Pending>) -> bool {
    let is_other = pending.is_some_and(|pending| pending.pair != trial.pair);
    trial.state != TrialState::Returned || !is_other
}

/// Returns the version of a pair from which the host came back: the previous system does not know
/// it after a boot without a state volume.
fn version_of(trial: &Trial, pending: Option<&Pending>, os: Option<&Os>) -> String {
    let pending = pending.filter(|pending| pending.pair == trial.pair);
    let offered = os.filter(|os| Pair::of(os) == trial.pair);
    let known = pending.map(|pending| pending.version.clone());
    match trial.version.as_str() {
        "" => known
            .or_else(|| offered.map(|os| os.version.to_string()))
            .unwrap_or_else(|| "of another channel".to_owned()),
        version => version.to_owned(),
    }
}

/// Returns the exit status of `buildosctl why` without tasks; -1 if it is not known.
fn why_status() -> i64 {
    let status = why::status(WHY_SECONDS).filter(|status| *status != WHY_TIMEOUT);
    status.map_or(-1, i64::from)
}

#[cfg(test)]
mod tests {
    use buildos_channel::Digest;

    use super::*;

    #[test]
    fn version_of_a_return_is_known_from_the_record_or_the_channel() {
        let pair = Pair {
            image: Digest::of(b"image"),
            initrd: Digest::of(b"initrd"),
        };
        let trial = |version: &str| Trial {
            state: TrialState::Returned,
            version: version.to_owned(),
            pair,
            reason: String::new(),
        };
        let pending = Pending {
            pair,
            version: "2".to_owned(),
            by_reboot: false,
            boot: String::new(),
        };
        assert_eq!(version_of(&trial("3"), Some(&pending), None), "3");
        assert_eq!(version_of(&trial(""), Some(&pending), None), "2");
        assert_eq!(version_of(&trial(""), None, None), "of another channel");
    }

    #[test]
    fn return_from_an_earlier_pair_does_not_answer_for_the_last_one() {
        let pair = |seed: &[u8]| Pair {
            image: Digest::of(seed),
            initrd: Digest::of(seed),
        };
        let trial = Trial {
            state: TrialState::Returned,
            version: String::new(),
            pair: pair(b"b"),
            reason: String::new(),
        };
        let pending = |seed: &[u8]| Pending {
            pair: pair(seed),
            version: "3".to_owned(),
            by_reboot: true,
            boot: String::new(),
        };
        assert!(is_of_last(&trial, None));
        assert!(is_of_last(&trial, Some(&pending(b"b"))));
        assert!(!is_of_last(&trial, Some(&pending(b"c"))));
        let proven = Trial {
            state: TrialState::Proven,
            ..trial
        };
        assert!(is_of_last(&proven, Some(&pending(b"c"))));
    }
}
