//! Serves: takes connections, keeps their manners, answers their requests, and stops when told.
//!
//! Promises: a connection that does nothing, or too slowly, is closed within seconds, whatever it is slow at; a
//! request whose caller went away is finished all the same, so that no work is cut in half; after [`Running::stop`]
//! no new connection is taken and what is in hand is finished, up to a hard limit.
//!
//! `axum::serve` is not used: it closes no stalled connection at all.
//!
//! - [`routes`]: every route there is, and their description
//! - [`listen`]: take connections
//! - [`scrape`]: `/metrics`, on a listener of its own
//! - [`tls`]: the listener's own certificate, if it has one
//! - [`Manners`]: how patient it is
//! - `connection`: one connection, from its first byte to its last
//! - `socket`: the bytes below it: strict about line ends, polite when closing

mod activity;
mod connection;
pub mod listen;
pub mod routes;
pub mod scrape;
mod shared;
mod socket;
pub mod tls;

pub use listen::{BindError, ListenSettings, RunningServer, bind_listener, start_server};
pub use shared::{BODY_TIMEOUT, ConnectionLimits};
