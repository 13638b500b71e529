//! Why an export or import failed. Each message says what to do.

use std::io;
use std::path::PathBuf;

use crate::base::id::TenantId;
use crate::crypto::keyring::UnsealError;
use crate::crypto::redact::redact_path;
use crate::crypto::sealed_file::SealedFileError;
use crate::db::Error;
use crate::deliveries::body::BodyError;

/// Why a tenant was not exported or imported. The database was not changed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// There is no tenant with this id.
    #[error("no such tenant: {0}")]
    TenantNotFound(TenantId),
    /// The tenant exists and `--replace` was not given.
    #[error(
        "{0} exists already: with --replace, its settings and credentials are replaced by those of the file, and missing keys and history are added"
    )]
    TenantExists(TenantId),
    /// Rows of the file have ids that belong to another tenant in this database.
    #[error(
        "{count} rows of {table} in the file conflict with rows of other tenants in this database, by their ids or by the events that they deliver, and cannot be imported for {tenant}. Nothing was imported; compare the file's SHA-256 with that of the export"
    )]
    RowsOfOtherTenant {
        /// The tenant of the file.
        tenant: TenantId,
        /// The first table with such rows.
        table: &'static str,
        /// The number of such rows.
        count: u64,
    },
    /// The tenant is inactive, and processes are still sending deliveries of it.
    #[error(
        "{count} deliveries of {tenant} are being sent, and would be sent again by the installation that imports this: run it again in a minute"
    )]
    DeliveriesInProgress {
        /// The exported tenant.
        tenant: TenantId,
        /// The number of deliveries that are being sent.
        count: i64,
    },
    /// A transaction was still writing events or deliveries when the lock timeout ended. It may have begun while the
    /// tenant was active.
    #[error(
        "a transaction is still writing events or deliveries, and may contain some of {0} (it may be a large import or a long job): run the export again in a minute"
    )]
    WritesInProgress(TenantId),
    /// A redelivery has not finished. It needs the history, which was not to be exported.
    #[error(
        "a redelivery of {0} has not finished: wait until it has, stop it (`attesto webhook stop-redelivery`), or export it too with --with-history"
    )]
    RedeliveryInProgress(TenantId),
    /// The output file exists already.
    #[error("{} exists already, and an export is never overwritten: choose another file", redact_path(.0))]
    FileExists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {cause}", redact_path(path))]
    FileIo {
        /// The exported file.
        path: PathBuf,
        /// The error of the operating system.
        cause: io::Error,
    },
    /// The file cannot be unsealed.
    #[error(transparent)]
    SealedFile(#[from] SealedFileError),
    /// The file was unsealed, and its content is not in a format that this release knows.
    #[error("the file was decrypted, and is not an export that this release can read: {0}")]
    InvalidContent(String),
    /// The file was written by a release with newer migrations.
    #[error(
        "the file was made by Attesto {attesto}, whose tables are newer than these: bring this installation to that release, run `attesto migrate`, and import again"
    )]
    NewerRelease {
        /// The release that wrote the file.
        attesto: String,
    },
    /// A sealed value of the tenant cannot be unsealed.
    #[error("{column} of {tenant} cannot be decrypted: {cause}")]
    SecretNotOpened {
        /// The table and the column, joined by a dot.
        column: String,
        /// The exported tenant.
        tenant: TenantId,
        /// Why it cannot be unsealed.
        cause: UnsealError,
    },
    /// The stored body of an event cannot be decoded.
    #[error("{event}: {cause}")]
    BodyUnreadable {
        /// The event's id.
        event: String,
        /// What is wrong with the stored bytes.
        cause: BodyError,
    },
    /// A query failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}
