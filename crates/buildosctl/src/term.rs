//! Colour for people at a terminal, none for everybody else; and the forms that
//! several commands share: times and columns.

use std::io::IsTerminal as _;

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// In order.
    Good,
    /// Somebody waits, or something is out of use.
    Warning,
    /// Broken.
    Bad,
    /// A heading.
    Strong,
    /// Not to the point now.
    Weak,
}

/// Whether there is colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// Escape sequences may be written.
    pub(crate) colour: bool,
}

impl Style {
    /// No colour.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false };

    /// As the output and the environment want it: `NO_COLOR` (no-color.org) and
    /// `TERM=dumb` switch it off.
    pub(crate) fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            colour: std::io::stdout().is_terminal() && !refused && !dumb,
        }
    }

    /// The text in that tone (ECMA-48, SGR).
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "1;31",
            Tone::Strong => "1",
            Tone::Weak => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A time span in its two largest units: `11 h 59 min`.
pub(crate) fn span(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// `in 5 min 3 s`, or `2 s ago`.
pub(crate) fn relative(now: u64, then: u64) -> String {
    if then >= now {
        format!("in {}", span(then - now))
    } else {
        format!("{} ago", span(now - then))
    }
}

/// Rows in columns, two spaces apart, without colour; the last column is as wide
/// as it is. Text without control characters is expected.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3600, "1 h 0 min"),
            (86_399, "23 h 59 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(seconds * 1_000_000), text);
        }
        assert_eq!(relative(5_000_000, 7_000_000), "in 2 s");
        assert_eq!(relative(7_000_000, 5_000_000), "2 s ago");
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect();
        let rows: Vec<Vec<String>> = vec![row(&["a", "bcd", "é"]), row(&["abc", "b", ""])];
        assert_eq!(columns(&rows), "a    bcd  é\nabc  b\n");
    }

    #[test]
    fn plain_is_plain() {
        assert_eq!(Style::PLAIN.paint(Tone::Bad, "x"), "x");
        let colour = Style { colour: true };
        assert_eq!(colour.paint(Tone::Good, "x"), "\x1b[32mx\x1b[0m");
        assert_eq!(colour.paint(Tone::Good, ""), "");
    }
}
