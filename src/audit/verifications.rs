//! Each answer about a purchase, noted behind the answer.
//!
//! Noting is a push into a queue of bounded length and never waits; [`Verifications::run`] writes what is in it, in
//! batches. While the database is away, what does not fit is dropped and counted: the oldest are kept.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::identifier::{HashKey, Identifier, NoHashKey};
use super::store::{self, Row};
use crate::clock::{Clock, Timestamp};
use crate::crypto::keyring::Keyring;
use crate::db::{Database, error_class};
use crate::events::Source;
use crate::id::{AuditId, TenantId};
use crate::metrics::kinds::SECONDS;
use crate::metrics::registry::{Kind, as_number};
use crate::metrics::{Counter, Histogram, Labelled, Registry};

/// How many notes wait at most: some two megabytes, and at a thousand verifications a second ten seconds without a
/// database.
const MOST_WAITING: usize = 10_000;
/// How many are written in one statement.
const BATCH: usize = 500;
/// How long a first note waits for others, to be written with them.
const GATHER: Duration = Duration::from_millis(200);
/// How long the database may take for one batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last writes may take when the process ends.
const LAST_WRITE: Duration = Duration::from_secs(3);
/// The pause while the database does not answer; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Dropped rows are spoken of at most this often.
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

/// How a question about a purchase was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The purchase is real.
    Yes,
    /// It is not, and this code says why.
    No(&'static str),
    /// There was no verdict, and this code says why.
    None(&'static str),
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "valid",
            Self::No(_) => "invalid",
            Self::None(_) => "error",
        }
    }

    fn code(self) -> Option<&'static str> {
        match self {
            Self::Yes => None,
            Self::No(code) | Self::None(code) => Some(code),
        }
    }
}

/// Notes verifications. Clones share one queue.
#[derive(Clone)]
pub struct Verifications {
    clock: Clock,
    results: Labelled<2, Counter>,
    took: Labelled<1, Histogram>,
    log: Option<Arc<Log>>,
}

/// A question that is being answered. Nothing is noted of one whose caller hung up.
#[derive(Debug)]
pub struct Asked<'a> {
    verifications: &'a Verifications,
    source: Source,
    at: Timestamp,
    begun: Instant,
}

struct Log {
    database: Database,
    keyring: Arc<Keyring>,
    waiting: mpsc::Sender<Note>,
    written: Mutex<Written>,
    dropped: AtomicU64,
}

/// The writer's own.
struct Written {
    waiting: mpsc::Receiver<Note>,
    /// Taken from the queue and not written yet.
    batch: Vec<Note>,
    key: Option<HashKey>,
    /// How many drops have been spoken of, and when.
    complained: u64,
    complained_at: Option<Instant>,
}

/// What waits: of fixed size, and nothing of a purchase that could be used.
struct Note {
    id: AuditId,
    tenant: TenantId,
    source: Source,
    identifier: Identifier,
    error_code: Option<&'static str>,
    latency: Duration,
    occurred_at: Timestamp,
}

/// Why a batch was not written.
#[derive(Debug, thiserror::Error)]
enum NotWritten {
    #[error(transparent)]
    Key(#[from] NoHashKey),
    #[error(transparent)]
    Database(#[from] crate::db::Error),
    #[error("the database did not answer within {PATIENCE:?}")]
    Silent,
}

impl NotWritten {
    /// What kind, with nothing of what the database said.
    fn class(&self) -> String {
        match self {
            Self::Key(NoHashKey::Sealed(_)) => "the hash key does not open".to_owned(),
            Self::Key(NoHashKey::Database(error)) | Self::Database(error) => error_class(error),
            Self::Silent => "no answer".to_owned(),
        }
    }
}

impl Verifications {
    /// One that notes nothing: what holds unless somebody wants the log.
    pub fn unnoted(clock: &Clock) -> Self {
        Self::new(clock, None)
    }

    fn new(clock: &Clock, log: Option<Arc<Log>>) -> Self {
        let (results, took) = counts(&Registry::default());
        Self {
            clock: clock.clone(),
            results,
            took,
            log,
        }
    }

    /// The same, and every answer is counted into `registry`, noted or not.
    #[must_use]
    pub fn counted(self, registry: &Registry) -> Self {
        let (results, took) = counts(registry);
        let log = self.log.clone();
        registry.looked_up(
            "attesto_validation_audit_dropped_total",
            "Rows of the validation log that found no room while the database could not be written.",
            move |tell| {
                let dropped = log.as_ref();
                tell("", as_number(dropped.map_or(0, |log| log.dropped.load(Ordering::Relaxed))));
            },
            Kind::Counter,
        );
        Self {
            results,
            took,
            ..self
        }
    }

    /// One that writes into `validation_audit` while [`run`](Self::run) runs.
    pub fn noted(database: &Database, keyring: &Arc<Keyring>, clock: &Clock) -> Self {
        let (sender, waiting) = mpsc::channel(MOST_WAITING);
        let log = Arc::new(Log {
            database: database.clone(),
            keyring: keyring.clone(),
            waiting: sender,
            written: Mutex::new(Written {
                waiting,
                batch: Vec::new(),
                key: None,
                complained: 0,
                complained_at: None,
            }),
            dropped: AtomicU64::new(0),
        });
        Self::new(clock, Some(log))
    }

    /// A question about a purchase of `source` begins to be answered.
    pub fn begin(&self, source: Source) -> Asked<'_> {
        Asked {
            verifications: self,
            source,
            at: self.clock.now(),
            begun: Instant::now(),
        }
    }

    /// How many answers found no room, or no time at the end, since the process began.
    pub fn dropped(&self) -> u64 {
        self.log
            .as_ref()
            .map_or(0, |log| log.dropped.load(Ordering::Relaxed))
    }

    /// Writes what is noted until `stop`, and then what is left.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(log) = &self.log else { return };
        let mut written = log.written.lock().await;
        let mut pause = FIRST_PAUSE;
        while !stop.is_cancelled() {
            if written.batch.is_empty() {
                let Some(Some(first)) = stop.run_until_cancelled(written.waiting.recv()).await
                else {
                    break;
                };
                written.batch.push(first);
                stop.run_until_cancelled(sleep(GATHER)).await;
            }
            match log.write(&mut written).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    tracing::warn!(cause = %error, causeClass = error.class(), "could not write the validation log; it is tried again");
                    stop.run_until_cancelled(sleep(pause)).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
            log.complain(&mut written, false);
        }
        let rest = async {
            while !(written.batch.is_empty() && written.waiting.is_empty()) {
                log.write(&mut written).await?;
            }
            Ok::<_, NotWritten>(())
        };
        match timeout(LAST_WRITE, rest).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(cause = %error, causeClass = error.class(), "could not write the rest of the validation log before stopping");
            }
            Err(_) => {
                tracing::warn!("no time to write the rest of the validation log before stopping");
            }
        }
        let rest = u64::try_from(written.batch.len() + written.waiting.len()).unwrap_or(u64::MAX);
        log.dropped.fetch_add(rest, Ordering::Relaxed);
        log.complain(&mut written, true);
    }
}

impl Asked<'_> {
    /// The answer is there: notes it. Never waits; what finds no room is dropped and counted. `identifier` is what
    /// `tenant` asked about, a transaction id or a purchase token.
    pub fn end<'t>(
        self,
        tenant: &TenantId,
        identifier: impl FnOnce() -> Cow<'t, str>,
        verdict: Verdict,
    ) {
        let latency = self.begun.elapsed();
        let source = self.source.as_str();
        let counts = self.verifications;
        counts.results.with([source, verdict.word()]).count();
        counts.took.with([source]).observe(latency);
        let Some(log) = &self.verifications.log else {
            return;
        };
        let Ok(room) = log.waiting.try_reserve() else {
            log.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        room.send(Note {
            id: AuditId::mint(self.at),
            tenant: tenant.clone(),
            source: self.source,
            identifier: Identifier::of(&identifier()),
            error_code: verdict.code(),
            latency,
            occurred_at: self.at,
        });
    }
}

fn counts(registry: &Registry) -> (Labelled<2, Counter>, Labelled<1, Histogram>) {
    let results = registry.counters(
        "attesto_verify_total",
        "Questions about a purchase, by answer: valid, invalid, or error where there was no verdict.",
        ["store", "result"],
    );
    let took = registry.histograms(
        "attesto_verify_duration_seconds",
        "How long answers about a purchase took.",
        ["store"],
        SECONDS,
    );
    for source in [Source::Apple, Source::Google] {
        for result in ["valid", "invalid", "error"] {
            results.with([source.as_str(), result]);
        }
        took.with([source.as_str()]);
    }
    (results, took)
}

impl Log {
    /// Writes one batch. What could not be written stays in it.
    async fn write(&self, written: &mut Written) -> Result<(), NotWritten> {
        while written.batch.len() < BATCH {
            match written.waiting.try_recv() {
                Ok(note) => written.batch.push(note),
                Err(_) => break,
            }
        }
        let writing = async {
            let key = match written.key.take() {
                Some(key) => key,
                None => HashKey::load(&self.database, &self.keyring).await?,
            };
            let key = written.key.insert(key);
            let rows: Vec<Row> = written.batch.iter().map(|note| note.row(key)).collect();
            Ok(store::insert(&self.database, &rows).await?)
        };
        timeout(PATIENCE, writing)
            .await
            .unwrap_or(Err(NotWritten::Silent))?;
        written.batch.clear();
        Ok(())
    }

    fn complain(&self, written: &mut Written, last: bool) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        let silent = written
            .complained_at
            .is_some_and(|at| at.elapsed() < COMPLAIN_EVERY);
        if dropped > written.complained && (last || !silent) {
            tracing::warn!(
                rows = dropped - written.complained,
                "validation_audit_dropped"
            );
            written.complained = dropped;
            written.complained_at = Some(Instant::now());
        }
    }
}

impl Note {
    fn row(&self, key: &HashKey) -> Row {
        Row {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            source: self.source.as_str(),
            identifier_hash: key.hash(&self.tenant, self.identifier),
            valid: self.error_code.is_none(),
            error_code: self.error_code,
            latency_ms: i32::try_from(self.latency.as_millis()).unwrap_or(i32::MAX),
            occurred_at: self.occurred_at,
        }
    }
}

impl std::fmt::Debug for Verifications {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.log.is_some() {
            "Verifications(noted)"
        } else {
            "Verifications(unnoted)"
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

    /// Nothing listens there.
    fn nowhere() -> Verifications {
        let settings = ConnectSettings::from_url(
            "postgres://nobody@127.0.0.1:1/nothing?sslmode=disable&connect_timeout=1",
        )
        .expect("a good URL");
        let key = MasterKey::parse(&STANDARD.encode([7; 32]), Some(1)).expect("a good key");
        let keyring = Arc::new(Keyring::new(key, vec![]).expect("one key"));
        Verifications::noted(&Database::open(&settings), &keyring, &clock())
    }

    fn clock() -> Clock {
        Clock::fixed(Timestamp::from_millis(0))
    }

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_counted_and_nobody_waits() {
        let noted = nowhere();
        let tenant = TenantId::mint(clock().now());
        for _ in 0..MOST_WAITING + 7 {
            noted
                .begin(Source::Apple)
                .end(&tenant, || "1".into(), Verdict::Yes);
        }
        assert_eq!(noted.dropped(), 7);
        // It ends although nothing can be written, and counts what is lost with it.
        let stop = CancellationToken::new();
        stop.cancel();
        timeout(LAST_WRITE + Duration::from_secs(2), noted.run(stop))
            .await
            .expect("it ends");
        assert_eq!(noted.dropped(), 7 + MOST_WAITING as u64);
    }

    #[test]
    fn one_that_is_not_wanted_keeps_nothing() {
        let tenant = TenantId::mint(clock().now());
        let unnoted = Verifications::unnoted(&clock());
        let asked = unnoted.begin(Source::Google);
        asked.end(
            &tenant,
            || "token".into(),
            Verdict::No("PURCHASE_NOT_FOUND"),
        );
        assert_eq!(unnoted.dropped(), 0);
    }
}
