//! The embedded Postgres: start, stop, adoption, sharing and refusal.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use attesto::config::read_env_var;
use attesto::db::{ConnectSettings, Database};
use attesto::embedded_postgres::{EmbeddedError, EmbeddedOptions, EmbeddedPostgres};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sqlx::Executor as _;

use crate::world::folder::Folder;
use crate::world::wait::wait_until;

fn options(folder: &Path) -> EmbeddedOptions {
    EmbeddedOptions {
        data_dir: Some(folder.to_owned()),
        ..EmbeddedOptions::from_env(read_env_var)
    }
}

async fn start(folder: &Path) -> EmbeddedPostgres {
    EmbeddedPostgres::start(options(folder))
        .await
        .unwrap_or_else(|problem| panic!("{problem}"))
}

async fn attach(folder: &Path) -> EmbeddedPostgres {
    EmbeddedPostgres::attach(options(folder))
        .await
        .unwrap_or_else(|problem| panic!("{problem}"))
}

async fn refusal(options: EmbeddedOptions) -> EmbeddedError {
    EmbeddedPostgres::start(options)
        .await
        .expect_err("it must be refused")
}

async fn ask(embedded: &EmbeddedPostgres, question: &'static str) -> String {
    let database = Database::open(&embedded.connect_settings());
    let answer = sqlx::query_scalar(question)
        .fetch_one(database.pool())
        .await
        .expect("it answers");
    database.close_connections().await;
    answer
}

async fn tell(embedded: &EmbeddedPostgres, statement: &'static str) {
    let database = Database::open(&embedded.connect_settings());
    database
        .pool()
        .execute(statement)
        .await
        .expect("it takes a statement");
    database.close_connections().await;
}

/// The process id of the server on this folder, if there is one.
fn server(folder: &Path) -> Option<Pid> {
    let note = std::fs::read_to_string(folder.join("pg/postmaster.pid")).ok()?;
    let pid = Pid::from_raw(note.lines().next()?.trim().parse().ok()?)?;
    test_kill_process(pid).ok().map(|()| pid)
}

/// A separate process that runs a private Postgres until it is killed.
struct OtherProcess(std::process::Child);

impl OtherProcess {
    fn keeping(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("we run from a file"))
            .args(["--exact", "embedded::child_process_that_runs_a_postgres"])
            .args(["--ignored", "--nocapture"])
            .env("ATTESTO_TEST_FOLDER", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("we can run ourselves");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let said = lines
            .map_while(Result::ok)
            .any(|line| line.contains("it answers"));
        assert!(said, "the other process has a Postgres");
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn kill(mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it was our child");
    }
}

#[tokio::test]
#[ignore = "only as the other process of other tests"]
async fn child_process_that_runs_a_postgres() {
    let Some(folder) = read_env_var("ATTESTO_TEST_FOLDER") else {
        return;
    };
    let _embedded = start(Path::new(&folder)).await;
    println!("it answers");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn it_starts_in_an_empty_folder_stops_and_keeps_its_data() {
    let folder = Folder::new();
    let embedded = start(&folder).await;
    for (setting, value) in [
        ("select current_setting('fsync')", "on"),
        ("select current_setting('full_page_writes')", "on"),
        ("select current_setting('synchronous_commit')", "on"),
        ("select current_setting('data_checksums')", "on"),
        ("select current_setting('listen_addresses')", ""),
        ("select current_setting('server_encoding')", "UTF8"),
        ("select current_user::text", "attesto"),
    ] {
        assert_eq!(ask(&embedded, setting).await, value, "{setting}");
    }
    for (private, mode) in [("pg", 0o700), ("run", 0o700), ("postgres.log", 0o600)] {
        let found = folder
            .join(private)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(found & 0o777, mode, "{private}");
    }
    tell(
        &embedded,
        "create table kept as select 'here'::text as word",
    )
    .await;

    // The URL works in this process and in others.
    let url = Database::open(&ConnectSettings::from_url(&embedded.connection_url()).unwrap());
    let word: String = sqlx::query_scalar("select word from kept")
        .fetch_one(url.pool())
        .await
        .unwrap();
    assert_eq!(word, "here");

    // A client that is still connected does not prevent the stop.
    embedded.stop().await;
    assert_eq!(server(&folder), None);

    let embedded = start(&folder).await;
    assert_eq!(ask(&embedded, "select word from kept").await, "here");
    embedded.stop().await;
    assert_eq!(server(&folder), None);
}

#[tokio::test]
async fn a_second_server_is_refused_and_a_command_shares_the_postgres() {
    let folder = Folder::new();
    let other = OtherProcess::keeping(&folder);
    let problem = refusal(options(&folder)).await;
    assert!(
        matches!(&problem, EmbeddedError::InUse { pid, .. } if *pid == Some(other.pid())),
        "{problem}"
    );
    assert!(problem.to_string().contains(&other.pid().to_string()));

    let guest = attach(&folder).await;
    assert!(!guest.is_owner());
    tell(&guest, "select 1").await;
    guest.stop().await;
    assert!(server(&folder).is_some(), "a guest leaves it running");
    other.kill();
}

#[tokio::test]
async fn a_command_starts_postgres_and_its_stop_waits_for_other_users() {
    let folder = Folder::new();
    let first = attach(&folder).await;
    let second = attach(&folder).await;
    assert_eq!((first.is_owner(), second.is_owner()), (true, false));

    let stopping = tokio::spawn(first.stop());
    tell(&second, "select 1").await;
    assert!(!stopping.is_finished(), "the second still needs it");
    // A server waits for commands, too.
    let path = folder.to_owned();
    let service = tokio::spawn(async move { start(&path).await });
    second.stop().await;
    stopping.await.unwrap();

    let service = service.await.unwrap();
    assert!(service.is_owner());
    tell(&service, "select 1").await;
    service.stop().await;
    assert_eq!(server(&folder), None);
}

#[tokio::test]
async fn the_postgres_of_a_killed_process_is_adopted() {
    let folder = Folder::new();
    let other = OtherProcess::keeping(&folder);
    let before = server(&folder);
    other.kill();
    assert_eq!(server(&folder), before, "it outlives its owner");

    let adopted = start(&folder).await;
    assert_eq!(server(&folder), before, "it is the same process");
    tell(&adopted, "create table kept ()").await;
    adopted.stop().await;
    assert_eq!(server(&folder), None);
}

#[tokio::test]
async fn a_killed_postgres_comes_back_with_everything_committed() {
    let folder = Folder::new();
    let embedded = start(&folder).await;
    tell(
        &embedded,
        "create table kept as select 'here'::text as word",
    )
    .await;
    let before = server(&folder).unwrap();
    kill_process(before, Signal::KILL).unwrap();

    let is_back = || server(&folder).is_some_and(|pid| pid != before);
    wait_until("it is started again", async || is_back()).await;
    let settings = embedded.connect_settings();
    let back = Database::open(&settings);
    wait_until("Postgres answers again", async || {
        back.ping(Duration::from_secs(1)).await.is_ok()
    })
    .await;
    assert_eq!(ask(&embedded, "select word from kept").await, "here");
    embedded.stop().await;
}

#[tokio::test]
async fn a_stale_pid_file_is_ignored() {
    let folder = Folder::new();
    start(&folder).await.stop().await;
    // After a power failure: the pid file remains, and its process id belongs to another program of
    // the same user.
    let data = folder.join("pg");
    let owner = data.metadata().unwrap();
    let mut stranger = Command::new("sleep");
    stranger.arg("100").process_group(0);
    if rustix::process::geteuid().is_root() {
        stranger.uid(owner.uid()).gid(owner.gid());
    }
    let mut stranger = stranger.spawn().unwrap();
    let note = data.join("postmaster.pid");
    let text = format!("{}\n{}\n1\n5432\n", stranger.id(), data.display());
    std::fs::write(&note, text).unwrap();
    std::os::unix::fs::chown(&note, Some(owner.uid()), Some(owner.gid())).unwrap();

    let embedded = start(&folder).await;
    tell(&embedded, "select 1").await;
    embedded.stop().await;
    let unharmed = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(unharmed, "the stranger is left alone");
}

#[tokio::test]
async fn a_partial_cluster_of_an_interrupted_first_run_is_recreated() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.join("pg.init/base")).unwrap();
    std::fs::write(folder.join("pg.init/PG_VERSION"), "15\n").unwrap();
    let embedded = start(&folder).await;
    tell(&embedded, "select 1").await;
    embedded.stop().await;
    assert!(!folder.join("pg.init").exists());
}

#[tokio::test]
async fn dropping_it_stops_postgres() {
    let folder = Folder::new();
    drop(start(&folder).await);
    wait_until("it has ended", async || server(&folder).is_none()).await;
}

#[tokio::test]
async fn a_long_path_puts_the_socket_elsewhere() {
    let folder = Folder::new();
    let deep = folder.join("d".repeat(120));
    let embedded = start(&deep).await;
    assert!(
        embedded.connection_url().contains("host=/tmp/attesto-"),
        "{}",
        embedded.connection_url()
    );
    tell(&embedded, "select 1").await;
    embedded.stop().await;
    // The fallback path is always the same, and belongs to us.
    let again = start(&deep).await;
    let url = again.connection_url();
    again.stop().await;
    let (_, socket) = url.split_once("host=").unwrap();
    let (socket, _) = socket.split_once('&').unwrap();
    std::fs::remove_dir_all(socket).unwrap();
}

#[tokio::test]
async fn every_start_error_has_its_message() {
    let folder = Folder::new();
    let at = |name: &str| options(&folder.join(name));
    let fake = |name: &str, postgres: &str| {
        let bin = folder.join(name);
        std::fs::create_dir_all(&bin).unwrap();
        let initdb = "#!/bin/sh\necho 15 >\"$2/PG_VERSION\"\n";
        let postgres = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo 'postgres (PostgreSQL) {postgres}\n"
        );
        for (program, text) in [("initdb", initdb), ("postgres", &postgres)] {
            let path = bin.join(program);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::set_permissions(&bin, std::fs::Permissions::from_mode(0o755)).unwrap();
        Some(bin)
    };

    let nowhere = EmbeddedOptions {
        pg_bin: Some("/nowhere".into()),
        ..at("a")
    };
    expect(nowhere, "ATTESTO_PG_BIN names /nowhere").await;

    let ancient = EmbeddedOptions {
        pg_bin: fake("ancient", "9.6.24'"),
        ..at("b")
    };
    expect(ancient, "too old: Attesto needs 14 or newer").await;

    let broken = EmbeddedOptions {
        pg_bin: fake(
            "broken",
            "15.1' && exit\necho one\necho FATAL: no good >&2\nexit 3",
        ),
        ..at("c")
    };
    expect(broken, "FATAL: no good").await;

    let other_major = fake("newer", "16.1'");
    std::fs::create_dir_all(folder.join("c/pg")).unwrap();
    let other = EmbeddedOptions {
        pg_bin: other_major,
        ..at("c")
    };
    expect(
        other,
        "written by Postgres 15, and only Postgres 16 is installed",
    )
    .await;

    let nobody_knows = EmbeddedOptions {
        search_path: None,
        pg_bin: None,
        home: None,
        state_home: None,
        data_dir: None,
        ..at("d")
    };
    if rustix::process::geteuid().is_root() {
        let unknown = EmbeddedOptions {
            user: Some("no-such-user".into()),
            ..at("e")
        };
        expect(unknown, "no such user").await;
        let root = EmbeddedOptions {
            user: Some("root".into()),
            ..at("f")
        };
        expect(root, "refuses to run as root").await;

        let hidden = folder.join("hidden");
        std::fs::create_dir_all(&hidden).unwrap();
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o700)).unwrap();
        let text = format!("may not enter {}", hidden.display());
        expect(at("hidden/data"), &text).await;

        std::fs::create_dir_all(folder.join("g/pg")).unwrap();
        expect(at("g"), "belongs to the user with id 0").await;
    } else {
        expect(nobody_knows, "set ATTESTO_DATA_DIR").await;
        std::fs::create_dir_all(folder.join("g/pg")).unwrap();
        expect(at("g"), "not a Postgres data folder").await;
    }
}

async fn expect(options: EmbeddedOptions, sentence: &str) {
    let problem = refusal(options).await.to_string();
    assert!(problem.contains(sentence), "{problem}");
}
