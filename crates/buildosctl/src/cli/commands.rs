//! Defines commands and flags in one table.
//!
//! The parser, `--help`, the synopsis of buildosctl(1) and the completions of bash and
//! zsh derive from it. After a change run `docs/generate-buildosctl`.

/// Identifies a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Id {
    Status,
    Why,
    Links,
    Leases,
    Agents,
    Machines,
    Machine,
    Volume,
    Update,
    Drain,
    Resume,
    Renew,
    Log,
    Check,
    Publish,
    Simulate,
    Metrics,
    Console,
}

/// A command of buildosctl.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) id: Id,
    /// The word on the command line.
    pub(crate) name: &'static str,
    /// One line, without a full stop, for lists of commands.
    pub(crate) summary: &'static str,
    /// Lines of at most 80 columns for the help of the command, or empty.
    pub(crate) details: &'static str,
    /// The ways to call it; each is a line of the synopsis.
    pub(crate) forms: &'static [Form],
}

/// One way to call a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// The word after the command, as in `publish init`.
    pub(crate) verb: Option<&'static str>,
    /// Flags that must be given.
    pub(crate) required: &'static [Flag],
    /// Flags that can be given.
    pub(crate) optional: &'static [Flag],
    pub(crate) operands: Operands,
}

/// The arguments of a command that are not flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operands {
    None,
    /// Any number of agents, as `bbot@default`.
    Agents,
    /// Any arguments, for journalctl(1).
    Journalctl,
    /// One file or more.
    Files,
    /// Exactly one file.
    File,
    /// Exactly one directory.
    Directory,
    /// The port of a machine.
    Tap,
    /// The port of a machine, and a TCP port of it.
    TapAndPort,
    /// The purpose of a volume.
    Volume,
    /// The name of a machine of the channel.
    Name,
    /// The name of a machine of the channel, and a revision, which can be left out.
    NameAndRevision,
    /// Any number of words.
    Reason,
}

/// A flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Flag {
    Json,
    Watch,
    Wait,
    Budget,
    Daemon,
    Cmdline,
    Keyring,
    Signatures,
    Channel,
    Key,
    From,
    Days,
    Percent,
    Name,
    Tree,
    Serial,
    Monitor,
    Vnc,
    For,
    Port,
    Close,
    Disk,
    Yes,
    Erase,
    Scrub,
    Virtual,
    Help,
    Version,
}

/// The value of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// A whole number of seconds.
    Seconds,
    /// A time with its unit, as `2h`.
    Time,
    /// The name of a daemon without `buildos-`.
    Daemon,
    /// Any text.
    Text,
    /// A whole number.
    Number,
    /// The name of a channel or a machine.
    Name,
    /// A key of gpg(1).
    Key,
    /// A file.
    File,
    /// A directory.
    Directory,
    /// The node of a device.
    Device,
    /// Model and serial number of a disk.
    Identity,
}

/// Flags that are valid with and without a command.
pub(crate) const GLOBAL: [Flag; 2] = [Flag::Help, Flag::Version];

/// The command that runs if the command line names no command.
pub(crate) static DEFAULT: &Command = &COMMANDS[0];

const NOTHING: Form = Form {
    verb: None,
    required: &[],
    optional: &[],
    operands: Operands::None,
};

const SHOW: Form = Form {
    optional: &[Flag::Json, Flag::Watch],
    ..NOTHING
};

/// All commands, in the order of the help.
pub(crate) static COMMANDS: [Command; 18] = [
    Command {
        id: Id::Status,
        name: "status",
        summary: "Show the host on one screen (the default command)",
        details: "\
Shows the network, the host name, NAT, the agents and the version of the system.
Exits with 1 if a daemon does not answer.
",
        forms: &[SHOW],
    },
    Command {
        id: Id::Why,
        name: "why",
        summary: "Explain why this host does not build, and what to do",
        details: "\
Checks the steps that a build needs, in order, and stops at the first failure.
With AGENT, only these agents count. Agents are written as in the
configuration: bbot@default.

Exits with 0 if the host builds or waits for tasks, with 3 if its agents are
stopped or drained, otherwise with the number of the failed step:
10 daemons, 11 carrier, 12 lease, 13 bridges, 14 name, 15 nat, 16 clock,
17 needs, 18 agent, 19 controllers.
",
        forms: &[Form {
            operands: Operands::Agents,
            ..SHOW
        }],
    },
    Command {
        id: Id::Links,
        name: "links",
        summary: "List the network interfaces, with their role and the reason for it",
        details: "",
        forms: &[SHOW],
    },
    Command {
        id: Id::Leases,
        name: "leases",
        summary: "List the DHCP leases of the host and of the machines on br1",
        details: "",
        forms: &[SHOW],
    },
    Command {
        id: Id::Agents,
        name: "agents",
        summary: "List the agents, with their state and what they wait for",
        details: "",
        forms: &[SHOW],
    },
    Command {
        id: Id::Machines,
        name: "machines",
        summary: "List the machines on the bridges, or those on machine volumes",
        details: "\
Lists each port of br1 and br0 with the address of its machine, and with its
agent, process, age, CPU time, RAM and state. For a container, PROCESS is its
first process; CPU and RAM are sums.

list, plan and verify are about the machines on machine volumes, from which
agents make their machines. list shows them, plan what the next run of
buildos-updated would fetch, keep and remove, and verify reads all files again,
as root, and exits with 1 if one has changed.

add takes NAME of the channel although machines.select does not match it, and
remove removes it until add. pin keeps it at REVISION, or at the current one,
until unpin. Only root and members of buildos-admin can do that.
",
        forms: &[
            SHOW,
            Form {
                verb: Some("list"),
                ..NOTHING
            },
            Form {
                verb: Some("plan"),
                ..NOTHING
            },
            Form {
                verb: Some("verify"),
                ..NOTHING
            },
            Form {
                verb: Some("add"),
                operands: Operands::Name,
                ..NOTHING
            },
            Form {
                verb: Some("remove"),
                operands: Operands::Name,
                ..NOTHING
            },
            Form {
                verb: Some("pin"),
                operands: Operands::NameAndRevision,
                ..NOTHING
            },
            Form {
                verb: Some("unpin"),
                operands: Operands::Name,
                ..NOTHING
            },
        ],
    },
    Command {
        id: Id::Machine,
        name: "machine",
        summary: "Bring the console of a machine, or open a port of it",
        details: "\
TAP is the port of the machine, as machines lists it. attach connects this
terminal to a socket that QEMU serves; Ctrl-] ends. The screen (VNC) becomes a
port of 127.0.0.1. forward lets the LAN reach PORT of a machine on br1 by a port
of the host, for an hour if --for does not name another time. It is closed when
the machine ends. Only root can attach and forward.
",
        forms: &[
            Form {
                verb: Some("attach"),
                optional: &[Flag::Serial, Flag::Monitor, Flag::Vnc],
                operands: Operands::Tap,
                ..NOTHING
            },
            Form {
                verb: Some("forward"),
                optional: &[Flag::For, Flag::Port, Flag::Close],
                operands: Operands::TapAndPort,
                ..NOTHING
            },
        ],
    },
    Command {
        id: Id::Volume,
        name: "volume",
        summary: "List, check and create the volumes on the disks of this host",
        details: "\
list shows each device with a label of buildos, and why it is used or not. check
examines the volumes, and exits with 1 after a problem. It reads only.

create makes a btrfs on DEVICE, as root, for the state of the host or for
machines. Without --yes and --erase it writes nothing, and shows what is on the
device, and the ID to repeat.
",
        forms: &[
            Form {
                verb: Some("list"),
                optional: &[Flag::Virtual],
                ..NOTHING
            },
            Form {
                verb: Some("check"),
                optional: &[Flag::Scrub, Flag::Virtual],
                ..NOTHING
            },
            Form {
                verb: Some("create"),
                required: &[Flag::Disk],
                optional: &[Flag::Name, Flag::Yes, Flag::Erase, Flag::Virtual],
                operands: Operands::Volume,
            },
        ],
    },
    Command {
        id: Id::Update,
        name: "update",
        summary: "Show, start or hold updates by the channel",
        details: "\
status shows the channel, the last run of buildos-updated, the operating system
and the machines. history shows which operating systems were started, and which
came back. check starts a run now; with --wait it returns after the run, and
exits with 1 after a problem. now does the same, and takes the operating system
of the channel also outside of its window, before the rollout reaches this host,
and with agents that were drained before. While hold lasts, nothing is fetched,
placed, removed or started, until resume. Only root and members of buildos-admin
can check, hold, resume, and update now.
",
        forms: &[
            Form {
                verb: Some("status"),
                ..NOTHING
            },
            Form {
                verb: Some("check"),
                optional: &[Flag::Wait],
                ..NOTHING
            },
            Form {
                verb: Some("now"),
                optional: &[Flag::Wait],
                ..NOTHING
            },
            Form {
                verb: Some("history"),
                ..NOTHING
            },
            Form {
                verb: Some("hold"),
                operands: Operands::Reason,
                ..NOTHING
            },
            Form {
                verb: Some("resume"),
                ..NOTHING
            },
        ],
    },
    Command {
        id: Id::Drain,
        name: "drain",
        summary: "Let the tasks of agents end, then stop the agents until resume",
        details: "\
Without AGENT, drains all agents. Only root and members of buildos-admin can
drain.
",
        forms: &[Form {
            optional: &[Flag::Wait, Flag::Budget],
            operands: Operands::Agents,
            ..NOTHING
        }],
    },
    Command {
        id: Id::Resume,
        name: "resume",
        summary: "Let drained agents start again",
        details: "\
Without AGENT, resumes all agents. Only root and members of buildos-admin can
resume.
",
        forms: &[Form {
            operands: Operands::Agents,
            ..NOTHING
        }],
    },
    Command {
        id: Id::Renew,
        name: "renew",
        summary: "Ask the DHCP server to extend the lease now",
        details: "\
Only root and members of buildos-admin can renew.
",
        forms: &[NOTHING],
    },
    Command {
        id: Id::Log,
        name: "log",
        summary: "Show the journal of all buildos units since boot",
        details: "",
        forms: &[Form {
            operands: Operands::Journalctl,
            ..NOTHING
        }],
    },
    Command {
        id: Id::Check,
        name: "check",
        summary: "Check configuration, a kernel command line, a channel or machines",
        details: "\
FILE is a file of a daemon in a directory NAME.conf.d, a configuration of
PXELINUX, iPXE or GRUB, a signed channel, or what bbot-agent --dump-machines
prints, judged as a controller does. A channel needs --keyring, and sqv(1). No
build host is needed. Exits with 1 if there is a mistake.
",
        forms: &[
            Form {
                optional: &[Flag::Daemon],
                operands: Operands::Files,
                ..NOTHING
            },
            Form {
                required: &[Flag::Keyring],
                optional: &[Flag::Signatures],
                operands: Operands::Files,
                ..NOTHING
            },
            Form {
                required: &[Flag::Cmdline],
                ..NOTHING
            },
        ],
    },
    Command {
        id: Id::Publish,
        name: "publish",
        summary: "Write a signed channel for a static HTTP server",
        details: "\
DIR is the tree: channel/ and objects/ are served, desk/ has drafts. init makes
it, show compares the draft with what is published, and promote lets gpg(1)
sign the draft with the next serial. machine adds the btrfs subvolume DIR to
the draft of the tree --tree as a machine of bbot-agent, container as one that
hosts have in /var/lib/machines for systemd-nspawn(1). Both need root. os adds
the operating system that image/build made in DIR; its version is --name, or
comes from its packages. agent adds the agent that image/agent made in FILE; its
version is --name, or that of the file name. No build host is needed.
",
        forms: &[
            Form {
                verb: Some("init"),
                optional: &[Flag::Channel],
                operands: Operands::Directory,
                ..NOTHING
            },
            Form {
                verb: Some("machine"),
                required: &[Flag::Name],
                optional: &[Flag::Tree, Flag::Channel],
                operands: Operands::Directory,
            },
            Form {
                verb: Some("container"),
                required: &[Flag::Name],
                optional: &[Flag::Tree, Flag::Channel],
                operands: Operands::Directory,
            },
            Form {
                verb: Some("os"),
                optional: &[Flag::Name, Flag::Tree, Flag::Channel],
                operands: Operands::Directory,
                ..NOTHING
            },
            Form {
                verb: Some("agent"),
                optional: &[Flag::Name, Flag::Tree, Flag::Channel],
                operands: Operands::File,
                ..NOTHING
            },
            Form {
                verb: Some("show"),
                optional: &[Flag::Channel],
                operands: Operands::Directory,
                ..NOTHING
            },
            Form {
                verb: Some("promote"),
                required: &[Flag::Key],
                optional: &[Flag::Channel, Flag::From, Flag::Days, Flag::Percent],
                operands: Operands::Directory,
            },
        ],
    },
    Command {
        id: Id::Simulate,
        name: "simulate",
        summary: "Show what the daemons would do on the network that FILE describes",
        details: "\
buildosctl(1) describes FILE. No build host is needed. Exits with 1 if there is
a mistake in FILE or in the configuration that it gives to the daemons.
",
        forms: &[Form {
            optional: &[Flag::Json],
            operands: Operands::File,
            ..NOTHING
        }],
    },
    Command {
        id: Id::Metrics,
        name: "metrics",
        summary: "Print metrics in the text format of Prometheus",
        details: "",
        forms: &[NOTHING],
    },
    Command {
        id: Id::Console,
        name: "console",
        summary: "Keep the status on the consoles (for buildos-console.service)",
        details: "",
        forms: &[NOTHING],
    },
];

/// Finds a command by its name.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

impl Command {
    /// Finds a flag of this command, whatever its form, by the long name.
    pub(crate) fn flag(&self, long: &str) -> Option<Flag> {
        self.flags().into_iter().find(|flag| flag.long() == long)
    }

    /// Returns the flags of all forms, each once.
    pub(crate) fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        for form in self.forms {
            for flag in form.optional.iter().chain(form.required) {
                if !flags.contains(flag) {
                    flags.push(*flag);
                }
            }
        }
        flags
    }

    /// Finds a form by its verb.
    pub(crate) fn form(&self, verb: &str) -> Option<&'static Form> {
        self.forms.iter().find(|form| form.verb == Some(verb))
    }

    /// Returns the operands of the first form that has any.
    pub(crate) fn operands(&self) -> Operands {
        let mut operands = self.forms.iter().map(|form| form.operands);
        operands
            .find(|operands| *operands != Operands::None)
            .unwrap_or(Operands::None)
    }
}

impl Operands {
    /// Returns the maximum number of operands, if there is one.
    pub(crate) const fn limit(self) -> Option<usize> {
        match self {
            Self::None => Some(0),
            Self::File | Self::Directory | Self::Tap | Self::Volume | Self::Name => Some(1),
            Self::TapAndPort | Self::NameAndRevision => Some(2),
            Self::Agents | Self::Journalctl | Self::Files | Self::Reason => None,
        }
    }
}

impl Flag {
    /// Returns the name after `--`.
    pub(crate) const fn long(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Watch => "watch",
            Self::Wait => "wait",
            Self::Budget => "budget",
            Self::Daemon => "daemon",
            Self::Cmdline => "cmdline",
            Self::Keyring => "keyring",
            Self::Signatures => "signatures",
            Self::Channel => "channel",
            Self::Key => "key",
            Self::From => "from",
            Self::Days => "days",
            Self::Percent => "percent",
            Self::Name => "name",
            Self::Tree => "tree",
            Self::Serial => "serial",
            Self::Monitor => "monitor",
            Self::Vnc => "vnc",
            Self::For => "for",
            Self::Port => "port",
            Self::Close => "close",
            Self::Disk => "disk",
            Self::Yes => "yes",
            Self::Erase => "erase",
            Self::Scrub => "scrub",
            Self::Virtual => "virtual",
            Self::Help => "help",
            Self::Version => "version",
        }
    }

    /// Returns the letter after `-`, if there is one.
    pub(crate) const fn short(self) -> Option<char> {
        match self {
            Self::Help => Some('h'),
            Self::Version => Some('V'),
            Self::Json
            | Self::Watch
            | Self::Wait
            | Self::Budget
            | Self::Daemon
            | Self::Cmdline
            | Self::Keyring
            | Self::Signatures
            | Self::Channel
            | Self::Key
            | Self::From
            | Self::Days
            | Self::Percent
            | Self::Name
            | Self::Tree
            | Self::Serial
            | Self::Monitor
            | Self::Vnc
            | Self::For
            | Self::Port
            | Self::Close
            | Self::Disk
            | Self::Yes
            | Self::Erase
            | Self::Scrub
            | Self::Virtual => None,
        }
    }

    /// Returns the kind of value that follows the flag, if there is one.
    pub(crate) const fn value(self) -> Option<Value> {
        match self {
            Self::Budget => Some(Value::Seconds),
            Self::Daemon => Some(Value::Daemon),
            Self::Cmdline => Some(Value::Text),
            Self::Keyring => Some(Value::File),
            Self::Signatures | Self::Days | Self::Percent | Self::Port => Some(Value::Number),
            Self::For => Some(Value::Time),
            Self::Channel | Self::From | Self::Name => Some(Value::Name),
            Self::Tree => Some(Value::Directory),
            Self::Key => Some(Value::Key),
            Self::Disk => Some(Value::Device),
            Self::Yes | Self::Erase => Some(Value::Identity),
            Self::Json
            | Self::Watch
            | Self::Wait
            | Self::Serial
            | Self::Monitor
            | Self::Vnc
            | Self::Close
            | Self::Scrub
            | Self::Virtual
            | Self::Help
            | Self::Version => None,
        }
    }

    /// Returns one line, without a full stop, for lists of flags.
    pub(crate) const fn summary(self) -> &'static str {
        match self {
            Self::Json => "Print one JSON object on a line",
            Self::Watch => "Print again whenever something changes",
            Self::Wait => "Return once no task runs, or the run has ended",
            Self::Budget => "Stop agents whose tasks still run after SECONDS",
            Self::Daemon => "FILE is for netd, hostnamed, natd, agentd or updated",
            Self::Cmdline => "Check this kernel command line",
            Self::Keyring => "Trust the OpenPGP certificates in FILE",
            Self::Signatures => "Require signatures of N certificates (1)",
            Self::Channel => "Name of the channel (stable)",
            Self::Key => "Key that gpg signs with, can be repeated",
            Self::From => "Publish what this channel has published",
            Self::Days => "Days until the channel expires (30)",
            Self::Percent => "Percentage of hosts that take it",
            Self::Name => "Name of the machine, or of the machine volume",
            Self::Tree => "Tree with the channel (the current directory)",
            Self::Serial => "Attach to the serial port",
            Self::Monitor => "Attach to the monitor of QEMU",
            Self::Vnc => "Attach to the screen",
            Self::For => "Close the port after TIME, as 2h or 30min (1h)",
            Self::Port => "Port of the host (the first free one from 61000)",
            Self::Close => "Close the port, and end its connections",
            Self::Disk => "Make the volume on this device",
            Self::Yes => "Write to the empty device with this ID",
            Self::Erase => "Destroy what is on the device with this ID",
            Self::Scrub => "Read all data, and compare checksums",
            Self::Virtual => "Loop devices and the like count, for tests",
            Self::Help => "Show help for buildosctl or for the command",
            Self::Version => "Show the version",
        }
    }
}

impl Value {
    /// Returns the placeholder of the value in upper case.
    pub(crate) const fn placeholder(self) -> &'static str {
        match self {
            Self::Seconds => "SECONDS",
            Self::Time => "TIME",
            Self::Daemon => "NAME",
            Self::Text => "STRING",
            Self::Number => "N",
            Self::Name => "NAME",
            Self::Key => "KEY",
            Self::File => "FILE",
            Self::Directory => "DIR",
            Self::Device => "DEVICE",
            Self::Identity => "ID",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_commands_are_unique() {
        for command in &COMMANDS {
            assert_eq!(find(command.name), Some(command));
        }
        assert_eq!(find("stat"), None);
        assert_eq!(DEFAULT.id, Id::Status);
    }

    #[test]
    fn texts_fit_a_terminal_of_80_columns() {
        for command in &COMMANDS {
            assert!(command.summary.len() <= 67, "{}", command.name);
            for line in command.details.lines() {
                assert!(line.len() <= 80, "{}: {line}", command.name);
            }
        }
    }
}
