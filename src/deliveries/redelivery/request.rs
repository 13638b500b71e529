//! What can be delivered again.

use std::time::Duration;

use crate::base::id::{EventId, TenantId};
use crate::db::Error;

/// The status of an event: delivered when one of its deliveries is, else pending when one is pending, else failed. An event
/// without deliveries has no status.
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
    /// Only events with this status.
    pub status: Option<EventStatus>,
    /// Only events with this name, such as `subscription.renewed`.
    pub event_type: Option<String>,
    /// Only events that were received at most this long ago.
    pub received_within: Option<Duration>,
    /// Only events with a delivery to another URL than that of the tenant's callback that is not delivered, and with none to the
    /// callback itself that waits or is delivered.
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
    /// The database failed.
    #[error(transparent)]
    Database(#[from] Error),
}
