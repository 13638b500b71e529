//! Pub/Sub, played: pushes Play's notifications with a token that Google's key signs.
//!
//! A message is pushed once when it is published. What is not acknowledged waits until somebody asks for another push:
//! the real Pub/Sub repeats by itself, which a test that counts would not like.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::{SimulatorContext, SimulatorState};
use super::identity::GoogleSigningKey;
use super::state::google_notifications::{PublishedMessage, PushSubscription};
use super::state::random_letters;
use crate::base::clock::Timestamp;

/// The address in a push's token, where a subscription does not say another.
pub const PUSH_SERVICE_ACCOUNT: &str = "attesto-push@simulator.iam.gserviceaccount.com";
/// How long a push may take: Pub/Sub's own default.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// What can be wrong with a push's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushTokenFlaw {
    /// There is none.
    NoToken,
    /// It is not a token.
    NotAToken,
    /// It is meant for somebody else.
    OtherAudience,
    /// It is somebody else's, and genuine otherwise.
    OtherAccount,
    /// Google does not vouch for the address.
    UnverifiedAccount,
    /// It names no address.
    NoAccount,
    /// Somebody else issued it.
    OtherIssuer,
    /// Its hour is over.
    Expired,
    /// It will be issued in an hour.
    FromTheFuture,
    /// It lives for a year.
    LongLived,
    /// It is signed by a key that is not Google's, under a name that Google does not know.
    UnknownKey,
    /// It is signed by a key that is not Google's, under the name of one that is.
    OtherKey,
    /// A claim was changed after it was signed.
    AlteredClaims,
    /// `alg` is `none`, and there is no signature.
    Unsigned,
    /// `alg` is `HS256`, with Google's public key as the secret.
    Symmetric,
}

impl PushTokenFlaw {
    /// Every one there is.
    pub const ALL: [Self; 15] = [
        Self::NoToken,
        Self::NotAToken,
        Self::OtherAudience,
        Self::OtherAccount,
        Self::UnverifiedAccount,
        Self::NoAccount,
        Self::OtherIssuer,
        Self::Expired,
        Self::FromTheFuture,
        Self::LongLived,
        Self::UnknownKey,
        Self::OtherKey,
        Self::AlteredClaims,
        Self::Unsigned,
        Self::Symmetric,
    ];
}

/// What a push was answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PushResponse {
    /// The HTTP status; 0 where there was no answer.
    pub status: u16,
    /// The body, where it is JSON.
    pub body: Value,
}

/// Publishes a message, and pushes it where its app has a push subscription.
pub(super) fn publish_message(
    shared: &Arc<SimulatorContext>,
    package: &str,
    data: &[u8],
) -> PublishedMessage {
    let message = {
        let mut inside = shared.lock_state();
        let SimulatorState {
            published_messages: messages,
            random,
            ..
        } = &mut *inside;
        let message = PublishedMessage {
            message_id: random_letters(random, b"123456789", 16),
            package_name: package.to_owned(),
            publish_time: shared.now(),
            data: STANDARD.encode(data),
            answers: Vec::new(),
        };
        messages.add(message.clone());
        message
    };
    let is_manual = {
        let inside = shared.lock_state();
        let subscription = inside.stores.google.push.get(package);
        subscription.is_none_or(|subscription| subscription.manual)
    };
    if !is_manual {
        spawn_push(shared, &message.message_id);
    }
    message
}

/// Pushes a message without waiting for the answer.
pub(super) fn spawn_push(shared: &Arc<SimulatorContext>, id: &str) {
    // Outside a runtime, which is nobody but a test of the books, a message stays where it is.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let (shared, id) = (shared.clone(), id.to_owned());
        runtime.spawn(async move { push_message(&shared, &id, None).await });
    }
}

/// Pushes a message once. `None` when it, or a push subscription of its app, does not exist.
pub(super) async fn push_message(
    shared: &SimulatorContext,
    id: &str,
    flaw: Option<PushTokenFlaw>,
) -> Option<PushResponse> {
    let (message, subscription) = {
        let inside = shared.lock_state();
        let message = inside.published_messages.find_by_id(id)?.clone();
        let subscription = inside
            .stores
            .google
            .push
            .get(&message.package_name)?
            .clone();
        (message, subscription)
    };
    let token = build_push_token(shared, &subscription, flaw);
    let _turn = shared.push_permits.acquire().await.ok()?;
    let mut request = shared
        .push_client()?
        .post(&subscription.endpoint)
        .timeout(PUSH_TIMEOUT)
        .header("content-type", "application/json")
        .header(
            "user-agent",
            "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)",
        )
        .body(message.to_push_body());
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let pushed = match request.send().await {
        Ok(answer) => PushResponse {
            status: answer.status().as_u16(),
            body: answer.json().await.unwrap_or_default(),
        },
        Err(_) => PushResponse {
            status: 0,
            body: Value::Null,
        },
    };
    shared
        .lock_state()
        .published_messages
        .record_answer(id, pushed.status);
    Some(pushed)
}

/// The token of a push. `None` where there is to be none.
pub(super) fn build_push_token(
    shared: &SimulatorContext,
    subscription: &PushSubscription,
    flaw: Option<PushTokenFlaw>,
) -> Option<String> {
    let audience = subscription
        .audience
        .as_ref()
        .unwrap_or(&subscription.endpoint);
    let account = subscription
        .account
        .as_deref()
        .unwrap_or(PUSH_SERVICE_ACCOUNT);
    let mut claims = push_token_claims(audience, account, shared.now());
    let mut put = |name: &str, value: Value| claims[name] = value;
    let now = shared.now().as_secs();
    match flaw {
        Some(PushTokenFlaw::NoToken) => return None,
        Some(PushTokenFlaw::NotAToken) => return Some("not.a.token".to_owned()),
        Some(PushTokenFlaw::OtherAudience) => put("aud", json!("https://elsewhere.example/push")),
        Some(PushTokenFlaw::OtherAccount) => {
            put("email", json!("somebody@elsewhere.iam.gserviceaccount.com"));
        }
        Some(PushTokenFlaw::UnverifiedAccount) => put("email_verified", json!(false)),
        Some(PushTokenFlaw::NoAccount) => put("email", Value::Null),
        Some(PushTokenFlaw::OtherIssuer) => put("iss", json!("https://accounts.elsewhere.example")),
        Some(PushTokenFlaw::Expired) => {
            put("iat", json!(now - 7200));
            put("exp", json!(now - 3600));
        }
        Some(PushTokenFlaw::FromTheFuture) => {
            put("iat", json!(now + 3600));
            put("exp", json!(now + 7200));
        }
        Some(PushTokenFlaw::LongLived) => put("exp", json!(now + 365 * 86_400)),
        _ => {}
    }
    let signer = shared.google_signing_key();
    Some(match flaw {
        Some(PushTokenFlaw::UnknownKey) => GoogleSigningKey::new().sign_jwt(&claims),
        Some(PushTokenFlaw::OtherKey) => {
            GoogleSigningKey::new().sign_jwt_with_kid(signer.key_id(), &claims)
        }
        Some(PushTokenFlaw::AlteredClaims) => alter_claims(&signer.sign_jwt(&claims), &claims),
        Some(PushTokenFlaw::Unsigned) => {
            let header = json!({ "alg": "none", "typ": "JWT", "kid": signer.key_id() });
            format!("{}.{}.", encode_jwt_part(&header), encode_jwt_part(&claims))
        }
        Some(PushTokenFlaw::Symmetric) => signer.sign_jwt_with_hs256(&claims),
        _ => signer.sign_jwt(&claims),
    })
}

fn push_token_claims(audience: &str, account: &str, now: Timestamp) -> Value {
    json!({
        "iss": "https://accounts.google.com",
        "aud": audience,
        "azp": "113774264463038321964",
        "sub": "113774264463038321964",
        "email": account,
        "email_verified": true,
        "iat": now.as_secs(),
        "exp": now.as_secs() + 3600,
    })
}

fn alter_claims(token: &str, claims: &Value) -> String {
    let mut claims = claims.clone();
    claims["sub"] = json!("1");
    let parts: Vec<&str> = token.split('.').collect();
    format!("{}.{}.{}", parts[0], encode_jwt_part(&claims), parts[2])
}

/// A part of a token.
pub(super) fn encode_jwt_part(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}
