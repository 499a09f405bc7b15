//! Reads the host's bridges and their ports (kernel's `sysfs-class-net`).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::Path;

use buildos_types::{InterfaceName, MacAddress};

use crate::firewall::model::Link;
use crate::uplink_network::UplinkNetwork;

/// The ports of the host's bridges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// Hardware address of br1; [`None`] without br1.
    pub private_address: Option<MacAddress>,
    /// The bridge br1.
    pub private_bridge: Option<Bridge>,
    /// The bridge br0.
    pub public_bridge: Option<Bridge>,
    /// Indices of the ports of br1.
    pub private: BTreeSet<u32>,
    /// Ports of br0, sorted.
    pub public: Vec<InterfaceName>,
    /// Ports of br0 that are the uplink.
    pub uplinks: Vec<Link>,
    /// Ports of all bridges except br1, sorted.
    pub other: Vec<InterfaceName>,
}

/// A bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// Number of the link.
    pub index: u32,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
}

impl Bridge {
    fn read(link: &Path) -> Option<Self> {
        Some(Self {
            index: number(link, "ifindex")?,
            mtu: number(link, "mtu")?,
        })
    }
}

impl Ports {
    /// Returns true unless every segment that br1 takes also passes br0.
    #[must_use]
    pub fn has_smaller_uplink(&self) -> bool {
        let bridges = self.public_bridge.zip(self.private_bridge);
        bridges.is_none_or(|(public, private)| public.mtu < private.mtu)
    }
}

/// Reads the ports below `root`, which is `/` outside of tests. Links that appear or
/// disappear at the same time cause a notification.
///
/// # Errors
///
/// The links cannot be listed.
pub fn read(root: &Path, network: &UplinkNetwork) -> io::Result<Ports> {
    let sysfs = root.join("sys/class/net");
    let mut ports = Ports::default();
    for link in std::fs::read_dir(&sysfs)?.flatten() {
        let Ok(members) = std::fs::read_dir(link.path().join("brif")) else {
            continue;
        };
        let bridge = link.file_name();
        let members = members.flatten().map(|member| member.file_name());
        let index = |name: &OsStr| number(&sysfs.join(name), "ifindex");
        if bridge == network.private_bridge.as_str() {
            ports.private = members.filter_map(|name| index(&name)).collect();
            ports.private_bridge = Bridge::read(&link.path());
            let address = std::fs::read_to_string(link.path().join("address"));
            ports.private_address = address.ok().and_then(|text| text.trim().parse().ok());
            continue;
        }
        let names = members.filter_map(|name| InterfaceName::new(name.to_str()?).ok());
        let names: Vec<_> = names.collect();
        if bridge == network.public_bridge.as_str() {
            ports.public = names.clone();
            ports.public_bridge = Bridge::read(&link.path());
            let uplinks = names.iter().filter(|name| network.uplinks.contains(name));
            let link = |name: &InterfaceName| {
                let index = index(OsStr::new(name.as_str()))?;
                let name = name.clone();
                Some(Link { name, index })
            };
            ports.uplinks = uplinks.filter_map(link).collect();
        }
        ports.other.extend(names);
    }
    ports.public.sort();
    ports.uplinks.sort_by_key(|link| link.index);
    ports.other.sort();
    Ok(ports)
}

/// Returns the index of a link, or [`None`] if it does not exist.
#[must_use]
pub fn index(root: &Path, link: &InterfaceName) -> Option<u32> {
    number(&root.join("sys/class/net").join(link.as_str()), "ifindex")
}

/// Returns a number of a link, or [`None`] if the link does not exist.
fn number(link: &Path, file: &str) -> Option<u32> {
    let text = std::fs::read_to_string(link.join(file)).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplink_is_smaller_if_br0_has_smaller_mtu_or_none() {
        let ports = |mtu: Option<u32>| Ports {
            private_bridge: Some(Bridge {
                index: 3,
                mtu: 1500,
            }),
            public_bridge: mtu.map(|mtu| Bridge { index: 2, mtu }),
            ..Ports::default()
        };
        assert!(ports(Some(1400)).has_smaller_uplink());
        assert!(ports(None).has_smaller_uplink());
        assert!(!ports(Some(1500)).has_smaller_uplink());
    }

    #[test]
    fn ports_are_read_with_their_bridge() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join("sys/class/net").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("br1/address", "02:bd:00:00:00:01\n");
        write("br1/ifindex", "3\n");
        write("br0/ifindex", "2\n");
        write("br0/mtu", "1400\n");
        write("br1/mtu", "1500\n");
        for (bridge, port, index) in [
            ("br1", "tap0", "4\n"),
            ("br1", "tap1", "5\n"),
            ("br0", "eth0", "6\n"),
            ("br0", "ct0", "7\n"),
            ("docker0", "veth1", "8\n"),
        ] {
            write(&format!("{bridge}/brif/{port}/flush"), "");
            write(&format!("{port}/ifindex"), index);
        }
        // The port disappears between the reads.
        write("br1/brif/tap2/flush", "");
        let name = |name| InterfaceName::new(name).unwrap();
        assert_eq!(
            read(root.path(), &UplinkNetwork::example()).unwrap(),
            Ports {
                private_address: "02:bd:00:00:00:01".parse().ok(),
                private_bridge: Some(Bridge {
                    index: 3,
                    mtu: 1500
                }),
                public_bridge: Some(Bridge {
                    index: 2,
                    mtu: 1400
                }),
                private: [4, 5].into(),
                public: vec![name("ct0"), name("eth0")],
                uplinks: vec![Link {
                    name: name("eth0"),
                    index: 6
                }],
                other: vec![name("ct0"), name("eth0"), name("veth1")],
            }
        );
    }
}
