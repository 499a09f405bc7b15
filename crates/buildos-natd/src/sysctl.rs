//! Sysctls of the kernel's network: files below `/proc/sys/net` that hold `0`
//! or `1`.
//!
//! Whoever has CAP_NET_ADMIN may write there without owning the file
//! (`net_ctl_permissions`, net/sysctl_net.c).

use std::io;
use std::path::{Path, PathBuf};

use buildos_types::InterfaceName;

/// A switch could not be read or turned.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}", path.display())]
pub struct SysctlError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The switches below a root directory, which is `/` outside of tests.
#[derive(Debug, Clone)]
pub struct Sysctls {
    root: PathBuf,
}

impl Sysctls {
    /// The switches of this network namespace, below `root`.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            root: root.join("proc/sys/net"),
        }
    }

    /// Whether the switch is on; [`None`] when there is no such switch.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or not readable in our sandbox.
    pub fn get(&self, switch: &str) -> Result<Option<bool>, SysctlError> {
        let path = self.root.join(switch);
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

    /// Turns an existing switch, unless it is so already. Returns whether it was
    /// turned, and [`None`] when there is no such switch.
    ///
    /// # Errors
    ///
    /// As [`Sysctls::get`], or `/proc/sys` is read-only, or CAP_NET_ADMIN is
    /// missing.
    pub fn turn(&self, switch: &str, on: bool) -> Result<Option<bool>, SysctlError> {
        match self.get(switch)? {
            None => return Ok(None),
            Some(is) if is == on => return Ok(Some(false)),
            Some(_) => {}
        }
        let path = self.root.join(switch);
        std::fs::write(&path, if on { "1" } else { "0" })
            .map(|()| Some(true))
            .map_err(|source| SysctlError {
                verb: "write",
                path,
                source,
            })
    }
}

/// Name of the sysctl that makes the kernel forward IPv4 packets which come in by
/// `interface` (`IN_DEV_FORWARD` in net/ipv4/route.c).
#[must_use]
pub fn forwarding(interface: &InterfaceName) -> String {
    format!("ipv4/conf/{interface}/forwarding")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_read_and_turned() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("proc/sys/net/ipv4/conf/br0");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("forwarding"), "0\n").unwrap();
        let switches = Sysctls::below(root.path());
        let switch = "ipv4/conf/br0/forwarding";
        assert_eq!(switches.get(switch).unwrap(), Some(false));
        assert_eq!(switches.turn(switch, true).unwrap(), Some(true));
        assert_eq!(switches.turn(switch, true).unwrap(), Some(false));
        assert_eq!(switches.get(switch).unwrap(), Some(true));
    }

    #[test]
    fn a_switch_that_is_not_there_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let switches = Sysctls::below(root.path());
        assert_eq!(switches.get("bridge/x").unwrap(), None);
        assert_eq!(switches.turn("bridge/x", true).unwrap(), None);
    }

    #[test]
    fn the_error_names_the_switch() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/sys/net/bridge/x")).unwrap();
        let error = Sysctls::below(root.path())
            .turn("bridge/x", true)
            .unwrap_err();
        assert!(
            error.to_string().ends_with("proc/sys/net/bridge/x"),
            "{error}"
        );
    }
}
