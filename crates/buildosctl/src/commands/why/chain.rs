//! Checks the steps in order.

use super::agent_state::{is_building, running};
use super::agents::{agent, clock, controllers, fault_advice, needs};
use super::network::{bridges, carrier, daemons, lease, name, nat};
use super::step::{Step, StepResult};
use super::verdict::{Finding, Mark, Outcome, Verdict};
use crate::commands::status::pinned;
use crate::snapshot::model::{Host, SCHEMA};
use crate::term::span;

/// Checks one step.
type Check = fn(&Host) -> StepResult;

/// The steps; each needs those before it.
pub(super) const CHAIN: [(Step, Check); 10] = [
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

/// Checks the steps until one fails.
pub(crate) fn judge(host: &Host) -> Verdict {
    let building = building(host);
    let mut verdict = Verdict {
        schema: SCHEMA,
        outcome: Outcome::Ready,
        step: None,
        answer: String::new(),
        chain: Vec::new(),
        advice: Vec::new(),
    };
    let mut is_checked = true;
    for (step, check) in CHAIN {
        let (mark, text) = if !is_checked {
            (Mark::NotChecked, String::new())
        } else {
            match check(host) {
                StepResult::Passed(text) => (Mark::Ok, text),
                StepResult::Remark(text) => (Mark::Remark, text),
                // Tasks run, so this failure does not keep the host from building.
                StepResult::Failed(text, _) if !building.is_empty() => {
                    verdict.step = verdict.step.or(Some(step));
                    (Mark::Remark, text)
                }
                StepResult::OutOfService(text, _) if !building.is_empty() => (Mark::Remark, text),
                StepResult::Failed(text, advice) => {
                    is_checked = false;
                    fail(&mut verdict, step, Outcome::Broken, &text, advice);
                    (Mark::Broken, text)
                }
                StepResult::OutOfService(text, advice) => {
                    is_checked = false;
                    fail(&mut verdict, step, Outcome::OutOfService, &text, advice);
                    (Mark::Broken, text)
                }
            }
        };
        verdict.chain.push(Finding {
            step,
            mark,
            what: text,
        });
    }
    if !building.is_empty() {
        verdict.outcome = Outcome::Building;
        verdict.answer = building.join(", ");
    } else if verdict.step.is_none() {
        idle(host, &mut verdict);
    }
    verdict.advice.extend(choices(host));
    verdict.advice.extend(volumes(host));
    verdict.advice.extend(os_trial(host));
    verdict
}

/// Returns advice for choices of an operator, which a colleague can have forgotten.
fn choices(host: &Host) -> Vec<String> {
    let choices = &host.choices;
    let mut advice = Vec::new();
    if let Some(reason) = &choices.hold {
        advice.push(format!(
            "Updates are held: {reason}; buildosctl update resume ends it."
        ));
    }
    if !choices.pinned.is_empty() {
        let pinned = pinned(&choices.pinned);
        advice.push(format!(
            "Machines stay at a revision: {pinned}; buildosctl machines unpin ends it."
        ));
    }
    if !choices.problem.is_empty() {
        advice.push(format!("Choices about updates: {}.", choices.problem));
    }
    advice
}

/// Returns advice for faults of volumes, which keep no host from building.
fn volumes(host: &Host) -> Vec<String> {
    let mut advice = Vec::new();
    if let Some(volume) = host.ram_volume.as_ref().filter(|volume| volume.fault) {
        advice.push(format!(
            "Machine volume {} in RAM: {}; see buildos-updated(8).",
            volume.volume, volume.reason
        ));
    }
    let Some(volume) = &host.state_volume else {
        return advice;
    };
    if volume.fault {
        advice.push(format!(
            "State volume ({}): {}; see buildos-volumes(8).",
            volume.state, volume.reason
        ));
    }
    if !volume.warning.is_empty() {
        advice.push(format!("State volume: {}.", volume.warning));
    }
    advice
}

/// Returns what the operator should know about an operating system on trial.
fn os_trial(host: &Host) -> Option<String> {
    let trial = host.os_trial.as_ref()?;
    match trial.state.as_str() {
        "returned" => Some(format!(
            "The host has returned to its former operating system: {}; see buildos-updated(8).",
            trial.reason
        )),
        "trial" if !trial.reason.is_empty() => {
            let end = match trial.deadline_usec.saturating_sub(host.taken_usec) {
                0 => "beyond its deadline".to_owned(),
                rest => format!("for another {}", span(rest)),
            };
            Some(format!(
                "Operating system {} is on trial {end}, and not proven: {}.",
                trial.version, trial.reason
            ))
        }
        _ => None,
    }
}

/// RAM that no agent uses before its first machine runs, in bytes.
const WITHOUT_MACHINE: u64 = 128 << 20;

/// Time after which an agent without a task is remarkable, in microseconds.
const LONG: u64 = 3_600_000_000;

/// Answers for agents that run and have no task.
fn idle(host: &Host, verdict: &mut Verdict) {
    let agents = running(host);
    let verbs = match agents.len() {
        1 => "asks for tasks and gets none",
        _ => "ask for tasks and get none",
    };
    verdict.answer = format!("{} {verbs}", agents.join(", "));
    for agent in &host.agents {
        let age = host.taken_usec.saturating_sub(agent.run.start_usec);
        let no_machine = agent
            .run
            .memory_peak
            .is_some_and(|peak| peak < WITHOUT_MACHINE);
        if agents.contains(&agent.id()) && agent.run.start_usec > 0 && age > LONG && no_machine {
            let (id, age) = (agent.id(), span(age));
            verdict.answer += &format!("; {id} has had no task since its start {age} ago");
        }
    }
    let faults = host.agents.iter().flat_map(|agent| &agent.complaints);
    let faults = faults
        .flatten()
        .map(|complaint| fault_advice(complaint.fault));
    verdict.advice = faults.map(str::to_owned).collect();
    verdict.advice.extend([
        "Check the controllers: do they have tasks for the machines and toolchains of this host?"
            .to_owned(),
        "A controller that does not know the key gives no task, and no error (buildosctl agents)."
            .to_owned(),
        "journalctl -b -u 'buildos-bbot@*' -u 'buildos-bslave@*'".to_owned(),
    ]);
}

/// Describes the agents that run tasks.
fn building(host: &Host) -> Vec<String> {
    let building = host.agents.iter().filter(|agent| is_building(agent));
    building
        .map(|agent| {
            let processes = agent.task_processes;
            let plural = if processes == 1 { "" } else { "es" };
            format!("{} with {processes} process{plural} of tasks", agent.id())
        })
        .collect()
}

fn fail(verdict: &mut Verdict, step: Step, outcome: Outcome, text: &str, advice: Vec<String>) {
    verdict.step = Some(step);
    verdict.outcome = outcome;
    verdict.answer = text.to_owned();
    verdict.advice = advice;
}
