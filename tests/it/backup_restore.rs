//! Backups: created, verified, restored.

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::delivery_hold::{dispatcher_on, events, set_callback};
use crate::world::attesto::World;
use crate::world::folder::Folder;
use crate::world::postgres::{Fresh, empty_database};
use crate::world::receiver::Receiver;
use crate::world::shell::{Ran, Shell};
use crate::world::wait::wait_until;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An installation with data, and a folder for its backups.
struct Place {
    world: World,
    folder: Folder,
    shell: Shell,
}

impl Place {
    async fn new() -> Self {
        let world = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
        let shell = world.shell().set("PATH", "/usr/bin:/bin");
        Self {
            world,
            folder: Folder::new(),
            shell,
        }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn create(&self, name: &str) -> Value {
        let file = self.file(name);
        self.shell
            .rows(&["backup", "create", "--file", &file])
            .remove(0)
    }

    fn verify(&self, shell: &Shell, name: &str) -> Ran {
        shell.run(&["backup", "verify", &self.file(name)])
    }

    /// No temporary database of a verification remains.
    async fn nothing_is_left(&self) {
        let left: Vec<String> = sqlx::query_scalar(
            "select datname::text from pg_database where datname like 'attesto_trial_%'",
        )
        .fetch_all(self.world.database().pool())
        .await
        .unwrap();
        // Another test of this run may be verifying too.
        let ours = left.len() <= 4;
        assert!(ours, "{left:?}");
    }
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(ran.said.lines().next().unwrap()).unwrap()
}

#[tokio::test]
async fn a_backup_is_created_and_verified_and_needs_its_keys() {
    let place = Place::new().await;
    let tenant = place.world.tenant().await;
    let receiver = Receiver::answering(OK).await;
    set_callback(&place.world, &tenant.id, &receiver.url()).await;
    events(&place.world, &tenant.id, &["1", "2", "3"]).await;

    // The key canary distinguishes a wrong key from a damaged value.
    assert_eq!(
        place.world.ask("GET", "/ready", None, None).await.status,
        200
    );
    let manifest = place.create("dump");
    assert_eq!(manifest["keyIds"], json!([1]));
    assert_eq!(manifest["tables"]["public.webhook_events"], 3);
    for name in ["dump", "dump.manifest.json"] {
        let mode = std::fs::metadata(place.file(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert!(!place.folder.join("dump.part").exists());

    let proven = place.verify(&place.shell, "dump");
    assert_eq!(
        (proven.exit, proven.complained.as_str()),
        (0, ""),
        "{}",
        proven.said
    );
    let found = report(&proven);
    assert_eq!(
        (&found["sound"], &found["opened"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(found["id"], manifest["id"]);
    let noted: (String, bool) = sqlx::query_as("select id, sound from backups")
        .fetch_one(place.world.database().pool())
        .await
        .unwrap();
    assert_eq!((json!(noted.0), noted.1), (manifest["id"].clone(), true));

    // An existing file is not overwritten.
    let file = place.file("dump");
    let again = place.shell.run(&["backup", "create", "--file", &file]);
    assert_eq!(again.exit, 1);
    assert!(
        again.complained.contains("exists already"),
        "{}",
        again.complained
    );

    // Without the key, with another key of another id, and with a wrong key of the same id.
    let key = |fill: u8| STANDARD.encode([fill; 32]);
    let without = Shell::default()
        .set("PATH", "/usr/bin:/bin")
        .set("DATABASE_URL", &place.world.fresh.url);
    for shell in [
        without.clone(),
        without
            .clone()
            .set("ATTESTO_ENCRYPTION_KEY", &format!("2:{}", key(8))),
    ] {
        let refused = place.verify(&shell, "dump");
        assert_eq!((refused.exit, refused.said.as_str()), (2, ""));
        assert!(
            refused
                .complained
                .contains("encryption key 1, which is not configured"),
            "{}",
            refused.complained
        );
    }
    let wrong = without.clone().set("ATTESTO_ENCRYPTION_KEY", &key(8));
    let unsound = place.verify(&wrong, "dump");
    assert_eq!(unsound.exit, 1);
    assert!(
        unsound
            .complained
            .contains("encryption key 1 is not the key"),
        "{}",
        unsound.complained
    );
    assert_eq!(report(&unsound)["conclusive"], false);
    // That says nothing about the backup, which was found intact before.
    let noted: bool = sqlx::query_scalar("select sound from backups")
        .fetch_one(place.world.database().pool())
        .await
        .unwrap();
    assert!(noted, "a wrong key does not make it unrestorable");
    let in_rotation = without
        .set("ATTESTO_ENCRYPTION_KEY", &format!("2:{}", key(8)))
        .set("ATTESTO_ENCRYPTION_KEYS_RETIRED", &format!("1:{}", key(7)));
    assert_eq!(place.verify(&in_rotation, "dump").exit, 0);
    place.nothing_is_left().await;
}

#[tokio::test]
async fn a_damaged_backup_fails_verification() {
    let place = Place::new().await;
    place.world.tenant().await;
    place.create("dump");
    let (dump, manifest) = (place.file("dump"), place.file("dump.manifest.json"));
    let (bytes, text) = (
        std::fs::read(&dump).unwrap(),
        std::fs::read_to_string(&manifest).unwrap(),
    );
    let verify = |expected: i32, said: &str| {
        let ran = place.verify(&place.shell, "dump");
        assert_eq!(ran.exit, expected, "{}", ran.complained);
        assert!(ran.complained.contains(said), "{}", ran.complained);
    };
    // Truncated; then with a manifest that matches the truncated file.
    let half = &bytes[..bytes.len() / 2];
    std::fs::write(&dump, half).unwrap();
    verify(1, "not the one that was made");
    let mut lying: Value = serde_json::from_str(&text).unwrap();
    lying["bytes"] = json!(half.len());
    let hex = attesto::crypto::token::sha256(half).map(|byte| format!("{byte:02x}"));
    lying["sha256"] = json!(hex.concat());
    std::fs::write(&manifest, lying.to_string()).unwrap();
    verify(1, "cannot be restored");
    std::fs::write(&dump, &bytes).unwrap();

    // A missing row.
    let mut more: Value = serde_json::from_str(&text).unwrap();
    more["tables"]["public.tenants"] = json!(2);
    std::fs::write(&manifest, more.to_string()).unwrap();
    verify(1, "public.tenants has 1 rows, and had 2");
    std::fs::write(&manifest, "{}").unwrap();
    verify(2, "not the manifest of a backup");
    std::fs::remove_file(&manifest).unwrap();
    verify(2, "dump.manifest.json");
    std::fs::write(&manifest, &text).unwrap();
    verify(0, "");

    // The file may be named with the flag of `backup create`, and must be named.
    let by_flag = ["backup", "verify", "--file", &place.file("dump")];
    assert_eq!(place.shell.run(&by_flag).exit, 0);
    assert_eq!(place.shell.run(&by_flag[..2]).exit, 2);

    // A value that does not open, in a database that was damaged before the backup.
    sqlx::query(
        "update apple_credentials set private_key_enc = '\\x01' || sha256('x') || sha256('y')",
    )
    .execute(place.world.database().pool())
    .await
    .unwrap();
    place.create("damaged");
    let damaged = place.verify(&place.shell, "damaged");
    assert_eq!(damaged.exit, 1);
    assert!(
        damaged
            .complained
            .contains("apple_credentials.private_key_enc of tenant_"),
        "{}",
        damaged.complained
    );
}

#[tokio::test]
async fn a_backup_is_not_sound_if_it_has_sealed_values_and_none_was_opened() {
    let place = Place::new().await;
    place.world.tenant().await;
    // Values that name no key.
    for change in [
        "update apple_credentials set private_key_enc = '\\x00' || sha256('x') || sha256('y')",
        "update google_credentials set service_account_enc = '\\x00' || sha256('x') || sha256('y')",
    ] {
        sqlx::query(change)
            .execute(place.world.database().pool())
            .await
            .unwrap();
    }
    let manifest = place.create("dump");
    assert_eq!(manifest["keyIds"], json!([]));
    let keyless = place.shell.clone().without("ATTESTO_ENCRYPTION_KEY");
    let unsound = place.verify(&keyless, "dump");
    let found = report(&unsound);
    assert_eq!(
        (unsound.exit, &found["sound"], &found["opened"]),
        (1, &json!(false), &json!(0))
    );
    assert!(
        unsound.complained.contains("none of them was opened"),
        "{}",
        unsound.complained
    );
}

#[tokio::test]
async fn missing_programs_are_named() {
    let place = Place::new().await;
    let shell = place.shell.clone().set("ATTESTO_PG_BIN", "/nowhere");
    let file = place.file("dump");
    let refused = shell.run(&["backup", "create", "--file", &file]);
    assert_eq!((refused.exit, refused.said.as_str()), (2, ""));
    assert!(
        refused.complained.contains("`pg_dump` is not installed"),
        "{}",
        refused.complained
    );
    assert!(!place.folder.join("dump").exists() && !place.folder.join("dump.part").exists());
    place.create("dump");
    let refused = place.verify(&shell, "dump");
    assert_eq!(refused.exit, 2);
    assert!(
        refused.complained.contains("`pg_restore`"),
        "{}",
        refused.complained
    );
}

/// After restoring last night's backup, events delivered since then are not sent again until an
/// operator releases them.
#[tokio::test]
async fn a_restored_installation_holds_deliveries_until_released() {
    let place = Place::new().await;
    let world = &place.world;
    let tenant = world.tenant().await;
    let receiver = Receiver::answering(OK).await;
    set_callback(world, &tenant.id, &receiver.url()).await;
    events(world, &tenant.id, &["1", "2", "3"]).await;
    place.create("dump");
    assert_eq!(
        dispatcher_on(world, world.database())
            .run_until_idle()
            .await
            .unwrap(),
        3
    );
    let first: Vec<String> = ids(&receiver);

    let restored: Fresh = empty_database().await;
    let shell = place.shell.clone().set("DATABASE_URL", &restored.url);
    let file = place.file("dump");
    shell.rows(&["backup", "restore", &file]);
    let over = shell.run(&["backup", "restore", &file]);
    assert_eq!(over.exit, 1);
    assert!(
        over.complained.contains("has tables already"),
        "{}",
        over.complained
    );

    let status = shell.rows(&["deliveries", "status"]).remove(0);
    assert_eq!((&status["held"], &status["due"]), (&json!(true), &json!(3)));
    assert_eq!(
        dispatcher_on(world, &restored.database)
            .run_until_idle()
            .await
            .unwrap(),
        0
    );
    let released = shell.rows(&["deliveries", "release"]).remove(0);
    assert_eq!(released["due"], 3);
    assert_eq!(
        dispatcher_on(world, &restored.database)
            .run_until_idle()
            .await
            .unwrap(),
        3
    );
    // The same events have the same ids, so that receivers recognise them.
    let all = ids(&receiver);
    let mut again = all[3..].to_vec();
    again.sort();
    let mut first = first;
    first.sort();
    assert_eq!(again, first);
}

fn ids(receiver: &Receiver) -> Vec<String> {
    let requests = receiver.requests();
    requests
        .iter()
        .map(|request| request.headers["webhook-id"].clone())
        .collect()
}

#[test]
fn the_restore_drill_passes() {
    let drill = concat!(env!("CARGO_MANIFEST_DIR"), "/bin/drill");
    let ran = std::process::Command::new(drill)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("ATTESTO_BIN", env!("CARGO_BIN_EXE_attesto"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("The drill is passed."), "{said}");
}

#[tokio::test]
async fn features_that_need_a_session_bypass_the_pooler() {
    // Two roles distinguish the two URLs: one is the pooler's, the other connects to the server.
    let fresh = crate::world::postgres::fresh_database().await;
    let role = format!("direct_of_{}", fresh.database.database_name());
    let make = format!("create role {role} login superuser");
    sqlx::query(sqlx::AssertSqlSafe(make))
        .execute(fresh.database.pool())
        .await
        .unwrap();
    let direct = fresh.url.replace("user=attesto", &format!("user={role}"));
    let of = |url: &str| attesto::db::ConnectSettings::from_url(url).unwrap();
    let database = attesto::db::Database::open(&of(&fresh.url).with_direct(of(&direct)));
    let changes = attesto::db::change_listener::ChangeListener::new(&database);
    let stop = tokio_util::sync::CancellationToken::new();
    let ear = {
        let (changes, stop) = (changes.clone(), stop.clone());
        tokio::spawn(async move { changes.run_until_stopped(stop).await })
    };
    wait_until("changes are heard", async || changes.is_listening()).await;
    let users: Vec<String> = sqlx::query_scalar(
        "select distinct usename::text from pg_stat_activity
          where datname = current_database() and application_name = 'attesto-changes'",
    )
    .fetch_all(database.pool())
    .await
    .unwrap();
    assert_eq!(users, std::slice::from_ref(&role));
    stop.cancel();
    ear.await.unwrap();

    // As configured by settings, for commands too.
    let shell = Shell::default()
        .set(
            "DATABASE_URL",
            "postgres://nobody@127.0.0.1:1/nowhere?connect_timeout=1",
        )
        .set("DATABASE_DIRECT_URL", &direct);
    let migrated = shell.rows(&["migrate", "--dry-run"]).remove(0);
    assert_eq!(migrated["pending"], json!([]));
    let odd = shell
        .set("DATABASE_DIRECT_URL", "mysql://x")
        .run(&["migrate"]);
    assert_eq!(odd.exit, 2);
    assert!(
        odd.complained
            .contains("DATABASE_DIRECT_URL: must be a URL"),
        "{}",
        odd.complained
    );
    database.close_connections().await;
    sqlx::query(sqlx::AssertSqlSafe(format!("drop role {role}")))
        .execute(fresh.database.pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn migrate_check_reports_what_a_migration_would_do() {
    let empty = empty_database().await;
    let shell = Shell::default().set("DATABASE_URL", &empty.url);
    let checked = shell.rows(&["migrate", "--check"]).remove(0);
    let pending = checked["pending"].as_array().unwrap();
    assert_eq!(pending[0]["version"], 1);
    assert_eq!(pending[0]["tables"][0]["touch"], "creates");
    // There is no release before the first.
    assert!(pending.iter().all(|it| it["previousWorks"].is_null()));
    assert_eq!(
        (&checked["mayMigrate"], &checked["runningReleases"]),
        (&json!(true), &json!([]))
    );
    assert_eq!(shell.run(&["migrate"]).exit, 0);
    sqlx::query(
        "insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids)
         values ('x', 'elsewhere', 1, '0.0.9', now(), now(), 1, '{1}')",
    )
    .execute(empty.database.pool())
    .await
    .unwrap();
    let checked = shell.rows(&["migrate", "--check"]).remove(0);
    assert_eq!(checked["pending"], json!([]));
    assert_eq!(checked["runningReleases"], json!(["0.0.9"]));
    assert_eq!(checked["runningReleasesKeepWorking"], true);

    // A role that may read but not create tables.
    let role = format!("clerk_of_{}", empty.database.database_name());
    for statement in [
        format!("create role {role} login"),
        format!("grant select on all tables in schema public to {role}"),
        // Granted to all roles before Postgres 15.
        "revoke create on schema public from public".to_owned(),
        "delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)"
            .to_owned(),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(empty.database.pool())
            .await
            .unwrap();
    }
    let url = empty.url.replace("user=attesto", &format!("user={role}"));
    let refused = Shell::default()
        .set("DATABASE_URL", &url)
        .run(&["migrate", "--check"]);
    assert_eq!(refused.exit, 1);
    assert!(
        refused.complained.contains("may not create tables"),
        "{}",
        refused.complained
    );
}
