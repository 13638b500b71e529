//! Reads pages of a tenant's events, and waits for new ones.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::cursor::FeedCursor;
use super::store::{self, FeedEntry};
use super::subject::{self, KnownSubject};
use super::waiting::{TooManyWaiting, WaitingRequests};
use crate::base::clock::Clock;
use crate::base::id::{EventId, TenantId};
use crate::db::{Database, Error};
use crate::deliveries::body::{BodyStore, EventBodyError, load_event_body};
use crate::deliveries::history;
use crate::events::EventSource;

/// The most events in one answer.
pub const MAX_PAGE_EVENTS: usize = 100;
/// How many events an answer has if the request does not say it.
pub const DEFAULT_PAGE_EVENTS: usize = 50;
/// An answer ends with the event that makes it longer than this.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// How many bodies are in memory beyond that.
const BODIES_AT_ONCE: usize = 8;
/// Events that another process stored are noticed after this time.
const TICK: Duration = Duration::from_millis(500);

/// What is read.
#[derive(Clone, Debug, Default)]
pub struct FeedQuery {
    /// The cursor of the last answer. `None`: from the oldest event on.
    pub after: Option<FeedCursor>,
    /// Only events about the subscription or purchase with this key.
    pub subject: Option<String>,
    /// The most events of an answer, up to [`MAX_PAGE_EVENTS`].
    pub limit: usize,
}

/// Events in the order in which they are read, each as its callback gets it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedPage {
    /// Their JSON, byte for byte.
    pub events: Vec<Box<RawValue>>,
    /// The cursor of the last of them; that of the question where there are none.
    pub next: Option<String>,
    /// Whether more can be read at once.
    pub has_more: bool,
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The cursor names an event that this database does not have under that number.
    #[error(
        "is not a cursor of this database, which was restored or is another installation's: leave it out to begin with the oldest event, and recognise by eventId what you have"
    )]
    ForeignCursor,
    /// Too many requests of the tenant wait.
    #[error("too many requests of this tenant wait")]
    TenantWaits,
    /// Too many requests wait.
    #[error("too many requests wait")]
    ProcessWaits,
    /// An event cannot be read.
    #[error(transparent)]
    Body(#[from] EventBodyError),
}

impl From<Error> for FeedError {
    fn from(error: Error) -> Self {
        Self::Body(error.into())
    }
}

impl From<TooManyWaiting> for FeedError {
    fn from(of: TooManyWaiting) -> Self {
        match of {
            TooManyWaiting::OfTenant => Self::TenantWaits,
            TooManyWaiting::OfProcess => Self::ProcessWaits,
        }
    }
}

/// Reads the events of all tenants. Clones share the waiting requests.
#[derive(Clone)]
pub struct EventFeed {
    database: Database,
    bodies: BodyStore,
    clock: Clock,
    waiting: WaitingRequests,
}

impl EventFeed {
    /// `clock` ends the waiting of requests.
    pub fn new(database: &Database, clock: &Clock) -> Self {
        Self {
            database: database.clone(),
            bodies: BodyStore::new(database),
            clock: clock.clone(),
            waiting: WaitingRequests::default(),
        }
    }

    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Wakes the requests that wait for an event of this tenant. Call it after the commit.
    pub fn notify_stored(&self, tenant: &TenantId) {
        self.waiting.wake_tenant(tenant);
    }

    /// Wakes the requests that wait for events which other processes stored, until `stop` is cancelled. One query for all of
    /// them, and none while none waits.
    pub async fn run_watcher(&self, stop: CancellationToken) {
        let watching = async {
            loop {
                sleep(TICK).await;
                let tenants = self.waiting.tenants();
                if tenants.is_empty() {
                    continue;
                }
                // Without it the requests end when their time is over.
                match store::load_progress(&self.database, &tenants).await {
                    Ok(progress) => self.waiting.wake_changed(progress),
                    Err(error) => tracing::debug!(
                        error = crate::db::describe_cause(&error),
                        "event_feeds_not_watched"
                    ),
                }
            }
        };
        stop.run_until_cancelled(watching).await;
    }

    /// The next events. While there are none it waits: for `wait`, or until `stop` is cancelled.
    pub async fn wait_for_page(
        &self,
        tenant: &TenantId,
        query: &FeedQuery,
        wait: Duration,
        stop: &CancellationToken,
    ) -> Result<FeedPage, FeedError> {
        if wait.is_zero() {
            return self.load_page(tenant, query).await;
        }
        let request = self.waiting.add(tenant)?;
        let deadline = self.clock.uptime() + wait;
        loop {
            // Before the page is read: what is stored meanwhile is not missed.
            let mut woken = std::pin::pin!(request.wake.notified());
            woken.as_mut().enable();
            let page = self.load_page(tenant, query).await?;
            if !page.events.is_empty() || page.has_more {
                return Ok(page);
            }
            loop {
                let left = deadline.saturating_sub(self.clock.uptime());
                if left.is_zero() {
                    return Ok(page);
                }
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(page),
                    () = woken.as_mut() => break,
                    () = sleep(TICK.min(left)) => {}
                }
            }
        }
    }

    /// The events that are stored now.
    pub async fn load_page(
        &self,
        tenant: &TenantId,
        query: &FeedQuery,
    ) -> Result<FeedPage, FeedError> {
        let limit = query.limit.clamp(1, MAX_PAGE_EVENTS);
        let are_unnumbered = store::number_events(&self.database, tenant).await?;
        let after = match &query.after {
            None => 0,
            Some(cursor) => {
                if !store::is_known_cursor(&self.database, tenant, cursor).await? {
                    return Err(FeedError::ForeignCursor);
                }
                cursor.position
            }
        };
        let one_more = i64::try_from(limit).unwrap_or(i64::MAX) + 1;
        let mut entries = match &query.subject {
            None => store::list_entries(&self.database, tenant, after, one_more).await?,
            Some(subject) => {
                store::list_subject_entries(&self.database, tenant, subject, after, one_more)
                    .await?
            }
        };
        let mut has_more = are_unnumbered || entries.len() > limit;
        entries.truncate(limit);
        let (events, last) = self.load_bodies(tenant, &entries).await?;
        has_more |= events.len() < entries.len();
        let next = last.or_else(|| query.after.clone());
        Ok(FeedPage {
            events,
            next: next.map(|cursor| cursor.to_string()),
            has_more,
        })
    }

    /// The bodies of the entries, up to [`PAGE_BYTES`], and the cursor of the last.
    /// Leaves out the events that were deleted meanwhile.
    async fn load_bodies(
        &self,
        tenant: &TenantId,
        entries: &[FeedEntry],
    ) -> Result<(Vec<Box<RawValue>>, Option<FeedCursor>), EventBodyError> {
        let (mut events, mut last, mut bytes) = (Vec::new(), None, 0);
        for chunk in entries.chunks(BODIES_AT_ONCE) {
            let ids: Vec<_> = chunk.iter().map(|entry| entry.event.to_string()).collect();
            let mut found = self.bodies.load_bodies(tenant, &ids).await?;
            for FeedEntry { position, event } in chunk {
                if bytes >= PAGE_BYTES {
                    return Ok((events, last));
                }
                let Some(body) = found.remove(event) else {
                    continue;
                };
                let unreadable = |cause| EventBodyError::Unreadable {
                    event: event.clone(),
                    cause,
                };
                let body = body.map_err(unreadable)?;
                bytes += body.len();
                // The body was written as JSON.
                events.push(
                    RawValue::from_string(body).map_err(|error| {
                        EventBodyError::Database(Error::Decode(Box::new(error)))
                    })?,
                );
                last = Some(FeedCursor {
                    position: *position,
                    event: event.clone(),
                });
            }
        }
        Ok((events, last))
    }

    /// The event as its callback gets it. `None`: this tenant has no such event.
    pub async fn load_event(
        &self,
        tenant: &TenantId,
        event: &EventId,
    ) -> Result<Option<String>, EventBodyError> {
        load_event_body(&self.database, tenant, event).await
    }

    /// Whether the tenant has this event.
    pub(super) async fn has_event(
        &self,
        tenant: &TenantId,
        event: &EventId,
    ) -> Result<bool, Error> {
        history::store::has_event(&self.database, tenant, event).await
    }

    /// What the events say of a purchase. `None`: this tenant has no event about it.
    pub(crate) async fn find_subject(
        &self,
        tenant: &TenantId,
        source: EventSource,
        key: &str,
    ) -> Result<Option<KnownSubject>, EventBodyError> {
        let row = store::find_newest_state(&self.database, tenant, source, key).await?;
        let Some(row) = row else {
            return Ok(None);
        };
        // `None`: deleted meanwhile.
        let body = self.load_event(tenant, &row.event).await?;
        Ok(body.map(|body| subject::known_subject(source, row, &body)))
    }
}
