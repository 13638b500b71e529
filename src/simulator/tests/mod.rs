//! The simulated stores, called over real HTTP.
//!
//! The integration suite holds what Attesto does with their answers: every forgery and every flaw of a push token is
//! refused, every change arrives as its event, and most faults lead to their error. Here stands the rest.

mod app_store_api;
mod apple_notifications;
mod control;
mod play_api;

use std::sync::LazyLock;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use super::control::{AppleScenario, GoogleScenario};
use super::state::apple::SimulatedTransaction;
use super::state::google::{SimulatedProductPurchase, SimulatedSubscription};
use super::{Fault, Simulator, SimulatorError, SimulatorIdentity, SimulatorOptions};
use crate::base::clock::{Clock, Timestamp};
use crate::outbound;

/// Created once, because two RSA keys take seconds.
static IDENTITY: LazyLock<SimulatorIdentity> =
    LazyLock::new(|| SimulatorIdentity::new(test_time()));

fn test_time() -> Timestamp {
    Timestamp::parse("2026-04-10T12:00:00.000Z").unwrap()
}

/// A simulator whose clock stands still, and a client for it.
struct TestSimulator {
    simulator: Simulator,
    apple: AppleScenario,
    google: GoogleScenario,
    clock: Clock,
    client: Client,
}

async fn start_simulator() -> TestSimulator {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let clock = Clock::fixed(test_time());
    let options = SimulatorOptions {
        identity: Some(IDENTITY.clone()),
        seed: Some(7),
        ..SimulatorOptions::new(clock.clone())
    };
    let simulator = Simulator::start(options).await.unwrap();
    TestSimulator {
        apple: simulator.apple(),
        google: simulator.google(),
        simulator,
        clock,
        client: outbound::build_http_client().unwrap(),
    }
}

impl TestSimulator {
    fn buy(&self, new: Value) -> SimulatedTransaction {
        let new = serde_json::from_value(new).unwrap();
        self.apple.create_transaction(new).unwrap()
    }

    fn change(&self, id: &str, change: Value) -> Result<SimulatedTransaction, SimulatorError> {
        let change = serde_json::from_value(change).unwrap();
        self.apple.change_transaction(id, &change)
    }

    fn subscribe(&self, new: Value) -> SimulatedSubscription {
        let new = serde_json::from_value(new).unwrap();
        self.google.buy_subscription(new).unwrap()
    }

    fn change_subscription(
        &self,
        token: &str,
        change: Value,
    ) -> Result<SimulatedSubscription, SimulatorError> {
        let change = serde_json::from_value(change).unwrap();
        self.google.change_subscription(token, &change)
    }

    fn buy_product(&self, new: Value) -> SimulatedProductPurchase {
        let new = serde_json::from_value(new).unwrap();
        self.google.buy_product(new).unwrap()
    }

    fn change_product(&self, token: &str, change: Value) {
        let change = serde_json::from_value(change).unwrap();
        self.google.change_product(token, &change).unwrap();
    }

    fn fail(&self, fault: Fault) {
        self.simulator.add_fault(fault).unwrap();
    }

    fn apple_request(&self, method: Method, environment: &str, path: &str) -> RequestBuilder {
        let url = format!(
            "{}apple/{environment}/inApps/v1/{path}",
            self.simulator.url()
        );
        self.client.request(method, url)
    }

    /// Calls the simulated App Store with a token that the developer of `com.example.app` would send.
    async fn get_apple(&self, environment: &str, path: &str) -> (u16, Value) {
        let request = self.apple_request(Method::GET, environment, path);
        send(request.bearer_auth(apple_token(&self.apple_claims()))).await
    }

    async fn post_apple(&self, environment: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = self.apple_request(Method::POST, environment, path);
        let token = apple_token(&self.apple_claims());
        send(request.bearer_auth(token).json(body)).await
    }

    fn apple_claims(&self) -> Value {
        let now = self.clock.now().as_secs();
        json!({
            "iss": IDENTITY.apple_key().issuer_id,
            "iat": now,
            "exp": now + 300,
            "aud": "appstoreconnect-v1",
            "bid": "com.example.app",
        })
    }

    /// Calls the simulated Play with an access token obtained for the call.
    async fn get_play(&self, path: &str) -> (u16, Value) {
        let token = self.access_token().await;
        send(self.play_request(Method::GET, path, &token)).await
    }

    fn play_request(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        let base = self.simulator.google_play_url();
        let url = format!("{base}/androidpublisher/v3/applications/{path}");
        self.client.request(method, url).bearer_auth(token)
    }

    async fn access_token(&self) -> String {
        let assertion = google_assertion(&self.google_claims());
        let (status, body) = self.request_access_token(&assertion).await;
        assert_eq!(status, 200, "{body}");
        body["access_token"].as_str().unwrap().to_owned()
    }

    async fn request_access_token(&self, assertion: &str) -> (u16, Value) {
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", assertion),
        ];
        let url = self.simulator.google_token_url();
        send(self.client.post(url).form(&form)).await
    }

    fn google_claims(&self) -> Value {
        let now = self.clock.now().as_secs();
        json!({
            "iss": IDENTITY.service_account().client_email,
            "scope": "https://www.googleapis.com/auth/androidpublisher",
            "aud": self.simulator.google_token_url().as_str(),
            "iat": now,
            "exp": now + 3600,
        })
    }

    async fn call_control(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let url = format!("{}control{path}", self.simulator.url());
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        send(self.client.request(method, url).body(body.to_owned())).await
    }

    /// The reason of the last refusal, from the request log.
    fn last_remark(&self) -> String {
        let last = self.simulator.recorded_requests().pop();
        last.and_then(|request| request.remark).unwrap_or_default()
    }
}

/// The status, and the body as JSON or else as a string.
async fn send(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    (status, body)
}

fn with(base: &Value, name: &str, value: impl Into<Value>) -> Value {
    let mut changed = base.clone();
    changed[name] = value.into();
    changed
}

fn apple_token(claims: &Value) -> String {
    let key = IDENTITY.apple_key();
    apple_token_signed_by(&key.private_key, &key.key_id, claims)
}

fn apple_token_signed_by(private_key: &str, key_id: &str, claims: &Value) -> String {
    let key = EncodingKey::from_ec_pem(private_key.as_bytes()).unwrap();
    sign_token(Algorithm::ES256, &key, key_id, claims)
}

fn google_assertion(claims: &Value) -> String {
    let account = IDENTITY.service_account();
    google_assertion_signed_by(&account.private_key, &account.private_key_id, claims)
}

fn google_assertion_signed_by(private_key: &str, key_id: &str, claims: &Value) -> String {
    let key = EncodingKey::from_rsa_pem(private_key.as_bytes()).unwrap();
    sign_token(Algorithm::RS256, &key, key_id, claims)
}

fn sign_token(algorithm: Algorithm, key: &EncodingKey, key_id: &str, claims: &Value) -> String {
    let mut header = Header::new(algorithm);
    header.kid = Some(key_id.to_owned());
    jsonwebtoken::encode(&header, claims, key).unwrap()
}
