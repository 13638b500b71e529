//! Backups that are proven: a dump, what it must hold, and whether that comes back out of it.
//!
//! Promises: what the manifest counts is exactly what the dump holds, since both are taken of one snapshot; a backup is
//! written beside its name and gets it when it is whole; a proof restores into a database of its own on the same server
//! and takes it away again, whatever happens; no secret is in a command line.
//!
//! - [`manifest`]: what a dump must hold
//! - [`programs`]: `pg_dump` and `pg_restore`: found and run
//! - `part`: a file that has another name until it is whole
//! - [`mod@create`]: makes a backup
//! - [`mod@verify`]: restores it on trial
//! - [`BackupVerifyReport`]: what the trial found
//! - [`mod@restore`]: brings it back into an empty database
//! - [`error`]: what can go wrong

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
