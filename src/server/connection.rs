//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::activity::ActiveRequest;
use super::connection_table::OpenConnection;
use super::shared::{ConnectionLimits, ServerState};
use super::socket::{BoxedStream, ConnectionSocket};
use super::unread_body::UnreadBody;

/// How long a connection without a request may take to close once it is asked to.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a request is still answered whose connection's place was given away before it was read, and how long the answer then
/// has to be sent.
const EVICTED_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const EVICTED_IDLE_TIMEOUT: Duration = Duration::from_millis(50);
/// The size of a request's head.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Header fields of a request.
const MAX_HEADERS: usize = 64;
const KEEP_ALIVE_HEADER: HeaderName = HeaderName::from_static("keep-alive");
/// Requests at once on one HTTP/2 connection.
const MAX_CONCURRENT_STREAMS: u32 = 64;
/// How much a sender of HTTP/2 may send of one body, and of all bodies of a connection, before it was read. Nothing else counts
/// these bytes.
const STREAM_WINDOW_BYTES: u32 = 32 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024;
/// How much of the answers waits to be sent on one HTTP/2 stream.
const MAX_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// The HTTP library with our limits, for HTTP/1.1 and HTTP/2.
pub(super) fn build_protocol(limits: &ConnectionLimits) -> auto::Builder<TokioExecutor> {
    let mut protocol = auto::Builder::new(TokioExecutor::new());
    protocol
        .http1()
        .timer(TokioTimer::new())
        // From the first byte that could be a head: an idle connection that is kept alive counts too.
        .header_read_timeout(limits.head_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(MAX_SEND_BUFFER_BYTES)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX));
    protocol
}

/// Tells HTTP/1 callers how long an idle connection is kept, so that they do not send on one that is just being closed.
/// Node's agent and its fetch, among others, go by it.
pub(super) fn keep_alive_header(limits: &ConnectionLimits) -> Option<HeaderValue> {
    let kept = limits.head_timeout.min(limits.idle_timeout).as_secs();
    (kept > 0).then(|| HeaderValue::from_str(&format!("timeout={kept}")).ok())?
}

/// The handling of a request, in the connection's task. If the connection ends before it, it goes on in a task of its own: the work is
/// still finished and logged, and nothing is cut off between two statements.
struct FinishedWork<F: Future<Output: Send> + Send + 'static> {
    /// `None` once it is finished.
    work: Option<Pin<Box<F>>>,
    tasks: TaskTracker,
    /// Ends what goes on in a task of its own.
    abort: CancellationToken,
    /// Keeps the server from stopping before this: streams of HTTP/2 have tasks that are not tracked.
    _tracked: TaskTrackerToken,
}

impl<F: Future<Output: Send> + Send + 'static> Future for FinishedWork<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let work = self.work.as_mut().expect("it is not polled again");
        let output = ready!(work.as_mut().poll(context));
        self.work = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for FinishedWork<F> {
    fn drop(&mut self) {
        // Without a runtime, the process is ending.
        if let (Some(work), Ok(runtime)) = (self.work.take(), Handle::try_current()) {
            let abort = self.abort.clone();
            self.tasks
                .spawn_on(abort.run_until_cancelled_owned(work), &runtime);
        }
    }
}

/// Talks on a connection until either side ends it, or its place is needed.
pub(super) async fn serve_connection(
    stream: TcpStream,
    open: Arc<OpenConnection>,
    server: Arc<ServerState>,
) {
    let evicted = open.evicted.clone();
    let mut serving = pin!(serve_requests(stream, open.clone(), server));
    tokio::select! {
        // First, so that a request that has arrived is seen before the connection is closed.
        biased;
        () = &mut serving => return,
        () = evicted.cancelled() => {}
    }
    if open.is_silent() {
        return;
    }
    tokio::select! {
        biased;
        () = &mut serving => {}
        () = open.activity.wait_until_idle(EVICTED_IDLE_TIMEOUT, None) => {}
        () = sleep(EVICTED_REQUEST_TIMEOUT) => {}
    }
}

async fn serve_requests(stream: TcpStream, open: Arc<OpenConnection>, server: Arc<ServerState>) {
    // Answers are small and whole: nothing is gained by waiting for more to send.
    let _ = stream.set_nodelay(true);
    let limits = &server.limits;
    let stream: BoxedStream = match &server.tls {
        None => Box::new(stream),
        Some(tls) => {
            // A slow handshake is treated like a slow request head.
            let handshake = timeout(limits.head_timeout, tls.tls_acceptor().accept(stream));
            let Some(Ok(Ok(stream))) = server
                .graceful_shutdown
                .run_until_cancelled(handshake)
                .await
            else {
                return;
            };
            Box::new(stream)
        }
    };
    let socket = ConnectionSocket::new(stream, open.clone(), server.clone());
    let service = service_fn(|mut request: Request<Incoming>| {
        let held = ActiveRequest::new(&open);
        let proxies = server.request_layer.trusted_proxies();
        let info = open.info.for_request(request.headers(), proxies);
        request.extensions_mut().insert(info);
        let is_http_1 = request.version() < Version::HTTP_2;
        let (request, unread_body) = if is_http_1 {
            UnreadBody::watch(request)
        } else {
            (request.map(Body::new), None)
        };
        let layer = server.request_layer.clone();
        let answer = FinishedWork {
            work: Some(Box::pin(layer.handle_request(request))),
            tasks: server.tasks.clone(),
            abort: server.abort.clone(),
            _tracked: server.tasks.token(),
        };
        let keep_alive = server.keep_alive.clone();
        let linger_timeout = server.limits.linger_timeout;
        async move {
            let mut answer = answer.await;
            let can_continue = match unread_body {
                Some(unread) => unread.read_rest(linger_timeout).await,
                None => true,
            };
            drop(held);
            let headers = answer.headers_mut();
            if !can_continue {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            } else if let Some(keep_alive) = keep_alive.filter(|_| is_http_1) {
                headers.insert(KEEP_ALIVE_HEADER, keep_alive);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = pin!(
        server
            .protocol
            .serve_connection(TokioIo::new(socket), service)
    );
    let mut ending = None;
    loop {
        let (limit, from) = match ending {
            Some(since) => (CLOSE_TIMEOUT.min(limits.idle_timeout), Some(since)),
            None => (limits.idle_timeout, None),
        };
        tokio::select! {
            _ = connection.as_mut() => return,
            () = server.graceful_shutdown.cancelled(), if ending.is_none() => {}
            () = open.activity.wait_until_idle(limit, from) => {
                if ending.is_some() {
                    return;
                }
            }
            () = server.abort.cancelled() => return,
        }
        ending = Some(Instant::now());
        connection.as_mut().graceful_shutdown();
    }
}
