//! An HTTP server in the role of a tenant's callback or of another peer: it records requests and
//! answers as the test chooses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::wait::finished;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) request_line: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// A connection, with TLS or without.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// What it does after each request; returns the connection if another request may follow on it.
pub(crate) type Manner =
    dyn Fn(Box<dyn Wire>) -> BoxFuture<'static, Option<Box<dyn Wire>>> + Send + Sync;

/// It stops when dropped.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    open: AtomicUsize,
    hung_up: Notify,
    arrived: Notify,
    requests: Mutex<Vec<Received>>,
}

/// The address of a receiver, and how it closes connections.
#[derive(Clone)]
pub(crate) struct Place {
    /// Port 0 takes a free port.
    pub(crate) address: SocketAddr,
    /// Uses TLS with this certificate, if any.
    pub(crate) tls: Option<TlsAcceptor>,
    /// Whether it closes connections with a reset.
    pub(crate) resets: bool,
}

impl Place {
    /// A free port of this machine, without TLS.
    pub(crate) fn loopback() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), 0)
    }

    pub(crate) fn at(address: IpAddr, port: u16) -> Self {
        Self {
            address: SocketAddr::new(address, port),
            tls: None,
            resets: false,
        }
    }

    pub(crate) fn with_tls(self, tls: TlsAcceptor) -> Self {
        Self {
            tls: Some(tls),
            ..self
        }
    }
}

impl Receiver {
    /// Sends these bytes after each request and waits for the next one.
    pub(crate) async fn answering(answer: &'static [u8]) -> Self {
        Self::new(Place::loopback(), Arc::new(say(answer))).await
    }

    pub(crate) async fn new(place: Place, manner: Arc<Manner>) -> Self {
        let listener = TcpListener::bind(place.address)
            .await
            .expect("a free port of this machine");
        let address = listener.local_addr().expect("it is bound");
        let seen = Arc::<Seen>::default();
        let task = tokio::spawn(accept(listener, place, manner, seen.clone()));
        Self {
            address,
            seen,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// How many connections were made to it, with or without requests.
    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Waits until every connection is closed by the other side.
    pub(crate) async fn until_all_disconnected(&self) {
        let closed = async {
            while self.seen.open.load(Ordering::SeqCst) > 0 {
                self.seen.hung_up.notified().await;
            }
        };
        finished("connections are closed", closed).await;
    }

    /// Waits until this many requests have arrived.
    pub(crate) async fn until(&self, count: usize) {
        let arrived = async {
            while self.requests().len() < count {
                self.seen.arrived.notified().await;
            }
        };
        finished("requests arrive", arrived).await;
    }

    pub(crate) fn requests(&self) -> Vec<Received> {
        self.seen.requests.lock().expect("not poisoned").clone()
    }
}

/// Sends this answer, and waits for the next request.
pub(crate) fn say(
    answer: &'static [u8],
) -> impl Fn(Box<dyn Wire>) -> BoxFuture<'static, Option<Box<dyn Wire>>> + Send + Sync {
    move |mut wire| {
        Box::pin(async move {
            wire.write_all(answer).await.ok()?;
            wire.flush().await.ok()?;
            Some(wire)
        })
    }
}

async fn accept(listener: TcpListener, place: Place, manner: Arc<Manner>, seen: Arc<Seen>) {
    loop {
        let (stream, _) = listener.accept().await.expect("it listens");
        seen.connections.fetch_add(1, Ordering::SeqCst);
        seen.open.fetch_add(1, Ordering::SeqCst);
        if place.resets {
            stream.set_zero_linger().expect("a TCP connection");
        }
        let (tls, manner, seen) = (place.tls.clone(), manner.clone(), seen.clone());
        tokio::spawn(async move {
            converse(Box::new(stream), tls, manner, &seen).await;
            seen.open.fetch_sub(1, Ordering::SeqCst);
            seen.hung_up.notify_one();
        });
    }
}

async fn converse(
    stream: Box<dyn Wire>,
    tls: Option<TlsAcceptor>,
    manner: Arc<Manner>,
    seen: &Seen,
) -> Option<()> {
    let mut wire: Box<dyn Wire> = match tls {
        None => stream,
        Some(tls) => Box::new(tls.accept(stream).await.ok()?),
    };
    loop {
        let received = read_request(&mut wire).await?;
        seen.requests.lock().expect("not poisoned").push(received);
        seen.arrived.notify_one();
        wire = manner(wire).await?;
    }
}

async fn read_request(wire: &mut Box<dyn Wire>) -> Option<Received> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if wire.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).expect("a head in ASCII");
    let mut lines = head.lines();
    let request_line = lines.next().unwrap_or_default().to_owned();
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length");
    let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = bytes.split_off(head_end);
    while body.len() < length {
        if wire.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Received {
        request_line,
        headers,
        body,
    })
}

/// A self-signed certificate for these names, and the roots that trust it.
pub(crate) fn certificate(names: &[&str]) -> (TlsAcceptor, rustls::RootCertStore) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("names of a certificate");
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("what the provider supports")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("key and certificate belong together");
    (TlsAcceptor::from(Arc::new(config)), roots)
}
