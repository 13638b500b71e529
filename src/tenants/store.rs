//! The SQL of tenants and their API keys.

use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, TenantId};
use crate::db::{Database, Error};

use super::api_key::{ApiKey, ApiKeyEnvironment, ApiKeyHash, RawApiKey};
use super::intake::IntakeLimitOverrides;
use super::tenant::{DisplayName, RateLimitOverrides, Tenant};

/// Why a change to a tenant or a key was not made.
#[derive(Debug, thiserror::Error)]
pub enum TenantChangeError {
    /// No tenant has this id.
    #[error("no such tenant: {0}")]
    TenantNotFound(TenantId),
    /// No API key has this id.
    #[error("no such key: {0}")]
    ApiKeyNotFound(KeyId),
    /// The tenant is already active, or inactive, as requested.
    #[error("already {}: {id}", if *active { "active" } else { "inactive" })]
    AlreadyInState {
        /// The tenant's id.
        id: TenantId,
        /// The requested state.
        active: bool,
    },
    /// The key was revoked earlier.
    #[error("already revoked: {id}, at {since}")]
    AlreadyRevoked {
        /// The key's id.
        id: KeyId,
        /// When it was revoked.
        since: Timestamp,
    },
    /// The statement failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}

struct TenantRow {
    id: TenantId,
    name: String,
    is_active: bool,
    rate_limit_per_second: Option<i32>,
    rate_limit_burst: Option<i32>,
    intake_events_per_minute: Option<i32>,
    intake_megabytes_per_minute: Option<i32>,
    created_at: time::OffsetDateTime,
}

impl From<TenantRow> for Tenant {
    fn from(row: TenantRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            is_active: row.is_active,
            limits: limits_from_columns(row.rate_limit_per_second, row.rate_limit_burst),
            intake: IntakeLimitOverrides {
                events_per_minute: limit_from_column(row.intake_events_per_minute),
                megabytes_per_minute: limit_from_column(row.intake_megabytes_per_minute),
            },
            created_at: row.created_at.into(),
        }
    }
}

fn limits_from_columns(per_second: Option<i32>, burst: Option<i32>) -> RateLimitOverrides {
    RateLimitOverrides {
        per_second: limit_from_column(per_second),
        burst: limit_from_column(burst),
    }
}

fn limit_from_column(limit: Option<i32>) -> Option<u32> {
    limit.and_then(|limit| u32::try_from(limit).ok())
}

/// Postgres' integer is signed; a larger limit is capped, which makes no difference.
fn limit_to_column(limit: Option<u32>) -> Option<i32> {
    limit.map(|limit| i32::try_from(limit).unwrap_or(i32::MAX))
}

/// The tenant is active from the start.
pub async fn create_tenant(
    database: &Database,
    name: &DisplayName,
    now: Timestamp,
) -> Result<Tenant, Error> {
    let id = TenantId::mint(now);
    let mut change = database
        .begin_single_change(&["tenants"], Some(id.as_str()))
        .await?;
    let row = sqlx::query_as!(
        TenantRow,
        r#"
        insert into tenants (id, name, created_at, updated_at) values ($1, $2, $3, $3)
        returning id as "id: TenantId", name, is_active, rate_limit_per_second, rate_limit_burst,
            intake_events_per_minute, intake_megabytes_per_minute, created_at
        "#,
        id.as_str(),
        name.as_str(),
        time::OffsetDateTime::from(now)
    )
    .fetch_one(&mut change)
    .await?;
    change.commit().await?;
    Ok(row.into())
}

/// Every tenant, newest first.
pub async fn list_tenants(database: &Database) -> Result<Vec<Tenant>, Error> {
    let rows = sqlx::query_as!(
        TenantRow,
        r#"
        select id as "id: TenantId", name, is_active, rate_limit_per_second, rate_limit_burst,
            intake_events_per_minute, intake_megabytes_per_minute, created_at
        from tenants
        order by created_at desc, id desc
        "#
    )
    .fetch_all(database.pool())
    .await?;
    Ok(rows.into_iter().map(Tenant::from).collect())
}

/// The tenant may be inactive.
pub async fn find_tenant(database: &Database, id: &TenantId) -> Result<Option<Tenant>, Error> {
    let row = sqlx::query_as!(
        TenantRow,
        r#"
        select id as "id: TenantId", name, is_active, rate_limit_per_second, rate_limit_burst,
            intake_events_per_minute, intake_megabytes_per_minute, created_at
        from tenants
        where id = $1
        "#,
        id.as_str()
    )
    .fetch_optional(database.pool())
    .await?;
    Ok(row.map(Tenant::from))
}

/// Activates or deactivates a tenant. It is an error if it already is what was requested.
pub async fn set_tenant_active(
    database: &Database,
    id: &TenantId,
    active: bool,
    now: Timestamp,
) -> Result<Tenant, TenantChangeError> {
    let mut change = database
        .begin_single_change(&["tenants"], Some(id.as_str()))
        .await?;
    let changed = sqlx::query_as!(
        TenantRow,
        r#"
        update tenants set is_active = $2, updated_at = $3
        where id = $1 and is_active <> $2
        returning id as "id: TenantId", name, is_active, rate_limit_per_second, rate_limit_burst,
            intake_events_per_minute, intake_megabytes_per_minute, created_at
        "#,
        id.as_str(),
        active,
        time::OffsetDateTime::from(now)
    )
    .fetch_optional(&mut change)
    .await?;
    change.commit().await?;
    match changed {
        Some(row) => Ok(row.into()),
        None if find_tenant(database, id).await?.is_some() => {
            Err(TenantChangeError::AlreadyInState {
                id: id.clone(),
                active,
            })
        }
        None => Err(TenantChangeError::TenantNotFound(id.clone())),
    }
}

/// Names need not be unique.
pub async fn rename_tenant(
    database: &Database,
    id: &TenantId,
    name: &DisplayName,
    now: Timestamp,
) -> Result<Tenant, TenantChangeError> {
    let mut change = database
        .begin_single_change(&["tenants"], Some(id.as_str()))
        .await?;
    let changed = sqlx::query_as!(
        TenantRow,
        r#"
        update tenants set name = $2, updated_at = $3
        where id = $1
        returning id as "id: TenantId", name, is_active, rate_limit_per_second, rate_limit_burst,
            intake_events_per_minute, intake_megabytes_per_minute, created_at
        "#,
        id.as_str(),
        name.as_str(),
        time::OffsetDateTime::from(now)
    )
    .fetch_optional(&mut change)
    .await?;
    change.commit().await?;
    changed
        .map(Tenant::from)
        .ok_or_else(|| TenantChangeError::TenantNotFound(id.clone()))
}

/// Changes of a tenant's limits. `None` changes nothing; `Some(None)` is the default of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitChanges {
    /// Requests in each second.
    pub per_second: Option<Option<u32>>,
    /// Requests in one burst.
    pub burst: Option<Option<u32>>,
    /// Notifications in each minute.
    pub intake_events: Option<Option<u32>>,
    /// Megabytes of notifications in each minute.
    pub intake_megabytes: Option<Option<u32>>,
}

/// Makes all changes, or none if the tenant does not exist.
pub async fn set_limits(
    database: &Database,
    id: &TenantId,
    changes: LimitChanges,
    now: Timestamp,
) -> Result<Tenant, TenantChangeError> {
    let mut change = database
        .begin_single_change(&["tenants"], Some(id.as_str()))
        .await?;
    let tenant = sqlx::query_as!(
        TenantRow,
        r#"
        update tenants set
            rate_limit_per_second = case when $2 then $3 else rate_limit_per_second end,
            rate_limit_burst = case when $4 then $5 else rate_limit_burst end,
            intake_events_per_minute = case when $6 then $7 else intake_events_per_minute end,
            intake_megabytes_per_minute = case when $8 then $9 else intake_megabytes_per_minute end,
            updated_at = $10
        where id = $1
        returning id as "id: TenantId", name, is_active, rate_limit_per_second, rate_limit_burst,
            intake_events_per_minute, intake_megabytes_per_minute, created_at
        "#,
        id.as_str(),
        changes.per_second.is_some(),
        limit_to_column(changes.per_second.flatten()),
        changes.burst.is_some(),
        limit_to_column(changes.burst.flatten()),
        changes.intake_events.is_some(),
        limit_to_column(changes.intake_events.flatten()),
        changes.intake_megabytes.is_some(),
        limit_to_column(changes.intake_megabytes.flatten()),
        time::OffsetDateTime::from(now)
    )
    .fetch_optional(&mut change)
    .await?;
    change.commit().await?;
    tenant
        .map(Tenant::from)
        .ok_or_else(|| TenantChangeError::TenantNotFound(id.clone()))
}

struct KeyRow {
    id: KeyId,
    tenant_id: TenantId,
    key_prefix: String,
    name: Option<String>,
    environment: String,
    last_used_at: Option<time::OffsetDateTime>,
    created_at: time::OffsetDateTime,
    revoked_at: Option<time::OffsetDateTime>,
}

impl From<KeyRow> for ApiKey {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id,
            tenant: row.tenant_id,
            prefix: row.key_prefix,
            name: row.name,
            environment: parse_environment(&row.environment),
            last_used_at: row.last_used_at.map(Timestamp::from),
            created_at: row.created_at.into(),
            revoked_at: row.revoked_at.map(Timestamp::from),
        }
    }
}

/// The column's check constraint allows two words.
fn parse_environment(word: &str) -> ApiKeyEnvironment {
    match word {
        "test" => ApiKeyEnvironment::Test,
        _ => ApiKeyEnvironment::Live,
    }
}

/// Stores the hash and the visible prefix of a new key.
pub async fn create_api_key(
    database: &Database,
    tenant: &TenantId,
    name: Option<&DisplayName>,
    environment: ApiKeyEnvironment,
    raw: &RawApiKey,
    now: Timestamp,
) -> Result<ApiKey, TenantChangeError> {
    let id = KeyId::mint(now);
    let hash = raw.key_hash();
    let mut change = database
        .begin_single_change(&["api_keys"], Some(id.as_str()))
        .await?;
    let row = sqlx::query_as!(
        KeyRow,
        r#"
        insert into api_keys (id, tenant_id, key_hash, key_prefix, name, environment, created_at)
        values ($1, $2, $3, $4, $5, $6, $7)
        returning id as "id: KeyId", tenant_id as "tenant_id: TenantId", key_prefix, name, environment,
            last_used_at, created_at, revoked_at
        "#,
        id.as_str(),
        tenant.as_str(),
        hash.as_bytes(),
        raw.visible_prefix(),
        name.map(DisplayName::as_str),
        environment.as_str(),
        time::OffsetDateTime::from(now)
    )
    .fetch_one(&mut change)
    .await
    .map_err(|error| {
        crate::db::map_constraint_error(error, "api_keys_tenant_id_fkey", || {
            TenantChangeError::TenantNotFound(tenant.clone())
        })
    })?;
    change.commit().await?;
    Ok(row.into())
}

/// A tenant's keys, newest first.
pub async fn list_api_keys(
    database: &Database,
    tenant: &TenantId,
    limit: u32,
    offset: u32,
) -> Result<Vec<ApiKey>, Error> {
    let rows = sqlx::query_as!(
        KeyRow,
        r#"
        select id as "id: KeyId", tenant_id as "tenant_id: TenantId", key_prefix, name, environment,
            last_used_at, created_at, revoked_at
        from api_keys
        where tenant_id = $1
        order by created_at desc, id desc
        limit $2 offset $3
        "#,
        tenant.as_str(),
        i64::from(limit),
        i64::from(offset)
    )
    .fetch_all(database.pool())
    .await?;
    Ok(rows.into_iter().map(ApiKey::from).collect())
}

/// A revoked key cannot be activated again.
pub async fn revoke_api_key(
    database: &Database,
    id: &KeyId,
    now: Timestamp,
) -> Result<ApiKey, TenantChangeError> {
    let mut change = database
        .begin_single_change(&["api_keys"], Some(id.as_str()))
        .await?;
    let revoked = sqlx::query_as!(
        KeyRow,
        r#"
        update api_keys set revoked_at = $2
        where id = $1 and revoked_at is null
        returning id as "id: KeyId", tenant_id as "tenant_id: TenantId", key_prefix, name, environment,
            last_used_at, created_at, revoked_at
        "#,
        id.as_str(),
        time::OffsetDateTime::from(now)
    )
    .fetch_optional(&mut change)
    .await?;
    change.commit().await?;
    if let Some(row) = revoked {
        return Ok(row.into());
    }
    let since = sqlx::query_scalar!("select revoked_at from api_keys where id = $1", id.as_str())
        .fetch_optional(database.pool())
        .await?;
    match since.flatten() {
        Some(since) => Err(TenantChangeError::AlreadyRevoked {
            id: id.clone(),
            since: since.into(),
        }),
        None => Err(TenantChangeError::ApiKeyNotFound(id.clone())),
    }
}

/// Revokes all active keys of a tenant in one statement, and returns them, newest first.
pub async fn revoke_all_api_keys(
    database: &Database,
    tenant: &TenantId,
    now: Timestamp,
) -> Result<Vec<ApiKey>, Error> {
    let mut change = database
        .begin_single_change(&["api_keys"], Some(tenant.as_str()))
        .await?;
    let rows = sqlx::query_as!(
        KeyRow,
        r#"
        with revoked as (
            update api_keys set revoked_at = $2
            where tenant_id = $1 and revoked_at is null
            returning *
        )
        select id as "id: KeyId", tenant_id as "tenant_id: TenantId", key_prefix, name, environment,
            last_used_at, created_at, revoked_at
        from revoked
        order by created_at desc, id desc
        "#,
        tenant.as_str(),
        time::OffsetDateTime::from(now)
    )
    .fetch_all(&mut change)
    .await?;
    change.commit().await?;
    Ok(rows.into_iter().map(ApiKey::from).collect())
}

/// What a request with this key may do.
#[derive(Debug)]
pub(super) struct ActiveApiKey {
    pub(super) id: KeyId,
    pub(super) tenant: TenantId,
    pub(super) environment: ApiKeyEnvironment,
    pub(super) limits: RateLimitOverrides,
    /// The key of the hashes for `firstSeen`, sealed with the encryption key. `None`: the tenant has not switched it on.
    pub(super) first_seen_key: Option<Vec<u8>>,
}

/// The key with this hash, unless it is revoked or its tenant is inactive.
pub(super) async fn find_active_api_key(
    database: &Database,
    hash: &ApiKeyHash,
) -> Result<Option<ActiveApiKey>, Error> {
    let row = sqlx::query!(
        r#"
        select key.id as "id: KeyId", key.tenant_id as "tenant: TenantId", key.environment,
            tenant.rate_limit_per_second, tenant.rate_limit_burst, first_seen.key_enc as "first_seen_key?"
        from api_keys key
        join tenants tenant on tenant.id = key.tenant_id
        left join first_seen_keys first_seen on first_seen.tenant_id = key.tenant_id
        where key.key_hash = $1 and key.revoked_at is null and tenant.is_active
        "#,
        hash.as_bytes()
    )
    .fetch_optional(database.pool())
    .await?;
    Ok(row.map(|row| ActiveApiKey {
        id: row.id,
        tenant: row.tenant,
        environment: parse_environment(&row.environment),
        limits: limits_from_columns(row.rate_limit_per_second, row.rate_limit_burst),
        first_seen_key: row.first_seen_key,
    }))
}

/// One statement. Rows that another process has locked are skipped, and a newer time is never overwritten by an older
/// one.
pub(super) async fn write_last_used(
    database: &Database,
    used: &[(KeyId, Timestamp)],
) -> Result<(), Error> {
    if database.is_distributed().await? {
        return write_each_last_used(database, used).await;
    }
    let ids: Vec<String> = used.iter().map(|(id, _)| id.to_string()).collect();
    let moments: Vec<time::OffsetDateTime> = used.iter().map(|(_, at)| (*at).into()).collect();
    sqlx::query!(
        "
        with used as (
            select * from unnest($1::text[], $2::timestamptz[]) as used (id, at)
        ), free as (
            select key.id, used.at
            from api_keys key
            join used on used.id = key.id
            where key.last_used_at is null or key.last_used_at < used.at
            order by key.id
            for no key update of key skip locked
        )
        update api_keys key set last_used_at = free.at from free where key.id = free.id
        ",
        &ids,
        &moments
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// The same on a distributed database: Citus does not pass on rows of a reference table that it locks.
async fn write_each_last_used(
    database: &Database,
    used: &[(KeyId, Timestamp)],
) -> Result<(), Error> {
    for (id, at) in used {
        sqlx::query!(
            "update api_keys set last_used_at = $2 where id = $1 and (last_used_at is null or last_used_at < $2)",
            id.as_str(),
            time::OffsetDateTime::from(*at),
        )
        .execute(database.pool())
        .await?;
    }
    Ok(())
}
