//! Diagnostics on the standard error stream.

use std::error::Error;
use std::fmt::Display;

/// How the program's diagnostics are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// For a terminal: `bbot-agent: warning: …`.
    Terminal(
        /// The program's name.
        &'static str,
    ),
    /// For systemd: `<4>…`, see sd-daemon(3).
    Journal,
}

impl Log {
    /// Something happened as it should.
    pub fn info(self, text: impl Display) {
        self.line(6, "info", text);
    }

    /// Somebody should look.
    pub fn warning(self, text: impl Display) {
        self.line(4, "warning", text);
    }

    /// The program cannot go on.
    pub fn error(self, text: impl Display) {
        self.line(3, "error", text);
    }

    fn line(self, level: u8, word: &str, text: impl Display) {
        eprintln!("{}", self.format(level, word, &text.to_string()));
    }

    /// One line, whatever the text holds: what a peer sent must not become a
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

/// An error with its causes in one line.
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
    fn the_journal_sees_the_level_and_the_terminal_a_word() {
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
    fn text_from_a_peer_stays_on_its_line() {
        assert_eq!(
            Log::Journal.format(6, "info", "a\n<0>b"),
            "<6>a\u{fffd}<0>b"
        );
    }
}
