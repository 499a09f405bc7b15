//! Identifies and authenticates an agent by its RSA key, with openssl(1).

use crate::sudo::{self, ToolError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// RSA key of an agent.
#[derive(Debug, Clone)]
pub struct AgentKey {
    file: PathBuf,
    fingerprint: String,
}

impl AgentKey {
    /// Reads a private key in PEM.
    ///
    /// # Errors
    ///
    /// The file is not a private key, or openssl(1) is not installed.
    pub fn read(file: &Path) -> Result<Self, ToolError> {
        let public = command(
            &["pkey", "-pubout", "-outform", "DER", "-in"],
            Some(file),
            b"",
        )?;
        Ok(Self {
            file: file.to_owned(),
            fingerprint: sha256(&public)?,
        })
    }

    /// Returns the SHA-256 sum of the public key in DER, by which controllers know agents.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the signature of a challenge (PKCS#1 v1.5) in base64.
    ///
    /// # Errors
    ///
    /// openssl(1) fails.
    pub fn sign(&self, challenge: &str) -> Result<String, ToolError> {
        let sign = ["pkeyutl", "-sign", "-inkey"];
        let signature = command(&sign, Some(&self.file), challenge.as_bytes())?;
        let encoded = command(&["base64", "-A"], None, &signature)?;
        Ok(String::from_utf8_lossy(&encoded).trim().to_owned())
    }
}

/// Returns the SHA-256 sum of `data` in hexadecimal.
///
/// # Errors
///
/// openssl(1) fails.
pub fn sha256(data: &[u8]) -> Result<String, ToolError> {
    // The output is "SUM *stdin".
    let line = command(&["dgst", "-sha256", "-r"], None, data)?;
    let line = String::from_utf8_lossy(&line);
    let sum = line.split_whitespace().next().unwrap_or_default();
    Ok(sum.to_owned())
}

fn command(words: &[&str], file: Option<&Path>, input: &[u8]) -> Result<Vec<u8>, ToolError> {
    let line = format!("openssl {}", words.join(" "));
    let mut command = Command::new("openssl");
    command.args(words).args(file);
    let output = run(&mut command, input);
    sudo::check(&line, output).map(|output| output.stdout)
}

fn run(command: &mut Command, input: &[u8]) -> io::Result<Output> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input reports its own error.
        let _ = stdin.write_all(input);
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn openssl(arguments: &[&str], file: &Path) -> Vec<u8> {
        let output = Command::new("openssl").args(arguments).arg(file).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    #[test]
    fn signature_verifies_with_the_public_key() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        openssl(&["genrsa", "-out"], &key);
        let public = directory.path().join("public");
        std::fs::write(&public, openssl(&["pkey", "-pubout", "-in"], &key)).unwrap();
        let agent = AgentKey::read(&key).unwrap();
        let der = openssl(&["pkey", "-pubin", "-outform", "DER", "-in"], &public);
        assert_eq!(agent.fingerprint(), sha256(&der).unwrap());
        let signature = agent.sign("nonce").unwrap();
        let raw = command(&["base64", "-d", "-A"], None, signature.as_bytes()).unwrap();
        let verify = ["pkeyutl", "-verifyrecover", "-pubin", "-inkey"];
        assert_eq!(command(&verify, Some(&public), &raw).unwrap(), b"nonce");
    }

    #[test]
    fn sha256_of_known_text_is_known() {
        // FIPS 180-2, B.1.
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc").unwrap(), sum);
    }

    #[test]
    fn file_without_private_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        std::fs::write(&key, "key\n").unwrap();
        let error = AgentKey::read(&key).unwrap_err().to_string();
        assert!(error.starts_with("openssl pkey "), "{error}");
    }
}
