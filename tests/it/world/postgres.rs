//! One temporary Postgres for the whole run of this binary, and one database for each test.
//!
//! The first test that needs it starts it: a cluster in a temporary folder, on a Unix socket only,
//! without durability. Every test gets a copy of one migrated template, which takes about ten
//! milliseconds.
//!
//! It stops when the test process ends, however that happens. No code in a test binary runs
//! reliably at its end (a failing assertion, Ctrl-C, `kill -9`), so Postgres has a keeper: a shell
//! that holds the other end of a pipe, notices when it closes, stops Postgres and removes the
//! folder. If even the keeper is killed, the next run finds the folder with an unlocked lock file,
//! and removes it.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::TenantId;
use attesto::config::read_env_var;
use attesto::db::{ConnectSettings, Database, DbTransaction, MIGRATOR};
use attesto::embedded_postgres::binaries::PostgresBinaries;
use attesto::embedded_postgres::system_account::SystemAccount;
use attesto::tenants;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, Executor as _, PgConnection};
use time::OffsetDateTime;
use tokio::sync::OnceCell;

use super::citus;
use super::shell::Shell;
use super::wait::{wait_for, wait_until_blocking};

/// The prefix of the temporary folders' names.
const PREFIX: &str = "attesto-tests-";
const DISK_ROOT: &str = "/tmp";
const MEMORY_ROOT: &str = "/dev/shm";
/// The databases of all tests need about half of it.
const MEMORY_FOR_ALL_DATABASES: u64 = 12 << 30;
/// The migrated database that is copied for each test.
const TEMPLATE: &str = "attesto_template";

/// A database of one test.
pub(crate) struct Fresh {
    /// Its `postgres://` URL, for other processes.
    pub(crate) url: String,
    /// The URL without the pooler, if there is one.
    pub(crate) direct: Option<String>,
    /// The URL as settings of a connection pool.
    pub(crate) settings: ConnectSettings,
    /// A connection pool on it.
    pub(crate) database: Database,
}

/// A database with every migration applied and no rows; with `ATTESTO_TEST_CITUS_URL`, one that Citus distributes.
pub(crate) async fn fresh_database() -> Fresh {
    static TEMPLATE_IS_THERE: OnceCell<()> = OnceCell::const_new();
    if let Some(coordinator) = citus::coordinator() {
        return open(citus::create_distributed(&coordinator, next_number()).await);
    }
    TEMPLATE_IS_THERE
        .get_or_init(async || {
            create(TEMPLATE, "template0").await;
            let mut connection = connect(TEMPLATE).await;
            MIGRATOR
                .run(&mut connection)
                .await
                .expect("the migrations apply to an empty database");
            // A database can be used as a template only while no session is connected to it.
            connection.close().await.expect("the connection closes");
        })
        .await;
    create_next(TEMPLATE).await
}

/// A database without tables.
pub(crate) async fn empty_database() -> Fresh {
    create_next("template0").await
}

impl Fresh {
    /// Another database with the same content. No session may be connected to this one.
    pub(crate) async fn copy(&self) -> Fresh {
        let name = self.url.trim_start_matches("postgres:///");
        let name = name.split('?').next().expect("a text has a beginning");
        create_next(name).await
    }

    /// A tenant without credentials.
    pub(crate) async fn create_tenant(&self) -> TenantId {
        let (name, now) = ("Acme".parse().expect("a name"), Timestamp::from_millis(0));
        let tenant = tenants::store::create_tenant(&self.database, &name, now).await;
        tenant.expect("a tenant").id
    }

    /// A shell with this database and nothing else.
    pub(crate) fn shell(&self) -> Shell {
        Shell::default().set("DATABASE_URL", &self.url)
    }
}

/// A transaction that Postgres does not end while the test lets it wait.
pub(crate) async fn begin_without_idle_timeout(database: &Database) -> DbTransaction {
    let begun = database
        .pool()
        .begin_with("set local idle_in_transaction_session_timeout = 0");
    begun.await.unwrap()
}

/// Moves a test's time: its clock, and the time that SQL statements in its database use.
pub(crate) async fn pass_time(database: &Database, clock: &Clock, by: Duration) {
    clock.advance(by);
    let ahead = "select extract(epoch from attesto_now() - statement_timestamp())::float8";
    let ahead: f64 = sqlx::query_scalar(ahead)
        .fetch_one(database.pool())
        .await
        .expect("the migrations made the function");
    set_time_ahead(database, Duration::from_secs_f64(ahead) + by).await;
}

/// Sets the time that SQL statements in a test's database use, as a distance from the machine's
/// time. Prepared statements are planned anew, because Postgres tracks the inlined function.
pub(crate) async fn set_time_ahead(database: &Database, by: Duration) {
    let statement = format!(
        "create or replace function attesto_now() returns timestamptz language sql stable parallel safe \
             as $$ select statement_timestamp() + interval '{} seconds' $$",
        by.as_secs_f64()
    );
    sqlx::query(sqlx::AssertSqlSafe(statement))
        .execute(database.pool())
        .await
        .expect("a test owns its database");
}

/// From now on the time that SQL statements in a test's database use stands, until it is moved.
pub(crate) async fn take_over_database_time(database: &Database) {
    let statement = "create table world_time (now timestamptz not null);
        insert into world_time values (now());
        create or replace function attesto_now() returns timestamptz language sql stable parallel safe
            as $$ select now from world_time $$";
    let taken = database.pool().execute(statement).await;
    taken.expect("a test owns its database");
}

/// The times that rows get by default are those of a time that was taken over, too.
pub(crate) async fn take_over_default_times(database: &Database) {
    let statement = "do $$ declare plain record; begin
            for plain in select table_name, column_name from information_schema.columns
                where table_schema = current_schema() and column_default = 'now()'
            loop
                execute format('alter table %I alter column %I set default attesto_now()', plain.table_name, plain.column_name);
            end loop;
        end $$";
    let taken = database.pool().execute(statement).await;
    taken.expect("a test owns its database");
}

/// Moves a time that was taken over. What asks for it meanwhile waits, and `moved` is called before it is answered.
pub(crate) async fn move_database_time(database: &Database, to: Timestamp, moved: impl FnOnce()) {
    // It may have been started just now.
    let begin = async || database.pool().begin().await.ok();
    let mut transaction = wait_for("the database answers", begin).await;
    sqlx::query("lock table world_time in access exclusive mode")
        .execute(&mut *transaction)
        .await
        .expect("a lock");
    sqlx::query("update world_time set now = $1")
        .bind(OffsetDateTime::from(to))
        .execute(&mut *transaction)
        .await
        .expect("one row");
    moved();
    transaction.commit().await.expect("the database answers");
}

async fn create_next(template: &str) -> Fresh {
    let name = format!("test_{}", next_number());
    create(&name, template).await;
    open(url(&name))
}

fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn open(url: String) -> Fresh {
    let settings = ConnectSettings::from_url(&url).expect("our own URL is well formed");
    let database = Database::open(&settings);
    Fresh {
        url,
        direct: None,
        settings,
        database,
    }
}

async fn create(name: &str, template: &str) {
    let mut connection = connect("postgres").await;
    // The other way, by the log, writes every page twice. Before Postgres 15 there was no other.
    let strategy = match connection.server_version_num() {
        Some(150_000..) => "strategy file_copy",
        _ => "",
    };
    // Both names are ours.
    let statement = format!("create database {name} template {template} {strategy}");
    connection
        .execute(sqlx::AssertSqlSafe(statement))
        .await
        .expect("a database can be created");
    connection.close().await.expect("the connection closes");
}

async fn connect(database: &str) -> PgConnection {
    PgConnection::connect(&url(database))
        .await
        .expect("the throw-away Postgres answers")
}

/// The folder of the server's socket.
pub(crate) fn cluster() -> &'static Path {
    &Cluster::get().folder
}

/// With a small pool: every test has at least one, and they share one server.
fn url(database: &str) -> String {
    let folder = Cluster::get().folder.display();
    format!("postgres:///{database}?host={folder}&user=attesto&sslmode=disable&max=5")
}

/// The temporary Postgres of this run.
struct Cluster {
    folder: PathBuf,
    /// Locked as long as this process runs.
    _lock: File,
    /// It runs until our end of its pipe closes.
    _keeper: Child,
}

impl Cluster {
    fn get() -> &'static Self {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        CLUSTER.get_or_init(Self::start)
    }

    fn start() -> Self {
        sweep();
        let variable = |name| read_env_var(name).filter(|value| !value.is_empty());
        let named = variable("ATTESTO_PG_BIN").map(PathBuf::from);
        let binaries = PostgresBinaries::find_all(named.as_deref(), variable("PATH").as_deref())
            .unwrap_or_else(|problem| panic!("{problem}"))
            .swap_remove(0);
        let user = variable("ATTESTO_PG_USER").map(|name| name.to_string_lossy().into_owned());
        let account = SystemAccount::choose_for_postgres(user.as_deref())
            .unwrap_or_else(|problem| panic!("{problem}"));

        let folder = PathBuf::from(format!("{}/{PREFIX}{}", data_root(), std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .expect("a temporary folder can be made");
        let lock = File::create(folder.join("lock")).expect("a lock can be made");
        lock.try_lock().expect("nobody else has this lock");
        if let Some(account) = &account {
            chown(&folder, Some(account.uid), Some(account.gid)).expect("root can give it away");
        }

        let run = |command: &mut Command| {
            command
                .env_clear()
                .env("LC_ALL", "C")
                .env("PATH", "/usr/bin:/bin")
                .current_dir("/")
                // Ctrl-C must not reach them: the keeper notices our end and cleans up.
                .process_group(0);
            if let Some(account) = &account {
                command.uid(account.uid).gid(account.gid);
            }
        };
        let mut initdb = Command::new(binaries.program_path("initdb"));
        initdb
            .arg("-D")
            .arg(folder.join("pg"))
            .args(["-U", "attesto", "-E", "UTF8", "--locale=C", "--no-sync"])
            .args(["--auth-local=trust", "--auth-host=reject"])
            .stdin(Stdio::null());
        run(&mut initdb);
        let made = initdb.output().expect("initdb runs");
        assert!(
            made.status.success(),
            "initdb failed: {}",
            String::from_utf8_lossy(&made.stderr)
        );

        let mut keeper = Command::new("/bin/sh");
        keeper
            .args(["-c", KEEPER, "keeper"])
            .arg(&folder)
            .arg(binaries.program_path("postgres"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        run(&mut keeper);
        let keeper = keeper.spawn().expect("a shell runs");

        let cluster = Self {
            folder,
            _lock: lock,
            _keeper: keeper,
        };
        cluster.wait();
        cluster
    }

    /// Waits until it accepts connections: its pid file says so, and reading it costs less than a
    /// failed connection.
    fn wait(&self) {
        let note = self.folder.join("pg/postmaster.pid");
        wait_until_blocking("the temporary Postgres accepts connections", || {
            std::fs::read_to_string(&note).is_ok_and(|note| note.contains("\nready"))
        });
    }
}

/// `$1` is the folder, `$2` the program. `read` returns when the pipe closes, and then a Postgres
/// that died is noticed too. The folder's content is removed first: in a sticky /tmp owned by root,
/// only root may remove the folder itself.
const KEEPER: &str = r#"
"$2" -D "$1/pg" -c listen_addresses= -c port=5432 -c "unix_socket_directories=$1" \
    -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=300 -c shared_buffers=64MB \
    -c wal_level=minimal -c max_wal_senders=0 -c jit=off -c huge_pages=off -c timezone=UTC \
    </dev/null >"$1/log" 2>&1 &
read -r _
kill -QUIT $!
wait $!
rm -rf "$1"
"#;

/// Where the cluster's folder is made. A socket's path must be short, and the user who runs Postgres must have access to it.
///
/// In memory if there is plenty of it: each test copies a database of 300 files, which costs a disk's file system ten times
/// the processor time.
fn data_root() -> &'static str {
    let room = rustix::fs::statvfs(MEMORY_ROOT).map_or(0, |found| found.f_bavail * found.f_frsize);
    if room.min(available_memory()) >= MEMORY_FOR_ALL_DATABASES {
        MEMORY_ROOT
    } else {
        DISK_ROOT
    }
}

/// In bytes; 0 if the system does not say.
fn available_memory() -> u64 {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = told
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Removes the folders of earlier runs whose keeper was killed too.
fn sweep() {
    let ours = rustix::process::geteuid();
    let roots = [DISK_ROOT, MEMORY_ROOT].map(std::fs::read_dir);
    for entry in roots.into_iter().flatten().flatten().flatten() {
        let folder = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Folders of other users are left alone. Root's folders belong to the user who runs
        // Postgres.
        let owned = entry
            .metadata()
            .is_ok_and(|data| data.is_dir() && data.uid() == ours.as_raw());
        let abandoned = File::open(folder.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
        if (owned || ours.is_root()) && abandoned {
            stop_postgres(&folder);
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
}

fn stop_postgres(folder: &Path) {
    let note = std::fs::read_to_string(folder.join("pg/postmaster.pid")).unwrap_or_default();
    let pid = note
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok());
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return;
    };
    let is_running = || {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(&*folder.to_string_lossy())
    };
    if is_running() {
        let _ = kill_process(pid, Signal::QUIT);
        wait_until_blocking("Postgres has ended", || !is_running());
    }
}
