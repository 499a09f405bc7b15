//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt as _};

use crate::commands::check;
use crate::commands::drain;
use crate::commands::show::View;
use crate::simulate;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Usage: buildosctl [status | links | leases | agents] [--json] [--watch]
       buildosctl why [--json] [--watch] [AGENT...]
       buildosctl drain [--wait] [--budget SECONDS] [AGENT...]
       buildosctl resume [AGENT...]
       buildosctl renew
       buildosctl log [ARGUMENT OF journalctl...]
       buildosctl check [--daemon NAME] FILE...
       buildosctl check --cmdline STRING
       buildosctl simulate [--json] FILE
       buildosctl metrics

Asks the daemons of this build host over the system bus.

Commands:
  status         the host on one screen; also without a command
  why            why this host does not build, and what to do; for these agents
                 (bbot@default) or for all
  links          the network interfaces, and why each is used or not
  leases         the host's own lease and those of the machines on br1
  agents         what each agent does, and what it waits for
  drain          let the tasks of agents (all, if none is named) end, then stop
                 them, until they are resumed
  resume         take that back
  renew          ask the DHCP server to extend the lease now
  log            the journal of everything of buildos since the boot
  check          look for mistakes in configuration: files of the daemons, of
                 PXELINUX, iPXE and GRUB, or a kernel command line
  simulate       what would happen with the NICs, servers and settings that a file
                 describes; --simulate FILE does the same
  metrics        numbers for Prometheus
  console        keep the status on the consoles, see buildos-console.service

Options:
  --json         one JSON object on a line
  --watch        again whenever something changes
  --wait         drain: return when no task runs any more
  --budget N     drain: stop agents whose tasks run after N seconds
  --daemon NAME  check: the files are netd's, hostnamed's, natd's or agentd's
  --cmdline S    check: this kernel command line
  --simulate F   as the command simulate with this file
  -h, --help     show this
  -V, --version  show the version

Exit status: 0; 1 when a daemon does not answer or refuses, or check or
simulate finds mistakes; 2 when the arguments make no sense. why: 0 when the host builds or could,
3 when it is out of service, from 10 on by the broken link (buildosctl(1)).
";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Show something.
    Show(Request),
    /// Let tasks end.
    Drain(drain::Request),
    /// Take that back.
    Resume(Vec<String>),
    /// Extend the lease.
    Renew,
    /// Show the journal, with these further arguments.
    Log(Vec<OsString>),
    /// Look for mistakes.
    Check(Vec<check::Subject>),
    /// Say what would happen.
    Simulate(simulate::Request),
    /// Keep the consoles.
    Console,
    /// Show [`HELP`].
    Help,
    /// Show the version.
    Version,
}

/// What is to be shown, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What.
    pub(crate) view: View,
    /// As JSON.
    pub(crate) json: bool,
    /// Again and again.
    pub(crate) watch: bool,
    /// Only these agents; none stands for all.
    pub(crate) agents: Vec<String>,
}

/// Options before they are judged.
#[derive(Default)]
struct Given {
    words: Vec<String>,
    json: bool,
    watch: bool,
    wait: bool,
    budget: Option<Duration>,
    daemon: Option<String>,
    cmdline: Option<String>,
    simulate: Option<PathBuf>,
}

/// Reads the arguments.
pub(crate) fn parse(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let mut given = Given::default();
    while let Some(argument) = parser.next()? {
        let command = given.words.first().map_or("status", String::as_str);
        let shows = matches!(command, "status" | "why" | "links" | "leases" | "agents");
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Short('V') | Arg::Long("version") => return Ok(Command::Version),
            Arg::Long("json") if shows || command == "simulate" => given.json = true,
            Arg::Long("watch") if shows => given.watch = true,
            Arg::Long("simulate") if given.words.is_empty() => {
                given.simulate = Some(parser.value()?.into());
            }
            Arg::Long("wait") if command == "drain" => given.wait = true,
            Arg::Long("budget") if command == "drain" => {
                let seconds: std::num::NonZeroU32 = parser.value()?.parse()?;
                given.budget = Some(Duration::from_secs(seconds.get().into()));
            }
            Arg::Long("daemon") if command == "check" => {
                given.daemon = Some(parser.value()?.string()?);
            }
            Arg::Long("cmdline") if command == "check" => {
                given.cmdline = Some(parser.value()?.string()?);
            }
            Arg::Value(word) if given.words.is_empty() && word == "log" => {
                return Ok(Command::Log(parser.raw_args()?.collect()));
            }
            Arg::Value(word) => given.words.push(word.string()?),
            Arg::Short(_) | Arg::Long(_) => return Err(argument.unexpected()),
        }
    }
    judged(given)
}

fn judged(given: Given) -> Result<Command, lexopt::Error> {
    let simulation = |path| {
        Ok(Command::Simulate(simulate::Request {
            path,
            json: given.json,
        }))
    };
    match (given.simulate, given.words.as_slice(), given.watch) {
        (Some(path), [], false) => return simulation(path),
        (Some(_), [], true) => return Err(Arg::Long("watch").unexpected()),
        (Some(_), [unexpected, ..], _) => return Err(Arg::Value(unexpected.into()).unexpected()),
        (None, ..) => {}
    }
    let mut words = given.words.into_iter();
    let command = words.next().unwrap_or_else(|| "status".to_owned());
    let rest: Vec<String> = words.collect();
    let view = match command.as_str() {
        "status" => Some(View::Status),
        "why" => Some(View::Why),
        "links" => Some(View::Links),
        "leases" => Some(View::Leases),
        "agents" => Some(View::Agents),
        "metrics" => Some(View::Metrics),
        _ => None,
    };
    match (view, command.as_str(), rest.as_slice()) {
        (Some(view), _, agents) if view == View::Why || agents.is_empty() => {
            Ok(Command::Show(Request {
                view,
                json: given.json,
                watch: given.watch,
                agents: rest,
            }))
        }
        (None, "drain", _) => Ok(Command::Drain(drain::Request {
            agents: rest,
            budget: given.budget,
            wait: given.wait,
        })),
        (None, "resume", _) => Ok(Command::Resume(rest)),
        (None, "renew", []) => Ok(Command::Renew),
        (None, "console", []) => Ok(Command::Console),
        (None, "simulate", [path]) => simulation(path.into()),
        (None, "simulate", []) => Err("simulate needs a file".into()),
        (None, "check", files) => subjects(files, given.daemon, given.cmdline).map(Command::Check),
        (Some(_), _, [unexpected, ..])
        | (None, "renew" | "console", [unexpected, ..])
        | (None, "simulate", [_, unexpected, ..]) => {
            Err(Arg::Value(unexpected.into()).unexpected())
        }
        _ => Err(Arg::Value(command.into()).unexpected()),
    }
}

fn subjects(
    files: &[String],
    daemon: Option<String>,
    cmdline: Option<String>,
) -> Result<Vec<check::Subject>, lexopt::Error> {
    let line = cmdline.map(check::Subject::CommandLine);
    let files = files.iter().map(|path| check::Subject::File {
        path: path.into(),
        daemon: daemon.clone(),
    });
    let subjects: Vec<_> = line.into_iter().chain(files).collect();
    if subjects.is_empty() {
        return Err("check needs a file, or --cmdline".into());
    }
    Ok(subjects)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Command, String> {
        parse(Parser::from_args(words)).map_err(|e| e.to_string())
    }

    fn show(view: View) -> Request {
        Request {
            view,
            json: false,
            watch: false,
            agents: Vec::new(),
        }
    }

    #[test]
    fn views() {
        assert_eq!(parsed(&[]), Ok(Command::Show(show(View::Status))));
        for (word, view) in [
            ("status", View::Status),
            ("why", View::Why),
            ("links", View::Links),
            ("leases", View::Leases),
            ("agents", View::Agents),
            ("metrics", View::Metrics),
        ] {
            assert_eq!(parsed(&[word]), Ok(Command::Show(show(view))));
        }
        let everything = Request {
            json: true,
            watch: true,
            agents: vec!["bbot@a".into()],
            ..show(View::Why)
        };
        assert_eq!(
            parsed(&["why", "--json", "bbot@a", "--watch"]),
            Ok(Command::Show(everything))
        );
        assert_eq!(parsed(&["status", "--help"]), Ok(Command::Help));
        assert!(parsed(&["metrics", "--json"]).is_err());
        for bad in [&["stat"][..], &["status", "stat"], &["renew", "stat"]] {
            assert_eq!(parsed(bad), Err("unexpected argument \"stat\"".into()));
        }
    }

    #[test]
    fn drain_and_resume() {
        let everything = drain::Request {
            agents: vec!["bbot@a".into(), "bslave@b".into()],
            budget: Some(Duration::from_secs(60)),
            wait: true,
        };
        assert_eq!(
            parsed(&["drain", "--wait", "bbot@a", "--budget=60", "bslave@b"]),
            Ok(Command::Drain(everything))
        );
        assert_eq!(
            parsed(&["drain"]),
            Ok(Command::Drain(drain::Request::default()))
        );
        assert_eq!(
            parsed(&["resume", "bbot@a"]),
            Ok(Command::Resume(vec!["bbot@a".into()]))
        );
        assert!(parsed(&["drain", "--budget", "0"]).is_err());
        assert!(parsed(&["resume", "--wait"]).is_err());
    }

    #[test]
    fn what_follows_log_is_for_journalctl() {
        let arguments = ["-f", "--help", "-n", "3"].map(OsString::from);
        assert_eq!(
            parsed(&["log", "-f", "--help", "-n", "3"]),
            Ok(Command::Log(arguments.into()))
        );
    }

    #[test]
    fn check() {
        let file = |path: &str, daemon: Option<&str>| check::Subject::File {
            path: path.into(),
            daemon: daemon.map(str::to_owned),
        };
        assert_eq!(
            parsed(&["check", "a", "b"]),
            Ok(Command::Check(vec![file("a", None), file("b", None)]))
        );
        assert_eq!(
            parsed(&["check", "--daemon=netd", "a"]),
            Ok(Command::Check(vec![file("a", Some("netd"))]))
        );
        assert_eq!(
            parsed(&["check", "--cmdline", "quiet"]),
            Ok(Command::Check(vec![check::Subject::CommandLine(
                "quiet".into()
            )]))
        );
        assert!(parsed(&["check"]).is_err());
    }

    #[test]
    fn simulate() {
        let simulation = |json| {
            let path = "a.toml".into();
            Ok(Command::Simulate(simulate::Request { path, json }))
        };
        assert_eq!(parsed(&["simulate", "a.toml"]), simulation(false));
        assert_eq!(parsed(&["--simulate", "a.toml"]), simulation(false));
        assert_eq!(parsed(&["simulate", "--json", "a.toml"]), simulation(true));
        assert_eq!(parsed(&["--json", "--simulate=a.toml"]), simulation(true));
        for bad in [
            &["simulate"][..],
            &["simulate", "a", "b"],
            &["simulate", "--watch", "a"],
            &["--simulate", "a", "status"],
            &["--watch", "--simulate", "a"],
            &["status", "--simulate", "a"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }

    /// What the shells complete is what there is.
    #[test]
    fn completions_know_every_command_and_option() {
        let bash = include_str!("../../completion/bash/buildosctl");
        let zsh = include_str!("../../completion/zsh/_buildosctl");
        let commands = HELP.split("Commands:\n").nth(1).unwrap();
        let (commands, options) = commands.split_once("\nOptions:\n").unwrap();
        let options = options.split_once("\n\n").unwrap().0;
        let first_words = |text: &str| -> Vec<String> {
            let lines = text
                .lines()
                .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
            lines
                .flat_map(|line| line.split("  ").nth(1).unwrap().split(", "))
                .map(|word| word.split(' ').next().unwrap().to_owned())
                .collect()
        };
        let words = [first_words(commands), first_words(options)].concat();
        assert!(words.contains(&"why".to_owned()) && words.contains(&"--version".to_owned()));
        for word in words.iter().filter(|word| word.len() > 2) {
            assert!(bash.contains(word.as_str()), "bash does not know {word}");
            assert!(zsh.contains(word.as_str()), "zsh does not know {word}");
        }
    }
}
