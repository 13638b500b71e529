//! The job `backfill`, which fetches what did not arrive: after a downtime, after a restore, and once a day.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use attesto::simulator::Fault;
use attesto::simulator::state::apple::{SimulatedEnvironment, TransactionChange};
use attesto::simulator::state::apple_notifications::NewNotification;
use attesto::stores::apple::account::EnvironmentChoice;
use serde_json::{Value, json};

use crate::apple_backfill::{NOWHERE, buy, lose, post_newest, post_to, stored};
use crate::apple_notifications::Shop;
use crate::delivery_hold::dispatcher_on;
use crate::metrics::value;
use crate::webhook_end_to_end::{secret, set_callback};
use crate::world::attesto::{APP, APP_APPLE_ID, World};
use crate::world::receiver::Receiver;
use crate::world::wait::wait_until;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// The job's report after some time, as a process that serves runs it.
async fn pass_and_run(world: &World, time: Duration) -> Value {
    world.pass(time).await;
    world.run_job("backfill").await
}

/// What the job did: histories, recovered, failed.
fn did(report: &Value) -> (i64, i64, i64) {
    let apple = &report["apple"];
    let number = |name: &str| apple[name].as_i64().unwrap();
    (number("histories"), number("recovered"), number("failed"))
}

/// Everything that happened in two days, while nothing of Attesto ran.
async fn change_purchases(shop: &Shop, purchases: &[String], random: &mut fastrand::Rng) {
    for _ in 0..48 {
        shop.world.pass(HOUR).await;
        for _ in 0..3 {
            let id = &purchases[random.usize(..purchases.len())];
            let change = match random.u8(..6) {
                0 => TransactionChange::Cancel {},
                1 => TransactionChange::Resume {},
                2 => TransactionChange::Renew {},
                3 => TransactionChange::Grace { days: None },
                4 => TransactionChange::Expire { intent: None },
                _ => TransactionChange::Refund {
                    reason: 0,
                    percentage: None,
                },
            };
            let count = shop.apple().list_notifications().len();
            let is_changed = shop.apple().change_transaction(id, &change).is_ok();
            if is_changed && shop.apple().list_notifications().len() > count {
                post_newest(&shop.world).await;
            }
        }
        if random.u8(..4) == 0 {
            buy(&shop.world, SimulatedEnvironment::Sandbox);
            post_newest(&shop.world).await;
        }
    }
}

#[tokio::test]
async fn every_change_of_two_days_without_attesto_is_known_and_delivered_exactly_once() {
    let shop = Shop::open_with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
    let (world, tenant) = (&shop.world, &shop.tenant.id);
    let receiver = Receiver::answering(OK).await;
    let (database, url) = (world.database(), receiver.url());
    set_callback(database, world.keyring(), tenant, &url, &secret("s")).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    // A process that serves, until it is stopped.
    let process = world.replica().await;
    let path = format!("http://{}/v1/webhooks/apple/{tenant}", process.address());
    post_to(world, &path);
    let mut purchases = Vec::new();
    for _ in 0..20 {
        purchases.push(buy(world, SimulatedEnvironment::Production));
        post_newest(world).await;
    }
    assert_eq!(did(&world.run_job("backfill").await), (2, 0, 0));
    assert!(process.stop(Duration::from_secs(5)).await);
    let arrived = stored(world).await.len();
    assert_eq!(arrived, 20);
    change_purchases(&shop, &purchases, &mut random).await;
    assert_eq!(stored(world).await.len(), arrived, "nothing arrived");

    // Started again; its jobs run before anything else happens.
    let process = world.replica().await;
    let path = format!("http://{}/v1/webhooks/apple/{tenant}", process.address());
    post_to(world, &path);
    let report = pass_and_run(world, MINUTE * 6).await;
    assert_eq!(report["afterDowntime"], true);
    let sent = shop.apple().list_notifications();
    let lost = i64::try_from(sent.len() - arrived).unwrap();
    assert!(lost > 30, "{lost}");
    assert_eq!(did(&report), (2, lost, 0));
    // Apple posts again what it could not deliver, and the job runs as ever.
    for notification in &sent[arrived..] {
        let id = &notification.notification_uuid;
        let pushed = shop.apple().push_notification(id).await.unwrap();
        assert_eq!((pushed.status, &pushed.body["isNew"]), (200, &json!(false)));
    }
    for _ in 0..3 {
        assert_eq!(did(&pass_and_run(world, DAY).await).1, 0);
    }
    process.stop(Duration::from_secs(5)).await;

    let mut dispatcher = dispatcher_on(world, database);
    dispatcher.run_until_idle().await.unwrap();
    let mut delivered: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for request in receiver.requests() {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let id = body["externalId"].as_str().unwrap().to_owned();
        delivered.entry(id).or_default().push(body);
    }
    let expected: BTreeSet<_> = sent
        .iter()
        .map(|one| one.notification_uuid.clone())
        .collect();
    assert_eq!(delivered.keys().cloned().collect::<BTreeSet<_>>(), expected);
    for (index, notification) in sent.iter().enumerate() {
        let bodies = &delivered[&notification.notification_uuid];
        assert_eq!(bodies.len(), 1, "{notification:?}");
        let is_recovered = bodies[0].get("recovered") == Some(&json!(true));
        assert_eq!(is_recovered, index >= arrived, "{notification:?}");
    }
}

#[tokio::test]
async fn a_history_is_read_once_a_day_and_at_once_after_a_downtime() {
    let world = World::new().await;
    world.tenant().await;
    assert_eq!(did(&world.run_job("backfill").await), (2, 0, 0));
    for _ in 0..3 {
        let report = pass_and_run(&world, MINUTE * 14).await;
        assert_eq!(report["afterDowntime"], false);
        assert_eq!(did(&report), (0, 0, 0), "not due yet");
    }
    lose(&world, 1).await;
    // Longer than runs are apart.
    let report = pass_and_run(&world, MINUTE * 16).await;
    assert_eq!(report["afterDowntime"], true);
    assert_eq!(did(&report), (2, 1, 0));
    // Without a downtime, and accepted by another server.
    let elsewhere = Receiver::answering(OK).await;
    post_to(&world, &elsewhere.url());
    buy(&world, SimulatedEnvironment::Production);
    post_newest(&world).await;
    let mut recovered = 0;
    for _ in 0..112 {
        recovered += did(&pass_and_run(&world, MINUTE * 14).await).1;
    }
    assert_eq!(recovered, 1, "within 26 hours");
}

#[tokio::test]
async fn a_question_that_apple_could_not_deliver_is_known_long_before_its_deadline() {
    let world = World::new().await;
    world.tenant().await;
    assert_eq!(did(&world.run_job("backfill").await), (2, 0, 0));
    post_to(&world, NOWHERE);
    let asked_about = buy(&world, SimulatedEnvironment::Production);
    let question = NewNotification {
        transaction_id: Some(asked_about),
        ..NewNotification::new("CONSUMPTION_REQUEST", None)
    };
    let apple = world.simulator.apple();
    apple.publish_notification(APP, &question).unwrap();
    post_newest(&world).await;
    let (mut readings, mut calls, mut recovered) = (0, 0, 0);
    for _ in 0..17 {
        let report = pass_and_run(&world, MINUTE * 14).await;
        readings += did(&report).0;
        calls += report["apple"]["calls"].as_i64().unwrap();
        recovered += did(&report).1;
    }
    assert_eq!(recovered, 1, "within four hours, of the twelve that it has");
    assert_eq!(calls, readings, "nothing but what Apple could not deliver");
}

#[tokio::test]
async fn a_reading_after_a_downtime_that_fails_is_made_up_for_as_a_whole() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    assert_eq!(did(&world.run_job("backfill").await), (2, 0, 0));
    let elsewhere = Receiver::answering(OK).await;
    post_to(&world, &elsewhere.url());
    buy(&world, SimulatedEnvironment::Production);
    post_newest(&world).await;
    // The key cannot be opened at first, and then Apple does not answer.
    let swap_key = async |key: &[u8]| {
        let stored: Vec<u8> = sqlx::query_scalar(
            "with before as (select private_key_enc from apple_credentials where tenant_id = $1)
            update apple_credentials set private_key_enc = $2 where tenant_id = $1
            returning (select private_key_enc from before)",
        )
        .bind(tenant.id.as_str())
        .bind(key)
        .fetch_one(world.database().pool())
        .await
        .unwrap();
        stored
    };
    let sealed = swap_key(&[1]).await;
    assert_eq!(did(&pass_and_run(&world, HOUR).await).2, 2);
    swap_key(&sealed).await;
    let away = Fault::at_place("apple").status(503).times(0);
    world.simulator.add_fault(away).unwrap();
    let mut failed = 0;
    for _ in 0..2 {
        failed += did(&pass_and_run(&world, MINUTE * 14).await).2;
    }
    assert!(failed > 0);
    world.simulator.clear_faults();
    let mut recovered = 0;
    for _ in 0..3 {
        recovered += did(&pass_and_run(&world, MINUTE * 14).await).1;
    }
    assert_eq!(recovered, 1);
}

#[tokio::test]
async fn what_a_restored_database_has_lost_is_fetched_again() {
    let shop = Shop::open().await;
    let world = &shop.world;
    shop.report_here(true);
    buy(world, SimulatedEnvironment::Production);
    post_newest(world).await;
    assert_eq!(did(&world.run_job("backfill").await), (2, 0, 0));
    // The backup was made here. What came later is gone, and so are the runs of jobs.
    world.pass(HOUR * 5).await;
    buy(world, SimulatedEnvironment::Production);
    let lost = post_newest(world).await;
    for statement in [
        "delete from webhook_events where external_id = $1",
        "select $1::text",
    ] {
        sqlx::query(statement)
            .bind(&lost)
            .execute(world.database().pool())
            .await
            .unwrap();
    }
    let report = pass_and_run(world, MINUTE * 6).await;
    assert_eq!(
        (&report["afterDowntime"], did(&report)),
        (&json!(true), (2, 1, 0))
    );
    assert!(stored(world).await.iter().any(|(id, _)| *id == lost));
}

#[tokio::test]
async fn a_long_history_is_read_in_several_runs_from_where_each_has_ended() {
    let world = World::with(&[("RETENTION_EVENTS_DAYS", "0")]).await;
    world.tenant().await;
    assert_eq!(did(&world.run_job("backfill").await), (2, 0, 0));
    let elsewhere = Receiver::answering(OK).await;
    post_to(&world, &elsewhere.url());
    for _ in 0..5 {
        world.pass(DAY * 30).await;
        buy(&world, SimulatedEnvironment::Production);
        post_newest(&world).await;
    }
    // One query for failures, and one for each day: as many as a run may send. The sandbox has 30 days.
    let first = pass_and_run(&world, MINUTE).await;
    assert_eq!(did(&first), (2, 3, 0));
    assert_eq!(first["apple"]["calls"], 100 + 1 + 30);
    let second = pass_and_run(&world, MINUTE * 5).await;
    assert_eq!(did(&second), (1, 2, 0));
    // From a day before the first reading until now.
    assert_eq!(second["apple"]["calls"], 1 + 152 - 100);
    assert_eq!(did(&pass_and_run(&world, MINUTE).await), (0, 0, 0));
    assert_eq!(stored(&world).await.len(), 5);
}

#[tokio::test]
async fn a_history_that_cannot_be_read_rests_and_the_others_are_read() {
    let world = World::new().await;
    let (one, other) = (world.tenant().await, world.tenant().await);
    let limit = Fault::at_place("apple/production")
        .status(429)
        .retry_after(1800);
    world.simulator.add_fault(limit).unwrap();
    let report = pass_and_run(&world, HOUR).await;
    assert_eq!(did(&report), (4, 0, 1));
    assert_eq!(did(&pass_and_run(&world, MINUTE * 14).await), (0, 0, 0));
    assert_eq!(did(&pass_and_run(&world, MINUTE * 14).await), (0, 0, 0));
    let report = pass_and_run(&world, MINUTE * 3).await;
    assert_eq!(did(&report), (1, 0, 0), "as long as Apple asked for");

    let away = Fault::at_place("apple").status(503).times(0);
    world.simulator.add_fault(away).unwrap();
    let report = pass_and_run(&world, MINUTE * 16).await;
    assert_eq!(did(&report), (4, 0, 4));
    world.simulator.clear_faults();
    lose(&world, 1).await;
    let mut recovered = 0;
    for _ in 0..2 {
        recovered += did(&pass_and_run(&world, MINUTE * 14).await).1;
    }
    assert_eq!(recovered, 2, "both tenants have the app");
    // Credentials that cannot be opened, and a tenant that is not active.
    sqlx::query("update apple_credentials set private_key_enc = '\\x01' where tenant_id = $1")
        .bind(one.id.as_str())
        .execute(world.database().pool())
        .await
        .unwrap();
    sqlx::query("update tenants set is_active = false where id = $1")
        .bind(other.id.as_str())
        .execute(world.database().pool())
        .await
        .unwrap();
    let report = pass_and_run(&world, DAY).await;
    assert_eq!(did(&report), (0, 0, 2));
}

#[tokio::test]
async fn a_history_that_failed_is_read_at_once_when_the_credentials_are_changed() {
    let shop = Shop::open().await;
    let world = &shop.world;
    let refused = Fault::at_place("apple").status(401).times(0);
    world.simulator.add_fault(refused).unwrap();
    assert_eq!(did(&pass_and_run(world, MINUTE * 6).await), (2, 0, 2));
    world.simulator.clear_faults();
    assert_eq!(did(&pass_and_run(world, MINUTE).await), (0, 0, 0));
    lose(world, 1).await;
    world
        .set_apple(&shop.tenant, EnvironmentChoice::Auto, Some(APP_APPLE_ID))
        .await;
    assert_eq!(did(&pass_and_run(world, MINUTE * 6).await), (2, 1, 0));
}

#[tokio::test]
async fn a_notification_that_may_still_be_under_way_is_left_to_apple() {
    let world = World::new().await;
    world.tenant().await;
    lose(&world, 1).await;
    assert_eq!(did(&pass_and_run(&world, MINUTE * 4).await), (2, 0, 0));
    let report = pass_and_run(&world, MINUTE * 16).await;
    assert_eq!(did(&report), (2, 1, 0));
}

#[tokio::test]
async fn what_was_pruned_is_not_fetched_again_by_a_process_that_would_have_kept_it() {
    let shop = Shop::open_with(&[("RETENTION_EVENTS_DAYS", "0")]).await;
    let world = &shop.world;
    shop.report_here(true);
    buy(world, SimulatedEnvironment::Production);
    post_newest(world).await;
    world.pass(DAY * 2).await;
    let elsewhere = world.shell().set("RETENTION_EVENTS_DAYS", "1");
    elsewhere.rows(&["prune"]);
    assert!(stored(world).await.is_empty());
    assert_eq!(did(&pass_and_run(world, MINUTE).await), (2, 0, 0));
    assert!(stored(world).await.is_empty());
}

#[tokio::test]
async fn metrics_tell_when_histories_were_read_and_what_was_recovered() {
    let world = World::with(&[("METRICS_ADDRESS", "127.0.0.1:0")]).await;
    world.tenant().await;
    let age = "attesto_history_read_age_seconds{store=\"apple\"}";
    let recovered = "attesto_recovered_notifications{store=\"apple\"}";
    assert!(value(&world.metrics().await, age) < 1.0);
    lose(&world, 3).await;
    pass_and_run(&world, MINUTE * 16).await;
    let away = Fault::at_place("apple").status(503).times(0);
    world.simulator.add_fault(away).unwrap();
    pass_and_run(&world, DAY * 2).await;
    let page = world.metrics().await;
    assert!((value(&page, age) - 172_800.0).abs() < 1.0, "{page}");
    assert!((value(&page, recovered) - 3.0).abs() < 0.1);
}

#[tokio::test]
async fn a_store_that_takes_long_to_read_does_not_hold_up_the_other_one() {
    // The second interval is how often the job looks whether something is due at the other store.
    let settings = [
        ("UPSTREAM_TIMEOUT_SECONDS", "60"),
        ("JOBS_BACKFILL_INTERVAL_SECONDS", "1"),
    ];
    let shop = Shop::open_with(&settings).await;
    let world = &shop.world;
    let slow = Fault::at_place("google/play").delay(MINUTE).times(0);
    world.simulator.add_fault(slow).unwrap();
    lose(world, 1).await;
    world.pass(MINUTE * 6).await;
    let following = async {
        let is_stored = async |count: usize| stored(world).await.len() == count;
        wait_until("Apple's history is read", async || is_stored(1).await).await;
        // What Apple could not deliver is due again after three hours. Google is read all the while.
        lose(world, 1).await;
        world.pass(HOUR * 4).await;
        wait_until("Apple's history is read again", async || is_stored(2).await).await;
    };
    tokio::select! {
        report = world.run_job("backfill") => panic!("Google is read for longer: {report}"),
        () = following => {}
    }
}
