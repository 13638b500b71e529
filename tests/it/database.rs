//! The connection pool: connections are clean, and failures have a named cause.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::db::{ConnectSettings, Database, DatabaseConnectError, SchemaState};
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::world::postgres::{empty_database, fresh_database, pass_time};
use crate::world::wait::{finished, wait_until};

/// Polls a future at most this many times and then drops it: a caller that cancels at exactly that
/// point.
async fn given_up_after<F: Future>(polls: u32, future: F) {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|context| {
        polled += 1;
        match future.as_mut().poll(context) {
            Poll::Pending if polled < polls => Poll::Pending,
            _ => Poll::Ready(()),
        }
    })
    .await;
}

/// Inserts through the pool after a cancelled `begin`, and counts how often another session does
/// not see the row.
async fn lost_inserts(pool: &PgPool, other: &PgPool) -> usize {
    let mut lost = 0;
    // How many polls it takes until `begin` is sent but not answered varies.
    for attempt in 0..300 {
        given_up_after(1 + attempt % 5, pool.begin()).await;
        let page: i64 = sqlx::query_scalar("insert into pages default values returning number")
            .fetch_one(pool)
            .await
            .expect("a plain insert succeeds");
        let seen = sqlx::query("select from pages where number = $1")
            .bind(page)
            .fetch_all(other)
            .await
            .expect("a plain select succeeds");
        lost += usize::from(seen.is_empty());
    }
    lost
}

#[tokio::test]
async fn a_cancelled_begin_does_not_swallow_the_next_callers_insert() {
    let fresh = empty_database().await;
    let other = Database::open(&fresh.settings);
    sqlx::query("create table pages (number bigserial)")
        .execute(other.pool())
        .await
        .unwrap();

    let guarded = Database::open(&fresh.settings);
    assert_eq!(
        lost_inserts(guarded.pool().sqlx_pool(), other.pool().sqlx_pool()).await,
        0
    );

    let bare = PgPoolOptions::new()
        .max_connections(1)
        .connect_with((*other.pool().sqlx_pool().connect_options()).clone())
        .await
        .unwrap();
    assert_ne!(
        lost_inserts(&bare, other.pool().sqlx_pool()).await,
        0,
        "sqlx no longer leaves a transaction behind: db::database's hook can go"
    );
}

#[tokio::test]
async fn a_hanging_statement_is_cancelled() {
    let fresh = empty_database().await;
    for (setting, value) in [
        ("statement_timeout", "15s"),
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "10s"),
    ] {
        let found: String = sqlx::query_scalar("select current_setting($1)")
            .bind(setting)
            .fetch_one(fresh.database.pool())
            .await
            .unwrap();
        assert_eq!(found, value, "{setting}");
    }
}

/// After a failover, a connection to a server that is now read-only would fail every claim until a
/// restart.
#[tokio::test]
async fn reserved_delivery_connections_are_replaced_when_old() {
    let fresh = empty_database().await;
    let settings = ConnectSettings::from_url(&fresh.url.replace("max=5", "max=8")).unwrap();
    let sessions = async |database: Database| {
        let set_aside = database.for_deliveries();
        let mut sessions = BTreeSet::new();
        for _ in 0..8 {
            let session = sqlx::query_scalar::<_, i32>("select pg_backend_pid()");
            sessions.insert(session.fetch_one(set_aside.pool()).await.unwrap());
        }
        sessions.len()
    };
    assert!(sessions(Database::open(&settings)).await <= 3);
    let old_at_once = Database::open(&settings).with_reserved_connection_ttl(Duration::ZERO);
    assert_eq!(sessions(old_at_once).await, 8);
}

#[tokio::test]
async fn the_database_url_configures_the_pool() {
    let fresh = empty_database().await;
    let url = fresh
        .url
        .replace("max=5", "max=3&idle_timeout=1&connect_timeout=300");
    let shaped = Database::open(&ConnectSettings::from_url(&url).unwrap());
    // Opened directly: a pool may keep more connections than are in use.
    let mut observer = fresh.database.connect_directly("observer").await.unwrap();
    let mut connections = async || {
        let count = "select count(*) from pg_stat_activity \
            where datname = current_database() and application_name = 'attesto'";
        let counted = sqlx::query_scalar::<_, i64>(count).fetch_one(&mut observer);
        counted.await.unwrap()
    };
    // Each of the twelve waits for this lock, so that none ends before the connections were counted.
    let mut lock = fresh.database.connect_directly("lock").await.unwrap();
    let locked = sqlx::query("select pg_advisory_lock(1)").execute(&mut lock);
    locked.await.unwrap();
    let waiting = "select pg_advisory_xact_lock_shared(1)";
    let busy = futures_util::future::join_all(
        (0..12).map(|_| sqlx::query(waiting).execute(shaped.pool())),
    );
    let (done, ()) = tokio::join!(busy, async {
        wait_until("three connections are open", async || {
            connections().await == 3
        })
        .await;
        assert_eq!(shaped.max_connections(), 3);
        let unlocked = sqlx::query("select pg_advisory_unlock(1)").execute(&mut lock);
        unlocked.await.unwrap();
    });
    assert!(done.iter().all(Result::is_ok));
    wait_until("idle connections are closed", async || {
        connections().await == 0
    })
    .await;
}

#[tokio::test]
async fn a_failed_ping_names_the_cause() {
    let fresh = fresh_database().await;
    let patience = Duration::from_secs(2);
    assert_eq!(fresh.database.ping(patience).await, Ok(()));
    assert_eq!(
        fresh.database.load_schema_state().await.unwrap(),
        SchemaState::UpToDate
    );

    // A port without a listener: it was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = free.local_addr().unwrap();
    drop(free);
    // A server that accepts connections and sends nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let missing = fresh.url.replace("test_", "no_such_");
    for (url, expected) in [
        (
            format!("postgres://u:p@{refusing}/x"),
            DatabaseConnectError::ConnectionRefused,
        ),
        (
            format!("postgres://u:p@{silent}/x?sslmode=disable"),
            DatabaseConnectError::Timeout,
        ),
        (missing, DatabaseConnectError::DatabaseMissing),
        (
            fresh.url.replace("user=attesto", "user=mallory"),
            DatabaseConnectError::AuthenticationFailed,
        ),
        (
            "postgres:///x?host=/nowhere".to_owned(),
            DatabaseConnectError::SocketNotFound,
        ),
    ] {
        let database = Database::open(&ConnectSettings::from_url(&url).unwrap());
        let ping = finished(&url, database.ping(patience));
        assert_eq!(ping.await, Err(expected), "{url}");
    }

    let small = ConnectSettings::from_url(&fresh.url.replace("max=5", "max=2")).unwrap();
    let busy = Database::open(&small);
    let _held = (
        busy.pool().begin().await.unwrap(),
        busy.pool().begin().await.unwrap(),
    );
    assert_eq!(
        busy.ping(Duration::from_secs(1)).await,
        Err(DatabaseConnectError::PoolExhausted)
    );
}

/// Every statement gets the time from `attesto_now()`, which must cost nothing: the planner inlines
/// its body and can use an index with it.
#[tokio::test]
async fn the_planner_inlines_the_time_function() {
    let fresh = fresh_database().await;
    let mut transaction = fresh.database.pool().begin().await.unwrap();
    sqlx::query("set local enable_seqscan = off")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let plan: Vec<String> = sqlx::query_scalar(
        "explain (costs off) select from webhook_events
         where received_at < attesto_now() - make_interval(days => 90) and event_type > ''",
    )
    .fetch_all(&mut *transaction)
    .await
    .unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains("webhook_events_by_age"), "{plan}");
    assert!(
        plan.contains("Index Cond: (received_at < (statement_timestamp()"),
        "{plan}"
    );
    assert!(!plan.contains("attesto_now"), "{plan}");
}

#[tokio::test]
async fn a_test_moves_the_time_for_prepared_statements_too() {
    let fresh = fresh_database().await;
    let clock = Clock::fixed(Timestamp::from_millis(0));
    let ahead = async || {
        let ahead = "select extract(epoch from attesto_now() - statement_timestamp())::float8";
        let ahead: f64 = sqlx::query_scalar(ahead)
            .fetch_one(fresh.database.pool())
            .await
            .unwrap();
        ahead
    };
    assert!(ahead().await.abs() < 0.001);
    pass_time(&fresh.database, &clock, Duration::from_secs(90)).await;
    pass_time(&fresh.database, &clock, Duration::from_millis(250)).await;
    assert!((ahead().await - 90.25).abs() < 0.001);
    assert_eq!(clock.now(), Timestamp::from_millis(90_250));
}
