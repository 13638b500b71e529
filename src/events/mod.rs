//! What the stores reported, in one vocabulary for both.
//!
//! Promises: one notification is one event, however often and by however many processes it is received; an event and
//! what has to be delivered of it are written together or not at all, and are there before anybody is told so; what is
//! sent to a callback is made once and never again; what a store calls by a name unknown here is stored and delivered
//! all the same.
//!
//! - [`word`]: the vocabulary
//! - [`event`]: an event, and the JSON a callback is sent
//! - [`record`]: the one way to write one
//! - [`received`]: counts of what the stores send
//! - [`purchase_state`]: what a purchase is worth, the same object for both stores
//! - `store`: the queries

pub mod event;
pub mod event_type;
pub mod notification_metrics;
pub mod purchase_state;
pub mod recorder;
mod store;

pub use event::{EventEnvironment, EventSubject, NewEvent, SubjectType};
pub use event_type::{EventSource, EventType};
pub use notification_metrics::NotificationMetrics;
pub use purchase_state::{
    Ownership, PricePeriod, PurchaseState, StateBasis, StateError, StateStatus,
};
pub use recorder::{AcceptedNotification, EventRecorder};
pub use store::find_event;
pub use store::{RecordError, StoredEvent};
