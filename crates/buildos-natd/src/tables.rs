//! Installs natd's tables, reads them back, and corrects their learned sets.
//!
//! | table | is installed |
//! |---|---|
//! | `inet buildos`, `bridge buildos`, `arp buildos` | while the kernel has a different one, in one transaction |
//! | `inet buildos_closed` | while one of the others is not, so that the host's ports stay closed |
//!
//! A new `bridge buildos` takes over what the last one learned. natd remembers the bindings
//! of machines in a file in `/run`, for a table that is flushed while natd does not run.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use buildos_service::{file, text};
use tokio::time::{Instant, timeout};

use crate::bindings::{Binding, Bindings, Evidence};
use crate::bridge;
use crate::desired::Desired;
use crate::dnsmasq::leases::{self, Lease};
use crate::dnsmasq::{config, paths::LEASES};
use crate::firewall::bytecode::{ElementChange, ForeignTable, KernelTable};
use crate::firewall::client::{self, Install};
use crate::firewall::error::FirewallError;
use crate::firewall::model::Family;
use crate::firewall::monitor::{Commit, RulesetMonitor, Writer};
use crate::firewall::policy::{self, TABLE};
use crate::firewall::port_policy::{self, Dispatch};
use crate::messages;
use crate::open_port::OpenPort;
use crate::ports::{self, Ports};
use crate::posture::{Posture, TableError};
use crate::settings::Settings;
use crate::uplink_network::UplinkNetwork;

/// Limit of the time until a commit is notified.
const NOTIFICATION_DELAY: Duration = Duration::from_millis(10);
/// Installations of the tables in one reconciliation, while another process changes them.
const MAX_INSTALLS: usize = 3;
/// The bindings that natd remembers, as JSON.
const KNOWN: &str = "run/buildos/natd/bindings.json";
/// Limit of that file, bytes: 65,536 bindings.
const KNOWN_LIMIT: usize = 8 << 20;

/// The tables of natd in the kernel.
pub struct Tables {
    root: PathBuf,
    /// The tables that natd last read back, in the order of [`Desired::tables`].
    installed: Option<[KernelTable; 3]>,
    /// The learned sets, as last read.
    bindings: Option<Bindings>,
    /// The content of [`KNOWN`].
    known: BTreeSet<Binding>,
    /// The last reading of the lease file.
    leases: Option<Vec<Lease>>,
    /// How rules recognise ports of br1 with this kernel.
    dispatch: Dispatch,
    /// The process that changed the ruleset since the last reconciliation.
    last_writer: Option<Writer>,
}

impl Tables {
    /// Resumes with the bindings that an earlier natd remembered, on the host below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let known = file::read_bounded(&root.join(KNOWN), KNOWN_LIMIT).ok();
        Self {
            known: known
                .and_then(|text| serde_json::from_slice(&text).ok())
                .unwrap_or_default(),
            leases: None,
            root: root.to_owned(),
            installed: None,
            bindings: None,
            dispatch: Dispatch::Bridge,
            last_writer: None,
        }
    }

    /// Returns the machines that have an address.
    #[must_use]
    pub fn machines(&self) -> &BTreeSet<Binding> {
        &self.known
    }

    /// Processes a notification of a changed ruleset.
    pub fn ruleset_changed(&mut self, commit: Commit) {
        self.last_writer = commit.last_writer;
    }

    /// Returns the process that changed the ruleset since the last reconciliation.
    #[must_use]
    pub fn last_writer(&self) -> Option<&Writer> {
        self.last_writer.as_ref()
    }

    /// Forgets the process that changed the ruleset.
    pub fn forget_writer(&mut self) {
        self.last_writer = None;
    }

    /// Derives the desired state, and installs its tables unless the kernel has them.
    pub async fn apply(
        &mut self,
        network: UplinkNetwork,
        settings: &Settings,
        open: &[OpenPort],
        ruleset: &RulesetMonitor,
    ) -> (Desired, Result<(), TableError>) {
        let ports = ports::read(&self.root, &network);
        let (ports, error) = match ports {
            Ok(ports) => (ports, None),
            Err(error) => (Ports::default(), Some(FirewallError::Ports(error))),
        };
        let desired = Desired::new(network.clone(), settings, &ports, self.dispatch, open);
        if let Some(error) = error {
            return (desired, Err(TableError::Unknown(error)));
        }
        let result = self.install(&desired, &ports.private, ruleset).await;
        let unsupported = |error: &TableError| match error {
            TableError::NotInstalled(error) => error.is_unsupported(),
            TableError::Unknown(_) => false,
        };
        if self.dispatch == Dispatch::Bridge && result.as_ref().is_err_and(unsupported) {
            self.dispatch = Dispatch::Ports;
            let desired = Desired::new(network, settings, &ports, self.dispatch, open);
            let result = self.install(&desired, &ports.private, ruleset).await;
            return (desired, result);
        }
        (desired, result)
    }

    /// Installs the tables that the kernel does not have, in one transaction.
    async fn install(
        &mut self,
        desired: &Desired,
        ports: &BTreeSet<u32>,
        ruleset: &RulesetMonitor,
    ) -> Result<(), TableError> {
        let mut changes: Vec<TableChange> = Vec::new();
        let mut installs = 0;
        loop {
            let different = different_tables(desired).await?;
            let Some(first) = different.first() else {
                if !changes.is_empty() {
                    self.find_last_writer(ruleset).await;
                }
                for change in &changes {
                    self.report_install(desired, change);
                }
                self.installed = Some(desired.tables().map(|(_, table)| table.clone()));
                return Ok(());
            };
            if installs == MAX_INSTALLS {
                return Err(TableError::NotInstalled(FirewallError::ReadBack {
                    table: first.name(),
                    difference: first.difference.clone(),
                }));
            }
            let bindings = self.bindings.as_ref();
            let elements = bindings.map(|known| known.restored(ports, Instant::now()));
            let elements = elements.unwrap_or_default();
            let tables: Vec<_> = different.iter().map(|d| d.install(&elements)).collect();
            let installed = client::install(&tables).await;
            installed.map_err(TableError::NotInstalled)?;
            installs += 1;
            for table in &different {
                let change = TableChange {
                    family: table.family,
                    difference: table.difference.clone(),
                };
                if !changes.iter().any(|known| known.family == change.family) {
                    changes.push(change);
                }
            }
        }
    }

    /// Receives the notification of a commit that this reconciliation found by itself.
    async fn find_last_writer(&mut self, ruleset: &RulesetMonitor) {
        if self.installed.is_some() && self.last_writer.is_none() {
            if let Ok(Ok(commit)) = timeout(NOTIFICATION_DELAY, ruleset.next()).await {
                self.ruleset_changed(commit);
            }
        }
    }

    /// Corrects the learned sets by ports and leases.
    ///
    /// # Errors
    ///
    /// The sets or the ports cannot be read; the kernel refuses a correction.
    pub async fn correct_bindings(
        &mut self,
        network: &UplinkNetwork,
        settings: &Settings,
    ) -> Result<Corrected, FirewallError> {
        let bindings = Bindings::read().await?;
        // A port that appears after this line has no element yet.
        let ports = ports::read(&self.root, network).map_err(FirewallError::Ports)?;
        let leases = leases::read(&self.root.join(LEASES)).ok();
        let learned = bridge::learned(&network.private_bridge).await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let evidence = Evidence {
            ports: ports.private,
            last_leases: std::mem::replace(&mut self.leases, leases.clone()),
            leases,
            known: self.known.clone(),
            learned: learned.unwrap_or_default(),
            now_s: now.map_or(0, |now| now.as_secs()),
            lease: config::lease_time(network.private_network, settings.lease),
            limit: port_policy::hardware_address_limit(network, settings),
        };
        let plan = bindings.plan(&evidence);
        self.bindings = Some(bindings);
        if !plan.changes.is_empty() {
            client::change_elements(Family::Bridge, TABLE, &plan.changes).await?;
            self.bindings = Some(Bindings::read().await?);
        }
        if self.known != plan.known {
            self.known = plan.known;
            self.remember();
        }
        Ok(Corrected {
            departed: plan.departed,
            due: plan.recheck.map(|after| Instant::now() + after),
        })
    }

    fn remember(&self) {
        let text = serde_json::to_vec(&self.known).unwrap_or_default();
        if let Err(error) = file::replace(&self.root.join(KNOWN), &text, 0o640) {
            tracing::warn!("{}", text::chain(&error));
        }
    }

    /// Installs the table that closes the host while the desired table is missing, and
    /// removes it afterwards.
    ///
    /// # Errors
    ///
    /// The kernel refuses the table.
    pub async fn apply_closed(
        network: &UplinkNetwork,
        settings: &Settings,
        posture: Option<Posture>,
        installed: Option<ForeignTable>,
    ) -> Result<(), FirewallError> {
        let installed = installed.map(|found| found.table);
        match posture {
            Some(Posture::Closed) => {
                let table = policy::closed_table(network, settings);
                let table = KernelTable::compile(&table);
                if table.difference(installed.as_ref()).is_none() {
                    return Ok(());
                }
                client::install(&[Install {
                    family: Family::Inet,
                    table: &table,
                    installed: None,
                    elements: &[],
                }])
                .await
            }
            Some(Posture::Open) if installed.is_some() => {
                // The desired table closes the host, too.
                if let Err(error) = client::remove(policy::CLOSED_TABLE).await {
                    tracing::warn!("cannot remove a table: {}", text::chain(&error));
                }
                Ok(())
            }
            Some(Posture::Open) | None => Ok(()),
        }
    }

    fn report_install(&self, desired: &Desired, change: &TableChange) {
        let was_installed = self.installed.as_ref().is_some_and(|tables| {
            let mut pairs = tables.iter().zip(desired.tables());
            pairs.any(|(installed, (family, desired))| {
                family == change.family && installed == desired
            })
        });
        if was_installed {
            let writer = self.last_writer.as_ref();
            messages::table_restored(change.family, writer, &change.difference);
        } else {
            messages::table_installed(change.family);
        }
    }
}

/// The result of [`Tables::correct_bindings`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrected {
    /// Addresses whose machine is gone.
    pub departed: Vec<Ipv4Addr>,
    /// Time of the next correction, if an address waits for its lease.
    pub due: Option<Instant>,
}

/// A table that the kernel does not have as desired.
struct DifferentTable<'a> {
    family: Family,
    desired: &'a KernelTable,
    installed: Option<KernelTable>,
    difference: String,
}

impl DifferentTable<'_> {
    fn name(&self) -> String {
        format!("table {} {}", self.family.as_str(), self.desired.name)
    }

    fn install<'a>(&'a self, elements: &'a [ElementChange]) -> Install<'a> {
        let (elements, installed) = match self.family {
            Family::Bridge => (elements, self.installed.as_ref()),
            // What this table learned, the rates of questions, may start again.
            Family::Inet | Family::Arp => (&[][..], None),
        };
        Install {
            elements,
            family: self.family,
            table: self.desired,
            installed,
        }
    }
}

/// A table that natd installed, and how it was different before.
struct TableChange {
    family: Family,
    difference: String,
}

async fn different_tables(desired: &Desired) -> Result<Vec<DifferentTable<'_>>, TableError> {
    let mut different = Vec::new();
    for (family, desired) in desired.tables() {
        let installed = client::read(family, &desired.name).await;
        let installed = installed.map_err(TableError::Unknown)?;
        if let Some(difference) = desired.difference(installed.as_ref()) {
            different.push(DifferentTable {
                family,
                desired,
                installed,
                difference,
            });
        }
    }
    Ok(different)
}

/// Returns true for the table of [`Tables::apply_closed`].
#[must_use]
pub fn is_closed_table(found: &ForeignTable) -> bool {
    found.family == Family::Inet.number() && found.table.name == policy::CLOSED_TABLE
}
