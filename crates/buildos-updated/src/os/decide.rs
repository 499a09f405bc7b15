//! Decides what holds an update of the operating system. Pure.
//!
//! | cause | held until | `update now` overrules it |
//! |---|---|---|
//! | policy | `update.method`, the rollout or the boot server changes | the rollout and the attempt |
//! | window | a window opens | yes |
//! | operator | an operator resumes what was drained | yes |
//! | no way back | the pair that runs is known, and at the server | no |
//! | memory | a reboot is possible instead | no |
//! | fault | three handovers failed: until a different pair is offered | yes |

use buildos_dbus_api::update1::Cause;

use super::window::Windows;
use crate::settings::Method;

/// Something that holds an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    #[allow(missing_docs)]
    pub cause: Cause,
    /// One line for operators.
    pub reason: String,
}

impl Hold {
    /// Returns a hold.
    #[must_use]
    pub fn new(cause: Cause, reason: impl Into<String>) -> Self {
        Self {
            cause,
            reason: reason.into(),
        }
    }
}

/// What is known about a host and its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `update.method`.
    pub method: Method,
    /// True if an operator asked for the update now.
    pub is_now: bool,
    /// Percentage of the rollout, if it leaves this host out.
    pub left_out: Option<u8>,
    /// The windows, or the reason for which they are not known.
    pub windows: Result<Windows, String>,
    /// Reason for which the pair that runs is not known.
    pub unknown: Option<String>,
    /// Reason for which kexec is not possible: RAM.
    pub memory: Option<String>,
    /// True if a record of this host outlives a reboot.
    pub is_kept: bool,
    /// True if the host was rebooted for this pair before, and it did not start.
    pub was_rebooted: bool,
    /// Reason of the last handover of this pair, if too many failed.
    pub failed: Option<String>,
    /// Agents that an operator or a requirement has drained or stopped.
    pub drained: Vec<String>,
}

/// Returns how the update takes place, or what holds it.
///
/// # Errors
///
/// The first cause.
pub fn decide(facts: &Facts) -> Result<Method, Hold> {
    let policy = |reason: String| Err(Hold::new(Cause::Policy, reason));
    if facts.method == Method::Off {
        return policy("update.method is off".to_owned());
    }
    if let Some(reason) = &facts.unknown {
        return Err(Hold::new(Cause::NoWayBack, reason.clone()));
    }
    if let Some(percent) = facts.left_out.filter(|_| !facts.is_now) {
        return policy(left_out(percent));
    }
    match closed(&facts.windows) {
        Some(hold) if hold.cause == Cause::Window && facts.is_now => {}
        Some(hold) => return Err(hold),
        None => {}
    }
    if let Some(reason) = facts.failed.as_ref().filter(|_| !facts.is_now) {
        let reason = format!("three handovers failed: {reason}; try buildosctl update now");
        return Err(Hold::new(Cause::Fault, reason));
    }
    if let (false, [_, ..]) = (facts.is_now, facts.drained.as_slice()) {
        let names = facts.drained.join(", ");
        let reason = format!("{names}: drained or stopped before, which a restart would end");
        return Err(Hold::new(Cause::Operator, reason));
    }
    match method(facts) {
        Ok(Method::Reboot) if !facts.is_now => {
            if facts.was_rebooted {
                return policy(
                    "the host was rebooted for it, but the boot server started a different one"
                        .to_owned(),
                );
            }
            if !facts.is_kept {
                return policy(
                    "it needs a reboot, and without a state volume the host could reboot \
                     again and again"
                        .to_owned(),
                );
            }
            Ok(Method::Reboot)
        }
        method => method,
    }
}

/// Returns the method that the host is capable of.
fn method(facts: &Facts) -> Result<Method, Hold> {
    if facts.method == Method::Reboot {
        return Ok(Method::Reboot);
    }
    match &facts.memory {
        None => Ok(Method::Kexec),
        Some(reason) if !facts.is_kept && !facts.is_now => {
            Err(Hold::new(Cause::Memory, reason.clone()))
        }
        Some(_) => Ok(Method::Reboot),
    }
}

/// Returns the reason of a hold by the rollout.
#[must_use]
pub fn left_out(percent: u8) -> String {
    format!("the rollout to {percent} % of the hosts leaves this host out")
}

/// Returns the hold of windows that are closed or not known.
#[must_use]
pub fn closed(windows: &Result<Windows, String>) -> Option<Hold> {
    match windows {
        Err(reason) => Some(Hold::new(Cause::Policy, reason.clone())),
        Ok(Windows::Open(_)) => None,
        Ok(Windows::Closed(Some(next))) => {
            let next = buildos_channel::Timestamp::from_seconds(*next);
            let reason = format!("the next window opens at {next}");
            Some(Hold::new(Cause::Window, reason))
        }
        Ok(Windows::Closed(None)) => Some(Hold::new(Cause::Window, "no window opens any more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            method: Method::Kexec,
            is_now: false,
            left_out: None,
            windows: Ok(Windows::Open(u64::MAX)),
            unknown: None,
            memory: None,
            is_kept: false,
            was_rebooted: false,
            failed: None,
            drained: Vec::new(),
        }
    }

    #[test]
    fn each_cause_holds_and_now_overrules_some() {
        let text = |text: &str| Some(text.to_owned());
        // The facts, the cause, and the method after `update now`.
        let cases: [(Facts, Option<Cause>, Option<Method>); 11] = [
            (facts(), None, Some(Method::Kexec)),
            (
                Facts {
                    method: Method::Off,
                    ..facts()
                },
                Some(Cause::Policy),
                None,
            ),
            (
                Facts {
                    left_out: Some(10),
                    ..facts()
                },
                Some(Cause::Policy),
                Some(Method::Kexec),
            ),
            (
                Facts {
                    windows: Ok(Windows::Closed(Some(60))),
                    ..facts()
                },
                Some(Cause::Window),
                Some(Method::Kexec),
            ),
            (
                Facts {
                    windows: Err("bad".to_owned()),
                    ..facts()
                },
                Some(Cause::Policy),
                None,
            ),
            (
                Facts {
                    drained: vec!["bbot@x".to_owned()],
                    ..facts()
                },
                Some(Cause::Operator),
                Some(Method::Kexec),
            ),
            (
                Facts {
                    failed: text("refused"),
                    ..facts()
                },
                Some(Cause::Fault),
                Some(Method::Kexec),
            ),
            (
                Facts {
                    unknown: text("by hand"),
                    ..facts()
                },
                Some(Cause::NoWayBack),
                None,
            ),
            (
                Facts {
                    memory: text("RAM"),
                    ..facts()
                },
                Some(Cause::Memory),
                Some(Method::Reboot),
            ),
            (
                Facts {
                    method: Method::Reboot,
                    ..facts()
                },
                Some(Cause::Policy),
                Some(Method::Reboot),
            ),
            (
                Facts {
                    method: Method::Reboot,
                    is_kept: true,
                    was_rebooted: true,
                    ..facts()
                },
                Some(Cause::Policy),
                Some(Method::Reboot),
            ),
        ];
        for (facts, cause, now) in cases {
            let held = decide(&facts).err().map(|hold| hold.cause);
            assert_eq!(held, cause, "{facts:?}");
            let facts = Facts {
                is_now: true,
                ..facts
            };
            assert_eq!(decide(&facts).ok(), now, "{facts:?}");
        }
    }

    #[test]
    fn host_with_too_little_ram_reboots_if_it_remembers_that() {
        let short = Facts {
            memory: Some("RAM".to_owned()),
            is_kept: true,
            ..facts()
        };
        assert_eq!(decide(&short), Ok(Method::Reboot));
    }
}
