//! `POST /v1/webhooks/google/{tenantId}`, and what is stored of each message.

use std::time::Duration;

use attesto::simulator::state::google::{
    CanceledBy, NewProduct, NewSubscription, ProductChange, SimulatedSubscription,
    SubscriptionChange, SubscriptionReplacement,
};
use attesto::simulator::state::google_notifications::{PublishedMessage, PushSubscription};
use attesto::simulator::{Fault, PushTokenFlaw};
use attesto::stores::google::account::GoogleServiceAccount;
use attesto::stores::google::store::{self, NewGoogleCredentials};
use attesto::tenants;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sqlx::Row as _;
use tracing::level_filters::LevelFilter;

use crate::world::attesto::{APP, Answer, Tenant, World};
use crate::world::event::event_body;
use crate::world::log::Warnings;
use crate::world::wait::{finished, wait_until};

const USER: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";

/// A tenant whose notifications are pushed one by one when the test asks for it.
struct Shop {
    world: World,
    tenant: Tenant,
}

impl Shop {
    async fn open() -> Self {
        let shop = Self::unnamed().await;
        let account = shop.world.simulator.google().push_account();
        shop.name(None, Some(account)).await;
        shop
    }

    /// A tenant without a configured push account.
    async fn unnamed() -> Self {
        let world = World::new().await;
        let tenant = world.tenant().await;
        let shop = Self { world, tenant };
        shop.push_to(&shop.tenant.id.to_string());
        shop
    }

    fn push_to(&self, tenant: &str) {
        let endpoint = self.world.url(&format!("/v1/webhooks/google/{tenant}"));
        let to = PushSubscription {
            manual: true,
            ..PushSubscription::for_endpoint(&endpoint)
        };
        self.play().set_push_subscription(APP, to).unwrap();
    }

    async fn name(&self, audience: Option<&str>, account: Option<&str>) {
        self.world
            .set_google_push(&self.tenant, audience, account)
            .await;
    }

    fn play(&self) -> attesto::simulator::control::GoogleScenario {
        self.world.simulator.google()
    }

    fn newest(&self) -> PublishedMessage {
        self.play()
            .published_messages()
            .pop()
            .expect("something was published")
    }

    /// Pushes the newest message and reads the stored event.
    async fn push(&self) -> Event {
        let message = self.newest();
        let pushed = self.play().push_message(&message.message_id).await.unwrap();
        assert_eq!(pushed.status, 200, "{}", pushed.body);
        assert_eq!(pushed.body["externalId"], message.message_id);
        self.event(pushed.body["eventId"].as_str().unwrap()).await
    }

    async fn notify(&self, block: &str, fields: Value) -> Event {
        self.play().publish_notification(APP, block, fields);
        self.push().await
    }

    async fn event(&self, id: &str) -> Event {
        let row = sqlx::query("select * from webhook_events where id = $1")
            .bind(id)
            .fetch_one(self.world.database().pool())
            .await
            .unwrap();
        let body = event_body(self.world.database(), id).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        // The delivered body and the columns for queries agree.
        for (column, found) in [
            ("event_type", &body["event"]),
            ("reason", &body["reason"]),
            ("platform_event", &body["platformEvent"]),
            ("environment", &body["environment"]),
            ("subject_key", &body["subject"]["key"]),
            ("subject_product_id", &body["subject"]["productId"]),
            ("subject_type", &body["subject"]["type"]),
            ("app_user_id", &body["appUserId"]),
            ("external_id", &body["externalId"]),
            ("tenant_id", &body["tenantId"]),
            ("source", &json!("google")),
        ] {
            let stored: Option<String> = row.get(column);
            assert_eq!(json!(stored), *found, "{column}");
        }
        assert_eq!(row.get::<Value, _>("decoded_payload"), body["data"]);
        assert_eq!(row.get::<Option<Value>, _>("raw_payload"), None);
        assert_eq!(body["eventId"], id);
        Event(body)
    }

    async fn count(&self) -> i64 {
        sqlx::query_scalar("select count(*) from webhook_events")
            .fetch_one(self.world.database().pool())
            .await
            .unwrap()
    }

    /// Sends a body made by the test with a valid token.
    async fn send(&self, body: &Value) -> Answer {
        let token = self.play().push_token(APP, None).unwrap();
        let path = format!("/v1/webhooks/google/{}", self.tenant.id);
        self.world
            .ask("POST", &path, Some(&token), Some(body))
            .await
    }

    fn subscribe(&self) -> SimulatedSubscription {
        let new = NewSubscription {
            obfuscated_external_account_id: Some(USER.to_owned()),
            ..NewSubscription::default()
        };
        self.play().buy_subscription(new).unwrap()
    }

    fn certs_asked(&self) -> usize {
        self.world.simulator.count_requests_at("google/certs")
    }
}

/// The body of a delivery.
struct Event(Value);

impl Event {
    fn word(&self) -> (&str, Option<&str>) {
        (self.0["event"].as_str().unwrap(), self.0["reason"].as_str())
    }

    fn key(&self) -> &str {
        self.0["subject"]["key"].as_str().unwrap()
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "one whole event, and a table of types"
)]
#[tokio::test]
async fn subscription_notifications_map_to_our_event_types() {
    let shop = Shop::open().await;
    let bought = shop.subscribe();
    let token = bought.purchase_token.clone();
    let first = shop.push().await;
    let message = shop.newest();
    let now = shop.world.clock.now();
    let sent: Value = serde_json::from_slice(&STANDARD.decode(&message.data).unwrap()).unwrap();
    assert_eq!(
        first.0,
        json!({
            "event": "subscription.purchased",
            "reason": "initial",
            "platformEvent": "google.subscription.4",
            "eventId": first.0["eventId"],
            "externalId": message.message_id,
            "timestamp": now.to_string(),
            "tenantId": shop.tenant.id,
            "source": "google",
            "environment": "production",
            "subject": {
                "key": token, "productId": "pro_monthly", "type": "subscription", "current": true, "supersededBy": null,
            },
            "appUserId": USER,
            "appUserIdSource": "purchase",
            "sequence": 1,
            "state": first.0["state"],
            "stateError": null,
            "data": sent,
            "raw": first.0["raw"],
        })
    );
    assert_eq!(first.0["raw"]["message"]["data"], message.data);
    assert_eq!(first.0["state"]["status"], "active");
    for (change, word, reason) in [
        (SubscriptionChange::Renew {}, "subscription.renewed", None),
        (
            SubscriptionChange::Cancel {
                by: CanceledBy::User,
            },
            "subscription.cancellation_scheduled",
            None,
        ),
        (
            SubscriptionChange::Restore {},
            "subscription.cancellation_revoked",
            None,
        ),
        (
            SubscriptionChange::Grace { days: None },
            "subscription.in_grace_period",
            None,
        ),
        (SubscriptionChange::Hold {}, "subscription.on_hold", None),
        (
            SubscriptionChange::Resume {},
            "subscription.recovered",
            None,
        ),
        (
            SubscriptionChange::Pause { days: None },
            "subscription.paused",
            None,
        ),
        (SubscriptionChange::Renew {}, "subscription.recovered", None),
        (
            SubscriptionChange::Defer { days: 3 },
            "subscription.deferred",
            None,
        ),
        (
            SubscriptionChange::Grace { days: None },
            "subscription.in_grace_period",
            None,
        ),
        (
            SubscriptionChange::Expire {},
            "subscription.expired",
            Some("billing_retry"),
        ),
    ] {
        shop.play().change_subscription(&token, &change).unwrap();
        let event = shop.push().await;
        assert_eq!(event.word(), (word, reason), "{change:?}");
        assert_eq!(event.key(), token);
        assert_eq!(event.0["appUserId"], USER);
    }
    let other = shop.subscribe().purchase_token;
    for (change, words) in [
        (
            SubscriptionChange::Cancel {
                by: CanceledBy::User,
            },
            vec![("subscription.cancellation_scheduled", None)],
        ),
        (
            SubscriptionChange::Expire {},
            vec![("subscription.expired", Some("voluntary"))],
        ),
        // A refund is reported in two messages; the second is the newest.
        (
            SubscriptionChange::Revoke {},
            vec![("subscription.refunded", Some("full"))],
        ),
    ] {
        shop.play().change_subscription(&other, &change).unwrap();
        for word in words {
            assert_eq!(shop.push().await.word(), word, "{change:?}");
        }
    }
    shop.world.end().await;
}

#[tokio::test]
async fn every_notification_block_sets_the_event_subject() {
    let shop = Shop::open().await;
    let product = shop
        .play()
        .buy_product(NewProduct {
            obfuscated_external_account_id: Some(USER.to_owned()),
            test_purchase: true,
            ..NewProduct::default()
        })
        .unwrap();
    let token = product.purchase_token.clone();
    let event = shop.push().await;
    assert_eq!(event.word(), ("product.purchased", None));
    assert_eq!(
        event.0["subject"],
        json!({
            "key": token, "productId": "coins_100", "type": "product", "current": true, "supersededBy": null,
        })
    );
    let product = event.0["subject"].clone();
    assert_eq!(event.0["appUserId"], USER);
    assert_eq!(event.0["environment"], "sandbox");
    shop.play()
        .change_product(&token, &ProductChange::Refund {})
        .unwrap();
    let event = shop.push().await;
    assert_eq!(event.word(), ("product.refunded", Some("full")));
    assert_eq!(event.0["platformEvent"], "google.voided");
    assert_eq!(event.0["subject"], product);

    shop.play().publish_test_notification(APP);
    let event = shop.push().await;
    assert_eq!(event.word(), ("test", None));
    assert_eq!(event.0["platformEvent"], "google.test");
    assert_eq!(
        (&event.0["subject"], &event.0["appUserId"]),
        (&Value::Null, &Value::Null)
    );

    let review = json!({ "version": "1.0", "orderId": "GPA.1", "refundReason": 7, "obfuscatedAccountId": USER });
    let event = shop.notify("pendingRefundReviewNotification", review).await;
    assert_eq!(event.word(), ("product.refund_review", None));
    assert_eq!(
        (&event.0["subject"], &event.0["appUserId"]),
        (&Value::Null, &json!(USER))
    );

    // An unknown notification number still has its subject; an unknown block has none.
    let subscription = shop.subscribe();
    let token = &subscription.purchase_token;
    let new = json!({ "notificationType": 99, "purchaseToken": token });
    let event = shop.notify("subscriptionNotification", new).await;
    assert_eq!(event.word(), ("unknown", None));
    assert_eq!(event.0["platformEvent"], "google.subscription.99");
    assert_eq!(
        (event.key(), &event.0["appUserId"]),
        (token.as_str(), &json!(USER))
    );
    let event = shop
        .notify("somethingNewNotification", json!({ "a": 1 }))
        .await;
    assert_eq!(event.word(), ("unknown", None));
    assert_eq!(
        event.0["data"]["somethingNewNotification"],
        json!({ "a": 1 })
    );
    assert_eq!(event.0["subject"], Value::Null);
    shop.world.end().await;
}

#[tokio::test]
async fn an_unreadable_message_is_stored_as_unknown() {
    let shop = Shop::open().await;
    for data in [
        b"".as_slice(),
        b"not JSON",
        b"\xff\xfe",
        b"[1,2]",
        br#""half a pair: \ud800""#,
        br#"{"packageName":7,"subscriptionNotification":"?"}"#,
        br#"{"packageName":"com.example.app","subscriptionNotification":{"notificationType":"two"}}"#,
    ] {
        shop.play().publish_message(APP, data);
        let event = shop.push().await;
        assert_eq!(event.word(), ("unknown", None), "{data:?}");
        assert_eq!(event.0["platformEvent"], "google.unknown");
        let data = serde_json::from_slice::<Value>(data).unwrap_or_default();
        assert_eq!(event.0["data"], data);
        assert_eq!(event.0["raw"]["message"]["messageId"], event.0["externalId"]);
    }
    for (id, data) in [
        ("1", Value::Null),
        ("2", json!("no base64!")),
        ("3", json!(7)),
    ] {
        let body = json!({ "message": { "messageId": id, "data": data, "publishTime": "2026-04-10T14:00:00.5Z" } });
        let answer = shop.send(&body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let event = shop.event(answer.body["eventId"].as_str().unwrap()).await;
        assert_eq!(event.word(), ("unknown", None));
        assert_eq!(event.0["timestamp"], "2026-04-10T14:00:00.500Z");
    }
    // Text that Postgres cannot store is replaced in the columns, and is delivered as it was sent.
    let odd = json!({ "testNotification": { "version": "a\u{0}b" } });
    let body =
        json!({ "message": { "message_id": "4", "data": STANDARD.encode(odd.to_string()) } });
    let answer = shop.send(&body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let stored: Value =
        sqlx::query_scalar("select decoded_payload from webhook_events where external_id = '4'")
            .fetch_one(shop.world.database().pool())
            .await
            .unwrap();
    let id = answer.body["eventId"].as_str().unwrap();
    let sent = event_body(shop.world.database(), id).await;
    assert_eq!(stored["testNotification"]["version"], "a\u{fffd}b");
    let sent: Value = serde_json::from_str(&sent).unwrap();
    assert_eq!(sent["data"], odd);
    assert_eq!(sent["timestamp"], shop.world.clock.now().to_string());
    shop.world.end().await;
}

#[tokio::test]
async fn unauthenticated_pushes_get_one_answer() {
    let shop = Shop::open().await;
    shop.subscribe();
    let id = shop.newest().message_id;
    let mut sentences = std::collections::BTreeSet::new();
    for flaw in PushTokenFlaw::ALL {
        let pushed = shop.play().push_message_with_flaw(&id, flaw).await.unwrap();
        assert_eq!(
            (pushed.status, &pushed.body["error"]),
            (401, &json!("UNAUTHENTICATED")),
            "{flaw:?}"
        );
        sentences.insert(pushed.body["message"].to_string());
    }
    // An API key is no push token, and an unknown tenant gets the same answer.
    let path = format!("/v1/webhooks/google/{}", shop.tenant.id);
    let with_key = shop
        .world
        .ask("POST", &path, Some(shop.tenant.key.expose()), None)
        .await;
    assert_eq!(with_key.status, 401);
    sentences.insert(with_key.body["message"].to_string());
    let stranger = attesto::base::id::TenantId::mint(shop.world.clock.now());
    shop.push_to(stranger.as_str());
    let pushed = shop.play().push_message(&id).await.unwrap();
    assert_eq!(pushed.status, 401);
    sentences.insert(pushed.body["message"].to_string());
    // Nor is a token for one tenant valid for another one that trusts the same account.
    let other = shop.world.tenant().await;
    let path = format!("/v1/webhooks/google/{}", other.id);
    shop.push_to(shop.tenant.id.as_str());
    let token = shop.play().push_token(APP, None);
    let answer = shop.world.ask("POST", &path, token.as_deref(), None).await;
    assert_eq!(answer.status, 401);
    sentences.insert(answer.body["message"].to_string());
    assert_eq!(sentences.len(), 1, "{sentences:?}");
    assert_eq!(shop.count().await, 0);

    let pushed = shop.play().push_message(&id).await.unwrap();
    assert_eq!(pushed.status, 200, "and then a good one: {}", pushed.body);
    shop.world.end().await;
}

#[tokio::test]
async fn pushes_are_refused_until_a_service_account_is_configured() {
    let shop = Shop::unnamed().await;
    shop.subscribe();
    let id = shop.newest().message_id;
    assert_eq!(shop.play().push_message(&id).await.unwrap().status, 401);
    let account = shop.play().push_account();
    shop.name(Some("attesto"), Some(account)).await;
    let eventually = |status| {
        let (shop, id) = (&shop, &id);
        async move {
            wait_until("the change is noticed", async || {
                shop.play().push_message(id).await.unwrap().status == status
            })
            .await;
        }
    };
    // Another audience than the configured one.
    assert_eq!(shop.play().push_message(&id).await.unwrap().status, 401);
    let endpoint = shop
        .world
        .url(&format!("/v1/webhooks/google/{}", shop.tenant.id));
    let to = PushSubscription {
        audience: Some("attesto".to_owned()),
        manual: true,
        ..PushSubscription::for_endpoint(&endpoint)
    };
    shop.play().set_push_subscription(APP, to).unwrap();
    eventually(200).await;
    let now = shop.world.clock.now();
    tenants::store::set_tenant_active(shop.world.database(), &shop.tenant.id, false, now)
        .await
        .unwrap();
    eventually(404).await;
    let pushed = shop.play().push_message(&id).await.unwrap();
    assert_eq!(pushed.body["error"], "TENANT_NOT_FOUND");
    let pushed = shop
        .play()
        .push_message_with_flaw(&id, PushTokenFlaw::Expired)
        .await
        .unwrap();
    assert_eq!(pushed.status, 401, "the token is looked at first");
    shop.world.end().await;
}

#[tokio::test]
async fn invalid_push_requests_are_refused() {
    let log = Warnings::listen_at(LevelFilter::INFO);
    let shop = Shop::open().await;
    for id in ["x", "tenant_", "key_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"] {
        let path = format!("/v1/webhooks/google/{id}");
        let answer = shop.world.ask("POST", &path, None, None).await;
        assert_eq!(answer.status, 400, "the id comes before the token");
        assert_eq!(answer.body["details"]["issues"][0]["path"], "tenantId");
    }
    for (body, path) in [
        (json!([]), ""),
        (json!({}), "message"),
        (json!({ "message": "x" }), "message"),
        (json!({ "message": {} }), "message.messageId"),
        (
            json!({ "message": { "messageId": "" } }),
            "message.messageId",
        ),
        (
            json!({ "message": { "messageId": 7 } }),
            "message.messageId",
        ),
        (
            json!({ "message": { "messageId": "x".repeat(257) } }),
            "message.messageId",
        ),
        (
            json!({ "message": { "message_id": "" } }),
            "message.message_id",
        ),
    ] {
        let answer = shop.send(&body).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (400, &json!("INVALID_REQUEST")),
            "{body}"
        );
        assert_eq!(answer.body["details"]["issues"][0]["path"], path, "{body}");
    }
    let large = json!({ "message": { "messageId": "1", "data": "A".repeat(1024 * 1024) } });
    let answer = shop.send(&large).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.body["details"]["maxBytes"], 1024 * 1024);
    let fits = json!({ "message": { "messageId": "1", "data": "A".repeat(1000 * 1024) } });
    assert_eq!(shop.send(&fits).await.status, 200);
    let other = json!({ "packageName": "com.example.other", "testNotification": {} });
    let body =
        json!({ "message": { "messageId": "2", "data": STANDARD.encode(other.to_string()) } });
    let answer = shop.send(&body).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(answer.body["details"]["issues"][0]["path"], "message.data");
    log.assert_each_400_has_a_cause();
    assert_eq!(shop.count().await, 1);
    let answer = shop
        .world
        .ask(
            "GET",
            &format!("/v1/webhooks/google/{}", shop.tenant.id),
            None,
            None,
        )
        .await;
    assert_eq!(answer.status, 405);
    shop.world.end().await;
}

#[tokio::test]
async fn fifty_concurrent_copies_become_one_event() {
    let shop = Shop::open().await;
    sqlx::query("insert into webhook_configs (tenant_id, callback_url, secret_enc) values ($1, 'https://a.example/hook', '\\x00')")
        .bind(shop.tenant.id.as_str())
        .execute(shop.world.database().pool())
        .await
        .unwrap();
    shop.subscribe();
    let (play, id) = (shop.play(), shop.newest().message_id);
    let copies = (0..50).map(|_| play.push_message(&id));
    let answers = futures_util::future::join_all(copies).await;
    let bodies: Vec<Value> = answers
        .into_iter()
        .map(|answer| {
            let answer = answer.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.body);
            answer.body
        })
        .collect();
    let new: Vec<&Value> = bodies.iter().filter(|body| body["isNew"] == true).collect();
    assert_eq!(new.len(), 1);
    assert_eq!(new[0]["enqueuedDelivery"], true);
    for body in &bodies {
        assert_eq!(body["eventId"], new[0]["eventId"]);
        assert_eq!(body["isNew"], body["enqueuedDelivery"]);
    }
    let deliveries: Vec<(String, String, String)> =
        sqlx::query_as("select event_id, tenant_id, callback_url from webhook_deliveries")
            .fetch_all(shop.world.database().pool())
            .await
            .unwrap();
    let event = new[0]["eventId"].as_str().unwrap().to_owned();
    let tenant = shop.tenant.id.to_string();
    assert_eq!(
        deliveries,
        [(event, tenant, "https://a.example/hook".to_owned())]
    );
    assert_eq!(shop.count().await, 1);
    assert_eq!(shop.certs_asked(), 1, "Google's keys were asked for once");

    // Without an active callback an event is stored and not delivered.
    sqlx::query("update webhook_configs set is_active = false")
        .execute(shop.world.database().pool())
        .await
        .unwrap();
    shop.play().publish_test_notification(APP);
    let pushed = shop
        .play()
        .push_message(&shop.newest().message_id)
        .await
        .unwrap();
    assert_eq!(
        (&pushed.body["isNew"], &pushed.body["enqueuedDelivery"]),
        (&json!(true), &json!(false))
    );
    shop.world.end().await;
}

#[tokio::test]
async fn one_message_to_two_tenants_becomes_two_events() {
    let shop = Shop::open().await;
    let second = shop.world.tenant().await;
    let file = shop.world.simulator.google_service_account().to_string();
    let new = NewGoogleCredentials {
        package_name: APP,
        key_file: file.as_bytes(),
        account: &GoogleServiceAccount::parse(file.as_bytes()).unwrap(),
        pubsub_audience: None,
        pubsub_service_account: Some(shop.play().push_account()),
        pubsub_topic: None,
    };
    store::set_credentials(
        shop.world.database(),
        shop.world.keyring(),
        &second.id,
        &new,
    )
    .await
    .unwrap();
    shop.subscribe();
    let first = shop.push().await;
    shop.push_to(second.id.as_str());
    let other = shop.push().await;
    assert_eq!(first.0["externalId"], other.0["externalId"]);
    assert_ne!(first.0["eventId"], other.0["eventId"]);
    assert_eq!(other.0["tenantId"], second.id.as_str());
    shop.world.end().await;
}

#[tokio::test]
async fn googles_public_keys_are_cached_and_survive_an_outage() {
    let shop = Shop::open().await;
    shop.subscribe();
    let id = shop.newest().message_id;
    let (play, simulator, clock) = (shop.play(), &shop.world.simulator, &shop.world.clock);
    let status = async || play.push_message(&id).await.unwrap().status;

    // Without cached keys and without an answer from Google: neither valid nor invalid.
    simulator
        .add_fault(Fault::at_place("google/certs").status(503).times(0))
        .unwrap();
    let pushed = play.push_message(&id).await.unwrap();
    assert_eq!(
        (pushed.status, &pushed.body["error"]),
        (503, &json!("UNAVAILABLE"))
    );
    assert!(
        pushed.body["details"]["retryAfterSeconds"]
            .as_u64()
            .is_some()
    );
    assert_eq!(status().await, 503);
    assert_eq!(shop.certs_asked(), 1, "not asked again within the minute");
    simulator.clear_faults();
    clock.advance(Duration::from_mins(1));
    assert_eq!(status().await, 200);
    assert_eq!(shop.certs_asked(), 2);

    // Fresh for the six hours that Google states.
    clock.advance(Duration::from_hours(5));
    assert_eq!(status().await, 200);
    assert_eq!(shop.certs_asked(), 2);

    // A later outage is survived, without extra requests.
    simulator
        .add_fault(Fault::at_place("google/certs").status(500).times(0))
        .unwrap();
    clock.advance(Duration::from_hours(2));
    for _ in 0..3 {
        assert_eq!(status().await, 200);
    }
    assert_eq!(shop.certs_asked(), 3);
    // A key id that is not cached may be a new key of Google's: this cannot be decided now.
    play.rotate_keys(false);
    assert_eq!(status().await, 503);
    simulator.clear_faults();
    clock.advance(Duration::from_mins(1));
    assert_eq!(
        status().await,
        200,
        "a rotated key is fetched when it is first seen"
    );
    assert_eq!(shop.certs_asked(), 4);

    // Invalid tokens cause at most one request a minute.
    for _ in 0..5 {
        let pushed = play
            .push_message_with_flaw(&id, PushTokenFlaw::UnknownKey)
            .await
            .unwrap();
        assert_eq!(pushed.status, 401);
    }
    assert_eq!(shop.certs_asked(), 4);
    clock.advance(Duration::from_mins(1));
    for _ in 0..5 {
        let pushed = play
            .push_message_with_flaw(&id, PushTokenFlaw::UnknownKey)
            .await
            .unwrap();
        assert_eq!(pushed.status, 401);
    }
    assert_eq!(shop.certs_asked(), 5);

    // A key that Google no longer publishes is refused, at the latest when the old set has expired.
    let old = play.push_token(APP, None).unwrap();
    play.rotate_keys(true);
    clock.advance(Duration::from_mins(2));
    assert_eq!(status().await, 200);
    let path = format!("/v1/webhooks/google/{}", shop.tenant.id);
    let answer = shop.world.ask("POST", &path, Some(&old), None).await;
    assert_eq!(answer.status, 401);
    shop.world.end().await;
}

#[tokio::test]
async fn linked_purchase_tokens_share_one_subject() {
    let shop = Shop::open().await;
    let root = shop.subscribe().purchase_token;
    assert_eq!(shop.push().await.key(), root);
    let mut token = root.clone();
    for product in ["pro_yearly", "team_yearly", "team_monthly"] {
        let by = SubscriptionReplacement {
            product_id: Some(product.to_owned()),
            ..SubscriptionReplacement::default()
        };
        token = shop
            .play()
            .replace_subscription(&token, by)
            .unwrap()
            .purchase_token;
        // The middle purchase was never reported: the chain is followed through it all the same.
        if product != "team_yearly" {
            let event = shop.push().await;
            assert_eq!(event.word(), ("subscription.upgraded", None));
            assert_eq!(
                event.0["subject"],
                json!({
                    "key": root, "productId": product, "type": "subscription", "current": true, "supersededBy": null,
                })
            );
        }
    }
    // Two months later Google no longer knows the replaced purchase.
    shop.world.clock.advance(Duration::from_hours(24 * 70));
    shop.play()
        .change_subscription(&token, &SubscriptionChange::Renew {})
        .unwrap();
    shop.world.simulator.clear_requests();
    assert_eq!(shop.push().await.key(), root);
    let asked: Vec<String> = shop
        .world
        .simulator
        .recorded_requests()
        .into_iter()
        .filter(|seen| seen.place == "google/play")
        .map(|seen| seen.path)
        .collect();
    assert_eq!(asked.len(), 1, "only the purchase itself: {asked:?}");

    // A refund names a purchase of the chain too.
    let voided =
        json!({ "purchaseToken": token, "orderId": "GPA.1", "productType": 1, "refundType": 2 });
    let event = shop.notify("voidedPurchaseNotification", voided).await;
    assert_eq!(event.word(), ("subscription.refunded", Some("partial")));
    assert_eq!(
        event.0["subject"],
        json!({
            "key": root, "productId": "team_monthly", "type": "subscription", "current": true, "supersededBy": null,
        })
    );
    assert_eq!(event.0["appUserId"], USER);

    // The history is kept for each tenant: another tenant, which starts late, learns only what
    // Google still reports.
    let links: i64 = sqlx::query_scalar("select count(*) from purchase_links where tenant_id = $1")
        .bind(shop.tenant.id.as_str())
        .fetch_one(shop.world.database().pool())
        .await
        .unwrap();
    assert_eq!(links, 4);
    shop.world.end().await;
}

#[tokio::test]
async fn broken_and_circular_purchase_links_end() {
    let shop = Shop::open().await;
    let sell = |token: &str, link: &str| {
        let mut fields = serde_json::Map::new();
        fields.insert("linkedPurchaseToken".to_owned(), json!(link));
        let new = NewSubscription {
            purchase_token: Some(token.to_owned()),
            fields,
            ..NewSubscription::default()
        };
        shop.play().buy_subscription(new).unwrap();
    };
    sell("itself-itself", "itself-itself");
    assert_eq!(shop.push().await.key(), "itself-itself");
    sell("circle-one", "circle-two");
    sell("circle-two", "circle-three");
    sell("circle-three", "circle-one");
    for token in ["circle-one", "circle-two", "circle-three"] {
        let fields = json!({ "notificationType": 2, "purchaseToken": token });
        let event = shop.notify("subscriptionNotification", fields).await;
        assert_eq!(event.key(), "circle-one", "all agree");
    }
    // Google does not know the earlier purchase.
    sell("first-heard-of", "never-heard-of");
    let event = shop.push().await;
    assert_eq!(event.key(), "never-heard-of");
    assert_eq!(
        event.word(),
        ("subscription.purchased", Some("resubscribe"))
    );
    // The subscription expired, and the user subscribed again later.
    let old = shop.subscribe().purchase_token;
    shop.play()
        .change_subscription(&old, &SubscriptionChange::Expire {})
        .unwrap();
    shop.world.clock.advance(Duration::from_hours(24));
    sell("came-back", &old);
    let event = shop.push().await;
    assert_eq!(
        event.word(),
        ("subscription.purchased", Some("resubscribe"))
    );
    assert_eq!(event.key(), old);
    shop.world.end().await;
}

#[tokio::test]
async fn when_google_does_not_answer_the_event_is_stored_without_state() {
    let shop = Shop::open().await;
    let first = shop.subscribe().purchase_token;
    shop.push().await;
    let second = shop
        .play()
        .replace_subscription(&first, SubscriptionReplacement::default())
        .unwrap()
        .purchase_token;
    let upgrade = shop.newest().message_id;
    let simulator = &shop.world.simulator;

    simulator
        .add_fault(Fault::at_place("google").status(500).times(0))
        .unwrap();
    let event = shop.push().await;
    assert_eq!(
        event.word(),
        ("subscription.purchased", None),
        "the plain word"
    );
    assert_eq!(event.key(), second);
    assert_eq!(
        (&event.0["appUserId"], &event.0["environment"]),
        (&Value::Null, &Value::Null)
    );
    simulator.clear_faults();
    // A repeated message changes nothing stored or sent.
    let pushed = shop.play().push_message(&upgrade).await.unwrap();
    assert_eq!((pushed.status, &pushed.body["isNew"]), (200, &json!(false)));
    let renewed = shop
        .play()
        .change_subscription(&second, &SubscriptionChange::Renew {});
    renewed.unwrap();
    assert_eq!(
        shop.push().await.key(),
        first,
        "learned as soon as it can be"
    );

    // Without Google the product comes from the message; the first purchase of the chain stays
    // known.
    for fault in [
        Fault::at_place("google/play").reason("permissionDenied"),
        Fault::at_place("google/play").reason("quotaExceeded"),
        Fault::at_place("google/play").body("{\"lineItems\":7}"),
        Fault::at_place("google/play").cut(),
    ] {
        simulator.add_fault(fault.clone().times(0)).unwrap();
        let fields =
            json!({ "notificationType": 13, "purchaseToken": second, "subscriptionId": "named" });
        let event = shop.notify("subscriptionNotification", fields).await;
        assert_eq!(event.word(), ("subscription.expired", None), "{fault:?}");
        assert_eq!(
            event.0["subject"],
            json!({
                "key": first, "productId": "named", "type": "subscription", "current": true, "supersededBy": null,
            })
        );
        assert_eq!(event.0["stateError"], "store_unavailable", "{fault:?}");
        simulator.clear_faults();
    }

    // Google answers the first request and none of the others: what is known by then is stored.
    simulator
        .add_fault(
            Fault::at_place("google/play")
                .skip_calls(1)
                .delay(Duration::from_hours(1))
                .times(0),
        )
        .unwrap();
    let third = shop
        .play()
        .replace_subscription(&second, SubscriptionReplacement::default())
        .unwrap()
        .purchase_token;
    let event = finished("the notification is stored", shop.push()).await;
    assert_eq!(event.word(), ("subscription.purchased", None));
    assert_eq!(
        event.key(),
        first,
        "what is known of {third} leads to the root"
    );
    assert_eq!(event.0["appUserId"], USER, "the first request was answered");
    shop.world.end().await;
}

#[tokio::test]
async fn google_retries_when_the_database_is_unavailable() {
    let shop = Shop::open().await;
    shop.subscribe();
    shop.push().await;
    shop.play().publish_test_notification(APP);
    shop.world.database().close_connections().await;
    let pushed = shop
        .play()
        .push_message(&shop.newest().message_id)
        .await
        .unwrap();
    assert_eq!(
        (pushed.status, &pushed.body["error"]),
        (503, &json!("UNAVAILABLE"))
    );
    assert!(!shop.newest().is_acknowledged());
}

#[tokio::test]
async fn a_deactivated_tenant_is_refused_even_if_the_cache_was_not_notified() {
    let shop = Shop::open().await;
    shop.subscribe();
    let id = shop.newest().message_id;
    assert_eq!(shop.play().push_message(&id).await.unwrap().status, 200);
    shop.world.deactivate_unheard(&shop.tenant.id).await;
    shop.subscribe();
    let id = shop.newest().message_id;
    let before = shop.count().await;
    let pushed = shop.play().push_message(&id).await.unwrap();
    assert_eq!(pushed.status, 404);
    assert_eq!(pushed.body["error"], "TENANT_NOT_FOUND");
    assert_eq!(shop.count().await, before);
    shop.world.end().await;
}
