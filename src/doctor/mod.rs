//! `attesto doctor`: is this installation well, and what is to be done if not.
//!
//! Promises: it looks and changes nothing; it ends within a minute whatever is broken; every finding comes with one line
//! that says what to do; what cannot be looked at because of something worse is skipped and said to be; no secret, no
//! purchase and no callback's query is in what it says.
//!
//! - [`finding`]: checks inside checks, the worst result on top
//! - [`mod@examine`]: all of them, in the order of what they need
//! - [`settings`], [`files`], [`listener`], [`database`], [`keys`], [`processes`], [`tenants`], [`deliveries`], [`drift`],
//!   [`stores`], [`logs`]: what is looked at
//! - `store`: the queries

pub mod check_result;
pub mod database;
pub mod deliveries;
pub mod drift;
pub mod files;
pub mod keys;
pub mod listener;
pub mod logs;
pub mod processes;
pub mod runner;
pub mod settings;
mod store;
pub mod stores;
pub mod tenants;

pub use check_result::{CheckResult, CheckStatus};
pub use runner::{CheckContext, run_checks};
