//! Migrations: forward only, one at a time, and an older binary never runs on a newer database.

use attesto::db::{Database, MIGRATOR, MigrationError, SchemaState, migration_header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::migration_sql;
use crate::world::postgres::{Fresh, empty_database, fresh_database};
use crate::world::shell::Shell;

/// Rows that exist before the migrations after the file's number. Add a file together with a
/// migration whose tables later ones will change.
const SAMPLE_ROWS: [(i64, &str); 8] = [
    (1, include_str!("sample_rows/0001.sql")),
    (2, include_str!("sample_rows/0002.sql")),
    (3, include_str!("sample_rows/0003.sql")),
    (4, include_str!("sample_rows/0004.sql")),
    (5, include_str!("sample_rows/0005.sql")),
    (6, include_str!("sample_rows/0006.sql")),
    (7, include_str!("sample_rows/0007.sql")),
    (8, include_str!("sample_rows/0008.sql")),
];

async fn tables(database: &Database) -> Vec<String> {
    sqlx::query_scalar(
        "select table_name::text from information_schema.tables where table_schema = 'public' order by 1",
    )
    .fetch_all(database.pool())
    .await
    .expect("a statement of our own succeeds")
}

async fn execute(fresh: &Fresh, statement: &'static str) {
    fresh
        .database
        .pool()
        .execute(statement)
        .await
        .expect("a statement of our own succeeds");
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_a_second_run_does_nothing() {
    let empty = empty_database().await;
    let all = MIGRATOR.iter().count();
    assert_eq!(
        empty.database.load_schema_state().await.unwrap(),
        SchemaState::Behind(all)
    );

    let looked = empty.database.migrate(true).await.unwrap();
    assert_eq!((looked.applied.len(), looked.pending.len()), (0, all));
    assert_eq!(tables(&empty.database).await, Vec::<String>::new());

    let applied = empty.database.migrate(false).await.unwrap();
    assert_eq!((applied.applied.len(), applied.already_applied), (all, 0));
    assert_eq!(applied.applied, looked.pending);
    assert_eq!(
        empty.database.load_schema_state().await.unwrap(),
        SchemaState::UpToDate
    );

    let again = empty.database.migrate(false).await.unwrap();
    assert_eq!((again.applied.len(), again.already_applied), (0, all));
    let template = fresh_database().await;
    assert_eq!(
        tables(&empty.database).await,
        tables(&template.database).await
    );
}

#[tokio::test]
async fn several_processes_at_once_apply_each_migration_once() {
    let empty = empty_database().await;
    let processes: Vec<_> = (0..4).map(|_| Database::open(&empty.settings)).collect();
    let runs =
        futures_util::future::join_all(processes.iter().map(|database| database.migrate(false)))
            .await;
    let applied: usize = runs.into_iter().map(|run| run.unwrap().applied.len()).sum();
    assert_eq!(applied, MIGRATOR.iter().count());
    let pending = empty.database.migrate(true).await.unwrap().pending;
    assert_eq!(pending, []);
}

#[tokio::test]
async fn a_newer_or_a_different_database_is_left_alone() {
    for (change, state, expected) in [
        (
            "insert into _sqlx_migrations values (9999, 'the future', now(), true, '', 0)",
            SchemaState::Ahead,
            "newer than this release",
        ),
        (
            "insert into _sqlx_migrations values (0, 'somebody else', now(), true, '', 0)",
            SchemaState::Diverged,
            "never had",
        ),
        (
            "update _sqlx_migrations set checksum = '\\x00' where version = 1",
            SchemaState::Diverged,
            "different text",
        ),
    ] {
        let fresh = fresh_database().await;
        execute(&fresh, change).await;
        assert_eq!(
            fresh.database.load_schema_state().await.unwrap(),
            state,
            "{change}"
        );
        for dry_run in [true, false] {
            let problem = fresh.database.migrate(dry_run).await.unwrap_err();
            assert!(problem.to_string().contains(expected), "{problem}");
        }
    }
}

#[tokio::test]
async fn a_database_that_cannot_store_every_character_is_refused() {
    let server = empty_database().await;
    let own = server.database.database_name();
    let create = async |statement: String| {
        let created = server.database.pool().execute(AssertSqlSafe(statement));
        created.await.unwrap();
    };
    let shell_of = |name: &str| {
        Shell::default()
            .set("DATABASE_URL", &server.url.replace(&own, name))
            .set("ATTESTO_ENCRYPTION_KEY", &STANDARD.encode([7; 32]))
    };
    let mut advised = String::new();
    for encoding in ["WIN1252", "EUC_JP", "SQL_ASCII"] {
        let name = format!("{own}_{}", encoding.to_lowercase());
        create(format!(
            "create database {name} encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0"
        ))
        .await;
        let serve = ["serve", "--port=0", "--bind-address=127.0.0.1"];
        for words in [
            &["migrate"][..],
            &["migrate", "--dry-run"],
            &["migrate", "--check"],
            &serve,
            &[&serve[..], &["--migrate-on-start=false"]].concat(),
        ] {
            let refused = shell_of(&name).run(words);
            assert_eq!(refused.exit, 1, "{words:?}: {}", refused.complained);
            let said = format!("the database's encoding is {encoding}, ");
            assert!(
                refused.complained.contains(&said),
                "{words:?}: {}",
                refused.complained
            );
            advised.clone_from(&refused.complained);
        }
        let url = server.url.replace(&own, &name);
        let database = Database::open(&attesto::db::ConnectSettings::from_url(&url).unwrap());
        assert_eq!(tables(&database).await, Vec::<String>::new());
    }
    // As the message says.
    let statement = advised.split('`').nth(1).unwrap();
    let name = format!("{own}_utf8");
    create(statement.replace("<name>", &name)).await;
    assert_eq!(shell_of(&name).run(&["migrate"]).exit, 0);
}

#[tokio::test]
async fn a_role_that_cannot_create_tables_gets_an_explanation() {
    let empty = empty_database().await;
    execute(
        &empty,
        "create role clerk login; revoke create on schema public from public",
    )
    .await;
    let url = empty.url.replace("user=attesto", "user=clerk");
    let clerk = Database::open(&attesto::db::ConnectSettings::from_url(&url).unwrap());
    let problem = clerk.migrate(false).await.unwrap_err();
    assert!(
        matches!(problem, MigrationError::PermissionDenied(_)),
        "{problem}"
    );
}

#[tokio::test]
async fn migrations_apply_over_existing_rows() {
    let empty = empty_database().await;
    let mut counted: Vec<(String, i64)> = Vec::new();
    for migration in MIGRATOR.iter() {
        MIGRATOR
            .run_to(migration.version, empty.database.pool().sqlx_pool())
            .await
            .unwrap();
        let rows = SAMPLE_ROWS
            .iter()
            .find(|(after, _)| *after == migration.version);
        if let Some((_, rows)) = rows {
            execute(&empty, rows).await;
        }
        // No existing row is lost.
        for (table, before) in &counted {
            let now = count(&empty.database, table).await;
            assert!(now >= *before, "{table} after {}", migration.version);
        }
        counted.clear();
        for table in tables(&empty.database).await {
            let rows = count(&empty.database, &table).await;
            counted.push((table, rows));
        }
    }
    let empty_tables: Vec<_> = counted.iter().filter(|(_, rows)| *rows == 0).collect();
    assert!(
        empty_tables.is_empty(),
        "no sample rows in {empty_tables:?}: add some to tests/it/sample_rows"
    );
}

async fn count(database: &Database, table: &str) -> i64 {
    // The names come from the catalogue.
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}")))
        .fetch_one(database.pool())
        .await
        .expect("a statement of our own succeeds")
}

/// An older release runs while a newer one migrates, and may be started again: what it reads must
/// stay.
#[test]
fn no_migration_is_destructive() {
    for migration in MIGRATOR.iter() {
        assert!(!migration.no_tx, "{}: all or nothing", migration.version);
        let found = migration_sql::list_destructive_operations(migration.sql.as_str());
        assert!(
            found.is_empty(),
            "migration {}: {found:?}",
            migration.version
        );
    }
}

/// The messages for an upgrade, and for an older release that is started again.
#[test]
fn every_migration_header_matches_its_sql() {
    for migration in MIGRATOR.iter() {
        let (version, sql) = (migration.version, migration.sql.as_str());
        assert_ne!(
            migration_header::parse_purpose(sql),
            "",
            "{version}: begins with what it is for"
        );
        assert_eq!(
            migration_header::parse_table_impacts(sql),
            migration_sql::table_impacts(sql),
            "{version}: the line `-- tables: …` of its header"
        );
        if version > migration_header::FIRST_RELEASE_VERSION {
            assert_eq!(find_broken_promise(sql), None, "migration {version}");
        }
    }
}

/// What a migration after those of the first release would do to the release before although its header does not say so.
fn find_broken_promise(sql: &str) -> Option<String> {
    let Some(promise) = migration_header::parse_compatibility(sql) else {
        return Some(
            "has no line `-- previous release: works` or `-- previous release: stops, …`"
                .to_owned(),
        );
    };
    if !promise.previous_works {
        let is_explained = promise.why.is_some();
        return (!is_explained).then(|| "stops the release before and does not say why".to_owned());
    }
    let broken: Vec<_> = migration_sql::find_incompatibilities(sql)
        .into_iter()
        .filter(|(_, certain)| *certain || promise.why.is_none())
        .collect();
    (!broken.is_empty()).then(|| format!("says that the release before works: {broken:?}"))
}

#[test]
fn a_migration_that_breaks_its_promise_is_found() {
    for kept in [
        "-- previous release: works\nalter table a add column b text;",
        "-- previous release: works, it never writes a b\nalter table a add check (b > 0);",
        "-- previous release: stops, it leaves b empty\nalter table a add column b text not null;",
    ] {
        assert_eq!(find_broken_promise(kept), None, "{kept}");
    }
    for broken in [
        "alter table a add column b text;",
        "-- previous release: stops\nalter table a add column b text not null;",
        "-- previous release: works\nalter table a add check (b > 0);",
        "-- previous release: works, it has no b\nalter table a add column b text not null;",
    ] {
        assert!(find_broken_promise(broken).is_some(), "{broken}");
    }
}

/// The numbers are those that `attesto migrate` names, and no step of a history that no database has lived through.
#[test]
fn the_migrations_of_the_first_release_are_numbered_without_holes() {
    let first: Vec<i64> = MIGRATOR
        .iter()
        .map(|migration| migration.version)
        .filter(|version| *version <= migration_header::FIRST_RELEASE_VERSION)
        .collect();
    let expected: Vec<i64> = (1..=migration_header::FIRST_RELEASE_VERSION).collect();
    assert_eq!(first, expected);
}
