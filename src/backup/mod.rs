//! Backups that are verified: a dump, a manifest of what it must contain, and a test restore that compares the two.
//!
//! Guarantees: the manifest and the dump describe the same data, because both are read from one snapshot. A dump gets
//! its final name only when it is complete. A verification restores into a scratch database on the same server, and
//! drops that database whether it succeeds, fails or is interrupted. No secret is in a command line.
//!
//! - [`manifest`]: what a dump must contain
//! - [`programs`]: finds and runs `pg_dump` and `pg_restore`
//! - `partial_file`: a file with a temporary name until it is complete
//! - [`mod@create`]: makes a backup
//! - [`mod@verify`]: restores a backup into a scratch database and checks it
//! - [`BackupVerifyReport`]: the result of a verification
//! - [`mod@restore`]: restores a backup into an empty database
//! - [`error`]: why a backup cannot be made, verified or restored

pub mod create;
pub mod error;
pub mod manifest;
pub(crate) mod partial_file;
pub mod programs;
mod report;
pub mod restore;
mod store;
pub mod verify;

pub use create::create_backup;
pub use error::BackupError;
pub use manifest::BackupManifest;
pub use programs::PostgresPrograms;
pub use report::BackupVerifyReport;
pub use restore::restore_backup;
pub use verify::verify_backup;
