//! Lists what is kept on the state volume.
//!
//! | path on the volume | content | restored |
//! |---|---|---|
//! | `ssh/ssh_host_*` | keys of the SSH server | to `/etc/ssh`, always |
//! | `random-seed` | randomness for the kernel, used once | to the kernel |
//! | `clock` | time when the state was last saved | to a clock that is behind |
//! | `netd/state.json` | lease and uplink | to `/run/buildos/state/netd.json` |
//! | `agentd/state.json` | drains and failures of agents | for operators |
//! | `updated/choices.json` | choices of the operator about updates | to `/run/buildos/state/updated.json` |
//! | `updated/os.json` | operating systems that came back | to `/run/buildos/state/updated-os.json` |
//! | `updated/os-accepted` | serial of the channel that brought an operating system | to `/run/buildos/state/updated-os-accepted` |
//! | `journal/BOOT.log` | end of the journal of a boot | for operators |
//!
//! Each file has a limit, so that no daemon can fill the volume.

/// A file of a daemon that is kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Copy {
    /// Path below `/`.
    pub source: &'static str,
    /// Path on the volume.
    pub saved: &'static str,
    /// Path below `/` to which the file of the former boot is copied, if a daemon reads it.
    pub restored: Option<&'static str>,
    /// Member of the file's JSON object without which the file on the volume stays as it is.
    pub needs: Option<&'static str>,
}

/// The files of daemons.
pub const COPIES: [Copy; 5] = [
    Copy {
        source: "run/buildos/netd/state.json",
        saved: "netd/state.json",
        restored: Some("run/buildos/state/netd.json"),
        // A host without a lease asks for that of the boot before, also after a power cut.
        needs: Some("resume"),
    },
    Copy {
        source: "run/buildos/agentd/state.json",
        saved: "agentd/state.json",
        restored: None,
        needs: None,
    },
    Copy {
        source: "var/lib/buildos/updated/choices.json",
        saved: "updated/choices.json",
        restored: Some("run/buildos/state/updated.json"),
        // A choice can come before the volume. It must not replace those of the former boot.
        needs: Some("merged"),
    },
    Copy {
        source: "var/lib/buildos/updated/os.json",
        saved: "updated/os.json",
        restored: Some("run/buildos/state/updated-os.json"),
        // As above.
        needs: Some("merged"),
    },
    Copy {
        source: "var/lib/buildos/os-handover/accepted",
        saved: "updated/os-accepted",
        restored: Some("run/buildos/state/updated-os-accepted"),
        // buildos-os-handover accepts no serial below that of the former boot.
        needs: None,
    },
];

/// Limit of a file of a daemon, bytes.
pub const COPY_LIMIT: usize = 256 << 10;

/// Directory with the keys of the SSH server, below `/`.
pub const SSH: &str = "etc/ssh";

/// Keys of the SSH server, which ssh-keygen -A makes: private and public.
pub const HOST_KEYS: [&str; 6] = [
    "ssh_host_ecdsa_key",
    "ssh_host_ecdsa_key.pub",
    "ssh_host_ed25519_key",
    "ssh_host_ed25519_key.pub",
    "ssh_host_rsa_key",
    "ssh_host_rsa_key.pub",
];

/// Files whose change is saved, below `/`. The private keys are written before the public ones.
pub const WATCHED: [&str; 10] = [
    "run/buildos/netd/state.json",
    "run/buildos/agentd/state.json",
    // The directory of the choices can come late. It is listed before its file, as the kernel
    // replaces the events of a watch.
    "var/lib/buildos/updated",
    "var/lib/buildos/updated/choices.json",
    "var/lib/buildos/updated/os.json",
    "var/lib/buildos/os-handover",
    "var/lib/buildos/os-handover/accepted",
    "etc/ssh/ssh_host_ecdsa_key.pub",
    "etc/ssh/ssh_host_ed25519_key.pub",
    "etc/ssh/ssh_host_rsa_key.pub",
];

/// Directories of the volume, with their modes.
pub const DIRECTORIES: [(&str, u32); 5] = [
    ("ssh", 0o700),
    ("netd", 0o755),
    ("agentd", 0o755),
    ("updated", 0o755),
    // As the journal: for root and the group of its readers.
    ("journal", 0o700),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_watched_and_has_a_directory() {
        for Copy { source, saved, .. } in &COPIES {
            assert!(WATCHED.contains(source), "{source}");
            let directory = saved.split('/').next().unwrap();
            assert!(DIRECTORIES.iter().any(|(name, _)| *name == directory));
        }
    }
}
