//! A private Postgres that can be crashed and restarted.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use attesto::config::read_env_var;
use attesto::embedded_postgres::binaries::PostgresBinaries;
use attesto::embedded_postgres::system_account::SystemAccount;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

/// The server stops and its folder is removed when this is dropped.
pub(crate) struct Postgres {
    folder: PathBuf,
    binaries: PostgresBinaries,
    account: Option<SystemAccount>,
    server: Option<Child>,
    options: Options,
    /// Whether its data is on a small volume of its own.
    on_volume: bool,
}

/// How the server is run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The password that clients must send; without one every client is trusted.
    pub(crate) password: Option<String>,
    /// Settings of the server, such as `log_statement=all`.
    pub(crate) settings: Vec<String>,
    /// Whether its data is on its own volume, small enough to be filled. Only root can mount one.
    pub(crate) on_volume: bool,
}

impl Options {
    pub(crate) fn on_volume(self, on_volume: bool) -> Self {
        Self { on_volume, ..self }
    }
}

impl Postgres {
    pub(crate) fn start_with(options: Options) -> Self {
        let mut postgres = Self::create(options);
        postgres.initialize();
        postgres.resume();
        postgres
    }

    /// A streaming standby of this server, which takes what was written so far with it.
    pub(crate) fn start_standby(&self) -> Self {
        let mut standby = Self::create(self.options.clone());
        let from = format!("host={} user=attesto", self.folder.display());
        let copied = standby
            .program("pg_basebackup")
            .arg("-D")
            .arg(standby.folder.join("pg"))
            .args(["-d", &from, "-R", "-X", "stream", "-c", "fast", "--no-sync"])
            .output()
            .expect("pg_basebackup runs");
        assert!(
            copied.status.success(),
            "pg_basebackup failed: {}",
            String::from_utf8_lossy(&copied.stderr)
        );
        standby.resume();
        standby
    }

    /// Without data, and not running.
    fn create(options: Options) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let variable = |name| read_env_var(name).filter(|value| !value.is_empty());
        let named = variable("ATTESTO_PG_BIN").map(PathBuf::from);
        let binaries = PostgresBinaries::find_all(named.as_deref(), variable("PATH").as_deref())
            .unwrap_or_else(|problem| panic!("{problem}"))
            .swap_remove(0);
        let user = variable("ATTESTO_PG_USER").map(|name| name.to_string_lossy().into_owned());
        let account = SystemAccount::choose_for_postgres(user.as_deref())
            .unwrap_or_else(|problem| panic!("{problem}"));
        // The path of a socket must be short.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(format!(
            "/tmp/attesto-chaos-{}-{number}",
            std::process::id()
        ));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .expect("a temporary folder can be made");
        if let Some(account) = &account {
            chown(&folder, Some(account.uid), Some(account.gid)).expect("root can give it away");
        }
        let mut postgres = Self {
            folder,
            binaries,
            account,
            server: None,
            options,
            on_volume: false,
        };
        postgres.on_volume = postgres.options.on_volume && postgres.mount();
        postgres
    }

    fn initialize(&mut self) {
        let mut initdb = self.program("initdb");
        initdb
            .arg("-D")
            .arg(self.folder.join("pg"))
            .args(["-U", "attesto", "-E", "UTF8", "--locale=C", "--no-sync"])
            .arg("--auth-host=reject");
        match &self.options.password {
            None => initdb.arg("--auth-local=trust"),
            Some(password) => {
                let file = self.folder.join("password");
                fs::write(&file, password).expect("a file can be written");
                if let Some(account) = &self.account {
                    chown(&file, Some(account.uid), Some(account.gid))
                        .expect("root can give it away");
                }
                initdb
                    // Plain passwords over a Unix socket: SCRAM is slow in an unoptimized build.
                    .arg("--auth-local=password")
                    .arg("--pwfile")
                    .arg(file)
            }
        };
        let made = initdb.output().expect("initdb runs");
        assert!(
            made.status.success(),
            "initdb failed: {}",
            String::from_utf8_lossy(&made.stderr)
        );
    }

    /// Runs a statement in a session of its own, beside the service's.
    pub(crate) async fn execute(&self, statement: &str) {
        let mut connection = self.connect().await;
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        connection.execute(statement).await.expect("the owner may");
        let _ = connection.close().await;
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url())
            .await
            .expect("the server answers")
    }

    /// Sets a parameter of the server, or removes it, and waits until its sessions know.
    pub(crate) async fn set_parameter(&self, name: &str, value: Option<&str>) {
        let change = match value {
            Some(value) => format!("alter system set {name} = '{value}'"),
            None => format!("alter system reset {name}"),
        };
        // A server that may not write changes its settings all the same.
        self.execute(&change).await;
        self.execute("select pg_reload_conf()").await;
    }

    /// Stops the postmaster and all its processes where they are, as if their machine were gone: connections stay open, and no
    /// answer comes.
    pub(crate) fn freeze(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) {
        self.signal_all(Signal::CONT);
    }

    fn signal_all(&self, signal: Signal) {
        let Some(postmaster) = self.server.as_ref().map(Pid::from_child) else {
            return;
        };
        // First, so that it starts no others.
        let _ = kill_process(postmaster, signal);
        for process in fs::read_dir("/proc").expect("this is Linux").flatten() {
            let Some(pid) = process
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            let is_child = parent
                .is_some_and(|parent| parent.trim() == postmaster.as_raw_nonzero().to_string());
            if let (true, Some(pid)) = (is_child, Pid::from_raw(pid)) {
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Mounts a volume in memory for the data.
    fn mount(&self) -> bool {
        let folder = self.folder.join("pg");
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .expect("it is in our own folder");
        let owner = self.account.as_ref();
        let owner = owner.map_or(String::new(), |it| {
            format!(",uid={},gid={}", it.uid, it.gid)
        });
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size=256m,mode=0700{owner}")])
            .arg("attesto-chaos")
            .arg(&folder)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|mounted| mounted.success())
    }

    /// Fills the volume completely. `false` if there is no volume; then nothing happens.
    pub(crate) fn fill(&self) -> bool {
        use std::io::Write as _;

        if !self.on_volume {
            return false;
        }
        let mut ballast = File::create(self.ballast()).expect("a file can be made");
        while ballast.write_all(&[0; 8192]).is_ok() {}
        true
    }

    /// Removes the file written by [`Self::fill`], and restarts the server if it stopped.
    pub(crate) fn empty(&mut self) {
        let _ = fs::remove_file(self.ballast());
        let server = self.server.as_mut();
        if server.is_some_and(|server| server.try_wait().is_ok_and(|ended| ended.is_some())) {
            self.resume();
        }
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("pg/ballast")
    }

    fn program(&self, name: &str) -> Command {
        let mut path = self.binaries.program_path(name);
        if !path.exists() {
            // Only some may be linked to where the first of them was found.
            let server = fs::canonicalize(self.binaries.program_path("postgres"));
            path = server.expect("it is there").with_file_name(name);
        }
        let mut command = Command::new(path);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/bin:/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .process_group(0);
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// The folder of the server, removed together with it.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The URL of the database.
    pub(crate) fn url(&self) -> String {
        let password = self.options.password.as_ref();
        let password =
            password.map_or_else(String::new, |password| format!("&password={password}"));
        format!(
            "postgres:///postgres?host={}&user=attesto&sslmode=disable{password}",
            self.folder.display()
        )
    }

    /// The server's log so far.
    pub(crate) fn log(&self) -> Vec<u8> {
        fs::read(self.folder.join("log")).expect("it has a log")
    }

    /// Ends it as a crash would: at once, without a shutdown.
    pub(crate) fn crash(&mut self) {
        self.thaw();
        if let Some(mut server) = self.server.take() {
            let _ = kill_process(Pid::from_child(&server), Signal::QUIT);
            let _ = server.wait();
        }
    }

    /// Starts it, and waits until it accepts connections.
    pub(crate) fn resume(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .expect("a file can be written");
        let mut command = self.program("postgres");
        for setting in &self.options.settings {
            command.arg("-c").arg(setting);
        }
        command
            .arg("-D")
            .arg(self.folder.join("pg"))
            .args(["-c", "listen_addresses=", "-c", "max_connections=200"])
            .args(["-c", "max_wal_size=64MB", "-c", "min_wal_size=32MB"])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", self.folder.display()))
            .stdout(Stdio::null())
            .stderr(log);
        self.server = Some(command.spawn().expect("postgres runs"));
        let begun = Instant::now();
        let note = self.folder.join("pg/postmaster.pid");
        while !fs::read_to_string(&note).is_ok_and(|note| note.contains("\nready")) {
            assert!(
                begun.elapsed() < Duration::from_mins(1),
                "Postgres does not start"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
        if self.on_volume {
            let _ = Command::new("umount").arg(self.folder.join("pg")).status();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}
