//! Why this host does not build.
//!
//! What a build needs is a chain: a link of it is of no use while one before it
//! is broken, so the first that is broken is the answer. [`judge`] walks it over
//! a [`Host`], which is a value; nothing is asked here. An agent that runs in
//! spite of a broken link (a slave on br0 without NAT) makes that link a remark.

use serde::Serialize;

use crate::snapshot::model::{Host, SCHEMA};
use crate::term::{Style, Tone};

mod agents;
mod network;
#[cfg(test)]
mod tests;

use agents::{agent, clock, controllers, is_building, needs, running};
use network::{bridges, carrier, daemons, lease, name, nat};

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
            "Look at the controllers: have they tasks for its machines and toolchains?".to_owned(),
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
