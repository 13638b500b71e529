//! Credentials that were replaced, kept for the grace period so that the replacement can be rolled back.
//!
//! Both stores keep them sealed, in tables of their own. A sealed value is bound to its table, so it is unsealed and
//! sealed again when it moves from one table to the other. A change first locks the tenant's row of credentials in use, and
//! changes both tables in one transaction: there is no moment at which neither value is stored.

use std::time::Duration;

use serde::Serialize;

use super::sealed_columns::SealedColumn;
use super::store;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, UnsealError};
use crate::db::{Database, DbTransaction, Error};

/// The default grace period, during which a replacement can be rolled back.
pub const DEFAULT_GRACE_PERIOD: Duration = Duration::from_hours(72);

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

/// Where a store keeps the tenants' current credentials, and where the previous ones. The sealed column has the same name in both
/// tables.
#[derive(Clone, Copy, Debug)]
pub struct CredentialHistory {
    /// The sealed column of the credentials in use.
    pub current: SealedColumn,
    /// The sealed column of the credentials they replaced.
    pub previous: SealedColumn,
    /// The other columns that both tables have, separated by commas; `tenant_id` is not one of them.
    pub columns: &'static str,
}

/// The tables whose changes are logged.
const CREDENTIAL_TABLES: &[&str] = &["apple_credentials", "google_credentials"];

impl CredentialHistory {
    /// Keeps the tenant's credentials, which are about to be replaced, for the grace period, in place of those that were kept
    /// before. `stored` is the sealed value of their row, which `transaction` has locked.
    pub async fn retain(
        self,
        transaction: &mut DbTransaction,
        keyring: &Keyring,
        tenant: &TenantId,
        stored: &[u8],
        grace: Duration,
    ) -> Result<PreviousOutcome, Error> {
        let reseal = || self.reseal_as_previous(keyring, tenant, stored);
        let resealed = (!grace.is_zero()).then(reseal);
        let retained = resealed.as_ref().and_then(|blob| blob.as_deref().ok());
        store::replace_retained(transaction, self, tenant, retained, grace).await?;
        Ok(match resealed {
            None => PreviousOutcome::Discarded,
            Some(Ok(_)) => PreviousOutcome::Retained,
            Some(Err(cause)) => PreviousOutcome::NotOpened(cause),
        })
    }

    /// Swaps the tenant's credentials and those that were replaced last, so that a second rollback undoes the first. The ones
    /// that are replaced now are kept for `grace`, if they can be opened.
    pub async fn rollback(
        self,
        database: &Database,
        keyring: &Keyring,
        tenant: &TenantId,
        grace: Duration,
    ) -> Result<(), RollbackError> {
        let mut transaction = database
            .begin_change(CREDENTIAL_TABLES, Some(tenant.as_str()))
            .await?;
        let (stored, previous) = store::lock_both(&mut transaction, self, tenant)
            .await?
            .ok_or(RollbackError::NothingRetained)?;
        let file = keyring
            .open(self.previous.context_for(tenant.as_str()), &previous)
            .map_err(RollbackError::NotOpened)?;
        let context = self.current.context_for(tenant.as_str());
        let restored = keyring.seal(context, file.expose_secret());
        let retained = self.reseal_as_previous(keyring, tenant, &stored).ok();
        let retained = retained.as_deref();
        store::swap_both(&mut transaction, self, tenant, &restored, retained, grace).await?;
        transaction.commit().await?;
        Ok(())
    }

    fn reseal_as_previous(
        self,
        keyring: &Keyring,
        tenant: &TenantId,
        stored: &[u8],
    ) -> Result<Vec<u8>, UnsealError> {
        let file = keyring.open(self.current.context_for(tenant.as_str()), stored)?;
        let context = self.previous.context_for(tenant.as_str());
        Ok(keyring.seal(context, file.expose_secret()))
    }
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
    /// A query failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}
