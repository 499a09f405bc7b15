//! Tests what br0 has while no server grants a lease: an expired lease, or the static address.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "support/lan.rs"]
mod lan;
#[path = "support/nics.rs"]
mod nics;
#[path = "support/servers.rs"]
mod servers;

use std::time::Duration;

use buildos_dbus_api::network1::{AddressOrigin, State};
use buildos_dhcp::Instant;
use buildos_dhcp::arp::Packet;
use buildos_netd::kernel::fake;
use buildos_netd::observed::PUBLIC_BRIDGE;
use buildos_netd::reconcile::{FormerUplink, Kernel as _, Reconciler};
use buildos_netd::settings::Settings;
use buildos_netd::status::{Clocks, Status};
use buildos_types::MacAddress;
use lan::Lan;
use nics::{index, mac, nic};
use servers::{LEASE, Server};

const START: Instant = Duration::from_secs(100);
const WAIT: Duration = Duration::from_secs(40);
/// The probes before an address is used.
const PROBES: Duration = Duration::from_millis(300);
const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 1, 1]);
const STATIC: &str = "192.0.2.50/24";

struct Host {
    reconciler: Reconciler,
    lan: Lan,
}

impl Host {
    /// Returns a host with NICs 1, 2, … and a server behind each.
    fn new(settings: Settings, servers: &[Server]) -> Self {
        let mut lan = Lan::new(START);
        for (number, server) in (1..).zip(servers) {
            let index = index(number);
            lan.servers.insert(index, (*server, LEASE));
            lan.kernel.plug(index, true);
            lan.kernel.add_link(nic(index, &format!("eth{number}")));
        }
        let mut host = Self {
            reconciler: Reconciler::new(settings, 1),
            lan,
        };
        host.start(None);
        host
    }

    fn start(&mut self, former: Option<FormerUplink>) {
        fake::run(self.reconciler.start(&mut self.lan, former))
            .unwrap()
            .unwrap();
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            fake::run(self.reconciler.step(&mut self.lan))
                .unwrap()
                .unwrap();
            let Some((nic, message)) = self.lan.replies.pop_front() else {
                return;
            };
            self.reconciler.packet(self.lan.now(), nic, &message);
        }
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.lan.now() + duration;
        loop {
            let deadlines = [self.reconciler.deadline(), self.lan.kernel.next_expiry()];
            let next = deadlines.into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            if !self.lan.kernel.advance(next).is_empty() {
                self.reconciler.kernel_changed(None);
            }
            self.reconciler.timeout(self.lan.now());
            self.settle();
        }
        self.lan.kernel.advance(end);
    }

    fn serve(&mut self, number: u32, server: Server) {
        self.lan.servers.insert(index(number), (server, LEASE));
    }

    fn plug(&mut self, number: u32, plugged: bool) {
        self.lan.kernel.plug(index(number), plugged);
        self.reconciler.kernel_changed(None);
        self.settle();
    }

    /// Another host claims an address on the network of the NIC.
    fn claim(&mut self, number: u32, address: &str) {
        let claim = Packet::announcement(OTHER, address.parse().unwrap());
        self.reconciler.arp(self.lan.now(), index(number), &claim);
        self.settle();
    }

    fn status(&self) -> Status {
        let clocks = Clocks {
            boottime: self.lan.now(),
            realtime: self.lan.now(),
        };
        Status::new(&self.reconciler, Vec::new(), clocks)
    }

    /// Returns the address of br0 and its origin, as the kernel and the status show them.
    fn address(&self) -> Option<(String, AddressOrigin)> {
        let observed = &self.lan.kernel.observed;
        let br0 = observed.bridge(PUBLIC_BRIDGE).unwrap().index;
        let mut addresses = observed.addresses.iter();
        let address = addresses.find(|address| address.link == br0);
        let address = address.map(|address| address.net.to_string());
        let status = self.status();
        let lease = status.lease.map(|l| format!("{}/{}", l.address, l.prefix));
        assert_eq!(address, lease);
        address.zip(status.address_origin)
    }

    fn port(&self) -> Option<u32> {
        let port = self.reconciler.election().port();
        port.map(|port| port.candidate.index.get())
    }
}

fn with_static() -> Settings {
    let address = format!("{STATIC} via 192.0.2.1");
    Settings {
        static_address: Some(address.try_into().unwrap()),
        static_dns: vec![[192, 0, 2, 53].into()],
        ..Settings::default()
    }
}

fn keeping() -> Settings {
    Settings {
        keep_expired: true,
        ..Settings::default()
    }
}

fn static_address() -> Option<(String, AddressOrigin)> {
    Some((STATIC.to_owned(), AddressOrigin::Static))
}

fn leased(address: &str) -> Option<(String, AddressOrigin)> {
    Some((address.to_owned(), AddressOrigin::Lease))
}

#[test]
fn static_address_is_used_after_wait_without_lease() {
    let mut host = Host::new(with_static(), &[Server::Silent]);
    host.pass(WAIT - Duration::from_secs(1));
    assert_eq!(host.address(), None);
    let reason = host.status().reason;
    assert!(
        reason.contains("static address is used after 40 s"),
        "{reason}"
    );
    host.pass(Duration::from_secs(1) + PROBES);
    assert_eq!(host.address(), static_address());
    let status = host.status();
    assert_eq!(status.state, State::Online);
    assert!(status.reason.contains("static address 192.0.2.50/24"));
    assert_eq!(status.lease.unwrap().dns.len(), 1);
    assert_eq!(host.lan.kernel.observed.routes.len(), 1);
}

#[test]
fn static_address_ends_with_later_lease_on_any_nic() {
    for number in [1, 2] {
        let mut host = Host::new(with_static(), &[Server::Silent, Server::Silent]);
        host.pass(WAIT + PROBES);
        assert_eq!((host.address(), host.port()), (static_address(), Some(1)));
        host.serve(number, Server::Good);
        host.pass(Duration::from_secs(10));
        assert_eq!(host.address(), leased(&format!("192.0.2.10{number}/24")));
        assert_eq!(host.port(), Some(number));
    }
}

#[test]
fn static_address_is_kept_if_offer_has_no_default_route() {
    let mut host = Host::new(with_static(), &[Server::Silent, Server::Silent]);
    host.pass(WAIT + PROBES);
    host.serve(2, Server::LinkLocal);
    host.pass(Duration::from_secs(600));
    assert_eq!((host.address(), host.port()), (static_address(), Some(1)));
}

#[test]
fn static_address_of_other_host_is_not_used_until_it_is_free() {
    let mut host = Host::new(with_static(), &[Server::Silent]);
    host.pass(WAIT);
    host.claim(1, "192.0.2.50");
    host.pass(Duration::from_secs(30));
    assert_eq!(host.address(), None);
    let reason = host.status().reason;
    assert!(
        reason.contains("192.0.2.50 is in use by 02:00:00:00:01:01"),
        "{reason}"
    );
    host.pass(Duration::from_secs(40));
    assert_eq!(host.address(), static_address());
}

#[test]
fn static_address_claimed_later_is_kept() {
    let mut host = Host::new(with_static(), &[Server::Silent]);
    host.pass(WAIT + Duration::from_secs(10));
    host.claim(1, "192.0.2.50");
    host.pass(Duration::from_secs(10));
    assert_eq!(host.address(), static_address());
}

#[test]
fn static_address_goes_to_nic_of_boot() {
    let settings = Settings {
        bootif: Some(mac(index(2))),
        ..with_static()
    };
    let mut host = Host::new(settings, &[Server::Silent, Server::Silent]);
    host.pass(WAIT + PROBES);
    assert_eq!((host.address(), host.port()), (static_address(), Some(2)));
}

#[test]
fn static_address_moves_from_nic_without_carrier_after_grace_time() {
    let mut host = Host::new(with_static(), &[Server::Silent, Server::Silent]);
    host.pass(WAIT + PROBES);
    host.plug(1, false);
    assert_eq!(host.status().state, State::CarrierLost);
    host.pass(Settings::default().carrier_grace + PROBES);
    assert_eq!((host.address(), host.port()), (static_address(), Some(2)));
}

#[test]
fn static_address_survives_restart_and_follows_configuration() {
    let mut host = Host::new(with_static(), &[Server::Silent]);
    host.pass(WAIT + PROBES);
    let lease = host.reconciler.election().lease().cloned().unwrap();
    host.reconciler = Reconciler::new(with_static(), 2);
    host.start(Some(FormerUplink {
        identity: None,
        mac: mac(index(1)),
        gateway_mac: None,
        lease,
    }));
    assert_eq!(host.address(), static_address());
    let other = Settings {
        static_address: Some("192.0.2.51/24".to_owned().try_into().unwrap()),
        ..Settings::default()
    };
    host.reconciler.configure(host.lan.now(), other);
    host.settle();
    assert_eq!(host.address(), None);
    host.pass(WAIT + PROBES);
    let expected = ("192.0.2.51/24".to_owned(), AddressOrigin::Static);
    assert_eq!(host.address(), Some(expected));
    assert_eq!(host.status().state, State::NoDefaultRoute);
    host.reconciler
        .configure(host.lan.now(), Settings::default());
    host.settle();
    assert_eq!(host.address(), None);
}

#[test]
fn static_address_is_used_after_lease_expired() {
    let mut host = Host::new(with_static(), &[Server::Good]);
    assert_eq!(host.address(), leased("192.0.2.101/24"));
    host.serve(1, Server::Silent);
    host.pass(Duration::from_secs(u64::from(LEASE)) + WAIT + PROBES);
    assert_eq!(host.address(), static_address());
}

#[test]
fn expired_lease_is_kept_until_server_grants_one() {
    let mut host = Host::new(keeping(), &[Server::Good]);
    host.serve(1, Server::Silent);
    host.pass(Duration::from_secs(u64::from(LEASE) * 3));
    let kept = ("192.0.2.101/24".to_owned(), AddressOrigin::ExpiredLease);
    assert_eq!(host.address(), Some(kept.clone()));
    let status = host.status();
    assert_eq!(status.state, State::Online);
    assert!(
        status.reason.contains("expired (keep_expired)"),
        "{}",
        status.reason
    );
    // netd restarts.
    let lease = host.reconciler.election().lease().cloned().unwrap();
    host.reconciler = Reconciler::new(keeping(), 2);
    host.start(Some(FormerUplink {
        identity: None,
        mac: mac(index(1)),
        gateway_mac: None,
        lease,
    }));
    assert_eq!(host.address(), Some(kept));
    host.serve(1, Server::Good);
    host.pass(Duration::from_secs(120));
    assert_eq!(host.address(), leased("192.0.2.101/24"));
}

#[test]
fn expired_lease_ends_with_claim_of_its_address_or_offer_of_other_network() {
    let mut host = Host::new(keeping(), &[Server::Good]);
    host.serve(1, Server::Silent);
    host.pass(Duration::from_secs(u64::from(LEASE) + 60));
    host.claim(1, "192.0.2.101");
    host.pass(Duration::from_secs(2));
    assert_eq!(host.address(), None);

    let mut host = Host::new(keeping(), &[Server::Good]);
    host.serve(1, Server::Silent);
    host.pass(Duration::from_secs(u64::from(LEASE) + 60));
    host.serve(1, Server::Elsewhere);
    host.pass(Duration::from_secs(120));
    assert_eq!(host.address(), leased("198.51.100.101/24"));
}

#[test]
fn expired_lease_is_removed_by_default() {
    let mut host = Host::new(Settings::default(), &[Server::Good]);
    host.serve(1, Server::Silent);
    host.pass(Duration::from_secs(u64::from(LEASE) + 1));
    assert_eq!(host.address(), None);
}
