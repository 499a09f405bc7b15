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

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoPortData, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, MulticastGroup};
use tokio::task::JoinHandle;

use crate::config::BridgeNetfilter;
use crate::nft::{AnyTable, Expression};
use crate::site::InterfaceName;

/// Switches below `/proc/sys/net` that are for all bridges.
pub const FOR_ALL_BRIDGES: [&str; 3] = [
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "bridge/bridge-nf-call-arptables",
];

/// rtnetlink did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// No socket: out of file descriptors, or the sandbox forbids AF_NETLINK.
    #[error("cannot open an rtnetlink socket")]
    Socket(#[source] std::io::Error),
    /// The links cannot be listed.
    #[error("cannot list links")]
    List(#[source] rtnetlink::Error),
    /// A link cannot be changed.
    #[error("cannot {0}")]
    Change(String, #[source] rtnetlink::Error),
    /// The kernel's announcements have ended.
    #[error("lost the conversation with rtnetlink")]
    Lost,
}

/// Whether bridged frames of the private bridge are to pass iptables.
#[must_use]
pub fn passes_iptables(setting: BridgeNetfilter, others: &[AnyTable]) -> bool {
    let asks_for_ports = || {
        let chains = others.iter().flat_map(|found| &found.table.chains);
        chains
            .flat_map(|chain| &chain.rules)
            .flat_map(|rule| &rule.expressions)
            .any(|e| matches!(e, Expression::Match(name) if name == "physdev"))
    };
    match setting {
        BridgeNetfilter::On => true,
        BridgeNetfilter::Off => false,
        BridgeNetfilter::Auto => asks_for_ports(),
    }
}

/// A link, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    /// The bridge that it is a port of.
    controller: Option<u32>,
    /// Of a bridge: whether its frames pass iptables.
    passes_iptables: Option<bool>,
    /// Of a port of a bridge: whether it is isolated.
    isolated: Option<bool>,
}

/// A change of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// Of a bridge.
    PassIptables { index: u32, name: String, on: bool },
    /// Of a port.
    Isolate { index: u32, name: String, on: bool },
}

/// What is to be changed so that the private bridge is as wished.
fn plan(links: &[Link], private: &InterfaceName, passes: bool, isolate: bool) -> Vec<Change> {
    let Some(bridge) = links.iter().find(|link| link.name == private.as_str()) else {
        return Vec::new();
    };
    let mut changes = Vec::new();
    if bridge.passes_iptables.is_some_and(|is| is != passes) {
        changes.push(Change::PassIptables {
            index: bridge.index,
            name: bridge.name.clone(),
            on: passes,
        });
    }
    for port in links {
        if port.controller == Some(bridge.index) && port.isolated == Some(!isolate) {
            changes.push(Change::Isolate {
                index: port.index,
                name: port.name.clone(),
                on: isolate,
            });
        }
    }
    changes
}

/// The kernel's links.
pub struct Links {
    handle: Handle,
    events: futures_util::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    connections: [JoinHandle<()>; 2],
}

impl Links {
    /// Listens to changes from now on. Runs in the background of the runtime.
    ///
    /// # Errors
    ///
    /// [`BridgeError::Socket`].
    pub fn open() -> Result<Self, BridgeError> {
        let (requests, handle, _) = rtnetlink::new_connection().map_err(BridgeError::Socket)?;
        let (announcements, _, events) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
                .map_err(BridgeError::Socket)?;
        Ok(Self {
            handle,
            events: events.map(|(message, _)| message).boxed(),
            connections: [tokio::spawn(requests), tokio::spawn(announcements)],
        })
    }

    /// Waits until some link changes. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`BridgeError::Lost`].
    pub async fn changed(&mut self) -> Result<(), BridgeError> {
        self.events.next().await.ok_or(BridgeError::Lost)?;
        // Whatever came with it is seen by the same look.
        while let Some(event) = self.events.next().now_or_never() {
            event.ok_or(BridgeError::Lost)?;
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
        let messages = self.handle.link().get().execute();
        let links: Vec<Link> = messages
            .map_ok(|message| link(&message))
            .try_collect()
            .await
            .map_err(BridgeError::List)?;
        let mut done = Vec::new();
        for change in plan(&links, private, passes, isolate) {
            let (message, what) = encode(&change);
            match self.handle.link().change(message).execute().await {
                Ok(()) => done.push(what),
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
                }
                Err(error) => return Err(BridgeError::Change(what, error)),
            }
        }
        Ok(done)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for connection in &self.connections {
            connection.abort();
        }
    }
}

fn encode(change: &Change) -> (LinkMessage, String) {
    let not = |on: bool| if on { "" } else { "not " };
    match change {
        Change::PassIptables { index, name, on } => (
            LinkBridge::new(name)
                .append_info_data(InfoBridge::NfCallIpTables(*on))
                .index(*index)
                .build(),
            format!("have frames on {name} {}pass iptables", not(*on)),
        ),
        Change::Isolate { index, name, on } => (
            LinkBridgePort::new(*index).isolated(*on).build(),
            format!("have port {name} {}isolated from others", not(*on)),
        ),
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        ..Link::default()
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Controller(index) = attribute {
            link.controller = Some(*index);
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            for info in infos {
                read_info(info, &mut link);
            }
        }
    }
    link
}

fn read_info(info: &LinkInfo, link: &mut Link) {
    if let LinkInfo::Data(InfoData::Bridge(data)) = info {
        for entry in data {
            if let InfoBridge::NfCallIpTables(on) = entry {
                link.passes_iptables = Some(*on);
            }
        }
    } else if let LinkInfo::PortData(InfoPortData::BridgePort(data)) = info {
        for entry in data {
            if let InfoBridgePort::Isolated(on) = entry {
                link.isolated = Some(*on);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Image, ImageChain, ImageRule};

    fn links() -> Vec<Link> {
        let port = |index, name: &str, controller, isolated| Link {
            index,
            name: name.to_owned(),
            controller: Some(controller),
            isolated: Some(isolated),
            ..Link::default()
        };
        let bridge = |index, name: &str| Link {
            index,
            name: name.to_owned(),
            passes_iptables: Some(false),
            ..Link::default()
        };
        vec![
            bridge(1, "br0"),
            bridge(2, "br1"),
            port(3, "eth0", 1, false),
            port(4, "tap0", 2, false),
            port(5, "tap1", 2, true),
        ]
    }

    fn planned(passes: bool, isolate: bool) -> Vec<String> {
        let private = InterfaceName::new("br1").unwrap();
        let changes = plan(&links(), &private, passes, isolate);
        changes.iter().map(|change| encode(change).1).collect()
    }

    #[test]
    fn only_the_private_bridge_and_its_ports_are_changed() {
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
        let private = InterfaceName::new("br9").unwrap();
        assert_eq!(plan(&links(), &private, true, true), []);
    }

    #[test]
    fn a_rule_of_an_agent_switches_it_on() {
        let rule = |name: &str| ImageRule {
            expressions: vec![Expression::Match(name.to_owned()), Expression::Counter],
            comment: String::new(),
        };
        let tables = |name: &str| {
            [AnyTable {
                family: libc::NFPROTO_IPV4,
                table: Image {
                    name: "nat".to_owned(),
                    flags: 0,
                    chains: vec![ImageChain {
                        name: "PREROUTING".to_owned(),
                        kind: "nat".to_owned(),
                        hook: Some(0),
                        priority: -100,
                        policy: Some(1),
                        rules: vec![rule("udp"), rule(name)],
                    }],
                },
                sets: Default::default(),
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
