//! Removes what an agent left behind, and logs each leftover.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use buildos_service::text::Escaped;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::detect;
use crate::messages;
use crate::unit::dropin::SLICE;

/// Root of the control groups (cgroups(7)).
const CGROUPS: &str = "/sys/fs/cgroup";
/// Files of named network namespaces (ip-netns(8)).
const NAMESPACES: &str = "/run/netns";
/// Lock file, locked during removals.
const LOCK: &str = "/run/buildos/agentd/reap.lock";
/// Time that a killed process has to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a leftover must persist while other agents run. A machine opens its tap
/// within milliseconds after the agent created it, and an agent that removes a link removes
/// its rule too.
const SETTLE_TIME: Duration = Duration::from_secs(2);
/// Interval between checks of killed processes.
const INTERVAL: Duration = Duration::from_millis(20);

/// Reason why a leftover could not be found or removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// A file could not be read or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// The operation: read, create, lock, remove.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// This process does not run in the unit that it is to clean up.
    #[error("this process is not in {0}")]
    OtherUnit(String),
    /// A tool could not be run.
    #[error("cannot run {0}")]
    Run(&'static str, #[source] io::Error),
    /// A tool failed with this error output.
    #[error("{0}: {1}")]
    Tool(&'static str, Escaped),
    /// The output of iproute2 cannot be parsed.
    #[error("cannot parse the links in the output of ip")]
    Links(#[from] serde_json::Error),
    /// Killed processes have not ended in time.
    #[error("killed processes have not ended: {0}")]
    NotEnded(String),
}

/// Removes the leftovers of an agent that ran in `unit` as `user`. The caller runs in the
/// unit after its main process has ended. An error in one part does not stop the others.
#[must_use]
pub fn clean_up(unit: &str, user: &str) -> Vec<CleanupError> {
    let parts = [kill_processes(unit), clean_network(unit, user)];
    parts.into_iter().filter_map(Result::err).collect()
}

/// Kills the processes left in the control group of the unit, so that they hold nothing
/// open. systemd would kill them later.
fn kill_processes(unit: &str) -> Result<(), CleanupError> {
    let group = own_group(unit)?;
    let others = || -> Result<BTreeSet<u32>, CleanupError> {
        let mut pids = members(&group)?;
        pids.remove(&std::process::id());
        Ok(pids)
    };
    let mut killed = BTreeSet::new();
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let left = others()?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let names: Vec<_> = left
                .into_iter()
                .map(|pid| name_of(pid).to_string())
                .collect();
            return Err(CleanupError::NotEnded(names.join(", ")));
        }
        // Processes may have started others before they ended.
        for pid in left {
            if killed.insert(pid) {
                messages::leaked_process(pid, &name_of(pid));
                send_sigkill(pid);
            }
        }
        sleep(INTERVAL);
    }
}

fn send_sigkill(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // The process may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Returns the control group of the unit. This process is in it or below it.
fn own_group(unit: &str) -> Result<PathBuf, CleanupError> {
    let text = read(Path::new("/proc/self/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = Path::new(path.unwrap_or_default());
    let group = path.ancestors().find(|group| group.ends_with(unit));
    group
        .map(|group| Path::new(CGROUPS).join(group))
        .ok_or_else(|| CleanupError::OtherUnit(unit.to_owned()))
}

/// Returns the processes of a control group and of the groups below it.
fn members(group: &Path) -> Result<BTreeSet<u32>, CleanupError> {
    let mut pids: BTreeSet<u32> = read(&group.join("cgroup.procs"))?
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    let entries = fs::read_dir(group).map_err(cannot("read", group))?;
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // The group may be removed meanwhile.
            pids.extend(members(&entry.path()).unwrap_or_default());
        }
    }
    Ok(pids)
}

fn name_of(pid: u32) -> Escaped {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    let name = name.unwrap_or_default();
    Escaped::new(&format!("{pid} ({})", name.trim_end()))
}

/// Returns the processes of all other agents.
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

/// Leftovers in the network of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Leftovers {
    taps: BTreeSet<String>,
    rules: BTreeSet<String>,
    namespaces: BTreeSet<String>,
}

impl Leftovers {
    fn find(user: &str) -> Result<Self, CleanupError> {
        let saved = match output("iptables-save", &["-t", "nat"]) {
            Ok(saved) => saved,
            // Without iptables there are no rules.
            Err(CleanupError::Run(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                String::new()
            }
            Err(error) => return Err(error),
        };
        let links = detect::links(&output("ip", &["-json", "-details", "link", "show"])?)?;
        let taps = detect::idle_taps(&links, user);
        // The rules of a tap that will be removed are leftovers too.
        let remaining = links.into_iter().map(|link| link.name);
        let remaining = remaining.filter(|name| !taps.contains(name)).collect();
        let rules = detect::dangling_rules(&saved, &remaining)
            .into_iter()
            .collect();
        Ok(Self {
            taps,
            rules,
            namespaces: idle_namespaces()?,
        })
    }

    fn is_empty(&self) -> bool {
        self.taps.is_empty() && self.rules.is_empty() && self.namespaces.is_empty()
    }

    /// Returns the leftovers that are in `self` and in `later`.
    fn intersection(&self, later: &Self) -> Self {
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

    fn remove(self) -> Result<(), CleanupError> {
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
        // One transaction. iptables-restore finds each rule by its text.
        let arguments = ["--noflush", "--wait", "5"];
        run("iptables-restore", &arguments, &detect::deletion(&rules)).map(drop)
    }
}

/// Removes leftovers in the network of the host.
fn clean_network(unit: &str, user: &str) -> Result<(), CleanupError> {
    let mut left = Leftovers::find(user)?;
    if !left.is_empty() && !other_agents(unit).is_empty() {
        let deadline = Instant::now() + SETTLE_TIME;
        while !left.is_empty() && Instant::now() < deadline {
            sleep(INTERVAL * 10);
            left = left.intersection(&Leftovers::find(user)?);
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    // Agents that end together find the same leftovers.
    let _lock = lock()?;
    left.intersection(&Leftovers::find(user)?).remove()
}

/// Locks the lock file until the result is dropped.
fn lock() -> Result<Flock<fs::File>, CleanupError> {
    let path = Path::new(LOCK);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(cannot("create", directory))?;
    }
    let file = fs::File::create(path).map_err(cannot("create", path))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| cannot("lock", path)(error.into()))
}

/// Returns the names below `/run/netns` that are not mounted in any process.
fn idle_namespaces() -> Result<BTreeSet<String>, CleanupError> {
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
    // The namespaces of an agent are mounted in its own mount namespace.
    for entry in fs::read_dir("/proc").map_err(cannot("read", Path::new("/proc")))? {
        let Ok(entry) = entry else { continue };
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        for name in detect::mounted_namespaces(&mounts) {
            names.remove(&name);
        }
    }
    Ok(names)
}

fn read(path: &Path) -> Result<String, CleanupError> {
    fs::read_to_string(path).map_err(cannot("read", path))
}

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CleanupError {
    let path = path.to_owned();
    move |source| CleanupError::File {
        action,
        path,
        source,
    }
}

fn output(tool: &'static str, arguments: &[&str]) -> Result<String, CleanupError> {
    run(tool, arguments, "")
}

/// Runs a tool with this input and returns its output.
fn run(tool: &'static str, arguments: &[&str], input: &str) -> Result<String, CleanupError> {
    let failed = |error| CleanupError::Run(tool, error);
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that does not read its input reports an error itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = Escaped::from_bytes(output.stderr.trim_ascii());
        Err(CleanupError::Tool(tool, stderr))
    }
}
