//! `attesto google set-credentials` and `get-credentials` from the command line.

use std::io::Write as _;
use std::process::{Command, Stdio};

use attesto::base::clock::Timestamp;
use attesto::base::id::TenantId;
use attesto::db::{ConnectSettings, Database};
use attesto::tenants;
use serde_json::{Value, json};

use crate::google_verify::key_file;
use crate::world::postgres::fresh_database;

/// 32 bytes of zero, in base64.
const ENCRYPTION_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

struct Desk {
    database_url: String,
    tenant: TenantId,
}

#[derive(Debug)]
struct Ran {
    exit: i32,
    said: String,
    complained: String,
}

impl Desk {
    async fn open() -> Self {
        let database_url = fresh_database().await.url;
        let database = Database::open(&ConnectSettings::from_url(&database_url).unwrap());
        let (name, now) = ("Acme".parse().unwrap(), Timestamp::from_millis(0));
        let tenant = tenants::store::create_tenant(&database, &name, now)
            .await
            .unwrap()
            .id;
        Self {
            database_url,
            tenant,
        }
    }

    /// Runs `attesto`, with `file` on its standard input and an environment that holds nothing else.
    fn attesto(&self, words: &[&str], file: &str, environment: &[(&str, &str)]) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_attesto"))
            .env_clear()
            .env("DATABASE_URL", &self.database_url)
            .envs(environment.iter().copied())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The process may end without reading.
        let _ = child.stdin.take().unwrap().write_all(file.as_bytes());
        let output = child.wait_with_output().unwrap();
        let ran = Ran {
            exit: output.status.code().unwrap(),
            said: String::from_utf8(output.stdout).unwrap(),
            complained: String::from_utf8(output.stderr).unwrap(),
        };
        for text in [&ran.said, &ran.complained] {
            assert!(
                !text.contains("PRIVATE KEY") && !text.contains("MIIE"),
                "{ran:?}"
            );
            assert!(!text.contains(ENCRYPTION_KEY), "{ran:?}");
        }
        ran
    }

    fn set(&self, file: &str, more: &[&str]) -> Ran {
        let words = [
            "google",
            "set-credentials",
            self.tenant.as_str(),
            "--service-account-path",
            "-",
        ];
        self.attesto(
            &[&words, more].concat(),
            file,
            &[("ATTESTO_ENCRYPTION_KEY", ENCRYPTION_KEY)],
        )
    }
}

#[tokio::test]
async fn stored_credentials_are_shown_without_the_key() {
    let desk = Desk::open().await;
    let get = ["google:get-credentials", desk.tenant.as_str()];
    let none = desk.attesto(&get, "", &[]);
    assert_eq!((none.exit, none.said.as_str()), (1, ""));
    assert!(
        none.complained.contains("no Google Play credentials"),
        "{none:?}"
    );

    let file = key_file("key-1");
    let set = desk.set(
        &file,
        &[
            "--package-name",
            "com.example.app",
            "--pubsub-topic",
            "projects/p/topics/t",
        ],
    );
    assert_eq!(set.exit, 0, "{set:?}");
    assert!(
        set.complained.contains("steered-elsewhere) is not used"),
        "{set:?}"
    );
    let shown: Value = serde_json::from_str(&set.said).unwrap();
    assert_eq!(
        shown,
        json!({
            "tenantId": desk.tenant.as_str(),
            "packageName": "com.example.app",
            "clientEmail": "attesto@project.iam.example",
            "hasPrivateKey": true,
            "keyFingerprint": shown["keyFingerprint"],
            "pubsubAudience": null,
            "pubsubServiceAccount": null,
            "pubsubTopic": "projects/p/topics/t",
            "updatedAt": shown["updatedAt"],
            "previous": null,
        })
    );
    assert_eq!(shown["keyFingerprint"].as_str().unwrap().len(), 16);
    // Showing the credentials needs no encryption key.
    assert_eq!(desk.attesto(&get, "", &[]).said, set.said);

    let again = desk.set(&key_file("key-2"), &["--package-name", "com.example.new"]);
    let again: Value = serde_json::from_str(&again.said).unwrap();
    assert_eq!(again["packageName"], "com.example.new");
    assert_eq!(again["pubsubTopic"], "projects/p/topics/t");
    assert_ne!(again["keyFingerprint"], shown["keyFingerprint"]);
}

#[tokio::test]
async fn invalid_input_is_refused_and_nothing_is_stored() {
    let desk = Desk::open().await;
    let file = key_file("key-1");
    let package = ["--package-name", "com.example.app"];
    for (ran, exit, part) in [
        (desk.set("", &package), 2, "-: the file is empty."),
        (
            desk.set("{}", &package),
            2,
            "\"type\" must be \"service_account\"",
        ),
        (
            desk.set(concat!("-----BEGIN ", "PRIVATE KEY-----"), &package),
            2,
            "a bare key or certificate",
        ),
        (desk.set(&file, &[]), 2, "--package-name"),
        (
            desk.set(&file, &["--package-name", "app"]),
            2,
            "com.example.app",
        ),
        (
            desk.set(&file, &["--package-name", "a.b", "--pubsub-topic", "t"]),
            2,
            "projects/my-project/topics/my-topic",
        ),
        (
            desk.set(
                &file,
                &["--package-name", "a.b", "--pubsub-service-account", "me"],
            ),
            2,
            "push@project",
        ),
        (
            desk.attesto(
                &[
                    "google",
                    "set-credentials",
                    desk.tenant.as_str(),
                    "--package-name",
                    "a.b",
                    "--service-account-path",
                    "-",
                ],
                &file,
                &[],
            ),
            2,
            "ATTESTO_ENCRYPTION_KEY",
        ),
        (
            desk.attesto(
                &[
                    "google",
                    "set-credentials",
                    desk.tenant.as_str(),
                    "--package-name",
                    "a.b",
                    "--service-account-path",
                    "/nowhere",
                ],
                "",
                &[],
            ),
            1,
            "cannot read /nowhere",
        ),
        (
            desk.attesto(&["google", "get-credentials", "acme"], "", &[]),
            2,
            "tenant_",
        ),
    ] {
        assert_eq!((ran.exit, ran.said.as_str()), (exit, ""), "{ran:?}");
        assert!(ran.complained.contains(part), "{ran:?}");
    }
    let get = ["google", "get-credentials", desk.tenant.as_str()];
    assert_eq!(desk.attesto(&get, "", &[]).exit, 1, "nothing was stored");

    let stranger = Desk {
        tenant: TenantId::mint(Timestamp::from_millis(0)),
        ..desk
    };
    let ran = stranger.set(&file, &package);
    assert_eq!(ran.exit, 1);
    assert!(ran.complained.contains("no such tenant"), "{ran:?}");
}
