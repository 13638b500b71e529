//! What a dispatcher hands over, and to whom.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Bytes;

use super::outcome::AttemptOutcome;
use crate::base::id::{DeliveryId, EventId, TenantId};

/// One delivery, claimed: everything about it but the secrets that sign it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedDelivery {
    /// The delivery.
    pub id: DeliveryId,
    /// The event, the same in every delivery of it.
    pub event_id: EventId,
    /// Whose.
    pub tenant_id: TenantId,
    /// The event's word, such as `subscription.renewed`.
    pub event_type: String,
    /// Where it goes.
    pub callback_url: String,
    /// What is sent: the bytes that were stored with the event.
    pub body: Bytes,
    /// Which attempt this is, counted from one.
    pub attempt_number: u32,
}

type SendBatchFn =
    dyn Fn(Vec<ClaimedDelivery>) -> Vec<BoxFuture<'static, AttemptOutcome>> + Send + Sync;

/// Takes parcels to their receivers.
#[derive(Clone)]
pub struct DeliveryTransport(Arc<SendBatchFn>);

impl DeliveryTransport {
    /// `carry` gets parcels that were claimed together and returns an attempt for each, in the same order. They begin
    /// when they are polled, at once and all together; each must end by itself.
    pub fn new(
        carry: impl Fn(Vec<ClaimedDelivery>) -> Vec<BoxFuture<'static, AttemptOutcome>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Arc::new(carry))
    }

    /// One parcel at a time.
    pub fn from_fn<F>(carry: impl Fn(ClaimedDelivery) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = AttemptOutcome> + Send + 'static,
    {
        Self::new(move |parcels| {
            let attempts = parcels.into_iter().map(|parcel| carry(parcel).boxed());
            attempts.collect()
        })
    }

    pub(super) fn send_batch(
        &self,
        parcels: Vec<ClaimedDelivery>,
    ) -> Vec<BoxFuture<'static, AttemptOutcome>> {
        (self.0)(parcels)
    }
}
