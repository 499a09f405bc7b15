//! Requests tasks from controllers and sends them results over HTTP.

use crate::agent_key::sha256;
use crate::command_line::{Interactive, Options};
use crate::manifest::{self, Manifest};
use crate::sudo::ToolError;
use std::time::Duration;
use ureq::http::Uri;

/// Maximum length of a result that controllers accept, in bytes.
const MAX_RESULT: usize = 15_728_640;

/// Separator of the parts of an upload (RFC 2046, section 5.1.1).
const BOUNDARY: &str = "buildos-double";

/// Maximum length of an answer in bytes; task manifests are much shorter.
const MAX_ANSWER: u64 = 1_048_576;

/// A request to a controller failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The stand-in has no TLS.
    #[error("this stand-in for bbot-agent does not support https; use an http URL")]
    Https,
    /// The body is longer than controllers accept.
    #[error("the body has {0} bytes, more than a controller accepts")]
    TooLong(usize),
    /// There is no connection, no answer in time, or an HTTP error.
    #[error(transparent)]
    Http(#[from] Box<ureq::Error>),
    /// The answer is not a list of manifests.
    #[error("the answer is not a task response")]
    Answer(#[from] manifest::ParseError),
    /// The answer has no session.
    #[error("the answer has no session")]
    NoSession,
    /// The answer has a session, but no complete task.
    #[error("the answer has a task without {0}")]
    Incomplete(&'static str),
}

/// A task with the data that its result needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Identifier that the controller gave the task.
    pub session: String,
    /// Text to sign if the controller authenticates agents.
    pub challenge: Option<String>,
    /// Destination of the result.
    pub result_url: Uri,
    /// Destinations of archives, by type.
    pub upload_urls: Vec<(String, Uri)>,
    /// Manifest of the task.
    pub manifest: Manifest,
}

impl Task {
    /// Returns the body of the result. `result` is the worker's manifest, `signature` the
    /// one of the challenge.
    #[must_use]
    pub fn result(&self, signature: Option<&str>, result: Manifest) -> String {
        let mut header = Manifest::default().with("session", &self.session);
        if let Some(signature) = signature {
            header = header.with("challenge", signature);
        }
        manifest::write(&[header, result])
    }

    /// Returns the body of an upload, multipart/form-data with the separator [`BOUNDARY`].
    ///
    /// # Errors
    ///
    /// openssl(1), which computes the checksum, fails.
    pub fn upload(
        &self,
        kind: &str,
        signature: Option<&str>,
        archive: &str,
    ) -> Result<String, ToolError> {
        let sum = sha256(archive.as_bytes())?;
        let values = [
            ("session", Some(self.session.as_str())),
            ("instance", Some(kind)),
            ("sha256sum", Some(&sum)),
            ("challenge", signature),
            ("archive", Some(archive)),
        ];
        let mut body = String::new();
        for (name, value) in values {
            let Some(value) = value else { continue };
            body.push_str(&format!(
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            ));
        }
        body.push_str(&format!("--{BOUNDARY}--\r\n"));
        Ok(body)
    }

    /// Returns the result manifest of a task without a worker's result.
    #[must_use]
    pub fn without_worker(&self, status: &str) -> Manifest {
        let value = |name| self.manifest.get(name).unwrap_or_default();
        Manifest::default()
            .with("name", value("name"))
            .with("version", value("version"))
            .with("status", status)
    }
}

/// Returns the body of a task request.
#[must_use]
pub fn task_request(
    options: &Options,
    agent: &str,
    fingerprint: Option<&str>,
    machines: &[Manifest],
) -> String {
    let mut header = Manifest::default()
        .with("agent", agent)
        .with("toolchain-name", &options.toolchain_name)
        .with("toolchain-version", &options.toolchain_version);
    if options.interactive != Interactive::False {
        header = header
            .with("interactive-mode", options.interactive.as_str())
            .with("interactive-login", &format!("{agent} console"));
    }
    if let Some(fingerprint) = fingerprint {
        header = header.with("fingerprint", fingerprint);
    }
    if let Some(ram) = options.auxiliary_ram {
        header = header.with("auxiliary-ram", &ram.to_string());
    }
    let manifests: Vec<Manifest> = std::iter::once(header)
        .chain(machines.iter().cloned())
        .collect();
    manifest::write(&manifests)
}

/// The HTTP client of an agent.
#[derive(Debug)]
pub struct Client(ureq::Agent);

impl Client {
    /// Returns a client with this timeout for a whole exchange.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .user_agent("bbot-agent-double")
            .build();
        Self(config.into())
    }

    /// Sends a task request and returns the task, if the controller hands one out.
    ///
    /// # Errors
    ///
    /// There is no answer, or the answer violates the protocol.
    pub fn request_task(&self, url: &Uri, body: &str) -> Result<Option<Task>, RequestError> {
        parse_task(&self.post(url, body)?)
    }

    /// Sends a task request or a result and returns the answer.
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub fn post(&self, url: &Uri, body: &str) -> Result<String, RequestError> {
        self.send(url, "text/manifest; charset=utf-8", body)
    }

    /// Sends an upload and returns the answer.
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub fn upload(&self, url: &Uri, body: &str) -> Result<String, RequestError> {
        self.send(
            url,
            &format!("multipart/form-data; boundary={BOUNDARY}"),
            body,
        )
    }

    fn send(&self, url: &Uri, kind: &str, body: &str) -> Result<String, RequestError> {
        if url.scheme_str() == Some("https") {
            return Err(RequestError::Https);
        }
        if body.len() > MAX_RESULT {
            return Err(RequestError::TooLong(body.len()));
        }
        let mut response = self
            .0
            .post(url)
            .header("Content-Type", kind)
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

/// Parses a controller's answer. An empty session means that there is no task.
fn parse_task(answer: &str) -> Result<Option<Task>, RequestError> {
    let manifests = manifest::parse(answer)?;
    let mut manifests = manifests.into_iter();
    let response = manifests.next().unwrap_or_default();
    let session = response.get("session").ok_or(RequestError::NoSession)?;
    if session.is_empty() {
        return Ok(None);
    }
    let url = response.get("result-url").and_then(|url| url.parse().ok());
    let uploads = response.iter().filter_map(|(name, url)| {
        let kind = name.strip_suffix("-upload-url")?;
        Some((kind.to_owned(), url.parse().ok()?))
    });
    Ok(Some(Task {
        session: session.to_owned(),
        challenge: response.get("challenge").map(str::to_owned),
        upload_urls: uploads.collect(),
        result_url: url.ok_or(RequestError::Incomplete("result-url"))?,
        manifest: manifests
            .next()
            .ok_or(RequestError::Incomplete("a manifest"))?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_request_names_agent_and_machines() {
        let machine = Manifest::default()
            .with("id", "a-1")
            .with("name", "a")
            .with("summary", "A");
        let plain = task_request(&Options::default(), "build-1", None, &[machine]);
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
        let rich = task_request(&options, "build-1", Some("ab12"), &[]);
        let rich = manifest::parse(&rich).unwrap();
        assert_eq!(rich[0].get("fingerprint"), Some("ab12"));
        assert_eq!(rich[0].get("interactive-mode"), Some("both"));
        assert_eq!(rich[0].get("auxiliary-ram"), Some("1024"));
    }

    #[test]
    fn answer_has_a_task_unless_the_session_is_empty() {
        assert!(matches!(parse_task(": 1\nsession:\n"), Ok(None)));
        let answer = ": 1\nsession: x/1\nchallenge: c\nresult-url: http://a/\na-b-upload-url: http://a/?upload=a-b\n:\nname: libhello\nversion: 1.0.0\n";
        let task = parse_task(answer).unwrap().unwrap();
        assert_eq!(task.manifest.get("name"), Some("libhello"));
        assert_eq!(
            task.result(Some("c2ln"), task.without_worker("abnormal")),
            ": 1\nsession: x/1\nchallenge: c2ln\n:\nname: libhello\nversion: 1.0.0\nstatus: abnormal\n"
        );
        let url = "http://a/?upload=a-b".parse().unwrap();
        assert_eq!(task.upload_urls, [("a-b".to_owned(), url)]);
        let body = task.upload("a-b", None, "abc").unwrap();
        assert!(
            body.contains("name=\"sha256sum\"\r\n\r\nba7816bf"),
            "{body}"
        );
        assert!(body.ends_with("name=\"archive\"\r\n\r\nabc\r\n--buildos-double--\r\n"));
        assert!(matches!(
            parse_task(": 1\nchallenge: x\n"),
            Err(RequestError::NoSession)
        ));
        assert!(matches!(
            parse_task(": 1\nsession: x\n:\nname: a\n"),
            Err(RequestError::Incomplete("result-url"))
        ));
        assert!(matches!(
            parse_task(": 1\nsession: x\nresult-url: http://a/\n"),
            Err(RequestError::Incomplete("a manifest"))
        ));
        assert!(matches!(parse_task("<html>"), Err(RequestError::Answer(_))));
    }

    #[test]
    fn https_and_too_long_results_are_rejected_before_sending() {
        let client = Client::new(Duration::from_secs(1));
        let ask = |url: &str, body: &str| client.request_task(&url.parse().unwrap(), body);
        assert!(matches!(ask("https://a", ""), Err(RequestError::Https)));
        let body = "x".repeat(MAX_RESULT + 1);
        assert!(matches!(
            ask("http://a", &body),
            Err(RequestError::TooLong(15_728_641))
        ));
    }
}
