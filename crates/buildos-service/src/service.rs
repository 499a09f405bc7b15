//! Runs a daemon under systemd: start, requests, status and end.

use std::future::Future;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior};

use crate::arguments::{self, Command};
use crate::config::{Loaded, Problem, Schema, evaluate, sources};
use crate::logging::{self, journal};
use crate::{heap, notify, text};

/// A key or file of the configuration has no effect.
const MESSAGE_CONFIGURATION_PROBLEM: &str = "8d0c17b6e07b4c5f9f1a3f6f4b2b8d11";
/// The daemon ended with an error.
const MESSAGE_FAILED: &str = "c2a4de3b1d4e4d0c8a57e6f0a9c3b5e2";

/// A signal of systemd or the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT: end, and keep the state that must survive a restart.
    Stop,
    /// SIGHUP: call [`Service::reload`].
    Reload,
}

/// An error that a restart does not fix. The daemon ends with exit status [`EX_CONFIG`],
/// and its unit does not restart it (`RestartPreventExitStatus=`).
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// Entry of the journal's catalogue.
    pub message_id: &'static str,
    /// Reason, and what the operator can do.
    pub reason: String,
}

impl Refused {
    /// Returns the refusal among the causes of an error.
    fn find(error: &dyn std::error::Error) -> Option<&Self> {
        let first = error.source();
        std::iter::successors(first, |error| error.source()).find_map(|e| e.downcast_ref())
    }
}

/// Exit status for a configuration error (sysexits.h).
const EX_CONFIG: u8 = 78;

/// Connects a daemon to systemd: configuration, readiness, status, requests.
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

    /// Returns the current settings.
    #[must_use]
    pub fn settings(&self) -> &T {
        &self.loaded.settings
    }

    /// Returns the problems of the configuration, one line each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.loaded
            .problems
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Waits for the next request, and notifies the watchdog meanwhile. If the loop of
    /// the daemon hangs, the notifications stop and systemd kills the daemon.
    /// Cancel-safe.
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

    /// Reads the configuration again, and returns the settings. The caller applies them,
    /// then calls [`Service::ready`].
    pub fn reload(&mut self) -> &T {
        notify::reloading();
        self.loaded = load(&self.schema, &self.root);
        report(&self.loaded.problems);
        &self.loaded.settings
    }

    /// Reads the configuration again before the daemon is ready, and returns true if it
    /// changed. systemd merges a reload of a starting unit into the start.
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

    /// Reports that the daemon is ready, or that a reload is applied.
    pub fn ready(&self) {
        notify::ready();
    }

    /// Shows one line in `systemctl status`, followed by the problems of the
    /// configuration.
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

/// Runs daemon `buildos-NAME`: parses arguments, starts logging, reads the configuration,
/// and runs `run` in a single-threaded runtime. If an error has [`Refused`] among its
/// causes, systemd does not restart the daemon.
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

/// Result of a dry run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Description of the daemon's actions: the output of `--print`.
    pub text: String,
    /// Problems of settings that are valid one by one, one line each. `--check` and
    /// `--print` show them and exit 1.
    pub problems: Vec<String>,
}

/// Runs a daemon dry, below `root` instead of `/`.
type Inspect<T> = fn(settings: &T, root: &Path) -> Inspection;

/// As [`main`], for a daemon with `--print`.
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
    logging::init_limited(&identifier);
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))
        .and_then(|runtime| {
            runtime.block_on(async {
                let service = Service::new(schema, Path::new("/"))
                    .map_err(|e| format!("cannot handle signals: {e}"))?;
                tokio::spawn(journal::report_held());
                tokio::spawn(heap::trim_after_start());
                Ok(run(service).await)
            })
        });
    notify::stopping();
    let status = exit_status(result);
    journal::flush();
    status
}

/// Reports an error, and returns the exit status.
fn exit_status<E: std::error::Error>(result: Result<Result<(), E>, String>) -> ExitCode {
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => match Refused::find(&error) {
            Some(refused) => {
                failed(refused.message_id, &text::chain(&error));
                ExitCode::from(EX_CONFIG)
            }
            None => failed(MESSAGE_FAILED, &text::chain(&error)),
        },
        Err(error) => failed(MESSAGE_FAILED, &error),
    }
}

/// Reports to systemd and the journal why the daemon ends.
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

/// Reads the configuration and prints its problems. If `prints`, also prints the result
/// of the dry run.
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
            "  --print    the same, and print what the daemon would do\n",
            "--check and --print",
        )
    } else {
        ("--check", "", "--check")
    };
    let mut out = format!(
        "Usage: buildos-{name} [{inspect}] [--root DIRECTORY] [--help] [--version]\n\n\
         Without arguments: runs the daemon; systemd does that, see buildos-{name}.service.\n  \
         --check    read the configuration, print its problems, exit 1 if there are any\n\
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

/// Returns a timer of half the watchdog's limit (sd_watchdog_enabled(3)).
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
