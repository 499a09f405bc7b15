//! The dnsmasq that serves br1: its configuration, and whether it runs with it.
//!
//! natd may neither start nor signal it. natd writes [`CONFIGURATION`];
//! systemd sees the file change (buildos-dnsmasq.path) and starts the service,
//! which takes a copy, [`IN_FORCE`], and runs with that. So the copy says what
//! dnsmasq was started with; that it serves says [`PID`]. While that is not what is
//! wished, or nothing was started, natd writes [`RESTART`], which systemd sees, too
//! (buildos-dnsmasq-restart.path). Name servers are in a file of their own that
//! dnsmasq watches: a new lease costs no restart.

use std::fmt::Write as _;
use std::net::IpAddr;

use buildos_dbus_api::system::UnitState;

use crate::config::LeaseTime;
use crate::uplink_network::UplinkNetwork;

/// The unit.
pub const UNIT: &str = "buildos-dnsmasq.service";
/// What natd wants dnsmasq to run with, below the root.
pub const CONFIGURATION: &str = "run/buildos/natd/dnsmasq.conf";
/// There while dnsmasq serves, below the root: it writes the file when it has what it
/// needs, and systemd removes it at the end of the unit, however that comes
/// (`PIDFile=` in systemd.service(5)).
pub const PID: &str = "run/buildos/dnsmasq/dnsmasq.pid";
/// What dnsmasq was started with, below the root.
pub const IN_FORCE: &str = "run/buildos/dnsmasq/dnsmasq.conf";
/// Written when dnsmasq is to start again, below the root.
pub const RESTART: &str = "run/buildos/natd/dnsmasq.restart";
/// Name servers to forward to, below the root.
pub const RESOLV: &str = "run/buildos/natd/resolv.conf";

/// The leases of machines, below the root; see [`crate::dnsmasq::leases`].
pub const LEASES: &str = "run/buildos/dnsmasq/leases";

/// dnsmasq keeps at most this many leases: machines that come and go under
/// ever new MAC addresses must not eat the host's memory.
const LEASES_LIMIT: u32 = 65_536;

/// What dnsmasq is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dnsmasq {
    /// It serves what was wished.
    Serving,
    /// It begins to.
    Starting,
    /// It does not run, and has not been started with what is wished: systemd is about
    /// to start it, unless it overlooked the file while it read its units again.
    Unstarted,
    /// It is on the way there; how, for people.
    Pending(&'static str),
    /// It runs, but with another configuration.
    Outdated,
    /// It does not run and will not by itself; why, for people.
    Down(String),
}

impl Dnsmasq {
    /// A dnsmasq that runs, from whether the copy in force is the wished one.
    #[must_use]
    pub fn running(in_force: bool) -> Self {
        if in_force {
            Self::Serving
        } else {
            Self::Outdated
        }
    }

    /// From the unit ([`None`] when systemd does not answer) of a dnsmasq that has
    /// not said that it runs.
    #[must_use]
    pub fn judge(unit: Option<&UnitState>, in_force: bool) -> Self {
        let Some(unit) = unit else {
            // While it boots it comes to the bus after us.
            return Self::Pending("systemd says nothing of");
        };
        match unit.active_state.as_str() {
            "active" | "reloading" => Self::running(in_force),
            "activating" => Self::Starting,
            "deactivating" => Self::Pending("stops"),
            "failed" => Self::Down(format!("failed; see journalctl -u {UNIT}")),
            _ if unit.load_state == "loaded" && !in_force => Self::Unstarted,
            // The operator's will.
            _ if unit.load_state == "loaded" => Self::Pending("does not run"),
            _ => Self::Down(format!("cannot run: {UNIT} is {}", unit.load_state)),
        }
    }
}

/// The configuration (dnsmasq(8)).
#[must_use]
pub fn configuration(network: &UplinkNetwork, lease: LeaseTime) -> String {
    let (first, last) = network.private_network.machines();
    let netmask = network.private_network.network().netmask();
    let room = (u32::from(last) - u32::from(first)).saturating_add(1);
    format!(
        "\
# Written by buildos-natd for {unit}; changes are lost.

# Where: the private bridge only, as it comes and goes.
interface={bridge}
except-interface=lo
bind-dynamic

# DNS: what the uplink's name servers say, and nothing of the host's own.
resolv-file=/{RESOLV}
no-hosts
domain-needed
bogus-priv

# DHCP. Machines are strangers: the names they give themselves are not
# believed, and there is no other server on their bridge.
dhcp-range={first},{last},{netmask},{seconds}
dhcp-lease-max={leases}
dhcp-leasefile=/{LEASES}
# To ask whether an address is in use would cost each of them three seconds.
dhcp-authoritative
dhcp-ignore-names
no-ping
# A probe each five minutes and machines that live shorter would fill the journal.
quiet-dhcp
",
        unit = UNIT,
        bridge = network.private_bridge,
        seconds = lease.get().as_secs(),
        leases = room.min(LEASES_LIMIT),
    )
}

/// The name servers, in the format of resolv.conf(5).
#[must_use]
pub fn resolv(servers: &[IpAddr]) -> String {
    let mut text =
        "# Written by buildos-natd out of the uplink's lease; changes are lost.\n".to_owned();
    for server in servers {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str, load: &str) -> UnitState {
        UnitState {
            active_state: active.to_owned(),
            load_state: load.to_owned(),
        }
    }

    #[test]
    fn the_unit_says_what_dnsmasq_does() {
        for (active, load, in_force, expected) in [
            ("active", "loaded", true, Dnsmasq::Serving),
            ("active", "loaded", false, Dnsmasq::Outdated),
            ("activating", "loaded", true, Dnsmasq::Starting),
            ("deactivating", "loaded", true, Dnsmasq::Pending("stops")),
            (
                "failed",
                "loaded",
                true,
                Dnsmasq::Down("failed; see journalctl -u buildos-dnsmasq.service".to_owned()),
            ),
            ("inactive", "loaded", true, Dnsmasq::Pending("does not run")),
            ("inactive", "loaded", false, Dnsmasq::Unstarted),
            (
                "inactive",
                "not-found",
                false,
                Dnsmasq::Down("cannot run: buildos-dnsmasq.service is not-found".to_owned()),
            ),
        ] {
            let unit = unit(active, load);
            assert_eq!(
                Dnsmasq::judge(Some(&unit), in_force),
                expected,
                "{active} {load}"
            );
        }
        assert!(matches!(Dnsmasq::judge(None, true), Dnsmasq::Pending(_)));
    }

    #[test]
    fn name_servers() {
        let servers = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let text = resolv(&servers);
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines, ["nameserver 192.0.2.1", "nameserver 2001:db8::1"]);
    }
}
