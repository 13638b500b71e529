//! Pub/Sub: pushes Play's notifications with a token that Google's key signs.
//!
//! A message is pushed once, when it is published. One that is not acknowledged is pushed again only on request: the
//! real Pub/Sub repeats by itself, which a test that counts pushes could not use.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strum::{EnumCount, VariantArray};

use super::context::{SimulatorContext, SimulatorState};
use super::identity::GoogleSigningKey;
use super::state::google_notifications::{PublishedMessage, PushSubscription};
use super::state::random_letters;
use crate::base::clock::Timestamp;

/// The email address in a push's token, unless the push subscription names another.
pub const PUSH_SERVICE_ACCOUNT: &str = "attesto-push@simulator.iam.gserviceaccount.com";
/// Pub/Sub's own default.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// A way in which a push's token can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumCount, VariantArray)]
#[serde(rename_all = "kebab-case")]
pub enum PushTokenFlaw {
    /// The push has no token.
    NoToken,
    /// The token is not a JWT.
    NotAToken,
    /// `aud` is of another receiver.
    OtherAudience,
    /// `email` is of another service account; the token is genuine otherwise.
    OtherAccount,
    /// `email_verified` is false.
    UnverifiedAccount,
    /// `email` is null.
    NoAccount,
    /// `iss` is not Google.
    OtherIssuer,
    /// The token expired an hour ago.
    Expired,
    /// The token is issued in an hour.
    FromTheFuture,
    /// The token is valid for a year.
    LongLived,
    /// Signed by a key that is not Google's, with a `kid` that Google does not publish.
    UnknownKey,
    /// Signed by a key that is not Google's, with the `kid` of Google's key.
    OtherKey,
    /// A claim was changed after it was signed.
    AlteredClaims,
    /// `alg` is `none`, and there is no signature.
    Unsigned,
    /// `alg` is `HS256`, with Google's public key as the secret.
    Symmetric,
}

impl PushTokenFlaw {
    /// Every flaw, in the order of their documentation.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().expect("as many as COUNT");
}

/// The answer to a push.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PushResponse {
    /// The HTTP status; 0 where there was no answer.
    pub status: u16,
    /// The body, where it is JSON.
    pub body: Value,
}

/// Publishes a message, and pushes it where its app has a push subscription.
pub(super) fn publish_message(
    context: &Arc<SimulatorContext>,
    package: &str,
    data: &[u8],
) -> PublishedMessage {
    let message = {
        let mut state = context.lock_state();
        let SimulatorState {
            published_messages: messages,
            random,
            ..
        } = &mut *state;
        let message = PublishedMessage {
            message_id: random_letters(random, b"123456789", 16),
            package_name: package.to_owned(),
            publish_time: context.now(),
            data: STANDARD.encode(data),
            answers: Vec::new(),
        };
        messages.add(message.clone());
        message
    };
    let is_manual = {
        let state = context.lock_state();
        let subscription = state.stores.google.push.get(package);
        subscription.is_none_or(|subscription| subscription.manual)
    };
    if !is_manual {
        spawn_push(context, &message.message_id);
    }
    message
}

/// Pushes a message without waiting for the answer.
pub(super) fn spawn_push(context: &Arc<SimulatorContext>, id: &str) {
    // Without a runtime, as in a test of the state alone, it waits for a redelivery.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let (context, id) = (context.clone(), id.to_owned());
        runtime.spawn(async move { push_message(&context, &id, None).await });
    }
}

/// Pushes a message once. `None` when the message or a push subscription of its app does not exist.
pub(super) async fn push_message(
    context: &SimulatorContext,
    id: &str,
    flaw: Option<PushTokenFlaw>,
) -> Option<PushResponse> {
    let (message, subscription) = {
        let state = context.lock_state();
        let messages = &state.published_messages;
        let message = messages.find(|one| one.message_id == id)?.clone();
        let subscription = state.stores.google.push.get(&message.package_name)?.clone();
        (message, subscription)
    };
    let token = build_push_token(context, &subscription, flaw);
    let _permit = context.push_permits.acquire().await.ok()?;
    let mut request = context
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
    let mut state = context.lock_state();
    let pushed_message = state
        .published_messages
        .find_mut(|one| one.message_id == id);
    if let Some(message) = pushed_message {
        message.answers.push(pushed.status);
    }
    Some(pushed)
}

/// The token of a push. `None` for [`PushTokenFlaw::NoToken`].
pub(super) fn build_push_token(
    context: &SimulatorContext,
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
    let mut claims = push_token_claims(audience, account, context.now());
    let mut put = |name: &str, value: Value| claims[name] = value;
    let now = context.now().as_secs();
    match flaw {
        Some(PushTokenFlaw::NoToken) => return None,
        Some(PushTokenFlaw::NotAToken) => return Some("not.a.token".to_owned()),
        Some(PushTokenFlaw::OtherAudience) => put("aud", json!("https://other.example/push")),
        Some(PushTokenFlaw::OtherAccount) => {
            put("email", json!("stranger@other.iam.gserviceaccount.com"));
        }
        Some(PushTokenFlaw::UnverifiedAccount) => put("email_verified", json!(false)),
        Some(PushTokenFlaw::NoAccount) => put("email", Value::Null),
        Some(PushTokenFlaw::OtherIssuer) => put("iss", json!("https://accounts.other.example")),
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
    let signer = context.google_signing_key();
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

pub(super) fn encode_jwt_part(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}
