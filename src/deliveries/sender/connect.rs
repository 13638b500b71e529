//! A connection to a checked address, with TLS for the name that was checked.

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
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::read_budget::{BudgetedStream, ReadBudget};
use crate::base::tls_error::{
    ClientCertificateNote, ClientCertificateUse, ExplainingVerifier, TlsPurpose,
};
use crate::deliveries::endpoint::ClientCertificate;
use crate::egress::{AllowedAddresses, CallbackHost, CallbackTarget, EgressProxy, ProxyError};
use crate::outbound::system_verifier;

/// How long to wait for one address before the next is tried in parallel, as RFC 8305 recommends.
const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The same through a proxy, which makes a connection of its own and may resolve or log before it.
const TUNNEL_ATTEMPT_DELAY: Duration = Duration::from_secs(1);
/// Twice as much as the largest heads that proxies produce.
pub(super) const MAX_RESPONSE_HEAD_BYTES: usize = 16 * 1024;
pub(super) const MAX_RESPONSE_HEADERS: usize = 100;

/// Which certificate authorities are trusted.
#[derive(Clone, Debug)]
pub enum TlsTrust {
    /// Those of the operating system, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    System,
    /// Only these. For tests.
    OnlyRoots(RootCertStore),
}

impl TlsTrust {
    pub(super) fn client_config(self) -> Result<Arc<ClientConfig>, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let verifier: Option<Arc<dyn ServerCertVerifier>> = match self {
            Self::System => Some(system_verifier()?),
            Self::OnlyRoots(roots) if roots.is_empty() => None,
            Self::OnlyRoots(roots) => {
                let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier.build();
                Some(verifier.map_err(|error| rustls::Error::General(error.to_string()))?)
            }
        };
        let builder = match verifier {
            Some(verifier) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(ExplainingVerifier::new(
                    verifier,
                    TlsPurpose::Callback,
                ))),
            None => builder.with_root_certificates(RootCertStore::empty()),
        };
        let mut config = builder.with_no_client_auth();
        // One request at a time on a connection: with HTTP/2 the requests to one receiver would fail together.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        address: SocketAddr,
        cause: io::Error,
    },
    #[error("there is no address")]
    NoAddress,
    #[error(transparent)]
    Proxy(ProxyError),
    #[error("the TLS handshake failed: {cause}")]
    Tls {
        cause: io::Error,
        client_certificate: ClientCertificateUse,
    },
    #[error("the HTTP handshake failed: {0}")]
    Http(hyper::Error),
    #[error("no time is left")]
    TimedOut(ConnectPhase),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectPhase {
    Tcp,
    Tls,
}

/// Dropping it closes the connection at once, even while an answer is arriving.
pub(super) struct CallbackConnection {
    pub(super) request_sender: SendRequest<Full<Bytes>>,
    pub(super) read_budget: ReadBudget,
    pub(super) peer_address: SocketAddr,
    /// What became of the receiver's question for a client certificate.
    pub(super) client_certificate: ClientCertificateUse,
    /// Ends with the connection, and with its error, if any.
    driver: AbortOnDropHandle<Option<hyper::Error>>,
}

impl CallbackConnection {
    /// Waits until the connection has ended. Returns why, if it ended before it took a request: the request's own error does not
    /// say it.
    pub(super) async fn wait_for_end(&mut self) -> Option<hyper::Error> {
        (&mut self.driver).await.ok().flatten()
    }
}

/// Makes connections to callbacks.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) tls_config: Arc<ClientConfig>,
    pub(super) proxy: Option<EgressProxy>,
}

impl Connector {
    /// Connects to one of the checked addresses and to nothing else. `shown` is what a receiver gets that asks
    /// for a client certificate.
    pub(super) async fn open_connection(
        &self,
        target: &CallbackTarget,
        vetted: &AllowedAddresses,
        shown: Option<&ClientCertificate>,
        deadline: Instant,
    ) -> Result<CallbackConnection, ConnectError> {
        let (stream, peer) = self.connect_to_any(&vetted.addresses, deadline).await?;
        if target.is_https {
            let (stream, asked) = self.tls_handshake(target, shown, stream, deadline).await?;
            http_handshake(stream, peer, asked).await
        } else {
            http_handshake(stream, peer, ClientCertificateUse::Unknown).await
        }
    }

    /// Connects, does the TLS handshake if the target is https, and closes the connection without a request.
    /// Returns the certificate of the server.
    pub(super) async fn fetch_certificate(
        &self,
        target: &CallbackTarget,
        vetted: &AllowedAddresses,
        shown: Option<&ClientCertificate>,
        deadline: Instant,
    ) -> Result<Option<CertificateDer<'static>>, ConnectError> {
        let (stream, _) = self.connect_to_any(&vetted.addresses, deadline).await?;
        if !target.is_https {
            return Ok(None);
        }
        let (stream, _) = self.tls_handshake(target, shown, stream, deadline).await?;
        let chain = stream.get_ref().1.peer_certificates();
        Ok(chain.and_then(|chain| Some(chain.first()?.clone().into_owned())))
    }

    /// With a client certificate no session is resumed: the receiver would take it for a session of the certificate that was
    /// shown when it began.
    fn tls_config(
        &self,
        shown: Option<&ClientCertificate>,
    ) -> (Arc<ClientConfig>, Arc<ClientCertificateNote>) {
        let mut config = ClientConfig::clone(&self.tls_config);
        if let Some(certificate) = shown {
            config.client_auth_cert_resolver = certificate.resolver();
            config.resumption = Resumption::disabled();
        }
        let note = ClientCertificateNote::new(config.client_auth_cert_resolver);
        config.client_auth_cert_resolver = note.clone();
        (Arc::new(config), note)
    }

    async fn tls_handshake(
        &self,
        target: &CallbackTarget,
        shown: Option<&ClientCertificate>,
        stream: TcpStream,
        deadline: Instant,
    ) -> Result<(TlsStream<TcpStream>, ClientCertificateUse), ConnectError> {
        let (config, note) = self.tls_config(shown);
        let failed = |cause: io::Error| ConnectError::Tls {
            cause,
            client_certificate: note.outcome(),
        };
        let name = match &target.host {
            CallbackHost::Name(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
                .map_err(|cause| failed(io::Error::other(cause)))?,
            CallbackHost::Address(address) => ServerName::from(*address),
        };
        let connecting = TlsConnector::from(config).connect(name, stream);
        match timeout_at(deadline, connecting).await {
            Ok(Ok(stream)) => Ok((stream, note.outcome())),
            Ok(Err(cause)) => Err(failed(cause)),
            Err(_) => Err(ConnectError::TimedOut(ConnectPhase::Tls)),
        }
    }

    /// The first address that answers. The next one is tried when one has failed, and in parallel when one is slow.
    async fn connect_to_any(
        &self,
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> Result<(TcpStream, SocketAddr), ConnectError> {
        let delay = match self.proxy {
            Some(_) => TUNNEL_ATTEMPT_DELAY,
            None => CONNECTION_ATTEMPT_DELAY,
        };
        let mut waiting = addresses.iter().copied();
        let mut attempts = FuturesUnordered::new();
        let mut first_problem = ConnectError::NoAddress;
        loop {
            if attempts.is_empty() && Instant::now() >= deadline {
                return Err(match first_problem {
                    ConnectError::NoAddress => ConnectError::TimedOut(ConnectPhase::Tcp),
                    problem => problem,
                });
            }
            let next = waiting.next();
            attempts.extend(next.map(|address| self.connect_to_address(address, deadline)));
            tokio::select! {
                Some(attempt) = attempts.next() => match attempt {
                    Ok(connected) => return Ok(connected),
                    // The proxy would refuse the other addresses too.
                    Err(ConnectError::Proxy(problem)) if !problem.is_about_target() => {
                        return Err(ConnectError::Proxy(problem));
                    }
                    Err(problem) => {
                        if matches!(first_problem, ConnectError::NoAddress) {
                            first_problem = problem;
                        }
                        if attempts.is_empty() && waiting.len() == 0 {
                            return Err(first_problem);
                        }
                    }
                },
                () = sleep(delay), if waiting.len() > 0 => {}
                // The proxy itself gives up at the deadline, and says what it waited for.
                () = sleep_until(deadline), if self.proxy.is_none() => return Err(match first_problem {
                    ConnectError::NoAddress => ConnectError::TimedOut(ConnectPhase::Tcp),
                    problem => problem,
                }),
                else => return Err(first_problem),
            }
        }
    }

    async fn connect_to_address(
        &self,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<(TcpStream, SocketAddr), ConnectError> {
        let connected = match &self.proxy {
            Some(proxy) => proxy
                .open_tunnel(&address.to_string(), deadline)
                .await
                .map_err(ConnectError::Proxy),
            None => connect_directly(address)
                .await
                .map_err(|cause| ConnectError::Connect { address, cause }),
        };
        Ok((connected?, address))
    }
}

async fn connect_directly(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // On a machine that redirects connections the peer is not the address that was checked.
    if stream.peer_addr()? != address {
        return Err(io::Error::other(
            "the connection was redirected to another address",
        ));
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn http_handshake<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    peer: SocketAddr,
    client_certificate: ClientCertificateUse,
) -> Result<CallbackConnection, ConnectError> {
    let read_budget = ReadBudget::default();
    // Enough for the handshake; each request resets it.
    read_budget.reset_to(MAX_RESPONSE_HEAD_BYTES);
    let stream = BudgetedStream::new(stream, read_budget.clone());
    let (requests, connection) = http1::Builder::new()
        .max_buf_size(MAX_RESPONSE_HEAD_BYTES)
        .max_headers(MAX_RESPONSE_HEADERS)
        .title_case_headers(true)
        // A receiver that answers 200 has taken the event, whatever else its server writes: browsers and other clients pass over
        // such lines too. What decides where the answer ends is still refused when it is wrong.
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ConnectError::Http)?;
    let driver = tokio::spawn(async move { connection.await.err() });
    Ok(CallbackConnection {
        request_sender: requests,
        read_budget,
        peer_address: peer,
        client_certificate,
        driver: AbortOnDropHandle::new(driver),
    })
}
