//! Provides what the programs that mount volumes share.

use std::path::Path;
use std::process::{Command, ExitCode};

use lexopt::{Arg, Parser};

use crate::device::{self, Device};

/// Exit status for invalid arguments.
const USAGE: u8 = 2;
/// Time limit for udev, as an option of udevadm(8). Later devices start the programs again.
const SETTLE: &str = "--timeout=60";

/// Returns true if virtual devices count. Logs an argument that is not `--virtual`.
///
/// # Errors
///
/// The exit status for an invalid argument.
pub fn accept_virtual(parser: Parser) -> Result<bool, ExitCode> {
    parse(parser).map_err(|error| {
        tracing::error!("{error}; only --virtual is an option");
        ExitCode::from(USAGE)
    })
}

fn parse(mut parser: Parser) -> Result<bool, lexopt::Error> {
    let mut accept_virtual = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("virtual") => accept_virtual = true,
            Arg::Value(_) | Arg::Short(_) | Arg::Long(_) => return Err(argument.unexpected()),
        }
    }
    Ok(accept_virtual)
}

/// Waits until udev has processed its queue: a second volume with the same label must be noticed
/// before the first one is mounted, as mounting writes.
pub fn settle() {
    let settled = Command::new("udevadm").args(["settle", SETTLE]).status();
    match settled {
        Ok(status) if status.success() => {}
        Ok(_) => tracing::warn!("udev has not processed all devices within 60 s"),
        Err(error) => tracing::warn!("cannot run udevadm: {error}"),
    }
}

/// Passes the devices to `act` until udev has processed its queue without a change. systemd starts
/// a program once for all events that arrive while it runs.
///
/// # Errors
///
/// `act` failed.
pub fn for_devices<E>(root: &Path, act: impl FnMut(&[Device]) -> Result<(), E>) -> Result<(), E> {
    let read = || {
        settle();
        device::candidates(root)
    };
    until_unchanged(read, act)
}

fn until_unchanged<E>(
    mut read: impl FnMut() -> Vec<Device>,
    mut act: impl FnMut(&[Device]) -> Result<(), E>,
) -> Result<(), E> {
    let mut before = None;
    loop {
        let devices = read();
        if before.as_ref() == Some(&devices) {
            return Ok(());
        }
        act(&devices)?;
        before = Some(devices);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_that_appears_meanwhile_is_passed_too() {
        let device = |name: &str| Device {
            name: name.into(),
            ..Device::default()
        };
        let (one, two) = (vec![device("sda")], vec![device("sda"), device("sdb")]);
        let mut reads = vec![two.clone(), two.clone(), one.clone()];
        let mut passed = Vec::new();
        let ended: Result<(), ()> = until_unchanged(
            || reads.pop().unwrap(),
            |devices| {
                passed.push(devices.to_vec());
                Ok(())
            },
        );
        assert_eq!(ended, Ok(()));
        assert_eq!(passed, [one.clone(), two]);
        assert_eq!(
            until_unchanged(|| one.clone(), |_| Err("failed")),
            Err("failed")
        );
    }

    #[test]
    fn only_option_is_virtual() {
        let parsed = |words: &[&str]| parse(Parser::from_args(words));
        assert!(!parsed(&[]).unwrap());
        assert!(parsed(&["--virtual"]).unwrap());
        assert!(parsed(&["--force"]).is_err());
    }
}
