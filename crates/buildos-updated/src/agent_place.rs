//! buildos-agent-place: places and removes agents.
//!
//! It takes no arguments. The spool belongs to buildos-updated, so nothing in it is believed: the
//! channel's signatures are verified again, and the digest of each agent on the copy that only root
//! can change.
//!
//! ```text
//! /var/lib/buildos/agents/SHA256/NAME.raw   a placed agent
//! /var/lib/buildos/agents/SHA256/record     its version, and the time
//! /var/lib/buildos/agents/.new/             what is not whole yet
//! /var/lib/buildos/agents/accepted          serial of the channel
//! ```
//!
//! A directory appears by one rename, so it is whole. Of each agent of the channel, the previous one
//! stays, too. An agent that a drop-in of a unit names is never removed, and no agent is removed
//! while a drop-in cannot be read.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use buildos_channel::model::{Agent, Limits};
use buildos_channel::{Channel, Digest, Name};
use buildos_service::file::{open_regular, overwrite, read_bounded};
use buildos_service::text::chain;

use crate::agents::{is_placed, selected};
use crate::paths::Paths;
use crate::settings::{self, Settings};
use crate::spool::{self, Spool};
use crate::state::{self, Agents, SCHEMA};
use crate::{durable, messages, offer, request};

/// Bytes of a request, and of a record.
const RECORD: usize = 500;
/// Previous agents of a name that stay.
const KEEP: usize = 1;
/// Bytes of a drop-in that are read.
const DROP_IN: usize = 1 << 20;
/// Permissions of the state file.
const READABLE: u32 = 0o644;
/// Directories of agents can be read by every user, as units run as users.
const DIRECTORY: u32 = 0o755;
/// Name of the directory of what is not whole.
const NEW: &str = ".new";

/// Runs the helper.
#[must_use]
pub fn main() -> ExitCode {
    request::answer::<Agents>("buildos-agent-place", run)
}

/// Carries out a request, and writes the state.
fn run(paths: &Paths, request: u64) -> Result<(), String> {
    let (settings, _) = settings::load(paths.root());
    let mut problems = Vec::new();
    let mut state = look(paths);
    state.handling = request;
    write(paths, &state)?;
    if let Err(reason) = carry_out(paths, &settings, &mut problems) {
        problems.push(reason);
    }
    let mut state = look(paths);
    state.handling = request;
    state.handled = request;
    state.problems = problems;
    write(paths, &state)
}

fn write(paths: &Paths, state: &Agents) -> Result<(), String> {
    overwrite(&paths.agents_placed(), &state::text(state), READABLE).map_err(|error| chain(&error))
}

fn memory(paths: &Paths) -> PathBuf {
    paths.agents().join("accepted")
}

/// Returns what is placed. A directory that is not whole counts as none.
fn look(paths: &Paths) -> Agents {
    let entries = fs::read_dir(paths.agents()).into_iter().flatten();
    let mut agents: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| record(&entry.path()))
        .collect();
    agents.sort_by(|a, b| (&a.name, b.placed_usec).cmp(&(&b.name, a.placed_usec)));
    let accepted = offer::remembered(&memory(paths));
    Agents {
        schema: SCHEMA,
        accepted: accepted.map(|accepted| (accepted.serial, accepted.digest.to_string())),
        agents,
        ..Agents::default()
    }
}

/// Reads the record of a directory.
fn record(directory: &Path) -> Option<state::Agent> {
    let sha256: Digest = directory.file_name()?.to_str()?.parse().ok()?;
    let content = read_bounded(&directory.join("record"), RECORD).ok()?;
    let text = std::str::from_utf8(&content).ok()?;
    let mut fields = text.trim_end().split(' ');
    let name: Name = fields.next()?.parse().ok()?;
    let version: Name = fields.next()?.parse().ok()?;
    let placed_usec = fields.next()?.parse().ok()?;
    let file = directory.join(format!("{name}.raw"));
    Some(state::Agent {
        name: name.to_string(),
        version: version.to_string(),
        sha256: sha256.to_string(),
        size: file.symlink_metadata().ok()?.len(),
        placed_usec,
    })
}

fn carry_out(paths: &Paths, settings: &Settings, problems: &mut Vec<String>) -> Result<(), String> {
    clear(&paths.agents().join(NEW))?;
    let spool = Spool::new(&paths.agents_spool());
    if !spool.channel().exists() {
        return Ok(());
    }
    let last = offer::remembered(&memory(paths));
    let offer = offer::read(&spool.channel(), paths, settings, last)
        .map_err(|reason| format!("the channel is refused: {reason}"))?;
    if last != Some(offer.accepted) {
        durable::replace(&memory(paths), offer::memory(offer.accepted).as_bytes())?;
    }
    if !offer.includes_host {
        return Ok(());
    }
    let wanted = selected(&offer.channel, &settings.agents);
    let placed = look(paths);
    for agent in wanted.iter().filter(|agent| !is_placed(agent, &placed)) {
        // One that could not be fetched is reported by the daemon.
        if !spool.has(&agent.extension.sha256, agent.extension.size) {
            continue;
        }
        match place(paths, &spool, agent) {
            Ok(()) => messages::agent_placed(&agent.name, &agent.version),
            Err(reason) => problems.push(format!("agent {}: {reason}", agent.name)),
        }
    }
    remove(paths, &offer.channel, &wanted, problems);
    Ok(())
}

/// Removes the agents that are not needed, unless it is not known which of them units use.
fn remove(paths: &Paths, channel: &Channel, wanted: &[&Agent], problems: &mut Vec<String>) {
    let placed = look(paths);
    let used = match drop_ins(paths.root()) {
        Ok(used) => used,
        Err(reason) => {
            if !retired(&placed, channel, wanted, &BTreeSet::new()).is_empty() {
                problems.push(format!("no agent is removed: {reason}"));
            }
            return;
        }
    };
    for agent in retired(&placed, channel, wanted, &used) {
        let directory = paths.agents().join(&agent.sha256);
        match fs::remove_dir_all(&directory) {
            Ok(()) => tracing::info!("removed agent {} {}", agent.name, agent.version),
            Err(error) => problems.push(format!("cannot remove {}: {error}", directory.display())),
        }
    }
}

fn clear(directory: &Path) -> Result<(), String> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot clear {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Copies an agent out of the spool, verifies the copy, and gives it its name.
fn place(paths: &Paths, spool: &Spool, agent: &Agent) -> Result<(), String> {
    let object = agent.extension;
    if object.size > Limits::EXTENSION {
        return Err("it is larger than hosts take".to_owned());
    }
    let new = paths.agents().join(NEW);
    let failed = |error: io::Error| format!("cannot write {}: {error}", new.display());
    clear(&new)?;
    let mut builder = DirBuilder::new();
    // Until its digest is verified, only root sees it.
    builder.mode(0o700).create(&new).map_err(failed)?;
    let file = new.join(format!("{}.raw", agent.name));
    copy(&spool.object(&object.sha256), &file, object.size)
        .map_err(|error| format!("cannot copy it out of the spool: {error}"))?;
    let found = spool::digest(&file).map_err(failed)?;
    if found != object.sha256 {
        clear(&new)?;
        return Err(format!("its content has a different digest, {found}"));
    }
    let text = format!("{} {} {}\n", agent.name, agent.version, offer::now_usec());
    durable::replace(&new.join("record"), text.as_bytes())?;
    let to = paths.agents().join(object.sha256.to_string());
    // Of a directory without a record, or of another name with this content.
    clear(&to)?;
    fs::set_permissions(&new, Permissions::from_mode(DIRECTORY))
        .and_then(|()| fs::rename(&new, &to))
        .and_then(|()| File::open(paths.agents())?.sync_all())
        .map_err(failed)
}

/// Copies a regular file of `size` bytes: of a longer one, only these.
fn copy(from: &Path, to: &Path, size: u64) -> io::Result<()> {
    let mut from = open_regular(from)?.take(size);
    let mut to = File::create_new(to)?;
    io::copy(&mut from, &mut to)?;
    to.flush()?;
    to.sync_all()
}

/// Returns the agents to remove. `used`: digests that drop-ins of units name.
fn retired<'p>(
    placed: &'p Agents,
    channel: &Channel,
    wanted: &[&Agent],
    used: &BTreeSet<String>,
) -> Vec<&'p state::Agent> {
    let is_wanted = |agent: &state::Agent| {
        let mut wanted = wanted.iter();
        wanted.any(|wanted| {
            wanted.name.as_str() == agent.name
                && wanted.extension.sha256.to_string() == agent.sha256
        })
    };
    let mut retired = Vec::new();
    let mut kept: Vec<&str> = Vec::new();
    // The newest come first.
    for agent in placed.agents.iter().filter(|agent| !is_wanted(agent)) {
        let is_named = channel.agents.iter().any(|a| a.name.as_str() == agent.name);
        let before = kept.iter().filter(|name| **name == agent.name).count();
        if is_named && before < KEEP {
            kept.push(&agent.name);
        } else if !used.contains(&agent.sha256) {
            retired.push(agent);
        }
    }
    retired
}

/// Returns the digests in the drop-ins of the units of agents.
///
/// # Errors
///
/// A drop-in cannot be read: it can name any agent.
fn drop_ins(root: &Path) -> Result<BTreeSet<String>, String> {
    let mut found = BTreeSet::new();
    for directory in ["run/systemd/system", "etc/systemd/system"] {
        for directory in entries(&root.join(directory))? {
            let is_of_agent = directory
                .file_name()
                .and_then(OsStr::to_str)
                .is_some_and(|name| name.starts_with("buildos-") && name.ends_with(".d"));
            if !is_of_agent {
                continue;
            }
            for file in entries(&directory)? {
                // systemd ignores other files, see systemd.unit(5).
                if file.extension() != Some(OsStr::new("conf")) || is_masked(&file) {
                    continue;
                }
                let content = read_bounded(&file, DROP_IN)
                    .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
                let text = String::from_utf8_lossy(&content);
                let parts = text.split(|c: char| !c.is_ascii_hexdigit());
                let digests = parts.filter(|part| part.parse::<Digest>().is_ok());
                found.extend(digests.map(str::to_owned));
            }
        }
    }
    Ok(found)
}

/// Returns the paths in a directory, which can be absent.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: io::Error| format!("cannot read {}: {error}", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<io::Result<_>>().map_err(failed)
}

/// Returns true if a drop-in is a link to `/dev/null`, which has no content for systemd.
fn is_masked(file: &Path) -> bool {
    fs::read_link(file).is_ok_and(|target| target == Path::new("/dev/null"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::grammar;
    use buildos_channel::model::Object;
    use std::os::unix::fs::symlink;

    struct Site {
        _directory: tempfile::TempDir,
        paths: Paths,
        spool: Spool,
    }

    fn site() -> Site {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        fs::create_dir_all(paths.agents()).unwrap();
        fs::create_dir_all(paths.agents_spool()).unwrap();
        let spool = Spool::new(&paths.agents_spool());
        spool.create().unwrap();
        Site {
            _directory: directory,
            paths,
            spool,
        }
    }

    fn agent(name: &str, version: &str) -> Agent {
        let content = format!("{name}{version}");
        Agent {
            name: name.parse().unwrap(),
            version: version.parse().unwrap(),
            extension: Object {
                sha256: Digest::of(content.as_bytes()),
                size: content.len() as u64,
            },
        }
    }

    fn spooled(site: &Site, agent: &Agent, content: &str) {
        fs::write(site.spool.object(&agent.extension.sha256), content).unwrap();
    }

    #[test]
    fn verified_agent_is_placed_whole() {
        let site = site();
        let bbot = agent("bbot-agent", "1");
        spooled(&site, &bbot, "bbot-agent1");
        place(&site.paths, &site.spool, &bbot).unwrap();
        let placed = look(&site.paths);
        assert!(is_placed(&bbot, &placed));
        assert_eq!(placed.agents[0].version, "1");
        assert_eq!(placed.agents[0].size, 11);
        let directory = site.paths.agents().join(&placed.agents[0].sha256);
        let raw = fs::read(directory.join("bbot-agent.raw")).unwrap();
        assert_eq!(raw, b"bbot-agent1");
        assert!(!site.paths.agents().join(NEW).exists());
        // Without a record, it is not whole.
        fs::remove_file(directory.join("record")).unwrap();
        assert!(!is_placed(&bbot, &look(&site.paths)));
        place(&site.paths, &site.spool, &bbot).unwrap();
        assert!(is_placed(&bbot, &look(&site.paths)));
    }

    #[test]
    fn content_with_another_digest_and_links_are_refused() {
        let site = site();
        let bbot = agent("bbot-agent", "1");
        for content in ["bbot-agent2", "bbot-agent", ""] {
            spooled(&site, &bbot, content);
            let error = place(&site.paths, &site.spool, &bbot).unwrap_err();
            assert!(error.contains("a different digest"), "{error}");
        }
        let object = site.spool.object(&bbot.extension.sha256);
        fs::remove_file(&object).unwrap();
        let secret = site.paths.root().join("secret");
        fs::write(&secret, "bbot-agent1").unwrap();
        symlink(&secret, &object).unwrap();
        assert!(place(&site.paths, &site.spool, &bbot).is_err());
        assert_eq!(look(&site.paths).agents, []);
        // Of a longer file, the first bytes are not enough to fill the disk.
        fs::remove_file(&object).unwrap();
        spooled(&site, &bbot, "bbot-agent1 and more");
        place(&site.paths, &site.spool, &bbot).unwrap();
        assert_eq!(look(&site.paths).agents[0].size, 11);
    }

    fn placed(agents: &[(&Agent, u64)]) -> Agents {
        let mut agents: Vec<_> = agents
            .iter()
            .map(|(agent, at)| state::Agent {
                name: agent.name.to_string(),
                version: agent.version.to_string(),
                sha256: agent.extension.sha256.to_string(),
                size: 1,
                placed_usec: *at,
            })
            .collect();
        agents.sort_by(|a, b| (&a.name, b.placed_usec).cmp(&(&b.name, a.placed_usec)));
        Agents {
            agents,
            ..Agents::default()
        }
    }

    #[test]
    fn wanted_previous_and_used_agents_stay() {
        let versions: Vec<Agent> = ["1", "2", "3", "4"].map(|v| agent("bbot-agent", v)).into();
        let other = agent("bslave", "1");
        let text = "format = 1\nname = \"stable\"\nserial = 6\n\
            valid_until = 2027-01-31T12:00:00Z\n";
        let mut channel = grammar::parse(text).unwrap().channel;
        channel.agents = vec![versions[3].clone()];
        let all = placed(&[
            (&versions[0], 1),
            (&versions[1], 2),
            (&versions[2], 3),
            (&versions[3], 4),
            (&other, 5),
        ]);
        let gone = |used: &BTreeSet<String>| -> Vec<String> {
            let retired = retired(&all, &channel, &[&versions[3]], used);
            let named = retired.iter();
            named.map(|a| format!("{} {}", a.name, a.version)).collect()
        };
        let none = BTreeSet::new();
        assert_eq!(gone(&none), ["bbot-agent 2", "bbot-agent 1", "bslave 1"]);
        let used = BTreeSet::from([versions[0].extension.sha256.to_string()]);
        assert_eq!(gone(&used), ["bbot-agent 2", "bslave 1"]);
    }

    #[test]
    fn drop_in_names_the_digest_that_it_uses() {
        let root = tempfile::tempdir().unwrap();
        let directory = root
            .path()
            .join("run/systemd/system/buildos-bbot@a.service.d");
        fs::create_dir_all(&directory).unwrap();
        let digest = Digest::of(b"x").to_string();
        let text = format!("ExtensionImages=/var/lib/buildos/agents/{digest}/x.raw\n");
        fs::write(directory.join("50-buildos.conf"), text).unwrap();
        let used = BTreeSet::from([digest]);
        assert_eq!(drop_ins(root.path()).as_ref(), Ok(&used));
        // Neither has content for systemd.
        symlink("/dev/null", directory.join("masked.conf")).unwrap();
        fs::write(directory.join("notes"), vec![b'x'; DROP_IN + 1]).unwrap();
        assert_eq!(drop_ins(root.path()), Ok(used));
    }

    #[test]
    fn no_agent_is_removed_while_a_drop_in_cannot_be_read() {
        let site = site();
        let text = "format = 1\nname = \"stable\"\nserial = 6\n\
            valid_until = 2027-01-31T12:00:00Z\n";
        let channel = grammar::parse(text).unwrap().channel;
        let bbot = agent("bbot-agent", "1");
        spooled(&site, &bbot, "bbot-agent1");
        place(&site.paths, &site.spool, &bbot).unwrap();
        let root = site.paths.root();
        let directory = root.join("etc/systemd/system/buildos-bbot@.service.d");
        fs::create_dir_all(&directory).unwrap();
        let (file, target) = (directory.join("a.conf"), root.join("target"));
        fs::write(&target, bbot.extension.sha256.to_string()).unwrap();
        let large: fn(&Path, &Path) = |file, _| fs::write(file, vec![b'x'; DROP_IN + 1]).unwrap();
        let link: fn(&Path, &Path) = |file, target| symlink(target, file).unwrap();
        let strange: fn(&Path, &Path) = |file, _| fs::create_dir(file).unwrap();
        for make in [large, link, strange] {
            make(&file, &target);
            let mut problems = Vec::new();
            remove(&site.paths, &channel, &[], &mut problems);
            let [problem] = &problems[..] else {
                panic!("{problems:?}");
            };
            assert!(
                problem.starts_with("no agent is removed: cannot read "),
                "{problem}"
            );
            assert!(is_placed(&bbot, &look(&site.paths)));
            // There is no fault while no agent is to be removed.
            problems.clear();
            remove(&site.paths, &channel, &[&bbot], &mut problems);
            assert_eq!(problems, [""; 0]);
            let _ = fs::remove_file(&file);
        }
        fs::remove_dir(&file).unwrap();
        let mut problems = Vec::new();
        remove(&site.paths, &channel, &[], &mut problems);
        assert_eq!(problems, [""; 0]);
        assert_eq!(look(&site.paths).agents, []);
    }
}
