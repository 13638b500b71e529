//! Several callbacks of one tenant: which events each is sent, by what it is signed, and that none of them affects another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attesto::base::id::{CallbackNumber, DeliveryId, TenantId};
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::deliveries::endpoint::callbacks::store::{add_endpoint, remove_endpoint};
use attesto::deliveries::endpoint::store::load_endpoints;
use attesto::deliveries::endpoint::{CallbackFilter, CallbackKind, NewEndpoint, SigningSecrets};
use attesto::deliveries::{
    AttemptOutcome, DeliveryJob, Dispatcher, DispatcherSettings, JobSender, OutcomeClass,
    WorkNotifier,
};
use attesto::events::{EventEnvironment, EventRecorder, EventSource, EventType, NewEvent};
use attesto::simulator::state::apple::SimulatedEnvironment;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::apple_backfill::{backfill, buy, lose, post_newest};
use crate::apple_notifications::Shop;
use crate::delivery_hold::{dispatcher_on, events, set_callback};
use crate::operators::operations;
use crate::webhook_end_to_end::{convinces, secret};
use crate::world::attesto::World;
use crate::world::event::test_event;
use crate::world::postgres::fresh_database;
use crate::world::receiver::Receiver;
use crate::world::shell::{Ran, Shell};
use crate::world::wait::wait_until;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const NO: &[u8] = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno";
/// No DNS query is needed for this address: it is a literal, and public.
const URL: &str = "https://93.184.216.34/hook";

/// A world in which the tests deliver.
async fn quiet_world() -> World {
    World::with(&[
        ("WEBHOOK_DISPATCHER_DISABLED", "true"),
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
    ])
    .await
}

async fn add(
    world: &World,
    tenant: &TenantId,
    url: &str,
    kind: CallbackKind,
    filter: CallbackFilter,
) -> CallbackNumber {
    let new = NewEndpoint {
        callback_url: url,
        kind,
        filter,
        secret: Some(&secret("z")),
        is_active: true,
    };
    let added = add_endpoint(world.database(), world.keyring(), tenant, &new).await;
    added.unwrap().0
}

async fn add_for_all(world: &World, tenant: &TenantId, url: &str) -> CallbackNumber {
    let all = CallbackFilter::default();
    add(world, tenant, url, CallbackKind::Events, all).await
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

async fn execute(world: &World, statement: &'static str) {
    sqlx::query(statement)
        .execute(world.database().pool())
        .await
        .unwrap();
}

/// The callbacks of each event's deliveries, by the store's id of the event.
async fn targets(world: &World) -> BTreeMap<String, Vec<i16>> {
    let rows: Vec<(String, i16)> = sqlx::query_as(
        "select external_id, callback from webhook_events event
         left join webhook_deliveries delivery on delivery.lane = event.lane and delivery.event_id = event.id order by 1, 2 nulls last",
    )
    .fetch_all(world.database().pool())
    .await
    .map(|rows: Vec<(String, Option<i16>)>| {
        let rows = rows.into_iter();
        rows.map(|(event, callback)| (event, callback.unwrap_or(0)))
            .collect()
    })
    .unwrap();
    let mut found = BTreeMap::<_, Vec<i16>>::new();
    for (event, callback) in rows {
        found.entry(event).or_default().push(callback);
    }
    found
}

fn event(
    tenant: &TenantId,
    name: &str,
    source: EventSource,
    event_type: EventType,
    environment: Option<EventEnvironment>,
) -> NewEvent {
    NewEvent {
        source,
        event_type,
        environment,
        ..test_event(tenant, name)
    }
}

/// One by one, and all in one transaction.
#[tokio::test]
async fn an_event_goes_to_every_callback_whose_filter_it_passes() {
    use EventEnvironment::{Production, Sandbox};
    let world = quiet_world().await;
    let tenant = world.stranger().await.id;
    let filter = |events: &[&str], sources: &[&str], environments: &[&str]| CallbackFilter {
        events: words(events),
        sources: words(sources),
        environments: words(environments),
    };
    for filter in [
        CallbackFilter::default(),
        filter(&["subscription.*", "test"], &[], &[]),
        filter(&[], &["apple"], &["production"]),
        filter(&["product.refunded"], &["google"], &["sandbox"]),
    ] {
        add(&world, &tenant, URL, CallbackKind::Events, filter).await;
    }
    add_for_all(&world, &tenant, URL).await;
    execute(
        &world,
        "update webhook_configs set is_active = false where callback = 5",
    )
    .await;
    let (apple, google) = (EventSource::Apple, EventSource::Google);
    let renewed = EventType::SubscriptionRenewed;
    let refunded = EventType::ProductRefunded;
    let table = [
        ("renewed", apple, renewed, Some(Production), vec![1, 2, 3]),
        ("of sandbox", apple, renewed, Some(Sandbox), vec![1, 2]),
        ("of neither", apple, renewed, None, vec![1, 2, 3]),
        ("of google", google, renewed, Some(Production), vec![1, 2]),
        ("refunded", google, refunded, Some(Sandbox), vec![1, 4]),
        (
            "bought",
            google,
            EventType::ProductPurchased,
            Some(Sandbox),
            vec![1],
        ),
        ("test", google, EventType::Test, None, vec![1, 2]),
    ];
    let record = EventRecorder::new(world.database(), &world.clock, |_| {});
    for together in [false, true] {
        let name = |name: &str| format!("{name} {together}");
        let all: Vec<_> = table
            .iter()
            .map(|(about, source, event_type, environment, _)| {
                event(&tenant, &name(about), *source, *event_type, *environment)
            })
            .collect();
        let stored = if together {
            join_all(all.iter().map(|event| record.record_event(event))).await
        } else {
            let mut stored = Vec::new();
            for event in &all {
                stored.push(record.record_event(event).await);
            }
            stored
        };
        assert!(stored.iter().all(|it| it.as_ref().unwrap().enqueued));
        let found = targets(&world).await;
        for (about, .., expected) in &table {
            assert_eq!(found[&name(about)], *expected, "{about} {together}");
        }
    }
    let ids: Vec<String> = sqlx::query_scalar("select id from webhook_deliveries")
        .fetch_all(world.database().pool())
        .await
        .unwrap();
    assert!(
        ids.iter().all(|id| id.parse::<DeliveryId>().is_ok()),
        "{ids:?}"
    );
    // With no callback that takes it, it is stored and not enqueued.
    execute(&world, "update webhook_configs set events = '{test}'").await;
    let other = event(&tenant, "other", apple, renewed, None);
    let another = event(&tenant, "another", apple, EventType::Test, None);
    let pair = [&other, &another].map(|event| record.record_event(event));
    let stored = join_all(pair).await;
    let enqueued: Vec<bool> = stored.into_iter().map(|it| it.unwrap().enqueued).collect();
    assert_eq!(enqueued, [false, true]);
    world.end().await;
}

#[tokio::test]
async fn each_callback_is_signed_with_its_own_secrets() {
    let world = quiet_world().await;
    let tenant = world.stranger().await.id;
    let (one, two) = (Receiver::answering(OK).await, Receiver::answering(OK).await);
    set_callback(&world, &tenant, &one.url()).await;
    add_for_all(&world, &tenant, &two.url()).await;
    let shell = world.shell();
    let rotated = shell.run_with(
        &[
            "webhook",
            "set-config",
            tenant.as_str(),
            "--callback",
            "2",
            "--secret-path",
            "-",
        ],
        secret("n").expose(),
    );
    assert_eq!(rotated.rows()[0]["callback"], 2);
    events(&world, &tenant, &["1"]).await;
    let mut dispatcher = dispatcher_on(&world, world.database());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 2);
    let (to_one, to_two) = (one.requests().remove(0), two.requests().remove(0));
    assert!(convinces(&to_one, &secret("x").into()));
    let both = SigningSecrets {
        newest: secret("n"),
        previous: vec![secret("z")],
    };
    assert!(convinces(&to_two, &both));
    assert_eq!(to_one.body, to_two.body);
    assert_eq!(
        to_one.headers["x-attesto-event-id"],
        to_two.headers["x-attesto-event-id"]
    );
    assert_ne!(
        to_one.headers["x-attesto-delivery-id"],
        to_two.headers["x-attesto-delivery-id"]
    );
    assert_eq!(to_one.headers.get("x-attesto-tenant-id"), None);
    let words = ["webhook", "retire-secret", tenant.as_str()];
    assert_eq!(shell.run(&words).exit, 1, "the first has no previous one");
    let retired = shell.rows(&[&words[..], &["--callback", "2"]].concat());
    assert_eq!(retired[0]["retired"], json!([1]));
    world.end().await;
}

/// Answers by the number of the callback, and counts what is in flight at once.
#[derive(Clone, Default)]
struct Seen {
    jobs: Arc<Mutex<Vec<Arc<DeliveryJob>>>>,
    hanging: Arc<AtomicUsize>,
}

impl Seen {
    /// Callback 1 refuses, callback 2 does not answer, the others accept.
    fn sender(&self) -> impl JobSender + use<> {
        let seen = self.clone();
        move |job: Arc<DeliveryJob>| {
            let seen = seen.clone();
            async move {
                seen.jobs.lock().unwrap().push(job.clone());
                match job.callback.column() {
                    1 => AttemptOutcome::Refused {
                        class: OutcomeClass::Http5xx,
                        code: Some(500),
                        retry_after: None,
                        excerpt: None,
                        detail: "no".to_owned(),
                    },
                    2 => {
                        seen.hanging.fetch_add(1, Ordering::SeqCst);
                        std::future::pending().await
                    }
                    _ => AttemptOutcome::Delivered {
                        code: 200,
                        excerpt: None,
                    },
                }
            }
        }
    }

    fn count(&self, callback: i16) -> usize {
        let jobs = self.jobs.lock().unwrap();
        jobs.iter()
            .filter(|job| job.callback.column() == callback)
            .count()
    }
}

/// Although all of them have the same URL.
#[tokio::test]
async fn a_callback_that_fails_or_hangs_delays_no_other_of_its_tenant() {
    let world = quiet_world().await;
    let tenant = world.stranger().await.id;
    for _ in 0..3 {
        add_for_all(&world, &tenant, URL).await;
    }
    let names: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    events(&world, &tenant, &names).await;
    execute(
        &world,
        "insert into webhook_health (lane, tenant_id, callback, callback_url, allowed, last_success_at)
         select tenant_lane(tenant_id), tenant_id, callback, callback_url, 8, attesto_now() from webhook_configs",
    )
    .await;
    let seen = Seen::default();
    let settings = DispatcherSettings {
        concurrency: 64,
        poll_interval: Duration::from_hours(1),
        max_retries: 5,
        shutdown_timeout: Duration::ZERO,
    };
    let dispatcher = Dispatcher::new(
        world.database(),
        &world.clock,
        seen.sender(),
        WorkNotifier::default(),
        settings,
    );
    let stop = CancellationToken::new();
    let running = tokio::spawn(dispatcher.run(stop.clone()));
    let done = "select count(*) from webhook_deliveries where callback <> 2 and last_attempt_at is not null";
    wait_until("the other callbacks have had every event", async || {
        let done: i64 = sqlx::query_scalar(done)
            .fetch_one(world.database().pool())
            .await
            .unwrap();
        done == 40
    })
    .await;
    assert_eq!(seen.count(2), 8, "the limit of a callback");
    assert_eq!(seen.hanging.load(Ordering::SeqCst), 8);
    stop.cancel();
    running.await.unwrap();
    let standing: Vec<(i16, String, i64)> = sqlx::query_as(
        "select callback, status, count(*) from webhook_deliveries group by 1, 2 order by 1, 2",
    )
    .fetch_all(world.database().pool())
    .await
    .unwrap();
    let expected = [
        (1, "pending".to_owned(), 20),
        (2, "pending".to_owned(), 20),
        (3, "delivered".to_owned(), 20),
    ];
    assert_eq!(standing, expected);
    let failures: Vec<(i16, i32)> =
        sqlx::query_as("select callback, failures from webhook_health order by 1")
            .fetch_all(world.database().pool())
            .await
            .unwrap();
    assert_eq!(failures, [(1, 20), (2, 0), (3, 0)]);
    world.end().await;
}

/// The commands about one tenant, outside the world's process.
struct Commands<'a> {
    shell: Shell,
    tenant: &'a TenantId,
}

impl Commands<'_> {
    fn run(&self, verb: &str, more: &[&str]) -> Ran {
        let words = ["webhook", verb, self.tenant.as_str()];
        self.shell.run(&[&words[..], more].concat())
    }

    fn rows(&self, verb: &str, more: &[&str]) -> Vec<Value> {
        self.run(verb, more).rows()
    }

    fn row(&self, verb: &str, more: &[&str]) -> Value {
        self.rows(verb, more).remove(0)
    }

    /// The command fails with this exit code and a message that contains the text.
    fn refused(&self, verb: &str, more: &[&str], exit: i32, text: &str) {
        let ran = self.run(verb, more);
        assert_eq!((ran.exit, ran.said.as_str()), (exit, ""), "{ran:?}");
        assert!(ran.complained.contains(text), "{ran:?}");
    }
}

#[tokio::test]
async fn callbacks_are_added_listed_changed_and_removed() {
    let world = quiet_world().await;
    let tenant = world.stranger().await.id;
    let run = Commands {
        shell: world.shell(),
        tenant: &tenant,
    };
    assert_eq!(run.rows("list", &[]), Vec::<Value>::new());
    // The first callback of a tenant is number 1, however it is made.
    let first = run.row("add", &[URL]);
    assert_eq!(
        (&first["callback"], &first["kind"]),
        (&json!(1), &json!("events"))
    );
    let second = run.row(
        "add",
        &[
            "https://93.184.216.34/two",
            "--event",
            "subscription.*,test",
            "--source",
            "apple",
            "--environment",
            "sandbox",
        ],
    );
    assert_eq!(second["callback"], 2);
    let secrets: BTreeSet<&str> = [&first, &second]
        .into_iter()
        .map(|made| made["secret"].as_str().unwrap())
        .collect();
    assert_eq!(secrets.len(), 2, "each has its own, printed once");
    assert_eq!(run.row("add", &[URL, "--kind", "raw"])["kind"], "raw");
    let listed = run.rows("list", &[]);
    let shown: Vec<_> = listed
        .iter()
        .map(|row| {
            assert_eq!(row.get("secret"), None);
            let filter = ["events", "sources", "environments"].map(|name| row[name].to_string());
            (row["callback"].as_i64().unwrap(), filter.join(" "))
        })
        .collect();
    let expected = [
        (1, "[] [] []"),
        (2, r#"["subscription.*","test"] ["apple"] ["sandbox"]"#),
        (3, "[] [] []"),
    ];
    assert_eq!(
        shown,
        expected.map(|(number, filter)| (number, filter.to_owned()))
    );

    let changed = run.row(
        "set-filter",
        &[
            "--callback",
            "2",
            "--event",
            "product.refunded",
            "--environment",
            "all",
        ],
    );
    assert_eq!(changed["events"], json!(["product.refunded"]));
    assert_eq!(changed["sources"], json!(["apple"]), "as it was");
    assert_eq!(changed["environments"], json!([]));
    run.refused(
        "set-filter",
        &["--callback", "2"],
        2,
        "at least one of --event",
    );
    run.refused(
        "set-filter",
        &["--callback", "9", "--event", "test"],
        1,
        "no callback 9",
    );
    run.refused(
        "add",
        &[URL, "--event", "subscription.renewd"],
        2,
        "docs/events.md",
    );
    run.refused("add", &["http://10.0.0.1/"], 2, "the callback URL");
    world.end().await;
}

#[tokio::test]
async fn commands_are_about_the_first_callback_unless_they_name_another() {
    let world = quiet_world().await;
    let tenant = world.stranger().await.id;
    let run = Commands {
        shell: world.shell(),
        tenant: &tenant,
    };
    for expected in 1..=3 {
        assert_eq!(run.row("add", &[URL])["callback"], expected);
    }
    let moved = run.row(
        "set-config",
        &[
            "--callback",
            "2",
            "--callback-url",
            "https://93.184.216.34/2",
        ],
    );
    assert_eq!(moved["callbackUrl"], "https://93.184.216.34/2");
    assert_eq!(run.row("get", &[])["callbackUrl"], URL);
    assert_eq!(
        run.row("get", &["--callback", "2"])["callbackUrl"],
        "https://93.184.216.34/2"
    );
    run.refused("get", &["--callback", "9"], 1, "no callback 9");
    run.refused(
        "set-config",
        &["--callback", "9", "--callback-url", URL],
        1,
        "no callback 9",
    );
    run.refused("ping", &["--callback", "9"], 1, "no callback 9");
    run.refused("get", &["--callback", "0"], 2, "whole number from 1 on");

    for expected in 4..=10 {
        assert_eq!(run.row("add", &[URL])["callback"], expected);
    }
    run.refused("add", &[URL], 1, "10 callbacks already");
    run.refused("remove", &["--callback", "1"], 2, "--is-active false");
    let removed = run.row("remove", &["--callback", "4"]);
    assert_eq!(removed["abandoned"], 0);
    run.refused("remove", &["--callback", "4"], 1, "no callback 4");
    // A number is not given twice.
    assert_eq!(run.row("add", &[URL])["callback"], 11);
    let told = operations(&run.shell);
    let removal = told
        .iter()
        .find(|row| row["command"] == "webhook remove" && row["action"] == "delete");
    assert_eq!(removal.unwrap()["target"], format!("{tenant} 4"));
    world.end().await;
}

#[tokio::test]
async fn a_callback_is_not_removed_while_deliveries_wait_unless_they_are_given_up() {
    let world = quiet_world().await;
    let tenant = world.stranger().await.id;
    let receiver = Receiver::answering(NO).await;
    for _ in 0..2 {
        add_for_all(&world, &tenant, &receiver.url()).await;
    }
    let run = Commands {
        shell: world.shell(),
        tenant: &tenant,
    };
    run.shell
        .rows(&["webhook", "allow", tenant.as_str(), "10.1.0.0/16:443"]);
    events(&world, &tenant, &["1", "2", "3"]).await;
    let mut dispatcher = dispatcher_on(&world, world.database());
    assert!(dispatcher.run_until_idle().await.unwrap() >= 2);
    run.refused("remove", &["--callback", "2"], 1, "3 deliveries wait");
    assert_eq!(run.row("get", &["--callback", "2"])["isActive"], true);
    let again = [
        "webhook",
        "redeliver",
        "--tenant",
        tenant.as_str(),
        "--callback",
        "2",
    ];
    run.shell.rows(&again);
    let removed = run.row("remove", &["--callback", "2", "--abandon-waiting"]);
    assert_eq!(removed["abandoned"], 3);
    let rows: Vec<(i16, String, Option<String>)> = sqlx::query_as(
        "select callback, status, case when callback = 2 then last_error end
         from webhook_deliveries order by callback, created_at",
    )
    .fetch_all(world.database().pool())
    .await
    .unwrap();
    let given_up = "an operator removed the callback before the event was delivered";
    let mut expected = vec![(1, "pending".to_owned(), None); 3];
    expected.extend(vec![(2, "failed".to_owned(), Some(given_up.to_owned())); 3]);
    assert_eq!(rows, expected);
    for table in ["webhook_configs", "webhook_health"] {
        let statement = format!("select count(*) from {table} where callback = 2");
        let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
            .fetch_one(world.database().pool())
            .await
            .unwrap();
        assert_eq!(left, 0, "{table}");
    }
    let unfinished = "select count(*) from webhook_redeliveries where finished_at is null";
    let unfinished: i64 = sqlx::query_scalar(unfinished)
        .fetch_one(world.database().pool())
        .await
        .unwrap();
    assert_eq!(unfinished, 0);
    world.end().await;
}

/// A delivery that is in progress when its callback is removed ends, and its result changes nothing.
#[tokio::test]
async fn an_attempt_in_progress_does_not_revive_a_removed_callback() {
    let world = quiet_world().await;
    let tenant = world.stranger().await.id;
    for _ in 0..2 {
        add_for_all(&world, &tenant, URL).await;
    }
    events(&world, &tenant, &["1"]).await;
    execute(
        &world,
        "update webhook_deliveries set lease_no = 1, lease_until = attesto_now() + interval '20 s'",
    )
    .await;
    let second = CallbackNumber::new(2).unwrap();
    let removed = remove_endpoint(world.database(), &tenant, second, true).await;
    assert_eq!(removed.unwrap(), 1);
    let rows: Vec<(i16, String, i32, bool)> = sqlx::query_as(
        "select callback, status, lease_no, lease_until is null from webhook_deliveries order by 1",
    )
    .fetch_all(world.database().pool())
    .await
    .unwrap();
    let expected = [
        (1, "pending".to_owned(), 1, false),
        (2, "failed".to_owned(), 2, true),
    ];
    assert_eq!(rows, expected, "no other lease");
    world.end().await;
}

/// What Apple posts, what its history returns, and not what Attesto makes itself.
#[tokio::test]
async fn a_raw_callback_is_sent_what_apple_sent_byte_for_byte() {
    let shop = Shop::open_with(&[
        ("WEBHOOK_DISPATCHER_DISABLED", "true"),
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
    ])
    .await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    let (usual, raw) = (Receiver::answering(OK).await, Receiver::answering(OK).await);
    set_callback(world, &tenant.id, &usual.url()).await;
    let all = CallbackFilter::default();
    add(world, &tenant.id, &raw.url(), CallbackKind::Raw, all).await;
    shop.report_here(true);
    buy(world, SimulatedEnvironment::Production);
    let arrived = post_newest(world).await;
    let lost = lose(world, 1).await.remove(0);
    assert_eq!(backfill(world, tenant).await.recovered, 1);
    let own = NewEvent {
        event_type: EventType::PurchaseState,
        platform_event: "attesto.purchase_state".to_owned(),
        ..event(
            &tenant.id,
            "state:1",
            EventSource::Apple,
            EventType::Test,
            None,
        )
    };
    let record = EventRecorder::new(world.database(), &world.clock, |_| {});
    record.record_event(&own).await.unwrap();
    let mut dispatcher = dispatcher_on(world, world.database());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 5);
    assert_eq!(usual.requests().len(), 3);
    let requests = raw.requests();
    let sent = shop.apple().list_notifications();
    let bodies: BTreeSet<String> = [&arrived, &lost]
        .iter()
        .map(|id| {
            let sent = sent.iter().find(|sent| sent.notification_uuid == **id);
            json!({ "signedPayload": sent.unwrap().signed_payload }).to_string()
        })
        .collect();
    let found: BTreeSet<String> = requests
        .iter()
        .map(|request| String::from_utf8(request.body.clone()).unwrap())
        .collect();
    assert_eq!(found, bodies);
    for request in &requests {
        assert!(convinces(request, &secret("z").into()), "over what is sent");
        assert_eq!(request.headers["content-type"], "application/json");
        assert_eq!(request.headers["x-attesto-tenant-id"], tenant.id.as_str());
        assert!(request.headers["x-attesto-event-id"].starts_with("evt_"));
    }
    // It can be delivered again; an event of Attesto's own cannot be sent there.
    let shell = world.shell();
    let event: String = sqlx::query_scalar("select id from webhook_events where external_id = $1")
        .bind(&arrived)
        .fetch_one(world.database().pool())
        .await
        .unwrap();
    let again = shell.rows(&["webhook", "redeliver", &event, "--callback", "2"]);
    assert_eq!(again[0]["deliveries"][0]["callback"], 2);
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    assert_eq!(raw.requests()[2].body, {
        let first = requests
            .iter()
            .find(|request| request.headers["x-attesto-event-id"] == event);
        first.unwrap().body.clone()
    });
    let own: String =
        sqlx::query_scalar("select id from webhook_events where external_id = 'state:1'")
            .fetch_one(world.database().pool())
            .await
            .unwrap();
    let refused = shell.run(&["webhook", "redeliver", &own, "--callback", "2"]);
    assert_eq!(refused.exit, 1, "{refused:?}");
    assert!(
        refused.complained.contains("relays only what a store sent"),
        "{refused:?}"
    );
    shop.world.end().await;
}

/// Also if a delivery to it is there, whatever made it.
#[tokio::test]
async fn a_raw_callback_is_never_sent_an_event() {
    let world = quiet_world().await;
    let tenant = world.stranger().await.id;
    let raw = Receiver::answering(OK).await;
    let all = CallbackFilter::default();
    add(&world, &tenant, &raw.url(), CallbackKind::Raw, all).await;
    let shell = world.shell().set("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true");
    let ping = ["webhook", "ping", tenant.as_str()];
    let pinged = shell.run_async(&ping, "").await;
    assert_eq!(pinged.rows()[0]["status"], 200);
    let body: Value = serde_json::from_slice(&raw.requests()[0].body).unwrap();
    assert!(
        body["message"].is_string() && body.get("event").is_none(),
        "{body}"
    );
    let null = serde_json::value::to_raw_value(&Value::Null).unwrap();
    let own = NewEvent {
        platform_event: "attesto.purchase_state".to_owned(),
        raw: null,
        ..test_event(&tenant, "state:1")
    };
    let record = EventRecorder::new(world.database(), &world.clock, |_| {});
    assert!(!record.record_event(&own).await.unwrap().enqueued);
    execute(
        &world,
        "insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url)
         select tenant_lane(event.tenant_id), 'del_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E', event.id, event.tenant_id, callback_url
         from webhook_events event join webhook_configs using (tenant_id)",
    )
    .await;
    let mut dispatcher = dispatcher_on(&world, world.database());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    let row: (String, String) =
        sqlx::query_as("select last_outcome, last_error from webhook_deliveries")
            .fetch_one(world.database().pool())
            .await
            .unwrap();
    let error = "the callback relays what stores send, and no store sent this event";
    assert_eq!(row, ("blocked".to_owned(), error.to_owned()));
    assert_eq!(raw.requests().len(), 1);
    world.end().await;
}

#[tokio::test]
async fn what_no_store_sent_is_not_relayed() {
    let world = quiet_world().await;
    for (source, external_id, platform_event, expected) in [
        (
            "apple",
            "00000000-0000-4000-8000-000000000001",
            "apple.did_renew",
            true,
        ),
        ("apple", "state:evt_1", "attesto.purchase_state", false),
        ("google", "136969346945", "google.voided", true),
        ("google", "voided:00", "google.voided", false),
        (
            "google",
            "acknowledge_due:00",
            "attesto.acknowledge_due",
            false,
        ),
    ] {
        let found: bool = sqlx::query_scalar("select is_store_message($1, $2, $3)")
            .bind(source)
            .bind(external_id)
            .bind(platform_event)
            .fetch_one(world.database().pool())
            .await
            .unwrap();
        assert_eq!(found, expected, "{external_id} {platform_event}");
    }
    world.end().await;
}

/// Without a callback, by command and by request, to those that had it.
#[tokio::test]
async fn an_event_is_delivered_again_to_those_that_had_it_or_to_one() {
    let world = quiet_world().await;
    let tenant = world.stranger().await;
    let id = &tenant.id;
    let shell = world.shell();
    for _ in 0..2 {
        add_for_all(&world, id, URL).await;
    }
    events(&world, id, &["1"]).await;
    let only_products = CallbackFilter {
        events: words(&["product.*"]),
        ..CallbackFilter::default()
    };
    add_for_all(&world, id, URL).await;
    add(&world, id, URL, CallbackKind::Events, only_products).await;
    let event: String = sqlx::query_scalar("select id from webhook_events")
        .fetch_one(world.database().pool())
        .await
        .unwrap();
    let callbacks = |answer: &Value| -> Vec<i64> {
        let deliveries = answer["deliveries"].as_array().unwrap();
        let numbers = deliveries.iter().map(|each| each["callback"].as_i64());
        numbers.map(Option::unwrap).collect()
    };
    let dry = shell.rows(&["webhook", "redeliver", &event, "--dry-run"]);
    assert_eq!(dry[0]["deliveries"], 2);
    let again = shell.rows(&["webhook", "redeliver", &event]).remove(0);
    assert_eq!(callbacks(&again), [1, 2]);
    assert_eq!(again["deliveryId"], again["deliveries"][0]["deliveryId"]);
    let path = format!("/v1/events/{event}/redeliver");
    let post = async |body: Option<Value>| {
        let key = Some(tenant.key.expose());
        world.ask("POST", &path, key, body.as_ref()).await
    };
    let answer = post(None).await;
    assert_eq!((answer.status, callbacks(&answer.body)), (200, vec![1, 2]));
    let answer = post(Some(json!({}))).await;
    assert_eq!((answer.status, callbacks(&answer.body)), (200, vec![1, 2]));
    // To one that did not have it, because it came later.
    let answer = post(Some(json!({ "callback": 3 }))).await;
    assert_eq!((answer.status, callbacks(&answer.body)), (200, vec![3]));
    for (callback, words) in [
        (json!(4), "is not sent such events"),
        (json!(9), "not the number of an active callback"),
        (json!(0), "whole number"),
        (json!("2"), "whole number"),
    ] {
        let answer = post(Some(json!({ "callback": callback }))).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (400, &json!("INVALID_REQUEST"))
        );
        assert!(
            answer.body["message"].as_str().unwrap().contains(words),
            "{}",
            answer.body
        );
    }
    let refused = shell.run(&["webhook", "redeliver", &event, "--callback", "4"]);
    assert_eq!(refused.exit, 1);
    assert!(refused.complained.contains("callback 4"), "{refused:?}");

    world.end().await;
}

#[tokio::test]
async fn a_redelivery_that_succeeds_settles_what_waits_for_the_same_callback() {
    let world = quiet_world().await;
    let id = &world.stranger().await.id;
    let shell = world.shell();
    for _ in 0..2 {
        add_for_all(&world, id, URL).await;
    }
    events(&world, id, &["1"]).await;
    let later = "update webhook_deliveries set next_attempt_at = attesto_now() + interval '1 h'";
    execute(&world, later).await;
    let event: String = sqlx::query_scalar("select id from webhook_events")
        .fetch_one(world.database().pool())
        .await
        .unwrap();
    shell.rows(&["webhook", "redeliver", &event]);
    let mut dispatcher = Dispatcher::new(
        world.database(),
        &world.clock,
        |job: Arc<DeliveryJob>| async move {
            match job.callback.column() {
                1 => AttemptOutcome::NotAttempted {
                    class: OutcomeClass::Dns,
                    detail: String::new(),
                },
                _ => AttemptOutcome::Delivered {
                    code: 200,
                    excerpt: None,
                },
            }
        },
        WorkNotifier::default(),
        DispatcherSettings {
            concurrency: 8,
            poll_interval: Duration::from_hours(1),
            max_retries: 5,
            shutdown_timeout: Duration::ZERO,
        },
    );
    dispatcher.run_until_idle().await.unwrap();
    let standing: Vec<(i16, String)> =
        sqlx::query_as("select distinct callback, status from webhook_deliveries order by 1, 2")
            .fetch_all(world.database().pool())
            .await
            .unwrap();
    let expected = [(1, "pending"), (2, "delivered")];
    assert_eq!(
        standing,
        expected.map(|(number, status)| (number, status.to_owned()))
    );
    // The event is pending at one callback.
    let list = |more: &[&str]| {
        let words = ["webhook", "list-events", id.as_str()];
        shell.rows(&[&words[..], more].concat())
    };
    assert_eq!(list(&[])[0]["status"], "pending");
    assert_eq!(list(&["--callback", "2"])[0]["status"], "delivered");
    assert_eq!(list(&["--callback", "4"]), Vec::<Value>::new());
    let rows = shell.rows(&["webhook", "list-deliveries", id.as_str(), "--callback", "2"]);
    assert_eq!((rows.len(), &rows[0]["callback"]), (2, &json!(2)));
    world.end().await;
}

#[tokio::test]
async fn many_events_are_delivered_again_to_the_callbacks_at_which_they_failed() {
    let world = quiet_world().await;
    let tenant = world.stranger().await.id;
    for _ in 0..2 {
        add_for_all(&world, &tenant, URL).await;
    }
    let names: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    events(&world, &tenant, &names).await;
    execute(
        &world,
        "update webhook_deliveries set status = case when callback = 2 then 'failed' else 'delivered' end",
    )
    .await;
    add_for_all(&world, &tenant, URL).await;
    let shell = world.shell();
    let redeliver = |more: &[&str]| {
        let words = ["webhook", "redeliver", "--tenant", tenant.as_str()];
        shell.rows(&[&words[..], more].concat()).remove(0)
    };
    assert_eq!(
        redeliver(&["--status", "failed", "--callback", "1"])["count"],
        0
    );
    assert_eq!(
        redeliver(&["--callback", "3", "--dry-run"])["count"],
        50,
        "its history"
    );
    assert_eq!(redeliver(&["--status", "failed"])["count"], 50);
    assert_eq!(redeliver(&["--callback", "3"])["count"], 50);
    let redeliveries = attesto::deliveries::Redeliveries::new(world.database(), &world.clock);
    let mut enqueued = 0;
    for _ in 0..20 {
        world.pass(Duration::from_secs(1)).await;
        enqueued += redeliveries.enqueue_next_batch().await.unwrap().enqueued;
    }
    assert_eq!(enqueued, 100);
    let found: Vec<(i16, i64, i64)> = sqlx::query_as(
        "select callback, count(*), count(distinct event_id) from webhook_deliveries
         where requested_by is not null group by 1 order by 1",
    )
    .fetch_all(world.database().pool())
    .await
    .unwrap();
    assert_eq!(found, [(2, 50, 50), (3, 50, 50)]);
    world.end().await;
}

#[tokio::test]
async fn doctor_and_tail_name_the_callback_where_there_are_several() {
    let world = quiet_world().await;
    let (one, two) = (world.stranger().await.id, world.stranger().await.id);
    add_for_all(&world, &one, URL).await;
    for _ in 0..2 {
        add_for_all(&world, &two, URL).await;
    }
    execute(
        &world,
        "insert into webhook_health (lane, tenant_id, callback, callback_url, state, failing_since)
         select tenant_lane(tenant_id), tenant_id, callback, callback_url, 'paused', now() from webhook_configs",
    )
    .await;
    let ran = world.shell().run(&["doctor", "--output", "json"]);
    for name in [
        format!("{one}, "),
        format!("{two} callback 1"),
        format!("{two} callback 2"),
    ] {
        let listed = format!("{}.", name.trim_end_matches(", "));
        assert!(
            ran.said.contains(&name) || ran.said.contains(&listed),
            "{name}: {ran:?}"
        );
    }
    // Each one that fails is named, also where it answers, and is not closed: all but one that fails since a moment.
    execute(
        &world,
        "update webhook_health set state = 'active', failing_since = now() - interval '20 minutes'
         where callback = 2",
    )
    .await;
    execute(
        &world,
        "insert into webhook_health (lane, tenant_id, callback, callback_url, state, failing_since)
         select tenant_lane(tenant_id), tenant_id, callback, 'https://93.184.216.34/before', 'active', now() - interval '1 day' from webhook_configs",
    )
    .await;
    let callbacks = |ran: &Ran| {
        let tree = ran.json();
        let groups = tree["checks"].as_array().unwrap();
        let mut checks = groups
            .iter()
            .flat_map(|group| group["checks"].as_array().unwrap());
        let found = checks.find(|check| check["name"] == "deliveries.callbacks");
        found.expect("the check")["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let doctor = || callbacks(&world.shell().run(&["doctor", "--output", "json"]));
    let named = doctor();
    assert!(named.starts_with("3 callbacks"), "{named}");
    assert!(named.contains(&format!("{two} callback 2")), "{named}");
    execute(
        &world,
        "update webhook_health set failing_since = now() where callback = 2",
    )
    .await;
    let named = doctor();
    assert!(named.starts_with("2 callbacks"), "{named}");
    events(&world, &two, &["1"]).await;
    execute(
        &world,
        "update webhook_deliveries set attempt_count = 1, last_outcome = 'http_5xx', last_attempt_at = now()",
    )
    .await;
    let mut watcher = attesto::tail::TailWatcher::new(two);
    let lines = watcher.poll_lines(world.database()).await.unwrap();
    let mut callbacks: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::to_value(line).unwrap())
        .filter(|line| line["kind"] == "delivery")
        .map(|line| line["callback"].clone())
        .collect();
    callbacks.sort_by_key(Value::as_i64);
    assert_eq!(callbacks, [1, 2]);
    world.end().await;
}

/// Two sealed values of one tenant are in one table.
#[tokio::test]
async fn the_secrets_of_all_callbacks_are_sealed_with_a_new_key() {
    let fresh = fresh_database().await;
    let (database, tenant) = (&fresh.database, fresh.create_tenant().await);
    let old_key = format!("1:{}", STANDARD.encode([7; 32]));
    let new_key = format!("2:{}", STANDARD.encode([8; 32]));
    let keyring = |text: &str| Keyring::new(MasterKey::parse(text, None).unwrap(), Vec::new());
    let old = keyring(&old_key).unwrap();
    for letter in ["a", "b"] {
        let new = NewEndpoint {
            callback_url: URL,
            kind: CallbackKind::Events,
            filter: CallbackFilter::default(),
            secret: Some(&secret(letter)),
            is_active: true,
        };
        add_endpoint(database, &old, &tenant, &new).await.unwrap();
    }
    let shell = fresh
        .shell()
        .set("ATTESTO_ENCRYPTION_KEY", &new_key)
        .set("ATTESTO_ENCRYPTION_KEYS_RETIRED", &old_key);
    let rotated = shell.rows(&["encryption", "rotate"]).pop().unwrap();
    assert_eq!(rotated["resealed"], 2);
    let only_new = keyring(&new_key).unwrap();
    let endpoints = load_endpoints(database, &only_new, std::slice::from_ref(&tenant));
    let endpoints = endpoints.await.unwrap();
    let secret_of = |number| {
        let callback = CallbackNumber::new(number).unwrap();
        let endpoint = &endpoints[&(tenant.clone(), callback)];
        endpoint.as_ref().unwrap().secrets.newest.clone()
    };
    assert_eq!((secret_of(1), secret_of(2)), (secret("a"), secret("b")));
}
