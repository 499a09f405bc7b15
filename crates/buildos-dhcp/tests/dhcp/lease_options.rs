//! Tests the translation of an ACK's options into a lease.

use std::net::Ipv4Addr;

use buildos_dhcp::{Lease, Refusal, ServerMessage, decode};
use buildos_types::Route;

use crate::host::{EPOCH, MAC};
use crate::server_reply::{ADDRESS, GATEWAY, Reply};

fn message(reply: Reply) -> ServerMessage {
    decode(&reply.bytes(), MAC).expect("a message for this host")
}

fn lease(reply: Reply) -> Lease {
    Lease::from_message(&message(reply), EPOCH).expect("a usable lease")
}

fn route(destination: &str, gateway: impl Into<Option<Ipv4Addr>>) -> Route {
    let destination = destination.parse().unwrap();
    Route {
        destination,
        gateway: gateway.into(),
        onlink: false,
    }
}

#[test]
fn options_become_fields_of_the_lease() {
    let lease = lease(
        Reply::ack()
            .with(6, [192, 0, 2, 53, 198, 51, 100, 53])
            .with(12, *b"rack7\0")
            .with(15, *b"Example.org")
            .with(26, 1400u16.to_be_bytes())
            .with(42, [192, 0, 2, 123])
            .with(200, *b"site"),
    );
    assert_eq!((lease.address, lease.prefix), (ADDRESS, 24));
    assert_eq!(lease.network(), "192.0.2.0/24".parse().unwrap());
    assert_eq!(
        lease.dns,
        [
            Ipv4Addr::new(192, 0, 2, 53),
            Ipv4Addr::new(198, 51, 100, 53)
        ]
    );
    assert_eq!(lease.ntp, [Ipv4Addr::new(192, 0, 2, 123)]);
    assert_eq!(lease.hostname.as_deref(), Some("rack7"));
    assert_eq!(lease.domain.as_deref(), Some("example.org"));
    assert_eq!(lease.mtu, Some(1400));
    assert_eq!(lease.gateway(), Some(GATEWAY));
    assert_eq!(lease.options.get(200), Some(&b"site"[..]));
    let text = serde_json::to_string(&lease).unwrap();
    assert_eq!(serde_json::from_str::<Lease>(&text).unwrap(), lease);
}

#[test]
fn malformed_option_does_not_affect_other_options() {
    let lease = lease(
        Reply::ack()
            .with(6, [1, 2, 3])
            .with(12, *b"\0")
            .with(15, *b"bad..domain good")
            .with(26, [0])
            .with(33, [1, 2, 3])
            .with(42, [])
            .with(58, [0])
            .with(81, [0, 0])
            .with(119, [200, 200])
            .with(121, [24, 10]),
    );
    assert!(lease.dns.is_empty() && lease.ntp.is_empty() && lease.search.is_empty());
    assert_eq!(
        (lease.hostname, lease.domain, lease.fqdn),
        (None, None, None)
    );
    assert_eq!(lease.mtu, None);
    assert_eq!(lease.routes, [route("0.0.0.0/0", GATEWAY)]);
    assert_eq!(lease.term.unwrap().renew.as_secs(), 1800);
}

#[test]
fn server_list_skips_non_host_addresses() {
    let lease = lease(Reply::ack().with(6, [0, 0, 0, 0, 192, 0, 2, 53, 255, 255, 255, 255]));
    assert_eq!(lease.dns, [Ipv4Addr::new(192, 0, 2, 53)]);
}

#[test]
fn mtu_below_576_is_ignored() {
    for (mtu, expected) in [
        (68, None),
        (575, None),
        (576, Some(576)),
        (9000, Some(9000)),
    ] {
        assert_eq!(
            lease(Reply::ack().with(26, u16::to_be_bytes(mtu))).mtu,
            expected
        );
    }
}

#[test]
fn static_routes_are_added_to_the_router() {
    let other = Ipv4Addr::new(192, 0, 2, 9);
    let lease = lease(Reply::ack().with(
        33,
        // To a host, to the default (illegal), through an unreachable gateway.
        [
            10, 0, 0, 1, 192, 0, 2, 9, 0, 0, 0, 0, 192, 0, 2, 9, 10, 0, 0, 2, 203, 0, 113, 1,
        ],
    ));
    assert_eq!(
        lease.routes,
        [route("10.0.0.1/32", other), route("0.0.0.0/0", GATEWAY)]
    );
}

#[test]
fn first_router_on_the_link_becomes_the_gateway() {
    let lease = lease(Reply::ack().with(3, [10, 0, 0, 1, 192, 0, 2, 9, 192, 0, 2, 10]));
    assert_eq!(lease.gateway(), Some(Ipv4Addr::new(192, 0, 2, 9)));
}

#[test]
fn lease_without_a_router_has_no_routes() {
    assert_eq!(lease(Reply::ack().without(3)).routes, []);
}

#[test]
fn classless_routes_replace_static_routes_and_routers() {
    let other = Ipv4Addr::new(192, 0, 2, 9);
    let lease = lease(
        Reply::ack()
            .with(33, [10, 0, 0, 1, 192, 0, 2, 9])
            // A subnet, a route through an unreachable gateway, the default.
            .with(
                121,
                [
                    24, 10, 1, 2, 192, 0, 2, 9, 8, 11, 10, 0, 0, 1, 0, 192, 0, 2, 9,
                ],
            ),
    );
    assert_eq!(
        lease.routes,
        [route("10.1.2.0/24", other), route("0.0.0.0/0", other)]
    );
}

#[test]
fn classless_routes_lose_host_bits() {
    let lease = lease(Reply::ack().with(121, [20, 10, 1, 0x2f, 192, 0, 2, 9]));
    assert_eq!(
        lease.routes,
        [route("10.1.32.0/20", Ipv4Addr::new(192, 0, 2, 9))]
    );
}

#[test]
fn gateway_equal_to_the_leased_address_is_refused() {
    // The subnet as a direct route, then the default through the leased address.
    let routes = [24, 192, 0, 2, 0, 0, 0, 0, 0, 192, 0, 2, 77];
    let error = Lease::from_message(&message(Reply::ack().with(121, routes)), EPOCH);
    assert_eq!(error, Err(Refusal::BadGateway(ADDRESS)));
}

#[test]
fn gateway_behind_a_direct_route_is_accepted_in_any_order() {
    let far = Ipv4Addr::new(10, 0, 0, 1);
    let direct = [32, 10, 0, 0, 1, 0, 0, 0, 0];
    let default = [0, 10, 0, 0, 1];
    // The kernel adds routes one by one: the route to the gateway has to be first.
    for routes in [[&direct[..], &default], [&default, &direct]] {
        assert_eq!(
            lease(Reply::ack().with(121, routes.concat())).routes,
            [route("10.0.0.1/32", None), route("0.0.0.0/0", far)]
        );
    }
}

#[test]
fn default_gateway_outside_the_subnet_is_onlink() {
    let far = Ipv4Addr::new(10, 0, 0, 1);
    let onlink = Route {
        onlink: true,
        ..route("0.0.0.0/0", far)
    };
    let by_router = lease(Reply::ack().with(3, far.octets()));
    assert_eq!(by_router.routes, std::slice::from_ref(&onlink));
    let by_route = lease(Reply::ack().with(121, [0, 10, 0, 0, 1]));
    assert_eq!(by_route.routes, [onlink]);
}

#[test]
fn first_gateway_to_a_destination_applies() {
    let other = Ipv4Addr::new(192, 0, 2, 9);
    let routes = [0, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 192, 0, 2, 10];
    let lease = lease(Reply::ack().with(121, routes));
    assert_eq!(lease.routes, [route("0.0.0.0/0", other)]);
}

#[test]
fn option_repeated_alike_is_accepted_and_different_is_refused() {
    let numbers = [(53, 1), (54, 4), (51, 4), (1, 4), (58, 4), (59, 4)];
    for (code, length) in numbers {
        let ack = Reply::ack().with(58, [0, 0, 1, 0]).with(59, [0, 0, 2, 0]);
        let expected = lease(ack.clone());
        let value = expected.options.get(code).unwrap().to_vec();
        assert_eq!(value.len(), length);
        let twice = lease(ack.clone().repeated(code, value.clone()));
        let (address, server, term) = (twice.address, twice.server, twice.term);
        assert_eq!(
            (address, server, term),
            (expected.address, expected.server, expected.term),
            "option {code}"
        );
        let mut other = value;
        other[length - 1] ^= 3;
        if let Ok(message) = decode(&ack.repeated(code, other).bytes(), MAC) {
            let refused = Lease::from_message(&message, EPOCH).is_err();
            assert!(refused || code > 57, "option {code}");
        }
    }
}

#[test]
fn several_domains_in_option_15_are_the_search_list() {
    let ack = Reply::ack().with(15, *b"a.example b.example");
    let several = lease(ack.clone());
    assert_eq!(several.domain.as_deref(), Some("a.example"));
    assert_eq!(several.search, ["a.example", "b.example"]);
    let search = [1, b'c', 7, b'e', b'x', b'a', b'm', b'p', b'l', b'e', 0];
    assert_eq!(lease(ack.with(119, search)).search, ["c.example"]);
}

#[test]
fn relay_of_the_answer_is_kept() {
    let relay = Ipv4Addr::new(172, 23, 0, 9);
    assert_eq!(lease(Reply::ack()).relay, None);
    let relayed = lease(Reply::ack().header(24, &relay.octets()));
    assert_eq!(relayed.relay, Some(relay));
}

#[test]
fn host_mask_makes_the_gateway_onlink() {
    let far = Ipv4Addr::new(10, 0, 0, 1);
    let lease = lease(Reply::ack().with(1, [255; 4]).with(3, far.octets()));
    assert_eq!(lease.prefix, 32);
    assert_eq!(
        lease.routes,
        [Route {
            onlink: true,
            ..route("0.0.0.0/0", far)
        }]
    );
}

#[test]
fn point_to_point_mask_has_no_network_and_broadcast_address() {
    let lease = lease(
        Reply::ack()
            .with(1, [255, 255, 255, 254])
            .address(Ipv4Addr::new(192, 0, 2, 8))
            .with(3, [192, 0, 2, 9]),
    );
    assert_eq!(lease.gateway(), Some(Ipv4Addr::new(192, 0, 2, 9)));
}

#[test]
fn compressed_search_domains_are_decoded() {
    // eng.apple.com, marketing.apple.com: the example of RFC 3397, in two parts.
    let (first, second) = (*b"\x03eng\x05apple\x03com\x00\x09market", *b"ing\xc0\x04");
    let lease = lease(Reply::ack().with(119, first).repeated(119, second));
    assert_eq!(lease.search, ["eng.apple.com", "marketing.apple.com"]);
}

#[test]
fn hostile_search_domains_are_bounded() {
    // A pointer to itself, and a thousand names.
    assert_eq!(lease(Reply::ack().with(119, [0xc0, 0])).search, [""; 0]);
    let mut many = Reply::ack();
    for _ in 0..8 {
        many = many.repeated(119, b"\x01a\x00".repeat(85));
    }
    assert_eq!(lease(many).search.len(), 16);
    let evil = lease(Reply::ack().with(119, *b"\x0ba\nnameserve\x00\x02ok\x00"));
    assert_eq!(evil.search, ["ok"]);
}

#[test]
fn fqdn_is_decoded_from_both_encodings() {
    for (data, expected) in [
        (
            &b"\x04\0\0\x05rack7\x07example\x03org\x00"[..],
            Some("rack7.example.org"),
        ),
        (b"\x04\0\0\x05rack7", Some("rack7")),
        (b"\0\0\0rack7.example.org.", Some("rack7.example.org")),
        (b"\0\0\0rack7\nREADY=1", Some("rack7\\x0aREADY=1")),
        (b"\x04\0\0\xff", None),
        (b"\0\0\0", None),
        (b"\0\0\0.", None),
    ] {
        let lease = lease(Reply::ack().with(81, data));
        assert_eq!(lease.fqdn.as_deref(), expected, "{}", data.escape_ascii());
    }
}

#[test]
fn overloaded_options_are_joined_in_the_order_options_file_sname() {
    let mut file = vec![15, 4];
    file.extend(b"ple.");
    file.push(255);
    let mut sname = vec![0, 15, 3];
    sname.extend(b"org");
    sname.push(255);
    let reply = Reply::ack()
        .with(15, *b"exam")
        .with(52, [3])
        .header(108, &file)
        .header(44, &sname);
    assert_eq!(lease(reply).domain.as_deref(), Some("example.org"));
}

#[test]
fn file_and_sname_without_overload_are_ignored() {
    let lease = lease(
        Reply::ack()
            .header(108, b"\x0f\x03evilboot")
            .header(44, &[0xff; 64]),
    );
    assert_eq!(lease.domain, None);
}

#[test]
fn missing_end_mark_is_accepted() {
    assert_eq!(lease(Reply::ack().tail(&[])).address, ADDRESS);
    assert_eq!(lease(Reply::ack().tail(&[0, 0, 0])).address, ADDRESS);
}
