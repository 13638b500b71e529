//! Where a private Postgres keeps everything, and whose it is for now.
//!
//! ```text
//! <data folder>/
//!   pg/             the cluster, 0700, owned by whoever runs Postgres
//!   pg.init/        a cluster in the making; renamed to pg/ when it is whole
//!   run/            the socket, 0700 (elsewhere when the path would be too long for a socket)
//!   postgres.log    what Postgres says
//!   owner.lock      locked by the one process that starts and stops Postgres; its text says which and of what kind
//!   guests.lock     locked, shared, by every command that uses a Postgres which another process owns
//! ```
//!
//! The locks belong to open files, so they end with their process however it ends.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};

use super::account::Account;
use super::error::EmbeddedError;
use crate::crypto::token;

/// The longest path of a socket, with its final zero left out.
const LONGEST_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
/// The name Postgres gives its socket, which holds its port.
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// A log longer than this is put aside before the next start.
const LONGEST_LOG: u64 = 16 * 1024 * 1024;
/// How much of the end of the log is looked at.
const LOG_TAIL: u64 = 8 * 1024;

/// Who holds [`Folder::own`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tenure {
    /// A service: stays until it is told to stop.
    Service,
    /// One command: soon gone.
    Command,
}

impl Tenure {
    const ALL: [Self; 2] = [Self::Service, Self::Command];

    fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Command => "command",
        }
    }
}

/// Somebody else holds [`Folder::own`].
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) pid: Option<u32>,
    pub(super) tenure: Option<Tenure>,
}

/// A lock on a file; ends when dropped.
#[derive(Debug)]
pub(super) struct Lock(
    #[expect(dead_code, reason = "held, never read: the lock ends with the file")] File,
);

/// The data folder and who runs Postgres on it.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    run: PathBuf,
    account: Option<Account>,
}

impl Folder {
    /// Makes the folders that are missing. When there is data already, Postgres runs as its owner, whoever would be
    /// chosen today.
    pub(super) fn prepare(root: &Path, account: Option<Account>) -> Result<Self, EmbeddedError> {
        // Postgres changes its working directory and compares paths as texts.
        let root = std::path::absolute(root).map_err(problem("find", root))?;
        // Root's data is another user's: that user must be able to pass through.
        make(&root, if account.is_some() { 0o711 } else { 0o700 })?;
        let root = root.canonicalize().map_err(problem("find", &root))?;

        let mut folder = Self {
            run: root.join("run"),
            root,
            account,
        };
        if let Ok(data) = folder.data().symlink_metadata() {
            folder.account = match folder.account.take() {
                Some(account) if data.uid() != 0 && data.uid() != account.uid => Some(Account {
                    name: data.uid().to_string(),
                    uid: data.uid(),
                    gid: data.gid(),
                }),
                account => account,
            };
            if data.uid() != folder.uid() {
                return Err(EmbeddedError::NotOurs {
                    path: folder.data(),
                    owner: data.uid(),
                });
            }
        }
        if folder.socket().as_os_str().len() > LONGEST_SOCKET_PATH {
            let name = token::fingerprint(folder.root.as_os_str().as_encoded_bytes());
            folder.run = PathBuf::from(format!("/tmp/attesto-{}-{name}", folder.uid()));
        }
        folder.make_private(&folder.run)?;
        Ok(folder)
    }

    /// The cluster.
    pub(super) fn data(&self) -> PathBuf {
        self.root.join("pg")
    }

    /// Where the socket is.
    pub(super) fn run(&self) -> &Path {
        &self.run
    }

    /// The socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.run.join(SOCKET_NAME)
    }

    /// Who runs Postgres when it is not ourselves.
    pub(super) fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// The user id that runs Postgres.
    fn uid(&self) -> u32 {
        self.account.as_ref().map_or_else(
            || rustix::process::geteuid().as_raw(),
            |account| account.uid,
        )
    }

    /// Whether there is a cluster.
    pub(super) fn has_data(&self) -> bool {
        self.data().exists()
    }

    /// The major version of the cluster.
    pub(super) fn major(&self) -> Result<u32, EmbeddedError> {
        std::fs::read_to_string(self.data().join("PG_VERSION"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| EmbeddedError::NotACluster { data: self.data() })
    }

    /// An empty place for a cluster in the making. What an interrupted attempt left there is removed.
    pub(super) fn fresh_cluster(&self) -> Result<PathBuf, EmbeddedError> {
        let making = self.root.join("pg.init");
        match std::fs::remove_dir_all(&making) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(problem("remove", &making)(error));
            }
            _ => {}
        }
        self.make_private(&making)?;
        Ok(making)
    }

    /// Makes a whole cluster the cluster, for good: also after a power cut.
    pub(super) fn adopt_cluster(&self, making: &Path) -> Result<(), EmbeddedError> {
        std::fs::rename(making, self.data()).map_err(problem("rename", making))?;
        File::open(&self.root)
            .and_then(|folder| folder.sync_all())
            .map_err(problem("write to disk", &self.root))
    }

    /// Where Postgres' log is.
    pub(super) fn log_path(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    /// The log, to be appended to, and how long it is now.
    pub(super) fn open_log(&self) -> Result<(File, u64), EmbeddedError> {
        let path = self.log_path();
        let open = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&path)
        };
        let length = |file: &File| file.metadata().map(|data| data.len());
        let mut log = open().map_err(problem("open", &path))?;
        if length(&log).map_err(problem("read", &path))? > LONGEST_LOG {
            std::fs::rename(&path, path.with_extension("log.1"))
                .map_err(problem("rename", &path))?;
            log = open().map_err(problem("open", &path))?;
        }
        let now = length(&log).map_err(problem("read", &path))?;
        Ok((log, now))
    }

    /// What was written to the log since it was `from` bytes long, at most the last few lines of it.
    pub(super) fn log_since(&self, from: u64) -> String {
        let read = || -> io::Result<String> {
            let mut log = File::open(self.log_path())?;
            let end = log.metadata()?.len();
            log.seek(SeekFrom::Start(from.max(end.saturating_sub(LOG_TAIL))))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_else(|error| format!("(the log cannot be read: {error})"))
    }

    /// Becomes the one process that starts and stops Postgres here, or says who is.
    pub(super) fn own(&self, tenure: Tenure) -> Result<Result<Lock, Owner>, EmbeddedError> {
        let path = self.root.join("owner.lock");
        let mut file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => {
                let card = format!("{} {}\n", std::process::id(), tenure.word());
                file.set_len(0)
                    .and_then(|()| file.write_all(card.as_bytes()))
                    .map_err(problem("write", &path))?;
                Ok(Ok(Lock(file)))
            }
            Err(TryLockError::WouldBlock) => {
                let mut card = String::new();
                // A card that is being written just now is as good as none.
                let _ = file.read_to_string(&mut card);
                let mut words = card.split_whitespace();
                Ok(Err(Owner {
                    pid: words.next().and_then(|pid| pid.parse().ok()),
                    tenure: words
                        .next()
                        .and_then(|word| Tenure::ALL.into_iter().find(|one| one.word() == word)),
                }))
            }
            Err(TryLockError::Error(error)) => Err(problem("lock", &path)(error)),
        }
    }

    /// Keeps an owner that is only a command from stopping Postgres. `None` while it is about to.
    pub(super) fn visit(&self) -> Result<Option<Lock>, EmbeddedError> {
        self.guests(File::try_lock_shared)
    }

    /// Keeps guests out. `None` while there are any.
    pub(super) fn close_to_guests(&self) -> Result<Option<Lock>, EmbeddedError> {
        self.guests(File::try_lock)
    }

    fn guests(
        &self,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Option<Lock>, EmbeddedError> {
        let path = self.root.join("guests.lock");
        let file = open_lock(&path)?;
        match lock(&file) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(problem("lock", &path)(error)),
        }
    }

    /// The nearest folder above `path`, or `path` itself, that the user who runs Postgres may not enter: the usual
    /// cause of a "permission denied" from a process that is not ours to ask.
    pub(super) fn obstacle(&self, path: &Path) -> Option<EmbeddedError> {
        let account = self.account.as_ref()?;
        let blocked = path.ancestors().find(|folder| {
            folder.metadata().is_ok_and(|data| {
                let may_enter = if data.uid() == account.uid {
                    0o100
                } else if data.gid() == account.gid {
                    0o010
                } else {
                    0o001
                };
                data.mode() & may_enter == 0
            })
        })?;
        Some(EmbeddedError::NotReachable {
            path: blocked.to_owned(),
            account: account.name.clone(),
        })
    }

    /// A folder that only the user who runs Postgres may enter. One that is there already must be exactly that: in
    /// /tmp anybody may have put a trap.
    fn make_private(&self, path: &Path) -> Result<(), EmbeddedError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                if let Some(account) = &self.account {
                    chown(path, Some(account.uid), Some(account.gid))
                        .map_err(problem("give away", path))?;
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let data = path.symlink_metadata().map_err(problem("look at", path))?;
                if data.uid() != self.uid() {
                    return Err(EmbeddedError::NotOurs {
                        path: path.to_owned(),
                        owner: data.uid(),
                    });
                }
                if !data.is_dir() || data.mode() & 0o077 != 0 {
                    return Err(EmbeddedError::NotPrivate {
                        path: path.to_owned(),
                    });
                }
                Ok(())
            }
            Err(error) => Err(problem("create", path)(error)),
        }
    }
}

/// Makes a folder with exactly this mode, whatever the umask says; one that is there already stays as it is.
fn make(path: &Path, mode: u32) -> Result<(), EmbeddedError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(problem("create", path))
}

fn open_lock(path: &Path) -> Result<File, EmbeddedError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(problem("open", path))
}

fn problem(action: &'static str, path: &Path) -> impl Fn(io::Error) -> EmbeddedError {
    let path = path.to_owned();
    move |cause| EmbeddedError::Folder {
        action,
        path: path.clone(),
        cause,
    }
}
