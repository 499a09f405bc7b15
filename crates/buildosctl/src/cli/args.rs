//! Parses the command line.

use std::ffi::OsString;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use buildos_agentd::machine::qemu::ConsoleKind;
use buildos_channel::Name;
use buildos_updated::choices::change::Change;
use buildos_volumes::choice::Purpose;
use lexopt::{Arg, Parser, ValueExt as _};

use super::commands::{Command, DEFAULT, Flag, Form, Id, find};
use crate::commands::machine::forward;
use crate::commands::show::{self, View};
use crate::commands::{check, drain, machine, placed, publish, update, volume};
use crate::simulate;

/// A command with its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// A command that shows the host.
    Show(show::Request),
    Drain(drain::Request),
    /// Names of agents; empty for all.
    Resume(Vec<String>),
    /// A command for one machine.
    Machine(machine::Request),
    Renew,
    /// Arguments for journalctl.
    Log(Vec<OsString>),
    Check(Vec<check::Subject>),
    Publish(publish::Request),
    Placed(placed::Request),
    Volume(volume::Request),
    Update(update::Request),
    Simulate(simulate::Request),
    Console,
    /// Help of the command, or of all.
    Help(Option<&'static Command>),
    Version,
}

/// The flags and operands on a command line.
#[derive(Default)]
struct Given {
    json: bool,
    watch: bool,
    wait: bool,
    budget: Option<Duration>,
    daemon: Option<String>,
    cmdline: Option<String>,
    trust: check::Trust,
    channel: Option<Name>,
    name: Option<Name>,
    tree: Option<PathBuf>,
    promotion: publish::Options,
    console: Option<ConsoleKind>,
    time: Option<Duration>,
    port: Option<u16>,
    close: bool,
    disk: Option<PathBuf>,
    yes: Option<String>,
    erase: Option<String>,
    scrub: bool,
    accept_virtual: bool,
    /// All flags.
    flags: Vec<Flag>,
    operands: Vec<String>,
}

/// Parses the arguments.
pub(crate) fn parse(mut parser: Parser) -> Result<Invocation, lexopt::Error> {
    let mut given = Given::default();
    let mut word: Option<String> = None;
    while let Some(argument) = parser.next()? {
        let command = word.as_deref().map_or(Some(DEFAULT), find);
        let flag = match &argument {
            Arg::Short('h') | Arg::Long("help") => {
                return Ok(Invocation::Help(word.and(command)));
            }
            Arg::Short('V') | Arg::Long("version") => return Ok(Invocation::Version),
            Arg::Long(long) => command.and_then(|command| command.flag(long)),
            Arg::Short(_) | Arg::Value(_) => None,
        };
        match (argument, flag) {
            (_, Some(flag)) => given.take(flag, &mut parser)?,
            (Arg::Value(value), None) if word.is_some() => given.operands.push(value.string()?),
            (Arg::Value(value), None) => {
                let value = value.string()?;
                if find(&value).is_some_and(|command| command.id == Id::Log) {
                    return Ok(Invocation::Log(parser.raw_args()?.collect()));
                }
                word = Some(value);
            }
            (argument @ (Arg::Short(_) | Arg::Long(_)), None) => {
                return Err(argument.unexpected());
            }
        }
    }
    match word {
        None => invocation(DEFAULT, given),
        Some(word) => match find(&word) {
            Some(command) => invocation(command, given),
            None => Err(Arg::Value(word.into()).unexpected()),
        },
    }
}

impl Given {
    fn attach(&mut self, kind: ConsoleKind) -> Result<(), lexopt::Error> {
        match self.console.replace(kind) {
            Some(other) if other != kind => Err("choose one console".into()),
            Some(_) | None => Ok(()),
        }
    }

    /// Takes a flag, with the value that follows it.
    fn take(&mut self, flag: Flag, parser: &mut Parser) -> Result<(), lexopt::Error> {
        self.flags.push(flag);
        match flag {
            Flag::Json => self.json = true,
            Flag::Watch => self.watch = true,
            Flag::Wait => self.wait = true,
            Flag::Budget => {
                let seconds: std::num::NonZeroU32 = parser.value()?.parse()?;
                self.budget = Some(Duration::from_secs(seconds.get().into()));
            }
            Flag::Daemon => self.daemon = Some(parser.value()?.string()?),
            Flag::Cmdline => self.cmdline = Some(parser.value()?.string()?),
            Flag::Keyring => self.trust.keyring = Some(parser.value()?.into()),
            Flag::Signatures => {
                let count: std::num::NonZeroU8 = parser.value()?.parse()?;
                self.trust.signatures = Some(count.get());
            }
            Flag::Channel => self.channel = Some(parser.value()?.parse()?),
            Flag::Key => self.promotion.keys.push(parser.value()?.string()?),
            Flag::From => self.promotion.from = Some(parser.value()?.parse()?),
            Flag::Days => self.promotion.days = Some(parser.value()?.parse()?),
            Flag::Percent => {
                let percent: u8 = parser.value()?.parse()?;
                if percent > 100 {
                    return Err("--percent: from 0 to 100".into());
                }
                self.promotion.percent = Some(percent);
            }
            Flag::Name => self.name = Some(parser.value()?.parse()?),
            Flag::Serial => self.attach(ConsoleKind::Serial)?,
            Flag::Monitor => self.attach(ConsoleKind::Monitor)?,
            Flag::Vnc => self.attach(ConsoleKind::Vnc)?,
            Flag::For => self.time = Some(time(&parser.value()?.string()?)?),
            Flag::Port => {
                let port: NonZeroU16 = parser.value()?.parse()?;
                self.port = Some(port.get());
            }
            Flag::Close => self.close = true,
            Flag::Disk => self.disk = Some(parser.value()?.into()),
            Flag::Yes => self.yes = Some(parser.value()?.string()?),
            Flag::Erase => self.erase = Some(parser.value()?.string()?),
            Flag::Scrub => self.scrub = true,
            Flag::Virtual => self.accept_virtual = true,
            Flag::Tree => self.tree = Some(parser.value()?.into()),
            // `parse` handles these before.
            Flag::Help | Flag::Version => {}
        }
        Ok(())
    }
}

/// Parses a time with its unit: `90s`, `30min`, `2h`.
fn time(text: &str) -> Result<Duration, lexopt::Error> {
    let unit = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "s" => Some(1),
        "m" | "min" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let number = number.parse::<u32>().ok();
    let time = number
        .zip(seconds)
        .and_then(|(n, unit)| n.checked_mul(unit));
    match time.filter(|time| *time > 0) {
        Some(time) => Ok(Duration::from_secs(time.into())),
        None => Err(format!("{text:?} is no time: as 90s, 30min or 2h").into()),
    }
}

fn invocation(command: &Command, given: Given) -> Result<Invocation, lexopt::Error> {
    if command.id == Id::Publish {
        return Ok(Invocation::Publish(request(command, given)?));
    }
    if command.id == Id::Machine {
        return Ok(Invocation::Machine(of_machine(command, given)?));
    }
    if command.id == Id::Volume {
        return Ok(Invocation::Volume(of_volume(command, given)?));
    }
    if command.id == Id::Machines && !given.operands.is_empty() {
        return of_machines(command, given);
    }
    if command.id == Id::Update {
        return Ok(Invocation::Update(of_update(command, given)?));
    }
    let limit = command.operands().limit();
    if let Some(unexpected) = limit.and_then(|limit| given.operands.get(limit)) {
        return Err(Arg::Value(unexpected.into()).unexpected());
    }
    let show = |view, agents| {
        Invocation::Show(show::Request {
            view,
            json: given.json,
            watch: given.watch,
            agents,
        })
    };
    Ok(match command.id {
        Id::Status => show(View::Status, given.operands),
        Id::Why => show(View::Why, given.operands),
        Id::Links => show(View::Links, given.operands),
        Id::Leases => show(View::Leases, given.operands),
        Id::Agents => show(View::Agents, given.operands),
        Id::Machines => show(View::Machines, given.operands),
        Id::Metrics => show(View::Metrics, given.operands),
        Id::Drain => Invocation::Drain(drain::Request {
            agents: given.operands,
            budget: given.budget,
            wait: given.wait,
        }),
        Id::Resume => Invocation::Resume(given.operands),
        Id::Renew => Invocation::Renew,
        Id::Log => Invocation::Log(given.operands.into_iter().map(Into::into).collect()),
        Id::Check => Invocation::Check(subjects(given)?),
        Id::Simulate => match given.operands.into_iter().next() {
            Some(path) => Invocation::Simulate(simulate::Request {
                path: path.into(),
                json: given.json,
            }),
            None => return Err("simulate needs a file".into()),
        },
        Id::Console => Invocation::Console,
        // They have verbs.
        Id::Publish | Id::Machine | Id::Volume | Id::Update => {
            return Err(format!("{} needs a verb", command.name).into());
        }
    })
}

/// Returns the request of `machines` with a verb.
fn of_machines(command: &Command, given: Given) -> Result<Invocation, lexopt::Error> {
    let verb = verb(command, &given)?;
    let mut operands = given.operands.into_iter().skip(1);
    match verb.as_str() {
        "list" => return Ok(Invocation::Placed(placed::Request::List)),
        "plan" => return Ok(Invocation::Placed(placed::Request::Plan)),
        "verify" => return Ok(Invocation::Placed(placed::Request::Verify)),
        _ => {}
    }
    let Some(name) = operands.next() else {
        return Err(format!("machines {verb} needs the name of a machine").into());
    };
    Ok(Invocation::Update(update::Request::Change(
        match verb.as_str() {
            "add" => Change::Add(name),
            "remove" => Change::Remove(name),
            "unpin" => Change::Unpin(name),
            _ => Change::Pin(name, operands.next().map(revision).transpose()?),
        },
    )))
}

fn revision(text: String) -> Result<u64, lexopt::Error> {
    let revision = text.parse().ok().filter(|revision| *revision > 0);
    revision.ok_or_else(|| format!("{text:?} is no revision").into())
}

/// Returns the request of `update`.
fn of_update(command: &Command, given: Given) -> Result<update::Request, lexopt::Error> {
    let verb = verb(command, &given)?;
    let words: Vec<_> = given.operands.into_iter().skip(1).collect();
    Ok(match verb.as_str() {
        "status" => update::Request::Status,
        "check" => update::Request::Check { wait: given.wait },
        "now" => update::Request::Now { wait: given.wait },
        "history" => update::Request::History,
        "hold" => update::Request::Change(Change::Hold(words.join(" "))),
        _ => update::Request::Change(Change::Resume),
    })
}

/// Checks verb and flags of a command with verbs, such as `publish init DIR`. Returns the verb.
fn verb(command: &Command, given: &Given) -> Result<String, lexopt::Error> {
    let verb = given.operands.first().cloned();
    let form = verb.as_deref().and_then(|verb| command.form(verb));
    let (Some(form), Some(verb)) = (form, verb) else {
        let verbs: Vec<_> = command.forms.iter().filter_map(|form| form.verb).collect();
        return Err(format!("{} needs one of {}", command.name, verbs.join(", ")).into());
    };
    let has = |form: &Form, flag| form.optional.contains(flag) || form.required.contains(flag);
    if let Some(flag) = given.flags.iter().find(|flag| !has(form, flag)) {
        return Err(Arg::Long(flag.long()).unexpected());
    }
    if let Some(flag) = form
        .required
        .iter()
        .find(|flag| !given.flags.contains(flag))
    {
        return Err(format!("{} {verb} needs --{}", command.name, flag.long()).into());
    }
    let limit = form.operands.limit();
    let unexpected = limit.and_then(|limit| given.operands.get(1 + limit));
    match unexpected {
        Some(unexpected) => Err(Arg::Value(unexpected.into()).unexpected()),
        None => Ok(verb),
    }
}

/// Returns the request of `machine`.
fn of_machine(command: &Command, given: Given) -> Result<machine::Request, lexopt::Error> {
    let verb = verb(command, &given)?;
    let mut operands = given.operands.into_iter().skip(1);
    let Some(link) = operands.next() else {
        return Err(format!("machine {verb} needs the port of a machine").into());
    };
    if verb == "attach" {
        return Ok(machine::Request::Attach(link, given.console));
    }
    let port = operands.next().ok_or("machine forward needs a TCP port")?;
    let port: NonZeroU16 = port.parse().map_err(|_| format!("{port:?} is no port"))?;
    let action = match given.close {
        true if given.time.is_some() || given.port.is_some() => {
            return Err("--close takes neither --for nor --port".into());
        }
        true => forward::Action::Close,
        false => forward::Action::Open {
            time: given.time,
            outside: given.port,
        },
    };
    Ok(machine::Request::Forward(forward::Request {
        link,
        port: port.get(),
        action,
    }))
}

/// Returns the request of `volume`.
fn of_volume(command: &Command, given: Given) -> Result<volume::Request, lexopt::Error> {
    let verb = verb(command, &given)?;
    let accept_virtual = given.accept_virtual;
    match verb.as_str() {
        "list" => return Ok(volume::Request::List { accept_virtual }),
        "check" => {
            return Ok(volume::Request::Check {
                scrub: given.scrub,
                accept_virtual,
            });
        }
        _ => {}
    }
    let purpose = match given.operands.get(1).map(String::as_str) {
        Some("state") => Purpose::State,
        Some("machines") => Purpose::Machines,
        Some(_) | None => return Err("volume create needs state or machines".into()),
    };
    if purpose == Purpose::State && given.name.is_some() {
        return Err("only machine volumes have a name".into());
    }
    if given.yes.is_some() && given.erase.is_some() {
        return Err("--yes is for an empty device, --erase for one with content".into());
    }
    Ok(volume::Request::Create(volume::create::Request {
        purpose,
        disk: given.disk.ok_or("volume create needs --disk")?,
        name: given.name,
        yes: given.yes,
        erase: given.erase,
        accept_virtual,
    }))
}

/// Returns the request of `publish`.
fn request(command: &Command, given: Given) -> Result<publish::Request, lexopt::Error> {
    let verb = verb(command, &given)?;
    let mut operands = given.operands.into_iter().skip(1);
    let Some(directory) = operands.next() else {
        return Err(format!("{} {verb} needs a directory", command.name).into());
    };
    let channel = match given.channel {
        Some(channel) => channel,
        None => publish::DEFAULT_CHANNEL.parse().map_err(|_| "no channel")?,
    };
    let place = |tree: String| publish::Place {
        tree: tree.into(),
        channel: channel.clone(),
    };
    Ok(match verb.as_str() {
        "machine" | "container" => {
            let mut place = place(String::from("."));
            place.tree = given.tree.unwrap_or(place.tree);
            let source = publish::Source {
                directory: directory.into(),
                name: given
                    .name
                    .ok_or_else(|| format!("publish {verb} needs --name"))?,
                kind: verb.parse().map_err(|_| "no kind of machine")?,
            };
            publish::Request::Machine(place, source)
        }
        "os" => {
            let mut place = place(String::from("."));
            place.tree = given.tree.unwrap_or(place.tree);
            let source = publish::OsSource {
                directory: directory.into(),
                version: given.name,
            };
            publish::Request::Os(place, source)
        }
        "agent" => {
            let mut place = place(String::from("."));
            place.tree = given.tree.unwrap_or(place.tree);
            let source = publish::AgentSource {
                file: directory.into(),
                version: given.name,
            };
            publish::Request::Agent(place, source)
        }
        "init" => publish::Request::Init(place(directory)),
        "promote" => publish::Request::Promote(place(directory), given.promotion),
        _ => publish::Request::Show(place(directory)),
    })
}

fn subjects(given: Given) -> Result<Vec<check::Subject>, lexopt::Error> {
    let line = given.cmdline.map(check::Subject::CommandLine);
    let files = given.operands.into_iter().map(|path| check::Subject::File {
        path: path.into(),
        daemon: given.daemon.clone(),
        trust: given.trust.clone(),
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
    use crate::cli::commands::{COMMANDS, Operands, Value};
    use buildos_channel::model::Kind;

    fn parsed(words: &[&str]) -> Result<Invocation, String> {
        parse(Parser::from_args(words)).map_err(|e| e.to_string())
    }

    fn show(view: View) -> show::Request {
        show::Request {
            view,
            json: false,
            watch: false,
            agents: Vec::new(),
        }
    }

    #[test]
    fn show_commands_take_json_and_watch() {
        assert_eq!(parsed(&[]), Ok(Invocation::Show(show(View::Status))));
        for (word, view) in [
            ("status", View::Status),
            ("why", View::Why),
            ("links", View::Links),
            ("leases", View::Leases),
            ("agents", View::Agents),
            ("machines", View::Machines),
            ("metrics", View::Metrics),
        ] {
            assert_eq!(parsed(&[word]), Ok(Invocation::Show(show(view))));
        }
        let everything = show::Request {
            json: true,
            watch: true,
            agents: vec!["bbot@a".into()],
            ..show(View::Why)
        };
        assert_eq!(
            parsed(&["why", "--json", "bbot@a", "--watch"]),
            Ok(Invocation::Show(everything))
        );
        assert_eq!(parsed(&["--help"]), Ok(Invocation::Help(None)));
        assert_eq!(
            parsed(&["status", "--help"]),
            Ok(Invocation::Help(find("status")))
        );
        assert!(parsed(&["metrics", "--json"]).is_err());
        for bad in [&["stat"][..], &["status", "stat"], &["renew", "stat"]] {
            assert_eq!(parsed(bad), Err("unexpected argument \"stat\"".into()));
        }
    }

    #[test]
    fn machines_take_a_verb() {
        for (verb, request) in [
            ("list", placed::Request::List),
            ("plan", placed::Request::Plan),
            ("verify", placed::Request::Verify),
        ] {
            assert_eq!(parsed(&["machines", verb]), Ok(Invocation::Placed(request)));
            assert!(parsed(&["machines", verb, "--json"]).is_err());
            assert!(parsed(&["machines", verb, "x"]).is_err());
        }
        assert!(parsed(&["machines", "x"]).is_err());
    }

    #[test]
    fn choices_take_a_name_a_revision_or_a_reason() {
        let name = || "box".to_owned();
        let change = |change| Ok(Invocation::Update(update::Request::Change(change)));
        for (line, expected) in [
            ("machines add box", change(Change::Add(name()))),
            ("machines remove box", change(Change::Remove(name()))),
            ("machines pin box", change(Change::Pin(name(), None))),
            ("machines pin box 3", change(Change::Pin(name(), Some(3)))),
            ("machines unpin box", change(Change::Unpin(name()))),
            ("update hold", change(Change::Hold(String::new()))),
            (
                "update hold release week",
                change(Change::Hold("release week".to_owned())),
            ),
            ("update resume", change(Change::Resume)),
            (
                "update status",
                Ok(Invocation::Update(update::Request::Status)),
            ),
            (
                "update now --wait",
                Ok(Invocation::Update(update::Request::Now { wait: true })),
            ),
            (
                "update history",
                Ok(Invocation::Update(update::Request::History)),
            ),
            (
                "update check --wait",
                Ok(Invocation::Update(update::Request::Check { wait: true })),
            ),
        ] {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(parsed(&words), expected, "{line}");
        }
        for (bad, reason) in [
            ("machines pin", "machines pin needs the name of a machine"),
            ("machines pin box new", "\"new\" is no revision"),
            ("machines pin box 0", "\"0\" is no revision"),
            ("machines unpin box 3", "unexpected argument \"3\""),
            (
                "update",
                "update needs one of status, check, now, history, hold, resume",
            ),
            ("update resume now", "unexpected argument \"now\""),
            ("update status --wait", "invalid option '--wait'"),
        ] {
            let words: Vec<_> = bad.split(' ').collect();
            assert_eq!(parsed(&words), Err(reason.into()), "{bad}");
        }
    }

    #[test]
    fn volume_takes_a_verb_and_create_a_purpose_and_a_disk() {
        let list = volume::Request::List {
            accept_virtual: false,
        };
        assert_eq!(parsed(&["volume", "list"]), Ok(Invocation::Volume(list)));
        let check = volume::Request::Check {
            scrub: true,
            accept_virtual: false,
        };
        let words = ["volume", "check", "--scrub"];
        assert_eq!(parsed(&words), Ok(Invocation::Volume(check)));
        let create = volume::create::Request {
            purpose: Purpose::Machines,
            disk: "/dev/sda".into(),
            name: "fast".parse().ok(),
            yes: Some("SSD-1".into()),
            erase: None,
            accept_virtual: false,
        };
        let words = [
            &["volume", "create", "machines", "--disk", "/dev/sda"][..],
            &["--name", "fast", "--yes", "SSD-1"],
        ]
        .concat();
        let create = Invocation::Volume(volume::Request::Create(create));
        assert_eq!(parsed(&words), Ok(create));
        for (bad, reason) in [
            ("volume", "volume needs one of list, check, create"),
            ("volume create state", "volume create needs --disk"),
            (
                "volume create --disk d",
                "volume create needs state or machines",
            ),
            (
                "volume create swap --disk d",
                "volume create needs state or machines",
            ),
            (
                "volume create state --disk d --name x",
                "only machine volumes have a name",
            ),
            (
                "volume create state --disk d --yes x --erase x",
                "--yes is for an empty device, --erase for one with content",
            ),
            ("volume list --erase x", "invalid option '--erase'"),
        ] {
            let words: Vec<_> = bad.split(' ').collect();
            assert_eq!(parsed(&words), Err(reason.into()), "{bad}");
        }
    }

    #[test]
    fn drain_and_resume_take_agents() {
        let everything = drain::Request {
            agents: vec!["bbot@a".into(), "bslave@b".into()],
            budget: Some(Duration::from_secs(60)),
            wait: true,
        };
        assert_eq!(
            parsed(&["drain", "--wait", "bbot@a", "--budget=60", "bslave@b"]),
            Ok(Invocation::Drain(everything))
        );
        assert_eq!(
            parsed(&["drain"]),
            Ok(Invocation::Drain(drain::Request::default()))
        );
        assert_eq!(
            parsed(&["resume", "bbot@a"]),
            Ok(Invocation::Resume(vec!["bbot@a".into()]))
        );
        assert!(parsed(&["drain", "--budget", "0"]).is_err());
        assert!(parsed(&["resume", "--wait"]).is_err());
    }

    #[test]
    fn arguments_after_log_are_passed_to_journalctl() {
        let arguments = ["-f", "--help", "-n", "3"].map(OsString::from);
        assert_eq!(
            parsed(&["log", "-f", "--help", "-n", "3"]),
            Ok(Invocation::Log(arguments.into()))
        );
    }

    #[test]
    fn check_takes_files_or_a_command_line() {
        let file = |path: &str, daemon: Option<&str>| check::Subject::File {
            path: path.into(),
            daemon: daemon.map(str::to_owned),
            trust: check::Trust::default(),
        };
        assert_eq!(
            parsed(&["check", "a", "b"]),
            Ok(Invocation::Check(vec![file("a", None), file("b", None)]))
        );
        assert_eq!(
            parsed(&["check", "--daemon=netd", "a"]),
            Ok(Invocation::Check(vec![file("a", Some("netd"))]))
        );
        assert_eq!(
            parsed(&["check", "--cmdline", "quiet"]),
            Ok(Invocation::Check(vec![check::Subject::CommandLine(
                "quiet".into()
            )]))
        );
        assert!(parsed(&["check"]).is_err());
    }

    #[test]
    fn simulate_takes_one_file() {
        let simulation = |json| {
            let path = "a.toml".into();
            Ok(Invocation::Simulate(simulate::Request { path, json }))
        };
        assert_eq!(parsed(&["simulate", "a.toml"]), simulation(false));
        assert_eq!(parsed(&["simulate", "--json", "a.toml"]), simulation(true));
        assert_eq!(parsed(&["--json", "simulate", "a.toml"]), simulation(true));
        for bad in [
            &["simulate"][..],
            &["simulate", "a", "b"],
            &["simulate", "--watch", "a"],
            &["--simulate", "a"],
            &["--json", "--simulate=a"],
            &["status", "--simulate", "a"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn check_takes_keyring_and_threshold_of_a_channel() {
        let trust = check::Trust {
            keyring: Some("keys".into()),
            signatures: Some(2),
        };
        let subject = check::Subject::File {
            path: "channel/stable".into(),
            daemon: None,
            trust,
        };
        assert_eq!(
            parsed(&[
                "check",
                "--keyring=keys",
                "--signatures",
                "2",
                "channel/stable"
            ]),
            Ok(Invocation::Check(vec![subject]))
        );
        assert!(parsed(&["check", "--signatures=0", "a"]).is_err());
    }

    #[test]
    fn publish_takes_a_verb_and_its_own_flags() {
        let place = |channel: &str| publish::Place {
            tree: "www".into(),
            channel: channel.parse().unwrap(),
        };
        assert_eq!(
            parsed(&["publish", "init", "www"]),
            Ok(Invocation::Publish(publish::Request::Init(place("stable"))))
        );
        assert_eq!(
            parsed(&["publish", "show", "www", "--channel=canary"]),
            Ok(Invocation::Publish(publish::Request::Show(place("canary"))))
        );
        let source = publish::Source {
            directory: "box".into(),
            name: "m".parse().unwrap(),
            kind: Kind::Container,
        };
        assert_eq!(
            parsed(&["publish", "container", "box", "--name", "m", "--tree=www"]),
            Ok(Invocation::Publish(publish::Request::Machine(
                place("stable"),
                source
            )))
        );
        let source = publish::OsSource {
            directory: "image".into(),
            version: Some("12.5".parse().unwrap()),
        };
        assert_eq!(
            parsed(&["publish", "os", "image", "--name=12.5", "--tree=www"]),
            Ok(Invocation::Publish(publish::Request::Os(
                place("stable"),
                source
            )))
        );
        let options = publish::Options {
            keys: vec!["A".to_owned(), "B".to_owned()],
            from: Some("canary".parse().unwrap()),
            days: Some(7),
            percent: Some(10),
        };
        let words = "publish promote www --key A --key=B --from canary --days 7 --percent 10";
        let words: Vec<_> = words.split(' ').collect();
        assert_eq!(
            parsed(&words),
            Ok(Invocation::Publish(publish::Request::Promote(
                place("stable"),
                options
            )))
        );
        for bad in [
            "publish",
            "publish init",
            "publish www",
            "publish init www more",
            "publish init www --key A",
            "publish promote www",
            "publish machine box",
            "publish promote www --key A --percent 101",
            "publish show www --channel ../x",
        ] {
            let words: Vec<_> = bad.split(' ').collect();
            assert!(parsed(&words).is_err(), "{bad}");
        }
    }

    #[test]
    fn machine_takes_a_verb_and_its_own_flags() {
        let request = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            match parsed(&words) {
                Ok(Invocation::Machine(request)) => request,
                other => panic!("{line}: {other:?}"),
            }
        };
        let attach = |kind| machine::Request::Attach("tap0".into(), kind);
        assert_eq!(request("machine attach tap0"), attach(None));
        let monitor = attach(Some(ConsoleKind::Monitor));
        assert_eq!(request("machine attach --monitor tap0"), monitor);
        let forward = |action| {
            machine::Request::Forward(forward::Request {
                link: "tap0".into(),
                port: 22,
                action,
            })
        };
        let open = |time: Option<u64>, outside| forward::Action::Open {
            time: time.map(Duration::from_secs),
            outside,
        };
        for (line, action) in [
            ("machine forward tap0 22", open(None, None)),
            ("machine forward tap0 22 --for 2h", open(Some(7200), None)),
            (
                "machine forward --for=30min tap0 22",
                open(Some(1800), None),
            ),
            ("machine forward --for=1m tap0 22", open(Some(60), None)),
            (
                "machine forward --for=5s --port 2222 tap0 22",
                open(Some(5), Some(2222)),
            ),
            ("machine forward --close tap0 22", forward::Action::Close),
        ] {
            assert_eq!(request(line), forward(action), "{line}");
        }
        for bad in [
            "machine",
            "machine tap0",
            "machine attach",
            "machine attach tap0 22",
            "machine attach tap0 --serial --vnc",
            "machine attach tap0 --for 1h",
            "machine forward tap0",
            "machine forward tap0 0",
            "machine forward tap0 ssh",
            "machine forward tap0 22 23",
            "machine forward tap0 22 --vnc",
            "machine forward tap0 22 --for 2",
            "machine forward tap0 22 --for 0s",
            "machine forward tap0 22 --for 2d",
            "machine forward tap0 22 --port 0",
            "machine forward tap0 22 --close --for 1h",
        ] {
            let words: Vec<_> = bad.split(' ').collect();
            assert!(parsed(&words).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_command_of_the_table_is_parsed() {
        let value = |flag: Flag| match flag.value() {
            None => format!("--{}", flag.long()),
            Some(Value::Seconds | Value::Number) => format!("--{}=1", flag.long()),
            Some(
                Value::Daemon
                | Value::Text
                | Value::Name
                | Value::Key
                | Value::File
                | Value::Directory
                | Value::Device
                | Value::Identity,
            ) => {
                format!("--{}=natd", flag.long())
            }
            Some(Value::Time) => format!("--{}=2h", flag.long()),
        };
        for command in &COMMANDS {
            for form in command.forms {
                let mut arguments = vec![command.name.to_owned()];
                arguments.extend(form.verb.map(str::to_owned));
                match form.operands {
                    Operands::Files
                    | Operands::File
                    | Operands::Directory
                    | Operands::Tap
                    | Operands::Name
                    | Operands::NameAndRevision => arguments.push("a".to_owned()),
                    Operands::Volume => arguments.push("machines".to_owned()),
                    Operands::TapAndPort => {
                        arguments.extend(["tap0".to_owned(), "22".to_owned()]);
                    }
                    Operands::None | Operands::Agents | Operands::Journalctl | Operands::Reason => {
                    }
                }
                arguments.extend(form.required.iter().map(|flag| value(*flag)));
                let words: Vec<_> = arguments.iter().map(String::as_str).collect();
                assert!(parsed(&words).is_ok(), "{words:?}");
                for flag in form.optional {
                    let with_flag = [arguments.clone(), vec![value(*flag)]].concat();
                    let words: Vec<_> = with_flag.iter().map(String::as_str).collect();
                    assert!(parsed(&words).is_ok(), "{words:?}");
                }
            }
        }
    }
}
