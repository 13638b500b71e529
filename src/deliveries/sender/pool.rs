//! Idle connections, kept for a few seconds.
//!
//! Under load a receiver does not need a new connection for every event. An idle connection is used again only when its
//! address was just resolved and checked again: a change in DNS or in the egress policy applies to it at once.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::connect::CallbackConnection;
use crate::deliveries::endpoint::ClientCertificate;
use crate::egress::{AllowedAddresses, CallbackHost, CallbackTarget};

/// Several tenants may have callbacks at one receiver.
const MAX_IDLE_PER_RECEIVER: usize = 64;
const MAX_IDLE_CONNECTIONS: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PoolKey {
    tls: bool,
    host: CallbackHost,
    port: u16,
    /// To the receiver, all requests of a connection are of the owner of the certificate that was shown when it was opened.
    client_certificate: Option<[u8; 32]>,
}

impl PoolKey {
    fn new(target: &CallbackTarget, shown: Option<&ClientCertificate>) -> Self {
        Self {
            tls: target.is_https,
            host: target.host.clone(),
            port: target.port,
            client_certificate: shown.map(ClientCertificate::fingerprint),
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

/// Clones share the connections.
#[derive(Clone)]
pub(super) struct ConnectionPool {
    idle_timeout: Duration,
    idle: Arc<Mutex<IdleConnections>>,
}

impl ConnectionPool {
    /// Spawns a task that closes connections which were idle for `idle_timeout`, so it needs a Tokio runtime.
    pub(super) fn new(idle_timeout: Duration) -> Self {
        let idle = Arc::default();
        tokio::spawn(close_expired_connections(
            Arc::downgrade(&idle),
            idle_timeout,
        ));
        Self { idle_timeout, idle }
    }

    /// The connection to one of these checked addresses that was used last, and that was opened with this
    /// client certificate, or without one.
    pub(super) fn take_connection(
        &self,
        target: &CallbackTarget,
        shown: Option<&ClientCertificate>,
        vetted: &AllowedAddresses,
    ) -> Option<CallbackConnection> {
        let mut lock = self.idle.lock();
        let kept = &mut *lock;
        let waiting = kept.by_receiver.get_mut(&PoolKey::new(target, shown))?;
        while let Some(last) = waiting.pop() {
            kept.count -= 1;
            let connection = last.connection;
            if last.idle_since.elapsed() < self.idle_timeout
                && !connection.request_sender.is_closed()
                && vetted.addresses.contains(&connection.peer_address)
            {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose last answer was read to its end.
    pub(super) fn keep_connection(
        &self,
        target: &CallbackTarget,
        shown: Option<&ClientCertificate>,
        connection: CallbackConnection,
    ) {
        let mut kept = self.idle.lock();
        if kept.count >= MAX_IDLE_CONNECTIONS || connection.request_sender.is_closed() {
            return;
        }
        let key = PoolKey::new(target, shown);
        let waiting = kept.by_receiver.entry(key).or_default();
        if waiting.len() < MAX_IDLE_PER_RECEIVER {
            waiting.push(IdleConnection {
                connection,
                idle_since: Instant::now(),
            });
            kept.count += 1;
        }
    }
}

/// Ends when the pool is dropped: it only holds a weak reference while it sleeps.
async fn close_expired_connections(pool: Weak<Mutex<IdleConnections>>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut kept = pool.lock();
        kept.by_receiver.retain(|_, waiting| {
            waiting.retain(|idle| {
                idle.idle_since.elapsed() < idle_timeout
                    && !idle.connection.request_sender.is_closed()
            });
            !waiting.is_empty()
        });
        kept.count = kept.by_receiver.values().map(Vec::len).sum();
    }
}
