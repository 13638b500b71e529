//! "There is work": said at once in this process, and to the others when this one has no hand free.
//!
//! It is a hint. Whoever misses it finds the work by looking; nothing is ever delivered because of a hint alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::store;
use crate::db::Database;
use crate::db::changes::{Change, Changes};

/// The others are told at most this often. Every notification takes a lock that all of the server's notifying commits
/// share, which is also why none is sent inside the transaction that stores an event.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// Tells whoever delivers that there is something to deliver. Clones share it.
#[derive(Clone, Default)]
pub struct Wake(Arc<Shared>);

#[derive(Default)]
struct Shared {
    here: Notify,
    elsewhere: Notify,
    /// Whether this process delivers and has a hand free.
    ready: AtomicBool,
}

impl Wake {
    /// One that also hears what other processes say, and what may make waiting work possible.
    pub fn listening(changes: &Changes) -> Self {
        let wake = Self::default();
        let said = wake.clone();
        changes.on(store::CHANNEL, move || said.0.here.notify_one());
        let switched_on = wake.clone();
        changes.subscribe(move |change| {
            // A tenant or a callback that was switched on, perhaps.
            if let Change::Row { table, .. } = change
                && matches!(table.as_str(), "tenants" | "webhook_configs")
            {
                switched_on.0.here.notify_one();
            }
        });
        wake
    }

    /// Say it after the commit, never before.
    pub fn work_arrived(&self) {
        if self.0.ready.load(Ordering::Acquire) {
            self.0.here.notify_one();
        } else {
            self.0.elsewhere.notify_one();
        }
    }

    /// Tells the other processes, as often as is good for the database, until `stop`.
    pub async fn run(&self, database: &Database, stop: CancellationToken) {
        let telling = async {
            loop {
                self.0.elsewhere.notified().await;
                // They find it without us, only later.
                if let Err(error) = store::announce(database).await {
                    tracing::debug!(%error, "could not tell other processes that there is work");
                }
                sleep(TELL_EVERY).await;
            }
        };
        stop.run_until_cancelled(telling).await;
    }

    /// Waits for the next word. One that was said while nobody waited is not lost.
    pub(super) async fn heard(&self) {
        self.0.here.notified().await;
    }

    /// Whether this process takes the next delivery itself.
    pub(super) fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Release);
    }
}
