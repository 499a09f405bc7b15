//! Checks the steps in order.

use super::agent_state::{is_building, running};
use super::agents::{agent, clock, controllers, needs};
use super::network::{bridges, carrier, daemons, lease, name, nat};
use super::step::{Step, StepResult};
use super::verdict::{Finding, Mark, Outcome, Verdict};
use crate::snapshot::model::{Host, SCHEMA};

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
    for (step, check) in CHAIN {
        let (mark, what) = if verdict.step.is_some() {
            (Mark::NotChecked, String::new())
        } else {
            match check(host) {
                StepResult::Passed(what) => (Mark::Ok, what),
                StepResult::Remark(what) => (Mark::Remark, what),
                // Tasks run, so this failure does not keep the host from building.
                StepResult::Failed(what, _) | StepResult::OutOfService(what, _)
                    if !building.is_empty() =>
                {
                    (Mark::Remark, what)
                }
                StepResult::Failed(what, advice) => {
                    fail(&mut verdict, step, Outcome::Broken, &what, advice);
                    (Mark::Broken, what)
                }
                StepResult::OutOfService(what, advice) => {
                    fail(&mut verdict, step, Outcome::OutOfService, &what, advice);
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
        let agents = running(host);
        let verbs = match agents.len() {
            1 => "asks for tasks and gets none",
            _ => "ask for tasks and get none",
        };
        verdict.answer = format!("{} {verbs}", agents.join(", "));
        verdict.advice = vec![
            "Check the controllers: do they have tasks for the machines and toolchains of this host?"
                .to_owned(),
            "journalctl -b -u 'buildos-bbot@*' -u 'buildos-bslave@*'".to_owned(),
        ];
    }
    verdict
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

fn fail(verdict: &mut Verdict, step: Step, outcome: Outcome, what: &str, advice: Vec<String>) {
    verdict.step = Some(step);
    verdict.outcome = outcome;
    verdict.answer = what.to_owned();
    verdict.advice = advice;
}
