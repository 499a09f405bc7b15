//! Writes the desired configuration of dnsmasq, and observes whether dnsmasq serves with
//! it.

use std::path::Path;

use buildos_dbus_api::system::{self, UnitState};
use buildos_service::file::{self, WriteError};
use zbus::Connection;

use crate::dnsmasq::paths::{ACTIVE, DESIRED, PID, RESOLV};

/// Unit of the supervisor and dnsmasq.
pub const UNIT: &str = "buildos-dnsmasq.service";

/// State of dnsmasq.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dnsmasq {
    /// Serves with the desired configuration.
    Serving,
    /// Starts, or its supervisor is about to start it.
    Starting,
    /// Does not serve yet, for this reason.
    Pending(&'static str),
    /// Serves with a configuration other than the desired one.
    Outdated,
    /// Does not serve for this reason, which an operator has to fix.
    Down(String),
}

impl Dnsmasq {
    /// Judges a dnsmasq without a PID file by its unit; [`None`] if systemd did not
    /// answer.
    #[must_use]
    pub fn judge(unit: Option<&UnitState>) -> Self {
        let Some(unit) = unit else {
            // During boot systemd may come to the bus after natd.
            return Self::Pending("is in an unknown state: systemd does not answer");
        };
        match unit.active_state.as_str() {
            "active" | "reloading" | "activating" => Self::Starting,
            "deactivating" => Self::Pending("stops"),
            "failed" => Self::Down(format!("failed; see journalctl -u {UNIT}")),
            // Not started yet, or stopped by an operator.
            _ if unit.load_state == "loaded" => Self::Pending("does not run"),
            _ => Self::Down(format!("cannot run: {UNIT} is {}", unit.load_state)),
        }
    }
}

/// Writes the desired configuration and the name servers. Unchanged files are left
/// alone.
///
/// # Errors
///
/// A file cannot be written.
pub fn write(root: &Path, configuration: &str, resolv: &str) -> Result<(), WriteError> {
    let replace =
        |path, content: &str| file::replace(&root.join(path), content.as_bytes(), 0o644).map(drop);
    replace(RESOLV, resolv)?;
    replace(DESIRED, configuration)
}

/// Returns the state of dnsmasq with regard to the desired configuration. Asks systemd
/// only if there is no PID file.
pub async fn observe(root: &Path, connection: &Connection, configuration: &str) -> Dnsmasq {
    if !root.join(PID).exists() {
        return Dnsmasq::judge(system::unit_state(connection, UNIT).await.as_ref());
    }
    // dnsmasq's user writes the copy.
    match file::read_bounded(&root.join(ACTIVE), configuration.len()) {
        Ok(active) if active == configuration.as_bytes() => Dnsmasq::Serving,
        Ok(_) | Err(_) => Dnsmasq::Outdated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dnsmasq_without_pid_file_is_judged_by_its_unit() {
        for (active, load, expected) in [
            ("active", "loaded", Dnsmasq::Starting),
            ("activating", "loaded", Dnsmasq::Starting),
            ("deactivating", "loaded", Dnsmasq::Pending("stops")),
            (
                "failed",
                "loaded",
                Dnsmasq::Down("failed; see journalctl -u buildos-dnsmasq.service".to_owned()),
            ),
            ("inactive", "loaded", Dnsmasq::Pending("does not run")),
            (
                "inactive",
                "not-found",
                Dnsmasq::Down("cannot run: buildos-dnsmasq.service is not-found".to_owned()),
            ),
        ] {
            let unit = UnitState {
                active_state: active.to_owned(),
                load_state: load.to_owned(),
            };
            assert_eq!(Dnsmasq::judge(Some(&unit)), expected, "{active} {load}");
        }
        assert!(matches!(Dnsmasq::judge(None), Dnsmasq::Pending(_)));
    }
}
