//! `buildosctl status`: shows the host on one screen.

use std::collections::BTreeMap;

use buildos_dbus_api::agent1::InstanceState;
use buildos_dbus_api::nat1::{ProbeState, State as NatState};
use buildos_dbus_api::network1::{AddressOrigin, Reachability, State as NetworkState};
use buildos_service::text;

use crate::snapshot::model::{Daemon, Host, Network};
use crate::term::{Style, Tone, relative};

/// Width of the first column; the longest heading is `network`.
const HEADING: usize = 8;

/// A line of the screen: heading, key and text.
struct Line {
    /// Empty if the line belongs to the heading above it.
    heading: &'static str,
    tone: Tone,
    key: String,
    text: String,
}

/// Renders the screen.
pub(crate) fn render(host: &Host, style: Style) -> String {
    let mut lines = Vec::new();
    network(host, &mut lines);
    name(host, &mut lines);
    nat(host, &mut lines);
    agents(host, &mut lines);
    state(host, &mut lines);
    updates(host, &mut lines);
    ram_volume(host, &mut lines);
    system(host, &mut lines);
    let width = lines.iter().map(|line| line.key.chars().count()).max();
    let width = width.unwrap_or(0);
    let mut out = String::new();
    for line in &lines {
        let heading = style.paint(Tone::Strong, &format!("{:<HEADING$}", line.heading));
        let key = style.paint(line.tone, &format!("{:<width$}", line.key));
        out.push_str(format!("{heading} {key}  {}", line.text).trim_end());
        out.push('\n');
    }
    out
}

/// Returns a line in a weak tone.
fn line(heading: &'static str, key: &str, text: impl Into<String>) -> Line {
    toned(heading, Tone::Weak, key, text)
}

fn toned(heading: &'static str, tone: Tone, key: &str, text: impl Into<String>) -> Line {
    Line {
        heading,
        tone,
        key: key.to_owned(),
        text: text.into(),
    }
}

fn not_answering(host: &Host, heading: &'static str, daemon: Daemon, lines: &mut Vec<Line>) {
    let why = host.silent.get(&daemon).map_or("", String::as_str);
    let text = format!("{} does not answer: {why}", daemon.unit());
    lines.push(toned(heading, Tone::Bad, "unknown", text));
}

fn problems(problems: &[String], lines: &mut Vec<Line>) {
    for problem in problems {
        lines.push(toned(
            "",
            Tone::Warning,
            "mistake",
            text::Escaped::received(problem),
        ));
    }
}

fn network(host: &Host, lines: &mut Vec<Line>) {
    let Some(network) = &host.network else {
        return not_answering(host, "network", Daemon::Netd, lines);
    };
    let tone = match network.state.parse() {
        Ok(NetworkState::Online) => Tone::Good,
        Ok(NetworkState::Acquiring | NetworkState::NoDefaultRoute | NetworkState::CarrierLost) => {
            Tone::Warning
        }
        Ok(NetworkState::NoCarrier) | Err(_) => Tone::Bad,
    };
    lines.push(toned("network", tone, &network.state, &network.reason));
    if !network.address.is_empty() {
        lines.push(line("", "lease", lease(host.taken_usec, network)));
    }
    lines.push(line("", &network.public_bridge, public(network)));
    lines.push(line("", &network.private_bridge, private(network)));
    if !network.dns.is_empty() {
        let search = match network.search_domains.as_slice() {
            [] => String::new(),
            domains => format!(", search {}", domains.join(" ")),
        };
        lines.push(line("", "dns", network.dns.join(", ") + &search));
    }
    problems(&network.configuration_problems, lines);
}

fn lease(now: u64, network: &Network) -> String {
    let lease = &network.lease;
    match network.address_origin.parse() {
        Ok(AddressOrigin::Static) => return "none; the address is static".to_owned(),
        Ok(AddressOrigin::ExpiredLease) => {
            let ago = relative(now, lease.expires_usec);
            return format!("from {}, ended {ago}; the address is kept", lease.server);
        }
        Ok(AddressOrigin::Lease) | Err(_) => {}
    }
    let times = if lease.expires_usec == 0 {
        "never ends".to_owned()
    } else {
        let end = match lease.expires_usec.checked_sub(now) {
            Some(_) => format!("ends {}", relative(now, lease.expires_usec)),
            None => "has ended".to_owned(),
        };
        let next = [
            ("renewal", lease.renew_usec),
            ("rebinding", lease.rebind_usec),
        ];
        match next.iter().find(|(_, at)| *at > now) {
            Some((action, at)) => format!("{end}, {action} {}", relative(now, *at)),
            None => end,
        }
    };
    format!("from {}, {times}", lease.server)
}

fn public(network: &Network) -> String {
    let mut addresses = Vec::new();
    addresses.extend((!network.address.is_empty()).then_some(network.address.as_str()));
    addresses.extend(network.ipv6_addresses.iter().map(String::as_str));
    let gateway = match network.gateway.as_str() {
        "" => String::new(),
        gateway if network.gateway_reachability == Reachability::Unreachable.as_str() => {
            format!(", gateway {gateway} (does not answer)")
        }
        gateway => format!(", gateway {gateway}"),
    };
    let addresses = match addresses.as_slice() {
        [] => "no address".to_owned(),
        addresses => addresses.join(" "),
    };
    format!("{addresses}{gateway}; {}", ports(&network.public_ports))
}

fn private(network: &Network) -> String {
    let address = match network.private_network.as_str() {
        "" => "no address",
        address => address,
    };
    format!("{address}; {}", ports(&network.private_ports))
}

fn ports(ports: &[String]) -> String {
    match ports {
        [] => "no ports".to_owned(),
        [port] => format!("port {port}"),
        ports => format!("ports {}", ports.join(", ")),
    }
}

fn name(host: &Host, lines: &mut Vec<Line>) {
    let Some(name) = &host.name else {
        return not_answering(host, "name", Daemon::Hostnamed, lines);
    };
    let (tone, key) = match name.hostname.as_str() {
        "" => (Tone::Warning, "none"),
        name => (Tone::Good, name),
    };
    lines.push(toned("name", tone, key, &name.reason));
    for refused in &name.refused {
        lines.push(line("", "refused", refused));
    }
    problems(&name.configuration_problems, lines);
}

fn nat(host: &Host, lines: &mut Vec<Line>) {
    let Some(nat) = &host.nat else {
        return not_answering(host, "nat", Daemon::Natd, lines);
    };
    let tone = match nat.state.parse() {
        Ok(NatState::Active) => Tone::Good,
        Ok(NatState::Waiting) => Tone::Warning,
        Ok(NatState::Degraded) | Err(_) => Tone::Bad,
    };
    lines.push(toned("nat", tone, &nat.state, &nat.reason));
    match nat.probe.parse() {
        Ok(ProbeState::Passed | ProbeState::Failed) => {
            let when = relative(host.taken_usec, nat.probe_usec);
            let text = format!("{when}: {}", nat.probe_result);
            lines.push(line("", "probe", text));
        }
        Ok(ProbeState::Off | ProbeState::Pending) | Err(_) => {
            lines.push(line("", "probe", &nat.probe));
        }
    }
    let leases = host.usage.machines.len();
    let (tracked, most) = host.usage.tracked_connections;
    let machines = format!("{leases} with a lease; {tracked} of {most} connections");
    lines.push(line("", "machines", machines));
    for (outside, address, link, inside, end) in &host.open_ports.list {
        let end = relative(host.taken_usec, *end);
        let text = format!("{outside} leads to port {inside} of {address} ({link}), ends {end}");
        lines.push(toned("", Tone::Warning, "open", text));
    }
    for drop in &nat.foreign_drops {
        lines.push(toned("", Tone::Bad, "dropped", drop));
    }
    for (resource, line) in &nat.shortages {
        let text = format!("of {resource}: {line}");
        lines.push(toned("", Tone::Warning, "short", &text));
    }
    for suspect in &nat.foreign_suspects {
        lines.push(toned("", Tone::Warning, "suspect", suspect));
    }
    problems(&nat.configuration_problems, lines);
}

fn agents(host: &Host, lines: &mut Vec<Line>) {
    let Some(manager) = &host.manager else {
        return not_answering(host, "agents", Daemon::Agentd, lines);
    };
    if host.agents.is_empty() {
        lines.push(toned("agents", Tone::Warning, "none", &manager.reason));
    }
    for (i, agent) in host.agents.iter().enumerate() {
        let heading = if i == 0 { "agents" } else { "" };
        let text = match agent.task_processes {
            0 => agent.instance.reason.clone(),
            1 => format!("building (1 process): {}", agent.instance.reason),
            n => format!("building ({n} processes): {}", agent.instance.reason),
        };
        let tone = tone(&agent.instance.state);
        lines.push(toned(heading, tone, &agent.id(), text));
    }
    problems(&manager.configuration_problems, lines);
}

/// Returns the tone for a state of an agent.
pub(crate) fn tone(state: &str) -> Tone {
    match state.parse() {
        Ok(InstanceState::Running) => Tone::Good,
        Ok(
            InstanceState::Waiting
            | InstanceState::Starting
            | InstanceState::Stopped
            | InstanceState::Draining
            | InstanceState::Drained,
        ) => Tone::Warning,
        Ok(InstanceState::Delayed | InstanceState::Invalid) | Err(_) => Tone::Bad,
    }
}

fn state(host: &Host, lines: &mut Vec<Line>) {
    let Some(volume) = &host.state_volume else {
        return;
    };
    let tone = if volume.fault { Tone::Bad } else { Tone::Good };
    let saved = match volume.saved_usec {
        0 => String::new(),
        saved => format!(", last {}", relative(host.taken_usec, saved)),
    };
    let text = format!("{}{saved}", volume.reason);
    lines.push(toned("state", tone, &volume.state, text));
    if volume.size > 0 {
        let (free, size) = (text::size(volume.free), text::size(volume.size));
        lines.push(line("", "free", format!("{free} of {size}")));
    }
    if !volume.warning.is_empty() {
        lines.push(toned("", Tone::Warning, "warning", &volume.warning));
    }
}

fn updates(host: &Host, lines: &mut Vec<Line>) {
    let choices = &host.choices;
    let mut found = Vec::new();
    let mut add = |tone, key: &str, text: &str| {
        if !text.is_empty() {
            let heading = if found.is_empty() { "updates" } else { "" };
            found.push(toned(heading, tone, key, text));
        }
    };
    add(Tone::Warning, "unknown", &choices.problem);
    add(
        Tone::Warning,
        "held",
        choices.hold.as_deref().unwrap_or_default(),
    );
    add(Tone::Weak, "pinned", &pinned(&choices.pinned));
    add(Tone::Weak, "added", &choices.added.join(", "));
    add(Tone::Weak, "removed", &choices.removed.join(", "));
    if !choices.not_kept.is_empty() {
        let text = format!("after this boot: {}", choices.not_kept);
        add(Tone::Warning, "not kept", &text);
    }
    lines.append(&mut found);
}

/// Returns the machines that stay at a revision.
pub(crate) fn pinned(pinned: &BTreeMap<String, u64>) -> String {
    let each = pinned.iter();
    let each = each.map(|(name, revision)| format!("{name} at revision {revision}"));
    each.collect::<Vec<_>>().join(", ")
}

fn ram_volume(host: &Host, lines: &mut Vec<Line>) {
    let Some(volume) = &host.ram_volume else {
        return;
    };
    let tone = if volume.fault { Tone::Bad } else { Tone::Good };
    let size = match volume.mib {
        0 => String::new(),
        mib => format!(", {}", text::size(mib << 20)),
    };
    let text = format!("machine volume {}: {}{size}", volume.volume, volume.reason);
    lines.push(toned("ram", tone, &volume.state, text));
}

fn system(host: &Host, lines: &mut Vec<Line>) {
    let clock = if host.clock_synchronised {
        "clock synchronised"
    } else {
        "clock not synchronised"
    };
    lines.push(toned(
        "system",
        Tone::Weak,
        &format!("buildos {}", host.version),
        format!("{}, {clock}", host.image),
    ));
    if let Some(trial) = &host.os_trial {
        let tone = match trial.state.as_str() {
            "proven" => Tone::Good,
            "trial" => Tone::Warning,
            _ => Tone::Bad,
        };
        let text = [trial.version.as_str(), trial.reason.as_str()];
        let text: Vec<_> = text.into_iter().filter(|part| !part.is_empty()).collect();
        lines.push(toned("", tone, &trial.state, text.join(": ")));
    }
    for key in &host.ssh_host_keys {
        let text = format!("{} {}", key.kind, key.fingerprint);
        lines.push(line("", "ssh key", text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::model::{Choices, OsTrial, RamVolume, StateVolume};
    use crate::snapshot::samples::{agent, ready, silent};

    #[test]
    fn screen_shows_network_name_nat_agents_and_system() {
        let mut host = ready();
        host.agents.push(agent(
            "bslave@x",
            "waiting",
            &[("program", "program /usr/bin/bslave is not installed")],
        ));
        host.agents[0].task_processes = 4;
        host.state_volume = Some(StateVolume {
            state: "full".into(),
            fault: true,
            reason: "cannot write /state/netd/state.json: No space left on device".into(),
            warning: "vda stays the state volume, although vda and vdb have the same label".into(),
            saved_usec: host.taken_usec - 60_000_000,
            size: 1 << 30,
            ..StateVolume::default()
        });
        host.choices = Choices {
            hold: Some("release week".into()),
            pinned: BTreeMap::from([("box".into(), 3), ("web".into(), 12)]),
            removed: vec!["old".into()],
            not_kept: "the state volume is full".into(),
            ..Choices::default()
        };
        host.ram_volume = Some(RamVolume {
            state: "used".into(),
            volume: "default".into(),
            mib: 8192,
            reason: "in RAM until the next boot".into(),
            ..RamVolume::default()
        });
        host.os_trial = Some(OsTrial {
            state: "trial".into(),
            version: "1.5".into(),
            reason: "buildosctl why ended with 15 (nat)".into(),
            ..OsTrial::default()
        });
        let network = host.network.as_mut().unwrap();
        network.configuration_problems = vec!["a.toml:1: unknown key \"privat\"".into()];
        assert_eq!(
            render(&host, Style::PLAIN),
            "\
network  online            br0 has 192.0.2.7/24 by eth0 from 192.0.2.1
         lease             from 192.0.2.1, ends in 59 min 0 s, renewal in 29 min 0 s
         br0               192.0.2.7/24, gateway 192.0.2.1; port eth0
         br1               172.23.0.1/16; port tap0
         dns               192.0.2.1
         mistake           a.toml:1: unknown key \"privat\"
name     build-adbeefb8da  build-adbeefb8da by the hardware address of the uplink
nat      active            172.23.0.0/16 on br1 goes out through br0
         probe             2 min 0 s ago: passed in 48 ms
         machines          1 with a lease; 7 of 65536 connections
agents   bbot@default      building (4 processes): running since 06:59
         bslave@x          waits: program /usr/bin/bslave is not installed
state    full              cannot write /state/netd/state.json: No space left on device, last 1 min 0 s ago
         free              0 B of 1.00 GiB
         warning           vda stays the state volume, although vda and vdb have the same label
updates  held              release week
         pinned            box at revision 3, web at revision 12
         removed           old
         not kept          after this boot: the state volume is full
ram      used              machine volume default: in RAM until the next boot, 8.00 GiB
system   buildos 0.1.0     Debian GNU/Linux 13 (trixie), clock synchronised
         trial             1.5: buildosctl why ended with 15 (nat)
         ssh key           ED25519 SHA256:Bbpk8cdSyWlh6jV9N5oJh4IzLGpaEqAPcSdqJYEsdLI
"
        );
    }

    #[test]
    fn silent_daemon_is_shown() {
        let text = render(&silent(), Style::PLAIN);
        assert!(
            text.contains("nat      unknown   buildos-natd does not answer: it is not running\n"),
            "{text}"
        );
    }

    #[test]
    fn columns_are_the_same_with_colour() {
        let plain = render(&ready(), Style::PLAIN);
        let coloured = render(
            &ready(),
            Style {
                colour: true,
                width: None,
            },
        );
        let mut stripped = String::new();
        for (i, part) in coloured.split('\x1b').enumerate() {
            stripped.push_str(if i == 0 {
                part
            } else {
                part.split_once('m').unwrap().1
            });
        }
        assert_eq!(stripped, plain);
    }
}
