//! Fetches the agents of the channel that the host takes, and lets the helper place them.
//!
//! ```text
//! accepted channel ─→ select ─→ fetch ─→ spool ─request→ buildos-agent-place ─→ /var/lib/buildos/agents
//! ```
//!
//! One agent is fetched and placed at a time: without a disk, the spool is in RAM.
//!
//! # Limits
//!
//! A placed agent is not used yet: the unit of an agent runs what the image has.

use std::collections::BTreeSet;

use buildos_channel::Channel;
use buildos_channel::model::{Agent, Limits};
use buildos_service::text::size;

use crate::durable;
use crate::messages;
use crate::offer::Offer;
use crate::os::memory;
use crate::paths::Paths;
use crate::pattern::Pattern;
use crate::progress::Progress;
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

/// The steps of a run that go beyond its own files.
struct Steps<'s> {
    fetch: &'s mut dyn FnMut(&Agent) -> Result<(), String>,
    request: &'s mut dyn FnMut() -> Result<Agents, String>,
}

/// Fetches and places agents. Returns what is to be known about them, or nothing, and the faults.
pub fn run(
    paths: &Paths,
    settings: &Settings,
    source: &Source,
    offer: &Offer,
    progress: &Progress,
) -> (String, Vec<String>) {
    let mut fetch = |agent: &Agent| fetch(paths, agent, source, settings);
    let mut request = || request::<Agents>(paths);
    let steps = Steps {
        fetch: &mut fetch,
        request: &mut request,
    };
    let mut report = Report::default();
    if let Err(reason) = place(paths, settings, offer, progress, steps, &mut report) {
        report.note(reason);
    }
    (report.lines.join("; "), report.problems)
}

/// What a run did, and its faults.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    lines: Vec<String>,
    problems: Vec<String>,
}

impl Report {
    /// Notes a fault once: the helper reports it for each agent.
    fn note(&mut self, problem: String) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn failed(&mut self, agent: &Agent, reason: &str) {
        messages::agent_not_placed(&agent.name, &agent.version, reason);
        self.note(format!("agent {} {}: {reason}", agent.name, agent.version));
    }

    /// Notes the answer of the helper to the request that follows an agent.
    fn answered(&mut self, agent: &Agent, mut after: Agents) {
        if is_placed(agent, &after) {
            self.lines
                .push(format!("agent {} {} placed", agent.name, agent.version));
        } else {
            let reason = why_not(agent, &mut after.problems);
            self.failed(agent, &reason);
        }
        for problem in after.problems {
            self.note(problem);
        }
    }
}

/// Fetches and places one agent after the other: the spool can be in RAM.
fn place(
    paths: &Paths,
    settings: &Settings,
    offer: &Offer,
    progress: &Progress,
    steps: Steps<'_>,
    report: &mut Report,
) -> Result<(), String> {
    // After a boot it is absent until the first request.
    let known: Option<Agents> = state::read(&paths.agents_placed());
    let has_agents = match &known {
        Some(known) => !known.agents.is_empty(),
        None => paths.agents().exists(),
    };
    if settings.agents.is_empty() && !has_agents || !offer.includes_host {
        return Ok(());
    }
    let accepted = Some((offer.accepted.serial, offer.accepted.digest.to_string()));
    let known = known.filter(|known| known.accepted == accepted);
    let wanted = selected(&offer.channel, &settings.agents);
    let is_missing = |agent: &&Agent, placed: &Agents| !is_placed(agent, placed);
    if let Some(known) = &known {
        if !wanted.iter().any(|agent| is_missing(agent, known)) {
            return Ok(());
        }
    }
    let spool = Spool::new(&paths.agents_spool());
    let parts: BTreeSet<_> = wanted.iter().map(|agent| agent.extension.sha256).collect();
    spool.create()?;
    spool.keep_parts(&parts)?;
    durable::replace(&spool.channel(), &offer.file)?;
    let mut request = || {
        let after = (steps.request)()?;
        match after.accepted == accepted {
            true => Ok(after),
            // It would refuse the channel for each agent.
            false => {
                let mut problems = after.problems.into_iter();
                let reason = problems.next();
                Err(reason.unwrap_or_else(|| "the channel was not accepted".to_owned()))
            }
        }
    };
    let placed = match known {
        Some(known) => known,
        // The helper looks at what is placed, and removes agents before others come.
        None if progress.is_interrupted() => return Ok(()),
        None => {
            let mut after = request()?;
            for problem in after.problems.drain(..) {
                report.note(problem);
            }
            after
        }
    };
    let missing = wanted.iter().filter(|agent| is_missing(agent, &placed));
    for agent in missing {
        if progress.is_interrupted() {
            break;
        }
        if memory::is_in_ram(&paths.agents_spool()) {
            // No part of an agent that could not be fetched takes RAM from the next.
            spool.keep_parts(&BTreeSet::from([agent.extension.sha256]))?;
        }
        if let Err(reason) = (steps.fetch)(agent) {
            report.failed(agent, &reason);
            continue;
        }
        if progress.is_interrupted() {
            break;
        }
        let after = request();
        // What broke off is resumed by the next run.
        spool.keep_parts(&parts)?;
        match after {
            Ok(after) => report.answered(agent, after),
            Err(reason) => {
                report.failed(agent, &reason);
                break;
            }
        }
    }
    spool.keep_parts(&parts)
}

/// Fetches an agent, if there is room.
fn fetch(paths: &Paths, agent: &Agent, source: &Source, settings: &Settings) -> Result<(), String> {
    let spool = Spool::new(&paths.agents_spool());
    let object = agent.extension;
    if object.size > Limits::EXTENSION {
        return Err(format!(
            "it has {}, and hosts take at most {}",
            size(object.size),
            size(Limits::EXTENSION)
        ));
    }
    // In the spool and at its place.
    let need = object.size.saturating_mul(2);
    let need = need.saturating_sub(spool.arrived(&object.sha256));
    spool
        .room()?
        .check(need)
        .map_err(|error| error.to_string())?;
    if memory::is_in_ram(&paths.agents_spool()) {
        check_ram(need, memory::available(paths.root()))?;
    }
    spool.fetch(&object.sha256, object.size, source, settings)?;
    Ok(())
}

/// Checks that `need` bytes of RAM are available beside the reserve.
fn check_ram(need: u64, available: u64) -> Result<(), String> {
    match need.saturating_add(memory::RESERVE) <= available {
        true => Ok(()),
        false => Err(format!(
            "it needs {} of RAM; {} are available, of which {} stay free",
            size(need),
            size(available),
            size(memory::RESERVE)
        )),
    }
}

/// Takes the reason for which the helper did not place an agent out of its faults.
fn why_not(agent: &Agent, problems: &mut Vec<String>) -> String {
    let of_agent = format!("agent {}: ", agent.name);
    let found = problems.iter().position(|p| p.starts_with(&of_agent));
    match found {
        Some(index) => problems.remove(index).split_off(of_agent.len()),
        None => "it was not placed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::Digest;
    use buildos_channel::grammar;
    use buildos_channel::policy::Accepted;
    use std::cell::RefCell;
    use std::fs;

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
        let (progress, _receiver) = Progress::new(state::Updated::default());
        let run = |settings: &Settings, offer: &Offer| {
            super::run(&paths, settings, &source, offer, &progress)
        };
        let mut settings = Settings::default();
        assert_eq!(run(&settings, &offer()), nothing);
        settings.agents = vec![Pattern::all()];
        let left_out = Offer {
            includes_host: false,
            ..offer()
        };
        assert_eq!(run(&settings, &left_out), nothing);
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
        let mut problems = vec!["other".to_owned(), "agent bbot-agent: full".to_owned()];
        assert_eq!(why_not(agent, &mut problems), "full");
        assert_eq!(problems, ["other"]);
        assert_eq!(why_not(agent, &mut problems), "it was not placed");
        assert_eq!(problems, ["other"]);
    }

    #[test]
    fn agent_takes_ram_only_beside_the_reserve() {
        let mib = 1 << 20;
        assert_eq!(check_ram(512 * mib, 576 * mib), Ok(()));
        let error = check_ram(512 * mib, 575 * mib).unwrap_err();
        assert_eq!(
            error,
            "it needs 512 MiB of RAM; 575 MiB are available, of which 64.0 MiB stay free"
        );
    }

    struct Host {
        _directory: tempfile::TempDir,
        paths: Paths,
        settings: Settings,
        progress: Progress,
    }

    /// Steps that the host took, with the objects in the spool before each.
    type Taken = Vec<(String, usize)>;

    impl Host {
        fn new(pattern: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let paths = Paths::new(directory.path());
            fs::create_dir_all(paths.os_spool()).unwrap();
            fs::create_dir_all(paths.agents_placed().parent().unwrap()).unwrap();
            let patterns = [pattern].into_iter().filter(|p| !p.is_empty());
            Self {
                _directory: directory,
                paths,
                settings: Settings {
                    agents: patterns.map(|p| p.parse().unwrap()).collect(),
                    ..Settings::default()
                },
                progress: Progress::new(state::Updated::default()).0,
            }
        }

        /// Lets the helper have placed agents in this boot.
        fn knows(&self, agents: &Agents) {
            fs::write(self.paths.agents_placed(), state::text(agents)).unwrap();
        }

        /// Runs with a helper that answers `problems`, and a server without `absent`. Each step
        /// calls `step`.
        fn run(
            &self,
            absent: &str,
            problems: &[&str],
            mut step: impl FnMut(&str),
        ) -> (Report, Taken) {
            let offer = offer();
            let spool = Spool::new(&self.paths.agents_spool());
            let in_spool = || fs::read_dir(spool.objects()).unwrap().count();
            let taken = RefCell::new(Taken::new());
            let step = RefCell::new(&mut step);
            let take = |name: &str| {
                taken.borrow_mut().push((name.to_owned(), in_spool()));
                (*step.borrow_mut())(name);
            };
            let known: Agents = state::read(&self.paths.agents_placed()).unwrap_or_default();
            let mut agents = known.agents;
            let mut fetch = |agent: &Agent| {
                take(agent.name.as_str());
                if agent.name.as_str() == absent {
                    return Err("404".to_owned());
                }
                fs::write(spool.object(&agent.extension.sha256), "").unwrap();
                Ok(())
            };
            let mut request = || {
                take("request");
                for agent in &offer.channel.agents {
                    if spool.has(&agent.extension.sha256, 0) {
                        agents.push(placed(agent));
                    }
                }
                Ok(Agents {
                    accepted: Some((6, offer.accepted.digest.to_string())),
                    agents: agents.clone(),
                    problems: problems.iter().map(|&p| p.to_owned()).collect(),
                    ..Agents::default()
                })
            };
            let steps = Steps {
                fetch: &mut fetch,
                request: &mut request,
            };
            let mut report = Report::default();
            let (paths, settings) = (&self.paths, &self.settings);
            place(paths, settings, &offer, &self.progress, steps, &mut report).unwrap();
            (report, taken.into_inner())
        }
    }

    fn placed(agent: &Agent) -> state::Agent {
        state::Agent {
            name: agent.name.to_string(),
            sha256: agent.extension.sha256.to_string(),
            ..state::Agent::default()
        }
    }

    fn known(agents: &[Agent]) -> Agents {
        Agents {
            accepted: Some((6, offer().accepted.digest.to_string())),
            agents: agents.iter().map(placed).collect(),
            ..Agents::default()
        }
    }

    fn names(taken: &Taken) -> Vec<&str> {
        taken.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn spool_has_one_agent_at_a_time() {
        let host = Host::new("*");
        host.knows(&known(&[]));
        let (report, taken) = host.run("", &[], |_| {});
        assert_eq!(
            report.lines,
            ["agent bbot-agent 1 placed", "agent bslave 2 placed"]
        );
        let step = |name: &str, in_spool| (name.to_owned(), in_spool);
        assert_eq!(
            taken,
            [
                step("bbot-agent", 0),
                step("request", 1),
                step("bslave", 0),
                step("request", 1)
            ]
        );
        let spool = Spool::new(&host.paths.agents_spool());
        assert_eq!(fs::read_dir(spool.objects()).unwrap().count(), 0);
    }

    #[test]
    fn helper_is_asked_first_for_what_is_placed_after_a_boot() {
        let host = Host::new("bbot-*");
        let (_, taken) = host.run("", &[], |_| {});
        assert_eq!(names(&taken), ["request", "bbot-agent", "request"]);
        // No pattern, but agents of a former boot.
        let host = Host::new("");
        assert_eq!(host.run("", &[], |_| {}).1, []);
        fs::create_dir_all(host.paths.agents()).unwrap();
        assert_eq!(names(&host.run("", &[], |_| {}).1), ["request"]);
        host.knows(&known(&[]));
        assert_eq!(host.run("", &[], |_| {}).1, []);
    }

    #[test]
    fn placed_agents_need_no_step() {
        let host = Host::new("*");
        host.knows(&known(&offer().channel.agents));
        assert_eq!(host.run("", &[], |_| {}).1, []);
    }

    #[test]
    fn every_fault_of_the_helper_is_reported_once() {
        // The answer to the first request after a boot has them, too.
        let host = Host::new("");
        fs::create_dir_all(host.paths.agents()).unwrap();
        let (report, _) = host.run("", &["cannot remove x"], |_| {});
        assert_eq!(report.problems, ["cannot remove x"]);
        let host = Host::new("*");
        host.knows(&known(&[]));
        let (report, taken) = host.run("bslave", &["cannot remove x", "cannot remove y"], |_| {});
        assert_eq!(
            report.problems,
            ["cannot remove x", "cannot remove y", "agent bslave 2: 404"]
        );
        assert_eq!(report.lines, ["agent bbot-agent 1 placed"]);
        assert_eq!(names(&taken), ["bbot-agent", "request", "bslave"]);
    }

    #[test]
    fn hold_ends_the_run_between_steps() {
        for (last, steps) in [
            ("request", &["request"][..]),
            ("bbot-agent", &["request", "bbot-agent"]),
        ] {
            let host = Host::new("*");
            let hold = |step: &str| {
                if step == last {
                    host.progress.hold();
                }
            };
            let (report, taken) = host.run("", &[], hold);
            assert_eq!(names(&taken), steps);
            assert_eq!(report, Report::default());
        }
    }
}
