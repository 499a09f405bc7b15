//! Builds a validated lease from a server's message.

use core::time::Duration;
use std::net::Ipv4Addr;

use buildos_types::{Escaped, Route};
use dhcproto::v4::DhcpOption;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::message::ServerMessage;
use crate::options::{Options, is_host};
use crate::random::Random;
use crate::refusal::Refusal;
use crate::routes::{routes, through};
use crate::text;
use crate::time::Instant;

/// Option 51: the lease never expires.
const INFINITE: u32 = u32::MAX;
/// Every host accepts datagrams of this size (RFC 791). A smaller MTU is a mistake or
/// an attack.
const MINIMUM_MTU: u16 = 576;
/// Maximum number of search domains kept; resolvers use fewer.
const SEARCH_DOMAINS: usize = 16;
/// Flag of option 81: the name is in DNS wire format (RFC 4702, section 2.1).
const FQDN_IS_WIRE: u8 = 4;

/// A lease granted by an ACK or offered by an OFFER.
///
/// It derives from an address, options and a time alone. A saved lease is therefore
/// validated like a received one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address leased.
    pub address: Ipv4Addr,
    /// Length of the subnet mask (option 1), 1 to 32.
    pub prefix: u8,
    /// Server identifier (option 54); 0.0.0.0 if no server granted it.
    pub server: Ipv4Addr,
    /// Routes in the order in which the kernel accepts them: from option 121, else from
    /// options 33 and 3.
    pub routes: Vec<Route>,
    /// Name servers (option 6), in order of preference.
    pub dns: Vec<Ipv4Addr>,
    /// Domain of the host (option 15), if a resolver can use it. The first one, if the
    /// option holds several.
    pub domain: Option<String>,
    /// Search domains (option 119, or several names in option 15) that a resolver can use.
    pub search: Vec<String>,
    /// NTP servers (option 42), in order of preference.
    pub ntp: Vec<Ipv4Addr>,
    /// MTU (option 26) in bytes, if it is at least 576. The link might permit less.
    pub mtu: Option<u16>,
    /// Relay that the answer came through (`giaddr`).
    #[serde(default)]
    pub relay: Option<Ipv4Addr>,
    /// Host name (option 12), not validated.
    pub hostname: Option<Escaped>,
    /// Fully qualified name (option 81), not validated.
    pub fqdn: Option<Escaped>,
    /// Time of the first transmission of the answered REQUEST, from which the times of
    /// the lease count (RFC 2131, section 4.4.1).
    pub acquired: Instant,
    /// Times of a finite lease; `None` if it never expires.
    pub term: Option<Term>,
    /// All options, as received.
    pub options: Options,
}

/// The times of a finite lease, counted from [`Lease::acquired`]:
/// `renew < rebind < lease`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// T1, with jitter: the client asks the server of the lease to extend it.
    pub renew: Duration,
    /// T2, with jitter: the client asks any server.
    pub rebind: Duration,
    /// Expiry.
    pub lease: Duration,
}

impl Term {
    /// Returns the times of options 51, 58 and 59, in seconds. If T1 or T2 is missing or
    /// out of order, the defaults are 1/2 and 7/8 of the lease (RFC 2131, section 4.4.5).
    fn new(lease: u32, renew: Option<u32>, rebind: Option<u32>) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let lease = seconds(lease);
        let default = Self {
            renew: lease / 2,
            rebind: lease * 7 / 8,
            lease,
        };
        let received = Self {
            renew: renew.map_or(default.renew, seconds),
            rebind: rebind.map_or(default.rebind, seconds),
            lease,
        };
        let ordered = !received.renew.is_zero()
            && received.renew < received.rebind
            && received.rebind < received.lease;
        if ordered { received } else { default }
    }
}

impl Term {
    /// Adds jitter, see [`Config::jitter`](crate::Config::jitter).
    fn spread(&mut self, random: &mut Random) {
        let before_rebind = self.rebind.saturating_sub(self.renew);
        self.renew -= random.up_to(self.renew / 10);
        self.rebind -= random.up_to(before_rebind / 10);
    }
}

impl Lease {
    /// Validates an OFFER or ACK that answers a message sent at `acquired`.
    pub fn from_message(message: &ServerMessage, acquired: Instant) -> Result<Self, Refusal> {
        Self::new(
            message.address,
            message.relay,
            message.options.clone(),
            acquired,
        )
    }

    /// Returns a configured address as a lease without server, options and end.
    ///
    /// # Errors
    ///
    /// No host can have the address, or no other host that of the gateway.
    pub fn configured(
        address: Ipv4Net,
        gateway: Option<Ipv4Addr>,
        dns: Vec<Ipv4Addr>,
        acquired: Instant,
    ) -> Result<Self, Refusal> {
        let interface = interface(address.addr(), address.netmask())?;
        let routes = gateway.map(|gateway| through(interface, gateway));
        Ok(Self {
            address: interface.addr(),
            prefix: interface.prefix_len(),
            server: Ipv4Addr::UNSPECIFIED,
            routes: routes.transpose()?.unwrap_or_default(),
            dns,
            domain: None,
            search: Vec::new(),
            ntp: Vec::new(),
            mtu: None,
            relay: None,
            hostname: None,
            fqdn: None,
            acquired,
            term: None,
            options: Options::default(),
        })
    }

    /// Returns true if no server granted it, see [`Lease::configured`].
    pub fn is_configured(&self) -> bool {
        self.server.is_unspecified()
    }

    /// Validates a saved lease again, from its address, options and time alone.
    pub(crate) fn revalidate(self, now: Instant) -> Result<Self, Refusal> {
        if self.acquired > now {
            return Err(Refusal::AcquiredInFuture);
        }
        Self::new(self.address, self.relay, self.options, self.acquired)
    }

    /// Validates a saved [configured](Lease::configured) lease again, from its address, prefix,
    /// gateway and name servers alone. It is in use since `now`.
    ///
    /// # Errors
    ///
    /// As [`Lease::configured`].
    pub fn revalidate_configured(self, now: Instant) -> Result<Self, Refusal> {
        let interface = Ipv4Net::new(self.address, self.prefix);
        let interface = interface.map_err(|_| Refusal::BadAddress(self.address))?;
        Self::configured(interface, self.gateway(), self.dns, self.acquired.min(now))
    }

    fn new(
        address: Ipv4Addr,
        relay: Option<Ipv4Addr>,
        options: Options,
        acquired: Instant,
    ) -> Result<Self, Refusal> {
        let server = options.address(54).ok_or(Refusal::NoServer)?;
        if !is_host(&server) {
            return Err(Refusal::BadServer(server));
        }
        let mask = options.address(1).ok_or(Refusal::NoMask)?;
        let interface = interface(address, mask)?;
        if address == server {
            return Err(Refusal::ServerAddress(address));
        }
        let term = match options.number(51).ok_or(Refusal::NoLeaseTime)? {
            0 => return Err(Refusal::ZeroLeaseTime),
            INFINITE => None,
            lease => Some(Term::new(lease, options.number(58), options.number(59))),
        };
        let domains = options.get(15).map(text::domains).unwrap_or_default();
        Ok(Self {
            address,
            prefix: interface.prefix_len(),
            server,
            routes: routes(interface, &options)?,
            dns: options.hosts(6).unwrap_or_default(),
            search: search(&options, &domains),
            domain: domains.into_iter().next(),
            ntp: options.hosts(42).unwrap_or_default(),
            mtu: mtu(&options),
            relay,
            hostname: options.get(12).and_then(text::escape),
            fqdn: fqdn(&options),
            acquired,
            term,
            options,
        })
    }

    /// Adds jitter to T1 and T2, see [`Config::jitter`](crate::Config::jitter).
    pub(crate) fn spread(&mut self, random: &mut Random) {
        if let Some(term) = &mut self.term {
            term.spread(random);
        }
    }

    /// Returns the subnet, with a host part of zero.
    pub fn network(&self) -> Ipv4Net {
        // `new` never makes a prefix out of range; a deserialized one is treated as /32.
        Ipv4Net::new(self.address, self.prefix)
            .unwrap_or(self.address.into())
            .trunc()
    }

    /// Returns the gateway of the default route.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.routes.iter().find(|route| route.is_default())?.gateway
    }

    /// Returns true for each of these in order: a default route, a name server, an address
    /// that is not link-local. A greater array is a better lease.
    pub fn qualities(&self) -> [bool; 3] {
        [
            self.routes.iter().any(|route| route.is_default()),
            !self.dns.is_empty(),
            !self.address.is_link_local(),
        ]
    }

    /// Returns the time of T1; `None` for an infinite lease.
    pub fn renew_at(&self) -> Option<Instant> {
        self.term
            .map(|term| self.acquired.saturating_add(term.renew))
    }

    /// Returns the time of T2; `None` for an infinite lease.
    pub fn rebind_at(&self) -> Option<Instant> {
        self.term
            .map(|term| self.acquired.saturating_add(term.rebind))
    }

    /// Returns the time of expiry; `None` for an infinite lease.
    pub fn expires_at(&self) -> Option<Instant> {
        self.term
            .map(|term| self.acquired.saturating_add(term.lease))
    }

    /// Returns the time left at `now`; `None` for an infinite lease.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.expires_at().map(|end| end.saturating_sub(now))
    }

    /// Returns true if the lease has expired by `now`.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.expires_at().is_some_and(|end| end <= now)
    }
}

/// Returns the address with its mask, if a host can have it in that subnet.
fn interface(address: Ipv4Addr, mask: Ipv4Addr) -> Result<Ipv4Net, Refusal> {
    let interface = Ipv4Net::with_netmask(address, mask)
        .ok()
        .filter(|interface| interface.prefix_len() > 0)
        .ok_or(Refusal::BadMask(mask))?;
    let is_edge = address == interface.network() || address == interface.broadcast();
    if !is_host(&address) || (interface.prefix_len() < 31 && is_edge) {
        return Err(Refusal::BadAddress(address));
    }
    Ok(interface)
}

fn mtu(options: &Options) -> Option<u16> {
    let mtu = options.fixed(26).map(u16::from_be_bytes);
    mtu.filter(|mtu| *mtu >= MINIMUM_MTU)
}

/// Returns the search domains. `domains` are those of option 15: some servers list several
/// there instead of option 119.
fn search(options: &Options, domains: &[String]) -> Vec<String> {
    let Some(DhcpOption::DomainSearch(names)) = options.decode(119, &[]) else {
        let several = Some(domains).filter(|domains| domains.len() > 1);
        let several = several.unwrap_or_default().iter().cloned();
        return several.take(SEARCH_DOMAINS).collect();
    };
    let names = names
        .iter()
        .map(|name| name.iter().collect::<Vec<_>>().join(&b'.'));
    names
        .filter_map(|name| text::domain(&name))
        .take(SEARCH_DOMAINS)
        .collect()
}

fn fqdn(options: &Options) -> Option<Escaped> {
    let [flags, _, _, ascii @ ..] = options.get(81)? else {
        return None;
    };
    let name = if flags & FQDN_IS_WIRE == 0 {
        text::escape(ascii)
    } else {
        // A partial name has no terminating zero on the wire.
        let DhcpOption::ClientFQDN(fqdn) = options.decode(81, &[0])? else {
            return None;
        };
        text::escape(&fqdn.domain().iter().collect::<Vec<_>>().join(&b'.'))
    }?;
    let name = name.strip_suffix('.').unwrap_or(&name);
    (!name.is_empty()).then(|| Escaped::received(name))
}
