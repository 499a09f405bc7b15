//! A build machine in QEMU, with a tap on a bridge of the host.
//!
//! It boots a kernel of the host with an initramfs of the host's own programs
//! ([`crate::initramfs`]), runs one worker and switches itself off. As a worker asks
//! for everything by the network, nothing else goes in or out but what it logs.

use crate::initramfs::{Initramfs, InitramfsError};
use crate::sudo::ToolError;
use crate::tap::Tap;
use std::env;
use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// The emulator. It is for the architecture of the host's own programs.
const QEMU: &str = "qemu-system-x86_64";
/// What a machine needs of the host besides.
const PROGRAMS: [&str; 4] = ["busybox", "tcc", "bbot-worker", "modprobe"];
/// Where a host has its kernels, `vmlinuz-VERSION`.
const BOOT: &str = "/boot";
/// RAM of a machine, MiB: enough for the kernel, the initramfs, which is unpacked
/// into RAM, and a small compiler.
const MEMORY: u32 = 256;
/// The console is the worker's log. Without udev a NIC keeps the name that the kernel
/// gives it; who cannot go on ends at once, see `-no-reboot`.
const PARAMETERS: &str = "console=ttyS0 quiet net.ifnames=0 panic=-1";

/// What virtual machines are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hypervisor {
    kernel: PathBuf,
    /// Of the kernel: where its modules are.
    version: String,
}

/// There can be no virtual machines on this host.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// A program is not installed.
    #[error("{0} is not installed")]
    Program(&'static str),
    /// There is no kernel at all.
    #[error("there is no kernel in {BOOT}")]
    NoKernel,
    /// The kernel cannot be used.
    #[error("cannot read the kernel {}", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be told which modules belong to the kernel.
    #[error("{} is not called vmlinuz-VERSION, nor leads to such a file", .0.display())]
    Version(PathBuf),
}

/// A virtual machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VirtualMachineError {
    /// What it boots.
    #[error("cannot make the initramfs of a virtual machine")]
    Initramfs(#[from] InitramfsError),
    /// Its link.
    #[error("cannot make the tap of a virtual machine")]
    Tap(#[from] ToolError),
    /// QEMU.
    #[error("cannot execute {QEMU}")]
    Start(#[source] io::Error),
}

impl Hypervisor {
    /// Looks for what virtual machines take; `kernel` instead of the newest one of
    /// the host.
    ///
    /// # Errors
    ///
    /// Something of it is missing.
    pub fn find(kernel: Option<&Path>) -> Result<Self, HypervisorError> {
        let path = match kernel {
            Some(kernel) => kernel.to_owned(),
            None => newest(Path::new(BOOT)).ok_or(HypervisorError::NoKernel)?,
        };
        let readable = File::open(&path).and_then(|_| fs::canonicalize(&path));
        let kernel = readable.map_err(|source| HypervisorError::Kernel {
            path: path.clone(),
            source,
        })?;
        let version = version(&kernel).ok_or(HypervisorError::Version(path))?;
        for program in [QEMU].into_iter().chain(PROGRAMS) {
            installed(program).ok_or(HypervisorError::Program(program))?;
        }
        Ok(Self {
            version: version.to_owned(),
            kernel,
        })
    }

    /// Boots a machine called `name` on a bridge, in which `bbot-worker` runs with
    /// these arguments.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn start(
        &self,
        name: &str,
        bridge: &str,
        arguments: &[&str],
    ) -> Result<VirtualMachine, VirtualMachineError> {
        let initramfs = Initramfs::new(&env::temp_dir().join(name), &self.version)?;
        let tap = Tap::new(name, bridge)?;
        // Whoever ends without a word, such as by SIGKILL, takes the machine along.
        let qemu = Command::new("setpriv")
            .args(["--pdeathsig=KILL", QEMU])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-cpu", "max"])
            .args(["-accel", accelerator(), "-m", &MEMORY.to_string()])
            .args(network(tap.name(), RandomState::new().hash_one(name)))
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(initramfs.path())
            // What follows two dashes the kernel hands to init.
            .arg("-append")
            .arg(format!("{PARAMETERS} -- {}", arguments.join(" ")))
            .stdin(Stdio::null())
            // Where this program logs.
            .stdout(io::stderr())
            .spawn()
            .map_err(VirtualMachineError::Start)?;
        Ok(VirtualMachine {
            qemu,
            tap,
            _initramfs: initramfs,
        })
    }
}

/// A running machine. What it is made of goes with it.
#[derive(Debug)]
pub struct VirtualMachine {
    qemu: Child,
    tap: Tap,
    _initramfs: Initramfs,
}

impl VirtualMachine {
    /// Name of its tap.
    #[must_use]
    pub fn link(&self) -> &str {
        self.tap.name()
    }

    /// How QEMU ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.qemu.try_wait().ok().flatten()
    }
}

impl Drop for VirtualMachine {
    fn drop(&mut self) {
        // There is nothing in it to be saved.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// QEMU's options for a NIC on a tap, with a MAC address drawn by lot.
fn network(tap: &str, lot: u64) -> [String; 4] {
    let [a, b, c, d, e, f, ..] = lot.to_be_bytes();
    // Of one station, and not of a vendor's range.
    let a = (a & 0xfc) | 0x02;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    [
        "-netdev".to_owned(),
        format!("tap,id=net0,ifname={tap},script=no,downscript=no"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=net0,mac={mac}"),
    ]
}

/// The processor's own virtualization where this user may use it.
fn accelerator() -> &'static str {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_ok() { "kvm" } else { "tcg" }
}

/// The kernel with the greatest version in a directory, whose parts are compared as
/// numbers where they are.
fn newest(directory: &Path) -> Option<PathBuf> {
    let listed = fs::read_dir(directory).ok()?;
    let kernels = listed.filter_map(|entry| Some(entry.ok()?.path()));
    kernels
        .filter(|path| version(path).is_some())
        .max_by_key(|path| version(path).map(parts))
}

fn version(kernel: &Path) -> Option<&str> {
    kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

fn parts(version: &str) -> Vec<(u64, String)> {
    let parts = version.split(['.', '-', '+']);
    parts
        .map(|part| (part.parse().unwrap_or(0), part.to_owned()))
        .collect()
}

/// Where a program is.
pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nic_is_on_the_tap_and_has_a_local_address() {
        assert_eq!(
            network("bb1-0", u64::MAX).join(" "),
            "-netdev tap,id=net0,ifname=bb1-0,script=no,downscript=no \
             -device virtio-net-pci,netdev=net0,mac=fe:ff:ff:ff:ff:ff"
        );
        assert!(network("bb1-0", 0)[3].ends_with("mac=02:00:00:00:00:00"));
    }

    #[test]
    fn the_newest_kernel_is_taken() {
        let boot = tempfile::tempdir().unwrap();
        assert_eq!(newest(boot.path()), None);
        assert_eq!(newest(Path::new("/nonexistent")), None);
        for name in [
            "vmlinuz-6.9.1-1-amd64",
            "vmlinuz-6.12.9+deb13-amd64",
            "vmlinuz-6.12.10+deb13-amd64",
            "config-7.0.0",
        ] {
            fs::write(boot.path().join(name), "").unwrap();
        }
        let newest = newest(boot.path()).unwrap();
        assert_eq!(version(&newest), Some("6.12.10+deb13-amd64"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = |path: &Path| Hypervisor::find(Some(path)).unwrap_err().to_string();
        assert_eq!(
            missing(Path::new("/nonexistent/vmlinuz-6")),
            "cannot read the kernel /nonexistent/vmlinuz-6"
        );
        assert!(missing(Path::new("/dev/null")).starts_with("/dev/null is not called"));
        assert_eq!(installed("no-such-program"), None);
        assert!(installed("sh").is_some());
    }
}
