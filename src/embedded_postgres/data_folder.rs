//! Where a private Postgres keeps everything, and whose it is for now.
//!
//! ```text
//! <data folder>/
//!   pg/             the cluster, 0700, owned by the user that runs Postgres
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

use super::error::EmbeddedError;
use super::system_account::SystemAccount;
use crate::crypto::token;

/// The longest path of a socket, with its final zero left out.
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
/// The name Postgres gives its socket, which holds its port.
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// A log longer than this is put aside before the next start.
const MAX_LOG_BYTES: u64 = 16 * 1024 * 1024;
/// How much of the end of the log is looked at.
const LOG_TAIL_BYTES: u64 = 8 * 1024;

/// Who holds [`DataFolder::try_lock_owner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerKind {
    /// A service: stays until it is told to stop.
    Service,
    /// One command: soon gone.
    Command,
}

impl OwnerKind {
    const ALL: [Self; 2] = [Self::Service, Self::Command];

    fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Command => "command",
        }
    }
}

/// Another process holds [`DataFolder::try_lock_owner`].
#[derive(Debug)]
pub(super) struct LockOwner {
    pub(super) pid: Option<u32>,
    pub(super) kind: Option<OwnerKind>,
}

/// A lock on a file; ends when dropped.
#[derive(Debug)]
pub(super) struct FileLock(
    #[expect(dead_code, reason = "held, never read: the lock ends with the file")] File,
);

/// The data folder and who runs Postgres on it.
#[derive(Debug)]
pub(super) struct DataFolder {
    root: PathBuf,
    socket_folder: PathBuf,
    account: Option<SystemAccount>,
}

impl DataFolder {
    /// Makes the folders that are missing. When there is data already, Postgres runs as its owner, whichever user would be
    /// chosen today.
    pub(super) fn prepare_folders(
        root: &Path,
        account: Option<SystemAccount>,
    ) -> Result<Self, EmbeddedError> {
        // Postgres changes its working directory and compares paths as texts.
        let root = std::path::absolute(root).map_err(filesystem_error("find", root))?;
        // Root's data is another user's: that user must be able to pass through.
        create_folder(&root, if account.is_some() { 0o711 } else { 0o700 })?;
        let root = root
            .canonicalize()
            .map_err(filesystem_error("find", &root))?;

        let mut folder = Self {
            socket_folder: root.join("run"),
            root,
            account,
        };
        if let Ok(data) = folder.cluster_path().symlink_metadata() {
            folder.account = match folder.account.take() {
                Some(account) if data.uid() != 0 && data.uid() != account.uid => {
                    Some(SystemAccount {
                        name: data.uid().to_string(),
                        uid: data.uid(),
                        gid: data.gid(),
                    })
                }
                account => account,
            };
            if data.uid() != folder.postgres_uid() {
                return Err(EmbeddedError::WrongOwner {
                    path: folder.cluster_path(),
                    owner: data.uid(),
                });
            }
        }
        if folder.socket_path().as_os_str().len() > MAX_SOCKET_PATH {
            let name = token::sha256_fingerprint(folder.root.as_os_str().as_encoded_bytes());
            folder.socket_folder =
                PathBuf::from(format!("/tmp/attesto-{}-{name}", folder.postgres_uid()));
        }
        folder.create_private_folder(&folder.socket_folder)?;
        Ok(folder)
    }

    /// The cluster.
    pub(super) fn cluster_path(&self) -> PathBuf {
        self.root.join("pg")
    }

    /// Where the socket is.
    pub(super) fn socket_folder(&self) -> &Path {
        &self.socket_folder
    }

    /// The socket.
    pub(super) fn socket_path(&self) -> PathBuf {
        self.socket_folder.join(SOCKET_NAME)
    }

    /// Who runs Postgres when it is not ourselves.
    pub(super) fn account(&self) -> Option<&SystemAccount> {
        self.account.as_ref()
    }

    /// The user id that runs Postgres.
    fn postgres_uid(&self) -> u32 {
        self.account.as_ref().map_or_else(
            || rustix::process::geteuid().as_raw(),
            |account| account.uid,
        )
    }

    /// Whether there is a cluster.
    pub(super) fn has_cluster(&self) -> bool {
        self.cluster_path().exists()
    }

    /// The major version of the cluster.
    pub(super) fn cluster_major_version(&self) -> Result<u32, EmbeddedError> {
        std::fs::read_to_string(self.cluster_path().join("PG_VERSION"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| EmbeddedError::NotACluster {
                data: self.cluster_path(),
            })
    }

    /// An empty place for a cluster in the making. What an interrupted attempt left there is removed.
    pub(super) fn create_staging_cluster(&self) -> Result<PathBuf, EmbeddedError> {
        let making = self.root.join("pg.init");
        match std::fs::remove_dir_all(&making) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(filesystem_error("remove", &making)(error));
            }
            _ => {}
        }
        self.create_private_folder(&making)?;
        Ok(making)
    }

    /// Makes a whole cluster the cluster, for good: also after a power cut.
    pub(super) fn promote_staging_cluster(&self, making: &Path) -> Result<(), EmbeddedError> {
        std::fs::rename(making, self.cluster_path()).map_err(filesystem_error("rename", making))?;
        File::open(&self.root)
            .and_then(|folder| folder.sync_all())
            .map_err(filesystem_error("write to disk", &self.root))
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
        let mut log = open().map_err(filesystem_error("open", &path))?;
        if length(&log).map_err(filesystem_error("read", &path))? > MAX_LOG_BYTES {
            std::fs::rename(&path, path.with_extension("log.1"))
                .map_err(filesystem_error("rename", &path))?;
            log = open().map_err(filesystem_error("open", &path))?;
        }
        let now = length(&log).map_err(filesystem_error("read", &path))?;
        Ok((log, now))
    }

    /// What was written to the log since it was `from` bytes long, at most the last few lines of it.
    pub(super) fn log_since(&self, from: u64) -> String {
        let read = || -> io::Result<String> {
            let mut log = File::open(self.log_path())?;
            let end = log.metadata()?.len();
            log.seek(SeekFrom::Start(
                from.max(end.saturating_sub(LOG_TAIL_BYTES)),
            ))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_else(|error| format!("(the log cannot be read: {error})"))
    }

    /// Becomes the one process that starts and stops Postgres here, or says who is.
    pub(super) fn try_lock_owner(
        &self,
        tenure: OwnerKind,
    ) -> Result<Result<FileLock, LockOwner>, EmbeddedError> {
        let path = self.root.join("owner.lock");
        let mut file = open_lock_file(&path)?;
        match file.try_lock() {
            Ok(()) => {
                let card = format!("{} {}\n", std::process::id(), tenure.as_str());
                file.set_len(0)
                    .and_then(|()| file.write_all(card.as_bytes()))
                    .map_err(filesystem_error("write", &path))?;
                Ok(Ok(FileLock(file)))
            }
            Err(TryLockError::WouldBlock) => {
                let mut card = String::new();
                // A card that is being written just now is as good as none.
                let _ = file.read_to_string(&mut card);
                let mut words = card.split_whitespace();
                Ok(Err(LockOwner {
                    pid: words.next().and_then(|pid| pid.parse().ok()),
                    kind: words.next().and_then(|word| {
                        OwnerKind::ALL.into_iter().find(|one| one.as_str() == word)
                    }),
                }))
            }
            Err(TryLockError::Error(error)) => Err(filesystem_error("lock", &path)(error)),
        }
    }

    /// Keeps an owner that is only a command from stopping Postgres. `None` while it is about to.
    pub(super) fn try_lock_shared(&self) -> Result<Option<FileLock>, EmbeddedError> {
        self.lock_guests_file(File::try_lock_shared)
    }

    /// Keeps guests out. `None` while there are any.
    pub(super) fn try_lock_exclusive(&self) -> Result<Option<FileLock>, EmbeddedError> {
        self.lock_guests_file(File::try_lock)
    }

    fn lock_guests_file(
        &self,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Option<FileLock>, EmbeddedError> {
        let path = self.root.join("guests.lock");
        let file = open_lock_file(&path)?;
        match lock(&file) {
            Ok(()) => Ok(Some(FileLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(filesystem_error("lock", &path)(error)),
        }
    }

    /// The nearest folder above `path`, or `path` itself, that the user who runs Postgres may not enter: the usual
    /// cause of a "permission denied" from a process that is not ours to ask.
    pub(super) fn find_inaccessible_folder(&self, path: &Path) -> Option<EmbeddedError> {
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
        Some(EmbeddedError::AccessDenied {
            path: blocked.to_owned(),
            account: account.name.clone(),
        })
    }

    /// A folder that only the user who runs Postgres may enter. One that is there already must be exactly that: in
    /// /tmp another user may have put a link in the way.
    fn create_private_folder(&self, path: &Path) -> Result<(), EmbeddedError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                if let Some(account) = &self.account {
                    chown(path, Some(account.uid), Some(account.gid))
                        .map_err(filesystem_error("give away", path))?;
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let data = path
                    .symlink_metadata()
                    .map_err(filesystem_error("look at", path))?;
                if data.uid() != self.postgres_uid() {
                    return Err(EmbeddedError::WrongOwner {
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
            Err(error) => Err(filesystem_error("create", path)(error)),
        }
    }
}

/// Makes a folder with exactly this mode, whatever the umask says; one that is there already stays as it is.
fn create_folder(path: &Path, mode: u32) -> Result<(), EmbeddedError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(filesystem_error("create", path))
}

fn open_lock_file(path: &Path) -> Result<File, EmbeddedError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(filesystem_error("open", path))
}

fn filesystem_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> EmbeddedError {
    let path = path.to_owned();
    move |cause| EmbeddedError::FileSystem {
        action,
        path: path.clone(),
        cause,
    }
}
