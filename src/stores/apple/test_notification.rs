//! Has Apple send a test notification and waits for its outcome.
//!
//! Apple reports a success when any server at its notification URL answers with a status from 200 to 206; it need not be
//! this installation.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::account::{AppleCredentials, AppleEnvironment};
use super::api::{AppStoreClient, AppleApiError};
use super::payload::{CheckTestNotificationResponse, Millis};
use super::trust::peek_notification;
use crate::base::backoff::Backoff;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;

/// The first pause between two status requests; each further one is twice as long.
const INITIAL_POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The longest pause. Apple allows one request a second, counted over an hour.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The stored result when Apple has no URL for the app's notifications. Other results are Apple's own words.
pub const RESULT_NO_NOTIFICATION_URL: &str = "NO_ADDRESS";
/// The stored result when Apple reports a success but the notification did not arrive here.
pub const RESULT_RECEIVED_ELSEWHERE: &str = "ELSEWHERE";

/// The outcome of sending it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestNotificationOutcome {
    /// `None` when Apple's response has no readable `notificationUUID`.
    pub notification_uuid: Option<String>,
    /// When it was sent.
    pub attempted_at: Option<Timestamp>,
    /// Apple's word for the outcome: `SUCCESS`, `TIMED_OUT`, `UNSUCCESSFUL_HTTP_RESPONSE_CODE` and the like.
    pub result: String,
}

impl TestNotificationOutcome {
    /// Whether a server accepted it.
    pub fn is_success(&self) -> bool {
        self.result == "SUCCESS"
    }
}

/// Why the outcome is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TestNotificationError {
    /// App Store Connect has no URL for the app's notifications in this environment.
    #[error("Apple knows no address for the app's notifications")]
    NoNotificationUrl,
    /// Apple did not report the outcome in time.
    #[error("Apple did not say within {0:?} how sending it went")]
    Timeout(Duration),
    /// A call to Apple's API failed.
    #[error("{0}")]
    Api(#[from] AppleApiError),
}

/// Requests a test notification and waits, at most `timeout`, until Apple reports its outcome.
pub async fn request_test_notification(
    app_store: &AppStoreClient,
    tenant: &TenantId,
    credentials: &Arc<AppleCredentials>,
    environment: AppleEnvironment,
    timeout: Duration,
) -> Result<TestNotificationOutcome, TestNotificationError> {
    let end = Instant::now() + timeout;
    let token = app_store
        .request_test_notification(tenant, credentials, environment)
        .await?
        .ok_or(TestNotificationError::NoNotificationUrl)?;
    let mut backoff = Backoff::new(INITIAL_POLL_INTERVAL, MAX_POLL_INTERVAL);
    loop {
        let status = app_store
            .get_test_notification_status(tenant, credentials, environment, &token)
            .await?;
        if let Some(outcome) = status.and_then(last_attempt_outcome) {
            return Ok(outcome);
        }
        let delay = backoff.next_delay(fastrand::f64());
        if Instant::now() + delay > end {
            return Err(TestNotificationError::Timeout(timeout));
        }
        sleep(delay).await;
    }
}

/// The last attempt, if there was one.
fn last_attempt_outcome(status: CheckTestNotificationResponse) -> Option<TestNotificationOutcome> {
    let last = status.send_attempts.into_iter().next_back()?;
    Some(TestNotificationOutcome {
        notification_uuid: status
            .signed_payload
            .as_deref()
            .and_then(peek_notification)
            .and_then(|notification| notification.notification_uuid),
        attempted_at: last.attempt_date.map(|Millis(moment)| moment),
        result: last.send_attempt_result?,
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_attempt_counts_and_what_cannot_be_read_is_left_out() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"notificationUUID":"u"}"#);
        let read = |status: serde_json::Value| {
            last_attempt_outcome(serde_json::from_value(status).expect("readable"))
        };
        let attempts = json!([
            { "attemptDate": 1, "sendAttemptResult": "TIMED_OUT" },
            { "attemptDate": 2, "sendAttemptResult": "SUCCESS" },
        ]);
        let found =
            read(json!({ "signedPayload": format!("e30.{payload}.x"), "sendAttempts": attempts }));
        let found = found.expect("there was an attempt");
        assert!(found.is_success());
        assert_eq!(found.notification_uuid.as_deref(), Some("u"));
        assert_eq!(found.attempted_at, Some(Timestamp::from_millis(2)));
        let found =
            read(json!({ "signedPayload": "x", "sendAttempts": [{ "sendAttemptResult": "NEW" }] }));
        let found = found.expect("there was an attempt");
        assert_eq!(
            found,
            TestNotificationOutcome {
                notification_uuid: None,
                attempted_at: None,
                result: "NEW".to_owned()
            }
        );
        for nothing in [
            json!({}),
            json!({ "sendAttempts": null }),
            json!({ "sendAttempts": [] }),
            json!({ "sendAttempts": [{}] }),
        ] {
            assert_eq!(read(nothing), None);
        }
    }
}
