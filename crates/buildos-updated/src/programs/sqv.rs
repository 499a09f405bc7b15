//! Verifies cleartext signatures with sqv(1).
//!
//! apt of Debian 13 brings sqv. It counts certificates, so that two signatures of one key
//! are one, and it writes exactly the text that was signed: no other parser decides where
//! that text begins and ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use buildos_channel::model::Limits;
use buildos_service::file::read_bounded;
use buildos_service::text;

use super::capture::{self, ProgramError};

/// A text whose signatures are valid.
#[derive(Debug, PartialEq, Eq)]
pub struct Signed {
    #[allow(missing_docs)]
    pub text: String,
    /// Certificates with a valid signature.
    pub signatures: u8,
}

/// Returns the signed text of `file`, whose signatures were made by keys of `keyrings`.
///
/// # Errors
///
/// Fewer than `required` certificates of the keyrings have a valid signature, or sqv cannot
/// run.
pub fn verify(
    program: &Path,
    file: &Path,
    keyrings: &[PathBuf],
    required: u8,
) -> Result<Signed, String> {
    if keyrings.is_empty() {
        return Err("there is no keyring".to_owned());
    }
    if let Some(missing) = keyrings.iter().find(|keyring| !keyring.is_file()) {
        return Err(format!("there is no keyring {}", missing.display()));
    }
    let directory = tempfile::tempdir()
        .map_err(|error| format!("cannot make a temporary directory: {error}"))?;
    // sqv refuses to replace a file. It writes it before it judges, so the file means
    // nothing unless sqv succeeds.
    let out = directory.path().join("text");
    let mut command = Command::new(program);
    command.env("RUST_BACKTRACE", "0");
    for keyring in keyrings {
        command.arg("--keyring").arg(keyring);
    }
    command
        .arg(format!("--signatures={required}"))
        .arg("--output")
        .arg(&out)
        .arg("--cleartext")
        .arg(file);
    let certificates = capture::output(&mut command, "sqv", 64 * 1024).map_err(explain)?;
    let count = certificates
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .count();
    let place = out.display();
    let text = read_bounded(&out, Limits::TEXT)
        .map_err(|error| format!("cannot read {place}: {error}"))?;
    let text = String::from_utf8(text).map_err(|_| format!("{place} is not text in UTF-8"))?;
    // The directory is temporary; the text was read.
    let _ = fs::remove_file(&out);
    Ok(Signed {
        text,
        signatures: u8::try_from(count).unwrap_or(u8::MAX),
    })
}

fn explain(error: ProgramError) -> String {
    if let ProgramError::Failed { message, .. } = &error {
        if message.contains("'--cleartext'") || message.contains("'--output'") {
            return "sqv is too old for cleartext signatures: 1.3 is needed, as in Debian 13"
                .to_owned();
        }
    }
    format!("the signature is not valid: {}", text::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// Runs [`verify`] with a script instead of sqv. Its `$out` is the output file.
    fn verified(script: &str) -> Result<Signed, String> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("sqv");
        let head = "#!/bin/sh\nout=\nfor a; do [ \"$p\" = --output ] && out=$a; p=$a; done\n";
        fs::write(&program, format!("{head}{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let keyring = directory.path().join("keys.gpg");
        fs::write(&keyring, "").unwrap();
        let result = verify(&program, Path::new("file"), &[keyring], 2);
        result.map_err(|error| error.replace(directory.path().to_str().unwrap(), "DIR"))
    }

    #[test]
    fn text_and_certificates_are_returned() {
        assert_eq!(
            verified("printf 'format = 1' >$out; printf 'AA\\nBB\\n'"),
            Ok(Signed {
                text: "format = 1".to_owned(),
                signatures: 2
            })
        );
    }

    #[test]
    fn arguments_name_keyring_threshold_and_file() {
        let signed = verified("echo \"$*\" | sed 's:/[^ ]*/::g' >$out; echo A").unwrap();
        assert_eq!(
            signed.text,
            "--keyring keys.gpg --signatures=2 --output text --cleartext file\n"
        );
    }

    #[test]
    fn text_of_failed_verification_is_not_used() {
        let error = verified("echo manipulated >$out; echo '  Bad signature' >&2; exit 1");
        assert_eq!(
            error.unwrap_err(),
            "the signature is not valid: DIR/sqv failed (exit status: 1): Bad signature"
        );
    }

    #[test]
    fn old_sqv_missing_text_and_endless_text_are_explained() {
        let old = verified("echo \"error: unexpected argument '--cleartext' found\" >&2; exit 2");
        assert!(old.unwrap_err().starts_with("sqv is too old"));
        assert!(verified("echo A").unwrap_err().starts_with("cannot read "));
        let endless = verified("head -c 600000 /dev/zero >$out; echo A").unwrap_err();
        assert!(endless.ends_with("larger than 524288 bytes"), "{endless}");
        let file = Path::new("/nonexistent/keys");
        let error = verify(Path::new("sqv"), file, &[file.to_owned()], 1).unwrap_err();
        assert_eq!(error, "there is no keyring /nonexistent/keys");
    }
}
