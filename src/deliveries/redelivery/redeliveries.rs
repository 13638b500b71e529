//! Takes requests, and works them off.

use super::request::{Filter, Refused, Request};
use super::store::{self, BATCH, Batch, Found};
use crate::clock::Clock;
use crate::db::{Database, Error};
use crate::deliveries::store::announce;
use crate::id::{DeliveryId, EventId, RedeliveryId};

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
    pub async fn of_event(
        &self,
        event: &EventId,
        request: &Request,
    ) -> Result<DeliveryId, Refused> {
        let id = DeliveryId::mint(self.clock.now());
        store::enqueue_one(&self.database, event, &id, request).await?;
        self.tell().await;
        Ok(id)
    }

    /// What a filter finds now, without doing anything.
    pub async fn find(&self, filter: &Filter) -> Result<Found, Error> {
        store::find(&self.database, filter, self.clock.lead()).await
    }

    /// Has everything delivered again that `filter` finds now. Returns at once; the work is done by whichever process
    /// delivers, [`RATE`](super::RATE) events a second.
    pub async fn of_all(
        &self,
        filter: &Filter,
        request: &Request,
    ) -> Result<RedeliveryId, Refused> {
        let id = RedeliveryId::mint(self.clock.now());
        store::insert(&self.database, &id, filter, request, self.clock.lead()).await?;
        self.tell().await;
        Ok(id)
    }

    /// Ends a request that is still being worked off. How many events it had enqueued; `None` when there is none such.
    pub async fn stop(&self, id: &RedeliveryId) -> Result<Option<i32>, Error> {
        store::stop(&self.database, id, self.clock.lead()).await
    }

    /// Enqueues the next few events of the request that has waited longest, if it is time.
    pub async fn work(&self) -> Result<Batch, Error> {
        let ids: Vec<_> = (0..BATCH)
            .map(|_| DeliveryId::mint(self.clock.now()).to_string())
            .collect();
        store::work(&self.database, &ids, self.clock.lead()).await
    }

    /// They find it without us, only later.
    async fn tell(&self) {
        if let Err(error) = announce(&self.database).await {
            tracing::debug!(%error, "could not tell other processes that there is work");
        }
    }
}
