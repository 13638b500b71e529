//! How far something is that takes a while: a bar on standard error, for a person at a terminal.

use std::io::{self, IsTerminal as _, Write as _};

use super::Output;

/// Characters between the brackets.
const WIDTH: usize = 30;

/// A bar that is drawn over itself. Nothing where nobody watches.
pub struct Bar {
    is_drawn: bool,
}

impl Bar {
    /// One for whoever reads `output`.
    pub fn beside(output: &Output) -> Self {
        Self {
            is_drawn: output.is_for_people() && io::stderr().is_terminal(),
        }
    }

    /// Draws it.
    pub fn show(&self, done: u64, total: u64, what: &str) {
        if self.is_drawn {
            // Whoever closed their terminal misses nothing.
            let _ = write!(io::stderr(), "\r\x1b[2K{}", drawn(done, total, what));
        }
    }

    /// Wipes it.
    pub fn end(&self) {
        if self.is_drawn {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

fn drawn(done: u64, total: u64, what: &str) -> String {
    let (done, total) = (done.min(total), total.max(1));
    let scaled = u128::from(done) * WIDTH as u128 / u128::from(total);
    let filled = usize::try_from(scaled).unwrap_or(WIDTH);
    let bar = "#".repeat(filled) + &".".repeat(WIDTH - filled);
    format!("[{bar}] {done} of {total}  {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_never_longer_than_it_may_be() {
        assert_eq!(drawn(0, 0, "x"), format!("[{}] 0 of 1  x", ".".repeat(30)));
        assert_eq!(
            drawn(1, 2, "x"),
            format!("[{}{}] 1 of 2  x", "#".repeat(15), ".".repeat(15))
        );
        assert_eq!(drawn(9, 3, "x"), format!("[{}] 3 of 3  x", "#".repeat(30)));
    }
}
