//! Defines validated types that several crates share: every value of these types is
//! valid.
//!
//! | type | value | source of the rules |
//! |---|---|---|
//! | [`LinkIndex`], [`InterfaceName`] | index and name of a network interface | rtnetlink(7), `dev_valid_name` of the kernel |
//! | [`MacAddress`] | 48-bit hardware address | IEEE 802 |
//! | [`Hostname`] | name of a Linux host | RFC 952, RFC 1123 section 2.1 |
//! | [`DomainName`] | name that a resolver can use | RFC 1035, RFC 1123, RFC 2181 |
//! | [`PrivateNetwork`] | address and prefix of the host on br1 | RFC 1918, RFC 6890 |
//! | [`Escaped`] | text from outside that is safe to show | sd_notify(3) |
//! | [`Route`] | destination, gateway and `onlink` of an IPv4 route | RFC 3442, ip-route(8) |
//!
//! The crate is pure: no I/O, no clock, no randomness.

mod domain_name;
mod escaped;
mod hostname;
mod link;
mod mac;
mod private_network;
mod route;

pub use domain_name::{DomainName, InvalidDomainName};
pub use escaped::Escaped;
pub use hostname::{Hostname, InvalidHostname};
pub use link::{InterfaceName, InvalidInterfaceName, LinkIndex};
pub use mac::{InvalidMacAddress, MacAddress};
pub use private_network::{InvalidPrivateNetwork, PrivateNetwork};
pub use route::Route;
