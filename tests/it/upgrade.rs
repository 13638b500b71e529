//! Two releases on one database: the running one continues while the next one migrates, and can be
//! started again afterwards; or nothing is changed and a message says why.
//!
//! The next release is simulated with migrations that this one does not know. The previous release
//! is the program in `ATTESTO_PREVIOUS_BINARY` (`bin/test-upgrade`), or this one as long as there
//! is none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use attesto::config::read_env_var;
use attesto::db::migration_header::TableImpact;
use attesto::db::{Database, MIGRATOR, MigrationError, SchemaState};
use attesto::replicas::MigrationBlockedError;
use serde_json::json;
use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use crate::delivery_hold::events;
use crate::serve::{Served, key};
use crate::world::attesto::World;
use crate::world::postgres::{Fresh, empty_database, fresh_database, set_time_ahead};
use crate::world::shell::Shell;
use crate::world::wait::wait_until;

/// A migration that is allowed for tables in use.
const ADDS: &str = "-- What a later release may need.
-- previous release: works
-- tables: creates flavours; reads_all webhook_events
alter table webhook_events add column flavour text not null default 'plain';
create index webhook_events_by_flavour on webhook_events (flavour);
create table flavours (name text primary key);
";
/// And one that is not.
const NARROWS: &str = "-- Something that an older release cannot live with.
-- previous release: stops, it leaves the column empty
-- tables: locks webhook_events
alter table webhook_events add column flavour text;
";

/// The database as the next release sees it, with this last migration.
fn of_the_next_release(database: Database, sql: &'static str) -> Database {
    let migration = Migration::new(
        9001,
        "flavours".into(),
        MigrationType::Simple,
        sql.into_sql_str(),
        false,
    );
    let all = MIGRATOR.iter().cloned().chain([migration]).collect();
    let migrator: &'static Migrator = Box::leak(Box::new(Migrator::with_migrations(all)));
    database.with_migrator(migrator)
}

/// Registers a replica of an older release.
async fn an_older_release_serves(fresh: &Fresh) {
    sqlx::query(
        "insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids)
         values ('x', 'elsewhere', 1, '0.0.9', now(), now(), 1, '{1}')",
    )
    .execute(fresh.database.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn the_running_release_serves_while_the_next_one_migrates() {
    let world = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
    let tenant = world.tenant().await;
    let question = json!({ "packageName": "a.b", "purchaseToken": "t", "type": "subscription" });
    events(&world, &tenant.id, &["before"]).await;
    assert_eq!(world.ask("GET", "/ready", None, None).await.status, 200);

    let next = of_the_next_release(Database::open(&world.fresh.settings), ADDS);
    assert_eq!(
        next.load_schema_state().await.unwrap(),
        SchemaState::Behind(1)
    );
    let planned = next.plan_migrations().await.unwrap();
    assert_eq!(planned.len(), 1);
    let found: Vec<_> = planned[0]
        .tables
        .iter()
        .map(|it| (it.table.as_str(), it.touch))
        .collect();
    assert_eq!(
        found,
        [
            ("flavours", TableImpact::Creates),
            ("webhook_events", TableImpact::ReadsAll)
        ]
    );
    assert!(planned[0].tables[1].bytes.unwrap() > 0);
    // As `attesto migrate --check` prints it.
    assert_eq!(json!(planned[0])["previousWorks"], true);

    // Under load, without a pause and without an error on either side.
    let done = AtomicBool::new(false);
    let (migrated, asked, stored) = tokio::join!(
        async {
            let migrated = next.migrate(false).await;
            done.store(true, Ordering::SeqCst);
            migrated
        },
        async {
            let mut asked = 0;
            while !done.load(Ordering::SeqCst) || asked < 20 {
                let answer = world.verify("google", &tenant, &question).await;
                assert_eq!(answer.status, 200, "{}", answer.body);
                asked += 1;
            }
            asked
        },
        async {
            let mut stored = 0;
            while !done.load(Ordering::SeqCst) || stored < 20 {
                events(&world, &tenant.id, &[&stored.to_string()]).await;
                stored += 1;
            }
            stored
        }
    );
    assert_eq!(migrated.unwrap().applied.len(), 1);
    assert!(asked >= 20 && stored >= 20);
    let kept: i64 =
        sqlx::query_scalar("select count(*) from webhook_events where flavour = 'plain'")
            .fetch_one(world.database().pool())
            .await
            .unwrap();
    assert_eq!(kept, stored + 1);

    // The running release continues, and can be restarted. A release that has the migration has no
    // restrictions.
    assert_eq!(world.ask("GET", "/ready", None, None).await.status, 200);
    let again = Database::open(&world.fresh.settings);
    assert_eq!(
        again.load_schema_state().await.unwrap(),
        SchemaState::AheadAndCompatible
    );
    let problem = again.migrate(false).await.unwrap_err();
    assert!(
        matches!(problem, MigrationError::DatabaseNewer { found: 9001, .. }),
        "{problem}"
    );
    assert_eq!(
        next.load_schema_state().await.unwrap(),
        SchemaState::UpToDate
    );
}

#[tokio::test]
async fn a_migration_that_stops_old_replicas_needs_confirmation() {
    let fresh = fresh_database().await;
    let next = of_the_next_release(fresh.database.clone(), NARROWS);
    let planned = next.plan_migrations().await.unwrap();
    let promise = json!({ "previousWorks": false, "why": "it leaves the column empty" });
    for (field, said) in promise.as_object().unwrap() {
        assert_eq!(json!(planned[0])[field], *said);
    }
    an_older_release_serves(&fresh).await;
    let refused = MigrationBlockedError::check_replicas(&next)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "migration 9001 (flavours) would stop processes of release 0.0.9 on elsewhere: it leaves the column empty. \
         Stop those processes first (one that was killed counts for another 45 s); nothing has been changed"
    );
    // It only adds something: no confirmation is needed.
    let harmless = of_the_next_release(fresh.database.clone(), ADDS);
    assert_eq!(
        MigrationBlockedError::check_replicas(&harmless)
            .await
            .unwrap(),
        Ok(())
    );

    // When the other replica is gone, it continues; and this release cannot be started again.
    set_time_ahead(&fresh.database, Duration::from_mins(2)).await;
    assert_eq!(
        MigrationBlockedError::check_replicas(&next).await.unwrap(),
        Ok(())
    );
    next.migrate(false).await.unwrap();
    assert_eq!(
        fresh.database.load_schema_state().await.unwrap(),
        SchemaState::Ahead
    );
}

/// Started on tables that a newer release has migrated.
#[tokio::test]
async fn an_old_release_starts_only_when_the_migration_allows_it() {
    for (promised, works) in [(true, true), (false, false)] {
        let fresh = fresh_database().await;
        let next = of_the_next_release(
            fresh.database.clone(),
            if promised { ADDS } else { NARROWS },
        );
        next.migrate(false).await.unwrap();
        let encryption_key = key(7);
        let encryption_key = [("ATTESTO_ENCRYPTION_KEY", encryption_key.as_str())];
        let mut served = Served::start(&fresh.url, &encryption_key);
        if works {
            served.ready(200).await;
            served.line("tables_of_a_newer_release").await;
            let doctor = Shell::default()
                .set("DATABASE_URL", &fresh.url)
                .run(&["doctor", "--offline"]);
            let told = "The tables are those of a newer release, with which this one still works.";
            assert!(doctor.said.contains(told), "{}", doctor.said);
            served.signal(rustix::process::Signal::INT);
            assert!(served.end().await.success());
        } else {
            assert_eq!(served.end().await.code(), Some(1));
            let log = format!("{:?}", served.lines());
            assert!(log.contains("newer than this release"), "{log}");
        }
    }
}

/// Both programs on one database at the same time.
#[tokio::test]
async fn the_release_before_and_this_one_share_a_database() {
    let previous = read_env_var("ATTESTO_PREVIOUS_BINARY").filter(|path| !path.is_empty());
    let this = std::ffi::OsString::from(env!("CARGO_BIN_EXE_attesto"));
    let before = previous.unwrap_or_else(|| this.clone());
    let empty = empty_database().await;
    let encryption_key = key(7);
    let serve = |program: &std::ffi::OsStr| {
        let mut command = std::process::Command::new(program);
        command
            .env_clear()
            .args(["serve", "--port=0", "--bind-address=127.0.0.1"])
            .env("DATABASE_URL", &empty.url)
            .env("ATTESTO_ENCRYPTION_KEY", &encryption_key);
        Served::running(&mut command)
    };
    let shell = |program: &std::ffi::OsStr| {
        Shell::of(program)
            .set("DATABASE_URL", &empty.url)
            .set("ATTESTO_ENCRYPTION_KEY", &encryption_key)
    };
    let mut old = serve(&before);
    old.ready(200).await;
    let tenant = shell(&before).rows(&["tenant", "create", "--name", "Acme"]);
    let tenant = tenant[0]["id"].as_str().unwrap().to_owned();

    // The announcement of this release is correct: either it may migrate while the old one serves,
    // or it refuses.
    let checked = shell(&this).run(&["migrate", "--check"]);
    let migrated = shell(&this).run(&["migrate"]);
    assert_eq!(
        checked.exit, migrated.exit,
        "{}{}",
        checked.complained, migrated.complained
    );
    if migrated.exit != 0 {
        old.signal(rustix::process::Signal::INT);
        assert!(old.end().await.success());
        assert_eq!(shell(&this).run(&["migrate"]).exit, 0);
        return;
    }
    let mut new = serve(&this);
    new.ready(200).await;
    old.ready(200).await;

    // Each release reads what the other one writes.
    for (writer, reader, server) in [(&before, &this, &new), (&this, &before, &old)] {
        let made = shell(writer).rows(&["key", "create", &tenant]);
        let raw = made[0]["rawKey"].as_str().unwrap();
        let question = json!({ "transactionId": "1" });
        wait_until("the key is accepted", async || {
            let (_, answer) = server.ask("/v1/apple/verify", raw, &question).await;
            answer["error"] == "CREDENTIALS_MISSING"
        })
        .await;
        let listed = shell(reader).rows(&["key", "list", &tenant]);
        assert!(listed.iter().any(|it| it["id"] == made[0]["id"]));
    }
    for served in [&mut old, &mut new] {
        served.signal(rustix::process::Signal::INT);
        assert!(served.end().await.success());
        let log = served.lines();
        let errors: Vec<_> = log.iter().filter(|line| line["level"] == "error").collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}
