//! One tenant, packed here and unpacked there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use attesto::crypto::ExposeSecret as _;
use attesto::crypto::sealed_file::{Identity, Opener, Passphrase, Recipient, Sealer, To, With};
use attesto::db::Database;
use attesto::deliveries::endpoint::store::{self, Change};
use attesto::deliveries::endpoint::{Secrets, SigningSecret};
use attesto::deliveries::signature;
use attesto::id::TenantId;
use attesto::moving::content::{LEFT, MOVED};
use attesto::simulator::state::apple::NewTransaction;
use attesto::{apple, google};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::hold::{dispatcher_on, events};
use crate::world::attesto::{Tenant, World};
use crate::world::folder::Folder;
use crate::world::receiver::Receiver;
use crate::world::shell::{Ran, Shell};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PASSPHRASE: &str = "correct horse battery staple";

/// Key 2, and other bytes than those of the worlds' key 1.
fn other_key() -> String {
    format!("2:{}", STANDARD.encode([9; 32]))
}

/// Where a tenant is, and where it goes.
struct Move {
    old: World,
    new: World,
    folder: Folder,
    receiver: Receiver,
    tenant: Tenant,
}

fn secret(letter: &str) -> SigningSecret {
    SigningSecret::parse(&letter.repeat(40)).unwrap()
}

impl Move {
    /// The old installation has a tenant with a bit of everything; the new one knows nothing and has another key.
    async fn prepared() -> Self {
        let old = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
        let key = other_key();
        let new = World::with(&[
            ("ATTESTO_ENCRYPTION_KEY", &key),
            ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1"),
        ])
        .await;
        let tenant = old.tenant().await;
        let id = tenant.id.as_str();
        let receiver = Receiver::answering(OK).await;
        for letter in ["o", "n"] {
            let change = Change {
                callback_url: Some(&receiver.url()),
                secret: Some(&secret(letter)),
                is_active: None,
                overlap: Duration::from_hours(24),
            };
            store::change(
                old.database(),
                old.keyring(),
                &tenant.id,
                &change,
                Duration::ZERO,
            )
            .await
            .unwrap();
        }
        let moved = Self {
            old,
            new,
            folder: Folder::new(),
            receiver,
            tenant: Tenant {
                id: tenant.id.clone(),
                key: tenant.key,
            },
        };
        let shell = moved.old.shell();
        shell.rows(&["webhook", "allow", id, "10.1.0.0/16:443"]);
        shell.rows(&["tenant", "set-limits", id, "--per-second", "7"]);
        let revoked = shell.rows(&["key", "create", id]).remove(0);
        shell.rows(&["key", "revoke", revoked["id"].as_str().unwrap()]);
        moved
            .execute(&format!(
                "insert into purchase_links (tenant_id, token_hash, token) values ('{id}', sha256('t'), 't')"
            ))
            .await;
        std::fs::write(moved.file("passphrase"), format!("{PASSPHRASE}\n")).unwrap();
        moved
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn new_shell(&self) -> Shell {
        self.new.shell().set("ATTESTO_ENCRYPTION_KEY", &other_key())
    }

    fn export(&self, name: &str, more: &[&str]) -> Ran {
        let (file, passphrase) = (self.file(name), self.file("passphrase"));
        let words = ["tenant", "export", self.tenant.id.as_str(), "--file", &file];
        let sealed = ["--passphrase-file", &passphrase];
        self.old.shell().run(&[&words[..], &sealed, more].concat())
    }

    fn import(&self, name: &str, more: &[&str]) -> Ran {
        let (file, passphrase) = (self.file(name), self.file("passphrase"));
        let words = [
            "tenant",
            "import",
            "--file",
            &file,
            "--passphrase-file",
            &passphrase,
        ];
        self.new_shell().run(&[&words[..], more].concat())
    }

    async fn execute(&self, statement: &str) {
        sqlx::query(AssertSqlSafe(statement.to_owned()))
            .execute(self.old.database().pool())
            .await
            .unwrap();
    }

    /// Nothing of anybody is in the new installation.
    async fn nothing_arrived(&self) {
        for table in ["tenants", "api_keys", "webhook_events", "operator_audit"] {
            assert_eq!(count(self.new.database(), table).await, 0, "{table}");
        }
    }

    fn deactivate(&self) {
        let words = ["tenant", "deactivate", self.tenant.id.as_str()];
        self.old.shell().rows(&words);
    }
}

async fn count(database: &Database, table: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {table}")))
        .fetch_one(database.pool())
        .await
        .unwrap()
}

fn told(ran: &Ran) -> Value {
    assert_eq!(ran.exit, 0, "{ran:?}");
    serde_json::from_str(ran.said.lines().next().unwrap()).unwrap()
}

/// What is in a table of a tenant, without what is sealed: each row as JSON.
async fn rows(database: &Database, table: &str, key: &str, tenant: &TenantId) -> Vec<Value> {
    let statement = format!(
        "select to_jsonb(line) - array['private_key_enc', 'service_account_enc', 'secret_enc'] from {table} line \
          where {key} = $1 order by 1"
    );
    sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(tenant.as_str())
        .fetch_all(database.pool())
        .await
        .unwrap()
}

#[tokio::test]
#[expect(
    clippy::too_many_lines,
    reason = "a move from its beginning to its end"
)]
async fn a_tenant_moves_with_everything_and_nothing_is_lost_or_sent_twice() {
    let moved = Move::prepared().await;
    let (old, new, id) = (&moved.old, &moved.new, &moved.tenant.id);
    events(old, id, &["1"]).await;
    assert_eq!(dispatcher_on(old, old.database()).drain().await.unwrap(), 1);
    events(old, id, &["2", "3"]).await;

    let copy = moved.export("copy", &[]);
    assert!(copy.complained.contains("the tenant is active"), "{copy:?}");
    moved.deactivate();
    let exported = moved.export("export", &["--with-history"]);
    assert_eq!(exported.complained, "");
    let exported = told(&exported);
    assert_eq!(
        (&exported["waiting"], &exported["wasActive"]),
        (&json!(2), &json!(false))
    );
    assert_eq!(exported["rows"]["api_keys"], 2);
    assert_eq!(exported["rows"]["webhook_events"], 3);

    let dry = told(&moved.import("export", &["--dry-run"]));
    assert_eq!(
        (&dry["dryRun"], &dry["rows"]),
        (&json!(true), &exported["rows"])
    );
    moved.nothing_arrived().await;
    let imported = told(&moved.import("export", &[]));
    for field in ["tenant", "rows", "waiting", "sha256", "exportedAt"] {
        assert_eq!(imported[field], exported[field], "{field}");
    }
    assert_eq!(
        (&imported["kept"], &imported["active"]),
        (&json!({}), &json!(false))
    );
    // Every column of every row is as it was.
    for part in &MOVED {
        let there = rows(new.database(), part.table, part.key, id).await;
        let here = rows(old.database(), part.table, part.key, id).await;
        assert_eq!(there, here, "{}", part.table);
        assert_eq!(json!(there.len()), exported["rows"][part.table]);
    }

    // Inactive as it was; then both processes, which run all the time, hear of it at once.
    let key = Some(moved.tenant.key.expose());
    let body = json!({ "transactionId": "1" });
    assert_eq!(
        new.ask("POST", "/v1/apple/verify", key, Some(&body))
            .await
            .status,
        401
    );
    assert_eq!(moved.receiver.requests().len(), 1);
    moved.new_shell().rows(&["tenant", "activate", id.as_str()]);
    moved.receiver.until(3).await;
    let apple = new.simulator.apple();
    let bought = apple.create(NewTransaction::default()).unwrap();
    let body = json!({ "transactionId": bought.transaction_id });
    let answer = new.ask("POST", "/v1/apple/verify", key, Some(&body)).await;
    assert_eq!(
        (answer.status, &answer.body["valid"]),
        (200, &json!(true)),
        "{answer:?}"
    );

    // Each once, signed by the secrets it was signed by.
    let requests = moved.receiver.requests();
    let ids: BTreeSet<_> = requests
        .iter()
        .map(|it| &it.headers["webhook-id"])
        .collect();
    assert_eq!((requests.len(), ids.len()), (3, 3));
    let secrets = Secrets {
        newest: secret("n"),
        previous: vec![secret("o")],
    };
    for request in &requests {
        let moment = request.headers["x-attesto-timestamp"].parse().unwrap();
        let signed = signature::sign(
            &secrets,
            &request.headers["webhook-id"],
            moment,
            &request.body,
        );
        assert_eq!(request.headers["x-attesto-signature"], signed.attesto);
    }
    assert_eq!(dispatcher_on(old, old.database()).drain().await.unwrap(), 0);

    // What was sealed opens with the other key, and with that alone.
    let there = apple::store::find(new.database(), new.keyring(), id)
        .await
        .unwrap()
        .unwrap();
    let here = apple::store::find(old.database(), old.keyring(), id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(there.key.fingerprint(), here.key.fingerprint());
    let there = google::store::find(new.database(), new.keyring(), id)
        .await
        .unwrap()
        .unwrap();
    let here = google::store::find(old.database(), old.keyring(), id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(there.account.fingerprint(), here.account.fingerprint());
    assert!(
        apple::store::find(new.database(), old.keyring(), id)
            .await
            .is_err()
    );

    // A repeat of what was taken in before is known.
    events(new, id, &["1"]).await;
    assert_eq!(count(new.database(), "webhook_events").await, 3);
    for (shell, action) in [(old.shell(), "export"), (moved.new_shell(), "import")] {
        let audit = shell.rows(&["audit", "operators", "list", "--tenant", id.as_str()]);
        let noted = audit.iter().find(|row| row["action"] == action).unwrap();
        assert_eq!(noted["after"]["sha256"], exported["sha256"], "{noted}");
        assert_eq!(noted["command"], format!("tenant {action}"));
        assert_eq!(shell.run(&["audit", "verify"]).exit, 0);
    }
}

#[tokio::test]
async fn a_file_that_is_not_as_it_was_written_is_refused_and_nothing_is_written() {
    let moved = Move::prepared().await;
    let id = moved.tenant.id.as_str();
    events(&moved.old, &moved.tenant.id, &["1"]).await;
    moved.deactivate();
    told(&moved.export("export", &[]));
    let mode = std::fs::metadata(moved.file("export"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = moved.export("export", &[]);
    assert_eq!(again.exit, 1);
    assert!(again.complained.contains("exists already"), "{again:?}");

    let whole = std::fs::read(moved.file("export")).unwrap();
    let refused = |bytes: &[u8], said: &str| {
        std::fs::write(moved.file("changed"), bytes).unwrap();
        let ran = moved.import("changed", &[]);
        assert_eq!((ran.exit, ran.said.as_str()), (1, ""), "{ran:?}");
        assert!(ran.complained.contains(said), "{said}: {ran:?}");
    };
    let line = |number: usize| {
        let ends = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        ends.map(|(at, _)| at).nth(number).unwrap()
    };
    // Each of the lines, the first piece, the last byte.
    for (at, said) in [
        (0, "not a file that Attesto sealed"),
        (line(0) + 30, "was changed"),
        (line(1) + 5, "was changed"),
        (line(2) + 1, "was changed"),
        (whole.len() - 1, "was changed"),
    ] {
        let mut other = whole.clone();
        other[at] ^= 1;
        refused(&other, said);
    }
    refused(&whole[..whole.len() - 1], "cut off");
    refused(&whole[..=line(2)], "cut off");
    refused(b"", "not a file that Attesto sealed");

    std::fs::write(moved.file("passphrase"), "correct horse battery stapler").unwrap();
    let wrong = moved.import("export", &[]);
    assert_eq!((wrong.exit, wrong.said.as_str()), (1, ""));
    assert!(
        wrong.complained.contains("the passphrase is wrong"),
        "{wrong:?}"
    );
    std::fs::write(moved.file("passphrase"), "too short").unwrap();
    let short = moved.import("export", &[]);
    assert_eq!(short.exit, 2);
    assert!(short.complained.contains("12 characters"), "{short:?}");
    moved.nothing_arrived().await;

    // No secret is said, and none is readable in the file.
    let p8 = moved.old.simulator.apple().key().private_key;
    let account = moved.old.simulator.google_service_account();
    let in_file = |text: &str| {
        let forms = [text.to_owned(), STANDARD.encode(text)];
        forms
            .iter()
            .any(|form| whole.windows(form.len()).any(|it| it == form.as_bytes()))
    };
    for planted in [
        p8.lines().nth(1).unwrap(),
        account["private_key_id"].as_str().unwrap(),
        account["client_email"].as_str().unwrap(),
        &"o".repeat(40),
        &"n".repeat(40),
        moved.tenant.key.expose(),
        &moved.receiver.url(),
        PASSPHRASE,
        id,
        "tenants",
        "com.example.app",
    ] {
        assert!(!in_file(planted), "{planted}");
    }
}

/// What is in an export, by the passphrase.
fn lines(file: &str) -> Vec<Value> {
    let with = With::Passphrase(Passphrase::parse(PASSPHRASE).unwrap());
    let opener = Opener::new(File::open(file).unwrap(), &with).unwrap();
    let lines = BufReader::new(opener).lines();
    lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect()
}

#[tokio::test]
async fn no_table_and_no_column_is_forgotten() {
    let moved = Move::prepared().await;
    let database = moved.old.database();
    let tables: BTreeSet<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables
          where table_schema = 'public' and table_type = 'BASE TABLE'",
    )
    .fetch_all(database.pool())
    .await
    .unwrap()
    .into_iter()
    .collect();
    let decided: BTreeSet<String> = MOVED
        .iter()
        .map(|part| part.table)
        .chain(LEFT.iter().map(|(table, _)| *table))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        tables, decided,
        "a table goes along or stays: say which in src/moving/content.rs"
    );

    told(&moved.export("export", &[]));
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut rows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut table = String::new();
    for line in lines(&moved.file("export")) {
        if line["table"].is_object() {
            table = line["table"]["name"].as_str().unwrap().to_owned();
            let columns = line["table"]["columns"].as_array().unwrap().clone();
            found.insert(table.clone(), columns);
        } else if let Some(fields) = line["row"]["fields"].as_object() {
            let names = fields.keys().cloned();
            let sealed = line["row"]["secret"]
                .is_string()
                .then(|| "a secret".to_owned());
            rows.insert(table.clone(), names.chain(sealed).collect());
        }
    }
    for part in &MOVED {
        let columns: Vec<String> = sqlx::query_scalar(
            "select column_name::text from information_schema.columns
              where table_schema = 'public' and table_name = $1 and is_generated = 'NEVER' order by ordinal_position",
        )
        .bind(part.table)
        .fetch_all(database.pool())
        .await
        .unwrap();
        assert_eq!(json!(found[part.table]), json!(columns), "{}", part.table);
        // And so is each row.
        if let Some(row) = rows.get(part.table) {
            let expected: BTreeSet<String> = columns
                .into_iter()
                .map(|name| {
                    if name.ends_with("_enc") {
                        "a secret".into()
                    } else {
                        name
                    }
                })
                .collect();
            assert_eq!(row, &expected, "{}", part.table);
        }
    }
    for table in [
        "webhook_configs",
        "apple_credentials",
        "google_credentials",
        "webhook_previous_secrets",
    ] {
        assert!(rows[table].contains("a secret"), "{table}");
    }
}

#[tokio::test]
async fn without_its_history_a_tenant_takes_along_what_is_still_needed() {
    let moved = Move::prepared().await;
    let id = &moved.tenant.id;
    events(
        &moved.old,
        id,
        &[
            "old and delivered",
            "old and failed",
            "old and waiting",
            "young",
        ],
    )
    .await;
    for statement in [
        "update webhook_events set received_at = now() - interval '8 days' where external_id like 'old%'",
        "update webhook_deliveries set status = 'delivered', delivered_at = now()
          where event_id in (select id from webhook_events where external_id in ('old and delivered', 'young'))",
        "update webhook_deliveries set status = 'failed', failed_at = now()
          where event_id in (select id from webhook_events where external_id = 'old and failed')",
        // Somebody died over it.
        "update webhook_deliveries set lease_until = now() + interval '1 minute', lease_no = 4 where status = 'pending'",
    ] {
        moved.execute(statement).await;
    }
    moved.deactivate();
    let refused = moved.export("export", &[]);
    assert_eq!(refused.exit, 1);
    assert!(
        refused.complained.contains("1 deliveries of tenant_"),
        "{refused:?}"
    );
    assert!(!moved.folder.join("export").exists() && !moved.folder.join("export.part").exists());
    moved
        .execute("update webhook_deliveries set lease_until = now() - interval '1 second' where status = 'pending'")
        .await;
    let exported = told(&moved.export("export", &[]));
    assert_eq!(
        (&exported["history"], &exported["waiting"]),
        (&json!("needed"), &json!(1))
    );
    told(&moved.import("export", &[]));
    let names: Vec<String> =
        sqlx::query_scalar("select external_id from webhook_events order by 1")
            .fetch_all(moved.new.database().pool())
            .await
            .unwrap();
    assert_eq!(names, ["old and failed", "old and waiting", "young"]);
    let (lease, no): (bool, i32) = sqlx::query_as(
        "select lease_until is null, lease_no from webhook_deliveries where status = 'pending'",
    )
    .fetch_one(moved.new.database().pool())
    .await
    .unwrap();
    assert_eq!((lease, no), (true, 4));

    // One that is not through needs the history.
    moved
        .execute(&format!(
            "insert into webhook_redeliveries (id, tenant_id, received_from, received_until, requested_by, next_batch_at, created_at)
             values ('red_1', '{id}', now(), now(), 'me', now(), now())"
        ))
        .await;
    let refused = moved.export("more", &[]);
    assert_eq!(refused.exit, 1);
    assert!(
        refused.complained.contains("not through yet"),
        "{refused:?}"
    );
    assert_eq!(
        told(&moved.export("more", &["--with-history"]))["rows"]["webhook_redeliveries"],
        1
    );
}

#[tokio::test]
async fn a_tenant_is_restored_over_itself_only_when_asked_to() {
    let moved = Move::prepared().await;
    let id = moved.tenant.id.as_str();
    let shell = moved.old.shell();
    events(&moved.old, &moved.tenant.id, &["1"]).await;
    told(&moved.export("export", &[]));
    // Since then: a key is revoked and another made, the credentials are somebody else's, an event came and one was delivered.
    let apple = |database: &Database| {
        let (keyring, id) = (moved.old.keyring().clone(), moved.tenant.id.clone());
        let database = database.clone();
        async move {
            let found = apple::store::find(&database, &keyring, &id).await.unwrap();
            found.unwrap().bundle_id
        }
    };
    shell.rows(&["key", "revoke", "--tenant", id, "--all"]);
    shell.rows(&["key", "create", id]);
    shell.rows(&["webhook", "allow", id, "10.9.0.0/16:443"]);
    moved
        .execute("update apple_credentials set bundle_id = 'com.example.wrong'")
        .await;
    moved
        .execute("update webhook_deliveries set status = 'delivered', delivered_at = now()")
        .await;
    events(&moved.old, &moved.tenant.id, &["2"]).await;

    let (file, passphrase) = (moved.file("export"), moved.file("passphrase"));
    let import = [
        "tenant",
        "import",
        "--file",
        &file,
        "--passphrase-file",
        &passphrase,
    ];
    let refused = shell.run(&import);
    assert_eq!(refused.exit, 1);
    assert!(
        refused.complained.contains("is here already"),
        "{refused:?}"
    );
    let restored = told(&shell.run(&[&import[..], &["--replace", "--as-inactive"]].concat()));
    assert_eq!(
        (&restored["replaced"], &restored["active"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        restored["kept"],
        json!({
            "api_keys": 2, "purchase_links": 1, "webhook_events": 1, "webhook_deliveries": 1
        })
    );
    assert_eq!(apple(moved.old.database()).await, "com.example.app");
    let database = moved.old.database();
    assert_eq!(
        count(database, "api_keys where revoked_at is null").await,
        1,
        "the one made since"
    );
    assert_eq!(count(database, "webhook_allowed_networks").await, 1);
    assert_eq!(count(database, "webhook_events").await, 2);
    assert_eq!(
        count(database, "webhook_deliveries where status = 'delivered'").await,
        1
    );
    assert_eq!(count(database, "tenants where is_active").await, 0);
    assert_eq!(shell.run(&["audit", "verify"]).exit, 0);
}

#[tokio::test]
async fn a_file_for_a_recipient_opens_with_the_identity_alone() {
    let moved = Move::prepared().await;
    let shell = Shell::default();
    let identity = moved.file("identity");
    let made = shell.rows(&["encryption", "generate-identity", "--file", &identity]);
    let recipient = made[0]["recipient"].as_str().unwrap();
    let again = shell.run(&["encryption", "generate-identity", "--file", &identity]);
    assert_eq!(again.exit, 1, "never over another one");
    let other = moved.file("other");
    shell.rows(&["encryption", "generate-identity", "--file", &other]);
    let permissions = std::fs::metadata(&identity).unwrap().permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);

    let (id, file) = (moved.tenant.id.as_str(), moved.file("export"));
    let export = ["tenant", "export", id, "--file", &file];
    let plain = moved.old.shell().run(&export);
    assert_eq!(plain.exit, 2, "never without a seal");
    let odd = moved
        .old
        .shell()
        .run(&[&export[..], &["--recipient", "me"]].concat());
    assert_eq!(odd.exit, 2);
    assert!(odd.complained.contains("attesto-recipient-1:"), "{odd:?}");
    let exported = moved
        .old
        .shell()
        .run(&[&export[..], &["--recipient", recipient]].concat());
    assert_eq!(told(&exported)["sealedFor"], recipient);
    let import = |identity: &str| {
        let words = [
            "tenant",
            "import",
            "--file",
            &file,
            "--identity-file",
            identity,
        ];
        moved.new_shell().run(&words)
    };
    let wrong = import(&other);
    assert_eq!(wrong.exit, 1);
    assert!(wrong.complained.contains("another recipient"), "{wrong:?}");
    let passphrase = moved.import("export", &[]);
    assert!(
        passphrase
            .complained
            .contains("for a recipient, and a passphrase"),
        "{passphrase:?}"
    );
    moved.nothing_arrived().await;
    assert_eq!(told(&import(&identity))["active"], true);
}

/// Somebody who knows a recipient, and writes what they like.
struct Forger {
    moved: Move,
    recipient: Recipient,
}

impl Forger {
    async fn new() -> Self {
        let moved = Move::prepared().await;
        let (text, recipient) = Identity::generate();
        std::fs::write(moved.file("identity"), text.expose_secret()).unwrap();
        Self { moved, recipient }
    }

    /// What becomes of these lines.
    fn import(&self, lines: &[Value]) -> Ran {
        let (file, identity) = (self.moved.file("forged"), self.moved.file("identity"));
        let to = To::Recipient(self.recipient.clone());
        let mut sealer = Sealer::new(File::create(&file).unwrap(), &to).unwrap();
        for line in lines {
            writeln!(sealer, "{line}").unwrap();
        }
        sealer.finish().unwrap();
        let words = [
            "tenant",
            "import",
            "--file",
            &file,
            "--identity-file",
            &identity,
        ];
        self.moved.new_shell().run(&words)
    }

    fn label(&self, schema: i64) -> Value {
        json!({"label": {"format": 1, "tenant": self.moved.tenant.id, "name": "x", "wasActive": true, "history": "needed",
            "exportedAt": "2026-04-10T14:22:10.000Z", "attesto": "9.9.9", "schemaVersion": schema}})
    }
}

fn table(name: &str, columns: &[&str]) -> Value {
    json!({"table": {"name": name, "columns": columns}})
}

fn row(fields: &Value) -> Value {
    json!({"row": {"fields": fields}})
}

fn end(rows: &Value) -> Value {
    json!({"end": {"rows": rows}})
}

#[tokio::test]
async fn a_file_cannot_reach_another_tenant() {
    let forger = Forger::new().await;
    let database = forger.moved.new.database();
    let victim = forger.moved.new.stranger().await.id;
    let hash = format!("\\x{}", "00".repeat(32));
    told(&forger.import(&[
        forger.label(1),
        table("tenants", &["id", "name"]),
        row(&json!({"id": victim, "name": "Mallory"})),
        table("api_keys", &["id", "tenant_id", "key_hash", "key_prefix"]),
        row(&json!({"id": "key_x", "tenant_id": victim, "key_hash": hash, "key_prefix": "xxxxxxxx"})),
        end(&json!({"tenants": 1, "api_keys": 1})),
    ]));
    let names: Vec<(String, String)> = sqlx::query_as(
        "select tenants.id, tenants.name from tenants join api_keys on api_keys.tenant_id = tenants.id
          where api_keys.id = 'key_x'",
    )
    .fetch_all(database.pool())
    .await
    .unwrap();
    let tenant = forger.moved.tenant.id.to_string();
    assert_eq!(names, [(tenant, "Mallory".to_owned())]);
    assert_eq!(count(database, "tenants where name = 'A tenant'").await, 1);
}

#[tokio::test]
async fn what_this_release_does_not_know_is_not_left_out_in_silence() {
    let forger = Forger::new().await;
    let label = || forger.label(1);
    let tenants = || table("tenants", &["id", "name"]);
    for (lines, said) in [
        (
            vec![forger.label(1_000_000), end(&json!({}))],
            "made by Attesto 9.9.9",
        ),
        (
            vec![label(), table("tenants", &["id", "mood"])],
            "made by Attesto 9.9.9",
        ),
        (
            vec![label(), table("replicas", &["id"])],
            "no place for a table called replicas",
        ),
        (vec![label(), tenants()], "its end is missing"),
        (
            vec![label(), end(&json!({"tenants": 1}))],
            "counts other rows",
        ),
        (
            vec![label(), end(&json!({})), row(&json!({}))],
            "counts other rows",
        ),
        (vec![json!({"odd": 1})], "none of this release's"),
    ] {
        let refused = forger.import(&lines);
        assert_eq!(
            (refused.exit, refused.said.as_str()),
            (1, ""),
            "{refused:?}"
        );
        assert!(refused.complained.contains(said), "{said}: {refused:?}");
    }
    forger.moved.nothing_arrived().await;
}
