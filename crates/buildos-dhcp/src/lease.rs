//! A lease: what a server granted, checked and in types.

use core::time::Duration;
use std::net::Ipv4Addr;

use dhcproto::v4::DhcpOption;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::options::is_host;
use crate::routes::{Route, routes};
use crate::{Instant, Options, Refusal, ServerMessage, text};

/// Option 51: a lease without an end.
const INFINITE: u32 = u32::MAX;
/// RFC 791: every host takes datagrams of this size. Smaller MTUs are known as a
/// mistake or an attack, never as a need.
const MINIMUM_MTU: u16 = 576;
/// More search domains than any resolver asks for.
const SEARCH_DOMAINS: usize = 16;
/// Option 81: the name is in DNS wire format (RFC 4702, section 2.1).
const FQDN_IS_WIRE: u8 = 4;

/// A lease as granted by an ACK, or as promised by an OFFER.
///
/// It is made of an address and options alone, so one that was saved is read
/// back by the same rules as one from the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address leased.
    pub address: Ipv4Addr,
    /// Length of the subnet mask (option 1), 1 to 32.
    pub prefix: u8,
    /// Who granted it (option 54).
    pub server: Ipv4Addr,
    /// Routes in the order in which they have to be set: from option 121, else
    /// from options 33 and 3.
    pub routes: Vec<Route>,
    /// Name servers (option 6), best first.
    pub dns: Vec<Ipv4Addr>,
    /// Domain of the host (option 15), where it is a usable name.
    pub domain: Option<String>,
    /// Search domains (option 119), those that are usable names.
    pub search: Vec<String>,
    /// NTP servers (option 42), best first.
    pub ntp: Vec<Ipv4Addr>,
    /// MTU (option 26), where it is at least 576 bytes. The link may allow less.
    pub mtu: Option<u16>,
    /// Broadcast address (option 28), where it is one of the subnet.
    pub broadcast: Option<Ipv4Addr>,
    /// Host name (option 12), escaped but not checked.
    pub hostname: Option<String>,
    /// Fully qualified name (option 81), escaped but not checked.
    pub fqdn: Option<String>,
    /// When the first REQUEST that this lease answers was sent: all its times
    /// count from there (RFC 2131, section 4.4.1).
    pub acquired: Instant,
    /// How long it runs; none is for ever.
    pub term: Option<Term>,
    /// All options, as received.
    pub options: Options,
}

/// The times of a finite lease, counted from [`Lease::acquired`]:
/// `renew < rebind < lease`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// T1: from then on the server of the lease is asked to extend it.
    pub renew: Duration,
    /// T2: from then on any server is asked.
    pub rebind: Duration,
    /// The end.
    pub lease: Duration,
}

impl Term {
    /// Times in seconds as options 51, 58 and 59 say. T1 and T2 that are missing
    /// or out of order become 1/2 and 7/8 of the lease (RFC 2131, section 4.4.5).
    fn new(lease: u32, renew: Option<u32>, rebind: Option<u32>) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let lease = seconds(lease);
        let standard = Self {
            renew: lease / 2,
            rebind: lease * 7 / 8,
            lease,
        };
        let asked = Self {
            renew: renew.map_or(standard.renew, seconds),
            rebind: rebind.map_or(standard.rebind, seconds),
            lease,
        };
        let ordered =
            !asked.renew.is_zero() && asked.renew < asked.rebind && asked.rebind < asked.lease;
        if ordered { asked } else { standard }
    }
}

impl Lease {
    /// Reads an OFFER or ACK that answers a message sent at `acquired`.
    pub fn from_message(message: &ServerMessage, acquired: Instant) -> Result<Self, Refusal> {
        Self::new(message.address, message.options.clone(), acquired)
    }

    /// Reads a saved lease again, trusting only its address, options and time.
    pub(crate) fn reread(self, now: Instant) -> Result<Self, Refusal> {
        if self.acquired > now {
            return Err(Refusal::FromTheFuture);
        }
        Self::new(self.address, self.options, self.acquired)
    }

    fn new(address: Ipv4Addr, options: Options, acquired: Instant) -> Result<Self, Refusal> {
        let server = options.address(54).ok_or(Refusal::NoServer)?;
        if !is_host(&server) {
            return Err(Refusal::BadServer(server));
        }
        let mask = options.address(1).ok_or(Refusal::NoMask)?;
        let interface = interface(address, mask)?;
        if address == server {
            return Err(Refusal::ServersOwn(address));
        }
        let term = match options.number(51).ok_or(Refusal::NoLeaseTime)? {
            0 => return Err(Refusal::ZeroLeaseTime),
            INFINITE => None,
            lease => Some(Term::new(lease, options.number(58), options.number(59))),
        };
        Ok(Self {
            address,
            prefix: interface.prefix_len(),
            server,
            routes: routes(interface, &options)?,
            dns: options.hosts(6).unwrap_or_default(),
            domain: options.get(15).and_then(text::domain),
            search: search(&options),
            ntp: options.hosts(42).unwrap_or_default(),
            mtu: mtu(&options),
            broadcast: options
                .address(28)
                .filter(|address| interface.contains(address)),
            hostname: options.get(12).and_then(text::escape),
            fqdn: fqdn(&options),
            acquired,
            term,
            options,
        })
    }

    /// The subnet, its host part zero.
    pub fn network(&self) -> Ipv4Net {
        // A prefix out of range cannot come from `new`; it would mean "this host".
        Ipv4Net::new(self.address, self.prefix)
            .unwrap_or(self.address.into())
            .trunc()
    }

    /// The gateway of the default route, if there is one.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.routes.iter().find(|route| route.is_default())?.gateway
    }

    /// When T1 comes; never for an infinite lease.
    pub fn renew_at(&self) -> Option<Instant> {
        self.term
            .map(|term| self.acquired.saturating_add(term.renew))
    }

    /// When T2 comes; never for an infinite lease.
    pub fn rebind_at(&self) -> Option<Instant> {
        self.term
            .map(|term| self.acquired.saturating_add(term.rebind))
    }

    /// When the lease ends; never for an infinite lease.
    pub fn expires_at(&self) -> Option<Instant> {
        self.term
            .map(|term| self.acquired.saturating_add(term.lease))
    }

    /// How long it still runs at `now`; none is for ever.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.expires_at().map(|end| end.saturating_sub(now))
    }

    /// Whether it has ended by `now`.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.expires_at().is_some_and(|end| end <= now)
    }
}

/// The address with its mask, when a host can have it there.
fn interface(address: Ipv4Addr, mask: Ipv4Addr) -> Result<Ipv4Net, Refusal> {
    let interface = Ipv4Net::with_netmask(address, mask)
        .ok()
        .filter(|interface| interface.prefix_len() > 0)
        .ok_or(Refusal::BadMask(mask))?;
    let edge = address == interface.network() || address == interface.broadcast();
    if !is_host(&address) || (interface.prefix_len() < 31 && edge) {
        return Err(Refusal::BadAddress(address));
    }
    Ok(interface)
}

fn mtu(options: &Options) -> Option<u16> {
    let bytes: [u8; 2] = options.get(26)?.try_into().ok()?;
    Some(u16::from_be_bytes(bytes)).filter(|mtu| *mtu >= MINIMUM_MTU)
}

fn search(options: &Options) -> Vec<String> {
    let Some(DhcpOption::DomainSearch(names)) = options.decode(119, &[]) else {
        return Vec::new();
    };
    let names = names
        .iter()
        .map(|name| name.iter().collect::<Vec<_>>().join(&b'.'));
    names
        .filter_map(|name| text::domain(&name))
        .take(SEARCH_DOMAINS)
        .collect()
}

fn fqdn(options: &Options) -> Option<String> {
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
    Some(name.strip_suffix('.').unwrap_or(&name).to_owned()).filter(|name| !name.is_empty())
}
