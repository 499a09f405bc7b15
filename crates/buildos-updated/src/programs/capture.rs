//! Runs a program and takes its output, within a limit.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};

use buildos_types::Escaped;

/// A program did not do its work.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ProgramError {
    #[error("cannot run {program}: it is not installed (package {package})")]
    Missing {
        program: String,
        package: &'static str,
    },
    #[error("cannot run {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} wrote more than {limit} bytes")]
    TooMuch { program: String, limit: usize },
    #[error("{program} failed ({status}){}", after_colon(message))]
    Failed {
        program: String,
        status: ExitStatus,
        /// What it wrote to standard error.
        message: String,
    },
}

fn after_colon(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(": {message}"),
    }
}

/// Bytes of standard error that are kept.
const LONGEST_MESSAGE: usize = 2000;

/// Starts a program; `package` has it in Debian.
///
/// # Errors
///
/// The program is not installed, or cannot be run.
pub fn start(command: &mut Command, package: &'static str) -> Result<Child, ProgramError> {
    spawn(command).map_err(|source| {
        let program = name(command);
        if source.kind() == io::ErrorKind::NotFound {
            ProgramError::Missing { program, package }
        } else {
            ProgramError::Start { program, source }
        }
    })
}

#[cfg(not(test))]
fn spawn(command: &mut Command) -> io::Result<Child> {
    command.spawn()
}

/// Tests write programs and run them at once. A child that another thread has forked meanwhile
/// has the program open for writing until it calls execve(2), and execution fails with ETXTBSY.
#[cfg(test)]
fn spawn(command: &mut Command) -> io::Result<Child> {
    use std::time::{Duration, Instant};

    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < end =>
            {
                tests::BUSY.store(true, std::sync::atomic::Ordering::Relaxed);
                thread::yield_now();
            }
            result => return result,
        }
    }
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
///
/// The program is not installed, fails, or writes more than `limit` bytes.
pub fn output(
    command: &mut Command,
    package: &'static str,
    limit: usize,
) -> Result<Vec<u8>, ProgramError> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(command, package)?;
    let message = messages(&mut child);
    let mut out = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let read = match child.stdout.take() {
        Some(stdout) => stdout.take(most).read_to_end(&mut out),
        None => Ok(0),
    };
    if read.is_err() || out.len() > limit {
        // It can have ended already.
        let _ = child.kill();
        let _ = child.wait();
        let program = name(command);
        return Err(match read {
            Err(source) => ProgramError::Start { program, source },
            Ok(_) => ProgramError::TooMuch { program, limit },
        });
    }
    finish(command, child, message)?;
    Ok(out)
}

/// Collects in a thread what a program writes to standard error.
pub fn messages(child: &mut Child) -> JoinHandle<String> {
    let stderr = child.stderr.take();
    thread::spawn(move || {
        let Some(mut stderr) = stderr else {
            return String::new();
        };
        let mut kept = Vec::new();
        let mut part = [0; 1024];
        // Reads to the end: the program must not wait for a reader.
        while let Ok(count @ 1..) = stderr.read(&mut part) {
            let room = LONGEST_MESSAGE.saturating_sub(kept.len()).min(count);
            kept.extend_from_slice(part.get(..room).unwrap_or_default());
        }
        one_line(&kept)
    })
}

/// Joins the lines of a message, escaped.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<_> = lines.map(|line| Escaped::new(line).to_string()).collect();
    lines.join("; ")
}

/// Waits for the end of a program. `message` comes from [`messages`].
///
/// # Errors
///
/// It failed.
pub fn finish(
    command: &Command,
    mut child: Child,
    message: JoinHandle<String>,
) -> Result<(), ProgramError> {
    let program = name(command);
    let status = child.wait();
    let message = message.join().unwrap_or_default();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(ProgramError::Failed {
            program,
            status,
            message,
        }),
        Err(source) => Err(ProgramError::Start { program, source }),
    }
}

fn name(command: &Command) -> String {
    Escaped::from_bytes(command.get_program().as_encoded_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_service::text::chain;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    /// True once a program was open for writing when it was to be run.
    pub(super) static BUSY: AtomicBool = AtomicBool::new(false);

    fn shell(script: &str, limit: usize) -> Result<Vec<u8>, String> {
        output(Command::new("sh").args(["-c", script]), "dash", limit).map_err(|e| chain(&e))
    }

    #[test]
    fn output_within_the_limit_is_returned() {
        assert_eq!(shell("printf abc", 3).unwrap(), b"abc");
        assert_eq!(shell("cat", 3).unwrap(), b"");
    }

    #[test]
    fn endless_output_is_cut_off() {
        assert_eq!(
            shell("yes", 1000).unwrap_err(),
            "sh wrote more than 1000 bytes"
        );
        let noisy = "head -c 3000000 /dev/zero >&2; printf x";
        assert_eq!(shell(noisy, 10).unwrap(), b"x");
    }

    #[test]
    fn failure_has_status_and_escaped_message() {
        let error = shell("printf 'one\\n\\n  two\\033[0m\\n' >&2; exit 3", 10).unwrap_err();
        assert_eq!(error, "sh failed (exit status: 3): one; two\\u{1b}[0m");
        assert_eq!(
            shell("exit 1", 10).unwrap_err(),
            "sh failed (exit status: 1)"
        );
        let long = shell("yes | head -c 100000 >&2; exit 1", 10).unwrap_err();
        assert!(long.len() < 4000, "{}", long.len());
    }

    #[test]
    fn missing_program_names_its_package() {
        let error = output(&mut Command::new("/nonexistent/sqv"), "sqv", 1).unwrap_err();
        assert_eq!(
            chain(&error),
            "cannot run /nonexistent/sqv: it is not installed (package sqv)"
        );
    }

    #[test]
    fn program_that_is_open_for_writing_is_run_once_it_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        fs::write(&program, "#!/bin/sh\nprintf abc\n").unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let writer = File::options().append(true).open(&program).unwrap();
        thread::scope(|scope| {
            let runs = scope.spawn(|| output(&mut Command::new(&program), "dash", 3));
            let end = Instant::now() + Duration::from_secs(20);
            while !BUSY.load(Ordering::Relaxed) && !runs.is_finished() {
                assert!(Instant::now() < end, "the program was not run");
                thread::yield_now();
            }
            drop(writer);
            assert_eq!(runs.join().unwrap().unwrap(), b"abc");
        });
    }
}
