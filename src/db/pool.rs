//! [`DbPool`]: the connections of this process, used in a way that works through a pooler in transaction mode.
//!
//! sqlx prepares a statement in one exchange and runs it in the next. A pooler in transaction mode (`PgBouncer`) may
//! give the two to different sessions of the server: the statement is not found, or another client's is run. So, through
//! such a pooler, every statement runs inside a transaction, for whose length the session is reserved, and under no name,
//! so that it remains in no session. Settings of a session (`statement_timeout` and others) are sent with each
//! transaction's `begin`.
//!
//! That costs three more round trips for a single statement (begin, prepare, commit), and one for each statement of a
//! transaction.

use std::fmt;
use std::ops::{Deref, DerefMut};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgQueryResult, PgRow, PgStatement};
use sqlx::postgres::{PgTypeInfo, Postgres};
use sqlx::{AssertSqlSafe, Describe, Either, Execute, Executor, SqlStr};
use tokio::time::timeout;

use super::Error;

/// Limits for a statement that hangs; our queries need a fraction of them. Set by statements and not as start-up
/// parameters of the connection, which `PgBouncer` refuses.
const SESSION_TIMEOUTS: [(&str, &str); 3] = [
    ("statement_timeout", "15s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// [`SESSION_TIMEOUTS`] as statements, each beginning with `set`.
pub(super) fn session_timeouts_sql(set: &str) -> String {
    let each = SESSION_TIMEOUTS.map(|(name, value)| format!("{set} {name} = '{value}';"));
    each.concat()
}

/// The connection pool, used as `query.execute(database.pool())`.
#[derive(Clone)]
pub struct DbPool {
    inner: PgPool,
    /// Whether the server's session may change after each transaction (a pooler in transaction mode).
    is_transaction_pooled: bool,
}

impl fmt::Debug for DbPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl DbPool {
    pub(super) fn new(inner: PgPool, is_transaction_pooled: bool) -> Self {
        Self {
            inner,
            is_transaction_pooled,
        }
    }

    /// Begins a transaction. Must not be called where it may be cancelled: see [`mod@super::database`].
    pub async fn begin(&self) -> Result<DbTransaction, Error> {
        self.begin_with("").await
    }

    /// Begins a transaction and runs these statements in the same round trip: `set local …; select …`.
    pub async fn begin_with(&self, statements: &'static str) -> Result<DbTransaction, Error> {
        let limits = if self.is_transaction_pooled {
            session_timeouts_sql("set local")
        } else {
            String::new()
        };
        let text = AssertSqlSafe(format!("begin;{limits}{statements}"));
        let inner = if self.is_transaction_pooled {
            self.begin_within_timeout(text).await?
        } else {
            self.inner.begin_with(text).await?
        };
        Ok(DbTransaction(DbSession {
            inner,
            is_transaction_pooled: self.is_transaction_pooled,
        }))
    }

    /// Waits no longer than for a connection of the pool: a pooler accepts every client, and a session of the server may not
    /// become free for minutes, before any of our limits is in force. A transaction that begins later is rolled back.
    async fn begin_within_timeout(
        &self,
        text: AssertSqlSafe<String>,
    ) -> Result<sqlx::Transaction<'static, Postgres>, Error> {
        let pool = self.inner.clone();
        let patience = pool.options().get_acquire_timeout();
        // In a task of its own, which is not cancelled: see `mod@super::database`.
        let beginning = tokio::spawn(async move { pool.begin_with(text).await });
        match timeout(patience, beginning).await {
            Ok(Ok(begun)) => begun,
            // It panicked, or the runtime ends.
            Ok(Err(_)) => Err(Error::WorkerCrashed),
            Err(_) => Err(Error::PoolTimedOut),
        }
    }

    /// sqlx's own pool, for everything that is not a statement.
    pub fn sqlx_pool(&self) -> &PgPool {
        &self.inner
    }
}

impl<'p> Executor<'p> for &'_ DbPool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<QueryItem, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if !self.is_transaction_pooled {
            return self.inner.fetch_many(query);
        }
        let pool = self.clone();
        let steps = async move {
            let mut transaction = pool.begin().await?;
            let steps: Vec<QueryItem> = transaction.fetch_many(query).try_collect().await?;
            transaction.commit().await?;
            Ok::<_, Error>(stream::iter(steps.into_iter().map(Ok)))
        };
        stream::once(steps).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if !self.is_transaction_pooled {
            return self.inner.fetch_optional(query);
        }
        let pool = self.clone();
        Box::pin(async move {
            let mut transaction = pool.begin().await?;
            let row = transaction.fetch_optional(query).await?;
            transaction.commit().await?;
            Ok(row)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        self.inner.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        self.inner.describe(sql)
    }
}

/// Part of a statement's result: the number of changed rows, or one row.
type QueryItem = Either<PgQueryResult, PgRow>;

/// A transaction: `query.execute(&mut *transaction)`. Rolled back when it is dropped.
#[derive(Debug)]
pub struct DbTransaction(DbSession);

impl DbTransaction {
    /// Commits the transaction and gives the connection back.
    pub async fn commit(self) -> Result<(), Error> {
        self.0.inner.commit().await
    }
}

impl Deref for DbTransaction {
    type Target = DbSession;

    fn deref(&self) -> &DbSession {
        &self.0
    }
}

impl DerefMut for DbTransaction {
    fn deref_mut(&mut self) -> &mut DbSession {
        &mut self.0
    }
}

/// The server's session during a transaction.
#[derive(Debug)]
pub struct DbSession {
    inner: sqlx::Transaction<'static, Postgres>,
    is_transaction_pooled: bool,
}

impl DbSession {
    /// sqlx's own connection, which names its statements: for statements that are explicitly unnamed.
    pub(super) fn sqlx_connection(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}

impl<'c> Executor<'c> for &'c mut DbSession {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<QueryItem, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.is_transaction_pooled {
            self.inner.fetch_many(UnnamedStatement(query))
        } else {
            self.inner.fetch_many(query)
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.is_transaction_pooled {
            self.inner.fetch_optional(UnnamedStatement(query))
        } else {
            self.inner.fetch_optional(query)
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.inner.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        self.inner.describe(sql)
    }
}

/// A statement that is prepared under no name, and so replaced by the next one.
struct UnnamedStatement<E>(E);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for UnnamedStatement<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.0.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}
