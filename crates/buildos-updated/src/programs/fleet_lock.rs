//! Asks a FleetLock server for permission to restart, with curl(1).
//!
//! # Sources
//!
//! The FleetLock protocol, version 1: POST of JSON with the header `fleet-lock-protocol: true`
//! to `/v1/pre-reboot` takes a slot of the group, and to `/v1/steady-state` releases it. Both can
//! be repeated. Status 200 grants; a different one refuses, with JSON that has `kind` and `value`.

use std::path::Path;
use std::process::Command;

use buildos_channel::{Digest, HostId, Name};
use buildos_service::text::{Escaped, chain};
use serde::{Deserialize, Serialize};

use super::capture;
use crate::settings::Source;

/// Bytes of an answer.
const LIMIT: usize = 8192;
/// Time to connect, and of the whole exchange, in seconds.
const CONNECT: &str = "10";
const LONGEST: &str = "30";

/// A host at a FleetLock server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetLock {
    server: Source,
    group: Name,
    id: String,
}

/// Answer of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Status 200.
    Granted,
    /// A different status, with the reason of the server.
    Refused(String),
}

#[derive(Serialize)]
struct Body<'a> {
    client_params: Client<'a>,
}

#[derive(Serialize)]
struct Client<'a> {
    id: &'a str,
    group: &'a str,
}

#[derive(Deserialize)]
struct Refusal {
    kind: String,
    #[serde(default)]
    value: String,
}

impl FleetLock {
    /// Returns a host at a server. The server gets an identity that is made from that of the
    /// host, and is always the same.
    #[must_use]
    pub fn new(server: &Source, group: &Name, host: &HostId) -> Self {
        let digest = Digest::of(format!("fleet-lock\0{}", host.as_str()).as_bytes());
        let id = digest.to_string().chars().take(32).collect();
        Self {
            server: server.clone(),
            group: group.clone(),
            id,
        }
    }

    /// Takes a slot. Repeating it is no second slot.
    ///
    /// # Errors
    ///
    /// The server does not answer.
    pub fn take(&self, curl: &Path) -> Result<Answer, String> {
        self.post(curl, "v1/pre-reboot")
    }

    /// Releases the slot. A host without one may do it, too.
    ///
    /// # Errors
    ///
    /// The server does not answer.
    pub fn release(&self, curl: &Path) -> Result<Answer, String> {
        self.post(curl, "v1/steady-state")
    }

    fn post(&self, curl: &Path, path: &str) -> Result<Answer, String> {
        let client_params = Client {
            id: &self.id,
            group: self.group.as_str(),
        };
        let body = serde_json::to_string(&Body { client_params }).unwrap_or_default();
        let url = self.server.file(path);
        let mut command = Command::new(curl);
        command.args(["--disable", "--silent", "--show-error", "--globoff"]);
        command.args(["--proto", "=http,https", "--request", "POST"]);
        command.args(["--connect-timeout", CONNECT, "--max-time", LONGEST]);
        command.args(["--header", "fleet-lock-protocol: true"]);
        command.args(["--header", "content-type: application/json"]);
        command.args(["--data-binary", &body, "--write-out", "\\n%{http_code}"]);
        command.arg("--").arg(&url);
        let output = capture::output(&mut command, "curl", LIMIT)
            .map_err(|error| format!("{url}: {}", chain(&error)))?;
        answer(&String::from_utf8_lossy(&output)).ok_or_else(|| format!("{url}: no HTTP status"))
    }
}

/// Parses the body of an answer and its status in the last line.
fn answer(output: &str) -> Option<Answer> {
    let (body, status) = output.rsplit_once('\n')?;
    let status: u16 = status.trim().parse().ok()?;
    if status == 200 {
        return Some(Answer::Granted);
    }
    let reason = match serde_json::from_str::<Refusal>(body) {
        Ok(Refusal { kind, value }) if value.is_empty() => kind,
        Ok(Refusal { kind, value }) => format!("{kind}: {value}"),
        Err(_) => format!("HTTP status {status}"),
    };
    let reason: String = reason.chars().take(200).collect();
    Some(Answer::Refused(Escaped::received(&reason).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn status_200_grants_and_others_refuse_with_the_reason_of_the_server() {
        let refused = |reason: &str| Some(Answer::Refused(reason.to_owned()));
        assert_eq!(answer("\n200"), Some(Answer::Granted));
        let full = "{\"kind\":\"failed_lock\",\"value\":\"semaphore is full\"}\n404";
        assert_eq!(answer(full), refused("failed_lock: semaphore is full"));
        assert_eq!(answer("<html>\n502"), refused("HTTP status 502"));
        assert_eq!(answer("200"), None);
    }

    #[test]
    fn request_has_header_and_parameters() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("curl");
        let script = "#!/bin/sh\ncase \"$*\" in *'fleet-lock-protocol: true'*\
            '{\"client_params\":{\"id\":\"'*'\",\"group\":\"rack1\"}}'*' http://lock/v1/pre-reboot') \
            printf '\\n200';; *) exit 1;; esac\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let server = "http://lock/".parse().unwrap();
        let host = "host-of-the-test".parse().unwrap();
        let lock = FleetLock::new(&server, &"rack1".parse().unwrap(), &host);
        assert_eq!((lock.id.len(), lock.id.contains("host")), (32, false));
        assert_eq!(lock.take(&program), Ok(Answer::Granted));
        assert!(lock.release(&program).is_err());
    }
}
