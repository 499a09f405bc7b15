//! Sends requests to the kernel that need no privilege.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use buildos_netlink::{BlockingSocket, Monitor, RouteNetlinkMessage, Socket};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};

fn link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    RouteNetlinkMessage::GetLink(message)
}

fn index(answer: &RouteNetlinkMessage) -> u32 {
    let RouteNetlinkMessage::NewLink(link) = answer else {
        panic!("{answer:?}");
    };
    link.header.index
}

#[tokio::test]
async fn loopback_is_found_by_name_and_in_a_dump() {
    let mut socket = Socket::open().unwrap();
    assert_eq!(index(&socket.get(link("lo")).await.unwrap()), 1);
    let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = socket.dump(all).await.unwrap();
    assert!(links.iter().any(|link| index(link) == 1));
    let error = socket.get(link("nonexistent")).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    assert_eq!(index(&socket.get(link("lo")).await.unwrap()), 1);
}

#[test]
fn blocking_socket_finds_loopback() {
    let mut socket = BlockingSocket::open().unwrap();
    assert_eq!(index(&socket.get(link("lo")).unwrap()), 1);
    let error = socket.get(link("nonexistent")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
}

#[test]
fn inherited_socket_discards_answers_to_its_previous_owner() {
    let protocol = SockProtocol::NetlinkRoute;
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::empty(),
        protocol,
    )
    .unwrap();
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    // The first sequence number of the new owner.
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    send(fd.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
    let mut inherited = BlockingSocket::inherit(fd).unwrap();
    let error = inherited.get(link("nonexistent")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
}

#[test]
fn inherited_socket_of_another_family_is_refused() {
    let udp = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let error = BlockingSocket::<RouteNetlinkMessage>::inherit(udp)
        .err()
        .unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EPROTOTYPE));
}

#[tokio::test]
async fn monitor_without_groups_waits() {
    let monitor = Monitor::rtnetlink(0).unwrap();
    let changed = tokio::time::timeout(Duration::from_millis(50), monitor.changed(None));
    assert!(changed.await.is_err());
}
