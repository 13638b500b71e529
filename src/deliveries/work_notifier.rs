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
use crate::db::change_listener::{ChangeListener, DatabaseChange};

/// The others are told at most this often. Every notification takes a lock that all of the server's notifying commits
/// share, which is also why none is sent inside the transaction that stores an event.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(50);

/// Tells whoever delivers that there is something to deliver. Clones share it.
#[derive(Clone, Default)]
pub struct WorkNotifier(Arc<NotifierState>);

#[derive(Default)]
struct NotifierState {
    local: Notify,
    remote: Notify,
    /// Whether this process delivers and has a hand free.
    has_free_slots: AtomicBool,
}

impl WorkNotifier {
    /// One that also hears what other processes say, and what may make waiting work possible.
    pub fn from_changes(changes: &ChangeListener) -> Self {
        let wake = Self::default();
        let said = wake.clone();
        changes.on_notification(store::WORK_CHANNEL, move || said.0.local.notify_one());
        let switched_on = wake.clone();
        changes.subscribe(move |change| {
            // A tenant or a callback that was switched on, perhaps.
            if let DatabaseChange::Row { table, .. } = change
                && matches!(table.as_str(), "tenants" | "webhook_configs")
            {
                switched_on.0.local.notify_one();
            }
        });
        wake
    }

    /// Say it after the commit, never before.
    pub fn notify_work(&self) {
        if self.0.has_free_slots.load(Ordering::Acquire) {
            self.0.local.notify_one();
        } else {
            self.0.remote.notify_one();
        }
    }

    /// Tells the other processes, as often as is good for the database, until `stop`.
    pub async fn run_remote_notifications(&self, database: &Database, stop: CancellationToken) {
        let telling = async {
            loop {
                self.0.remote.notified().await;
                // They find it without us, only later.
                if let Err(error) = store::notify_work_channel(database).await {
                    tracing::debug!(%error, "could not tell other processes that there is work");
                }
                sleep(NOTIFY_INTERVAL).await;
            }
        };
        stop.run_until_cancelled(telling).await;
    }

    /// Waits for the next word. One that was said while nobody waited is not lost.
    pub(super) async fn wait_for_work(&self) {
        self.0.local.notified().await;
    }

    /// Whether this process takes the next delivery itself.
    pub(super) fn set_ready(&self, ready: bool) {
        self.0.has_free_slots.store(ready, Ordering::Release);
    }
}
