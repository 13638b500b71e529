//! Every query of the doctor that is no other room's. All only read.

use std::time::Duration;

use crate::base::id::TenantId;
use crate::db::{Database, Error};

/// So many are named.
const MAX_NAMED: i64 = 5;

/// How the server is.
#[derive(Clone, Debug)]
pub(super) struct PostgresServer {
    /// As in `server_version_num`: 150004 is 15.4.
    pub(super) version: i32,
    pub(super) encoding: String,
    pub(super) is_superuser: bool,
    /// As this connection has it.
    pub(super) statement_timeout: String,
    pub(super) autovacuum: bool,
    pub(super) connections: i64,
    pub(super) max_connections: i64,
}

pub(super) async fn load_postgres_server(database: &Database) -> Result<PostgresServer, Error> {
    let row = sqlx::query!(
        r#"
        select
            current_setting('server_version_num')::int as "version!",
            current_setting('server_encoding') as "encoding!",
            (select rolsuper from pg_roles where rolname = current_user) as "is_superuser!",
            current_setting('statement_timeout') as "statement_timeout!",
            current_setting('autovacuum') = 'on' as "autovacuum!",
            (select count(*) from pg_stat_activity where backend_type = 'client backend') as "connections!",
            current_setting('max_connections')::int8 as "most_connections!"
        "#
    )
    .fetch_one(database.pool())
    .await?;
    Ok(PostgresServer {
        version: row.version,
        encoding: row.encoding,
        is_superuser: row.is_superuser,
        statement_timeout: row.statement_timeout,
        autovacuum: row.autovacuum,
        connections: row.connections,
        max_connections: row.most_connections,
    })
}

/// Tables that this role may not read and write.
pub(super) async fn list_tables_without_privileges(
    database: &Database,
) -> Result<Vec<String>, Error> {
    sqlx::query_scalar!(
        r#"
        select relname::text as "table!"
        from pg_class
        where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p') and relname <> '_sqlx_migrations'
            and not (has_table_privilege(oid, 'select') and has_table_privilege(oid, 'insert')
                and has_table_privilege(oid, 'update') and has_table_privilege(oid, 'delete'))
        order by 1
        "#
    )
    .fetch_all(database.pool())
    .await
}

/// A replication slot.
#[derive(Clone, Debug)]
pub(super) struct ReplicationSlot {
    pub(super) name: String,
    /// Whether somebody is connected to it.
    pub(super) is_active: bool,
    /// Bytes of the write-ahead log that are kept for it.
    pub(super) retained_wal_bytes: i64,
}

pub(super) async fn list_replication_slots(
    database: &Database,
) -> Result<Vec<ReplicationSlot>, Error> {
    let rows = sqlx::query!(
        r#"
        select slot_name::text as "name!", active as "active!",
            case
                when restart_lsn is null or pg_is_in_recovery() then 0
                else pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8
            end as "retained!"
        from pg_replication_slots order by 1
        "#
    )
    .fetch_all(database.pool())
    .await?;
    let slots = rows.into_iter().map(|row| ReplicationSlot {
        name: row.name,
        is_active: row.active,
        retained_wal_bytes: row.retained,
    });
    Ok(slots.collect())
}

/// Where the server keeps its data, on its own machine. `None`: this role may not know, for want of `pg_read_all_settings`.
pub(super) async fn find_data_directory(database: &Database) -> Result<Option<String>, Error> {
    sqlx::query_scalar!(
        r#"select setting as "setting!" from pg_settings where name = 'data_directory' and setting is not null"#
    )
    .fetch_optional(database.pool())
    .await
}

/// How many there are, and the names of the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CountWithNames {
    pub(super) count: i64,
    pub(super) names: Vec<String>,
}

macro_rules! few {
    ($database:expr, $statement:literal $(, $argument:expr)*) => {{
        let rows = sqlx::query!($statement $(, $argument)*)
            .fetch_all($database.pool())
            .await?;
        Ok(CountWithNames {
            count: rows.first().map_or(0, |row| row.count),
            names: rows.into_iter().map(|row| row.name).collect(),
        })
    }};
}

/// How many active tenants there are.
pub(super) async fn count_active_tenants(database: &Database) -> Result<i64, Error> {
    sqlx::query_scalar!(r#"select count(*) as "count!" from tenants where is_active"#)
        .fetch_one(database.pool())
        .await
}

/// Tenants with credentials for any store.
pub(super) async fn list_tenants_with_credentials(
    database: &Database,
    limit: i64,
) -> Result<Vec<TenantId>, Error> {
    sqlx::query_scalar!(
        r#"
        select tenant_id as "tenant!: TenantId" from apple_credentials
        union select tenant_id from google_credentials
        order by 1 limit $1
        "#,
        limit
    )
    .fetch_all(database.pool())
    .await
}

pub(super) async fn list_tenants_without_api_keys(
    database: &Database,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select id as "name!", count(*) over () as "count!"
        from tenants
        where is_active
            and not exists (select from api_keys where tenant_id = tenants.id and revoked_at is null)
        order by id limit $1
        "#,
        MAX_NAMED
    )
}

pub(super) async fn list_tenants_without_app_apple_id(
    database: &Database,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select tenant_id as "name!", count(*) over () as "count!"
        from apple_credentials
        join tenants on tenants.id = tenant_id and tenants.is_active
        where app_apple_id is null and environment <> 'sandbox'
        order by tenant_id limit $1
        "#,
        MAX_NAMED
    )
}

/// Deliveries whose lease has been over for a minute. A process that delivers sweeps them within seconds.
pub(super) async fn count_expired_leases(
    database: &Database,
    lead: Duration,
) -> Result<i64, Error> {
    sqlx::query_scalar!(
        r#"
        select count(*) as "count!"
        from webhook_deliveries
        where lease_until < statement_timestamp() + make_interval(secs => $1::float8 - 60)
        "#,
        lead.as_secs_f64()
    )
    .fetch_one(database.pool())
    .await
}

/// Deliveries of the last day's events that failed for good: how many, and of which tenants.
pub(super) async fn list_recent_failures(
    database: &Database,
    lead: Duration,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select delivery.tenant_id as "name!", (sum(count(*)) over ())::int8 as "count!"
        from webhook_events event
        join webhook_deliveries delivery on delivery.event_id = event.id
        where event.received_at > statement_timestamp() + make_interval(secs => $2::float8 - 86400)
            and delivery.status = 'failed'
        group by delivery.tenant_id
        order by count(*) desc, delivery.tenant_id limit $1
        "#,
        MAX_NAMED,
        lead.as_secs_f64()
    )
}

/// The newest backup, and how long ago any was last proven.
#[derive(Clone, Copy, Debug)]
pub(super) struct LatestBackup {
    pub(super) age_days: i32,
    /// Since one was restored and found sound. `None`: none ever was.
    pub(super) verified_days: Option<i32>,
    /// Whether the newest is. `None`: nobody tried.
    pub(super) is_restorable: Option<bool>,
}

pub(super) async fn find_latest_backup(database: &Database) -> Result<Option<LatestBackup>, Error> {
    let row = sqlx::query!(
        r#"
        select extract(day from now() - created_at)::int as "age_days!", sound,
            (select extract(day from now() - max(verified_at))::int from backups where sound) as proven_days
        from backups
        order by created_at desc
        limit 1
        "#
    )
    .fetch_optional(database.pool())
    .await?;
    Ok(row.map(|row| LatestBackup {
        age_days: row.age_days,
        verified_days: row.proven_days,
        is_restorable: row.sound,
    }))
}
