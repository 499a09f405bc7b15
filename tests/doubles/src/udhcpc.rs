//! Configures the link of a build machine with udhcpc, the DHCP client of busybox.

use crate::sudo::ToolError;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command};

/// Script that udhcpc calls on each event. The bind mount replaces resolv.conf for this
/// container only, because the container has its own mount namespace.
const SCRIPT: &str = r#"#!/bin/sh
case $1 in bound|renew)
    ip address replace "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "$router"
    for server in $dns; do echo "nameserver $server"; done >"$0.resolv.conf"
    mount --bind "$0.resolv.conf" "$(readlink -f /etc/resolv.conf)"
esac
"#;

/// The link has no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The script cannot be written.
    #[error("cannot write udhcpc's script")]
    Script(#[source] io::Error),
    /// No server answered, or udhcpc cannot be executed.
    #[error("no lease")]
    Client(#[from] ToolError),
}

/// Configures eth0 by DHCP, with files in `directory`.
///
/// # Errors
///
/// No server granted a lease within a minute.
pub fn acquire(directory: &Path) -> Result<(), LeaseError> {
    let script = script(directory)?;
    let output = udhcpc(&script)
        .args(["-n", "-q", "-t", "60", "-T", "1"])
        .output();
    crate::sudo::finish("udhcpc", output)?;
    Ok(())
}

/// Renews the lease of [`acquire`] until the returned process ends.
///
/// # Errors
///
/// udhcpc cannot be executed.
pub fn renew(directory: &Path) -> Result<Child, LeaseError> {
    let script = script(directory)?;
    let started = udhcpc(&script).spawn();
    started.map_err(|error| ToolError::Execute("udhcpc".to_owned(), error).into())
}

fn udhcpc(script: &Path) -> Command {
    let mut command = Command::new("busybox");
    command
        .args(["udhcpc", "-i", "eth0", "-f", "-s"])
        .arg(script);
    command
}

fn script(directory: &Path) -> Result<std::path::PathBuf, LeaseError> {
    let path = directory.join("lease");
    fs::write(&path, SCRIPT).map_err(LeaseError::Script)?;
    fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(LeaseError::Script)?;
    Ok(path)
}
