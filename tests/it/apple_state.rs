//! What an Apple purchase is worth, in answers and in events: the cases that a backend meets in the field.

use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::simulator::state::apple::{
    NewTransaction, ProductType, SimulatedEnvironment, TransactionChange,
};
use attesto::simulator::{Fault, JwsForgery};
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;

use crate::apple_notifications::{Event, Shop, altered};
use crate::world::attesto::{APP, Answer};
use crate::world::log::Warnings;

const USER: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";
const ZEROS: &str = "00000000-0000-0000-0000-000000000000";

/// A subscription of the app, bought in production.
fn buy(shop: &Shop) -> String {
    let new = NewTransaction {
        environment: SimulatedEnvironment::Production,
        ..NewTransaction::default()
    };
    let bought = shop.apple().create_transaction(new).unwrap();
    bought.transaction_id
}

/// A transaction as Apple has it, with other fields in place of some; `null` leaves one out.
fn signed_transaction(shop: &Shop, id: &str, changes: &[(&str, Value)]) -> Value {
    let payload = Value::Object(shop.apple().transaction_payload(id).unwrap());
    json!(shop.sign(&altered(&payload, changes)))
}

/// Posts a notification whose `data` has other fields in place of some, and reads its event.
async fn receive(shop: &Shop, kind: &str, data: &Value, changes: &[(&str, Value)]) -> Event {
    let sent = shop.notification(kind, 1, "data", &altered(data, changes));
    shop.stored(&sent).await
}

/// The refund of the first of three periods, with Apple's status of the subscription.
async fn refund_first_period(shop: &Shop) -> String {
    shop.report_here(true);
    let first = buy(shop);
    for _ in 0..2 {
        shop.world.clock.advance(Duration::from_hours(24 * 30));
        let renewal = TransactionChange::Renew {};
        shop.apple().change_transaction(&first, &renewal).unwrap();
    }
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Production);
    let refunded = [
        ("revocationDate", json!(shop.world.clock.now().as_millis())),
        ("revocationReason", json!(0)),
    ];
    let end = shop.world.clock.now().plus(Duration::from_hours(24 * 20));
    let renewal = json!({
        "originalTransactionId": first, "autoRenewProductId": "com.example.app.pro.monthly",
        "productId": "com.example.app.pro.monthly", "autoRenewStatus": 1, "environment": "Production",
        "renewalDate": end.as_millis(), "signedDate": shop.world.clock.now().as_millis(),
    });
    let changes = [
        (
            "signedTransactionInfo",
            signed_transaction(shop, &first, &refunded),
        ),
        ("signedRenewalInfo", json!(shop.sign(&renewal))),
    ];
    let event = receive(shop, "REFUND", &data, &changes).await;
    assert_eq!(
        event.word(),
        ("subscription.refunded", Some("earlier_period"))
    );
    let Event(body) = event;
    assert_eq!(body["state"]["status"], "active", "{}", body["state"]);
    assert_eq!(body["state"]["entitled"], true);
    assert_eq!(body["state"]["entitledUntil"], json!(end));
    assert_eq!(body["state"]["basis"], "store");
    assert_eq!(body["subject"]["key"], json!(first));
    assert_eq!(body["subject"]["current"], false);
    first
}

/// Apple renews up to a day before the end: then two periods are paid.
#[tokio::test]
async fn news_of_a_running_period_does_not_hide_the_next_one_that_is_paid() {
    let shop = Shop::open().await;
    shop.report_here(true);
    let first = buy(&shop);
    shop.world.clock.advance(Duration::from_hours(24 * 29 + 12));
    let renewal = TransactionChange::Renew {};
    shop.apple().change_transaction(&first, &renewal).unwrap();
    shop.world.clock.advance(Duration::from_hours(1));
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Production);
    let changes = [
        (
            "signedTransactionInfo",
            signed_transaction(&shop, &first, &[]),
        ),
        ("signedRenewalInfo", Value::Null),
        ("status", Value::Null),
    ];
    let Event(body) = receive(&shop, "METADATA_UPDATE", &data, &changes).await;
    let end_of_first = Timestamp::parse("2026-05-10T14:22:10.000Z").unwrap();
    let until = body["state"]["entitledUntil"]
        .as_str()
        .and_then(Timestamp::parse);
    assert!(until > Some(end_of_first), "{}", body["state"]);
    assert_eq!(
        (&body["state"]["status"], &body["state"]["basis"]),
        (&json!("active"), &json!("store"))
    );
    assert_eq!(body["subject"]["current"], false);
}

#[tokio::test]
async fn a03_the_refund_of_an_earlier_period_leaves_the_customer_in() {
    let shop = Shop::open().await;
    refund_first_period(&shop).await;
    assert_eq!(
        shop.world.simulator.count_requests_at("apple"),
        0,
        "the notification says all of it"
    );
    shop.world.end().await;
}

#[tokio::test]
async fn a04_an_empty_token_names_no_user_and_the_renewal_info_does() {
    let shop = Shop::open().await;
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Production);
    let id = &shop.apple().list_transactions()[0].transaction_id;
    for (number, token) in ["", ZEROS].into_iter().enumerate() {
        let signed = signed_transaction(&shop, id, &[("appAccountToken", json!(token))]);
        let data = altered(&data, &[("signedTransactionInfo", signed.clone())]);
        let number = u32::try_from(number).unwrap() * 2 + 1;
        let sent = shop.notification("DID_RENEW", number, "data", &data);
        let Event(body) = shop.stored(&sent).await;
        assert_eq!(body["appUserId"], USER);
        assert_eq!(body["appUserIdSource"], "purchase");
        let alone = altered(&data, &[("signedRenewalInfo", Value::Null)]);
        let sent = shop.notification("DID_RENEW", number + 1, "data", &alone);
        let Event(body) = shop.stored(&sent).await;
        assert_eq!(
            (&body["appUserId"], &body["appUserIdSource"]),
            (&Value::Null, &Value::Null),
            "{token:?}"
        );
    }
    shop.world.end().await;
}

#[tokio::test]
async fn a07_an_old_purchase_that_names_no_app_is_taken_on_the_envelopes_word() {
    let shop = Shop::open().await;
    let data = shop.data(ProductType::NonConsumable, SimulatedEnvironment::Production);
    let id = &shop.apple().list_transactions()[0].transaction_id;
    let changes = [
        ("bundleId", Value::Null),
        ("environment", Value::Null),
        ("revocationDate", json!(shop.world.clock.now().as_millis())),
    ];
    let signed = signed_transaction(&shop, id, &changes);
    let event = receive(&shop, "REFUND", &data, &[("signedTransactionInfo", signed)]).await;
    assert_eq!(event.word(), ("product.refunded", None));
    assert_eq!(event.0["state"]["status"], "refunded");
    assert_eq!(event.0["state"]["entitled"], false);
    shop.world.end().await;
}

#[tokio::test]
async fn a15_cancelling_within_a_commitment_is_an_installment() {
    let shop = Shop::open().await;
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Production);
    let id = &shop.apple().list_transactions()[0].transaction_id;
    let commitment = json!({"billingPeriodNumber": 3, "totalBillingPeriods": 12});
    let signed = signed_transaction(&shop, id, &[("commitmentInfo", commitment)]);
    let data = altered(&data, &[("signedTransactionInfo", signed)]);
    let mut sent = shop.notification("DID_CHANGE_RENEWAL_STATUS", 1, "data", &data);
    sent["subtype"] = json!("AUTO_RENEW_DISABLED");
    let event = shop.stored(&sent).await;
    assert_eq!(
        event.word(),
        ("subscription.cancellation_scheduled", Some("installment"))
    );
    shop.world.end().await;
}

/// A notification as in the years before `data.status`: of a period that is over, without a renewal info.
pub(crate) async fn receive_undecided(shop: &Shop, number: u32) -> Value {
    let mut data = shop.data(ProductType::Subscription, SimulatedEnvironment::Production);
    let bought = shop.apple().list_transactions().pop().unwrap();
    shop.world.clock.advance(Duration::from_hours(24 * 30));
    let renewal = TransactionChange::Renew {};
    shop.apple()
        .change_transaction(&bought.transaction_id, &renewal)
        .unwrap();
    shop.world.clock.advance(Duration::from_hours(24 * 5));
    for name in ["status", "signedRenewalInfo"] {
        data.as_object_mut().unwrap().remove(name);
    }
    let sent = shop.notification("METADATA_UPDATE", number, "data", &data);
    shop.stored(&sent).await.0
}

#[tokio::test]
async fn apple_is_asked_where_a_notification_does_not_decide() {
    let shop = Shop::open().await;
    let event = receive_undecided(&shop, 1).await;
    assert_eq!(event["state"]["status"], "active", "{}", event["state"]);
    assert_eq!(event["state"]["entitled"], true);
    assert_eq!(event["state"]["willRenew"], true);
    assert_eq!(event["subject"]["current"], false, "a later period runs");
    assert_eq!(shop.world.simulator.count_requests_at("apple"), 1);
    shop.world.end().await;
}

#[tokio::test]
async fn an_event_is_stored_without_a_state_while_apple_does_not_answer() {
    let shop = Shop::open().await;
    shop.world
        .simulator
        .add_fault(Fault::at_place("apple").error_code(4_290_000).times(0))
        .unwrap();
    let event = receive_undecided(&shop, 1).await;
    assert_eq!(event["state"], Value::Null);
    assert_eq!(event["stateError"], "store_unavailable");
    shop.world.end().await;
}

/// The answer to a question about this transaction, and how many calls of Apple's API it took.
async fn verify(shop: &Shop, question: &Value) -> (Answer, usize) {
    shop.world.simulator.clear_requests();
    let answer = shop.world.verify("apple", &shop.tenant, question).await;
    (answer, shop.world.simulator.count_requests_at("apple"))
}

/// A subscription that was renewed once and runs: its first transaction.
fn buy_and_renew(shop: &Shop) -> String {
    let first = buy(shop);
    shop.world.clock.advance(Duration::from_hours(24 * 30));
    let renewal = TransactionChange::Renew {};
    shop.apple().change_transaction(&first, &renewal).unwrap();
    shop.world.clock.advance(Duration::from_hours(24 * 5));
    first
}

#[tokio::test]
async fn a01_an_older_period_is_answered_with_the_running_subscription() {
    let shop = Shop::open().await;
    let first = buy_and_renew(&shop);
    let newest = shop.apple().list_transactions().pop().unwrap();
    let (answer, calls) = verify(&shop, &json!({ "transactionId": first })).await;
    assert_eq!(
        answer.body["transaction"]["transactionId"],
        json!(first),
        "{}",
        answer.body
    );
    assert_eq!(answer.body["status"], "expired", "of that one period");
    let state = &answer.body["state"];
    assert_eq!(
        (&state["status"], &state["entitled"], &state["basis"]),
        (&json!("active"), &json!(true), &json!("store"))
    );
    assert_eq!(state["entitledUntil"], json!(newest.expires_date));
    assert_eq!(answer.body["subject"]["key"], json!(first));
    assert_eq!(answer.body["subject"]["current"], false);
    assert_eq!(calls, 2);

    let newest = json!({ "transactionId": newest.transaction_id });
    let (answer, calls) = verify(&shop, &newest).await;
    assert_eq!(answer.body["state"]["basis"], "transaction");
    assert_eq!(answer.body["state"]["entitled"], true);
    assert_eq!(answer.body["subject"]["current"], true);
    assert_eq!(calls, 1, "its own facts decide");
    shop.world.end().await;
}

#[tokio::test]
async fn a02_a_period_in_its_grace_period_is_answered_so() {
    let shop = Shop::open().await;
    let first = buy(&shop);
    shop.world.clock.advance(Duration::from_hours(24 * 31));
    let grace = TransactionChange::Grace { days: Some(16) };
    shop.apple().change_transaction(&first, &grace).unwrap();
    let (answer, _) = verify(&shop, &json!({ "transactionId": first })).await;
    let state = &answer.body["state"];
    assert_eq!(state["status"], "in_grace_period", "{}", answer.body);
    assert_eq!(state["entitled"], true);
    assert!(state["entitledUntil"].is_string());
    assert_eq!(answer.body["stateError"], Value::Null);
    shop.world.end().await;
}

#[tokio::test]
async fn refresh_asks_for_the_subscription_of_a_signed_transaction() {
    let shop = Shop::open().await;
    let first = buy_and_renew(&shop);
    let jws = shop.apple().sign_transaction(&first).unwrap();
    let (answer, calls) = verify(&shop, &json!({ "signedTransaction": jws })).await;
    assert_eq!(answer.body["state"]["status"], "expired");
    assert_eq!(answer.body["state"]["basis"], "transaction");
    assert_eq!(calls, 0);
    let question = json!({ "signedTransaction": jws, "refresh": true });
    let (answer, calls) = verify(&shop, &question).await;
    assert_eq!(answer.body["state"]["status"], "active", "{}", answer.body);
    assert_eq!(answer.body["state"]["willRenew"], true);
    assert_eq!(answer.body["state"]["basis"], "store");
    assert_eq!(calls, 1);
    shop.world.end().await;
}

#[tokio::test]
async fn a_used_up_limit_of_the_second_call_leaves_the_transactions_own_state() {
    let shop = Shop::open().await;
    let first = buy_and_renew(&shop);
    let limit = Fault::at_place("apple").error_code(4_290_000).skip_calls(1);
    shop.world.simulator.add_fault(limit.times(0)).unwrap();
    let (answer, calls) = verify(&shop, &json!({ "transactionId": first })).await;
    assert_eq!((answer.status, calls), (200, 2), "{}", answer.body);
    assert_eq!(answer.body["valid"], true);
    assert_eq!(answer.body["state"]["basis"], "transaction");
    assert_eq!(answer.body["stateError"], "store_unavailable");
    shop.world.end().await;
}

#[tokio::test]
async fn a05_a_token_of_zeros_names_no_user() {
    let shop = Shop::open().await;
    let id = buy(&shop);
    let signed = signed_transaction(&shop, &id, &[("appAccountToken", json!(ZEROS))]);
    let (answer, _) = verify(&shop, &json!({ "signedTransaction": signed })).await;
    assert_eq!(answer.body["appUserId"], Value::Null, "{}", answer.body);
    assert_eq!(answer.body["appUserIdSource"], Value::Null);
    assert_eq!(answer.body["transaction"]["appAccountToken"], ZEROS);
    shop.world.end().await;
}

#[tokio::test]
async fn a06_a_family_members_purchase_is_of_no_user_and_a_strangers_of_another() {
    let shop = Shop::open().await;
    let id = buy(&shop);
    for (token, reason) in [
        (Value::Null, "none"),
        (json!("11111111-2222-3333-4444-555555555555"), "another"),
    ] {
        let changes = [
            ("inAppOwnershipType", json!("FAMILY_SHARED")),
            ("appAccountToken", token),
        ];
        let signed = signed_transaction(&shop, &id, &changes);
        let question = json!({ "signedTransaction": signed, "expectedAppUserId": USER });
        let (answer, _) = verify(&shop, &question).await;
        assert_eq!(answer.body["error"], "APP_USER_MISMATCH");
        assert_eq!(answer.body["details"]["reason"], reason);
    }
    shop.world.end().await;
}

#[tokio::test]
async fn a08_a_transaction_that_names_no_app_is_said_to_name_none() {
    let shop = Shop::open().await;
    let id = buy(&shop);
    for (found, words) in [
        (Value::Null, "names no app"),
        (json!("com.example.other"), "com.example.other"),
    ] {
        let signed = signed_transaction(&shop, &id, &[("bundleId", found.clone())]);
        let (answer, _) = verify(&shop, &json!({ "signedTransaction": signed })).await;
        assert_eq!(answer.body["error"], "BUNDLE_ID_MISMATCH");
        assert_eq!(answer.body["details"]["found"], found);
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
    shop.world.end().await;
}

#[tokio::test]
async fn a09_what_xcode_signed_is_said_to_be_xcodes() {
    let shop = Shop::open().await;
    let id = buy(&shop);
    let forged = shop.apple().forge_transaction(&id, JwsForgery::Xcode);
    let question = json!({ "signedTransaction": forged.unwrap() });
    let (answer, _) = verify(&shop, &question).await;
    assert_eq!(answer.body["error"], "SIGNATURE_INVALID");
    let message = answer.body["message"].as_str().unwrap();
    assert!(message.contains("Xcode"), "{message}");
    shop.world.end().await;
}

#[tokio::test]
async fn a10_what_else_apple_signs_is_no_transaction() {
    let shop = Shop::open().await;
    let now = shop.world.clock.now().as_millis();
    for (payload, found) in [
        (
            json!({ "receiptType": "Production", "bundleId": APP, "receiptCreationDate": now }),
            "appTransaction",
        ),
        (
            json!({ "originalTransactionId": "1", "autoRenewStatus": 1, "signedDate": now }),
            "renewal",
        ),
    ] {
        let question = json!({ "signedTransaction": shop.sign(&payload) });
        let (answer, _) = verify(&shop, &question).await;
        assert_eq!((answer.status, &answer.body["valid"]), (200, &json!(false)));
        assert_eq!(answer.body["error"], "NOT_A_TRANSACTION");
        assert_eq!(answer.body["details"]["found"], found);
    }
    shop.world.end().await;
}

#[tokio::test]
async fn a14_an_id_that_apple_does_not_know_yet_is_tried_again() {
    let shop = Shop::open().await;
    let id = buy(&shop);
    // Unknown in both environments, twice.
    let unknown = Fault::at_place("apple").error_code(4_040_010).times(4);
    shop.world.simulator.add_fault(unknown).unwrap();
    let (answer, calls) = verify(&shop, &json!({ "transactionId": id })).await;
    assert_eq!(answer.body["valid"], true, "{}", answer.body);
    assert_eq!(calls, 5);

    let question = json!({ "transactionId": "1999999999999999" });
    for expected in [6, 2] {
        let (answer, calls) = verify(&shop, &question).await;
        assert_eq!(answer.body["error"], "TRANSACTION_NOT_FOUND");
        assert_eq!(answer.body["details"]["mayBeEarly"], true);
        assert_eq!(calls, expected, "an id asked for before is tried once");
    }
    shop.world.clock.advance(Duration::from_mins(1));
    let (answer, _) = verify(&shop, &question).await;
    assert_eq!(
        answer.body["details"],
        json!({ "reason": "unknown", "mayBeEarly": false })
    );
    shop.world.end().await;
}

#[tokio::test]
async fn a11_a_notification_of_version_1_is_named_in_the_answer_and_in_the_log() {
    let shop = Shop::open().await;
    let log = Warnings::listen_at(LevelFilter::INFO);
    let body = json!({ "unified_receipt": {}, "notification_type": "DID_RENEW" });
    let answer = shop.post(&body).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("INVALID_REQUEST"))
    );
    assert!(
        answer.body["message"]
            .as_str()
            .unwrap()
            .contains("version 1")
    );
    let requests = log.of("http_request");
    let class = requests[0]["causeClass"].as_str().unwrap();
    assert!(class.contains("version 1"), "{class}");
    shop.world.end().await;
}
