//! `buildosctl machines list`, `plan` and `verify`: machines on the volumes of this host.
//!
//! It reads the state files of buildos-updated and of its helper, so it needs no daemon.

use std::collections::BTreeSet;
use std::path::Path;

use buildos_channel::Channel;
use buildos_channel::plan::streams;
use buildos_service::text::{Escaped, size};
use buildos_updated::paths::Paths;
use buildos_updated::retention::{self, Placed, Reason};
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
            Ok((list(&volumes, updated.as_ref(), now), true))
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
            Ok((plan(&offer.channel, volume, &settings), true))
        }
        Request::Verify => verify(&volumes, &paths),
    }
}

fn list(volumes: &Volumes, updated: Option<&Updated>, now: u64) -> String {
    let mut out = String::new();
    for volume in &volumes.volumes {
        out += &format!(
            "volume {}: {} of {} free\n",
            volume.name,
            size(volume.free),
            size(volume.size)
        );
        let mut rows = vec![row(&["MACHINE", "REVISION", "STATE", "ID", "PATH"])];
        rows.extend(volume.machines.iter().map(cells));
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
    let problems = updated.iter().flat_map(|updated| &updated.problems);
    let all: BTreeSet<&String> = problems.chain(&volumes.problems).collect();
    for problem in all {
        out += &format!("problem: {}\n", Escaped::received(problem));
    }
    out
}

fn cells(machine: &Machine) -> Vec<String> {
    let state = match (machine.current, machine.used) {
        (true, true) => "current, in use",
        (true, false) => "current",
        (false, true) => "previous, in use",
        (false, false) => "previous",
    };
    row(&[
        machine.name.as_str(),
        &machine.revision.to_string(),
        state,
        machine.id.get(..ID).unwrap_or(&machine.id),
        machine.path.as_str(),
    ])
}

/// Returns what a host fetches, keeps and removes, and the room that it needs.
fn plan(channel: &Channel, volume: &Volume, settings: &Settings) -> String {
    let placed = volume.placed();
    let installed = placed.iter().map(|placed| placed.id).collect();
    let plan = retention::compare(channel, &placed, &settings.select, settings.keep);
    let mut out = String::new();
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
    }
}

/// Computes the content ids of all machines again.
fn verify(volumes: &Volumes, paths: &Paths) -> Result<(String, bool), String> {
    let (mut out, mut well) = (String::new(), true);
    for volume in &volumes.volumes {
        for machine in &volume.machines {
            let path = paths.machines().join(&volume.name).join(&machine.path);
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
            ..Updated::default()
        };
        assert_eq!(
            list(&volumes, Some(&updated), 180_000_000),
            "\
volume default: 40.0 GiB of 100 GiB free
MACHINE  REVISION  STATE              ID            PATH
box      1         previous, in use   21df3653491b  box/box-1
box      2         current            c057f39e2186  box/box-2
-        -         put there by hand  -             mine
update 2 min 0 s ago: serial 2: 1 placed
problem: machine box: x
"
        );
        let none = Volumes::default();
        assert_eq!(list(&none, None, 0), "no machine volume is mounted\n");
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
        assert_eq!(
            plan(&channel, &volume(machines), &settings),
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
        let full = Volume::default();
        let text = plan(&channel, &full, &settings);
        assert!(
            text.contains("\ndoes not fit: it needs 4.00 GiB on the volume"),
            "{text}"
        );
    }
}
