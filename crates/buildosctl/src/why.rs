//! Why this host does not build.
//!
//! What a build needs is a chain: a link of it is of no use while one before it
//! is broken, so the first that is broken is the answer. [`judge`] walks it over
//! a [`Host`], which is a value; nothing is asked here. An agent that runs in
//! spite of a broken link (a slave on br0 without NAT) makes that link a remark.

use buildos_dbus_api::agent1::{InstanceState, Need};
use buildos_dbus_api::network1::{LinkRole, State as NetworkState};
use serde::Serialize;

use crate::host::{Agent, Daemon, Host, Nat, Network, SCHEMA};
use crate::style::{Style, Tone, relative};

/// A link of the chain. The numbers are exit codes (buildosctl(1)); they stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    /// The four daemons answer.
    Daemons = 10,
    /// A NIC has carrier.
    Carrier = 11,
    /// br0 has a lease.
    Lease = 12,
    /// br0 and br1 are as they should be.
    Bridges = 13,
    /// The host has its name.
    Name = 14,
    /// Machines on br1 have NAT, DHCP and DNS, and a probe has passed.
    Nat = 15,
    /// The clock is right.
    Clock = 16,
    /// There are agents and they have what they need.
    Needs = 17,
    /// An agent runs.
    Agent = 18,
    /// A controller can be reached.
    Controllers = 19,
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Daemons => "daemons",
            Self::Carrier => "carrier",
            Self::Lease => "lease",
            Self::Bridges => "bridges",
            Self::Name => "name",
            Self::Nat => "nat",
            Self::Clock => "clock",
            Self::Needs => "needs",
            Self::Agent => "agent",
            Self::Controllers => "controllers",
        }
    }
}

/// Looks at one link.
type Look = fn(&Host) -> Link;

/// The chain.
const CHAIN: [(Step, Look); 10] = [
    (Step::Daemons, daemons),
    (Step::Carrier, carrier),
    (Step::Lease, lease),
    (Step::Bridges, bridges),
    (Step::Name, name),
    (Step::Nat, nat),
    (Step::Clock, clock),
    (Step::Needs, needs),
    (Step::Agent, agent),
    (Step::Controllers, controllers),
];

/// How a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    /// It holds; by what.
    Holds(String),
    /// It does not, but no agent needs it now.
    Remark(String),
    /// It does not; what is wrong and what to do.
    Broken(String, Vec<String>),
    /// It does not, because somebody wants it so.
    Out(String, Vec<String>),
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Tasks run.
    Building,
    /// Nothing is broken; the controllers have no task for it.
    Ready,
    /// Somebody has stopped or drained the agents.
    OutOfService,
    /// A link is broken.
    Broken,
}

/// How one link was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mark {
    Ok,
    Remark,
    Broken,
    NotLookedAt,
}

/// One link, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    step: Step,
    mark: Mark,
    what: String,
}

/// Why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    /// As [`Host::schema`].
    schema: u32,
    outcome: Outcome,
    /// The link that is broken.
    step: Option<Step>,
    /// The answer in one sentence.
    answer: String,
    /// Every link in order.
    chain: Vec<Finding>,
    /// What to do, a line each: a command, or a sentence.
    advice: Vec<String>,
}

impl Verdict {
    /// 0: it builds or could; 3: out of service; else the number of the broken link.
    pub(crate) fn exit_code(&self) -> u8 {
        match (self.outcome, self.step) {
            (Outcome::Building | Outcome::Ready, _) => 0,
            (Outcome::OutOfService, _) => 3,
            (Outcome::Broken, Some(step)) => step as u8,
            (Outcome::Broken, None) => 1,
        }
    }

    /// For people.
    pub(crate) fn render(&self, style: Style) -> String {
        let (tone, opening) = match self.outcome {
            Outcome::Building => (Tone::Good, "This host is building"),
            Outcome::Ready => (Tone::Good, "This host is ready and waits for tasks"),
            Outcome::OutOfService => (Tone::Warning, "This host is out of service"),
            Outcome::Broken => (Tone::Bad, "This host cannot build"),
        };
        let mut out = format!("{}: {}\n\n", style.paint(tone, opening), self.answer);
        for finding in &self.chain {
            let (tone, mark) = match finding.mark {
                Mark::Ok => (Tone::Good, "ok"),
                Mark::Remark => (Tone::Warning, "note"),
                Mark::Broken if self.outcome == Outcome::OutOfService => (Tone::Warning, "out"),
                Mark::Broken => (Tone::Bad, "FAIL"),
                Mark::NotLookedAt => (Tone::Weak, "-"),
            };
            let padded = format!("{mark:<4}");
            let line = format!(
                "  {} {:<11} {}",
                style.paint(tone, &padded),
                finding.step.as_str(),
                finding.what
            );
            out.push_str(line.trim_end());
            out.push('\n');
        }
        if !self.advice.is_empty() {
            out.push_str(&format!("\n{}\n", style.paint(Tone::Strong, "What to do:")));
            for line in &self.advice {
                out.push_str(&format!("  {line}\n"));
            }
        }
        out
    }
}

/// Walks the chain.
pub(crate) fn judge(host: &Host) -> Verdict {
    let building = host.agents.iter().filter(|agent| is_building(agent));
    let building: Vec<_> = building
        .map(|agent| {
            let processes = agent.task_processes;
            let plural = if processes == 1 { "" } else { "es" };
            format!("{} with {processes} process{plural} of tasks", agent.id())
        })
        .collect();
    let mut verdict = Verdict {
        schema: SCHEMA,
        outcome: Outcome::Ready,
        step: None,
        answer: String::new(),
        chain: Vec::new(),
        advice: Vec::new(),
    };
    for (step, look) in CHAIN {
        let stopped = verdict.step.is_some();
        let (mark, what) = if stopped {
            (Mark::NotLookedAt, String::new())
        } else {
            match look(host) {
                Link::Holds(what) => (Mark::Ok, what),
                Link::Remark(what) => (Mark::Remark, what),
                // Tasks run: whatever is wrong, it is not why nothing is built.
                Link::Broken(what, _) | Link::Out(what, _) if !building.is_empty() => {
                    (Mark::Remark, what)
                }
                Link::Broken(what, advice) => {
                    verdict.break_at(step, Outcome::Broken, &what, advice);
                    (Mark::Broken, what)
                }
                Link::Out(what, advice) => {
                    verdict.break_at(step, Outcome::OutOfService, &what, advice);
                    (Mark::Broken, what)
                }
            }
        };
        verdict.chain.push(Finding { step, mark, what });
    }
    if !building.is_empty() {
        verdict.outcome = Outcome::Building;
        verdict.answer = building.join(", ");
    } else if verdict.step.is_none() {
        verdict.answer = running(host).join(", ") + " asks for work and gets none";
        verdict.advice.push(
            "Look at the controllers: whether they have tasks for the machines and toolchains of this host, and what they say of it."
                .to_owned(),
        );
        verdict
            .advice
            .push("journalctl -b -u 'buildos-bbot@*' -u 'buildos-bslave@*'".to_owned());
    }
    verdict
}

impl Verdict {
    fn break_at(&mut self, step: Step, outcome: Outcome, what: &str, advice: Vec<String>) {
        self.step = Some(step);
        self.outcome = outcome;
        self.answer = what.to_owned();
        self.advice = advice;
    }
}

fn daemons(host: &Host) -> Link {
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
fn with_network(host: &Host, look: impl FnOnce(&Network) -> Link) -> Link {
    match &host.network {
        Some(network) => look(network),
        None => silent(host, Daemon::Netd),
    }
}

fn silent(host: &Host, daemon: Daemon) -> Link {
    let why = host.silent.get(&daemon).map_or("", String::as_str);
    Link::Broken(
        format!("not known, as {} does not answer: {why}", daemon.unit()),
        vec![format!("systemctl status {}", daemon.unit())],
    )
}

fn carrier(host: &Host) -> Link {
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

fn lease(host: &Host) -> Link {
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

fn bridges(host: &Host) -> Link {
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

fn name(host: &Host) -> Link {
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

fn nat(host: &Host) -> Link {
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

fn nat_advice(nat: &Nat) -> Vec<String> {
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

fn clock(host: &Host) -> Link {
    let what = "not synchronised by a time server";
    if !host.agents.iter().any(|agent| lacks(agent, Need::Clock)) {
        return if host.clock_synchronised {
            Link::Holds("synchronised".to_owned())
        } else {
            Link::Remark(what.to_owned())
        };
    }
    Link::Broken(
        what.to_owned(),
        vec![
            "timedatectl timesync-status (or what the NTP client in use has for that)".to_owned(),
            "Time servers come by DHCP (option 42) or from timesyncd.conf(5); UDP port 123 must get out."
                .to_owned(),
            "Agents wait for it only so long: clock_deadline_s in buildos-agentd.conf(5)."
                .to_owned(),
        ],
    )
}

fn needs(host: &Host) -> Link {
    if host.manager.is_none() {
        return silent(host, Daemon::Agentd);
    }
    if host.agents.is_empty() {
        return Link::Broken(
            "no agents are configured".to_owned(),
            vec![
                "Name one in /etc/buildos/agentd.conf.d/10-agents.toml (buildos-agentd.conf(5)):"
                    .to_owned(),
                "[bbot.default]".to_owned(),
                "controllers = [\"https://ci.example.com/\"]".to_owned(),
                "or on the kernel command line: buildos.agentd.bbot.default.controllers=URL"
                    .to_owned(),
            ],
        );
    }
    let waiting: Vec<&Agent> = host
        .agents
        .iter()
        .filter(|agent| {
            matches!(
                state(agent),
                Some(InstanceState::Waiting | InstanceState::Invalid)
            )
        })
        .collect();
    if waiting.is_empty() {
        return Link::Holds("met".to_owned());
    }
    let what: Vec<_> = waiting.iter().map(|agent| lacking(agent)).collect();
    let what = what.join("; ");
    if waiting.len() < host.agents.len() {
        return Link::Remark(what);
    }
    let mut advice: Vec<String> = Vec::new();
    for (word, _) in waiting.iter().flat_map(|agent| &agent.instance.needs) {
        let line = need_advice(word);
        if !advice.iter().any(|known| known == line) {
            advice.push(line.to_owned());
        }
    }
    advice.push("buildosctl agents".to_owned());
    Link::Broken(what, advice)
}

/// What an agent waits for, all of it.
fn lacking(agent: &Agent) -> String {
    let needs: Vec<_> = agent
        .instance
        .needs
        .iter()
        .map(|(_, what)| what.as_str())
        .collect();
    match needs.as_slice() {
        [] => format!("{}: {}", agent.id(), agent.instance.reason),
        needs => format!("{}: {}", agent.id(), needs.join(", ")),
    }
}

fn need_advice(word: &str) -> &'static str {
    match word.parse::<Need>() {
        Ok(Need::Configuration) => "Mend its configuration: buildos-agentd --check",
        Ok(Need::Program) => {
            "Install the program: it comes with the image (image/build --package), or set `program`."
        }
        Ok(Need::Credentials) => {
            "Put the credential where systemd looks for it: systemd-creds(1), /etc/credstore."
        }
        Ok(Need::Kvm) => {
            "Switch virtualization on in the firmware (VT-x, AMD-V), or set kvm = \"waived\"."
        }
        Ok(Need::Memory) => {
            "Let its tasks have less RAM (ram_mib, instance_max), or the host more."
        }
        Ok(Need::Network | Need::Hostname | Need::PrivateNetwork | Need::Clock) | Err(_) => {
            "journalctl -b -x -u buildos-agentd"
        }
    }
}

fn agent(host: &Host) -> Link {
    let running = running(host);
    let mut others = Vec::new();
    let mut advice: Vec<String> = Vec::new();
    let mut out = true;
    for agent in &host.agents {
        let (id, instance) = (agent.id(), &agent.instance);
        let last = match instance.last_exit.as_str() {
            "" => String::new(),
            exit => format!(" (last: {exit})"),
        };
        match state(agent) {
            Some(InstanceState::Running | InstanceState::Waiting | InstanceState::Invalid) => {}
            Some(InstanceState::Stopped) => {
                others.push(format!("{id} was stopped by somebody"));
                advice.push(format!("systemctl start {}", instance.unit));
            }
            Some(InstanceState::Drained | InstanceState::Draining) => {
                others.push(format!("{id} is {}", instance.state));
                advice.push(format!("buildosctl resume {id}"));
            }
            Some(InstanceState::Starting) => {
                out = false;
                others.push(format!("{id} is being started"));
                advice.push(format!("systemctl status {}", instance.unit));
            }
            Some(InstanceState::Delayed) | None => {
                out = false;
                let again = match instance.next_start_usec {
                    0 => String::new(),
                    next => format!(", starts again {}", relative(host.taken_usec, next)),
                };
                let how = if instance.crash_loop {
                    "ends again and again"
                } else {
                    "has ended"
                };
                others.push(format!("{id} {how}{last}{again}"));
                advice.push(format!("journalctl -b -n 50 -u {}", instance.unit));
            }
        }
    }
    match (running.is_empty(), others.is_empty()) {
        (false, true) => Link::Holds(format!("{} runs", running.join(", "))),
        (false, false) => Link::Remark(format!(
            "{} runs; {}",
            running.join(", "),
            others.join("; ")
        )),
        // Some wait, which the link before has told of.
        (true, true) => Link::Broken("no agent runs".to_owned(), vec!["buildosctl agents".into()]),
        (true, false) if out => Link::Out(others.join("; "), advice),
        (true, false) => Link::Broken(others.join("; "), advice),
    }
}

fn controllers(host: &Host) -> Link {
    let tried = host
        .agents
        .iter()
        .filter(|agent| state(agent) == Some(InstanceState::Running))
        .flat_map(|agent| &agent.controllers)
        .filter_map(|c| c.failure.as_ref().map(|failure| (c.url.as_str(), failure)));
    let (reached, missed): (Vec<_>, Vec<_>) = tried.partition(|(_, failure)| failure.is_empty());
    let missing: Vec<_> = missed
        .iter()
        .map(|(url, why)| format!("{url}: {why}"))
        .collect();
    let there: Vec<_> = reached.iter().map(|(url, _)| *url).collect();
    match (there.is_empty(), missing.is_empty()) {
        (true, true) => Link::Holds("none to be tried".to_owned()),
        (false, true) => Link::Holds(format!("{} can be reached", there.join(", "))),
        (false, false) => Link::Remark(format!("cannot be reached: {}", missing.join("; "))),
        (true, false) => Link::Broken(
            format!("no controller can be reached: {}", missing.join("; ")),
            vec![
                "Is the URL right, is the controller up, does a firewall let the host through?"
                    .to_owned(),
                "cat /etc/resolv.conf; ip route".to_owned(),
                "The agent goes on asking by itself.".to_owned(),
            ],
        ),
    }
}

/// Whether nothing is built without it: an agent lacks it, or there is no agent
/// that tells.
fn is_needed(host: &Host, need: Need) -> bool {
    host.agents.is_empty() || host.agents.iter().any(|agent| lacks(agent, need))
}

fn lacks(agent: &Agent, need: Need) -> bool {
    state(agent) == Some(InstanceState::Waiting)
        && agent
            .instance
            .needs
            .iter()
            .any(|(word, _)| word == need.as_str())
}

fn state(agent: &Agent) -> Option<InstanceState> {
    agent.instance.state.parse().ok()
}

fn is_building(agent: &Agent) -> bool {
    let up = matches!(
        state(agent),
        Some(InstanceState::Running | InstanceState::Draining)
    );
    up && agent.task_processes > 0
}

fn running(host: &Host) -> Vec<String> {
    let up = host
        .agents
        .iter()
        .filter(|agent| state(agent) == Some(InstanceState::Running));
    up.map(Agent::id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::samples::{self, NOW, agent, ready};
    use crate::host::{Manager, Naming};

    type Change = fn(&mut Host);

    /// The answer for a host that is ready but for that.
    fn after(change: Change) -> Verdict {
        let mut host = ready();
        change(&mut host);
        judge(&host)
    }

    #[test]
    fn a_host_without_a_fault_is_ready() {
        let verdict = after(|_| {});
        assert_eq!(verdict.outcome, Outcome::Ready);
        assert_eq!(verdict.exit_code(), 0);
        assert!(verdict.chain.iter().all(|f| f.mark == Mark::Ok));
        assert_eq!(verdict.answer, "bbot@default asks for work and gets none");
    }

    #[test]
    fn a_host_whose_agent_has_tasks_builds_whatever_else_is_wrong() {
        let verdict = after(|host| {
            host.agents[0].task_processes = 3;
            host.nat = None;
            host.silent.insert(Daemon::Natd, "it is not running".into());
        });
        assert_eq!(verdict.outcome, Outcome::Building);
        assert_eq!(verdict.exit_code(), 0);
        assert_eq!(verdict.answer, "bbot@default with 3 processes of tasks");
        assert!(verdict.chain.iter().any(|f| f.mark == Mark::Remark));
        assert!(verdict.chain.iter().all(|f| f.mark != Mark::Broken));
    }

    /// Every way in which a link breaks: what is done to the host, the link, and
    /// what the answer and the advice name.
    const FAULTS: [(&str, Change, Step, &str, &str); 27] = [
        (
            "silent daemon",
            |host| {
                host.nat = None;
                host.silent.insert(Daemon::Natd, "it is not running".into());
            },
            Step::Daemons,
            "buildos-natd does not answer: it is not running",
            "systemctl status buildos-natd",
        ),
        (
            "no NIC",
            |host| {
                dark(host, "no Ethernet NIC");
                host.links.clear();
            },
            Step::Carrier,
            "no Ethernet NIC",
            "driver is missing",
        ),
        (
            "no carrier",
            |host| dark(host, "no carrier on eth0, eth1"),
            Step::Carrier,
            "no carrier on eth0, eth1",
            "Plug in a cable",
        ),
        (
            "carrier lost",
            |host| {
                let network = host.network.as_mut().unwrap();
                network.state = "carrier-lost".into();
                network.online = false;
                network.reason = "no carrier on eth0; br0 keeps 192.0.2.7/24".into();
            },
            Step::Carrier,
            "br0 keeps 192.0.2.7/24",
            "Plug in a cable",
        ),
        (
            "no lease",
            |host| {
                let network = host.network.as_mut().unwrap();
                network.state = "acquiring".into();
                network.online = false;
                network.address.clear();
                network.reason = "no lease yet; eth0: no server has answered".into();
            },
            Step::Lease,
            "no server has answered",
            "DHCP server",
        ),
        (
            "uplink not in br0",
            |host| host.network.as_mut().unwrap().public_ports.clear(),
            Step::Bridges,
            "eth0 is not a port of br0",
            "ip -d address show br0",
        ),
        (
            "br1 without address",
            |host| host.network.as_mut().unwrap().private_network.clear(),
            Step::Bridges,
            "br1 has no address",
            "ip -d address show br0",
        ),
        (
            "no name",
            |host| {
                host.name = Some(Naming {
                    source: "none".into(),
                    reason: "systemd-hostnamed does not answer".into(),
                    ..Naming::default()
                });
            },
            Step::Name,
            "systemd-hostnamed does not answer",
            "buildos.hostname=NAME",
        ),
        (
            "no table",
            |host| nat_fault(host, |nat| nat.table_installed = false),
            Step::Nat,
            "it does not work",
            "lsmod | grep nf_tables",
        ),
        (
            "foreign table",
            |host| nat_fault(host, |nat| nat.foreign_drops.push("FORWARD".into())),
            Step::Nat,
            "it does not work",
            "nft list ruleset",
        ),
        (
            "no dnsmasq",
            |host| nat_fault(host, |nat| nat.dhcp_serving = false),
            Step::Nat,
            "it does not work",
            "systemctl status buildos-dnsmasq",
        ),
        (
            "probe: link",
            |host| nat_fault(host, |nat| nat.probe_step = "link".into()),
            Step::Nat,
            "it does not work",
            "buildos-probe",
        ),
        (
            "probe: lease",
            |host| nat_fault(host, |nat| nat.probe_step = "lease".into()),
            Step::Nat,
            "it does not work",
            "dnsmasq answers no machine",
        ),
        (
            "probe: names",
            |host| nat_fault(host, |nat| nat.probe_step = "names".into()),
            Step::Nat,
            "it does not work",
            "name servers of the uplink",
        ),
        (
            "probe: outside",
            |host| nat_fault(host, |nat| nat.probe_step = "outside".into()),
            Step::Nat,
            "it does not work",
            "probe_targets",
        ),
        (
            "NAT waits",
            |host| nat_fault(host, |_| {}),
            Step::Nat,
            "it does not work",
            "goes on by itself",
        ),
        (
            "clock",
            |host| {
                host.clock_synchronised = false;
                host.agents = vec![waiting("clock", "the clock is not synchronised yet")];
            },
            Step::Clock,
            "not synchronised",
            "timedatectl",
        ),
        (
            "no agents",
            |host| host.agents.clear(),
            Step::Needs,
            "no agents are configured",
            "[bbot.default]",
        ),
        (
            "configuration",
            |host| {
                host.agents = vec![agent(
                    "bbot@default",
                    "invalid",
                    &[("configuration", "no controllers")],
                )]
            },
            Step::Needs,
            "bbot@default: no controllers",
            "buildos-agentd --check",
        ),
        (
            "program",
            |host| {
                host.agents = vec![waiting(
                    "program",
                    "program /usr/bin/bbot-agent is not installed",
                )]
            },
            Step::Needs,
            "is not installed",
            "Install the program",
        ),
        (
            "credentials",
            |host| host.agents = vec![waiting("credentials", "credential key is not there")],
            Step::Needs,
            "credential key",
            "systemd-creds(1)",
        ),
        (
            "kvm",
            |host| host.agents = vec![waiting("kvm", "/dev/kvm is missing")],
            Step::Needs,
            "/dev/kvm is missing",
            "firmware",
        ),
        (
            "memory",
            |host| host.agents = vec![waiting("memory", "RAM: its tasks need 8192 MiB")],
            Step::Needs,
            "8192 MiB",
            "ram_mib",
        ),
        (
            "crash loop",
            |host| {
                let mut looping = agent("bbot@default", "delayed", &[]);
                looping.instance.crash_loop = true;
                looping.instance.last_exit = "exit code 1".into();
                looping.instance.next_start_usec = NOW + 30_000_000;
                host.agents = vec![looping];
            },
            Step::Agent,
            "bbot@default ends again and again (last: exit code 1), starts again in 30 s",
            "journalctl -b -n 50 -u buildos-bbot@default.service",
        ),
        (
            "starting",
            |host| host.agents = vec![agent("bbot@default", "starting", &[])],
            Step::Agent,
            "bbot@default is being started",
            "systemctl status buildos-bbot@default.service",
        ),
        (
            "state of a newer agentd",
            |host| host.agents = vec![agent("bbot@default", "dreaming", &[])],
            Step::Agent,
            "bbot@default has ended",
            "journalctl",
        ),
        (
            "controllers",
            |host| {
                host.agents[0].controllers[0].failure =
                    Some("ci.example.com has no address".into());
            },
            Step::Controllers,
            "https://ci.example.com/: ci.example.com has no address",
            "Is the URL right",
        ),
    ];

    fn dark(host: &mut Host, reason: &str) {
        let network = host.network.as_mut().unwrap();
        network.state = "no-carrier".into();
        network.online = false;
        network.address.clear();
        network.reason = reason.into();
        for link in &mut host.links {
            link.carrier = false;
        }
    }

    fn nat_fault(host: &mut Host, fault: fn(&mut Nat)) {
        let nat = host.nat.as_mut().unwrap();
        nat.ready = false;
        nat.reason = "it does not work".into();
        fault(nat);
        host.agents = vec![waiting("private-network", "NAT: it does not work")];
    }

    fn waiting(need: &str, what: &str) -> Agent {
        agent("bbot@default", "waiting", &[(need, what)])
    }

    #[test]
    fn every_link_is_found_broken() {
        for (fault, change, step, answer, advice) in FAULTS {
            let verdict = after(change);
            assert_eq!(verdict.outcome, Outcome::Broken, "{fault}");
            assert_eq!(verdict.step, Some(step), "{fault}");
            assert_eq!(verdict.exit_code(), step as u8, "{fault}");
            assert!(
                verdict.answer.contains(answer),
                "{fault}: {}",
                verdict.answer
            );
            assert!(
                verdict.advice.iter().any(|line| line.contains(advice)),
                "{fault}: {:?}",
                verdict.advice
            );
        }
        for (step, _) in CHAIN {
            assert!(FAULTS.iter().any(|fault| fault.2 == step), "{step:?}");
        }
    }

    #[test]
    fn the_first_broken_link_is_the_answer_and_the_rest_is_not_looked_at() {
        let verdict = after(|host| {
            dark(host, "no carrier on eth0, eth1");
            nat_fault(host, |_| {});
            host.clock_synchronised = false;
        });
        let marks: Vec<_> = verdict.chain.iter().map(|finding| finding.mark).collect();
        let mut expected = vec![Mark::NotLookedAt; CHAIN.len()];
        expected[0] = Mark::Ok;
        expected[1] = Mark::Broken;
        assert_eq!(marks, expected);
    }

    #[test]
    fn what_no_agent_needs_is_a_remark() {
        let verdict = after(|host| {
            nat_fault(host, |_| {});
            host.clock_synchronised = false;
            host.agents = vec![
                agent("bslave@x", "running", &[]),
                agent(
                    "bbot@default",
                    "waiting",
                    &[("program", "program is missing")],
                ),
            ];
        });
        assert_eq!(verdict.outcome, Outcome::Ready);
        let remarks: Vec<_> = verdict
            .chain
            .iter()
            .filter(|finding| finding.mark == Mark::Remark)
            .map(|finding| finding.step)
            .collect();
        assert_eq!(remarks, [Step::Nat, Step::Clock, Step::Needs]);
    }

    #[test]
    fn what_somebody_wants_so_is_out_of_service() {
        for (state, advice) in [
            ("stopped", "systemctl start buildos-bbot@default.service"),
            ("drained", "buildosctl resume bbot@default"),
            ("draining", "buildosctl resume bbot@default"),
        ] {
            let mut host = ready();
            host.agents = vec![agent("bbot@default", state, &[])];
            let verdict = judge(&host);
            assert_eq!(verdict.outcome, Outcome::OutOfService, "{state}");
            assert_eq!(verdict.exit_code(), 3, "{state}");
            assert_eq!(verdict.advice, [advice], "{state}");
        }
    }

    #[test]
    fn an_agent_that_drains_still_builds() {
        let mut host = ready();
        host.agents = vec![agent("bbot@default", "draining", &[])];
        host.agents[0].task_processes = 1;
        let verdict = judge(&host);
        assert_eq!(verdict.outcome, Outcome::Building);
        assert_eq!(verdict.answer, "bbot@default with 1 process of tasks");
    }

    #[test]
    fn one_controller_of_two_is_enough() {
        let mut host = ready();
        let mut second = host.agents[0].controllers[0].clone();
        second.failure = Some("connection refused".into());
        host.agents[0].controllers.push(second);
        let verdict = judge(&host);
        assert_eq!(verdict.outcome, Outcome::Ready);
        assert_eq!(verdict.chain.last().unwrap().mark, Mark::Remark);
    }

    #[test]
    fn nothing_known_at_all_is_an_answer() {
        let mut host = samples::silent();
        assert_eq!(judge(&host).exit_code(), Step::Daemons as u8);
        // Daemons that answer but say nothing.
        host.silent.clear();
        host.network = Some(Network::default());
        host.name = Some(Naming::default());
        host.nat = Some(Nat::default());
        host.manager = Some(Manager::default());
        assert_eq!(judge(&host).exit_code(), Step::Lease as u8);
    }

    #[test]
    fn people_read_the_answer_first() {
        let text = after(|host| dark(host, "no carrier on eth0, eth1")).render(Style::PLAIN);
        assert!(
            text.starts_with(
                "This host cannot build: no carrier on eth0, eth1\n\n  \
                 ok   daemons     all four answer\n  \
                 FAIL carrier     no carrier on eth0, eth1\n  \
                 -    lease\n"
            ),
            "{text}"
        );
        assert!(text.contains("\nWhat to do:\n  Plug in a cable"), "{text}");
    }
}
