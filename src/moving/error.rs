//! What can go wrong in moving a tenant, each with a sentence that says what to do.

use std::io;
use std::path::PathBuf;

use crate::crypto::keyring::OpenError;
use crate::crypto::pasted::told;
use crate::crypto::sealed_file::FileError;
use crate::db::Error;
use crate::id::TenantId;

/// Why a tenant was not packed or unpacked. Nothing was changed, then.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// There is no such tenant.
    #[error("no such tenant: {0}")]
    NoTenant(TenantId),
    /// It is there already.
    #[error(
        "{0} is here already: --replace makes its settings and credentials those of the file, and adds to its keys and its history what is missing"
    )]
    Exists(TenantId),
    /// Rows of the file are somebody else's here.
    #[error(
        "{count} rows of {table} in the file cannot be {tenant}'s here: what they are called by, or the events that they deliver, is not. Nothing was imported; compare the file's SHA-256 with whoever exported it"
    )]
    Strangers {
        /// Whose the file is.
        tenant: TenantId,
        /// Which table.
        table: &'static str,
        /// How many.
        count: u64,
    },
    /// It is inactive, and somebody is just sending all the same.
    #[error(
        "{count} deliveries of {tenant} are just under way, and would be sent again by whoever imports this: run it again in a minute"
    )]
    UnderWay {
        /// Whose.
        tenant: TenantId,
        /// How many.
        count: i64,
    },
    /// Somebody is writing what they began while it was active, or something that takes long.
    #[error(
        "somebody is still writing events or deliveries, and {0} could be in it (a large import, perhaps, or a long job): run it again in a minute"
    )]
    Writing(TenantId),
    /// A request for redelivery is not through, and needs the history.
    #[error(
        "a redelivery of {0} is not through yet: wait until it is, stop it (`attesto webhook stop-redelivery`), or take it along with --with-history"
    )]
    Redelivering(TenantId),
    /// The file is there already.
    #[error("{} exists already: an export is never written over", told(.0))]
    FileExists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {cause}", told(path))]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The file does not open.
    #[error(transparent)]
    Sealed(#[from] FileError),
    /// It opens, and what is in it is not what this release knows.
    #[error("the file opens, and is not an export that this release can read: {0}")]
    Unreadable(String),
    /// It is of a release that knows more.
    #[error(
        "the file was made by Attesto {attesto}, whose tables are newer than these: bring this installation to that release, run `attesto migrate`, and import again"
    )]
    Newer {
        /// The release.
        attesto: String,
    },
    /// A secret does not open.
    #[error("{column} of {tenant} does not open: {cause}")]
    Unopened {
        /// Which: table and column.
        column: String,
        /// Whose.
        tenant: TenantId,
        /// Why.
        cause: OpenError,
    },
    /// The database.
    #[error(transparent)]
    Database(#[from] Error),
}
