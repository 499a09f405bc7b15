//! `buildosctl machine attach`: brings a console of a machine to this terminal.
//!
//! | console | on a terminal | otherwise |
//! |---|---|---|
//! | serial port, monitor | keys go to the console until Ctrl-] | standard input and output |
//! | screen (VNC) | a port of 127.0.0.1 leads there until Ctrl-C | standard input and output |
//!
//! # Limits
//!
//! QEMU serves one client of a socket at a time: a second one waits for the first.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use buildos_agentd::machine::qemu::{Address, Console, ConsoleKind};
use buildos_service::text;
use zbus::Connection;

use super::lookup::find;
use super::relay::{self, Stream};
use super::terminal::RawMode;
use crate::snapshot::model::{Machine, MachineKind};

/// First port of VNC, which clients call display 0.
const VNC_PORT: u16 = 5900;

/// Connects to a console of the machine at a port, until the operator or QEMU ends it.
///
/// # Errors
///
/// There is no such machine or console, QEMU does not answer, or the user may not connect.
pub(crate) async fn attach(
    bus: &Connection,
    port: &str,
    kind: Option<ConsoleKind>,
) -> Result<(), String> {
    let (_, machine) = find(bus, port).await?;
    let console = choose(&machine, kind)?;
    if console.kind == ConsoleKind::Vnc && io::stdin().is_terminal() {
        return share(&machine, console);
    }
    let stream = connect(machine.process, &console.address)?;
    if !io::stdin().is_terminal() {
        return relay::relay(stream, None).map_err(|error| ended(&error));
    }
    eprintln!(
        "{} of {port}: Ctrl-] ends, Return can bring a prompt",
        title(console.kind)
    );
    let raw = RawMode::enter().map_err(|error| format!("cannot set the terminal: {error}"))?;
    let result = relay::relay(stream, Some(relay::ESCAPE));
    drop(raw);
    eprintln!("\ndetached from {port}");
    result.map_err(|error| ended(&error))
}

/// Chooses a console.
fn choose(machine: &Machine, kind: Option<ConsoleKind>) -> Result<&Console, String> {
    let port = &machine.port;
    match machine.kind {
        MachineKind::Qemu => {}
        MachineKind::Container => {
            return Err(format!(
                "{port} is of a container: nsenter --all --target {} brings a shell",
                machine.process
            ));
        }
        MachineKind::Unknown => return Err(format!("no process was found for {port}")),
    }
    let of_kind = |kind| machine.consoles.iter().find(|c| c.kind == kind);
    let kinds: BTreeSet<ConsoleKind> = machine.consoles.iter().map(|c| c.kind).collect();
    let flags: Vec<_> = kinds.iter().map(|kind| flag(*kind)).collect();
    let mut consoles = machine.consoles.iter();
    match (kind, consoles.next(), kinds.len()) {
        (_, None, _) => Err(format!(
            "QEMU of {port} (process {}) serves no console: it needs a socket in -serial, \
             -monitor or -vnc",
            machine.process
        )),
        (Some(kind), Some(_), _) => of_kind(kind).ok_or_else(|| {
            format!(
                "{port} has no console for {}, only for {}",
                flag(kind),
                flags.join(", ")
            )
        }),
        (None, Some(only), 1) => Ok(only),
        (None, Some(_), _) => Err(format!(
            "{port} has several consoles: choose {}",
            flags.join(", ")
        )),
    }
}

fn flag(kind: ConsoleKind) -> &'static str {
    match kind {
        ConsoleKind::Serial => "--serial",
        ConsoleKind::Monitor => "--monitor",
        ConsoleKind::Vnc => "--vnc",
    }
}

fn title(kind: ConsoleKind) -> &'static str {
    match kind {
        ConsoleKind::Serial => "serial port",
        ConsoleKind::Monitor => "monitor",
        ConsoleKind::Vnc => "screen",
    }
}

/// Connects to an address of QEMU.
fn connect(process: u32, address: &Address) -> Result<Stream, String> {
    match address {
        Address::Unix(path) => {
            let socket = UnixStream::connect(in_namespace(process, path));
            socket.map(Stream::Unix).map_err(|error| {
                let path = text::escape(&path.to_string_lossy());
                let why = match error.kind() == io::ErrorKind::PermissionDenied {
                    true => "only root may".to_owned(),
                    false => error.to_string(),
                };
                format!("cannot connect to {path}: {why}")
            })
        }
        Address::Tcp(host, port) => {
            let host = text::escape(host);
            let name = if host.is_empty() { "127.0.0.1" } else { &host };
            let socket = TcpStream::connect((name, *port));
            let failed = |error| format!("cannot connect to {name}:{port}: {error}");
            socket.map(Stream::Tcp).map_err(failed)
        }
    }
}

/// Returns a path of QEMU's mount namespace as a path of this process.
fn in_namespace(process: u32, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/");
    match relative {
        Ok(relative) => PathBuf::from(format!("/proc/{process}/root")).join(relative),
        Err(_) => PathBuf::from(format!("/proc/{process}/cwd")).join(path),
    }
}

/// Lets VNC clients of this host connect to a port, one after the other.
fn share(machine: &Machine, console: &Console) -> Result<(), String> {
    // The first connection shows faults before a client does.
    drop(connect(machine.process, &console.address)?);
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, VNC_PORT))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let failed = |error: io::Error| format!("cannot listen: {error}");
    let listener = bound.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    eprintln!(
        "screen of {} by VNC at 127.0.0.1:{port}; Ctrl-C ends\n\
         from a different computer: ssh -L {port}:127.0.0.1:{port} root@HOST",
        machine.port
    );
    for client in listener.incoming() {
        let client = client.map_err(failed)?;
        let stream = connect(machine.process, &console.address)?;
        if let Err(error) = relay::join(client, stream) {
            eprintln!("{}", ended(&error));
        }
    }
    Ok(())
}

fn ended(error: &io::Error) -> String {
    format!("the connection has ended: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(kind: ConsoleKind, path: &str) -> Console {
        Console {
            kind,
            address: Address::Unix(path.into()),
        }
    }

    fn machine(consoles: Vec<Console>) -> Machine {
        Machine {
            port: "tap0".into(),
            kind: MachineKind::Qemu,
            process: 77,
            consoles,
            ..Machine::default()
        }
    }

    #[test]
    fn only_kind_of_console_is_chosen() {
        let serial = console(ConsoleKind::Serial, "/a");
        let second = console(ConsoleKind::Serial, "/b");
        let machine = machine(vec![serial.clone(), second]);
        assert_eq!(choose(&machine, None), Ok(&serial));
        assert_eq!(choose(&machine, Some(ConsoleKind::Serial)), Ok(&serial));
        assert_eq!(
            choose(&machine, Some(ConsoleKind::Vnc)).unwrap_err(),
            "tap0 has no console for --vnc, only for --serial"
        );
    }

    #[test]
    fn one_of_several_kinds_must_be_named() {
        let monitor = console(ConsoleKind::Monitor, "/m");
        let machine = machine(vec![console(ConsoleKind::Serial, "/a"), monitor.clone()]);
        assert_eq!(
            choose(&machine, None).unwrap_err(),
            "tap0 has several consoles: choose --serial, --monitor"
        );
        assert_eq!(choose(&machine, Some(ConsoleKind::Monitor)), Ok(&monitor));
    }

    #[test]
    fn machine_without_console_says_why() {
        let check = |machine: &Machine, expected: &str| {
            assert_eq!(choose(machine, None).unwrap_err(), expected);
        };
        let mut machine = machine(vec![]);
        let sentence = "QEMU of tap0 (process 77) serves no console: it needs a socket in \
                        -serial, -monitor or -vnc";
        check(&machine, sentence);
        machine.kind = MachineKind::Container;
        check(
            &machine,
            "tap0 is of a container: nsenter --all --target 77 brings a shell",
        );
        machine.kind = MachineKind::Unknown;
        check(&machine, "no process was found for tap0");
    }

    #[test]
    fn path_of_socket_is_that_of_qemu() {
        let path = |path: &str| in_namespace(7, Path::new(path)).display().to_string();
        assert_eq!(path("/run/x"), "/proc/7/root/run/x");
        assert_eq!(path("x"), "/proc/7/cwd/x");
    }
}
