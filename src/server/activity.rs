//! What a connection is doing: how many requests are in hand, and since when none is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What a connection is doing.
pub(super) struct Activity(Mutex<Doing>);

struct Doing {
    in_hand: usize,
    finished: u64,
    /// Since when nothing has been in hand; while something is, since when it is not known to be otherwise.
    idle_since: Instant,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Doing {
            in_hand: 0,
            finished: 0,
            idle_since: Instant::now(),
        }))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Doing) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests in hand, and requests finished.
    pub(super) fn counts(&self) -> (usize, u64) {
        self.with(|doing| (doing.in_hand, doing.finished))
    }

    /// Waits until nothing has been in hand for `limit`, counted from `from` at the earliest.
    pub(super) async fn idle(&self, limit: Duration, from: Option<Instant>) {
        loop {
            // While something is in hand, looking again after the limit is soon enough.
            let since = self.with(|doing| (doing.in_hand == 0).then_some(doing.idle_since));
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
pub(super) struct Held(Arc<Activity>);

impl Held {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.with(|doing| doing.in_hand += 1);
        Self(activity.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.with(|doing| {
            doing.in_hand -= 1;
            doing.finished += 1;
            doing.idle_since = Instant::now();
        });
    }
}
