//! Renders `interfaces`: the network configuration as a configuration of ifupdown
//! (interfaces(5)).

use std::fmt::Write as _;

use crate::observed::{PRIVATE_BRIDGE, PUBLIC_BRIDGE};
use crate::status::Status;

/// Returns the content of the file.
#[must_use]
pub fn render(status: &Status) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, status);
    out
}

fn write(out: &mut String, status: &Status) -> std::fmt::Result {
    writeln!(
        out,
        "# Made by buildos-netd: the current network configuration of this host."
    )?;
    writeln!(
        out,
        "# netd does not read this file; to change the network see buildos-netd.conf(5).\n"
    )?;
    writeln!(out, "auto lo\niface lo inet loopback\n")?;
    writeln!(out, "# {}", status.reason)?;
    let configured = status.lease.as_ref().filter(|lease| lease.is_configured());
    let method = if configured.is_some() {
        "static"
    } else {
        "dhcp"
    };
    writeln!(
        out,
        "auto {PUBLIC_BRIDGE}\niface {PUBLIC_BRIDGE} inet {method}"
    )?;
    let uplink = status.uplink.as_ref();
    let port = uplink.map_or("none", |(name, _)| name.as_str());
    write_bridge(out, port)?;
    if let Some((_, mac)) = uplink {
        writeln!(out, "    hwaddress ether {mac}")?;
    }
    if let Some(lease) = &status.lease {
        // ifupdown refuses these keywords in a method other than static.
        let comment = if configured.is_some() { "" } else { "# " };
        let (address, prefix) = (lease.address, lease.prefix);
        writeln!(out, "    {comment}address {address}/{prefix}")?;
        if let Some(gateway) = lease.gateway() {
            writeln!(out, "    {comment}gateway {gateway}")?;
        }
    }
    if let Some(private) = status.private {
        writeln!(
            out,
            "\nauto {PRIVATE_BRIDGE}\niface {PRIVATE_BRIDGE} inet static"
        )?;
        writeln!(out, "    address {private}")?;
        write_bridge(out, "none")?;
    }
    Ok(())
}

fn write_bridge(out: &mut String, ports: &str) -> std::fmt::Result {
    writeln!(
        out,
        "    bridge_ports {ports}\n    bridge_stp off\n    bridge_fd 0"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::{offline, online};

    #[test]
    fn interfaces_with_static_address_has_method_static() {
        let mut status = online();
        let lease = status.lease.as_mut().unwrap();
        lease.server = std::net::Ipv4Addr::UNSPECIFIED;
        let text = render(&status);
        assert!(text.contains("\niface br0 inet static\n"), "{text}");
        assert!(text.contains("\n    address 192.0.2.10/24\n    gateway 192.0.2.1\n"));
    }

    #[test]
    fn interfaces_has_both_bridges() {
        assert_eq!(
            render(&online()),
            "# Made by buildos-netd: the current network configuration of this host.\n\
             # netd does not read this file; to change the network see buildos-netd.conf(5).\n\
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
        assert!(render(&offline()).contains("\n# no carrier on enp1s0\nauto br0\n"));
    }
}
