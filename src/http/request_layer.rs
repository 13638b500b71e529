//! What is around every answer: the request id, the version, the error body, the log line, and the net for panics.
//!
//! [`RequestLayer`] stands outside the routes, so that nothing answers without it: not an unknown path, not a wrong
//! method, not an extractor of the framework, not a handler that panics.

use std::any::Any;
use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use axum::response::IntoResponse as _;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::time::Instant;
use tracing::field::display;
use tracing::{Instrument as _, Span};

use super::body::BodyTimeout;
use super::body_budget::{BodyAdmission, BodyBudget, BodyBudgetLimits};
use super::client_address::ClientAddress;
use super::connection_info::ConnectionInfo;
use super::problem::{ErrorBody, ErrorCause, ErrorCode, Issue, Problem, retry_after_seconds};
use super::request_metrics::{self, MatchedRoute, RequestMetrics};
use super::trusted_proxies::TrustedProxies;
use crate::base::clock::Clock;
use crate::base::id;
use crate::telemetry::request_span::{self, RequestOutcome};
use crate::telemetry::scope_request_id;

const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
const VERSION_HEADER: HeaderName = HeaderName::from_static("x-attesto-version");
const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The longest path segment that is logged. Every id of ours is shorter, every API key is longer.
const MAX_LOGGED_SEGMENT_LEN: usize = 40;
/// Probes call these every few seconds; their traces would be of no use.
const PROBE_PATHS: [&str; 2] = ["/health", "/ready"];
/// The longest path that is logged.
const MAX_LOGGED_PATH_LEN: usize = 200;

/// The id of one request: the caller's own `X-Request-Id` when it is harmless, else a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequestId(Arc<str>);

impl HttpRequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_request(request: &Request<Body>, clock: &Clock) -> Self {
        let mut sent = request.headers().get_all(REQUEST_ID_HEADER).iter();
        let sent = match (sent.next(), sent.next()) {
            (Some(only), None) => only.to_str().ok().filter(|id| is_valid_request_id(id)),
            _ => None,
        };
        Self(match sent {
            Some(id) => id.into(),
            None => id::RequestId::mint(clock.now()).as_str().into(),
        })
    }
}

/// 1 to 128 characters that need no escaping anywhere an id may be pasted.
fn is_valid_request_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// What is learned about a request on its way and belongs into its log line. A request extension.
#[derive(Clone, Debug, Default)]
pub struct RequestLogFields(Arc<OnceLock<String>>);

impl RequestLogFields {
    /// Sets the tenant that makes the request; later calls change nothing.
    pub fn set_tenant(&self, tenant: &str) {
        let _ = self.0.set(tenant.to_owned());
    }
}

/// The routes, and what is around every answer of theirs.
#[derive(Clone, Debug)]
pub struct RequestLayer {
    routes: Router,
    clock: Clock,
    body_timeout: Duration,
    body_budget: BodyBudget,
    trusted_proxies: TrustedProxies,
    metrics: Option<RequestMetrics>,
    /// Whether routes say which of them a request is for.
    has_route_recorder: bool,
    is_traced: bool,
}

impl RequestLayer {
    /// Around `routes`. A request's body must have arrived whole within `body_timeout`.
    pub fn new(routes: Router, clock: Clock, body_timeout: Duration) -> Self {
        Self {
            routes,
            clock,
            body_timeout,
            body_budget: BodyBudget::new(BodyBudgetLimits::default()),
            trusted_proxies: TrustedProxies::default(),
            metrics: None,
            has_route_recorder: false,
            is_traced: false,
        }
    }

    /// The same with another budget for bodies.
    #[must_use]
    pub fn with_body_budget(self, body_budget: BodyBudget) -> Self {
        Self {
            body_budget,
            ..self
        }
    }

    /// The same behind these proxies.
    #[must_use]
    pub fn with_trusted_proxies(self, trusted_proxies: TrustedProxies) -> Self {
        Self {
            trusted_proxies,
            ..self
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The memory for bodies.
    pub(crate) fn body_budget(&self) -> &BodyBudget {
        &self.body_budget
    }

    /// The proxies in front.
    pub(crate) fn trusted_proxies(&self) -> &TrustedProxies {
        &self.trusted_proxies
    }

    /// The same, and every answer is counted.
    #[must_use]
    pub fn with_metrics(self, traffic: RequestMetrics) -> Self {
        Self {
            metrics: Some(traffic),
            ..self.with_route_recorder()
        }
    }

    /// The same, and every answer but those to probes has a span.
    #[must_use]
    pub fn with_tracing(self) -> Self {
        Self {
            is_traced: true,
            ..self.with_route_recorder()
        }
    }

    fn with_route_recorder(self) -> Self {
        if self.has_route_recorder {
            return self;
        }
        Self {
            routes: request_metrics::add_route_recorder(self.routes),
            has_route_recorder: true,
            ..self
        }
    }

    /// Answers a request, whatever happens.
    pub async fn handle_request(self, request: Request<Body>) -> Response<Body> {
        let span = if self.is_traced && !PROBE_PATHS.contains(&request.uri().path()) {
            request_span::start_request_span(request.headers())
        } else {
            Span::none()
        };
        self.handle_in_span(request).instrument(span).await
    }

    async fn handle_in_span(self, mut request: Request<Body>) -> Response<Body> {
        let start = Instant::now();
        let id = HttpRequestId::from_request(&request, &self.clock);
        let (fields, route) = (RequestLogFields::default(), MatchedRoute::default());
        let method = request.method().clone();
        let path = redact_path(request.uri().path());
        let connection = request.extensions().get::<ConnectionInfo>();
        let client = connection.map(ConnectionInfo::client);
        // Asked only of what came over a connection.
        let refusal = client.and_then(|_| check_host(&request));
        let admission = BodyAdmission::new(self.body_budget.clone());
        let extensions = request.extensions_mut();
        extensions.insert(fields.clone());
        extensions.insert(id.clone());
        extensions.insert(BodyTimeout(self.body_timeout));
        extensions.insert(admission.clone());
        if self.has_route_recorder {
            extensions.insert(route.clone());
        }

        let routes = self.routes;
        let answer = scope_request_id(id.0.clone(), async move {
            match refusal {
                Some(problem) => Ok(problem.into_response()),
                None => tower::ServiceExt::oneshot(routes, request).await,
            }
        });
        let mut response = match AssertUnwindSafe(answer).catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(panic) => problem_from_panic(panic.as_ref()).into_response(),
        };
        admission.release();
        let outcome = finalize(&mut response, &method, &id);
        let latency = start.elapsed();
        if let Some(traffic) = &self.metrics {
            traffic.record_response(&route, &method, response.status(), latency);
        }
        let tenant = fields.0.get().map(String::as_str);
        if self.is_traced {
            request_span::record_outcome(&RequestOutcome {
                method: request_metrics::method_label(&method),
                route: route.as_str(),
                status: response.status(),
                tenant,
                request_id: id.as_str(),
                error: outcome.code,
            });
        }
        log_request(&RequestLogLine {
            id: &id,
            method: method.as_str(),
            path: &path,
            status: response.status(),
            latency,
            tenant,
            client,
            outcome: &outcome,
        });
        response
    }
}

impl RequestLayer {
    /// The whole HTTP/1.1 answer, head and body, to bytes that are no HTTP request, and its log line. `peer` is the other end of
    /// the connection: there are no headers to find another client in.
    pub(crate) fn malformed_request_response(
        &self,
        status: StatusCode,
        peer: ClientAddress,
    ) -> Vec<u8> {
        if let Some(traffic) = &self.metrics {
            traffic.record_malformed();
        }
        let id = HttpRequestId(id::RequestId::mint(self.clock.now()).as_str().into());
        let code = ErrorCode::InvalidRequest.as_str();
        let message = match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "The request's headers are too large.",
            StatusCode::URI_TOO_LONG => "The request's path is too long.",
            _ => "This is not a well-formed HTTP request.",
        };
        log_request(&RequestLogLine {
            id: &id,
            method: "",
            path: "",
            status,
            latency: Duration::ZERO,
            tenant: None,
            client: Some(peer),
            outcome: &ResponseOutcome {
                code: Some(code),
                cause: None,
            },
        });
        let body = error_body_bytes(code, message, &Map::new(), &id);
        let reason = status.canonical_reason().unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\n{VERSION_HEADER}: {}\r\n{REQUEST_ID_HEADER}: {}\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            status.as_u16(),
            crate::VERSION,
            id.as_str(),
            body.len()
        );
        [head.into_bytes(), body].concat()
    }
}

impl tower::Service<Request<Body>> for RequestLayer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.clone().handle_request(request).map(Ok).boxed()
    }
}

/// A request of HTTP/1.1 names exactly one host, no request names two, and what is named is a host (RFC 9112, 3.2): a proxy in front
/// may go by another one than a program behind it, or read another one out of it.
fn check_host(request: &Request<Body>) -> Option<Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let first = hosts.next();
    let count = usize::from(first.is_some()) + hosts.count();
    let is_right_count = match request.version() {
        Version::HTTP_11 => count == 1,
        _ => count <= 1,
    };
    let message = if !is_right_count {
        format!("The request must have one Host header; it has {count}.")
    } else if first.is_some_and(|host| !is_host_and_port(host.as_bytes())) {
        "The Host header must be a host name or an address, with or without a port, such as example.com or [::1]:8080."
            .to_owned()
    } else {
        return None;
    };
    Some(Problem::invalid_request(&[Issue::new("", message)]))
}

/// Whether a value is `uri-host [":" port]` (RFC 9110, 7.2, with the hosts of RFC 3986, 3.2.2). An empty one is what a client sends
/// whose target names no host.
fn is_host_and_port(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else {
        return false;
    };
    let is_port = |port: &str| {
        port.is_empty()
            || (port.bytes().all(|it| it.is_ascii_digit()) && port.parse::<u16>().is_ok())
    };
    if let Some(literal) = text.strip_prefix('[') {
        let Some((address, port)) = literal.split_once(']') else {
            return false;
        };
        let is_port_or_end = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return address.parse::<Ipv6Addr>().is_ok() && is_port_or_end;
    }
    let (name, port) = text.split_once(':').unwrap_or((text, ""));
    text.is_empty() || (is_registered_name(name.as_bytes()) && is_port(port))
}

/// Whether this is a `reg-name` of RFC 3986, which IPv4 addresses are too, and not empty.
fn is_registered_name(name: &[u8]) -> bool {
    let is_escape = |at: usize| {
        let digits = name.get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    !name.is_empty()
        && name.iter().enumerate().all(|(at, byte)| match byte {
            b'%' => is_escape(at),
            byte => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte),
        })
}

/// A panic's own message is in the panic's log line, if anywhere; this is for the answer and the request's line.
fn problem_from_panic(payload: &(dyn Any + Send)) -> Problem {
    let text = payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Problem::internal_error(text).with_cause_class("panic")
}

/// What the log should know of an answer besides its status.
#[derive(Debug, Default)]
struct ResponseOutcome {
    code: Option<&'static str>,
    cause: Option<ErrorCause>,
}

/// Puts the headers on, and the body when the answer is a problem or a refusal.
fn finalize(response: &mut Response<Body>, method: &Method, id: &HttpRequestId) -> ResponseOutcome {
    let mut outcome = ResponseOutcome::default();
    let problem = response
        .extensions_mut()
        .remove::<Problem>()
        .or_else(|| problem_from_bare_status(response));
    if let Some(problem) = problem {
        let (code, message) = (problem.code.as_str(), &*problem.message);
        *response.body_mut() = error_body_bytes(code, message, &problem.details, id).into();
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        if let Some(after) = problem.retry_after {
            headers.insert(header::RETRY_AFTER, retry_after_seconds(after).into());
        }
        if problem.code == ErrorCode::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        outcome = ResponseOutcome {
            code: Some(code),
            cause: problem.cause,
        };
    }
    if *method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, APPLICATION_JSON);
    headers.insert(VERSION_HEADER, HeaderValue::from_static(crate::VERSION));
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(REQUEST_ID_HEADER, id);
    }
    outcome
}

/// An error that no handler of ours made: an unknown path, a wrong method, or the framework's own refusal.
fn problem_from_bare_status(response: &Response<Body>) -> Option<Problem> {
    let status = response.status();
    let is_ours = response.headers().get(header::CONTENT_TYPE) == Some(&APPLICATION_JSON);
    if !(status.is_client_error() || status.is_server_error()) || is_ours {
        return None;
    }
    Some(match status {
        StatusCode::NOT_FOUND => Problem::new(
            ErrorCode::NotFound,
            "There is nothing at this path. GET /openapi.json describes every path there is.",
        ),
        StatusCode::METHOD_NOT_ALLOWED => {
            let allowed = response.headers().get(header::ALLOW);
            let allowed = allowed.and_then(|allowed| allowed.to_str().ok());
            Problem::new(
                ErrorCode::MethodNotAllowed,
                match allowed {
                    Some(allowed) => {
                        format!("This path does not take this method; it takes {allowed}.")
                    }
                    None => "This path does not take this method.".to_owned(),
                },
            )
        }
        status if status.is_client_error() => Problem::new(
            ErrorCode::InvalidRequest,
            "The request cannot be understood as it stands.",
        ),
        status => Problem::internal_error(format!("an unexplained status {status}")),
    })
}

fn error_body_bytes(
    error: &'static str,
    message: &str,
    details: &Map<String, Value>,
    id: &HttpRequestId,
) -> Vec<u8> {
    let body = ErrorBody {
        valid: false,
        error,
        message,
        details: (!details.is_empty()).then_some(details),
        request_id: id.as_str(),
    };
    serde_json::to_vec(&body).expect("an error body is plain JSON")
}

/// A path as it may be logged: the query is gone already; a segment that is long enough to be a
/// secret is cut too, and so is the key of a purchase, which can be its token.
fn redact_path(path: &str) -> String {
    let names_purchase = path.starts_with("/v1/subjects/");
    let mut shown = String::with_capacity(path.len().min(MAX_LOGGED_PATH_LEN));
    for (position, segment) in path.split('/').enumerate() {
        if position > 0 {
            shown.push('/');
        }
        if segment.len() > MAX_LOGGED_SEGMENT_LEN || (names_purchase && position > 3) {
            shown.push('…');
        } else {
            shown.push_str(segment);
        }
        if shown.len() > MAX_LOGGED_PATH_LEN {
            shown.push('…');
            break;
        }
    }
    shown
}

/// One line a request.
struct RequestLogLine<'a> {
    id: &'a HttpRequestId,
    method: &'a str,
    path: &'a str,
    status: StatusCode,
    latency: Duration,
    tenant: Option<&'a str>,
    /// Logged if the request was refused.
    client: Option<ClientAddress>,
    outcome: &'a ResponseOutcome,
}

fn log_request(line: &RequestLogLine<'_>) {
    // Microseconds are enough, and a float of them is not a long one.
    let micros = u32::try_from(line.latency.as_micros()).unwrap_or(u32::MAX);
    let cause = line.outcome.cause.as_ref();
    let is_refused = line.status.is_client_error() || line.status.is_server_error();
    let client = line.client.filter(|_| is_refused);
    let address = client.map(|client| display(client.address));
    let claimed = client.and_then(|client| client.contradiction);
    let claimed = claimed.map(|(one, other)| format!("{one}, {other}"));
    macro_rules! http_request {
        ($level:ident) => {
            tracing::$level!(
                reqId = line.id.as_str(),
                method = line.method,
                path = line.path,
                status = line.status.as_u16(),
                latencyMs = f64::from(micros) / 1000.0,
                tenantId = line.tenant,
                error = line.outcome.code,
                clientAddress = address,
                claimedAddresses = claimed.as_deref(),
                causeClass = cause.map(|cause| cause.class.as_str()),
                cause = cause.map(|cause| cause.text.as_str()),
                "http_request"
            )
        };
    }
    match line.status.as_u16() {
        500 => http_request!(error),
        501.. => http_request!(warn),
        _ => http_request!(info),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use serde_json::json;
    use tower::ServiceExt as _;

    use super::*;
    use crate::base::clock::Timestamp;
    use crate::http::json::{FromJson, JsonBody, JsonFields, accept_notifications};

    struct Named(String);

    impl FromJson for Named {
        fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
            Some(Self(body.required_string("name", 1..=20)?))
        }
    }

    fn test_layer() -> RequestLayer {
        let routes = Router::new()
            .route("/fine", get(async || axum::Json(json!({"fine": true}))))
            .route(
                "/refused",
                get(async || {
                    Problem::rejection("PURCHASE_NOT_FOUND", "Gone.").with_detail("status", 410)
                }),
            )
            .route(
                "/limited",
                get(async || -> Result<(), Problem> {
                    Err(Problem::new(ErrorCode::RateLimited, "Slow down.")
                        .with_retry_after(Duration::from_millis(1500)))
                }),
            )
            .route(
                "/unauthenticated",
                get(async || Problem::new(ErrorCode::Unauthenticated, "Who are you?")),
            )
            .route(
                "/broken",
                get(async || Problem::internal_error("the password is hunter2")),
            )
            .route(
                "/panics",
                get(async || -> () { panic!("the password is hunter2") }),
            )
            .route(
                "/named",
                post(async |JsonBody(Named(name)): JsonBody<Named>| {
                    axum::Json(json!({"name": name}))
                }),
            )
            .route(
                "/small",
                post(async |JsonBody(Named(name)): JsonBody<Named>| {
                    axum::Json(json!({"name": name}))
                })
                .layer(accept_notifications(16)),
            )
            .route(
                "/axum",
                post(async |_: axum::Json<Value>| axum::Json(json!({}))),
            )
            .route(
                "/whoami",
                get(async || axum::Json(json!({"id": crate::telemetry::current_request_id()}))),
            );
        RequestLayer::new(
            routes,
            Clock::fixed(Timestamp::from_millis(0)),
            Duration::from_millis(250),
        )
    }

    async fn ask(request: Request<Body>) -> (Response<()>, Value) {
        let response = test_layer().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        (Response::from_parts(parts, ()), body)
    }

    fn get_request(path: &str) -> Request<Body> {
        Request::get(path).body(Body::empty()).unwrap()
    }

    fn post_request(path: &str, body: impl Into<Body>) -> Request<Body> {
        Request::post(path)
            .header("content-type", "application/json")
            .body(body.into())
            .unwrap()
    }

    #[tokio::test]
    async fn every_answer_has_the_three_headers_and_every_error_the_one_body() {
        let text = "text/plain".to_owned();
        for (request, status, code) in [
            (get_request("/fine"), 200, None),
            (get_request("/refused"), 200, Some("PURCHASE_NOT_FOUND")),
            (get_request("/limited"), 429, Some("RATE_LIMITED")),
            (
                get_request("/unauthenticated"),
                401,
                Some("UNAUTHENTICATED"),
            ),
            (get_request("/broken"), 500, Some("INTERNAL_ERROR")),
            (get_request("/panics"), 500, Some("INTERNAL_ERROR")),
            (get_request("/nowhere"), 404, Some("NOT_FOUND")),
            (get_request("/"), 404, Some("NOT_FOUND")),
            (get_request("/named"), 405, Some("METHOD_NOT_ALLOWED")),
            (post_request("/fine", "{}"), 405, Some("METHOD_NOT_ALLOWED")),
            (post_request("/named", r#"{"name":"Zoe"}"#), 200, None),
            (post_request("/named", "{}"), 400, Some("INVALID_REQUEST")),
            (post_request("/axum", text), 400, Some("INVALID_REQUEST")),
        ] {
            let what = format!("{} {}", request.method(), request.uri());
            let (response, body) = ask(request).await;
            assert_eq!(response.status(), status, "{what}");
            let headers = response.headers();
            assert_eq!(headers["content-type"], "application/json", "{what}");
            assert_eq!(headers["x-attesto-version"], crate::VERSION, "{what}");
            let id = headers["x-request-id"].to_str().unwrap();
            assert!(id.parse::<id::RequestId>().is_ok(), "{what}: {id}");
            if let Some(code) = code {
                assert_eq!(body["valid"], false, "{what}");
                assert_eq!(body["error"], code, "{what}");
                assert_eq!(body["requestId"], id, "{what}");
                assert!(!body["message"].as_str().unwrap().is_empty(), "{what}");
            }
            assert!(!body.to_string().contains("hunter2"), "{what}: {body}");
        }
    }

    #[tokio::test]
    async fn what_a_program_can_use_is_said_in_headers_and_details() {
        let (response, body) = ask(get_request("/limited")).await;
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(body["details"]["retryAfterSeconds"], 2);
        let (response, _) = ask(get_request("/unauthenticated")).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let (response, body) = ask(get_request("/named")).await;
        assert_eq!(response.headers()["allow"], "POST");
        assert!(body.get("details").is_none());
        let (_, body) = ask(get_request("/refused")).await;
        assert_eq!(body["details"], json!({"status": 410}));
    }

    #[tokio::test]
    async fn a_harmless_request_id_is_kept() {
        for (sent, kept) in [
            ("abc-DEF_1.2", true),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
            ("", false),
            ("a b", false),
            ("a\"b", false),
            ("a/b", false),
        ] {
            let mut request = get_request("/whoami");
            request
                .headers_mut()
                .insert("x-request-id", sent.parse().unwrap());
            let (response, body) = ask(request).await;
            assert_eq!(response.headers()["x-request-id"] == sent, kept, "{sent:?}");
            assert_eq!(
                response.headers()["x-request-id"],
                body["id"].as_str().unwrap()
            );
        }
        let mut twice = get_request("/fine");
        twice
            .headers_mut()
            .append("x-request-id", "a".parse().unwrap());
        twice
            .headers_mut()
            .append("x-request-id", "b".parse().unwrap());
        let (response, _) = ask(twice).await;
        assert!(
            response.headers()["x-request-id"]
                .to_str()
                .unwrap()
                .starts_with("req_")
        );
    }

    #[tokio::test]
    async fn a_head_request_is_answered_without_a_body() {
        for (path, status) in [("/fine", 200), ("/nowhere", 404)] {
            let head = Request::head(path).body(Body::empty()).unwrap();
            let response = test_layer().oneshot(head).await.unwrap();
            assert_eq!(response.status(), status);
            let body = axum::body::to_bytes(response.into_body(), 100)
                .await
                .unwrap();
            assert!(body.is_empty());
        }
    }

    #[tokio::test]
    async fn a_body_is_bounded_by_the_bytes_that_arrive() {
        let just = r#"{"name":"123456"}"#;
        assert_eq!(just.len(), 17);
        let chunks = |body: &'static str| {
            let pieces = body.as_bytes().chunks(5).map(Ok::<_, Infallible>);
            Body::from_stream(futures_util::stream::iter(pieces))
        };
        for (body, status) in [
            (Body::from(&just[..16]), 400),
            (Body::from(r#"{"name":"12345"}"#), 200),
            (chunks(r#"{"name":"12345"}"#), 200),
            (Body::from(just), 400),
            (chunks(just), 400),
        ] {
            let (response, _) = ask(post_request("/small", body)).await;
            assert_eq!(response.status(), status);
        }
        let (_, body) = ask(post_request("/small", chunks(just))).await;
        assert_eq!(body["details"], json!({"maxBytes": 16}));
        let mut announced = post_request("/small", Body::empty());
        announced
            .headers_mut()
            .insert("content-length", "99999999999".parse().unwrap());
        let (_, body) = ask(announced).await;
        assert_eq!(body["details"], json!({"maxBytes": 16}));
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let never = Body::from_stream(futures_util::stream::pending::<Result<&[u8], Infallible>>());
        let (response, body) = ask(post_request("/named", never)).await;
        assert_eq!(response.status(), 400);
        assert_eq!(
            body["message"],
            "The body did not arrive within 0.25 seconds."
        );
    }

    #[test]
    fn a_logged_path_holds_no_secret() {
        let key = format!("attesto_live_{}", "a".repeat(43));
        assert_eq!(redact_path("/v1/apple/verify"), "/v1/apple/verify");
        assert_eq!(redact_path(&format!("/v1/{key}/x")), "/v1/…/x");
        let tenant = id::TenantId::mint(Timestamp::from_millis(1));
        let path = format!("/v1/webhooks/apple/{tenant}");
        assert_eq!(redact_path(&path), path);
        assert_eq!(
            redact_path("/v1/subjects/google/to%2Fken"),
            "/v1/subjects/google/…"
        );
        assert_eq!(
            redact_path("/v1/subjects/apple/1/2"),
            "/v1/subjects/apple/…/…"
        );
        assert!(redact_path(&"/a".repeat(10_000)).len() < 210);
    }
}
