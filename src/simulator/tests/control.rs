use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use super::{TestSimulator, send, start_simulator, test_time};
use crate::base::clock::Clock;
use crate::simulator::state::apple::NewTransaction;
use crate::simulator::state::google::NewSubscription;
use crate::simulator::{Simulator, SimulatorOptions};

async fn list_operations(world: &TestSimulator) -> Vec<Value> {
    let request = world.client.get(world.simulator.control_url());
    let (_, mut list) = send(request.header("accept", "application/json")).await;
    serde_json::from_value(list["operations"].take()).unwrap()
}

#[tokio::test]
async fn every_listed_operation_works_as_listed() {
    let world = start_simulator().await;
    let count = list_operations(&world).await.len();
    assert_eq!(count, 103);
    for index in 0..count {
        // The listed lines name the newest purchases; some operations delete one.
        world.buy(json!({}));
        world.subscribe(json!({}));
        world.buy_product(json!({}));
        let operation = list_operations(&world).await.swap_remove(index);
        let curl = operation["curl"].as_str().unwrap();
        let quoted: Vec<&str> = curl.split('\'').collect();
        let (body, address) = match quoted.as_slice() {
            [_, address, _] => ("", *address),
            [_, body, _, address, _] => (*body, *address),
            _ => panic!("{curl}"),
        };
        let method = Method::from_bytes(operation["method"].as_str().unwrap().as_bytes()).unwrap();
        // No notification may reach a server that happens to listen on this machine.
        let body = body.replace(":8080", ":1");
        let (status, answer) = send(world.client.request(method, address).body(body)).await;
        // What needs an earlier change (a refund to reverse, a pending purchase) is refused, but understood.
        let is_understood = status == 400 && !answer.to_string().contains("cannot be");
        assert!(
            matches!(status, 200 | 201) || is_understood,
            "{curl}\n{status} {answer}"
        );
    }
}

#[tokio::test]
async fn a_purchase_is_made_and_changed_by_curl() {
    let world = start_simulator().await;
    let call = async |path: &str, body: &str| world.call_control("POST", path, body).await;
    let (status, made) = call("/apple/transactions", r#"{"environment":"production"}"#).await;
    assert_eq!((status, &made["subscription"]), (201, &json!("active")));
    let id = made["transactionId"].as_str().unwrap();
    let (_, changed) = call(&format!("/apple/transactions/{id}/refund"), "").await;
    assert_eq!(changed["revoked"], true);
    assert_eq!(changed["payload"]["revocationType"], "REFUND_FULL");
    let path = format!("/apple/transactions/{id}/jws");
    let (_, jws) = world.call_control("GET", &path, "").await;
    assert_eq!(jws.as_str().unwrap().split('.').count(), 3);

    let (status, made) = call("/google/subscriptions", r#"{"period":"P1Y"}"#).await;
    assert_eq!(
        (status, &made["expiryTime"]),
        (201, &json!("2027-04-10T12:00:00.000Z"))
    );
    let token = made["purchaseToken"].as_str().unwrap();
    let path = format!("/google/subscriptions/{token}/replace");
    let (status, made) = call(&path, r#"{"productId":"other"}"#).await;
    assert_eq!((status, &made["linkedPurchaseToken"]), (201, &json!(token)));
    let (_, list) = world.call_control("GET", "/google/subscriptions", "").await;
    assert_eq!(list["subscriptions"].as_array().unwrap().len(), 2);

    assert_eq!(call("/reset", "").await.1, json!({"done": true}));
    let (_, list) = world.call_control("GET", "/apple/transactions", "").await;
    assert_eq!(list["transactions"], json!([]));
}

#[tokio::test]
async fn a_refusal_is_a_sentence() {
    let world = start_simulator().await;
    let id = world.buy(json!({})).transaction_id;
    let change = |action: &str| format!("/apple/transactions/{id}/{action}");
    let transactions = || "/apple/transactions".to_owned();
    #[rustfmt::skip]
    let cases = [
        ("GET", "/nothing".to_owned(), "", 404, "GET /control lists"),
        ("PUT", "/faults".to_owned(), "", 404, "no PUT"),
        ("POST", transactions(), "{", 400, "EOF"),
        ("POST", transactions(), r#"{"bundel":"x"}"#, 400, "unknown field `bundel`"),
        ("POST", transactions(), r#"{"period":"soon"}"#, 400, "ISO 8601"),
        ("POST", transactions(), r#"{"transactionId":"abc"}"#, 400, "digits"),
        ("POST", "/apple/transactions/1/renew".to_owned(), "", 404, "No transaction 1"),
        ("POST", change("explode"), "", 400, "unknown variant `explode`"),
        ("POST", change("renew"), r#"{"days":1}"#, 400, "unknown field `days`"),
        ("POST", change("upgrade"), "", 400, "productId"),
        ("GET", "/apple/forge?kind=perfect".to_owned(), "", 400, "wrong-root"),
        ("GET", "/apple/forge?kind=truncated".to_owned(), "", 400, "Which transaction"),
        ("POST", "/faults".to_owned(), r#"{"at":"mars","status":500}"#, 400, "apple/production"),
        ("POST", "/google/products/never.seen/consume".to_owned(), "", 404, "never.seen"),
        ("GET", "/google/products/never%2Eseen".to_owned(), "", 404, "never.seen"),
    ];
    for (method, path, body, status, text) in cases {
        let (found, answer) = world.call_control(method, &path, body).await;
        let sentence = answer["error"].as_str().unwrap_or_default();
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert!(sentence.contains(text), "{sentence} should contain {text}");
    }
    let elsewhere = format!("{}nowhere", world.simulator.url());
    assert_eq!(send(world.client.get(elsewhere)).await.0, 404);
}

#[tokio::test]
async fn the_credentials_can_be_downloaded() {
    let world = start_simulator().await;
    let get = async |path: &str| world.call_control("GET", path, "").await.1;
    let key = get("/apple/key").await;
    assert_eq!(key["keyId"].as_str().unwrap().len(), 10);
    assert_eq!(key["privateKey"], get("/apple/key.p8").await);
    let pem = get("/apple/root.pem").await;
    assert_eq!(pem, world.simulator.apple_root_pem());
    let lines = pem.as_str().unwrap().lines();
    let body: String = lines.filter(|line| !line.starts_with('-')).collect();
    let authority = world.simulator.identity().certificate_authority();
    assert_eq!(STANDARD.decode(body).unwrap(), authority.root_der());
    let file = get("/google/service-account.json").await;
    assert_eq!(file, world.simulator.google_service_account());
    assert_eq!(
        file["token_uri"],
        world.simulator.google_token_url().as_str()
    );
    let settings = get("/settings").await;
    for (name, value) in world.simulator.environment_variables() {
        let line = format!("{name}={value}\n");
        assert!(settings.as_str().unwrap().contains(&line), "{line}");
    }
}

#[tokio::test]
async fn a_folder_keeps_keys_and_purchases_readable_by_the_owner_only() {
    let name = format!(
        "attesto-simulator-{}",
        crate::crypto::token::generate_uuid()
    );
    let folder = std::env::temp_dir().join(name);
    let start = || {
        Simulator::start(SimulatorOptions {
            folder: Some(folder.clone()),
            ..SimulatorOptions::new(Clock::fixed(test_time()))
        })
    };
    let first = start().await.unwrap();
    let bought = first
        .apple()
        .create_transaction(NewTransaction::default())
        .unwrap();
    let sold = first
        .google()
        .buy_subscription(NewSubscription::default())
        .unwrap();
    let (root, key) = (first.apple_root_pem(), first.apple().api_key());
    let google_keys = first.identity().google_jwk_set();
    first.stop().await;

    let second = start().await.unwrap();
    assert_eq!(second.apple_root_pem(), root);
    assert_eq!(second.apple().api_key().private_key, key.private_key);
    assert_eq!(second.identity().google_jwk_set(), google_keys);
    assert_eq!(
        second.apple().find_transaction(&bought.transaction_id),
        Ok(bought)
    );
    assert_eq!(
        second.google().find_subscription(&sold.purchase_token),
        Some(sold)
    );
    second.stop().await;

    for entry in std::fs::read_dir(&folder).unwrap() {
        assert_eq!(
            entry.unwrap().metadata().unwrap().permissions().mode() & 0o077,
            0
        );
    }
    std::fs::write(folder.join("identity.json"), "{}").unwrap();
    let error = start().await.err().unwrap();
    assert!(error.to_string().contains("remove it"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_seed_makes_the_same_ids() {
    let (one, two) = (start_simulator().await, start_simulator().await);
    let ids = |world: &TestSimulator| {
        (
            world.buy(json!({})).transaction_id,
            world.buy_product(json!({})).purchase_token,
        )
    };
    assert_eq!(ids(&one), ids(&two));
}

#[tokio::test]
async fn play_notifications_are_configured_and_published_over_http() {
    let world = start_simulator().await;
    let call = async |path: &str, body: &str| world.call_control("POST", path, body).await;
    let push = "/google/push/com.example.app";
    assert_eq!(call(push, r#"{"endpoint":"elsewhere"}"#).await.0, 400);
    let (status, set) = call(
        push,
        r#"{"endpoint":"http://127.0.0.1:1/hook","manual":true}"#,
    )
    .await;
    assert_eq!(
        (status, &set["account"]),
        (200, &json!(world.google.push_account()))
    );

    let block = r#"{"subscriptionNotification":{"notificationType":17}}"#;
    let (status, published) = call("/google/messages/com.example.app", block).await;
    let message = world.google.published_messages().pop().unwrap();
    assert_eq!(
        (status, &published["messageId"]),
        (201, &json!(message.message_id))
    );
    let data = STANDARD.decode(&message.data).unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&data).unwrap(),
        json!({
            "version": "1.0",
            "packageName": "com.example.app",
            "eventTimeMillis": test_time().as_millis().to_string(),
            "subscriptionNotification": {"notificationType": 17},
        })
    );
    // A change publishes by itself, except one that the app makes.
    let token = world.subscribe(json!({})).purchase_token;
    for (action, count) in [
        ("renew", 1),
        ("acknowledge", 0),
        ("revoke", 2),
        ("forget", 0),
    ] {
        let before = world.google.published_messages().len();
        let (status, changed) = call(&format!("/google/subscriptions/{token}/{action}"), "").await;
        assert_eq!(status, 200, "{changed}");
        assert_eq!(
            world.google.published_messages().len() - before,
            count,
            "{action}"
        );
    }
    let pushed = world
        .google
        .push_message(&message.message_id)
        .await
        .unwrap();
    assert_eq!(pushed.status, 0, "nothing listens there");
    let (_, again) = call("/google/redeliver", "").await;
    assert_eq!(again["messages"], world.google.published_messages().len());
}
