//! Tests that the client refuses each kind of invalid OFFER, and requests a valid OFFER
//! of another server at once.

use std::net::Ipv4Addr;
use std::time::Duration;

use buildos_dhcp::{Input, Refusal, RequestFailure, State, udp_packet};
use buildos_types::MacAddress;

use crate::host::Host;
use crate::server_reply::{ADDRESS, Reply, SERVER};

const ROGUE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);

/// Returns a server's packet: `udp_packet::build` with swapped ports, which leave the
/// checksum correct.
fn packet(payload: &[u8]) -> Vec<u8> {
    let mut packet = udp_packet::build(ROGUE, Ipv4Addr::BROADCAST, payload).unwrap();
    packet[20..24].rotate_left(2);
    packet
}

fn receive(host: &mut Host, packet: &[u8]) {
    if let Ok(datagram) = udp_packet::parse(packet, true) {
        host.packet(datagram.payload);
    }
}

/// Builds the packet of an invalid OFFER for a transaction id.
type InvalidOffer = Box<dyn Fn(u32) -> Vec<u8>>;

fn message(change: impl Fn(Reply) -> Reply + 'static) -> InvalidOffer {
    Box::new(move |xid| packet(&change(Reply::offer_of(ROGUE)).xid(xid).bytes()))
}

fn bytes(change: impl Fn(&mut Vec<u8>) + 'static) -> InvalidOffer {
    Box::new(move |xid| {
        let mut packet = packet(&Reply::offer_of(ROGUE).xid(xid).bytes());
        change(&mut packet);
        packet
    })
}

/// The kinds of invalid OFFERs, by name.
fn kinds() -> Vec<(&'static str, InvalidOffer)> {
    vec![
        (
            "ends inside an option",
            message(|r| r.tail(&[6, 8, 192, 0])),
        ),
        ("ends after an option's code", message(|r| r.tail(&[6]))),
        (
            "length past the end",
            message(|r| r.tail(&[15, 200, b'x', 255])),
        ),
        ("zero-length server id", message(|r| r.with(54, []))),
        ("zero-length lease time", message(|r| r.with(51, []))),
        ("zero-length mask", message(|r| r.with(1, []))),
        ("zero-length routers", message(|r| r.with(3, []))),
        ("zero-length type", message(|r| r.with(53, []))),
        (
            "overload with garbage",
            message(|r| r.with(52, [3]).header(44, &[0xa5; 192])),
        ),
        (
            "overload without an end",
            message(|r| r.with(52, [1]).header(108, &[12, 1, b'x'])),
        ),
        ("overload of 255", message(|r| r.with(52, [255]))),
        ("overload of two bytes", message(|r| r.with(52, [1, 1]))),
        (
            "repeated server id",
            message(|r| r.repeated(54, SERVER.octets())),
        ),
        (
            "repeated lease time",
            message(|r| r.repeated(51, [0, 0, 1, 0])),
        ),
        (
            "repeated mask",
            message(|r| r.repeated(1, [255, 255, 0, 0])),
        ),
        ("repeated type", message(|r| r.repeated(53, [5]))),
        ("wrong xid", message(|r| r.xid(1))),
        ("wrong chaddr", message(|r| r.chaddr(MacAddress([2; 6])))),
        ("wrong op", message(|r| r.header(0, &[1]))),
        ("wrong htype", message(|r| r.header(1, &[6]))),
        ("wrong hlen", message(|r| r.header(2, &[16]))),
        ("huge hlen", message(|r| r.header(2, &[255]))),
        (
            "wrong magic",
            message(|r| r.header(236, &[99, 130, 83, 100])),
        ),
        ("IP checksum", bytes(|p| p[10] ^= 1)),
        ("UDP checksum", bytes(|p| p[26] ^= 1)),
        ("UDP length too small", bytes(|p| p[25] -= 10)),
        ("UDP length below its header", bytes(|p| p[24..26].fill(0))),
        ("UDP length too big", bytes(|p| p[25] += 1)),
        ("IP length too big", bytes(|p| p[2] = 0xff)),
        ("100 bytes", bytes(|p| p.truncate(100))),
        ("a payload of 100 bytes", Box::new(|_| packet(&[2; 100]))),
        ("no type", message(|r| r.without(53))),
        ("type of a client", message(|r| r.with(53, [1]))),
        ("unknown type", message(|r| r.with(53, [200]))),
        ("no server id", message(|r| r.without(54))),
        ("server id 0.0.0.0", message(|r| r.with(54, [0; 4]))),
        ("server id broadcast", message(|r| r.with(54, [255; 4]))),
        (
            "address 0.0.0.0",
            message(|r| r.address(Ipv4Addr::UNSPECIFIED)),
        ),
        (
            "address 0.1.2.3",
            message(|r| r.address(Ipv4Addr::new(0, 1, 2, 3))),
        ),
        (
            "address 255.255.255.255",
            message(|r| r.address(Ipv4Addr::BROADCAST)),
        ),
        (
            "address 240.0.0.1",
            message(|r| r.address(Ipv4Addr::new(240, 0, 0, 1))),
        ),
        (
            "address 224.0.0.5",
            message(|r| r.address(Ipv4Addr::new(224, 0, 0, 5))),
        ),
        (
            "address 127.0.0.1",
            message(|r| r.address(Ipv4Addr::LOCALHOST)),
        ),
        (
            "address of the subnet",
            message(|r| r.address(Ipv4Addr::new(192, 0, 2, 0))),
        ),
        (
            "broadcast of the subnet",
            message(|r| r.address(Ipv4Addr::new(192, 0, 2, 255))),
        ),
        ("the server's own address", message(|r| r.address(ROGUE))),
        (
            "the gateway's own address",
            message(|r| r.with(3, ADDRESS.octets())),
        ),
        ("no lease time", message(|r| r.without(51))),
        ("lease time zero", message(|r| r.lasting(0))),
        ("no mask", message(|r| r.without(1))),
        ("mask with holes", message(|r| r.with(1, [255, 0, 255, 0]))),
        ("mask upside down", message(|r| r.with(1, [0, 0, 0, 255]))),
        ("empty mask", message(|r| r.with(1, [0; 4]))),
        (
            "gateway is broadcast",
            message(|r| r.with(3, [192, 0, 2, 255])),
        ),
        (
            "the gateway's own address by 121",
            message(|r| r.with(121, [0, 192, 0, 2, 77])),
        ),
        (
            "identifier of another client",
            message(|r| r.with(61, [1, 2, 2, 2, 2, 2, 2])),
        ),
    ]
}

#[test]
fn invalid_offer_is_refused_and_next_valid_offer_requested() {
    for (name, invalid) in kinds() {
        let mut host = Host::new();
        host.handle(Input::Start);
        let packet = invalid(host.xid);
        receive(&mut host, &packet);
        assert!(host.client.offer().is_none(), "{name}");
        assert_eq!(host.sent.len(), 1, "{name}");

        host.now += Duration::from_millis(30);
        host.reply(Reply::offer());
        host.handle(Input::Select);
        assert_eq!(host.last().address(54), Some(SERVER), "{name}");
        host.reply(Reply::ack());
        assert_eq!(host.state(), State::Bound, "{name}");
        assert_eq!(host.lease().server, SERVER, "{name}");
    }
}

#[test]
fn offer_with_a_kilobyte_of_options_is_accepted() {
    let mut host = Host::new();
    host.handle(Input::Start);
    let mut offer = Reply::offer();
    for code in 150..154 {
        offer = offer.with(code, [0x5a; 255]);
    }
    let packet = packet(&offer.xid(host.xid).bytes());
    assert!(packet.len() > 1024);
    receive(&mut host, &packet);
    let lease = host.client.offer().expect("a usable OFFER");
    assert_eq!(lease.options.get(153), Some(&[0x5a; 255][..]));
}

#[test]
fn invalid_ack_after_a_valid_offer_is_refused() {
    let elsewhere = |octets: [u8; 4]| Reply::ack().address(octets.into());
    for ack in [
        elsewhere([0, 0, 0, 0]),
        elsewhere([0, 1, 2, 3]),
        elsewhere([127, 0, 0, 1]),
        elsewhere([224, 0, 0, 5]),
        elsewhere([240, 0, 0, 1]),
        elsewhere([255, 255, 255, 255]),
        elsewhere([192, 0, 2, 255]),
        Reply::ack().without(1),
        Reply::ack().with(1, [255, 0, 255, 0]),
        Reply::ack().with(3, ADDRESS.octets()),
        Reply::ack().without(51),
        Reply::ack().lasting(0),
    ] {
        for state in [
            State::Requesting,
            State::Rebooting,
            State::Renewing,
            State::Rebinding,
        ] {
            let mut host = Host::in_state(state);
            host.reply(ack.clone());
            let expected = if state.has_lease() {
                state
            } else {
                State::Selecting
            };
            assert_eq!(host.state(), expected, "{ack:?}");
        }
    }
}

#[test]
fn refusal_text_names_the_defect() {
    for (reason, text) in [
        (Refusal::NoMask, "no subnet mask (option 1)"),
        (
            Refusal::BadGateway(ADDRESS),
            "gateway 192.0.2.77 is not the address of another host",
        ),
        (
            Refusal::InUse {
                address: ADDRESS,
                mac: MacAddress([2, 0, 0, 0, 0, 0xff]),
            },
            "address 192.0.2.77 is in use by 02:00:00:00:00:ff",
        ),
    ] {
        assert_eq!(reason.to_string(), text);
        assert_eq!(
            RequestFailure::BadAck(reason).to_string(),
            format!("unusable ACK: {text}")
        );
    }
}
