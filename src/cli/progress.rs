//! Progress line of long commands.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

const ERASE_TO_END_OF_LINE: &str = "\x1b[K";

/// A line on stderr that each update overwrites. Prints nothing unless stderr is a terminal.
pub(super) struct ProgressLine {
    is_terminal: bool,
    has_text: bool,
}

impl ProgressLine {
    pub(super) fn new() -> Self {
        ProgressLine {
            is_terminal: io::stderr().is_terminal(),
            has_text: false,
        }
    }

    /// Returns whether updates are visible, so that callers can skip costly ones.
    pub(super) fn is_visible(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn update(&mut self, text: impl Display) {
        if self.is_terminal {
            self.has_text = true;
            // A lost update must not fail the command.
            let _ = write!(io::stderr(), "\r{text}{ERASE_TO_END_OF_LINE}");
        }
    }
}

/// Ends the line, so that later output starts on a new one.
impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.has_text {
            let _ = writeln!(io::stderr());
        }
    }
}
