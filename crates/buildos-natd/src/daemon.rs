//! The loop: look, apply the difference, look again, tell.
//!
//! Things are applied in one order: the table, then forwarding, then the
//! files for dnsmasq. A start, a restart, a change of the network and somebody
//! else's interference are all the same to it: an event only means "look".

use std::path::Path;
use std::time::{Duration, SystemTime};

use buildos_dbus_api::nat1::State;
use buildos_dbus_api::network1::{self, Network};
use buildos_dbus_api::system::{self, UnitState};
use buildos_dbus_api::watch::BusLost;
use buildos_service::{Request, Service, file, text};
use tokio::time::{Instant, sleep_until};

use crate::bus::{self, Published};
use crate::config::Settings;
use crate::dnsmasq::{self, Dnsmasq};
use crate::forwarding;
use crate::nft::{self, Change, Changes, Image, NftError};
use crate::site::{InterfaceName, Site};
use crate::status::{Forwarding, Observed, Status};
use crate::wish::Wish;

/// Machines on br1 have network, addresses and names.
const MESSAGE_READY: &str = "b1b497c590e84ed09579fbf32aac0198";
/// Something is waited for.
const MESSAGE_WAITING: &str = "8ea2d15d5dbd460dbc67bb6d36191570";
/// Something does not work.
const MESSAGE_DEGRADED: &str = "3ed18fa596c94011b4ded1b963942596";
/// The table was installed.
const MESSAGE_INSTALLED: &str = "8583a305106a49859c8cfe4c9c6d98c8";
/// Somebody changed the table; it was installed again.
const MESSAGE_RESTORED: &str = "e027bb31090a415fa94f4619ad223281";
/// A bridge forwards from now on.
const MESSAGE_FORWARDING: &str = "6bb2baa6ab34463da4567d51df5e8580";
/// natd was stopped: nothing is forwarded any more.
const MESSAGE_CLOSED: &str = "33fc3cdc6a0a4c9b99ec37e8ad3bb3a5";

/// Our own unit.
const UNIT: &str = "buildos-natd.service";
/// What no event tells (a bridge made anew, a switch turned by hand) is seen
/// this late at the latest.
const CALM: Duration = Duration::from_secs(60);
/// The same while something is missing.
const BUSY: Duration = Duration::from_secs(2);

/// Why the daemon ends; systemd starts it again, and nothing in force changes.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The system bus is gone, or refuses us.
    #[error("cannot work with the system bus")]
    Bus(#[from] zbus::Error),
    /// The system bus is gone.
    #[error(transparent)]
    BusLost(#[from] BusLost),
    /// The kernel's announcements cannot be heard.
    #[error("cannot watch the kernel's ruleset")]
    Changes(#[from] NftError),
}

/// Runs until systemd asks for the end.
///
/// # Errors
///
/// [`DaemonError`]; whatever else goes wrong is a state, not an end.
pub async fn run(mut service: Service<Settings>) -> Result<(), DaemonError> {
    let connection = buildos_dbus_api::system_bus().await?;
    let mut network = network1::watch(&connection).await?;
    let mut unit = system::watch_unit(&connection, dnsmasq::UNIT).await?;
    let mut changes = Changes::listen()?;

    let mut natd = Natd::new(Path::new("/"), service.settings().clone());
    natd.network(network.next().await?);
    natd.unit = unit.next().await?;
    natd.look().await;
    bus::serve(&connection, natd.published(service.problems())).await?;
    service.status(&natd.status.reason);
    service.ready();

    loop {
        let mut reloaded = false;
        tokio::select! {
            request = service.request() => match request {
                Request::Stop => break,
                Request::Reload => {
                    natd.settings = service.reload().clone();
                    reloaded = true;
                }
            },
            network = network.next() => natd.network(network?),
            unit = unit.next() => natd.unit = unit?,
            change = changes.next() => natd.changed(change?),
            () = sleep_until(natd.look_at) => {}
        }
        natd.look().await;
        bus::publish(&connection, natd.published(service.problems())).await?;
        service.status(&natd.status.reason);
        if reloaded {
            service.ready();
        }
    }

    // A restart must cut no traffic; a stop must leave nothing open.
    match system::pending_job(&connection, UNIT).await {
        Ok(Some(job)) if job != "stop" => {}
        _ => natd.close(),
    }
    Ok(())
}

/// What the daemon knows.
struct Natd {
    root: std::path::PathBuf,
    forwarding: forwarding::Forwarding,
    settings: Settings,
    /// As netd said last, or why that is of no use.
    site: Result<Site, String>,
    /// dnsmasq's unit; [`None`] when systemd does not answer.
    unit: Option<UnitState>,
    /// The table that was last seen standing.
    standing: Option<Image>,
    /// Who has changed the ruleset since the last look.
    meddler: Option<(u32, String)>,
    /// When dnsmasq was last told of its configuration.
    told: Instant,
    observed: Option<Observed>,
    status: Status,
    look_at: Instant,
}

impl Natd {
    fn new(root: &Path, settings: Settings) -> Self {
        let now = Instant::now();
        Self {
            root: root.to_owned(),
            forwarding: forwarding::Forwarding::below(root),
            settings,
            site: Err(String::new()),
            unit: None,
            standing: None,
            meddler: None,
            told: now,
            observed: None,
            status: Status::waiting(""),
            look_at: now,
        }
    }

    /// What netd says. While it is away, what it said last stays in force.
    fn network(&mut self, network: Option<Network>) {
        match network {
            Some(network) => {
                self.site = Site::try_from(&network).map_err(|why| {
                    format!(
                        "waiting for buildos-netd: {}",
                        text::escape(&why.to_string())
                    )
                });
            }
            None if self.site.is_err() => {
                self.site = Err("waiting for buildos-netd, which is not running".to_owned());
            }
            None => {}
        }
    }

    fn changed(&mut self, change: Change) {
        self.meddler = change.by.filter(|(pid, _)| *pid != std::process::id());
    }

    /// Finds out what is in force and makes it what it should be.
    async fn look(&mut self) {
        let status = match self.site.clone() {
            Ok(site) => {
                let wish = Wish::new(site, &self.settings);
                let observed = self.apply(&wish).await;
                let status = Status::judge(&wish.site, &observed);
                self.observed = Some(observed);
                status
            }
            Err(why) => {
                self.observed = None;
                Status::waiting(why)
            }
        };
        self.meddler = None;
        if status != self.status {
            report(&status);
            self.status = status;
        }
        let calm = self.status.state == State::Active || self.site.is_err();
        self.look_at = Instant::now() + if calm { CALM } else { BUSY };
    }

    async fn apply(&mut self, wish: &Wish) -> Observed {
        let table = self
            .table(&wish.table)
            .await
            .map_err(|error| text::chain(&error));
        let forwarding = match &table {
            Ok(()) => self.forward(&wish.site),
            Err(_) => Forwarding::Held,
        };
        Observed {
            table,
            forwarding,
            dnsmasq: self.dnsmasq(wish),
        }
    }

    async fn table(&mut self, wish: &Image) -> Result<(), NftError> {
        let standing = nft::read(&wish.name).await?;
        if let Some(difference) = wish.difference(standing.as_ref()) {
            nft::install(wish).await?;
            let standing = nft::read(&wish.name).await?;
            if let Some(difference) = wish.difference(standing.as_ref()) {
                // Somebody's change has its announcement, which brings us back here.
                return Err(NftError::Different {
                    table: wish.name.clone(),
                    difference,
                });
            }
            self.report_table(wish, &difference);
        }
        self.standing = Some(wish.clone());
        Ok(())
    }

    fn report_table(&self, wish: &Image, difference: &str) {
        let name = &wish.name;
        if self.standing.as_ref() != Some(wish) {
            tracing::info!(
                message_id = MESSAGE_INSTALLED,
                "installed table inet {name}"
            );
            return;
        }
        let (pid, command) = self.meddler.clone().unwrap_or_default();
        let command = text::escape(&command);
        let by = match pid {
            0 => "somebody".to_owned(),
            pid => format!("{command} (process {pid})"),
        };
        tracing::warn!(
            message_id = MESSAGE_RESTORED,
            buildos_pid = pid,
            buildos_command = command,
            "installed table inet {name} again, which {by} has changed: {difference}",
        );
    }

    fn forward(&self, site: &Site) -> Forwarding {
        for bridge in [&site.private, &site.public] {
            match self.forward_from(bridge) {
                Ok(true) => {}
                Ok(false) => return Forwarding::NoBridge(bridge.to_string()),
                Err(error) => return Forwarding::Failed(text::chain(&error)),
            }
        }
        Forwarding::On
    }

    /// Whether the bridge is there; it then forwards.
    fn forward_from(&self, bridge: &InterfaceName) -> Result<bool, forwarding::ForwardingError> {
        match self.forwarding.get(bridge)? {
            None => return Ok(false),
            Some(true) => return Ok(true),
            Some(false) => self.forwarding.set(bridge, true)?,
        }
        tracing::info!(
            message_id = MESSAGE_FORWARDING,
            interface = bridge.as_str(),
            "{bridge} forwards IPv4 from now on"
        );
        Ok(self.forwarding.get(bridge)? == Some(true))
    }

    fn dnsmasq(&mut self, wish: &Wish) -> Result<Dnsmasq, String> {
        self.tell_dnsmasq(wish)
            .map_err(|error| text::chain(&error))?;
        let in_force = std::fs::read(self.root.join(dnsmasq::IN_FORCE))
            .is_ok_and(|content| content == wish.dnsmasq.as_bytes());
        let dnsmasq = Dnsmasq::judge(self.unit.as_ref(), in_force);
        if dnsmasq == Dnsmasq::Outdated && self.told.elapsed() >= BUSY {
            self.told = Instant::now();
            self.remind_dnsmasq();
        }
        Ok(dnsmasq)
    }

    fn tell_dnsmasq(&mut self, wish: &Wish) -> Result<(), file::WriteError> {
        file::replace(
            &self.root.join(dnsmasq::RESOLV),
            wish.resolv.as_bytes(),
            0o644,
        )?;
        let configuration = self.root.join(dnsmasq::CONFIGURATION);
        if file::replace(&configuration, wish.dnsmasq.as_bytes(), 0o644)? {
            self.told = Instant::now();
        }
        Ok(())
    }

    /// systemd does not see a change of the file while it acts on the one
    /// before (path_enter_running() in its src/core/path.c stops watching).
    fn remind_dnsmasq(&self) {
        let path = self.root.join(dnsmasq::CONFIGURATION);
        let touched = std::fs::File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::warn!(%error, "cannot touch {}", path.display());
        }
    }

    /// Fails closed. The table stays: without it the machines would reach more
    /// of the host than with it.
    fn close(&self) {
        let Ok(site) = &self.site else {
            tracing::warn!("stopped without knowing the bridges: what forwards goes on");
            return;
        };
        for bridge in [&site.private, &site.public] {
            let closed = match self.forwarding.get(bridge) {
                Ok(Some(true)) => self.forwarding.set(bridge, false),
                Ok(Some(false) | None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = closed {
                tracing::error!("{}", text::chain(&error));
            }
        }
        tracing::info!(
            message_id = MESSAGE_CLOSED,
            "stopped: {} and {} no longer forward; table inet {} stays",
            site.private,
            site.public,
            crate::ruleset::TABLE,
        );
    }

    fn published(&self, problems: Vec<String>) -> Published {
        Published {
            status: self.status.clone(),
            site: self.site.clone().ok(),
            observed: self.observed.clone(),
            problems,
        }
    }
}

fn report(status: &Status) {
    let reason = &status.reason;
    match status.state {
        State::Active => tracing::info!(message_id = MESSAGE_READY, "{reason}"),
        State::Waiting => tracing::info!(message_id = MESSAGE_WAITING, "{reason}"),
        State::Degraded => tracing::warn!(message_id = MESSAGE_DEGRADED, "{reason}"),
    }
}
