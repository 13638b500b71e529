//! Credentials that were replaced, for as long as one can go back to them.
//!
//! The stores of both twins keep them sealed, in tables of their own: a value that is moved from one table to another does
//! not open, so it is opened and sealed anew.

use std::time::Duration;

use serde::Serialize;

use crate::base::clock::Timestamp;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, SealContext, UnsealError};

/// The default grace period.
pub const DEFAULT_GRACE_PERIOD: Duration = Duration::from_hours(72);
/// How often a change is tried again when another command changes the same tenant's credentials at the same time.
pub const MAX_ROTATE_ATTEMPTS: u32 = 10;

/// What may be shown of credentials that were replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviousCredentials {
    /// First 16 hex digits of the SHA-256 of the public key.
    pub key_fingerprint: String,
    /// When they were replaced.
    pub replaced_at: Timestamp,
    /// Until when one can go back to them.
    pub expires_at: Timestamp,
}

impl PreviousCredentials {
    /// From the columns of an outer join: all of them or none.
    pub fn from_columns(
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
pub enum PreviousOutcome {
    /// There were none.
    None,
    /// They were the same. What could be gone back to still can.
    Unchanged,
    /// They are kept for the grace.
    Retained,
    /// The grace period is zero: they are not kept.
    Discarded,
    /// They cannot be kept, because they do not open.
    NotOpened(UnsealError),
}

/// Where a store keeps a tenant's credentials, and where those before them.
#[derive(Clone, Copy, Debug)]
pub struct CredentialHistory<'a> {
    /// Those that are used.
    pub current: SealContext<'a>,
    /// Those that were replaced.
    pub previous: SealContext<'a>,
}

impl CredentialHistory<'_> {
    /// What becomes of the stored value when others are set, and the same value, sealed for where it is kept.
    pub fn rotate(
        self,
        keyring: &Keyring,
        stored: &[u8],
        is_same: bool,
        grace: Duration,
    ) -> (PreviousOutcome, Option<Vec<u8>>) {
        if is_same {
            return (PreviousOutcome::Unchanged, None);
        }
        if grace.is_zero() {
            return (PreviousOutcome::Discarded, None);
        }
        match keyring.open(self.current, stored) {
            Ok(file) => {
                let kept = keyring.seal(self.previous, file.expose_secret());
                (PreviousOutcome::Retained, Some(kept))
            }
            Err(cause) => (PreviousOutcome::NotOpened(cause), None),
        }
    }

    /// Each value sealed for the other's place: the previous one to be used, and the stored one to be kept, unless it does not
    /// open.
    pub fn rollback(
        self,
        keyring: &Keyring,
        stored: &[u8],
        previous: &[u8],
    ) -> Result<(Vec<u8>, Option<Vec<u8>>), RollbackError> {
        let back = keyring
            .open(self.previous, previous)
            .map_err(RollbackError::NotOpened)?;
        let left = keyring.open(self.current, stored).ok();
        let left = left.map(|file| keyring.seal(self.previous, file.expose_secret()));
        Ok((keyring.seal(self.current, back.expose_secret()), left))
    }
}

/// What an update knows of the credentials it replaces.
#[derive(Clone, Copy, Debug)]
pub struct ReplacedCredentials<'a> {
    /// The sealed value that was read: what stands there now must still be this.
    pub expected_blob: &'a [u8],
    /// What becomes of it.
    pub outcome: &'a PreviousOutcome,
    /// The same, sealed for where it is kept.
    pub retained_blob: Option<&'a [u8]>,
    /// For how long.
    pub grace_period: Duration,
}

/// Why there is no going back.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// Nothing is kept.
    #[error("nothing to go back to is kept")]
    NothingRetained,
    /// What is kept does not open.
    #[error("what is kept does not open: {0}")]
    NotOpened(UnsealError),
    /// Another command changed them in each of the rounds.
    #[error("another command is changing these credentials at the same time: try again")]
    Contended,
    /// The database did not answer.
    #[error(transparent)]
    Database(#[from] crate::db::Error),
}
