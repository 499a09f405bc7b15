//! Loads a kernel with its initrd, and lets systemd start it.

#![allow(unsafe_code)] // kexec_file_load(2) has no safe wrapper.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::process::Command;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::command_line::LONGEST;
use super::record::Method;
use crate::programs::capture;
use buildos_service::text::chain;

/// Bytes that systemctl may write.
const OUTPUT: usize = 64 * 1024;

/// Makes an empty file in RAM. No limit of a file system applies to it.
///
/// # Errors
///
/// RAM or descriptors are used up.
pub fn memory_file(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

/// Ends writing to a file of [`memory_file`]: the kernel loads no file that is open for writing.
///
/// # Errors
///
/// /proc is not mounted.
pub fn read_only(file: File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let again = File::open(path)?;
    drop(file);
    Ok(again)
}

/// Loads a kernel, in place of one that was loaded before.
///
/// # Errors
///
/// The kernel refuses it: RAM is too small, it has no valid signature, or it is no kernel.
pub fn load(kernel: &File, initrd: &File, command_line: &str) -> io::Result<()> {
    let line = CString::new(command_line)?;
    let line = line.as_bytes_with_nul();
    if line.len() > LONGEST + 1 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let descriptor = |file: &File| -> RawFd { file.as_raw_fd() };
    // SAFETY: the descriptors are open, and `line` has `line.len()` bytes that end with NUL.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            descriptor(kernel),
            descriptor(initrd),
            line.len(),
            line.as_ptr(),
            0_u64,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Frees the RAM of a kernel that was loaded. Without one it does nothing.
pub fn unload() {
    let none: RawFd = -1;
    // SAFETY: with this flag the kernel reads neither descriptors nor a command line.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            none,
            none,
            0_usize,
            std::ptr::null::<libc::c_char>(),
            libc::KEXEC_FILE_UNLOAD as libc::c_ulong,
        )
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::warn!("cannot free the RAM of a loaded kernel: {error}");
    }
}

/// Lets systemd stop all units, and start the next system. If systemd refuses that, no kernel
/// stays loaded.
///
/// # Errors
///
/// systemd refuses it.
pub fn start(method: Method) -> Result<(), String> {
    capture::output(&mut command(method), "systemd", OUTPUT)
        .map(|_| ())
        .map_err(|error| {
            unload();
            chain(&error)
        })
}

fn command(method: Method) -> Command {
    let mut command = Command::new("systemctl");
    match method {
        Method::Kexec => command.args(["--no-block", "kexec"]),
        // Otherwise systemctl would start a kernel that is loaded (ENVIRONMENT.md of systemd).
        Method::Reboot => command
            .args(["--no-block", "reboot"])
            .env("SYSTEMCTL_SKIP_AUTO_KEXEC", "1"),
    };
    command
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn memory_file_is_read_from_its_start_and_no_longer_written() {
        let mut file = memory_file("x").unwrap();
        file.write_all(b"content").unwrap();
        let mut file = read_only(file).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert!(file.write_all(b"x").is_err());
    }

    #[test]
    fn reboot_does_not_start_a_loaded_kernel() {
        let environment = |method| command(method).get_envs().count();
        assert_eq!(environment(Method::Reboot), 1);
        assert_eq!(environment(Method::Kexec), 0);
    }

    #[test]
    fn command_line_with_nul_or_beyond_the_limit_is_refused() {
        let file = memory_file("x").unwrap();
        for line in ["a\0b", &"x".repeat(LONGEST + 1)] {
            let error = load(&file, &file, line).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
