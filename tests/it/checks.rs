//! The scheduled checks: old keys, expiring certificates, configuration drift, unreachable
//! callbacks.

use std::time::Duration;

use attesto::base::id::TenantId;
use attesto::config::compute_fingerprints;
use attesto::replicas::ReplicaHeartbeat;
use attesto::simulator::state::apple::NewTransaction;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};

use crate::docs::blocks;
use crate::metrics::count;
use crate::world::attesto::World;
use crate::world::doc_runner::read_page;
use crate::world::log::Warnings;
use crate::world::receiver::Receiver;

const DAY: Duration = Duration::from_hours(24);

async fn execute(world: &World, statement: &str) {
    // The database name is ours.
    let statement = AssertSqlSafe(statement.to_owned());
    world.database().pool().execute(statement).await.unwrap();
}

/// docs/operations.md shows a line with these fields.
fn assert_told(line: &Value) {
    let (blocks, _) = blocks(&read_page("docs/operations.md"));
    let told = blocks.into_iter().find(|(language, _)| language == "json");
    let told: Value = serde_json::from_str(&told.unwrap().1).unwrap();
    let names = |of: &Value| of.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&told)[..3], ["ts", "level", "msg"]);
    assert_eq!(names(&told)[3..], names(line));
}

#[tokio::test]
async fn keys_that_are_too_old_are_logged_once_a_day_and_counted() {
    let world = World::with(&[("METRICS_ADDRESS", "127.0.0.1:0")]).await;
    let (old, young) = (world.tenant().await, world.tenant().await);
    let age = |table: &str, days: u32| {
        format!(
            "update {table} set updated_at = now() - interval '{days} days 1 hour' where tenant_id = '{}'",
            old.id
        )
    };
    // The clock of a `World` is behind the database's.
    execute(&world, "update api_keys set created_at = now()").await;
    execute(&world, &age("apple_credentials", 366)).await;
    execute(&world, &age("google_credentials", 89)).await;
    let warnings = Warnings::listen();
    assert_eq!(
        world.run_job("expiry").await["due"],
        json!({"apple_key": 1, "google_key": 0, "api_key": 0})
    );
    let said = warnings.of("credential_rotation_due");
    let [line] = said.as_slice() else {
        panic!("{said:?}");
    };
    let fingerprint: String =
        sqlx::query_scalar("select key_fingerprint from apple_credentials where tenant_id = $1")
            .bind(old.id.as_str())
            .fetch_one(world.database().pool())
            .await
            .unwrap();
    assert_eq!(
        (
            &line["tenantId"],
            &line["credential"],
            &line["ageDays"],
            &line["fingerprint"]
        ),
        (
            &json!(old.id),
            &json!("apple_key"),
            &json!(366),
            &json!(fingerprint)
        )
    );
    assert_told(line);
    let advice = line["advice"].as_str().unwrap();
    let command = format!("attesto apple set-credentials {}", old.id);
    assert!(advice.contains(&command), "{advice}");

    // Two days later the service account's key is due too, and after ninety days all are.
    world.pass(2 * DAY).await;
    let told = world.run_job("expiry").await;
    assert_eq!(told["due"]["google_key"], 1);
    world.pass(90 * DAY).await;
    let told = world.run_job("expiry").await;
    assert_eq!(
        told["due"],
        json!({"apple_key": 1, "google_key": 2, "api_key": 2})
    );
    let of_keys = warnings.of("credential_rotation_due");
    let of_keys: Vec<_> = of_keys
        .iter()
        .filter(|line| line["credential"] == "api_key")
        .collect();
    assert_eq!(of_keys.len(), 2);
    let prefix = &young.key.expose()["attesto_live_".len()..][..8];
    assert!(
        of_keys.iter().any(|line| line["fingerprint"] == prefix),
        "{of_keys:?}"
    );
    assert!(!format!("{of_keys:?}").contains(young.key.expose()));

    // Every process exports what the job counted.
    assert_eq!(
        count(
            &world.metrics().await,
            r#"attesto_credentials_due{credential="google_key"}"#
        ),
        0
    );
    world.run_job("statistics").await;
    let page = world.metrics().await;
    assert_eq!(
        count(&page, r#"attesto_credentials_due{credential="google_key"}"#),
        2
    );
    assert_eq!(count(&page, r#"attesto_job_failing{job="expiry"}"#), 0);
    let seen = count(
        &page,
        r#"attesto_job_last_success_timestamp_seconds{job="expiry"}"#,
    );
    assert!(seen > 1_700_000_000, "{seen}");
    assert_eq!(
        count(
            &page,
            r#"attesto_job_last_success_timestamp_seconds{job="retention"}"#
        ),
        0
    );
    let rows = page
        .lines()
        .filter(|line| line.starts_with("attesto_db_table_rows{"));
    assert!(rows.count() > 15, "{page}");
    world.end().await;
}

#[tokio::test]
async fn rotation_intervals_are_settings() {
    let settings = [
        ("CREDENTIAL_APPLE_MAX_AGE_DAYS", "10"),
        ("CREDENTIAL_GOOGLE_MAX_AGE_DAYS", "0"),
        ("CREDENTIAL_API_KEY_UNUSED_DAYS", "5"),
    ];
    let world = World::with(&settings).await;
    world.tenant().await;
    let age = "update apple_credentials set updated_at = now() - interval '11 days';
        update google_credentials set updated_at = now() - interval '1000 days';
        update api_keys set created_at = now() - interval '100 days', last_used_at = now() - interval '6 days'";
    execute(&world, age).await;
    let told = world.run_job("expiry").await;
    assert_eq!(
        told["due"],
        json!({"apple_key": 1, "google_key": 0, "api_key": 1})
    );
    // Inactive tenants are not warned about.
    execute(&world, "update tenants set is_active = false").await;
    let told = world.run_job("expiry").await;
    assert_eq!(
        told["due"],
        json!({"apple_key": 0, "google_key": 0, "api_key": 0})
    );
    world.end().await;
}

#[tokio::test]
async fn many_findings_are_counted_and_only_a_few_are_listed() {
    let world = World::new().await;
    let many = "insert into tenants (id, name) select 'tenant_' || n, 'T' from generate_series(1, 70) n;
        insert into api_keys (id, tenant_id, key_hash, key_prefix, created_at)
            select 'key_' || n, 'tenant_' || n, sha256(n::text::bytea), 'xxxxxxxx', now() - interval '1 year'
            from generate_series(1, 70) n";
    execute(&world, many).await;
    let warnings = Warnings::listen();
    assert_eq!(world.run_job("expiry").await["due"]["api_key"], 70);
    let said = warnings.of("credential_rotation_due");
    assert_eq!(said.len(), 51);
    assert_eq!(said.last().unwrap()["more"], 20);
    world.end().await;
}

#[tokio::test]
async fn each_process_checks_the_certificates_it_uses() {
    let world = World::with(&[("METRICS_ADDRESS", "127.0.0.1:0")]).await;
    let tenant = world.tenant().await;
    let series = |page: &str, name: &str| {
        let series =
            format!("attesto_certificate_expiry_timestamp_seconds{{certificate=\"{name}\"}} ");
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(&series).map(str::to_owned));
        line.map(|seconds| seconds.trim_end_matches(".0").parse::<i64>().unwrap())
    };
    let page = world.metrics().await;
    assert!(series(&page, "apple_root") > Some(world.clock.now().as_secs()));
    assert_eq!(
        series(&page, "apple_leaf"),
        None,
        "nothing that Apple signed was seen"
    );
    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction::default());
    let question = json!({ "transactionId": bought.unwrap().transaction_id });
    assert_eq!(world.verify("apple", &tenant, &question).await.status, 200);
    let page = world.metrics().await;
    let leaf = series(&page, "apple_leaf").expect("it was seen");
    assert!(leaf > world.clock.now().as_secs());

    // The job checks the certificates that processes report, whichever process runs it.
    let warnings = Warnings::listen();
    let end = |days: u32| world.clock.now().plus(DAY * days);
    let tells = |id: &str, certificates: Value| {
        format!(
            "insert into replicas
                (id, host, pid, version, started_at, seen_at, sealing_key_id, opening_key_ids, certificates)
            values ('rep_{id}', '{id}', 1, '0', now(), now(), 1, '{{1}}', '{certificates}')"
        )
    };
    execute(
        &world,
        &tells("a", json!({ "listener": end(13), "apple_leaf": end(400) })),
    )
    .await;
    execute(
        &world,
        &tells("b", json!({ "listener": end(300), "apple_leaf": end(10) })),
    )
    .await;
    let told = world.run_job("expiry").await;
    assert_eq!(told["certificates"]["listener"], json!(end(13)));
    let said = warnings.of("certificate_expires_soon");
    let listener: Vec<_> = said
        .iter()
        .filter(|line| line["certificate"] == "listener")
        .collect();
    assert_eq!(listener.len(), 1, "{said:?}");
    assert_eq!(listener[0]["daysLeft"], 13);
    assert!(
        listener[0]["advice"]
            .as_str()
            .unwrap()
            .contains("TLS_CERT_PATH")
    );
    assert!(
        said.iter().all(|line| line["certificate"] != "apple_leaf"),
        "{said:?}"
    );
    world.end().await;
}

/// What the job found, without zero counts.
async fn drift(world: &World) -> Vec<(String, u64)> {
    let told = world.run_job("drift").await;
    let findings = told["findings"].as_object().unwrap();
    assert_eq!(findings.len(), 11, "each kind is counted");
    let found = findings
        .iter()
        .map(|(kind, count)| (kind.clone(), count.as_u64().unwrap()));
    let mut found: Vec<_> = found.filter(|(_, count)| *count > 0).collect();
    found.sort();
    found
}

#[tokio::test]
async fn configuration_drift_is_found_and_counted() {
    let world = World::with(&[("METRICS_ADDRESS", "127.0.0.1:0")]).await;
    let tenant = world.tenant().await.id;
    assert_eq!(drift(&world).await, []);
    let callback = format!(
        "insert into webhook_configs (tenant_id, callback_url, secret_enc)
            values ('{tenant}', 'https://a.example', '\\x0100'::bytea)"
    );
    let pusher =
        "update google_credentials set pubsub_service_account = 'a@b.iam.gserviceaccount.com'";
    let event = |environment: &str| {
        format!(
            "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event, environment,
                decoded_payload, stored_body)
            values (tenant_lane('{tenant}'), 'evt_{environment}', '{tenant}', 'apple', '{environment}', 'test', 'test', '{environment}', '{{}}',
                '\\x007b7d')"
        )
    };
    let asked = |environment: &str, result: &str| {
        format!(
            "insert into apple_test_notifications (tenant_id, environment, asked_at, result)
                values ('{tenant}', '{environment}', now() - interval '1 minute', '{result}')
            on conflict (tenant_id, environment) do update set result = excluded.result"
        )
    };
    let first =
        "update webhook_configs set is_active = true, created_at = now() - interval '8 days';
        update apple_credentials set created_at = now() - interval '8 days'";
    for (change, expected) in [
        (callback.as_str(), vec!["google_pusher"]),
        (pusher, vec![]),
        (
            "update webhook_configs set is_active = false",
            vec!["callback_off"],
        ),
        // A week later nothing has arrived.
        (first, vec!["apple_silent"]),
        (
            &asked("production", "NO_ADDRESS"),
            vec!["apple_address", "apple_silent"],
        ),
        (
            &asked("production", "TIMED_OUT"),
            vec!["apple_silent", "apple_unreached"],
        ),
        // Sandbox notifications do not count for production.
        (&event("sandbox"), vec!["apple_unreached"]),
        (&event("production"), vec![]),
        (&asked("sandbox", "SUCCESS"), vec![]),
        (
            "insert into webhook_health (lane, tenant_id, callback_url, state, failing_since)
                select tenant_lane(tenant_id), tenant_id, callback_url, 'paused', now() from webhook_configs",
            vec!["callback_closed"],
        ),
        (
            "delete from webhook_health; delete from apple_test_notifications; delete from apple_credentials",
            vec!["callback_unused"],
        ),
        ("delete from google_credentials", vec!["tenant_credentials"]),
        ("update tenants set is_active = false", vec![]),
        (
            "update webhook_configs set secret_enc = '\\x0200'::bytea",
            vec!["keys"],
        ),
        ("delete from webhook_configs", vec![]),
        (
            "insert into _sqlx_migrations values (9999, 'later', now(), true, '', 0)",
            vec!["migrations"],
        ),
    ] {
        execute(&world, change).await;
        let found = drift(&world).await;
        let found: Vec<_> = found.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(found, expected, "after {change}");
    }
    let page = world.metrics().await;
    assert_eq!(
        count(&page, r#"attesto_drift_findings{kind="migrations"}"#),
        1
    );
    assert_eq!(count(&page, r#"attesto_drift_findings{kind="keys"}"#), 0);
    world.end().await;
}

#[tokio::test]
async fn settings_that_differ_between_replicas_are_found_without_showing_values() {
    let world = World::new().await;
    let presence = |events: &str| {
        let mut settings = world.settings.clone();
        let days = events.parse().unwrap();
        settings.retention.events = Some(DAY * days);
        ReplicaHeartbeat::new(world.database(), world.keyring(), &world.clock)
            .with_settings(compute_fingerprints(&settings))
    };
    // The server of the `World` also sends heartbeats, within seconds; these heartbeats come first.
    presence("90").send_heartbeat().await.unwrap();
    presence("90").send_heartbeat().await.unwrap();
    assert_eq!(drift(&world).await, []);
    presence("7").send_heartbeat().await.unwrap();
    assert_eq!(drift(&world).await, [("settings".to_owned(), 1)]);
    let held: Vec<String> = sqlx::query_scalar("select settings::text from replicas")
        .fetch_all(world.database().pool())
        .await
        .unwrap();
    assert!(
        held.iter().all(|held| !held.contains("127.0.0.1")),
        "{held:?}"
    );
    world.end().await;
}

/// How many callbacks the job `probe` counted with this result.
fn count_of(told: &Value, result: &str) -> u64 {
    told["callbacks"][result]
        .as_u64()
        .unwrap_or_else(|| panic!("no {result} in {told}"))
}

async fn call_back(world: &World, tenant: &TenantId, url: &str) {
    let configure = "insert into webhook_configs (tenant_id, callback_url, secret_enc) values ($1, $2, '\\x0100')";
    sqlx::query(configure)
        .bind(tenant.as_str())
        .bind(url)
        .execute(world.database().pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn idle_callbacks_are_probed_without_sending_a_request() {
    let settings = [
        ("METRICS_ADDRESS", "127.0.0.1:0"),
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
    ];
    let world = World::with(&settings).await;
    let (fine, gone) = (world.stranger().await.id, world.stranger().await.id);
    let receiver = Receiver::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    call_back(&world, &fine, &receiver.url()).await;
    call_back(&world, &gone, "http://127.0.0.1:1/secret-path").await;
    let told = world.run_job("probe").await;
    assert_eq!(
        (count_of(&told, "reachable"), count_of(&told, "connect")),
        (1, 1),
        "{told}"
    );
    receiver.until_all_disconnected().await;
    assert_eq!((receiver.connections(), receiver.requests().len()), (1, 0));
    let judged: i64 = sqlx::query_scalar("select count(*) from webhook_health")
        .fetch_one(world.database().pool())
        .await
        .unwrap();
    assert_eq!(judged, 0, "a probe is no attempt");
    let page = world.metrics().await;
    assert_eq!(
        count(&page, r#"attesto_callbacks_probed{result="connect"}"#),
        1
    );

    let shown = || {
        world
            .shell()
            .rows(&["webhook", "get", gone.as_str()])
            .remove(0)
    };
    let before = shown();
    assert_eq!(before["probe"]["result"], "connect");
    assert!(
        !before["probe"].to_string().contains("secret-path"),
        "{before}"
    );

    // A callback that received something since is skipped, and the time since a failure is kept.
    world.pass(Duration::from_mins(31)).await;
    let health = "insert into webhook_health (lane, tenant_id, callback_url, last_success_at)
        select tenant_lane(tenant_id), tenant_id, callback_url, now() from webhook_configs where tenant_id = $1";
    sqlx::query(health)
        .bind(fine.as_str())
        .execute(world.database().pool())
        .await
        .unwrap();
    let told = world.run_job("probe").await;
    assert_eq!(
        (count_of(&told, "delivered"), count_of(&told, "connect")),
        (1, 1),
        "{told}"
    );
    assert_eq!(receiver.connections(), 1);
    let after = shown();
    assert_eq!(after["probe"]["since"], before["probe"]["since"]);
    assert_ne!(after["probe"]["probedAt"], before["probe"]["probedAt"]);

    // A day later its certificate is checked all the same.
    world.pass(DAY + Duration::from_mins(1)).await;
    let told = world.run_job("probe").await;
    assert_eq!(count_of(&told, "reachable"), 1, "{told}");
    // Inactive callbacks are skipped.
    execute(&world, "update webhook_configs set is_active = false").await;
    let told = world.run_job("probe").await;
    assert_eq!(
        (count_of(&told, "reachable"), count_of(&told, "connect")),
        (0, 0)
    );
    world.end().await;
}

#[tokio::test]
async fn a_scheduled_probe_round_continues_where_the_last_one_ended() {
    let world = World::with(&[("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")]).await;
    let (first, second) = (world.stranger().await.id, world.stranger().await.id);
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let receivers = [
        Receiver::answering(answer).await,
        Receiver::answering(answer).await,
    ];
    let connections = || receivers.each_ref().map(Receiver::connections);
    call_back(&world, &first, &receivers[0].url()).await;
    call_back(&world, &second, &receivers[1].url()).await;

    // A result that cannot be stored does not stop the round.
    let refuse = format!(
        "alter table callback_probes add constraint refused check (tenant_id <> '{first}')"
    );
    execute(&world, &refuse).await;
    let warnings = Warnings::listen();
    let told = world.run_job("probe").await;
    assert_eq!(
        (count_of(&told, "reachable"), &told["notKept"]),
        (2, &json!(1))
    );
    let warned = warnings.of("probe_result_not_saved");
    assert_eq!(warned.len(), 1);
    assert_eq!(connections(), [1, 1]);
    execute(
        &world,
        "alter table callback_probes drop constraint refused",
    )
    .await;

    // Stored results are not probed again by the process that resumes the round, and count with
    // their result.
    let told = world.run_job("probe").await;
    assert_eq!((count_of(&told, "reachable"), connections()), (2, [2, 1]));
    assert_eq!(told.get("notKept"), None);
    let found = "update callback_probes set result = 'tls'";
    execute(&world, found).await;
    let told = world.run_job("probe").await;
    assert_eq!((count_of(&told, "tls"), connections()), (2, [2, 1]));

    // Nothing is known about another callback.
    let moved =
        "update webhook_configs set callback_url = callback_url || '/elsewhere' where tenant_id = ";
    execute(&world, &format!("{moved}'{second}'")).await;
    let told = world.run_job("probe").await;
    assert_eq!((count_of(&told, "tls"), connections()), (1, [2, 2]));
    // The next round probes all callbacks, including those the last one did not reach.
    world.pass(Duration::from_mins(31)).await;
    let told = world.run_job("probe").await;
    assert_eq!((count_of(&told, "reachable"), connections()), (2, [3, 3]));
    // A round on request does too.
    execute(&world, found).await;
    let shell = world.shell().set("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true");
    let told = shell.rows(&["jobs", "run", "probe"]).remove(0);
    assert_eq!(count_of(&told["told"], "reachable"), 2);
    world.end().await;
}

#[tokio::test]
async fn callbacks_are_not_probed_while_deliveries_are_held_or_disabled() {
    let world = World::with(&[("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")]).await;
    let tenant = world.stranger().await.id;
    let receiver = Receiver::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    call_back(&world, &tenant, &receiver.url()).await;
    let shell = world.shell().set("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true");
    shell.rows(&["deliveries", "hold"]);
    let asked = shell.rows(&["jobs", "run", "probe"]).remove(0);
    for told in [world.run_job("probe").await, asked["told"].clone()] {
        let waits = told["waits"].as_str().unwrap_or_default();
        assert!(waits.contains("attesto deliveries release"), "{told}");
        assert_eq!(told.get("callbacks"), None);
    }
    assert_eq!(receiver.connections(), 0);
    shell.rows(&["deliveries", "release"]);
    assert_eq!(count_of(&world.run_job("probe").await, "reachable"), 1);
    assert_eq!(receiver.connections(), 1);

    // A replica that only receives may have no network access to callbacks.
    let every = |delivers: bool| {
        let mut settings = world.settings.clone();
        settings.webhooks.is_dispatcher_enabled = delivers;
        let tools = attesto::app::build_job_tools(&settings, world.database(), &world.clock);
        let jobs = attesto::app::all_jobs(&tools).into_iter();
        let probe = jobs
            .filter(|job| job.name == "probe")
            .map(|job| job.interval);
        let rest = attesto::app::all_jobs(&tools).into_iter();
        let rest = rest.filter(|job| job.name != "probe" && job.interval.is_none());
        (probe.collect::<Vec<_>>(), rest.count())
    };
    assert_eq!(every(true), (vec![Some(Duration::from_hours(1))], 0));
    assert_eq!(every(false), (vec![None], 0));
    let only_takes_in = shell.set("WEBHOOK_DISPATCHER_DISABLED", "true");
    let listed = only_takes_in.rows(&["jobs", "list"]);
    let probe = listed.iter().find(|job| job["name"] == "probe");
    assert_eq!(probe.expect("it is a job")["intervalSeconds"], Value::Null);
    world.end().await;
}

#[test]
fn the_drift_alert_excludes_findings_that_idle_apps_cause() {
    let rules = include_str!("../../docs/monitoring/alerts.yml");
    let mut lines = rules.lines();
    lines.find(|line| line.ends_with("alert: AttestoDrift"));
    let expression = lines.next().expect("an expression");
    for kind in ["callback_unused", "apple_silent", "google_pusher"] {
        assert!(expression.contains(kind), "{expression}");
    }
}
