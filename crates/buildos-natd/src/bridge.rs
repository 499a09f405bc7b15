//! What the private bridge does with frames between its ports.
//!
//! With the module br_netfilter, frames that are only bridged pass iptables,
//! too, on all bridges unless told otherwise: that costs a sixth of the
//! connections, and a firewall for the host drops frames between strangers. So
//! it is switched off for all bridges (`net.bridge.bridge-nf-call-*`), and on
//! for the private one alone when a rule there asks for the port that a frame
//! came in by, as the build bot's agent's does (`physdev`, which
//! iptables-extensions(8) has only with br_netfilter).
//!
//! A port can be isolated from other isolated ports (bridge(8), `isolated`):
//! that keeps machines from each other.

use std::io;
use std::path::{Path, PathBuf};

use futures_util::FutureExt as _;
use netlink_packet_core::{NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocketExt as _, TokioSocket};
use tokio::time::timeout;

use crate::config::BridgeNetfilter;
use crate::firewall::bytecode::{Expression, ForeignTable};
use crate::netlink::{self, TIMEOUT};
use buildos_types::InterfaceName;

/// Sysctls below `/proc/sys/net` that are for all bridges.
pub const FOR_ALL_BRIDGES: [&str; 3] = [
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "bridge/bridge-nf-call-arptables",
];

/// Group of announcements of links (`RTMGRP_LINK`, linux/rtnetlink.h).
const LINKS: u32 = libc::RTMGRP_LINK as u32;
/// The kind of link that a bridge and a port of one are.
const BRIDGE: &[u8] = b"bridge\0";
/// `IFLA_BR_NF_CALL_IPTABLES` and `IFLA_BRPORT_ISOLATED` (linux/if_link.h).
const NF_CALL_IPTABLES: u16 = 36;
const ISOLATED: u16 = 33;
/// `struct ifinfomsg` (linux/rtnetlink.h), and where in it the index of the link is.
const LINK_HEADER: usize = 16;
const LINK_INDEX: usize = 4;

/// The kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// No socket: out of file descriptors, or the sandbox forbids AF_NETLINK.
    #[error("cannot open an rtnetlink socket")]
    Socket(#[source] io::Error),
    /// A file of sysfs cannot be read or makes no sense.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A link cannot be changed.
    #[error("cannot {0}")]
    Change(String, #[source] io::Error),
    /// The kernel's announcements cannot be heard any more.
    #[error("lost the conversation with rtnetlink")]
    Lost(#[source] io::Error),
}

/// Whether bridged frames of the private bridge are to pass iptables.
#[must_use]
pub fn passes_iptables(setting: BridgeNetfilter, others: &[ForeignTable]) -> bool {
    let asks_for_ports = || {
        let chains = others.iter().flat_map(|found| &found.table.chains);
        chains
            .flat_map(|chain| &chain.rules)
            .flat_map(|rule| &rule.expressions)
            .any(|e| matches!(e, Expression::XtMatch(name) if name == "physdev"))
    };
    match setting {
        BridgeNetfilter::On => true,
        BridgeNetfilter::Off => false,
        BridgeNetfilter::Auto => asks_for_ports(),
    }
}

/// The private bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bridge {
    index: u32,
    /// Whether its frames pass iptables; [`None`] where the kernel cannot have that.
    passes_iptables: Option<bool>,
    ports: Vec<Port>,
}

/// A port of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    index: u32,
    name: String,
    isolated: bool,
}

/// A change of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    index: u32,
    what: What,
    on: bool,
    /// For people, to be read after "cannot".
    description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Of a bridge.
    PassIptables,
    /// Of a port.
    Isolate,
}

/// What is to be changed so that the private bridge is as wished.
fn plan(bridge: &Bridge, name: &InterfaceName, passes: bool, isolate: bool) -> Vec<Change> {
    let not = |on: bool| if on { "" } else { "not " };
    let of_bridge = (bridge.passes_iptables == Some(!passes)).then(|| Change {
        index: bridge.index,
        what: What::PassIptables,
        on: passes,
        description: format!("have frames on {name} {}pass iptables", not(passes)),
    });
    let ports = bridge.ports.iter().filter(|port| port.isolated != isolate);
    let of_ports = ports.map(|port| Change {
        index: port.index,
        what: What::Isolate,
        on: isolate,
        description: format!(
            "have port {} {}isolated from others",
            port.name,
            not(isolate)
        ),
    });
    of_bridge.into_iter().chain(of_ports).collect()
}

/// The kernel's links.
pub struct Links {
    announcements: TokioSocket,
    /// `/sys/class/net` (kernel's `sysfs-class-net`).
    sysfs: PathBuf,
}

impl Links {
    /// Listens to changes from now on, and reads links below `root`, which is `/`
    /// outside of tests.
    ///
    /// # Errors
    ///
    /// [`BridgeError::Socket`].
    pub fn open(root: &Path) -> Result<Self, BridgeError> {
        Ok(Self {
            announcements: netlink::socket(NETLINK_ROUTE, LINKS).map_err(BridgeError::Socket)?,
            sysfs: root.join("sys/class/net"),
        })
    }

    /// Waits until some link changes. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`BridgeError::Lost`].
    pub async fn changed(&mut self) -> Result<(), BridgeError> {
        heard(self.announcements.recv_from_full().await)?;
        // Whatever came with it is seen by the same look.
        while let Some(more) = self.announcements.recv_from_full().now_or_never() {
            heard(more)?;
        }
        Ok(())
    }

    /// Makes the private bridge and its ports as wished; what was changed, for
    /// people.
    ///
    /// # Errors
    ///
    /// [`BridgeError`]; a link that is gone meanwhile is none.
    pub async fn apply(
        &self,
        private: &InterfaceName,
        passes: bool,
        isolate: bool,
    ) -> Result<Vec<String>, BridgeError> {
        let Some(bridge) = read(&self.sysfs, private)? else {
            return Ok(Vec::new());
        };
        let mut done = Vec::new();
        for change in plan(&bridge, private, passes, isolate) {
            match carry_out(&change).await {
                Ok(()) => done.push(change.description),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(BridgeError::Change(change.description, error)),
            }
        }
        Ok(done)
    }
}

/// An announcement only says "look again", and that some were lost says no less.
fn heard<A>(datagram: io::Result<A>) -> Result<(), BridgeError> {
    match datagram {
        Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(BridgeError::Lost(error)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The bridge of that name; [`None`] when there is none. Ports that come or go
/// meanwhile are announced.
fn read(sysfs: &Path, name: &InterfaceName) -> Result<Option<Bridge>, BridgeError> {
    let link = sysfs.join(name.as_str());
    let ports = match std::fs::read_dir(link.join("brif")) {
        Ok(ports) => ports,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(BridgeError::Read(link.join("brif"), error)),
    };
    let Some(index) = number(&link.join("ifindex"))? else {
        return Ok(None);
    };
    let mut bridge = Bridge {
        index,
        passes_iptables: number(&link.join("bridge/nf_call_iptables"))?.map(|on| on != 0),
        ports: Vec::new(),
    };
    for port in ports.flatten() {
        let Ok(name) = port.file_name().into_string() else {
            continue;
        };
        let link = sysfs.join(&name);
        let index = number(&link.join("ifindex"))?;
        let isolated = number(&link.join("brport/isolated"))?;
        if let (Some(index), Some(isolated)) = (index, isolated) {
            bridge.ports.push(Port {
                index,
                name,
                isolated: isolated != 0,
            });
        }
    }
    Ok(Some(bridge))
}

/// The number in a file of sysfs; [`None`] when there is no such file.
fn number(path: &Path) -> Result<Option<u32>, BridgeError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(BridgeError::Read(path.to_owned(), error)),
    };
    let number = text.trim().parse();
    number.map(Some).map_err(|error| {
        BridgeError::Read(
            path.to_owned(),
            io::Error::new(io::ErrorKind::InvalidData, error),
        )
    })
}

/// Whether a link is not there, or has gone while its file was open.
fn is_gone(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [libc::ENOENT, libc::ENOTDIR, libc::ENODEV, libc::EINVAL]
        .into_iter()
        .any(|gone| number == Some(gone))
}

/// By netlink, which needs CAP_NET_ADMIN only: files of sysfs are root's.
async fn carry_out(change: &Change) -> io::Result<()> {
    let socket = netlink::socket(NETLINK_ROUTE, 0)?;
    // Not by RTM_SETLINK, which passes over the settings of a kind.
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let request = netlink::request(libc::RTM_NEWLINK, flags, 1, &encode(change));
    socket.send(&request).await?;
    let answer = timeout(TIMEOUT, socket.recv_from_full()).await;
    let (datagram, _) = answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    for message in netlink::messages(&datagram) {
        if let Some(refusal) = message
            .and_then(|message| netlink::refusal(&message))
            .map_err(io::Error::other)?
        {
            return Err(refusal);
        }
    }
    Ok(())
}

/// `struct ifinfomsg` and what of the link's kind is to be set.
fn encode(change: &Change) -> Vec<u8> {
    let mut message = vec![0; LINK_HEADER];
    message[LINK_INDEX..LINK_INDEX + 4].copy_from_slice(&change.index.to_ne_bytes());
    let (kind, data, setting) = match change.what {
        What::PassIptables => (libc::IFLA_INFO_KIND, libc::IFLA_INFO_DATA, NF_CALL_IPTABLES),
        What::Isolate => (
            libc::IFLA_INFO_SLAVE_KIND,
            libc::IFLA_INFO_SLAVE_DATA,
            ISOLATED,
        ),
    };
    let setting = netlink::attribute(setting, &[u8::from(change.on)]);
    let info = [
        netlink::attribute(kind, BRIDGE),
        netlink::attribute(data | NLA_F_NESTED, &setting),
    ];
    let info = netlink::attribute(libc::IFLA_LINKINFO | NLA_F_NESTED, &info.concat());
    message.extend_from_slice(&info);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::bytecode::{KernelChain, KernelRule, KernelTable};

    fn br1() -> InterfaceName {
        InterfaceName::new("br1").unwrap()
    }

    fn bridge() -> Bridge {
        let port = |index, name: &str, isolated| Port {
            index,
            name: name.to_owned(),
            isolated,
        };
        Bridge {
            index: 2,
            passes_iptables: Some(false),
            ports: vec![port(4, "tap0", false), port(5, "tap1", true)],
        }
    }

    fn planned(passes: bool, isolate: bool) -> Vec<String> {
        let changes = plan(&bridge(), &br1(), passes, isolate);
        changes.into_iter().map(|c| c.description).collect()
    }

    #[test]
    fn only_what_is_not_as_wished_is_changed() {
        assert_eq!(
            planned(false, true),
            ["have port tap0 isolated from others"]
        );
        assert_eq!(
            planned(true, false),
            [
                "have frames on br1 pass iptables",
                "have port tap1 not isolated from others"
            ]
        );
        let cannot = Bridge {
            passes_iptables: None,
            ports: Vec::new(),
            ..bridge()
        };
        assert_eq!(plan(&cannot, &br1(), true, true), []);
    }

    #[test]
    fn a_bridge_is_read_from_sysfs() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(read(root.path(), &br1()).unwrap(), None);
        write("br1/ifindex", "2\n");
        // A link of that name that is no bridge.
        assert_eq!(read(root.path(), &br1()).unwrap(), None);
        write("br1/bridge/nf_call_iptables", "0\n");
        for (index, name, isolated) in [("4\n", "tap0", "0\n"), ("5\n", "tap1", "1\n")] {
            write(&format!("br1/brif/{name}/flush"), "");
            write(&format!("{name}/ifindex"), index);
            write(&format!("{name}/brport/isolated"), isolated);
        }
        // This one has gone meanwhile.
        write("br1/brif/tap2/flush", "");
        let mut found = read(root.path(), &br1()).unwrap().unwrap();
        found.ports.sort_by_key(|port| port.index);
        assert_eq!(found, bridge());
        write("br1/ifindex", "two\n");
        let error = read(root.path(), &br1()).unwrap_err();
        assert!(error.to_string().ends_with("br1/ifindex"), "{error}");
    }

    /// As `ip link set br1 type bridge nf_call_iptables 1` and `bridge link set
    /// dev tap0 isolated on` by way of the port's kind have it.
    #[test]
    fn a_change_is_one_setting_of_a_kind() {
        let change = |what| Change {
            index: 0x0102,
            what,
            on: true,
            description: String::new(),
        };
        let header = [0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let info = |kind: u8, data: u8, setting: u8| {
            let kind = [12, 0, kind, 0, b'b', b'r', b'i', b'd', b'g', b'e', 0, 0];
            let setting = [12, 0, data, 0x80, 5, 0, setting, 0, 1, 0, 0, 0];
            [&[28, 0, 18, 0x80], &kind[..], &setting].concat()
        };
        if cfg!(target_endian = "little") {
            let bridge = [&header[..], &info(1, 2, 36)].concat();
            // The length of a string does not count what fills it up.
            let with_length = |mut bytes: Vec<u8>| {
                bytes[20] = 11;
                bytes
            };
            assert_eq!(encode(&change(What::PassIptables)), with_length(bridge));
            let port = [&header[..], &info(4, 5, 33)].concat();
            assert_eq!(encode(&change(What::Isolate)), with_length(port));
        }
    }

    #[test]
    fn a_rule_of_an_agent_switches_it_on() {
        let rule = |name: &str| KernelRule {
            expressions: vec![Expression::XtMatch(name.to_owned()), Expression::Counter],
            comment: String::new(),
        };
        let tables = |name: &str| {
            [ForeignTable {
                family: libc::NFPROTO_IPV4,
                table: KernelTable {
                    name: "nat".to_owned(),
                    flags: 0,
                    chains: vec![KernelChain {
                        name: "PREROUTING".to_owned(),
                        kind: "nat".to_owned(),
                        hook: Some(0),
                        priority: -100,
                        policy: Some(1),
                        rules: vec![rule("udp"), rule(name)],
                    }],
                },
            }]
        };
        let auto = BridgeNetfilter::Auto;
        assert!(passes_iptables(auto, &tables("physdev")));
        assert!(!passes_iptables(auto, &tables("comment")));
        assert!(!passes_iptables(auto, &[]));
        assert!(passes_iptables(BridgeNetfilter::On, &[]));
        assert!(!passes_iptables(BridgeNetfilter::Off, &tables("physdev")));
    }
}
