//! Runs a private message bus for a test. Tests of the daemons include this file by its
//! path.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use zbus::Connection;

/// A `dbus-daemon` that ends with the test.
pub(crate) struct Bus {
    daemon: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Bus {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--nosyslog"])
            .arg(format!("--address=unix:dir={}", directory.path().display()))
            .arg("--print-address=1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs dbus-daemon");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        Self {
            daemon,
            address: address.trim().to_owned(),
            _directory: directory,
        }
    }

    /// Connects a new client.
    pub(crate) async fn connect(&self) -> Connection {
        zbus::connection::Builder::address(self.address.as_str())
            .unwrap()
            .build()
            .await
            .unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}
