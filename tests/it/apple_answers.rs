//! `POST /v1/apple/consumption`, `finish` and `app-account-token`, and their commands: what Apple is told about a purchase, and the event
//! that asks for it.

use std::time::Duration;

use attesto::simulator::Fault;
use attesto::simulator::state::apple::{
    NewTransaction, ProductType, SimulatedEnvironment, TransactionChange,
};
use attesto::simulator::state::apple_notifications::NewNotification;
use serde_json::{Value, json};

use crate::apple_backfill::post_to;
use crate::apple_notifications::Shop;
use crate::world::attesto::{APP, Answer, Tenant, World};

const HOUR: Duration = Duration::from_hours(1);

pub(crate) fn buy_coins(world: &World, environment: SimulatedEnvironment) -> String {
    let new = NewTransaction {
        kind: ProductType::Consumable,
        environment,
        ..NewTransaction::default()
    };
    let bought = world.simulator.apple().create_transaction(new);
    bought.unwrap().transaction_id
}

/// How a purchase was used.
pub(crate) fn used(transaction_id: &str) -> Value {
    json!({
        "transactionId": transaction_id, "customerConsented": true, "sampleContentProvided": false,
        "deliveryStatus": "DELIVERED", "consumptionPercentage": 50_000, "refundPreference": "DECLINE",
    })
}

pub(crate) async fn tell(world: &World, tenant: &Tenant, body: &Value) -> Answer {
    let key = Some(tenant.key.expose());
    world
        .ask("POST", "/v1/apple/consumption", key, Some(body))
        .await
}

/// Apple asks how a purchase was used. Returns what the callback is sent.
pub(crate) async fn ask_about(shop: &Shop, transaction_id: &str) -> Value {
    let question = NewNotification {
        transaction_id: Some(transaction_id.to_owned()),
        block: json!({ "consumptionRequestReason": "UNINTENDED_PURCHASE" })
            .as_object()
            .unwrap()
            .clone(),
        ..NewNotification::new("CONSUMPTION_REQUEST", None)
    };
    shop.apple().publish_notification(APP, &question).unwrap();
    shop.push().await.0
}

#[tokio::test]
async fn apples_question_says_until_when_it_takes_an_answer_and_how_to_give_it() {
    let shop = Shop::open().await;
    shop.report_here(true);
    let id = buy_coins(&shop.world, SimulatedEnvironment::Production);
    let asked_at = shop.world.clock.now();
    let event = ask_about(&shop, &id).await;
    assert_eq!(event["event"], "product.consumption_request");
    assert_eq!(event["answerBy"], json!(asked_at.plus(HOUR * 12)));
    // Apple posts it again hours later: the deadline stays.
    shop.world.pass(HOUR * 5).await;
    let newest = shop.apple().list_notifications().pop().unwrap();
    let apple = shop.apple();
    let again = apple.push_notification(&newest.notification_uuid).await;
    assert_eq!(again.unwrap().body["isNew"], false);

    // What the event has is what the request needs.
    let about = &event["data"]["data"]["transactionInfo"]["transactionId"];
    let mut body = used(about.as_str().unwrap());
    body["environment"] = event["environment"].clone();
    let answer = tell(&shop.world, &shop.tenant, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.body,
        json!({
            "valid": true, "version": attesto::VERSION, "sent": true, "environment": "production", "transactionId": id,
        })
    );
    let told = shop.apple().list_consumption();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].transaction_id, id);
    assert_eq!(
        told[0].information,
        json!({
            "customerConsented": true, "sampleContentProvided": false, "deliveryStatus": "DELIVERED",
            "consumptionPercentage": 50_000, "refundPreference": "DECLINE",
        })
    );

    // Nothing else asks for an answer.
    let renewal = shop.apple().publish_notification(
        APP,
        &NewNotification {
            transaction_id: Some(id),
            ..NewNotification::new("REFUND_DECLINED", None)
        },
    );
    renewal.unwrap();
    assert_eq!(shop.push().await.0.get("answerBy"), None);
    shop.world.end().await;
}

#[tokio::test]
async fn the_environment_is_found_and_a_transaction_of_another_tenant_is_not() {
    let shop = Shop::open().await;
    let world = &shop.world;
    let ids = [
        (
            buy_coins(world, SimulatedEnvironment::Production),
            "production",
        ),
        (buy_coins(world, SimulatedEnvironment::Sandbox), "sandbox"),
    ];
    for (id, environment) in &ids {
        let answer = tell(world, &shop.tenant, &used(id)).await;
        assert_eq!(answer.body["environment"], *environment, "{}", answer.body);
        let mut elsewhere = used(id);
        let other = if *environment == "sandbox" {
            "production"
        } else {
            "sandbox"
        };
        elsewhere["environment"] = json!(other);
        let answer = tell(world, &shop.tenant, &elsewhere).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(
            (&answer.body["valid"], &answer.body["error"]),
            (&json!(false), &json!("TRANSACTION_NOT_FOUND"))
        );
    }
    let stranger = world.stranger().await;
    let answer = tell(world, &stranger, &used(&ids[0].0)).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("CREDENTIALS_MISSING"))
    );
    let elsewhere = NewTransaction {
        bundle_id: Some("com.example.other".to_owned()),
        environment: SimulatedEnvironment::Production,
        ..NewTransaction::default()
    };
    let elsewhere = shop.apple().create_transaction(elsewhere).unwrap();
    for id in [&elsewhere.transaction_id, "9", "not-an-id"] {
        let answer = tell(world, &shop.tenant, &used(id)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["error"], "TRANSACTION_NOT_FOUND", "{id}");
    }
    assert_eq!(shop.apple().list_consumption().len(), 2);
}

#[tokio::test]
async fn a_refusal_for_good_is_told_from_an_outage() {
    let shop = Shop::open().await;
    let world = &shop.world;
    let id = buy_coins(world, SimulatedEnvironment::Production);
    let fail = async |fault: Fault| {
        world.simulator.add_fault(fault).unwrap();
        let answer = tell(world, &shop.tenant, &used(&id)).await;
        world.simulator.clear_faults();
        answer
    };
    let place = || Fault::at_place("apple/production");
    for (code, reason) in [(4_000_047, "product_type"), (4_000_036, "invalid_value")] {
        let refused = fail(place().error_code(code)).await;
        assert_eq!(refused.status, 200, "{}", refused.body);
        assert_eq!(refused.body["error"], "NOT_ACCEPTED");
        assert_eq!(
            refused.body["details"],
            json!({ "reason": reason, "appleErrorCode": code })
        );
    }
    for (fault, status, error) in [
        (place().status(500).times(3), 502, "APPLE_API_ERROR"),
        (place().error_code(4_290_000), 429, "RATE_LIMITED"),
        (place().status(404), 502, "APPLE_API_ERROR"),
    ] {
        let failed = fail(fault).await;
        assert_eq!(
            (failed.status, &failed.body["error"]),
            (status, &json!(error))
        );
    }
    assert_eq!(shop.apple().list_consumption(), []);
    // An outage that is over, and a repeated request.
    for _ in 0..2 {
        assert_eq!(tell(world, &shop.tenant, &used(&id)).await.status, 200);
    }
    assert_eq!(shop.apple().list_consumption().len(), 2);
}

#[tokio::test]
async fn the_command_tells_what_the_route_tells() {
    let world = World::today().await;
    let tenant = world.tenant().await;
    post_to(&world, crate::apple_backfill::NOWHERE);
    let id = buy_coins(&world, SimulatedEnvironment::Sandbox);
    let shell = world.shell_with_stores();
    let words = async |more: &[&str]| {
        let all = [&["apple", "consumption", tenant.id.as_str()], more].concat();
        shell.run_async(&all, "").await
    };
    let needed = [
        "--customer-consented",
        "--sample-content-provided",
        "false",
        "--delivery-status",
        "undelivered-server-outage",
    ];
    let begun = world.clock.now();
    let told = words(&[&[id.as_str()], &needed[..]].concat()).await;
    assert_eq!(told.exit, 0, "{told:?}");
    assert_eq!(told.json()["environment"], "sandbox");
    let sent = world.simulator.apple().list_consumption();
    assert_eq!(
        sent[0].information,
        json!({
            "customerConsented": true, "sampleContentProvided": false, "deliveryStatus": "UNDELIVERED_SERVER_OUTAGE",
        })
    );
    assert!(sent[0].sent_at >= begun);
    let refused = words(&[&["9"], &needed[..]].concat()).await;
    assert_eq!(
        (refused.exit, &refused.json()["error"]),
        (1, &json!("TRANSACTION_NOT_FOUND"))
    );
    for (more, complaint) in [
        (&["--consumption-percentage", "100001"][..], "100001"),
        (&["--refund-preference", "maybe"], "maybe"),
    ] {
        let refused = words(&[&[id.as_str()], &needed[..], more].concat()).await;
        assert_eq!(refused.exit, 2, "{refused:?}");
        assert!(refused.complained.contains(complaint), "{refused:?}");
    }
    let refused = words(&[&[id.as_str()], &needed[1..]].concat()).await;
    assert_eq!(refused.exit, 2, "without consent");
}

const USER: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";

async fn ask(world: &World, tenant: &Tenant, action: &str, body: &Value) -> Answer {
    let key = Some(tenant.key.expose());
    let path = format!("/v1/apple/{action}");
    world.ask("POST", &path, key, Some(body)).await
}

#[tokio::test]
async fn a_transaction_is_finished_in_the_environment_that_knows_it() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let apple = world.simulator.apple();
    for environment in ["production", "sandbox"] {
        let id = buy_coins(
            &world,
            if environment == "sandbox" {
                SimulatedEnvironment::Sandbox
            } else {
                SimulatedEnvironment::Production
            },
        );
        assert!(!apple.is_finished(&id));
        for _ in 0..2 {
            let answer = ask(&world, &tenant, "finish", &json!({ "transactionId": id })).await;
            assert_eq!(
                answer.body,
                json!({
                    "valid": true, "version": attesto::VERSION, "finished": true, "environment": environment,
                    "transactionId": id,
                })
            );
        }
        assert!(apple.is_finished(&id));
    }
    let elsewhere = NewTransaction {
        bundle_id: Some("com.example.other".to_owned()),
        ..NewTransaction::default()
    };
    let elsewhere = apple.create_transaction(elsewhere).unwrap().transaction_id;
    for id in [&elsewhere, "9"] {
        let answer = ask(&world, &tenant, "finish", &json!({ "transactionId": id })).await;
        assert_eq!(answer.body["error"], "TRANSACTION_NOT_FOUND", "{id}");
    }
    assert!(!apple.is_finished(&elsewhere));
    let away = Fault::at_place("apple/production").status(500).times(0);
    world.simulator.add_fault(away).unwrap();
    let failed = ask(&world, &tenant, "finish", &json!({ "transactionId": "7" })).await;
    assert_eq!(failed.status, 502, "{}", failed.body);
}

#[tokio::test]
async fn a_purchase_without_a_user_is_bound_to_one() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let apple = world.simulator.apple();
    let first = apple.create_transaction(NewTransaction::default()).unwrap();
    let id = first.transaction_id;
    let renew = TransactionChange::Renew {};
    let renewal = apple.change_transaction(&id, &renew).unwrap();
    let bind = async |id: &str, user: &str| {
        let body = json!({ "originalTransactionId": id, "appAccountToken": user });
        ask(&world, &tenant, "app-account-token", &body).await
    };
    let verify = async || {
        let body = json!({ "transactionId": renewal.transaction_id, "expectedAppUserId": USER });
        world.verify("apple", &tenant, &body).await.body
    };
    let unbound = verify().await;
    assert_eq!(unbound["details"]["reason"], "none", "{unbound}");
    let later = bind(&renewal.transaction_id, USER).await;
    assert_eq!(
        (&later.body["error"], &later.body["details"]["reason"]),
        (&json!("NOT_ACCEPTED"), &json!("not_original"))
    );
    let bound = bind(&id, &USER.to_ascii_uppercase()).await;
    assert_eq!(
        bound.body,
        json!({
            "valid": true, "version": attesto::VERSION, "environment": "sandbox", "originalTransactionId": id,
            "appAccountToken": USER,
        })
    );
    assert_eq!(verify().await["appUserId"], USER);
    let shared = NewTransaction {
        family_shared: true,
        ..NewTransaction::default()
    };
    let shared = apple.create_transaction(shared).unwrap().transaction_id;
    let refused = bind(&shared, USER).await;
    assert_eq!(refused.body["details"]["reason"], "family_shared");
    assert_eq!(bind("9", USER).await.body["error"], "TRANSACTION_NOT_FOUND");
    assert_eq!(bind(&id, "me").await.status, 400);
}

#[tokio::test]
async fn the_commands_finish_and_bind_as_the_routes_do() {
    let world = World::today().await;
    let tenant = world.tenant().await;
    let id = buy_coins(&world, SimulatedEnvironment::Sandbox);
    let shell = world.shell_with_stores();
    let run = async |words: &[&str]| {
        let all = [&["apple", words[0], tenant.id.as_str()], &words[1..]].concat();
        shell.run_async(&all, "").await
    };
    let finished = run(&["finish", &id]).await;
    assert_eq!(finished.json()["finished"], true, "{finished:?}");
    assert!(world.simulator.apple().is_finished(&id));
    let bound = run(&["set-app-account-token", &id, USER]).await;
    assert_eq!(bound.json()["appAccountToken"], USER, "{bound:?}");
    for (words, exit) in [
        (&["finish", "9"][..], 1),
        (&["set-app-account-token", "9", USER], 1),
        (&["set-app-account-token", &id, "me"], 2),
    ] {
        assert_eq!(run(words).await.exit, exit, "{words:?}");
    }
}
