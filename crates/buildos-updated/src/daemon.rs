//! Runs the daemon: runs, calls of methods, and its end.
//!
//! | started by | begins with |
//! |---|---|
//! | the timer, or `systemctl start` | a run |
//! | another channel file ([`look`]) | a run |
//! | a call on the bus | the call; then a run, if the last one is older than an hour |
//!
//! A start by the bus delays the timer, which counts from the end of the daemon. The daemon ends
//! after its runs, or ten seconds after its start or the last call that led to a run. Reading does
//! not keep it: a run that is due would never begin. The bus is not needed for a run.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use buildos_channel::Name;
use buildos_dbus_api::update1::OsState;
use buildos_service::text::chain;
use buildos_service::{Request, Service, notify};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::choices;
use crate::choices::change::{self, Change, Known};
use crate::dbus::{Bus, Event, Wanted};
use crate::look;
use crate::messages;
use crate::offer;
use crate::paths::Paths;
use crate::progress::Progress;
use crate::settings::Settings;
use crate::state::{self, Updated, Volumes};
use crate::update::{self, Start};

/// Time without a run after which the daemon ends, or begins one that is due.
const IDLE: Duration = Duration::from_secs(10);
/// Age of the last run, in microseconds, from which a start by the bus leads to a run: the
/// interval of buildos-updated.timer.
const DUE: u64 = 3600 * 1_000_000;

/// Time in which a run ends the drain of agents when the daemon is stopped.
const UNDRAIN: Duration = Duration::from_secs(20);

/// The daemon cannot work.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The thread of the run ended early.
    #[error("the run ended by a defect")]
    Defect,
}

/// A run in its thread.
struct Running {
    progress: Arc<Progress>,
    shown: watch::Receiver<Updated>,
    end: oneshot::Receiver<Updated>,
    /// True if the choices of the former boot are not known yet: another run follows soon.
    is_early: bool,
    cause: Start,
}

/// Carries out runs and calls. A stop ends a run at once: the next run resumes.
///
/// # Errors
///
/// [`DaemonError`]. Every other failure is a published state.
pub async fn run(mut service: Service<Settings>) -> Result<(), DaemonError> {
    let paths = Paths::new(Path::new("/"));
    let last: Option<Updated> = state::read(&paths.state());
    let mut last_run = last.as_ref().map_or(0, |last| last.ended_usec);
    let mut last_begin = last.as_ref().map_or(0, |last| last.began_usec);
    let mut shown = with_choices(last.unwrap_or_default(), &paths);
    let mut bus = connect(shown.clone()).await;
    let is_activated = bus.as_ref().is_some_and(|bus| bus.is_activated);
    let mut next = (!is_activated).then_some(Start::default());
    let mut running: Option<Running> = None;
    let mut idle = Instant::now();
    if is_activated {
        idle += IDLE;
        service.ready();
    }
    loop {
        if let (None, Some(cause)) = (&running, next) {
            next = None;
            service.reread();
            last_begin = offer::now_usec();
            running = Some(start(&paths, &service, cause));
        }
        tokio::select! {
            // A call that is there comes before the end.
            biased;
            request = service.request() => match request {
                Request::Stop => {
                    if matches!(shown.os.state, OsState::Draining | OsState::HandedOver) {
                        undrain(running.as_mut()).await;
                    }
                    return Ok(());
                }
                // The next run reads the configuration.
                Request::Reload => {}
            },
            step = step(&mut running), if running.is_some() => {
                let (state, has_ended) = step?;
                if has_ended {
                    last_run = state.ended_usec;
                    if running.take().is_some_and(|running| running.is_early) {
                        last_run = 0;
                        idle = Instant::now() + IDLE;
                    }
                    service.status(&state.result);
                    // A start by systemctl waits for the end of the run.
                    service.ready();
                }
                shown = with_choices(state, &paths);
                bus = publish(bus, shown.clone()).await;
            }
            event = event(&mut bus) => match event {
                Event::Call(call) => {
                    let (result, cause) = carry_out(&call.wanted, &paths, service.settings());
                    let is_accepted = result.is_ok();
                    if is_accepted && cause.is_choice {
                        // Who has the answer reads the choice.
                        shown = with_choices(shown, &paths);
                        bus = publish(bus, shown.clone()).await;
                    }
                    // The caller can be gone.
                    let _ = call.answer.send(result);
                    if is_accepted {
                        idle = Instant::now() + IDLE;
                        let interrupted = interrupt(running.as_ref(), &call.wanted);
                        next = Some(cause.and(interrupted).and(next.unwrap_or_default()));
                    }
                }
                Event::Lost => bus = None,
            },
            // A choice comes before a run that is only due.
            () = sleep_until(idle), if running.is_none() => {
                // The start that a look caused has no effect while the daemon runs.
                let now = offer::now_usec();
                match is_due(last_run, now) || look::is_changed_since(&paths, last_begin, now) {
                    true => next = Some(Start::default()),
                    false => break,
                }
            }
        }
    }
    // systemd keeps a start by a later call until the daemon has ended.
    notify::stopping();
    if let Some(bus) = bus {
        bus.close().await;
    }
    Ok(())
}

/// Returns true if the last run ended an hour before `now`, or there was none (0). Of a run that
/// was killed there is no end.
fn is_due(last_run: u64, now: u64) -> bool {
    last_run == 0 || now.saturating_sub(last_run) >= DUE
}

async fn connect(state: Updated) -> Option<Bus> {
    match Bus::connect(state).await {
        Ok(bus) => Some(bus),
        Err(error) => {
            messages::no_bus(&chain(&error));
            None
        }
    }
}

/// Publishes a state. Without the bus the run goes on.
async fn publish(bus: Option<Bus>, state: Updated) -> Option<Bus> {
    let bus = bus?;
    match bus.publish(state).await {
        Ok(()) => Some(bus),
        Err(error) => {
            messages::no_bus(&chain(&error));
            None
        }
    }
}

/// Waits for an event of the bus; indefinitely without one.
async fn event(bus: &mut Option<Bus>) -> Event {
    match bus {
        Some(bus) => bus.event().await,
        None => std::future::pending().await,
    }
}

/// Starts a run. It waits for other programs, which systemd ends with this process.
fn start(paths: &Paths, service: &Service<Settings>, cause: Start) -> Running {
    let (progress, shown) = Progress::new(Updated::default());
    let progress = Arc::new(progress);
    let (done, end) = oneshot::channel();
    let (paths, settings) = (paths.clone(), service.settings().clone());
    let (problems, of_run) = (service.problems(), Arc::clone(&progress));
    let choices = choices::settle(&paths);
    let is_early = choices.is_err() && choices::are_awaited(&paths);
    thread::spawn(move || {
        let state = update::run(&paths, &settings, &problems, &of_run, choices, cause);
        // After a stop the receiver is gone.
        let _ = done.send(state);
    });
    Running {
        progress,
        shown,
        end,
        is_early,
        cause,
    }
}

/// Waits for the next state of a run. Returns true with the last one. Cancel-safe.
async fn step(running: &mut Option<Running>) -> Result<(Updated, bool), DaemonError> {
    let Some(running) = running else {
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        Ok(()) = running.shown.changed() => {
            Ok((running.shown.borrow_and_update().clone(), false))
        }
        ended = &mut running.end => match ended {
            Ok(state) => Ok((state, true)),
            Err(_) => Err(DaemonError::Defect),
        },
    }
}

/// Ends a run whose choices changed; an update of the operating system only for a hold. Returns
/// what the next run has to make up for.
fn interrupt(running: Option<&Running>, wanted: &Wanted) -> Start {
    let Some(running) = running else {
        return Start::default();
    };
    match wanted {
        Wanted::Run | Wanted::Now => Start::default(),
        Wanted::Change(Change::Hold(_)) => {
            running.progress.hold();
            Start::default()
        }
        Wanted::Change(_) => {
            running.progress.interrupt();
            Start {
                is_now: running.cause.is_now,
                ..Start::default()
            }
        }
    }
}

/// Lets a run end the drain of agents before the daemon ends.
async fn undrain(running: Option<&mut Running>) {
    if let Some(running) = running {
        running.progress.hold();
        // What it cannot end, the next run ends.
        let _ = timeout(UNDRAIN, &mut running.end).await;
    }
}

/// Carries out a call, which a run follows. Returns the answer, and the cause of the run.
fn carry_out(wanted: &Wanted, paths: &Paths, settings: &Settings) -> (Result<bool, String>, Start) {
    let mut cause = Start::default();
    let result = match wanted {
        Wanted::Run => check(paths),
        Wanted::Now => {
            cause.is_now = true;
            check(paths)
        }
        Wanted::Change(change) => {
            cause.is_choice = true;
            choose(change, paths, settings)
        }
    };
    (result, cause)
}

/// Adds the choices to a state. A run does not know those that were made after its begin.
fn with_choices(mut state: Updated, paths: &Paths) -> Updated {
    // Otherwise what was known last stays.
    if let Ok(choices) = choices::load(paths) {
        state.held = choices.hold.unwrap_or_default();
        state.choices_kept = choices::are_kept(paths);
    }
    state
}

/// Refuses a run while updates are held.
fn check(paths: &Paths) -> Result<bool, String> {
    match choices::load(paths)?.hold {
        None => Ok(true),
        Some(reason) => Err(format!(
            "updates are held: {reason}; end that first, with buildosctl update resume"
        )),
    }
}

/// Changes the choices. Returns true if they outlive a reboot.
fn choose(change: &Change, paths: &Paths, settings: &Settings) -> Result<bool, String> {
    let mut choices = choices::load(paths)?;
    let volumes: Volumes = state::read(&paths.placed()).unwrap_or_default();
    let volume = volumes.volume(settings.volume.as_str());
    let volume = volume.cloned().unwrap_or_default();
    let updated: Updated = state::read(&paths.state()).unwrap_or_default();
    let offered = updated.machines.iter().filter(|machine| machine.wanted > 0);
    let offered: Vec<Name> = offered.filter_map(|m| m.name.parse().ok()).collect();
    let known = Known {
        channel: (updated.serial > 0).then_some(offered.as_slice()),
        placed: &volume.placed(),
        current: &volume.current(),
        patterns: &settings.select,
    };
    change::apply(change, &mut choices, &known).map_err(|refused| refused.to_string())?;
    choices::store(paths, &choices)?;
    messages::chosen(change);
    Ok(choices::are_kept(paths))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_by_the_bus_leads_to_a_run_after_an_hour() {
        assert!(is_due(0, 0));
        assert!(!is_due(10 * DUE, 11 * DUE - 1));
        assert!(is_due(10 * DUE, 11 * DUE));
        // The clock was set back.
        assert!(!is_due(10 * DUE, DUE));
    }

    #[test]
    fn shown_state_has_the_choices_of_now() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        std::fs::create_dir_all(paths.choices().parent().unwrap()).unwrap();
        let old = Updated {
            held: "old".to_owned(),
            ..Updated::default()
        };
        let held = || with_choices(old.clone(), &paths).held;
        assert_eq!(held(), "");
        let choices = choices::Choices {
            hold: Some("new".to_owned()),
            ..choices::Choices::default()
        };
        choices::store(&paths, &choices).unwrap();
        assert_eq!(held(), "new");
        std::fs::write(paths.choices(), "{").unwrap();
        assert_eq!(held(), "old");
    }
}
