//! Events whose state could not be told when they were stored, and the event that tells it later.
//!
//! Guarantees: an event without a state is listed by the statement that stores it; it leaves the list when its state was told,
//! when a newer event of its subject has told one, when its store says that there is no such purchase, or after
//! [`MAX_UNRESOLVED_TIME`]; at most one event tells it, whichever process asks its store and however often.
//!
//! - [`unresolved_event`]: such an event, what its store says of it, and the event that follows
//! - [`store`]: the list

pub(crate) mod store;
mod unresolved_event;

pub(crate) use unresolved_event::{
    FIRST_RETRY_DELAY, LatePurchase, MAX_UNRESOLVED_TIME, StateAnswer, UnresolvedEvent, retry_delay,
};
