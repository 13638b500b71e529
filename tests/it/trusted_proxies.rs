//! The address of a caller behind proxies: in the log lines of refused requests, and in the shares of one client.

use attesto::http::body_budget::BodyBudgetLimits;
use attesto::server::ConnectionLimits;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::level_filters::LevelFilter;

use crate::admission::{HOUR, PATIENT, Server, budget, post_request_with};
use crate::world::attesto::World;
use crate::world::log::Warnings;
use crate::world::shell::Shell;

/// A trusted proxy, and a stranger.
const PROXY: [u8; 4] = [127, 0, 0, 1];
const STRANGER: [u8; 4] = [127, 0, 0, 2];
const TRUSTED: &str = "127.0.0.1,10.0.0.0/8,fd00::/8";

async fn start() -> Server {
    Server::start_behind(TRUSTED, PATIENT, BodyBudgetLimits::default()).await
}

/// What the log says of the last request about its caller.
fn last_caller(log: &Warnings) -> (Value, Value) {
    let line = log.of("http_request").pop().expect("a request was logged");
    let field = |name: &str| line.get(name).cloned().unwrap_or_default();
    (field("clientAddress"), field("claimedAddresses"))
}

#[tokio::test]
async fn a_refused_request_is_logged_with_the_address_of_its_caller() {
    let log = Warnings::listen_at(LevelFilter::INFO);
    let server = start().await;
    for (peer, lines, address) in [
        (STRANGER, "", "127.0.0.2"),
        (STRANGER, "X-Forwarded-For: 192.0.2.1\r\n", "127.0.0.2"),
        (STRANGER, "Forwarded: for=192.0.2.1\r\n", "127.0.0.2"),
        (PROXY, "", "127.0.0.1"),
        (PROXY, "X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1"),
        (PROXY, "x-forwarded-for: 192.0.2.1:4711\r\n", "192.0.2.1"),
        // What a client sends stands on the left.
        (
            PROXY,
            "X-Forwarded-For: 203.0.113.9, 192.0.2.1, 10.0.0.2\r\n",
            "192.0.2.1",
        ),
        (
            PROXY,
            "X-Forwarded-For: 203.0.113.9\r\nAccept: */*\r\nX-Forwarded-For: 192.0.2.1\r\n",
            "192.0.2.1",
        ),
        (
            PROXY,
            "X-Forwarded-For: 2001:db8:1:2:3:4:5:6\r\n",
            "2001:db8:1:2:3:4:5:6",
        ),
        (
            PROXY,
            "Forwarded: for=\"[2001:db8::1]:4711\";proto=https\r\n",
            "2001:db8::1",
        ),
        (
            PROXY,
            "Forwarded: for=203.0.113.9\r\nForwarded: for=192.0.2.1, for=\"[fd00::2]\"\r\n",
            "192.0.2.1",
        ),
        (PROXY, "Forwarded: for=\", for=192.0.2.1\r\n", "192.0.2.1"),
        (
            PROXY,
            "Forwarded: for=192.0.2.1\r\nX-Forwarded-For: 192.0.2.1\r\n",
            "192.0.2.1",
        ),
        // What is no address hides all that is left of it.
        (
            PROXY,
            "X-Forwarded-For: 192.0.2.1, nonsense, 10.0.0.2\r\n",
            "10.0.0.2",
        ),
        (PROXY, "Forwarded: for=unknown\r\n", "127.0.0.1"),
        (PROXY, "Forwarded: for=_hidden\r\n", "127.0.0.1"),
    ] {
        let request =
            format!("GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n");
        let answer = server.ask_from(peer, &request).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let expected = (json!(address), Value::Null);
        assert_eq!(last_caller(&log), expected, "{peer:?} {lines}");
    }
}

/// A proxy that writes only one header passes on what a client sends in the other one.
#[tokio::test]
async fn headers_that_contradict_each_other_are_not_believed_and_both_are_logged() {
    let log = Warnings::listen_at(LevelFilter::INFO);
    let server = start().await;
    let lines = "Forwarded: for=203.0.113.9\r\nX-Forwarded-For: 192.0.2.1\r\n";
    let request = format!("GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n");
    server.ask_from(PROXY, &request).await;
    let expected = (json!("127.0.0.1"), json!("192.0.2.1, 203.0.113.9"));
    assert_eq!(last_caller(&log), expected);
    server.ask_from(STRANGER, &request).await;
    assert_eq!(last_caller(&log), (json!("127.0.0.2"), Value::Null));
}

#[tokio::test]
async fn each_request_of_a_connection_has_its_own_caller_and_only_refused_ones_are_logged_with_it()
{
    let log = Warnings::listen_at(LevelFilter::INFO);
    let server = start().await;
    let ask = |path: &str, client: &str, end: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n{end}\r\n")
    };
    let requests = [
        ask("/nowhere", "192.0.2.1", ""),
        ask("/hello", "192.0.2.2", ""),
        ask("/notify", "192.0.2.3", "Connection: close\r\n"),
    ];
    server.ask_from(PROXY, &requests.concat()).await;
    let lines = log.of("http_request");
    let logged: Vec<_> = lines
        .iter()
        .map(|line| (line["status"].clone(), line.get("clientAddress").cloned()))
        .collect();
    let expected = [
        (json!(404), Some(json!("192.0.2.1"))),
        (json!(200), None),
        (json!(405), Some(json!("192.0.2.3"))),
    ];
    assert_eq!(logged, expected);
}

/// There are no headers to find a client in.
#[tokio::test]
async fn what_is_no_request_is_logged_with_the_other_end_of_its_connection() {
    let log = Warnings::listen_at(LevelFilter::INFO);
    let server = start().await;
    for (peer, address) in [(PROXY, "127.0.0.1"), (STRANGER, "127.0.0.2")] {
        let bad = "GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\nno header\r\n\r\n";
        let answer = server.ask_from(peer, bad).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(last_caller(&log), (json!(address), Value::Null));
    }
}

#[tokio::test]
async fn a_share_of_the_memory_is_a_clients_and_not_the_proxys() {
    // 6,000,000 bytes for strangers, half of them for one client.
    let server = Server::start_behind(TRUSTED, PATIENT, budget(8_000_000, 50)).await;
    let greedy = "X-Forwarded-For: 203.0.113.9, 192.0.2.1\r\n";
    let mut crowd = Vec::new();
    for _ in 0..3 {
        crowd.push(server.send_unfinished_body_from(PROXY, greedy).await);
    }
    server.until_in_hand(3 * 999_999).await;
    let filler = format!("{{\"x\":\"{}\"}}", "y".repeat(20_000));
    for (peer, client, status) in [
        (PROXY, "192.0.2.1", "503"),
        // Names that the client gives itself change nothing.
        (PROXY, "192.0.2.2, 192.0.2.1", "503"),
        (PROXY, "192.0.2.2", "200"),
        (PROXY, "10.0.0.5", "200"),
        (STRANGER, "192.0.2.1", "200"),
    ] {
        let lines = format!("X-Forwarded-For: {client}\r\n");
        let request = post_request_with("/notify", &lines, &filler);
        let answer = server.ask_from(peer, &request).await;
        assert_eq!(&answer[9..12], status, "{client}: {answer}");
    }
    let series = r#"attesto_requests_refused_total{reason="body_memory_of_peer"}"#;
    assert_eq!(server.count(series), 2);

    // Clients of one network of IPv6 have a share together.
    drop(crowd);
    server.until_in_hand(0).await;
    let mut crowd = Vec::new();
    for number in 1..=3 {
        let lines = format!("X-Forwarded-For: 2001:db8::{number}\r\n");
        crowd.push(server.send_unfinished_body_from(PROXY, &lines).await);
    }
    server.until_in_hand(3 * 999_999).await;
    for (client, status) in [("2001:db8::4", "503"), ("2001:db8:0:1::4", "200")] {
        let lines = format!("X-Forwarded-For: {client}\r\n");
        let request = post_request_with("/notify", &lines, &filler);
        let answer = server.ask_from(PROXY, &request).await;
        assert_eq!(&answer[9..12], status, "{client}: {answer}");
    }
}

#[tokio::test]
async fn the_bound_on_connections_of_one_peer_is_not_for_a_trusted_proxy() {
    let limits = ConnectionLimits {
        max_connections_per_peer: 1,
        ..PATIENT
    };
    let server = Server::start_behind(TRUSTED, limits, BodyBudgetLimits::default()).await;
    let series = r#"attesto_requests_refused_total{reason="silent_connection"}"#;
    let request = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n";
    for (peer, closed) in [(PROXY, 0), (STRANGER, 2)] {
        let mut connections = Vec::new();
        for _ in 0..3 {
            let mut stream = server.connect_from(peer).await;
            stream.write_all(request).await.unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
            connections.push(stream);
        }
        assert_eq!(server.count(series), closed, "{peer:?}");
    }
}

/// Held open without being read, it would swallow the next request that the proxy sends on it.
#[tokio::test]
async fn a_trusted_proxys_connection_that_loses_its_place_is_closed_at_once() {
    let limits = ConnectionLimits {
        max_connections: 1,
        max_held_connections: 1,
        hold_timeout: HOUR,
        ..PATIENT
    };
    let server = Server::start_behind(TRUSTED, limits, BodyBudgetLimits::default()).await;
    let mut silent = server.connect_from(PROXY).await;
    silent.write_all(b"GET /hello HT").await.unwrap();
    let _newer = server.connect_from(STRANGER).await;
    let ended = silent.read(&mut [0]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

/// The setting reaches the server.
#[tokio::test]
async fn a_request_without_a_key_is_logged_with_the_client_of_the_configured_proxy() {
    let log = Warnings::listen_at(LevelFilter::INFO);
    let world = World::with(&[("ATTESTO_TRUSTED_PROXIES", " 127.0.0.1 , ::1 ")]).await;
    let client = attesto::outbound::build_http_client().expect("a client can be made");
    let request = client.post(world.url("/v1/apple/verify"));
    let request = request.header("x-forwarded-for", "203.0.113.9, 192.0.2.1");
    assert_eq!(request.send().await.unwrap().status(), 401);
    assert_eq!(last_caller(&log), (json!("192.0.2.1"), Value::Null));
    world.end().await;
}

#[test]
fn a_bad_list_of_proxies_is_refused_without_being_repeated() {
    let check = |list: &str| {
        let shell = Shell::default()
            .set("DATABASE_URL", "postgres://a@localhost/b")
            .set("ATTESTO_ENCRYPTION_KEY", &crate::serve::key(7))
            .set("ATTESTO_TRUSTED_PROXIES", list);
        shell.run(&["config", "check"])
    };
    let bad = check("10.0.0.1,secret.example,10.1.2.3/8,0.0.0.0/0");
    assert_eq!(bad.exit, 2, "{bad:?}");
    for problem in [
        "ATTESTO_TRUSTED_PROXIES: entry 2 must be an IP address",
        "ATTESTO_TRUSTED_PROXIES: entry 3 is a network whose address has more bits",
        "ATTESTO_TRUSTED_PROXIES: entry 4 contains every address",
    ] {
        assert!(bad.complained.contains(problem), "{bad:?}");
    }
    bad.assert_hides("secret.example");
    let good = check("10.0.0.1,fd00::/8");
    assert_eq!(good.exit, 0, "{good:?}");
    let lines = good.lines();
    let shown = lines
        .iter()
        .find(|row| row["name"] == "ATTESTO_TRUSTED_PROXIES");
    assert_eq!(shown.unwrap()["value"], "10.0.0.1,fd00::/8");
}
