//! buildos-agentd: which agents run on this host, when, and how often again.

use std::process::ExitCode;

use buildos_agentd::{config, daemon};

fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), config::schema(), daemon::run)
}
