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
        let (mark, text) = if verdict.step.is_some() {
            (Mark::NotChecked, String::new())
        } else {
            match check(host) {
                StepResult::Passed(text) => (Mark::Ok, text),
                StepResult::Remark(text) => (Mark::Remark, text),
                // Tasks run, so this failure does not keep the host from building.
                StepResult::Failed(text, _) | StepResult::OutOfService(text, _)
                    if !building.is_empty() =>
                {
                    (Mark::Remark, text)
                }
                StepResult::Failed(text, advice) => {
                    fail(&mut verdict, step, Outcome::Broken, &text, advice);
                    (Mark::Broken, text)
                }
                StepResult::OutOfService(text, advice) => {
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

fn fail(verdict: &mut Verdict, step: Step, outcome: Outcome, text: &str, advice: Vec<String>) {
    verdict.step = Some(step);
    verdict.outcome = outcome;
    verdict.answer = text.to_owned();
    verdict.advice = advice;
}
