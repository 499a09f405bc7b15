//! A daemon's life between systemd and its one loop.

use std::future::Future;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior};

use crate::arguments::{self, Command};
use crate::config::{Loaded, Problem, Schema, evaluate, sources};
use crate::{logging, notify, text};

/// A key or a file of the configuration has no effect.
const MESSAGE_CONFIGURATION_PROBLEM: &str = "8d0c17b6e07b4c5f9f1a3f6f4b2b8d11";
/// The daemon ended with an error.
const MESSAGE_FAILED: &str = "c2a4de3b1d4e4d0c8a57e6f0a9c3b5e2";

/// What systemd asks of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT: end, leaving what must survive a restart.
    Stop,
    /// SIGHUP: read the configuration again; see [`Service::reload`].
    Reload,
}

/// An error that another start does not mend: the daemon ends with the exit status
/// [`EX_CONFIG`], at which its unit does not start it again
/// (`RestartPreventExitStatus=`).
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// What the journal's catalogue explains.
    pub message_id: &'static str,
    /// Why, and what to do.
    pub reason: String,
}

impl Refused {
    /// The refusal among the causes of an error.
    fn among(error: &dyn std::error::Error) -> Option<&Self> {
        let first = error.source();
        std::iter::successors(first, |error| error.source()).find_map(|e| e.downcast_ref())
    }
}

/// Exit status: something has to be configured first; sysexits.h.
const EX_CONFIG: u8 = 78;

/// The daemon as systemd sees it: configuration, readiness, status, requests.
pub struct Service<T> {
    schema: Schema<T>,
    root: PathBuf,
    loaded: Loaded<T>,
    status: String,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    watchdog: Option<Interval>,
}

impl<T: Default> Service<T> {
    fn new(schema: Schema<T>, root: &Path) -> io::Result<Self> {
        let loaded = load(&schema, root);
        report(&loaded.problems);
        Ok(Self {
            schema,
            root: root.to_owned(),
            loaded,
            status: String::new(),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            watchdog: sd_notify::watchdog_enabled().map(watchdog_interval),
        })
    }

    /// Settings in force.
    #[must_use]
    pub fn settings(&self) -> &T {
        &self.loaded.settings
    }

    /// What is wrong in the configuration, one line each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.loaded
            .problems
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Waits for the next request and keeps the watchdog content meanwhile:
    /// a loop that does not come back here is hung. Cancel-safe.
    pub async fn request(&mut self) -> Request {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Request::Stop,
                _ = self.interrupt.recv() => return Request::Stop,
                _ = self.hangup.recv() => return Request::Reload,
                () = tick(self.watchdog.as_mut()) => notify::watchdog(),
            }
        }
    }

    /// Reads the configuration again and returns the settings now in force.
    /// The caller applies them and says [`Service::ready`].
    pub fn reload(&mut self) -> &T {
        notify::reloading();
        self.loaded = load(&self.schema, &self.root);
        report(&self.loaded.problems);
        &self.loaded.settings
    }

    /// Reads the configuration again before the daemon is up: systemd takes an order to
    /// reload what is not for a part of its start. Returns whether it is another one.
    pub fn reread(&mut self) -> bool
    where
        T: PartialEq,
    {
        let loaded = load(&self.schema, &self.root);
        if loaded == self.loaded {
            return false;
        }
        report(&loaded.problems);
        self.loaded = loaded;
        true
    }

    /// Tells systemd that the daemon is up, or that a reload has been applied.
    pub fn ready(&self) {
        notify::ready();
    }

    /// Shows one line in `systemctl status`. Configuration that has no effect
    /// is shown behind it until it is mended.
    pub fn status(&mut self, line: &str) {
        let mut status = line.to_owned();
        if let Some(first) = self.loaded.problems.first() {
            status.push_str(&format!(" (degraded: {first}"));
            match self.loaded.problems.len() {
                1 => status.push(')'),
                n => status.push_str(&format!(", and {} more)", n - 1)),
            }
        }
        if status != self.status {
            notify::status(&status);
            self.status = status;
        }
    }
}

/// The whole `main` of daemon `buildos-NAME`: arguments, logging,
/// configuration, a single-threaded runtime, and `run` until it returns. An error
/// with [`Refused`] among its causes is a reason not to be started again.
pub fn main<T, E, F>(
    version: &str,
    schema: Schema<T>,
    run: impl FnOnce(Service<T>) -> F,
) -> ExitCode
where
    T: Default,
    E: std::error::Error,
    F: Future<Output = Result<(), E>>,
{
    start(version, schema, None, run)
}

/// What a daemon finds when it looks at its settings without acting on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// What it would do: the output of `--print`.
    pub text: String,
    /// What cannot work although every key by itself is valid, one line each:
    /// `--check` and `--print` name it and exit 1.
    pub problems: Vec<String>,
}

/// Looks at settings, for `root` instead of `/`.
type Inspect<T> = fn(settings: &T, root: &Path) -> Inspection;

/// As [`main`], for a daemon that also has `--print`.
pub fn main_with_print<T, E, F>(
    version: &str,
    schema: Schema<T>,
    inspect: fn(settings: &T, root: &Path) -> Inspection,
    run: impl FnOnce(Service<T>) -> F,
) -> ExitCode
where
    T: Default,
    E: std::error::Error,
    F: Future<Output = Result<(), E>>,
{
    start(version, schema, Some(inspect), run)
}

fn start<T, E, F>(
    version: &str,
    schema: Schema<T>,
    inspect: Option<Inspect<T>>,
    run: impl FnOnce(Service<T>) -> F,
) -> ExitCode
where
    T: Default,
    E: std::error::Error,
    F: Future<Output = Result<(), E>>,
{
    let identifier = format!("buildos-{}", schema.name());
    match arguments::parse(std::env::args_os().skip(1), inspect.is_some()) {
        Ok(Command::Run) => {}
        Ok(Command::Check { root }) => return check(&schema, inspect, &root, false),
        Ok(Command::Print { root }) => return check(&schema, inspect, &root, true),
        Ok(Command::Help) => return print(&help(&schema, inspect.is_some())),
        Ok(Command::Version) => return print(&format!("{identifier} {version}\n")),
        Err(error) => {
            eprintln!("{identifier}: {error}");
            return ExitCode::from(2);
        }
    }
    logging::init(&identifier);
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))
        .and_then(|runtime| {
            runtime.block_on(async {
                let service = Service::new(schema, Path::new("/"))
                    .map_err(|e| format!("cannot handle signals: {e}"))?;
                Ok(run(service).await)
            })
        });
    notify::stopping();
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => match Refused::among(&error) {
            Some(refused) => {
                failed(refused.message_id, &text::chain(&error));
                ExitCode::from(EX_CONFIG)
            }
            None => failed(MESSAGE_FAILED, &text::chain(&error)),
        },
        Err(error) => failed(MESSAGE_FAILED, &error),
    }
}

/// Tells systemd and the journal why the daemon ends.
fn failed(message_id: &str, error: &str) -> ExitCode {
    notify::status(error);
    tracing::error!(message_id, "{}", text::Escaped::received(error));
    ExitCode::FAILURE
}

fn load<T: Default>(schema: &Schema<T>, root: &Path) -> Loaded<T> {
    let (fragments, mut problems) = sources::read(root, schema.name());
    let mut loaded = evaluate(schema, &fragments);
    problems.append(&mut loaded.problems);
    loaded.problems = problems;
    loaded
}

fn report(problems: &[Problem]) {
    for problem in problems {
        tracing::error!(message_id = MESSAGE_CONFIGURATION_PROBLEM, "{problem}");
    }
}

/// Reads the configuration, says what is wrong with it, and prints what the
/// daemon would do if it is asked to.
fn check<T: Default>(
    schema: &Schema<T>,
    inspect: Option<Inspect<T>>,
    root: &Path,
    prints: bool,
) -> ExitCode {
    let Loaded { settings, problems } = load(schema, root);
    let inspection = inspect.map_or_else(Inspection::default, |inspect| inspect(&settings, root));
    let named = problems.iter().map(ToString::to_string);
    let named: Vec<_> = named.chain(inspection.problems).collect();
    for problem in &named {
        eprintln!("{problem}");
    }
    let printed = if prints {
        print(&inspection.text)
    } else {
        ExitCode::SUCCESS
    };
    if named.is_empty() {
        printed
    } else {
        ExitCode::FAILURE
    }
}

fn help<T>(schema: &Schema<T>, prints: bool) -> String {
    let name = schema.name();
    let (inspect, print, with) = if prints {
        (
            "--check | --print",
            "  --print    the same, and print what it would do\n",
            "--check and --print",
        )
    } else {
        ("--check", "", "--check")
    };
    let mut out = format!(
        "Usage: buildos-{name} [{inspect}] [--root DIRECTORY] [--help] [--version]\n\n\
         Without arguments: runs the daemon; systemd does that, see buildos-{name}.service.\n  \
         --check    read the configuration, print what is wrong with it, exit 1 if anything is\n\
         {print}  \
         --root     with {with}: look below this directory instead of /\n\n\
         Keys in /etc/buildos/{name}.conf.d/*.toml, or buildos.{name}.KEY= on the kernel command line:\n"
    );
    for key in schema.keys() {
        out.push_str(&format!("  {:32} {}\n", key.path, key.doc));
        if let Some(alias) = key.alias {
            out.push_str(&format!(
                "  {:32} also {alias}= on the kernel command line\n",
                ""
            ));
        }
    }
    out
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Pings at half the time that systemd waits (sd_watchdog_enabled(3)).
fn watchdog_interval(limit: Duration) -> Interval {
    let mut interval = tokio::time::interval(limit / 2);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
