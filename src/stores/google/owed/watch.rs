//! The loop that tells tenants which purchases they must acknowledge soon.
//! Any number of processes can run one on the same database.
//!
//! A purchase is on the list since its notification was received. Google is asked about it a day before its deadline, or
//! after half of the time that it has; so that nothing is said about a purchase that was acknowledged in the meantime. While
//! Google gives no answer it is asked again, until the deadline.
//!
//! A purchase that Attesto is to acknowledge, and could not when it was verified, is acknowledged here.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::store::{self, ClaimLimits, OwedAcknowledgement};
use crate::base::backoff::{delay_after, spread};
use crate::base::clock::Timestamp;
use crate::crypto::token;
use crate::db::Error;
use crate::events::{
    EventEnvironment, EventRecorder, EventSource, EventType, NewEvent, RecordError,
};
use crate::stores::google::error_response::{GoogleActionError, GoogleVerifyError};
use crate::stores::google::request_body::{AcknowledgeRequest, GoogleVerifyRequest};
use crate::stores::google::response_body::VerifiedPurchase;
use crate::stores::google::verify::GoogleVerifier;
use crate::stores::shared::worker::ListWorker;
use crate::telemetry::metrics::{Counter, MetricsRegistry};

/// What one round asks about at once. Google's own limit for a tenant is far higher.
const CLAIM_LIMITS: ClaimLimits = ClaimLimits {
    purchases: 16,
    purchases_per_tenant: 4,
};
/// For one purchase: Google's answer and the event. Shorter than the lease.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause after the first failure. It doubles up to the maximum.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(15);
const MAX_RETRY_DELAY: Duration = Duration::from_mins(10);

/// Tells tenants which purchases they must acknowledge soon.
pub struct AcknowledgementWatch {
    google: GoogleVerifier,
    recorder: EventRecorder,
    told: Counter,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchRound {
    /// Purchases that were due and are asked about by no other process.
    pub claimed: usize,
    /// Of these, the ones of which the tenant was told.
    pub told: usize,
}

/// What became of one claimed purchase.
enum Check {
    Told,
    /// Nothing is owed, or not any more.
    Settled,
    /// Not known yet.
    Retry,
}

/// The `data` of an event `purchase.acknowledge_due`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DueData<'a> {
    package_name: &'a str,
    purchase_token: &'a str,
    product_id: Option<&'a str>,
    acknowledge_by: Timestamp,
}

impl ListWorker for AcknowledgementWatch {
    /// A licence tester's purchase is due 90 seconds after it was made.
    const POLL_INTERVAL: Duration = Duration::from_secs(15);
    const FAILURE_EVENT: &str = "acknowledgements_not_watched";

    async fn work(&mut self) -> Result<bool, Arc<Error>> {
        Ok(self.tick().await?.claimed > 0)
    }
}

impl AcknowledgementWatch {
    /// Asks through `google`, stores events with `recorder`, and counts them in `told`.
    pub(crate) fn new(google: &GoogleVerifier, recorder: EventRecorder, told: Counter) -> Self {
        Self {
            google: google.clone(),
            recorder,
            told,
        }
    }

    /// The counter of the purchases of which a tenant was told.
    pub(crate) fn register_counter(registry: &MetricsRegistry) -> Counter {
        registry.register_counter(
            "attesto_acknowledgements_due_total",
            "Purchases of Google Play of which the tenant was told that they must be acknowledged soon.",
        )
    }

    /// Does one round, of which nothing runs on when this returns.
    pub async fn tick(&self) -> Result<WatchRound, Error> {
        let database = &self.google.database;
        store::remove_old(database).await?;
        let claimed = store::claim_due(database, CLAIM_LIMITS).await?;
        let checks = join_all(claimed.iter().map(|owed| async move {
            let check = timeout(CHECK_TIMEOUT, self.check_purchase(owed)).await;
            check.unwrap_or(Check::Retry)
        }));
        let mut round = WatchRound {
            claimed: claimed.len(),
            told: 0,
        };
        for (owed, check) in claimed.iter().zip(checks.await) {
            match check {
                Check::Told => {
                    round.told += 1;
                    let delay = retry_delay(owed.attempt);
                    store::put_off(database, owed, owed.is_wanted.then_some(delay)).await?;
                }
                Check::Settled => store::remove(database, owed).await?,
                Check::Retry if owed.is_over => {
                    tracing::warn!(
                        tenantId = %owed.tenant,
                        acknowledgeBy = %owed.acknowledge_by,
                        attempts = owed.attempt,
                        hint = "Google gave no answer until the deadline: whether the purchase was acknowledged is not known",
                        "google_acknowledgement_not_checked"
                    );
                    store::put_off(database, owed, None).await?;
                }
                Check::Retry => {
                    let delay = retry_delay(owed.attempt);
                    store::put_off(database, owed, Some(delay)).await?;
                }
            }
        }
        Ok(round)
    }

    /// Acknowledges a purchase whose acknowledgement failed when it was verified.
    async fn acknowledge(
        &self,
        owed: &OwedAcknowledgement,
        request: &GoogleVerifyRequest,
    ) -> Check {
        let request = AcknowledgeRequest {
            purchase: request.clone(),
            external_account_ids: None,
        };
        match self
            .google
            .acknowledge_purchase(&owed.tenant, &request)
            .await
        {
            Ok(_) => {
                tracing::info!(tenantId = %owed.tenant, attempts = owed.attempt, "google_purchase_acknowledged");
                Check::Settled
            }
            Err(GoogleActionError::Verify(
                GoogleVerifyError::Api(_) | GoogleVerifyError::Credentials(_),
            )) => Check::Retry,
            // Google says no: nothing is owed.
            Err(_) => Check::Settled,
        }
    }

    /// Asks Google whether the acknowledgement is still owed, and tells the tenant if it is.
    async fn check_purchase(&self, owed: &OwedAcknowledgement) -> Check {
        let credentials = self.google.get_credentials(&owed.tenant).await;
        let package_name = match credentials {
            Ok(Some(credentials)) => credentials.package_name.clone(),
            // Without credentials the tenant cannot acknowledge it either.
            Ok(None) => return Check::Settled,
            Err(_) => return Check::Retry,
        };
        let request = GoogleVerifyRequest {
            package_name,
            purchase_token: owed.purchase_token.clone(),
            kind: Some(owed.kind),
            product_id: None,
            expected_app_user_id: None,
            for_app_user_id: None,
        };
        if owed.is_wanted {
            match self.acknowledge(owed, &request).await {
                Check::Retry if owed.is_near => {}
                check => return check,
            }
        }
        let verified = match self.google.verify_purchase(&owed.tenant, &request).await {
            Ok(verified) => verified,
            Err(
                GoogleVerifyError::NotFound {
                    may_be_early: false,
                    ..
                }
                | GoogleVerifyError::PackageNameMismatch { .. },
            ) => return Check::Settled,
            Err(_) => return Check::Retry,
        };
        // Which purchase of the chain is the current one is not known yet.
        if verified.state_error.is_some() {
            return Check::Retry;
        }
        let Some(acknowledge_by) = owed_until(&verified) else {
            return Check::Settled;
        };
        let event = due_event(owed, &request, verified, acknowledge_by);
        match self.recorder.record_event(&event).await {
            Ok(stored) if stored.is_new => {
                self.told.inc();
                tracing::warn!(
                    tenantId = %owed.tenant,
                    eventId = %stored.event_id,
                    acknowledgeBy = %acknowledge_by,
                    hint = "Google refunds the purchase unless the app or the backend acknowledges it: POST /v1/google/acknowledge",
                    "google_acknowledge_due"
                );
                Check::Told
            }
            // Told before: only the acknowledgement is tried again.
            Ok(_) if owed.is_wanted => Check::Retry,
            Ok(_) => Check::Told,
            Err(RecordError::InactiveTenant | RecordError::Database(_)) => Check::Retry,
        }
    }
}

/// Until when the purchase itself must be acknowledged. `None`: nothing is owed.
fn owed_until(verified: &VerifiedPurchase) -> Option<Timestamp> {
    verified
        .acknowledge_by()
        .filter(|_| verified.subject.current)
}

/// The event. Every process gives it the same external id.
fn due_event(
    owed: &OwedAcknowledgement,
    request: &GoogleVerifyRequest,
    verified: VerifiedPurchase,
    acknowledge_by: Timestamp,
) -> NewEvent {
    let data = DueData {
        package_name: &request.package_name,
        purchase_token: &request.purchase_token,
        product_id: verified.subject.product_id.as_deref(),
        acknowledge_by,
    };
    let hash = token::sha256(request.purchase_token.as_bytes());
    let environment = if verified.purchase.is_test() {
        EventEnvironment::Sandbox
    } else {
        EventEnvironment::Production
    };
    NewEvent {
        tenant: owed.tenant.clone(),
        source: EventSource::Google,
        external_id: format!("acknowledge_due:{}", token::encode_hex(&hash)),
        event_type: EventType::PurchaseAcknowledgeDue,
        reason: None,
        platform_event: "attesto.acknowledge_due".to_owned(),
        occurred_at: verified.state.as_ref().map(|state| state.as_of),
        environment: Some(environment),
        data: serde_json::value::to_raw_value(&data).expect("strings"),
        subject: Some(verified.subject),
        app_user_id: verified.app_user_id,
        app_user_id_source: verified.app_user_id_source,
        // Only a state brings a deadline.
        state: verified.state,
        state_error: None,
        facts: None,
        // No store sent it.
        raw: RawValue::NULL.to_owned(),
        shared_content: None,
        answer_by: None,
        is_recovered: false,
    }
}

/// The pause after the try number `attempt`.
fn retry_delay(attempt: u32) -> Duration {
    let delay = delay_after(attempt, FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
    spread(delay, fastrand::f64())
}
