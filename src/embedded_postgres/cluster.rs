//! [`EmbeddedPostgres`]: a private Postgres from nothing to its end.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::binaries::PostgresBinaries;
use super::data_folder::{DataFolder, FileLock, OwnerKind};
use super::error::EmbeddedError;
use super::postmaster::{self, OrphanedPostmaster, Postmaster};
use super::system_account::SystemAccount;
use crate::base::backoff::Backoff;
use crate::db::ConnectSettings;

/// The database's only role, and the owner of everything in it.
const ROLE: &str = "attesto";
/// The database, which every cluster has from the start.
const DATABASE: &str = "postgres";
/// How long Postgres may take until it answers; recovery after a crash counts.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the remains of a killed Postgres may stand in the way of the next.
const STALE_PROCESS_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one command waits for another to be done with Postgres.
const COMMAND_WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// The pauses between attempts to start a Postgres that ended by itself.
const MIN_RESTART_DELAY: Duration = Duration::from_millis(200);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);
/// How often to look again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Where a private Postgres is and what it runs with. The default of each is found on the machine.
#[derive(Clone, Debug, Default)]
pub struct EmbeddedOptions {
    /// `ATTESTO_DATA_DIR`: the data folder. Default: /var/lib/attesto for root, else `attesto` in the user's state
    /// folder.
    pub data_dir: Option<PathBuf>,
    /// `ATTESTO_PG_BIN`: the folder of the programs `postgres` and `initdb`.
    pub pg_bin: Option<PathBuf>,
    /// `ATTESTO_PG_USER`: who runs Postgres when we are root. Default: `attesto`, then `postgres`.
    pub user: Option<String>,
    /// `PATH`: where the programs are looked for first.
    pub search_path: Option<OsString>,
    /// `XDG_STATE_HOME`: the user's state folder. Default: .local/state in `home`.
    pub state_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
}

impl EmbeddedOptions {
    /// The options as the environment gives them; an empty variable counts as none.
    pub fn from_env(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let given = |name| variable(name).filter(|value| !value.is_empty());
        let path = |name| given(name).map(PathBuf::from);
        Self {
            data_dir: path("ATTESTO_DATA_DIR"),
            pg_bin: path("ATTESTO_PG_BIN"),
            user: given("ATTESTO_PG_USER").map(|name| name.to_string_lossy().into_owned()),
            search_path: given("PATH"),
            // The specification of these folders: one that is not absolute is to be ignored.
            state_home: path("XDG_STATE_HOME").filter(|path| path.is_absolute()),
            home: path("HOME"),
        }
    }

    /// The data folder these options mean. Nothing is created.
    pub fn data_folder(&self) -> Result<PathBuf, EmbeddedError> {
        if let Some(folder) = &self.data_dir {
            return Ok(folder.clone());
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/attesto"));
        }
        let state = match (&self.state_home, &self.home) {
            (Some(state), _) => state.clone(),
            (None, Some(home)) => home.join(".local/state"),
            (None, None) => return Err(EmbeddedError::NoDataDir),
        };
        Ok(state.join("attesto"))
    }
}

/// A private Postgres that answers, and that is started again should it end while we need it. Call
/// [`EmbeddedPostgres::stop`] at the end; a value that is only dropped tells Postgres to stop and does not see it happen.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    folder: Arc<DataFolder>,
    ownership: EmbeddedOwnership,
}

/// By what right we use it.
#[derive(Debug)]
enum EmbeddedOwnership {
    /// It is ours to stop.
    Owner {
        keeper: Option<JoinHandle<()>>,
        stop: CancellationToken,
        tenure: OwnerKind,
        _lock: FileLock,
    },
    /// Another process stops it.
    Shared { _lock: FileLock },
}

impl EmbeddedPostgres {
    /// Starts it, for a service that owns it until it stops. Makes the cluster when there is none, and adopts a
    /// Postgres that a killed process of ours left running. Refuses while another service owns it; waits for a
    /// command to be done.
    pub async fn start(options: EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let folder = open_folder(&options)?;
        let until = Instant::now() + COMMAND_WAIT_TIMEOUT + START_TIMEOUT;
        loop {
            let owner = match folder.try_lock_owner(OwnerKind::Service)? {
                Ok(lock) => {
                    return Self::start_as_owner(folder, lock, OwnerKind::Service, &options).await;
                }
                Err(owner) => owner,
            };
            if owner.kind == Some(OwnerKind::Service) || Instant::now() > until {
                return Err(EmbeddedError::InUse {
                    folder: folder.cluster_path(),
                    pid: owner.pid,
                });
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Joins it, for one command: as a guest of the process that runs it, or, when none does, by starting it until
    /// [`EmbeddedPostgres::stop`].
    pub async fn attach(options: EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let folder = open_folder(&options)?;
        let until = Instant::now() + COMMAND_WAIT_TIMEOUT + START_TIMEOUT;
        loop {
            let owner = match folder.try_lock_owner(OwnerKind::Command)? {
                Ok(lock) => {
                    return Self::start_as_owner(folder, lock, OwnerKind::Command, &options).await;
                }
                Err(owner) => owner,
            };
            // First the lock and then the question: while the lock is ours, a command that owns it will not stop it.
            if let Some(lock) = folder.try_lock_shared()?
                && is_accepting_connections(&folder).await
            {
                return Ok(Self {
                    folder: Arc::new(folder),
                    ownership: EmbeddedOwnership::Shared { _lock: lock },
                });
            }
            if Instant::now() > until {
                return Err(EmbeddedError::InUse {
                    folder: folder.cluster_path(),
                    pid: owner.pid,
                });
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn start_as_owner(
        folder: DataFolder,
        lock: FileLock,
        tenure: OwnerKind,
        options: &EmbeddedOptions,
    ) -> Result<Self, EmbeddedError> {
        let begun = Instant::now();
        let binaries =
            PostgresBinaries::find_all(options.pg_bin.as_deref(), options.search_path.as_deref())?;
        let is_new = !folder.has_cluster();
        let binaries = if is_new {
            let best = &binaries[0];
            tracing::info!(folder = %folder.cluster_path().display(), version = best.major_version(), "making a private Postgres");
            create_cluster(&folder, best).await?;
            best
        } else {
            find_matching_binaries(&folder, &binaries)?
        };
        let postmaster = start_postmaster(&folder, binaries).await?;
        let kind = match (&postmaster, is_new) {
            (Postmaster::Orphaned(_), _) => "adopted",
            (_, true) => "new",
            (_, false) => "started",
        };
        tracing::info!(
            kind,
            folder = %folder.cluster_path().display(),
            version = binaries.major_version(),
            after = ?begun.elapsed(),
            "the private Postgres answers"
        );
        let (folder, stop) = (Arc::new(folder), CancellationToken::new());
        let keeper = supervise_postmaster(
            Arc::clone(&folder),
            binaries.clone(),
            postmaster,
            stop.clone(),
        );
        let hold = EmbeddedOwnership::Owner {
            keeper: Some(tokio::spawn(keeper)),
            stop,
            tenure,
            _lock: lock,
        };
        Ok(Self {
            folder,
            ownership: hold,
        })
    }

    /// How to connect.
    pub fn connect_settings(&self) -> ConnectSettings {
        ConnectSettings::with_options(connect_options(&self.folder))
    }

    /// The same as a `postgres://` URL that other programs understand, `psql` among them. Nothing in it is secret: who
    /// may connect is who may enter the folder of the socket.
    pub fn connection_url(&self) -> String {
        format!(
            "postgres:///{DATABASE}?host={}&user={ROLE}&sslmode=disable",
            percent_encode_path(self.folder.socket_folder())
        )
    }

    /// Whether it is ours to stop, rather than another process'.
    pub fn is_owner(&self) -> bool {
        matches!(self.ownership, EmbeddedOwnership::Owner { .. })
    }

    /// Stops it when it is ours, and returns when it has stopped. A command first waits for the other commands that
    /// use it; a service is the last to need it.
    pub async fn stop(mut self) {
        let EmbeddedOwnership::Owner {
            keeper,
            stop,
            tenure,
            ..
        } = &mut self.ownership
        else {
            return;
        };
        let mut closed = None;
        if *tenure == OwnerKind::Command {
            let until = Instant::now() + COMMAND_WAIT_TIMEOUT;
            while closed.is_none() && Instant::now() < until {
                closed = self.folder.try_lock_exclusive().ok().flatten();
                if closed.is_none() {
                    sleep(POLL_INTERVAL).await;
                }
            }
        }
        stop.cancel();
        if let Some(keeper) = keeper.take() {
            // It does not panic, and is not aborted.
            let _ = keeper.await;
        }
    }
}

impl Drop for EmbeddedPostgres {
    /// Does nothing more after [`EmbeddedPostgres::stop`].
    fn drop(&mut self) {
        if let EmbeddedOwnership::Owner { stop, .. } = &self.ownership {
            stop.cancel();
        }
    }
}

/// Starts Postgres again whenever it ends by itself, until `stop`; then stops it.
async fn supervise_postmaster(
    folder: Arc<DataFolder>,
    binaries: PostgresBinaries,
    mut postmaster: Postmaster,
    stop: CancellationToken,
) {
    loop {
        let ended = stop.run_until_cancelled(postmaster.wait_for_exit()).await;
        if ended.is_none() {
            return postmaster.stop().await;
        }
        tracing::error!(log = %folder.log_path().display(), "the private Postgres ended by itself: starting it again");
        let mut backoff = Backoff::new(MIN_RESTART_DELAY, MAX_RESTART_DELAY);
        postmaster = loop {
            match start_postmaster(&folder, &binaries).await {
                Ok(postmaster) => break postmaster,
                Err(problem) => {
                    tracing::error!(error = %problem, "the private Postgres does not start");
                }
            }
            let delay = backoff.next_delay(fastrand::f64());
            if stop.run_until_cancelled(sleep(delay)).await.is_none() {
                return;
            }
        };
    }
}

fn open_folder(options: &EmbeddedOptions) -> Result<DataFolder, EmbeddedError> {
    let account = SystemAccount::choose_for_postgres(options.user.as_deref())?;
    DataFolder::prepare_folders(&options.data_folder()?, account)
}

/// The programs that can read the data.
fn find_matching_binaries<'a>(
    folder: &DataFolder,
    binaries: &'a [PostgresBinaries],
) -> Result<&'a PostgresBinaries, EmbeddedError> {
    let found = folder.cluster_major_version()?;
    let same = binaries.iter().find(|one| one.major_version() == found);
    same.ok_or_else(|| EmbeddedError::MajorVersionMismatch {
        data: folder.cluster_path(),
        found,
        installed: binaries
            .iter()
            .map(PostgresBinaries::major_version)
            .collect(),
    })
}

/// Runs `initdb` beside the place of the data, and moves the result there when it is whole: an interrupted first run
/// leaves nothing that looks like a cluster.
async fn create_cluster(
    folder: &DataFolder,
    binaries: &PostgresBinaries,
) -> Result<(), EmbeddedError> {
    let making = folder.create_staging_cluster()?;
    let program = binaries.program_path("initdb");
    let ran = postmaster::build_command(folder, &program)
        .arg("-D")
        .arg(&making)
        .args(["-U", ROLE, "-E", "UTF8", "--locale=C"])
        .args(["--auth-local=trust", "--auth-host=reject"])
        .args(["--data-checksums", "--no-instructions"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await;
    let ran = ran.map_err(|cause| {
        folder
            .find_inaccessible_folder(&program)
            .unwrap_or_else(|| EmbeddedError::CannotRun {
                program: program.clone(),
                account: folder.account().map(|account| account.name.clone()),
                cause,
            })
    })?;
    if ran.status.success() {
        return folder.promote_staging_cluster(&making);
    }
    let output = [ran.stdout, ran.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    if output.contains("could not look up effective user ID") {
        let uid = rustix::process::geteuid().as_raw();
        return Err(EmbeddedError::UnnamedUser { uid });
    }
    if output.contains("ermission denied")
        && let Some(obstacle) = folder.find_inaccessible_folder(&making)
    {
        return Err(obstacle);
    }
    Err(EmbeddedError::InitdbFailed {
        folder: making,
        status: ran.status,
        output: last_lines(&output),
    })
}

/// Postgres on the folder's data, answering: the one that runs already, or a new one.
async fn start_postmaster(
    folder: &DataFolder,
    binaries: &PostgresBinaries,
) -> Result<Postmaster, EmbeddedError> {
    let begun = Instant::now();
    let (log, _) = folder.open_log()?;
    loop {
        if let Some(orphan) = OrphanedPostmaster::find_running(folder) {
            let mut orphan = Postmaster::Orphaned(orphan);
            if wait_until_ready(folder, &mut orphan).await {
                return Ok(orphan);
            }
            // It was on its way out, or it is stuck: a fresh one will do better.
            orphan.stop().await;
        }
        let said_before = log.metadata().map_or(0, |data| data.len());
        let mut postmaster = Postmaster::spawn(folder, binaries, &log)?;
        if wait_until_ready(folder, &mut postmaster).await {
            return Ok(postmaster);
        }
        let said = folder.log_since(said_before);
        let Some(status) = postmaster.exit_status() else {
            postmaster.stop().await;
            return Err(EmbeddedError::StartTimeout {
                socket: folder.socket_path(),
                seconds: START_TIMEOUT.as_secs(),
                log: folder.log_path(),
                tail: last_lines(&said),
            });
        };
        // After a `kill -9` of Postgres, its last processes hold the data for a moment longer.
        let remains = ["lock file \"", "pre-existing shared memory block"]
            .iter()
            .any(|sign| said.contains(sign));
        if !remains || begun.elapsed() > STALE_PROCESS_TIMEOUT {
            return Err(EmbeddedError::ExitedAtStart {
                status,
                log: folder.log_path(),
                tail: last_lines(&said),
            });
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Whether it answers before it ends and before our patience does.
async fn wait_until_ready(folder: &DataFolder, postmaster: &mut Postmaster) -> bool {
    let until = Instant::now() + START_TIMEOUT;
    while Instant::now() < until {
        if is_accepting_connections(folder).await {
            return true;
        }
        if postmaster.exit_status().is_some() {
            return false;
        }
        sleep(POLL_INTERVAL).await;
    }
    false
}

async fn is_accepting_connections(folder: &DataFolder) -> bool {
    if !folder.socket_path().exists() {
        return false;
    }
    match timeout(START_TIMEOUT, connect_options(folder).connect()).await {
        Ok(Ok(connection)) => {
            // It answered; how the farewell goes says nothing about that.
            let _ = connection.close().await;
            true
        }
        _ => false,
    }
}

fn connect_options(folder: &DataFolder) -> PgConnectOptions {
    // Every value that sqlx would otherwise take from the environment or from ~/.pgpass.
    PgConnectOptions::new_without_pgpass()
        .socket(folder.socket_folder())
        .port(5432)
        .username(ROLE)
        .database(DATABASE)
        .password("")
        .ssl_mode(PgSslMode::Disable)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// For the value of a URL's parameter, as both libpq and sqlx read it.
fn percent_encode_path(path: &Path) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(*byte));
            }
            // Writing to a `String` cannot fail.
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_from_the_environment_and_empty_is_none() {
        let options = EmbeddedOptions::from_env(|name| {
            let value = match name {
                "ATTESTO_DATA_DIR" => "/srv/attesto",
                "ATTESTO_PG_BIN" => "",
                "XDG_STATE_HOME" => "relative",
                "HOME" => "/home/ada",
                _ => return None,
            };
            Some(value.into())
        });
        assert_eq!(options.data_folder().unwrap(), Path::new("/srv/attesto"));
        assert_eq!(options.pg_bin, None);
        assert_eq!(options.state_home, None);
        assert_eq!(options.user, None);
    }

    #[test]
    fn a_url_survives_odd_folders() {
        assert_eq!(
            percent_encode_path(Path::new("/a b/é&c")),
            "/a%20b/%C3%A9%26c"
        );
    }

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        assert_eq!(last_lines("1\n2\n3\n4\n5\n6\n\n"), "2\n3\n4\n5\n6");
        assert_eq!(last_lines(""), "");
    }
}
