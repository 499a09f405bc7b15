//! Reads which links are ports of which bridge (kernel's `sysfs-class-net`).

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use buildos_types::{InterfaceName, MacAddress};

use crate::uplink_network::UplinkNetwork;

/// The ports of the host's bridges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// Hardware address of br1; [`None`] without br1.
    pub private_address: Option<MacAddress>,
    /// Indices of the ports of br1.
    pub private: BTreeSet<u32>,
    /// Ports of br0, sorted.
    pub public: Vec<InterfaceName>,
    /// Ports of all bridges except br1, sorted.
    pub other: Vec<InterfaceName>,
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
        if bridge == network.private_bridge.as_str() {
            let index = |name| std::fs::read_to_string(sysfs.join(name).join("ifindex")).ok();
            let indices = members.filter_map(index);
            ports.private = indices.filter_map(|i| i.trim().parse().ok()).collect();
            let address = std::fs::read_to_string(link.path().join("address"));
            ports.private_address = address.ok().and_then(|text| text.trim().parse().ok());
            continue;
        }
        let names = members.filter_map(|name| InterfaceName::new(name.to_str()?).ok());
        let names: Vec<_> = names.collect();
        if bridge == network.public_bridge.as_str() {
            ports.public = names.clone();
        }
        ports.other.extend(names);
    }
    ports.public.sort();
    ports.other.sort();
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_their_bridge() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join("sys/class/net").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("br1/address", "02:bd:00:00:00:01\n");
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
                private: [4, 5].into(),
                public: vec![name("ct0"), name("eth0")],
                other: vec![name("ct0"), name("eth0"), name("veth1")],
            }
        );
    }
}
