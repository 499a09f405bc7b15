//! Serves `org.build2.buildos.nat1` on the system bus.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use buildos_dbus_api::nat1::{NAME, PATH, ProbeState, State};
use buildos_dbus_api::request_name;
use buildos_probe::Outcome;
use buildos_service::text;
use zbus::{Connection, fdo, interface};

pub mod ports;

use crate::audit::Finding;
use crate::dnsmasq::config;
use crate::dnsmasq::machines::Machines;
use crate::dnsmasq::observe::Dnsmasq;
use crate::firewall::{client, policy};
use crate::shortage::Shortages;
use crate::status::{Observed, Status};
use crate::uplink_network::UplinkNetwork;

/// The values of the properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// State and reason.
    pub status: Status,
    /// [`None`] until netd has published a usable network.
    pub network: Option<UplinkNetwork>,
    /// The observed state, with a network.
    pub observed: Option<Observed>,
    /// Resources that are nearly used up.
    pub shortages: Shortages,
    /// Errors in the configuration.
    pub problems: Vec<String>,
}

/// Serves the object, then requests the bus name, so that clients always see a complete
/// state.
///
/// # Errors
///
/// The bus is gone, or refuses the name.
pub async fn serve(connection: &Connection, root: &Path, published: Published) -> zbus::Result<()> {
    let server = connection.object_server();
    server.at(PATH, Manager { published }).await?;
    server.at(PATH, Usage::new(root)).await?;
    request_name(connection, NAME).await
}

/// Updates the properties and emits one signal with those that changed.
///
/// # Errors
///
/// The bus is gone.
pub async fn publish(connection: &Connection, published: Published) -> zbus::Result<()> {
    buildos_dbus_api::update(connection, PATH, |manager: &mut Manager| {
        manager.published = published;
    })
    .await
}

/// The served object.
#[derive(Debug)]
pub struct Manager {
    published: Published,
}

impl Manager {
    fn network(&self) -> Option<&UplinkNetwork> {
        self.published.network.as_ref()
    }

    fn observed(&self) -> Option<&Observed> {
        self.published.observed.as_ref()
    }

    fn foreign(&self, certain: bool) -> Vec<String> {
        let all = self.observed().into_iter().flat_map(|o| &o.foreign);
        all.filter(|finding| finding.certain == certain)
            .map(Finding::to_string)
            .collect()
    }
}

#[interface(name = "org.build2.buildos.nat1.Manager")]
impl Manager {
    /// `waiting`, `active` or `degraded`.
    #[zbus(property)]
    fn state(&self) -> &str {
        self.published.status.state.as_str()
    }

    /// One line for operators: what is active, or which requirement is missing.
    #[zbus(property)]
    fn reason(&self) -> &str {
        &self.published.status.reason
    }

    /// True in state `active`.
    #[zbus(property)]
    fn ready(&self) -> bool {
        self.published.status.state == State::Active
    }

    /// True if table `inet buildos` was installed and read back.
    #[zbus(property)]
    fn table_installed(&self) -> bool {
        self.observed()
            .is_some_and(|observed| observed.table.is_ok())
    }

    /// True if dnsmasq serves the private bridge.
    #[zbus(property, name = "DHCPServing")]
    fn dhcp_serving(&self) -> bool {
        self.observed()
            .is_some_and(|observed| observed.dnsmasq == Ok(Dnsmasq::Serving))
    }

    /// Address of the host on the private bridge with its prefix, or empty.
    #[zbus(property)]
    fn private_network(&self) -> String {
        self.network()
            .map(|network| network.private_network.to_string())
            .unwrap_or_default()
    }

    /// First and last address that dnsmasq hands out, or empty.
    #[zbus(property, name = "DHCPRange")]
    fn dhcp_range(&self) -> Vec<String> {
        self.network()
            .map(|network| config::range(network.private_network))
            .map(|(first, last)| vec![first.to_string(), last.to_string()])
            .unwrap_or_default()
    }

    /// Name servers that dnsmasq forwards to.
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> Vec<String> {
        self.network()
            .map(|network| network.dns.iter().map(ToString::to_string).collect())
            .unwrap_or_default()
    }

    /// Chains of other tables that drop packets of machines, one line each.
    #[zbus(property)]
    fn foreign_drops(&self) -> Vec<String> {
        self.foreign(true)
    }

    /// Chains of other tables that can drop packets of machines, depending on
    /// conditions that natd does not evaluate. Empty while probes pass.
    #[zbus(property)]
    fn foreign_suspects(&self) -> Vec<String> {
        let passed = self.probe() == ProbeState::Passed.as_str();
        match passed {
            true => Vec::new(),
            false => self.foreign(false),
        }
    }

    /// True if frames bridged on the private bridge pass iptables.
    #[zbus(property)]
    fn bridge_netfilter(&self) -> bool {
        self.observed()
            .is_some_and(|observed| observed.bridge == Ok(true))
    }

    /// Result of the last probe of a machine's network: `off`, `pending`, `passed` or
    /// `failed`.
    #[zbus(property)]
    fn probe(&self) -> &str {
        self.observed()
            .map_or(ProbeState::Pending, |observed| observed.probe.state())
            .as_str()
    }

    /// The step at which the last probe failed: `link`, `lease`, `names`, `outside`, or
    /// empty.
    #[zbus(property)]
    fn probe_step(&self) -> &str {
        let report = self.observed().and_then(|o| o.probe.report.as_ref());
        match report.map(|report| &report.outcome) {
            Some(Outcome::Failed { step, .. }) => step.as_str(),
            Some(Outcome::Passed { .. }) | None => "",
        }
    }

    /// Report of the last probe on one line, or empty.
    #[zbus(property)]
    fn probe_result(&self) -> String {
        let report = self.observed().and_then(|o| o.probe.report.as_ref());
        report.map(ToString::to_string).unwrap_or_default()
    }

    /// End of the last probe in microseconds since 1970, or 0.
    #[zbus(property, name = "ProbeUSec")]
    fn probe_usec(&self) -> u64 {
        let report = self.observed().and_then(|o| o.probe.report.as_ref());
        report.map_or(0, |report| report.finished_us)
    }

    /// Each resource that is nearly used up (`addresses`, `connections`), or of which a
    /// machine has reached its share (`machine-connections`, `names`), with one line for
    /// operators.
    #[zbus(property)]
    fn shortages(&self) -> HashMap<&str, &str> {
        let shortages = self.published.shortages.iter();
        shortages
            .map(|(resource, line)| (resource.as_str(), line.as_str()))
            .collect()
    }

    /// Errors in the configuration, one line each.
    #[zbus(property)]
    fn configuration_problems(&self) -> Vec<String> {
        self.published.problems.clone()
    }
}

/// Properties that are read from the host at each access, without signals.
#[derive(Debug)]
pub struct Usage {
    root: PathBuf,
    machines: Machines,
}

impl Usage {
    fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            machines: Machines::new(root),
        }
    }
}

#[interface(name = "org.build2.buildos.nat1.Usage")]
impl Usage {
    /// Machines with a lease: address, MAC address, end of the lease in seconds since
    /// 1970 (0 for never).
    #[zbus(property(emits_changed_signal = "false"))]
    async fn machines(&self) -> fdo::Result<Vec<(String, String, u64)>> {
        let listed = self.machines.list().await;
        listed.map_err(|error| fdo::Error::Failed(format!("cannot read the lease file: {error}")))
    }

    /// Packets and bytes for each rule comment, since the table was installed.
    /// `new connections` counts one packet for each connection.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn counters(&self) -> fdo::Result<HashMap<String, (u64, u64)>> {
        let counts = client::counts(policy::TABLE)
            .await
            .map_err(|error| fdo::Error::Failed(text::chain(&error)))?;
        let mut counters: HashMap<String, (u64, u64)> = HashMap::new();
        for (comment, count) in counts {
            // Several rules may have the same comment.
            let sum = counters.entry(comment).or_default();
            sum.0 = sum.0.saturating_add(count.packets);
            sum.1 = sum.1.saturating_add(count.bytes);
        }
        Ok(counters)
    }

    /// Number and limit of connections tracked by the kernel, including the host's own.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn tracked_connections(&self) -> fdo::Result<(u32, u32)> {
        let number = |name: &str| {
            let path = self.root.join("proc/sys/net/netfilter").join(name);
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let number = text.trim().parse();
            number.map_err(|_| fdo::Error::Failed(format!("no number in {}", path.display())))
        };
        Ok((number("nf_conntrack_count")?, number("nf_conntrack_max")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::object_server::Interface as _;

    #[test]
    fn served_interface_equals_xml_of_record() {
        let manager = Manager {
            published: Published {
                status: Status::waiting(""),
                network: None,
                observed: None,
                shortages: vec![],
                problems: vec![],
            },
        };
        let mut xml = String::from("<node>\n");
        manager.introspect_to_writer(&mut xml, 2);
        Usage::new(Path::new("")).introspect_to_writer(&mut xml, 2);
        let (shared, _requests) = ports::channel(&[]);
        ports::Ports::new(&shared).introspect_to_writer(&mut xml, 2);
        xml.push_str("</node>\n");
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/dbus/org.build2.buildos.nat1.xml"
        );
        if std::env::var_os("BUILDOS_BLESS").is_some() {
            std::fs::write(path, &xml).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), xml);
    }
}
