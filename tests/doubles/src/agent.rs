//! The agent: asks every controller in turn, for ever, and runs what they give.

use crate::build_machine::{Guest, GuestError};
use crate::command_line::Options;
use crate::container;
use crate::controller::{Controller, Priority, in_order};
use crate::controller_client::{Client, Task, request};
use crate::faults::Mischief;
use crate::log::{Log, chain};
use crate::machine_list;
use crate::manifest::{self, Manifest};
use crate::sudo::ToolError;
use crate::tap::Tap;
use crate::tftp::{self, TransferError};
use crate::tftp_redirect::Redirect;
use crate::virtual_machine::Hypervisor;
use crate::worker;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use ureq::http::Uri;

/// Exit status of a crash that was asked for (EX_SOFTWARE of sysexits.h).
const CRASH: i32 = 70;

/// An agent with its machines found.
#[derive(Debug)]
pub struct Agent {
    options: Arc<Options>,
    /// What runs the machines of tasks; containers if there is none.
    hypervisor: Option<Arc<Hypervisor>>,
    mischief: Mischief,
    log: Log,
    client: Arc<Client>,
    body: String,
    machines: Vec<Manifest>,
    /// The last result of each controller: what repeats is not logged again.
    last: HashMap<Uri, String>,
    rounds: u32,
    tasks: Tasks,
}

/// The tasks that run.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<(Mutex<Vec<Running>>, Condvar)>);

#[derive(Debug)]
struct Running {
    priority: Priority,
    interrupted: Arc<AtomicBool>,
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, Vec<Running>> {
        // A task that panicked has been taken out of the list nevertheless.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn priorities(&self) -> Vec<Priority> {
        self.lock().iter().map(|task| task.priority).collect()
    }

    /// Ends all of them, and waits until what they made is gone.
    pub fn interrupt_all(&self) {
        let mut tasks = self.lock();
        while !tasks.is_empty() {
            for task in tasks.iter() {
                task.interrupted.store(true, Ordering::Relaxed);
            }
            let waited = self.0.1.wait(tasks);
            tasks = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn begin(&self, priority: Priority) -> Arc<AtomicBool> {
        let interrupted = Arc::new(AtomicBool::new(false));
        self.lock().push(Running {
            priority,
            interrupted: Arc::clone(&interrupted),
        });
        interrupted
    }

    fn end(&self, task: &Arc<AtomicBool>) {
        self.lock()
            .retain(|running| !Arc::ptr_eq(&running.interrupted, task));
        self.0.1.notify_all();
    }
}

/// A task could not be given to a worker.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("cannot serve TFTP")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("cannot redirect TFTP")]
    Redirect(#[from] ToolError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("the worker's result is no manifest")]
    Result(#[from] manifest::ParseError),
}

impl Agent {
    /// Finds the machines.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn new(
        options: Options,
        hypervisor: Option<Hypervisor>,
        mischief: Mischief,
        log: Log,
        name: &str,
    ) -> Result<Self, machine_list::MachineError> {
        let machines = match &options.fake_machine {
            Some(file) => machine_list::fake(file)?,
            None => machine_list::list(&options.machines)?,
        };
        let body = request(&options, name, &machines);
        let client = Client::new(Duration::from_secs(options.request_timeout));
        Ok(Self {
            options: Arc::new(options),
            hypervisor: hypervisor.map(Arc::new),
            mischief,
            log,
            client: Arc::new(client),
            body,
            machines,
            last: HashMap::new(),
            rounds: 0,
            tasks: Tasks::default(),
        })
    }

    /// The manifests of the machines.
    #[must_use]
    pub fn machines(&self) -> String {
        manifest::write(&self.machines)
    }

    /// The tasks that run.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Polls until the process ends, `interval` after the end of each round.
    pub fn poll(&mut self, interval: Duration) -> ! {
        self.log.info(format_args!(
            "toolchain {}, {} machine(s), bridge {}, {} controller(s)",
            self.options.toolchain_name,
            self.machines.len(),
            self.options.bridge,
            self.options.controllers.len(),
        ));
        loop {
            if self.mischief.hang {
                std::thread::park();
                continue;
            }
            if self.mischief.leak {
                if let Err(error) = leak(&self.options.bridge) {
                    self.log.error(chain(&error));
                }
            }
            for (task, priority) in self.round() {
                self.start(task, priority);
            }
            self.rounds += 1;
            if self.mischief.crash_after.is_some_and(|n| self.rounds >= n) {
                self.log.error("crashes, as it was told to");
                std::process::exit(CRASH);
            }
            std::thread::sleep(interval);
        }
    }

    /// Asks every controller once; the tasks that were given, and their urgency.
    pub fn round(&mut self) -> Vec<(Task, Priority)> {
        let lot = RandomState::new();
        let mut tasks: Vec<(Task, Priority)> = Vec::new();
        let limit = usize::try_from(self.options.instance_max).unwrap_or(usize::MAX);
        let options = Arc::clone(&self.options);
        for controller in in_order(&options.controllers, |index| lot.hash_one(index)) {
            let Controller { priority, url } = controller;
            let mut running = self.tasks.priorities();
            running.extend(tasks.iter().map(|(_, priority)| *priority));
            if !priority.may_ask(&running, limit) {
                continue;
            }
            let (warn, result) = match self.client.ask(url, &self.body) {
                Ok(None) => (false, "nothing to do".to_owned()),
                Ok(Some(task)) => {
                    let name = task.manifest.get("name").unwrap_or_default();
                    let result = format!("task {} to build {name}", task.session);
                    tasks.push((task, *priority));
                    (false, result)
                }
                Err(error) => (true, chain(&error)),
            };
            let news = self.last.get(url) != Some(&result);
            if news && warn {
                self.log
                    .warning(format_args!("{url} (priority {priority}): {result}"));
            } else if news || self.options.verbose >= 2 {
                self.log
                    .info(format_args!("{url} (priority {priority}): {result}"));
            }
            self.last.insert(url.clone(), result);
        }
        tasks
    }

    /// Runs a task beside the polling, after what it interrupts.
    fn start(&self, task: Task, priority: Priority) {
        let limit = usize::try_from(self.options.instance_max).unwrap_or(usize::MAX);
        let ends = priority.interrupts(&self.tasks.priorities(), limit);
        for (place, running) in self.tasks.lock().iter().enumerate() {
            if ends.contains(&place) {
                running.interrupted.store(true, Ordering::Relaxed);
            }
        }
        let interrupted = self.tasks.begin(priority);
        let (options, client) = (Arc::clone(&self.options), Arc::clone(&self.client));
        let hypervisor = self.hypervisor.clone();
        let (tasks, log, slow) = (self.tasks.clone(), self.log, self.mischief.slow);
        std::thread::spawn(move || {
            let session = &task.session;
            let result = match build(&options, hypervisor.as_deref(), &task, slow, &interrupted) {
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
            match client.post(&task.result_url, &task.result(result)) {
                Ok(_) => log.info(format_args!("task {session}: {status}")),
                Err(error) => log.error(format_args!(
                    "task {session}: {status}, which cannot be told: {}",
                    chain(&error)
                )),
            }
            tasks.end(&interrupted);
        });
    }
}

/// Has a worker do the task in a machine; what it says, if it does.
fn build(
    options: &Options,
    hypervisor: Option<&Hypervisor>,
    task: &Task,
    slow: Duration,
    interrupted: &AtomicBool,
) -> Result<Option<Manifest>, BuildError> {
    let socket = UdpSocket::bind(("0.0.0.0", options.tftp_port))?;
    let port = socket.local_addr()?.port();
    let name = container::unique_name();
    let directory = format!("/tmp/{name}-build");
    let seconds = slow.as_secs().to_string();
    let arguments = ["--startup", "--build", &directory, "--slow", &seconds];
    let mut machine = Guest::start(hypervisor, &name, &options.bridge, &arguments)?;
    let redirect = Redirect::new(machine.link(), port)?;
    let given = manifest::write(std::slice::from_ref(&task.manifest));
    let mut ended = || interrupted.load(Ordering::Relaxed) || machine.ended().is_some();
    let result = tftp::serve(
        &socket,
        (worker::TASK, given.as_bytes()),
        worker::RESULT,
        &mut ended,
    )?;
    drop(redirect);
    let Some(result) = result.filter(|_| !interrupted.load(Ordering::Relaxed)) else {
        return Ok(None);
    };
    let manifests = manifest::parse(&String::from_utf8_lossy(&result))?;
    Ok(manifests.into_iter().next())
}

/// Makes a tap and a redirection that nobody takes away.
fn leak(bridge: &str) -> Result<(), ToolError> {
    let tap = Tap::new(&container::unique_name(), bridge)?;
    std::mem::forget(Redirect::new(tap.name(), 1)?);
    std::mem::forget(tap);
    Ok(())
}
