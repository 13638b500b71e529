//! The database: is it there, is it ours, is it well.

use std::time::Duration;

use super::finding::unanswered;
use super::finding::{Check, counted};
use super::store::{self, Slot};
use crate::clock::{Clock, Timestamp};
use crate::db::vitals::Vitals;
use crate::db::{Database, Error, OLDEST_MAJOR, SchemaState};
use crate::metrics::registry::as_number;

/// How long it may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clocks may differ this much.
const SKEW: f64 = 1.0;
/// From here on receivers refuse what we sign.
const TOO_MUCH_SKEW: f64 = 60.0;
/// A transaction that is open longer than this has been forgotten.
const LONG_TRANSACTION: Duration = Duration::from_mins(1);
/// A backup or an export is older than this.
const LONG_SNAPSHOT: Duration = Duration::from_hours(1);
/// More dead rows than this are not cleaned up as they should be.
const MANY_DEAD_ROWS: i64 = 20_000;
const MEBIBYTE: i64 = 1024 * 1024;
/// A slot that keeps more of the write-ahead log than this has fallen behind.
const MUCH_LOG: i64 = 5 * 1024 * MEBIBYTE;
/// Of a hundred connections of the server.
const MANY_CONNECTIONS: i64 = 85;
/// The last day on which each major version gets corrections; <https://www.postgresql.org/support/versioning/>.
const SUPPORTED_UNTIL: [(u32, &str); 5] = [
    (14, "2026-11-12T23:59:59Z"),
    (15, "2027-11-11T23:59:59Z"),
    (16, "2028-11-09T23:59:59Z"),
    (17, "2029-11-08T23:59:59Z"),
    (18, "2030-11-14T23:59:59Z"),
];

/// Looks.
pub async fn look(database: &Database, clock: &Clock) -> Check {
    let mut checks = Vec::new();
    match database.ping(PATIENCE).await {
        Ok(()) => checks.push(Check::ok("database.reachable", "It answers.")),
        Err(problem) => {
            checks.push(Check::fail(
                "database.reachable",
                format!("It cannot be reached: {problem}."),
                "Is it running, where DATABASE_URL says, and does it let this user in from here?",
            ));
            return Check::group("database", "Database", checks);
        }
    }
    checks.extend(pooler(database).await);
    match store::server(database).await {
        Ok(server) => checks.extend(server_checks(&server, clock.now())),
        Err(error) => checks.push(unanswered("database.server", &error)),
    }
    let schema = database.schema().await;
    checks.push(migrations(&schema));
    if matches!(schema, Ok(SchemaState::UpToDate)) {
        match store::without_rights(database).await {
            Ok(tables) if tables.is_empty() => checks.push(Check::ok(
                "database.rights",
                "The role may read and write every table.",
            )),
            Ok(tables) => checks.push(Check::fail(
                "database.rights",
                format!("The role may not read and write: {}.", tables.join(", ")),
                "Let the tables' owner run `grant select, insert, update, delete on all tables in schema public to <role>`.",
            )),
            Err(error) => checks.push(unanswered("database.rights", &error)),
        }
    }
    checks.push(notifications(database).await);
    match database.vitals(clock).await {
        Ok(vitals) => checks.extend(vital_checks(&vitals)),
        Err(error) => checks.push(unanswered("database.vitals", &error)),
    }
    match store::slots(database).await {
        Ok(slots) => checks.extend(slot_checks(&slots)),
        Err(error) => checks.push(unanswered("database.slots", &error)),
    }
    match store::data_directory(database).await {
        Ok(Some(folder)) if database.is_on_this_machine() => checks.extend(disk(&folder)),
        Ok(_) => {}
        Err(error) => checks.push(unanswered("database.disk", &error)),
    }
    Check::group("database", "Database", checks)
}

/// What nobody uses, and what falls behind, keeps the write-ahead log until the disk is full.
fn slot_checks(slots: &[Slot]) -> Option<Check> {
    const NAME: &str = "database.slots";
    let told = |slot: &&Slot| {
        let kept = slot.retained / MEBIBYTE;
        let state = if slot.is_active { "in use" } else { "unused" };
        format!("{} ({state}, {kept} MiB)", slot.name)
    };
    let bad = slots
        .iter()
        .filter(|slot| !slot.is_active || slot.retained > MUCH_LOG);
    let bad: Vec<_> = bad.map(|slot| told(&slot)).collect();
    if slots.is_empty() {
        None
    } else if bad.is_empty() {
        Some(Check::ok(
            NAME,
            "The replication slots are in use and keep up.",
        ))
    } else {
        Some(Check::warn(
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
fn disk(folder: &str) -> Option<Check> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(room(bytes(stat.f_bavail), bytes(stat.f_blocks)))
}

fn room(free: u64, all: u64) -> Check {
    const NAME: &str = "database.disk";
    const GIBIBYTE: u64 = 1024 * 1024 * 1024;
    let told = format!(
        "{:.1} GiB of {:.1} are free on the database's disk.",
        as_number(free) / as_number(GIBIBYTE),
        as_number(all) / as_number(GIBIBYTE)
    );
    let advice = "Make room: `attesto prune --dry-run` counts what is too old, `attesto_db_table_bytes` says what is large, and old logs and backups may go elsewhere. Without room Postgres stops.";
    if free < GIBIBYTE / 2 {
        Check::fail(NAME, told, advice)
    } else if free < 2 * GIBIBYTE || (free < 50 * GIBIBYTE && free < all / 10) {
        Check::warn(NAME, told, advice)
    } else {
        Check::ok(NAME, told)
    }
}

fn server_checks(server: &store::Server, now: Timestamp) -> Vec<Check> {
    let major = u32::try_from(server.version / 10_000).unwrap_or(0);
    let mut checks = vec![version(major, now)];
    if server.encoding != "UTF8" {
        checks.push(Check::fail(
            "database.encoding",
            format!("The database's encoding is {}.", server.encoding),
            "Make one with `create database … encoding 'UTF8' template template0` and move there.",
        ));
    }
    checks.push(if server.is_superuser {
        Check::warn(
            "database.role",
            "Attesto's role is a superuser.",
            "Give it a role of its own that owns nothing but Attesto's tables.",
        )
    } else {
        Check::ok("database.role", "The role is not a superuser.")
    });
    checks.push(if server.statement_timeout == "15s" {
        Check::ok("database.session", "What Attesto sets on a connection stays set.")
    } else {
        Check::warn(
            "database.session",
            format!(
                "What Attesto sets on a connection does not stay set (statement_timeout is {}).",
                server.statement_timeout
            ),
            "Is there a pooler in transaction mode between? Say in DATABASE_DIRECT_URL where the server itself is.",
        )
    });
    checks.push(if server.autovacuum {
        Check::ok("database.autovacuum", "Autovacuum is on.")
    } else {
        Check::fail(
            "database.autovacuum",
            "Autovacuum is off: dead rows stay, and deliveries get slower and slower.",
            "Set autovacuum = on in postgresql.conf and reload.",
        )
    });
    let of_hundred = server.connections * 100 / server.most_connections.max(1);
    let told = format!(
        "{} of the server's {} connections are in use.",
        server.connections, server.most_connections
    );
    checks.push(if of_hundred >= MANY_CONNECTIONS {
        Check::warn(
            "database.connections",
            told,
            "Raise max_connections, or lower max in the DATABASE_URL of each process.",
        )
    } else {
        Check::ok("database.connections", told)
    });
    checks
}

fn version(major: u32, now: Timestamp) -> Check {
    const NAME: &str = "database.version";
    let until = SUPPORTED_UNTIL
        .iter()
        .find(|(version, _)| *version == major)
        .and_then(|(_, until)| Timestamp::parse(until));
    if major < OLDEST_MAJOR {
        Check::fail(
            NAME,
            format!("The server is Postgres {major}."),
            format!("Attesto needs {OLDEST_MAJOR} or newer."),
        )
    } else if until.is_some_and(|until| until < now) {
        Check::warn(
            NAME,
            format!("The server is Postgres {major}, which gets no more corrections."),
            "Plan the upgrade to a version that does: https://www.postgresql.org/support/versioning/.",
        )
    } else {
        Check::ok(NAME, format!("The server is Postgres {major}."))
    }
}

fn migrations(schema: &Result<SchemaState, Error>) -> Check {
    const NAME: &str = "database.migrations";
    match schema {
        Ok(SchemaState::UpToDate) => Check::ok(NAME, "The tables are this release's."),
        Ok(SchemaState::Behind(count)) => {
            let missing = i64::try_from(*count).unwrap_or(i64::MAX);
            Check::fail(
                NAME,
                format!(
                    "{} missing.",
                    counted(missing, "migration is", "migrations are")
                ),
                "Run `attesto migrate`; `attesto serve` does it too, unless ATTESTO_MIGRATE_ON_START is off.",
            )
        }
        Ok(SchemaState::AheadAndCompatible) => Check::warn(
            NAME,
            "The tables are those of a newer release, on which this one works.",
            "Bring this machine to the newer release.",
        ),
        Ok(SchemaState::Ahead) => Check::fail(
            NAME,
            "The tables are those of a newer release.",
            "Run that release's binary.",
        ),
        Ok(SchemaState::Different) => Check::fail(
            NAME,
            "The tables are not those of any release of Attesto that this one knows.",
            "Is this Attesto's database, and an official release? `attesto migrate --dry-run` says which migration differs.",
        ),
        Err(error) => unanswered(NAME, error),
    }
}

/// The doctor, like every command, goes around the pooler that the service goes through.
async fn pooler(database: &Database) -> Option<Check> {
    const NAME: &str = "database.pooler";
    Some(match database.pooler_leads_here(PATIENCE).await? {
        Ok(true) => Check::ok(NAME, "The way through the pooler leads to it too."),
        Ok(false) => Check::fail(
            NAME,
            "DATABASE_URL and DATABASE_DIRECT_URL lead to different databases.",
            "Both must name the same one: the first through the pooler, the second without it.",
        ),
        Err(problem) => Check::fail(
            NAME,
            format!("It cannot be reached through the pooler: {problem}."),
            "Does the pooler run where DATABASE_URL says, and know this database and this user?",
        ),
    })
}

async fn notifications(database: &Database) -> Check {
    const NAME: &str = "database.notifications";
    match database.hears_itself(Duration::from_secs(3)).await {
        Ok(true) => Check::ok(NAME, "Notifications arrive."),
        Ok(false) => Check::warn(
            NAME,
            "Notifications do not arrive, so nothing is remembered of credentials and keys, and each request asks the database.",
            "Is there a pooler in transaction mode between? Say in DATABASE_DIRECT_URL where the server itself is.",
        ),
        Err(error) => unanswered(NAME, &error),
    }
}

fn vital_checks(vitals: &Vitals) -> Vec<Check> {
    let skew = vitals.clock_skew;
    let told = format!("The database's clock is {skew:+.1} s ahead of this machine's.");
    let clock = if skew.abs() > TOO_MUCH_SKEW {
        Check::fail(
            "database.clock",
            told,
            "Synchronise the time on both (chrony, systemd-timesyncd): receivers refuse signatures that are minutes off.",
        )
    } else if skew.abs() > SKEW {
        Check::warn(
            "database.clock",
            told,
            "Synchronise the time on both (chrony, systemd-timesyncd).",
        )
    } else {
        Check::ok("database.clock", "The clocks agree.")
    };
    let open = vitals.oldest_transaction;
    let transaction = if open > LONG_TRANSACTION {
        Check::warn(
            "database.transactions",
            format!("A transaction has been open for {} s.", open.as_secs()),
            "It keeps dead rows from being cleaned up. Find it in pg_stat_activity (order by xact_start) or pg_prepared_xacts, and end it.",
        )
    } else if vitals.oldest_snapshot > LONG_SNAPSHOT {
        let open = vitals.oldest_snapshot.as_secs() / 60;
        Check::warn(
            "database.transactions",
            format!("A backup or an export has been under way for {open} minutes."),
            "It keeps dead rows from being cleaned up. Let it end if it makes progress; else find it in pg_stat_activity by its application_name and end it.",
        )
    } else {
        Check::ok("database.transactions", "No transaction is open for long.")
    };
    let many: Vec<_> = vitals
        .dead_rows
        .iter()
        .filter(|(_, rows)| **rows > MANY_DEAD_ROWS)
        .map(|(table, rows)| format!("{rows} in {table}"))
        .collect();
    let dead = if many.is_empty() {
        Check::ok("database.dead_rows", "Dead rows are cleaned up.")
    } else {
        Check::warn(
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
    use crate::doctor::Status;

    fn vitals(clock_skew: f64, seconds: u64, snapshot: u64, dead: i64) -> Vec<Status> {
        let vitals = Vitals {
            clock_skew,
            oldest_transaction: Duration::from_secs(seconds),
            oldest_snapshot: Duration::from_secs(snapshot),
            dead_rows: BTreeMap::from([("webhook_deliveries".to_owned(), dead)]),
        };
        vital_checks(&vitals)
            .into_iter()
            .map(|check| check.status)
            .collect()
    }

    #[test]
    fn vital_signs_are_judged() {
        use Status::{Fail, Ok, Warn};
        assert_eq!(vitals(0.4, 5, 3600, 10), [Ok, Ok, Ok]);
        assert_eq!(vitals(0.4, 5, 3601, 10), [Ok, Warn, Ok]);
        assert_eq!(vitals(-1.5, 61, 0, 20_001), [Warn, Warn, Warn]);
        assert_eq!(vitals(-600.0, 0, 0, 0), [Fail, Ok, Ok]);
    }

    #[test]
    fn a_slot_that_is_unused_or_behind_is_noticed() {
        let slot = |is_active, gibibytes: i64| Slot {
            name: "standby".to_owned(),
            is_active,
            retained: gibibytes * 1024 * MEBIBYTE,
        };
        let judged = |slots: &[Slot]| slot_checks(slots).map(|check| check.status);
        assert_eq!(judged(&[]), None);
        assert_eq!(judged(&[slot(true, 1)]), Some(Status::Ok));
        assert_eq!(judged(&[slot(true, 1), slot(false, 0)]), Some(Status::Warn));
        assert_eq!(judged(&[slot(true, 6)]), Some(Status::Warn));
    }

    #[test]
    fn a_disk_that_fills_is_noticed_and_a_large_one_may_be_fuller() {
        const GIBIBYTE: u64 = 1024 * 1024 * 1024;
        for (free, all, status) in [
            (40, 100, Status::Ok),
            (9, 100, Status::Warn),
            (60, 1000, Status::Ok),
            (1, 4, Status::Warn),
            (0, 100, Status::Fail),
        ] {
            assert_eq!(
                room(free * GIBIBYTE, all * GIBIBYTE).status,
                status,
                "{free} of {all}"
            );
        }
        assert!(disk("/").is_some() && disk("/no/such/folder").is_none());
    }

    #[test]
    fn an_old_server_is_noticed() {
        let now = Timestamp::parse("2027-01-01T00:00:00Z").expect("a time");
        for (major, status) in [
            (13, Status::Fail),
            (14, Status::Warn),
            (17, Status::Ok),
            (99, Status::Ok),
        ] {
            assert_eq!(version(major, now).status, status, "{major}");
        }
    }
}
