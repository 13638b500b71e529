//! When a key was last used: noted in memory at every request, written at most once a minute a key, in batches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::base::clock::{Clock, Timestamp};
use crate::base::id::KeyId;
use crate::db::{Database, Error, error_class};

use super::store;

/// A key's time is written at most this often.
const WRITE_INTERVAL: Duration = Duration::from_mins(1);
/// How often it is looked whether there is something to write.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// How long the last write may take when the process ends.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Keys in one statement.
const BATCH_SIZE: usize = 1000;
/// No moment: a key that was not used, or not written, since this process began.
const NEVER: i64 = i64::MIN;

/// One key's clock card. Shared by everyone who knows the key.
#[derive(Debug)]
pub(super) struct LastUsed {
    /// The last use, in milliseconds.
    used_at_ms: AtomicI64,
    /// What of it is written.
    written_at_ms: AtomicI64,
}

impl LastUsed {
    /// Notes a use.
    pub(super) fn record_use(&self, now: Timestamp) {
        self.used_at_ms
            .fetch_max(now.as_millis(), Ordering::Relaxed);
    }
}

/// The clock cards of this process.
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

    /// The key's card.
    pub(super) fn last_used_of(&self, key: &KeyId) -> Arc<LastUsed> {
        let mut cards = self
            .last_used_by_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(card) = cards.get(key) {
            return card.clone();
        }
        let card = Arc::new(LastUsed {
            used_at_ms: AtomicI64::new(NEVER),
            written_at_ms: AtomicI64::new(NEVER),
        });
        cards.insert(key.clone(), card.clone());
        card
    }

    /// Writes what is due until `stop`, and then what is left.
    pub(super) async fn run_writer(&self, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(FLUSH_INTERVAL))
            .await
            .is_some()
        {
            if let Err(error) = self.flush_due(FlushScope::NotWrittenRecently).await {
                let class = error_class(&error);
                tracing::warn!(cause = %error, causeClass = class, "could not write when keys were last used; it is tried again");
            }
        }
        match tokio::time::timeout(FINAL_WRITE_TIMEOUT, self.flush_due(FlushScope::All)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let class = error_class(&error);
                tracing::warn!(cause = %error, causeClass = class, "could not write when keys were last used before stopping");
            }
            Err(_) => tracing::warn!("no time to write when keys were last used before stopping"),
        }
    }

    /// Writes what is due. What could not be written stays due.
    pub(super) async fn flush_due(&self, due: FlushScope) -> Result<(), Error> {
        let due = self.collect_due(due);
        for batch in due.chunks(BATCH_SIZE) {
            let used: Vec<_> = batch
                .iter()
                .map(|(key, _, at)| (key.clone(), Timestamp::from_millis(*at)))
                .collect();
            store::write_last_used(&self.database, &used).await?;
            for (_, card, at) in batch {
                card.written_at_ms.store(*at, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn collect_due(&self, due: FlushScope) -> Vec<(KeyId, Arc<LastUsed>, i64)> {
        let threshold = match due {
            FlushScope::NotWrittenRecently => self.clock.now().minus(WRITE_INTERVAL).as_millis(),
            FlushScope::All => i64::MAX,
        };
        let mut cards = self
            .last_used_by_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut to_write = Vec::new();
        cards.retain(|key, card| {
            let (last, written) = (
                card.used_at_ms.load(Ordering::Relaxed),
                card.written_at_ms.load(Ordering::Relaxed),
            );
            if last > written && written <= threshold {
                to_write.push((key.clone(), card.clone(), last));
            }
            // A card is kept while somebody may still use it, while it has something to say, and until the minute
            // after its last write is over.
            Arc::strong_count(card) > 1 || last > written || written > threshold
        });
        to_write
    }
}

/// Which cards are due.
#[derive(Clone, Copy, Debug)]
pub(super) enum FlushScope {
    /// Those not written within the last minute.
    NotWrittenRecently,
    /// All that have something to say.
    All,
}
