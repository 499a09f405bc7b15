//! Runs the stand-in for bbot-agent.

use buildos_doubles::agent::Agent;
use buildos_doubles::agent_key::AgentKey;
use buildos_doubles::build_machine::MachineKind;
use buildos_doubles::command_line::{Command, Options, parse};
use buildos_doubles::faults::Faults;
use buildos_doubles::log::{Log, chain};
use buildos_doubles::manifest;
use buildos_doubles::shutdown::ShutdownSignals;
use std::env;
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// Default time between two rounds of polls.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut log = Log::Terminal("bbot-agent");
    let result = match parse(env::args_os().skip(1)) {
        Ok(Command::Print(text)) => print(text),
        Ok(Command::Run(options)) => {
            if options.systemd_daemon {
                log = Log::Journal;
            }
            run(options, log)
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.error(chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options, log: Log) -> Result<(), Box<dyn Error>> {
    let (dump_machines, dump_task) = (options.dump_machines, options.dump_task);
    let name = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let faults: Faults = env::var("BBOT_DOUBLE_MISCHIEF")
        .unwrap_or_default()
        .parse()?;
    let kind = match env::var("BBOT_DOUBLE_MACHINE") {
        Ok(kind) => kind.parse()?,
        Err(_) => MachineKind::default(),
    };
    let kernel = env::var_os("BBOT_DOUBLE_KERNEL");
    let hypervisor = kind.hypervisor(kernel.as_deref().map(Path::new), log)?;
    let key = options
        .auth_key
        .as_deref()
        .map(AgentKey::read)
        .transpose()?;
    let mut agent = Agent::new(options, key, hypervisor, faults, log, name.trim())?;
    if dump_machines {
        return print(&agent.machines());
    }
    if dump_task {
        let manifests: Vec<_> = agent
            .round()
            .into_iter()
            .map(|(task, _)| task.manifest)
            .collect();
        return print(&manifest::write(&manifests));
    }
    let interval = match env::var("BBOT_DOUBLE_INTERVAL_MS") {
        Ok(text) => Duration::from_millis(text.parse()?),
        Err(_) => DEFAULT_INTERVAL,
    };
    let signals = ShutdownSignals::install()?;
    // The process ends even while this thread waits for a controller.
    let tasks = agent.tasks();
    thread::spawn(move || agent.poll(interval));
    signals.wait();
    if faults.ignore_term {
        log.warning("injected fault: ignores SIGTERM");
        loop {
            thread::park();
        }
    }
    tasks.interrupt_all();
    log.info("ended");
    Ok(())
}

fn print(text: &str) -> Result<(), Box<dyn Error>> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
