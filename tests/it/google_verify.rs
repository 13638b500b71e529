//! `POST /v1/google/verify` against a scripted Google: it can give answers that the simulated store
//! does not, such as a gateway's error page or invalid JSON with status 200.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attesto::audit::VerificationLog;
use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::TenantId;
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::db::Database;
use attesto::db::change_listener::ChangeListener;
use attesto::http::request_layer::RequestLayer;
use attesto::outbound::{self, Upstream};
use attesto::stores::google::account::GoogleServiceAccount;
use attesto::stores::google::store::{self, NewGoogleCredentials};
use attesto::stores::google::{self, GoogleSettings, GoogleVerifier};
use attesto::stores::shared::credentials::SetCredentialsError;
use attesto::tenants::RateLimit;
use attesto::tenants::{self, ApiKeyEnvironment, Authenticator, RawApiKey};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use crate::world::postgres::fresh_database;
use crate::world::wait::wait_until;

const PACKAGE: &str = "com.example.app";
const PURCHASE_TOKEN: &str = "token/with:odd?characters";

/// A server with one tenant, and the Google it calls.
struct Shop {
    database: Database,
    keyring: Arc<Keyring>,
    changes: ChangeListener,
    service: RequestLayer,
    google: Arc<Script>,
    tenant: TenantId,
    key: RawApiKey,
    _serving: AbortOnDropHandle<()>,
}

/// Google's next answers, and the requests it got.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<(u16, String)>>,
    token_answer: Mutex<Option<(u16, String)>>,
    retry_after: Mutex<Option<&'static str>>,
    asked: Mutex<Vec<String>>,
    assertions: Mutex<Vec<String>>,
}

impl Script {
    #[expect(clippy::unused_async, reason = "a handler is")]
    async fn answer(
        State(script): State<Arc<Self>>,
        uri: Uri,
        headers: HeaderMap,
        body: String,
    ) -> Response {
        if uri.path() == "/token" {
            script.assertions.lock().unwrap().push(body);
            let good = json!({ "access_token": "ya29.planted-secret", "expires_in": 3600 });
            let scripted = script.token_answer.lock().unwrap().clone();
            let (status, body) = scripted.unwrap_or((200, good.to_string()));
            return (StatusCode::from_u16(status).unwrap(), body).into_response();
        }
        assert_eq!(headers[header::AUTHORIZATION], "Bearer ya29.planted-secret");
        script.asked.lock().unwrap().push(uri.to_string());
        let next = script.answers.lock().unwrap().pop_front();
        let (status, body) = next.expect("an answer is in the script");
        let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
        if let Some(wait) = *script.retry_after.lock().unwrap() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static(wait));
        }
        response
    }

    async fn open() -> (Arc<Self>, Url, AbortOnDropHandle<()>) {
        let script = Arc::new(Self::default());
        let app = axum::Router::new()
            .fallback(Self::answer)
            .with_state(script.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (script, url, AbortOnDropHandle::new(serving))
    }

    /// Google will answer `body` with `status`, for every retry of a failure.
    fn will_answer(&self, status: u16, body: &str) {
        let times = if status >= 500 { 3 } else { 1 };
        let answers = std::iter::repeat_n((status, body.to_owned()), times);
        self.answers.lock().unwrap().extend(answers);
    }

    /// Google will refuse whatever it is asked next, until it [answers](Self::will_answer) something else.
    fn will_refuse(&self, status: u16, reason: &str) {
        let body = json!({ "error": {
            "code": status, "message": "planted-sentence", "errors": [{ "reason": reason }],
        } });
        self.answers.lock().unwrap().clear();
        for _ in 0..6 {
            self.will_answer(status, &body.to_string());
        }
    }
}

fn keyring(fill: u8) -> Arc<Keyring> {
    let key = MasterKey::parse(&STANDARD.encode([fill; 32]), Some(1)).unwrap();
    Arc::new(Keyring::new(key, vec![]).unwrap())
}

/// A service account's key file with a new key.
pub(crate) fn key_file(key_id: &str) -> String {
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let base64 = STANDARD.encode(der.as_ref());
    json!({
        "type": "service_account",
        "private_key_id": key_id,
        "private_key": format!("-----BEGIN {0}-----\n{base64}\n-----END {0}-----\n", "PRIVATE KEY"),
        "client_email": "attesto@project.iam.example",
        // This URL is never called.
        "token_uri": "http://127.0.0.1:1/steered-elsewhere",
    })
    .to_string()
}

impl Shop {
    async fn open() -> Self {
        let shop = Self::without_credentials().await;
        shop.set_credentials(&key_file("key-1")).await.unwrap();
        shop
    }

    async fn without_credentials() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let database = fresh_database().await.database;
        let clock = Clock::fixed(Timestamp::parse("2026-04-20T00:00:00Z").unwrap());
        let name = "Acme".parse().unwrap();
        let tenant = tenants::store::create_tenant(&database, &name, clock.now())
            .await
            .unwrap()
            .id;
        let key = RawApiKey::generate(ApiKeyEnvironment::Live);
        tenants::store::create_api_key(
            &database,
            &tenant,
            None,
            ApiKeyEnvironment::Live,
            &key,
            clock.now(),
        )
        .await
        .unwrap();
        let (script, url, serving) = Script::open().await;
        let (changes, keyring) = (ChangeListener::new(&database), keyring(1));
        let service = service(&database, &changes, &keyring, &clock, &url);
        Self {
            database,
            keyring,
            changes,
            service,
            google: script,
            tenant,
            key,
            _serving: serving,
        }
    }

    async fn set_credentials(&self, file: &str) -> Result<(), SetCredentialsError> {
        let account = GoogleServiceAccount::parse(file.as_bytes()).unwrap();
        let new = NewGoogleCredentials {
            package_name: PACKAGE,
            key_file: file.as_bytes(),
            account: &account,
            pubsub_audience: None,
            pubsub_service_account: None,
            pubsub_topic: None,
        };
        store::set_credentials(&self.database, &self.keyring, &self.tenant, &new).await
    }

    async fn ask(&self, body: &Value) -> (u16, HeaderMap, Value) {
        self.ask_with(&format!("Bearer {}", self.key.expose()), body)
            .await
    }

    async fn ask_with(&self, authorization: &str, body: &Value) -> (u16, HeaderMap, Value) {
        self.send("/v1/google/verify", authorization, body).await
    }

    async fn send(&self, path: &str, authorization: &str, body: &Value) -> (u16, HeaderMap, Value) {
        let request = Request::post(path)
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        let response = self.service.clone().handle_request(request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        for secret in [
            "ya29.",
            "PRIVATE KEY",
            "planted-sentence",
            self.key.expose(),
        ] {
            assert!(!text.contains(secret), "{text}");
        }
        (
            parts.status.as_u16(),
            parts.headers,
            serde_json::from_str(&text).unwrap(),
        )
    }
}

fn service(
    database: &Database,
    changes: &ChangeListener,
    keyring: &Arc<Keyring>,
    clock: &Clock,
    url: &Url,
) -> RequestLayer {
    let limit = RateLimit {
        per_second: 1_000_000,
        burst: 1_000_000,
    };
    let callers = Authenticator::new(database, changes, clock, limit);
    let upstream = Upstream::new(
        outbound::build_http_client().unwrap(),
        Duration::from_secs(5),
    );
    let settings = GoogleSettings {
        play_url: url.clone(),
        token_url: url.join("token").unwrap(),
        credential_ttl: Duration::from_mins(5),
    };
    let google = GoogleVerifier::new(database, keyring, changes, upstream, clock, settings);
    let unnoted = VerificationLog::disabled(clock);
    let (router, _) = google::verify_routes(google, callers, unnoted).split_for_parts();
    RequestLayer::new(router, clock.clone(), Duration::from_secs(5))
}

fn subscription() -> Value {
    json!({ "packageName": PACKAGE, "purchaseToken": PURCHASE_TOKEN, "type": "subscription" })
}

fn product() -> Value {
    json!({ "packageName": PACKAGE, "purchaseToken": PURCHASE_TOKEN, "type": "product", "productId": "coins" })
}

fn with(mut body: Value, name: &str, value: impl Into<Value>) -> Value {
    body[name] = value.into();
    body
}

const KNOWN: &str = r#"{ "kind":"androidpublisher#subscriptionPurchaseV2", "new field":1.0,
    "startTime":"2026-04-19T00:00:00.5Z", "subscriptionState":"SUBSCRIPTION_STATE_ACTIVE",
    "acknowledgementState":"ACKNOWLEDGEMENT_STATE_PENDING",
    "externalAccountIdentifiers":{"obfuscatedExternalAccountId":"user-1"},
    "lineItems":[{"productId":"premium","expiryTime":"2026-05-19T00:00:00Z",
        "latestSuccessfulOrderId":"GPA.1","autoRenewingPlan":{}}] }"#;

#[tokio::test]
async fn a_valid_subscription_is_confirmed() {
    let shop = Shop::open().await;
    shop.google.will_answer(200, KNOWN);
    let (status, headers, answer) = shop.ask(&subscription()).await;
    assert_eq!(status, 200);
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    let purchase = &answer["purchase"];
    for (found, expected) in [
        (&answer["valid"], json!(true)),
        (&answer["status"], json!("active")),
        (&answer["appUserId"], json!("user-1")),
        (&purchase["productId"], json!("premium")),
        (&purchase["purchaseToken"], json!(PURCHASE_TOKEN)),
        (&purchase["startTime"], json!("2026-04-19T00:00:00.500Z")),
        (&purchase["expiryTime"], json!("2026-05-19T00:00:00.000Z")),
        (&purchase["autoRenewing"], json!(false)),
        (&purchase["acknowledgementState"], json!(0)),
        (
            &purchase["acknowledgeBy"],
            json!("2026-04-22T00:00:00.500Z"),
        ),
        (&purchase["orderId"], json!("GPA.1")),
        (&purchase["testPurchase"], json!(false)),
        (&purchase["rawResponse"]["new field"], json!(1.0)),
    ] {
        assert_eq!(*found, expected, "{answer}");
    }
    assert_eq!(
        *shop.google.asked.lock().unwrap(),
        [
            "/androidpublisher/v3/applications/com.example.app/purchases/subscriptionsv2/tokens/token%2Fwith%3Aodd%3Fcharacters"
        ]
    );
}

#[tokio::test]
async fn a_product_that_was_consumed_in_the_meantime_is_answered_as_done() {
    let shop = Shop::open().await;
    let state =
        |consumed: u8| json!({ "purchaseState": 0, "consumptionState": consumed }).to_string();
    let refusal =
        json!({ "error": { "code": 400, "errors": [{ "reason": "productNotOwnedByUser" }] } });
    let authorization = format!("Bearer {}", shop.key.expose());
    // Another request consumed it between the two calls, or the answer to the first try was lost.
    shop.google.will_answer(200, &state(0));
    shop.google.will_answer(400, &refusal.to_string());
    shop.google.will_answer(200, &state(1));
    let (status, _, answer) = shop
        .send("/v1/google/consume", &authorization, &product())
        .await;
    assert_eq!(
        (status, &answer["consumed"], &answer["alreadyDone"]),
        (200, &json!(true), &json!(true)),
        "{answer}"
    );
    // It was refunded.
    shop.google.will_answer(200, &state(0));
    shop.google.will_answer(400, &refusal.to_string());
    shop.google
        .will_answer(200, &json!({ "purchaseState": 1 }).to_string());
    let (status, _, answer) = shop
        .send("/v1/google/acknowledge", &authorization, &product())
        .await;
    assert_eq!((status, &answer["error"]), (200, &json!("PURCHASE_ENDED")));
    let token = "/androidpublisher/v3/applications/com.example.app/purchases/products/coins/tokens/token%2Fwith%3Aodd%3Fcharacters";
    assert_eq!(
        *shop.google.asked.lock().unwrap(),
        [
            token,
            &format!("{token}:consume"),
            token,
            token,
            &format!("{token}:acknowledge"),
            token
        ]
    );
}

#[tokio::test]
async fn a_valid_product_is_confirmed() {
    let shop = Shop::open().await;
    let body = json!({ "purchaseState": 0, "consumptionState": 1, "purchaseTimeMillis": "1776556800000", "orderId": "GPA.2" });
    shop.google.will_answer(200, &body.to_string());
    let (status, _, answer) = shop.ask(&product()).await;
    assert_eq!((status, &answer["status"]), (200, &json!("consumed")));
    assert_eq!(answer["purchase"]["purchaseTimeMillis"], "1776556800000");
    assert_eq!(answer["purchase"]["rawResponse"], body);
    assert_eq!(
        *shop.google.asked.lock().unwrap(),
        [
            "/androidpublisher/v3/applications/com.example.app/purchases/products/coins/tokens/token%2Fwith%3Aodd%3Fcharacters"
        ]
    );
}

#[expect(clippy::too_many_lines, reason = "a table")]
#[tokio::test]
async fn every_google_response_maps_to_its_error_code() {
    let shop = Shop::open().await;
    let not_found =
        |reason: &str, may_be_early: bool| json!({ "reason": reason, "mayBeEarly": may_be_early });
    let google = |status: u16, reason: &str| json!({ "status": status, "googleErrorCode": reason });
    for (status, reason, expected, error, details) in [
        (
            404,
            "purchaseTokenNotFound",
            200,
            "PURCHASE_NOT_FOUND",
            not_found("unknown", true),
        ),
        (
            400,
            "invalid",
            200,
            "PURCHASE_NOT_FOUND",
            not_found("unknown", false),
        ),
        (
            400,
            "subscriptionInvalidArgument",
            200,
            "PURCHASE_NOT_FOUND",
            not_found("other_type", false),
        ),
        (
            400,
            "failedPrecondition",
            200,
            "PURCHASE_NOT_FOUND",
            not_found("gone", false),
        ),
        (
            410,
            "subscriptionPurchaseNoLongerAvailable",
            200,
            "PURCHASE_NOT_FOUND",
            not_found("gone", false),
        ),
        (
            410,
            "purchaseTokenNoLongerValid",
            200,
            "PURCHASE_NOT_FOUND",
            not_found("gone", false),
        ),
        (
            400,
            "purchaseTokenDoesNotMatchPackageName",
            200,
            "PACKAGE_NAME_MISMATCH",
            json!({ "expected": PACKAGE }),
        ),
        (
            400,
            "purchaseTokenDoesNotMatchProductId",
            200,
            "PRODUCT_ID_MISMATCH",
            json!({ "found": [] }),
        ),
        (
            403,
            "quotaExceeded",
            429,
            "RATE_LIMITED",
            json!({ "status": 403, "retryAfterSeconds": 60 }),
        ),
        (
            429,
            "rateLimitExceeded",
            429,
            "RATE_LIMITED",
            json!({ "status": 429, "retryAfterSeconds": 60 }),
        ),
        (
            403,
            "permissionDenied",
            502,
            "GOOGLE_API_ERROR",
            google(403, "permissionDenied"),
        ),
        (
            404,
            "applicationNotFound",
            502,
            "GOOGLE_API_ERROR",
            google(404, "applicationNotFound"),
        ),
        (
            400,
            "somethingNew",
            502,
            "GOOGLE_API_ERROR",
            google(400, "somethingNew"),
        ),
        (
            503,
            "backendError",
            502,
            "GOOGLE_API_ERROR",
            google(503, "backendError"),
        ),
    ] {
        shop.google.will_refuse(status, reason);
        let (found, headers, answer) = shop.ask(&subscription()).await;
        assert_eq!(found, expected, "{status} {reason}: {answer}");
        assert_eq!(answer["valid"], false);
        assert_eq!(answer["error"], error, "{status} {reason}");
        assert_eq!(answer["details"], details, "{status} {reason}");
        assert_eq!(
            answer["requestId"],
            headers["x-request-id"].to_str().unwrap()
        );
        let wait = headers
            .get(header::RETRY_AFTER)
            .map(|wait| wait.to_str().unwrap().to_owned());
        let said = details["retryAfterSeconds"]
            .as_u64()
            .map(|seconds| seconds.to_string());
        assert_eq!(wait, said, "{status} {reason}");
    }
    let gone = "This purchase is gone";
    shop.google.will_refuse(410, "purchaseTokenNoLongerValid");
    let (_, _, answer) = shop.ask(&subscription()).await;
    assert!(
        answer["message"].as_str().unwrap().starts_with(gone),
        "{answer}"
    );
    *shop.google.retry_after.lock().unwrap() = Some("7");
    shop.google.will_refuse(429, "rateLimitExceeded");
    let (_, headers, _) = shop.ask(&subscription()).await;
    assert_eq!(headers[header::RETRY_AFTER], "7");
}

#[tokio::test]
async fn an_unclear_google_response_never_means_invalid() {
    let shop = Shop::open().await;
    for (status, body) in [
        (404, "<html>not found</html>"),
        (404, "{}"),
        (200, "<html>welcome</html>"),
        (200, "[]"),
        (302, ""),
        (502, ""),
    ] {
        shop.google.will_answer(status, body);
        let (found, _, answer) = shop.ask(&subscription()).await;
        assert_eq!(
            (found, &answer["error"]),
            (502, &json!("GOOGLE_API_ERROR")),
            "{status} {body}"
        );
        assert_eq!(answer["details"]["status"], status);
    }
    for (status, body, code) in [
        (
            400,
            r#"{"error":"invalid_grant","error_description":"planted-sentence"}"#,
            json!("invalid_grant"),
        ),
        (500, "", Value::Null),
    ] {
        let shop = Shop::open().await;
        *shop.google.token_answer.lock().unwrap() = Some((status, body.to_owned()));
        let (found, _, answer) = shop.ask(&subscription()).await;
        assert_eq!(
            (found, &answer["error"]),
            (502, &json!("GOOGLE_API_ERROR")),
            "{status} {body}"
        );
        assert_eq!(
            answer["details"],
            json!({ "status": status, "googleErrorCode": code })
        );
    }
}

#[tokio::test]
async fn a_rate_limited_token_endpoint_is_reported_as_quota() {
    let shop = Shop::open().await;
    *shop.google.token_answer.lock().unwrap() = Some((429, String::new()));
    let (found, headers, answer) = shop.ask(&subscription()).await;
    assert_eq!((found, &answer["error"]), (429, &json!("RATE_LIMITED")));
    let wait = json!({ "status": 429, "retryAfterSeconds": 60 });
    assert_eq!(answer["details"], wait);
    assert_eq!(headers[header::RETRY_AFTER], "60");
}

#[tokio::test]
async fn invalid_requests_are_not_sent_to_google() {
    let shop = Shop::open().await;
    let (status, _, answer) = shop
        .ask(&with(subscription(), "packageName", "com.example.other"))
        .await;
    assert_eq!(
        (status, &answer["error"]),
        (200, &json!("PACKAGE_NAME_MISMATCH"))
    );
    let (status, _, answer) = shop.ask(&json!({ "type": "product" })).await;
    assert_eq!((status, &answer["error"]), (400, &json!("INVALID_REQUEST")));
    let issues = answer["details"]["issues"].as_array().unwrap();
    let paths: Vec<_> = issues
        .iter()
        .map(|issue| issue["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["packageName", "purchaseToken"]);
    let nobody = RawApiKey::generate(ApiKeyEnvironment::Live);
    for authorization in ["", "Bearer", &format!("Bearer {}", nobody.expose())] {
        let (status, _, answer) = shop.ask_with(authorization, &subscription()).await;
        assert_eq!((status, &answer["error"]), (401, &json!("UNAUTHENTICATED")));
    }
    // A segment of dots cannot be part of a URL; no request is sent.
    let (status, _, answer) = shop.ask(&with(subscription(), "purchaseToken", "..")).await;
    assert_eq!(
        (status, &answer["error"]),
        (200, &json!("PURCHASE_NOT_FOUND"))
    );
    assert!(shop.google.asked.lock().unwrap().is_empty());
    assert!(shop.google.assertions.lock().unwrap().is_empty());

    let shop = Shop::without_credentials().await;
    let (status, _, answer) = shop.ask(&subscription()).await;
    assert_eq!(
        (status, &answer["error"]),
        (400, &json!("CREDENTIALS_MISSING"))
    );
}

#[tokio::test]
async fn a_purchase_of_another_product_or_user_is_refused() {
    let shop = Shop::open().await;
    for (question, error) in [
        (with(subscription(), "productId", "premium"), None),
        (
            with(subscription(), "productId", "other"),
            Some("PRODUCT_ID_MISMATCH"),
        ),
        (with(subscription(), "expectedAppUserId", "user-1"), None),
        (
            with(subscription(), "expectedAppUserId", "user-2"),
            Some("APP_USER_MISMATCH"),
        ),
        (
            with(subscription(), "expectedAppUserId", "USER-1"),
            Some("APP_USER_MISMATCH"),
        ),
    ] {
        shop.google.will_answer(200, KNOWN);
        let (status, _, answer) = shop.ask(&question).await;
        assert_eq!(status, 200);
        assert_eq!(
            answer.get("error").and_then(Value::as_str),
            error,
            "{question}"
        );
        assert_eq!(answer["valid"], error.is_none());
        assert_eq!(answer.get("purchase").is_some(), error.is_none());
    }
    shop.google.will_answer(200, r#"{"purchaseState":0}"#);
    let (_, _, answer) = shop
        .ask(&with(product(), "expectedAppUserId", "user-1"))
        .await;
    assert_eq!(
        answer["error"], "APP_USER_MISMATCH",
        "a purchase of nobody's"
    );
    shop.google
        .will_answer(200, r#"{"purchaseState":0,"productId":"gems"}"#);
    let (_, _, answer) = shop.ask(&product()).await;
    assert_eq!(answer["error"], "PRODUCT_ID_MISMATCH");
    assert_eq!(answer["details"]["found"], json!(["gems"]));
}

#[tokio::test]
async fn a_rotated_key_is_used_at_once() {
    let shop = Shop::open().await;
    let changes = shop.changes.clone();
    let listening =
        tokio::spawn(async move { changes.run_until_stopped(CancellationToken::new()).await });
    let _listening = AbortOnDropHandle::new(listening);
    wait_until("changes are heard", async || shop.changes.is_listening()).await;
    let key_ids = || -> Vec<String> {
        let assertions = shop.google.assertions.lock().unwrap();
        let key_id = |form: &String| {
            let (_, assertion) = form.split_once("assertion=").unwrap();
            jsonwebtoken::decode_header(assertion).unwrap().kid.unwrap()
        };
        assertions.iter().map(key_id).collect()
    };
    for _ in 0..2 {
        shop.google.will_answer(200, KNOWN);
        assert_eq!(shop.ask(&subscription()).await.0, 200);
    }
    assert_eq!(key_ids(), ["key-1"], "one token for both");
    shop.set_credentials(&key_file("key-2")).await.unwrap();
    wait_until("the new key is used", async || {
        shop.google.will_answer(200, KNOWN);
        assert_eq!(shop.ask(&subscription()).await.0, 200);
        key_ids().len() == 2
    })
    .await;
    assert_eq!(key_ids(), ["key-1", "key-2"]);
}

#[tokio::test]
async fn credentials_that_cannot_be_decrypted_are_an_internal_error_without_details() {
    let shop = Shop::open().await;
    let clock = Clock::fixed(Timestamp::parse("2026-04-20T00:00:00Z").unwrap());
    let nowhere = "http://127.0.0.1:1/".parse().unwrap();
    let shop = Shop {
        service: service(&shop.database, &shop.changes, &keyring(2), &clock, &nowhere),
        ..shop
    };
    let (status, _, answer) = shop.ask(&subscription()).await;
    assert_eq!((status, &answer["error"]), (500, &json!("INTERNAL_ERROR")));
    assert_eq!(answer.get("details"), None);
}

#[tokio::test]
async fn omitted_pubsub_options_keep_their_values() {
    let shop = Shop::without_credentials().await;
    let file = key_file("key-1");
    let account = GoogleServiceAccount::parse(file.as_bytes()).unwrap();
    let put = async |tenant: &TenantId, audience: Option<&str>, topic: Option<&str>| {
        let new = NewGoogleCredentials {
            package_name: PACKAGE,
            key_file: file.as_bytes(),
            account: &account,
            pubsub_audience: audience,
            pubsub_service_account: None,
            pubsub_topic: topic,
        };
        store::set_credentials(&shop.database, &shop.keyring, tenant, &new).await
    };
    let stranger = TenantId::mint(Timestamp::from_millis(0));
    assert!(
        matches!(put(&stranger, None, None).await, Err(SetCredentialsError::UnknownTenant(id)) if id == stranger)
    );
    assert!(
        store::find_credential_summary(&shop.database, &shop.tenant)
            .await
            .unwrap()
            .is_none()
    );
    for (audience, topic, expected) in [
        (
            Some("https://a.example"),
            Some(""),
            (Some("https://a.example"), None),
        ),
        (
            None,
            Some("projects/p/topics/t"),
            (Some("https://a.example"), Some("projects/p/topics/t")),
        ),
        (
            None,
            None,
            (Some("https://a.example"), Some("projects/p/topics/t")),
        ),
        (Some(""), None, (None, Some("projects/p/topics/t"))),
    ] {
        put(&shop.tenant, audience, topic).await.unwrap();
        let stored = store::find_credential_summary(&shop.database, &shop.tenant)
            .await
            .unwrap()
            .unwrap();
        let found = (
            stored.pubsub_audience.as_deref(),
            stored.pubsub_topic.as_deref(),
        );
        assert_eq!(found, expected);
        assert_eq!(stored.key_fingerprint, account.fingerprint());
        assert!(!serde_json::to_string(&stored).unwrap().contains("PRIVATE"));
    }
    let opened = store::load_credentials(&shop.database, &shop.keyring, &shop.tenant)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(opened.account.fingerprint(), account.fingerprint());
    assert!(!format!("{opened:?}").contains("PRIVATE"));
}
