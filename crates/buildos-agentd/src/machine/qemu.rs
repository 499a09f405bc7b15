//! Finds taps and consoles on the command line of QEMU (qemu(1)).
//!
//! | option | yields |
//! |---|---|
//! | `-netdev`, `-nic`, `-net`: `tap,ifname=NAME` | tap |
//! | `-device`, `-nic`: `mac=ADDRESS`; `-net`: `macaddr=ADDRESS` | MAC address |
//! | `-serial`, `-monitor`: `unix:PATH`, `tcp:HOST:PORT`, `telnet:HOST:PORT`, `chardev:ID` | console |
//! | `-mon chardev=ID` | console |
//! | `-chardev socket,id=ID,path=PATH` or `host=HOST,port=PORT` | address of `chardev:ID` |
//! | `-vnc`, `-display vnc=`: `unix:PATH`, `HOST:NUMBER` | console |
//!
//! # Limits
//!
//! Options in JSON, in `-readconfig` files, and taps by file descriptor are not recognised.

use std::collections::BTreeMap;
use std::path::PathBuf;

use buildos_types::{InterfaceName, MacAddress};

/// First port of VNC displays (RFC 6143, section 7.1.1 by convention: display N is 5900 + N).
const VNC_PORT: u16 = 5900;

/// What a command line of QEMU contains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// Taps, in the order of the options.
    pub taps: Vec<InterfaceName>,
    /// MAC addresses of NICs. The machine can use others.
    pub macs: Vec<MacAddress>,
    /// Consoles, in the order of the options.
    pub consoles: Vec<Console>,
}

/// Console of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Console {
    pub kind: ConsoleKind,
    pub address: Address,
}

/// Kind of a console. The order is the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConsoleKind {
    /// Serial port of the machine.
    Serial,
    /// Monitor of QEMU for people.
    Monitor,
    /// Screen of the machine by VNC.
    Vnc,
}

/// Address on which QEMU serves a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Unix socket, in the mount namespace of QEMU.
    Unix(PathBuf),
    /// Host and TCP port.
    Tcp(String, u16),
}

impl CommandLine {
    /// Parses the arguments of a process. Returns [`None`] if its program is not QEMU.
    #[must_use]
    pub fn parse(arguments: &[String]) -> Option<Self> {
        let program = arguments.first()?.rsplit('/').next()?;
        let is_qemu = program.starts_with("qemu-system-") || matches!(program, "kvm" | "qemu-kvm");
        if !is_qemu {
            return None;
        }
        let mut line = Self::default();
        let mut chardevs = BTreeMap::new();
        let mut references = Vec::new();
        for (option, value) in arguments.iter().zip(arguments.iter().skip(1)) {
            let Some(option) = option.strip_prefix('-') else {
                continue;
            };
            // QEMU takes one dash or two.
            match option.strip_prefix('-').unwrap_or(option) {
                "netdev" | "nic" | "net" => {
                    line.taps.extend(tap(value));
                    line.macs.extend(mac(value));
                }
                "device" => line.macs.extend(mac(value)),
                "chardev" => chardevs.extend(chardev(value)),
                "serial" => references.push((ConsoleKind::Serial, value.as_str())),
                "monitor" => references.push((ConsoleKind::Monitor, value)),
                "mon" => {
                    let options = Options::parse(value);
                    let is_human = options.get("mode").is_none_or(|mode| mode == "readline");
                    // The key `chardev` is implied for a first value without a key.
                    let id = options.get("chardev").or(options.kind());
                    if let Some(id) = id.filter(|_| is_human) {
                        line.consoles.push(reference(ConsoleKind::Monitor, id));
                    }
                }
                "vnc" => line.consoles.extend(vnc(value)),
                "display" => line
                    .consoles
                    .extend(value.strip_prefix("vnc=").and_then(vnc)),
                _ => {}
            }
        }
        for (kind, value) in references {
            line.consoles.extend(character_device(kind, value));
        }
        line.consoles
            .retain_mut(|console| console.resolve(&chardevs));
        line.consoles.sort_by_key(|console| console.kind);
        Some(line)
    }
}

impl Console {
    /// Replaces the name of a chardev by its address. Returns false if it has none.
    fn resolve(&mut self, chardevs: &BTreeMap<String, Address>) -> bool {
        let Address::Tcp(id, 0) = &self.address else {
            return true;
        };
        match chardevs.get(id) {
            Some(address) => {
                self.address = address.clone();
                true
            }
            None => false,
        }
    }
}

/// Returns a console at a chardev. Port 0, on which no program listens, marks the name.
fn reference(kind: ConsoleKind, id: &str) -> Console {
    Console {
        kind,
        address: Address::Tcp(id.to_owned(), 0),
    }
}

/// Option with suboptions, `KIND,KEY=VALUE,…`; two commas are one comma of a value.
struct Options(Vec<(Option<String>, String)>);

impl Options {
    fn parse(text: &str) -> Self {
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == ',' && characters.next_if_eq(&',').is_none() {
                parts.push(String::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(character);
            }
        }
        Self(
            parts
                .into_iter()
                .map(|part| match part.split_once('=') {
                    Some((key, value)) => (Some(key.to_owned()), value.to_owned()),
                    None => (None, part),
                })
                .collect(),
        )
    }

    /// Returns the first part if it has no key.
    fn kind(&self) -> Option<&str> {
        let (key, value) = self.0.first()?;
        key.is_none().then_some(value)
    }

    fn get(&self, key: &str) -> Option<&str> {
        let mut parts = self.0.iter();
        let part = parts.find(|(name, _)| name.as_deref() == Some(key));
        part.map(|(_, value)| value.as_str())
    }
}

fn tap(value: &str) -> Option<InterfaceName> {
    let options = Options::parse(value);
    let kind = options.kind().or(options.get("type"));
    let name = options.get("ifname").filter(|_| kind == Some("tap"))?;
    InterfaceName::new(name).ok()
}

fn mac(value: &str) -> Option<MacAddress> {
    let options = Options::parse(value);
    let text = options.get("mac").or(options.get("macaddr"))?;
    text.parse().ok()
}

fn chardev(value: &str) -> Option<(String, Address)> {
    let options = Options::parse(value);
    let is_socket = options.kind().or(options.get("backend")) == Some("socket");
    let id = options.get("id").filter(|_| is_socket)?;
    let address = match options.get("path") {
        Some(path) => Address::Unix(path.into()),
        None => {
            let host = options.get("host").unwrap_or_default();
            Address::Tcp(host.to_owned(), nonzero(options.get("port")?)?)
        }
    };
    Some((id.to_owned(), address))
}

/// Parses the value of `-serial` and `-monitor`.
fn character_device(kind: ConsoleKind, value: &str) -> Option<Console> {
    // `mon:` adds a monitor to a serial port.
    let value = value.strip_prefix("mon:").unwrap_or(value);
    if let Some(id) = value.strip_prefix("chardev:") {
        return Some(reference(kind, id));
    }
    let (transport, rest) = value.split_once(':')?;
    let options = Options::parse(rest);
    let place = options.kind()?;
    let address = match transport {
        "unix" => Address::Unix(place.into()),
        "tcp" | "telnet" => host_and_port(place, 0)?,
        _ => return None,
    };
    Some(Console { kind, address })
}

fn vnc(value: &str) -> Option<Console> {
    let options = Options::parse(value);
    let place = options.kind()?;
    let address = match place.strip_prefix("unix:") {
        Some(path) => Address::Unix(path.into()),
        None => host_and_port(place, VNC_PORT)?,
    };
    Some(Console {
        kind: ConsoleKind::Vnc,
        address,
    })
}

/// Parses `HOST:NUMBER`. `base` is added to the number.
fn host_and_port(text: &str, base: u16) -> Option<Address> {
    let (host, number) = text.rsplit_once(':')?;
    let port = number.parse::<u16>().ok()?.checked_add(base)?;
    (port != 0).then(|| Address::Tcp(host.to_owned(), port))
}

fn nonzero(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> Option<CommandLine> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        CommandLine::parse(&words)
    }

    fn console(kind: ConsoleKind, address: Address) -> Console {
        Console { kind, address }
    }

    fn unix(path: &str) -> Address {
        Address::Unix(path.into())
    }

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.into(), port)
    }

    #[test]
    fn only_qemu_is_a_machine() {
        for program in ["qemu-system-x86_64", "/usr/bin/qemu-system-aarch64", "kvm"] {
            assert_eq!(parse(program), Some(CommandLine::default()));
        }
        for other in ["", "qemu-img", "sudo qemu-system-x86_64", "setpriv", "sh"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn taps_are_found_in_each_notation() {
        let taps = |line: &str| parse(line).unwrap().taps;
        let expected = ["tap0", "tap1", "tap2"].map(|name| InterfaceName::new(name).unwrap());
        assert_eq!(
            taps(
                "kvm -netdev tap,id=n,script=no,ifname=tap0 -nic tap,ifname=tap1,model=e1000 --net tap,ifname=tap2"
            ),
            expected
        );
        for none in [
            "kvm -netdev user,ifname=tap0",
            "kvm -netdev tap,id=n,fd=7",
            "kvm -netdev tap,ifname=../x",
            "kvm -netdev",
            "kvm -append -nic=tap,ifname=tap0",
        ] {
            assert!(taps(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn hardware_addresses_are_found() {
        let line = "kvm -device virtio-net-pci,netdev=n,mac=02:00:00:00:00:01 \
                    -nic tap,mac=02:00:00:00:00:02 -net nic,macaddr=02:00:00:00:00:03 -device x,mac=y";
        let expected = [1, 2, 3].map(|last| MacAddress([2, 0, 0, 0, 0, last]));
        assert_eq!(parse(line).unwrap().macs, expected);
    }

    #[test]
    fn consoles_are_found_and_sorted_by_preference() {
        let line = "qemu-system-x86_64 -vnc unix:/t/v -monitor unix:/t/m,server,nowait \
                    -chardev socket,id=s,path=/t/a,,b,server=on -serial chardev:s";
        assert_eq!(
            parse(line).unwrap().consoles,
            [
                console(ConsoleKind::Serial, unix("/t/a,b")),
                console(ConsoleKind::Monitor, unix("/t/m")),
                console(ConsoleKind::Vnc, unix("/t/v")),
            ]
        );
    }

    #[test]
    fn consoles_by_tcp_are_found() {
        let line = "kvm -display vnc=127.0.0.1:3 -serial telnet:localhost:7001,server -mon m \
                    -chardev socket,id=m,host=::1,port=7002";
        assert_eq!(
            parse(line).unwrap().consoles,
            [
                console(ConsoleKind::Serial, tcp("localhost", 7001)),
                console(ConsoleKind::Monitor, tcp("::1", 7002)),
                console(ConsoleKind::Vnc, tcp("127.0.0.1", 5903)),
            ]
        );
    }

    #[test]
    fn consoles_without_an_address_are_ignored() {
        for none in [
            "kvm -serial stdio",
            "kvm -serial pty -monitor none",
            "kvm -serial chardev:x",
            "kvm -chardev pty,id=x -serial chardev:x",
            "kvm -chardev socket,id=x,path=/a -mon chardev=x,mode=control",
            "kvm -vnc none",
            "kvm -vnc :70000",
            "kvm -serial tcp::0",
            "kvm -qmp unix:/q",
        ] {
            assert_eq!(parse(none).unwrap().consoles, [], "{none}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_options_are_parsed(
            options in prop::collection::vec(
                ("-{1,2}(netdev|serial|monitor|mon|chardev|vnc|display)", "[a-z:=,./0-9]{0,24}"),
                0..8,
            )
        ) {
            let mut arguments = vec!["kvm".to_owned()];
            for (option, value) in options {
                arguments.extend([option, value]);
            }
            let line = CommandLine::parse(&arguments).unwrap();
            for console in line.consoles {
                prop_assert!(!matches!(console.address, Address::Tcp(_, 0)));
            }
        }
    }
}
