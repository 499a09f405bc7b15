//! Restores and saves the state of the host.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use buildos_service::clock;
use buildos_service::file;
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use super::contents::{COPIES, COPY_LIMIT, DIRECTORIES, SSH};
use super::fault::Fault;
use super::order::{Order, Outcome};
use super::{host_keys, journal};
use crate::report::VolumeState;

/// Size of the random seed, bytes: the size of the kernel's pool.
const SEED: usize = 512;
/// The latest time that a clock is set to: 2100-01-01.
const LATEST: Duration = Duration::from_secs(4_102_444_800);
/// Differences of a clock that are not corrected.
const NEGLIGIBLE: Duration = Duration::from_secs(60);

/// Keeps the state of a host on a volume.
pub struct Keeper {
    /// Root of the host.
    root: PathBuf,
    /// Root of the volume.
    volume: PathBuf,
    /// Content of the files of daemons on the volume, as far as this process wrote it.
    saved: HashMap<&'static str, Vec<u8>>,
    /// The state of the former boot was restored.
    restored: bool,
}

impl Keeper {
    /// Creates a keeper for the host at `root` and the volume that is mounted at `volume`.
    #[must_use]
    pub fn new(root: &Path, volume: &str) -> Self {
        Self {
            root: root.to_owned(),
            volume: root.join(volume.trim_start_matches('/')),
            saved: HashMap::new(),
            restored: false,
        }
    }

    /// Carries out an order. A failure of one part does not stop the others.
    pub fn carry_out(&mut self, order: Order) -> Outcome {
        let mut outcome = Outcome::default();
        if !self.is_mounted() {
            let reason = format!("{} is no longer mounted", self.volume.display());
            let state = VolumeState::Gone;
            outcome.fault = Some(Fault { state, reason });
            return outcome;
        }
        if !self.restored {
            self.restore(&mut outcome);
        }
        self.exchange_keys(&mut outcome);
        self.save_copies(&mut outcome);
        if order >= Order::All {
            keep_first(&mut outcome, self.save_clock());
            let id = fs::read_to_string(self.root.join("proc/sys/kernel/random/boot_id"));
            if let Ok(id) = id {
                let directory = self.volume.join("journal");
                keep_first(&mut outcome, journal::save(&directory, id.trim()));
            }
        }
        if order == Order::Last {
            keep_first(&mut outcome, self.save_seed());
        }
        if let Ok(space) = statvfs(&self.volume) {
            let fragment = space.fragment_size();
            outcome.size = space.blocks().saturating_mul(fragment);
            outcome.free = space.blocks_available().saturating_mul(fragment);
        }
        outcome
    }

    /// Returns false if the directory is not a file system of its own: what is written there
    /// would be in RAM.
    fn is_mounted(&self) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
        match (device(&self.volume), self.volume.parent().map(device)) {
            (Ok(volume), Some(Ok(parent))) => volume != parent || cfg!(test),
            _ => false,
        }
    }

    /// Takes over what the former boot saved.
    fn restore(&mut self, outcome: &mut Outcome) {
        if let Err(fault) = self.prepare() {
            outcome.fault = Some(fault);
        }
        if let Some(time) = self.restore_clock() {
            outcome.restored.push(time);
        }
        match self.restore_seed() {
            Ok(true) => outcome.restored.push("random seed".to_owned()),
            Ok(false) => {}
            Err(fault) => keep_first(outcome, Err(fault)),
        }
        for copy in &COPIES {
            let Some(restored) = copy.restored else {
                continue;
            };
            let saved = file::read_bounded(&self.volume.join(copy.saved), COPY_LIMIT);
            if let Ok(content) = saved {
                match file::replace(&self.root.join(restored), &content, 0o644) {
                    Ok(_) => outcome.restored.push(copy.saved.to_owned()),
                    Err(error) => outcome.notes.push(error.to_string()),
                }
            }
        }
        // Otherwise the next round tries again.
        self.restored = outcome.fault.is_none();
    }

    /// Makes the directories, and removes what a power cut left.
    fn prepare(&self) -> Result<(), Fault> {
        for (name, mode) in DIRECTORIES {
            let path = self.volume.join(name);
            let made = match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => made.and_then(|()| {
                    fs::set_permissions(&path, Permissions::from_mode(mode))?;
                    File::open(&self.volume)?.sync_all()
                }),
            };
            let what = format!("cannot make {}", path.display());
            made.map_err(|error| Fault::of(&what, &error))?;
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "new") {
                    // What remains is replaced when the file is written.
                    let _ = fs::remove_file(path);
                }
            }
        }
        Ok(())
    }

    fn exchange_keys(&self, outcome: &mut Outcome) {
        let exchanged = host_keys::exchange(&self.root.join(SSH), &self.volume.join("ssh"));
        match exchanged {
            Ok(exchanged) => {
                if exchanged.restored > 0 {
                    outcome.host_keys_replaced = true;
                    outcome.restored.push("SSH host keys".to_owned());
                }
                for path in exchanged.damaged {
                    let path = path.display();
                    let note = format!("{path} is damaged; the SSH server has a new key");
                    outcome.notes.push(note);
                }
            }
            Err(error) => keep_first(outcome, Err(Fault::of_write(&error))),
        }
    }

    fn save_copies(&mut self, outcome: &mut Outcome) {
        for copy in &COPIES {
            let source = self.root.join(copy.source);
            let content = match file::read_bounded(&source, COPY_LIMIT) {
                Ok(content) => content,
                // The daemon has not written it yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    outcome
                        .notes
                        .push(format!("cannot keep {}: {error}", source.display()));
                    continue;
                }
            };
            if self.saved.get(copy.saved) == Some(&content) {
                continue;
            }
            if copy
                .needs
                .is_some_and(|member| !has_member(&content, member))
            {
                continue;
            }
            match file::replace_durably(&self.volume.join(copy.saved), &content, 0o644) {
                Ok(()) => drop(self.saved.insert(copy.saved, content)),
                Err(error) => keep_first(outcome, Err(Fault::of_write(&error))),
            }
        }
    }

    /// Saves the time, if it is known.
    fn save_clock(&self) -> Result<(), Fault> {
        if !clock::is_synchronised(&self.root) {
            return Ok(());
        }
        let text = format!("{}\n", now().as_secs());
        let path = self.volume.join("clock");
        file::replace_durably(&path, text.as_bytes(), 0o644).map_err(|e| Fault::of_write(&e))
    }

    /// Sets a clock that is behind the saved time. Returns what it did, in words.
    fn restore_clock(&self) -> Option<String> {
        let text = fs::read_to_string(self.volume.join("clock")).ok()?;
        let saved = Duration::from_secs(text.trim().parse().ok()?);
        if clock::is_synchronised(&self.root) || !is_behind(now(), saved) {
            return None;
        }
        let set = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(saved));
        set.is_ok().then(|| "clock".to_owned())
    }

    /// Gives the kernel the seed, and replaces it, so that it is not used twice. Returns true if
    /// the volume had a seed.
    fn restore_seed(&self) -> Result<bool, Fault> {
        let seed = file::read_bounded(&self.volume.join("random-seed"), SEED);
        let used = seed.is_ok_and(|seed| {
            // Without credit: the seed adds to what the kernel has, and never replaces it.
            let pool = File::options()
                .write(true)
                .open(self.root.join("dev/urandom"));
            pool.and_then(|mut pool| pool.write_all(&seed)).is_ok()
        });
        self.save_seed()?;
        Ok(used)
    }

    fn save_seed(&self) -> Result<(), Fault> {
        let mut seed = [0; SEED];
        let read = File::open(self.root.join("dev/urandom"))
            .and_then(|mut pool| pool.read_exact(&mut seed));
        read.map_err(|error| Fault::of("cannot read /dev/urandom", &error))?;
        let path = self.volume.join("random-seed");
        file::replace_durably(&path, &seed, 0o600).map_err(|error| Fault::of_write(&error))
    }
}

/// Keeps the first failure of a round.
/// Returns true if a file has a JSON object with a member that is not null.
fn has_member(content: &[u8], member: &str) -> bool {
    let object: Option<serde_json::Value> = serde_json::from_slice(content).ok();
    let member = object.as_ref().and_then(|object| object.get(member));
    member.is_some_and(|member| !member.is_null())
}

fn keep_first(outcome: &mut Outcome, result: Result<(), Fault>) {
    if let Err(fault) = result {
        outcome.fault.get_or_insert(fault);
    }
}

/// Returns true if a clock at `now` is to be set to `saved`. A clock is never set back.
fn is_behind(now: Duration, saved: Duration) -> bool {
    saved < LATEST && now.saturating_add(NEGLIGIBLE) < saved
}

fn now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    struct Host {
        directory: TempDir,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            for path in [
                "state",
                "run/buildos/netd",
                "run/buildos/agentd",
                "run/buildos/state",
                "etc/ssh",
                "dev",
                // The clock of the machine that tests is left alone.
                "run/systemd/timesync",
            ] {
                fs::create_dir_all(directory.path().join(path)).unwrap();
            }
            fs::write(directory.path().join("dev/urandom"), [7; SEED]).unwrap();
            fs::write(
                directory.path().join("run/systemd/timesync/synchronized"),
                "",
            )
            .unwrap();
            Self { directory }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.directory.path().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            fs::write(self.path(path), text).unwrap();
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.path(path)).unwrap()
        }

        fn keeper(&self) -> Keeper {
            Keeper::new(self.directory.path(), "/state")
        }
    }

    #[test]
    fn state_of_former_boot_is_restored_before_it_is_overwritten() {
        let host = Host::new();
        let lease = |name: &str| format!(r#"{{"resume": {{"lease": "{name}"}}}}"#);
        let (first, second, third) = (lease("first"), lease("second"), lease("third"));
        host.write("run/buildos/netd/state.json", &first);
        let outcome = host.keeper().carry_out(Order::Restore);
        assert_eq!(outcome.fault, None);
        assert_eq!(outcome.restored, Vec::<String>::new());
        assert_eq!(host.read("state/netd/state.json"), first);
        // The next boot.
        host.write("run/buildos/netd/state.json", &second);
        let mut keeper = host.keeper();
        let outcome = keeper.carry_out(Order::Restore);
        assert_eq!(outcome.restored, ["random seed", "netd/state.json"]);
        assert_eq!(host.read("run/buildos/state/netd.json"), first);
        assert_eq!(host.read("state/netd/state.json"), second);
        host.write("run/buildos/netd/state.json", &third);
        assert_eq!(keeper.carry_out(Order::Changes).fault, None);
        assert_eq!(host.read("run/buildos/state/netd.json"), first);
        assert_eq!(host.read("state/netd/state.json"), third);
    }

    #[test]
    fn lease_of_former_boot_stays_until_the_host_has_another() {
        let host = Host::new();
        let lease = r#"{"resume": {"lease": "first"}}"#;
        host.write("run/buildos/netd/state.json", lease);
        host.keeper().carry_out(Order::Restore);
        for without in [r#"{"resume": null}"#, "{}", "", "[1]"] {
            host.write("run/buildos/netd/state.json", without);
            let mut keeper = host.keeper();
            assert_eq!(keeper.carry_out(Order::Restore).fault, None);
            assert_eq!(host.read("state/netd/state.json"), lease);
            assert_eq!(host.read("run/buildos/state/netd.json"), lease);
        }
    }

    #[test]
    fn unchanged_file_is_not_written_again() {
        let host = Host::new();
        host.write("run/buildos/agentd/state.json", "{}");
        let mut keeper = host.keeper();
        keeper.carry_out(Order::Restore);
        let inode = || {
            fs::metadata(host.path("state/agentd/state.json"))
                .unwrap()
                .ino()
        };
        let first = inode();
        keeper.carry_out(Order::Changes);
        assert_eq!(inode(), first);
    }

    #[test]
    fn file_above_its_limit_is_not_kept() {
        let host = Host::new();
        let long = "x".repeat(COPY_LIMIT + 1);
        host.write("run/buildos/agentd/state.json", &long);
        let outcome = host.keeper().carry_out(Order::Restore);
        assert_eq!(outcome.fault, None);
        let [note] = outcome.notes.as_slice() else {
            panic!("{outcome:?}");
        };
        assert!(note.contains("larger than 262144 bytes"), "{note}");
        assert!(!host.path("state/agentd/state.json").exists());
    }

    #[test]
    fn seed_is_replaced_when_it_is_used() {
        let host = Host::new();
        host.keeper().carry_out(Order::Restore);
        host.write("dev/urandom", &"b".repeat(SEED));
        host.keeper().carry_out(Order::Restore);
        assert_eq!(host.read("state/random-seed"), "\u{7}".repeat(SEED));
        assert_eq!(host.read("dev/urandom"), "\u{7}".repeat(SEED));
        host.write("dev/urandom", &"c".repeat(SEED));
        host.keeper().carry_out(Order::Last);
        // The stand-in of the kernel's pool returns what was written to it.
        assert_eq!(host.read("state/random-seed").len(), SEED);
    }

    #[test]
    fn leftovers_of_a_power_cut_are_removed() {
        let host = Host::new();
        let mut keeper = host.keeper();
        keeper.carry_out(Order::Restore);
        host.write("state/netd/state.json.new", "half");
        host.keeper().carry_out(Order::Restore);
        assert!(!host.path("state/netd/state.json.new").exists());
    }

    #[test]
    fn failure_of_one_part_is_reported_and_does_not_stop_others() {
        let host = Host::new();
        let lease = r#"{"resume": {}}"#;
        host.write("run/buildos/netd/state.json", lease);
        host.write("run/buildos/agentd/state.json", "{}");
        let mut keeper = host.keeper();
        fs::create_dir_all(host.path("state/netd/state.json")).unwrap();
        let outcome = keeper.carry_out(Order::Restore);
        let fault = outcome.fault.unwrap();
        assert_eq!(fault.state, VolumeState::Failing);
        assert!(fault.reason.contains("netd/state.json"), "{fault:?}");
        assert_eq!(host.read("state/agentd/state.json"), "{}");
        fs::remove_dir(host.path("state/netd/state.json")).unwrap();
        assert_eq!(keeper.carry_out(Order::Changes).fault, None);
        assert_eq!(host.read("state/netd/state.json"), lease);
    }

    #[test]
    fn clock_is_set_forward_within_reason() {
        let at = Duration::from_secs;
        let saved = at(1_790_000_000);
        assert!(is_behind(at(1_700_000_000), saved));
        assert!(is_behind(Duration::ZERO, saved));
        assert!(!is_behind(at(1_789_999_990), saved));
        assert!(!is_behind(at(1_800_000_000), saved));
        assert!(!is_behind(at(1_700_000_000), at(5_000_000_000)));
    }
}
