//! Removing what an agent left behind, each thing with a line in the journal.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cleanup::detect as leak;
use crate::messages;
use crate::unit::dropin::SLICE;

/// Control groups of everything (cgroups(7)).
const CGROUPS: &str = "/sys/fs/cgroup";
/// Named network namespaces (ip-netns(8)).
const NAMESPACES: &str = "/run/netns";
/// Held while something is removed.
const LOCK: &str = "/run/buildos/agentd/reap.lock";
/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(5);
/// How long something must look left while other agents run: a machine opens its tap
/// within milliseconds of its making, and an agent that takes a link away removes the
/// rule as well.
const SETTLE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// What could not be looked at or removed.
#[derive(Debug, thiserror::Error)]
pub enum ReapError {
    /// A file could not be read or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The helper does not run in the unit that it is to clean up.
    #[error("this process is not in {0}")]
    OtherUnit(String),
    /// A tool could not be run.
    #[error("cannot run {0}")]
    Run(&'static str, #[source] io::Error),
    /// A tool failed; its own words.
    #[error("{0}: {1}")]
    Tool(&'static str, String),
    /// iproute2 says something unknown.
    #[error("cannot read what ip says of links")]
    Links(#[from] serde_json::Error),
    /// Killed processes are still there.
    #[error("killed processes have not ended: {0}")]
    Undead(String),
}

/// Removes what is left of the agent in `unit`, which ran as `user`. Called in
/// the unit, when its main process has ended. Every part is tried, whatever
/// becomes of the others.
#[must_use]
pub fn reap(unit: &str, user: &str) -> Vec<ReapError> {
    let parts = [processes(unit), network(unit, user)];
    parts.into_iter().filter_map(Result::err).collect()
}

/// Kills what is left in the control group of the unit, so that it holds nothing
/// any more. systemd would do so after us.
fn processes(unit: &str) -> Result<(), ReapError> {
    let group = own_group(unit)?;
    let others = || -> Result<BTreeSet<u32>, ReapError> {
        let mut pids = members(&group)?;
        pids.remove(&std::process::id());
        Ok(pids)
    };
    let mut told = BTreeSet::new();
    let deadline = Instant::now() + DEATH;
    loop {
        let left = others()?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let names: Vec<_> = left.into_iter().map(name_of).collect();
            return Err(ReapError::Undead(names.join(", ")));
        }
        // Each once; they may have started others before they ended.
        for pid in left {
            if told.insert(pid) {
                messages::leaked_process(pid, &name_of(pid));
                end(pid);
            }
        }
        sleep(LOOK);
    }
}

fn end(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// The control group of the unit, which this process is in, maybe further down.
fn own_group(unit: &str) -> Result<PathBuf, ReapError> {
    let text = read(Path::new("/proc/self/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = Path::new(path.unwrap_or_default());
    let group = path.ancestors().find(|group| group.ends_with(unit));
    group
        .map(|group| Path::new(CGROUPS).join(group))
        .ok_or_else(|| ReapError::OtherUnit(unit.to_owned()))
}

/// The processes of a control group and those below it.
fn members(group: &Path) -> Result<BTreeSet<u32>, ReapError> {
    let mut pids: BTreeSet<u32> = read(&group.join("cgroup.procs"))?
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    let entries = fs::read_dir(group).map_err(cannot("read", group))?;
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // A group may go while it is looked at.
            pids.extend(members(&entry.path()).unwrap_or_default());
        }
    }
    Ok(pids)
}

fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    let name = name.unwrap_or_default();
    format!("{pid} ({})", buildos_service::text::escape(name.trim_end()))
}

/// The processes of all agents but this one.
fn other_agents(unit: &str) -> BTreeSet<u32> {
    let Ok(own) = own_group(unit) else {
        return BTreeSet::new();
    };
    let Some(slice) = own.ancestors().find(|group| group.ends_with(SLICE)) else {
        return BTreeSet::new();
    };
    let mut all = members(slice).unwrap_or_default();
    for pid in members(&own).unwrap_or_default() {
        all.remove(&pid);
    }
    all
}

/// Taps that nobody holds, redirections from links that are gone, and namespaces that
/// are mounted nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Left {
    taps: BTreeSet<String>,
    rules: BTreeSet<String>,
    namespaces: BTreeSet<String>,
}

impl Left {
    fn look(user: &str) -> Result<Self, ReapError> {
        let saved = match output("iptables-save", &["-t", "nat"]) {
            Ok(saved) => saved,
            // Without iptables nobody made rules with it.
            Err(ReapError::Run(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                String::new()
            }
            Err(error) => return Err(error),
        };
        let links = leak::links(&output("ip", &["-json", "-details", "link", "show"])?)?;
        let taps = leak::idle_taps(&links, user);
        // A tap that is about to go takes its rules along.
        let stay = links.into_iter().map(|link| link.name);
        let stay = stay.filter(|name| !taps.contains(name)).collect();
        let rules = leak::dangling_rules(&saved, &stay).into_iter().collect();
        Ok(Self {
            taps,
            rules,
            namespaces: idle_namespaces()?,
        })
    }

    fn is_empty(&self) -> bool {
        self.taps.is_empty() && self.rules.is_empty() && self.namespaces.is_empty()
    }

    /// What is left in both.
    fn still(&self, later: &Self) -> Self {
        Self {
            taps: self.taps.intersection(&later.taps).cloned().collect(),
            rules: self.rules.intersection(&later.rules).cloned().collect(),
            namespaces: self
                .namespaces
                .intersection(&later.namespaces)
                .cloned()
                .collect(),
        }
    }

    fn remove(self) -> Result<(), ReapError> {
        for tap in &self.taps {
            messages::leaked_link(tap);
            output("ip", &["link", "delete", "dev", tap])?;
        }
        for name in &self.namespaces {
            messages::leaked_namespace(name);
            let path = Path::new(NAMESPACES).join(name);
            fs::remove_file(&path).map_err(cannot("remove", &path))?;
        }
        if self.rules.is_empty() {
            return Ok(());
        }
        for rule in &self.rules {
            messages::leaked_rule(rule);
        }
        let rules: Vec<String> = self.rules.into_iter().collect();
        // As a whole: iptables takes each line for a command of its own, and finds the
        // rule by what it says.
        let arguments = ["--noflush", "--wait", "5"];
        run("iptables-restore", &arguments, &leak::deletion(&rules)).map(drop)
    }
}

/// Removes what is left in the network of the host.
fn network(unit: &str, user: &str) -> Result<(), ReapError> {
    let mut left = Left::look(user)?;
    if !left.is_empty() && !other_agents(unit).is_empty() {
        let deadline = Instant::now() + SETTLE;
        while !left.is_empty() && Instant::now() < deadline {
            sleep(LOOK * 10);
            left = left.still(&Left::look(user)?);
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    // Agents that end together find the same things.
    let _lock = lock()?;
    left.still(&Left::look(user)?).remove()
}

/// The right to remove things, until it is dropped.
fn lock() -> Result<Flock<fs::File>, ReapError> {
    let path = Path::new(LOCK);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(cannot("create", directory))?;
    }
    let file = fs::File::create(path).map_err(cannot("create", path))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| cannot("lock", path)(error.into()))
}

/// Names below `/run/netns` that are mounted nowhere.
fn idle_namespaces() -> Result<BTreeSet<String>, ReapError> {
    let directory = Path::new(NAMESPACES);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(cannot("read", directory)(error)),
    };
    let mut names: BTreeSet<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    if names.is_empty() {
        return Ok(names);
    }
    // Those of an agent are mounted where only that agent sees it.
    for entry in fs::read_dir("/proc").map_err(cannot("read", Path::new("/proc")))? {
        let Ok(entry) = entry else { continue };
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        for name in leak::mounted_namespaces(&mounts) {
            names.remove(&name);
        }
    }
    Ok(names)
}

fn read(path: &Path) -> Result<String, ReapError> {
    fs::read_to_string(path).map_err(cannot("read", path))
}

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReapError {
    let path = path.to_owned();
    move |source| ReapError::File {
        action,
        path,
        source,
    }
}

fn output(tool: &'static str, arguments: &[&str]) -> Result<String, ReapError> {
    run(tool, arguments, "")
}

/// What a tool prints when it gets this input.
fn run(tool: &'static str, arguments: &[&str], input: &str) -> Result<String, ReapError> {
    let failed = |error| ReapError::Run(tool, error);
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that does not read its input says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = buildos_service::text::escape_bytes(output.stderr.trim_ascii());
        Err(ReapError::Tool(tool, said))
    }
}
