//! Runs a worker in a virtual machine in QEMU, with a tap on a bridge of the host.
//!
//! The machine boots a kernel of the host with an initramfs of the host's programs
//! ([`crate::initramfs`]). It runs one worker and switches itself off. It exchanges data
//! over the network only; the serial console carries the worker's log.

use crate::initramfs::{Initramfs, InitramfsError};
use crate::program_path::find_program;
use crate::sudo::ToolError;
use crate::tap::Tap;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// QEMU for the architecture of the host's programs.
const QEMU: &str = "qemu-system-x86_64";
/// Other programs of the host that a machine needs.
const PROGRAMS: [&str; 4] = ["busybox", "tcc", "bbot-worker", "modprobe"];
/// Directory of the host's kernels, `vmlinuz-VERSION`.
const BOOT: &str = "/boot";
/// RAM of a machine in MiB: for the kernel, the unpacked initramfs and a small
/// compiler.
const MEMORY: u32 = 256;
/// Kernel parameters: the console carries the worker's log, the NIC is eth0, and a panic
/// ends QEMU (see `-no-reboot`).
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet net.ifnames=0 panic=-1";

/// The kernel of virtual machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hypervisor {
    kernel: PathBuf,
    /// Version of the kernel, by which modprobe finds its modules.
    version: String,
}

/// The host lacks a requirement of virtual machines.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// A program is not installed.
    #[error("{0} is not installed")]
    Program(&'static str),
    /// The host has no kernel.
    #[error("there is no kernel in {BOOT}")]
    NoKernel,
    /// The kernel cannot be read.
    #[error("cannot read the kernel {}", path.display())]
    Kernel {
        #[allow(missing_docs)]
        path: PathBuf,
        #[allow(missing_docs)]
        source: io::Error,
    },
    /// The file name has no version, by which modprobe would find the modules.
    #[error("{} is neither a file vmlinuz-VERSION nor a link to one", .0.display())]
    Version(PathBuf),
}

/// A virtual machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VirtualMachineError {
    /// The initramfs cannot be built.
    #[error("cannot build the initramfs of a virtual machine")]
    Initramfs(#[from] InitramfsError),
    /// The tap cannot be created.
    #[error("cannot create the tap of a virtual machine")]
    Tap(#[from] ToolError),
    /// QEMU cannot be executed.
    #[error("cannot execute {QEMU}")]
    Start(#[source] io::Error),
}

impl Hypervisor {
    /// Checks the requirements of virtual machines with this kernel, or the newest of the
    /// host.
    ///
    /// # Errors
    ///
    /// The host lacks a requirement.
    pub fn find(kernel: Option<&Path>) -> Result<Self, HypervisorError> {
        let path = match kernel {
            Some(kernel) => kernel.to_owned(),
            None => newest_kernel(Path::new(BOOT)).ok_or(HypervisorError::NoKernel)?,
        };
        let readable = File::open(&path).and_then(|_| fs::canonicalize(&path));
        let kernel = readable.map_err(|source| HypervisorError::Kernel {
            path: path.clone(),
            source,
        })?;
        let version = version(&kernel).ok_or(HypervisorError::Version(path))?;
        for program in [QEMU].into_iter().chain(PROGRAMS) {
            find_program(program).ok_or(HypervisorError::Program(program))?;
        }
        Ok(Self {
            version: version.to_owned(),
            kernel,
        })
    }

    /// Boots a machine called `name` on a bridge that runs `bbot-worker` with these
    /// arguments.
    ///
    /// # Errors
    ///
    /// The machine cannot be started.
    pub fn start(
        &self,
        name: &str,
        bridge: &str,
        arguments: &[&str],
    ) -> Result<VirtualMachine, VirtualMachineError> {
        let initramfs = Initramfs::new(&env::temp_dir().join(name), &self.version)?;
        let initrd = initramfs.path();
        // The kernel passes the arguments after two dashes to init.
        let append = format!("{KERNEL_PARAMETERS} -- {}", arguments.join(" "));
        let system: [&OsStr; 6] = [
            "-kernel".as_ref(),
            self.kernel.as_ref(),
            "-initrd".as_ref(),
            initrd.as_ref(),
            "-append".as_ref(),
            append.as_ref(),
        ];
        let mut machine = VirtualMachine::start(name, bridge, &system)?;
        machine._initramfs = Some(initramfs);
        Ok(machine)
    }
}

/// A running machine. Dropping it stops QEMU and removes tap and initramfs.
#[derive(Debug)]
pub struct VirtualMachine {
    qemu: Child,
    tap: Tap,
    /// Socket of QEMU's monitor.
    monitor: PathBuf,
    _initramfs: Option<Initramfs>,
}

impl VirtualMachine {
    /// Starts a machine on a bridge that stays paused before its first instruction, as QEMU is
    /// after an agent has suspended it. It needs no kernel.
    ///
    /// # Errors
    ///
    /// The machine cannot be started.
    pub fn suspended(name: &str, bridge: &str) -> Result<Self, VirtualMachineError> {
        Self::start(name, bridge, &["-S".as_ref()])
    }

    fn start(name: &str, bridge: &str, options: &[&OsStr]) -> Result<Self, VirtualMachineError> {
        let tap = Tap::new(name, bridge)?;
        let monitor = env::temp_dir().join(format!("{name}-monitor"));
        // The kernel kills QEMU when the agent ends, even by SIGKILL.
        let qemu = Command::new("setpriv")
            .args(["--pdeathsig=KILL", QEMU])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-cpu", "max"])
            .args(["-monitor", &monitor_option(&monitor)])
            .args(["-accel", accelerator(), "-m", &MEMORY.to_string()])
            .args(nic_options(tap.name(), RandomState::new().hash_one(name)))
            .args(options)
            .stdin(Stdio::null())
            // The log of the agent.
            .stdout(io::stderr())
            .spawn()
            .map_err(VirtualMachineError::Start)?;
        Ok(Self {
            qemu,
            tap,
            monitor,
            _initramfs: None,
        })
    }

    /// Returns the name of the tap.
    #[must_use]
    pub fn link(&self) -> &str {
        self.tap.name()
    }

    /// Returns the exit status if QEMU has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.qemu.try_wait().ok().flatten()
    }
}

impl Drop for VirtualMachine {
    fn drop(&mut self) {
        // The machine has no state to save.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = fs::remove_file(&self.monitor);
    }
}

/// Returns QEMU's options for a NIC on a tap, with a MAC address from `random`.
fn nic_options(tap: &str, random: u64) -> [String; 4] {
    let [a, b, c, d, e, f, ..] = random.to_be_bytes();
    // Unicast and locally administered.
    let a = (a & 0xfc) | 0x02;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    [
        "-netdev".to_owned(),
        format!("tap,id=net0,ifname={tap},script=no,downscript=no"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=net0,mac={mac}"),
    ]
}

/// Returns QEMU's option for a monitor on a Unix socket.
fn monitor_option(path: &Path) -> String {
    format!("unix:{},server=on,wait=off", path.display())
}

/// Returns `kvm` if the user may open /dev/kvm, else `tcg`.
fn accelerator() -> &'static str {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_ok() { "kvm" } else { "tcg" }
}

/// Returns the kernel with the highest version in a directory.
fn newest_kernel(directory: &Path) -> Option<PathBuf> {
    let listed = fs::read_dir(directory).ok()?;
    let kernels = listed.filter_map(|entry| Some(entry.ok()?.path()));
    kernels
        .filter(|path| version(path).is_some())
        .max_by_key(|path| version(path).map(version_key))
}

fn version(kernel: &Path) -> Option<&str> {
    kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

/// Returns the sort key of a version, which compares its parts as numbers first.
fn version_key(version: &str) -> Vec<(u64, String)> {
    let parts = version.split(['.', '-', '+']);
    parts
        .map(|part| (part.parse().unwrap_or(0), part.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nic_is_on_the_tap_with_a_locally_administered_mac() {
        assert_eq!(
            nic_options("tap1-0", u64::MAX).join(" "),
            "-netdev tap,id=net0,ifname=tap1-0,script=no,downscript=no \
             -device virtio-net-pci,netdev=net0,mac=fe:ff:ff:ff:ff:ff"
        );
        assert!(nic_options("tap1-0", 0)[3].ends_with("mac=02:00:00:00:00:00"));
    }

    #[test]
    fn newest_kernel_has_the_highest_version() {
        let boot = tempfile::tempdir().unwrap();
        assert_eq!(newest_kernel(boot.path()), None);
        assert_eq!(newest_kernel(Path::new("/nonexistent")), None);
        for name in [
            "vmlinuz-6.9.1-1-amd64",
            "vmlinuz-6.12.9+deb13-amd64",
            "vmlinuz-6.12.10+deb13-amd64",
            "config-7.0.0",
        ] {
            fs::write(boot.path().join(name), "").unwrap();
        }
        let newest = newest_kernel(boot.path()).unwrap();
        assert_eq!(version(&newest), Some("6.12.10+deb13-amd64"));
    }

    #[test]
    fn missing_requirement_is_named() {
        let missing = |path: &Path| Hypervisor::find(Some(path)).unwrap_err().to_string();
        assert_eq!(
            missing(Path::new("/nonexistent/vmlinuz-6")),
            "cannot read the kernel /nonexistent/vmlinuz-6"
        );
        assert!(missing(Path::new("/dev/null")).starts_with("/dev/null is neither a file"));
    }
}
