//! The parts of a store's verify and notification routes that are the same for both stores.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::FromRef;
use axum::http::request::Parts;
use serde_json::value::RawValue;

use crate::audit::{VerificationLog, VerificationOutcome};
use crate::base::id::{MalformedIdError, TenantId};
use crate::events::{AcceptedNotification, EventSource, NotificationMetrics};
use crate::http::json::{self, FromJson, JsonAnswer};
use crate::http::problem::Issue;
use crate::http::request_layer::RequestLogFields;
use crate::http::{ErrorCode, Problem, body};
use crate::tenants::Authenticator;

/// What a verify route needs; `V` asks the store.
pub(crate) struct VerifyState<V> {
    /// Shared, because each request has the whole state cloned several times.
    pub(crate) verifier: Arc<V>,
    pub(crate) authenticator: Authenticator,
    pub(crate) verification_log: VerificationLog,
}

impl<V> Clone for VerifyState<V> {
    fn clone(&self) -> Self {
        Self {
            verifier: self.verifier.clone(),
            authenticator: self.authenticator.clone(),
            verification_log: self.verification_log.clone(),
        }
    }
}

impl<V> FromRef<VerifyState<V>> for Authenticator {
    fn from_ref(state: &VerifyState<V>) -> Self {
        state.authenticator.clone()
    }
}

impl<V> VerifyState<V> {
    /// Runs `verification`, writes its outcome to the verification log and to the metrics, and makes the answer.
    /// `purchase_id` is hashed into the log.
    pub(crate) async fn answer<'a, T, E: Into<Problem>>(
        &self,
        store: EventSource,
        tenant: &TenantId,
        purchase_id: impl FnOnce() -> Cow<'a, str>,
        verification: impl Future<Output = Result<T, E>>,
    ) -> Result<JsonAnswer<T>, Problem> {
        let pending = self.verification_log.start_verification(store);
        let result = verification.await.map_err(Into::into);
        let outcome = match &result {
            Ok(_) => VerificationOutcome::Valid,
            Err(problem) => match problem.code {
                ErrorCode::Rejected(code) => VerificationOutcome::Invalid(code),
                code => VerificationOutcome::Error(code.as_str()),
            },
        };
        pending.record_outcome(tenant, purchase_id, outcome);
        result.map(JsonAnswer)
    }
}

/// What a notification route needs; `N` stores the notifications.
#[derive(Clone)]
pub(crate) struct NotificationState<N> {
    pub(crate) notifications: N,
    pub(crate) metrics: NotificationMetrics,
}

impl<N> NotificationState<N> {
    /// Counts the outcome of `acceptance` and makes the answer.
    pub(crate) async fn answer(
        &self,
        store: EventSource,
        acceptance: impl Future<Output = Result<AcceptedNotification, Problem>>,
    ) -> Result<Json<AcceptedNotification>, Problem> {
        let result = acceptance.await.map_err(with_logged_cause);
        let outcome = result.as_ref().map_err(Problem::status);
        self.metrics.count_notification(store, outcome);
        result.map(Json)
    }
}

/// A notification that is malformed is answered to a store, which shows the answer to no person: what is wrong with it has to
/// stand in the log. These texts hold nothing of the notification.
fn with_logged_cause(problem: Problem) -> Problem {
    if problem.status() != 400 || problem.cause.is_some() {
        return problem;
    }
    let mut text = problem.issues_text();
    if text.is_empty() {
        text.clone_from(&problem.message);
    }
    problem.with_cause(&text).with_cause_class(text)
}

/// The tenant in the path of a notification route.
pub(crate) fn parse_tenant_id(segment: &str) -> Result<TenantId, Problem> {
    segment.parse().map_err(|error: MalformedIdError| {
        Problem::invalid_request(&[Issue::new("tenantId", error.to_string())])
    })
}

/// Reads a notification of `tenant`: its fields, and the body as it was sent. The content type is not checked: the
/// sender is authenticated by other means, and a notification must not be lost because of a header. From here on the
/// request's log line names the tenant.
pub(crate) async fn read_notification<T: FromJson>(
    tenant: &TenantId,
    parts: Parts,
    body: Body,
) -> Result<(T, Box<RawValue>), Problem> {
    if let Some(fields) = parts.extensions.get::<RequestLogFields>() {
        fields.set_tenant(tenant.as_str());
    }
    let body = body::read_body(parts, body).await?;
    let notification = json::read_json(&body)?;
    // It was parsed just now, so this cannot fail.
    let raw = serde_json::from_slice(&body).map_err(Problem::internal_error)?;
    Ok((notification, raw))
}
