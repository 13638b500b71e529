//! Subscriptions of which Google should have told something: read again by the job `backfill` and by `attesto google backfill`.

use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::simulator::Fault;
use attesto::simulator::state::google::{GoneReason, SubscriptionChange};
use serde_json::{Map, Value, json};

use crate::google_state::{Shop, users};
use crate::world::attesto::World;
use crate::world::log::Warnings;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// Sells an acknowledged subscription of a month whose purchase was pushed, and the end of its period.
async fn sell(shop: &Shop) -> (String, Timestamp) {
    let token = shop.subscribe(users());
    change(shop, &token, &SubscriptionChange::Acknowledge {});
    let event = shop.notify(4, &token).await;
    let end = event["state"]["entitledUntil"].as_str().unwrap();
    (token, Timestamp::parse(end).unwrap())
}

/// Play changes the subscription; what it publishes is not pushed.
fn change(shop: &Shop, token: &str, change: &SubscriptionChange) {
    shop.play().change_subscription(token, change).unwrap();
}

/// From now on Play says that the subscription is in this state, and tells it by no message.
fn say(shop: &Shop, token: &str, state: &str) {
    let fields = json!({ "subscriptionState": state });
    let fields = fields.as_object().unwrap().clone();
    let item_fields = Map::new();
    let set = SubscriptionChange::Set {
        fields,
        item_fields,
    };
    change(shop, token, &set);
}

/// What the tenant is told, in the order in which it was stored.
async fn events(shop: &Shop) -> Vec<Value> {
    let key = Some(shop.tenant.key.expose());
    let answer = shop
        .world
        .ask("GET", "/v1/events?limit=100", key, None)
        .await;
    answer.body["events"].as_array().unwrap().clone()
}

/// Lets `time` pass as a service does that runs: the job has run a moment ago.
async fn pass(shop: &Shop, time: Duration) {
    shop.world.pass(time.saturating_sub(MINUTE)).await;
    run_job(shop).await;
    shop.world.pass(MINUTE).await;
}

/// What the job did: subscriptions read, recovered, gone. `None` after a downtime.
async fn run_job(shop: &Shop) -> Option<(i64, i64, i64)> {
    let report = shop.world.run_job("backfill").await["googleSubscriptions"].clone();
    let number = |name: &str| report[name].as_i64();
    Some((number("read")?, number("recovered")?, number("gone")?))
}

#[tokio::test]
async fn a_renewal_whose_message_was_lost_is_told_once_and_a_late_push_agrees() {
    let shop = Shop::open().await;
    let log = Warnings::listen();
    let (token, end) = sell(&shop).await;
    let until_end = end.duration_since(shop.world.clock.now());
    pass(&shop, until_end).await;
    change(&shop, &token, &SubscriptionChange::Renew {});
    let lost = shop.play().published_messages().pop().unwrap();
    assert_eq!(run_job(&shop).await, Some((0, 0, 0)), "it may be under way");
    pass(&shop, HOUR).await;
    assert_eq!(run_job(&shop).await, Some((1, 1, 0)));
    let told = events(&shop).await;
    assert_eq!(told.len(), 2, "{told:?}");
    let event = &told[1];
    assert_eq!(event["event"], "purchase.state");
    assert_eq!(event["platformEvent"], "attesto.purchase_state");
    assert_eq!(event["recovered"], true);
    assert_eq!(event["sequence"], 2);
    assert_eq!(event["subject"]["key"], *token);
    assert_eq!(event["appUserId"], told[0]["appUserId"]);
    assert_eq!(event["data"]["purchaseToken"], *token);
    assert_eq!(event["data"]["expectedBy"], json!(end));
    assert_eq!(
        event["raw"]["kind"],
        "androidpublisher#subscriptionPurchaseV2"
    );
    let state = &event["state"];
    assert_eq!(
        (&state["status"], &state["entitled"]),
        (&json!("active"), &json!(true))
    );
    let renewed = Timestamp::parse(state["entitledUntil"].as_str().unwrap()).unwrap();
    assert!(renewed > end, "{state}");
    assert_eq!(log.of("google_states_recovered").len(), 1);
    // Again there is nothing to tell: not at once, and not over the days.
    for _ in 0..3 {
        assert_eq!(run_job(&shop).await, Some((0, 0, 0)));
        pass(&shop, DAY).await;
    }
    assert_eq!(events(&shop).await.len(), 2);
    // The message comes after all: it is a renewal, with the state that is known.
    let late = shop.play().push_message(&lost.message_id).await.unwrap();
    assert_eq!((late.status, &late.body["isNew"]), (200, &json!(true)));
    let told = events(&shop).await;
    assert_eq!(
        (told.len(), &told[2]["event"]),
        (3, &json!("subscription.renewed"))
    );
    for name in ["status", "entitled", "entitledUntil", "renewsAt"] {
        assert_eq!(told[2]["state"][name], state[name], "{name}");
    }
    assert_eq!(run_job(&shop).await, Some((0, 0, 0)));
    shop.world.end().await;
}

#[tokio::test]
async fn a_subscription_that_was_told_or_has_not_changed_becomes_no_event() {
    let shop = Shop::open().await;
    let (told, end) = sell(&shop).await;
    let (paused, _) = sell(&shop).await;
    shop.world
        .pass(end.duration_since(shop.world.clock.now()))
        .await;
    // One is renewed, the other one paused: both messages arrive, and nothing more.
    change(&shop, &told, &SubscriptionChange::Renew {});
    shop.notify(2, &told).await;
    let pause = SubscriptionChange::Pause { days: Some(10) };
    change(&shop, &paused, &pause);
    let event = shop.notify(10, &paused).await;
    assert_eq!(event["state"]["status"], "paused");
    pass(&shop, DAY).await;
    assert_eq!(run_job(&shop).await, Some((0, 0, 0)));
    assert_eq!(events(&shop).await.len(), 4);
    // Nothing can happen any more to one that has ended.
    change(&shop, &told, &SubscriptionChange::Expire {});
    shop.notify(13, &told).await;
    // The pause is over, and goes on for Google.
    pass(&shop, DAY * 10).await;
    assert_eq!(run_job(&shop).await, Some((1, 0, 0)));
    assert_eq!(run_job(&shop).await, Some((0, 0, 0)), "it is put off");
    assert_eq!(events(&shop).await.len(), 5);
    // Then it has ended, although no message told it.
    change(&shop, &paused, &SubscriptionChange::Resume {});
    pass(&shop, DAY).await;
    assert_eq!(run_job(&shop).await, Some((1, 1, 0)));
    let last = events(&shop).await.pop().unwrap();
    assert_eq!(
        (&last["event"], &last["state"]["status"]),
        (&json!("purchase.state"), &json!("active"))
    );
    pass(&shop, DAY * 10).await;
    assert_eq!(run_job(&shop).await, Some((0, 0, 0)));
    shop.world.end().await;
}

#[tokio::test]
async fn an_end_is_told_when_google_says_it_and_a_token_that_is_gone_is_given_up() {
    let shop = Shop::open().await;
    let (ended, end) = sell(&shop).await;
    let (gone, _) = sell(&shop).await;
    run_job(&shop).await;
    shop.world
        .pass(end.duration_since(shop.world.clock.now()))
        .await;
    let how = GoneReason::default();
    change(&shop, &gone, &SubscriptionChange::Gone { how });
    say(&shop, &ended, "SUBSCRIPTION_STATE_ACTIVE");
    pass(&shop, HOUR * 2).await;
    // Of the first Google says that it is active, with an expiry that has passed.
    assert_eq!(run_job(&shop).await, Some((2, 0, 1)));
    assert_eq!(
        run_job(&shop).await,
        Some((0, 0, 0)),
        "the first is put off"
    );
    assert_eq!(events(&shop).await.len(), 2);
    say(&shop, &ended, "SUBSCRIPTION_STATE_EXPIRED");
    pass(&shop, HOUR * 3).await;
    assert_eq!(run_job(&shop).await, Some((1, 1, 0)));
    let last = events(&shop).await.pop().unwrap();
    assert_eq!(last["subject"]["key"], *ended);
    assert_eq!(last["state"]["entitled"], false);
    // The tokens are not kept longer than they are needed.
    let kept: i64 = sqlx::query_scalar("select count(recheck_key) from subjects")
        .fetch_one(shop.world.database().pool())
        .await
        .unwrap();
    assert_eq!(kept, 0);
    pass(&shop, DAY * 2).await;
    assert_eq!(run_job(&shop).await, Some((0, 0, 0)));
    shop.world.end().await;
}

#[tokio::test]
async fn a_token_that_google_does_not_know_for_a_while_is_asked_about_again_and_not_for_ever() {
    let shop = Shop::open().await;
    let (token, end) = sell(&shop).await;
    let (lost, _) = sell(&shop).await;
    run_job(&shop).await;
    let until_end = end.duration_since(shop.world.clock.now());
    shop.world.pass(until_end).await;
    change(&shop, &token, &SubscriptionChange::Renew {});
    for unknown in [&token, &lost] {
        let fault = Fault::at_place("google/play").for_id(unknown);
        let fault = fault.reason("purchaseTokenNotFound").times(0);
        shop.world.simulator.add_fault(fault).unwrap();
    }
    pass(&shop, HOUR * 2).await;
    assert_eq!(run_job(&shop).await, Some((2, 0, 0)), "neither is given up");
    assert_eq!(run_job(&shop).await, Some((0, 0, 0)), "both are put off");
    // Google knows one of them again.
    shop.world.simulator.clear_faults();
    let fault = Fault::at_place("google/play").for_id(&lost);
    let fault = fault.reason("purchaseTokenNotFound").times(0);
    shop.world.simulator.add_fault(fault).unwrap();
    pass(&shop, HOUR * 3).await;
    assert_eq!(run_job(&shop).await, Some((2, 1, 0)));
    let renewed = events(&shop).await.pop().unwrap();
    assert_eq!(renewed["subject"]["key"], *token);
    assert_eq!(renewed["state"]["entitled"], true);
    // The other one is read again and again, and given up in the end.
    let (mut asked, mut gone) = (0, 0);
    for _ in 0..22 {
        pass(&shop, DAY * 3).await;
        if let Some((read, _, now_gone)) = run_job(&shop).await {
            asked += read;
            gone += now_gone;
        }
    }
    assert_eq!(gone, 1);
    assert!((15..=24).contains(&asked), "{asked}");
    shop.world.end().await;
}

#[tokio::test]
async fn an_outage_of_google_loses_nothing_and_a_downtime_leaves_the_first_word_to_pub_sub() {
    let shop = Shop::open().await;
    let log = Warnings::listen();
    let (token, end) = sell(&shop).await;
    run_job(&shop).await;
    shop.world
        .pass(end.duration_since(shop.world.clock.now()))
        .await;
    change(&shop, &token, &SubscriptionChange::Renew {});
    shop.world.pass(HOUR * 2).await;
    assert_eq!(run_job(&shop).await, None, "the first run after a downtime");
    let away = Fault::at_place("google/play").status(503).times(0);
    shop.world.simulator.add_fault(away).unwrap();
    shop.world.pass(MINUTE * 5).await;
    assert_eq!(run_job(&shop).await, Some((1, 0, 0)));
    assert_eq!(log.of("google_state_not_read").len(), 1);
    shop.world.simulator.clear_faults();
    shop.world.pass(MINUTE * 5).await;
    assert_eq!(run_job(&shop).await, Some((1, 1, 0)));
    assert_eq!(events(&shop).await.len(), 2);
    shop.world.end().await;
}

#[tokio::test]
async fn subscriptions_that_cannot_be_read_hold_up_no_other() {
    let shop = Shop::open().await;
    let log = Warnings::listen();
    let mut sold = Vec::new();
    for _ in 0..3 {
        sold.push(sell(&shop).await);
    }
    let until_end = sold[2].1.duration_since(shop.world.clock.now());
    pass(&shop, until_end).await;
    for (token, _) in &sold {
        change(&shop, token, &SubscriptionChange::Renew {});
    }
    for (token, _) in &sold[..2] {
        let fault = Fault::at_place("google/play").for_id(token);
        shop.world
            .simulator
            .add_fault(fault.status(503).times(0))
            .unwrap();
    }
    pass(&shop, HOUR + MINUTE).await;
    assert_eq!(run_job(&shop).await, Some((3, 1, 0)));
    assert_eq!(log.of("google_state_not_read").len(), 2);
    shop.world.simulator.clear_faults();
    pass(&shop, MINUTE * 5).await;
    run_job(&shop).await;
    let told = events(&shop).await;
    assert_eq!(
        told.iter()
            .filter(|event| event["recovered"] == true)
            .count(),
        3
    );
    shop.world.end().await;
}

#[tokio::test]
async fn the_command_counts_recovers_and_keeps_to_the_tenant() {
    let world = World::today().await;
    let tenant = world.tenant().await;
    world.set_google_by_command(&tenant);
    let shop = Shop { world, tenant };
    let (world, id) = (&shop.world, shop.tenant.id.as_str());
    sell(&shop).await;
    // As if it had been told otherwise, and something should have happened to it.
    let overdue = "update subjects set changes_by = now() - interval '2 hours', told_state_hash = sha256('1')";
    sqlx::query(overdue)
        .execute(world.database().pool())
        .await
        .unwrap();
    let stranger = world.tenant().await;
    let run = async |more: &[&str]| {
        let words = [&["google", "backfill"], more].concat();
        let ran = world.shell_with_stores().run_async(&words, "").await;
        assert_eq!(ran.exit, 0, "{ran:?}");
        ran.rows().remove(0)["subscriptions"].clone()
    };
    let other = run(&["--tenant", stranger.id.as_str()]).await;
    assert_eq!(
        other,
        json!({ "read": 0, "recovered": 0, "gone": 0, "failed": 0 })
    );
    let one = json!({ "read": 1, "recovered": 1, "gone": 0, "failed": 0 });
    for _ in 0..2 {
        assert_eq!(run(&["--tenant", id, "--dry-run"]).await, one);
    }
    assert_eq!(events(&shop).await.len(), 1);
    assert_eq!(run(&["--tenant", id]).await, one);
    assert_eq!(events(&shop).await.len(), 2);
    let none = run(&["--tenant", id]).await;
    assert_eq!(none["read"], 0);
}
