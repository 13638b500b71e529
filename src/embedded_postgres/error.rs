//! Every way a private Postgres can fail to be there, and what to do about each.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why there is no private Postgres. Full sentences for the person who started us.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No `postgres` and `initdb` on this machine.
    #[error(
        "no Postgres is installed here: no folder of PATH and none of the usual places holds both `postgres` and `initdb`.\n\
         Debian, Ubuntu: sudo apt install postgresql. Fedora: sudo dnf install postgresql-server. Alpine: apk add postgresql. macOS: brew install postgresql@17.\n\
         Installed elsewhere: set ATTESTO_PG_BIN to the folder of the programs. A database of your own: set DATABASE_URL."
    )]
    NotInstalled,
    /// `ATTESTO_PG_BIN` names the wrong folder.
    #[error("ATTESTO_PG_BIN names {}, which does not hold both `postgres` and `initdb`", folder.display())]
    MissingPrograms {
        /// What it names.
        folder: PathBuf,
    },
    /// Only releases are installed that lack what we need.
    #[error(
        "Postgres {major} in {} is too old: Attesto needs {} or newer",
        folder.display(),
        crate::db::MIN_POSTGRES_MAJOR
    )]
    TooOld {
        /// Where it is.
        folder: PathBuf,
        /// Its major version.
        major: u32,
    },
    /// No default place to put the data.
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
        /// What it names.
        name: String,
    },
    /// `ATTESTO_PG_USER` names root.
    #[error("ATTESTO_PG_USER names {name}, which is root: Postgres refuses to run as root")]
    RootAccount {
        /// What it names.
        name: String,
    },
    /// A folder or file of ours cannot be made, read or locked.
    #[error("cannot {action} {}: {cause}", path.display())]
    FileSystem {
        /// What was tried: create, open, …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The data belongs to another user.
    #[error(
        "{} belongs to the user with id {owner}, not to us: run as that user, or choose another folder with ATTESTO_DATA_DIR",
        path.display()
    )]
    WrongOwner {
        /// The folder.
        path: PathBuf,
        /// The id of its owner.
        owner: u32,
    },
    /// A folder that must be private is not.
    #[error("{} must be a folder that only its owner may enter: remove it, or choose another data folder with ATTESTO_DATA_DIR", path.display())]
    NotPrivate {
        /// The folder.
        path: PathBuf,
    },
    /// The user that runs Postgres may not reach the data or the programs.
    #[error(
        "the user {account}, who runs Postgres because root must not, may not enter {}: choose a data folder elsewhere with ATTESTO_DATA_DIR (programs: ATTESTO_PG_BIN), for example below /var/lib",
        path.display()
    )]
    AccessDenied {
        /// The folder that stands in the way.
        path: PathBuf,
        /// Who may not enter.
        account: String,
    },
    /// A program does not start at all.
    #[error("cannot run {}{}: {cause}", program.display(), account.as_ref().map(|name| format!(" as the user {name}")).unwrap_or_default())]
    CannotRun {
        /// The program.
        program: PathBuf,
        /// As whom, when not as ourselves.
        account: Option<String>,
        /// What the operating system said.
        cause: io::Error,
    },
    /// Our own user id has no name.
    #[error(
        "this process runs as the user id {uid}, which has no entry in /etc/passwd, and initdb wants one: add an entry, or use a database of your own (DATABASE_URL)"
    )]
    UnnamedUser {
        /// Our user id.
        uid: u32,
    },
    /// `initdb` failed.
    #[error("initdb could not make a database cluster in {} ({status}):\n{output}", folder.display())]
    InitdbFailed {
        /// Where.
        folder: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// Another of our processes owns the folder.
    #[error(
        "another attesto ({}) keeps its database in {}: stop it first, or choose another folder with ATTESTO_DATA_DIR",
        pid.map_or_else(|| "of unknown process id".to_owned(), |pid| format!("process {pid}")),
        folder.display()
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Who, as far as it says.
        pid: Option<u32>,
    },
    /// The data is of another major version than any program here.
    #[error(
        "the data in {} was written by Postgres {found}, and only {} is installed. Either install Postgres {found} again (it is found by itself), or move the data over:\n\
         with Postgres {found}: pg_dumpall > attesto.sql; then move the folder away, start Attesto once with the new Postgres, and feed it: psql < attesto.sql. Nothing has been changed",
        data.display(),
        installed.iter().map(|major| format!("Postgres {major}")).collect::<Vec<_>>().join(", ")
    )]
    MajorVersionMismatch {
        /// The data folder.
        data: PathBuf,
        /// Its major version.
        found: u32,
        /// The major versions installed here.
        installed: Vec<u32>,
    },
    /// The data folder does not look like one.
    #[error("{} is not a Postgres data folder (no readable PG_VERSION): move it away, or choose another data folder with ATTESTO_DATA_DIR", data.display())]
    NotACluster {
        /// The folder.
        data: PathBuf,
    },
    /// Postgres ended instead of serving.
    #[error("Postgres ended instead of serving ({status}). The end of {}:\n{tail}", log.display())]
    ExitedAtStart {
        /// How it ended.
        status: ExitStatus,
        /// Where the whole log is.
        log: PathBuf,
        /// The last lines.
        tail: String,
    },
    /// Postgres runs and does not answer.
    #[error("Postgres did not answer on {} within {seconds} s. The end of {}:\n{tail}", socket.display(), log.display())]
    StartTimeout {
        /// Where it should have answered.
        socket: PathBuf,
        /// How long we waited.
        seconds: u64,
        /// Where the whole log is.
        log: PathBuf,
        /// The last lines.
        tail: String,
    },
}
