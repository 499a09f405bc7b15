//! What happens in a build machine: a lease, the task by TFTP, the source from the
//! network, a C program compiled and run, and the result put back by TFTP.

use crate::manifest::{self, Manifest};
use crate::tftp::{self, TransferError};
use crate::udhcpc::{self, LeaseError};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// The file that holds the task.
pub const TASK: &str = "build/task.manifest";
/// The file that the result is put to.
pub const RESULT: &str = "build/result.manifest";

/// The longest source that is fetched, bytes.
const MAX_SOURCE: u64 = 1_048_576;
/// How long the source may take.
const FETCH: Duration = Duration::from_secs(60);
/// Compilers, in the order of preference: the first is small enough for an image.
const COMPILERS: [&str; 3] = ["tcc", "cc", "gcc"];

/// Nothing can be said about the task, not even to its agent.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No address.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// No task, or nobody takes the result.
    #[error("cannot exchange files with the agent at {0}")]
    Transfer(SocketAddr, #[source] TransferError),
    /// The task is none.
    #[error("the task is no manifest")]
    Task(#[from] manifest::ParseError),
    /// The directory cannot be used.
    #[error("cannot use {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
}

/// Does a task in `directory`, which is made, and takes this much longer for it.
///
/// # Errors
///
/// Its agent learns nothing of the result.
pub fn work(directory: &Path, agent: SocketAddr, slow: Duration) -> Result<(), WorkerError> {
    fs::create_dir_all(directory)
        .map_err(|error| WorkerError::Directory(directory.to_owned(), error))?;
    udhcpc::take(directory)?;
    let transfer = |error| WorkerError::Transfer(agent, error);
    let task = tftp::get(agent, TASK).map_err(transfer)?;
    let task = manifest::parse(&String::from_utf8_lossy(&task))?;
    let task = task.into_iter().next().unwrap_or_default();
    let result = manifest::write(&[build(directory, &task)]);
    std::thread::sleep(slow);
    tftp::put(agent, RESULT, result.as_bytes()).map_err(transfer)
}

/// Fetches, compiles and runs what the task names; the result.
fn build(directory: &Path, task: &Manifest) -> Manifest {
    let mut steps = Vec::new();
    let update = fetch(task.get("repository-url").unwrap_or_default())
        .and_then(|source| compile(directory, &source));
    let compiled = update.is_ok();
    steps.push(("update", update));
    if compiled {
        let program = directory.join("program");
        steps.push((
            "test",
            execute(Command::new(program).current_dir(directory)),
        ));
    }
    result(task, &steps)
}

/// What an operation said, if it went well or not.
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

fn fetch(url: &str) -> Result<String, String> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(FETCH))
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
            output => return said(output).map(|log| format!("{compiler} source.c\n{log}")),
        }
    }
    Err(format!("no compiler: none of {}", COMPILERS.join(", ")))
}

fn execute(command: &mut Command) -> Step {
    said(command.output())
}

fn said(output: io::Result<Output>) -> Step {
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
    fn a_result_says_how_each_operation_went() {
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
    fn a_source_that_cannot_be_fetched_is_an_error_of_the_task() {
        let directory = tempfile::tempdir().unwrap();
        let task = task().with("repository-url", "http://127.0.0.1:1/x.c");
        let built = build(directory.path(), &task);
        assert_eq!(built.get("status"), Some("error"));
        assert!(
            built
                .get("update-log")
                .unwrap()
                .starts_with("cannot fetch http")
        );
    }

    #[test]
    fn a_program_that_fails_is_told_with_its_status() {
        let step = execute(Command::new("sh").args(["-c", "echo x; exit 3"]));
        assert_eq!(step, Err("x\n\nexit status: 3".to_owned()));
    }
}
