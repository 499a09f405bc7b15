//! When machines' network is tried out, and what came of it last.
//!
//! The probe is a program of its own in a unit of its own (`buildos_probe`).
//! natd may not start it: natd writes a request, systemd sees the file change
//! (buildos-probe.path) and starts the unit, and the unit leaves a report with
//! the request's number. So a report that is of an earlier request, or of an
//! earlier life of natd, is told from the one that is waited for.
//!
//! This is a state machine without files and clocks.

use std::time::Duration;

use buildos_dbus_api::nat1::ProbeState;
use buildos_dbus_api::system::UnitState;
use buildos_probe::{Outcome, Question, Report, Request, Step, Target};
use tokio::time::Instant;

use crate::config::Settings;
use crate::firewall::policy::PRIVATE_RANGES;
use crate::uplink_network::UplinkNetwork;

/// The unit.
pub const UNIT: &str = "buildos-probe.service";
/// systemd does not see a change of the file while it acts on the one before,
/// and a program may be killed: then it is asked again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether a unit still runs that is to run again.
const RUNNING: Duration = Duration::from_millis(250);
/// First wait after a probe that failed; it doubles with each.
const SOON: Duration = Duration::from_secs(2);
/// Least time between two probes that something new gives rise to.
const GAP: Duration = Duration::from_secs(10);
/// Name servers that are tried at most.
const SERVERS: usize = 3;

/// What is to be tried: a request whose number does not count. [`None`] when
/// nothing is to be tried.
#[must_use]
pub fn wish(network: &UplinkNetwork, settings: &Settings) -> Option<Request> {
    settings.probe_interval.get()?;
    Some(Request {
        id: 0,
        bridge: network.private_bridge.to_string(),
        host: network.private_network.address(),
        question: match &settings.probe_name {
            Some(name) => Some(Question::Address(name.clone())),
            None => (!network.dns.is_empty()).then_some(Question::Anything),
        },
        targets: match settings.probe_targets.is_empty() {
            false => settings.probe_targets.clone(),
            true => targets(network, settings),
        },
    })
}

/// Name servers and gateway of the uplink, as far as machines may reach them.
fn targets(network: &UplinkNetwork, settings: &Settings) -> Vec<Target> {
    let open = |address| {
        let within = |nets: &[ipnet::Ipv4Net]| nets.iter().any(|net| net.contains(&address));
        !settings.block_private || within(&settings.allow_private) || !within(&PRIVATE_RANGES)
    };
    let servers = network.dns.iter().filter_map(|address| match address {
        std::net::IpAddr::V4(address) => Some(Target::Dns(*address)),
        std::net::IpAddr::V6(_) => None,
    });
    let gateway = network.uplink.iter().filter_map(|uplink| uplink.gateway);
    servers
        .take(SERVERS)
        .chain(gateway.map(Target::Echo))
        .filter(|target| open(target.address()))
        .collect()
}

/// What is known of machines' network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Where it stands.
    pub state: Option<ProbeState>,
    /// What came of the last probe.
    pub report: Option<Report>,
}

impl Health {
    /// As nat1 has it.
    #[must_use]
    pub fn state(&self) -> ProbeState {
        self.state.unwrap_or(ProbeState::Pending)
    }
}

/// What was asked for and what came of it.
#[derive(Debug)]
pub struct ProbeScheduler {
    /// The last request.
    request: Option<Request>,
    /// When it was made, while there is no report.
    asked: Option<Instant>,
    report: Option<Report>,
    /// Reports of failure in a row.
    failures: u32,
    /// When the last one came.
    finished: Option<Instant>,
    /// When to ask again.
    due: Option<Instant>,
    /// When to look at a unit that ran when something was to be done.
    look_again: Option<Instant>,
    off: bool,
}

impl ProbeScheduler {
    /// Takes up the report on the last request of an earlier life: a restart of
    /// natd is no reason to doubt it.
    #[must_use]
    pub fn resume(request: Option<Request>, report: Option<Report>, now: Instant) -> Self {
        let report = report.filter(|report| {
            let asked = request.as_ref().map(|request| request.id);
            asked == Some(report.id) && matches!(report.outcome, Outcome::Passed { .. })
        });
        Self {
            request: request.filter(|_| report.is_some()),
            due: report.as_ref().map(|_| now + GAP),
            finished: report.as_ref().map(|_| now),
            report,
            asked: None,
            failures: 0,
            look_again: None,
            off: false,
        }
    }

    /// What is known.
    #[must_use]
    pub fn health(&self) -> Health {
        let state = match &self.report {
            _ if self.off => ProbeState::Off,
            None => ProbeState::Pending,
            Some(report) => match report.outcome {
                Outcome::Passed { .. } => ProbeState::Passed,
                Outcome::Failed { .. } => ProbeState::Failed,
            },
        };
        Health {
            state: Some(state),
            report: self.report.clone(),
        }
    }

    /// When to be asked again at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let due = match self.asked {
            Some(asked) => Some(asked + PATIENCE),
            None => self.due,
        };
        self.look_again.or(due)
    }

    /// Something has changed that may matter to machines: try soon.
    pub fn hurry(&mut self, now: Instant) {
        let earliest = self
            .finished
            .map_or(now, |finished| finished + GAP)
            .max(now);
        self.due = self.due.map(|due| due.min(earliest));
    }

    /// Nothing can be tried: something is missing before.
    pub fn hold(&mut self) {
        self.request = None;
        self.report = None;
        self.asked = None;
        self.due = None;
        self.look_again = None;
        self.off = false;
    }

    /// Nothing is to be tried.
    pub fn switch_off(&mut self) {
        self.hold();
        self.off = true;
    }

    /// Takes the report that lies there, whosever it is. Returns whether the unit has to
    /// be looked at for what is to be done now, which is [`ProbeScheduler::ask`]'s.
    pub fn look(
        &mut self,
        now: Instant,
        wish: &Request,
        every: Duration,
        left: Option<Report>,
    ) -> bool {
        self.off = false;
        let awaited = self.asked.and(self.id());
        if let Some(report) = left.filter(|report| Some(report.id) == awaited) {
            self.finish(now, every, report);
        }
        if self.request.as_ref().is_none_or(|last| !same(last, wish)) {
            // What was found out is of another network.
            self.report = None;
            self.asked = None;
            self.due = None;
            self.look_again = None;
        }
        self.due().is_none_or(|due| now >= due)
    }

    /// The request to write, with `id` as its number, or [`None`] when there is nothing
    /// to ask for, or systemd would not see that it is: while the unit runs.
    pub fn ask(
        &mut self,
        now: Instant,
        wish: &Request,
        every: Duration,
        unit: Option<&UnitState>,
        id: u64,
    ) -> Option<Request> {
        let running = unit.is_some_and(|unit| {
            let state = unit.active_state.as_str();
            ["activating", "active", "deactivating"].contains(&state)
        });
        if running {
            self.look_again = Some(now + RUNNING);
            return None;
        }
        self.look_again = None;
        if let Some(lost) = self.asked.and(self.id()) {
            let report = Self::lost(lost, unit);
            self.finish(now, every, report);
            return None;
        }
        let request = Request { id, ..wish.clone() };
        self.request = Some(request.clone());
        self.asked = Some(now);
        Some(request)
    }

    /// The number of the last request.
    fn id(&self) -> Option<u64> {
        self.request.as_ref().map(|request| request.id)
    }

    fn finish(&mut self, now: Instant, every: Duration, report: Report) {
        let wait = match report.outcome {
            Outcome::Passed { .. } => {
                self.failures = 0;
                every
            }
            Outcome::Failed { .. } => {
                let wait = SOON.saturating_mul(1 << self.failures.min(16));
                self.failures = self.failures.saturating_add(1);
                wait.min(every)
            }
        };
        self.report = Some(report);
        self.asked = None;
        self.look_again = None;
        self.finished = Some(now);
        self.due = Some(now + wait);
    }

    fn lost(id: u64, unit: Option<&UnitState>) -> Report {
        let how = match unit {
            None => "systemd says nothing of it".to_owned(),
            Some(unit) if unit.load_state != "loaded" => format!("it is {}", unit.load_state),
            Some(unit) => format!("it is {}", unit.active_state),
        };
        Report {
            id,
            finished_us: 0,
            took_ms: 0,
            outcome: Outcome::Failed {
                step: Step::Link,
                reason: format!("{UNIT} has left no report: {how}; see journalctl -u {UNIT}"),
            },
        }
    }
}

/// Whether two requests ask for the same.
fn same(a: &Request, b: &Request) -> bool {
    let without = |request: &Request| Request {
        id: 0,
        ..request.clone()
    };
    without(a) == without(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink_network::Uplink;
    use std::net::Ipv4Addr;

    const EVERY: Duration = Duration::from_secs(300);

    fn network() -> UplinkNetwork {
        let dns = ["192.0.2.53", "2001:db8::1", "10.0.0.53"];
        UplinkNetwork {
            dns: dns.iter().map(|text| text.parse().unwrap()).collect(),
            uplink: Ok(Uplink {
                gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            }),
            ..UplinkNetwork::example()
        }
    }

    fn tried(network: &UplinkNetwork, settings: &Settings) -> String {
        let request = wish(network, settings).unwrap();
        let targets: Vec<_> = request.targets.iter().map(ToString::to_string).collect();
        targets.join(" ")
    }

    #[test]
    fn what_is_tried_by_default_is_what_machines_may_reach() {
        let mut settings = Settings::default();
        let all = "dns:192.0.2.53 dns:10.0.0.53 echo:10.0.0.1";
        assert_eq!(tried(&network(), &settings), all);
        settings.block_private = true;
        assert_eq!(tried(&network(), &settings), "dns:192.0.2.53");
        settings.allow_private = vec!["10.0.0.53/32".parse().unwrap()];
        assert_eq!(tried(&network(), &settings), "dns:192.0.2.53 dns:10.0.0.53");
        settings.probe_targets = vec!["tcp:198.51.100.1:443".parse().unwrap()];
        assert_eq!(tried(&network(), &settings), "tcp:198.51.100.1:443");
        settings.probe_interval = 0.try_into().unwrap();
        assert_eq!(wish(&network(), &settings), None);
    }

    #[test]
    fn without_name_servers_none_is_asked() {
        let mut network = network();
        let mut settings = Settings::default();
        let question = |network: &UplinkNetwork, settings: &Settings| {
            wish(network, settings).unwrap().question
        };
        assert_eq!(question(&network, &settings), Some(Question::Anything));
        network.dns.clear();
        assert_eq!(question(&network, &settings), None);
        settings.probe_name = Some("a.example".to_owned().try_into().unwrap());
        assert!(question(&network, &settings).is_some());
    }

    struct Trial {
        prober: ProbeScheduler,
        start: Instant,
        wish: Request,
        id: u64,
    }

    impl Trial {
        fn new() -> Self {
            let start = Instant::now();
            Self {
                prober: ProbeScheduler::resume(None, None, start),
                start,
                wish: wish(&network(), &Settings::default()).unwrap(),
                id: 0,
            }
        }

        /// The number of the request that is made then.
        fn look(&mut self, at: u64, unit: &str, left: Option<Report>) -> Option<u64> {
            let unit = UnitState {
                active_state: unit.to_owned(),
                load_state: "loaded".to_owned(),
            };
            self.id += 1;
            let now = self.start + Duration::from_secs(at);
            if !self.prober.look(now, &self.wish, EVERY, left) {
                return None;
            }
            let request = self
                .prober
                .ask(now, &self.wish, EVERY, Some(&unit), self.id);
            request.map(|request| request.id)
        }

        fn state(&self) -> ProbeState {
            self.prober.health().state()
        }
    }

    fn passed(id: u64) -> Option<Report> {
        Some(Report {
            id,
            finished_us: 1,
            took_ms: 5,
            outcome: Outcome::Passed {
                address: Ipv4Addr::new(172, 23, 0, 9),
                target: None,
            },
        })
    }

    fn failed(id: u64) -> Option<Report> {
        Some(Report {
            outcome: Outcome::Failed {
                step: Step::Names,
                reason: "no".to_owned(),
            },
            ..passed(id)?
        })
    }

    #[test]
    fn a_probe_is_asked_for_and_again_after_a_while() {
        let mut trial = Trial::new();
        let id = trial.look(0, "inactive", passed(99)).unwrap();
        assert_eq!(trial.state(), ProbeState::Pending);
        assert_eq!(trial.look(0, "activating", passed(99)), None);
        assert_eq!(trial.look(1, "inactive", passed(id)), None);
        assert_eq!(trial.state(), ProbeState::Passed);
        assert_eq!(trial.look(300, "inactive", passed(id)), None);
        assert!(trial.look(301, "inactive", passed(id)).is_some());
        // The old result stands until there is a new one.
        assert_eq!(trial.state(), ProbeState::Passed);
    }

    #[test]
    fn after_a_failure_it_is_tried_sooner_and_ever_less_often() {
        let mut trial = Trial::new();
        let mut id = trial.look(0, "inactive", None).unwrap();
        let mut now = 0;
        for wait in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert_eq!(trial.look(now, "inactive", failed(id)), None);
            assert_eq!(trial.state(), ProbeState::Failed);
            assert_eq!(trial.look(now + wait - 1, "inactive", failed(id)), None);
            now += wait;
            id = trial.look(now, "inactive", failed(id)).unwrap();
        }
        assert_eq!(trial.look(now, "inactive", passed(id)), None);
        assert_eq!(trial.state(), ProbeState::Passed);
        assert_eq!(trial.look(now + 299, "inactive", passed(id)), None);
    }

    #[test]
    fn another_network_is_tried_at_once() {
        let mut trial = Trial::new();
        let id = trial.look(0, "inactive", None).unwrap();
        trial.look(1, "inactive", passed(id));
        trial.wish.targets.clear();
        // Not while the last one runs: systemd would not see it.
        assert_eq!(trial.look(2, "active", passed(id)), None);
        assert_eq!(trial.state(), ProbeState::Pending);
        assert!(trial.look(3, "inactive", passed(id)).is_some());
    }

    #[test]
    fn a_probe_that_leaves_nothing_has_failed() {
        let mut trial = Trial::new();
        trial.look(0, "inactive", None).unwrap();
        assert_eq!(trial.look(9, "inactive", None), None);
        assert_eq!(trial.look(11, "activating", None), None);
        assert_eq!(trial.state(), ProbeState::Pending);
        assert_eq!(trial.look(12, "failed", None), None);
        assert_eq!(trial.state(), ProbeState::Failed);
        assert!(trial.look(14, "failed", None).is_some());
    }

    #[test]
    fn something_new_is_a_reason_to_look_but_not_all_the_time() {
        let mut trial = Trial::new();
        let id = trial.look(0, "inactive", None).unwrap();
        trial.look(1, "inactive", passed(id));
        let at = |trial: &Trial, seconds| trial.start + Duration::from_secs(seconds);
        trial.prober.hurry(at(&trial, 2));
        assert_eq!(trial.prober.due(), Some(at(&trial, 11)));
        trial.prober.hurry(at(&trial, 20));
        assert_eq!(trial.prober.due(), Some(at(&trial, 11)));
    }

    #[test]
    fn a_unit_that_runs_is_looked_at_again_soon_and_not_all_the_time() {
        let mut trial = Trial::new();
        let at = |trial: &Trial, millis| trial.start + Duration::from_millis(millis);
        assert_eq!(trial.look(0, "active", None), None);
        assert_eq!(trial.prober.due(), Some(at(&trial, 250)));
        let id = trial.look(1, "inactive", None).unwrap();
        // It runs on when its time is up, and leaves its report then.
        assert_eq!(trial.look(11, "active", None), None);
        assert_eq!(trial.prober.due(), Some(at(&trial, 11_250)));
        assert_eq!(trial.look(12, "active", passed(id)), None);
        assert_eq!(trial.state(), ProbeState::Passed);
        assert_eq!(trial.prober.due(), Some(at(&trial, 312_000)));
        assert_eq!(trial.look(13, "inactive", passed(id)), None);
    }

    #[test]
    fn a_restart_takes_up_what_was_found_out() {
        let now = Instant::now();
        let mut request = wish(&network(), &Settings::default()).unwrap();
        request.id = 7;
        let resumed = |report| ProbeScheduler::resume(Some(request.clone()), report, now);
        assert_eq!(resumed(passed(7)).health().state(), ProbeState::Passed);
        for report in [None, passed(6), failed(7)] {
            assert_eq!(resumed(report).health().state(), ProbeState::Pending);
        }
        let mut prober = resumed(passed(7));
        assert!(
            !prober.look(now, &request, EVERY, passed(7)),
            "nothing new is asked for at once"
        );
        prober.hold();
        assert_eq!(prober.health().state(), ProbeState::Pending);
        prober.switch_off();
        assert_eq!(prober.health().state(), ProbeState::Off);
    }
}
