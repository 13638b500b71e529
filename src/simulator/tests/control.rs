use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{start_simulator, test_time};
use crate::base::clock::Clock;
use crate::simulator::state::apple::NewTransaction;
use crate::simulator::state::google::{NewProduct, NewSubscription};
use crate::simulator::{Simulator, SimulatorOptions};

#[tokio::test]
async fn everything_it_lists_can_be_done_as_listed() {
    let world = start_simulator().await;
    let url = world.simulator.control_url();
    let request = world.client.get(url).header("accept", "application/json");
    let listed: Value = request.send().await.unwrap().json().await.unwrap();
    let count = listed["operations"].as_array().unwrap().len();
    assert!(count > 50, "{count}");
    for index in 0..count {
        // Ids in the listed lines are those of the newest purchases; some operations forget one.
        world
            .simulator
            .apple()
            .create_transaction(NewTransaction::default())
            .unwrap();
        let google = world.simulator.google();
        google.buy_subscription(NewSubscription::default()).unwrap();
        google.buy_product(NewProduct::default()).unwrap();
        let url = world.simulator.control_url();
        let request = world.client.get(url).header("accept", "application/json");
        let listed: Value = request.send().await.unwrap().json().await.unwrap();
        let operation = &listed["operations"][index];
        let curl = operation["curl"].as_str().unwrap();
        let quoted: Vec<&str> = curl.split('\'').collect();
        let (body, address) = match quoted.as_slice() {
            [_, address, _] => ("", *address),
            [_, body, _, address, _] => (*body, *address),
            _ => panic!("{curl}"),
        };
        let method = operation["method"].as_str().unwrap();
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        // No notification is to arrive where something of this machine's may listen.
        let body = body.replace(":8080", ":1");
        let request = world.client.request(method, address).body(body);
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        // What needs a history of its own (taking a refund back, paying what is pending) is refused, but understood.
        assert!(
            matches!(status, 200 | 201) || (status == 400 && !text.contains("cannot be")),
            "{curl}\n{status} {text}"
        );
    }
}

#[tokio::test]
async fn a_purchase_is_made_and_changed_by_curl() {
    let world = start_simulator().await;
    let (status, made) = world
        .call_control(
            "POST",
            "/apple/transactions",
            r#"{"environment":"production"}"#,
        )
        .await;
    assert_eq!(status, 201);
    let id = made["transactionId"].as_str().unwrap();
    assert_eq!(made["subscription"], "active");
    let (_, changed) = world
        .call_control("POST", &format!("/apple/transactions/{id}/refund"), "")
        .await;
    assert_eq!(changed["revoked"], true);
    assert_eq!(changed["payload"]["revocationType"], "REFUND_FULL");
    let (_, jws) = world
        .call_control("GET", &format!("/apple/transactions/{id}/jws"), "")
        .await;
    assert_eq!(jws.as_str().unwrap().split('.').count(), 3);

    let (status, made) = world
        .call_control("POST", "/google/subscriptions", r#"{"period":"P1Y"}"#)
        .await;
    assert_eq!(status, 201);
    let token = made["purchaseToken"].as_str().unwrap();
    assert_eq!(made["expiryTime"], "2027-04-10T12:00:00.000Z");
    let (status, made) = world
        .call_control(
            "POST",
            &format!("/google/subscriptions/{token}/replace"),
            r#"{"productId":"other"}"#,
        )
        .await;
    assert_eq!(status, 201);
    assert_eq!(made["linkedPurchaseToken"], token);
    let (_, list) = world.call_control("GET", "/google/subscriptions", "").await;
    assert_eq!(list["subscriptions"].as_array().unwrap().len(), 2);

    let (_, reset) = world.call_control("POST", "/reset", "").await;
    assert_eq!(reset, json!({"done": true}));
    let (_, list) = world.call_control("GET", "/apple/transactions", "").await;
    assert_eq!(list["transactions"], json!([]));
}

#[tokio::test]
async fn what_cannot_be_done_is_said_in_a_sentence() {
    let world = start_simulator().await;
    let made = world
        .simulator
        .apple()
        .create_transaction(NewTransaction::default())
        .unwrap();
    let change = |action: &str| format!("/apple/transactions/{}/{action}", made.transaction_id);
    for (method, path, body, status, says) in [
        ("GET", "/nothing".to_owned(), "", 404, "GET /control lists"),
        ("PUT", "/faults".to_owned(), "", 404, "no PUT"),
        ("POST", "/apple/transactions".to_owned(), "{", 400, "EOF"),
        (
            "POST",
            "/apple/transactions".to_owned(),
            r#"{"bundel":"x"}"#,
            400,
            "unknown field `bundel`",
        ),
        (
            "POST",
            "/apple/transactions".to_owned(),
            r#"{"period":"soon"}"#,
            400,
            "ISO 8601",
        ),
        (
            "POST",
            "/apple/transactions".to_owned(),
            r#"{"transactionId":"abc"}"#,
            400,
            "digits",
        ),
        (
            "POST",
            "/apple/transactions/1/renew".to_owned(),
            "",
            404,
            "No transaction 1",
        ),
        (
            "POST",
            change("explode"),
            "",
            400,
            "unknown variant `explode`",
        ),
        (
            "POST",
            change("renew"),
            r#"{"days":1}"#,
            400,
            "unknown field `days`",
        ),
        ("POST", change("upgrade"), "", 400, "productId"),
        (
            "GET",
            "/apple/forge?kind=perfect".to_owned(),
            "",
            400,
            "wrong-root",
        ),
        (
            "GET",
            "/apple/forge?kind=truncated".to_owned(),
            "",
            400,
            "Which transaction",
        ),
        (
            "POST",
            "/faults".to_owned(),
            r#"{"at":"mars","status":500}"#,
            400,
            "apple/production",
        ),
        (
            "POST",
            "/google/products/never.seen/consume".to_owned(),
            "",
            404,
            "never.seen",
        ),
    ] {
        let (found, answer) = world.call_control(method, &path, body).await;
        let sentence = answer["error"].as_str().unwrap_or_default();
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert!(sentence.contains(says), "{sentence} should say {says}");
    }
    let elsewhere = format!("{}nowhere", world.simulator.url());
    assert_eq!(
        world.client.get(elsewhere).send().await.unwrap().status(),
        404
    );
}

#[tokio::test]
async fn the_credentials_are_there_to_download() {
    let world = start_simulator().await;
    let (_, key) = world.call_control("GET", "/apple/key", "").await;
    assert_eq!(key["keyId"].as_str().unwrap().len(), 10);
    let (_, p8) = world.call_control("GET", "/apple/key.p8", "").await;
    assert_eq!(key["privateKey"], p8);
    let (_, pem) = world.call_control("GET", "/apple/root.pem", "").await;
    assert_eq!(pem, json!(world.simulator.apple_root_pem()));
    let (_, file) = world
        .call_control("GET", "/google/service-account.json", "")
        .await;
    assert_eq!(file, world.simulator.google_service_account());
    assert_eq!(
        file["token_uri"],
        json!(world.simulator.google_token_url().as_str())
    );
    let (_, settings) = world.call_control("GET", "/settings", "").await;
    for (name, value) in world.simulator.environment_variables() {
        let line = format!("{name}={value}\n");
        assert!(settings.as_str().unwrap().contains(&line), "{line}");
    }
}

#[tokio::test]
async fn a_folder_keeps_keys_and_purchases_for_its_owner_only() {
    let folder = std::env::temp_dir().join(format!(
        "attesto-simulator-{}",
        crate::simulator::identity::random_uuid()
    ));
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
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }
    std::fs::write(folder.join("identity.json"), "{}").unwrap();
    let error = start().await.err().unwrap();
    assert!(error.to_string().contains("remove it"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_seed_makes_ids_come_out_the_same() {
    let (one, two) = (start_simulator().await, start_simulator().await);
    let make = |simulator: &Simulator| {
        let bought = simulator
            .apple()
            .create_transaction(NewTransaction::default())
            .unwrap();
        let sold = simulator
            .google()
            .buy_product(NewProduct::default())
            .unwrap();
        (bought.transaction_id, sold.purchase_token)
    };
    assert_eq!(make(&one.simulator), make(&two.simulator));
}

#[tokio::test]
async fn notifications_are_set_up_and_published_over_http() {
    let world = start_simulator().await;
    let push = "/google/push/com.example.app";
    let (status, refused) = world
        .call_control("POST", push, r#"{"endpoint":"elsewhere"}"#)
        .await;
    assert_eq!(status, 400, "{refused}");
    let to = r#"{"endpoint":"http://127.0.0.1:1/hook","manual":true}"#;
    let (status, set) = world.call_control("POST", push, to).await;
    assert_eq!(status, 200, "{set}");
    assert_eq!(set["account"], world.simulator.google().push_account());

    let block = r#"{"subscriptionNotification":{"notificationType":17}}"#;
    let messages = "/google/messages/com.example.app";
    let (status, published) = world.call_control("POST", messages, block).await;
    assert_eq!(status, 201, "{published}");
    let message = world.simulator.google().published_messages().pop().unwrap();
    assert_eq!(published["messageId"], message.message_id);
    let data = STANDARD.decode(&message.data).unwrap();
    let data: Value = serde_json::from_slice(&data).unwrap();
    assert_eq!(
        data,
        json!({
            "version": "1.0",
            "packageName": "com.example.app",
            "eventTimeMillis": test_time().as_millis().to_string(),
            "subscriptionNotification": { "notificationType": 17 },
        })
    );
    // What changes is told by itself, except what the app does.
    let google = world.simulator.google();
    let token = google
        .buy_subscription(NewSubscription::default())
        .unwrap()
        .purchase_token;
    for (change, told) in [
        ("renew", 1),
        ("acknowledge", 0),
        ("revoke", 2),
        ("forget", 0),
    ] {
        let before = google.published_messages().len();
        let path = format!("/google/subscriptions/{token}/{change}");
        let (status, changed) = world.call_control("POST", &path, "").await;
        assert_eq!(status, 200, "{changed}");
        assert_eq!(google.published_messages().len() - before, told, "{change}");
    }
    let pushed = google.push_message(&message.message_id).await.unwrap();
    assert_eq!(pushed.status, 0, "nobody listens there");
    let (_, again) = world.call_control("POST", "/google/redeliver", "").await;
    assert_eq!(again["messages"], google.published_messages().len());
}
