//! Every route without a key, with a wrong key, and as another tenant: one table of the expected
//! statuses.

use serde_json::{Value, json};

use crate::world::attesto::{APP, World};
use crate::world::wait::wait_for;

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table of all routes")]
async fn each_route_answers_each_caller_as_the_table_says() {
    let world = World::new().await;
    let (tenant, stranger) = (world.tenant().await, world.stranger().await);
    let forged = format!("attesto_live_{}", "A".repeat(43));
    let apple = json!({ "transactionId": "1" });
    let offer = json!({ "type": "promotional", "productId": "pro", "offerId": "spring" });
    let used = json!({
        "transactionId": "1", "customerConsented": true, "sampleContentProvided": true, "deliveryStatus": "DELIVERED",
    });
    let google = json!({ "packageName": APP, "purchaseToken": "t", "type": "subscription" });

    let bound = json!({
        "originalTransactionId": "1", "appAccountToken": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
    });
    let review = json!({
        "packageName": APP, "orderId": "GPA.1", "pendingRefundToken": "t", "sampleContentProvided": true,
        "refundPreference": "DECLINE",
    });

    // Method, path, body; then the status without a key, with an unknown key, for a tenant without
    // credentials, and for a tenant that asks about an object that does not exist.
    let event = "/v1/events/evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
    let redeliver = format!("{event}/redeliver");
    let subject = "/v1/subjects/apple/1";
    let asking = [401, 401, 400, 200];
    let table: [(&str, &str, Option<&Value>, [u16; 4]); 18] = [
        ("/health", "GET", None, [200, 200, 200, 200]),
        ("/ready", "GET", None, [200, 200, 200, 200]),
        ("/openapi.json", "GET", None, [200, 200, 200, 200]),
        ("/v1/apple/verify", "POST", Some(&apple), asking),
        ("/v1/apple/app-transaction", "POST", Some(&apple), asking),
        ("/v1/apple/consumption", "POST", Some(&used), asking),
        ("/v1/apple/finish", "POST", Some(&apple), asking),
        ("/v1/apple/app-account-token", "POST", Some(&bound), asking),
        ("/v1/apple/offers/sign", "POST", Some(&offer), asking),
        ("/v1/google/verify", "POST", Some(&google), asking),
        ("/v1/google/acknowledge", "POST", Some(&google), asking),
        ("/v1/google/consume", "POST", Some(&google), asking),
        ("/v1/google/refund-review", "POST", Some(&review), asking),
        ("/v1/events", "GET", None, [401, 401, 200, 200]),
        (event, "GET", None, [401, 401, 404, 404]),
        (&redeliver, "POST", None, [401, 401, 404, 404]),
        (subject, "GET", None, [401, 401, 404, 404]),
        ("/v1/refund-questions", "GET", None, [401, 401, 200, 200]),
    ];
    let keys = [
        None,
        Some(forged.as_str()),
        Some(stranger.key.expose()),
        Some(tenant.key.expose()),
    ];
    for (path, method, body, expected) in table {
        for (key, expected) in keys.iter().zip(expected) {
            let answer = world.ask(method, path, *key, body).await;
            assert_eq!(answer.status, expected, "{method} {path}: {}", answer.body);
            assert_eq!(answer.headers["content-type"], "application/json", "{path}");
            assert_eq!(
                answer.headers["x-attesto-version"],
                attesto::VERSION,
                "{path}"
            );
            assert!(
                answer.headers["x-request-id"]
                    .to_str()
                    .expect("text")
                    .starts_with("req_"),
                "{path}"
            );
            match expected {
                400 => assert_eq!(answer.body["error"], "CREDENTIALS_MISSING"),
                401 => assert_eq!(answer.body["error"], "UNAUTHENTICATED"),
                404 => assert_eq!(answer.body["error"], "NOT_FOUND"),
                _ => {}
            }
        }
        let wrong = if method == "GET" { "DELETE" } else { "GET" };
        let answer = world
            .ask(wrong, path, Some(tenant.key.expose()), None)
            .await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (405, &json!("METHOD_NOT_ALLOWED")),
            "{path}"
        );
    }
    let nowhere = world.ask("GET", "/v1/nowhere", None, None).await;
    assert_eq!(
        (nowhere.status, &nowhere.body["error"]),
        (404, &json!("NOT_FOUND"))
    );

    // The table is complete: it has every route of the OpenAPI description, except those the stores
    // push to, which need no key.
    let described = world.ask("GET", "/openapi.json", None, None).await.body;
    let paths: Vec<&String> = described["paths"]
        .as_object()
        .expect("paths")
        .keys()
        .collect();
    for path in &paths {
        let path = path
            .replace("{eventId}", "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E")
            .replace("{source}/{key}", "apple/1");
        assert!(
            path.starts_with("/v1/webhooks/") || table.iter().any(|(known, ..)| *known == path),
            "{path} is missing in the table"
        );
    }
    world.end().await;
}

#[tokio::test]
async fn an_unauthorized_answer_never_says_why() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let body = json!({ "transactionId": "1" });
    let mut texts = std::collections::BTreeSet::new();
    let key = tenant.key.expose();
    let longer = format!("{key}A");
    for wrong in [
        None,
        Some(""),
        Some("x"),
        Some(&key[1..]),
        Some(&key[..key.len() - 1]),
        Some(longer.as_str()),
    ] {
        let answer = world
            .ask("POST", "/v1/apple/verify", wrong, Some(&body))
            .await;
        assert_eq!(answer.status, 401);
        texts.insert(answer.body["message"].to_string());
    }
    attesto::tenants::store::set_tenant_active(
        world.database(),
        &tenant.id,
        false,
        world.clock.now(),
    )
    .await
    .expect("a change");
    let inactive = wait_for("the deactivation is noticed", async || {
        let asked = world.ask("POST", "/v1/apple/verify", Some(key), Some(&body));
        Some(asked.await).filter(|answer| answer.status == 401)
    })
    .await;
    texts.insert(inactive.body["message"].to_string());
    assert_eq!(texts.len(), 1, "{texts:?}");
    world.end().await;
}
