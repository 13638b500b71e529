//! How far something is that takes a while: a bar on standard error, for a person at a terminal.

use std::io::{self, IsTerminal as _, Write as _};

use super::output::OutputWriter;

/// Characters between the brackets.
const BAR_WIDTH: usize = 30;

/// A bar that is drawn over itself. Nothing where nobody watches.
pub(crate) struct ProgressBar {
    is_visible: bool,
}

impl ProgressBar {
    /// One for whoever reads `output`.
    pub(crate) fn for_output(output: &OutputWriter) -> Self {
        Self {
            is_visible: output.is_human_readable() && io::stderr().is_terminal(),
        }
    }

    /// Draws it.
    pub(crate) fn draw_progress(&self, done: u64, total: u64, what: &str) {
        if self.is_visible {
            // Whoever closed their terminal misses nothing.
            let _ = write!(io::stderr(), "\r\x1b[2K{}", format_bar(done, total, what));
        }
    }

    /// Wipes it.
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
    fn a_bar_is_never_longer_than_it_may_be() {
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
