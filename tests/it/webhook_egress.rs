//! Hostile receivers: what a callback can do to Attesto, and what connections it can cause.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::{CallbackNumber, DeliveryId, EventId, TenantId};
use attesto::deliveries::endpoint::{CallbackKind, SigningSecret, SigningSecrets, WebhookEndpoint};
use attesto::deliveries::sender::{ProbeOutcome, TlsTrust};
use attesto::deliveries::{
    AttemptOutcome, DeliveryJob, OutcomeClass, Sender, SenderSettings, signature,
};
use attesto::egress::{AllowList, EgressPolicy, LookupError, Resolver};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::world::receiver::{Manner, Place, Receiver, Wire, certificate, say};
use crate::world::wait::{self, HANG_LIMIT, finished};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// The timeout of an attempt that is to end by it. What the receiver sends before it stops must arrive within it.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The address of the allowed receivers; a name that changes to 127.0.0.1 points to a refused one.
const GOOD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const BAD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(crate) fn now() -> Timestamp {
    Timestamp::parse("2026-04-10T14:22:10.000Z").unwrap()
}

fn sender_with(
    timeout: Duration,
    guard: EgressPolicy,
    resolver: Resolver,
    trust: TlsTrust,
) -> Sender {
    let settings = SenderSettings {
        resolver,
        tls_trust: trust,
        ..SenderSettings::new(timeout, guard)
    };
    Sender::new(settings, &Clock::fixed(now())).unwrap()
}

/// A sender that may connect to this machine, without DNS.
fn local_sender(timeout: Duration) -> Sender {
    let trust = TlsTrust::OnlyRoots(rustls::RootCertStore::empty());
    sender_with(timeout, EgressPolicy::new(true), no_dns(), trust)
}

fn no_dns() -> Resolver {
    Resolver::from_fn(|_| async { Err(LookupError::NoAddress) }.boxed())
}

fn secret(letter: &str) -> SigningSecret {
    SigningSecret::parse(&letter.repeat(40)).unwrap()
}

/// A job and its endpoint.
#[derive(Clone)]
pub(crate) struct Attempt {
    pub(crate) job: DeliveryJob,
    pub(crate) endpoint: WebhookEndpoint,
}

impl Attempt {
    pub(crate) async fn send(&self, sender: &Sender) -> AttemptOutcome {
        sender.send(&self.job, &self.endpoint).await
    }

    fn to_url(&self, url: String) -> Self {
        let mut attempt = self.clone();
        attempt.job.callback_url = url;
        attempt
    }
}

pub(crate) fn attempt(url: &str) -> Attempt {
    Attempt {
        job: DeliveryJob {
            id: DeliveryId::mint(now()),
            event_id: EventId::mint(now()),
            tenant_id: TenantId::mint(now()),
            callback: CallbackNumber::FIRST,
            event_type: "subscription.renewed".into(),
            attempt_number: 3,
            callback_url: url.into(),
            body: "{\"grüße\":123456789012345678901234567890,\"a\" : 1}".into(),
        },
        endpoint: WebhookEndpoint {
            secrets: SigningSecrets::from(secret("n")),
            kind: CallbackKind::Events,
            allow_list: AllowList::default(),
            client_certificate: None,
        },
    }
}

#[tokio::test]
async fn a_delivery_has_the_documented_headers_and_body() {
    let receiver = Receiver::answering(OK).await;
    let mut attempt = attempt(&format!("{}?key=1", receiver.url()));
    attempt.endpoint.secrets = SigningSecrets {
        newest: secret("n"),
        previous: vec![secret("p")],
    };
    let sender = local_sender(HANG_LIMIT);
    for number in 1..=2 {
        attempt.job.attempt_number = number;
        assert_eq!(
            attempt.send(&sender).await,
            AttemptOutcome::Delivered {
                code: 200,
                excerpt: Some("ok".into())
            }
        );
    }
    let requests = receiver.requests();
    assert_eq!(receiver.connections(), 1, "the connection is used again");
    let signed = signature::sign_delivery(
        &attempt.endpoint.secrets,
        attempt.job.event_id.as_str(),
        now().as_secs(),
        &attempt.job.body,
    );
    let version = env!("CARGO_PKG_VERSION");
    for (request, number) in requests.iter().zip(1..) {
        assert_eq!(request.request_line, "POST /hook?key=1 HTTP/1.1");
        assert_eq!(request.body, attempt.job.body, "byte for byte");
        for (name, value) in [
            ("host", receiver.address.to_string()),
            ("content-type", "application/json".into()),
            ("user-agent", format!("Attesto/{version}")),
            ("x-attesto-event", "subscription.renewed".into()),
            ("x-attesto-event-id", attempt.job.event_id.to_string()),
            ("x-attesto-delivery-id", attempt.job.id.to_string()),
            ("x-attesto-attempt", number.to_string()),
            ("x-attesto-timestamp", "1775830930".into()),
            ("x-attesto-version", version.into()),
            ("x-attesto-signature", signed.attesto.clone()),
            ("webhook-id", attempt.job.event_id.to_string()),
            ("webhook-timestamp", "1775830930".into()),
            ("webhook-signature", signed.standard.clone()),
            ("content-length", attempt.job.body.len().to_string()),
        ] {
            assert_eq!(request.headers.get(name), Some(&value), "{name}");
        }
        assert_eq!(request.headers.len(), 14, "{:?}", request.headers.keys());
    }
}

/// One kind of hostile receiver.
struct Hostile {
    name: &'static str,
    manner: Arc<Manner>,
    resets: bool,
    class: OutcomeClass,
    code: Option<u16>,
}

fn hostile(
    name: &'static str,
    class: OutcomeClass,
    code: impl Into<Option<u16>>,
    manner: impl Fn(Box<dyn Wire>) -> BoxFuture<'static, Option<Box<dyn Wire>>> + Send + Sync + 'static,
) -> Hostile {
    Hostile {
        name,
        manner: Arc::new(manner),
        resets: false,
        class,
        code: code.into(),
    }
}

/// Sends a beginning, then repeats another text endlessly.
fn endlessly(
    first: &'static [u8],
    then: &'static [u8],
    pause: Duration,
) -> impl Fn(Box<dyn Wire>) -> BoxFuture<'static, Option<Box<dyn Wire>>> + Send + Sync {
    move |mut wire| {
        Box::pin(async move {
            wire.write_all(first).await.ok()?;
            while wire.write_all(then).await.is_ok() {
                if pause.is_zero() {
                    tokio::task::yield_now().await;
                } else {
                    wait::pause(pause).await;
                }
            }
            None
        })
    }
}

/// Sends a text and closes the connection.
fn and_leave(
    answer: impl Into<Vec<u8>>,
) -> impl Fn(Box<dyn Wire>) -> BoxFuture<'static, Option<Box<dyn Wire>>> + Send + Sync {
    let answer: Arc<[u8]> = answer.into().into();
    move |mut wire| {
        let answer = answer.clone();
        Box::pin(async move {
            wire.write_all(&answer).await.ok()?;
            // Reads on until the other side closes too: a reset could arrive before the text.
            wire.shutdown().await.ok()?;
            let _ = tokio::io::copy(&mut wire, &mut tokio::io::sink()).await;
            None
        })
    }
}

const DRIP: Duration = Duration::from_millis(100);
const AT_ONCE: Duration = Duration::ZERO;
static ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];

fn hostiles() -> Vec<Hostile> {
    [slow(), large(), broken(), odd()]
        .into_iter()
        .flatten()
        .collect()
}

fn slow() -> Vec<Hostile> {
    use OutcomeClass::{Http5xx, Timeout};

    let silent = |wire| -> BoxFuture<'static, Option<Box<dyn Wire>>> {
        Box::pin(async move {
            let _open: Box<dyn Wire> = wire;
            std::future::pending().await
        })
    };
    let head = endlessly(b"HTTP/1.1 200 OK\r\n", b"X", DRIP);
    let nothing = endlessly(
        b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n",
        b"",
        DRIP,
    );
    let body = endlessly(
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"x",
        DRIP,
    );
    let refusal = endlessly(
        b"HTTP/1.1 503 Busy\r\nContent-Length: 100000\r\n\r\n",
        b"x",
        DRIP,
    );
    let chunks = endlessly(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
        DRIP,
    );
    let hints = endlessly(b"", b"HTTP/1.1 102 Processing\r\n\r\n", DRIP);
    vec![
        hostile("silent", Timeout, None, silent),
        hostile("a head that drips", Timeout, None, head),
        hostile("a body that drips", Timeout, 200, body),
        hostile("chunks that drip", Timeout, 200, chunks),
        hostile("100 MB promised and none sent", Timeout, 200, nothing),
        hostile("1xx for ever, slowly", Timeout, None, hints),
        hostile("a refusal that drips", Http5xx, 503, refusal),
    ]
}

fn large() -> Vec<Hostile> {
    use OutcomeClass::{BodyLimit, Connect, Success};

    let mut long_line = b"HTTP/1.1 200 OK\r\nX-Long: ".to_vec();
    long_line.resize(64 * 1024, b'a');
    long_line.extend_from_slice(b"\r\n\r\n");
    let mut many_headers = b"HTTP/1.1 200 OK\r\n".to_vec();
    for number in 0..10_000 {
        many_headers.extend_from_slice(format!("X-{number}: 1\r\n").as_bytes());
    }
    many_headers.extend_from_slice(b"\r\n");
    let endless = endlessly(b"HTTP/1.1 200 OK\r\n\r\n", &ZEROS, AT_ONCE);
    let promised = endlessly(
        b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n",
        &ZEROS,
        AT_ONCE,
    );
    // The decompressed size does not matter: nothing is decompressed.
    let gzip = endlessly(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08",
        &ZEROS,
        AT_ONCE,
    );
    let hints = endlessly(
        b"",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        AT_ONCE,
    );
    let extension = endlessly(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        &[b'a'; 1024],
        AT_ONCE,
    );
    let trailers = endlessly(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X-A: 1\r\n",
        AT_ONCE,
    );
    vec![
        hostile("endless", Success, 200, endless),
        hostile("100 MB", Success, 200, promised),
        hostile("a gzip bomb", Success, 200, gzip),
        hostile(
            "a header line of 64 kB",
            BodyLimit,
            None,
            and_leave(long_line),
        ),
        hostile("10,000 headers", BodyLimit, None, and_leave(many_headers)),
        hostile("1xx for ever", BodyLimit, None, hints),
        hostile("an endless chunk extension", Connect, 200, extension),
        hostile("endless trailers", Connect, 200, trailers),
    ]
}

fn broken() -> Vec<Hostile> {
    use OutcomeClass::{Connect, Success};

    let resets = [
        ("a reset before the answer", None, ""),
        ("a reset in the head", None, "HTTP/1.1 200 OK\r\nX-A: "),
        (
            "a reset in the body",
            Some(200),
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        ),
    ];
    let resets = resets.map(|(name, code, said)| Hostile {
        resets: true,
        ..hostile(name, Connect, code, and_leave(said))
    });
    let ends = [
        ("hangs up", Connect, None, ""),
        (
            "more promised than sent",
            Connect,
            Some(200),
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        ),
        (
            "more sent than promised",
            Success,
            Some(200),
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc",
        ),
        (
            "two lengths",
            Connect,
            None,
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        ),
        ("garbage", Connect, None, "\x16\x03\x01 garbage\r\n\r\n\r\n"),
        ("an older HTTP", Connect, None, "<html>ok</html>"),
        ("another protocol", Connect, None, "SSH-2.0-OpenSSH_9.2\r\n"),
    ];
    let ends = ends.map(|(name, class, code, said)| hostile(name, class, code, and_leave(said)));
    resets.into_iter().chain(ends).collect()
}

fn odd() -> Vec<Hostile> {
    use OutcomeClass::{Http3xx, Http4xx, Http5xx, Success};

    let switching =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
    let not_utf8 = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\0\xc3\x28";
    let own = b"HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n";
    let gone = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n";
    vec![
        hostile("switching protocols", Http5xx, 101, say(switching)),
        hostile("a status of its own", Http5xx, 799, say(own)),
        hostile("gone", Http4xx, 410, say(gone)),
        hostile("not UTF-8", Success, 200, say(not_utf8)),
        hostile(
            "no content",
            Success,
            204,
            say(b"HTTP/1.1 204 No Content\r\n\r\n"),
        ),
        hostile(
            "not modified",
            Http3xx,
            304,
            say(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        ),
        // Malformed header lines. The length behind them counts: the connection stays open.
        hostile(
            "a header line without a colon",
            Success,
            200,
            say(b"HTTP/1.1 200 OK\r\nnot a header\r\nContent-Length: 2\r\n\r\nok"),
        ),
        hostile(
            "a header name with blanks",
            Success,
            200,
            say(b"HTTP/1.1 200 OK\r\nX Powered By: x\r\nContent-Length: 2\r\n\r\nok"),
        ),
        hostile(
            "a header name that is not ASCII",
            Success,
            200,
            say("HTTP/1.1 200 OK\r\nGrüße: x\r\nContent-Length: 2\r\n\r\nok".as_bytes()),
        ),
        hostile(
            "a control character in a header",
            Success,
            200,
            say(b"HTTP/1.1 200 OK\r\nX-A: \x01\r\nContent-Length: 2\r\n\r\nok"),
        ),
        hostile(
            "a folded header line",
            Success,
            200,
            say(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n  2\r\nContent-Length: 2\r\n\r\nok"),
        ),
        hostile(
            "a blank before the colon",
            Success,
            200,
            say(b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"),
        ),
    ]
}

/// Sends to each of them, `copies` times concurrently. Only attempts at [`slow`] receivers, which end by their timeout, have
/// a short one.
async fn endure(timeout: Duration, copies: usize) {
    let (brief, patient) = (local_sender(timeout), local_sender(HANG_LIMIT));
    let with_senders = [
        (slow(), &brief),
        (large(), &patient),
        (broken(), &patient),
        (odd(), &patient),
    ];
    let each = with_senders
        .iter()
        .flat_map(|(hostiles, sender)| hostiles.iter().map(move |hostile| (hostile, *sender)));
    let all = join_all(each.map(async |(hostile, sender)| {
        let place = Place {
            resets: hostile.resets,
            ..Place::loopback()
        };
        let receiver = Receiver::new(place, hostile.manner.clone()).await;
        let attempt = attempt(&receiver.url());
        let sent = join_all((0..copies).map(async |_| {
            let name = hostile.name;
            let outcome = finished(name, attempt.send(sender)).await;
            assert_eq!(
                (outcome.class(), outcome.status_code()),
                (hostile.class, hostile.code),
                "{name}: {outcome:?}"
            );
            let excerpt = outcome.body_excerpt().unwrap_or_default();
            assert!(excerpt.len() <= 1024 && !excerpt.contains('\0'), "{name}");
            if name == "not UTF-8" {
                assert_eq!(excerpt, "\u{fffd}\u{fffd}(");
            }
        }));
        sent.await;
    }));
    all.await;
}

#[tokio::test]
async fn an_attempt_ends_in_time_whatever_the_receiver_does() {
    endure(TIMEOUT, 1).await;
}

/// In a separate process, so that other tests do not allocate memory.
#[tokio::test]
async fn two_hundred_hostile_receivers_cost_no_memory() {
    let output = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "webhook_egress::memory",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
}

#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn memory() {
    // Many attempts in one thread, beside other tests.
    const TIMEOUT: Duration = Duration::from_secs(5);
    // The constant part: code, buffers of the runtime and of the allocator.
    endure(TIMEOUT, 2).await;
    let before = resident();
    let copies = 200 / hostiles().len() + 1;
    let watched = AtomicUsize::new(0);
    let watch = async {
        loop {
            watched.fetch_max(resident(), Ordering::Relaxed);
            wait::pause(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = endure(TIMEOUT, copies) => {}
        () = watch => {}
    }
    let grown = watched.load(Ordering::Relaxed).saturating_sub(before);
    println!("grown by {} KiB", grown / 1024);
    assert!(grown < 8 * 1024 * 1024, "grown by {} KiB", grown / 1024);
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    kilobytes.unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn refused_and_unaccepted_connections_are_distinguished() {
    let closed = TcpListener::bind((BAD, 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let outcome = attempt(&format!("http://{closed}/"))
        .send(&local_sender(HANG_LIMIT))
        .await;
    assert_eq!(outcome.class(), OutcomeClass::Connect, "{outcome:?}");
    let deaf = TcpListener::bind((BAD, 0)).await.unwrap();
    let url = format!("http://{}/", deaf.local_addr().unwrap());
    let outcome = attempt(&url).send(&local_sender(TIMEOUT)).await;
    assert_eq!(outcome.class(), OutcomeClass::Timeout, "{outcome:?}");
}

#[tokio::test]
async fn one_address_that_answers_is_enough() {
    let receiver = Receiver::answering(OK).await;
    let url = format!("http://hooks.example.com:{}/", receiver.address.port());
    let without_listener: IpAddr = "127.0.0.3".parse().unwrap();
    let sender = sender_with(
        HANG_LIMIT,
        EgressPolicy::new(true),
        flipping(vec![vec![without_listener, receiver.address.ip()]]),
        TlsTrust::OnlyRoots(rustls::RootCertStore::empty()),
    );
    let outcome = attempt(&url).send(&sender).await;
    assert_eq!(outcome.class(), OutcomeClass::Success, "{outcome:?}");
}

#[tokio::test]
async fn a_large_event_is_sent_whole() {
    let receiver = Receiver::answering(OK).await;
    let mut large = attempt(&receiver.url());
    large.job.body = (0..3_000_000_u32)
        .map(|at| b'a' + u8::try_from(at % 26).unwrap())
        .collect::<Vec<_>>()
        .into();
    let outcome = large.send(&local_sender(HANG_LIMIT)).await;
    assert_eq!(outcome.class(), OutcomeClass::Success, "{outcome:?}");
    assert!(receiver.requests()[0].body == large.job.body);
}

#[tokio::test]
async fn a_closed_keep_alive_connection_is_replaced_without_an_attempt() {
    // Answers once on each connection, promises keep-alive, and closes it.
    let receiver = Receiver::new(Place::loopback(), Arc::new(and_leave(OK))).await;
    let sender = local_sender(HANG_LIMIT);
    for count in 1..=3 {
        let outcome = attempt(&receiver.url()).send(&sender).await;
        assert_eq!(outcome.class(), OutcomeClass::Success, "{outcome:?}");
        assert_eq!(receiver.connections(), count);
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Receiver::answering(OK).await;
    for (code, location) in [
        (301, elsewhere.url()),
        (302, "file:///etc/passwd".into()),
        (303, elsewhere.url()),
        (307, format!("//{}/", elsewhere.address)),
        (308, elsewhere.url()),
    ] {
        let answer =
            format!("HTTP/1.1 {code} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        let receiver = Receiver::new(Place::loopback(), Arc::new(and_leave(answer))).await;
        let outcome = attempt(&receiver.url())
            .send(&local_sender(HANG_LIMIT))
            .await;
        assert_eq!(
            (outcome.class(), outcome.status_code()),
            (OutcomeClass::Http3xx, Some(code))
        );
        assert_eq!(receiver.connections(), 1);
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn retry_after_is_reported() {
    for (header, expected) in [
        ("Retry-After: 5", Some(5)),
        ("Retry-After: Fri, 10 Apr 2026 14:23:10 GMT", Some(60)),
        ("Retry-After: Fri, 10 Apr 2026 14:21:10 GMT", None),
        ("Retry-After: -1", None),
        ("Retry-After: 1e99", None),
        ("Retry-After: soon", None),
        ("X-Nothing: 1", None),
    ] {
        let answer = format!("HTTP/1.1 429 Slow\r\n{header}\r\nContent-Length: 0\r\n\r\n");
        let receiver = Receiver::new(Place::loopback(), Arc::new(and_leave(answer))).await;
        let outcome = attempt(&receiver.url())
            .send(&local_sender(HANG_LIMIT))
            .await;
        let AttemptOutcome::Refused { retry_after, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(retry_after, expected.map(Duration::from_secs), "{header}");
    }
}

/// Receivers at the same port of an allowed and of a refused address, and a strict sender that may
/// connect only to the allowed one.
struct Trap {
    good: Receiver,
    bad: Receiver,
    roots: rustls::RootCertStore,
    allowed: AllowList,
}

impl Trap {
    async fn set() -> Self {
        let (tls, roots) = certificate(&["hooks.example.com", "127.0.0.2"]);
        let place = Place::at(GOOD, 0).with_tls(tls.clone());
        let good = Receiver::new(place, Arc::new(say(OK))).await;
        let port = good.address.port();
        let place = Place::at(BAD, port).with_tls(tls);
        let bad = Receiver::new(place, Arc::new(say(OK))).await;
        let opening = format!("{GOOD}:{port}").parse().unwrap();
        Self {
            good,
            bad,
            roots,
            allowed: AllowList::new(vec![opening]),
        }
    }

    fn sender(&self, resolver: Resolver) -> Sender {
        self.sender_with(HANG_LIMIT, resolver)
    }

    fn sender_with(&self, timeout: Duration, resolver: Resolver) -> Sender {
        sender_with(
            timeout,
            EgressPolicy::new(false),
            resolver,
            TlsTrust::OnlyRoots(self.roots.clone()),
        )
    }

    fn attempt(&self) -> Attempt {
        let port = self.good.address.port();
        let mut attempt = attempt(&format!("https://hooks.example.com:{port}/hook"));
        attempt.endpoint.allow_list = self.allowed.clone();
        attempt
    }
}

#[tokio::test]
async fn a_probe_completes_the_handshake_and_sends_nothing() {
    let trap = Trap::set().await;
    let attempt = trap.attempt();
    let sender = trap.sender(flipping(vec![vec![GOOD]]));
    let probe = sender
        .probe_callback(&attempt.job.callback_url, &trap.allowed, None)
        .await;
    let ProbeOutcome::Reachable {
        certificate_ends_at: Some(end),
    } = probe
    else {
        panic!("{probe:?}");
    };
    assert!(end > now());
    trap.good.until_all_disconnected().await;
    assert_eq!(
        (trap.good.connections(), trap.good.requests().len()),
        (1, 0)
    );

    let class = |probe: ProbeOutcome| match probe {
        ProbeOutcome::Unreachable { class, detail } => {
            assert!(!detail.contains("/hook"), "{detail}");
            class
        }
        probe => panic!("{probe:?}"),
    };
    for (resolver, expected) in [
        (flipping(vec![vec![BAD]]), OutcomeClass::Blocked),
        (flipping(vec![vec![GOOD, BAD]]), OutcomeClass::Blocked),
        (no_dns(), OutcomeClass::Dns),
    ] {
        let sender = trap.sender(resolver);
        let probe = sender
            .probe_callback(&attempt.job.callback_url, &trap.allowed, None)
            .await;
        assert_eq!(class(probe), expected);
    }
    let suspicious = sender_with(
        HANG_LIMIT,
        EgressPolicy::new(false),
        flipping(vec![vec![GOOD]]),
        TlsTrust::OnlyRoots(rustls::RootCertStore::empty()),
    );
    assert_eq!(
        class(
            suspicious
                .probe_callback(&attempt.job.callback_url, &trap.allowed, None)
                .await
        ),
        OutcomeClass::Tls
    );
    assert_eq!(trap.bad.connections(), 0);
    let ours = Resolver::from_fn(|_| async { Err(LookupError::ResolverUnavailable) }.boxed());
    let probe = trap
        .sender(ours)
        .probe_callback(&attempt.job.callback_url, &trap.allowed, None)
        .await;
    assert_eq!(
        probe,
        ProbeOutcome::Unknown,
        "nothing is known of the callback"
    );
}

/// A name that resolves to these addresses, one after the other, endlessly.
fn flipping(answers: Vec<Vec<IpAddr>>) -> Resolver {
    let asked = Arc::new(AtomicUsize::new(0));
    Resolver::from_fn(move |_| {
        let turn = asked.fetch_add(1, Ordering::SeqCst);
        let answer = answers[turn % answers.len()].clone();
        async move { Ok(answer) }.boxed()
    })
}

#[tokio::test]
async fn dns_rebinding_never_reaches_a_refused_address() {
    let trap = Trap::set().await;
    let sender = trap.sender(flipping(vec![vec![GOOD], vec![BAD]]));
    let attempt = trap.attempt();
    // Ten thousand lookups, a thousand of them by concurrent attempts.
    let guard = EgressPolicy::new(false);
    let target = guard
        .parse_target(&attempt.job.callback_url, &attempt.endpoint.allow_list)
        .unwrap();
    let names = flipping(vec![
        vec![GOOD],
        vec![BAD],
        vec![GOOD, BAD],
        vec![BAD, GOOD],
    ]);
    for turn in 0..9_000 {
        let vetted = guard
            .resolve_and_check(&target, &attempt.endpoint.allow_list, &names, HANG_LIMIT)
            .await;
        match vetted {
            Ok(vetted) => assert!(vetted.addresses.iter().all(|one| one.ip() == GOOD)),
            Err(_) => assert_ne!(turn % 4, 0),
        }
    }
    let (mut delivered, mut blocked) = (0, 0);
    for _ in 0..10 {
        let sent = join_all((0..100).map(|_| attempt.send(&sender))).await;
        for outcome in sent {
            match outcome.class() {
                OutcomeClass::Success => delivered += 1,
                OutcomeClass::Blocked => blocked += 1,
                _ => panic!("{outcome:?}"),
            }
        }
    }
    assert_eq!((delivered, blocked), (500, 500));
    assert_eq!(trap.bad.connections(), 0);
    assert!(trap.good.connections() > 0);
}

#[tokio::test]
async fn a_keep_alive_connection_is_not_reused_after_dns_changes() {
    let trap = Trap::set().await;
    let names = flipping(vec![vec![GOOD], vec![GOOD], vec![BAD], vec![GOOD]]);
    let sender = trap.sender(names);
    let attempt = trap.attempt();
    let mut classes = [OutcomeClass::LeaseLost; 4];
    for class in &mut classes {
        *class = attempt.send(&sender).await.class();
    }
    let words = classes.map(OutcomeClass::as_str);
    assert_eq!(words, ["success", "success", "blocked", "success"]);
    assert_eq!(trap.good.requests().len(), 3);
    assert_eq!(trap.bad.connections(), 0);
}

#[tokio::test]
async fn an_idle_keep_alive_connection_is_closed() {
    let receiver = Receiver::answering(OK).await;
    let settings = SenderSettings {
        idle_timeout: Duration::from_millis(20),
        ..SenderSettings::new(HANG_LIMIT, EgressPolicy::new(true))
    };
    assert!(
        SenderSettings::new(HANG_LIMIT, EgressPolicy::new(true)).idle_timeout
            < Duration::from_secs(30)
    );
    let sender = Sender::new(settings, &Clock::fixed(now())).unwrap();
    assert_eq!(
        attempt(&receiver.url()).send(&sender).await.class(),
        OutcomeClass::Success
    );
    receiver.until_all_disconnected().await;
    drop(sender);
}

#[tokio::test]
async fn unusual_dns_answers() {
    let trap = Trap::set().await;
    let attempt = trap.attempt();
    let public: IpAddr = "93.184.216.34".parse().unwrap();
    let sent = async |answer: Result<Vec<IpAddr>, LookupError>| {
        let resolver = Resolver::from_fn(move |_| std::future::ready(answer.clone()).boxed());
        attempt.send(&trap.sender(resolver)).await
    };
    let thousand: Vec<IpAddr> = (0..1000).map(|_| GOOD).chain([BAD]).collect();
    for (answer, class) in [
        (Ok(vec![public, BAD]), OutcomeClass::Blocked),
        (Ok(vec![GOOD, BAD]), OutcomeClass::Blocked),
        (Ok(thousand), OutcomeClass::Blocked),
        (Ok(vec![GOOD; 1000]), OutcomeClass::Success),
        (Ok(vec![]), OutcomeClass::Dns),
        (Err(LookupError::NoAddress), OutcomeClass::Dns),
    ] {
        let outcome = sent(answer).await;
        assert_eq!(outcome.class(), class, "{outcome:?}");
        assert!(!matches!(outcome, AttemptOutcome::NotAttempted { .. }));
    }
    // The DNS server does not answer: that is not the callback's fault.
    let silent = Resolver::from_fn(|_| std::future::pending().boxed());
    for outcome in [
        sent(Err(LookupError::ResolverUnavailable)).await,
        attempt.send(&trap.sender_with(TIMEOUT, silent)).await,
    ] {
        assert!(
            matches!(outcome, AttemptOutcome::NotAttempted { .. }),
            "{outcome:?}"
        );
    }
    assert_eq!(trap.bad.connections(), 0);
}

#[tokio::test]
async fn no_spelling_of_a_local_address_is_connected_to() {
    let trap = Trap::set().await;
    let port = trap.bad.address.port();
    let sender = trap.sender(flipping(vec![vec![BAD]]));
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "１２７.0.0.1",
        "0.0.0.0",
        "0",
        "[::]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[fe80::5efe:127.0.0.1]",
        "[fe80::1%25lo]",
        "localhost",
        "localhost.",
        "user@127.0.0.1",
        "example.com@127.0.0.1",
        "metadata.google.internal",
        "169.254.169.254",
        "hooks.example.com",
    ] {
        let mut attempt = attempt(&format!("https://{host}:{port}/"));
        // Another network is allowed for one tenant, which changes nothing.
        for allowed in [AllowList::default(), trap.allowed.clone()] {
            attempt.endpoint.allow_list = allowed;
            let outcome = attempt.send(&sender).await;
            assert_eq!(
                outcome.class(),
                OutcomeClass::Blocked,
                "{host}: {outcome:?}"
            );
        }
    }
    assert_eq!(trap.bad.connections(), 0);
}

#[tokio::test]
async fn a_network_allowed_for_one_tenant_stays_closed_for_others() {
    let trap = Trap::set().await;
    let sender = trap.sender(flipping(vec![vec![GOOD]]));
    let allowed = trap.attempt();
    assert_eq!(
        allowed.send(&sender).await,
        AttemptOutcome::Delivered {
            code: 200,
            excerpt: None
        },
        "what an inner network answers is not kept"
    );
    // Also while a keep-alive connection is idle.
    let mut other = allowed.clone();
    other.endpoint.allow_list = AllowList::default();
    let outcome = other.send(&sender).await;
    assert_eq!(outcome.class(), OutcomeClass::Blocked, "{outcome:?}");
    let literal = allowed.to_url(format!("https://{GOOD}:{}/", trap.good.address.port()));
    assert_eq!(literal.send(&sender).await.class(), OutcomeClass::Success);
    let another_port = allowed.to_url(format!("https://{GOOD}:1/"));
    assert_eq!(
        another_port.send(&sender).await.class(),
        OutcomeClass::Blocked
    );
    let plain = allowed.to_url(format!(
        "http://hooks.example.com:{}/",
        trap.good.address.port()
    ));
    assert_eq!(plain.send(&sender).await.class(), OutcomeClass::Blocked);
}

#[tokio::test]
async fn certificates_are_verified() {
    let (ours, roots) = certificate(&["hooks.example.com"]);
    let (stranger, _) = certificate(&["hooks.example.com"]);
    let (misnamed, misnamed_roots) = certificate(&["other.example.com"]);
    for (tls, roots, expected) in [
        (Some(ours), roots.clone(), None),
        (
            Some(stranger),
            roots.clone(),
            Some("the certificate of hooks.example.com is self-signed"),
        ),
        (
            Some(misnamed),
            misnamed_roots,
            Some("is for other.example.com and not for"),
        ),
        (None, roots, Some("answers in plain text")),
    ] {
        let place = Place {
            tls,
            ..Place::at(GOOD, 0)
        };
        // A peer without TLS, whatever it sends.
        let place_is_plain = place.tls.is_none();
        let receiver = if place_is_plain {
            let listener = TcpListener::bind((GOOD, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let _ = stream.write_all(OK).await;
                }
            });
            (address, None)
        } else {
            let receiver = Receiver::new(place, Arc::new(say(OK))).await;
            (receiver.address, Some(receiver))
        };
        let sender = sender_with(
            HANG_LIMIT,
            EgressPolicy::new(true),
            flipping(vec![vec![GOOD]]),
            TlsTrust::OnlyRoots(roots),
        );
        let url = format!("https://hooks.example.com:{}/", receiver.0.port());
        let outcome = attempt(&url).send(&sender).await;
        match expected {
            None => assert_eq!(outcome.class(), OutcomeClass::Success, "{outcome:?}"),
            Some(words) => {
                let AttemptOutcome::Refused { class, detail, .. } = outcome else {
                    panic!("{outcome:?}");
                };
                assert_eq!(class, OutcomeClass::Tls, "{detail}");
                assert!(detail.contains(words), "{detail}");
            }
        }
    }
}

#[tokio::test]
async fn a_receiver_that_asks_for_a_client_certificate_is_a_problem_of_tls() {
    let (roots, config) = server_with_client_certificates("hooks.example.com");
    let place = Place::at(GOOD, 0).with_tls(TlsAcceptor::from(Arc::new(config)));
    let receiver = Receiver::new(place, Arc::new(say(OK))).await;
    let sender = sender_with(
        HANG_LIMIT,
        EgressPolicy::new(true),
        flipping(vec![vec![GOOD]]),
        TlsTrust::OnlyRoots(roots),
    );
    let url = format!("https://hooks.example.com:{}/", receiver.address.port());
    // The refusal arrives before the request is sent, or after.
    for _ in 0..20 {
        let outcome = attempt(&url).send(&sender).await;
        let AttemptOutcome::Refused { class, detail, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(class, OutcomeClass::Tls, "{detail}");
        assert!(detail.contains("client certificate"), "{detail}");
    }
    assert!(receiver.requests().is_empty());
}

/// A server that accepts clients with its own certificate only.
fn server_with_client_certificates(name: &str) -> (RootCertStore, ServerConfig) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = Arc::new(roots.clone());
    let clients = WebPkiClientVerifier::builder_with_provider(clients, provider.clone());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(vec![certificate], key)
        .unwrap();
    (roots, config)
}
