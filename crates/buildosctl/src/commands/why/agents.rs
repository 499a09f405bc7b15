//! The links from the clock to the controllers: who works.

use buildos_dbus_api::agent1::{InstanceState, Need};

use super::Link;
use super::network::silent;
use crate::snapshot::model::{Agent, Daemon, Host};
use crate::term::relative;

pub(super) fn clock(host: &Host) -> Link {
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

pub(super) fn needs(host: &Host) -> Link {
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
pub(super) fn lacking(agent: &Agent) -> String {
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

pub(super) fn need_advice(word: &str) -> &'static str {
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

pub(super) fn agent(host: &Host) -> Link {
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

pub(super) fn controllers(host: &Host) -> Link {
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

/// Whether nothing is built without it: an agent that is to work has it not, whether
/// it waits for it or runs already, or there is no agent that tells.
pub(super) fn is_needed(host: &Host, need: Need) -> bool {
    let misses = |agent: &Agent| agent.instance.wanted && is_unmet(agent, need);
    host.agents.is_empty() || host.agents.iter().any(misses)
}

pub(super) fn lacks(agent: &Agent, need: Need) -> bool {
    state(agent) == Some(InstanceState::Waiting) && is_unmet(agent, need)
}

fn is_unmet(agent: &Agent, need: Need) -> bool {
    let mut needs = agent.instance.needs.iter();
    needs.any(|(word, _)| word == need.as_str())
}

pub(super) fn state(agent: &Agent) -> Option<InstanceState> {
    agent.instance.state.parse().ok()
}

pub(super) fn is_building(agent: &Agent) -> bool {
    let up = matches!(
        state(agent),
        Some(InstanceState::Running | InstanceState::Draining)
    );
    up && agent.task_processes > 0
}

pub(super) fn running(host: &Host) -> Vec<String> {
    let up = host
        .agents
        .iter()
        .filter(|agent| state(agent) == Some(InstanceState::Running));
    up.map(Agent::id).collect()
}
