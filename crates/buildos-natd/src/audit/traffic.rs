//! Lists the packets that machines need, hook by hook.

use crate::firewall::bytecode::MetaKey;
use crate::uplink_network::UplinkNetwork;

/// Names of hooks in nft(8), by `enum nf_inet_hooks` (linux/netfilter.h).
pub(super) const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
const PREROUTING: usize = libc::NF_INET_PRE_ROUTING as usize;
const INPUT: usize = libc::NF_INET_LOCAL_IN as usize;
const FORWARD: usize = libc::NF_INET_FORWARD as usize;
const OUTPUT: usize = libc::NF_INET_LOCAL_OUT as usize;
const POSTROUTING: usize = libc::NF_INET_POST_ROUTING as usize;

/// `NF_CT_STATE_BIT` (linux/netfilter/nf_conntrack_common.h).
const ESTABLISHED: u32 = 1 << 1;
const NEW: u32 = 1 << 3;

/// Packets at a hook.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) description: &'static str,
    /// Index in [`HOOKS`].
    pub(super) hook: usize,
    /// Bit of `ct state`.
    pub(super) state: u32,
    /// Name of the input interface; empty for packets of the host.
    input: String,
    /// Name of the output interface; empty before routing.
    output: String,
    /// `IPPROTO_*`; [`None`] for any.
    protocol: Option<i32>,
}

impl Traffic {
    /// Lists packets to the outside and back, and DHCP and DNS of the host.
    pub(super) fn needed(network: &UplinkNetwork) -> Vec<Self> {
        let private = network.private_bridge.as_str();
        let public = network.public_bridge.as_str();
        let (to_outside, from_outside) = (
            ("packets from machines to the outside", NEW, None),
            ("answers from the outside to machines", ESTABLISHED, None),
        );
        let udp = Some(libc::IPPROTO_UDP);
        let (to_host, from_host) = (
            ("machines' requests for DHCP and DNS", NEW, udp),
            ("the host's answers to machines", ESTABLISHED, udp),
        );
        let path = [
            (to_outside, PREROUTING, private, ""),
            (to_outside, FORWARD, private, public),
            (to_outside, POSTROUTING, private, public),
            (from_outside, PREROUTING, public, ""),
            (from_outside, FORWARD, public, private),
            (from_outside, POSTROUTING, public, private),
            (to_host, PREROUTING, private, ""),
            (to_host, INPUT, private, ""),
            (from_host, OUTPUT, "", private),
            (from_host, POSTROUTING, "", private),
        ];
        let traffic = path.map(
            |((description, state, protocol), hook, input, output)| Self {
                description,
                hook,
                state,
                input: input.to_owned(),
                output: output.to_owned(),
                protocol,
            },
        );
        traffic.into()
    }

    /// Returns a property as the kernel loads it; [`None`] if it is unknown.
    pub(super) fn meta(&self, key: MetaKey) -> Option<Vec<u8>> {
        let name = |name: &str| {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(libc::IFNAMSIZ, 0);
            bytes
        };
        match key {
            MetaKey::InputName => Some(name(&self.input)),
            MetaKey::OutputName => Some(name(&self.output)),
            MetaKey::InputInterface
            | MetaKey::InputType
            | MetaKey::OutputInterface
            | MetaKey::InputBridge
            | MetaKey::OutputBridge => None,
            MetaKey::NetworkProtocol => Some(vec![libc::NFPROTO_IPV4 as u8]),
            MetaKey::TransportProtocol => self.protocol.map(|protocol| vec![protocol as u8]),
        }
    }
}
