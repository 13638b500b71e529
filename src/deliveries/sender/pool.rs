//! Connections that were left in good order, for a few seconds.
//!
//! Under load a receiver is not greeted anew for every event. A kept connection is used again only when the address it
//! goes to was judged again and is still one of its name's, so it cannot outlive a change of either.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::connect::CallbackConnection;
use crate::egress::target::CallbackHost;
use crate::egress::{AllowedAddresses, CallbackTarget};

/// How many wait for one receiver. Callbacks of several tenants may be at one.
const MAX_IDLE_PER_RECEIVER: usize = 64;
/// How many wait in all.
const MAX_IDLE_CONNECTIONS: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PoolKey {
    tls: bool,
    host: CallbackHost,
    port: u16,
}

impl From<&CallbackTarget> for PoolKey {
    fn from(target: &CallbackTarget) -> Self {
        Self {
            tls: target.is_https,
            host: target.host.clone(),
            port: target.port,
        }
    }
}

struct IdleConnection {
    connection: CallbackConnection,
    idle_since: Instant,
}

#[derive(Default)]
struct IdleConnections {
    by_receiver: HashMap<PoolKey, Vec<IdleConnection>>,
    count: usize,
}

/// Kept connections. Clones share them.
#[derive(Clone)]
pub(super) struct ConnectionPool {
    idle_timeout: Duration,
    idle: Arc<Mutex<IdleConnections>>,
}

impl ConnectionPool {
    /// An empty one, which closes in the background what has waited for so long. Call it where a runtime is.
    pub(super) fn new(idle_timeout: Duration) -> Self {
        let idle = Arc::default();
        tokio::spawn(close_expired_connections(
            Arc::downgrade(&idle),
            idle_timeout,
        ));
        Self { idle_timeout, idle }
    }

    /// A connection to one of the addresses that were judged for this target just now; the one that has waited least.
    pub(super) fn take_connection(
        &self,
        target: &CallbackTarget,
        vetted: &AllowedAddresses,
    ) -> Option<CallbackConnection> {
        let mut lock = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *lock;
        let waiting = kept.by_receiver.get_mut(&PoolKey::from(target))?;
        while let Some(last) = waiting.pop() {
            kept.count -= 1;
            let connection = last.connection;
            if last.idle_since.elapsed() < self.idle_timeout
                && !connection.request_sender.is_closed()
                && is_allowed_peer(connection.peer_address, vetted)
            {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn keep_connection(&self, target: &CallbackTarget, connection: CallbackConnection) {
        let mut lock = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *lock;
        if kept.count >= MAX_IDLE_CONNECTIONS || connection.request_sender.is_closed() {
            return;
        }
        let waiting = kept.by_receiver.entry(PoolKey::from(target)).or_default();
        if waiting.len() < MAX_IDLE_PER_RECEIVER {
            waiting.push(IdleConnection {
                connection,
                idle_since: Instant::now(),
            });
            kept.count += 1;
        }
    }
}

fn is_allowed_peer(peer: SocketAddr, vetted: &AllowedAddresses) -> bool {
    vetted.addresses.contains(&peer)
}

/// Ends with the pool: it holds no part of it between two rounds.
async fn close_expired_connections(shelf: Weak<Mutex<IdleConnections>>, kept_for: Duration) {
    loop {
        tokio::time::sleep(kept_for).await;
        let Some(shelf) = shelf.upgrade() else { return };
        let mut lock = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *lock;
        kept.by_receiver.retain(|_, waiting| {
            waiting.retain(|one| {
                one.idle_since.elapsed() < kept_for && !one.connection.request_sender.is_closed()
            });
            !waiting.is_empty()
        });
        kept.count = kept.by_receiver.values().map(Vec::len).sum();
    }
}
