//! What can go wrong with a backup, each with a sentence that says what to do.

use std::io;
use std::path::PathBuf;

use crate::crypto::pasted::told;
use crate::db::{Error, MigrationProblem};

/// Why a backup was not made, or could not be judged. That it is not sound is no error: see
/// [`Report`](super::report::Report).
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A program of Postgres is not there.
    #[error(
        "`{program}` is not installed on this machine, or not where ATTESTO_PG_BIN and PATH say: install the client programs of Postgres {server} (Debian: postgresql-client-{server})"
    )]
    NotInstalled {
        /// Which.
        program: &'static str,
        /// The server's major version.
        server: u32,
    },
    /// Every one found is older than the server.
    #[error(
        "`{program}` on this machine is of Postgres {found}, and the server is Postgres {server}, which it cannot read: install the client programs of Postgres {server}, or name their folder in ATTESTO_PG_BIN"
    )]
    TooOld {
        /// Which.
        program: &'static str,
        /// The newest that was found.
        found: u32,
        /// The server's major version.
        server: u32,
    },
    /// A program ended badly.
    #[error("`{program}` failed: {said}")]
    Failed {
        /// Which.
        program: &'static str,
        /// What it said last.
        said: String,
    },
    /// The file is there already.
    #[error("{} exists already: a backup is never written over", told(.0))]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {cause}", told(path))]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The manifest is not one.
    #[error(
        "{} is not the manifest of a backup that this release can read: {why}",
        told(path)
    )]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is not the dump that was made.
    #[error("{} is not the dump that its manifest was written for: it was changed or cut off", told(.0))]
    Changed(PathBuf),
    /// There is something in the way.
    #[error(
        "the database has tables already: a backup is restored into an empty database, never over another one; make one with `createdb`"
    )]
    NotEmpty,
    /// Keys that the backup needs were not offered.
    #[error(
        "the backup holds secrets sealed with encryption key {}, which is not configured here: give it as ATTESTO_ENCRYPTION_KEY or in ATTESTO_ENCRYPTION_KEYS_RETIRED; without it they cannot be opened by anybody",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    MissingKeys(Vec<u8>),
    /// The role may not make a database to restore into.
    #[error(
        "the database's role may not create a database to restore into: let a superuser run `alter role <role> createdb`, or name another server with --database-url"
    )]
    NotAllowed,
    /// Somebody wanted it to end.
    #[error("stopped; the database that it was restored into is gone again")]
    Stopped,
    /// The tables could not be brought to this release.
    #[error(transparent)]
    Migration(#[from] MigrationProblem),
    /// The database.
    #[error(transparent)]
    Database(#[from] Error),
}

impl BackupError {
    /// Whether the cause is how it was asked: something that is not installed, not configured or not there.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NotInstalled { .. }
                | Self::TooOld { .. }
                | Self::File { .. }
                | Self::Manifest { .. }
                | Self::MissingKeys(_)
        )
    }
}
