//! The name of a build host; see buildos-hostnamed(8).

use std::process::ExitCode;

fn main() -> ExitCode {
    buildos_service::main(
        env!("CARGO_PKG_VERSION"),
        buildos_hostnamed::config::schema(),
        buildos_hostnamed::daemon::run,
    )
}
