//! The command line, for people and for scripts.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use std::fs::OpenOptions;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::world::folder::Folder;
use crate::world::postgres::{empty_database, fresh_database};
use crate::world::shell::{Ran, Shell};

/// The output of a successful command, which is one JSON object.
fn answer(shell: &Shell, words: &[&str]) -> Value {
    let mut rows = shell.rows(words);
    assert_eq!(rows.len(), 1, "{words:?}: {rows:?}");
    rows.remove(0)
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
    let shell = fresh_database().await.shell();
    assert_eq!(shell.run(&["tenant", "list"]).said, "");
    let first = answer(&shell, &["tenant", "create", "--name", "First \"Ltd\""]);
    assert_eq!(fields(&first), ["id", "name", "createdAt"]);
    assert_eq!(first["name"], "First \"Ltd\"");
    let second = answer(&shell, &["tenant:create", "--name", "Second"]);
    let (one, two) = (
        first["id"].as_str().unwrap(),
        second["id"].as_str().unwrap(),
    );

    let list = shell.run(&["tenant:list"]).lines();
    let ids: Vec<_> = list
        .iter()
        .map(|tenant| tenant["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, [two, one], "newest first");
    assert_eq!(
        list[1],
        json!({"id": one, "name": "First \"Ltd\"", "isActive": true, "createdAt": first["createdAt"]})
    );

    let off = answer(&shell, &["tenant", "deactivate", one]);
    assert_eq!(off["isActive"], false);
    let again = shell.run(&["tenant:deactivate", one]);
    assert_eq!(again.exit, 1);
    assert!(
        again.complained.contains("already inactive"),
        "{}",
        again.complained
    );
    assert_eq!(
        answer(&shell, &["tenant", "activate", one])["isActive"],
        true
    );
    assert_eq!(shell.run(&["tenant", "activate", one]).exit, 1);
    assert_eq!(
        answer(&shell, &["tenant", "rename", one, "New"])["name"],
        "New"
    );
    assert_eq!(
        answer(&shell, &["tenant:rename", one, "--name", "Newer"])["name"],
        "Newer"
    );

    let limits = ["tenant", "set-limits", one];
    assert_eq!(
        answer(
            &shell,
            &[&limits[..], &["--per-second", "5", "--burst", "9"]].concat()
        ),
        json!({
            "id": one, "rateLimitPerSecond": 5, "rateLimitBurst": 9,
            "intakeEventsPerMinute": null, "intakeMegabytesPerMinute": null,
        })
    );
    assert_eq!(
        answer(&shell, &[&limits[..], &["--burst", "default"]].concat()),
        json!({
            "id": one, "rateLimitPerSecond": 5, "rateLimitBurst": null,
            "intakeEventsPerMinute": null, "intakeMegabytesPerMinute": null,
        })
    );
    assert_eq!(answer(&shell, &limits)["rateLimitPerSecond"], 5);
}

/// Outputs that show nothing: a full disk, a pipe that no process reads, and the null device.
fn unwritable_outputs() -> [Stdio; 3] {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    [full.into(), writer.into(), Stdio::null()]
}

/// `key create TENANT >&-`
#[tokio::test]
async fn an_api_key_is_revoked_when_the_output_is_closed() {
    let shell = fresh_database().await.shell();
    let tenant = answer(&shell, &["tenant", "create", "--name", "Acme"]);
    let tenant = tenant["id"].as_str().unwrap();
    let command = shell.command(&["key", "create", tenant]);
    let mut closing = std::process::Command::new("sh");
    closing
        .args(["-c", "exec \"$@\" >&-", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            closing.env(name, value);
        }
    }
    let ran = closing.output().unwrap();
    let complained = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{complained}");
    assert!(complained.contains("so it was revoked"), "{complained}");
    let [key] = shell.rows(&["key", "list", tenant]).try_into().unwrap();
    assert!(key["revokedAt"].is_string(), "{key}");
}

#[tokio::test]
async fn an_api_key_that_could_not_be_shown_is_revoked() {
    let shell = fresh_database().await.shell();
    let tenant = answer(&shell, &["tenant", "create", "--name", "Acme"]);
    let tenant = tenant["id"].as_str().unwrap();
    for (number, output) in (1..).zip(unwritable_outputs()) {
        let ran = shell
            .command(&["key", "create", tenant])
            .stdout(output)
            .output()
            .unwrap();
        let complained = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(1), "{complained}");
        assert!(complained.contains("so it was revoked"), "{complained}");
        let keys = shell.rows(&["key", "list", tenant]);
        assert_eq!(keys.len(), number);
        for key in keys {
            assert!(key["revokedAt"].is_string(), "{key}");
        }
    }
}

#[tokio::test]
async fn a_signing_secret_that_could_not_be_shown_is_reported() {
    let shell = fresh_database().await.shell();
    for output in unwritable_outputs() {
        let tenant = answer(&shell, &["tenant", "create", "--name", "Acme"]);
        let tenant = tenant["id"].as_str().unwrap();
        let url = "https://93.184.216.34/hook";
        let ran = shell
            .command(&["webhook", "set-config", tenant, "--callback-url", url])
            .env("ATTESTO_ENCRYPTION_KEY", STANDARD.encode([7; 32]))
            .stdout(output)
            .output()
            .unwrap();
        let complained = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(1), "{complained}");
        let advice = format!("attesto webhook set-config {tenant} --secret-path FILE");
        assert!(complained.contains(&advice), "{complained}");
        // What the message says is so.
        let found = answer(&shell, &["webhook", "get", tenant]);
        assert_eq!(found["secrets"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn an_api_key_is_shown_once_and_revoked_once() {
    let shell = fresh_database().await.shell();
    let tenant = answer(&shell, &["tenant", "create", "--name", "Acme"]);
    let tenant = tenant["id"].as_str().unwrap();
    let key = answer(
        &shell,
        &["key:create", tenant, "--name", "ci", "--env", "test"],
    );
    assert_eq!(
        fields(&key),
        ["id", "tenantId", "keyPrefix", "name", "rawKey", "warning"]
    );
    let raw = key["rawKey"].as_str().unwrap();
    let random = raw.strip_prefix("attesto_test_").expect("its kind");
    assert_eq!(key["keyPrefix"], random[..8]);
    let unnamed = answer(&shell, &["key", "create", tenant]);
    assert_eq!(unnamed["name"], Value::Null);
    assert!(
        unnamed["rawKey"]
            .as_str()
            .unwrap()
            .starts_with("attesto_live_")
    );

    let list = shell.run(&["key", "list", tenant]);
    assert!(!list.said.contains(random), "shown once");
    assert_eq!(list.lines()[0]["id"], unnamed["id"], "newest first");
    assert_eq!(list.lines()[1]["environment"], "test");
    assert_eq!(list.lines()[1]["lastUsedAt"], Value::Null);
    let page = shell.run(&["key", "list", tenant, "--limit", "1", "--offset", "1"]);
    assert_eq!(page.lines().len(), 1);
    assert_eq!(page.lines()[0]["id"], key["id"]);

    let id = key["id"].as_str().unwrap();
    assert_ne!(
        answer(&shell, &["key:revoke", id])["revokedAt"],
        Value::Null
    );
    let again = shell.run(&["key", "revoke", id]);
    assert_eq!((again.exit, again.said.as_str()), (1, ""));
    assert!(
        again.complained.contains("already revoked"),
        "{}",
        again.complained
    );

    let mistaken = shell.run(&["key", "revoke", raw]);
    assert_eq!(mistaken.exit, 2);
    assert!(
        !mistaken.complained.contains(random),
        "{}",
        mistaken.complained
    );
}

#[tokio::test]
async fn all_keys_of_a_tenant_are_revoked_at_once() {
    let shell = fresh_database().await.shell();
    let [one, other] = ["One", "Other"].map(|name| {
        let tenant = answer(&shell, &["tenant", "create", "--name", name]);
        tenant["id"].as_str().unwrap().to_owned()
    });
    let ids: Vec<Value> = [&one, &one, &one, &other]
        .map(|tenant| answer(&shell, &["key", "create", tenant])["id"].clone())
        .into();
    answer(&shell, &["key", "revoke", ids[0].as_str().unwrap()]);
    let revoked = shell.run(&["key", "revoke", "--tenant", &one, "--all"]);
    assert_eq!((revoked.exit, revoked.complained.as_str()), (0, ""));
    let lines = revoked.lines();
    let listed: Vec<_> = lines.iter().map(|key| &key["id"]).collect();
    assert_eq!(
        listed,
        [&ids[2], &ids[1]],
        "those that were not, newest first"
    );
    assert!(lines.iter().all(|key| key["revokedAt"].is_string()));
    let spared = answer(&shell, &["key", "list", &other]);
    assert_eq!(spared["revokedAt"], Value::Null);

    let again = shell.run(&["key:revoke", "--all", "--tenant", &one]);
    assert_eq!(again.exit, 1);
    assert!(
        again.complained.contains("already revoked"),
        "{}",
        again.complained
    );
    let unknown_tenant = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
    for (exit, words) in [
        (1, vec!["--tenant", unknown_tenant, "--all"]),
        // An incomplete command revokes nothing.
        (2, vec!["--tenant", &other]),
        (2, vec!["--all"]),
        (2, vec![]),
        (
            2,
            vec![ids[3].as_str().unwrap(), "--tenant", &other, "--all"],
        ),
    ] {
        let ran = shell.run(&[&["key", "revoke"], &words[..]].concat());
        assert_eq!(ran.exit, exit, "{words:?}: {}", ran.complained);
    }
    let spared = answer(&shell, &["key", "list", &other]);
    assert_eq!(spared["revokedAt"], Value::Null);
}

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
    let shell = Shell::default()
        .set(
            "DATABASE_URL",
            "postgres://ada:hunter2@db.internal:5433/shop?max=7",
        )
        .set("ATTESTO_ENCRYPTION_KEY_FILE", file.to_str().unwrap())
        .set("ATTESTO_ENCRYPTION_KEYS_RETIRED", &format!("1:{}", key(1)))
        .set("NODE_ENV", "production");
    let run = |words: &[&str], more: &[(&str, &str)]| {
        let shell = shell.clone().set_all(more.iter().copied());
        let ran = shell.run(&[&["config", "check"], words].concat());
        for secret in ["hunter2", &key(1)[..20], &key(2)[..20]] {
            ran.assert_hides(secret);
        }
        ran
    };
    mode(0o600);
    let ran = run(&["--port", "9000"], &[]);
    assert_eq!((ran.exit, ran.complained.as_str()), (0, ""));
    assert_eq!(
        ran.lines().len(),
        attesto::config::definitions::SETTINGS.len()
    );
    let of = |ran: &Ran, name: &str| {
        let lines = ran.lines();
        let found = lines.iter().find(|line| line["name"] == name).unwrap();
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
        open.complained
            .contains("every user on this machine can read"),
        "{}",
        open.complained
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
    assert_eq!(wrong.complained.lines().count(), 3, "{}", wrong.complained);
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
    assert!(
        both.complained.contains("are both set"),
        "{}",
        both.complained
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn exit_codes_separate_usage_errors_from_failures() {
    let shell = fresh_database().await.shell();
    let tenant = answer(&shell, &["tenant", "create", "--name", "Acme"]);
    let tenant = tenant["id"].as_str().unwrap();
    let (unknown_tenant, no_key, long) = (
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
        (1, vec!["key", "list", unknown_tenant]),
        (1, vec!["key", "create", unknown_tenant]),
        (1, vec!["key", "revoke", no_key]),
        (1, vec!["tenant", "rename", unknown_tenant, "x"]),
        (1, vec!["tenant", "set-limits", unknown_tenant]),
        (1, vec!["tenant", "set-first-seen", unknown_tenant, "off"]),
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
        (2, vec!["tenant", "set-first-seen", tenant]),
        (2, vec!["tenant", "set-first-seen", tenant, "yes"]),
        (2, vec!["--output", "yaml", "tenant", "list"]),
        (2, vec!["--database-url", "mysql://x", "tenant", "list"]),
    ] {
        let ran = shell.run(&words);
        assert_eq!(ran.exit, exit, "attesto {words:?}: {}", ran.complained);
        assert_eq!(ran.complained.is_empty(), exit == 0, "attesto {words:?}");
        if exit != 0 {
            assert_eq!(ran.said, "", "attesto {words:?}");
        }
    }
}

#[tokio::test]
async fn a_missing_unreachable_or_empty_database_is_reported() {
    let run = |url: Option<&str>| {
        let url = url.map(|url| ("DATABASE_URL", url));
        let ran = Shell::default().set_all(url).run(&["tenant", "list"]);
        (ran.exit, ran.complained)
    };
    let (exit, errors) = run(None);
    assert_eq!(exit, 2);
    assert!(errors.contains("DATABASE_URL"), "{errors}");
    assert_eq!(run(Some("")), (exit, errors), "blank is unset");
    let (exit, errors) = run(Some(
        "postgres://attesto:s3cret@127.0.0.1:1/x?connect_timeout=1",
    ));
    assert_eq!(exit, 1);
    assert!(errors.contains("is Postgres running there"), "{errors}");
    assert!(
        errors.contains("postgres://attesto@127.0.0.1:1/x"),
        "{errors}"
    );
    assert!(!errors.contains("s3cret"), "{errors}");

    let shell = empty_database().await.shell();
    let ran = shell.run(&["tenant", "list"]);
    assert_eq!(ran.exit, 1);
    assert!(
        ran.complained.contains("attesto migrate"),
        "{}",
        ran.complained
    );
}

#[tokio::test]
async fn table_output_is_for_people() {
    let shell = fresh_database().await.shell();
    let none = shell.run(&["--output", "table", "tenant", "list"]);
    assert!(none.said.starts_with("No tenants yet."), "{}", none.said);
    let made = shell.run(&["tenant", "create", "--name", "Acme", "--output", "table"]);
    assert!(made.said.starts_with("Created tenant_"), "{}", made.said);
    let list = shell.run(&["tenant:list", "--output", "table"]);
    assert!(list.said.starts_with("ID "), "{}", list.said);
    assert!(list.said.contains("Acme"), "{}", list.said);
}

/// Both spellings of a flag that names a file lead to the same.
#[test]
fn a_file_is_named_by_either_spelling() {
    let folder = Folder::new();
    let file = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (secret, body) = (file("secret", &"s".repeat(40)), file("body", "{}"));
    let shell = Shell::default();
    let mut results = Vec::new();
    for spelling in ["path", "file"] {
        let (with_secret, with_body) = (
            format!("--secret-{spelling}"),
            format!("--body-{spelling}={body}"),
        );
        let ran = shell.run(&[
            "webhook",
            "verify-signature",
            &with_secret,
            &secret,
            &with_body,
            "--signature",
            "t=1,v1=00",
        ]);
        assert_eq!(ran.exit, 1, "{ran:?}");
        let mut found = ran.json();
        // Both ran at other moments.
        found.as_object_mut().unwrap().remove("ageSeconds");
        found.as_object_mut().unwrap().remove("problems");
        results.push(found);
    }
    assert_eq!(results[0], results[1]);
    let (missing, both) = (
        shell.run(&["config", "check", "--encryption-key-path", "/nowhere/key"]),
        shell.run(&["webhook", "verify-signature", "--help"]),
    );
    assert!(
        missing.complained.contains("ATTESTO_ENCRYPTION_KEY_FILE"),
        "{missing:?}"
    );
    assert!(
        !both.said.contains("--secret-file"),
        "one of them is shown: {both:?}"
    );
}
