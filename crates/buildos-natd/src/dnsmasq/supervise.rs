//! Runs dnsmasq with the configuration that natd desires: the program `buildos-dnsmasq`,
//! main process of buildos-dnsmasq.service.
//!
//! | event | action |
//! |---|---|
//! | natd writes the first configuration | copy it, start dnsmasq |
//! | natd writes a different configuration | stop dnsmasq, copy it, start dnsmasq |
//! | dnsmasq writes its PID file | `READY=1` |
//! | dnsmasq ends | end with its exit status |
//! | SIGTERM, SIGINT | stop dnsmasq, end |
//! | SIGHUP, SIGUSR1, SIGUSR2 | pass the signal to dnsmasq |
//!
//! Without a configuration the supervisor is ready at once and waits for one. It does not
//! need natd to run.
//!
//! systemd does the rest: it restarts the supervisor after a failure, with increasing
//! delays (`Restart=`, `RestartSteps=`), and ends dnsmasq with the supervisor, as both are
//! in one control group.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use buildos_service::file::{self, WriteError};
use buildos_service::file_watch::{FileWatch, FileWatchError};
use buildos_service::{notify, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::timeout;

use crate::dnsmasq::paths::{ACTIVE, DESIRED, PID};

/// Name of the program, in the journal too.
const NAME: &str = "buildos-dnsmasq";
/// The program that is supervised, found in `PATH`.
const DNSMASQ: &str = "dnsmasq";
/// Time limit for dnsmasq to end after SIGTERM, before SIGKILL. dnsmasq normally ends
/// within milliseconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of the configuration, bytes.
const LIMIT: usize = 1 << 20;

/// Error that ends the supervisor.
#[derive(Debug, thiserror::Error)]
enum SuperviseError {
    /// Signals cannot be received.
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    /// The configuration cannot be watched.
    #[error(transparent)]
    Watch(#[from] FileWatchError),
    /// The configuration exists, but cannot be read.
    #[error("cannot read /{DESIRED}")]
    Read(#[source] io::Error),
    /// The configuration cannot be copied.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// dnsmasq cannot be executed.
    #[error("cannot start {DNSMASQ}")]
    Start(#[source] io::Error),
    /// The end of dnsmasq cannot be awaited.
    #[error("cannot wait for {DNSMASQ}")]
    Wait(#[source] io::Error),
}

/// Runs the supervisor.
#[must_use]
pub fn main() -> ExitCode {
    buildos_service::log_to_journal(NAME);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .map_err(SuperviseError::Signals)
        .and_then(|runtime| runtime.block_on(run(Path::new("/"), DNSMASQ)));
    result.unwrap_or_else(|error| {
        let error = text::chain(&error);
        notify::status(&error);
        tracing::error!("{error}");
        ExitCode::FAILURE
    })
}

async fn run(root: &Path, program: &str) -> Result<ExitCode, SuperviseError> {
    let mut signals = Signals::new().map_err(SuperviseError::Signals)?;
    let watch = FileWatch::new(root, &[DESIRED, PID])?;
    let mut supervisor = Supervisor::new(root, program);
    supervisor.remove_pid_file();
    loop {
        watch.add_directories()?;
        supervisor.reconcile().await?;
        supervisor.publish_status();
        tokio::select! {
            biased;
            request = signals.next() => match request {
                Request::Stop => {
                    supervisor.stop().await?;
                    return Ok(ExitCode::SUCCESS);
                }
                Request::Pass(signal) => supervisor.signal(signal),
            },
            status = supervisor.ended() => {
                let status = status?;
                tracing::warn!("{DNSMASQ} ended: {status}");
                return Ok(exit_code(status));
            }
            changed = watch.changed() => changed?,
        }
    }
}

/// A request of systemd or an operator.
enum Request {
    /// SIGTERM or SIGINT.
    Stop,
    /// A signal for dnsmasq.
    Pass(Signal),
}

/// The signals that the supervisor handles.
struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
    user1: unix::Signal,
    user2: unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for a signal. Cancel-safe.
    async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Pass(Signal::SIGHUP),
            _ = self.user1.recv() => Request::Pass(Signal::SIGUSR1),
            _ = self.user2.recv() => Request::Pass(Signal::SIGUSR2),
        }
    }
}

struct Supervisor {
    root: PathBuf,
    program: String,
    dnsmasq: Option<Running>,
    /// The last text sent as `STATUS=`.
    status: &'static str,
}

struct Running {
    process: Child,
    configuration: Vec<u8>,
}

impl Supervisor {
    fn new(root: &Path, program: &str) -> Self {
        Self {
            root: root.to_owned(),
            program: program.to_owned(),
            dnsmasq: None,
            status: "",
        }
    }

    /// Starts dnsmasq, or restarts it if it runs with a configuration other than the
    /// desired one.
    async fn reconcile(&mut self) -> Result<(), SuperviseError> {
        let desired = match file::read_bounded(&self.root.join(DESIRED), LIMIT) {
            Ok(desired) => desired,
            // natd has not written it yet, or an operator removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(SuperviseError::Read(error)),
        };
        if let Some(running) = &self.dnsmasq {
            if running.configuration == desired {
                return Ok(());
            }
            tracing::info!("restarting {DNSMASQ}: its configuration changed");
            self.stop().await?;
        }
        self.start(desired)
    }

    fn start(&mut self, configuration: Vec<u8>) -> Result<(), SuperviseError> {
        let active = self.root.join(ACTIVE);
        file::replace(&active, &configuration, 0o644)?;
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let process = Command::new(&self.program)
            .arg("--keep-in-foreground")
            .arg(option("conf-file", &active))
            .arg(option("pid-file", &self.root.join(PID)))
            .kill_on_drop(true)
            .spawn()
            .map_err(SuperviseError::Start)?;
        self.dnsmasq = Some(Running {
            process,
            configuration,
        });
        Ok(())
    }

    /// Stops dnsmasq, if it runs.
    async fn stop(&mut self) -> Result<(), SuperviseError> {
        self.signal(Signal::SIGTERM);
        if let Some(mut running) = self.dnsmasq.take() {
            let process = &mut running.process;
            let ended = match timeout(STOP_TIMEOUT, process.wait()).await {
                Ok(ended) => ended.map(drop),
                Err(_elapsed) => process.kill().await,
            };
            ended.map_err(SuperviseError::Wait)?;
        }
        self.remove_pid_file();
        Ok(())
    }

    /// Sends a signal to dnsmasq, if it runs.
    fn signal(&self, signal: Signal) {
        let process = self
            .dnsmasq
            .as_ref()
            .and_then(|running| running.process.id());
        let Some(pid) = process.and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            tracing::warn!("cannot send {signal} to {DNSMASQ}: {error}");
        }
    }

    /// Waits until dnsmasq has ended. Cancel-safe.
    async fn ended(&mut self) -> Result<ExitStatus, SuperviseError> {
        let Some(running) = &mut self.dnsmasq else {
            return std::future::pending().await;
        };
        let status = running.process.wait().await;
        self.remove_pid_file();
        status.map_err(SuperviseError::Wait)
    }

    /// Removes the PID file of a dnsmasq that was killed.
    fn remove_pid_file(&self) {
        match std::fs::remove_file(self.root.join(PID)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("cannot remove /{PID}: {error}"),
        }
    }

    /// Sends `STATUS=` if it changed, and `READY=1` unless dnsmasq is starting.
    fn publish_status(&mut self) {
        let serving = self.root.join(PID).exists();
        let (status, ready) = match self.dnsmasq {
            None => ("waiting for a configuration from buildos-natd", true),
            Some(_) if serving => ("dnsmasq serves", true),
            Some(_) => ("dnsmasq starts", false),
        };
        if status == self.status {
            return;
        }
        self.status = status;
        notify::status(status);
        if ready {
            notify::ready();
        }
    }
}

/// Returns dnsmasq's exit status. For a signal this is 128 plus its number, as in shells.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128_i32.saturating_add(signal),
        (None, None) => 1,
    };
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use tempfile::TempDir;

    /// Stand-in for dnsmasq: serves until SIGTERM, and fails if its configuration is
    /// "bad". A shell cannot trap a signal that its parent ignores, as nohup(1) has it.
    const DOUBLE: &str = r#"#!/usr/bin/env -S --default-signal=HUP sh
for option; do
    case $option in
    --conf-file=*) configuration=${option#*=} ;;
    --pid-file=*) pid=${option#*=} ;;
    esac
done
read -r line <"$configuration"
test "$line" != bad || exit 3
echo "$line" >>"${0%/*}/starts"
trap 'rm "$pid"; exit 0' TERM
trap 'echo HUP >>"${0%/*}/starts"' HUP
echo $$ >"$pid"
while :; do sleep 0.05; done
"#;

    struct Trial {
        root: TempDir,
        supervisor: Supervisor,
    }

    impl Trial {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for directory in ["run/buildos/natd", "run/buildos/dnsmasq"] {
                fs::create_dir_all(root.path().join(directory)).unwrap();
            }
            let program = root.path().join("double");
            fs::write(&program, DOUBLE).unwrap();
            fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
            let supervisor = Supervisor::new(root.path(), program.to_str().unwrap());
            Self { root, supervisor }
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.root.path().join(path)).unwrap_or_default()
        }

        async fn configure(&mut self, configuration: &str) {
            fs::write(self.root.path().join(DESIRED), configuration).unwrap();
            self.supervisor.reconcile().await.unwrap();
        }

        async fn wait_for(&self, path: &str, part: &str) {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
            while !self.read(path).contains(part) {
                assert!(
                    tokio::time::Instant::now() < deadline,
                    "no {part:?} in {path}"
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }

        /// Waits until dnsmasq serves; returns the status that systemd gets.
        async fn serving(&mut self) -> &'static str {
            self.wait_for(PID, "\n").await;
            self.supervisor.publish_status();
            self.supervisor.status
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn supervisor_without_configuration_waits() {
        let mut trial = Trial::new();
        trial.supervisor.reconcile().await.unwrap();
        trial.supervisor.publish_status();
        assert!(trial.supervisor.dnsmasq.is_none());
        assert_eq!(
            trial.supervisor.status,
            "waiting for a configuration from buildos-natd"
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn supervisor_restarts_dnsmasq_when_configuration_changes() {
        let mut trial = Trial::new();
        trial.configure("one\n").await;
        assert_eq!(trial.serving().await, "dnsmasq serves");
        assert_eq!(trial.read(ACTIVE), "one\n");
        let pid = trial.read(PID);
        trial.configure("one\n").await;
        assert_eq!(trial.read(PID), pid, "equal configuration");
        trial.configure("two\n").await;
        trial.serving().await;
        assert_eq!(trial.read(ACTIVE), "two\n");
        assert_eq!(trial.read("starts"), "one\ntwo\n");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn supervisor_keeps_dnsmasq_when_configuration_is_removed() {
        let mut trial = Trial::new();
        trial.configure("one\n").await;
        trial.serving().await;
        fs::remove_file(trial.root.path().join(DESIRED)).unwrap();
        trial.supervisor.reconcile().await.unwrap();
        assert!(trial.supervisor.dnsmasq.is_some());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn stop_ends_dnsmasq_and_removes_pid_file() {
        let mut trial = Trial::new();
        trial.configure("one\n").await;
        trial.serving().await;
        trial.supervisor.stop().await.unwrap();
        assert!(!trial.root.path().join(PID).exists());
        assert!(trial.supervisor.dnsmasq.is_none());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn hangup_is_passed_to_dnsmasq() {
        let mut trial = Trial::new();
        trial.configure("one\n").await;
        trial.serving().await;
        trial.supervisor.signal(Signal::SIGHUP);
        trial.wait_for("starts", "HUP").await;
        assert!(trial.supervisor.dnsmasq.is_some());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn end_of_dnsmasq_ends_supervisor_with_its_status() {
        let mut trial = Trial::new();
        trial.configure("bad\n").await;
        let status = trial.supervisor.ended().await.unwrap();
        assert_eq!(exit_code(status), ExitCode::from(3));

        trial.supervisor.dnsmasq = None;
        trial.configure("good\n").await;
        trial.serving().await;
        trial.supervisor.signal(Signal::SIGKILL);
        let status = trial.supervisor.ended().await.unwrap();
        assert_eq!(exit_code(status), ExitCode::from(137));
        assert!(!trial.root.path().join(PID).exists());
    }
}
