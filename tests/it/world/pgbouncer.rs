//! A real `PgBouncer` in transaction mode in front of the test Postgres, with far fewer server
//! sessions than clients.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use attesto::config::read_env_var;
use attesto::db::{ConnectSettings, Database};
use attesto::embedded_postgres::system_account::SystemAccount;

use super::folder::Folder;
use super::postgres::{Fresh, cluster};
use super::wait::wait_until_blocking;

/// How many server sessions it uses for one database.
pub(crate) const SESSIONS: usize = 3;

/// It stops when dropped, and when this process ends.
pub(crate) struct Pooler {
    folder: Folder,
    /// A shell that stops it when our end of a pipe closes, as for Postgres.
    keeper: Child,
}

/// `$1` is the program, `$2` its configuration.
const KEEPER: &str = r#"
"$1" -q "$2" </dev/null >/dev/null 2>&1 &
read -r _
kill -INT $!
wait $!
"#;

impl Pooler {
    pub(crate) fn start() -> Self {
        let program = program();
        let named = read_env_var("ATTESTO_PG_USER").map(|name| name.to_string_lossy().into_owned());
        let account =
            SystemAccount::choose_for_postgres(named.as_deref().filter(|name| !name.is_empty()))
                .unwrap_or_else(|problem| panic!("{problem}"));
        let folder = Folder::new();
        let own = |path: &Path| {
            if let Some(account) = &account {
                chown(path, Some(account.uid), Some(account.gid)).expect("root can give it away");
            }
        };
        own(&folder);
        let place = folder.display();
        let users = folder.join("users");
        std::fs::write(&users, "\"attesto\" \"\"\n").expect("a file can be written");
        let settings = folder.join("pgbouncer.ini");
        // No setting is more favourable to Attesto than the defaults of the package.
        let text = format!(
            "[databases]\n* = host={server} port=5432 user=attesto\n\n\
             [pgbouncer]\nlisten_addr =\nlisten_port = 6432\nunix_socket_dir = {place}\n\
             auth_type = trust\nauth_file = {place}/users\nlogfile = {place}/log\n\
             pool_mode = transaction\ndefault_pool_size = {SESSIONS}\nmax_client_conn = 200\n",
            server = cluster().display()
        );
        std::fs::write(&settings, text).expect("a file can be written");
        own(&users);
        own(&settings);

        let mut keeper = Command::new("/bin/sh");
        keeper
            .args(["-c", KEEPER, "keeper"])
            .args([&program, &settings])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        if let Some(account) = &account {
            keeper.uid(account.uid).gid(account.gid);
        }
        let keeper = keeper.spawn().expect("a shell runs");
        let pooler = Self { folder, keeper };
        pooler.wait();
        pooler
    }

    /// The same database through the pooler, with the direct URL for features that need a session.
    pub(crate) fn before(&self, fresh: &Fresh) -> Fresh {
        let url = self.url(fresh);
        let pooled = ConnectSettings::from_url(&url).expect("our own URL is well formed");
        let settings = pooled.with_direct(fresh.settings.clone());
        Fresh {
            url,
            direct: Some(fresh.url.clone()),
            database: Database::open(&settings),
            settings,
        }
    }

    /// The URL of a database through the pooler.
    pub(crate) fn url(&self, fresh: &Fresh) -> String {
        let name = fresh.database.database_name();
        let place = self.folder.display();
        // More clients than server sessions.
        format!("postgres:///{name}?host={place}&port=6432&user=attesto&sslmode=disable&max=12")
    }

    fn wait(&self) {
        let socket = self.folder.join(".s.PGSQL.6432");
        wait_until_blocking("PgBouncer listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn program() -> PathBuf {
    let path = read_env_var("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("pgbouncer"));
    on_path
        .chain(["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(PathBuf::from))
        .find(|program| program.is_file())
        .expect(
            "PgBouncer is not installed, and a test runs a real one: `bin/test` installs it, or \
             `sudo apt-get install pgbouncer`",
        )
}
