//! Why a backup cannot be made, verified or restored. Each message says what to do.

use std::io;
use std::path::PathBuf;

use crate::crypto::redact::redact_path;
use crate::db::{Error, MigrationError};

/// Why a backup was not made, verified or restored. A backup that was verified and found damaged is not an error: see
/// [`BackupVerifyReport`](super::report::BackupVerifyReport).
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Citus has distributed the tables.
    #[error(
        "the tables of this database are distributed by Citus, and a dump of the coordinator cannot be restored as such a database: back up every node with the tools of Postgres"
    )]
    Distributed,
    /// A Postgres client program was not found.
    #[error(
        "`{program}` is not installed on this machine, or not in the folders that ATTESTO_PG_BIN or PATH names: install the client programs of Postgres {server} (Debian: postgresql-client-{server})"
    )]
    ProgramNotInstalled {
        /// The Postgres program, such as `pg_dump`.
        program: &'static str,
        /// The server's major version.
        server: u32,
    },
    /// Every version found of this program is older than the server.
    #[error(
        "`{program}` on this machine is of Postgres {found}, which cannot read the server's Postgres {server}: install the client programs of Postgres {server}, or name their folder in ATTESTO_PG_BIN"
    )]
    ProgramTooOld {
        /// The Postgres program, such as `pg_dump`.
        program: &'static str,
        /// The newest version that was found.
        found: u32,
        /// The server's major version.
        server: u32,
    },
    /// The program could not be started, or exited with an error.
    #[error("`{program}` failed: {reason}")]
    ProgramFailed {
        /// The Postgres program, such as `pg_dump`.
        program: &'static str,
        /// The error lines of its standard error output, shortened.
        reason: String,
    },
    /// The output file exists already.
    #[error("{} exists already, and a backup is never overwritten: choose another file", redact_path(.0))]
    FileExists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {cause}", redact_path(path))]
    FileIo {
        /// The dump or its manifest.
        path: PathBuf,
        /// The error of the operating system.
        cause: io::Error,
    },
    /// The manifest cannot be parsed, or has a format that this release does not know.
    #[error(
        "{} is not the manifest of a backup that this release can read: {why}",
        redact_path(path)
    )]
    InvalidManifest {
        /// The manifest's path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The dump's length or SHA-256 differs from the manifest.
    #[error("{} is not the dump that its manifest was written for: it was changed or truncated", redact_path(.0))]
    DumpMismatch(PathBuf),
    /// The target database of a restore has tables already.
    #[error(
        "the database has tables already: a backup is only restored into an empty one; create it with `createdb`"
    )]
    DatabaseNotEmpty,
    /// The backup's tables are in a schema in which statements of this connection would not look for them.
    #[error(
        "the backup's tables are in the schema {0}, which the search path of this connection does not name: let the role use it with `alter role <role> set search_path = {0}`, or add ?options=-csearch_path%3D{0} to the database's URL; nothing was restored"
    )]
    OtherSchema(String),
    /// Encryption keys that the backup needs are not configured. The ids, ascending.
    #[error(
        "the backup holds secrets sealed with encryption key {}, which is not configured here: give it as ATTESTO_ENCRYPTION_KEY or in ATTESTO_ENCRYPTION_KEYS_RETIRED; without it they can never be decrypted",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    MissingKeys(Vec<u8>),
    /// The role may not create the scratch database that a backup is verified in.
    #[error(
        "the database's role may not create a database to restore into: let a superuser run `alter role <role> createdb`, or name another server with --database-url"
    )]
    CannotCreateDatabase,
    /// The verification was interrupted. Its scratch database was dropped.
    #[error("stopped; the temporary database that it was restored into was dropped")]
    Interrupted,
    /// The migrations of this release could not be applied.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// A query failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}

impl BackupError {
    /// Whether the caller can fix the cause: a missing or old program, a file, or a missing encryption key.
    pub fn is_usage_error(&self) -> bool {
        matches!(
            self,
            Self::ProgramNotInstalled { .. }
                | Self::ProgramTooOld { .. }
                | Self::FileIo { .. }
                | Self::InvalidManifest { .. }
                | Self::OtherSchema(_)
                | Self::MissingKeys(_)
        )
    }
}
