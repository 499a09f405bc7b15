//! NAT, DHCP and DNS for the machines on br1; see buildos-natd(8).

use std::process::ExitCode;

fn main() -> ExitCode {
    buildos_service::main(
        env!("CARGO_PKG_VERSION"),
        buildos_natd::config::schema(),
        buildos_natd::daemon::run,
    )
}
