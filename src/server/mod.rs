//! The HTTP server: accepts connections, enforces their limits, serves their requests, and stops gracefully.
//!
//! A connection that is idle or too slow is closed within seconds. A request whose caller disconnected is finished all the
//! same, so that no work stops half-way. After [`RunningServer::stop`] no connection is accepted, and requests in progress are
//! finished, up to a hard limit.
//!
//! `axum::serve` is not used: it never closes a stalled connection.
//!
//! - [`routes`]: all routes, and their OpenAPI document
//! - [`listen`]: accepts connections
//! - [`scrape`]: `/metrics`, on a listener of its own
//! - [`tls`]: the listener's certificate, and how it is reloaded
//! - [`ConnectionLimits`]: timeouts and counts
//! - `connection`: one connection, from its first byte to its last
//! - `connection_table`: which connections are open, and which are closed when there are too many
//! - `held_connections`: what becomes of those before they had an answer
//! - `activity`: whether a connection is idle
//! - `socket`: the bytes of a connection: strict line ends, orderly closing
//! - `head_scanner`: where the heads of requests are in them
//! - `unread_body`: the rest of a body that a handler did not read
//! - `shared`: what all connections of a server share

mod activity;
mod connection;
mod connection_table;
mod head_scanner;
mod held_connections;
pub mod listen;
pub mod routes;
pub mod scrape;
mod shared;
mod socket;
pub mod tls;
mod unread_body;

pub use listen::{BindError, ListenSettings, RunningServer, bind_listener, start_server};
pub use shared::{BODY_TIMEOUT, ConnectionLimits};
