//! Events whose state could not be told when they were stored, and the events `purchase.state` that tell it later.

use std::time::Duration;

use attesto::simulator::Fault;
use attesto::stores::shared::state_completer::{CompletionRound, StateCompleter};
use serde_json::{Value, json};

use crate::apple_notifications::{Shop as AppleShop, altered};
use crate::apple_state::receive_undecided;
use crate::delivery_hold::dispatcher_on;
use crate::google_state::{Shop as GoogleShop, USER, coins, users, yearly};
use crate::metrics::{count, value};
use crate::webhook_end_to_end::{secret, set_callback};
use crate::world::attesto::{APP, APP_APPLE_ID, Tenant, World};
use crate::world::event::event_body;
use crate::world::receiver::Receiver;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Within this time after a store answers again the state must have followed.
const MINUTE: Duration = Duration::from_mins(1);

/// One round after some time: how many events were due, and how many states were told.
async fn pass_and_tick(
    world: &World,
    completer: &mut StateCompleter,
    time: Duration,
) -> (usize, usize) {
    world.pass(time).await;
    let CompletionRound { claimed, completed } = completer.tick().await.unwrap();
    (claimed, completed)
}

/// What callbacks are sent, in the order of the subjects' numbers.
async fn bodies(world: &World) -> Vec<Value> {
    let statement = "select id from webhook_events order by sequence, id";
    let events: Vec<String> = sqlx::query_scalar(statement)
        .fetch_all(world.database().pool())
        .await
        .unwrap();
    let mut bodies = Vec::new();
    for event in events {
        let body = event_body(world.database(), &event).await;
        bodies.push(serde_json::from_str(&body).unwrap());
    }
    bodies
}

async fn count_waiting(world: &World) -> i64 {
    sqlx::query_scalar("select count(*) from unresolved_states")
        .fetch_one(world.database().pool())
        .await
        .unwrap()
}

fn silence(world: &World, place: &str) {
    let fault = Fault::at_place(place).status(503).times(0);
    world.simulator.add_fault(fault).unwrap();
}

#[tokio::test]
async fn the_state_follows_within_a_minute_when_apple_answers_again() {
    let shop = AppleShop::open_with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
    let (world, tenant) = (&shop.world, &shop.tenant.id);
    let receiver = Receiver::answering(OK).await;
    let (url, secret) = (receiver.url(), secret("s"));
    set_callback(world.database(), world.keyring(), tenant, &url, &secret).await;
    silence(world, "apple");
    let event = receive_undecided(&shop, 1).await;
    assert_eq!(event["stateError"], "store_unavailable");
    assert_eq!(event["sequence"], 1);
    let (mut one, mut other) = (world.state_completer(), world.state_completer());
    assert_eq!(pass_and_tick(world, &mut one, MINUTE).await, (1, 0));
    assert_eq!(bodies(world).await.len(), 1);

    world.simulator.clear_faults();
    world.pass(MINUTE).await;
    let (first, second) = tokio::join!(one.tick(), other.tick());
    assert_eq!(first.unwrap().completed + second.unwrap().completed, 1);
    for completer in [&mut one, &mut other] {
        assert_eq!(pass_and_tick(world, completer, MINUTE).await, (0, 0));
    }
    let events = bodies(world).await;
    assert_eq!(events.len(), 2);
    let told = &events[1];
    let state = &told["state"];
    assert_eq!(told["event"], "purchase.state");
    assert_eq!(told["reason"], Value::Null);
    assert_eq!(told["platformEvent"], "attesto.purchase_state");
    assert_eq!(told["sequence"], 2);
    assert_eq!(
        told["externalId"],
        format!("state:{}", event["eventId"].as_str().unwrap())
    );
    // The notification was about an earlier period, which only Apple's answer says.
    assert_eq!(
        told["subject"],
        altered(&event["subject"], &[("current", json!(false))])
    );
    assert_eq!(told["environment"], "production");
    for field in ["tenantId", "source", "appUserId", "appUserIdSource"] {
        assert_eq!(told[field], event[field], "{field}");
    }
    assert_eq!(
        (&state["status"], &state["entitled"], &state["basis"]),
        (&json!("active"), &json!(true), &json!("store"))
    );
    assert_eq!(told["timestamp"], state["asOf"]);
    assert_eq!(told["stateError"], Value::Null);
    assert_eq!(
        told["data"],
        json!({ "eventId": event["eventId"], "event": event["event"], "stateError": "store_unavailable" })
    );
    assert_eq!(told["raw"], Value::Null);
    let mut dispatcher = dispatcher_on(world, world.database());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 2);
    let delivered: Vec<Value> = receiver
        .requests()
        .iter()
        .map(|request| serde_json::from_slice(&request.body).unwrap())
        .collect();
    assert!(delivered.contains(told), "{delivered:?}");
    shop.world.end().await;
}

#[tokio::test]
async fn a_newer_event_with_a_state_makes_one_unnecessary() {
    let shop = AppleShop::open().await;
    let world = &shop.world;
    silence(world, "apple");
    let event = receive_undecided(&shop, 1).await;
    let id = event["subject"]["key"].as_str().unwrap();
    world.clock.advance(MINUTE);
    let renewal = json!({
        "originalTransactionId": id, "autoRenewStatus": 1, "environment": "Production",
        "renewalDate": world.clock.now().plus(Duration::from_hours(24)).as_millis(),
        "signedDate": world.clock.now().as_millis(),
    });
    let newest = shop.apple().list_transactions().pop().unwrap();
    let signed = shop.apple().sign_transaction(&newest.transaction_id);
    let data = json!({
        "appAppleId": APP_APPLE_ID, "bundleId": APP, "environment": "Production", "status": 1,
        "signedTransactionInfo": signed.unwrap(), "signedRenewalInfo": shop.sign(&renewal),
    });
    let sent = shop.notification("DID_RENEW", 2, "data", &data);
    assert_eq!(shop.stored(&sent).await.0["sequence"], 2);
    world.simulator.clear_faults();
    world.simulator.clear_requests();
    let mut completer = world.state_completer();
    assert_eq!(pass_and_tick(world, &mut completer, MINUTE).await, (1, 0));
    assert_eq!(world.simulator.count_requests_at("apple"), 0);
    assert_eq!(
        (bodies(world).await.len(), count_waiting(world).await),
        (2, 0)
    );
    shop.world.end().await;
}

#[tokio::test]
async fn what_google_did_not_tell_follows_whole() {
    let shop = GoogleShop::open().await;
    let token = shop.subscribe(users());
    silence(&shop.world, "google/play");
    let event = shop.notify(2, &token).await;
    assert_eq!(event["stateError"], "store_unavailable");
    assert_eq!(
        (&event["appUserId"], &event["environment"]),
        (&Value::Null, &Value::Null)
    );
    shop.world.simulator.clear_faults();
    let mut completer = shop.world.state_completer();
    let round = pass_and_tick(&shop.world, &mut completer, MINUTE).await;
    assert_eq!(round, (1, 1));
    let told = bodies(&shop.world).await.pop().unwrap();
    assert_eq!(told["event"], "purchase.state");
    assert_eq!(told["sequence"], 2);
    assert_eq!(told["state"]["entitled"], true);
    assert_eq!(told["appUserId"], USER);
    assert_eq!(told["environment"], "production");
    assert_eq!(told["subject"]["key"], token);
    assert_eq!(told["subject"]["productId"], "pro_monthly");
    shop.world.end().await;
}

#[tokio::test]
async fn g01_the_new_purchases_own_message_completes_the_event_about_the_old_one() {
    let shop = GoogleShop::open().await;
    let (old, new) = shop.change_plan(users(), yearly());
    let event = shop.notify(13, &old).await;
    assert_eq!(event["stateError"], "replaced_by_unknown");
    let mut completer = shop.world.state_completer();
    // Google never says of the old purchase which one took its place.
    for _ in 0..8 {
        let round = pass_and_tick(&shop.world, &mut completer, Duration::from_mins(15)).await;
        assert_eq!(round, (1, 0));
    }
    let round = pass_and_tick(&shop.world, &mut completer, MINUTE).await;
    assert_eq!(round, (0, 0), "it is not asked every half a minute");
    let upgraded = shop.notify(4, &new).await;
    assert_eq!(upgraded["sequence"], 2);
    let round = pass_and_tick(&shop.world, &mut completer, Duration::ZERO).await;
    assert_eq!(round, (1, 1), "at once");
    let told = bodies(&shop.world).await.pop().unwrap();
    assert_eq!(told["sequence"], 3);
    assert_eq!(told["event"], "purchase.state");
    assert_eq!(told["data"]["stateError"], "replaced_by_unknown");
    let subject = json!({
        "key": old, "productId": "pro_monthly", "type": "subscription", "current": false, "supersededBy": new,
    });
    assert_eq!(told["subject"], subject);
    assert_eq!(told["state"]["entitled"], true);
    assert_eq!(told["state"]["productId"], "pro_yearly");
    assert_eq!(count_waiting(&shop.world).await, 0);
    shop.world.end().await;
}

#[tokio::test]
async fn a_verification_of_the_new_purchase_completes_the_event_about_the_old_one() {
    let shop = GoogleShop::open().await;
    let (old, new) = shop.change_plan(users(), yearly());
    shop.notify(13, &old).await;
    let mut completer = shop.world.state_completer();
    for _ in 0..8 {
        pass_and_tick(&shop.world, &mut completer, Duration::from_mins(15)).await;
    }
    shop.verify_token(&new).await;
    let round = pass_and_tick(&shop.world, &mut completer, Duration::ZERO).await;
    assert_eq!(round, (1, 1));
    let told = bodies(&shop.world).await.pop().unwrap();
    assert_eq!(told["sequence"], 2);
    assert_eq!(told["subject"]["supersededBy"], new);
    assert_eq!(told["state"]["entitled"], true);
    shop.world.end().await;
}

#[tokio::test]
async fn another_process_takes_over_when_one_ends_in_the_middle() {
    let shop = GoogleShop::open().await;
    let token = shop.subscribe(users());
    silence(&shop.world, "google/play");
    shop.notify(2, &token).await;
    shop.world.simulator.clear_faults();
    let never = Fault::at_place("google/play").delay(Duration::from_hours(1));
    shop.world.simulator.add_fault(never).unwrap();
    shop.world.simulator.clear_requests();
    shop.world.pass(MINUTE).await;
    let mut killed = shop.world.state_completer();
    {
        let mut round = Box::pin(killed.tick());
        while shop.count_calls_at("google/play") == 0 {
            tokio::select! {
                ended = &mut round => panic!("Google does not answer: {ended:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    let mut other = shop.world.state_completer();
    assert_eq!(count_waiting(&shop.world).await, 1);
    let round = pass_and_tick(&shop.world, &mut other, Duration::from_secs(30)).await;
    assert_eq!(round, (1, 1));
    assert_eq!(bodies(&shop.world).await.len(), 2);
    shop.world.end().await;
}

#[tokio::test]
async fn a_purchase_that_google_does_not_know_is_not_asked_about_for_long() {
    let shop = GoogleShop::open().await;
    let token = shop.play().buy_product(coins()).unwrap().purchase_token;
    let unknown = Fault::at_place("google/play").reason("purchaseTokenNotFound");
    let simulator = &shop.world.simulator;
    simulator.add_fault(unknown.times(0)).unwrap();
    let fields =
        json!({ "version": "1.0", "notificationType": 1, "purchaseToken": token, "sku": "coins" });
    let event = shop.push("oneTimeProductNotification", fields).await;
    assert_eq!(event["stateError"], "store_unavailable");
    let mut completer = shop.world.state_completer();
    let half = Duration::from_secs(30);
    let round = pass_and_tick(&shop.world, &mut completer, half).await;
    assert_eq!(round, (1, 0));
    assert_eq!(count_waiting(&shop.world).await, 1, "it may be too fresh");
    let round = pass_and_tick(&shop.world, &mut completer, MINUTE).await;
    assert_eq!(round, (1, 0));
    assert_eq!(
        (
            bodies(&shop.world).await.len(),
            count_waiting(&shop.world).await
        ),
        (1, 0)
    );
    shop.world.end().await;
}

#[tokio::test]
async fn after_three_days_no_state_is_asked_for() {
    let shop = GoogleShop::open().await;
    let (old, new) = shop.change_plan(users(), yearly());
    shop.notify(13, &old).await;
    let mut completer = shop.world.state_completer();
    let almost = Duration::from_mins(72 * 60 - 1);
    let round = pass_and_tick(&shop.world, &mut completer, almost).await;
    assert_eq!(round, (1, 0));
    shop.world.pass(MINUTE).await;
    shop.verify_token(&new).await;
    let round = pass_and_tick(&shop.world, &mut completer, Duration::ZERO).await;
    assert_eq!(round, (0, 0));
    assert_eq!(count_waiting(&shop.world).await, 0);
    shop.world.end().await;
}

#[tokio::test]
async fn an_outage_brings_no_storm_of_questions() {
    let shop = GoogleShop::open().await;
    silence(&shop.world, "google/play");
    for _ in 0..10 {
        let token = shop.play().buy_product(coins()).unwrap().purchase_token;
        let fields = json!({ "version": "1.0", "notificationType": 1, "purchaseToken": token, "sku": "coins" });
        shop.push("oneTimeProductNotification", fields).await;
    }
    let mut completer = shop.world.state_completer();
    let round = pass_and_tick(&shop.world, &mut completer, MINUTE).await;
    assert_eq!(round, (4, 0));
    let round = pass_and_tick(&shop.world, &mut completer, Duration::ZERO).await;
    assert_eq!(round, (0, 0), "the account rests");
    shop.world.simulator.clear_faults();
    let mut told = 0;
    for _ in 0..3 {
        let round = pass_and_tick(&shop.world, &mut completer, MINUTE / 3).await;
        told += round.1;
    }
    assert_eq!(told, 10);
    assert_eq!(bodies(&shop.world).await.len(), 20);
    shop.world.end().await;
}

#[tokio::test]
async fn an_inactive_tenants_events_wait() {
    let shop = GoogleShop::open().await;
    let token = shop.subscribe(users());
    silence(&shop.world, "google/play");
    shop.notify(2, &token).await;
    shop.world.simulator.clear_faults();
    let Tenant { id, .. } = &shop.tenant;
    let set_active = async |active: bool| {
        sqlx::query("update tenants set is_active = $2 where id = $1")
            .bind(id.as_str())
            .bind(active)
            .execute(shop.world.database().pool())
            .await
            .unwrap();
    };
    let mut completer = shop.world.state_completer();
    set_active(false).await;
    let round = pass_and_tick(&shop.world, &mut completer, MINUTE).await;
    assert_eq!(round, (0, 0));
    set_active(true).await;
    let round = pass_and_tick(&shop.world, &mut completer, Duration::ZERO).await;
    assert_eq!(round, (1, 1));
    shop.world.end().await;
}

#[tokio::test]
async fn what_waits_is_measured_and_goes_with_its_event() {
    let shop = GoogleShop::open_with(&[("METRICS_ADDRESS", "127.0.0.1:0")]).await;
    let token = shop.subscribe(users());
    silence(&shop.world, "google/play");
    shop.notify(2, &token).await;
    shop.world.pass(Duration::from_hours(2)).await;
    let page = shop.world.metrics().await;
    for (store, waiting) in [("apple", 0), ("google", 1)] {
        let series = format!("attesto_unresolved_states{{store=\"{store}\"}}");
        assert_eq!(count(&page, &series), waiting);
    }
    assert!(value(&page, "attesto_unresolved_states_oldest_seconds") >= 7200.0);
    let doctor = shop.world.shell().run(&["doctor", "--offline"]);
    assert!(doctor.said.contains("1 event waits"), "{}", doctor.said);
    // As retention does.
    sqlx::query("delete from webhook_events")
        .execute(shop.world.database().pool())
        .await
        .unwrap();
    assert_eq!(count_waiting(&shop.world).await, 0);
    shop.world.end().await;
}
