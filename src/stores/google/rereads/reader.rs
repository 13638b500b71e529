//! Reads subscriptions again of which Google should have told something by now, and tells what has changed.
//!
//! The state that an event tells says until when something must happen: the next renewal, the end of a grace period or of what was
//! paid, the deadline of an acknowledgement. Each event leaves that time, and a hash of its state, in `subjects`. When the time is over
//! for an hour and no message came, Google is asked. A state that differs from the one that was told last becomes an event
//! `purchase.state`, marked as recovered; a message that comes after all is an event as ever, with the same state.
//!
//! A token that Google does not know (404) may be known a moment later: right after the purchase, or when the answer was a fault. So it is
//! asked about again, ever less often, and given up 60 days after something should have happened. What Google calls gone is given up at once.
//!
//! Subscriptions are read one after the other, each with one or two calls, which stays far below Google's limit for an app.

use std::ops::AddAssign;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::super::api_error::{GoogleApiError, GoogleNotFound};
use super::super::error_response::{GoogleNotificationError, GoogleVerifyError};
use super::super::refunds::backfill::GoogleBackfillError;
use super::super::response_body::{PurchaseDetails, VerifiedPurchase};
use super::super::store::list_active_tenants;
use super::super::verify::GoogleVerifier;
use super::store::{self, OverdueSubscription};
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::crypto::token;
use crate::db::Error;
use crate::events::feed::load_newest_state;
use crate::events::{
    EventEnvironment, EventRecorder, EventSource, EventType, NewEvent, PurchaseState, StateStatus,
    told_state,
};

/// How long the message of a change has to arrive by itself. Google may make a renewal some time after the period has ended.
const ARRIVAL_TIME: Duration = Duration::from_hours(1);
/// After so many calls without an answer, Google is away and not one subscription unreadable.
const MAX_FAILURES_IN_ROW: u32 = 3;
/// How many subscriptions are read with one query.
const PAGE_ROWS: i64 = 100;
/// How many subscriptions of a tenant a round of the job reads. The next round goes on from there.
const MAX_ROUND_READS: u64 = 300;
/// When a subscription is read again that has not changed, and says of no later time that something must happen.
const UNCHANGED_DELAY: Duration = Duration::from_hours(20);
/// When a subscription is read again of which Google does not tell a state, or one that is about to change.
const UNSETTLED_DELAY: Duration = Duration::from_hours(3);
/// The same after a call that failed: the next round reads it again, behind the others.
const FAILED_CALL_DELAY: Duration = Duration::from_mins(1);
/// When a subscription is read again whose token Google does not know, at most: after half of the time for which something should have
/// happened to it.
const MAX_UNKNOWN_DELAY: Duration = Duration::from_hours(20);
/// How long after something should have happened to a subscription Google is asked about a token that it does not know. Google keeps
/// the record of a subscription for 60 days after its end, and then says that it is gone.
const MAX_UNKNOWN_TIME: Duration = Duration::from_hours(60 * 24);
/// How long after its end a subscription may be called active by Google before its end is told.
const MAX_UNSETTLED_TIME: Duration = Duration::from_hours(24);

/// Reads subscriptions again.
#[derive(Clone)]
pub(in super::super) struct SubscriptionRereader {
    google: GoogleVerifier,
    recorder: EventRecorder,
}

/// What was done for a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RereadReport {
    /// Subscriptions of which Google should have told something, and that were read again.
    pub(crate) read: u64,
    /// Those whose state has changed, and is told now unless they are only counted.
    pub(crate) recovered: u64,
    /// Those that Google does not know any more.
    pub(crate) gone: u64,
    /// Those that could not be read, for a reason that concerns them alone: of some, Google does not know the token now.
    pub(crate) failed: u64,
}

/// What a round of the job has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RereadRound {
    pub(crate) tenants: u64,
    pub(crate) read: u64,
    pub(crate) recovered: u64,
    pub(crate) gone: u64,
    /// Tenants whose subscriptions were not all read.
    pub(crate) failed: u64,
}

impl AddAssign for RereadRound {
    fn add_assign(&mut self, other: Self) {
        self.tenants += other.tenants;
        self.read += other.read;
        self.recovered += other.recovered;
        self.gone += other.gone;
        self.failed += other.failed;
    }
}

/// What Google says of an overdue subscription.
enum Reread {
    Changed(Box<VerifiedPurchase>, PurchaseState),
    Unchanged(PurchaseState),
    /// What it is cannot be told yet.
    Unsettled,
    Gone,
}

/// The `data` of the event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RereadData<'a> {
    package_name: &'a str,
    purchase_token: &'a str,
    /// When Google should have told something.
    expected_by: Timestamp,
}

impl SubscriptionRereader {
    pub(in super::super) fn new(google: &GoogleVerifier, recorder: EventRecorder) -> Self {
        Self {
            google: google.clone(),
            recorder,
        }
    }

    /// Reads the overdue subscriptions of a tenant, at most `limit`. With `is_dry_run` nothing is stored.
    pub(in super::super) async fn reread_tenant(
        &self,
        tenant: &TenantId,
        limit: Option<u64>,
        is_dry_run: bool,
        stop: &CancellationToken,
    ) -> Result<RereadReport, GoogleBackfillError> {
        let database = &self.google.database;
        let mut report = RereadReport::default();
        let mut after: Option<OverdueSubscription> = None;
        let due_until = self.google.clock.now().minus(ARRIVAL_TIME);
        let mut failures_in_row = 0;
        loop {
            let page =
                store::list_overdue(database, tenant, due_until, after.as_ref(), PAGE_ROWS).await?;
            let Some(last) = page.last().cloned() else {
                return Ok(report);
            };
            for overdue in page {
                if stop.is_cancelled() || limit.is_some_and(|limit| report.read >= limit) {
                    return Ok(report);
                }
                match self.reread(tenant, &overdue, is_dry_run, &mut report).await {
                    Ok(()) => failures_in_row = 0,
                    Err(GoogleBackfillError::List(error)) if concerns_one_purchase(&error) => {
                        failures_in_row += u32::from(matches!(error, GoogleVerifyError::Api(_)));
                        if failures_in_row == MAX_FAILURES_IN_ROW {
                            return Err(error.into());
                        }
                        report.failed += 1;
                        self.put_off_failed(tenant, &overdue, is_dry_run, &error, &mut report)
                            .await?;
                    }
                    Err(error) => return Err(error),
                }
            }
            after = Some(last);
        }
    }

    async fn reread(
        &self,
        tenant: &TenantId,
        overdue: &OverdueSubscription,
        is_dry_run: bool,
        report: &mut RereadReport,
    ) -> Result<(), GoogleBackfillError> {
        report.read += 1;
        let reread = self.ask(tenant, overdue).await?;
        let (database, now) = (&self.google.database, self.google.clock.now());
        let reread_at = |delay: Duration| now.plus(delay).minus(ARRIVAL_TIME);
        match reread {
            Reread::Changed(..) if is_dry_run => report.recovered += 1,
            Reread::Gone if is_dry_run => report.gone += 1,
            _ if is_dry_run => {}
            // A message has arrived while Google was asked.
            Reread::Changed(..) if !store::is_newest(database, tenant, overdue).await? => {}
            Reread::Changed(verified, state) => {
                let event = changed_event(tenant, overdue, *verified, state);
                let stored = self.recorder.record_event(&event).await;
                let stored = stored.map_err(GoogleNotificationError::from)?;
                report.recovered += u64::from(stored.is_new);
                // It may have been stored before, or under the key of an earlier token that became known since.
                store::put_off(database, tenant, overdue, reread_at(UNSETTLED_DELAY)).await?;
            }
            Reread::Unchanged(state) => {
                let next = told_state::changes_next(&state, now);
                let next = next.unwrap_or(reread_at(UNCHANGED_DELAY));
                store::put_off(database, tenant, overdue, next).await?;
            }
            Reread::Unsettled => {
                store::put_off(database, tenant, overdue, reread_at(UNSETTLED_DELAY)).await?;
            }
            Reread::Gone => {
                store::stop_expecting(database, tenant, overdue).await?;
                report.gone += 1;
            }
        }
        Ok(())
    }

    /// One that cannot be read holds up no other.
    async fn put_off_failed(
        &self,
        tenant: &TenantId,
        overdue: &OverdueSubscription,
        is_dry_run: bool,
        error: &GoogleVerifyError,
        report: &mut RereadReport,
    ) -> Result<(), GoogleBackfillError> {
        let database = &self.google.database;
        tracing::warn!(
            tenantId = %tenant,
            cause = %error,
            causeClass = "google subscription",
            hint = "this subscription is read again behind the others",
            "google_state_not_read"
        );
        if is_dry_run {
            return Ok(());
        }
        let delay = match error {
            GoogleVerifyError::Api(_) => FAILED_CALL_DELAY,
            GoogleVerifyError::NotFound {
                reason: GoogleNotFound::Unknown,
                ..
            } => {
                let overdue_for = self.find_overdue_time(tenant, overdue).await?;
                if overdue_for >= MAX_UNKNOWN_TIME {
                    report.gone += 1;
                    store::stop_expecting(database, tenant, overdue).await?;
                    return Ok(());
                }
                (overdue_for / 2).clamp(UNSETTLED_DELAY, MAX_UNKNOWN_DELAY)
            }
            _ => UNSETTLED_DELAY,
        };
        let next = self.google.clock.now().plus(delay).minus(ARRIVAL_TIME);
        store::put_off(database, tenant, overdue, next).await?;
        Ok(())
    }

    /// For how long something should have happened to a subscription, according to the newest state that was told. The time in `overdue`
    /// is later where it was read again since.
    async fn find_overdue_time(
        &self,
        tenant: &TenantId,
        overdue: &OverdueSubscription,
    ) -> Result<Duration, Error> {
        let database = &self.google.database;
        let told = load_newest_state(database, tenant, EventSource::Google, &overdue.key).await?;
        let due = told.as_ref().and_then(told_state::changes_by);
        let now = self.google.clock.now();
        Ok(now.duration_since(due.unwrap_or(overdue.changes_by)))
    }

    async fn ask(
        &self,
        tenant: &TenantId,
        overdue: &OverdueSubscription,
    ) -> Result<Reread, GoogleVerifyError> {
        let verified = match self.google.verify_current(tenant, &overdue.key).await {
            Ok(verified) => verified,
            Err(GoogleVerifyError::NotFound {
                reason: GoogleNotFound::Gone | GoogleNotFound::OtherType,
                ..
            }) => return Ok(Reread::Gone),
            Err(error) => return Err(error),
        };
        let Some(state) = verified.state.clone() else {
            return Ok(Reread::Unsettled);
        };
        if told_state::hash(&state).as_slice() == overdue.told_state_hash {
            return Ok(Reread::Unchanged(state));
        }
        if state.status == StateStatus::Expired && may_renew_yet(&verified, self.google.clock.now())
        {
            return Ok(Reread::Unsettled);
        }
        Ok(Reread::Changed(Box::new(verified), state))
    }

    /// Reads what is overdue of every active tenant, one after the other.
    pub(in super::super) async fn reread_overdue(
        &self,
        stop: &CancellationToken,
    ) -> Result<RereadRound, Error> {
        let mut round = RereadRound::default();
        for tenant in list_active_tenants(&self.google.database).await? {
            if stop.is_cancelled() {
                break;
            }
            let read = self
                .reread_tenant(&tenant, Some(MAX_ROUND_READS), false, stop)
                .await;
            match read {
                Ok(RereadReport { read: 0, .. }) => {}
                Ok(report) => {
                    round.tenants += 1;
                    round.read += report.read;
                    round.recovered += report.recovered;
                    round.gone += report.gone;
                    if report.recovered > 0 {
                        tracing::warn!(
                            tenantId = %tenant,
                            recovered = report.recovered,
                            hint = "the messages about these subscriptions had not arrived; their states are delivered now",
                            "google_states_recovered"
                        );
                    }
                }
                Err(GoogleBackfillError::Database(error)) => {
                    return Err(std::sync::Arc::try_unwrap(error).unwrap_or(Error::WorkerCrashed));
                }
                Err(error) => {
                    round.failed += 1;
                    tracing::warn!(
                        tenantId = %tenant,
                        cause = %error,
                        causeClass = "google subscriptions",
                        hint = "the next run of the job tries it again",
                        "google_states_not_read"
                    );
                }
            }
        }
        Ok(round)
    }
}

/// Whether other subscriptions of the tenant can be read all the same.
fn concerns_one_purchase(error: &GoogleVerifyError) -> bool {
    match error {
        GoogleVerifyError::NotFound { .. }
        | GoogleVerifyError::PackageNameMismatch { .. }
        | GoogleVerifyError::ProductIdMismatch { .. }
        | GoogleVerifyError::AppUserMismatch { .. }
        | GoogleVerifyError::Api(
            GoogleApiError::Unexpected { .. } | GoogleApiError::Unreadable(_),
        ) => true,
        GoogleVerifyError::NoCredentials
        | GoogleVerifyError::Credentials(_)
        | GoogleVerifyError::Api(_) => false,
    }
}

/// Whether only the expiry says that the subscription is over, and not Google itself: Google may be about to renew it.
fn may_renew_yet(verified: &VerifiedPurchase, now: Timestamp) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Record {
        subscription_state: Option<String>,
    }
    let PurchaseDetails::Subscription(details) = &verified.purchase else {
        return false;
    };
    let ended_at = details.expiry_time.unwrap_or(now);
    if now.duration_since(ended_at) >= MAX_UNSETTLED_TIME {
        return false;
    }
    let record = serde_json::from_str::<Record>(details.raw_response.get());
    let word = record.ok().and_then(|record| record.subscription_state);
    !matches!(
        word.as_deref(),
        None | Some("SUBSCRIPTION_STATE_EXPIRED" | "SUBSCRIPTION_STATE_PENDING_PURCHASE_CANCELED")
    )
}

/// The event. Every process that reads the same change gives it the same external id.
fn changed_event(
    tenant: &TenantId,
    overdue: &OverdueSubscription,
    verified: VerifiedPurchase,
    state: PurchaseState,
) -> NewEvent {
    let hash = token::encode_hex(&told_state::hash(&state));
    let change = format!("{}\n{}\n{hash}", overdue.key, overdue.last_sequence);
    let external_id = format!(
        "state:{}",
        token::encode_hex(&token::sha256(change.as_bytes()))
    );
    let is_test = verified.purchase.is_test();
    let (package_name, purchase_token, raw) = match verified.purchase {
        PurchaseDetails::Subscription(it) => (it.package_name, it.purchase_token, it.raw_response),
        PurchaseDetails::Product(it) => (it.package_name, it.purchase_token, it.raw_response),
    };
    let data = RereadData {
        package_name: &package_name,
        purchase_token: &purchase_token,
        expected_by: overdue.changes_by,
    };
    NewEvent {
        tenant: tenant.clone(),
        source: EventSource::Google,
        external_id,
        event_type: EventType::PurchaseState,
        reason: None,
        platform_event: "attesto.purchase_state".to_owned(),
        occurred_at: Some(state.as_of),
        environment: Some(if is_test {
            EventEnvironment::Sandbox
        } else {
            EventEnvironment::Production
        }),
        subject: Some(verified.subject),
        app_user_id: verified.app_user_id,
        app_user_id_source: verified.app_user_id_source,
        state: Some(state),
        state_error: None,
        data: serde_json::value::to_raw_value(&data).expect("strings"),
        facts: None,
        raw: storable(raw),
        shared_content: None,
        answer_by: None,
        is_recovered: true,
    }
}

/// Google's record as it was sent, or null in place of what a database does not store.
fn storable(raw: Box<RawValue>) -> Box<RawValue> {
    if crate::base::json_text::check_storable(raw.get()).is_ok() {
        raw
    } else {
        RawValue::NULL.to_owned()
    }
}
