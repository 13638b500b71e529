//! `attesto doctor` on installations with one fault each.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use attesto::credentials::canary;
use attesto::credentials::sealed_columns::APPLE_PRIVATE_KEY;
use attesto::deliveries::endpoint::store::{self as endpoints, EndpointChange};
use attesto::deliveries::endpoint::{ClientCertificate, ClientCertificateChange, SigningSecret};
use attesto::stores::apple::account::EnvironmentChoice;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::tls::{DAY, Made};
use crate::world::attesto::{APP_APPLE_ID, Tenant, World};
use crate::world::folder::Folder;
use crate::world::postgres::{Fresh, empty_database, fresh_database};
use crate::world::shell::Shell;

/// The encryption key of a `World`.
const WORLDS_KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
/// A key with another content.
const OTHER_KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// The key of an operator who left a placeholder in the settings.
const ZERO_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// `bin/check-postgres` also runs these tests on releases of Postgres that get no more fixes.
const OLD_SERVER: &str = "database.version: warn";

/// A healthy installation; a test breaks it.
struct Install {
    world: World,
    tenant: Tenant,
    shell: Shell,
    folder: Folder,
}

/// The doctor's output.
struct Said {
    exit: i32,
    tree: Value,
    complained: String,
}

impl Said {
    /// All findings except `ok`, as `name: status`, without the one about an old server.
    fn findings(&self) -> Vec<String> {
        let mut found = self.all_findings();
        found.retain(|finding| finding != OLD_SERVER);
        found
    }

    fn all_findings(&self) -> Vec<String> {
        fn walk(check: &Value, found: &mut Vec<String>) {
            match check["checks"].as_array() {
                Some(checks) => checks.iter().for_each(|check| walk(check, found)),
                None if check["status"] == "ok" => {}
                None => {
                    let text = |field: &str| check[field].as_str().unwrap().to_owned();
                    if check["status"] != "skipped" {
                        let advice = text("advice");
                        assert!(!advice.is_empty() && !advice.contains('\n'), "{advice}");
                    }
                    found.push(format!("{}: {}", text("name"), text("status")));
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.tree, &mut found);
        // Skipped on request.
        let left_out = ["stores.reachable: skipped", "logs.backups: skipped"];
        found.retain(|finding| !left_out.contains(&finding.as_str()));
        // This depends on the machine.
        found.retain(|finding| !finding.starts_with("database.disk"));
        found
    }

    /// Exactly this finding, and the exit code for its severity.
    fn is_only(&self, name: &str, status: &str, message: &str) {
        let text = self.tree.to_string();
        assert_eq!(self.findings(), [format!("{name}: {status}")], "{text}");
        assert!(text.contains(message), "no {message} in {text}");
        self.ends_as(status);
    }

    fn ends_as(&self, status: &str) {
        let has_old_server = self
            .all_findings()
            .iter()
            .any(|finding| finding == OLD_SERVER);
        let status = if status == "ok" && has_old_server {
            "warn"
        } else {
            status
        };
        let exit = match status {
            "fail" => 2,
            "warn" => 1,
            _ => 0,
        };
        assert_eq!(self.tree["status"], status, "the worst is on top");
        assert_eq!(
            (self.exit, self.complained.as_str()),
            (exit, ""),
            "{}",
            self.tree
        );
    }
}

fn examined(shell: &Shell, words: &[&str]) -> Said {
    let ran = shell.run(&[&["doctor"], words].concat());
    Said {
        exit: ran.exit,
        tree: serde_json::from_str(&ran.said).unwrap_or_else(|_| panic!("{ran:?}")),
        complained: ran.complained,
    }
}

/// The same while the simulated stores answer.
async fn examined_online(shell: &Shell) -> Said {
    let shell = shell.clone();
    let examining = tokio::task::spawn_blocking(move || examined(&shell, &[]));
    examining.await.unwrap()
}

/// A role that owns nothing, as recommended.
async fn clerk(fresh: &Fresh) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let role = format!(
        "clerk_{}_{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    for statement in [
        format!("create role {role} login"),
        format!("grant usage, create on schema public to {role}"),
        format!("grant select, insert, update, delete on all tables in schema public to {role}"),
        format!("grant pg_read_all_stats to {role}"),
    ] {
        // The role name is ours.
        fresh
            .database
            .pool()
            .execute(AssertSqlSafe(statement))
            .await
            .unwrap();
    }
    fresh.url.replace("user=attesto", &format!("user={role}"))
}

impl Install {
    async fn new() -> Self {
        let world = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
        let tenant = world.tenant().await;
        let folder = Folder::new();
        let roots = folder.join("root.pem");
        std::fs::write(&roots, world.simulator.apple_root_pem()).unwrap();
        let mut shell = world
            .shell()
            .set("DATABASE_URL", &clerk(&world.fresh).await);
        for (name, value) in world.simulator.environment_variables() {
            shell = shell.set(name, &value);
        }
        // As the simulated stores say it: a machine without the Internet must be well beside them.
        let shell = shell.set("APPLE_ROOT_CERTIFICATES", &roots.display().to_string());
        canary::ensure_canaries(world.database(), world.keyring())
            .await
            .unwrap();
        let install = Self {
            world,
            tenant,
            shell,
            folder,
        };
        install
            .run(
                "update api_keys set created_at = now();
                insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids)
                    select 'rep_x', 'elsewhere', 1, coalesce(min(version), '0.1.0'), now(), now(), 1, '{1}' from replicas",
            )
            .await;
        install
    }

    async fn run(&self, statements: &str) {
        // The role name is ours.
        let pool = self.world.database().pool();
        pool.execute(AssertSqlSafe(statements.to_owned()))
            .await
            .unwrap();
    }

    fn examined(&self) -> Said {
        examined(&self.shell, &["--offline"])
    }

    async fn with(set: impl Fn(Shell, &Folder) -> Shell) -> Said {
        let mut install = Self::new().await;
        install.shell = set(install.shell.clone(), &install.folder);
        let said = install.examined();
        install.world.end().await;
        said
    }
}

#[tokio::test]
async fn a_healthy_installation_passes_every_check() {
    let install = Install::new().await;
    let said = examined_online(&install.shell).await;
    assert_eq!(said.findings(), Vec::<String>::new(), "{}", said.tree);
    said.ends_as("ok");
    let groups: Vec<_> = said.tree["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(
        groups,
        [
            "settings",
            "files",
            "listener",
            "database",
            "keys",
            "processes",
            "tenants",
            "deliveries",
            "drift",
            "logs",
            "stores"
        ]
    );
    let people = install
        .shell
        .run(&["doctor", "--offline", "--output", "table"]);
    assert_eq!(people.exit, 0);
    assert!(
        people
            .said
            .contains("\n  ok    Database\n    ok    It answers."),
        "{}",
        people.said
    );
    // The doctor changes nothing: it adds no canary for a new key and no row.
    let written = async || -> (i64, i64) {
        let statement = "select (select count(*) from encryption_canaries), (select max(seq) from operator_audit)";
        let pool = install.world.database().pool();
        sqlx::query_as(statement).fetch_one(pool).await.unwrap()
    };
    let before = written().await;
    let new = install
        .shell
        .clone()
        .set("ATTESTO_ENCRYPTION_KEY", &format!("2:{OTHER_KEY}"));
    assert_eq!(examined(&new, &["--offline"]).exit, 2);
    assert_eq!(written().await, before);
    install.world.end().await;
}

#[tokio::test]
async fn secrets_in_the_environment_are_warned_about_in_production() {
    let fresh = fresh_database().await;
    let shell = Shell::default()
        .set("ATTESTO_ENV", "production")
        .set("DATABASE_URL", &fresh.url)
        .set("ATTESTO_ENCRYPTION_KEY", OTHER_KEY);
    let said = examined(&shell, &["--offline"]);
    assert!(
        said.findings()
            .contains(&"settings.secrets: warn".to_owned())
    );
    assert!(!said.tree.to_string().contains(OTHER_KEY));
}

#[test]
fn production_does_not_take_what_is_dangerous() {
    let folder = Folder::new();
    let file = folder.join("key");
    std::fs::write(&file, OTHER_KEY).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o602)).unwrap();
    let shell = Shell::default().set("ATTESTO_ENV", "production").set(
        "DATABASE_URL",
        "postgres://a@db.invalid/b?connect_timeout=1",
    );
    let findings = |shell: Shell| examined(&shell, &["--offline"]).findings();
    let exposed = findings(
        shell
            .clone()
            .set("ATTESTO_ENCRYPTION_KEY_FILE", file.to_str().unwrap()),
    );
    for expected in ["settings.database_tls: warn", "files.secret: fail"] {
        assert!(exposed.iter().any(|found| found == expected), "{exposed:?}");
    }
    let zero = findings(shell.set("ATTESTO_ENCRYPTION_KEY", ZERO_KEY));
    assert_eq!(zero[0], "settings.read: fail");
}

#[tokio::test]
async fn an_empty_database_fails() {
    let empty = empty_database().await;
    let shell = Shell::default()
        .set("DATABASE_URL", &empty.url)
        .set("ATTESTO_ENCRYPTION_KEY", OTHER_KEY);
    let said = examined(&shell, &["--offline"]);
    assert!(
        said.findings()
            .contains(&"database.migrations: fail".to_owned())
    );
    assert!(said.tree.to_string().contains("attesto migrate"));
    assert!(said.findings().contains(&"tenants: skipped".to_owned()));
}

#[tokio::test]
async fn database_roles_with_too_many_or_too_few_rights() {
    let install = Install::new().await;
    let powerful = install
        .shell
        .clone()
        .set("DATABASE_URL", &install.world.fresh.url);
    examined(&powerful, &["--offline"]).is_only("database.role", "warn", "superuser");
    install
        .run("create table extra (); revoke all on purchase_links from public")
        .await;
    let said = install.examined();
    said.is_only("database.rights", "fail", "may not read and write: extra");
    install.world.end().await;
}

#[tokio::test]
async fn checks_of_unused_features_are_skipped() {
    let install = Install::new().await;
    install.run("update tenants set is_active = false").await;
    assert_eq!(install.examined().findings(), Vec::<String>::new());
    install.run("update tenants set is_active = true").await;
    install
        .world
        .set_apple(&install.tenant, EnvironmentChoice::Sandbox, None)
        .await;
    assert_eq!(install.examined().findings(), Vec::<String>::new());
    install
        .world
        .set_apple(&install.tenant, EnvironmentChoice::Auto, Some(APP_APPLE_ID))
        .await;

    // Validly sealed, but not a key.
    let place = APPLE_PRIVATE_KEY.context_for(install.tenant.id.as_str());
    sqlx::query("update apple_credentials set private_key_enc = $1")
        .bind(install.world.keyring().seal(place, b"not a key"))
        .execute(install.world.database().pool())
        .await
        .unwrap();
    install.examined().is_only(
        "tenants.readable",
        "fail",
        "1 store credential cannot be used",
    );
    install.world.end().await;
}

#[tokio::test]
async fn unreachable_stores_and_invalid_roots() {
    let install = Install::new().await;
    let lost = install
        .shell
        .clone()
        .set("GOOGLE_PLAY_URL", "http://127.0.0.1:1");
    examined_online(&lost).await.is_only(
        "stores.reachable",
        "fail",
        "Google's Play API cannot be reached (127.0.0.1:1)",
    );
    let found = examined_online(&lost).await.tree.to_string();
    assert!(found.contains("such as `attesto simulator`"), "{found}");
    let nowhere = install
        .shell
        .clone()
        .set("APPLE_SANDBOX_URL", "http://no-such-host.invalid");
    examined_online(&nowhere)
        .await
        .is_only("stores.reachable", "fail", "Apple's sandbox API");
    let path = install.folder.join("empty.pem");
    std::fs::write(&path, "nothing").unwrap();
    let rootless = install
        .shell
        .clone()
        .set("APPLE_ROOT_CERTIFICATES", &path.display().to_string());
    examined(&rootless, &["--offline"]).is_only("stores.roots", "fail", "holds no certificate");
    install.world.end().await;
}

#[tokio::test]
async fn the_listeners_own_certificate() {
    let with = async |days: u32, spoil: fn(&Folder)| {
        Install::with(move |shell, folder| {
            let files = Made::today(days * DAY).write(folder);
            spoil(folder);
            shell
                .set("TLS_CERT_PATH", files.certificate.to_str().unwrap())
                .set("TLS_KEY_PATH", files.key.to_str().unwrap())
        })
        .await
    };
    let said = with(60, |_| {}).await;
    assert_eq!(said.findings(), Vec::<String>::new(), "{}", said.tree);
    assert!(said.tree.to_string().contains("certificate ends at 20"));
    let said = with(13, |_| {}).await;
    said.is_only("listener.tls", "warn", "certificate ends at 20");
    let said = with(60, |folder| {
        Made::today(DAY).write_key(&folder.join("key.pem"));
    })
    .await;
    said.is_only("listener.tls", "fail", "does not belong");
    let said = with(60, |folder| {
        let mode = Permissions::from_mode(0o644);
        std::fs::set_permissions(folder.join("key.pem"), mode).unwrap();
    })
    .await;
    said.is_only("files.secret", "warn", "TLS_KEY_PATH");
    // Behind a proxy this is correct.
    let said = Install::with(|shell, _| shell.set("BIND_ADDRESS", "0.0.0.0")).await;
    assert_eq!(said.findings(), Vec::<String>::new(), "{}", said.tree);
    assert!(said.tree.to_string().contains("Plain HTTP on 0.0.0.0:8080"));
}

/// How an installation is broken.
enum By {
    /// By SQL in its database.
    Rows(&'static str),
    /// By variables; `-` removes one.
    Settings(&'static [(&'static str, &'static str)]),
    /// By the mode of the encryption key file. 0: the file does not exist.
    KeyFile(u32),
}

/// The fault, exactly the doctor's findings (`…` stands for consequences), and a part of its
/// output.
type Broken = (By, &'static [&'static str], &'static str);

/// A stopped installation to be copied and broken. It has a fully configured tenant with a
/// callback.
struct Model {
    fresh: Fresh,
    shell: Shell,
    folder: Folder,
}

impl Model {
    async fn new() -> Self {
        let install = Box::pin(Install::new()).await;
        let secret = SigningSecret::parse(&"s".repeat(40)).unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["attesto".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let now = install.world.clock.now();
        let certificate =
            ClientCertificate::from_pem(certificate.as_bytes(), key.as_bytes(), now).unwrap();
        let change = EndpointChange {
            client_certificate: Some(ClientCertificateChange::Set(&certificate)),
            callback_url: Some("https://a.example/?token=hunter2"),
            secret: Some(&secret),
            overlap: Duration::ZERO,
            ..EndpointChange::default()
        };
        let (database, keyring) = (install.world.database(), install.world.keyring());
        endpoints::change_endpoint(database, keyring, &install.tenant.id, &change)
            .await
            .unwrap();
        install
            .run("update google_credentials set pubsub_service_account = 'a@b.iam.gserviceaccount.com'")
            .await;
        let Install {
            world,
            shell,
            folder,
            ..
        } = install;
        let fresh = world.end().await;
        fresh.database.close_connections().await;
        Self {
            fresh,
            shell,
            folder,
        }
    }

    /// The doctor's output for a copy with this fault.
    async fn broken(&self, by: &By) -> Said {
        let copy = self.fresh.copy().await;
        let run = async |statements: &str| {
            // The database name is ours.
            let statements = AssertSqlSafe(statements.to_owned());
            copy.database.pool().execute(statements).await.unwrap();
        };
        // As if a replica had been running all the time.
        run("update replicas set seen_at = now()").await;
        let database = |fresh: &Fresh| fresh.url.split('?').next().unwrap().to_owned();
        let mut shell =
            self.shell
                .clone()
                .replace("DATABASE_URL", &database(&self.fresh), &database(&copy));
        match by {
            By::Rows(statements) => run(statements).await,
            By::Settings(settings) => {
                for (name, value) in *settings {
                    shell = match *value {
                        "-" => shell.without(name),
                        value => shell.set(name, value),
                    };
                }
            }
            By::KeyFile(mode) => {
                let path = self.folder.join(format!("key-{mode:o}"));
                if *mode > 0 {
                    std::fs::write(&path, WORLDS_KEY).unwrap();
                    std::fs::set_permissions(&path, Permissions::from_mode(*mode)).unwrap();
                }
                shell = shell
                    .without("ATTESTO_ENCRYPTION_KEY")
                    .set("ATTESTO_ENCRYPTION_KEY_FILE", &path.display().to_string());
            }
        }
        let said = examined(&shell, &["--offline"]);
        copy.database.close_connections().await;
        said
    }

    async fn each(&self, all: &[Broken]) {
        for (by, expected, part) in all {
            let said = self.broken(by).await;
            let what = match by {
                By::Rows(text) => (*text).to_owned(),
                By::Settings(settings) => format!("{settings:?}"),
                By::KeyFile(mode) => format!("a key file of mode {mode:o}"),
            };
            let mut found = said.findings();
            let mut expected = expected.to_vec();
            if expected.last() == Some(&"…") {
                expected.pop();
                found.retain(|finding| expected.contains(&finding.as_str()));
                found.dedup();
            }
            let text = said.tree.to_string();
            assert_eq!(found, expected, "{what}: {text}");
            assert!(text.contains(part), "{what}: no {part} in {text}");
            assert!(!text.contains("hunter2"), "{what}: {text}");
            let is_failure = expected.iter().any(|finding| finding.ends_with("fail"));
            let is_warning = expected.iter().any(|finding| finding.ends_with("warn"));
            said.ends_as(match (is_failure, is_warning) {
                (true, _) => "fail",
                (false, true) => "warn",
                (false, false) => "ok",
            });
        }
    }
}

/// A database that cannot be reached.
const NOWHERE: [(&str, &str); 1] = [(
    "DATABASE_URL",
    "postgres://a:hunter2@127.0.0.1:1/x?sslmode=disable&connect_timeout=1",
)];
/// Checks that need the database.
const UNUSABLE: [&str; 6] = [
    "keys",
    "processes",
    "tenants",
    "deliveries",
    "drift",
    "logs",
];

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn wrong_settings_are_reported() {
    let model = Model::new().await;
    let own: &[Broken] = &[
        (By::Rows("select 1"), &[], "All settings can be read"),
        (
            By::Settings(&[("PORT", "http")]),
            &["settings.read: fail"],
            "PORT: must be",
        ),
        (
            By::Settings(&[("CREDENTIAL_APPLE_MAX_AGE_DAYS", "soon")]),
            &["settings.read: fail"],
            "CREDENTIAL_APPLE_MAX_AGE_DAYS: must be",
        ),
        (
            By::Settings(&[("WEBHOOK_MAX_RETRYS", "3")]),
            &["settings.unknown: warn"],
            "Did you mean WEBHOOK_MAX_RETRIES",
        ),
        (
            By::Settings(&[
                ("ENABLE_VALIDATION_AUDIT_LOG", "true"),
                ("RETENTION_VALIDATION_AUDIT_DAYS", "0"),
            ]),
            &["settings.validation_audit: warn"],
            "kept for ever",
        ),
        (
            By::Settings(&[("ATTESTO_ENCRYPTION_KEY", "-")]),
            &["settings.read: fail", "keys: skipped"],
            "ATTESTO_ENCRYPTION_KEY: is missing, and the database holds values sealed with encryption key 1",
        ),
        (By::KeyFile(0o400), &[], "mode 400"),
        (
            By::KeyFile(0o644),
            &["files.secret: warn"],
            "can be read by every user of this machine (mode 644)",
        ),
        (
            By::KeyFile(0o460),
            &["files.secret: warn"],
            "can be changed by users other than its owner",
        ),
        (
            By::KeyFile(0o402),
            &["files.secret: warn"],
            "can be changed by users other than its owner (mode 402)",
        ),
        (
            By::Settings(&[("ATTESTO_ENV", "-")]),
            &["settings.environment: warn"],
            "ATTESTO_ENV is not set, so that",
        ),
        (
            By::Settings(&[("ATTESTO_ENCRYPTION_KEY", ZERO_KEY)]),
            &["settings.encryption_key: warn", "keys.canary: fail", "…"],
            "ATTESTO_ENCRYPTION_KEY is all zeros",
        ),
        (
            By::KeyFile(0),
            &["settings.read: fail", "files.secret: fail", "keys: skipped"],
            "cannot be read",
        ),
        (
            By::Settings(&[("APPLE_ROOT_CERTIFICATES", "/no/such/file")]),
            &["stores.roots: fail"],
            "/no/such/file",
        ),
        (
            By::Settings(&[("ATTESTO_ENCRYPTION_KEY", OTHER_KEY)]),
            &[
                "keys.canary: fail",
                "keys.sample: fail",
                "tenants.readable: fail",
                "…",
            ],
            "is not the key this database was sealed with",
        ),
        (
            By::Settings(&[(
                "ATTESTO_ENCRYPTION_KEY",
                "2:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
            )]),
            &[
                "keys.in_use: fail",
                "keys.sample: fail",
                "tenants.readable: fail",
                "…",
            ],
            "sealed with encryption key 1, which is not configured",
        ),
        (
            By::Settings(&[
                (
                    "ATTESTO_ENCRYPTION_KEY",
                    "2:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
                ),
                (
                    "ATTESTO_ENCRYPTION_KEYS_RETIRED",
                    "1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
                ),
            ]),
            &["keys.rotation: warn"],
            "attesto encryption rotate",
        ),
        (
            By::Rows(
                "update google_credentials set service_account_enc =
                    set_byte(service_account_enc, 20, get_byte(service_account_enc, 20) # 1)",
            ),
            &["keys.sample: fail", "tenants.readable: fail"],
            "google_credentials.service_account_enc: 1 value does not open",
        ),
        (
            By::Rows("update apple_credentials set private_key_enc = ''"),
            &["keys.in_use: fail", "…"],
            "not sealed values",
        ),
    ];
    model.each(own).await;

    let without = |first: &'static str| {
        let skipped = UNUSABLE.map(|group| format!("{group}: skipped"));
        [vec![first.to_owned()], skipped.to_vec()].concat()
    };
    let said = model.broken(&By::Settings(&NOWHERE)).await;
    assert_eq!(
        said.findings(),
        without("database.reachable: fail"),
        "{}",
        said.tree
    );
    assert!(!said.tree.to_string().contains("hunter2"));
    said.ends_as("fail");
    let said = model.broken(&By::Settings(&[("DATABASE_URL", "-")])).await;
    let found = said.findings();
    assert_eq!(
        (found[0].as_str(), &found[1..]),
        ("settings.read: fail", without("database: fail").as_slice())
    );
    for (change, part) in [
        (
            "insert into _sqlx_migrations values (9999, 'the future', now(), true, '', 0)",
            "newer release",
        ),
        (
            "update _sqlx_migrations set checksum = '' where version = 1",
            "not those of any release",
        ),
        (
            "delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)",
            "1 migration is missing",
        ),
    ] {
        let said = model.broken(&By::Rows(change)).await;
        assert_eq!(
            said.findings(),
            without("database.migrations: fail"),
            "{}",
            said.tree
        );
        assert!(said.tree.to_string().contains(part), "{}", said.tree);
        said.ends_as("fail");
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn missing_replicas_and_incomplete_tenants_are_reported() {
    let model = Model::new().await;
    let all: &[Broken] = &[
        (By::Rows("delete from replicas"), &["processes.serving: warn"], "No process serves"),
        (
            By::Rows(r#"update replicas set notices = '{ "deliveries": "waiting: too many connections" }'"#),
            &["processes.delivering: fail"],
            "no process delivers them: elsewhere (waiting: too many connections)",
        ),
        (
            By::Rows(
                "update replicas set notices = jsonb_build_object('throttledTenants',
                    jsonb_build_object('tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E', '2026-04-10T14:22:10.000Z'))",
            ),
            &["tenants.intake: warn"],
            "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
        ),
        (
            By::Rows(
                "do $$ begin
                    execute format('alter database %I set default_transaction_read_only = on', current_database());
                end $$",
            ),
            &["database.writable: fail"],
            "default_transaction_read_only is on",
        ),
        (
            By::Rows(
                "insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids)
                    values ('rep_a', 'left', 1, '0.0.9', now(), now(), 1, '{1}')",
            ),
            &["processes.releases: warn"],
            "different releases",
        ),
        (
            By::Rows(
                "insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids)
                    select 'rep_a', 'left', 1, version, now(), now(), 2, '{1, 2}' from replicas",
            ),
            &["processes.keys: fail", "processes.keys: warn"],
            "which elsewhere cannot open",
        ),
        (
            By::Rows(
                "update replicas set certificates = jsonb_build_object('listener', now() - interval '1 day',
                    'apple_root', now() + interval '9 years')",
            ),
            &["processes.certificates: fail"],
            "TLS_CERT_PATH",
        ),
        (
            By::Rows("update replicas set certificates = jsonb_build_object('listener', now() + interval '9 days')"),
            &["processes.certificates: warn"],
            "The listener's certificate ends on",
        ),
        (
            By::Rows("update replicas set certificates = jsonb_build_object('apple_leaf', now() + interval '9 days')"),
            &["processes.certificates: warn"],
            "Apple's signing certificate ends on",
        ),
        (
            By::Rows(
                "insert into job_runs (job, host, interval_seconds, started_at, lease_until, finished_at, outcome, error)
                    values ('retention', 'a', 3600, now(), now(), now(), 'failed', 'the disk is full')",
            ),
            &["processes.jobs: warn"],
            "retention failed when it last ran: the disk is full",
        ),
        (
            By::Rows(
                "insert into job_runs (job, host, interval_seconds, started_at, lease_until)
                    values ('retention', 'a', 3600, now() - interval '1 hour', now() - interval '1 minute')",
            ),
            &["processes.jobs: warn"],
            "The process that ran the job retention on a died",
        ),
        (
            By::Rows(
                "insert into job_runs (job, host, interval_seconds, started_at, lease_until, finished_at, outcome)
                    select 'drift', 'a', 3600, old, old, old, 'done' from (select now() - interval '9 hours' as old) at",
            ),
            &["processes.jobs: warn"],
            "JOBS_DISABLED",
        ),
        (
            By::Rows(
                "insert into tenants (id, name) values ('tenant_x', 'X');
                insert into api_keys (id, tenant_id, key_hash, key_prefix)
                    values ('key_x', 'tenant_x', sha256('x'), 'xxxxxxxx')",
            ),
            &["tenants.credentials: warn"],
            "tenant_x",
        ),
        (
            By::Rows("update api_keys set revoked_at = now()"),
            &["tenants.api_keys: warn"],
            "has no API key",
        ),
        (
            By::Rows("update apple_credentials set app_apple_id = null"),
            &["tenants.app_apple_id: warn"],
            "--app-apple-id",
        ),
        (
            By::Rows("update apple_credentials set updated_at = now() - interval '366 days'"),
            &["tenants.apple_age: warn"],
            "more than 365 days ago",
        ),
        (
            By::Rows("update google_credentials set updated_at = now() - interval '91 days'"),
            &["tenants.google_age: warn"],
            "more than 90 days ago",
        ),
        (
            By::Rows("update api_keys set last_used_at = now() - interval '91 days'"),
            &["tenants.unused_keys: warn"],
            "attesto key revoke",
        ),
    ];
    model.each(all).await;
}

/// An event and its delivery, in addition to those of the model.
macro_rules! delivery {
    ($status:literal, $columns:literal, $values:literal) => {
        concat!(
            "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event,
                decoded_payload, stored_body)
                select tenant_lane(id), 'e', id, 'apple', 'x', 'test', 'test', '{}', '\\x007b7d' from tenants;
            insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url, status, ",
            $columns,
            ") select tenant_lane(tenant_id), 'd', 'e', tenant_id, callback_url, '",
            $status,
            "', ",
            $values,
            " from webhook_configs"
        )
    };
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn problems_with_deliveries_and_records_are_reported() {
    let model = Model::new().await;
    let all: &[Broken] = &[
        (
            By::Rows(delivery!("pending", "next_attempt_at", "now() - interval '2 minutes'")),
            &["deliveries.lag: warn"],
            "WEBHOOK_DISPATCHER_DISABLED",
        ),
        (
            By::Rows(delivery!("pending", "next_attempt_at", "now() - interval '20 minutes'")),
            &["deliveries.lag: fail"],
            "1 delivery is due",
        ),
        (
            By::Rows(delivery!("pending", "parked_at", "now()")),
            &["deliveries.parked: warn"],
            "parked, because",
        ),
        (
            By::Rows(delivery!("pending", "lease_until", "now() - interval '2 minutes'")),
            &["deliveries.leases: warn"],
            "from a process that stopped",
        ),
        (
            By::Rows(delivery!("failed", "next_attempt_at", "null")),
            &["deliveries.failed: warn"],
            "--status failed",
        ),
        (
            By::Rows(
                "insert into webhook_health (lane, tenant_id, callback_url, state, failing_since)
                    select tenant_lane(tenant_id), tenant_id, callback_url, 'paused', now() from webhook_configs",
            ),
            &["deliveries.callbacks: warn"],
            "attesto webhook ping",
        ),
        (
            By::Rows(
                "insert into callback_probes (tenant_id, callback_key, probed_at, result, detail, since)
                    select tenant_id, hashtextextended(callback_url, 0), now(), 'dns', 'x', now() from webhook_configs",
            ),
            &["deliveries.reachable: warn"],
            "(dns: x)",
        ),
        (
            // Of another URL than the one configured now, or before the last success: no finding.
            By::Rows(
                "insert into callback_probes (tenant_id, callback_key, probed_at, result, since)
                    select tenant_id, 1, now(), 'dns', now() from webhook_configs",
            ),
            &[],
            "No callback is known to be unreachable",
        ),
        (
            By::Rows(
                "insert into callback_probes (tenant_id, callback_key, probed_at, result, since, certificate_ends_at)
                    select tenant_id, hashtextextended(callback_url, 0), now(), 'reachable', now(),
                        now() + interval '13 days'
                    from webhook_configs",
            ),
            &["deliveries.certificates: warn"],
            "1 callback's certificate expires soon",
        ),
        (
            By::Rows(
                "update webhook_client_certificates set
                    not_before = now() - interval '350 days', not_after = now() + interval '13 days'",
            ),
            &["deliveries.client_certificates: warn"],
            "1 client certificate for a callback expires soon",
        ),
        (
            // It lives for a month, and is replaced late.
            By::Rows(
                "update webhook_client_certificates set
                    not_before = now() - interval '17 days', not_after = now() + interval '13 days'",
            ),
            &[],
            "No client certificate for a callback expires soon",
        ),
        (
            By::Rows("insert into delivery_holds (held_by) values ('x')"),
            &["deliveries.hold: warn"],
            "attesto deliveries release",
        ),
        (
            By::Rows("update webhook_configs set is_active = false"),
            &["drift.callback_off: warn"],
            "--is-active true",
        ),
        (
            By::Rows(
                "update webhook_configs set created_at = now() - interval '8 days';
                delete from apple_credentials",
            ),
            &["drift.callback_unused: warn"],
            "has no stored delivery: tenant_",
        ),
        (
            By::Rows(
                "update webhook_configs set created_at = now() - interval '8 days';
                update apple_credentials set created_at = now() - interval '8 days'",
            ),
            &["drift.apple_silent: warn"],
            "request-test-notification",
        ),
        (
            By::Rows(
                "insert into apple_test_notifications (tenant_id, environment, asked_at, result)
                    select id, 'production', now(), 'NO_ADDRESS' from tenants",
            ),
            &["drift.apple_address: warn"],
            "App Store Server Notifications",
        ),
        (
            By::Rows(
                "insert into apple_test_notifications (tenant_id, environment, asked_at, result)
                    select id, 'production', now(), 'TIMED_OUT' from tenants",
            ),
            &["drift.apple_unreached: warn"],
            "did not arrive when Apple last sent one",
        ),
        (
            By::Rows(
                "update tenants set created_at = now() - interval '4 days';
                update apple_credentials set created_at = now() - interval '4 days', updated_at = now() - interval '4 days'",
            ),
            &["tenants.history: warn"],
            "in production (never)",
        ),
        (
            By::Rows(
                "insert into refund_questions (lane, tenant_id, source, question_hash, purchase_id, answer_by, outcome)
                    select tenant_lane(id), id, 'google', sha256('1'), 'GPA.1', now(), 'missed' from tenants",
            ),
            &["tenants.refund_answers: warn"],
            "(google, 1)",
        ),
        (
            By::Rows(
                "insert into refund_questions (lane, tenant_id, source, question_hash, purchase_id, answer_by)
                    select tenant_lane(id), id, 'google', sha256('1'), 'GPA.1', now() + interval '90 minutes' from tenants",
            ),
            &["tenants.refund_questions: warn"],
            "(google, 1, by",
        ),
        (
            By::Rows(
                "insert into apple_history_reads (lane, tenant_id, environment, read_until, next_read_at, last_success_at)
                    select tenant_lane(id), id, environment, now(), now(), last from tenants, (values
                        ('production', '2026-04-10T14:22:10Z'::timestamptz), ('sandbox', now())) read (environment, last)",
            ),
            &["tenants.history: warn"],
            "in production (last 2026-04-10)",
        ),
        (
            By::Rows("update google_credentials set pubsub_service_account = null"),
            &["drift.google_pusher: warn"],
            "--pubsub-service-account",
        ),
        (
            By::Rows(
                "update replicas set settings = '{\"retention\": \"00\"}';
                insert into replicas
                    (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids, settings)
                    select 'rep_' || n, 'odd', 1, version, now(), now(), 1, '{1}',
                        json_build_object('retention', n::text)::jsonb
                    from (select version from replicas limit 1) replica cross join generate_series(1, 1) n",
            ),
            &["drift.settings: warn"],
            "retention on",
        ),
        (
            By::Rows("update operator_audit set actor = 'nobody' where seq = 1"),
            &["logs.operators: fail"],
            "row 1 was changed",
        ),
        (
            By::Rows(
                "insert into backups (id, created_at, host, bytes, verified_at, sound)
                    values ('b', now() - interval '8 days', 'x', 1, now() - interval '1 day', true)",
            ),
            &["logs.backups: warn"],
            "once a day is usual",
        ),
        (
            By::Rows(
                "insert into backups (id, created_at, host, bytes, verified_at, sound)
                    values ('b', now() - interval '1 day', 'x', 1, now() - interval '31 days', true)",
            ),
            &["logs.backups: warn"],
            "attesto backup verify",
        ),
        (
            By::Rows(
                "insert into backups (id, created_at, host, bytes, verified_at, sound)
                    values ('b', now() - interval '1 day', 'x', 1, now() - interval '1 day', false)",
            ),
            &["logs.backups: fail"],
            "cannot be restored",
        ),
    ];
    model.each(all).await;
}
