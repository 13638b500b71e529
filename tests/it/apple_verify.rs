//! `POST /v1/apple/verify` against the simulated App Store.

use std::time::Duration;

use attesto::simulator::state::apple::{
    NewTransaction, ProductType, SimulatedApp, SimulatedEnvironment, SimulatedTransaction,
    TransactionChange,
};
use attesto::simulator::{Fault, JwsForgery};
use attesto::stores::apple::account::EnvironmentChoice;
use serde_json::{Value, json};

use crate::world::attesto::{APP, APP_APPLE_ID, Answer, Tenant, World};
use crate::world::wait::wait_until;

const USER: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";

/// Buys a monthly subscription in `environment`.
fn buys(world: &World, environment: SimulatedEnvironment) -> SimulatedTransaction {
    let new = NewTransaction {
        environment,
        app_account_token: Some(USER.to_owned()),
        ..NewTransaction::default()
    };
    world
        .simulator
        .apple()
        .create_transaction(new)
        .expect("a purchase")
}

async fn by_id(world: &World, tenant: &Tenant, id: &str) -> Answer {
    world
        .verify("apple", tenant, &json!({ "transactionId": id }))
        .await
}

async fn by_jws(world: &World, tenant: &Tenant, jws: &str) -> Answer {
    world
        .verify("apple", tenant, &json!({ "signedTransaction": jws }))
        .await
}

/// The error code of an answer with `valid: false`.
fn no(answer: &Answer) -> &str {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["valid"], false, "{}", answer.body);
    assert_eq!(
        answer.body["requestId"],
        answer.headers["x-request-id"].to_str().expect("text")
    );
    answer.body["error"].as_str().expect("a word")
}

#[tokio::test]
async fn a_transaction_is_answered_with_all_its_fields() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let bought = buys(&world, SimulatedEnvironment::Production);
    let id = &bought.transaction_id;

    let answer = by_id(&world, &tenant, id).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let mut body = answer.body;
    let transaction = body["transaction"].take();
    assert_eq!(
        body,
        json!({
            "valid": true, "version": attesto::VERSION, "environment": "production", "status": "active",
            "appUserId": USER, "appUserIdSource": "purchase", "transaction": null,
            "subject": {
                "key": id, "productId": "com.example.app.pro.monthly", "type": "subscription",
                "current": true, "supersededBy": null,
            },
            "state": {
                "status": "active", "entitled": true, "entitledUntil": "2026-05-10T14:22:10.000Z",
                "productId": "com.example.app.pro.monthly", "basePlanId": null, "offerId": null, "period": "regular",
                "willRenew": null, "renewsAs": null, "renewsAt": null, "ownership": "purchased", "quantity": 1,
                "refundableQuantity": null, "acknowledgeBy": null, "basis": "transaction",
                "asOf": "2026-04-10T14:22:10.000Z",
            },
            "stateError": null,
        })
    );
    let expected = json!({
        "transactionId": id, "originalTransactionId": id, "bundleId": APP,
        "productId": "com.example.app.pro.monthly",
        "purchaseDate": "2026-04-10T14:22:10.000Z", "originalPurchaseDate": "2026-04-10T14:22:10.000Z",
        "expiresDate": "2026-05-10T14:22:10.000Z", "type": "Auto-Renewable Subscription",
        "inAppOwnershipType": "PURCHASED", "quantity": 1, "revocationDate": null, "revocationReason": null,
        "offerType": null, "offerIdentifier": null, "appAccountToken": USER, "storefront": "USA",
        "storefrontId": "143441", "transactionReason": "PURCHASE", "currency": "USD", "price": 9990,
    });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(transaction[name], *value, "{name}");
    }
    assert!(transaction["webOrderLineItemId"].is_string());
    let payload = world
        .simulator
        .apple()
        .transaction_payload(id)
        .expect("it is there");
    assert_eq!(
        transaction["rawDecodedPayload"],
        Value::Object(payload),
        "nothing of it is lost"
    );
    assert_eq!(transaction.as_object().map(serde_json::Map::len), Some(23));

    // The JWS from Apple's answer can be verified too, with the same result and no call to Apple.
    world.simulator.clear_requests();
    let jws = transaction["signedTransactionInfo"]
        .as_str()
        .expect("a JWS");
    let again = by_jws(&world, &tenant, jws).await;
    assert_eq!(again.body["transaction"], transaction);
    assert_eq!(world.simulator.count_requests_at("apple"), 0);
    world.end().await;
}

#[tokio::test]
async fn the_status_follows_the_subscription() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let apple = world.simulator.apple();
    let status = async |id: &str| by_id(&world, &tenant, id).await.body["status"].clone();

    let month = buys(&world, SimulatedEnvironment::Production);
    assert_eq!(status(&month.transaction_id).await, "active");
    world.clock.advance(Duration::from_hours(24 * 31));
    assert_eq!(
        status(&month.transaction_id).await,
        "expired",
        "time passes"
    );

    let refunded = buys(&world, SimulatedEnvironment::Production);
    apple
        .change_transaction(
            &refunded.transaction_id,
            &TransactionChange::Refund {
                reason: 1,
                percentage: None,
            },
        )
        .expect("a refund");
    let answer = by_id(&world, &tenant, &refunded.transaction_id).await;
    assert_eq!(answer.body["status"], "refunded");
    assert_eq!(answer.body["valid"], true, "it is genuine all the same");
    assert_eq!(answer.body["transaction"]["revocationReason"], 1);

    let upgraded = buys(&world, SimulatedEnvironment::Production);
    let upgrade = TransactionChange::Upgrade {
        product_id: "com.example.app.pro.yearly".into(),
        period: None,
        price: None,
    };
    let upgrade = apple
        .change_transaction(&upgraded.transaction_id, &upgrade)
        .expect("an upgrade");
    assert_eq!(status(&upgraded.transaction_id).await, "upgraded");
    assert_eq!(status(&upgrade.transaction_id).await, "active");

    let shared = NewTransaction {
        family_shared: true,
        environment: SimulatedEnvironment::Production,
        ..Default::default()
    };
    let shared = apple.create_transaction(shared).expect("a purchase");
    apple
        .change_transaction(&shared.transaction_id, &TransactionChange::Revoke {})
        .expect("an end of sharing");
    assert_eq!(status(&shared.transaction_id).await, "revoked");

    let forever = NewTransaction {
        kind: ProductType::NonConsumable,
        ..Default::default()
    };
    let forever = apple.create_transaction(forever).expect("a purchase");
    world.clock.advance(Duration::from_hours(24 * 365));
    assert_eq!(status(&forever.transaction_id).await, "active");
    world.end().await;
}

#[tokio::test]
async fn sandbox_is_queried_when_production_does_not_know_the_transaction() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let (paid, tested) = (
        buys(&world, SimulatedEnvironment::Production),
        buys(&world, SimulatedEnvironment::Sandbox),
    );
    for (bought, environment, calls) in
        [(&paid, "production", (1, 0)), (&tested, "sandbox", (1, 1))]
    {
        world.simulator.clear_requests();
        let answer = by_id(&world, &tenant, &bought.transaction_id).await;
        assert_eq!(answer.body["environment"], environment);
        let seen = |place| world.simulator.count_requests_at(place);
        assert_eq!((seen("apple/production"), seen("apple/sandbox")), calls);
    }
    // The older error for it, and an app that was never released, whose key production refuses.
    world
        .simulator
        .add_fault(Fault::at_place("apple/production").error_code(4_040_005))
        .expect("a fault");
    assert_eq!(
        by_id(&world, &tenant, &tested.transaction_id).await.body["environment"],
        "sandbox"
    );
    let app = SimulatedApp {
        released: false,
        ..world.simulator.apple().get_app(APP)
    };
    world.simulator.apple().set_app(app).expect("an app");
    assert_eq!(
        by_id(&world, &tenant, &tested.transaction_id).await.body["environment"],
        "sandbox"
    );
    assert_eq!(
        no(&by_id(&world, &tenant, "1999999999999999").await),
        "TRANSACTION_NOT_FOUND"
    );
    world.end().await;
}

#[tokio::test]
async fn the_environment_comes_from_the_request_or_the_tenant() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let (paid, tested) = (
        buys(&world, SimulatedEnvironment::Production),
        buys(&world, SimulatedEnvironment::Sandbox),
    );
    let ask = async |tenant: &Tenant, id: &str, environment: &str| {
        world
            .verify(
                "apple",
                tenant,
                &json!({ "transactionId": id, "environment": environment }),
            )
            .await
    };
    assert_eq!(
        no(&ask(&tenant, &tested.transaction_id, "production").await),
        "TRANSACTION_NOT_FOUND"
    );
    assert_eq!(
        no(&ask(&tenant, &paid.transaction_id, "sandbox").await),
        "TRANSACTION_NOT_FOUND"
    );
    assert_eq!(
        ask(&tenant, &tested.transaction_id, "sandbox").await.body["valid"],
        true
    );

    world
        .set_apple(&tenant, EnvironmentChoice::Sandbox, Some(APP_APPLE_ID))
        .await;
    let sandbox = world.tenant().await;
    world
        .set_apple(&sandbox, EnvironmentChoice::Sandbox, None)
        .await;
    assert_eq!(
        no(&by_id(&world, &sandbox, &paid.transaction_id).await),
        "TRANSACTION_NOT_FOUND"
    );
    let jws = world
        .simulator
        .apple()
        .sign_transaction(&paid.transaction_id)
        .expect("a JWS");
    let mismatch = by_jws(&world, &sandbox, &jws).await;
    assert_eq!(no(&mismatch), "ENVIRONMENT_MISMATCH");
    assert_eq!(
        mismatch.body["details"],
        json!({ "expected": "sandbox", "found": "production" })
    );

    // Without the app's Apple id nothing of production can be verified: skipped when both
    // environments are allowed, reported when production is requested.
    let unnumbered = world.stranger().await;
    world
        .set_apple(&unnumbered, EnvironmentChoice::Auto, None)
        .await;
    world.simulator.clear_requests();
    assert_eq!(
        by_id(&world, &unnumbered, &tested.transaction_id)
            .await
            .body["environment"],
        "sandbox"
    );
    assert_eq!(world.simulator.count_requests_at("apple/production"), 0);
    for answer in [
        ask(&unnumbered, &paid.transaction_id, "production").await,
        by_jws(&world, &unnumbered, &jws).await,
    ] {
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (400, &json!("CREDENTIALS_MISSING"))
        );
        assert!(
            answer.body["message"]
                .as_str()
                .expect("text")
                .contains("--app-apple-id")
        );
    }
    world.end().await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn every_forgery_is_refused_with_its_class() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let bought = buys(&world, SimulatedEnvironment::Production);
    for (forgery, error, class) in [
        (
            JwsForgery::WrongRoot,
            "SIGNATURE_INVALID",
            Some("untrusted_chain"),
        ),
        (
            JwsForgery::LookAlikeRoot,
            "SIGNATURE_INVALID",
            Some("untrusted_chain"),
        ),
        (
            JwsForgery::ForeignLeaf,
            "SIGNATURE_INVALID",
            Some("untrusted_chain"),
        ),
        (
            JwsForgery::LeafWithoutMarker,
            "SIGNATURE_INVALID",
            Some("leaf_marker"),
        ),
        (
            JwsForgery::IntermediateWithoutMarker,
            "SIGNATURE_INVALID",
            Some("intermediate_marker"),
        ),
        (
            JwsForgery::IntermediateNotCa,
            "SIGNATURE_INVALID",
            Some("untrusted_chain"),
        ),
        (
            JwsForgery::ExpiredLeaf,
            "SIGNATURE_INVALID",
            Some("certificate_expired"),
        ),
        (
            JwsForgery::NoCertificates,
            "SIGNATURE_INVALID",
            Some("chain_length"),
        ),
        (
            JwsForgery::TwoCertificates,
            "SIGNATURE_INVALID",
            Some("chain_length"),
        ),
        (
            JwsForgery::FourCertificates,
            "SIGNATURE_INVALID",
            Some("chain_length"),
        ),
        (
            JwsForgery::OtherKey,
            "SIGNATURE_INVALID",
            Some("bad_signature"),
        ),
        (
            JwsForgery::AlteredPayload,
            "SIGNATURE_INVALID",
            Some("bad_signature"),
        ),
        (
            JwsForgery::AlteredSignature,
            "SIGNATURE_INVALID",
            Some("bad_signature"),
        ),
        (
            JwsForgery::ReencodedHeader,
            "SIGNATURE_INVALID",
            Some("bad_signature"),
        ),
        (
            JwsForgery::AlgorithmNone,
            "SIGNATURE_INVALID",
            Some("wrong_algorithm"),
        ),
        (
            JwsForgery::AlgorithmHs256,
            "SIGNATURE_INVALID",
            Some("wrong_algorithm"),
        ),
        (JwsForgery::Xcode, "SIGNATURE_INVALID", Some("chain_length")),
        (JwsForgery::OtherBundle, "BUNDLE_ID_MISMATCH", None),
    ] {
        let jws = world
            .simulator
            .apple()
            .forge_transaction(&bought.transaction_id, forgery)
            .expect("a forgery");
        let answer = by_jws(&world, &tenant, &jws).await;
        assert_eq!(no(&answer), error, "{forgery:?}");
        assert_eq!(
            answer.body["details"]["class"].as_str(),
            class,
            "{forgery:?}"
        );
    }
    world.end().await;
}

#[tokio::test]
async fn unsigned_data_from_apples_server_is_refused() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let bought = buys(&world, SimulatedEnvironment::Production);
    let id = &bought.transaction_id;
    let forged = world
        .simulator
        .apple()
        .forge_transaction(id, JwsForgery::WrongRoot)
        .expect("a forgery");
    let another = buys(&world, SimulatedEnvironment::Production);
    let another = world
        .simulator
        .apple()
        .sign_transaction(&another.transaction_id)
        .expect("a JWS");
    for jws in [forged, another, "nonsense".to_owned()] {
        let body = json!({ "signedTransactionInfo": jws }).to_string();
        world
            .simulator
            .add_fault(Fault::at_place("apple/production").status(200).body(&body))
            .expect("a fault");
        let answer = by_id(&world, &tenant, id).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (502, &json!("APPLE_API_ERROR"))
        );
        assert_eq!(answer.body["valid"], false);
    }
    world.end().await;
}

#[tokio::test]
async fn the_purchase_must_belong_to_the_expected_user() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let bought = buys(&world, SimulatedEnvironment::Production);
    let ask = async |id: &str, user: &str| {
        world
            .verify(
                "apple",
                &tenant,
                &json!({ "transactionId": id, "expectedAppUserId": user }),
            )
            .await
    };
    assert_eq!(ask(&bought.transaction_id, USER).await.body["valid"], true);
    assert_eq!(
        ask(&bought.transaction_id, &USER.to_uppercase()).await.body["valid"],
        true
    );
    let stranger = "00000000-0000-4000-8000-000000000000";
    assert_eq!(
        no(&ask(&bought.transaction_id, stranger).await),
        "APP_USER_MISMATCH"
    );
    let nobodys = NewTransaction {
        environment: SimulatedEnvironment::Production,
        ..Default::default()
    };
    let nobodys = world
        .simulator
        .apple()
        .create_transaction(nobodys)
        .expect("a purchase");
    assert_eq!(
        no(&ask(&nobodys.transaction_id, USER).await),
        "APP_USER_MISMATCH"
    );
    world.end().await;
}

#[tokio::test]
async fn every_apple_response_maps_to_its_error_code() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let bought = buys(&world, SimulatedEnvironment::Production);
    let id = &bought.transaction_id;
    let ask = async |fault: Fault| {
        world.simulator.clear_faults();
        world.simulator.clear_requests();
        world.simulator.add_fault(fault).expect("a fault");
        by_id(&world, &tenant, id).await
    };
    let at = || Fault::at_place("apple/production");

    for code in [4_000_006, 4_000_008, 4_000_048] {
        assert_eq!(
            no(&ask(at().error_code(code)).await),
            "TRANSACTION_NOT_FOUND",
            "{code}"
        );
    }
    // Temporary failures are retried at once, twice.
    for code in [4_040_002, 4_040_004, 4_040_006, 5_000_000, 5_000_001] {
        let answer = ask(at().error_code(code).times(2)).await;
        assert_eq!(answer.body["valid"], true, "{code} twice: {}", answer.body);
        let answer = ask(at().error_code(code).times(3)).await;
        assert_eq!(answer.status, 502, "{code} three times");
        assert_eq!(answer.body["error"], "APPLE_API_ERROR");
        assert_eq!(answer.body["details"]["appleErrorCode"], code);
        assert_eq!(answer.body["details"]["status"], code / 10_000);
        assert_eq!(
            world.simulator.count_requests_at("apple"),
            3,
            "{code}: sandbox is not asked after an error"
        );
    }
    // Permanent failures are not.
    for code in [4_000_000, 4_000_002, 4_040_001, 4_040_003, 4_030_099] {
        let answer = ask(at().error_code(code)).await;
        assert_eq!(
            (answer.status, &answer.body["details"]["appleErrorCode"]),
            (502, &json!(code)),
            "{code}"
        );
        assert_eq!(world.simulator.count_requests_at("apple"), 1, "{code}");
    }
    // Error pages of gateways.
    for status in [404, 502, 503] {
        let answer = ask(at().status(status).times(3)).await;
        assert_eq!(
            answer.status, 502,
            "{status}: a gateway's page is never a no"
        );
        assert_eq!(
            answer.body["details"],
            json!({ "status": status, "appleErrorCode": null })
        );
    }
    let cut = ask(at().cut().times(3)).await;
    assert_eq!(
        (cut.status, &cut.body["details"]["status"]),
        (502, &Value::Null)
    );
    let cut = ask(at().cut().times(2)).await;
    assert_eq!(cut.body["valid"], true);

    // Apple's Retry-After is a time in milliseconds.
    let limited = ask(at().error_code(4_290_000).retry_after(90)).await;
    assert_eq!(
        (limited.status, &limited.body["error"]),
        (429, &json!("RATE_LIMITED"))
    );
    assert_eq!(limited.headers["retry-after"], "90");
    assert_eq!(limited.body["details"]["retryAfterSeconds"], 90);
    for (text, seconds) in [("7", "7"), ("soon", "60"), ("0", "1")] {
        let limited = ask(at().error_code(4_290_000).retry_after_text(text)).await;
        assert_eq!(limited.headers["retry-after"], seconds, "{text}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_then_the_key_is_reported() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let bought = buys(&world, SimulatedEnvironment::Production);
    world
        .simulator
        .add_fault(Fault::at_place("apple/production").status(401).body(""))
        .expect("a fault");
    assert_eq!(
        by_id(&world, &tenant, &bought.transaction_id).await.body["valid"],
        true
    );
    assert_eq!(world.simulator.count_requests_at("apple/production"), 2);

    let key = world.simulator.apple().api_key().key_id;
    world
        .simulator
        .apple()
        .set_key_revoked(&key, true)
        .expect("a key");
    let refused = by_id(&world, &tenant, &bought.transaction_id).await;
    assert_eq!(
        (refused.status, &refused.body["error"]),
        (502, &json!("APPLE_API_ERROR"))
    );
    assert_eq!(
        refused.body["details"],
        json!({ "status": 401, "appleErrorCode": null })
    );
    world.end().await;
}

#[tokio::test]
async fn a_slow_apple_response_ends_at_the_deadline() {
    let world = World::with(&[("UPSTREAM_TIMEOUT_SECONDS", "1")]).await;
    let tenant = world.tenant().await;
    let bought = buys(&world, SimulatedEnvironment::Production);
    world
        .simulator
        .add_fault(Fault::at_place("apple/production").delay(Duration::from_secs(20)))
        .expect("a fault");
    let answer = by_id(&world, &tenant, &bought.transaction_id).await;
    assert_eq!(
        (answer.status, &answer.body["details"]["status"]),
        (502, &Value::Null)
    );
    world.end().await;
}

#[tokio::test]
async fn a_tenant_without_credentials_gets_credentials_missing() {
    let world = World::new().await;
    let stranger = world.stranger().await;
    let answer = by_id(&world, &stranger, "1").await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("CREDENTIALS_MISSING"))
    );
    // New credentials are noticed within a moment, although their absence was cached too.
    world
        .set_apple(&stranger, EnvironmentChoice::Auto, Some(APP_APPLE_ID))
        .await;
    let bought = buys(&world, SimulatedEnvironment::Production);
    wait_until("the change is noticed", async || {
        let answer = by_id(&world, &stranger, &bought.transaction_id).await;
        answer.status == 200
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn a_signed_payload_that_is_not_a_transaction_is_refused() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let bought = buys(&world, SimulatedEnvironment::Production);
    let mut payload = world
        .simulator
        .apple()
        .transaction_payload(&bought.transaction_id)
        .expect("it is there");
    payload.remove("transactionId");
    let jws = world.simulator.apple().sign_payload(&payload);
    let answer = by_jws(&world, &tenant, &jws).await;
    assert_eq!(no(&answer), "NOT_A_TRANSACTION");
    assert_eq!(answer.body["details"]["found"], "renewal");
    world.end().await;
}
