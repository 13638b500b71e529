//! Reading events back: the events of a tenant in one order that never changes, and the newest state of a purchase.
//!
//! Guarantees: a reader who passes on each answer's cursor gets every committed event once. An event is numbered after its
//! commit, by the first reader who finds it without a number, and numbers become visible in their order; so no event appears
//! before a cursor that was given out. What a reader gets of an event is what the callback gets, byte for byte.
//!
//! - [`cursor`]: where a reader is
//! - [`reader`]: [`EventFeed`], which reads pages and waits for new events
//! - [`waiting`]: which tenants are waited for
//! - [`subject`]: the newest state of a purchase
//! - [`routes`]: the HTTP routes on events
//! - [`openapi`]: the schema of an event
//! - [`store`]: the queries

mod cursor;
mod openapi;
mod reader;
mod routes;
mod store;
mod subject;
mod waiting;

pub use cursor::{FeedCursor, MalformedCursorError};
pub(crate) use openapi::describe_read_errors;
pub use reader::{DEFAULT_PAGE_EVENTS, EventFeed, FeedError, FeedPage, FeedQuery, MAX_PAGE_EVENTS};
pub(crate) use routes::{event_routes, openapi_document};
pub(crate) use store::load_newest_state;
pub(crate) use subject::{KnownSubject, MAX_SUBJECT_KEY_CHARS};
