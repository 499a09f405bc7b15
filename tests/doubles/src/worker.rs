//! Runs one task in a build machine.
//!
//! The worker acquires a lease, reads the task by TFTP, downloads the source, compiles and
//! runs the C program, runs the program `test` of the machine in it, and writes the result by TFTP.

use crate::auxiliary;
use crate::login;
use crate::machine_list::TEST;
use crate::manifest::{self, Manifest};
use crate::tftp::{self, TransferError};
use crate::udhcpc::{self, LeaseError};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Maximum length of the source in bytes.
const MAX_SOURCE: u64 = 1_048_576;
/// Timeout of the download.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Compilers in order of preference; the first is small enough for an image.
const COMPILERS: [&str; 3] = ["tcc", "cc", "gcc"];

/// The worker cannot send a result.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The machine has no lease.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The agent does not send the task, or does not accept the result.
    #[error("cannot exchange files with the agent at {0}")]
    Transfer(SocketAddr, #[source] TransferError),
    /// The task is not a manifest.
    #[error("the task is not a manifest")]
    Task(#[from] manifest::ParseError),
    /// The directory cannot be used.
    #[error("cannot use {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
}

/// Runs a task in a new `directory` and delays the result by `slow`. `machine` is the root directory
/// of the machine.
///
/// # Errors
///
/// The agent gets no result.
pub fn work(
    directory: &Path,
    machine: Option<&Path>,
    agent: SocketAddr,
    slow: Duration,
) -> Result<(), WorkerError> {
    fs::create_dir_all(directory)
        .map_err(|error| WorkerError::Directory(directory.to_owned(), error))?;
    udhcpc::acquire(directory)?;
    let transfer = |error| WorkerError::Transfer(agent, error);
    let task = tftp::get(agent, tftp::TASK_FILE).map_err(transfer)?;
    let task = manifest::parse(&String::from_utf8_lossy(&task))?;
    let task = task.into_iter().next().unwrap_or_default();
    let result = manifest::write(&[build(directory, machine, &task)]);
    std::thread::sleep(slow);
    tftp::put(agent, tftp::RESULT_FILE, result.as_bytes()).map_err(transfer)
}

/// Asks the auxiliary machines, downloads, compiles and runs the program of the task, waits for
/// the person of an interactive task, runs the program of the machine, and returns the result.
fn build(directory: &Path, machine: Option<&Path>, task: &Manifest) -> Manifest {
    let mut steps = Vec::new();
    if let Some(environment) = task.get(auxiliary::ENVIRONMENT) {
        steps.push(("configure", auxiliary::ask(environment)));
    }
    let update = download(task.get("repository-url").unwrap_or_default())
        .and_then(|source| compile(directory, &source));
    let is_compiled = update.is_ok();
    steps.push(("update", update));
    if is_compiled {
        let program = directory.join("program");
        let mut test = execute(Command::new(program).current_dir(directory));
        if let (Some(breakpoint), Ok(log)) = (task.get("interactive"), &test) {
            let said = login::wait(breakpoint);
            test = said
                .map(|line| format!("{}\nlogin: {line}", log.trim_end()))
                .map_err(|error| format!("cannot wait for a login: {error}"));
        }
        steps.push(("test", test));
        if let Some(machine) = machine {
            let mut program = Command::new("chroot");
            program.arg(machine).arg(format!("/{TEST}"));
            steps.push(("test-installed", execute(&mut program)));
        }
    }
    result(task, &steps)
}

/// Log of an operation, by its success.
type Step = Result<String, String>;

fn result(task: &Manifest, steps: &[(&str, Step)]) -> Manifest {
    let status = |step: &Step| if step.is_ok() { "success" } else { "error" };
    let all: Step = match steps.iter().find(|(_, step)| step.is_err()) {
        Some(_) => Err(String::new()),
        None => Ok(String::new()),
    };
    let mut manifest = Manifest::default();
    for name in ["name", "version"] {
        manifest = manifest.with(name, task.get(name).unwrap_or_default());
    }
    manifest = manifest.with("status", status(&all));
    for (operation, step) in steps {
        let (Ok(log) | Err(log)) = step;
        manifest = manifest
            .with(&format!("{operation}-status"), status(step))
            .with_lines(&format!("{operation}-log"), log);
    }
    manifest
}

fn download(url: &str) -> Result<String, String> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(DOWNLOAD_TIMEOUT))
        .build();
    let failed = |error: ureq::Error| format!("cannot fetch {url}: {error}");
    let agent: ureq::Agent = config.into();
    let mut response = agent.get(url).call().map_err(failed)?;
    let body = response.body_mut().with_config().limit(MAX_SOURCE);
    body.read_to_string().map_err(failed)
}

fn compile(directory: &Path, source: &str) -> Step {
    fs::write(directory.join("source.c"), source)
        .map_err(|error| format!("cannot write the source: {error}"))?;
    for compiler in COMPILERS {
        let mut command = Command::new(compiler);
        command
            .args(["-o", "program", "source.c"])
            .current_dir(directory);
        match command.output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            output => return log_of(output).map(|log| format!("{compiler} source.c\n{log}")),
        }
    }
    Err(format!("no compiler: none of {}", COMPILERS.join(", ")))
}

fn execute(command: &mut Command) -> Step {
    log_of(command.output())
}

/// Returns the output of a program, with the exit status of a failure.
fn log_of(output: io::Result<Output>) -> Step {
    let output = output.map_err(|error| format!("cannot be executed: {error}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{text}\n{}", output.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Manifest {
        Manifest::default()
            .with("name", "hello")
            .with("version", "1.0.0")
    }

    #[test]
    fn result_has_status_and_log_of_each_operation() {
        let good = [
            ("update", Ok("tcc source.c\n".to_owned())),
            ("test", Ok("hello\nworld\n".to_owned())),
        ];
        assert_eq!(
            manifest::write(&[result(&task(), &good)]),
            ": 1\nname: hello\nversion: 1.0.0\nstatus: success\nupdate-status: success\n\
             update-log: tcc source.c\ntest-status: success\ntest-log:\\\nhello\nworld\n\\\n"
        );
        let bad = [("update", Err("no".to_owned()))];
        assert_eq!(
            manifest::write(&[result(&task(), &bad)]),
            ": 1\nname: hello\nversion: 1.0.0\nstatus: error\nupdate-status: error\nupdate-log: no\n"
        );
    }

    #[test]
    fn unreachable_source_makes_an_error_result() {
        let directory = tempfile::tempdir().unwrap();
        let task = task().with("repository-url", "http://127.0.0.1:1/x.c");
        let built = build(directory.path(), None, &task);
        assert_eq!(built.get("status"), Some("error"));
        assert!(
            built
                .get("update-log")
                .unwrap()
                .starts_with("cannot fetch http")
        );
    }

    #[test]
    fn log_of_failed_program_ends_with_exit_status() {
        let step = execute(Command::new("sh").args(["-c", "echo x; exit 3"]));
        assert_eq!(step, Err("x\n\nexit status: 3".to_owned()));
    }
}
