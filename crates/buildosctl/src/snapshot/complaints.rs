//! Finds faults of controller, key, certificate and network in the logs of agents.
//!
//! bbot-agent sends its requests with curl(1) and logs the messages of curl. A message
//! names its fault by a fixed text, in the table below.

use std::process::Command;

use buildos_service::text;
use serde_json::Value;

use super::model::{Agent, Complaint, Fault};

/// Number of lines of a run that are read, the newest.
const LINES: &str = "500";

/// Texts in lower case, each with its fault.
const TABLE: [(&str, Fault); 15] = [
    ("certificate is not yet valid", Fault::NotYetValid),
    ("certificate has expired", Fault::Expired),
    ("certificate subject name", Fault::WrongName),
    ("hostname mismatch", Fault::WrongName),
    (
        "unable to get local issuer certificate",
        Fault::UnknownIssuer,
    ),
    ("self-signed certificate", Fault::UnknownIssuer),
    ("self signed certificate", Fault::UnknownIssuer),
    ("operation timed out", Fault::Stalled),
    ("timeout: ", Fault::Stalled),
    ("error: 401", Fault::Unauthorized),
    ("status: 401", Fault::Unauthorized),
    ("error: 400", Fault::BadRequest),
    ("status: 400", Fault::BadRequest),
    ("error: 413", Fault::TooLong),
    ("status: 413", Fault::TooLong),
];

/// Records the complaints in the present run of each running agent, the newest of each
/// fault. A user who may not read the journal finds no complaint.
pub(crate) fn find(agents: &mut [Agent]) {
    for agent in agents {
        if agent.instance.state != "running" || agent.run.start_usec == 0 {
            continue;
        }
        let (seconds, micros) = (
            agent.run.start_usec / 1_000_000,
            agent.run.start_usec % 1_000_000,
        );
        let since = format!("@{seconds}.{micros:06}");
        let output = Command::new("journalctl")
            .args([
                "--boot",
                "--quiet",
                "--no-pager",
                "--output=json",
                "--lines",
                LINES,
            ])
            .arg("--output-fields=MESSAGE")
            // Not by the invocation, which journald loses under load.
            .arg(format!("--since={since}"))
            .arg(format!("_SYSTEMD_UNIT={}", agent.instance.unit))
            .output();
        if let Some(output) = output.ok().filter(|output| output.status.success()) {
            agent.complaints = Some(complaints(&String::from_utf8_lossy(&output.stdout)));
        }
    }
}

/// Returns the newest complaint of each fault in the output of journalctl.
fn complaints(journal: &str) -> Vec<Complaint> {
    let mut newest: Vec<Complaint> = Vec::new();
    for complaint in journal.lines().rev().filter_map(complaint) {
        if newest.iter().all(|known| known.fault != complaint.fault) {
            newest.push(complaint);
        }
    }
    newest
}

fn complaint(line: &str) -> Option<Complaint> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let message = entry.get("MESSAGE")?.as_str()?;
    let usec = entry.get("__REALTIME_TIMESTAMP")?.as_str()?.parse().ok()?;
    Some(Complaint {
        usec,
        fault: fault(message)?,
        text: text::escape(message),
    })
}

fn fault(message: &str) -> Option<Fault> {
    let message = message.to_lowercase();
    let names = |text: &str| {
        let (_, after) = message.split_once(text)?;
        // 4001 is not a status.
        let longer = text.ends_with(|c: char| c.is_ascii_digit())
            && after.starts_with(|c: char| c.is_ascii_digit());
        (!longer).then_some(())
    };
    let mut known = TABLE.iter();
    known
        .find(|(text, _)| names(text).is_some())
        .map(|(_, fault)| *fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn message_of_curl_names_its_fault() {
        for (message, expected) in [
            (
                "curl: (22) The requested URL returned error: 401",
                Some(Fault::Unauthorized),
            ),
            (
                "http://a:401/ (priority 0000): http status: 400",
                Some(Fault::BadRequest),
            ),
            (
                "curl: (60) SSL certificate problem: certificate is not yet valid",
                Some(Fault::NotYetValid),
            ),
            (
                "curl: (60) SSL certificate problem: certificate has expired",
                Some(Fault::Expired),
            ),
            (
                "curl: (60) SSL certificate problem: unable to get local issuer certificate",
                Some(Fault::UnknownIssuer),
            ),
            (
                "curl: (60) SSL: no alternative certificate subject name matches target host name 'a'",
                Some(Fault::WrongName),
            ),
            (
                "curl: (28) Operation timed out after 30001 milliseconds with 0 bytes received",
                Some(Fault::Stalled),
            ),
            ("http://a:401/ (priority 0000): nothing to do", None),
            ("task /libhello/400: error: 4001", None),
            ("", None),
        ] {
            assert_eq!(fault(message), expected, "{message}");
        }
    }

    #[test]
    fn newest_complaint_of_each_fault_is_kept() {
        let line = |usec: u64, message: &str| {
            json!({"MESSAGE": message, "__REALTIME_TIMESTAMP": usec.to_string()}).to_string()
        };
        let journal = [
            line(1, "error: 401"),
            line(2, "nothing to do"),
            line(3, "error: 400"),
            line(4, "error: 401 \u{1b}"),
            "-- no entries --".to_owned(),
        ];
        let found = complaints(&journal.join("\n"));
        let found: Vec<_> = found
            .iter()
            .map(|c| (c.usec, c.fault, c.text.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (4, Fault::Unauthorized, "error: 401 \\u{1b}"),
                (3, Fault::BadRequest, "error: 400")
            ]
        );
    }
}
