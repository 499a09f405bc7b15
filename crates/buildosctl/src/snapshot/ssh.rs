//! Reads the fingerprints of the host keys of the SSH server, while it runs.
//!
//! An operator compares them at the first login. They are useful on the console, which
//! does not depend on the network.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use buildos_dbus_api::system::unit_state;
use buildos_service::text;
use zbus::Connection;

use super::model::HostKey;

/// Units of Debian's openssh-server.
const UNITS: [&str; 2] = ["ssh.service", "ssh.socket"];

/// Host keys of sshd in the order of its preference (sshd_config(5), `HostKey`).
const KEYS: [&str; 3] = [
    "etc/ssh/ssh_host_ed25519_key.pub",
    "etc/ssh/ssh_host_ecdsa_key.pub",
    "etc/ssh/ssh_host_rsa_key.pub",
];

/// Last result, with the keys that it belongs to: `console` reads the host often.
static LAST: Mutex<(String, Vec<HostKey>)> = Mutex::new((String::new(), Vec::new()));

/// Returns the host keys, or nothing if the SSH server does not run.
pub(crate) async fn host_keys(bus: &Connection) -> Vec<HostKey> {
    for unit in UNITS {
        let state = unit_state(bus, unit).await;
        if state.is_some_and(|state| state.active_state == "active") {
            return fingerprints(&public_keys(Path::new("/")));
        }
    }
    Vec::new()
}

/// Returns the public keys, one a line.
fn public_keys(root: &Path) -> String {
    let keys = KEYS.iter();
    keys.filter_map(|key| fs::read_to_string(root.join(key)).ok())
        .collect()
}

fn fingerprints(keys: &str) -> Vec<HostKey> {
    let Ok(mut last) = LAST.lock() else {
        return Vec::new();
    };
    if last.0 != keys {
        let found = ssh_keygen(keys).map(|output| parse(&output));
        *last = (keys.to_owned(), found.unwrap_or_default());
    }
    last.1.clone()
}

/// Runs ssh-keygen(1) on public keys, and returns its output.
fn ssh_keygen(keys: &str) -> Option<String> {
    let mut child = Command::new("ssh-keygen")
        .args(["-l", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // The keys are smaller than the buffer of a pipe.
    child.stdin.take()?.write_all(keys.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    String::from_utf8(output.stdout).ok()
}

/// Parses lines such as `256 SHA256:… root@host (ED25519)`.
fn parse(output: &str) -> Vec<HostKey> {
    let keys = output.lines().filter_map(|line| {
        let fingerprint = line.split(' ').nth(1)?;
        let (_, kind) = line.strip_suffix(')')?.rsplit_once('(')?;
        Some(HostKey {
            kind: text::escape(kind),
            fingerprint: text::escape(fingerprint),
        })
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_ssh_keygen_is_parsed() {
        let output = "256 SHA256:Bbpk8cdSyWlh6jV9N5oJh4IzLGpaEqAPcSdqJYEsdLI root@host (ED25519)\n\
            3072 SHA256:kZdVG9vEOGGbDkLuO4aMhYm3FcJHtQ7ZpT8YCmpMOdY no comment (RSA)\n\
            (stdin) is not a public key file.\n";
        let keys = parse(output);
        let shown: Vec<_> = keys
            .iter()
            .map(|key| format!("{} {}", key.kind, key.fingerprint))
            .collect();
        assert_eq!(
            shown,
            [
                "ED25519 SHA256:Bbpk8cdSyWlh6jV9N5oJh4IzLGpaEqAPcSdqJYEsdLI",
                "RSA SHA256:kZdVG9vEOGGbDkLuO4aMhYm3FcJHtQ7ZpT8YCmpMOdY",
            ]
        );
    }

    #[test]
    fn keys_are_read_in_order_of_preference() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(public_keys(root.path()), "");
        fs::create_dir_all(root.path().join("etc/ssh")).unwrap();
        for (key, text) in [(KEYS[2], "rsa\n"), (KEYS[0], "ed25519\n")] {
            fs::write(root.path().join(key), text).unwrap();
        }
        assert_eq!(public_keys(root.path()), "ed25519\nrsa\n");
    }
}
