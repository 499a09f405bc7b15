//! Watches the room on the file systems that builds fill: those of `/build` and of the
//! machine volumes below `/build/machines`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use buildos_service::text::size;
use buildos_volumes::mounts::{self, Mount};
use nix::sys::statvfs::statvfs;

/// Directory of the agents' files.
const BUILD: &str = "build";
/// Directory of the machine volumes.
const MACHINES: &str = "build/machines";
/// Limit of machine volumes that are looked at.
const VOLUMES: usize = 64;
/// Percentage points above the reserve at which a file system counts as having room again.
/// Otherwise, the first removed file would start agents, and their first file stop them.
pub const HYSTERESIS: u8 = 2;

/// Room of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Directory on it.
    pub path: PathBuf,
    /// Bytes that unprivileged users can still write.
    pub free: u64,
    /// Size, bytes.
    pub size: u64,
}

impl Room {
    /// Returns true if less than a percentage of the file system is free.
    fn is_below(&self, percent: u8) -> bool {
        u128::from(self.free) * 100 < u128::from(self.size) * u128::from(percent)
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, free, all) = (self.path.display(), size(self.free), size(self.size));
        write!(f, "{path} has {free} of {all} free")
    }
}

/// The file systems with too little room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shortage {
    rooms: BTreeMap<PathBuf, Room>,
    /// A shortage began before agentd was started; its file system is not known.
    had_begun: bool,
}

impl Shortage {
    /// Returns a shortage that began before agentd was started.
    #[must_use]
    pub fn begun() -> Self {
        Self {
            rooms: BTreeMap::new(),
            had_begun: true,
        }
    }

    /// Takes over the current room of all file systems. `reserve` is the percentage that must
    /// be free; 0: any room is enough.
    pub fn update(&mut self, rooms: Vec<Room>, reserve: u8) {
        let short = rooms.into_iter().filter(|room| {
            let was_short = self.had_begun || self.rooms.contains_key(&room.path);
            let least = match was_short && reserve > 0 {
                true => reserve.saturating_add(HYSTERESIS),
                false => reserve,
            };
            room.is_below(least)
        });
        self.rooms = short.map(|room| (room.path.clone(), room)).collect();
        self.had_begun = false;
    }

    /// Returns the reason why agents must not build; [`None`] if there is room.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let rooms: Vec<_> = self.rooms.values().map(ToString::to_string).collect();
        (!rooms.is_empty()).then(|| format!("disk: {}", rooms.join(", ")))
    }
}

/// Returns the room of each file system that builds fill, once.
#[must_use]
pub fn rooms(root: &Path) -> Vec<Room> {
    let mounts = mounts::read(root);
    let mut paths = vec![root.join(BUILD)];
    paths.extend(volumes(&mounts).map(|volume| root.join(volume)));
    let mut devices = BTreeSet::new();
    let of_path = |path: PathBuf| {
        let metadata = fs::symlink_metadata(&path).ok()?;
        let is_first = metadata.is_dir() && devices.insert(metadata.dev());
        let found = is_first.then(|| statvfs(&path).ok())??;
        let unit = found.fragment_size();
        let size = unit.saturating_mul(found.blocks());
        let free = unit.saturating_mul(found.blocks_available());
        let path = Path::new("/").join(path.strip_prefix(root).ok()?);
        (size > 0).then_some(Room { path, free, size })
    };
    paths.into_iter().filter_map(of_path).collect()
}

/// Returns the machine volumes, without `/` at the beginning. Directories that builds make do not
/// count, nor does a read-only file system.
fn volumes(mounts: &[Mount]) -> impl Iterator<Item = &str> {
    let each = mounts
        .iter()
        .filter(|mount| !mount.is_file_system_read_only);
    let paths = each.filter_map(|mount| mount.target.strip_prefix('/'));
    let is_volume = |path: &&str| Path::new(path).parent() == Some(Path::new(MACHINES));
    paths.filter(is_volume).take(VOLUMES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(path: &str, free: u64) -> Room {
        Room {
            path: path.into(),
            free,
            size: 1000,
        }
    }

    fn reason(shortage: &mut Shortage, free: u64, reserve: u8) -> Option<String> {
        let rooms = vec![room("/build", 500), room("/build/machines/default", free)];
        shortage.update(rooms, reserve);
        shortage.reason()
    }

    #[test]
    fn shortage_ends_somewhat_above_the_reserve() {
        let mut shortage = Shortage::default();
        assert_eq!(reason(&mut shortage, 50, 5), None);
        let short = "disk: /build/machines/default has 49 B of 0.98 KiB free";
        assert_eq!(reason(&mut shortage, 49, 5).as_deref(), Some(short));
        assert!(reason(&mut shortage, 69, 5).is_some());
        assert_eq!(reason(&mut shortage, 70, 5), None);
        assert_eq!(reason(&mut shortage, 69, 5), None);
    }

    #[test]
    fn reserve_of_zero_is_always_met() {
        let mut shortage = Shortage::default();
        assert_eq!(reason(&mut shortage, 0, 0), None);
        assert!(reason(&mut shortage, 0, 5).is_some());
        assert_eq!(reason(&mut shortage, 0, 0), None);
    }

    #[test]
    fn shortage_continues_after_a_restart() {
        let mut shortage = Shortage::begun();
        assert!(reason(&mut shortage, 69, 5).is_some());
        assert_eq!(reason(&mut shortage, 70, 5), None);
        assert_eq!(reason(&mut shortage, 69, 5), None);
    }

    #[test]
    fn volumes_are_writable_mounts() {
        let mount = |target: &str, read_only| Mount {
            source: "/dev/vdb".into(),
            target: target.into(),
            options: String::new(),
            // The sandbox of agentd.
            read_only: true,
            is_file_system_read_only: read_only,
        };
        let mounts = [
            mount("/", false),
            mount("/build/machines", false),
            mount("/build/machines/default", false),
            mount("/build/machines/image", true),
            mount("/build/machines/default/box/mnt", false),
        ];
        assert_eq!(
            volumes(&mounts).collect::<Vec<_>>(),
            ["build/machines/default"]
        );
        let many = vec![mount("/build/machines/x", false); 2 * VOLUMES];
        assert_eq!(volumes(&many).count(), VOLUMES);
    }

    #[test]
    fn vanished_file_system_is_not_short() {
        let mut shortage = Shortage::default();
        assert!(reason(&mut shortage, 0, 5).is_some());
        shortage.update(Vec::new(), 5);
        assert_eq!(shortage.reason(), None);
    }

    #[test]
    fn file_systems_are_found_once() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(rooms(root.path()), []);
        fs::create_dir_all(root.path().join("build/machines/default")).unwrap();
        let found = rooms(root.path());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].path, Path::new("/build"));
        assert!(found[0].free <= found[0].size);
    }
}
