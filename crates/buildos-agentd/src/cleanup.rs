//! Implements buildos-agent-reap, which removes what an agent left behind.
//!
//! systemd runs it as `buildos-agent-reap@AGENT.service` after the unit of the agent has
//! ended. It gets nothing from the environment of the agent.
//!
//! | file | contents |
//! |---|---|
//! | [`detect`] | finds leftovers in the output of `ip` and `iptables-save` |
//! | [`remove`] | removes taps, rules and namespace files |

use std::process::ExitCode;

use buildos_service::log_to_journal;
use buildos_service::text::chain;
use lexopt::{Arg, Parser, ValueExt as _};

use crate::agent::id::{Id, IdError};
use crate::messages;
use remove::clean_up;

pub mod detect;
pub mod remove;

const NAME: &str = "buildos-agent-reap";
/// Suffix of the instance of the unit after a failure of the agent.
const FAILED: &str = "@failed";
/// Exit status for invalid arguments.
const USAGE: u8 = 2;

/// Runs buildos-agent-reap.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal(NAME);
    let agent = match parse(Parser::from_env()) {
        Ok(agent) => agent,
        Err(error) => {
            tracing::error!("{error}: --agent=KIND@NAME is expected");
            return ExitCode::from(USAGE);
        }
    };
    match clean_up(&agent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            messages::not_cleaned_up(&agent, &chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn parse(mut parser: Parser) -> Result<Id, lexopt::Error> {
    let mut agent = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("agent") => {
                let instance = parser.value()?.string()?;
                let name = instance.strip_suffix(FAILED).unwrap_or(&instance);
                agent = Some(name.parse().map_err(|e: IdError| e.to_string())?);
            }
            Arg::Value(_) | Arg::Short(_) | Arg::Long(_) => return Err(argument.unexpected()),
        }
    }
    agent.ok_or_else(|| "an argument is missing".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_is_required() {
        let parsed = |words: &[&str]| parse(Parser::from_args(words)).map_err(|e| e.to_string());
        let agent: Id = "bbot@a".parse().unwrap();
        assert_eq!(parsed(&["--agent=bbot@a"]), Ok(agent.clone()));
        assert_eq!(parsed(&["--agent", "bbot@a@failed"]), Ok(agent));
        assert_eq!(parsed(&[]), Err("an argument is missing".into()));
        assert!(parsed(&["--agent=x.service"]).is_err());
        assert!(parsed(&["a"]).is_err());
    }
}
