//! Follows the kernel's hostname, which netd sends to DHCP servers.
//!
//! `/proc/sys/kernel/hostname` supports poll(2) and reports every change, whichever program
//! made it, and also changes of the names of containers.

#![allow(unsafe_code)] // AsyncFd has no safe constructor.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const PATH: &str = "/proc/sys/kernel/hostname";
/// Size of the file: the kernel's limit of a hostname is 64 bytes.
const SIZE: usize = 128;

/// Follows the hostname.
pub struct HostnameMonitor {
    file: AsyncFd<File>,
    /// Result of the last [`HostnameMonitor::read`].
    last: Option<String>,
}

impl HostnameMonitor {
    /// Opens the file.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted.
    pub fn open() -> io::Result<Self> {
        let file = File::open(PATH)?;
        // SAFETY: a File returns the same open descriptor until it is dropped, and
        // the AsyncFd owns it.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        Ok(Self {
            file: file.map_err(io::Error::from)?,
            last: None,
        })
    }

    /// Returns the hostname, or [`None`] if the host has no meaningful one.
    pub fn read(&mut self) -> Option<String> {
        self.last = self.current();
        self.last.clone()
    }

    fn current(&self) -> Option<String> {
        let mut text = [0; SIZE];
        let length = self.file.get_ref().read_at(&mut text, 0).ok()?;
        meaningful(std::str::from_utf8(text.get(..length)?).ok()?)
    }

    /// Waits until the hostname differs from the last one read. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            match self.file.ready(Interest::PRIORITY).await {
                Ok(mut ready) => ready.clear_ready(),
                // Reached only when the runtime ends.
                Err(_) => std::future::pending().await,
            }
            if self.current() != self.last {
                return;
            }
        }
    }
}

/// Returns the name if a DHCP server may enter it into the DNS (RFC 1123, section 2.1).
/// Excludes the initial names of the kernel, systemd and installers.
fn meaningful(text: &str) -> Option<String> {
    let name = text.trim();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let first = name.split('.').next().unwrap_or_default();
    (name.split('.').all(label) && first != "localhost").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostname_initial_or_invalid_is_ignored() {
        for (text, name) in [
            ("rack-7\n", Some("rack-7")),
            ("rack-7.example.org\n", Some("rack-7.example.org")),
            ("(none)\n", None),
            ("localhost\n", None),
            ("localhost.localdomain\n", None),
            ("", None),
            ("a b", None),
            ("-a", None),
        ] {
            assert_eq!(meaningful(text).as_deref(), name, "{text:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn hostname_of_kernel_is_read() {
        let mut hostname = HostnameMonitor::open().unwrap();
        let kernel = std::fs::read_to_string(PATH).unwrap();
        assert_eq!(hostname.read(), meaningful(&kernel));
    }
}
