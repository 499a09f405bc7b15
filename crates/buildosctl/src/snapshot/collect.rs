//! Reads the state of a host from the daemons and systemd. Reading starts no daemon.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use buildos_dbus_api::cache::Cache;
use buildos_dbus_api::system::{ServiceProxy, SystemdProxy, UnitProxy, unit_path};
use buildos_dbus_api::watch::Snapshot;
use buildos_dbus_api::{agent1, hostname1, nat1, network1};
use buildos_service::{clock, text};
use buildos_updated::choices::{self, Choice};
use buildos_updated::os_handover::files::Trial;
use buildos_updated::paths::Paths;
use buildos_updated::{ram, state};
use buildos_volumes::report::{self, Report, VolumeState};
use serde::Deserialize;
use zbus::Connection;
use zbus::zvariant::{OwnedObjectPath, Type, as_value};

use super::model::{
    Agent, Choices, Daemon, Host, Instance, Link, Manager, Network, OsTrial, RamVolume, Run,
    SCHEMA, StateVolume,
};
use super::{auth_keys, controllers, ssh};

/// Reads the state of the host. A daemon that does not answer is recorded as silent.
pub(crate) async fn host(cache: &Cache) -> Host {
    let mut host = summary(cache).await;
    if host.network.is_some() {
        host.links = links(cache).await;
        host.links.sort_by_key(|link: &Link| link.index);
    }
    if host.nat.is_some() {
        let usage = cache.read(nat1::NAME, nat1::PATH).await;
        host.usage = usage.ok().flatten().unwrap_or_default();
    }
    host
}

/// As [`host`], without links and the use of br1.
pub(crate) async fn summary(cache: &Cache) -> Host {
    let bus = cache.connection();
    let mut host = Host {
        schema: SCHEMA,
        taken_usec: now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        image: image(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()),
        clock_synchronised: clock::is_synchronised(Path::new("/")),
        ..Host::default()
    };
    let mut reader = Reader {
        cache,
        host: &mut host,
    };
    let network = reader
        .read(Daemon::Netd, network1::NAME, network1::PATH)
        .await;
    let name = reader
        .read(Daemon::Hostnamed, hostname1::NAME, hostname1::PATH)
        .await;
    let nat = reader.read(Daemon::Natd, nat1::NAME, nat1::PATH).await;
    let manager = reader
        .read(Daemon::Agentd, agent1::NAME, agent1::PATH)
        .await;
    host.network = network;
    host.name = name;
    host.nat = nat;
    host.manager = manager;
    if host.nat.is_some() {
        let open_ports = cache.read(nat1::NAME, nat1::PATH).await;
        host.open_ports = open_ports.ok().flatten().unwrap_or_default();
    }
    if host.manager.is_some() {
        for instance in instances(cache).await {
            host.agents.push(agent(bus, instance).await);
        }
        host.agents.sort_by_key(Agent::id);
    }
    host.ssh_host_keys = ssh::host_keys(bus).await;
    host.state_volume = report::read(Path::new("/")).map(volume);
    let updated = Paths::new(Path::new("/"));
    host.choices = choices(&updated);
    host.ram_volume = ram::report(&updated).map(ram_volume);
    host.update = state::read(&updated.state());
    host.os_trial = Trial::read(Path::new("/")).map(os_trial);
    host
}

fn volume(report: Report) -> StateVolume {
    StateVolume {
        state: report.state.as_str().to_owned(),
        fault: report.state.is_fault(),
        device: text::Escaped::received(&report.device).into(),
        reason: text::Escaped::received(&report.reason).into(),
        warning: text::Escaped::received(&report.warning).into(),
        saved_usec: report.saved_usec,
        size: report.size,
        free: report.free,
    }
}

fn choices(paths: &Paths) -> Choices {
    let mut found = Choices::default();
    let loaded = match choices::load(paths) {
        Ok(loaded) => loaded,
        Err(problem) => {
            found.problem = text::Escaped::received(&problem).into();
            return found;
        }
    };
    if loaded.hold.is_none() && loaded.machines.is_empty() {
        return found;
    }
    for (name, choice) in &loaded.machines {
        match choice {
            Choice::Added { .. } => found.added.push(name.to_string()),
            Choice::Removed => found.removed.push(name.to_string()),
            Choice::Pinned { .. } => {}
        }
        if let Some(revision) = loaded.pinned(name) {
            found.pinned.insert(name.to_string(), revision);
        }
    }
    found.hold = loaded
        .hold
        .map(|hold| text::Escaped::received(&hold).into());
    if !choices::are_kept(paths) {
        found.not_kept = not_kept(paths.root()).to_owned();
    }
    found
}

/// Returns the reason for which choices end with this boot, on a host that does not keep them.
pub(crate) fn not_kept(root: &Path) -> &'static str {
    match report::read(root).map(|report| report.state) {
        None | Some(VolumeState::Absent) => "this host has no state volume",
        Some(VolumeState::Refused) => "the state volume is refused",
        Some(VolumeState::Failed) => "the state volume cannot be mounted",
        Some(VolumeState::Mounted | VolumeState::Active) => "the state volume is being read",
        Some(VolumeState::Full) => "the state volume is full",
        Some(VolumeState::ReadOnly) => "the state volume is read-only",
        Some(VolumeState::Slow) => "the disk of the state volume does not answer",
        Some(VolumeState::Failing) => "the state volume cannot be read or written",
        Some(VolumeState::Gone) => "the state volume is no longer mounted",
    }
}

fn ram_volume(report: ram::Report) -> RamVolume {
    RamVolume {
        state: report.state.as_str().to_owned(),
        fault: report.state == ram::State::Failed,
        volume: text::Escaped::received(&report.volume).into(),
        mib: report.mib,
        reason: text::Escaped::received(&report.reason).into(),
    }
}

fn os_trial(trial: Trial) -> OsTrial {
    OsTrial {
        state: trial.state.as_str().to_owned(),
        version: text::Escaped::received(&trial.version).into(),
        reason: text::Escaped::received(&trial.reason).into(),
        image: text::Escaped::received(&trial.image).into(),
        initrd: text::Escaped::received(&trial.initrd).into(),
        deadline_usec: trial.deadline_usec,
    }
}

/// Returns CLOCK_REALTIME in microseconds.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

/// Reads daemons and records which of them do not answer.
struct Reader<'a> {
    cache: &'a Cache,
    host: &'a mut Host,
}

impl Reader<'_> {
    async fn read<S: Snapshot>(&mut self, daemon: Daemon, name: &str, path: &str) -> Option<S> {
        let why = match self.cache.read(name, path).await {
            Ok(Some(properties)) => return Some(properties),
            Ok(None) => "it is not running".to_owned(),
            Err(error) => text::Escaped::received(&text::chain(&error)).into(),
        };
        self.host.silent.insert(daemon, why);
        None
    }
}

/// The objects of the links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
struct Links {
    #[serde(with = "as_value")]
    links: Vec<OwnedObjectPath>,
}

impl Snapshot for Links {
    const INTERFACE: &'static str = Network::INTERFACE;
    const CACHED: bool = Network::CACHED;
}

/// The objects of the agents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Type)]
#[zvariant(signature = "a{sv}")]
#[serde(default, rename_all = "PascalCase")]
struct Instances {
    #[serde(with = "as_value")]
    instances: Vec<OwnedObjectPath>,
}

impl Snapshot for Instances {
    const INTERFACE: &'static str = Manager::INTERFACE;
    const CACHED: bool = Manager::CACHED;
}

async fn links(cache: &Cache) -> Vec<Link> {
    let listed = cache.read::<Links>(network1::NAME, network1::PATH).await;
    let paths = listed.ok().flatten().unwrap_or_default().links;
    objects(cache, network1::NAME, &paths).await
}

async fn instances(cache: &Cache) -> Vec<Instance> {
    let listed = cache.read::<Instances>(agent1::NAME, agent1::PATH).await;
    let paths = listed.ok().flatten().unwrap_or_default().instances;
    objects(cache, agent1::NAME, &paths).await
}

/// Reads the objects that a manager lists, without those that have disappeared since.
async fn objects<S: Snapshot>(cache: &Cache, name: &str, paths: &[OwnedObjectPath]) -> Vec<S> {
    let mut found = Vec::new();
    for path in paths {
        found.extend(cache.read(name, path).await.ok().flatten());
    }
    found
}

/// Adds the controllers and the task processes of the agent, which systemd knows.
async fn agent(bus: &Connection, instance: Instance) -> Agent {
    let mut agent = Agent {
        instance,
        ..Agent::default()
    };
    // Errors are normal here: systemd may have unloaded the unit of a stopped agent.
    if let Ok(run) = unit_run(bus, &agent.instance.unit).await {
        agent.run = run;
    }
    if let Ok(arguments) = arguments(bus, &agent.instance.unit).await {
        agent.controllers = controllers::from_arguments(&arguments);
        agent.run.key_file = auth_keys::file(&agent.instance.unit, &arguments);
    }
    if let Ok(processes) = processes(bus, &agent.instance.unit).await {
        let others = processes
            .iter()
            .filter(|pid| **pid != agent.instance.main_pid);
        agent.task_processes = if agent.instance.main_pid == 0 {
            0
        } else {
            others.count()
        };
    }
    agent
}

async fn arguments(bus: &Connection, unit: &str) -> zbus::Result<Vec<String>> {
    let service = ServiceProxy::builder(bus)
        .path(unit_path(unit))?
        .build()
        .await?;
    let commands = service.exec_start().await?;
    Ok(commands.into_iter().flat_map(|command| command.1).collect())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

async fn unit_run(bus: &Connection, unit: &str) -> zbus::Result<Run> {
    let path = unit_path(unit);
    let service = ServiceProxy::builder(bus).path(path.as_str())?;
    let service = service.build().await?;
    let unit = UnitProxy::builder(bus).path(path.as_str())?.build().await?;
    let identifier = unit.invocation_id().await?;
    Ok(Run {
        invocation: hexadecimal(&identifier),
        // (uid_t)-1 is systemd's value for no user.
        uid: Some(service.uid().await?).filter(|uid| *uid != u32::MAX),
        start_usec: unit.inactive_exit_timestamp().await?,
        key_file: None,
        // UINT64_MAX is systemd's value for an unknown peak.
        memory_peak: service
            .memory_peak()
            .await
            .ok()
            .filter(|peak| *peak != u64::MAX),
    })
}

async fn processes(bus: &Connection, unit: &str) -> zbus::Result<Vec<u32>> {
    let processes = SystemdProxy::new(bus)
        .await?
        .get_unit_processes(unit)
        .await?;
    Ok(processes.into_iter().map(|(_, pid, _)| pid).collect())
}

/// Returns the name of the system by os-release(5), and the version of the image.
fn image(os_release: &str) -> String {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| text::escape(value.trim_matches('"')))
    };
    let system = value("PRETTY_NAME=").unwrap_or_default();
    match value("IMAGE_VERSION=") {
        Some(version) => format!("{system}, image {version}"),
        None => system,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn choices_have_the_reason_for_which_they_end_with_the_boot() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        let write = |path: &Path, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(choices(&paths), Choices::default());
        write(
            &paths.choices(),
            r#"{"schema":1,"hold":"release week","added":["new"],"removed":["old"],
                "pinned":{"box":3,"new":1}}"#,
        );
        let found = choices(&paths);
        assert_eq!(found.hold.as_deref(), Some("release week"));
        assert_eq!(
            (found.added, found.removed),
            (vec!["new".into()], vec!["old".into()])
        );
        assert_eq!(
            found.pinned,
            BTreeMap::from([("box".into(), 3), ("new".into(), 1)])
        );
        assert_eq!(not_kept(root.path()), "this host has no state volume");
        for state in VolumeState::ALL {
            let text = format!(r#"{{"state":"{}"}}"#, state.as_str());
            write(&root.path().join(report::SELECTED), &text);
            let named = not_kept(root.path()).contains("the state volume");
            assert_eq!(named, state != VolumeState::Absent, "{state:?}");
        }
        write(&paths.choices(), "{");
        assert!(choices(&paths).problem.contains("choices"));
    }

    #[test]
    fn image_is_named_by_os_release() {
        let debian = "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n";
        assert_eq!(image(debian), "Debian GNU/Linux 13 (trixie)");
        let with_image_version = format!("{debian}IMAGE_VERSION=2026.11.24\n");
        assert_eq!(
            image(&with_image_version),
            "Debian GNU/Linux 13 (trixie), image 2026.11.24"
        );
        assert_eq!(image(""), "");
    }
}
