//! buildos-agentd: which agents run on this host, when, and how often again.

use std::process::ExitCode;

use buildos_agentd::{config, daemon, inspection};

fn main() -> ExitCode {
    buildos_service::main_with_print(
        env!("CARGO_PKG_VERSION"),
        config::schema(),
        inspection::inspect,
        daemon::run,
    )
}
