//! The agent: asks every controller in turn, for ever.

use crate::controller::in_order;
use crate::log::{Log, chain};
use crate::machine;
use crate::manifest::{self, Manifest};
use crate::options::Options;
use crate::task::{Client, request};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use ureq::http::Uri;

/// An agent with its machines found.
#[derive(Debug)]
pub struct Agent {
    options: Options,
    log: Log,
    client: Client,
    body: String,
    machines: Vec<Manifest>,
    /// The last result of each controller: what repeats is not logged again.
    last: HashMap<Uri, String>,
}

impl Agent {
    /// Finds the machines.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn new(options: Options, log: Log, name: &str) -> Result<Self, machine::MachineError> {
        let machines = match &options.fake_machine {
            Some(file) => machine::fake(file)?,
            None => machine::list(&options.machines)?,
        };
        let body = request(&options, name, &machines);
        let client = Client::new(Duration::from_secs(options.request_timeout));
        Ok(Self {
            options,
            log,
            client,
            body,
            machines,
            last: HashMap::new(),
        })
    }

    /// The manifests of the machines.
    #[must_use]
    pub fn machines(&self) -> String {
        manifest::write(&self.machines)
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
            self.round();
            std::thread::sleep(interval);
        }
    }

    /// Asks every controller once; the tasks that were given.
    pub fn round(&mut self) -> Vec<String> {
        let lot = RandomState::new();
        let mut tasks = Vec::new();
        for controller in in_order(&self.options.controllers, |index| lot.hash_one(index)) {
            let url = &controller.url;
            let (warn, result) = match self.client.ask(url, &self.body) {
                Ok(None) => (false, "nothing to do".to_owned()),
                Ok(Some(task)) => {
                    tasks.push(task);
                    (
                        true,
                        "a task, which this stand-in for bbot-agent cannot build".to_owned(),
                    )
                }
                Err(error) => (true, chain(&error)),
            };
            let news = self.last.get(url) != Some(&result);
            if news && warn {
                self.log.warning(format_args!(
                    "{url} (priority {}): {result}",
                    controller.priority
                ));
            } else if news || self.options.verbose >= 2 {
                self.log.info(format_args!(
                    "{url} (priority {}): {result}",
                    controller.priority
                ));
            }
            self.last.insert(url.clone(), result);
        }
        tasks
    }
}
