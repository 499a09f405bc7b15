//! Builds the initramfs of a virtual build machine from programs and headers of the host.
//!
//! # Sources
//!
//! The format is newc: Documentation/driver-api/early-userspace/buffer-format.rst of the
//! kernel.

use crate::program_path::find_program;
use crate::sudo::{ToolError, finish};
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// Compiler and worker.
const PROGRAMS: [&str; 2] = ["tcc", "bbot-worker"];
/// Headers, and the files that tcc links a program with.
const TOOLCHAIN: [&str; 8] = [
    "/usr/include",
    "/usr/lib/x86_64-linux-gnu/tcc",
    "/usr/lib/x86_64-linux-gnu/crt1.o",
    "/usr/lib/x86_64-linux-gnu/crti.o",
    "/usr/lib/x86_64-linux-gnu/crtn.o",
    "/usr/lib/x86_64-linux-gnu/libc.so",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libc_nonshared.a",
];
/// Links to the directories of programs and libraries.
const LINKS: [&str; 4] = ["/bin", "/sbin", "/lib", "/lib64"];
/// Mount points, and directories that programs expect.
const DIRECTORIES: [&str; 6] = ["dev", "etc", "modules", "proc", "sys", "tmp"];
/// Drivers of the machine's NIC.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];

/// Script of PID 1. It runs the worker with the arguments that the kernel passes, then
/// switches the machine off.
const INIT: &str = "\
busybox mount -t proc proc /proc
busybox --install -s /usr/bin
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /tmp
for module in /modules/*; do insmod $module; done
ip link set lo up
ip link set eth0 up
bbot-worker \"$@\"
poweroff -f
";

/// An initramfs in a temporary directory. Dropping it removes the directory.
#[derive(Debug)]
pub struct Initramfs {
    directory: PathBuf,
}

/// An initramfs cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A file of the host or of the temporary directory cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        #[allow(missing_docs)]
        path: PathBuf,
        #[allow(missing_docs)]
        source: io::Error,
    },
    /// A command failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

fn cannot_use(path: &Path) -> impl FnOnce(io::Error) -> InitramfsError {
    let path = path.to_owned();
    |source| InitramfsError::File { path, source }
}

/// Returns the path of a program that [`Hypervisor::find`](crate::virtual_machine::Hypervisor::find)
/// has found before.
fn program(name: &str) -> Result<PathBuf, InitramfsError> {
    find_program(name)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
        .map_err(cannot_use(Path::new(name)))
}

impl Initramfs {
    /// Builds an initramfs for a kernel of this version in a new directory.
    ///
    /// # Errors
    ///
    /// A file is missing, or there is not enough space.
    pub fn new(directory: &Path, kernel: &str) -> Result<Self, InitramfsError> {
        fs::create_dir(directory).map_err(cannot_use(directory))?;
        let initramfs = Self {
            directory: directory.to_owned(),
        };
        let busybox = program("busybox")?;
        let generated = directory.join("generated");
        write_generated_files(&generated, &busybox, kernel)?;
        let output = File::create(initramfs.path()).map_err(cannot_use(directory))?;
        // The kernel unpacks several archives one after the other.
        for (top, files) in [
            (Path::new("/"), host_files(&busybox)?),
            (&generated, below(&generated)?),
        ] {
            let list = directory.join("list");
            let lines: String = files.iter().map(|path| line(top, path)).collect();
            fs::write(&list, lines).map_err(cannot_use(&list))?;
            let cpio = Command::new(&busybox)
                .args(["cpio", "-o", "-H", "newc"])
                .current_dir(top)
                .stdin(File::open(&list).map_err(cannot_use(&list))?)
                .stdout(output.try_clone().map_err(cannot_use(directory))?)
                .stderr(Stdio::piped())
                .spawn()
                .and_then(std::process::Child::wait_with_output);
            finish("busybox cpio", cpio)?;
        }
        Ok(initramfs)
    }

    /// Returns the path of the initramfs.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join("initramfs")
    }
}

impl Drop for Initramfs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Writes the files that do not come from the host as they are: init, unpacked modules
/// and mount points.
fn write_generated_files(root: &Path, busybox: &Path, kernel: &str) -> Result<(), InitramfsError> {
    for name in DIRECTORIES {
        let path = root.join(name);
        fs::create_dir_all(&path).map_err(cannot_use(&path))?;
    }
    let init = root.join("init");
    fs::write(&init, format!("#!{} sh\n{INIT}", busybox.display())).map_err(cannot_use(&init))?;
    fs::set_permissions(&init, Permissions::from_mode(0o755)).map_err(cannot_use(&init))?;
    // udhcpc writes the name servers of the lease.
    let resolver = root.join("etc/resolv.conf");
    fs::write(&resolver, "").map_err(cannot_use(&resolver))?;
    let mounts = root.join("etc/mtab");
    symlink("/proc/self/mounts", &mounts).map_err(cannot_use(&mounts))?;
    for (number, module) in modules(kernel)?.iter().enumerate() {
        // Numbered in the order of loading. busybox insmod supports fewer compression
        // formats than the host.
        let target = root.join(format!("modules/{number}.ko"));
        if module
            .extension()
            .is_some_and(|extension| extension == "xz")
        {
            let unpacked = Command::new(busybox).arg("xzcat").arg(module).output();
            let module = unpacked.map_err(cannot_use(module))?.stdout;
            fs::write(&target, module).map_err(cannot_use(&target))?;
        } else {
            fs::copy(module, &target).map_err(cannot_use(module))?;
        }
    }
    Ok(())
}

/// Returns the modules of the NIC's drivers in the order of loading; none if they are
/// built into the kernel.
fn modules(kernel: &str) -> Result<Vec<PathBuf>, InitramfsError> {
    let output = Command::new("modprobe")
        .args(["--set-version", kernel, "--show-depends", "--all"])
        .args(MODULES)
        .output();
    Ok(parse_modprobe(&finish("modprobe", output)?))
}

/// Returns the paths in the output of `modprobe --show-depends`, which has lines
/// `insmod PATH [PARAMETER…]`.
fn parse_modprobe(output: &str) -> Vec<PathBuf> {
    let lines = output
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "));
    lines
        .filter_map(|line| line.split_whitespace().next())
        .map(PathBuf::from)
        .collect()
}

/// Returns the files of the host, each after its directory.
fn host_files(busybox: &Path) -> Result<BTreeSet<PathBuf>, InitramfsError> {
    let mut files = BTreeSet::new();
    for path in LINKS.iter().chain(&TOOLCHAIN) {
        add(&mut files, Path::new(path))?;
    }
    let mut programs = vec![busybox.to_owned()];
    for name in PROGRAMS {
        programs.push(program(name)?);
    }
    for program in &programs {
        add(&mut files, program)?;
        let output = Command::new("ldd").arg(program).output();
        // ldd fails for a program without libraries.
        for library in parse_ldd(&finish("ldd", output).unwrap_or_default()) {
            add(&mut files, &library)?;
        }
    }
    Ok(files)
}

/// Returns the paths in the output of `ldd`, which has lines `NAME => PATH (ADDRESS)`,
/// and `PATH (ADDRESS)` for the loader.
fn parse_ldd(output: &str) -> Vec<PathBuf> {
    let words = output.split_whitespace();
    words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Adds a file with its parent directories.
///
/// For a directory it adds the contents. For a symbolic link it adds the target, which
/// for a directory excludes the contents.
fn add(files: &mut BTreeSet<PathBuf>, path: &Path) -> Result<(), InitramfsError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    // Directories of the host can be links.
    let parent = fs::canonicalize(parent).map_err(cannot_use(parent))?;
    let path = parent.join(name);
    let metadata = fs::symlink_metadata(&path).map_err(cannot_use(&path))?;
    files.extend(parent.ancestors().map(Path::to_owned));
    if metadata.is_dir() {
        files.extend(below(&path)?);
    } else if metadata.is_symlink() {
        let target = parent.join(fs::read_link(&path).map_err(cannot_use(&path))?);
        if target.is_dir() {
            let target = fs::canonicalize(&target).map_err(cannot_use(&target))?;
            files.extend(target.ancestors().map(Path::to_owned));
        } else {
            add(files, &target)?;
        }
    }
    files.insert(path);
    Ok(())
}

/// Returns a directory and everything in it.
fn below(directory: &Path) -> Result<BTreeSet<PathBuf>, InitramfsError> {
    let mut files = BTreeSet::from([directory.to_owned()]);
    for entry in fs::read_dir(directory).map_err(cannot_use(directory))? {
        let entry = entry.map_err(cannot_use(directory))?;
        let path = entry.path();
        if entry.file_type().map_err(cannot_use(&path))?.is_dir() {
            files.extend(below(&path)?);
        } else {
            files.insert(path);
        }
    }
    Ok(files)
}

/// Returns the line of a file in cpio's input; empty for `top` itself.
fn line(top: &Path, path: &Path) -> String {
    let path = path.strip_prefix(top).unwrap_or(path);
    if path.components().all(|part| part == Component::RootDir) {
        return String::new();
    }
    format!("{}\n", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_modprobe_and_ldd_is_parsed() {
        let depends =
            "insmod /lib/modules/6/failover.ko.xz \nbuiltin virtio_pci\ninsmod /a.ko x=1\n";
        let expected = ["/lib/modules/6/failover.ko.xz", "/a.ko"].map(PathBuf::from);
        assert_eq!(parse_modprobe(depends), expected);
        let ldd = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
        let expected = ["/lib/x/libc.so.6", "/lib64/ld.so.2"].map(PathBuf::from);
        assert_eq!(parse_ldd(ldd), expected);
        assert_eq!(parse_ldd("\tstatically linked\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn added_file_brings_parent_directories_and_link_targets() {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir_all(top.join("usr/lib/a")).unwrap();
        fs::write(top.join("usr/lib/a/b"), "").unwrap();
        fs::write(top.join("usr/lib/libc.so.6.1"), "").unwrap();
        symlink("usr/lib", top.join("lib")).unwrap();
        symlink("libc.so.6.1", top.join("usr/lib/libc.so.6")).unwrap();
        let added = |path: &str| {
            let mut files = BTreeSet::new();
            add(&mut files, &top.join(path)).unwrap();
            let lines: String = files.iter().map(|path| line(&top, path)).collect();
            let lines: Vec<_> = lines.lines().map(str::to_owned).collect();
            // Without the parents of the temporary directory.
            lines
                .into_iter()
                .filter(|line| !line.starts_with('/'))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            added("lib/libc.so.6"),
            ["usr", "usr/lib", "usr/lib/libc.so.6", "usr/lib/libc.so.6.1"]
        );
        assert_eq!(
            added("usr/lib/a"),
            ["usr", "usr/lib", "usr/lib/a", "usr/lib/a/b"]
        );
        assert_eq!(added("lib"), ["lib", "usr", "usr/lib"]);
        let mut files = BTreeSet::new();
        let error = add(&mut files, &top.join("usr/none")).unwrap_err();
        assert!(error.to_string().ends_with("usr/none"), "{error}");
    }
}
