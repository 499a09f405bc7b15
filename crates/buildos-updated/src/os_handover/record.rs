//! Defines the request of buildos-updated, and the record that travels with a previous system.
//!
//! Both are JSON. buildos-updated has no privileges, so what starts is not believed: the signed
//! channel has to agree with it. The record comes from buildos-os-handover of another version.

use buildos_channel::{Digest, Name};
use serde::{Deserialize, Serialize};

use super::command_line::{LONGEST, Pair};
use super::judge::Terms;
use std::time::Duration;

/// Bytes of a request or a record.
pub const LIMIT: usize = 64 * 1024;
/// Most agents.
const AGENTS: usize = 1000;
/// Bytes of the name of an agent.
const AGENT: usize = 256;
/// Shortest and longest trial in seconds.
const DEADLINE: std::ops::RangeInclusive<u64> = 60..=24 * 3600;

/// How the new system starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Out of RAM, with the running system inside.
    Kexec,
    /// By the boot server.
    Reboot,
}

/// What buildos-updated asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Version of the new system.
    pub version: String,
    /// Serial of the channel that has it.
    pub serial: u64,
    #[allow(missing_docs)]
    pub method: Method,
    #[allow(missing_docs)]
    #[serde(flatten)]
    pub trial: TrialTerms,
}

/// What the new system has to fulfil.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialTerms {
    /// Time for the trial in seconds.
    pub deadline_s: u64,
    /// Agents that ran before, such as `bbot@default`.
    pub agents: Vec<String>,
    /// Exit status of `buildosctl why` before; negative if it is not known.
    pub why_before: i64,
}

/// What travels with the previous system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the new system.
    pub version: String,
    /// Digest of the kernel of the new system.
    pub image: String,
    /// Digest of the initrd of the new system.
    pub initrd: String,
    /// Digest of the kernel of the previous system.
    pub previous_image: String,
    /// Digest of the initrd of the previous system.
    pub previous_initrd: String,
    /// Kernel command line of the previous system.
    pub command_line: String,
    #[allow(missing_docs)]
    #[serde(flatten)]
    pub trial: TrialTerms,
}

impl Request {
    /// Parses a request.
    ///
    /// # Errors
    ///
    /// It is not a valid request; the reason in one line.
    pub fn parse(content: &[u8]) -> Result<Self, String> {
        let request: Self = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        name(&request.version)?;
        request.trial.check()?;
        Ok(request)
    }
}

impl Record {
    /// Parses a record.
    ///
    /// # Errors
    ///
    /// It is not a valid record; the reason in one line.
    pub fn parse(content: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        name(&record.version)?;
        record.new_system()?;
        record.previous_system()?;
        if record.command_line.len() > LONGEST || record.command_line.contains('\0') {
            return Err("its kernel command line is invalid".to_owned());
        }
        record.trial.check()?;
        Ok(record)
    }

    /// Returns the text that [`Self::parse`] reads.
    ///
    /// # Errors
    ///
    /// It is larger than [`LIMIT`].
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let text = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        match text.len() <= LIMIT {
            true => Ok(text),
            false => Err(format!(
                "the record of the trial has {} bytes, more than {LIMIT}",
                text.len()
            )),
        }
    }

    /// Returns the new system.
    ///
    /// # Errors
    ///
    /// A digest is invalid.
    pub fn new_system(&self) -> Result<Pair, String> {
        pair(&self.image, &self.initrd)
    }

    /// Returns the previous system.
    ///
    /// # Errors
    ///
    /// A digest is invalid.
    pub fn previous_system(&self) -> Result<Pair, String> {
        pair(&self.previous_image, &self.previous_initrd)
    }
}

impl TrialTerms {
    /// Returns the terms for the judge.
    #[must_use]
    pub fn terms(&self) -> Terms {
        Terms {
            deadline: Duration::from_secs(self.deadline_s),
            why_before: u8::try_from(self.why_before).ok(),
        }
    }

    fn check(&self) -> Result<(), String> {
        if !DEADLINE.contains(&self.deadline_s) {
            let (from, to) = (DEADLINE.start(), DEADLINE.end());
            return Err(format!(
                "a trial of {} s is not between {from} and {to} s",
                self.deadline_s
            ));
        }
        let long = self.agents.iter().any(|agent| agent.len() > AGENT);
        if long || self.agents.len() > AGENTS {
            return Err("its agents are too many, or have too long names".to_owned());
        }
        Ok(())
    }
}

fn name(version: &str) -> Result<Name, String> {
    version
        .parse()
        .map_err(|error| format!("the version is invalid: {error}"))
}

fn pair(image: &str, initrd: &str) -> Result<Pair, String> {
    let digest = |text: &str| text.parse::<Digest>().map_err(|error| error.to_string());
    Ok(Pair {
        image: digest(image)?,
        initrd: digest(initrd)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = r#"{"version": "1.2", "serial": 7, "method": "kexec",
        "deadline_s": 900, "agents": ["bbot@default"], "why_before": 0}"#;

    fn record() -> Record {
        let digest = |text: &[u8]| Digest::of(text).to_string();
        Record {
            version: "1.2".to_owned(),
            image: digest(b"a"),
            initrd: digest(b"b"),
            previous_image: digest(b"c"),
            previous_initrd: digest(b"d"),
            command_line: "console=ttyS0".to_owned(),
            trial: Request::parse(REQUEST.as_bytes()).unwrap().trial,
        }
    }

    #[test]
    fn request_is_read() {
        let request = Request::parse(REQUEST.as_bytes()).unwrap();
        assert_eq!((request.serial, request.method), (7, Method::Kexec));
        let terms = request.trial.terms();
        assert_eq!(terms.why_before, Some(0));
        assert_eq!(terms.deadline, Duration::from_secs(900));
        let unknown = REQUEST.replace("\"why_before\": 0", "\"why_before\": -1");
        let unknown = Request::parse(unknown.as_bytes()).unwrap();
        assert_eq!(unknown.trial.terms().why_before, None);
    }

    #[test]
    fn request_beyond_limits_is_refused() {
        for (from, to, reason) in [
            ("kexec", "halt", "unknown variant `halt`"),
            ("900", "59", "a trial of 59 s is not between"),
            ("900", "86401", "a trial of 86401 s is not between"),
            ("1.2", "../x", "the version is invalid"),
            ("bbot@default", &"x".repeat(300), "its agents are too many"),
            ("\"serial\": 7,", "", "missing field `serial`"),
        ] {
            let text = REQUEST.replacen(from, to, 1);
            let error = Request::parse(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(reason), "{error}");
        }
    }

    #[test]
    fn record_is_written_and_read() {
        let record = record();
        let text = record.encode().unwrap();
        assert_eq!(Record::parse(&text), Ok(record.clone()));
        let mut large = record.clone();
        large.trial.agents = vec!["x".repeat(AGENT); LIMIT / AGENT];
        let error = large.encode().unwrap_err();
        assert!(error.ends_with("bytes, more than 65536"), "{error}");
        let long = Record {
            command_line: "x".repeat(LONGEST + 1),
            ..record.clone()
        };
        let other = Record {
            previous_initrd: "x".to_owned(),
            ..record
        };
        for bad in [long, other] {
            assert!(Record::parse(&serde_json::to_vec(&bad).unwrap()).is_err());
        }
    }

    mod fuzz {
        use super::*;
        use buildos_fuzz::{Generator, executions, mutate_text};

        const PARTS: [&str; 6] = ["\"", "[[", "\\u0000", "1e99", "-1", "18446744073709551616"];

        #[test]
        fn altered_requests_and_records_do_not_panic() {
            let mut generator = Generator::new(1);
            let record = serde_json::to_vec(&record()).unwrap();
            for _ in 0..executions(20_000) {
                let mut request = REQUEST.as_bytes().to_vec();
                mutate_text(&mut request, &PARTS, &mut generator);
                let _ = Request::parse(&request);
                let mut altered = record.clone();
                mutate_text(&mut altered, &PARTS, &mut generator);
                if let Ok(record) = Record::parse(&altered) {
                    assert!(record.command_line.len() <= LONGEST);
                    assert!(record.new_system().is_ok() && record.previous_system().is_ok());
                }
            }
        }
    }
}
