//! The use case: does a notification of Apple's arrive here?
//!
//! Apple is asked to send one, and then how that went, until it knows or patience ends. What Apple calls a success is an
//! answer between 200 and 206 from whatever server its address leads to.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize as _;
use tokio::time::{Instant, sleep};

use super::account::{AppleCredentials, AppleEnvironment};
use super::api::{AppStoreClient, AppleApiError};
use super::payload::{CheckTestNotificationResponse, Millis, NotificationPayload};
use crate::base::backoff::Backoff;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;

/// The first pause between two questions; each further one is twice as long.
const INITIAL_POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The longest: Apple allows one question a second, counted over an hour.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// What is kept when Apple knows no address; Apple's own words are kept as they are.
pub const RESULT_NO_NOTIFICATION_URL: &str = "NO_ADDRESS";
/// What is kept when somebody said yes to it and nothing of it is stored here.
pub const RESULT_RECEIVED_ELSEWHERE: &str = "ELSEWHERE";

/// How sending it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestNotificationOutcome {
    /// Apple's id of the notification. `None` where what Apple sent cannot be read.
    pub notification_uuid: Option<String>,
    /// When it was sent.
    pub attempted_at: Option<Timestamp>,
    /// Apple's word for how it went: `SUCCESS`, `TIMED_OUT`, `UNSUCCESSFUL_HTTP_RESPONSE_CODE` and the like.
    pub result: String,
}

impl TestNotificationOutcome {
    /// Whether whoever received it said yes.
    pub fn is_success(&self) -> bool {
        self.result == "SUCCESS"
    }
}

/// Why it is not known how sending it went.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TestNotificationError {
    /// The app has no address in this environment.
    #[error("Apple knows no address for the app's notifications")]
    NoNotificationUrl,
    /// Apple did not say in time.
    #[error("Apple did not say within {0:?} how sending it went")]
    Timeout(Duration),
    /// Apple gave no answer that says anything.
    #[error("{0}")]
    Api(#[from] AppleApiError),
}

/// Has Apple send a test notification and waits, for `patience` at most, until Apple says how that went.
pub async fn request_test_notification(
    app_store: &AppStoreClient,
    tenant: &TenantId,
    credentials: &Arc<AppleCredentials>,
    environment: AppleEnvironment,
    patience: Duration,
) -> Result<TestNotificationOutcome, TestNotificationError> {
    let end = Instant::now() + patience;
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
            return Err(TestNotificationError::Timeout(patience));
        }
        sleep(delay).await;
    }
}

/// The last attempt, once there was one.
fn last_attempt_outcome(status: CheckTestNotificationResponse) -> Option<TestNotificationOutcome> {
    let last = status.send_attempts.into_iter().next_back()?;
    Some(TestNotificationOutcome {
        notification_uuid: status
            .signed_payload
            .as_deref()
            .and_then(peek_notification_uuid),
        attempted_at: last.attempt_date.map(|Millis(moment)| moment),
        result: last.send_attempt_result?,
    })
}

/// The id of a notification, to look it up by. Nothing is checked, and nothing else is believed of it.
fn peek_notification_uuid(jws: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(jws.split('.').nth(1)?).ok()?;
    let payload: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    NotificationPayload::deserialize(&payload)
        .ok()?
        .notification_uuid
}

#[cfg(test)]
mod tests {
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
