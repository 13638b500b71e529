//! The operator audit log: every change is recorded, and the records form a gapless chain.

use std::collections::BTreeSet;
use std::time::Duration;

use attesto::audit::operator_audit;
use attesto::db::Database;
use attesto::simulator::state::google::NewSubscription;
use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::world::attesto::{APP, World};
use crate::world::folder::Folder;
use crate::world::postgres::{Fresh, fresh_database};
use crate::world::shell::Shell;

fn shell(fresh: &Fresh) -> Shell {
    Shell::default().set("DATABASE_URL", &fresh.url).set(
        "ATTESTO_ENCRYPTION_KEY",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    )
}

/// The records, oldest first.
pub(crate) fn operations(shell: &Shell) -> Vec<Value> {
    let mut rows = shell.rows(&["audit", "operators", "list", "--limit", "500"]);
    rows.reverse();
    rows
}

async fn execute(database: &Database, statement: &'static str) {
    database.pool().execute(statement).await.unwrap();
}

/// An installation with some changes, each by a named operator.
async fn history() -> (Fresh, Shell) {
    let fresh = fresh_database().await;
    let shell = shell(&fresh);
    for name in ["One", "Two", "Three", "Four", "Five"] {
        shell.rows(&["tenant", "create", "--name", name]);
    }
    (fresh, shell)
}

#[tokio::test]
#[expect(
    clippy::too_many_lines,
    reason = "one of each change, in the order of a day"
)]
async fn every_change_records_actor_host_command_and_target() {
    let world = World::new().await;
    let shell = world.shell();
    let folder = Folder::new();
    let p8 = folder.join("key.p8");
    let key = world.simulator.apple().api_key();
    std::fs::write(&p8, &key.private_key).unwrap();
    let json_file = folder.join("account.json");
    let account = world.simulator.google_service_account();
    std::fs::write(&json_file, account.to_string()).unwrap();

    let tenant = &shell.rows(&["tenant", "create", "--name", "Acme"])[0]["id"];
    let tenant = tenant.as_str().unwrap();
    let created = &shell.rows(&["key", "create", tenant, "--name", "backend"])[0];
    let raw_key = created["rawKey"].as_str().unwrap();
    shell.rows(&["key:revoke", created["id"].as_str().unwrap()]);
    shell.rows(&["tenant", "rename", tenant, "Acme Ltd"]);
    let apple = [
        "apple",
        "set-credentials",
        tenant,
        "--bundle-id",
        APP,
        "--key-id",
        &key.key_id,
        "--issuer-id",
        &key.issuer_id,
        "--key-path",
        &p8.display().to_string(),
        "--app-apple-id",
        "1",
    ];
    shell.rows(&apple);
    // The same again: it is recorded as a change all the same.
    shell.rows(&apple);
    let google = [
        "google",
        "set-credentials",
        tenant,
        "--package-name",
        APP,
        "--service-account-path",
        &json_file.display().to_string(),
    ];
    assert_eq!(shell.run(&google).exit, 0);
    let secret = "a-webhook-secret-of-thirty-two-bytes-and-more";
    let url = "https://callback.example/hook?token=hunter2";
    let set = [
        "webhook",
        "set-config",
        tenant,
        "--callback-url",
        url,
        "--secret-path",
        "-",
    ];
    assert_eq!(shell.run_with(&set, secret).exit, 0);
    let second = "another-webhook-secret-of-thirty-two-bytes";
    assert_eq!(shell.run_with(&set, second).exit, 0);
    assert_eq!(shell.run(&["webhook", "retire-secret", tenant]).exit, 0);
    let pair = folder.join("client.pem");
    let made = rcgen::generate_simple_self_signed(vec!["attesto".to_owned()]).unwrap();
    let client_key = made.signing_key.serialize_pem();
    std::fs::write(&pair, made.cert.pem() + &client_key).unwrap();
    let pair = pair.to_str().unwrap();
    shell.rows(&[
        "webhook",
        "set-config",
        tenant,
        "--client-certificate-path",
        pair,
        "--client-key-path",
        pair,
    ]);
    shell.rows(&["webhook", "set-config", tenant, "--no-client-certificate"]);
    shell.rows(&["webhook", "allow", tenant, "10.1.0.0/16:443"]);
    shell.rows(&["webhook", "disallow", tenant, "10.1.0.0/16:443"]);
    shell.rows(&["tenant", "set-first-seen", tenant, "on"]);
    shell.rows(&["tenant", "set-first-seen", tenant, "off"]);
    shell.rows(&["tenant", "deactivate", tenant]);
    // These only read.
    shell.rows(&["tenant", "list"]);
    shell.rows(&["webhook", "get", tenant]);

    let rows = operations(&shell);
    let told: Vec<String> = rows
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
            format!("{}: {} {}", text("command"), text("action"), text("object"))
        })
        .collect();
    let expected = [
        "tenant create: insert tenants",
        "key create: insert api_keys",
        "key revoke: update api_keys",
        "tenant rename: update tenants",
        "apple set-credentials: insert apple_credentials",
        "apple set-credentials: update apple_credentials",
        "google set-credentials: insert google_credentials",
        "webhook set-config: insert webhook_configs",
        "webhook set-config: insert webhook_previous_secrets",
        "webhook set-config: update webhook_configs",
        "webhook retire-secret: delete webhook_previous_secrets",
        "webhook set-config: insert webhook_client_certificates",
        "webhook set-config: update webhook_configs",
        "webhook set-config: delete webhook_client_certificates",
        "webhook set-config: update webhook_configs",
        "webhook allow: insert webhook_allowed_networks",
        "webhook disallow: delete webhook_allowed_networks",
        "tenant set-first-seen: insert first_seen_keys",
        "tenant set-first-seen: delete first_seen_keys",
        "tenant deactivate: update tenants",
    ];
    let (mut found, mut wanted) = (told.clone(), expected.map(str::to_owned).to_vec());
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted, "{told:#?}");
    let actor = rows[0]["actor"].as_str().unwrap();
    let me = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    assert_eq!(actor, String::from_utf8(me.stdout).unwrap().trim());
    assert!(
        rows.iter()
            .all(|row| row["tenantId"] == tenant && row["host"] != "")
    );
    let rename = &rows[told
        .iter()
        .position(|row| row.starts_with("tenant rename"))
        .unwrap()];
    assert_eq!(rename["before"]["name"], "Acme");
    assert_eq!(rename["after"]["name"], "Acme Ltd");
    assert!(rename["before"].get("id").is_none(), "only what changed");
    assert_eq!(rename["target"], tenant);

    let text = json!(rows).to_string();
    let pem = key.private_key.lines().nth(1).unwrap();
    let account_key = account["private_key"]
        .as_str()
        .unwrap()
        .lines()
        .nth(1)
        .unwrap();
    let client_key = client_key.lines().nth(1).unwrap();
    for hidden in [
        &raw_key[20..],
        pem,
        account_key,
        secret,
        second,
        client_key,
        "hunter2",
    ] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
    let verified = &shell.rows(&["audit", "verify"])[0];
    assert_eq!(verified["valid"], true, "{verified}");
    assert_eq!(verified["rows"], 20);
    assert_eq!(
        shell
            .rows(&["audit", "operators", "list", "--limit", "3"])
            .len(),
        3
    );
    let of_nobody = [
        "audit",
        "operators",
        "list",
        "--tenant",
        "tenant_00000000000000000000000000",
    ];
    assert_eq!(shell.rows(&of_nobody), Vec::<Value>::new());
    world.end().await;
}

/// One event or many: it is one request.
#[tokio::test]
async fn a_redelivery_request_leaves_one_row() {
    let (fresh, shell) = history().await;
    let tenant = shell.rows(&["tenant", "list"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let set = [
        "webhook",
        "set-config",
        &tenant,
        "--callback-url",
        "https://callback.example/",
    ];
    assert_eq!(shell.run(&set).exit, 0);
    let statement = "insert into webhook_events
            (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, stored_body)
        select tenant_lane($1), 'evt_0000000000000000000000000' || n, $1, 'apple', n::text, 'test', 'test', '{}', '\\x007b7d'
        from generate_series(1, 3) n";
    sqlx::query(statement)
        .bind(&tenant)
        .execute(fresh.database.pool())
        .await
        .unwrap();
    let before = operations(&shell).len();
    shell.rows(&[
        "webhook",
        "redeliver",
        "evt_00000000000000000000000001",
        "--reason",
        "they asked",
    ]);
    let rows = operations(&shell);
    assert_eq!(rows.len(), before + 1);
    assert_eq!(rows[before]["object"], "webhook_deliveries");
    assert_eq!(rows[before]["after"]["request_reason"], "they asked");
    assert_eq!(
        shell
            .run(&["webhook", "redeliver", "--tenant", &tenant])
            .exit,
        0
    );
    let clock = attesto::base::clock::Clock::system();
    let redeliveries = attesto::deliveries::Redeliveries::new(&fresh.database, &clock);
    while redeliveries.enqueue_next_batch().await.unwrap().enqueued > 0 {}
    let rows = operations(&shell);
    assert_eq!(rows.len(), before + 2, "{rows:#?}");
    assert_eq!(rows[before + 1]["object"], "webhook_redeliveries");
}

/// Changes made while serving requests are not an operator's.
#[tokio::test]
async fn serving_requests_leaves_no_row() {
    let world = World::with(&[("ENABLE_VALIDATION_AUDIT_LOG", "true")]).await;
    let tenant = world.tenant().await;
    let before = operations(&world.shell()).len();
    let new = NewSubscription::default();
    let bought = world.simulator.google().buy_subscription(new).unwrap();
    let question = json!({
        "packageName": APP, "purchaseToken": bought.purchase_token, "type": "subscription",
    });
    assert_eq!(world.verify("google", &tenant, &question).await.status, 200);
    let shell = world.shell();
    world.end().await;
    assert_eq!(operations(&shell).len(), before);
}

/// A change made with psql is recorded too, and takes no name from an earlier user of the
/// connection.
#[tokio::test]
async fn changes_made_with_psql_record_the_database_role() {
    let (fresh, shell) = history().await;
    let mut connection = fresh.database.pool().sqlx_pool().acquire().await.unwrap();
    for statement in [
        "set application_name = 'psql'",
        "update tenants set name = 'By hand' where name = 'One'",
        "select set_config('attesto.session', 'attesto-cli/1', false), set_config('attesto.actor', 'eve', false), \
            set_config('attesto.host', 'x', false), set_config('attesto.command', 'x', false)",
        "update tenants set name = 'By hand again' where name = 'By hand'",
        "set application_name = 'attesto-cli/1'",
        "update tenants set name = 'By eve' where name = 'By hand again'",
    ] {
        connection.execute(statement).await.unwrap();
    }
    let rows = operations(&shell);
    let who: Vec<_> = rows[rows.len() - 3..]
        .iter()
        .map(|row| {
            (
                row["actor"].as_str().unwrap(),
                row["command"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        who,
        [("attesto", "psql"), ("attesto", "psql"), ("eve", "x")]
    );
    assert_eq!(shell.rows(&["audit", "verify"])[0]["valid"], true);
}

#[tokio::test]
async fn a_change_that_cannot_be_audited_is_rolled_back() {
    let (fresh, shell) = history().await;
    execute(&fresh.database, "alter table operator_audit rename to away").await;
    let ran = shell.run(&["tenant", "create", "--name", "Six"]);
    assert_eq!(ran.exit, 1, "{}", ran.complained);
    execute(&fresh.database, "alter table away rename to operator_audit").await;
    assert_eq!(shell.rows(&["tenant", "list"]).len(), 5);
    assert_eq!(operations(&shell).len(), 5);
    // And the reverse: a change that is rolled back leaves no row.
    let mut transaction = fresh.database.pool().begin().await.unwrap();
    transaction
        .execute("update tenants set name = 'X' where name = 'One'")
        .await
        .unwrap();
    drop(transaction);
    assert_eq!(operations(&shell).len(), 5);
}

/// Tampering is reported at the first row that does not match.
#[tokio::test]
async fn the_first_broken_link_is_found() {
    for (change, at, says) in [
        ("update operator_audit set actor = 'nobody' where seq = 3", 3, "row 3 was changed"),
        ("update operator_audit set after = '{\"name\":\"X\"}' where seq >= 2", 2, "row 2 was changed"),
        ("update operator_audit set occurred_at = occurred_at - interval '1 h' where seq = 5", 5, "changed"),
        ("delete from operator_audit where seq in (3, 4)", 3, "rows are missing: 3 to 4"),
        ("delete from operator_audit where seq = 1", 1, "rows are missing: 1 to 1"),
        (
            "update operator_audit o set actor = 'nobody', hash = operator_audit_hash(
                (o.seq, o.occurred_at, 'nobody', o.host, o.command, o.action, o.object, o.target, o.tenant_id,
                 o.before, o.after, o.previous_hash, o.hash)::operator_audit) where seq = 2",
            3,
            "row 3 does not follow",
        ),
    ] {
        let (fresh, shell) = history().await;
        execute(&fresh.database, change).await;
        let ran = shell.run(&["audit", "verify"]);
        assert_eq!(ran.exit, 1, "{change}");
        assert!(ran.complained.contains(says), "{change}: {}", ran.complained);
        let said: Value = serde_json::from_str(&ran.said).unwrap();
        assert_eq!((&said["valid"], &said["brokenAt"]), (&json!(false), &json!(at)));
    }
}

#[tokio::test]
async fn removed_newest_rows_are_detected_with_a_kept_head() {
    let (fresh, shell) = history().await;
    let head = shell.rows(&["audit", "verify"])[0]["head"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(head.starts_with("5:"), "{head}");
    execute(&fresh.database, "delete from operator_audit where seq = 5").await;
    assert_eq!(shell.run(&["audit", "verify"]).exit, 0, "nobody can know");
    let ran = shell.run(&["audit", "verify", "--expect", &head]);
    assert_eq!(ran.exit, 1);
    assert!(
        ran.complained.contains("row 5 is not the one"),
        "{}",
        ran.complained
    );
    // The next row gets its number, but another hash.
    shell.rows(&["tenant", "create", "--name", "Six"]);
    assert_eq!(shell.run(&["audit:verify", "--expect", &head]).exit, 1);
    assert_eq!(shell.run(&["audit", "verify", "--expect", "5:xyz"]).exit, 2);
}

#[tokio::test]
async fn pruned_rows_leave_a_row_that_keeps_the_chain_valid() {
    let (fresh, shell) = history().await;
    let week = Duration::from_hours(24 * 7);
    assert_eq!(
        operator_audit::prune_operator_audit(&fresh.database, week)
            .await
            .unwrap(),
        0
    );
    // All five are older than zero days; the newest stays.
    assert_eq!(
        operator_audit::prune_operator_audit(&fresh.database, Duration::ZERO)
            .await
            .unwrap(),
        4
    );
    assert_eq!(shell.rows(&["audit", "verify"])[0]["first"], 5);
    shell.rows(&["tenant", "create", "--name", "Six"]);
    assert_eq!(
        operator_audit::prune_operator_audit(&fresh.database, Duration::ZERO)
            .await
            .unwrap(),
        2
    );
    let verified = &shell.rows(&["audit", "verify"])[0];
    assert_eq!(
        (&verified["first"], &verified["rows"]),
        (&json!(7), &json!(2))
    );
    assert_eq!(operations(&shell)[1]["action"], "prune");
    // Another operator makes a change.
    execute(&fresh.database, "delete from operator_audit where seq = 7").await;
    let ran = shell.run(&["audit", "verify"]);
    assert!(
        ran.complained.contains("rows are missing: 1 to 7"),
        "{}",
        ran.complained
    );
}

/// A new encryption key is one change, not one for each secret.
#[tokio::test]
async fn an_encryption_rotation_leaves_one_row() {
    let (fresh, shell) = history().await;
    let tenant = shell.rows(&["tenant", "list"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let set = [
        "webhook",
        "set-config",
        &tenant,
        "--callback-url",
        "https://callback.example/",
    ];
    assert_eq!(shell.run(&set).exit, 0);
    let before = operations(&shell).len();
    let new = shell
        .set(
            "ATTESTO_ENCRYPTION_KEYS_RETIRED",
            "1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        )
        .set(
            "ATTESTO_ENCRYPTION_KEY",
            "2:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        );
    assert_eq!(new.run(&["encryption", "rotate"]).exit, 0);
    let rows = operations(&new);
    assert_eq!(rows.len(), before + 1, "{rows:#?}");
    let last = rows.last().unwrap();
    assert_eq!(
        (&last["action"], &last["command"]),
        (&json!("reseal"), &json!("encryption rotate"))
    );
    assert_eq!(last["after"]["resealed"], 1);
    assert_eq!(new.rows(&["audit", "verify"])[0]["valid"], true);
    drop(fresh);
}

/// For each new table it must be decided whether an operator's changes are recorded.
#[tokio::test]
async fn every_table_is_audited_or_has_a_reason_not_to_be() {
    let not_noted = [
        ("_sqlx_migrations", "the migrations' own"),
        (
            "apple_previous_credentials",
            "what a noted change of apple_credentials put aside",
        ),
        ("apple_history_reads", "written by itself"),
        ("apple_test_notifications", "what Apple answered"),
        ("backups", "each row says itself what was done"),
        ("body_dictionaries", "the stores' doing"),
        ("callback_probes", "written by itself"),
        ("delivery_lanes", "never changes"),
        ("encryption_canaries", "written by itself"),
        ("event_feeds", "the callers' doing"),
        (
            "google_previous_credentials",
            "what a noted change of google_credentials put aside",
        ),
        ("first_seen_purchases", "the callers' doing"),
        ("google_voided_reads", "written by itself"),
        ("job_runs", "written by itself"),
        ("operator_audit", "this is it"),
        ("owed_acknowledgements", "the stores' doing"),
        ("process_locks", "written by itself"),
        ("pruned_events", "written by itself"),
        ("purchase_links", "the stores' doing"),
        ("refund_questions", "the stores' doing"),
        ("replicas", "written by itself"),
        ("schema_promises", "written with each migration"),
        ("validation_audit", "the callers' doing"),
        ("validation_audit_keys", "written by itself"),
        ("subjects", "the stores' doing"),
        ("unresolved_states", "written by itself"),
        ("voided_purchases", "the stores' doing"),
        ("webhook_events", "the stores' doing"),
        ("webhook_health", "the dispatcher's doing"),
    ];
    let fresh = fresh_database().await;
    let silent: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class
        where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not exists (
            select from pg_trigger where tgrelid = pg_class.oid and tgname = 'audit_change')
        order by 1",
    )
    .fetch_all(fresh.database.pool())
    .await
    .unwrap();
    let silent: BTreeSet<&str> = silent.iter().map(String::as_str).collect();
    let expected: BTreeSet<&str> = not_noted.iter().map(|(table, _)| *table).collect();
    assert_eq!(
        silent, expected,
        "a new table needs the trigger audit_change of migrations/0008_audit.sql, or a reason here"
    );
}
