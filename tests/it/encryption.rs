//! Encryption keys: generated, counted, rotated while secrets are in use, and a wrong key is never
//! confused with damaged data.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::base::id::TenantId;
use attesto::credentials::reseal::{self, ResealError, ResealMode};
use attesto::credentials::{canary, sealed_columns};
use attesto::crypto::ExposeSecret as _;
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::db::Database;
use attesto::tenants;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::world::attesto::{APP, World};
use crate::world::folder::Folder;
use crate::world::postgres::{Fresh, fresh_database};
use crate::world::shell::{Ran, Shell};
use crate::world::wait::{finished, pause};

/// `<id>:<base64>` of a key whose 32 bytes all equal the id.
fn text(id: u8) -> String {
    format!("{id}:{}", STANDARD.encode([id; 32]))
}

fn ring(sealing: u8, retired: &[u8]) -> Keyring {
    let key = |id: u8| MasterKey::parse(&text(id), None).unwrap();
    Keyring::new(key(sealing), retired.iter().map(|id| key(*id)).collect()).unwrap()
}

/// A database with tenants, each with a secret in every sealed column.
struct Vault {
    fresh: Fresh,
    tenants: Vec<TenantId>,
}

/// The plaintext of each secret.
fn said(tenant: &TenantId, column: &str) -> String {
    format!("{column} of {tenant}: {}", "x".repeat(32))
}

impl Vault {
    async fn filled(tenants: usize, ring: &Keyring) -> Self {
        let fresh = fresh_database().await;
        canary::ensure_canaries(&fresh.database, ring)
            .await
            .unwrap();
        let mut vault = Self {
            fresh,
            tenants: Vec::new(),
        };
        for _ in 0..tenants {
            vault.add(ring).await;
        }
        vault
    }

    fn database(&self) -> &Database {
        &self.fresh.database
    }

    async fn add(&mut self, ring: &Keyring) {
        let (name, now) = ("Acme".parse().unwrap(), Timestamp::from_millis(0));
        let id = tenants::store::create_tenant(self.database(), &name, now)
            .await
            .unwrap()
            .id;
        let seal = |column: sealed_columns::SealedColumn| {
            ring.seal(
                column.context_for(id.as_str()),
                said(&id, column.column).as_bytes(),
            )
        };
        for (statement, blob) in [
            (
                "insert into apple_credentials (tenant_id, bundle_id, key_id, issuer_id, private_key_enc, key_fingerprint)
                 values ($1, 'com.example.app', 'ABCDE12345', '', $2, '')",
                seal(sealed_columns::APPLE_PRIVATE_KEY),
            ),
            (
                "insert into google_credentials (tenant_id, package_name, service_account_enc, client_email, key_fingerprint)
                 values ($1, 'com.example.app', $2, '', '')",
                seal(sealed_columns::GOOGLE_SERVICE_ACCOUNT),
            ),
            (
                "insert into webhook_configs (tenant_id, callback_url, secret_enc, secret_number)
                 values ($1, 'https://example.com/', $2, 3)",
                seal(sealed_columns::WEBHOOK_SECRET),
            ),
            (
                "insert into webhook_previous_secrets (tenant_id, number, secret_enc, created_at, expires_at)
                 values ($1, 1, $2, now(), now() + interval '1 day')",
                seal(sealed_columns::WEBHOOK_PREVIOUS_SECRET),
            ),
            (
                "insert into webhook_previous_secrets (tenant_id, number, secret_enc, created_at, expires_at)
                 values ($1, 2, $2, now(), now() + interval '1 day')",
                seal(sealed_columns::WEBHOOK_PREVIOUS_SECRET),
            ),
            (
                "insert into webhook_client_certificates (tenant_id, certificate_chain, key_enc, not_before, not_after)
                 values ($1, array['\\x00'::bytea], $2, now(), now() + interval '1 year')",
                seal(sealed_columns::CLIENT_CERTIFICATE_KEY),
            ),
            (
                "insert into first_seen_keys (tenant_id, key_enc) values ($1, $2)",
                seal(sealed_columns::FIRST_SEEN_KEY),
            ),
        ] {
            sqlx::query(statement)
                .bind(id.as_str())
                .bind(blob)
                .execute(self.database().pool())
                .await
                .unwrap();
        }
        self.tenants.push(id);
    }

    /// Every secret of the tenants by its place: the id of its key, and whether it opens to its
    /// plaintext.
    async fn opened(&self, ring: &Keyring) -> Vec<(String, u8, bool)> {
        let mut all = Vec::new();
        for column in sealed_columns::secret_columns().filter(|column| column.row == "tenant_id") {
            let rows: Vec<(String, Vec<u8>)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
                "select tenant_id, {} from {} order by 1, 2",
                column.column, column.table
            )))
            .fetch_all(self.database().pool())
            .await
            .unwrap();
            for (tenant, blob) in rows {
                let opened = ring.open(column.context_for(&tenant), &blob);
                let expected = said(&tenant.parse().unwrap(), column.column);
                let is_right = opened.is_ok_and(|it| it.expose_secret() == expected.as_bytes());
                all.push((format!("{} of {tenant}", column.table), blob[0], is_right));
            }
        }
        all
    }

    /// Replaces a secret.
    async fn set_some_secret(&self, ring: &Keyring) {
        let tenant = &self.tenants[fastrand::usize(..self.tenants.len())];
        let column = sealed_columns::GOOGLE_SERVICE_ACCOUNT;
        let secret = said(tenant, column.column);
        let blob = ring.seal(column.context_for(tenant.as_str()), secret.as_bytes());
        sqlx::query("update google_credentials set service_account_enc = $2, updated_at = now() where tenant_id = $1")
            .bind(tenant.as_str())
            .bind(blob)
            .execute(self.database().pool())
            .await
            .unwrap();
    }

    fn attesto(&self, words: &[&str], sealing: &str, retired: &[u8]) -> Ran {
        let retired: Vec<_> = retired.iter().map(|id| text(*id)).collect();
        self.attesto_with(words, sealing, &retired.join(","))
    }

    /// `retired` may be empty.
    fn attesto_with(&self, words: &[&str], sealing: &str, retired: &str) -> Ran {
        let shell = self.fresh.shell().set("ATTESTO_ENCRYPTION_KEY", sealing);
        let shell = match retired {
            "" => shell,
            keys => shell.set("ATTESTO_ENCRYPTION_KEYS_RETIRED", keys),
        };
        let ran = shell.run(words);
        ran.assert_hides("xxxx");
        ran
    }
}

async fn rotate(database: &Database, ring: &Keyring) -> reseal::ResealReport {
    reseal::reseal_values(
        database,
        ring,
        ResealMode::Apply,
        &CancellationToken::new(),
        |_| {},
    )
    .await
    .unwrap()
}

#[test]
fn a_key_is_made_without_a_database_and_printed_once() {
    let run = |words: &[&str], variables: &[(&str, &str)]| {
        let shell = Shell::default().set_all(variables.iter().copied());
        shell.run(&[&["encryption", "generate-key"], words].concat())
    };
    let first = run(&[], &[]);
    assert_eq!(first.exit, 0, "{first:?}");
    let key = first.said.strip_suffix('\n').unwrap();
    assert_eq!(MasterKey::parse(key, None).unwrap().id(), 1);
    assert!(
        !first.complained.contains(&key[2..]),
        "only once: {first:?}"
    );
    assert_ne!(run(&[], &[]).said, first.said);

    // The next free id among the configured ones.
    let next = run(
        &[],
        &[
            ("ATTESTO_ENCRYPTION_KEY", &text(2)),
            ("ATTESTO_ENCRYPTION_KEYS_RETIRED", &text(7)),
        ],
    );
    assert!(next.said.starts_with("8:"), "{next:?}");
    assert!(run(&["--id", "9"], &[]).said.starts_with("9:"));
    let json = run(&["--output", "json", "--id", "9"], &[]);
    assert_eq!(json.lines()[0]["id"], 9);
    assert!(json.lines()[0]["key"].as_str().unwrap().starts_with("9:"));
    for wrong in ["0", "256", "x"] {
        assert_eq!(run(&["--id", wrong], &[]).exit, 2, "{wrong}");
    }
    let full = run(&[], &[("ATTESTO_ENCRYPTION_KEY", &text(255))]);
    assert_eq!(full.exit, 2, "{full:?}");
}

#[tokio::test]
async fn a_key_is_rotated_step_by_step() {
    let vault = Vault::filled(3, &ring(1, &[])).await;
    // A value in a row without a tenant.
    let place = sealed_columns::VALIDATION_AUDIT_KEY.context_for("1");
    sqlx::query("insert into validation_audit_keys (number, key_enc) values (1, $1)")
        .bind(ring(1, &[]).seal(place, b"audit"))
        .execute(vault.database().pool())
        .await
        .unwrap();
    let before = vault.attesto(&["encryption", "status"], &text(1), &[]);
    assert_eq!((before.exit, before.complained.as_str()), (0, ""));
    let status = &before.lines()[0];
    assert_eq!(status["sealingKeyId"], 1);
    assert_eq!(status["toReseal"], 0);
    assert_eq!(
        status["keys"],
        json!([{"id": 1, "role": "seals", "canary": "right", "rows": 22}])
    );

    // The new key seals, the old one still opens.
    let status = vault.attesto(&["encryption:status"], &text(2), &[1]);
    assert_eq!(status.lines()[0]["toReseal"], 22);
    let dry = vault.attesto(&["encryption", "rotate", "--dry-run"], &text(2), &[1]);
    assert_eq!((dry.exit, dry.complained.as_str()), (0, ""), "{dry:?}");
    let last = dry.lines().pop().unwrap();
    assert_eq!(last["event"], "finished");
    assert_eq!(
        (&last["resealed"], &last["remaining"]),
        (&json!(22), &json!(22))
    );
    let untouched = vault.opened(&ring(1, &[])).await;
    assert_eq!(untouched.len(), 21);
    assert!(untouched.iter().all(|(_, id, right)| *id == 1 && *right));

    let rotated = vault.attesto(&["encryption", "rotate"], &text(2), &[1]);
    assert_eq!((rotated.exit, rotated.complained.as_str()), (0, ""));
    assert_eq!(rotated.lines()[0]["event"], "progress");
    let last = rotated.lines().pop().unwrap();
    assert_eq!(
        (&last["resealed"], &last["remaining"]),
        (&json!(22), &json!(0))
    );
    // The old key is not needed any more.
    let after = vault.opened(&ring(2, &[])).await;
    assert!(
        after.iter().all(|(_, id, right)| *id == 2 && *right),
        "{after:?}"
    );
    let audit: Vec<u8> = sqlx::query_scalar("select key_enc from validation_audit_keys")
        .fetch_one(vault.database().pool())
        .await
        .unwrap();
    assert_eq!(
        ring(2, &[]).open(place, &audit).unwrap().expose_secret(),
        b"audit"
    );
    let alone = vault.attesto(&["encryption", "status"], &text(2), &[]);
    assert_eq!((alone.exit, alone.complained.as_str()), (0, ""));
    let again = vault.attesto(&["encryption", "rotate"], &text(2), &[]);
    assert_eq!(again.exit, 0, "{again:?}");
    assert_eq!(again.lines()[0]["resealed"], 0);

    let shown = vault.attesto(
        &["--output", "table", "encryption", "status"],
        &text(2),
        &[1],
    );
    assert!(
        shown.said.contains("No longer needed by this database"),
        "{}",
        shown.said
    );
}

#[tokio::test]
async fn a_key_in_use_cannot_be_omitted_and_is_named() {
    let vault = Vault::filled(1, &ring(1, &[])).await;
    // Even if no canary records that the key was ever used here.
    sqlx::query("delete from encryption_canaries")
        .execute(vault.database().pool())
        .await
        .unwrap();
    for words in [&["encryption", "rotate"][..], &["encryption", "status"]] {
        let refused = vault.attesto(words, &text(2), &[]);
        assert_eq!(refused.exit, 1, "{refused:?}");
        assert!(
            refused
                .complained
                .contains("encryption key 1, which is not configured")
        );
    }
    let serve = vault.attesto(&["serve", "--port=0"], &text(2), &[3]);
    assert_eq!(serve.exit, 2, "{serve:?}");
    assert!(
        serve
            .complained
            .contains("encryption key 1, which is not configured")
    );
    let line = serve.lines().pop().unwrap();
    assert_eq!(
        (&line["level"], &line["msg"]),
        (&json!("fatal"), &json!("startup_failed"))
    );
    assert!(!serve.said.contains("\"listening\""));
    assert!(vault.opened(&ring(1, &[])).await.iter().all(|it| it.2));
}

#[tokio::test]
async fn another_key_of_the_same_id_is_not_called_tampering() {
    let vault = Vault::filled(1, &ring(1, &[])).await;
    let other = format!("1:{}", STANDARD.encode([9; 32]));
    for words in [
        &["encryption", "rotate"][..],
        &["encryption", "rotate", "--dry-run"],
        &["encryption", "status"],
    ] {
        let refused = vault.attesto(words, &other, &[]);
        assert_eq!(refused.exit, 1, "{refused:?}");
        assert!(
            refused
                .complained
                .contains("encryption key 1 is not the key"),
            "{refused:?}"
        );
        assert!(!refused.complained.contains("changed"), "{refused:?}");
    }
    // Nor as the key that only opens.
    let refused = vault.attesto_with(&["encryption", "rotate"], &text(2), &other);
    assert_eq!(refused.exit, 1);
    assert!(
        refused
            .complained
            .contains("encryption key 1 is not the key")
    );
    assert!(vault.opened(&ring(1, &[])).await.iter().all(|it| it.1 == 1));
}

#[tokio::test]
async fn three_kinds_of_damage_are_distinguished_and_affect_nothing_else() {
    let vault = Vault::filled(3, &ring(1, &[])).await;
    let [a, b, c] = [0, 1, 2].map(|at| vault.tenants[at].as_str());
    for (statement, tenants) in [
        // Moved to another row: the right key, the wrong place.
        (
            "update apple_credentials set private_key_enc =
                (select private_key_enc from apple_credentials where tenant_id = $2) where tenant_id = $1",
            [a, b],
        ),
        (
            "update google_credentials set service_account_enc = '\\x01ff' where tenant_id in ($1, $2)",
            [b, b],
        ),
        (
            "update webhook_configs set secret_enc = '' where tenant_id in ($1, $2)",
            [c, c],
        ),
    ] {
        let changed = sqlx::query(statement)
            .bind(tenants[0])
            .bind(tenants[1])
            .execute(vault.database().pool())
            .await
            .unwrap();
        assert_eq!(changed.rows_affected(), 1);
    }
    let ran = vault.attesto(&["encryption", "rotate"], &text(2), &[1]);
    assert_eq!(ran.exit, 1, "{ran:?}");
    let report = ran.lines().pop().unwrap();
    assert_eq!(
        (&report["resealed"], &report["failed"]),
        (&json!(18), &json!(3))
    );
    let classes: BTreeMap<_, _> = report["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["row"].as_str().unwrap(), it["class"].as_str().unwrap()))
        .collect();
    assert_eq!(
        classes,
        BTreeMap::from([(a, "does_not_open"), (b, "not_sealed"), (c, "not_sealed")])
    );
    let complaint = |tenant: &str| {
        let line = ran.complained.lines().find(|line| line.contains(tenant));
        line.unwrap_or_default().to_owned()
    };
    assert!(
        complaint(a).contains("changed, or moved"),
        "{}",
        ran.complained
    );
    assert!(
        complaint(c).contains("not a sealed value"),
        "{}",
        ran.complained
    );

    // The third kind, on which `rotate` refuses to start.
    let unknown = reseal::reseal_values(
        vault.database(),
        &ring(3, &[2]),
        ResealMode::DryRun,
        &CancellationToken::new(),
        |_| {},
    )
    .await
    .unwrap();
    let classes: Vec<_> = unknown.failures.iter().map(|it| it.class).collect();
    assert_eq!(
        classes,
        ["key_unknown", "not_sealed", "not_sealed"],
        "the first still names key 1"
    );
}

#[tokio::test]
async fn a_concurrent_change_of_a_secret_wins_over_the_rotation() {
    let vault = Vault::filled(250, &ring(1, &[])).await;
    let database = vault.database();
    let both = ring(2, &[1]);
    let (stop, writes) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Operators continue to set secrets, with both configurations.
    let operators = async {
        let rings = [ring(1, &[2]), ring(2, &[1])];
        while !stop.load(Ordering::Relaxed) {
            let number = writes.fetch_add(1, Ordering::Relaxed);
            vault.set_some_secret(&rings[number % 2]).await;
        }
    };
    let rotation = async {
        // Two rotations at once do no harm.
        let (one, two) = tokio::join!(rotate(database, &both), rotate(database, &both));
        stop.store(true, Ordering::Relaxed);
        (one, two)
    };
    let ((one, two), ()) = tokio::join!(rotation, operators);
    assert_eq!((one.failed, two.failed), (0, 0));
    assert!(writes.load(Ordering::Relaxed) > 10);
    let opened = vault.opened(&both).await;
    assert_eq!(opened.len(), 7 * 250);
    assert!(opened.iter().all(|(_, _, right)| *right));
    // Values written with the old key meanwhile are found by the next run.
    assert_eq!(rotate(database, &both).await.remaining, 0);
    assert!(vault.opened(&ring(2, &[])).await.iter().all(|it| it.2));
}

/// Killed in the middle, repeatedly, over several keys, while secrets are set: no secret is lost,
/// each rotation completes, and before that no process can start without the old key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_rotation_is_resumed() {
    const KILLS: u32 = 5;
    let vault = Arc::new(Vault::filled(230, &ring(1, &[])).await);
    for (old, new) in [(1, 2), (2, 3)] {
        let writes = Arc::new(AtomicUsize::new(0));
        let operators = {
            let (vault, writes) = (vault.clone(), writes.clone());
            tokio::spawn(async move {
                // By now every process seals with the new key.
                let ring = ring(new, &[old]);
                loop {
                    vault.set_some_secret(&ring).await;
                    writes.fetch_add(1, Ordering::Relaxed);
                    pause(Duration::from_millis(5)).await;
                }
            })
        };
        let operators = AbortOnDropHandle::new(operators);
        let retired = |expected: i32| {
            let status = vault.attesto(&["encryption", "status"], &text(new), &[]);
            assert_eq!(status.exit, expected, "{status:?}");
            let named = format!("encryption key {old}, which is not configured");
            assert_eq!(
                status.complained.contains(&named),
                expected == 1,
                "{status:?}"
            );
        };
        for _ in 0..KILLS {
            let mut child = Command::new(env!("CARGO_BIN_EXE_attesto"))
                .env_clear()
                .env("DATABASE_URL", &vault.fresh.url)
                .env("ATTESTO_ENCRYPTION_KEY", text(new))
                .env("ATTESTO_ENCRYPTION_KEYS_RETIRED", text(old))
                .args(["encryption", "rotate"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // After about one batch: a pause follows each.
            let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            std::io::BufRead::read_line(&mut said, &mut line).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            let opened = vault.opened(&ring(new, &[old])).await;
            assert_eq!(opened.len(), 7 * 230);
            assert!(opened.iter().all(|(_, _, right)| *right));
            assert!(
                opened.iter().any(|(_, id, _)| *id == old),
                "it was killed too late to tell"
            );
            retired(1);
        }
        let ran = vault.attesto(&["encryption", "rotate"], &text(new), &[old]);
        assert_eq!(ran.exit, 0, "{ran:?}");
        assert!(writes.load(Ordering::Relaxed) > 20);
        operators.abort();
        let opened = vault.opened(&ring(new, &[])).await;
        assert_eq!(opened.len(), 7 * 230);
        assert!(opened.iter().all(|(_, id, right)| *id == new && *right));
        retired(0);
    }
    // Secrets resealed by a killed run are recorded like those of the last run.
    let (noted, rows): (i64, i64) = sqlx::query_as(
        "select sum((after ->> 'resealed')::bigint)::bigint, count(*) from operator_audit where action = 'reseal'",
    )
    .fetch_one(vault.database().pool())
    .await
    .unwrap();
    assert!(
        noted > 230 && rows > 2 * i64::from(KILLS),
        "{noted} in {rows}"
    );
}

/// Two keyrings, as two processes would have them, change from one key to the next, in either
/// order: each opens what the other seals at every step, and a process that drops a key too early
/// does not start.
#[tokio::test]
async fn two_key_rings_open_each_others_secrets_at_every_step_of_a_change() {
    let vault = Vault::filled(2, &ring(1, &[])).await;
    let mut from = 1;
    for order in [["east", "west"], ["west", "east"]] {
        let to = from + 1;
        let mut keys = BTreeMap::from([("east", (from, vec![])), ("west", (from, vec![]))]);
        for step in [(from, vec![to]), (to, vec![from]), (to, vec![])] {
            if step.1.is_empty() {
                // Too early: not everything has been resealed.
                let refused = vault.attesto(&["serve", "--port=0"], &text(to), &[]);
                assert_eq!(refused.exit, 2, "{refused:?}");
                let named = format!("encryption key {from}, which is not configured");
                assert!(refused.complained.contains(&named), "{refused:?}");
                let rotated = vault.attesto(&["encryption", "rotate"], &text(to), &[from]);
                assert_eq!(rotated.exit, 0, "{rotated:?}");
            }
            for name in order {
                keys.insert(name, step.clone());
                let rings = || {
                    keys.values()
                        .map(|(sealing, retired)| ring(*sealing, retired))
                };
                for ring in rings() {
                    canary::ensure_canaries(vault.database(), &ring)
                        .await
                        .unwrap();
                    canary::check_all_key_ids(vault.database(), &ring)
                        .await
                        .unwrap();
                    vault.set_some_secret(&ring).await;
                    for other in rings() {
                        let opened = vault.opened(&other).await;
                        assert!(opened.iter().all(|it| it.2), "{keys:?}: {opened:?}");
                    }
                }
            }
        }
        from = to;
    }
}

/// A value sealed for one place opens in no other, whatever the table, column or tenant.
#[tokio::test]
async fn a_sealed_value_opens_only_in_its_own_row_and_column() {
    let ring = ring(1, &[]);
    let vault = Vault::filled(2, &ring).await;
    let mut sealed_values = Vec::new();
    for column in sealed_columns::ALL_SEALED_COLUMNS {
        let rows: Vec<(String, Vec<u8>)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "select {}::text, {} from {}",
            column.row, column.column, column.table
        )))
        .fetch_all(vault.database().pool())
        .await
        .unwrap();
        sealed_values.extend(rows.into_iter().map(|(row, blob)| (column, row, blob)));
    }
    assert_eq!(sealed_values.len(), 2 * 7 + 1);
    for (column, row, _) in &sealed_values {
        let place = column.context_for(row);
        for (from, of, blob) in &sealed_values {
            let opened = ring.open(place, blob);
            if from.context_for(of) == place {
                opened.unwrap();
            } else {
                assert_eq!(
                    opened.unwrap_err().class(),
                    "does_not_open",
                    "{from:?} in {column:?}"
                );
            }
        }
    }
}

/// Every sealed column is filled as the server and its commands fill it, and its value opens there:
/// a column written in another way, or added and not filled here, is found.
#[tokio::test(flavor = "multi_thread")]
async fn every_sealed_column_is_written_sealed() {
    let world = World::today_with(&[("ENABLE_VALIDATION_AUDIT_LOG", "true")]).await;
    let tenant = world.tenant().await;
    let shell = world.shell();
    let id = tenant.id.as_str();
    let (apple, google) = (world.simulator.apple(), world.simulator.google());
    let new = apple.create_api_key().unwrap();
    let words = [
        "apple",
        "set-credentials",
        id,
        "--bundle-id",
        APP,
        "--app-apple-id",
        "1",
        "--key-id",
        &new.key_id,
        "--issuer-id",
        &new.issuer_id,
        "--key-path",
        "-",
    ];
    assert_eq!(shell.run_with(&words, &new.private_key).exit, 0);
    let url = world.simulator.google_token_url();
    let account = google
        .create_service_account("new")
        .unwrap()
        .to_key_file(url.as_str());
    let words = [
        "google",
        "set-credentials",
        id,
        "--package-name",
        APP,
        "--service-account-path",
        "-",
    ];
    assert_eq!(shell.run_with(&words, account.to_string()).exit, 0);
    for letter in ["a", "b"] {
        let words = [
            "webhook",
            "set-config",
            id,
            "--callback-url",
            "https://callback.example.com/",
            "--secret-path",
            "-",
        ];
        assert_eq!(shell.run_with(&words, letter.repeat(40)).exit, 0);
    }
    let made = rcgen::generate_simple_self_signed(vec!["attesto".to_owned()]).unwrap();
    let folder = Folder::new();
    let pair = folder.join("client.pem");
    std::fs::write(&pair, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    let pair = pair.to_str().unwrap();
    let words = ["webhook", "set-config", id];
    let pair = ["--client-certificate-path", pair, "--client-key-path", pair];
    assert_eq!(shell.run(&[&words[..], &pair].concat()).exit, 0);
    let words = ["tenant", "set-first-seen", id, "on"];
    assert_eq!(shell.run(&words).exit, 0);
    // The key of the validation log is created with the first entry; the canary on the first check.
    world
        .verify("apple", &tenant, &json!({ "transactionId": "1" }))
        .await;
    world.ask("GET", "/ready", None, None).await;
    let keyring = world.keyring().clone();
    let fresh = world.end().await;
    for column in sealed_columns::ALL_SEALED_COLUMNS {
        let rows: Vec<(String, Vec<u8>)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "select {}::text, {} from {}",
            column.row, column.column, column.table
        )))
        .fetch_all(fresh.database.pool())
        .await
        .unwrap();
        assert!(!rows.is_empty(), "nothing was written into {column:?}");
        for (row, blob) in rows {
            let opened = keyring.open(column.context_for(&row), &blob);
            assert!(opened.is_ok(), "{column:?} of {row}: {opened:?}");
        }
    }
}

/// After a rotation the canary of the old key stays. To look for values of that key reads every sealed table.
#[tokio::test]
async fn ready_looks_for_values_of_an_old_key_once_an_hour() {
    let world = World::with(&[]).await;
    let old = ring(200, &[]);
    let canary = old.seal(
        sealed_columns::ENCRYPTION_CANARY.context_for("200"),
        b"attesto canary",
    );
    let add = "insert into encryption_canaries (key_id, canary_enc) values (200, $1)";
    let added = sqlx::query(add).bind(canary);
    added.execute(world.database().pool()).await.unwrap();
    let encryption = async || {
        let ready = world.ask("GET", "/ready", None, None).await;
        ready.body["checks"]["encryption"].clone()
    };
    assert_eq!(encryption().await, "ok");

    let place = sealed_columns::VALIDATION_AUDIT_KEY.context_for("1");
    let add = "insert into validation_audit_keys (number, key_enc) values (1, $1) \
        on conflict (number) do update set key_enc = excluded.key_enc";
    let added = sqlx::query(add).bind(old.seal(place, b"audit"));
    added.execute(world.database().pool()).await.unwrap();
    assert_eq!(encryption().await, "ok", "it is not looked for");
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(encryption().await, "fail: encryption key missing");
    world.end().await;
}

#[tokio::test]
async fn rotation_stops_between_two_batches() {
    let vault = Vault::filled(120, &ring(1, &[])).await;
    let stop = CancellationToken::new();
    let both = ring(2, &[1]);
    let report = reseal::reseal_values(vault.database(), &both, ResealMode::Apply, &stop, |_| {
        stop.cancel();
    });
    let report = match finished("the rotation stops", report).await {
        Ok(report) => report,
        Err(ResealError::VerificationFailed(column)) => panic!("{column:?}"),
        Err(ResealError::Database(error)) => panic!("{error}"),
    };
    assert_eq!((report.resealed, report.remaining), (100, 7 * 120 - 100));
}

impl Vault {
    /// Registers a replica, as other processes see it.
    async fn replica(&self, host: &str, sealing: i16, opening: &[i16]) {
        sqlx::query(
            "insert into replicas (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids)
             values ($1, $1, 1, '0', now(), now(), $2, $3)
             on conflict (id) do update set sealing_key_id = $2, opening_key_ids = $3",
        )
        .bind(host)
        .bind(sealing)
        .bind(opening)
        .execute(self.database().pool())
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn rotation_waits_until_every_replica_can_open_the_new_key() {
    let vault = Vault::filled(2, &ring(1, &[])).await;
    vault.replica("east", 1, &[1]).await;
    vault.replica("west", 1, &[1, 2]).await;
    let tenant = vault.tenants[0].as_str();
    let set = [
        "webhook",
        "set-config",
        tenant,
        "--callback-url",
        "https://example.com/",
    ];
    for words in [&["encryption", "rotate"][..], &set] {
        let refused = vault.attesto(words, &text(2), &[1]);
        assert_eq!(refused.exit, 1, "{refused:?}");
        assert!(
            refused
                .complained
                .contains("the service on east cannot open what key 2 seals"),
            "{refused:?}"
        );
    }
    let untouched = vault.opened(&ring(1, &[])).await;
    assert!(untouched.iter().all(|it| it.1 == 1 && it.2));

    // All replicas can open the new key but still seal with the old one: the job waits for the end
    // of the rollout, a person need not.
    vault.replica("east", 1, &[1, 2]).await;
    vault.replica("west", 2, &[1, 2]).await;
    let job = ["jobs", "run", "reseal"];
    let waits = vault.attesto(&job, &text(2), &[1]);
    assert_eq!(waits.exit, 0, "{waits:?}");
    let told = &waits.lines()[0]["told"];
    assert!(
        told["waits"].as_str().unwrap().starts_with("east seal"),
        "{told}"
    );
    // Nor does a replica with the old key reseal everything back.
    let back = vault.attesto(&job, &text(1), &[2]);
    assert!(back.lines()[0]["told"]["waits"].is_string());
    let status = vault.attesto(&["encryption", "status"], &text(2), &[1]);
    assert_eq!(status.lines()[0]["replicas"].as_array().unwrap().len(), 2);
    let rotated = vault.attesto(&["encryption", "rotate"], &text(2), &[1]);
    assert_eq!(rotated.exit, 0, "{rotated:?}");
    assert!(
        rotated.complained.contains("on east still seals"),
        "{rotated:?}"
    );

    vault.replica("east", 2, &[1, 2]).await;
    sqlx::query("update webhook_configs set secret_enc = $1 where tenant_id = $2")
        .bind(ring(1, &[]).seal(
            sealed_columns::WEBHOOK_SECRET.context_for(tenant),
            said(&vault.tenants[0], "secret_enc").as_bytes(),
        ))
        .bind(tenant)
        .execute(vault.database().pool())
        .await
        .unwrap();
    let done = vault.attesto(&job, &text(2), &[1]);
    assert_eq!(done.exit, 0, "{done:?}");
    assert_eq!(
        done.lines()[0]["told"],
        json!({"keyId": 2, "resealed": 1, "remaining": 0})
    );
    let opened = vault.opened(&ring(2, &[])).await;
    assert!(opened.iter().all(|it| it.1 == 2 && it.2));

    // The registration of a killed replica expires.
    vault.replica("gone", 1, &[1]).await;
    sqlx::query("update replicas set seen_at = now() - interval '46 seconds' where id = 'gone'")
        .execute(vault.database().pool())
        .await
        .unwrap();
    assert_eq!(
        vault
            .attesto(&["encryption", "rotate"], &text(2), &[1])
            .exit,
        0
    );
}
