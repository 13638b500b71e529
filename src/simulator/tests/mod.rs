//! The simulated stores, asked over real HTTP.

mod app_store_api;
mod apple_notifications;
mod control;
mod play_api;
mod signatures;

use std::sync::LazyLock;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Client, Response};
use serde_json::{Value, json};

use super::{Simulator, SimulatorIdentity, SimulatorOptions};
use crate::base::clock::{Clock, Timestamp};
use crate::outbound;

/// Made once: RSA keys take their time.
static IDENTITY: LazyLock<SimulatorIdentity> =
    LazyLock::new(|| SimulatorIdentity::new(test_time()));

fn test_time() -> Timestamp {
    Timestamp::parse("2026-04-10T12:00:00.000Z").unwrap()
}

/// A simulator whose clock stands still, and somebody who asks it.
struct TestSimulator {
    simulator: Simulator,
    clock: Clock,
    client: Client,
}

async fn start_simulator() -> TestSimulator {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let clock = Clock::fixed(test_time());
    let simulator = Simulator::start(SimulatorOptions {
        identity: Some(IDENTITY.clone()),
        seed: Some(7),
        ..SimulatorOptions::new(clock.clone())
    })
    .await
    .unwrap();
    TestSimulator {
        simulator,
        clock,
        client: outbound::build_http_client().unwrap(),
    }
}

impl TestSimulator {
    /// Asks the simulated App Store with a token as the developer of `com.example.app` makes it.
    async fn ask_apple(&self, environment: &str, path: &str) -> Response {
        let token = apple_token(&self.apple_claims());
        self.ask_apple_with_token(environment, path, &token).await
    }

    async fn ask_apple_with_token(&self, environment: &str, path: &str, token: &str) -> Response {
        let url = format!(
            "{}apple/{environment}/inApps/v1/{path}",
            self.simulator.url()
        );
        self.client
            .get(url)
            .bearer_auth(token)
            .send()
            .await
            .unwrap()
    }

    /// The same with a body.
    async fn post_apple(&self, environment: &str, path: &str, body: &Value) -> Response {
        let url = format!(
            "{}apple/{environment}/inApps/v1/{path}",
            self.simulator.url()
        );
        let token = apple_token(&self.apple_claims());
        self.client
            .post(url)
            .bearer_auth(token)
            .json(body)
            .send()
            .await
            .unwrap()
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

    /// Asks the simulated Play with an access token bought for it.
    async fn ask_play(&self, path: &str) -> Response {
        let token = self.access_token().await;
        self.ask_play_with_token(path, &token).await
    }

    async fn ask_play_with_token(&self, path: &str, token: &str) -> Response {
        let url = self.play_url(path);
        self.client
            .get(url)
            .bearer_auth(token)
            .send()
            .await
            .unwrap()
    }

    fn play_url(&self, path: &str) -> String {
        format!(
            "{}/androidpublisher/v3/applications/{path}",
            self.simulator.google_play_url()
        )
    }

    async fn access_token(&self) -> String {
        let answer = self
            .request_access_token(&google_assertion(&self.google_claims()))
            .await;
        assert_eq!(answer.status(), 200);
        let body: Value = answer.json().await.unwrap();
        body["access_token"].as_str().unwrap().to_owned()
    }

    async fn request_access_token(&self, assertion: &str) -> Response {
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", assertion),
        ];
        let url = self.simulator.google_token_url();
        self.client.post(url).form(&form).send().await.unwrap()
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
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.client.request(method, url).body(body.to_owned());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    /// Why the last call was refused, from the request log.
    fn last_remark(&self) -> String {
        let last = self.simulator.recorded_requests().pop();
        last.and_then(|seen| seen.remark).unwrap_or_default()
    }
}

fn apple_token(claims: &Value) -> String {
    let key = IDENTITY.apple_key();
    apple_token_signed_by(&key.private_key, &key.key_id, claims)
}

fn apple_token_signed_by(private_key: &str, key_id: &str, claims: &Value) -> String {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key_id.to_owned());
    let key = EncodingKey::from_ec_pem(private_key.as_bytes()).unwrap();
    jsonwebtoken::encode(&header, claims, &key).unwrap()
}

fn google_assertion(claims: &Value) -> String {
    let account = IDENTITY.service_account();
    google_assertion_signed_by(&account.private_key, &account.private_key_id, claims)
}

fn google_assertion_signed_by(private_key: &str, key_id: &str, claims: &Value) -> String {
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(key_id.to_owned());
    let key = EncodingKey::from_rsa_pem(private_key.as_bytes()).unwrap();
    jsonwebtoken::encode(&header, claims, &key).unwrap()
}

async fn json_body(answer: Response) -> Value {
    answer.json().await.unwrap()
}
