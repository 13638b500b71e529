//! What the simulated App Store reports, how it posts it, and what it tells of that afterwards.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{TestSimulator, json_body, start_simulator};
use crate::simulator::state::apple::{
    NewTransaction, ProductType, SimulatedEnvironment, TransactionChange,
};
use crate::simulator::state::apple_notifications::{NewNotification, NotificationUrls};

const APP: &str = "com.example.app";

/// Somebody who takes notifications, and answers as he is told.
struct NotificationReceiver {
    url: String,
    received_bodies: Arc<Mutex<Vec<Value>>>,
    status: Arc<Mutex<u16>>,
}

impl NotificationReceiver {
    async fn new() -> Self {
        type Shared = (Arc<Mutex<Vec<Value>>>, Arc<Mutex<u16>>);
        async fn take(State((seen, status)): State<Shared>, text: String) -> StatusCode {
            seen.lock()
                .unwrap()
                .push(serde_json::from_str(&text).unwrap());
            StatusCode::from_u16(*status.lock().unwrap()).unwrap()
        }
        let (seen, status): Shared = (Arc::default(), Arc::new(Mutex::new(200)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let routes = Router::new()
            .fallback(take)
            .with_state((seen.clone(), status.clone()));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self {
            url,
            received_bodies: seen,
            status,
        }
    }

    fn set_status(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    /// What was posted last, not checked.
    fn last_payload(&self) -> Value {
        let body = self.received_bodies.lock().unwrap().last().unwrap().clone();
        decode_payload(body["signedPayload"].as_str().unwrap())
    }
}

fn decode_payload(jws: &str) -> Value {
    let part = jws.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// Notifications are posted when a test says so.
fn manual_urls(url: &str) -> NotificationUrls {
    NotificationUrls {
        manual: true,
        ..NotificationUrls::for_both_environments(url)
    }
}

async fn push_newest(world: &TestSimulator) -> u16 {
    let apple = world.simulator.apple();
    let newest = apple.list_notifications().pop().unwrap();
    apple
        .push_notification(&newest.notification_uuid)
        .await
        .unwrap()
        .status
}

#[tokio::test]
async fn a_purchase_is_reported_with_everything_signed() {
    let world = start_simulator().await;
    let receiver = NotificationReceiver::new().await;
    let apple = world.simulator.apple();
    // Without an address there is nothing to report.
    apple.create_transaction(NewTransaction::default()).unwrap();
    assert_eq!(apple.list_notifications(), []);
    apple
        .set_notification_urls(APP, manual_urls(&receiver.url))
        .unwrap();

    let bought = apple.create_transaction(NewTransaction::default()).unwrap();
    let id = bought.transaction_id;
    assert_eq!(push_newest(&world).await, 200);
    let first = receiver.last_payload();
    assert_eq!(first["notificationType"], "SUBSCRIBED");
    assert_eq!(first["subtype"], "INITIAL_BUY");
    assert_eq!(first["version"], "2.0");
    assert_eq!(first["signedDate"], world.clock.now().as_millis());
    let data = &first["data"];
    assert_eq!(data["bundleId"], APP);
    assert_eq!(data["environment"], "Sandbox");
    assert_eq!(data["appAppleId"], apple.get_app(APP).app_apple_id);
    assert_eq!(data["status"], 1);
    let transaction = decode_payload(data["signedTransactionInfo"].as_str().unwrap());
    assert_eq!(
        transaction,
        Value::Object(apple.transaction_payload(&id).unwrap())
    );
    let renewal = decode_payload(data["signedRenewalInfo"].as_str().unwrap());
    assert_eq!(renewal["originalTransactionId"], id);
}

#[tokio::test]
async fn every_change_is_reported_as_apple_does() {
    let world = start_simulator().await;
    let apple = world.simulator.apple();
    apple
        .set_notification_urls(APP, manual_urls("http://127.0.0.1:1/"))
        .unwrap();
    let bought = apple.create_transaction(NewTransaction::default()).unwrap();
    let id = bought.transaction_id;
    let lite = "com.example.app.lite.monthly".to_owned();
    for (change, kind, subtype) in [
        (TransactionChange::Renew {}, "DID_RENEW", None),
        (
            TransactionChange::Cancel {},
            "DID_CHANGE_RENEWAL_STATUS",
            Some("AUTO_RENEW_DISABLED"),
        ),
        (
            TransactionChange::Resume {},
            "DID_CHANGE_RENEWAL_STATUS",
            Some("AUTO_RENEW_ENABLED"),
        ),
        (
            TransactionChange::Downgrade { product_id: lite },
            "DID_CHANGE_RENEWAL_PREF",
            Some("DOWNGRADE"),
        ),
        (
            TransactionChange::Downgrade {
                product_id: bought.product_id.clone(),
            },
            "DID_CHANGE_RENEWAL_PREF",
            None,
        ),
        (
            TransactionChange::Upgrade {
                product_id: "pro.yearly".to_owned(),
                period: None,
                price: None,
            },
            "DID_CHANGE_RENEWAL_PREF",
            Some("UPGRADE"),
        ),
        (
            TransactionChange::Extend { days: 3 },
            "RENEWAL_EXTENDED",
            None,
        ),
        (
            TransactionChange::Grace { days: None },
            "DID_FAIL_TO_RENEW",
            Some("GRACE_PERIOD"),
        ),
        (
            TransactionChange::BillingRetry {},
            "GRACE_PERIOD_EXPIRED",
            None,
        ),
        (
            TransactionChange::Renew {},
            "DID_RENEW",
            Some("BILLING_RECOVERY"),
        ),
        (
            TransactionChange::BillingRetry {},
            "DID_FAIL_TO_RENEW",
            None,
        ),
        (
            TransactionChange::Expire { intent: None },
            "EXPIRED",
            Some("BILLING_RETRY"),
        ),
        (
            TransactionChange::Renew {},
            "SUBSCRIBED",
            Some("RESUBSCRIBE"),
        ),
        (
            TransactionChange::Expire { intent: Some(1) },
            "EXPIRED",
            Some("VOLUNTARY"),
        ),
        (
            TransactionChange::Expire { intent: Some(3) },
            "EXPIRED",
            Some("PRICE_INCREASE"),
        ),
        (
            TransactionChange::Expire { intent: Some(4) },
            "EXPIRED",
            Some("PRODUCT_NOT_FOR_SALE"),
        ),
        (
            TransactionChange::Expire { intent: Some(5) },
            "EXPIRED",
            None,
        ),
        (
            TransactionChange::Refund {
                reason: 0,
                percentage: None,
            },
            "REFUND",
            None,
        ),
        (TransactionChange::ReverseRefund {}, "REFUND_REVERSED", None),
        (TransactionChange::Revoke {}, "REVOKE", None),
    ] {
        let count = apple.list_notifications().len();
        apple.change_transaction(&id, &change).unwrap();
        assert_eq!(apple.list_notifications().len(), count + 1, "{change:?}");
        let newest = apple.list_notifications().pop().unwrap();
        assert_eq!(
            (newest.notification_type.as_str(), newest.subtype.as_deref()),
            (kind, subtype),
            "{change:?}"
        );
        assert_eq!(newest.original_transaction_id.as_deref(), Some(&*id));
    }
    let count = apple.list_notifications().len();
    apple
        .change_transaction(&id, &TransactionChange::Forget {})
        .unwrap();
    assert_eq!(apple.list_notifications().len(), count);
}

#[tokio::test]
async fn what_is_no_subscription_is_charged_once_and_runs_out_in_silence() {
    let world = start_simulator().await;
    let apple = world.simulator.apple();
    apple
        .set_notification_urls(APP, manual_urls("http://127.0.0.1:1/"))
        .unwrap();
    for kind in [ProductType::Consumable, ProductType::NonRenewing] {
        let new = NewTransaction {
            kind,
            ..NewTransaction::default()
        };
        let sold = apple.create_transaction(new).unwrap();
        let newest = apple.list_notifications().pop().unwrap();
        assert_eq!(newest.notification_type, "ONE_TIME_CHARGE");
        if kind == ProductType::NonRenewing {
            let expire = TransactionChange::Expire { intent: None };
            apple
                .change_transaction(&sold.transaction_id, &expire)
                .unwrap();
        }
    }
    assert_eq!(apple.list_notifications().len(), 2, "one a purchase");
}

#[tokio::test]
async fn anything_can_be_reported() {
    let world = start_simulator().await;
    let receiver = NotificationReceiver::new().await;
    let apple = world.simulator.apple();
    let refused = apple.publish_notification(APP, &NewNotification::new("TEST", None));
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("/control/apple/push")
    );
    apple
        .set_notification_urls(APP, manual_urls(&receiver.url))
        .unwrap();
    let report = async |body: Value| {
        let path = format!("/apple/notifications/{APP}");
        let (status, made) = world.call_control("POST", &path, &body.to_string()).await;
        assert_eq!(status, 201, "{made}");
        assert_eq!(push_newest(&world).await, 200);
        receiver.last_payload()
    };
    let sent =
        report(json!({ "notificationType": "RENEWAL_EXTENSION", "subtype": "SUMMARY" })).await;
    assert_eq!(sent["summary"]["succeededCount"], 5);
    let sent = report(json!({ "notificationType": "EXTERNAL_PURCHASE_TOKEN" })).await;
    let id = &sent["externalPurchaseToken"]["externalPurchaseId"];
    assert!(id.as_str().unwrap().starts_with("SANDBOX"));
    let sent =
        report(json!({ "notificationType": "RESCIND_CONSENT", "environment": "production" })).await;
    let app = sent["appData"]["signedAppTransactionInfo"]
        .as_str()
        .unwrap();
    assert_eq!(decode_payload(app)["receiptType"], "Production");
    let sent = report(json!({
        "notificationType": "NEW",
        "block": { "bundleVersion": null, "more": 1 },
        "fields": { "extra": true, "version": null },
    }))
    .await;
    assert_eq!(sent["extra"], true);
    assert_eq!(sent["data"]["more"], 1);
    assert!(sent.get("version").is_none() && sent["data"].get("bundleVersion").is_none());

    let (status, _) = world
        .call_control(
            "POST",
            "/apple/push/com.example.app",
            r#"{"sandbox":"ftp://x"}"#,
        )
        .await;
    assert_eq!(status, 400);
    let (status, _) = world
        .call_control(
            "POST",
            "/apple/notifications/com.example.app",
            r#"{"notificationType":"REFUND","transactionId":"1"}"#,
        )
        .await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_test_notification_can_be_asked_for_and_followed() {
    let world = start_simulator().await;
    let receiver = NotificationReceiver::new().await;
    let apple = world.simulator.apple();
    let ask = async |environment: &str| {
        world
            .post_apple(environment, "notifications/test", &json!({}))
            .await
    };
    let status = async |token: &str| {
        world
            .ask_apple("sandbox", &format!("notifications/test/{token}"))
            .await
    };
    let code = async |answer: reqwest::Response| {
        (
            answer.status().as_u16(),
            json_body(answer).await["errorCode"].clone(),
        )
    };

    assert_eq!(code(ask("sandbox").await).await, (404, json!(4_040_007)));
    let sandbox_only = NotificationUrls {
        production: None,
        ..manual_urls(&receiver.url)
    };
    apple.set_notification_urls(APP, sandbox_only).unwrap();
    assert_eq!(code(ask("production").await).await, (404, json!(4_040_007)));
    let answer = json_body(ask("sandbox").await).await;
    let token = answer["testNotificationToken"].as_str().unwrap();
    assert_eq!(code(status(token).await).await, (404, json!(4_040_008)));
    assert_eq!(code(status("x").await).await, (400, json!(4_000_020)));

    receiver.set_status(500);
    assert_eq!(push_newest(&world).await, 500);
    let attempt = |result: &str| json!({ "attemptDate": world.clock.now().as_millis(), "sendAttemptResult": result });
    let failed = json_body(status(token).await).await;
    assert_eq!(
        failed["sendAttempts"],
        json!([attempt("UNSUCCESSFUL_HTTP_RESPONSE_CODE")])
    );
    receiver.set_status(204);
    assert_eq!(push_newest(&world).await, 204);
    let done = json_body(status(token).await).await;
    assert_eq!(done["sendAttempts"][1], attempt("SUCCESS"));
    let sent = decode_payload(done["signedPayload"].as_str().unwrap());
    assert_eq!(sent, receiver.last_payload());
    assert_eq!(sent["notificationType"], "TEST");
    assert_eq!(sent["data"].get("signedTransactionInfo"), None);
    // In the other environment nobody knows it.
    let elsewhere = world
        .ask_apple("production", &format!("notifications/test/{token}"))
        .await;
    assert_eq!(code(elsewhere).await, (404, json!(4_040_008)));
}

#[tokio::test]
async fn the_history_has_what_was_sent_twenty_a_page() {
    let world = start_simulator().await;
    let receiver = NotificationReceiver::new().await;
    let apple = world.simulator.apple();
    apple
        .set_notification_urls(APP, manual_urls(&receiver.url))
        .unwrap();
    let start = world.clock.now().as_millis();
    let bought = apple.create_transaction(NewTransaction::default()).unwrap();
    assert_eq!(push_newest(&world).await, 200);
    for count in 0..45 {
        world.clock.advance(Duration::from_secs(1));
        apple
            .change_transaction(&bought.transaction_id, &TransactionChange::Renew {})
            .unwrap();
        receiver.set_status(if count % 3 == 0 { 503 } else { 200 });
        push_newest(&world).await;
    }
    // Another world's, another app's, and one that was never sent.
    let production = NewTransaction {
        environment: SimulatedEnvironment::Production,
        ..NewTransaction::default()
    };
    apple.create_transaction(production).unwrap();
    push_newest(&world).await;
    apple
        .publish_notification(APP, &NewNotification::new("TEST", None))
        .unwrap();

    let end = world.clock.now().as_millis();
    let dates = json!({ "startDate": start, "endDate": end });
    let page = async |query: &Value, token: &str| {
        let path = match token {
            "" => "notifications/history".to_owned(),
            token => format!("notifications/history?paginationToken={token}"),
        };
        let answer = world.post_apple("sandbox", &path, query).await;
        (answer.status().as_u16(), json_body(answer).await)
    };
    let all = async |query: &Value| {
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let (status, answer) = page(query, &token).await;
            assert_eq!(status, 200, "{answer}");
            let records = answer["notificationHistory"].as_array().unwrap();
            assert!(records.len() <= 20);
            found.extend(records.iter().map(|record| {
                assert_eq!(record["sendAttempts"].as_array().unwrap().len(), 1);
                decode_payload(record["signedPayload"].as_str().unwrap())
            }));
            match (&answer["hasMore"], answer["paginationToken"].as_str()) {
                (Value::Bool(true), Some(next)) => token = next.to_owned(),
                (more, next) => {
                    assert_eq!((more, next), (&json!(false), None));
                    return found;
                }
            }
        }
    };
    let with = |more: Value| {
        let mut query = dates.clone();
        query
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        query
    };
    assert_eq!(all(&dates).await.len(), 46);
    assert_eq!(all(&with(json!({ "onlyFailures": true }))).await.len(), 15);
    assert_eq!(
        all(&with(json!({ "notificationType": "DID_RENEW" })))
            .await
            .len(),
        45
    );
    let subscribed =
        json!({ "notificationType": "SUBSCRIBED", "notificationSubtype": "INITIAL_BUY" });
    assert_eq!(all(&with(subscribed)).await.len(), 1);
    assert_eq!(
        all(&with(json!({ "transactionId": bought.transaction_id })))
            .await
            .len(),
        46
    );
    assert_eq!(all(&with(json!({ "transactionId": "1" }))).await.len(), 0);
    assert_eq!(
        all(&with(json!({ "endDate": start + 5000 }))).await.len(),
        6
    );
}

#[tokio::test]
async fn a_question_about_the_history_that_is_wrong_has_its_number() {
    let world = start_simulator().await;
    let end = world.clock.now().as_millis();
    let start = end - 1000;
    let dates = json!({ "startDate": start, "endDate": end });
    let with = |more: Value| {
        let mut query = dates.clone();
        query
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        query
    };
    let day = 86_400_000;
    for (query, token, code) in [
        (json!({}), "", 4_000_015),
        (json!({ "startDate": "x", "endDate": 1 }), "", 4_000_015),
        (json!({ "startDate": start }), "", 4_000_016),
        (json!({ "startDate": end, "endDate": start }), "", 4_000_013),
        (
            json!({ "startDate": start - 181 * day, "endDate": end }),
            "",
            4_000_012,
        ),
        (dates.clone(), "nonsense", 4_000_014),
        (
            with(json!({ "notificationSubtype": "INITIAL_BUY" })),
            "",
            4_000_018,
        ),
        (
            with(json!({ "notificationType": "TEST", "transactionId": "1" })),
            "",
            4_000_019,
        ),
        (with(json!({ "onlyFailures": 7 })), "", 4_000_000),
    ] {
        let path = match token {
            "" => "notifications/history".to_owned(),
            token => format!("notifications/history?paginationToken={token}"),
        };
        let answer = world.post_apple("sandbox", &path, &query).await;
        let (status, answer) = (answer.status().as_u16(), json_body(answer).await);
        assert_eq!(
            (status, &answer["errorCode"]),
            (400, &json!(code)),
            "{query}"
        );
    }
}

#[tokio::test]
async fn what_was_not_taken_is_posted_again_when_somebody_says_so() {
    let world = start_simulator().await;
    let receiver = NotificationReceiver::new().await;
    let apple = world.simulator.apple();
    apple
        .set_notification_urls(APP, manual_urls(&receiver.url))
        .unwrap();
    apple.create_transaction(NewTransaction::default()).unwrap();
    receiver.set_status(503);
    assert_eq!(push_newest(&world).await, 503);
    let first = receiver.last_payload();
    assert!(!apple.list_notifications()[0].is_delivered());
    receiver.set_status(200);
    assert_eq!(apple.redeliver_undelivered(), 1);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !apple.list_notifications()[0].is_delivered() {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    assert_eq!(
        receiver.last_payload(),
        first,
        "the same, under the same id"
    );
    assert_eq!(apple.redeliver_undelivered(), 0);
    // Nobody listens there: that is told too.
    apple
        .set_notification_urls(APP, manual_urls("http://127.0.0.1:1/"))
        .unwrap();
    apple.create_transaction(NewTransaction::default()).unwrap();
    assert_eq!(push_newest(&world).await, 0);
    let newest = apple.list_notifications().pop().unwrap();
    assert_eq!(newest.send_attempts[0].send_attempt_result, "SOCKET_ISSUE");
}
