//! Tells dispatchers that deliveries are due: the one in this process at once, those of other processes when this process
//! has no free slot.
//!
//! A notification only wakes a dispatcher earlier. One that is lost delays a delivery until the next poll.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::store;
use crate::db::Database;
use crate::db::change_listener::{ChangeListener, DatabaseChange};

/// The shortest time between two notifications of other processes. Each NOTIFY takes a lock that is shared by all commits
/// of the database server that notify. For the same reason none is sent in the transaction that stores an event.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(50);

/// Wakes dispatchers. Clones share the state.
#[derive(Clone, Default)]
pub struct WorkNotifier(Arc<NotifierState>);

#[derive(Default)]
struct NotifierState {
    local: Notify,
    remote: Notify,
    /// Whether this process delivers and has a free slot.
    has_free_slots: AtomicBool,
}

impl WorkNotifier {
    /// Also wakes the dispatcher of this process when another process notifies it, and when a tenant or a webhook
    /// configuration changes: deliveries that were kept back may be sent then.
    pub fn from_changes(changes: &ChangeListener) -> Self {
        let notifier = Self::default();
        let on_work = notifier.clone();
        changes.on_notification(store::WORK_CHANNEL, move || on_work.0.local.notify_one());
        let on_change = notifier.clone();
        changes.subscribe(move |change| {
            if let DatabaseChange::Row { table, .. } = change
                && matches!(table.as_str(), "tenants" | "webhook_configs")
            {
                on_change.0.local.notify_one();
            }
        });
        notifier
    }

    /// Wakes a dispatcher. Call it after the commit that made deliveries due, never before.
    pub fn notify_work(&self) {
        if self.0.has_free_slots.load(Ordering::Acquire) {
            self.0.local.notify_one();
        } else {
            self.0.remote.notify_one();
        }
    }

    /// Sends the notifications for other processes until `stop` is cancelled.
    pub async fn run_remote_notifications(&self, database: &Database, stop: CancellationToken) {
        let sending = async {
            loop {
                self.0.remote.notified().await;
                // Without it they find the deliveries at their next poll.
                if let Err(error) = store::notify_work_channel(database).await {
                    tracing::debug!(%error, "work_notification_failed");
                }
                sleep(NOTIFY_INTERVAL).await;
            }
        };
        stop.run_until_cancelled(sending).await;
    }

    /// Waits for the next notification. One that came before the call is not lost.
    pub(super) async fn wait_for_work(&self) {
        self.0.local.notified().await;
    }

    /// Sets whether this process has a free slot for the next delivery.
    pub(super) fn set_ready(&self, ready: bool) {
        self.0.has_free_slots.store(ready, Ordering::Release);
    }
}
