//! Is the configured encryption key the one this database was sealed with?
//!
//! One row a key: a known text, sealed. It is written when a key is first used against this database and opened at
//! every check after that. A process with another key under the same id is noticed here, before it seals something
//! that the others cannot open and before it serves with nothing that opens.

use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, OpenError};
use crate::db::{Database, Error};

use super::{sealed, store};

/// What every canary says.
const SONG: &[u8] = b"attesto canary";

/// Why the keys cannot be trusted with this database.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// A configured key is another one than this database was sealed with.
    #[error(
        "encryption key {id} is not the key this database was sealed with: check ATTESTO_ENCRYPTION_KEY and its id"
    )]
    WrongKey {
        /// The id it is configured under.
        id: u8,
    },
    /// Something is sealed with a key that is not configured.
    #[error(
        "this database holds values sealed with encryption key {id}, which is not configured: add it to ATTESTO_ENCRYPTION_KEYS_RETIRED"
    )]
    MissingKey {
        /// The id of the key.
        id: u8,
    },
    /// The canary could not be read or written.
    #[error(transparent)]
    Database(#[from] Error),
}

impl CanaryError {
    /// A few words for `/ready`: no host name, no SQL, nothing of a key.
    pub fn class(&self) -> &'static str {
        match self {
            Self::WrongKey { .. } => "wrong encryption key",
            Self::MissingKey { .. } => "encryption key missing",
            Self::Database(_) => "database unavailable",
        }
    }
}

/// Opens the canary of every configured key, after writing that of the sealing key if it is the first time. Call it
/// before sealing, and from `/ready`.
pub async fn check(database: &Database, keyring: &Keyring) -> Result<(), CanaryError> {
    let mut canaries = store::canaries(database).await?;
    let sealing = keyring.sealing_id();
    if !canaries.iter().any(|(id, _)| *id == sealing) {
        let row = sealing.to_string();
        let blob = keyring.seal(sealed::CANARY.of(&row), SONG);
        store::add_canary(database, sealing, &blob).await?;
        // Another process may have been first, with another key: what counts is what is there.
        canaries = store::canaries(database).await?;
    }
    for (id, blob) in canaries {
        let row = id.to_string();
        match keyring.open(sealed::CANARY.of(&row), &blob) {
            Ok(song) if song.expose_secret() == SONG => {}
            Err(OpenError::UnknownKey { .. }) => {
                // A key of long ago, which nothing is sealed with any more, need not be configured.
                if store::is_in_use(database, id).await? {
                    return Err(CanaryError::MissingKey { id });
                }
            }
            Ok(_) | Err(_) => return Err(CanaryError::WrongKey { id }),
        }
    }
    Ok(())
}
