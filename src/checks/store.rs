//! The SQL of checks that belong to no other room. All statements only read.

use std::time::Duration;

use time::OffsetDateTime;

use super::check::CountWithNames;
use super::expiry::{CredentialKind, DueCredential};
use crate::base::clock::Timestamp;
use crate::base::id::{CallbackNumber, TenantId};
use crate::base::lane::LaneSet;
use crate::db::{Database, Error};
use crate::deliveries::probe::store::{AffectedCallback, AffectedCallbacks};

#[derive(Clone, Debug)]
pub(super) struct PostgresServer {
    /// The value of `server_version_num`: 150004 is 15.4.
    pub(super) version: i32,
    pub(super) encoding: String,
    pub(super) is_superuser: bool,
    /// How many connections the role may have. -1: as many as the server has.
    pub(super) role_connections: i32,
    /// The value on this connection.
    pub(super) statement_timeout: String,
    pub(super) autovacuum: bool,
    pub(super) connections: i64,
    pub(super) max_connections: i64,
    /// `read_write`, `read_only` or `standby`.
    pub(super) write_mode: String,
}

pub(super) async fn load_postgres_server(database: &Database) -> Result<PostgresServer, Error> {
    sqlx::query_as!(
        PostgresServer,
        r#"
        select
            current_setting('server_version_num')::int as "version!",
            current_setting('server_encoding') as "encoding!",
            (select rolsuper from pg_roles where rolname = current_user) as "is_superuser!",
            (select rolconnlimit from pg_roles where rolname = current_user) as "role_connections!",
            current_setting('statement_timeout') as "statement_timeout!",
            current_setting('autovacuum') = 'on' as "autovacuum!",
            (select count(*) from pg_stat_activity where backend_type = 'client backend') as "connections!",
            current_setting('max_connections')::int8 as "max_connections!",
            case
                when pg_is_in_recovery() then 'standby'
                when current_setting('transaction_read_only')::bool then 'read_only'
                else 'read_write'
            end as "write_mode!"
        "#
    )
    .fetch_one(database.pool())
    .await
}

/// The tables that the role may not read or may not write.
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

#[derive(Clone, Debug)]
pub(super) struct ReplicationSlot {
    pub(super) name: String,
    /// Whether a client is connected to it.
    pub(super) is_active: bool,
    /// Bytes of the write-ahead log that are kept for it.
    pub(super) retained_wal_bytes: i64,
}

pub(super) async fn list_replication_slots(
    database: &Database,
) -> Result<Vec<ReplicationSlot>, Error> {
    sqlx::query_as!(
        ReplicationSlot,
        r#"
        select slot_name::text as "name!", active as "is_active!",
            case
                when restart_lsn is null or pg_is_in_recovery() then 0
                else pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8
            end as "retained_wal_bytes!"
        from pg_replication_slots order by 1
        "#
    )
    .fetch_all(database.pool())
    .await
}

/// The data directory on the server's machine. `None` if the role lacks `pg_read_all_settings`.
pub(super) async fn find_data_directory(database: &Database) -> Result<Option<String>, Error> {
    sqlx::query_scalar!(
        r#"select setting as "setting!" from pg_settings where name = 'data_directory' and setting is not null"#
    )
    .fetch_optional(database.pool())
    .await
}

/// Runs a query with columns `name` and `count`. The query has a limit, and `count` is the number of all rows.
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

pub(super) async fn count_active_tenants(database: &Database) -> Result<i64, Error> {
    sqlx::query_scalar!(r#"select count(*) as "count!" from tenants where is_active"#)
        .fetch_one(database.pool())
        .await
}

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
    limit: i64,
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
        limit
    )
}

pub(super) async fn list_tenants_without_app_apple_id(
    database: &Database,
    limit: i64,
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
        limit
    )
}

/// Active tenants with questions of stores about refunds that were not answered in time, or whose default answer the store did not take,
/// each with their number and the store's reason. Questions are kept for a week.
pub(super) async fn list_tenants_with_unanswered_questions(
    database: &Database,
    limit: i64,
) -> Result<CountWithNames, Error> {
    let rows = sqlx::query!(
        r#"
        select question.tenant_id || ' (' || question.source || ', ' || count(*) || coalesce(', ' || max(question.error), '') || ')'
                as "name!",
            count(*) over () as "count!"
        from refund_questions question
        join tenants on tenants.id = question.tenant_id and tenants.is_active
        where question.lane = any($2) and question.outcome in ('refused', 'missed')
        group by question.tenant_id, question.source
        order by question.tenant_id, question.source
        limit $1
        "#,
        limit,
        &LaneSet::ALL.columns(),
    )
    .fetch_all(database.pool())
    .await?;
    Ok(CountWithNames {
        count: rows.first().map_or(0, |row| row.count),
        names: rows.into_iter().map(|row| row.name).collect(),
    })
}

/// Active tenants that a store asks about a refund within the next two hours, where no default answer is sent: none is set, or the
/// store has refused it. Each with the number of its questions and the nearest deadline.
pub(super) async fn list_tenants_with_due_questions(
    database: &Database,
    limit: i64,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select question.tenant_id || ' (' || question.source || ', ' || count(*) || ', by '
                || to_char(min(question.answer_by) at time zone 'UTC', 'HH24:MI') || ' UTC)' as "name!",
            count(*) over () as "count!"
        from refund_questions question
        join tenants on tenants.id = question.tenant_id and tenants.is_active
        where question.lane = any($2) and question.answer_by > attesto_now() and question.answer_by <= attesto_now() + interval '2 hours'
            and (question.outcome = 'refused' or question.outcome is null and not exists (
                select from apple_credentials apple
                where question.source = 'apple' and apple.tenant_id = question.tenant_id and apple.default_consumption is not null
                union all
                select from google_credentials google
                where question.source = 'google' and google.tenant_id = question.tenant_id
                    and google.default_refund_review is not null
            ))
        group by question.tenant_id, question.source
        order by question.tenant_id, question.source
        limit $1
        "#,
        limit,
        &LaneSet::ALL.columns()
    )
}

/// Histories at Apple that were not read to their end since `before`: the tenant and environment of each, and the day when it last
/// was. A tenant that is new, or whose credentials are, has time until then. An app that Apple knows in one environment
/// only may be unknown in the other.
pub(super) async fn list_unread_histories(
    database: &Database,
    before: Timestamp,
    limit: i64,
) -> Result<CountWithNames, Error> {
    let rows = sqlx::query!(
        r#"
        select tenant.id || ' in ' || environment.name
                || coalesce(' (last ' || to_char(history.last_success_at at time zone 'UTC', 'YYYY-MM-DD') || ')', ' (never)')
                as "name!",
            count(*) over () as "count!"
        from tenants tenant
        join apple_credentials stored on stored.tenant_id = tenant.id
        cross join (values ('production'), ('sandbox')) environment (name)
        left join apple_history_reads history
            on history.lane = tenant_lane(tenant.id) and history.tenant_id = tenant.id and history.environment = environment.name
        where tenant.is_active and stored.environment in ('auto', environment.name)
            and (environment.name = 'sandbox' or stored.app_apple_id is not null)
            -- Not `not exists`, which the planner may answer with the rows of all tenants.
            and (coalesce(history.is_app_known, true) or (
                select other.environment from apple_history_reads other
                where other.lane = tenant_lane(tenant.id) and other.tenant_id = tenant.id and other.is_app_known
                limit 1
            ) is null)
            and coalesce(history.last_success_at, greatest(tenant.created_at, stored.created_at, stored.updated_at)) < $1
        order by tenant.id, environment.name
        limit $2
        "#,
        OffsetDateTime::from(before),
        limit,
    )
    .fetch_all(database.pool())
    .await?;
    Ok(CountWithNames {
        count: rows.first().map_or(0, |row| row.count),
        names: rows.into_iter().map(|row| row.name).collect(),
    })
}

/// Deliveries whose lease expired more than a minute ago. If any process delivers, it claims them within seconds.
pub(super) async fn count_expired_leases(database: &Database) -> Result<CountWithNames, Error> {
    let count = sqlx::query_scalar!(
        r#"
        select count(*) as "count!"
        from webhook_deliveries
        where lane = any($1) and lease_until < attesto_now() - make_interval(secs => 60)
        "#,
        &LaneSet::ALL.columns(),
    )
    .fetch_one(database.pool())
    .await?;
    Ok(CountWithNames {
        count,
        names: Vec::new(),
    })
}

/// The number of deliveries of events of the last 24 hours that failed permanently, and the callbacks with the most of
/// them.
pub(super) async fn list_recent_failures(
    database: &Database,
    limit: i64,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select
            callback_name(delivery.tenant_id, delivery.callback) || coalesce(' (' || (
                array_agg(delivery.last_error order by delivery.failed_at desc)
                    filter (where delivery.last_error is not null)
            )[1] || ')', '') as "name!",
            (sum(count(*)) over ())::int8 as "count!"
        from webhook_events event
        join webhook_deliveries delivery on delivery.lane = event.lane and delivery.event_id = event.id
        where event.lane = any($2) and event.received_at > attesto_now() - interval '1 day' and event.event_type > ''
            and delivery.status = 'failed'
        group by delivery.tenant_id, delivery.callback
        order by count(*) desc, delivery.tenant_id, delivery.callback limit $1
        "#,
        limit,
        &LaneSet::ALL.columns()
    )
}

/// The newest backup, and when any backup was last verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct LatestBackup {
    pub(super) age_days: i32,
    /// Days since a backup was restored and found intact. `None` if that never happened.
    pub(super) verified_days: Option<i32>,
    /// Whether the newest backup was found intact. `None` if it was not verified.
    pub(super) is_restorable: Option<bool>,
}

pub(super) async fn find_latest_backup(database: &Database) -> Result<Option<LatestBackup>, Error> {
    sqlx::query_as!(
        LatestBackup,
        r#"
        select extract(day from now() - created_at)::int as "age_days!", sound as is_restorable,
            (select extract(day from now() - max(verified_at))::int from backups where sound) as verified_days
        from backups
        order by created_at desc
        limit 1
        "#
    )
    .fetch_optional(database.pool())
    .await
}

/// Active tenants without credentials for any store.
pub(super) async fn list_tenants_without_credentials(
    database: &Database,
    limit: i64,
) -> Result<CountWithNames, Error> {
    few!(
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
    )
}

/// Callbacks of active tenants that an operator switched off: events are stored and not sent.
pub(super) async fn list_disabled_callbacks(
    database: &Database,
    limit: i64,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select callback_name(tenant_id, callback) as "name!", count(*) over () as "count!"
        from webhook_configs config
        join tenants on tenants.id = tenant_id and tenants.is_active
        where not config.is_active
        order by tenant_id, callback limit $1
        "#,
        limit
    )
}

/// Callbacks that are closed because of failures, and those that have accepted nothing since a failure `failing_for` ago: one
/// that answers with an error is not closed for a day.
pub(super) async fn list_failing_callbacks(
    database: &Database,
    failing_for: Duration,
    limit: i64,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select callback_name(config.tenant_id, config.callback) as "name!", count(*) over () as "count!"
        from webhook_configs config
        join tenants tenant on tenant.id = config.tenant_id and tenant.is_active
        join webhook_health health
            on health.lane = tenant_lane(config.tenant_id) and health.tenant_id = config.tenant_id and health.callback = config.callback
            and health.callback_key = hashtextextended(config.callback_url, 0)
        where config.is_active and health.lane = any($3) and (
            health.state in ('open', 'paused') or health.failing_since <= attesto_now() - make_interval(secs => $2)
        )
        order by health.failing_since, config.tenant_id, config.callback limit $1
        "#,
        limit,
        failing_for.as_secs_f64(),
        &LaneSet::ALL.columns()
    )
}

/// Tenants with a callback older than `grace` and without a stored delivery; retention may have removed earlier ones. Tenants
/// with an Apple key are covered by [`list_tenants_without_apple_events`]. Single callbacks are not looked at: they may be sent
/// rare events only.
pub(super) async fn list_unused_callbacks(
    database: &Database,
    grace: Duration,
    limit: i64,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select config.tenant_id as "name!", count(*) over () as "count!"
        from (
            select tenant_id, min(created_at) as created_at from webhook_configs where is_active group by tenant_id
        ) config
        join tenants on tenants.id = config.tenant_id and tenants.is_active
        -- Not `not exists`, which the planner may answer with all deliveries of all tenants.
        left join lateral (
            select delivery.tenant_id from webhook_deliveries delivery
            where delivery.lane = tenant_lane(config.tenant_id) and delivery.tenant_id = config.tenant_id
            limit 1
        ) delivered on true
        where config.created_at < attesto_now() - make_interval(secs => $2)
            and exists (select from google_credentials where tenant_id = config.tenant_id)
            and not exists (select from apple_credentials where tenant_id = config.tenant_id)
            and delivered.tenant_id is null
        order by config.tenant_id limit $1
        "#,
        limit,
        grace.as_secs_f64()
    )
}

/// Apps whose last test notification failed: because Apple knew no URL, or, with `is_url_missing` false, because Apple
/// could not deliver it. An app with a later event from Apple is not listed, because its URL works. Only the newest
/// 1,000 events of a tenant are searched.
pub(super) async fn list_failed_test_notifications(
    database: &Database,
    is_url_missing: bool,
    limit: i64,
) -> Result<CountWithNames, Error> {
    few!(
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
                    where lane = tenant_lane(test.tenant_id) and tenant_id = test.tenant_id and received_at > test.asked_at
                    order by received_at desc limit 1000
                ) newest
                where source = 'apple' and lower(environment) = test.environment
            )
        order by test.tenant_id limit $1
        "#,
        limit,
        is_url_missing
    )
}

/// Tenants that have had an Apple key and a callback for `grace`, and have no stored event from Apple. Retention may
/// have removed earlier ones.
pub(super) async fn list_tenants_without_apple_events(
    database: &Database,
    grace: Duration,
    limit: i64,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select stored.tenant_id as "name!", count(*) over () as "count!"
        from apple_credentials stored
        join tenants on tenants.id = stored.tenant_id and tenants.is_active
        join (
            select tenant_id, min(created_at) as created_at from webhook_configs where is_active group by tenant_id
        ) config on config.tenant_id = stored.tenant_id
        where greatest(stored.created_at, config.created_at)
                < attesto_now() - make_interval(secs => $2)
            and not exists (
                select from webhook_events event
                where event.lane = tenant_lane(stored.tenant_id) and event.tenant_id = stored.tenant_id and event.source = 'apple'
                    and event.external_id > ''
            )
        order by stored.tenant_id limit $1
        "#,
        limit,
        grace.as_secs_f64()
    )
}

/// Tenants with a Google service account and a callback for which the service account of the push subscription is not
/// set: every push is refused. A missing audience is not reported, because its default is equally safe.
pub(super) async fn list_tenants_without_push_account(
    database: &Database,
    limit: i64,
) -> Result<CountWithNames, Error> {
    few!(
        database,
        r#"
        select stored.tenant_id as "name!", count(*) over () as "count!"
        from google_credentials stored
        join tenants on tenants.id = stored.tenant_id and tenants.is_active
        where stored.pubsub_service_account is null
            and exists (select from webhook_configs where tenant_id = stored.tenant_id and is_active)
        order by stored.tenant_id limit $1
        "#,
        limit
    )
}

macro_rules! due {
    ($kind:expr, $database:expr, $statement:literal, $max_age:expr, $limit:expr) => {{
        let rows = sqlx::query!($statement, $max_age.as_secs_f64(), $limit)
            .fetch_all($database.pool())
            .await?;
        let count = rows.first().map_or(0, |row| row.count);
        let credentials = rows.into_iter().map(|row| DueCredential {
            kind: $kind,
            tenant: row.tenant,
            name: row.name,
            fingerprint: row.fingerprint,
            age: Duration::try_from_secs_f64(row.age).unwrap_or_default(),
        });
        Ok((count, credentials.collect()))
    }};
}

/// The number of credentials of active tenants that are older than `max_age`, and the oldest of them.
pub(super) async fn list_due_credentials(
    database: &Database,
    kind: CredentialKind,
    max_age: Duration,
    limit: i64,
) -> Result<(i64, Vec<DueCredential>), Error> {
    match kind {
        CredentialKind::AppleInAppPurchase => due!(
            kind,
            database,
            r#"
            select tenant_id as "tenant!: TenantId", key_id as "name!", key_fingerprint as "fingerprint!",
                extract(epoch from clock.now - stored.updated_at)::float8 as "age!", count(*) over () as "count!"
            from apple_credentials stored
            join tenants on tenants.id = tenant_id and tenants.is_active
            cross join (select attesto_now() as now) clock
            where stored.updated_at < clock.now - make_interval(secs => $1)
            order by stored.updated_at, tenant_id limit $2
            "#,
            max_age,
            limit
        ),
        CredentialKind::GoogleServiceAccount => due!(
            kind,
            database,
            r#"
            select tenant_id as "tenant!: TenantId", client_email as "name!", key_fingerprint as "fingerprint!",
                extract(epoch from clock.now - stored.updated_at)::float8 as "age!", count(*) over () as "count!"
            from google_credentials stored
            join tenants on tenants.id = tenant_id and tenants.is_active
            cross join (select attesto_now() as now) clock
            where stored.updated_at < clock.now - make_interval(secs => $1)
            order by stored.updated_at, tenant_id limit $2
            "#,
            max_age,
            limit
        ),
        CredentialKind::ApiKey => due!(
            kind,
            database,
            r#"
            select tenant_id as "tenant!: TenantId", api_keys.id as "name!", key_prefix as "fingerprint!",
                extract(epoch from clock.now - coalesce(last_used_at, api_keys.created_at))::float8 as "age!",
                count(*) over () as "count!"
            from api_keys
            join tenants on tenants.id = tenant_id and tenants.is_active
            cross join (select attesto_now() as now) clock
            where revoked_at is null
                and coalesce(last_used_at, api_keys.created_at) < clock.now - make_interval(secs => $1)
            order by coalesce(last_used_at, api_keys.created_at), api_keys.id limit $2
            "#,
            max_age,
            limit
        ),
    }
}

/// Client certificates of active callbacks that expire before `before`, and of whose life less than a third is left.
pub(super) async fn list_expiring_client_certificates(
    database: &Database,
    before: Timestamp,
    limit: i64,
) -> Result<AffectedCallbacks, Error> {
    let rows = sqlx::query!(
        r#"
        select certificate.tenant_id as "tenant!: TenantId", certificate.callback as "callback!: CallbackNumber",
            callback_name(certificate.tenant_id, certificate.callback) as "name!",
            not_after as "end!", count(*) over () as "count!"
        from webhook_client_certificates certificate
        join webhook_configs config
            on config.tenant_id = certificate.tenant_id and config.callback = certificate.callback and config.is_active
        join tenants on tenants.id = certificate.tenant_id and tenants.is_active
        where not_after < $1 and not_after - attesto_now() < (not_after - not_before) / 3
        order by not_after, certificate.tenant_id, certificate.callback limit $2
        "#,
        OffsetDateTime::from(before),
        limit
    )
    .fetch_all(database.pool())
    .await?;
    Ok(AffectedCallbacks {
        count: rows.first().map_or(0, |row| row.count),
        first: rows
            .into_iter()
            .map(|row| AffectedCallback {
                tenant: row.tenant,
                callback: row.callback,
                name: row.name,
                what: Timestamp::from(row.end).to_string(),
            })
            .collect(),
    })
}

/// When the first client certificate of an active callback expires. `None`: there is none.
pub(super) async fn load_first_client_certificate_expiry(
    database: &Database,
) -> Result<Option<Timestamp>, Error> {
    let first = sqlx::query_scalar!(
        "select min(not_after) from webhook_client_certificates certificate \
           join webhook_configs config \
             on config.tenant_id = certificate.tenant_id and config.callback = certificate.callback and config.is_active \
           join tenants on tenants.id = certificate.tenant_id and tenants.is_active"
    )
    .fetch_one(database.pool())
    .await?;
    Ok(first.map(Timestamp::from))
}
