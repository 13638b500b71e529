//! `POST /v1/webhooks/apple/{tenantId}`, and what is stored of each notification.

use std::time::Duration;

use attesto::simulator::state::apple::{
    NewTransaction, ProductType, SimulatedApp, SimulatedEnvironment, TransactionChange,
};
use attesto::simulator::state::apple_notifications::NotificationUrls;
use attesto::simulator::{Fault, JwsForgery};
use attesto::stores::apple::account::EnvironmentChoice;
use attesto::tenants;
use serde_json::{Map, Value, json};
use sqlx::Row as _;
use tracing::level_filters::LevelFilter;

use crate::world::attesto::{APP, APP_APPLE_ID, Answer, Tenant, World};
use crate::world::event::event_body;
use crate::world::log::Warnings;
use crate::world::shell::Ran;
use crate::world::wait::{wait_for, wait_until};

const USER: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";

/// A tenant, and notifications built by the test.
pub(crate) struct Shop {
    pub(crate) world: World,
    pub(crate) tenant: Tenant,
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => panic!("no object: {other}"),
    }
}

/// A copy of an object with some fields replaced; `null` removes a field.
pub(crate) fn altered(fields: &Value, changes: &[(&str, Value)]) -> Value {
    let mut fields = fields.clone();
    for (name, value) in changes {
        if value.is_null() {
            fields.as_object_mut().unwrap().remove(*name);
        } else {
            fields[*name] = value.clone();
        }
    }
    fields
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::open_with(&[]).await
    }

    /// With some settings, by the names of their variables.
    pub(crate) async fn open_with(settings: &[(&str, &str)]) -> Self {
        let world = World::with(settings).await;
        let tenant = world.tenant().await;
        Self { world, tenant }
    }

    pub(crate) fn apple(&self) -> attesto::simulator::control::AppleScenario {
        self.world.simulator.apple()
    }

    pub(crate) fn sign(&self, payload: &Value) -> String {
        self.apple().sign_payload(&object(payload.clone()))
    }

    /// The block of a purchase: both parts signed, and the app named.
    pub(crate) fn data(&self, kind: ProductType, environment: SimulatedEnvironment) -> Value {
        let new = NewTransaction {
            kind,
            environment,
            app_account_token: Some(USER.to_owned()),
            ..NewTransaction::default()
        };
        let bought = self.apple().create_transaction(new).unwrap();
        let id = bought.transaction_id;
        let mut data = json!({
            "appAppleId": APP_APPLE_ID,
            "bundleId": APP,
            "bundleVersion": "1",
            "environment": environment.payload_name(),
            "signedTransactionInfo": self.apple().sign_transaction(&id).unwrap(),
        });
        if kind == ProductType::Subscription {
            let renewal = json!({
                "originalTransactionId": id,
                "autoRenewProductId": "com.example.app.pro.monthly",
                "autoRenewStatus": 1,
                "environment": environment.payload_name(),
                "appAccountToken": USER,
                "signedDate": self.world.clock.now().as_millis(),
            });
            data["signedRenewalInfo"] = json!(self.sign(&renewal));
            data["status"] = json!(1);
        }
        data
    }

    /// A complete notification; the digits of its id come from `count`.
    pub(crate) fn notification(
        &self,
        kind: &str,
        count: u32,
        block: &str,
        fields: &Value,
    ) -> Value {
        json!({
            "notificationType": kind,
            "notificationUUID": format!("00000000-0000-4000-8000-{count:012}"),
            "version": "2.0",
            "signedDate": self.world.clock.now().as_millis() - 1234,
            block: fields,
        })
    }

    pub(crate) async fn post(&self, body: &Value) -> Answer {
        let path = format!("/v1/webhooks/apple/{}", self.tenant.id);
        self.world.ask("POST", &path, None, Some(body)).await
    }

    pub(crate) async fn send(&self, payload: &Value) -> Answer {
        self.post(&json!({ "signedPayload": self.sign(payload) }))
            .await
    }

    /// Sends a notification that must be accepted, and reads the stored event.
    pub(crate) async fn stored(&self, payload: &Value) -> Event {
        let answer = self.send(payload).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["externalId"], payload["notificationUUID"]);
        self.event(answer.body["eventId"].as_str().unwrap()).await
    }

    /// Sends a notification that must be refused, and returns the failure class.
    async fn class(&self, payload: &Value) -> String {
        refused(&self.send(payload).await)
    }

    pub(crate) async fn event(&self, id: &str) -> Event {
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
            ("source", &json!("apple")),
        ] {
            let stored: Option<String> = row.get(column);
            assert_eq!(json!(stored), *found, "{column}");
        }
        // The signed parts stand in the raw message, and the facts without them in the column for queries.
        let mut facts = body["data"].clone();
        for (signed, decoded) in [
            ("signedTransactionInfo", "transactionInfo"),
            ("signedRenewalInfo", "renewalInfo"),
            ("signedAppTransactionInfo", "appTransactionInfo"),
        ] {
            let blocks = facts.as_object_mut().unwrap().values_mut();
            for block in blocks.filter_map(Value::as_object_mut) {
                if block.contains_key(decoded) {
                    block.remove(signed).unwrap();
                }
            }
        }
        assert_eq!(row.get::<Value, _>("decoded_payload"), facts);
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

    /// Sends until the answer has this status, that is, until the server has noticed a change of
    /// the tenant.
    async fn eventually(&self, payload: &Value, status: u16) -> Answer {
        wait_for("the change is noticed", async || {
            Some(self.send(payload).await).filter(|answer| answer.status == status)
        })
        .await
    }
}

impl Shop {
    /// From now on the simulated App Store posts to this tenant, either at once or when the test
    /// asks for it.
    pub(crate) fn report_here(&self, manual: bool) {
        let app = SimulatedApp {
            app_apple_id: APP_APPLE_ID.try_into().unwrap(),
            ..SimulatedApp::for_bundle_id(APP)
        };
        self.apple().set_app(app).unwrap();
        let path = format!("/v1/webhooks/apple/{}", self.tenant.id);
        let to = NotificationUrls {
            manual,
            ..NotificationUrls::for_both_environments(&self.world.url(&path))
        };
        self.apple().set_notification_urls(APP, to).unwrap();
    }

    /// Posts the newest notification and reads the stored event.
    pub(crate) async fn push(&self) -> Event {
        let newest = self.apple().list_notifications().pop().unwrap();
        let uuid = newest.notification_uuid;
        let pushed = self.apple().push_notification(&uuid).await.unwrap();
        assert_eq!(pushed.status, 200, "{}", pushed.body);
        assert_eq!(pushed.body["externalId"], uuid);
        self.event(pushed.body["eventId"].as_str().unwrap()).await
    }
}

/// The failure class of a refused notification.
fn refused(answer: &Answer) -> String {
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (401, &json!("SIGNATURE_INVALID")),
        "{}",
        answer.body
    );
    answer.body["details"]["class"].as_str().unwrap().to_owned()
}

/// The body of a delivery.
pub(crate) struct Event(pub(crate) Value);

impl Event {
    pub(crate) fn word(&self) -> (&str, Option<&str>) {
        (self.0["event"].as_str().unwrap(), self.0["reason"].as_str())
    }
}

#[tokio::test]
async fn a_renewal_is_stored_with_our_event_type_and_the_full_signed_payload() {
    let shop = Shop::open().await;
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Production);
    let sent = shop.notification("DID_RENEW", 1, "data", &data);
    let answer = shop.send(&sent).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.body,
        json!({
            "eventId": answer.body["eventId"],
            "externalId": "00000000-0000-4000-8000-000000000001",
            "isNew": true,
            "enqueuedDelivery": false,
        })
    );
    let event = shop.event(answer.body["eventId"].as_str().unwrap()).await.0;
    let bought = shop.apple().list_transactions().pop().unwrap();
    assert_eq!(
        event,
        json!({
            "event": "subscription.renewed",
            "reason": null,
            "platformEvent": "apple.did_renew",
            "eventId": answer.body["eventId"],
            "externalId": "00000000-0000-4000-8000-000000000001",
            "timestamp": "2026-04-10T14:22:08.766Z",
            "tenantId": shop.tenant.id,
            "source": "apple",
            "environment": "production",
            "subject": {
                "key": bought.original_transaction_id,
                "productId": "com.example.app.pro.monthly",
                "type": "subscription",
                "current": true,
                "supersededBy": null,
            },
            "appUserId": USER,
            "appUserIdSource": "purchase",
            "sequence": 1,
            "state": {
                "status": "active",
                "entitled": true,
                "entitledUntil": "2026-05-10T14:22:10.000Z",
                "productId": "com.example.app.pro.monthly",
                "basePlanId": null,
                "offerId": null,
                "period": "regular",
                "willRenew": true,
                "renewsAs": "com.example.app.pro.monthly",
                "renewsAt": "2026-05-10T14:22:10.000Z",
                "ownership": "purchased",
                "quantity": 1,
                "refundableQuantity": null,
                "acknowledgeBy": null,
                "basis": "store",
                "asOf": "2026-04-10T14:22:10.000Z",
            },
            "stateError": null,
            "data": event["data"],
            "raw": { "signedPayload": shop.sign(&sent).rsplit_once('.').map(|(signed, _)| {
                // No two ECDSA signatures are equal.
                let found = event["raw"]["signedPayload"].as_str().unwrap();
                assert!(found.starts_with(signed));
                found.to_owned()
            }) },
        })
    );
    // Nothing is removed; the inner JWS are decoded next to their originals.
    let inner = object(event["data"]["data"].clone());
    let names: Vec<&str> = inner.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "appAppleId",
            "bundleId",
            "bundleVersion",
            "environment",
            "signedTransactionInfo",
            "transactionInfo",
            "signedRenewalInfo",
            "renewalInfo",
            "status"
        ]
    );
    let payload = shop
        .apple()
        .transaction_payload(&bought.transaction_id)
        .unwrap();
    assert_eq!(inner["transactionInfo"], Value::Object(payload));
    assert_eq!(inner["renewalInfo"]["autoRenewStatus"], 1);
    let mut rest = event["data"].clone();
    for name in ["transactionInfo", "renewalInfo"] {
        rest["data"].as_object_mut().unwrap().remove(name);
    }
    assert_eq!(rest, sent);
    shop.world.end().await;
}

#[tokio::test]
async fn subscription_notifications_map_to_our_event_types() {
    let shop = Shop::open().await;
    shop.report_here(true);
    let new = NewTransaction {
        app_account_token: Some(USER.to_owned()),
        environment: SimulatedEnvironment::Production,
        ..NewTransaction::default()
    };
    let id = shop.apple().create_transaction(new).unwrap().transaction_id;
    let first = shop.push().await;
    assert_eq!(first.word(), ("subscription.purchased", Some("initial")));
    let intent = |intent| TransactionChange::Expire { intent };
    for (change, word, reason) in [
        (TransactionChange::Renew {}, "renewed", None),
        (TransactionChange::Cancel {}, "cancellation_scheduled", None),
        (TransactionChange::Resume {}, "cancellation_revoked", None),
        (
            TransactionChange::Downgrade {
                product_id: "lite".to_owned(),
            },
            "renewal_pref_changed",
            Some("downgrade"),
        ),
        (
            TransactionChange::Upgrade {
                product_id: "pro.yearly".to_owned(),
                period: None,
                price: None,
            },
            "upgraded",
            None,
        ),
        (
            TransactionChange::Extend { days: 3 },
            "renewal_extended",
            None,
        ),
        (
            TransactionChange::Grace { days: None },
            "in_grace_period",
            None,
        ),
        (
            TransactionChange::BillingRetry {},
            "grace_period_expired",
            None,
        ),
        (TransactionChange::Renew {}, "recovered", None),
        (TransactionChange::BillingRetry {}, "in_billing_retry", None),
        (intent(None), "expired", Some("billing_retry")),
        (
            TransactionChange::Renew {},
            "purchased",
            Some("resubscribe"),
        ),
        (intent(Some(1)), "expired", Some("voluntary")),
        (
            TransactionChange::Refund {
                reason: 0,
                percentage: None,
            },
            "refunded",
            None,
        ),
        (TransactionChange::ReverseRefund {}, "refund_reversed", None),
        (TransactionChange::Revoke {}, "revoked", None),
    ] {
        shop.apple().change_transaction(&id, &change).unwrap();
        let event = shop.push().await;
        let word = format!("subscription.{word}");
        assert_eq!(event.word(), (word.as_str(), reason), "{change:?}");
        assert_eq!(event.0["subject"]["key"], id);
        assert_eq!(event.0["appUserId"], USER);
        assert_eq!(event.0["environment"], "production");
    }
    // No forgery of one of Apple's own notifications is accepted.
    let uuid = shop.apple().list_notifications()[0]
        .notification_uuid
        .clone();
    let pushed = shop
        .apple()
        .push_forged_notification(&uuid, JwsForgery::AlteredPayload)
        .await;
    assert_eq!(pushed.unwrap().status, 401);
    shop.world.end().await;
}

#[tokio::test]
async fn a_purchase_notification_becomes_an_event() {
    let shop = Shop::open().await;
    shop.report_here(false);
    let new = NewTransaction {
        kind: ProductType::Consumable,
        ..NewTransaction::default()
    };
    let bought = shop.apple().create_transaction(new).unwrap();
    wait_until("the notification is delivered", async || {
        shop.apple().list_notifications()[0].is_delivered()
    })
    .await;
    let id: String = sqlx::query_scalar("select id from webhook_events")
        .fetch_one(shop.world.database().pool())
        .await
        .unwrap();
    let event = shop.event(&id).await;
    assert_eq!(event.word(), ("product.purchased", None));
    assert_eq!(event.0["subject"]["key"], bought.transaction_id);
    shop.world.end().await;
}

#[tokio::test]
async fn every_notification_block_sets_the_event_subject() {
    let shop = Shop::open().await;
    let sandbox = SimulatedEnvironment::Sandbox;

    // The product type decides between the two groups of event types.
    for (count, kind, word, of) in [
        (
            1,
            ProductType::Subscription,
            "subscription.refunded",
            "subscription",
        ),
        (
            2,
            ProductType::NonRenewing,
            "subscription.refunded",
            "subscription",
        ),
        (3, ProductType::Consumable, "product.refunded", "product"),
        (4, ProductType::NonConsumable, "product.refunded", "product"),
    ] {
        let data = shop.data(kind, sandbox);
        let event = shop
            .stored(&shop.notification("REFUND", count, "data", &data))
            .await;
        assert_eq!(event.word(), (word, None));
        assert_eq!(event.0["subject"]["type"], of);
        assert_eq!(event.0["environment"], "sandbox");
        assert_eq!(event.0["appUserId"], USER);
    }

    let mut asked = shop.data(ProductType::Consumable, sandbox);
    asked["consumptionRequestReason"] = json!("UNINTENDED_PURCHASE");
    let event = shop
        .stored(&shop.notification("CONSUMPTION_REQUEST", 5, "data", &asked))
        .await;
    assert_eq!(
        event.word(),
        ("product.consumption_request", Some("unintended_purchase"))
    );

    // A test notification concerns only the app; the sandbox may omit the app's Apple id.
    let test = json!({ "bundleId": APP, "bundleVersion": "1", "environment": "Sandbox" });
    let event = shop
        .stored(&shop.notification("TEST", 6, "data", &test))
        .await;
    assert_eq!(event.word(), ("test", None));
    assert_eq!(event.0["platformEvent"], "apple.test");
    assert_eq!(
        (&event.0["subject"], &event.0["appUserId"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(event.0["data"]["data"], test, "nothing is added");

    let summary = json!({
        "environment": "Production", "appAppleId": APP_APPLE_ID, "bundleId": APP, "productId": "pro",
        "requestIdentifier": USER, "storefrontCountryCodes": ["USA"], "succeededCount": 5, "failedCount": 2,
    });
    let mut extended = shop.notification("RENEWAL_EXTENSION", 7, "summary", &summary);
    extended["subtype"] = json!("SUMMARY");
    let event = shop.stored(&extended).await;
    assert_eq!(
        event.word(),
        ("subscription.renewal_extension_complete", None)
    );
    assert_eq!(event.0["platformEvent"], "apple.renewal_extension.summary");
    assert_eq!(event.0["subject"], Value::Null);
    assert_eq!(event.0["data"], extended);

    // The id of an external purchase token states its environment.
    for (count, id, environment) in [(8, "SANDBOX_1", "sandbox"), (9, "1-SANDBOX", "production")] {
        let token = json!({
            "externalPurchaseId": id, "tokenCreationDate": 1, "appAppleId": APP_APPLE_ID, "bundleId": APP,
        });
        let mut created = shop.notification(
            "EXTERNAL_PURCHASE_TOKEN",
            count,
            "externalPurchaseToken",
            &token,
        );
        created["subtype"] = json!("UNREPORTED");
        let event = shop.stored(&created).await;
        assert_eq!(
            event.word(),
            ("external_purchase.token", Some("unreported"))
        );
        assert_eq!(event.0["environment"], environment);
    }

    let app = json!({
        "bundleId": APP, "appAppleId": APP_APPLE_ID, "receiptType": "Production", "appTransactionId": "7",
        "receiptCreationDate": shop.world.clock.now().as_millis(),
    });
    let rescinded = json!({
        "bundleId": APP, "appAppleId": APP_APPLE_ID, "environment": "Production",
        "signedAppTransactionInfo": shop.sign(&app),
    });
    let event = shop
        .stored(&shop.notification("RESCIND_CONSENT", 10, "appData", &rescinded))
        .await;
    assert_eq!(event.word(), ("app.consent_rescinded", None));
    assert_eq!(event.0["data"]["appData"]["appTransactionInfo"], app);
    assert_eq!(event.0["subject"], Value::Null);
    shop.world.end().await;
}

#[tokio::test]
async fn unknown_notification_types_are_stored_as_unknown() {
    let shop = Shop::open().await;
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Sandbox);
    let mut new = shop.notification("SOMETHING_NEW", 1, "data", &data);
    new["subtype"] = json!("AND_MORE");
    let event = shop.stored(&new).await;
    assert_eq!(event.word(), ("unknown", None));
    assert_eq!(event.0["platformEvent"], "apple.something_new.and_more");
    assert_eq!(
        event.0["subject"]["type"], "subscription",
        "its subject is known all the same"
    );

    // An unknown block, as long as it names its app.
    let block = json!({ "bundleId": APP, "environment": "Sandbox", "signedTransactionInfo": data["signedTransactionInfo"] });
    let event = shop
        .stored(&shop.notification("SOMETHING_NEW", 2, "brandNew", &block))
        .await;
    assert_eq!(event.word(), ("unknown", None));
    assert!(event.0["data"]["brandNew"]["transactionInfo"].is_object());
    assert_eq!(event.0["appUserId"], USER);

    // Fields of other types, unknown values, text that Postgres cannot store.
    let mut odd = shop.notification("DID_RENEW", 3, "data", &data);
    odd["notificationType"] = json!(["DID_RENEW"]);
    odd["subtype"] = json!(7);
    odd["data"]["status"] = json!("active");
    odd["data"]["note"] = json!("a\u{0}b");
    let answer = shop.send(&odd).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let (word, name, stored): (String, String, Value) = sqlx::query_as(
        "select event_type, platform_event, decoded_payload from webhook_events where external_id like '%3'",
    )
    .fetch_one(shop.world.database().pool())
    .await
    .unwrap();
    let sent = event_body(
        shop.world.database(),
        answer.body["eventId"].as_str().unwrap(),
    )
    .await;
    assert_eq!((word.as_str(), name.as_str()), ("unknown", "apple.unknown"));
    assert_eq!(stored["data"]["note"], "a\u{fffd}b");
    let sent: Value = serde_json::from_str(&sent).unwrap();
    assert_eq!(sent["data"]["data"]["note"], "a\u{0}b");

    // Larger than anything Apple sends, and within the limit.
    let mut large = shop.notification("DID_RENEW", 4, "data", &data);
    large["data"]["more"] = json!("x".repeat(600 * 1024));
    assert_eq!(shop.stored(&large).await.word().0, "subscription.renewed");
    shop.world.end().await;
}

#[tokio::test]
async fn notifications_not_signed_by_apple_are_refused() {
    let shop = Shop::open().await;
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Sandbox);
    let good = object(shop.notification("DID_RENEW", 1, "data", &data));
    let authority = shop.world.simulator.identity().certificate_authority();
    let changes_nothing_here = [JwsForgery::OtherBundle, JwsForgery::OtherEnvironment];
    for forgery in JwsForgery::ALL {
        if changes_nothing_here.contains(&forgery) {
            continue;
        }
        let forged = authority.forge_jws(forgery, &good);
        refused(&shop.post(&json!({ "signedPayload": forged })).await);
        // The same inside a genuine notification: every part is verified separately.
        let bought = shop
            .apple()
            .list_transactions()
            .pop()
            .unwrap()
            .transaction_id;
        for (part, name) in [
            (
                shop.apple().transaction_payload(&bought).unwrap(),
                "signedTransactionInfo",
            ),
            (
                object(json!({ "originalTransactionId": "1", "environment": "Sandbox" })),
                "signedRenewalInfo",
            ),
        ] {
            let mut data = data.clone();
            data[name] = json!(authority.forge_jws(forgery, &part));
            let answer = shop
                .send(&shop.notification("DID_RENEW", 1, "data", &data))
                .await;
            refused(&answer);
            let message = answer.body["message"].as_str().unwrap();
            assert!(message.contains(name), "{forgery:?}: {message}");
        }
    }
    let now = shop.world.clock.now();
    let mut early = shop.notification("DID_RENEW", 1, "data", &data);
    early["signedDate"] = json!(now.plus(Duration::from_mins(6)).as_millis());
    assert_eq!(shop.class(&early).await, "signed_in_the_future");
    for text in ["x", "a.b.c", "e30.e30.e30"] {
        refused(&shop.post(&json!({ "signedPayload": text })).await);
    }
    assert_eq!(shop.count().await, 0);
    assert_eq!(
        shop.send(&Value::Object(good)).await.status,
        200,
        "and then a good one"
    );
    shop.world.end().await;
}

#[tokio::test]
async fn notifications_for_another_app_are_refused() {
    let shop = Shop::open().await;
    let mine = shop.data(ProductType::Subscription, SimulatedEnvironment::Production);
    let with = |block: &str, changes: &[(&str, Value)]| {
        shop.notification("DID_RENEW", 1, block, &altered(&mine, changes))
    };
    let other = json!("com.example.other");
    for block in ["data", "summary", "appData", "externalPurchaseToken"] {
        let payload = with(block, &[("bundleId", other.clone())]);
        assert_eq!(shop.class(&payload).await, "other_app", "{block}");
    }
    // The first block counts, whatever another one contains.
    let mut two = with("data", &[("bundleId", other.clone())]);
    two["summary"] = mine.clone();
    assert_eq!(shop.class(&two).await, "other_app");
    let sandbox = ("environment", json!("Sandbox"));
    for (changes, class) in [
        (vec![("bundleId", Value::Null)], "other_app"),
        (vec![("appAppleId", json!(1))], "other_app_apple_id"),
        (vec![("appAppleId", Value::Null)], "other_app_apple_id"),
        // Compared in the sandbox too, if present.
        (
            vec![("appAppleId", json!(1)), sandbox],
            "other_app_apple_id",
        ),
        (vec![("environment", json!("Xcode"))], "other_environment"),
        (
            vec![("environment", json!("LocalTesting"))],
            "other_environment",
        ),
        (vec![("environment", Value::Null)], "other_environment"),
    ] {
        let payload = with("data", &changes);
        assert_eq!(shop.class(&payload).await, class, "{changes:?}");
    }
    // Genuine signed data of Apple's that is no notification.
    for payload in [
        json!({ "bundleId": APP, "transactionId": "1" }),
        with("unknown", &[("bundleId", Value::Null)]),
    ] {
        assert_eq!(shop.class(&payload).await, "not_a_notification");
    }
    assert_eq!(shop.count().await, 0);
    assert_eq!(shop.send(&with("data", &[])).await.status, 200);
    shop.world.end().await;
}

#[tokio::test]
async fn genuine_inner_parts_of_another_purchase_are_refused() {
    let shop = Shop::open().await;
    let mine = shop.data(ProductType::Subscription, SimulatedEnvironment::Production);
    let bought = shop
        .apple()
        .list_transactions()
        .pop()
        .unwrap()
        .transaction_id;
    let transaction = |changes: &[(&str, Value)]| {
        let payload = Value::Object(shop.apple().transaction_payload(&bought).unwrap());
        json!(shop.sign(&altered(&payload, changes)))
    };
    let app = |changes: &[(&str, Value)]| {
        let payload = json!({ "bundleId": APP, "receiptType": "Production" });
        json!(shop.sign(&altered(&payload, changes)))
    };
    let sandbox = json!("Sandbox");
    let renewal = json!({ "originalTransactionId": "1", "environment": sandbox });
    let other = json!("com.example.other");
    for (name, part, class) in [
        (
            "signedTransactionInfo",
            transaction(&[("bundleId", other.clone())]),
            "misplaced_part",
        ),
        (
            "signedTransactionInfo",
            transaction(&[("environment", sandbox.clone())]),
            "misplaced_part",
        ),
        (
            "signedRenewalInfo",
            json!(shop.sign(&renewal)),
            "misplaced_part",
        ),
        (
            "signedAppTransactionInfo",
            app(&[("bundleId", other)]),
            "misplaced_part",
        ),
        (
            "signedAppTransactionInfo",
            app(&[("receiptType", sandbox)]),
            "misplaced_part",
        ),
        (
            "signedTransactionInfo",
            mine["signedRenewalInfo"].clone(),
            "other_part",
        ),
        ("signedRenewalInfo", transaction(&[]), "other_part"),
        ("signedAppTransactionInfo", transaction(&[]), "other_part"),
    ] {
        let data = altered(&mine, &[(name, part)]);
        let payload = shop.notification("DID_RENEW", 1, "data", &data);
        assert_eq!(shop.class(&payload).await, class, "{name}");
    }
    assert_eq!(shop.count().await, 0);
    let data = altered(&mine, &[("signedAppTransactionInfo", app(&[]))]);
    let event = shop
        .stored(&shop.notification("DID_RENEW", 1, "data", &data))
        .await;
    assert!(event.0["data"]["data"]["appTransactionInfo"].is_object());
    shop.world.end().await;
}

#[tokio::test]
async fn the_tenants_environment_and_app_apple_id_must_match() {
    let shop = Shop::open().await;
    let production = shop.data(ProductType::Subscription, SimulatedEnvironment::Production);
    let production = shop.notification("DID_RENEW", 1, "data", &production);
    let sandbox = shop.data(ProductType::Subscription, SimulatedEnvironment::Sandbox);
    let sandbox = shop.notification("DID_RENEW", 2, "data", &sandbox);
    let set = async |choice, number| shop.world.set_apple(&shop.tenant, choice, number).await;
    assert_eq!(shop.send(&production).await.status, 200);
    assert_eq!(shop.send(&sandbox).await.status, 200);

    set(EnvironmentChoice::Sandbox, None).await;
    let answer = shop.eventually(&production, 401).await;
    assert_eq!(refused(&answer), "other_environment");
    assert_eq!(shop.send(&sandbox).await.status, 200);

    set(EnvironmentChoice::Production, Some(APP_APPLE_ID)).await;
    let answer = shop.eventually(&sandbox, 401).await;
    assert_eq!(refused(&answer), "other_environment");
    assert_eq!(shop.send(&production).await.status, 200);

    // Without the app's Apple id nothing of production can be verified; the operator must configure
    // it.
    set(EnvironmentChoice::Auto, None).await;
    let answer = shop.eventually(&production, 400).await;
    assert_eq!(answer.body["error"], "CREDENTIALS_MISSING");
    assert!(
        answer.body["message"]
            .as_str()
            .unwrap()
            .contains("--app-apple-id")
    );
    assert_eq!(shop.send(&sandbox).await.status, 200);
    shop.world.end().await;
}

#[tokio::test]
async fn checks_run_in_the_documented_order() {
    let log = Warnings::listen_at(LevelFilter::INFO);
    let shop = Shop::open().await;
    let world = &shop.world;
    let ask = async |id: &str, body: &Value| {
        let path = format!("/v1/webhooks/apple/{id}");
        world.ask("POST", &path, None, Some(body)).await
    };
    let nothing = json!({});
    // A malformed id is refused before everything else.
    for id in ["x", "tenant_", "key_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"] {
        let answer = ask(id, &nothing).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.body["details"]["issues"][0]["path"], "tenantId");
    }
    // Then the tenant, whatever the body.
    let unknown = attesto::base::id::TenantId::mint(world.clock.now());
    for body in [
        &nothing,
        &json!({ "signedPayload": "x".repeat(1024 * 1024) }),
    ] {
        let answer = ask(unknown.as_str(), body).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (404, &json!("TENANT_NOT_FOUND"))
        );
    }
    // Then the body, even without credentials.
    let stranger = world.stranger().await;
    for (body, path) in [
        (json!([]), ""),
        (json!({}), "signedPayload"),
        (json!({ "signedPayload": null }), "signedPayload"),
        (json!({ "signedPayload": "" }), "signedPayload"),
        (json!({ "signedPayload": 7 }), "signedPayload"),
        (json!({ "signedPayload": { "a": 1 } }), "signedPayload"),
    ] {
        for id in [&stranger.id, &shop.tenant.id] {
            let answer = ask(id.as_str(), &body).await;
            assert_eq!(
                (answer.status, &answer.body["error"]),
                (400, &json!("INVALID_REQUEST")),
                "{body}"
            );
            assert_eq!(answer.body["details"]["issues"][0]["path"], path, "{body}");
        }
    }
    let large = json!({ "signedPayload": "x".repeat(1024 * 1024) });
    let answer = ask(stranger.id.as_str(), &large).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.body["details"]["maxBytes"], 1024 * 1024);
    // Then the credentials, even with an invalid signature.
    let unsigned = json!({ "signedPayload": "x" });
    let answer = ask(stranger.id.as_str(), &unsigned).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("CREDENTIALS_MISSING"))
    );
    // Then the signature and the app, even without an id; the id is checked last.
    let mut data = shop.data(ProductType::Subscription, SimulatedEnvironment::Sandbox);
    let mut nameless = shop.notification("DID_RENEW", 1, "data", &data);
    for id in [Value::Null, json!(""), json!(7), json!("x".repeat(257))] {
        nameless["notificationUUID"] = id;
        let answer = shop.send(&nameless).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (400, &json!("INVALID_REQUEST"))
        );
        assert_eq!(
            answer.body["details"]["issues"][0]["path"],
            "notificationUUID"
        );
    }
    data["bundleId"] = json!("com.example.other");
    nameless["data"] = data;
    assert_eq!(shop.class(&nameless).await, "other_app");
    assert_eq!(shop.count().await, 0);
    log.assert_each_400_has_a_cause();

    let path = format!("/v1/webhooks/apple/{}", shop.tenant.id);
    assert_eq!(world.ask("GET", &path, None, None).await.status, 405);

    // An inactive tenant is answered like an unknown one.
    let good = json!({ "bundleId": APP, "environment": "Sandbox" });
    let good = shop.notification("TEST", 2, "data", &good);
    assert_eq!(shop.send(&good).await.status, 200);
    tenants::store::set_tenant_active(world.database(), &shop.tenant.id, false, world.clock.now())
        .await
        .unwrap();
    let answer = shop.eventually(&good, 404).await;
    assert_eq!(answer.body["error"], "TENANT_NOT_FOUND");
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
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Sandbox);
    let body =
        json!({ "signedPayload": shop.sign(&shop.notification("DID_RENEW", 1, "data", &data)) });
    let answers = futures_util::future::join_all((0..50).map(|_| shop.post(&body))).await;
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let new: Vec<&Value> = answers
        .iter()
        .map(|answer| &answer.body)
        .filter(|body| body["isNew"] == true)
        .collect();
    assert_eq!(new.len(), 1);
    assert_eq!(new[0]["enqueuedDelivery"], true);
    for answer in &answers {
        assert_eq!(answer.body["eventId"], new[0]["eventId"]);
        assert_eq!(answer.body["isNew"], answer.body["enqueuedDelivery"]);
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
    // Two notifications with the same id are the same, even if signed differently.
    let again = shop.notification("DID_RENEW", 1, "data", &data);
    shop.world.clock.advance(Duration::from_hours(1));
    let answer = shop.send(&again).await;
    assert_eq!((answer.status, &answer.body["isNew"]), (200, &json!(false)));
    assert_eq!(shop.count().await, 1);
    shop.world.end().await;
}

#[tokio::test]
async fn one_notification_to_two_tenants_becomes_two_events() {
    let shop = Shop::open().await;
    let second = shop.world.tenant().await;
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Sandbox);
    let body =
        json!({ "signedPayload": shop.sign(&shop.notification("DID_RENEW", 1, "data", &data)) });
    let first = shop.post(&body).await.body;
    let path = format!("/v1/webhooks/apple/{}", second.id);
    let other = shop.world.ask("POST", &path, None, Some(&body)).await.body;
    assert_eq!(first["externalId"], other["externalId"]);
    assert_ne!(first["eventId"], other["eventId"]);
    assert_eq!(other["isNew"], true);
    shop.world.end().await;
}

#[tokio::test]
async fn apple_retries_when_the_database_is_unavailable() {
    let shop = Shop::open().await;
    let data = shop.data(ProductType::Subscription, SimulatedEnvironment::Sandbox);
    let first = shop.notification("DID_RENEW", 1, "data", &data);
    assert_eq!(shop.send(&first).await.status, 200);
    let second = shop.notification("DID_RENEW", 2, "data", &data);
    shop.world.database().close_connections().await;
    let answer = shop.send(&second).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (503, &json!("UNAVAILABLE"))
    );
    assert!(answer.headers.contains_key("retry-after"));
}

impl Shop {
    /// A shop in real time: the binary has no other clock.
    async fn open_today() -> Self {
        let world = World::today().await;
        let tenant = world.tenant().await;
        Self { world, tenant }
    }

    async fn request_test(&self, more: &[&str]) -> Ran {
        let simulator = &self.world.simulator;
        let shell = self.world.shell().set_all([
            ("APPLE_PRODUCTION_URL", simulator.apple_production_url()),
            ("APPLE_SANDBOX_URL", simulator.apple_sandbox_url()),
        ]);
        let words = [
            "apple",
            "request-test-notification",
            self.tenant.id.as_str(),
        ];
        shell.run_async(&[&words, more].concat(), "").await
    }

    /// Apple's last answers as stored.
    async fn kept_answers(&self) -> Vec<String> {
        let statement = "select environment || ': ' || result from apple_test_notifications
            where tenant_id = $1 order by environment";
        let kept = sqlx::query_scalar(statement).bind(self.tenant.id.as_str());
        kept.fetch_all(self.world.database().pool()).await.unwrap()
    }

    /// Runs the command where it must print only an error.
    async fn complaint(&self, more: &[&str], exit: i32) -> String {
        let ran = self.request_test(more).await;
        assert_eq!((ran.exit, ran.said.as_str()), (exit, ""), "{ran:?}");
        ran.complained
    }
}

#[tokio::test]
async fn request_test_notification_reports_the_arrival() {
    let shop = Shop::open_today().await;
    let complaint = shop.complaint(&[], 1).await;
    let wanted = format!("/v1/webhooks/apple/{}", shop.tenant.id);
    assert!(
        complaint.contains("no production notification URL"),
        "{complaint}"
    );
    assert!(complaint.contains(&wanted), "{complaint}");
    assert_eq!(shop.kept_answers().await, ["production: NO_ADDRESS"]);

    shop.report_here(false);
    for (words, environment) in [
        (vec![], "production"),
        (vec!["--env", "production"], "production"),
        (vec!["--env", "sandbox"], "sandbox"),
    ] {
        let ran = shop.request_test(&words).await;
        assert_eq!((ran.exit, ran.complained.as_str()), (0, ""), "{ran:?}");
        let said = ran.json();
        let newest = shop.apple().list_notifications().pop().unwrap();
        assert_eq!(
            said,
            json!({
                "tenantId": shop.tenant.id,
                "bundleId": APP,
                "environment": environment,
                "result": "SUCCESS",
                "attemptedAt": newest.send_attempts[0].attempt_date,
                "notificationUUID": newest.notification_uuid,
                "eventId": said["eventId"],
            })
        );
        let event = shop.event(said["eventId"].as_str().unwrap()).await;
        assert_eq!(event.word(), ("test", None));
        assert_eq!(event.0["environment"], environment);
    }
    assert_eq!(
        shop.kept_answers().await,
        ["production: SUCCESS", "sandbox: SUCCESS"]
    );

    // Apple's outcome is printed, and explained if it is a failure.
    let unknown = attesto::base::id::TenantId::mint(shop.world.clock.now());
    let url = shop.world.url(&format!("/v1/webhooks/apple/{unknown}"));
    shop.apple()
        .set_notification_urls(APP, NotificationUrls::for_both_environments(&url))
        .unwrap();
    let ran = shop.request_test(&[]).await;
    assert_eq!(ran.exit, 1, "{ran:?}");
    let said = ran.json();
    assert_eq!(
        (&said["result"], &said["eventId"]),
        (&json!("UNSUCCESSFUL_HTTP_RESPONSE_CODE"), &Value::Null)
    );
    assert!(ran.complained.contains("http_request"), "{ran:?}");
    let kept = shop.kept_answers().await;
    assert_eq!(kept[0], "production: UNSUCCESSFUL_HTTP_RESPONSE_CODE");

    // A success is explained too when this Attesto received nothing.
    let url = shop.world.url("/health");
    let elsewhere = shop.world.tenant().await;
    let other = url.replace("/health", &format!("/v1/webhooks/apple/{}", elsewhere.id));
    shop.apple()
        .set_notification_urls(APP, NotificationUrls::for_both_environments(&other))
        .unwrap();
    let ran = shop.request_test(&[]).await;
    assert_eq!(ran.exit, 1, "{ran:?}");
    assert!(ran.said.contains("SUCCESS"), "{ran:?}");
    assert!(
        ran.complained.contains("another server received"),
        "{ran:?}"
    );
    assert_eq!(shop.kept_answers().await[0], "production: ELSEWHERE");
    shop.world.end().await;
}

#[tokio::test]
async fn request_test_notification_explains_each_failure() {
    let shop = Shop::open_today().await;
    shop.report_here(true);
    // Apple has not sent it yet.
    let complaint = shop.complaint(&["--wait", "1s"], 1).await;
    assert!(complaint.contains("within 1s"), "{complaint}");
    let simulator = &shop.world.simulator;
    for (fault, part) in [
        (
            Fault::at_place("apple").status(401),
            "refuses this tenant's key",
        ),
        (
            Fault::at_place("apple").error_code(4_290_000),
            "limit for com.example.app",
        ),
        (Fault::at_place("apple").error_code(4_000_002), "4000002"),
        (Fault::at_place("apple").status(404), "status 404, no code"),
    ] {
        simulator.add_fault(fault.times(0)).unwrap();
        let complaint = shop.complaint(&[], 1).await;
        assert!(complaint.contains(part), "{complaint}");
        simulator.clear_faults();
    }
    let set = async |choice, number| shop.world.set_apple(&shop.tenant, choice, number).await;
    set(EnvironmentChoice::Sandbox, None).await;
    let complaint = shop.complaint(&["--env", "production"], 2).await;
    assert!(complaint.contains("uses sandbox only"), "{complaint}");
    set(EnvironmentChoice::Auto, None).await;
    let complaint = shop.complaint(&[], 2).await;
    assert!(complaint.contains("--app-apple-id"), "{complaint}");
    shop.complaint(&["--env", "moon"], 2).await;

    let stranger = shop.world.stranger().await;
    let stranger = Shop {
        tenant: stranger,
        world: shop.world,
    };
    let complaint = stranger.complaint(&[], 1).await;
    assert!(
        complaint.contains("no App Store credentials"),
        "{complaint}"
    );
    stranger.world.end().await;
}

#[tokio::test]
async fn a_deactivated_tenant_is_refused_even_if_the_cache_was_not_notified() {
    let shop = Shop::open().await;
    let notification = |number| {
        let data = json!({ "bundleId": APP, "environment": "Sandbox" });
        shop.notification("TEST", number, "data", &data)
    };
    assert_eq!(shop.send(&notification(1)).await.status, 200);
    shop.world.deactivate_unheard(&shop.tenant.id).await;
    // The cached tenant is accepted, and the insert refuses the event.
    for number in [1, 2] {
        let answer = shop.send(&notification(number)).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (404, &json!("TENANT_NOT_FOUND")),
            "{number}"
        );
    }
    assert_eq!(shop.count().await, 1);
    shop.world.end().await;
}
