//! buildos-probe: tries out what a machine on br1 has for a network.
//!
//! The program is a machine for a moment. It runs in a network namespace of its
//! own, plugs that into br1 by a veth pair, takes a lease from the host's
//! dnsmasq, asks it for a name, and reaches a target through the host's NAT.
//! buildos-natd says what to try ([`Request`], a file) and reads what came of
//! it ([`Report`], another one).
//!
//! It leaves nothing behind, whatever ends it: the namespace ends with the
//! process, the veth pair with the namespace, and the next probe takes the same
//! lease again.
//!
//! Each step is a module that gets what it needs and says what went wrong:
//! [`link`], [`lease`], [`dns`], [`targets`]; [`steps`] is their order.
//!
//! buildos-probe.service starts it, with a netlink socket of the host's as
//! standard input.

use std::path::Path;
use std::process::ExitCode;

use buildos_service::text;

mod dns;
mod dns_message;
mod lease;
mod link;
mod netlink;
mod report;
mod request;
mod steps;
mod targets;

pub use report::{Outcome, REPORT, Report, Step};
pub use request::{Name, NotAName, NotATarget, Question, REQUEST, Request, Target};
pub use steps::{ProbeError, run};

/// Hardware address of the probe on br1, locally administered and always the
/// same: it has one lease, however often it comes.
pub const MAC: buildos_dhcp::Mac = [0x02, 0xbd, 0x00, 0x50, 0x52, 0x42];

/// Name of the host's end of the probe's cable.
pub const INTERFACE: &str = "buildos-probe";

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    match run(Path::new("/")) {
        Ok(()) => ExitCode::SUCCESS,
        // What was found out is in the report; this is about the program.
        Err(error) => {
            eprintln!("buildos-probe: {}", text::escape(&text::chain(&error)));
            ExitCode::FAILURE
        }
    }
}
