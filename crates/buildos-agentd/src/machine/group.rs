//! Reads the processes of a unit, from its control group and `/proc`.

use std::fs;
use std::path::{Path, PathBuf};

use buildos_service::file::read_bounded;
use buildos_types::InterfaceName;

use super::process::{self, Memory, Stat};
use super::qemu::CommandLine;

/// Most processes of a unit that are read. Machines in a unit with more can be missed.
const PROCESS_LIMIT: usize = 2048;
/// Deepest level of control groups below a unit.
const DEPTH_LIMIT: usize = 8;
/// Largest file that is read: `cgroup.procs` of [`PROCESS_LIMIT`] processes.
const FILE_LIMIT: usize = 1 << 18;
/// Longest command line that is read (`MAX_ARG_STRLEN` of execve(2)).
const COMMAND_LINE_LIMIT: usize = 1 << 17;

/// Process of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Number of the process.
    pub pid: u32,
    /// Its parent, CPU time and start.
    pub stat: Stat,
    /// Present if it is QEMU.
    pub machine: Option<Observed>,
}

/// What was read of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Taps on the command line.
    pub taps: Vec<InterfaceName>,
    /// RAM of QEMU.
    pub memory: Memory,
    /// Bytes that passed the taps.
    pub traffic: Traffic,
}

/// Bytes that passed the taps of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the machine received.
    pub received: u64,
    /// Bytes that the machine sent.
    pub sent: u64,
}

/// Returns the directory of the control group of a process.
#[must_use]
pub fn directory(root: &Path, pid: u32) -> Option<PathBuf> {
    let text = read(&proc(root, pid).join("cgroup"))?;
    let path = process::cgroup(&text)?;
    Some(root.join("sys/fs/cgroup").join(path))
}

/// Reads the processes of a control group and of those below it. A control group that is gone
/// has none.
#[must_use]
pub fn processes(root: &Path, directory: &Path) -> Vec<Process> {
    let mut pids = Vec::new();
    collect(directory, DEPTH_LIMIT, &mut pids);
    pids.truncate(PROCESS_LIMIT);
    let read = pids.into_iter().filter_map(|pid| read_process(root, pid));
    read.collect()
}

fn collect(directory: &Path, depth: usize, pids: &mut Vec<u32>) {
    let text = read(&directory.join("cgroup.procs")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory && pids.len() < PROCESS_LIMIT {
            collect(&entry.path(), depth, pids);
        }
    }
}

/// Reads a process, which can end at any time.
fn read_process(root: &Path, pid: u32) -> Option<Process> {
    let directory = proc(root, pid);
    let stat = process::stat(&read(&directory.join("stat"))?)?;
    let machine = command_line(root, pid).map(|line| Observed {
        memory: process::memory(&read(&directory.join("status")).unwrap_or_default()),
        traffic: traffic(root, &line.taps),
        taps: line.taps,
    });
    Some(Process { pid, stat, machine })
}

/// Reads the command line of a process. Returns [`None`] if it is not QEMU.
#[must_use]
pub fn command_line(root: &Path, pid: u32) -> Option<CommandLine> {
    let text = read_bounded(&proc(root, pid).join("cmdline"), COMMAND_LINE_LIMIT).ok()?;
    CommandLine::parse(&process::arguments(&text))
}

/// Returns the sums of the counters of taps. A machine receives what its tap sends.
#[must_use]
pub fn traffic(root: &Path, taps: &[InterfaceName]) -> Traffic {
    let mut sum = Traffic::default();
    for tap in taps {
        let counter = |name: &str| {
            let path = root.join("sys/class/net").join(tap.as_str());
            let text = fs::read_to_string(path.join("statistics").join(name));
            text.ok().and_then(|text| text.trim().parse::<u64>().ok())
        };
        sum.received = sum
            .received
            .saturating_add(counter("tx_bytes").unwrap_or(0));
        sum.sent = sum.sent.saturating_add(counter("rx_bytes").unwrap_or(0));
    }
    sum
}

/// Returns the directory of a process in `/proc`.
fn proc(root: &Path, pid: u32) -> PathBuf {
    root.join("proc").join(pid.to_string())
}

fn read(path: &Path) -> Option<Vec<u8>> {
    read_bounded(path, FILE_LIMIT).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn write(root: &Path, path: &str, content: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn processes_of_unit_and_its_groups_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, "proc/7/cgroup", b"0::/agents.slice/a.service\n");
        write(
            root,
            "sys/fs/cgroup/agents.slice/a.service/cgroup.procs",
            b"7\n9\n",
        );
        write(
            root,
            "sys/fs/cgroup/agents.slice/a.service/vm/cgroup.procs",
            b"8\n",
        );
        let stat = "(x) S 7 0 0 0 0 0 0 0 0 0 1 2 0 0 0 0 0 0 500 0";
        for pid in [7, 8] {
            write(
                root,
                &format!("proc/{pid}/stat"),
                format!("{pid} {stat}").as_bytes(),
            );
        }
        write(root, "proc/7/cmdline", b"bbot-agent\0");
        write(root, "proc/8/cmdline", b"kvm\0-nic\0tap,ifname=tap0\0");
        write(root, "proc/8/status", b"VmHWM:\t2 kB\nVmRSS:\t1 kB\n");
        write(root, "sys/class/net/tap0/statistics/rx_bytes", b"5\n");
        write(root, "sys/class/net/tap0/statistics/tx_bytes", b"7\n");
        let group = super::directory(root, 7).unwrap();
        let read = processes(root, &group);
        let stat = Stat {
            parent: 7,
            cpu: Duration::from_millis(30),
            start: Duration::from_secs(5),
        };
        let machine = Observed {
            taps: vec![InterfaceName::new("tap0").unwrap()],
            memory: Memory {
                resident: 1024,
                peak: 2048,
            },
            traffic: Traffic {
                received: 7,
                sent: 5,
            },
        };
        let process = |pid, machine| Process { pid, stat, machine };
        // Process 9 has ended.
        assert_eq!(read, [process(7, None), process(8, Some(machine))]);
        assert_eq!(processes(root, &root.join("gone")), []);
        assert_eq!(super::directory(root, 8), None);
    }
}
