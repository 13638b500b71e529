use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{TestSimulator, start_simulator, with};
use crate::simulator::state::apple_notifications::{NewNotification, NotificationUrls};

const APP: &str = "com.example.app";
/// A port on which nothing listens.
const UNREACHABLE: &str = "http://127.0.0.1:1/";

/// A server that records the notifications it is sent and answers with a chosen status.
#[derive(Clone)]
struct NotificationReceiver {
    received: Arc<Mutex<Vec<Value>>>,
    status: Arc<Mutex<u16>>,
}

impl NotificationReceiver {
    /// Starts one, and makes it the address of the app's notifications, which are posted when a test asks for it.
    async fn start(world: &TestSimulator) -> Self {
        async fn receive(State(this): State<NotificationReceiver>, body: String) -> StatusCode {
            let body = serde_json::from_str(&body).unwrap();
            this.received.lock().unwrap().push(body);
            StatusCode::from_u16(*this.status.lock().unwrap()).unwrap()
        }
        let this = Self {
            received: Arc::default(),
            status: Arc::new(Mutex::new(200)),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        post_to(
            world,
            &format!("http://{}/hook", listener.local_addr().unwrap()),
        );
        let routes = Router::new().fallback(receive).with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        this
    }

    fn set_status(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    fn last_payload(&self) -> Value {
        decode_payload(&self.received.lock().unwrap().last().unwrap()["signedPayload"])
    }
}

fn post_to(world: &TestSimulator, url: &str) {
    let urls = NotificationUrls {
        manual: true,
        ..NotificationUrls::for_both_environments(url)
    };
    world.apple.set_notification_urls(APP, urls).unwrap();
}

fn decode_payload(jws: &Value) -> Value {
    let part = jws.as_str().unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

async fn push_newest(world: &TestSimulator) -> u16 {
    let newest = world.apple.list_notifications().pop().unwrap();
    let pushed = world
        .apple
        .push_notification(&newest.notification_uuid)
        .await;
    pushed.unwrap().status
}

#[tokio::test]
async fn a_change_is_reported_with_its_type_and_subtype() {
    let world = start_simulator().await;
    // Without an address there is no notification.
    world.buy(json!({}));
    assert_eq!(world.apple.list_notifications(), []);
    post_to(&world, UNREACHABLE);
    let bought = world.buy(json!({}));
    #[rustfmt::skip]
    let cases = [
        (json!({"action": "downgrade", "productId": "lite"}), "DID_CHANGE_RENEWAL_PREF", Some("DOWNGRADE")),
        (json!({"action": "downgrade", "productId": bought.product_id}), "DID_CHANGE_RENEWAL_PREF", None),
        (json!({"action": "expire", "intent": 3}), "EXPIRED", Some("PRICE_INCREASE")),
        (json!({"action": "expire", "intent": 4}), "EXPIRED", Some("PRODUCT_NOT_FOR_SALE")),
        (json!({"action": "expire", "intent": 5}), "EXPIRED", None),
    ];
    for (change, kind, subtype) in cases {
        world
            .change(&bought.transaction_id, change.clone())
            .unwrap();
        let newest = world.apple.list_notifications().pop().unwrap();
        assert_eq!(
            (&*newest.notification_type, newest.subtype.as_deref()),
            (kind, subtype),
            "{change}"
        );
    }
    let count = world.apple.list_notifications().len();
    world
        .change(&bought.transaction_id, json!({"action": "forget"}))
        .unwrap();
    // A purchase that does not renew expires without a notification.
    let season = world.buy(json!({"type": "non-renewing"})).transaction_id;
    world.change(&season, json!({"action": "expire"})).unwrap();
    let notifications = world.apple.list_notifications();
    assert_eq!(notifications.len(), count + 1);
    assert_eq!(notifications[count].notification_type, "ONE_TIME_CHARGE");
}

/// A genuine notification about a subscription is three JWS, two of them inside the third, each with the same three
/// certificates: 18.7 KB.
#[tokio::test]
async fn a_notification_is_as_large_as_apples() {
    let world = start_simulator().await;
    post_to(&world, UNREACHABLE);
    let user = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";
    let bought = world.buy(json!({"environment": "production", "appAccountToken": user}));
    world
        .change(&bought.transaction_id, json!({"action": "renew"}))
        .unwrap();
    let sent = world.apple.list_notifications().pop().unwrap();
    assert_eq!(sent.notification_type, "DID_RENEW");
    let size = json!({ "signedPayload": sent.signed_payload })
        .to_string()
        .len();
    assert!((18_000..=19_500).contains(&size), "{size} bytes");

    let header = sent.signed_payload.split('.').next().unwrap();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    let chain = header["x5c"].as_array().unwrap();
    let sizes: Vec<_> = chain
        .iter()
        .map(|one| STANDARD.decode(one.as_str().unwrap()).unwrap().len())
        .collect();
    // Apple's are of 1077, 794 and 583 bytes.
    let is_near = |size: usize, genuine: usize| size.abs_diff(genuine) <= genuine / 10;
    assert!(
        sizes.len() == 3
            && [1077, 794, 583]
                .iter()
                .zip(&sizes)
                .all(|(genuine, size)| is_near(*size, *genuine)),
        "{sizes:?}"
    );
}

#[tokio::test]
async fn any_notification_can_be_posted() {
    let world = start_simulator().await;
    let test = NewNotification::new("TEST", None);
    let refused = world.apple.publish_notification(APP, &test).unwrap_err();
    assert!(refused.to_string().contains("/control/apple/push"));
    let receiver = NotificationReceiver::start(&world).await;
    let path = format!("/apple/notifications/{APP}");
    let publish = async |body: Value| {
        let (status, made) = world.call_control("POST", &path, &body.to_string()).await;
        assert_eq!(status, 201, "{made}");
        assert_eq!(push_newest(&world).await, 200);
        receiver.last_payload()
    };
    let sent =
        publish(json!({"notificationType": "RENEWAL_EXTENSION", "subtype": "SUMMARY"})).await;
    assert_eq!(sent["summary"]["succeededCount"], 5);
    let sent = publish(json!({"notificationType": "EXTERNAL_PURCHASE_TOKEN"})).await;
    let id = &sent["externalPurchaseToken"]["externalPurchaseId"];
    assert!(id.as_str().unwrap().starts_with("SANDBOX"));
    let sent =
        publish(json!({"notificationType": "RESCIND_CONSENT", "environment": "production"})).await;
    let app = decode_payload(&sent["appData"]["signedAppTransactionInfo"]);
    assert_eq!(app["receiptType"], "Production");
    let sent = publish(json!({
        "notificationType": "NEW",
        "block": {"bundleVersion": null, "more": 1},
        "fields": {"extra": true, "version": null},
    }))
    .await;
    assert_eq!(
        (&sent["extra"], &sent["data"]["more"]),
        (&json!(true), &json!(1))
    );
    assert!(sent.get("version").is_none() && sent["data"].get("bundleVersion").is_none());

    let unknown = r#"{"notificationType":"REFUND","transactionId":"1"}"#;
    #[rustfmt::skip]
    let cases = [
        ("/apple/push/com.example.app", r#"{"sandbox":"ftp://x"}"#, 400),
        (&*path, unknown, 404),
    ];
    for (path, body, expected) in cases {
        let (status, answer) = world.call_control("POST", path, body).await;
        assert_eq!(status, expected, "{answer}");
    }
}

#[tokio::test]
async fn the_status_of_a_test_notification_follows_its_attempts() {
    let world = start_simulator().await;
    let request = async |environment| {
        world
            .post_apple(environment, "notifications/test", &json!({}))
            .await
    };
    let get = async |environment, token: &str| {
        world
            .get_apple(environment, &format!("notifications/test/{token}"))
            .await
    };
    let code = |answer: (u16, Value)| (answer.0, answer.1["errorCode"].clone());
    assert_eq!(code(request("sandbox").await), (404, json!(4_040_007)));
    let receiver = NotificationReceiver::start(&world).await;
    let (_, answer) = request("sandbox").await;
    let token = answer["testNotificationToken"].as_str().unwrap();
    assert_eq!(code(get("sandbox", token).await), (404, json!(4_040_008)));
    assert_eq!(code(get("sandbox", "x").await), (400, json!(4_000_020)));

    let attempt = |result: &str| json!({"attemptDate": world.clock.now().as_millis(), "sendAttemptResult": result});
    let mut attempts = Vec::new();
    for (status, result) in [(500, "UNSUCCESSFUL_HTTP_RESPONSE_CODE"), (204, "SUCCESS")] {
        receiver.set_status(status);
        assert_eq!(push_newest(&world).await, status);
        attempts.push(attempt(result));
        let (_, answer) = get("sandbox", token).await;
        assert_eq!(answer["sendAttempts"], json!(attempts));
        let sent = decode_payload(&answer["signedPayload"]);
        assert_eq!(sent, receiver.last_payload());
        assert_eq!(sent["notificationType"], "TEST");
        assert_eq!(sent["data"].get("signedTransactionInfo"), None);
    }
    assert_eq!(
        code(get("production", token).await),
        (404, json!(4_040_008))
    );
}

#[tokio::test]
async fn the_history_lists_what_was_sent_twenty_on_a_page() {
    let world = start_simulator().await;
    let receiver = NotificationReceiver::start(&world).await;
    let start = world.clock.now().as_millis();
    let id = world.buy(json!({})).transaction_id;
    push_newest(&world).await;
    for count in 0..45 {
        world.clock.advance(Duration::from_secs(1));
        world.change(&id, json!({"action": "renew"})).unwrap();
        receiver.set_status(if count % 3 == 0 { 503 } else { 200 });
        push_newest(&world).await;
    }
    // Not listed: one of the other environment, and one that was never sent.
    world.buy(json!({"environment": "production"}));
    push_newest(&world).await;
    let test = NewNotification::new("TEST", None);
    world.apple.publish_notification(APP, &test).unwrap();

    let dates = json!({"startDate": start, "endDate": world.clock.now().as_millis()});
    let count = async |query: Value| {
        let (mut count, mut path) = (0, "notifications/history".to_owned());
        loop {
            let (status, answer) = world.post_apple("sandbox", &path, &query).await;
            assert_eq!(status, 200, "{answer}");
            let records = answer["notificationHistory"].as_array().unwrap();
            assert!(records.len() <= 20);
            assert!(
                records
                    .iter()
                    .all(|record| record["sendAttempts"][0].is_object())
            );
            count += records.len();
            let next = answer["paginationToken"].as_str();
            assert_eq!(answer["hasMore"], next.is_some());
            let Some(next) = next else { return count };
            path = format!("notifications/history?paginationToken={next}");
        }
    };
    let subscribed = with(&dates, "notificationType", "SUBSCRIBED");
    #[rustfmt::skip]
    let cases = [
        (dates.clone(), 46),
        (with(&dates, "onlyFailures", true), 15),
        (with(&dates, "notificationType", "DID_RENEW"), 45),
        (with(&subscribed, "notificationSubtype", "INITIAL_BUY"), 1),
        (with(&dates, "transactionId", id), 46),
        (with(&dates, "transactionId", "1"), 0),
        (with(&dates, "endDate", start + 5000), 6),
    ];
    for (query, expected) in cases {
        assert_eq!(count(query.clone()).await, expected, "{query}");
    }
}

#[tokio::test]
async fn a_wrong_query_of_the_history_has_its_own_error() {
    let world = start_simulator().await;
    let end = world.clock.now().as_millis();
    let dates = json!({"startDate": end - 1000, "endDate": end});
    // Production keeps its history for 180 days.
    let long_ago = end - 31 * 86_400_000;
    let test = with(&dates, "notificationType", "TEST");
    let history = "notifications/history";
    #[rustfmt::skip]
    let cases = [
        (history, json!({}), 4_000_015),
        (history, with(&dates, "startDate", "x"), 4_000_015),
        (history, json!({"startDate": end}), 4_000_016),
        (history, with(&dates, "startDate", end), 4_000_013),
        (history, with(&dates, "startDate", long_ago), 4_000_012),
        ("notifications/history?paginationToken=x", dates.clone(), 4_000_014),
        (history, with(&dates, "notificationSubtype", "INITIAL_BUY"), 4_000_018),
        (history, with(&test, "transactionId", "1"), 4_000_019),
        (history, with(&dates, "onlyFailures", 7), 4_000_000),
    ];
    for (path, query, code) in cases {
        let (status, answer) = world.post_apple("sandbox", path, &query).await;
        assert_eq!(
            (status, &answer["errorCode"]),
            (400, &json!(code)),
            "{query}"
        );
    }
    let old = with(&dates, "startDate", long_ago);
    let (status, _) = world.post_apple("production", history, &old).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_notification_that_was_not_accepted_is_posted_again_on_request() {
    let world = start_simulator().await;
    let receiver = NotificationReceiver::start(&world).await;
    world.buy(json!({}));
    receiver.set_status(503);
    assert_eq!(push_newest(&world).await, 503);
    let first = receiver.last_payload();
    assert!(!world.apple.list_notifications()[0].is_delivered());
    receiver.set_status(200);
    assert_eq!(world.apple.redeliver_undelivered(), 1);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !world.apple.list_notifications()[0].is_delivered() {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    assert_eq!(receiver.last_payload(), first, "with the same id");
    assert_eq!(world.apple.redeliver_undelivered(), 0);
    post_to(&world, UNREACHABLE);
    world.buy(json!({}));
    assert_eq!(push_newest(&world).await, 0);
    let newest = world.apple.list_notifications().pop().unwrap();
    assert_eq!(newest.send_attempts[0].send_attempt_result, "SOCKET_ISSUE");
}
