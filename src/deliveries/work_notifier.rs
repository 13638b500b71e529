//! Tells dispatchers in which lanes deliveries are due: the one in this process if it claims there at once, otherwise those of
//! the other processes.
//!
//! A notification only wakes a dispatcher earlier. One that is lost delays a delivery until the next poll.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::store;
use crate::base::id::TenantId;
use crate::base::lane::{LaneSet, SharedLanes};
use crate::db::Database;
use crate::db::change_listener::{ChangeListener, DatabaseChange};
use crate::tenants::lane::tenant_lane;

/// The shortest time between two notifications of other processes. Each NOTIFY takes a lock that is shared by all commits
/// of the database server that notify. For the same reason none is sent in the transaction that stores an event.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(50);

/// After a notification that failed, because the database is away or busy.
const NOTIFY_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Wakes dispatchers. Clones share the state.
#[derive(Clone, Default)]
pub struct WorkNotifier(Arc<NotifierState>);

#[derive(Default)]
struct NotifierState {
    local: Notify,
    local_work: WorkLanes,
    remote: Notify,
    remote_lanes: SharedLanes,
    /// The lanes in which this process claims at once.
    ready_lanes: SharedLanes,
}

#[derive(Default)]
struct WorkLanes {
    due: SharedLanes,
    unknown: SharedLanes,
}

/// Where there is work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotifiedWork {
    /// Deliveries are due in these lanes.
    pub(super) due: LaneSet,
    /// Deliveries may be due in these.
    pub(super) unknown: LaneSet,
}

impl NotifiedWork {
    fn due(lanes: LaneSet) -> Self {
        Self {
            due: lanes,
            unknown: LaneSet::EMPTY,
        }
    }
}

impl WorkNotifier {
    /// Also wakes the dispatcher of this process when another process notifies it, and when a tenant or a webhook
    /// configuration changes: deliveries that were kept back may be sent then.
    pub fn from_changes(changes: &ChangeListener) -> Self {
        let notifier = Self::default();
        let on_work = notifier.clone();
        changes.on_notification(store::WORK_CHANNEL, move |payload| {
            let work = store::parse_work_payload(payload).map(NotifiedWork::due);
            on_work.wake_local(work.unwrap_or(NotifiedWork {
                due: LaneSet::EMPTY,
                unknown: LaneSet::ALL,
            }));
        });
        let on_change = notifier.clone();
        changes.subscribe(move |change| {
            if let DatabaseChange::Row { table, tenant } = change
                && matches!(table.as_str(), "tenants" | "webhook_configs")
            {
                on_change.wake_local(NotifiedWork::due(tenant_lane(tenant).into()));
            }
        });
        notifier
    }

    /// Wakes a dispatcher: a delivery of this tenant is due. Call it after the commit that made it due, never before.
    pub fn notify_work(&self, tenant: &TenantId) {
        let lane = tenant_lane(tenant);
        // This process knows of it too when its next slot becomes free.
        self.0.local_work.due.add(lane.into());
        if self.0.ready_lanes.get().contains(lane) {
            self.0.local.notify_one();
        } else {
            self.notify_others(lane.into());
        }
    }

    /// Wakes the dispatchers of other processes: deliveries are due in these lanes.
    pub(super) fn notify_others(&self, lanes: LaneSet) {
        if !lanes.is_empty() {
            self.0.remote_lanes.add(lanes);
            self.0.remote.notify_one();
        }
    }

    fn wake_local(&self, work: NotifiedWork) {
        self.0.local_work.due.add(work.due);
        self.0.local_work.unknown.add(work.unknown);
        self.0.local.notify_one();
    }

    /// Sends the notifications for other processes until `stop` is cancelled.
    pub async fn run_remote_notifications(&self, database: &Database, stop: CancellationToken) {
        let sending = async {
            loop {
                self.0.remote.notified().await;
                let lanes = self.0.remote_lanes.take();
                let interval = match store::notify_work_channel(database, lanes).await {
                    Ok(()) => NOTIFY_INTERVAL,
                    // Until it succeeds, others find the deliveries at their next poll.
                    Err(error) => {
                        tracing::debug!(
                            error = crate::db::describe_cause(&error),
                            "work_notification_failed"
                        );
                        self.notify_others(lanes);
                        NOTIFY_RETRY_INTERVAL
                    }
                };
                sleep(interval).await;
            }
        };
        stop.run_until_cancelled(sending).await;
    }

    /// Waits for the next notification. One that came before the call is not lost.
    pub(super) async fn wait_for_work(&self) {
        self.0.local.notified().await;
    }

    /// Where work was notified since the last call, also by notifications that woke no dispatcher of this process.
    pub(super) fn take_work(&self) -> NotifiedWork {
        NotifiedWork {
            due: self.0.local_work.due.take(),
            unknown: self.0.local_work.unknown.take(),
        }
    }

    /// Sets in which lanes this process claims at once.
    pub(super) fn set_ready(&self, lanes: LaneSet) {
        self.0.ready_lanes.set(lanes);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::base::clock::Timestamp;

    #[tokio::test]
    async fn the_process_that_claims_at_once_is_woken() {
        let notifier = WorkNotifier::default();
        let tenant = TenantId::mint(Timestamp::from_millis(0));
        let lanes = LaneSet::from(tenant_lane(&tenant));
        notifier.notify_work(&tenant);
        assert_eq!(notifier.wait_for_work().now_or_never(), None);
        assert_eq!(notifier.0.remote_lanes.take(), lanes);
        assert_eq!(notifier.take_work(), NotifiedWork::due(lanes));
        notifier.set_ready(lanes);
        notifier.notify_work(&tenant);
        assert_eq!(notifier.wait_for_work().now_or_never(), Some(()));
        assert_eq!(notifier.take_work(), NotifiedWork::due(lanes));
        assert_eq!(notifier.0.remote_lanes.take(), LaneSet::EMPTY);
    }
}
