//! One logical call to a store: up to three attempts within one deadline, with a limited response size.

use std::io;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::Instant;
use tokio::time::error::Elapsed;
use tracing::Instrument as _;
use tracing::field::Empty;

use super::clients::StoreClients;
use super::http_client::StoreClient;
use super::root_cause;
use crate::base::backoff::Backoff;
use crate::base::clock::Timestamp;
use crate::base::tls_error::{TlsPurpose, TlsServer, describe_tls_error, find_tls_error};
use crate::crypto::token;
use crate::egress::ProxyError;

/// The maximum size of a store's response in bytes. A subscription with its whole history of line items has a few
/// kilobytes.
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
/// One attempt and two quick retries.
const MAX_ATTEMPTS: u32 = 3;
/// The delay before the first retry; the second one is twice as long. Each varies by a quarter in both directions.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The longest `Retry-After` that is passed on to callers.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);
/// A `Retry-After` of at least this value is a moment in milliseconds; a smaller one is a number of seconds.
const MIN_EPOCH_MILLIS: i64 = 1_000_000_000;

/// A store's complete response.
#[derive(Clone, Debug)]
pub struct UpstreamResponse {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers, for `Retry-After` and `Cache-Control`.
    pub headers: HeaderMap,
    /// The complete response body.
    pub body: Vec<u8>,
}

/// Why there is no response. No message contains the URL, which may contain a purchase token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// There was no complete response within the deadline.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection could not be made, or was closed. One sentence without a full stop.
    #[error("{0}")]
    Connection(String),
    /// The egress proxy made no tunnel to the store. It is not asked again at once: most of its refusals last.
    #[error(transparent)]
    Proxy(ProxyError),
    /// The response is larger than the limit.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// Whether a response is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// The response is returned, whatever it says.
    Final,
    /// The request is sent again if attempts and time are left.
    Transient,
}

/// Calls one store. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Upstream {
    clients: StoreClients,
    timeout: Duration,
    max_response_bytes: usize,
}

impl Upstream {
    /// Calls through `clients`. Each logical call, including retries, ends within `timeout`.
    pub fn new(clients: impl Into<StoreClients>, timeout: Duration) -> Self {
        Self {
            clients: clients.into(),
            timeout,
            max_response_bytes: MAX_RESPONSE_BYTES,
        }
    }

    /// A caller that shares the connections and has lower limits: at most `most_bytes` for a response, and `deadline`
    /// for a call.
    #[must_use]
    pub fn with_limits(&self, deadline: Duration, most_bytes: usize) -> Self {
        Self {
            clients: self.clients.clone(),
            timeout: deadline.min(self.timeout),
            max_response_bytes: most_bytes.min(self.max_response_bytes),
        }
    }

    /// A caller that shares the connections and has another limit of time.
    #[must_use]
    pub(crate) fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Sends the request that `build` makes. Sends it again if the connection fails or `judge` returns `Transient`, as
    /// long as attempts and time are left. The last response is returned even if it is transient.
    pub async fn send_with_retries(
        &self,
        build: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
        judge: impl Fn(&UpstreamResponse) -> RetryDecision,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let end = Instant::now() + self.timeout;
        let mut backoff = Backoff::new(FIRST_RETRY_DELAY, self.timeout);
        let mut attempt = 1;
        loop {
            let lease = self.clients.lease();
            let request = build(&lease.client.reqwest);
            let sending = send_once(&lease.client, request, self.max_response_bytes, end);
            let Ok(outcome) = sending.await else {
                return Err(UpstreamError::Timeout(self.timeout));
            };
            drop(lease);
            let again = match &outcome {
                Ok(answer) => judge(answer) == RetryDecision::Transient,
                Err(UpstreamError::Connection(_)) => true,
                Err(_) => false,
            };
            let delay = backoff.next_delay(fastrand::f64());
            if !again || attempt == MAX_ATTEMPTS || Instant::now() + delay >= end {
                return outcome;
            }
            tokio::time::sleep(delay).await;
            attempt += 1;
        }
    }
}

/// Makes one attempt, which ends at `end`.
async fn send_once(
    client: &StoreClient,
    request: reqwest::RequestBuilder,
    most_bytes: usize,
    end: Instant,
) -> Result<Result<UpstreamResponse, UpstreamError>, Elapsed> {
    let request = match request.build() {
        Ok(request) => request,
        Err(error) => {
            let cause = root_cause(&error.without_url());
            let sentence = format!("the request cannot be built: {cause}");
            return Ok(Err(UpstreamError::Connection(sentence)));
        }
    };
    // Only the host is recorded, because the rest of the URL may identify a purchase.
    let host = request.url().host_str().unwrap_or_default();
    let span = tracing::info_span!(
        "store call",
        otel.name = format!("{} {host}", request.method()),
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = request.method().as_str(),
        server.address = host,
        http.response.status_code = Empty,
    );
    let exchange = execute_request(client, request, most_bytes).instrument(span.clone());
    let outcome = tokio::time::timeout_at(end, exchange).await;
    match &outcome {
        Ok(Ok(answer)) => span.record(
            "http.response.status_code",
            i64::from(answer.status.as_u16()),
        ),
        Ok(Err(_)) | Err(_) => span.record("otel.status_code", "ERROR"),
    };
    outcome
}

fn find_proxy_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a ProxyError> {
    let mut next = Some(error);
    while let Some(found) = next {
        if let Some(found) = found.downcast_ref() {
            return Some(found);
        }
        next = found.source();
    }
    None
}

fn connection_error(error: &(dyn std::error::Error + 'static), server: &str) -> UpstreamError {
    UpstreamError::Connection(describe_connection_error(error, server))
}

/// One sentence without a full stop. `server` is a host, with its port unless that is the scheme's.
fn describe_connection_error(error: &(dyn std::error::Error + 'static), server: &str) -> String {
    if let Some(tls) = find_tls_error(error) {
        let host = server.rsplit_once(':').map_or(server, |(host, port)| {
            let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
            if is_port { host } else { server }
        });
        return describe_tls_error(tls, &TlsServer::new(host, TlsPurpose::Store));
    }
    let cause = root_cause(error);
    if cause.contains("failed to lookup address") || cause.contains("dns error") {
        return format!(
            "the name of {server} cannot be resolved: is it right, and does DNS work on this machine?"
        );
    }
    match find_io_error(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            format!("{server} refuses connections: is the address right?")
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            format!("{server} cannot be reached from this machine: there is no route to it")
        }
        Some(io::ErrorKind::TimedOut) => format!(
            "{server} accepts no connection: does a firewall drop it, or is an egress proxy needed (ATTESTO_EGRESS_PROXY)?"
        ),
        Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            format!("{server} closed the connection before it answered")
        }
        _ => format!("the connection to {server} failed: {cause}"),
    }
}

fn find_io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(found) = next {
        if let Some(found) = found.downcast_ref() {
            return Some(found);
        }
        next = found.source();
    }
    None
}

/// The host and, unless it is the scheme's own, the port.
pub(crate) fn server_text(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

async fn execute_request(
    client: &StoreClient,
    request: reqwest::Request,
    most_bytes: usize,
) -> Result<UpstreamResponse, UpstreamError> {
    let server = server_text(request.url());
    let sent = client.execute(request).await;
    let mut response = sent.map_err(|error| match find_proxy_error(&*error) {
        Some(error) => UpstreamError::Proxy(error.clone()),
        None => connection_error(&*error, &server),
    })?;
    let mut body = Vec::new();
    loop {
        let chunk = response.chunk().await;
        let chunk = chunk.map_err(|error| connection_error(&error.without_url(), &server))?;
        let Some(chunk) = chunk else { break };
        if body.len() + chunk.len() > most_bytes {
            return Err(UpstreamError::TooLarge(most_bytes));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(UpstreamResponse {
        status: response.status(),
        headers: std::mem::take(response.headers_mut()),
        body,
    })
}

/// Appends `part` as one segment of a URL's path. All bytes except RFC 3986's unreserved characters are
/// percent-encoded, so that a slash, a colon, a question mark or a line break stays part of the id. `None` if the
/// segment is empty, `.` or `..`, which cannot be encoded; no purchase has such an id.
pub fn push_path_segment(path: &mut String, part: &str) -> Option<()> {
    if matches!(part, "" | "." | "..") {
        return None;
    }
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push('%');
            path.push_str(&token::encode_hex(&[byte]).to_ascii_uppercase());
        }
    }
    Some(())
}

/// Parses `Retry-After`: a number of seconds, a date, or, as Apple sends it, a moment in milliseconds since the Unix
/// epoch. The result is at least a second and at most a day. `None` if it is missing or invalid.
pub fn parse_retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<i64>() {
        Ok(moment) if moment >= MIN_EPOCH_MILLIS => {
            Timestamp::from_millis(moment).duration_since(now)
        }
        Ok(seconds) => Duration::from_secs(u64::try_from(seconds).ok()?),
        Err(_) => Timestamp::from(OffsetDateTime::parse(text, &Rfc2822).ok()?).duration_since(now),
    };
    Some(wait.clamp(Duration::from_secs(1), MAX_RETRY_AFTER))
}

/// Describes a JSON error of a store without the message of `serde_json`, which contains the unexpected value.
pub fn describe_json_error(error: &serde_json::Error) -> String {
    format!(
        "{:?} error at line {}, column {}",
        error.classify(),
        error.line(),
        error.column()
    )
}
