//! Computes the fingerprints of the keys that sign the answers of agents.
//!
//! A controller (brep) knows an agent by the SHA-256 sum of its public RSA key in DER.
//! systemd shows a key to its unit and to root, as a file below /run/credentials, while the
//! unit runs. openssl(1) parses it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::model::Agent;

/// Returns the file of the key among the arguments of a unit: `--auth-key` gets the path of
/// a credential.
pub(crate) fn file(unit: &str, arguments: &[String]) -> Option<PathBuf> {
    let directory = Path::new("/run/credentials").join(unit);
    let mut files = arguments.iter().map(Path::new);
    files
        .find(|file| file.parent() == Some(&directory))
        .map(Path::to_owned)
}

/// Records the fingerprints of the keys that this user may read.
pub(crate) fn find(agents: &mut [Agent]) {
    for agent in agents {
        let Some(file) = &agent.run.key_file else {
            continue;
        };
        if let Ok(key) = std::fs::read(file) {
            agent.auth_key = Some(fingerprint(&key));
        }
    }
}

/// Returns the fingerprint of a private key in PEM, or why it has none.
fn fingerprint(key: &[u8]) -> String {
    let public = match openssl(
        &["rsa", "-passin", "pass:", "-pubout", "-outform", "DER"],
        key,
    ) {
        Ok(output) if output.status.success() => output.stdout,
        Ok(_) => return "not an RSA key without a passphrase".to_owned(),
        Err(error) => return format!("unknown: openssl cannot be executed: {error}"),
    };
    let sum = openssl(&["dgst", "-sha256", "-r"], &public).map(|output| output.stdout);
    let sum = sum.unwrap_or_default();
    let sum = String::from_utf8_lossy(&sum);
    sum.split_whitespace().next().unwrap_or_default().to_owned()
}

fn openssl(arguments: &[&str], input: &[u8]) -> io::Result<Output> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // openssl does not read the rest of a file that is no key.
        let _ = stdin.write_all(input);
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_the_credential_among_the_arguments() {
        let unit = "buildos-bbot@a.service";
        let words = |path: &str| ["--auth-key", path, "https://a/"].map(str::to_owned);
        let path = "/run/credentials/buildos-bbot@a.service/key";
        assert_eq!(file(unit, &words(path)), Some(path.into()));
        assert_eq!(file(unit, &words("/etc/key")), None);
        assert_eq!(file("buildos-bbot@b.service", &words(path)), None);
    }

    #[test]
    fn fingerprint_is_the_sum_of_the_public_key() {
        let key = openssl(&["genrsa"], b"").unwrap().stdout;
        let public = openssl(&["pkey", "-pubout", "-outform", "DER"], &key).unwrap();
        let sum = openssl(&["sha256", "-r"], &public.stdout).unwrap().stdout;
        assert!(sum.starts_with(fingerprint(&key).as_bytes()));
        assert_eq!(fingerprint(&key).len(), 64);
        assert_eq!(fingerprint(b"key\n"), "not an RSA key without a passphrase");
    }
}
