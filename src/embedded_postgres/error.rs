//! Why a private Postgres is not available. Each message says what to do.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why a private Postgres is not available. The messages are full sentences for the operator.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The programs `postgres` and `initdb` were not found.
    #[error(
        "no Postgres is installed here: neither a folder of PATH nor a usual folder of a distribution has both `postgres` and `initdb`.\n\
         Debian, Ubuntu: sudo apt install postgresql. Fedora: sudo dnf install postgresql-server. Alpine: apk add postgresql. macOS: brew install postgresql@17.\n\
         Installed elsewhere: set ATTESTO_PG_BIN to the folder of the programs. A database of your own: set DATABASE_URL."
    )]
    NotInstalled,
    /// The folder that `ATTESTO_PG_BIN` names does not have the programs.
    #[error("ATTESTO_PG_BIN names {}, which does not have both `postgres` and `initdb`", folder.display())]
    MissingPrograms {
        /// The value of `ATTESTO_PG_BIN`.
        folder: PathBuf,
    },
    /// Every installed version is too old.
    #[error(
        "Postgres {major} in {} is too old: Attesto needs {} or newer",
        folder.display(),
        crate::db::MIN_POSTGRES_MAJOR
    )]
    TooOld {
        /// The folder of the preferred installation.
        folder: PathBuf,
        /// Its major version.
        major: u32,
    },
    /// No data folder is set, and there is no default for it.
    #[error("neither XDG_STATE_HOME nor HOME says where data belongs: set ATTESTO_DATA_DIR")]
    NoDataDir,
    /// The process runs as root, and there is no other user to run Postgres as.
    #[error(
        "Postgres refuses to run as root, and this machine has no user `attesto` or `postgres` to run it as.\n\
         Create one with: useradd --system --no-create-home --shell /usr/sbin/nologin attesto. Or name another in ATTESTO_PG_USER."
    )]
    NoUnprivilegedAccount,
    /// `ATTESTO_PG_USER` names no user of this machine.
    #[error("ATTESTO_PG_USER names {name}, and this machine has no such user")]
    UnknownAccount {
        /// The value of `ATTESTO_PG_USER`.
        name: String,
    },
    /// `ATTESTO_PG_USER` names root.
    #[error("ATTESTO_PG_USER names {name}, which is root: Postgres refuses to run as root")]
    RootAccount {
        /// The value of `ATTESTO_PG_USER`.
        name: String,
    },
    /// An operation on a file or folder of the data folder failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    FileSystem {
        /// The operation as a verb, such as `create` or `open`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        cause: io::Error,
    },
    /// A folder belongs to a user other than the one that runs Postgres.
    #[error(
        "{} belongs to the user with id {owner}, not to the user of this process: run Attesto as that user, or choose another folder with ATTESTO_DATA_DIR",
        path.display()
    )]
    WrongOwner {
        /// The folder of the other user.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
    /// Users other than the owner may enter a folder that must be private.
    #[error("{} must be a folder that only its owner may enter: remove it, or choose another data folder with ATTESTO_DATA_DIR", path.display())]
    NotPrivate {
        /// The folder that must be private.
        path: PathBuf,
    },
    /// The user that runs Postgres may not enter a folder that it needs.
    #[error(
        "the user {account}, who runs Postgres because root must not, may not enter {}: choose a data folder elsewhere with ATTESTO_DATA_DIR (programs: ATTESTO_PG_BIN), for example below /var/lib",
        path.display()
    )]
    AccessDenied {
        /// The folder whose permissions deny access.
        path: PathBuf,
        /// The name of the user that runs Postgres.
        account: String,
    },
    /// A program could not be started.
    #[error("cannot run {}{}: {cause}", program.display(), account.as_ref().map(|name| format!(" as the user {name}")).unwrap_or_default())]
    CannotRun {
        /// The program's path.
        program: PathBuf,
        /// The user it was to run as, if other than the user of this process.
        account: Option<String>,
        /// The error of the operating system.
        cause: io::Error,
    },
    /// The user id of this process has no entry in the user database, which `initdb` requires.
    #[error(
        "this process runs as the user id {uid}, which has no entry in /etc/passwd, which initdb requires: add an entry, or use a database of your own (DATABASE_URL)"
    )]
    UnnamedUser {
        /// The user id of this process.
        uid: u32,
    },
    /// The program `initdb` exited with an error.
    #[error("initdb could not make a database cluster in {} ({status}):\n{output}", folder.display())]
    InitdbFailed {
        /// The folder of the new cluster.
        folder: PathBuf,
        /// The exit status.
        status: ExitStatus,
        /// The last lines of its output.
        output: String,
    },
    /// Another process of Attesto owns the data folder.
    #[error(
        "another attesto ({}) keeps its database in {}: stop it first, or choose another folder with ATTESTO_DATA_DIR",
        pid.map_or_else(|| "of unknown process id".to_owned(), |pid| format!("process {pid}")),
        folder.display()
    )]
    InUse {
        /// The cluster's folder.
        folder: PathBuf,
        /// The process id of the owner, if it can be read from the lock file.
        pid: Option<u32>,
    },
    /// No installed version can read the data, because its major version differs.
    #[error(
        "the data in {} was written by Postgres {found}, and only {} is installed. Either install Postgres {found} again (it is found by itself), or move the data over:\n\
         with Postgres {found}: pg_dumpall > attesto.sql; then move the folder away, start Attesto once with the new Postgres, and load the dump: psql < attesto.sql. Nothing has been changed",
        data.display(),
        installed.iter().map(|major| format!("Postgres {major}")).collect::<Vec<_>>().join(", ")
    )]
    MajorVersionMismatch {
        /// The data folder.
        data: PathBuf,
        /// The major version that wrote the data.
        found: u32,
        /// The major versions installed here.
        installed: Vec<u32>,
    },
    /// The cluster's folder has no readable `PG_VERSION`.
    #[error("{} is not a Postgres data folder (no readable PG_VERSION): move it away, or choose another data folder with ATTESTO_DATA_DIR", data.display())]
    NotACluster {
        /// The folder without a cluster.
        data: PathBuf,
    },
    /// Postgres exited before it accepted connections.
    #[error("Postgres exited before it accepted connections ({status}). The end of {}:\n{tail}", log.display())]
    ExitedAtStart {
        /// The exit status.
        status: ExitStatus,
        /// The path of Postgres' log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// Postgres runs but does not accept connections.
    #[error("Postgres did not answer on {} within {seconds} s. The end of {}:\n{tail}", socket.display(), log.display())]
    StartTimeout {
        /// The path of the socket.
        socket: PathBuf,
        /// How long the start was waited for, in seconds.
        seconds: u64,
        /// The path of Postgres' log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
}
