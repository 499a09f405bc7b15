//! Configures how the private bridge treats frames between its ports.
//!
//! | setting | value |
//! |---|---|
//! | `net.bridge.bridge-nf-call-*`, for all bridges | 0 |
//! | `nf_call_iptables` of br1 (ip-link(8)) | 1 if configured, or if a rule matches on ports |
//! | `isolated` of br1's ports (bridge(8)) | off; table `bridge buildos` isolates machines |
//! | `fdb_max_learned` of both bridges (ip-link(8)) | [`LEARNED_ADDRESSES`] |
//! | `vlan_filtering`, `vlan_default_pvid`, `group_fwd_mask` of br1 | [`set_closed`], if no table can be installed |
//!
//! With the module br_netfilter, bridged frames pass iptables on all bridges by default.
//! That reduces the rate of connections by a sixth, and a firewall of the host can drop
//! frames between machines. Rules of the build bot's agent need it: they match on the
//! input port (`physdev`, which iptables-extensions(8) has only with br_netfilter).

use std::io;
use std::path::{Path, PathBuf};

use buildos_netlink::bridge::{self, InfoBridge, InfoBridgePort, Learned};
use buildos_netlink::{Monitor, RouteNetlinkMessage, Socket};
use buildos_types::{InterfaceName, LinkIndex};

use crate::firewall::bytecode::{Expression, ForeignTable};
use crate::limits::LEARNED_ADDRESSES;
use crate::settings::BridgeNetfilter;

/// Sysctls for all bridges, below `/proc/sys/net`.
pub const SYSCTLS_OF_ALL_BRIDGES: [&str; 3] = [
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "bridge/bridge-nf-call-arptables",
];

/// A bridge could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The process has no file descriptor left, or its sandbox forbids AF_NETLINK.
    #[error("cannot open an rtnetlink socket")]
    Open(#[source] io::Error),
    /// A file of sysfs cannot be read or parsed.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The kernel did not describe a link.
    #[error("cannot read link {0}")]
    ReadLink(InterfaceName, #[source] io::Error),
    /// The kernel refused a change.
    #[error("cannot {0}")]
    Change(String, #[source] io::Error),
    /// Receiving notifications failed.
    #[error("lost the notifications of rtnetlink")]
    Disconnected(#[source] io::Error),
}

/// Returns true if bridged frames of the private bridge are to pass iptables.
#[must_use]
pub fn passes_iptables(setting: BridgeNetfilter, foreign: &[ForeignTable]) -> bool {
    let matches_on_ports = || {
        let chains = foreign.iter().flat_map(|foreign| &foreign.table.chains);
        chains
            .flat_map(|chain| &chain.rules)
            .flat_map(|rule| &rule.expressions)
            .any(|e| matches!(e, Expression::XtMatch(name) if name == "physdev"))
    };
    match setting {
        BridgeNetfilter::On => true,
        BridgeNetfilter::Off => false,
        BridgeNetfilter::Auto => matches_on_ports(),
    }
}

/// Observed settings of the private bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bridge {
    index: LinkIndex,
    /// [`None`] if the kernel has no br_netfilter.
    passes_iptables: Option<bool>,
    ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    index: LinkIndex,
    name: String,
    isolated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    index: LinkIndex,
    setting: Setting,
    /// For logs; completes "cannot …" in errors.
    description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    PassIptables(bool),
    NotIsolated,
}

impl Change {
    fn message(&self) -> RouteNetlinkMessage {
        let index = self.index;
        match self.setting {
            Setting::PassIptables(on) => bridge::set(index, vec![InfoBridge::NfCallIpTables(on)]),
            Setting::NotIsolated => bridge::set_port(index, vec![InfoBridgePort::Isolated(false)]),
        }
    }
}

/// Returns the differences between observed and desired settings. Ports are isolated if
/// an earlier version of natd did it.
fn plan(bridge: &Bridge, name: &InterfaceName, passes: bool) -> Vec<Change> {
    let of_bridge = (bridge.passes_iptables == Some(!passes)).then(|| Change {
        index: bridge.index,
        setting: Setting::PassIptables(passes),
        description: match passes {
            true => format!("pass bridged frames of {name} to iptables"),
            false => format!("keep bridged frames of {name} from iptables"),
        },
    });
    let ports = bridge.ports.iter().filter(|port| port.isolated);
    let of_ports = ports.map(|port| Change {
        index: port.index,
        setting: Setting::NotIsolated,
        description: format!("end the isolation of port {}", port.name),
    });
    of_bridge.into_iter().chain(of_ports).collect()
}

/// Reads and changes bridges, and monitors links.
pub struct Links {
    monitor: Monitor,
    /// `/sys/class/net` (kernel's `sysfs-class-net`).
    sysfs: PathBuf,
}

impl Links {
    /// Subscribes to changes, and reads links below `root`, which is `/` outside of
    /// tests.
    ///
    /// # Errors
    ///
    /// [`BridgeError::Open`].
    pub fn open(root: &Path) -> Result<Self, BridgeError> {
        let monitor = Monitor::rtnetlink(libc::RTMGRP_LINK as u32);
        Ok(Self {
            monitor: monitor.map_err(BridgeError::Open)?,
            sysfs: root.join("sys/class/net"),
        })
    }

    /// Waits until a link changes. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`BridgeError::Disconnected`].
    pub async fn changed(&self) -> Result<(), BridgeError> {
        let changed = self.monitor.changed(None).await;
        changed.map(drop).map_err(BridgeError::Disconnected)
    }

    /// Applies the settings to the private bridge and its ports, and returns
    /// descriptions of the changes.
    ///
    /// # Errors
    ///
    /// [`BridgeError`]; a missing link is not an error.
    pub async fn apply(
        &self,
        private: &InterfaceName,
        passes: bool,
    ) -> Result<Vec<String>, BridgeError> {
        let Some(bridge) = read(&self.sysfs, private)? else {
            return Ok(Vec::new());
        };
        let mut done = Vec::new();
        for change in plan(&bridge, private, passes) {
            // Files of sysfs belong to root; netlink requires CAP_NET_ADMIN only.
            let mut socket = Socket::open().map_err(BridgeError::Open)?;
            match socket.change(change.message()).await {
                Ok(()) => done.push(change.description),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(BridgeError::Change(change.description, error)),
            }
        }
        Ok(done)
    }
}

/// Reads a link from the kernel; [`None`] if it is missing.
async fn get(
    socket: &mut Socket<RouteNetlinkMessage>,
    name: &InterfaceName,
) -> Result<Option<RouteNetlinkMessage>, BridgeError> {
    match socket.get(bridge::get(name)).await {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(BridgeError::ReadLink(name.clone(), error)),
    }
}

/// Limits the addresses that a bridge learns, and returns a description if the limit
/// was different.
///
/// # Errors
///
/// [`BridgeError`]; a missing bridge, or a kernel without this limit, is no error.
pub async fn limit_learning(name: &InterfaceName) -> Result<Option<String>, BridgeError> {
    let mut socket = Socket::open().map_err(BridgeError::Open)?;
    let Some(link) = get(&mut socket, name).await? else {
        return Ok(None);
    };
    let Some((index, settings)) = bridge::settings(&link) else {
        return Ok(None);
    };
    if !differs_from_limit(settings) {
        return Ok(None);
    }
    let description = format!("have {name} learn at most {LEARNED_ADDRESSES} addresses");
    let limit = vec![InfoBridge::FdbMaxLearned(LEARNED_ADDRESSES)];
    match socket.change(bridge::set(index, limit)).await {
        Ok(()) => Ok(Some(description)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(BridgeError::Change(description, error)),
    }
}

/// `group_fwd_mask` of a closed bridge: frames for 01:80:c2:00:00:03 to :0f are frames like
/// others, which the bridge drops. The kernel refuses the bits before.
const CLOSED_MASK: u16 = 0xfff8;

/// Makes a bridge drop all frames from and to its ports, or ends that. Returns a description
/// if the bridge was different.
///
/// A bridge that filters VLANs drops frames without a tag at ports that have no VLAN for them
/// (`br_allowed_ingress`, net/bridge/br_vlan.c). A port that comes later has none either.
///
/// # Errors
///
/// [`BridgeError`]; a missing bridge is no error. The kernel has no VLAN filtering.
pub async fn set_closed(name: &InterfaceName, closed: bool) -> Result<Option<String>, BridgeError> {
    let mut socket = Socket::open().map_err(BridgeError::Open)?;
    let Some(link) = get(&mut socket, name).await? else {
        return Ok(None);
    };
    let Some((index, settings)) = bridge::settings(&link) else {
        return Ok(None);
    };
    let description = match closed {
        true => format!("have {name} drop all frames of its ports"),
        false => format!("have {name} pass frames of its ports again"),
    };
    let Some(is_closed) = is_closed(settings) else {
        let error = io::Error::new(io::ErrorKind::Unsupported, "no VLAN filtering");
        return match closed {
            true => Err(BridgeError::Change(description, error)),
            false => Ok(None),
        };
    };
    if is_closed == closed {
        return Ok(None);
    }
    for step in closing_steps(closed) {
        let changed = socket.change(bridge::set(index, step)).await;
        changed.map_err(|error| BridgeError::Change(description.clone(), error))?;
    }
    Ok(Some(description))
}

/// Returns true if [`set_closed`] closed a bridge with these settings; [`None`] if the kernel
/// cannot filter VLANs.
fn is_closed(settings: &[InfoBridge]) -> Option<bool> {
    let mut settings_of_vlans = settings.iter();
    // The kernel has this one only if it can filter.
    settings_of_vlans.find(|setting| matches!(setting, InfoBridge::VlanDefaultPvid(_)))?;
    let closed = [
        InfoBridge::VlanFiltering(true),
        InfoBridge::VlanDefaultPvid(0),
        InfoBridge::GroupFwdMask(CLOSED_MASK),
    ];
    Some(closed.iter().all(|wanted| settings.contains(wanted)))
}

/// Returns the changes in their order: the kernel changes the default VLAN only of a bridge
/// that does not filter.
fn closing_steps(closed: bool) -> Vec<Vec<InfoBridge>> {
    let unfiltered = |mask| {
        vec![
            InfoBridge::VlanFiltering(false),
            InfoBridge::GroupFwdMask(mask),
        ]
    };
    match closed {
        true => vec![
            unfiltered(CLOSED_MASK),
            vec![InfoBridge::VlanDefaultPvid(0)],
            vec![InfoBridge::VlanFiltering(true)],
        ],
        false => vec![unfiltered(0), vec![InfoBridge::VlanDefaultPvid(1)]],
    }
}

/// Returns the addresses that a bridge has learned, with their ports; [`None`] if the
/// kernel does not list them.
pub async fn learned(name: &InterfaceName) -> Option<Vec<Learned>> {
    let mut socket = Socket::open().ok()?;
    let link = socket.get(bridge::get(name)).await.ok()?;
    let (index, _) = bridge::settings(&link)?;
    let entries = socket.dump(bridge::get_learned()).await.ok()?;
    let learned = entries.iter().map(|entry| bridge::learned(entry, index));
    Some(learned.flatten().collect())
}

/// Returns true if the kernel has the limit, and a different value.
fn differs_from_limit(settings: &[InfoBridge]) -> bool {
    settings.iter().any(|setting| {
        matches!(setting, InfoBridge::FdbMaxLearned(limit) if *limit != LEARNED_ADDRESSES)
    })
}

/// Reads a bridge; [`None`] if it does not exist. Ports that appear or disappear at the
/// same time cause a notification.
fn read(sysfs: &Path, name: &InterfaceName) -> Result<Option<Bridge>, BridgeError> {
    let link = sysfs.join(name.as_str());
    let ports = match std::fs::read_dir(link.join("brif")) {
        Ok(ports) => ports,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(BridgeError::Read(link.join("brif"), error)),
    };
    let Some(index) = number(&link.join("ifindex"))?.and_then(LinkIndex::new) else {
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
        let index = number(&link.join("ifindex"))?.and_then(LinkIndex::new);
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

/// Reads a number from a file of sysfs; [`None`] if the file does not exist.
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

/// Returns true if a link does not exist, or disappeared while its file was open.
fn is_gone(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [libc::ENOENT, libc::ENOTDIR, libc::ENODEV, libc::EINVAL]
        .into_iter()
        .any(|gone| number == Some(gone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::bytecode::{KernelChain, KernelRule, KernelTable};

    fn br1() -> InterfaceName {
        InterfaceName::new("br1").unwrap()
    }

    fn index(number: u32) -> LinkIndex {
        LinkIndex::new(number).unwrap()
    }

    fn observed() -> Bridge {
        let port = |number, name: &str, isolated| Port {
            index: index(number),
            name: name.to_owned(),
            isolated,
        };
        Bridge {
            index: index(2),
            passes_iptables: Some(false),
            ports: vec![port(4, "tap0", false), port(5, "tap1", true)],
        }
    }

    fn planned(passes: bool) -> Vec<String> {
        let changes = plan(&observed(), &br1(), passes);
        changes.into_iter().map(|c| c.description).collect()
    }

    #[test]
    fn only_a_bridge_closed_by_natd_is_closed() {
        let closed = [
            InfoBridge::VlanFiltering(true),
            InfoBridge::VlanDefaultPvid(0),
            InfoBridge::GroupFwdMask(CLOSED_MASK),
        ];
        assert_eq!(is_closed(&closed), Some(true));
        for other in [
            InfoBridge::VlanFiltering(false),
            InfoBridge::VlanDefaultPvid(1),
            InfoBridge::GroupFwdMask(0),
        ] {
            let kind = std::mem::discriminant(&other);
            let mut settings = closed.to_vec();
            settings.retain(|setting| std::mem::discriminant(setting) != kind);
            settings.push(other);
            assert_eq!(is_closed(&settings), Some(false), "{settings:?}");
        }
        assert_eq!(is_closed(&[InfoBridge::VlanFiltering(false)]), None);
    }

    #[test]
    fn plan_changes_different_settings_only() {
        assert_eq!(planned(false), ["end the isolation of port tap1"]);
        assert_eq!(
            planned(true),
            [
                "pass bridged frames of br1 to iptables",
                "end the isolation of port tap1"
            ]
        );
        let without_br_netfilter = Bridge {
            passes_iptables: None,
            ports: Vec::new(),
            ..observed()
        };
        assert_eq!(plan(&without_br_netfilter, &br1(), true), []);
    }

    #[test]
    fn bridge_is_read_from_sysfs_without_vanished_ports() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(read(root.path(), &br1()).unwrap(), None);
        write("br1/ifindex", "2\n");
        // A link without `brif` is no bridge.
        assert_eq!(read(root.path(), &br1()).unwrap(), None);
        write("br1/bridge/nf_call_iptables", "0\n");
        for (index, name, isolated) in [("4\n", "tap0", "0\n"), ("5\n", "tap1", "1\n")] {
            write(&format!("br1/brif/{name}/flush"), "");
            write(&format!("{name}/ifindex"), index);
            write(&format!("{name}/brport/isolated"), isolated);
        }
        // The port disappears between the reads.
        write("br1/brif/tap2/flush", "");
        let mut found = read(root.path(), &br1()).unwrap().unwrap();
        found.ports.sort_by_key(|port| port.index);
        assert_eq!(found, observed());
        write("br1/ifindex", "two\n");
        let error = read(root.path(), &br1()).unwrap_err();
        assert!(error.to_string().ends_with("br1/ifindex"), "{error}");
    }

    #[test]
    fn learning_is_limited_where_the_kernel_can() {
        let limit = InfoBridge::FdbMaxLearned;
        assert!(differs_from_limit(&[limit(0)]));
        assert!(!differs_from_limit(&[limit(LEARNED_ADDRESSES)]));
        assert!(!differs_from_limit(&[InfoBridge::NfCallIpTables(true)]));
    }

    #[test]
    fn change_sets_only_its_setting() {
        let message = |setting| {
            let change = Change {
                index: index(7),
                setting,
                description: String::new(),
            };
            change.message()
        };
        assert_eq!(
            message(Setting::PassIptables(true)),
            bridge::set(index(7), vec![InfoBridge::NfCallIpTables(true)])
        );
        assert_eq!(
            message(Setting::NotIsolated),
            bridge::set_port(index(7), vec![InfoBridgePort::Isolated(false)])
        );
    }

    #[test]
    fn rule_on_ports_makes_frames_pass_iptables() {
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
                    sets: Vec::new(),
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
