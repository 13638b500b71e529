//! What a connection is doing: how many requests are in hand, and since when none is.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::connection_table::OpenConnection;

/// What a connection is doing.
pub(super) struct ConnectionActivity(Mutex<ActivityState>);

struct ActivityState {
    active_requests: usize,
    finished_requests: u64,
    /// When a request began or ended; at first, when the connection was opened.
    last_change: Instant,
}

impl ConnectionActivity {
    pub(super) fn new() -> Self {
        Self(Mutex::new(ActivityState {
            active_requests: 0,
            finished_requests: 0,
            last_change: Instant::now(),
        }))
    }

    fn with_state<T>(&self, look: impl FnOnce(&mut ActivityState) -> T) -> T {
        look(&mut self.0.lock())
    }

    /// Requests in hand, and requests finished.
    pub(super) fn request_counts(&self) -> (usize, u64) {
        self.with_state(|doing| (doing.active_requests, doing.finished_requests))
    }

    /// Requests in hand, and when the last one began or ended.
    pub(super) fn active_requests_and_last_change(&self) -> (usize, Instant) {
        self.with_state(|doing| (doing.active_requests, doing.last_change))
    }

    /// Waits until nothing has been in hand for `limit`, counted from `from` at the earliest.
    pub(super) async fn wait_until_idle(&self, limit: Duration, from: Option<Instant>) {
        loop {
            // While something is in hand, looking again after the limit is soon enough.
            let since =
                self.with_state(|doing| (doing.active_requests == 0).then_some(doing.last_change));
            let since = since.unwrap_or_else(Instant::now);
            let end = from.map_or(since, |from| from.max(since)) + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// A request in hand.
pub(super) struct ActiveRequest(Arc<OpenConnection>);

impl ActiveRequest {
    pub(super) fn new(connection: &Arc<OpenConnection>) -> Self {
        connection.activity.with_state(|doing| {
            doing.active_requests += 1;
            doing.last_change = Instant::now();
        });
        Self(connection.clone())
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.activity.with_state(|doing| {
            doing.active_requests -= 1;
            doing.finished_requests += 1;
            doing.last_change = Instant::now();
        });
    }
}
