//! [`Database`]: the pool of this process.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};
use tokio::time::{sleep, timeout};

use super::clock_offset::ClockOffset;
use super::connect_settings::is_on_this_machine;
use super::pool::session_settings_sql;
use super::server_watch::{SERVER_STATUS_SQL, ServerStatus, ServerWatch, WeakServerWatch};
use super::write_watch::WriteWatch;
use super::{ConnectSettings, ConnectionLimit, DatabaseConnectError, DbPool, Error, MIGRATOR};

/// The person who changes something, for the log of changes (`operator_audit`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The operating system's user name.
    pub actor: String,
    /// The machine's name.
    pub host: String,
    /// The command, without its arguments.
    pub command: String,
}

/// Connections reserved for deliveries: one for claims and results, one for renewing leases, one for reading bodies.
const DELIVERY_CONNECTIONS: u32 = 3;
/// The name of their sessions.
const DELIVERY_APPLICATION: &str = "attesto-deliveries";
/// The name of the session that `/ready` asks.
const READINESS_APPLICATION: &str = "attesto-readiness";
/// The connections for `/ready` and for notifications of changes.
pub(super) const WATCH_CONNECTIONS: u32 = 2;
/// In a smaller pool than this, no connection is reserved for deliveries, and those of [`WATCH_CONNECTIONS`] come on top.
pub(super) const MIN_CONNECTIONS_TO_RESERVE: u32 = 8;
/// The lifetime of a reserved connection: the same as sqlx gives the others.
const RESERVED_CONNECTION_TTL: Duration = Duration::from_mins(30);

/// How long a connection of the pool may take to show that it is alive, before another is opened.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(1);
/// A session that may not write is not replaced sooner: the new one would be the same.
const MIN_READ_ONLY_AGE: Duration = Duration::from_secs(1);

/// How long the pool may leave a ping unanswered before a connection beside it is tried, to find the cause.
const PING_PROBE_DELAY: Duration = Duration::from_millis(100);

/// The database of this process. Clones share one pool.
#[derive(Clone)]
pub struct Database {
    pool: DbPool,
    /// The servers of the pool.
    server: ServerWatch,
    /// The same database without the pooler, if there is a pooler.
    direct_server: Option<ServerWatch>,
    /// The writes of this process.
    writes: WriteWatch,
    /// Connections reserved for deliveries.
    delivery_pool: Arc<OnceLock<DbPool>>,
    /// The connection of `/ready`.
    readiness_pool: Arc<OnceLock<DbPool>>,
    settings: Arc<ConnectSettings>,
    /// The servers of `DATABASE_URL`, if they are poolers.
    pooler: Option<ServerWatch>,
    /// The migrations of this release.
    pub(super) migrator: &'static Migrator,
    /// The lifetime of a reserved connection.
    reserved_connection_ttl: Duration,
    /// Whether Citus has distributed the tables, and whether they have triggers, once there are tables.
    pub(super) distribution: Arc<OnceLock<super::distribution::DistributionFacts>>,
    /// How far the database's clock is ahead.
    pub(super) clock_offset: Arc<ClockOffset>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The settings may contain a password.
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

impl Database {
    /// A pool that connects on first use, so that a database that is unavailable at start-up is not an error.
    pub fn open(settings: &ConnectSettings) -> Self {
        Self::open_with(settings, "attesto", None)
    }

    /// The same; changes are attributed to `operator` in the log of changes.
    pub fn open_for_operator(settings: &ConnectSettings, operator: &Operator) -> Self {
        // A unique name, by which the trigger recognises that the session's operator is still this one.
        let name = format!("attesto-cli/{:08x}", fastrand::u32(..));
        Self::open_with(settings, &name, Some(operator.clone()))
    }

    fn open_with(settings: &ConnectSettings, name: &str, operator: Option<Operator>) -> Self {
        let direct_server = settings.direct_servers.clone().map(ServerWatch::new);
        let from_url = ServerWatch::new(settings.servers.clone());
        let pooler = direct_server.is_some().then(|| from_url.clone());
        // The operator is set in the session, so the session must not be shared.
        let server = match &direct_server {
            Some(direct) if operator.is_some() => direct.clone(),
            _ => from_url,
        };
        let is_shared = direct_server.is_some() && operator.is_none();
        let options = server.current_options().application_name(name);
        let operator = operator.map(|operator| Arc::new((name.to_owned(), operator)));
        let most = match operator {
            None if settings.max_connections >= MIN_CONNECTIONS_TO_RESERVE => {
                settings.max_connections - DELIVERY_CONNECTIONS - WATCH_CONNECTIONS
            }
            _ => settings.max_connections,
        };
        let hooks = SessionHooks {
            server: server.downgrade(),
            is_shared,
            operator,
            max_age: None,
        };
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .idle_timeout(settings.idle_timeout)
            .acquire_timeout(settings.connect_timeout);
        let pool = hooks.install(pool).connect_lazy_with(options);
        server.add_pool(&pool, name);
        Self {
            pool: DbPool::new(pool, server.clone(), is_shared),
            server,
            direct_server,
            writes: WriteWatch::default(),
            delivery_pool: Arc::default(),
            readiness_pool: Arc::default(),
            settings: Arc::new(settings.clone()),
            pooler,
            migrator: &MIGRATOR,
            reserved_connection_ttl: RESERVED_CONNECTION_TTL,
            distribution: Arc::default(),
            clock_offset: Arc::default(),
        }
    }

    /// Reserves connections for deliveries, if the pool is large enough: deliveries go on when requests use all others or the
    /// server has none left. They count towards `max`, are opened at once, and are replaced after half an hour.
    #[must_use]
    pub fn for_deliveries(&self) -> Self {
        if self.settings.max_connections < MIN_CONNECTIONS_TO_RESERVE {
            return self.clone();
        }
        let pool = self
            .delivery_pool
            .get_or_init(|| self.reserve_pool(DELIVERY_APPLICATION, DELIVERY_CONNECTIONS));
        self.with_pool(pool)
    }

    /// Opens the connections of [`Database::for_deliveries`], as far as the server gives any within the time of a connection attempt:
    /// before jobs and requests take them all.
    pub async fn open_delivery_connections(&self) {
        if self.settings.max_connections < MIN_CONNECTIONS_TO_RESERVE {
            return;
        }
        let reserved = self.for_deliveries();
        let pool = reserved.pool().sqlx_pool();
        let _ = join_all((0..DELIVERY_CONNECTIONS).map(|_| pool.acquire())).await;
    }

    /// Whether the role may have as many connections as this process takes: `None` if so, or if that cannot be found out within `patience`.
    pub(crate) async fn find_connection_limit(
        &self,
        patience: Duration,
    ) -> Option<ConnectionLimit> {
        let statement = "select case when rolsuper then -1 else rolconnlimit end from pg_roles where rolname = current_user";
        let watching = self.for_readiness();
        let asking = async {
            let mut session = watching.pool.acquire().await?;
            session.fetch_row(statement).await?.try_get(0)
        };
        let allowed: i32 = timeout(patience, asking).await.ok()?.ok()?;
        ConnectionLimit::of_role(allowed, self.max_connections())
    }

    /// Reserves a connection in the same way for what watches the database: it gets an answer while requests use all others.
    #[must_use]
    pub fn for_readiness(&self) -> Self {
        let pool = self
            .readiness_pool
            .get_or_init(|| self.reserve_pool(READINESS_APPLICATION, 1));
        self.with_pool(pool)
    }

    fn with_pool(&self, pool: &DbPool) -> Self {
        Self {
            pool: pool.clone(),
            ..self.clone()
        }
    }

    /// Opens this many connections at once, and keeps them.
    fn reserve_pool(&self, application: &str, connections: u32) -> DbPool {
        let is_shared = self.direct_server.is_some();
        let hooks = SessionHooks {
            server: self.server.downgrade(),
            is_shared,
            operator: None,
            max_age: Some(self.reserved_connection_ttl),
        };
        let pool = PgPoolOptions::new()
            .min_connections(connections)
            .max_connections(connections)
            .idle_timeout(None)
            // With a lifetime, sqlx would open none before first use: the hook closes old ones instead.
            .max_lifetime(None)
            .acquire_timeout(self.settings.connect_timeout);
        let options = self.server.current_options();
        let pool = hooks
            .install(pool)
            .connect_lazy_with(options.application_name(application));
        self.server.add_pool(&pool, application);
        DbPool::new(pool, self.server.clone(), is_shared).with_lender(&self.pool)
    }

    /// Another lifetime for reserved connections, for tests.
    #[must_use]
    pub fn with_reserved_connection_ttl(self, kept: Duration) -> Self {
        Self {
            reserved_connection_ttl: kept,
            ..self
        }
    }

    /// Other migrations, for tests of two releases on one database.
    #[must_use]
    pub fn with_migrator(self, known: &'static Migrator) -> Self {
        Self {
            migrator: known,
            ..self
        }
    }

    /// The server itself, for what needs one session over several statements.
    pub(super) fn direct_server(&self) -> &ServerWatch {
        self.direct_server.as_ref().unwrap_or(&self.server)
    }

    /// The address of the server itself: of the one in use, if there are several.
    pub(super) fn direct_options(&self) -> PgConnectOptions {
        self.direct_server().current_options()
    }

    /// A connection to the server itself, outside the pool and without its limits.
    pub async fn connect_directly(&self, application: &str) -> Result<PgConnection, Error> {
        let server = self.direct_server();
        server.choose_first().await?;
        let options = self.direct_options().application_name(application);
        match options.connect().await {
            Ok(connection) => Ok(connection),
            Err(error) => Err(server.explain_failure(error).await),
        }
    }

    /// The addresses of the servers and of the poolers, where they were given as addresses and not as names.
    pub fn server_addresses(&self) -> Vec<SocketAddr> {
        let lists = [&self.settings.servers]
            .into_iter()
            .chain(&self.settings.direct_servers);
        let addresses = lists.flat_map(|list| &list.servers).filter_map(|options| {
            let address = options.get_host().parse().ok()?;
            Some(SocketAddr::new(address, options.get_port()))
        });
        addresses.collect()
    }

    /// Whether the server itself is on this machine, as far as can be told from its address: a socket, or loopback, which
    /// may also lead into a container.
    pub fn is_on_this_machine(&self) -> bool {
        is_on_this_machine(&self.direct_options())
    }

    /// How many connections are in use, and how many are open and idle.
    pub fn connection_counts(&self) -> (u64, u64) {
        let of = |pool: &DbPool| {
            let open = u64::from(pool.sqlx_pool().size());
            let idle = u64::try_from(pool.sqlx_pool().num_idle())
                .unwrap_or(0)
                .min(open);
            (open - idle, idle)
        };
        let counts = self.all_pools().map(of);
        counts.fold((0, 0), |sum, (used, idle)| (sum.0 + used, sum.1 + idle))
    }

    /// The maximum number of connections, including the reserved ones.
    pub fn max_connections(&self) -> u64 {
        u64::from(self.settings.max_connections)
    }

    /// The main pool, and those that were reserved.
    fn all_pools(&self) -> impl Iterator<Item = &DbPool> {
        let reserved = [&self.delivery_pool, &self.readiness_pool];
        let reserved = reserved.into_iter().filter_map(|pool| pool.get());
        std::iter::once(&self.pool).chain(reserved)
    }

    /// How long a connection of the pool is waited for.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.settings.connect_timeout
    }

    /// The connection pool of `DATABASE_URL`.
    pub fn pool(&self) -> &DbPool {
        &self.pool
    }

    /// The writes of this process: whether they complete.
    pub fn writes(&self) -> &WriteWatch {
        &self.writes
    }

    /// Why nothing can be written now, as far as this process has noticed: `ReadOnly` or `WritesStalled`. What such a server says is
    /// out of date, if another has taken over.
    pub fn write_problem(&self) -> Option<DatabaseConnectError> {
        if self.server.is_read_only() || self.direct_server().is_read_only() {
            Some(DatabaseConnectError::ReadOnly)
        } else if self.writes.is_stalled() {
            Some(DatabaseConnectError::WritesStalled)
        } else {
            None
        }
    }

    /// Notes whether a session of the current server may write.
    pub(super) fn note_session_mode(&self, is_read_only: bool) {
        self.server.set_read_only(is_read_only);
    }

    /// Whether the database answers within `patience`, takes writes and has a connection for requests; if not, the cause.
    /// Writes nothing: whether writes complete is judged by those of this process, of which
    /// [`run_write_heartbeat`](Self::run_write_heartbeat) makes some.
    pub async fn check_writable(&self, patience: Duration) -> Result<(), DatabaseConnectError> {
        let answered = self.for_readiness().ping(patience).await;
        match (answered, self.write_problem()) {
            // A heartbeat waits on this connection.
            (
                Err(DatabaseConnectError::Timeout | DatabaseConnectError::PoolExhausted) | Ok(()),
                Some(problem),
            ) => return Err(problem),
            (Err(DatabaseConnectError::PoolExhausted), None) => {
                return Err(DatabaseConnectError::WritesStalled);
            }
            (answered, _) => answered?,
        }
        if let Some(problem) = self.writes.failure() {
            return Err(problem);
        }
        // A flood may use all other connections, and each of them serves. When the server gives us none, this one answers alone.
        if self.pool.was_refused() {
            self.ping(patience).await?;
        }
        Ok(())
    }

    /// The class of why the database does not answer within `patience`.
    pub async fn ping(&self, patience: Duration) -> Result<(), DatabaseConnectError> {
        let answer = self.check_answer(patience).await;
        answer.map_err(|error| DatabaseConnectError::from_error(&error))
    }

    /// Whether the database answers within `patience`; if not, the cause.
    ///
    /// The pool hides the cause: it keeps trying while the server refuses connections. So when it does not answer at
    /// once, a connection beside the pool is tried too, whose error says more.
    pub(crate) async fn check_answer(&self, patience: Duration) -> Result<(), Error> {
        let through_pool = async {
            let mut session = self.pool.acquire().await?;
            let status = ServerStatus::from_row(&session.fetch_row(SERVER_STATUS_SQL).await?)?;
            self.server.set_read_only(status.is_read_only);
            Ok::<_, Error>(())
        };
        let beside_pool = async {
            sleep(PING_PROBE_DELAY).await;
            match self.server.current_options().connect().await {
                // The server answers, so the pool decides: it may still be waiting for a free connection.
                Ok(connection) => {
                    let _ = connection.close().await;
                    Ok(())
                }
                Err(error) => Err(self.server.explain_failure(error).await),
            }
        };
        let asked = timeout(patience, async {
            tokio::pin!(through_pool);
            tokio::select! {
                answer = &mut through_pool => answer,
                cause = beside_pool => match cause {
                    Err(error) => Err(error),
                    Ok(()) => match timeout(patience / 2, through_pool).await {
                        Ok(answer) => answer,
                        Err(_) => Err(DatabaseConnectError::PoolExhausted.into()),
                    },
                },
            }
        });
        asked
            .await
            .unwrap_or(Err(DatabaseConnectError::Timeout.into()))
    }

    /// Whether pooler and direct connection lead to the same database. `None`: there is no pooler.
    pub async fn is_pooler_same_database(&self, patience: Duration) -> Option<Result<bool, Error>> {
        // The start time of the server and the database's oid identify a database. The simple protocol, because every pooler
        // understands it.
        let identity = "select concat(pg_postmaster_start_time(), ' ', oid) from pg_database \
            where datname = current_database()";
        let ask = async |server: &ServerWatch| {
            let mut connection = match server.current_options().connect().await {
                Ok(connection) => connection,
                Err(error) => return Err(server.explain_failure(error).await),
            };
            let found: String = connection.fetch_one(identity).await?.try_get(0)?;
            let _ = connection.close().await;
            Ok::<_, Error>(found)
        };
        let pooler = self.pooler.as_ref()?;
        let both = async {
            pooler.choose_first().await?;
            self.direct_server().choose_first().await?;
            let one = ask(pooler).await?;
            Ok::<_, Error>(one == ask(self.direct_server()).await?)
        };
        let asked = timeout(patience, both).await;
        Some(asked.unwrap_or(Err(DatabaseConnectError::Timeout.into())))
    }

    /// Closes every connection.
    pub async fn close_connections(&self) {
        for pool in self.all_pools() {
            pool.sqlx_pool().close().await;
        }
    }
}

/// What a pool does with its sessions beside their use.
#[derive(Clone)]
struct SessionHooks {
    server: WeakServerWatch,
    /// Whether the server's session may change after each transaction (a pooler in transaction mode).
    is_shared: bool,
    /// With the name of the sessions.
    operator: Option<Arc<(String, Operator)>>,
    /// Older connections are closed.
    max_age: Option<Duration>,
}

impl SessionHooks {
    fn install(self, options: PgPoolOptions) -> PgPoolOptions {
        let (preparing, testing, returning) = (self.clone(), self.clone(), self);
        options
            .after_connect(move |connection, _| {
                let hooks = preparing.clone();
                Box::pin(async move { hooks.prepare_session(connection).await })
            })
            // The hook does it, within a time.
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let is_outdated = testing.server.is_outdated(meta.age);
                Box::pin(async move {
                    if is_outdated {
                        return Ok(false);
                    }
                    match timeout(LIVENESS_TIMEOUT, connection.ping()).await {
                        Ok(answer) => answer.map(|()| true),
                        Err(_) => Err(Error::Io(io::ErrorKind::TimedOut.into())),
                    }
                })
            })
            .after_release(move |connection, meta| {
                let hooks = returning.clone();
                Box::pin(async move { hooks.may_be_used_again(connection, meta.age).await })
            })
    }

    async fn prepare_session(&self, connection: &mut PgConnection) -> Result<(), Error> {
        if !self.is_shared {
            let settings = session_settings_sql();
            self.server.prepare_session(connection, &settings).await?;
        }
        match self.operator.as_deref() {
            Some((name, operator)) => set_session_operator(connection, name, operator).await,
            None => Ok(()),
        }
    }

    /// Whether a connection that comes back to the pool may be given to the next caller.
    ///
    /// When a `begin` of sqlx's own is cancelled before its answer arrives, sqlx 0.9.0 does not know that
    /// a transaction was begun: it returns the connection as it is, and the next caller's plain `insert` succeeds inside a
    /// transaction that is never committed. Outside a transaction the clocks of transaction and statement are the same. It
    /// must be one message of the simple protocol: the extended one has a clock for each of its steps. [`DbPool`] begins
    /// transactions in its own way; this is the second line. Can go when tests/it/database.rs says that sqlx no longer needs it.
    ///
    /// A session that may not write is closed too: since it was opened, its server became a standby or was fenced, and another
    /// one may be the primary now.
    ///
    /// This runs after the caller is done and delays no request.
    async fn may_be_used_again(
        &self,
        connection: &mut PgConnection,
        age: Duration,
    ) -> Result<bool, Error> {
        if self.max_age.is_some_and(|max_age| age > max_age) {
            return Ok(false);
        }
        let row = connection.fetch_one(RELEASED_SESSION_SQL).await?;
        let is_outside: bool = row.try_get(0)?;
        if !is_outside {
            tracing::warn!("connection_returned_in_transaction");
            return Ok(false);
        }
        let is_read_only: bool = row.try_get(1)?;
        self.server.set_read_only(is_read_only);
        Ok(!is_read_only || age < MIN_READ_ONLY_AGE)
    }
}

/// Whether a session is outside a transaction, and whether it may not write.
const RELEASED_SESSION_SQL: &str = "select now() = statement_timestamp(),     pg_is_in_recovery() or current_setting('transaction_read_only')::bool";

/// Sets the operator of a session.
async fn set_session_operator(
    connection: &mut PgConnection,
    name: &str,
    operator: &Operator,
) -> Result<(), Error> {
    let statement = "select set_config('attesto.session', $1, false), set_config('attesto.actor', $2, false), \
        set_config('attesto.host', $3, false), set_config('attesto.command', $4, false)";
    sqlx::query(statement)
        .bind(name)
        .bind(&operator.actor)
        .bind(&operator.host)
        .bind(&operator.command)
        .execute(connection)
        .await
        .map(drop)
}
