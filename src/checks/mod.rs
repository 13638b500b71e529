//! Whether this installation is healthy: one list of checks, which `attesto doctor`, jobs and metrics use.
//!
//! Guarantees: a check only reads. `attesto doctor` ends within a few minutes even if services hang, because each group
//! has a time limit. Each warning and each failure has one line that says what to do. A check that cannot run because
//! another one failed is reported as skipped. No message contains a secret, a purchase, or the query of a callback URL.
//! The cost of the checks does not grow with the history of events.
//!
//! - [`check`]: the type of a check; [`list`]: all checks, in the order in which they are printed
//! - [`runner`]: runs the list for `attesto doctor`; [`check_result`]: the tree that it prints
//! - [`settings`], [`files`], [`listener`], [`database`], [`keys`], [`processes`], [`tenants`], [`deliveries`],
//!   [`drift`], [`logs`], [`stores`]: queries and judgements of one group each
//! - `missing_key`: tells a lost encryption key from one that was not made yet
//! - [`expiry`]: the age of credentials and the expiry of certificates
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
mod missing_key;
mod processes;
mod runner;
mod settings;
mod store;
mod stores;
mod tenants;

pub(crate) use check_result::{CheckResult, CheckStatus};
pub(crate) use missing_key::explain_missing_key;
pub use runner::{CheckContext, run_checks};
