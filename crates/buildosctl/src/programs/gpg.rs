//! Signs with gpg(1).
//!
//! Debian 12 and 13 have gpg with the same options, and it works with tokens and agents.
//! The key and its passphrase never enter this program.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use buildos_service::text;
use buildos_updated::programs::capture;

/// Returns the text with a cleartext signature of each key.
///
/// # Errors
///
/// gpg is not installed, or cannot sign.
pub(crate) fn clearsign(program: &Path, text: &str, keys: &[String]) -> Result<Vec<u8>, String> {
    let directory = tempfile::tempdir()
        .map_err(|error| format!("cannot make a temporary directory: {error}"))?;
    let (plain, signed) = (
        directory.path().join("text"),
        directory.path().join("signed"),
    );
    fs::write(&plain, text)
        .map_err(|error| format!("cannot write {}: {error}", plain.display()))?;
    let mut command = Command::new(program);
    command.args([
        "--quiet",
        "--digest-algo",
        "SHA512",
        "--clearsign",
        "--output",
    ]);
    command.arg(&signed);
    for key in keys {
        command.arg("--local-user").arg(key);
    }
    command.arg(&plain);
    // gpg can ask on the terminal. What it writes is for the operator.
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let result = capture::start(&mut command, "gnupg").and_then(|mut child| {
        let message = capture::messages(&mut child);
        capture::finish(&command, child, message)
    });
    result.map_err(|error| format!("cannot sign: {}", text::chain(&error)))?;
    fs::read(&signed).map_err(|error| format!("gpg wrote no signed text: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_of_gpg_is_reported() {
        let keys = ["0xAB".to_owned()];
        let error = clearsign(Path::new("false"), "x", &keys).unwrap_err();
        assert_eq!(error, "cannot sign: false failed (exit status: 1)");
        let error = clearsign(Path::new("/nonexistent/gpg"), "x", &keys).unwrap_err();
        assert!(
            error.ends_with("it is not installed (package gnupg)"),
            "{error}"
        );
    }
}
