//! `/openapi.json` as a generator of clients reads it.

use attesto::clock::Clock;
use attesto::config::{Raw, Settings};
use attesto::db::Database;
use attesto::service::Service;
use axum::body::Body;
use axum::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::world::postgres::fresh_database;

async fn description(database: &Database) -> Value {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let given = |name: &str| match name {
        "DATABASE_URL" => Some("postgres://nobody@localhost/none".into()),
        "ATTESTO_ENCRYPTION_KEY" => Some(STANDARD.encode([1; 32]).into()),
        _ => None,
    };
    let settings = Settings::parse(&Raw::new([], &given)).expect("these are enough");
    let service = Service::build(&settings, database, &Clock::system()).expect("it can be built");
    let envelope = service.envelope(CancellationToken::new());
    let request = Request::get("/openapi.json")
        .body(Body::empty())
        .expect("a request");
    let response = envelope.oneshot(request).await.expect("an answer");
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
        .await
        .expect("whole");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// Every `$ref` in a document.
fn references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" => into.push(target.clone()),
                    value => references(value, into),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        _ => {}
    }
}

#[tokio::test]
async fn the_description_is_whole() {
    let description = description(&fresh_database().await.database).await;
    assert_eq!(description["info"]["version"], attesto::VERSION);
    let mut targets = Vec::new();
    references(&description, &mut targets);
    assert!(!targets.is_empty());
    for target in targets {
        let pointer = target.strip_prefix('#').expect("a place in this document");
        assert!(
            description.pointer(pointer).is_some(),
            "{target} is nowhere"
        );
    }

    let paths = description["paths"].as_object().expect("paths");
    for path in [
        "/health",
        "/ready",
        "/v1/apple/verify",
        "/v1/google/verify",
        "/v1/webhooks/apple/{tenantId}",
        "/v1/webhooks/google/{tenantId}",
    ] {
        assert!(paths.contains_key(path), "{path} is not described");
    }
    for (path, item) in paths {
        for (method, operation) in item.as_object().expect("operations") {
            let what = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{what}");
            let answers = operation["responses"].as_object().expect("answers");
            let is_verify = path.ends_with("/verify");
            let expected: &[_] = if is_verify {
                &["200", "400", "401", "429", "500", "502", "503"]
            } else if path.starts_with("/v1/webhooks/") {
                &["200", "400", "401", "404", "500", "503"]
            } else {
                &["200", "500"]
            };
            for status in expected {
                assert!(answers.contains_key(*status), "{what} lacks {status}");
            }
            let needs_key = operation["security"][0]["apiKey"].is_array();
            // A store that pushes has no key; it signs.
            assert_eq!(needs_key, is_verify, "{what}");
        }
    }
}
