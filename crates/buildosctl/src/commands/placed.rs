//! `buildosctl machines list`, `plan` and `verify`: machines on the volumes of this host.
//!
//! It reads the state files of buildos-updated and of its helper, so it needs no daemon.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use buildos_channel::Channel;
use buildos_channel::model::Kind;
use buildos_channel::plan::streams;
use buildos_service::text::{Escaped, size};
use buildos_updated::choices::{self, Choices};
use buildos_updated::paths::Paths;
use buildos_updated::retention::{self, Placed, Reason, Selection};
use buildos_updated::room::{self, Room};
use buildos_updated::settings::{self, Settings};
use buildos_updated::state::{self, Machine, Updated, Volume, Volumes};
use buildos_updated::{offer, scan};

use crate::term::{columns, row, span};

/// What to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// What is on the volumes.
    List,
    /// What the next run of buildos-updated would do.
    Plan,
    /// Whether the files of the machines are what they were when they came.
    Verify,
}

/// Digits of a content id that are shown.
const ID: usize = 12;

/// Returns the text, and true if all is well.
pub(crate) fn show(request: Request) -> Result<(String, bool), String> {
    let paths = Paths::new(Path::new("/"));
    // Without a volume, the helper has not run yet.
    let volumes: Volumes = state::read(&paths.placed()).unwrap_or_default();
    match request {
        Request::List => {
            let updated: Option<Updated> = state::read(&paths.state());
            let now = offer::now().seconds().saturating_mul(1_000_000);
            let choices = choices::load(&paths);
            Ok((list(&volumes, updated.as_ref(), &choices, now), true))
        }
        Request::Plan => {
            let (settings, problems) = settings::load(paths.root());
            if let Some(problem) = problems.first() {
                return Err(problem.clone());
            }
            let channel = paths.channel();
            if !channel.exists() {
                return Ok(("no channel was accepted since boot\n".to_owned(), true));
            }
            let offer = offer::read(&channel, &paths, &settings, None)?;
            if !offer.includes_host {
                return Ok(("the rollout leaves this host out\n".to_owned(), true));
            }
            let empty = Volume::default();
            let volume = volumes.volume(settings.volume.as_str()).unwrap_or(&empty);
            let choices = choices::load(&paths)?;
            Ok((plan(&offer.channel, volume, &settings, &choices), true))
        }
        Request::Verify => verify(&volumes, &paths),
    }
}

fn list(
    volumes: &Volumes,
    updated: Option<&Updated>,
    choices: &Result<Choices, String>,
    now: u64,
) -> String {
    let mut out = String::new();
    let none = Choices::default();
    let (choices, damaged) = match choices {
        Ok(choices) => (choices, None),
        Err(damaged) => (&none, Some(damaged)),
    };
    for volume in &volumes.volumes {
        out += &format!(
            "volume {}: {} of {} free\n",
            volume.name,
            size(volume.free),
            size(volume.size)
        );
        let mut rows = vec![row(&["MACHINE", "REVISION", "STATE", "ID", "PATH"])];
        rows.extend(volume.machines.iter().map(|m| cells(m, choices)));
        let foreign = volume.foreign.iter().map(|path| {
            let path = Escaped::new(path).to_string();
            row(&["-", "-", "put there by hand", "-", &path])
        });
        rows.extend(foreign);
        if rows.len() > 1 {
            out += &columns(&rows);
        }
    }
    if volumes.volumes.is_empty() {
        out += "no machine volume is mounted\n";
    }
    if let Some(reason) = &choices.hold {
        out += &format!("updates are held: {}\n", Escaped::received(reason));
    }
    let removed = choices.machines.keys();
    for name in removed.filter(|name| choices.is_removed(name)) {
        out += &format!("{name} is removed by an operator\n");
    }
    if let Some(updated) = updated.filter(|updated| !updated.result.is_empty()) {
        out += &match updated.ended_usec {
            0 => format!("update: {}\n", updated.result),
            at => format!(
                "update {} ago: {}\n",
                span(now.saturating_sub(at)),
                updated.result
            ),
        };
    }
    if let Some(updated) = updated.filter(|updated| updated.fetched > 0 || updated.from_peers > 0) {
        out += &format!(
            "pieces: {} from peers, {} from the origin\n",
            size(updated.from_peers),
            size(updated.fetched)
        );
    }
    for peer in updated.iter().flat_map(|updated| &updated.bad_peers) {
        out += &format!("bad peer: {}\n", Escaped::received(peer));
    }
    let problems = updated.iter().flat_map(|updated| &updated.problems);
    let problems = problems.chain(&volumes.problems).chain(damaged);
    let all: BTreeSet<&String> = problems.collect();
    for problem in all {
        out += &format!("problem: {}\n", Escaped::received(problem));
    }
    out
}

fn cells(machine: &Machine, choices: &Choices) -> Vec<String> {
    let mut state = match (machine.current, machine.used) {
        (true, true) => "current, in use",
        (true, false) => "current",
        (false, true) => "previous, in use",
        (false, false) => "previous",
    }
    .to_owned();
    if let Ok(name) = machine.name.parse() {
        if choices.pinned(&name) == Some(machine.revision) {
            state += ", pinned";
        }
        if choices.is_added(&name) {
            state += ", added";
        }
    }
    row(&[
        machine.name.as_str(),
        &machine.revision.to_string(),
        &state,
        machine.id.get(..ID).unwrap_or(&machine.id),
        &shown_path(machine),
    ])
}

/// Returns what a host fetches, keeps and removes, and the room that it needs.
fn plan(channel: &Channel, volume: &Volume, settings: &Settings, choices: &Choices) -> String {
    let placed = volume.placed();
    let installed = placed.iter().map(|placed| placed.id).collect();
    let selection = Selection {
        patterns: &settings.select,
        keep: settings.keep,
        choices,
    };
    let plan = retention::compare(channel, &placed, &selection);
    let mut out = match &choices.hold {
        Some(reason) => format!("updates are held: {}\n", Escaped::received(reason)),
        None => String::new(),
    };
    let mut most = 0;
    for machine in &plan.place {
        let candidates = streams(machine, &installed);
        let Some(best) = candidates.first() else {
            continue;
        };
        let from = best
            .from
            .and_then(|from| placed.iter().find(|placed| placed.id == from));
        let how = match from {
            Some(from) => format!(
                "{} from revision {}, {} whole",
                size(best.stream.size),
                from.revision,
                size(machine.whole.size)
            ),
            None => format!("{} whole", size(best.stream.size)),
        };
        // The pieces of one machine are there at a time.
        let unpacked = room::unpacked(machine, best);
        most = most.max(best.stream.size.saturating_add(unpacked));
        out += &format!("+ {} revision {}: {how}\n", machine.name, machine.revision);
    }
    let used = |placed: &Placed| {
        let mut machines = volume.machines.iter();
        machines.any(|m| m.used && m.name == placed.name.as_str() && m.revision == placed.revision)
    };
    for (placed, reason) in &plan.keep {
        out += &line('=', placed, word(*reason), false);
    }
    for (placed, reason) in &plan.retire {
        out += &line('-', placed, word(*reason), used(placed));
    }
    for path in &volume.foreign {
        out += &format!("  {}: put there by hand\n", Escaped::new(path));
    }
    if most > 0 {
        let room = Room {
            size: volume.size,
            free: volume.free,
        };
        out += &match room.check(most) {
            Ok(()) => format!("needs {} of {} free\n", size(most), size(volume.free)),
            Err(reason) => format!("does not fit: {reason}\n"),
        };
    }
    match out.is_empty() {
        true => "nothing to do\n".to_owned(),
        false => out,
    }
}

fn line(sign: char, placed: &Placed, reason: &str, used: bool) -> String {
    let after = match used {
        true => ", once no process uses it",
        false => "",
    };
    format!(
        "{sign} {} revision {}: {reason}{after}\n",
        placed.name, placed.revision
    )
}

const fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Current => "current",
        Reason::Previous => "previous",
        Reason::Superseded => "superseded",
        Reason::NotInChannel => "not in the channel",
        Reason::NotSelected => "not selected",
        Reason::Pinned => "pinned",
        Reason::PinMissing => "kept: the pinned revision is not on the volume",
        Reason::Removed => "removed by an operator",
        Reason::Held => "held",
    }
}

/// Returns the path of a container, or that of a machine relative to its volume.
fn shown_path(machine: &Machine) -> String {
    match machine.kind.parse() {
        Ok(Kind::Container) => {
            let directory = Paths::new(Path::new("/")).containers();
            directory.join(&machine.path).display().to_string()
        }
        Ok(Kind::Machine) | Err(_) => machine.path.clone(),
    }
}

/// Returns where a machine is.
fn place(paths: &Paths, volume: &Volume, machine: &Machine) -> PathBuf {
    let directory = match machine.kind.parse() {
        Ok(Kind::Container) => paths.containers(),
        Ok(Kind::Machine) | Err(_) => paths.machines().join(&volume.name),
    };
    directory.join(&machine.path)
}

/// Computes the content ids of all machines again.
fn verify(volumes: &Volumes, paths: &Paths) -> Result<(String, bool), String> {
    let (mut out, mut well) = (String::new(), true);
    for volume in &volumes.volumes {
        for machine in &volume.machines {
            let path = place(paths, volume, machine);
            let id = scan::contents(&path)?.id().to_string();
            let found = match id == machine.id {
                true => "unchanged".to_owned(),
                false => format!("CHANGED: its content id is {id} instead of {}", machine.id),
            };
            well &= id == machine.id;
            out += &format!("{} revision {}: {found}\n", machine.name, machine.revision);
        }
    }
    match out.is_empty() {
        true => Ok(("no machines\n".to_owned(), true)),
        false => Ok((out, well)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::{Digest, grammar};

    fn machine(name: &str, revision: u64, current: bool, used: bool) -> Machine {
        Machine {
            name: name.into(),
            kind: Kind::Machine.to_string(),
            revision,
            id: Digest::of(format!("{name}{revision}").as_bytes()).to_string(),
            path: format!("{name}/{name}-{revision}"),
            current,
            used,
        }
    }

    fn volume(machines: Vec<Machine>) -> Volume {
        Volume {
            name: "default".into(),
            size: 100 << 30,
            free: 40 << 30,
            machines,
            foreign: vec!["mine".into()],
        }
    }

    #[test]
    fn machines_are_listed_with_state_and_problems() {
        let volumes = Volumes {
            volumes: vec![volume(vec![
                machine("box", 1, false, true),
                machine("box", 2, true, false),
            ])],
            problems: vec!["machine box: x".into()],
            ..Volumes::default()
        };
        let updated = Updated {
            ended_usec: 60_000_000,
            result: "serial 2: 1 placed".into(),
            fetched: 1 << 20,
            from_peers: 20 << 20,
            bad_peers: vec!["192.0.2.7: x".into()],
            ..Updated::default()
        };
        let chosen = br#"{"schema":1,"hold":"release","removed":["old"],"pinned":{"box":2}}"#;
        let chosen = Choices::parse(chosen).map_err(|error| error.to_string());
        assert_eq!(
            list(&volumes, Some(&updated), &chosen, 180_000_000),
            "\
volume default: 40.0 GiB of 100 GiB free
MACHINE  REVISION  STATE              ID            PATH
box      1         previous, in use   21df3653491b  box/box-1
box      2         current, pinned    c057f39e2186  box/box-2
-        -         put there by hand  -             mine
updates are held: release
old is removed by an operator
update 2 min 0 s ago: serial 2: 1 placed
pieces: 20.0 MiB from peers, 1.00 MiB from the origin
bad peer: 192.0.2.7: x
problem: machine box: x
"
        );
        let none = Volumes::default();
        let damaged = Err("damaged".to_owned());
        assert_eq!(
            list(&none, None, &damaged, 0),
            "no machine volume is mounted\nproblem: damaged\n"
        );
    }

    #[test]
    fn plan_names_what_comes_stays_and_goes() {
        let id = |text: &str| Digest::of(text.as_bytes());
        let text = format!(
            "format = 1\nname = \"stable\"\nserial = 1\nvalid_until = 2027-01-31T12:00:00Z\n\
             [[machine]]\nname = \"box\"\nrevision = 3\nid = \"{}\"\nsize = 3221225472\n\
             whole = {{ size = 1073741824, pieces = \"{}\" }}\n\
             [[machine.increment]]\nfrom = \"{}\"\nsize = 20971520\npieces = \"{}\"\n\
             [[machine]]\nname = \"other\"\nrevision = 2\nid = \"{}\"\nsize = 1\n\
             whole = {{ size = 1, pieces = \"{}\" }}\n",
            id("box3"),
            id("a"),
            id("box2"),
            id("b"),
            id("other2"),
            id("c")
        );
        let channel = grammar::parse(&text).unwrap().channel;
        let machines = vec![
            machine("box", 2, true, false),
            machine("other", 1, false, true),
            machine("other", 2, true, false),
            machine("gone", 7, true, true),
        ];
        let settings = Settings {
            keep: 0,
            ..Settings::default()
        };
        let none = Choices::default();
        assert_eq!(
            plan(&channel, &volume(machines.clone()), &settings, &none),
            "\
+ box revision 3: 20.0 MiB from revision 2, 1.00 GiB whole
= box revision 2: previous
= other revision 2: current
- other revision 1: superseded, once no process uses it
- gone revision 7: not in the channel, once no process uses it
  mine: put there by hand
needs 100 MiB of 40.0 GiB free
"
        );
        let held = Choices {
            hold: Some("release".into()),
            ..Choices::default()
        };
        let text = plan(&channel, &volume(machines), &settings, &held);
        assert!(text.starts_with("updates are held: release\n= box revision 2: held\n"));
        let full = Volume::default();
        let text = plan(&channel, &full, &settings, &none);
        assert!(
            text.contains("\ndoes not fit: it needs 4.00 GiB on the volume"),
            "{text}"
        );
    }
}
