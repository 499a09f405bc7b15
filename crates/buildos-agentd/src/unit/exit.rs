//! Describes the exit status of an agent.

use std::fmt;

/// `si_code` of a SIGCHLD (waitid(2)).
const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
const CLD_DUMPED: i32 = 3;

/// Exit status of the main process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    ending: Ending,
    /// `Result` of the service, if it adds to the exit status.
    result: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The process was never executed.
    NotExecuted,
    Code(i32),
    Signal {
        number: i32,
        dumped: bool,
    },
}

impl Exit {
    /// Interprets `ExecMainCode`, `ExecMainStatus` and `Result` of a service that does not
    /// run. Returns [`None`] if it has never run.
    #[must_use]
    pub fn new(code: i32, status: i32, result: &str) -> Option<Self> {
        let ending = match code {
            CLD_EXITED => Ending::Code(status),
            CLD_KILLED | CLD_DUMPED => Ending::Signal {
                number: status,
                dumped: code == CLD_DUMPED,
            },
            _ if result == "success" => return None,
            _ => Ending::NotExecuted,
        };
        let implied = matches!(result, "success" | "exit-code" | "signal" | "core-dump");
        Some(Self {
            ending,
            result: (!implied).then(|| result.to_owned()),
        })
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ending {
            Ending::NotExecuted => f.write_str("not executed")?,
            Ending::Code(code) => write!(f, "exit code {code}")?,
            Ending::Signal { number, dumped } => {
                match signal_name(number) {
                    Some(name) => write!(f, "signal {name}")?,
                    None => write!(f, "signal {number}")?,
                }
                if dumped {
                    f.write_str(" with a core dump")?;
                }
            }
        }
        match &self.result {
            Some(result) => write!(f, " ({result})"),
            None => Ok(()),
        }
    }
}

/// Returns the name of a signal that ends processes.
const fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        libc::SIGHUP => "HUP",
        libc::SIGINT => "INT",
        libc::SIGQUIT => "QUIT",
        libc::SIGILL => "ILL",
        libc::SIGABRT => "ABRT",
        libc::SIGBUS => "BUS",
        libc::SIGFPE => "FPE",
        libc::SIGKILL => "KILL",
        libc::SIGSEGV => "SEGV",
        libc::SIGPIPE => "PIPE",
        libc::SIGALRM => "ALRM",
        libc::SIGTERM => "TERM",
        libc::SIGSYS => "SYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_is_shown_as_text() {
        for (code, status, result, expected) in [
            (1, 0, "success", "exit code 0"),
            (1, 1, "exit-code", "exit code 1"),
            (1, 0, "timeout", "exit code 0 (timeout)"),
            (2, 9, "signal", "signal KILL"),
            (2, 9, "oom-kill", "signal KILL (oom-kill)"),
            (2, 40, "signal", "signal 40"),
            (3, 11, "core-dump", "signal SEGV with a core dump"),
            (0, 0, "resources", "not executed (resources)"),
        ] {
            let exit = Exit::new(code, status, result).unwrap();
            assert_eq!(exit.to_string(), expected);
        }
        assert_eq!(Exit::new(0, 0, "success"), None);
    }
}
