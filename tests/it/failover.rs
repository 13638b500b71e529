//! A standby takes over: with a real primary and a real streaming standby, and what can be shown on one server.

use attesto::base::clock::{Clock, Timestamp};
use attesto::db::{ConnectSettings, Database};
use attesto::simulator::state::google::NewSubscription;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::chaos::postgres::{Options, Postgres};
use crate::delivery_hold::set_callback;
use crate::world::attesto::{APP, Tenant, World};
use crate::world::pgbouncer::Pooler;
use crate::world::postgres::{Fresh, fresh_database};
use crate::world::receiver::Receiver;
use crate::world::wait::wait_until;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SETTINGS: [(&str, &str); 2] = [
    ("WEBHOOK_DISPATCH_INTERVAL_SECONDS", "1"),
    ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1"),
];

/// The only value of a statement's only row.
async fn count(server: &Postgres, statement: &'static str) -> i64 {
    let mut connection = PgConnection::connect(&server.url()).await.unwrap();
    let counted = sqlx::query_scalar(statement).fetch_one(&mut connection);
    let counted = counted.await.unwrap();
    let _ = connection.close().await;
    counted
}

/// A primary and its standby, which has everything that the primary has.
async fn start_pair() -> (Postgres, Postgres) {
    let start = || {
        let primary = Postgres::start_with(Options {
            settings: vec!["fsync=off".to_owned()],
            ..Options::default()
        });
        let standby = primary.start_standby();
        (primary, standby)
    };
    let (primary, standby) = tokio::task::spawn_blocking(start).await.unwrap();
    wait_until("streaming", async || {
        count(
            &primary,
            "select count(*) from pg_stat_replication where state = 'streaming'",
        )
        .await
            == 1
    })
    .await;
    (primary, standby)
}

/// Leads to the first of these servers that may be written.
fn reach(servers: &[&Postgres]) -> Fresh {
    let folders: Vec<_> = servers
        .iter()
        .map(|server| server.folder().display().to_string())
        .collect();
    let url = format!(
        "postgres:///postgres?host={}&user=attesto&sslmode=disable&max=10",
        folders.join(",")
    );
    let settings = ConnectSettings::from_url(&url).unwrap();
    Fresh {
        url,
        direct: None,
        database: Database::open(&settings),
        settings,
    }
}

/// A tenant whose app sends its notifications to this server, one at a time.
struct Shop {
    world: World,
    tenant: Tenant,
}

impl Shop {
    async fn open(fresh: Fresh, settings: &[(&str, &str)]) -> Self {
        fresh.database.migrate(false).await.unwrap();
        let clock = Clock::fixed(Timestamp::parse("2026-04-10T14:22:10.000Z").unwrap());
        let world = World::upon(fresh, clock, settings).await;
        let tenant = world.tenant().await;
        world.set_google_by_command(&tenant);
        Self { world, tenant }
    }

    /// A notification that is ready to be sent.
    fn next_message(&self) -> String {
        let google = self.world.simulator.google();
        google.buy_subscription(NewSubscription::default()).unwrap();
        google.published_messages().pop().unwrap().message_id
    }

    async fn push(&self, message: &str) -> (u16, Value) {
        let google = self.world.simulator.google();
        let pushed = google.push_message(message).await.unwrap();
        (pushed.status, pushed.body)
    }

    /// Sends it until it is taken, as the store does.
    async fn push_until_taken(&self, message: &str) -> Value {
        let mut taken = None;
        wait_until("taken", async || {
            let (status, body) = self.push(message).await;
            assert!(matches!(status, 0 | 200 | 503), "{status} {body}");
            if status == 200 {
                taken = Some(body);
            }
            taken.is_some()
        })
        .await;
        taken.unwrap()
    }

    async fn ready(&self) -> (u16, Value) {
        let answer = self.world.ask("GET", "/ready", None, None).await;
        (answer.status, answer.body["checks"].clone())
    }

    /// The status of a request with the tenant's key, about a purchase that does not exist.
    async fn verify(&self) -> u16 {
        let question = json!({
            "packageName": APP, "purchaseToken": "no-such-token", "type": "subscription",
        });
        let asked = self.world.verify("google", &self.tenant, &question);
        asked.await.status
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_standby_takes_over_with_everything_that_was_answered() {
    let (primary, standby) = start_pair().await;
    let shop = Shop::open(reach(&[&primary, &standby]), &SETTINGS).await;
    let receiver = Receiver::answering(OK).await;
    set_callback(&shop.world, &shop.tenant.id, &receiver.url()).await;
    primary
        .set_parameter("synchronous_standby_names", Some("*"))
        .await;
    let first = shop.next_message();
    let told = shop.push_until_taken(&first).await;
    wait_until("ready", async || shop.ready().await.0 == 200).await;
    assert_eq!(shop.verify().await, 200);

    // The standby is away: no commit completes, and neither does the answer to a repeat.
    standby.freeze();
    let second = shop.next_message();
    let pushes = async { tokio::join!(shop.push(&first), shop.push(&second)) };
    let mut pushes = Box::pin(pushes.fuse());
    let held_back = wait_until("the repeat waits for the standby", async || {
        let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' \
            and query like '%for key share%'";
        count(&primary, waiting).await == 1
    });
    tokio::select! {
        told = &mut pushes => panic!("{told:?} before the standby has it"),
        () = held_back => {}
    }
    wait_until("not ready", async || {
        let (status, checks) = shop.ready().await;
        assert_eq!(checks["encryption"], "ok");
        status == 503 && checks["db"] == "fail: writes do not complete"
    })
    .await;
    wait_until("not trusted", async || shop.verify().await == 503).await;
    standby.thaw();
    let ((status, again), _) = pushes.as_mut().await;
    drop(pushes);
    if status == 200 {
        assert_eq!(again["eventId"], told["eventId"]);
        assert_eq!(again["isNew"], false);
    }
    shop.push_until_taken(&second).await;
    wait_until("ready again", async || shop.ready().await.0 == 200).await;

    // The operator fences the primary; what is not replicated yet may still come.
    primary
        .set_parameter("default_transaction_read_only", Some("on"))
        .await;
    wait_until("fenced", async || {
        let (status, checks) = shop.ready().await;
        status == 503
            && checks["db"]
                .as_str()
                .is_some_and(|it| it.starts_with("fail"))
    })
    .await;
    let third = shop.next_message();
    assert_eq!(shop.push(&third).await.0, 503);
    wait_until("keys are not trusted", async || shop.verify().await == 503).await;

    standby.execute("select pg_promote(true, 60)").await;
    shop.push_until_taken(&third).await;
    wait_until("ready on the new primary", async || {
        shop.ready().await.0 == 200
    })
    .await;
    wait_until("keys are known", async || shop.verify().await == 200).await;
    let events = "select count(*) from webhook_events";
    assert_eq!(count(&standby, events).await, 3);
    wait_until("all are delivered", async || {
        let delivered = "select count(*) from webhook_deliveries where status = 'delivered'";
        count(&standby, delivered).await == 3
    })
    .await;

    // The old primary still answers, and knows nothing of this.
    standby
        .execute("update api_keys set revoked_at = now()")
        .await;
    wait_until("revoked", async || shop.verify().await == 401).await;
    let active = "select count(*) from api_keys where revoked_at is null";
    assert_eq!(count(&primary, active).await, 1);
    shop.world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_vanishes_takes_no_connection_with_it() {
    let (primary, standby) = start_pair().await;
    // One process only receives; another one came to the standby alone, and may deliver when it is promoted.
    let settings = [
        SETTINGS[0],
        SETTINGS[1],
        ("WEBHOOK_DISPATCHER_DISABLED", "1"),
    ];
    let shop = Shop::open(reach(&[&primary, &standby]), &settings).await;
    let receiver = Receiver::answering(OK).await;
    set_callback(&shop.world, &shop.tenant.id, &receiver.url()).await;
    let (status, checks) = shop.ready().await;
    assert_eq!(status, 200, "{checks}");
    assert_eq!(checks["deliveries"], "off: this process only receives");
    wait_until("the standby has the tenant", async || {
        let behind = "select count(*) from api_keys";
        count(&standby, behind).await == 1
    })
    .await;
    let clock = shop.world.clock.clone();
    let deliverer = World::upon(reach(&[&standby]), clock, &SETTINGS).await;
    wait_until("it waits", async || {
        let ready = deliverer.ask("GET", "/ready", None, None).await;
        ready.status == 503 && ready.body["checks"]["db"] == "fail: read-only"
    })
    .await;

    // No connection ends, and no answer comes.
    primary.freeze();
    let messages: Vec<_> = (0..12).map(|_| shop.next_message()).collect();
    let pushes = messages
        .iter()
        .map(|message| shop.push_until_taken(message));
    let pushes = futures_util::future::join_all(pushes);
    let promoted = async {
        wait_until("it looks gone", async || shop.ready().await.0 == 503).await;
        standby.execute("select pg_promote(true, 60)").await;
    };
    tokio::join!(pushes, promoted);
    wait_until("ready", async || shop.ready().await.0 == 200).await;
    wait_until("given back", async || {
        shop.world.database().connection_counts().0 == 0
    })
    .await;
    wait_until("all are delivered", async || {
        let arrived = "select count(*) from webhook_deliveries where status = 'delivered'";
        count(&standby, arrived).await == 12
    })
    .await;
    deliverer.end().await;
    shop.world.end().await;
}

#[tokio::test]
async fn every_transaction_is_read_committed_whatever_the_default_is() {
    let fresh = fresh_database().await;
    let name = fresh.database.database_name();
    let change =
        format!("alter database {name} set default_transaction_isolation = 'serializable'");
    let change = sqlx::AssertSqlSafe(change);
    fresh.database.pool().execute(change).await.unwrap();
    let pooler = Pooler::start();
    let behind_pooler = pooler.before(&fresh);
    for database in [&Database::open(&fresh.settings), &behind_pooler.database] {
        let level = "select current_setting('transaction_isolation')";
        let alone: String = sqlx::query_scalar(level)
            .fetch_one(database.pool())
            .await
            .unwrap();
        let mut transaction = database.pool().begin().await.unwrap();
        let inside: String = sqlx::query_scalar(level)
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        assert_eq!([alone, inside], ["read committed"; 2]);
    }
}

/// A sequence is not set back with its transaction, so it counts the attempts.
#[tokio::test]
async fn a_statement_that_met_a_conflict_is_run_again_a_few_times() {
    let fresh = fresh_database().await;
    let database = &fresh.database;
    for statement in [
        "create sequence attempts",
        "create function meet(conflict text, times bigint) returns bigint language plpgsql as $$
            declare attempt bigint := nextval('attempts');
            begin
                if attempt <= times then
                    raise exception using errcode = conflict;
                end if;
                return attempt;
            end $$",
    ] {
        database.pool().execute(statement).await.unwrap();
    }
    let meet = async |conflict: &str, times: i64| {
        database
            .pool()
            .execute("alter sequence attempts restart")
            .await
            .unwrap();
        let met = sqlx::query_scalar::<_, i64>("select meet($1, $2)")
            .bind(conflict)
            .bind(times)
            .fetch_one(database.pool())
            .await;
        let counted = "select last_value from attempts";
        let attempts: i64 = sqlx::query_scalar(counted)
            .fetch_one(database.pool())
            .await
            .unwrap();
        (met.is_ok(), attempts)
    };
    assert_eq!(meet("40001", 2).await, (true, 3));
    assert_eq!(meet("40P01", 1).await, (true, 2));
    assert_eq!(meet("40P01", 100).await, (false, 4));
    assert_eq!(meet("23505", 1).await, (false, 1), "nothing that passes");
}

#[tokio::test]
async fn a_session_that_may_no_longer_write_is_replaced() {
    let fresh = fresh_database().await;
    let database = Database::open(&fresh.settings);
    let fence = "set default_transaction_read_only = on";
    database.pool().execute(fence).await.unwrap();
    let write = "create table written ()";
    // At once it may fail; a session that was just opened is not replaced yet.
    wait_until("a session that may write", async || {
        match database.pool().execute(write).await {
            Ok(_) => true,
            Err(error) => {
                assert!(attesto::db::is_unavailable(&error), "{error}");
                false
            }
        }
    })
    .await;
}
