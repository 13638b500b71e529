//! `attesto apple set-credentials` and `get-credentials` from the command line.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use attesto::base::clock::Timestamp;
use attesto::base::id::TenantId;
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::stores::apple::account::EnvironmentChoice;
use attesto::stores::apple::store;
use attesto::stores::shared::credentials::LoadCredentialsError;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::world::folder::Folder;
use crate::world::postgres::{Fresh, fresh_database};
use crate::world::shell::Ran;

/// 32 bytes of zero, in base64.
const ENCRYPTION_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const ISSUER: &str = "57246542-96fe-1a63-e053-0824d011072a";
/// Options of every valid command.
const NAMES: [&str; 6] = [
    "--bundle-id",
    "com.example.app",
    "--key-id",
    "ABCDE12345",
    "--issuer-id",
    ISSUER,
];
const APP_APPLE_ID: [&str; 2] = ["--app-apple-id", "1234567890"];

struct Desk {
    fresh: Fresh,
    tenant: TenantId,
}

/// A `.p8` file with a key made for this run.
fn key_file() -> String {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let base64 = STANDARD.encode(key.to_pkcs8v1().unwrap().as_ref());
    format!(
        "-----BEGIN {0}-----\n{base64}\n-----END {0}-----\n",
        "PRIVATE KEY"
    )
}

fn keyring(fill: u8) -> Keyring {
    let key = MasterKey::parse(&STANDARD.encode([fill; 32]), Some(1)).unwrap();
    Keyring::new(key, vec![]).unwrap()
}

impl Desk {
    async fn open() -> Self {
        let fresh = fresh_database().await;
        let tenant = fresh.create_tenant().await;
        Self { fresh, tenant }
    }

    /// Runs `attesto`, with `file` on its standard input and an environment that holds nothing else.
    fn attesto(&self, words: &[&str], file: impl AsRef<[u8]>, environment: &[(&str, &str)]) -> Ran {
        let ran = self
            .fresh
            .shell()
            .set_all(environment.iter().copied())
            .run_with(words, file);
        // The base64 prefix of every P-256 key in PKCS#8.
        ran.assert_hides("MIG");
        ran.assert_hides(ENCRYPTION_KEY);
        ran
    }

    fn set(&self, file: impl AsRef<[u8]>, more: &[&[&str]]) -> Ran {
        let words = ["apple", "set-credentials", self.tenant.as_str()];
        let words = [&words[..], &["--key-path", "-"], &more.concat()].concat();
        self.attesto(&words, file, &[("ATTESTO_ENCRYPTION_KEY", ENCRYPTION_KEY)])
    }
}

#[tokio::test]
async fn stored_credentials_are_shown_without_the_key() {
    let desk = Desk::open().await;
    let get = ["apple:get-credentials", desk.tenant.as_str()];
    let none = desk.attesto(&get, "", &[]);
    assert_eq!((none.exit, none.said.as_str()), (1, ""));
    assert!(
        none.complained.contains("no App Store credentials"),
        "{none:?}"
    );

    let file = key_file();
    let set = desk.set(&file, &[&NAMES, &APP_APPLE_ID]);
    assert_eq!((set.exit, set.complained.as_str()), (0, ""), "{set:?}");
    let shown: Value = serde_json::from_str(&set.said).unwrap();
    assert_eq!(
        shown,
        json!({
            "tenantId": desk.tenant.as_str(),
            "bundleId": "com.example.app",
            "keyId": "ABCDE12345",
            "issuerId": ISSUER,
            "environment": "auto",
            "appAppleId": 1_234_567_890,
            "hasPrivateKey": true,
            "keyFingerprint": shown["keyFingerprint"], "defaultConsumption": null,
            "updatedAt": shown["updatedAt"],
            "previous": null,
        })
    );
    assert_eq!(shown["keyFingerprint"].as_str().unwrap().len(), 16);
    // Showing the credentials needs no encryption key.
    assert_eq!(desk.attesto(&get, "", &[]).said, set.said);

    let again = desk.set(&file, &[&NAMES, &APP_APPLE_ID]);
    let mut again: Value = serde_json::from_str(&again.said).unwrap();
    assert_ne!(again["updatedAt"], shown["updatedAt"]);
    again["updatedAt"] = shown["updatedAt"].clone();
    assert_eq!(again, shown, "twice is the same as once");

    let other = desk.set(key_file(), &[&NAMES, &["--environment", "sandbox"]]);
    assert_eq!(
        (other.exit, other.complained.as_str()),
        (0, ""),
        "{other:?}"
    );
    let other: Value = serde_json::from_str(&other.said).unwrap();
    assert_eq!(other["environment"], "sandbox");
    assert_eq!(other["appAppleId"], Value::Null, "every field is replaced");
    assert_ne!(other["keyFingerprint"], shown["keyFingerprint"]);
}

/// What places for secrets and editors make of the file, which App Store Connect gives only once.
#[tokio::test]
async fn a12_a_key_file_that_was_changed_in_copying_is_read() {
    let desk = Desk::open().await;
    let file = key_file();
    let stored = |file: &[u8]| -> Value {
        let ran = desk.set(file, &[&NAMES, &APP_APPLE_ID]);
        assert_eq!((ran.exit, ran.complained.as_str()), (0, ""), "{ran:?}");
        let shown: Value = serde_json::from_str(&ran.said).unwrap();
        shown["keyFingerprint"].clone()
    };
    let fingerprint = stored(file.as_bytes());
    let utf16: Vec<u8> = format!("\u{feff}{file}")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (name, changed) in [
        ("\\n written out", file.replace('\n', "\\n").into_bytes()),
        ("blanks for line ends", file.replace('\n', " ").into_bytes()),
        ("in quotes", format!("\"{file}\"\n").into_bytes()),
        ("indented", file.replace('\n', "\n    ").into_bytes()),
        ("base64", STANDARD.encode(&file).into_bytes()),
        ("UTF-16", utf16),
    ] {
        assert_eq!(stored(&changed), fingerprint, "{name}");
    }
    // What cannot be restored is explained, and the file that exists only once is not asked for again.
    for (changed, what) in [
        (file.replace("-----", "\u{2014}"), "five hyphens"),
        (file[..120].to_owned(), "it was cut off where it was copied"),
    ] {
        let ran = desk.set(&changed, &[&NAMES]);
        assert_eq!(ran.exit, 2, "{ran:?}");
        assert!(ran.complained.contains(what), "{ran:?}");
        assert!(
            !ran.complained.to_lowercase().contains("download"),
            "{ran:?}"
        );
    }
    // The server reads what the command has stored.
    let loaded = store::load_credentials(&desk.fresh.database, &keyring(0), &desk.tenant).await;
    assert_eq!(
        json!(loaded.unwrap().unwrap().key.fingerprint()),
        fingerprint
    );
}

#[tokio::test]
async fn a_key_file_whose_name_does_not_fit_is_doubted() {
    let desk = Desk::open().await;
    let folder = Folder::new();
    for (name, doubt) in [
        ("SubscriptionKey_ABCDE12345.p8", None),
        ("SubscriptionKey_ABCDE12345 (1).p8", None),
        ("apple.p8", None),
        (
            "AuthKey_ABCDE12345.p8",
            Some("the file of an In-App Purchase key is called SubscriptionKey_ABCDE12345.p8"),
        ),
        (
            "SubscriptionKey_ZZZZZ99999.p8",
            Some("its key ID is ZZZZZ99999, and --key-id is ABCDE12345"),
        ),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, key_file()).unwrap();
        let words = ["apple", "set-credentials", desk.tenant.as_str()];
        let path = path.display().to_string();
        let words = [&words[..], &["--key-path", &path], &NAMES, &APP_APPLE_ID].concat();
        let ran = desk.attesto(&words, "", &[("ATTESTO_ENCRYPTION_KEY", ENCRYPTION_KEY)]);
        assert_eq!(ran.exit, 0, "{ran:?}");
        match doubt {
            None => assert_eq!(ran.complained, "", "{name}"),
            Some(doubt) => assert!(ran.complained.contains(doubt), "{name}: {ran:?}"),
        }
    }
}

#[tokio::test]
async fn set_credentials_warns_about_production_without_app_apple_id() {
    let desk = Desk::open().await;
    for (environment, warning) in [
        ("auto", "only sandbox transactions are found"),
        ("production", "nothing can be verified"),
    ] {
        let ran = desk.set(key_file(), &[&NAMES, &["--environment", environment]]);
        assert_eq!(ran.exit, 0, "{ran:?}");
        assert!(ran.complained.contains("--app-apple-id"), "{ran:?}");
        assert!(ran.complained.contains(warning), "{ran:?}");
        let shown: Value = serde_json::from_str(&ran.said).unwrap();
        assert_eq!(shown["environment"], environment);
        assert_eq!(shown["appAppleId"], Value::Null);
    }
}

#[tokio::test]
async fn stored_credentials_open_only_with_the_right_encryption_key() {
    let desk = Desk::open().await;
    let choice = ["--environment", "production"];
    let set = desk.set(key_file(), &[&NAMES, &APP_APPLE_ID, &choice]);
    let shown: Value = serde_json::from_str(&set.said).unwrap();
    let (database, tenant) = (&desk.fresh.database, &desk.tenant);
    let found = store::load_credentials(database, &keyring(0), tenant)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.key.fingerprint(), shown["keyFingerprint"]);
    assert_eq!(
        (&*found.bundle_id, &*found.key_id, &*found.issuer_id),
        ("com.example.app", "ABCDE12345", ISSUER)
    );
    assert_eq!(found.environment, EnvironmentChoice::Production);
    assert_eq!(found.app_apple_id, Some(1_234_567_890));

    let wrong = store::load_credentials(database, &keyring(1), tenant).await;
    assert!(
        matches!(wrong, Err(LoadCredentialsError::CannotUnseal { .. })),
        "{wrong:?}"
    );
    let stranger = TenantId::mint(Timestamp::from_millis(0));
    let none = store::load_credentials(database, &keyring(0), &stranger)
        .await
        .unwrap();
    assert!(none.is_none());

    // A different encryption key would seal what the server cannot open.
    let words = [
        "apple",
        "set-credentials",
        tenant.as_str(),
        "--key-path",
        "-",
    ];
    let other = STANDARD.encode([1; 32]);
    let ran = desk.attesto(
        &[&words[..], &NAMES].concat(),
        key_file(),
        &[("ATTESTO_ENCRYPTION_KEY", &other)],
    );
    assert_eq!((ran.exit, ran.said.as_str()), (1, ""), "{ran:?}");
}

#[tokio::test]
async fn invalid_input_is_refused_and_nothing_is_stored() {
    let desk = Desk::open().await;
    let (file, tenant) = (key_file(), desk.tenant.as_str());
    let sec1 = file.replace("PRIVATE", "EC PRIVATE");
    let words = ["apple", "set-credentials", tenant];
    let key = [("ATTESTO_ENCRYPTION_KEY", ENCRYPTION_KEY)];
    let from = |path: &str, file: &str, environment: &[(&str, &str)]| {
        let path = ["--key-path", path];
        desk.attesto(&[&words[..], &NAMES, &path].concat(), file, environment)
    };
    let with = |name: &str, value: &str| {
        let mut names = NAMES;
        let at = names.iter().position(|known| *known == name).unwrap();
        names[at + 1] = value;
        let names = names.map(str::to_owned);
        desk.set(&file, &[&names.each_ref().map(String::as_str)])
    };
    for (ran, exit, part) in [
        (desk.set("", &[&NAMES]), 2, "-: the file is empty."),
        (
            desk.set("garbage", &[&NAMES]),
            2,
            "a PEM block labelled PRIVATE KEY",
        ),
        (desk.set(&sec1, &[&NAMES]), 2, "openssl pkcs8 -topk8"),
        (desk.set("{}", &[&NAMES]), 2, "this is JSON"),
        (desk.set(&file, &[]), 2, "--bundle-id"),
        (with("--bundle-id", "com.example_app"), 2, "com.example.app"),
        (with("--key-id", "abcde12345"), 2, "ten capital letters"),
        (with("--issuer-id", "57246542"), 2, "must be a UUID"),
        (
            desk.set(&file, &[&NAMES, &["--environment", "xcode"]]),
            2,
            "sandbox",
        ),
        (
            desk.set(&file, &[&NAMES, &["--app-apple-id", "0"]]),
            2,
            "--app-apple-id",
        ),
        (
            desk.set(&file, &[&NAMES, &["--app-apple-id", "id123"]]),
            2,
            "123 without the letters: the Apple ID of the app is meant",
        ),
        (
            desk.set(&file, &[&NAMES, &["--app-apple-id", "com.example.app"]]),
            2,
            "App Store Connect, App Information, General Information",
        ),
        (from("-", &file, &[]), 2, "ATTESTO_ENCRYPTION_KEY"),
        (from("/nowhere", "", &key), 1, "cannot read /nowhere"),
        (
            desk.attesto(&["apple", "get-credentials", "acme"], "", &[]),
            2,
            "tenant_",
        ),
    ] {
        assert_eq!((ran.exit, ran.said.as_str()), (exit, ""), "{ran:?}");
        assert!(ran.complained.contains(part), "{part}: {ran:?}");
    }
    let get = ["apple", "get-credentials", tenant];
    assert_eq!(desk.attesto(&get, "", &[]).exit, 1, "nothing was stored");

    let stranger = Desk {
        tenant: TenantId::mint(Timestamp::from_millis(0)),
        ..desk
    };
    let ran = stranger.set(&file, &[&NAMES]);
    assert_eq!(ran.exit, 1);
    assert!(ran.complained.contains("no such tenant"), "{ran:?}");
}
