//! `POST /v1/apple/app-transaction` and its command: is an app transaction genuine, and of the tenant's app.

use attesto::simulator::Fault;
use attesto::simulator::JwsForgery;
use attesto::simulator::state::apple::{NewTransaction, SimulatedEnvironment};
use serde_json::{Value, json};

use crate::apple_notifications::{altered, object};
use crate::world::attesto::{APP, APP_APPLE_ID, Answer, Tenant, World};

/// What Apple signs for a customer of production.
fn bought(world: &World) -> Value {
    let now = world.clock.now().as_millis();
    json!({
        "receiptType": "Production", "appAppleId": APP_APPLE_ID, "bundleId": APP, "applicationVersion": "42",
        "originalApplicationVersion": "7", "receiptCreationDate": now, "originalPurchaseDate": now - 86_400_000,
        "appTransactionId": "704567890123456789", "originalPlatform": "iOS", "later": true,
    })
}

async fn ask(world: &World, tenant: &Tenant, body: &Value) -> Answer {
    let key = Some(tenant.key.expose());
    let path = "/v1/apple/app-transaction";
    world.ask("POST", path, key, Some(body)).await
}

async fn ask_signed(world: &World, tenant: &Tenant, payload: &Value) -> Answer {
    let jws = world
        .simulator
        .apple()
        .sign_payload(&object(payload.clone()));
    ask(world, tenant, &json!({ "signedAppTransaction": jws })).await
}

#[tokio::test]
async fn a_signed_app_transaction_says_what_was_bought() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let payload = bought(&world);
    let answer = ask_signed(&world, &tenant, &payload).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let now = world.clock.now();
    let details = &answer.body["appTransaction"];
    assert_eq!(
        answer.body,
        json!({
            "valid": true, "version": attesto::VERSION, "environment": "production",
            "appTransaction": {
                "appTransactionId": "704567890123456789", "bundleId": APP, "appAppleId": APP_APPLE_ID,
                "applicationVersion": "42", "originalApplicationVersion": "7",
                "originalPurchaseDate": json!(now.minus(std::time::Duration::from_hours(24))),
                "originalPlatform": "iOS", "preorderDate": null, "receiptCreationDate": now,
                "deviceVerification": null, "deviceVerificationNonce": null,
                "signedAppTransactionInfo": details["signedAppTransactionInfo"], "rawDecodedPayload": payload,
            },
        })
    );
    assert_eq!(
        world.simulator.recorded_requests().len(),
        0,
        "Apple is not asked"
    );
}

#[tokio::test]
async fn what_proves_nothing_is_refused() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let good = bought(&world);
    for (change, code) in [
        (
            ("bundleId", json!("com.example.other")),
            "BUNDLE_ID_MISMATCH",
        ),
        (("appAppleId", json!(7)), "APP_APPLE_ID_MISMATCH"),
        (("appAppleId", Value::Null), "APP_APPLE_ID_MISMATCH"),
        (("receiptType", json!("Xcode")), "ENVIRONMENT_MISMATCH"),
        (("receiptType", Value::Null), "NOT_AN_APP_TRANSACTION"),
    ] {
        let answer = ask_signed(&world, &tenant, &altered(&good, &[change])).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (200, &json!(code)),
            "{}",
            answer.body
        );
    }
    let apple = world.simulator.apple();
    let id = apple
        .create_transaction(NewTransaction::default())
        .unwrap()
        .transaction_id;
    let transaction = apple.sign_transaction(&id).unwrap();
    let answer = ask(
        &world,
        &tenant,
        &json!({ "signedAppTransaction": transaction }),
    )
    .await;
    assert_eq!(
        (&answer.body["error"], &answer.body["details"]["found"]),
        (&json!("NOT_AN_APP_TRANSACTION"), &json!("transaction"))
    );
    let forged = apple.forge_transaction(&id, JwsForgery::ALL[0]).unwrap();
    let answer = ask(&world, &tenant, &json!({ "signedAppTransaction": forged })).await;
    assert_eq!(answer.body["error"], "SIGNATURE_INVALID");
    // In the sandbox the app has no number.
    let sandbox = altered(
        &good,
        &[
            ("receiptType", json!("Sandbox")),
            ("appAppleId", Value::Null),
        ],
    );
    let answer = ask_signed(&world, &tenant, &sandbox).await;
    assert_eq!(answer.body["environment"], "sandbox", "{}", answer.body);
    let stranger = world.stranger().await;
    let answer = ask_signed(&world, &stranger, &good).await;
    assert_eq!(answer.body["error"], "CREDENTIALS_MISSING");
}

#[tokio::test]
async fn apple_is_asked_by_any_transaction_of_the_customer() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let apple = world.simulator.apple();
    let sold = apple.create_transaction(NewTransaction::default()).unwrap();
    for id in [&*sold.transaction_id, sold.app_transaction_id()] {
        let answer = ask(&world, &tenant, &json!({ "transactionId": id })).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let details = &answer.body["appTransaction"];
        assert_eq!(details["appTransactionId"], sold.app_transaction_id());
        assert_eq!(answer.body["environment"], "sandbox");
    }
    let elsewhere = NewTransaction {
        bundle_id: Some("com.example.other".to_owned()),
        environment: SimulatedEnvironment::Production,
        ..NewTransaction::default()
    };
    let elsewhere = apple.create_transaction(elsewhere).unwrap().transaction_id;
    for id in [&*elsewhere, "9", "not-an-id"] {
        let answer = ask(&world, &tenant, &json!({ "transactionId": id })).await;
        assert_eq!(answer.body["error"], "TRANSACTION_NOT_FOUND", "{id}");
    }
    let known = json!({ "transactionId": sold.transaction_id, "environment": "sandbox" });
    for (fault, status, error) in [
        (
            Fault::at_place("apple/sandbox").error_code(4_040_019),
            200,
            "APP_TRANSACTION_NOT_FOUND",
        ),
        (
            Fault::at_place("apple/sandbox").status(500).times(3),
            502,
            "APPLE_API_ERROR",
        ),
    ] {
        world.simulator.add_fault(fault).unwrap();
        let answer = ask(&world, &tenant, &known).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (status, &json!(error))
        );
        world.simulator.clear_faults();
    }
}

#[tokio::test]
async fn the_command_verifies_as_the_route_does() {
    let world = World::today().await;
    let tenant = world.tenant().await;
    let apple = world.simulator.apple();
    let sold = apple.create_transaction(NewTransaction::default()).unwrap();
    let shell = world.shell_with_stores();
    let words = ["apple", "app-transaction", tenant.id.as_str()];
    let by_id = [&words[..], &["--transaction-id", &sold.transaction_id]].concat();
    let found = shell.run_async(&by_id, "").await;
    assert_eq!(found.exit, 0, "{found:?}");
    let jws = found.json()["appTransaction"]["signedAppTransactionInfo"].clone();
    let signed = [&words[..], &["--signed-app-transaction-path", "-"]].concat();
    let again = shell.run_async(&signed, jws.as_str().unwrap()).await;
    assert_eq!(again.json(), found.json());
    let unknown = [&words[..], &["--transaction-id", "9"]].concat();
    assert_eq!(shell.run_async(&unknown, "").await.exit, 1);
    assert_eq!(shell.run_async(&words, "").await.exit, 2);
}
