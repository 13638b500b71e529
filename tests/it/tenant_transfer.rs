//! Exports one tenant and imports it into another installation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::base::id::TenantId;
use attesto::base::progress::ignore_progress;
use attesto::crypto::ExposeSecret as _;
use attesto::crypto::sealed_file::{
    OpeningSecret, Passphrase, Recipient, RecipientIdentity, SealTarget, SealedFileReader,
    SealedFileWriter,
};
use attesto::db::Database;
use attesto::deliveries::endpoint::callbacks::store::add_endpoint;
use attesto::deliveries::endpoint::store::{self, EndpointChange};
use attesto::deliveries::endpoint::{
    CallbackFilter, CallbackKind, ClientCertificate, ClientCertificateChange, NewEndpoint,
    SigningSecret, SigningSecrets,
};
use attesto::deliveries::signature;
use attesto::events::{
    EventRecorder, EventSubject, NewEvent, RecordError, StateError, SubjectType,
};
use attesto::simulator::state::apple::NewTransaction;
use attesto::stores::apple::account::EnvironmentChoice;
use attesto::stores::google::account::GoogleServiceAccount;
use attesto::stores::{apple, google};
use attesto::tenant_transfer::ImportOptions;
use attesto::tenant_transfer::tables::{EXCLUDED_TABLES, HistoryScope, TRANSFERRED_TABLES};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::delivery_hold::{dispatcher_on, events};
use crate::webhook_end_to_end::convinces;
use crate::world::attesto::{APP, APP_APPLE_ID, Tenant, World};
use crate::world::event::{event_body, test_event};
use crate::world::folder::Folder;
use crate::world::postgres::begin_without_idle_timeout;
use crate::world::receiver::Receiver;
use crate::world::shell::{Ran, Shell};
use crate::world::wait::wait_until;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PASSPHRASE: &str = "correct horse battery staple";

/// Key 2, with other bytes than key 1 of a `World`.
fn other_key() -> String {
    format!("2:{}", STANDARD.encode([9; 32]))
}

/// The old and the new installation of a tenant.
struct Move {
    old: World,
    new: World,
    folder: Folder,
    receiver: Receiver,
    tenant: Tenant,
    /// The recipient that files are sealed for, or `None` for the passphrase, which takes half a
    /// second each time. The file `opener` opens them.
    recipient: Option<Recipient>,
}

fn secret(letter: &str) -> SigningSecret {
    SigningSecret::parse(&letter.repeat(40)).unwrap()
}

impl Move {
    /// The old installation has a tenant with data in every table; the new one is empty and has
    /// another key.
    async fn prepared() -> Self {
        Box::pin(Self::made()).await
    }

    async fn made() -> Self {
        let old = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
        let key = other_key();
        let new = World::with(&[
            ("ATTESTO_ENCRYPTION_KEY", &key),
            ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1"),
        ])
        .await;
        let tenant = old.tenant().await;
        // Credentials of each store, and previous ones.
        for environment in [EnvironmentChoice::Sandbox, EnvironmentChoice::Auto] {
            old.set_apple(&tenant, environment, Some(APP_APPLE_ID))
                .await;
        }
        let file = old.simulator.google_service_account().to_string();
        let account = GoogleServiceAccount::parse(file.as_bytes()).unwrap();
        let google = google::store::NewGoogleCredentials {
            package_name: APP,
            key_file: file.as_bytes(),
            account: &account,
            pubsub_audience: Some("attesto"),
            pubsub_service_account: None,
            pubsub_topic: None,
        };
        google::store::set_credentials(old.database(), old.keyring(), &tenant.id, &google)
            .await
            .unwrap();
        let id = tenant.id.as_str();
        let receiver = Receiver::answering(OK).await;
        let client_certificate = client_certificate(old.clock.now());
        for letter in ["o", "n"] {
            let change = EndpointChange {
                client_certificate: Some(ClientCertificateChange::Set(&client_certificate)),
                callback_url: Some(&receiver.url()),
                secret: Some(&secret(letter)),
                overlap: Duration::from_hours(24),
                ..EndpointChange::default()
            };
            store::change_endpoint(old.database(), old.keyring(), &tenant.id, &change)
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
            recipient: None,
        };
        let shell = moved.old.shell();
        shell.rows(&["webhook", "allow", id, "10.1.0.0/16:443"]);
        shell.rows(&["tenant", "set-limits", id, "--per-second", "7"]);
        let revoked = shell.rows(&["key", "create", id]).remove(0);
        shell.rows(&["key", "revoke", revoked["id"].as_str().unwrap()]);
        moved.insert_rows(id).await;
        moved.see_a_purchase().await;
        let (identity, recipient) = RecipientIdentity::generate_identity();
        std::fs::write(moved.file("opener"), identity.expose_secret()).unwrap();
        Self {
            recipient: Some(recipient),
            ..moved
        }
    }

    /// Rows of what requests and jobs write.
    async fn insert_rows(&self, id: &str) {
        for statement in [
            "insert into purchase_links (lane, tenant_id, token_hash, token) values (tenant_lane($1), $1, sha256('t'), 't')",
            "insert into owed_acknowledgements
                    (lane, tenant_id, token_hash, purchase_token, subject_type, acknowledge_by, next_check_at)
                 values (tenant_lane($1), $1, sha256('t'), 't', 'product', now() + interval '3 days', now() + interval '2 days')",
            "insert into refund_questions
                    (lane, tenant_id, source, question_hash, purchase_id, refund_token, answer_by, next_check_at, leased_until)
                 values (tenant_lane($1), $1, 'google', sha256('q'), 'GPA.1', 'q', now() + interval '1 day', now() + interval '22 hours', now())",
            "insert into voided_purchases (lane, tenant_id, refund_hash, external_id) values (tenant_lane($1), $1, sha256('r'), '7')",
            "insert into subjects (lane, tenant_id, source, key_hash, last_sequence) values (tenant_lane($1), $1, 'google', sha256('t'), 7)",
            "insert into webhook_redeliveries
                    (lane, id, tenant_id, received_from, received_until, requested_by, next_batch_at, created_at, finished_at)
                 values (tenant_lane($1), 'red_0', $1, now(), now(), 'me', now(), now(), now())",
        ] {
            let insert = sqlx::query(statement).bind(id);
            insert.execute(self.old.database().pool()).await.unwrap();
        }
    }

    /// The same, with files sealed by the passphrase.
    fn with_passphrase(self) -> Self {
        std::fs::write(self.file("opener"), format!("{PASSPHRASE}\n")).unwrap();
        Self {
            recipient: None,
            ..self
        }
    }

    /// The options that open a file.
    fn opener(&self) -> [String; 2] {
        let flag = match self.recipient {
            Some(_) => "--identity-file",
            None => "--passphrase-file",
        };
        [flag.to_owned(), self.file("opener")]
    }

    /// The same for calls in this process.
    fn with(&self) -> OpeningSecret {
        let text = std::fs::read_to_string(self.file("opener")).unwrap();
        match self.recipient {
            Some(_) => OpeningSecret::Identity(RecipientIdentity::parse(&text).unwrap()),
            None => OpeningSecret::Passphrase(Passphrase::parse(&text).unwrap()),
        }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn new_shell(&self) -> Shell {
        self.new.shell().set("ATTESTO_ENCRYPTION_KEY", &other_key())
    }

    fn export(&self, name: &str, more: &[&str]) -> Ran {
        let file = self.file(name);
        let words = ["tenant", "export", self.tenant.id.as_str(), "--file", &file];
        let [flag, seal] = match &self.recipient {
            Some(recipient) => ["--recipient".to_owned(), recipient.to_string()],
            None => self.opener(),
        };
        let sealed = [&*flag, &seal];
        self.old.shell().run(&[&words[..], &sealed, more].concat())
    }

    fn import(&self, name: &str, more: &[&str]) -> Ran {
        let (file, [flag, opener]) = (self.file(name), self.opener());
        let words = ["tenant", "import", "--file", &file, &flag, &opener];
        self.new_shell().run(&[&words[..], more].concat())
    }

    /// The tenant asks for whom purchases were first verified, and one was.
    async fn see_a_purchase(&self) {
        let id = self.tenant.id.as_str();
        let words = ["tenant", "set-first-seen", id, "on"];
        self.old.shell().rows(&words);
        self.execute(&format!(
            "insert into first_seen_purchases (lane, tenant_id, purchase_hash, user_hash, first_seen_at, last_seen_at)
             values (tenant_lane('{id}'), '{id}', sha256('p'), sha256('u'), now(), now())"
        ))
        .await;
    }

    async fn execute(&self, statement: &str) {
        sqlx::query(AssertSqlSafe(statement.to_owned()))
            .execute(self.old.database().pool())
            .await
            .unwrap();
    }

    /// The new installation has no rows of any tenant.
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

fn client_certificate(now: Timestamp) -> ClientCertificate {
    let made = rcgen::generate_simple_self_signed(vec!["attesto".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    ClientCertificate::from_pem(certificate.as_bytes(), key.as_bytes(), now).unwrap()
}

fn told(ran: &Ran) -> Value {
    assert_eq!(ran.exit, 0, "{ran:?}");
    serde_json::from_str(ran.said.lines().next().unwrap()).unwrap()
}

/// The rows of a table of a tenant as JSON, without sealed and compressed columns.
async fn rows(database: &Database, table: &str, key: &str, tenant: &TenantId) -> Vec<Value> {
    let statement = format!(
        "select to_jsonb(line) - array['private_key_enc', 'service_account_enc', 'secret_enc', 'key_enc', 'stored_body'] from {table} line \
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
async fn a_tenant_transfer_loses_nothing_and_sends_nothing_twice() {
    let moved = Move::prepared().await.with_passphrase();
    let (old, new, id) = (&moved.old, &moved.new, &moved.tenant.id);
    events(old, id, &["1"]).await;
    assert_eq!(
        dispatcher_on(old, old.database())
            .run_until_idle()
            .await
            .unwrap(),
        1
    );
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

    let dry = told(&moved.import("export", &["--with-networks", "--dry-run"]));
    assert_eq!(
        (&dry["dryRun"], &dry["rows"]),
        (&json!(true), &exported["rows"])
    );
    moved.nothing_arrived().await;
    let imported = told(&moved.import("export", &["--with-networks"]));
    assert_eq!(
        (&imported["networks"], &imported["networksOpened"]),
        (&json!(["10.1.0.0/16:443"]), &json!(true))
    );
    for field in ["tenant", "rows", "waiting", "sha256", "exportedAt"] {
        assert_eq!(imported[field], exported[field], "{field}");
    }
    assert_eq!(
        (&imported["kept"], &imported["active"]),
        (&json!({}), &json!(false))
    );
    // Every column of every row is unchanged.
    for part in &TRANSFERRED_TABLES {
        let there = rows(new.database(), part.name, part.tenant_column, id).await;
        let here = rows(old.database(), part.name, part.tenant_column, id).await;
        assert_eq!(there, here, "{}", part.name);
        assert_eq!(json!(there.len()), exported["rows"][part.name]);
    }
    let sent: Vec<String> = sqlx::query_scalar("select id from webhook_events")
        .fetch_all(old.database().pool())
        .await
        .unwrap();
    for event in sent {
        assert_eq!(
            event_body(new.database(), &event).await,
            event_body(old.database(), &event).await
        );
    }

    // Inactive as before; then activated, and both running processes notice it at once.
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
    let bought = apple.create_transaction(NewTransaction::default()).unwrap();
    let body = json!({ "transactionId": bought.transaction_id });
    let answer = new.ask("POST", "/v1/apple/verify", key, Some(&body)).await;
    assert_eq!(
        (answer.status, &answer.body["valid"]),
        (200, &json!(true)),
        "{answer:?}"
    );

    // Each once, signed with the same secrets as before.
    let requests = moved.receiver.requests();
    let ids: BTreeSet<_> = requests
        .iter()
        .map(|it| &it.headers["webhook-id"])
        .collect();
    assert_eq!((requests.len(), ids.len()), (3, 3));
    let secrets = SigningSecrets {
        newest: secret("n"),
        previous: vec![secret("o")],
    };
    for request in &requests {
        let moment = request.headers["x-attesto-timestamp"].parse().unwrap();
        let signed = signature::sign_delivery(
            &secrets,
            &request.headers["webhook-id"],
            moment,
            &request.body,
        );
        assert_eq!(request.headers["x-attesto-signature"], signed.attesto);
    }
    assert_eq!(
        dispatcher_on(old, old.database())
            .run_until_idle()
            .await
            .unwrap(),
        0
    );

    // Sealed values open with the other key, and with no other.
    let there = apple::store::load_credentials(new.database(), new.keyring(), id)
        .await
        .unwrap()
        .unwrap();
    let here = apple::store::load_credentials(old.database(), old.keyring(), id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(there.key.fingerprint(), here.key.fingerprint());
    let there = google::store::load_credentials(new.database(), new.keyring(), id)
        .await
        .unwrap()
        .unwrap();
    let here = google::store::load_credentials(old.database(), old.keyring(), id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(there.account.fingerprint(), here.account.fingerprint());
    assert!(
        apple::store::load_credentials(new.database(), old.keyring(), id)
            .await
            .is_err()
    );
    // And the previous credentials: rollback works in both installations.
    let grace = Duration::from_hours(1);
    apple::store::CREDENTIAL_HISTORY
        .rollback(new.database(), new.keyring(), id, grace)
        .await
        .unwrap();
    google::store::CREDENTIAL_HISTORY
        .rollback(new.database(), new.keyring(), id, grace)
        .await
        .unwrap();
    let before = apple::store::load_credentials(new.database(), new.keyring(), id).await;
    assert_eq!(
        before.unwrap().unwrap().environment,
        EnvironmentChoice::Sandbox
    );
    let before = google::store::load_credentials(new.database(), new.keyring(), id).await;
    let before = before.unwrap().unwrap();
    assert_eq!(before.account.fingerprint(), here.account.fingerprint());
    assert_eq!(
        count(
            new.database(),
            "google_credentials where pubsub_audience is null"
        )
        .await,
        1
    );

    // A repeated notification is recognised as a duplicate.
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
async fn a_damaged_export_is_refused_and_nothing_is_written() {
    let moved = Move::prepared().await.with_passphrase();
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
    // In each line, in the first chunk, in the last byte.
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
    refused(&whole[..whole.len() - 1], "truncated");
    refused(&whole[..=line(2)], "truncated");
    refused(b"", "not a file that Attesto sealed");

    std::fs::write(moved.file("opener"), "correct horse battery stapler").unwrap();
    let wrong = moved.import("export", &[]);
    assert_eq!((wrong.exit, wrong.said.as_str()), (1, ""));
    assert!(
        wrong.complained.contains("the passphrase is wrong"),
        "{wrong:?}"
    );
    std::fs::write(moved.file("opener"), "too short").unwrap();
    let short = moved.import("export", &[]);
    assert_eq!(short.exit, 2);
    assert!(short.complained.contains("12 characters"), "{short:?}");
    moved.nothing_arrived().await;

    // No secret is printed, and none is readable in the file.
    let p8 = moved.old.simulator.apple().api_key().private_key;
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

/// The lines of an export.
fn lines(moved: &Move, name: &str) -> Vec<Value> {
    let file = File::open(moved.file(name)).unwrap();
    let opener = SealedFileReader::new(file, &moved.with()).unwrap();
    let lines = BufReader::new(opener).lines();
    lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect()
}

#[tokio::test]
async fn an_export_covers_every_table_and_column() {
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
    let decided: BTreeSet<String> = TRANSFERRED_TABLES
        .iter()
        .map(|part| part.name)
        .chain(EXCLUDED_TABLES.iter().map(|(table, _)| *table))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        tables, decided,
        "a table goes along or stays: say which in src/tenant_transfer/tables.rs"
    );

    events(&moved.old, &moved.tenant.id, &["1"]).await;
    told(&moved.export("export", &["--with-history"]));
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut rows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut table = String::new();
    for line in lines(&moved, "export") {
        if line["table"].is_object() {
            table = line["table"]["name"].as_str().unwrap().to_owned();
            let columns = line["table"]["columns"].as_array().unwrap().clone();
            found.insert(table.clone(), columns);
        } else if let Some(fields) = line["row"]["fields"].as_object() {
            let names = fields.keys().cloned();
            let sealed = line["row"]["secret"]
                .is_string()
                .then(|| "a secret".to_owned());
            // As text: another database has other dictionaries.
            let body = line["row"]["body"].as_str().map(|text| {
                assert!(serde_json::from_str::<Value>(text).unwrap()["raw"].is_object());
                "stored_body".to_owned()
            });
            rows.insert(table.clone(), names.chain(sealed).chain(body).collect());
        }
    }
    for part in &TRANSFERRED_TABLES {
        let columns: Vec<String> = sqlx::query_scalar(
            "select column_name::text from information_schema.columns
              where table_schema = 'public' and table_name = $1 and is_generated = 'NEVER'
                and column_name <> 'lane' order by ordinal_position",
        )
        .bind(part.name)
        .fetch_all(database.pool())
        .await
        .unwrap();
        assert_eq!(json!(found[part.name]), json!(columns), "{}", part.name);
        let has_lane: bool = sqlx::query_scalar(
            "select exists (select from pg_attribute where attrelid = to_regclass($1) and attname = 'lane')",
        )
        .bind(part.name)
        .fetch_one(database.pool())
        .await
        .unwrap();
        assert_eq!(part.has_lane, has_lane, "{}", part.name);
        // And a row of each.
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
        assert_eq!(rows.get(part.name), Some(&expected), "{}", part.name);
    }
}

#[tokio::test]
async fn an_export_without_history_contains_what_is_still_needed() {
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
        // A worker crashed on it.
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
    let left = std::fs::read_dir(&*moved.folder).unwrap();
    let left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["opener"]);
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

    // An event with a delivery that is not finished needs the history.
    moved
        .execute(&format!(
            "insert into webhook_redeliveries (lane, id, tenant_id, received_from, received_until, requested_by, next_batch_at, created_at)
             values (tenant_lane('{id}'), 'red_1', '{id}', now(), now(), 'me', now(), now())"
        ))
        .await;
    let refused = moved.export("more", &[]);
    assert_eq!(refused.exit, 1);
    assert!(
        refused.complained.contains("has not finished"),
        "{refused:?}"
    );
    assert_eq!(
        told(&moved.export("more", &["--with-history"]))["rows"]["webhook_redeliveries"],
        2
    );
}

#[tokio::test]
async fn a_tenant_is_replaced_only_with_the_flag() {
    let moved = Move::prepared().await;
    let id = moved.tenant.id.as_str();
    let shell = moved.old.shell();
    events(&moved.old, &moved.tenant.id, &["1"]).await;
    told(&moved.export("export", &[]));
    // Since then: a key was revoked and another created, the credentials were replaced, an event
    // arrived and one was delivered.
    let apple = |database: &Database| {
        let (keyring, id) = (moved.old.keyring().clone(), moved.tenant.id.clone());
        let database = database.clone();
        async move {
            let found = apple::store::load_credentials(&database, &keyring, &id)
                .await
                .unwrap();
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

    let (file, [flag, opener]) = (moved.file("export"), moved.opener());
    let import = ["tenant", "import", "--file", &file, &flag, &opener];
    let refused = shell.run(&import);
    assert_eq!(refused.exit, 1);
    assert!(refused.complained.contains("exists already"), "{refused:?}");
    let restored = told(
        &shell.run(
            &[
                &import[..],
                &["--replace", "--as-inactive", "--with-networks"],
            ]
            .concat(),
        ),
    );
    assert_eq!(
        (&restored["replaced"], &restored["active"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        restored["kept"],
        json!({
            "api_keys": 2, "purchase_links": 1, "owed_acknowledgements": 1, "refund_questions": 1, "voided_purchases": 1, "first_seen_purchases": 1, "subjects": 1, "webhook_events": 1, "webhook_deliveries": 1
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
async fn every_callback_moves_with_its_secret_and_what_waits_for_it() {
    let moved = Move::prepared().await;
    let (old, new, id) = (&moved.old, &moved.new, &moved.tenant.id);
    let second = Receiver::answering(OK).await;
    let callback = NewEndpoint {
        callback_url: &second.url(),
        kind: CallbackKind::Events,
        filter: CallbackFilter {
            sources: vec!["google".to_owned()],
            ..CallbackFilter::default()
        },
        secret: Some(&secret("s")),
        is_active: true,
    };
    let added = add_endpoint(old.database(), old.keyring(), id, &callback).await;
    assert_eq!(added.unwrap().0.column(), 2);
    events(old, id, &["1"]).await;
    moved.deactivate();
    assert_eq!(
        told(&moved.export("export", &[]))["rows"]["webhook_configs"],
        2
    );
    let imported = told(&moved.import("export", &["--with-networks"]));
    assert_eq!(imported["waiting"], 2);
    for part in &TRANSFERRED_TABLES {
        let there = rows(new.database(), part.name, part.tenant_column, id).await;
        let here = rows(old.database(), part.name, part.tenant_column, id).await;
        let here = here.into_iter().filter(|row| row["id"] != "red_0");
        assert_eq!(there, here.collect::<Vec<_>>(), "{}", part.name);
    }
    moved.new_shell().rows(&["tenant", "activate", id.as_str()]);
    second.until(1).await;
    moved.receiver.until(1).await;
    let request = second.requests().remove(0);
    assert!(convinces(&request, &secret("s").into()));
    // The numbers go on where they were.
    let added = add_endpoint(new.database(), new.keyring(), id, &callback).await;
    assert_eq!(added.unwrap().0.column(), 3);
    wait_until("what arrived is known as delivered", async || {
        count(
            new.database(),
            "webhook_deliveries where status = 'pending'",
        )
        .await
            == 0
    })
    .await;
    // Replaced by a file without the third, for which an event waits.
    for statement in [
        "update webhook_configs set is_active = callback = 3",
        "insert into delivery_holds (held_by) values ('test')",
    ] {
        sqlx::query(statement)
            .execute(new.database().pool())
            .await
            .unwrap();
    }
    events(new, id, &["2"]).await;
    let replaced = told(&moved.import("export", &["--replace"]));
    assert_eq!(
        (&replaced["abandoned"], &replaced["waiting"]),
        (&json!(1), &json!(0))
    );
    let error: String =
        sqlx::query_scalar("select last_error from webhook_deliveries where callback = 3")
            .fetch_one(new.database().pool())
            .await
            .unwrap();
    assert!(
        error.contains("an import of the tenant removed the callback"),
        "{error}"
    );
    let added = add_endpoint(new.database(), new.keyring(), id, &callback).await;
    assert_eq!(added.unwrap().0.column(), 4);
}

#[tokio::test]
async fn an_export_for_a_recipient_opens_only_with_the_identity() {
    let moved = Move::prepared().await.with_passphrase();
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

/// An attacker who knows a recipient and writes arbitrary exports.
struct Forger {
    moved: Move,
    recipient: Recipient,
}

impl Forger {
    async fn new() -> Self {
        let moved = Move::prepared().await;
        let (text, recipient) = RecipientIdentity::generate_identity();
        std::fs::write(moved.file("identity"), text.expose_secret()).unwrap();
        Self { moved, recipient }
    }

    /// The result of importing these lines.
    fn import(&self, lines: &[Value]) -> Ran {
        self.import_with(lines, &[])
    }

    fn import_with(&self, lines: &[Value], more: &[&str]) -> Ran {
        let (file, identity) = (self.moved.file("forged"), self.moved.file("identity"));
        let to = SealTarget::Recipient(self.recipient.clone());
        let mut sealer = SealedFileWriter::new(File::create(&file).unwrap(), &to).unwrap();
        for line in lines {
            writeln!(sealer, "{line}").unwrap();
        }
        sealer.finish_file().unwrap();
        let words = [
            "tenant",
            "import",
            "--file",
            &file,
            "--identity-file",
            &identity,
        ];
        self.moved.new_shell().run(&[&words[..], more].concat())
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
async fn an_export_cannot_write_to_another_tenant() {
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
async fn an_export_cannot_touch_another_tenants_events() {
    let forger = Forger::new().await;
    let (world, database) = (&forger.moved.new, forger.moved.new.database());
    let victim = world.stranger().await.id;
    events(world, &victim, &["1"]).await;
    let event: String = sqlx::query_scalar("select id from webhook_events")
        .fetch_one(database.pool())
        .await
        .unwrap();
    let tenant = || {
        let row = row(&json!({"id": victim, "name": "Mallory"}));
        [forger.label(1), table("tenants", &["id", "name"]), row]
    };
    let delivery = |event: &str| {
        [
            table(
                "webhook_deliveries",
                &["id", "event_id", "tenant_id", "callback_url"],
            ),
            row(
                &json!({"id": "dlv_x", "event_id": event, "tenant_id": victim, "callback_url": "https://evil.example/"}),
            ),
        ]
    };
    let columns = [
        "id",
        "tenant_id",
        "source",
        "external_id",
        "event_type",
        "platform_event",
        "decoded_payload",
        "stored_body",
    ];
    let event_called = |id: &str| {
        let fields = json!({"id": id, "tenant_id": victim, "source": "google", "external_id": id, "event_type": "test",
            "platform_event": "google.test", "decoded_payload": {}});
        json!({"row": {"fields": fields, "body": "{}"}})
    };
    let ends = |rows: Value| vec![end(&rows)];
    for (lines, said) in [
        // A delivery of another tenant's event.
        (
            [
                &tenant()[..],
                &delivery(&event),
                &ends(json!({"tenants": 1, "webhook_deliveries": 1})),
            ]
            .concat(),
            "1 rows of webhook_deliveries",
        ),
        // An event with the id of another tenant's event, with a delivery and without.
        (
            [
                &tenant()[..],
                &[table("webhook_events", &columns), event_called(&event)],
                &delivery(&event),
                &ends(json!({"tenants": 1, "webhook_events": 1, "webhook_deliveries": 1})),
            ]
            .concat(),
            "1 rows of webhook_events",
        ),
        (
            [
                &tenant()[..],
                &[
                    table("webhook_events", &columns),
                    event_called("evt_mine"),
                    event_called(&event),
                ],
                &ends(json!({"tenants": 1, "webhook_events": 2})),
            ]
            .concat(),
            "1 rows of webhook_events",
        ),
        (
            [&tenant()[..], &tenant()[2..], &ends(json!({"tenants": 2}))].concat(),
            "exists already",
        ),
    ] {
        let refused = forger.import(&lines);
        assert_eq!(
            (refused.exit, refused.said.as_str()),
            (1, ""),
            "{refused:?}"
        );
        assert!(refused.complained.contains(said), "{said}: {refused:?}");
    }
    assert_eq!(count(database, "tenants").await, 1);
    assert_eq!(count(database, "webhook_deliveries").await, 0);
    assert_eq!(
        count(
            database,
            &format!("webhook_events where tenant_id = '{victim}'")
        )
        .await,
        1
    );
    assert_eq!(count(database, "webhook_events").await, 1);
}

#[tokio::test]
async fn the_import_report_matches_the_database() {
    for (more, active) in [(&["--as-inactive"][..], false), (&[][..], true)] {
        let forger = Forger::new().await;
        let mut label = forger.label(1);
        label["label"]["wasActive"] = json!(!active);
        let said = told(&forger.import_with(
            &[
                label,
                table("tenants", &["id", "name"]),
                row(&json!({"id": "x", "name": "Mallory"})),
                end(&json!({"tenants": 1})),
            ],
            more,
        ));
        assert_eq!(said["active"], active);
        let there = count(forger.moved.new.database(), "tenants where is_active").await;
        assert_eq!(there, i64::from(active));
    }
}

#[tokio::test]
async fn unknown_content_of_an_export_is_refused() {
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
            "differ from its rows",
        ),
        (
            vec![label(), end(&json!({})), row(&json!({}))],
            "differ from its rows",
        ),
        (
            vec![json!({"odd": 1})],
            "form that this release does not know",
        ),
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

/// Waits until the query returns true.
async fn until_so(database: &Database, question: &str) {
    wait_until(question, async || {
        sqlx::query_scalar(AssertSqlSafe(question.to_owned()))
            .fetch_one(database.pool())
            .await
            .unwrap()
    })
    .await;
}

/// Waits until a session waits for a lock on this table.
async fn until_awaited(database: &Database, table: &str) {
    let question = format!(
        "select exists (select from pg_locks where relation = to_regclass('{table}') and not granted
            and database = (select oid from pg_database where datname = current_database()))"
    );
    until_so(database, &question).await;
}

#[tokio::test]
async fn writes_in_progress_at_deactivation_are_exported() {
    let moved = Move::prepared().await;
    let (database, id) = (moved.old.database(), &moved.tenant.id);
    events(&moved.old, id, &["1"]).await;
    let to = SealTarget::Recipient(RecipientIdentity::generate_identity().1);
    let file = moved.folder.join("export");
    let export = || {
        attesto::tenant_transfer::export_tenant(
            database,
            moved.old.keyring(),
            id,
            HistoryScope::Needed,
            &to,
            &file,
            &ignore_progress,
        )
    };

    // One statement recorded an event, another claimed a delivery, and neither has committed.
    let mut taking = begin_without_idle_timeout(database).await;
    sqlx::query(
        "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, stored_body)
         values (tenant_lane($1), 'evt_late', $1, 'google', 'late', 'test', 'google.test', '{}', '\\x007b7d')",
    )
    .bind(id.as_str())
    .execute(&mut *taking)
    .await
    .unwrap();
    let mut claiming = begin_without_idle_timeout(database).await;
    sqlx::query("update webhook_deliveries set lease_until = now() + interval '1 minute'")
        .execute(&mut *claiming)
        .await
        .unwrap();
    moved.deactivate();

    // The wait has a limit.
    let refused = export().await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("a transaction is still writing"),
        "{refused}"
    );
    let meanwhile = async {
        until_awaited(database, "webhook_events").await;
        taking.commit().await.unwrap();
        until_awaited(database, "webhook_deliveries").await;
        claiming.commit().await.unwrap();
    };
    let (refused, ()) = tokio::join!(export(), meanwhile);
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("1 deliveries of"), "{refused}");

    moved
        .execute("update webhook_deliveries set lease_until = null")
        .await;
    let exported = export().await.unwrap();
    assert_eq!(exported.rows["webhook_events"], 2);
    // A writer that started while the tenant was active is refused when it writes now.
    let event = test_event(id, "too late");
    let stored = EventRecorder::new(database, &moved.old.clock, |_| {})
        .record_event(&event)
        .await;
    assert!(
        matches!(stored, Err(RecordError::InactiveTenant)),
        "{stored:?}"
    );
}

/// A process that is stopped, or whose disk hangs, keeps Postgres from vacuuming. The test does not
/// wait two minutes: it checks that the limit is set, and separately what follows when it expires.
#[tokio::test]
async fn a_stalled_export_is_cancelled() {
    let moved = Move::prepared().await;
    let (database, file) = (moved.old.database(), moved.folder.join("export"));
    let to = SealTarget::Recipient(RecipientIdentity::generate_identity().1);
    let export = || {
        let (keyring, tenant) = (moved.old.keyring(), &moved.tenant.id);
        attesto::tenant_transfer::export_tenant(
            database,
            keyring,
            tenant,
            HistoryScope::Needed,
            &to,
            &file,
            &ignore_progress,
        )
    };
    {
        let mut export = std::pin::pin!(export());
        let mut lock = begin_without_idle_timeout(database).await;
        sqlx::query("lock table webhook_configs")
            .execute(&mut *lock)
            .await
            .unwrap();
        tokio::select! {
            ended = &mut export => panic!("{ended:?}"),
            () = until_awaited(database, "webhook_configs") => {}
        }
        // From here on the export is not polled, and Postgres has sent every answer.
        lock.commit().await.unwrap();
        let session = "application_name = 'attesto-export' and datname = current_database() \
             and state = 'idle in transaction'";
        until_so(
            database,
            &format!("select exists (select from pg_stat_activity where {session})"),
        )
        .await;
        // As Postgres does by itself when the timeout expires.
        let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where {session}");
        until_so(database, &end).await;
        let given_up = export.await.unwrap_err();
        assert!(
            matches!(
                given_up,
                attesto::tenant_transfer::TransferError::Database(_)
            ),
            "{given_up}"
        );
    }
    let left: Vec<_> = std::fs::read_dir(&*moved.folder).unwrap().collect();
    assert_eq!(left.len(), 1, "what opens files alone: {left:?}");
    let noted = "select not exists (select from operator_audit where action = 'export')";
    until_so(database, noted).await;

    // While it waits for the process, and not only for a statement.
    moved
        .execute("alter table webhook_configs rename to kept")
        .await;
    moved
        .execute(
            "create function told() returns boolean language plpgsql as
             $$ begin raise 'waits for %', current_setting('idle_in_transaction_session_timeout'); end $$",
        )
        .await;
    moved
        .execute("create view webhook_configs as select * from kept where told()")
        .await;
    let told = export().await.unwrap_err().to_string();
    assert!(told.contains("waits for 2min"), "{told}");
}

#[tokio::test]
async fn an_export_larger_than_one_batch_is_complete() {
    let moved = Move::prepared().await;
    moved
        .execute(&format!(
            "insert into purchase_links (lane, tenant_id, token_hash, token)
             select tenant_lane('{id}'), '{id}', sha256(convert_to(number::text, 'UTF8')), number::text from generate_series(1, 300) number",
            id = moved.tenant.id
        ))
        .await;
    let exported = told(&moved.export("export", &[]));
    assert_eq!(exported["rows"]["purchase_links"], 301);
    assert_eq!(
        told(&moved.import("export", &[]))["rows"]["purchase_links"],
        301
    );
}

impl Move {
    /// Imports over the tenant that was exported.
    fn restore(&self, more: &[&str]) -> Ran {
        let (file, [flag, opener]) = (self.file("export"), self.opener());
        let words = [
            "tenant",
            "import",
            "--replace",
            "--file",
            &file,
            &flag,
            &opener,
        ];
        self.old.shell().run(&[&words[..], more].concat())
    }
}

#[tokio::test]
async fn a_restored_tenant_keeps_its_state_and_networks() {
    let moved = Move::prepared().await;
    let shell = moved.old.shell();
    told(&moved.export("export", &[]));
    moved.deactivate();
    let id = moved.tenant.id.as_str();
    shell.rows(&["webhook", "allow", id, "10.9.0.0/16:443"]);
    moved.execute("update tenants set name = 'Another'").await;
    let restored = moved.restore(&[]);
    let said = told(&restored);
    assert_eq!(said["active"], false);
    assert_eq!(
        (&said["networks"], &said["networksOpened"]),
        (&json!(["10.1.0.0/16:443"]), &json!(false))
    );
    let database = moved.old.database();
    let tenants = "tenants where not is_active and name <> 'Another' and rate_limit_per_second = 7";
    assert_eq!(count(database, tenants).await, 1);
    assert_eq!(count(database, "webhook_allowed_networks").await, 2);
    // Into an installation without that tenant, no network is allowed either.
    told(&moved.import("export", &[]));
    let there = moved.new.database();
    assert_eq!(count(there, "webhook_allowed_networks").await, 0);
}

#[tokio::test]
async fn waiting_deliveries_survive_when_the_event_id_differs() {
    let moved = Move::prepared().await;
    let id = &moved.tenant.id;
    events(&moved.old, id, &["1", "2", "3"]).await;
    let exported = told(&moved.export("export", &[]));
    assert_eq!(exported["waiting"], 3);
    // All rows are lost; then the store repeats two of the three notifications, one of them while
    // there was no callback.
    moved.execute("delete from webhook_deliveries").await;
    moved.execute("delete from webhook_events").await;
    events(&moved.old, id, &["1", "2"]).await;
    moved
        .execute("delete from webhook_deliveries where event_id = (select id from webhook_events where external_id = '2')")
        .await;
    let said = told(&moved.restore(&[]));
    assert_eq!(
        (&said["known"], &said["superseded"], &said["waiting"]),
        (&json!(2), &json!(1), &json!(3)),
        "{said}"
    );
    let waiting: Vec<(String, i64)> = sqlx::query_as(
        "select external_id, count(*) from webhook_events event
           join webhook_deliveries delivery on delivery.event_id = event.id and delivery.status = 'pending'
          group by 1 order by 1",
    )
    .fetch_all(moved.old.database().pool())
    .await
    .unwrap();
    let once = |name: &str| (name.to_owned(), 1);
    assert_eq!(waiting, [once("1"), once("2"), once("3")]);
}

#[tokio::test]
async fn other_changes_proceed_during_a_long_import() {
    let moved = Move::prepared().await;
    events(&moved.old, &moved.tenant.id, &["1"]).await;
    told(&moved.export("export", &[]));
    let database = moved.new.database();
    // The import reaches the history, and waits there for a lock.
    let mut writing = begin_without_idle_timeout(database).await;
    sqlx::query("lock table webhook_events in share mode")
        .execute(&mut *writing)
        .await
        .unwrap();
    let with = moved.with();
    let file = moved.folder.join("export");
    let options = ImportOptions::default();
    let import = attesto::tenant_transfer::import_tenant(
        database,
        moved.new.keyring(),
        &file,
        &with,
        options,
    );
    let meanwhile = async {
        until_so(
            database,
            "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')",
        )
        .await;
        let name = "Meanwhile".parse().unwrap();
        let now = moved.new.clock.now();
        let made = attesto::tenants::store::create_tenant(database, &name, now).await;
        made.unwrap();
        drop(writing);
    };
    let (imported, ()) = tokio::join!(import, meanwhile);
    imported.unwrap();
    // Each change is recorded all the same, with its author.
    let shell = moved.new_shell();
    let audit = shell.rows(&[
        "audit",
        "operators",
        "list",
        "--tenant",
        moved.tenant.id.as_str(),
    ]);
    for (action, object) in [
        ("insert", "tenants"),
        ("insert", "api_keys"),
        ("import", "tenants"),
    ] {
        assert!(
            audit
                .iter()
                .any(|row| row["action"] == action && row["object"] == object),
            "{action} {object}: {audit:?}"
        );
    }
    assert_eq!(shell.run(&["audit", "verify"]).exit, 0);

    // A command that waits too long for the lock gets an explanation.
    let mut noting = begin_without_idle_timeout(database).await;
    sqlx::query("select note_operation('a', 'b', 'c', null, null, null)")
        .execute(&mut *noting)
        .await
        .unwrap();
    let refused = shell.run(&["tenant", "create", "--name", "Late"]);
    assert_eq!(refused.exit, 1);
    assert!(
        refused.complained.contains("Try again in a moment"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_state_that_was_not_known_is_asked_for_at_the_destination() {
    let moved = Move::prepared().await;
    let id = &moved.tenant.id;
    let record = EventRecorder::new(moved.old.database(), &moved.old.clock, |_| {});
    let event = |external_id: &str, is_told: bool| NewEvent {
        subject: Some(EventSubject {
            key: "token".to_owned(),
            product_id: None,
            r#type: SubjectType::Subscription,
            current: true,
            superseded_by: None,
        }),
        state_error: (!is_told).then_some(StateError::StoreUnavailable),
        ..test_event(id, external_id)
    };
    let mut waiting = Vec::new();
    for external_id in ["1", "2"] {
        let stored = record.record_event(&event(external_id, false)).await;
        waiting.push(stored.unwrap().event_id);
    }
    let told_later = format!("state:{}", waiting[1]);
    record
        .record_event(&event(&told_later, true))
        .await
        .unwrap();
    moved.deactivate();
    told(&moved.export("export", &[]));
    told(&moved.import("export", &[]));
    let listed: Vec<String> = sqlx::query_scalar("select event_id from unresolved_states")
        .fetch_all(moved.new.database().pool())
        .await
        .unwrap();
    assert_eq!(listed, [waiting[0].to_string()]);
}
