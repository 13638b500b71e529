//! Fetches refunds whose notification did not arrive, from Google's list of voided purchases, which reaches back 30 days.
//!
//! Google lists nothing else. [`rereads`](super::super::rereads) reads the subscriptions again of which Google should have told something by
//! a message that did not come.
//!
//! A missing refund takes the way of a push: the same lookup of the purchase, the same event, marked as recovered. One that a push
//! tells as well becomes one event, whichever comes first.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::super::api::VoidedPurchasesQuery;
use super::super::error_response::{GoogleNotificationError, GoogleVerifyError};
use super::super::notifications::{NotificationAcceptor, PubsubMessage};
use super::super::payload::{Int64, VoidedPurchase};
use super::super::rereads::reader::{RereadReport, RereadRound, SubscriptionRereader};
use super::super::store::GoogleCredentials;
use super::super::verify::GoogleVerifier;
use super::known_refund::{KnownRefund, PARTS_OVERLAP, find_told_parts, part_external_id};
use super::store::{self, ReadingProgress};
use crate::base::backoff::spread;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::db::Error;
use crate::events::{EventRecorder, events_kept_since};

/// Google lists no refund that is older. A minute less, so that the request is not late.
const LISTED_FOR: Duration = Duration::from_mins(30 * 24 * 60 - 1);
/// How often the job reads a list. Spread, so that the lists of many tenants are not read at the same time.
const READ_INTERVAL: Duration = Duration::from_hours(20);
/// What was read before is read again for so long: Google may list a refund later than it has made it.
const OVERLAP: Duration = Duration::from_hours(24);
/// How far back the job's first reading begins at most.
const FIRST_PERIOD: Duration = Duration::from_hours(7 * 24);
/// How long the notification of a refund has to arrive by itself: the job's readings end so long ago.
const ARRIVAL_TIME: Duration = Duration::from_mins(5);
/// When a reading is tried again that failed.
const RETRY_DELAY: Duration = Duration::from_mins(15);

/// Reads Google's lists of refunds.
#[derive(Clone)]
pub struct GoogleBackfill {
    google: GoogleVerifier,
    acceptor: NotificationAcceptor,
    rereader: SubscriptionRereader,
}

/// What a reading has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RefundsReport {
    /// From when on refunds were asked for.
    pub(crate) since: Timestamp,
    pub(crate) until: Timestamp,
    /// Refunds that Google listed.
    pub(crate) read: u64,
    /// Those that were known.
    pub(crate) known: u64,
    /// Those that were missing, and are stored now unless they are only counted.
    pub(crate) recovered: u64,
    /// Calls of the list.
    pub(crate) calls: u64,
}

/// What a round of the job has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RefundsRound {
    pub(crate) tenants: u64,
    pub(crate) read: u64,
    pub(crate) recovered: u64,
    /// Readings that failed.
    pub(crate) failed: u64,
}

impl AddAssign for RefundsRound {
    fn add_assign(&mut self, other: Self) {
        self.tenants += other.tenants;
        self.read += other.read;
        self.recovered += other.recovered;
        self.failed += other.failed;
    }
}

/// Why a list is not read to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum GoogleBackfillError {
    #[error(transparent)]
    List(#[from] GoogleVerifyError),
    #[error(transparent)]
    Notification(#[from] GoogleNotificationError),
    #[error("{}", crate::db::describe_cause(.0))]
    Database(std::sync::Arc<Error>),
}

impl From<Error> for GoogleBackfillError {
    fn from(error: Error) -> Self {
        Self::Database(std::sync::Arc::new(error))
    }
}

impl GoogleBackfill {
    pub(crate) fn new(google: &GoogleVerifier, recorder: EventRecorder) -> Self {
        Self {
            google: google.clone(),
            acceptor: NotificationAcceptor::new(google, recorder.clone()),
            rereader: SubscriptionRereader::new(google, recorder),
        }
    }

    /// Reads the subscriptions of a tenant again of which Google should have told something. With `is_dry_run` nothing is stored.
    pub(crate) async fn reread_subscriptions(
        &self,
        tenant: &TenantId,
        is_dry_run: bool,
        stop: &CancellationToken,
    ) -> Result<RereadReport, GoogleBackfillError> {
        // Boxed: it is large, and commands hold it.
        Box::pin(self.rereader.reread_tenant(tenant, None, is_dry_run, stop)).await
    }

    /// The same for all active tenants, and of each no more than a round of the job may take.
    pub(crate) async fn reread_overdue(
        &self,
        stop: &CancellationToken,
    ) -> Result<RereadRound, Error> {
        self.rereader.reread_overdue(stop).await
    }

    /// Reads a tenant's list from `since` on, or as far as it reaches back, until `until`. With `is_dry_run` nothing is stored.
    /// What is older than `kept_since` may have been pruned here, and is left out.
    pub(crate) async fn read_refunds(
        &self,
        tenant: &TenantId,
        since: Option<Timestamp>,
        until: Timestamp,
        kept_since: Option<Timestamp>,
        is_dry_run: bool,
    ) -> Result<RefundsReport, GoogleBackfillError> {
        let credentials = self.google.require_credentials(tenant).await?;
        let now = self.google.clock.now();
        let listed_since = now.minus(LISTED_FOR);
        let earliest = kept_since.map_or(listed_since, |kept| kept.max(listed_since));
        let mut report = RefundsReport {
            since: since
                .map_or(earliest, |since| since.max(earliest))
                .min(until),
            until,
            read: 0,
            known: 0,
            recovered: 0,
            calls: 0,
        };
        // Of parts of a quantity, those shortly before are needed too.
        let listed_from = report.since.minus(PARTS_OVERLAP).max(listed_since);
        // The list does not say what kind of purchase it is about, and can be had without subscriptions.
        let mut products = HashSet::new();
        let period = (listed_from, until);
        for refund in self
            .list(tenant, &credentials, period, &mut report, false)
            .await?
        {
            products.extend(refund.purchase.purchase_token);
        }
        let mut refunds = self
            .list(tenant, &credentials, period, &mut report, true)
            .await?;
        refunds.sort_by_key(ListedRefund::voided_at);
        for (place, refund) in refunds.iter().enumerate() {
            let Some(token) = &refund.purchase.purchase_token else {
                continue;
            };
            if refund.voided_at().is_some_and(|time| time < report.since) {
                continue;
            }
            report.read += 1;
            let order_id = refund.purchase.order_id.as_deref().unwrap_or_default();
            let (is_known, external_id) = if refund.is_partial() {
                self.look_up_part(tenant, &refunds, place, token, order_id)
                    .await?
            } else {
                let known = KnownRefund::new(token, order_id);
                let is_known = known.is_known(&self.google.database, tenant).await?;
                (is_known, known.external_id())
            };
            let is_product = products.contains(token);
            let is_missing = !is_known
                && (is_dry_run
                    || self
                        .recover(tenant, &credentials, refund, external_id, is_product)
                        .await?);
            if is_missing {
                report.recovered += 1;
            } else {
                report.known += 1;
            }
        }
        Ok(report)
    }

    /// Whether an event tells the part of a quantity at `place` of the list, and the external id that its event has if not.
    async fn look_up_part(
        &self,
        tenant: &TenantId,
        refunds: &[ListedRefund],
        place: usize,
        token: &str,
        order_id: &str,
    ) -> Result<(bool, String), Error> {
        let parts: Vec<_> = refunds
            .iter()
            .enumerate()
            .filter(|(_, other)| {
                other.is_partial() && other.purchase.purchase_token.as_deref() == Some(token)
            })
            .collect();
        let times: Vec<_> = parts.iter().map(|(_, part)| part.voided_at()).collect();
        // Asked for each part: a push may have told one meanwhile.
        let told = store::list_told_parts(&self.google.database, tenant, token).await?;
        let number = parts.iter().position(|(other, _)| *other == place);
        let number = number.unwrap_or_default();
        let is_told = find_told_parts(&times, &told);
        let is_known = is_told.get(number).copied().unwrap_or_default();
        let at = refunds[place].voided_at();
        let nth = times[..number].iter().filter(|time| **time == at).count();
        Ok((is_known, part_external_id(token, order_id, at, nth)))
    }

    /// All pages of the list.
    async fn list(
        &self,
        tenant: &TenantId,
        credentials: &GoogleCredentials,
        (since, until): (Timestamp, Timestamp),
        report: &mut RefundsReport,
        with_subscriptions: bool,
    ) -> Result<Vec<ListedRefund>, GoogleBackfillError> {
        let mut all = Vec::new();
        let mut page_token: Option<String> = None;
        loop {
            let query = VoidedPurchasesQuery {
                since,
                until,
                with_subscriptions,
                page_token: page_token.as_deref(),
            };
            let package_name = &credentials.package_name;
            let page = self
                .google
                .play
                .list_voided_purchases(tenant, &credentials.account, package_name, &query)
                .await
                .map_err(|error| GoogleVerifyError::from_lookup(error, package_name))?;
            report.calls += 1;
            for raw in page.voided_purchases {
                let purchase = serde_json::from_str(raw.get()).unwrap_or_default();
                all.push(ListedRefund { purchase, raw });
            }
            let next = page.token_pagination.and_then(|next| next.next_page_token);
            let Some(next) = next.filter(|next| Some(next) != page_token.as_ref()) else {
                return Ok(all);
            };
            page_token = Some(next);
        }
    }

    /// Stores a refund as the notification that Google has sent of it, or was to send. False: a push has told it meanwhile.
    async fn recover(
        &self,
        tenant: &TenantId,
        credentials: &std::sync::Arc<GoogleCredentials>,
        refund: &ListedRefund,
        external_id: String,
        is_product: bool,
    ) -> Result<bool, GoogleNotificationError> {
        let purchase = &refund.purchase;
        let voided_at = refund.voided_at();
        let notification = json!({
            "version": "1.0",
            "packageName": credentials.package_name,
            "eventTimeMillis": voided_at.map(|time| time.as_millis().to_string()),
            "voidedPurchaseNotification": {
                "purchaseToken": purchase.purchase_token,
                "orderId": purchase.order_id,
                "productType": if is_product { 2 } else { 1 },
                "refundType": if purchase.voided_quantity.is_some() { 2 } else { 1 },
            },
        });
        let message = PubsubMessage {
            id: external_id,
            data: Some(STANDARD.encode(notification.to_string())),
            publish_time: voided_at,
            raw: refund.raw.clone(),
        };
        let accepted = self
            .acceptor
            .accept_message(tenant, credentials, message, true)
            .await?;
        Ok(accepted.is_new)
    }

    /// Reads every list that is due; with `is_all_due` all of them. One after the other.
    pub(crate) async fn read_due_lists(
        &self,
        is_all_due: bool,
        retention: Option<Duration>,
        stop: &CancellationToken,
    ) -> Result<RefundsRound, Error> {
        store::remove_old(&self.google.database).await?;
        let now = self.google.clock.now();
        let kept_since = events_kept_since(&self.google.database, retention, now).await?;
        let due = store::list_due_lists(&self.google.database, now, is_all_due).await?;
        let mut round = RefundsRound::default();
        for list in due {
            if stop.is_cancelled() {
                break;
            }
            let first = now.minus(FIRST_PERIOD).max(list.tenant_created_at);
            let since = list.read_until.map_or(first, |until| until.minus(OVERLAP));
            let read = self
                .read_refunds(
                    &list.tenant,
                    Some(since),
                    now.minus(ARRIVAL_TIME),
                    kept_since,
                    false,
                )
                .await;
            round.tenants += 1;
            match &read {
                Ok(report) => {
                    round.read += report.read;
                    round.recovered += report.recovered;
                }
                Err(_) => round.failed += 1,
            }
            self.record_reading(&list.tenant, list.read_until.unwrap_or(first), read)
                .await?;
        }
        Ok(round)
    }

    async fn record_reading(
        &self,
        tenant: &TenantId,
        read_until: Timestamp,
        read: Result<RefundsReport, GoogleBackfillError>,
    ) -> Result<(), Error> {
        let now = self.google.clock.now();
        let (read_until, recovered, error, pause) = match read {
            Ok(report) => {
                if report.recovered > 0 {
                    tracing::warn!(
                        tenantId = %tenant,
                        recovered = report.recovered,
                        hint = "the notifications of these refunds had not arrived; they are delivered now",
                        "google_refunds_recovered"
                    );
                }
                let pause = spread(READ_INTERVAL, fastrand::f64());
                (report.until, report.recovered, None, pause)
            }
            Err(error) => {
                let error = error.to_string();
                tracing::warn!(
                    tenantId = %tenant,
                    cause = error,
                    causeClass = "google list of refunds",
                    hint = "it is tried again after a quarter of an hour",
                    "google_refunds_not_read"
                );
                (read_until, 0, Some(error), RETRY_DELAY)
            }
        };
        let progress = ReadingProgress {
            read_until,
            succeeded_at: error.is_none().then_some(now),
            next_read_at: now.plus(pause),
            error,
            recovered,
        };
        store::record_reading(&self.google.database, tenant, &progress).await
    }
}

/// A refund of Google's list.
struct ListedRefund {
    purchase: VoidedPurchase,
    /// As Google sent it.
    raw: Box<RawValue>,
}

impl ListedRefund {
    /// Whether it is a refund of a part of a quantity.
    fn is_partial(&self) -> bool {
        self.purchase.voided_quantity.is_some()
    }

    fn voided_at(&self) -> Option<Timestamp> {
        let Int64(millis) = self.purchase.voided_time_millis?;
        Some(Timestamp::from_millis(millis))
    }
}
