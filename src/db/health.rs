//! The health of the database: the difference between its clock and ours, long-open transactions, and dead rows. Cheap enough
//! to be read every few seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::timeout;

use super::{Database, Error};
use crate::base::clock::{Clock, Timestamp};

/// One reading of the database's health.
#[derive(Clone, Debug, PartialEq)]
pub struct DatabaseHealth {
    /// How far the database's clock is ahead of ours, in seconds; negative when it is behind. Exact to half of the
    /// time that the query took.
    pub clock_skew: f64,
    /// How long the oldest transaction has been open that keeps dead rows from being cleaned up. Zero if there is none.
    /// Transactions of other roles are visible only to a role that has `pg_read_all_stats`. Backups and exports are not counted here.
    pub oldest_transaction: Duration,
    /// The same for backups and exports, which hold one snapshot of the database until they are done: sessions whose
    /// `application_name` is one of those and that have written nothing.
    pub oldest_snapshot: Duration,
    /// Dead rows that wait for vacuum, by table, from the statistics.
    pub dead_rows: BTreeMap<String, i64>,
}

/// The `application_name` of sessions that hold a snapshot on purpose: Postgres' own programs, `attesto backup create` and
/// `attesto tenant export`.
const SNAPSHOT_APPLICATIONS: [&str; 4] =
    ["pg_dump", "pg_dumpall", "attesto-backup", "attesto-export"];

/// The tables whose rows change often.
const HIGH_CHURN_TABLES: [&str; 3] = ["webhook_deliveries", "webhook_health", "api_keys"];

impl Database {
    /// Queries the server's statistics.
    pub async fn load_health(&self, clock: &Clock) -> Result<DatabaseHealth, Error> {
        let mut connection = self.pool().begin().await?;
        let asked = clock.now();
        let theirs = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#)
            .fetch_one(&mut *connection)
            .await?;
        let clock_skew = compute_clock_skew(asked, theirs.into(), clock.now());
        let snapshots = SNAPSHOT_APPLICATIONS.map(str::to_owned);
        let oldest = sqlx::query!(
            r#"
            select
                extract(epoch from max(age) filter (where not is_snapshot))::float8 as transaction,
                extract(epoch from max(age) filter (where is_snapshot))::float8 as snapshot
            from (
                select
                    clock_timestamp() - xact_start as age,
                    application_name = any ($1) and backend_xid is null as is_snapshot
                from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid()
                    and (backend_xid is not null or backend_xmin is not null)
                    and backend_type <> 'autovacuum worker'
                union all
                select clock_timestamp() - prepared, false from pg_prepared_xacts where database = current_database()
            ) transactions
            "#,
            &snapshots
        )
        .fetch_one(&mut *connection)
        .await?;
        let busy = HIGH_CHURN_TABLES.map(str::to_owned);
        let dead = sqlx::query!(
            r#"
            select relname::text as "table!", n_dead_tup as "rows!"
            from pg_stat_user_tables where relname = any ($1) and schemaname = current_schema()
            "#,
            &busy
        )
        .fetch_all(&mut *connection)
        .await?;
        Ok(DatabaseHealth {
            clock_skew,
            oldest_transaction: age_from_seconds(oldest.transaction),
            oldest_snapshot: age_from_seconds(oldest.snapshot),
            dead_rows: dead.into_iter().map(|row| (row.table, row.rows)).collect(),
        })
    }
}

/// The size of a table with all of its partitions and indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// The table's name.
    pub name: String,
    /// Number of rows, from the statistics.
    pub rows: i64,
    /// Size on disk in bytes.
    pub bytes: i64,
}

impl Database {
    /// The sizes of our tables, from the catalog; no row is read.
    pub async fn table_sizes(&self) -> Result<Vec<TableSize>, Error> {
        let rows = sqlx::query!(
            r#"
            select
                coalesce(pg_partition_root(oid)::oid, oid)::regclass::text as "name!",
                sum(pg_stat_get_live_tuples(oid))::int8 as "rows!",
                sum(pg_total_relation_size(oid))::int8 as "bytes!"
            from pg_class
            where relnamespace = current_schema()::regnamespace and relkind = 'r' and relname <> '_sqlx_migrations'
            group by 1
            order by 1
            "#
        )
        .fetch_all(self.pool())
        .await?;
        let sizes = rows.into_iter().map(|row| TableSize {
            name: row.name,
            rows: row.rows,
            bytes: row.bytes,
        });
        Ok(sizes.collect())
    }
}

impl Database {
    /// Whether a notification sent over one connection arrives on another one in time (`within`). Behind a pooler in
    /// transaction mode it does not.
    pub async fn receives_own_notifications(&self, within: Duration) -> Result<bool, Error> {
        let channel = format!("attesto_proof_{:016x}", fastrand::u64(..));
        // A pool of its own, as in `change_listener`: the main pool may be busy.
        self.direct_server().choose_first().await?;
        let options = self.direct_options();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(within)
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(&channel).await?;
        sqlx::query("select pg_notify($1, '')")
            .bind(&channel)
            .execute(self.pool())
            .await?;
        let heard = timeout(within, listener.recv()).await;
        drop(listener);
        pool.close().await;
        match heard {
            Ok(heard) => heard.map(|_| true),
            Err(_) => Ok(false),
        }
    }
}

fn age_from_seconds(seconds: Option<f64>) -> Duration {
    Duration::from_secs_f64(seconds.unwrap_or(0.0).max(0.0))
}

/// How far `theirs`, read at some moment between `asked` and `answered`, is ahead, in seconds.
fn compute_clock_skew(asked: Timestamp, theirs: Timestamp, answered: Timestamp) -> f64 {
    let between = i64::midpoint(asked.as_millis(), answered.as_millis());
    let ahead = theirs.as_millis().saturating_sub(between);
    #[expect(
        clippy::cast_precision_loss,
        reason = "more than 2^53 milliseconds is far enough"
    )]
    let ahead = ahead as f64;
    ahead / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_measured_from_the_middle_of_the_question() {
        let at = Timestamp::from_millis;
        for (asked, theirs, answered, expected) in [
            (1000, 1050, 1100, 0.0),
            (1000, 3050, 1100, 2.0),
            (5000, 2500, 5000, -2.5),
        ] {
            let found = compute_clock_skew(at(asked), at(theirs), at(answered));
            assert!((found - expected).abs() < 1e-9, "{found}");
        }
    }
}
