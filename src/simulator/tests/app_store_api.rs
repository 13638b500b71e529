use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{TestSimulator, apple_token, apple_token_signed_by, json_body, start_simulator};
use crate::simulator::Fault;
use crate::simulator::identity::SimulatedAppleKey;
use crate::simulator::state::apple::{
    NewTransaction, ProductType, SimulatedApp, SimulatedEnvironment, TransactionChange,
};

fn decode_payload(jws: &Value) -> Value {
    let payload = jws.as_str().unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

async fn fetch_error_code(world: &TestSimulator, environment: &str, id: &str) -> (u16, Value) {
    let answer = world
        .ask_apple(environment, &format!("transactions/{id}"))
        .await;
    let status = answer.status().as_u16();
    (status, json_body(answer).await["errorCode"].clone())
}

#[tokio::test]
async fn a_purchase_is_known_in_its_own_world_only() {
    let world = start_simulator().await;
    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction {
            app_account_token: Some("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55".to_owned()),
            ..NewTransaction::default()
        })
        .unwrap();
    let path = format!("transactions/{}", bought.transaction_id);
    assert_eq!(
        fetch_error_code(&world, "production", &bought.transaction_id).await,
        (404, json!(4_040_010))
    );
    let answer = world.ask_apple("sandbox", &path).await;
    assert_eq!(answer.status(), 200);
    let payload = decode_payload(&json_body(answer).await["signedTransactionInfo"]);
    assert_eq!(payload["transactionId"], json!(bought.transaction_id));
    assert_eq!(payload["environment"], "Sandbox");
    assert_eq!(payload["bundleId"], "com.example.app");
    assert_eq!(payload["type"], "Auto-Renewable Subscription");
    assert_eq!(payload["price"], 9990);
    assert_eq!(payload["signedDate"], world.clock.now().as_millis());
    assert_eq!(
        payload["expiresDate"],
        world.clock.now().as_millis() + 30 * 86_400_000
    );
    assert_eq!(
        payload["appAccountToken"],
        "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"
    );
}

#[tokio::test]
async fn every_id_that_leads_nowhere_says_why() {
    let world = start_simulator().await;
    let apple = world.simulator.apple();
    let stranger = apple
        .create_transaction(NewTransaction {
            bundle_id: Some("com.example.stranger".to_owned()),
            ..NewTransaction::default()
        })
        .unwrap();
    let app_transaction =
        apple.transaction_payload(&stranger.transaction_id).unwrap()["appTransactionId"]
            .as_str()
            .unwrap()
            .to_owned();
    for (id, expected) in [
        ("2000000000000001", (404, 4_040_010)),
        (&stranger.transaction_id, (404, 4_040_010)),
        ("hello", (400, 4_000_006)),
        ("0", (400, 4_000_006)),
        ("20%2F00", (400, 4_000_006)),
        ("123456789012345678901", (400, 4_000_006)),
        (&app_transaction, (400, 4_000_048)),
    ] {
        let (status, code) = fetch_error_code(&world, "sandbox", id).await;
        assert_eq!((status, code), (expected.0, json!(expected.1)), "{id}");
    }
}

#[tokio::test]
async fn a_token_that_is_not_right_gets_401_and_nothing_else() {
    let world = start_simulator().await;
    let now = world.clock.now().as_secs();
    let good = world.apple_claims();
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        apple_token(&claims)
    };
    let own = world.simulator.apple().api_key();
    let other = SimulatedAppleKey::new(&own.issuer_id);
    let genuine = apple_token(&good);
    let mut cases = vec![
        (String::new(), "no bearer token"),
        ("x".to_owned(), "three parts"),
        ("a.b.c".to_owned(), "header cannot be read"),
        (genuine[..genuine.len() - 4].to_owned(), "signature"),
        (with("iss", json!("somebody")), "iss"),
        (with("aud", json!("appstoreconnect-v2")), "aud"),
        (with("aud", json!(["appstoreconnect-v1"])), "aud"),
        (with("bid", Value::Null), "bid"),
        (with("bid", json!("")), "bid"),
        (with("exp", json!(now)), "expired"),
        (with("exp", Value::Null), "exp"),
        (with("exp", json!(now + 3700)), "60 minutes"),
        (with("iat", json!(now + 120)), "future"),
        (
            apple_token_signed_by(&other.private_key, &other.key_id, &good),
            "not the id",
        ),
        (
            apple_token_signed_by(&other.private_key, &own.key_id, &good),
            "not by the key",
        ),
    ];
    let hs256 = jsonwebtoken::encode(
        &jsonwebtoken::Header::default(),
        &good,
        &jsonwebtoken::EncodingKey::from_secret(own.public_key.as_bytes()),
    );
    cases.push((hs256.unwrap(), "HS256"));
    for (token, why) in cases {
        let answer = world
            .ask_apple_with_token("sandbox", "transactions/2000000000000001", &token)
            .await;
        assert_eq!(answer.status(), 401, "{why}");
        assert_eq!(answer.text().await.unwrap(), "");
        let remark = world.last_remark();
        assert!(remark.contains(why), "{remark} should say {why}");
    }
    // Without `iat`, as Apple's own Python library sends it, and with the longest life there is.
    let mut claims = good.clone();
    claims.as_object_mut().unwrap().remove("iat");
    claims["exp"] = json!(now + 3600);
    let answer = world
        .ask_apple_with_token(
            "sandbox",
            "transactions/2000000000000001",
            &apple_token(&claims),
        )
        .await;
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn an_app_that_was_never_released_is_a_stranger_to_production() {
    let world = start_simulator().await;
    let apple = world.simulator.apple();
    let bought = apple.create_transaction(NewTransaction::default()).unwrap();
    apple
        .set_app(SimulatedApp {
            released: false,
            ..apple.get_app("com.example.app")
        })
        .unwrap();
    let path = format!("transactions/{}", bought.transaction_id);
    assert_eq!(world.ask_apple("production", &path).await.status(), 401);
    assert!(world.last_remark().contains("never released"));
    assert_eq!(world.ask_apple("sandbox", &path).await.status(), 200);
}

#[tokio::test]
async fn keys_come_and_go() {
    let world = start_simulator().await;
    let apple = world.simulator.apple();
    let second = apple.create_api_key().unwrap();
    let token = apple_token_signed_by(&second.private_key, &second.key_id, &world.apple_claims());
    let path = "transactions/2000000000000001";
    let ask = async |token: &str| {
        world
            .ask_apple_with_token("sandbox", path, token)
            .await
            .status()
    };
    assert_eq!(ask(&token).await, 404);
    apple.set_key_revoked(&second.key_id, true).unwrap();
    assert_eq!(ask(&token).await, 401);
    assert!(world.last_remark().contains("revoked"));
    let own = apple_token(&world.apple_claims());
    assert_eq!(ask(&own).await, 404);
    apple
        .set_key_revoked(&apple.api_key().key_id, true)
        .unwrap();
    assert_eq!(ask(&own).await, 401);
    apple
        .set_key_revoked(&apple.api_key().key_id, false)
        .unwrap();
    assert_eq!(ask(&own).await, 404);
    assert!(apple.set_key_revoked("NOBODYSKEY", true).is_err());
}

#[tokio::test]
async fn answers_go_wrong_as_they_were_told() {
    let world = start_simulator().await;
    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction::default())
        .unwrap();
    let id = bought.transaction_id.as_str();
    let path = format!("transactions/{id}");
    let ask = async || world.ask_apple("sandbox", &path).await;

    for code in [4_040_002, 4_040_004, 4_040_006] {
        let fault = Fault::at_place("apple/sandbox")
            .error_code(code)
            .times(2)
            .for_id(id);
        world.simulator.add_fault(fault).unwrap();
        for _ in 0..2 {
            let answer = ask().await;
            assert_eq!(answer.status(), 404);
            assert_eq!(json_body(answer).await["errorCode"], code);
        }
        assert_eq!(ask().await.status(), 200, "as often as asked for");
    }

    let fault = Fault::at_place("apple")
        .error_code(4_290_000)
        .retry_after(30);
    world.simulator.add_fault(fault).unwrap();
    let answer = ask().await;
    assert_eq!(answer.status(), 429);
    let moment = world.clock.now().plus(Duration::from_secs(30)).as_millis();
    assert_eq!(answer.headers()["retry-after"], moment.to_string().as_str());

    let fault = Fault::at_place("apple")
        .status(429)
        .retry_after_text("soon");
    world.simulator.add_fault(fault).unwrap();
    let answer = ask().await;
    assert_eq!(answer.headers()["retry-after"], "soon");
    assert_eq!(json_body(answer).await["errorCode"], 4_290_000);

    world
        .simulator
        .add_fault(Fault::at_place("apple").status(503))
        .unwrap();
    let answer = ask().await;
    assert_eq!(answer.status(), 503);
    assert!(answer.text().await.unwrap().starts_with("<html>"));

    world
        .simulator
        .add_fault(Fault::at_place("apple").status(401))
        .unwrap();
    let answer = ask().await;
    assert_eq!(
        (answer.status().as_u16(), answer.text().await.unwrap()),
        (401, String::new())
    );

    let fault = Fault::at_place("apple").body("{\"signedTransactionInfo\":7}");
    world.simulator.add_fault(fault).unwrap();
    assert_eq!(
        json_body(ask().await).await,
        json!({"signedTransactionInfo": 7})
    );

    world
        .simulator
        .add_fault(Fault::at_place("apple").cut())
        .unwrap();
    assert!(ask().await.text().await.is_err(), "the connection breaks");

    let fault = Fault::at_place("apple").delay(Duration::from_mins(1));
    world.simulator.add_fault(fault).unwrap();
    let patience = Duration::from_millis(50);
    assert!(tokio::time::timeout(patience, ask()).await.is_err());

    assert_eq!(ask().await.status(), 200);
    world
        .simulator
        .add_fault(
            Fault::at_place("apple")
                .status(500)
                .for_app("com.example.other")
                .times(0),
        )
        .unwrap();
    assert_eq!(ask().await.status(), 200, "another app's fault");
    world.simulator.clear_faults();
}

#[tokio::test]
async fn time_passes_with_the_clock() {
    let world = start_simulator().await;
    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction {
            environment: SimulatedEnvironment::Production,
            ..NewTransaction::default()
        })
        .unwrap();
    let path = format!("subscriptions/{}", bought.transaction_id);
    let status = async || {
        let answer = json_body(world.ask_apple("production", &path).await).await;
        answer["data"][0]["lastTransactions"][0]["status"].clone()
    };
    assert_eq!(status().await, 1);
    world.clock.advance(Duration::from_hours(29 * 24));
    assert_eq!(status().await, 1);
    world.clock.advance(Duration::from_hours(24));
    assert_eq!(status().await, 2);
    let answer = json_body(
        world
            .ask_apple("production", &format!("{path}?status=1"))
            .await,
    )
    .await;
    assert_eq!(answer["data"], json!([]));
    assert_eq!(answer["environment"], "Production");
    assert!(answer["appAppleId"].is_u64());
}

#[test]
fn a_payload_can_be_bent() {
    let mut books = crate::simulator::state::apple::AppleState::default();
    let new: NewTransaction = serde_json::from_value(json!({
        "type": "consumable",
        "fractionalDates": true,
        "fields": {"brandNew": {"a": 1}, "price": 1, "storefront": null},
    }))
    .unwrap();
    let bought = books
        .create_transaction(new, super::test_time(), &mut fastrand::Rng::with_seed(1))
        .unwrap();
    let payload = bought.to_payload(super::test_time());
    assert_eq!(payload["brandNew"], json!({"a": 1}));
    assert_eq!(payload["price"], 1);
    assert!(!payload.contains_key("storefront"));
    assert!(!payload.contains_key("expiresDate"));
    assert!(!payload.contains_key("webOrderLineItemId"));
    let text = payload["purchaseDate"].to_string();
    assert!(text.contains('.'), "{text} has a fraction");
}

/// What happens to a subscription, told through what the store would say of it.
#[tokio::test]
async fn a_subscription_has_a_life() {
    let world = start_simulator().await;
    let apple = world.simulator.apple();
    let first = apple.create_transaction(NewTransaction::default()).unwrap();
    let id = first.transaction_id.as_str();
    let status = || apple.subscription_status(&first);
    let renewal = || apple.find_renewal(&first).unwrap();

    let second = apple
        .change_transaction(id, &TransactionChange::Renew {})
        .unwrap();
    assert_ne!(second.transaction_id, first.transaction_id);
    assert_eq!(second.original_transaction_id, first.transaction_id);
    assert_eq!(Some(second.purchase_date), first.expires_date);
    assert_eq!(
        second.to_payload(world.clock.now())["transactionReason"],
        "RENEWAL"
    );

    apple
        .change_transaction(id, &TransactionChange::Cancel {})
        .unwrap();
    assert!(!renewal().auto_renews);
    assert_eq!(status(), Some(1), "the period goes on");
    apple
        .change_transaction(id, &TransactionChange::Resume {})
        .unwrap();
    assert!(renewal().auto_renews);

    world.clock.advance(Duration::from_hours(70 * 24));
    apple
        .change_transaction(id, &TransactionChange::Grace { days: None })
        .unwrap();
    assert_eq!(status(), Some(4));
    world.clock.advance(Duration::from_hours(17 * 24));
    assert_eq!(status(), Some(3), "the grace period is over");
    let third = apple
        .change_transaction(id, &TransactionChange::Renew {})
        .unwrap();
    assert_eq!(status(), Some(1));
    assert_eq!(third.purchase_date, world.clock.now());

    let better = apple
        .change_transaction(
            id,
            &TransactionChange::Upgrade {
                product_id: "com.example.app.pro.yearly".to_owned(),
                period: Some("P1Y".to_owned().try_into().unwrap()),
                price: Some(99_990),
            },
        )
        .unwrap();
    assert!(
        apple
            .find_transaction(&third.transaction_id)
            .unwrap()
            .is_upgraded
    );
    let payload = better.to_payload(world.clock.now());
    assert_eq!(payload["productId"], "com.example.app.pro.yearly");
    assert_eq!(payload["price"], 99_990);
    assert_eq!(payload["transactionReason"], "PURCHASE");

    let cheaper = "com.example.app.lite".to_owned();
    apple
        .change_transaction(
            id,
            &TransactionChange::Downgrade {
                product_id: cheaper,
            },
        )
        .unwrap();
    assert_eq!(renewal().auto_renew_product_id, "com.example.app.lite");

    apple
        .change_transaction(id, &TransactionChange::Expire { intent: None })
        .unwrap();
    assert_eq!(status(), Some(2));
    apple
        .change_transaction(id, &TransactionChange::BillingRetry {})
        .unwrap();
    assert_eq!(status(), Some(3));

    let refund = TransactionChange::Refund {
        reason: 1,
        percentage: None,
    };
    let refunded = apple
        .change_transaction(&better.transaction_id, &refund)
        .unwrap();
    let payload = refunded.to_payload(world.clock.now());
    assert_eq!(payload["revocationReason"], 1);
    assert_eq!(payload["revocationType"], "REFUND_FULL");
    assert_eq!(status(), Some(5));
    apple
        .change_transaction(&better.transaction_id, &TransactionChange::ReverseRefund {})
        .unwrap();
    assert!(
        apple
            .change_transaction(&better.transaction_id, &TransactionChange::ReverseRefund {})
            .is_err()
    );
    let revoked = apple
        .change_transaction(id, &TransactionChange::Revoke {})
        .unwrap();
    assert_eq!(
        revoked.to_payload(world.clock.now())["revocationType"],
        "FAMILY_REVOKE"
    );

    assert!(
        apple
            .change_transaction(id, &TransactionChange::Extend { days: 91 })
            .is_err()
    );
    apple
        .change_transaction(id, &TransactionChange::Forget {})
        .unwrap();
    assert!(apple.find_transaction(&better.transaction_id).is_err());

    let once = apple
        .create_transaction(NewTransaction {
            kind: ProductType::NonConsumable,
            ..NewTransaction::default()
        })
        .unwrap();
    assert!(
        apple
            .change_transaction(&once.transaction_id, &TransactionChange::Renew {})
            .is_err()
    );
    assert!(
        apple
            .change_transaction(&once.transaction_id, &refund)
            .is_ok()
    );
}
