//! What a virtual build machine boots with: programs and headers of this host, as they
//! are, in the format that the kernel unpacks (newc, see the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use crate::sudo::{ToolError, finish};
use crate::virtual_machine::installed;
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// What compiles, and what takes part in a task.
const PROGRAMS: [&str; 2] = ["tcc", "bbot-worker"];
/// What a compiled program is made of: headers, and what tcc links it with.
const COMPILED: [&str; 8] = [
    "/usr/include",
    "/usr/lib/x86_64-linux-gnu/tcc",
    "/usr/lib/x86_64-linux-gnu/crt1.o",
    "/usr/lib/x86_64-linux-gnu/crti.o",
    "/usr/lib/x86_64-linux-gnu/crtn.o",
    "/usr/lib/x86_64-linux-gnu/libc.so",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libc_nonshared.a",
];
/// Where programs look for others, and for their libraries.
const LINKS: [&str; 4] = ["/bin", "/sbin", "/lib", "/lib64"];
/// Mount points, and what programs expect.
const DIRECTORIES: [&str; 6] = ["dev", "etc", "modules", "proc", "sys", "tmp"];
/// Drivers of a machine's NIC.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];

/// The first process of the machine: becomes the worker's parent, with the arguments
/// that the kernel hands on, and switches the machine off when it ends.
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

/// An initramfs in a file, with what it was made of. They go with this.
#[derive(Debug)]
pub struct Initramfs {
    directory: PathBuf,
}

/// An initramfs could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A file that belongs in it, or that it is made of.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What makes it, or says what belongs in it.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

fn cannot_use(path: &Path) -> impl FnOnce(io::Error) -> InitramfsError {
    let path = path.to_owned();
    |source| InitramfsError::File { path, source }
}

/// A program that has to be there: when the machines were chosen, it was.
fn program(name: &str) -> Result<PathBuf, InitramfsError> {
    installed(name)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
        .map_err(cannot_use(Path::new(name)))
}

impl Initramfs {
    /// Makes one in `directory`, a new one, for a kernel of this version.
    ///
    /// # Errors
    ///
    /// Something that belongs in it is missing, or there is no room for it.
    pub fn new(directory: &Path, kernel: &str) -> Result<Self, InitramfsError> {
        fs::create_dir(directory).map_err(cannot_use(directory))?;
        let initramfs = Self {
            directory: directory.to_owned(),
        };
        let busybox = program("busybox")?;
        let own = directory.join("own");
        write_own(&own, &busybox, kernel)?;
        let output = File::create(initramfs.path()).map_err(cannot_use(directory))?;
        // The kernel takes one archive after the other.
        for (top, files) in [(Path::new("/"), of_host(&busybox)?), (&own, below(&own)?)] {
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

    /// The file.
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

/// Writes what is not taken from the host: the first process, the modules, places to
/// mount something.
fn write_own(own: &Path, busybox: &Path, kernel: &str) -> Result<(), InitramfsError> {
    for name in DIRECTORIES {
        let path = own.join(name);
        fs::create_dir_all(&path).map_err(cannot_use(&path))?;
    }
    let init = own.join("init");
    fs::write(&init, format!("#!{} sh\n{INIT}", busybox.display())).map_err(cannot_use(&init))?;
    fs::set_permissions(&init, Permissions::from_mode(0o755)).map_err(cannot_use(&init))?;
    // A lease brings name servers.
    let resolver = own.join("etc/resolv.conf");
    fs::write(&resolver, "").map_err(cannot_use(&resolver))?;
    let mounts = own.join("etc/mtab");
    symlink("/proc/self/mounts", &mounts).map_err(cannot_use(&mounts))?;
    for (number, module) in modules(kernel)?.iter().enumerate() {
        // In the order in which they have to be loaded; busybox has fewer ways to
        // unpack them than the host.
        let target = own.join(format!("modules/{number}.ko"));
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

/// The modules that drive a NIC, in the order in which they are loaded; none where the
/// kernel has them built in.
fn modules(kernel: &str) -> Result<Vec<PathBuf>, InitramfsError> {
    let output = Command::new("modprobe")
        .args(["--set-version", kernel, "--show-depends", "--all"])
        .args(MODULES)
        .output();
    Ok(loaded(&finish("modprobe", output)?))
}

/// What `modprobe --show-depends` says that it would load: `insmod PATH [PARAMETER…]`.
fn loaded(said: &str) -> Vec<PathBuf> {
    let lines = said.lines().filter_map(|line| line.strip_prefix("insmod "));
    lines
        .filter_map(|line| line.split_whitespace().next())
        .map(PathBuf::from)
        .collect()
}

/// The files of the host that belong in it, each after the directory that it is in.
fn of_host(busybox: &Path) -> Result<BTreeSet<PathBuf>, InitramfsError> {
    let mut files = BTreeSet::new();
    for path in LINKS.iter().chain(&COMPILED) {
        add(&mut files, Path::new(path))?;
    }
    let mut programs = vec![busybox.to_owned()];
    for name in PROGRAMS {
        programs.push(program(name)?);
    }
    for program in &programs {
        add(&mut files, program)?;
        let output = Command::new("ldd").arg(program).output();
        // It fails for a program without libraries.
        for library in libraries(&finish("ldd", output).unwrap_or_default()) {
            add(&mut files, &library)?;
        }
    }
    Ok(files)
}

/// The files that `ldd` says a program is loaded with: `NAME => PATH (ADDRESS)`, and
/// `PATH (ADDRESS)` for the loader.
fn libraries(said: &str) -> Vec<PathBuf> {
    let words = said.split_whitespace();
    words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Adds a file with the directories that it is in; of a directory what is in it, of a
/// symbolic link what it leads to, be it a directory without what is in that.
fn add(files: &mut BTreeSet<PathBuf>, path: &Path) -> Result<(), InitramfsError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    // Directories of the host are links to others as well.
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

/// A directory and everything in it.
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

/// A file in the list that cpio reads; nothing for the top itself.
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
    fn what_tools_say_is_understood() {
        let depends =
            "insmod /lib/modules/6/failover.ko.xz \nbuiltin virtio_pci\ninsmod /a.ko x=1\n";
        let expected = ["/lib/modules/6/failover.ko.xz", "/a.ko"].map(PathBuf::from);
        assert_eq!(loaded(depends), expected);
        let ldd = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
        let expected = ["/lib/x/libc.so.6", "/lib64/ld.so.2"].map(PathBuf::from);
        assert_eq!(libraries(ldd), expected);
        assert_eq!(libraries("\tstatically linked\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn files_come_with_their_directories_and_what_they_lead_to() {
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
            // The temporary directory is in others.
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
