//! `buildosctl metrics`: prints the host in the text format of Prometheus
//! (prometheus.io/docs/instrumenting/exposition_formats).

use std::fmt::Write as _;

use buildos_dbus_api::agent1::InstanceState;
use buildos_dbus_api::nat1::Resource;
use buildos_dbus_api::network1::{AddressOrigin, Reachability, State};
use buildos_dbus_api::update1::{Cause, MachineState, OsState};

use buildos_channel::Timestamp;
use buildos_updated::os_handover::files::TrialState;
use buildos_updated::state::Os;
use buildos_volumes::report::VolumeState;

use super::why::judge;
use crate::snapshot::model::{Agent, Daemon, Host};

/// Renders all metrics.
pub(crate) fn render(host: &Host) -> String {
    let mut out = Page::default();
    let version = [("version", host.version.as_str()), ("image", &host.image)];
    out.family(
        "buildos_info",
        "gauge",
        "Versions of buildos and of the system; always 1.",
    );
    out.sample("buildos_info", &version, 1);

    let verdict = judge(host);
    out.family(
        "buildos_why_code",
        "gauge",
        "Exit status of `buildosctl why` without a test of the controllers: 0 builds or ready, 3 out of service, 10 and above the failed check.",
    );
    out.sample("buildos_why_code", &[], verdict.exit_code().into());

    daemons(host, &mut out);
    out.family(
        "buildos_clock_synchronised",
        "gauge",
        "1 if the kernel reports a synchronised clock.",
    );
    out.sample(
        "buildos_clock_synchronised",
        &[],
        host.clock_synchronised.into(),
    );
    network(host, &mut out);
    nat(host, &mut out);
    agents(host, &mut out);
    agent_machines(host, &mut out);
    state_volume(host, &mut out);
    os_trial(host, &mut out);
    update(host, &mut out);
    out.0
}

fn update(host: &Host, out: &mut Page) {
    let Some(update) = &host.update else { return };
    let name = "buildos_update_fetched_bytes";
    out.family(
        name,
        "gauge",
        "Bytes of pieces that came in the last run of buildos-updated.",
    );
    out.sample(name, &[("from", "peers")], update.from_peers);
    out.sample(name, &[("from", "origin")], update.fetched);
    for (name, help, value) in [
        (
            "buildos_update_bad_peers",
            "Peers that sent wrong content in this run.",
            count(update.bad_peers.len()),
        ),
        (
            "buildos_update_problems",
            "Faults of the last run, refused channels among them.",
            count(update.problems.len()),
        ),
        (
            "buildos_update_held",
            "1 if an operator holds updates on this host.",
            (!update.held.is_empty()).into(),
        ),
    ] {
        out.family(name, "gauge", help);
        out.sample(name, &[], value);
    }
    let name = "buildos_update_channel_serial";
    out.family(
        name,
        "gauge",
        "Serial of the accepted channel; 0 without one.",
    );
    out.sample(name, &[("channel", &update.channel)], update.serial);
    let valid_until = update.valid_until.parse::<Timestamp>();
    for (name, help, seconds) in [
        (
            "buildos_update_channel_valid_until_timestamp_seconds",
            "End of the validity of the accepted channel.",
            valid_until.map_or(0, Timestamp::seconds),
        ),
        (
            "buildos_update_run_timestamp_seconds",
            "End of the last run of buildos-updated.",
            update.ended_usec / 1_000_000,
        ),
    ] {
        if seconds != 0 {
            out.family(name, "gauge", help);
            out.sample(name, &[], seconds);
        }
    }
    out.family(
        "buildos_update_machines",
        "gauge",
        "Machines of the channel and of the volume, by state.",
    );
    for state in MachineState::ALL {
        let machines = update.machines.iter();
        let number = machines.filter(|machine| machine.state == *state).count();
        let labels = [("state", state.as_str())];
        out.sample("buildos_update_machines", &labels, count(number));
    }
    os_update(&update.os, out);
}

fn os_update(os: &Os, out: &mut Page) {
    let name = "buildos_os_update_state";
    let help = "1 for the state of the update of the operating system, 0 for the others.";
    out.family(name, "gauge", help);
    let states = OsState::ALL.iter().map(|state| state.as_str());
    out.states(name, &[], states, os.state.as_str());
    let name = "buildos_os_update_held";
    out.family(
        name,
        "gauge",
        "1 for the cause that holds the update of the operating system, 0 for the others.",
    );
    let held = os.cause.filter(|_| os.state == OsState::Held);
    for cause in Cause::ALL {
        let labels = [("cause", cause.as_str())];
        out.sample(name, &labels, (held == Some(*cause)).into());
    }
    if os.since_usec != 0 {
        let name = "buildos_os_update_since_timestamp_seconds";
        let help = "Time of the last change of the state of the update of the operating system.";
        out.family(name, "gauge", help);
        out.sample(name, &[], os.since_usec / 1_000_000);
    }
}

fn os_trial(host: &Host, out: &mut Page) {
    let Some(trial) = &host.os_trial else {
        return;
    };
    let name = "buildos_os_trial";
    let help =
        "1 for the state of the trial of an operating system in this boot, 0 for the others.";
    out.family(name, "gauge", help);
    let states = TrialState::ALL.iter().map(|state| state.as_str());
    out.states(name, &[], states, &trial.state);
}

fn state_volume(host: &Host, out: &mut Page) {
    let Some(volume) = &host.state_volume else {
        return;
    };
    out.family(
        "buildos_state_volume",
        "gauge",
        "1 for the state of the state volume, 0 for the others.",
    );
    let states = VolumeState::ALL.iter().map(|state| state.as_str());
    out.states("buildos_state_volume", &[], states, &volume.state);
    for (name, help, value) in [
        (
            "buildos_state_volume_size_bytes",
            "Size of the state volume.",
            volume.size,
        ),
        (
            "buildos_state_volume_free_bytes",
            "Free bytes of the state volume.",
            volume.free,
        ),
        (
            "buildos_state_volume_saved_timestamp_seconds",
            "Time of the last saving on the state volume.",
            volume.saved_usec / 1_000_000,
        ),
    ] {
        if value != 0 || name.ends_with("free_bytes") {
            out.family(name, "gauge", help);
            out.sample(name, &[], value);
        }
    }
}

fn daemons(host: &Host, out: &mut Page) {
    out.family("buildos_up", "gauge", "1 if a daemon answers on the bus.");
    for daemon in [
        Daemon::Netd,
        Daemon::Hostnamed,
        Daemon::Natd,
        Daemon::Agentd,
    ] {
        let answers = !host.silent.contains_key(&daemon);
        out.sample("buildos_up", &[("daemon", daemon.unit())], answers.into());
    }
    out.family(
        "buildos_configuration_problems",
        "gauge",
        "Mistakes in a daemon's configuration.",
    );
    let netd = host.network.as_ref().map(|n| &n.configuration_problems);
    let hostnamed = host.name.as_ref().map(|n| &n.configuration_problems);
    let natd = host.nat.as_ref().map(|n| &n.configuration_problems);
    let agentd = host.manager.as_ref().map(|m| &m.configuration_problems);
    for (daemon, problems) in [
        (Daemon::Netd, netd),
        (Daemon::Hostnamed, hostnamed),
        (Daemon::Natd, natd),
        (Daemon::Agentd, agentd),
    ] {
        let Some(problems) = problems else { continue };
        let labels = [("daemon", daemon.unit())];
        out.sample(
            "buildos_configuration_problems",
            &labels,
            count(problems.len()),
        );
    }
}

fn network(host: &Host, out: &mut Page) {
    let Some(network) = &host.network else { return };
    out.family(
        "buildos_network_state",
        "gauge",
        "1 for the current state of the network, 0 for the others.",
    );
    let states = State::ALL.iter().map(|state| state.as_str());
    out.states("buildos_network_state", &[], states, &network.state);
    if !network.gateway_reachability.is_empty() {
        out.family(
            "buildos_gateway_reachability",
            "gauge",
            "1 for what ARP shows of the gateway, 0 for the others.",
        );
        let states = Reachability::ALL.iter().map(|state| state.as_str());
        let current = &network.gateway_reachability;
        out.states("buildos_gateway_reachability", &[], states, current);
    }
    if !network.address_origin.is_empty() {
        out.family(
            "buildos_address_origin",
            "gauge",
            "1 for the origin of the address of br0, 0 for the others.",
        );
        let origins = AddressOrigin::ALL.iter().map(|origin| origin.as_str());
        let current = &network.address_origin;
        out.states("buildos_address_origin", &[], origins, current);
    }
    out.family(
        "buildos_lease_provisional",
        "gauge",
        "1 if a better lease on another NIC would replace the lease of br0.",
    );
    out.sample("buildos_lease_provisional", &[], network.provisional.into());
    out.family("buildos_link_carrier", "gauge", "1 if a link has carrier.");
    for link in &host.links {
        let labels = [("link", link.name.as_str()), ("role", &link.role)];
        out.sample("buildos_link_carrier", &labels, link.carrier.into());
    }
    out.family(
        "buildos_link_neighbour_info",
        "gauge",
        "Device and port at the other end of a cable by LLDP, with the VLAN of frames without a tag; always 1.",
    );
    let links = host.links.iter();
    for link in links.filter(|link| !link.neighbour_system.is_empty()) {
        let vlan = link.neighbour_untagged_vlan.to_string();
        let labels = [
            ("link", link.name.as_str()),
            ("system", &link.neighbour_system),
            ("port", &link.neighbour_port),
            ("vlan", &vlan),
        ];
        out.sample("buildos_link_neighbour_info", &labels, 1);
    }
    for (name, help, usec) in [
        (
            "buildos_lease_acquired_timestamp_seconds",
            "Time of the last acknowledgement of the lease on br0.",
            network.lease.acquired_usec,
        ),
        (
            "buildos_lease_expires_timestamp_seconds",
            "End of the lease on br0.",
            network.lease.expires_usec,
        ),
    ] {
        if usec != 0 {
            out.family(name, "gauge", help);
            out.sample(name, &[], usec / 1_000_000);
        }
    }
}

fn nat(host: &Host, out: &mut Page) {
    let Some(nat) = &host.nat else { return };
    out.family(
        "buildos_nat_ready",
        "gauge",
        "1 if machines on br1 have NAT, DHCP and DNS.",
    );
    out.sample("buildos_nat_ready", &[], nat.ready.into());
    if nat.probe_usec != 0 {
        out.family(
            "buildos_probe_passed",
            "gauge",
            "1 if the last probe passed.",
        );
        out.sample("buildos_probe_passed", &[], (nat.probe == "passed").into());
        out.family(
            "buildos_probe_timestamp_seconds",
            "gauge",
            "End of the last probe.",
        );
        out.sample(
            "buildos_probe_timestamp_seconds",
            &[],
            nat.probe_usec / 1_000_000,
        );
    }
    out.family(
        "buildos_nat_shortage",
        "gauge",
        "1 if machines have nearly used up a resource, or one has reached its share.",
    );
    for resource in Resource::ALL {
        let is_short = nat.shortages.contains_key(resource.as_str());
        let labels = [("resource", resource.as_str())];
        out.sample("buildos_nat_shortage", &labels, is_short.into());
    }
    out.family("buildos_machines", "gauge", "Machines on br1 with a lease.");
    out.sample("buildos_machines", &[], count(host.usage.machines.len()));
    out.family(
        "buildos_open_ports",
        "gauge",
        "Ports of machines that are open on br0.",
    );
    out.sample("buildos_open_ports", &[], count(host.open_ports.list.len()));
    let (tracked, most) = host.usage.tracked_connections;
    out.family(
        "buildos_tracked_connections",
        "gauge",
        "Connections that the kernel tracks now.",
    );
    out.sample("buildos_tracked_connections", &[], tracked.into());
    out.family(
        "buildos_tracked_connections_limit",
        "gauge",
        "Largest number of connections that the kernel can track.",
    );
    out.sample("buildos_tracked_connections_limit", &[], most.into());
    out.family(
        "buildos_nat_packets_total",
        "counter",
        "Packets by treatment since natd installed its table.",
    );
    for (treatment, (packets, _)) in &host.usage.counters {
        out.sample(
            "buildos_nat_packets_total",
            &[("what", treatment)],
            *packets,
        );
    }
    out.family(
        "buildos_nat_bytes_total",
        "counter",
        "Bytes by treatment since natd installed its table.",
    );
    for (treatment, (_, bytes)) in &host.usage.counters {
        out.sample("buildos_nat_bytes_total", &[("what", treatment)], *bytes);
    }
}

fn agents(host: &Host, out: &mut Page) {
    let ids: Vec<String> = host.agents.iter().map(Agent::id).collect();
    let each = || host.agents.iter().zip(&ids);
    out.family(
        "buildos_agent_state",
        "gauge",
        "1 for the current state of an agent, 0 for the others.",
    );
    for (agent, id) in each() {
        let states = InstanceState::ALL.iter().map(|state| state.as_str());
        let current = &agent.instance.state;
        out.states("buildos_agent_state", &[("agent", id)], states, current);
    }
    out.family(
        "buildos_agent_task_processes",
        "gauge",
        "Processes of an agent apart from its main process.",
    );
    for (agent, id) in each() {
        let processes = count(agent.task_processes);
        out.sample("buildos_agent_task_processes", &[("agent", id)], processes);
    }
    out.family(
        "buildos_agent_restarts_total",
        "counter",
        "Restarts of an agent after it ended by itself.",
    );
    for (agent, id) in each() {
        let restarts = agent.instance.restarts.into();
        out.sample("buildos_agent_restarts_total", &[("agent", id)], restarts);
    }
    out.family(
        "buildos_agent_crash_loop",
        "gauge",
        "1 if an agent ends repeatedly.",
    );
    for (agent, id) in each() {
        let looping = agent.instance.crash_loop.into();
        out.sample("buildos_agent_crash_loop", &[("agent", id)], looping);
    }
}

/// Metrics of machines that have ended: name, kind, help, key in `machine_totals`, and the number
/// that is one unit.
const TOTALS: [(&str, &str, &str, &str, u64); 6] = [
    (
        "buildos_agent_machines_ended_total",
        "counter",
        "Virtual machines of an agent that have ended since agentd was started.",
        "ended",
        1,
    ),
    (
        "buildos_agent_machine_seconds_total",
        "counter",
        "Time from start to end of these machines.",
        "time_usec",
        1_000_000,
    ),
    (
        "buildos_agent_machine_cpu_seconds_total",
        "counter",
        "CPU time of these machines.",
        "cpu_usec",
        1_000_000,
    ),
    (
        "buildos_agent_machine_memory_peak_bytes",
        "gauge",
        "Most RAM that one of these machines used.",
        "memory_peak",
        1,
    ),
    (
        "buildos_agent_machine_received_bytes_total",
        "counter",
        "Bytes that these machines received.",
        "received",
        1,
    ),
    (
        "buildos_agent_machine_sent_bytes_total",
        "counter",
        "Bytes that these machines sent.",
        "sent",
        1,
    ),
];

fn agent_machines(host: &Host, out: &mut Page) {
    let ids: Vec<String> = host.agents.iter().map(Agent::id).collect();
    let each = || host.agents.iter().zip(&ids);
    out.family(
        "buildos_agent_machines",
        "gauge",
        "Virtual machines of an agent: those that run, and suspended ones.",
    );
    for (agent, id) in each() {
        let machines = &agent.instance.machines;
        let suspended = machines.iter().filter(|machine| machine.3 != 0).count();
        for (state, number) in [
            ("running", machines.len() - suspended),
            ("suspended", suspended),
        ] {
            let labels = [("agent", id.as_str()), ("state", state)];
            out.sample("buildos_agent_machines", &labels, count(number));
        }
    }
    for (name, kind, help, key, unit) in TOTALS {
        out.family(name, kind, help);
        for (agent, id) in each() {
            let total = agent.instance.machine_totals.get(key).copied();
            out.sample(name, &[("agent", id)], total.unwrap_or(0) / unit);
        }
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// The text, to which families and samples are appended.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Appends a sample of each state, with label `state`: 1 for the current one, 0 for the
    /// others.
    fn states<'a>(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        all: impl Iterator<Item = &'a str>,
        current: &str,
    ) {
        for state in all {
            let labels = [labels, &[("state", state)]].concat();
            self.sample(name, &labels, (state == current).into());
        }
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<_> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
            .collect();
        let labels = match labels.as_slice() {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

/// Escapes the value of a label.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::model::{OsTrial, StateVolume};
    use crate::snapshot::samples::ready;
    use buildos_updated::state::Updated;
    use std::collections::BTreeSet;

    #[test]
    fn page_has_a_sample_of_each_part() {
        let page = render(&ready());
        for line in [
            "buildos_info{version=\"0.1.0\",image=\"Debian GNU/Linux 13 (trixie)\"} 1",
            "buildos_why_code 0",
            "buildos_up{daemon=\"buildos-natd\"} 1",
            "buildos_network_state{state=\"online\"} 1",
            "buildos_network_state{state=\"no-carrier\"} 0",
            "buildos_link_carrier{link=\"eth1\",role=\"candidate\"} 0",
            "buildos_link_neighbour_info{link=\"eth0\",system=\"sw1\",port=\"Gi1/0/12\",vlan=\"42\"} 1",
            "buildos_nat_packets_total{what=\"new connections\"} 5",
            "buildos_agent_state{agent=\"bbot@default\",state=\"running\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }

    #[test]
    fn page_has_use_of_machines() {
        let mut host = ready();
        let instance = &mut host.agents[0].instance;
        instance.machines = vec![(7, vec![], 1, 0), (8, vec![], 1, 5), (9, vec![], 1, 5)];
        let totals = [("ended", 3), ("cpu_usec", 7_900_000), ("memory_peak", 99)];
        instance.machine_totals = totals.map(|(key, total)| (key.to_owned(), total)).into();
        let page = render(&host);
        for line in [
            "buildos_agent_machines{agent=\"bbot@default\",state=\"running\"} 1",
            "buildos_agent_machines{agent=\"bbot@default\",state=\"suspended\"} 2",
            "buildos_agent_machines_ended_total{agent=\"bbot@default\"} 3",
            "buildos_agent_machine_cpu_seconds_total{agent=\"bbot@default\"} 7",
            "buildos_agent_machine_memory_peak_bytes{agent=\"bbot@default\"} 99",
            "buildos_agent_machine_seconds_total{agent=\"bbot@default\"} 0",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }

    #[test]
    fn page_has_state_volume() {
        let mut host = ready();
        assert!(!render(&host).contains("state_volume"));
        host.state_volume = Some(StateVolume {
            state: "full".into(),
            size: 7,
            saved_usec: 5_000_000,
            ..StateVolume::default()
        });
        let page = render(&host);
        for line in [
            "buildos_state_volume{state=\"full\"} 1",
            "buildos_state_volume{state=\"active\"} 0",
            "buildos_state_volume_size_bytes 7",
            "buildos_state_volume_free_bytes 0",
            "buildos_state_volume_saved_timestamp_seconds 5",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }

    #[test]
    fn page_has_trial_of_operating_system() {
        let mut host = ready();
        assert!(!render(&host).contains("os_trial"));
        host.os_trial = Some(OsTrial {
            state: "returned".into(),
            ..OsTrial::default()
        });
        let page = render(&host);
        for line in [
            "buildos_os_trial{state=\"returned\"} 1",
            "buildos_os_trial{state=\"proven\"} 0",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }

    #[test]
    fn page_has_what_came_from_peers() {
        let mut host = ready();
        host.update = Some(Updated {
            from_peers: 7,
            bad_peers: vec!["192.0.2.7: x".into()],
            ..Updated::default()
        });
        let page = render(&host);
        for line in [
            "buildos_update_fetched_bytes{from=\"peers\"} 7",
            "buildos_update_fetched_bytes{from=\"origin\"} 0",
            "buildos_update_bad_peers 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }

    #[test]
    fn page_has_update_of_operating_system() {
        let mut host = ready();
        host.update = Some(updated());
        let page = render(&host);
        for line in [
            "buildos_update_problems 1",
            "buildos_update_held 0",
            "buildos_update_channel_serial{channel=\"stable\"} 7",
            "buildos_update_channel_valid_until_timestamp_seconds 1893456000",
            "buildos_update_run_timestamp_seconds 9",
            "buildos_update_machines{state=\"waiting\"} 1",
            "buildos_update_machines{state=\"current\"} 0",
            "buildos_os_update_state{state=\"held\"} 1",
            "buildos_os_update_state{state=\"bad\"} 0",
            "buildos_os_update_held{cause=\"window\"} 1",
            "buildos_os_update_held{cause=\"fault\"} 0",
            "buildos_os_update_since_timestamp_seconds 8",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        host.update.as_mut().unwrap().os.state = OsState::Draining;
        // The cause belongs to the previous hold.
        assert!(render(&host).contains("buildos_os_update_held{cause=\"window\"} 0\n"));
    }

    /// A state with a value for each metric.
    fn updated() -> Updated {
        Updated {
            problems: vec!["x".into()],
            channel: "stable".into(),
            serial: 7,
            valid_until: "2030-01-01T00:00:00Z".into(),
            ended_usec: 9_000_000,
            machines: vec![buildos_dbus_api::update1::Machine::default()],
            os: Os {
                state: OsState::Held,
                cause: Some(Cause::Window),
                since_usec: 8_000_000,
                ..Os::default()
            },
            ..Updated::default()
        }
    }

    #[test]
    fn samples_follow_metric_family() {
        let mut host = ready();
        host.update = Some(updated());
        host.state_volume = Some(StateVolume::default());
        let page = render(&host);
        let mut family = "";
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                assert_eq!(line.split(['{', ' ']).next().unwrap(), family);
            }
        }
    }

    #[test]
    fn dashboard_and_alerts_use_only_existing_metrics() {
        let mut host = ready();
        host.update = Some(updated());
        host.os_trial = Some(OsTrial::default());
        host.state_volume = Some(StateVolume {
            saved_usec: 5_000_000,
            size: 1,
            ..StateVolume::default()
        });
        let page = render(&host);
        let known: BTreeSet<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let dashboard = include_str!("../../../../docs/monitoring/grafana-dashboard.json");
        let alerts = include_str!("../../../../docs/monitoring/prometheus-alerts.yml");
        serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
        let mut named = BTreeSet::new();
        for text in [dashboard, alerts] {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            named.extend(words.filter(|word| word.starts_with("buildos_")));
        }
        assert!(named.len() > 10, "{named:?}");
        let missing: Vec<_> = named.difference(&known).collect();
        assert!(missing.is_empty(), "{missing:?} of {known:?}");
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
