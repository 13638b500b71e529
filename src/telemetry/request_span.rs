//! The span around an answer.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// W3C Trace Context's header. `tracestate`, which vendors use, is not read: nothing here passes it on.
const TRACEPARENT: &str = "traceparent";

/// The outcome of a request.
pub struct RequestOutcome<'a> {
    /// `POST`, or `other`.
    pub method: &'static str,
    /// The route's pattern, never the path.
    pub route: &'a str,
    /// The status of the answer.
    pub status: StatusCode,
    /// The tenant that made the request, if it is known.
    pub tenant: Option<&'a str>,
    /// The request id.
    pub request_id: &'a str,
    /// The error's code, if it is one.
    pub error: Option<&'static str>,
}

/// A span for an answer to a request with these headers: a part of the trace that its `traceparent` names, or the first
/// of a new one. A disabled span when traces are off.
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
            // It fails only once the span has begun.
            let _ = span.set_parent(known);
        }
    }
    span
}

/// Writes the outcome of a request into the current span.
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
    // Its name is known only now.
    Context::map_current(|context| {
        let name = format!("{} {}", ended.method, ended.route);
        context.span().update_name(name);
    });
}

/// The trace that what runs now belongs to.
pub fn current_trace_id() -> Option<TraceId> {
    Context::map_current(|context| {
        let span = context.span();
        let known = span.span_context();
        known.is_valid().then(|| known.trace_id())
    })
}

/// A request's `traceparent`, when there is exactly one.
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
