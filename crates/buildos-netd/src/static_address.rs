//! Parses static addresses: the keys `static` and `boot_address`.

use std::net::Ipv4Addr;

use buildos_dhcp::{Instant, Lease};
use ipnet::Ipv4Net;
use serde::Deserialize;

/// An address for br0 without a DHCP server: `192.0.2.10/24 via 192.0.2.1`. The gateway is
/// optional.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct StaticAddress {
    interface: Ipv4Net,
    gateway: Option<Ipv4Addr>,
}

impl StaticAddress {
    fn new(interface: Ipv4Net, gateway: Option<Ipv4Addr>) -> Result<Self, String> {
        let lease = Lease::configured(interface, gateway, Vec::new(), Instant::ZERO);
        lease.map_err(|refusal| refusal.to_string())?;
        Ok(Self { interface, gateway })
    }

    #[allow(missing_docs)]
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.interface.addr()
    }

    /// Returns the configuration of br0, in use since `now`.
    #[must_use]
    pub fn lease(&self, dns: &[Ipv4Addr], now: Instant) -> Option<Lease> {
        // The constructor made the same checks.
        Lease::configured(self.interface, self.gateway, dns.to_vec(), now).ok()
    }
}

impl TryFrom<String> for StaticAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let example = || format!("{text:?} is not \"192.0.2.10/24 via 192.0.2.1\"");
        let words: Vec<&str> = text.split_whitespace().collect();
        let (interface, gateway) = match words.as_slice() {
            [interface] => (interface, None),
            [interface, "via", gateway] => (interface, Some(gateway)),
            _ => return Err(example()),
        };
        let interface = interface.parse().map_err(|_| example())?;
        let gateway = gateway.map(|gateway| gateway.parse::<Ipv4Addr>());
        let gateway = gateway.transpose().map_err(|_| example())?;
        match gateway.is_some_and(|gateway| gateway.is_unspecified()) {
            true => Err(example()),
            false => Self::new(interface, gateway),
        }
    }
}

/// The value of `ip=` by PXELINUX with `ipappend 1`: `CLIENT:BOOT:GATEWAY:NETMASK`. [`None`]
/// for other values, which programs of an initramfs read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct BootAddress(pub(crate) Option<StaticAddress>);

impl TryFrom<String> for BootAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parts: Vec<&str> = text.split(':').collect();
        let [client, _, gateway, mask] = parts[..] else {
            return Ok(Self(None));
        };
        let Ok(client) = client.parse::<Ipv4Addr>() else {
            return Ok(Self(None));
        };
        let mask = mask.parse::<Ipv4Addr>().ok();
        let interface = mask.and_then(|mask| Ipv4Net::with_netmask(client, mask).ok());
        let interface = interface
            .ok_or_else(|| format!("{text:?} is not CLIENT:BOOT:GATEWAY:NETMASK of PXELINUX"))?;
        let gateway = gateway.parse::<Ipv4Addr>().ok();
        let gateway = gateway.filter(|gateway| !gateway.is_unspecified());
        StaticAddress::new(interface, gateway).map(|address| Self(Some(address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<StaticAddress, String> {
        text.to_owned().try_into()
    }

    fn lease(address: &StaticAddress) -> Lease {
        let dns = [Ipv4Addr::new(192, 0, 2, 53)];
        address.lease(&dns, Instant::from_secs(5)).unwrap()
    }

    #[test]
    fn static_address_with_gateway_is_lease_without_server_and_end() {
        let lease = lease(&parsed("192.0.2.10/24 via 192.0.2.1").unwrap());
        assert!(lease.is_configured());
        assert_eq!((lease.address, lease.prefix), ([192, 0, 2, 10].into(), 24));
        assert_eq!(lease.gateway(), Some([192, 0, 2, 1].into()));
        assert_eq!(lease.dns, [Ipv4Addr::new(192, 0, 2, 53)]);
        assert_eq!(lease.expires_at(), None);
    }

    #[test]
    fn static_address_without_gateway_has_no_default_route() {
        let lease = lease(&parsed("192.0.2.10/24").unwrap());
        assert_eq!(lease.routes, []);
    }

    #[test]
    fn static_address_impossible_is_refused() {
        for (text, error) in [
            ("192.0.2.10", "is not \"192.0.2.10/24 via 192.0.2.1\""),
            ("192.0.2.10/24 192.0.2.1", "is not"),
            ("192.0.2.10/24 via 0.0.0.0", "is not"),
            ("192.0.2.0/24", "address 192.0.2.0 is not a host's address"),
            ("127.0.0.1/8", "address 127.0.0.1 is not a host's address"),
            (
                "192.0.2.10/24 via 192.0.2.10",
                "gateway 192.0.2.10 is not the address of another host",
            ),
        ] {
            let refused = parsed(text).unwrap_err();
            assert!(refused.contains(error), "{refused}");
        }
    }

    #[test]
    fn boot_address_of_pxelinux_is_static_address() {
        let boot = |text: &str| BootAddress::try_from(text.to_owned());
        let expected = parsed("192.0.2.10/24 via 192.0.2.1").unwrap();
        let address = boot("192.0.2.10:192.0.2.2:192.0.2.1:255.255.255.0").unwrap();
        assert_eq!(address.0, Some(expected));
        let expected = parsed("192.0.2.10/24").unwrap();
        let address = boot("192.0.2.10:192.0.2.2:0.0.0.0:255.255.255.0").unwrap();
        assert_eq!(address.0, Some(expected));
        let error = boot("192.0.2.10:192.0.2.2:192.0.2.1:255.0.255.0").unwrap_err();
        assert!(error.contains("PXELINUX"), "{error}");
    }

    #[test]
    fn boot_address_for_programs_of_initramfs_is_ignored() {
        for text in [
            "dhcp",
            "on",
            "eth0:dhcp",
            ":::::eth0:dhcp",
            "192.0.2.10::192.0.2.1:255.255.255.0:host:eth0:off",
            "[2001:db8::1]::[2001:db8::2]:64::eth0:none",
        ] {
            let parsed = BootAddress::try_from(text.to_owned());
            assert_eq!(parsed, Ok(BootAddress(None)), "{text}");
        }
    }
}
