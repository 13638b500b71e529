//! Takes requests, and works them off.

use super::request::{RedeliveryError, RedeliveryFilter, RedeliveryRequest};
use super::store::{self, REDELIVERY_BATCH_SIZE, RedeliveryBatch, RedeliveryPreview};
use crate::base::clock::Clock;
use crate::base::id::{DeliveryId, EventId, RedeliveryId};
use crate::db::{Database, Error};
use crate::deliveries::store::notify_work_channel;

/// Every redelivery there is.
#[derive(Clone, Debug)]
pub struct Redeliveries {
    database: Database,
    clock: Clock,
}

impl Redeliveries {
    /// Those of this database.
    pub fn new(database: &Database, clock: &Clock) -> Self {
        Self {
            database: database.clone(),
            clock: clock.clone(),
        }
    }

    /// Delivers one event again, to where the tenant's callback is now.
    pub async fn redeliver_event(
        &self,
        event: &EventId,
        request: &RedeliveryRequest,
    ) -> Result<DeliveryId, RedeliveryError> {
        let id = DeliveryId::mint(self.clock.now());
        store::enqueue_event(&self.database, event, &id, request).await?;
        self.notify_work().await;
        Ok(id)
    }

    /// What a filter finds now, without doing anything.
    pub async fn preview_matching(
        &self,
        filter: &RedeliveryFilter,
    ) -> Result<RedeliveryPreview, Error> {
        store::preview_matching(&self.database, filter, self.clock.lead()).await
    }

    /// Has everything delivered again that `filter` finds now. Returns at once; the work is done by whichever process
    /// delivers, [`RATE`](super::RATE) events a second.
    pub async fn redeliver_matching(
        &self,
        filter: &RedeliveryFilter,
        request: &RedeliveryRequest,
    ) -> Result<RedeliveryId, RedeliveryError> {
        let id = RedeliveryId::mint(self.clock.now());
        store::insert_redelivery(&self.database, &id, filter, request, self.clock.lead()).await?;
        self.notify_work().await;
        Ok(id)
    }

    /// Ends a request that is still being worked off. How many events it had enqueued; `None` when there is none such.
    pub async fn stop_redelivery(&self, id: &RedeliveryId) -> Result<Option<i32>, Error> {
        store::stop_redelivery(&self.database, id, self.clock.lead()).await
    }

    /// Enqueues the next few events of the request that has waited longest, if it is time.
    pub async fn enqueue_next_batch(&self) -> Result<RedeliveryBatch, Error> {
        let ids: Vec<_> = (0..REDELIVERY_BATCH_SIZE)
            .map(|_| DeliveryId::mint(self.clock.now()).to_string())
            .collect();
        store::enqueue_next_batch(&self.database, &ids, self.clock.lead()).await
    }

    /// They find it without us, only later.
    async fn notify_work(&self) {
        if let Err(error) = notify_work_channel(&self.database).await {
            tracing::debug!(%error, "could not tell other processes that there is work");
        }
    }
}
