//! Calls to the App Store Server API, and the meaning of each response.
//!
//! Guarantees: only Apple's own "not found" is read as "no such transaction", never a gateway's 404 page, a refused key, a
//! limit or an outage; an id from a caller cannot change which URL is called; identical concurrent calls are sent once;
//! one tenant cannot use every connection; a client token that Apple refuses is replaced once.
//!
//! | status | `errorCode` | meaning |
//! |---|---|---|
//! | 200 | | the transaction or the statuses of the subscription, as Apple signed them |
//! | 404 | 4040010 `TransactionIdNotFound`, 4040005 `OriginalTransactionIdNotFound` | [`AppleNotFound::Unknown`] |
//! | 400 | 4000006 `InvalidTransactionId`, 4000008 `InvalidOriginalTransactionId` | [`AppleNotFound::MalformedId`] |
//! | 400 | 4000048 `AppTransactionIdNotSupported` | [`AppleNotFound::AppTransactionId`] |
//! | 401 | any or none | one more try with a new client token, then [`AppleApiError::Unauthorized`] |
//! | 429 | any or none | [`AppleApiError::RateLimited`] |
//! | 404 | 4040002, 4040004, 4040006: the "retryable" ones | two quick retries, then [`AppleApiError::Unexpected`] |
//! | 408, 5xx | 5000000, 5000001, any other or none | two quick retries, then [`AppleApiError::Unexpected`] |
//! | 404 | 4040001 `AccountNotFound`, 4040003 `AppNotFound`, any other or none | [`AppleApiError::Unexpected`] |
//! | anything else | | [`AppleApiError::Unexpected`] |
//!
//! The success of a call that changes something is any 2xx: Apple documents 200 and 202, without a body.
//!
//! For a test notification two more 404s are answers: 4040007 `ServerNotificationUrlNotFound` (Apple has no URL for the
//! app's notifications) and 4040008 `TestNotificationNotFound` (not sent yet). For the history of notifications a 404 that is not
//! a "retryable" one means that Apple knows no such app.
//!
//! A code counts only under its own status: its first three digits are the status it was sent with.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::ACCEPT;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use url::Url;

use super::account::{AppleCredentials, AppleEnvironment, ClientTokenSource};
use super::payload::{
    AppTransactionInfoResponse, AppleErrorBody, CheckTestNotificationResponse,
    NotificationHistoryResponse, OrderLookupResponse, RefundHistoryResponse,
    SendTestNotificationResponse, SubscriptionStatusesResponse, TransactionInfoResponse,
};
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

/// Assumed when Apple does not say when to come back.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_mins(1);

/// How far back it is looked whether Apple has sent any notification. Apple keeps those of the sandbox for 30 days.
const RECENT_NOTIFICATION_HISTORY: Duration = Duration::from_hours(29 * 24);

/// The App Store Server API, in both environments.
#[derive(Clone)]
pub struct AppStoreClient {
    api: StoreApi<ClientTokenSource>,
    production_url: Url,
    sandbox_url: Url,
    clock: Clock,
    in_flight: SingleFlight<CallKey, Result<Arc<str>, TransactionLookupError>>,
}

/// Which notifications of the history are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotificationHistoryQuery {
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
    /// Those that Apple has not delivered.
    pub(super) is_only_failures: bool,
}

/// Why there is no transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionLookupError {
    /// Apple answered that there is none.
    #[error("{0}")]
    NotFound(#[from] AppleNotFound),
    /// Apple answered neither yes nor no.
    #[error("{0}")]
    Api(#[from] AppleApiError),
}

/// In which way Apple does not know the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppleNotFound {
    /// It is not in this environment. It may be in the other one.
    #[error("no such transaction")]
    Unknown,
    /// The id is malformed, so it is in no environment.
    #[error("not a transaction id")]
    MalformedId,
    /// The id is of an app transaction: a download of the app, not a purchase in it.
    #[error("the id of an app transaction")]
    AppTransactionId,
}

/// Why Apple's API answered neither yes nor no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppleApiError {
    /// The tenant's key is refused, or this machine's clock is wrong. In production also the answer for an app that was
    /// never released, whatever its key.
    #[error("Apple refused the client token: status {status}")]
    Unauthorized {
        /// The HTTP status.
        status: u16,
    },
    /// The app's hourly limit is used up.
    #[error("Apple's limit is used up: status 429")]
    RateLimited {
        /// How long to wait: one second to one day.
        retry_after: Duration,
    },
    /// Any other answer, after retries where those could help.
    #[error("Apple answered with status {status}, {}: {}", .code.map_or_else(|| "no code".to_owned(), |code| code.to_string()), .message.as_deref().unwrap_or("no message"))]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// Apple's `errorCode`. `None` when the body has none.
        code: Option<i64>,
        /// Apple's `errorMessage`, for the log.
        message: Option<String>,
        /// How long to wait, when the response has `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// A response of status 200 that cannot be parsed.
    #[error("Apple's answer cannot be read: {0}")]
    Unreadable(String),
    /// The request failed before there was a response.
    #[error("Apple gave no answer: {0}")]
    NoResponse(#[from] UpstreamError),
    /// Too many calls of the tenant were running.
    #[error("{MAX_CALLS_PER_TENANT} questions of this tenant are waiting for Apple already")]
    TooManyInFlight,
}

impl From<TooManyCallsError> for AppleApiError {
    fn from(TooManyCallsError: TooManyCallsError) -> Self {
        Self::TooManyInFlight
    }
}

impl BearerTokens for ClientTokenSource {
    type Credentials = AppleCredentials;
    type Error = AppleApiError;

    async fn get_token(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
    ) -> Result<AccessToken, AppleApiError> {
        Ok(ClientTokenSource::get_token(self, tenant, credentials))
    }

    fn evict_token(&self, tenant: &TenantId, credentials: &AppleCredentials, token: &AccessToken) {
        ClientTokenSource::evict_token(self, tenant, credentials, token);
    }
}

impl AppStoreClient {
    /// The URLs are the part before `/inApps`.
    pub fn new(upstream: Upstream, production_url: Url, sandbox_url: Url, clock: Clock) -> Self {
        Self {
            api: StoreApi::new(upstream, ClientTokenSource::new(clock.clone())),
            production_url,
            sandbox_url,
            clock,
            in_flight: SingleFlight::default(),
        }
    }

    /// Get Transaction Info: returns `signedTransactionInfo`, whose signature is not checked here.
    pub async fn get_transaction_info(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        transaction_id: &str,
    ) -> Result<String, TransactionLookupError> {
        let body = self
            .look_up(
                tenant,
                credentials,
                endpoint_url(self.base_url(environment), "transactions", transaction_id),
            )
            .await?;
        Ok(parse_transaction_info(body.as_bytes())?)
    }

    /// Get App Transaction Info, by the id of any transaction of the customer or of the app transaction: returns
    /// `signedAppTransactionInfo`, whose signature is not checked here.
    pub(super) async fn get_app_transaction_info(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        transaction_id: &str,
    ) -> Result<String, TransactionLookupError> {
        let base = self.base_url(environment);
        let url = endpoint_url(base, "transactions/appTransactions", transaction_id);
        let body = self.look_up(tenant, credentials, url).await?;
        let info: AppTransactionInfoResponse = parse_body(&body)?;
        Ok(info.signed_app_transaction_info)
    }

    /// Get All Subscription Statuses, by the id of any transaction of the subscription. The signatures in the answer are not
    /// checked here.
    pub(super) async fn get_subscription_statuses(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        transaction_id: &str,
    ) -> Result<SubscriptionStatusesResponse, TransactionLookupError> {
        let body = self
            .look_up(
                tenant,
                credentials,
                endpoint_url(self.base_url(environment), "subscriptions", transaction_id),
            )
            .await?;
        Ok(parse_body(&body)?)
    }

    /// Look Up Order ID. The signatures in the answer are not checked here.
    pub(super) async fn look_up_order(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        order_id: &str,
    ) -> Result<OrderLookupResponse, TransactionLookupError> {
        let url = endpoint_url(self.base_url(environment), "lookup", order_id);
        let body = self.look_up(tenant, credentials, url).await?;
        Ok(parse_body(&body)?)
    }

    /// Get Refund History: one page, by the id of any transaction of the customer. `revision` is that of the page before it.
    /// The signatures in the answer are not checked here.
    pub(super) async fn get_refund_history(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        transaction_id: &str,
        revision: Option<&str>,
    ) -> Result<RefundHistoryResponse, TransactionLookupError> {
        let base = self.base_url(environment);
        let mut url = versioned_endpoint_url(base, "v2/refund/lookup", transaction_id);
        if let (Some(url), Some(revision)) = (&mut url, revision) {
            url.query_pairs_mut().append_pair("revision", revision);
        }
        let body = self.look_up(tenant, credentials, url).await?;
        Ok(parse_body(&body)?)
    }

    /// Send Consumption Information, version 2: the newest answer counts.
    pub(super) async fn send_consumption(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
        transaction_id: &str,
        body: &Value,
    ) -> Result<(), TransactionLookupError> {
        let base = self.base_url(environment);
        let url = versioned_endpoint_url(base, "v2/transactions/consumption", transaction_id);
        self.send_change(tenant, credentials, Method::PUT, url, Some(body))
            .await
    }

    pub(super) async fn finish_transaction(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
        transaction_id: &str,
    ) -> Result<(), TransactionLookupError> {
        let below = endpoint_url(self.base_url(environment), "transactions", transaction_id);
        let url = below.and_then(|below| Url::parse(&format!("{below}/finish")).ok());
        self.send_change(tenant, credentials, Method::POST, url, None)
            .await
    }

    /// Set App Account Token, of a whole purchase.
    pub(super) async fn set_app_account_token(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
        original_transaction_id: &str,
        app_account_token: &str,
    ) -> Result<(), TransactionLookupError> {
        let base = self.base_url(environment);
        let below = endpoint_url(base, "transactions", original_transaction_id);
        let url = below.and_then(|below| Url::parse(&format!("{below}/appAccountToken")).ok());
        let body = json!({ "appAccountToken": app_account_token });
        self.send_change(tenant, credentials, Method::PUT, url, Some(&body))
            .await
    }

    /// A call that changes something and whose success has no body. Without a URL the id is malformed.
    async fn send_change(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        method: Method,
        url: Option<Url>,
        body: Option<&Value>,
    ) -> Result<(), TransactionLookupError> {
        let url = url.ok_or(AppleNotFound::MalformedId)?;
        let build = |client: &reqwest::Client| {
            let request = client
                .request(method.clone(), url.clone())
                .header(ACCEPT, "application/json");
            match body {
                Some(body) => request.json(body),
                None => request,
            }
        };
        let answer = self
            .api
            .send_request(tenant, credentials, build, classify_response)
            .await?;
        if answer.status.is_success() {
            return Ok(());
        }
        Err(interpret_failure(&answer, self.clock.now()))
    }

    /// The body of a success. Identical calls that run at the same time are sent once. Without a URL the id is malformed.
    async fn look_up(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        url: Option<Url>,
    ) -> Result<Arc<str>, TransactionLookupError> {
        let url = url.ok_or(AppleNotFound::MalformedId)?;
        let key = call_key(tenant, credentials.identity_digest(), &url);
        let (store, tenant, credentials) = (self.clone(), tenant.clone(), credentials.clone());
        self.in_flight
            .share_call(key, move || async move {
                let answer = store
                    .send_request(&tenant, &credentials, Method::GET, url)
                    .await?;
                interpret_response(&answer, store.clock.now())
            })
            .await
    }

    /// Request a Test Notification: returns the token for [`Self::get_test_notification_status`]. `None` when Apple has
    /// no URL for the app's notifications.
    pub async fn request_test_notification(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
    ) -> Result<Option<String>, AppleApiError> {
        let url = endpoint_url(self.base_url(environment), "notifications", "test")
            .ok_or_else(unusable_test_token)?;
        let answer = self
            .send_request(tenant, credentials, Method::POST, url)
            .await?;
        let found = self.parse_response::<SendTestNotificationResponse>(&answer, 4_040_007)?;
        Ok(found.map(|found| found.test_notification_token))
    }

    /// Get Test Notification Status. `None` when Apple has not sent it yet.
    pub async fn get_test_notification_status(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
        token: &str,
    ) -> Result<Option<CheckTestNotificationResponse>, AppleApiError> {
        let below = endpoint_url(self.base_url(environment), "notifications/test", token);
        let url = below.ok_or_else(unusable_test_token)?;
        let answer = self
            .send_request(tenant, credentials, Method::GET, url)
            .await?;
        self.parse_response(&answer, 4_040_008)
    }

    /// Get Notification History: whether Apple has sent notifications about the app in the last weeks. `None`: Apple knows no
    /// such app.
    pub(super) async fn has_notifications(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
    ) -> Result<Option<bool>, AppleApiError> {
        let until = self.clock.now();
        let query = NotificationHistoryQuery {
            since: until.minus(RECENT_NOTIFICATION_HISTORY),
            until,
            is_only_failures: false,
        };
        let page = self
            .get_notification_history(tenant, credentials, environment, query, None)
            .await?;
        Ok(page.map(|page| !page.notification_history.is_empty()))
    }

    /// Get Notification History: one page. `page` is the `paginationToken` of the page before it.
    /// `None`: Apple knows no such app.
    pub(super) async fn get_notification_history(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
        query: NotificationHistoryQuery,
        page: Option<&str>,
    ) -> Result<Option<NotificationHistoryResponse>, AppleApiError> {
        let mut url = endpoint_url(self.base_url(environment), "notifications", "history")
            .ok_or_else(unusable_test_token)?;
        if let Some(page) = page {
            url.query_pairs_mut().append_pair("paginationToken", page);
        }
        let mut body = json!({
            "startDate": query.since.as_millis(),
            "endDate": query.until.as_millis(),
        });
        if query.is_only_failures {
            body["onlyFailures"] = json!(true);
        }
        let build = |client: &reqwest::Client| {
            client
                .post(url.clone())
                .header(ACCEPT, "application/json")
                .json(&body)
        };
        let answer = self
            .api
            .send_request(tenant, credentials, build, classify_response)
            .await?;
        match answer.status.as_u16() {
            200 => serde_json::from_slice(&answer.body)
                .map(Some)
                .map_err(|error| AppleApiError::Unreadable(describe_json_error(&error))),
            404 if classify_response(&answer) == RetryDecision::Final => Ok(None),
            _ => Err(to_api_error(&answer, self.clock.now())),
        }
    }

    fn base_url(&self, environment: AppleEnvironment) -> &Url {
        match environment {
            AppleEnvironment::Production => &self.production_url,
            AppleEnvironment::Sandbox => &self.sandbox_url,
        }
    }

    /// Parses a response; `None` when it is a 404 with the code `none`.
    fn parse_response<T: DeserializeOwned>(
        &self,
        answer: &UpstreamResponse,
        none: i64,
    ) -> Result<Option<T>, AppleApiError> {
        match (answer.status.as_u16(), parse_error_body(answer).error_code) {
            (200, _) => serde_json::from_slice(&answer.body)
                .map(Some)
                .map_err(|error| AppleApiError::Unreadable(describe_json_error(&error))),
            (404, Some(code)) if code == none => Ok(None),
            _ => Err(to_api_error(answer, self.clock.now())),
        }
    }

    async fn send_request(
        &self,
        tenant: &TenantId,
        credentials: &AppleCredentials,
        method: Method,
        url: Url,
    ) -> Result<UpstreamResponse, AppleApiError> {
        let build = |client: &reqwest::Client| {
            client
                .request(method.clone(), url.clone())
                .header(ACCEPT, "application/json")
        };
        self.api
            .send_request(tenant, credentials, build, classify_response)
            .await
    }
}

/// The token that Apple returned cannot be a path segment.
fn unusable_test_token() -> AppleApiError {
    AppleApiError::Unreadable("its token cannot be part of an address".to_owned())
}

/// The URL of a call. `None` when the id cannot be one path segment: a URL has no encoding for a segment of one or two
/// dots.
fn endpoint_url(base: &Url, what: &str, id: &str) -> Option<Url> {
    versioned_endpoint_url(base, &format!("v1/{what}"), id)
}

/// The same, with the version of the endpoint in `what`.
fn versioned_endpoint_url(base: &Url, what: &str, id: &str) -> Option<Url> {
    let base = base.as_str().trim_end_matches('/');
    let mut text = format!("{base}/inApps/{what}/");
    push_path_segment(&mut text, id)?;
    Url::parse(&text).ok()
}

fn classify_response(answer: &UpstreamResponse) -> RetryDecision {
    match (answer.status.as_u16(), parse_error_body(answer).error_code) {
        (408 | 500..600, _) | (404, Some(4_040_002 | 4_040_004 | 4_040_006)) => {
            RetryDecision::Transient
        }
        _ => RetryDecision::Final,
    }
}

/// The body of a success, or why there is none: the table at the top of this file.
fn interpret_response(
    answer: &UpstreamResponse,
    now: Timestamp,
) -> Result<Arc<str>, TransactionLookupError> {
    let status = answer.status.as_u16();
    if status == 200 {
        let body = std::str::from_utf8(&answer.body)
            .map_err(|_| AppleApiError::Unreadable("it is not UTF-8".to_owned()))?;
        return Ok(body.into());
    }
    Err(interpret_failure(answer, now))
}

/// Why a call about a transaction had no success: the table at the top of this file.
fn interpret_failure(answer: &UpstreamResponse, now: Timestamp) -> TransactionLookupError {
    let status = answer.status.as_u16();
    match (status, parse_error_body(answer).error_code) {
        (404, Some(4_040_005 | 4_040_010)) => AppleNotFound::Unknown.into(),
        (400, Some(4_000_006 | 4_000_008)) => AppleNotFound::MalformedId.into(),
        (400, Some(4_000_048)) => AppleNotFound::AppTransactionId.into(),
        _ => to_api_error(answer, now).into(),
    }
}

/// The error of a response that is neither a success nor a "not found".
fn to_api_error(answer: &UpstreamResponse, now: Timestamp) -> AppleApiError {
    let (status, error) = (answer.status.as_u16(), parse_error_body(answer));
    let wait = parse_retry_after(&answer.headers, now);
    match status {
        401 => AppleApiError::Unauthorized { status },
        429 => AppleApiError::RateLimited {
            retry_after: wait.unwrap_or(DEFAULT_RETRY_AFTER),
        },
        _ => AppleApiError::Unexpected {
            status,
            code: error.error_code,
            message: error.error_message,
            retry_after: wait,
        },
    }
}

/// Apple's error body, empty when the body is another one.
fn parse_error_body(answer: &UpstreamResponse) -> AppleErrorBody {
    serde_json::from_slice(&answer.body).unwrap_or_default()
}

fn parse_body<T: DeserializeOwned>(body: &str) -> Result<T, AppleApiError> {
    serde_json::from_str(body)
        .map_err(|error| AppleApiError::Unreadable(describe_json_error(&error)))
}

fn parse_transaction_info(body: &[u8]) -> Result<String, AppleApiError> {
    let info: TransactionInfoResponse = serde_json::from_slice(body)
        .map_err(|error| AppleApiError::Unreadable(describe_json_error(&error)))?;
    Ok(info.signed_transaction_info)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::extract::State;
    use axum::http::header::RETRY_AFTER;
    use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
    use axum::routing::get;
    use proptest::prelude::*;
    use serde_json::json;
    use tokio::sync::Barrier;

    use super::super::account::tests::test_credentials;
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

    fn refusal(status: u16, code: i64) -> UpstreamResponse {
        let body = json!({ "errorCode": code, "errorMessage": "A sentence." });
        answer(status, &body.to_string())
    }

    fn unexpected(status: u16, code: Option<i64>) -> TransactionLookupError {
        AppleApiError::Unexpected {
            status,
            code,
            message: code.map(|_| "A sentence.".to_owned()),
            retry_after: None,
        }
        .into()
    }

    #[test]
    fn each_error_code_has_its_meaning() {
        let unauthorized =
            TransactionLookupError::from(AppleApiError::Unauthorized { status: 401 });
        let limited = TransactionLookupError::from(AppleApiError::RateLimited {
            retry_after: Duration::from_mins(1),
        });
        for (status, code, expected) in [
            (404, 4_040_010, AppleNotFound::Unknown.into()),
            (404, 4_040_005, AppleNotFound::Unknown.into()),
            (400, 4_000_006, AppleNotFound::MalformedId.into()),
            (400, 4_000_008, AppleNotFound::MalformedId.into()),
            (400, 4_000_048, AppleNotFound::AppTransactionId.into()),
            (401, 4_010_000, unauthorized.clone()),
            (429, 4_290_000, limited.clone()),
            (429, 4_290_001, limited.clone()),
        ] {
            let found = interpret_response(&refusal(status, code), now());
            assert_eq!(found, Err(expected), "{status} {code}");
        }
        for body in ["", "Unauthenticated", "<html>", "{}"] {
            let found = interpret_response(&answer(401, body), now());
            assert_eq!(found, Err(unauthorized.clone()), "{body}");
            let found = interpret_response(&answer(429, body), now());
            assert_eq!(found, Err(limited.clone()), "{body}");
        }
        for (status, code) in [
            (400, 4_000_000),
            // The bundle id is wrong, not the transaction.
            (400, 4_000_002),
            (403, 4_030_000),
            (404, 4_040_001),
            (404, 4_040_002),
            (404, 4_040_003),
            (404, 4_040_004),
            (404, 4_040_006),
            (404, 4_040_019),
            (404, 4_049_999),
            (409, 4_090_000),
            (500, 5_000_000),
            (500, 5_000_001),
            (503, 5_030_000),
            // A code under another status than its own.
            (400, 4_040_010),
            (500, 4_040_010),
            (404, 4_000_006),
            (404, 4_010_000),
        ] {
            let found = interpret_response(&refusal(status, code), now());
            assert_eq!(found, Err(unexpected(status, Some(code))));
        }
    }

    #[test]
    fn a_response_of_a_gateway_is_never_a_not_found() {
        for status in [204, 302, 400, 403, 404, 500, 502] {
            for body in [
                "<html>Not Found</html>",
                "",
                "{}",
                "[]",
                "{\"message\":\"no route\"}",
                "{\"errorCode\":\"4040010\"}",
                "{\"errorCode\":4040010.5}",
                "{\"error\":{\"errorCode\":4040010}}",
            ] {
                let found = interpret_response(&answer(status, body), now());
                assert_eq!(found, Err(unexpected(status, None)), "{status} {body}");
            }
        }
    }

    #[test]
    fn only_transient_responses_are_retried() {
        for (status, code, transient) in [
            (200, 0, false),
            (400, 4_000_006, false),
            (401, 4_010_000, false),
            (403, 4_030_000, false),
            (404, 0, false),
            (404, 4_040_001, false),
            (404, 4_040_002, true),
            (404, 4_040_003, false),
            (404, 4_040_004, true),
            (404, 4_040_005, false),
            (404, 4_040_006, true),
            (404, 4_040_010, false),
            (408, 0, true),
            // The limit is hourly: a quick retry would only use up more of it.
            (429, 4_290_000, false),
            (500, 5_000_000, true),
            (500, 5_000_001, true),
            (503, 0, true),
        ] {
            let verdict = classify_response(&refusal(status, code));
            assert_eq!(
                verdict == RetryDecision::Transient,
                transient,
                "{status} {code}"
            );
        }
        assert_eq!(
            classify_response(&answer(502, "<html>")),
            RetryDecision::Transient
        );
    }

    #[test]
    fn every_form_of_retry_after_is_read() {
        let in_millis = |wait: i64| (now().as_millis() + wait).to_string();
        for (text, millis) in [
            (in_millis(29_000), Some(29_000)),
            (in_millis(1_234), Some(1_234)),
            (in_millis(3), Some(1_000)),
            (in_millis(-60_000), Some(1_000)),
            (in_millis(1_000_000_000_000), Some(86_400_000)),
            ("1000000000".to_owned(), Some(1_000)),
            ("999999999".to_owned(), Some(86_400_000)),
            ("30".to_owned(), Some(30_000)),
            (" 30 ".to_owned(), Some(30_000)),
            ("0".to_owned(), Some(1_000)),
            ("Fri, 10 Apr 2026 14:22:40 GMT".to_owned(), Some(29_500)),
            ("Fri, 10 Apr 2026 14:00:00 GMT".to_owned(), Some(1_000)),
            ("soon".to_owned(), None),
            ("-5".to_owned(), None),
            ("1.5".to_owned(), None),
            ("9".repeat(40), None),
            (String::new(), None),
        ] {
            let mut refused = refusal(429, 4_290_000);
            let value = HeaderValue::from_str(&text).expect("a value");
            refused.headers.insert(RETRY_AFTER, value);
            let wait = millis.map(Duration::from_millis);
            assert_eq!(parse_retry_after(&refused.headers, now()), wait, "{text}");
            let limited = AppleApiError::RateLimited {
                retry_after: wait.unwrap_or(DEFAULT_RETRY_AFTER),
            };
            assert_eq!(
                interpret_response(&refused, now()),
                Err(limited.into()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_success_without_a_transaction_is_unreadable() {
        let body = r#"{"signedTransactionInfo":"a.b.c","new":1}"#;
        assert_eq!(
            interpret_response(&answer(200, body), now()).as_deref(),
            Ok(body)
        );
        assert_eq!(
            parse_transaction_info(body.as_bytes()).as_deref(),
            Ok("a.b.c")
        );
        for bad in [
            "",
            "<html>",
            "[]",
            "null",
            "{}",
            r#"{"signedTransactionInfo":null}"#,
            r#"{"signedTransactionInfo":7}"#,
            r#"{"errorCode":4040010,"errorMessage":"Transaction id not found."}"#,
        ] {
            let found = parse_transaction_info(bad.as_bytes());
            assert!(matches!(found, Err(AppleApiError::Unreadable(_))), "{bad}");
        }
    }

    #[test]
    fn an_id_is_one_path_segment_of_the_url() {
        let apple = Url::parse("https://api.storekit.apple.com").expect("a URL");
        let under = Url::parse("http://127.0.0.1:9/apple/sandbox/").expect("a URL");
        let text = |base, id| endpoint_url(base, "transactions", id).map(String::from);
        assert_eq!(
            text(&apple, "2000000123456789").as_deref(),
            Some("https://api.storekit.apple.com/inApps/v1/transactions/2000000123456789")
        );
        assert_eq!(
            text(&under, "a/b?c#d%2e\n\\é").as_deref(),
            Some(
                "http://127.0.0.1:9/apple/sandbox/inApps/v1/transactions/a%2Fb%3Fc%23d%252e%0A%5C%C3%A9"
            )
        );
        for dots in ["", ".", ".."] {
            assert_eq!(text(&apple, dots), None);
        }
    }

    /// An Apple that counts: questions it answered, and the client tokens it saw. It plays its script of answers
    /// first, last one first.
    struct AppStoreStub {
        store: AppStoreClient,
        clock: Clock,
        tenant: TenantId,
        credentials: Arc<AppleCredentials>,
        counts: Arc<AppStoreStubState>,
    }

    #[derive(Default)]
    struct AppStoreStubState {
        asked: AtomicU32,
        bearers: Mutex<Vec<String>>,
        paths: Mutex<Vec<String>>,
        script: Mutex<Vec<(u16, i64)>>,
        gate: Option<Barrier>,
    }

    async fn start_stub(counts: AppStoreStubState) -> AppStoreStub {
        let counts = Arc::new(counts);
        let answer = |State(counts): State<Arc<AppStoreStubState>>,
                      uri: Uri,
                      headers: HeaderMap| async move {
            counts.asked.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = &counts.gate {
                gate.wait().await;
            }
            let bearer = headers["authorization"].to_str().expect("text").to_owned();
            let mut bearers = counts.bearers.lock().expect("not poisoned");
            if !bearers.contains(&bearer) {
                bearers.push(bearer);
            }
            let path = uri.path().to_owned();
            counts.paths.lock().expect("not poisoned").push(path);
            let scripted = counts.script.lock().expect("not poisoned").pop();
            let (status, code) = scripted.unwrap_or((200, 0));
            let body = axum::Json(json!({ "errorCode": code, "signedTransactionInfo": "a.b.c" }));
            (StatusCode::from_u16(status).expect("a status"), body)
        };
        let app = axum::Router::new()
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
        let (production, sandbox) = (base.join("real/"), base.join("trial"));
        let clock = Clock::fixed(now());
        AppStoreStub {
            store: AppStoreClient::new(
                Upstream::new(client, Duration::from_secs(5)),
                production.expect("a URL"),
                sandbox.expect("a URL"),
                clock.clone(),
            ),
            clock,
            tenant: TenantId::mint(now()),
            credentials: Arc::new(test_credentials()),
            counts,
        }
    }

    impl AppStoreStub {
        async fn ask(&self, id: &str) -> Result<String, TransactionLookupError> {
            self.ask_in(AppleEnvironment::Production, id).await
        }

        async fn ask_in(
            &self,
            place: AppleEnvironment,
            id: &str,
        ) -> Result<String, TransactionLookupError> {
            let (tenant, credentials) = (&self.tenant, &self.credentials);
            self.store
                .get_transaction_info(tenant, credentials, place, id)
                .await
        }

        fn plays(&self, script: &[(u16, i64)]) {
            let script = script.iter().rev().copied().collect();
            *self.counts.script.lock().expect("not poisoned") = script;
        }

        /// How many different client tokens came with how many questions.
        fn tokens_and_asked(&self) -> (usize, u32) {
            let bearers = self.counts.bearers.lock().expect("not poisoned");
            (bearers.len(), self.counts.asked.load(Ordering::SeqCst))
        }
    }

    #[tokio::test]
    async fn each_environment_has_its_url_and_both_share_a_token() {
        let apple = start_stub(AppStoreStubState::default()).await;
        let real = apple.ask_in(AppleEnvironment::Production, "1").await;
        let trial = apple.ask_in(AppleEnvironment::Sandbox, "1").await;
        assert_eq!(
            (real.as_deref(), trial.as_deref()),
            (Ok("a.b.c"), Ok("a.b.c"))
        );
        assert_eq!(
            *apple.counts.paths.lock().expect("not poisoned"),
            [
                "/real/inApps/v1/transactions/1",
                "/trial/inApps/v1/transactions/1"
            ]
        );
        assert_eq!(apple.tokens_and_asked(), (1, 2));
        apple.clock.advance(Duration::from_mins(18));
        apple.ask("1").await.expect("known");
        assert_eq!(apple.tokens_and_asked(), (2, 3));
        let nothing = apple.ask("..").await;
        assert_eq!(nothing, Err(AppleNotFound::MalformedId.into()));
        assert_eq!(
            apple.tokens_and_asked(),
            (2, 3),
            "the App Store was not asked"
        );
    }

    #[tokio::test]
    async fn a_refused_token_is_replaced_once() {
        let apple = start_stub(AppStoreStubState::default()).await;
        apple.ask("1").await.expect("known");
        apple.plays(&[(401, 0)]);
        apple.ask("1").await.expect("known with the second token");
        assert_eq!(apple.tokens_and_asked(), (2, 3));
        apple.plays(&[(401, 0), (401, 0), (200, 0)]);
        let refused = apple.ask("1").await;
        assert_eq!(
            refused,
            Err(AppleApiError::Unauthorized { status: 401 }.into())
        );
        assert_eq!(apple.tokens_and_asked(), (3, 5), "and not a third time");
    }

    #[tokio::test]
    async fn transient_responses_are_retried_twice() {
        let apple = start_stub(AppStoreStubState::default()).await;
        apple.plays(&[(500, 5_000_001), (404, 4_040_002)]);
        apple.ask("1").await.expect("known at the third try");
        assert_eq!(apple.tokens_and_asked(), (1, 3));
        apple.plays(&[(404, 4_040_006); 3]);
        let failed = apple.ask("1").await;
        assert_eq!(
            failed,
            Err(AppleApiError::Unexpected {
                status: 404,
                code: Some(4_040_006),
                message: None,
                retry_after: None
            }
            .into())
        );
        apple.plays(&[(429, 4_290_000)]);
        let limited = apple.ask("1").await;
        assert!(
            matches!(
                limited,
                Err(TransactionLookupError::Api(
                    AppleApiError::RateLimited { .. }
                ))
            ),
            "{limited:?}"
        );
        apple.plays(&[(404, 4_040_010)]);
        let absent = apple.ask("1").await;
        assert_eq!(absent, Err(AppleNotFound::Unknown.into()));
        assert_eq!(
            apple.tokens_and_asked(),
            (1, 8),
            "neither a limit nor a no is tried again"
        );
    }

    #[tokio::test]
    async fn identical_calls_are_sent_once_and_others_are_not_shared() {
        let apple = start_stub(AppStoreStubState {
            gate: Some(Barrier::new(3)),
            ..AppStoreStubState::default()
        })
        .await;
        // The gate opens only when three calls have come: six questions, of three kinds.
        let all = tokio::join!(
            apple.ask("1"),
            apple.ask("1"),
            apple.ask("2"),
            apple.ask("2"),
            apple.ask_in(AppleEnvironment::Sandbox, "1"),
            apple.ask_in(AppleEnvironment::Sandbox, "1"),
        );
        let all = [all.0, all.1, all.2, all.3, all.4, all.5];
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        assert_eq!(apple.tokens_and_asked(), (1, 3));
    }

    #[tokio::test]
    async fn an_unreachable_api_is_not_a_not_found() {
        let apple = start_stub(AppStoreStubState::default()).await;
        let nowhere = Url::parse("http://127.0.0.1:1/").expect("a URL");
        let upstream = apple.store.api.upstream.clone();
        let store = AppStoreClient::new(upstream, nowhere.clone(), nowhere, apple.clock.clone());
        let asked = store
            .get_transaction_info(
                &apple.tenant,
                &apple.credentials,
                AppleEnvironment::Production,
                "1",
            )
            .await;
        assert!(
            matches!(
                asked,
                Err(TransactionLookupError::Api(AppleApiError::NoResponse(_)))
            ),
            "{asked:?}"
        );
    }

    proptest! {
        #[test]
        fn no_id_changes_which_url_is_called(id in "(?s).{1,40}") {
            let base = Url::parse("https://store.example/base").expect("a URL");
            if let Some(url) = endpoint_url(&base, "transactions", &id) {
                prop_assert_eq!(url.host_str(), Some("store.example"));
                prop_assert_eq!(url.query(), None);
                prop_assert_eq!(url.fragment(), None);
                let parts: Vec<&str> = url.path_segments().expect("a path").collect();
                prop_assert_eq!(parts.len(), 5);
                prop_assert_eq!(&parts[..4], ["base", "inApps", "v1", "transactions"]);
                prop_assert!(!parts[4].is_empty());
            }
        }

        #[test]
        fn no_response_panics_and_only_200_is_a_success(status in 100_u16..600, body: Vec<u8>) {
            let mut reply = answer(200, "");
            reply.status = StatusCode::from_u16(status).expect("a status");
            reply.body = body;
            prop_assert!(status == 200 || interpret_response(&reply, now()).is_err());
        }
    }
}
