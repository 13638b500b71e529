//! The server process itself: found, started, waited for, stopped.

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

/// How long a fast shutdown may take before it becomes an immediate one.
const FAST_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an immediate shutdown may take. It writes nothing, so this is plenty.
const IMMEDIATE_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a process that is not our child is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The settings of a private Postgres. Given as arguments rather than in its file, so that data of an older release of
/// ours follows a newer one.
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

/// A running Postgres. Dropped, it is told to stop and not waited for, whatever was cancelled or went wrong.
#[derive(Debug)]
pub(super) enum Postmaster {
    /// Our child.
    Child(Child),
    /// Left behind by an earlier process of ours that was killed.
    Orphaned(OrphanedPostmaster),
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if let Some(pid) = self.process_id() {
            let _ = kill_process(pid, Signal::INT);
        }
    }
}

/// A Postgres on our data that is not our child.
#[derive(Debug)]
pub(super) struct OrphanedPostmaster {
    pid: Pid,
    cluster_path: Box<Path>,
}

impl OrphanedPostmaster {
    /// The Postgres that runs on the folder's data, if any does. When none does, a note that would keep the next one
    /// from starting is corrected.
    pub(super) fn find_running(folder: &DataFolder) -> Option<Self> {
        let data = folder.cluster_path();
        let path = data.join("postmaster.pid");
        let note = std::fs::read_to_string(&path).ok()?;
        let (first, rest) = note.split_once('\n').unwrap_or((&note, ""));
        let pid = Pid::from_raw(first.trim().parse().ok()?)?;
        let orphan = Self {
            pid,
            cluster_path: data.into(),
        };
        if orphan.is_alive() {
            return Some(orphan);
        }
        // Where no process reaps orphans (this is the first process of a container), a dead one keeps its process id, and
        // Postgres would take it for a living rival. When it is no child of ours, this does nothing.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        // After a power cut the process id may mean another program of the same user, which Postgres cannot tell from
        // a rival either. It never takes its parent for one, so that is what the note gets to say. The rest of it
        // stays: by that, Postgres still finds processes of the old one that hold on to the data.
        let other = read_command_line(pid).unwrap_or_default();
        let is_postgres = |program: &str| {
            let name = program.as_bytes();
            other.windows(name.len()).any(|window| window == name)
        };
        if !other.is_empty() && !is_postgres("postgres") && !is_postgres("postmaster") {
            tracing::warn!(%pid, "the note of Postgres' process id is from before a crash: corrected");
            if let Err(error) = std::fs::write(&path, format!("{}\n{rest}", std::process::id())) {
                tracing::warn!(%error, "cannot correct the note");
            }
        }
        None
    }

    /// Whether the process id still means that Postgres. Process ids are given again to others.
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
            // No /proc: macOS and the BSDs.
            None => {
                let asked = std::process::Command::new("ps")
                    .args(["-ww", "-o", "args=", "-p", &self.pid.to_string()])
                    .stdin(Stdio::null())
                    .output();
                asked.is_ok_and(|asked| {
                    let mut windows = asked.stdout.windows(data.len());
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
    /// Starts Postgres on the folder's data. That it serves is another matter: see [`Postmaster::exit_status`].
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
        // A list of folders, in which commas part and double quotes hold together.
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
        // A process group of its own: Ctrl-C in a terminal reaches every process of its group, and Postgres would end
        // under the requests that we are still answering.
        command.process_group(0);
        Ok(Self::Child(command.spawn().map_err(cannot_run)?))
    }

    /// Its process id, while there is one.
    fn process_id(&self) -> Option<Pid> {
        match self {
            Self::Child(child) => child
                .id()
                .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)),
            Self::Orphaned(orphan) => orphan.is_alive().then_some(orphan.pid),
        }
    }

    /// How it ended, when it has. Of a process that is not our child only that it has.
    pub(super) fn exit_status(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Child(child) => child.try_wait().ok().flatten(),
            Self::Orphaned(orphan) => (!orphan.is_alive()).then(ExitStatus::default),
        }
    }

    /// Ends it: fast (clients are cut off, everything is written), and after 20 s at once (the next start recovers).
    /// Never the smart way, which waits for every client.
    pub(super) async fn stop(&mut self) {
        for (signal, patience) in [
            (Signal::INT, FAST_SHUTDOWN_TIMEOUT),
            (Signal::QUIT, IMMEDIATE_SHUTDOWN_TIMEOUT),
        ] {
            let Some(pid) = self.process_id() else { return };
            if let Err(error) = kill_process(pid, signal) {
                tracing::warn!(%error, "cannot tell Postgres to stop");
            }
            let begun = Instant::now();
            if timeout(patience, self.wait_for_exit()).await.is_ok() {
                tracing::debug!(after = ?begun.elapsed(), "Postgres has stopped");
                return;
            }
            tracing::warn!(after = ?patience, "Postgres has not stopped");
        }
    }

    /// Until it has ended, by our doing or another's.
    pub(super) async fn wait_for_exit(&mut self) {
        match self {
            Self::Child(child) => {
                // It fails only when there is no such child, which is as gone as can be.
                let _ = child.wait().await;
            }
            Self::Orphaned(orphan) => orphan.wait_for_exit().await,
        }
    }
}

/// The arguments of a process, each ended by a zero; empty for one that has ended and was not reaped.
fn read_command_line(pid: Pid) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{pid}/cmdline")).ok()
}

/// One of Postgres' programs, run as the user it must run as and with nothing of our environment, which may hold
/// settings of libpq and secrets of ours.
pub(super) fn build_command(folder: &DataFolder, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("LC_ALL", "C")
        // The current folder may be one that the other user cannot enter.
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some(account) = folder.account() {
        command.uid(account.uid).gid(account.gid);
    }
    command
}
