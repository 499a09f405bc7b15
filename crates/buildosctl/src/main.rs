//! The operator's command line of a build host; see buildosctl(1).

use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{self, ExitCode};
use std::time::Duration;

use buildos_dbus_api::network1;
use buildos_dbus_api::system_bus;
use buildos_service::text;
use lexopt::Parser;
use zbus::Connection;

mod cli;
mod commands;
mod simulate;
mod snapshot;
mod term;

use cli::args::{self, Command, HELP, Request};
use commands::show::{Shown, View};
use commands::{agentd, check, console, drain};
use snapshot::watch::Changes;
use snapshot::{collect, controllers};
use term::Style;

/// The arguments make no sense (sysexits.h has no better for it than 2 has).
const USAGE: u8 = 2;

/// Times that are shown go on without a change on the bus.
const TICK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match args::parse(Parser::from_env()) {
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("buildosctl ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::Show(request)) => answer(async |bus| show(&bus, &request).await),
        Ok(Command::Drain(request)) => answer(async |bus| {
            drain::drain(&bus, &request).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Ok(Command::Resume(agents)) => answer(async |bus| {
            drain::resume(&bus, &agents).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Ok(Command::Renew) => answer(async |bus| renew(&bus).await),
        Ok(Command::Console) => answer(async |bus| {
            console::keep(&bus).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Ok(Command::Log(arguments)) => {
            let error = process::Command::new("journalctl")
                .args(["--boot", "--unit=buildos*"])
                .args(arguments)
                .exec();
            fail(&format!("cannot run journalctl: {error}"))
        }
        Ok(Command::Check(subjects)) => look_for_mistakes(&subjects),
        Ok(Command::Simulate(request)) => simulated(&request),
        Err(error) => {
            eprintln!("buildosctl: {error}; see --help");
            ExitCode::from(USAGE)
        }
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
    let answer = runtime.block_on(async {
        let connection = system_bus()
            .await
            .map_err(|error| format!("cannot reach the system bus: {}", text::chain(&error)))?;
        question(connection).await
    });
    // A name that is still being looked up is nobody's business any more.
    runtime.shutdown_background();
    answer
}

fn answer(question: impl AsyncFnOnce(Connection) -> Result<ExitCode, String>) -> ExitCode {
    ask(question).unwrap_or_else(|error| fail(&error))
}

fn fail(error: &str) -> ExitCode {
    eprintln!("buildosctl: {}", text::Escaped::received(error));
    ExitCode::FAILURE
}

/// Shows the host, once or whenever it changes.
async fn show(bus: &Connection, request: &Request) -> Result<ExitCode, String> {
    if !request.watch {
        let shown = look(bus, request).await?;
        return Ok(match print(&shown.text) {
            printed if printed == ExitCode::SUCCESS => ExitCode::from(shown.code),
            failed => failed,
        });
    }
    let listening = Changes::new(bus).await;
    let mut changes =
        listening.map_err(|error| format!("cannot listen: {}", text::chain(&error)))?;
    let screen = std::io::stdout().is_terminal() && !request.json;
    let mut before = String::new();
    loop {
        let shown = look(bus, request).await?;
        if screen {
            // The cursor home, the screen and what is below erased (ECMA-48).
            if print(&format!("\x1b[H\x1b[2J{}", shown.text)) != ExitCode::SUCCESS {
                return Ok(ExitCode::FAILURE);
            }
        } else if shown.text != before && print(&shown.text) != ExitCode::SUCCESS {
            return Ok(ExitCode::FAILURE);
        }
        before = shown.text;
        if !changes.next(TICK).await {
            return Err("the connection to the system bus was lost".to_owned());
        }
    }
}

async fn look(bus: &Connection, request: &Request) -> Result<Shown, String> {
    let mut host = collect::host(bus).await;
    if request.view == View::Why {
        for name in &request.agents {
            if host.manager.is_some() && !host.agents.iter().any(|agent| agent.id() == *name) {
                return Err(format!("no agent {name:?} is configured"));
            }
        }
        if !request.agents.is_empty() {
            host.agents
                .retain(|agent| request.agents.contains(&agent.id()));
        }
        controllers::try_all(&mut host.agents).await;
    }
    if request.json {
        let shown = request.view.json(&host);
        shown.map_err(|error| format!("cannot write JSON: {error}"))
    } else {
        Ok(request.view.text(&host, Style::of_stdout()))
    }
}

async fn renew(bus: &Connection) -> Result<ExitCode, String> {
    let refused = |error: zbus::Error| agentd::refusal("buildos-netd", &error);
    let netd = network1::ManagerProxy::new(bus).await.map_err(refused)?;
    netd.renew().await.map_err(refused)?;
    Ok(ExitCode::SUCCESS)
}

fn look_for_mistakes(subjects: &[check::Subject]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for subject in subjects {
        match check::check(subject) {
            Ok(problems) => {
                for problem in &problems {
                    eprintln!("{}", text::Escaped::received(problem));
                    code = ExitCode::FAILURE;
                }
            }
            Err(error) => code = fail(&error),
        }
    }
    code
}

fn simulated(request: &simulate::Request) -> ExitCode {
    let report = match simulate::simulate(&request.path) {
        Ok(report) => report,
        Err(problems) => {
            for problem in &problems {
                eprintln!("{}", text::Escaped::received(problem));
            }
            return ExitCode::FAILURE;
        }
    };
    let shown = match request.json {
        true => serde_json::to_string(&report).map(|json| json + "\n"),
        false => Ok(report.text(Style::of_stdout())),
    };
    match shown.map(|text| print(&text)) {
        Ok(printed) if report.problems().is_empty() => printed,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => fail(&format!("cannot write JSON: {error}")),
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
