//! Calls to the Play Developer API, and what each of its answers means.
//!
//! Guarantees: only an answer of Google's about the purchase is read as "no such purchase", never a gateway's 404 page, a
//! refused credential, a quota or an outage; ids from a caller cannot change which address is called; identical
//! questions in flight share one call; one tenant cannot take every connection; an access token that Google refuses is
//! replaced once.
//!
//! | status | reason | meaning |
//! |---|---|---|
//! | 200 | | the purchase |
//! | 404 | `applicationNotFound`, `packageNotFound`; the message says "Package not found" | [`UnknownApp`](GoogleApiError::UnknownApp) |
//! | 400, 404 | the message says "expired for too long" | [`Gone`](GoogleNotFound::Gone) |
//! | 404 | any other of Google's | [`Unknown`](GoogleNotFound::Unknown) |
//! | 404 | none: not Google's body | [`Unexpected`](GoogleApiError::Unexpected) |
//! | 410 | any | [`Gone`](GoogleNotFound::Gone) |
//! | 400 | `purchaseTokenNoLongerValid`, `subscriptionPurchaseNoLongerAvailable` | [`Gone`](GoogleNotFound::Gone) |
//! | 400 | `failedPrecondition`, or status `FAILED_PRECONDITION` | [`Gone`](GoogleNotFound::Gone): expired too long ago |
//! | 400 | `invalid`, `invalidPurchaseToken`, `invalidValue` | [`Malformed`](GoogleNotFound::Malformed) |
//! | 400 | `purchaseTokenNotFound` | [`Unknown`](GoogleNotFound::Unknown) |
//! | 400 | status `INVALID_ARGUMENT`, no reason, message "Invalid Value" | [`Malformed`](GoogleNotFound::Malformed) |
//! | 400 | `purchaseTokenDoesNotMatchPackageName` | [`OtherApp`](PurchaseLookupError::OtherApp) |
//! | 400 | `purchaseTokenDoesNotMatchProductId` | [`OtherProduct`](PurchaseLookupError::OtherProduct) |
//! | 400 | `subscriptionInvalidArgument`, `productInvalidArgument`, … | [`OtherType`](GoogleNotFound::OtherType) |
//! | 401 | any | one more try with a new token unless the account lacks the permission by the answer to the last new one, then [`Unauthorized`](GoogleApiError::Unauthorized) |
//! | 429 from the token endpoint | any | [`RateLimited`](GoogleApiError::RateLimited) |
//! | 429, 403 | `quotaExceeded`, `rateLimitExceeded`, `userRateLimitExceeded`, `dailyLimitExceeded` | [`RateLimited`](GoogleApiError::RateLimited) |
//! | 403 | any other | [`Unauthorized`](GoogleApiError::Unauthorized) |
//! | 408, 5xx | any | two quick retries, then [`Unexpected`](GoogleApiError::Unexpected) |
//! | anything else | | [`Unexpected`](GoogleApiError::Unexpected) |
//!
//! A call that changes a purchase is done with any 2xx. Google answers 409 to one that meets another change of the same
//! purchase, which is retried like a 5xx.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use url::Url;

use super::access_token::AccessTokenSource;
use super::account::GoogleServiceAccount;
use super::api_error::{
    DEFAULT_RETRY_AFTER, GoogleApiError, GoogleNotFound, PurchaseLookupError, is_error_code,
};
use super::payload::{
    ExternalAccountIds, GoogleErrorBody, Order, ProductPurchase, ProductPurchaseV2,
    SubscriptionPurchase, VoidedPurchasesResponse,
};
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::base::single_flight::SingleFlight;
use crate::outbound::{
    RetryDecision, Upstream, UpstreamResponse, describe_json_error, parse_retry_after,
    push_path_segment,
};
use crate::stores::shared::client::{CallKey, StoreApi, call_key};

/// The Play Developer API. Clones share access tokens, calls in flight and the limit of a tenant.
#[derive(Clone)]
pub(crate) struct PlayClient {
    api: StoreApi<AccessTokenSource>,
    base_url: Url,
    clock: Clock,
    in_flight: SingleFlight<CallKey, Result<FetchedBody, PurchaseLookupError>>,
}

/// The body of a success, and when it was asked for: what it says was true then or later.
type FetchedBody = (Arc<[u8]>, Timestamp);

/// A purchase as Google answered.
#[derive(Clone, Debug)]
pub(crate) struct PurchaseResponse<T> {
    pub(crate) purchase: T,
    /// The whole answer, byte for byte.
    pub(crate) raw: Box<RawValue>,
    /// When Google was asked.
    pub(crate) fetched_at: Timestamp,
}

/// Which refunds are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct VoidedPurchasesQuery<'a> {
    /// At most 30 days ago.
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
    /// Otherwise only those of one-time products.
    pub(super) with_subscriptions: bool,
    /// Of the page before. `None`: the first page.
    pub(super) page_token: Option<&'a str>,
}

impl PlayClient {
    /// The API at `base_url` (the part before `/androidpublisher`), with tokens from `token_url`.
    pub(crate) fn new(upstream: Upstream, base_url: Url, token_url: Url, clock: Clock) -> Self {
        let tokens = AccessTokenSource::new(upstream.clone(), token_url, clock.clone());
        Self {
            api: StoreApi::new(upstream, tokens),
            base_url,
            clock,
            in_flight: SingleFlight::default(),
        }
    }

    /// Calls Google's `purchases.subscriptionsv2.get`.
    pub(crate) async fn get_subscription(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        purchase_token: &str,
    ) -> Result<PurchaseResponse<SubscriptionPurchase>, PurchaseLookupError> {
        let path = ["purchases", "subscriptionsv2", "tokens", purchase_token];
        self.get_json(tenant, account, package_name, &path).await
    }

    /// Calls Google's `purchases.products.get`.
    pub(crate) async fn get_product(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        product_id: &str,
        purchase_token: &str,
    ) -> Result<PurchaseResponse<ProductPurchase>, PurchaseLookupError> {
        let path = product_path(product_id, purchase_token);
        self.get_json(tenant, account, package_name, &path).await
    }

    /// `purchases.productsv2.getproductpurchasev2`, which needs no product.
    pub(crate) async fn get_product_v2(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        purchase_token: &str,
    ) -> Result<PurchaseResponse<ProductPurchase>, PurchaseLookupError> {
        let path = ["purchases", "productsv2", "tokens", purchase_token];
        let response: PurchaseResponse<ProductPurchaseV2> =
            self.get_json(tenant, account, package_name, &path).await?;
        Ok(PurchaseResponse {
            purchase: response.purchase.into(),
            raw: response.raw,
            fetched_at: response.fetched_at,
        })
    }

    /// Calls Google's `orders.get`.
    pub(crate) async fn get_order(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        order_id: &str,
    ) -> Result<PurchaseResponse<Order>, PurchaseLookupError> {
        let path = ["orders", order_id];
        self.get_json(tenant, account, package_name, &path).await
    }

    /// Calls Google's `purchases.voidedpurchases.list`: one page.
    pub(super) async fn list_voided_purchases(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        query: &VoidedPurchasesQuery<'_>,
    ) -> Result<VoidedPurchasesResponse, PurchaseLookupError> {
        let path = ["purchases", "voidedpurchases"];
        let mut url =
            endpoint_url(&self.base_url, package_name, &path).ok_or(GoogleNotFound::Malformed)?;
        let (since, until) = (query.since.as_millis(), query.until.as_millis());
        url.query_pairs_mut()
            .append_pair("startTime", &since.to_string())
            .append_pair("endTime", &until.to_string())
            .append_pair("type", if query.with_subscriptions { "1" } else { "0" })
            .append_pair("includeQuantityBasedPartialRefund", "true")
            .extend_pairs(query.page_token.map(|token| ("token", token)));
        let body = self.send_request(tenant, account, url).await?;
        serde_json::from_slice(&body)
            .map_err(|error| GoogleApiError::Unreadable(describe_json_error(&error)).into())
    }

    /// Calls Google's `orders.reviewrefund`: the first answer counts. `has_unknown_outcome` is set when a try of this call brought no
    /// answer, after which Google may have taken what it was sent.
    pub(crate) async fn review_refund(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        order_id: &str,
        body: Value,
        has_unknown_outcome: &AtomicBool,
    ) -> Result<(), PurchaseLookupError> {
        let path = ["orders", order_id];
        let call = (&path[..], "reviewrefund");
        self.post_json_counted(
            tenant,
            account,
            package_name,
            call,
            body,
            has_unknown_outcome,
        )
        .await
    }

    /// `purchases.subscriptions.acknowledge`. `external_account_ids` name the user of a purchase that was made outside the app.
    pub(crate) async fn acknowledge_subscription(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        product_id: &str,
        purchase_token: &str,
        external_account_ids: Option<&ExternalAccountIds>,
    ) -> Result<(), PurchaseLookupError> {
        let path = [
            "purchases",
            "subscriptions",
            product_id,
            "tokens",
            purchase_token,
        ];
        let body = match external_account_ids {
            Some(ids) => json!({ "externalAccountIds": ids }),
            None => json!({}),
        };
        self.post_json(tenant, account, package_name, &path, "acknowledge", body)
            .await
    }

    /// Calls Google's `purchases.products.acknowledge`.
    pub(crate) async fn acknowledge_product(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        product_id: &str,
        purchase_token: &str,
    ) -> Result<(), PurchaseLookupError> {
        let path = product_path(product_id, purchase_token);
        self.post_json(
            tenant,
            account,
            package_name,
            &path,
            "acknowledge",
            json!({}),
        )
        .await
    }

    /// Calls Google's `purchases.products.consume`.
    pub(crate) async fn consume_product(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        product_id: &str,
        purchase_token: &str,
    ) -> Result<(), PurchaseLookupError> {
        let path = product_path(product_id, purchase_token);
        self.post_json(tenant, account, package_name, &path, "consume", json!({}))
            .await
    }

    /// Calls a method that changes what is at `path`, which ends with the purchase token or the order's id. It must be one that may be repeated.
    async fn post_json(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        path: &[&str],
        method: &str,
        body: Value,
    ) -> Result<(), PurchaseLookupError> {
        let call = (path, method);
        let ignored = AtomicBool::new(false);
        self.post_json_counted(tenant, account, package_name, call, body, &ignored)
            .await
    }

    /// `has_unknown_outcome` is set after a try that Google did not refuse and did not grant: it gave no answer, or failed.
    async fn post_json_counted(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        (path, method): (&[&str], &str),
        body: Value,
        has_unknown_outcome: &AtomicBool,
    ) -> Result<(), PurchaseLookupError> {
        let url = endpoint_url(&self.base_url, package_name, path)
            .and_then(|url| Url::parse(&format!("{url}:{method}")).ok())
            .ok_or(GoogleNotFound::Malformed)?;
        let unanswered = AtomicBool::new(false);
        let build = |client: &reqwest::Client| {
            if unanswered.swap(true, Ordering::Relaxed) {
                has_unknown_outcome.store(true, Ordering::Relaxed);
            }
            client.post(url.clone()).json(&body)
        };
        let judge = |response: &UpstreamResponse| {
            if response.status.is_client_error() {
                unanswered.store(false, Ordering::Relaxed);
            }
            match response.status.as_u16() {
                409 => RetryDecision::Transient,
                _ => classify_response(response),
            }
        };
        let sent = self.api.send_request(tenant, account, build, judge).await;
        if sent
            .as_ref()
            .is_ok_and(|response| response.status.is_success())
        {
            return Ok(());
        }
        if unanswered.into_inner() {
            has_unknown_outcome.store(true, Ordering::Relaxed);
        }
        interpret_response(sent?, self.clock.now())
            .map(drop)
            .map_err(|error| error.redact_purchase_token(path.last().copied().unwrap_or_default()))
    }

    /// `path` ends with the purchase token or the order's id.
    async fn get_json<T: DeserializeOwned>(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        package_name: &str,
        path: &[&str],
    ) -> Result<PurchaseResponse<T>, PurchaseLookupError> {
        let url =
            endpoint_url(&self.base_url, package_name, path).ok_or(GoogleNotFound::Malformed)?;
        let key = call_key(tenant, account.identity_digest(), &url);
        let (play, tenant, account) = (self.clone(), tenant.clone(), account.clone());
        let (body, fetched_at) = self
            .in_flight
            .share_call(key, move || async move {
                let asked_at = play.clock.now();
                let body = play.send_request(&tenant, &account, url).await?;
                Ok((body, asked_at))
            })
            .await
            .map_err(|error| {
                error.redact_purchase_token(path.last().copied().unwrap_or_default())
            })?;
        Ok(parse_purchase(&body, fetched_at)?)
    }

    /// The body of a success.
    async fn send_request(
        &self,
        tenant: &TenantId,
        account: &Arc<GoogleServiceAccount>,
        url: Url,
    ) -> Result<Arc<[u8]>, PurchaseLookupError> {
        let build = |client: &reqwest::Client| client.get(url.clone());
        let response = self
            .api
            .send_request(tenant, account, build, classify_response)
            .await?;
        interpret_response(response, self.clock.now()).map(Arc::from)
    }
}

/// `None` when a part cannot be written as one path segment: a URL cannot express a segment that is empty or one or two
/// dots, and no purchase has such a name.
fn endpoint_url(base: &Url, package_name: &str, path: &[&str]) -> Option<Url> {
    let mut text = base.as_str().trim_end_matches('/').to_owned();
    text.push_str("/androidpublisher/v3/applications/");
    push_path_segment(&mut text, package_name)?;
    for part in path {
        text.push('/');
        push_path_segment(&mut text, part)?;
    }
    Url::parse(&text).ok()
}

fn classify_response(response: &UpstreamResponse) -> RetryDecision {
    if response.status.is_server_error() || response.status.as_u16() == 408 {
        RetryDecision::Transient
    } else {
        RetryDecision::Final
    }
}

/// The body of a success, or why there is none. The table is at the top of this file.
fn interpret_response(
    response: UpstreamResponse,
    now: Timestamp,
) -> Result<Vec<u8>, PurchaseLookupError> {
    let status = response.status.as_u16();
    if status == 200 {
        return Ok(response.body);
    }
    let error = serde_json::from_slice::<GoogleErrorBody>(&response.body)
        .ok()
        .and_then(|body| body.error);
    let is_from_google = error.is_some();
    let error = error.unwrap_or_default();
    let code = error
        .errors
        .into_iter()
        .find_map(|error| error.reason)
        .or_else(|| error.status.clone())
        .filter(|code| is_error_code(code));
    let is_precondition = error.status.as_deref() == Some("FAILED_PRECONDITION");
    let retry_after = parse_retry_after(&response.headers, now);
    let (reason, message) = (code.as_deref().unwrap_or_default(), error.message);
    // Sometimes Google gives a sentence and no reason. Only the known sentences count.
    let contains = |words: &str| {
        message
            .as_deref()
            .is_some_and(|message| message.contains(words))
    };
    Err(match (status, reason) {
        (404, "applicationNotFound" | "packageNotFound") => unknown_app(reason),
        (404, _) if contains("Package not found") => unknown_app(reason),
        (400 | 404, _) if contains("expired for too long") => GoogleNotFound::Gone.into(),
        (400, "INVALID_ARGUMENT") if contains("Invalid Value") => GoogleNotFound::Malformed.into(),
        (404, _) if is_from_google => GoogleNotFound::Unknown.into(),
        (410, _)
        | (
            400,
            "purchaseTokenNoLongerValid"
            | "subscriptionPurchaseNoLongerAvailable"
            | "failedPrecondition",
        ) => GoogleNotFound::Gone.into(),
        (400, _) if is_precondition => GoogleNotFound::Gone.into(),
        (400, "invalid" | "invalidValue" | "invalidPurchaseToken") => {
            GoogleNotFound::Malformed.into()
        }
        (400, "purchaseTokenNotFound") => GoogleNotFound::Unknown.into(),
        (400, "purchaseTokenDoesNotMatchPackageName") => PurchaseLookupError::OtherApp,
        (400, "purchaseTokenDoesNotMatchProductId") => PurchaseLookupError::OtherProduct,
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
            retry_after: retry_after.unwrap_or(DEFAULT_RETRY_AFTER),
        }
        .into(),
        (401 | 403, _) => GoogleApiError::Unauthorized {
            status,
            reason: code,
            message,
        }
        .into(),
        _ => GoogleApiError::Unexpected {
            status,
            reason: code,
            message,
            retry_after,
        }
        .into(),
    })
}

fn unknown_app(reason: &str) -> PurchaseLookupError {
    GoogleApiError::UnknownApp {
        reason: reason.to_owned(),
    }
    .into()
}

/// `subscriptionInvalidArgument` was observed; the others follow the same pattern.
fn is_wrong_purchase_type(reason: &str) -> bool {
    reason.strip_suffix("InvalidArgument").is_some_and(|what| {
        matches!(
            what,
            "subscription" | "product" | "inAppProduct" | "inappProduct"
        )
    })
}

fn parse_purchase<T: DeserializeOwned>(
    body: &[u8],
    fetched_at: Timestamp,
) -> Result<PurchaseResponse<T>, GoogleApiError> {
    let unreadable =
        |error: serde_json::Error| GoogleApiError::Unreadable(describe_json_error(&error));
    let raw: Box<RawValue> = serde_json::from_slice(body).map_err(unreadable)?;
    if !raw.get().starts_with('{') {
        return Err(GoogleApiError::Unreadable(
            "it is not a JSON object".to_owned(),
        ));
    }
    let purchase = serde_json::from_str(raw.get()).map_err(unreadable)?;
    Ok(PurchaseResponse {
        purchase,
        raw,
        fetched_at,
    })
}

/// The path of a one-time product, without the method.
fn product_path<'a>(product_id: &'a str, purchase_token: &'a str) -> [&'a str; 5] {
    [
        "purchases",
        "products",
        product_id,
        "tokens",
        purchase_token,
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

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

    fn api_error<T: std::fmt::Debug>(result: Result<T, PurchaseLookupError>) -> GoogleApiError {
        match result {
            Err(PurchaseLookupError::Api(error)) => error,
            other => panic!("{other:?}"),
        }
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
    fn every_rejection_and_error_has_its_meaning() {
        use GoogleNotFound::*;
        let unauthorized = |status, reason: &str| {
            PurchaseLookupError::from(GoogleApiError::Unauthorized {
                status,
                reason: Some(reason.to_owned()),
                message: Some("A sentence.".to_owned()),
            })
        };
        for (status, reason, expected) in [
            (404, "purchaseTokenNotFound", Unknown.into()),
            (404, "notFound", Unknown.into()),
            (400, "invalid", Malformed.into()),
            (400, "invalidValue", Malformed.into()),
            (400, "invalidPurchaseToken", Malformed.into()),
            (400, "purchaseTokenNotFound", Unknown.into()),
            (400, "subscriptionInvalidArgument", OtherType.into()),
            (400, "productInvalidArgument", OtherType.into()),
            (
                400,
                "purchaseTokenDoesNotMatchPackageName",
                PurchaseLookupError::OtherApp,
            ),
            (
                400,
                "purchaseTokenDoesNotMatchProductId",
                PurchaseLookupError::OtherProduct,
            ),
            (400, "failedPrecondition", Gone.into()),
            (400, "purchaseTokenNoLongerValid", Gone.into()),
            (410, "subscriptionPurchaseNoLongerAvailable", Gone.into()),
            (410, "purchaseTokenNoLongerValid", Gone.into()),
            (410, "somethingNew", Gone.into()),
            (401, "authError", unauthorized(401, "authError")),
        ] {
            let found = interpret_response(refusal(status, reason), now());
            assert_eq!(found, Err(expected), "{status} {reason}");
        }
        for reason in ["permissionDenied", "projectNotLinked", "somethingNew"] {
            let found = interpret_response(refusal(403, reason), now());
            assert_eq!(found, Err(unauthorized(403, reason)));
        }
        for reason in ["applicationNotFound", "packageNotFound"] {
            let found = interpret_response(refusal(404, reason), now());
            let reason = reason.to_owned();
            assert_eq!(found, Err(GoogleApiError::UnknownApp { reason }.into()));
        }
        for (status, reason) in [
            (403, "quotaExceeded"),
            (403, "rateLimitExceeded"),
            (403, "userRateLimitExceeded"),
            (429, "rateLimitExceeded"),
            (429, "somethingNew"),
        ] {
            let found = interpret_response(refusal(status, reason), now());
            let quota = GoogleApiError::RateLimited {
                status,
                retry_after: Duration::from_mins(1),
            };
            assert_eq!(found, Err(quota.into()), "{status} {reason}");
        }
        for (status, reason) in [
            (400, "badRequest"),
            (400, "otherInvalidArgument"),
            (409, "conflict"),
            (500, "backendError"),
            (503, "backendError"),
        ] {
            let found = interpret_response(refusal(status, reason), now());
            let expected = unexpected(status, Some(reason), Some("A sentence."));
            assert_eq!(found, Err(expected));
        }
    }

    #[test]
    fn a_reason_that_is_not_a_code_is_not_repeated() {
        for odd in ["oken7.of-a-purchase", "a sentence", "", &"x".repeat(65)] {
            let found = interpret_response(refusal(400, odd), now());
            let expected = unexpected(400, None, Some("A sentence."));
            assert_eq!(found, Err(expected), "{odd}");
        }
    }

    #[test]
    fn a_status_word_stands_in_for_a_missing_reason() {
        let body = |status: &str| json!({ "error": { "status": status } }).to_string();
        let unauthorized = GoogleApiError::Unauthorized {
            status: 403,
            reason: Some("PERMISSION_DENIED".to_owned()),
            message: None,
        };
        for (status, word, expected) in [
            (400, "FAILED_PRECONDITION", GoogleNotFound::Gone.into()),
            (404, "NOT_FOUND", GoogleNotFound::Unknown.into()),
            (403, "PERMISSION_DENIED", unauthorized.into()),
        ] {
            let found = interpret_response(answer(status, &body(word)), now());
            assert_eq!(found, Err(expected), "{word}");
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
                GoogleNotFound::Malformed,
            ),
            (400, "INVALID_ARGUMENT", expired, GoogleNotFound::Gone),
            (404, "NOT_FOUND", expired, GoogleNotFound::Gone),
        ] {
            let found = interpret_response(answer(status, &body(word, sentence)), now());
            assert_eq!(found, Err(expected.into()), "{status} {sentence}");
        }
        let package = json!({ "error": {
            "message": "Package not found: com.example.app.", "errors": [{ "reason": "notFound" }],
        } });
        let reason = "notFound".to_owned();
        assert_eq!(
            interpret_response(answer(404, &package.to_string()), now()),
            Err(GoogleApiError::UnknownApp { reason }.into())
        );
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
    fn the_purchase_token_is_removed_from_a_sentence() {
        for token in ["s3cret", "s3cret/with:odd characters"] {
            let mut written = String::new();
            push_path_segment(&mut written, token).expect("a segment");
            for status in [400, 403, 500] {
                let body = json!({ "error": {
                    "message": format!("No {token}, nothing at /tokens/{written}."),
                    "errors": [{ "reason": format!("bad {token}") }],
                } });
                let error = interpret_response(answer(status, &body.to_string()), now())
                    .expect_err("a refusal")
                    .redact_purchase_token(token);
                let text = format!("{error} {error:?}");
                assert!(!text.contains("s3cret"), "{text}");
                assert!(text.contains("No …, nothing at /tokens/…."), "{text}");
            }
        }
    }

    #[test]
    fn a_gateways_page_is_never_a_rejection() {
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
    fn only_a_transient_error_is_retried() {
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
            let decision = classify_response(&answer(status, ""));
            assert_eq!(decision == RetryDecision::Transient, transient, "{status}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
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
            parse_purchase(body.as_bytes(), now()).expect("readable");
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
            let found = parse_purchase::<SubscriptionPurchase>(bad.as_bytes(), now());
            assert!(matches!(found, Err(GoogleApiError::Unreadable(_))), "{bad}");
        }
    }

    #[test]
    fn a_call_has_one_address() {
        let google = Url::parse("https://androidpublisher.googleapis.com").expect("a URL");
        let under = Url::parse("http://127.0.0.1:9/google/play/").expect("a URL");
        let text =
            |base, package, path: &[&str]| endpoint_url(base, package, path).map(String::from);
        assert_eq!(
            text(
                &google,
                "com.example.app",
                &["purchases", "subscriptionsv2", "tokens", "abc.AO-J1_x~"]
            )
            .as_deref(),
            Some(
                "https://androidpublisher.googleapis.com/androidpublisher/v3/applications/com.example.app/purchases/subscriptionsv2/tokens/abc.AO-J1_x~"
            )
        );
        assert_eq!(
            text(
                &under,
                "p",
                &["purchases", "products", "a/b:c?d#e%2e", "tokens", "é"]
            )
            .as_deref(),
            Some(
                "http://127.0.0.1:9/google/play/androidpublisher/v3/applications/p/purchases/products/a%2Fb%3Ac%3Fd%23e%252e/tokens/%C3%A9"
            )
        );
        for dots in ["", ".", ".."] {
            assert_eq!(
                text(
                    &google,
                    "p",
                    &["purchases", "products", dots, "tokens", "x"]
                ),
                None
            );
        }
    }

    /// A stub of Google that counts the tokens it issued and the calls it answered. It answers with the statuses of its
    /// script first.
    struct PlayStub {
        play: PlayClient,
        clock: Clock,
        tenant: TenantId,
        account: Arc<GoogleServiceAccount>,
        counts: Arc<PlayStubState>,
    }

    #[derive(Default)]
    struct PlayStubState {
        issued: AtomicU32,
        called: AtomicU32,
        /// Tokens up to this one are refused.
        refused_up_to: AtomicU32,
        /// Why a token is refused.
        refusal_reason: Mutex<&'static str>,
        script: Mutex<Vec<u16>>,
        gate: Option<Barrier>,
    }

    async fn start_stub(counts: PlayStubState) -> PlayStub {
        let counts = Arc::new(counts);
        let issue_token = |State(counts): State<Arc<PlayStubState>>| async move {
            let number = counts.issued.fetch_add(1, Ordering::SeqCst) + 1;
            axum::Json(json!({ "access_token": number.to_string(), "expires_in": 3600 }))
        };
        let answer = |State(counts): State<Arc<PlayStubState>>, headers: HeaderMap| async move {
            counts.called.fetch_add(1, Ordering::SeqCst);
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
            let reason = *counts.refusal_reason.lock().expect("not poisoned");
            let error = json!({ "errors": [{ "reason": reason }] });
            let body = axum::Json(json!({ "error": error, "subscriptionState": "x" }));
            (StatusCode::from_u16(status).expect("a status"), body)
        };
        let app = axum::Router::new()
            .route("/token", post(issue_token))
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
        async fn call(&self, token: &str) -> Result<(), PurchaseLookupError> {
            let known = self
                .play
                .get_subscription(&self.tenant, &self.account, "p", token)
                .await;
            known.map(|_| ())
        }

        fn issued_and_called(&self) -> (u32, u32) {
            let PlayStubState { issued, called, .. } = &*self.counts;
            (issued.load(Ordering::SeqCst), called.load(Ordering::SeqCst))
        }
    }

    #[tokio::test]
    async fn a_token_is_requested_once_and_renewed_a_minute_early() {
        let google = start_stub(PlayStubState::default()).await;
        let (one, two) = tokio::join!(google.call("a"), google.call("b"));
        assert_eq!((one, two), (Ok(()), Ok(())));
        let one_token_for_two_calls = (1, 2);
        assert_eq!(google.issued_and_called(), one_token_for_two_calls);
        google.clock.advance(Duration::from_secs(3600 - 61));
        google.call("a").await.expect("known");
        assert_eq!(google.issued_and_called(), (1, 3));
        google.clock.advance(Duration::from_secs(1));
        google.call("a").await.expect("known");
        assert_eq!(google.issued_and_called(), (2, 4));
    }

    #[tokio::test]
    async fn a_refused_token_is_replaced_once() {
        let google = start_stub(PlayStubState::default()).await;
        google.call("a").await.expect("known");
        google.counts.refused_up_to.store(1, Ordering::SeqCst);
        google.call("a").await.expect("known with the second token");
        assert_eq!(google.issued_and_called(), (2, 3));
        google.counts.refused_up_to.store(99, Ordering::SeqCst);
        *google.counts.refusal_reason.lock().expect("not poisoned") = "permissionDenied";
        let refused = google.call("a").await;
        let refused = api_error(refused);
        assert!(matches!(
            refused,
            GoogleApiError::Unauthorized { status: 401, .. }
        ));
        assert_eq!(google.issued_and_called(), (3, 5), "and not a third time");
        for _ in 0..9 {
            google.call("a").await.expect_err("the account is refused");
        }
        let no_more_tokens = (3, 14);
        assert_eq!(google.issued_and_called(), no_more_tokens);
        google.clock.advance(Duration::from_mins(10));
        google.call("a").await.expect_err("it is still refused");
        assert_eq!(google.issued_and_called(), (4, 16), "tried again later");
    }

    #[tokio::test]
    async fn a_transient_error_is_tried_three_times() {
        let google = start_stub(PlayStubState {
            script: Mutex::new(vec![503, 500]),
            ..PlayStubState::default()
        })
        .await;
        google.call("a").await.expect("known at the third try");
        assert_eq!(google.issued_and_called(), (1, 3));
        *google.counts.script.lock().expect("not poisoned") = vec![503, 503, 503];
        let failed = google.call("a").await;
        let failed = api_error(failed);
        assert!(matches!(
            failed,
            GoogleApiError::Unexpected { status: 503, .. }
        ));
        *google.counts.script.lock().expect("not poisoned") = vec![429];
        let quota = google.call("a").await;
        assert!(matches!(
            api_error(quota),
            GoogleApiError::RateLimited { .. }
        ));
        assert_eq!(google.issued_and_called(), (1, 7), "a quota is not retried");
    }

    #[tokio::test]
    async fn identical_calls_share_one_request_and_others_do_not() {
        let google = start_stub(PlayStubState {
            gate: Some(Barrier::new(2)),
            ..PlayStubState::default()
        })
        .await;
        // The gate opens only when two requests have come: four calls, of two kinds.
        let all = tokio::join!(
            google.call("a"),
            google.call("a"),
            google.call("b"),
            google.call("b")
        );
        assert_eq!(all, (Ok(()), Ok(()), Ok(()), Ok(())));
        assert_eq!(google.issued_and_called(), (1, 2));
    }

    #[tokio::test]
    async fn an_unreachable_google_is_not_a_rejection() {
        let google = start_stub(PlayStubState::default()).await;
        let nowhere = Url::parse("http://127.0.0.1:1/").expect("a URL");
        let token_url = google.play.base_url.join("token").expect("a URL");
        let play = PlayClient::new(
            google.play.api.upstream.clone(),
            nowhere,
            token_url,
            google.clock.clone(),
        );
        let result = play
            .get_subscription(&google.tenant, &google.account, "p", "a")
            .await;
        assert!(matches!(api_error(result), GoogleApiError::NoResponse(_)));
    }

    proptest! {
        #[test]
        fn no_id_changes_which_address_is_called(product in ".{1,40}", token in ".{1,40}") {
            let base = Url::parse("https://play.example/base").expect("a URL");
            if let Some(url) = endpoint_url(&base, "com.example", &["purchases", "products", &product, "tokens", &token]) {
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
        fn no_response_panics_and_only_200_is_a_success(status in 100_u16..600, body: Vec<u8>) {
            let mut reply = answer(200, "");
            reply.status = StatusCode::from_u16(status).expect("a status");
            reply.body = body;
            prop_assert_eq!(interpret_response(reply, now()).is_ok(), status == 200);
        }
    }
}
