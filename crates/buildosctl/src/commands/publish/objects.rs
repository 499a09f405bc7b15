//! Stores objects, and finds those that a channel names but the tree lacks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use buildos_channel::digest::Hasher;
use buildos_channel::model::{Object, Stream};
use buildos_channel::pieces::PieceList;
use buildos_channel::{Channel, Digest};

use crate::files::{read_limited, replace};

/// Faults shown: a tree without objects has thousands.
const MOST_FAULTS: usize = 20;

/// Returns the path of an object.
pub(crate) fn path(tree: &Path, sha256: &Digest) -> PathBuf {
    tree.join("objects").join(sha256.to_string())
}

/// Stores an object, unless the tree has it. Returns true if it is new.
pub(crate) fn store(tree: &Path, sha256: &Digest, data: &[u8]) -> Result<bool, String> {
    let path = path(tree, sha256);
    let size = u64::try_from(data.len()).unwrap_or(u64::MAX);
    if fs::metadata(&path).is_ok_and(|found| found.len() == size) {
        return Ok(false);
    }
    replace(&path, data).map(|()| true)
}

/// Copies a file into the objects of a tree, if `accept` accepts its digest.
pub(crate) fn copy(
    tree: &Path,
    file: &Path,
    accept: impl FnOnce(&Digest) -> Result<(), String>,
) -> Result<Object, String> {
    let failed = |error: io::Error| format!("cannot copy {}: {error}", file.display());
    let mut from = File::open(file).map_err(failed)?;
    let mut to = tempfile::Builder::new()
        .prefix(".new.")
        .permissions(PermissionsExt::from_mode(0o644))
        .tempfile_in(tree.join("objects"))
        .map_err(failed)?;
    let mut hasher = Hasher::default();
    let mut size = 0_u64;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = from.read(&mut buffer).map_err(failed)?;
        let Some(data @ [_, ..]) = buffer.get(..count) else {
            break;
        };
        hasher.update(data);
        to.write_all(data).map_err(failed)?;
        size = size.saturating_add(count as u64);
    }
    let sha256 = hasher.finish();
    accept(&sha256)?;
    to.as_file().sync_all().map_err(failed)?;
    to.persist(path(tree, &sha256))
        .map_err(|error| failed(error.error))?;
    Ok(Object { sha256, size })
}

/// Returns what is wrong with the objects that `channel` names, at most 20 faults.
///
/// Lists of pieces are read and compared with their digest. Of other objects only the size
/// is compared: they can be many gigabytes, and hosts verify them.
pub(crate) fn faults(tree: &Path, channel: &Channel) -> Vec<String> {
    let mut faults = Vec::new();
    for (sha256, (size, what)) in named(channel) {
        faults.extend(fault(tree, &sha256, size, &what));
    }
    for machine in &channel.machines {
        let increments = machine.increments.iter().map(|increment| increment.stream);
        for stream in increments.chain([machine.whole]) {
            if faults.len() >= MOST_FAULTS {
                break;
            }
            match list(tree, &stream) {
                Ok(list) => {
                    let what = format!("a piece of machine {}", machine.name);
                    let pieces = list.iter();
                    let each =
                        pieces.filter_map(|(_, sha256, size)| fault(tree, &sha256, size, &what));
                    faults.extend(each);
                }
                Err(error) => faults.push(format!("machine {}: {error}", machine.name)),
            }
        }
    }
    let more = faults.len().saturating_sub(MOST_FAULTS);
    faults.truncate(MOST_FAULTS);
    if more > 0 {
        faults.push(format!("and {more} more faults of objects"));
    }
    faults
}

/// Returns the objects that the channel names directly, with size and meaning.
fn named(channel: &Channel) -> BTreeMap<Digest, (u64, String)> {
    let mut found = BTreeMap::new();
    let mut add = |object: &Object, what: String| {
        found.insert(object.sha256, (object.size, what));
    };
    if let Some(os) = &channel.os {
        add(&os.image, "the image".to_owned());
        add(&os.initrd, "the initrd".to_owned());
    }
    for agent in &channel.agents {
        add(&agent.extension, format!("agent {}", agent.name));
    }
    for toolchain in &channel.toolchains {
        add(&toolchain.list, format!("toolchain {}", toolchain.name));
    }
    found
}

fn fault(tree: &Path, sha256: &Digest, size: u64, what: &str) -> Option<String> {
    match fs::metadata(path(tree, sha256)) {
        Ok(found) if found.is_file() && found.len() == size => None,
        Ok(found) => Some(format!(
            "object {sha256} ({what}) has {} bytes instead of {size}",
            found.len()
        )),
        Err(error) => Some(format!("object {sha256} ({what}): {error}")),
    }
}

/// Reads and verifies the list of pieces of a stream.
fn list(tree: &Path, stream: &Stream) -> Result<PieceList, String> {
    let sha256 = &stream.pieces;
    let limit = usize::try_from(PieceList::text_size(stream.size)).unwrap_or(usize::MAX);
    let text = read_limited(&path(tree, sha256), limit)?;
    if Digest::of(&text) != *sha256 {
        return Err(format!(
            "the list of pieces {sha256} has a different digest"
        ));
    }
    PieceList::parse(&text, stream.size).map_err(|error| {
        let error = buildos_service::text::chain(&error);
        format!("the list of pieces {sha256}: {error}")
    })
}
