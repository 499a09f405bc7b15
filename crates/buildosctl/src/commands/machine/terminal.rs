//! Sets the terminal so that each key reaches the machine (termios(3)).

use std::io::{self, stdin};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The raw mode of the terminal at standard input, until it is dropped.
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Enters the raw mode.
    ///
    /// # Errors
    ///
    /// Standard input is no terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Without the terminal, there is nothing to restore.
        let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, &self.before);
    }
}
