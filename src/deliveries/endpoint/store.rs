//! Endpoints in the database. The secrets are sealed.
//!
//! The database's clock alone decides whether a secret is still valid.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;

use time::OffsetDateTime;

use super::callback::{CallbackFilter, CallbackKind, MAX_CALLBACKS};
use super::client_certificate::{ClientCertificate, ClientCertificateSummary};
use super::secret::{MAX_ACTIVE_SECRETS, SigningSecret, SigningSecrets};
use crate::base::clock::Timestamp;
use crate::base::id::{CallbackNumber, TenantId};
use crate::credentials::sealed_columns::{
    CLIENT_CERTIFICATE_KEY, SealedColumn, WEBHOOK_PREVIOUS_SECRET, WEBHOOK_SECRET,
};
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, UnsealError};
use crate::db::{self, Database, DbSession};
use crate::egress::{AllowList, AllowedNetwork};

/// When two processes change the secrets of a tenant at the same time, one of them has to try again.
const MAX_CHANGE_ATTEMPTS: u32 = 10;

/// What a sender needs for a tenant's callback. The URL is not part of it: each delivery has its own.
#[derive(Clone, Debug)]
pub struct WebhookEndpoint {
    /// The secrets that are valid now.
    pub secrets: SigningSecrets,
    /// Whether it is sent events or the stores' own messages.
    pub kind: CallbackKind,
    /// The private networks that an operator has allowed for this tenant.
    pub allow_list: AllowList,
    /// What the callback is shown if it asks for a client certificate.
    pub client_certificate: Option<ClientCertificate>,
}

/// A stored secret could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} of callback {callback} of {tenant} cannot be opened: {cause}")]
pub struct SealedSecretError {
    /// Which secret, in the words of the message.
    pub what: &'static str,
    /// The tenant that owns the secret.
    pub tenant: TenantId,
    /// The callback that it is for.
    pub callback: CallbackNumber,
    /// Why it could not be opened.
    pub cause: UnsealError,
}

/// A change of an endpoint. `None` keeps the stored value.
#[derive(Clone, Debug, Default)]
pub struct EndpointChange<'a> {
    /// The callback. Only the first is created by a change: [`add_endpoint`](super::callbacks::store::add_endpoint) makes others.
    pub callback: CallbackNumber,
    /// Required when the tenant has no endpoint yet.
    pub callback_url: Option<&'a str>,
    /// The new signing secret. When the tenant has no endpoint yet, `None` generates one.
    pub secret: Option<&'a SigningSecret>,
    /// Whether new events are delivered.
    pub is_active: Option<bool>,
    /// How long the current secret stays valid in addition to the new one.
    pub overlap: Duration,
    /// The certificate that the callback is shown from now on.
    pub client_certificate: Option<ClientCertificateChange<'a>>,
}

/// A callback that is created.
#[derive(Clone, Debug)]
pub struct NewEndpoint<'a> {
    /// The URL of the callback.
    pub callback_url: &'a str,
    /// What it is sent.
    pub kind: CallbackKind,
    /// Of which events.
    pub filter: CallbackFilter,
    /// `None` generates one.
    pub secret: Option<&'a SigningSecret>,
    /// Whether new events are delivered.
    pub is_active: bool,
}

/// A change of the client certificate of an endpoint.
#[derive(Clone, Copy, Debug)]
pub enum ClientCertificateChange<'a> {
    /// It is shown from now on, instead of the one before.
    Set(&'a ClientCertificate),
    /// None is shown from now on. Its key is deleted.
    Remove,
}

/// The effect of a change on the secrets.
#[derive(Clone, Debug)]
pub enum SecretChange {
    /// The secret is the same as before.
    Unchanged,
    /// The given secret is the newest now.
    Rotated,
    /// This secret was generated for a new endpoint.
    Generated(SigningSecret),
}

/// Why an endpoint was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EndpointChangeError {
    /// The tenant does not exist.
    #[error("no such tenant: {0}")]
    TenantNotFound(TenantId),
    /// The tenant has no webhook configuration.
    #[error("{0} has no webhook configuration")]
    EndpointNotFound(TenantId),
    /// The tenant has no callback with this number.
    #[error("{0} has no callback {1}: `attesto webhook list {0}` lists its callbacks")]
    CallbackNotFound(TenantId, CallbackNumber),
    /// The maximum number of callbacks exists already.
    #[error(
        "{0} has {MAX_CALLBACKS} callbacks already, which is the maximum: remove one with `attesto webhook remove`"
    )]
    TooManyCallbacks(TenantId),
    /// The maximum number of secrets is valid already.
    #[error(
        "{tenant} has {MAX_ACTIVE_SECRETS} valid secrets already for one callback, which is the maximum: the oldest expires at {until}. Wait until then, or end the previous ones now: attesto webhook retire-secret {tenant}"
    )]
    TooManySecrets {
        /// The tenant that owns the secrets.
        tenant: TenantId,
        /// When the first of them expires.
        until: Timestamp,
    },
    /// The newest secret can only be replaced, not retired.
    #[error(
        "secret {0} is the newest and deliveries must be signed: replace it with `attesto webhook set-config --secret … --overlap 0s`, which ends it at once"
    )]
    NewestSecret(i32),
    /// There is no such previous secret.
    #[error("{0} has no such previous secret that is still valid")]
    NothingToRetire(TenantId),
    /// Another process changed the secrets at the same time, in every try.
    #[error("another process is changing the webhook secrets of {0} at the same time: try again")]
    Contended(TenantId),
    /// A stored secret could not be opened.
    #[error(transparent)]
    Sealed(#[from] SealedSecretError),
    /// The database failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] db::Error),
}

/// What may be shown of a valid secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SigningSecretRow {
    /// Counted from one for each callback.
    pub number: i32,
    /// When it was set.
    pub created_at: Timestamp,
    /// `None` for the newest secret, which does not expire.
    pub expires_at: Option<Timestamp>,
}

/// What may be shown of an endpoint: everything except the secrets.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSummary {
    /// The tenant that owns it.
    pub tenant_id: TenantId,
    /// Its number among the callbacks of the tenant.
    pub callback: CallbackNumber,
    /// What it is sent.
    pub kind: CallbackKind,
    /// The URL for new events.
    pub callback_url: String,
    /// Which events it is sent.
    #[serde(flatten)]
    pub filter: CallbackFilter,
    /// Whether new events are delivered.
    pub is_active: bool,
    /// Always true: an endpoint has at least one secret.
    pub has_secret: bool,
    /// The valid secrets, newest first.
    pub secrets: Vec<SigningSecretRow>,
    /// The private networks that an operator has allowed, such as `10.1.0.0/16:443`.
    pub allowed_networks: Vec<String>,
    /// Those of them in which callbacks may be called by http too.
    pub allowed_http_networks: Vec<String>,
    /// What the callback is shown if it asks for a client certificate.
    pub client_certificate: Option<ClientCertificateSummary>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// The endpoint of each callback, or the secret that could not be opened.
pub type EndpointsByCallback =
    HashMap<(TenantId, CallbackNumber), Result<WebhookEndpoint, SealedSecretError>>;

/// All endpoints of these tenants, in one statement. A tenant without an endpoint is not in the result; a secret that cannot
/// be opened affects only its own callback.
pub async fn load_endpoints(
    database: &Database,
    keyring: &Keyring,
    tenants: &[TenantId],
) -> Result<EndpointsByCallback, db::Error> {
    let tenants: Vec<String> = tenants.iter().map(ToString::to_string).collect();
    let rows = sqlx::query!(
        r#"
        select config.tenant_id as "tenant_id!: TenantId", config.callback as "callback!: CallbackNumber", config.kind as "kind!",
               secret_enc as "secret_enc!",
               certificate_chain as "certificate_chain?", key_enc as "key_enc?",
               array(
                   select previous.secret_enc from webhook_previous_secrets previous
                    where previous.tenant_id = config.tenant_id and previous.callback = config.callback
                      and previous.expires_at > attesto_now()
                    order by number desc
               ) as "previous!",
               array(
                   select concat_ws(' ', allowed.network, allowed.port, case when allowed.allow_http then 'http' end)
                     from webhook_allowed_networks allowed
                    where allowed.tenant_id = config.tenant_id
               ) as "allowed!"
          from webhook_configs config
          left join webhook_client_certificates certificate
                 on certificate.tenant_id = config.tenant_id and certificate.callback = config.callback
         where config.tenant_id = any($1)
        "#,
        &tenants,
    )
    .fetch_all(database.pool())
    .await?;
    let endpoints = rows.into_iter().map(|row| {
        let owner = (row.tenant_id, row.callback);
        let open = |column, blob: &[u8]| open_secret(keyring, column, &owner, blob);
        let opened = || {
            let previous = row.previous.iter();
            let previous = previous.map(|blob| open(WEBHOOK_PREVIOUS_SECRET, blob));
            let sealed = row.certificate_chain.zip(row.key_enc);
            let shown =
                sealed.map(|(chain, key)| open_client_certificate(keyring, &owner, chain, &key));
            Ok(WebhookEndpoint {
                secrets: SigningSecrets {
                    newest: open(WEBHOOK_SECRET, &row.secret_enc)?,
                    previous: previous.collect::<Result<_, _>>()?,
                },
                kind: CallbackKind::from_column(&row.kind),
                allow_list: AllowList::from_column(&row.allowed),
                client_certificate: shown.transpose()?,
            })
        };
        let endpoint = opened();
        (owner, endpoint)
    });
    Ok(endpoints.collect())
}

/// Opens no secret. `None`: the tenant has no such callback.
pub async fn load_endpoint_summary(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
) -> Result<Option<EndpointSummary>, db::Error> {
    let row = sqlx::query!(
        r#"
        select kind as "kind!", callback_url as "callback_url!", events as "events!", sources as "sources!",
               environments as "environments!", is_active as "is_active!", secret_number as "secret_number!",
               secret_created_at as "secret_created_at!", config.created_at as "created_at!", updated_at as "updated_at!",
               certificate_chain[1] as certificate
          from webhook_configs config
          left join webhook_client_certificates certificate
                 on certificate.tenant_id = config.tenant_id and certificate.callback = config.callback
         where config.tenant_id = $1 and config.callback = $2
        "#,
        tenant.as_str(),
        callback.column(),
    )
    .fetch_optional(database.pool())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let previous = sqlx::query_as!(
        SigningSecretRow,
        r#"
        select number, created_at as "created_at: Timestamp", expires_at as "expires_at?: Timestamp"
          from webhook_previous_secrets
         where tenant_id = $1 and callback = $2 and expires_at > attesto_now()
         order by number desc
        "#,
        tenant.as_str(),
        callback.column(),
    )
    .fetch_all(database.pool())
    .await?;
    let mut secrets = vec![SigningSecretRow {
        number: row.secret_number,
        created_at: row.secret_created_at.into(),
        expires_at: None,
    }];
    secrets.extend(previous);
    let allowed = list_allowed_networks(database, tenant).await?;
    Ok(Some(EndpointSummary {
        tenant_id: tenant.clone(),
        callback,
        kind: CallbackKind::from_column(&row.kind),
        callback_url: row.callback_url,
        filter: CallbackFilter {
            events: row.events,
            sources: row.sources,
            environments: row.environments,
        },
        is_active: row.is_active,
        has_secret: true,
        secrets,
        allowed_networks: allowed.iter().map(ToString::to_string).collect(),
        allowed_http_networks: allowed
            .iter()
            .filter(|network| network.is_http_allowed())
            .map(ToString::to_string)
            .collect(),
        client_certificate: row
            .certificate
            .and_then(|certificate| ClientCertificateSummary::from_der(&certificate)),
        created_at: row.created_at.into(),
        updated_at: row.updated_at.into(),
    }))
}

/// The tables that a change of an endpoint writes.
pub(super) const ENDPOINT_TABLES: &[&str] = &[
    "webhook_configs",
    "webhook_previous_secrets",
    "webhook_client_certificates",
];

/// Changes an endpoint of a tenant, or creates the first. Idempotent.
///
/// A new secret is valid from the moment this returns, and the previous one stays valid for the overlap. Both are written by
/// one statement, so at every moment at least one of them signs.
pub async fn change_endpoint(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    change: &EndpointChange<'_>,
) -> Result<SecretChange, EndpointChangeError> {
    for _ in 0..MAX_CHANGE_ATTEMPTS {
        let stored = load_stored_secrets(database, keyring, tenant, change.callback).await?;
        let mut transaction = database
            .begin_change(ENDPOINT_TABLES, Some(tenant.as_str()))
            .await?;
        let with = &mut **transaction;
        let done = match stored {
            None => create_first_endpoint(with, keyring, tenant, change).await?,
            Some(stored) => match change.secret {
                Some(secret) if *secret != stored.newest => {
                    rotate_secret(with, keyring, tenant, change, secret, &stored).await?
                }
                _ => update_endpoint(with, tenant, change).await?,
            },
        };
        if let Some(done) = done {
            change_client_certificate(&mut transaction, keyring, tenant, change).await?;
            transaction.commit().await?;
            return Ok(done);
        }
    }
    Err(EndpointChangeError::Contended(tenant.clone()))
}

/// After the endpoint, whose row is locked.
async fn change_client_certificate(
    with: &mut DbSession,
    keyring: &Keyring,
    tenant: &TenantId,
    change: &EndpointChange<'_>,
) -> Result<(), db::Error> {
    match change.client_certificate {
        None => {}
        Some(ClientCertificateChange::Remove) => {
            sqlx::query!(
                "delete from webhook_client_certificates where tenant_id = $1 and callback = $2",
                tenant.as_str(),
                change.callback.column(),
            )
            .execute(with)
            .await?;
        }
        Some(ClientCertificateChange::Set(certificate)) => {
            sqlx::query!(
                "insert into webhook_client_certificates \
                    (tenant_id, certificate_chain, key_enc, not_before, not_after, created_at, callback) \
                 values ($1, $2, $3, $4, $5, attesto_now(), $6) \
                 on conflict (tenant_id, callback) do update set \
                    certificate_chain = excluded.certificate_chain, key_enc = excluded.key_enc, \
                    not_before = excluded.not_before, not_after = excluded.not_after, created_at = excluded.created_at",
                tenant.as_str(),
                &certificate.chain(),
                keyring.seal(
                    CLIENT_CERTIFICATE_KEY.context_for(tenant.as_str()),
                    certificate.key()
                ),
                OffsetDateTime::from(certificate.not_before()),
                OffsetDateTime::from(certificate.not_after()),
                change.callback.column(),
            )
            .execute(with)
            .await?;
        }
    }
    Ok(())
}

/// Ends the overlap of the previous secret of a callback with this number, or of all previous ones. Returns their numbers.
pub async fn retire_secrets(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
    number: Option<i32>,
) -> Result<Vec<i32>, EndpointChangeError> {
    let newest = sqlx::query_scalar!(
        "select secret_number from webhook_configs where tenant_id = $1 and callback = $2",
        tenant.as_str(),
        callback.column(),
    )
    .fetch_optional(database.pool())
    .await?;
    let newest = newest.ok_or_else(|| endpoint_not_found(tenant, callback))?;
    if number == Some(newest) {
        return Err(EndpointChangeError::NewestSecret(newest));
    }
    // Deleted rather than marked: a secret that has leaked must not stay in the database.
    let mut change = database
        .begin_single_change(&["webhook_previous_secrets"], Some(tenant.as_str()))
        .await?;
    let retired = sqlx::query!(
        r#"
        with clock as (select attesto_now() as now)
        delete from webhook_previous_secrets using clock
         where tenant_id = $1 and callback = $3 and number = coalesce($2, number)
        returning number, expires_at > clock.now as "is_live!"
        "#,
        tenant.as_str(),
        number,
        callback.column(),
    )
    .fetch_all(&mut change)
    .await?;
    change.commit().await?;
    let mut retired: Vec<i32> = retired
        .into_iter()
        .filter(|row| row.is_live)
        .map(|row| row.number)
        .collect();
    if retired.is_empty() {
        return Err(EndpointChangeError::NothingToRetire(tenant.clone()));
    }
    retired.sort_unstable();
    Ok(retired)
}

/// The private networks that an operator has allowed for the tenant.
pub async fn list_allowed_networks(
    database: &Database,
    tenant: &TenantId,
) -> Result<Vec<AllowedNetwork>, db::Error> {
    let rows = sqlx::query_scalar!(
        r#"
        select concat_ws(' ', network, port, case when allow_http then 'http' end) as "opening!"
          from webhook_allowed_networks
         where tenant_id = $1 order by network, port
        "#,
        tenant.as_str()
    )
    .fetch_all(database.pool())
    .await?;
    let allowed = rows
        .iter()
        .filter_map(|text| AllowedNetwork::from_column(text));
    Ok(allowed.collect())
}

/// Allows a network for the tenant, by http too or only by https. Returns whether this is new.
pub async fn allow_network(
    database: &Database,
    tenant: &TenantId,
    opening: &AllowedNetwork,
) -> Result<bool, EndpointChangeError> {
    let mut change = database
        .begin_single_change(&["webhook_allowed_networks"], Some(tenant.as_str()))
        .await?;
    let added = sqlx::query!(
        "insert into webhook_allowed_networks as known (tenant_id, network, port, allow_http) \
         values ($1, $2::text::cidr, $3, $4) \
         on conflict (tenant_id, network, port) do update set allow_http = excluded.allow_http \
            where known.allow_http is distinct from excluded.allow_http",
        tenant.as_str(),
        opening.network(),
        i32::from(opening.port()),
        opening.is_http_allowed(),
    )
    .execute(&mut change)
    .await
    .map_err(|error| {
        db::map_constraint_error(error, "webhook_allowed_networks_tenant_id_fkey", || {
            EndpointChangeError::TenantNotFound(tenant.clone())
        })
    })?;
    change.commit().await?;
    Ok(added.rows_affected() == 1)
}

/// Removes an allowed network. Returns whether it was there.
pub async fn disallow_network(
    database: &Database,
    tenant: &TenantId,
    opening: &AllowedNetwork,
) -> Result<bool, db::Error> {
    let mut change = database
        .begin_single_change(&["webhook_allowed_networks"], Some(tenant.as_str()))
        .await?;
    let removed = sqlx::query!(
        "delete from webhook_allowed_networks where tenant_id = $1 and network = $2::text::cidr and port = $3",
        tenant.as_str(),
        opening.network(),
        i32::from(opening.port()),
    )
    .execute(&mut change)
    .await?;
    change.commit().await?;
    Ok(removed.rows_affected() == 1)
}

struct StoredSecrets {
    newest: SigningSecret,
    number: i32,
    /// Those that are still valid, oldest first.
    previous: Vec<PreviousSigningSecret>,
}

struct PreviousSigningSecret {
    number: i32,
    secret: SigningSecret,
    expires_at: Timestamp,
}

async fn load_stored_secrets(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    callback: CallbackNumber,
) -> Result<Option<StoredSecrets>, EndpointChangeError> {
    let row = sqlx::query!(
        "select secret_enc, secret_number from webhook_configs where tenant_id = $1 and callback = $2",
        tenant.as_str(),
        callback.column(),
    )
    .fetch_optional(database.pool())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let previous = sqlx::query!(
        "select number, secret_enc, expires_at from webhook_previous_secrets \
          where tenant_id = $1 and callback = $2 and expires_at > attesto_now() \
          order by number",
        tenant.as_str(),
        callback.column(),
    )
    .fetch_all(database.pool())
    .await?;
    let owner = (tenant.clone(), callback);
    let previous = previous.into_iter().map(|row| {
        Ok(PreviousSigningSecret {
            number: row.number,
            secret: open_secret(keyring, WEBHOOK_PREVIOUS_SECRET, &owner, &row.secret_enc)?,
            expires_at: row.expires_at.into(),
        })
    });
    Ok(Some(StoredSecrets {
        newest: open_secret(keyring, WEBHOOK_SECRET, &owner, &row.secret_enc)?,
        number: row.secret_number,
        previous: previous.collect::<Result<_, SealedSecretError>>()?,
    }))
}

/// `None`: another process created it at the same time.
async fn create_first_endpoint(
    with: &mut DbSession,
    keyring: &Keyring,
    tenant: &TenantId,
    change: &EndpointChange<'_>,
) -> Result<Option<SecretChange>, EndpointChangeError> {
    let callback_url = change
        .callback_url
        .filter(|_| change.callback == CallbackNumber::FIRST)
        .ok_or_else(|| endpoint_not_found(tenant, change.callback))?;
    let new = NewEndpoint {
        callback_url,
        kind: CallbackKind::default(),
        filter: CallbackFilter::default(),
        secret: change.secret,
        is_active: change.is_active.unwrap_or(true),
    };
    insert_endpoint(with, keyring, tenant, change.callback, &new).await
}

/// `None`: there is a callback with this number.
pub(super) async fn insert_endpoint(
    with: &mut DbSession,
    keyring: &Keyring,
    tenant: &TenantId,
    callback: CallbackNumber,
    new: &NewEndpoint<'_>,
) -> Result<Option<SecretChange>, EndpointChangeError> {
    let made = new.secret.is_none().then(SigningSecret::generate);
    let secret = new.secret.or(made.as_ref());
    let secret = secret.expect("one of the two is there");
    let created = sqlx::query!(
        "insert into webhook_configs \
            (tenant_id, callback, kind, callback_url, events, sources, environments, secret_enc, is_active) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         on conflict (tenant_id, callback) do nothing",
        tenant.as_str(),
        callback.column(),
        new.kind.as_str(),
        new.callback_url,
        &new.filter.events,
        &new.filter.sources,
        &new.filter.environments,
        seal_secret(keyring, WEBHOOK_SECRET, tenant, secret),
        new.is_active,
    )
    .execute(with)
    .await
    .map_err(|error| {
        db::map_constraint_error(error, "webhook_configs_tenant_id_fkey", || {
            EndpointChangeError::TenantNotFound(tenant.clone())
        })
    })?;
    let changed = made.map_or(SecretChange::Rotated, SecretChange::Generated);
    Ok((created.rows_affected() == 1).then_some(changed))
}

/// The error for a callback that the tenant does not have.
pub(super) fn endpoint_not_found(
    tenant: &TenantId,
    callback: CallbackNumber,
) -> EndpointChangeError {
    if callback == CallbackNumber::FIRST {
        EndpointChangeError::EndpointNotFound(tenant.clone())
    } else {
        EndpointChangeError::CallbackNotFound(tenant.clone(), callback)
    }
}

async fn update_endpoint(
    with: &mut DbSession,
    tenant: &TenantId,
    change: &EndpointChange<'_>,
) -> Result<Option<SecretChange>, EndpointChangeError> {
    let updated = sqlx::query!(
        "update webhook_configs \
            set callback_url = coalesce($2, callback_url), is_active = coalesce($3, is_active), updated_at = attesto_now() \
          where tenant_id = $1 and callback = $4",
        tenant.as_str(),
        change.callback_url,
        change.is_active,
        change.callback.column(),
    )
    .execute(with)
    .await?;
    Ok((updated.rows_affected() == 1).then_some(SecretChange::Unchanged))
}

/// `None`: another process has changed the newest secret since it was read.
async fn rotate_secret(
    with: &mut DbSession,
    keyring: &Keyring,
    tenant: &TenantId,
    change: &EndpointChange<'_>,
    secret: &SigningSecret,
    stored: &StoredSecrets,
) -> Result<Option<SecretChange>, EndpointChangeError> {
    // A previous secret that is still valid becomes the newest again, instead of signing twice.
    let (revived, staying): (Vec<_>, Vec<_>) = stored
        .previous
        .iter()
        .partition(|previous| previous.secret == *secret);
    let goes_on = !change.overlap.is_zero();
    if 1 + usize::from(goes_on) + staying.len() > MAX_ACTIVE_SECRETS {
        let until = staying.iter().map(|previous| previous.expires_at).min();
        return Err(EndpointChangeError::TooManySecrets {
            tenant: tenant.clone(),
            until: until.unwrap_or(Timestamp::from_millis(0)),
        });
    }
    let revived: Vec<i32> = revived.iter().map(|previous| previous.number).collect();
    let rotated = sqlx::query!(
        r#"
        with current as materialized (
            -- Locked, and read after the lock: of two processes at the same time the second changes nothing.
            select tenant_id, callback, secret_number, secret_created_at
              from webhook_configs
             where tenant_id = $1 and callback = $10 and secret_number = $5
               for no key update
        ), gone as (
            delete from webhook_previous_secrets
             where (tenant_id, callback) = (select tenant_id, callback from current)
               and (number = any($2) or expires_at <= attesto_now())
        ), kept as (
            insert into webhook_previous_secrets (tenant_id, callback, number, secret_enc, created_at, expires_at)
            select tenant_id, callback, secret_number, $3, secret_created_at, attesto_now() + make_interval(secs => $4)
              from current
             where $6
        )
        update webhook_configs
           set secret_enc = $7,
               secret_number = secret_number + 1,
               secret_created_at = attesto_now(),
               callback_url = coalesce($8, callback_url),
               is_active = coalesce($9, is_active),
               updated_at = attesto_now()
         where (tenant_id, callback) = (select tenant_id, callback from current)
        "#,
        tenant.as_str(),
        &revived,
        seal_secret(keyring, WEBHOOK_PREVIOUS_SECRET, tenant, &stored.newest),
        change.overlap.as_secs_f64(),
        stored.number,
        goes_on,
        seal_secret(keyring, WEBHOOK_SECRET, tenant, secret),
        change.callback_url,
        change.is_active,
        change.callback.column(),
    )
    .execute(with)
    .await;
    match rotated {
        Ok(done) => Ok((done.rows_affected() == 1).then_some(SecretChange::Rotated)),
        // Another process has just made this number a previous secret.
        Err(error) if db::violates_constraint(&error, "webhook_previous_secrets_pkey") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn seal_secret(
    keyring: &Keyring,
    column: SealedColumn,
    tenant: &TenantId,
    secret: &SigningSecret,
) -> Vec<u8> {
    keyring.seal(
        column.context_for(tenant.as_str()),
        secret.expose().as_bytes(),
    )
}

fn open_secret(
    keyring: &Keyring,
    column: SealedColumn,
    (tenant, callback): &(TenantId, CallbackNumber),
    blob: &[u8],
) -> Result<SigningSecret, SealedSecretError> {
    let refused = |cause| SealedSecretError {
        what: "webhook secret",
        tenant: tenant.clone(),
        callback: *callback,
        cause,
    };
    let opened = keyring
        .open(column.context_for(tenant.as_str()), blob)
        .map_err(refused)?;
    // Only valid secrets are sealed here, so any other content was not sealed by this program.
    std::str::from_utf8(opened.expose_secret())
        .ok()
        .and_then(|text| SigningSecret::parse(text).ok())
        .ok_or_else(|| refused(UnsealError::NotSealed))
}

/// `chain` and `sealed_key` are columns of `webhook_client_certificates`.
pub(in crate::deliveries) fn open_client_certificate(
    keyring: &Keyring,
    (tenant, callback): &(TenantId, CallbackNumber),
    chain: Vec<Vec<u8>>,
    sealed_key: &[u8],
) -> Result<ClientCertificate, SealedSecretError> {
    let refused = |cause| SealedSecretError {
        what: "key of the client certificate",
        tenant: tenant.clone(),
        callback: *callback,
        cause,
    };
    let key = keyring
        .open(
            CLIENT_CERTIFICATE_KEY.context_for(tenant.as_str()),
            sealed_key,
        )
        .map_err(refused)?;
    // Only what can be used is sealed here, so any other content was not sealed by this program.
    ClientCertificate::from_der(chain, key.expose_secret())
        .map_err(|_| refused(UnsealError::NotSealed))
}
