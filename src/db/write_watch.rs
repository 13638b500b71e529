//! [`WriteWatch`]: whether this process's writes complete.
//!
//! A primary whose synchronous standby is away answers every question and completes no commit. That shows only in writes. Once
//! writes have stalled or failed they count as such until one completes: that those which hung were given up, or ended with
//! their connections, does not say that the next one will complete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::Row as _;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Database, DatabaseConnectError, Error, is_unavailable};

/// Writes are stalled when one has taken this long and no other was completed meanwhile. Together with [`MAX_SILENCE`], within
/// which a process writes something, less than three seconds.
const STALL_THRESHOLD: Duration = Duration::from_millis(1500);
/// From the end of a heartbeat to the next.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// For how long no write may complete before one is made. Longer than [`HEARTBEAT_INTERVAL`]: while the heartbeat of the listener
/// completes, no other is needed.
const MAX_SILENCE: Duration = Duration::from_millis(1250);
/// Writes something that changes no row and is seen by no reader; its commit waits for the disk and for synchronous standbys as any
/// other. Null where nothing may be written.
pub(super) const HEARTBEAT_SQL: &str = "select case when not (pg_is_in_recovery() or current_setting('transaction_read_only')::bool) \
    then pg_logical_emit_message(true, 'attesto', '')::text end";

/// The writes of this process that are watched. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct WriteWatch {
    state: Arc<Mutex<WatchedWrites>>,
}

#[derive(Debug, Default)]
struct WatchedWrites {
    next_number: u64,
    /// When each write began that has not ended.
    open: BTreeMap<u64, Instant>,
    last_completed: Option<Instant>,
    /// Whether none has completed since writes were stalled.
    was_stalled: bool,
    /// Why a write failed since when none has completed.
    failure: Option<DatabaseConnectError>,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteEnd {
    Completed,
    /// The database is away or refuses writes.
    Refused(DatabaseConnectError),
    /// It failed for a reason of its own, or nothing waits for it any more.
    Abandoned,
}

impl WriteEnd {
    fn from_error(error: &Error) -> Self {
        match error {
            // Our own pool is busy: the database has not seen the write.
            Error::PoolTimedOut | Error::PoolClosed => Self::Abandoned,
            error if is_unavailable(error) => {
                Self::Refused(DatabaseConnectError::from_error(error))
            }
            _ => Self::Abandoned,
        }
    }
}

impl WatchedWrites {
    fn begin(&mut self, now: Instant) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.open.insert(number, now);
        number
    }

    fn end(&mut self, number: u64, end: WriteEnd, now: Instant) {
        self.note_stall(now);
        let Some(begun) = self.open.remove(&number) else {
            return;
        };
        match end {
            WriteEnd::Completed => {
                self.last_completed = Some(now);
                self.was_stalled = false;
                self.failure = None;
            }
            // Others were completed while this one was under way: it is its connection.
            WriteEnd::Refused(cause) if self.last_completed.is_none_or(|done| done < begun) => {
                self.failure = Some(cause);
            }
            WriteEnd::Refused(_) | WriteEnd::Abandoned => {}
        }
    }

    fn note_stall(&mut self, now: Instant) {
        let Some((_, oldest)) = self.open.first_key_value() else {
            return;
        };
        let since = self
            .last_completed
            .map_or(*oldest, |done| done.max(*oldest));
        self.was_stalled |= now.duration_since(since) >= STALL_THRESHOLD;
    }
}

impl WriteWatch {
    /// Waits for a write until it is committed.
    pub async fn observe<T>(
        &self,
        write: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let open = self.begin();
        let done = write.await;
        open.finish(&done);
        done
    }

    /// A write begins. Until it is finished it counts as one that may hang.
    pub(super) fn begin(&self) -> OpenWrite {
        OpenWrite {
            watch: self.clone(),
            number: self.state.lock().begin(Instant::now()),
            end: WriteEnd::Abandoned,
        }
    }

    /// Whether writes have begun for a while and none completes, or did so since when none has completed.
    pub fn is_stalled(&self) -> bool {
        let mut writes = self.state.lock();
        writes.note_stall(Instant::now());
        writes.was_stalled
    }

    /// How long until a write is to be made, because no other has completed.
    fn time_until_heartbeat(&self) -> Duration {
        let writes = self.state.lock();
        let silence = writes.last_completed.map(|done| done.elapsed());
        silence.map_or(Duration::ZERO, |silence| {
            MAX_SILENCE.saturating_sub(silence)
        })
    }

    /// Why a write failed since when none has completed.
    pub(super) fn failure(&self) -> Option<DatabaseConnectError> {
        self.state.lock().failure
    }
}

/// A write that is under way. When it is dropped it has ended.
pub(super) struct OpenWrite {
    watch: WriteWatch,
    number: u64,
    end: WriteEnd,
}

impl OpenWrite {
    pub(super) fn finish<T>(mut self, outcome: &Result<T, Error>) {
        self.end = match outcome {
            Ok(_) => WriteEnd::Completed,
            Err(error) => WriteEnd::from_error(error),
        };
    }

    /// The same with the answer to [`HEARTBEAT_SQL`].
    pub(super) fn finish_heartbeat(mut self, answer: &Result<Option<String>, Error>) {
        match answer {
            Ok(None) => self.end = WriteEnd::Refused(DatabaseConnectError::ReadOnly),
            answer => self.finish(answer),
        }
    }
}

impl Drop for OpenWrite {
    fn drop(&mut self) {
        let mut writes = self.watch.state.lock();
        writes.end(self.number, self.end, Instant::now());
    }
}

impl Database {
    /// Writes something whenever no other write has completed for a second, until `stop`: so a process that has nothing else to
    /// write notices in time that writes do not complete, and that they do again. On the connection of
    /// [`Database::for_readiness`], whatever the other connections do.
    pub async fn run_write_heartbeat(&self, stop: CancellationToken) {
        let database = self.for_readiness();
        let beating = async {
            loop {
                let mut pause = self.writes().time_until_heartbeat();
                if pause.is_zero() {
                    // Nothing is given up here but for a server that was replaced: each further attempt would hang beside this
                    // one. What it ends with is kept by the watch.
                    database.send_write_heartbeat().await;
                    pause = HEARTBEAT_INTERVAL;
                }
                sleep(pause).await;
            }
        };
        stop.run_until_cancelled(beating).await;
    }

    async fn send_write_heartbeat(&self) {
        let write = self.writes().begin();
        let sending = async {
            let mut session = self.pool().acquire().await?;
            let row = session.fetch_row(HEARTBEAT_SQL).await?;
            let written: Option<String> = row.try_get(0)?;
            self.note_session_mode(written.is_none());
            Ok(written)
        };
        write.finish_heartbeat(&sending.await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: WriteEnd = WriteEnd::Refused(DatabaseConnectError::ConnectionRefused);

    /// What is found after each step, at that many thirds of the threshold.
    #[derive(Clone, Copy)]
    enum Step {
        Begin(u64),
        End(u64, WriteEnd),
        Look { is_stalled: bool, has_failed: bool },
    }

    fn play(steps: &[(u32, Step)]) {
        let start = Instant::now();
        let mut writes = WatchedWrites::default();
        for (position, (at, step)) in steps.iter().enumerate() {
            let now = start + STALL_THRESHOLD / 3 * *at;
            match *step {
                Step::Begin(number) => assert_eq!(writes.begin(now), number),
                Step::End(number, end) => writes.end(number, end, now),
                Step::Look {
                    is_stalled,
                    has_failed,
                } => {
                    writes.note_stall(now);
                    let found = (writes.was_stalled, writes.failure.is_some());
                    assert_eq!(found, (is_stalled, has_failed), "step {position}");
                }
            }
        }
    }

    #[test]
    fn writes_are_stalled_from_when_none_completes_until_one_does() {
        let look = |is_stalled| Step::Look {
            is_stalled,
            has_failed: false,
        };
        let done = |number| Step::End(number, WriteEnd::Completed);
        let given_up = |number| Step::End(number, WriteEnd::Abandoned);
        for steps in [
            &[(9, look(false))][..],
            &[
                (0, Step::Begin(0)),
                (2, look(false)),
                (3, look(true)),
                (4, done(0)),
                (4, look(false)),
            ],
            // Others complete: it is the one write that waits, for a lock perhaps.
            &[
                (0, Step::Begin(0)),
                (1, Step::Begin(1)),
                (2, done(1)),
                (4, look(false)),
                (5, look(true)),
                (5, Step::Begin(2)),
                (6, done(2)),
                (6, look(false)),
            ],
            // That nothing waits any more does not say that writes complete, looked at or not.
            &[
                (0, Step::Begin(0)),
                (3, look(true)),
                (3, given_up(0)),
                (9, look(true)),
            ],
            &[(0, Step::Begin(0)), (3, given_up(0)), (9, look(true))],
            &[
                (0, Step::Begin(0)),
                (3, given_up(0)),
                (4, Step::Begin(1)),
                (5, given_up(1)),
                (5, look(true)),
                (5, Step::Begin(2)),
                (6, done(2)),
                (6, look(false)),
            ],
            // It was given up too soon to know.
            &[(0, Step::Begin(0)), (2, given_up(0)), (9, look(false))],
        ] {
            play(steps);
        }
    }

    #[test]
    fn a_refused_write_counts_until_one_completes() {
        let look = |is_stalled, has_failed| Step::Look {
            is_stalled,
            has_failed,
        };
        let done = |number| Step::End(number, WriteEnd::Completed);
        for steps in [
            &[
                (0, Step::Begin(0)),
                (1, Step::End(0, REFUSED)),
                (9, look(false, true)),
                (9, Step::Begin(1)),
                (9, Step::End(1, WriteEnd::Abandoned)),
                (9, look(false, true)),
                (10, Step::Begin(2)),
                (10, done(2)),
                (10, look(false, false)),
            ][..],
            // A commit that hung ends with its connection.
            &[
                (0, Step::Begin(0)),
                (4, Step::End(0, REFUSED)),
                (4, look(true, true)),
            ],
            // One connection is lost, and others are not.
            &[
                (0, Step::Begin(0)),
                (0, Step::Begin(1)),
                (1, done(1)),
                (1, Step::End(0, REFUSED)),
                (1, look(false, false)),
            ],
        ] {
            play(steps);
        }
    }

    #[tokio::test]
    async fn what_a_write_ends_with_is_kept() {
        let watch = WriteWatch::default();
        let left = |watch: &WriteWatch| {
            let writes = watch.state.lock();
            let is_one_completed = writes.last_completed.is_some();
            (writes.open.len(), is_one_completed, writes.failure)
        };
        for (error, failure) in [
            (Error::RowNotFound, None),
            (Error::PoolTimedOut, None),
            (
                Error::Io(std::io::ErrorKind::ConnectionRefused.into()),
                Some(DatabaseConnectError::ConnectionRefused),
            ),
        ] {
            let failed = watch.observe(async { Err::<(), _>(error) }).await;
            assert!(failed.is_err());
            assert_eq!(left(&watch), (0, false, failure));
        }
        let given_up = watch.observe(std::future::pending::<Result<(), _>>());
        drop(given_up);
        assert_eq!(left(&watch).0, 0);
        watch.observe(async { Ok(()) }).await.unwrap();
        assert_eq!(left(&watch), (0, true, None));
    }

    #[test]
    fn a_session_that_may_not_write_completes_no_heartbeat() {
        let watch = WriteWatch::default();
        watch.begin().finish_heartbeat(&Ok(None));
        assert_eq!(watch.failure(), Some(DatabaseConnectError::ReadOnly));
        watch.begin().finish_heartbeat(&Ok(Some("0/1".to_owned())));
        assert_eq!(watch.failure(), None);
    }
}
