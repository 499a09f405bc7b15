//! Lists the machines with a lease, for any number of readers.
//!
//! Every user may read the list, and a reply on the bus takes a multiple of its memory, until
//! the bus has taken it: 40 MB for 65,000 machines. Readers share one parsed list, and a large
//! reply waits until the memory of the last one is free.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use buildos_service::heap;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::leases::{self, Lease};
use super::paths;

/// Age from which a large lease file is read again.
const LIFETIME: Duration = Duration::from_secs(1);
/// Allocated bytes up to which a large reply is made. natd itself needs a tenth.
const ALLOCATED: usize = 24 << 20;
/// Time between two looks at the allocated bytes.
const POLL: Duration = Duration::from_millis(20);
/// Number of machines above which a list is large: it is kept for its lifetime, and the memory
/// of a reply is returned to the kernel.
const MANY: usize = 1000;

/// The machines of the lease file.
#[derive(Debug)]
pub struct Machines {
    path: PathBuf,
    cached: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    leases: Vec<Lease>,
    /// Time of the last read.
    read: Option<Instant>,
}

impl Machines {
    /// Lists the machines of the lease file below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            path: root.join(paths::LEASES),
            cached: Mutex::default(),
        }
    }

    /// Returns address, MAC address and end of the lease of each machine. A large list is
    /// at most a second old. Waits for earlier replies.
    ///
    /// # Errors
    ///
    /// The lease file cannot be read. Without a file there are no machines.
    pub async fn list(&self) -> io::Result<Vec<(String, String, u64)>> {
        let mut cached = self.cached.lock().await;
        let now = Instant::now();
        let small = cached.leases.len() <= MANY;
        if small || cached.read.is_none_or(|read| now >= read + LIFETIME) {
            cached.leases = read(&self.path)?;
            cached.read = Some(now);
        }
        if cached.leases.len() > MANY {
            while heap::allocated() > ALLOCATED {
                sleep(POLL).await;
            }
            heap::trim();
            tokio::spawn(async {
                sleep(LIFETIME).await;
                heap::trim();
            });
        }
        let machines = cached.leases.iter();
        Ok(machines
            .map(|lease| {
                let (address, mac) = (lease.address.to_string(), lease.mac.to_string());
                (address, mac, lease.expires)
            })
            .collect())
    }
}

/// Reads the leases of machines. Without a file there are none.
///
/// # Errors
///
/// As [`Machines::list`].
pub(crate) fn read(path: &Path) -> io::Result<Vec<Lease>> {
    let mut leases = match leases::read(path) {
        Ok(leases) => leases,
        // dnsmasq never ran.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // The probe is not a machine.
    leases.retain(|lease| lease.mac != buildos_probe::MAC);
    Ok(leases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LEASE: &str = "1795683600 02:bd:01:00:00:07 172.23.4.5 * *\n";

    fn with_leases(leases: &str) -> (tempfile::TempDir, Machines) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(paths::LEASES);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, leases).unwrap();
        let machines = Machines::new(root.path());
        (root, machines)
    }

    #[tokio::test]
    async fn small_file_is_read_each_time() {
        let (root, machines) = with_leases(LEASE);
        let expected = (
            "172.23.4.5".into(),
            "02:bd:01:00:00:07".into(),
            1_795_683_600,
        );
        assert_eq!(machines.list().await.unwrap(), [expected]);
        fs::remove_file(root.path().join(paths::LEASES)).unwrap();
        assert_eq!(machines.list().await.unwrap(), []);
    }

    #[tokio::test]
    async fn large_file_is_read_once_a_second() {
        let (root, machines) = with_leases(&LEASE.repeat(2 * MANY));
        assert_eq!(machines.list().await.unwrap().len(), 2 * MANY);
        fs::remove_file(root.path().join(paths::LEASES)).unwrap();
        assert_eq!(machines.list().await.unwrap().len(), 2 * MANY);
        tokio::time::sleep(LIFETIME).await;
        assert_eq!(machines.list().await.unwrap(), []);
    }

    #[tokio::test]
    async fn large_reply_waits_for_free_memory() {
        let (_root, machines) = with_leases(&LEASE.repeat(2 * MANY));
        let reply = vec![0_u8; 256 << 20];
        let waiting = tokio::time::timeout(5 * POLL, machines.list());
        assert!(waiting.await.is_err());
        drop(reply);
        assert_eq!(machines.list().await.unwrap().len(), 2 * MANY);
    }

    #[tokio::test]
    async fn other_than_regular_file_is_an_error() {
        let (root, machines) = with_leases("");
        let path = root.path().join(paths::LEASES);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let error = machines.list().await.unwrap_err();
        assert_eq!(error.to_string(), "not a regular file");
    }
}
