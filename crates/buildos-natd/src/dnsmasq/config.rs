//! Makes dnsmasq's configuration and its list of name servers from the uplink network.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use buildos_types::{DomainName, PrivateNetwork};

use crate::dnsmasq::paths::{LEASES, RESOLV};
use crate::settings::LeaseTime;
use crate::uplink_network::UplinkNetwork;

/// Upper limit of `dhcp-lease-max`: machines that come and go under new MAC addresses
/// must not fill the host's memory.
const LEASES_LIMIT: u32 = 65_536;

/// `dns-forward-max`: queries that wait for an answer at a time. dnsmasq waits for ten
/// seconds and refuses queries above the limit, so one machine that asks for names of a
/// silent zone must not reach it: the table limits the questions of a machine
/// ([`crate::firewall::policy::NAMES`]). A waiting query takes 300 bytes.
const QUERIES: u32 = 10_000;
/// `max-tcp-connections`: clients that ask by TCP at a time. dnsmasq has a process for
/// each.
const TCP_CLIENTS: u32 = 200;

/// Longest DHCP option that dnsmasq accepts. It does not start with a longer one.
const OPTION_LIMIT: usize = 255;

/// Time that an address stays taken after its machine is gone, for each address of the
/// network: a small network then has an address for a new machine every four seconds.
const LEASE_PER_ADDRESS: Duration = Duration::from_secs(4);

/// Returns the first and the last address that dnsmasq hands out. The last is that of the
/// probe.
#[must_use]
pub fn range(network: PrivateNetwork) -> (Ipv4Addr, Ipv4Addr) {
    let (first, last) = network.machines();
    let limit = u32::from(first).saturating_add(LEASES_LIMIT - 1);
    (first, u32::from(last).min(limit).into())
}

/// Returns `dhcp-lease-max`: the number of addresses in [`range`].
#[must_use]
pub fn max_leases(network: PrivateNetwork) -> u32 {
    let (first, last) = range(network);
    (u32::from(last) - u32::from(first)).saturating_add(1)
}

/// Returns the number of addresses for machines.
#[must_use]
pub fn machines(network: PrivateNetwork) -> u32 {
    max_leases(network).saturating_sub(1)
}

/// Returns the lease time: the configured one, or one that suits the size of the network.
#[must_use]
pub fn lease_time(network: PrivateNetwork, configured: Option<LeaseTime>) -> Duration {
    let suited = LEASE_PER_ADDRESS.saturating_mul(machines(network));
    configured.map_or_else(
        || suited.clamp(LeaseTime::SHORTEST, LeaseTime::DEFAULT),
        LeaseTime::get,
    )
}

/// Returns the configuration file (dnsmasq(8)).
#[must_use]
pub fn configuration(network: &UplinkNetwork, lease: Option<LeaseTime>) -> String {
    let (first, last) = range(network.private_network);
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
# No server knows the names of machines. Other private addresses have names there.
rev-server={machines}
# More than some machines can use up together.
dns-forward-max={QUERIES}
max-tcp-connections={TCP_CLIENTS}

# DHCP: the only server on this bridge; names that machines choose are ignored.
dhcp-range={first},{last},{netmask},{seconds}
dhcp-lease-max={leases}
# The probe has an address when machines have all others.
dhcp-host={probe},{last}
dhcp-leasefile=/{LEASES}
dhcp-authoritative
dhcp-ignore-names
# Clones of one image send one client identifier: the MAC address identifies a machine.
dhcp-ignore-clid
# A ping before each offer would delay it by three seconds.
no-ping
# Probes and short-lived machines would fill the journal.
quiet-dhcp
{search}",
        bridge = network.private_bridge,
        seconds = lease_time(network.private_network, lease).as_secs(),
        probe = buildos_probe::MAC,
        leases = max_leases(network.private_network),
        machines = network.private_network.network(),
        search = search(&network.search_domains),
    )
}

/// Returns the options by which a machine has the search list of the host: option 119, and
/// for clients without it (RFC 3397) option 15 with the first domain.
fn search(domains: &[DomainName]) -> String {
    let domains = &domains[..fitting(domains)];
    let Some(first) = domains.first() else {
        return String::new();
    };
    let list: Vec<_> = domains.iter().map(DomainName::to_string).collect();
    format!(
        "\
# The search list of the host.
dhcp-option=15,{first}
dhcp-option=option:domain-search,{list}
",
        list = list.join(",")
    )
}

/// Returns how many of the domains fit in option 119.
fn fitting(domains: &[DomainName]) -> usize {
    let mut length = 0_usize;
    let fits = |domain: &&DomainName| {
        let labels = domain.labels().map(|label| label.len().saturating_add(1));
        length = labels.fold(length.saturating_add(1), usize::saturating_add);
        length <= OPTION_LIMIT
    };
    domains.iter().take_while(fits).count()
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
    fn lease_time_suits_size_of_network_unless_configured() {
        let seconds =
            |network: &str, configured| lease_time(network.parse().unwrap(), configured).as_secs();
        assert_eq!(seconds("172.23.0.1/16", None), 3600);
        assert_eq!(seconds("192.168.213.1/24", None), 1008);
        assert_eq!(seconds("192.168.213.1/28", None), 120);
        let configured = LeaseTime::try_from(7200).ok();
        assert_eq!(seconds("192.168.213.1/28", configured), 7200);
    }

    #[test]
    fn range_of_large_network_is_limited() {
        let range = |network: &str| range(network.parse().unwrap());
        let addresses = |first, last| (Ipv4Addr::from(first), Ipv4Addr::from(last));
        assert_eq!(range("10.0.0.1/8"), addresses([10, 0, 0, 2], [10, 1, 0, 1]));
        assert_eq!(max_leases("10.0.0.1/8".parse().unwrap()), 65_536);
        let small = addresses([192, 168, 213, 2], [192, 168, 213, 14]);
        assert_eq!(range("192.168.213.1/28"), small);
        assert_eq!(machines("192.168.213.1/28".parse().unwrap()), 12);
    }

    #[test]
    fn search_list_is_cut_to_what_dnsmasq_accepts() {
        let domain = |text: String| DomainName::try_from(text).unwrap();
        let of_length =
            |length| domain(["a"].repeat(length / 2 + 1).join(".")[..length].to_owned());
        assert_eq!(search(&[]), "");
        // Each label has a length byte, and each name ends with that of the root.
        let longest = [of_length(253)];
        assert!(search(&longest).contains(&format!("domain-search,{}\n", longest[0])));
        let (long, rest) = (of_length(197), domain(format!("{}.b", "c".repeat(52))));
        assert_eq!(fitting(&[long.clone(), rest]), 2);
        let rest = domain(format!("{}.b", "c".repeat(53)));
        assert_eq!(fitting(&[long.clone(), rest.clone()]), 1);
        let text = search(&[long.clone(), rest, domain("example".to_owned())]);
        assert!(text.ends_with(&format!("domain-search,{long}\n")), "{text}");
    }

    #[test]
    fn resolv_has_a_line_for_each_server() {
        let servers = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let text = resolv(&servers);
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines, ["nameserver 192.0.2.1", "nameserver 2001:db8::1"]);
    }
}
