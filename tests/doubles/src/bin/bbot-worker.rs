//! Runs the stand-in for bbot-worker: one task in a build machine, or an auxiliary machine.

use buildos_doubles::auxiliary;
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
    let Arguments {
        directory,
        machine,
        agent,
        slow,
        is_auxiliary,
    } = match parse(lexopt::Parser::from_env()) {
        Ok(arguments) => arguments,
        Err(error) => {
            log.error(format_args!(
                "bbot-worker: {error}: --startup [--auxiliary] [--build DIR] [--machine DIR] [--tftp-host ADDRESS:PORT] [--slow SECONDS] is expected"
            ));
            return ExitCode::FAILURE;
        }
    };
    exit_at_end_of_stdin();
    let result = match is_auxiliary {
        true => auxiliary::serve(&directory, agent).map_err(|error| chain(&error)),
        false => work(&directory, machine.as_deref(), agent, slow).map_err(|error| chain(&error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.error(format_args!("bbot-worker: {error}"));
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    directory: PathBuf,
    machine: Option<PathBuf>,
    agent: SocketAddr,
    slow: Duration,
    is_auxiliary: bool,
}

fn parse(mut parser: lexopt::Parser) -> Result<Arguments, lexopt::Error> {
    let mut arguments = Arguments {
        directory: PathBuf::from("."),
        machine: None,
        agent: SocketAddr::from((TFTP_HOST, TFTP_PORT)),
        slow: Duration::ZERO,
        is_auxiliary: false,
    };
    let mut startup = false;
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("startup") => startup = true,
            lexopt::Arg::Long("auxiliary") => arguments.is_auxiliary = true,
            lexopt::Arg::Long("build") => arguments.directory = parser.value()?.into(),
            lexopt::Arg::Long("machine") => arguments.machine = Some(parser.value()?.into()),
            lexopt::Arg::Long("tftp-host") => arguments.agent = parser.value()?.parse()?,
            lexopt::Arg::Long("slow") => {
                arguments.slow = Duration::from_secs(parser.value()?.parse()?);
            }
            lexopt::Arg::Value(_) | lexopt::Arg::Short(_) | lexopt::Arg::Long(_) => {
                return Err(argument.unexpected());
            }
        }
    }
    if startup {
        Ok(arguments)
    } else {
        Err("--startup is missing".into())
    }
}
