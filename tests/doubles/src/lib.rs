//! Stand-ins for bbot-agent and bslave.
//!
//! Neither program is in Debian, and neither can build anything without build
//! machines and a controller on the Internet. These doubles take the same
//! command lines and show the same behaviour to the host that runs them: they
//! start, poll their controllers, log, and end on SIGTERM. The agent builds small C
//! programs: each task has a worker ([`worker`]) in a machine ([`guest`]) of its own, in
//! QEMU or a container, which gets its task by TFTP ([`tftp`]) through a redirection
//! ([`redirect`]).

pub mod agent;
pub mod build_machine;
pub mod command_line;
pub mod container;
pub mod controller;
pub mod controller_client;
pub mod faults;
pub mod initramfs;
pub mod log;
pub mod machine_list;
pub mod manifest;
pub mod sudo;
pub mod tap;
pub mod tftp;
pub mod tftp_redirect;
pub mod udhcpc;
pub mod virtual_machine;
pub mod worker;

use std::io;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The wish of systemd, or of somebody at a terminal, that the program ends.
#[derive(Debug)]
pub struct End {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    /// Takes the signals over: from now on they do not kill the program.
    ///
    /// # Errors
    ///
    /// The signal handlers or the event loop cannot be set up.
    pub fn listen() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (terminate, interrupt) = {
            let _entered = runtime.enter();
            (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
            )
        };
        Ok(Self {
            runtime,
            terminate,
            interrupt,
        })
    }

    /// Waits for SIGTERM or SIGINT.
    pub fn wait(mut self) {
        self.runtime.block_on(async {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
        });
    }
}
