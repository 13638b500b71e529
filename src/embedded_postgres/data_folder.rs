//! The data folder of a private Postgres: its files, permissions and locks.
//!
//! ```text
//! <data folder>/
//!   pg/             the cluster, 0700, owned by the user that runs Postgres
//!   pg.init/        the cluster while `initdb` runs; renamed to pg/ when it is complete
//!   run/            the socket, 0700 (in /tmp if the path would be too long for a socket)
//!   postgres.log    the log of Postgres
//!   owner.lock      locked by the one process that starts and stops Postgres; contains its process id and kind
//!   guests.lock     a shared lock, held by every command that uses a Postgres which another process owns
//! ```
//!
//! A lock belongs to an open file, so the kernel releases it when its process ends for any reason.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};

use super::error::EmbeddedError;
use super::system_account::SystemAccount;
use crate::crypto::token;

/// The maximum length of a socket's path in bytes, without the terminating zero.
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
/// The file name that Postgres gives its socket. It contains the port.
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// A log that is longer is renamed before the next start.
const MAX_LOG_BYTES: u64 = 16 * 1024 * 1024;
/// The maximum number of bytes that are read from the end of the log.
const LOG_TAIL_BYTES: u64 = 8 * 1024;

/// The kind of the process that holds the lock of [`DataFolder::try_lock_owner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerKind {
    /// A service, which holds the lock until it is stopped.
    Service,
    /// A command, which holds the lock for a short time.
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

/// What the lock file says about the process that holds [`DataFolder::try_lock_owner`].
#[derive(Debug)]
pub(super) struct LockOwner {
    pub(super) pid: Option<u32>,
    pub(super) kind: Option<OwnerKind>,
}

/// A lock on a file. Dropping it releases the lock.
#[derive(Debug)]
pub(super) struct FileLock(File);

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread is just starting has a copy of the descriptor until it runs
        // its program.
        let _ = self.0.unlock();
    }
}

/// The data folder, and the user that runs Postgres on it.
#[derive(Debug)]
pub(super) struct DataFolder {
    root: PathBuf,
    socket_folder: PathBuf,
    account: Option<SystemAccount>,
}

impl DataFolder {
    /// Creates missing folders. If there is a cluster already, Postgres runs as its owner, whatever `account` says.
    pub(super) fn prepare_folders(
        root: &Path,
        account: Option<SystemAccount>,
    ) -> Result<Self, EmbeddedError> {
        // Postgres changes its working directory and compares paths as text.
        let root = std::path::absolute(root).map_err(filesystem_error("find", root))?;
        // If this process is root, the cluster belongs to another user, who must be able to enter this folder.
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

    /// The cluster's folder, whether or not it exists.
    pub(super) fn cluster_path(&self) -> PathBuf {
        self.root.join("pg")
    }

    /// The folder of the socket.
    pub(super) fn socket_folder(&self) -> &Path {
        &self.socket_folder
    }

    /// The path of the socket.
    pub(super) fn socket_path(&self) -> PathBuf {
        self.socket_folder.join(SOCKET_NAME)
    }

    /// The user that runs Postgres, if other than the user of this process.
    pub(super) fn account(&self) -> Option<&SystemAccount> {
        self.account.as_ref()
    }

    /// The user id that Postgres runs with.
    fn postgres_uid(&self) -> u32 {
        self.account.as_ref().map_or_else(
            || rustix::process::geteuid().as_raw(),
            |account| account.uid,
        )
    }

    /// Whether the cluster's folder exists.
    pub(super) fn has_cluster(&self) -> bool {
        self.cluster_path().exists()
    }

    /// The major version of the cluster, from its file `PG_VERSION`.
    pub(super) fn cluster_major_version(&self) -> Result<u32, EmbeddedError> {
        std::fs::read_to_string(self.cluster_path().join("PG_VERSION"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| EmbeddedError::NotACluster {
                data: self.cluster_path(),
            })
    }

    /// Creates an empty folder for `initdb`. Removes what an interrupted attempt left.
    pub(super) fn create_staging_cluster(&self) -> Result<PathBuf, EmbeddedError> {
        let staging = self.root.join("pg.init");
        match std::fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(filesystem_error("remove", &staging)(error));
            }
            _ => {}
        }
        self.create_private_folder(&staging)?;
        Ok(staging)
    }

    /// Renames the complete cluster to its final name, and syncs the parent folder so that the rename survives a power
    /// failure.
    pub(super) fn promote_staging_cluster(&self, staging: &Path) -> Result<(), EmbeddedError> {
        std::fs::rename(staging, self.cluster_path())
            .map_err(filesystem_error("rename", staging))?;
        File::open(&self.root)
            .and_then(|folder| folder.sync_all())
            .map_err(filesystem_error("write to disk", &self.root))
    }

    /// The path of Postgres' log.
    pub(super) fn log_path(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    /// Opens the log for appending and returns its current length. A log longer than [`MAX_LOG_BYTES`] is renamed
    /// first.
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

    /// The text that was written to the log since its length was `from`, at most the last [`LOG_TAIL_BYTES`].
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

    /// Locks the data folder for the one process that starts and stops Postgres. The inner error says which process
    /// holds the lock.
    pub(super) fn try_lock_owner(
        &self,
        kind: OwnerKind,
    ) -> Result<Result<FileLock, LockOwner>, EmbeddedError> {
        let path = self.root.join("owner.lock");
        let mut file = open_lock_file(&path)?;
        match file.try_lock() {
            Ok(()) => {
                let text = format!("{} {}\n", std::process::id(), kind.as_str());
                file.set_len(0)
                    .and_then(|()| file.write_all(text.as_bytes()))
                    .map_err(filesystem_error("write", &path))?;
                Ok(Ok(FileLock(file)))
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // An empty or incomplete file means that the owner is writing it now. The owner is then unknown.
                let _ = file.read_to_string(&mut text);
                let mut words = text.split_whitespace();
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

    /// Takes the guests' lock, which keeps a command that owns Postgres from stopping it. `None` while the owner is
    /// stopping it.
    pub(super) fn try_lock_shared(&self) -> Result<Option<FileLock>, EmbeddedError> {
        self.lock_guests_file(File::try_lock_shared)
    }

    /// Takes the guests' lock exclusively, so that no other command can begin to use Postgres. `None` while a command
    /// uses it.
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

    /// The nearest ancestor of `path`, or `path` itself, that the user who runs Postgres may not enter. This is the
    /// usual cause when a program that runs as that user reports "permission denied".
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

    /// Creates a folder that only the user who runs Postgres may enter. An existing folder must have exactly this owner
    /// and mode: in `/tmp`, another user may have created a symbolic link of this name.
    fn create_private_folder(&self, path: &Path) -> Result<(), EmbeddedError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                if let Some(account) = &self.account {
                    chown(path, Some(account.uid), Some(account.gid))
                        .map_err(filesystem_error("change the owner of", path))?;
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let data = path
                    .symlink_metadata()
                    .map_err(filesystem_error("read the metadata of", path))?;
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

/// Creates a folder with exactly this mode, independent of the umask. The mode of an existing folder is not changed.
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
