//! A tenant's Apple credentials in the database: the private key's file sealed, the rest in the open.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::account::{AppleCredentials, AppleEnvironment, EnvironmentChoice, SigningKey};
use super::consumption::ConsumptionInformation;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::credentials::history::{
    CredentialHistory, DEFAULT_GRACE_PERIOD, PreviousCredentials, PreviousOutcome,
};
use crate::credentials::sealed_columns::{APPLE_PREVIOUS_KEY, APPLE_PRIVATE_KEY};
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::Keyring;
use crate::db::{self, Database};
use crate::stores::shared::credentials::{LoadCredentialsError, SetCredentialsError};

/// Where Apple credentials are kept, and the ones they replaced.
pub const CREDENTIAL_HISTORY: CredentialHistory = CredentialHistory {
    current: APPLE_PRIVATE_KEY,
    previous: APPLE_PREVIOUS_KEY,
    columns: "bundle_id, key_id, issuer_id, key_fingerprint, environment, app_apple_id",
};

/// What may be shown of a tenant's Apple credentials: everything but the key.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AppleCredentialSummary {
    /// The tenant that they belong to.
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
    /// What Apple is told where the backend does not say how a purchase was used.
    pub default_consumption: Option<Value>,
    /// When they were last set.
    pub updated_at: Timestamp,
    /// Those before them, while one can go back.
    pub previous: Option<PreviousCredentials>,
}

/// What is set.
pub struct NewAppleCredentials<'a> {
    /// The private key's file as it was uploaded, which is what is sealed.
    pub key_file: &'a [u8],
    /// The same, understood, and everything else.
    pub credentials: &'a AppleCredentials,
}

/// The tenant's credentials, opened. `None` when it has none.
pub async fn load_credentials(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
) -> Result<Option<AppleCredentials>, LoadCredentialsError> {
    let row = sqlx::query!(
        "select bundle_id, key_id, issuer_id, private_key_enc, environment, app_apple_id \
           from apple_credentials where tenant_id = $1",
        tenant.as_str()
    )
    .fetch_optional(database.pool())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let file = keyring
        .open(
            APPLE_PRIVATE_KEY.context_for(tenant.as_str()),
            &row.private_key_enc,
        )
        .map_err(|cause| LoadCredentialsError::CannotUnseal {
            field: "private key",
            tenant: tenant.clone(),
            cause,
        })?;
    let key = SigningKey::parse(file.expose_secret()).map_err(|cause| {
        LoadCredentialsError::Malformed {
            field: "private key",
            tenant: tenant.clone(),
            cause: cause.to_string(),
        }
    })?;
    let environment = EnvironmentChoice::parse(&row.environment).ok_or_else(|| {
        LoadCredentialsError::Malformed {
            field: "environment",
            tenant: tenant.clone(),
            cause: format!("`{}` is not auto, production or sandbox", row.environment),
        }
    })?;
    Ok(Some(AppleCredentials {
        bundle_id: row.bundle_id,
        key_id: row.key_id,
        issuer_id: row.issuer_id,
        key,
        environment,
        app_apple_id: row.app_apple_id,
    }))
}

/// What Apple is told where the tenant's backend does not say how a purchase was used. `None`: nothing.
pub(super) async fn find_default_consumption(
    database: &Database,
    tenant: &TenantId,
) -> Result<Option<ConsumptionInformation>, db::Error> {
    let stored = sqlx::query_scalar!(
        "select default_consumption from apple_credentials where tenant_id = $1",
        tenant.as_str()
    )
    .fetch_optional(database.pool())
    .await?
    .flatten();
    let read = stored.map(serde_json::from_value).transpose();
    read.map_err(|error| db::Error::Decode(error.into()))
}

/// Sets it, or removes it. It is no part of the credentials: a rollback leaves it as it is.
/// False: the tenant has no credentials.
pub(crate) async fn set_default_consumption(
    database: &Database,
    tenant: &TenantId,
    information: Option<&ConsumptionInformation>,
) -> Result<bool, db::Error> {
    let mut change = database
        .begin_single_change(&["apple_credentials"], Some(tenant.as_str()))
        .await?;
    let updated = sqlx::query!(
        "update apple_credentials set default_consumption = $2 where tenant_id = $1",
        tenant.as_str(),
        information.map(|information| json!(information)),
    )
    .execute(&mut change)
    .await?;
    change.commit().await?;
    Ok(updated.rows_affected() > 0)
}

/// What may be shown of the tenant's credentials; opens nothing. `None` when it has none.
pub async fn find_credential_summary(
    database: &Database,
    tenant: &TenantId,
) -> Result<Option<AppleCredentialSummary>, db::Error> {
    let row = sqlx::query!(
        r#"
        select stored.bundle_id, stored.key_id, stored.issuer_id, stored.environment, stored.app_apple_id,
               stored.key_fingerprint, stored.default_consumption, stored.updated_at, previous.key_fingerprint as "previous_fingerprint?",
               previous.replaced_at as "replaced_at?", previous.expires_at as "expires_at?"
          from apple_credentials stored
          left join apple_previous_credentials previous
            on previous.tenant_id = stored.tenant_id and previous.expires_at > now()
         where stored.tenant_id = $1
        "#,
        tenant.as_str()
    )
    .fetch_optional(database.pool())
    .await?;
    Ok(row.map(|row| AppleCredentialSummary {
        tenant_id: tenant.clone(),
        bundle_id: row.bundle_id,
        key_id: row.key_id,
        issuer_id: row.issuer_id,
        environment: row.environment,
        app_apple_id: row.app_apple_id,
        has_private_key: true,
        key_fingerprint: row.key_fingerprint,
        default_consumption: row.default_consumption,
        updated_at: row.updated_at.into(),
        previous: PreviousCredentials::from_columns(
            row.previous_fingerprint,
            row.replaced_at,
            row.expires_at,
        ),
    }))
}

/// The active tenants that have Apple credentials, oldest first.
pub(crate) async fn list_active_tenants(database: &Database) -> Result<Vec<TenantId>, db::Error> {
    sqlx::query_scalar!(
        r#"
        select tenant.id as "id: TenantId"
          from tenants tenant join apple_credentials stored on stored.tenant_id = tenant.id
         where tenant.is_active
         order by tenant.id
        "#
    )
    .fetch_all(database.pool())
    .await
}

/// Stores credentials in place of those there were, every field of them, and keeps those for the grace period. Setting the same
/// twice is the same as once.
pub async fn set_credentials(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    new: &NewAppleCredentials<'_>,
) -> Result<(), SetCredentialsError> {
    replace_credentials(database, keyring, tenant, new, DEFAULT_GRACE_PERIOD)
        .await
        .map(drop)
}

/// The same with a grace of the caller's own, none at all when it is zero; and what became of those there were.
pub async fn replace_credentials(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    new: &NewAppleCredentials<'_>,
    grace: Duration,
) -> Result<PreviousOutcome, SetCredentialsError> {
    let credentials = new.credentials;
    let sealed = keyring.seal(APPLE_PRIVATE_KEY.context_for(tenant.as_str()), new.key_file);
    let mut transaction = database
        .begin_change(&["apple_credentials"], Some(tenant.as_str()))
        .await?;
    let inserted = sqlx::query!(
        "insert into apple_credentials \
                (tenant_id, bundle_id, key_id, issuer_id, private_key_enc, key_fingerprint, environment, app_apple_id) \
         values ($1, $2, $3, $4, $5, $6, $7, $8) \
         on conflict (tenant_id) do nothing",
        tenant.as_str(),
        credentials.bundle_id,
        credentials.key_id,
        credentials.issuer_id,
        sealed,
        credentials.key.fingerprint(),
        credentials.environment.as_str(),
        credentials.app_apple_id,
    )
    .execute(&mut **transaction)
    .await
    .map_err(|error| {
        db::map_constraint_error(error, "apple_credentials_tenant_id_fkey", || {
            SetCredentialsError::UnknownTenant(tenant.clone())
        })
    })?;
    if inserted.rows_affected() == 1 {
        transaction.commit().await?;
        return Ok(PreviousOutcome::None);
    }
    let stored = sqlx::query!(
        "select bundle_id, key_id, issuer_id, private_key_enc, key_fingerprint, environment, app_apple_id \
           from apple_credentials where tenant_id = $1 for update",
        tenant.as_str()
    )
    .fetch_one(&mut **transaction)
    .await?;
    let is_same = stored.bundle_id == credentials.bundle_id
        && stored.key_id == credentials.key_id
        && stored.issuer_id == credentials.issuer_id
        && stored.key_fingerprint == credentials.key.fingerprint()
        && stored.environment == credentials.environment.as_str()
        && stored.app_apple_id == credentials.app_apple_id;
    let outcome = if is_same {
        PreviousOutcome::Unchanged
    } else {
        let stored = &stored.private_key_enc;
        CREDENTIAL_HISTORY
            .retain(&mut transaction, keyring, tenant, stored, grace)
            .await?
    };
    sqlx::query!(
        "update apple_credentials \
            set bundle_id = $2, key_id = $3, issuer_id = $4, private_key_enc = $5, key_fingerprint = $6, environment = $7, \
                app_apple_id = $8, updated_at = now() \
          where tenant_id = $1",
        tenant.as_str(),
        credentials.bundle_id,
        credentials.key_id,
        credentials.issuer_id,
        sealed,
        credentials.key.fingerprint(),
        credentials.environment.as_str(),
        credentials.app_apple_id,
    )
    .execute(&mut **transaction)
    .await?;
    transaction.commit().await?;
    Ok(outcome)
}

/// Keeps what became of the test notification that Apple was last asked for: Apple's word, or one of those in
/// [`super::test_notification`].
pub async fn record_test_notification(
    database: &Database,
    tenant: &TenantId,
    environment: AppleEnvironment,
    result: &str,
) -> Result<(), db::Error> {
    sqlx::query!(
        "
        insert into apple_test_notifications (tenant_id, environment, asked_at, result)
        values ($1, $2, now(), $3)
        on conflict (tenant_id, environment) do update set asked_at = excluded.asked_at, result = excluded.result
        ",
        tenant.as_str(),
        environment.as_str(),
        result,
    )
    .execute(database.pool())
    .await?;
    Ok(())
}
