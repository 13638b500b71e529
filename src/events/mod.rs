//! Events: what the stores reported, under the same names for both stores.
//!
//! Guarantees: one notification is one event, however often and by however many processes it is received; an event and its
//! delivery are written together or not at all, before the store gets its answer; the JSON that a callback gets is written
//! once and never changes; a notification of a type that this release does not know is stored and delivered like any other.
//!
//! - [`event_type`]: the names of events
//! - [`event`]: an event, and its JSON
//! - [`purchase_state`]: what a purchase is worth, the same object for both stores
//! - [`recorder`]: the only way to write events
//! - [`event_writer`]: writes events that wait at the same moment in one transaction
//! - [`notification_metrics`]: counts the notifications of the stores
//! - [`store`]: the queries
//! - [`told_state`]: until when a store must tell something new
//! - [`unresolved`]: events whose state is told later
//! - [`feed`]: reading events back

mod event;
mod event_type;
mod event_writer;
pub mod feed;
mod notification_metrics;
pub mod purchase_state;
mod recorder;
mod store;
pub(crate) mod told_state;
pub(crate) mod unresolved;

pub use event::{
    AppUserIdSource, EventBody, EventEnvironment, EventSubject, NewEvent, SubjectType,
};
pub use event_type::{EventSource, EventType};
pub use notification_metrics::NotificationMetrics;
pub use purchase_state::{
    Ownership, PricePeriod, PurchaseState, StateBasis, StateError, StateStatus,
};
pub use recorder::{AcceptedNotification, EventRecorder};
pub use store::find_event;
pub use store::{RecordError, StoredEvent};
pub(crate) use store::{events_kept_since, find_stored_ids};
