//! Accepts requests for redelivery, and enqueues their events.

use super::request::{EnqueuedDelivery, RedeliveryError, RedeliveryFilter, RedeliveryRequest};
use super::store::{self, REDELIVERY_BATCH_SIZE, RedeliveryBatch, RedeliveryPreview};
use crate::base::clock::Clock;
use crate::base::id::{CallbackNumber, DeliveryId, EventId, RedeliveryId, TenantId};
use crate::base::lane::LaneSet;
use crate::db::{Database, Error};
use crate::deliveries::store::notify_work_channel;

/// The redeliveries of one database.
#[derive(Clone, Debug)]
pub struct Redeliveries {
    database: Database,
    clock: Clock,
}

impl Redeliveries {
    /// The clock makes the ids of deliveries.
    pub fn new(database: &Database, clock: &Clock) -> Self {
        Self {
            database: database.clone(),
            clock: clock.clone(),
        }
    }

    /// Enqueues one event of a tenant for one of the callbacks that the tenant has now, or for those that had it, or, if none had
    /// it, for those that are sent such events. Returns at least one delivery.
    pub async fn redeliver_event(
        &self,
        tenant: &TenantId,
        event: &EventId,
        callback: Option<CallbackNumber>,
        request: &RedeliveryRequest,
    ) -> Result<Vec<EnqueuedDelivery>, RedeliveryError> {
        let id = DeliveryId::mint(self.clock.now());
        let enqueued =
            store::enqueue_event(&self.database, tenant, event, callback, &id, request).await?;
        self.notify_work().await;
        Ok(enqueued)
    }

    /// How many deliveries of an event of a tenant [`redeliver_event`](Self::redeliver_event) would enqueue. Changes nothing.
    pub async fn preview_event(
        &self,
        tenant: &TenantId,
        event: &EventId,
        callback: Option<CallbackNumber>,
    ) -> Result<u64, RedeliveryError> {
        store::preview_event(&self.database, tenant, event, callback).await
    }

    /// What a filter matches now. Changes nothing.
    pub async fn preview_matching(
        &self,
        filter: &RedeliveryFilter,
    ) -> Result<RedeliveryPreview, Error> {
        store::preview_matching(&self.database, filter).await
    }

    /// Requests the redelivery of all events that `filter` matches now. Returns at once: the dispatchers enqueue the events,
    /// [`REDELIVERIES_PER_SECOND`](super::REDELIVERIES_PER_SECOND).
    pub async fn redeliver_matching(
        &self,
        filter: &RedeliveryFilter,
        request: &RedeliveryRequest,
    ) -> Result<RedeliveryId, RedeliveryError> {
        let id = RedeliveryId::mint(self.clock.now());
        store::insert_redelivery(&self.database, &id, filter, request).await?;
        self.notify_work().await;
        Ok(id)
    }

    /// Stops a request. Returns how many events it had enqueued; `None`: there is no such unfinished request.
    pub async fn stop_redelivery(&self, id: &RedeliveryId) -> Result<Option<i32>, Error> {
        store::stop_redelivery(&self.database, id).await
    }

    /// Enqueues the next events of the request that has waited longest, if its next batch is due.
    pub async fn enqueue_next_batch(&self) -> Result<RedeliveryBatch, Error> {
        let ids: Vec<_> = (0..REDELIVERY_BATCH_SIZE)
            .map(|_| DeliveryId::mint(self.clock.now()).to_string())
            .collect();
        store::enqueue_next_batch(&self.database, &ids).await
    }

    /// Without it the dispatchers find the deliveries at their next poll.
    async fn notify_work(&self) {
        if let Err(error) = notify_work_channel(&self.database, LaneSet::ALL).await {
            tracing::debug!(
                error = crate::db::describe_cause(&error),
                "work_notification_failed"
            );
        }
    }
}
