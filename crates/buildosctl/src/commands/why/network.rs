//! The links from the daemons to NAT: what machines are given to work with.

use buildos_dbus_api::agent1::Need;
use buildos_dbus_api::network1::{LinkRole, State as NetworkState};

use super::Link;
use super::agents::is_needed;
use crate::snapshot::model::{Daemon, Host, Nat, Network};
use crate::term::relative;

pub(super) fn daemons(host: &Host) -> Link {
    let silent: Vec<_> = host.silent.iter().collect();
    let what: Vec<_> = silent
        .iter()
        .map(|(daemon, why)| format!("{} does not answer: {why}", daemon.unit()))
        .collect();
    if what.is_empty() {
        return Link::Holds("all four answer".to_owned());
    }
    let units: Vec<_> = silent.iter().map(|(daemon, _)| daemon.unit()).collect();
    let units = units.join(" ");
    Link::Broken(
        what.join("; "),
        vec![
            format!("systemctl status {units}"),
            "buildosctl log -x -n 50".to_owned(),
            "It was stopped by somebody, or never enabled? Then:".to_owned(),
            format!("systemctl start {units}"),
        ],
    )
}

/// Of what a silent netd would have told, nothing is known.
pub(super) fn with_network(host: &Host, look: impl FnOnce(&Network) -> Link) -> Link {
    match &host.network {
        Some(network) => look(network),
        None => silent(host, Daemon::Netd),
    }
}

pub(super) fn silent(host: &Host, daemon: Daemon) -> Link {
    let why = host.silent.get(&daemon).map_or("", String::as_str);
    Link::Broken(
        format!("not known, as {} does not answer: {why}", daemon.unit()),
        vec![format!("systemctl status {}", daemon.unit())],
    )
}

pub(super) fn carrier(host: &Host) -> Link {
    with_network(host, |network| {
        let state = network.state.parse::<NetworkState>().ok();
        let without = matches!(
            state,
            Some(NetworkState::NoCarrier | NetworkState::CarrierLost)
        );
        let candidates = host.links.iter().filter(|link| {
            link.role == LinkRole::Candidate.as_str() || link.role == LinkRole::Uplink.as_str()
        });
        let (with, dark): (Vec<_>, Vec<_>) = candidates.partition(|link| link.carrier);
        if !without {
            let names: Vec<_> = with.iter().map(|link| link.name.as_str()).collect();
            return Link::Holds(names.join(", "));
        }
        let mut advice = Vec::new();
        if dark.is_empty() && with.is_empty() {
            advice.push(
                "The kernel shows no Ethernet NIC that counts: a driver is missing, or the configuration excludes it (netd.exclude)."
                    .to_owned(),
            );
            advice.push("buildosctl links".to_owned());
            advice.push("lspci -k | grep -A3 Ethernet".to_owned());
        } else {
            advice.push(
                "Plug in a cable, or look at the port of the switch; the host goes on by itself."
                    .to_owned(),
            );
            advice.push("buildosctl links --watch".to_owned());
        }
        Link::Broken(network.reason.clone(), advice)
    })
}

pub(super) fn lease(host: &Host) -> Link {
    with_network(host, |network| {
        if network.address.is_empty() {
            return Link::Broken(
                network.reason.clone(),
                vec![
                    "Is there a DHCP server on that network, with free addresses, for this hardware address?"
                        .to_owned(),
                    "buildosctl links".to_owned(),
                    "journalctl -b -x -u buildos-netd".to_owned(),
                    "What netd saw and why it decided so: /run/buildos/netd/ledger.json".to_owned(),
                    "Refused by configuration? buildos-netd.conf(5), allow_servers and deny_networks."
                        .to_owned(),
                ],
            );
        }
        let lease = &network.lease;
        let end = match lease.expires_usec {
            0 => "without end".to_owned(),
            end => format!("ends {}", relative(host.taken_usec, end)),
        };
        Link::Holds(format!("{} from {}, {end}", network.address, lease.server))
    })
}

pub(super) fn bridges(host: &Host) -> Link {
    with_network(host, |network| {
        let (public, private) = (&network.public_bridge, &network.private_bridge);
        let missing = if !network.public_ports.contains(&network.uplink) {
            format!("{} is not a port of {public}", network.uplink)
        } else if network.private_network.is_empty() {
            format!("{private} has no address")
        } else {
            return Link::Holds(format!(
                "{public} with {}; {private} has {}",
                network.public_ports.join(", "),
                network.private_network
            ));
        };
        Link::Broken(
            missing,
            vec![
                "netd repairs that by itself; when it stays so, somebody undoes it or the kernel refuses it:"
                    .to_owned(),
                "journalctl -b -x -u buildos-netd".to_owned(),
                format!("ip -d address show {public}; ip -d address show {private}"),
                "Does something else configure the network? systemctl status systemd-networkd NetworkManager networking"
                    .to_owned(),
            ],
        )
    })
}

pub(super) fn name(host: &Host) -> Link {
    let Some(name) = &host.name else {
        return silent(host, Daemon::Hostnamed);
    };
    if name.hostname.is_empty() || name.source.is_empty() || name.source == "none" {
        return Link::Broken(
            name.reason.clone(),
            vec![
                "systemctl status buildos-hostnamed systemd-hostnamed".to_owned(),
                "journalctl -b -x -u buildos-hostnamed -u systemd-hostnamed".to_owned(),
                "To give it one: buildos.hostname=NAME on the kernel command line.".to_owned(),
            ],
        );
    }
    let refused = match name.refused.as_slice() {
        [] => String::new(),
        refused => format!("; refused: {}", refused.join(", ")),
    };
    Link::Holds(format!("{} ({}){refused}", name.hostname, name.source))
}

pub(super) fn nat(host: &Host) -> Link {
    let Some(nat) = &host.nat else {
        return silent(host, Daemon::Natd);
    };
    if nat.ready {
        let probe = match nat.probe.as_str() {
            "passed" => format!("; probed {}", relative(host.taken_usec, nat.probe_usec)),
            _ => "; not probed".to_owned(),
        };
        return Link::Holds(format!("{}{probe}", nat.reason));
    }
    if !is_needed(host, Need::PrivateNetwork) {
        return Link::Remark(format!("{}; no agent needs it", nat.reason));
    }
    Link::Broken(nat.reason.clone(), nat_advice(nat))
}

pub(super) fn nat_advice(nat: &Nat) -> Vec<String> {
    let lines: &[&str] = if !nat.table_installed {
        &["journalctl -b -x -u buildos-natd", "lsmod | grep nf_tables"]
    } else if !nat.foreign_drops.is_empty() {
        &[
            "Make the other table let machines pass; natd touches no table of others:",
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
                "dnsmasq answers no machine, or something on the host drops the question:",
                "journalctl -b -u buildos-dnsmasq",
                "nft list ruleset",
            ],
            "names" => &[
                "The name servers of the uplink do not answer, or not what they should:",
                "busctl get-property org.build2.buildos.network1 /org/build2/buildos/network1 org.build2.buildos.network1.Manager DNS",
                "cat /run/buildos/netd/resolv.conf",
            ],
            "outside" => &[
                "Nothing of what is tried answers through NAT: is the gateway up? Does it answer?",
                "ip route get 9.9.9.9",
                "To try something else: probe_targets in buildos-natd.conf(5).",
            ],
            _ => &[
                "It goes on by itself as soon as that is there; when it stays so:",
                "journalctl -b -x -u buildos-natd -u buildos-dnsmasq -u buildos-probe",
            ],
        }
    };
    lines.iter().map(ToString::to_string).collect()
}
