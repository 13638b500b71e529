//! [`WriteWatch`]: whether this process's writes complete.
//!
//! A primary whose synchronous standby is away answers every question and completes no commit. That shows only in writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Writes are stalled when one has taken this long and no other was completed meanwhile. Together with
/// [`HEARTBEAT_INTERVAL`](super::change_listener), within which a process writes something, less than three seconds.
const STALL_THRESHOLD: Duration = Duration::from_millis(1500);

/// The writes of this process that are watched. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct WriteWatch {
    state: Arc<Mutex<WatchedWrites>>,
}

#[derive(Debug, Default)]
struct WatchedWrites {
    next_number: u64,
    /// When each write began that is not completed.
    open: BTreeMap<u64, Instant>,
    last_completed: Option<Instant>,
}

impl WatchedWrites {
    fn is_stalled(&self, now: Instant) -> bool {
        let Some((_, oldest)) = self.open.first_key_value() else {
            return false;
        };
        let since = self
            .last_completed
            .map_or(*oldest, |done| done.max(*oldest));
        now.duration_since(since) >= STALL_THRESHOLD
    }
}

impl WriteWatch {
    /// Waits for a write until it is committed. One that fails or is given up counts neither as open nor as completed.
    pub async fn observe<T, E>(&self, write: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let open = OpenWrite::begin(self);
        let done = write.await?;
        open.watch.state.lock().last_completed = Some(Instant::now());
        Ok(done)
    }

    /// Whether writes have begun for a while and none completes.
    pub fn is_stalled(&self) -> bool {
        self.state.lock().is_stalled(Instant::now())
    }
}

struct OpenWrite {
    watch: WriteWatch,
    number: u64,
}

impl OpenWrite {
    fn begin(watch: &WriteWatch) -> Self {
        let mut writes = watch.state.lock();
        let number = writes.next_number;
        writes.next_number += 1;
        writes.open.insert(number, Instant::now());
        Self {
            watch: watch.clone(),
            number,
        }
    }
}

impl Drop for OpenWrite {
    fn drop(&mut self) {
        self.watch.state.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_stalled_while_none_of_them_completes() {
        let begun = Instant::now();
        let soon = begun + STALL_THRESHOLD / 2;
        let late = begun + STALL_THRESHOLD;
        let mut writes = WatchedWrites::default();
        assert!(!writes.is_stalled(late), "there is none");
        writes.open.insert(0, begun);
        assert!(!writes.is_stalled(soon), "it may take a moment");
        assert!(writes.is_stalled(late));
        // Others complete: it is the one write that waits, for a lock perhaps.
        writes.last_completed = Some(soon);
        assert!(!writes.is_stalled(late));
        assert!(writes.is_stalled(soon + STALL_THRESHOLD));
        writes.open.clear();
        assert!(!writes.is_stalled(soon + STALL_THRESHOLD));
    }

    #[tokio::test]
    async fn only_a_write_that_is_committed_counts() {
        let watch = WriteWatch::default();
        let failed = watch.observe(async { Err::<(), _>(()) }).await;
        let given_up = watch.observe(std::future::pending::<Result<(), ()>>());
        drop(given_up);
        let left = |watch: &WriteWatch| {
            let writes = watch.state.lock();
            (writes.open.len(), writes.last_completed.is_some())
        };
        assert!(failed.is_err());
        assert_eq!(left(&watch), (0, false));
        watch.observe(async { Ok::<_, ()>(()) }).await.unwrap();
        assert_eq!(left(&watch), (0, true));
    }
}
