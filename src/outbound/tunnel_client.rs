//! Calls through the operator's egress proxy.
//!
//! `reqwest` makes a tunnel for https only; a request to a target in plain HTTP, such as Apple's OCSP responder, it sends to the
//! proxy itself, which proxies for `CONNECT` refuse. So with a proxy the requests that are built with `reqwest` are sent with
//! the client below it, over tunnels.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use hyper::Uri;
use hyper::header::{ACCEPT, HeaderValue, USER_AGENT};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::egress::EgressProxy;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Clones share the connections.
#[derive(Clone)]
pub(super) struct TunnelClient {
    client: legacy::Client<TunnelConnector, reqwest::Body>,
}

impl TunnelClient {
    /// A connection takes at most `connect_timeout`, and is closed when it was not used for `idle_timeout`.
    pub(super) fn new(
        proxy: EgressProxy,
        tls: Arc<ClientConfig>,
        connect_timeout: Duration,
        idle_timeout: Duration,
    ) -> Self {
        let connector = TunnelConnector {
            proxy,
            tls: tls.into(),
            timeout: connect_timeout,
        };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(idle_timeout)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .build(connector);
        Self { client }
    }

    /// Sends a request with the headers that `reqwest` would add. Its own limits of time are not kept.
    pub(super) async fn execute(
        &self,
        request: reqwest::Request,
        user_agent: &'static str,
    ) -> Result<reqwest::Response, BoxError> {
        let mut request: hyper::Request<reqwest::Body> = request.try_into()?;
        let headers = request.headers_mut();
        for (name, value) in [(USER_AGENT, user_agent), (ACCEPT, "*/*")] {
            headers
                .entry(name)
                .or_insert(HeaderValue::from_static(value));
        }
        let response = self.client.request(request).await?;
        let response = response.map(|body| reqwest::Body::wrap(body.map_err(BoxError::from)));
        Ok(response.into())
    }
}

/// Opens tunnels. A name is passed on to the proxy: see [`crate::egress`].
#[derive(Clone)]
struct TunnelConnector {
    proxy: EgressProxy,
    tls: TlsConnector,
    timeout: Duration,
}

impl Service<Uri> for TunnelConnector {
    type Response = TokioIo<TunnelStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let connector = self.clone();
        async move { connector.connect(&target).await.map(TokioIo::new) }.boxed()
    }
}

impl TunnelConnector {
    async fn connect(&self, target: &Uri) -> Result<TunnelStream, BoxError> {
        let deadline = Instant::now() + self.timeout;
        let is_https = target.scheme_str() == Some("https");
        let host = target.host().ok_or("the URL has no host")?;
        let port = target.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let stream = self
            .proxy
            .open_tunnel(&format!("{host}:{port}"), deadline)
            .await?;
        if !is_https {
            return Ok(TunnelStream {
                io: Box::pin(stream),
                is_http2: false,
            });
        }
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let name = ServerName::try_from(bare.unwrap_or(host).to_owned())?;
        let stream = timeout_at(deadline, self.tls.connect(name, stream))
            .await
            .map_err(|_| "the TLS handshake through the egress proxy was not finished in time")??;
        Ok(TunnelStream {
            is_http2: stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            io: Box::pin(stream),
        })
    }
}

trait ReadWrite: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ReadWrite for T {}

/// A connection to the target, with TLS if the target is https.
struct TunnelStream {
    io: Pin<Box<dyn ReadWrite>>,
    is_http2: bool,
}

impl Connection for TunnelStream {
    fn connected(&self) -> Connected {
        if self.is_http2 {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(context)
    }
}
