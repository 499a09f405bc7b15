//! Finds the commands that sudo refused to agents, in the journal.
//!
//! sudo logs a refused command with priority alert, and journald adds the invocation of the
//! unit. Under load sudo has exited before journald reads its control group: one message in
//! six lacked the invocation with four busy processes. The user and the time replace it.

use std::process::Command;

use buildos_service::text;
use serde_json::Value;

use super::model::{Agent, Run};

/// Limit per agent. Refused commands differ in the numbers of taps.
const LIMIT: usize = 5;

/// A command that sudo refused.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    /// Invocation of the unit that called sudo, unless journald missed it.
    invocation: Option<String>,
    uid: Option<u32>,
    usec: u64,
    command: String,
}

impl Refusal {
    fn concerns(&self, run: &Run) -> bool {
        match &self.invocation {
            Some(invocation) => *invocation == run.invocation,
            None => self.uid.is_some() && self.uid == run.uid && self.usec >= run.start_usec,
        }
    }
}

/// Records the commands that sudo refused in the present or last run of each agent.
/// Leaves them unknown if journalctl fails. A user who may not read the journal gets an
/// empty list.
pub(crate) fn find(agents: &mut [Agent]) {
    let output = Command::new("journalctl")
        .args(["--boot", "--quiet", "--no-pager", "--identifier=sudo"])
        .args(["--priority=alert", "--lines=1000", "--output=json"])
        .arg("--output-fields=MESSAGE,_UID,_SYSTEMD_INVOCATION_ID")
        .output();
    let Ok(output) = output else { return };
    if !output.status.success() {
        return;
    }
    assign(agents, &String::from_utf8_lossy(&output.stdout));
}

/// Assigns the refusals in the output of journalctl to the agents.
fn assign(agents: &mut [Agent], journal: &str) {
    let refusals: Vec<_> = journal.lines().filter_map(refusal).collect();
    for agent in agents {
        let mut commands: Vec<String> = Vec::new();
        // The newest first; each once.
        for refusal in refusals.iter().rev() {
            let known = commands.contains(&refusal.command);
            if refusal.concerns(&agent.run) && !known && commands.len() < LIMIT {
                commands.push(refusal.command.clone());
            }
        }
        agent.refused_commands = Some(commands);
    }
}

/// Parses a message such as `build : command not allowed ; PWD=/ ; USER=root ;
/// COMMAND=/usr/sbin/ip link`. A permitted command has no reason before `PWD=`.
fn refusal(line: &str) -> Option<Refusal> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let message = entry.get("MESSAGE")?.as_str()?;
    let (_, rest) = message.split_once(" : ")?;
    let (fields, command) = rest.split_once("COMMAND=")?;
    let reason = fields.split(" ; ").next()?;
    if reason.contains('=') {
        return None;
    }
    let field = |name| entry.get(name).and_then(Value::as_str);
    Some(Refusal {
        invocation: field("_SYSTEMD_INVOCATION_ID").map(str::to_owned),
        uid: field("_UID").and_then(|uid| uid.parse().ok()),
        usec: field("__REALTIME_TIMESTAMP")?.parse().ok()?,
        command: text::escape(command),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::agent;
    use serde_json::json;

    fn line(invocation: &str, message: &str) -> String {
        json!({
            "MESSAGE": message,
            "_SYSTEMD_INVOCATION_ID": invocation,
            "__REALTIME_TIMESTAMP": "5",
        })
        .to_string()
    }

    #[test]
    fn refusals_are_assigned_to_run_of_agent() {
        let refused = "   build : command not allowed ; PWD=/ ; USER=root ; COMMAND=";
        let journal = [
            line("old", &format!("{refused}/usr/bin/btrfs --version")),
            line("one", &format!("{refused}/usr/sbin/ip netns add x ; y")),
            line("one", &format!("{refused}/usr/sbin/ip -b \u{1b}")),
            line("one", &format!("{refused}/usr/sbin/ip netns add x ; y")),
            line(
                "one",
                "build : PWD=/ ; USER=root ; COMMAND=/usr/sbin/ip link",
            ),
            line("one", "pam_unix(sudo:auth): conversation failed"),
            json!({"MESSAGE": [1, 2], "_SYSTEMD_INVOCATION_ID": "one"}).to_string(),
            "-- no entries --".to_owned(),
        ]
        .join("\n");
        let mut agents = [
            agent("bbot@a", "running", &[]),
            agent("bbot@b", "running", &[]),
        ];
        agents[0].run.invocation = "one".into();
        assign(&mut agents, &journal);
        assert_eq!(
            agents[0].refused_commands.as_deref().unwrap(),
            ["/usr/sbin/ip netns add x ; y", "/usr/sbin/ip -b \\u{1b}"]
        );
        assert_eq!(agents[1].refused_commands.as_deref().unwrap(), [""; 0]);
    }

    #[test]
    fn refusal_without_invocation_belongs_to_runs_of_user() {
        let message = "build : command not allowed ; COMMAND=/usr/sbin/ip";
        let journal =
            json!({"MESSAGE": message, "_UID": "986", "__REALTIME_TIMESTAMP": "5"}).to_string();
        for (uid, start_usec, found) in [
            (Some(986), 5, true),
            (Some(986), 6, false),
            (Some(987), 5, false),
            (None, 5, false),
        ] {
            let mut agents = [agent("bbot@a", "running", &[])];
            agents[0].run = Run {
                invocation: "one".into(),
                uid,
                start_usec,
                ..Run::default()
            };
            assign(&mut agents, &journal);
            let commands = agents[0].refused_commands.as_deref().unwrap();
            assert_eq!(!commands.is_empty(), found, "{uid:?} {start_usec}");
        }
    }

    #[test]
    fn refusals_of_run_are_limited() {
        let journal: Vec<_> = (0..20)
            .map(|n| {
                let message = format!("build : command not allowed ; COMMAND=/usr/sbin/ip {n}");
                line("one", &message)
            })
            .collect();
        let mut agents = [agent("bbot@a", "delayed", &[])];
        agents[0].run.invocation = "one".into();
        assign(&mut agents, &journal.join("\n"));
        let commands = agents[0].refused_commands.as_deref().unwrap();
        assert_eq!(commands.len(), LIMIT);
        assert_eq!(commands[0], "/usr/sbin/ip 19");
    }
}
