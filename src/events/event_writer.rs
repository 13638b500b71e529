//! Writes events that wait at the same moment in one transaction.
//!
//! A commit waits for the disk, so many events in one cost little more than one. No event waits for others: a writer takes those that are
//! there, commits, and takes what has come meanwhile. One that comes alone is written at once, by itself.
//!
//! Each event has an outcome of its own. When Postgres refuses a statement, nothing of it is written, and each event is then written by
//! itself: one that cannot be stored fails alone. When the database is away, all of them fail, and their stores send them again.
//!
//! A writer is a task that lives until nothing waits. What it has begun is finished, whether or not its caller still waits: a client that
//! disconnects leaves nothing half done. An event that was not begun when its caller left is not written.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::store::{self, EventRow, InsertOutcome, RecordError};
use crate::base::id::TenantId;
use crate::db::{Database, Error, is_unavailable};
use crate::telemetry::metrics::{Histogram, MetricsRegistry, u64_to_f64};

/// In one transaction.
const MAX_BATCH_EVENTS: usize = 128;
/// In one transaction that writes more than one event.
const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Of the events that wait and of those that are being written. Others wait before they are queued.
const MAX_QUEUED_KIB: usize = 16 * 1024;
/// A writer uses one connection.
const MAX_WRITERS: usize = 4;
/// How long an event waits before another writer begins: the others wait for a lock, for a slow disk, or for a distant server.
const HELP_DELAY: Duration = Duration::from_millis(10);
/// How many of the events of a failed transaction are written at a time, each by itself.
const MAX_SINGLE_WRITES: usize = 4;

/// Upper bounds for the number of events in a transaction.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// What is called with an event's tenant after its commit. It must return at once.
pub(super) type CommitHook = Arc<dyn Fn(&TenantId) + Send + Sync>;

/// What is called after each commit of a new event, whether or not its caller still waits.
#[derive(Clone)]
pub(super) struct CommitHooks {
    pub(super) on_delivery_enqueued: CommitHook,
    pub(super) on_stored: CommitHook,
}

impl CommitHooks {
    fn call(&self, row: &EventRow, outcome: InsertOutcome) {
        if let InsertOutcome::Stored { enqueued } = outcome {
            if enqueued {
                (self.on_delivery_enqueued)(row.tenant());
            }
            (self.on_stored)(row.tenant());
        }
    }
}

/// Writes events. Clones share the queue.
#[derive(Clone)]
pub(super) struct EventWriter(Arc<WriterState>);

struct WriterState {
    database: Database,
    queue: Mutex<WriteQueue>,
    /// One permit is a KiB.
    room: Arc<Semaphore>,
    writers: TaskTracker,
    batch_events: Mutex<Histogram>,
}

#[derive(Default)]
struct WriteQueue {
    waiting: VecDeque<QueuedEvent>,
    /// Writers that run.
    writers: usize,
    next_number: u64,
}

type WriteResult = Result<InsertOutcome, RecordError>;

struct QueuedEvent {
    number: u64,
    row: EventRow,
    caller: WaitingCaller,
}

impl QueuedEvent {
    fn split(self) -> (EventRow, WaitingCaller) {
        (self.row, self.caller)
    }
}

/// What waits for the outcome of an event.
struct WaitingCaller {
    hooks: CommitHooks,
    answer: oneshot::Sender<WriteResult>,
    /// Given back when the event has its answer.
    _room: OwnedSemaphorePermit,
}

impl WaitingCaller {
    fn finish(self, row: &EventRow, result: WriteResult) {
        if let Ok(outcome) = &result {
            self.hooks.call(row, *outcome);
        }
        // It may have disconnected.
        let _ = self.answer.send(result);
    }
}

impl EventWriter {
    pub(super) fn new(database: &Database) -> Self {
        Self(Arc::new(WriterState {
            database: database.clone(),
            queue: Mutex::default(),
            room: Arc::new(Semaphore::new(MAX_QUEUED_KIB)),
            writers: TaskTracker::new(),
            batch_events: Mutex::new(Histogram::new(BATCH_BUCKETS.iter().copied())),
        }))
    }

    pub(super) fn register_metrics(&self, registry: &MetricsRegistry) {
        *self.0.batch_events.lock() = registry.register_histogram(
            "attesto_event_batch_events",
            "Events that were written in one transaction.",
            BATCH_BUCKETS,
        );
    }

    /// Writes an event with others that wait. When this returns, it is committed or not written, except that the outcome of a commit
    /// whose confirmation was lost is not known.
    pub(super) async fn write(&self, row: EventRow, hooks: &CommitHooks) -> WriteResult {
        let limit = self.0.database.connect_timeout();
        let room = timeout(limit, self.reserve_room(row.size()));
        let room = room.await.map_err(|_| Error::PoolTimedOut)?;
        let (answer, mut written) = oneshot::channel();
        let number = self.enqueue(|number| QueuedEvent {
            number,
            row,
            caller: WaitingCaller {
                hooks: hooks.clone(),
                answer,
                _room: room,
            },
        });
        if let Ok(written) = timeout(HELP_DELAY, &mut written).await {
            return written.unwrap_or_else(|_| Err(Error::WorkerCrashed.into()));
        }
        self.help(number);
        let written = match timeout(limit, &mut written).await {
            Ok(written) => written,
            Err(_) if self.withdraw(number) => return Err(Error::PoolTimedOut.into()),
            Err(_) => written.await,
        };
        written.unwrap_or_else(|_| Err(Error::WorkerCrashed.into()))
    }

    /// Waits until nothing is being written. What comes meanwhile is waited for too.
    pub(super) async fn finish(&self) {
        self.0.writers.close();
        self.0.writers.wait().await;
    }

    async fn reserve_room(&self, bytes: usize) -> OwnedSemaphorePermit {
        let permits = u32::try_from(bytes.div_ceil(1024).min(MAX_QUEUED_KIB));
        let room = self.0.room.clone();
        let reserved = room.acquire_many_owned(permits.unwrap_or(1)).await;
        reserved.expect("the semaphore is never closed")
    }

    /// Queues an event, and returns its number there.
    fn enqueue(&self, event: impl FnOnce(u64) -> QueuedEvent) -> u64 {
        let mut queue = self.0.queue.lock();
        let number = queue.next_number;
        queue.next_number += 1;
        queue.waiting.push_back(event(number));
        if queue.writers == 0 {
            self.start_writer(&mut queue);
        }
        number
    }

    /// Starts one more writer, if the event still waits.
    fn help(&self, number: u64) {
        let mut queue = self.0.queue.lock();
        if queue.writers < MAX_WRITERS && queue.position(number).is_some() {
            self.start_writer(&mut queue);
        }
    }

    /// Takes an event out of the queue. False: it is being written, or was.
    fn withdraw(&self, number: u64) -> bool {
        let mut queue = self.0.queue.lock();
        let position = queue.position(number);
        position.and_then(|at| queue.waiting.remove(at)).is_some()
    }

    fn start_writer(&self, queue: &mut WriteQueue) {
        queue.writers += 1;
        let running = RunningWriter {
            writer: self.clone(),
            has_ended: false,
        };
        self.0.writers.spawn(running.run());
    }
}

impl WriteQueue {
    fn position(&self, number: u64) -> Option<usize> {
        self.waiting.iter().position(|event| event.number == number)
    }

    /// Takes the events for one transaction: those that wait longest, none of them for the same notification as another.
    fn take_batch(&mut self) -> Vec<QueuedEvent> {
        let mut bytes = 0;
        let mut notifications = HashSet::new();
        let mut count = 0;
        for event in self.waiting.iter().take(MAX_BATCH_EVENTS) {
            bytes += event.row.size();
            let fits = count == 0 || bytes <= MAX_BATCH_BYTES;
            if !fits || !notifications.insert(event.row.notification()) {
                break;
            }
            count += 1;
        }
        drop(notifications);
        let taken = self.waiting.drain(..count);
        taken
            .filter(|event| !event.caller.answer.is_closed())
            .collect()
    }
}

/// One of the writers. Counted until it is dropped, also by a panic.
struct RunningWriter {
    writer: EventWriter,
    has_ended: bool,
}

impl RunningWriter {
    async fn run(mut self) {
        while let Some(batch) = self.next_batch() {
            self.writer.0.write_batch(batch).await;
        }
    }

    /// `None`: nothing waits, and this writer no longer counts.
    fn next_batch(&mut self) -> Option<Vec<QueuedEvent>> {
        let mut queue = self.writer.0.queue.lock();
        if queue.waiting.is_empty() {
            queue.writers -= 1;
            self.has_ended = true;
            return None;
        }
        Some(queue.take_batch())
    }
}

impl Drop for RunningWriter {
    fn drop(&mut self) {
        if !self.has_ended {
            self.writer.0.queue.lock().writers -= 1;
        }
    }
}

impl WriterState {
    async fn write_batch(&self, batch: Vec<QueuedEvent>) {
        if batch.is_empty() {
            return;
        }
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        self.batch_events.lock().observe(u64_to_f64(count));
        // Citus runs no statement on rows of several lanes.
        let is_each_alone =
            batch.len() == 1 || self.database.is_distributed().await.unwrap_or(false);
        if is_each_alone {
            return self
                .write_each(batch.into_iter().map(QueuedEvent::split))
                .await;
        }
        let (rows, callers): (Vec<_>, Vec<_>) = batch.into_iter().map(QueuedEvent::split).unzip();
        match store::insert_events(&self.database, &rows).await {
            Ok(outcomes) => {
                for ((row, caller), outcome) in rows.iter().zip(callers).zip(outcomes) {
                    caller.finish(row, Ok(outcome));
                }
            }
            Err(error) if is_unavailable(&error) => {
                let error = Arc::new(error);
                for (row, caller) in rows.iter().zip(callers) {
                    caller.finish(row, Err(RecordError::Database(error.clone())));
                }
            }
            Err(error) => {
                tracing::debug!(
                    error = crate::db::describe_cause(&error),
                    events = rows.len(),
                    "event_batch_refused"
                );
                self.write_each(rows.into_iter().zip(callers)).await;
            }
        }
    }

    /// Writes each event in a transaction of its own.
    async fn write_each(&self, events: impl IntoIterator<Item = (EventRow, WaitingCaller)>) {
        let events = stream::iter(events);
        let writing = events.for_each_concurrent(MAX_SINGLE_WRITES, |(row, caller)| async move {
            let outcome = store::insert_event(&self.database, &row).await;
            caller.finish(&row, outcome.map_err(RecordError::from));
        });
        writing.await;
    }
}
