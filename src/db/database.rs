//! [`Database`]: the pool of this process.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};
use tokio::time::{sleep, timeout};

use super::clock_offset::ClockOffset;
use super::pool::session_timeouts_sql;
use super::{ConnectSettings, DbPool, Error, MIGRATOR};

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
/// The lifetime of a reserved connection: the same as sqlx gives the others.
const DELIVERY_CONNECTION_TTL: Duration = Duration::from_mins(30);
/// In a smaller pool than this, no connection is reserved.
const MIN_CONNECTIONS_TO_RESERVE: u32 = 8;

/// How long the pool may leave a ping unanswered before a connection beside it is tried, to find the cause.
const PING_PROBE_DELAY: Duration = Duration::from_millis(100);

/// The database of this process. Clones share one pool.
#[derive(Clone)]
pub struct Database {
    pool: DbPool,
    /// The same database without the pooler, if there is a pooler.
    direct_options: Option<Arc<PgConnectOptions>>,
    /// Connections reserved for deliveries.
    delivery_pool: Arc<OnceLock<DbPool>>,
    settings: Arc<ConnectSettings>,
    /// Through the pooler, if there is one.
    pooler_options: Option<Arc<PgConnectOptions>>,
    /// The migrations of this release.
    pub(super) migrator: &'static Migrator,
    /// The lifetime of a reserved connection.
    delivery_connection_ttl: Duration,
    /// How far the database's clock is ahead.
    pub(super) clock_offset: Arc<ClockOffset>,
}

/// Why the database cannot be used now, without host, user or statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseConnectError {
    /// The connection was refused.
    ConnectionRefused,
    /// No answer in time.
    Timeout,
    /// The name of the host cannot be resolved, or the socket does not exist.
    NotFound,
    /// The user or the password is wrong, or may not connect from here.
    AuthenticationFailed,
    /// The server has no such database.
    DatabaseMissing,
    /// The server has no connection left.
    TooManyConnections,
    /// Every connection of our own pool is in use.
    PoolExhausted,
    /// It is starting, recovering or shutting down.
    Starting,
    /// TLS is required and not available, or the certificate is not trusted.
    Tls,
    /// None of the causes above.
    Other,
}

impl fmt::Display for DatabaseConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectionRefused => "connection refused",
            Self::Timeout => "timeout",
            Self::NotFound => "not found",
            Self::AuthenticationFailed => "authentication failed",
            Self::DatabaseMissing => "database missing",
            Self::TooManyConnections => "too many connections",
            Self::PoolExhausted => "no free connection",
            Self::Starting => "starting up or shutting down",
            Self::Tls => "tls",
            Self::Other => "error",
        })
    }
}

impl DatabaseConnectError {
    /// Classifies an error.
    pub fn from_error(error: &Error) -> Self {
        match error {
            Error::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => Self::ConnectionRefused,
                io::ErrorKind::TimedOut => Self::Timeout,
                io::ErrorKind::NotFound => Self::NotFound,
                // The resolver's errors have no kind of their own.
                _ if error.to_string().contains("failed to lookup address") => Self::NotFound,
                _ => Self::Other,
            },
            Error::Tls(_) => Self::Tls,
            Error::PoolTimedOut => Self::PoolExhausted,
            Error::Database(error) => match error.code().as_deref() {
                Some("3D000") => Self::DatabaseMissing,
                Some("53300") => Self::TooManyConnections,
                Some("57014") => Self::Timeout,
                Some(code) if code.starts_with("28") => Self::AuthenticationFailed,
                Some(code) if code.starts_with("57P") => Self::Starting,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
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
        Self::open_with(settings, "attesto".to_owned(), None)
    }

    /// The same; changes are attributed to `operator` in the log of changes.
    pub fn open_for_operator(settings: &ConnectSettings, operator: &Operator) -> Self {
        // A unique name, by which the trigger recognises that the session's operator is still this one.
        let name = format!("attesto-cli/{:08x}", fastrand::u32(..));
        Self::open_with(settings, name, Some(operator.clone()))
    }

    fn open_with(settings: &ConnectSettings, name: String, operator: Option<Operator>) -> Self {
        let direct_options = settings.direct_options.clone().map(Arc::new);
        let pooler_options = direct_options
            .as_ref()
            .map(|_| Arc::new(settings.options.clone()));
        // The operator is set in the session, so the session must not be shared.
        let way = match &direct_options {
            Some(direct) if operator.is_some() => direct.as_ref(),
            _ => &settings.options,
        };
        let is_shared = direct_options.is_some() && operator.is_none();
        let options = way.clone().application_name(&name);
        let operator = operator.map(|operator| Arc::new((name, operator)));
        let most = match operator {
            None if settings.max_connections >= MIN_CONNECTIONS_TO_RESERVE => {
                settings.max_connections - DELIVERY_CONNECTIONS
            }
            _ => settings.max_connections,
        };
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .idle_timeout(settings.idle_timeout)
            .acquire_timeout(settings.connect_timeout)
            .after_connect(move |connection, _| {
                let operator = operator.clone();
                Box::pin(async move {
                    if !is_shared {
                        connection
                            .execute(AssertSqlSafe(session_timeouts_sql("set")))
                            .await?;
                    }
                    match operator.as_deref() {
                        Some((name, operator)) => {
                            set_session_operator(connection, name, operator).await
                        }
                        None => Ok(()),
                    }
                })
            })
            .after_release(|connection, _| Box::pin(is_outside_transaction(connection)))
            .connect_lazy_with(options);
        let pool = DbPool::new(pool, is_shared);
        Self {
            pool,
            delivery_pool: Arc::default(),
            settings: Arc::new(settings.clone()),
            direct_options,
            pooler_options,
            migrator: &MIGRATOR,
            delivery_connection_ttl: DELIVERY_CONNECTION_TTL,
            clock_offset: Arc::default(),
        }
    }

    /// Reserves connections for deliveries, if the pool is large enough: deliveries go on when requests use all others or the
    /// server has none left. They count towards `max`, are opened at once, and are replaced after half an hour, so that none
    /// stays connected to a server that became read-only in a failover.
    #[must_use]
    pub fn for_deliveries(&self) -> Self {
        if self.settings.max_connections < MIN_CONNECTIONS_TO_RESERVE {
            return self.clone();
        }
        let pool = self.delivery_pool.get_or_init(|| {
            let is_shared = self.direct_options.is_some();
            let options = self.settings.options.clone();
            let kept = self.delivery_connection_ttl;
            let pool = PgPoolOptions::new()
                .min_connections(DELIVERY_CONNECTIONS)
                .max_connections(DELIVERY_CONNECTIONS)
                .idle_timeout(None)
                // With a lifetime, sqlx would open none before first use: `after_release` closes old ones instead.
                .max_lifetime(None)
                .acquire_timeout(self.settings.connect_timeout)
                .after_connect(move |connection, _| {
                    Box::pin(async move {
                        if !is_shared {
                            connection
                                .execute(AssertSqlSafe(session_timeouts_sql("set")))
                                .await?;
                        }
                        Ok(())
                    })
                })
                .after_release(move |connection, meta| {
                    Box::pin(async move {
                        Ok(meta.age <= kept && is_outside_transaction(connection).await?)
                    })
                })
                .connect_lazy_with(options.application_name("attesto-deliveries"));
            DbPool::new(pool, is_shared)
        });
        Self {
            pool: pool.clone(),
            ..self.clone()
        }
    }

    /// Another lifetime for reserved connections, for tests.
    #[must_use]
    pub fn with_delivery_connection_ttl(self, kept: Duration) -> Self {
        Self {
            delivery_connection_ttl: kept,
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

    /// The address of the server itself, for what needs one session over several statements.
    pub(super) fn direct_options(&self) -> Arc<PgConnectOptions> {
        let direct = self.direct_options.clone();
        direct.unwrap_or_else(|| self.pool.sqlx_pool().connect_options())
    }

    /// A connection to the server itself, outside the pool and without its limits.
    pub async fn connect_directly(&self, application: &str) -> Result<PgConnection, Error> {
        let options = self.direct_options().as_ref().clone();
        options.application_name(application).connect().await
    }

    /// The addresses of the server and of the pooler, where they were given as addresses and not as names.
    pub fn server_addresses(&self) -> Vec<SocketAddr> {
        let both = [
            self.pool.sqlx_pool().connect_options(),
            self.direct_options(),
        ];
        let addresses = both.iter().filter_map(|options| {
            let address = options.get_host().parse().ok()?;
            Some(SocketAddr::new(address, options.get_port()))
        });
        addresses.collect()
    }

    /// Whether the server itself is on this machine, as far as can be told from its address: a socket, or loopback, which
    /// may also lead into a container.
    pub fn is_on_this_machine(&self) -> bool {
        let options = self.direct_options();
        let host = options.get_host();
        let address: Result<IpAddr, _> = host.parse();
        options.get_socket().is_some()
            || host.starts_with('/')
            || host == "localhost"
            || address.is_ok_and(|address| address.is_loopback())
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
        let (used, idle) = of(&self.pool);
        let (used_too, idle_too) = self.delivery_pool.get().map_or((0, 0), of);
        (used + used_too, idle + idle_too)
    }

    /// The maximum number of connections, including the reserved ones.
    pub fn max_connections(&self) -> u64 {
        u64::from(self.settings.max_connections)
    }

    /// The connection pool of `DATABASE_URL`.
    pub fn pool(&self) -> &DbPool {
        &self.pool
    }

    /// Whether the database answers within `patience`; if not, the cause.
    ///
    /// The pool hides the cause: it keeps trying while the server refuses connections. So when it does not answer at
    /// once, a connection beside the pool is tried too, whose error says more.
    pub async fn ping(&self, patience: Duration) -> Result<(), DatabaseConnectError> {
        let through_pool = async {
            let mut connection = self.pool.sqlx_pool().acquire().await?;
            connection.execute("select 1").await.map(drop)
        };
        let beside_pool = async {
            sleep(PING_PROBE_DELAY).await;
            let connection = self.pool.sqlx_pool().connect_options().connect().await?;
            // The server answers, so the pool decides: it may still be waiting for a free connection.
            let _ = connection.close().await;
            Ok::<_, Error>(())
        };
        let asked = timeout(patience, async {
            tokio::pin!(through_pool);
            tokio::select! {
                answer = &mut through_pool => answer.map_err(|error| DatabaseConnectError::from_error(&error)),
                cause = beside_pool => match cause {
                    Err(error) => Err(DatabaseConnectError::from_error(&error)),
                    Ok(()) => match timeout(patience / 2, through_pool).await {
                        Ok(answer) => answer.map_err(|error| DatabaseConnectError::from_error(&error)),
                        Err(_) => Err(DatabaseConnectError::PoolExhausted),
                    },
                },
            }
        });
        asked.await.unwrap_or(Err(DatabaseConnectError::Timeout))
    }

    /// Whether pooler and direct connection lead to the same database. `None`: there is no pooler.
    pub async fn is_pooler_same_database(
        &self,
        patience: Duration,
    ) -> Option<Result<bool, DatabaseConnectError>> {
        // The start time of the server and the database's oid identify a database. The simple protocol, because every pooler
        // understands it.
        let identity = "select concat(pg_postmaster_start_time(), ' ', oid) from pg_database \
            where datname = current_database()";
        let ask = async |options: &PgConnectOptions| {
            let mut connection = options.connect().await?;
            let found: String = connection.fetch_one(identity).await?.try_get(0)?;
            let _ = connection.close().await;
            Ok::<_, Error>(found)
        };
        let pooler = self.pooler_options.clone()?;
        let both = async {
            let one = ask(&pooler).await?;
            Ok::<_, Error>(one == ask(&self.direct_options()).await?)
        };
        let asked = timeout(patience, both).await;
        Some(asked.map_or(Err(DatabaseConnectError::Timeout), |asked| {
            asked.map_err(|error| DatabaseConnectError::from_error(&error))
        }))
    }

    /// Closes every connection.
    pub async fn close_connections(&self) {
        self.pool.sqlx_pool().close().await;
        if let Some(pool) = self.delivery_pool.get() {
            pool.sqlx_pool().close().await;
        }
    }
}

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

/// Whether a connection that comes back to the pool may be given to the next caller.
///
/// When `begin` is cancelled before its answer arrives (a client that hangs up is enough), sqlx 0.9.0 does not know that
/// a transaction was begun: it returns the connection as it is, and the next caller's plain `insert` succeeds inside a
/// transaction that is never committed. Outside a transaction the clocks of transaction and statement are the same. It
/// must be one message of the simple protocol: the extended one has a clock for each of its steps.
///
/// This runs after the caller is done and delays no request. A connection that is inside a transaction is closed, which
/// rolls the transaction back. Can go when tests/it/database.rs says that sqlx no longer needs it.
async fn is_outside_transaction(connection: &mut PgConnection) -> Result<bool, Error> {
    let row = connection
        .fetch_one("select now() = statement_timestamp()")
        .await?;
    let outside: bool = row.try_get(0)?;
    if !outside {
        tracing::warn!("closing a connection that came back inside a transaction");
    }
    Ok(outside)
}
