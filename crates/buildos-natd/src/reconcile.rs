//! Observes the host, applies the difference from the desired state and judges the result.
//!
//! Order: the tables, forwarding, limits, bridge settings, dnsmasq's files, the probe, the
//! learned sets. In this order packets are forwarded only after the tables are installed,
//! and the probe tests the complete setup.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use buildos_dbus_api::nat1::State;
use buildos_dbus_api::network1::Network;
use buildos_dbus_api::system;
use buildos_probe::{REPORT, REQUEST};
use buildos_service::{file, text};
use buildos_types::InterfaceName;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use zbus::Connection;

use crate::audit::{self, Finding};
use crate::bridge::{self, Links};
use crate::dbus::Published;
use crate::desired::Desired;
use crate::dnsmasq::observe::{self, Dnsmasq};
use crate::dnsmasq::paths::PID;
use crate::firewall::bytecode::ForeignTable;
use crate::firewall::client;
use crate::firewall::error::FirewallError;
use crate::firewall::monitor::{Commit, RulesetMonitor};
use crate::firewall::policy::TABLE;
use crate::limits;
use crate::messages;
use crate::open_port::OpenPort;
use crate::open_ports::keeper::{Keeper, Pending};
use crate::open_ports::request::Request;
use crate::posture::{Posture, TableError, posture};
use crate::probe_request;
use crate::probe_scheduler::{self, Health, ProbeScheduler};
use crate::settings::Settings;
use crate::shortage::Shortages;
use crate::status::{Forwarding, Observed, Status};
use crate::sysctl::{self, SysctlError, Sysctls};
use crate::tables::{Tables, is_closed_table};
use crate::uplink_network::{UplinkNetwork, UplinkNetworkError};

/// Time between two checks while NAT is active: a changed sysctl causes no event.
const ACTIVE_INTERVAL: Duration = Duration::from_secs(60);
/// The same while a part is missing.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Delay from a change of the lease file to the next check.
const LEASES_DELAY: Duration = Duration::from_secs(1);
/// Limit of the PID file, bytes.
const PID_LIMIT: usize = 64;
/// Limit of the report of a probe, bytes.
const REPORT_LIMIT: usize = 64 << 10;

/// Keeps the host in the desired state.
pub struct Reconciler {
    root: PathBuf,
    connection: Connection,
    sysctls: Sysctls,
    settings: Settings,
    /// The network that netd published, or the reason why it is not usable.
    network: Result<UplinkNetwork, String>,
    probes: ProbeScheduler,
    tables: Tables,
    open_ports: Keeper,
    /// Last content of dnsmasq's PID file.
    dnsmasq_pid: Option<Vec<u8>>,
    /// Time of the next check of an address without a lease.
    bindings_due: Option<Instant>,
    /// Addresses of gone machines, until [`Reconciler::take_departed`].
    departed: Vec<Ipv4Addr>,
    /// Rules of other tables that affect machines, as last observed.
    foreign: Vec<Finding>,
    shortages: Shortages,
    /// False if br1 passes frames, see [`bridge::set_closed`].
    bridge_closed: bool,
    observed: Option<Observed>,
    status: Status,
    next_check: Instant,
}

impl Reconciler {
    /// Creates a reconciler for the host below `root`. Resumes the result of an earlier
    /// natd's probe.
    #[must_use]
    pub fn new(root: &Path, connection: &Connection, settings: Settings) -> Self {
        let now = Instant::now();
        let (request, report) = (
            read_json(&root.join(REQUEST)),
            read_json(&root.join(REPORT)),
        );
        Self {
            sysctls: Sysctls::below(root),
            settings,
            network: Err(String::new()),
            probes: ProbeScheduler::resume(request, report, now),
            tables: Tables::new(root),
            open_ports: Keeper::new(root),
            dnsmasq_pid: None,
            bindings_due: None,
            departed: Vec::new(),
            foreign: Vec::new(),
            shortages: Shortages::new(),
            // An earlier natd can have closed it.
            bridge_closed: true,
            observed: None,
            status: Status::waiting(""),
            next_check: now,
            root: root.to_owned(),
            connection: connection.clone(),
        }
    }

    /// Replaces the settings.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Accepts netd's properties; [`None`] while netd is not on the bus. Returns true if
    /// the network changed. The last network stays desired while netd is not on the bus.
    pub fn set_network(&mut self, network: Option<Network>) -> bool {
        let network = match network {
            Some(network) => {
                UplinkNetwork::try_from(&network).map_err(|error| waiting_for_netd(&error))
            }
            None if self.network.is_ok() => return false,
            None => Err("waiting for buildos-netd, which is not running".to_owned()),
        };
        let changed = network != self.network;
        self.network = network;
        changed
    }

    /// Processes a change of the lease file. The next reconciliation follows soon, at
    /// most once a second: dnsmasq can change the file thousands of times.
    pub fn leases_changed(&mut self) {
        self.next_check = self.next_check.min(Instant::now() + LEASES_DELAY);
    }

    /// Processes a notification of a changed ruleset.
    pub fn ruleset_changed(&mut self, commit: Commit) {
        self.tables.ruleset_changed(commit);
        // The change might affect machines.
        self.probes.expedite(Instant::now());
    }

    /// Replaces the shortages, which are published with the status.
    pub fn set_shortages(&mut self, shortages: Shortages) {
        self.shortages = shortages;
    }

    /// Returns the addresses of machines that are gone since the last call.
    pub fn take_departed(&mut self) -> Vec<Ipv4Addr> {
        std::mem::take(&mut self.departed)
    }

    /// Takes a request for an open port; [`Self::finish`] follows after a reconciliation.
    #[must_use]
    pub fn accept(&mut self, request: Request) -> Option<Pending> {
        let network = self.network.as_ref().ok();
        let machines = self.tables.machines();
        self.open_ports.accept(request, network, machines)
    }

    /// Answers a request for an open port.
    pub async fn finish(&mut self, pending: Pending) {
        let table = match &self.observed {
            Some(observed) => observed.table.clone(),
            None => Err(self.status.reason.clone()),
        };
        self.open_ports.finish(pending, table);
        self.open_ports.cut().await;
    }

    /// Returns the open ports of machines.
    #[must_use]
    pub fn open_ports(&self) -> &[OpenPort] {
        self.open_ports.list()
    }

    /// Returns the last network that netd published, if it is usable.
    #[must_use]
    pub fn network(&self) -> Option<&UplinkNetwork> {
        self.network.as_ref().ok()
    }

    /// Returns the reason of the state and the shortages in one line, for `STATUS=`.
    #[must_use]
    pub fn status_line(&self) -> String {
        let shortages = self.shortages.iter();
        let lines = shortages.map(|(resource, line)| format!("; short of {resource}: {line}"));
        self.status.reason.clone() + &lines.collect::<String>()
    }

    /// Returns the time of the next reconciliation if no event comes before.
    #[must_use]
    pub fn next_check(&self) -> Instant {
        self.next_check
    }

    /// Returns the values of the D-Bus properties.
    #[must_use]
    pub fn published(&self, problems: Vec<String>) -> Published {
        Published {
            status: self.status.clone(),
            network: self.network.clone().ok(),
            observed: self.observed.clone(),
            shortages: self.shortages.clone(),
            problems,
        }
    }

    /// Brings the host into the desired state, as far as possible, and logs a changed
    /// status.
    pub async fn reconcile(&mut self, links: &Links, ruleset: &RulesetMonitor) {
        let status = match self.network.clone() {
            Ok(network) => {
                self.open_ports.expire(&network, &[]);
                let (settings, writer) = (&self.settings, self.tables.last_writer().is_some());
                let open = self.open_ports.list();
                let (desired, table) = self.tables.apply(network, settings, open, ruleset).await;
                self.open_ports.cut().await;
                if !writer && self.tables.last_writer().is_some() {
                    self.probes.expedite(Instant::now());
                }
                let observed = self.apply(&desired, table, links).await;
                let status = Status::judge(&desired.network, &observed);
                self.observed = Some(observed);
                status
            }
            Err(reason) => {
                self.observed = None;
                self.probes.hold();
                Status::waiting(reason)
            }
        };
        self.tables.forget_writer();
        if status != self.status {
            messages::status(&status);
            self.status = status;
        }
        let settled = self.status.state == State::Active || self.network.is_err();
        let interval = if settled {
            ACTIVE_INTERVAL
        } else {
            RETRY_INTERVAL
        };
        let next = Instant::now() + interval;
        let due = [
            self.probes.due(),
            self.bindings_due.take(),
            self.open_ports.due(),
        ];
        self.next_check = due.into_iter().flatten().fold(next, Instant::min);
    }

    async fn apply(
        &mut self,
        desired: &Desired,
        table: Result<(), TableError>,
        links: &Links,
    ) -> Observed {
        let posture = posture(&table);
        let mut forwarding = match posture {
            Some(Posture::Open) => self.open(&desired.network),
            Some(Posture::Closed) => self.close(&desired.network),
            None => Forwarding::Held,
        };
        let limits = self.apply_limits(&desired.network).await;
        let bridge = match client::foreign_tables(TABLE).await {
            Ok(mut foreign_tables) => {
                let closed = foreign_tables.iter().position(is_closed_table);
                let closed = closed.map(|at| foreign_tables.remove(at));
                let closed =
                    Tables::apply_closed(&desired.network, &self.settings, posture, closed).await;
                let bridge = &desired.network.private_bridge;
                if let Some(cut_off) = self.cut_off(bridge, posture, closed.err()).await {
                    forwarding = cut_off;
                }
                self.audit(&foreign_tables, &desired.network);
                self.apply_bridge(desired, &foreign_tables, links).await
            }
            Err(error) => {
                // The last findings stay until the next attempt.
                tracing::warn!("cannot read other tables: {}", text::chain(&error));
                Ok(false)
            }
        };
        let installed = table.is_ok();
        let mut observed = Observed {
            table: table.map_err(|error| text::chain(&error)),
            forwarding,
            bridge,
            limits,
            dnsmasq: self.apply_dnsmasq(desired).await,
            foreign: self.foreign.clone(),
            probe: Health::default(),
        };
        let possible = observed.can_be_probed(&desired.network);
        observed.probe = self.probe(desired, possible).await;
        if installed {
            let network = &desired.network;
            match self.tables.correct_bindings(network, &self.settings).await {
                Ok(corrected) => {
                    self.bindings_due = corrected.due;
                    if self.open_ports.expire(network, &corrected.departed) {
                        // Their rules are still installed.
                        self.bindings_due = Some(Instant::now());
                    }
                    self.departed.extend(corrected.departed);
                }
                Err(error) => tracing::warn!(
                    "cannot follow the leases of machines: {}",
                    text::chain(&error)
                ),
            }
        }
        observed
    }

    /// Closes the private bridge if the kernel refused the closed table with this error, and
    /// opens it otherwise.
    async fn cut_off(
        &mut self,
        bridge: &InterfaceName,
        posture: Option<Posture>,
        refusal: Option<FirewallError>,
    ) -> Option<Forwarding> {
        let Some(refusal) = refusal else {
            if posture.is_some() && self.bridge_closed {
                match bridge::set_closed(bridge, false).await {
                    Ok(change) => {
                        change
                            .iter()
                            .for_each(|change| messages::bridge_changed(change));
                        self.bridge_closed = false;
                    }
                    Err(error) => return Some(Forwarding::Failed(text::chain(&error))),
                }
            }
            return None;
        };
        let refusal = text::chain(&refusal);
        self.bridge_closed = true;
        Some(match bridge::set_closed(bridge, true).await {
            Ok(change) => {
                change
                    .iter()
                    .for_each(|change| messages::bridge_changed(change));
                Forwarding::CutOff(refusal)
            }
            Err(error) => Forwarding::Exposed(format!("{refusal}; {}", text::chain(&error))),
        })
    }

    fn open(&self, network: &UplinkNetwork) -> Forwarding {
        for bridge in [&network.private_bridge, &network.public_bridge] {
            match self.enable_forwarding(bridge) {
                Ok(true) => {}
                Ok(false) => return Forwarding::NoBridge(bridge.to_string()),
                Err(error) => return Forwarding::Failed(text::chain(&error)),
            }
        }
        Forwarding::On
    }

    fn close(&self, network: &UplinkNetwork) -> Forwarding {
        let mut changed = false;
        for bridge in [&network.private_bridge, &network.public_bridge] {
            match self.sysctls.set(&sysctl::forwarding(bridge), false) {
                Ok(done) => changed |= done == Some(true),
                Err(error) => return Forwarding::Failed(text::chain(&error)),
            }
        }
        if changed {
            messages::closed(network);
        }
        Forwarding::Closed
    }

    /// Applies the limits of the kernel's shared tables.
    async fn apply_limits(&self, network: &UplinkNetwork) -> Result<(), String> {
        for (name, bound) in limits::sysctls(network.private_network) {
            let changed = self.sysctls.bound(name, bound);
            if let Some(former) = changed.map_err(|error| text::chain(&error))? {
                messages::limit_changed(&format!("changed net/{name}, which was {former}"));
            }
        }
        for bridge in [&network.private_bridge, &network.public_bridge] {
            let changed = bridge::limit_learning(bridge).await;
            if let Some(change) = changed.map_err(|error| text::chain(&error))? {
                messages::limit_changed(&change);
            }
        }
        Ok(())
    }

    /// Returns true if the bridge forwards, and false if it does not exist.
    fn enable_forwarding(&self, bridge: &InterfaceName) -> Result<bool, SysctlError> {
        let name = sysctl::forwarding(bridge);
        match self.sysctls.set(&name, true)? {
            None => return Ok(false),
            Some(false) => return Ok(true),
            Some(true) => {}
        }
        messages::forwarding(bridge);
        Ok(self.sysctls.get(&name)? == Some(true))
    }

    /// Switches forwarding off. The table stays: without it machines would reach more of
    /// the host.
    pub fn stop_forwarding(&self) {
        let Ok(network) = &self.network else {
            tracing::warn!("stopped without knowing the bridges: forwarding is unchanged");
            return;
        };
        for bridge in [&network.private_bridge, &network.public_bridge] {
            if let Err(error) = self.sysctls.set(&sysctl::forwarding(bridge), false) {
                tracing::error!("{}", text::chain(&error));
            }
        }
        messages::stopped(network);
    }

    /// Audits the other tables and logs findings that are new and certain.
    fn audit(&mut self, foreign_tables: &[ForeignTable], network: &UplinkNetwork) {
        let found = audit::findings(foreign_tables, network);
        let certain = |findings: &[Finding]| -> Vec<Finding> {
            findings.iter().filter(|f| f.certain).cloned().collect()
        };
        let (before, now) = (certain(&self.foreign), certain(&found));
        for finding in now.iter().filter(|finding| !before.contains(finding)) {
            messages::foreign_drop(finding, self.tables.last_writer());
        }
        if now.is_empty() && !before.is_empty() {
            messages::foreign_drop_gone();
        }
        self.foreign = found;
    }

    /// Applies the settings of br1 and its ports. Returns true if bridged frames pass
    /// iptables.
    async fn apply_bridge(
        &self,
        desired: &Desired,
        foreign_tables: &[ForeignTable],
        links: &Links,
    ) -> Result<bool, String> {
        for name in bridge::SYSCTLS_OF_ALL_BRIDGES {
            let changed = self.sysctls.set(name, false);
            if changed.map_err(|error| text::chain(&error))? == Some(true) {
                messages::bridge_changed(&format!(
                    "switched off net/{name}, which was on for all bridges"
                ));
            }
        }
        let passes = bridge::passes_iptables(desired.bridge_netfilter, foreign_tables);
        let bridge = &desired.network.private_bridge;
        let changes = links.apply(bridge, passes).await;
        for change in changes.map_err(|error| text::chain(&error))? {
            messages::bridge_changed(&change);
        }
        Ok(passes)
    }

    async fn apply_dnsmasq(&mut self, desired: &Desired) -> Result<Dnsmasq, String> {
        observe::write(&self.root, &desired.dnsmasq, &desired.resolv)
            .map_err(|error| text::chain(&error))?;
        let dnsmasq = observe::observe(&self.root, &self.connection, &desired.dnsmasq).await;
        let last = self.observed.as_ref().map(|last| &last.dnsmasq);
        let starts = dnsmasq == Dnsmasq::Starting && last != Some(&Ok(Dnsmasq::Starting));
        // dnsmasq can start again between two observations.
        let pid = file::read_bounded(&self.root.join(PID), PID_LIMIT).ok();
        let restarted = pid.is_some() && self.dnsmasq_pid.is_some() && pid != self.dnsmasq_pid;
        self.dnsmasq_pid = pid.or(self.dnsmasq_pid.take());
        if starts || restarted {
            // The last result is that of the previous dnsmasq.
            self.probes.hold();
        }
        Ok(dnsmasq)
    }

    /// Requests a probe when one is due, and returns the last result.
    async fn probe(&mut self, desired: &Desired, possible: bool) -> Health {
        match (&desired.probe, self.settings.probe_interval.get()) {
            (Some(probe), Some(interval)) if possible => {
                let report = read_json(&self.root.join(REPORT));
                let now = Instant::now();
                if self.probes.update(now, probe, interval, report) {
                    let unit = system::unit_state(&self.connection, probe_scheduler::UNIT).await;
                    let id = probe_request::new_id();
                    if let Some(request) = self.probes.request(now, interval, unit.as_ref(), id) {
                        probe_request::write(&self.root, &request);
                    }
                }
            }
            (Some(_), Some(_)) => self.probes.hold(),
            (None, _) | (_, None) => self.probes.switch_off(),
        }
        self.probes.health()
    }
}

/// Returns the reason for waiting. The error quotes what netd published, with escapes.
fn waiting_for_netd(error: &UplinkNetworkError) -> String {
    let error = text::Escaped::received(&error.to_string());
    format!("waiting for buildos-netd: {error}")
}

/// Returns the content of a JSON file that another user writes, or [`None`] if it is missing
/// or invalid.
fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = file::read_bounded(path, REPORT_LIMIT).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_property_of_netd_is_escaped_once() {
        let error = UplinkNetworkError::Unusable {
            property: "public bridge",
            value: "br0\n".to_owned(),
        };
        let reason = waiting_for_netd(&error);
        assert!(reason.ends_with(r#": "br0\n""#), "{reason}");
    }
}
