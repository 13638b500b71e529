//! The SQL of the log of verifications and of the operator audit log.

use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;

use super::operator_audit::{OperatorAuditEntry, PRUNE_ACTION};
use crate::base::clock::Timestamp;
use crate::base::id::{AuditId, TenantId};
use crate::db::{Database, Error};
use crate::tenants::lane::lane_column;

/// The maximum number of rows that one statement removes.
const MAX_PRUNE_BATCH: i64 = 5000;

pub(super) async fn find_hash_key(
    database: &Database,
    number: i32,
) -> Result<Option<Vec<u8>>, Error> {
    sqlx::query_scalar!(
        "select key_enc from validation_audit_keys where number = $1",
        number
    )
    .fetch_optional(database.pool())
    .await
}

/// Inserts the key unless there is one with this number, and returns the stored one.
pub(super) async fn insert_hash_key(
    database: &Database,
    number: i32,
    sealed: &[u8],
) -> Result<Vec<u8>, Error> {
    sqlx::query!(
        "insert into validation_audit_keys (number, key_enc) values ($1, $2) on conflict (number) do nothing",
        number,
        sealed
    )
    .execute(database.pool())
    .await?;
    sqlx::query_scalar!(
        "select key_enc from validation_audit_keys where number = $1",
        number
    )
    .fetch_one(database.pool())
    .await
}

/// A row to insert into `validation_audit`.
pub(super) struct VerificationRow {
    pub(super) id: AuditId,
    pub(super) tenant: TenantId,
    pub(super) source: &'static str,
    pub(super) identifier_hash: Vec<u8>,
    pub(super) valid: bool,
    pub(super) error_code: Option<&'static str>,
    pub(super) latency_ms: i32,
    pub(super) occurred_at: Timestamp,
}

/// Inserts the rows. A row that exists already is skipped: the response to an earlier attempt may have been lost.
pub(super) async fn insert_verifications(
    database: &Database,
    rows: &[VerificationRow],
) -> Result<(), Error> {
    let ids: Vec<_> = rows.iter().map(|row| row.id.as_str().to_owned()).collect();
    let tenants: Vec<_> = rows.iter().map(|row| row.tenant.to_string()).collect();
    let lanes: Vec<_> = rows.iter().map(|row| lane_column(&row.tenant)).collect();
    let sources: Vec<_> = rows.iter().map(|row| row.source.to_owned()).collect();
    let hashes: Vec<_> = rows.iter().map(|row| row.identifier_hash.clone()).collect();
    let valid: Vec<_> = rows.iter().map(|row| row.valid).collect();
    let codes: Vec<_> = rows
        .iter()
        .map(|row| row.error_code.unwrap_or_default().to_owned())
        .collect();
    let latencies: Vec<_> = rows.iter().map(|row| row.latency_ms).collect();
    let moments: Vec<_> = rows
        .iter()
        .map(|row| time::OffsetDateTime::from(row.occurred_at))
        .collect();
    sqlx::query!(
        r#"
        insert into validation_audit
            (lane, id, tenant_id, source, identifier_hash, valid, error_code, latency_ms, occurred_at)
        select row.lane, row.id, row.tenant_id, row.source, row.identifier_hash, row.valid, nullif(row.error_code, ''),
            row.latency_ms, row.occurred_at
        from unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::boolean[], $6::text[], $7::integer[],
                $8::timestamptz[], $9::int2[])
            as row (id, tenant_id, source, identifier_hash, valid, error_code, latency_ms, occurred_at, lane)
        -- A tenant that an operator deleted by hand must not hold up the others' rows.
        where exists (select from tenants where tenants.id = row.tenant_id)
        on conflict (lane, id) do nothing
        "#,
        &ids,
        &tenants,
        &sources,
        &hashes,
        &valid,
        &codes,
        &latencies,
        &moments,
        &lanes
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// A row of `validation_audit`.
#[derive(Clone, Debug)]
pub struct LoggedVerification {
    /// The row's own id.
    pub id: String,
    /// `apple` or `google`.
    pub source: String,
    /// The hash of the transaction id or purchase token: see [`purchase_hash`](super::purchase_hash).
    pub identifier_hash: Vec<u8>,
    /// Whether the store confirmed the purchase.
    pub valid: bool,
    /// The error code of the answer, if the purchase is not valid.
    pub error_code: Option<String>,
    /// The time from the request to the answer, in milliseconds.
    pub latency_ms: i32,
    /// When the request was received.
    pub occurred_at: Timestamp,
}

/// A tenant's verifications, newest first. If `hash` is given, only those of this purchase.
pub async fn list_verifications(
    database: &Database,
    tenant: &TenantId,
    hash: Option<&[u8]>,
    limit: u32,
) -> Result<Vec<LoggedVerification>, Error> {
    sqlx::query_as!(
        LoggedVerification,
        r#"
        select id, source, identifier_hash, valid, error_code, latency_ms, occurred_at as "occurred_at: Timestamp"
        from validation_audit
        where lane = $4 and tenant_id = $1 and ($2::bytea is null or identifier_hash = $2)
        order by occurred_at desc, id desc
        limit $3
        "#,
        tenant.as_str(),
        hash,
        i64::from(limit),
        lane_column(tenant),
    )
    .fetch_all(database.pool())
    .await
}

/// The number of the newest row of `operator_audit`; 0 if there is none.
pub async fn last_operator_audit_seq(database: &Database) -> Result<i64, Error> {
    sqlx::query_scalar!(r#"select coalesce(max(seq), 0) as "seq!" from operator_audit"#)
        .fetch_one(database.pool())
        .await
}

/// The rows of `operator_audit` with numbers above `after`, in order.
pub(super) async fn list_chain_page(
    database: &Database,
    after: i64,
    limit: i64,
) -> Result<Vec<OperatorAuditEntry>, Error> {
    let rows = sqlx::query_as!(
        OperatorAuditRow,
        r#"
        select seq, occurred_at, actor, host, command, action, object, target, tenant_id,
            before::text, after::text, previous_hash, hash
        from operator_audit
        where seq > $1
        order by seq
        limit $2
        "#,
        after,
        limit
    )
    .fetch_all(database.pool())
    .await?;
    Ok(rows.into_iter().map(OperatorAuditEntry::from).collect())
}

/// Rows of `operator_audit`, newest first. If `tenant` is given, only those of this tenant.
pub async fn list_operator_audit(
    database: &Database,
    tenant: Option<&TenantId>,
    limit: u32,
) -> Result<Vec<OperatorAuditEntry>, Error> {
    let rows = sqlx::query_as!(
        OperatorAuditRow,
        r#"
        select seq, occurred_at, actor, host, command, action, object, target, tenant_id,
            before::text, after::text, previous_hash, hash
        from operator_audit
        where $1::text is null or tenant_id = $1
        order by seq desc
        limit $2
        "#,
        tenant.map(TenantId::as_str),
        i64::from(limit)
    )
    .fetch_all(database.pool())
    .await?;
    Ok(rows.into_iter().map(OperatorAuditEntry::from).collect())
}

struct OperatorAuditRow {
    seq: i64,
    occurred_at: time::OffsetDateTime,
    actor: String,
    host: String,
    command: String,
    action: String,
    object: String,
    target: String,
    tenant_id: Option<String>,
    before: Option<String>,
    after: Option<String>,
    previous_hash: Vec<u8>,
    hash: Vec<u8>,
}

impl From<OperatorAuditRow> for OperatorAuditEntry {
    fn from(row: OperatorAuditRow) -> Self {
        // The column has a JSON type, so the text is valid JSON.
        let json = |text: Option<String>| text.and_then(|text| RawValue::from_string(text).ok());
        Self {
            seq: row.seq,
            occurred_at: row.occurred_at.into(),
            actor: row.actor,
            host: row.host,
            command: row.command,
            action: row.action,
            object: row.object,
            target: row.target,
            tenant_id: row.tenant_id,
            before: json(row.before),
            after: json(row.after),
            previous_hash: row.previous_hash,
            hash: row.hash,
        }
    }
}

/// Adds an audit row about an operation that is not a change of a table row, such as a run of a job. `with` is the
/// pool, or the transaction that the row should belong to.
pub async fn record_operation(
    with: impl sqlx::PgExecutor<'_>,
    action: &str,
    object: &str,
    target: &str,
    tenant: Option<&TenantId>,
    after: &Value,
) -> Result<(), Error> {
    sqlx::query!(
        "select note_operation($1, $2, $3, $4, null, $5)",
        action,
        object,
        target,
        tenant.map(TenantId::as_str),
        after
    )
    .execute(with)
    .await
    .map(drop)
}

/// Removes the oldest rows of `operator_audit` that are older than `kept`, and adds a row that records it.
pub(super) async fn delete_old_operator_audit(
    database: &Database,
    kept: Duration,
) -> Result<u64, Error> {
    // A single statement, so that rows are never removed without the row that records it.
    let removed = sqlx::query_scalar!(
        r#"
        with old as (
            select seq, hash
            from operator_audit
            where occurred_at < attesto_now() - make_interval(secs => $1)
                and seq < (select max(seq) from operator_audit)
            order by seq
            limit $2
        ), gone as (
            delete from operator_audit using old where operator_audit.seq = old.seq returning 1
        ), last as (
            select seq, hash from old order by seq desc limit 1
        ), noted as (
            select note_operation($3, 'operator_audit', 'through ' || seq, null,
                jsonb_build_object('through', seq, 'hash', encode(hash, 'hex')), null)
            from last
        )
        select (select count(*) from gone) as "count!" from (select count(*) from noted) as noted
        "#,
        kept.as_secs_f64(),
        MAX_PRUNE_BATCH,
        PRUNE_ACTION
    )
    .fetch_one(database.pool())
    .await?;
    Ok(u64::try_from(removed).unwrap_or(0))
}
