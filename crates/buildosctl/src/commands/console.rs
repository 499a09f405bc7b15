//! `buildosctl console`: shows the status on the consoles, before the login prompt.
//!
//! It writes an issue file and asks agetty(8) to print its prompt again. agetty does not
//! do so while a user types, so a login is never disturbed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use buildos_service::{file, notify, text};
use zbus::Connection;

use crate::snapshot::collect;
use crate::snapshot::model::Host;
use crate::snapshot::watch::Changes;

/// agetty shows this file after `/etc/issue`.
const ISSUE: &str = "/run/issue.d/50-buildos.issue";
/// Pause after a change. Changes come in groups, and a console of 9600 baud takes a
/// second for a screen.
const SETTLE: Duration = Duration::from_secs(1);
/// Maximum time between two reads. The daemons do not signal every change.
const READ_INTERVAL: Duration = Duration::from_secs(30);

/// Columns of a console in text mode, and of most serial terminals.
const WIDTH: usize = 80;
/// Column at which the texts of the rows begin.
const INDENT: usize = 11;

/// Keeps the issue file up to date until the connection to the bus is lost.
pub(crate) async fn keep(bus: &Connection) -> Result<(), String> {
    let changes = Changes::new(bus).await;
    let mut changes =
        changes.map_err(|error| format!("cannot subscribe to changes: {}", text::chain(&error)))?;
    let path = PathBuf::from(ISSUE);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    }
    notify::ready();
    notify::status(&format!("agetty shows {ISSUE} before its prompts"));
    loop {
        if write(&collect::summary(changes.cache()).await, &path)? {
            reload_agetty();
        }
        if !changes.next(READ_INTERVAL).await {
            return Err("the connection to the system bus was lost".to_owned());
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Writes the issue file, and returns true if its text changed.
fn write(host: &Host, path: &Path) -> Result<bool, String> {
    let written = file::replace(path, issue(host).as_bytes(), 0o644);
    written.map_err(|error| text::chain(&error))
}

/// Asks all instances of agetty to print their prompts again (agetty(8), `--reload`).
fn reload_agetty() {
    let status = Command::new("agetty").arg("--reload").status();
    if let Err(error) = status {
        eprintln!("cannot run agetty --reload: {error}");
    }
}

/// Returns the text of the issue file. It contains no times, as each change of the text
/// makes agetty print its prompt again.
fn issue(host: &Host) -> String {
    let name = host.name.as_ref().map_or("", |name| name.hostname.as_str());
    let name = if name.is_empty() {
        "not named yet"
    } else {
        name
    };
    let mut rows = vec![format!("Build host {name}, buildos {}", host.version)];
    match &host.network {
        Some(network) => {
            rows.push(format!("  network  {}: {}", network.state, network.reason));
            if !network.uplink_neighbour.is_empty() {
                let (uplink, neighbour) = (&network.uplink, &network.uplink_neighbour);
                rows.push(format!("  cable    {uplink} to {neighbour}"));
            }
            let address = network.address.split('/').next().unwrap_or_default();
            let global = network.ipv6_addresses.iter();
            let global = global.filter(|address| !address.starts_with("fe80:"));
            let reach: Vec<_> = std::iter::once(address)
                .filter(|address| !address.is_empty())
                .chain(global.filter_map(|address| address.split('/').next()))
                .map(|address| format!("ssh root@{address}"))
                .collect();
            if !reach.is_empty() {
                rows.push(format!("  login    {}", reach.join(" or ")));
            }
            // ssh(1) shows the fingerprint of the first key that both sides support.
            if let Some(key) = host.ssh_host_keys.first() {
                rows.push(format!("  ssh key  {} {}", key.kind, key.fingerprint));
            }
        }
        None => rows.push("  network  buildos-netd does not answer".to_owned()),
    }
    match &host.nat {
        Some(nat) => rows.push(format!("  nat      {}: {}", nat.state, nat.reason)),
        None => rows.push("  nat      buildos-natd does not answer".to_owned()),
    }
    match &host.manager {
        Some(manager) if host.agents.is_empty() => {
            rows.push(format!("  agents   {}", manager.reason));
        }
        Some(_) => rows.extend(host.agents.iter().map(|agent| {
            let building = if agent.task_processes > 0 {
                ", building"
            } else {
                ""
            };
            format!(
                "  agent    {} {}{building}",
                agent.id(),
                agent.instance.state
            )
        })),
        None => rows.push("  agents   buildos-agentd does not answer".to_owned()),
    }
    if let Some(trial) = &host.os_trial {
        match trial.state.as_str() {
            "trial" => rows.push(format!("  system   {} is on trial", trial.version)),
            "returned" => rows.push(format!("  system   has returned: {}", trial.reason)),
            _ => {}
        }
    }
    rows.push("Why it does not build: buildosctl why".to_owned());
    rows.push(String::new());
    // agetty expands escape codes that begin with a backslash.
    let lines = rows.iter().flat_map(|row| fold(row));
    let lines: Vec<_> = lines.map(|line| line.replace('\\', "\\\\")).collect();
    lines.join("\n") + "\n"
}

/// Breaks a row between words, so that it fits on a console. The text of the row continues below
/// its beginning.
fn fold(row: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = row.to_owned();
    while rest.chars().count() > WIDTH {
        let end = rest
            .char_indices()
            .nth(WIDTH)
            .map_or(rest.len(), |(at, _)| at);
        // The heading and the spaces after it stay together.
        let mut spaces = rest.match_indices(' ').map(|(at, _)| at);
        let Some(at) = spaces.rfind(|at| (INDENT..=end).contains(at)) else {
            break;
        };
        let tail = rest.split_off(at);
        lines.push(std::mem::replace(
            &mut rest,
            format!("{:INDENT$}{}", "", tail.trim_start()),
        ));
    }
    lines.push(rest);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::ready;

    #[test]
    fn issue_shows_network_login_nat_and_agents() {
        let mut host = ready();
        let network = host.network.as_mut().unwrap();
        network.ipv6_addresses = vec!["2001:db8::7/64".into(), "fe80::1/64".into()];
        network.reason.push_str(" \\u{1b}");
        host.agents[0].task_processes = 2;
        assert_eq!(
            issue(&host),
            "\
Build host build-adbeefb8da, buildos 0.1.0
  network  online: br0 has 192.0.2.7/24 by eth0 from 192.0.2.1 \\\\u{1b}
  cable    eth0 to sw1 port Gi1/0/12
  login    ssh root@192.0.2.7 or ssh root@2001:db8::7
  ssh key  ED25519 SHA256:Bbpk8cdSyWlh6jV9N5oJh4IzLGpaEqAPcSdqJYEsdLI
  nat      active: 172.23.0.0/16 on br1 goes out through br0
  agent    bbot@default running, building
Why it does not build: buildosctl why

"
        );
    }

    #[test]
    fn long_row_continues_below_its_text() {
        let mut host = ready();
        host.nat.as_mut().unwrap().reason =
            "172.23.0.0/16 on br1 goes out through br0; DHCP hands out 172.23.0.2 to \
             172.23.255.254"
                .into();
        let issue = issue(&host);
        assert!(
            issue.contains(
                "  nat      active: 172.23.0.0/16 on br1 goes out through br0; DHCP hands out\n\
                 \x20          172.23.0.2 to 172.23.255.254\n"
            ),
            "{issue}"
        );
        assert!(issue.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn word_longer_than_a_row_is_not_broken() {
        let word = "x".repeat(100);
        assert_eq!(
            fold(&format!("  network  {word}")),
            [format!("  network  {word}")]
        );
        let row = format!("  network  a {word} b");
        let rest = format!("{:INDENT$}", "");
        let expected = ["  network  a".to_owned(), format!("{rest}{word} b")];
        assert_eq!(fold(&row), expected);
    }

    #[test]
    fn issue_does_not_depend_on_time() {
        let mut later = ready();
        later.taken_usec += 3_600_000_000;
        assert_eq!(issue(&ready()), issue(&later));
    }
}
