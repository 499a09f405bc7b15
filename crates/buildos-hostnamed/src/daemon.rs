//! Runs the loop: choose a name, set it, read it back, publish.

use std::time::Duration;

use buildos_dbus_api::hostname1::Source;
use buildos_dbus_api::network1::{self, Network};
use buildos_dbus_api::system::{self as systemd, HostnameState};
use buildos_dbus_api::watch::BusLost;
use buildos_service::{Request, Service, text};
use tokio::time::{Instant, sleep_until};
use zbus::Connection;

use crate::choice::{Choice, choose};
use crate::dbus::{self, Published};
use crate::settings::Settings;
use crate::systemd_hostnamed::{self, SystemError};
use buildos_types::Hostname;

/// The host name changed.
const MESSAGE_NAMED: &str = "ad85dc35298b44d29bcb30ee01b1a76b";
/// A name from the DHCP server is not a valid host name.
const MESSAGE_REFUSED: &str = "c46b54b5c78a43828bf343629749d28d";
/// An administrator's name takes precedence.
const MESSAGE_STATIC: &str = "f725ad37339247078d984ea5cc49bd78";
/// systemd-hostnamed did not set the name.
const MESSAGE_NOT_SET: &str = "5197220027e140d79a2e0fd2295c0fbf";

/// Maximum number of names in [`Hostnamed::sent`].
const SENT_LIMIT: usize = 16;
/// Delay between attempts to reach systemd-hostnamed.
const RETRY: Duration = Duration::from_secs(5);

/// Reason for the daemon to end. systemd restarts it, and the host keeps its name.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The system bus is gone, or refuses a request.
    #[error("cannot work with the system bus")]
    Bus(#[from] zbus::Error),
    /// The system bus is gone.
    #[error(transparent)]
    BusLost(#[from] BusLost),
}

/// Runs until systemd stops the daemon.
///
/// # Errors
///
/// [`DaemonError`]. Every other failure is a published state.
pub async fn run(mut service: Service<Settings>) -> Result<(), DaemonError> {
    let connection = buildos_dbus_api::system_bus().await?;
    let mut network = network1::watch(&connection).await?;
    let mut names = systemd::watch_hostname(&connection).await?;

    let mut hostnamed = Hostnamed::new(connection.clone(), service.settings().clone());
    hostnamed.network = network.next().await?;
    hostnamed.reconcile().await;
    dbus::serve(&connection, hostnamed.published(service.problems())).await?;
    service.status(&hostnamed.status());
    service.ready();

    loop {
        let mut reloaded = false;
        tokio::select! {
            request = service.request() => match request {
                Request::Stop => return Ok(()),
                Request::Reload => {
                    hostnamed.settings = service.reload().clone();
                    reloaded = true;
                }
            },
            network = network.next() => hostnamed.network = network?,
            names = names.next() => hostnamed.accept_names(names?),
            () = sleep_until(hostnamed.retry) => {}
        }
        hostnamed.reconcile().await;
        dbus::update(&connection, hostnamed.published(service.problems())).await?;
        service.status(&hostnamed.status());
        if reloaded {
            service.ready();
        }
    }
}

/// State of the daemon.
struct Hostnamed {
    connection: Connection,
    settings: Settings,
    /// netd's last snapshot; [`None`] while it is not on the bus.
    network: Option<Network>,
    /// The last choice, kept after the lease is lost.
    choice: Option<Choice>,
    /// The host's names, as systemd-hostnamed last returned them.
    names: Option<HostnameState>,
    /// Active names that no DHCP server assigned, since the start of the daemon. netd
    /// sends them to servers, which may return them.
    sent: Vec<String>,
    /// The last choice that was active. If a different name replaces it, an administrator
    /// set that name.
    last_active: Option<Hostname>,
    source: Source,
    reason: String,
    /// Time of the next attempt after a failure.
    retry: Instant,
}

impl Hostnamed {
    fn new(connection: Connection, settings: Settings) -> Self {
        Self {
            connection,
            settings,
            network: None,
            choice: None,
            names: None,
            sent: Vec::new(),
            last_active: None,
            source: Source::None,
            reason: String::new(),
            retry: far_future(),
        }
    }

    /// Accepts names of systemd-hostnamed. [`None`], as after its exit, changes nothing.
    fn accept_names(&mut self, names: Option<HostnameState>) {
        self.names = names.or(self.names.take());
    }

    /// Chooses a name and sets it.
    async fn reconcile(&mut self) {
        self.retry = far_future();
        if let Some(choice) = choose(&self.settings, self.network.as_ref(), &self.sent) {
            self.choose(choice);
        }
        let Some(choice) = self.choice.clone() else {
            self.reason = waiting(self.network.as_ref());
            return;
        };
        match self.apply(&choice.name).await {
            Ok(outcome) => self.report(&choice, outcome),
            Err(error) => {
                let reason = text::chain(&error);
                if reason != self.reason {
                    tracing::warn!(message_id = MESSAGE_NOT_SET, "{reason}");
                }
                self.reason = reason;
                self.retry = Instant::now() + RETRY;
            }
        }
    }

    fn choose(&mut self, choice: Choice) {
        for refused in &choice.refused {
            let known = self
                .choice
                .as_ref()
                .is_some_and(|last| last.refused.contains(refused));
            if !known {
                tracing::warn!(message_id = MESSAGE_REFUSED, "refused the name {refused}");
            }
        }
        self.choice = Some(choice);
    }

    /// Sets the name unless it is active, or an administrator set a different name.
    async fn apply(&mut self, chosen: &Hostname) -> Result<Outcome, SystemError> {
        let names = match self.names.take() {
            Some(names) => names,
            None => systemd_hostnamed::read(&self.connection).await?,
        };
        let (names, outcome) = match Outcome::of(chosen, &names) {
            // "localhost" is the default after an administrator removes a name.
            Outcome::Different
                if self.last_active.as_ref() != Some(chosen)
                    || Hostname::new(&names.hostname).is_err() =>
            {
                systemd_hostnamed::set(&self.connection, chosen).await?;
                let names = systemd_hostnamed::read(&self.connection).await?;
                match Outcome::of(chosen, &names) {
                    Outcome::Different => return Err(SystemError::Ignored(chosen.clone())),
                    outcome @ (Outcome::Active | Outcome::Overruled) => (names, outcome),
                }
            }
            Outcome::Different => (names, Outcome::Overruled),
            outcome @ (Outcome::Active | Outcome::Overruled) => (names, outcome),
        };
        self.names = Some(names);
        if outcome == Outcome::Active {
            self.last_active = Some(chosen.clone());
        }
        Ok(outcome)
    }

    /// Records the outcome, and logs it if it changed.
    fn report(&mut self, choice: &Choice, outcome: Outcome) {
        let actual = text::escape(self.names.as_ref().map_or("", |names| &names.hostname));
        let (source, reason, message) = match outcome {
            Outcome::Active => (choice.source, choice.reason.clone(), MESSAGE_NAMED),
            Outcome::Overruled | Outcome::Different => (
                Source::Static,
                format!(
                    "set by an administrator; otherwise it would be {}, {}",
                    choice.name, choice.reason
                ),
                MESSAGE_STATIC,
            ),
        };
        let name = self.names.as_ref().map_or("", |names| &names.hostname);
        let is_local = matches!(source, Source::Static | Source::Configuration);
        if is_local && !self.sent.iter().any(|sent| sent == name) {
            self.sent.push(name.to_owned());
            let excess = self.sent.len().saturating_sub(SENT_LIMIT);
            self.sent.drain(..excess);
        }
        if source == self.source && reason == self.reason {
            return;
        }
        tracing::info!(
            message_id = message,
            buildos_hostname = actual,
            buildos_source = source.as_str(),
            "this host is {actual}: {reason}"
        );
        (self.source, self.reason) = (source, reason);
    }

    fn hostname(&self) -> &str {
        match (&self.choice, &self.names) {
            (Some(_), Some(names)) => &names.hostname,
            _ => "",
        }
    }

    fn status(&self) -> String {
        match self.hostname() {
            "" => self.reason.clone(),
            name => format!("{name}: {}", self.reason),
        }
    }

    fn published(&self, problems: Vec<String>) -> Published {
        let refused = self.choice.iter().flat_map(|choice| &choice.refused);
        Published {
            hostname: self.hostname().to_owned(),
            source: self.source,
            reason: self.reason.clone(),
            refused: refused.map(ToString::to_string).collect(),
            problems,
        }
    }
}

/// Relation of a chosen name to the host's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The chosen name is the host's name.
    Active,
    /// An administrator's name takes precedence.
    Overruled,
    /// The host has a different name, of unknown origin.
    Different,
}

impl Outcome {
    fn of(chosen: &Hostname, names: &HostnameState) -> Self {
        if !names.static_hostname.is_empty() {
            Self::Overruled
        } else if names.hostname == chosen.as_str() {
            Self::Active
        } else {
            Self::Different
        }
    }
}

fn waiting(network: Option<&Network>) -> String {
    match network {
        None => "waiting for buildos-netd, which is not running".to_owned(),
        Some(network) => format!(
            "waiting for a lease: {}",
            text::Escaped::received(&network.reason)
        ),
    }
}

/// Returns a time one year ahead: no retry is due.
fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}
