//! [`EmbeddedPostgres`]: creates, starts, supervises and stops a private Postgres.

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

/// The database's only role, which owns everything in it.
const ROLE: &str = "attesto";
/// The database. `initdb` creates it in every cluster.
const DATABASE: &str = "postgres";
/// How long Postgres may take until it accepts connections, including recovery after a crash.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a start is retried while processes of a killed Postgres still use the data.
const STALE_PROCESS_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a command waits for another command to stop using Postgres.
const COMMAND_WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// The delays between attempts to restart a Postgres that exited unexpectedly.
const MIN_RESTART_DELAY: Duration = Duration::from_millis(200);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);
/// The interval at which locks and the socket are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The settings of a private Postgres. Each has a default that depends on the machine.
#[derive(Clone, Debug, Default)]
pub struct EmbeddedOptions {
    /// `ATTESTO_DATA_DIR`: the data folder. Default: `/var/lib/attesto` for root, else `attesto` in the user's state
    /// folder.
    pub data_dir: Option<PathBuf>,
    /// `ATTESTO_PG_BIN`: the folder of the programs `postgres` and `initdb`.
    pub pg_bin: Option<PathBuf>,
    /// `ATTESTO_PG_USER`: the user that runs Postgres if this process runs as root. Default: `attesto`, then
    /// `postgres`.
    pub user: Option<String>,
    /// `PATH`: searched for the programs before the folders of distributions.
    pub search_path: Option<OsString>,
    /// `XDG_STATE_HOME`: the user's state folder. Default: `.local/state` in `home`.
    pub state_home: Option<PathBuf>,
    /// `HOME`: the user's home folder.
    pub home: Option<PathBuf>,
}

impl EmbeddedOptions {
    /// Reads the options from environment variables. An empty variable counts as unset.
    pub fn from_env(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let given = |name| variable(name).filter(|value| !value.is_empty());
        let path = |name| given(name).map(PathBuf::from);
        Self {
            data_dir: path("ATTESTO_DATA_DIR"),
            pg_bin: path("ATTESTO_PG_BIN"),
            user: given("ATTESTO_PG_USER").map(|name| name.to_string_lossy().into_owned()),
            search_path: given("PATH"),
            // The XDG Base Directory Specification says that relative paths are to be ignored.
            state_home: path("XDG_STATE_HOME").filter(|path| path.is_absolute()),
            home: path("HOME"),
        }
    }

    /// The path of the data folder. Creates nothing.
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

/// A private Postgres that accepts connections, and that is restarted if it exits unexpectedly. Call
/// [`EmbeddedPostgres::stop`] when it is no longer needed. A value that is only dropped signals Postgres to stop and
/// does not wait for its exit.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    folder: Arc<DataFolder>,
    ownership: EmbeddedOwnership,
}

/// Whether this process stops Postgres.
#[derive(Debug)]
enum EmbeddedOwnership {
    /// This process started or adopted Postgres and stops it.
    Owner {
        supervisor: Option<JoinHandle<()>>,
        stop: CancellationToken,
        kind: OwnerKind,
        _lock: FileLock,
    },
    /// Another process owns Postgres and stops it.
    Shared { _lock: FileLock },
}

impl EmbeddedPostgres {
    /// Starts Postgres for a service, which owns it until the service stops. Creates the cluster if there is none, and
    /// adopts a Postgres that a killed process of Attesto left running. Fails if another service owns the data folder.
    /// If a command owns it, waits until the command has finished.
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

    /// Uses Postgres for one command. If another process owns Postgres, shares it; otherwise starts it until
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
            // The lock must be taken before the check: while it is held, a command that owns Postgres does not stop it.
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
        owner_kind: OwnerKind,
        options: &EmbeddedOptions,
    ) -> Result<Self, EmbeddedError> {
        let started_at = Instant::now();
        let binaries =
            PostgresBinaries::find_all(options.pg_bin.as_deref(), options.search_path.as_deref())?;
        let is_new = !folder.has_cluster();
        let binaries = if is_new {
            let best = &binaries[0];
            tracing::info!(
                folder = %folder.cluster_path().display(),
                version = best.major_version(),
                "embedded_postgres_creating"
            );
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
            after = ?started_at.elapsed(),
            "embedded_postgres_ready"
        );
        let (folder, stop) = (Arc::new(folder), CancellationToken::new());
        let supervisor = supervise_postmaster(
            Arc::clone(&folder),
            binaries.clone(),
            postmaster,
            stop.clone(),
        );
        let ownership = EmbeddedOwnership::Owner {
            supervisor: Some(tokio::spawn(supervisor)),
            stop,
            kind: owner_kind,
            _lock: lock,
        };
        Ok(Self { folder, ownership })
    }

    /// The settings to connect with.
    pub fn connect_settings(&self) -> ConnectSettings {
        ConnectSettings::with_options(connect_options(&self.folder))
    }

    /// The same as a `postgres://` URL for `psql` and other programs. It contains no secret: access is limited by the
    /// permissions of the socket's folder.
    pub fn connection_url(&self) -> String {
        format!(
            "postgres:///{DATABASE}?host={}&user={ROLE}&sslmode=disable",
            percent_encode_path(self.folder.socket_folder())
        )
    }

    /// Whether this process stops Postgres.
    pub fn is_owner(&self) -> bool {
        matches!(self.ownership, EmbeddedOwnership::Owner { .. })
    }

    /// Stops Postgres if this process owns it, and returns when Postgres has exited. A command first waits for the
    /// commands that share it. A service does not wait for them.
    pub async fn stop(mut self) {
        let EmbeddedOwnership::Owner {
            supervisor,
            stop,
            kind,
            ..
        } = &mut self.ownership
        else {
            return;
        };
        let mut exclusive_lock = None;
        if *kind == OwnerKind::Command {
            let until = Instant::now() + COMMAND_WAIT_TIMEOUT;
            while exclusive_lock.is_none() && Instant::now() < until {
                exclusive_lock = self.folder.try_lock_exclusive().ok().flatten();
                if exclusive_lock.is_none() {
                    sleep(POLL_INTERVAL).await;
                }
            }
        }
        stop.cancel();
        if let Some(supervisor) = supervisor.take() {
            // The task does not panic and is not aborted.
            let _ = supervisor.await;
        }
    }
}

impl Drop for EmbeddedPostgres {
    /// Has no effect after [`EmbeddedPostgres::stop`].
    fn drop(&mut self) {
        if let EmbeddedOwnership::Owner { stop, .. } = &self.ownership {
            stop.cancel();
        }
    }
}

/// Restarts Postgres each time it exits unexpectedly, until `stop` is cancelled; then stops it.
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
        tracing::error!(
            log = %folder.log_path().display(),
            hint = "it is started again; its log says why it ended",
            "embedded_postgres_exited"
        );
        let mut backoff = Backoff::new(MIN_RESTART_DELAY, MAX_RESTART_DELAY);
        postmaster = loop {
            match start_postmaster(&folder, &binaries).await {
                Ok(postmaster) => break postmaster,
                Err(problem) => {
                    tracing::error!(error = %problem, "embedded_postgres_start_failed");
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

/// The installation whose major version is that of the data.
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

/// Runs `initdb` in a staging folder and renames the result when it is complete. If the first run is interrupted, no
/// incomplete cluster is left under the final name.
async fn create_cluster(
    folder: &DataFolder,
    binaries: &PostgresBinaries,
) -> Result<(), EmbeddedError> {
    let staging = folder.create_staging_cluster()?;
    let program = binaries.program_path("initdb");
    let initdb_output = postmaster::build_command(folder, &program)
        .arg("-D")
        .arg(&staging)
        .args(["-U", ROLE, "-E", "UTF8", "--locale=C"])
        .args(["--auth-local=trust", "--auth-host=reject"])
        .args(["--data-checksums", "--no-instructions"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await;
    let initdb_output = initdb_output.map_err(|cause| {
        folder
            .find_inaccessible_folder(&program)
            .unwrap_or_else(|| EmbeddedError::CannotRun {
                program: program.clone(),
                account: folder.account().map(|account| account.name.clone()),
                cause,
            })
    })?;
    if initdb_output.status.success() {
        return folder.promote_staging_cluster(&staging);
    }
    let output = [initdb_output.stdout, initdb_output.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    if output.contains("could not look up effective user ID") {
        let uid = rustix::process::geteuid().as_raw();
        return Err(EmbeddedError::UnnamedUser { uid });
    }
    if output.contains("ermission denied")
        && let Some(obstacle) = folder.find_inaccessible_folder(&staging)
    {
        return Err(obstacle);
    }
    Err(EmbeddedError::InitdbFailed {
        folder: staging,
        status: initdb_output.status,
        output: last_lines(&output),
    })
}

/// Returns a Postgres that accepts connections: an orphaned one that runs on this data, or a new one.
async fn start_postmaster(
    folder: &DataFolder,
    binaries: &PostgresBinaries,
) -> Result<Postmaster, EmbeddedError> {
    let started_at = Instant::now();
    let (log, _) = folder.open_log()?;
    loop {
        if let Some(orphan) = OrphanedPostmaster::find_running(folder) {
            let mut orphan = Postmaster::Orphaned(orphan);
            if wait_until_ready(folder, &mut orphan).await {
                return Ok(orphan);
            }
            // The orphan was shutting down or does not respond: stop it and start a new one.
            orphan.stop().await;
        }
        let length_before = log.metadata().map_or(0, |data| data.len());
        let mut postmaster = Postmaster::spawn(folder, binaries, &log)?;
        if wait_until_ready(folder, &mut postmaster).await {
            return Ok(postmaster);
        }
        let output = folder.log_since(length_before);
        let Some(status) = postmaster.exit_status() else {
            postmaster.stop().await;
            return Err(EmbeddedError::StartTimeout {
                socket: folder.socket_path(),
                seconds: START_TIMEOUT.as_secs(),
                log: folder.log_path(),
                tail: last_lines(&output),
            });
        };
        // After Postgres was killed with SIGKILL, its child processes use the data for a moment longer.
        let is_data_in_use = ["lock file \"", "pre-existing shared memory block"]
            .iter()
            .any(|message| output.contains(message));
        if !is_data_in_use || started_at.elapsed() > STALE_PROCESS_TIMEOUT {
            return Err(EmbeddedError::ExitedAtStart {
                status,
                log: folder.log_path(),
                tail: last_lines(&output),
            });
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until Postgres accepts connections. False if it exited or [`START_TIMEOUT`] has passed.
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
            // Postgres answered. A failed disconnect does not change that.
            let _ = connection.close().await;
            true
        }
        _ => false,
    }
}

fn connect_options(folder: &DataFolder) -> PgConnectOptions {
    // Sets every value that sqlx would otherwise read from the environment or from `~/.pgpass`.
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

/// Encodes a path as the value of a URL parameter, as both libpq and sqlx read it.
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
