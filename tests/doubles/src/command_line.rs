//! Parses the command line of bbot-agent.

use crate::controller::{Controller, ControllerError};
use lexopt::Arg::{Long, Short, Value};
use lexopt::ValueExt as _;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

/// The text of `--help`.
pub const USAGE: &str = "\
Usage: bbot-agent --help | --version
       bbot-agent [options] [priority=]url...

A stand-in for the build2 build bot agent. It polls the controllers and builds small
C programs, each in its own build machine on the bridge.
A priority is [F]DCBA, four or five decimal digits.

  --systemd-daemon             log for systemd: to stderr, with <N> priorities
  --verbose N                  0 to 6; from 2 on every poll is logged
  --cpu N                      hardware threads to use
  --instance N                 number of this instance
  --instance-max N             concurrent tasks
  --toolchain-name NAME        default: default
  --toolchain-num N
  --toolchain-ver VERSION
  --toolchain-id ID
  --interactive MODE           false, true or both
  --build-ram KiB
  --auxiliary-ram KiB
  --nice N                     -20 to 19
  --bridge NAME                default: br1
  --auth-key FILE
  --trust FINGERPRINT          may be repeated
  --machines DIR               default: /build/machines/
  --tftp DIR
  --tftp-port N
  --connect-timeout SECONDS
  --request-timeout SECONDS    default: 30
  --request-retries N
  --bootstrap-timeout SECONDS
  --bootstrap-retries N
  --build-timeout SECONDS
  --build-retries N
  --dump-machines              print the machines' manifests and exit
  --dump-task                  ask every controller once, print the tasks, exit
  --fake-machine FILE          send this machine manifest instead of --machines

Environment:
  BBOT_DOUBLE_INTERVAL_MS      milliseconds between polls (default: 5000)
  BBOT_DOUBLE_MACHINE          vm, container or auto (default): virtual machines if
                               QEMU, busybox, tcc and a kernel are installed, otherwise
                               containers
  BBOT_DOUBLE_KERNEL           kernel of virtual machines, vmlinuz-VERSION or a link to
                               one (default: the newest in /boot)
  BBOT_DOUBLE_MISCHIEF         faults to inject, separated by commas: crash-after=N,
                               hang, ignore-term, slow=SECONDS, leak, suspend
";

const VERSION: &str = concat!("bbot-agent double ", env!("CARGO_PKG_VERSION"), "\n");

/// The command of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Prints the usage or the version.
    Print(&'static str),
    /// Runs the agent.
    Run(Options),
}

/// The options with an effect on the stand-in. The others are only validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Log with priorities for the journal (`--systemd-daemon`).
    pub systemd_daemon: bool,
    /// Log level, 0 to 6; from 2 on every poll is logged.
    pub verbose: u8,
    /// Name of the agent's toolchain.
    pub toolchain_name: String,
    /// Version of the agent's toolchain.
    pub toolchain_version: String,
    /// Kinds of builds that the agent accepts.
    pub interactive: Interactive,
    /// RAM for auxiliary machines in KiB.
    pub auxiliary_ram: Option<u64>,
    /// Bridge of the build machines.
    pub bridge: String,
    /// Maximum number of concurrent tasks.
    pub instance_max: u32,
    /// Port of the host to which the workers' TFTP is redirected; 0 for any.
    pub tftp_port: u16,
    /// Key that signs the answers to challenges.
    pub auth_key: Option<PathBuf>,
    /// Directory of the machines.
    pub machines: PathBuf,
    /// File with a machine manifest, which replaces [`Options::machines`].
    pub fake_machine: Option<PathBuf>,
    /// Timeout of a request in seconds.
    pub request_timeout: u64,
    /// Print the machines and exit (`--dump-machines`).
    pub dump_machines: bool,
    /// Poll every controller once, print the tasks and exit (`--dump-task`).
    pub dump_task: bool,
    /// Controllers in the order of the command line; empty only with
    /// [`Options::dump_machines`].
    pub controllers: Vec<Controller>,
}

/// The values of `--interactive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interactive {
    /// Only builds without a login.
    False,
    /// Only interactive builds.
    True,
    /// Both.
    Both,
}

impl Interactive {
    /// Returns the value on the command line and in the task request.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::False => "false",
            Self::True => "true",
            Self::Both => "both",
        }
    }
}

impl FromStr for Interactive {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        [Self::False, Self::True, Self::Both]
            .into_iter()
            .find(|i| i.as_str() == word)
            .ok_or(())
    }
}

/// The reason why a command line is invalid.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// An option is unknown, a value is missing, or bytes are not UTF-8.
    #[error(transparent)]
    Syntax(#[from] lexopt::Error),
    /// The value of an option is out of its range.
    #[error("invalid value {value:?} for {option}: {expected} is expected")]
    Value {
        /// The option with its dashes.
        option: &'static str,
        #[allow(missing_docs)]
        value: String,
        /// A description of valid values.
        expected: &'static str,
    },
    /// An argument is not a controller.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// The command line has no controller.
    #[error("no controller URL is given")]
    NoController,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            systemd_daemon: false,
            verbose: 1,
            toolchain_name: "default".to_owned(),
            toolchain_version: "0.17.0".to_owned(),
            interactive: Interactive::False,
            auxiliary_ram: None,
            bridge: "br1".to_owned(),
            instance_max: 1,
            tftp_port: 0,
            auth_key: None,
            machines: PathBuf::from("/build/machines/"),
            fake_machine: None,
            request_timeout: 30,
            dump_machines: false,
            dump_task: false,
            controllers: Vec::new(),
        }
    }
}

/// Parses a command line without the program's name.
///
/// # Errors
///
/// The command line is one that bbot-agent rejects.
pub fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
) -> Result<Command, UsageError> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") => return Ok(Command::Print(USAGE)),
            Long("version") => return Ok(Command::Print(VERSION)),
            Long("systemd-daemon") => options.systemd_daemon = true,
            Long("verbose") => {
                options.verbose = value(&mut parser, "--verbose", "a number from 0 to 6", |n| {
                    *n <= 6
                })?;
            }
            Long("toolchain-name") => {
                options.toolchain_name = word(&mut parser, "--toolchain-name")?
            }
            Long("toolchain-ver") => {
                options.toolchain_version = word(&mut parser, "--toolchain-ver")?
            }
            Long("interactive") => {
                options.interactive = any(&mut parser, "--interactive", "false, true or both")?;
            }
            Long("auxiliary-ram") => {
                options.auxiliary_ram = Some(any(&mut parser, "--auxiliary-ram", "a size in KiB")?);
            }
            Long("bridge") => options.bridge = word(&mut parser, "--bridge")?,
            Long("machines") => options.machines = parser.value()?.into(),
            Long("fake-machine") => options.fake_machine = Some(parser.value()?.into()),
            Long("request-timeout") => {
                options.request_timeout = positive(&mut parser, "--request-timeout")?;
            }
            Long("dump-machines") => options.dump_machines = true,
            Long("dump-task") => options.dump_task = true,
            Long("cpu") => drop(positive(&mut parser, "--cpu")?),
            Long("instance") => drop(positive(&mut parser, "--instance")?),
            Long("instance-max") => {
                options.instance_max =
                    value(&mut parser, "--instance-max", "a positive number", |n| {
                        *n > 0
                    })?;
            }
            Long("toolchain-num") => drop(positive(&mut parser, "--toolchain-num")?),
            Long("build-ram") => drop(positive(&mut parser, "--build-ram")?),
            Long("nice") => drop(value(&mut parser, "--nice", "-20 to 19", |n: &i8| {
                (-20..=19).contains(n)
            })?),
            Long("connect-timeout") => drop(positive(&mut parser, "--connect-timeout")?),
            Long("bootstrap-timeout") => drop(positive(&mut parser, "--bootstrap-timeout")?),
            Long("build-timeout") => drop(positive(&mut parser, "--build-timeout")?),
            Long("request-retries") => drop(count(&mut parser, "--request-retries")?),
            Long("bootstrap-retries") => drop(count(&mut parser, "--bootstrap-retries")?),
            Long("build-retries") => drop(count(&mut parser, "--build-retries")?),
            Long("tftp-port") => {
                options.tftp_port = any(&mut parser, "--tftp-port", "a port number")?;
            }
            Long("auth-key") => options.auth_key = Some(parser.value()?.into()),
            Long("toolchain-id") => drop(word(&mut parser, "--toolchain-id")?),
            Long("trust") => drop(word(&mut parser, "--trust")?),
            Long("tftp") => drop(parser.value()?),
            Value(url) => options.controllers.push(url.string()?.parse()?),
            Short(_) | Long(_) => return Err(argument.unexpected().into()),
        }
    }
    if options.controllers.is_empty() && !options.dump_machines {
        return Err(UsageError::NoController);
    }
    Ok(Command::Run(options))
}

fn value<T: FromStr>(
    parser: &mut lexopt::Parser,
    option: &'static str,
    expected: &'static str,
    valid: impl Fn(&T) -> bool,
) -> Result<T, UsageError> {
    let value = parser.value()?.string()?;
    match value.parse() {
        Ok(parsed) if valid(&parsed) => Ok(parsed),
        Ok(_) | Err(_) => Err(UsageError::Value {
            option,
            value,
            expected,
        }),
    }
}

fn any<T: FromStr>(
    parser: &mut lexopt::Parser,
    option: &'static str,
    expected: &'static str,
) -> Result<T, UsageError> {
    value(parser, option, expected, |_| true)
}

fn positive(parser: &mut lexopt::Parser, option: &'static str) -> Result<u64, UsageError> {
    value(parser, option, "a positive number", |n| *n > 0)
}

fn count(parser: &mut lexopt::Parser, option: &'static str) -> Result<u64, UsageError> {
    any(parser, option, "a number")
}

fn word(parser: &mut lexopt::Parser, option: &'static str) -> Result<String, UsageError> {
    let plain = |word: &String| !word.is_empty() && !word.contains(|c: char| c.is_control());
    value(parser, option, "a word", plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(arguments: &[&str]) -> String {
        parse(arguments).unwrap_err().to_string()
    }

    #[test]
    fn parser_accepts_every_option_of_the_usage() {
        let values = |metavariable: &str| match metavariable {
            "MODE" => "both",
            "N" | "KiB" | "SECONDS" => "3",
            "" => "",
            _ => "x",
        };
        let mut accepted = 0;
        for line in USAGE.lines() {
            let mut columns = line.trim_start().split("  ");
            let Some(option) = columns.next().filter(|option| option.starts_with("--")) else {
                continue;
            };
            let (option, metavariable) = option.split_once(' ').unwrap_or((option, ""));
            let mut arguments = vec![option, values(metavariable), "http://a"];
            arguments.retain(|argument| !argument.is_empty());
            parse(&arguments).unwrap_or_else(|error| panic!("{option}: {error}"));
            accepted += 1;
        }
        assert_eq!(accepted, 29);
    }

    #[test]
    fn parser_reads_the_command_line_of_a_host() {
        let command = parse([
            "--systemd-daemon",
            "--verbose",
            "3",
            "--toolchain-name",
            "default",
            "--bridge",
            "br1",
            "--instance-max=4",
            "0100=https://ci.example.org",
            "http://192.0.2.1",
        ]);
        let Ok(Command::Run(options)) = command else {
            panic!("{command:?}")
        };
        assert_eq!((options.systemd_daemon, options.verbose), (true, 3));
        assert_eq!(options.controllers.len(), 2);
        assert_eq!(options.bridge, "br1");
    }

    #[test]
    fn help_version_and_dump_machines_need_no_controller() {
        assert_eq!(parse(["--help", "--bad"]).unwrap(), Command::Print(USAGE));
        assert_eq!(parse(["--version"]).unwrap(), Command::Print(VERSION));
        assert!(matches!(parse(["--dump-machines"]), Ok(Command::Run(o)) if o.dump_machines));
        assert_eq!(error(&["--dump-task"]), "no controller URL is given");
    }

    #[test]
    fn invalid_command_line_is_rejected_with_the_reason() {
        assert_eq!(error(&[]), "no controller URL is given");
        assert_eq!(
            error(&["--instances", "4", "http://a"]),
            "invalid option '--instances'"
        );
        assert_eq!(error(&["-v", "http://a"]), "invalid option '-v'");
        assert_eq!(
            error(&["--interactive", "yes", "http://a"]),
            "invalid value \"yes\" for --interactive: false, true or both is expected"
        );
        assert!(error(&["--verbose", "7", "http://a"]).contains("0 to 6"));
        assert!(error(&["--cpu", "0", "http://a"]).contains("positive"));
        assert!(error(&["--tftp-port", "70000", "http://a"]).contains("port"));
        assert!(error(&["12=http://a"]).contains("priority"));
        assert!(error(&["ci.example.org"]).contains("URL"));
    }
}
