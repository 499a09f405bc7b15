//! What came of it.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The file with the [`Report`], below the root.
pub const REPORT: &str = "run/buildos/probe/report.json";

/// What came of a [`crate::Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The request's.
    pub id: u64,
    /// When it was over: microseconds since 1970 (CLOCK_REALTIME).
    pub finished_us: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How it went.
    pub outcome: Outcome,
}

/// How a probe went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A machine could work here now.
    Passed {
        /// The address that it was given.
        address: Ipv4Addr,
        /// The target that was reached; none when none was asked for.
        target: Option<String>,
    },
    /// It could not.
    Failed {
        /// What did not work; what comes later was not tried.
        step: Step,
        /// Why, on one line.
        reason: String,
    },
}

/// The steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// A cable into the bridge.
    Link,
    /// An address by DHCP.
    Lease,
    /// A name.
    Names,
    /// Something outside.
    Outside,
}

impl Step {
    /// Its word on the bus and in messages.
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
