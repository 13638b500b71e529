//! How much of the memory and of the connections senders can take, and what the others see meanwhile.

use std::time::{Duration, Instant};

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::TenantId;
use attesto::http::body_budget::{BodyBudget, BodyBudgetLimits};
use attesto::http::json::{FromJson, JsonBody, JsonFields, accept_notifications};
use attesto::http::request_layer::RequestLayer;
use attesto::http::trusted_proxies::TrustedProxies;
use attesto::server::{
    ConnectionLimits, ListenSettings, RunningServer, bind_listener, start_server,
};
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::state::google_notifications::PushSubscription;
use attesto::telemetry::metrics::MetricsRegistry;
use axum::Router;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sqlx::Executor as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::metrics::count;
use crate::world::attesto::{APP, APP_APPLE_ID, Tenant, World};
use crate::world::wait::wait_until;

pub(crate) const HOUR: Duration = Duration::from_hours(1);
/// No connection of these tests ends by its time.
pub(crate) const PATIENT: ConnectionLimits = ConnectionLimits {
    head_timeout: HOUR,
    idle_timeout: HOUR,
    linger_timeout: Duration::from_secs(2),
    max_connections: 64,
    max_connections_per_peer: 64,
    max_held_connections: 0,
    hold_timeout: HOUR,
};

/// A body whose fields are not read.
struct UnreadBody;

impl FromJson for UnreadBody {
    fn from_json(_: &mut JsonFields<'_>) -> Option<Self> {
        Some(Self)
    }
}

/// A server with a route for strangers, with bodies of up to 1 MiB, and one for callers.
pub(crate) struct Server {
    running: RunningServer,
    registry: MetricsRegistry,
}

impl Server {
    async fn start(limits: ConnectionLimits, budget: BodyBudgetLimits) -> Self {
        Self::start_behind("", limits, budget).await
    }

    /// Behind these trusted proxies.
    pub(crate) async fn start_behind(
        proxies: &str,
        limits: ConnectionLimits,
        budget: BodyBudgetLimits,
    ) -> Self {
        let registry = MetricsRegistry::default();
        let read = async |JsonBody(UnreadBody): JsonBody<UnreadBody>| axum::Json(json!({}));
        let routes = Router::new()
            .route("/notify", post(read).layer(accept_notifications(1 << 20)))
            .route("/ask", post(read))
            .route("/hello", get(async || axum::Json(json!({"hello": true}))));
        let layer = RequestLayer::new(routes, Clock::system(), HOUR)
            .with_body_budget(BodyBudget::with_metrics(budget, &registry))
            .with_trusted_proxies(TrustedProxies::parse(proxies).expect("these are good"));
        let loopback = ListenSettings {
            address: Some([127, 0, 0, 1].into()),
            port: 0,
        };
        let listener = bind_listener(loopback).await.expect("a free port");
        let running = start_server(layer, listener, limits, None).expect("it starts");
        Self { running, registry }
    }

    async fn connect(&self) -> TcpStream {
        self.connect_from([127, 0, 0, 1]).await
    }

    /// Connects from this address of the machine.
    pub(crate) async fn connect_from(&self, address: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        let stream = socket.connect(self.running.address()).await;
        stream.expect("it takes connections")
    }

    /// Sends a text on a connection of its own, and reads to its end.
    async fn ask(&self, request: &str) -> String {
        self.ask_from([127, 0, 0, 1], request).await
    }

    pub(crate) async fn ask_from(&self, address: [u8; 4], request: &str) -> String {
        let mut stream = self.connect_from(address).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("answers are text")
    }

    /// Sends the head of a body of 1,000,000 bytes, and all of it but the last byte.
    async fn send_unfinished_body(&self) -> TcpStream {
        self.send_unfinished_body_from([127, 0, 0, 1], "").await
    }

    /// With further lines in the head, each with its end.
    pub(crate) async fn send_unfinished_body_from(
        &self,
        address: [u8; 4],
        lines: &str,
    ) -> TcpStream {
        let mut stream = self.connect_from(address).await;
        let head = format!(
            "POST /notify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n{lines}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; 999_999]).await.unwrap();
        stream
    }

    pub(crate) fn count(&self, series: &str) -> u64 {
        count(&self.registry.render_text(), series)
    }

    /// Waits until the bodies of strangers in hand have so many bytes.
    pub(crate) async fn until_in_hand(&self, bytes: u64) {
        let series = r#"attesto_request_body_bytes{kind="unauthenticated"}"#;
        let what = format!("{bytes} bytes are in hand");
        wait_until(&what, async || self.count(series) == bytes).await;
    }
}

fn post_request(path: &str, body: &str) -> String {
    post_request_with(path, "", body)
}

/// With further lines in the head, each with its end.
pub(crate) fn post_request_with(path: &str, lines: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{lines}\r\n{body}",
        body.len()
    )
}

pub(crate) fn budget(max_bytes: usize, peer_share_percent: usize) -> BodyBudgetLimits {
    BodyBudgetLimits {
        max_bytes,
        peer_share_percent,
        room_timeout: Duration::ZERO,
    }
}

#[tokio::test]
async fn unfinished_bodies_take_what_they_may_and_callers_are_answered() {
    // 6,000,000 bytes for strangers; 2,000,000 for callers.
    for (share, unfinished, reason) in [(100, 6, "body_memory"), (50, 3, "body_memory_of_peer")] {
        let server = Server::start(PATIENT, budget(8_000_000, share)).await;
        let mut crowd = Vec::new();
        for _ in 0..unfinished {
            crowd.push(server.send_unfinished_body().await);
        }
        server.until_in_hand(unfinished * 999_999).await;
        let filler = format!("{{\"x\":\"{}\"}}", "y".repeat(20_000));
        let answer = server.ask(&post_request("/notify", &filler)).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("retry-after: 5\r\n"), "{answer}");
        assert!(answer.contains(r#""error":"UNAVAILABLE""#), "{answer}");
        let series = format!(r#"attesto_requests_refused_total{{reason="{reason}"}}"#);
        assert_eq!(server.count(&series), 1);

        let answer = server.ask(&post_request("/ask", r#"{"x":"y"}"#)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

        drop(crowd);
        server.until_in_hand(0).await;
        let answer = server.ask(&post_request("/notify", &filler)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        server.until_in_hand(0).await;
    }
}

#[tokio::test]
async fn a_body_without_a_length_is_counted_with_what_it_reserves() {
    let server = Server::start(PATIENT, budget(8_000_000, 100)).await;
    let mut stream = server.connect().await;
    let head = "POST /notify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 600_000, " ".repeat(600_000));
    stream.write_all(chunk.as_bytes()).await.unwrap();
    server.until_in_hand(1 << 20).await;
    stream.write_all(b"2\r\n{}\r\n0\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    server.until_in_hand(0).await;
}

#[tokio::test]
async fn a_new_connection_takes_the_place_of_the_longest_silent_one() {
    for limits in [
        ConnectionLimits {
            max_connections: 3,
            ..PATIENT
        },
        ConnectionLimits {
            max_connections_per_peer: 3,
            ..PATIENT
        },
    ] {
        let server = Server::start(limits, BodyBudgetLimits::default()).await;
        let mut silent = server.connect().await;
        let mut body = server.send_unfinished_body().await;
        server.until_in_hand(999_999).await;
        let mut head = server.connect().await;
        head.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\nX")
            .await
            .unwrap();
        let ask = "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = server.ask(ask).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let ended = silent.read(&mut [0]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        assert_eq!(
            server.count(r#"attesto_requests_refused_total{reason="silent_connection"}"#),
            1
        );
        // The others were spared.
        head.write_all(b": y\r\n\r\n").await.unwrap();
        body.write_all(b" ").await.unwrap();
        for spared in [&mut head, &mut body] {
            let mut answer = [0; 9];
            spared.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 ");
        }
    }
}

/// One place, and one connection that is held.
async fn start_with_one_held(hold_timeout: Duration) -> Server {
    let limits = ConnectionLimits {
        max_connections_per_peer: 1,
        max_held_connections: 1,
        hold_timeout,
        ..PATIENT
    };
    Server::start(limits, BodyBudgetLimits::default()).await
}

/// A client that only takes up a place would come again at once.
#[tokio::test]
async fn a_connection_without_an_answer_is_held_when_its_place_is_taken() {
    let server = start_with_one_held(HOUR).await;
    let mut held = server.connect().await;
    held.write_all(b"GET /hello HT").await.unwrap();
    let mut closed = server.connect().await;
    closed.write_all(b"GET /hello HT").await.unwrap();
    let mut last = server.connect().await;
    let request = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n";
    last.write_all(request).await.unwrap();
    let mut answer = [0; 12];
    last.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    // No more than one is held. When this one is closed, the one before it has lost its place too.
    let ended = closed.read(&mut [0]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let read = held.try_read(&mut [0]);
    let error = read.expect_err("the connection is open and silent");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);

    // One that had an answer is closed, so that its client connects anew for the next request.
    let mut newest = server.connect().await;
    newest.write_all(request).await.unwrap();
    newest.read_exact(&mut answer).await.unwrap();
    last.read_to_end(&mut Vec::new()).await.unwrap();

    assert!(server.running.stop(HOUR).await);
    let ended = held.read(&mut [0]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn a_held_connection_is_closed_after_its_time() {
    // It cannot end sooner, however fast the machine is, and it ends in time, however slow.
    let hold_timeout = Duration::from_millis(400);
    let server = start_with_one_held(hold_timeout).await;
    let mut held = server.connect().await;
    held.write_all(b"GET /hello HT").await.unwrap();
    let begun = Instant::now();
    let _newer = server.connect().await;
    let ended = held.read(&mut [0]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let lasted = begun.elapsed();
    assert!(lasted >= hold_timeout, "it ended after {lasted:?}");
}

#[tokio::test]
async fn a_request_that_has_arrived_is_answered_although_its_place_is_taken() {
    let limits = ConnectionLimits {
        max_connections_per_peer: 1,
        ..PATIENT
    };
    let server = Server::start(limits, BodyBudgetLimits::default()).await;
    // Both connections are there before the server has its next turn.
    let connect = || std::net::TcpStream::connect(server.running.address()).unwrap();
    let mut first = connect();
    let request = b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    std::io::Write::write_all(&mut first, request).unwrap();
    let second = connect();
    first.set_nonblocking(true).unwrap();
    let mut first = TcpStream::from_std(first).unwrap();
    let mut answer = String::new();
    first.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(
        server.count(r#"attesto_requests_refused_total{reason="silent_connection"}"#),
        1
    );
    drop(second);
}

#[tokio::test]
async fn a_request_has_exactly_one_host() {
    let server = Server::start(PATIENT, BodyBudgetLimits::default()).await;
    for (head, status) in [
        ("GET /hello HTTP/1.1\r\n", "400"),
        ("GET /hello HTTP/1.1\r\nHost: a\r\nHost: a\r\n", "400"),
        ("GET /hello HTTP/1.1\r\nHost: a\r\nhost: b\r\n", "400"),
        ("GET /hello HTTP/1.1\r\nHost: a\r\n", "200"),
        ("GET /hello HTTP/1.0\r\n", "200"),
        ("GET /hello HTTP/1.0\r\nHost: a\r\nHost: b\r\n", "400"),
    ] {
        let answer = server
            .ask(&format!("{head}Connection: close\r\n\r\n"))
            .await;
        assert_eq!(&answer[9..12], status, "{head:?} gives {answer}");
        assert_eq!(answer.contains("one Host header"), status == "400");
    }
}

#[tokio::test]
async fn a_host_that_is_no_host_is_refused() {
    let server = Server::start(PATIENT, BodyBudgetLimits::default()).await;
    for (host, status) in [
        ("a b", "400"),
        ("a\tb", "400"),
        ("a/b", "400"),
        ("a?b", "400"),
        ("user@a", "400"),
        ("http://a", "400"),
        ("a:b", "400"),
        ("a:+80", "400"),
        ("a:65536", "400"),
        ("a:80:80", "400"),
        ("::1", "400"),
        ("[::1", "400"),
        ("[a]", "400"),
        ("[::1]80", "400"),
        (":80", "400"),
        ("a%2", "400"),
        ("ä", "400"),
        ("a\"b", "400"),
        ("a", "200"),
        ("A.example.com.", "200"),
        ("a_b", "200"),
        ("a%20b", "200"),
        ("a:8080", "200"),
        ("a:", "200"),
        ("127.0.0.1:80", "200"),
        ("[::1]", "200"),
        ("[2001:db8::1]:8080", "200"),
        ("", "200"),
    ] {
        let ask = format!("GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = server.ask(&ask).await;
        assert_eq!(&answer[9..12], status, "{host:?} gives {answer}");
        assert_eq!(
            answer.contains("The Host header must be a host name"),
            status == "400",
            "{answer}"
        );
    }
}

/// Its sender may have sent all that it wants to.
#[tokio::test]
async fn a_bare_line_feed_that_ends_a_head_is_answered() {
    let server = Server::start(PATIENT, BodyBudgetLimits::default()).await;
    for head in [
        "GET /hello HTTP/1.1\r\nHost: a\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: a\r\n\n",
        "GET /hello HTTP/1.1\nHost: a\n\n",
        "GET /hello HTTP/1.1\r\nHost: a\r\n\r\nGET /hello HTTP/1.1\r\nHost: a\n\r\n",
    ] {
        let answers = server.ask(head).await;
        let last = answers.rsplit("HTTP/1.1 ").next().unwrap();
        assert!(last.starts_with("400 "), "{head:?} gives {answers}");
    }
}

/// A proxy in front may take the two for one request.
#[tokio::test]
async fn a_bare_line_feed_is_refused_in_a_pipelined_head_too() {
    let server = Server::start(PATIENT, BodyBudgetLimits::default()).await;
    let first = "POST /ask HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";
    let bodies = [
        "Content-Length: 4\r\n\r\n{ \n}",
        "Transfer-Encoding: chunked\r\n\r\n2\r\n{ \r\n2\r\n\n}\r\n0\r\n\r\n",
    ];
    for body in bodies {
        for (second, status) in [
            (
                "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                "200",
            ),
            (
                "GET /hello HTTP/1.1\nHost: a\r\nConnection: close\r\n\r\n",
                "400",
            ),
            (
                "GET /hello HTTP/1.1\r\nHost: a\nConnection: close\r\n\r\n",
                "400",
            ),
        ] {
            let answers = server.ask(&format!("{first}{body}{second}")).await;
            let statuses: Vec<_> = answers
                .match_indices("HTTP/1.1 ")
                .map(|(at, line)| &answers[at + line.len()..][..3])
                .collect();
            assert_eq!(statuses, ["200", status], "{second:?} gives {answers}");
        }
    }
}

/// A sender of HTTP/2 learns at once how little it may send unread.
#[tokio::test]
async fn http_2_has_few_streams_and_small_windows() {
    let server = Server::start(PATIENT, BodyBudgetLimits::default()).await;
    let mut stream = server.connect().await;
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "SETTINGS come first");
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.unwrap();
    let setting = |id: u16| {
        let mut settings = payload.chunks(6);
        let found = settings.find(|it| it[..2] == id.to_be_bytes());
        found.map(|it| u32::from_be_bytes([it[2], it[3], it[4], it[5]]))
    };
    assert_eq!(setting(3), Some(64), "MAX_CONCURRENT_STREAMS");
    assert_eq!(setting(4), Some(32 * 1024), "INITIAL_WINDOW_SIZE");
}

/// The settings reach the server, and a tenant is answered beside a crowd at its address.
#[tokio::test]
async fn a_tenant_is_answered_beside_unfinished_notifications() {
    let world = World::with(&[
        ("METRICS_ADDRESS", "127.0.0.1:0"),
        ("REQUEST_MEMORY_MEGABYTES", "32"),
        ("PEER_SHARE_PERCENT", "5"),
    ])
    .await;
    let tenant = world.tenant().await;
    let path = format!("/v1/webhooks/apple/{}", tenant.id);
    let url = world.url("");
    let mut unfinished = TcpStream::connect(url.trim_start_matches("http://"))
        .await
        .unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    unfinished.write_all(head.as_bytes()).await.unwrap();
    unfinished.write_all(&vec![b' '; 999_000]).await.unwrap();
    let in_hand = async || {
        let page = world.metrics().await;
        count(
            &page,
            r#"attesto_request_body_bytes{kind="unauthenticated"}"#,
        )
    };
    wait_until("the body is in hand", async || in_hand().await >= 999_000).await;
    let notification = json!({ "signedPayload": "x".repeat(300_000) });
    let refused = world.ask("POST", &path, None, Some(&notification)).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(refused.body["details"]["retryAfterSeconds"], 5);
    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction::default());
    let question = json!({ "transactionId": bought.unwrap().transaction_id });
    let verified = world.verify("apple", &tenant, &question).await;
    assert_eq!(verified.status, 200, "{}", verified.body);
    drop(unfinished);
    world.end().await;
}

/// Their places are given to a scraper, one by one.
#[tokio::test]
async fn silent_connections_do_not_hold_the_metrics() {
    let world = World::with(&[("METRICS_ADDRESS", "127.0.0.1:0")]).await;
    let url = world.metrics_url();
    let address = url
        .trim_start_matches("http://")
        .trim_end_matches("/metrics");
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let page = world.metrics().await;
    assert!(page.contains("attesto_build_info"), "{page}");
    let ended = silent[0].read(&mut [0]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let open = silent[1..].iter().filter(|stream| {
        let read = stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    });
    assert_eq!(open.count(), 15, "only the oldest made room");
    world.end().await;
}

/// Numbers that Postgres does not store are refused with their place, however often they are sent, wherever they are.
#[tokio::test]
async fn what_postgres_does_not_store_is_refused_by_name_or_stored_as_unknown() {
    let client = attesto::outbound::build_http_client().unwrap();
    let world = World::new().await;
    let tenant = world.tenant().await;
    let path = format!("/v1/webhooks/apple/{}", tenant.id);
    let long = format!("0.{}", "7".repeat(20_000));
    let (apple, now) = (world.simulator.apple(), world.clock.now().as_millis());
    for (number, part) in [("1e-400000", "exponent"), (&*long, "characters")] {
        // In the part that Apple signed, and beside it.
        let payload = format!(
            r#"{{"notificationType":"TEST","notificationUUID":"1","version":"2.0","signedDate":{now},
                "data":{{"bundleId":"{APP}","environment":"Sandbox","x":{number}}}}}"#
        );
        let signed = apple.sign_text(&payload);
        let inside = format!(r#"{{"signedPayload":"{signed}"}}"#);
        let beside = format!(r#"{{"signedPayload":"x.y.z","x":[{number}]}}"#);
        for body in [&inside, &inside, &beside] {
            let request = client.post(world.url(&path));
            let answer = request.body(body.clone()).send().await.unwrap();
            let status = answer.status();
            let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            assert_eq!(status, 400, "{answer}");
            let message = answer["message"].as_str().unwrap();
            assert!(message.contains(part), "{message}");
        }
    }

    // Pub/Sub would repeat it for a week: it is stored as unknown.
    let token = name_pusher(&world, &tenant).await;
    let data = format!(r#"{{"version":"1.0","packageName":"{APP}","x":1e-400000}}"#);
    let push = json!({ "message": { "messageId": "1", "data": STANDARD.encode(data) } });
    let path = format!("/v1/webhooks/google/{}", tenant.id);
    let stored = world.ask("POST", &path, Some(&token), Some(&push)).await;
    assert_eq!(stored.status, 200, "{}", stored.body);
    let kind: String = sqlx::query_scalar("select event_type from webhook_events")
        .fetch_one(world.database().pool())
        .await
        .unwrap();
    assert_eq!(kind, "unknown");
    world.end().await;
}

/// Names the simulated account that pushes, and returns a token of it.
async fn name_pusher(world: &World, tenant: &Tenant) -> String {
    let play = world.simulator.google();
    let audience = Some("https://push.example");
    world
        .set_google_push(tenant, audience, Some(play.push_account()))
        .await;
    let subscription = PushSubscription {
        manual: true,
        ..PushSubscription::for_endpoint("https://push.example")
    };
    play.set_push_subscription(APP, subscription).unwrap();
    play.push_token(APP, None).unwrap()
}

/// Everyone can have Google sign a token. One that several tenants refused is refused without a query, and the tenant that named
/// its account is not affected.
#[tokio::test]
async fn a_token_that_several_tenants_refused_costs_no_more_queries() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let good = name_pusher(&world, &tenant).await;
    let now = world.clock.now().as_secs();
    let key = world.simulator.identity().google_signing_key();
    let foreign = key.sign_jwt(&json!({
        "iss": "https://accounts.google.com", "aud": "https://push.example", "iat": now, "exp": now + 3600,
        "email": "stranger@project.example", "email_verified": true,
    }));
    let made_up = |number: i64| {
        let tenant = TenantId::mint(Timestamp::from_millis(number));
        format!("/v1/webhooks/google/{tenant}")
    };
    let mut locker = world.database().connect_directly("locker").await.unwrap();
    let lock = "begin; lock table google_credentials in access exclusive mode";
    // The memory is used only while changes are heard, which begins a moment after the start.
    let mut refused_at_once = false;
    for round in 0..50 {
        for number in 0..8 {
            let path = made_up(round * 100 + number);
            let refused = world.ask("POST", &path, Some(&foreign), None).await;
            assert_eq!(refused.status, 401, "{}", refused.body);
        }
        locker.execute(lock).await.unwrap();
        let path = made_up(round * 100 + 50);
        let call = world.ask("POST", &path, Some(&foreign), None);
        let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        let waits = wait_until("a statement waits for the lock", async || {
            let count = sqlx::query_scalar::<_, i64>(waiting);
            count.fetch_one(world.database().pool()).await.unwrap() > 0
        });
        tokio::select! {
            answer = call => {
                assert_eq!(answer.status, 401, "{}", answer.body);
                refused_at_once = true;
            }
            () = waits => {}
        }
        locker.execute("rollback").await.unwrap();
        if refused_at_once {
            break;
        }
    }
    assert!(
        refused_at_once,
        "every push of the token looks its tenant up"
    );

    let push = json!({ "message": { "messageId": "1", "data": "" } });
    let path = format!("/v1/webhooks/google/{}", tenant.id);
    let stored = world.ask("POST", &path, Some(&good), Some(&push)).await;
    assert_eq!(stored.status, 200, "{}", stored.body);
    world.end().await;
}

#[tokio::test]
async fn a_tenants_notifications_have_a_budget_that_no_stranger_spends() {
    let world = World::with(&[
        ("INTAKE_EVENTS_PER_MINUTE", "3"),
        ("METRICS_ADDRESS", "127.0.0.1:0"),
    ])
    .await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let number = std::cell::Cell::new(0);
    let next_body = || {
        number.set(number.get() + 1);
        let payload = json!({
            "notificationType": "TEST",
            "notificationUUID": format!("00000000-0000-4000-8000-{:012}", number.get()),
            "version": "2.0",
            "signedDate": world.clock.now().as_millis(),
            "data": { "appAppleId": APP_APPLE_ID, "bundleId": APP, "environment": "Production" },
        });
        let apple = world.simulator.apple();
        apple.sign_payload(payload.as_object().unwrap())
    };
    let post = async |tenant: &Tenant, signed: String| {
        let path = format!("/v1/webhooks/apple/{}", tenant.id);
        let body = json!({ "signedPayload": signed });
        world.ask("POST", &path, None, Some(&body)).await
    };
    for _ in 0..10 {
        let mut forged = next_body();
        let last = if forged.ends_with('A') { 'Q' } else { 'A' };
        forged.pop();
        forged.push(last);
        assert_eq!(post(&tenant, forged).await.status, 401);
    }
    for _ in 0..3 {
        assert_eq!(post(&tenant, next_body()).await.status, 200);
    }
    let refused = post(&tenant, next_body()).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.body["error"], "RATE_LIMITED");
    assert_eq!(refused.headers["retry-after"], "20");
    assert_eq!(
        post(&other, next_body()).await.status,
        200,
        "it is not shared"
    );
    let series = r#"attesto_requests_refused_total{reason="tenant_intake"}"#;
    assert_eq!(count(&world.metrics().await, series), 1);
    let stored = sqlx::query_scalar::<_, i64>("select count(*) from webhook_events");
    assert_eq!(stored.fetch_one(world.database().pool()).await.unwrap(), 4);

    // Other processes are told, for `attesto doctor`.
    world.send_heartbeat().await;
    let told = "select array_agg(tenant) from replicas, jsonb_object_keys(notices -> 'throttledTenants') tenant";
    let told = sqlx::query_scalar::<_, Vec<String>>(told);
    let told = told.fetch_one(world.database().pool()).await.unwrap();
    assert_eq!(told, [tenant.id.to_string()]);

    world.clock.advance(Duration::from_secs(20));
    assert_eq!(post(&tenant, next_body()).await.status, 200);
    assert_eq!(post(&tenant, next_body()).await.status, 429);
    let id = tenant.id.as_str();
    let words = ["tenant", "set-limits", id, "--intake-events", "600"];
    let shown = world.shell().rows(&words);
    assert_eq!(shown[0]["intakeEventsPerMinute"], 600);
    assert_eq!(shown[0]["intakeMegabytesPerMinute"], Value::Null);
    // The clock stands still, so the time that is left says how large the budget is.
    wait_until("the new budget is known", async || {
        let refused = post(&tenant, next_body()).await;
        assert_eq!(refused.status, 429, "{}", refused.body);
        refused.headers["retry-after"] == "1"
    })
    .await;
    world.clock.advance(Duration::from_millis(100));
    assert_eq!(post(&tenant, next_body()).await.status, 200);
    world.end().await;
}
