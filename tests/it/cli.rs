//! The command line, for people and for scripts.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::world::postgres::{empty_database, fresh_database};

struct Shell {
    database_url: Option<String>,
}

impl Shell {
    async fn open() -> Self {
        Self {
            database_url: Some(fresh_database().await.url),
        }
    }

    /// Runs `attesto` with these arguments, in an otherwise empty environment.
    fn attesto(&self, words: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attesto"));
        command.env_clear().args(words);
        if let Some(url) = &self.database_url {
            command.env("DATABASE_URL", url);
        }
        Ran::from(command.output().expect("the binary runs"))
    }

    /// The output of a successful command, which is one JSON object.
    fn answer(&self, words: &[&str]) -> Value {
        let ran = self.attesto(words);
        assert_eq!((ran.exit, ran.errors.as_str()), (0, ""), "{words:?}");
        assert_eq!(ran.lines.len(), 1, "{words:?}: {:?}", ran.lines);
        ran.lines.into_iter().next().unwrap()
    }
}

struct Ran {
    exit: i32,
    text: String,
    lines: Vec<Value>,
    errors: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = String::from_utf8(output.stdout).unwrap();
        Self {
            exit: output.status.code().expect("it was not killed"),
            lines: text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect(),
            text,
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn fields(object: &Value) -> Vec<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test]
async fn tenants_are_created_listed_and_changed() {
    let shell = Shell::open().await;
    assert_eq!(shell.attesto(&["tenant", "list"]).text, "");
    let first = shell.answer(&["tenant", "create", "--name", "First \"Ltd\""]);
    assert_eq!(fields(&first), ["id", "name", "createdAt"]);
    assert_eq!(first["name"], "First \"Ltd\"");
    let second = shell.answer(&["tenant:create", "--name", "Second"]);
    let (one, two) = (
        first["id"].as_str().unwrap(),
        second["id"].as_str().unwrap(),
    );

    let list = shell.attesto(&["tenant:list"]).lines;
    let ids: Vec<_> = list
        .iter()
        .map(|tenant| tenant["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, [two, one], "newest first");
    assert_eq!(
        list[1],
        json!({"id": one, "name": "First \"Ltd\"", "isActive": true, "createdAt": first["createdAt"]})
    );

    let off = shell.answer(&["tenant", "deactivate", one]);
    assert_eq!(off["isActive"], false);
    let again = shell.attesto(&["tenant:deactivate", one]);
    assert_eq!(again.exit, 1);
    assert!(
        again.errors.contains("already inactive"),
        "{}",
        again.errors
    );
    assert_eq!(shell.answer(&["tenant", "activate", one])["isActive"], true);
    assert_eq!(shell.attesto(&["tenant", "activate", one]).exit, 1);
    assert_eq!(
        shell.answer(&["tenant", "rename", one, "New"])["name"],
        "New"
    );
    assert_eq!(
        shell.answer(&["tenant:rename", one, "--name", "Newer"])["name"],
        "Newer"
    );

    let limits = ["tenant", "set-limits", one];
    assert_eq!(
        shell.answer(&[&limits[..], &["--per-second", "5", "--burst", "9"]].concat()),
        json!({"id": one, "rateLimitPerSecond": 5, "rateLimitBurst": 9})
    );
    assert_eq!(
        shell.answer(&[&limits[..], &["--burst", "default"]].concat()),
        json!({"id": one, "rateLimitPerSecond": 5, "rateLimitBurst": null})
    );
    assert_eq!(shell.answer(&limits)["rateLimitPerSecond"], 5);
}

#[tokio::test]
async fn an_api_key_is_shown_once_and_revoked_once() {
    let shell = Shell::open().await;
    let tenant = shell.answer(&["tenant", "create", "--name", "Acme"]);
    let tenant = tenant["id"].as_str().unwrap();
    let key = shell.answer(&["key:create", tenant, "--name", "ci", "--env", "test"]);
    assert_eq!(
        fields(&key),
        ["id", "tenantId", "keyPrefix", "name", "rawKey", "warning"]
    );
    let raw = key["rawKey"].as_str().unwrap();
    let random = raw.strip_prefix("attesto_test_").expect("its kind");
    assert_eq!(key["keyPrefix"], random[..8]);
    let unnamed = shell.answer(&["key", "create", tenant]);
    assert_eq!(unnamed["name"], Value::Null);
    assert!(
        unnamed["rawKey"]
            .as_str()
            .unwrap()
            .starts_with("attesto_live_")
    );

    let list = shell.attesto(&["key", "list", tenant]);
    assert!(!list.text.contains(random), "shown once");
    assert_eq!(list.lines[0]["id"], unnamed["id"], "newest first");
    assert_eq!(list.lines[1]["environment"], "test");
    assert_eq!(list.lines[1]["lastUsedAt"], Value::Null);
    let page = shell.attesto(&["key", "list", tenant, "--limit", "1", "--offset", "1"]);
    assert_eq!(page.lines.len(), 1);
    assert_eq!(page.lines[0]["id"], key["id"]);

    let id = key["id"].as_str().unwrap();
    assert_ne!(shell.answer(&["key:revoke", id])["revokedAt"], Value::Null);
    let again = shell.attesto(&["key", "revoke", id]);
    assert_eq!((again.exit, again.text.as_str()), (1, ""));
    assert!(again.errors.contains("already revoked"), "{}", again.errors);

    let mistaken = shell.attesto(&["key", "revoke", raw]);
    assert_eq!(mistaken.exit, 2);
    assert!(!mistaken.errors.contains(random), "{}", mistaken.errors);
}

#[tokio::test]
async fn all_keys_of_a_tenant_are_revoked_at_once() {
    let shell = Shell::open().await;
    let [one, other] = ["One", "Other"].map(|name| {
        let tenant = shell.answer(&["tenant", "create", "--name", name]);
        tenant["id"].as_str().unwrap().to_owned()
    });
    let ids: Vec<Value> = [&one, &one, &one, &other]
        .map(|tenant| shell.answer(&["key", "create", tenant])["id"].clone())
        .into();
    shell.answer(&["key", "revoke", ids[0].as_str().unwrap()]);
    let revoked = shell.attesto(&["key", "revoke", "--tenant", &one, "--all"]);
    assert_eq!((revoked.exit, revoked.errors.as_str()), (0, ""));
    let listed: Vec<_> = revoked.lines.iter().map(|key| &key["id"]).collect();
    assert_eq!(
        listed,
        [&ids[2], &ids[1]],
        "those that were not, newest first"
    );
    assert!(revoked.lines.iter().all(|key| key["revokedAt"].is_string()));
    let spared = shell.answer(&["key", "list", &other]);
    assert_eq!(spared["revokedAt"], Value::Null);

    let again = shell.attesto(&["key:revoke", "--all", "--tenant", &one]);
    assert_eq!(again.exit, 1);
    assert!(again.errors.contains("already revoked"), "{}", again.errors);
    let nobody = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
    for (exit, words) in [
        (1, vec!["--tenant", nobody, "--all"]),
        // An incomplete command revokes nothing.
        (2, vec!["--tenant", &other]),
        (2, vec!["--all"]),
        (2, vec![]),
        (
            2,
            vec![ids[3].as_str().unwrap(), "--tenant", &other, "--all"],
        ),
    ] {
        let ran = shell.attesto(&[&["key", "revoke"], &words[..]].concat());
        assert_eq!(ran.exit, exit, "{words:?}: {}", ran.errors);
    }
    let spared = shell.answer(&["key", "list", &other]);
    assert_eq!(spared["revokedAt"], Value::Null);
}

#[expect(clippy::too_many_lines, reason = "one walk through a command")]
#[test]
fn config_check_shows_settings_before_they_are_used() {
    let folder = std::env::temp_dir().join(format!("attesto-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("key");
    let key =
        |fill: u8| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [fill; 32]);
    std::fs::write(&file, format!("2:{}\n", key(2))).unwrap();
    let mode = |mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&file, mode).unwrap();
    };
    let run = |words: &[&str], more: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_attesto"))
            .env_clear()
            .env(
                "DATABASE_URL",
                "postgres://ada:hunter2@db.internal:5433/shop?max=7",
            )
            .env("ATTESTO_ENCRYPTION_KEY_FILE", &file)
            .env("ATTESTO_ENCRYPTION_KEYS_RETIRED", format!("1:{}", key(1)))
            .env("NODE_ENV", "production")
            .envs(more.iter().copied())
            .args([&["config", "check"], words].concat())
            .output()
            .expect("the binary runs");
        let ran = Ran::from(output);
        for secret in ["hunter2", &key(1)[..20], &key(2)[..20]] {
            assert!(
                !ran.text.contains(secret) && !ran.errors.contains(secret),
                "{secret}"
            );
        }
        ran
    };
    mode(0o600);
    let ran = run(&["--port", "9000"], &[]);
    assert_eq!((ran.exit, ran.errors.as_str()), (0, ""));
    assert_eq!(
        ran.lines.len(),
        attesto::config::definitions::SETTINGS.len()
    );
    let of = |ran: &Ran, name: &str| {
        let found = ran.lines.iter().find(|line| line["name"] == name).unwrap();
        let text = |field: &str| found[field].as_str().unwrap_or("null").to_owned();
        (text("value"), text("origin"))
    };
    let is = |name: &str, value: &str, origin: &str| {
        assert_eq!(
            of(&ran, name),
            (value.to_owned(), origin.to_owned()),
            "{name}"
        );
    };
    is("PORT", "9000", "flag");
    is("ATTESTO_ENV", "production", "environment");
    is("LOG_LEVEL", "info", "default");
    is("METRICS_ADDRESS", "null", "default");
    is(
        "DATABASE_URL",
        "postgres://ada@db.internal:5433/shop",
        "environment",
    );
    let (print, origin) = of(&ran, "ATTESTO_ENCRYPTION_KEY");
    assert_eq!(
        (&print[..2], print.len(), origin.as_str()),
        ("2:", 18, "file")
    );
    assert!(
        of(&ran, "ATTESTO_ENCRYPTION_KEYS_RETIRED")
            .0
            .starts_with("1:")
    );

    mode(0o644);
    let open = run(&[], &[]);
    assert_eq!(open.exit, 0);
    assert!(
        open.errors.contains("every user on this machine can read"),
        "{}",
        open.errors
    );

    // All problems are listed, together with the valid settings.
    mode(0o600);
    let wrong = run(
        &["--port", "99999"],
        &[
            ("WEBHOOK_MAX_RETRIES", "hunter2"),
            ("GOOGLE_PLAY_URL", "https://ada:hunter2@play.internal/"),
        ],
    );
    assert_eq!(wrong.exit, 2);
    assert_eq!(wrong.errors.lines().count(), 3, "{}", wrong.errors);
    for name in ["PORT", "WEBHOOK_MAX_RETRIES", "GOOGLE_PLAY_URL"] {
        assert_eq!(
            of(&wrong, name).0,
            "null",
            "what cannot be meant is not repeated"
        );
    }
    assert_eq!(of(&wrong, "RATE_LIMIT_BURST").0, "200");
    let both = run(&[], &[("ATTESTO_ENCRYPTION_KEY", &key(3))]);
    assert_eq!(both.exit, 2);
    assert!(both.errors.contains("are both set"), "{}", both.errors);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn exit_codes_separate_usage_errors_from_failures() {
    let shell = Shell::open().await;
    let tenant = shell.answer(&["tenant", "create", "--name", "Acme"]);
    let tenant = tenant["id"].as_str().unwrap();
    let (nobody, no_key, long) = (
        "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
        "key_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
        "x".repeat(201),
    );
    for (exit, words) in [
        (0, vec!["--help"]),
        (0, vec!["--version"]),
        (0, vec!["help", "key"]),
        (0, vec!["key", "list", tenant]),
        (0, vec!["key", "list", tenant, "--limit", "500"]),
        (0, vec!["tenant", "create", "--name", &long[..200]]),
        (1, vec!["key", "list", nobody]),
        (1, vec!["key", "create", nobody]),
        (1, vec!["key", "revoke", no_key]),
        (1, vec!["tenant", "rename", nobody, "x"]),
        (1, vec!["tenant", "set-limits", nobody]),
        (2, vec!["key"]),
        (2, vec!["key:nonsense"]),
        (2, vec!["nonsense"]),
        (2, vec!["nonsense:list"]),
        (2, vec!["key", "list"]),
        (2, vec!["key", "list", "tenant_1"]),
        (2, vec!["key", "list", tenant, "--limit", "501"]),
        (2, vec!["key", "list", tenant, "--limit", "0"]),
        (2, vec!["key", "list", tenant, "--offset", "-1"]),
        (2, vec!["key", "create", tenant, "--env", "prod"]),
        (2, vec!["key", "create", tenant, "--name", ""]),
        (2, vec!["key", "revoke", "nonsense"]),
        (2, vec!["tenant", "create"]),
        (2, vec!["tenant", "create", "--name", ""]),
        (2, vec!["tenant", "create", "--name", &long]),
        (2, vec!["tenant", "set-limits", tenant, "--burst", "0"]),
        (2, vec!["--output", "yaml", "tenant", "list"]),
        (2, vec!["--database-url", "mysql://x", "tenant", "list"]),
    ] {
        let ran = shell.attesto(&words);
        assert_eq!(ran.exit, exit, "attesto {words:?}: {}", ran.errors);
        assert_eq!(ran.errors.is_empty(), exit == 0, "attesto {words:?}");
        if exit != 0 {
            assert_eq!(ran.text, "", "attesto {words:?}");
        }
    }
}

#[tokio::test]
async fn a_missing_unreachable_or_empty_database_is_reported() {
    let run = |url: Option<&str>| {
        let shell = Shell {
            database_url: url.map(str::to_owned),
        };
        let ran = shell.attesto(&["tenant", "list"]);
        (ran.exit, ran.errors)
    };
    let (exit, errors) = run(None);
    assert_eq!(exit, 2);
    assert!(errors.contains("DATABASE_URL"), "{errors}");
    assert_eq!(run(Some("")), (exit, errors), "blank is unset");
    let (exit, errors) = run(Some(
        "postgres://attesto:s3cret@127.0.0.1:1/x?connect_timeout=1",
    ));
    assert_eq!(exit, 1);
    assert!(errors.contains("is it running"), "{errors}");
    assert!(!errors.contains("s3cret"), "{errors}");

    let shell = Shell {
        database_url: Some(empty_database().await.url),
    };
    let ran = shell.attesto(&["tenant", "list"]);
    assert_eq!(ran.exit, 1);
    assert!(ran.errors.contains("attesto migrate"), "{}", ran.errors);
}

#[tokio::test]
async fn table_output_is_for_people() {
    let shell = Shell::open().await;
    let none = shell.attesto(&["--output", "table", "tenant", "list"]);
    assert!(none.text.starts_with("No tenants yet."), "{}", none.text);
    let made = shell.attesto(&["tenant", "create", "--name", "Acme", "--output", "table"]);
    assert!(made.text.starts_with("Created tenant_"), "{}", made.text);
    let list = shell.attesto(&["tenant:list", "--output", "table"]);
    assert!(list.text.starts_with("ID "), "{}", list.text);
    assert!(list.text.contains("Acme"), "{}", list.text);
}
