//! Runs commands as root, with sudo unless the program is root.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Output};

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The command cannot be executed.
    #[error("cannot execute {0}")]
    Execute(String, #[source] io::Error),
    /// The command exited with a failure.
    #[error("{command}: {stderr}")]
    Failed {
        #[allow(missing_docs)]
        command: String,
        /// Output on its standard error stream.
        stderr: String,
    },
}

/// Returns the command that runs `words` as root.
#[must_use]
pub fn command(words: &[&str]) -> Command {
    // The directory belongs to the effective user.
    let is_root = fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    let (program, arguments) = if is_root {
        (
            words.first().copied().unwrap_or_default(),
            words.get(1..).unwrap_or_default(),
        )
    } else {
        ("sudo", words)
    };
    let mut command = Command::new(program);
    if !is_root {
        command.arg("-n");
    }
    command.args(arguments);
    command
}

/// Runs the command `line` as root and returns its output.
///
/// # Errors
///
/// The command cannot be executed, or fails.
pub fn run(line: &str) -> Result<String, ToolError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = command(&words).output();
    finish(line, output)
}

/// Returns the name of the user that runs this program.
///
/// # Errors
///
/// The user has no name.
pub fn user() -> Result<String, ToolError> {
    let output = Command::new("id").arg("-nu").output();
    finish("id", output).map(|name| name.trim().to_owned())
}

/// Returns the output of a finished command, or its failure.
pub(crate) fn finish(line: &str, output: io::Result<Output>) -> Result<String, ToolError> {
    let output = check(line, output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns a finished command that succeeded, or its failure.
pub(crate) fn check(line: &str, output: io::Result<Output>) -> Result<Output, ToolError> {
    let output = output.map_err(|error| ToolError::Execute(line.to_owned(), error))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(ToolError::Failed {
            command: line.to_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_command_and_error_output() {
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
