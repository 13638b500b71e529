//! Checks that the configured encryption keys are the ones that this database was sealed with.
//!
//! The table has one row for each key: a known text, sealed with that key. The row is written when the key is first
//! used with this database, and unsealed at every later check. A process that has another key under the same id is
//! noticed by that, before it seals a value that other processes cannot unseal, and before it serves without being able
//! to unseal anything.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::clock::Clock;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, UnsealError};
use crate::db::{Database, Error};

use super::{reseal, sealed_columns, store};

/// How long it is remembered that no value is sealed with a key that is not configured.
const UNUSED_KEY_TTL: Duration = Duration::from_hours(1);
/// The plaintext of every canary.
const CANARY_TEXT: &[u8] = b"attesto canary";

/// Why the configured keys cannot be used with this database.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// A configured key has the id of a key of this database and is a different key.
    #[error(
        "encryption key {id} is not the key this database was sealed with: check ATTESTO_ENCRYPTION_KEY and its id"
    )]
    WrongKey {
        /// The id of the key.
        id: u8,
    },
    /// A value is sealed with a key that is not configured.
    #[error(
        "this database holds values sealed with encryption key {}, which is not configured: add it to ATTESTO_ENCRYPTION_KEYS_RETIRED until `attesto encryption status` counts nothing that needs it",
        join_key_ids(ids)
    )]
    MissingKey {
        /// The ids of the keys, ascending.
        ids: Vec<u8>,
    },
    /// The canary could not be read or written.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}

impl CanaryError {
    /// The class for `/ready`, without host names, SQL or anything of a key.
    pub fn error_class(&self) -> &'static str {
        match self {
            Self::WrongKey { .. } => "wrong encryption key",
            Self::MissingKey { .. } => "encryption key missing",
            Self::Database(_) => "database unavailable",
        }
    }
}

/// Joins ids as `1`, `1 and 3` or `1, 2 and 3`.
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

/// Whether the key that is configured under a canary's id can unseal the canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryStatus {
    /// The configured key is the one that the canary was sealed with.
    Matches,
    /// The configured key is a different key, or the canary was changed.
    Mismatch,
    /// No key is configured under this id.
    NotConfigured,
}

/// The status of every key that has a canary, by ascending id. Writes nothing.
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
    let status = match keyring.try_open(sealed_columns::ENCRYPTION_CANARY.context_for(&row), blob) {
        Ok(text) if text.expose_secret() == CANARY_TEXT => CanaryStatus::Matches,
        Err(UnsealError::UnknownKey { .. }) => CanaryStatus::NotConfigured,
        Ok(_) | Err(_) => CanaryStatus::Mismatch,
    };
    (*id, status)
}

/// The keys with which no value was sealed when that was last looked for. After a finished rotation the old key still has its
/// canary, and to look for its values reads every sealed table: too much for every `/ready`.
#[derive(Debug)]
pub(crate) struct UnusedKeys {
    clock: Clock,
    /// By the clock's uptime.
    found_at: Mutex<HashMap<u8, Duration>>,
}

impl UnusedKeys {
    pub(crate) fn new(clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            found_at: Mutex::default(),
        }
    }

    fn contains(&self, id: u8) -> bool {
        let found = self.found_at.lock().get(&id).copied();
        found.is_some_and(|at| self.clock.uptime().saturating_sub(at) < UNUSED_KEY_TTL)
    }

    fn add(&self, id: u8) {
        self.found_at.lock().insert(id, self.clock.uptime());
    }
}

/// Like [`ensure_canaries`], for `/ready`: what is in `unused` is not looked for.
pub(crate) async fn ensure_canaries_except(
    database: &Database,
    keyring: &Keyring,
    unused: &UnusedKeys,
) -> Result<(), CanaryError> {
    let canaries = load_or_add_canaries(database, keyring).await?;
    check_loaded_canaries(database, keyring, &canaries, Some(unused)).await
}

/// Checks the canary of every configured key. Writes that of the sealing key first if it has none. Called before a
/// value is sealed.
pub async fn ensure_canaries(database: &Database, keyring: &Keyring) -> Result<(), CanaryError> {
    let canaries = load_or_add_canaries(database, keyring).await?;
    check_loaded_canaries(database, keyring, &canaries, None).await
}

async fn load_or_add_canaries(
    database: &Database,
    keyring: &Keyring,
) -> Result<Vec<(u8, Vec<u8>)>, Error> {
    let mut canaries = store::load_canaries(database).await?;
    let sealing = keyring.sealing_key_id();
    if !canaries.iter().any(|(id, _)| *id == sealing) {
        let row = sealing.to_string();
        let blob = keyring.seal(
            sealed_columns::ENCRYPTION_CANARY.context_for(&row),
            CANARY_TEXT,
        );
        store::add_canary(database, sealing, &blob).await?;
        // Another process may have written the canary first, with another key: check the row that was stored.
        canaries = store::load_canaries(database).await?;
    }
    Ok(canaries)
}

/// Like [`ensure_canaries`], without writing anything.
pub async fn check_canaries(database: &Database, keyring: &Keyring) -> Result<(), CanaryError> {
    let canaries = store::load_canaries(database).await?;
    check_loaded_canaries(database, keyring, &canaries, None).await
}

async fn check_loaded_canaries(
    database: &Database,
    keyring: &Keyring,
    canaries: &[(u8, Vec<u8>)],
    unused: Option<&UnusedKeys>,
) -> Result<(), CanaryError> {
    let statuses: Vec<_> = canaries
        .iter()
        .map(|it| check_canary(keyring, it))
        .collect();
    if let Some((id, _)) = statuses
        .iter()
        .find(|(_, it)| *it == CanaryStatus::Mismatch)
    {
        return Err(CanaryError::WrongKey { id: *id });
    }
    let mut ids = Vec::new();
    for (id, status) in statuses {
        // A retired key that no value is sealed with any more need not be configured.
        if status != CanaryStatus::NotConfigured || unused.is_some_and(|unused| unused.contains(id))
        {
            continue;
        }
        if store::is_key_in_use(database, id).await? {
            ids.push(id);
        } else if let Some(unused) = unused {
            unused.add(id);
        }
    }
    if ids.is_empty() {
        keyring.set_proved();
        Ok(())
    } else {
        Err(CanaryError::MissingKey { ids })
    }
}

/// Checks that the key of every sealed value is configured, with or without a canary. Reads the first byte of each
/// value, which takes too long for every `/ready`; it is done at start-up.
pub async fn check_all_key_ids(database: &Database, keyring: &Keyring) -> Result<(), CanaryError> {
    let usage = reseal::list_key_usage(database).await?;
    let mut ids: Vec<u8> = usage
        .iter()
        .filter(|usage| usage.column != sealed_columns::ENCRYPTION_CANARY)
        .filter_map(|usage| usage.key_id)
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
