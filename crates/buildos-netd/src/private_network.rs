//! Chooses the private network of br1.

use buildos_dhcp::Lease;
use buildos_types::PrivateNetwork;
use ipnet::Ipv4Net;

/// Returns the networks of a lease. The private network must not overlap with them.
#[must_use]
pub fn occupied(lease: &Lease) -> Vec<Ipv4Net> {
    let routes = lease.routes.iter().filter(|route| !route.is_default());
    routes
        .map(|route| route.destination)
        .chain([lease.network()])
        .collect()
}

/// Returns the first of `preferred` that does not overlap with `occupied`.
///
/// `current` is kept while it is free, so that machines on br1 keep their network when a
/// later lease would allow a preferred network. If all overlap, returns the first, which
/// is the configured network.
#[must_use]
pub fn choose(
    preferred: &[PrivateNetwork],
    current: Option<PrivateNetwork>,
    occupied: &[Ipv4Net],
) -> Option<PrivateNetwork> {
    let free = |network: &PrivateNetwork| !occupied.iter().any(|net| network.overlaps(net));
    current
        .filter(|network| preferred.contains(network) && free(network))
        .or_else(|| preferred.iter().copied().find(free))
        .or_else(|| preferred.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> PrivateNetwork {
        text.parse().unwrap()
    }

    fn defaults() -> Vec<PrivateNetwork> {
        PrivateNetwork::DEFAULTS
            .iter()
            .map(|text| network(text))
            .collect()
    }

    #[test]
    fn private_network_overlapping_uplink_is_replaced() {
        assert_eq!(
            choose(&defaults(), None, &[]),
            Some(network("172.23.0.1/16"))
        );
        let occupied = ["172.16.0.0/12".parse().unwrap()];
        assert_eq!(
            choose(&defaults(), None, &occupied),
            Some(network("10.213.0.1/16"))
        );
        let occupied = ["172.23.4.0/24".parse().unwrap()];
        assert_eq!(
            choose(&defaults(), None, &occupied),
            Some(network("172.29.0.1/16"))
        );
    }

    #[test]
    fn private_network_current_and_free_is_kept() {
        let current = Some(network("10.213.0.1/16"));
        assert_eq!(choose(&defaults(), current, &[]), current);
        let occupied = ["10.0.0.0/8".parse().unwrap()];
        assert_eq!(
            choose(&defaults(), current, &occupied),
            Some(network("172.23.0.1/16"))
        );
    }

    #[test]
    fn private_network_without_free_choice_is_first_configured() {
        let only = [network("172.23.0.1/16")];
        assert_eq!(
            choose(&only, None, &["172.23.0.0/16".parse().unwrap()]),
            Some(only[0])
        );
    }
}
