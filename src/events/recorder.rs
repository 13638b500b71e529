//! The only way to write events.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::event::NewEvent;
use super::event_writer::{CommitHooks, EventWriter};
use super::store::{self, EventRow, InsertOutcome, RecordError, StoredEvent};
use crate::base::clock::Clock;
use crate::base::id::{DeliveryId, EventId, TenantId};
use crate::db::Database;
use crate::deliveries::body::{BodyParts, BodyStore};
use crate::telemetry::metrics::MetricsRegistry;

/// Writes events together with their deliveries.
#[derive(Clone)]
pub struct EventRecorder {
    database: Database,
    bodies: BodyStore,
    writer: EventWriter,
    clock: Clock,
    hooks: CommitHooks,
}

impl EventRecorder {
    /// `on_delivery_enqueued` is called with its tenant after each commit that has enqueued deliveries. It must return at once.
    pub fn new(
        database: &Database,
        clock: &Clock,
        on_delivery_enqueued: impl Fn(&TenantId) + Send + Sync + 'static,
    ) -> Self {
        Self {
            database: database.clone(),
            bodies: BodyStore::new(database),
            writer: EventWriter::new(database),
            clock: clock.clone(),
            hooks: CommitHooks {
                on_delivery_enqueued: Arc::new(on_delivery_enqueued),
                on_stored: Arc::new(|_| {}),
            },
        }
    }

    /// The same, and `on_stored` is called with the tenant after each commit of a new event. It must return at once.
    #[must_use]
    pub fn with_stored_hook(
        mut self,
        on_stored: impl Fn(&TenantId) + Send + Sync + 'static,
    ) -> Self {
        self.hooks.on_stored = Arc::new(on_stored);
        self
    }

    /// The same, with its metrics in `registry`.
    #[must_use]
    pub fn with_metrics(self, registry: &MetricsRegistry) -> Self {
        self.writer.register_metrics(registry);
        self
    }

    /// Writes the event, and a delivery for each active callback that is sent such events. All are committed when this returns. The event
    /// of a repeated notification is not written again, and no event is written for an inactive tenant.
    pub async fn record_event(&self, event: &NewEvent) -> Result<StoredEvent, RecordError> {
        loop {
            let row = self.prepare_row(event).await?;
            let id = row.id.clone();
            match self.writer.write(row, &self.hooks).await? {
                InsertOutcome::TenantInactive => return Err(RecordError::InactiveTenant),
                InsertOutcome::Stored { enqueued } => return Ok(StoredEvent::new(id, enqueued)),
                InsertOutcome::Repeated => {}
            }
            // A second statement: the first cannot see a row that was committed while it waited for that row.
            if let Some(event_id) = store::confirm_event(&self.database, event).await? {
                return Ok(StoredEvent::repeated(event_id));
            }
            // The earlier event was pruned between the two statements: try again.
        }
    }

    /// Waits until every event that is being written is written or has failed. For the end of the process, when no request is
    /// served any more: the callers of some may have disconnected.
    pub(crate) async fn finish_writes(&self) {
        self.writer.finish().await;
    }

    async fn prepare_row(&self, event: &NewEvent) -> Result<EventRow, RecordError> {
        let now = self.clock.now();
        let (event_id, delivery_id) = (EventId::mint(now), DeliveryId::mint(now));
        let body = event.to_json_body(&event_id, now);
        let parts = BodyParts::AroundSequence(&body.before_sequence, &body.after_sequence);
        let body = self
            .bodies
            .encode(parts, event.shared_content.as_deref())
            .await?;
        Ok(EventRow::new(event, event_id, delivery_id, body))
    }
}

/// What a store is answered when its notification is stored.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Receipt)]
pub struct AcceptedNotification {
    /// The event's id; a repeat of the notification is answered with the same.
    #[schema(value_type = String, examples("evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    pub event_id: EventId,
    /// The store's id of the notification: Apple's `notificationUUID`, Pub/Sub's `messageId`.
    #[schema(examples("136969346945"))]
    pub external_id: String,
    /// Whether it came for the first time.
    pub is_new: bool,
    /// Whether this request has put it on its way to a callback of the tenant. False for a repeat, and if there is none that is
    /// sent such events.
    pub enqueued_delivery: bool,
}

impl AcceptedNotification {
    /// For the API description: of the notification that the store calls `external_id`.
    pub fn example_json(external_id: &str, is_new: bool) -> serde_json::Value {
        serde_json::json!({
            "eventId": "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
            "externalId": external_id,
            "isNew": is_new,
            "enqueuedDelivery": is_new,
        })
    }

    /// For the notification that the store calls `external_id`.
    pub fn new(stored: StoredEvent, external_id: String) -> Self {
        Self {
            event_id: stored.event_id,
            external_id,
            is_new: stored.is_new,
            enqueued_delivery: stored.enqueued,
        }
    }
}
