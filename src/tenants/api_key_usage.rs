//! When a key was last used: recorded in memory at every request, written at most once a minute for each key, in batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::KeyId;
use crate::db::{Database, Error, error_class};

use super::store;

/// How often the time of one key is written at most.
const WRITE_INTERVAL: Duration = Duration::from_mins(1);
/// How often changed times are looked for.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// How long the last write may take when the process ends.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most keys that one statement updates.
const BATCH_SIZE: usize = 1000;
/// The key was not used, or not written, since this process started.
const NEVER: i64 = i64::MIN;

/// When one key was last used. Shared by the cached records of the key.
#[derive(Debug)]
pub(super) struct LastUsed {
    /// Milliseconds since the Unix epoch, as is the other.
    used_at_ms: AtomicI64,
    /// The last time that was written to the database.
    written_at_ms: AtomicI64,
}

impl LastUsed {
    pub(super) fn record_use(&self, now: Timestamp) {
        self.used_at_ms
            .fetch_max(now.as_millis(), Ordering::Relaxed);
    }
}

/// The last use of every key that this process has seen.
pub(super) struct ApiKeyUsage {
    database: Database,
    clock: Clock,
    last_used_by_key: Mutex<HashMap<KeyId, Arc<LastUsed>>>,
}

impl ApiKeyUsage {
    pub(super) fn new(database: Database, clock: Clock) -> Self {
        Self {
            database,
            clock,
            last_used_by_key: Mutex::default(),
        }
    }

    /// Creates the entry when there is none.
    pub(super) fn last_used_of(&self, key: &KeyId) -> Arc<LastUsed> {
        let mut entries = self.last_used_by_key.lock();
        if let Some(entry) = entries.get(key) {
            return entry.clone();
        }
        let entry = Arc::new(LastUsed {
            used_at_ms: AtomicI64::new(NEVER),
            written_at_ms: AtomicI64::new(NEVER),
        });
        entries.insert(key.clone(), entry.clone());
        entry
    }

    /// Writes due times until `stop`, and then all that are not written.
    pub(super) async fn run_writer(&self, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(FLUSH_INTERVAL))
            .await
            .is_some()
        {
            if let Err(error) = self.flush_due(FlushScope::NotWrittenRecently).await {
                let class = error_class(&error);
                tracing::warn!(
                    cause = crate::db::describe_cause(&error),
                    causeClass = class,
                    hint = "it is tried again",
                    "api_key_usage_not_written"
                );
            }
        }
        match tokio::time::timeout(FINAL_WRITE_TIMEOUT, self.flush_due(FlushScope::All)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let class = error_class(&error);
                tracing::warn!(
                    cause = crate::db::describe_cause(&error),
                    causeClass = class,
                    "api_key_usage_not_written"
                );
            }
            Err(_) => tracing::warn!(
                hint = "the database did not answer before the process stopped",
                "api_key_usage_not_written"
            ),
        }
    }

    /// Times that could not be written stay due.
    pub(super) async fn flush_due(&self, due: FlushScope) -> Result<(), Error> {
        let due = self.collect_due(due);
        for batch in due.chunks(BATCH_SIZE) {
            let used: Vec<_> = batch
                .iter()
                .map(|(key, _, at)| (key.clone(), Timestamp::from_millis(*at)))
                .collect();
            store::write_last_used(&self.database, &used).await?;
            for (_, entry, at) in batch {
                entry.written_at_ms.store(*at, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn collect_due(&self, due: FlushScope) -> Vec<(KeyId, Arc<LastUsed>, i64)> {
        let threshold = match due {
            FlushScope::NotWrittenRecently => self.clock.now().minus(WRITE_INTERVAL).as_millis(),
            FlushScope::All => i64::MAX,
        };
        let mut entries = self.last_used_by_key.lock();
        let mut to_write = Vec::new();
        entries.retain(|key, entry| {
            let (last, written) = (
                entry.used_at_ms.load(Ordering::Relaxed),
                entry.written_at_ms.load(Ordering::Relaxed),
            );
            if last > written && written <= threshold {
                to_write.push((key.clone(), entry.clone(), last));
            }
            // An entry is kept while a cached record shares it, while it is not written, and for a minute after
            // its last write.
            Arc::strong_count(entry) > 1 || last > written || written > threshold
        });
        to_write
    }
}

/// Which times are written.
#[derive(Clone, Copy, Debug)]
pub(super) enum FlushScope {
    /// Of keys that were not written within the last minute.
    NotWrittenRecently,
    /// All that are not written yet.
    All,
}
