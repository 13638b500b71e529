//! What a connection is doing: how many requests are in hand, and since when none is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What a connection is doing.
pub(super) struct ConnectionActivity(Mutex<ActivityState>);

struct ActivityState {
    active_requests: usize,
    finished_requests: u64,
    /// Since when nothing has been in hand; while something is, since when it is not known to be otherwise.
    idle_since: Instant,
}

impl ConnectionActivity {
    pub(super) fn new() -> Self {
        Self(Mutex::new(ActivityState {
            active_requests: 0,
            finished_requests: 0,
            idle_since: Instant::now(),
        }))
    }

    fn with_state<T>(&self, look: impl FnOnce(&mut ActivityState) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests in hand, and requests finished.
    pub(super) fn request_counts(&self) -> (usize, u64) {
        self.with_state(|doing| (doing.active_requests, doing.finished_requests))
    }

    /// Waits until nothing has been in hand for `limit`, counted from `from` at the earliest.
    pub(super) async fn wait_until_idle(&self, limit: Duration, from: Option<Instant>) {
        loop {
            // While something is in hand, looking again after the limit is soon enough.
            let since =
                self.with_state(|doing| (doing.active_requests == 0).then_some(doing.idle_since));
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
pub(super) struct ActiveRequest(Arc<ConnectionActivity>);

impl ActiveRequest {
    pub(super) fn new(activity: &Arc<ConnectionActivity>) -> Self {
        activity.with_state(|doing| doing.active_requests += 1);
        Self(activity.clone())
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.with_state(|doing| {
            doing.active_requests -= 1;
            doing.finished_requests += 1;
            doing.idle_since = Instant::now();
        });
    }
}
