//! Connections that were left in good order, for a few seconds.
//!
//! Under load a receiver is not greeted anew for every event. A kept connection is used again only when the address it
//! goes to was judged again and is still one of its name's, so it cannot outlive a change of either.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::dial::Connection;
use crate::deliveries::guard::target::TargetHost;
use crate::deliveries::guard::{Target, Vetted};

/// How many wait for one receiver. Callbacks of several tenants may be at one.
const MOST_PER_RECEIVER: usize = 64;
/// How many wait in all.
const MOST: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Receiver {
    tls: bool,
    host: TargetHost,
    port: u16,
}

impl From<&Target> for Receiver {
    fn from(target: &Target) -> Self {
        Self {
            tls: target.tls,
            host: target.host.clone(),
            port: target.port,
        }
    }
}

struct Waiting {
    connection: Connection,
    since: Instant,
}

#[derive(Default)]
struct Shelf {
    receivers: HashMap<Receiver, Vec<Waiting>>,
    count: usize,
}

/// Kept connections. Clones share them.
#[derive(Clone)]
pub(super) struct Pool {
    kept_for: Duration,
    shelf: Arc<Mutex<Shelf>>,
}

impl Pool {
    /// An empty one, which closes in the background what has waited for so long. Call it where a runtime is.
    pub(super) fn new(kept_for: Duration) -> Self {
        let shelf = Arc::default();
        tokio::spawn(sweep(Arc::downgrade(&shelf), kept_for));
        Self { kept_for, shelf }
    }

    /// A connection to one of the addresses that were judged for this target just now; the one that has waited least.
    pub(super) fn take(&self, target: &Target, vetted: &Vetted) -> Option<Connection> {
        let mut lock = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *lock;
        let waiting = kept.receivers.get_mut(&Receiver::from(target))?;
        while let Some(last) = waiting.pop() {
            kept.count -= 1;
            let connection = last.connection;
            if last.since.elapsed() < self.kept_for
                && !connection.requests.is_closed()
                && is_judged(connection.peer, vetted)
            {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn keep(&self, target: &Target, connection: Connection) {
        let mut lock = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *lock;
        if kept.count >= MOST || connection.requests.is_closed() {
            return;
        }
        let waiting = kept.receivers.entry(Receiver::from(target)).or_default();
        if waiting.len() < MOST_PER_RECEIVER {
            waiting.push(Waiting {
                connection,
                since: Instant::now(),
            });
            kept.count += 1;
        }
    }
}

fn is_judged(peer: SocketAddr, vetted: &Vetted) -> bool {
    vetted.addresses.contains(&peer)
}

/// Ends with the pool: it holds no part of it between two rounds.
async fn sweep(shelf: Weak<Mutex<Shelf>>, kept_for: Duration) {
    loop {
        tokio::time::sleep(kept_for).await;
        let Some(shelf) = shelf.upgrade() else { return };
        let mut lock = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *lock;
        kept.receivers.retain(|_, waiting| {
            waiting.retain(|one| {
                one.since.elapsed() < kept_for && !one.connection.requests.is_closed()
            });
            !waiting.is_empty()
        });
        kept.count = kept.receivers.values().map(Vec::len).sum();
    }
}
