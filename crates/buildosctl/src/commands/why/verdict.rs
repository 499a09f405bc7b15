//! Renders the answer of `buildosctl why` as text and JSON.

use serde::Serialize;

use super::step::Step;
use crate::term::{Style, Tone};

/// Whether the host builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Tasks run
    Building,
    /// All steps passed; the controllers have no task for this host
    Ready,
    /// The agents were stopped or drained
    OutOfService,
    /// A step failed
    Broken,
}

/// Result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mark {
    /// Passed
    Ok,
    /// Failed, but no agent requires the step now; or passed, and an operator should look
    Remark,
    /// Failed
    Broken,
    /// Not checked, as an earlier step failed
    #[serde(rename = "not-looked-at")]
    NotChecked,
}

/// Step with its result
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Finding {
    pub(super) step: Step,
    pub(super) mark: Mark,
    /// Explanation in one line
    pub(super) what: String,
}

/// buildosctl why --json
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "why"))]
pub(crate) struct Verdict {
    /// Version of this format, as in status
    pub(super) schema: u32,
    pub(super) outcome: Outcome,
    /// The first failed step, also while tasks run; null if all passed
    pub(super) step: Option<Step>,
    /// The answer in one sentence
    pub(super) answer: String,
    /// All steps in order
    pub(super) chain: Vec<Finding>,
    /// What to do: commands and sentences, one a line
    pub(super) advice: Vec<String>,
}

impl Verdict {
    /// Returns 0 if the host builds or is ready, 3 if it is out of service, otherwise the
    /// number of the failed step.
    pub(crate) fn exit_code(&self) -> u8 {
        match (self.outcome, self.step) {
            (Outcome::Building | Outcome::Ready, _) => 0,
            (Outcome::OutOfService, _) => 3,
            (Outcome::Broken, Some(step)) => step as u8,
            (Outcome::Broken, None) => 1,
        }
    }

    /// Renders the answer, the steps and the advice.
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
                Mark::NotChecked => (Tone::Weak, "-"),
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
