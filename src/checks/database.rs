//! The group `database`: whether the server is reachable, suitable and healthy.

use std::time::Duration;

use super::check::Judged;
use super::check_result::{CheckResult, pluralize_count};
use super::store::{self, PostgresServer, ReplicationSlot};
use crate::base::clock::Timestamp;
use crate::db::health::DatabaseHealth;
use crate::db::migrations::UTF8_DATABASE_OPTIONS;
use crate::db::{
    ConnectionLimit, Database, Error, MIN_POSTGRES_MAJOR, SchemaState, describe_error,
};
use crate::telemetry::metrics::u64_to_f64;

/// How long the server may take to answer.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The difference of the clocks in seconds from which on there is a warning.
const CLOCK_SKEW_WARNING_THRESHOLD: f64 = 1.0;
/// The difference of the clocks in seconds from which on there is a failure: receivers refuse signatures that are
/// older.
const CLOCK_SKEW_FAILURE_THRESHOLD: f64 = 60.0;
/// A transaction that is open longer was probably forgotten.
const MAX_TRANSACTION_AGE: Duration = Duration::from_mins(1);
/// The same for the transaction of a backup or an export.
const MAX_SNAPSHOT_AGE: Duration = Duration::from_hours(1);
/// The number of dead rows in a table above which vacuum does not keep up.
const MAX_DEAD_ROWS: i64 = 20_000;
const MEBIBYTE: i64 = 1024 * 1024;
/// A replication slot that keeps more of the write-ahead log has fallen behind.
const MAX_SLOT_WAL_BYTES: i64 = 5 * 1024 * MEBIBYTE;
/// The percentage of the server's `max_connections` that may be in use.
const MAX_CONNECTIONS_PERCENT: i64 = 85;
/// The last day on which each major version gets fixes. Source: <https://www.postgresql.org/support/versioning/>.
const POSTGRES_END_OF_LIFE: [(u32, &str); 5] = [
    (14, "2026-11-12T23:59:59Z"),
    (15, "2027-11-11T23:59:59Z"),
    (16, "2028-11-09T23:59:59Z"),
    (17, "2029-11-08T23:59:59Z"),
    (18, "2030-11-14T23:59:59Z"),
];

pub(super) fn judge_reachable(answer: Result<(), Error>) -> Judged {
    const NAME: &str = "database.reachable";
    match answer {
        Ok(()) => CheckResult::ok(NAME, "It answers.").into(),
        Err(error) => Judged::LastResults(vec![CheckResult::fail(
            NAME,
            format!("It cannot be reached: {}", describe_error(&error)),
            "Is it running where DATABASE_URL says, and does it accept this user from this machine?",
        )]),
    }
}

/// `None` if the schema is not this release's: privileges on other tables cannot be judged.
pub(super) async fn list_tables_without_privileges(
    database: &Database,
) -> Result<Option<Vec<String>>, Error> {
    if !matches!(
        database.load_schema_state().await,
        Ok(SchemaState::UpToDate)
    ) {
        return Ok(None);
    }
    store::list_tables_without_privileges(database)
        .await
        .map(Some)
}

pub(super) fn judge_privileges(tables: &[String]) -> CheckResult {
    const NAME: &str = "database.rights";
    if tables.is_empty() {
        CheckResult::ok(NAME, "The role may read and write every table.")
    } else {
        CheckResult::fail(
            NAME,
            format!("The role may not read and write: {}.", tables.join(", ")),
            "Let the tables' owner run `grant select, insert, update, delete on all tables in schema public to <role>`.",
        )
    }
}

/// A slot that is unused or falls behind keeps the write-ahead log, which can fill the disk.
pub(super) fn judge_replication_slots(slots: &[ReplicationSlot]) -> Option<CheckResult> {
    const NAME: &str = "database.slots";
    let describe = |slot: &&ReplicationSlot| {
        let kept = slot.retained_wal_bytes / MEBIBYTE;
        let state = if slot.is_active { "in use" } else { "unused" };
        format!("{} ({state}, {kept} MiB)", slot.name)
    };
    let bad = slots
        .iter()
        .filter(|slot| !slot.is_active || slot.retained_wal_bytes > MAX_SLOT_WAL_BYTES);
    let bad: Vec<_> = bad.map(|slot| describe(&slot)).collect();
    if slots.is_empty() {
        None
    } else if bad.is_empty() {
        Some(CheckResult::ok(
            NAME,
            "The replication slots are in use and keep up.",
        ))
    } else {
        Some(CheckResult::warn(
            NAME,
            format!(
                "Replication slots keep the write-ahead log: {}.",
                bad.join(", ")
            ),
            "Connect the replicas that should use them, or drop them (pg_drop_replication_slot) before the disk is full.",
        ))
    }
}

/// `None` if this process may not read the file system.
pub(super) fn check_disk(folder: &str) -> Option<CheckResult> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(check_disk_space(bytes(stat.f_bavail), bytes(stat.f_blocks)))
}

fn check_disk_space(free: u64, all: u64) -> CheckResult {
    const NAME: &str = "database.disk";
    const GIBIBYTE: u64 = 1024 * 1024 * 1024;
    let message = format!(
        "{:.1} GiB of {:.1} are free on the database's disk.",
        u64_to_f64(free) / u64_to_f64(GIBIBYTE),
        u64_to_f64(all) / u64_to_f64(GIBIBYTE)
    );
    let advice = "Make room: `attesto prune --dry-run` counts what is too old, `attesto_db_table_bytes` says what is large, and old logs and backups can be moved away. Without free space Postgres stops.";
    if free < GIBIBYTE / 2 {
        CheckResult::fail(NAME, message, advice)
    } else if free < 2 * GIBIBYTE || (free < 50 * GIBIBYTE && free < all / 10) {
        CheckResult::warn(NAME, message, advice)
    } else {
        CheckResult::ok(NAME, message)
    }
}

/// `max_connections`: `max` in the database's URL.
pub(super) fn judge_server(
    server: &PostgresServer,
    max_connections: u64,
    now: Timestamp,
) -> Vec<CheckResult> {
    let major = u32::try_from(server.version / 10_000).unwrap_or(0);
    let mut checks = vec![check_server_version(major, now)];
    if server.encoding != "UTF8" {
        checks.push(CheckResult::fail(
            "database.encoding",
            format!("The database's encoding is {}.", server.encoding),
            format!("Create a new one with `create database … {UTF8_DATABASE_OPTIONS}` and move the data there."),
        ));
    }
    checks.push(judge_write_mode(server));
    checks.push(if server.is_superuser {
        CheckResult::warn(
            "database.role",
            "Attesto's role is a superuser.",
            "Create a separate role that owns nothing but Attesto's tables.",
        )
    } else {
        CheckResult::ok("database.role", "The role is not a superuser.")
    });
    checks.push(if server.statement_timeout == "15s" {
        CheckResult::ok("database.session", "Connection settings persist.")
    } else {
        CheckResult::warn(
            "database.session",
            format!(
                "Settings that Attesto makes on a connection are lost (statement_timeout is {}).",
                server.statement_timeout
            ),
            "Is there a pooler in transaction mode in between? Set DATABASE_DIRECT_URL to the server itself.",
        )
    });
    checks.push(if server.autovacuum {
        CheckResult::ok("database.autovacuum", "Autovacuum is on.")
    } else {
        CheckResult::fail(
            "database.autovacuum",
            "Autovacuum is off: dead rows are never removed, and deliveries get slower over time.",
            "Set autovacuum = on in postgresql.conf and reload.",
        )
    });
    let percent = server.connections * 100 / server.max_connections.max(1);
    let message = format!(
        "{} of the server's {} connections are in use.",
        server.connections, server.max_connections
    );
    let role_limit = ConnectionLimit::of_role(server.role_connections, max_connections);
    checks.push(if let Some(limit) = role_limit.filter(|_| !server.is_superuser) {
        CheckResult::warn(
            "database.connections",
            format!("{}.", limit.describe()),
            format!(
                "{}, divided by the number of processes; or let a superuser run `alter role <role> connection limit {}` for each process.",
                limit.advise(),
                limit.needed
            ),
        )
    } else if percent >= MAX_CONNECTIONS_PERCENT {
        CheckResult::warn(
            "database.connections",
            message,
            "Raise max_connections, or lower max in the DATABASE_URL of each process.",
        )
    } else {
        CheckResult::ok("database.connections", message)
    });
    checks
}

fn judge_write_mode(server: &PostgresServer) -> CheckResult {
    const NAME: &str = "database.writable";
    match server.write_mode.as_str() {
        "standby" => CheckResult::fail(
            NAME,
            "The server is a standby, which takes no writes.",
            "Set DATABASE_URL to the primary, or name all servers in it with target_session_attrs=read-write.",
        ),
        "read_only" => CheckResult::fail(
            NAME,
            "Sessions of this role in this database are read-only (default_transaction_read_only is on).",
            "If the server is to be replaced, set DATABASE_URL to the new primary; otherwise `alter database … reset default_transaction_read_only`, or the same for the role or the server.",
        ),
        _ => CheckResult::ok(NAME, "It takes writes."),
    }
}

fn check_server_version(major: u32, now: Timestamp) -> CheckResult {
    const NAME: &str = "database.version";
    let until = POSTGRES_END_OF_LIFE
        .iter()
        .find(|(version, _)| *version == major)
        .and_then(|(_, until)| Timestamp::parse(until));
    if major < MIN_POSTGRES_MAJOR {
        CheckResult::fail(
            NAME,
            format!("The server is Postgres {major}."),
            format!("Attesto needs {MIN_POSTGRES_MAJOR} or newer."),
        )
    } else if until.is_some_and(|until| until < now) {
        CheckResult::warn(
            NAME,
            format!("The server is Postgres {major}, which no longer gets fixes."),
            "Plan the upgrade to a supported version: https://www.postgresql.org/support/versioning/.",
        )
    } else {
        CheckResult::ok(NAME, format!("The server is Postgres {major}."))
    }
}

/// `missing`: how many steps of `attesto db distribute` are not done.
pub(super) fn judge_distribution(missing: usize) -> CheckResult {
    const NAME: &str = "database.distribution";
    if missing == 0 {
        return CheckResult::ok(
            NAME,
            "The tables are distributed by lane over the workers of Citus.",
        );
    }
    let missing = i64::try_from(missing).unwrap_or(i64::MAX);
    CheckResult::fail(
        NAME,
        format!(
            "The distribution of the tables over the workers of Citus is not complete: {} missing.",
            pluralize_count(missing, "step is", "steps are")
        ),
        "Stop all replicas and run `attesto db distribute`; with `--dry-run` it prints the steps.",
    )
}

pub(super) fn judge_migrations(schema: SchemaState) -> CheckResult {
    const NAME: &str = "database.migrations";
    match schema {
        SchemaState::UpToDate => CheckResult::ok(NAME, "The tables are this release's."),
        SchemaState::Behind(count) => {
            let missing = i64::try_from(count).unwrap_or(i64::MAX);
            CheckResult::fail(
                NAME,
                format!(
                    "{} missing.",
                    pluralize_count(missing, "migration is", "migrations are")
                ),
                "Run `attesto migrate`; `attesto serve` does it too, unless ATTESTO_MIGRATE_ON_START is off.",
            )
        }
        SchemaState::AheadAndCompatible => CheckResult::warn(
            NAME,
            "The tables are those of a newer release, with which this one still works.",
            "Upgrade this machine to the newer release.",
        ),
        SchemaState::Ahead => CheckResult::fail(
            NAME,
            "The tables are those of a newer release.",
            "Run that release's binary.",
        ),
        SchemaState::Diverged => CheckResult::fail(
            NAME,
            "The tables are not those of any release of Attesto that this one knows.",
            "Is this Attesto's database, and an official release? `attesto migrate --dry-run` says which migration differs.",
        ),
    }
}

/// `attesto doctor`, like every command, uses the direct connection. This check uses the pooler.
pub(super) fn judge_pooler(answer: Result<bool, Error>) -> CheckResult {
    const NAME: &str = "database.pooler";
    match answer {
        Ok(true) => CheckResult::ok(NAME, "The pooler leads to the same database."),
        Ok(false) => CheckResult::fail(
            NAME,
            "DATABASE_URL and DATABASE_DIRECT_URL lead to different databases.",
            "Both must name the same one: the first through the pooler, the second without it.",
        ),
        Err(error) => CheckResult::fail(
            NAME,
            format!(
                "It cannot be reached through the pooler: {}",
                describe_error(&error)
            ),
            "Does the pooler run where DATABASE_URL says, and know this database and this user?",
        ),
    }
}

pub(super) fn judge_notifications(arrive: bool) -> CheckResult {
    const NAME: &str = "database.notifications";
    if arrive {
        return CheckResult::ok(NAME, "Notifications arrive.");
    }
    CheckResult::warn(
        NAME,
        "Notifications do not arrive, so credentials and keys are not cached, and each request reads them from the database.",
        "Is there a pooler in transaction mode in between? Set DATABASE_DIRECT_URL to the server itself.",
    )
}

pub(super) fn judge_health(vitals: &DatabaseHealth) -> [CheckResult; 3] {
    let skew = vitals.clock_skew;
    let message = format!("The database's clock is {skew:+.1} s ahead of this machine's.");
    let clock = if skew.abs() > CLOCK_SKEW_FAILURE_THRESHOLD {
        CheckResult::fail(
            "database.clock",
            message,
            "Synchronise the time on both (chrony, systemd-timesyncd): receivers refuse signatures that are minutes off.",
        )
    } else if skew.abs() > CLOCK_SKEW_WARNING_THRESHOLD {
        CheckResult::warn(
            "database.clock",
            message,
            "Synchronise the time on both (chrony, systemd-timesyncd).",
        )
    } else {
        CheckResult::ok("database.clock", "The clocks agree.")
    };
    let open = vitals.oldest_transaction;
    let transaction = if open > MAX_TRANSACTION_AGE {
        CheckResult::warn(
            "database.transactions",
            format!("A transaction has been open for {} s.", open.as_secs()),
            "It keeps dead rows from being cleaned up. Find it in pg_stat_activity (order by xact_start) or pg_prepared_xacts, and end it.",
        )
    } else if vitals.oldest_snapshot > MAX_SNAPSHOT_AGE {
        let open = vitals.oldest_snapshot.as_secs() / 60;
        CheckResult::warn(
            "database.transactions",
            format!("A backup or an export has been under way for {open} minutes."),
            "It keeps dead rows from being cleaned up. Let it end if it makes progress; else find it in pg_stat_activity by its application_name and end it.",
        )
    } else {
        CheckResult::ok("database.transactions", "No transaction is open for long.")
    };
    let many: Vec<_> = vitals
        .dead_rows
        .iter()
        .filter(|(_, rows)| **rows > MAX_DEAD_ROWS)
        .map(|(table, rows)| format!("{rows} in {table}"))
        .collect();
    let dead = if many.is_empty() {
        CheckResult::ok("database.dead_rows", "Dead rows are cleaned up.")
    } else {
        CheckResult::warn(
            "database.dead_rows",
            format!("Dead rows wait to be cleaned up: {}.", many.join(", ")),
            "End old transactions first; then `vacuum` the table, and see whether autovacuum keeps up.",
        )
    };
    [clock, transaction, dead]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::checks::CheckStatus;

    fn vitals(clock_skew: f64, seconds: u64, snapshot: u64, dead: i64) -> Vec<CheckStatus> {
        let vitals = DatabaseHealth {
            clock_skew,
            oldest_transaction: Duration::from_secs(seconds),
            oldest_snapshot: Duration::from_secs(snapshot),
            dead_rows: BTreeMap::from([("webhook_deliveries".to_owned(), dead)]),
        };
        judge_health(&vitals)
            .into_iter()
            .map(|check| check.status)
            .collect()
    }

    #[test]
    fn vital_signs_are_judged() {
        use CheckStatus::{Fail, Ok, Warn};
        assert_eq!(vitals(0.4, 5, 3600, 10), [Ok, Ok, Ok]);
        assert_eq!(vitals(0.4, 5, 3601, 10), [Ok, Warn, Ok]);
        assert_eq!(vitals(-1.5, 61, 0, 20_001), [Warn, Warn, Warn]);
        assert_eq!(vitals(-600.0, 0, 0, 0), [Fail, Ok, Ok]);
    }

    #[test]
    fn a_slot_that_is_unused_or_behind_is_noticed() {
        let slot = |is_active, gibibytes: i64| ReplicationSlot {
            name: "standby".to_owned(),
            is_active,
            retained_wal_bytes: gibibytes * 1024 * MEBIBYTE,
        };
        let judged =
            |slots: &[ReplicationSlot]| judge_replication_slots(slots).map(|check| check.status);
        assert_eq!(judged(&[]), None);
        assert_eq!(judged(&[slot(true, 1)]), Some(CheckStatus::Ok));
        assert_eq!(
            judged(&[slot(true, 1), slot(false, 0)]),
            Some(CheckStatus::Warn)
        );
        assert_eq!(judged(&[slot(true, 6)]), Some(CheckStatus::Warn));
    }

    #[test]
    fn a_disk_that_fills_is_noticed_and_a_large_one_may_be_fuller() {
        const GIBIBYTE: u64 = 1024 * 1024 * 1024;
        for (free, all, status) in [
            (40, 100, CheckStatus::Ok),
            (9, 100, CheckStatus::Warn),
            (60, 1000, CheckStatus::Ok),
            (1, 4, CheckStatus::Warn),
            (0, 100, CheckStatus::Fail),
        ] {
            assert_eq!(
                check_disk_space(free * GIBIBYTE, all * GIBIBYTE).status,
                status,
                "{free} of {all}"
            );
        }
        assert!(check_disk("/").is_some() && check_disk("/no/such/folder").is_none());
    }

    #[test]
    fn an_old_server_is_noticed() {
        let now = Timestamp::parse("2027-01-01T00:00:00Z").expect("a time");
        for (major, status) in [
            (13, CheckStatus::Fail),
            (14, CheckStatus::Warn),
            (17, CheckStatus::Ok),
            (99, CheckStatus::Ok),
        ] {
            assert_eq!(check_server_version(major, now).status, status, "{major}");
        }
    }
}
