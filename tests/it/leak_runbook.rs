//! The runbook docs/leak.md, executed section by section; two replicas must follow each step within
//! a second.

use std::process::{Command, Stdio};
use std::time::Duration;

use attesto::app::RunningApp;
use attesto::base::id::KeyId;
use attesto::deliveries::endpoint::{SigningSecret, SigningSecrets};
use attesto::deliveries::signature;
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::state::google::NewSubscription;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::delivery_hold::events;
use crate::docs::{blocks, root};
use crate::world::attesto::{APP, Tenant, World};
use crate::world::folder::Folder;
use crate::world::receiver::Receiver;
use crate::world::wait::wait_until;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Two replicas, a tenant whose secret leaked, and an unaffected tenant.
struct Scene {
    world: World,
    other: RunningApp,
    tenant: Tenant,
    witness: Tenant,
    receiver: Receiver,
    folder: Folder,
}

impl Scene {
    async fn new() -> Self {
        let world = World::today_with(&[("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1")]).await;
        let other = world.replica().await;
        let (tenant, witness) = (world.tenant().await, world.tenant().await);
        let receiver = Receiver::answering(OK).await;
        let scene = Self {
            world,
            other,
            tenant,
            witness,
            receiver,
            folder: Folder::new(),
        };
        let url = scene.receiver.url();
        scene.types(&format!(
            "attesto webhook set-config tenant_… --callback-url {url}"
        ));
        scene.both_hear().await;
        scene
    }

    /// Waits until both replicas listen for changes, so that they use their caches.
    async fn both_hear(&self) {
        let listening = async || -> i64 {
            sqlx::query_scalar(
                "select count(*) from pg_stat_activity
                  where datname = current_database() and application_name = 'attesto-changes'",
            )
            .fetch_one(self.world.database().pool())
            .await
            .unwrap()
        };
        wait_until("both replicas listen", async || listening().await >= 2).await;
    }

    fn urls(&self, path: &str) -> [String; 2] {
        let other = format!("http://{}{path}", self.other.address());
        [self.world.url(path), other]
    }

    /// The status of both replicas for a request with this key.
    async fn statuses(&self, key: &str, path: &str, body: &Value) -> [u16; 2] {
        let [one, two] = self.urls(path);
        let (key, body) = (Some(key), Some(body));
        let one = self.world.ask_at(&one, "POST", key, body);
        let two = self.world.ask_at(&two, "POST", key, body);
        let (one, two) = tokio::join!(one, two);
        [one.status, two.status]
    }

    /// Whether each replica accepts the key.
    async fn let_in(&self, key: &str) -> [bool; 2] {
        let body = json!({});
        let statuses = self.statuses(key, "/v1/apple/verify", &body).await;
        statuses.map(|status| match status {
            400 => true,
            401 => false,
            other => panic!("{other}"),
        })
    }

    /// Repeats the request until both replicas answer so.
    async fn until_both_answer<T: PartialEq + std::fmt::Debug>(
        &self,
        wanted: T,
        mut ask: impl AsyncFnMut() -> T,
    ) {
        let what = format!("both replicas answer {wanted:?}");
        wait_until(&what, async || ask().await == wanted).await;
    }

    /// Runs the commands of a section of the page.
    fn follows(&self, section: &str) -> String {
        self.types(&commands(section))
    }

    /// Runs a script in a shell, with the placeholders of the page filled in.
    fn types(&self, script: &str) -> String {
        let bin = self.folder.join("bin");
        if !bin.exists() {
            std::fs::create_dir(&bin).unwrap();
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_attesto"), bin.join("attesto")).unwrap();
        }
        let script = script.replace("tenant_…", self.tenant.id.as_str());
        assert!(
            !script.contains('…'),
            "what is left out cannot be typed: {script}"
        );
        let mut command = Command::new("/bin/sh");
        command
            .args(["-euc", &script])
            .current_dir(self.folder.join("."))
            .env_clear()
            .envs(self.world.simulator.environment_variables())
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("DATABASE_URL", &self.world.fresh.url)
            .env("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")
            .env("ATTESTO_ENCRYPTION_KEY", STANDARD.encode([7; 32]))
            .stdin(Stdio::null());
        // The simulated stores and both replicas run in this runtime, which must not be blocked.
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let said = String::from_utf8(output.stdout).unwrap();
        let complained = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{script}\n{said}\n{complained}");
        said
    }

    async fn key_id(&self) -> KeyId {
        let id: String = sqlx::query_scalar("select id from api_keys where tenant_id = $1")
            .bind(self.tenant.id.as_str())
            .fetch_one(self.world.database().pool())
            .await
            .unwrap();
        id.parse().unwrap()
    }

    fn rows(said: &str) -> Vec<Value> {
        let lines = said.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    async fn end(self) {
        self.other.stop(Duration::from_secs(5)).await;
        self.world.end().await;
    }
}

/// The sections of the page with commands; each is run by one of these tests.
const TYPED: [&str; 10] = [
    "The brake",
    "An API key",
    "Every API key of a tenant",
    "Every API key there is",
    "A webhook secret",
    "An Apple key",
    "A Google service account",
    "The encryption key",
    "An operator's access",
    "How to know that it took effect",
];

/// The commands of each section of the page.
fn page() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(root().join("docs/leak.md")).unwrap();
    let sections = page.split("\n## ").skip(1).map(|section| {
        let (heading, text) = section.split_once('\n').unwrap();
        let (blocks, _) = blocks(text);
        let script = blocks.into_iter().filter(|(language, _)| language == "sh");
        let script: Vec<_> = script.map(|(_, script)| script).collect();
        (heading.to_owned(), script.concat())
    });
    sections.filter(|(_, script)| !script.is_empty()).collect()
}

fn commands(section: &str) -> String {
    assert!(TYPED.contains(&section), "{section}");
    let found = page().into_iter().find(|(heading, _)| heading == section);
    found.unwrap_or_else(|| panic!("{section}?")).1
}

#[test]
fn every_section_of_the_page_is_executed() {
    let headings: Vec<_> = page().into_iter().map(|(heading, _)| heading).collect();
    assert_eq!(headings, TYPED);
}

fn raw_key(said: &str) -> String {
    let rows = Scene::rows(said);
    let made = rows.iter().find(|row| row["rawKey"].is_string()).unwrap();
    made["rawKey"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_api_key_is_refused_by_every_replica() {
    let scene = Scene::new().await;
    let (leaked, others) = (scene.tenant.key.expose(), scene.witness.key.expose());
    assert_eq!(scene.let_in(leaked).await, [true; 2]);
    assert_eq!(scene.let_in(others).await, [true; 2]);

    let id = scene.key_id().await;
    let typed = commands("An API key").replace("key_…", id.as_str());
    let replacement = raw_key(&scene.types(&typed));
    scene
        .until_both_answer([false; 2], async || scene.let_in(leaked).await)
        .await;
    assert_eq!(scene.let_in(&replacement).await, [true; 2]);

    let after = raw_key(&scene.follows("Every API key of a tenant"));
    scene
        .until_both_answer([false; 2], async || scene.let_in(&replacement).await)
        .await;
    assert_eq!(scene.let_in(&after).await, [true; 2]);
    assert_eq!(scene.let_in(others).await, [true; 2]);

    scene.follows("Every API key there is");
    scene
        .until_both_answer([[false; 2]; 2], async || {
            [scene.let_in(&after).await, scene.let_in(others).await]
        })
        .await;

    let said = scene.follows("An operator's access");
    let steps = Scene::rows(&said);
    let revoked = steps
        .iter()
        .filter(|row| row["command"] == "key revoke")
        .count();
    assert_eq!(revoked, 4, "each of the steps is noted: {said}");
    let proof = Scene::rows(&scene.follows("How to know that it took effect"));
    let replicas = proof
        .iter()
        .find_map(|row| row["replicas"].as_array())
        .unwrap();
    assert_eq!(replicas.len(), 2);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_tenant_is_refused_by_every_replica() {
    let scene = Scene::new().await;
    let (leaked, others) = (scene.tenant.key.expose(), scene.witness.key.expose());
    assert_eq!(scene.let_in(leaked).await, [true; 2]);
    // Waiting deliveries exist; notifications for an inactive tenant are refused.
    scene.types("attesto deliveries hold");
    events(&scene.world, &scene.tenant.id, &["1"]).await;
    scene.follows("The brake");
    scene
        .until_both_answer([false; 2], async || scene.let_in(leaked).await)
        .await;
    let path = format!("/v1/webhooks/apple/{}", scene.tenant.id);
    scene
        .until_both_answer([404; 2], async || {
            scene
                .statuses("", &path, &json!({"signedPayload": "x"}))
                .await
        })
        .await;
    assert_eq!(scene.let_in(others).await, [true; 2]);
    // No replica sends anything to its callback either.
    scene.types("attesto deliveries release");
    assert_eq!(scene.let_in(others).await, [true; 2]);
    assert_eq!(scene.receiver.connections(), 0);
    scene.types("attesto tenant activate tenant_…");
    scene
        .until_both_answer([true; 2], async || scene.let_in(leaked).await)
        .await;
    scene.receiver.until(1).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_webhook_secret_no_longer_signs() {
    let scene = Scene::new().await;
    let held = scene.folder.join("held");
    // The page deletes the file at its end; the receiver has its own copy.
    let kept = format!("mv new-secret {}", held.display());
    let script = commands("A webhook secret").replace("rm new-secret", &kept);
    scene.types(&script);
    let secret = std::fs::read_to_string(&held).unwrap();
    let newest = SigningSecret::parse(secret.trim()).unwrap();
    let secrets = SigningSecrets::from(newest);
    let pinged = scene.receiver.requests().len();
    events(&scene.world, &scene.tenant.id, &["1", "2", "3", "4"]).await;
    // The events were recorded without a notification; a change of the tenant wakes the
    // dispatchers.
    scene.types("attesto tenant rename tenant_… Renamed");
    scene.receiver.until(pinged + 4).await;
    for request in &scene.receiver.requests()[pinged..] {
        let moment = request.headers["x-attesto-timestamp"].parse().unwrap();
        let signed = signature::sign_delivery(
            &secrets,
            &request.headers["webhook-id"],
            moment,
            &request.body,
        );
        assert_eq!(request.headers["x-attesto-signature"], signed.attesto);
        assert_eq!(request.headers["webhook-signature"], signed.standard);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn store_credentials_are_replaced_in_every_replica() {
    let scene = Scene::new().await;
    let (apple, google) = (
        scene.world.simulator.apple(),
        scene.world.simulator.google(),
    );
    let bought = apple.create_transaction(NewTransaction::default()).unwrap();
    let apple_body = json!({ "transactionId": bought.transaction_id });
    google
        .buy_subscription(NewSubscription {
            purchase_token: Some("a-purchase-token".into()),
            ..NewSubscription::default()
        })
        .unwrap();
    let google_body =
        json!({ "packageName": APP, "purchaseToken": "a-purchase-token", "type": "subscription" });
    let key = scene.tenant.key.expose();
    let ask_apple = async || scene.statuses(key, "/v1/apple/verify", &apple_body).await;
    let ask_google = async || scene.statuses(key, "/v1/google/verify", &google_body).await;
    // Both replicas have loaded and cached the old ones.
    assert_eq!(
        (ask_apple().await, ask_google().await),
        ([200; 2], [200; 2])
    );

    let (old, new) = (apple.api_key(), apple.create_api_key().unwrap());
    let file =
        |name: &str, content: &str| std::fs::write(scene.folder.join(name), content).unwrap();
    file("SubscriptionKey_2X9R4HXF34.p8", &new.private_key);
    let script = commands("An Apple key")
        .replace("--key-id 2X9R4HXF34", &format!("--key-id {}", new.key_id))
        .replace("57246542-96fe-1a63-e053-0824d011072a", &new.issuer_id);
    let shown = Scene::rows(&scene.types(&script)).pop().unwrap();
    assert_eq!(
        (&shown["keyId"], &shown["previous"]),
        (&json!(new.key_id), &Value::Null)
    );
    apple.set_key_revoked(&old.key_id, true).unwrap();
    scene.until_both_answer([200; 2], ask_apple).await;

    let url = scene.world.simulator.google_token_url();
    let account = google.create_service_account("after-the-leak").unwrap();
    file(
        "service-account.json",
        &account.to_key_file(url.as_str()).to_string(),
    );
    let leaked = scene.world.simulator.google_service_account();
    scene.types(&commands("A Google service account"));
    google
        .set_account_disabled(leaked["client_email"].as_str().unwrap(), true)
        .unwrap();
    scene.until_both_answer([200; 2], ask_google).await;

    // The rest of the page.
    let status = Scene::rows(&scene.follows("The encryption key")).remove(0);
    assert_eq!(status["toReseal"], 0);
    scene.end().await;
}
