//! A row for each verification, written to the database after the answer was sent.
//!
//! Recording puts the row into a bounded queue and never waits. [`VerificationLog::run_writer`] writes the queue in
//! batches. While the database is unreachable and the queue is full, new rows are dropped and counted.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::purchase_hash::{HashKeyError, PurchaseDigest, PurchaseHashKey};
use super::store::{self, VerificationRow};
use crate::base::backoff::Backoff;
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::{AuditId, TenantId};
use crate::crypto::keyring::Keyring;
use crate::db::{Database, error_class};
use crate::events::EventSource;
use crate::telemetry::metrics::{Counter, Histogram, MetricVec, MetricsRegistry};
use crate::telemetry::metrics::{ObservableKind, u64_to_f64};

/// About 2 MB, or ten seconds without a database at a thousand verifications per second.
const MAX_QUEUED: usize = 10_000;
/// The maximum number of rows that one statement inserts.
const BATCH_SIZE: usize = 500;
/// How long the first row of a batch waits for further rows.
const BATCH_DELAY: Duration = Duration::from_millis(200);
/// The time limit for writing one batch.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time limit for the last writes when the process stops.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(3);
/// The delay between attempts while the database does not respond. It doubles up to the maximum.
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// The minimum time between two warnings about dropped rows.
const DROPPED_WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// The result of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerificationOutcome {
    /// The purchase is real.
    Valid,
    /// The store does not confirm the purchase. Contains the code of the answer.
    Invalid(&'static str),
    /// The purchase could not be verified. Contains the code of the error.
    Error(&'static str),
}

impl VerificationOutcome {
    fn metric_label(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Invalid(_) => "invalid",
            Self::Error(_) => "error",
        }
    }

    fn error_code(self) -> Option<&'static str> {
        match self {
            Self::Valid => None,
            Self::Invalid(code) | Self::Error(code) => Some(code),
        }
    }
}

/// Records verifications. Clones share one queue.
#[derive(Clone)]
pub struct VerificationLog {
    clock: Clock,
    verify_total: MetricVec<2, Counter>,
    verify_duration: MetricVec<1, Histogram>,
    queue: Option<Arc<VerificationQueue>>,
}

/// A verification in progress. If it is dropped because the client disconnected, nothing is recorded.
#[derive(Debug)]
pub struct PendingVerification<'a> {
    log: &'a VerificationLog,
    source: EventSource,
    started_at: Timestamp,
    started: Instant,
}

struct VerificationQueue {
    database: Database,
    keyring: Arc<Keyring>,
    sender: mpsc::Sender<QueuedVerification>,
    writer: Mutex<QueueWriter>,
    dropped: AtomicU64,
}

/// The state of the writer.
struct QueueWriter {
    receiver: mpsc::Receiver<QueuedVerification>,
    /// Rows that were taken from the queue and are not written yet.
    batch: Vec<QueuedVerification>,
    hash_key: Option<PurchaseHashKey>,
    /// The number of dropped rows when the last warning was logged, and when that was.
    reported_drops: u64,
    reported_at: Option<Instant>,
}

/// A row in the queue. It has a fixed size and does not contain the purchase token itself.
struct QueuedVerification {
    id: AuditId,
    tenant: TenantId,
    source: EventSource,
    purchase: PurchaseDigest,
    error_code: Option<&'static str>,
    latency: Duration,
    occurred_at: Timestamp,
}

/// Why a batch was not written.
#[derive(Debug, thiserror::Error)]
enum VerificationWriteError {
    #[error(transparent)]
    HashKey(#[from] HashKeyError),
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] crate::db::Error),
    #[error("the database did not answer within {WRITE_TIMEOUT:?}")]
    Timeout,
}

impl VerificationWriteError {
    /// The class of the error for the log, without the database's message.
    fn cause_class(&self) -> String {
        match self {
            Self::HashKey(HashKeyError::CannotOpen(_)) => "the hash key does not open".to_owned(),
            Self::HashKey(HashKeyError::Database(error)) | Self::Database(error) => {
                error_class(error)
            }
            Self::Timeout => "no answer".to_owned(),
        }
    }
}

impl VerificationLog {
    /// A log that updates the metrics and writes no rows.
    pub fn disabled(clock: &Clock) -> Self {
        Self::new(clock, None)
    }

    fn new(clock: &Clock, queue: Option<Arc<VerificationQueue>>) -> Self {
        let (verify_total, verify_duration) = register_metrics(&MetricsRegistry::default());
        Self {
            clock: clock.clone(),
            verify_total,
            verify_duration,
            queue,
        }
    }

    /// Registers the metrics. They count every verification, whether rows are written or not.
    #[must_use]
    pub fn with_metrics(self, registry: &MetricsRegistry) -> Self {
        let (results, took) = register_metrics(registry);
        let log = self.queue.clone();
        registry.register_observable(
            "attesto_validation_audit_dropped_total",
            "Rows of the validation log that were dropped because the queue was full or the process stopped.",
            move |record| {
                let dropped = log.as_ref();
                record(None, u64_to_f64(dropped.map_or(0, |log| log.dropped.load(Ordering::Relaxed))));
            },
            ObservableKind::Counter,
        );
        Self {
            verify_total: results,
            verify_duration: took,
            ..self
        }
    }

    /// A log whose rows are written to `validation_audit` while [`run_writer`](Self::run_writer) runs.
    pub fn for_database(database: &Database, keyring: &Arc<Keyring>, clock: &Clock) -> Self {
        let (sender, waiting) = mpsc::channel(MAX_QUEUED);
        let log = Arc::new(VerificationQueue {
            database: database.clone(),
            keyring: keyring.clone(),
            sender,
            writer: Mutex::new(QueueWriter {
                receiver: waiting,
                batch: Vec::new(),
                hash_key: None,
                reported_drops: 0,
                reported_at: None,
            }),
            dropped: AtomicU64::new(0),
        });
        Self::new(clock, Some(log))
    }

    /// Starts a verification and the measurement of its duration.
    pub fn start_verification(&self, source: EventSource) -> PendingVerification<'_> {
        PendingVerification {
            log: self,
            source,
            started_at: self.clock.now(),
            started: Instant::now(),
        }
    }

    /// The number of rows that were dropped since the process started, because the queue was full or the process
    /// stopped.
    pub fn dropped_count(&self) -> u64 {
        self.queue
            .as_ref()
            .map_or(0, |log| log.dropped.load(Ordering::Relaxed))
    }

    /// Writes queued rows until `stop` is cancelled, and then the rows that remain in the queue.
    pub async fn run_writer(&self, stop: CancellationToken) {
        let Some(log) = &self.queue else { return };
        let mut written = log.writer.lock().await;
        let mut backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
        while !stop.is_cancelled() {
            if written.batch.is_empty() {
                let Some(Some(first)) = stop.run_until_cancelled(written.receiver.recv()).await
                else {
                    break;
                };
                written.batch.push(first);
                stop.run_until_cancelled(sleep(BATCH_DELAY)).await;
            }
            match log.write_batch(&mut written).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::warn!(cause = %error, causeClass = error.cause_class(), hint = "it is tried again", "validation_audit_not_written");
                    let delay = backoff.next_delay(fastrand::f64());
                    stop.run_until_cancelled(sleep(delay)).await;
                }
            }
            log.warn_about_dropped(&mut written, false);
        }
        let rest = async {
            while !(written.batch.is_empty() && written.receiver.is_empty()) {
                log.write_batch(&mut written).await?;
            }
            Ok::<_, VerificationWriteError>(())
        };
        match timeout(FINAL_WRITE_TIMEOUT, rest).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(cause = %error, causeClass = error.cause_class(), "validation_audit_not_written");
            }
            Err(_) => {
                tracing::warn!(
                    hint = "the database did not answer before the process stopped",
                    "validation_audit_not_written"
                );
            }
        }
        let rest = u64::try_from(written.batch.len() + written.receiver.len()).unwrap_or(u64::MAX);
        log.dropped.fetch_add(rest, Ordering::Relaxed);
        log.warn_about_dropped(&mut written, true);
    }
}

impl PendingVerification<'_> {
    /// Records the outcome. Never waits: if the queue is full, the row is dropped and counted. `identifier` returns the
    /// transaction id or purchase token.
    pub fn record_outcome<'t>(
        self,
        tenant: &TenantId,
        identifier: impl FnOnce() -> Cow<'t, str>,
        outcome: VerificationOutcome,
    ) {
        let latency = self.started.elapsed();
        let source = self.source.as_str();
        let counts = self.log;
        counts
            .verify_total
            .with_label_values([source, outcome.metric_label()])
            .inc();
        counts
            .verify_duration
            .with_label_values([source])
            .observe(latency.as_secs_f64());
        let Some(log) = &self.log.queue else {
            return;
        };
        let Ok(room) = log.sender.try_reserve() else {
            log.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        room.send(QueuedVerification {
            id: AuditId::mint(self.started_at),
            tenant: tenant.clone(),
            source: self.source,
            purchase: PurchaseDigest::from_identifier(&identifier()),
            error_code: outcome.error_code(),
            latency,
            occurred_at: self.started_at,
        });
    }
}

fn register_metrics(
    registry: &MetricsRegistry,
) -> (MetricVec<2, Counter>, MetricVec<1, Histogram>) {
    let results = registry.register_counter_vec(
        "attesto_verify_total",
        "Questions about a purchase, by answer: valid, invalid, or error where there was no verdict.",
        ["store", "result"],
    );
    let took = registry.register_histogram_vec(
        "attesto_verify_duration_seconds",
        "How long answers about a purchase took.",
        ["store"],
    );
    for source in [EventSource::Apple, EventSource::Google] {
        for result in ["valid", "invalid", "error"] {
            results.with_label_values([source.as_str(), result]);
        }
        took.with_label_values([source.as_str()]);
    }
    (results, took)
}

impl VerificationQueue {
    /// Takes rows from the queue and writes them. If that fails, they are kept for the next call.
    async fn write_batch(&self, written: &mut QueueWriter) -> Result<(), VerificationWriteError> {
        while written.batch.len() < BATCH_SIZE {
            match written.receiver.try_recv() {
                Ok(note) => written.batch.push(note),
                Err(_) => break,
            }
        }
        let writing = async {
            let key = match written.hash_key.take() {
                Some(key) => key,
                None => PurchaseHashKey::load(&self.database, &self.keyring).await?,
            };
            let key = written.hash_key.insert(key);
            let rows: Vec<VerificationRow> =
                written.batch.iter().map(|note| note.to_row(key)).collect();
            Ok(store::insert_verifications(&self.database, &rows).await?)
        };
        timeout(WRITE_TIMEOUT, writing)
            .await
            .unwrap_or(Err(VerificationWriteError::Timeout))?;
        written.batch.clear();
        Ok(())
    }

    fn warn_about_dropped(&self, written: &mut QueueWriter, last: bool) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        let silent = written
            .reported_at
            .is_some_and(|at| at.elapsed() < DROPPED_WARNING_INTERVAL);
        if dropped > written.reported_drops && (last || !silent) {
            tracing::warn!(
                rows = dropped - written.reported_drops,
                "validation_audit_dropped"
            );
            written.reported_drops = dropped;
            written.reported_at = Some(Instant::now());
        }
    }
}

impl QueuedVerification {
    fn to_row(&self, key: &PurchaseHashKey) -> VerificationRow {
        VerificationRow {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            source: self.source.as_str(),
            identifier_hash: key.hash_purchase(&self.tenant, self.purchase),
            valid: self.error_code.is_none(),
            error_code: self.error_code,
            latency_ms: i32::try_from(self.latency.as_millis()).unwrap_or(i32::MAX),
            occurred_at: self.occurred_at,
        }
    }
}

impl std::fmt::Debug for VerificationLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.queue.is_some() {
            "VerificationLog(enabled)"
        } else {
            "VerificationLog(disabled)"
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::crypto::keyring::MasterKey;
    use crate::db::ConnectSettings;

    /// A log whose database does not exist.
    fn log_without_database() -> VerificationLog {
        let settings = ConnectSettings::from_url(
            "postgres://unknown@127.0.0.1:1/nothing?sslmode=disable&connect_timeout=1",
        )
        .expect("a good URL");
        let key = MasterKey::parse(&STANDARD.encode([7; 32]), Some(1)).expect("a good key");
        let keyring = Arc::new(Keyring::new(key, vec![]).expect("one key"));
        VerificationLog::for_database(&Database::open(&settings), &keyring, &clock())
    }

    fn clock() -> Clock {
        Clock::fixed(Timestamp::from_millis(0))
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_rows_without_waiting() {
        let noted = log_without_database();
        let tenant = TenantId::mint(clock().now());
        for _ in 0..MAX_QUEUED + 7 {
            noted.start_verification(EventSource::Apple).record_outcome(
                &tenant,
                || "1".into(),
                VerificationOutcome::Valid,
            );
        }
        assert_eq!(noted.dropped_count(), 7);
        // The writer stops although nothing can be written, and counts the rows that are lost.
        let stop = CancellationToken::new();
        stop.cancel();
        timeout(
            FINAL_WRITE_TIMEOUT + Duration::from_secs(2),
            noted.run_writer(stop),
        )
        .await
        .expect("it ends");
        assert_eq!(noted.dropped_count(), 7 + MAX_QUEUED as u64);
    }

    #[test]
    fn a_disabled_log_keeps_nothing() {
        let tenant = TenantId::mint(clock().now());
        let unnoted = VerificationLog::disabled(&clock());
        let asked = unnoted.start_verification(EventSource::Google);
        asked.record_outcome(
            &tenant,
            || "token".into(),
            VerificationOutcome::Invalid("PURCHASE_NOT_FOUND"),
        );
        assert_eq!(unnoted.dropped_count(), 0);
    }
}
