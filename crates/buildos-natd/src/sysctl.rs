//! Reads and writes sysctls of the network: files below `/proc/sys/net` that contain a
//! number, or `0` or `1`.
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

    /// Returns the value of a boolean, or [`None`] if the sysctl does not exist.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or the sandbox hides it.
    pub fn get(&self, name: &str) -> Result<Option<bool>, SysctlError> {
        let text = self.read(name)?;
        Ok(text.map(|text| text.trim() == "1"))
    }

    /// Sets a boolean. Returns true if it was different, and [`None`] if the sysctl does
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
        self.write(name, if value { "1" } else { "0" })?;
        Ok(Some(true))
    }

    /// Changes a number that is out of its bound. Returns the former value if it was.
    ///
    /// # Errors
    ///
    /// As [`Sysctls::set`]; the value is no number.
    pub fn bound(&self, name: &str, bound: Bound) -> Result<Option<u32>, SysctlError> {
        let Some(text) = self.read(name)? else {
            return Ok(None);
        };
        let current = text.trim().parse().map_err(|error| SysctlError {
            verb: "read",
            path: self.directory.join(name),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })?;
        let value = match bound {
            Bound::AtLeast(least) if current < least => least,
            Bound::AtMost(most) if current > most => most,
            Bound::AtLeast(_) | Bound::AtMost(_) => return Ok(None),
        };
        self.write(name, &value.to_string())?;
        Ok(Some(current))
    }

    fn read(&self, name: &str) -> Result<Option<String>, SysctlError> {
        let path = self.directory.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SysctlError {
                verb: "read",
                path,
                source,
            }),
        }
    }

    fn write(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        let path = self.directory.join(name);
        std::fs::write(&path, value).map_err(|source| SysctlError {
            verb: "write",
            path,
            source,
        })
    }
}

/// Bound of a number, so that an administrator's stricter value stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Bound {
    AtLeast(u32),
    AtMost(u32),
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
    fn number_out_of_its_bound_is_changed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("proc/sys/net/netfilter");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("timeout"), "432000\n").unwrap();
        let sysctls = Sysctls::below(root.path());
        let bound = |bound| sysctls.bound("netfilter/timeout", bound).unwrap();
        assert_eq!(bound(Bound::AtMost(7440)), Some(432_000));
        assert_eq!(bound(Bound::AtMost(7440)), None);
        assert_eq!(bound(Bound::AtLeast(7440)), None);
        assert_eq!(bound(Bound::AtLeast(9000)), Some(7440));
        assert_eq!(bound(Bound::AtMost(u32::MAX)), None);
        std::fs::write(directory.join("timeout"), "never\n").unwrap();
        let error = sysctls
            .bound("netfilter/timeout", Bound::AtMost(1))
            .unwrap_err();
        assert!(error.to_string().starts_with("cannot read"), "{error}");
    }

    #[test]
    fn missing_sysctl_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::below(root.path());
        assert_eq!(sysctls.get("bridge/x").unwrap(), None);
        assert_eq!(sysctls.set("bridge/x", true).unwrap(), None);
        assert_eq!(sysctls.bound("bridge/x", Bound::AtMost(1)).unwrap(), None);
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
