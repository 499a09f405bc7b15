//! Decides whether a window for OS updates is open.
//!
//! A window is a calendar expression of systemd.time(7) and a duration:
//! `Mon..Fri 22:00 Europe/Berlin + 8h`. systemd-analyze(1) evaluates the expression.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::programs::calendar;

/// Shortest duration in hours: buildos-updated looks every hour.
pub const SHORTEST: u32 = 2;
/// Longest duration in hours.
pub const LONGEST: u32 = 168;

/// A time in which OS updates may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Calendar expression of its starts.
    calendar: String,
    /// Hours.
    hours: u32,
}

/// A text is not a [`Window`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a window such as \"Mon..Fri 22:00 + 8h\": a calendar expression of systemd.time(7), and {SHORTEST} to {LONGEST} hours"
)]
pub struct InvalidWindow;

impl FromStr for Window {
    type Err = InvalidWindow;

    fn from_str(text: &str) -> Result<Self, InvalidWindow> {
        let (calendar, hours) = text.rsplit_once('+').ok_or(InvalidWindow)?;
        let hours = hours.trim().strip_suffix('h').ok_or(InvalidWindow)?;
        let hours = hours.parse().map_err(|_| InvalidWindow)?;
        let calendar = calendar.trim();
        let is_text = calendar
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic());
        let ok = is_text && !calendar.is_empty() && !calendar.starts_with('-');
        match ok && calendar.len() <= 200 && (SHORTEST..=LONGEST).contains(&hours) {
            true => Ok(Self {
                calendar: calendar.to_owned(),
                hours,
            }),
            false => Err(InvalidWindow),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} + {}h", self.calendar, self.hours)
    }
}

impl Window {
    const fn seconds(&self) -> u64 {
        self.hours as u64 * 3600
    }
}

/// What is known about the windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Windows {
    /// One is open until this time, in seconds since 1970. Without windows there is no end.
    Open(u64),
    /// None is open; the next one opens then, in seconds since 1970, if one does.
    Closed(Option<u64>),
}

/// Evaluates windows at the time `now`, in seconds since 1970.
///
/// # Errors
///
/// systemd-analyze(1) refuses an expression.
pub fn evaluate(windows: &[Window], now: u64) -> Result<Windows, String> {
    if windows.is_empty() {
        return Ok(Windows::Open(u64::MAX));
    }
    let mut starts = Vec::new();
    for window in windows {
        // The last start that leaves the window open.
        let base = now.saturating_sub(window.seconds());
        let start = calendar::next(Path::new("systemd-analyze"), &window.calendar, base)
            .map_err(|reason| format!("window {window}: {reason}"))?;
        starts.extend(start.map(|start| (start, window.seconds())));
    }
    Ok(judge(&starts, now))
}

/// Judges starts, each with the seconds that its window is open.
fn judge(starts: &[(u64, u64)], now: u64) -> Windows {
    let open = starts.iter().filter(|(start, _)| *start <= now);
    let end = open
        .map(|(start, seconds)| start.saturating_add(*seconds))
        .max();
    match end {
        Some(end) => Windows::Open(end),
        None => Windows::Closed(starts.iter().map(|(start, _)| *start).min()),
    }
}

/// An open window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open<'a> {
    windows: &'a [Window],
    /// Seconds since 1970.
    end: u64,
}

impl<'a> Open<'a> {
    /// Returns what is open until `end`, in seconds since 1970.
    #[must_use]
    pub const fn until(windows: &'a [Window], end: u64) -> Self {
        Self { windows, end }
    }

    /// Returns true once no window is open. A window that begins where one ends continues it.
    pub fn is_over(&mut self, now: u64) -> bool {
        self.ended(now, evaluate)
    }

    fn ended(
        &mut self,
        now: u64,
        evaluate: impl Fn(&[Window], u64) -> Result<Windows, String>,
    ) -> bool {
        if now < self.end {
            return false;
        }
        match evaluate(self.windows, now) {
            Ok(Windows::Open(end)) => {
                self.end = end;
                false
            }
            Ok(Windows::Closed(_)) | Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_an_expression_and_hours() {
        let window: Window = "Mon..Fri 22:00 Europe/Berlin + 8h".parse().unwrap();
        assert_eq!(window.calendar, "Mon..Fri 22:00 Europe/Berlin");
        assert_eq!(window.to_string(), "Mon..Fri 22:00 Europe/Berlin + 8h");
        for bad in [
            "",
            "22:00",
            "22:00 + 8",
            "+ 8h",
            "22:00 + 1h",
            "22:00 + 169h",
            "--x + 8h",
        ] {
            assert_eq!(bad.parse::<Window>(), Err(InvalidWindow), "{bad}");
        }
    }

    #[test]
    fn window_is_open_from_its_start_to_its_end() {
        assert_eq!(judge(&[(100, 50), (120, 50)], 130), Windows::Open(170));
        assert_eq!(judge(&[(100, 50)], 100), Windows::Open(150));
        assert_eq!(
            judge(&[(300, 50), (200, 50)], 99),
            Windows::Closed(Some(200))
        );
        assert_eq!(judge(&[], 99), Windows::Closed(None));
        assert_eq!(evaluate(&[], 5), Ok(Windows::Open(u64::MAX)));
    }

    #[test]
    fn windows_that_touch_are_one() {
        let next = |_: &[Window], now| {
            Ok(match now < 200 {
                true => Windows::Open(200),
                false => Windows::Closed(None),
            })
        };
        let mut open = Open::until(&[], 100);
        let over = [99, 100, 199, 200].map(|now| open.ended(now, next));
        assert_eq!(over, [false, false, false, true]);
    }
}
