//! `/metrics`, on a listener of its own: it is for the operator of this service, and never on the public port.
//!
//! A connection serves one request within ten seconds, and there are few at once. A further one takes the place of the
//! oldest, which a scraper needs for some milliseconds only: silent connections block nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::listen::BindError;
use crate::telemetry::metrics::{METRICS_CONTENT_TYPE, MetricsRegistry};

/// How long one connection may take, from its first byte to its last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once. A further one takes the place of the oldest.
const MAX_CONNECTIONS: usize = 16;
/// How long to wait when the system has no room for another connection.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Starts to listen.
pub async fn bind_metrics_listener(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|problem| BindError::Metrics(address, problem))
}

/// Serves the text of `registry` until `stop` is cancelled.
pub async fn serve_metrics(
    listener: TcpListener,
    registry: MetricsRegistry,
    stop: CancellationToken,
) {
    let mut open: VecDeque<AbortOnDropHandle<()>> = VecDeque::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                open.retain(|connection| !connection.is_finished());
                if open.len() >= MAX_CONNECTIONS {
                    open.pop_front();
                }
                let serve = serve_connection(stream, registry.clone());
                open.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
                    let _ = timeout(CONNECTION_TIMEOUT, serve).await;
                })));
            }
            Err(_) => sleep(ACCEPT_RETRY_DELAY).await,
        }
    }
}

async fn serve_connection(stream: TcpStream, registry: MetricsRegistry) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = metrics_response(request.method(), request.uri().path(), &registry);
        async move { Ok::<_, Infallible>(answer) }
    });
    // How the connection ended does not matter here.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn metrics_response(
    method: &Method,
    path: &str,
    registry: &MetricsRegistry,
) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, METRICS_CONTENT_TYPE, registry.render_text())
        }
        (_, "/metrics") => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "GET /metrics\n".to_owned(),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "There is /metrics here, and nothing else.\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
