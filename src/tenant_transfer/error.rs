//! What can go wrong in moving a tenant, each with a sentence that says what to do.

use std::io;
use std::path::PathBuf;

use crate::base::id::TenantId;
use crate::crypto::keyring::UnsealError;
use crate::crypto::redact::redact_path;
use crate::crypto::sealed_file::SealedFileError;
use crate::db::Error;

/// Why a tenant was not packed or unpacked. Nothing was changed, then.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// There is no such tenant.
    #[error("no such tenant: {0}")]
    TenantNotFound(TenantId),
    /// It is there already.
    #[error(
        "{0} is here already: --replace makes its settings and credentials those of the file, and adds to its keys and its history what is missing"
    )]
    TenantExists(TenantId),
    /// Rows of the file have ids that are another tenant's here.
    #[error(
        "{count} rows of {table} in the file cannot be {tenant}'s here: what they are called by, or the events that they deliver, is not. Nothing was imported; compare the file's SHA-256 with that of the export"
    )]
    RowsOfOtherTenant {
        /// Whose the file is.
        tenant: TenantId,
        /// The first table with such rows.
        table: &'static str,
        /// The number of such rows.
        count: u64,
    },
    /// It is inactive, and deliveries of it are being sent.
    #[error(
        "{count} deliveries of {tenant} are being sent, and would be sent again by the installation that imports this: run it again in a minute"
    )]
    DeliveriesInProgress {
        /// The exported tenant.
        tenant: TenantId,
        /// The number of deliveries that are being sent.
        count: i64,
    },
    /// A transaction that began while it was active is still writing, or one that takes long.
    #[error(
        "a transaction is still writing events or deliveries, and {0} could be in it (a large import, perhaps, or a long job): run it again in a minute"
    )]
    WritesInProgress(TenantId),
    /// A request for redelivery is not through, and needs the history.
    #[error(
        "a redelivery of {0} is not through yet: wait until it is, stop it (`attesto webhook stop-redelivery`), or take it along with --with-history"
    )]
    RedeliveryInProgress(TenantId),
    /// The file is there already.
    #[error("{} exists already: an export is never written over", redact_path(.0))]
    FileExists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {cause}", redact_path(path))]
    FileIo {
        /// The file of the export.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The file does not open.
    #[error(transparent)]
    SealedFile(#[from] SealedFileError),
    /// It opens, and what is in it is not what this release knows.
    #[error("the file opens, and is not an export that this release can read: {0}")]
    InvalidContent(String),
    /// It is of a release that knows more.
    #[error(
        "the file was made by Attesto {attesto}, whose tables are newer than these: bring this installation to that release, run `attesto migrate`, and import again"
    )]
    NewerRelease {
        /// The release that wrote the file.
        attesto: String,
    },
    /// A secret does not open.
    #[error("{column} of {tenant} does not open: {cause}")]
    SecretNotOpened {
        /// Which: table and column.
        column: String,
        /// The exported tenant.
        tenant: TenantId,
        /// The reason it does not open.
        cause: UnsealError,
    },
    /// A query failed.
    #[error(transparent)]
    Database(#[from] Error),
}
