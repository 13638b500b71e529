//! Counts requests and how long their answers take, by route.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::http::{Method, Request, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::Response;

use crate::telemetry::metrics::{Counter, Histogram, MetricVec, MetricsRegistry};

/// Metrics of requests. Clones share them.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    requests: MetricVec<3, Counter>,
    durations: MetricVec<2, Histogram>,
}

/// Which route a request was for, learned on its way. A request extension.
#[derive(Clone, Debug, Default)]
pub(super) struct MatchedRoute(Arc<OnceLock<MatchedPath>>);

impl MatchedRoute {
    /// The route's pattern. Never the path of the request, which a caller can choose freely.
    pub(super) fn as_str(&self) -> &str {
        self.0.get().map_or("unmatched", MatchedPath::as_str)
    }
}

impl RequestMetrics {
    /// Counts into `registry`.
    pub fn new(registry: &MetricsRegistry) -> Self {
        Self {
            requests: registry.register_counter_vec(
                "attesto_http_requests_total",
                "Requests answered.",
                ["route", "method", "status_class"],
            ),
            durations: registry.register_histogram_vec(
                "attesto_http_request_duration_seconds",
                "How long answers took, from the request's head to the answer's.",
                ["route", "method"],
            ),
        }
    }

    /// Counts an answer and its duration.
    pub(super) fn record_response(
        &self,
        route: &MatchedRoute,
        method: &Method,
        status: StatusCode,
        took: Duration,
    ) {
        let (route, method) = (route.as_str(), method_label(method));
        let class = match status.as_u16() {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.requests
            .with_label_values([route, method, class])
            .inc();
        self.durations
            .with_label_values([route, method])
            .observe(took.as_secs_f64());
    }

    /// One that was no HTTP request.
    pub(super) fn record_malformed(&self) {
        self.requests
            .with_label_values(["malformed", "other", "4xx"])
            .inc();
    }
}

/// The method's name, or `other`, so that callers cannot create labels.
pub(super) fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Routes that say which of them a request is for.
pub(super) fn add_route_recorder(routes: Router) -> Router {
    routes.layer(from_fn(record_matched_route))
}

async fn record_matched_route(request: Request<Body>, next: Next) -> Response {
    let extensions = request.extensions();
    if let (Some(route), Some(path)) = (
        extensions.get::<MatchedRoute>(),
        extensions.get::<MatchedPath>(),
    ) {
        let _ = route.0.set(path.clone());
    }
    next.run(request).await
}
