//! What happens to one tenant, as it happens: for whoever sets something up and wants to see it move.
//!
//! Promises: nothing is changed, nothing secret is shown, and a tenant with a long history costs no more than one with a
//! short one. It looks at the database, so it sees what every process does; what happens twice between two looks is told
//! once, and what is too much to look at is said to be.
//!
//! - [`mod@line`]: one thing that happened
//! - [`watcher`]: finds what is new since it last looked

pub mod tail_line;
pub mod watcher;

pub use tail_line::TailLine;
pub use watcher::TailWatcher;
