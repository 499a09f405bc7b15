//! Which name it shall be.

use std::fmt;

use buildos_dbus_api::hostname1::Source;
use buildos_dbus_api::network1::Network;

use crate::config::Settings;
use buildos_types::{Hostname, InvalidHostname, MacAddress};

/// A name, where it came from, and what was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The name.
    pub name: Hostname,
    /// Where it came from.
    pub source: Source,
    /// Why this one, on one line.
    pub reason: String,
    /// Names that would have come first.
    pub refused: Vec<Refused>,
}

/// A name that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Where it came from.
    pub source: Source,
    /// The text, as netd published it.
    pub text: String,
    /// What is wrong with it.
    pub why: InvalidHostname,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text is escaped already; what is not printable must not become so again.
        write!(
            f,
            "\"{}\" from {}: {}",
            self.text,
            origin(self.source),
            self.why
        )
    }
}

/// The name that settings and network ask for: configuration, then DHCP
/// option 81, then option 12, then the uplink's MAC address.
///
/// [`None`] while there is no lease and nothing is configured: the name that
/// the host has stays, whether it was chosen by us or not.
///
/// netd tells servers the name of the host, and many send it back. So a name
/// that was `told` (in force without being DHCP's) is not one that was given,
/// and neither is the one made from the MAC address.
#[must_use]
pub fn choose(settings: &Settings, network: Option<&Network>, told: &[String]) -> Option<Choice> {
    if let Some(name) = &settings.hostname {
        return Some(Choice {
            name: name.clone(),
            source: Source::Configuration,
            reason: "configured".to_owned(),
            refused: Vec::new(),
        });
    }
    let network = network.filter(|network| network.online)?;
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
            Ok(name) if told.iter().any(|told| told == name.as_str()) => {}
            Ok(name) => {
                return Some(Choice {
                    reason: format!("given by {}", origin(source)),
                    name,
                    source,
                    refused,
                });
            }
            Err(why) => refused.push(Refused {
                source,
                text: text.clone(),
                why,
            }),
        }
    }
    let name = made?;
    let why = match refused.last() {
        Some(refused) => format!("no usable name in the lease ({refused})"),
        None => "no name in the lease".to_owned(),
    };
    Some(Choice {
        name,
        source: Source::Mac,
        reason: format!("made from the MAC address of {}: {why}", network.uplink),
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
            online: true,
            uplink: "eth0".to_owned(),
            uplink_address: "de:ad:be:ef:b8:da".to_owned(),
            ..Network::default()
        }
    }

    /// Name, source, reason, what was refused.
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
    fn a_server_that_sends_the_made_name_back_has_not_given_it() {
        let network = Network {
            hostname: "build-adbeefb8da".to_owned(),
            ..network()
        };
        let (name, source, reason, _) = chosen(&Settings::default(), Some(&network));
        assert_eq!((name.as_str(), source), ("build-adbeefb8da", Source::Mac));
        assert_eq!(
            reason,
            "made from the MAC address of eth0: no name in the lease"
        );
    }

    #[test]
    fn nor_has_one_that_sends_an_administrators_name_back() {
        let network = Network {
            hostname: "mine".to_owned(),
            ..network()
        };
        let source = |told: &[String]| {
            let choice = choose(&Settings::default(), Some(&network), told).unwrap();
            choice.source
        };
        assert_eq!(source(&[]), Source::DhcpHostname);
        assert_eq!(source(&["mine".to_owned()]), Source::Mac);
    }

    #[test]
    fn the_order_of_sources() {
        let mut network = network();
        let mut settings = Settings::default();
        assert_eq!(
            chosen(&settings, Some(&network)),
            (
                "build-adbeefb8da".to_owned(),
                Source::Mac,
                "made from the MAC address of eth0: no name in the lease".to_owned(),
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
    fn what_cannot_be_taken_is_told_and_the_next_one_taken() {
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
            "made from the MAC address of eth0: no usable name in the lease (\"x\\u{a}y\" from DHCP \
             option 12: '\\\\' at position 2 is not a letter, a digit, a hyphen or a dot)"
        );
    }

    #[test]
    fn without_a_lease_there_is_no_choice() {
        let offline = Network {
            online: false,
            hostname: "b12".to_owned(),
            ..network()
        };
        assert_eq!(choose(&Settings::default(), Some(&offline), &[]), None);
        assert_eq!(choose(&Settings::default(), None, &[]), None);
    }
}
