//! `buildosctl check`: finds mistakes in configuration before a host uses it.
//!
//! It uses the schemas of the daemons: keys, limits and messages are the same. Signed channel
//! files are checked as hosts check them (`channel`), and manifests of machines as a controller
//! judges them (`machines`).
//!
//! # Limits
//!
//! Each source is checked alone. `buildos-NAME --check` on the host checks all sources
//! together.

use std::fs;
use std::path::{Path, PathBuf};

use buildos_service::cmdline;
use buildos_service::config::{Fragment, Origin, Problem, Schema, evaluate};

mod boot_loader;
mod channel;
mod image;
mod machines;

pub(crate) use channel::{Trust, now};

/// A source of configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A file of a daemon or of a boot loader, a channel, or manifests of machines.
    File {
        path: PathBuf,
        /// `netd`, `hostnamed`, `natd`, `agentd` or `updated`; if not given, the directory decides.
        daemon: Option<String>,
        /// For channels.
        trust: Trust,
    },
    /// A kernel command line.
    CommandLine(String),
}

/// The kernel truncates longer command lines (COMMAND_LINE_SIZE,
/// arch/x86/include/asm/setup.h).
const LONGEST: usize = 2047;

/// Returns the mistakes, one line each.
///
/// # Errors
///
/// The file cannot be read, or is not of a known kind.
pub(crate) fn check(subject: &Subject) -> Result<Vec<String>, String> {
    match subject {
        Subject::CommandLine(line) => Ok(command_line(line, "command line")),
        Subject::File {
            path,
            daemon,
            trust,
        } => {
            let text = fs::read_to_string(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            if channel::is_signed(&text) {
                return channel::check(path, trust);
            }
            if machines::are_manifests(&text) {
                let each = machines::problems(&text).into_iter();
                return Ok(each
                    .map(|problem| format!("{}:{problem}", path.display()))
                    .collect());
            }
            file(path, daemon.as_deref().or(owner(path)), &text)
        }
    }
}

/// Returns the daemon that the directory names, as in `netd.conf.d/x.toml`.
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
                format!("{daemon:?} is not one of {}", names.join(", "))
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
            "{} is neither in a NAME.conf.d directory nor a signed channel nor manifests of machines nor a file of PXELINUX, iPXE or GRUB; name its daemon with --daemon NAME",
            path.display()
        )
    })?;
    let each = lines.iter().flat_map(|line| {
        let place = format!("{}:{}", path.display(), line.line);
        let quoting = line
            .problem
            .iter()
            .map(|problem| format!("{place}: {problem}"));
        let mut problems: Vec<_> = quoting.collect();
        problems.extend(command_line(&line.parameters, &place));
        problems
    });
    Ok(each.collect())
}

/// Returns the mistakes in a command line: those that a daemon finds, and parameters
/// that neither a daemon nor the image reads.
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
        let of_image = image::PARAMETERS.iter().chain(&image::OF_UPDATES);
        if of_image.clone().any(|known| *known == parameter.key) {
            let value = parameter.value.as_deref().unwrap_or_default();
            let problem = image::problem(&parameter.key, value);
            problems.extend(problem.map(|problem| format!("{place}: {problem}")));
        } else if !daemons.iter().any(|daemon| daemon.reads(&parameter.key)) {
            problems.extend(unknown(&parameter.key, place, &daemons));
        }
    }
    problems
}

/// Returns the mistake in a parameter that nothing reads, if it seems to be for buildos.
fn unknown(key: &str, place: &str, daemons: &[Daemon]) -> Option<String> {
    let prefix = key.split_once('.').map_or(key, |(first, _)| first);
    // `buildso.netd.private` is for buildos, too.
    if strsim::osa_distance(prefix, "buildos") > 2 {
        return None;
    }
    let rest = key.split_once('.').map_or("", |(_, rest)| rest);
    let (given, tail) = rest.split_once('.').unwrap_or((rest, ""));
    let prefixes = daemons.iter().map(|daemon| daemon.name.to_owned());
    let aliases = daemons.iter().flat_map(|daemon| daemon.aliases.iter());
    let short = aliases
        .chain(&image::PARAMETERS)
        .chain(&image::OF_UPDATES)
        .filter_map(|name| name.strip_prefix("buildos."));
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

/// Returns the mistakes in a source.
type Evaluate = dyn Fn(&Fragment) -> Vec<Problem>;

/// A daemon whose configuration is checked.
struct Daemon {
    name: &'static str,
    /// Keys, with `*` for a name that the operator chooses.
    #[cfg(test)]
    keys: Vec<&'static str>,
    /// Short names on the kernel command line.
    aliases: Vec<&'static str>,
    problems: Box<Evaluate>,
}

impl Daemon {
    fn all() -> [Self; 5] {
        [
            Self::of(buildos_netd::settings::schema()),
            Self::of(buildos_hostnamed::settings::schema()),
            Self::of(buildos_natd::settings::schema()),
            Self::of(buildos_agentd::settings::schema()),
            Self::of(buildos_updated::settings::schema()),
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

    fn reads(&self, key: &str) -> bool {
        let prefixed = key
            .strip_prefix("buildos.")
            .and_then(|rest| rest.strip_prefix(self.name));
        self.aliases.contains(&key) || prefixed.is_some_and(|rest| rest.starts_with('.'))
    }
}

/// Returns the names of the daemons without `buildos-`.
#[cfg(test)]
pub(crate) fn daemon_names() -> [&'static str; 5] {
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
    fn command_line_mistakes_name_the_nearest_key() {
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
    fn manual_lists_exactly_the_keys_of_the_daemons() {
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
    fn command_lines_of_the_manual_have_no_mistakes() {
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
    fn parameters_of_the_image_are_accepted_and_suggested() {
        assert_eq!(
            command_line("buildos.login=ttyS0 buildos.ssh_key=ssh-ed25519,AAAA", "l"),
            [""; 0]
        );
        assert_eq!(
            command_line("buildos.logn=ttyS0 buildos.login=/dev/ttyS0", "l"),
            [
                "l: no daemon has a key \"buildos.logn\"; the nearest valid key is \"buildos.login\"",
                "l: buildos.login: \"/dev/ttyS0\" is not the name of a terminal, such as ttyS0",
            ]
        );
    }

    #[test]
    fn daemon_file_is_checked_by_daemon_schema() {
        let path = Path::new("site/netd.conf.d/10-a.toml");
        assert_eq!(owner(path), Some("netd"));
        let text = "# comment\nprivate = \"10.1.0.1/16\"\ncarier_grace_s = 3\n";
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
            "\"nat\" is not one of netd, hostnamed, natd, agentd, updated"
        );
    }

    #[test]
    fn command_line_in_file_of_a_boot_loader_is_checked() {
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

    /// Returns the files below a directory.
    fn files(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_symlink() {
                continue;
            }
            match path.is_dir() {
                true => files(&path, found),
                false => found.push(path),
            }
        }
    }

    /// Returns the `buildos.*=VALUE` parameters in a text, with the placeholders of the
    /// documentation replaced.
    fn parameters(text: &str) -> BTreeSet<String> {
        let is_key = |c: char| c.is_ascii_lowercase() || "_.".contains(c);
        let ends = |c: char| c.is_whitespace() || "`'\"|)(<>{}\\;".contains(c);
        let mut found = BTreeSet::new();
        for (start, _) in text.match_indices("buildos.") {
            let rest = &text[start..];
            let key = &rest[..rest.find(|c| !is_key(c)).unwrap_or(rest.len())];
            let Some(value) = rest[key.len()..].strip_prefix('=') else {
                continue;
            };
            let value = &value[..value.find(ends).unwrap_or(value.len())];
            let value = value.trim_end_matches(['.', ',', ':']);
            let value = match (key, value) {
                ("buildos.login", "TTY" | "" | "$tty") => "ttyS0",
                ("buildos.ssh_key", _) => "ssh-ed25519,AAAA,me@desk",
                ("buildos.running", _) => concat!(
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef:",
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
                ),
                ("buildos.hostname", "NAME" | "") => "b1",
                (_, "URL") => "https://ci.example.com/",
                (_, "") => continue,
                (_, value) => value,
            };
            found.insert(format!("{key}={value}"));
        }
        found
    }

    #[test]
    fn documented_kernel_parameters_have_no_mistakes() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut paths = Vec::new();
        for directory in ["docs", "image", "units"] {
            files(&top.join(directory), &mut paths);
        }
        let mut keys = BTreeSet::new();
        for path in paths {
            let Ok(text) = fs::read_to_string(&path) else {
                continue; // Not text.
            };
            for parameter in parameters(&text) {
                let place = path.strip_prefix(&top).unwrap().display().to_string();
                // A VLAN alone has no effect.
                let line = match parameter.split_once(".vlan=") {
                    Some((section, _)) => format!("{section}.links=* {parameter}"),
                    None => parameter.clone(),
                };
                assert_eq!(command_line(&line, &place), [""; 0], "{line}");
                keys.insert(parameter.split('=').next().unwrap().to_owned());
            }
        }
        for key in ["buildos.login", "buildos.ssh_key", "buildos.hostname"] {
            assert!(keys.contains(key), "{key} of {keys:?}");
        }
    }

    #[test]
    fn image_parameters_equal_parameters_read_by_scripts() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../image/root");
        let mut paths = Vec::new();
        files(&root, &mut paths);
        let mut read = BTreeSet::new();
        for path in paths {
            let text = fs::read_to_string(&path).unwrap_or_default();
            for rest in text.split("buildos-image/parameter ").skip(1) {
                let name = rest.split(|c: char| c.is_whitespace() || c == ')').next();
                read.insert(name.unwrap().to_owned());
            }
        }
        let known: BTreeSet<String> = image::PARAMETERS.map(str::to_owned).into();
        assert_eq!(read, known);
    }
}
