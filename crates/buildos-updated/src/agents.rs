//! Fetches the agents of the channel that the host takes, and lets the helper place them.
//!
//! ```text
//! accepted channel ─→ select ─→ fetch ─→ spool ─request→ buildos-agent-place ─→ /var/lib/buildos/agents
//! ```
//!
//! # Limits
//!
//! A placed agent is not used yet: the unit of an agent runs what the image has.

use std::collections::BTreeSet;

use buildos_channel::Channel;
use buildos_channel::model::{Agent, Limits};

use crate::durable;
use crate::messages;
use crate::offer::Offer;
use crate::paths::Paths;
use crate::pattern::Pattern;
use crate::request::request;
use crate::settings::{Settings, Source};
use crate::spool::Spool;
use crate::state::{self, Agents};

/// Returns the agents of a channel that a host takes.
#[must_use]
pub fn selected<'c>(channel: &'c Channel, patterns: &[Pattern]) -> Vec<&'c Agent> {
    let matches = |agent: &&Agent| {
        let mut patterns = patterns.iter();
        patterns.any(|pattern| pattern.matches(agent.name.as_str()))
    };
    channel.agents.iter().filter(matches).collect()
}

/// Returns true if an agent is placed.
#[must_use]
pub fn is_placed(agent: &Agent, placed: &Agents) -> bool {
    let sha256 = agent.extension.sha256.to_string();
    let mut found = placed.agents.iter();
    found.any(|found| found.sha256 == sha256 && found.name == agent.name.as_str())
}

/// Fetches and places agents. Returns what is to be known about them, or nothing, and the faults.
pub fn run(
    paths: &Paths,
    settings: &Settings,
    source: &Source,
    offer: &Offer,
) -> (String, Vec<String>) {
    let placed: Agents = state::read(&paths.agents_placed()).unwrap_or_default();
    if settings.agents.is_empty() && placed.agents.is_empty() || !offer.includes_host {
        return (String::new(), Vec::new());
    }
    let wanted = selected(&offer.channel, &settings.agents);
    let missing: Vec<&Agent> = wanted
        .iter()
        .copied()
        .filter(|agent| !is_placed(agent, &placed))
        .collect();
    let accepted = (offer.accepted.serial, offer.accepted.digest.to_string());
    if missing.is_empty() && placed.accepted == Some(accepted) {
        return (String::new(), Vec::new());
    }
    let spool = Spool::new(&paths.agents_spool());
    let mut problems = Vec::new();
    let mut failed = |agent: &Agent, reason: String| {
        messages::agent_not_placed(&agent.name, &agent.version, &reason);
        problems.push(format!("agent {} {}: {reason}", agent.name, agent.version));
    };
    let prepared = spool
        .create()
        .and_then(|()| durable::replace(&spool.channel(), &offer.file))
        .and_then(|()| {
            let needed: BTreeSet<_> = missing.iter().map(|a| a.extension.sha256).collect();
            spool.keep_only(&needed)
        });
    if let Err(reason) = prepared {
        return (String::new(), vec![reason]);
    }
    let mut fetched = Vec::new();
    for agent in missing {
        match fetch(&spool, agent, source, settings) {
            Ok(()) => fetched.push(agent),
            Err(reason) => failed(agent, reason),
        }
    }
    let mut lines = Vec::new();
    match request::<Agents>(paths) {
        Ok(after) => {
            for agent in fetched {
                if is_placed(agent, &after) {
                    lines.push(format!("agent {} {} placed", agent.name, agent.version));
                } else {
                    failed(agent, why_not(agent, &after.problems));
                }
            }
        }
        Err(reason) => problems.push(reason),
    }
    // It can be in RAM. What broke off is resumed by the next run.
    let parts: BTreeSet<_> = wanted.iter().map(|agent| agent.extension.sha256).collect();
    if let Err(reason) = spool.keep_parts(&parts) {
        problems.push(reason);
    }
    (lines.join("; "), problems)
}

/// Fetches an agent, if there is room.
fn fetch(spool: &Spool, agent: &Agent, source: &Source, settings: &Settings) -> Result<(), String> {
    let object = agent.extension;
    if object.size > Limits::EXTENSION {
        return Err(format!(
            "it has {}, and hosts take at most {}",
            buildos_service::text::size(object.size),
            buildos_service::text::size(Limits::EXTENSION)
        ));
    }
    // In the spool and at its place.
    let need = object.size.saturating_mul(2);
    let need = need.saturating_sub(spool.arrived(&object.sha256));
    spool
        .room()?
        .check(need)
        .map_err(|error| error.to_string())?;
    spool.fetch(&object.sha256, object.size, source, settings)?;
    Ok(())
}

/// Returns the reason for which the helper did not place an agent.
fn why_not(agent: &Agent, problems: &[String]) -> String {
    let of_agent = format!("agent {}: ", agent.name);
    let mut problems = problems.iter();
    let found = problems
        .clone()
        .find_map(|problem| problem.strip_prefix(&of_agent));
    let found = found.or_else(|| problems.next().map(String::as_str));
    found.unwrap_or("it was not placed").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::Digest;
    use buildos_channel::grammar;
    use buildos_channel::policy::Accepted;

    fn offer() -> Offer {
        let object = |text: &str| {
            let sha256 = Digest::of(text.as_bytes());
            format!("{{ sha256 = \"{sha256}\", size = {} }}", text.len())
        };
        let text = format!(
            "format = 1\nname = \"stable\"\nserial = 6\nvalid_until = 2027-01-31T12:00:00Z\n\
             [[agent]]\nname = \"bbot-agent\"\nversion = \"1\"\nextension = {}\n\
             [[agent]]\nname = \"bslave\"\nversion = \"2\"\nextension = {}\n",
            object("bbot"),
            object("bslave")
        );
        Offer {
            channel: grammar::parse(&text).unwrap().channel,
            accepted: Accepted {
                serial: 6,
                digest: Digest::of(b"6"),
            },
            file: Vec::new(),
            includes_host: true,
        }
    }

    #[test]
    fn host_takes_the_agents_that_its_patterns_match() {
        let offer = offer();
        let names = |patterns: &[&str]| -> Vec<String> {
            let patterns: Vec<Pattern> = patterns.iter().map(|p| p.parse().unwrap()).collect();
            let selected = selected(&offer.channel, &patterns);
            selected
                .iter()
                .map(|agent| agent.name.to_string())
                .collect()
        };
        assert_eq!(names(&[]), [""; 0]);
        assert_eq!(names(&["bbot*"]), ["bbot-agent"]);
        assert_eq!(names(&["*"]), ["bbot-agent", "bslave"]);
    }

    #[test]
    fn nothing_is_written_without_a_pattern_or_while_the_host_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        let source = "http://x".parse().unwrap();
        let nothing = (String::new(), Vec::new());
        let mut settings = Settings::default();
        assert_eq!(run(&paths, &settings, &source, &offer()), nothing);
        settings.agents = vec![Pattern::all()];
        let left_out = Offer {
            includes_host: false,
            ..offer()
        };
        assert_eq!(run(&paths, &settings, &source, &left_out), nothing);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn agent_is_placed_if_name_and_digest_are_the_same() {
        let offer = offer();
        let agent = &offer.channel.agents[0];
        let placed = |name: &str, sha256: Digest| Agents {
            agents: vec![state::Agent {
                name: name.to_owned(),
                sha256: sha256.to_string(),
                ..state::Agent::default()
            }],
            ..Agents::default()
        };
        assert!(is_placed(agent, &placed("bbot-agent", Digest::of(b"bbot"))));
        assert!(!is_placed(agent, &placed("bslave", Digest::of(b"bbot"))));
        assert!(!is_placed(agent, &placed("bbot-agent", Digest::of(b"x"))));
    }

    #[test]
    fn reason_of_the_helper_is_that_of_the_agent() {
        let offer = offer();
        let agent = &offer.channel.agents[0];
        let problems = ["other".to_owned(), "agent bbot-agent: full".to_owned()];
        assert_eq!(why_not(agent, &problems), "full");
        assert_eq!(why_not(agent, &problems[..1]), "other");
        assert_eq!(why_not(agent, &[]), "it was not placed");
    }
}
