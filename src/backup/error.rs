//! What can go wrong with a backup, each with a sentence that says what to do.

use std::io;
use std::path::PathBuf;

use crate::crypto::redact::redact_path;
use crate::db::{Error, MigrationError};

/// Why a backup was not made, or could not be judged. That it is not sound is no error: see
/// [`Report`](super::report::BackupVerifyReport).
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A program of Postgres is not there.
    #[error(
        "`{program}` is not installed on this machine, or not where ATTESTO_PG_BIN and PATH say: install the client programs of Postgres {server} (Debian: postgresql-client-{server})"
    )]
    ProgramNotInstalled {
        /// The Postgres program, such as `pg_dump`.
        program: &'static str,
        /// The server's major version.
        server: u32,
    },
    /// Every one found is older than the server.
    #[error(
        "`{program}` on this machine is of Postgres {found}, and the server is Postgres {server}, which it cannot read: install the client programs of Postgres {server}, or name their folder in ATTESTO_PG_BIN"
    )]
    ProgramTooOld {
        /// The Postgres program, such as `pg_dump`.
        program: &'static str,
        /// The newest that was found.
        found: u32,
        /// The server's major version.
        server: u32,
    },
    /// A program ended badly.
    #[error("`{program}` failed: {said}")]
    ProgramFailed {
        /// The Postgres program, such as `pg_dump`.
        program: &'static str,
        /// What it said last.
        said: String,
    },
    /// The file is there already.
    #[error("{} exists already: a backup is never written over", redact_path(.0))]
    FileExists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {cause}", redact_path(path))]
    FileIo {
        /// The backup's file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The manifest is not one.
    #[error(
        "{} is not the manifest of a backup that this release can read: {why}",
        redact_path(path)
    )]
    InvalidManifest {
        /// The backup's file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is not the dump that was made.
    #[error("{} is not the dump that its manifest was written for: it was changed or cut off", redact_path(.0))]
    DumpMismatch(PathBuf),
    /// There is something in the way.
    #[error(
        "the database has tables already: a backup is restored into an empty database, never over another one; make one with `createdb`"
    )]
    DatabaseNotEmpty,
    /// Keys that the backup needs were not offered.
    #[error(
        "the backup holds secrets sealed with encryption key {}, which is not configured here: give it as ATTESTO_ENCRYPTION_KEY or in ATTESTO_ENCRYPTION_KEYS_RETIRED; without it they cannot be opened at all",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    MissingKeys(Vec<u8>),
    /// The role may not make a database to restore into.
    #[error(
        "the database's role may not create a database to restore into: let a superuser run `alter role <role> createdb`, or name another server with --database-url"
    )]
    CannotCreateDatabase,
    /// It was interrupted.
    #[error("stopped; the database that it was restored into is gone again")]
    Interrupted,
    /// The tables could not be brought to this release.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// A query failed.
    #[error(transparent)]
    Database(#[from] Error),
}

impl BackupError {
    /// Whether the cause is how it was asked: something that is not installed, not configured or not there.
    pub fn is_usage_error(&self) -> bool {
        matches!(
            self,
            Self::ProgramNotInstalled { .. }
                | Self::ProgramTooOld { .. }
                | Self::FileIo { .. }
                | Self::InvalidManifest { .. }
                | Self::MissingKeys(_)
        )
    }
}
