//! Decides which of the resources that machines share are nearly used up.
//!
//! | resource | short of it |
//! |---|---|
//! | addresses | nine tenths of the addresses have a lease |
//! | connections | the kernel tracks nine tenths of its largest number of connections |
//! | machine-connections | a machine opened a connection above its limit |
//! | names | a machine asked for names faster than it may |
//!
//! A shortage of the first two ends below 85 per cent. All end only after
//! [`QUIET_READINGS`] readings, so that a value at the border does not make the state change
//! at each of them.
//!
//! # Limits
//!
//! A shortage is logged at most once in [`LOG_INTERVAL`], whatever machines do.

use std::collections::HashMap;
use std::time::Duration;

use buildos_dbus_api::nat1::Resource;
use tokio::time::Instant;

/// Readings without a shortage after which it ends.
const QUIET_READINGS: u32 = 2;
/// Time between two log lines about the begin of one shortage.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Shortages with one line each for operators.
pub type Shortages = Vec<(Resource, String)>;

/// Use of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Use {
    pub used: u32,
    pub limit: u32,
}

impl Use {
    fn is_above(self, percent: u64) -> bool {
        u64::from(self.used) * 100 >= u64::from(self.limit) * percent
    }
}

/// Values read at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readings {
    /// Leases of machines; [`None`] if they cannot be read.
    pub addresses: Option<Use>,
    /// Tracked connections; [`None`] without connection tracking.
    pub connections: Option<Use>,
    /// Packets dropped because a machine had too many connections; [`None`] without the
    /// table.
    pub dropped_connections: Option<u64>,
    /// Packets dropped because a machine asked for too many names.
    pub dropped_names: Option<u64>,
}

/// A change of the shortages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The resource.
    pub resource: Resource,
    /// The line for operators if the shortage began, or [`None`] if it ended.
    pub began: Option<String>,
    /// True if the change is to be logged.
    pub is_logged: bool,
}

/// Follows the shortages from reading to reading.
#[derive(Debug, Default)]
pub struct Monitor {
    states: HashMap<Resource, State>,
    last: Option<Readings>,
}

#[derive(Debug, Default)]
struct State {
    /// The line for operators during a shortage.
    active: Option<String>,
    quiet: u32,
    logged: Option<Instant>,
    is_logged: bool,
}

/// Judgement of one reading.
enum Level {
    Short(String),
    Between,
    Enough,
}

impl Monitor {
    /// Returns the shortages.
    #[must_use]
    pub fn shortages(&self) -> Shortages {
        let active = Resource::ALL.iter().filter_map(|resource| {
            let line = self.states.get(resource)?.active.clone()?;
            Some((*resource, line))
        });
        active.collect()
    }

    /// Takes in a reading, and returns what changed.
    pub fn update(&mut self, readings: Readings, now: Instant) -> Vec<Change> {
        let last = self.last.replace(readings).unwrap_or(readings);
        let grew = |now: Option<u64>, before: Option<u64>| match (now, before) {
            (Some(now), Some(before)) => now > before,
            (Some(_) | None, _) => false,
        };
        let levels = [
            (
                Resource::Addresses,
                share(readings.addresses, |limit| {
                    format!("nine tenths of the {limit} addresses for machines have a lease")
                }),
            ),
            (
                Resource::Connections,
                share(readings.connections, |limit| {
                    format!("the kernel tracks nine tenths of at most {limit} connections")
                }),
            ),
            (
                Resource::MachineConnections,
                event(
                    grew(readings.dropped_connections, last.dropped_connections),
                    "a machine is at its limit of connections, and its new ones are dropped",
                ),
            ),
            (
                Resource::Names,
                event(
                    grew(readings.dropped_names, last.dropped_names),
                    "a machine asks for names faster than it may, and its questions are dropped",
                ),
            ),
        ];
        let mut changes = Vec::new();
        for (resource, level) in levels {
            let state = self.states.entry(resource).or_default();
            if let Some((began, is_logged)) = state.update(level, now) {
                changes.push(Change {
                    resource,
                    began,
                    is_logged,
                });
            }
        }
        changes
    }
}

impl State {
    /// Returns the begin or the end of the shortage, and whether to log it.
    fn update(&mut self, level: Level, now: Instant) -> Option<(Option<String>, bool)> {
        match (level, self.active.is_some()) {
            (Level::Short(line), false) => {
                self.quiet = 0;
                self.active = Some(line.clone());
                self.is_logged = self.logged.is_none_or(|last| now >= last + LOG_INTERVAL);
                if self.is_logged {
                    self.logged = Some(now);
                }
                Some((Some(line), self.is_logged))
            }
            (Level::Short(_) | Level::Between, true) => {
                self.quiet = 0;
                None
            }
            (Level::Enough, true) => {
                self.quiet += 1;
                if self.quiet < QUIET_READINGS {
                    return None;
                }
                self.active = None;
                Some((None, self.is_logged))
            }
            (Level::Between | Level::Enough, false) => None,
        }
    }
}

fn share(value: Option<Use>, line: impl Fn(u32) -> String) -> Level {
    match value {
        Some(value) if value.is_above(90) => Level::Short(line(value.limit)),
        Some(value) if value.is_above(85) => Level::Between,
        Some(_) | None => Level::Enough,
    }
}

fn event(happened: bool, line: &str) -> Level {
    match happened {
        true => Level::Short(line.to_owned()),
        false => Level::Enough,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(used: u32, dropped_names: u64) -> Readings {
        Readings {
            addresses: Some(Use { used, limit: 12 }),
            connections: Some(Use {
                used: 5,
                limit: 262_144,
            }),
            dropped_connections: Some(7),
            dropped_names: Some(dropped_names),
        }
    }

    /// Returns the shortages after each reading, two seconds apart, and the number of
    /// logged changes.
    fn follow(readings: &[Readings]) -> (Vec<Vec<Resource>>, usize) {
        let (mut monitor, start) = (Monitor::default(), Instant::now());
        let mut logged = 0;
        let seconds = (0..).step_by(2);
        let states = readings.iter().zip(seconds).map(|(readings, second)| {
            let changes = monitor.update(*readings, start + Duration::from_secs(second));
            logged += changes.iter().filter(|change| change.is_logged).count();
            monitor.shortages().into_iter().map(|s| s.0).collect()
        });
        (states.collect(), logged)
    }

    #[test]
    fn shortage_of_addresses_begins_at_nine_tenths_and_ends_below_85_per_cent() {
        let used = [10, 11, 12, 11, 10, 11, 10, 10, 10].map(|used| readings(used, 0));
        let (states, logged) = follow(&used);
        let short: Vec<_> = states.iter().map(|state| !state.is_empty()).collect();
        assert_eq!(
            short,
            [false, true, true, true, true, true, true, false, false]
        );
        assert_eq!(states[1], [Resource::Addresses]);
        assert_eq!(logged, 2);
    }

    #[test]
    fn shortage_of_names_lasts_while_counter_grows() {
        // The counter is smaller after the table was installed again.
        let dropped = [40, 40, 50, 60, 60, 60, 0, 0, 1].map(|dropped| readings(0, dropped));
        let (states, logged) = follow(&dropped);
        let short: Vec<_> = states.iter().map(|state| !state.is_empty()).collect();
        assert_eq!(
            short,
            [false, false, true, true, true, false, false, false, true]
        );
        assert_eq!(states[2], [Resource::Names]);
        assert_eq!(logged, 2, "begin and end once a minute");
    }

    #[test]
    fn missing_values_are_no_shortage() {
        let none = Readings {
            addresses: None,
            connections: None,
            dropped_connections: None,
            dropped_names: None,
        };
        assert_eq!(follow(&[none, none]), (vec![vec![], vec![]], 0));
    }
}
