//! What the daemons would do with a described network, without a build host, root or
//! time: `buildosctl simulate`.
//!
//! [`topology`] is the description, [`settings`] what it tells the daemons. [`world`]
//! steps through time from deadline to deadline; every decision in it is made by the
//! daemons' own pure code. [`report`] shows it.

use std::fs;
use std::path::{Path, PathBuf};

use buildos_service::config::{Fragment, Origin};

mod report;
mod server;
mod settings;
mod topology;
mod world;

pub(crate) use report::Report;

/// What is to be simulated, and how it is shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The description.
    pub(crate) path: PathBuf,
    /// As JSON.
    pub(crate) json: bool,
}

/// Simulates what a file describes.
///
/// # Errors
///
/// The file, or one that it names, cannot be read, or makes no sense: one line each.
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
    let mut world = world::World::new(topology, settings);
    world.run().map_err(|error| vec![error])?;
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
