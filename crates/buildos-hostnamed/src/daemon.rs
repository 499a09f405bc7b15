//! The loop: choose a name, set it, read it back, tell.

use std::time::Duration;

use buildos_dbus_api::hostname1::Source;
use buildos_dbus_api::network1::{self, Network};
use buildos_dbus_api::system::{self as systemd, HostnameState};
use buildos_dbus_api::watch::BusLost;
use buildos_service::{Request, Service, text};
use tokio::time::{Instant, sleep_until};
use zbus::Connection;

use crate::choice::{Choice, choose};
use crate::config::Settings;
use crate::dbus::{self, Published};
use crate::systemd_hostnamed::{self, SystemError};
use buildos_types::Hostname;

/// The host has another name.
const MESSAGE_NAMED: &str = "ad85dc35298b44d29bcb30ee01b1a76b";
/// A name from the network cannot be a host's.
const MESSAGE_REFUSED: &str = "c46b54b5c78a43828bf343629749d28d";
/// An administrator's static name stands.
const MESSAGE_STATIC: &str = "f725ad37339247078d984ea5cc49bd78";
/// systemd-hostnamed did not do it.
const MESSAGE_NOT_SET: &str = "5197220027e140d79a2e0fd2295c0fbf";

/// How many names are remembered that servers may send back.
const TOLD: usize = 16;
/// Between attempts to reach systemd-hostnamed.
const RETRY: Duration = Duration::from_secs(5);

/// Why the daemon ends; systemd starts it again, and the name stays.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The system bus is gone, or refuses us.
    #[error("cannot work with the system bus")]
    Bus(#[from] zbus::Error),
    /// The system bus is gone.
    #[error(transparent)]
    BusLost(#[from] BusLost),
}

/// Runs until systemd asks for the end.
///
/// # Errors
///
/// [`DaemonError`]; whatever else goes wrong is a state, not an end.
pub async fn run(mut service: Service<Settings>) -> Result<(), DaemonError> {
    let connection = buildos_dbus_api::system_bus().await?;
    let mut network = network1::watch(&connection).await?;
    let mut names = systemd::watch_hostname(&connection).await?;

    let mut hostnamed = Hostnamed::new(connection.clone(), service.settings().clone());
    hostnamed.network = network.next().await?;
    hostnamed.look().await;
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
            names = names.next() => hostnamed.names(names?),
            () = sleep_until(hostnamed.retry) => {}
        }
        hostnamed.look().await;
        dbus::publish(&connection, hostnamed.published(service.problems())).await?;
        service.status(&hostnamed.status());
        if reloaded {
            service.ready();
        }
    }
}

/// What the daemon knows.
struct Hostnamed {
    connection: Connection,
    settings: Settings,
    /// As netd said last; [`None`] while it is away.
    network: Option<Network>,
    /// The last choice: it stays when the lease is lost.
    choice: Option<Choice>,
    /// The names in force, as far as systemd-hostnamed has told.
    names: Option<HostnameState>,
    /// Names that were in force and not DHCP's, since we run; of the last ones.
    told: Vec<String>,
    /// The choice that was last in force. Another name in its place is
    /// somebody's will.
    stood: Option<Hostname>,
    source: Source,
    reason: String,
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
            told: Vec::new(),
            stood: None,
            source: Source::None,
            reason: String::new(),
            retry: far_off(),
        }
    }

    /// What systemd-hostnamed says; when it has gone to sleep nothing changes.
    fn names(&mut self, names: Option<HostnameState>) {
        self.names = names.or(self.names.take());
    }

    /// Makes the name what it should be.
    async fn look(&mut self) {
        self.retry = far_off();
        if let Some(choice) = choose(&self.settings, self.network.as_ref(), &self.told) {
            self.choose(choice);
        }
        let Some(choice) = self.choice.clone() else {
            self.reason = waiting(self.network.as_ref());
            return;
        };
        match self.apply(&choice.name).await {
            Ok(standing) => self.settle(&choice, standing),
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

    /// Sets the name unless it is in force, or somebody has decided otherwise.
    async fn apply(&mut self, chosen: &Hostname) -> Result<Standing, SystemError> {
        let names = match self.names.take() {
            Some(names) => names,
            None => systemd_hostnamed::read(&self.connection).await?,
        };
        let (names, standing) = match Standing::of(chosen, &names) {
            // "localhost" is nobody's will: the administrator's name was taken away.
            Standing::Absent
                if self.stood.as_ref() != Some(chosen)
                    || Hostname::new(&names.hostname).is_err() =>
            {
                systemd_hostnamed::set(&self.connection, chosen).await?;
                let names = systemd_hostnamed::read(&self.connection).await?;
                match Standing::of(chosen, &names) {
                    Standing::Absent => return Err(SystemError::Ignored(chosen.clone())),
                    standing @ (Standing::InForce | Standing::Overruled) => (names, standing),
                }
            }
            Standing::Absent => (names, Standing::Overruled),
            standing @ (Standing::InForce | Standing::Overruled) => (names, standing),
        };
        self.names = Some(names);
        if standing == Standing::InForce {
            self.stood = Some(chosen.clone());
        }
        Ok(standing)
    }

    /// Tells what has come of the choice, if it was not told before.
    fn settle(&mut self, choice: &Choice, standing: Standing) {
        let actual = text::escape(self.names.as_ref().map_or("", |names| &names.hostname));
        let (source, reason, message) = match standing {
            Standing::InForce => (choice.source, choice.reason.clone(), MESSAGE_NAMED),
            Standing::Overruled | Standing::Absent => (
                Source::Static,
                format!(
                    "an administrator's; without it {}, {}",
                    choice.name, choice.reason
                ),
                MESSAGE_STATIC,
            ),
        };
        let name = self.names.as_ref().map_or("", |names| &names.hostname);
        let ours = matches!(source, Source::Static | Source::Configuration);
        if ours && !self.told.iter().any(|told| told == name) {
            self.told.push(name.to_owned());
            let excess = self.told.len().saturating_sub(TOLD);
            self.told.drain(..excess);
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

/// How a chosen name stands among the names in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is the host's name.
    InForce,
    /// An administrator's name stands in its place.
    Overruled,
    /// Another name does, which is not known to be anybody's will.
    Absent,
}

impl Standing {
    fn of(chosen: &Hostname, names: &HostnameState) -> Self {
        if !names.static_hostname.is_empty() {
            Self::Overruled
        } else if names.hostname == chosen.as_str() {
            Self::InForce
        } else {
            Self::Absent
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

/// A time that does not come: a year.
fn far_off() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}
