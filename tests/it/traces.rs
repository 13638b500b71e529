//! Traces as an OpenTelemetry collector gets them from the running binary.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use attesto::base::clock::Clock;
use attesto::deliveries::endpoint::SigningSecret;
use attesto::events::{EventRecorder, EventSource, EventType, NewEvent};
use attesto::simulator::state::apple::NewTransaction;
use attesto::tenants;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use rustix::process::Signal;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::serve::{Served, key};
use crate::webhook_end_to_end::set_callback;
use crate::world::attesto::World;
use crate::world::event::test_event;
use crate::world::folder::Folder;
use crate::world::postgres::fresh_database;
use crate::world::receiver::Receiver;
use crate::world::wait::{wait_for, wait_until};

/// Everything expected must have happened by then, on a busy machine too.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Records what it is sent, and answers as configured.
struct Collector {
    url: String,
    took: Arc<Took>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Took {
    /// The status to answer; 0 means 200.
    answer: AtomicU16,
    asked: AtomicU16,
    messages: Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>,
}

async fn take(State(took): State<Arc<Took>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    took.asked.fetch_add(1, Ordering::SeqCst);
    match took.answer.load(Ordering::SeqCst) {
        0 => {
            let message = ExportTraceServiceRequest::decode(body).unwrap();
            took.messages.lock().unwrap().push((headers, message));
            StatusCode::OK
        }
        status => StatusCode::from_u16(status).unwrap(),
    }
}

impl Collector {
    async fn new() -> Self {
        let took = Arc::new(Took::default());
        let routes = Router::new()
            .route("/otlp/v1/traces", post(take))
            .with_state(took.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/otlp", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            axum::serve(listener, routes).await.unwrap();
        });
        Self {
            url,
            took,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn spans(&self) -> Vec<Span> {
        let messages = self.took.messages.lock().unwrap();
        let resources = messages.iter().flat_map(|(_, it)| &it.resource_spans);
        let scopes = resources.flat_map(|it| &it.scope_spans);
        scopes.flat_map(|it| it.spans.clone()).collect()
    }

    async fn span(&self, name: &str) -> Span {
        let found = || self.spans().into_iter().find(|span| span.name == name);
        wait_for(name, async || found()).await
    }
}

fn value(attributes: &[KeyValue], name: &str) -> Value {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    let value = found.and_then(|found| found.value.as_ref()?.value.clone());
    match value {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::IntValue(number)) => json!(number),
        other => {
            assert_eq!(other, None);
            Value::Null
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    attesto::crypto::token::encode_hex(bytes)
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    attesto::outbound::build_http_client().unwrap()
}

async fn base(served: &Served) -> String {
    format!(
        "http://127.0.0.1:{}",
        served.line("listening").await["port"]
    )
}

#[tokio::test]
async fn a_request_span_joins_the_callers_trace() {
    let (database, collector) = (fresh_database().await, Collector::new().await);
    let headers = "Authorization=Basic%20c2VjcmV0,x-team=shop";
    let variables = [
        ("ATTESTO_ENCRYPTION_KEY", &*key(1)),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("OTEL_EXPORTER_OTLP_HEADERS", headers),
        ("OTEL_SERVICE_NAME", "shop-receipts"),
    ];
    let mut served = Served::start(&database.url, &variables);
    let (base, client) = (base(&served).await, client());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let ask = async |path: &str, id: &str, traceparent: Option<String>| {
        let mut request = client
            .get(format!("{base}{path}"))
            .header("x-request-id", id);
        if let Some(traceparent) = traceparent {
            request = request
                .header("traceparent", traceparent)
                .header("tracestate", "vendor=hunter2");
        }
        request.send().await.unwrap()
    };
    let parent = |flags: &str| Some(format!("00-{trace}-00f067aa0ba902b7-{flags}"));
    ask("/openapi.json", "sampled", parent("01")).await;
    let span = collector.span("GET /openapi.json").await;
    assert_eq!(hex(&span.trace_id), trace);
    assert_eq!(hex(&span.parent_span_id), "00f067aa0ba902b7");
    assert_eq!((span.kind(), &*span.trace_state), (SpanKind::Server, ""));
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    for (name, expected) in [
        ("http.request.method", json!("GET")),
        ("http.route", json!("/openapi.json")),
        ("http.response.status_code", json!(200)),
        ("attesto.request_id", json!("sampled")),
        ("attesto.tenant_id", Value::Null),
    ] {
        assert_eq!(value(&span.attributes, name), expected, "{name}");
    }
    {
        let messages = collector.took.messages.lock().unwrap();
        let (headers, message) = &messages[0];
        assert_eq!(headers["authorization"], "Basic c2VjcmV0");
        assert_eq!(headers["x-team"], "shop");
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let resource = message.resource_spans[0].resource.as_ref().unwrap();
        assert_eq!(value(&resource.attributes, "service.name"), "shop-receipts");
        assert_eq!(
            value(&resource.attributes, "service.version"),
            attesto::VERSION
        );
    }

    // With an unsampled trace, of a health probe, for an unknown path, with an invalid traceparent.
    ask("/openapi.json", "unsampled", parent("00")).await;
    ask("/health", "probe", parent("01")).await;
    ask("/hunter2?key=hunter2", "unknown", None).await;
    ask("/openapi.json", "garbled", Some("hunter2".to_owned())).await;
    // Spans that end at the last moment are exported before the process ends.
    served.signal(Signal::TERM);
    assert!(served.end().await.success());
    served.line("stopped").await;
    let spans = collector.spans();
    let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
    assert_eq!(
        names,
        [
            "GET /openapi.json",
            "GET /openapi.json",
            "GET unmatched",
            "GET /openapi.json"
        ]
    );
    assert_eq!(hex(&spans[1].trace_id), trace);
    for own in &spans[2..] {
        assert!(own.parent_span_id.is_empty());
        assert_ne!(hex(&own.trace_id), trace);
    }
    assert_eq!(value(&spans[2].attributes, "error.type"), "NOT_FOUND");
    assert!(!format!("{spans:?}").contains("hunter2"));

    let lines = served.lines();
    let trace_of = |id: &str| {
        let line = lines.iter().find(|line| line["reqId"] == id).unwrap();
        line["traceId"].as_str().map(str::to_owned)
    };
    assert_eq!(trace_of("sampled").unwrap(), trace);
    assert_eq!(trace_of("unsampled").unwrap(), trace);
    assert_eq!(trace_of("unknown").unwrap(), hex(&spans[2].trace_id));
    assert_eq!(trace_of("probe"), None);
    let log = format!("{lines:?}");
    assert!(!log.contains("c2VjcmV0") && !log.contains("vendor"));
}

/// The span starts before the tenant is known.
#[tokio::test]
async fn a_traceparent_without_a_valid_key_is_ignored() {
    let (database, collector) = (fresh_database().await, Collector::new().await);
    let variables = [
        ("ATTESTO_ENCRYPTION_KEY", &*key(1)),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("OTEL_TRACES_SAMPLER_ARG", "0"),
    ];
    let mut served = Served::start(&database.url, &variables);
    let (base, client) = (base(&served).await, client());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for path in ["/openapi.json", "/v1/nothing"] {
        let request = client
            .get(format!("{base}{path}"))
            .header("x-request-id", "stranger")
            .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
        request.send().await.unwrap();
    }
    served.signal(Signal::TERM);
    assert!(served.end().await.success());
    served.line("stopped").await;
    assert!(collector.spans().is_empty(), "{:?}", collector.spans());
    // Log lines still contain the caller's trace id.
    let lines = served.lines();
    let line = lines.iter().find(|line| line["reqId"] == "stranger");
    assert_eq!(line.unwrap()["traceId"], trace);
}

#[tokio::test]
async fn store_request_spans_are_children_without_purchase_data() {
    let (world, folder, collector) = (World::today().await, Folder::new(), Collector::new().await);
    let tenant = world.tenant().await;
    let roots = folder.join("root.pem");
    std::fs::write(&roots, world.simulator.apple_root_pem()).unwrap();
    let mut variables = vec![
        ("ATTESTO_ENCRYPTION_KEY".to_owned(), key(7)),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
            collector.url.clone(),
        ),
        (
            "APPLE_ROOT_CERTIFICATES".to_owned(),
            roots.display().to_string(),
        ),
        ("WEBHOOK_DISPATCHER_DISABLED".to_owned(), "true".to_owned()),
    ];
    let simulated = world.simulator.environment_variables().into_iter();
    // Attesto's own attributes take precedence.
    variables.splice(
        0..0,
        simulated.map(|(name, value)| (name.to_owned(), value)),
    );
    let given: Vec<_> = variables
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let served = Served::start(&world.fresh.url, &given);
    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction::default());
    let bought = bought.unwrap().transaction_id;
    let answer = client()
        .post(format!("{}/v1/apple/verify", base(&served).await))
        .bearer_auth(tenant.key.expose())
        .json(&json!({ "transactionId": bought }))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);

    let outer = collector.span("POST /v1/apple/verify").await;
    collector.span("GET 127.0.0.1").await;
    let mut statuses = Vec::new();
    for inner in collector.spans() {
        if inner.name == "GET 127.0.0.1" {
            assert_eq!(inner.trace_id, outer.trace_id);
            assert_eq!(inner.parent_span_id, outer.span_id);
            assert_eq!(inner.kind(), SpanKind::Client);
            statuses.push(value(&inner.attributes, "http.response.status_code"));
        }
    }
    // A sandbox purchase is looked up in production first.
    assert_eq!(statuses, [404, 200]);
    assert_eq!(
        value(&outer.attributes, "attesto.tenant_id"),
        tenant.id.as_str()
    );
    let told = format!("{:?}", collector.spans());
    assert!(!told.contains(&bought) && !told.contains(tenant.key.expose()));
    drop(served);
    world.end().await;
}

#[tokio::test]
async fn a_delivery_attempt_is_a_trace_and_sends_no_traceparent() {
    let (fresh, collector) = (fresh_database().await, Collector::new().await);
    let receiver = Receiver::answering(OK).await;
    let clock = Clock::system();
    let name = "Acme".parse().unwrap();
    let tenant = tenants::store::create_tenant(&fresh.database, &name, clock.now())
        .await
        .unwrap()
        .id;
    let variables = [
        ("ATTESTO_ENCRYPTION_KEY", &*key(1)),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
    ];
    let served = Served::start(&fresh.url, &variables);
    served.line("listening").await;
    let sealing = attesto::crypto::keyring::MasterKey::parse(&key(1), Some(1)).unwrap();
    let keyring = attesto::crypto::keyring::Keyring::new(sealing, Vec::new()).unwrap();
    let secret = SigningSecret::parse(&"s".repeat(40)).unwrap();
    let url = format!(
        "{}/hook?token=hunter2",
        receiver.url().trim_end_matches('/')
    );
    set_callback(&fresh.database, &keyring, &tenant, &url, &secret).await;
    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    let event = NewEvent {
        source: EventSource::Apple,
        event_type: EventType::SubscriptionRenewed,
        platform_event: "apple.did_renew".into(),
        app_user_id: Some("hunter2".into()),
        app_user_id_source: Some(attesto::events::AppUserIdSource::Purchase),
        state: None,
        state_error: None,
        data: raw(r#"{"purchase":"hunter2"}"#),
        raw: raw("{}"),
        ..test_event(&tenant, "1")
    };
    let record = EventRecorder::new(&fresh.database, &clock, |_| {});
    record.record_event(&event).await.unwrap();

    let span = collector.span("webhook delivery").await;
    assert!(span.parent_span_id.is_empty());
    for (name, expected) in [
        ("attesto.tenant_id", json!(tenant.as_str())),
        ("attesto.event", json!("subscription.renewed")),
        ("attesto.attempt", json!(1)),
        ("attesto.outcome", json!("success")),
        ("http.response.status_code", json!(200)),
    ] {
        assert_eq!(value(&span.attributes, name), expected, "{name}");
    }
    let line = served.line("webhook_delivery").await;
    assert_eq!(line["traceId"], hex(&span.trace_id));
    assert_eq!(
        line["deliveryId"],
        value(&span.attributes, "attesto.delivery_id")
    );
    assert!(!format!("{:?}", collector.spans()).contains("hunter2"));
    let requests = receiver.requests();
    let mut names = requests.iter().flat_map(|request| request.headers.keys());
    assert!(!names.any(|name| name.starts_with("trace")), "{requests:?}");
}

#[tokio::test]
async fn a_failing_collector_is_logged_once_and_counted() {
    let (database, collector) = (fresh_database().await, Collector::new().await);
    let variables = [
        ("ATTESTO_ENCRYPTION_KEY", &*key(1)),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("METRICS_ADDRESS", "127.0.0.1:0"),
    ];
    let mut served = Served::start(&database.url, &variables);
    let (base, client) = (base(&served).await, client());
    let ask = async || {
        let answer = client.get(format!("{base}/openapi.json")).send().await;
        assert_eq!(answer.unwrap().status(), 200);
    };
    let asked = || collector.took.asked.load(Ordering::SeqCst);
    let address = served.line("listening").await["metrics"].clone();
    let number = async |name: &str| -> u64 {
        let url = format!("http://{}/metrics", address.as_str().unwrap());
        let page = client.get(url).send().await.unwrap().text().await.unwrap();
        let mut lines = page.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    // After a temporary failure the export is retried without a log line.
    collector.took.answer.store(503, Ordering::SeqCst);
    ask().await;
    wait_until("a request arrives", async || asked() == 1).await;
    collector.took.answer.store(0, Ordering::SeqCst);
    let exported = async || number("attesto_spans_exported_total").await;
    wait_until("a span is exported", async || exported().await == 1).await;

    collector.took.asked.store(0, Ordering::SeqCst);
    collector.took.answer.store(400, Ordering::SeqCst);
    for times in 1..=2 {
        ask().await;
        wait_until("the collector is asked", async || asked() == times).await;
        wait_until("the dropped spans are counted", async || {
            number("attesto_spans_dropped_total").await == u64::from(times)
        })
        .await;
    }
    let warning = served.line("traces_not_exported").await;
    assert_eq!(warning["error"], "it answers 400");
    collector.took.answer.store(0, Ordering::SeqCst);
    ask().await;
    served.line("traces_exported_again").await;
    assert_eq!(exported().await, 2);
    let lines = served.lines();
    let warnings = lines.iter().filter(|line| line["level"] == "warn");
    assert_eq!(warnings.count(), 1, "{lines:?}");
    served.signal(Signal::TERM);
    assert!(served.end().await.success());
}

#[tokio::test]
async fn a_hanging_collector_delays_nothing() {
    let database = fresh_database().await;
    // The operating system accepts connections, and no program reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let variables = [
        ("ATTESTO_ENCRYPTION_KEY", &*key(1)),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
    ];
    let mut served = Served::start(&database.url, &variables);
    let (base, client) = (base(&served).await, client());
    for _ in 0..50 {
        let answer = client.get(format!("{base}/openapi.json")).send().await;
        assert_eq!(answer.unwrap().status(), 200);
    }
    served.signal(Signal::TERM);
    assert!(served.end().await.success());
}
