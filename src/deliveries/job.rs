//! A job of the delivery queue, and the interface to what sends it.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Bytes;

use super::outcome::AttemptOutcome;
use crate::base::id::{CallbackNumber, DeliveryId, EventId, TenantId};

/// What one attempt sends. The secrets that sign it are not part of it: they are read at each attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryJob {
    /// The value of `X-Attesto-Delivery-Id`.
    pub id: DeliveryId,
    /// `X-Attesto-Event-Id` and `webhook-id`: the same at every attempt and in every redelivery.
    pub event_id: EventId,
    /// The tenant that owns the event and the callback.
    pub tenant_id: TenantId,
    /// Which of the tenant's callbacks it is for.
    pub callback: CallbackNumber,
    /// `X-Attesto-Event`, such as `subscription.renewed`.
    pub event_type: String,
    /// The URL of the callback, fixed when the event was stored.
    pub callback_url: String,
    /// The bytes that were stored with the event. A callback of kind `raw` is sent the store's message in them.
    pub body: Bytes,
    /// `X-Attesto-Attempt`, counted from one.
    pub attempt_number: u32,
}

/// Sends the jobs that a dispatcher has claimed. [`SigningSender`](super::SigningSender) does so in production; in tests
/// a function from a job to its outcome takes the place of the receivers.
pub trait JobSender: Send + Sync + 'static {
    /// Takes the jobs that were claimed together, and returns one attempt for each in the same order. All of them are
    /// polled at the same time, and each must end by itself.
    fn send_batch(&self, jobs: Vec<Arc<DeliveryJob>>) -> Vec<BoxFuture<'static, AttemptOutcome>>;
}

impl<S, F> JobSender for S
where
    S: Fn(Arc<DeliveryJob>) -> F + Send + Sync + 'static,
    F: Future<Output = AttemptOutcome> + Send + 'static,
{
    fn send_batch(&self, jobs: Vec<Arc<DeliveryJob>>) -> Vec<BoxFuture<'static, AttemptOutcome>> {
        jobs.into_iter().map(|job| self(job).boxed()).collect()
    }
}
