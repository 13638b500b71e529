//! Notifications that did not arrive, read from Apple's history: `attesto apple backfill`, and what is behind it.

use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::simulator::state::apple::{
    NewTransaction, SimulatedApp, SimulatedEnvironment, TransactionChange,
};
use attesto::simulator::state::apple_notifications::NotificationUrls;
use attesto::simulator::{Fault, JwsForgery};
use attesto::stores::apple::AppleBackfill;
use attesto::stores::apple::account::{AppleEnvironment, EnvironmentChoice};
use attesto::stores::apple::backfill::{
    BackfillError, BackfillMode, BackfillReport, HistoryPeriod, HistoryReader,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::apple_notifications::Shop;
use crate::delivery_hold::dispatcher_on;
use crate::webhook_end_to_end::{secret, set_callback};
use crate::world::attesto::{APP, APP_APPLE_ID, Tenant, World};
use crate::world::event::event_body;
use crate::world::receiver::Receiver;
use crate::world::shell::Ran;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const DAY: Duration = Duration::from_hours(24);
/// Nothing listens there.
pub(crate) const NOWHERE: &str = "http://127.0.0.1:1/";

/// From now on the simulated App Store posts to this address when the test asks for it.
pub(crate) fn post_to(world: &World, url: &str) {
    let app = SimulatedApp {
        app_apple_id: APP_APPLE_ID.try_into().unwrap(),
        ..SimulatedApp::for_bundle_id(APP)
    };
    let apple = world.simulator.apple();
    apple.set_app(app).unwrap();
    let to = NotificationUrls {
        manual: true,
        ..NotificationUrls::for_both_environments(url)
    };
    apple.set_notification_urls(APP, to).unwrap();
}

pub(crate) fn buy(world: &World, environment: SimulatedEnvironment) -> String {
    let new = NewTransaction {
        environment,
        ..NewTransaction::default()
    };
    let bought = world.simulator.apple().create_transaction(new).unwrap();
    bought.transaction_id
}

/// Posts the newest notification, and returns its id.
pub(crate) async fn post_newest(world: &World) -> String {
    let apple = world.simulator.apple();
    let newest = apple.list_notifications().pop().unwrap();
    apple
        .push_notification(&newest.notification_uuid)
        .await
        .unwrap();
    newest.notification_uuid
}

/// As many notifications of purchases of production, which Apple cannot deliver.
pub(crate) async fn lose(world: &World, count: usize) -> Vec<String> {
    post_to(world, NOWHERE);
    let mut lost = Vec::new();
    for _ in 0..count {
        world.clock.advance(Duration::from_secs(1));
        buy(world, SimulatedEnvironment::Production);
        lost.push(post_newest(world).await);
    }
    lost
}

async fn open(
    backfill: &AppleBackfill,
    world: &World,
    tenant: &Tenant,
    since: Option<Timestamp>,
) -> HistoryReader {
    let credentials = backfill.get_credentials(&tenant.id).await.unwrap();
    let environment = AppleEnvironment::Production;
    let now = world.clock.now();
    let kept_since = world.settings.retention.events.map(|kept| now.minus(kept));
    let period = HistoryPeriod::new(since, environment, kept_since, now);
    backfill.open_history(
        &tenant.id,
        &credentials,
        environment,
        period,
        BackfillMode::Store,
    )
}

async fn read_to_end(
    reader: &mut HistoryReader,
    world: &World,
) -> Result<BackfillReport, BackfillError> {
    let stop = CancellationToken::new();
    reader.read_to_end(&world.clock, &stop, |_| {}).await?;
    assert!(reader.is_complete());
    Ok(reader.report().clone())
}

/// Reads the history of production of the last ten days.
pub(crate) async fn backfill(world: &World, tenant: &Tenant) -> BackfillReport {
    let since = world.clock.now().minus(DAY * 10);
    let mut reader = open(&world.apple_backfill(), world, tenant, Some(since)).await;
    read_to_end(&mut reader, world).await.unwrap()
}

/// Read, known, recovered, refused.
fn counts(report: &BackfillReport) -> (u64, u64, u64, u64) {
    (report.read, report.known, report.recovered, report.refused)
}

/// The stored events by the id of their notification, with the body that callbacks get.
pub(crate) async fn stored(world: &World) -> Vec<(String, Value)> {
    let statement = "select id, external_id from webhook_events order by received_at, id";
    let rows: Vec<(String, String)> = sqlx::query_as(statement)
        .fetch_all(world.database().pool())
        .await
        .unwrap();
    let mut events = Vec::new();
    for (id, external_id) in rows {
        let body = event_body(world.database(), &id).await;
        events.push((external_id, serde_json::from_str(&body).unwrap()));
    }
    events
}

#[tokio::test]
async fn what_apple_could_not_deliver_is_stored_and_delivered_once_and_says_so() {
    let shop = Shop::open_with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    let receiver = Receiver::answering(OK).await;
    let (database, url) = (world.database(), receiver.url());
    set_callback(database, world.keyring(), &tenant.id, &url, &secret("s")).await;
    // One arrives, three do not.
    shop.report_here(true);
    let first = buy(world, SimulatedEnvironment::Production);
    let arrived = post_newest(world).await;
    let mut lost = lose(world, 1).await;
    for change in [TransactionChange::Renew {}, TransactionChange::Cancel {}] {
        world.clock.advance(DAY);
        shop.apple().change_transaction(&first, &change).unwrap();
        lost.push(post_newest(world).await);
    }
    assert_eq!(stored(world).await.len(), 1);

    assert_eq!(counts(&backfill(world, tenant).await), (4, 1, 3, 0));
    let events = stored(world).await;
    assert_eq!(events.len(), 4);
    for (id, body) in &events {
        let keys: Vec<&str> = body
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        if *id == arrived {
            assert_eq!(keys.last(), Some(&"raw"), "as ever");
        } else {
            assert!(lost.contains(id));
            assert_eq!(body["recovered"], true);
            assert_eq!(keys[keys.len() - 2..], ["raw", "recovered"]);
        }
        // What Apple would have posted.
        let sent = shop.apple().list_notifications().into_iter();
        let sent = sent.into_iter().find(|sent| sent.notification_uuid == *id);
        assert_eq!(
            body["raw"],
            json!({ "signedPayload": sent.unwrap().signed_payload })
        );
        assert_eq!(body["state"]["entitled"], true, "{body}");
    }

    // Read again, at the same time in two processes, and posted again by Apple: nothing new.
    let (one, other) = tokio::join!(backfill(world, tenant), backfill(world, tenant));
    assert_eq!((counts(&one), counts(&other)), ((4, 4, 0, 0), (4, 4, 0, 0)));
    shop.report_here(true);
    for id in &lost {
        let pushed = shop.apple().push_notification(id).await.unwrap();
        assert_eq!((pushed.status, &pushed.body["isNew"]), (200, &json!(false)));
    }
    let mut dispatcher = dispatcher_on(world, database);
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 4);
    let mut delivered: Vec<String> = receiver
        .requests()
        .iter()
        .map(|request| serde_json::from_slice::<Value>(&request.body).unwrap())
        .map(|body| body["externalId"].as_str().unwrap().to_owned())
        .collect();
    delivered.sort();
    let mut expected: Vec<String> = events.into_iter().map(|(id, _)| id).collect();
    expected.sort();
    assert_eq!(delivered, expected);
}

#[tokio::test]
async fn every_page_is_read_and_what_another_server_accepted_is_recovered_too() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let elsewhere = Receiver::answering(OK).await;
    lose(&world, 21).await;
    post_to(&world, &elsewhere.url());
    for _ in 0..24 {
        world.clock.advance(Duration::from_secs(1));
        buy(&world, SimulatedEnvironment::Production);
        post_newest(&world).await;
    }
    world.clock.advance(DAY);
    let (one, other) = tokio::join!(backfill(&world, &tenant), backfill(&world, &tenant));
    assert_eq!((one.read, other.read), (45, 45));
    assert_eq!(one.recovered + other.recovered, 45, "{one:?} {other:?}");
    assert_eq!(one.known + other.known, 45);
    // Two pages of failures; ten days, of which one has three pages.
    assert_eq!((one.calls, other.calls), (14, 14));
    assert_eq!(one.read_until, one.until);
    assert_eq!(stored(&world).await.len(), 45);
}

#[tokio::test]
async fn limits_are_waited_for_and_pages_that_are_gone_are_asked_for_again() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    lose(&world, 25).await;
    let production = || Fault::at_place("apple/production");
    let faults = [
        production().skip_calls(1).status(429).retry_after(1800),
        // The second page of the failures.
        production().skip_calls(1).error_code(4_000_017),
        production().skip_calls(2).error_code(4_000_014),
    ];
    for fault in faults {
        world.simulator.add_fault(fault).unwrap();
    }
    let before = world.clock.now();
    let report = backfill(&world, &tenant).await;
    assert_eq!(counts(&report), (25, 0, 25, 0));
    let waited = world.clock.now().duration_since(before);
    assert_eq!(
        waited,
        Duration::from_mins(30),
        "as long as Apple asked for"
    );
}

#[tokio::test]
async fn a_history_that_begins_later_than_documented_is_read_from_there() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    lose(&world, 1).await;
    let too_early = Fault::at_place("apple/production").error_code(4_000_012);
    world.simulator.add_fault(too_early.times(3)).unwrap();
    let report = backfill(&world, &tenant).await;
    assert_eq!(counts(&report), (1, 0, 1, 0));
    assert_eq!(report.since, report.until.minus(DAY * 7));
}

#[tokio::test]
async fn a_failure_loses_nothing_and_the_next_reading_goes_on() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    lose(&world, 25).await;
    let since = Some(world.clock.now().minus(DAY * 3));
    let mut reader = open(&world.apple_backfill(), &world, &tenant, since).await;
    // Each call is tried three times.
    let away = Fault::at_place("apple/production")
        .skip_calls(1)
        .status(503);
    world.simulator.add_fault(away.times(3)).unwrap();
    let failed = read_to_end(&mut reader, &world).await.unwrap_err();
    assert!(matches!(failed, BackfillError::Api(_)), "{failed:?}");
    assert_eq!(counts(reader.report()), (20, 0, 20, 0));
    assert_eq!(reader.report().read_until, reader.report().since);
    // The same reader, and a new one.
    let report = read_to_end(&mut reader, &world).await.unwrap();
    assert_eq!(counts(&report), (25, 0, 25, 0));
    assert_eq!(counts(&backfill(&world, &tenant).await), (25, 25, 0, 0));
    let refused = Fault::at_place("apple/production").status(401).times(0);
    world.simulator.add_fault(refused).unwrap();
    let mut reader = open(&world.apple_backfill(), &world, &tenant, since).await;
    let failed = read_to_end(&mut reader, &world).await.unwrap_err();
    assert!(failed.is_app_unknown(), "{failed:?}");
}

#[tokio::test]
async fn what_is_not_apples_or_not_of_the_app_is_refused_and_the_rest_is_stored() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    lose(&world, 1).await;
    let apple = world.simulator.apple();
    let genuine = apple.list_notifications().pop().unwrap();
    let id = genuine.original_transaction_id.unwrap();
    let forged = apple
        .forge_transaction(&id, JwsForgery::AlteredPayload)
        .unwrap();
    let of_another_app = apple.sign_payload(&crate::apple_notifications::object(json!({
        "notificationType": "TEST",
        "notificationUUID": "00000000-0000-4000-8000-000000000001",
        "signedDate": world.clock.now().as_millis(),
        "data": { "bundleId": "com.example.other", "environment": "Production" },
    })));
    let page = json!({
        "hasMore": false,
        "notificationHistory": [
            { "signedPayload": forged },
            { "signedPayload": of_another_app },
            { "sendAttempts": [] },
            { "signedPayload": genuine.signed_payload },
        ],
    });
    let page = Fault::at_place("apple/production").body(&page.to_string());
    world.simulator.add_fault(page).unwrap();
    let report = backfill(&world, &tenant).await;
    assert_eq!(counts(&report), (4, 0, 1, 3));
    assert_eq!(stored(&world).await.len(), 1);
    let named: Vec<_> = report
        .refusals
        .iter()
        .map(|refusal| (refusal.notification_uuid.as_deref(), &*refusal.reason))
        .collect();
    assert!(named.contains(&(
        Some("00000000-0000-4000-8000-000000000001"),
        "it is about another app"
    )));
    assert!(
        named.iter().any(|(_, why)| why.contains("signature")),
        "{named:?}"
    );
}

#[tokio::test]
async fn an_event_that_was_pruned_is_not_recovered() {
    let world = World::with(&[("RETENTION_EVENTS_DAYS", "2")]).await;
    let tenant = world.tenant().await;
    lose(&world, 1).await;
    assert_eq!(counts(&backfill(&world, &tenant).await), (1, 0, 1, 0));
    world.pass(DAY * 3).await;
    lose(&world, 1).await;
    // As the job removes it, whose clock is the database's.
    sqlx::query("delete from webhook_events")
        .execute(world.database().pool())
        .await
        .unwrap();
    assert_eq!(counts(&backfill(&world, &tenant).await), (1, 0, 1, 0));
}

#[tokio::test]
async fn what_is_recovered_does_not_use_up_the_budget_for_what_is_pushed() {
    let shop = Shop::open_with(&[("INTAKE_EVENTS_PER_MINUTE", "1")]).await;
    lose(&shop.world, 3).await;
    let report = backfill(&shop.world, &shop.tenant).await;
    assert_eq!(counts(&report), (3, 0, 3, 0));
    shop.report_here(true);
    buy(&shop.world, SimulatedEnvironment::Production);
    shop.push().await;
}

/// The command with the settings of the world's stores.
async fn run(world: &World, words: &[&str]) -> Ran {
    let words = [&["apple", "backfill"], words].concat();
    world.shell_with_stores().run_async(&words, "").await
}

#[tokio::test]
async fn the_command_reads_both_environments_of_every_tenant() {
    let world = World::today().await;
    let (one, other) = (world.tenant().await, world.tenant().await);
    world.stranger().await;
    post_to(&world, NOWHERE);
    buy(&world, SimulatedEnvironment::Production);
    post_newest(&world).await;
    buy(&world, SimulatedEnvironment::Sandbox);
    let sandbox = post_newest(&world).await;
    let none = run(&world, &["--dry-run"]).await.rows();
    assert_eq!(none.len(), 4);
    assert!(none.iter().all(|row| row["recovered"] == 1), "{none:?}");
    assert_eq!(stored(&world).await.len(), 0, "only counted");

    let rows = run(&world, &["--tenant", one.id.as_str(), "--since", "2d"])
        .await
        .rows();
    let [production, in_sandbox] = rows.as_slice() else {
        panic!("{rows:?}")
    };
    assert_eq!(
        *production,
        json!({
            "tenantId": one.id, "bundleId": APP, "environment": "production", "dryRun": false, "complete": true,
            "since": production["since"], "until": production["until"], "readUntil": production["until"],
            "calls": production["calls"], "read": 1, "known": 0, "recovered": 1, "refused": 0, "refusals": [],
            "error": null,
        })
    );
    assert_eq!(in_sandbox["environment"], "sandbox");
    assert_eq!(in_sandbox["recovered"], 1);
    let rows = run(&world, &["--since", "2020-01-01"]).await.rows();
    let found: Vec<_> = rows
        .iter()
        .map(|row| (&row["tenantId"], &row["known"], &row["recovered"]))
        .collect();
    let (one, other) = (json!(one.id), json!(other.id));
    let (old, new) = ((&json!(1), &json!(0)), (&json!(0), &json!(1)));
    assert_eq!(
        found,
        [
            (&one, old.0, old.1),
            (&one, old.0, old.1),
            (&other, new.0, new.1),
            (&other, new.0, new.1),
        ]
    );
    let text = run(&world, &["--output", "table"]).await;
    assert_eq!(text.exit, 0);
    assert!(
        text.said
            .contains("1 read, 1 already known, 0 recovered, 0 refused."),
        "{text:?}"
    );
    assert!(stored(&world).await.iter().any(|(id, _)| *id == sandbox));
}

#[tokio::test]
async fn the_command_says_what_it_could_not_read() {
    let world = World::today().await;
    let tenant = world.tenant().await;
    let stranger = world.stranger().await;
    let of = |tenant: &Tenant| tenant.id.to_string();
    let unknown = run(&world, &["--tenant", "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"]).await;
    assert_eq!((unknown.exit, &*unknown.said), (1, ""), "{unknown:?}");
    let none = run(&world, &["--tenant", &of(&stranger)]).await;
    assert_eq!((none.exit, &*none.said), (1, ""));
    assert!(none.complained.contains("no App Store credentials"));
    let wrong = run(&world, &["--since", "yesterday"]).await;
    assert_eq!(wrong.exit, 2, "{wrong:?}");

    // An app that was never released is not in production, which is no failure while the sandbox knows it.
    post_to(&world, NOWHERE);
    let unreleased = SimulatedApp {
        released: false,
        ..world.simulator.apple().get_app(APP)
    };
    world.simulator.apple().set_app(unreleased).unwrap();
    let ran = run(&world, &["--tenant", &of(&tenant)]).await;
    let rows = ran.rows();
    assert_eq!(
        (&rows[0]["complete"], &rows[1]["complete"]),
        (&json!(false), &json!(true))
    );
    assert!(
        rows[0]["error"]
            .as_str()
            .unwrap()
            .contains("never released")
    );
    world
        .set_apple(&tenant, EnvironmentChoice::Production, Some(APP_APPLE_ID))
        .await;
    let ran = run(&world, &["--tenant", &of(&tenant)]).await;
    assert_eq!((ran.exit, ran.lines().len()), (1, 1), "{ran:?}");
    world
        .set_apple(&tenant, EnvironmentChoice::Production, None)
        .await;
    let ran = run(&world, &["--tenant", &of(&tenant)]).await;
    assert_eq!((ran.exit, &*ran.said), (1, ""), "{ran:?}");
    assert!(ran.complained.contains("--app-apple-id"), "{ran:?}");
    let id = of(&tenant);
    let ran = world.shell().run(&["tenant", "deactivate", &id]);
    assert_eq!(ran.exit, 0, "{ran:?}");
    let ran = run(&world, &["--tenant", &id]).await;
    assert_eq!((ran.exit, &*ran.said), (1, ""));
    assert!(ran.complained.contains("deactivated"), "{ran:?}");
    assert!(run(&world, &[]).await.rows().is_empty());
}
