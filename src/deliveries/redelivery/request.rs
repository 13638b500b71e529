//! What can be delivered again.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::base::id::{CallbackNumber, DeliveryId, EventId, TenantId};
use crate::db::Error;

/// The status of an event at a callback: delivered when one of its deliveries is, else pending when one is pending, else failed. At
/// all callbacks: pending when it is pending at one, else failed when it failed at one. An event without deliveries has no status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum EventStatus {
    /// Not delivered yet, and still being tried.
    Pending,
    /// Accepted by the callback.
    Delivered,
    /// Not delivered, and no longer being tried.
    Failed,
}

impl EventStatus {
    /// The value of the column `status`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Which events are delivered again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedeliveryFilter {
    /// The tenant that owns the events.
    pub tenant: TenantId,
    /// Only to callbacks whose deliveries of the event have this status.
    pub status: Option<EventStatus>,
    /// Only events with this name, such as `subscription.renewed`.
    pub event_type: Option<String>,
    /// Only events that were received at most this long ago.
    pub received_within: Option<Duration>,
    /// Only to this callback. `None`: to those that had the events, and to all that match if none had an event.
    pub callback: Option<CallbackNumber>,
    /// Only to callbacks for which a delivery to another URL than the present one is not delivered, and none to the present URL
    /// waits or is delivered.
    pub is_for_previous_callback: bool,
}

/// Who requests a redelivery and why. Stored with each delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedeliveryRequest {
    /// A person or a program.
    pub requested_by: String,
    /// A free text.
    pub reason: Option<String>,
}

/// A delivery that a request enqueued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = events::EnqueuedDelivery)]
pub struct EnqueuedDelivery {
    /// The number of the callback that it goes to.
    #[schema(value_type = u16, examples(1))]
    pub callback: CallbackNumber,
    /// The new delivery.
    #[schema(value_type = String, examples("del_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    pub delivery_id: DeliveryId,
}

/// Why no redelivery was enqueued.
#[derive(Debug, thiserror::Error)]
pub enum RedeliveryError {
    /// The event does not exist.
    #[error("no such event: {0}")]
    EventNotFound(EventId),
    /// The tenant does not exist.
    #[error("no such tenant: {0}")]
    TenantNotFound(TenantId),
    /// The tenant has no callback, or it is inactive.
    #[error("{0} has no active callback: `attesto webhook set-config` sets one")]
    NoActiveCallback(TenantId),
    /// The tenant has no such callback, or it is inactive.
    #[error("{0} has no active callback {1}: `attesto webhook list {0}` lists its callbacks")]
    CallbackNotActive(TenantId, CallbackNumber),
    /// What the callback is sent does not include the event.
    #[error(
        "{0} is not sent to callback {1}: its filter leaves the event out, or it relays only what a store sent; `attesto webhook set-filter` changes the filter"
    )]
    EventFilteredOut(EventId, CallbackNumber),
    /// No callback that is active now had the event or, if none ever had it, is sent such events.
    #[error("{0} belongs to no active callback of its tenant: name one with `--callback`")]
    EventOfNoCallback(EventId),
    /// The database failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}
