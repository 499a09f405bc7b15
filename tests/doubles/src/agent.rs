//! Polls every controller and runs the tasks that they hand out.

use crate::agent_key::AgentKey;
use crate::auxiliary::{self, Auxiliary, AuxiliaryError};
use crate::build_machine::{BuildMachine, BuildMachineError};
use crate::command_line::Options;
use crate::container;
use crate::controller::{Controller, Priority, in_order};
use crate::controller_client::{Client, RequestError, Task, task_request};
use crate::faults::Faults;
use crate::log::{Log, chain};
use crate::machine_list;
use crate::manifest::{self, Manifest};
use crate::running_tasks::RunningTasks;
use crate::snapshot::Snapshot;
use crate::sudo::ToolError;
use crate::tap::Tap;
use crate::tftp::{self, TransferError};
use crate::tftp_redirect::TftpRedirect;
use crate::virtual_machine::Hypervisor;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ureq::http::Uri;

/// Time between two looks whether a suspended task is interrupted.
const SUSPENDED_INTERVAL: Duration = Duration::from_millis(200);
/// Exit status of an injected crash (EX_SOFTWARE of sysexits.h).
const CRASH_STATUS: i32 = 70;

/// An agent that offers build machines to its controllers.
#[derive(Debug)]
pub struct Agent {
    options: Arc<Options>,
    /// Key that signs challenges.
    key: Option<Arc<AgentKey>>,
    /// Hypervisor of the build machines; containers without one.
    hypervisor: Option<Arc<Hypervisor>>,
    faults: Faults,
    log: Log,
    client: Arc<Client>,
    /// Name of the host.
    name: String,
    machines: Vec<Manifest>,
    /// Last result of each controller; a repeated result is not logged.
    last_results: HashMap<Uri, String>,
    rounds: u32,
    tasks: RunningTasks,
}

/// A task was not completed by a worker.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("cannot serve TFTP")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Machine(#[from] BuildMachineError),
    #[error(transparent)]
    Auxiliary(#[from] AuxiliaryError),
    #[error("cannot snapshot the machine")]
    Snapshot(#[source] ToolError),
    #[error("cannot redirect TFTP")]
    Redirect(#[from] ToolError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("the worker's result is not a manifest")]
    Result(#[from] manifest::ParseError),
}

/// A result did not reach its controller.
#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error("the controller demands a signature, but --auth-key is missing")]
    NoKey,
    #[error("cannot sign")]
    Key(#[from] ToolError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl Agent {
    /// Returns an agent with the machines that the options name.
    ///
    /// # Errors
    ///
    /// The machines cannot be read.
    pub fn new(
        options: Options,
        key: Option<AgentKey>,
        hypervisor: Option<Hypervisor>,
        faults: Faults,
        log: Log,
        name: &str,
    ) -> Result<Self, machine_list::MachineError> {
        let machines = list(&options)?;
        let client = Client::new(Duration::from_secs(options.request_timeout));
        Ok(Self {
            options: Arc::new(options),
            key: key.map(Arc::new),
            hypervisor: hypervisor.map(Arc::new),
            faults,
            log,
            client: Arc::new(client),
            name: name.to_owned(),
            machines,
            last_results: HashMap::new(),
            rounds: 0,
            tasks: RunningTasks::default(),
        })
    }

    /// Returns the manifests of the machines.
    #[must_use]
    pub fn machines(&self) -> String {
        manifest::write(&self.machines)
    }

    /// Returns the running tasks.
    #[must_use]
    pub fn tasks(&self) -> RunningTasks {
        self.tasks.clone()
    }

    /// Polls until the process ends, with `interval` between two rounds.
    pub fn poll(&mut self, interval: Duration) -> ! {
        self.log.info(format_args!(
            "toolchain {}, {} machine(s), bridge {}, {} controller(s)",
            self.options.toolchain_name,
            self.machines.len(),
            self.options.bridge,
            self.options.controllers.len(),
        ));
        loop {
            if self.faults.hang {
                std::thread::park();
                continue;
            }
            if self.faults.leak {
                if let Err(error) = leak(&self.options.bridge) {
                    self.log.error(chain(&error));
                }
            }
            for (task, priority) in self.round() {
                self.start(task, priority);
            }
            self.rounds += 1;
            if self.faults.crash_after.is_some_and(|n| self.rounds >= n) {
                self.log.error("injected crash");
                std::process::exit(CRASH_STATUS);
            }
            std::thread::sleep(interval);
        }
    }

    /// Lists the machines, polls every controller once and returns the tasks handed out, with their
    /// priority.
    pub fn round(&mut self) -> Vec<(Task, Priority)> {
        match list(&self.options) {
            Ok(machines) => self.machines = machines,
            Err(error) => self.log.warning(chain(&error)),
        }
        let request = task_request(
            &self.options,
            &self.name,
            self.key.as_deref().map(AgentKey::fingerprint),
            &self.machines,
        );
        let random = RandomState::new();
        let mut tasks: Vec<(Task, Priority)> = Vec::new();
        let limit = usize::try_from(self.options.instance_max).unwrap_or(usize::MAX);
        let options = Arc::clone(&self.options);
        for controller in in_order(&options.controllers, |index| random.hash_one(index)) {
            let Controller { priority, url } = controller;
            let mut running = self.tasks.priorities();
            running.extend(tasks.iter().map(|(_, priority)| *priority));
            if !priority.may_poll(&running, limit) {
                continue;
            }
            let (is_warning, result) = match self.client.request_task(url, &request) {
                Ok(None) => (false, "nothing to do".to_owned()),
                Ok(Some(task)) => {
                    let name = task.manifest.get("name").unwrap_or_default();
                    let result = format!("task {} to build {name}", task.session);
                    tasks.push((task, *priority));
                    (false, result)
                }
                Err(error) => (true, chain(&error)),
            };
            let is_new = self.last_results.get(url) != Some(&result);
            if is_new && is_warning {
                self.log
                    .warning(format_args!("{url} (priority {priority}): {result}"));
            } else if is_new || self.options.verbose >= 2 {
                self.log
                    .info(format_args!("{url} (priority {priority}): {result}"));
            }
            self.last_results.insert(url.clone(), result);
        }
        tasks
    }

    /// Runs a task in its own thread and interrupts the tasks that have to end for it.
    fn start(&self, task: Task, priority: Priority) {
        let limit = usize::try_from(self.options.instance_max).unwrap_or(usize::MAX);
        let interrupted = priority.interrupts(&self.tasks.priorities(), limit);
        self.tasks.interrupt(&interrupted);
        let interrupted = self.tasks.begin(priority);
        let (options, client) = (Arc::clone(&self.options), Arc::clone(&self.client));
        let (hypervisor, key) = (self.hypervisor.clone(), self.key.clone());
        let (tasks, log, faults) = (self.tasks.clone(), self.log, self.faults);
        std::thread::spawn(move || {
            let session = &task.session;
            let result = match build(&options, hypervisor.as_deref(), &task, faults, &interrupted) {
                Ok(result) => result,
                Err(error) => {
                    log.error(format_args!("task {session}: {}", chain(&error)));
                    None
                }
            };
            let result = result.unwrap_or_else(|| {
                let interrupted = interrupted.load(Ordering::Relaxed);
                task.without_worker(if interrupted { "interrupt" } else { "abnormal" })
            });
            let status = result.get("status").unwrap_or_default().to_owned();
            match deliver(&client, key.as_deref(), &task, result, log) {
                Ok(()) => log.info(format_args!("task {session}: {status}")),
                Err(error) => log.error(format_args!(
                    "task {session}: {status}, but the controller did not take the result: {}",
                    chain(&error)
                )),
            }
            tasks.end(&interrupted);
        });
    }
}

/// Returns the manifests of the machines that the options name.
fn list(options: &Options) -> Result<Vec<Manifest>, machine_list::MachineError> {
    match &options.fake_machine {
        Some(file) => machine_list::fake(file),
        None => machine_list::list(&options.machines),
    }
}

/// Uploads an archive of each type that the controller takes, then sends the result.
fn deliver(
    client: &Client,
    key: Option<&AgentKey>,
    task: &Task,
    result: Manifest,
    log: Log,
) -> Result<(), DeliveryError> {
    let signature = match (&task.challenge, key) {
        (Some(challenge), Some(key)) => Some(key.sign(challenge)?),
        (Some(_), None) => return Err(DeliveryError::NoKey),
        (None, _) => None,
    };
    for (kind, url) in &task.upload_urls {
        let archive = manifest::write(std::slice::from_ref(&result));
        let body = task.upload(kind, signature.as_deref(), &archive)?;
        // A refused upload is no reason to lose the result.
        if let Err(error) = client.upload(url, &body) {
            let session = &task.session;
            log.warning(format_args!(
                "task {session}: upload {kind}: {}",
                chain(&error)
            ));
        }
    }
    client.post(&task.result_url, &task.result(signature.as_deref(), result))?;
    Ok(())
}

/// Runs a worker for the task in a build machine and returns its result. `None` if the
/// worker ended without one, or the task was interrupted.
fn build(
    options: &Options,
    hypervisor: Option<&Hypervisor>,
    task: &Task,
    faults: Faults,
    interrupted: &AtomicBool,
) -> Result<Option<Manifest>, BuildError> {
    let is_interrupted = || interrupted.load(Ordering::Relaxed);
    if faults.suspend {
        let _machine = BuildMachine::suspended(&container::unique_name(), &options.bridge)?;
        while !is_interrupted() {
            std::thread::sleep(SUSPENDED_INTERVAL);
        }
        return Ok(None);
    }
    let start = |name| Auxiliary::start(hypervisor, &options.bridge, name, &is_interrupted);
    let names = auxiliary::names(&task.manifest).into_iter();
    let auxiliary = names.map(start).collect::<Result<Vec<_>, _>>()?;
    let mut request = task.manifest.clone();
    if !auxiliary.is_empty() {
        let environments: Vec<_> = auxiliary.iter().map(|a| a.environment.as_str()).collect();
        request = request.with_lines(auxiliary::ENVIRONMENT, &environments.join("\n"));
    }
    let socket = UdpSocket::bind(("0.0.0.0", options.tftp_port))?;
    let port = socket.local_addr()?.port();
    let name = container::unique_name();
    let directory = format!("/tmp/{name}-build");
    let seconds = faults.slow.as_secs().to_string();
    let mut arguments = vec!["--startup", "--build", &directory, "--slow", &seconds];
    // It is deleted after the end of the machine, which uses it.
    let snapshot = snapshot(options, hypervisor, task, &name).map_err(BuildError::Snapshot)?;
    let path = snapshot.as_ref().map(|s| s.path().display().to_string());
    if let Some(path) = &path {
        arguments.extend(["--machine", path]);
    }
    let mut machine = BuildMachine::start(hypervisor, &name, &options.bridge, &arguments)?;
    let redirect = TftpRedirect::new(machine.link(), port)?;
    let request = manifest::write(&[request]);
    let mut is_over = || is_interrupted() || machine.ended().is_some();
    let result = tftp::serve(
        &socket,
        (tftp::TASK_FILE, request.as_bytes()),
        tftp::RESULT_FILE,
        &mut is_over,
    )?;
    drop(redirect);
    let Some(result) = result.filter(|_| !is_interrupted()) else {
        return Ok(None);
    };
    let manifests = manifest::parse(&String::from_utf8_lossy(&result))?;
    Ok(manifests.into_iter().next())
}

/// Makes a snapshot of the machine of a task, if the task runs in it: containers only.
fn snapshot(
    options: &Options,
    hypervisor: Option<&Hypervisor>,
    task: &Task,
    suffix: &str,
) -> Result<Option<Snapshot>, ToolError> {
    let name = task.manifest.get("machine").unwrap_or_default();
    let revision = match hypervisor {
        Some(_) => None,
        None => machine_list::revision(&options.machines, name),
    };
    revision.map(|r| Snapshot::new(&r, suffix)).transpose()
}

/// Port of the redirection that is left behind.
const UNUSED_PORT: u16 = 23_499;

/// Creates a tap and a redirection, and leaves them behind.
fn leak(bridge: &str) -> Result<(), ToolError> {
    let tap = Tap::new(&container::unique_name(), bridge)?;
    std::mem::forget(TftpRedirect::new(tap.name(), UNUSED_PORT)?);
    std::mem::forget(tap);
    Ok(())
}
