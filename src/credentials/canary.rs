//! Is the configured encryption key the one this database was sealed with?
//!
//! One row a key: a known text, sealed. It is written when a key is first used against this database and opened at
//! every check after that. A process with another key under the same id is noticed here, before it seals something
//! that the others cannot open and before it serves with nothing that opens.

use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, UnsealError};
use crate::db::{Database, Error};

use super::{reseal, sealed_columns, store};

/// What every canary says.
const CANARY_TEXT: &[u8] = b"attesto canary";

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
        "this database holds values sealed with encryption key {}, which is not configured: add it to ATTESTO_ENCRYPTION_KEYS_RETIRED until `attesto encryption status` counts nothing that needs it",
        join_key_ids(ids)
    )]
    MissingKey {
        /// The ids of the keys, ascending.
        ids: Vec<u8>,
    },
    /// The canary could not be read or written.
    #[error(transparent)]
    Database(#[from] Error),
}

impl CanaryError {
    /// A few words for `/ready`: no host name, no SQL, nothing of a key.
    pub fn error_class(&self) -> &'static str {
        match self {
            Self::WrongKey { .. } => "wrong encryption key",
            Self::MissingKey { .. } => "encryption key missing",
            Self::Database(_) => "database unavailable",
        }
    }
}

/// `1`, `1 and 3`, `1, 2 and 3`.
fn join_key_ids(ids: &[u8]) -> String {
    let mut text = String::new();
    for (position, id) in ids.iter().enumerate() {
        text.push_str(match position {
            0 => "",
            last if last + 1 == ids.len() => " and ",
            _ => ", ",
        });
        text.push_str(&id.to_string());
    }
    text
}

/// What a key's canary says of the key that is configured under its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryStatus {
    /// It is the one.
    Matches,
    /// It is another one.
    Mismatch,
    /// None is configured.
    NotConfigured,
}

/// The verdict on every key that ever sealed here, by ascending id. Writes nothing.
pub async fn load_canary_statuses(
    database: &Database,
    keyring: &Keyring,
) -> Result<Vec<(u8, CanaryStatus)>, Error> {
    let canaries = store::load_canaries(database).await?;
    Ok(canaries
        .iter()
        .map(|it| check_canary(keyring, it))
        .collect())
}

fn check_canary(keyring: &Keyring, (id, blob): &(u8, Vec<u8>)) -> (u8, CanaryStatus) {
    let row = id.to_string();
    let verdict = match keyring.try_open(sealed_columns::ENCRYPTION_CANARY.context_for(&row), blob)
    {
        Ok(song) if song.expose_secret() == CANARY_TEXT => CanaryStatus::Matches,
        Err(UnsealError::UnknownKey { .. }) => CanaryStatus::NotConfigured,
        Ok(_) | Err(_) => CanaryStatus::Mismatch,
    };
    (*id, verdict)
}

/// Opens the canary of every configured key, after writing that of the sealing key if it is the first time. Call it
/// before sealing, and from `/ready`.
pub async fn ensure_canaries(database: &Database, keyring: &Keyring) -> Result<(), CanaryError> {
    let mut canaries = store::load_canaries(database).await?;
    let sealing = keyring.sealing_key_id();
    if !canaries.iter().any(|(id, _)| *id == sealing) {
        let row = sealing.to_string();
        let blob = keyring.seal(
            sealed_columns::ENCRYPTION_CANARY.context_for(&row),
            CANARY_TEXT,
        );
        store::add_canary(database, sealing, &blob).await?;
        // Another process may have been first, with another key: what counts is what is there.
        canaries = store::load_canaries(database).await?;
    }
    check_loaded_canaries(database, keyring, &canaries).await
}

/// The same without writing anything.
pub async fn check_canaries(database: &Database, keyring: &Keyring) -> Result<(), CanaryError> {
    let canaries = store::load_canaries(database).await?;
    check_loaded_canaries(database, keyring, &canaries).await
}

async fn check_loaded_canaries(
    database: &Database,
    keyring: &Keyring,
    canaries: &[(u8, Vec<u8>)],
) -> Result<(), CanaryError> {
    let verdicts: Vec<_> = canaries
        .iter()
        .map(|it| check_canary(keyring, it))
        .collect();
    if let Some((id, _)) = verdicts
        .iter()
        .find(|(_, it)| *it == CanaryStatus::Mismatch)
    {
        return Err(CanaryError::WrongKey { id: *id });
    }
    let mut ids = Vec::new();
    for (id, verdict) in verdicts {
        // A key of long ago, which nothing is sealed with any more, need not be configured.
        if verdict == CanaryStatus::NotConfigured && store::is_key_in_use(database, id).await? {
            ids.push(id);
        }
    }
    if ids.is_empty() {
        Ok(())
    } else {
        Err(CanaryError::MissingKey { ids })
    }
}

/// Whether every sealed value names a configured key, canary or not, by reading the first byte of each. For start-up:
/// too much for every `/ready`.
pub async fn check_all_key_ids(database: &Database, keyring: &Keyring) -> Result<(), CanaryError> {
    let held = reseal::list_key_usage(database).await?;
    let mut ids: Vec<u8> = held
        .iter()
        .filter(|held| held.column != sealed_columns::ENCRYPTION_CANARY)
        .filter_map(|held| held.key_id)
        .filter(|id| !keyring.key_ids().any(|known| known == *id))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        Ok(())
    } else {
        Err(CanaryError::MissingKey { ids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_key_is_named() {
        let said = |ids: &[u8]| CanaryError::MissingKey { ids: ids.into() }.to_string();
        assert!(said(&[1]).contains("encryption key 1, which"));
        assert!(said(&[1, 3]).contains("encryption key 1 and 3, which"));
        assert!(said(&[1, 2, 9]).contains("encryption key 1, 2 and 9, which"));
    }
}
