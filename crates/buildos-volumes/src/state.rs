//! Implements buildos-state, which keeps state on the state volume.
//!
//! `state.mount` starts it. Two threads share the work:
//!
//! | thread | touches |
//! |---|---|
//! | the loop below | `/run`, systemd |
//! | the writer ([`writer`]) | the disk |
//!
//! A disk that does not answer blocks the writer only. The loop reports this, and gives the
//! writer one order at a time: the latest state, so that nothing queues up.
//!
//! | file | subject |
//! |---|---|
//! | [`contents`] | what is kept, and where |
//! | [`keeper`] | restores and saves it |
//! | [`host_keys`] | keys of the SSH server |
//! | [`journal`] | ends of journals |
//! | [`fault`] | what an error means |
//! | [`order`] | what the writer does, and what it led to |
//! | [`writer`] | the thread |

use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use buildos_service::file_watch::{FileWatch, FileWatchError};
use buildos_service::{log_to_journal, notify, text};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::mounts::{self, MountWatch};
use crate::report::{self, Report, VolumeState};
use crate::{STATE, messages};
use contents::WATCHED;
use fault::Fault;
use keeper::Keeper;
use order::{Order, Outcome};
use writer::Writer;

pub mod contents;
pub mod fault;
pub mod host_keys;
pub mod journal;
pub mod keeper;
pub mod order;
pub mod writer;

const NAME: &str = "buildos-state";
/// Delay between a changed file and its saving: daemons write several files in a row.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// Interval of saving what changes all the time: clock, end of the journal.
const INTERVAL: Duration = Duration::from_secs(600);
/// Time after which a disk counts as slow. Disks that start to spin take up to 10 s.
const SLOW: Duration = Duration::from_secs(15);
/// Time limit for the last saving at a shutdown, shorter than `TimeoutStopSec=` of the unit.
const LAST: Duration = Duration::from_secs(8);
/// Delays between attempts after a failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(64);

/// Reason to end with an error.
#[derive(Debug, thiserror::Error)]
enum StateError {
    #[error("{STATE} is not mounted")]
    NotMounted,
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot watch mounts")]
    Mounts(#[source] io::Error),
    #[error(transparent)]
    Watch(#[from] FileWatchError),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Runs buildos-state.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal(NAME);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .map_err(StateError::Runtime)
        .and_then(|runtime| runtime.block_on(run(Path::new("/"))));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            messages::not_reported(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(root: &Path) -> Result<(), StateError> {
    let mounts = mounts::read(root);
    let mount = mounts::at(&mounts, STATE).ok_or(StateError::NotMounted)?;
    let device = mount.source.clone();
    let changed_mounts = MountWatch::new(root).map_err(StateError::Mounts)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(StateError::Runtime)?;
    let files = FileWatch::new(root, &WATCHED)?;
    let mut writer = Writer::start(Keeper::new(root, STATE)).map_err(StateError::Thread)?;
    let mut status = Status::new(root, device);
    notify::ready();
    status.publish();
    let mut retry = FIRST_RETRY;
    let mut due = Instant::now();
    let mut order = Order::Restore;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is immediate.
    ticks.tick().await;
    loop {
        files.add_directories()?;
        tokio::select! {
            changed = files.changed() => {
                changed?;
                due = due.max(Instant::now() + DEBOUNCE);
                order = order.max(Order::Changes);
            }
            _ = ticks.tick() => order = order.max(Order::All),
            () = sleep_until(due), if order != Order::Nothing && !writer.is_busy() => {
                writer.order(order);
                order = Order::Nothing;
            }
            () = sleep_until(writer.since() + SLOW),
                if writer.is_busy() && !status.is_slow() => status.slow(),
            outcome = writer.outcome(), if writer.is_busy() => {
                let fault = status.outcome(outcome);
                if fault {
                    due = Instant::now() + retry;
                    retry = (2 * retry).min(LONGEST_RETRY);
                    order = order.max(Order::Changes);
                } else {
                    retry = FIRST_RETRY;
                }
            }
            changed = changed_mounts.changed() => {
                changed.map_err(StateError::Mounts)?;
                if mounts::at(&mounts::read(root), STATE).is_none() {
                    status.gone();
                    return Ok(());
                }
            }
            _ = terminate.recv() => break,
        }
    }
    // A thread that waits for the disk must not delay the shutdown.
    let last = async {
        if writer.is_busy() {
            status.outcome(writer.outcome().await);
        }
        writer.order(Order::Last);
        status.outcome(writer.outcome().await);
    };
    if timeout(LAST, last).await.is_err() {
        tracing::warn!("the last state is not saved: the disk does not answer");
    }
    Ok(())
}

/// What buildos-state reports.
struct Status<'a> {
    root: &'a Path,
    report: Report,
}

impl<'a> Status<'a> {
    fn new(root: &'a Path, device: String) -> Self {
        let report = Report {
            state: VolumeState::Mounted,
            reason: format!("reading {device}"),
            device,
            ..Report::default()
        };
        Self { root, report }
    }

    fn publish(&self) {
        notify::status(&self.report.reason);
        if let Err(error) = report::write_status(self.root, &self.report) {
            messages::not_reported(&error);
        }
    }

    fn is_slow(&self) -> bool {
        self.report.state == VolumeState::Slow
    }

    fn set(&mut self, state: VolumeState, reason: String) {
        let was_fault = self.report.state.is_fault();
        let changed = self.report.state != state;
        self.report.state = state;
        self.report.reason = reason;
        if changed && state.is_fault() {
            messages::fault(&self.report);
        } else if was_fault && !state.is_fault() {
            messages::fault_over(&self.report);
        }
        self.publish();
    }

    fn slow(&mut self) {
        let seconds = SLOW.as_secs();
        let reason = format!(
            "{} has not answered for {seconds} s; the state waits",
            self.report.device
        );
        self.set(VolumeState::Slow, reason);
    }

    fn gone(&mut self) {
        let reason = format!("{} is no longer mounted", self.report.device);
        self.set(VolumeState::Gone, reason);
    }

    /// Returns true after a failure.
    fn outcome(&mut self, outcome: Outcome) -> bool {
        if !outcome.restored.is_empty() {
            messages::restored(&outcome.restored.join(", "));
        }
        if outcome.host_keys_replaced {
            reload_ssh();
        }
        for note in &outcome.notes {
            tracing::warn!("{}", text::Escaped::received(note));
        }
        self.report.size = outcome.size;
        self.report.free = outcome.free;
        match outcome.fault {
            None => {
                self.report.saved_usec = now_usec();
                let reason = format!("saves the state on {}", self.report.device);
                self.set(VolumeState::Active, reason);
                false
            }
            Some(Fault { state, reason }) => {
                self.set(state, reason);
                true
            }
        }
    }
}

/// Makes a running SSH server read its keys again.
fn reload_ssh() {
    let started = Command::new("systemctl")
        .args(["--no-block", "try-reload-or-restart", "ssh.service"])
        .status();
    if !started.is_ok_and(|status| status.success()) {
        tracing::warn!("cannot reload ssh.service, which has other host keys");
    }
}

fn now_usec() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}
