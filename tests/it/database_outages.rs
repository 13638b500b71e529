//! Long transactions, wrong clocks, exhausted connections, and lost notifications of the listening
//! connection.
//!
//! Conditions that take minutes in production are created directly, with the rows they would leave.

use std::time::{Duration, Instant};

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::TenantId;
use attesto::checks::{CheckContext, run_checks};
use attesto::config::RawSettings;
use attesto::db::{ConnectSettings, Database};
use attesto::events::EventRecorder;
use attesto::simulator::state::google::NewSubscription;
use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::delivery_hold::{events, record_events, set_callback};
use crate::world::attesto::{APP, World};
use crate::world::database_proxy::Wire;
use crate::world::postgres::{Fresh, begin_without_idle_timeout, fresh_database};
use crate::world::receiver::Receiver;
use crate::world::wait::wait_until;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const OPEN: [(&str, &str); 3] = [
    // Polling finds work within this time when a notification was missed.
    ("WEBHOOK_DISPATCH_INTERVAL_SECONDS", "1"),
    ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1"),
    ("METRICS_ADDRESS", "127.0.0.1:0"),
];

fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    let line = line.unwrap_or_else(|| panic!("{series} in {page}"));
    line.trim().parse().unwrap()
}

/// Records events and notifies the dispatchers, as the endpoints do.
async fn work(world: &World, tenant: &TenantId, names: &[&str]) {
    events(world, tenant, names).await;
    say_so(world.database()).await;
}

async fn say_so(database: &Database) {
    let told = database
        .pool()
        .execute("select pg_notify('attesto_work', '')");
    told.await.unwrap();
}

/// Waits until the listening connection is established.
async fn until_it_hears(world: &World) {
    wait_until("the server listens for changes", async || {
        let ears = "select count(*) from pg_stat_activity \
            where datname = current_database() and application_name = 'attesto-changes' and state = 'idle'";
        let ears = sqlx::query_scalar::<_, i64>(ears).fetch_one(world.database().pool());
        ears.await.unwrap() == 1
    })
    .await;
}

/// Records a hundred events one after the other, and returns the median of the times until arrival.
async fn median_lag(world: &World, receiver: &Receiver, tenant: &TenantId, name: &str) -> Duration {
    let mut lags = Vec::new();
    for number in 0..100 {
        let arrived = receiver.requests().len();
        let begun = Instant::now();
        work(world, tenant, &[&format!("{name} {number}")]).await;
        receiver.until(arrived + 1).await;
        lags.push(begun.elapsed());
    }
    lags.sort_unstable();
    lags[lags.len() / 2]
}

/// Two minutes of a hundred events a second leave 12,000 deliveries that were pending, claimed and
/// done; vacuum may remove none of the old row versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_transaction_does_not_stop_deliveries() {
    let world = World::with(&OPEN).await;
    let receiver = Receiver::answering(OK).await;
    let tenant = world.stranger().await.id;
    set_callback(&world, &tenant, &receiver.url()).await;
    until_it_hears(&world).await;
    work(&world, &tenant, &["first"]).await;
    receiver.until(1).await;
    let before = median_lag(&world, &receiver, &tenant, "before").await;

    // A writing transaction, so that no dead row of any session can be removed.
    let mut forgotten = world
        .database()
        .connect_directly("forgetful")
        .await
        .unwrap();
    forgotten
        .execute("begin; update tenants set name = 'X'")
        .await
        .unwrap();
    let two_minutes = [
        "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event,
             decoded_payload, stored_body)
         select tenant_lane(t.id), 'evt_' || n, t.id, 'google', n, 'test', 'google.test', '{}', '\\x007b7d'
         from generate_series(1, 12000) n, tenants t",
        // Far enough in the future that the dispatcher ignores them, and spaced as they would have
        // been.
        "insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url, next_attempt_at)
         select tenant_lane(c.tenant_id), 'del_' || n, 'evt_' || n, c.tenant_id, c.callback_url, now() + interval '1 hour' + n * interval '10 ms'
         from generate_series(1, 12000) n, webhook_configs c",
        "update webhook_deliveries set next_attempt_at = now() - interval '3 minutes' + n * interval '10 ms',
             lease_no = 1, lease_until = now() + interval '1 minute'
         from (select id, row_number() over () as n from webhook_deliveries where status = 'pending') claimed
         where claimed.id = webhook_deliveries.id",
        "update webhook_deliveries set status = 'delivered', delivered_at = now(), lease_until = null, attempt_count = 1
         where lease_until is not null",
    ];
    let mut writer = world.database().connect_directly("writer").await.unwrap();
    writer.execute("set statement_timeout = 0").await.unwrap();
    for statement in two_minutes {
        writer.execute(statement).await.unwrap();
    }
    world.database().pool().execute("analyze").await.unwrap();
    let dead: i64 = sqlx::query_scalar(
        "select n_dead_tup from pg_stat_user_tables where relname = 'webhook_deliveries'",
    )
    .fetch_one(world.database().pool())
    .await
    .unwrap();
    assert!(dead >= 20_000, "{dead}");

    let meanwhile = median_lag(&world, &receiver, &tenant, "meanwhile").await;
    assert!(meanwhile < before * 10, "{before:?}, then {meanwhile:?}");

    // The metrics of the alert, which are refreshed periodically.
    let age = value(&world.metrics().await, "attesto_db_oldest_xmin_age_seconds");
    assert!(age > 0.5, "{age}");
    let alerts = include_str!("../../docs/monitoring/alerts.yml");
    let alarm = "max(attesto_db_oldest_xmin_age_seconds) > ";
    let after: u64 = alerts
        .split(alarm)
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // Two scrapes or evaluations of ten seconds.
    let seen = Duration::from_secs(after)
        + attesto::checks::gauges::REFRESH_INTERVAL
        + Duration::from_secs(20);
    assert!(seen <= Duration::from_secs(70), "{seen:?}");

    forgotten.execute("rollback").await.unwrap();
    let afterwards = median_lag(&world, &receiver, &tenant, "afterwards").await;
    assert!(afterwards < before * 10, "{before:?}, then {afterwards:?}");
    wait_until("the transaction's age is reported no more", async || {
        value(&world.metrics().await, "attesto_db_oldest_xmin_age_seconds") < 0.5
    })
    .await;
}

/// No due time and no lease depends on the clock of the process; what does depend on it reports the
/// difference.
#[tokio::test]
async fn a_wrong_clock_shifts_no_delivery_and_is_reported() {
    const TEN_MINUTES: i64 = 600_000;
    let clock = Clock::fixed(Clock::system().now());
    let world = World::upon(fresh_database().await, clock.clone(), &OPEN).await;
    let receiver = Receiver::answering(OK).await;
    let tenant = world.stranger().await.id;
    set_callback(&world, &tenant, &receiver.url()).await;
    let skew = async || value(&world.metrics().await, "attesto_db_clock_skew_seconds");
    let (mut wrong, mut sent) = (0, 0);
    // Ahead, and then suddenly back by twenty minutes.
    for jump in [TEN_MINUTES, -2 * TEN_MINUTES] {
        clock.skew_by(jump);
        wrong += jump;
        work(
            &world,
            &tenant,
            &[&format!("{jump} one"), &format!("{jump} two")],
        )
        .await;
        sent += 2;
        receiver.until(sent).await;
        let stamp: i64 = receiver.requests()[sent - 1].headers["x-attesto-timestamp"]
            .parse()
            .unwrap();
        let off = stamp - Clock::system().now().as_secs();
        assert!((off - wrong / 1000).abs() < 60, "the receiver sees {off} s");
        let found = skew().await;
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let expected = -(wrong as f64) / 1000.0;
        assert!((found - expected).abs() < 60.0, "{found} s");

        let lookup = |_: &str| None;
        let told = run_checks(&CheckContext {
            raw: RawSettings::new(
                [("DATABASE_URL".to_owned(), world.fresh.url.clone())],
                &lookup,
            ),
            variable_names: Vec::new(),
            database: Ok(world.database().clone()),
            keyring: Some(world.keyring().clone()),
            clock: clock.clone(),
            is_online: false,
        })
        .await;
        let told = serde_json::to_string(&told).unwrap();
        assert!(
            told.contains("receivers refuse signatures that are minutes off"),
            "{told}"
        );
    }
    // Each at once, none twice, and at the database's time.
    let rows: (i64, bool, bool) = sqlx::query_as(
        "select sum(attempt_count), bool_and(status = 'delivered'),
             bool_and(delivered_at between created_at and now() and created_at > now() - interval '2 minutes')
         from webhook_deliveries",
    )
    .fetch_one(world.database().pool())
    .await
    .unwrap();
    assert_eq!(rows, (i64::try_from(sent).unwrap(), true, true));
    assert_eq!(receiver.requests().len(), sent);
}

/// A server with a role of its own, whose connections a test can limit.
struct LimitedRole {
    /// The database, as its owner.
    owner: Fresh,
    /// The name of the role.
    clerk: String,
    clock: Clock,
    world: World,
}

impl LimitedRole {
    async fn serve() -> Self {
        let owner = fresh_database().await;
        let clerk = format!("clerk_of_{}", owner.database.database_name());
        let grants = format!(
            "create role {clerk} login; grant all on all tables in schema public to {clerk}; \
             grant all on all sequences in schema public to {clerk}"
        );
        let pool = owner.database.pool();
        pool.execute(AssertSqlSafe(grants)).await.unwrap();
        let url = owner
            .url
            .replace("user=attesto", &format!("user={clerk}"))
            .replace("max=5", "max=12");
        let settings = ConnectSettings::from_url(&url).unwrap();
        let fresh = Fresh {
            database: Database::open(&settings),
            url,
            direct: None,
            settings,
        };
        let clock = Clock::fixed(Timestamp::parse("2026-04-10T14:22:10.000Z").unwrap());
        let world = World::upon(fresh, clock.clone(), &OPEN).await;
        Self {
            owner,
            clerk,
            clock,
            world,
        }
    }
}

/// Without a free connection a request waits three seconds and gets 503; deliveries have their
/// reserved connections already.
#[tokio::test]
async fn without_free_connections_requests_get_503_quickly_and_deliveries_continue() {
    let LimitedRole {
        owner,
        clerk,
        clock,
        world,
    } = LimitedRole::serve().await;
    let execute = async |statement: String| {
        let statement = AssertSqlSafe(statement);
        owner.database.pool().execute(statement).await.unwrap();
    };
    let tenant = world.tenant().await;
    let receiver = Receiver::answering(OK).await;
    set_callback(&world, &tenant.id, &receiver.url()).await;
    let bought = world
        .simulator
        .google()
        .buy_subscription(NewSubscription::default())
        .unwrap();
    let question = json!({
        "packageName": APP, "purchaseToken": bought.purchase_token, "type": "subscription",
    });

    let connections = async |kind: &'static str| {
        let count =
            "select count(*) from pg_stat_activity where usename = $1 and application_name like $2";
        let counted = sqlx::query_scalar::<_, i64>(count).bind(&clerk).bind(kind);
        counted.fetch_one(owner.database.pool()).await.unwrap()
    };
    wait_until("connections are set aside", async || {
        let kinds = ["attesto-deliveries", "attesto-changes", "attesto-readiness"];
        let counts = join_all(kinds.map(connections)).await;
        counts == [3, 1, 1]
    })
    .await;
    // Another session has taken all the others: this role may have five connections, which it has.
    execute(format!("alter role {clerk} connection limit 5")).await;
    wait_until("the other connections are closed", async || {
        execute(format!(
            "select pg_terminate_backend(pid) from pg_stat_activity \
              where usename = '{clerk}' and application_name = 'attesto'"
        ))
        .await;
        connections("%").await == 5
    })
    .await;

    // Forty requests wait together, not one after the other.
    let start = Instant::now();
    assert_eq!(world.verify("google", &tenant, &question).await.status, 503);
    let one = start.elapsed();
    let start = Instant::now();
    let answers = join_all((0..40).map(|_| world.verify("google", &tenant, &question))).await;
    let forty = start.elapsed();
    assert!(forty < one * 4, "one {one:?}, forty {forty:?}");
    // As soon as one of them has waited for a connection as long as the pool does.
    wait_until("not ready", async || {
        world.ask("GET", "/ready", None, None).await.status == 503
    })
    .await;
    for answer in answers {
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert_eq!(answer.body["error"], "UNAVAILABLE");
        assert!(answer.headers.contains_key("retry-after"));
    }

    // Meanwhile, events recorded by another process are delivered.
    let record = EventRecorder::new(&owner.database, &clock, |_| {});
    record_events(&record, &tenant.id, &["1", "2", "3"]).await;
    say_so(&owner.database).await;
    receiver.until(3).await;
    assert_eq!(connections("%").await, 5);

    execute(format!("alter role {clerk} connection limit -1")).await;
    wait_until("requests are served again", async || {
        world.verify("google", &tenant, &question).await.status == 200
    })
    .await;
    world.end().await;
    execute(format!("drop owned by {clerk}; drop role {clerk}")).await;
}

/// A role that may have few connections, and requests took them all: deliveries borrow one as soon as it is free.
#[tokio::test]
async fn deliveries_that_get_no_connection_borrow_one_and_say_so_meanwhile() {
    let LimitedRole {
        owner,
        clerk,
        clock,
        world,
    } = LimitedRole::serve().await;
    let execute = async |statement: String| {
        let statement = AssertSqlSafe(statement);
        owner.database.pool().execute(statement).await.unwrap();
    };
    let tenant = world.stranger().await.id;
    let receiver = Receiver::answering(OK).await;
    set_callback(&world, &tenant, &receiver.url()).await;
    let is_up = async || value(&world.metrics().await, "attesto_dispatcher_up");
    wait_until("it delivers", async || is_up().await > 0.5).await;

    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(begin_without_idle_timeout(world.database()).await);
    }
    let all = "select count(*) from pg_stat_activity where usename = $1";
    let count = async || {
        let counted = sqlx::query_scalar::<_, i64>(all).bind(&clerk);
        counted.fetch_one(owner.database.pool()).await.unwrap()
    };
    // The three that are held, and those of the listener and of `/ready`.
    execute(format!("alter role {clerk} connection limit 5")).await;
    wait_until("those for deliveries are lost", async || {
        execute(format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{clerk}' \
              and application_name in ('attesto', 'attesto-deliveries') and state = 'idle'"
        ))
        .await;
        count().await == 5
    })
    .await;
    wait_until("it says that it does not deliver", async || {
        let ready = world.ask("GET", "/ready", None, None).await;
        let notice = ready.body["checks"]["deliveries"].as_str();
        notice.is_some_and(|notice| notice.starts_with("waiting: ")) && is_up().await < 0.5
    })
    .await;
    let record = EventRecorder::new(&owner.database, &clock, |_| {});
    record_events(&record, &tenant, &["1", "2", "3"]).await;
    drop(held);
    receiver.until(3).await;
    wait_until("it says so no more", async || is_up().await > 0.5).await;
    world.end().await;
    execute(format!("drop owned by {clerk}; drop role {clerk}")).await;
}

#[tokio::test]
async fn requests_that_use_all_connections_do_not_make_a_process_unready() {
    let mut fresh = fresh_database().await;
    fresh.url = fresh.url.replace("max=5", "max=5&connect_timeout=300");
    fresh.settings = ConnectSettings::from_url(&fresh.url).unwrap();
    fresh.database = Database::open(&fresh.settings);
    let clock = Clock::fixed(Timestamp::parse("2026-04-10T14:22:10.000Z").unwrap());
    let world = World::upon(fresh, clock, &[]).await;
    let ready = async || {
        let ready = world.ask("GET", "/ready", None, None).await;
        (ready.status, ready.body["checks"].clone())
    };
    let fine = (200, json!({ "db": "ok", "encryption": "ok" }));
    wait_until("ready", async || ready().await == fine).await;
    let pool = world.database().pool();
    let held = join_all((0..5).map(|_| pool.begin())).await;
    assert!(held.iter().all(Result::is_ok));
    assert_eq!(ready().await, fine);
    drop(held);
    world.end().await;
}

/// Packets of the listening connection are dropped without an error, so that notifications of new
/// work are lost. Polling finds the work at its interval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_are_found_by_polling_when_notifications_are_lost() {
    let direct = fresh_database().await;
    let wire = Wire::to(&direct.url).await;
    let settings = ConnectSettings::from_url(&wire.url).unwrap();
    let fresh = Fresh {
        database: Database::open(&settings),
        url: wire.url.clone(),
        direct: None,
        settings,
    };
    let clock = Clock::fixed(Timestamp::parse("2026-04-10T14:22:10.000Z").unwrap());
    let world = World::upon(fresh, clock.clone(), &OPEN).await;
    let receiver = Receiver::answering(OK).await;
    let tenant = world.stranger().await.id;
    set_callback(&world, &tenant, &receiver.url()).await;
    // Another process records and notifies.
    let record = EventRecorder::new(&direct.database, &clock, |_| {});
    let arrives = async |number: usize| {
        record_events(&record, &tenant, &[&number.to_string()]).await;
        say_so(&direct.database).await;
        receiver.until(number).await;
    };
    until_it_hears(&world).await;
    arrives(1).await;
    wire.freeze_ears();
    // The frozen connection delivers no notification, so that each of these is found by polling.
    for number in 2..=4 {
        arrives(number).await;
    }
    // Postgres may send it after the delivery.
    wait_until("a notification is held back", async || wire.unheard() >= 1).await;
}
