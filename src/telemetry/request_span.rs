//! The span of a request.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The header of W3C Trace Context. Its companion `tracestate` is not read, because nothing here passes it on.
const TRACEPARENT: &str = "traceparent";

/// The outcome of a request.
pub struct RequestOutcome<'a> {
    /// The method, such as `POST`, or `other` for an unknown one.
    pub method: &'static str,
    /// The pattern of the route, never the requested path.
    pub route: &'a str,
    /// The status of the response.
    pub status: StatusCode,
    /// The id of the tenant, if the caller was authenticated.
    pub tenant: Option<&'a str>,
    /// The request id.
    pub request_id: &'a str,
    /// The error code, if the response is an error.
    pub error: Option<&'static str>,
}

/// Starts the span of a request with these headers. It belongs to the trace that the header `traceparent` names, or
/// begins a new trace. The span is disabled if traces are off.
pub fn start_request_span(headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "request",
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = Empty,
        http.route = Empty,
        http.response.status_code = Empty,
        error.type = Empty,
        attesto.request_id = Empty,
        attesto.tenant_id = Empty,
    );
    if !span.is_disabled() {
        let known = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &TraceparentHeader(headers));
        if known.has_active_span() {
            // This can only fail after the span has started.
            let _ = span.set_parent(known);
        }
    }
    span
}

/// Records the outcome of a request in the current span.
pub fn record_outcome(ended: &RequestOutcome<'_>) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    span.record("http.request.method", ended.method);
    span.record("http.route", ended.route);
    span.record(
        "http.response.status_code",
        i64::from(ended.status.as_u16()),
    );
    span.record("attesto.request_id", ended.request_id);
    if let Some(tenant) = ended.tenant {
        span.record("attesto.tenant_id", tenant);
    }
    if let Some(error) = ended.error {
        span.record("error.type", error);
    }
    if ended.status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    // The span's name contains the route, which is only known now.
    Context::map_current(|context| {
        let name = format!("{} {}", ended.method, ended.route);
        context.span().update_name(name);
    });
}

/// The id of the trace that the current span belongs to.
pub fn current_trace_id() -> Option<TraceId> {
    Context::map_current(|context| {
        let span = context.span();
        let known = span.span_context();
        known.is_valid().then(|| known.trace_id())
    })
}

/// Reads the `traceparent` of a request, if it has exactly one.
struct TraceparentHeader<'a>(&'a HeaderMap);

impl Extractor for TraceparentHeader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let mut sent = self.0.get_all(TRACEPARENT).iter();
        match (sent.next(), sent.next()) {
            (Some(only), None) if key == TRACEPARENT => only.to_str().ok(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}
