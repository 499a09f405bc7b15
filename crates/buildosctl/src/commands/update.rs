//! `buildosctl update`, and the choices of `buildosctl machines`.
//!
//! Showing reads the state file of buildos-updated, which is not running most of the time. A
//! call starts it.

use std::path::Path;
use std::time::Duration;

use buildos_channel::Timestamp;
use buildos_dbus_api::update1::{self, Machine, ManagerProxy, OsState};
use buildos_dbus_api::watch::BusLost;
use buildos_service::text::Escaped;
use buildos_updated::choices::change::Change;
use buildos_updated::choices::{self, Choices};
use buildos_updated::os::records::{self, Records};
use buildos_updated::paths::Paths;
use buildos_updated::state::{self, Agents, Updated};
use zbus::Connection;
use zbus::proxy::CacheProperties;

use super::call;
use crate::snapshot::collect::{not_kept, now as usec};
use crate::term::{columns, row, span};

/// Calls of a method while buildos-updated ends because it was idle.
const ATTEMPTS: usize = 3;
/// Pause between them: systemd needs a moment to see the end.
const PAUSE: Duration = Duration::from_millis(200);

/// The arguments of `update`, and of the verbs of `machines` that are choices.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Status,
    Check {
        /// Returns after the end of the run.
        wait: bool,
    },
    Now {
        /// Returns after the end of the run.
        wait: bool,
    },
    History,
    Change(Change),
}

async fn updated(bus: &Connection) -> Result<ManagerProxy<'static>, String> {
    ManagerProxy::builder(bus)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(message)
}

fn message(error: zbus::Error) -> String {
    call::error_message("buildos-updated", &error)
}

/// Calls a method, and again if buildos-updated was about to end.
async fn repeated<T>(call: impl AsyncFn() -> zbus::Result<T>) -> Result<T, String> {
    let mut attempt = 1;
    loop {
        match call().await {
            Err(zbus::Error::MethodError(name, ..))
                if name.as_str() == "org.freedesktop.DBus.Error.Failed" && attempt < ATTEMPTS =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            result => return result.map_err(message),
        }
        attempt += 1;
    }
}

/// Makes a choice. Returns what it means.
///
/// # Errors
///
/// buildos-updated refuses it, or does not answer.
pub(crate) async fn change(bus: &Connection, change: &Change) -> Result<String, String> {
    let updated = updated(bus).await?;
    let kept = repeated(async || match change {
        Change::Hold(reason) => updated.hold(reason).await,
        Change::Resume => updated.resume().await,
        Change::Pin(name, revision) => updated.pin_machine(name, revision.unwrap_or(0)).await,
        Change::Unpin(name) => updated.unpin_machine(name).await,
        Change::Add(name) => updated.add_machine(name).await,
        Change::Remove(name) => updated.remove_machine(name).await,
    })
    .await?;
    let not_kept = (!kept).then(|| not_kept(Path::new("/")));
    Ok(chosen(change, not_kept))
}

fn chosen(change: &Change, not_kept: Option<&str>) -> String {
    let text = match change {
        Change::Hold(_) => "updates are held".to_owned(),
        Change::Resume => "updates go on".to_owned(),
        Change::Pin(name, Some(revision)) => format!("{name} stays at revision {revision}"),
        Change::Pin(name, None) => format!("{name} stays at its current revision"),
        Change::Unpin(name) => format!("{name} follows the channel"),
        Change::Add(name) => format!("{name} is taken"),
        Change::Remove(name) => format!("{name} is removed once no process uses it"),
    };
    match not_kept {
        Some(reason) => format!("{text}, until the next boot: {reason}\n"),
        None => format!("{text}\n"),
    }
}

/// Starts a run. With `wait`, returns its result, and true if there is no problem.
///
/// # Errors
///
/// Updates are held, or buildos-updated does not answer.
pub(crate) async fn check(bus: &Connection, wait: bool) -> Result<(String, bool), String> {
    let asked = usec();
    let updated = updated(bus).await?;
    repeated(async || updated.check().await).await?;
    after(bus, asked, wait).await
}

/// Starts a run that takes the operating system of the channel now. As [`check`].
///
/// # Errors
///
/// As [`check`].
pub(crate) async fn now(bus: &Connection, wait: bool) -> Result<(String, bool), String> {
    let asked = usec();
    let updated = updated(bus).await?;
    repeated(async || updated.update_now().await).await?;
    after(bus, asked, wait).await
}

/// Describes the run that began after `asked`, with `wait` after its end.
async fn after(bus: &Connection, asked: u64, wait: bool) -> Result<(String, bool), String> {
    let paths = Paths::new(Path::new("/"));
    if !wait {
        let text = "a run has begun; buildosctl update status shows it\n";
        return Ok((text.to_owned(), true));
    }
    let mut watch = update1::watch(bus).await.map_err(message)?;
    loop {
        let snapshot = watch.next().await;
        let snapshot = snapshot.map_err(|lost: BusLost| lost.to_string())?;
        // Without a snapshot it has ended.
        if snapshot.is_none() || is_answer(state::read(&paths.state()).as_ref(), asked) {
            break;
        }
    }
    let state: Option<Updated> = state::read(&paths.state());
    let state = state.ok_or("buildos-updated left no state")?;
    let mut out = format!("{}\n", Escaped::received(&state.result));
    for problem in state.problems.iter().filter(|p| **p != state.result) {
        out += &format!("problem: {}\n", Escaped::received(problem));
    }
    Ok((out, state.problems.is_empty()))
}

/// Returns true after the end of a run that began after `asked`: a run that was under way then
/// can have another channel.
fn is_answer(state: Option<&Updated>, asked: u64) -> bool {
    state.is_some_and(|state| state.began_usec >= asked && state.ended_usec != 0)
}

/// Returns the channel, the last run, the choices and the machines.
pub(crate) fn status() -> String {
    let paths = Paths::new(Path::new("/"));
    let state: Option<Updated> = state::read(&paths.state());
    let not_kept = (!choices::are_kept(&paths)).then(|| not_kept(paths.root()));
    let mut out = render(state.as_ref(), &choices::load(&paths), not_kept, usec());
    let agents: Option<Agents> = state::read(&paths.agents_placed());
    out += &agent_lines(&agents.unwrap_or_default(), usec());
    out
}

/// Returns a line for each agent that is placed.
fn agent_lines(agents: &Agents, now: u64) -> String {
    let lines = agents.agents.iter().map(|agent| {
        format!(
            "agent {} {}: placed {} ago\n",
            Escaped::received(&agent.name),
            Escaped::received(&agent.version),
            span(now.saturating_sub(agent.placed_usec))
        )
    });
    lines.collect()
}

fn render(
    state: Option<&Updated>,
    choices: &Result<Choices, String>,
    not_kept: Option<&str>,
    now: u64,
) -> String {
    let mut out = String::new();
    if let Some(state) = state {
        let source = match state.source.as_str() {
            "" => String::new(),
            source => format!(" at {source}"),
        };
        let serial = match state.serial {
            0 => "no serial was accepted since boot".to_owned(),
            serial => format!("serial {serial}, valid until {}", state.valid_until),
        };
        out += &format!("channel {}{source}: {serial}\n", state.channel);
        out += &match state.ended_usec {
            0 => format!("run: {}\n", Escaped::received(&state.result)),
            at => format!(
                "last run {} ago: {}\n",
                span(now.saturating_sub(at)),
                Escaped::received(&state.result)
            ),
        };
    } else {
        out += "buildos-updated has not run since boot\n";
    }
    match choices {
        Ok(choices) => {
            if let Some(reason) = &choices.hold {
                out += &format!("held: {}\n", Escaped::received(reason));
            }
            let is_empty = choices.hold.is_none() && choices.machines.is_empty();
            if let Some(reason) = not_kept.filter(|_| !is_empty) {
                out += &format!("choices last until the next boot: {reason}\n");
            }
        }
        Err(damaged) => out += &format!("problem: {}\n", Escaped::received(damaged)),
    }
    if let Some(state) = state {
        out += &os_line(&state.os, now);
    }
    let machines = state.map_or(&[][..], |state| &state.machines);
    if !machines.is_empty() {
        let mut rows = vec![row(&["MACHINE", "CHANNEL", "CURRENT", "STATE"])];
        rows.extend(machines.iter().map(cells));
        out += &columns(&rows);
    }
    for problem in state.iter().flat_map(|state| &state.problems) {
        out += &format!("problem: {}\n", Escaped::received(problem));
    }
    out
}

/// Returns the line about the operating system; empty if the channel has none.
fn os_line(os: &state::Os, now: u64) -> String {
    if os.version.is_empty() {
        return String::new();
    }
    let version = Escaped::received(&os.version);
    if os.state == OsState::Idle {
        return format!("os {version}: runs\n");
    }
    let state = os.state.as_str().replace('-', " ");
    let cause = os.cause.map_or_else(String::new, |cause| {
        format!(" ({})", cause.as_str().replace('-', " "))
    });
    let since = span(now.saturating_sub(os.since_usec));
    let reason = match os.reason.as_str() {
        "" => String::new(),
        reason => format!(": {}", Escaped::received(reason)),
    };
    format!("os {version}: {state}{cause} for {since}{reason}\n")
}

/// Returns the operating systems that were started, and those that came back.
pub(crate) fn history() -> Result<(String, bool), String> {
    let paths = Paths::new(Path::new("/"));
    let records = records::load(&paths)?;
    let text = render_history(&records, choices::are_kept(&paths));
    Ok((text, true))
}

fn render_history(records: &Records, kept: bool) -> String {
    let mut out = String::new();
    if records.history.is_empty() {
        out += "no operating system of a channel was started";
        out += if kept { "\n" } else { " since boot\n" };
        return out;
    }
    let mut rows = vec![row(&["TIME", "VERSION", "STATE", "REASON"])];
    for entry in records.history.iter().rev() {
        rows.push(row(&[
            &Timestamp::from_seconds(entry.usec / 1_000_000).to_string(),
            &Escaped::received(&entry.version).to_string(),
            &entry.state.replace('-', " "),
            &Escaped::received(&entry.reason).to_string(),
        ]));
    }
    out += &columns(&rows);
    for bad in &records.bad {
        let (image, initrd) = (bad.pair.image, bad.pair.initrd);
        out += &format!(
            "never again: os {}, image {image}, initrd {initrd}\n",
            Escaped::received(&bad.version)
        );
    }
    if !kept {
        out += "the history lasts until the next boot: this host has no state volume\n";
    }
    out
}

fn cells(machine: &Machine) -> Vec<String> {
    let number = |revision: u64| match revision {
        0 => "-".to_owned(),
        revision => revision.to_string(),
    };
    let mut state = machine.state.as_str().replace('-', " ");
    if machine.pinned > 0 && machine.pinned != machine.current {
        state += &format!(" (pinned at {})", machine.pinned);
    }
    if !machine.choice.is_empty() {
        state += &format!(", {} by an operator", machine.choice);
    }
    row(&[
        machine.name.as_str(),
        &number(machine.wanted),
        &number(machine.current),
        &state,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_dbus_api::update1::MachineState;

    fn machine(name: &str, wanted: u64, current: u64, state: MachineState) -> Machine {
        Machine {
            name: name.into(),
            wanted,
            current,
            state,
            ..Machine::default()
        }
    }

    #[test]
    fn status_shows_placed_agents() {
        let agents = Agents {
            agents: vec![state::Agent {
                name: "bbot-agent".to_owned(),
                version: "0.18.0".to_owned(),
                placed_usec: 60_000_000,
                ..state::Agent::default()
            }],
            ..Agents::default()
        };
        assert_eq!(
            agent_lines(&agents, 120_000_000),
            "agent bbot-agent 0.18.0: placed 1 min 0 s ago\n"
        );
        assert_eq!(agent_lines(&Agents::default(), 0), "");
    }

    #[test]
    fn status_shows_channel_choices_and_machines() {
        let pinned = Machine {
            pinned: 3,
            ..machine("box", 4, 3, MachineState::Pinned)
        };
        let missing = Machine {
            pinned: 2,
            ..machine("lost", 4, 3, MachineState::PinMissing)
        };
        let removed = Machine {
            choice: "removed".into(),
            ..machine("old", 1, 0, MachineState::Leaving)
        };
        let state = Updated {
            ended_usec: 60_000_000,
            result: "serial 7: everything is there".into(),
            source: "https://updates.example.com".into(),
            channel: "stable".into(),
            serial: 7,
            valid_until: "2027-01-31T12:00:00Z".into(),
            problems: vec!["x".into()],
            machines: vec![pinned, missing, removed],
            ..Updated::default()
        };
        let choices = Choices {
            hold: Some("release week".into()),
            ..Choices::default()
        };
        assert_eq!(
            render(
                Some(&state),
                &Ok(choices),
                Some("the state volume is full"),
                180_000_000
            ),
            "\
channel stable at https://updates.example.com: serial 7, valid until 2027-01-31T12:00:00Z
last run 2 min 0 s ago: serial 7: everything is there
held: release week
choices last until the next boot: the state volume is full
MACHINE  CHANNEL  CURRENT  STATE
box      4        3        pinned
lost     4        3        pin missing (pinned at 2)
old      1        -        leaving, removed by an operator
problem: x
"
        );
        assert_eq!(
            render(None, &Err("cannot read".into()), None, 0),
            "buildos-updated has not run since boot\nproblem: cannot read\n"
        );
    }

    #[test]
    fn operating_system_has_a_line_with_state_and_reason() {
        let os = state::Os {
            state: OsState::Held,
            version: "2".into(),
            cause: Some(update1::Cause::NoWayBack),
            reason: "404".into(),
            since_usec: 1_000_000,
            ..state::Os::default()
        };
        let line = os_line(&os, 61_000_000);
        assert_eq!(line, "os 2: held (no way back) for 1 min 0 s: 404\n");
        let runs = state::Os {
            version: "2".into(),
            ..state::Os::default()
        };
        assert_eq!(os_line(&runs, 0), "os 2: runs\n");
        assert_eq!(os_line(&state::Os::default(), 0), "");
    }

    #[test]
    fn history_begins_with_the_last_change() {
        let mut records = Records::default();
        assert_eq!(
            render_history(&records, true),
            "no operating system of a channel was started\n"
        );
        for (usec, state, reason) in [(0, "handed-over", ""), (60_000_000, "returned", "no poll")] {
            records.add(records::Entry {
                usec,
                version: "2".into(),
                state: state.into(),
                reason: reason.into(),
            });
        }
        assert_eq!(
            render_history(&records, false),
            "\
TIME                  VERSION  STATE        REASON
1970-01-01T00:01:00Z  2        returned     no poll
1970-01-01T00:00:00Z  2        handed over
the history lasts until the next boot: this host has no state volume
"
        );
    }

    #[test]
    fn choice_that_a_reboot_ends_is_described() {
        let hold = Change::Hold("x".into());
        assert_eq!(chosen(&hold, None), "updates are held\n");
        assert_eq!(
            chosen(
                &Change::Pin("box".into(), Some(3)),
                Some("this host has no state volume")
            ),
            "box stays at revision 3, until the next boot: this host has no state volume\n"
        );
    }

    #[test]
    fn run_that_was_under_way_is_not_the_answer_to_a_check() {
        let run = |began_usec, ended_usec| Updated {
            began_usec,
            ended_usec,
            ..Updated::default()
        };
        assert!(!is_answer(None, 5));
        assert!(!is_answer(Some(&run(4, 6)), 5));
        assert!(!is_answer(Some(&run(6, 0)), 5));
        assert!(is_answer(Some(&run(6, 7)), 5));
    }
}
