//! What an agent does as root: through sudo, unless it is root.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Output};

/// A tool did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It cannot be executed.
    #[error("cannot execute {0}")]
    Execute(String, #[source] io::Error),
    /// It failed; its own words.
    #[error("{command}: {said}")]
    Failed {
        /// The command line.
        command: String,
        /// What it wrote to its standard error stream.
        said: String,
    },
}

/// The command that runs `words` as root.
#[must_use]
pub fn command(words: &[&str]) -> Command {
    // The directory belongs to the effective user.
    let root = fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    let (program, arguments) = if root {
        (
            words.first().copied().unwrap_or_default(),
            words.get(1..).unwrap_or_default(),
        )
    } else {
        ("sudo", words)
    };
    let mut command = Command::new(program);
    if !root {
        command.arg("-n");
    }
    command.args(arguments);
    command
}

/// Runs the words of `line` as root, to the end; what they print.
///
/// # Errors
///
/// They cannot be run, or fail.
pub fn run(line: &str) -> Result<String, ToolError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = command(&words).output();
    finish(line, output)
}

/// The name of the user that this program runs as.
///
/// # Errors
///
/// Nobody knows it.
pub fn user() -> Result<String, ToolError> {
    let output = Command::new("id").arg("-nu").output();
    finish("id", output).map(|name| name.trim().to_owned())
}

pub(crate) fn finish(line: &str, output: io::Result<Output>) -> Result<String, ToolError> {
    let output = output.map_err(|error| ToolError::Execute(line.to_owned(), error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(ToolError::Failed {
            command: line.to_owned(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_what_failed() {
        let output = Command::new("sh")
            .args(["-c", "echo no >&2; exit 1"])
            .output();
        assert_eq!(finish("x y", output).unwrap_err().to_string(), "x y: no");
        let output = Command::new("/nonexistent").output();
        assert_eq!(
            finish("/nonexistent", output).unwrap_err().to_string(),
            "cannot execute /nonexistent"
        );
    }
}
