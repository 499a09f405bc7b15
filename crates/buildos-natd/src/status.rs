//! Defines the observed state, and derives the status: whether a machine on br1 has a
//! working network.

use buildos_dbus_api::nat1::{ProbeState, State};
use buildos_probe::Outcome;
use buildos_service::text;

use crate::audit::Finding;
use crate::dnsmasq::config;
use crate::dnsmasq::observe::Dnsmasq;
use crate::probe_scheduler::Health;
use crate::uplink_network::UplinkNetwork;

/// The observed state after reconciliation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Ok if the table read back is the desired one; otherwise the reason.
    pub table: Result<(), String>,
    /// Forwarding of both bridges.
    pub forwarding: Forwarding,
    /// If br1 and its ports are as desired: true if bridged frames pass iptables.
    /// Otherwise the reason.
    pub bridge: Result<bool, String>,
    /// The kernel's shared tables have their limits; or why not.
    pub limits: Result<(), String>,
    /// State of dnsmasq, or the reason why its configuration cannot be written.
    pub dnsmasq: Result<Dnsmasq, String>,
    /// Rules of other tables that drop packets of machines.
    pub foreign: Vec<Finding>,
    /// The result of probing.
    pub probe: Health,
}

impl Observed {
    /// Returns true if every requirement of a probe is met. A starting dnsmasq is enough:
    /// the probe takes as long to start, and its DHCP client repeats its messages.
    #[must_use]
    pub fn can_be_probed(&self, network: &UplinkNetwork) -> bool {
        self.table.is_ok()
            && self.forwarding == Forwarding::On
            && matches!(self.dnsmasq, Ok(Dnsmasq::Serving | Dnsmasq::Starting))
            && network.uplink.is_ok()
    }
}

/// Forwarding of the two bridges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forwarding {
    /// Both forward.
    On,
    /// This bridge does not exist.
    NoBridge(String),
    /// Unchanged, because the table cannot be read.
    Held,
    /// Neither forwards, because the table is not the desired one.
    Closed,
    /// Neither forwards, and br1 passes no frame, because the kernel refuses the closed table
    /// for this reason.
    CutOff(String),
    /// Neither forwards, and machines reach all ports of the host, for this reason.
    Exposed(String),
    /// Cannot be switched, for this reason.
    Failed(String),
}

/// The state on the bus, and its reason on one line for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The state as published by nat1.
    pub state: State,
    /// What is active, or which requirement is missing.
    pub reason: String,
}

impl Status {
    /// Creates the status of a natd that waits for a requirement.
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

    /// Returns the status. The first missing part decides, in the order of
    /// reconciliation: later faults are often its consequence.
    #[must_use]
    pub fn judge(network: &UplinkNetwork, observed: &Observed) -> Self {
        if let Err(error) = &observed.table {
            return Self::degraded(match &observed.forwarding {
                Forwarding::Closed => format!("no NAT, and nothing is forwarded: {error}"),
                Forwarding::CutOff(failure) => format!(
                    "no NAT, nothing is forwarded, and {} passes no frame ({failure}): {error}",
                    network.private_bridge
                ),
                Forwarding::Exposed(failure) => format!(
                    "no NAT, nothing is forwarded, and machines reach all ports of the host \
                     ({failure}): {error}"
                ),
                Forwarding::Failed(failure) => {
                    format!("no NAT, and forwarding cannot be switched off ({failure}): {error}")
                }
                Forwarding::On | Forwarding::NoBridge(_) | Forwarding::Held => {
                    format!("no NAT: {error}")
                }
            });
        }
        match &observed.forwarding {
            Forwarding::On => {}
            Forwarding::NoBridge(name) => {
                return Self::waiting(format!("waiting for bridge {name}"));
            }
            Forwarding::Held
            | Forwarding::Closed
            | Forwarding::CutOff(_)
            | Forwarding::Exposed(_) => {
                return Self::degraded("no NAT: nothing is forwarded");
            }
            Forwarding::Failed(error) => {
                return Self::degraded(format!("nothing is forwarded: {error}"));
            }
        }
        if let Err(error) = &observed.bridge {
            return Self::degraded(format!(
                "{} is misconfigured: {error}",
                network.private_bridge
            ));
        }
        if let Err(error) = &observed.limits {
            return Self::degraded(format!("machines can use up tables of the kernel: {error}"));
        }
        if let Some(finding) = observed.foreign.iter().find(|finding| finding.certain) {
            return Self::degraded(format!("machines are cut off: {finding}"));
        }
        match &observed.dnsmasq {
            Ok(Dnsmasq::Serving) => {}
            Ok(Dnsmasq::Starting) => return Self::waiting("waiting for dnsmasq, which starts"),
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
        if let Err(why) = &network.uplink {
            return Self::waiting(format!(
                "waiting for an uplink: {}",
                text::Escaped::received(why)
            ));
        }
        match observed.probe.state() {
            ProbeState::Off | ProbeState::Passed => {}
            ProbeState::Pending => {
                let bridge = &network.private_bridge;
                return Self::waiting(format!("waiting for the first probe on {bridge}"));
            }
            ProbeState::Failed => return Self::degraded(failed(observed)),
        }
        let (first, last) = config::range(network.private_network);
        Self {
            state: State::Active,
            reason: format!(
                "{} on {} goes out through {}; DHCP hands out {first} to {last}",
                network.private_network.network(),
                network.private_bridge,
                network.public_bridge,
            ),
        }
    }
}

/// Returns the reason of a failed probe, with a possible cause.
fn failed(observed: &Observed) -> String {
    let mut reason = match observed.probe.report.as_ref().map(|report| &report.outcome) {
        Some(Outcome::Failed { step, reason }) => {
            format!(
                "no machine could work here: step {} of the probe: {reason}",
                step.as_str()
            )
        }
        Some(Outcome::Passed { .. }) | None => "no machine could work here".to_owned(),
    };
    if let Some(suspect) = observed.foreign.first() {
        reason.push_str(&format!("; {suspect}"));
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_probe::{Report, Step};

    fn good() -> Observed {
        Observed {
            table: Ok(()),
            forwarding: Forwarding::On,
            bridge: Ok(false),
            limits: Ok(()),
            dnsmasq: Ok(Dnsmasq::Serving),
            foreign: vec![],
            probe: health(ProbeState::Passed, None),
        }
    }

    fn health(state: ProbeState, outcome: Option<Outcome>) -> Health {
        Health {
            state: Some(state),
            report: outcome.map(|outcome| Report {
                id: 1,
                finished_us: 1,
                took_ms: 1,
                outcome,
            }),
        }
    }

    fn finding(certain: bool) -> Finding {
        Finding {
            table: "ip filter".to_owned(),
            chain: "FORWARD".to_owned(),
            hook: "hook forward, policy drop".to_owned(),
            traffic: vec!["packets from machines to the outside"],
            certain,
        }
    }

    #[track_caller]
    fn check(observed: &Observed, state: State, reason: &str) {
        let status = Status::judge(&UplinkNetwork::example(), observed);
        assert_eq!((status.state, status.reason.as_str()), (state, reason));
    }

    #[test]
    fn complete_state_is_active() {
        check(
            &good(),
            State::Active,
            "172.23.0.0/16 on br1 goes out through br0; DHCP hands out 172.23.0.2 to 172.23.255.254",
        );
    }

    #[test]
    fn first_missing_part_is_the_reason() {
        let table = Err("nf_tables refused table inet buildos".to_owned());
        let observed = Observed {
            table,
            forwarding: Forwarding::Held,
            dnsmasq: Ok(Dnsmasq::Outdated),
            ..good()
        };
        check(
            &observed,
            State::Degraded,
            "no NAT: nf_tables refused table inet buildos",
        );
        for (forwarding, reason) in [
            (
                Forwarding::CutOff("EPERM".to_owned()),
                "no NAT, nothing is forwarded, and br1 passes no frame (EPERM): nf_tables refused \
                 table inet buildos",
            ),
            (
                Forwarding::Exposed("EPERM".to_owned()),
                "no NAT, nothing is forwarded, and machines reach all ports of the host (EPERM): \
                 nf_tables refused table inet buildos",
            ),
            (
                Forwarding::Closed,
                "no NAT, and nothing is forwarded: nf_tables refused table inet buildos",
            ),
            (
                Forwarding::Failed("cannot write x".to_owned()),
                "no NAT, and forwarding cannot be switched off (cannot write x): nf_tables \
                 refused table inet buildos",
            ),
        ] {
            let observed = Observed {
                forwarding,
                ..observed.clone()
            };
            check(&observed, State::Degraded, reason);
        }
        let observed = Observed {
            limits: Err("cannot write x".to_owned()),
            ..good()
        };
        check(
            &observed,
            State::Degraded,
            "machines can use up tables of the kernel: cannot write x",
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
                Ok(Dnsmasq::Starting),
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

    #[test]
    fn foreign_drop_comes_before_its_consequences() {
        let observed = Observed {
            foreign: vec![finding(true)],
            probe: health(ProbeState::Pending, None),
            ..good()
        };
        check(
            &observed,
            State::Degraded,
            "machines are cut off: chain FORWARD in table ip filter (hook forward, policy drop) \
             drops packets from machines to the outside",
        );
        // An uncertain finding does not change the status.
        let observed = Observed {
            foreign: vec![finding(false)],
            ..good()
        };
        assert_eq!(
            Status::judge(&UplinkNetwork::example(), &observed).state,
            State::Active
        );
    }

    #[test]
    fn probe_result_decides_last() {
        let pending = Observed {
            probe: health(ProbeState::Pending, None),
            ..good()
        };
        check(
            &pending,
            State::Waiting,
            "waiting for the first probe on br1",
        );
        let outcome = Outcome::Failed {
            step: Step::Names,
            reason: "172.23.0.1 does not answer".to_owned(),
        };
        let mut failed = Observed {
            probe: health(ProbeState::Failed, Some(outcome)),
            ..good()
        };
        let reason =
            "no machine could work here: step names of the probe: 172.23.0.1 does not answer";
        check(&failed, State::Degraded, reason);
        failed.foreign = vec![finding(false)];
        let reason = format!(
            "{reason}; chain FORWARD in table ip filter (hook forward, policy drop) can drop \
             packets from machines to the outside"
        );
        check(&failed, State::Degraded, &reason);
        let off = Observed {
            probe: health(ProbeState::Off, None),
            ..good()
        };
        assert_eq!(
            Status::judge(&UplinkNetwork::example(), &off).state,
            State::Active
        );
    }

    #[test]
    fn probe_needs_serving_or_starting_dnsmasq() {
        let possible = |dnsmasq| {
            let observed = Observed {
                dnsmasq: Ok(dnsmasq),
                ..good()
            };
            observed.can_be_probed(&UplinkNetwork::example())
        };
        assert!(possible(Dnsmasq::Serving) && possible(Dnsmasq::Starting));
        assert!(!possible(Dnsmasq::Pending("does not run")) && !possible(Dnsmasq::Outdated));
    }

    #[test]
    fn missing_uplink_makes_natd_wait() {
        let network = UplinkNetwork {
            uplink: Err("no carrier on\neth0".to_owned()),
            ..UplinkNetwork::example()
        };
        let status = Status::judge(&network, &good());
        assert_eq!(status.state, State::Waiting);
        assert_eq!(
            status.reason,
            "waiting for an uplink: no carrier on\\u{a}eth0"
        );
        assert!(!good().can_be_probed(&network));
    }
}
