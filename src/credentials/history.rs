//! Credentials that were replaced, kept for the grace period so that the replacement can be rolled back.
//!
//! Both stores keep them sealed, in tables of their own. A sealed value is bound to its table, so it is unsealed and
//! sealed again when it moves from one table to the other.

use std::time::Duration;

use serde::Serialize;

use crate::base::clock::Timestamp;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, SealContext, UnsealError};

/// The default grace period, during which a replacement can be rolled back.
pub const DEFAULT_GRACE_PERIOD: Duration = Duration::from_hours(72);
/// How many times a change is attempted when other commands change the same tenant's credentials at the same time.
pub const MAX_ROTATE_ATTEMPTS: u32 = 10;

/// The public facts about credentials that were replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviousCredentials {
    /// The first 16 hex digits of the SHA-256 of the public key.
    pub key_fingerprint: String,
    /// When they were replaced.
    pub replaced_at: Timestamp,
    /// When the grace period ends: a rollback is possible until then.
    pub expires_at: Timestamp,
}

impl PreviousCredentials {
    /// From the columns of an outer join, which are all null if there are none.
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

/// What happened to the replaced credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviousOutcome {
    /// No credentials were stored before.
    None,
    /// The new credentials are those that were stored. The previous ones, if any, can still be rolled back to.
    Unchanged,
    /// They are kept for the grace period.
    Retained,
    /// They were not kept, because the grace period is zero.
    Discarded,
    /// They were not kept, because they could not be unsealed.
    NotOpened(UnsealError),
}

/// Where a store keeps a tenant's current credentials, and where the previous ones.
#[derive(Clone, Copy, Debug)]
pub struct CredentialHistory<'a> {
    /// The seal context of the credentials in use.
    pub current: SealContext<'a>,
    /// The seal context of the credentials they replaced.
    pub previous: SealContext<'a>,
}

impl CredentialHistory<'_> {
    /// Decides what happens to the stored value when it is replaced. Returns the value sealed for the table of previous
    /// credentials if it is to be kept.
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
            Ok(secret) => {
                let retained = keyring.seal(self.previous, secret.expose_secret());
                (PreviousOutcome::Retained, Some(retained))
            }
            Err(cause) => (PreviousOutcome::NotOpened(cause), None),
        }
    }

    /// Swaps the two values: returns the previous one sealed as the current one, and the stored one sealed as the
    /// previous one. The latter is `None` if the stored value cannot be unsealed.
    pub fn rollback(
        self,
        keyring: &Keyring,
        stored: &[u8],
        previous: &[u8],
    ) -> Result<(Vec<u8>, Option<Vec<u8>>), RollbackError> {
        let restored = keyring
            .open(self.previous, previous)
            .map_err(RollbackError::NotOpened)?;
        let replaced = keyring.open(self.current, stored).ok();
        let replaced = replaced.map(|secret| keyring.seal(self.previous, secret.expose_secret()));
        let current = keyring.seal(self.current, restored.expose_secret());
        Ok((current, replaced))
    }
}

/// The values that an update of credentials needs of those it replaces.
#[derive(Clone, Copy, Debug)]
pub struct ReplacedCredentials<'a> {
    /// The sealed value that was read. The update fails if the stored value is no longer this one.
    pub expected_blob: &'a [u8],
    /// What happens to the replaced value.
    pub outcome: &'a PreviousOutcome,
    /// The replaced value, sealed for the table of previous credentials, if it is kept.
    pub retained_blob: Option<&'a [u8]>,
    /// How long it is kept.
    pub grace_period: Duration,
}

/// Why a rollback is not possible.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// No previous credentials are kept.
    #[error("there is nothing to go back to, because no previous credentials are kept")]
    NothingRetained,
    /// The previous credentials cannot be unsealed.
    #[error("the previous credentials cannot be decrypted: {0}")]
    NotOpened(UnsealError),
    /// Other commands changed the credentials at each of [`MAX_ROTATE_ATTEMPTS`] attempts.
    #[error("another command is changing these credentials at the same time: try again")]
    Contended,
    /// A query failed.
    #[error(transparent)]
    Database(#[from] crate::db::Error),
}
