//! The name of the host, as the kernel has it.
//!
//! netd tells it to DHCP servers. Who chose it does not matter here; that it
//! changed shows in `/proc/sys/kernel/hostname`, which can be polled.

#![allow(unsafe_code)] // AsyncFd has no safe constructor.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const PATH: &str = "/proc/sys/kernel/hostname";

/// Follows the host's name.
pub struct Hostname(AsyncFd<File>);

impl Hostname {
    /// Begins to follow.
    ///
    /// # Errors
    ///
    /// `/proc` is not there.
    pub fn open() -> io::Result<Self> {
        let file = File::open(PATH)?;
        // SAFETY: a File returns the same open descriptor until it is dropped, and
        // the AsyncFd owns it.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        Ok(Self(file.map_err(io::Error::from)?))
    }

    /// The name now; none while the host has none that says anything.
    pub fn read(&mut self) -> Option<String> {
        let mut text = String::new();
        let file = self.0.get_mut();
        file.rewind().ok()?;
        file.read_to_string(&mut text).ok()?;
        meaningful(&text)
    }

    /// Waits for a change. Cancel-safe.
    pub async fn changed(&mut self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            // Not reached: that is the runtime's end.
            Err(_) => std::future::pending().await,
        }
    }
}

/// A name that a DHCP server may enter into the DNS (RFC 1123, section 2.1), in
/// contrast to those that the kernel, systemd and installers begin with.
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
    fn names_that_say_nothing_are_none() {
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
    async fn the_kernel_has_a_name_to_follow() {
        let mut hostname = Hostname::open().unwrap();
        let kernel = std::fs::read_to_string(PATH).unwrap();
        assert_eq!(hostname.read(), meaningful(&kernel));
    }
}
