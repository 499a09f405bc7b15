//! IPv4 forwarding, per interface: `net.ipv4.conf.NAME.forwarding`.
//!
//! The kernel looks at the interface that a packet comes in by (`IN_DEV_FORWARD`
//! in net/ipv4/route.c), so the two bridges are enough and every other
//! interface of the host stays closed. Whoever has CAP_NET_ADMIN may write
//! here without owning the file (`net_ctl_permissions`, net/sysctl_net.c).

use std::io;
use std::path::{Path, PathBuf};

use crate::site::InterfaceName;

/// The switch of an interface could not be read or turned.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}", path.display())]
pub struct ForwardingError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The switches below a root directory, which is `/` outside of tests.
#[derive(Debug, Clone)]
pub struct Forwarding {
    root: PathBuf,
}

impl Forwarding {
    /// The switches of the interfaces of this network namespace, below `root`.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Whether packets that come in by the interface are forwarded; [`None`]
    /// when there is no such interface.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or not readable in our sandbox.
    pub fn get(&self, interface: &InterfaceName) -> Result<Option<bool>, ForwardingError> {
        let path = self.path(interface);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim() == "1")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ForwardingError {
                verb: "read",
                path,
                source,
            }),
        }
    }

    /// Turns the switch of an existing interface.
    ///
    /// # Errors
    ///
    /// The interface is gone, `/proc/sys` is read-only, or CAP_NET_ADMIN is
    /// missing.
    pub fn set(&self, interface: &InterfaceName, on: bool) -> Result<(), ForwardingError> {
        let path = self.path(interface);
        std::fs::write(&path, if on { "1" } else { "0" }).map_err(|source| ForwardingError {
            verb: "write",
            path,
            source,
        })
    }

    fn path(&self, interface: &InterfaceName) -> PathBuf {
        self.root
            .join("proc/sys/net/ipv4/conf")
            .join(interface.as_str())
            .join("forwarding")
    }
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
        let forwarding = Forwarding::below(root.path());
        let br0 = InterfaceName::new("br0").unwrap();
        assert_eq!(forwarding.get(&br0).unwrap(), Some(false));
        forwarding.set(&br0, true).unwrap();
        assert_eq!(forwarding.get(&br0).unwrap(), Some(true));
    }

    #[test]
    fn an_interface_that_is_not_there_is_no_error_until_it_is_turned() {
        let root = tempfile::tempdir().unwrap();
        let forwarding = Forwarding::below(root.path());
        let br0 = InterfaceName::new("br0").unwrap();
        assert_eq!(forwarding.get(&br0).unwrap(), None);
        let error = forwarding.set(&br0, true).unwrap_err();
        assert!(
            error.to_string().ends_with("conf/br0/forwarding"),
            "{error}"
        );
    }
}
