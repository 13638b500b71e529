//! Whether this installation is healthy: one list of checks, read by `attesto doctor`, by jobs and by the metrics.
//!
//! Promises: a check reads and changes nothing; `attesto doctor` ends within a few minutes whatever is broken, because each
//! group has a time limit; each warning and failure carries one line that says what to do; a check that another failure makes impossible
//! is reported as skipped; no secret, no purchase and no query string of a callback is in any message; the costs do not
//! grow with the history of events.
//!
//! - [`check`]: the type; [`list`]: all checks, in the order in which they are printed
//! - [`runner`]: what `attesto doctor` does with the list; [`check_result`]: the tree that it prints
//! - [`settings`], [`files`], [`listener`], [`database`], [`keys`], [`processes`], [`tenants`], [`deliveries`],
//!   [`drift`], [`logs`], [`stores`]: queries and judgements of one group each
//! - [`expiry`]: the age of keys and the end of certificates
//! - [`jobs`]: the jobs `drift`, `expiry` and `statistics`
//! - [`gauges`]: the metrics that are read from the database
//! - `store`: the SQL

mod check;
mod check_result;
mod database;
mod deliveries;
mod drift;
pub(crate) mod expiry;
mod files;
pub mod gauges;
pub(crate) mod jobs;
mod keys;
mod list;
mod listener;
mod logs;
mod processes;
mod runner;
mod settings;
mod store;
mod stores;
mod tenants;

pub(crate) use check_result::{CheckResult, CheckStatus};
pub use runner::{CheckContext, run_checks};
