//! The queries. All only read.

use std::time::Duration;

use super::expiry::{Due, Found, Kind};
use crate::db::{Database, Error};
use crate::id::TenantId;

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
        Found {
            kind: $kind,
            count: rows.first().map_or(0, |row| row.count),
            first: rows
                .into_iter()
                .map(|row| Due {
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
    kind: Kind,
    after: Duration,
    lead: Duration,
    limit: i64,
) -> Result<Found, Error> {
    Ok(match kind {
        Kind::AppleKey => due!(
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
        Kind::GoogleKey => due!(
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
        Kind::ApiKey => due!(
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
