//! A progress bar on stderr, when it is a terminal.

use std::io::{self, IsTerminal as _, Write as _};

use super::output::OutputWriter;

/// Characters between the brackets.
const BAR_WIDTH: usize = 30;

/// Draws itself over its previous state; draws nothing when stderr is no terminal or the output is JSON.
pub(crate) struct ProgressBar {
    is_visible: bool,
}

impl ProgressBar {
    pub(crate) fn for_output(output: &OutputWriter) -> Self {
        Self {
            is_visible: output.is_human_readable() && io::stderr().is_terminal(),
        }
    }

    /// Draws it with `done` of `total` steps; `what` is being worked on.
    pub(crate) fn draw_progress(&self, done: u64, total: u64, what: &str) {
        if self.is_visible {
            // A closed terminal is no reason to stop the work.
            let _ = write!(io::stderr(), "\r\x1b[2K{}", format_bar(done, total, what));
        }
    }

    pub(crate) fn clear(&self) {
        if self.is_visible {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

fn format_bar(done: u64, total: u64, what: &str) -> String {
    let (done, total) = (done.min(total), total.max(1));
    let scaled = u128::from(done) * BAR_WIDTH as u128 / u128::from(total);
    let filled = usize::try_from(scaled).unwrap_or(BAR_WIDTH);
    let bar = "#".repeat(filled) + &".".repeat(BAR_WIDTH - filled);
    format!("[{bar}] {done} of {total}  {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_a_fixed_length() {
        assert_eq!(
            format_bar(0, 0, "x"),
            format!("[{}] 0 of 1  x", ".".repeat(30))
        );
        assert_eq!(
            format_bar(1, 2, "x"),
            format!("[{}{}] 1 of 2  x", "#".repeat(15), ".".repeat(15))
        );
        assert_eq!(
            format_bar(9, 3, "x"),
            format!("[{}] 3 of 3  x", "#".repeat(30))
        );
    }
}
