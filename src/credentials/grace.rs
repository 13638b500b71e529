//! Credentials that were replaced, for as long as one can go back to them.
//!
//! The stores of both twins keep them sealed, in tables of their own: a value that is moved from one table to another does
//! not open, so it is opened and sealed anew.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::crypto::keyring::OpenError;

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
