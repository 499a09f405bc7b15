//! buildos-os-trial: observes a new system, keeps it, or returns to the previous one.
//!
//! It also records the return in the previous system, which finds the reason on its kernel
//! command line. A new system without the previous one in RAM stays, with a reason.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::Duration;

use buildos_channel::Digest;
use buildos_service::file::{open_regular, read_bounded};
use buildos_service::{log_to_journal, notify};
use nix::time::{ClockId, clock_gettime};
use serde::Deserialize;

use super::command_line::{self, Pair, Returned};
use super::files::{Files, IMAGE, INITRD, RECORD, Trial, TrialState, write};
use super::firmware::{LOST, VARIABLE};
use super::judge::{self, Decision, Finding, Observation, Reason};
use super::record::{self, Method, Record};
use super::{firmware, kexec, why};
use crate::programs::capture;
use crate::{messages, offer, spool};

/// Time between two observations.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time for systemd to stop all units: longer than `TimeoutStopSec=` of each, such as that of
/// buildos-drain.service.
const SHUTDOWN: Duration = Duration::from_secs(1800);
/// Time for a call of buildosctl, as an argument of timeout(1).
const CALL: &str = "30s";
/// Bytes that buildosctl may write.
const OUTPUT: usize = 4 << 20;
/// Bytes of the kernel command line that are read.
const COMMAND_LINE: usize = 8192;
/// Exit status of `buildosctl why` if it could not be called.
const NO_ANSWER: u8 = 1;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal("buildos-os-trial");
    if std::env::args_os().len() > 1 {
        tracing::error!("buildos-os-trial takes no arguments");
        return ExitCode::from(2);
    }
    // A system whose program does not get here starts again, by the boot server.
    notify::ready();
    let files = Files::new(Path::new("/"));
    let result = match files.previous().join(RECORD).exists() {
        true => judge(&files),
        false => record_start(&files),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            messages::trial_failed(&error);
            ExitCode::FAILURE
        }
    }
}

/// Writes down that the host came back, or that nothing can judge this system.
fn record_start(files: &Files) -> Result<(), String> {
    let path = files.kernel_command_line();
    let line = read_bounded(&path, COMMAND_LINE)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let line = String::from_utf8_lossy(&line);
    let (from, reason) = if let Some(Returned { code, from }) = command_line::returned(&line) {
        let reason = match Reason::of_code(&code) {
            Some(reason) => reason.to_string(),
            None => code.escape_default().to_string(),
        };
        (from, reason)
    } else if let Some(from) = lost(files, &line) {
        (from, LOST.to_owned())
    } else {
        record_no_trial(files, &line);
        return Ok(());
    };
    messages::returned(&from.image, &from.initrd, &reason);
    let state = Trial {
        state: TrialState::Returned,
        version: String::new(),
        image: from.image.to_string(),
        initrd: from.initrd.to_string(),
        reason,
        since_usec: offer::now_usec(),
        deadline_usec: 0,
    };
    show(files, &state);
    Ok(())
}

/// Returns the system that began a trial without an end: the boot server has started the system of
/// before. If it has started a different one, the trial is of the past.
fn lost(files: &Files, line: &str) -> Option<Pair> {
    let variables = files.firmware_variables();
    let begun = firmware::read(&variables)?;
    if command_line::running(line)? == begun.previous {
        return Some(begun.new);
    }
    forget(&variables);
    None
}

fn forget(variables: &Path) {
    if let Err(error) = firmware::forget(variables) {
        messages::trial_failed(&format!(
            "the firmware does not remove the variable {VARIABLE}: {error}"
        ));
    }
}

/// Writes down that this system stays without a trial: its initrd had no previous system, or could
/// not keep it.
fn record_no_trial(files: &Files, line: &str) {
    // A trial that has ended also removes the previous system.
    let (Some(_), Some(running), false) = (
        command_line::trial(line),
        command_line::running(line),
        files.trial().exists(),
    ) else {
        return;
    };
    let reason = "it stays without a trial: the previous system is not in RAM";
    messages::trial_failed(reason);
    let state = Trial {
        state: TrialState::Proven,
        version: String::new(),
        image: running.image.to_string(),
        initrd: running.initrd.to_string(),
        reason: reason.to_owned(),
        since_usec: offer::now_usec(),
        deadline_usec: 0,
    };
    show(files, &state);
}

/// Writes the state. The trial goes on without it: /run can be full.
fn show(files: &Files, state: &Trial) {
    if let Err(error) = write(&files.trial(), state) {
        messages::trial_failed(&error);
    }
}

/// Observes this system until it is proven or left.
fn judge(files: &Files) -> Result<(), String> {
    let path = files.previous().join(RECORD);
    let content = read_bounded(&path, record::LIMIT)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let record =
        Record::parse(&content).map_err(|error| format!("the record is invalid: {error}"))?;
    let terms = record.trial.terms();
    let mut trial = judge::Trial::new(terms);
    let mut state = Trial {
        state: TrialState::Trial,
        version: record.version.clone(),
        image: record.image.clone(),
        initrd: record.initrd.clone(),
        reason: String::new(),
        since_usec: 0,
        deadline_usec: 0,
    };
    loop {
        notify::watchdog();
        let observation = observe(&record.trial.agents);
        let finding = judge::finding(terms, &observation);
        let reason = match &finding {
            Finding::Good => String::new(),
            Finding::Outside => format!(
                "{}, as before the update or outside this host",
                Reason::Why(observation.why)
            ),
            Finding::Fault(reason) => reason.to_string(),
        };
        let now = uptime();
        let decision = trial.observe(now, finding);
        let known = state.since_usec / 1_000_000;
        let start = kernel_start(offer::now_usec() / 1_000_000, now.as_secs(), known);
        let current = Trial {
            reason,
            since_usec: start * 1_000_000,
            deadline_usec: (start + terms.deadline.as_secs()) * 1_000_000,
            ..state.clone()
        };
        if current != state {
            state = current;
            show(files, &state);
        }
        match decision {
            Decision::Wait => sleep(INTERVAL),
            Decision::Proven => {
                keep(files, state);
                return Ok(());
            }
            Decision::Return(reason) => return go_back(files, &record, &reason, state),
        }
    }
}

/// Returns the time when the kernel started, seconds since 1970. It is the `known` one unless the
/// clock was set: the two clocks are not read at once.
fn kernel_start(now: u64, uptime: u64, known: u64) -> u64 {
    let start = now.saturating_sub(uptime);
    match start.abs_diff(known) <= 1 {
        true => known,
        false => start,
    }
}

/// Returns the time since the start of the kernel.
fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Keeps this system, and frees the RAM of the previous one.
fn keep(files: &Files, state: Trial) {
    let state = Trial {
        state: TrialState::Proven,
        since_usec: offer::now_usec(),
        deadline_usec: 0,
        ..state
    };
    show(files, &state);
    messages::proven(&state.version);
    forget(&files.firmware_variables());
    // The record first: without it the others are of no use.
    for name in [RECORD, IMAGE, INITRD] {
        let path = files.previous().join(name);
        if let Err(error) = fs::remove_file(&path) {
            messages::trial_failed(&format!("cannot remove {}: {error}", path.display()));
        }
    }
}

/// Starts the previous system; by the boot server if it cannot be loaded.
///
/// # Errors
///
/// The host still runs. It does not return if it succeeds: systemd stops it.
fn go_back(files: &Files, record: &Record, reason: &Reason, state: Trial) -> Result<(), String> {
    messages::returning(&record.version, &reason.to_string());
    let method = match load_previous(files, record, reason) {
        Ok(()) => Method::Kexec,
        Err(error) => {
            messages::trial_failed(&error);
            Method::Reboot
        }
    };
    kexec::start(method)?;
    let state = Trial {
        reason: format!("the host returns to the previous system: {reason}"),
        ..state
    };
    show(files, &state);
    for _ in 0..SHUTDOWN.as_secs() / INTERVAL.as_secs() {
        notify::watchdog();
        sleep(INTERVAL);
    }
    Err(format!(
        "the host still runs {} minutes after it began to return",
        SHUTDOWN.as_secs() / 60
    ))
}

fn load_previous(files: &Files, record: &Record, reason: &Reason) -> Result<(), String> {
    let previous = record.previous_system()?;
    let open = |name: &str, expected: Digest| {
        let path = files.previous().join(name);
        let failed = |error: io::Error| format!("cannot read {}: {error}", path.display());
        let file = open_regular(&path).map_err(failed)?;
        let found = spool::digest(&path).map_err(failed)?;
        match found == expected {
            true => Ok(file),
            false => Err(format!(
                "{} has the digest {found} instead of {expected}",
                path.display()
            )),
        }
    };
    let kernel = open(IMAGE, previous.image)?;
    let initrd = open(INITRD, previous.initrd)?;
    let line = command_line::of_return(&record.command_line, &reason.code(), record.new_system()?);
    kexec::load(&kernel, &initrd, &line)
        .map_err(|error| format!("the kernel does not load the previous system: {error}"))
}

fn observe(agents: &[String]) -> Observation {
    Observation {
        why: why::status(CALL).unwrap_or(NO_ANSWER),
        missing: missing(agents, &running()),
    }
}

/// Answer of `buildosctl agents --json`.
#[derive(Deserialize)]
struct Agents {
    agents: Vec<Agent>,
}

#[derive(Deserialize)]
struct Agent {
    kind: String,
    name: String,
    state: String,
}

/// Returns the agents with their states.
fn running() -> BTreeMap<String, String> {
    let mut command = Command::new("timeout");
    command.args([CALL, "buildosctl", "agents", "--json"]);
    let output = capture::output(&mut command, "coreutils", OUTPUT).unwrap_or_default();
    states(&output)
}

fn states(json: &[u8]) -> BTreeMap<String, String> {
    let answer: Option<Agents> = serde_json::from_slice(json).ok();
    let agents = answer.into_iter().flat_map(|answer| answer.agents);
    agents
        .map(|agent| (format!("{}@{}", agent.kind, agent.name), agent.state))
        .collect()
}

/// Returns the first agent that does not run. An operator may stop or drain it meanwhile.
fn missing(agents: &[String], states: &BTreeMap<String, String>) -> Option<String> {
    let present = ["running", "stopped", "draining", "drained"];
    let runs = |agent: &&String| {
        let state = states.get(*agent);
        state.is_some_and(|state| present.contains(&state.as_str()))
    };
    agents.iter().find(|agent| !runs(agent)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_trial() -> Trial {
        Trial {
            state: TrialState::Trial,
            version: "1".to_owned(),
            image: String::new(),
            initrd: String::new(),
            reason: String::new(),
            since_usec: 1,
            deadline_usec: 2,
        }
    }

    fn a_pair(seed: &[u8]) -> Pair {
        Pair {
            image: Digest::of(seed),
            initrd: Digest::of(seed),
        }
    }

    #[test]
    fn system_on_trial_is_lost_if_the_one_of_before_runs() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(root.path());
        let variables = files.firmware_variables();
        fs::create_dir_all(&variables).unwrap();
        let line = |pair: Pair| format!("quiet buildos.running={}:{}", pair.image, pair.initrd);
        assert_eq!(lost(&files, &line(a_pair(b"old"))), None);
        let begun = firmware::Begun {
            new: a_pair(b"new"),
            previous: a_pair(b"old"),
        };
        // The new one, or a third one, came by the boot server.
        for other in [b"new", b"3rd"] {
            firmware::remember(&variables, begun).unwrap();
            assert_eq!(lost(&files, "quiet"), None);
            assert_eq!(lost(&files, &line(a_pair(b"old"))), Some(a_pair(b"new")));
            assert_eq!(lost(&files, &line(a_pair(other))), None);
            assert_eq!(firmware::read(&variables), None);
        }
    }

    #[test]
    fn agent_that_does_not_run_is_missing() {
        let json = br#"{"schema": 1, "agents": [
            {"kind": "bbot", "name": "a", "state": "running", "needs": []},
            {"kind": "bslave", "name": "b", "state": "waiting"},
            {"kind": "bbot", "name": "c", "state": "stopped"}]}"#;
        let states = states(json);
        for (agents, expected) in [
            (vec![], None),
            (vec!["bbot@a", "bbot@c"], None),
            (vec!["bbot@a", "bslave@b"], Some("bslave@b")),
            (vec!["bbot@d"], Some("bbot@d")),
        ] {
            let agents: Vec<_> = agents.into_iter().map(str::to_owned).collect();
            assert_eq!(missing(&agents, &states).as_deref(), expected);
        }
        assert!(super::states(b"{").is_empty());
    }

    #[test]
    fn return_is_recorded_from_the_command_line() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(root.path());
        for directory in ["proc", "run/buildos/trial"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let read = || fs::read_to_string(files.trial());
        fs::write(files.kernel_command_line(), "quiet\n").unwrap();
        record_start(&files).unwrap();
        assert!(read().is_err());
        let from = format!("{}:{}", Digest::of(b"a"), Digest::of(b"b"));
        let line = format!("buildos.returned=why-10:{from} quiet\n");
        fs::write(files.kernel_command_line(), line).unwrap();
        record_start(&files).unwrap();
        let state: Trial = serde_json::from_str(&read().unwrap()).unwrap();
        assert_eq!(state.state, TrialState::Returned);
        assert_eq!(state.reason, "buildosctl why ended with 10 (daemons)");
        assert_eq!(state.image, Digest::of(b"a").to_string());
    }

    #[test]
    fn state_that_cannot_be_written_ends_neither_trial_nor_return() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(root.path());
        for directory in [files.previous(), root.path().join("proc")] {
            fs::create_dir_all(directory).unwrap();
        }
        let from = format!("{}:{}", Digest::of(b"a"), Digest::of(b"b"));
        let line = format!("buildos.returned=why-10:{from}\n");
        fs::write(files.kernel_command_line(), line).unwrap();
        assert_eq!(record_start(&files), Ok(()));
        for name in [RECORD, INITRD] {
            fs::write(files.previous().join(name), "x").unwrap();
        }
        keep(&files, a_trial());
        assert_eq!(fs::read_dir(files.previous()).unwrap().count(), 0);
        assert!(!files.trial().exists());
    }

    #[test]
    fn start_of_the_kernel_changes_only_with_the_clock() {
        for (now, known, expected) in [
            (1000, 0, 900),
            (1000, 900, 900),
            (1001, 900, 900),
            (999, 900, 900),
            (5000, 900, 4900),
            // The clock begins at 1970.
            (40, 0, 0),
        ] {
            assert_eq!(kernel_start(now, 100, known), expected, "{now} {known}");
        }
    }

    #[test]
    fn new_system_without_the_previous_one_stays_with_a_reason() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(root.path());
        for directory in ["proc", "run/buildos/trial"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let running = format!("{}:{}", Digest::of(b"a"), Digest::of(b"b"));
        let line = format!("buildos.running={running} buildos.trial=3\n");
        fs::write(files.kernel_command_line(), line).unwrap();
        record_start(&files).unwrap();
        let state = Trial::read(root.path()).unwrap();
        assert_eq!(state.state, TrialState::Proven);
        assert!(state.reason.starts_with("it stays without a trial"));
        // The state of a trial stays.
        write(&files.trial(), &a_trial()).unwrap();
        record_start(&files).unwrap();
        assert_eq!(Trial::read(root.path()), Some(a_trial()));
    }

    #[test]
    fn proven_system_frees_the_previous_one() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(root.path());
        for directory in [files.previous(), root.path().join("run/buildos/trial")] {
            fs::create_dir_all(directory).unwrap();
        }
        for name in [RECORD, IMAGE, INITRD] {
            fs::write(files.previous().join(name), "x").unwrap();
        }
        keep(&files, a_trial());
        assert_eq!(fs::read_dir(files.previous()).unwrap().count(), 0);
        let text = fs::read_to_string(files.trial()).unwrap();
        let state: Trial = serde_json::from_str(&text).unwrap();
        assert_eq!((state.state, state.deadline_usec), (TrialState::Proven, 0));
    }
}
