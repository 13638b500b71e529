//! Store credentials are checked before they are stored, and can be rolled back.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::TenantId;
use attesto::crypto::ExposeSecret as _;
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::simulator::identity::SimulatedAppleKey;
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::state::apple_notifications::NotificationUrls;
use attesto::simulator::{Fault, Simulator, SimulatorOptions};
use attesto::stores::apple::account::{AppleCredentials, EnvironmentChoice, SigningKey};
use attesto::stores::apple::store::NewAppleCredentials;
use attesto::stores::{apple, google};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::world::postgres::{Fresh, fresh_database};

struct Desk {
    fresh: Fresh,
    simulator: Simulator,
    tenant: TenantId,
}

/// The result of a command, whose output is a JSON object or nothing.
#[derive(Debug)]
struct Ran {
    exit: i32,
    said: Value,
    errors: String,
}

fn text(id: u8) -> String {
    format!("{id}:{}", STANDARD.encode([id; 32]))
}

fn ring(sealing: u8, retired: &[u8]) -> Keyring {
    let key = |id: u8| MasterKey::parse(&text(id), None).unwrap();
    Keyring::new(key(sealing), retired.iter().map(|id| key(*id)).collect()).unwrap()
}

impl Desk {
    async fn open() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let fresh = fresh_database().await;
        let tenant = fresh.create_tenant().await;
        let simulator = Simulator::start(SimulatorOptions::new(Clock::system()))
            .await
            .unwrap();
        Self {
            fresh,
            simulator,
            tenant,
        }
    }

    fn run(&self, words: &[&str], file: &str, more: &[(&str, &str)]) -> Ran {
        let shell = self.fresh.shell().set("ATTESTO_ENCRYPTION_KEY", &text(1));
        let shell = shell.set_all(self.simulator.environment_variables());
        let ran = shell.set_all(more.iter().copied()).run_with(words, file);
        for secret in ["PRIVATE KEY", "MIG"] {
            ran.assert_hides(secret);
        }
        Ran {
            exit: ran.exit,
            said: serde_json::from_str(&ran.said).unwrap_or(Value::Null),
            errors: ran.complained,
        }
    }

    fn apple(&self, key: &SimulatedAppleKey, more: &[&str], variables: &[(&str, &str)]) -> Ran {
        let words = [
            "apple",
            "set-credentials",
            self.tenant.as_str(),
            "--key-path",
            "-",
            "--bundle-id",
            "com.example.app",
            "--app-apple-id",
            "1234567890",
            "--key-id",
            &key.key_id,
            "--issuer-id",
            &key.issuer_id,
        ];
        self.blocking(&[&words, more].concat(), &key.private_key, variables)
    }

    /// The simulated stores run in this runtime, which must not be blocked while the command waits
    /// for them.
    fn blocking(&self, words: &[&str], file: &str, more: &[(&str, &str)]) -> Ran {
        tokio::task::block_in_place(|| self.run(words, file, more))
    }

    fn google(&self, file: &Value, more: &[&str]) -> Ran {
        let words = [
            "google",
            "set-credentials",
            self.tenant.as_str(),
            "--package-name",
            "com.example.app",
            "--service-account-path",
            "-",
        ];
        self.blocking(&[&words, more].concat(), &file.to_string(), &[])
    }

    fn roll_back(&self, store: &str) -> Ran {
        self.blocking(
            &[store, "rollback-credentials", self.tenant.as_str()],
            "",
            &[],
        )
    }

    async fn apple_fingerprint(&self, ring: &Keyring) -> String {
        let found = apple::store::load_credentials(&self.fresh.database, ring, &self.tenant).await;
        found.unwrap().unwrap().key.fingerprint().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apple_credentials_roll_back_and_forward() {
    let desk = Desk::open().await;
    let keys = [
        desk.simulator.apple().api_key(),
        desk.simulator.apple().create_api_key().unwrap(),
    ];
    let none = desk.roll_back("apple");
    assert_eq!(none.exit, 1);
    assert!(none.errors.contains("nothing to go back to"), "{none:?}");

    let first = desk.apple(&keys[0], &[], &[]);
    assert_eq!(
        (first.exit, &first.said["previous"]),
        (0, &Value::Null),
        "{first:?}"
    );
    // Storing the same credentials again is no change.
    let same = desk.apple(&keys[0], &[], &[]);
    assert_eq!(same.said["previous"], Value::Null);
    let second = desk.apple(&keys[1], &["--environment", "sandbox"], &[]);
    let previous = &second.said["previous"];
    assert_eq!(previous["keyFingerprint"], first.said["keyFingerprint"]);
    let moment = |name: &str| Timestamp::parse(previous[name].as_str().unwrap()).unwrap();
    assert_eq!(
        moment("expiresAt")
            .duration_since(moment("replacedAt"))
            .as_secs(),
        72 * 3600
    );
    let again = desk.apple(&keys[1], &["--environment", "sandbox"], &[]);
    assert_eq!(&again.said["previous"], previous, "and takes nothing away");

    let back = desk.roll_back("apple");
    assert_eq!((back.exit, back.errors.as_str()), (0, ""), "{back:?}");
    for field in ["keyId", "keyFingerprint", "environment", "appAppleId"] {
        assert_eq!(back.said[field], first.said[field], "{field}");
    }
    assert_eq!(
        back.said["previous"]["keyFingerprint"],
        second.said["keyFingerprint"]
    );
    let ring = ring(1, &[]);
    assert_eq!(
        desk.apple_fingerprint(&ring).await,
        first.said["keyFingerprint"].as_str().unwrap(),
        "it opens where it stands"
    );
    let forward = desk.roll_back("apple");
    assert_eq!(forward.said["environment"], "sandbox");
    assert_eq!(
        desk.apple_fingerprint(&ring).await,
        second.said["keyFingerprint"].as_str().unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn google_credentials_roll_back() {
    let desk = Desk::open().await;
    let first = desk.google(
        &desk.simulator.google_service_account(),
        &["--pubsub-audience", "a"],
    );
    assert_eq!(
        (first.exit, &first.said["previous"]),
        (0, &Value::Null),
        "{first:?}"
    );
    let url = desk.simulator.google_token_url();
    let account = desk
        .simulator
        .google()
        .create_service_account("second")
        .unwrap();
    let second = desk.google(
        &account.to_key_file(url.as_str()),
        &["--pubsub-audience", "b"],
    );
    assert_eq!(second.said["pubsubAudience"], "b");
    assert_eq!(
        second.said["previous"]["keyFingerprint"],
        first.said["keyFingerprint"]
    );
    let back = desk.roll_back("google");
    for field in ["clientEmail", "keyFingerprint", "pubsubAudience"] {
        assert_eq!(back.said[field], first.said[field], "{field}");
    }
    let found =
        google::store::load_credentials(&desk.fresh.database, &ring(1, &[]), &desk.tenant).await;
    assert_eq!(
        found.unwrap().unwrap().account.fingerprint(),
        first.said["keyFingerprint"]
    );
    assert_eq!(desk.roll_back("google").said["pubsubAudience"], "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_changes_all_succeed_and_the_last_two_are_stored() {
    let desk = Desk::open().await;
    let (database, ring) = (&desk.fresh.database, &ring(1, &[]));
    let issuer = desk.simulator.apple().api_key().issuer_id;
    let set = async || {
        let key = SimulatedAppleKey::new(&issuer);
        let file = key.private_key.as_bytes();
        let credentials = AppleCredentials {
            bundle_id: "com.example.app".to_owned(),
            key_id: key.key_id,
            issuer_id: key.issuer_id,
            key: SigningKey::parse(file).unwrap(),
            environment: EnvironmentChoice::Auto,
            app_apple_id: Some(1_234_567_890),
        };
        let new = NewAppleCredentials {
            key_file: file,
            credentials: &credentials,
        };
        apple::store::set_credentials(database, ring, &desk.tenant, &new)
            .await
            .unwrap();
        credentials.key.fingerprint().to_owned()
    };
    let all = join_all((0..8).map(|_| set())).await;
    let stored = async || {
        let found = apple::store::find_credential_summary(database, &desk.tenant).await;
        let summary = found.unwrap().unwrap();
        // The sealed value and the columns beside it are of the same credentials.
        assert_eq!(desk.apple_fingerprint(ring).await, summary.key_fingerprint);
        let previous = summary.previous.unwrap().key_fingerprint;
        assert!(all.contains(&summary.key_fingerprint) && all.contains(&previous));
        (summary.key_fingerprint, previous)
    };
    let before = stored().await;
    assert_ne!(before.0, before.1);
    let roll_back = || {
        let grace = Duration::from_hours(1);
        apple::store::CREDENTIAL_HISTORY.rollback(database, ring, &desk.tenant, grace)
    };
    for result in join_all((0..8).map(|_| roll_back())).await {
        result.unwrap();
    }
    assert_eq!(stored().await, before, "an even number changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_is_refused_after_the_grace_period() {
    let desk = Desk::open().await;
    let keys = [
        desk.simulator.apple().api_key(),
        desk.simulator.apple().create_api_key().unwrap(),
    ];
    desk.apple(&keys[0], &[], &[]);
    let kept = desk.apple(&keys[1], &[], &[("CREDENTIAL_GRACE_HOURS", "1")]);
    assert!(kept.said["previous"].is_object());
    let database = desk.fresh.database.pool();
    let count = async || -> i64 {
        sqlx::query_scalar("select count(*) from apple_previous_credentials")
            .fetch_one(database)
            .await
            .unwrap()
    };
    assert_eq!(desk.blocking(&["prune"], "", &[]).exit, 0);
    assert_eq!(count().await, 1, "its time is not over");
    sqlx::query("update apple_previous_credentials set expires_at = now()")
        .execute(database)
        .await
        .unwrap();
    let refused = desk.roll_back("apple");
    assert_eq!(refused.exit, 1, "{refused:?}");
    let shown = desk.blocking(&["apple", "get-credentials", desk.tenant.as_str()], "", &[]);
    assert_eq!(shown.said["previous"], Value::Null);
    desk.blocking(&["prune"], "", &[]);
    assert_eq!(count().await, 0);

    // On request the previous credentials are deleted too.
    desk.apple(&keys[0], &[], &[]);
    assert_eq!(count().await, 1);
    let dropped = desk.apple(&keys[1], &[], &[("CREDENTIAL_GRACE_HOURS", "0")]);
    assert_eq!((dropped.exit, count().await), (0, 0), "{dropped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn previous_credentials_are_sealed_and_rotated_with_the_encryption_key() {
    let desk = Desk::open().await;
    desk.apple(&desk.simulator.apple().api_key(), &[], &[]);
    desk.apple(&desk.simulator.apple().create_api_key().unwrap(), &[], &[]);
    let database = desk.fresh.database.pool();
    let blob = async |statement: &'static str| -> Vec<u8> {
        sqlx::query_scalar(statement)
            .fetch_one(database)
            .await
            .unwrap()
    };
    let kept = blob("select private_key_enc from apple_previous_credentials").await;
    let stored = blob("select private_key_enc from apple_credentials").await;
    let ring1 = ring(1, &[]);
    let (here, there) = (
        attesto::credentials::sealed_columns::APPLE_PRIVATE_KEY.context_for(desk.tenant.as_str()),
        attesto::credentials::sealed_columns::APPLE_PREVIOUS_KEY.context_for(desk.tenant.as_str()),
    );
    let pem = ring1.open(there, &kept).unwrap();
    assert_eq!(
        pem.expose_secret(),
        desk.simulator.apple().api_key().private_key.as_bytes()
    );
    assert!(ring1.open(here, &kept).is_err() && ring1.open(there, &stored).is_err());

    let rotated = desk.blocking(
        &["encryption", "rotate"],
        "",
        &[
            ("ATTESTO_ENCRYPTION_KEY", &text(2)),
            ("ATTESTO_ENCRYPTION_KEYS_RETIRED", &text(1)),
        ],
    );
    assert_eq!(rotated.exit, 0, "{rotated:?}");
    let back = desk.blocking(
        &["apple", "rollback-credentials", desk.tenant.as_str()],
        "",
        &[("ATTESTO_ENCRYPTION_KEY", &text(2))],
    );
    assert_eq!(back.exit, 0, "{back:?}");
    assert_eq!(
        desk.apple_fingerprint(&ring(2, &[])).await,
        back.said["keyFingerprint"].as_str().unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_be_decrypted_can_be_replaced() {
    let desk = Desk::open().await;
    desk.apple(&desk.simulator.apple().api_key(), &[], &[]);
    sqlx::query("update apple_credentials set private_key_enc = '\\x01'")
        .execute(desk.fresh.database.pool())
        .await
        .unwrap();
    let set = desk.apple(&desk.simulator.apple().create_api_key().unwrap(), &[], &[]);
    assert_eq!((set.exit, &set.said["previous"]), (0, &Value::Null));
    assert!(set.errors.contains("no going back"), "{set:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_checked_with_the_store_before_they_are_stored() {
    let desk = Desk::open().await;
    let good = desk.simulator.apple().api_key();
    let revoked = desk.simulator.apple().create_api_key().unwrap();
    desk.simulator
        .apple()
        .set_key_revoked(&revoked.key_id, true)
        .unwrap();
    let taken = desk.apple(&good, &["--check"], &[]);
    assert_eq!(taken.exit, 0, "{taken:?}");
    let refused = desk.apple(&revoked, &["--check"], &[]);
    assert_eq!(
        (refused.exit, &refused.said),
        (1, &Value::Null),
        "{refused:?}"
    );
    assert!(
        refused.errors.contains("Apple refuses this tenant's key"),
        "{refused:?}"
    );
    assert!(refused.errors.contains("Nothing was stored"), "{refused:?}");
    assert!(
        refused.errors.contains("try --environment sandbox"),
        "{refused:?}"
    );
    let stored = desk.blocking(&["apple", "get-credentials", desk.tenant.as_str()], "", &[]);
    assert_eq!(stored.said["keyId"], good.key_id.as_str());
    assert_eq!(stored.said["previous"], Value::Null);

    let url = desk.simulator.google_token_url();
    let taken = desk.google(&desk.simulator.google_service_account(), &["--check"]);
    assert_eq!((taken.exit, taken.errors.as_str()), (0, ""), "{taken:?}");
    let google = desk.simulator.google();
    let gone = google.create_service_account("gone").unwrap();
    google
        .set_account_disabled(&gone.client_email, true)
        .unwrap();
    let barred = google.create_service_account("barred").unwrap();
    google
        .set_account_denied(&barred.client_email, true)
        .unwrap();
    for account in [gone, barred] {
        let refused = desk.google(&account.to_key_file(url.as_str()), &["--check"]);
        assert_eq!(refused.exit, 1, "{refused:?}");
        assert!(
            refused
                .errors
                .contains("Google refused the service account"),
            "{refused:?}"
        );
        assert!(refused.errors.contains("Nothing was stored"), "{refused:?}");
    }
    let stored = desk.blocking(
        &["google", "get-credentials", desk.tenant.as_str()],
        "",
        &[],
    );
    assert_eq!(stored.said["keyFingerprint"], taken.said["keyFingerprint"]);

    // Without an answer from the store the key is unverified, and nothing is stored.
    let away = [
        ("APPLE_PRODUCTION_URL", "http://127.0.0.1:1"),
        ("APPLE_SANDBOX_URL", "http://127.0.0.1:1"),
    ];
    let silent = desk.apple(
        &desk.simulator.apple().create_api_key().unwrap(),
        &["--check"],
        &away,
    );
    assert_eq!((silent.exit, silent.said), (1, json!(null)));
}

fn apple_faults(desk: &Desk, fault: &Fault) {
    for place in ["apple/production", "apple/sandbox"] {
        let fault = Fault {
            at: place.to_owned(),
            ..fault.clone()
        };
        desk.simulator.add_fault(fault).unwrap();
    }
}

/// Apple knows no transaction of an app that is not the key's: `4040010` for every id.
#[tokio::test(flavor = "multi_thread")]
async fn a13_a_wrong_bundle_id_is_noticed_before_it_is_stored() {
    let desk = Desk::open().await;
    let key = desk.simulator.apple().api_key();
    let unknown_app = Fault::at_place("apple/sandbox")
        .times(0)
        .error_code(4_040_010);
    apple_faults(&desk, &unknown_app);
    for more in [
        &["--check"][..],
        &["--check", "--transaction-id", "2000000000000001"],
    ] {
        let refused = desk.apple(&key, more, &[]);
        assert_eq!(
            (refused.exit, &refused.said),
            (1, &Value::Null),
            "{refused:?}"
        );
        assert!(
            refused.errors.contains("the bundle id is wrong"),
            "{refused:?}"
        );
        assert!(refused.errors.contains("Nothing was stored"), "{refused:?}");
    }
    desk.simulator.clear_faults();
    let get = ["apple", "get-credentials", desk.tenant.as_str()];
    assert_eq!(desk.blocking(&get, "", &[]).exit, 1, "nothing was stored");

    // The transaction of another app proves nothing about this one.
    let bought = |bundle_id: &str| {
        let new = NewTransaction {
            bundle_id: Some(bundle_id.to_owned()),
            ..NewTransaction::default()
        };
        desk.simulator
            .apple()
            .create_transaction(new)
            .unwrap()
            .transaction_id
    };
    let (own, other) = (bought("com.example.app"), bought("com.example.other"));
    let check_with = |id: &str| desk.apple(&key, &["--check", "--transaction-id", id], &[]);
    let refused = check_with(&other);
    assert_eq!(refused.exit, 1, "{refused:?}");
    assert!(
        refused
            .errors
            .contains("the bundle id is wrong, or the transaction is of another app"),
        "{refused:?}"
    );
    let refused = check_with("not-an-id");
    assert_eq!(refused.exit, 1, "{refused:?}");
    assert!(
        refused.errors.contains("not-an-id is not a transaction id"),
        "{refused:?}"
    );
    let taken = check_with(&own);
    assert_eq!((taken.exit, taken.errors.as_str()), (0, ""), "{taken:?}");
}

/// Apple answers alike for an app without purchases and for one that is not the key's.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_id_that_the_check_cannot_prove_is_doubted() {
    let desk = Desk::open().await;
    let key = desk.simulator.apple().api_key();
    let doubt = "which does not prove the bundle id com.example.app";
    let taken = desk.apple(&key, &["--check"], &[]);
    assert_eq!(taken.exit, 0, "{taken:?}");
    assert!(
        taken.errors.contains(doubt) && taken.errors.contains("--transaction-id"),
        "{taken:?}"
    );
    // With another key, the same app is as right as it was.
    let next = desk.simulator.apple().create_api_key().unwrap();
    let taken = desk.apple(&next, &["--check"], &[]);
    assert_eq!((taken.exit, taken.errors.as_str()), (0, ""), "{taken:?}");

    // A notification about the app proves it.
    let other = Desk::open().await;
    let apple = other.simulator.apple();
    let urls = NotificationUrls {
        manual: true,
        ..NotificationUrls::for_both_environments("http://127.0.0.1:1/")
    };
    apple
        .set_notification_urls("com.example.app", urls)
        .unwrap();
    apple.create_transaction(NewTransaction::default()).unwrap();
    let uuid = apple.list_notifications()[0].notification_uuid.clone();
    apple.push_notification(&uuid).await.unwrap();
    let taken = other.apple(&apple.api_key(), &["--check"], &[]);
    assert_eq!((taken.exit, taken.errors.as_str()), (0, ""), "{taken:?}");
}
