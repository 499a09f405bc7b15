//! Formats output for a terminal or a pipe: colour, time spans and columns.

mod size;

use std::io::{IsTerminal as _, Write as _};
use std::ops::Range;
use std::process::ExitCode;

use buildos_service::text;

/// Spaces between two columns.
const GAP: usize = 2;

/// The meaning of a piece of text, shown by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Tone {
    Good,
    /// Waiting, or out of service.
    Warning,
    Bad,
    /// A heading.
    Strong,
    /// A detail.
    Weak,
}

/// How text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// Writes escape sequences.
    pub(crate) colour: bool,
    /// Characters of a line; unlimited outside of a terminal.
    pub(crate) width: Option<usize>,
}

impl Style {
    /// Text without colour.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self {
        colour: false,
        width: None,
    };

    /// Returns the style for standard output. Only a terminal has colour and a width. It has no
    /// colour with `NO_COLOR` (no-color.org) or `TERM=dumb`.
    pub(crate) fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            colour: std::io::stdout().is_terminal() && !refused && !dumb,
            width: size::columns(),
        }
    }

    /// Returns the text in the colour of a tone (ECMA-48, SGR).
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

/// Returns a time span in its two largest units: `11 h 59 min`.
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

/// Returns `in 5 min 3 s`, or `2 s ago`; both times are in microseconds.
pub(crate) fn relative(now: u64, then: u64) -> String {
    if then >= now {
        format!("in {}", span(then - now))
    } else {
        format!("{} ago", span(now - then))
    }
}

/// Returns the cells of a row as [`columns`] takes them.
pub(crate) fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

/// Aligns rows in columns, two spaces apart. The cells must not contain control
/// characters or colour.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    columns_within(rows, None)
}

/// Aligns rows as [`columns`]. Columns that do not fit into the width continue on a second line
/// below the second column, and so on.
pub(crate) fn columns_within(rows: &[Vec<String>], limit: Option<usize>) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let indent = widths.first().map_or(0, |width| width + GAP);
    let lines = fold(&widths, indent, limit.unwrap_or(usize::MAX));
    let mut out = String::new();
    for row in rows {
        for (number, line) in lines.iter().enumerate() {
            let cells = row.iter().zip(&widths);
            let cells = cells.skip(line.start).take(line.len());
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            let text = cells.join(&" ".repeat(GAP));
            if number == 0 {
                out.push_str(text.trim_end());
            } else if !text.trim_end().is_empty() {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                out.push_str(text.trim_end());
            }
        }
        out.push('\n');
    }
    out
}

/// Returns the columns of each line. A column that is wider than a line has one of its own.
fn fold(widths: &[usize], indent: usize, limit: usize) -> Vec<Range<usize>> {
    let mut lines = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (column, width) in widths.iter().enumerate() {
        if column > start && used + width > limit {
            lines.push(start..column);
            (start, used) = (column, indent);
        }
        used += width + GAP;
    }
    lines.push(start..widths.len());
    lines
}

/// Writes to standard output and returns the exit status.
pub(crate) fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes an error to standard error and returns the exit status of a failure.
pub(crate) fn fail(error: &str) -> ExitCode {
    eprintln!("buildosctl: {}", text::Escaped::received(error));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_has_at_most_two_units() {
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
    fn columns_are_aligned_by_characters() {
        let rows: Vec<Vec<String>> = vec![row(&["a", "bcd", "é"]), row(&["abc", "b", ""])];
        assert_eq!(columns(&rows), "a    bcd  é\nabc  b\n");
    }

    #[test]
    fn columns_that_do_not_fit_continue_on_the_next_line() {
        let rows: Vec<Vec<String>> = vec![
            row(&["PORT", "ADDRESS", "RAM", "STATE"]),
            row(&["tap0", "10.0.0.1", "9 MiB", "runs; port 22 is open"]),
            row(&["tap1", "10.0.0.2"]),
        ];
        assert_eq!(
            columns_within(&rows, Some(21)),
            "PORT  ADDRESS   RAM\n      STATE\n\
             tap0  10.0.0.1  9 MiB\n      runs; port 22 is open\n\
             tap1  10.0.0.2\n"
        );
        assert_eq!(columns_within(&rows, Some(44)), columns(&rows));
        assert_eq!(columns(&rows).lines().count(), 3);
    }

    #[test]
    fn paint_adds_escape_sequences_only_with_colour() {
        assert_eq!(Style::PLAIN.paint(Tone::Bad, "x"), "x");
        let colour = Style {
            colour: true,
            width: None,
        };
        assert_eq!(colour.paint(Tone::Good, "x"), "\x1b[32mx\x1b[0m");
        assert_eq!(colour.paint(Tone::Good, ""), "");
    }
}
