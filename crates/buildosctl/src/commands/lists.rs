//! Links, leases and agents, one a line.

use crate::snapshot::model::{Agent, Host};
use crate::term::{columns, relative};

/// Every link that netd looks at.
pub(crate) fn links(host: &Host) -> String {
    let mut rows = vec![row(&["LINK", "ADDRESS", "CARRIER", "ROLE", "DHCP", "WHY"])];
    for link in &host.links {
        rows.push(row(&[
            &link.name,
            &link.hardware_address,
            if link.carrier { "yes" } else { "no" },
            &link.role,
            &link.dhcp_state,
            &link.reason,
        ]));
    }
    columns(&rows)
}

/// The host's own lease, and those of the machines on br1.
pub(crate) fn leases(host: &Host) -> String {
    let now = host.taken_usec;
    let end = |usec: u64| match usec {
        0 => "never".to_owned(),
        usec => relative(now, usec),
    };
    let mut rows = vec![row(&["ADDRESS", "HARDWARE ADDRESS", "ENDS", "WHO"])];
    if let Some(network) = host.network.as_ref().filter(|n| !n.address.is_empty()) {
        let who = format!("this host, from {}", network.lease.server);
        let ends = end(network.lease.expires_usec);
        rows.push(row(&[
            &network.address,
            &network.uplink_address,
            &ends,
            &who,
        ]));
    }
    for (address, hardware, seconds) in &host.usage.machines {
        let ends = end(seconds.saturating_mul(1_000_000));
        rows.push(row(&[address, hardware, &ends, "machine on br1"]));
    }
    columns(&rows)
}

/// The agents, with what they wait for or run without below.
pub(crate) fn agents(agents: &[Agent]) -> String {
    if agents.is_empty() {
        return "no agents configured\n".to_owned();
    }
    let mut rows = Vec::new();
    for agent in agents {
        let instance = &agent.instance;
        rows.push(row(&[&agent.id(), &instance.state, &instance.reason]));
        // The reason of one that waits begins with the first.
        let waits = instance.state == "waiting";
        let verb = if waits { "waits" } else { "lacks" };
        for (_, what) in instance.needs.iter().skip(usize::from(waits)) {
            rows.push(row(&["", "", &format!("{verb}: {what}")]));
        }
    }
    columns(&rows)
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::model::samples::{agent, ready};

    #[test]
    fn links_in_columns() {
        assert_eq!(
            links(&ready()),
            "\
LINK  ADDRESS            CARRIER  ROLE       DHCP  WHY
eth0  de:ad:be:ef:b8:da  yes      uplink           carrier; DHCP BOUND
eth1  de:ad:be:ef:b8:da  no       candidate        no carrier
"
        );
    }

    #[test]
    fn leases_in_columns() {
        assert_eq!(
            leases(&ready()),
            "\
ADDRESS       HARDWARE ADDRESS   ENDS           WHO
192.0.2.7/24  de:ad:be:ef:b8:da  in 59 min 0 s  this host, from 192.0.2.1
172.23.0.9    02:00:00:00:00:09  in 1 h 0 min   machine on br1
"
        );
    }

    #[test]
    fn agents_and_what_they_wait_for() {
        let mut first = agent("bbot@a", "running", &[("private-network", "NAT: gone")]);
        first.instance.reason = "runs as process 7".into();
        let needs = [
            ("network", "no carrier"),
            ("private-network", "NAT: no br1"),
        ];
        let second = agent("bbot@second", "waiting", &needs);
        assert_eq!(
            agents(&[first, second]),
            "bbot@a       running  runs as process 7\n\
             \x20                     lacks: NAT: gone\n\
             bbot@second  waiting  waits: no carrier\n\
             \x20                     waits: NAT: no br1\n"
        );
        assert_eq!(agents(&[]), "no agents configured\n");
    }
}
