//! Tries out what a machine on br1 has for a network; see buildos-natd(8).
//!
//! buildos-probe.service starts it, in a network namespace of its own and with a
//! netlink socket of the host's as standard input.

use std::path::Path;
use std::process::ExitCode;

use buildos_service::text;

fn main() -> ExitCode {
    match buildos_probe::run(Path::new("/")) {
        Ok(()) => ExitCode::SUCCESS,
        // What was found out is in the report; this is about the program.
        Err(error) => {
            eprintln!("buildos-probe: {}", text::escape(&text::chain(&error)));
            ExitCode::FAILURE
        }
    }
}
