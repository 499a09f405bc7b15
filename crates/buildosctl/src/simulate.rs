//! Runs `buildosctl simulate`: shows what the daemons would do on a described network. It
//! needs no build host and no root, and runs in simulated time.
//!
//! | module | subject |
//! |---|---|
//! | [`topology`] | the description: NICs, servers, neighbours |
//! | [`settings`] | configuration of the daemons |
//! | [`world`] | the daemons in stepped time |
//! | [`lan`], [`server`] | the simulated kernel, cables and servers |
//! | [`nat`] | natd's configuration |
//! | [`timeline`], [`report`] | the output |

use std::fs;
use std::path::{Path, PathBuf};

use buildos_service::config::{Fragment, Origin};

mod lan;
mod nat;
mod report;
mod server;
mod settings;
mod timeline;
mod topology;
mod world;

pub(crate) use report::Report;

/// Arguments of the command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// File of the description.
    pub(crate) path: PathBuf,
    /// Output is JSON.
    pub(crate) json: bool,
}

/// Simulates the network that a file describes.
///
/// # Errors
///
/// Returns one line for each error in the file, or for a file that cannot be read.
pub(crate) fn simulate(path: &Path) -> Result<Report, Vec<String>> {
    let topology = topology::parse(path, &read(path)?)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut files = Vec::new();
    for file in &topology.files {
        let file = directory.join(file);
        files.push(Fragment {
            text: read(&file)?,
            origin: Origin::File(file),
        });
    }
    let (settings, problems) = settings::settings(path, &topology, &files);
    let mut world = world::World::new(&topology, settings);
    world.run().map_err(|error| vec![error.to_string()])?;
    Ok(Report::new(&world, problems))
}

fn read(path: &Path) -> Result<String, Vec<String>> {
    fs::read_to_string(path)
        .map_err(|error| vec![format!("cannot read {}: {error}", path.display())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::schema::assert_documented;

    #[test]
    fn json_output_follows_schema() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let report = simulate(&root.join("../../docs/examples/three-nics.toml")).unwrap();
        assert_documented("simulate", &serde_json::to_value(&report).unwrap());
    }
}
