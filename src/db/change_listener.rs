//! Receives notifications of changes to tenants, keys and credentials, committed by any process.
//!
//! A cache of those tables is valid only while notifications arrive. [`ChangeListener::is_listening`] tells whether they do:
//! a lease of a few seconds, renewed only by a successful check.
//!
//! - The first check is end to end: a notification sent over another connection must arrive on the listening one. A
//!   pooler in transaction mode accepts `LISTEN` and delivers nothing; behind one, caches are never used, and a warning
//!   is logged.
//! - After that, a small write is committed on the listening connection every second. A connection that was lost silently (by
//!   a firewall, or with its machine) is noticed within [`LISTEN_LEASE`], and so is a process that was stopped and
//!   resumed: its lease expired meanwhile.
//! - It is a write, because after a failover the server before may go on answering questions: as a standby, fenced by its
//!   operator, or with commits that wait for a standby that is the primary now. Of what is changed on the new primary it knows
//!   nothing. For the same reason commits that hang show here also in a process that has nothing else to write.
//!
//! The cost is one connection and a hundred bytes of write-ahead log a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use sqlx::postgres::{PgListener, PgNotification, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::write_watch::{HEARTBEAT_INTERVAL, HEARTBEAT_SQL};
use super::{Database, Error, describe_cause, error_class};
use crate::base::backoff::Backoff;
use crate::base::id::TenantId;
use crate::crypto::{ExposeSecret as _, token};

/// The channel of the triggers in `migrations/0001_tenants.sql`; the payload is `table:tenant_id`.
const CHANGES_CHANNEL: &str = "attesto_changes";
/// The name of the listening session.
const APPLICATION_NAME: &str = "attesto-changes";
/// How long a check of the connection may take.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after the start of a successful check the process may assume that it receives all notifications.
pub const LISTEN_LEASE: Duration = Duration::from_secs(5);
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(200);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(5);

/// A committed change to what processes cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseChange {
    /// A row of one tenant.
    Row {
        /// The table's name.
        table: String,
        /// The tenant of the row.
        tenant: TenantId,
    },
    /// Anything may have changed: listening has just started or just ended.
    Everything,
}

impl DatabaseChange {
    /// Whether a row of `tenant` in `table` may have changed.
    pub fn affects_table(&self, table: &str) -> bool {
        match self {
            Self::Row { table: changed, .. } => changed == table,
            Self::Everything => true,
        }
    }

    /// A payload that cannot be read is taken as [`DatabaseChange::Everything`].
    fn parse_payload(payload: &str) -> Self {
        let row = payload.split_once(':').and_then(|(table, tenant)| {
            Some(Self::Row {
                table: table.to_owned(),
                tenant: tenant.parse().ok()?,
            })
        });
        row.unwrap_or(Self::Everything)
    }
}

/// The tables whose rows processes cache.
const CACHED_TABLES: [&str; 6] = [
    "tenants",
    "api_keys",
    "apple_credentials",
    "google_credentials",
    "webhook_configs",
    "first_seen_keys",
];

impl Database {
    /// Tells all processes that rows they cache have changed: those of a tenant, or any.
    pub(crate) async fn announce_changes(&self, tenant: Option<&TenantId>) -> Result<(), Error> {
        let payloads = match tenant {
            Some(tenant) => CACHED_TABLES
                .map(|table| format!("{table}:{tenant}"))
                .to_vec(),
            // It names no row: anything may have changed.
            None => vec!["everything".to_owned()],
        };
        sqlx::query("select pg_notify($1, payload) from unnest($2::text[]) as payload")
            .bind(CHANGES_CHANNEL)
            .bind(payloads)
            .execute(self.pool())
            .await
            .map(drop)
    }
}

/// Receives notifications and calls subscribers. Clones share one connection.
#[derive(Clone)]
pub struct ChangeListener {
    state: Arc<ListenerState>,
}

type ChangeSubscriber = Box<dyn Fn(&DatabaseChange) + Send + Sync>;
type ChannelHandler = Box<dyn Fn(&str) + Send + Sync>;

struct ListenerState {
    database: Database,
    subscribers: RwLock<Vec<ChangeSubscriber>>,
    /// Called at notifications on other channels.
    channel_handlers: RwLock<Vec<(&'static str, ChannelHandler)>>,
    started_at: Instant,
    /// When the lease ends, in milliseconds since `started_at`. Zero: not listening.
    trusted_until: AtomicU64,
}

/// Why listening ended.
#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("{}", describe_cause(.0))]
    Database(#[from] Error),
    #[error("the connection ended")]
    ConnectionEnded,
    #[error("the database did not answer within {PROOF_TIMEOUT:?}")]
    TimedOut,
    #[error("the database is read-only: is it a standby, or replaced by another server?")]
    ReadOnly,
    #[error("the database server was replaced by another one")]
    ServerReplaced,
    #[error(
        "a notification sent over another connection did not arrive: is there a pooler in transaction mode between? Say in DATABASE_DIRECT_URL where the server itself is"
    )]
    NotificationsMissing,
}

impl ListenError {
    /// The class of the loss, without the text of the error.
    fn error_class(&self) -> String {
        match self {
            Self::Database(error) => error_class(error),
            Self::ConnectionEnded => "connection ended".to_owned(),
            Self::TimedOut => "no answer".to_owned(),
            Self::ReadOnly => "read-only".to_owned(),
            Self::ServerReplaced => "server replaced".to_owned(),
            Self::NotificationsMissing => "notifications do not arrive".to_owned(),
        }
    }
}

impl ChangeListener {
    /// Does not listen until [`ChangeListener::run_until_stopped`] runs.
    pub fn new(database: &Database) -> Self {
        Self {
            state: Arc::new(ListenerState {
                database: database.clone(),
                subscribers: RwLock::default(),
                channel_handlers: RwLock::default(),
                started_at: Instant::now(),
                trusted_until: AtomicU64::new(0),
            }),
        }
    }

    /// Whether the subscribers have been called, or are about to be, for every change committed by now. While this is
    /// `false`, caches of the database must not be used.
    pub fn is_listening(&self) -> bool {
        self.state.elapsed_millis() < self.state.trusted_until.load(Ordering::Acquire)
    }

    /// Calls `subscriber` at every change from now on. It must be quick and must not subscribe.
    pub fn subscribe(&self, subscriber: impl Fn(&DatabaseChange) + Send + Sync + 'static) {
        let mut subscribers = self.state.subscribers.write();
        subscribers.push(Box::new(subscriber));
    }

    /// Calls `listener` with the payload of every notification on `channel`, and with an empty one whenever some may have been
    /// missed. Call this before [`ChangeListener::run_until_stopped`]. The listener must be quick. A notification does not affect
    /// [`ChangeListener::is_listening`].
    pub fn on_notification(
        &self,
        channel: &'static str,
        listener: impl Fn(&str) + Send + Sync + 'static,
    ) {
        let mut handlers = self.state.channel_handlers.write();
        handlers.push((channel, Box::new(listener)));
    }

    /// Listens until `stop`, again after every loss.
    pub async fn run_until_stopped(&self, stop: CancellationToken) {
        let mut backoff = Backoff::new(MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY);
        let mut silent_about_it = false;
        loop {
            let outcome = stop.run_until_cancelled(Box::pin(self.listen_once())).await;
            let was_listening = self.state.trusted_until.swap(0, Ordering::AcqRel) != 0;
            self.notify_subscribers(&DatabaseChange::Everything);
            let Some(Err(cause)) = outcome else { return };
            if was_listening {
                backoff.reset();
                silent_about_it = false;
            }
            // Logged once per outage, not once per attempt.
            if !silent_about_it {
                let class = cause.error_class();
                tracing::warn!(
                    %cause,
                    causeClass = class,
                    hint = "keys and credentials are read from the database at every request until its changes are heard again",
                    "change_listener_disconnected"
                );
                silent_about_it = true;
            }
            let delay = backoff.next_delay(fastrand::f64());
            if stop.run_until_cancelled(sleep(delay)).await.is_none() {
                return;
            }
        }
    }

    /// Listens on a connection of its own until that is lost. Every wait here is bounded, and may be given up at any
    /// point: sqlx removes a message from its buffer only when all of it has arrived.
    async fn listen_once(&self) -> Result<std::convert::Infallible, ListenError> {
        let server = self.state.database.direct_server().clone();
        server.choose_first().await?;
        let replaced = server.replaced();
        // A pool of its own: the main one may be busy, and a connection that died silently must not go back to it.
        let options = server.current_options();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(PROOF_TIMEOUT)
            .connect_lazy_with(options.application_name(APPLICATION_NAME));
        let mut listener = match PgListener::connect_with(&pool).await {
            Ok(listener) => listener,
            Err(error) => return Err(server.explain_failure(error).await.into()),
        };
        listener.ignore_pool_close_event(true);
        // A loss is handled here: caches must be cleared before anything else.
        listener.eager_reconnect(false);
        let proof = format!("attesto_proof_{}", token::generate_token().expose_secret());
        let others: Vec<_> = self
            .state
            .channel_handlers
            .read()
            .iter()
            .map(|(name, _)| *name)
            .collect();
        let all = others.into_iter().chain([CHANGES_CHANNEL, &proof]);
        with_timeout(listener.listen_all(all)).await?;
        // What was read before this moment may be stale; what is read after it will be corrected.
        self.notify_subscribers(&DatabaseChange::Everything);
        self.call_channel_handlers("", |_| true);

        let session = with_timeout(listener.fetch_one("select pg_backend_pid()")).await?;
        let session: i32 = session.try_get(0)?;
        let mut begun = Instant::now();
        let notify = sqlx::query("select pg_notify($1, '')").bind(&proof);
        with_timeout(notify.execute(self.state.database.pool())).await?;
        match timeout(PROOF_TIMEOUT, self.await_proof(&mut listener, &proof)).await {
            Ok(arrived) => arrived?,
            Err(_) => return Err(ListenError::NotificationsMissing),
        }
        loop {
            self.send_heartbeat(&mut listener, session, &replaced)
                .await?;
            while let Some(notification) = listener.next_buffered() {
                self.handle_notification(&notification);
            }
            self.state.trust_until(begun + LISTEN_LEASE);
            let next_beat = begun + HEARTBEAT_INTERVAL;
            while Instant::now() < next_beat {
                match timeout_at(next_beat, listener.try_recv()).await {
                    Ok(Ok(Some(notification))) => self.handle_notification(&notification),
                    Ok(Ok(None)) => return Err(ListenError::ConnectionEnded),
                    Ok(Err(error)) => return Err(error.into()),
                    Err(_) => {}
                }
            }
            begun = Instant::now();
        }
    }

    /// Commits a write on the listening connection: its server must still be the one that changes are made on.
    ///
    /// A commit that hangs is waited for. A new connection would hang in the same way, and leave one more session behind on a server
    /// that has a limited number of them. Meanwhile the lease ends.
    async fn send_heartbeat(
        &self,
        listener: &mut PgListener,
        session: i32,
        replaced: &CancellationToken,
    ) -> Result<(), ListenError> {
        let database = &self.state.database;
        let write = database.writes().begin();
        let beat = async {
            let row = listener.fetch_one(HEARTBEAT_SQL).await;
            let written: Result<Option<String>, _> = row.and_then(|row| row.try_get(0));
            write.finish_heartbeat(&written);
            written
        };
        let mut beat = std::pin::pin!(beat);
        let written = loop {
            tokio::select! {
                biased;
                written = &mut beat => break written?,
                () = replaced.cancelled() => return Err(ListenError::ServerReplaced),
                () = sleep(PROOF_TIMEOUT) => {
                    database.direct_server().suspect();
                    if !self.is_session_working(session).await {
                        return Err(ListenError::TimedOut);
                    }
                }
            }
        };
        database.direct_server().set_read_only(written.is_none());
        written.map(drop).ok_or(ListenError::ReadOnly)
    }

    /// Whether the server is still at work for the listening session, asked over a connection of its own. If not, or if there is no
    /// answer, the session was lost on the way.
    async fn is_session_working(&self, session: i32) -> bool {
        let asking = async {
            let options = self.state.database.direct_options();
            let mut connection = options.application_name(APPLICATION_NAME).connect().await?;
            let is_working = sqlx::query_scalar(
                "select exists (select from pg_stat_activity \
                 where pid = $1 and application_name = $2 and state = 'active')",
            )
            .bind(session)
            .bind(APPLICATION_NAME)
            .fetch_one(&mut connection)
            .await?;
            let _ = connection.close().await;
            Ok::<bool, Error>(is_working)
        };
        matches!(timeout(PROOF_TIMEOUT, asking).await, Ok(Ok(true)))
    }

    /// Waits for a notification on the channel `proof`.
    async fn await_proof(&self, listener: &mut PgListener, proof: &str) -> Result<(), ListenError> {
        loop {
            let notification = listener
                .try_recv()
                .await?
                .ok_or(ListenError::ConnectionEnded)?;
            if notification.channel() == proof {
                return Ok(());
            }
            self.handle_notification(&notification);
        }
    }

    fn handle_notification(&self, notification: &PgNotification) {
        if notification.channel() == CHANGES_CHANNEL {
            self.notify_subscribers(&DatabaseChange::parse_payload(notification.payload()));
        } else {
            self.call_channel_handlers(notification.payload(), |channel| {
                channel == notification.channel()
            });
        }
    }

    fn call_channel_handlers(&self, payload: &str, concerned: impl Fn(&str) -> bool) {
        for (channel, listener) in self.state.channel_handlers.read().iter() {
            if concerned(channel) {
                listener(payload);
            }
        }
    }

    fn notify_subscribers(&self, change: &DatabaseChange) {
        for subscriber in self.state.subscribers.read().iter() {
            subscriber(change);
        }
    }
}

impl ListenerState {
    fn elapsed_millis(&self) -> u64 {
        self.millis_since_start(Instant::now())
    }

    fn millis_since_start(&self, moment: Instant) -> u64 {
        u64::try_from(moment.duration_since(self.started_at).as_millis()).unwrap_or(u64::MAX)
    }

    fn trust_until(&self, moment: Instant) {
        self.trusted_until
            .store(self.millis_since_start(moment), Ordering::Release);
    }
}

async fn with_timeout<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, ListenError> {
    match timeout(PROOF_TIMEOUT, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(ListenError::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;

    #[test]
    fn what_cannot_be_read_may_mean_anything() {
        let tenant = TenantId::mint(Timestamp::from_millis(0));
        assert_eq!(
            DatabaseChange::parse_payload(&format!("api_keys:{tenant}")),
            DatabaseChange::Row {
                table: "api_keys".into(),
                tenant
            }
        );
        for odd in ["", "api_keys", "api_keys:", "api_keys:not-an-id"] {
            assert_eq!(
                DatabaseChange::parse_payload(odd),
                DatabaseChange::Everything,
                "{odd}"
            );
        }
    }
}
