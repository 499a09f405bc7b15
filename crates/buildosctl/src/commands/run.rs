//! Runs the command that the arguments name.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use buildos_dbus_api::system_bus;
use buildos_service::text;
use zbus::Connection;

use super::{check, console, drain, machine, placed, publish, renew, show, update, volume};
use crate::cli::args::Invocation;
use crate::cli::help;
use crate::simulate;
use crate::term::{Style, fail, print};

/// Runs a command and returns the exit status of buildosctl.
pub(crate) fn run(invocation: Invocation) -> ExitCode {
    match invocation {
        Invocation::Help(None) => print(&help::all()),
        Invocation::Help(Some(command)) => print(&help::of(command)),
        Invocation::Version => print(concat!("buildosctl ", env!("CARGO_PKG_VERSION"), "\n")),
        Invocation::Show(request) => with_bus(async |bus| show::show(&bus, &request).await),
        Invocation::Drain(request) => with_bus(async |bus| {
            drain::drain(&bus, &request).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Invocation::Resume(agents) => with_bus(async |bus| {
            drain::resume(&bus, &agents).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Invocation::Machine(machine::Request::Attach(port, kind)) => with_bus(async |bus| {
            machine::attach::attach(&bus, &port, kind).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Invocation::Machine(machine::Request::Forward(request)) => with_bus(async |bus| {
            let text = machine::forward::forward(&bus, &request).await?;
            Ok(print(&text))
        }),
        Invocation::Renew => with_bus(async |bus| {
            renew::renew(&bus).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Invocation::Console => with_bus(async |bus| {
            console::keep(&bus).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Invocation::Log(arguments) => log(arguments),
        Invocation::Check(subjects) => check_all(&subjects),
        Invocation::Publish(request) => match publish::publish(&request) {
            Ok(text) => print(&text),
            Err(error) => fail(&error),
        },
        Invocation::Placed(request) => printed(placed::show(request)),
        Invocation::Update(update::Request::Status) => print(&update::status()),
        Invocation::Update(update::Request::Check { wait }) => with_bus(async |bus| {
            let (text, well) = update::check(&bus, wait).await?;
            Ok(printed(Ok((text, well))))
        }),
        Invocation::Update(update::Request::Now { wait }) => with_bus(async |bus| {
            let (text, is_well) = update::now(&bus, wait).await?;
            Ok(printed(Ok((text, is_well))))
        }),
        Invocation::Update(update::Request::History) => printed(update::history()),
        Invocation::Update(update::Request::Change(change)) => with_bus(async |bus| {
            let text = update::change(&bus, &change).await?;
            Ok(print(&text))
        }),
        Invocation::Volume(request) => printed(volume::run(&request)),
        Invocation::Simulate(request) => simulated(&request),
    }
}

/// Prints a text, and returns success if all is well.
fn printed(result: Result<(String, bool), String>) -> ExitCode {
    match result {
        Ok((text, true)) => print(&text),
        Ok((text, false)) => {
            print(&text);
            ExitCode::FAILURE
        }
        Err(error) => fail(&error),
    }
}

/// Connects to the system bus and runs `command`.
fn with_bus(command: impl AsyncFnOnce(Connection) -> Result<ExitCode, String>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the runtime: {error}")),
    };
    let result = runtime.block_on(async {
        let connection = system_bus()
            .await
            .map_err(|error| format!("cannot reach the system bus: {}", text::chain(&error)))?;
        command(connection).await
    });
    // Does not wait for name lookups that still run in a thread.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| fail(&error))
}

/// Replaces this process by journalctl. Returns only on failure.
fn log(arguments: Vec<OsString>) -> ExitCode {
    let error = Command::new("journalctl")
        .args(["--boot", "--unit=buildos*"])
        .args(arguments)
        .exec();
    fail(&format!("cannot run journalctl: {error}"))
}

fn check_all(subjects: &[check::Subject]) -> ExitCode {
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
