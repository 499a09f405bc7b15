//! Defines the report: the result of the steps.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Path of the [`Report`] below the root.
pub const REPORT: &str = "run/buildos/probe/report.json";

/// Result of a [`Request`](crate::Request).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Copied from the request.
    pub id: u64,
    /// Time of the end, microseconds since 1970 (CLOCK_REALTIME).
    pub finished_us: u64,
    /// Duration, milliseconds.
    pub took_ms: u64,
    #[allow(missing_docs)]
    pub outcome: Outcome,
}

/// Result of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every requested step passed: a machine could work here now.
    Passed {
        /// Address of the lease.
        address: Ipv4Addr,
        /// Target that answered; [`None`] if the request has no targets.
        target: Option<String>,
    },
    /// A step failed.
    Failed {
        /// The step; later steps did not run.
        step: Step,
        /// Reason, on one line.
        reason: String,
    },
}

/// Steps, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Connection to the bridge.
    Link,
    /// Lease by DHCP.
    Lease,
    /// Answer of the name server.
    Names,
    /// Target beyond the host's NAT.
    Outside,
}

impl Step {
    /// Returns the step's name on the bus and in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Lease => "lease",
            Self::Names => "names",
            Self::Outside => "outside",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Passed { address, target } => {
                write!(f, "passed in {} ms as {address}", self.took_ms)?;
                match target {
                    Some(target) => write!(f, ", reaching {target}"),
                    None => Ok(()),
                }
            }
            Outcome::Failed { step, reason } => write!(f, "failed at {}: {reason}", step.as_str()),
        }
    }
}
