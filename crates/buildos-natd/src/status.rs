//! What is in force, and what that means for a machine on br1.

use buildos_dbus_api::nat1::State;

use crate::dnsmasq::Dnsmasq;
use crate::site::Site;

/// What was found after applying the wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Our table was read back and is the wished one, or why not.
    pub table: Result<(), String>,
    /// Both bridges forward, or what is missing.
    pub forwarding: Forwarding,
    /// What dnsmasq does, or why it could not be told what to do.
    pub dnsmasq: Result<Dnsmasq, String>,
}

/// Whether the bridges forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forwarding {
    /// Both do.
    On,
    /// This bridge is not there (yet).
    NoBridge(String),
    /// It was not tried, as the table does not stand.
    Held,
    /// It cannot be switched on; why.
    Failed(String),
}

/// The state on the bus with its one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// As nat1 has it.
    pub state: State,
    /// What is in force, or what is missing.
    pub reason: String,
}

impl Status {
    /// Nothing can be done yet.
    #[must_use]
    pub fn waiting(reason: impl Into<String>) -> Self {
        Self {
            state: State::Waiting,
            reason: reason.into(),
        }
    }

    fn degraded(reason: impl Into<String>) -> Self {
        Self {
            state: State::Degraded,
            reason: reason.into(),
        }
    }

    /// The first thing that is missing, in the order in which things are
    /// applied: what comes later often is only its consequence.
    #[must_use]
    pub fn judge(site: &Site, observed: &Observed) -> Self {
        if let Err(error) = &observed.table {
            return Self::degraded(format!("no NAT: {error}"));
        }
        match &observed.forwarding {
            Forwarding::On => {}
            Forwarding::NoBridge(name) => {
                return Self::waiting(format!("waiting for bridge {name}"));
            }
            Forwarding::Held => return Self::degraded("no NAT: nothing is forwarded"),
            Forwarding::Failed(error) => {
                return Self::degraded(format!("nothing is forwarded: {error}"));
            }
        }
        match &observed.dnsmasq {
            Ok(Dnsmasq::Serving) => {}
            Ok(Dnsmasq::Pending(how)) => {
                return Self::waiting(format!("waiting for dnsmasq, which {how}"));
            }
            Ok(Dnsmasq::Outdated) => {
                return Self::waiting("waiting for dnsmasq to take its new configuration");
            }
            Ok(Dnsmasq::Down(why)) => {
                return Self::degraded(format!("no DHCP and DNS: dnsmasq {why}"));
            }
            Err(error) => return Self::degraded(format!("no DHCP and DNS: {error}")),
        }
        let (first, last) = site.network.machines();
        Self {
            state: State::Active,
            reason: format!(
                "{} on {} goes out through {}; DHCP hands out {first} to {last}",
                site.network.net(),
                site.private,
                site.public,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::{InterfaceName, PrivateNetwork};

    fn site() -> Site {
        Site {
            public: InterfaceName::new("br0").unwrap(),
            private: InterfaceName::new("br1").unwrap(),
            network: PrivateNetwork::new("172.23.0.1/16").unwrap(),
            dns: vec![],
        }
    }

    fn good() -> Observed {
        Observed {
            table: Ok(()),
            forwarding: Forwarding::On,
            dnsmasq: Ok(Dnsmasq::Serving),
        }
    }

    #[track_caller]
    fn check(observed: &Observed, state: State, reason: &str) {
        let status = Status::judge(&site(), observed);
        assert_eq!((status.state, status.reason.as_str()), (state, reason));
    }

    #[test]
    fn all_is_in_force() {
        check(
            &good(),
            State::Active,
            "172.23.0.0/16 on br1 goes out through br0; DHCP hands out 172.23.0.2 to 172.23.255.254",
        );
    }

    #[test]
    fn the_first_missing_part_is_named() {
        let table = Err("nf_tables refused table inet buildos".to_owned());
        let observed = Observed {
            table,
            forwarding: Forwarding::Held,
            dnsmasq: Ok(Dnsmasq::Outdated),
        };
        check(
            &observed,
            State::Degraded,
            "no NAT: nf_tables refused table inet buildos",
        );
        for (forwarding, state, reason) in [
            (
                Forwarding::NoBridge("br0".to_owned()),
                State::Waiting,
                "waiting for bridge br0",
            ),
            (
                Forwarding::Failed("cannot write x".to_owned()),
                State::Degraded,
                "nothing is forwarded: cannot write x",
            ),
        ] {
            check(
                &Observed {
                    forwarding,
                    ..good()
                },
                state,
                reason,
            );
        }
        for (dnsmasq, state, reason) in [
            (
                Ok(Dnsmasq::Pending("starts")),
                State::Waiting,
                "waiting for dnsmasq, which starts",
            ),
            (
                Ok(Dnsmasq::Outdated),
                State::Waiting,
                "waiting for dnsmasq to take its new configuration",
            ),
            (
                Ok(Dnsmasq::Down("failed".to_owned())),
                State::Degraded,
                "no DHCP and DNS: dnsmasq failed",
            ),
            (
                Err("cannot write x".to_owned()),
                State::Degraded,
                "no DHCP and DNS: cannot write x",
            ),
        ] {
            check(&Observed { dnsmasq, ..good() }, state, reason);
        }
    }
}
