//! Makes dnsmasq's configuration and its list of name servers from the uplink network.

use std::fmt::Write as _;
use std::net::IpAddr;

use buildos_types::PrivateNetwork;

use crate::dnsmasq::paths::{LEASES, RESOLV};
use crate::settings::LeaseTime;
use crate::uplink_network::UplinkNetwork;

/// Upper limit of `dhcp-lease-max`: machines that come and go under new MAC addresses
/// must not fill the host's memory.
const LEASES_LIMIT: u32 = 65_536;

/// `dns-forward-max`: queries that wait for an answer at a time. dnsmasq waits for ten
/// seconds and refuses queries above the limit, so one machine that asks for names of a
/// silent zone must not reach it: see [`crate::firewall::policy`] for what a machine
/// gets. A waiting query takes 300 bytes.
const QUERIES: u32 = 10_000;
/// `max-tcp-connections`: clients that ask by TCP at a time. dnsmasq has a process for
/// each.
const TCP_CLIENTS: u32 = 200;

/// Returns `dhcp-lease-max`.
#[must_use]
pub fn max_leases(network: PrivateNetwork) -> u32 {
    let (first, last) = network.machines();
    let room = (u32::from(last) - u32::from(first)).saturating_add(1);
    room.min(LEASES_LIMIT)
}

/// Returns the configuration file (dnsmasq(8)).
#[must_use]
pub fn configuration(network: &UplinkNetwork, lease: LeaseTime) -> String {
    let (first, last) = network.private_network.machines();
    let netmask = network.private_network.network().netmask();
    format!(
        "\
# Written by buildos-natd for buildos-dnsmasq.service; changes are lost.

# Serve the private bridge only, also when it is created later.
interface={bridge}
except-interface=lo
bind-dynamic

# DNS: forward to the uplink's name servers; add nothing of the host's own.
resolv-file=/{RESOLV}
no-hosts
domain-needed
bogus-priv
# More than some machines can use up together.
dns-forward-max={QUERIES}
max-tcp-connections={TCP_CLIENTS}

# DHCP: the only server on this bridge; names that machines choose are ignored.
dhcp-range={first},{last},{netmask},{seconds}
dhcp-lease-max={leases}
dhcp-leasefile=/{LEASES}
dhcp-authoritative
dhcp-ignore-names
# Clones of one image send one client identifier: the MAC address identifies a machine.
dhcp-ignore-clid
# A ping before each offer would delay it by three seconds.
no-ping
# Probes and short-lived machines would fill the journal.
quiet-dhcp
",
        bridge = network.private_bridge,
        seconds = lease.get().as_secs(),
        leases = max_leases(network.private_network),
    )
}

/// Returns the name servers in the format of resolv.conf(5).
#[must_use]
pub fn resolv(servers: &[IpAddr]) -> String {
    let mut text =
        "# Written by buildos-natd from the uplink's lease; changes are lost.\n".to_owned();
    for server in servers {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_has_a_line_for_each_server() {
        let servers = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let text = resolv(&servers);
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines, ["nameserver 192.0.2.1", "nameserver 2001:db8::1"]);
    }
}
