use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};

use super::{TestSimulator, apple_token, apple_token_signed_by, send, start_simulator, with};
use crate::simulator::Fault;
use crate::simulator::identity::SimulatedAppleKey;

const UNKNOWN: &str = "transactions/2000000000000001";
const DAY: Duration = Duration::from_hours(24);

async fn get_with_token(world: &TestSimulator, token: &str) -> (u16, Value) {
    send(
        world
            .apple_request(Method::GET, "sandbox", UNKNOWN)
            .bearer_auth(token),
    )
    .await
}

fn payload_of(jws: &Value) -> Value {
    let part = jws.as_str().unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn an_id_without_a_transaction_has_its_own_error() {
    let world = start_simulator().await;
    let own = world.buy(json!({})).transaction_id;
    let of_another_app = world
        .buy(json!({"bundleId": "com.example.stranger"}))
        .transaction_id;
    let payload = world.apple.transaction_payload(&of_another_app).unwrap();
    let app_transaction = payload["appTransactionId"].as_str().unwrap();
    for (environment, id, status, code) in [
        ("production", &*own, 404, 4_040_010),
        ("sandbox", "2000000000000001", 404, 4_040_010),
        ("sandbox", &of_another_app, 404, 4_040_010),
        ("sandbox", "hello", 400, 4_000_006),
        ("sandbox", "0", 400, 4_000_006),
        ("sandbox", "20%2F00", 400, 4_000_006),
        ("sandbox", "123456789012345678901", 400, 4_000_006),
        ("sandbox", app_transaction, 400, 4_000_048),
    ] {
        let answer = world
            .get_apple(environment, &format!("transactions/{id}"))
            .await;
        assert_eq!(
            (answer.0, &answer.1["errorCode"]),
            (status, &json!(code)),
            "{id}"
        );
    }
}

#[tokio::test]
async fn a_wrong_client_token_gets_401_and_the_reason_only_in_the_log() {
    let world = start_simulator().await;
    let now = world.clock.now().as_secs();
    let good = world.apple_claims();
    let changed = |name: &str, value: Value| apple_token(&with(&good, name, value));
    let own = world.apple.api_key();
    let other = SimulatedAppleKey::new(&own.issuer_id);
    let genuine = apple_token(&good);
    let hs256 = jsonwebtoken::encode(
        &jsonwebtoken::Header::default(),
        &good,
        &jsonwebtoken::EncodingKey::from_secret(own.public_key.as_bytes()),
    );
    #[rustfmt::skip]
    let cases = [
        (String::new(), "no bearer token"),
        ("x".to_owned(), "three parts"),
        ("a.b.c".to_owned(), "header cannot be read"),
        (genuine[..genuine.len() - 4].to_owned(), "signature"),
        (changed("iss", json!("stranger")), "iss"),
        (changed("aud", json!("appstoreconnect-v2")), "aud"),
        (changed("aud", json!(["appstoreconnect-v1"])), "aud"),
        (changed("bid", Value::Null), "bid"),
        (changed("bid", json!("")), "bid"),
        (changed("exp", json!(now)), "expired"),
        (changed("exp", Value::Null), "exp"),
        (changed("exp", json!(now + 3700)), "60 minutes"),
        (changed("iat", json!(now + 120)), "future"),
        (apple_token_signed_by(&other.private_key, &other.key_id, &good), "not the id"),
        (apple_token_signed_by(&other.private_key, &own.key_id, &good), "not by the key"),
        (hs256.unwrap(), "HS256"),
    ];
    for (token, reason) in cases {
        assert_eq!(
            get_with_token(&world, &token).await,
            (401, json!("")),
            "{reason}"
        );
        let remark = world.last_remark();
        assert!(remark.contains(reason), "{remark} should contain {reason}");
    }
    // Without `iat`, as Apple's own Python library sends it, and with the longest life that is allowed.
    let mut claims = with(&good, "exp", now + 3600);
    claims.as_object_mut().unwrap().remove("iat");
    assert_eq!(get_with_token(&world, &apple_token(&claims)).await.0, 404);
}

#[tokio::test]
async fn keys_are_created_and_revoked() {
    let world = start_simulator().await;
    let second = world.apple.create_api_key().unwrap();
    let claims = world.apple_claims();
    let token = apple_token_signed_by(&second.private_key, &second.key_id, &claims);
    assert_eq!(get_with_token(&world, &token).await.0, 404);
    world.apple.set_key_revoked(&second.key_id, true).unwrap();
    assert_eq!(get_with_token(&world, &token).await.0, 401);
    assert!(world.last_remark().contains("revoked"));
    let (own, token) = (world.apple.api_key().key_id, apple_token(&claims));
    for (action, status) in [("revoke", 401), ("restore", 404)] {
        let path = format!("/apple/keys/{own}/{action}");
        assert_eq!(world.call_control("POST", &path, "").await.0, 200);
        assert_eq!(get_with_token(&world, &token).await.0, status);
    }
    assert!(world.apple.set_key_revoked("UNKNOWNKEY", true).is_err());
}

#[tokio::test]
async fn a_subscription_expires_when_its_period_ends() {
    let world = start_simulator().await;
    let id = world
        .buy(json!({"environment": "production"}))
        .transaction_id;
    let path = format!("subscriptions/{id}");
    let status = async || {
        let (_, body) = world.get_apple("production", &path).await;
        body["data"][0]["lastTransactions"][0]["status"].clone()
    };
    world.clock.advance(29 * DAY);
    assert_eq!(status().await, 1);
    world.clock.advance(DAY);
    assert_eq!(status().await, 2);
    let (_, body) = world
        .get_apple("production", &format!("{path}?status=1"))
        .await;
    assert_eq!(body["data"], json!([]));
    assert_eq!(body["environment"], "Production");
    assert!(body["appAppleId"].is_u64());
}

#[tokio::test]
async fn the_statuses_hold_the_newest_period_whichever_is_asked_about() {
    let world = start_simulator().await;
    let first = world.buy(json!({"appAccountToken": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"}));
    let change = |id: &str, change: Value| world.change(id, change).unwrap();
    let id = first.transaction_id.as_str();
    let second = change(id, json!({"action": "renew"})).transaction_id;
    let third = change(id, json!({"action": "renew"})).transaction_id;
    change(id, json!({"action": "refund"}));
    change(id, json!({"action": "downgrade", "productId": "lite"}));
    for asked in [id, &second, &third] {
        let (status, body) = world
            .get_apple("sandbox", &format!("subscriptions/{asked}"))
            .await;
        let last = &body["data"][0]["lastTransactions"][0];
        assert_eq!((status, &last["status"]), (200, &json!(1)));
        assert_eq!(last["originalTransactionId"], id);
        let transaction = payload_of(&last["signedTransactionInfo"]);
        assert_eq!(transaction["transactionId"], json!(third));
        let renewal = payload_of(&last["signedRenewalInfo"]);
        assert_eq!(renewal["autoRenewProductId"], "lite");
    }
    assert_eq!(
        world
            .get_apple("production", &format!("subscriptions/{id}"))
            .await
            .0,
        404
    );

    let age = Duration::from_millis(300);
    world.fail(
        Fault::at_place("apple")
            .error_code(4_040_010)
            .until_after_sale(age),
    );
    let fresh = world.buy(json!({})).transaction_id;
    for path in ["subscriptions", "transactions"] {
        let (status, body) = world.get_apple("sandbox", &format!("{path}/{fresh}")).await;
        assert_eq!((status, &body["errorCode"]), (404, &json!(4_040_010)));
    }
    world.clock.advance(age);
    assert_eq!(
        world
            .get_apple("sandbox", &format!("subscriptions/{fresh}"))
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn a_payload_can_be_overridden() {
    let world = start_simulator().await;
    let fields = json!({"brandNew": {"a": 1}, "price": 1, "storefront": null});
    let bought =
        world.buy(json!({"type": "consumable", "fractionalDates": true, "fields": fields}));
    let payload = bought.to_payload(world.clock.now());
    assert_eq!(payload["brandNew"], json!({"a": 1}));
    assert_eq!(payload["price"], 1);
    for absent in ["storefront", "expiresDate", "webOrderLineItemId"] {
        assert!(!payload.contains_key(absent), "{absent}");
    }
    assert!(payload["purchaseDate"].is_f64());
}

#[tokio::test]
async fn a_subscription_goes_through_its_states() {
    let world = start_simulator().await;
    let first = world.buy(json!({}));
    let id = first.transaction_id.as_str();
    let change = |change: Value| world.change(id, change).unwrap();
    let payload = |change: Value| {
        Value::Object(
            world
                .change(id, change)
                .unwrap()
                .to_payload(world.clock.now()),
        )
    };
    let status = || world.apple.subscription_status(&first);
    let renewal = || world.apple.find_renewal(&first).unwrap();

    let second = change(json!({"action": "renew"}));
    assert_ne!(second.transaction_id, first.transaction_id);
    assert_eq!(second.original_transaction_id, first.transaction_id);
    assert_eq!(Some(second.purchase_date), first.expires_date);
    change(json!({"action": "cancel"}));
    assert_eq!(
        (renewal().auto_renews, status()),
        (false, Some(1)),
        "the period goes on"
    );
    change(json!({"action": "resume"}));
    assert!(renewal().auto_renews);

    world.clock.advance(70 * DAY);
    change(json!({"action": "grace"}));
    assert_eq!(status(), Some(4));
    world.clock.advance(17 * DAY);
    assert_eq!(status(), Some(3), "the grace period is over");
    let third = change(json!({"action": "renew"}));
    assert_eq!(
        (third.purchase_date, status()),
        (world.clock.now(), Some(1))
    );
    assert_eq!(
        third.to_payload(world.clock.now())["transactionReason"],
        "RENEWAL"
    );

    let yearly = "com.example.app.pro.yearly";
    let better =
        change(json!({"action": "upgrade", "productId": yearly, "period": "P1Y", "price": 99_990}));
    assert!(
        world
            .apple
            .find_transaction(&third.transaction_id)
            .unwrap()
            .is_upgraded
    );
    let upgraded = better.to_payload(world.clock.now());
    assert_eq!(
        (
            &upgraded["productId"],
            &upgraded["price"],
            &upgraded["transactionReason"]
        ),
        (&json!(yearly), &json!(99_990), &json!("PURCHASE"))
    );
    change(json!({"action": "downgrade", "productId": "com.example.app.lite"}));
    assert_eq!(renewal().auto_renew_product_id, "com.example.app.lite");
    change(json!({"action": "expire"}));
    assert_eq!(status(), Some(2));
    change(json!({"action": "billing-retry"}));
    assert_eq!(status(), Some(3));

    let latest = better.transaction_id.as_str();
    let refunded = world
        .change(latest, json!({"action": "refund", "reason": 1}))
        .unwrap();
    let refunded = refunded.to_payload(world.clock.now());
    assert_eq!(refunded["revocationReason"], 1);
    assert_eq!(refunded["revocationType"], "REFUND_FULL");
    assert_eq!(status(), Some(5));
    assert!(
        world
            .change(latest, json!({"action": "reverse-refund"}))
            .is_ok()
    );
    assert!(
        world
            .change(latest, json!({"action": "reverse-refund"}))
            .is_err()
    );
    assert_eq!(
        payload(json!({"action": "revoke"}))["revocationType"],
        "FAMILY_REVOKE"
    );
    assert!(
        world
            .change(id, json!({"action": "extend", "days": 91}))
            .is_err()
    );
    change(json!({"action": "forget"}));
    assert!(world.apple.find_transaction(latest).is_err());

    let lifetime = world.buy(json!({"type": "non-consumable"})).transaction_id;
    assert!(world.change(&lifetime, json!({"action": "renew"})).is_err());
    assert!(world.change(&lifetime, json!({"action": "refund"})).is_ok());
}

#[tokio::test]
async fn renewal_information_and_a_transaction_can_be_changed() {
    let world = start_simulator().await;
    let bought =
        world.buy(json!({"appAccountToken": "", "renewalFields": {"appAccountToken": "user"}}));
    let id = bought.transaction_id.as_str();
    let set =
        json!({"action": "set", "fields": {"bundleId": null}, "renewalFields": {"offerType": 4}});
    let changed = world.change(id, set).unwrap().to_payload(world.clock.now());
    assert!(!changed.contains_key("bundleId"));
    assert_eq!(changed["appAccountToken"], "");
    let (_, body) = world
        .get_apple("sandbox", &format!("subscriptions/{id}"))
        .await;
    let renewal = payload_of(&body["data"][0]["lastTransactions"][0]["signedRenewalInfo"]);
    assert_eq!(
        (&renewal["appAccountToken"], &renewal["offerType"]),
        (&json!("user"), &json!(4))
    );
}
