//! Parses files below `/proc/PID` (proc_pid_stat(5), proc_pid_status(5), proc_pid_cmdline(5)).
//! Does no I/O.

use std::time::Duration;

/// Clock ticks in a second (`USER_HZ`), which is 100 on all architectures of Debian.
const TICKS_PER_SECOND: u64 = 100;
/// Most arguments of a command line that are considered.
const ARGUMENT_LIMIT: usize = 4096;

/// Contents of `/proc/PID/stat` that agentd uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stat {
    /// Parent process.
    pub parent: u32,
    /// CPU time of all threads, in user and kernel mode.
    pub cpu: Duration,
    /// Start, as time since boot.
    pub start: Duration,
}

/// Contents of `/proc/PID/status` that agentd uses, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// RAM in use.
    pub resident: u64,
    /// Most RAM that was in use.
    pub peak: u64,
}

/// Parses `/proc/PID/stat`.
#[must_use]
pub fn stat(text: &[u8]) -> Option<Stat> {
    // The second field, the name of the program, can contain spaces and parentheses.
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    // utime and stime are fields 14 and 15, starttime is field 22.
    let user: u64 = fields.nth(9)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let start: u64 = fields.nth(6)?.parse().ok()?;
    Some(Stat {
        parent,
        cpu: ticks(user.saturating_add(system)),
        start: ticks(start),
    })
}

fn ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND))
}

/// Parses `/proc/PID/status`. A kernel thread has no memory of its own.
#[must_use]
pub fn memory(text: &[u8]) -> Memory {
    let text = String::from_utf8_lossy(text);
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
        kib.map_or(0, |kib| kib.saturating_mul(1024))
    };
    Memory {
        resident: value("VmRSS:"),
        peak: value("VmHWM:"),
    }
}

/// Parses `/proc/PID/cmdline`.
#[must_use]
pub fn arguments(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    text.split(|byte| *byte == 0)
        .take(ARGUMENT_LIMIT)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// Returns the path of the control group in `/proc/PID/cgroup` (cgroups(7)), without a leading
/// slash. Returns [`None`] for the root, and for a path with `..`, which is outside of the
/// cgroup namespace.
#[must_use]
pub fn cgroup(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.is_empty() && path.split('/').all(|part| part != "..")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &str = "77 (qemu) (x 1) S 12 77 77 0 -1 4194560 1 0 0 0 250 130 0 0 20 0 3 0 123456 900 800 1844\n";

    #[test]
    fn stat_is_parsed_behind_any_name() {
        let expected = Stat {
            parent: 12,
            cpu: Duration::from_millis(3800),
            start: Duration::from_millis(1_234_560),
        };
        assert_eq!(stat(STAT.as_bytes()), Some(expected));
        for bad in [
            "",
            "77 (a",
            "77 (a) S",
            "77 (a) S x 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        ] {
            assert_eq!(stat(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn stat_of_this_process_is_plausible() {
        let own = std::fs::read("/proc/self/stat").unwrap();
        let own = stat(&own).unwrap();
        assert!(own.start > Duration::ZERO && own.parent > 0, "{own:?}");
        let status = memory(&std::fs::read("/proc/self/status").unwrap());
        assert!(status.peak >= status.resident && status.resident > 65_536);
    }

    #[test]
    fn memory_is_in_bytes() {
        let text = b"Name:\tqemu\nVmHWM:\t   2048 kB\nVmRSS:\t 1024 kB\n";
        let expected = Memory {
            resident: 1 << 20,
            peak: 2 << 20,
        };
        assert_eq!(memory(text), expected);
        assert_eq!(memory(b"Name:\tkthreadd\n"), Memory::default());
    }

    #[test]
    fn arguments_keep_empty_ones() {
        assert_eq!(arguments(b"a\0\0b c\0"), ["a", "", "b c"]);
        assert_eq!(arguments(b""), [""]);
    }

    #[test]
    fn cgroup_is_relative_and_inside() {
        assert_eq!(
            cgroup(b"0::/buildos.slice/a.service\n"),
            Some("buildos.slice/a.service")
        );
        for bad in ["0::/\n", "0::/../x\n", "1:cpu:/x\n", ""] {
            assert_eq!(cgroup(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_parsed(bytes: Vec<u8>) {
            let _ = stat(&bytes);
            let _ = memory(&bytes);
            let _ = cgroup(&bytes);
            prop_assert!(arguments(&bytes).len() <= bytes.len() + 1);
        }

        #[test]
        fn mutated_stat_is_parsed(at in 0..STAT.len(), byte: u8) {
            let mut bytes = STAT.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = stat(&bytes);
            let _ = stat(&bytes[..at]);
        }
    }
}
