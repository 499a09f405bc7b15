//! Checks the steps from the clock to the controllers.

use buildos_dbus_api::agent1::{InstanceState, Need};

use super::agent_state::{drains_for_room, running, state, waits_for};
use super::step::{StepResult, unknown};
use crate::snapshot::model::{Agent, Daemon, Fault, Host};
use crate::term::relative;

pub(super) fn clock(host: &Host) -> StepResult {
    let text = "not synchronised by a time server";
    if !host
        .agents
        .iter()
        .any(|agent| waits_for(agent, Need::Clock))
    {
        return if host.clock_synchronised {
            StepResult::Passed("synchronised".to_owned())
        } else {
            StepResult::Remark(text.to_owned())
        };
    }
    StepResult::Failed(
        text.to_owned(),
        vec![
            "timedatectl timesync-status (or the status command of another NTP client)".to_owned(),
            "The host takes time servers from DHCP (option 42) or timesyncd.conf(5). Firewalls must pass UDP port 123."
                .to_owned(),
            "Agents start without it after clock_deadline_s, see buildos-agentd.conf(5)."
                .to_owned(),
        ],
    )
}

pub(super) fn needs(host: &Host) -> StepResult {
    if host.manager.is_none() {
        return unknown(host, Daemon::Agentd);
    }
    if host.agents.is_empty() {
        return StepResult::Failed(
            "no agents are configured".to_owned(),
            vec![
                "Add one to /etc/buildos/agentd.conf.d/10-agents.toml, see buildos-agentd.conf(5):"
                    .to_owned(),
                "[bbot.default]".to_owned(),
                "controllers = [\"https://ci.example.com/\"]".to_owned(),
                "Or boot with buildos.agentd.bbot.default.controllers=URL.".to_owned(),
            ],
        );
    }
    let lacks_needs = |agent: &&Agent| {
        let waits = matches!(
            state(agent),
            Some(InstanceState::Waiting | InstanceState::Invalid)
        );
        waits || drains_for_room(agent)
    };
    let waiting: Vec<&Agent> = host.agents.iter().filter(lacks_needs).collect();
    if waiting.is_empty() {
        return StepResult::Passed("all met".to_owned());
    }
    let text: Vec<_> = waiting.iter().map(|agent| missing(agent)).collect();
    let text = text.join("; ");
    if waiting.len() < host.agents.len() {
        return StepResult::Remark(text);
    }
    let mut advice: Vec<String> = Vec::new();
    for (key, _) in waiting.iter().flat_map(|agent| &agent.instance.needs) {
        let line = need_advice(key);
        if !advice.iter().any(|known| known == line) {
            advice.push(line.to_owned());
        }
    }
    advice.push("buildosctl agents".to_owned());
    StepResult::Failed(text, advice)
}

/// Describes all missing requirements of an agent.
fn missing(agent: &Agent) -> String {
    let needs: Vec<_> = agent
        .instance
        .needs
        .iter()
        .map(|(_, text)| text.as_str())
        .collect();
    match needs.as_slice() {
        [] => format!("{}: {}", agent.id(), agent.instance.reason),
        needs => format!("{}: {}", agent.id(), needs.join(", ")),
    }
}

fn need_advice(key: &str) -> &'static str {
    match key.parse::<Need>() {
        Ok(Need::Configuration) => "Fix the configuration: buildos-agentd --check",
        Ok(Need::Program) => {
            "Install the program (image/build --package adds it to the image), or set `program`."
        }
        Ok(Need::Tools) => {
            "Install buildos-bbot-runtime, or list what the agent calls in bbot_tools, bslave_tools."
        }
        Ok(Need::Credentials) => {
            "Provide the credential, for example in /etc/credstore, see systemd-creds(1)."
        }
        Ok(Need::Kvm) => {
            "Enable virtualization in the firmware (VT-x, AMD-V), or set kvm = \"waived\"."
        }
        Ok(Need::Memory) => {
            "Give its tasks less RAM (ram_mib, instance_max), or add RAM to the host."
        }
        Ok(Need::Disk) => {
            "Make room; what takes it: du -xh -d 3 /build | sort -h | tail; buildosctl machines list"
        }
        Ok(Need::Network | Need::Hostname | Need::PrivateNetwork | Need::Clock) | Err(_) => {
            "journalctl -b -x -u buildos-agentd"
        }
    }
}

pub(super) fn agent(host: &Host) -> StepResult {
    let running = running(host);
    let mut others = Others::of(host);
    let refused = refused_commands(host);
    if !refused.is_empty() {
        others.advice.push(
            "Permit a refused command: visudo -f /etc/sudoers.d/site, see buildos-agentd(8)".into(),
        );
        others.texts.extend(refused);
    }
    let texts = others.texts.join("; ");
    match (running.is_empty(), texts.is_empty()) {
        (false, true) => StepResult::Passed(format!("{} runs", running.join(", "))),
        (false, false) => StepResult::Remark(format!("{} runs; {texts}", running.join(", "))),
        // The others wait, which the step before reports as a remark.
        (true, true) => {
            StepResult::Failed("no agent runs".to_owned(), vec!["buildosctl agents".into()])
        }
        (true, false) if others.out_of_service => StepResult::OutOfService(texts, others.advice),
        (true, false) => StepResult::Failed(texts, others.advice),
    }
}

/// Agents that neither run nor wait.
struct Others {
    texts: Vec<String>,
    advice: Vec<String>,
    /// True if an operator stopped or drained all of them.
    out_of_service: bool,
}

impl Others {
    fn of(host: &Host) -> Self {
        let mut others = Self {
            texts: Vec::new(),
            advice: Vec::new(),
            out_of_service: true,
        };
        for agent in &host.agents {
            others.add(host, agent);
        }
        others
    }

    fn add(&mut self, host: &Host, agent: &Agent) {
        let (id, instance) = (agent.id(), &agent.instance);
        let last = match instance.last_exit.as_str() {
            "" => String::new(),
            exit => format!(" (last: {exit})"),
        };
        let (text, advice) = match state(agent) {
            Some(InstanceState::Running | InstanceState::Waiting | InstanceState::Invalid) => {
                return;
            }
            // The step before names it.
            Some(InstanceState::Drained | InstanceState::Draining) if drains_for_room(agent) => {
                return;
            }
            Some(InstanceState::Stopped) => (
                format!("{id} was stopped"),
                format!("systemctl start {}", instance.unit),
            ),
            Some(InstanceState::Drained | InstanceState::Draining) => (
                format!("{id} is {}", instance.state),
                format!("buildosctl resume {id}"),
            ),
            Some(InstanceState::Starting) => {
                self.out_of_service = false;
                (
                    format!("{id} is starting"),
                    format!("systemctl status {}", instance.unit),
                )
            }
            Some(InstanceState::Delayed) | None => {
                self.out_of_service = false;
                let again = match instance.next_start_usec {
                    0 => String::new(),
                    next => format!(", starts again {}", relative(host.taken_usec, next)),
                };
                let ending = if instance.crash_loop {
                    "ends repeatedly"
                } else {
                    "has ended"
                };
                (
                    format!("{id} {ending}{last}{again}"),
                    format!("journalctl -b -n 50 -u {}", instance.unit),
                )
            }
        };
        self.texts.push(text);
        self.advice.push(advice);
    }
}

/// Returns a line for each agent to which sudo refused commands.
fn refused_commands(host: &Host) -> Vec<String> {
    let refused = host.agents.iter().filter_map(|agent| {
        let commands = agent.refused_commands.as_deref().unwrap_or_default();
        (!commands.is_empty())
            .then(|| format!("sudo refused {}: {}", agent.id(), commands.join(", ")))
    });
    refused.collect()
}

/// Returns the faults that the logs of running agents name, one line each.
pub(super) fn complaints(host: &Host) -> Vec<String> {
    let each = host.agents.iter().flat_map(|agent| {
        let complaints = agent.complaints.as_deref().unwrap_or_default();
        complaints.iter().map(|complaint| {
            let age = relative(host.taken_usec, complaint.usec);
            format!("{} logged {age}: {}", agent.id(), complaint.text)
        })
    });
    each.collect()
}

/// Explains a fault that a log names, with what to do about it.
pub(super) fn fault_advice(fault: Fault) -> &'static str {
    match fault {
        Fault::Unauthorized => {
            "The controller demands a key (401): set auth_key, and give the controller its fingerprint (buildosctl agents)."
        }
        Fault::BadRequest => {
            "The controller refuses the whole request (400): an auxiliary machine that is not named ARCHITECTURE-OS…, or a login (interactive) that no expression of the controller matches."
        }
        Fault::TooLong => {
            "The request is too long (413): some 500 machines fill a task request, 15 MiB a result."
        }
        Fault::NotYetValid => {
            "The certificate is not valid yet: compare the clock (timedatectl) with the certificate."
        }
        Fault::Expired => "The certificate has expired, or the clock is wrong: timedatectl",
        Fault::UnknownIssuer => {
            "No known authority has issued the certificate: add it to /usr/local/share/ca-certificates, and run update-ca-certificates. A proxy can replace certificates."
        }
        Fault::WrongName => {
            "The certificate is the one of a different host: check the URL, and the address of the host in DNS."
        }
        Fault::Stalled => {
            "A request got no answer in time: the controller is slow, or a firewall drops the connection."
        }
    }
}

pub(super) fn controllers(host: &Host) -> StepResult {
    let tried = host
        .agents
        .iter()
        .filter(|agent| state(agent) == Some(InstanceState::Running))
        .flat_map(|agent| &agent.controllers)
        .filter_map(|c| c.failure.as_ref().map(|failure| (c.url.as_str(), failure)));
    let (reached, failed): (Vec<_>, Vec<_>) = tried.partition(|(_, failure)| failure.is_empty());
    let errors: Vec<_> = failed
        .iter()
        .map(|(url, why)| format!("{url}: {why}"))
        .collect();
    let urls: Vec<_> = reached.iter().map(|(url, _)| *url).collect();
    match (urls.is_empty(), errors.is_empty()) {
        (true, true) => StepResult::Passed("no controllers to try".to_owned()),
        (false, true) => match complaints(host).first() {
            None => StepResult::Passed(format!("{} accepts connections", urls.join(", "))),
            Some(complaint) => StepResult::Remark(complaint.clone()),
        },
        (false, false) => StepResult::Remark(format!("cannot be reached: {}", errors.join("; "))),
        (true, false) if errors.iter().all(|error| error.contains("path MTU")) => {
            StepResult::Failed(
                format!(
                    "results cannot reach the controllers: {}",
                    errors.join("; ")
                ),
                vec![
                    "Firewalls must pass ICMP \"fragmentation needed\" (RFC 1191, RFC 4890)."
                        .to_owned(),
                    "Or hand out the MTU of the path by DHCP (option 26).".to_owned(),
                ],
            )
        }
        (true, false) => StepResult::Failed(
            format!("no controller can be reached: {}", errors.join("; ")),
            vec![
                "Check the URL, the controller, and the firewalls on the way to it.".to_owned(),
                "cat /etc/resolv.conf; ip route".to_owned(),
                "The agent retries by itself.".to_owned(),
            ],
        ),
    }
}
