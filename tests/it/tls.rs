//! The listener's own certificate: it is used, reloaded, and kept when its replacement is invalid.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use attesto::app::{App, RunningApp};
use attesto::base::clock::{Clock, Timestamp};
use attesto::outbound::{CertificateTrust, build_local_http_client};
use attesto::server::tls::{
    ReloadIntervals, ReloadableTls, TlsCertificate, TlsCertificateError, TlsFiles,
};
use attesto::server::{ConnectionLimits, scrape};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::{Signal, getpid, kill_process};
use rustls::pki_types::{CertificateDer, ServerName};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::attesto::World;
use crate::world::folder::Folder;
use crate::world::shell::Shell;
use crate::world::wait::{finished, wait_until};

/// A day, in seconds.
pub(crate) const DAY: u32 = 24 * 60 * 60;
/// Everything expected must have happened by then, on a busy machine too.
/// For tests that wait for each reload.
const OFTEN: ReloadIntervals = ReloadIntervals {
    poll_interval: Duration::from_millis(20),
    settle_interval: Duration::from_millis(20),
};

/// A certificate with its chain, and its key, as a renewal tool creates them.
pub(crate) struct Made {
    certificate: CertificateDer<'static>,
    issuer: CertificateDer<'static>,
    issuer_name: String,
    chain: String,
    key: String,
}

impl Made {
    /// It expires this many seconds from now, and has been valid for a hundred days.
    pub(crate) fn today(ends_in: u32) -> Self {
        let now = Clock::system().now();
        let day = Duration::from_secs(DAY.into());
        Self::between(
            now.minus(100 * day),
            now.plus(Duration::from_secs(ends_in.into())),
        )
    }

    fn between(from: Timestamp, to: Timestamp) -> Self {
        let name = format!("An issuer with number {}", fastrand::u64(..));
        Self::issued_by(&name, from, to)
    }

    fn issued_by(name: &str, from: Timestamp, to: Timestamp) -> Self {
        let moment = |at: Timestamp| OffsetDateTime::from_unix_timestamp(at.as_secs()).unwrap();
        let mut above = CertificateParams::new(Vec::new()).unwrap();
        above.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        above
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let above_key = KeyPair::generate().unwrap();
        let issuer = above.self_signed(&above_key).unwrap();
        let mut params = CertificateParams::new(vec!["attesto.test".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (moment(from), moment(to));
        let key = KeyPair::generate().unwrap();
        let made = params
            .signed_by(&key, &Issuer::new(above, above_key))
            .unwrap();
        Self {
            certificate: made.der().clone(),
            issuer: issuer.der().clone(),
            issuer_name: name.to_owned(),
            chain: format!("{}{}", made.pem(), issuer.pem()),
            key: key.serialize_pem(),
        }
    }

    /// Writes both files into a folder.
    pub(crate) fn write(&self, folder: &Path) -> TlsFiles {
        let files = TlsFiles {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        };
        std::fs::write(&files.certificate, &self.chain).unwrap();
        self.write_key(&files.key);
        files
    }

    pub(crate) fn write_key(&self, path: &Path) {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(path).unwrap();
        file.write_all(self.key.as_bytes()).unwrap();
    }
}

/// A server with a certificate and its metrics.
struct Place {
    serving: RunningApp,
    files: TlsFiles,
    tls: ReloadableTls,
    /// The issuer of the first certificate.
    issuer: CertificateDer<'static>,
}

impl Place {
    async fn new(world: &World, clock: &Clock, folder: &Folder, rhythm: ReloadIntervals) -> Self {
        Self::with(world, clock, folder, rhythm, ConnectionLimits::default()).await
    }

    async fn with(
        world: &World,
        clock: &Clock,
        folder: &Folder,
        rhythm: ReloadIntervals,
        manners: ConnectionLimits,
    ) -> Self {
        let made = Made::today(60 * DAY);
        let files = made.write(folder);
        let tls = ReloadableTls::load(files.clone(), clock)
            .unwrap()
            .with_intervals(rhythm);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let metrics = scrape::bind_metrics_listener("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let serving = App::build(&world.settings, world.database(), &world.clock)
            .unwrap()
            .with_metrics_listener(metrics)
            .with_tls(tls.clone())
            .serve(listener, manners)
            .unwrap();
        Self {
            serving,
            files,
            tls,
            issuer: made.issuer,
        }
    }

    fn address(&self) -> SocketAddr {
        self.serving.address()
    }

    /// Connects with TLS, trusting the issuer and offering these protocols.
    async fn connect(&self, protocols: &[&str]) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.clone()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("attesto.test").unwrap();
        let stream = TcpStream::connect(self.address()).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.unwrap()
    }

    /// Whether the server uses exactly this certificate.
    async fn has(&self, made: &Made) -> bool {
        let only = CertificateTrust::Pinned(made.certificate.clone());
        let client = build_local_http_client(only).unwrap();
        let url = format!("https://{}/health", self.address());
        match client.get(url).send().await {
            Ok(answer) => {
                assert_eq!(answer.status(), 200);
                true
            }
            Err(problem) => {
                let text = format!("{problem:?}");
                assert!(text.contains("another certificate is there"), "{text}");
                false
            }
        }
    }

    async fn number(&self, name: &str) -> i64 {
        let url = format!("http://{}/metrics", self.serving.metrics_address().unwrap());
        let client = attesto::outbound::build_http_client().unwrap();
        let page = client.get(url).send().await.unwrap().text().await.unwrap();
        let mut lines = page.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)).unwrap();
        let number = line.trim();
        number.strip_suffix(".0").unwrap_or(number).parse().unwrap()
    }

    /// How many certificates were refused.
    async fn refused(&self) -> i64 {
        self.number("attesto_tls_pairs_refused_total").await
    }

    async fn until_refused(&self, more_than: i64) {
        wait_until("the certificate is handled", async || {
            self.refused().await > more_than
        })
        .await;
    }
}

/// A change of the files, and its description.
type Spoil<'a> = (&'a str, Box<dyn Fn() + 'a>);

/// Invalid files keep the running certificate, and a valid pair replaces it.
#[tokio::test]
async fn a_valid_certificate_is_loaded_and_an_invalid_one_is_not() {
    let world = World::new().await;
    let folder = Folder::new();
    let clock = Clock::fixed(Clock::system().now());
    let place = Place::new(&world, &clock, &folder, OFTEN).await;
    let ends = |pair: &TlsCertificate| pair.not_after().as_secs();
    let shown = async || place.number("attesto_tls_cert_not_after_seconds").await;
    assert_eq!(shown().await, ends(&place.tls.current_certificate()));
    assert_eq!(place.refused().await, 0);

    let good = Made::today(90 * DAY);
    good.write(&folder);
    wait_until("the certificate is handled", async || {
        place.has(&good).await
    })
    .await;
    assert_eq!(shown().await, ends(&place.tls.current_certificate()));

    let other = Made::today(90 * DAY);
    let cut = |text: &str| text[..text.len() * 2 / 3].to_owned();
    let now = clock.now();
    let day = Duration::from_secs(DAY.into());
    let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
    let TlsFiles { certificate, key } = &place.files;
    let cases: [Spoil<'_>; 11] = [
        (
            "a certificate, and not yet its key",
            Box::new(|| write(certificate, &other.chain)),
        ),
        (
            "a key, and not yet its certificate",
            Box::new(|| other.write_key(key)),
        ),
        (
            "half a certificate",
            Box::new(|| write(certificate, &cut(&cut(&good.chain)))),
        ),
        (
            "half a chain",
            Box::new(|| write(certificate, &cut(&good.chain))),
        ),
        (
            "another's chain",
            Box::new(|| {
                let first = good.chain.split_inclusive("-----END CERTIFICATE-----\n");
                let rest = other.chain.split_inclusive("-----END CERTIFICATE-----\n");
                let mixed: String = first.take(1).chain(rest.skip(1)).collect();
                write(certificate, &mixed);
            }),
        ),
        (
            "an issuer of the same name with another key",
            Box::new(|| {
                let again = Made::issued_by(&good.issuer_name, now.minus(day), now.plus(100 * day));
                let first = good.chain.split_inclusive("-----END CERTIFICATE-----\n");
                let rest = again.chain.split_inclusive("-----END CERTIFICATE-----\n");
                let mixed: String = first.take(1).chain(rest.skip(1)).collect();
                write(certificate, &mixed);
            }),
        ),
        ("half a key", Box::new(|| write(key, &cut(&good.key)))),
        ("nothing", Box::new(|| write(key, ""))),
        ("no file", Box::new(|| std::fs::remove_file(key).unwrap())),
        (
            "one that expired",
            Box::new(|| {
                Made::between(now.minus(100 * day), now.minus(day)).write(&folder);
            }),
        ),
        (
            "one of the future",
            Box::new(|| {
                Made::between(now.plus(day), now.plus(100 * day)).write(&folder);
            }),
        ),
    ];
    for (what, spoil) in cases {
        let before = place.refused().await;
        spoil();
        place.until_refused(before).await;
        assert!(place.has(&good).await, "{what}: the good one is kept");
        // And it is used again, without a log line, once it is back.
        good.write(&folder);
    }
    assert_eq!(shown().await, ends(&place.tls.current_certificate()));

    // Correcting the files is enough; no restart is needed.
    other.write(&folder);
    wait_until("the certificate is handled", async || {
        place.has(&other).await
    })
    .await;
    // The loaded certificate expires: there is nothing better.
    clock.advance(95 * day);
    assert!(place.has(&other).await);
    place.serving.stop(Duration::from_secs(5)).await;
    world.end().await;
}

#[tokio::test]
async fn sighup_reloads_the_certificate() {
    let world = World::new().await;
    let folder = Folder::new();
    let rarely = ReloadIntervals {
        poll_interval: Duration::from_hours(1),
        ..ReloadIntervals::default()
    };
    let place = Place::new(&world, &Clock::system(), &folder, rarely).await;
    // Existing connections are not affected.
    let mut existing = place.connect(&[]).await;
    let good = Made::today(90 * DAY);
    good.write(&folder);
    kill_process(getpid(), Signal::HUP).unwrap();
    wait_until("the certificate is handled", async || {
        place.has(&good).await
    })
    .await;

    let before = place.refused().await;
    Made::today(90 * DAY).write_key(&place.files.key);
    kill_process(getpid(), Signal::HUP).unwrap();
    place.until_refused(before).await;
    assert!(place.has(&good).await);

    existing
        .write_all(b"GET /health HTTP/1.1\r\nHost: attesto.test\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    existing.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    place.serving.stop(Duration::from_secs(5)).await;
    world.end().await;
}

#[tokio::test]
async fn http_1_and_http_2_work_over_tls() {
    let world = World::new().await;
    let folder = Folder::new();
    let place = Place::new(
        &world,
        &Clock::system(),
        &folder,
        ReloadIntervals::default(),
    )
    .await;
    for (offered, agreed) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let stream = place.connect(offered).await;
        let found = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(found, agreed.map(|it| it.as_bytes().to_vec()));
        let request = hyper::Request::get("https://attesto.test/health")
            .header("host", "attesto.test")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let status = if agreed == Some("h2") {
            let (mut send, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            send.send_request(request).await.unwrap().status()
        } else {
            let (mut send, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            send.send_request(request).await.unwrap().status()
        };
        assert_eq!(status, 200);
    }
    place.serving.stop(Duration::from_secs(5)).await;
    world.end().await;
}

#[tokio::test]
async fn slow_tls_handshakes_time_out() {
    let world = World::new().await;
    let folder = Folder::new();
    let manners = ConnectionLimits {
        head_timeout: Duration::from_millis(300),
        ..ConnectionLimits::default()
    };
    let clock = Clock::system();
    let place = Place::with(&world, &clock, &folder, ReloadIntervals::default(), manners).await;
    // The header of a TLS record announcing a ClientHello of 512 bytes.
    let greeting = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc];
    for (what, sent) in [
        ("says nothing", &[][..]),
        ("begins and stops", &greeting[..7]),
        ("goes on a byte at a time", &greeting[..]),
        ("speaks plain HTTP", b"GET /health HTTP/1.1\r\n\r\n"),
    ] {
        let mut stream = TcpStream::connect(place.address()).await.unwrap();
        stream.write_all(sent).await.unwrap();
        if sent == greeting {
            // Until the other side closes the connection.
            wait_until("the certificate is handled", async || {
                let mut peeked = [0];
                let mut stream_ended = false;
                if let Ok(read) = stream.try_read(&mut peeked) {
                    stream_ended = read == 0;
                }
                let _ = stream.try_write(&[0]);
                stream_ended
            })
            .await;
        } else {
            let mut rest = Vec::new();
            let _ = finished(what, stream.read_to_end(&mut rest)).await;
            assert!(rest.len() < 16, "{what}: an alert at most");
        }
    }
    place.serving.stop(Duration::from_secs(5)).await;
    world.end().await;
}

#[test]
fn invalid_tls_files_prevent_the_start() {
    let folder = Folder::new();
    let files = Made::today(60 * DAY).write(&folder);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let shell = Shell::default()
        .set("DATABASE_URL", "postgres://nowhere.invalid/x")
        .set("ATTESTO_ENCRYPTION_KEY", &format!("{}=", "A".repeat(43)))
        .set("TLS_CERT_PATH", &path(&files.certificate))
        .set("TLS_KEY_PATH", &path(&files.key));
    let well = shell.run(&["config", "check"]);
    assert_eq!((well.exit, well.complained.as_str()), (0, ""));

    for (shell, complaint) in [
        (
            shell.clone().without("TLS_KEY_PATH"),
            "TLS_KEY_PATH: is missing",
        ),
        (
            shell.clone().without("TLS_CERT_PATH"),
            "TLS_CERT_PATH: is missing",
        ),
        (
            shell
                .clone()
                .set("TLS_KEY_PATH", &path(&folder.join("none.pem"))),
            "none.pem, which cannot be read",
        ),
        (
            shell.clone().set("TLS_KEY_PATH", &path(&folder)),
            "it is no file",
        ),
        (
            shell.clone().set("TLS_KEY_PATH", &path(&files.certificate)),
            "the file in TLS_KEY_PATH must be PEM",
        ),
        (
            shell.clone().set("TLS_CERT_PATH", &path(&files.key)),
            "the file in TLS_CERT_PATH must be PEM",
        ),
    ] {
        for words in [&["serve", "--port=0"][..], &["config", "check"]] {
            let ran = shell.run(words);
            assert_eq!(ran.exit, 2, "{words:?}: {}", ran.complained);
            assert!(ran.complained.contains(complaint), "{}", ran.complained);
        }
    }
    // Other invalid settings do not hide it.
    let both = shell
        .clone()
        .set("TLS_KEY_PATH", &path(&files.certificate))
        .set("PORT", "x")
        .run(&["config", "check"]);
    assert_eq!(both.exit, 2);
    assert!(
        both.complained.contains("PORT: must be"),
        "{}",
        both.complained
    );
    assert!(
        both.complained
            .contains("the file in TLS_KEY_PATH must be PEM")
    );

    // A key given instead of its path is not logged.
    let key = std::fs::read_to_string(&files.key).unwrap();
    let ran = shell
        .clone()
        .set("TLS_KEY_PATH", &key)
        .run(&["config", "check"]);
    assert_eq!(ran.exit, 2);
    let body = key.lines().nth(1).unwrap();
    assert!(!ran.said.contains(body) && !ran.complained.contains(body));
    assert!(ran.complained.contains("not the secret itself"));

    std::fs::set_permissions(
        &files.key,
        std::os::unix::fs::PermissionsExt::from_mode(0o604),
    )
    .unwrap();
    let ran = shell.run(&["config", "check"]);
    assert_eq!(ran.exit, 0);
    assert!(
        ran.complained
            .contains("TLS_KEY_PATH: every user on this machine can read"),
        "{}",
        ran.complained
    );
}

#[test]
fn tls_errors_name_the_problem_and_reveal_nothing_of_the_key() {
    let folder = Folder::new();
    let files = Made::today(60 * DAY).write(&folder);
    let now = Clock::system().now();
    assert!(TlsCertificate::from_files(&files, now).is_ok());
    let ended = now.plus(Duration::from_secs(u64::from(DAY) * 61));
    assert!(matches!(
        TlsCertificate::from_files(&files, ended),
        Err(TlsCertificateError::Expired(_))
    ));
    assert!(files.changed_within(Duration::from_secs(30), Clock::system().now()));
    assert!(!files.changed_within(Duration::from_secs(30), ended));
}
