//! What an Apple purchase is worth, in answers and in events: the cases that a backend meets in the field.

use std::time::Duration;

use attesto::simulator::Fault;
use attesto::simulator::state::apple::{
    NewTransaction, ProductType, SimulatedEnvironment, TransactionChange,
};
use serde_json::{Value, json};

use crate::apple_notifications::{Event, Shop, altered};

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
async fn receive_undecided(shop: &Shop, number: u32) -> Value {
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
