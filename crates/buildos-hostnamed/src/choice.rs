//! Chooses the host name.

use std::fmt;

use buildos_dbus_api::hostname1::Source;
use buildos_dbus_api::network1::Network;

use buildos_types::{Escaped, Hostname, InvalidHostname, MacAddress};

use crate::settings::Settings;

/// Result of [`choose`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    #[allow(missing_docs)]
    pub name: Hostname,
    #[allow(missing_docs)]
    pub source: Source,
    /// Reason for this name, on one line.
    pub reason: String,
    /// Invalid names from sources with precedence over this one.
    pub refused: Vec<Refused>,
}

/// An invalid name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    #[allow(missing_docs)]
    pub source: Source,
    /// The text, escaped by netd.
    pub text: Escaped,
    #[allow(missing_docs)]
    pub reason: InvalidHostname,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "\"{}\" from {}: {}",
            self.text,
            origin(self.source),
            self.reason
        )
    }
}

/// Chooses a name, in this order: configuration, DHCP option 81, DHCP option 12, the
/// uplink's MAC address.
///
/// Returns [`None`] if there is neither a configured name nor a lease; the host then
/// keeps its name.
///
/// netd sends the host's name to DHCP servers, and many servers return it. Therefore
/// names in `sent`, and the name made from the MAC address, do not count as assigned by
/// the server.
#[must_use]
pub fn choose(settings: &Settings, network: Option<&Network>, sent: &[String]) -> Option<Choice> {
    if let Some(name) = &settings.hostname {
        return Some(Choice {
            name: name.clone(),
            source: Source::Configuration,
            reason: "configured".to_owned(),
            refused: Vec::new(),
        });
    }
    // A lease without a default route names the host, too.
    let network = network.filter(|network| !network.address.is_empty())?;
    let mac = network.uplink_address.parse::<MacAddress>().ok();
    let made = mac.map(Hostname::from_mac);
    let mut refused = Vec::new();
    for (source, text) in [
        (Source::DhcpFqdn, &network.fqdn),
        (Source::DhcpHostname, &network.hostname),
    ] {
        if text.is_empty() {
            continue;
        }
        match Hostname::new_shortened(text) {
            Ok(name) if Some(&name) == made.as_ref() => {}
            Ok(name) if sent.iter().any(|sent| sent == name.as_str()) => {}
            Ok(name) => {
                return Some(Choice {
                    reason: format!("given by {}", origin(source)),
                    name,
                    source,
                    refused,
                });
            }
            Err(reason) => refused.push(Refused {
                source,
                text: Escaped::received(text),
                reason,
            }),
        }
    }
    let name = made?;
    let cause = match refused.last() {
        Some(refused) => format!("no usable name in the lease ({refused})"),
        None => "no name in the lease".to_owned(),
    };
    Some(Choice {
        name,
        source: Source::Mac,
        reason: format!(
            "made from the MAC address of {}: {cause}",
            network.public_bridge
        ),
        refused,
    })
}

fn origin(source: Source) -> &'static str {
    match source {
        Source::Static => "/etc/hostname",
        Source::Configuration => "the configuration",
        Source::DhcpFqdn => "DHCP option 81",
        Source::DhcpHostname => "DHCP option 12",
        Source::Mac => "the MAC address",
        Source::None => "nowhere",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            address: "192.0.2.7/24".to_owned(),
            public_bridge: "br0".to_owned(),
            uplink_address: "de:ad:be:ef:b8:da".to_owned(),
            ..Network::default()
        }
    }

    /// Returns name, source, reason and refused names.
    fn chosen(
        settings: &Settings,
        network: Option<&Network>,
    ) -> (String, Source, String, Vec<String>) {
        let choice = choose(settings, network, &[]).unwrap();
        let refused = choice.refused.iter().map(ToString::to_string).collect();
        (
            choice.name.to_string(),
            choice.source,
            choice.reason,
            refused,
        )
    }

    #[test]
    fn choice_ignores_dhcp_name_equal_to_name_made_from_mac() {
        let network = Network {
            hostname: "build-adbeefb8da".to_owned(),
            ..network()
        };
        let (name, source, reason, _) = chosen(&Settings::default(), Some(&network));
        assert_eq!((name.as_str(), source), ("build-adbeefb8da", Source::Mac));
        assert_eq!(
            reason,
            "made from the MAC address of br0: no name in the lease"
        );
    }

    #[test]
    fn choice_ignores_dhcp_name_equal_to_admin_name() {
        let network = Network {
            hostname: "mine".to_owned(),
            ..network()
        };
        let source = |sent: &[String]| {
            let choice = choose(&Settings::default(), Some(&network), sent).unwrap();
            choice.source
        };
        assert_eq!(source(&[]), Source::DhcpHostname);
        assert_eq!(source(&["mine".to_owned()]), Source::Mac);
    }

    #[test]
    fn choice_follows_order_of_sources() {
        let mut network = network();
        let mut settings = Settings::default();
        assert_eq!(
            chosen(&settings, Some(&network)),
            (
                "build-adbeefb8da".to_owned(),
                Source::Mac,
                "made from the MAC address of br0: no name in the lease".to_owned(),
                vec![]
            )
        );
        network.hostname = "b12".to_owned();
        let (name, source, reason, _) = chosen(&settings, Some(&network));
        assert_eq!((name.as_str(), source), ("b12", Source::DhcpHostname));
        assert_eq!(reason, "given by DHCP option 12");
        network.fqdn = "b81.example.com".to_owned();
        let (name, source, ..) = chosen(&settings, Some(&network));
        assert_eq!(
            (name.as_str(), source),
            ("b81.example.com", Source::DhcpFqdn)
        );
        settings.hostname = Some(Hostname::new("b0").unwrap());
        for network in [Some(&network), None] {
            let (name, source, ..) = chosen(&settings, network);
            assert_eq!((name.as_str(), source), ("b0", Source::Configuration));
        }
    }

    #[test]
    fn invalid_name_is_reported_and_next_source_chosen() {
        let network = Network {
            fqdn: "localhost".to_owned(),
            hostname: "b12".to_owned(),
            ..network()
        };
        let (name, source, _, refused) = chosen(&Settings::default(), Some(&network));
        assert_eq!((name.as_str(), source), ("b12", Source::DhcpHostname));
        assert_eq!(
            refused,
            ["\"localhost\" from DHCP option 81: it is a name of the local host"]
        );
        let network = Network {
            hostname: "x\\u{a}y".to_owned(),
            fqdn: String::new(),
            ..network
        };
        let (name, source, reason, _) = chosen(&Settings::default(), Some(&network));
        assert_eq!((name.as_str(), source), ("build-adbeefb8da", Source::Mac));
        assert_eq!(
            reason,
            "made from the MAC address of br0: no usable name in the lease (\"x\\u{a}y\" from DHCP \
             option 12: '\\\\' at position 2 is not a letter, a digit, a hyphen or a dot)"
        );
    }

    #[test]
    fn choice_needs_lease_but_no_default_route() {
        let network = Network {
            online: false,
            state: "no-default-route".to_owned(),
            ..network()
        };
        let (name, source, ..) = chosen(&Settings::default(), Some(&network));
        assert_eq!((name.as_str(), source), ("build-adbeefb8da", Source::Mac));
    }

    #[test]
    fn choice_without_lease_is_none() {
        let offline = Network {
            address: String::new(),
            hostname: "b12".to_owned(),
            ..network()
        };
        assert_eq!(choose(&Settings::default(), Some(&offline), &[]), None);
        assert_eq!(choose(&Settings::default(), None, &[]), None);
    }
}
