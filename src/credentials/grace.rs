//! Credentials that were replaced, for as long as one can go back to them.
//!
//! The stores of both twins keep them sealed, in tables of their own: a value that is moved from one table to another does
//! not open, so it is opened and sealed anew.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, OpenError, Place};

/// How long, when nobody says otherwise.
pub const GRACE: Duration = Duration::from_hours(72);
/// How often a change is tried again when somebody else changes the same tenant's credentials at the same time.
pub const MOST_ROUNDS: u32 = 10;

/// What may be shown of credentials that were replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Previous {
    /// First 16 hex digits of the SHA-256 of the public key.
    pub key_fingerprint: String,
    /// When they were replaced.
    pub replaced_at: Timestamp,
    /// Until when one can go back to them.
    pub expires_at: Timestamp,
}

impl Previous {
    /// From the columns of an outer join: all of them or none.
    pub fn of(
        key_fingerprint: Option<String>,
        replaced_at: Option<time::OffsetDateTime>,
        expires_at: Option<time::OffsetDateTime>,
    ) -> Option<Self> {
        Some(Self {
            key_fingerprint: key_fingerprint?,
            replaced_at: replaced_at?.into(),
            expires_at: expires_at?.into(),
        })
    }
}

/// What became of the credentials there were before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// There were none.
    None,
    /// They were the same. What could be gone back to still can.
    Same,
    /// They are kept for the grace.
    Kept,
    /// Nobody wants them to be kept.
    Dropped,
    /// They cannot be kept, because they do not open.
    Unopened(OpenError),
}

/// Where a store keeps a tenant's credentials, and where those before them.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Those that are used.
    pub stored: Place<'a>,
    /// Those that were replaced.
    pub previous: Place<'a>,
}

impl Places<'_> {
    /// What becomes of the stored value when others are set, and the same value, sealed for where it is kept.
    pub fn set_aside(
        self,
        keyring: &Keyring,
        stored: &[u8],
        is_same: bool,
        grace: Duration,
    ) -> (Before, Option<Vec<u8>>) {
        if is_same {
            return (Before::Same, None);
        }
        if grace.is_zero() {
            return (Before::Dropped, None);
        }
        match keyring.open(self.stored, stored) {
            Ok(file) => {
                let kept = keyring.seal(self.previous, file.expose_secret());
                (Before::Kept, Some(kept))
            }
            Err(cause) => (Before::Unopened(cause), None),
        }
    }

    /// Each value sealed for the other's place: the previous one to be used, and the stored one to be kept, unless it does not
    /// open.
    pub fn exchanged(
        self,
        keyring: &Keyring,
        stored: &[u8],
        previous: &[u8],
    ) -> Result<(Vec<u8>, Option<Vec<u8>>), NoWayBack> {
        let back = keyring
            .open(self.previous, previous)
            .map_err(NoWayBack::Sealed)?;
        let left = keyring.open(self.stored, stored).ok();
        let left = left.map(|file| keyring.seal(self.previous, file.expose_secret()));
        Ok((keyring.seal(self.stored, back.expose_secret()), left))
    }
}

/// What an update knows of the credentials it replaces.
#[derive(Clone, Copy, Debug)]
pub struct Replaced<'a> {
    /// The sealed value that was read: what stands there now must still be this.
    pub was: &'a [u8],
    /// What becomes of it.
    pub before: &'a Before,
    /// The same, sealed for where it is kept.
    pub kept: Option<&'a [u8]>,
    /// For how long.
    pub grace: Duration,
}

/// Why there is no going back.
#[derive(Debug, thiserror::Error)]
pub enum NoWayBack {
    /// Nothing is kept.
    #[error("nothing to go back to is kept")]
    Nothing,
    /// What is kept does not open.
    #[error("what is kept does not open: {0}")]
    Sealed(OpenError),
    /// Somebody else changes them, again and again.
    #[error("somebody else is changing these credentials at the same time: try again")]
    Contended,
    /// The database did not answer.
    #[error(transparent)]
    Database(#[from] crate::db::Error),
}
