//! Reads the sources of the configuration.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::origin::Origin;
use super::problem::Problem;

/// Directories, the lowest precedence first, relative to the root.
const DIRECTORIES: [&str; 3] = ["usr/lib/buildos", "run/buildos", "etc/buildos"];

/// The text of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    #[allow(missing_docs)]
    pub origin: Origin,
    /// TOML, or the whole kernel command line.
    pub text: String,
}

/// Reads the sources of daemon `name` below `root` (`/` outside of tests), the lowest
/// precedence first. A source that cannot be read is a problem.
#[must_use]
pub fn read(root: &Path, name: &str) -> (Vec<Fragment>, Vec<Problem>) {
    let mut fragments = Vec::new();
    let mut problems = Vec::new();
    for path in files(root, name, &mut problems) {
        match fs::read_to_string(&path) {
            Ok(text) => fragments.push(Fragment {
                origin: Origin::File(path),
                text,
            }),
            Err(error) => problems.push(unreadable(path, &error)),
        }
    }
    let cmdline = root.join("proc/cmdline");
    match fs::read(&cmdline) {
        Ok(bytes) => fragments.push(Fragment {
            origin: Origin::KernelCommandLine,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }),
        Err(error) => problems.push(unreadable(cmdline, &error)),
    }
    (fragments, problems)
}

/// Returns the files by directory, then by name, without files that a file of the same
/// name in a later directory replaces.
fn files(root: &Path, name: &str, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let mut selected = BTreeMap::new();
    for (rank, directory) in DIRECTORIES.iter().enumerate() {
        let directory = root.join(directory).join(format!("{name}.conf.d"));
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                problems.push(unreadable(directory, &error));
                continue;
            }
        };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let Some(file_name) = path.file_name().and_then(|n| n.to_str()) else {
                continue;
            };
            match usable(file_name) {
                Usable::Yes => {
                    selected.insert(file_name.to_owned(), (rank, path));
                }
                Usable::Leftover => {}
                Usable::WrongSuffix => problems.push(Problem {
                    origin: Origin::File(path),
                    line: None,
                    message: "ignored: its name does not end in .toml".to_owned(),
                    nearest: None,
                }),
            }
        }
    }
    let mut files: Vec<_> = selected.into_values().collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

enum Usable {
    Yes,
    /// Left by an editor or by dpkg.
    Leftover,
    WrongSuffix,
}

fn usable(file_name: &str) -> Usable {
    let leftovers = [
        "~",
        ".bak",
        ".swp",
        ".dpkg-old",
        ".dpkg-dist",
        ".dpkg-new",
        ".dpkg-tmp",
    ];
    if file_name.starts_with('.')
        || file_name == "README"
        || leftovers.iter().any(|end| file_name.ends_with(end))
    {
        Usable::Leftover
    } else if file_name.ends_with(".toml") {
        Usable::Yes
    } else {
        Usable::WrongSuffix
    }
}

fn unreadable(path: PathBuf, error: &io::Error) -> Problem {
    Problem {
        origin: Origin::File(path),
        line: None,
        message: format!("cannot be read: {error}"),
        nearest: None,
    }
}
