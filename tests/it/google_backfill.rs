//! Refunds whose notification did not arrive, read from Google's list: `attesto google backfill`, and the job `backfill`.

use std::time::Duration;

use attesto::simulator::Fault;
use attesto::simulator::state::google::{NewProduct, ProductChange, SubscriptionChange};
use serde_json::{Value, json};

use crate::google_state::{Shop, users};
use crate::world::attesto::{Tenant, World};
use crate::world::log::Warnings;

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// Sells and refunds a product; Play publishes a message, which is not pushed.
fn refund_product(shop: &Shop) -> String {
    let bought = shop.play().buy_product(NewProduct::default()).unwrap();
    let token = bought.purchase_token;
    let refund = ProductChange::Refund {};
    shop.play().change_product(&token, &refund).unwrap();
    token
}

fn buy_five(shop: &Shop) -> String {
    let five = NewProduct {
        quantity: Some(5),
        ..NewProduct::default()
    };
    shop.play().buy_product(five).unwrap().purchase_token
}

/// Refunds one of a quantity. The id of the message about it, which is not pushed.
fn refund_one(shop: &Shop, token: &str) -> String {
    let one = ProductChange::RefundQuantity { quantity: 1 };
    shop.play().change_product(token, &one).unwrap();
    shop.play().published_messages().pop().unwrap().message_id
}

fn refund_subscription(shop: &Shop) -> String {
    let token = shop.subscribe(users());
    let revoke = SubscriptionChange::Revoke {};
    shop.play().change_subscription(&token, &revoke).unwrap();
    token
}

/// What the callback is sent of refunds, in the order in which they were stored.
async fn refunds(world: &World, tenant: &Tenant) -> Vec<Value> {
    let key = Some(tenant.key.expose());
    let answer = world.ask("GET", "/v1/events?limit=100", key, None).await;
    let mut events = answer.body["events"].as_array().unwrap().clone();
    events.retain(|event| event["platformEvent"] == "google.voided");
    events
}

/// What the job did for Google: tenants, recovered, failed.
async fn run_job(world: &World) -> (i64, i64, i64) {
    let report = world.run_job("backfill").await;
    let number = |name: &str| report["google"][name].as_i64().unwrap();
    (number("tenants"), number("recovered"), number("failed"))
}

#[tokio::test]
async fn a_lost_refund_is_recovered_once_and_a_push_that_tells_it_later_is_a_repeat() {
    let shop = Shop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    let product = refund_product(&shop);
    let lost = shop.play().published_messages().pop().unwrap();
    let subscription = refund_subscription(&shop);
    let pushed = refund_product(&shop);
    shop.push_newest().await;
    world.pass(MINUTE * 4).await;
    assert_eq!(run_job(world).await, (1, 0, 0), "they may be under way");
    world.pass(MINUTE * 16).await;
    assert_eq!(run_job(world).await, (1, 2, 0));
    let found = refunds(world, tenant).await;
    assert_eq!(found.len(), 3);
    for (token, event, recovered) in [
        (&pushed, "product.refunded", Value::Null),
        (&product, "product.refunded", json!(true)),
        (&subscription, "subscription.refunded", json!(true)),
    ] {
        let told = found.iter().find(|it| it["subject"]["key"] == **token);
        let told = told.unwrap();
        assert_eq!(
            (&told["event"], &told["reason"]),
            (&json!(event), &json!("full"))
        );
        assert_eq!(told["recovered"], recovered);
        assert_eq!(told["state"]["entitled"], false, "{told}");
        let voided = &told["data"]["voidedPurchaseNotification"];
        assert_eq!(voided["purchaseToken"], **token);
        if recovered == true {
            assert_eq!(told["raw"]["kind"], "androidpublisher#voidedPurchase");
        }
    }
    // The push comes after all, and the job runs as ever.
    let late = shop.play().push_message(&lost.message_id).await.unwrap();
    assert_eq!((late.status, &late.body["isNew"]), (200, &json!(false)));
    for _ in 0..3 {
        world.pass(DAY).await;
        assert_eq!(run_job(world).await.1, 0);
    }
    assert_eq!(refunds(world, tenant).await.len(), 3);
}

#[tokio::test]
async fn a_refund_that_was_noted_and_not_stored_is_recovered() {
    let shop = Shop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    refund_product(&shop);
    shop.push_newest().await;
    // As a process leaves it that ends between the two.
    sqlx::query("delete from webhook_events where platform_event = 'google.voided'")
        .execute(world.database().pool())
        .await
        .unwrap();
    world.pass(MINUTE * 6).await;
    assert_eq!(run_job(world).await, (1, 1, 0));
    assert_eq!(refunds(world, tenant).await.len(), 1);
}

#[tokio::test]
async fn every_page_is_read_and_a_part_of_a_quantity_is_told_as_one() {
    let shop = Shop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    for _ in 0..25 {
        refund_product(&shop);
    }
    for _ in 0..3 {
        refund_subscription(&shop);
    }
    let several = buy_five(&shop);
    let some = ProductChange::RefundQuantity { quantity: 2 };
    shop.play().change_product(&several, &some).unwrap();
    world.pass(MINUTE * 6).await;
    assert_eq!(run_job(world).await, (1, 29, 0));
    let found = refunds(world, tenant).await;
    let partial = found
        .iter()
        .find(|it| it["subject"]["key"] == *several)
        .unwrap();
    assert_eq!(partial["reason"], "partial");
    assert_eq!(partial["state"]["entitled"], true);
    // A second part is pushed: it has an event of its own.
    shop.play().change_product(&several, &some).unwrap();
    let event = shop.push_newest().await;
    assert_eq!(event["reason"], "partial");
    assert_eq!(refunds(world, tenant).await.len(), 30);
}

#[tokio::test]
async fn parts_of_a_quantity_that_the_list_has_told_are_not_told_again_by_their_messages() {
    let shop = Shop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    let several = buy_five(&shop);
    let refund_one = || refund_one(&shop, &several);
    let push = async |message: &str| {
        let pushed = shop.play().push_message(message).await.unwrap();
        pushed.body["isNew"].as_bool().unwrap()
    };
    // The process ends between the note of the first part and its event; the second one does not arrive.
    let first = refund_one();
    assert!(push(&first).await);
    sqlx::query("delete from webhook_events where platform_event = 'google.voided'")
        .execute(world.database().pool())
        .await
        .unwrap();
    world.pass(MINUTE).await;
    let second = refund_one();
    world.pass(MINUTE * 6).await;
    assert_eq!(run_job(world).await, (1, 2, 0));
    for message in [&first, &second] {
        assert!(!push(message).await, "the list has told it");
    }
    world.pass(MINUTE * 6).await;
    let third = refund_one();
    assert!(push(&third).await, "it is a part of its own");
    assert!(!push(&third).await);
    world.pass(DAY).await;
    assert_eq!(run_job(world).await.1, 0);
    let found = refunds(world, tenant).await;
    let recovered: Vec<_> = found.iter().map(|it| it["recovered"] == true).collect();
    assert_eq!(recovered, [true, true, false]);
}

#[tokio::test]
async fn a_part_is_told_when_the_one_before_it_is_listed_no_more() {
    let shop = Shop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    // Of two purchases, the first part is pushed or listed, and the next one is lost after more than 30 days.
    let (pushed, listed) = (buy_five(&shop), buy_five(&shop));
    refund_one(&shop, &listed);
    refund_one(&shop, &pushed);
    shop.push_newest().await;
    world.pass(MINUTE * 6).await;
    assert_eq!(run_job(world).await, (1, 1, 0));
    world.pass(DAY * 31).await;
    assert_eq!(run_job(world).await.1, 0);
    let late = [&pushed, &listed].map(|token| refund_one(&shop, token));
    world.pass(DAY).await;
    assert_eq!(run_job(world).await.1, 2);
    assert_eq!(refunds(world, tenant).await.len(), 4);
    // Nothing of it is told again: not by the list, and not by the messages.
    for message in &late {
        let pushed = shop.play().push_message(message).await.unwrap();
        assert_eq!(pushed.body["isNew"], false);
    }
    world.pass(DAY).await;
    assert_eq!(run_job(world).await.1, 0);
    assert_eq!(refunds(world, tenant).await.len(), 4);
}

#[tokio::test]
async fn a_part_that_was_pushed_while_google_did_not_answer_is_told_once() {
    let shop = Shop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    let several = buy_five(&shop);
    let refund_one = || refund_one(&shop, &several);
    // How many are refunded is not known then.
    let fault = Fault::at_place("google/play").for_id(&several);
    world
        .simulator
        .add_fault(fault.reason("backendError").times(3))
        .unwrap();
    let first = refund_one();
    let pushed = shop.play().push_message(&first).await.unwrap();
    assert_eq!(pushed.body["isNew"], true);
    assert_eq!(
        refunds(world, tenant).await[0]["stateError"],
        "store_unavailable"
    );
    world.pass(MINUTE * 6).await;
    assert_eq!(run_job(world).await, (1, 0, 0));
    // The next part is lost, and the part before it is out of what is read then.
    world.pass(DAY * 3).await;
    run_job(world).await;
    refund_one();
    world.pass(DAY).await;
    assert_eq!(run_job(world).await.1, 1);
    world.pass(DAY).await;
    assert_eq!(run_job(world).await.1, 0);
    let found = refunds(world, tenant).await;
    let recovered: Vec<_> = found.iter().map(|it| it["recovered"] == true).collect();
    assert_eq!(recovered, [false, true]);
}

#[tokio::test]
async fn a_pending_purchase_that_is_canceled_is_no_refund() {
    let shop = Shop::open().await;
    let pending = NewProduct {
        pending: true,
        ..NewProduct::default()
    };
    let token = shop.play().buy_product(pending).unwrap().purchase_token;
    let cancel = ProductChange::Refund {};
    shop.play().change_product(&token, &cancel).unwrap();
    shop.world.pass(MINUTE * 6).await;
    assert_eq!(run_job(&shop.world).await, (1, 0, 0));
}

#[tokio::test]
async fn the_list_is_read_daily_and_at_once_after_a_downtime_and_again_after_a_failure() {
    let shop = Shop::open().await;
    let world = &shop.world;
    let log = Warnings::listen();
    assert_eq!(run_job(world).await, (1, 0, 0));
    world.pass(MINUTE * 14).await;
    assert_eq!(run_job(world).await, (0, 0, 0), "not due yet");
    refund_product(&shop);
    world.pass(MINUTE * 16).await;
    assert_eq!(run_job(world).await, (1, 1, 0), "after a downtime");
    assert_eq!(log.of("google_refunds_recovered").len(), 1);
    refund_product(&shop);
    let away = Fault::at_place("google/play").status(503).times(0);
    world.simulator.add_fault(away).unwrap();
    world.pass(MINUTE * 16).await;
    assert_eq!(run_job(world).await, (1, 0, 1));
    assert_eq!(log.of("google_refunds_not_read").len(), 1);
    world.simulator.clear_faults();
    world.pass(MINUTE * 16).await;
    assert_eq!(run_job(world).await, (1, 1, 0));
    // Another tenant has its own list; one without credentials has none.
    world.stranger().await;
    world.tenant().await;
    assert_eq!(run_job(world).await.0, 1);
}

#[tokio::test]
async fn the_command_counts_recovers_and_keeps_to_the_tenant() {
    let world = World::today().await;
    let (tenant, stranger) = (world.tenant().await, world.stranger().await);
    let play = world.simulator.google();
    let token = play
        .buy_product(NewProduct::default())
        .unwrap()
        .purchase_token;
    play.change_product(&token, &ProductChange::Refund {})
        .unwrap();
    let shell = world.shell_with_stores();
    let run = async |more: &[&str]| {
        let words = [&["google", "backfill"], more].concat();
        shell.run_async(&words, "").await
    };
    let id = tenant.id.as_str();
    let counted = run(&["--dry-run"]).await.rows();
    assert_eq!(counted.len(), 1, "{counted:?}");
    assert_eq!(
        (&counted[0]["tenantId"], &counted[0]["recovered"]),
        (&json!(id), &json!(1))
    );
    assert_eq!(refunds(&world, &tenant).await.len(), 0);
    for (recovered, known) in [(1, 0), (0, 1)] {
        let row = run(&["--tenant", id, "--since", "3d"])
            .await
            .rows()
            .remove(0);
        assert_eq!(
            (&row["recovered"], &row["known"], &row["read"]),
            (&json!(recovered), &json!(known), &json!(1))
        );
    }
    assert_eq!(refunds(&world, &tenant).await.len(), 1);
    let none = run(&["--tenant", stranger.id.as_str()]).await;
    assert_eq!(none.exit, 1, "{none:?}");
    assert!(none.complained.contains("credentials"), "{none:?}");
    assert_eq!(run(&["--since", "yesterday"]).await.exit, 2);
}

#[tokio::test]
async fn a_part_of_a_quantity_that_a_late_push_tells_too_is_told_once() {
    let shop = Shop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    let several = NewProduct {
        quantity: Some(5),
        ..NewProduct::default()
    };
    let token = shop.play().buy_product(several).unwrap().purchase_token;
    let refund = |quantity| {
        let some = ProductChange::RefundQuantity { quantity };
        shop.play().change_product(&token, &some).unwrap();
        shop.play().published_messages().pop().unwrap()
    };
    let left = async || {
        let told = refunds(world, tenant).await;
        let left = told
            .iter()
            .map(|it| it["state"]["refundableQuantity"].clone());
        left.collect::<Vec<_>>()
    };
    let first = refund(2);
    world.pass(MINUTE * 6).await;
    assert_eq!(run_job(world).await, (1, 1, 0));
    let late = shop.play().push_message(&first.message_id).await.unwrap();
    assert_eq!((late.status, &late.body["isNew"]), (200, &json!(false)));
    assert_eq!(left().await, [json!(3)]);
    // The next part is pushed, and the list tells nothing new.
    refund(1);
    assert_eq!(shop.push_newest().await["reason"], "partial");
    world.pass(DAY).await;
    assert_eq!(run_job(world).await, (1, 0, 0));
    // The last one is lost: it is found, although the others are known.
    refund(1);
    world.pass(DAY).await;
    assert_eq!(run_job(world).await, (1, 1, 0));
    assert_eq!(left().await, [json!(3), json!(2), json!(1)]);
}
