//! The traffic that machines need, as far as it is known of a packet.

use super::bits::Bits;
use crate::firewall::bytecode::{ConntrackKey, Expression, MetaKey, PayloadBase};
use crate::uplink_network::UplinkNetwork;

/// Expressions that load something we do not know, when they are not ours.
const LOADS: [&str; 11] = [
    "meta",
    "ct",
    "payload",
    "bitwise",
    "byteorder",
    "exthdr",
    "fib",
    "hash",
    "numgen",
    "rt",
    "socket",
];

/// Traffic that machines need, at one hook.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    pub(super) traffic: &'static str,
    pub(super) hook: i32,
    input: Bits,
    output: Bits,
    protocol: Bits,
    source: Bits,
    destination: Bits,
    source_port: Bits,
    destination_port: Bits,
    state: Bits,
}

/// `NF_CT_STATE_BIT` (linux/netfilter/nf_conntrack_common.h).
pub(super) const ESTABLISHED: u32 = 1 << 1;
const NEW: u32 = 1 << 3;
/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
pub(super) const DESTINATION_CHANGED: u32 = 1 << 5;

/// What a machine needs: a way out and back, an address, names.
pub(super) fn flows(network: &UplinkNetwork) -> Vec<Flow> {
    let private = Bits::name(network.private_bridge.as_str());
    let public = Bits::name(network.public_bridge.as_str());
    let nowhere = Bits::name("");
    let machines = Bits::network(network.private_network.network());
    let host = Bits::known(&network.private_network.address().octets());
    let udp = Bits::known(&[libc::IPPROTO_UDP as u8]);
    let port = |port: u16| Bits::known(&port.to_be_bytes());
    let state = |bits: u32| Bits::known(&bits.to_ne_bytes());
    let any = Flow {
        traffic: "",
        hook: 0,
        input: nowhere.clone(),
        output: nowhere.clone(),
        protocol: Bits::unknown(1),
        source: Bits::unknown(4),
        destination: Bits::unknown(4),
        source_port: Bits::unknown(2),
        destination_port: Bits::unknown(2),
        state: Bits::unknown(4),
    };
    let out = Flow {
        traffic: "what machines send out",
        input: private.clone(),
        source: machines.clone(),
        state: state(NEW),
        ..any.clone()
    };
    let back = Flow {
        traffic: "the answers to machines",
        input: public.clone(),
        state: state(ESTABLISHED),
        ..any.clone()
    };
    let addresses = Flow {
        traffic: "machines' requests for an address",
        input: private.clone(),
        protocol: udp.clone(),
        source_port: port(68),
        destination_port: port(67),
        ..any.clone()
    };
    let names = Flow {
        traffic: "machines' questions for names",
        input: private.clone(),
        protocol: udp,
        source: machines.clone(),
        destination: host.clone(),
        destination_port: port(53),
        state: state(NEW),
        ..any.clone()
    };
    let answers = Flow {
        traffic: "what the host answers machines",
        output: private.clone(),
        source: host,
        state: state(ESTABLISHED),
        ..any
    };
    let mut flows = Vec::new();
    for (flow, output, destination) in [
        (&out, &public, &out.destination),
        (&back, &private, &machines),
    ] {
        flows.push(at(flow, libc::NF_INET_PRE_ROUTING));
        for hook in [libc::NF_INET_FORWARD, libc::NF_INET_POST_ROUTING] {
            flows.push(Flow {
                output: output.clone(),
                destination: destination.clone(),
                ..at(flow, hook)
            });
        }
    }
    for flow in [&addresses, &names] {
        flows.push(at(flow, libc::NF_INET_PRE_ROUTING));
        flows.push(at(flow, libc::NF_INET_LOCAL_IN));
    }
    flows.push(at(&answers, libc::NF_INET_LOCAL_OUT));
    flows.push(at(&answers, libc::NF_INET_POST_ROUTING));
    flows
}

fn at(flow: &Flow, hook: i32) -> Flow {
    Flow {
        hook,
        ..flow.clone()
    }
}

impl Flow {
    pub(super) fn load(&self, expression: &Expression) -> Option<Bits> {
        Some(match expression {
            Expression::Meta(MetaKey::InputName) => self.input.clone(),
            Expression::Meta(MetaKey::OutputName) => self.output.clone(),
            Expression::Meta(MetaKey::NetworkProtocol) => Bits::known(&[libc::NFPROTO_IPV4 as u8]),
            Expression::Meta(MetaKey::TransportProtocol) => self.protocol.clone(),
            Expression::Conntrack(ConntrackKey::State) => self.state.clone(),
            // Nobody has redirected it; the rest is open.
            Expression::Conntrack(ConntrackKey::Status) => {
                Bits(DESTINATION_CHANGED.to_ne_bytes().map(|bit| (0, bit)).into())
            }
            Expression::Payload {
                base,
                offset,
                length,
            } => self.payload(*base, *offset as usize, *length as usize),
            Expression::Other(name) if LOADS.contains(&name.as_str()) => Bits::unknown(0),
            Expression::Mask(_)
            | Expression::Compare(..)
            | Expression::Lookup(..)
            | Expression::Counter
            | Expression::Accept
            | Expression::Drop
            | Expression::Masquerade
            | Expression::Jump(_)
            | Expression::Goto(_)
            | Expression::Return
            | Expression::Reject
            | Expression::XtMatch(_)
            | Expression::XtTarget(_)
            | Expression::Other(_) => return None,
        })
    }

    /// Offsets: RFC 791, section 3.1; RFC 768.
    fn payload(&self, base: PayloadBase, offset: usize, length: usize) -> Bits {
        let field = match (base, offset) {
            (PayloadBase::Network, 9) => &self.protocol,
            (PayloadBase::Network, 12) => &self.source,
            (PayloadBase::Network, 16) => &self.destination,
            (PayloadBase::Transport, 0) => &self.source_port,
            (PayloadBase::Transport, 2) => &self.destination_port,
            (PayloadBase::Network | PayloadBase::Transport, _) => return Bits::unknown(length),
        };
        match field.0.get(..length) {
            Some(bits) => Bits(bits.to_vec()),
            None => Bits::unknown(length),
        }
    }
}
