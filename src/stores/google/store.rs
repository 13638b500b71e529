//! Google's tables: a tenant's credentials, of which only the service account's key file is sealed; and which purchase
//! replaced which.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::account::GoogleServiceAccount;
use super::chain::PurchaseLink;
use super::refund_review::RefundReview;
use super::trust::PushSettings;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::credentials::history::{
    CredentialHistory, DEFAULT_GRACE_PERIOD, PreviousCredentials, PreviousOutcome,
};
use crate::credentials::sealed_columns::{GOOGLE_PREVIOUS_ACCOUNT, GOOGLE_SERVICE_ACCOUNT};
use crate::crypto::keyring::Keyring;
use crate::crypto::{ExposeSecret as _, token};
use crate::db::{self, Database};
use crate::stores::shared::credentials::{LoadCredentialsError, SetCredentialsError};
use crate::tenants::lane::lane_column;

/// Where Google credentials are kept, and the ones they replaced.
pub const CREDENTIAL_HISTORY: CredentialHistory = CredentialHistory {
    current: GOOGLE_SERVICE_ACCOUNT,
    previous: GOOGLE_PREVIOUS_ACCOUNT,
    columns: "package_name, client_email, key_fingerprint, pubsub_audience, pubsub_service_account, pubsub_topic",
};

/// A tenant's Google credentials, opened.
#[derive(Debug)]
pub struct GoogleCredentials {
    /// The package name of the tenant's app.
    pub package_name: String,
    /// The account that calls Google.
    pub account: Arc<GoogleServiceAccount>,
    /// Which pushes are accepted.
    pub push_settings: PushSettings,
    /// Who acknowledges purchases.
    pub acknowledge: AcknowledgePolicy,
}

/// When Attesto acknowledges a tenant's purchases by itself.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    strum::IntoStaticStr,
    strum::EnumString,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum AcknowledgePolicy {
    /// Never: the app or the tenant's backend acknowledges them
    Never,
    /// After the first successful verification
    Verify,
}

impl AcknowledgePolicy {
    fn from_column(word: &str) -> Result<Self, db::Error> {
        word.parse()
            .map_err(|error: strum::ParseError| db::Error::Decode(error.into()))
    }

    fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Everything about a tenant's Google credentials but the key.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GoogleCredentialSummary {
    /// The tenant they belong to.
    pub tenant_id: TenantId,
    /// The package name of the tenant's app.
    pub package_name: String,
    /// The service account's address.
    pub client_email: String,
    /// Always true: there are no credentials without one.
    pub has_private_key: bool,
    /// First 16 hex digits of the SHA-256 of the public key.
    pub key_fingerprint: String,
    /// The audience that a push's token must have.
    pub pubsub_audience: Option<String>,
    /// The service account that a push's token must carry.
    pub pubsub_service_account: Option<String>,
    /// The topic that Google publishes notifications to: `projects/…/topics/…`.
    pub pubsub_topic: Option<String>,
    /// When Attesto acknowledges purchases by itself.
    pub acknowledge: AcknowledgePolicy,
    /// What Google is told about a refund where the backend says nothing.
    pub default_refund_review: Option<Value>,
    /// When the credentials were set last.
    pub updated_at: Timestamp,
    /// The credentials before these, while a rollback is possible.
    pub previous: Option<PreviousCredentials>,
}

/// Credentials to store.
pub struct NewGoogleCredentials<'a> {
    /// The package name of the tenant's app.
    pub package_name: &'a str,
    /// The service account's key file as it was uploaded. This is what is sealed.
    pub key_file: &'a [u8],
    /// The same file, parsed.
    pub account: &'a GoogleServiceAccount,
    /// The audience that a push's token must have. `None` keeps the stored value, an empty text removes it.
    pub pubsub_audience: Option<&'a str>,
    /// The service account that a push's token must carry. `None` and an empty text: see `pubsub_audience`.
    pub pubsub_service_account: Option<&'a str>,
    /// The topic that Google publishes notifications to. `None` and an empty text: see `pubsub_audience`.
    pub pubsub_topic: Option<&'a str>,
}

/// The tenant's credentials, opened. `None` when it has none.
pub async fn load_credentials(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
) -> Result<Option<GoogleCredentials>, LoadCredentialsError> {
    let row = sqlx::query!(
        "select package_name, service_account_enc, pubsub_audience, pubsub_service_account, acknowledge \
           from google_credentials where tenant_id = $1",
        tenant.as_str()
    )
    .fetch_optional(database.pool())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let file = keyring
        .open(
            GOOGLE_SERVICE_ACCOUNT.context_for(tenant.as_str()),
            &row.service_account_enc,
        )
        .map_err(|cause| LoadCredentialsError::CannotUnseal {
            field: "service account",
            tenant: tenant.clone(),
            cause,
        })?;
    let account = GoogleServiceAccount::parse(file.expose_secret()).map_err(|cause| {
        LoadCredentialsError::Malformed {
            field: "service account",
            tenant: tenant.clone(),
            cause: cause.to_string(),
        }
    })?;
    Ok(Some(GoogleCredentials {
        package_name: row.package_name,
        account: Arc::new(account),
        push_settings: PushSettings {
            audience: row.pubsub_audience,
            account: row.pubsub_service_account,
        },
        acknowledge: AcknowledgePolicy::from_column(&row.acknowledge)?,
    }))
}

/// Everything about the tenant's credentials but the key, which is not opened. `None` when it has none.
pub async fn find_credential_summary(
    database: &Database,
    tenant: &TenantId,
) -> Result<Option<GoogleCredentialSummary>, db::Error> {
    let row = sqlx::query!(
        r#"
        select stored.package_name, stored.client_email, stored.key_fingerprint, stored.pubsub_audience,
               stored.pubsub_service_account, stored.pubsub_topic, stored.acknowledge, stored.default_refund_review,
               stored.updated_at,
               previous.key_fingerprint as "previous_fingerprint?", previous.replaced_at as "replaced_at?",
               previous.expires_at as "expires_at?"
          from google_credentials stored
          left join google_previous_credentials previous
            on previous.tenant_id = stored.tenant_id and previous.expires_at > now()
         where stored.tenant_id = $1
        "#,
        tenant.as_str()
    )
    .fetch_optional(database.pool())
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(GoogleCredentialSummary {
        tenant_id: tenant.clone(),
        package_name: row.package_name,
        client_email: row.client_email,
        has_private_key: true,
        key_fingerprint: row.key_fingerprint,
        pubsub_audience: row.pubsub_audience,
        pubsub_service_account: row.pubsub_service_account,
        pubsub_topic: row.pubsub_topic,
        acknowledge: AcknowledgePolicy::from_column(&row.acknowledge)?,
        default_refund_review: row.default_refund_review,
        updated_at: row.updated_at.into(),
        previous: PreviousCredentials::from_columns(
            row.previous_fingerprint,
            row.replaced_at,
            row.expires_at,
        ),
    }))
}

/// Sets when Attesto acknowledges the tenant's purchases by itself. Without effect for a tenant without credentials. It is no part of
/// the credentials: a rollback leaves it as it is.
pub async fn set_acknowledge_policy(
    database: &Database,
    tenant: &TenantId,
    policy: AcknowledgePolicy,
) -> Result<(), db::Error> {
    let mut change = database
        .begin_single_change(&["google_credentials"], Some(tenant.as_str()))
        .await?;
    sqlx::query!(
        "update google_credentials set acknowledge = $2 where tenant_id = $1 and acknowledge <> $2",
        tenant.as_str(),
        policy.as_str(),
    )
    .execute(&mut change)
    .await?;
    change.commit().await
}

/// The active tenants with credentials.
pub(crate) async fn list_active_tenants(database: &Database) -> Result<Vec<TenantId>, db::Error> {
    sqlx::query_scalar!(
        r#"
        select tenant.id as "id: TenantId"
          from tenants tenant join google_credentials stored on stored.tenant_id = tenant.id
         where tenant.is_active
         order by tenant.id
        "#
    )
    .fetch_all(database.pool())
    .await
}

/// What Google is told about a refund where the tenant's backend says nothing. `None`: nothing.
pub(super) async fn find_default_review(
    database: &Database,
    tenant: &TenantId,
) -> Result<Option<RefundReview>, db::Error> {
    let stored = sqlx::query_scalar!(
        "select default_refund_review from google_credentials where tenant_id = $1",
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
pub(crate) async fn set_default_review(
    database: &Database,
    tenant: &TenantId,
    review: Option<&RefundReview>,
) -> Result<bool, db::Error> {
    let mut change = database
        .begin_single_change(&["google_credentials"], Some(tenant.as_str()))
        .await?;
    let updated = sqlx::query!(
        "update google_credentials set default_refund_review = $2 where tenant_id = $1",
        tenant.as_str(),
        review.map(|review| json!(review)),
    )
    .execute(&mut change)
    .await?;
    change.commit().await?;
    Ok(updated.rows_affected() > 0)
}

/// Stores credentials, and keeps the replaced ones for [`DEFAULT_GRACE_PERIOD`]. Storing the same ones again changes
/// nothing.
pub async fn set_credentials(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    new: &NewGoogleCredentials<'_>,
) -> Result<(), SetCredentialsError> {
    replace_credentials(database, keyring, tenant, new, DEFAULT_GRACE_PERIOD)
        .await
        .map(drop)
}

/// The same with a grace period of the caller's choice, none when it is zero. Returns what happened to the replaced ones.
pub async fn replace_credentials(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    new: &NewGoogleCredentials<'_>,
    grace: Duration,
) -> Result<PreviousOutcome, SetCredentialsError> {
    let context = GOOGLE_SERVICE_ACCOUNT.context_for(tenant.as_str());
    let sealed = keyring.seal(context, new.key_file);
    let mut transaction = database
        .begin_change(&["google_credentials"], Some(tenant.as_str()))
        .await?;
    let inserted = sqlx::query!(
        "insert into google_credentials \
                (tenant_id, package_name, service_account_enc, client_email, key_fingerprint, \
                 pubsub_audience, pubsub_service_account, pubsub_topic) \
         values ($1, $2, $3, $4, $5, nullif($6::text, ''), nullif($7::text, ''), nullif($8::text, '')) \
         on conflict (tenant_id) do nothing",
        tenant.as_str(),
        new.package_name,
        sealed,
        new.account.client_email(),
        new.account.fingerprint(),
        new.pubsub_audience,
        new.pubsub_service_account,
        new.pubsub_topic,
    )
    .execute(&mut **transaction)
    .await
    .map_err(|error| {
        db::map_constraint_error(error, "google_credentials_tenant_id_fkey", || {
            SetCredentialsError::UnknownTenant(tenant.clone())
        })
    })?;
    if inserted.rows_affected() == 1 {
        transaction.commit().await?;
        return Ok(PreviousOutcome::None);
    }
    let stored = sqlx::query!(
        "select package_name, service_account_enc, client_email, key_fingerprint, pubsub_audience, \
                pubsub_service_account, pubsub_topic \
           from google_credentials where tenant_id = $1 for update",
        tenant.as_str()
    )
    .fetch_one(&mut **transaction)
    .await?;
    let is_unchanged = |given: Option<&str>, stored: &Option<String>| {
        given.is_none_or(|given| given == stored.as_deref().unwrap_or_default())
    };
    let is_same = stored.package_name == new.package_name
        && stored.client_email == new.account.client_email()
        && stored.key_fingerprint == new.account.fingerprint()
        && is_unchanged(new.pubsub_audience, &stored.pubsub_audience)
        && is_unchanged(new.pubsub_service_account, &stored.pubsub_service_account)
        && is_unchanged(new.pubsub_topic, &stored.pubsub_topic);
    let outcome = if is_same {
        PreviousOutcome::Unchanged
    } else {
        let stored = &stored.service_account_enc;
        CREDENTIAL_HISTORY
            .retain(&mut transaction, keyring, tenant, stored, grace)
            .await?
    };
    sqlx::query!(
        "update google_credentials \
            set package_name = $2, service_account_enc = $3, client_email = $4, key_fingerprint = $5, \
                pubsub_audience = nullif(coalesce($6, pubsub_audience), ''), \
                pubsub_service_account = nullif(coalesce($7, pubsub_service_account), ''), \
                pubsub_topic = nullif(coalesce($8, pubsub_topic), ''), updated_at = now() \
          where tenant_id = $1",
        tenant.as_str(),
        new.package_name,
        sealed,
        new.account.client_email(),
        new.account.fingerprint(),
        new.pubsub_audience,
        new.pubsub_service_account,
        new.pubsub_topic,
    )
    .execute(&mut **transaction)
    .await?;
    transaction.commit().await?;
    Ok(outcome)
}

/// The stored links of a chain, newest first: that of `purchase_token`, that of the purchase it replaces, and so on, at most
/// `limit`. Empty when none is stored. In a cycle links repeat.
pub(super) async fn list_purchase_links(
    database: &Database,
    tenant: &TenantId,
    purchase_token: &str,
    limit: i32,
) -> Result<Vec<PurchaseLink>, db::Error> {
    let hash = token::sha256(purchase_token.as_bytes());
    sqlx::query_as!(
        PurchaseLink,
        r#"
        with recursive chain as (
            select token, replaces, is_paid, app_user_id, 1 as depth
            from purchase_links
            where lane = $4 and tenant_id = $1 and token_hash = $2
            union all
            select link.token, link.replaces, link.is_paid, link.app_user_id, chain.depth + 1
            from chain
            join purchase_links as link
                on link.lane = $4 and link.tenant_id = $1 and link.token_hash = sha256(convert_to(chain.replaces, 'UTF8'))
            where chain.depth < $3
        )
        select token as "token!", replaces, is_paid, app_user_id from chain order by depth
        "#,
        tenant.as_str(),
        hash.as_slice(),
        limit,
        lane_column(tenant),
    )
    .fetch_all(database.pool())
    .await
}

/// The stored links of the purchases that replace `purchase_token`, that replace those, and so on: newest first, at most
/// `limit` steps away. In a cycle links repeat.
pub(super) async fn list_later_purchase_links(
    database: &Database,
    tenant: &TenantId,
    purchase_token: &str,
    limit: i32,
) -> Result<Vec<PurchaseLink>, db::Error> {
    let hash = token::sha256(purchase_token.as_bytes());
    sqlx::query_as!(
        PurchaseLink,
        r#"
        with recursive later as (
            select token_hash, token, replaces, is_paid, app_user_id, recorded_at, 1 as depth
            from purchase_links
            where lane = $4 and tenant_id = $1 and replaces is not null and purchase_token_hash(replaces) = $2
            union all
            select link.token_hash, link.token, link.replaces, link.is_paid, link.app_user_id, link.recorded_at,
                later.depth + 1
            from later
            join purchase_links as link
                on link.lane = $4 and link.tenant_id = $1 and link.replaces is not null
                and purchase_token_hash(link.replaces) = later.token_hash
            where later.depth < $3
        )
        select token as "token!", replaces, is_paid, app_user_id from later order by depth desc, recorded_at desc
        "#,
        tenant.as_str(),
        hash.as_slice(),
        limit,
        lane_column(tenant),
    )
    .fetch_all(database.pool())
    .await
}

/// What is stored already stays as it is, except for what was not known then, and for a purchase that was paid since. A row
/// without news is not even locked: many verifications of one purchase would wait for each other.
///
/// A purchase that is now known to replace another one is what events of their `chain` may be waiting for: the same statement
/// makes them due.
pub(super) async fn insert_purchase_links(
    database: &Database,
    tenant: &TenantId,
    links: &[PurchaseLink],
    chain: &[String],
) -> Result<(), db::Error> {
    let hashes: Vec<Vec<u8>> = links
        .iter()
        .map(|link| token::sha256(link.token.as_bytes()).to_vec())
        .collect();
    let chain: Vec<Vec<u8>> = chain
        .iter()
        .map(|token| token::sha256(token.as_bytes()).to_vec())
        .collect();
    let tokens: Vec<&str> = links.iter().map(|link| link.token.as_str()).collect();
    let replaces: Vec<Option<&str>> = links.iter().map(|link| link.replaces.as_deref()).collect();
    let paid: Vec<Option<bool>> = links.iter().map(|link| link.is_paid).collect();
    let users: Vec<Option<&str>> = links
        .iter()
        .map(|link| link.app_user_id.as_deref())
        .collect();
    sqlx::query!(
        "with news as ( \
         insert into purchase_links as stored (lane, tenant_id, token_hash, token, replaces, is_paid, app_user_id) \
         select distinct on (hash) $8::int2, $1, hash, token, replaces, paid, app_user_id \
           from unnest($2::bytea[], $3::text[], $4::text[], $5::bool[], $6::text[]) \
                as new (hash, token, replaces, paid, app_user_id) \
          where not exists (select from purchase_links as known \
                             where known.lane = $8 and known.tenant_id = $1 and known.token_hash = new.hash \
                               and (known.replaces is not null or new.replaces is null) \
                               and (known.is_paid is not null or new.paid is null) \
                               and (known.is_paid or not coalesce(new.paid, false)) \
                               and (known.app_user_id is not null or new.app_user_id is null)) \
          order by hash, paid desc nulls last \
         on conflict (lane, tenant_id, token_hash) do update \
            set replaces = coalesce(stored.replaces, excluded.replaces), \
                is_paid = case when excluded.is_paid then true else coalesce(stored.is_paid, excluded.is_paid) end, \
                app_user_id = coalesce(stored.app_user_id, excluded.app_user_id) \
          where (stored.replaces is null and excluded.replaces is not null) \
             or (stored.is_paid is null and excluded.is_paid is not null) \
             or (not stored.is_paid and excluded.is_paid) \
             or (stored.app_user_id is null and excluded.app_user_id is not null) \
         returning stored.replaces \
         ) \
         update unresolved_states set next_attempt_at = attesto_now() \
          where lane = $8 and tenant_id = $1 and source = 'google' and key_hash = any($7::bytea[]) \
            and state_error = 'replaced_by_unknown' and next_attempt_at > attesto_now() \
            and exists (select from news where replaces is not null)",
        tenant.as_str(),
        &hashes,
        &tokens as &[&str],
        &replaces as &[Option<&str>],
        &paid as &[Option<bool>],
        &users as &[Option<&str>],
        &chain,
        lane_column(tenant),
    )
    .execute(database.pool())
    .await?;
    Ok(())
}
