//! Defines the request: the steps to run and their targets.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use buildos_types::{DomainName, InterfaceName};
use serde::{Deserialize, Serialize};

/// Path of the [`Request`] below the root.
pub const REQUEST: &str = "run/buildos/natd/probe.json";

/// A request of natd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Copied to the report.
    pub id: u64,
    /// Bridge of the machines.
    pub bridge: InterfaceName,
    /// Address of the host on the bridge: DHCP server, name server and gateway.
    pub host: Ipv4Addr,
    /// Question for the name server; [`None`] skips the step.
    pub question: Option<Question>,
    /// Targets, at least one of which must answer; empty skips the step.
    pub targets: Vec<Target>,
}

/// A question for the name server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Requires an IPv4 address of this name.
    Address(DomainName),
    /// Requires any answer to a question for the name servers of the root. Every server
    /// answers or refuses it, and dnsmasq does not cache the answer.
    RootServers,
}

/// A host beyond the NAT that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// `echo:192.0.2.1`: answers an ICMP echo request.
    Echo(Ipv4Addr),
    /// `tcp:192.0.2.1:443`: accepts a connection.
    Tcp(SocketAddrV4),
    /// `dns:192.0.2.1`: a name server that answers by UDP.
    Dns(Ipv4Addr),
}

/// The text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a target: echo:ADDRESS, dns:ADDRESS or tcp:ADDRESS:PORT with an IPv4 address"
)]
pub struct NotATarget(String);

impl Target {
    /// Returns the target's address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Echo(address) | Self::Dns(address) => address,
            Self::Tcp(address) => *address.ip(),
        }
    }
}

impl FromStr for Target {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let target = text.split_once(':').and_then(|(kind, rest)| match kind {
            "echo" => rest.parse().ok().map(Self::Echo),
            "dns" => rest.parse().ok().map(Self::Dns),
            "tcp" => rest.parse().ok().map(Self::Tcp),
            _ => None,
        });
        target.ok_or_else(|| NotATarget(text.to_owned()))
    }
}

impl TryFrom<String> for Target {
    type Error = NotATarget;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo(address) => write!(f, "echo:{address}"),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Dns(address) => write!(f, "dns:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_parses_and_displays_or_is_refused() {
        for text in ["echo:192.0.2.1", "dns:192.0.2.1", "tcp:192.0.2.1:443"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "192.0.2.1",
            "echo:",
            "tcp:192.0.2.1",
            "echo:192.0.2.1:1",
            "udp:192.0.2.1",
            "echo:::1",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn request_deserializes_as_it_was_serialized() {
        let request = Request {
            id: 7,
            bridge: InterfaceName::new("br1").unwrap(),
            host: Ipv4Addr::new(172, 23, 0, 1),
            question: Some(Question::Address(
                "a.example".to_owned().try_into().unwrap(),
            )),
            targets: vec!["tcp:192.0.2.1:443".parse().unwrap()],
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }
}
