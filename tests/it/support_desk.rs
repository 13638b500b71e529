//! What a support desk asks by command: `attesto apple order` and `attesto apple refunds`.

use attesto::simulator::state::apple::{
    NewTransaction, SimulatedApp, SimulatedEnvironment, TransactionChange,
};
use attesto::simulator::state::google::NewSubscription;
use attesto::simulator::{Fault, JwsForgery};
use serde_json::{Value, json};

use crate::world::attesto::{APP, APP_APPLE_ID, Tenant, World};
use crate::world::shell::Ran;

const USER: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";

async fn run(world: &World, words: &[&str]) -> Ran {
    world
        .shell_with_stores()
        .run_async(&[&["apple"], words].concat(), "")
        .await
}

fn buy(world: &World, environment: SimulatedEnvironment) -> String {
    let new = NewTransaction {
        environment,
        app_account_token: Some(USER.to_owned()),
        ..NewTransaction::default()
    };
    let bought = world.simulator.apple().create_transaction(new).unwrap();
    bought.transaction_id
}

fn refund(world: &World, id: &str) {
    let refund = TransactionChange::Refund {
        reason: 1,
        percentage: None,
    };
    world
        .simulator
        .apple()
        .change_transaction(id, &refund)
        .unwrap();
}

async fn open() -> (World, Tenant) {
    let world = World::today().await;
    let tenant = world.tenant().await;
    let app = SimulatedApp {
        app_apple_id: APP_APPLE_ID.try_into().unwrap(),
        ..SimulatedApp::for_bundle_id(APP)
    };
    world.simulator.apple().set_app(app).unwrap();
    (world, tenant)
}

#[tokio::test]
async fn an_order_names_its_transactions() {
    let (world, tenant) = open().await;
    let tenant_id = tenant.id.as_str();
    let id = buy(&world, SimulatedEnvironment::Production);
    let order_id = format!("M{id}");
    let found = run(&world, &["order", tenant_id, &order_id]).await.rows();
    let [found] = found.as_slice() else {
        panic!("{found:?}")
    };
    let transaction = &found["transactions"][0]["transaction"];
    assert_eq!(
        *found,
        json!({
            "tenantId": tenant.id, "orderId": order_id, "environment": "production", "valid": true,
            "transactions": [{ "status": "active", "appUserId": USER, "transaction": transaction }],
        })
    );
    assert_eq!(transaction["transactionId"], id);
    assert_eq!(transaction["rawDecodedPayload"]["bundleId"], APP);
    let text = run(
        &world,
        &["order", tenant_id, &order_id, "--output", "table"],
    )
    .await;
    assert_eq!(text.exit, 0);
    for part in ["1 transactions, production", &id, "active", USER] {
        assert!(text.said.contains(part), "{part}: {text:?}");
    }

    // Of the sandbox, of another app, and of none.
    let sandbox = buy(&world, SimulatedEnvironment::Sandbox);
    let elsewhere = NewTransaction {
        bundle_id: Some("com.example.other".to_owned()),
        environment: SimulatedEnvironment::Production,
        ..NewTransaction::default()
    };
    let elsewhere = world.simulator.apple().create_transaction(elsewhere);
    let elsewhere = elsewhere.unwrap().transaction_id;
    for id in [&sandbox, &elsewhere, "9"] {
        let none = run(&world, &["order", tenant_id, &format!("M{id}")]).await;
        assert_eq!((none.exit, &none.json()["valid"]), (1, &json!(false)));
        assert_eq!(none.json()["transactions"], json!([]));
    }
    let stranger = world.stranger().await;
    let none = run(&world, &["order", stranger.id.as_str(), &order_id]).await;
    assert_eq!(none.exit, 1);
    assert_eq!(none.json()["error"], "CREDENTIALS_MISSING");
}

#[tokio::test]
async fn refunds_are_listed_page_by_page_and_in_either_environment() {
    let (world, tenant) = open().await;
    let tenant = tenant.id.as_str();
    let refunds = async |id: &str| run(&world, &["refunds", tenant, id]).await;
    for environment in [
        SimulatedEnvironment::Production,
        SimulatedEnvironment::Sandbox,
    ] {
        let first = buy(&world, environment);
        let none = refunds(&first).await.rows();
        assert_eq!(none[0]["transactions"], json!([]));
        assert_eq!(
            none[0]["environment"],
            environment.payload_name().to_lowercase()
        );
        refund(&world, &first);
        let mut periods = vec![first.clone()];
        for _ in 0..24 {
            let renewed = world
                .simulator
                .apple()
                .change_transaction(&first, &TransactionChange::Renew {});
            let id = renewed.unwrap().transaction_id;
            refund(&world, &id);
            periods.push(id);
        }
        let all = refunds(&first).await.rows();
        let listed = all[0]["transactions"].as_array().unwrap();
        let mut ids: Vec<&Value> = listed
            .iter()
            .map(|one| &one["transaction"]["transactionId"])
            .collect();
        ids.sort_by_key(|id| id.as_str());
        periods.sort();
        assert_eq!(ids, periods.iter().collect::<Vec<_>>());
        assert_eq!(all[0]["complete"], true);
        assert!(listed.iter().all(|one| one["status"] == "refunded"));
    }
    let unknown = refunds("2999999999999999").await;
    assert_eq!(unknown.exit, 1);
    assert_eq!(unknown.json()["error"], "TRANSACTION_NOT_FOUND");
    let malformed = refunds("not-an-id").await;
    assert_eq!(malformed.json()["details"]["reason"], "malformed");
}

#[tokio::test]
async fn what_apple_did_not_sign_or_did_not_answer_is_not_shown() {
    let (world, tenant) = open().await;
    let tenant = tenant.id.as_str();
    let id = buy(&world, SimulatedEnvironment::Production);
    let apple = world.simulator.apple();
    let forged = apple
        .forge_transaction(&id, JwsForgery::AlteredPayload)
        .unwrap();
    let of_another_app = apple.sign_payload(&crate::apple_notifications::object(json!({
        "transactionId": id, "originalTransactionId": id, "bundleId": "com.example.other",
        "environment": "Production", "signedDate": world.clock.now().as_millis(),
    })));
    for (signed, code) in [
        (forged, "APPLE_API_ERROR"),
        (of_another_app, "BUNDLE_ID_MISMATCH"),
    ] {
        let body = json!({ "status": 0, "signedTransactions": [signed] });
        let fault = Fault::at_place("apple/production").body(&body.to_string());
        world.simulator.add_fault(fault).unwrap();
        let ran = run(&world, &["order", tenant, "M1"]).await;
        assert_eq!((ran.exit, &ran.json()["error"]), (1, &json!(code)));
    }
    let limit = Fault::at_place("apple/production").status(429);
    world.simulator.add_fault(limit).unwrap();
    let ran = run(&world, &["refunds", tenant, &id]).await;
    assert_eq!(
        (ran.exit, &ran.json()["error"]),
        (1, &json!("RATE_LIMITED"))
    );
    let away = Fault::at_place("apple").status(503).times(0);
    world.simulator.add_fault(away).unwrap();
    let ran = run(&world, &["refunds", tenant, &id]).await;
    assert_eq!(
        (ran.exit, &ran.json()["error"]),
        (1, &json!("APPLE_API_ERROR"))
    );
}

#[tokio::test]
async fn an_order_of_google_play_is_shown_as_google_has_it() {
    let (world, tenant) = open().await;
    let tenant_id = tenant.id.as_str();
    let google = world.simulator.google();
    let bought = google
        .buy_subscription(NewSubscription {
            package_name: Some(APP.to_owned()),
            ..NewSubscription::default()
        })
        .unwrap();
    let shell = world
        .shell()
        .set_all(world.simulator.environment_variables());
    let run = async |tenant: &str, order: &str| {
        shell
            .run_async(&["google", "order", tenant, order], "")
            .await
    };
    let order_id = bought.latest_order_id();
    let found = run(tenant_id, &order_id).await.rows();
    assert_eq!(found[0]["orderId"], order_id);
    assert_eq!(found[0]["order"]["orderId"], order_id);
    assert_eq!(found[0]["order"]["state"], "PROCESSED");
    assert_eq!(found[0]["order"]["purchaseToken"], bought.purchase_token);
    let unknown = run(tenant_id, "GPA.0000-0000-0000-00000").await;
    assert_eq!(
        (unknown.exit, &unknown.json()["error"]),
        (1, &json!("PURCHASE_NOT_FOUND"))
    );
    let stranger = world.stranger().await;
    let none = run(stranger.id.as_str(), &order_id).await;
    assert_eq!(
        (none.exit, &none.json()["error"]),
        (1, &json!("CREDENTIALS_MISSING"))
    );
}
