//! A private Postgres: runs the Postgres programs that are installed on this machine as a child process, on a data
//! folder of Attesto, reachable over a Unix socket that no other user may open.
//!
//! Guarantees: the settings are durable (`fsync` and checksums are on). No other Postgres is touched. Nothing is
//! downloaded, and nothing is deleted except an incomplete cluster that an interrupted first run left. If this process
//! is killed, Postgres keeps running and the next start adopts it. Each cause of failure has a message of its own that
//! says what to do.
//!
//! - [`binaries`]: finds `postgres` and `initdb`
//! - [`system_account`]: the user that runs them, because Postgres refuses to run as root
//! - [`data_folder`]: the data folder, its permissions and its locks
//! - [`postmaster`]: the server process: finds, starts, waits for and stops it
//! - [`cluster`]: [`EmbeddedPostgres`], which combines these
//! - [`error`]: why a private Postgres is not available

pub mod binaries;
pub mod cluster;
mod data_folder;
pub mod error;
mod postmaster;
pub mod system_account;

pub use cluster::{EmbeddedOptions, EmbeddedPostgres};
pub use error::EmbeddedError;
