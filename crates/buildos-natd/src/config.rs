//! What an operator may set, in `natd.conf.d` and as `buildos.natd.*`.

use std::time::Duration;

use buildos_service::config::Schema;
use serde::Deserialize;

/// Settings in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// `dhcp_lease_s`.
    pub lease: LeaseTime,
}

/// How long a machine on br1 may keep its address without asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct LeaseTime(u32);

/// Not a time that dnsmasq and machines can live with.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not between 120 (two minutes, dnsmasq's least) and 604800 (a week) seconds")]
pub struct NotALeaseTime(u32);

impl LeaseTime {
    /// The time.
    #[must_use]
    pub fn get(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl Default for LeaseTime {
    /// An hour: machines are many and short-lived, their addresses should
    /// come back soon; those that live longer renew.
    fn default() -> Self {
        Self(3600)
    }
}

impl TryFrom<u32> for LeaseTime {
    type Error = NotALeaseTime;

    fn try_from(seconds: u32) -> Result<Self, Self::Error> {
        match seconds {
            120..=604_800 => Ok(Self(seconds)),
            _ => Err(NotALeaseTime(seconds)),
        }
    }
}

/// Every key, with where its value goes.
#[must_use]
pub fn schema() -> Schema<Settings> {
    Schema::new("natd").key(
        "dhcp_lease_s",
        "Seconds that a machine on br1 may keep its address without asking again (3600).",
        |settings: &mut Settings, lease| settings.lease = lease,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_service::config::{Fragment, Origin, evaluate};

    fn load(text: &str) -> (Settings, Vec<String>) {
        let fragment = Fragment {
            origin: Origin::File("natd.toml".into()),
            text: text.to_owned(),
        };
        let loaded = evaluate(&schema(), &[fragment]);
        let problems = loaded.problems.iter().map(ToString::to_string).collect();
        (loaded.settings, problems)
    }

    #[test]
    fn the_lease_time_is_taken_within_its_bounds() {
        let (settings, problems) = load("dhcp_lease_s = 600");
        assert_eq!(settings.lease.get(), Duration::from_secs(600));
        assert_eq!(problems, [""; 0]);
        let (settings, problems) = load("dhcp_lease_s = 60");
        assert_eq!(settings, Settings::default());
        assert!(
            problems[0].contains("60 is not between 120"),
            "{problems:?}"
        );
    }
}
