//! Asking a controller for a task.

use crate::command_line::{Interactive, Options};
use crate::manifest::{self, Manifest};
use std::time::Duration;
use ureq::http::Uri;

/// The longest result that controllers accept, bytes.
const MAX_RESULT: usize = 15_728_640;

/// The longest answer that is read, bytes: far more than a task manifest takes.
const MAX_ANSWER: u64 = 1_048_576;

/// A controller gave no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The double has no TLS.
    #[error("https is not spoken by this stand-in for bbot-agent; give it an http URL")]
    Https,
    /// More than a controller takes.
    #[error("the body has {0} bytes, more than a controller takes")]
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
    /// The answer has a session and not what belongs to it.
    #[error("the answer has a task without {0}")]
    Incomplete(&'static str),
}

/// A task, and what its result goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The controller's name for it.
    pub session: String,
    /// What is to be signed, if the agent is to show who it is.
    pub challenge: Option<String>,
    /// Where the result goes.
    pub result_url: Uri,
    /// The task itself.
    pub manifest: Manifest,
}

impl Task {
    /// The body of the result: `result` is what the worker says.
    #[must_use]
    pub fn result(&self, result: Manifest) -> String {
        let mut header = Manifest::default().with("session", &self.session);
        if let Some(challenge) = &self.challenge {
            // No controller of tests knows a key that it could check this with.
            header = header.with("challenge", &format!("signed {challenge}"));
        }
        manifest::write(&[header, result])
    }

    /// What a task comes to about which no worker says anything.
    #[must_use]
    pub fn without_worker(&self, status: &str) -> Manifest {
        let of_task = |name| self.manifest.get(name).unwrap_or_default();
        Manifest::default()
            .with("name", of_task("name"))
            .with("version", of_task("version"))
            .with("status", status)
    }
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
    pub fn ask(&self, url: &Uri, body: &str) -> Result<Option<Task>, AskError> {
        task_of(&self.post(url, body)?)
    }

    /// Sends a body, be it a task request or a result; the answer.
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub fn post(&self, url: &Uri, body: &str) -> Result<String, AskError> {
        if url.scheme_str() == Some("https") {
            return Err(AskError::Https);
        }
        if body.len() > MAX_RESULT {
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
            .read_to_string();
        Ok(answer.map_err(Box::new)?)
    }
}

/// What a controller's answer gives to do: nothing if the session is empty.
fn task_of(answer: &str) -> Result<Option<Task>, AskError> {
    let manifests = manifest::parse(answer)?;
    let mut manifests = manifests.into_iter();
    let response = manifests.next().unwrap_or_default();
    let session = response.get("session").ok_or(AskError::NoSession)?;
    if session.is_empty() {
        return Ok(None);
    }
    let url = response.get("result-url").and_then(|url| url.parse().ok());
    Ok(Some(Task {
        session: session.to_owned(),
        challenge: response.get("challenge").map(str::to_owned),
        result_url: url.ok_or(AskError::Incomplete("result-url"))?,
        manifest: manifests.next().ok_or(AskError::Incomplete("a manifest"))?,
    }))
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
        assert!(matches!(task_of(": 1\nsession:\n"), Ok(None)));
        let answer = ": 1\nsession: x/1\nchallenge: c\nresult-url: http://a/\n:\nname: libhello\nversion: 1.0.0\n";
        let task = task_of(answer).unwrap().unwrap();
        assert_eq!(task.manifest.get("name"), Some("libhello"));
        assert_eq!(
            task.result(task.without_worker("abnormal")),
            ": 1\nsession: x/1\nchallenge: signed c\n:\nname: libhello\nversion: 1.0.0\nstatus: abnormal\n"
        );
        assert!(matches!(
            task_of(": 1\nchallenge: x\n"),
            Err(AskError::NoSession)
        ));
        assert!(matches!(
            task_of(": 1\nsession: x\n:\nname: a\n"),
            Err(AskError::Incomplete("result-url"))
        ));
        assert!(matches!(
            task_of(": 1\nsession: x\nresult-url: http://a/\n"),
            Err(AskError::Incomplete("a manifest"))
        ));
        assert!(matches!(task_of("<html>"), Err(AskError::Answer(_))));
    }

    #[test]
    fn https_and_endless_results_are_refused_before_they_are_sent() {
        let client = Client::new(Duration::from_secs(1));
        let ask = |url: &str, body: &str| client.ask(&url.parse().unwrap(), body);
        assert!(matches!(ask("https://a", ""), Err(AskError::Https)));
        let body = "x".repeat(MAX_RESULT + 1);
        assert!(matches!(
            ask("http://a", &body),
            Err(AskError::TooLong(15_728_641))
        ));
    }
}
