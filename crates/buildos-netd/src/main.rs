//! The daemon; see the library for what it does.

use std::process::ExitCode;

use buildos_netd::{config, daemon};

fn main() -> ExitCode {
    buildos_service::main(env!("CARGO_PKG_VERSION"), config::schema(), daemon::run)
}
