//! The operator's command line of a build host.

use std::process::ExitCode;
use std::time::Duration;

use buildos_dbus_api::system_bus;
use buildos_service::text;
use lexopt::{Arg, Parser, ValueExt as _};
use zbus::Connection;

mod agents;
mod drain;
mod status;

const HELP: &str = "\
Usage: buildosctl status
       buildosctl agents
       buildosctl drain [--wait] [--budget SECONDS] [AGENT...]
       buildosctl resume [AGENT...]

Asks the daemons of this build host over the system bus.

Commands:
  status         what the network, the name, NAT and the agents are, a line each;
                 exits 1 when a daemon does not answer
  agents         what each agent does, and what it waits for
  drain          let the tasks of agents (bbot@default; all, if none is named) end,
                 then stop them, until they are resumed
  resume         take that back

Options:
  --wait         drain: return when no task runs any more
  --budget N     drain: stop agents whose tasks run after N seconds
  -h, --help     show this
  -V, --version  show the version
";

/// The arguments make no sense (sysexits.h has no better for it than 2 has).
const USAGE: u8 = 2;

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Status,
    Agents,
    Drain(drain::Request),
    Resume(Vec<String>),
    Help,
    Version,
}

fn main() -> ExitCode {
    match parse(Parser::from_env()) {
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("buildosctl ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::Status) => status(),
        Ok(Command::Agents) => answer(async |bus| {
            let agents = agents::read(&bus).await?;
            Ok(print(&agents::render(&agents)))
        }),
        Ok(Command::Drain(request)) => answer(async |bus| {
            drain::drain(&bus, &request).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Ok(Command::Resume(agents)) => answer(async |bus| {
            drain::resume(&bus, &agents).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Err(error) => {
            eprintln!("buildosctl: {error}; see --help");
            ExitCode::from(USAGE)
        }
    }
}

fn parse(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut words: Vec<String> = Vec::new();
    let mut wait = false;
    let mut budget = None;
    while let Some(argument) = parser.next()? {
        let drains = words.first().is_some_and(|word| word == "drain");
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Short('V') | Arg::Long("version") => return Ok(Command::Version),
            Arg::Long("wait") if drains => wait = true,
            Arg::Long("budget") if drains => {
                let seconds: std::num::NonZeroU32 = parser.value()?.parse()?;
                budget = Some(Duration::from_secs(seconds.get().into()));
            }
            Arg::Value(word) => words.push(word.string()?),
            Arg::Short(_) | Arg::Long(_) => return Err(argument.unexpected()),
        }
    }
    let mut words = words.into_iter();
    let command = words.next().ok_or("no command")?;
    let rest: Vec<String> = words.collect();
    match (command.as_str(), rest.as_slice()) {
        ("status", []) => Ok(Command::Status),
        ("agents", []) => Ok(Command::Agents),
        ("drain", _) => Ok(Command::Drain(drain::Request {
            agents: rest,
            budget,
            wait,
        })),
        ("resume", _) => Ok(Command::Resume(rest)),
        ("status" | "agents", [unexpected, ..]) => Err(Arg::Value(unexpected.into()).unexpected()),
        _ => Err(Arg::Value(command.into()).unexpected()),
    }
}

/// Asks a question on the system bus; the exit status, or why there is none.
fn ask(
    question: impl AsyncFnOnce(Connection) -> Result<ExitCode, String>,
) -> Result<ExitCode, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(async {
        let connection = system_bus()
            .await
            .map_err(|error| format!("cannot reach the system bus: {}", text::chain(&error)))?;
        question(connection).await
    })
}

fn answer(question: impl AsyncFnOnce(Connection) -> Result<ExitCode, String>) -> ExitCode {
    ask(question).unwrap_or_else(|error| {
        eprintln!("buildosctl: {}", text::escape(&error));
        ExitCode::FAILURE
    })
}

fn status() -> ExitCode {
    answer(async |bus| {
        let lines = status::read(&bus).await;
        let complete = lines.iter().all(|line| line.answered);
        Ok(match print(&status::render(&lines)) {
            code if complete => code,
            _ => ExitCode::FAILURE,
        })
    })
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
        assert_eq!(parsed(&["agents"]), Ok(Command::Agents));
        assert_eq!(parsed(&["status", "--help"]), Ok(Command::Help));
        assert_eq!(parsed(&[]), Err("no command".into()));
        for bad in [&["stat"][..], &["status", "stat"]] {
            assert_eq!(parsed(bad), Err("unexpected argument \"stat\"".into()));
        }
    }

    #[test]
    fn drain_and_resume() {
        let everything = drain::Request {
            agents: vec!["bbot@a".into(), "bslave@b".into()],
            budget: Some(Duration::from_secs(60)),
            wait: true,
        };
        assert_eq!(
            parsed(&["drain", "--wait", "bbot@a", "--budget=60", "bslave@b"]),
            Ok(Command::Drain(everything))
        );
        assert_eq!(
            parsed(&["drain"]),
            Ok(Command::Drain(drain::Request::default()))
        );
        assert_eq!(
            parsed(&["resume", "bbot@a"]),
            Ok(Command::Resume(vec!["bbot@a".into()]))
        );
        assert!(parsed(&["drain", "--budget", "0"]).is_err());
        assert!(parsed(&["resume", "--wait"]).is_err());
    }
}
