//! The database: is it there, is it ours, is it well.

use std::time::Duration;

use super::check_result::query_failed;
use super::check_result::{CheckResult, pluralize_count};
use super::store::{self, ReplicationSlot};
use crate::base::clock::{Clock, Timestamp};
use crate::db::health::DatabaseHealth;
use crate::db::{Database, Error, MIN_POSTGRES_MAJOR, SchemaState};
use crate::metrics::registry::u64_to_f64;

/// How long it may take to answer at all.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Clocks may differ this much.
const CLOCK_SKEW_WARNING_THRESHOLD: f64 = 1.0;
/// From here on receivers refuse what we sign.
const CLOCK_SKEW_FAILURE_THRESHOLD: f64 = 60.0;
/// A transaction that is open longer than this has been forgotten.
const MAX_TRANSACTION_AGE: Duration = Duration::from_mins(1);
/// A backup or an export is older than this.
const MAX_SNAPSHOT_AGE: Duration = Duration::from_hours(1);
/// More dead rows than this are not cleaned up as they should be.
const MAX_DEAD_ROWS: i64 = 20_000;
const MEBIBYTE: i64 = 1024 * 1024;
/// A slot that keeps more of the write-ahead log than this has fallen behind.
const MAX_SLOT_WAL_BYTES: i64 = 5 * 1024 * MEBIBYTE;
/// Of a hundred connections of the server.
const MAX_CONNECTIONS_PERCENT: i64 = 85;
/// The last day on which each major version gets corrections; <https://www.postgresql.org/support/versioning/>.
const POSTGRES_END_OF_LIFE: [(u32, &str); 5] = [
    (14, "2026-11-12T23:59:59Z"),
    (15, "2027-11-11T23:59:59Z"),
    (16, "2028-11-09T23:59:59Z"),
    (17, "2029-11-08T23:59:59Z"),
    (18, "2030-11-14T23:59:59Z"),
];

/// Looks.
pub async fn check_database(database: &Database, clock: &Clock) -> CheckResult {
    let mut checks = Vec::new();
    match database.ping(PING_TIMEOUT).await {
        Ok(()) => checks.push(CheckResult::ok("database.reachable", "It answers.")),
        Err(problem) => {
            checks.push(CheckResult::fail(
                "database.reachable",
                format!("It cannot be reached: {problem}."),
                "Is it running, where DATABASE_URL says, and does it let this user in from here?",
            ));
            return CheckResult::group("database", "Database", checks);
        }
    }
    checks.extend(check_pooler(database).await);
    match store::load_postgres_server(database).await {
        Ok(server) => checks.extend(check_server(&server, clock.now())),
        Err(error) => checks.push(query_failed("database.server", &error)),
    }
    let schema = database.load_schema_state().await;
    checks.push(check_migrations(&schema));
    if matches!(schema, Ok(SchemaState::UpToDate)) {
        match store::list_tables_without_privileges(database).await {
            Ok(tables) if tables.is_empty() => checks.push(CheckResult::ok(
                "database.rights",
                "The role may read and write every table.",
            )),
            Ok(tables) => checks.push(CheckResult::fail(
                "database.rights",
                format!("The role may not read and write: {}.", tables.join(", ")),
                "Let the tables' owner run `grant select, insert, update, delete on all tables in schema public to <role>`.",
            )),
            Err(error) => checks.push(query_failed("database.rights", &error)),
        }
    }
    checks.push(check_notify(database).await);
    match database.load_health(clock).await {
        Ok(vitals) => checks.extend(check_vitals(&vitals)),
        Err(error) => checks.push(query_failed("database.vitals", &error)),
    }
    match store::list_replication_slots(database).await {
        Ok(slots) => checks.extend(check_replication_slots(&slots)),
        Err(error) => checks.push(query_failed("database.slots", &error)),
    }
    match store::find_data_directory(database).await {
        Ok(Some(folder)) if database.is_on_this_machine() => checks.extend(check_disk(&folder)),
        Ok(_) => {}
        Err(error) => checks.push(query_failed("database.disk", &error)),
    }
    CheckResult::group("database", "Database", checks)
}

/// What nobody uses, and what falls behind, keeps the write-ahead log until the disk is full.
fn check_replication_slots(slots: &[ReplicationSlot]) -> Option<CheckResult> {
    const NAME: &str = "database.slots";
    let told = |slot: &&ReplicationSlot| {
        let kept = slot.retained_wal_bytes / MEBIBYTE;
        let state = if slot.is_active { "in use" } else { "unused" };
        format!("{} ({state}, {kept} MiB)", slot.name)
    };
    let bad = slots
        .iter()
        .filter(|slot| !slot.is_active || slot.retained_wal_bytes > MAX_SLOT_WAL_BYTES);
    let bad: Vec<_> = bad.map(|slot| told(&slot)).collect();
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
            "Connect what should use them, or drop them (pg_drop_replication_slot) before the disk is full.",
        ))
    }
}

/// The disk that the database is on, where that is this machine's and this process may look there.
fn check_disk(folder: &str) -> Option<CheckResult> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(check_disk_space(bytes(stat.f_bavail), bytes(stat.f_blocks)))
}

fn check_disk_space(free: u64, all: u64) -> CheckResult {
    const NAME: &str = "database.disk";
    const GIBIBYTE: u64 = 1024 * 1024 * 1024;
    let told = format!(
        "{:.1} GiB of {:.1} are free on the database's disk.",
        u64_to_f64(free) / u64_to_f64(GIBIBYTE),
        u64_to_f64(all) / u64_to_f64(GIBIBYTE)
    );
    let advice = "Make room: `attesto prune --dry-run` counts what is too old, `attesto_db_table_bytes` says what is large, and old logs and backups may go elsewhere. Without room Postgres stops.";
    if free < GIBIBYTE / 2 {
        CheckResult::fail(NAME, told, advice)
    } else if free < 2 * GIBIBYTE || (free < 50 * GIBIBYTE && free < all / 10) {
        CheckResult::warn(NAME, told, advice)
    } else {
        CheckResult::ok(NAME, told)
    }
}

fn check_server(server: &store::PostgresServer, now: Timestamp) -> Vec<CheckResult> {
    let major = u32::try_from(server.version / 10_000).unwrap_or(0);
    let mut checks = vec![check_server_version(major, now)];
    if server.encoding != "UTF8" {
        checks.push(CheckResult::fail(
            "database.encoding",
            format!("The database's encoding is {}.", server.encoding),
            "Make one with `create database … encoding 'UTF8' template template0` and move there.",
        ));
    }
    checks.push(if server.is_superuser {
        CheckResult::warn(
            "database.role",
            "Attesto's role is a superuser.",
            "Give it a role of its own that owns nothing but Attesto's tables.",
        )
    } else {
        CheckResult::ok("database.role", "The role is not a superuser.")
    });
    checks.push(if server.statement_timeout == "15s" {
        CheckResult::ok("database.session", "What Attesto sets on a connection stays set.")
    } else {
        CheckResult::warn(
            "database.session",
            format!(
                "What Attesto sets on a connection does not stay set (statement_timeout is {}).",
                server.statement_timeout
            ),
            "Is there a pooler in transaction mode between? Say in DATABASE_DIRECT_URL where the server itself is.",
        )
    });
    checks.push(if server.autovacuum {
        CheckResult::ok("database.autovacuum", "Autovacuum is on.")
    } else {
        CheckResult::fail(
            "database.autovacuum",
            "Autovacuum is off: dead rows stay, and deliveries get slower and slower.",
            "Set autovacuum = on in postgresql.conf and reload.",
        )
    });
    let of_hundred = server.connections * 100 / server.max_connections.max(1);
    let told = format!(
        "{} of the server's {} connections are in use.",
        server.connections, server.max_connections
    );
    checks.push(if of_hundred >= MAX_CONNECTIONS_PERCENT {
        CheckResult::warn(
            "database.connections",
            told,
            "Raise max_connections, or lower max in the DATABASE_URL of each process.",
        )
    } else {
        CheckResult::ok("database.connections", told)
    });
    checks
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
            format!("The server is Postgres {major}, which gets no more corrections."),
            "Plan the upgrade to a version that does: https://www.postgresql.org/support/versioning/.",
        )
    } else {
        CheckResult::ok(NAME, format!("The server is Postgres {major}."))
    }
}

fn check_migrations(schema: &Result<SchemaState, Error>) -> CheckResult {
    const NAME: &str = "database.migrations";
    match schema {
        Ok(SchemaState::UpToDate) => CheckResult::ok(NAME, "The tables are this release's."),
        Ok(SchemaState::Behind(count)) => {
            let missing = i64::try_from(*count).unwrap_or(i64::MAX);
            CheckResult::fail(
                NAME,
                format!(
                    "{} missing.",
                    pluralize_count(missing, "migration is", "migrations are")
                ),
                "Run `attesto migrate`; `attesto serve` does it too, unless ATTESTO_MIGRATE_ON_START is off.",
            )
        }
        Ok(SchemaState::AheadAndCompatible) => CheckResult::warn(
            NAME,
            "The tables are those of a newer release, on which this one works.",
            "Bring this machine to the newer release.",
        ),
        Ok(SchemaState::Ahead) => CheckResult::fail(
            NAME,
            "The tables are those of a newer release.",
            "Run that release's binary.",
        ),
        Ok(SchemaState::Diverged) => CheckResult::fail(
            NAME,
            "The tables are not those of any release of Attesto that this one knows.",
            "Is this Attesto's database, and an official release? `attesto migrate --dry-run` says which migration differs.",
        ),
        Err(error) => query_failed(NAME, error),
    }
}

/// The doctor, like every command, goes around the pooler that the service goes through.
async fn check_pooler(database: &Database) -> Option<CheckResult> {
    const NAME: &str = "database.pooler";
    Some(
        match database.is_pooler_same_database(PING_TIMEOUT).await? {
            Ok(true) => CheckResult::ok(NAME, "The way through the pooler leads to it too."),
            Ok(false) => CheckResult::fail(
                NAME,
                "DATABASE_URL and DATABASE_DIRECT_URL lead to different databases.",
                "Both must name the same one: the first through the pooler, the second without it.",
            ),
            Err(problem) => CheckResult::fail(
                NAME,
                format!("It cannot be reached through the pooler: {problem}."),
                "Does the pooler run where DATABASE_URL says, and know this database and this user?",
            ),
        },
    )
}

async fn check_notify(database: &Database) -> CheckResult {
    const NAME: &str = "database.notifications";
    match database
        .receives_own_notifications(Duration::from_secs(3))
        .await
    {
        Ok(true) => CheckResult::ok(NAME, "Notifications arrive."),
        Ok(false) => CheckResult::warn(
            NAME,
            "Notifications do not arrive, so nothing is remembered of credentials and keys, and each request asks the database.",
            "Is there a pooler in transaction mode between? Say in DATABASE_DIRECT_URL where the server itself is.",
        ),
        Err(error) => query_failed(NAME, &error),
    }
}

fn check_vitals(vitals: &DatabaseHealth) -> Vec<CheckResult> {
    let skew = vitals.clock_skew;
    let told = format!("The database's clock is {skew:+.1} s ahead of this machine's.");
    let clock = if skew.abs() > CLOCK_SKEW_FAILURE_THRESHOLD {
        CheckResult::fail(
            "database.clock",
            told,
            "Synchronise the time on both (chrony, systemd-timesyncd): receivers refuse signatures that are minutes off.",
        )
    } else if skew.abs() > CLOCK_SKEW_WARNING_THRESHOLD {
        CheckResult::warn(
            "database.clock",
            told,
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
    vec![clock, transaction, dead]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::doctor::CheckStatus;

    fn vitals(clock_skew: f64, seconds: u64, snapshot: u64, dead: i64) -> Vec<CheckStatus> {
        let vitals = DatabaseHealth {
            clock_skew,
            oldest_transaction: Duration::from_secs(seconds),
            oldest_snapshot: Duration::from_secs(snapshot),
            dead_rows: BTreeMap::from([("webhook_deliveries".to_owned(), dead)]),
        };
        check_vitals(&vitals)
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
            |slots: &[ReplicationSlot]| check_replication_slots(slots).map(|check| check.status);
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
