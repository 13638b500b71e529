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

use super::account::{AccessTokenError, AccessTokenSource, GoogleServiceAccount, is_error_code};
use super::payload::{GoogleErrorBody, ProductPurchase, SubscriptionPurchase};
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::base::single_flight::SingleFlight;
use crate::credentials::token_cache::AccessToken;
use crate::outbound::{
    RetryDecision, Upstream, UpstreamError, UpstreamResponse, describe_json_error,
    parse_retry_after, push_path_segment,
};
use crate::stores::shared::client::{
    BearerTokens, CallKey, MAX_CALLS_PER_TENANT, StoreApi, TooManyCallsError, call_key,
};

/// Google's quotas are per minute; said when Google does not say when to come back.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_mins(1);

/// The Play Developer API.
#[derive(Clone)]
pub struct PlayClient {
    api: StoreApi<AccessTokenSource>,
    base_url: Url,
    clock: Clock,
    in_flight: SingleFlight<CallKey, Result<Arc<[u8]>, PurchaseLookupError>>,
}

/// What Google knows of a purchase.
#[derive(Clone, Debug)]
pub struct PurchaseResponse<T> {
    /// The part that is understood here.
    pub purchase: T,
    /// The answer, byte for byte.
    pub raw: Box<RawValue>,
}

/// Why there is no purchase to speak of: Google said no, or nothing can be said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PurchaseLookupError {
    /// Google said no.
    #[error("{0}")]
    NotFound(#[from] GoogleNotFound),
    /// Google said neither yes nor no.
    #[error("{0}")]
    Api(#[from] GoogleApiError),
}

/// Google's "no".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoogleNotFound {
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
pub enum GoogleApiError {
    /// The service account is refused, at the token endpoint or by Play.
    #[error("Google refused the service account: status {status}, {}: {}", .reason.as_deref().unwrap_or("no reason"), .message.as_deref().unwrap_or("no message"))]
    Unauthorized {
        /// The HTTP status.
        status: u16,
        /// Google's word, such as `permissionDenied` or `invalid_grant`.
        reason: Option<String>,
        /// Google's sentence, for the operator.
        message: Option<String>,
    },
    /// Play knows no app of the configured package name.
    #[error("Google knows no app of this package name: status 404, {reason}")]
    UnknownApp {
        /// Google's word.
        reason: String,
    },
    /// The project's quota is used up.
    #[error("Google's quota is used up: status {status}")]
    RateLimited {
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
    NoResponse(#[from] UpstreamError),
    /// The tenant has so many questions on their way that this one found no place.
    #[error("{MAX_CALLS_PER_TENANT} questions of this tenant are waiting for Google already")]
    TooManyInFlight,
}

impl PurchaseLookupError {
    /// With nothing of a purchase token, should Google's sentence repeat it: the sentence goes to the log.
    fn redact_purchase_token(mut self, purchase_token: &str) -> Self {
        if let Self::Api(
            GoogleApiError::Unauthorized {
                reason, message, ..
            }
            | GoogleApiError::Unexpected {
                reason, message, ..
            },
        ) = &mut self
        {
            let mut written = String::new();
            let is_segment = push_path_segment(&mut written, purchase_token).is_some();
            for said in [reason, message].into_iter().flatten() {
                if is_segment {
                    *said = said.replace(purchase_token, "…").replace(&written, "…");
                }
            }
        }
        self
    }
}

impl GoogleApiError {
    /// What the log says in production: the kind and Google's own words for it, nothing of a purchase.
    pub(super) fn api_error_class(&self) -> String {
        match self {
            Self::Unauthorized { status, reason, .. } => {
                let reason = reason.as_deref().unwrap_or("no reason");
                format!("google credentials {status} {reason}")
            }
            Self::UnknownApp { reason } => format!("google application 404 {reason}"),
            Self::RateLimited { status, .. } => format!("google quota {status}"),
            Self::Unexpected { status, reason, .. } => {
                let reason = reason.as_deref().unwrap_or("no reason");
                format!("google unexpected {status} {reason}")
            }
            Self::Unreadable(_) => "google unreadable".to_owned(),
            Self::NoResponse(_) => "google no answer".to_owned(),
            Self::TooManyInFlight => "google crowded".to_owned(),
        }
    }
}

impl From<UpstreamError> for PurchaseLookupError {
    fn from(error: UpstreamError) -> Self {
        GoogleApiError::NoResponse(error).into()
    }
}

impl From<AccessTokenError> for PurchaseLookupError {
    fn from(error: AccessTokenError) -> Self {
        match error {
            AccessTokenError::Unauthorized {
                status,
                code,
                description,
            } => GoogleApiError::Unauthorized {
                status,
                reason: code,
                message: description,
            },
            AccessTokenError::RateLimited { retry_after } => GoogleApiError::RateLimited {
                status: 429,
                retry_after: retry_after.unwrap_or(DEFAULT_RETRY_AFTER),
            },
            AccessTokenError::Unexpected(status) => GoogleApiError::Unexpected {
                status,
                reason: None,
                message: Some("the token endpoint gave no token".to_owned()),
                retry_after: None,
            },
            AccessTokenError::NoResponse(error) => GoogleApiError::NoResponse(error),
        }
        .into()
    }
}

impl From<TooManyCallsError> for PurchaseLookupError {
    fn from(TooManyCallsError: TooManyCallsError) -> Self {
        GoogleApiError::TooManyInFlight.into()
    }
}

impl BearerTokens for AccessTokenSource {
    type Credentials = Arc<GoogleServiceAccount>;
    type Error = PurchaseLookupError;

    async fn get_token(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
    ) -> Result<AccessToken, PurchaseLookupError> {
        Ok(AccessTokenSource::get_token(self, tenant, account).await?)
    }

    fn evict_token(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        token: &AccessToken,
    ) {
        AccessTokenSource::evict_token(self, tenant, account, token);
    }
}

impl PlayClient {
    /// The API at `base` (the part before `/androidpublisher`), with tokens from `token_url`.
    pub fn new(upstream: Upstream, base_url: Url, token_url: Url, clock: Clock) -> Self {
        let tokens = AccessTokenSource::new(upstream.clone(), token_url, clock.clone());
        Self {
            api: StoreApi::new(upstream, tokens),
            base_url,
            clock,
            in_flight: SingleFlight::default(),
        }
    }

    /// `purchases.subscriptionsv2.get`
    pub async fn get_subscription(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        purchase_token: &str,
    ) -> Result<PurchaseResponse<SubscriptionPurchase>, PurchaseLookupError> {
        let path = ["subscriptionsv2", "tokens", purchase_token];
        self.get_purchase(tenant, account, package_name, &path)
            .await
    }

    /// `purchases.products.get`
    pub async fn get_product(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        product_id: &str,
        purchase_token: &str,
    ) -> Result<PurchaseResponse<ProductPurchase>, PurchaseLookupError> {
        let path = ["products", product_id, "tokens", purchase_token];
        self.get_purchase(tenant, account, package_name, &path)
            .await
    }

    async fn get_purchase<T: DeserializeOwned>(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        path: &[&str],
    ) -> Result<PurchaseResponse<T>, PurchaseLookupError> {
        let url =
            endpoint_url(&self.base_url, package_name, path).ok_or(GoogleNotFound::Unknown)?;
        let key = call_key(tenant, account.identity_digest(), &url);
        let (play, tenant, account) = (self.clone(), tenant.clone(), account.clone());
        let body = self
            .in_flight
            .share_call(key, move || async move {
                play.send_request(&tenant, &account, url).await
            })
            .await
            .map_err(|no| no.redact_purchase_token(path.last().copied().unwrap_or_default()))?;
        parse_purchase(&body).map_err(PurchaseLookupError::from)
    }

    async fn send_request(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        url: Url,
    ) -> Result<Arc<[u8]>, PurchaseLookupError> {
        let answer = self
            .api
            .send_request(
                tenant,
                account,
                |client| client.get(url.clone()),
                classify_response,
            )
            .await?;
        interpret_response(answer, self.clock.now()).map(Arc::from)
    }
}

/// Where a question goes. `None` when a part cannot be written as one path segment: a URL has no spelling for a
/// segment of one or two dots, and no purchase is called that.
fn endpoint_url(base: &Url, package_name: &str, path: &[&str]) -> Option<Url> {
    let mut text = base.as_str().trim_end_matches('/').to_owned();
    text.push_str("/androidpublisher/v3/applications/");
    push_path_segment(&mut text, package_name)?;
    text.push_str("/purchases");
    for part in path {
        text.push('/');
        push_path_segment(&mut text, part)?;
    }
    Url::parse(&text).ok()
}

fn classify_response(answer: &UpstreamResponse) -> RetryDecision {
    if answer.status.is_server_error() || answer.status.as_u16() == 408 {
        RetryDecision::Transient
    } else {
        RetryDecision::Final
    }
}

/// What an answer means: the body of a success, or why there is none. The table stands at the top of this file.
fn interpret_response(
    answer: UpstreamResponse,
    now: Timestamp,
) -> Result<Vec<u8>, PurchaseLookupError> {
    let status = answer.status.as_u16();
    if status == 200 {
        return Ok(answer.body);
    }
    let error = serde_json::from_slice::<GoogleErrorBody>(&answer.body)
        .ok()
        .and_then(|body| body.error);
    let is_googles = error.is_some();
    let error = error.unwrap_or_default();
    let word = error
        .errors
        .into_iter()
        .find_map(|one| one.reason)
        .or_else(|| error.status.clone())
        .filter(|word| is_error_code(word));
    let is_precondition = error.status.as_deref() == Some("FAILED_PRECONDITION");
    let wait = parse_retry_after(&answer.headers, now);
    let (reason, message) = (word.as_deref().unwrap_or_default(), error.message);
    // Sometimes Google gives a sentence and no reason. Only known ones are believed.
    let says = |words: &str| {
        message
            .as_deref()
            .is_some_and(|message| message.contains(words))
    };
    Err(match (status, reason) {
        (404, "applicationNotFound" | "packageNotFound") => GoogleApiError::UnknownApp {
            reason: reason.to_owned(),
        }
        .into(),
        (400 | 404, _) if says("expired for too long") => GoogleNotFound::Gone.into(),
        (400, "INVALID_ARGUMENT") if says("Invalid Value") => GoogleNotFound::Unknown.into(),
        (404, _) if is_googles => GoogleNotFound::Unknown.into(),
        (410, _)
        | (
            400,
            "purchaseTokenNoLongerValid"
            | "subscriptionPurchaseNoLongerAvailable"
            | "failedPrecondition",
        ) => GoogleNotFound::Gone.into(),
        (400, _) if is_precondition => GoogleNotFound::Gone.into(),
        (400, "invalid" | "invalidValue" | "invalidPurchaseToken" | "purchaseTokenNotFound") => {
            GoogleNotFound::Unknown.into()
        }
        (400, "purchaseTokenDoesNotMatchPackageName") => GoogleNotFound::OtherApp.into(),
        (400, "purchaseTokenDoesNotMatchProductId") => GoogleNotFound::OtherProduct.into(),
        (400, reason) if is_wrong_purchase_type(reason) => GoogleNotFound::OtherType.into(),
        (429, _)
        | (
            403,
            "quotaExceeded"
            | "rateLimitExceeded"
            | "userRateLimitExceeded"
            | "dailyLimitExceeded"
            | "RESOURCE_EXHAUSTED",
        ) => GoogleApiError::RateLimited {
            status,
            retry_after: wait.unwrap_or(DEFAULT_RETRY_AFTER),
        }
        .into(),
        (401 | 403, _) => GoogleApiError::Unauthorized {
            status,
            reason: word,
            message,
        }
        .into(),
        _ => GoogleApiError::Unexpected {
            status,
            reason: word,
            message,
            retry_after: wait,
        }
        .into(),
    })
}

/// `subscriptionInvalidArgument` is what was seen; its siblings are spelled after the same pattern.
fn is_wrong_purchase_type(reason: &str) -> bool {
    reason.strip_suffix("InvalidArgument").is_some_and(|what| {
        matches!(
            what,
            "subscription" | "product" | "inAppProduct" | "inappProduct"
        )
    })
}

fn parse_purchase<T: DeserializeOwned>(body: &[u8]) -> Result<PurchaseResponse<T>, GoogleApiError> {
    let unreadable =
        |error: serde_json::Error| GoogleApiError::Unreadable(describe_json_error(&error));
    let raw: Box<RawValue> = serde_json::from_slice(body).map_err(unreadable)?;
    if !raw.get().starts_with('{') {
        return Err(GoogleApiError::Unreadable(
            "it is not a JSON object".to_owned(),
        ));
    }
    let purchase = serde_json::from_str(raw.get()).map_err(unreadable)?;
    Ok(PurchaseResponse { purchase, raw })
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

    fn answer(status: u16, body: &str) -> UpstreamResponse {
        UpstreamResponse {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: body.as_bytes().to_vec(),
        }
    }

    fn refusal(status: u16, reason: &str) -> UpstreamResponse {
        let body = json!({ "error": { "code": status, "message": "A sentence.", "errors": [
            { "domain": "androidpublisher", "reason": reason, "message": "A sentence." }
        ] } });
        answer(status, &body.to_string())
    }

    fn unexpected(status: u16, reason: Option<&str>, message: Option<&str>) -> PurchaseLookupError {
        GoogleApiError::Unexpected {
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
            PurchaseLookupError::from(GoogleApiError::Unauthorized {
                status,
                reason: Some(reason.to_owned()),
                message: Some("A sentence.".to_owned()),
            })
        };
        let quota = |status| {
            PurchaseLookupError::from(GoogleApiError::RateLimited {
                status,
                retry_after: Duration::from_mins(1),
            })
        };
        let application = |reason: &str| {
            PurchaseLookupError::from(GoogleApiError::UnknownApp {
                reason: reason.to_owned(),
            })
        };
        for (status, reason, expected) in [
            (404, "purchaseTokenNotFound", GoogleNotFound::Unknown.into()),
            (404, "notFound", GoogleNotFound::Unknown.into()),
            (
                404,
                "applicationNotFound",
                application("applicationNotFound"),
            ),
            (404, "packageNotFound", application("packageNotFound")),
            (400, "invalid", GoogleNotFound::Unknown.into()),
            (400, "invalidValue", GoogleNotFound::Unknown.into()),
            (400, "invalidPurchaseToken", GoogleNotFound::Unknown.into()),
            (
                400,
                "subscriptionInvalidArgument",
                GoogleNotFound::OtherType.into(),
            ),
            (
                400,
                "productInvalidArgument",
                GoogleNotFound::OtherType.into(),
            ),
            (
                400,
                "purchaseTokenDoesNotMatchPackageName",
                GoogleNotFound::OtherApp.into(),
            ),
            (
                400,
                "purchaseTokenDoesNotMatchProductId",
                GoogleNotFound::OtherProduct.into(),
            ),
            (400, "failedPrecondition", GoogleNotFound::Gone.into()),
            (
                400,
                "purchaseTokenNoLongerValid",
                GoogleNotFound::Gone.into(),
            ),
            (
                410,
                "subscriptionPurchaseNoLongerAvailable",
                GoogleNotFound::Gone.into(),
            ),
            (
                410,
                "purchaseTokenNoLongerValid",
                GoogleNotFound::Gone.into(),
            ),
            (410, "somethingNew", GoogleNotFound::Gone.into()),
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
            let found = interpret_response(refusal(status, reason), now());
            assert_eq!(found, Err(expected), "{status} {reason}");
        }
        for (status, reason) in [
            (400, "badRequest"),
            (400, "otherInvalidArgument"),
            (409, "conflict"),
            (500, "backendError"),
            (503, "backendError"),
        ] {
            let found = interpret_response(refusal(status, reason), now());
            assert_eq!(
                found,
                Err(unexpected(status, Some(reason), Some("A sentence.")))
            );
        }
    }

    #[test]
    fn what_is_no_code_is_not_repeated_as_one() {
        for odd in ["oken7.of-a-purchase", "a sentence", "", &"x".repeat(65)] {
            let found = interpret_response(refusal(400, odd), now());
            let expected = unexpected(400, None, Some("A sentence."));
            assert_eq!(found, Err(expected), "{odd}");
        }
    }

    #[test]
    fn a_status_word_stands_in_for_a_missing_reason() {
        let body = |status: &str| json!({ "error": { "status": status } }).to_string();
        for (status, word, expected) in [
            (400, "FAILED_PRECONDITION", GoogleNotFound::Gone.into()),
            (404, "NOT_FOUND", GoogleNotFound::Unknown.into()),
            (
                403,
                "PERMISSION_DENIED",
                PurchaseLookupError::from(GoogleApiError::Unauthorized {
                    status: 403,
                    reason: Some("PERMISSION_DENIED".to_owned()),
                    message: None,
                }),
            ),
        ] {
            assert_eq!(
                interpret_response(answer(status, &body(word)), now()),
                Err(expected),
                "{word}"
            );
        }
        let both = json!({ "error": {
            "status": "FAILED_PRECONDITION",
            "errors": [{ "reason": "expiredTooLong" }],
        } });
        assert_eq!(
            interpret_response(answer(400, &both.to_string()), now()),
            Err(GoogleNotFound::Gone.into())
        );
    }

    #[test]
    fn a_sentence_stands_in_for_a_missing_reason() {
        let body = |word: &str, sentence: &str| {
            json!({ "error": { "code": 400, "message": sentence, "status": word } }).to_string()
        };
        let expired = "The subscription purchase is no longer available for query because it has been expired for too long.";
        for (status, word, sentence, expected) in [
            (
                400,
                "INVALID_ARGUMENT",
                "Invalid Value",
                GoogleNotFound::Unknown,
            ),
            (400, "INVALID_ARGUMENT", expired, GoogleNotFound::Gone),
            (404, "NOT_FOUND", expired, GoogleNotFound::Gone),
        ] {
            let found = interpret_response(answer(status, &body(word, sentence)), now());
            assert_eq!(found, Err(expected.into()), "{status} {sentence}");
        }
        let with_reason =
            json!({ "error": { "message": expired, "errors": [{ "reason": "somethingNew" }] } });
        assert_eq!(
            interpret_response(answer(400, &with_reason.to_string()), now()),
            Err(GoogleNotFound::Gone.into())
        );
        let other = "Request contains an invalid argument.";
        assert_eq!(
            interpret_response(answer(400, &body("INVALID_ARGUMENT", other)), now()),
            Err(unexpected(400, Some("INVALID_ARGUMENT"), Some(other))),
            "which argument, it does not say"
        );
    }

    #[test]
    fn a_sentence_that_repeats_the_purchase_token_is_told_without_it() {
        for token in ["s3cret", "s3cret/with:odd characters"] {
            let mut written = String::new();
            push_path_segment(&mut written, token).expect("a segment");
            for status in [400, 403, 500] {
                let body = json!({ "error": {
                    "message": format!("No {token}, nothing at /tokens/{written}."),
                    "errors": [{ "reason": format!("bad {token}") }],
                } });
                let no = interpret_response(answer(status, &body.to_string()), now())
                    .expect_err("a refusal")
                    .redact_purchase_token(token);
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
                let found = interpret_response(answer(status, body), now());
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
            let verdict = classify_response(&answer(status, ""));
            assert_eq!(verdict == RetryDecision::Transient, transient, "{status}");
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
            let found = parse_retry_after(&headers, now()).map(|wait| wait.as_secs());
            assert_eq!(found, seconds, "{text}");
        }
        let mut refused = refusal(429, "rateLimitExceeded");
        refused
            .headers
            .insert(RETRY_AFTER, HeaderValue::from_static("7"));
        assert_eq!(
            interpret_response(refused, now()),
            Err(GoogleApiError::RateLimited {
                status: 429,
                retry_after: Duration::from_secs(7)
            }
            .into())
        );
    }

    #[test]
    fn an_answer_is_kept_byte_for_byte() {
        let body = "{ \"b\": 1.0,\n \"a\" : \"\\u0041\", \"lineItems\":[] }";
        let known: PurchaseResponse<SubscriptionPurchase> =
            parse_purchase(body.as_bytes()).expect("readable");
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
            let found = parse_purchase::<SubscriptionPurchase>(bad.as_bytes());
            assert!(matches!(found, Err(GoogleApiError::Unreadable(_))), "{bad}");
        }
    }

    #[test]
    fn a_question_has_one_address() {
        let google = Url::parse("https://androidpublisher.googleapis.com").expect("a URL");
        let under = Url::parse("http://127.0.0.1:9/google/play/").expect("a URL");
        let text =
            |base, package, path: &[&str]| endpoint_url(base, package, path).map(String::from);
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
    struct PlayStub {
        play: PlayClient,
        clock: Clock,
        tenant: TenantId,
        account: Arc<GoogleServiceAccount>,
        counts: Arc<PlayStubState>,
    }

    #[derive(Default)]
    struct PlayStubState {
        sold: AtomicU32,
        asked: AtomicU32,
        /// Tokens up to this one are refused.
        refused_up_to: AtomicU32,
        script: Mutex<Vec<u16>>,
        gate: Option<Barrier>,
    }

    async fn start_stub(counts: PlayStubState) -> PlayStub {
        let counts = Arc::new(counts);
        let sell = |State(counts): State<Arc<PlayStubState>>| async move {
            let number = counts.sold.fetch_add(1, Ordering::SeqCst) + 1;
            axum::Json(json!({ "access_token": number.to_string(), "expires_in": 3600 }))
        };
        let answer = |State(counts): State<Arc<PlayStubState>>, headers: HeaderMap| async move {
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
        let client = crate::outbound::build_http_client().expect("a client");
        let base = Url::parse(&base).expect("a URL");
        let token_url = base.join("token").expect("a URL");
        let clock = Clock::fixed(now());
        let upstream = Upstream::new(client, Duration::from_secs(5));
        let file = super::super::account::tests::key_file().to_string();
        PlayStub {
            play: PlayClient::new(upstream, base, token_url, clock.clone()),
            clock,
            tenant: TenantId::mint(now()),
            account: Arc::new(GoogleServiceAccount::parse(file.as_bytes()).expect("good")),
            counts,
        }
    }

    impl PlayStub {
        async fn ask(&self, token: &str) -> Result<(), PurchaseLookupError> {
            let known = self
                .play
                .get_subscription(&self.tenant, &self.account, "p", token)
                .await;
            known.map(|_| ())
        }

        fn sold_and_asked(&self) -> (u32, u32) {
            let PlayStubState { sold, asked, .. } = &*self.counts;
            (sold.load(Ordering::SeqCst), asked.load(Ordering::SeqCst))
        }
    }

    #[tokio::test]
    async fn a_token_is_bought_once_and_renewed_a_minute_early() {
        let google = start_stub(PlayStubState::default()).await;
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
        let google = start_stub(PlayStubState::default()).await;
        google.ask("a").await.expect("known");
        google.counts.refused_up_to.store(1, Ordering::SeqCst);
        google.ask("a").await.expect("known with the second token");
        assert_eq!(google.sold_and_asked(), (2, 3));
        google.counts.refused_up_to.store(99, Ordering::SeqCst);
        let refused = google.ask("a").await;
        assert!(
            matches!(
                refused,
                Err(PurchaseLookupError::Api(GoogleApiError::Unauthorized {
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
        let google = start_stub(PlayStubState {
            script: Mutex::new(vec![503, 500]),
            ..PlayStubState::default()
        })
        .await;
        google.ask("a").await.expect("known at the third try");
        assert_eq!(google.sold_and_asked(), (1, 3));
        *google.counts.script.lock().expect("not poisoned") = vec![503, 503, 503];
        let failed = google.ask("a").await;
        assert!(
            matches!(
                failed,
                Err(PurchaseLookupError::Api(GoogleApiError::Unexpected {
                    status: 503,
                    ..
                }))
            ),
            "{failed:?}"
        );
        *google.counts.script.lock().expect("not poisoned") = vec![429];
        let quota = google.ask("a").await;
        assert!(
            matches!(
                quota,
                Err(PurchaseLookupError::Api(GoogleApiError::RateLimited { .. }))
            ),
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
        let google = start_stub(PlayStubState {
            gate: Some(Barrier::new(2)),
            ..PlayStubState::default()
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
        let google = start_stub(PlayStubState::default()).await;
        let nowhere = Url::parse("http://127.0.0.1:1/").expect("a URL");
        let token_url = google.play.base_url.join("token").expect("a URL");
        let play = PlayClient::new(
            google.play.api.upstream.clone(),
            nowhere,
            token_url,
            google.clock.clone(),
        );
        let asked = play
            .get_subscription(&google.tenant, &google.account, "p", "a")
            .await;
        assert!(
            matches!(
                asked,
                Err(PurchaseLookupError::Api(GoogleApiError::NoResponse(_)))
            ),
            "{asked:?}"
        );
    }

    proptest! {
        #[test]
        fn no_id_changes_which_address_is_called(product in ".{1,40}", token in ".{1,40}") {
            let base = Url::parse("https://play.example/base").expect("a URL");
            if let Some(url) = endpoint_url(&base, "com.example", &["products", &product, "tokens", &token]) {
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
            prop_assert_eq!(interpret_response(reply, now()).is_ok(), status == 200);
        }
    }
}
