//! Implements buildos-agent-reap, which removes what an agent left behind.
//!
//! systemd runs it with full privileges in the unit of the agent after the main process
//! has ended (`ExecStopPost=` of the template units).
//!
//! | file | contents |
//! |---|---|
//! | [`detect`] | finds leftovers in the output of `ip` and `iptables-save` |
//! | [`remove`] | kills processes, removes taps, rules and namespaces |

use std::process::ExitCode;

use buildos_service::log_to_journal;
use buildos_service::text::{Escaped, chain};
use lexopt::{Arg, Parser, ValueExt as _};

use remove::clean_up;

pub mod detect;
pub mod remove;

const NAME: &str = "buildos-agent-reap";
/// Exit status for invalid arguments.
const USAGE: u8 = 2;

/// Runs buildos-agent-reap.
#[must_use]
pub fn main() -> ExitCode {
    log_to_journal(NAME);
    let (unit, user) = match parse(Parser::from_env()) {
        Ok(arguments) => arguments,
        Err(error) => {
            tracing::error!("{error}: --unit=UNIT --user=USER is expected");
            return ExitCode::from(USAGE);
        }
    };
    let errors = clean_up(&unit, &user);
    for error in &errors {
        tracing::error!("{}", Escaped::received(&chain(error)));
    }
    if errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse(mut parser: Parser) -> Result<(String, String), lexopt::Error> {
    let (mut unit, mut user) = (None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("unit") => unit = Some(parser.value()?.string()?),
            Arg::Long("user") => user = Some(parser.value()?.string()?),
            Arg::Value(_) | Arg::Short(_) | Arg::Long(_) => return Err(argument.unexpected()),
        }
    }
    unit.zip(user)
        .ok_or_else(|| "an argument is missing".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_and_user_are_required() {
        let parsed = |words: &[&str]| parse(Parser::from_args(words)).map_err(|e| e.to_string());
        assert_eq!(
            parsed(&["--unit=a.service", "--user", "build"]),
            Ok(("a.service".into(), "build".into()))
        );
        assert_eq!(
            parsed(&["--unit=a.service"]),
            Err("an argument is missing".into())
        );
        assert!(parsed(&["a"]).is_err());
    }
}
