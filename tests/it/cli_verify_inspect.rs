//! The commands `attesto verify`, `attesto inspect` and `attesto webhook verify-signature`, and
//! shell completions.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use attesto::deliveries::endpoint::{SigningSecret, SigningSecrets};
use attesto::deliveries::signature;
use attesto::simulator::state::apple::{
    NewTransaction, SimulatedEnvironment, SimulatedTransaction, TransactionChange,
};
use attesto::simulator::state::google::{NewProduct, NewSubscription, SubscriptionReplacement};
use attesto::simulator::{JwsForgery, Simulator};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::world::attesto::{APP, APP_APPLE_ID, World};
use crate::world::folder::Folder;

/// The encryption key of a `World`.
const ENCRYPTION_KEY: [u8; 32] = [7; 32];
const USER: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";

#[derive(Debug)]
struct Ran {
    exit: Option<i32>,
    text: String,
    errors: String,
}

impl Ran {
    /// The only output line, as JSON.
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs the binary with these variables and nothing else, and `input` on standard input.
async fn attesto(words: &[&str], variables: &[(&str, String)], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_attesto"))
        .args(words)
        .env_clear()
        .envs(variables.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The process may end without reading.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    Ran {
        exit: output.status.code(),
        text: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Without a database or a network; the simulated App Store's root replaces Apple's.
async fn inspect(roots: &Path, more: &[&str], input: &str) -> Ran {
    let variables = [("APPLE_ROOT_CERTIFICATES", roots.display().to_string())];
    attesto(&[&["inspect", "-"], more].concat(), &variables, input).await
}

fn root_of(simulator: &Simulator, folder: &Folder) -> std::path::PathBuf {
    let roots = folder.join("root.pem");
    std::fs::write(&roots, simulator.apple_root_pem()).unwrap();
    roots
}

fn buys(simulator: &Simulator) -> SimulatedTransaction {
    let new = NewTransaction {
        environment: SimulatedEnvironment::Production,
        app_account_token: Some(USER.to_owned()),
        ..NewTransaction::default()
    };
    simulator.apple().create_transaction(new).unwrap()
}

#[expect(clippy::too_many_lines, reason = "one walk through a command")]
#[tokio::test]
async fn inspect_decodes_a_transaction() {
    let (world, folder) = (World::today().await, Folder::new());
    let roots = root_of(&world.simulator, &folder);
    let id = buys(&world.simulator).transaction_id;
    let jws = world.simulator.apple().sign_transaction(&id).unwrap();

    let ran = inspect(&roots, &[], &jws).await;
    assert_eq!((ran.exit, ran.errors.as_str()), (Some(0), ""));
    let found = ran.json();
    assert_eq!(found["believed"], true);
    assert_eq!(found["kind"], "transaction");
    assert_eq!(found["status"], "active");
    let state = &found["state"];
    assert_eq!(
        (&state["status"], &state["entitled"]),
        (&json!("active"), &json!(true))
    );
    assert_eq!(
        (&state["basis"], &state["willRenew"]),
        (&json!("transaction"), &Value::Null)
    );
    assert!(state["entitledUntil"].is_string(), "{state}");
    assert_eq!(found["payload"]["transactionId"], id.as_str());
    assert_eq!(found["algorithm"], "ES256");
    let chain = found["certificates"].as_array().unwrap();
    let roles: Vec<_> = chain.iter().map(|link| &link["role"]).collect();
    assert_eq!(roles, ["leaf", "intermediate", "root (ignored)"]);
    assert_eq!(chain[0]["marker"], "1.2.840.113635.100.6.11.1");
    assert_eq!(chain[1]["carriesMarker"], true);
    assert_eq!(chain[0]["validWhenSigned"], true);

    // As an argument, in a file, and in the JSON of the store, of a backend and of an event.
    let variables = [("APPLE_ROOT_CERTIFICATES", roots.display().to_string())];
    assert_eq!(
        attesto(&["inspect", &jws], &variables, "").await.exit,
        Some(0)
    );
    for wrapped in [
        json!({ "signedTransactionInfo": jws }),
        json!({ "signedTransaction": jws }),
        json!({ "valid": true, "transaction": { "signedTransactionInfo": jws } }),
        json!({ "event": "x", "raw": { "signedPayload": jws } }),
    ] {
        let ran = inspect(&roots, &[], &wrapped.to_string()).await;
        assert_eq!(ran.exit, Some(0), "{ran:?}");
    }
    let person = inspect(&roots, &["--output", "table"], &jws).await;
    assert!(person.text.contains("it would be accepted"), "{person:?}");
    assert!(person.text.contains("status now   active"), "{person:?}");
    for line in [
        "state        active: it is paid for",
        "entitled     yes, until 20",
        "based on     one signed transaction alone, which says nothing of later periods",
    ] {
        assert!(person.text.contains(line), "{line}: {person:?}");
    }

    // With an expected bundle id or environment.
    for (expectation, why) in [
        (
            ["--bundle-id", "com.example.other"],
            "com.example.other was expected",
        ),
        (["--environment", "sandbox"], "Sandbox was expected"),
    ] {
        let ran = inspect(&roots, &expectation, &jws).await;
        assert_eq!(ran.exit, Some(1));
        let found = ran.json();
        assert_eq!(
            (&found["believed"], &found["class"]),
            (&json!(false), &json!(null))
        );
        assert!(
            found["refusals"][0].as_str().unwrap().contains(why),
            "{found}"
        );
    }
    let right = ["--bundle-id", APP, "--environment", "production"];
    assert_eq!(inspect(&roots, &right, &jws).await.exit, Some(0));
    let mut nameless = world.simulator.apple().transaction_payload(&id).unwrap();
    nameless.remove("bundleId");
    let nameless = world.simulator.apple().sign_payload(&nameless);
    let ran = inspect(&roots, &["--bundle-id", APP], &nameless).await;
    assert!(ran.text.contains("It names no app, and"), "{ran:?}");
    // At a time before the signing date it is from the future.
    let early = inspect(&roots, &["--at", "2020-01-01T00:00:00Z"], &jws)
        .await
        .json();
    assert_eq!(early["class"], "signed_in_the_future");
    // Long after the certificates have expired it is accepted, unless OCSP is on: then the current
    // time counts.
    let late = ["inspect", "-", "--at", "2070-01-01T00:00:00Z"];
    let roots = variables[0].1.clone();
    for (ocsp, exit, class) in [
        ("off", Some(0), Value::Null),
        ("on", Some(1), json!("certificate_expired")),
    ] {
        let variables = [
            ("APPLE_ROOT_CERTIFICATES", roots.clone()),
            ("APPLE_OCSP", ocsp.to_owned()),
        ];
        let judged = attesto(&late, &variables, &jws).await;
        assert_eq!((judged.exit, &judged.json()["class"]), (exit, &class));
    }
    // Apple's own root did not issue it.
    let real = attesto(&["inspect", "-"], &[], &jws).await;
    assert_eq!(
        (real.exit, &real.json()["class"]),
        (Some(1), &json!("untrusted_chain"))
    );
    assert!(real.text.contains("--roots"));
    world.end().await;
}

#[tokio::test]
async fn inspect_reports_why_a_forgery_is_refused() {
    let (world, folder) = (World::today().await, Folder::new());
    let roots = root_of(&world.simulator, &folder);
    let id = buys(&world.simulator).transaction_id;
    for (forgery, class, explained) in [
        (
            JwsForgery::WrongRoot,
            "untrusted_chain",
            "a root that is not trusted",
        ),
        (
            JwsForgery::LeafWithoutMarker,
            "leaf_marker",
            "The leaf lacks 1.2.840.113635.100.6.11.1",
        ),
        (
            JwsForgery::ExpiredLeaf,
            "certificate_expired",
            "The leaf was not valid",
        ),
        (JwsForgery::TwoCertificates, "chain_length", "exactly three"),
        (JwsForgery::AlteredPayload, "bad_signature", "altered"),
        (JwsForgery::AlgorithmNone, "wrong_algorithm", "ES256"),
        (JwsForgery::Xcode, "chain_length", "Xcode's local StoreKit"),
    ] {
        let forged = world
            .simulator
            .apple()
            .forge_transaction(&id, forgery)
            .unwrap();
        let ran = inspect(&roots, &[], &forged).await;
        assert_eq!(ran.exit, Some(1), "{forgery:?}");
        let found = ran.json();
        assert_eq!(found["class"], class, "{forgery:?}");
        assert_eq!(found["state"], Value::Null, "{forgery:?}");
        assert!(ran.text.contains(explained), "{forgery:?}: {found}");
    }
    for nonsense in ["", "hello", "a.b", "{}", "{\"signedPayload\":7}", "[1]"] {
        let ran = inspect(&roots, &[], nonsense).await;
        assert_eq!((ran.exit, ran.text.as_str()), (Some(2), ""), "{nonsense:?}");
    }
    let version_1 = json!({ "notification_type": "DID_RENEW", "unified_receipt": {} }).to_string();
    let ran = inspect(&roots, &[], &version_1).await;
    assert_eq!(ran.exit, Some(2));
    assert!(
        ran.errors.contains("a notification of version 1"),
        "{ran:?}"
    );
    world.end().await;
}

#[expect(clippy::too_many_lines, reason = "one walk through a command")]
#[tokio::test]
async fn inspect_decodes_a_notification_and_its_parts() {
    let (world, folder) = (World::today().await, Folder::new());
    let roots = root_of(&world.simulator, &folder);
    let id = buys(&world.simulator).transaction_id;
    let inner = world.simulator.apple().sign_transaction(&id).unwrap();
    let forged = world
        .simulator
        .apple()
        .forge_transaction(&id, JwsForgery::OtherKey)
        .unwrap();
    let sign = |payload: &Value| {
        let authority = world.simulator.identity().certificate_authority();
        let signed = authority.sign_jws(payload.as_object().unwrap());
        json!({ "signedPayload": signed }).to_string()
    };
    let notification = |inner: &str| {
        json!({
            "notificationType": "DID_RENEW",
            "notificationUUID": "00000000-0000-4000-8000-000000000001",
            "signedDate": world.clock.now().as_millis(),
            "data": {
                "bundleId": APP, "appAppleId": APP_APPLE_ID, "environment": "Production", "status": 1,
                "signedTransactionInfo": inner,
            },
        })
    };
    let number = APP_APPLE_ID.to_string();
    let expected = ["--bundle-id", APP, "--app-apple-id", &number];
    let good = sign(&notification(&inner));
    let ran = inspect(&roots, &expected, &good).await;
    assert_eq!(
        (ran.exit, ran.errors.as_str()),
        (Some(0), ""),
        "{}",
        ran.text
    );
    let found = ran.json();
    assert_eq!(found["kind"], "notification");
    assert_eq!(found["parts"][0]["field"], "signedTransactionInfo");
    assert_eq!(found["parts"][0]["payload"]["transactionId"], id.as_str());
    let person = inspect(&roots, &["--output", "table"], &good).await;
    assert!(
        person.text.contains("signedTransactionInfo: a transaction"),
        "{person:?}"
    );
    assert!(
        !person.text.contains(&inner),
        "what is inside is shown once"
    );

    // What the purchase is worth, by the whole notification: here in its grace period, by Apple's status.
    assert_eq!(found["state"]["status"], "active");
    assert_eq!(found["parts"][0]["state"], Value::Null, "only of the whole");
    let mut bare = notification(&inner);
    bare["data"]["status"] = Value::Null;
    let found = inspect(&roots, &expected, &sign(&bare)).await;
    assert_eq!(
        found.json()["state"],
        Value::Null,
        "a later period may be running"
    );
    assert!(
        found.text.contains("a later period may be running"),
        "{found:?}"
    );
    let mut retried = notification(&inner);
    let end = world.clock.now().plus(Duration::from_hours(24 * 16));
    let renewal = json!({
        "originalTransactionId": id, "autoRenewProductId": "com.example.app.pro.yearly",
        "productId": "com.example.app.pro.monthly", "autoRenewStatus": 1, "environment": "Production",
        "isInBillingRetryPeriod": true, "gracePeriodExpiresDate": end.as_millis(),
        "signedDate": world.clock.now().as_millis(),
    });
    let authority = world.simulator.identity().certificate_authority();
    retried["data"]["status"] = json!(4);
    retried["data"]["signedRenewalInfo"] = json!(authority.sign_jws(renewal.as_object().unwrap()));
    let retried = sign(&retried);
    let found = inspect(&roots, &[], &retried).await.json();
    let state = &found["state"];
    assert_eq!(state["status"], "in_grace_period", "{found}");
    assert_eq!(
        (&state["entitled"], &state["entitledUntil"]),
        (&json!(true), &json!(end))
    );
    assert_eq!(
        (&state["basis"], &state["renewsAs"]),
        (&json!("store"), &json!("com.example.app.pro.yearly"))
    );
    let person = inspect(&roots, &["--output", "table"], &retried).await;
    for line in [
        "state        in_grace_period: a payment failed; access goes on while the store retries",
        "renewal      as com.example.app.pro.yearly",
    ] {
        assert!(person.text.contains(line), "{line}: {person:?}");
    }
    // After the transaction's end, and without a status, the notification does not decide.
    let late = world.clock.now().plus(Duration::from_hours(24 * 60));
    let late = ["--at", &late.to_string()];
    let found = inspect(&roots, &late, &good).await.json();
    assert_eq!(found["state"], Value::Null, "{found}");
    let remark = "`attesto verify apple --transaction-id` asks Apple";
    assert!(found["remarks"].to_string().contains(remark), "{found}");
    let found = inspect(&roots, &late, &inner).await.json();
    assert_eq!(found["state"]["status"], "expired", "{found}");
    assert!(found["remarks"].to_string().contains(remark), "{found}");

    let found = inspect(&roots, &[], &sign(&notification(&forged)))
        .await
        .json();
    assert_eq!(found["state"], Value::Null);
    assert_eq!(
        (&found["believed"], &found["class"]),
        (&json!(false), &json!(null))
    );
    assert_eq!(found["parts"][0]["class"], "bad_signature");
    for (more, without, why) in [
        (vec!["--app-apple-id", "7"], None, "7 was expected"),
        (vec![], Some("notificationUUID"), "no notificationUUID"),
        (vec![], Some("data"), "names no app"),
    ] {
        let mut payload = notification(&inner);
        if let Some(field) = without {
            payload.as_object_mut().unwrap().remove(field);
        }
        let ran = inspect(&roots, &more, &sign(&payload)).await;
        assert_eq!(ran.exit, Some(1));
        assert!(ran.text.contains(why), "{}", ran.text);
    }
    world.end().await;
}

/// The settings of a server that uses the simulated stores.
fn variables(world: &World, folder: &Folder) -> Vec<(&'static str, String)> {
    let mut variables: Vec<_> = world
        .simulator
        .environment_variables()
        .into_iter()
        .collect();
    let roots = root_of(&world.simulator, folder);
    variables.push(("APPLE_ROOT_CERTIFICATES", roots.display().to_string()));
    variables.push(("DATABASE_URL", world.fresh.url.clone()));
    variables.push(("ATTESTO_ENCRYPTION_KEY", STANDARD.encode(ENCRYPTION_KEY)));
    variables
}

/// Without the parts that a store signs anew in each answer.
fn unsigned(mut answer: Value) -> Value {
    // Signed anew for each request.
    answer["state"]["asOf"].take();
    for field in ["signedTransactionInfo", "rawDecodedPayload"] {
        answer["transaction"][field].take();
    }
    answer
}

#[tokio::test]
async fn verify_apple_answers_as_the_service_does() {
    let (world, folder) = (World::today().await, Folder::new());
    let variables = variables(&world, &folder);
    let tenant = world.tenant().await;
    let id = buys(&world.simulator).transaction_id;
    let jws = world.simulator.apple().sign_transaction(&id).unwrap();
    let ask = async |more: &[&str]| {
        let words = [&["verify", "apple", tenant.id.as_str()], more].concat();
        attesto(&words, &variables, &jws).await
    };
    let by_id = ["--transaction-id", &id];
    let by_jws = ["--signed-transaction-path", "-"];

    let ran = ask(&by_id).await;
    assert_eq!((ran.exit, ran.errors.as_str()), (Some(0), ""));
    let question = json!({ "transactionId": id });
    let served = world.verify("apple", &tenant, &question).await;
    assert_eq!(unsigned(ran.json()), unsigned(served.body));
    let ran = ask(&[&by_id[..], &["--output", "table"]].concat()).await;
    for told in [
        "Valid: com.example.app.pro.monthly. Grant it until 20",
        ": it is paid for.",
        "  state        active: it is paid for",
        "  entitled     yes, until 20",
        "  based on     ",
        USER,
    ] {
        assert!(ran.text.contains(told), "{told}: {ran:?}");
    }
    assert_eq!(ask(&by_jws).await.json()["valid"], true);

    // A signed transaction says nothing of later periods; with --refresh Apple is asked.
    let now = world.clock.now();
    let new = NewTransaction {
        environment: SimulatedEnvironment::Production,
        purchase_date: Some(now.minus(Duration::from_hours(24 * 40))),
        expires_date: Some(now.minus(Duration::from_hours(24 * 10))),
        ..NewTransaction::default()
    };
    let apple = world.simulator.apple();
    let old = apple.create_transaction(new).unwrap().transaction_id;
    let old_jws = apple.sign_transaction(&old).unwrap();
    let renew = TransactionChange::Renew {};
    apple.change_transaction(&old, &renew).unwrap();
    let ask_old = async |more: &[&str]| {
        let start = ["verify", "apple", tenant.id.as_str()];
        attesto(&[&start, &by_jws[..], more].concat(), &variables, &old_jws).await
    };
    let table = ["--output", "table"];
    let state = &ask_old(&[]).await.json()["state"];
    assert_eq!(
        (&state["status"], &state["basis"]),
        (&json!("expired"), &json!("transaction"))
    );
    let ran = ask_old(&table).await;
    for told in [
        "Grant nothing: it has ended.",
        "A later period may be running: --refresh asks Apple for it.",
    ] {
        assert!(ran.text.contains(told), "{told}: {ran:?}");
    }
    let state = &ask_old(&["--refresh"]).await.json()["state"];
    assert_eq!(
        (&state["status"], &state["entitled"]),
        (&json!("active"), &json!(true))
    );
    assert_eq!(state["basis"], "store");
    let ran = ask_old(&[&table[..], &["--refresh"]].concat()).await;
    assert!(ran.text.contains("Grant it until 20"), "{ran:?}");
    assert!(!ran.text.contains("--refresh"), "{ran:?}");

    let stranger = "00000000-0000-4000-8000-000000000001";
    let stranger = [&by_jws[..], &["--expected-app-user-id", stranger]].concat();
    let unknown = ["--transaction-id", "404"];
    for (question, error) in [
        (&stranger[..], "APP_USER_MISMATCH"),
        (&unknown[..], "TRANSACTION_NOT_FOUND"),
    ] {
        let ran = ask(question).await;
        assert_eq!((ran.exit, &ran.json()["error"]), (Some(1), &json!(error)));
        let said = format!("attesto: {error}: ");
        assert!(ran.errors.starts_with(&said), "{}", ran.errors);
    }
    let nobody = world.stranger().await;
    let words = [
        "verify",
        "apple",
        nobody.id.as_str(),
        "--transaction-id",
        "1",
    ];
    let ran = attesto(&words, &variables, "").await;
    assert_eq!(
        (ran.exit, &ran.json()["error"]),
        (Some(1), &json!("CREDENTIALS_MISSING"))
    );
    assert_eq!(ask(&[]).await.exit, Some(2));
    assert_eq!(ask(&[by_id, by_jws].concat()).await.exit, Some(2));
    world.end().await;
}

#[tokio::test]
async fn verify_google_answers_as_the_service_does() {
    let (world, folder) = (World::today().await, Folder::new());
    let variables = variables(&world, &folder);
    let tenant = world.tenant().await;
    let play = world.simulator.google();
    let token = play.buy_subscription(NewSubscription::default()).unwrap();
    let token = token.purchase_token.as_str();
    let ask = async |more: &[&str], token: &str| {
        let start = [
            "verify",
            "google",
            tenant.id.as_str(),
            "--purchase-token-path",
            "-",
        ];
        attesto(&[&start, more].concat(), &variables, token).await
    };
    let subscription = ["--type", "subscription"];
    // With the newline that an editor adds.
    let ran = ask(&subscription, &format!("{token}\n")).await;
    assert_eq!((ran.exit, ran.errors.as_str()), (Some(0), ""));
    let question = json!({ "packageName": APP, "purchaseToken": token, "type": "subscription" });
    let served = world.verify("google", &tenant, &question).await;
    // Google was asked twice.
    let without_time = |mut answer: Value| {
        assert!(answer["state"]["asOf"].is_string(), "{answer}");
        answer["state"]["asOf"] = Value::Null;
        answer
    };
    assert_eq!(without_time(ran.json()), without_time(served.body));

    let other = [&subscription[..], &["--package-name", "com.example.other"]].concat();
    for (question, token, error) in [
        (&subscription[..], "unknown", "PURCHASE_NOT_FOUND"),
        (&other[..], token, "PACKAGE_NAME_MISMATCH"),
    ] {
        let ran = ask(question, token).await;
        assert_eq!((ran.exit, &ran.json()["error"]), (Some(1), &json!(error)));
    }
    // The token is enough, and a wrong type is no failure.
    for more in [
        &[][..],
        &["--type", "product"],
        &["--product-id", "pro_monthly"],
    ] {
        let answer = ask(more, token).await.json();
        assert_eq!(
            answer["subject"]["type"], "subscription",
            "{more:?}: {answer}"
        );
        assert_eq!(answer["state"]["entitled"], true, "{more:?}: {answer}");
    }
    let ran = ask(&["--product-id", "other"], token).await;
    assert_eq!(
        (ran.exit, &ran.json()["error"]),
        (Some(1), &json!("PRODUCT_ID_MISMATCH"))
    );
    let product = NewProduct {
        quantity: Some(5),
        ..NewProduct::default()
    };
    let product = play.buy_product(product).unwrap();
    let ran = ask(&["--output", "table"], &product.purchase_token).await;
    for told in [
        "Grant it; it has no end.",
        "  entitled     yes, without an end",
        "  quantity     5",
        "  acknowledge  by 20",
        "  user         none",
    ] {
        assert!(ran.text.contains(told), "{told}: {ran:?}");
    }
    // News about a replaced token: the state is that of the purchase that took its place.
    let new = play.replace_subscription(token, SubscriptionReplacement::default());
    let new = new.unwrap().purchase_token;
    assert_eq!(ask(&[], &new).await.json()["subject"]["current"], true);
    let ran = ask(&["--output", "table"], token).await;
    for told in [
        "state        replaced: ",
        "entitled     yes, until 20",
        &format!("replaced by  {new}"),
    ] {
        assert!(ran.text.contains(told), "{told}: {ran:?}");
    }
    assert_eq!(ask(&subscription, " ").await.exit, Some(2));
    world.end().await;
}

#[tokio::test]
async fn verify_signature_names_the_mistake() {
    let folder = Folder::new();
    let (mine, old) = (SigningSecret::generate(), SigningSecret::generate());
    let write = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    // With the newline that an editor adds.
    let secret = write("secret", &format!("{}\n", mine.expose()));
    let body = "{\"event\":\"test\",\"n\":1.0}";
    let path = write("body", body);
    let now = attesto::base::clock::Clock::system().now();
    let secrets = SigningSecrets {
        newest: old,
        previous: vec![mine],
    };
    let signed = signature::sign_delivery(&secrets, "evt_1", now.as_secs(), body.as_bytes());
    let check = [
        "webhook",
        "verify-signature",
        "--secret-path",
        &secret,
        "--body-path",
    ];

    let words = [&check[..], &[&path, "--signature", &signed.attesto]].concat();
    let ran = attesto(&words, &[], "").await;
    assert_eq!((ran.exit, ran.errors.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(
        (&ran.json()["fits"], &ran.json()["values"]),
        (&json!(2), &json!(2))
    );
    let timestamp = now.as_secs().to_string();
    let standard = [
        "--webhook-signature",
        &signed.standard,
        "--webhook-id",
        "evt_1",
        "--webhook-timestamp",
        &timestamp,
    ];
    let words = [&check[..], &[path.as_str()], &standard].concat();
    assert_eq!(attesto(&words, &[], "").await.exit, Some(0));

    let words = [&check[..], &["-", "--signature", &signed.attesto]].concat();
    let ran = attesto(&words, &[], &format!("{body}\n")).await;
    assert_eq!(ran.exit, Some(1));
    assert!(ran.text.contains("line end"), "{}", ran.text);
    let earlier = now.as_secs() - 400;
    let late = signature::sign_delivery(&secrets, "evt_1", earlier, body.as_bytes()).attesto;
    let words = [&check[..], &[&path, "--signature", &late]].concat();
    let ran = attesto(&words, &[], "").await;
    assert_eq!((ran.exit, &ran.json()["fits"]), (Some(1), &json!(2)));
    assert!(ran.text.contains("300 s are tolerated"), "{}", ran.text);
    let patient = [&words[..], &["--tolerance", "10m"]].concat();
    assert_eq!(attesto(&patient, &[], "").await.exit, Some(0));

    for words in [
        [&check[..], &[path.as_str()]].concat(),
        [&check[..], &[&path, "--signature", "nonsense"]].concat(),
        [&check[..], &[&path, "--webhook-signature", "v1,x"]].concat(),
    ] {
        assert_eq!(attesto(&words, &[], "").await.exit, Some(2), "{words:?}");
    }
}

#[tokio::test]
async fn completions_and_man_pages_are_generated() {
    let folder = Folder::new();
    let ran = attesto(&["completions", "bash"], &[], "").await;
    assert_eq!((ran.exit, ran.errors.as_str()), (Some(0), ""));
    let script = folder.join("completion.bash");
    // What the shell suggests after `attesto key `.
    let asking = "\ncomplete -p attesto >/dev/null; COMP_WORDS=(attesto key ''); COMP_CWORD=2; _attesto attesto '' key; echo \"${COMPREPLY[*]}\"\n";
    std::fs::write(&script, ran.text + asking).unwrap();
    if let Ok(output) = Command::new("bash")
        .arg("--norc")
        .arg(&script)
        .output()
        .await
    {
        let offered = String::from_utf8(output.stdout).unwrap();
        assert!(
            offered.contains("create") && offered.contains("revoke"),
            "{offered}"
        );
    }
    assert_eq!(
        attesto(&["completions", "csh"], &[], "").await.exit,
        Some(2)
    );

    let page = attesto(&["man"], &[], "").await;
    assert!(page.text.contains(".TH attesto 1"), "{}", page.text);
    let pages = folder.join("man");
    let ran = attesto(&["man", "--folder", &pages.display().to_string()], &[], "").await;
    assert_eq!((ran.exit, ran.text.as_str()), (Some(0), ""));
    let page = std::fs::read_to_string(pages.join("attesto-webhook-set-config.1")).unwrap();
    assert!(page.contains("callback\\-url"), "{page}");
}
