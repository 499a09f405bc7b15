//! Makes and writes the request to the probe: the name to resolve and the targets.

use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use buildos_probe::{Question, REQUEST, Request, Target};
use buildos_service::{file, text};

use crate::firewall::policy::{SPECIAL_RANGES, private_ranges};
use crate::settings::Settings;
use crate::uplink_network::UplinkNetwork;

/// Maximum number of name servers among the targets.
const SERVERS: usize = 3;

/// Returns the desired request with the number 0, or [`None`] if probes are off.
#[must_use]
pub fn desired(network: &UplinkNetwork, settings: &Settings) -> Option<Request> {
    settings.probe_interval.get()?;
    Some(Request {
        id: 0,
        bridge: network.private_bridge.clone(),
        host: network.private_network.address(),
        question: match &settings.probe_name {
            Some(name) => Some(Question::Address(name.clone())),
            None => (!network.dns.is_empty()).then_some(Question::RootServers),
        },
        targets: match settings.probe_targets.is_empty() {
            false => settings.probe_targets.clone(),
            true => targets(network, settings),
        },
    })
}

/// Returns the uplink's name servers and gateway, as far as machines may reach them.
fn targets(network: &UplinkNetwork, settings: &Settings) -> Vec<Target> {
    let open = |address| {
        let within = |nets: &[ipnet::Ipv4Net]| nets.iter().any(|net| net.contains(&address));
        let private_open = !settings.block_private || within(&settings.allow_private);
        !within(&SPECIAL_RANGES) && (private_open || !within(&private_ranges(network)))
    };
    let servers = network.dns.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(Target::Dns(*address)),
        IpAddr::V6(_) => None,
    });
    let gateway = network.uplink.iter().filter_map(|uplink| uplink.gateway);
    servers
        .take(SERVERS)
        .chain(gateway.map(Target::Echo))
        .filter(|target| open(target.address()))
        .collect()
}

/// Returns true if two requests differ at most in their numbers.
#[must_use]
pub fn same(a: &Request, b: &Request) -> bool {
    let without_id = |request: &Request| Request {
        id: 0,
        ..request.clone()
    };
    without_id(a) == without_id(b)
}

/// Returns a number that no earlier request has: microseconds since 1970.
#[must_use]
pub fn new_id() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    })
}

/// Writes the request, which makes systemd start the probe (buildos-probe.path).
pub(crate) fn write(root: &Path, request: &Request) {
    let written = serde_json::to_vec(request)
        .map_err(|error| text::chain(&error))
        .and_then(|json| {
            file::replace(&root.join(REQUEST), &json, 0o644).map_err(|error| text::chain(&error))
        });
    if let Err(error) = written {
        tracing::warn!("cannot request a probe: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink_network::Uplink;
    use std::net::Ipv4Addr;

    fn network() -> UplinkNetwork {
        let dns = ["9.0.0.53", "2001:db8::1", "10.0.0.53"];
        UplinkNetwork {
            dns: dns.iter().map(|text| text.parse().unwrap()).collect(),
            uplink: Ok(Uplink {
                gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            }),
            ..UplinkNetwork::example()
        }
    }

    fn targets(network: &UplinkNetwork, settings: &Settings) -> String {
        let request = desired(network, settings).unwrap();
        let targets: Vec<_> = request.targets.iter().map(ToString::to_string).collect();
        targets.join(" ")
    }

    #[test]
    fn default_targets_are_those_that_machines_may_reach() {
        let mut settings = Settings::default();
        let all = "dns:9.0.0.53 dns:10.0.0.53 echo:10.0.0.1";
        assert_eq!(targets(&network(), &settings), all);
        settings.block_private = true;
        assert_eq!(targets(&network(), &settings), "dns:9.0.0.53");
        settings.allow_private = vec!["10.0.0.53/32".parse().unwrap()];
        assert_eq!(targets(&network(), &settings), "dns:9.0.0.53 dns:10.0.0.53");
        settings.probe_targets = vec!["tcp:198.51.100.1:443".parse().unwrap()];
        assert_eq!(targets(&network(), &settings), "tcp:198.51.100.1:443");
        settings.probe_targets.clear();
        let uplink = UplinkNetwork {
            public_network: Some("9.0.0.0/8".parse().unwrap()),
            ..network()
        };
        assert_eq!(targets(&uplink, &settings), "dns:10.0.0.53");
        settings.probe_interval = 0.try_into().unwrap();
        assert_eq!(desired(&network(), &settings), None);
    }

    #[test]
    fn network_without_name_servers_has_no_question() {
        let mut network = network();
        let mut settings = Settings::default();
        let question = |network: &UplinkNetwork, settings: &Settings| {
            desired(network, settings).unwrap().question
        };
        assert_eq!(question(&network, &settings), Some(Question::RootServers));
        network.dns.clear();
        assert_eq!(question(&network, &settings), None);
        settings.probe_name = Some("a.example".to_owned().try_into().unwrap());
        assert!(question(&network, &settings).is_some());
    }
}
