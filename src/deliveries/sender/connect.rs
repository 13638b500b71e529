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

use super::read_budget::{BudgetedStream, ReadBudget};
use crate::egress::target::CallbackHost;
use crate::egress::{AllowedAddresses, CallbackTarget};

/// How long an address may take before the next is tried beside it, as RFC 8305 recommends.
const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The largest head of an answer. Twice what the chattiest proxies add.
const MAX_RESPONSE_HEAD_BYTES: usize = 16 * 1024;
/// The most lines in it.
const MAX_RESPONSE_HEADERS: usize = 100;

/// Which certificates convince.
#[derive(Clone, Debug)]
pub enum TlsTrust {
    /// Those of the system's authorities. `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
    System,
    /// Those of these authorities alone. For tests.
    OnlyRoots(RootCertStore),
}

impl TlsTrust {
    pub(super) fn client_config(self) -> Result<Arc<ClientConfig>, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match self {
            Self::OnlyRoots(roots) => builder.with_root_certificates(roots),
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
pub(super) enum ConnectError {
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
pub(super) struct CallbackConnection {
    pub(super) request_sender: SendRequest<Full<Bytes>>,
    pub(super) read_budget: ReadBudget,
    pub(super) peer_address: SocketAddr,
    _driver: AbortOnDropHandle<()>,
}

/// Connects to one of the judged addresses, and to nothing else.
pub(super) async fn open_connection(
    target: &CallbackTarget,
    vetted: &AllowedAddresses,
    tls: &Arc<ClientConfig>,
) -> Result<CallbackConnection, ConnectError> {
    let (stream, peer) = connect_to_any(&vetted.addresses).await?;
    if target.is_https {
        http_handshake(tls_handshake(target, stream, tls).await?, peer).await
    } else {
        http_handshake(stream, peer).await
    }
}

/// Connects, shakes hands where the target is https, and hangs up. Nothing is asked. Gives the certificate that was shown.
pub(super) async fn fetch_certificate(
    target: &CallbackTarget,
    vetted: &AllowedAddresses,
    tls: &Arc<ClientConfig>,
) -> Result<Option<CertificateDer<'static>>, ConnectError> {
    let (stream, _) = connect_to_any(&vetted.addresses).await?;
    if !target.is_https {
        return Ok(None);
    }
    let stream = tls_handshake(target, stream, tls).await?;
    let shown = stream.get_ref().1.peer_certificates();
    Ok(shown.and_then(|chain| Some(chain.first()?.clone().into_owned())))
}

async fn tls_handshake(
    target: &CallbackTarget,
    stream: TcpStream,
    tls: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let name = match &target.host {
        CallbackHost::Name(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
            .map_err(|cause| ConnectError::Tls(io::Error::other(cause)))?,
        CallbackHost::Address(address) => ServerName::from(*address),
    };
    let connecting = TlsConnector::from(tls.clone()).connect(name, stream);
    connecting.await.map_err(ConnectError::Tls)
}

/// The first that answers. The next is tried when one has failed, and beside one that takes long.
async fn connect_to_any(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut first_problem = ConnectError::NoAddress;
    loop {
        attempts.extend(waiting.next().map(connect_to_address));
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(connected) => return Ok(connected),
                Err(problem) => {
                    if matches!(first_problem, ConnectError::NoAddress) {
                        first_problem = problem;
                    }
                    if attempts.is_empty() && waiting.len() == 0 {
                        return Err(first_problem);
                    }
                }
            },
            () = sleep(CONNECTION_ATTEMPT_DELAY), if waiting.len() > 0 => {}
            else => return Err(first_problem),
        }
    }
}

async fn connect_to_address(address: SocketAddr) -> Result<(TcpStream, SocketAddr), ConnectError> {
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
        Err(cause) => Err(ConnectError::Connect { address, cause }),
    }
}

async fn http_handshake<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    peer: SocketAddr,
) -> Result<CallbackConnection, ConnectError> {
    let allowance = ReadBudget::default();
    // Enough for the parser to begin with; each request renews it.
    allowance.reset_to(MAX_RESPONSE_HEAD_BYTES);
    let stream = BudgetedStream {
        inner: stream,
        read_budget: allowance.clone(),
    };
    let (requests, connection) = http1::Builder::new()
        .max_buf_size(MAX_RESPONSE_HEAD_BYTES)
        .max_headers(MAX_RESPONSE_HEADERS)
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ConnectError::Http)?;
    let driver = tokio::spawn(async move {
        // Whoever waits for the answer is told what went wrong.
        let _ = connection.await;
    });
    Ok(CallbackConnection {
        request_sender: requests,
        read_budget: allowance,
        peer_address: peer,
        _driver: AbortOnDropHandle::new(driver),
    })
}
