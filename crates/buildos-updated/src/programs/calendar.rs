//! Evaluates calendar expressions with systemd-analyze(1).

use std::path::Path;
use std::process::Command;

use buildos_channel::Timestamp;
use buildos_service::text::chain;

use super::capture;

/// Returns the first time after `base` that an expression of systemd.time(7) names, if there is
/// one. Both are seconds since 1970. An expression without a time zone is in that of the host.
///
/// # Errors
///
/// The expression is invalid.
pub fn next(program: &Path, expression: &str, base: u64) -> Result<Option<u64>, String> {
    let mut command = Command::new(program);
    command
        .env("LC_ALL", "C")
        .args(["calendar", "--iterations=1"]);
    command.arg(format!("--base-time=@{base}")).arg(expression);
    let output = capture::output(&mut command, "systemd", 4096).map_err(|error| chain(&error))?;
    Ok(parse(&String::from_utf8_lossy(&output)))
}

/// Parses the output: a time in the zone of the host, and then in UTC, unless that is the same.
fn parse(output: &str) -> Option<u64> {
    let mut lines = output.lines().filter_map(|line| line.split_once(": "));
    lines.find_map(|(label, time)| {
        let label = label.trim();
        if label != "Next elapse" && label != "(in UTC)" {
            return None;
        }
        let mut words = time.split_ascii_whitespace();
        let (_weekday, date, time) = (words.next()?, words.next()?, words.next()?);
        match words.next()? {
            "UTC" => {
                let time: Timestamp = format!("{date}T{time}Z").parse().ok()?;
                Some(time.seconds())
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_that_of_utc() {
        let utc = "Normalized form: *-*-* 22:00:00\n    Next elapse: Mon 2026-11-30 22:00:00 UTC\n       From now: 1h left\n";
        assert_eq!(parse(utc), Some(1_796_076_000));
        let local = "    Next elapse: Mon 2026-11-30 23:00:00 CET\n       (in UTC): Mon 2026-11-30 22:00:00 UTC\n";
        assert_eq!(parse(local), Some(1_796_076_000));
        assert_eq!(parse("    Next elapse: never\n"), None);
    }
}
