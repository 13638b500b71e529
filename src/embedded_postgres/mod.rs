//! A private Postgres: the programs already installed on this machine, run as a child process of ours on a folder of
//! ours, reachable over a Unix socket that no other user may open.
//!
//! Promises: the settings are durable (`fsync` on, checksums on); nothing that runs already is touched; nothing is ever
//! downloaded or deleted, except half of a cluster that an interrupted first run of ours left behind; a crash of ours
//! leaves a Postgres that the next start adopts; every way to fail has its own sentence that says what to do.
//!
//! - [`binaries`]: which `postgres` and `initdb`
//! - [`system_account`]: which user runs them, since Postgres refuses root
//! - [`data_folder`]: where everything lies, and whose it is for now
//! - [`postmaster`]: the server process: found, started, waited for, stopped
//! - [`cluster`]: [`EmbeddedPostgres`], which puts these in order
//! - [`error`]: what can go wrong

pub mod binaries;
pub mod cluster;
mod data_folder;
pub mod error;
mod postmaster;
pub mod system_account;

pub use cluster::{EmbeddedOptions, EmbeddedPostgres};
pub use error::EmbeddedError;
