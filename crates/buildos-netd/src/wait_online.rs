//! Runs buildos-netd-wait-online, which ends once br0 has a lease.
//! `network-online.target` waits for it.
//!
//! The program follows buildos-netd over the bus, across restarts of netd.

use std::process::ExitCode;
use std::time::Duration;

use buildos_dbus_api::{network1, system_bus, watch};
use buildos_service::{notify, text};

#[derive(Debug, thiserror::Error)]
enum WaitError {
    #[error("unknown argument {0:?}; only --timeout=SECONDS is known")]
    Argument(String),
    #[error("{0:?} is not a number of seconds")]
    Seconds(String),
    #[error("cannot ask buildos-netd over the system bus")]
    Bus(#[from] zbus::Error),
    #[error(transparent)]
    Lost(#[from] watch::BusLost),
    #[error("not online after {0} s: {1}")]
    Timeout(u64, String),
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run()).map_err(|error| text::chain(&error)),
        Err(error) => Err(format!("cannot start the runtime: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // netd has escaped its reason.
            let error = text::Escaped::received(&error);
            eprintln!("buildos-netd-wait-online: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), WaitError> {
    let limit = timeout(std::env::args().skip(1))?;
    let mut reason = "buildos-netd is not on the bus".to_owned();
    let online = online(&mut reason);
    match limit {
        None => online.await,
        Some(seconds) => tokio::time::timeout(Duration::from_secs(seconds), online)
            .await
            .unwrap_or_else(|_| Err(WaitError::Timeout(seconds, reason))),
    }
}

async fn online(reason: &mut String) -> Result<(), WaitError> {
    let connection = system_bus().await?;
    let mut network = network1::watch(&connection).await?;
    loop {
        if let Some(network) = network.next().await? {
            if network.online {
                notify::status(&network.reason);
                return Ok(());
            }
            *reason = network.reason;
        }
        notify::status(&format!("waiting: {reason}"));
    }
}

fn timeout(arguments: impl Iterator<Item = String>) -> Result<Option<u64>, WaitError> {
    let mut limit = None;
    for argument in arguments {
        let Some(seconds) = argument.strip_prefix("--timeout=") else {
            return Err(WaitError::Argument(argument));
        };
        limit = Some(
            seconds
                .parse()
                .map_err(|_| WaitError::Seconds(seconds.to_owned()))?,
        );
    }
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Option<u64>, String> {
        timeout(arguments.iter().map(ToString::to_string)).map_err(|e| e.to_string())
    }

    #[test]
    fn arguments_timeout_is_parsed_and_others_are_refused() {
        assert_eq!(parsed(&[]), Ok(None));
        assert_eq!(parsed(&["--timeout=30"]), Ok(Some(30)));
        assert_eq!(
            parsed(&["--timeout=x"]),
            Err("\"x\" is not a number of seconds".into())
        );
        assert!(parsed(&["30"]).is_err());
    }
}
