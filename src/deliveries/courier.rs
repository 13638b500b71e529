//! What a dispatcher hands over, and to whom.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Bytes;

use super::outcome::Outcome;
use crate::id::{DeliveryId, EventId, TenantId};

/// One delivery, claimed: everything about it but the secrets that sign it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The event, the same in every delivery of it.
    pub event: EventId,
    /// Whose.
    pub tenant: TenantId,
    /// The event's word, such as `subscription.renewed`.
    pub word: String,
    /// Where it goes.
    pub url: String,
    /// What is sent: the bytes that were stored with the event.
    pub body: Bytes,
    /// Which attempt this is, counted from one.
    pub number: u32,
}

type Carry = dyn Fn(Vec<Parcel>) -> Vec<BoxFuture<'static, Outcome>> + Send + Sync;

/// Takes parcels to their receivers.
#[derive(Clone)]
pub struct Courier(Arc<Carry>);

impl Courier {
    /// `carry` gets parcels that were claimed together and returns an attempt for each, in the same order. They begin
    /// when they are polled, at once and all together; each must end by itself.
    pub fn new(
        carry: impl Fn(Vec<Parcel>) -> Vec<BoxFuture<'static, Outcome>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(carry))
    }

    /// One parcel at a time.
    pub fn from_fn<F>(carry: impl Fn(Parcel) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        Self::new(move |parcels| {
            let attempts = parcels.into_iter().map(|parcel| carry(parcel).boxed());
            attempts.collect()
        })
    }

    pub(super) fn carry(&self, parcels: Vec<Parcel>) -> Vec<BoxFuture<'static, Outcome>> {
        (self.0)(parcels)
    }
}
