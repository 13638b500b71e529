//! The queries. All only read.

use std::time::Duration;

use super::drift;
use super::expiry::{CredentialKind, DueCredential, DueCredentialGroup};
use crate::base::id::TenantId;
use crate::db::{Database, Error};

macro_rules! due {
    ($database:expr, $kind:expr, $statement:literal, $after:expr, $lead:expr, $limit:expr) => {{
        let rows = sqlx::query!(
            $statement,
            $after.as_secs_f64(),
            $lead.as_secs_f64(),
            $limit
        )
        .fetch_all($database.pool())
        .await?;
        DueCredentialGroup {
            kind: $kind,
            count: rows.first().map_or(0, |row| row.count),
            oldest: rows
                .into_iter()
                .map(|row| DueCredential {
                    kind: $kind,
                    tenant: row.tenant,
                    name: row.name,
                    fingerprint: row.fingerprint,
                    age: Duration::try_from_secs_f64(row.age).unwrap_or_default(),
                })
                .collect(),
        }
    }};
}

pub(super) async fn due(
    database: &Database,
    kind: CredentialKind,
    after: Duration,
    lead: Duration,
    limit: i64,
) -> Result<DueCredentialGroup, Error> {
    Ok(match kind {
        CredentialKind::AppleKey => due!(
            database,
            kind,
            r#"
            select tenant_id as "tenant!: TenantId", key_id as "name!", key_fingerprint as "fingerprint!",
                extract(epoch from clock.now - stored.updated_at)::float8 as "age!", count(*) over () as "count!"
            from apple_credentials stored
            join tenants on tenants.id = tenant_id and tenants.is_active
            cross join (select statement_timestamp() + make_interval(secs => $2) as now) clock
            where stored.updated_at < clock.now - make_interval(secs => $1)
            order by stored.updated_at, tenant_id limit $3
            "#,
            after,
            lead,
            limit
        ),
        CredentialKind::GoogleKey => due!(
            database,
            kind,
            r#"
            select tenant_id as "tenant!: TenantId", client_email as "name!", key_fingerprint as "fingerprint!",
                extract(epoch from clock.now - stored.updated_at)::float8 as "age!", count(*) over () as "count!"
            from google_credentials stored
            join tenants on tenants.id = tenant_id and tenants.is_active
            cross join (select statement_timestamp() + make_interval(secs => $2) as now) clock
            where stored.updated_at < clock.now - make_interval(secs => $1)
            order by stored.updated_at, tenant_id limit $3
            "#,
            after,
            lead,
            limit
        ),
        CredentialKind::ApiKey => due!(
            database,
            kind,
            r#"
            select tenant_id as "tenant!: TenantId", api_keys.id as "name!", key_prefix as "fingerprint!",
                extract(epoch from clock.now - coalesce(last_used_at, api_keys.created_at))::float8 as "age!",
                count(*) over () as "count!"
            from api_keys
            join tenants on tenants.id = tenant_id and tenants.is_active
            cross join (select statement_timestamp() + make_interval(secs => $2) as now) clock
            where revoked_at is null
                and coalesce(last_used_at, api_keys.created_at) < clock.now - make_interval(secs => $1)
            order by coalesce(last_used_at, api_keys.created_at), api_keys.id limit $3
            "#,
            after,
            lead,
            limit
        ),
    })
}

macro_rules! few {
    ($database:expr, $statement:literal $(, $argument:expr)*) => {{
        let rows = sqlx::query!($statement $(, $argument)*)
            .fetch_all($database.pool())
            .await?;
        let count = rows.first().map_or(0, |row| row.count);
        Ok((count, rows.into_iter().map(|row| row.name).collect()))
    }};
}

/// How many tenants there are of whom this is found, and the ids of the first. `new` is how long what was set up is given
/// to begin.
#[expect(
    clippy::too_many_lines,
    reason = "a query for each kind, and nothing else"
)]
pub(super) async fn list_drifted_tenants(
    database: &Database,
    kind: drift::DriftKind,
    new: Duration,
    lead: Duration,
    limit: i64,
) -> Result<(i64, Vec<String>), Error> {
    // What is older than this is not new.
    let (new, lead) = (new.as_secs_f64(), lead.as_secs_f64());
    match kind {
        drift::DriftKind::CredentialsMissing => few!(
            database,
            r#"
            select id as "name!", count(*) over () as "count!"
            from tenants
            where is_active
                and not exists (select from apple_credentials where tenant_id = tenants.id)
                and not exists (select from google_credentials where tenant_id = tenants.id)
            order by id limit $1
            "#,
            limit
        ),
        drift::DriftKind::CallbackDisabled => few!(
            database,
            r#"
            select tenant_id as "name!", count(*) over () as "count!"
            from webhook_configs config
            join tenants on tenants.id = tenant_id and tenants.is_active
            where not config.is_active
            order by tenant_id limit $1
            "#,
            limit
        ),
        drift::DriftKind::CallbackClosed => few!(
            database,
            r#"
            select config.tenant_id as "name!", count(*) over () as "count!"
            from webhook_configs config
            join tenants tenant on tenant.id = config.tenant_id and tenant.is_active
            join webhook_health health
                on health.tenant_id = config.tenant_id
                and health.callback_key = hashtextextended(config.callback_url, 0)
            where config.is_active and health.state in ('open', 'paused')
            order by health.failing_since limit $1
            "#,
            limit
        ),
        // Whoever has an Apple key is told that nothing of Apple's is kept. What retention removed is not seen here, nor below.
        drift::DriftKind::CallbackUnused => few!(
            database,
            r#"
            select config.tenant_id as "name!", count(*) over () as "count!"
            from webhook_configs config
            join tenants on tenants.id = config.tenant_id and tenants.is_active
            where config.is_active
                and config.created_at < statement_timestamp() + make_interval(secs => $2::float8 - $3)
                and exists (select from google_credentials where tenant_id = config.tenant_id)
                and not exists (select from apple_credentials where tenant_id = config.tenant_id)
                and not exists (select from webhook_deliveries where tenant_id = config.tenant_id)
            order by config.tenant_id limit $1
            "#,
            limit,
            lead,
            new
        ),
        // A notification that arrived since says that Apple knows an address by now. Of a tenant with much to do only the
        // newest events are looked at.
        drift::DriftKind::AppleUrlMissing | drift::DriftKind::AppleUrlUnreachable => few!(
            database,
            r#"
            select test.tenant_id as "name!", count(*) over () as "count!"
            from apple_test_notifications test
            join tenants on tenants.id = test.tenant_id and tenants.is_active
            join apple_credentials stored on stored.tenant_id = test.tenant_id
            where (test.result = 'NO_ADDRESS') = $2
                and test.result <> 'SUCCESS'
                and stored.environment in ('auto', test.environment)
                and not exists (
                    select from (
                        select source, environment from webhook_events
                        where tenant_id = test.tenant_id and received_at > test.asked_at
                        order by received_at desc limit 1000
                    ) newest
                    where source = 'apple' and lower(environment) = test.environment
                )
            order by test.tenant_id limit $1
            "#,
            limit,
            kind == drift::DriftKind::AppleUrlMissing
        ),
        drift::DriftKind::NoAppleEvents => few!(
            database,
            r#"
            select stored.tenant_id as "name!", count(*) over () as "count!"
            from apple_credentials stored
            join tenants on tenants.id = stored.tenant_id and tenants.is_active
            join webhook_configs config on config.tenant_id = stored.tenant_id and config.is_active
            where greatest(stored.created_at, config.created_at)
                    < statement_timestamp() + make_interval(secs => $2::float8 - $3)
                and not exists (
                    select from webhook_events event
                    where event.tenant_id = stored.tenant_id and event.source = 'apple'
                )
            order by stored.tenant_id limit $1
            "#,
            limit,
            lead,
            new
        ),
        drift::DriftKind::GooglePushAccountMissing => few!(
            database,
            r#"
            select stored.tenant_id as "name!", count(*) over () as "count!"
            from google_credentials stored
            join tenants on tenants.id = stored.tenant_id and tenants.is_active
            join webhook_configs config on config.tenant_id = stored.tenant_id and config.is_active
            where stored.pubsub_service_account is null
            order by stored.tenant_id limit $1
            "#,
            limit
        ),
        drift::DriftKind::SettingsDiffer
        | drift::DriftKind::EncryptionKeysMissing
        | drift::DriftKind::SchemaMismatch => Ok((0, Vec::new())),
    }
}
