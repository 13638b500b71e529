//! [`ServerWatch`]: which of the servers in `DATABASE_URL` the connections lead to, and when all of them must be given up.
//!
//! After a failover the connections of a pool lead to a server that may no longer write, or that will never answer again: its
//! machine is gone, and no packet says so. sqlx knows neither several hosts nor limits for its work on such connections. So:
//!
//! - A server is recognised by the time at which it was started. Every new connection asks for it. When it is another one, all
//!   that is under way on older connections ends at once with an error, and they are dropped.
//! - Whatever looks like a failover (an error of a connection, no answer for a second, a session that may not write) makes
//!   [`ServerWatch::suspect`] look for the server once more, over a connection of its own.
//! - Nothing is given up while the same server is there: a commit that waits for a synchronous standby would go on waiting there
//!   without us, and each new connection would wait beside it, until the server has none left.

use std::io;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgRow};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::connect_settings::{ServerList, TargetSession};
use super::tls_failure::{FetchedChains, explain_connect_failure};
use super::{DatabaseConnectError, Error, is_unavailable};

/// What a server says of itself. The simple protocol, because every pooler understands it.
pub(super) const SERVER_STATUS_SQL: &str = "select pg_postmaster_start_time()::text, pg_is_in_recovery(), \
    current_setting('transaction_read_only')::bool;";
/// A statement that takes longer may never be answered.
const SLOW_THRESHOLD: Duration = Duration::from_secs(1);
/// The shortest time between two looks for the server.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a server may take to say what it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a later server of the list waits for the answers of those before it.
const PRECEDENCE_DELAY: Duration = Duration::from_millis(500);

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerStatus {
    /// When it was started, which tells servers apart.
    started_at: String,
    is_standby: bool,
    /// Whether this session may not write: on a standby, or where an operator says so.
    pub(super) is_read_only: bool,
}

impl ServerStatus {
    pub(super) fn from_row(row: &PgRow) -> Result<Self, Error> {
        let is_standby = row.try_get(1)?;
        Ok(Self {
            started_at: row.try_get(0)?,
            is_standby,
            is_read_only: is_standby || row.try_get(2)?,
        })
    }

    fn suits(&self, target: TargetSession) -> bool {
        match target {
            TargetSession::Any => true,
            TargetSession::ReadWrite => !self.is_read_only,
            TargetSession::Primary => !self.is_standby,
        }
    }
}

/// Why no server was found.
enum FindServerError {
    /// None of them answers; with the words of one, and its place in the list.
    Unreachable(usize, Error),
    /// Some answer, and none of these may be used.
    NoneSuits,
}

/// The servers of one URL, and the one in use. Clones share the state.
#[derive(Clone)]
pub(super) struct ServerWatch {
    state: Arc<WatchState>,
}

/// The same for hooks of a pool, which the state holds.
#[derive(Clone)]
pub(super) struct WeakServerWatch(Weak<WatchState>);

struct WatchState {
    list: ServerList,
    current: Mutex<CurrentServer>,
    /// With the name of its sessions.
    pools: Mutex<Vec<(PgPool, String)>>,
    is_checking: AtomicBool,
    /// Held during the first choice between several servers.
    choosing: tokio::sync::Mutex<()>,
    /// What the last session said that was asked.
    is_read_only: AtomicBool,
    fetched_chains: FetchedChains,
}

struct CurrentServer {
    /// Its place in the list.
    index: usize,
    /// `None` until a connection is open.
    started_at: Option<String>,
    /// Connections that were opened before lead to another one.
    since: Instant,
    /// Cancelled when this is no longer the current server.
    replaced: CancellationToken,
    /// Cancelled while the servers answer and none of them may be used: then waiting for a connection is in vain.
    unsuitable: CancellationToken,
    /// Whether it was chosen: always when there is only one.
    is_chosen: bool,
    last_check: Option<Instant>,
}

impl ServerWatch {
    pub(super) fn new(list: ServerList) -> Self {
        let is_chosen = list.servers.len() == 1;
        Self {
            state: Arc::new(WatchState {
                list,
                current: Mutex::new(CurrentServer {
                    index: 0,
                    started_at: None,
                    since: Instant::now(),
                    replaced: CancellationToken::new(),
                    unsuitable: CancellationToken::new(),
                    is_chosen,
                    last_check: None,
                }),
                pools: Mutex::default(),
                is_checking: AtomicBool::new(false),
                choosing: tokio::sync::Mutex::default(),
                is_read_only: AtomicBool::new(false),
                fetched_chains: FetchedChains::default(),
            }),
        }
    }

    pub(super) fn downgrade(&self) -> WeakServerWatch {
        WeakServerWatch(Arc::downgrade(&self.state))
    }

    /// All servers of the URL, and which of them may be used.
    pub(super) fn list(&self) -> &ServerList {
        &self.state.list
    }

    /// The address of the current server.
    pub(super) fn current_options(&self) -> PgConnectOptions {
        self.state.list.servers[self.state.current.lock().index].clone()
    }

    /// An error of a connection to the current server, with what is wrong about TLS, if it is that.
    pub(super) async fn explain_failure(&self, error: Error) -> Error {
        self.explain_failure_of(error, &self.current_options())
            .await
    }

    async fn explain_failure_of(&self, error: Error, server: &PgConnectOptions) -> Error {
        let state = &self.state;
        explain_connect_failure(error, server, &state.list, &state.fetched_chains).await
    }

    /// Leads the connections of `pool` to the current server from now on.
    pub(super) fn add_pool(&self, pool: &PgPool, application: &str) {
        let mut pools = self.state.pools.lock();
        pools.push((pool.clone(), application.to_owned()));
    }

    /// Cancelled when the server that is current now is replaced.
    pub(super) fn replaced(&self) -> CancellationToken {
        self.state.current.lock().replaced.clone()
    }

    /// Waits for a connection, as long as one of the servers may be used or does not answer.
    pub(super) async fn run_while_suitable<T>(
        &self,
        connecting: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let unsuitable = self.state.current.lock().unsuitable.clone();
        if let Some(connected) = unsuitable.run_until_cancelled(connecting).await {
            return connected;
        }
        self.suspect();
        Err(unusable_server_error())
    }

    /// Whether the last session that was asked may not write.
    pub(super) fn is_read_only(&self) -> bool {
        self.state.is_read_only.load(Ordering::Relaxed)
    }

    /// Notes what a session of the current server said.
    pub(super) fn set_read_only(&self, is_read_only: bool) {
        self.state
            .is_read_only
            .store(is_read_only, Ordering::Relaxed);
        if is_read_only {
            self.suspect();
        }
    }

    /// Chooses a server before the first connection, where there are several.
    pub(super) async fn choose_first(&self) -> Result<(), Error> {
        if self.state.current.lock().is_chosen {
            return Ok(());
        }
        let _choosing = self.state.choosing.lock().await;
        if self.state.current.lock().is_chosen {
            return Ok(());
        }
        match self.find_server().await {
            Ok((index, status)) => {
                self.adopt(index, &status);
                Ok(())
            }
            Err(FindServerError::Unreachable(index, error)) => {
                let server = &self.state.list.servers[index];
                Err(self.explain_failure_of(error, server).await)
            }
            Err(FindServerError::NoneSuits) => Err(unusable_server_error()),
        }
    }

    /// Looks for the current server in a task of its own, unless that was just done.
    pub(super) fn suspect(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.state.is_checking.swap(true, Ordering::AcqRel) {
            return;
        }
        let watch = self.clone();
        runtime.spawn(async move {
            let last = watch.state.current.lock().last_check;
            if let Some(rest) = last.and_then(|last| MIN_CHECK_INTERVAL.checked_sub(last.elapsed()))
            {
                sleep(rest).await;
            }
            match watch.find_server().await {
                Ok((index, status)) => watch.adopt(index, &status),
                Err(FindServerError::NoneSuits) => {
                    watch.state.current.lock().unsuitable.cancel();
                }
                Err(FindServerError::Unreachable(..)) => {}
            }
            watch.state.current.lock().last_check = Some(Instant::now());
            watch.state.is_checking.store(false, Ordering::Release);
        });
    }

    /// Asks all servers at once, and returns the first in the order of the list that may be used.
    async fn find_server(&self) -> Result<(usize, ServerStatus), FindServerError> {
        let list = &self.state.list;
        let ask = async |(index, options)| (index, ask_server(options).await);
        let mut asked: FuturesUnordered<_> = list.servers.iter().enumerate().map(ask).collect();
        let mut is_open = vec![true; list.servers.len()];
        let mut best: Option<(usize, ServerStatus)> = None;
        let (mut failure, mut is_one_there) = (None, false);
        let mut delay = std::pin::pin!(sleep(PRECEDENCE_DELAY));
        let mut is_delay_over = false;
        loop {
            if let Some((index, _)) = &best
                && (is_delay_over || !is_open[..*index].contains(&true))
            {
                break;
            }
            tokio::select! {
                answer = asked.next() => match answer {
                    None => break,
                    Some((index, Ok(status))) => {
                        (is_open[index], is_one_there) = (false, true);
                        let is_better = best.as_ref().is_none_or(|(best, _)| index < *best);
                        if is_better && status.suits(list.target) {
                            best = Some((index, status));
                        }
                    }
                    Some((index, Err(error))) => {
                        is_open[index] = false;
                        failure = Some((index, error));
                    }
                },
                () = &mut delay, if !is_delay_over => is_delay_over = true,
            }
        }
        match (best, failure) {
            (Some(best), _) => Ok(best),
            (None, Some((index, error))) if !is_one_there => {
                Err(FindServerError::Unreachable(index, error))
            }
            (None, _) => Err(FindServerError::NoneSuits),
        }
    }

    /// Makes a server the current one. If it is another one than before, or was started anew, older connections are given up.
    fn adopt(&self, index: usize, status: &ServerStatus) {
        let state = &self.state;
        {
            let mut current = state.current.lock();
            let is_same = current.started_at.as_ref() == Some(&status.started_at);
            current.is_chosen = true;
            if current.unsuitable.is_cancelled() {
                current.unsuitable = CancellationToken::new();
            }
            if !is_same || current.index != index {
                let is_first = current.started_at.is_none();
                current.index = index;
                current.started_at = Some(status.started_at.clone());
                if !is_first {
                    current.since = Instant::now();
                    std::mem::take(&mut current.replaced).cancel();
                    tracing::warn!(
                        position = index + 1,
                        hint = "connections to the server before are closed; what was under way on them is tried again by those who asked",
                        "database_server_changed"
                    );
                }
            }
        }
        let options = &state.list.servers[index];
        for (pool, application) in state.pools.lock().iter() {
            pool.set_connect_options(options.clone().application_name(application));
        }
        state
            .is_read_only
            .store(status.is_read_only, Ordering::Relaxed);
    }

    /// Whether a new connection may be used, by what its server says.
    fn admit(&self, status: &ServerStatus) -> Result<(), Error> {
        let list = &self.state.list;
        if !status.suits(list.target) {
            self.suspect();
            return Err(unusable_server_error());
        }
        let known = self.state.current.lock().started_at.clone();
        let is_known = known.is_none_or(|known| known == status.started_at);
        if is_known || list.servers.len() == 1 {
            let index = self.state.current.lock().index;
            self.adopt(index, status);
            return Ok(());
        }
        // It may be the server that was just left.
        self.suspect();
        Err(Error::Io(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the connection leads to another server than the one in use",
        )))
    }

    fn is_outdated(&self, age: Duration) -> bool {
        age > self.state.current.lock().since.elapsed()
    }

    /// Waits for work on a connection, until the server is replaced.
    pub(super) async fn run_until_replaced<T>(
        &self,
        replaced: &CancellationToken,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    if done.as_ref().is_err_and(is_unavailable) {
                        self.suspect();
                    }
                    return done;
                }
                () = replaced.cancelled() => return Err(replaced_server_error()),
                () = sleep(SLOW_THRESHOLD) => self.suspect(),
            }
        }
    }
}

impl WeakServerWatch {
    /// For `after_connect`: prepares the session with `settings` and asks what the server is.
    pub(super) async fn prepare_session(
        &self,
        connection: &mut PgConnection,
        settings: &str,
    ) -> Result<(), Error> {
        let statements = sqlx::AssertSqlSafe(format!("{settings}{SERVER_STATUS_SQL}"));
        let row = connection.fetch_one(statements).await?;
        let status = ServerStatus::from_row(&row)?;
        match self.0.upgrade() {
            Some(state) => ServerWatch { state }.admit(&status),
            None => Ok(()),
        }
    }

    /// For `before_acquire`: whether a connection of this age leads to the current server.
    pub(super) fn is_outdated(&self, age: Duration) -> bool {
        let state = self.0.upgrade();
        state.is_some_and(|state| ServerWatch { state }.is_outdated(age))
    }

    /// Notes what a session of the current server said.
    pub(super) fn set_read_only(&self, is_read_only: bool) {
        if let Some(state) = self.0.upgrade() {
            ServerWatch { state }.set_read_only(is_read_only);
        }
    }
}

async fn ask_server(options: &PgConnectOptions) -> Result<ServerStatus, Error> {
    let asking = async {
        let options = options.clone().application_name("attesto-probe");
        let mut connection = options.connect().await?;
        let row = connection.fetch_one(SERVER_STATUS_SQL).await?;
        let _ = connection.close().await;
        ServerStatus::from_row(&row)
    };
    match timeout(STATUS_TIMEOUT, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::Io(io::ErrorKind::TimedOut.into())),
    }
}

fn unusable_server_error() -> Error {
    DatabaseConnectError::NoSuitableServer.into()
}

/// What was under way on a connection when another server took over.
pub(super) fn replaced_server_error() -> Error {
    Error::Io(io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection led to a database server that was replaced",
    ))
}
