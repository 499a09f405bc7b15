//! Asking a controller for a task.

use crate::manifest::{self, Manifest};
use crate::options::{Interactive, Options};
use std::time::Duration;
use ureq::http::Uri;

/// The longest task request that controllers accept, bytes.
pub const MAX_REQUEST: usize = 102_400;

/// The longest answer that is read, bytes: far more than a task manifest takes.
const MAX_ANSWER: u64 = 1_048_576;

/// A controller gave no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The double has no TLS.
    #[error("https is not spoken by this stand-in for bbot-agent; give it an http URL")]
    Https,
    /// More machines than a request may name.
    #[error("the task request has {0} bytes, more than {MAX_REQUEST}: too many machines")]
    TooLong(usize),
    /// No connection, no answer in time, or an HTTP error.
    #[error(transparent)]
    Http(#[from] Box<ureq::Error>),
    /// The answer is no list of manifests.
    #[error("the answer is no task response")]
    Answer(#[from] manifest::ParseError),
    /// The answer lacks the session.
    #[error("the answer has no session")]
    NoSession,
}

/// The body of a task request.
#[must_use]
pub fn request(options: &Options, agent: &str, machines: &[Manifest]) -> String {
    let mut header = Manifest::default()
        .with("agent", agent)
        .with("toolchain-name", &options.toolchain_name)
        .with("toolchain-version", &options.toolchain_version);
    if options.interactive != Interactive::False {
        header = header
            .with("interactive-mode", options.interactive.as_str())
            .with("interactive-login", &format!("{agent} console"));
    }
    if let Some(ram) = options.auxiliary_ram {
        header = header.with("auxiliary-ram", &ram.to_string());
    }
    let manifests: Vec<Manifest> = std::iter::once(header)
        .chain(machines.iter().cloned())
        .collect();
    manifest::write(&manifests)
}

/// The connections of one agent.
#[derive(Debug)]
pub struct Client(ureq::Agent);

impl Client {
    /// A client that waits `timeout` for a whole exchange.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .user_agent("bbot-agent-double")
            .build();
        Self(config.into())
    }

    /// Sends a task request; the task's manifest if there is one for us.
    ///
    /// # Errors
    ///
    /// There is no answer, or none that follows the protocol.
    pub fn ask(&self, url: &Uri, body: &str) -> Result<Option<String>, AskError> {
        if url.scheme_str() == Some("https") {
            return Err(AskError::Https);
        }
        if body.len() > MAX_REQUEST {
            return Err(AskError::TooLong(body.len()));
        }
        let mut response = self
            .0
            .post(url)
            .header("Content-Type", "text/manifest; charset=utf-8")
            .send(body)
            .map_err(Box::new)?;
        let answer = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER)
            .read_to_string()
            .map_err(Box::new)?;
        task_of(answer)
    }
}

/// What a controller's answer gives to do: nothing if the session is empty.
fn task_of(answer: String) -> Result<Option<String>, AskError> {
    let manifests = manifest::parse(&answer)?;
    match manifests
        .first()
        .and_then(|response| response.get("session"))
    {
        Some("") => Ok(None),
        Some(_) => Ok(Some(answer)),
        None => Err(AskError::NoSession),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_agent_and_its_machines() {
        let machine = Manifest::default()
            .with("id", "a-1")
            .with("name", "a")
            .with("summary", "A");
        let plain = request(&Options::default(), "build-1", &[machine]);
        assert_eq!(
            plain,
            ": 1\nagent: build-1\ntoolchain-name: default\ntoolchain-version: 0.17.0\n\
             :\nid: a-1\nname: a\nsummary: A\n"
        );
        let options = Options {
            interactive: Interactive::Both,
            auxiliary_ram: Some(1024),
            ..Options::default()
        };
        let rich = manifest::parse(&request(&options, "build-1", &[])).unwrap();
        assert_eq!(rich[0].get("interactive-mode"), Some("both"));
        assert_eq!(rich[0].get("auxiliary-ram"), Some("1024"));
    }

    #[test]
    fn an_empty_session_is_nothing_to_do() {
        assert!(matches!(task_of(": 1\nsession:\n".to_owned()), Ok(None)));
        let task = ": 1\nsession: x/1\nresult-url: http://a\n:\nname: libhello\n".to_owned();
        assert_eq!(task_of(task.clone()).unwrap(), Some(task));
        assert!(matches!(
            task_of(": 1\nchallenge: x\n".to_owned()),
            Err(AskError::NoSession)
        ));
        assert!(matches!(
            task_of("<html>".to_owned()),
            Err(AskError::Answer(_))
        ));
    }

    #[test]
    fn https_and_endless_lists_of_machines_are_refused_before_they_are_sent() {
        let client = Client::new(Duration::from_secs(1));
        let ask = |url: &str, body: &str| client.ask(&url.parse().unwrap(), body);
        assert!(matches!(ask("https://a", ""), Err(AskError::Https)));
        let body = "x".repeat(MAX_REQUEST + 1);
        assert!(matches!(
            ask("http://a", &body),
            Err(AskError::TooLong(102_401))
        ));
    }
}
