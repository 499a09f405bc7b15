//! Applies the desired drop-ins, stops removed agents, and starts supervisors.

use std::collections::BTreeMap;
use std::path::Path;

use tokio::sync::mpsc;
use zbus::zvariant::OwnedObjectPath;

use super::configured::Configured;
use super::error::Error;
use crate::agent::id::Id;
use crate::messages;
use crate::systemd::manager::Systemd;
use crate::systemd::supervisor::{Report, SupervisorHandle};
use crate::unit::directory::{RUNTIME, UnitDirectory};
use crate::unit::dropin::{self, Op};

/// The units of the agents.
pub(super) struct Units {
    pub(super) systemd: Systemd,
    directory: UnitDirectory,
    reports: mpsc::Sender<Report>,
    /// Stop jobs of removed agents.
    stop_jobs: BTreeMap<Id, OwnedObjectPath>,
}

impl Units {
    pub(super) fn new(systemd: Systemd, reports: mpsc::Sender<Report>) -> Self {
        Self {
            systemd,
            directory: UnitDirectory::new(Path::new(RUNTIME)),
            reports,
            stop_jobs: BTreeMap::new(),
        }
    }

    /// Applies the configured drop-ins, and reloads systemd if it has not read them.
    pub(super) async fn apply(&mut self, configured: &Configured) -> Result<(), Error> {
        let desired = configured.dropins();
        let observed = self.directory.read()?;
        for op in dropin::plan(&configured.ids(), &desired, &observed, configured.valid) {
            self.apply_op(op, &observed).await?;
        }
        let slice = dropin::slice(configured.memory);
        self.directory.write_slice(&slice)?;
        // Even without a change: agentd may have ended between a change and the reload.
        let units = desired.keys().chain(observed.keys()).map(Id::unit);
        let slice = std::iter::once(dropin::SLICE.to_owned());
        self.systemd.reload(slice.chain(units)).await?;
        Ok(())
    }

    async fn apply_op(&mut self, op: Op, observed: &BTreeMap<Id, String>) -> Result<(), Error> {
        match op {
            Op::Remove(id) => {
                let job = self.systemd.stop(&id).await?;
                self.directory.remove(&id)?;
                messages::removed(&id);
                self.stop_jobs.extend(job.map(|job| (id, job)));
            }
            Op::Keep(id) => messages::kept(&id),
            Op::Write(id, text) => {
                self.directory.write(&id, &text)?;
                if observed.contains_key(&id) {
                    messages::changed(&id);
                }
            }
        }
        Ok(())
    }

    pub(super) fn supervise(&mut self, id: &Id) -> SupervisorHandle {
        let stop_job = self.stop_jobs.remove(id);
        SupervisorHandle::spawn(&self.systemd, id, stop_job, self.reports.clone())
    }
}
