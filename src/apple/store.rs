//! A tenant's Apple credentials in the database: the private key's file sealed, the rest in the open.

use serde::Serialize;

use super::account::{Credentials, EnvironmentChoice, MalformedKey, SigningKey};
use crate::clock::Timestamp;
use crate::credentials::sealed::APPLE_PRIVATE_KEY;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, OpenError};
use crate::db::{self, Database};
use crate::id::TenantId;

/// Why stored credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The database did not answer.
    #[error(transparent)]
    Database(#[from] db::Error),
    /// They do not open.
    #[error("the private key of {tenant} cannot be opened: {cause}")]
    Sealed {
        /// Whose.
        tenant: TenantId,
        /// Why.
        cause: OpenError,
    },
    /// They open, but are not what was checked when they were set: another release, or another hand.
    #[error("the stored private key of {tenant} is not one: {cause}")]
    Malformed {
        /// Whose.
        tenant: TenantId,
        /// Why.
        cause: MalformedKey,
    },
    /// The environment is a word of another release.
    #[error("the stored environment of {tenant} is none that is known here: {word}")]
    Environment {
        /// Whose.
        tenant: TenantId,
        /// What is stored.
        word: String,
    },
}

/// What may be shown of a tenant's Apple credentials: everything but the key.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Whose.
    pub tenant_id: TenantId,
    /// The tenant's app.
    pub bundle_id: String,
    /// Apple's name for the key.
    pub key_id: String,
    /// Apple's name for the team.
    pub issuer_id: String,
    /// `auto`, `production` or `sandbox`.
    pub environment: String,
    /// Apple's number for the app.
    pub app_apple_id: Option<i64>,
    /// Always true: there are no credentials without one.
    pub has_private_key: bool,
    /// First 16 hex digits of the SHA-256 of the public key.
    pub key_fingerprint: String,
    /// When they were last set.
    pub updated_at: Timestamp,
}

/// What is set.
pub struct NewCredentials<'a> {
    /// The private key's file as it was uploaded, which is what is sealed.
    pub file: &'a [u8],
    /// The same, understood, and everything else.
    pub credentials: &'a Credentials,
}

/// Why credentials were not stored.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// There is no tenant of this id.
    #[error("there is no tenant {0}")]
    UnknownTenant(TenantId),
    /// The database did not take them.
    #[error(transparent)]
    Database(#[from] db::Error),
}

/// The tenant's credentials, opened. `None` when it has none.
pub async fn find(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
) -> Result<Option<Credentials>, FindError> {
    let row = sqlx::query!(
        "select bundle_id, key_id, issuer_id, private_key_enc, environment, app_apple_id \
           from apple_credentials where tenant_id = $1",
        tenant.as_str()
    )
    .fetch_optional(database.pool())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let file = keyring
        .open(APPLE_PRIVATE_KEY.of(tenant.as_str()), &row.private_key_enc)
        .map_err(|cause| FindError::Sealed {
            tenant: tenant.clone(),
            cause,
        })?;
    let key = SigningKey::parse(file.expose_secret()).map_err(|cause| FindError::Malformed {
        tenant: tenant.clone(),
        cause,
    })?;
    let environment =
        EnvironmentChoice::parse(&row.environment).ok_or_else(|| FindError::Environment {
            tenant: tenant.clone(),
            word: row.environment,
        })?;
    Ok(Some(Credentials {
        bundle_id: row.bundle_id,
        key_id: row.key_id,
        issuer_id: row.issuer_id,
        key,
        environment,
        app_apple_id: row.app_apple_id,
    }))
}

/// What may be shown of the tenant's credentials; opens nothing. `None` when it has none.
pub async fn describe(
    database: &Database,
    tenant: &TenantId,
) -> Result<Option<Summary>, db::Error> {
    let row = sqlx::query!(
        "select bundle_id, key_id, issuer_id, environment, app_apple_id, key_fingerprint, updated_at \
           from apple_credentials where tenant_id = $1",
        tenant.as_str()
    )
    .fetch_optional(database.pool())
    .await?;
    Ok(row.map(|row| Summary {
        tenant_id: tenant.clone(),
        bundle_id: row.bundle_id,
        key_id: row.key_id,
        issuer_id: row.issuer_id,
        environment: row.environment,
        app_apple_id: row.app_apple_id,
        has_private_key: true,
        key_fingerprint: row.key_fingerprint,
        updated_at: row.updated_at.into(),
    }))
}

/// Stores credentials in place of those there were, every field of them. Setting the same twice is the same as once.
pub async fn put(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    new: &NewCredentials<'_>,
) -> Result<(), PutError> {
    let sealed = keyring.seal(APPLE_PRIVATE_KEY.of(tenant.as_str()), new.file);
    let credentials = new.credentials;
    sqlx::query!(
        "insert into apple_credentials \
                (tenant_id, bundle_id, key_id, issuer_id, private_key_enc, key_fingerprint, environment, app_apple_id) \
         values ($1, $2, $3, $4, $5, $6, $7, $8) \
         on conflict (tenant_id) do update \
            set bundle_id = excluded.bundle_id, \
                key_id = excluded.key_id, \
                issuer_id = excluded.issuer_id, \
                private_key_enc = excluded.private_key_enc, \
                key_fingerprint = excluded.key_fingerprint, \
                environment = excluded.environment, \
                app_apple_id = excluded.app_apple_id, \
                updated_at = now()",
        tenant.as_str(),
        credentials.bundle_id,
        credentials.key_id,
        credentials.issuer_id,
        sealed,
        credentials.key.fingerprint(),
        credentials.environment.as_str(),
        credentials.app_apple_id,
    )
    .execute(database.pool())
    .await
    .map_err(|error| {
        db::on_constraint(error, "apple_credentials_tenant_id_fkey", || {
            PutError::UnknownTenant(tenant.clone())
        })
    })?;
    Ok(())
}
