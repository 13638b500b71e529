//! The metrics page: what is on it, what is not, and what it costs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use attesto::base::clock::Clock;
use attesto::base::id::TenantId;
use attesto::deliveries::endpoint::SigningSecret;
use attesto::deliveries::endpoint::store::{self as endpoints, EndpointChange};
use attesto::deliveries::{
    DeliveryMetrics, Dispatcher, DispatcherSettings, Sender, SenderSettings, SigningSender,
    WorkNotifier,
};
use attesto::egress::EgressPolicy;
use attesto::events::EventRecorder;
use attesto::simulator::Fault;
use attesto::simulator::state::apple::NewTransaction;
use attesto::telemetry::metrics::MetricsRegistry;
use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::world::attesto::{APP, World};
use crate::world::event::test_event;
use crate::world::receiver::Receiver;
use crate::world::wait::wait_until;

const SHOWN: [(&str, &str); 2] = [
    ("METRICS_ADDRESS", "127.0.0.1:0"),
    ("WEBHOOK_DISPATCHER_DISABLED", "true"),
];
const DASHBOARD: &str = include_str!("../../docs/monitoring/dashboard.json");
const ALERTS: &str = include_str!("../../docs/monitoring/alerts.yml");
const GUIDE: &str = include_str!("../../docs/monitoring.md");

/// The value of one line.
pub(crate) fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    let line = line.unwrap_or_else(|| panic!("no {series} in {page}"));
    line.trim().parse().unwrap()
}

/// A whole number: `3` of a counter, `3.0` of a gauge.
pub(crate) fn count(page: &str, series: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    let line = line.unwrap_or_else(|| panic!("no {series} in {page}"));
    let number = line.trim();
    number.strip_suffix(".0").unwrap_or(number).parse().unwrap()
}

#[tokio::test]
async fn requests_and_verifications_are_counted_without_tenant_labels() {
    let world = World::with(&SHOWN).await;
    let tenant = world.tenant().await;
    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction::default());
    let good = json!({ "transactionId": bought.unwrap().transaction_id });
    let unknown = json!({ "transactionId": "1999999999999999" });
    for (question, status) in [(&good, 200), (&good, 200), (&unknown, 200)] {
        assert_eq!(
            world.verify("apple", &tenant, question).await.status,
            status
        );
    }
    world
        .simulator
        .add_fault(Fault::at_place("google").status(500).times(0))
        .unwrap();
    let token = json!({ "packageName": APP, "purchaseToken": "t", "type": "subscription" });
    assert_eq!(world.verify("google", &tenant, &token).await.status, 502);
    world.ask("GET", "/nowhere/a-secret", None, None).await;
    world.ask("DELETE", "/v1/apple/verify", None, None).await;
    let push = format!("/v1/webhooks/google/{}", tenant.id);
    assert_eq!(
        world
            .ask("POST", &push, None, Some(&json!({})))
            .await
            .status,
        401
    );

    let page = world.metrics().await;
    for (series, expected) in [
        (r#"attesto_verify_total{store="apple",result="valid"}"#, 2),
        (r#"attesto_verify_total{store="apple",result="invalid"}"#, 1),
        (r#"attesto_verify_total{store="apple",result="error"}"#, 0),
        (r#"attesto_verify_total{store="google",result="error"}"#, 1),
        (r#"attesto_verify_duration_seconds_count{store="apple"}"#, 3),
        (
            r#"attesto_notifications_total{store="google",outcome="refused"}"#,
            1,
        ),
        (
            r#"attesto_notifications_total{store="google",outcome="stored"}"#,
            0,
        ),
        (
            r#"attesto_http_requests_total{route="/v1/apple/verify",method="POST",status_class="2xx"}"#,
            3,
        ),
        (
            r#"attesto_http_requests_total{route="/v1/apple/verify",method="DELETE",status_class="4xx"}"#,
            1,
        ),
        (
            r#"attesto_http_requests_total{route="/v1/google/verify",method="POST",status_class="5xx"}"#,
            1,
        ),
        (
            r#"attesto_http_requests_total{route="/v1/webhooks/google/{tenantId}",method="POST",status_class="4xx"}"#,
            1,
        ),
        (
            r#"attesto_http_requests_total{route="unmatched",method="GET",status_class="4xx"}"#,
            1,
        ),
        (
            r#"attesto_http_request_duration_seconds_bucket{le="+Inf",route="/v1/apple/verify",method="POST"}"#,
            3,
        ),
    ] {
        assert_eq!(count(&page, series), expected, "{series}");
    }
    // The tenant's two secrets, after they were counted.
    assert_eq!(count(&page, r#"attesto_sealed_values{key_id="1"}"#), 0);
    world.run_job("statistics").await;
    let page = world.metrics().await;
    assert_eq!(count(&page, r#"attesto_sealed_values{key_id="1"}"#), 2);
    assert_eq!(count(&page, "attesto_reencrypt_remaining"), 0);
    let build = format!(r#"attesto_build_info{{version="{}"}}"#, attesto::VERSION);
    assert_eq!(count(&page, &build), 1);
    assert!(
        !page.contains(tenant.id.as_str()) && !page.contains("a-secret"),
        "{page}"
    );
    assert!(
        value(&page, "process_resident_memory_bytes") > 1e6,
        "{page}"
    );
    world.end().await;
}

/// Sealed values moved to another tenant, written by hand, or sealed with an unknown key are
/// refused, and counted by cause for an alert.
#[tokio::test]
async fn secrets_that_cannot_be_decrypted_are_counted() {
    let world = World::with(&SHOWN).await;
    let (one, other) = (world.tenant().await, world.tenant().await);
    let refused = async || {
        let page = world.metrics().await;
        ["key_unknown", "does_not_open", "not_sealed"].map(|class| {
            let series = format!(r#"attesto_sealed_values_refused_total{{class="{class}"}}"#);
            count(&page, &series)
        })
    };
    world.ask("GET", "/ready", None, None).await;
    assert_eq!(refused().await, [0, 0, 0]);
    let write = async |statement: &'static str| {
        let pool = world.database().pool();
        pool.execute(statement).await.unwrap();
    };
    // Swapped between two rows, and between two columns.
    write(
        "update apple_credentials it set private_key_enc = others.private_key_enc
           from apple_credentials others where others.tenant_id <> it.tenant_id;
         update google_credentials it set service_account_enc = others.private_key_enc
           from apple_credentials others where others.tenant_id = it.tenant_id",
    )
    .await;
    let apple = json!({ "transactionId": "1" });
    let google = json!({ "packageName": APP, "type": "subscription", "purchaseToken": "a" });
    for tenant in [&one, &other] {
        for (store, question) in [("apple", &apple), ("google", &google)] {
            let answer = world.verify(store, tenant, question).await;
            assert_eq!(answer.status, 500, "{}", answer.body);
        }
    }
    assert_eq!(refused().await, [0, 4, 0]);
    write(r"update apple_credentials set private_key_enc = '\x01ff'").await;
    world.verify("apple", &one, &apple).await;
    // As long as a sealed value, of key 9.
    write("update apple_credentials set private_key_enc = '\\x09' || sha256('a')").await;
    world.verify("apple", &one, &apple).await;
    assert_eq!(refused().await, [1, 4, 1]);
    // An old key that no value is sealed with is not missed.
    write(
        "insert into encryption_canaries (key_id, canary_enc) values (9, '\\x09' || sha256('a'))",
    )
    .await;
    write("delete from apple_credentials").await;
    let ready = world.ask("GET", "/ready", None, None).await;
    assert_eq!(ready.status, 200, "{}", ready.body);
    assert_eq!(refused().await, [1, 4, 1]);
    world.end().await;
}

#[tokio::test]
async fn the_metrics_port_serves_only_metrics() {
    let world = World::with(&SHOWN).await;
    assert_eq!(world.ask("GET", "/metrics", None, None).await.status, 404);
    let page = world.metrics_url();
    let client = attesto::outbound::build_http_client().unwrap();
    let answer = client.get(&page).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.headers()["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    for (method, path, status) in [
        ("POST", "/metrics", 405),
        ("GET", "/health", 404),
        ("GET", "/v1/apple/verify", 404),
    ] {
        let url = page.replace("/metrics", path);
        let request = client.request(method.parse().unwrap(), url);
        assert_eq!(request.send().await.unwrap().status(), status, "{path}");
    }
    world.end().await;
}

/// A scrape sends no query: the database is unreachable here.
#[tokio::test]
async fn a_scrape_needs_no_database() {
    let world = World::with(&SHOWN).await;
    assert_eq!(count(&world.metrics().await, "attesto_db_up"), 1);
    world.database().close_connections().await;
    // No statement could be run.
    let client = attesto::outbound::build_http_client().unwrap();
    for _ in 0..100 {
        let answer = client.get(world.metrics_url()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let page = answer.text().await.unwrap();
        assert!(page.lines().count() < 2000 && page.contains("attesto_queue_depth"));
    }
    let page = world.metrics().await;
    assert_eq!(count(&page, "attesto_db_up"), 0);
    assert!(
        page.contains("attesto_queue_depth{state=\"due\"} 0"),
        "{page}"
    );
    world.end().await;
}

#[tokio::test]
async fn queue_and_callback_gauges_are_refreshed_periodically() {
    let world = World::with(&SHOWN).await;
    let pool = world.database().pool();
    let statement = "
        insert into tenants (id, name, is_active) values
            ('a', 'Fine', true), ('b', 'Closed', true), ('c', 'Off', false), ('d', 'Silent', true);
        insert into webhook_configs (tenant_id, callback_url, secret_enc, is_active) values
            ('a', 'https://a.example', '', true), ('b', 'https://b.example', '', true),
            ('c', 'https://c.example', '', true), ('d', 'https://d.example', '', false);
        insert into webhook_health (lane, tenant_id, callback_url, state, closed_until) values
            (tenant_lane('b'), 'b', 'https://b.example', 'paused', now() + interval '1 hour');
        insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event,
            decoded_payload, stored_body)
            select tenant_lane(tenant), 'e' || tenant, tenant, 'apple', 'x', 'test', 'test', '{}', '\\x007b7d'
            from unnest(array['a', 'b', 'c', 'd']) tenant;
        insert into webhook_deliveries
            (lane, id, event_id, tenant_id, callback_url, status, next_attempt_at, lease_until, parked_at) values
            (tenant_lane('a'), '1', 'ea', 'a', 'https://a.example', 'pending', now() - interval '90 s', null, null),
            (tenant_lane('a'), '2', 'ea', 'a', 'https://a.example', 'pending', now() - interval '10 s', null, null),
            (tenant_lane('a'), '3', 'ea', 'a', 'https://a.example', 'pending', now() + interval '1 hour', null, null),
            (tenant_lane('a'), '4', 'ea', 'a', 'https://a.example', 'pending', now(), now() + interval '10 s', null),
            (tenant_lane('a'), '5', 'ea', 'a', 'https://a.example', 'pending', now() - interval '1 day', null, now()),
            (tenant_lane('a'), '6', 'ea', 'a', 'https://a.example', 'delivered', null, null, null),
            -- These wait for their callback or for their operator, not for us.
            (tenant_lane('b'), '7', 'eb', 'b', 'https://b.example', 'pending', now() - interval '1 day', null, null),
            (tenant_lane('c'), '8', 'ec', 'c', 'https://c.example', 'pending', now() - interval '1 day', null, null),
            (tenant_lane('d'), '9', 'ed', 'd', 'https://d.example', 'pending', now() - interval '1 day', null, null);
    ";
    pool.execute(statement).await.unwrap();
    let page = world.metrics().await;
    for (series, expected) in [
        (r#"attesto_queue_depth{state="due"}"#, 5),
        (r#"attesto_queue_depth{state="scheduled"}"#, 1),
        (r#"attesto_queue_depth{state="leased"}"#, 1),
        (r#"attesto_queue_depth{state="parked"}"#, 1),
        (r#"attesto_endpoints{state="active"}"#, 1),
        (r#"attesto_endpoints{state="paused"}"#, 1),
        (r#"attesto_endpoints{state="open"}"#, 0),
        (r#"attesto_endpoints{state="disabled"}"#, 2),
        // Four tenants with a callback each.
        ("attesto_operator_audit_last_seq", 8),
    ] {
        assert_eq!(count(&page, series), expected, "{series}");
    }
    let oldest = value(&page, "attesto_queue_oldest_due_seconds");
    assert!((90.0..150.0).contains(&oldest), "{oldest}");

    // A transaction is left open.
    let mut forgotten = pool.begin().await.unwrap();
    forgotten
        .execute("update tenants set name = 'X' where id = 'a'")
        .await
        .unwrap();
    forgotten.execute("select pg_sleep(0.05)").await.unwrap();
    let page = world.metrics().await;
    assert!(value(&page, "attesto_db_oldest_xmin_age_seconds") >= 0.05);
    drop(forgotten);
    // On a busy machine a transaction of the server itself can be as old.
    wait_until("the transaction's age is reported no more", async || {
        let page = world.metrics().await;
        value(&page, "attesto_db_oldest_xmin_age_seconds") < 0.05
    })
    .await;

    // Long reads cause no alert, because they only read.
    for name in ["pg_dump", "attesto-backup", "attesto-export", "report"] {
        let mut snapshot = world.database().connect_directly(name).await.unwrap();
        snapshot
            .execute(
                "begin transaction isolation level repeatable read; select count(*) from tenants",
            )
            .await
            .unwrap();
        snapshot.execute("select pg_sleep(0.05)").await.unwrap();
        let age = async || {
            let page = world.metrics().await;
            value(&page, "attesto_db_oldest_xmin_age_seconds")
        };
        if name == "report" {
            assert!(age().await >= 0.05);
        } else {
            let what = format!("the age of {name}'s transaction is not reported");
            wait_until(&what, async || age().await < 0.05).await;
        }
        let vitals = world
            .database()
            .load_health(&Clock::system())
            .await
            .unwrap();
        let is_seen = vitals.oldest_snapshot.as_secs_f64() >= 0.05;
        assert_eq!(is_seen, name != "report", "{name}");
        snapshot
            .execute("update tenants set name = 'X' where id = 'a'")
            .await
            .unwrap();
        assert!(age().await >= 0.05, "{name} writes");
        snapshot.execute("rollback").await.unwrap();
    }
    world.end().await;
}

#[tokio::test]
async fn dispatcher_activity_is_counted() {
    let world = World::with(&SHOWN).await;
    let database = world.database();
    let tenant = world.stranger().await.id;
    let receiver = Receiver::answering(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await;
    configure(&world, &tenant, &receiver.url()).await;
    let event = test_event(&tenant, "1");
    let record = EventRecorder::new(database, &world.clock, |_| {});
    record.record_event(&event).await.unwrap();
    world.pass(Duration::from_secs(7)).await;
    let settings = SenderSettings::new(Duration::from_secs(5), EgressPolicy::new(true));
    let sender = Sender::new(settings, &world.clock).unwrap();
    let sender = SigningSender::new(sender, database, world.keyring());
    let settings = DispatcherSettings {
        concurrency: 8,
        poll_interval: Duration::from_secs(10),
        max_retries: 5,
        shutdown_timeout: Duration::ZERO,
    };
    let registry = MetricsRegistry::default();
    let mut dispatcher = Dispatcher::new(
        database,
        &world.clock,
        sender,
        WorkNotifier::default(),
        settings,
    )
    .with_metrics(DeliveryMetrics::new(&registry));
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    let page = registry.render_text();
    for (series, expected) in [
        (r#"attesto_delivery_attempts_total{outcome="http_5xx"}"#, 1),
        (r#"attesto_delivery_attempts_total{outcome="success"}"#, 0),
        ("attesto_delivery_duration_seconds_count", 1),
        ("attesto_leases_lost_total", 0),
        // It had been due for seven seconds.
        (r#"attesto_delivery_lag_seconds_bucket{le="5.0"}"#, 0),
        (r#"attesto_delivery_lag_seconds_bucket{le="15.0"}"#, 1),
    ] {
        assert_eq!(count(&page, series), expected, "{series}");
    }
    world.end().await;
}

async fn configure(world: &World, tenant: &TenantId, url: &str) {
    let secret = SigningSecret::parse(&"s".repeat(40)).unwrap();
    let change = EndpointChange {
        callback_url: Some(url),
        secret: Some(&secret),
        overlap: Duration::ZERO,
        ..EndpointChange::default()
    };
    let (database, keyring) = (world.database(), Arc::clone(world.keyring()));
    endpoints::change_endpoint(database, &keyring, tenant, &change)
        .await
        .unwrap();
}

/// Names of Attesto's metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
        .filter(|word| word.starts_with("attesto_") || word.starts_with("process_"))
        .collect()
}

#[tokio::test]
async fn every_metric_that_a_dashboard_an_alert_or_the_guide_names_exists_and_the_guide_names_all()
{
    let world = World::with(&SHOWN).await;
    world.ask("GET", "/health", None, None).await;
    for job in ["statistics", "drift", "probe"] {
        world.run_job(job).await;
    }
    let page = world.metrics().await;
    world.end().await;
    let exists: BTreeSet<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();

    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let expressions: Vec<&str> = targets
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(expressions.len() > 20);
    let rules: Vec<&str> = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .collect();
    assert!(rules.len() >= 20);
    for expression in expressions.into_iter().chain(rules) {
        for name in names(expression) {
            assert!(exists.contains(name), "{name} in {expression}");
        }
    }

    let families: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| match line.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect();
    let described: BTreeSet<String> = GUIDE
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(names)
        .map(str::to_owned)
        .collect();
    assert!(page.ends_with("# EOF\n"));
    assert_eq!(described, families, "the table of docs/monitoring.md");
    assert!(page.lines().count() < 2000, "{}", page.lines().count());
}
