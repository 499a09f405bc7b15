//! Keeps the keys of the SSH server the same across boots.
//!
//! The keys on the volume win, whenever it is mounted: clients know them. Each boot makes new
//! keys before the volume is there, or at the same time. So every round compares, and replaces
//! what differs. Keys that the volume lacks are saved.
//!
//! A key is only valid with both files, so that a damaged pair is made anew.

use std::path::{Path, PathBuf};

use buildos_service::file::{self, WriteError};

use super::contents::HOST_KEYS;

/// Limit of a key file, bytes.
const LIMIT: usize = 16 << 10;
/// First and last line of a private key of OpenSSH.
const BEGIN: &[u8] = b"-----BEGIN OPENSSH PRIVATE KEY-----\n";
const END: &[u8] = b"-----END OPENSSH PRIVATE KEY-----\n";

/// What a round did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// Keys of `/etc/ssh` that were replaced by those of the volume.
    pub restored: usize,
    /// Keys that were saved.
    pub saved: usize,
    /// Files of the volume that cannot be used.
    pub damaged: Vec<PathBuf>,
}

/// A private key with its public key.
struct Pair {
    private: Vec<u8>,
    public: Vec<u8>,
}

/// Makes the keys in `etc` and `volume` the same.
///
/// # Errors
///
/// A directory is not writable. The other keys are not exchanged then.
pub fn exchange(etc: &Path, volume: &Path) -> Result<Exchanged, WriteError> {
    let mut exchanged = Exchanged::default();
    if !etc.exists() {
        return Ok(exchanged);
    }
    for names in HOST_KEYS.chunks_exact(2) {
        let [private, public] = names else { continue };
        let saved = read(volume, private, public);
        let used = read(etc, private, public);
        match (saved, used) {
            (Some(saved), used) => {
                if used.is_none_or(|used| used.private != saved.private) {
                    // sshd needs the private key only.
                    file::overwrite(&etc.join(public), &saved.public, 0o644)?;
                    file::overwrite(&etc.join(private), &saved.private, 0o600)?;
                    exchanged.restored += 1;
                }
            }
            (None, Some(used)) => {
                let path = volume.join(private);
                if path.exists() {
                    exchanged.damaged.push(path.clone());
                }
                // A pair counts once its private key is there.
                file::replace_durably(&volume.join(public), &used.public, 0o644)?;
                file::replace_durably(&path, &used.private, 0o600)?;
                exchanged.saved += 1;
            }
            (None, None) => {}
        }
    }
    Ok(exchanged)
}

fn read(directory: &Path, private: &str, public: &str) -> Option<Pair> {
    let read = |name: &str| file::read_bounded(&directory.join(name), LIMIT).ok();
    let pair = Pair {
        private: read(private)?,
        public: read(public)?,
    };
    let whole = pair.private.starts_with(BEGIN)
        && pair.private.ends_with(END)
        && pair.public.ends_with(b"\n");
    whole.then_some(pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    struct Trial {
        directory: TempDir,
    }

    impl Trial {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("etc")).unwrap();
            fs::create_dir(directory.path().join("volume")).unwrap();
            Self { directory }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.directory.path().join(path)
        }

        fn put(&self, place: &str, kind: &str, text: &str) {
            let name = format!("{place}/ssh_host_{kind}_key");
            let private = [BEGIN, text.as_bytes(), b"\n", END].concat();
            fs::write(self.path(&name), private).unwrap();
            fs::write(self.path(&format!("{name}.pub")), format!("{text}\n")).unwrap();
        }

        fn exchange(&self) -> Exchanged {
            exchange(&self.path("etc"), &self.path("volume")).unwrap()
        }

        fn private(&self, place: &str, kind: &str) -> String {
            fs::read_to_string(self.path(&format!("{place}/ssh_host_{kind}_key"))).unwrap()
        }
    }

    fn counts(exchanged: &Exchanged) -> (usize, usize) {
        (exchanged.restored, exchanged.saved)
    }

    #[test]
    fn keys_of_first_boot_are_saved_and_replace_those_of_later_boots() {
        let trial = Trial::new();
        assert_eq!(counts(&trial.exchange()), (0, 0));
        trial.put("etc", "ed25519", "first");
        assert_eq!(counts(&trial.exchange()), (0, 1));
        assert_eq!(counts(&trial.exchange()), (0, 0));
        // ssh-keygen can be faster or slower than the disk.
        trial.put("etc", "ed25519", "second");
        trial.put("etc", "rsa", "second");
        assert_eq!(counts(&trial.exchange()), (1, 1));
        assert!(trial.private("etc", "ed25519").contains("first"));
        assert!(trial.private("volume", "ed25519").contains("first"));
        assert!(trial.private("volume", "rsa").contains("second"));
    }

    #[test]
    fn damaged_key_of_the_volume_is_replaced() {
        let trial = Trial::new();
        trial.put("etc", "ed25519", "good");
        fs::write(trial.path("volume/ssh_host_ed25519_key"), BEGIN).unwrap();
        fs::write(trial.path("volume/ssh_host_ed25519_key.pub"), "").unwrap();
        let exchanged = trial.exchange();
        assert_eq!(counts(&exchanged), (0, 1));
        assert_eq!(
            exchanged.damaged,
            [trial.path("volume/ssh_host_ed25519_key")]
        );
        assert!(trial.private("volume", "ed25519").contains("good"));
    }

    #[test]
    fn private_keys_are_for_root_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let trial = Trial::new();
        trial.put("etc", "ed25519", "first");
        trial.exchange();
        let key = trial.path("volume/ssh_host_ed25519_key");
        assert_eq!(
            fs::metadata(key).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn host_without_ssh_keeps_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let exchanged = exchange(&directory.path().join("etc"), directory.path()).unwrap();
        assert_eq!(exchanged, Exchanged::default());
    }
}
