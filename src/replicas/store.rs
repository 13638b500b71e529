//! The rows in `replicas`. Only the database's clock decides whether a heartbeat is recent.

use std::time::Duration;

use super::replica::{HEARTBEAT_TIMEOUT, Replica};
use crate::base::clock::Timestamp;
use crate::base::id::ReplicaId;
use crate::db::{Database, Error};

/// The row of a process that was killed is kept this long, so that an operator can see what happened.
const DEAD_REPLICA_TTL: Duration = Duration::from_hours(24);

pub(super) struct HeartbeatRow<'a> {
    pub(super) id: &'a ReplicaId,
    pub(super) host: &'a str,
    pub(super) pid: i32,
    pub(super) version: &'a str,
    pub(super) sealing_key_id: u8,
    pub(super) opening_key_ids: Vec<u8>,
    pub(super) settings: serde_json::Value,
    pub(super) certificates: serde_json::Value,
    pub(super) notices: serde_json::Value,
    pub(super) delivers: bool,
}

/// What the database answers to a heartbeat.
pub(super) struct WrittenHeartbeat {
    /// The time by the database's clock.
    pub(super) seen_at: Timestamp,
    /// The processes that serve now, this one included.
    pub(super) live_replicas: i64,
    /// The other processes that deliver.
    pub(super) others_delivering: Vec<ReplicaId>,
}

pub(super) async fn upsert_heartbeat(
    database: &Database,
    row: &HeartbeatRow<'_>,
) -> Result<WrittenHeartbeat, Error> {
    let opening: Vec<i16> = row.opening_key_ids.iter().copied().map(i16::from).collect();
    // The count does not see the row that this statement writes.
    let written = sqlx::query!(
        r#"
        with gone as (
            delete from replicas where seen_at < attesto_now() - make_interval(secs => $7)
        )
        insert into replicas
            (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids, settings, certificates,
                notices, delivers)
        select $1, $2, $3, $4, now, now, $5, $6, $8, $9, $11, $12
        from (select attesto_now() as now) clock
        on conflict (id) do update set
            seen_at = excluded.seen_at, certificates = excluded.certificates, notices = excluded.notices
        returning seen_at, 1 + (
            select count(*) from replicas other
            where other.id <> $1 and other.seen_at > attesto_now() - make_interval(secs => $10)
        ) as "live_replicas!", array(
            select other.id from replicas other
            where other.id <> $1 and other.delivers and other.seen_at > attesto_now() - make_interval(secs => $10)
        ) as "others_delivering!"
        "#,
        row.id.as_str(),
        row.host,
        row.pid,
        row.version,
        i16::from(row.sealing_key_id),
        &opening,
        DEAD_REPLICA_TTL.as_secs_f64(),
        row.settings,
        row.certificates,
        HEARTBEAT_TIMEOUT.as_secs_f64(),
        row.notices,
        row.delivers,
    )
    .fetch_one(database.pool())
    .await?;
    Ok(WrittenHeartbeat {
        seen_at: written.seen_at.into(),
        live_replicas: written.live_replicas,
        others_delivering: written
            .others_delivering
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect(),
    })
}

pub(super) async fn delete_replica(database: &Database, id: &ReplicaId) -> Result<(), Error> {
    sqlx::query!("delete from replicas where id = $1", id.as_str())
        .execute(database.pool())
        .await?;
    Ok(())
}

pub(super) async fn list_live_replicas(database: &Database) -> Result<Vec<Replica>, Error> {
    let rows = sqlx::query!(
        r#"
        select id as "id: ReplicaId", host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids,
            settings, certificates, notices
        from replicas
        where seen_at > attesto_now() - make_interval(secs => $1)
        order by started_at, id
        "#,
        HEARTBEAT_TIMEOUT.as_secs_f64(),
    )
    .fetch_all(database.pool())
    .await?;
    // A check constraint keeps ids from 1 to 255.
    let key_id = |id: i16| u8::try_from(id).unwrap_or(0);
    let replicas = rows.into_iter().map(|row| Replica {
        id: row.id,
        host: row.host,
        pid: row.pid,
        version: row.version,
        started_at: Timestamp::from(row.started_at),
        seen_at: Timestamp::from(row.seen_at),
        sealing_key_id: key_id(row.sealing_key_id),
        opening_key_ids: row.opening_key_ids.into_iter().map(key_id).collect(),
        // A later release may write more than this one reads.
        settings: serde_json::from_value(row.settings).unwrap_or_default(),
        certificates: serde_json::from_value(row.certificates).unwrap_or_default(),
        notices: serde_json::from_value(row.notices).unwrap_or_default(),
    });
    Ok(replicas.collect())
}
