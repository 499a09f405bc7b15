//! Builds requests that identify network namespaces (ip-netns(8), `ip netns list-id`).
//!
//! The kernel gives each namespace that a link of this namespace has its peer in a number.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

/// Returns the request for the number of the namespace of a process, for
/// [`Socket::get`](crate::Socket::get).
#[must_use]
pub fn get(process: u32) -> RouteNetlinkMessage {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Pid(process));
    RouteNetlinkMessage::GetNsId(message)
}

/// Returns the number of a namespace, or [`None`] if it has none.
#[must_use]
pub fn number(message: &RouteNetlinkMessage) -> Option<i32> {
    let RouteNetlinkMessage::NewNsId(message) = message else {
        return None;
    };
    message.attributes.iter().find_map(|attribute| {
        let NsidAttribute::Id(number) = attribute else {
            return None;
        };
        (*number >= 0).then_some(*number)
    })
}

/// Returns the request for all links, for [`Socket::dump`](crate::Socket::dump).
#[must_use]
pub fn get_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

/// Returns the name of a link and the number of the namespace of its peer, or [`None`] if it
/// has no peer in another namespace.
#[must_use]
pub fn peer(message: &RouteNetlinkMessage) -> Option<(&str, i32)> {
    let RouteNetlinkMessage::NewLink(link) = message else {
        return None;
    };
    let mut name = None;
    let mut number = None;
    for attribute in &link.attributes {
        if let LinkAttribute::IfName(text) = attribute {
            name = Some(text.as_str());
        } else if let LinkAttribute::LinkNetNsId(id) = attribute {
            number = Some(*id);
        }
    }
    name.zip(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_namespace_is_found_in_its_message() {
        let message = |number| {
            let mut message = NsidMessage::default();
            message.attributes.push(NsidAttribute::Id(number));
            RouteNetlinkMessage::NewNsId(message)
        };
        assert_eq!(number(&message(3)), Some(3));
        assert_eq!(number(&message(-1)), None);
        assert_eq!(number(&get(1)), None);
    }

    #[test]
    fn peer_is_found_in_message_of_link() {
        let link = |attributes| {
            let mut message = LinkMessage::default();
            message.attributes = attributes;
            RouteNetlinkMessage::NewLink(message)
        };
        let name = LinkAttribute::IfName("ct0".into());
        let veth = link(vec![name.clone(), LinkAttribute::LinkNetNsId(2)]);
        assert_eq!(peer(&veth), Some(("ct0", 2)));
        assert_eq!(peer(&link(vec![name])), None);
        assert_eq!(peer(&get_links()), None);
    }
}
