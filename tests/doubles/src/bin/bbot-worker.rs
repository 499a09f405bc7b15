//! Runs the stand-in for bbot-worker: one task in a build machine.

use buildos_doubles::container::exit_at_end_of_stdin;
use buildos_doubles::log::{Log, chain};
use buildos_doubles::tftp_redirect::{TFTP_HOST, TFTP_PORT};
use buildos_doubles::worker::work;
use lexopt::ValueExt as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let log = Log::Journal;
    let (directory, agent, slow) = match parse(lexopt::Parser::from_env()) {
        Ok(arguments) => arguments,
        Err(error) => {
            log.error(format_args!(
                "bbot-worker: {error}: --startup [--build DIR] [--tftp-host ADDRESS:PORT] [--slow SECONDS] is expected"
            ));
            return ExitCode::FAILURE;
        }
    };
    exit_at_end_of_stdin();
    match work(&directory, agent, slow) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.error(format_args!("bbot-worker: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn parse(mut parser: lexopt::Parser) -> Result<(PathBuf, SocketAddr, Duration), lexopt::Error> {
    let mut directory = PathBuf::from(".");
    let mut agent = SocketAddr::from((TFTP_HOST, TFTP_PORT));
    let mut slow = Duration::ZERO;
    let mut startup = false;
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("startup") => startup = true,
            lexopt::Arg::Long("build") => directory = parser.value()?.into(),
            lexopt::Arg::Long("tftp-host") => agent = parser.value()?.parse()?,
            lexopt::Arg::Long("slow") => slow = Duration::from_secs(parser.value()?.parse()?),
            lexopt::Arg::Value(_) | lexopt::Arg::Short(_) | lexopt::Arg::Long(_) => {
                return Err(argument.unexpected());
            }
        }
    }
    if startup {
        Ok((directory, agent, slow))
    } else {
        Err("--startup is missing".into())
    }
}
