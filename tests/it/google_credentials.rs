//! `attesto google set-credentials` and `get-credentials` from the command line.

use attesto::base::clock::Timestamp;
use attesto::base::id::TenantId;
use serde_json::{Value, json};

use crate::google_verify::key_file;
use crate::world::postgres::{Fresh, fresh_database};
use crate::world::shell::Ran;

/// 32 bytes of zero, in base64.
const ENCRYPTION_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

struct Desk {
    fresh: Fresh,
    tenant: TenantId,
}

impl Desk {
    async fn open() -> Self {
        let fresh = fresh_database().await;
        let tenant = fresh.create_tenant().await;
        Self { fresh, tenant }
    }

    /// Runs `attesto`, with `file` on its standard input and an environment that holds nothing else.
    fn attesto(&self, words: &[&str], file: &str, environment: &[(&str, &str)]) -> Ran {
        let ran = self
            .fresh
            .shell()
            .set_all(environment.iter().copied())
            .run_with(words, file);
        for secret in ["PRIVATE KEY", "MIIE", ENCRYPTION_KEY] {
            ran.assert_hides(secret);
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
            "acknowledge": "never", "defaultRefundReview": null,
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
