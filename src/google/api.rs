//! Calls to the Play Developer API, and what each of its answers means.
//!
//! Promises: what Google does not say about a purchase is never read as "no such purchase" (a gateway's 404 page, a
//! refused credential, a quota, an outage); ids from a caller cannot change which address is called; identical
//! questions in flight share one call; one tenant cannot take every connection; an access token that Google refuses is
//! replaced once.
//!
//! | status | reason | meaning |
//! |---|---|---|
//! | 200 | | known |
//! | 404 | `applicationNotFound`, `packageNotFound` | [`Failure::Application`] |
//! | 400, 404 | the message says "expired for too long" | [`Absent::Gone`] |
//! | 404 | any other of Google's | [`Absent::Unknown`] |
//! | 404 | none: not Google's body | [`Failure::Unexpected`] |
//! | 410 | any | [`Absent::Gone`] |
//! | 400 | `purchaseTokenNoLongerValid`, `subscriptionPurchaseNoLongerAvailable` | [`Absent::Gone`] |
//! | 400 | `failedPrecondition`, or status `FAILED_PRECONDITION` | [`Absent::Gone`]: expired too long ago |
//! | 400 | `invalid`, `invalidPurchaseToken`, `purchaseTokenNotFound`; `invalidValue` | [`Absent::Unknown`]: not a token |
//! | 400 | status `INVALID_ARGUMENT`, no reason, message "Invalid Value" | [`Absent::Unknown`]: not a token |
//! | 400 | `purchaseTokenDoesNotMatchPackageName` | [`Absent::OtherApp`] |
//! | 400 | `purchaseTokenDoesNotMatchProductId` | [`Absent::OtherProduct`] |
//! | 400 | `subscriptionInvalidArgument`, `productInvalidArgument`, … | [`Absent::OtherType`] |
//! | 401 | any | one more try with a new token, then [`Failure::Credentials`] |
//! | 429 from the token endpoint | any | [`Failure::Quota`] |
//! | 429, 403 | `quotaExceeded`, `rateLimitExceeded`, `userRateLimitExceeded`, `dailyLimitExceeded` | [`Failure::Quota`] |
//! | 403 | any other | [`Failure::Credentials`] |
//! | 408, 5xx | any | two quick retries, then [`Failure::Unexpected`] |
//! | anything else | | [`Failure::Unexpected`] |

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use url::Url;

use super::account::{AccessTokens, ServiceAccount, TokenError, is_code};
use super::payload::{ErrorBody, ProductPurchase, SubscriptionPurchase};
use crate::clock::{Clock, Timestamp};
use crate::crypto::token;
use crate::id::TenantId;
use crate::outbound::{
    Answer, Bulkhead, InFlight, SendError, Upstream, Verdict, push_segment, retry_after, unreadable,
};

/// Questions of one tenant that may be on their way at once. HTTP/2 carries a hundred on one connection.
const WIDTH: usize = 64;
/// How long a question waits for one of those places.
const PATIENCE: Duration = Duration::from_secs(2);
/// Google's quotas are per minute; said when Google does not say when to come back.
const QUOTA_WINDOW: Duration = Duration::from_mins(1);

/// The Play Developer API.
#[derive(Clone)]
pub struct Play {
    upstream: Upstream,
    base: Url,
    tokens: AccessTokens,
    clock: Clock,
    places: Bulkhead<TenantId>,
    asking: InFlight<Asked, Result<Arc<[u8]>, NoPurchase>>,
}

/// What makes two questions the same: the tenant, the identity it asks with, and a digest of the address, so that
/// purchase tokens are not kept in a second place.
type Asked = (TenantId, [u8; 32], [u8; 32]);

/// What Google knows of a purchase.
#[derive(Clone, Debug)]
pub struct Known<T> {
    /// The part that is understood here.
    pub purchase: T,
    /// The answer, byte for byte.
    pub raw: Box<RawValue>,
}

/// Why there is no purchase to speak of: Google said no, or nothing can be said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPurchase {
    /// Google said no.
    #[error("{0}")]
    Absent(#[from] Absent),
    /// Google said neither yes nor no.
    #[error("{0}")]
    Failure(#[from] Failure),
}

/// Google's "no".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// Never seen, or not a token at all.
    #[error("no such purchase")]
    Unknown,
    /// It once existed: replaced by another, or over for so long that Google has forgotten it.
    #[error("the purchase is gone")]
    Gone,
    /// The token was made by another app.
    #[error("the purchase is another app's")]
    OtherApp,
    /// The token is of another product.
    #[error("the purchase is of another product")]
    OtherProduct,
    /// A product's token was asked about as a subscription, or the reverse.
    #[error("the purchase is of the other type")]
    OtherType,
}

/// Google said neither yes nor no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The service account is refused, at the token endpoint or by Play.
    #[error("Google refused the service account: status {status}, {}: {}", .reason.as_deref().unwrap_or("no reason"), .message.as_deref().unwrap_or("no message"))]
    Credentials {
        /// The HTTP status.
        status: u16,
        /// Google's word, such as `permissionDenied` or `invalid_grant`.
        reason: Option<String>,
        /// Google's sentence, for the operator.
        message: Option<String>,
    },
    /// Play knows no app of the configured package name.
    #[error("Google knows no app of this package name: status 404, {reason}")]
    Application {
        /// Google's word.
        reason: String,
    },
    /// The project's quota is used up.
    #[error("Google's quota is used up: status {status}")]
    Quota {
        /// The HTTP status.
        status: u16,
        /// When to come back.
        retry_after: Duration,
    },
    /// Any other answer, after retries where those could help.
    #[error("Google answered with status {status}, {}: {}", .reason.as_deref().unwrap_or("no reason"), .message.as_deref().unwrap_or("no message"))]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// Google's word.
        reason: Option<String>,
        /// Google's sentence, for the operator.
        message: Option<String>,
        /// When to come back, if Google said.
        retry_after: Option<Duration>,
    },
    /// A success that cannot be read.
    #[error("Google's answer cannot be read: {0}")]
    Unreadable(String),
    /// No answer.
    #[error("Google gave no answer: {0}")]
    NoAnswer(#[from] SendError),
    /// The tenant has so many questions on their way that this one found no place.
    #[error("{WIDTH} questions of this tenant are waiting for Google already")]
    Crowded,
}

impl NoPurchase {
    /// With nothing of a purchase token, should Google's sentence repeat it: the sentence goes to the log.
    fn without(mut self, purchase_token: &str) -> Self {
        if let Self::Failure(
            Failure::Credentials {
                reason, message, ..
            }
            | Failure::Unexpected {
                reason, message, ..
            },
        ) = &mut self
        {
            let mut written = String::new();
            let is_segment = push_segment(&mut written, purchase_token).is_some();
            for said in [reason, message].into_iter().flatten() {
                if is_segment {
                    *said = said.replace(purchase_token, "…").replace(&written, "…");
                }
            }
        }
        self
    }
}

impl Failure {
    /// What the log says in production: the kind and Google's own words for it, nothing of a purchase.
    pub(super) fn class(&self) -> String {
        match self {
            Self::Credentials { status, reason, .. } => {
                let reason = reason.as_deref().unwrap_or("no reason");
                format!("google credentials {status} {reason}")
            }
            Self::Application { reason } => format!("google application 404 {reason}"),
            Self::Quota { status, .. } => format!("google quota {status}"),
            Self::Unexpected { status, reason, .. } => {
                let reason = reason.as_deref().unwrap_or("no reason");
                format!("google unexpected {status} {reason}")
            }
            Self::Unreadable(_) => "google unreadable".to_owned(),
            Self::NoAnswer(_) => "google no answer".to_owned(),
            Self::Crowded => "google crowded".to_owned(),
        }
    }
}

impl From<SendError> for NoPurchase {
    fn from(error: SendError) -> Self {
        Failure::NoAnswer(error).into()
    }
}

impl From<TokenError> for NoPurchase {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Refused {
                status,
                code,
                description,
            } => Failure::Credentials {
                status,
                reason: code,
                message: description,
            },
            TokenError::Limited { retry_after } => Failure::Quota {
                status: 429,
                retry_after: retry_after.unwrap_or(QUOTA_WINDOW),
            },
            TokenError::Unexpected(status) => Failure::Unexpected {
                status,
                reason: None,
                message: Some("the token endpoint gave no token".to_owned()),
                retry_after: None,
            },
            TokenError::NoAnswer(error) => Failure::NoAnswer(error),
        }
        .into()
    }
}

impl Play {
    /// The API at `base` (the part before `/androidpublisher`), with tokens from `token_url`.
    pub fn new(upstream: Upstream, base: Url, token_url: Url, clock: Clock) -> Self {
        Self {
            tokens: AccessTokens::new(upstream.clone(), token_url, clock.clone()),
            upstream,
            base,
            clock,
            places: Bulkhead::new(WIDTH),
            asking: InFlight::default(),
        }
    }

    /// `purchases.subscriptionsv2.get`
    pub async fn subscription(
        &self,
        tenant: &TenantId,
        account: &Arc<ServiceAccount>,
        package_name: &str,
        purchase_token: &str,
    ) -> Result<Known<SubscriptionPurchase>, NoPurchase> {
        let path = ["subscriptionsv2", "tokens", purchase_token];
        self.ask(tenant, account, package_name, &path).await
    }

    /// `purchases.products.get`
    pub async fn product(
        &self,
        tenant: &TenantId,
        account: &Arc<ServiceAccount>,
        package_name: &str,
        product_id: &str,
        purchase_token: &str,
    ) -> Result<Known<ProductPurchase>, NoPurchase> {
        let path = ["products", product_id, "tokens", purchase_token];
        self.ask(tenant, account, package_name, &path).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        tenant: &TenantId,
        account: &Arc<ServiceAccount>,
        package_name: &str,
        path: &[&str],
    ) -> Result<Known<T>, NoPurchase> {
        let url = address(&self.base, package_name, path).ok_or(Absent::Unknown)?;
        let key = (
            tenant.clone(),
            account.identity(),
            token::sha256(url.as_str().as_bytes()),
        );
        let (play, tenant, account) = (self.clone(), tenant.clone(), account.clone());
        let body = self
            .asking
            .share(key, move || async move {
                play.call(&tenant, &account, url).await
            })
            .await
            .map_err(|no| no.without(path.last().copied().unwrap_or_default()))?;
        read(&body).map_err(NoPurchase::from)
    }

    async fn call(
        &self,
        tenant: &TenantId,
        account: &Arc<ServiceAccount>,
        url: Url,
    ) -> Result<Arc<[u8]>, NoPurchase> {
        let _place = self
            .places
            .enter(tenant, PATIENCE)
            .await
            .ok_or(Failure::Crowded)?;
        let mut tries_left = 2;
        loop {
            tries_left -= 1;
            let token = self.tokens.get(tenant, account).await?;
            let answer = self
                .upstream
                .send(
                    |client| client.get(url.clone()).bearer_auth(token.secret()),
                    judge,
                )
                .await?;
            if answer.status.as_u16() == 401 {
                self.tokens.forget(tenant, account, &token);
                if tries_left > 0 {
                    continue;
                }
            }
            return meaning(answer, self.clock.now()).map(Arc::from);
        }
    }
}

/// Where a question goes. `None` when a part cannot be written as one path segment: a URL has no spelling for a
/// segment of one or two dots, and no purchase is called that.
fn address(base: &Url, package_name: &str, path: &[&str]) -> Option<Url> {
    let mut text = base.as_str().trim_end_matches('/').to_owned();
    text.push_str("/androidpublisher/v3/applications/");
    push_segment(&mut text, package_name)?;
    text.push_str("/purchases");
    for part in path {
        text.push('/');
        push_segment(&mut text, part)?;
    }
    Url::parse(&text).ok()
}

fn judge(answer: &Answer) -> Verdict {
    if answer.status.is_server_error() || answer.status.as_u16() == 408 {
        Verdict::Transient
    } else {
        Verdict::Final
    }
}

/// What an answer means: the body of a success, or why there is none. The table stands at the top of this file.
fn meaning(answer: Answer, now: Timestamp) -> Result<Vec<u8>, NoPurchase> {
    let status = answer.status.as_u16();
    if status == 200 {
        return Ok(answer.body);
    }
    let error = serde_json::from_slice::<ErrorBody>(&answer.body)
        .ok()
        .and_then(|body| body.error);
    let is_googles = error.is_some();
    let error = error.unwrap_or_default();
    let word = error
        .errors
        .into_iter()
        .find_map(|one| one.reason)
        .or_else(|| error.status.clone())
        .filter(|word| is_code(word));
    let is_precondition = error.status.as_deref() == Some("FAILED_PRECONDITION");
    let wait = retry_after(&answer.headers, now);
    let (reason, message) = (word.as_deref().unwrap_or_default(), error.message);
    // Sometimes Google gives a sentence and no reason. Only known ones are believed.
    let says = |words: &str| {
        message
            .as_deref()
            .is_some_and(|message| message.contains(words))
    };
    Err(match (status, reason) {
        (404, "applicationNotFound" | "packageNotFound") => Failure::Application {
            reason: reason.to_owned(),
        }
        .into(),
        (400 | 404, _) if says("expired for too long") => Absent::Gone.into(),
        (400, "INVALID_ARGUMENT") if says("Invalid Value") => Absent::Unknown.into(),
        (404, _) if is_googles => Absent::Unknown.into(),
        (410, _)
        | (
            400,
            "purchaseTokenNoLongerValid"
            | "subscriptionPurchaseNoLongerAvailable"
            | "failedPrecondition",
        ) => Absent::Gone.into(),
        (400, _) if is_precondition => Absent::Gone.into(),
        (400, "invalid" | "invalidValue" | "invalidPurchaseToken" | "purchaseTokenNotFound") => {
            Absent::Unknown.into()
        }
        (400, "purchaseTokenDoesNotMatchPackageName") => Absent::OtherApp.into(),
        (400, "purchaseTokenDoesNotMatchProductId") => Absent::OtherProduct.into(),
        (400, reason) if is_type_confusion(reason) => Absent::OtherType.into(),
        (429, _)
        | (
            403,
            "quotaExceeded"
            | "rateLimitExceeded"
            | "userRateLimitExceeded"
            | "dailyLimitExceeded"
            | "RESOURCE_EXHAUSTED",
        ) => Failure::Quota {
            status,
            retry_after: wait.unwrap_or(QUOTA_WINDOW),
        }
        .into(),
        (401 | 403, _) => Failure::Credentials {
            status,
            reason: word,
            message,
        }
        .into(),
        _ => Failure::Unexpected {
            status,
            reason: word,
            message,
            retry_after: wait,
        }
        .into(),
    })
}

/// `subscriptionInvalidArgument` is what was seen; its siblings are spelled after the same pattern.
fn is_type_confusion(reason: &str) -> bool {
    reason.strip_suffix("InvalidArgument").is_some_and(|what| {
        matches!(
            what,
            "subscription" | "product" | "inAppProduct" | "inappProduct"
        )
    })
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<Known<T>, Failure> {
    let unreadable = |error: serde_json::Error| Failure::Unreadable(unreadable(&error));
    let raw: Box<RawValue> = serde_json::from_slice(body).map_err(unreadable)?;
    if !raw.get().starts_with('{') {
        return Err(Failure::Unreadable("it is not a JSON object".to_owned()));
    }
    let purchase = serde_json::from_str(raw.get()).map_err(unreadable)?;
    Ok(Known { purchase, raw })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::extract::State;
    use axum::http::header::RETRY_AFTER;
    use axum::http::{HeaderMap, HeaderValue, StatusCode};
    use axum::routing::{get, post};
    use proptest::prelude::*;
    use serde_json::json;
    use tokio::sync::Barrier;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::parse("2026-04-10T14:22:10.500Z").expect("a time")
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: body.as_bytes().to_vec(),
        }
    }

    fn refusal(status: u16, reason: &str) -> Answer {
        let body = json!({ "error": { "code": status, "message": "A sentence.", "errors": [
            { "domain": "androidpublisher", "reason": reason, "message": "A sentence." }
        ] } });
        answer(status, &body.to_string())
    }

    fn unexpected(status: u16, reason: Option<&str>, message: Option<&str>) -> NoPurchase {
        Failure::Unexpected {
            status,
            reason: reason.map(str::to_owned),
            message: message.map(str::to_owned),
            retry_after: None,
        }
        .into()
    }

    #[test]
    fn every_refusal_has_its_meaning() {
        let credentials = |status, reason: &str| {
            NoPurchase::from(Failure::Credentials {
                status,
                reason: Some(reason.to_owned()),
                message: Some("A sentence.".to_owned()),
            })
        };
        let quota = |status| {
            NoPurchase::from(Failure::Quota {
                status,
                retry_after: Duration::from_mins(1),
            })
        };
        let application = |reason: &str| {
            NoPurchase::from(Failure::Application {
                reason: reason.to_owned(),
            })
        };
        for (status, reason, expected) in [
            (404, "purchaseTokenNotFound", Absent::Unknown.into()),
            (404, "notFound", Absent::Unknown.into()),
            (
                404,
                "applicationNotFound",
                application("applicationNotFound"),
            ),
            (404, "packageNotFound", application("packageNotFound")),
            (400, "invalid", Absent::Unknown.into()),
            (400, "invalidValue", Absent::Unknown.into()),
            (400, "invalidPurchaseToken", Absent::Unknown.into()),
            (400, "subscriptionInvalidArgument", Absent::OtherType.into()),
            (400, "productInvalidArgument", Absent::OtherType.into()),
            (
                400,
                "purchaseTokenDoesNotMatchPackageName",
                Absent::OtherApp.into(),
            ),
            (
                400,
                "purchaseTokenDoesNotMatchProductId",
                Absent::OtherProduct.into(),
            ),
            (400, "failedPrecondition", Absent::Gone.into()),
            (400, "purchaseTokenNoLongerValid", Absent::Gone.into()),
            (
                410,
                "subscriptionPurchaseNoLongerAvailable",
                Absent::Gone.into(),
            ),
            (410, "purchaseTokenNoLongerValid", Absent::Gone.into()),
            (410, "somethingNew", Absent::Gone.into()),
            (401, "authError", credentials(401, "authError")),
            (
                403,
                "permissionDenied",
                credentials(403, "permissionDenied"),
            ),
            (
                403,
                "projectNotLinked",
                credentials(403, "projectNotLinked"),
            ),
            (403, "somethingNew", credentials(403, "somethingNew")),
            (403, "quotaExceeded", quota(403)),
            (403, "rateLimitExceeded", quota(403)),
            (403, "userRateLimitExceeded", quota(403)),
            (429, "rateLimitExceeded", quota(429)),
            (429, "somethingNew", quota(429)),
        ] {
            let found = meaning(refusal(status, reason), now());
            assert_eq!(found, Err(expected), "{status} {reason}");
        }
        for (status, reason) in [
            (400, "badRequest"),
            (400, "otherInvalidArgument"),
            (409, "conflict"),
            (500, "backendError"),
            (503, "backendError"),
        ] {
            let found = meaning(refusal(status, reason), now());
            assert_eq!(
                found,
                Err(unexpected(status, Some(reason), Some("A sentence.")))
            );
        }
    }

    #[test]
    fn what_is_no_code_is_not_repeated_as_one() {
        for odd in ["oken7.of-a-purchase", "a sentence", "", &"x".repeat(65)] {
            let found = meaning(refusal(400, odd), now());
            let expected = unexpected(400, None, Some("A sentence."));
            assert_eq!(found, Err(expected), "{odd}");
        }
    }

    #[test]
    fn a_status_word_stands_in_for_a_missing_reason() {
        let body = |status: &str| json!({ "error": { "status": status } }).to_string();
        for (status, word, expected) in [
            (400, "FAILED_PRECONDITION", Absent::Gone.into()),
            (404, "NOT_FOUND", Absent::Unknown.into()),
            (
                403,
                "PERMISSION_DENIED",
                NoPurchase::from(Failure::Credentials {
                    status: 403,
                    reason: Some("PERMISSION_DENIED".to_owned()),
                    message: None,
                }),
            ),
        ] {
            assert_eq!(
                meaning(answer(status, &body(word)), now()),
                Err(expected),
                "{word}"
            );
        }
        let both = json!({ "error": {
            "status": "FAILED_PRECONDITION",
            "errors": [{ "reason": "expiredTooLong" }],
        } });
        assert_eq!(
            meaning(answer(400, &both.to_string()), now()),
            Err(Absent::Gone.into())
        );
    }

    #[test]
    fn a_sentence_stands_in_for_a_missing_reason() {
        let body = |word: &str, sentence: &str| {
            json!({ "error": { "code": 400, "message": sentence, "status": word } }).to_string()
        };
        let expired = "The subscription purchase is no longer available for query because it has been expired for too long.";
        for (status, word, sentence, expected) in [
            (400, "INVALID_ARGUMENT", "Invalid Value", Absent::Unknown),
            (400, "INVALID_ARGUMENT", expired, Absent::Gone),
            (404, "NOT_FOUND", expired, Absent::Gone),
        ] {
            let found = meaning(answer(status, &body(word, sentence)), now());
            assert_eq!(found, Err(expected.into()), "{status} {sentence}");
        }
        let with_reason =
            json!({ "error": { "message": expired, "errors": [{ "reason": "somethingNew" }] } });
        assert_eq!(
            meaning(answer(400, &with_reason.to_string()), now()),
            Err(Absent::Gone.into())
        );
        let other = "Request contains an invalid argument.";
        assert_eq!(
            meaning(answer(400, &body("INVALID_ARGUMENT", other)), now()),
            Err(unexpected(400, Some("INVALID_ARGUMENT"), Some(other))),
            "which argument, it does not say"
        );
    }

    #[test]
    fn a_sentence_that_repeats_the_purchase_token_is_told_without_it() {
        for token in ["s3cret", "s3cret/with:odd characters"] {
            let mut written = String::new();
            push_segment(&mut written, token).expect("a segment");
            for status in [400, 403, 500] {
                let body = json!({ "error": {
                    "message": format!("No {token}, nothing at /tokens/{written}."),
                    "errors": [{ "reason": format!("bad {token}") }],
                } });
                let no = meaning(answer(status, &body.to_string()), now())
                    .expect_err("a refusal")
                    .without(token);
                let told = format!("{no} {no:?}");
                assert!(!told.contains("s3cret"), "{told}");
                assert!(told.contains("No …, nothing at /tokens/…."), "{told}");
            }
        }
    }

    #[test]
    fn a_gateways_page_is_never_a_no() {
        for status in [302, 400, 404, 500, 502] {
            for body in [
                "<html>Not Found</html>",
                "",
                "{}",
                "[]",
                "{\"message\":\"no route\"}",
            ] {
                let found = meaning(answer(status, body), now());
                assert_eq!(
                    found,
                    Err(unexpected(status, None, None)),
                    "{status} {body}"
                );
            }
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (status, transient) in [
            (200, false),
            (400, false),
            (401, false),
            (403, false),
            (404, false),
            (408, true),
            // A quota is per minute: a quick retry would only use up more of it.
            (429, false),
            (500, true),
            (503, true),
        ] {
            let verdict = judge(&answer(status, ""));
            assert_eq!(verdict == Verdict::Transient, transient, "{status}");
        }
    }

    #[test]
    fn a_wait_is_read_in_both_spellings() {
        for (text, seconds) in [
            ("30", Some(30)),
            (" 30 ", Some(30)),
            ("0", Some(1)),
            ("999999999", Some(86_400)),
            ("Fri, 10 Apr 2026 14:22:40 GMT", Some(29)),
            ("Fri, 10 Apr 2026 14:00:00 GMT", Some(1)),
            ("soon", None),
            ("-5", None),
            ("1.5", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            let found = retry_after(&headers, now()).map(|wait| wait.as_secs());
            assert_eq!(found, seconds, "{text}");
        }
        let mut refused = refusal(429, "rateLimitExceeded");
        refused
            .headers
            .insert(RETRY_AFTER, HeaderValue::from_static("7"));
        assert_eq!(
            meaning(refused, now()),
            Err(Failure::Quota {
                status: 429,
                retry_after: Duration::from_secs(7)
            }
            .into())
        );
    }

    #[test]
    fn an_answer_is_kept_byte_for_byte() {
        let body = "{ \"b\": 1.0,\n \"a\" : \"\\u0041\", \"lineItems\":[] }";
        let known: Known<SubscriptionPurchase> = read(body.as_bytes()).expect("readable");
        assert_eq!(known.raw.get(), body);
        for bad in [
            "",
            "<html>",
            "[]",
            "null",
            "7",
            "{\"lineItems\":7}",
            "{\"startTime\":\"soon\"}",
        ] {
            let found = read::<SubscriptionPurchase>(bad.as_bytes());
            assert!(matches!(found, Err(Failure::Unreadable(_))), "{bad}");
        }
    }

    #[test]
    fn a_question_has_one_address() {
        let google = Url::parse("https://androidpublisher.googleapis.com").expect("a URL");
        let under = Url::parse("http://127.0.0.1:9/google/play/").expect("a URL");
        let text = |base, package, path: &[&str]| address(base, package, path).map(String::from);
        assert_eq!(
            text(
                &google,
                "com.example.app",
                &["subscriptionsv2", "tokens", "abc.AO-J1_x~"]
            )
            .as_deref(),
            Some(
                "https://androidpublisher.googleapis.com/androidpublisher/v3/applications/com.example.app/purchases/subscriptionsv2/tokens/abc.AO-J1_x~"
            )
        );
        assert_eq!(
            text(&under, "p", &["products", "a/b:c?d#e%2e", "tokens", "é"]).as_deref(),
            Some(
                "http://127.0.0.1:9/google/play/androidpublisher/v3/applications/p/purchases/products/a%2Fb%3Ac%3Fd%23e%252e/tokens/%C3%A9"
            )
        );
        for dots in ["", ".", ".."] {
            assert_eq!(text(&google, "p", &["products", dots, "tokens", "x"]), None);
        }
    }

    /// A Google that counts: tokens it sold, questions it answered. It accepts no token but the newest and plays its
    /// script of statuses first.
    struct Stub {
        play: Play,
        clock: Clock,
        tenant: TenantId,
        account: Arc<ServiceAccount>,
        counts: Arc<Counts>,
    }

    #[derive(Default)]
    struct Counts {
        sold: AtomicU32,
        asked: AtomicU32,
        /// Tokens up to this one are refused.
        refused_up_to: AtomicU32,
        script: Mutex<Vec<u16>>,
        gate: Option<Barrier>,
    }

    async fn stub(counts: Counts) -> Stub {
        let counts = Arc::new(counts);
        let sell = |State(counts): State<Arc<Counts>>| async move {
            let number = counts.sold.fetch_add(1, Ordering::SeqCst) + 1;
            axum::Json(json!({ "access_token": number.to_string(), "expires_in": 3600 }))
        };
        let answer = |State(counts): State<Arc<Counts>>, headers: HeaderMap| async move {
            counts.asked.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = &counts.gate {
                gate.wait().await;
            }
            let bearer = headers["authorization"].to_str().expect("text");
            let number: u32 = bearer["Bearer ".len()..].parse().expect("a number");
            let scripted = counts.script.lock().expect("not poisoned").pop();
            let status = match scripted {
                _ if number <= counts.refused_up_to.load(Ordering::SeqCst) => 401,
                Some(status) => status,
                None => 200,
            };
            let body = axum::Json(json!({ "error": {}, "subscriptionState": "x" }));
            (StatusCode::from_u16(status).expect("a status"), body)
        };
        let app = axum::Router::new()
            .route("/token", post(sell))
            .fallback(get(answer))
            .with_state(counts.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let base = format!("http://{}/", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = crate::outbound::client().expect("a client");
        let base = Url::parse(&base).expect("a URL");
        let token_url = base.join("token").expect("a URL");
        let clock = Clock::fixed(now());
        let upstream = Upstream::new(client, Duration::from_secs(5));
        let file = super::super::account::tests::key_file().to_string();
        Stub {
            play: Play::new(upstream, base, token_url, clock.clone()),
            clock,
            tenant: TenantId::mint(now()),
            account: Arc::new(ServiceAccount::parse(file.as_bytes()).expect("good")),
            counts,
        }
    }

    impl Stub {
        async fn ask(&self, token: &str) -> Result<(), NoPurchase> {
            let known = self
                .play
                .subscription(&self.tenant, &self.account, "p", token)
                .await;
            known.map(|_| ())
        }

        fn sold_and_asked(&self) -> (u32, u32) {
            let Counts { sold, asked, .. } = &*self.counts;
            (sold.load(Ordering::SeqCst), asked.load(Ordering::SeqCst))
        }
    }

    #[tokio::test]
    async fn a_token_is_bought_once_and_renewed_a_minute_early() {
        let google = stub(Counts::default()).await;
        let (one, two) = tokio::join!(google.ask("a"), google.ask("b"));
        assert_eq!((one, two), (Ok(()), Ok(())));
        assert_eq!(
            google.sold_and_asked(),
            (1, 2),
            "one token for two questions"
        );
        google.clock.advance(Duration::from_secs(3600 - 61));
        google.ask("a").await.expect("known");
        assert_eq!(google.sold_and_asked(), (1, 3));
        google.clock.advance(Duration::from_secs(1));
        google.ask("a").await.expect("known");
        assert_eq!(google.sold_and_asked(), (2, 4));
    }

    #[tokio::test]
    async fn a_refused_token_is_replaced_once() {
        let google = stub(Counts::default()).await;
        google.ask("a").await.expect("known");
        google.counts.refused_up_to.store(1, Ordering::SeqCst);
        google.ask("a").await.expect("known with the second token");
        assert_eq!(google.sold_and_asked(), (2, 3));
        google.counts.refused_up_to.store(99, Ordering::SeqCst);
        let refused = google.ask("a").await;
        assert!(
            matches!(
                refused,
                Err(NoPurchase::Failure(Failure::Credentials {
                    status: 401,
                    ..
                }))
            ),
            "{refused:?}"
        );
        assert_eq!(google.sold_and_asked(), (3, 5), "and not a third time");
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_three_times() {
        let google = stub(Counts {
            script: Mutex::new(vec![503, 500]),
            ..Counts::default()
        })
        .await;
        google.ask("a").await.expect("known at the third try");
        assert_eq!(google.sold_and_asked(), (1, 3));
        *google.counts.script.lock().expect("not poisoned") = vec![503, 503, 503];
        let failed = google.ask("a").await;
        assert!(
            matches!(
                failed,
                Err(NoPurchase::Failure(Failure::Unexpected { status: 503, .. }))
            ),
            "{failed:?}"
        );
        *google.counts.script.lock().expect("not poisoned") = vec![429];
        let quota = google.ask("a").await;
        assert!(
            matches!(quota, Err(NoPurchase::Failure(Failure::Quota { .. }))),
            "{quota:?}"
        );
        assert_eq!(
            google.sold_and_asked(),
            (1, 7),
            "a quota is not tried again"
        );
    }

    #[tokio::test]
    async fn identical_questions_share_a_call_and_others_do_not() {
        let google = stub(Counts {
            gate: Some(Barrier::new(2)),
            ..Counts::default()
        })
        .await;
        // The gate opens only when two calls have come: four questions, of two kinds.
        let all = tokio::join!(
            google.ask("a"),
            google.ask("a"),
            google.ask("b"),
            google.ask("b")
        );
        assert_eq!(all, (Ok(()), Ok(()), Ok(()), Ok(())));
        assert_eq!(google.sold_and_asked(), (1, 2));
    }

    #[tokio::test]
    async fn a_google_that_is_away_is_not_a_no() {
        let google = stub(Counts::default()).await;
        let nowhere = Url::parse("http://127.0.0.1:1/").expect("a URL");
        let token_url = google.play.base.join("token").expect("a URL");
        let play = Play::new(
            google.play.upstream.clone(),
            nowhere,
            token_url,
            google.clock.clone(),
        );
        let asked = play
            .subscription(&google.tenant, &google.account, "p", "a")
            .await;
        assert!(
            matches!(asked, Err(NoPurchase::Failure(Failure::NoAnswer(_)))),
            "{asked:?}"
        );
    }

    proptest! {
        #[test]
        fn no_id_changes_which_address_is_called(product in ".{1,40}", token in ".{1,40}") {
            let base = Url::parse("https://play.example/base").expect("a URL");
            if let Some(url) = address(&base, "com.example", &["products", &product, "tokens", &token]) {
                prop_assert_eq!(url.host_str(), Some("play.example"));
                prop_assert_eq!(url.query(), None);
                prop_assert_eq!(url.fragment(), None);
                let parts: Vec<&str> = url.path_segments().expect("a path").collect();
                prop_assert_eq!(parts.len(), 10);
                prop_assert_eq!(&parts[..7], ["base", "androidpublisher", "v3", "applications", "com.example", "purchases", "products"]);
                prop_assert!(parts[8] == "tokens" && !parts[7].is_empty() && !parts[9].is_empty());
            }
        }

        #[test]
        fn no_answer_panics_and_none_but_200_is_a_success(status in 100_u16..600, body: Vec<u8>) {
            let mut reply = answer(200, "");
            reply.status = StatusCode::from_u16(status).expect("a status");
            reply.body = body;
            prop_assert_eq!(meaning(reply, now()).is_ok(), status == 200);
        }
    }
}
