//! `attesto tail`: what happens to one tenant, as it happens.
//!
//! Guarantees: nothing is changed, nothing secret is shown, and a tenant with a long history costs no more than one with a
//! short one. It polls the database, so it sees what every process does; of two changes of one delivery between two polls only
//! the last is shown, and a line says so when more happened than one poll can show.
//!
//! - [`tail_line`]: one line, as JSON and as text
//! - [`watcher`]: finds what is new since the last poll

pub mod tail_line;
pub mod watcher;

pub use tail_line::TailLine;
pub use watcher::TailWatcher;
