//! Installations that are broken in one way each, and what the doctor says of them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};

use attesto::apple::account::EnvironmentChoice;
use attesto::credentials::canary;
use attesto::credentials::sealed::APPLE_PRIVATE_KEY;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::tls::{DAY, Made};
use crate::world::attesto::{APP_APPLE_ID, Tenant, World};
use crate::world::folder::Folder;
use crate::world::postgres::{Fresh, empty_database, fresh_database};
use crate::world::shell::Shell;

/// Another encryption key than the world's.
const OTHER_KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// One that is well until somebody breaks it.
struct Install {
    world: World,
    tenant: Tenant,
    shell: Shell,
    folder: Folder,
}

/// What the doctor said.
struct Said {
    exit: i32,
    tree: Value,
    complained: String,
}

impl Said {
    /// Everything but what is well, as `name: status`.
    fn findings(&self) -> Vec<String> {
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
        // As it was asked to.
        let left_out = ["stores.reachable: skipped", "logs.backups: skipped"];
        found.retain(|finding| !left_out.contains(&finding.as_str()));
        found
    }

    /// Exactly this is wrong, and the exit code says how bad it is.
    fn is_only(&self, name: &str, status: &str, message: &str) {
        let text = self.tree.to_string();
        assert_eq!(self.findings(), [format!("{name}: {status}")], "{text}");
        assert!(text.contains(message), "no {message} in {text}");
        self.ends_as(status);
    }

    fn ends_as(&self, status: &str) {
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

/// The same, while the stores answer.
async fn examined_online(shell: &Shell) -> Said {
    let shell = shell.clone();
    let examining = tokio::task::spawn_blocking(move || examined(&shell, &[]));
    examining.await.unwrap()
}

/// A role that owns nothing, as it should be.
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
        // The name is ours.
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
        for (name, value) in world.simulator.settings() {
            shell = shell.set(name, &value);
        }
        let (stores, roots) = (
            world.settings.stores.google_play.to_string(),
            roots.display().to_string(),
        );
        let shell = shell
            .set("APPLE_ROOT_CERTIFICATES", &roots)
            .set("GOOGLE_PUBSUB_URL", &stores);
        canary::check(world.database(), world.keyring())
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
        // Ours.
        let pool = self.world.database().pool();
        pool.execute(AssertSqlSafe(statements.to_owned()))
            .await
            .unwrap();
    }

    fn examined(&self) -> Said {
        examined(&self.shell, &["--offline"])
    }

    /// Broken by a statement: what the doctor says.
    async fn broken_by(statements: &str) -> Said {
        let install = Self::new().await;
        install.run(statements).await;
        let said = install.examined();
        install.world.end().await;
        said
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
async fn all_is_well() {
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
    // It looks and changes nothing: no canary of a key that is new here, no row about anything.
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
async fn settings_that_cannot_be_meant() {
    let said = Install::with(|shell, _| shell.set("PORT", "http")).await;
    said.is_only("settings.read", "fail", "PORT: must be");
    let said = Install::with(|shell, _| shell.set("WEBHOOK_MAX_RETRYS", "3")).await;
    said.is_only("settings.unknown", "warn", "a slip for WEBHOOK_MAX_RETRIES");
    let said = Install::with(|shell, _| {
        shell
            .set("ENABLE_VALIDATION_AUDIT_LOG", "true")
            .set("RETENTION_VALIDATION_AUDIT_DAYS", "0")
    })
    .await;
    said.is_only("settings.validation_audit", "warn", "kept for ever");

    let said = Install::with(|shell, _| shell.without("ATTESTO_ENCRYPTION_KEY")).await;
    assert_eq!(said.findings(), ["settings.read: fail", "keys: skipped"]);
    said.ends_as("fail");
    let said = Install::with(|shell, _| shell.without("DATABASE_URL")).await;
    let skipped =
        ["keys", "processes", "tenants", "deliveries", "logs"].map(|it| format!("{it}: skipped"));
    let mut expected = vec![
        "settings.read: fail".to_owned(),
        "database: fail".to_owned(),
    ];
    expected.extend(skipped);
    assert_eq!(said.findings(), expected);
}

#[tokio::test]
async fn secrets_that_others_may_read() {
    let key_file = |mode: u32| {
        move |shell: Shell, folder: &Folder| {
            let path = folder.join("key");
            std::fs::write(&path, "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            shell
                .without("ATTESTO_ENCRYPTION_KEY")
                .set("ATTESTO_ENCRYPTION_KEY_FILE", &path.display().to_string())
        }
    };
    let said = Install::with(key_file(0o400)).await;
    assert_eq!(said.findings(), Vec::<String>::new());
    let said = Install::with(key_file(0o644)).await;
    said.is_only(
        "files.secret",
        "warn",
        "can be read by everybody on this machine (mode 644)",
    );
    let said = Install::with(key_file(0o460)).await;
    said.is_only("files.secret", "warn", "can be changed by others");
    let said = Install::with(|shell, folder| {
        let path = folder.join("nothing").display().to_string();
        shell
            .without("ATTESTO_ENCRYPTION_KEY")
            .set("ATTESTO_ENCRYPTION_KEY_FILE", &path)
    })
    .await;
    assert_eq!(
        said.findings(),
        ["settings.read: fail", "files.secret: fail", "keys: skipped"]
    );

    // In production the environment is no place for a secret.
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

#[tokio::test]
async fn a_database_that_is_not_there_or_not_ours() {
    let said = Install::with(|shell, _| {
        shell.set(
            "DATABASE_URL",
            "postgres://a:hunter2@127.0.0.1:1/x?sslmode=disable&connect_timeout=1",
        )
    })
    .await;
    assert!(
        said.findings()
            .contains(&"database.reachable: fail".to_owned())
    );
    assert!(said.findings().contains(&"keys: skipped".to_owned()));
    assert!(!said.tree.to_string().contains("hunter2"));
    said.ends_as("fail");

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

    for (change, message) in [
        (
            "insert into _sqlx_migrations values (9999, 'the future', now(), true, '', 0)",
            "newer release",
        ),
        (
            "update _sqlx_migrations set checksum = '' where version = 1",
            "not those of any release",
        ),
    ] {
        let said = Install::broken_by(change).await;
        assert!(
            said.findings()
                .contains(&"database.migrations: fail".to_owned()),
            "{change}"
        );
        assert!(said.tree.to_string().contains(message));
        said.ends_as("fail");
    }
}

#[tokio::test]
async fn roles_that_may_too_much_or_too_little() {
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
async fn encryption_keys_that_are_wrong_missing_or_half_exchanged() {
    let said = Install::with(|shell, _| shell.set("ATTESTO_ENCRYPTION_KEY", OTHER_KEY)).await;
    let found = said.findings();
    assert!(found.contains(&"keys.canary: fail".to_owned()), "{found:?}");
    assert!(found.contains(&"keys.sample: fail".to_owned()), "{found:?}");
    said.ends_as("fail");

    let said =
        Install::with(|shell, _| shell.set("ATTESTO_ENCRYPTION_KEY", &format!("2:{OTHER_KEY}")))
            .await;
    assert!(said.findings().contains(&"keys.in_use: fail".to_owned()));
    assert!(
        said.tree
            .to_string()
            .contains("sealed with encryption key 1, which is not configured")
    );

    let said = Install::with(|shell, _| {
        shell
            .set("ATTESTO_ENCRYPTION_KEY", &format!("2:{OTHER_KEY}"))
            .set(
                "ATTESTO_ENCRYPTION_KEYS_RETIRED",
                "1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
            )
    })
    .await;
    said.is_only("keys.rotation", "warn", "attesto encryption rotate");

    let damaged = "update google_credentials set service_account_enc =
        set_byte(service_account_enc, 20, get_byte(service_account_enc, 20) # 1)";
    let said = Install::broken_by(damaged).await;
    assert_eq!(
        said.findings(),
        ["keys.sample: fail", "tenants.readable: fail"]
    );
    assert!(
        said.tree
            .to_string()
            .contains("google_credentials.service_account_enc: 1 value does not open")
    );
    let said = Install::broken_by("update apple_credentials set private_key_enc = ''").await;
    assert!(said.findings().contains(&"keys.in_use: fail".to_owned()));
    assert!(said.tree.to_string().contains("no sealed values"));
}

#[tokio::test]
async fn processes_and_jobs_that_do_not_do_their_part() {
    let install = Install::new().await;
    install
        .run("update replicas set seen_at = now() - interval '1 day'")
        .await;
    // The world's own process says within seconds that it is there; nobody else is.
    install
        .run(
            "insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids)
                values ('rep_a', 'left', 1, '0.0.9', now(), now(), 1, '{1}'),
                    ('rep_b', 'right', 1, '0.0.9', now(), now(), 2, '{2}')",
        )
        .await;
    let said = install.examined();
    assert!(
        said.findings().contains(&"processes.keys: fail".to_owned()),
        "{}",
        said.tree
    );
    assert!(said.tree.to_string().contains("which right cannot open"));
    install.world.end().await;

    let fresh = fresh_database().await;
    let shell = Shell::default()
        .set("DATABASE_URL", &clerk(&fresh).await)
        .set("ATTESTO_ENCRYPTION_KEY", OTHER_KEY);
    examined(&shell, &["--offline"])
        .findings()
        .iter()
        .find(|found| *found == "processes.serving: warn")
        .expect("nobody serves");

    let said = Install::broken_by(
        "insert into job_runs (job, host, interval_seconds, started_at, lease_until, finished_at, outcome, error)
            values ('retention', 'a', 3600, now(), now(), now(), 'failed', 'the disk is full')",
    )
    .await;
    said.is_only(
        "processes.jobs",
        "warn",
        "retention failed when it last ran: the disk is full",
    );
}

#[tokio::test]
async fn tenants_that_lack_something() {
    for (change, name, message) in [
        (
            "insert into tenants (id, name) values ('tenant_x', 'X');
            insert into api_keys (id, tenant_id, key_hash, key_prefix) values ('key_x', 'tenant_x', sha256('x'), 'xxxxxxxx')",
            "tenants.credentials",
            "tenant_x",
        ),
        ("update api_keys set revoked_at = now()", "tenants.api_keys", "for want of an API key"),
        ("update apple_credentials set app_apple_id = null", "tenants.app_apple_id", "--app-apple-id"),
        (
            "update apple_credentials set updated_at = now() - interval '366 days'",
            "tenants.apple_age",
            "more than 365 days ago",
        ),
        (
            "update google_credentials set updated_at = now() - interval '91 days'",
            "tenants.google_age",
            "more than 90 days ago",
        ),
        (
            "update api_keys set last_used_at = now() - interval '91 days'",
            "tenants.unused_keys",
            "attesto key revoke",
        ),
    ] {
        Install::broken_by(change).await.is_only(name, "warn", message);
    }
    // What is not asked for is not missed.
    let said = Install::broken_by("update tenants set is_active = false").await;
    assert_eq!(said.findings(), Vec::<String>::new());
    let install = Install::new().await;
    install
        .world
        .set_apple(&install.tenant, EnvironmentChoice::Sandbox, None)
        .await;
    assert_eq!(install.examined().findings(), Vec::<String>::new());
    install
        .world
        .set_apple(&install.tenant, EnvironmentChoice::Auto, Some(APP_APPLE_ID))
        .await;

    // Sealed well, and no key.
    let place = APPLE_PRIVATE_KEY.of(install.tenant.id.as_str());
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
async fn deliveries_that_do_not_arrive() {
    let delivery = |status: &str, columns: &str, values: &str| {
        format!(
            "insert into webhook_configs (tenant_id, callback_url, secret_enc)
                select id, 'https://a.example/?token=hunter2', '' from tenants;
            insert into webhook_events (id, tenant_id, source, external_id, event_type, platform_event, raw_payload,
                decoded_payload, body)
                select 'e', id, 'apple', 'x', 'test', 'test', '{{}}', '{{}}', '{{}}' from tenants;
            insert into webhook_deliveries (id, event_id, tenant_id, callback_url, status {columns})
                select 'd', 'e', id, 'https://a.example/?token=hunter2', '{status}' {values} from tenants"
        )
    };
    // The callback's secret is made up, which is a finding of its own that is left out here.
    let findings = |said: &Said| {
        let mut found = said.findings();
        found.retain(|finding| !finding.starts_with("keys."));
        found
    };
    for (change, expected) in [
        (
            delivery(
                "pending",
                ", next_attempt_at",
                ", now() - interval '2 minutes'",
            ),
            "deliveries.lag: warn",
        ),
        (
            delivery(
                "pending",
                ", next_attempt_at",
                ", now() - interval '20 minutes'",
            ),
            "deliveries.lag: fail",
        ),
        (
            delivery("pending", ", parked_at", ", now()"),
            "deliveries.parked: warn",
        ),
        (
            delivery("pending", ", lease_until", ", now() - interval '2 minutes'"),
            "deliveries.leases: warn",
        ),
        (
            delivery("failed", ", next_attempt_at", ", null"),
            "deliveries.failed: warn",
        ),
        (
            delivery("delivered", ", next_attempt_at", ", null")
                + "; insert into webhook_health (tenant_id, callback_url, state, failing_since)
                    select id, 'https://a.example/?token=hunter2', 'paused', now() from tenants",
            "deliveries.callbacks: warn",
        ),
    ] {
        let said = Install::broken_by(&change).await;
        assert_eq!(findings(&said), [expected], "{}", said.tree);
        assert!(!said.tree.to_string().contains("hunter2"));
    }
}

#[tokio::test]
async fn a_system_that_is_held_and_backups_that_are_old_or_worthless() {
    let said = Install::broken_by("insert into delivery_holds (held_by) values ('x')").await;
    said.is_only("deliveries.hold", "warn", "attesto deliveries release");
    for (created, verified, sound, status) in [
        ("1 day", "1 day", "true", "ok"),
        ("8 days", "1 day", "true", "warn"),
        ("1 day", "31 days", "true", "warn"),
        ("1 day", "1 day", "false", "fail"),
    ] {
        let said = Install::broken_by(&format!(
            "insert into backups (id, created_at, host, bytes, verified_at, sound)
                values ('b', now() - interval '{created}', 'x', 1, now() - interval '{verified}', {sound})"
        ))
        .await;
        said.ends_as(status);
    }
}

#[tokio::test]
async fn a_log_that_was_tampered_with() {
    let said = Install::broken_by("update operator_audit set actor = 'nobody' where seq = 1").await;
    said.is_only("logs.operators", "fail", "row 1 was changed");
}

#[tokio::test]
async fn stores_that_cannot_be_reached_and_roots_that_are_none() {
    let install = Install::new().await;
    let lost = install
        .shell
        .clone()
        .set("GOOGLE_PLAY_URL", "http://127.0.0.1:1");
    examined_online(&lost).await.is_only(
        "stores.reachable",
        "fail",
        "Google's Play API cannot be reached",
    );
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
async fn a_certificate_of_its_own() {
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
    // Whoever runs it behind a proxy does nothing wrong.
    let said = Install::with(|shell, _| shell.set("BIND_ADDRESS", "0.0.0.0")).await;
    assert_eq!(said.findings(), Vec::<String>::new(), "{}", said.tree);
    assert!(said.tree.to_string().contains("Plain HTTP on 0.0.0.0:8080"));
}
