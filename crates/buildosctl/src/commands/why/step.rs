//! Defines the steps of the chain, and the result of a check.

use serde::Serialize;

use crate::snapshot::model::{Daemon, Host};

/// Step of the chain. The numbers are exit statuses of `buildosctl why`: they must not
/// change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    /// The four daemons answer
    Daemons = 10,
    /// A NIC has carrier
    Carrier = 11,
    /// br0 has a lease
    Lease = 12,
    /// The uplink is in br0, and br1 has its address
    Bridges = 13,
    /// The host has its name
    Name = 14,
    /// Machines on br1 have NAT, DHCP and DNS, and a probe has passed
    Nat = 15,
    /// The clock is synchronised, if an agent waits for that
    Clock = 16,
    /// There are agents, and one of them has all it requires
    Needs = 17,
    /// An agent runs
    Agent = 18,
    /// A controller accepts connections
    Controllers = 19,
}

impl Step {
    pub(super) const fn as_str(self) -> &'static str {
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

/// Result of a check, with one line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StepResult {
    Passed(String),
    /// Failed, but no agent requires the step now; or passed, and an operator should look.
    Remark(String),
    /// Failed; advice follows.
    Failed(String, Vec<String>),
    /// Failed because an operator stopped or drained the agents; advice follows.
    OutOfService(String, Vec<String>),
}

/// Returns the result of a step that needs the answer of a silent daemon.
pub(super) fn unknown(host: &Host, daemon: Daemon) -> StepResult {
    let why = host.silent.get(&daemon).map_or("", String::as_str);
    StepResult::Failed(
        format!("unknown, as {} does not answer: {why}", daemon.unit()),
        vec![format!("systemctl status {}", daemon.unit())],
    )
}
