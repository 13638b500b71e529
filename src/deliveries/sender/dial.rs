//! A connection to a judged address, and TLS to the name it was judged for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::meter::{Allowance, Metered};
use crate::deliveries::guard::target::TargetHost;
use crate::deliveries::guard::{Target, Vetted};

/// How long an address may take before the next is tried beside it, as RFC 8305 recommends.
const HEAD_START: Duration = Duration::from_millis(250);
/// The largest head of an answer. Twice what the chattiest proxies add.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// The most lines in it.
const MAX_HEADERS: usize = 100;

/// Which certificates convince.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Those of the system's authorities. `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
    System,
    /// Those of these authorities alone. For tests.
    Only(RootCertStore),
}

impl Trust {
    pub(super) fn client_config(self) -> Result<Arc<ClientConfig>, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match self {
            Self::Only(roots) => builder.with_root_certificates(roots),
            Self::System => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Verifier::new(provider)?)),
        };
        let mut config = builder.with_no_client_auth();
        // One request at a time on a connection: with HTTP/2 one receiver's streams would share their fate.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        address: SocketAddr,
        cause: io::Error,
    },
    #[error("there is no address")]
    NoAddress,
    #[error("the TLS handshake failed: {0}")]
    Tls(io::Error),
    #[error("cannot begin to speak HTTP: {0}")]
    Http(hyper::Error),
}

/// A connection that can take a request. Dropping it closes it at once, whatever is still arriving.
pub(super) struct Connection {
    pub(super) requests: SendRequest<Full<Bytes>>,
    pub(super) allowance: Allowance,
    pub(super) peer: SocketAddr,
    _driver: AbortOnDropHandle<()>,
}

/// Connects to one of the judged addresses, and to nothing else.
pub(super) async fn dial(
    target: &Target,
    vetted: &Vetted,
    tls: &Arc<ClientConfig>,
) -> Result<Connection, DialError> {
    let (stream, peer) = connect(&vetted.addresses).await?;
    if target.tls {
        converse(shake_hands(target, stream, tls).await?, peer).await
    } else {
        converse(stream, peer).await
    }
}

/// Connects, shakes hands where the target is https, and hangs up. Nothing is asked. Gives the certificate that was shown.
pub(super) async fn touch(
    target: &Target,
    vetted: &Vetted,
    tls: &Arc<ClientConfig>,
) -> Result<Option<CertificateDer<'static>>, DialError> {
    let (stream, _) = connect(&vetted.addresses).await?;
    if !target.tls {
        return Ok(None);
    }
    let stream = shake_hands(target, stream, tls).await?;
    let shown = stream.get_ref().1.peer_certificates();
    Ok(shown.and_then(|chain| Some(chain.first()?.clone().into_owned())))
}

async fn shake_hands(
    target: &Target,
    stream: TcpStream,
    tls: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let name = match &target.host {
        TargetHost::Name(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
            .map_err(|cause| DialError::Tls(io::Error::other(cause)))?,
        TargetHost::Address(address) => ServerName::from(*address),
    };
    let connecting = TlsConnector::from(tls.clone()).connect(name, stream);
    connecting.await.map_err(DialError::Tls)
}

/// The first that answers. The next is tried when one has failed, and beside one that takes long.
async fn connect(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), DialError> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut first_problem = DialError::NoAddress;
    loop {
        attempts.extend(waiting.next().map(connect_to));
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(connected) => return Ok(connected),
                Err(problem) => {
                    if matches!(first_problem, DialError::NoAddress) {
                        first_problem = problem;
                    }
                    if attempts.is_empty() && waiting.len() == 0 {
                        return Err(first_problem);
                    }
                }
            },
            () = sleep(HEAD_START), if waiting.len() > 0 => {}
            else => return Err(first_problem),
        }
    }
}

async fn connect_to(address: SocketAddr) -> Result<(TcpStream, SocketAddr), DialError> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        // What was dialled is what was judged: even on a machine that redirects connections.
        if stream.peer_addr()? != address {
            return Err(io::Error::other("somebody else answered"));
        }
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    match connecting.await {
        Ok(stream) => Ok((stream, address)),
        Err(cause) => Err(DialError::Connect { address, cause }),
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    peer: SocketAddr,
) -> Result<Connection, DialError> {
    let allowance = Allowance::default();
    // Enough for the parser to begin with; each request renews it.
    allowance.renew(MAX_HEAD_BYTES);
    let stream = Metered {
        inner: stream,
        allowance: allowance.clone(),
    };
    let (requests, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(DialError::Http)?;
    let driver = tokio::spawn(async move {
        // Whoever waits for the answer is told what went wrong.
        let _ = connection.await;
    });
    Ok(Connection {
        requests,
        allowance,
        peer,
        _driver: AbortOnDropHandle::new(driver),
    })
}
