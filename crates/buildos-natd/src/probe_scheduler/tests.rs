//! Tests every state with every event, and sequences of events over time.

use super::*;
use buildos_probe::{Question, Target};
use buildos_types::InterfaceName;
use std::net::Ipv4Addr;

const INTERVAL: Duration = Duration::from_secs(300);

fn desired() -> Request {
    Request {
        id: 0,
        bridge: InterfaceName::new("br1").unwrap(),
        host: Ipv4Addr::new(172, 23, 0, 1),
        question: Some(Question::RootServers),
        targets: vec![Target::Echo(Ipv4Addr::new(192, 0, 2, 1))],
    }
}

fn other_desired() -> Request {
    Request {
        targets: vec![],
        ..desired()
    }
}

fn unit(active_state: &str) -> UnitState {
    UnitState {
        active_state: active_state.to_owned(),
        load_state: "loaded".to_owned(),
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

struct Trial {
    scheduler: ProbeScheduler,
    start: Instant,
    desired: Request,
    id: u64,
}

impl Trial {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            scheduler: ProbeScheduler::resume(None, None, start),
            start,
            desired: desired(),
            id: 0,
        }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    /// Runs one reconciliation at `at` seconds; returns the number of a new request.
    fn step(&mut self, at: u64, unit_state: &str, report: Option<Report>) -> Option<u64> {
        self.id += 1;
        let now = self.at(at * 1000);
        if !self.scheduler.update(now, &self.desired, INTERVAL, report) {
            return None;
        }
        let unit = unit(unit_state);
        let request = self.scheduler.request(now, INTERVAL, Some(&unit), self.id);
        request.map(|request| request.id)
    }

    fn state(&self) -> ProbeState {
        self.scheduler.health().state()
    }

    /// Describes the state: name, result, seconds until it is due.
    fn describe(&self, now: Instant) -> String {
        let name = match self.scheduler.state {
            State::Off => return "off".to_owned(),
            State::Held => return "held".to_owned(),
            State::Scheduled { .. } => "scheduled",
            State::Requested { .. } => "requested",
        };
        let due = self.scheduler.due().unwrap();
        let wait = due.saturating_duration_since(now).as_millis();
        format!("{name} {} {wait}", self.state().as_str())
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Hold,
    SwitchOff,
    Expedite,
    UpdateEqual,
    UpdateDifferent,
    ReportPassed,
    ReportFailed,
    ReportOfEarlierRequest,
    RequestWhileUnitRuns,
    RequestWhileUnitStopped,
}

const EVENTS: [Event; 10] = [
    Event::Hold,
    Event::SwitchOff,
    Event::Expedite,
    Event::UpdateEqual,
    Event::UpdateDifferent,
    Event::ReportPassed,
    Event::ReportFailed,
    Event::ReportOfEarlierRequest,
    Event::RequestWhileUnitRuns,
    Event::RequestWhileUnitStopped,
];

/// Each state one second after it was entered; the last request has the number 7.
fn states() -> [(&'static str, Trial); 5] {
    let trial = |state| {
        let mut trial = Trial::new();
        trial.scheduler.state = state;
        trial
    };
    let now = Instant::now();
    let request = Request { id: 7, ..desired() };
    let (later, timeout) = (now + Duration::from_secs(300), now + TIMEOUT);
    let mut trials = [
        ("off", trial(State::Off)),
        ("held", trial(State::Held)),
        (
            "scheduled",
            trial(State::Scheduled {
                request: request.clone(),
                last: passed(7),
                due: later,
            }),
        ),
        (
            "requested first",
            trial(State::Requested {
                request: request.clone(),
                last: None,
                timeout,
            }),
        ),
        (
            "requested again",
            trial(State::Requested {
                request,
                last: passed(6),
                timeout,
            }),
        ),
    ];
    for (_, trial) in &mut trials {
        trial.start = now;
        trial.scheduler.finished = Some(now);
    }
    trials
}

fn apply(trial: &mut Trial, event: Event, now: Instant) {
    let mut update = |desired: &Request, report| {
        trial.scheduler.update(now, desired, INTERVAL, report);
    };
    match event {
        Event::Hold => trial.scheduler.hold(),
        Event::SwitchOff => trial.scheduler.switch_off(),
        Event::Expedite => trial.scheduler.expedite(now),
        Event::UpdateEqual => update(&desired(), None),
        Event::UpdateDifferent => update(&other_desired(), None),
        Event::ReportPassed => update(&desired(), passed(7)),
        Event::ReportFailed => update(&desired(), failed(7)),
        Event::ReportOfEarlierRequest => update(&desired(), failed(6)),
        Event::RequestWhileUnitRuns | Event::RequestWhileUnitStopped => {
            let running = matches!(event, Event::RequestWhileUnitRuns);
            let unit = unit(if running { "active" } else { "inactive" });
            trial.scheduler.request(now, INTERVAL, Some(&unit), 8);
        }
    }
}

#[test]
fn every_state_with_every_event_has_the_listed_result() {
    let expected = [
        // Hold, SwitchOff, Expedite, UpdateEqual, UpdateDifferent, ReportPassed, ReportFailed,
        // ReportOfEarlierRequest, RequestWhileUnitRuns, RequestWhileUnitStopped
        [
            "held",
            "off",
            "off",
            "scheduled pending 0",
            "scheduled pending 0",
            "scheduled pending 0",
            "scheduled pending 0",
            "scheduled pending 0",
            "off",
            "off",
        ],
        [
            "held",
            "off",
            "held",
            "scheduled pending 0",
            "scheduled pending 0",
            "scheduled pending 0",
            "scheduled pending 0",
            "scheduled pending 0",
            "held",
            "held",
        ],
        [
            "held",
            "off",
            "scheduled passed 9000",
            "scheduled passed 299000",
            "scheduled pending 0",
            "scheduled passed 299000",
            "scheduled passed 299000",
            "scheduled passed 299000",
            "scheduled passed 250",
            "requested passed 10000",
        ],
        [
            "held",
            "off",
            "requested pending 9000",
            "requested pending 9000",
            "scheduled pending 0",
            "scheduled passed 300000",
            "scheduled failed 2000",
            "requested pending 9000",
            "requested pending 250",
            "scheduled failed 2000",
        ],
        [
            "held",
            "off",
            "requested passed 9000",
            "requested passed 9000",
            "scheduled pending 0",
            "scheduled passed 300000",
            "scheduled failed 2000",
            "requested passed 9000",
            "requested passed 250",
            "scheduled failed 2000",
        ],
    ];
    for (state, row) in expected.iter().enumerate() {
        for (event, expected) in EVENTS.iter().zip(row) {
            let mut trials = states();
            let (name, trial) = &mut trials[state];
            let now = trial.at(1000);
            apply(trial, *event, now);
            assert_eq!(trial.describe(now), *expected, "{name}, {event:?}");
        }
    }
}

#[test]
fn probe_is_repeated_after_the_interval() {
    let mut trial = Trial::new();
    let id = trial.step(0, "inactive", passed(99)).unwrap();
    assert_eq!(trial.state(), ProbeState::Pending);
    assert_eq!(trial.step(0, "activating", passed(99)), None);
    assert_eq!(trial.step(1, "inactive", passed(id)), None);
    assert_eq!(trial.state(), ProbeState::Passed);
    assert_eq!(trial.step(300, "inactive", passed(id)), None);
    assert!(trial.step(301, "inactive", passed(id)).is_some());
    // The last result stays until the next report.
    assert_eq!(trial.state(), ProbeState::Passed);
}

#[test]
fn failures_back_off_up_to_the_interval() {
    let mut trial = Trial::new();
    let mut id = trial.step(0, "inactive", None).unwrap();
    let mut now = 0;
    for delay in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        assert_eq!(trial.step(now, "inactive", failed(id)), None);
        assert_eq!(trial.state(), ProbeState::Failed);
        assert_eq!(trial.step(now + delay - 1, "inactive", failed(id)), None);
        now += delay;
        id = trial.step(now, "inactive", failed(id)).unwrap();
    }
    assert_eq!(trial.step(now, "inactive", passed(id)), None);
    assert_eq!(trial.state(), ProbeState::Passed);
    assert_eq!(trial.step(now + 299, "inactive", passed(id)), None);
}

#[test]
fn changed_network_is_probed_once_the_unit_stopped() {
    let mut trial = Trial::new();
    let id = trial.step(0, "inactive", None).unwrap();
    trial.step(1, "inactive", passed(id));
    trial.desired = other_desired();
    assert_eq!(trial.step(2, "active", passed(id)), None);
    assert_eq!(trial.state(), ProbeState::Pending);
    assert!(trial.step(3, "inactive", passed(id)).is_some());
}

#[test]
fn probe_without_report_has_failed() {
    let mut trial = Trial::new();
    trial.step(0, "inactive", None).unwrap();
    assert_eq!(trial.step(9, "inactive", None), None);
    assert_eq!(trial.step(11, "activating", None), None);
    assert_eq!(trial.state(), ProbeState::Pending);
    assert_eq!(trial.step(12, "failed", None), None);
    assert_eq!(trial.state(), ProbeState::Failed);
    assert!(trial.step(14, "failed", None).is_some());
}

#[test]
fn expedited_probe_keeps_the_minimum_gap() {
    let mut trial = Trial::new();
    let id = trial.step(0, "inactive", None).unwrap();
    trial.step(1, "inactive", passed(id));
    trial.scheduler.expedite(trial.at(2_000));
    assert_eq!(trial.scheduler.due(), Some(trial.at(11_000)));
    trial.scheduler.expedite(trial.at(20_000));
    assert_eq!(trial.scheduler.due(), Some(trial.at(11_000)));
}

#[test]
fn running_unit_is_checked_again_after_a_delay() {
    let mut trial = Trial::new();
    assert_eq!(trial.step(0, "active", None), None);
    assert_eq!(trial.scheduler.due(), Some(trial.at(250)));
    let id = trial.step(1, "inactive", None).unwrap();
    // The probe runs longer than the timeout and leaves its report then.
    assert_eq!(trial.step(11, "active", None), None);
    assert_eq!(trial.scheduler.due(), Some(trial.at(11_250)));
    assert_eq!(trial.step(12, "active", passed(id)), None);
    assert_eq!(trial.state(), ProbeState::Passed);
    assert_eq!(trial.scheduler.due(), Some(trial.at(312_000)));
    assert_eq!(trial.step(13, "inactive", passed(id)), None);
}

#[test]
fn restart_resumes_a_passed_report_only() {
    let now = Instant::now();
    let request = Request { id: 7, ..desired() };
    let resumed = |report| ProbeScheduler::resume(Some(request.clone()), report, now);
    assert_eq!(resumed(passed(7)).health().state(), ProbeState::Passed);
    for report in [None, passed(6), failed(7)] {
        assert_eq!(resumed(report).health().state(), ProbeState::Pending);
    }
    let mut scheduler = resumed(passed(7));
    assert!(
        !scheduler.update(now, &request, INTERVAL, passed(7)),
        "no probe is due at once"
    );
    scheduler.hold();
    assert_eq!(scheduler.health().state(), ProbeState::Pending);
    scheduler.switch_off();
    assert_eq!(scheduler.health().state(), ProbeState::Off);
}
