//! The server process of Postgres: finds, starts, waits for and stops it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::binaries::PostgresBinaries;
use super::data_folder::DataFolder;
use super::error::EmbeddedError;

/// How long a fast shutdown may take before an immediate shutdown follows.
const FAST_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an immediate shutdown may take. It writes nothing and takes far less.
const IMMEDIATE_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a process that is not a child of this process is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The settings of a private Postgres. They are passed as arguments and not stored in the cluster, so that a cluster
/// that an older release created runs with the settings of this release.
const POSTGRES_SETTINGS: [&str; 17] = [
    "listen_addresses=",
    "port=5432",
    "unix_socket_permissions=0700",
    "fsync=on",
    "full_page_writes=on",
    "synchronous_commit=on",
    "max_connections=50",
    "shared_buffers=128MB",
    "max_wal_size=512MB",
    "wal_level=minimal",
    "max_wal_senders=0",
    "jit=off",
    "huge_pages=off",
    "timezone=UTC",
    "log_timezone=UTC",
    "logging_collector=off",
    "log_min_messages=warning",
];

/// A running Postgres. Dropping it sends the signal for a fast shutdown and does not wait for the exit.
#[derive(Debug)]
pub(super) enum Postmaster {
    /// A child process of this process.
    Child(Child),
    /// A Postgres that a killed process of Attesto left running.
    Orphaned(OrphanedPostmaster),
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if let Some(pid) = self.process_id() {
            let _ = kill_process(pid, Signal::INT);
        }
    }
}

/// A running Postgres on this data that is not a child of this process.
#[derive(Debug)]
pub(super) struct OrphanedPostmaster {
    pid: Pid,
    cluster_path: Box<Path>,
}

impl OrphanedPostmaster {
    /// The Postgres that runs on the folder's data, if there is one. If there is none, corrects a stale
    /// `postmaster.pid` that would prevent the next start.
    pub(super) fn find_running(folder: &DataFolder) -> Option<Self> {
        let data = folder.cluster_path();
        let path = data.join("postmaster.pid");
        let content = std::fs::read_to_string(&path).ok()?;
        let (first, rest) = content.split_once('\n').unwrap_or((&content, ""));
        let pid = Pid::from_raw(first.trim().parse().ok()?)?;
        let orphan = Self {
            pid,
            cluster_path: data.into(),
        };
        if orphan.is_alive() {
            return Some(orphan);
        }
        // If this is the first process of a container, no other process reaps orphans: a dead Postgres stays as a
        // zombie with its process id, and the next one would take it for a running server. This has no effect if the
        // process is not a child of this one.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        // After a power failure, the process id may belong to another program of the same user, which Postgres would
        // also take for a running server. Postgres ignores the id of its own parent process, so that id is written in
        // its place. The other lines are kept: Postgres finds processes of the old server by the shared memory that
        // they name.
        let command_line = read_command_line(pid).unwrap_or_default();
        let is_postgres = |program: &str| {
            let name = program.as_bytes();
            command_line
                .windows(name.len())
                .any(|window| window == name)
        };
        if !command_line.is_empty() && !is_postgres("postgres") && !is_postgres("postmaster") {
            tracing::warn!(
                %pid,
                hint = "its process id was from before a crash, and is another program's now",
                "embedded_postgres_pid_file_corrected"
            );
            if let Err(error) = std::fs::write(&path, format!("{}\n{rest}", std::process::id())) {
                tracing::warn!(%error, "embedded_postgres_pid_file_not_corrected");
            }
        }
        None
    }

    /// Whether the process id still belongs to that Postgres. The system reuses process ids.
    fn is_alive(&self) -> bool {
        let data = self.cluster_path.as_os_str().as_bytes();
        match read_command_line(self.pid) {
            Some(line) => {
                let arguments: Vec<_> = line.split(|byte| *byte == 0).collect();
                arguments
                    .windows(2)
                    .any(|pair| pair[0] == b"-D" && pair[1] == data)
            }
            None if Path::new("/proc/self/cmdline").exists() => false,
            // There is no /proc on macOS and the BSDs.
            None => {
                let output = std::process::Command::new("ps")
                    .args(["-ww", "-o", "args=", "-p", &self.pid.to_string()])
                    .stdin(Stdio::null())
                    .output();
                output.is_ok_and(|output| {
                    let mut windows = output.stdout.windows(data.len());
                    windows.any(|window| window == data)
                })
            }
        }
    }

    async fn wait_for_exit(&self) {
        while self.is_alive() {
            sleep(POLL_INTERVAL).await;
        }
    }
}

impl Postmaster {
    /// Starts Postgres on the folder's data. Does not wait until it accepts connections; it may also exit: see
    /// [`Postmaster::exit_status`].
    pub(super) fn spawn(
        folder: &DataFolder,
        binaries: &PostgresBinaries,
        log: &std::fs::File,
    ) -> Result<Self, EmbeddedError> {
        let program = binaries.program_path("postgres");
        let cannot_run = |cause| match folder.find_inaccessible_folder(&program) {
            Some(obstacle) => obstacle,
            None => EmbeddedError::CannotRun {
                program: program.clone(),
                account: folder.account().map(|account| account.name.clone()),
                cause,
            },
        };
        let mut command = build_command(folder, &program);
        command.arg("-D").arg(folder.cluster_path());
        for setting in POSTGRES_SETTINGS {
            command.args(["-c", setting]);
        }
        // The setting is a list of folders, separated by commas. Double quotes protect commas in a folder's name.
        let run = folder.socket_folder().as_os_str().as_bytes();
        let mut sockets = b"unix_socket_directories=\"".to_vec();
        sockets.extend(
            run.iter()
                .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'"' { 2 } else { 1 })),
        );
        sockets.push(b'"');
        command.arg("-c").arg(OsStr::from_bytes(&sockets));

        let log = || log.try_clone().map(Stdio::from).map_err(cannot_run);
        command.stdout(log()?).stderr(log()?);
        // A process group of its own: Ctrl-C in a terminal signals every process of the foreground group, and Postgres
        // would stop while this process still answers requests.
        command.process_group(0);
        Ok(Self::Child(command.spawn().map_err(cannot_run)?))
    }

    /// The process id, while the process runs.
    fn process_id(&self) -> Option<Pid> {
        match self {
            Self::Child(child) => child
                .id()
                .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)),
            Self::Orphaned(orphan) => orphan.is_alive().then_some(orphan.pid),
        }
    }

    /// The exit status, if the process has exited. For an orphaned Postgres the status itself is not known and is the
    /// default.
    pub(super) fn exit_status(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Child(child) => child.try_wait().ok().flatten(),
            Self::Orphaned(orphan) => (!orphan.is_alive()).then(ExitStatus::default),
        }
    }

    /// Stops Postgres: a fast shutdown, which disconnects clients and writes everything to disk; after
    /// [`FAST_SHUTDOWN_TIMEOUT`] an immediate one, after which the next start runs a recovery. The smart shutdown is
    /// not used, because it waits for every client.
    pub(super) async fn stop(&mut self) {
        for (signal, max_wait) in [
            (Signal::INT, FAST_SHUTDOWN_TIMEOUT),
            (Signal::QUIT, IMMEDIATE_SHUTDOWN_TIMEOUT),
        ] {
            let Some(pid) = self.process_id() else { return };
            if let Err(error) = kill_process(pid, signal) {
                tracing::warn!(%error, "embedded_postgres_signal_failed");
            }
            let started_at = Instant::now();
            if timeout(max_wait, self.wait_for_exit()).await.is_ok() {
                tracing::debug!(after = ?started_at.elapsed(), "embedded_postgres_stopped");
                return;
            }
            tracing::warn!(after = ?max_wait, "embedded_postgres_not_stopped");
        }
    }

    /// Waits until the process has exited, for any reason.
    pub(super) async fn wait_for_exit(&mut self) {
        match self {
            Self::Child(child) => {
                // An error means that there is no such child process, so it has exited.
                let _ = child.wait().await;
            }
            Self::Orphaned(orphan) => orphan.wait_for_exit().await,
        }
    }
}

/// The arguments of a process, each followed by a zero byte. Empty for a zombie process.
fn read_command_line(pid: Pid) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{pid}/cmdline")).ok()
}

/// A command that runs a program of Postgres as the user that must run it. Its environment is empty, because ours may
/// contain settings of libpq and secrets.
pub(super) fn build_command(folder: &DataFolder, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("LC_ALL", "C")
        // The other user may not be allowed to enter the current folder.
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some(account) = folder.account() {
        command.uid(account.uid).gid(account.gid);
    }
    command
}
