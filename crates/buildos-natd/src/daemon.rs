//! Runs the event loop: waits for an event, reconciles, publishes the status.
//!
//! | event | source |
//! |---|---|
//! | netd's properties changed | D-Bus |
//! | an operator opens or closes a port | D-Bus |
//! | the ruleset changed | nfnetlink |
//! | a port of br1 changed | rtnetlink, by way of [`Pace`] |
//! | dnsmasq or the probe wrote a file | inotify |
//! | machines are short of a resource | [`UsageMonitor`] |
//! | dnsmasq changed a lease; after a delay | inotify |
//! | the time of the next check | clock |
//! | stop, reload | systemd |
//!
//! An event carries no state: [`Reconciler::reconcile`] observes everything again.

use std::path::Path;

use buildos_dbus_api::network1;
use buildos_dbus_api::system;
use buildos_dbus_api::watch::BusLost;
use buildos_probe::REPORT;
use buildos_service::file_watch::{FileWatch, FileWatchError};
use buildos_service::{Request, Service};
use tokio::time::sleep_until;

use crate::bridge::{BridgeError, Links};
use crate::dbus;
use crate::dnsmasq::paths::{ACTIVE, LEASES, PID};
use crate::firewall::error::FirewallError;
use crate::firewall::monitor::RulesetMonitor;
use crate::pace::Pace;
use crate::reconcile::Reconciler;
use crate::settings::Settings;
use crate::usage::UsageMonitor;

/// natd's own unit.
const UNIT: &str = "buildos-natd.service";
/// Files that dnsmasq, its supervisor and the probe write.
const REPORTS: [&str; 3] = [ACTIVE, PID, REPORT];

/// Reason for the daemon to end. systemd restarts it; the kernel keeps its state.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The system bus is gone, or refuses the connection or the name.
    #[error("cannot work with the system bus")]
    Bus(#[from] zbus::Error),
    /// The system bus is gone.
    #[error(transparent)]
    BusLost(#[from] BusLost),
    /// Notifications of the ruleset cannot be received.
    #[error("cannot watch the kernel's ruleset")]
    Ruleset(#[from] FirewallError),
    /// Notifications of links cannot be received.
    #[error("cannot watch the kernel's links")]
    Links(#[from] BridgeError),
    /// The files of dnsmasq and the probe cannot be watched.
    #[error(transparent)]
    Files(#[from] FileWatchError),
}

/// Runs until systemd stops the daemon.
///
/// # Errors
///
/// [`DaemonError`]; every other error is published as a state.
pub async fn run(mut service: Service<Settings>) -> Result<(), DaemonError> {
    let root = Path::new("/");
    let connection = buildos_dbus_api::system_bus().await?;
    let mut network = network1::watch(&connection).await?;
    let ruleset = RulesetMonitor::open()?;
    let links = Links::open(root)?;
    let files = FileWatch::new(root, &REPORTS)?;
    let mut usage = UsageMonitor::new(root);
    let mut link_pace = Pace::default();
    let leases = FileWatch::of_open_files(root, &[LEASES])?;

    let mut reconciler = Reconciler::new(root, &connection, service.settings().clone());
    reconciler.set_network(network.next().await?);
    files.add_directories()?;
    leases.add_directories()?;
    reconciler.reconcile(&links, &ruleset).await;
    usage.remove_connections_of(reconciler.take_departed());
    let (ports, mut port_requests) = dbus::ports::channel(reconciler.open_ports());
    dbus::ports::serve(&connection, &ports).await?;
    dbus::serve(&connection, root, reconciler.published(service.problems())).await?;
    service.status(&reconciler.status_line());
    service.ready();

    loop {
        let mut reloaded = false;
        let mut pending = None;
        tokio::select! {
            request = service.request() => match request {
                Request::Stop => break,
                Request::Reload => {
                    reconciler.set_settings(service.reload().clone());
                    reloaded = true;
                }
            },
            Some(request) = port_requests.recv() => match reconciler.accept(request) {
                Some(accepted) => pending = Some(accepted),
                None => continue,
            },
            network = network.next() => if !reconciler.set_network(network?) {
                continue;
            },
            change = ruleset.next() => reconciler.ruleset_changed(change?),
            link = link_pace.next(links.changed()) => link?,
            file = files.changed() => file?,
            () = usage.changed(reconciler.network()) => {
                reconciler.set_shortages(usage.shortages());
            }
            lease = leases.changed() => {
                lease?;
                reconciler.leases_changed();
                continue;
            }
            () = sleep_until(reconciler.next_check()) => {}
        }
        files.add_directories()?;
        leases.add_directories()?;
        reconciler.reconcile(&links, &ruleset).await;
        usage.remove_connections_of(reconciler.take_departed());
        if let Some(pending) = pending {
            reconciler.finish(pending).await;
        }
        dbus::ports::publish(&connection, &ports, reconciler.open_ports()).await?;
        dbus::publish(&connection, reconciler.published(service.problems())).await?;
        service.status(&reconciler.status_line());
        if reloaded {
            service.ready();
        }
    }

    // A restart must not cut traffic; after a stop the bridges must not forward.
    match system::pending_job(&connection, UNIT).await {
        Ok(Some(job)) if job != "stop" => {}
        _ => reconciler.stop_forwarding(),
    }
    Ok(())
}
