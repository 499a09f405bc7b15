//! Runs the daemon: one run, then it exits. A timer starts it again.

use std::path::Path;
use std::thread;

use buildos_service::{Request, Service};
use tokio::sync::oneshot;

use crate::paths::Paths;
use crate::settings::Settings;
use crate::update;

/// The daemon cannot work.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The thread of the run ended early.
    #[error("the run ended by a defect")]
    Defect,
}

/// Carries out one run. A stop ends it at once: the next run resumes.
///
/// # Errors
///
/// [`DaemonError`]. Every other failure is a published state.
pub async fn run(mut service: Service<Settings>) -> Result<(), DaemonError> {
    let (settings, problems) = (service.settings().clone(), service.problems());
    let (done, mut result) = oneshot::channel();
    // The run waits for other programs. systemd ends them with this process.
    thread::spawn(move || {
        let state = update::run(&Paths::new(Path::new("/")), &settings, &problems);
        // After a stop the receiver is gone.
        let _ = done.send(state);
    });
    service.ready();
    loop {
        tokio::select! {
            request = service.request() => match request {
                Request::Stop => return Ok(()),
                // The next run reads the configuration.
                Request::Reload => {}
            },
            state = &mut result => {
                let state = state.map_err(|_| DaemonError::Defect)?;
                service.status(&state.result);
                return Ok(());
            }
        }
    }
}
