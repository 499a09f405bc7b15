//! Checks the steps from the daemons to NAT.

use buildos_dbus_api::agent1::Need;
use buildos_dbus_api::network1::{AddressOrigin, LinkRole, Reachability, State as NetworkState};

use super::agent_state::is_needed;
use super::step::{StepResult, unknown};
use crate::commands::links::vlans;
use crate::snapshot::model::{Daemon, Host, Link, Nat, Network};
use crate::term::relative;

pub(super) fn daemons(host: &Host) -> StepResult {
    let silent: Vec<_> = host.silent.iter().collect();
    let failures: Vec<_> = silent
        .iter()
        .map(|(daemon, why)| format!("{} does not answer: {why}", daemon.unit()))
        .collect();
    if failures.is_empty() {
        return StepResult::Passed("all four daemons answer".to_owned());
    }
    let units: Vec<_> = silent.iter().map(|(daemon, _)| daemon.unit()).collect();
    let units = units.join(" ");
    StepResult::Failed(
        failures.join("; "),
        vec![
            format!("systemctl status {units}"),
            "buildosctl log -x -n 50".to_owned(),
            "If the unit was stopped or never enabled, start it:".to_owned(),
            format!("systemctl start {units}"),
        ],
    )
}

/// Checks the network, which is unknown if netd does not answer.
fn with_network(host: &Host, check: impl FnOnce(&Network) -> StepResult) -> StepResult {
    match &host.network {
        Some(network) => check(network),
        None => unknown(host, Daemon::Netd),
    }
}

pub(super) fn carrier(host: &Host) -> StepResult {
    with_network(host, |network| {
        let state = network.state.parse::<NetworkState>().ok();
        let no_carrier = matches!(
            state,
            Some(NetworkState::NoCarrier | NetworkState::CarrierLost)
        );
        let candidates = host.links.iter().filter(|link| {
            link.role == LinkRole::Candidate.as_str() || link.role == LinkRole::Uplink.as_str()
        });
        let (with, without): (Vec<_>, Vec<_>) = candidates.partition(|link| link.carrier);
        if !no_carrier {
            let names: Vec<_> = with.iter().map(|link| link.name.as_str()).collect();
            return StepResult::Passed(names.join(", "));
        }
        let mut advice = Vec::new();
        if without.is_empty() && with.is_empty() {
            advice.push(
                "The kernel shows no Ethernet NIC that netd may use: a driver is missing, or netd.exclude matches the NIC."
                    .to_owned(),
            );
            advice.push("buildosctl links".to_owned());
            advice.push("lspci -k | grep -A3 Ethernet".to_owned());
        } else {
            advice.push(
                "Plug in a cable, or check the port of the switch. netd continues by itself."
                    .to_owned(),
            );
            advice.push("buildosctl links --watch".to_owned());
        }
        StepResult::Failed(network.reason.clone(), advice)
    })
}

pub(super) fn lease(host: &Host) -> StepResult {
    with_network(host, |network| {
        if network.address.is_empty() {
            let mut advice = lease_advice(&network.reason);
            advice.extend(host.links.iter().filter_map(vlan_advice));
            let global = network.ipv6_addresses.iter();
            advice.extend(
                global
                    .filter(|address| !address.starts_with("fe80:"))
                    .filter_map(|address| address.split('/').next())
                    .map(|address| format!("Until then, the host is reached by IPv6: {address}")),
            );
            return StepResult::Failed(network.reason.clone(), advice);
        }
        if network.state == NetworkState::NoDefaultRoute.as_str() {
            return StepResult::Failed(
                network.reason.clone(),
                vec![
                    "The DHCP server sends no router (option 3) and no default route (option 121)."
                        .to_owned(),
                    "If another NIC leads to the right network, check its cable and its server:"
                        .to_owned(),
                    "buildosctl links".to_owned(),
                    "If the host needs no default route, set online_requires = \"lease\" in buildos-netd.conf(5)."
                        .to_owned(),
                ],
            );
        }
        let lease = &network.lease;
        let end = match lease.expires_usec {
            0 => "never ends".to_owned(),
            end => format!("ends {}", relative(host.taken_usec, end)),
        };
        let rest = match network.provisional {
            true => ", until another NIC has a better lease",
            false => "",
        };
        let (address, server) = (&network.address, &lease.server);
        let origin = network
            .address_origin
            .parse()
            .unwrap_or(AddressOrigin::Lease);
        let lease = match origin {
            AddressOrigin::Lease => format!("{address} from {server}, {end}{rest}"),
            AddressOrigin::ExpiredLease => {
                let ago = relative(host.taken_usec, lease.expires_usec);
                format!("{address} from {server}, whose lease ended {ago} (keep_expired)")
            }
            AddressOrigin::Static => {
                format!("static address {address}, as no DHCP server grants a lease")
            }
        };
        let parts: Vec<&str> = std::iter::once(lease.as_str())
            .chain(claims(&network.reason))
            .collect();
        let text = parts.join("; ");
        if network.gateway_reachability != Reachability::Unreachable.as_str() {
            return match origin {
                AddressOrigin::Lease => StepResult::Passed(text),
                AddressOrigin::ExpiredLease | AddressOrigin::Static => StepResult::Remark(text),
            };
        }
        let text = format!("{text}; gateway {} does not answer ARP", network.gateway);
        match host.nat.as_ref().is_some_and(|nat| nat.ready) {
            true => StepResult::Remark(text),
            false => StepResult::Failed(text, gateway_advice(network)),
        }
    })
}

fn gateway_advice(network: &Network) -> Vec<String> {
    vec![
        "The gateway answered before. Check it, and the switches between:".to_owned(),
        format!(
            "ip neighbour show {} dev {}",
            network.gateway, network.public_bridge
        ),
        "journalctl -b -x -u buildos-netd".to_owned(),
        "A second NIC takes br0 over when a gateway on its network answers: buildosctl links"
            .to_owned(),
    ]
}

/// Returns the parts of netd's reason about other hosts that claim the address.
fn claims(reason: &str) -> impl Iterator<Item = &str> {
    let is_claim =
        |part: &&str| part.contains("claims this address") || part.contains("detect_conflicts");
    reason.split("; ").filter(is_claim)
}

/// Returns what LLDP says about the VLANs of a NIC that gets no lease.
fn vlan_advice(link: &Link) -> Option<String> {
    let vlans = vlans(link);
    // Without a lease, a NIC can be the port of br0 for IPv6.
    let roles = [LinkRole::Candidate, LinkRole::Uplink];
    let is_asking = roles.iter().any(|role| link.role == role.as_str());
    (is_asking && link.carrier && !vlans.is_empty()).then(|| {
        let asks = match link.vlan {
            0 => "without a tag; see [uplink.NAME] in buildos-netd.conf(5)".to_owned(),
            vlan => format!("with the tag of VLAN {vlan}"),
        };
        format!(
            "{} is connected to {} port {}, which has {vlans}. netd asks {asks}.",
            link.name, link.neighbour_system, link.neighbour_port
        )
    })
}

/// Returns the advice for a reason of netd that names what it waits for.
fn lease_advice(reason: &str) -> Vec<String> {
    let cause = if reason.contains("is in use by") {
        "Remove the address of the other host from the DHCP server's range. If a device answers ARP for addresses of others (proxy ARP), set detect_conflicts = false in buildos-netd.conf(5)."
    } else if reason.contains("refused the OFFER") {
        "netd refuses the offer: correct the DHCP server, or allow_servers and deny_networks in buildos-netd.conf(5)."
    } else {
        "Check that the network has a DHCP server with free addresses, and that it accepts this hardware address."
    };
    let lines = [
        cause,
        "buildosctl links",
        "journalctl -b -x -u buildos-netd",
        "netd records its decisions in /run/buildos/netd/ledger.json",
    ];
    lines.iter().map(ToString::to_string).collect()
}

pub(super) fn bridges(host: &Host) -> StepResult {
    with_network(host, |network| {
        let (public, private) = (&network.public_bridge, &network.private_bridge);
        let missing = if !network.public_ports.contains(&network.uplink) {
            format!("{} is not a port of {public}", network.uplink)
        } else if network.private_network.is_empty() {
            format!("{private} has no address")
        } else {
            let text = format!(
                "{public} with {}; {private} has {}",
                network.public_ports.join(", "),
                network.private_network
            );
            let mut reasons = network.reason.split("; ");
            return match reasons.find(|reason| reason.contains("no private network is free")) {
                Some(overlap) => StepResult::Remark(format!("{text}; {overlap}")),
                None => StepResult::Passed(text),
            };
        };
        StepResult::Failed(
            missing,
            vec![
                "netd repairs the bridges by itself. If this lasts, another program undoes the repair, or the kernel refuses it:"
                    .to_owned(),
                "journalctl -b -x -u buildos-netd".to_owned(),
                format!("ip -d address show {public}; ip -d address show {private}"),
                "Check for another network manager: systemctl status systemd-networkd NetworkManager networking"
                    .to_owned(),
            ],
        )
    })
}

pub(super) fn name(host: &Host) -> StepResult {
    let Some(name) = &host.name else {
        return unknown(host, Daemon::Hostnamed);
    };
    if name.hostname.is_empty() || name.source.is_empty() || name.source == "none" {
        return StepResult::Failed(
            name.reason.clone(),
            vec![
                "systemctl status buildos-hostnamed systemd-hostnamed".to_owned(),
                "journalctl -b -x -u buildos-hostnamed -u systemd-hostnamed".to_owned(),
                "To set the name, boot with buildos.hostname=NAME.".to_owned(),
            ],
        );
    }
    let refused = match name.refused.as_slice() {
        [] => String::new(),
        refused => format!("; refused: {}", refused.join(", ")),
    };
    StepResult::Passed(format!("{} ({}){refused}", name.hostname, name.source))
}

pub(super) fn nat(host: &Host) -> StepResult {
    let Some(nat) = &host.nat else {
        return unknown(host, Daemon::Natd);
    };
    if nat.ready {
        let probe = match nat.probe.as_str() {
            "passed" => format!("; probed {}", relative(host.taken_usec, nat.probe_usec)),
            _ => "; not probed".to_owned(),
        };
        if !nat.shortages.is_empty() {
            let shortages = nat.shortages.iter();
            let lines: Vec<_> = shortages
                .map(|(of, line)| format!("short of {of}: {line}"))
                .collect();
            return StepResult::Remark(lines.join("; "));
        }
        let open = match host.open_ports.list.len() {
            0 => String::new(),
            1 => "; 1 port of a machine is open on br0".to_owned(),
            n => format!("; {n} ports of machines are open on br0"),
        };
        return StepResult::Passed(format!("{}{probe}{open}", nat.reason));
    }
    if !is_needed(host, Need::PrivateNetwork) {
        return StepResult::Remark(format!("{}; no agent needs NAT", nat.reason));
    }
    StepResult::Failed(nat.reason.clone(), nat_advice(nat))
}

fn nat_advice(nat: &Nat) -> Vec<String> {
    let lines: &[&str] = if !nat.table_installed {
        &["journalctl -b -x -u buildos-natd", "lsmod | grep nf_tables"]
    } else if !nat.foreign_drops.is_empty() {
        &[
            "Change the other table to accept packets of machines; natd changes only its own:",
            "nft list ruleset",
            "journalctl -b -x -u buildos-natd",
        ]
    } else if !nat.dhcp_serving {
        &[
            "systemctl status buildos-dnsmasq",
            "journalctl -b -u buildos-dnsmasq",
        ]
    } else {
        match nat.probe_step.as_str() {
            "link" => &["journalctl -b -u buildos-probe -u buildos-natd"],
            "lease" => &[
                "dnsmasq does not answer machines, or a rule on the host drops their requests:",
                "journalctl -b -u buildos-dnsmasq",
                "nft list ruleset",
            ],
            "names" => &[
                "The name servers of the uplink do not answer, or answer wrongly (SERVFAIL, REFUSED):",
                "busctl get-property org.build2.buildos.network1 /org/build2/buildos/network1 org.build2.buildos.network1.Manager DNS",
                "cat /run/buildos/netd/resolv.conf",
                "If they resolve other names only, set probe_name in buildos-natd.conf(5).",
            ],
            "outside" => &[
                "No target of the probe answers through NAT. Check the gateway:",
                "ip route get 9.9.9.9",
                "To probe other targets, set probe_targets in buildos-natd.conf(5).",
            ],
            _ => &[
                "natd continues by itself. If this lasts:",
                "journalctl -b -x -u buildos-natd -u buildos-dnsmasq -u buildos-probe",
            ],
        }
    };
    lines.iter().map(ToString::to_string).collect()
}
