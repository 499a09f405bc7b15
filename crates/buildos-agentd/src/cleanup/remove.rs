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

use super::detect;
use crate::agent::id::Id;
use crate::messages;

/// Events of the control group of all agents (cgroups(7)).
const EVENTS: &str = "/sys/fs/cgroup/buildos.slice/buildos-agents.slice/cgroup.events";
/// Files of named network namespaces (ip-netns(8)).
const NAMESPACES: &str = "/run/netns";
/// Lock file, locked during removals.
const LOCK: &str = "/run/buildos/agent-reap/lock";
/// Time that a leftover must persist while other agents run. A machine opens its tap
/// within milliseconds after the agent created it, and an agent that removes a link removes
/// its rule too.
const SETTLE_TIME: Duration = Duration::from_secs(2);
/// Interval between looks at leftovers.
const INTERVAL: Duration = Duration::from_millis(200);

// Absolute paths: this process does not search programs.
const IP: &str = "/usr/bin/ip";
const IPTABLES_SAVE: &str = "/usr/sbin/iptables-save";
const IPTABLES_RESTORE: &str = "/usr/sbin/iptables-restore";
const SYSTEMCTL: &str = "/usr/bin/systemctl";

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
    /// A tool could not be run.
    #[error("cannot run {0}")]
    Run(&'static str, #[source] io::Error),
    /// A tool failed with this error output.
    #[error("{0}: {1}")]
    Tool(&'static str, Escaped),
    /// The output of iproute2 cannot be parsed.
    #[error("cannot parse the links in the output of ip")]
    Links(#[from] serde_json::Error),
}

/// Removes what an agent left. Its unit has ended, and systemd has killed its processes.
///
/// # Errors
///
/// A tool fails, or a file cannot be read or removed.
pub fn clean_up(agent: &Id) -> Result<(), CleanupError> {
    let user = user(agent)?;
    let mut left = Leftovers::find(&user)?;
    if !left.is_empty() && agents_run() {
        let deadline = Instant::now() + SETTLE_TIME;
        while !left.is_empty() && Instant::now() < deadline {
            sleep(INTERVAL);
            left = left.intersection(&Leftovers::find(&user)?);
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    // Agents that end together find the same leftovers.
    let _lock = lock()?;
    left.intersection(&Leftovers::find(&user)?).remove(agent)
}

/// Returns the user of an agent's unit.
fn user(agent: &Id) -> Result<String, CleanupError> {
    let unit = agent.unit();
    // Works without the bus: systemd has a socket for root.
    let user = output(SYSTEMCTL, &["show", "--property=User", "--value", &unit])?;
    Ok(match user.trim() {
        "" => "root".to_owned(),
        user => user.to_owned(),
    })
}

/// Returns true if an agent runs. The agent that has ended has no processes.
fn agents_run() -> bool {
    let events = fs::read_to_string(EVENTS).unwrap_or_default();
    !events.lines().any(|line| line == "populated 0")
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
        let saved = match output(IPTABLES_SAVE, &["-t", "nat"]) {
            Ok(saved) => saved,
            // Without iptables there are no rules.
            Err(CleanupError::Run(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                String::new()
            }
            Err(error) => return Err(error),
        };
        let links = detect::links(&output(IP, &["-json", "-details", "link", "show"])?)?;
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

    fn remove(self, agent: &Id) -> Result<(), CleanupError> {
        for tap in &self.taps {
            messages::leaked_link(agent, tap);
            output(IP, &["link", "delete", "dev", tap])?;
        }
        for name in &self.namespaces {
            messages::leaked_namespace(agent, name);
            let path = Path::new(NAMESPACES).join(name);
            fs::remove_file(&path).map_err(cannot("remove", &path))?;
        }
        if self.rules.is_empty() {
            return Ok(());
        }
        for rule in &self.rules {
            messages::leaked_rule(agent, rule);
        }
        let rules: Vec<String> = self.rules.into_iter().collect();
        // One transaction. iptables-restore finds each rule by its text.
        let arguments = ["--noflush", "--wait", "5"];
        run(IPTABLES_RESTORE, &arguments, &detect::deletion(&rules)).map(drop)
    }
}

/// Locks the lock file until the result is dropped.
fn lock() -> Result<Flock<fs::File>, CleanupError> {
    let path = Path::new(LOCK);
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

/// Runs a tool with this input and an empty environment, and returns its output.
fn run(tool: &'static str, arguments: &[&str], input: &str) -> Result<String, CleanupError> {
    let failed = |error| CleanupError::Run(tool, error);
    let mut child = Command::new(tool)
        .args(arguments)
        .env_clear()
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
