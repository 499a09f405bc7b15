//! Configuration, looked at before it is in force, by the parser that the daemons
//! have: the same schemas, the same messages.
//!
//! Each source is looked at by itself. `buildos-NAME --check` on the host reads all
//! of them together.

use std::fs;
use std::path::{Path, PathBuf};

use buildos_service::cmdline;
use buildos_service::config::{Fragment, Origin, Problem, Schema, evaluate};

mod boot_loader;

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A file of a daemon, or of a boot loader.
    File {
        /// Where it is.
        path: PathBuf,
        /// `netd`, …, when its directory does not tell.
        daemon: Option<String>,
    },
    /// A kernel command line.
    CommandLine(String),
}

/// The kernel cuts what is longer (COMMAND_LINE_SIZE, arch/x86/include/asm/setup.h).
const LONGEST: usize = 2047;

/// What is wrong, one line each; an error when nothing could be looked at.
pub(crate) fn check(subject: &Subject) -> Result<Vec<String>, String> {
    match subject {
        Subject::CommandLine(line) => Ok(command_line(line, "command line")),
        Subject::File { path, daemon } => {
            let text = fs::read_to_string(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            file(path, daemon.as_deref().or(owner(path)), &text)
        }
    }
}

/// The daemon whose directory the file is in: `…/netd.conf.d/x.toml`.
pub(crate) fn owner(path: &Path) -> Option<&str> {
    let directory = path.parent()?.file_name()?.to_str()?;
    directory.strip_suffix(".conf.d")
}

fn file(path: &Path, daemon: Option<&str>, text: &str) -> Result<Vec<String>, String> {
    if let Some(daemon) = daemon {
        let fragment = Fragment {
            origin: Origin::File(path.to_owned()),
            text: text.to_owned(),
        };
        let schemas = Daemon::all();
        let daemon = schemas
            .iter()
            .find(|known| known.name == daemon)
            .ok_or_else(|| {
                let names: Vec<_> = schemas.iter().map(|known| known.name).collect();
                format!("{daemon:?} is none of {}", names.join(", "))
            })?;
        let mut problems = strings(&(daemon.problems)(&fragment));
        if path.extension().is_none_or(|end| end != "toml") {
            let path = path.display();
            problems.push(format!("{path}: ignored: its name does not end in .toml"));
        }
        return Ok(problems);
    }
    let lines = boot_loader::parse(text).ok_or_else(|| {
        format!(
            "{} is neither in a NAME.conf.d directory nor a file of PXELINUX, iPXE or GRUB; say whose it is with --daemon NAME",
            path.display()
        )
    })?;
    let each = lines.iter().flat_map(|line| {
        command_line(
            &line.parameters,
            &format!("{}:{}", path.display(), line.line),
        )
    });
    Ok(each.collect())
}

/// What all daemons together find in a command line, and what none of them looks at.
fn command_line(line: &str, place: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if line.len() > LONGEST {
        problems.push(format!(
            "{place}: {} bytes, of which the kernel takes {LONGEST}",
            line.len()
        ));
    }
    let daemons = Daemon::all();
    let fragment = Fragment {
        origin: Origin::KernelCommandLine,
        text: line.to_owned(),
    };
    for daemon in &daemons {
        for mut problem in (daemon.problems)(&fragment) {
            problem.origin = Origin::File(place.into());
            problems.push(problem.to_string());
        }
    }
    for parameter in cmdline::parse(line) {
        if !daemons.iter().any(|daemon| daemon.looks_at(&parameter.key)) {
            problems.extend(nobodys(&parameter.key, place, &daemons));
        }
    }
    problems
}

/// A parameter that is meant for us and that no daemon of ours looks at.
fn nobodys(key: &str, place: &str, daemons: &[Daemon]) -> Option<String> {
    let ours = key.split_once('.').map_or(key, |(first, _)| first);
    // `buildso.netd.private` is no less ours.
    if strsim::osa_distance(ours, "buildos") > 2 {
        return None;
    }
    let rest = key.split_once('.').map_or("", |(_, rest)| rest);
    let (given, tail) = rest.split_once('.').unwrap_or((rest, ""));
    let prefixes = daemons.iter().map(|daemon| daemon.name.to_owned());
    let aliases = daemons.iter().flat_map(|daemon| daemon.aliases.iter());
    let short = aliases.filter_map(|alias| alias.strip_prefix("buildos."));
    let nearest = prefixes
        .chain(short.map(str::to_owned))
        .map(|word| (strsim::osa_distance(&word, given), word))
        .filter(|(distance, word)| *distance <= word.len() / 2)
        .min()
        .map(|(_, word)| match tail {
            "" => format!("buildos.{word}"),
            tail => format!("buildos.{word}.{tail}"),
        });
    let problem = Problem {
        origin: Origin::File(place.into()),
        line: None,
        message: format!(
            "no daemon has a key \"{}\"",
            buildos_service::text::Escaped::new(key)
        ),
        nearest,
    };
    Some(problem.to_string())
}

/// What is wrong in a source.
type Evaluate = dyn Fn(&Fragment) -> Vec<Problem>;

/// A daemon's part in this.
struct Daemon {
    name: &'static str,
    /// Keys, with `*` for a chosen name.
    #[cfg(test)]
    keys: Vec<&'static str>,
    /// Short names on the kernel command line.
    aliases: Vec<&'static str>,
    problems: Box<Evaluate>,
}

impl Daemon {
    /// All of them.
    fn all() -> [Self; 4] {
        [
            Self::of(buildos_netd::config::schema()),
            Self::of(buildos_hostnamed::config::schema()),
            Self::of(buildos_natd::config::schema()),
            Self::of(buildos_agentd::settings::schema()),
        ]
    }

    fn of<T: Default + 'static>(schema: Schema<T>) -> Self {
        Self {
            name: schema.name(),
            #[cfg(test)]
            keys: schema.keys().iter().map(|key| key.path).collect(),
            aliases: schema.keys().iter().filter_map(|key| key.alias).collect(),
            problems: Box::new(move |fragment| {
                evaluate(&schema, std::slice::from_ref(fragment)).problems
            }),
        }
    }

    fn looks_at(&self, key: &str) -> bool {
        let prefixed = key
            .strip_prefix("buildos.")
            .and_then(|rest| rest.strip_prefix(self.name));
        self.aliases.contains(&key) || prefixed.is_some_and(|rest| rest.starts_with('.'))
    }
}

/// Returns the names of the daemons without `buildos-`.
#[cfg(test)]
pub(crate) fn daemon_names() -> [&'static str; 4] {
    Daemon::all().map(|daemon| daemon.name)
}

fn strings(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_command_line() {
        let good = "quiet BOOTIF=01-de-ad-be-ef-b8-da buildos.hostname=b1 buildos.netd.private=10.1.0.1/16 buildos.agentd.bbot.default.controllers=https://ci.example.com root=x";
        assert_eq!(command_line(good, "x"), [""; 0]);
        assert_eq!(
            command_line("buildos.netd.privat=10.1.0.1/16", "command line"),
            [
                "command line: unknown key \"buildos.netd.privat\"; the nearest valid key is \"buildos.netd.private\""
            ]
        );
        assert_eq!(
            command_line(
                "buildos.nedt.private=10.1.0.1/16 buildso.hostname=x buildos.hostnam=y",
                "l"
            ),
            [
                "l: no daemon has a key \"buildos.nedt.private\"; the nearest valid key is \"buildos.netd.private\"",
                "l: no daemon has a key \"buildso.hostname\"; the nearest valid key is \"buildos.hostname\"",
                "l: no daemon has a key \"buildos.hostnam\"; the nearest valid key is \"buildos.hostname\"",
            ]
        );
        let long = "x".repeat(3000);
        assert_eq!(
            command_line(&long, "l"),
            ["l: 3000 bytes, of which the kernel takes 2047"]
        );
    }

    #[test]
    fn the_manual_has_every_key_and_no_others() {
        let manual = include_str!("../../../../docs/manual.md");
        let known: BTreeSet<String> = Daemon::all()
            .iter()
            .flat_map(|daemon| {
                daemon
                    .keys
                    .iter()
                    .map(|key| format!("{}.{key}", daemon.name))
            })
            .collect();
        let rows = manual.lines().filter(|line| line.starts_with("| `"));
        let named: BTreeSet<String> = rows
            .flat_map(|row| row.split('|').nth(1).unwrap().split(','))
            .map(|key| key.trim().trim_matches('`').to_owned())
            .filter(|key| {
                let daemon = key.split('.').next().unwrap();
                Daemon::all().iter().any(|known| known.name == daemon)
            })
            .collect();
        assert_eq!(named, known);
    }

    #[test]
    fn what_the_manual_boots_is_right() {
        let manual = include_str!("../../../../docs/manual.md");
        let blocks: Vec<_> = manual
            .lines()
            .filter_map(|line| line.strip_prefix("    "))
            .collect();
        let text = format!("label manual\n{}\n", blocks.join("\n"));
        let lines = boot_loader::parse(&text).unwrap();
        assert!(!lines.is_empty());
        for line in lines {
            assert_eq!(command_line(&line.parameters, "manual"), [""; 0]);
        }
    }

    #[test]
    fn a_file_of_a_daemon() {
        let path = Path::new("site/netd.conf.d/10-a.toml");
        assert_eq!(owner(path), Some("netd"));
        let text = "# ours\nprivate = \"10.1.0.1/16\"\ncarier_grace_s = 3\n";
        assert_eq!(
            file(path, Some("netd"), text).unwrap(),
            [
                "site/netd.conf.d/10-a.toml:3: unknown key \"carier_grace_s\"; the nearest valid key is \"carrier_grace_s\""
            ]
        );
        let path = Path::new("10-a.conf");
        assert_eq!(
            file(path, Some("natd"), "").unwrap(),
            ["10-a.conf: ignored: its name does not end in .toml"]
        );
        assert_eq!(
            file(path, Some("nat"), "").unwrap_err(),
            "\"nat\" is none of netd, hostnamed, natd, agentd"
        );
    }

    #[test]
    fn a_file_of_a_boot_loader() {
        let path = Path::new("pxelinux.cfg/default");
        let text = "label a\nkernel k\nappend initrd=i buildos.natd.probe_interval_s=5\n";
        assert_eq!(
            file(path, None, text).unwrap(),
            [
                "pxelinux.cfg/default:3: buildos.natd.probe_interval_s: 5 is neither 0 (no probes) nor between 10 and 86400 (a day) seconds"
            ]
        );
        assert!(file(path, None, "x = 1").is_err());
    }
}
