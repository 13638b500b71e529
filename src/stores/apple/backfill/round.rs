//! Reads the histories that are due.
//!
//! Each is read once a day, at a time that differs from tenant to tenant, and at once after the installation was down or was
//! restored. One that was never read begins with the tenant, or a week ago: what is older is read by `attesto apple backfill`.
//! In between, those notifications alone are read that Apple could not deliver: a question about a refund is over after twelve hours,
//! and Apple posts it again after an hour and then too late.
//!
//! A reading makes a limited number of calls; what is left is read by the next round, from where it ended.

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::reader::{
    AppleBackfill, BackfillError, BackfillMode, HistoryPeriod, HistoryPosition, HistoryReader,
};
use super::store::{self, DueHistory, HistoryProgress};
use crate::base::backoff::spread;
use crate::base::clock::{Clock, Timestamp};
use crate::crypto::redact::truncate_log_field;
use crate::db::{Database, Error};
use crate::events::events_kept_since;
use crate::stores::apple::api::AppleApiError;
use crate::stores::apple::error::AppleNotificationError;

/// How often a whole history is read, by the first reading after this time.
const READ_INTERVAL: Duration = Duration::from_hours(20);
/// How often the notifications are read that Apple could not deliver. Spread as well.
const FAILURES_INTERVAL: Duration = Duration::from_hours(3);
/// What was read before is read again for so long: Apple may list a notification later than it has signed it.
const OVERLAP: Duration = Duration::from_hours(24);
/// How far back the first reading begins at most. Apple repeats a notification for six and a half days.
const FIRST_PERIOD: Duration = Duration::from_hours(7 * 24);
/// How long a notification has to arrive by itself: a reading ends so long ago, so that none is fetched that is being posted.
const ARRIVAL_TIME: Duration = Duration::from_mins(5);
/// The calls of one reading, a small part of what Apple allows in an hour.
const MAX_CALLS: u64 = 100;
/// When a reading goes on that was ended by [`MAX_CALLS`]: after those of others.
const CONTINUE_DELAY: Duration = Duration::from_mins(1);
/// When a reading is tried again that failed.
const RETRY_DELAY: Duration = Duration::from_mins(15);
/// The longest delay that Apple can ask for.
const MAX_REQUESTED_DELAY: Duration = Duration::from_hours(1);
/// Histories that are read at the same time, each with one call at a time.
const CONCURRENT_READINGS: usize = 4;
/// Histories that are taken from the list at a time.
const BATCH: i64 = 32;

/// What a round has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoundReport {
    /// Readings: one for each tenant and environment.
    pub(crate) histories: u64,
    pub(crate) calls: u64,
    pub(crate) read: u64,
    pub(crate) recovered: u64,
    pub(crate) refused: u64,
    /// Readings that failed.
    pub(crate) failed: u64,
}

impl AddAssign for RoundReport {
    fn add_assign(&mut self, other: Self) {
        self.histories += other.histories;
        self.calls += other.calls;
        self.read += other.read;
        self.recovered += other.recovered;
        self.refused += other.refused;
        self.failed += other.failed;
    }
}

/// What a round needs.
pub(crate) struct BackfillRound<'a> {
    pub(crate) backfill: &'a AppleBackfill,
    pub(crate) database: &'a Database,
    pub(crate) clock: &'a Clock,
    /// How long events are kept here.
    pub(crate) retention: Option<Duration>,
    pub(crate) stop: &'a CancellationToken,
}

impl BackfillRound<'_> {
    /// Reads every history that is due; with `is_all_due` all of them.
    pub(crate) async fn read_due_histories(&self, is_all_due: bool) -> Result<RoundReport, Error> {
        if is_all_due {
            store::make_all_due(self.database, self.clock.now()).await?;
        }
        let total = Mutex::new(RoundReport::default());
        while !self.stop.is_cancelled() {
            let due = store::list_due_histories(self.database, self.clock.now(), BATCH).await?;
            if due.is_empty() {
                break;
            }
            let readings = stream::iter(due).map(|due| self.read_history(due, &total));
            let mut readings = readings.buffer_unordered(CONCURRENT_READINGS);
            while let Some(result) = readings.next().await {
                result?;
            }
        }
        Ok(total.into_inner())
    }

    async fn read_history(&self, due: DueHistory, total: &Mutex<RoundReport>) -> Result<(), Error> {
        if self.stop.is_cancelled() {
            return Ok(());
        }
        let is_whole = is_whole_due(&due, self.clock.now());
        let mut reader = match self.open_reader(&due, is_whole).await {
            Ok(reader) => reader,
            Err(error) => {
                total.lock().failed += 1;
                let begin = reading_start(&due, self.clock.now());
                let error = BackfillError::Notification(error);
                let position = due.position.clone();
                return self.record_failure(&due, begin, position, &error, 0).await;
            }
        };
        let mut result = Ok(());
        while result.is_ok()
            && !reader.is_complete()
            && !self.stop.is_cancelled()
            && reader.report().calls < MAX_CALLS
        {
            result = reader.read_page().await;
        }
        let report = reader.report();
        {
            let mut total = total.lock();
            total.histories += 1;
            total.calls += report.calls;
            total.read += report.read;
            total.recovered += report.recovered;
            total.refused += report.refused;
            total.failed += u64::from(result.is_err());
        }
        if report.recovered > 0 {
            tracing::warn!(
                tenantId = due.tenant.as_str(),
                environment = due.environment.as_str(),
                recovered = report.recovered,
                hint = "these notifications of Apple's had not arrived; they are delivered now",
                "apple_notifications_recovered"
            );
        }
        let recovered = report.recovered;
        // A reading begins before the end of the one before it.
        let now = self.clock.now();
        let read_until = report.read_until.max(reading_start(&due, now));
        let position = reader.position().map(|position| position.to_json());
        if let Err(error) = result {
            return self
                .record_failure(&due, read_until, position, &error, recovered)
                .await;
        }
        let is_complete = reader.is_complete();
        let progress = HistoryProgress {
            read_until,
            completed_at: (is_complete && is_whole).then_some(now),
            next_read_at: now.plus(if is_complete {
                spread(FAILURES_INTERVAL, fastrand::f64())
            } else if self.stop.is_cancelled() {
                Duration::ZERO
            } else {
                CONTINUE_DELAY
            }),
            position,
            error: None,
            recovered,
            is_app_known: is_complete.then_some(true),
        };
        store::record_progress(self.database, &due.tenant, due.environment, &progress).await
    }

    async fn open_reader(
        &self,
        due: &DueHistory,
        is_whole: bool,
    ) -> Result<HistoryReader, AppleNotificationError> {
        let credentials = self.backfill.get_credentials(&due.tenant).await?;
        let now = self.clock.now();
        let begin = reading_start(due, now);
        let begin = if due.was_completed {
            begin.minus(OVERLAP)
        } else {
            begin
        };
        let kept_since = events_kept_since(self.database, self.retention, now)
            .await
            .map_err(|error| AppleNotificationError::Database(Arc::new(error)))?;
        let period = HistoryPeriod::new(
            Some(begin),
            due.environment,
            kept_since,
            now.minus(ARRIVAL_TIME),
        );
        let reader = self.backfill.open_history(
            &due.tenant,
            &credentials,
            due.environment,
            period,
            BackfillMode::Store,
        );
        if !is_whole {
            return Ok(reader.with_failures_only());
        }
        let position = due.position.as_ref().and_then(HistoryPosition::from_json);
        let position = position.and_then(|it| it.without_pruned(kept_since));
        Ok(match position {
            Some(position) => reader.resume_at(position),
            None => reader,
        })
    }

    async fn record_failure(
        &self,
        due: &DueHistory,
        read_until: Timestamp,
        position: Option<serde_json::Value>,
        error: &BackfillError,
        recovered: u64,
    ) -> Result<(), Error> {
        let cause = truncate_log_field(&error.to_string()).to_owned();
        tracing::warn!(
            tenantId = due.tenant.as_str(),
            environment = due.environment.as_str(),
            cause,
            causeClass = "apple",
            hint = "it is tried again",
            "apple_history_not_read"
        );
        let progress = HistoryProgress {
            read_until,
            completed_at: None,
            next_read_at: self.clock.now().plus(retry_delay(error)),
            position,
            error: Some(cause),
            recovered,
            is_app_known: error.is_app_unknown().then_some(false),
        };
        store::record_progress(self.database, &due.tenant, due.environment, &progress).await
    }
}

/// Whether a reading goes through the whole history: it was never read to its end, that is long ago, a reading was broken off, or
/// notifications may be missing that Apple has delivered.
fn is_whole_due(due: &DueHistory, now: Timestamp) -> bool {
    let is_recent =
        |read_until: Timestamp| now.duration_since(read_until) < READ_INTERVAL + ARRIVAL_TIME;
    !due.was_completed || due.position.is_some() || !due.read_until.is_some_and(is_recent)
}

/// Where the first reading begins, or where the last one has ended.
fn reading_start(due: &DueHistory, now: Timestamp) -> Timestamp {
    due.read_until
        .unwrap_or_else(|| due.tenant_created_at.max(now.minus(FIRST_PERIOD)))
}

/// When a reading is tried again after this failure.
fn retry_delay(error: &BackfillError) -> Duration {
    match error {
        BackfillError::Api(AppleApiError::RateLimited { retry_after }) => {
            (*retry_after).clamp(CONTINUE_DELAY, MAX_REQUESTED_DELAY)
        }
        // An app that is not in this environment will not be there in a quarter of an hour.
        error if error.is_app_unknown() => spread(READ_INTERVAL, fastrand::f64()),
        _ => spread(RETRY_DELAY, fastrand::f64()),
    }
}
