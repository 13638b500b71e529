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
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either as First, select};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgQueryResult, PgRow, PgStatement};
use sqlx::postgres::{PgTypeInfo, Postgres};
use sqlx::{AssertSqlSafe, Describe, Either, Execute, Executor, SqlSafeStr as _, SqlStr};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::server_watch::ServerWatch;
use super::{Error, is_serialization_failure};

/// Limits for a statement that hangs; our queries need a fraction of them. Set by statements and not as start-up
/// parameters of the connection, which `PgBouncer` refuses.
const SESSION_TIMEOUTS: [(&str, &str); 3] = [
    ("statement_timeout", "15s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// Every statement is written for this level. A role or a database may have another one as its default, at which Postgres refuses
/// concurrent writes that are right at this one.
const ISOLATION_LEVEL: &str = "read committed";

/// How often a statement is run that Postgres ended to resolve a deadlock or a conflict of serialization.
const MAX_STATEMENT_ATTEMPTS: u32 = 4;
/// In milliseconds, before each further attempt: up to this, so that two that met do not meet again.
const MAX_RETRY_DELAY_MILLIS: u64 = 50;

/// How long a pool waits for its own connection before it borrows one.
const BORROW_DELAY: Duration = Duration::from_millis(500);

/// [`SESSION_TIMEOUTS`] as statements, each beginning with `set`.
fn session_timeouts_sql(set: &str) -> String {
    let each = SESSION_TIMEOUTS.map(|(name, value)| format!("{set} {name} = '{value}';"));
    each.concat()
}

/// What a session of our own is set to, once.
pub(super) fn session_settings_sql() -> String {
    let timeouts = session_timeouts_sql("set");
    format!("{timeouts}set default_transaction_isolation = '{ISOLATION_LEVEL}';")
}

/// The connection pool, used as `query.execute(database.pool())`.
#[derive(Clone)]
pub struct DbPool {
    inner: PgPool,
    server: ServerWatch,
    /// Whether the server's session may change after each transaction (a pooler in transaction mode).
    is_transaction_pooled: bool,
    supply: Arc<Mutex<ConnectionSupply>>,
    /// The pool that lends a connection when this one gets none from the server.
    lender: Option<PgPool>,
}

/// Whether callers of a pool get a connection.
#[derive(Debug, Default)]
struct ConnectionSupply {
    /// When one was given last.
    last_given: Option<Instant>,
    /// Whether a caller got none who began to wait after that.
    was_refused: bool,
}

impl ConnectionSupply {
    fn note(&mut self, begun: Instant, was_given: bool) {
        if was_given {
            self.last_given = Some(Instant::now());
            self.was_refused = false;
        } else if self.last_given.is_none_or(|given| given < begun) {
            self.was_refused = true;
        }
    }
}

impl fmt::Debug for DbPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl DbPool {
    pub(super) fn new(inner: PgPool, server: ServerWatch, is_transaction_pooled: bool) -> Self {
        Self {
            inner,
            server,
            is_transaction_pooled,
            supply: Arc::default(),
            lender: None,
        }
    }

    /// The same, with connections of `lender` where the server has none left for this pool: it may have given all of them to the other one.
    pub(super) fn with_lender(self, lender: &Self) -> Self {
        Self {
            lender: Some(lender.inner.clone()),
            ..self
        }
    }

    async fn acquire_or_borrow(&self) -> Result<PoolConnection<Postgres>, Error> {
        let Some(lender) = &self.lender else {
            return self.inner.acquire().await;
        };
        let mut own = std::pin::pin!(self.inner.acquire());
        tokio::select! {
            biased;
            acquired = &mut own => return acquired,
            () = sleep(BORROW_DELAY) => {}
        }
        let borrowed = std::pin::pin!(lender.acquire());
        // The first that is given; the error of the last, if none is.
        match select(own, borrowed).await {
            First::Left((Ok(given), _)) | First::Right((Ok(given), _)) => Ok(given),
            First::Left((Err(_), borrowed)) => borrowed.await,
            First::Right((Err(_), own)) => own.await,
        }
    }

    /// Whether the pool gave no connection to a caller, and to none since.
    pub(super) fn was_refused(&self) -> bool {
        self.supply.lock().was_refused
    }

    /// Begins a transaction.
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
        let text = format!("begin isolation level {ISOLATION_LEVEL};{limits}{statements}");
        let mut session = self.acquire().await?;
        // From here on its transaction is rolled back unless it is committed, also when this call is cancelled.
        session.is_in_transaction = true;
        let begun = session.run_command(AssertSqlSafe(text).into_sql_str());
        if self.is_transaction_pooled {
            // No longer than for a connection of the pool: a pooler accepts every client, and a session of the server may not
            // become free for minutes, before any of our limits is in force.
            let begun = timeout(self.inner.options().get_acquire_timeout(), begun).await;
            if begun.is_err() {
                session.discard();
            }
            begun.unwrap_or(Err(Error::PoolTimedOut))?;
        } else {
            begun.await?;
        }
        Ok(DbTransaction(DbSession {
            inner: session,
            is_transaction_pooled: self.is_transaction_pooled,
        }))
    }

    /// A connection of the pool to the current server. In a box: every statement of a request waits in this large future.
    pub(super) fn acquire(&self) -> BoxFuture<'_, Result<PooledSession, Error>> {
        Box::pin(async {
            self.server.choose_first().await?;
            loop {
                let begun = Instant::now();
                let replaced = self.server.replaced();
                let acquiring = Box::pin(self.server.run_while_suitable(self.acquire_or_borrow()));
                let acquired = self.server.run_until_replaced(&replaced, acquiring).await;
                if replaced.is_cancelled() {
                    // What the pool waited for was a connection to the server before.
                    if let Ok(connection) = acquired {
                        drop(connection.detach());
                    }
                    continue;
                }
                self.supply.lock().note(begun, acquired.is_ok());
                let connection = match acquired {
                    Ok(connection) => connection,
                    Err(error) => return Err(self.server.explain_failure(error).await),
                };
                return Ok(PooledSession {
                    connection: Some(connection),
                    server: self.server.clone(),
                    replaced,
                    is_in_transaction: false,
                });
            }
        })
    }

    /// Runs one statement in a transaction of its own. When Postgres ended it to resolve a deadlock or a conflict, nothing was
    /// changed, and it is run again.
    async fn run_statement(
        &self,
        statement: RepeatableStatement,
        wanted: WantedRows,
    ) -> Result<Vec<QueryItem>, Error> {
        let mut attempt = 1;
        loop {
            let done = self.run_statement_once(statement.clone(), wanted).await;
            match done {
                Err(error)
                    if attempt < MAX_STATEMENT_ATTEMPTS && is_serialization_failure(&error) =>
                {
                    attempt += 1;
                    sleep(Duration::from_millis(fastrand::u64(
                        ..MAX_RETRY_DELAY_MILLIS,
                    )))
                    .await;
                }
                done => return done,
            }
        }
    }

    async fn run_statement_once(
        &self,
        statement: RepeatableStatement,
        wanted: WantedRows,
    ) -> Result<Vec<QueryItem>, Error> {
        if self.is_transaction_pooled {
            let mut transaction = self.begin().await?;
            let done = transaction.run_statement(statement, wanted).await?;
            transaction.commit().await?;
            return Ok(done);
        }
        let mut session = DbSession {
            inner: self.acquire().await?,
            is_transaction_pooled: false,
        };
        session.run_statement(statement, wanted).await
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
        let (pool, statement) = (self.clone(), RepeatableStatement::new(query));
        let items = async move {
            let items = pool.run_statement(statement?, WantedRows::All).await?;
            Ok::<_, Error>(stream::iter(items.into_iter().map(Ok)))
        };
        stream::once(items).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.clone(), RepeatableStatement::new(query));
        Box::pin(async move {
            let items = pool.run_statement(statement?, WantedRows::One).await?;
            Ok(items.into_iter().find_map(Either::right))
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

/// Which rows of a statement are read.
#[derive(Clone, Copy)]
enum WantedRows {
    All,
    /// The first, if there is one.
    One,
}

/// A connection of the pool. When it is dropped it goes back, after a rollback if a transaction was not committed; or it is
/// dropped, if its server was replaced.
///
/// sqlx's own way back waits for the answers of a server that may never come, and keeps the place in the pool meanwhile.
pub(super) struct PooledSession {
    /// `None` only while it is dropped.
    connection: Option<PoolConnection<Postgres>>,
    server: ServerWatch,
    /// Cancelled when its server is replaced.
    replaced: CancellationToken,
    is_in_transaction: bool,
}

impl PooledSession {
    /// Closes the connection instead of giving it back.
    fn discard(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }

    /// Runs a statement that has no result, by the simple protocol.
    async fn run_command(&mut self, command: SqlStr) -> Result<(), Error> {
        let (server, replaced) = (self.server.clone(), self.replaced.clone());
        let connection: &mut PgConnection = self;
        let done = connection.execute(command);
        server.run_until_replaced(&replaced, done).await.map(drop)
    }

    /// The first row of a statement, by the simple protocol.
    pub(super) async fn fetch_row(&mut self, statement: &'static str) -> Result<PgRow, Error> {
        let (server, replaced) = (self.server.clone(), self.replaced.clone());
        let connection: &mut PgConnection = self;
        let row = connection.fetch_one(statement);
        server.run_until_replaced(&replaced, row).await
    }
}

impl fmt::Debug for PooledSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledSession").finish_non_exhaustive()
    }
}

impl Deref for PooledSession {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("not dropped")
    }
}

impl DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("not dropped")
    }
}

impl Drop for PooledSession {
    fn drop(&mut self) {
        let (Ok(runtime), false) = (Handle::try_current(), self.replaced.is_cancelled()) else {
            return self.discard();
        };
        let Some(connection) = self.connection.take() else {
            return;
        };
        let returning = return_connection(
            connection,
            self.server.clone(),
            self.replaced.clone(),
            self.is_in_transaction,
        );
        runtime.spawn(returning);
    }
}

/// Gives a connection back to the pool, whose hook looks at it first.
async fn return_connection(
    connection: PoolConnection<Postgres>,
    server: ServerWatch,
    replaced: CancellationToken,
    is_in_transaction: bool,
) {
    // Its own guard: a wait that is given up must not end in sqlx's way back.
    let mut session = PooledSession {
        connection: Some(connection),
        server: server.clone(),
        replaced: replaced.clone(),
        is_in_transaction: false,
    };
    if is_in_transaction {
        let rolled_back = session.run_command("rollback".into_sql_str()).await;
        if rolled_back.is_err() {
            return session.discard();
        }
    }
    let Some(mut connection) = session.connection.take() else {
        return;
    };
    let returned = connection.return_to_pool();
    let returning = async {
        returned.await;
        Ok(())
    };
    let _ = server.run_until_replaced(&replaced, returning).await;
}

/// A transaction: `query.execute(&mut *transaction)`. Rolled back when it is dropped.
#[derive(Debug)]
pub struct DbTransaction(DbSession);

impl DbTransaction {
    /// Commits the transaction and gives the connection back.
    pub async fn commit(mut self) -> Result<(), Error> {
        let session = &mut self.0.inner;
        session.run_command("commit".into_sql_str()).await?;
        session.is_in_transaction = false;
        Ok(())
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
    inner: PooledSession,
    is_transaction_pooled: bool,
}

impl DbSession {
    /// sqlx's own connection, which names its statements: for statements that are explicitly unnamed.
    pub(super) fn sqlx_connection(&mut self) -> &mut PgConnection {
        &mut self.inner
    }

    async fn run_statement(
        &mut self,
        statement: RepeatableStatement,
        wanted: WantedRows,
    ) -> Result<Vec<QueryItem>, Error> {
        match wanted {
            WantedRows::All => self.fetch_many(statement).try_collect().await,
            WantedRows::One => {
                let row = self.fetch_optional(statement).await?;
                Ok(row.map(Either::Right).into_iter().collect())
            }
        }
    }
}

impl<'c> Executor<'c> for &'c mut DbSession {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<QueryItem, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (server, replaced) = (self.inner.server.clone(), self.inner.replaced.clone());
        let connection: &'c mut PgConnection = &mut self.inner;
        let items = if self.is_transaction_pooled {
            connection.fetch_many(UnnamedStatement(query))
        } else {
            connection.fetch_many(query)
        };
        let items = stream::unfold(Some(items), move |items| {
            let (server, replaced) = (server.clone(), replaced.clone());
            async move {
                let mut items = items?;
                let next = server.run_until_replaced(&replaced, items.try_next()).await;
                let is_over = next.is_err();
                Some((next.transpose()?, (!is_over).then_some(items)))
            }
        });
        items.boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (server, replaced) = (self.inner.server.clone(), self.inner.replaced.clone());
        let connection: &'c mut PgConnection = &mut self.inner;
        let row = if self.is_transaction_pooled {
            connection.fetch_optional(UnnamedStatement(query))
        } else {
            connection.fetch_optional(query)
        };
        Box::pin(async move { server.run_until_replaced(&replaced, row).await })
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

/// A statement with its arguments, which can be run several times.
#[derive(Clone)]
struct RepeatableStatement {
    sql: SqlStr,
    prepared: Option<PgStatement>,
    arguments: Option<PgArguments>,
    is_persistent: bool,
}

impl RepeatableStatement {
    fn new<'q>(mut query: impl Execute<'q, Postgres>) -> Result<Self, Error> {
        Ok(Self {
            arguments: query.take_arguments().map_err(Error::Encode)?,
            prepared: query.statement().cloned(),
            is_persistent: query.persistent(),
            sql: query.sql(),
        })
    }
}

impl Execute<'_, Postgres> for RepeatableStatement {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.prepared.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.is_persistent
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
