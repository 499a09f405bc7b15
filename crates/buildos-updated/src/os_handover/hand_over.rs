//! buildos-os-handover: starts the operating system of the channel.
//!
//! It takes no arguments. Request and spool belong to buildos-updated, so the channel's signatures
//! are verified again, and each byte that the kernel gets. The request is believed about the method
//! and the terms of the trial. The rollout is not checked: `buildosctl update now` overrules it.
//!
//! | step | refused if |
//! |---|---|
//! | read the request | it is no request, or beyond its limits |
//! | verify the channel | a signature, its name, validity or serial is wrong, or it has no such system |
//! | name the running system | the kernel command line does not have its digests |
//! | compare | the new system runs, or the host has just returned from it |
//! | copy both systems into RAM | an object is missing or has a different digest, or RAM is too small |
//! | load it | (failed) the kernel refuses it |
//! | read the request again | it was withdrawn or replaced |
//! | let systemd start it | (failed) systemd refuses it |
//!
//! The initrd that is loaded has the running kernel and initrd as a second archive. The running
//! initrd is the one of its digest, so previous systems do not pile up.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::process::ExitCode;

use buildos_channel::Digest;
use buildos_channel::digest::Hasher;
use buildos_channel::model::{Object, Os};
use buildos_channel::policy::Accepted;
use buildos_service::file::{open_regular, read_bounded};
use buildos_service::log_to_journal;

use super::command_line::{self, Pair, Returned};
use super::files::{Files, Handover, HandoverState, IMAGE, INITRD, PREVIOUS, RECORD, write};
use super::firmware::{Begun, LOST};
use super::record::{self, Method, Record, Request};
use super::{cpio, firmware, kexec};
use crate::os::memory::is_in_ram;
use crate::paths::Paths;
use crate::spool::Spool;
use crate::{durable, messages, offer, settings};

/// RAM that must stay free, in bytes.
const RESERVE: u64 = 64 << 20;
/// Most bytes of a kernel or an initrd.
const LARGEST: u64 = 1 << 31;
/// Bytes of the kernel command line that are read.
const COMMAND_LINE: usize = 8192;

/// Why a handover ended.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    state: HandoverState,
    reason: String,
}

/// Runs the helper.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal("buildos-os-handover");
    if std::env::args_os().len() > 1 {
        tracing::error!("buildos-os-handover takes no arguments");
        return ExitCode::from(2);
    }
    let root = Path::new("/");
    let files = Files::new(root);
    // The path unit also starts it when buildos-updated withdraws a request.
    if matches!(files.request().try_exists(), Ok(false)) {
        return ExitCode::SUCCESS;
    }
    let request = read_request(&files);
    let serial = request.as_ref().map_or(0, |request| request.serial);
    let result = request
        .map_err(refused)
        .and_then(|request| run(&files, &Paths::new(root), &request).map(|begun| (request, begun)));
    let (state, reason) = match &result {
        Ok(_) => (HandoverState::Loaded, String::new()),
        Err(ended) => (ended.state, ended.reason.clone()),
    };
    let state = Handover {
        state,
        reason,
        serial,
    };
    // buildos-updated stops waiting after a while.
    let written = write(&files.handover(), &state);
    let started = result.and_then(|(request, begun)| {
        // Last: without the request, agents take tasks again.
        if !is_requested(&files, &request) {
            kexec::unload();
            return Err(refused("the request was withdrawn".to_owned()));
        }
        messages::handed_over(&request.version, request.serial);
        start(&files, request.method, begun).map_err(failed)
    });
    match (started, written) {
        (Ok(()), Ok(())) => ExitCode::SUCCESS,
        (Err(ended), _) => {
            messages::not_handed_over(&ended.reason);
            let state = Handover {
                state: ended.state,
                reason: ended.reason,
                ..state
            };
            // Its failure is that of the first time.
            let _ = write(&files.handover(), &state);
            ExitCode::FAILURE
        }
        (Ok(()), Err(error)) => {
            messages::not_handed_over(&error);
            ExitCode::FAILURE
        }
    }
}

/// Lets systemd start the new system, which the firmware remembers.
fn start(files: &Files, method: Method, begun: Begun) -> Result<(), String> {
    // The boot server decides what a reboot starts.
    if method == Method::Reboot {
        return kexec::start(method);
    }
    let variables = files.firmware_variables();
    if let Err(error) = firmware::remember(&variables, begun) {
        messages::trial_failed(&format!(
            "the firmware does not keep the name of the new system: {error}"
        ));
    }
    kexec::start(method).inspect_err(|_| {
        // The system was not tried. A failure has the cause of the first one.
        let _ = firmware::forget(&variables);
    })
}

fn refused(reason: String) -> Ended {
    Ended {
        state: HandoverState::Refused,
        reason,
    }
}

fn failed(reason: String) -> Ended {
    Ended {
        state: HandoverState::Failed,
        reason,
    }
}

fn read_request(files: &Files) -> Result<Request, String> {
    let path = files.request();
    let content = read_bounded(&path, record::LIMIT)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Request::parse(&content).map_err(|error| format!("the request is invalid: {error}"))
}

/// Returns true unless the request was withdrawn or replaced.
fn is_requested(files: &Files, request: &Request) -> bool {
    read_request(files).is_ok_and(|found| found == *request)
}

/// Verifies everything, and loads the new system unless the boot server starts it.
fn run(files: &Files, paths: &Paths, request: &Request) -> Result<Begun, Ended> {
    let line = read_command_line(files).map_err(refused)?;
    let (os, accepted) = offered(files, paths, request, &line).map_err(refused)?;
    let running = command_line::running(&line).ok_or_else(|| {
        refused(
            "the kernel command line does not have buildos.running=: image/serve adds it".into(),
        )
    })?;
    let new = Pair {
        image: os.image.sha256,
        initrd: os.initrd.sha256,
    };
    let lost = firmware::read(&files.firmware_variables()).map(|begun| begun.new);
    check_new(&line, new, running, lost)
        .map_err(|reason| refused(format!("version {} {reason}", os.version)))?;
    let prepared = match request.method {
        Method::Kexec => Some(prepare(files, request, &os, &line, running).map_err(refused)?),
        Method::Reboot => None,
    };
    // Before the load: a kernel that is loaded has to start.
    durable::replace(&files.memory(), offer::memory(accepted).as_bytes()).map_err(failed)?;
    if let Some(prepared) = prepared {
        kexec::load(&prepared.kernel, &prepared.initrd, &prepared.command_line).map_err(
            |error| {
                failed(format!(
                    "the kernel does not load version {}: {error}",
                    os.version
                ))
            },
        )?;
    }
    Ok(Begun {
        new,
        previous: running,
    })
}

/// Refuses a system that runs, or from which the host has just returned. The `lost` one began a
/// trial without an end.
fn check_new(line: &str, new: Pair, running: Pair, lost: Option<Pair>) -> Result<(), String> {
    if new == running {
        return Err("runs already".to_owned());
    }
    match command_line::returned(line) {
        Some(Returned { code, from }) if from == new => Err(format!(
            "did not prove itself on this host ({})",
            code.escape_default()
        )),
        _ if lost == Some(new) => Err(format!("did not prove itself on this host ({LOST})")),
        _ => Ok(()),
    }
}

fn read_command_line(files: &Files) -> Result<String, String> {
    let path = files.kernel_command_line();
    let content = read_bounded(&path, COMMAND_LINE)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    String::from_utf8(content).map_err(|_| "the kernel command line is not UTF-8".to_owned())
}

/// Returns the system of the signed channel, which has to be the requested one.
fn offered(
    files: &Files,
    paths: &Paths,
    request: &Request,
    line: &str,
) -> Result<(Os, Accepted), String> {
    let (settings, _) = settings::load(paths.root());
    let spool = Spool::new(&files.spool());
    let last = last_accepted(files, paths);
    let offer = offer::read(&spool.channel(), paths, &settings, last)?;
    let serial = offer.channel.serial;
    if let Some(running) = command_line::trial(line).filter(|running| serial < *running) {
        return Err(format!(
            "its serial {serial} is lower than {running}, which brought the running system"
        ));
    }
    if serial != request.serial {
        return Err(format!(
            "the channel has serial {serial}, and the request {}",
            request.serial
        ));
    }
    let os = offer
        .channel
        .os
        .ok_or("the channel has no operating system")?;
    if os.version.as_str() != request.version {
        return Err(format!(
            "the channel has version {}, and the request {}",
            os.version, request.version
        ));
    }
    Ok((os, offer.accepted))
}

/// Returns the latest channel that this host accepted. The memory of buildos-updated can only make
/// this stricter.
fn last_accepted(files: &Files, paths: &Paths) -> Option<Accepted> {
    [files.memory(), files.former_memory(), paths.memory()]
        .iter()
        .map(|path| offer::remembered(path))
        .fold(None, offer::later)
}

/// What the kernel gets.
struct Prepared {
    kernel: File,
    initrd: File,
    command_line: String,
}

/// Copies both systems into RAM, and verifies the copies.
fn prepare(
    files: &Files,
    request: &Request,
    os: &Os,
    line: &str,
    running: Pair,
) -> Result<Prepared, String> {
    let spool = Spool::new(&files.spool());
    let object = |sha256: Digest, whose: &str| -> Result<Source, String> {
        Source::open(&spool.object(&sha256), sha256, whose)
    };
    let image = object(os.image.sha256, "kernel of the new system")?;
    let initrd = object(os.initrd.sha256, "initrd of the new system")?;
    let old_image = object(running.image, "kernel of the running system")?;
    let old_initrd = object(running.initrd, "initrd of the running system")?;
    image.check_size(os.image)?;
    initrd.check_size(os.initrd)?;
    let new = Pair {
        image: os.image.sha256,
        initrd: os.initrd.sha256,
    };
    command_line::check_length(line, new, request.serial)?;
    let record = Record {
        version: request.version.clone(),
        image: new.image.to_string(),
        initrd: new.initrd.to_string(),
        previous_image: running.image.to_string(),
        previous_initrd: running.initrd.to_string(),
        command_line: command_line::of_previous(line),
        trial: request.trial.clone(),
    };
    let record = record.encode()?;
    let carried = initrd.size + old_image.size + old_initrd.size;
    let freed = match is_in_ram(&files.spool()) {
        true => carried + image.size,
        false => 0,
    };
    check_memory(files, 3 * carried + 2 * image.size + RESERVE, freed)?;

    let mut kernel = memory_file(IMAGE)?;
    image.copy(&mut kernel)?;
    let mut whole = memory_file(INITRD)?;
    let length = initrd.copy(&mut whole)?;
    let failed = |error: io::Error| format!("cannot copy the running system: {error}");
    let mut archive = cpio::Writer::after(&mut whole, length).map_err(failed)?;
    archive.directory(PREVIOUS).map_err(failed)?;
    for (name, source) in [(IMAGE, old_image), (INITRD, old_initrd)] {
        let path = format!("{PREVIOUS}/{name}");
        source.verified(|size, content| archive.file(&path, size, content))?;
    }
    // Last: a system whose record is there is whole.
    let size = u32::try_from(record.len()).map_err(|error| error.to_string())?;
    let path = format!("{PREVIOUS}/{RECORD}");
    archive
        .file(&path, size, record.as_slice())
        .and_then(|()| archive.finish())
        .map_err(failed)?;
    // The kernel needs the room.
    for sha256 in [new.image, new.initrd, running.image, running.initrd] {
        let _ = fs::remove_file(spool.object(&sha256));
    }
    let read_only = |file| kexec::read_only(file).map_err(|error| error.to_string());
    Ok(Prepared {
        kernel: read_only(kernel)?,
        initrd: read_only(whole)?,
        command_line: command_line::of_new(line, new, request.serial),
    })
}

fn memory_file(name: &str) -> Result<File, String> {
    kexec::memory_file(name).map_err(|error| format!("cannot make a file in RAM: {error}"))
}

/// An object of the spool.
struct Source {
    file: File,
    sha256: Digest,
    size: u64,
    /// For messages.
    whose: String,
}

impl Source {
    fn open(path: &Path, sha256: Digest, whose: &str) -> Result<Self, String> {
        let opened = open_regular(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) =
            opened.map_err(|error| match error.kind() == io::ErrorKind::NotFound {
                true => format!("the {whose} is not in the spool ({sha256})"),
                false => format!("cannot read the {whose}: {error}"),
            })?;
        if size == 0 || size > LARGEST {
            return Err(format!("the {whose} has {size} bytes"));
        }
        Ok(Self {
            file,
            sha256,
            size,
            whose: whose.to_owned(),
        })
    }

    fn check_size(&self, object: Object) -> Result<(), String> {
        match self.size == object.size {
            true => Ok(()),
            false => Err(format!(
                "the {} has {} bytes instead of {}",
                self.whose, self.size, object.size
            )),
        }
    }

    /// Copies it; returns its length.
    fn copy(self, out: &mut File) -> Result<u64, String> {
        let size = self.size;
        self.verified(|_, content| io::copy(content, out).map(|_| ()))?;
        Ok(size)
    }

    /// Passes on its bytes, and compares the digest of what was passed on. The owner of the
    /// spool can change a file while it is read.
    fn verified(
        self,
        take: impl FnOnce(u32, &mut dyn Read) -> io::Result<()>,
    ) -> Result<(), String> {
        let Self {
            file,
            sha256,
            size,
            whose,
        } = self;
        let bytes = u32::try_from(size).map_err(|error| error.to_string())?;
        let mut content = Hashed {
            inner: BufReader::with_capacity(1 << 20, file).take(size),
            hasher: Hasher::default(),
        };
        take(bytes, &mut content).map_err(|error| format!("cannot copy the {whose}: {error}"))?;
        let found = content.hasher.finish();
        match found == sha256 {
            true => Ok(()),
            false => Err(format!(
                "the {whose} has the digest {found} instead of {sha256}"
            )),
        }
    }
}

/// Computes the digest of what is read.
struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Refuses a handover for which RAM is too small. `freed` bytes are in use and become free.
fn check_memory(files: &Files, needed: u64, freed: u64) -> Result<(), String> {
    let content = read_bounded(&files.meminfo(), 1 << 16)
        .map_err(|error| format!("cannot read the size of RAM: {error}"))?;
    let text = String::from_utf8_lossy(&content);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let available = kib.ok_or("the size of RAM is not known")? << 10;
    let found = available + freed;
    match found >= needed {
        true => Ok(()),
        false => Err(format!(
            "{} MiB of RAM are needed for both systems, and {} MiB are available",
            needed >> 20,
            found >> 20
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(content: &[u8], sha256: Digest) -> (tempfile::TempDir, Result<Source, String>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("object");
        fs::write(&path, content).unwrap();
        (directory, Source::open(&path, sha256, "kernel"))
    }

    #[test]
    fn copy_is_verified() {
        let (_directory, opened) = source(b"content", Digest::of(b"content"));
        let mut out = kexec::memory_file("out").unwrap();
        assert_eq!(opened.unwrap().copy(&mut out), Ok(7));
        let (_directory, opened) = source(b"contend", Digest::of(b"content"));
        let error = opened.unwrap().copy(&mut out).unwrap_err();
        assert!(error.starts_with("the kernel has the digest "), "{error}");
    }

    #[test]
    fn missing_empty_and_cut_objects_are_refused() {
        let digest = Digest::of(b"x");
        let missing = Source::open(Path::new("/nonexistent"), digest, "kernel").err();
        let expected = format!("the kernel is not in the spool ({digest})");
        assert_eq!(missing, Some(expected));
        let (_directory, empty) = source(b"", digest);
        assert_eq!(empty.err().unwrap(), "the kernel has 0 bytes");
        let (_directory, cut) = source(b"xy", digest);
        let object = Object {
            sha256: digest,
            size: 3,
        };
        let error = cut.unwrap().check_size(object).unwrap_err();
        assert_eq!(error, "the kernel has 2 bytes instead of 3");
    }

    #[test]
    fn system_that_runs_or_has_returned_is_refused() {
        let pair = |seed: &[u8]| Pair {
            image: Digest::of(seed),
            initrd: Digest::of(seed),
        };
        let (old, bad) = (pair(b"old"), pair(b"bad"));
        let line = command_line::of_return("quiet", "why-15", bad);
        assert_eq!(check_new(&line, pair(b"new"), old, Some(bad)), Ok(()));
        assert_eq!(check_new("quiet", bad, old, None), Ok(()));
        assert_eq!(
            check_new(&line, old, old, None).unwrap_err(),
            "runs already"
        );
        assert_eq!(
            check_new(&line, bad, old, None).unwrap_err(),
            "did not prove itself on this host (why-15)"
        );
        let lost = check_new("quiet", bad, old, Some(bad)).unwrap_err();
        assert_eq!(lost, format!("did not prove itself on this host ({LOST})"));
    }

    #[test]
    fn serial_of_the_former_boot_counts() {
        let root = tempfile::tempdir().unwrap();
        let (files, paths) = (Files::new(root.path()), Paths::new(root.path()));
        let last = || last_accepted(&files, &paths).map(|accepted| accepted.serial);
        assert_eq!(last(), None);
        for (path, serial) in [
            (files.memory(), 7),
            (files.former_memory(), 9),
            (paths.memory(), 8),
        ] {
            let digest = Digest::of(b"channel");
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, offer::memory(Accepted { serial, digest })).unwrap();
        }
        assert_eq!(last(), Some(9));
    }

    #[test]
    fn memory_must_be_available() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(root.path());
        fs::create_dir(root.path().join("proc")).unwrap();
        assert!(check_memory(&files, 1, 0).is_err());
        let text = "MemTotal: 9999999 kB\nMemAvailable:    102400 kB\n";
        fs::write(files.meminfo(), text).unwrap();
        assert_eq!(check_memory(&files, 150 << 20, 50 << 20), Ok(()));
        assert_eq!(
            check_memory(&files, 150 << 20, 49 << 20).unwrap_err(),
            "150 MiB of RAM are needed for both systems, and 149 MiB are available"
        );
    }

    #[test]
    fn withdrawn_or_replaced_request_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(root.path());
        fs::create_dir_all(files.request().parent().unwrap()).unwrap();
        let text = |version: &str| {
            format!(
                "{{\"version\":\"{version}\",\"serial\":7,\"method\":\"kexec\",\
                 \"deadline_s\":900,\"agents\":[],\"why_before\":0}}"
            )
        };
        fs::write(files.request(), text("2")).unwrap();
        let request = read_request(&files).unwrap();
        assert!(is_requested(&files, &request));
        fs::write(files.request(), text("3")).unwrap();
        assert!(!is_requested(&files, &request));
        fs::remove_file(files.request()).unwrap();
        assert!(!is_requested(&files, &request));
    }
}
