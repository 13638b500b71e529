//! Postgres: the pool, the migrations, and the few things every room's queries need.
//!
//! Promises: a connection is never handed out inside somebody else's transaction; a connection that hangs is given up
//! within seconds; the schema is exactly the one this binary was built with, or start-up says why not.
//!
//! - [`Database`]: connect, migrate, ping
//! - [`changes`]: hear of changes to what is remembered

pub mod changes;
pub mod embedded;

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use url::Url;

pub use sqlx::Error;

/// The oldest major version of Postgres that the queries and migrations work on.
pub const OLDEST_MAJOR: u32 = 14;

/// Every migration, embedded in the binary.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// Where the database is and how its pool behaves.
#[derive(Clone)]
pub struct ConnectSettings {
    options: PgConnectOptions,
    max_connections: u32,
    idle_timeout: Duration,
    connect_timeout: Duration,
}

/// Why a database URL is refused. Never repeats the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedUrl {
    /// Not a `postgres://` URL.
    #[error("must be a URL like postgres://user:password@host:5432/database")]
    NotAUrl,
    /// One of our parameters has a bad value.
    #[error("its parameter {name} must be a whole number from {min} to {max}")]
    Parameter {
        /// The parameter's name.
        name: &'static str,
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
}

impl ConnectSettings {
    /// With our defaults for everything that [`ConnectSettings::from_url`] reads from the URL.
    fn with_options(options: PgConnectOptions) -> Self {
        Self {
            options,
            max_connections: 20,
            idle_timeout: Duration::from_mins(10),
            connect_timeout: Duration::from_secs(5),
        }
    }

    /// Reads a `postgres://` URL. `max` (connections, default 20), `idle_timeout` and `connect_timeout` (seconds,
    /// defaults 600 and 5) are ours; every other parameter is Postgres' own.
    pub fn from_url(text: &str) -> Result<Self, MalformedUrl> {
        let mut url = Url::parse(text).map_err(|_| MalformedUrl::NotAUrl)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(MalformedUrl::NotAUrl);
        }
        let (mut max, mut idle, mut connect) = (20, 600, 5);
        let mut others = Vec::new();
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "max" => max = parameter("max", &value, 2, 1000)?,
                "idle_timeout" => idle = parameter("idle_timeout", &value, 1, 86_400)?,
                "connect_timeout" => connect = parameter("connect_timeout", &value, 1, 300)?,
                _ => others.push((name.into_owned(), value.into_owned())),
            }
        }
        url.set_query(None);
        if !others.is_empty() {
            url.query_pairs_mut().extend_pairs(&others);
        }
        let options =
            PgConnectOptions::from_str(url.as_str()).map_err(|_| MalformedUrl::NotAUrl)?;
        Ok(Self {
            options,
            max_connections: u32::try_from(max).unwrap_or(u32::MAX),
            idle_timeout: Duration::from_secs(idle),
            connect_timeout: Duration::from_secs(connect),
        })
    }
}

fn parameter(name: &'static str, value: &str, min: u64, max: u64) -> Result<u64, MalformedUrl> {
    let refused = MalformedUrl::Parameter { name, min, max };
    value
        .parse()
        .ok()
        .filter(|value| (min..=max).contains(value))
        .ok_or(refused)
}

/// The database of this process.
#[derive(Clone, Debug)]
pub struct Database {
    pool: PgPool,
}

impl Database {
    /// A pool that connects when first asked: a database that is away at start-up is a state, not the end.
    pub fn open(settings: &ConnectSettings) -> Self {
        let options = settings.options.clone().application_name("attesto");
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .idle_timeout(settings.idle_timeout)
            .acquire_timeout(settings.connect_timeout)
            .connect_lazy_with(options);
        Self { pool }
    }

    /// A database around a pool that exists already.
    pub fn from_pool(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The pool, for a room's store.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Whether an error says that the database cannot be reached or is not serving, so that trying again can help.
pub fn is_unavailable(error: &Error) -> bool {
    match error {
        Error::Io(_)
        | Error::PoolTimedOut
        | Error::PoolClosed
        | Error::WorkerCrashed
        | Error::Tls(_) => true,
        // Class 57P: shutting down, crashed, starting. Class 53: out of connections, disk or memory. Class 08: connection.
        // 57014: our own statement timeout.
        Error::Database(error) => error.code().is_some_and(|code| {
            code.starts_with("57P")
                || code.starts_with("53")
                || code.starts_with("08")
                || code == "57014"
        }),
        _ => false,
    }
}

/// Whether an error says that a table or column is not there: the migrations have not run, or not all of them.
pub fn is_missing_table(error: &Error) -> bool {
    matches!(error, Error::Database(cause) if matches!(cause.code().as_deref(), Some("42P01" | "42703")))
}

/// Turns a violation of one named constraint into the sentence it means; everything else stays what it was.
pub fn on_constraint<E: From<Error>>(
    error: Error,
    constraint: &str,
    meaning: impl FnOnce() -> E,
) -> E {
    match &error {
        Error::Database(cause) if cause.constraint() == Some(constraint) => meaning(),
        _ => E::from(error),
    }
}
