//! Runs the auxiliary machines of a task: services that its build needs.
//!
//! The agent starts one for each `auxiliary-machine-N` of the task. Its worker acquires a
//! lease, serves, and sends its environment by TFTP. The agent passes the environments of all
//! to the build machine as `auxiliary-environment`.
//!
//! # Limits
//!
//! What a real auxiliary machine serves depends on the machine. This one answers each
//! connection with its name. The exchange of environments is an assumption, see
//! `docs/bbot.md`.

use crate::build_machine::{BuildMachine, BuildMachineError};
use crate::container::unique_name;
use crate::manifest::{self, Manifest};
use crate::sudo::ToolError;
use crate::tftp::{self, RESULT_FILE, TASK_FILE, TransferError};
use crate::tftp_redirect::TftpRedirect;
use crate::udhcpc::{self, LeaseError};
use crate::virtual_machine::Hypervisor;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

/// Port on which an auxiliary machine serves.
pub const PORT: u16 = 7010;
/// Name in a task with the environments, one a line: `NAME=ADDRESS`.
pub const ENVIRONMENT: &str = "auxiliary-environment";
/// Limit for the answer of an auxiliary machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running auxiliary machine. Dropping it stops the machine.
#[derive(Debug)]
pub struct Auxiliary {
    _machine: BuildMachine,
    /// Its environment.
    pub environment: String,
}

/// An auxiliary machine does not serve.
#[derive(Debug, thiserror::Error)]
pub enum AuxiliaryError {
    /// TFTP cannot be served.
    #[error("cannot serve TFTP")]
    Socket(#[from] io::Error),
    /// The machine cannot be started.
    #[error(transparent)]
    Machine(#[from] BuildMachineError),
    /// TFTP cannot be redirected.
    #[error("cannot redirect TFTP")]
    Redirect(#[from] ToolError),
    /// The machine sends no environment.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The machine ended, or the task was interrupted.
    #[error("auxiliary machine {0} has ended")]
    Ended(String),
    /// The machine has no lease.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

/// Returns the auxiliary machines of a task.
pub fn names(task: &Manifest) -> Vec<&str> {
    let is_machine = |name: &str| name.starts_with("auxiliary-machine");
    let pairs = task.iter().filter(|(name, _)| is_machine(name));
    pairs.map(|(_, machine)| machine).collect()
}

impl Auxiliary {
    /// Starts a machine and waits until it serves, unless `is_over` returns true.
    ///
    /// # Errors
    ///
    /// The machine does not serve.
    pub fn start(
        hypervisor: Option<&Hypervisor>,
        bridge: &str,
        name: &str,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Self, AuxiliaryError> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        let link = unique_name();
        let directory = format!("/tmp/{link}-build");
        let arguments = ["--startup", "--auxiliary", "--build", &directory];
        let mut machine = BuildMachine::start(hypervisor, &link, bridge, &arguments)?;
        let _redirect = TftpRedirect::new(machine.link(), socket.local_addr()?.port())?;
        let task = manifest::write(&[Manifest::default().with("name", name)]);
        let mut is_over = || is_over() || machine.ended().is_some();
        let file = (TASK_FILE, task.as_bytes());
        let sent = tftp::serve(&socket, file, RESULT_FILE, &mut is_over)?;
        let sent = sent.ok_or_else(|| AuxiliaryError::Ended(name.to_owned()))?;
        Ok(Self {
            environment: String::from_utf8_lossy(&sent).trim().to_owned(),
            _machine: machine,
        })
    }
}

/// Acquires a lease, sends the environment to the agent, and answers each connection.
///
/// # Errors
///
/// The machine has no lease, or the agent takes no environment.
pub fn serve(directory: &Path, agent: SocketAddr) -> Result<(), AuxiliaryError> {
    fs::create_dir_all(directory)?;
    udhcpc::acquire(directory)?;
    let task = tftp::get(agent, TASK_FILE)?;
    let task = manifest::parse(&String::from_utf8_lossy(&task)).unwrap_or_default();
    let name = task.first().and_then(|task| task.get("name"));
    let name = name.unwrap_or_default();
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    let environment = format!("{name}={}", own_address(agent)?);
    tftp::put(agent, RESULT_FILE, environment.as_bytes())?;
    answer(&listener, name)
}

/// Returns this machine's address on the way to the agent.
fn own_address(agent: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(agent)?;
    Ok(socket.local_addr()?.ip())
}

fn answer(listener: &TcpListener, name: &str) -> Result<(), AuxiliaryError> {
    for client in listener.incoming() {
        // A client may leave before its answer.
        let _ = client.and_then(|mut client| writeln!(client, "{name} serves"));
    }
    Ok(())
}

/// Connects to each machine of an environment; returns the answers, or the first error.
///
/// # Errors
///
/// A machine does not answer.
pub fn ask(environment: &str) -> Result<String, String> {
    ask_at(environment, PORT)
}

fn ask_at(environment: &str, port: u16) -> Result<String, String> {
    let mut answers = Vec::new();
    for line in environment.lines() {
        let failed = |error: &dyn std::fmt::Display| format!("{line}: {error}");
        let address = line.rsplit_once('=').map_or(line, |(_, address)| address);
        let address: IpAddr = address.parse().map_err(|error| failed(&error))?;
        let address = SocketAddr::from((address, port));
        let answer = TcpStream::connect_timeout(&address, TIMEOUT).and_then(|stream| {
            stream.set_read_timeout(Some(TIMEOUT))?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer)?;
            Ok(answer)
        });
        let answer = answer.map_err(|error| failed(&error))?;
        answers.push(answer.trim().to_owned());
    }
    Ok(answers.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_those_of_the_task_in_order() {
        let task = Manifest::default()
            .with("machine", "linux_debian_13-gcc")
            .with("auxiliary-machine-1", "x86_64-linux-a")
            .with("auxiliary-machine-2", "x86_64-linux-b");
        assert_eq!(names(&task), ["x86_64-linux-a", "x86_64-linux-b"]);
        assert_eq!(names(&Manifest::default()), Vec::<&str>::new());
    }

    #[test]
    fn build_machine_gets_answer_of_each_auxiliary_machine() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || answer(&listener, "x86_64-linux-a"));
        let asked = ask_at("x86_64-linux-a=127.0.0.1\nb=127.0.0.1", port);
        assert_eq!(
            asked.as_deref(),
            Ok("x86_64-linux-a serves\nx86_64-linux-a serves")
        );
        let error = ask_at("a=nowhere", port).unwrap_err();
        assert!(error.starts_with("a=nowhere: "), "{error}");
    }
}
