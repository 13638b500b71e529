//! `POST /v1/google/refund-review` and its command: what Google is told of a refund, and the event that asks for it.

use std::time::Duration;

use attesto::simulator::Fault;
use attesto::simulator::state::google::NewProduct;
use serde_json::{Value, json};

use crate::google_state::{Shop, USER, users};
use crate::world::attesto::{Answer, Tenant, World};

const UNKNOWN_ORDER: &str = "GPA.0000-0000-0000-00000";
const HOUR: Duration = Duration::from_hours(1);

/// Play asks about a refund of this purchase. Returns what the callback is sent.
pub(crate) async fn ask_about(shop: &Shop, purchase_token: &str) -> Value {
    shop.play().ask_refund_review(purchase_token).unwrap();
    shop.push_newest().await
}

/// The request that answers an event, made of what the event has.
pub(crate) fn answer_to(event: &Value) -> Value {
    let question = &event["data"]["pendingRefundReviewNotification"];
    json!({
        "packageName": event["data"]["packageName"], "orderId": question["orderId"],
        "pendingRefundToken": question["pendingRefundToken"], "sampleContentProvided": true, "refundPreference": "DECLINE",
    })
}

pub(crate) async fn tell(shop: &Shop, tenant: &Tenant, body: &Value) -> Answer {
    let key = Some(tenant.key.expose());
    let path = "/v1/google/refund-review";
    shop.world.ask("POST", path, key, Some(body)).await
}

/// The code and the reason of a "no".
fn refusal(answer: &Answer) -> (String, Value) {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["valid"], false, "{}", answer.body);
    let code = answer.body["error"].as_str().unwrap().to_owned();
    (code, answer.body["details"]["reason"].clone())
}

fn buy_coins(shop: &Shop) -> String {
    let new = NewProduct {
        obfuscated_external_account_id: Some(USER.to_owned()),
        ..NewProduct::default()
    };
    shop.play().buy_product(new).unwrap().purchase_token
}

#[tokio::test]
async fn googles_question_says_until_when_it_takes_an_answer_and_how_to_give_it() {
    let shop = Shop::open().await;
    for token in [buy_coins(&shop), shop.subscribe(users())] {
        let asked_at = shop.world.clock.now();
        let event = ask_about(&shop, &token).await;
        assert_eq!(event["event"], "product.refund_review");
        assert_eq!(event["answerBy"], json!(asked_at.plus(HOUR * 24)));
        assert_eq!(
            (&event["subject"]["key"], &event["appUserId"]),
            (&json!(token), &json!(USER))
        );
        let mut body = answer_to(&event);
        let order_id = body["orderId"].clone();
        let usage =
            json!([{ "consumptionTime": "2026-04-10T14:22:10Z", "obfuscatedAccountId": USER }]);
        body["consumptionPercentageMilliunits"] = json!(45_200);
        body["consumptionUsageEvents"] = usage.clone();
        let answer = tell(&shop, &shop.tenant, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(
            answer.body,
            json!({ "valid": true, "version": attesto::VERSION, "sent": true, "orderId": order_id })
        );
        let told = shop.play().list_refund_reviews().pop().unwrap();
        assert_eq!(
            told.answer,
            Some(json!({
                "pendingRefundToken": told.pending_refund_token, "sampleContentProvided": true, "refundPreference": "DECLINE",
                "consumptionPercentageMilliunits": 45_200, "consumptionUsageEvents": usage,
            }))
        );
        // The first answer counts.
        body["refundPreference"] = json!("APPROVE");
        let again = tell(&shop, &shop.tenant, &body).await;
        assert_eq!(refusal(&again), ("NOT_ACCEPTED".into(), json!("closed")));
    }
    // Nothing else asks for an answer.
    let token = shop.subscribe(users());
    assert_eq!(shop.notify(4, &token).await.get("answerBy"), None);
    shop.world.end().await;
}

#[tokio::test]
async fn an_answer_is_taken_until_the_deadline_and_only_about_the_tenants_app() {
    let shop = Shop::open().await;
    let event = ask_about(&shop, &buy_coins(&shop)).await;
    let (good, stranger) = (answer_to(&event), shop.world.stranger().await);
    let foreign = tell(&shop, &stranger, &good).await;
    assert_eq!(
        (foreign.status, &foreign.body["error"]),
        (400, &json!("CREDENTIALS_MISSING"))
    );
    // With an app of its own, the order is not known.
    let stranger = shop.world.stranger().await;
    shop.world
        .set_google_app(&stranger, "com.example.other")
        .await;
    let foreign = tell(&shop, &stranger, &good).await;
    assert_eq!(refusal(&foreign).0, "PACKAGE_NAME_MISMATCH");
    let mut elsewhere = good.clone();
    elsewhere["packageName"] = json!("com.example.other");
    let foreign = tell(&shop, &stranger, &elsewhere).await;
    assert_eq!(refusal(&foreign), ("ORDER_NOT_FOUND".into(), Value::Null));

    let with = |name: &str, value: &str| {
        let mut body = good.clone();
        body[name] = json!(value);
        body
    };
    for (body, expected) in [
        (
            with("orderId", UNKNOWN_ORDER),
            ("ORDER_NOT_FOUND", Value::Null),
        ),
        (
            with("pendingRefundToken", "another"),
            ("NOT_ACCEPTED", json!("invalid_value")),
        ),
    ] {
        let (code, reason) = refusal(&tell(&shop, &shop.tenant, &body).await);
        assert_eq!((code.as_str(), reason), expected, "{body}");
    }
    let other_token = ask_about(&shop, &buy_coins(&shop)).await;
    shop.world.pass(HOUR * 24).await;
    assert_eq!(tell(&shop, &shop.tenant, &good).await.body["sent"], true);
    shop.world.pass(Duration::from_millis(1)).await;
    let late = tell(&shop, &shop.tenant, &answer_to(&other_token)).await;
    assert_eq!(refusal(&late), ("NOT_ACCEPTED".into(), json!("closed")));
    shop.world.end().await;
}

#[tokio::test]
async fn an_outage_is_no_refusal() {
    let shop = Shop::open().await;
    let event = ask_about(&shop, &buy_coins(&shop)).await;
    let body = answer_to(&event);
    let place = || Fault::at_place("google/play");
    for (fault, status, error) in [
        (
            place().reason("backendError").times(3),
            502,
            "GOOGLE_API_ERROR",
        ),
        (place().reason("permissionDenied"), 502, "GOOGLE_API_ERROR"),
        (place().reason("quotaExceeded"), 429, "RATE_LIMITED"),
        (place().status(404), 502, "GOOGLE_API_ERROR"),
        (place().status(409).times(3), 502, "GOOGLE_API_ERROR"),
    ] {
        shop.world.simulator.add_fault(fault).unwrap();
        let failed = tell(&shop, &shop.tenant, &body).await;
        assert_eq!(
            (failed.status, &failed.body["error"]),
            (status, &json!(error)),
            "{}",
            failed.body
        );
        shop.world.simulator.clear_faults();
    }
    assert_eq!(tell(&shop, &shop.tenant, &body).await.body["sent"], true);
    shop.world.end().await;
}

#[tokio::test]
async fn the_command_tells_what_the_route_tells() {
    let world = World::today().await;
    let tenant = world.tenant().await;
    let play = world.simulator.google();
    let bought = play.buy_product(NewProduct::default()).unwrap();
    let asked = play.ask_refund_review(&bought.purchase_token).unwrap();
    let shell = world.shell_with_stores();
    let run = async |order_id: &str, more: &[&str]| {
        let words = [
            "google",
            "refund-review",
            tenant.id.as_str(),
            order_id,
            &asked.pending_refund_token,
            "--sample-content-provided",
            "false",
        ];
        shell.run_async(&[&words[..], more].concat(), "").await
    };
    let neutral = [
        "--refund-preference",
        "neutral",
        "--consumption-percentage",
        "7",
    ];
    let unknown = run(UNKNOWN_ORDER, &neutral).await;
    assert_eq!(
        (unknown.exit, &unknown.json()["error"]),
        (1, &json!("ORDER_NOT_FOUND"))
    );
    for (more, complaint) in [
        (&[][..], "--refund-preference"),
        (&["--refund-preference", "maybe"], "maybe"),
        (
            &[
                "--refund-preference",
                "decline",
                "--consumption-percentage",
                "100001",
            ],
            "100001",
        ),
    ] {
        let refused = run(&asked.order_id, more).await;
        assert_eq!(refused.exit, 2, "{refused:?}");
        assert!(refused.complained.contains(complaint), "{refused:?}");
    }
    let told = run(&asked.order_id, &neutral).await;
    assert_eq!(
        (told.exit, &told.json()["sent"]),
        (0, &json!(true)),
        "{told:?}"
    );
    let told = play.list_refund_reviews().pop().unwrap();
    assert_eq!(
        told.answer,
        Some(json!({
            "pendingRefundToken": asked.pending_refund_token, "sampleContentProvided": false,
            "refundPreference": "NEUTRAL", "consumptionPercentageMilliunits": 7,
        }))
    );
}

#[tokio::test]
async fn an_answer_that_google_has_taken_without_saying_so_is_sent() {
    let shop = Shop::open().await;
    let event = ask_about(&shop, &buy_coins(&shop)).await;
    let body = answer_to(&event);
    // Google takes the answer, and the connection breaks. The second try is told that it is too late.
    let lost = Fault::at_place("google/play").cut();
    shop.world.simulator.add_fault(lost).unwrap();
    let answer = tell(&shop, &shop.tenant, &body).await;
    assert_eq!((answer.status, &answer.body["sent"]), (200, &json!(true)));
    let told = shop.play().list_refund_reviews().pop().unwrap();
    assert!(told.answer.is_some());
    // A refusal alone says that another answer was first.
    let again = tell(&shop, &shop.tenant, &body).await;
    assert_eq!(refusal(&again), ("NOT_ACCEPTED".into(), json!("closed")));
    // So it does behind tries that Google has refused for another reason.
    let event = ask_about(&shop, &buy_coins(&shop)).await;
    let body = answer_to(&event);
    assert_eq!(tell(&shop, &shop.tenant, &body).await.status, 200);
    let busy = Fault::at_place("google/play").reason("concurrentUpdate");
    shop.world.simulator.add_fault(busy.status(409)).unwrap();
    let again = tell(&shop, &shop.tenant, &body).await;
    assert_eq!(refusal(&again), ("NOT_ACCEPTED".into(), json!("closed")));
    shop.world.end().await;
}
