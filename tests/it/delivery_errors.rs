//! Why a delivery failed: the sentence is stored, shown by every command that lists deliveries, and names what to do.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use attesto::events::EventRecorder;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SignatureAlgorithm,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::webhook_end_to_end::{secret, set_callback};
use crate::world::attesto::World;
use crate::world::event::test_event;
use crate::world::folder::Folder;
use crate::world::postgres::fresh_database;
use crate::world::receiver::{Place, Receiver, say};
use crate::world::shell::Shell;
use crate::world::wait::wait_for;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The certificate authorities that the command trusts, and what they issue.
pub(crate) struct Authorities {
    root: CertificateParams,
    root_key: KeyPair,
    root_der: CertificateDer<'static>,
    pub(crate) folder: Folder,
}

impl Authorities {
    pub(crate) fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root = authority("A trusted root");
        let certificate = root.self_signed(&root_key).unwrap();
        let authorities = Self {
            root_der: certificate.der().clone(),
            root,
            root_key,
            folder: Folder::new(),
        };
        std::fs::write(authorities.file(), certificate.pem()).unwrap();
        authorities
    }

    pub(crate) fn file(&self) -> std::path::PathBuf {
        self.folder.join("roots.pem")
    }

    /// Trusts one more, which issues nothing.
    fn add_root(&self, name: &str, kind: &'static SignatureAlgorithm) {
        let key = KeyPair::generate_for(kind).unwrap();
        let made = authority(name).self_signed(&key).unwrap();
        let known = std::fs::read_to_string(self.file()).unwrap();
        std::fs::write(self.file(), format!("{known}{}", made.pem())).unwrap();
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root_der.clone()).unwrap();
        roots
    }

    /// Issued by the root that is trusted.
    pub(crate) fn issue(
        &self,
        params: &CertificateParams,
    ) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::new(self.root.clone(), &self.root_key);
        let made = params.signed_by(&key, &issuer).unwrap();
        (vec![made.der().clone()], key)
    }
}

/// Issued by an intermediate authority, whose certificate is not in the chain.
fn issue_without_intermediate(
    params: &CertificateParams,
) -> (Vec<CertificateDer<'static>>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let between = Issuer::new(authority("An intermediate"), KeyPair::generate().unwrap());
    let made = params.signed_by(&key, &between).unwrap();
    (vec![made.der().clone()], key)
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

pub(crate) fn leaf(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "a receiver");
    params
}

pub(crate) fn self_signed(params: &CertificateParams) -> (Vec<CertificateDer<'static>>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    (vec![made.der().clone()], key)
}

/// Authority information access with a URL for the issuer's certificate, as public authorities write it.
fn with_issuer_address(mut params: CertificateParams) -> CertificateParams {
    let url = b"http://authority.example/issuer.crt";
    let method = [0x06, 8, 0x2b, 6, 1, 5, 5, 7, 48, 2];
    let mut location = vec![0x86, u8::try_from(url.len()).unwrap()];
    location.extend_from_slice(url);
    let place = sequence(&[method.as_slice(), location.as_slice()].concat());
    let content = sequence(&place);
    let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], content);
    params.custom_extensions.push(extension);
    params
}

fn sequence(content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 0x80);
    [&[0x30, length], content].concat()
}

/// Shows this certificate, and asks for none.
pub(crate) fn tls_acceptor((chain, key): (Vec<CertificateDer<'static>>, KeyPair)) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn tls_receiver(certificate: (Vec<CertificateDer<'static>>, KeyPair)) -> Receiver {
    let place = Place::loopback().with_tls(tls_acceptor(certificate));
    Receiver::new(place, Arc::new(say(OK))).await
}

/// A receiver whose own certificate is for these names, and that takes only clients with a certificate of the same authorities.
pub(crate) async fn receiver_with_client_certificates(
    authorities: &Authorities,
    names: &[&str],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Receiver {
    let (chain, key) = authorities.issue(&leaf(names));
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(authorities.roots());
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    let place = Place::loopback().with_tls(TlsAcceptor::from(Arc::new(config)));
    Receiver::new(place, Arc::new(say(OK))).await
}

/// Answers the first bytes of each connection with these and closes it, or keeps it open without an answer.
async fn raw_receiver(answer: Option<Vec<u8>>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut silent = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 64 * 1024];
            let Some(answer) = &answer else {
                silent.push(stream);
                continue;
            };
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, AbortOnDropHandle::new(task))
}

/// Resets each connection after its first byte.
async fn resetting_receiver() -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read_u8().await;
            stream.set_zero_linger().unwrap();
        }
    });
    (address, AbortOnDropHandle::new(task))
}

fn alert(description: u8) -> Vec<u8> {
    vec![0x15, 0x03, 0x03, 0x00, 0x02, 0x02, description]
}

async fn ping(shell: &Shell, tenant: &str, url: &str) -> Value {
    let set = ["webhook", "set-config", tenant, "--callback-url", url];
    let ran = shell.run_async(&set, "").await;
    assert_eq!(ran.exit, 0, "{}", ran.complained);
    let ran = shell.run_async(&["webhook", "ping", tenant], "").await;
    assert_eq!(ran.exit, 1, "{url}: {}", ran.said);
    let detail = ran.json()["detail"].as_str().unwrap().to_owned();
    assert!(ran.complained.contains(&detail), "{}", ran.complained);
    ran.json()
}

/// A tenant whose callback is called by `webhook ping` alone, by a command that trusts the authorities.
pub(crate) async fn pinging() -> (World, String, Authorities, Shell) {
    let world = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
    let tenant = world.stranger().await.id.to_string();
    let authorities = Authorities::new();
    let shell = world
        .shell()
        .set("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")
        .set("SSL_CERT_FILE", authorities.file().to_str().unwrap());
    (world, tenant, authorities, shell)
}

fn check(result: &Value, outcome: &str, words: &[&str]) {
    let detail = result["detail"].as_str().unwrap();
    assert_eq!(result["outcome"], outcome, "{detail}");
    for words in words {
        assert!(detail.contains(words), "{words:?} is not in {detail:?}");
    }
    assert!(detail.len() <= 500 && !detail.ends_with('.'), "{detail}");
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_with_its_name_and_date() {
    let (world, tenant, authorities, shell) = pinging().await;

    let mut expired = leaf(&["localhost"]);
    expired.not_before = rcgen::date_time_ymd(2019, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let mut early = leaf(&["localhost"]);
    early.not_before = rcgen::date_time_ymd(4000, 1, 1);
    let mut openssl = leaf(&["localhost"]);
    openssl.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let other_root = authority("A root of ours");
    let other_key = KeyPair::generate().unwrap();
    let other = other_root.self_signed(&other_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(other_root, other_key);
    let below_other = leaf(&["localhost"]).signed_by(&key, &issuer).unwrap();
    let below_other = (vec![below_other.der().clone(), other.der().clone()], key);

    let mut for_clients = leaf(&["localhost"]);
    for_clients.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let named_like = |name: &str| {
        let mut params = leaf(&["localhost"]);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        self_signed(&params)
    };
    authorities.add_root("A root with another kind of key", &rcgen::PKCS_ED25519);

    let cases: Vec<(_, &[&str])> = vec![
        (
            authorities.issue(&for_clients),
            &["is for clients and not for servers", "serverAuth"],
        ),
        (
            named_like("A trusted root"),
            &["the certificate of localhost is self-signed"],
        ),
        (
            named_like("A root with another kind of key"),
            &["the certificate of localhost is self-signed"],
        ),
        (
            authorities.issue(&expired),
            &[
                "the certificate of localhost expired on 2020-01-01",
                "renew it",
            ],
        ),
        (
            authorities.issue(&early),
            &["is not valid before 4000-01-01", "is a clock wrong?"],
        ),
        (
            authorities.issue(&leaf(&["other.example.com", "127.0.0.9"])),
            &["is for other.example.com, 127.0.0.9 and not for localhost"],
        ),
        (
            authorities.issue(&leaf(&[])),
            &["names no host", "subjectAltName=DNS:localhost"],
        ),
        (
            self_signed(&leaf(&["localhost"])),
            &[
                "the certificate of localhost is self-signed",
                "SSL_CERT_FILE",
            ],
        ),
        (
            self_signed(&openssl),
            &["`openssl req -x509`", "basicConstraints=critical,CA:FALSE"],
        ),
        (
            issue_without_intermediate(&with_issuer_address(leaf(&["localhost"]))),
            &[
                "without the intermediate certificate \"CN=An intermediate",
                "fullchain.pem",
            ],
        ),
        (
            issue_without_intermediate(&leaf(&["localhost"])),
            &["\"CN=An intermediate", "fullchain.pem", "SSL_CERT_FILE"],
        ),
        (
            below_other,
            &["end at the authority \"CN=A root of ours", "SSL_CERT_FILE"],
        ),
    ];
    for (certificate, words) in cases {
        let receiver = tls_receiver(certificate).await;
        let url = format!("https://localhost:{}/", receiver.address.port());
        check(&ping(&shell, &tenant, &url).await, "tls", words);
        assert_eq!(receiver.requests().len(), 0);
    }
    world.end().await;
}

#[tokio::test]
async fn a_receiver_that_asks_for_a_client_certificate_is_named_with_each_version_of_tls() {
    let (world, tenant, authorities, shell) = pinging().await;
    for version in rustls::ALL_VERSIONS {
        let receiver =
            receiver_with_client_certificates(&authorities, &["localhost"], &[version]).await;
        let url = format!("https://localhost:{}/", receiver.address.port());
        check(
            &ping(&shell, &tenant, &url).await,
            "tls",
            &[
                "localhost asks for a client certificate, and none is configured",
                "--client-certificate-path",
            ],
        );
    }
    world.end().await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn what_is_wrong_with_a_connection_or_an_answer_is_said_with_what_to_do() {
    let (world, tenant, _authorities, shell) = pinging().await;
    let http = |answer: &str| format!("HTTP/1.1 {answer}\r\n\r\n").into_bytes();
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let plain_http = "The plain HTTP request was sent to HTTPS port";
    let plain_http = format!(
        "400 Bad Request\r\nContent-Length: {}\r\n\r\n{plain_http}",
        plain_http.len()
    );
    let no_certificate = "<center>No required SSL certificate was sent</center>";
    let no_certificate = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{no_certificate}",
        no_certificate.len()
    );
    let many_lines = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(150));
    let cases: Vec<(&str, Vec<u8>, &str, &[&str])> = vec![
        (
            "https",
            alert(70),
            "tls",
            &["no version of TLS", "1.2 and 1.3"],
        ),
        ("https", alert(40), "tls", &["no cipher in common", "ECDHE"]),
        ("https", alert(80), "tls", &["no certificate for this name"]),
        (
            "https",
            http("400 Bad Request"),
            "tls",
            &["localhost answers in plain text"],
        ),
        (
            "https",
            Vec::new(),
            "tls",
            &["closed the connection in the TLS handshake"],
        ),
        ("http", alert(10), "connect", &["expects TLS", "https://"]),
        ("http", plain_http.into_bytes(), "http_4xx", &[]),
        (
            "http",
            no_certificate.into_bytes(),
            "http_4xx",
            &["answered 400", "asks for a client certificate"],
        ),
        (
            "http",
            many_lines.into_bytes(),
            "body_limit",
            &["has more than 100 lines"],
        ),
        (
            "http",
            Vec::new(),
            "connect",
            &["closed the connection before it answered"],
        ),
        (
            "http",
            b"SSH-2.0-x\r\n\r\n".to_vec(),
            "connect",
            &["does not answer in HTTP"],
        ),
        (
            "http",
            large.into_bytes(),
            "body_limit",
            &["larger than 16 KiB"],
        ),
        (
            "http",
            http("308 Moved\r\nContent-Length: 0\r\nLocation: https://b.example/new?key=s3cret"),
            "http_3xx",
            &[
                "answered 308 with the location https://b.example/new:",
                "redirects are not followed",
            ],
        ),
        (
            "http",
            http("404 No\r\nContent-Length: 0"),
            "http_4xx",
            &["answered 404", "path"],
        ),
        (
            "http",
            http("401 No\r\nContent-Length: 0"),
            "http_4xx",
            &["answered 401", "credentials"],
        ),
        (
            "http",
            http("500 No\r\nContent-Length: 0"),
            "http_5xx",
            &["answered 500"],
        ),
    ];
    for (scheme, answer, outcome, words) in cases {
        let answer = if answer.starts_with(b"400") {
            [b"HTTP/1.1 ".as_slice(), &answer].concat()
        } else {
            answer
        };
        let (address, _receiver) = raw_receiver(Some(answer)).await;
        let url = format!("{scheme}://localhost:{}/hook?key=s3cret", address.port());
        let result = ping(&shell, &tenant, &url).await;
        check(&result, outcome, words);
        let detail = result["detail"].as_str().unwrap();
        assert!(!detail.contains("s3cret"), "{detail}");
        if outcome == "http_4xx" && words.is_empty() {
            assert!(detail.contains("expects TLS"), "{detail}");
        }
    }

    // Such as a server of Python's for TLS, which leaves what it did not understand unread.
    let (resetting, _receiver) = resetting_receiver().await;
    let url = format!("http://localhost:{}/", resetting.port());
    check(
        &ping(&shell, &tenant, &url).await,
        "connect",
        &["reset the connection", "one for https://?"],
    );

    let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = unused.local_addr().unwrap().port();
    drop(unused);
    let result = ping(&shell, &tenant, &format!("http://127.0.0.1:{port}/")).await;
    let refused = format!("127.0.0.1:{port} refuses connections");
    check(&result, "connect", &[&refused, "is the receiver running"]);

    let (silent, _receiver) = raw_receiver(None).await;
    let hasty = shell.clone().set("WEBHOOK_TIMEOUT_SECONDS", "1");
    let result = ping(
        &hasty,
        &tenant,
        &format!("https://localhost:{}/", silent.port()),
    )
    .await;
    check(&result, "timeout", &["finished no TLS handshake within 1s"]);
    let result = ping(
        &hasty,
        &tenant,
        &format!("http://localhost:{}/", silent.port()),
    )
    .await;
    check(
        &result,
        "timeout",
        &["did not answer within 1s", "afterwards"],
    );

    // What was set when private addresses were allowed, and is called when they are not.
    let url = format!("https://127.0.0.1:{port}/");
    ping(&shell, &tenant, &url).await;
    let strict = shell.without("WEBHOOK_ALLOW_PRIVATE_CALLBACKS");
    let ran = strict.run_async(&["webhook", "ping", &tenant], "").await;
    let allow = format!("attesto webhook allow {tenant} 127.0.0.1:{port}");
    check(&ran.json(), "blocked", &["127.0.0.1 is", &allow]);
    world.end().await;
}

/// The stores are called by another client, in whose errors are those of TLS and of the resolver.
#[tokio::test]
async fn what_is_wrong_with_the_connection_to_a_store_is_said_in_a_sentence() {
    let (world, _, authorities, shell) = pinging().await;
    let mut expired = leaf(&["localhost"]);
    expired.not_before = rcgen::date_time_ymd(2019, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let expired = tls_receiver(authorities.issue(&expired)).await;
    let (no_cipher, _receiver) = raw_receiver(Some(alert(40))).await;
    let (plain, _receiver) = raw_receiver(Some(b"HTTP/1.1 400 No\r\n\r\n".to_vec())).await;
    let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let refusing = unused.local_addr().unwrap();
    drop(unused);
    let shell = shell.set_all([
        (
            "APPLE_PRODUCTION_URL",
            format!("https://localhost:{}", expired.address.port()),
        ),
        (
            "APPLE_SANDBOX_URL",
            format!("https://localhost:{}", no_cipher.port()),
        ),
        (
            "GOOGLE_PLAY_URL",
            format!("https://localhost:{}", plain.port()),
        ),
        (
            "GOOGLE_TOKEN_URL",
            format!("https://localhost:{}", refusing.port()),
        ),
        (
            "GOOGLE_JWKS_URL",
            "https://no-such-host.invalid/certs".to_owned(),
        ),
    ]);
    let doctor = shell.run_async(&["doctor"], "").await.said;
    for words in [
        "the certificate of localhost expired on 2020-01-01T00:00:00",
        "localhost has no cipher in common",
        "localhost answers in plain text at this port",
        &format!("localhost:{} refuses connections", refusing.port()),
        "the name of no-such-host.invalid cannot be resolved",
    ] {
        assert!(doctor.contains(words), "{words:?} is not in {doctor}");
    }
    for raw in [
        "OtherError",
        "InvalidContentType",
        "HandshakeFailure",
        "failed to lookup",
    ] {
        assert!(!doctor.contains(raw), "{doctor}");
    }
    world.end().await;
}

#[tokio::test]
async fn why_a_delivery_failed_is_kept_and_shown() {
    let settings = [
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
        ("WEBHOOK_MAX_RETRIES", "0"),
    ];
    let world = World::with(&settings).await;
    let shell = world.shell().set("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true");
    let tenant = world.stranger().await.id;
    let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = unused.local_addr().unwrap();
    drop(unused);
    let url = format!("http://{address}/hook");
    set_callback(
        world.database(),
        world.keyring(),
        &tenant,
        &url,
        &secret("m"),
    )
    .await;
    let record = EventRecorder::new(world.database(), &world.clock, |_| {});
    record
        .record_event(&test_event(&tenant, "1"))
        .await
        .unwrap();
    let id = tenant.to_string();
    let list = ["webhook", "list-deliveries", &id];
    let row = wait_for("the delivery has failed", async || {
        let rows = shell.run_async(&list, "").await.rows();
        rows.into_iter().find(|row| row["status"] == "failed")
    })
    .await;
    let sentence = format!("{address} refuses connections");
    let says_so = |text: &Value| {
        text.as_str()
            .is_some_and(|text| text.starts_with(&sentence))
    };
    assert!(says_so(&row["lastError"]), "{row}");
    let table = ["--output", "table", "webhook", "list-deliveries", &id];
    let table = shell.run_async(&table, "").await.said;
    assert!(table.contains("refuses"), "{table}");
    let shown = shell.run_async(&["webhook", "get", &id], "").await.json();
    assert!(says_so(&shown["health"]["lastError"]), "{shown}");
    let doctor = shell
        .run_async(&["doctor", "--output", "json"], "")
        .await
        .said;
    assert!(
        doctor.contains(&format!("{tenant} ({sentence}")),
        "{doctor}"
    );
    let mut watcher = attesto::tail::TailWatcher::new(tenant.clone());
    watcher.poll_lines(world.database()).await.unwrap();
    sqlx::query("update webhook_deliveries set attempt_count = 2")
        .execute(world.database().pool())
        .await
        .unwrap();
    let lines = watcher.poll_lines(world.database()).await.unwrap();
    let line = serde_json::to_value(&lines[0]).unwrap();
    assert!(says_so(&line["error"]), "{line}");
    world.end().await;
}

/// A callback that was corrected: what waits for the address before is counted, and one printed command sends it.
#[tokio::test]
async fn what_waits_for_the_previous_address_is_sent_to_the_new_one() {
    let world = World::with(&[("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")]).await;
    let shell = world.shell().set("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true");
    let tenant = world.stranger().await.id;
    let wrong = Receiver::answering(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").await;
    let right = Receiver::answering(OK).await;
    let (database, keyring) = (world.database(), world.keyring());
    set_callback(database, keyring, &tenant, &wrong.url(), &secret("m")).await;
    let record = EventRecorder::new(database, &world.clock, |_| {});
    for number in ["1", "2"] {
        record
            .record_event(&test_event(&tenant, number))
            .await
            .unwrap();
    }
    let id = tenant.to_string();
    wait_for("both were tried", async || {
        let rows = shell
            .run_async(&["webhook", "list-deliveries", &id], "")
            .await
            .rows();
        rows.iter()
            .all(|row| row["attemptCount"] == 1)
            .then_some(())
    })
    .await;
    let set = ["webhook", "set-config", &id, "--callback-url", &right.url()];
    let set = shell.run_async(&set, "").await.json();
    assert_eq!(set["waitingForPreviousUrl"], 2, "{set}");
    record
        .record_event(&test_event(&tenant, "3"))
        .await
        .unwrap();
    right.until(1).await;
    let line = set["redeliverWith"].as_str().unwrap().to_owned();
    let words: Vec<&str> = line.split(' ').skip(1).collect();
    let again = shell.run_async(&words, "").await.json();
    assert_eq!(again["count"], 2, "{again}");
    right.until(3).await;
    let same = ["webhook", "set-config", &id, "--callback-url", &right.url()];
    wait_for("nothing waits any more", async || {
        let set = shell.run_async(&same, "").await.json();
        set["waitingForPreviousUrl"].is_null().then_some(())
    })
    .await;
    assert_eq!(right.requests().len(), 3, "each event once");
    world.end().await;
}

/// In an operator's own network, and where the operator says so for this tenant, a callback may be called without TLS.
#[tokio::test]
async fn http_in_a_private_network_is_allowed_per_tenant_and_network() {
    let world = World::with(&[]).await;
    let shell = world.shell();
    let tenant = world.stranger().await.id;
    let id = tenant.to_string();
    let receiver = Receiver::answering(OK).await;
    let url = receiver.url();
    let network = receiver.address.to_string();
    let set = ["webhook", "set-config", &id, "--callback-url", &url];
    let allow = ["webhook", "allow", &id, &network];
    let allow_http = ["webhook", "allow", &id, &network, "--http"];
    let ran = shell.run_async(&set, "").await;
    assert_eq!(ran.exit, 2);
    assert!(ran.complained.contains("--http"), "{}", ran.complained);
    assert_eq!(shell.run_async(&allow, "").await.json()["http"], false);
    assert_eq!(shell.run_async(&set, "").await.exit, 2, "https only");
    assert_eq!(shell.run_async(&allow_http, "").await.json()["http"], true);
    assert_eq!(
        shell.run_async(&allow_http, "").await.exit,
        1,
        "it is so already"
    );
    let ran = shell.run_async(&set, "").await;
    assert_eq!(ran.exit, 0, "{}", ran.complained);
    let elsewhere = format!("http://127.0.0.2:{}/", receiver.address.port());
    let elsewhere = ["webhook", "set-config", &id, "--callback-url", &elsewhere];
    assert_eq!(shell.run_async(&elsewhere, "").await.exit, 2);
    let public = [
        "webhook",
        "set-config",
        &id,
        "--callback-url",
        "http://93.184.216.34/",
    ];
    let ran = shell.run_async(&public, "").await;
    assert_eq!(ran.exit, 2);
    assert!(
        ran.complained.contains("may use http"),
        "{}",
        ran.complained
    );

    let record = EventRecorder::new(world.database(), &world.clock, |_| {});
    record
        .record_event(&test_event(&tenant, "1"))
        .await
        .unwrap();
    receiver.until(1).await;
    let other = world.stranger().await.id.to_string();
    let others = ["webhook", "set-config", &other, "--callback-url", &url];
    assert_eq!(
        shell.run_async(&others, "").await.exit,
        2,
        "of another tenant"
    );
    world.end().await;
}

#[tokio::test]
async fn what_keeps_a_command_from_the_database_is_said_in_a_sentence() {
    let run = async |url: &str| {
        let shell = Shell::default().set("DATABASE_URL", url);
        let ran = shell.run_async(&["tenant", "list"], "").await;
        (ran.exit, ran.complained)
    };
    for (url, exit, words) in [
        ("postgres://ada:s3cret#1@db/x", 2, "percent-encoded"),
        ("postgres://ada:s3cret/1@db/x", 2, "percent-encoded"),
        ("\"postgres://ada:s3cret@db/x\"", 2, "docker --env-file"),
        (
            "postgres://ada@db/x?sslAccept=strict",
            2,
            "sslmode and sslrootcert",
        ),
        (
            "postgres://ada:s3cret@127.0.0.1:1/x?connect_timeout=1",
            1,
            "is Postgres running there",
        ),
        (
            "postgres://ada@/x?host=/nowhere/at/all&connect_timeout=1",
            1,
            "socket",
        ),
    ] {
        let (status, errors) = run(url).await;
        assert_eq!(status, exit, "{url}: {errors}");
        assert!(errors.contains(words), "{url}: {errors}");
        assert!(!errors.contains("s3cret"), "{errors}");
    }
    let fresh = fresh_database().await;
    let role = format!("stranger_of_{}", fresh.database.database_name());
    let create = format!("create role {role} login; grant usage on schema public to {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create))
        .execute(fresh.database.pool())
        .await
        .unwrap();
    let (status, errors) = run(&fresh.url.replace("user=attesto", &format!("user={role}"))).await;
    assert_eq!(status, 1, "{errors}");
    assert!(errors.contains("permission denied for"), "{errors}");
    assert!(errors.contains("Grant the right"), "{errors}");
    assert!(!errors.contains("at line"), "{errors}");
    let nowhere = fresh.url.replace("postgres:///", "postgres:///no_");
    let (_, errors) = run(&nowhere).await;
    assert!(errors.contains("createdb"), "{errors}");
    let drop = format!("drop owned by {role}; drop role {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop))
        .execute(fresh.database.pool())
        .await
        .unwrap();
}
