//! The files that show the network to others: `resolv.conf` (resolv.conf(5))
//! and `interfaces` (interfaces(5) of ifupdown), to which links in `/etc` lead,
//! and `timesyncd.conf` (timesyncd.conf(5)). All are made from the picture and
//! never read by netd.

use std::fmt::Write as _;

use crate::plan::{PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use crate::status::Picture;

/// glibc looks at no more name servers than that (`MAXNS`).
const NAME_SERVERS: usize = 3;

/// The text of `resolv.conf`.
#[must_use]
pub fn resolv_conf(picture: &Picture) -> String {
    let mut out =
        "# Made by buildos-netd from the DHCP lease of br0; changes are lost.\n".to_owned();
    let Some(lease) = &picture.lease else {
        out.push_str("# There is no lease now.\n");
        return out;
    };
    for server in lease.dns.iter().take(NAME_SERVERS) {
        line(&mut out, &format!("nameserver {server}"));
    }
    for server in lease.dns.iter().skip(NAME_SERVERS) {
        line(
            &mut out,
            &format!("# not used, too many: nameserver {server}"),
        );
    }
    let domains = search_domains(picture);
    if !domains.is_empty() {
        line(&mut out, &format!("search {}", domains.join(" ")));
    }
    out
}

/// Domains to search: option 119, else option 15.
#[must_use]
pub fn search_domains(picture: &Picture) -> Vec<String> {
    match &picture.lease {
        None => Vec::new(),
        Some(lease) if lease.search.is_empty() => lease.domain.iter().cloned().collect(),
        Some(lease) => lease.search.clone(),
    }
}

/// The text of `timesyncd.conf`, a drop-in: the time servers of the lease go
/// before those that are configured on the host. Without a lease there is none,
/// and the servers of the one before are as good as any.
#[must_use]
pub fn timesyncd_conf(picture: &Picture) -> Option<String> {
    let lease = picture.lease.as_ref()?;
    let mut out =
        "# Made by buildos-netd from the DHCP lease of br0; changes are lost.\n".to_owned();
    if lease.ntp.is_empty() {
        out.push_str("# The lease names no time server.\n");
    } else {
        let servers: Vec<_> = lease.ntp.iter().map(ToString::to_string).collect();
        // The empty assignment takes back what files before this one say.
        out.push_str("[Time]\nNTP=\n");
        line(&mut out, &format!("NTP={}", servers.join(" ")));
    }
    Some(out)
}

/// The text of `interfaces`: the configuration in force, in the form that
/// ifupdown would be given it in.
#[must_use]
pub fn interfaces(picture: &Picture) -> String {
    let mut out = "# Made by buildos-netd: the network configuration in force on this host.\n\
                   # It is a view; to change it see buildos-netd.conf(5).\n\n\
                   auto lo\niface lo inet loopback\n\n"
        .to_owned();
    line(&mut out, &format!("# {}", picture.reason));
    line(&mut out, &format!("auto {PUBLIC_BRIDGE}"));
    line(&mut out, &format!("iface {PUBLIC_BRIDGE} inet dhcp"));
    bridge(
        &mut out,
        picture.uplink.as_ref().map_or("none", |(name, _)| name),
    );
    if let Some((_, mac)) = &picture.uplink {
        line(&mut out, &format!("    hwaddress ether {mac}"));
    }
    if let Some(lease) = &picture.lease {
        line(
            &mut out,
            &format!("    # address {}/{}", lease.address, lease.prefix),
        );
        if let Some(gateway) = lease.gateway() {
            line(&mut out, &format!("    # gateway {gateway}"));
        }
    }
    if let Some(private) = picture.private {
        line(&mut out, &format!("\nauto {PRIVATE_BRIDGE}"));
        line(&mut out, &format!("iface {PRIVATE_BRIDGE} inet static"));
        line(&mut out, &format!("    address {private}"));
        bridge(&mut out, "none");
    }
    out
}

fn bridge(out: &mut String, ports: &str) {
    line(out, &format!("    bridge_ports {ports}"));
    line(out, "    bridge_stp off");
    line(out, "    bridge_fd 0");
}

fn line(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::{offline, online};

    #[test]
    fn resolv_conf_has_the_servers_and_domains_of_the_lease() {
        assert_eq!(
            resolv_conf(&online()),
            "# Made by buildos-netd from the DHCP lease of br0; changes are lost.\n\
             nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch example.org\n"
        );
        assert!(!resolv_conf(&offline()).contains("\nnameserver"));
    }

    #[test]
    fn a_fourth_name_server_is_named_but_not_used() {
        let mut picture = online();
        let lease = picture.lease.as_mut().unwrap();
        lease.dns = (1..5).map(|i| [192, 0, 2, i].into()).collect();
        lease.search = vec!["a.example".into(), "b.example".into()];
        let text = resolv_conf(&picture);
        assert!(
            text.contains("\n# not used, too many: nameserver 192.0.2.4\n"),
            "{text}"
        );
        assert!(text.contains("\nsearch a.example b.example\n"), "{text}");
    }

    #[test]
    fn time_servers_are_those_of_the_lease() {
        let mut picture = online();
        let lease = picture.lease.as_mut().unwrap();
        lease.ntp = vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        assert_eq!(
            timesyncd_conf(&picture).unwrap(),
            "# Made by buildos-netd from the DHCP lease of br0; changes are lost.\n\
             [Time]\nNTP=\nNTP=192.0.2.1 192.0.2.2\n"
        );
        picture.lease.as_mut().unwrap().ntp.clear();
        let text = timesyncd_conf(&picture).unwrap();
        assert!(!text.contains("NTP="), "{text}");
        assert_eq!(timesyncd_conf(&offline()), None);
    }

    #[test]
    fn interfaces_shows_both_bridges() {
        assert_eq!(
            interfaces(&online()),
            "# Made by buildos-netd: the network configuration in force on this host.\n\
             # It is a view; to change it see buildos-netd.conf(5).\n\
             \n\
             auto lo\n\
             iface lo inet loopback\n\
             \n\
             # br0 has 192.0.2.10/24 by enp1s0 from 192.0.2.1\n\
             auto br0\n\
             iface br0 inet dhcp\n    \
                 bridge_ports enp1s0\n    \
                 bridge_stp off\n    \
                 bridge_fd 0\n    \
                 hwaddress ether de:ad:be:ef:b8:da\n    \
                 # address 192.0.2.10/24\n    \
                 # gateway 192.0.2.1\n\
             \n\
             auto br1\n\
             iface br1 inet static\n    \
                 address 172.23.0.1/16\n    \
                 bridge_ports none\n    \
                 bridge_stp off\n    \
                 bridge_fd 0\n"
        );
        assert!(interfaces(&offline()).contains("\n# no carrier on enp1s0\nauto br0\n"));
    }
}
