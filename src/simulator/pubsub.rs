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

use super::identity::GoogleSigner;
use super::shared::{Inside, Shared};
use super::state::letters;
use super::state::pubsub::{Message, PushSubscription};
use crate::clock::Timestamp;

/// The address in a push's token, where a subscription does not say another.
pub const PUSH_ACCOUNT: &str = "attesto-push@simulator.iam.gserviceaccount.com";
/// How long a push may take: Pub/Sub's own default.
const DEADLINE: Duration = Duration::from_secs(10);

/// What can be wrong with a push's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenFlaw {
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

impl TokenFlaw {
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
pub struct Pushed {
    /// The HTTP status; 0 where there was no answer.
    pub status: u16,
    /// The body, where it is JSON.
    pub body: Value,
}

/// Publishes a message, and pushes it where its app has a push subscription.
pub(super) fn publish(shared: &Arc<Shared>, package: &str, data: &[u8]) -> Message {
    let message = {
        let mut inside = shared.inside();
        let Inside {
            messages, random, ..
        } = &mut *inside;
        let message = Message {
            message_id: letters(random, b"123456789", 16),
            package_name: package.to_owned(),
            publish_time: shared.now(),
            data: STANDARD.encode(data),
            answers: Vec::new(),
        };
        messages.add(message.clone());
        message
    };
    let is_manual = {
        let inside = shared.inside();
        let subscription = inside.state.google.push.get(package);
        subscription.is_none_or(|subscription| subscription.manual)
    };
    if !is_manual {
        push_soon(shared, &message.message_id);
    }
    message
}

/// Pushes a message without waiting for the answer.
pub(super) fn push_soon(shared: &Arc<Shared>, id: &str) {
    // Outside a runtime, which is nobody but a test of the books, a message stays where it is.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let (shared, id) = (shared.clone(), id.to_owned());
        runtime.spawn(async move { push(&shared, &id, None).await });
    }
}

/// Pushes a message once. `None` when it, or a push subscription of its app, does not exist.
pub(super) async fn push(shared: &Shared, id: &str, flaw: Option<TokenFlaw>) -> Option<Pushed> {
    let (message, subscription) = {
        let inside = shared.inside();
        let message = inside.messages.find(id)?.clone();
        let subscription = inside.state.google.push.get(&message.package_name)?.clone();
        (message, subscription)
    };
    let token = token(shared, &subscription, flaw);
    let _turn = shared.pushing.acquire().await.ok()?;
    let mut request = shared
        .client()?
        .post(&subscription.endpoint)
        .timeout(DEADLINE)
        .header("content-type", "application/json")
        .header(
            "user-agent",
            "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)",
        )
        .body(message.body());
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let pushed = match request.send().await {
        Ok(answer) => Pushed {
            status: answer.status().as_u16(),
            body: answer.json().await.unwrap_or_default(),
        },
        Err(_) => Pushed {
            status: 0,
            body: Value::Null,
        },
    };
    shared.inside().messages.answered(id, pushed.status);
    Some(pushed)
}

/// The token of a push. `None` where there is to be none.
pub(super) fn token(
    shared: &Shared,
    subscription: &PushSubscription,
    flaw: Option<TokenFlaw>,
) -> Option<String> {
    let audience = subscription
        .audience
        .as_ref()
        .unwrap_or(&subscription.endpoint);
    let account = subscription.account.as_deref().unwrap_or(PUSH_ACCOUNT);
    let mut claims = claims(audience, account, shared.now());
    let mut put = |name: &str, value: Value| claims[name] = value;
    let now = shared.now().seconds();
    match flaw {
        Some(TokenFlaw::NoToken) => return None,
        Some(TokenFlaw::NotAToken) => return Some("not.a.token".to_owned()),
        Some(TokenFlaw::OtherAudience) => put("aud", json!("https://elsewhere.example/push")),
        Some(TokenFlaw::OtherAccount) => {
            put("email", json!("somebody@elsewhere.iam.gserviceaccount.com"));
        }
        Some(TokenFlaw::UnverifiedAccount) => put("email_verified", json!(false)),
        Some(TokenFlaw::NoAccount) => put("email", Value::Null),
        Some(TokenFlaw::OtherIssuer) => put("iss", json!("https://accounts.elsewhere.example")),
        Some(TokenFlaw::Expired) => {
            put("iat", json!(now - 7200));
            put("exp", json!(now - 3600));
        }
        Some(TokenFlaw::FromTheFuture) => {
            put("iat", json!(now + 3600));
            put("exp", json!(now + 7200));
        }
        Some(TokenFlaw::LongLived) => put("exp", json!(now + 365 * 86_400)),
        _ => {}
    }
    let signer = shared.signer();
    Some(match flaw {
        Some(TokenFlaw::UnknownKey) => GoogleSigner::new().sign(&claims),
        Some(TokenFlaw::OtherKey) => GoogleSigner::new().sign_as(signer.id(), &claims),
        Some(TokenFlaw::AlteredClaims) => altered(&signer.sign(&claims), &claims),
        Some(TokenFlaw::Unsigned) => {
            let header = json!({ "alg": "none", "typ": "JWT", "kid": signer.id() });
            format!("{}.{}.", encode(&header), encode(&claims))
        }
        Some(TokenFlaw::Symmetric) => signer.sign_symmetrically(&claims),
        _ => signer.sign(&claims),
    })
}

fn claims(audience: &str, account: &str, now: Timestamp) -> Value {
    json!({
        "iss": "https://accounts.google.com",
        "aud": audience,
        "azp": "113774264463038321964",
        "sub": "113774264463038321964",
        "email": account,
        "email_verified": true,
        "iat": now.seconds(),
        "exp": now.seconds() + 3600,
    })
}

fn altered(token: &str, claims: &Value) -> String {
    let mut claims = claims.clone();
    claims["sub"] = json!("1");
    let parts: Vec<&str> = token.split('.').collect();
    format!("{}.{}.{}", parts[0], encode(&claims), parts[2])
}

/// A part of a token.
pub(super) fn encode(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}
