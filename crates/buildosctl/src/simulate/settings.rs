//! Evaluates the daemons' settings, from the topology and its files.

use std::path::Path;

use buildos_service::config::{Fragment, Origin, Schema, evaluate};

use super::topology::{Topology, Word};
use crate::commands::check::owner;

/// Settings of the daemons that are simulated.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) netd: buildos_netd::settings::Settings,
    pub(crate) hostnamed: buildos_hostnamed::settings::Settings,
    pub(crate) natd: buildos_natd::settings::Settings,
}

const DAEMONS: [&str; 4] = ["netd", "hostnamed", "natd", "agentd"];

/// Returns the settings from the topology and from `files`, which the topology names, and the
/// errors in them. As in the daemons, a key with an error has no effect.
pub(crate) fn settings(
    path: &Path,
    topology: &Topology,
    files: &[Fragment],
) -> (Settings, Vec<String>) {
    let mut problems = unknown_sources(path, topology, files);
    let mut of = Sources {
        path,
        topology,
        files,
        problems: &mut problems,
    };
    let settings = Settings {
        netd: of.evaluate(&buildos_netd::settings::schema()),
        hostnamed: of.evaluate(&buildos_hostnamed::settings::schema()),
        natd: of.evaluate(&buildos_natd::settings::schema()),
    };
    (settings, problems)
}

/// Returns errors for files and sections that no daemon reads.
fn unknown_sources(path: &Path, topology: &Topology, files: &[Fragment]) -> Vec<String> {
    let known = DAEMONS.join(", ");
    let files = files.iter().filter_map(|file| match &file.origin {
        Origin::File(file) if owner(file).is_none_or(|daemon| !DAEMONS.contains(&daemon)) => {
            Some(format!(
                "{}: is not in NAME.conf.d, NAME being one of {known}",
                file.display()
            ))
        }
        Origin::File(_) | Origin::KernelCommandLine => None,
    });
    let named = topology.config.keys();
    let named = named.filter(|Word(daemon)| !DAEMONS.contains(&daemon.as_str()));
    let named = named
        .map(|Word(daemon)| format!("{}: config.{daemon}: is not one of {known}", path.display()));
    files.chain(named).collect()
}

struct Sources<'a> {
    path: &'a Path,
    topology: &'a Topology,
    files: &'a [Fragment],
    problems: &'a mut Vec<String>,
}

impl Sources<'_> {
    fn evaluate<T: Default>(&mut self, schema: &Schema<T>) -> T {
        let name = schema.name();
        let own = |file: &&Fragment| match &file.origin {
            Origin::File(path) => owner(path) == Some(name),
            Origin::KernelCommandLine => false,
        };
        let mut fragments: Vec<Fragment> = self.files.iter().filter(own).cloned().collect();
        let inline = self.topology.config.get(&Word(name.to_owned()));
        fragments.extend(inline.map(|text| Fragment {
            origin: Origin::File(format!("{}: config.{name}", self.path.display()).into()),
            text: text.clone(),
        }));
        fragments.push(Fragment {
            origin: Origin::KernelCommandLine,
            text: self.topology.cmdline.clone(),
        });
        let loaded = evaluate(schema, &fragments);
        self.problems
            .extend(loaded.problems.iter().map(ToString::to_string));
        loaded.settings
    }
}
