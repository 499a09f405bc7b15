//! Compares the client's messages byte by byte.

use buildos_dhcp::{ClientId, ClientName, Config, Identity, Input, State};
use buildos_types::MacAddress;

use crate::host::{Host, MAC};
use crate::server_reply::Reply;

const PARAMETERS: &str = "37 0e 01 79 21 03 06 0f 77 0c 51 1a 1c 2a 3a 3b";

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Splits into header and options. The rest up to 300 bytes must be zero.
fn split(payload: &[u8]) -> (String, String) {
    assert_eq!(payload.len(), 300);
    let end = payload.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    (hex(&payload[..240]), hex(&payload[240..end]))
}

fn header(xid: u32, secs: &str, flags: &str, ciaddr: &str) -> String {
    let zeros = |count: usize| vec!["00"; count].join(" ");
    [
        "01 01 06 00",
        &hex(&xid.to_be_bytes()),
        secs,
        flags,
        ciaddr,
        // yiaddr, siaddr, giaddr
        &zeros(12),
        "52 54 00 12 34 56",
        // the rest of chaddr, sname, file
        &zeros(10 + 64 + 128),
        "63 82 53 63",
    ]
    .join(" ")
}

const UNSPECIFIED: &str = "00 00 00 00";
const ADDRESS: &str = "c0 00 02 4d";
const IDENTIFIER: &str = "3d 07 01 52 54 00 12 34 56";

#[test]
fn discover_has_the_expected_bytes() {
    let mut config = Config::new(MAC);
    config.name = Some(ClientName::Host("rack7".to_owned()));
    let mut host = Host::with(config, 42);
    host.handle(Input::Start);
    let (head, options) = split(&host.last().transmit.payload);
    assert_eq!(head, header(host.xid, "00 00", "00 00", UNSPECIFIED));
    let expected =
        format!("35 01 01 {IDENTIFIER} 39 02 05 c0 0c 05 72 61 63 6b 37 {PARAMETERS} ff");
    assert_eq!(options, expected);
}

#[test]
fn client_name_is_sent_as_hostname_or_fqdn() {
    let options_for = |name| {
        let mut config = Config::new(MAC);
        config.name = Some(name);
        let mut host = Host::with(config, 42);
        host.handle(Input::Start);
        let sent = host.last();
        [12, 81].map(|code| sent.options.get(code).map(hex))
    };
    let long = "a".repeat(64);
    for (name, host, fqdn) in [
        (ClientName::Host("r7".into()), Some("72 37"), None),
        // RFC 2132, section 3.14: at least one byte.
        (ClientName::Host(String::new()), None, None),
        (
            ClientName::Fqdn("r7.lan".into()),
            None,
            Some("05 00 00 02 72 37 03 6c 61 6e 00"),
        ),
        (
            ClientName::Fqdn("r7".into()),
            None,
            Some("05 00 00 02 72 37"),
        ),
        (ClientName::Fqdn(String::new()), None, None),
        (ClientName::Fqdn("r7..lan".into()), None, None),
        (ClientName::Fqdn(long), None, None),
    ] {
        let expected = [host, fqdn].map(|text| text.map(str::to_owned));
        assert_eq!(options_for(name.clone()), expected, "{name:?}");
    }
}

#[test]
fn changed_client_name_is_sent_in_the_next_message() {
    let mut host = Host::in_state(State::Bound);
    let mut config = Config::new(MacAddress([2; 6]));
    config.name = Some(ClientName::Host("rack8".to_owned()));
    host.client.configure(config);
    host.handle(Input::Renew);
    assert_eq!(host.last().options.get(12), Some(&b"rack8"[..]));
}

#[test]
fn request_after_select_has_the_expected_bytes() {
    let mut host = Host::new();
    host.handle(Input::Start);
    // The fifth DISCOVER, with the broadcast flag.
    host.run_until(5.0);
    assert_eq!(host.sent.len(), 5);
    let discover = host.last();
    let (xid, secs) = (discover.xid, hex(&discover.secs.to_be_bytes()));
    assert!(discover.secs >= 2);
    host.reply(Reply::offer());
    host.run_until(9.0);
    host.handle(Input::Select);
    let (head, options) = split(&host.last().transmit.payload);
    assert_eq!(head, header(xid, &secs, "80 00", UNSPECIFIED));
    let expected = format!(
        "35 01 03 {IDENTIFIER} 32 04 {ADDRESS} 36 04 c0 00 02 01 39 02 05 c0 {PARAMETERS} ff"
    );
    assert_eq!(options, expected);
}

#[test]
fn request_with_a_lease_has_the_expected_bytes() {
    for (state, ciaddr, requested) in [
        (State::Renewing, ADDRESS, String::new()),
        (State::Rebinding, ADDRESS, String::new()),
        (State::Rebooting, UNSPECIFIED, format!("32 04 {ADDRESS} ")),
    ] {
        let mut host = Host::in_state(state);
        let deadline = host.client.deadline().unwrap();
        host.now = deadline;
        host.handle(Input::Timeout);
        let sent = host.last();
        let secs = hex(&sent.secs.to_be_bytes());
        let (head, options) = split(&sent.transmit.payload);
        assert_eq!(head, header(sent.xid, &secs, "00 00", ciaddr), "{state}");
        let expected = format!("35 01 03 {IDENTIFIER} {requested}39 02 05 c0 {PARAMETERS} ff");
        assert_eq!(options, expected, "{state}");
    }
}

#[test]
fn release_and_decline_have_the_expected_bytes() {
    let mut host = Host::in_state(State::Bound);
    host.handle(Input::Release);
    let (head, options) = split(&host.last().transmit.payload);
    assert_eq!(head, header(host.last().xid, "00 00", "00 00", ADDRESS));
    assert_eq!(
        options,
        format!("35 01 07 {IDENTIFIER} 36 04 c0 00 02 01 ff")
    );

    let mut host = Host::in_state(State::Bound);
    let address = host.lease().address;
    host.handle(Input::Conflict {
        address,
        mac: MacAddress([2; 6]),
    });
    let (head, options) = split(&host.last().transmit.payload);
    assert_eq!(head, header(host.last().xid, "00 00", "00 00", UNSPECIFIED));
    assert_eq!(
        options,
        format!("35 01 04 {IDENTIFIER} 32 04 {ADDRESS} 36 04 c0 00 02 01 ff")
    );
}

#[test]
fn identity_is_sent_and_expected_in_answers() {
    let text = |text: &str| Some(text.to_owned().try_into().unwrap());
    let mut config = Config::new(MAC);
    config.identity = Identity {
        vendor_class: text("buildos"),
        user_class: text("ci"),
        client_id: "00:41:42".to_owned().try_into().unwrap(),
    };
    let mut host = Host::with(config, 42);
    host.handle(Input::Start);
    let (_, options) = split(&host.last().transmit.payload);
    let classes = "3c 07 62 75 69 6c 64 6f 73 4d 03 02 63 69";
    let expected = format!("35 01 01 3d 03 00 41 42 39 02 05 c0 {classes} {PARAMETERS} ff");
    assert_eq!(options, expected);
    host.reply(Reply::offer().with(61, [1, 0x52, 0x54, 0, 0x12, 0x34, 0x56]));
    assert!(
        host.client.offer().is_none(),
        "the identifier of a different client"
    );
    host.reply(Reply::offer().with(61, [0, 0x41, 0x42]));
    host.handle(Input::Select);
    host.reply(Reply::ack());
    assert_eq!(host.state(), State::Bound);
    host.handle(Input::Release);
    let (_, options) = split(&host.last().transmit.payload);
    assert!(options.contains("3d 03 00 41 42"), "{options}");
}

#[test]
fn client_without_identifier_sends_no_option_61() {
    let mut config = Config::new(MAC);
    config.identity.client_id = ClientId::None;
    let mut host = Host::with(config, 42);
    host.handle(Input::Start);
    let (_, options) = split(&host.last().transmit.payload);
    assert_eq!(options, format!("35 01 01 39 02 05 c0 {PARAMETERS} ff"));
    host.reply(Reply::offer().with(61, [1, 0x52, 0x54, 0, 0x12, 0x34, 0x56]));
    assert!(host.client.offer().is_none(), "an identifier was not sent");
    host.reply(Reply::offer());
    host.handle(Input::Select);
    host.reply(Reply::ack());
    assert_eq!(host.state(), State::Bound);
}
