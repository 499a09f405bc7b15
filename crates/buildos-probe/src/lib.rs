//! buildos-probe: measures the network that machines on br1 have.
//!
//! The program acts as a machine for a moment. It runs in a network namespace of its own,
//! with a netlink socket of the host as standard input.
//!
//! | step | file | does |
//! |---|---|---|
//! | `link` | `link.rs` | makes a veth pair between br1 and the namespace |
//! | `lease` | `lease.rs` | takes a lease from the host's dnsmasq |
//! | `names` | `dns.rs` | resolves a name at dnsmasq |
//! | `outside` | `targets.rs` | reaches a target through the host's NAT |
//!
//! `steps.rs` runs them in this order. buildos-natd writes the [`Request`] and reads
//! the [`Report`]; both are files.
//!
//! No step needs a cleanup: the namespace ends with the process, and the veth pair with
//! the namespace. The next probe has the same hardware address and gets the same lease.

use std::path::Path;
use std::process::ExitCode;

use buildos_service::text;

mod dns;
mod dns_message;
mod identity;
mod lease;
mod link;
mod report;
mod request;
mod socket_error;
mod steps;
mod targets;

pub use identity::{INTERFACE, MAC};
pub use report::{Outcome, REPORT, Report, Step};
pub use request::{NotATarget, Question, REQUEST, Request, Target};
pub use steps::{ProbeError, run};

/// Runs the program. A failed step is part of the report, not a failure of the program.
#[must_use]
pub fn main() -> ExitCode {
    match run(Path::new("/")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "buildos-probe: {}",
                text::Escaped::received(&text::chain(&error))
            );
            ExitCode::FAILURE
        }
    }
}
