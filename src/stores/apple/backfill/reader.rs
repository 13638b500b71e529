//! Reads the history of one app in one environment.
//!
//! Those that Apple could not deliver are read first, in one query over the whole time. Then all of them are read, day after day,
//! because Apple also counts as delivered what another server accepted, and what this database has lost since. Nothing is
//! expected of the order in which Apple lists them. A reading that was broken off and begun again finds what it has stored.
//!
//! Nothing is read from a time of which events may have been pruned: what was stored and pruned would be taken for missing, and
//! be delivered a second time.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::super::account::{AppleCredentials, AppleEnvironment};
use super::super::api::{AppleApiError, NotificationHistoryQuery};
use super::super::error::AppleNotificationError;
use super::super::notifications::{NotificationAcceptor, NotificationArrival, SignedNotification};
use super::super::payload::{Millis, NotificationHistoryItem, NotificationHistoryResponse};
use super::super::trust::peek_notification;
use super::super::verify::AppleVerifier;
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::crypto::redact::truncate_log_field;
use crate::db;
use crate::events::{self, EventRecorder, EventSource};

/// How long Apple keeps notifications of production.
const PRODUCTION_HISTORY: Duration = Duration::from_hours(180 * 24);
/// How long Apple keeps notifications of the sandbox.
const SANDBOX_HISTORY: Duration = Duration::from_hours(30 * 24);
/// A start this much later than allowed is still allowed when the request arrives.
const HISTORY_MARGIN: Duration = Duration::from_hours(1);
/// The time that one query covers. What was read of earlier ones need not be read again.
const QUERY_PERIOD: Duration = Duration::from_hours(24);
/// How much later a query begins when Apple says that it begins too early: it sometimes does within the documented time.
const START_DELAY: Duration = Duration::from_hours(24);
/// Apple's error code `StartDateTooFarInPastError`.
const START_TOO_EARLY: i64 = 4_000_012;
/// `InvalidPaginationTokenError` and `PaginationTokenExpiredError`: the query begins again at its first page.
const PAGE_GONE: [i64; 2] = [4_000_014, 4_000_017];
/// How often one query begins again.
const MAX_RESTARTS: u32 = 3;
/// How many refused notifications a report names. All are counted.
const MAX_NAMED_REFUSALS: usize = 100;

/// Reads the histories of tenants.
#[derive(Clone)]
pub struct AppleBackfill {
    acceptor: NotificationAcceptor,
}

/// What is done with a notification that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackfillMode {
    /// It is verified and stored.
    Store,
    /// It is counted.
    Count,
}

/// The time that is read, by `signedDate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryPeriod {
    /// The first `signedDate` that is read.
    pub since: Timestamp,
    /// The last `signedDate` that is read.
    pub until: Timestamp,
}

/// What was read, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackfillReport {
    /// From when on notifications are read.
    pub since: Timestamp,
    /// Until when notifications are read.
    pub until: Timestamp,
    /// Everything that was signed from `since` until here has been read.
    pub read_until: Timestamp,
    /// Calls to Apple that succeeded.
    pub calls: u64,
    /// Notifications that Apple listed; one that was listed twice counts once.
    pub read: u64,
    /// Those that were stored before.
    pub known: u64,
    /// Those that were missing and are stored now; with [`BackfillMode::Count`], those that are missing.
    pub recovered: u64,
    /// Those that did not pass the checks of a notification.
    pub refused: u64,
    /// The first of them.
    pub refusals: Vec<RefusedNotification>,
}

/// A notification that is missing and is not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedNotification {
    /// Its id, which is not verified.
    #[serde(rename = "notificationUUID")]
    pub notification_uuid: Option<String>,
    /// Its type, which is not verified.
    pub notification_type: Option<String>,
    /// Why it is refused.
    pub reason: String,
}

/// Why a reading ended early. What was stored stays stored.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// A call to Apple failed.
    #[error("{0}")]
    Api(#[from] AppleApiError),
    /// Apple knows no such app in this environment.
    #[error("Apple knows no such app")]
    UnknownApp,
    /// A notification can be neither stored nor refused now.
    #[error("{0}")]
    Notification(AppleNotificationError),
    /// The database failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] db::Error),
}

impl BackfillError {
    /// Whether Apple would answer the same for an app that was never in this environment: no app, or a refused key.
    pub fn is_app_unknown(&self) -> bool {
        matches!(
            self,
            Self::UnknownApp | Self::Api(AppleApiError::Unauthorized { .. })
        )
    }
}

impl HistoryPeriod {
    /// From `since`, or from the earliest time, until `now`: no earlier than Apple keeps notifications of the environment, and no
    /// earlier than `kept_since`, from when on all events are kept here.
    pub fn new(
        since: Option<Timestamp>,
        environment: AppleEnvironment,
        kept_since: Option<Timestamp>,
        now: Timestamp,
    ) -> Self {
        let kept_by_apple = match environment {
            AppleEnvironment::Production => PRODUCTION_HISTORY,
            AppleEnvironment::Sandbox => SANDBOX_HISTORY,
        };
        let earliest = kept_since
            .map_or(now.minus(kept_by_apple), |kept| {
                kept.max(now.minus(kept_by_apple))
            })
            .plus(HISTORY_MARGIN);
        Self {
            since: since.map_or(earliest, |since| since.max(earliest)).min(now),
            until: now,
        }
    }
}

/// The environments whose notifications a tenant accepts.
pub fn backfill_environments(credentials: &AppleCredentials) -> Vec<AppleEnvironment> {
    let is_accepted = |environment: &AppleEnvironment| {
        credentials.environment.allows_environment(*environment)
            && (*environment == AppleEnvironment::Sandbox || credentials.app_apple_id.is_some())
    };
    let all = [AppleEnvironment::Production, AppleEnvironment::Sandbox];
    all.into_iter().filter(is_accepted).collect()
}

impl AppleBackfill {
    /// Verifies with `apple` and stores with `recorder`.
    pub fn new(apple: &AppleVerifier, recorder: EventRecorder) -> Self {
        Self {
            acceptor: NotificationAcceptor::new(apple, recorder),
        }
    }

    /// The tenant's credentials, which [`Self::open_history`] needs.
    pub async fn get_credentials(
        &self,
        tenant: &TenantId,
    ) -> Result<Arc<AppleCredentials>, AppleNotificationError> {
        self.acceptor
            .apple
            .get_credentials(tenant)
            .await
            .map_err(AppleNotificationError::Credentials)?
            .ok_or(AppleNotificationError::NoCredentials)
    }

    /// Begins to read the history of a tenant's app.
    pub fn open_history(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        period: HistoryPeriod,
        mode: BackfillMode,
    ) -> HistoryReader {
        let HistoryPeriod { since, until } = period;
        HistoryReader {
            acceptor: self.acceptor.clone(),
            tenant: tenant.clone(),
            credentials: credentials.clone(),
            environment,
            mode,
            queries: split_period(period),
            page: None,
            restarts: 0,
            repeated_ids: HashSet::new(),
            handled_on_page: HashSet::new(),
            report: BackfillReport {
                since,
                until,
                read_until: since,
                calls: 0,
                read: 0,
                known: 0,
                recovered: 0,
                refused: 0,
                refusals: Vec::new(),
            },
        }
    }
}

/// What Apple could not deliver in the whole time, then everything in parts of it.
fn split_period(period: HistoryPeriod) -> VecDeque<NotificationHistoryQuery> {
    let HistoryPeriod { since, until } = period;
    let mut queries = VecDeque::new();
    // Apple refuses a time of no length.
    if since >= until {
        return queries;
    }
    queries.push_back(NotificationHistoryQuery {
        since,
        until,
        is_only_failures: true,
    });
    let mut begin = since;
    while begin < until {
        let end = begin.plus(QUERY_PERIOD).min(until);
        queries.push_back(NotificationHistoryQuery {
            since: begin,
            until: end,
            is_only_failures: false,
        });
        begin = end;
    }
    queries
}

/// A history that is being read, page by page. A page that failed is asked for again by the next call.
pub struct HistoryReader {
    acceptor: NotificationAcceptor,
    tenant: TenantId,
    credentials: Arc<AppleCredentials>,
    environment: AppleEnvironment,
    mode: BackfillMode,
    /// The first one is being read.
    queries: VecDeque<NotificationHistoryQuery>,
    /// The `paginationToken` of its next page.
    page: Option<String>,
    restarts: u32,
    /// The ids of notifications that are listed a second time: those that Apple could not deliver, and those that were signed at
    /// the end of one query and the beginning of the next.
    repeated_ids: HashSet<String>,
    /// The ids of those that were dealt with of a page that failed half way.
    handled_on_page: HashSet<String>,
    report: BackfillReport,
}

/// Where a reading that was broken off goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HistoryPosition {
    /// The beginning of the reading, in milliseconds, as all times here.
    since: i64,
    /// The query that is being read.
    query_since: i64,
    query_until: i64,
    is_only_failures: bool,
    page: Option<String>,
}

impl HistoryPosition {
    pub(super) fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("strings and numbers")
    }

    /// `None`: another release wrote it, in another form.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        Self::deserialize(value).ok()
    }

    /// Leaves out the time of which events were pruned since the reading was broken off: they would look missing. `None` when nothing
    /// is left of its query.
    pub(super) fn without_pruned(mut self, kept_since: Option<Timestamp>) -> Option<Self> {
        let Some(kept) = kept_since else {
            return Some(self);
        };
        if self.query_since < kept.as_millis() {
            let earliest = kept.plus(HISTORY_MARGIN).as_millis();
            self.since = self.since.max(earliest);
            self.query_since = earliest;
            // It is one of the query as it was.
            self.page = None;
        }
        (self.query_since < self.query_until).then_some(self)
    }
}

/// A notification of a page, before its signature is checked.
struct ListedNotification {
    signed_payload: String,
    uuid: Option<String>,
    notification_type: Option<String>,
    signed_date: Option<Millis>,
}

impl HistoryReader {
    /// What was read so far.
    pub fn report(&self) -> &BackfillReport {
        &self.report
    }

    /// Where the reading would go on. `None`: everything was read.
    pub(super) fn position(&self) -> Option<HistoryPosition> {
        let query = self.queries.front()?;
        Some(HistoryPosition {
            since: self.report.since.as_millis(),
            query_since: query.since.as_millis(),
            query_until: query.until.as_millis(),
            is_only_failures: query.is_only_failures,
            page: self.page.clone(),
        })
    }

    /// For a reader that was not begun: it goes on where another reading has ended, up to its own end.
    pub(super) fn resume_at(mut self, position: HistoryPosition) -> Self {
        let [since, query_since, query_until] =
            [position.since, position.query_since, position.query_until]
                .map(Timestamp::from_millis);
        let until = self.report.until;
        let query = NotificationHistoryQuery {
            since: query_since,
            until: query_until,
            is_only_failures: position.is_only_failures,
        };
        let rest = if position.is_only_failures {
            since
        } else {
            query_until
        };
        self.queries = split_period(HistoryPeriod { since: rest, until });
        // Their first query is that for failures, which is being read or was read.
        self.queries.pop_front();
        self.queries.push_front(query);
        self.page = position.page;
        self.report.since = since;
        self.report.read_until = if position.is_only_failures {
            since
        } else {
            query_since
        };
        self
    }

    /// For a reader that was not begun: it reads what Apple could not deliver, and nothing else.
    pub(super) fn with_failures_only(mut self) -> Self {
        self.queries.retain(|query| query.is_only_failures);
        self
    }

    /// Whether everything was read.
    pub fn is_complete(&self) -> bool {
        self.queries.is_empty()
    }

    /// Reads to the end, or until `stop` is cancelled; waits where Apple's limit is used up. `on_page` is called after each page.
    pub async fn read_to_end(
        &mut self,
        clock: &Clock,
        stop: &CancellationToken,
        mut on_page: impl FnMut(&BackfillReport),
    ) -> Result<(), BackfillError> {
        while !self.is_complete() && !stop.is_cancelled() {
            match self.read_page().await {
                Ok(()) => on_page(&self.report),
                Err(BackfillError::Api(AppleApiError::RateLimited { retry_after })) => {
                    tracing::info!(
                        tenantId = self.tenant.as_str(),
                        retryAfterSeconds = retry_after.as_secs(),
                        "apple_backfill_waits"
                    );
                    let _ = stop.run_until_cancelled(clock.sleep(retry_after)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads one page and stores what is missing of it.
    pub async fn read_page(&mut self) -> Result<(), BackfillError> {
        let Some(query) = self.queries.front().copied() else {
            return Ok(());
        };
        let answer = self
            .acceptor
            .apple
            .app_store
            .get_notification_history(
                &self.tenant,
                &self.credentials,
                self.environment,
                query,
                self.page.as_deref(),
            )
            .await;
        let page = match answer {
            Ok(page) => page.ok_or(BackfillError::UnknownApp)?,
            Err(error) => return self.adapt_query(query, error),
        };
        self.report.calls += 1;
        let NotificationHistoryResponse {
            notification_history,
            has_more,
            pagination_token,
        } = page;
        self.take_page(query, notification_history).await?;
        self.handled_on_page.clear();
        if has_more != Some(true) {
            self.finish_query(query);
            return Ok(());
        }
        let token = pagination_token.filter(|token| self.page.as_ref() != Some(token));
        let token = token.ok_or_else(|| {
            AppleApiError::Unreadable("it has more and no new paginationToken".to_owned())
        })?;
        self.page = Some(token);
        Ok(())
    }

    /// Changes the query so that Apple accepts it, if that is possible.
    fn adapt_query(
        &mut self,
        query: NotificationHistoryQuery,
        error: AppleApiError,
    ) -> Result<(), BackfillError> {
        let AppleApiError::Unexpected {
            code: Some(code), ..
        } = error
        else {
            return Err(error.into());
        };
        if code == START_TOO_EARLY {
            let since = query.since.plus(START_DELAY);
            let front = self.queries.front_mut();
            match front.filter(|_| since < query.until) {
                Some(front) => front.since = since,
                None => self.finish_query(query),
            }
            self.report.since = self.report.since.max(since.min(query.until));
            return Ok(());
        }
        if PAGE_GONE.contains(&code) && self.page.is_some() && self.restarts < MAX_RESTARTS {
            self.restarts += 1;
            self.page = None;
            return Ok(());
        }
        Err(error.into())
    }

    fn finish_query(&mut self, query: NotificationHistoryQuery) {
        self.queries.pop_front();
        self.page = None;
        self.restarts = 0;
        if !query.is_only_failures {
            self.report.read_until = query.until;
        }
    }

    async fn take_page(
        &mut self,
        query: NotificationHistoryQuery,
        items: Vec<NotificationHistoryItem>,
    ) -> Result<(), BackfillError> {
        let mut listed: Vec<_> = items.into_iter().map(ListedNotification::new).collect();
        // The events of a purchase are numbered in this order.
        listed.sort_by_key(|one| one.signed_date);
        let ids: Vec<String> = listed.iter().filter_map(|one| one.uuid.clone()).collect();
        let database = &self.acceptor.apple.database;
        let stored =
            events::find_stored_ids(database, &self.tenant, EventSource::Apple, &ids).await?;
        for one in listed {
            let uuid = one.uuid.clone();
            let is_repeated = uuid.as_ref().is_some_and(|uuid| {
                self.repeated_ids.contains(uuid) || self.handled_on_page.contains(uuid)
            });
            if is_repeated {
                continue;
            }
            let is_at_end = one.signed_date >= Some(Millis(query.until));
            let is_stored = uuid.as_ref().is_some_and(|uuid| stored.contains(uuid));
            self.take_notification(one, is_stored).await?;
            self.report.read += 1;
            if let Some(uuid) = uuid {
                if query.is_only_failures || is_at_end {
                    self.repeated_ids.insert(uuid);
                } else {
                    self.handled_on_page.insert(uuid);
                }
            }
        }
        Ok(())
    }

    async fn take_notification(
        &mut self,
        one: ListedNotification,
        is_stored: bool,
    ) -> Result<(), BackfillError> {
        if is_stored {
            self.report.known += 1;
            return Ok(());
        }
        if self.mode == BackfillMode::Count {
            self.report.recovered += 1;
            return Ok(());
        }
        let accepted = self
            .acceptor
            .accept_notification(
                &self.tenant,
                &self.credentials,
                SignedNotification::from_history(one.signed_payload),
                NotificationArrival::Recovered,
            )
            .await;
        match accepted {
            Ok(accepted) if accepted.is_new => self.report.recovered += 1,
            Ok(_) => self.report.known += 1,
            Err(error) if error.is_final_refusal() => {
                self.note_refusal(one.uuid, one.notification_type, &error);
            }
            Err(error) => return Err(BackfillError::Notification(error)),
        }
        Ok(())
    }

    fn note_refusal(
        &mut self,
        uuid: Option<String>,
        notification_type: Option<String>,
        error: &AppleNotificationError,
    ) {
        let shorten = |text: String| truncate_log_field(&text).to_string();
        let refusal = RefusedNotification {
            notification_uuid: uuid.map(shorten),
            notification_type: notification_type.map(shorten),
            reason: error.to_string(),
        };
        tracing::warn!(
            tenantId = self.tenant.as_str(),
            notificationUUID = refusal.notification_uuid.as_deref(),
            error = refusal.reason,
            "history_notification_refused"
        );
        self.report.refused += 1;
        if self.report.refusals.len() < MAX_NAMED_REFUSALS {
            self.report.refusals.push(refusal);
        }
    }
}

impl ListedNotification {
    fn new(item: NotificationHistoryItem) -> Self {
        // Without a payload it is refused like one that is no JWS.
        let signed_payload = item.signed_payload.unwrap_or_default();
        let claimed = peek_notification(&signed_payload).unwrap_or_default();
        Self {
            signed_payload,
            uuid: claimed.notification_uuid,
            notification_type: claimed.notification_type,
            signed_date: claimed.signed_date,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn now() -> Timestamp {
        Timestamp::parse("2026-04-10T14:22:10.000Z").expect("a time")
    }

    #[test]
    fn a_reading_that_goes_on_leaves_out_what_was_pruned_in_the_meantime() {
        let hours = |count: u64| Duration::from_hours(count);
        let now = Timestamp::from_millis(0).plus(hours(10_000));
        let ago = |count: u64| now.minus(hours(count)).as_millis();
        let broken_off = |query_since, query_until| HistoryPosition {
            since: ago(500),
            query_since,
            query_until,
            is_only_failures: false,
            page: Some("page".to_owned()),
        };
        let whole = broken_off(ago(300), ago(200));
        for retention in [None, Some(hours(300)), Some(hours(400))] {
            let kept = whole
                .clone()
                .without_pruned(retention.map(|kept| now.minus(kept)));
            assert_eq!(kept, Some(whole.clone()), "{retention:?}");
        }
        let rest = HistoryPosition {
            since: ago(249),
            query_since: ago(249),
            query_until: ago(200),
            is_only_failures: false,
            page: None,
        };
        assert_eq!(
            whole.clone().without_pruned(Some(now.minus(hours(250)))),
            Some(rest)
        );
        assert_eq!(whole.without_pruned(Some(now.minus(hours(200)))), None);
    }

    #[test]
    fn no_more_is_read_than_apple_keeps_and_no_more_than_is_kept_here() {
        use AppleEnvironment::{Production, Sandbox};
        let days = |days: u32| DAY * days;
        let margin = |kept: Duration| kept.saturating_sub(HISTORY_MARGIN);
        for (environment, since, retention, expected) in [
            (Production, None, None, margin(days(180))),
            (Sandbox, None, None, margin(days(30))),
            (Production, None, Some(days(90)), margin(days(90))),
            (Sandbox, None, Some(days(90)), margin(days(30))),
            (Production, Some(days(2)), Some(days(90)), days(2)),
            (
                Production,
                Some(days(200)),
                Some(days(90)),
                margin(days(90)),
            ),
        ] {
            let since = since.map(|ago| now().minus(ago));
            let kept_since = retention.map(|kept| now().minus(kept));
            let period = HistoryPeriod::new(since, environment, kept_since, now());
            assert_eq!(period.since, now().minus(expected), "{environment:?}");
            assert_eq!(period.until, now());
        }
        let ahead = HistoryPeriod::new(Some(now().plus(DAY)), Production, None, now());
        assert_eq!(ahead.since, now(), "a start in the future reads nothing");
        assert!(split_period(ahead).is_empty());
    }

    #[test]
    fn failures_are_read_first_and_the_parts_cover_the_time_without_a_gap() {
        let period = HistoryPeriod {
            since: now().minus(DAY * 2 + Duration::from_hours(5)),
            until: now(),
        };
        let queries = split_period(period);
        assert_eq!(queries.len(), 4);
        assert!(queries[0].is_only_failures);
        assert_eq!(
            (queries[0].since, queries[0].until),
            (period.since, period.until)
        );
        assert!(queries.iter().skip(1).all(|query| !query.is_only_failures));
        let mut begin = period.since;
        for query in queries.iter().skip(1) {
            assert_eq!(query.since, begin);
            begin = query.until;
        }
        assert_eq!(begin, period.until);
    }
}
