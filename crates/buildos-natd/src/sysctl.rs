//! Reads and writes boolean sysctls of the network: files below `/proc/sys/net` that
//! contain `0` or `1`.
//!
//! A process with CAP_NET_ADMIN can write them without owning the files
//! (`net_ctl_permissions`, net/sysctl_net.c).

use std::io;
use std::path::{Path, PathBuf};

use buildos_types::InterfaceName;

/// A sysctl could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}", path.display())]
pub struct SysctlError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The network sysctls below a root directory, which is `/` outside of tests.
#[derive(Debug, Clone)]
pub struct Sysctls {
    directory: PathBuf,
}

impl Sysctls {
    /// Returns the sysctls of this network namespace.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            directory: root.join("proc/sys/net"),
        }
    }

    /// Returns the value, or [`None`] if the sysctl does not exist.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or the sandbox hides it.
    pub fn get(&self, name: &str) -> Result<Option<bool>, SysctlError> {
        let path = self.directory.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim() == "1")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SysctlError {
                verb: "read",
                path,
                source,
            }),
        }
    }

    /// Sets the value. Returns true if it was different, and [`None`] if the sysctl does
    /// not exist.
    ///
    /// # Errors
    ///
    /// As [`Sysctls::get`]; `/proc/sys` is read-only; CAP_NET_ADMIN is missing.
    pub fn set(&self, name: &str, value: bool) -> Result<Option<bool>, SysctlError> {
        match self.get(name)? {
            None => return Ok(None),
            Some(current) if current == value => return Ok(Some(false)),
            Some(_) => {}
        }
        let path = self.directory.join(name);
        std::fs::write(&path, if value { "1" } else { "0" })
            .map(|()| Some(true))
            .map_err(|source| SysctlError {
                verb: "write",
                path,
                source,
            })
    }
}

/// Returns the name of `net.ipv4.conf.INTERFACE.forwarding`.
///
/// The setting of the interface that receives a packet applies (`IN_DEV_FORWARD` in
/// net/ipv4/route.c). natd sets it for the two bridges, so packets from other interfaces
/// are not forwarded.
#[must_use]
pub fn forwarding(interface: &InterfaceName) -> String {
    format!("ipv4/conf/{interface}/forwarding")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_is_read_and_set() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("proc/sys/net/ipv4/conf/br0");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("forwarding"), "0\n").unwrap();
        let sysctls = Sysctls::below(root.path());
        let name = "ipv4/conf/br0/forwarding";
        assert_eq!(sysctls.get(name).unwrap(), Some(false));
        assert_eq!(sysctls.set(name, true).unwrap(), Some(true));
        assert_eq!(sysctls.set(name, true).unwrap(), Some(false));
        assert_eq!(sysctls.get(name).unwrap(), Some(true));
    }

    #[test]
    fn missing_sysctl_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::below(root.path());
        assert_eq!(sysctls.get("bridge/x").unwrap(), None);
        assert_eq!(sysctls.set("bridge/x", true).unwrap(), None);
    }

    #[test]
    fn error_names_the_sysctl() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/sys/net/bridge/x")).unwrap();
        let error = Sysctls::below(root.path())
            .set("bridge/x", true)
            .unwrap_err();
        assert!(
            error.to_string().ends_with("proc/sys/net/bridge/x"),
            "{error}"
        );
    }
}
