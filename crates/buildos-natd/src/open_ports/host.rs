//! Reads what open ports depend on from the host: its own listening ports, its time.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// State of a listening socket in `/proc/net/tcp` (`TCP_LISTEN`, net/tcp_states.h).
const LISTEN: &str = "0A";

/// Returns the TCP ports on which a program of the host listens, below `root`.
#[must_use]
pub fn listening(root: &Path) -> BTreeSet<u16> {
    let files = ["proc/net/tcp", "proc/net/tcp6"].map(|name| root.join(name));
    let texts = files.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    texts.iter().flat_map(|text| parse(text)).collect()
}

fn parse(text: &str) -> impl Iterator<Item = u16> {
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let (_, port) = local.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (state == LISTEN).then_some(port)
    })
}

/// Returns the time since boot, from `/proc/uptime` below `root`.
#[must_use]
pub fn uptime(root: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(root.join("proc/uptime")).ok()?;
    let seconds = text.split_ascii_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Returns the microseconds since 1970.
#[must_use]
pub fn realtime_usec() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, super::micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_ports_are_read_of_both_families() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/net")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
        let header = "  sl  local_address rem_address   st tx_queue\n";
        let listens = "   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00\n";
        let connected = "   1: 0100007F:1F90 0100007F:0035 01 00000000:00000000 00:00\n";
        write(
            "proc/net/tcp",
            &format!("{header}{listens}{connected}nonsense\n"),
        );
        let any = "0".repeat(32);
        let listens = format!("   0: {any}:1538 {any}:0000 0A 0:0 00:00\n");
        write("proc/net/tcp6", &format!("{header}{listens}"));
        assert_eq!(listening(root.path()), [22, 5432].into());
        assert_eq!(uptime(root.path()), None);
        write("proc/uptime", "3.50 7.00\n");
        assert_eq!(uptime(root.path()), Some(Duration::from_millis(3500)));
    }
}
