//! Logs to the standard error stream.

use std::error::Error;
use std::fmt::Display;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// For a terminal: `bbot-agent: warning: …`.
    Terminal(
        /// Name of the program.
        &'static str,
    ),
    /// For systemd: `<4>…`, see sd-daemon(3).
    Journal,
}

impl Log {
    /// Logs an expected event.
    pub fn info(self, text: impl Display) {
        self.line(6, "info", text);
    }

    /// Logs a problem that the program survives.
    pub fn warning(self, text: impl Display) {
        self.line(4, "warning", text);
    }

    /// Logs a failure.
    pub fn error(self, text: impl Display) {
        self.line(3, "error", text);
    }

    fn line(self, level: u8, word: &str, text: impl Display) {
        eprintln!("{}", self.format(level, word, &text.to_string()));
    }

    /// Formats one line. Control characters are replaced: a peer's text must not become a
    /// second message.
    fn format(self, level: u8, word: &str, text: &str) -> String {
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect();
        match self {
            Self::Terminal(program) => format!("{program}: {word}: {text}"),
            Self::Journal => format!("<{level}>{text}"),
        }
    }
}

/// Returns an error with its causes in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_a_number_for_the_journal_and_a_word_for_a_terminal() {
        assert_eq!(
            Log::Journal.format(4, "warning", "no answer"),
            "<4>no answer"
        );
        assert_eq!(
            Log::Terminal("bslave").format(6, "info", "up"),
            "bslave: info: up"
        );
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(
            Log::Journal.format(6, "info", "a\n<0>b"),
            "<6>a\u{fffd}<0>b"
        );
    }
}
