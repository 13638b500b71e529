//! The validation log: one row for each verification, with nothing in it that identifies the
//! purchase.

use std::time::Duration;

use attesto::audit::VerificationLog;
use attesto::credentials::sealed_columns::VALIDATION_AUDIT_KEY;
use attesto::crypto::ExposeSecret as _;
use attesto::simulator::Fault;
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::state::google::NewSubscription;
use serde_json::{Value, json};
use sqlx::{Executor as _, Row as _};
use tokio_util::sync::CancellationToken;

use crate::world::attesto::{APP, Tenant, World};

const WANTED: [(&str, &str); 1] = [("ENABLE_VALIDATION_AUDIT_LOG", "true")];

/// The tenant's rows, oldest first: source, valid, code.
fn told(rows: &[Value]) -> Vec<(&str, bool, Option<&str>)> {
    let told = rows.iter().rev().map(|row| {
        (
            row["source"].as_str().unwrap(),
            row["valid"].as_bool().unwrap(),
            row["errorCode"].as_str(),
        )
    });
    told.collect()
}

async fn asks_google(world: &World, tenant: &Tenant, token: &str) -> u16 {
    let question = json!({ "packageName": APP, "purchaseToken": token, "type": "subscription" });
    world.verify("google", tenant, &question).await.status
}

#[tokio::test]
async fn each_verification_is_logged_and_the_last_ones_are_written_before_stopping() {
    let world = World::with(&WANTED).await;
    let (tenant, stranger) = (world.tenant().await, world.stranger().await);
    let shell = world.shell();
    let apple = world.simulator.apple();
    let bought = apple.create_transaction(NewTransaction::default()).unwrap();
    let id = bought.transaction_id.as_str();
    let jws = apple.sign_transaction(id).expect("a JWS");
    let token = "a-purchase-token";
    let new = NewSubscription {
        purchase_token: Some(token.to_owned()),
        ..NewSubscription::default()
    };
    world.simulator.google().buy_subscription(new).unwrap();

    let by_id = json!({ "transactionId": id });
    assert_eq!(world.verify("apple", &tenant, &by_id).await.status, 200);
    world.clock.advance(Duration::from_millis(1));
    let signed = json!({ "signedTransaction": jws });
    assert_eq!(world.verify("apple", &tenant, &signed).await.status, 200);
    world.clock.advance(Duration::from_millis(1));
    let unknown = json!({ "transactionId": "1999999999999999" });
    assert_eq!(world.verify("apple", &tenant, &unknown).await.status, 200);
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(asks_google(&world, &tenant, token).await, 200);
    world.clock.advance(Duration::from_millis(1));
    world
        .simulator
        .add_fault(Fault::at_place("google").status(500).times(0))
        .unwrap();
    assert_eq!(asks_google(&world, &tenant, token).await, 502);
    // An invalid request is not a verification.
    assert_eq!(world.verify("apple", &tenant, &json!({})).await.status, 400);
    // Another tenant, the same purchase.
    assert_eq!(world.verify("apple", &stranger, &by_id).await.status, 400);
    let newest = world.clock.now();
    let fresh = world.end().await;

    let rows = shell.rows(&["audit", "list", tenant.id.as_str()]);
    assert_eq!(
        told(&rows),
        [
            ("apple", true, None),
            ("apple", true, None),
            ("apple", false, Some("TRANSACTION_NOT_FOUND")),
            ("google", true, None),
            ("google", false, Some("GOOGLE_API_ERROR")),
        ]
    );
    assert_eq!(
        rows[0]["occurredAt"],
        newest.to_string(),
        "when it was asked"
    );
    let hash = |row: usize| rows[rows.len() - 1 - row]["identifierHash"].clone();
    assert_eq!(hash(0), hash(1), "an id, and a JWS of the same");
    assert_eq!(hash(3), hash(4));
    assert_ne!(hash(0), hash(2));
    assert_eq!(hash(0).as_str().unwrap().len(), 64);

    let theirs = shell.rows(&["audit:list", stranger.id.as_str()]);
    assert_eq!(
        told(&theirs),
        [("apple", false, Some("CREDENTIALS_MISSING"))]
    );
    assert_ne!(theirs[0]["identifierHash"], hash(0), "each tenant's own");

    let two = shell.rows(&["audit", "list", tenant.id.as_str(), "--limit", "2"]);
    assert_eq!(two, rows[..2]);

    // With the purchase and the key its rows can be found.
    let list = [
        "audit",
        "list",
        tenant.id.as_str(),
        "--identifier-path",
        "-",
    ];
    let found = shell.run_with(&list, format!("{token}\n")).rows();
    assert_eq!(found, rows[..2]);

    // Both columns of the contract are present, and nothing of the purchase.
    let row = fresh
        .database
        .pool()
        .fetch_one("select string_agg(a::text, ' ') as text, bool_and(occurred_at = created_at) as same from validation_audit a")
        .await
        .unwrap();
    let text: String = row.get("text");
    assert!(row.get::<bool, _>("same"));
    assert!(!text.contains(id) && !text.contains(token), "{text}");
}

#[tokio::test]
async fn nothing_is_logged_unless_enabled() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let shell = world.shell();
    assert_eq!(asks_google(&world, &tenant, "unknown").await, 200);
    world.end().await;
    let list = ["audit", "list", tenant.id.as_str()];
    assert_eq!(shell.rows(&list), Vec::<Value>::new());
    let mistyped = tenant.id.as_str().replace("tenant_0", "tenant_1");
    let ran = shell.run(&["audit", "list", &mistyped]);
    assert_eq!(ran.exit, 1);
    assert!(
        ran.complained.contains("no such tenant"),
        "{}",
        ran.complained
    );
    assert_eq!(shell.run(&["audit", "list", "nobody"]).exit, 2);
}

#[tokio::test]
async fn a_failing_validation_log_delays_no_request_and_is_written_later() {
    let world = World::with(&WANTED).await;
    let tenant = world.tenant().await;
    let shell = world.shell();
    let pool = world.database().pool();
    pool.execute("alter table validation_audit rename to away")
        .await
        .unwrap();
    for _ in 0..3 {
        assert_eq!(asks_google(&world, &tenant, "unknown").await, 200);
    }
    pool.execute("alter table away rename to validation_audit")
        .await
        .unwrap();
    world.end().await;
    let rows = shell.rows(&["audit", "list", tenant.id.as_str()]);
    assert_eq!(rows.len(), 3, "{rows:?}");
}

/// Two processes that start at once create one key, and a new encryption key changes nothing.
#[tokio::test]
async fn hashes_outlive_the_encryption_key() {
    use attesto::audit::purchase_hash::{PurchaseDigest, PurchaseHashKey};

    let world = World::new().await;
    let tenant = world.stranger().await.id;
    let (database, old) = (world.database(), world.keyring());
    let (one, two) = tokio::join!(
        PurchaseHashKey::load(database, old),
        PurchaseHashKey::load(database, old)
    );
    let hash = |key: &PurchaseHashKey| {
        key.hash_purchase(&tenant, PurchaseDigest::from_identifier("token"))
    };
    let before = hash(&one.unwrap());
    assert_eq!(before, hash(&two.unwrap()));

    // As a rotation does: open with the old key, seal with the new one.
    let new = Keys::with_new(2);
    let sealed: Vec<u8> = sqlx::query_scalar("select key_enc from validation_audit_keys")
        .fetch_one(database.pool())
        .await
        .unwrap();
    let place = VALIDATION_AUDIT_KEY.context_for("1");
    let opened = old.open(place, &sealed).unwrap();
    sqlx::query("update validation_audit_keys set key_enc = $1")
        .bind(new.seal(place, opened.expose_secret()))
        .execute(database.pool())
        .await
        .unwrap();
    assert_eq!(
        before,
        hash(&PurchaseHashKey::load(database, &new).await.unwrap())
    );
    let problem = PurchaseHashKey::load(database, old).await.unwrap_err();
    assert!(problem.to_string().contains("key 2"), "{problem}");
    world.end().await;
}

struct Keys;

impl Keys {
    /// A keyring with one new key of this id.
    fn with_new(id: u8) -> attesto::crypto::keyring::Keyring {
        use attesto::crypto::keyring::{Keyring, MasterKey};
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;

        let text = format!("{id}:{}", STANDARD.encode([id; 32]));
        Keyring::new(MasterKey::parse(&text, None).unwrap(), Vec::new()).unwrap()
    }
}

/// A deleted tenant does not block the rows of other tenants.
#[tokio::test]
async fn a_row_of_a_deleted_tenant_is_dropped() {
    use attesto::audit::VerificationOutcome;
    use attesto::base::id::TenantId;
    use attesto::events::EventSource;

    let world = World::new().await;
    let tenant = world.stranger().await.id;
    let noted = VerificationLog::for_database(world.database(), world.keyring(), &world.clock);
    let gone = TenantId::mint(world.clock.now());
    for whose in [&tenant, &gone, &tenant] {
        let asked = noted.start_verification(EventSource::Google);
        asked.record_outcome(whose, || "token".into(), VerificationOutcome::Valid);
    }
    let stop = CancellationToken::new();
    stop.cancel();
    noted.run_writer(stop).await;
    assert_eq!(noted.dropped_count(), 0);
    let rows = world.shell().rows(&["audit", "list", tenant.as_str()]);
    assert_eq!(rows.len(), 2);
    world.end().await;
}
