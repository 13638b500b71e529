//! What all connections share, and how patient they are.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection_table::ConnectionTable;
use super::held_connections::HeldConnections;
use super::socket::DiscardLimiter;
use super::tls::ReloadableTls;
use crate::http::request_layer::RequestLayer;

/// How patient the server is, and with how many at once.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// How long a request's head may take from its first byte, or from the end of the request before it.
    pub head_timeout: Duration,
    /// How long a connection may have nothing in hand.
    pub idle_timeout: Duration,
    /// How long a caller may take to send the rest of a body that is not wanted: before its answer, so that the connection can
    /// stay open, and before closing, so that it can read its answer.
    pub linger_timeout: Duration,
    /// Connections at once. A further one takes the place of one that is silent; while none is, it waits to be taken.
    pub max_connections: usize,
    /// Connections of one peer at once. A further one takes the place of one that is silent; while none is, it is closed.
    pub max_connections_per_peer: usize,
    /// Connections that lost their place before they had one answer, and are held open without being read from.
    pub max_held_connections: usize,
    /// How long such a connection is held.
    pub hold_timeout: Duration,
}

/// How long a request's whole body may take.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(12);

impl Default for ConnectionLimits {
    /// Every stalled connection is gone within 15 seconds.
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(12),
            linger_timeout: Duration::from_secs(2),
            max_connections: 1024,
            max_connections_per_peer: 1024,
            max_held_connections: 1024,
            hold_timeout: Duration::from_secs(10),
        }
    }
}

/// What all connections share.
pub(super) struct ServerState {
    pub(super) request_layer: RequestLayer,
    pub(super) limits: ConnectionLimits,
    pub(super) tls: Option<ReloadableTls>,
    pub(super) protocol: auto::Builder<TokioExecutor>,
    pub(super) keep_alive: Option<HeaderValue>,
    pub(super) connections: Arc<ConnectionTable>,
    pub(super) held: HeldConnections,
    pub(super) discards: DiscardLimiter,
    pub(super) tasks: TaskTracker,
    /// Finish what is in hand and take nothing new.
    pub(super) graceful_shutdown: CancellationToken,
    /// Stop where you are.
    pub(super) abort: CancellationToken,
}
