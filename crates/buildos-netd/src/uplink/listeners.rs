//! Derives the sockets that the contenders listen with.
//!
//! | state of the client | DHCP messages come by |
//! |---|---|
//! | INIT, INIT-REBOOT | nothing |
//! | SELECTING, REQUESTING, REBOOTING | a packet socket, which needs no address |
//! | BOUND, RENEWING, REBINDING | a UDP socket on br0 |
//! | the same, with a search beside the lease | also a packet socket |
//! | any, with `lldp` | also a packet socket of the NIC for LLDP |
//! | not the port of br0, while another NIC fails | also a packet socket, for the identity of br0 |
//!
//! A bridge takes frames from its ports before packet sockets see them. The packet socket of
//! br0's port is therefore bound to br0. The exception is the socket for claims of the address
//! while a claim leads to a DECLINE: containers are ports of br0, too, and a claim by one is
//! not to be believed. This socket is a tap of the NIC, which sees its frames before br0.

use std::net::Ipv4Addr;

use buildos_dhcp::State;
use buildos_types::{LinkIndex, MacAddress};

use super::contender::Contender;
use super::election::Election;
use crate::observed::{Observed, PUBLIC_BRIDGE};

/// A socket that receives for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// Packet socket on this link for DHCP messages to this hardware address.
    Replies(LinkIndex, MacAddress),
    /// UDP socket on the bridge of this index and name, for DHCP messages to this hardware
    /// address. A recreated bridge has a different index.
    Udp(LinkIndex, &'static str, MacAddress),
    /// Packet socket for ARP packets that claim one of the IPv4 addresses for a different
    /// hardware address.
    Claims {
        /// Link of the socket.
        link: LinkIndex,
        /// The socket sees the frames of the link before a bridge does.
        tap: bool,
        #[allow(missing_docs)]
        addresses: Vec<Ipv4Addr>,
        /// Hardware address of the NIC.
        mac: MacAddress,
    },
    /// Packet socket on this link for ARP packets from the first address to the second: the
    /// answers of a gateway.
    Gateway(LinkIndex, Ipv4Addr, Ipv4Addr),
    /// Packet socket on this NIC for LLDP frames. A bridge does not take them from its ports.
    Lldp(LinkIndex),
}

/// Returns the sockets of all contenders, with the index of the contender. `lldp` adds those for
/// LLDP.
#[must_use]
pub fn listeners(election: &Election, observed: &Observed, lldp: bool) -> Vec<(LinkIndex, Listen)> {
    let mut listeners = Vec::new();
    for contender in election.contenders() {
        let (index, mac) = (contender.candidate.index, contender.client.mac());
        let link = receiving_link(contender, observed);
        let messages = match contender.client.state() {
            State::Init | State::InitReboot => None,
            State::Bound | State::Renewing | State::Rebinding => observed
                .bridge(PUBLIC_BRIDGE)
                .map(|bridge| Listen::Udp(bridge.index, PUBLIC_BRIDGE, mac)),
            State::Selecting | State::Requesting | State::Rebooting => {
                Some(Listen::Replies(link, mac))
            }
        };
        let claims = contender.detector().map(|detector| Listen::Claims {
            link: if detector.is_early() { index } else { link },
            tap: detector.is_early(),
            addresses: detector.watched(),
            mac,
        });
        let offers = contender.other_clients();
        let offers = offers.map(|mac| Listen::Replies(link, mac));
        let gateway = contender
            .monitor()
            .map(|monitor| Listen::Gateway(link, monitor.gateway(), monitor.address()));
        let wanted = messages
            .into_iter()
            .chain(claims)
            .chain(offers)
            .chain(gateway);
        listeners.extend(wanted.map(|listen| (index, listen)));
        // Frames of LLDP have no tag.
        let nic = contender.candidate.nic;
        listeners.extend(lldp.then_some((nic, Listen::Lldp(nic))));
    }
    listeners
}

/// Returns the link on which packet sockets receive the frames of a NIC: br0 if the NIC is
/// its port, otherwise the NIC.
#[must_use]
pub fn receiving_link(contender: &Contender, observed: &Observed) -> LinkIndex {
    let nic = contender.candidate.index;
    let is_port = observed.ports(PUBLIC_BRIDGE).any(|port| port.index == nic);
    match observed.bridge(PUBLIC_BRIDGE).filter(|_| is_port) {
        Some(bridge) => bridge.index,
        None => nic,
    }
}
