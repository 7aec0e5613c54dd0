//! The user's terminal: raw while a session has it, as it was afterwards, whatever ends the session.

use std::io;

use rustix::termios::{self, OptionalActions, Termios};

/// Raw mode; dropping it restores the terminal, also when a panic unwinds.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Makes the terminal on standard input raw.
    pub fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Whether a person sits at standard input.
pub fn is_terminal() -> bool {
    termios::isatty(rustix::stdio::stdin())
}

/// Columns and rows of the terminal; none without one.
pub fn size() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(rustix::stdio::stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
