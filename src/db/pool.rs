//! [`Pool`]: the connections of this process, used so that a pooler between may hand them out by the transaction.
//!
//! sqlx prepares a statement in one exchange and runs it in the next. A pooler in transaction mode (`PgBouncer`) may
//! give the two to different sessions of the server: the statement is not found, or is somebody else's. So, through
//! such a pooler, every statement runs inside a transaction, for whose length the session is ours, and under no name,
//! so that it stays behind in no session. What a session would be told once (`statement_timeout` and its like) each
//! transaction is told with its `begin`.
//!
//! That costs three exchanges more for a statement on its own (to begin, to prepare it anew, to commit), and one for each
//! statement of what is a transaction anyway.

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

/// What bounds the harm of a statement that hangs; no query of ours needs a fraction of it. Set by statements and not as
/// parameters of the connection's start, which a pooler such as `PgBouncer` refuses.
const SESSION_TIMEOUTS: [(&str, &str); 3] = [
    ("statement_timeout", "15s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// [`LIMITS`] as statements, each beginning with `set`.
pub(super) fn session_timeouts_sql(set: &str) -> String {
    let each = SESSION_TIMEOUTS.map(|(name, value)| format!("{set} {name} = '{value}';"));
    each.concat()
}

/// The connections of this process, for a room's store: `query.execute(database.pool())`.
#[derive(Clone)]
pub struct DbPool {
    inner: PgPool,
    /// Whether a session of the server is ours for one transaction only.
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

    /// Begins a transaction. Never where it may be cancelled: see [`mod@super::database`].
    pub async fn begin(&self) -> Result<DbTransaction, Error> {
        self.begin_with("").await
    }

    /// The same, and runs these statements of ours in the same exchange: `set local …; select …`.
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

    /// Waits no longer than for a connection of the pool's own: the pooler lets in whoever comes, and a session of the
    /// server may not come free for minutes, before any limit of ours is in force. What begins after all is rolled back.
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

    /// sqlx's own pool, which knows of no pooler: for what is not a statement.
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

/// What a statement brings: how many rows it changed, or one of those it found.
type QueryItem = Either<PgQueryResult, PgRow>;

/// A transaction: `query.execute(&mut *transaction)`. Rolled back when it is dropped.
#[derive(Debug)]
pub struct DbTransaction(DbSession);

impl DbTransaction {
    /// Makes it so.
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

/// The session of the server that a transaction has for as long as it lasts.
#[derive(Debug)]
pub struct DbSession {
    inner: sqlx::Transaction<'static, Postgres>,
    is_transaction_pooled: bool,
}

impl DbSession {
    /// sqlx's own connection, whose statements keep their names: for statements that say themselves that they have none.
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

/// A statement that is prepared under no name, and so forgotten with the next one.
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
