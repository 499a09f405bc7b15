//! The operator's command line of a build host.

use std::process::ExitCode;

use buildos_dbus_api::system_bus;
use buildos_service::text;
use lexopt::{Arg, Parser};

mod status;

const HELP: &str = "\
Usage: buildosctl status

Asks the daemons of this build host over the system bus.

Commands:
  status         what the network, the name, NAT and the agents are, a line each;
                 exits 1 when a daemon does not answer

Options:
  -h, --help     show this
  -V, --version  show the version
";

/// The arguments make no sense (sysexits.h has no better for it than 2 has).
const USAGE: u8 = 2;

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Status,
    Help,
    Version,
}

fn main() -> ExitCode {
    match parse(Parser::from_env()) {
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("buildosctl ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::Status) => status(),
        Err(error) => {
            eprintln!("buildosctl: {error}; see --help");
            ExitCode::from(USAGE)
        }
    }
}

fn parse(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut command = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Short('V') | Arg::Long("version") => return Ok(Command::Version),
            Arg::Value(word) if command.is_none() && word == "status" => {
                command = Some(Command::Status);
            }
            Arg::Value(_) | Arg::Short(_) | Arg::Long(_) => return Err(argument.unexpected()),
        }
    }
    command.ok_or_else(|| "no command".into())
}

fn status() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let connection = system_bus()
                .await
                .map_err(|error| format!("cannot reach the system bus: {}", text::chain(&error)))?;
            Ok(status::read(&connection).await)
        }),
        Err(error) => Err(format!("cannot start the runtime: {error}")),
    };
    match result {
        Ok(lines) => {
            let complete = lines.iter().all(|line| line.answered);
            match print(&status::render(&lines)) {
                code if complete => code,
                _ => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            eprintln!("buildosctl: {}", text::escape(&error));
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Command, String> {
        parse(Parser::from_args(words)).map_err(|e| e.to_string())
    }

    #[test]
    fn arguments() {
        assert_eq!(parsed(&["status"]), Ok(Command::Status));
        assert_eq!(parsed(&["status", "--help"]), Ok(Command::Help));
        assert_eq!(parsed(&[]), Err("no command".into()));
        assert_eq!(
            parsed(&["stat"]),
            Err("unexpected argument \"stat\"".into())
        );
    }
}
