//! Publishes an agent, a system extension that image/agent made, into the draft.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use buildos_channel::model::{Agent, Limits};
use buildos_channel::{Name, write};

use super::place::Place;
use super::size::size;
use super::{objects, tree};
use crate::files::replace;

/// End of the file name of a system extension.
const END: &str = ".raw";
/// Begin of a squashfs.
const MAGIC: &[u8; 4] = b"hsqs";

/// An agent to publish.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// File that image/agent made.
    pub(crate) file: PathBuf,
    /// Version; by default that of the file name.
    pub(crate) version: Option<Name>,
}

/// Publishes an agent and returns what changed.
pub(super) fn publish(place: &Place, source: &Source) -> Result<String, String> {
    let mut draft = tree::draft(place)?;
    let (name, version) = names(&source.file, source.version.as_ref())?;
    check(&source.file)?;
    let extension = objects::copy(&place.tree, &source.file, |_| Ok(()))?;
    let agent = Agent {
        name,
        version,
        extension,
    };
    let line = format!(
        "agent {} version {}: {} for each host\n",
        agent.name,
        agent.version,
        size(extension.size)
    );
    let is_same = draft.agents.contains(&agent);
    draft.agents.retain(|former| former.name != agent.name);
    let mut others = draft.agents.iter();
    if let Some(other) = others.find(|other| other.extension.sha256 == extension.sha256) {
        return Err(format!(
            "{} has the content of agent {}: each agent needs its own",
            source.file.display(),
            other.name
        ));
    }
    if draft.agents.len() >= Limits::PROGRAMS {
        return Err(format!("a channel has at most {} agents", Limits::PROGRAMS));
    }
    draft.agents.push(agent);
    draft.agents.sort_by(|a, b| a.name.cmp(&b.name));
    replace(&place.draft(), write::text(&draft).as_bytes())?;
    Ok(match is_same {
        true => format!("the draft has it already: {line}"),
        false => line,
    })
}

/// Returns the name of an agent and its version: the file is `NAME_VERSION.raw` or `NAME.raw`.
fn names(file: &Path, version: Option<&Name>) -> Result<(Name, Name), String> {
    let stem = file.file_name().and_then(|name| name.to_str());
    let stem = stem
        .and_then(|name| name.strip_suffix(END))
        .ok_or_else(|| {
            format!(
                "{} is not a system extension (.raw): image/agent makes it of packages",
                file.display()
            )
        })?;
    let (name, of_file) = match stem.split_once('_') {
        Some((name, version)) => (name, Some(version)),
        None => (stem, None),
    };
    let parsed = |text: &str| -> Result<Name, String> {
        text.parse().map_err(|error| format!("{text:?}: {error}"))
    };
    let version = match (version, of_file) {
        (Some(version), _) => version.clone(),
        (None, Some(version)) => parsed(version)?,
        (None, None) => {
            return Err(format!(
                "{stem}{END} has no version in its name: name it with --name"
            ));
        }
    };
    Ok((parsed(name)?, version))
}

/// Refuses a file that is no squashfs, or larger than hosts take.
fn check(file: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", file.display());
    let mut opened = File::open(file).map_err(failed)?;
    let length = opened.metadata().map_err(failed)?.len();
    let mut begin = [0; 4];
    let is_squashfs = opened.read_exact(&mut begin).is_ok() && begin == *MAGIC;
    if !is_squashfs {
        return Err(format!(
            "{} is not a squashfs: image/agent makes it of packages",
            file.display()
        ));
    }
    if length > Limits::EXTENSION {
        return Err(format!(
            "{} has {}; hosts take at most {}",
            file.display(),
            size(length),
            size(Limits::EXTENSION)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::Digest;
    use std::fs;

    fn desk(directory: &Path) -> Place {
        let place = Place {
            tree: directory.join("www"),
            channel: "stable".parse().unwrap(),
        };
        tree::init(&place).unwrap();
        place
    }

    fn source(directory: &Path, name: &str, content: &str) -> Source {
        let file = directory.join(name);
        fs::write(&file, content).unwrap();
        Source {
            file,
            version: None,
        }
    }

    #[test]
    fn agent_is_in_the_draft_and_replaces_its_former_version() {
        let directory = tempfile::tempdir().unwrap();
        let place = desk(directory.path());
        let publish =
            |name: &str, content: &str| publish(&place, &source(directory.path(), name, content));
        assert_eq!(
            publish("bslave_1.raw", "hsqs").unwrap(),
            "agent bslave version 1: 4 B for each host\n"
        );
        publish("bbot-agent_0.18.0.raw", "hsqs18").unwrap();
        let again = publish("bbot-agent_0.18.0.raw", "hsqs18").unwrap();
        assert!(again.starts_with("the draft has it already"), "{again}");
        publish("bbot-agent_0.19.0.raw", "hsqs19").unwrap();
        let draft = tree::draft(&place).unwrap();
        let agents = draft.agents.iter();
        let agents: Vec<_> = agents
            .map(|agent| (agent.name.as_str(), agent.version.as_str()))
            .collect();
        assert_eq!(agents, [("bbot-agent", "0.19.0"), ("bslave", "1")]);
        assert_eq!(draft.agents[0].extension.sha256, Digest::of(b"hsqs19"));
        assert_eq!(objects::faults(&place.tree, &draft), [""; 0]);
    }

    #[test]
    fn content_of_another_agent_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let place = desk(directory.path());
        let publish = |name: &str| publish(&place, &source(directory.path(), name, "hsqs"));
        publish("bslave_1.raw").unwrap();
        // Another version of the same agent can have it.
        publish("bslave_2.raw").unwrap();
        let error = publish("bbot-agent_1.raw").unwrap_err();
        assert!(
            error.ends_with(
                "bbot-agent_1.raw has the content of agent bslave: each agent needs its own"
            ),
            "{error}"
        );
        assert_eq!(tree::draft(&place).unwrap().agents.len(), 1);
    }

    #[test]
    fn version_is_from_the_file_name_or_given() {
        let given: Name = "7".parse().unwrap();
        let of = |file: &str, version| {
            names(Path::new(file), version)
                .map(|(name, version)| (name.to_string(), version.to_string()))
        };
        let both = |name: &str, version: &str| Ok((name.to_owned(), version.to_owned()));
        assert_eq!(of("x/a_1.2_3.raw", None), both("a", "1.2_3"));
        assert_eq!(of("a_1.raw", Some(&given)), both("a", "7"));
        assert_eq!(of("a.raw", Some(&given)), both("a", "7"));
        for bad in ["a.raw", "a.deb", "a_.raw", "_1.raw", "..", "a b_1.raw"] {
            assert!(of(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let place = desk(directory.path());
        for content in ["", "hsq", "!<arch>"] {
            let error = publish(&place, &source(directory.path(), "a_1.raw", content));
            assert!(
                error.unwrap_err().contains("is not a squashfs"),
                "{content}"
            );
        }
        let large = source(directory.path(), "a_1.raw", "hsqs");
        let file = File::options().append(true).open(&large.file).unwrap();
        file.set_len(Limits::EXTENSION + 1).unwrap();
        let error = publish(&place, &large).unwrap_err();
        assert!(error.contains("hosts take at most"), "{error}");
        assert_eq!(tree::draft(&place).unwrap().agents, []);
    }
}
