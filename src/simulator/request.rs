//! A request to a simulated store and its answer, reduced to what the stores look at.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::form_urlencoded;

use super::state::fault::Fault;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct SimulatorRequest {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path as sent, with its query, for the request log.
    pub path: String,
    /// The path's segments, each percent-decoded once.
    pub path_segments: Vec<String>,
    /// The query's pairs, decoded.
    pub query: Vec<(String, String)>,
    /// The token after `Bearer ` in `Authorization`.
    pub bearer_token: Option<String>,
    /// The URL at which the caller reaches the simulator, without a slash at the end.
    pub base_url: String,
    pub body: Bytes,
}

impl SimulatorRequest {
    pub(super) fn new(method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Self {
        let query = uri.query().unwrap_or_default();
        let segments = uri.path().split('/').filter(|segment| !segment.is_empty());
        Self {
            method: method.to_string(),
            path: uri
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
            path_segments: segments
                .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
                .collect(),
            query: form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
            bearer_token: headers
                .get(header::AUTHORIZATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.strip_prefix("Bearer "))
                .map(str::to_owned),
            base_url: base_url(headers, uri),
            body,
        }
    }

    /// The path's segments below the store's own first two, such as `apple/sandbox`.
    pub(super) fn segments_below_store(&self) -> Vec<&str> {
        self.path_segments
            .iter()
            .skip(2)
            .map(String::as_str)
            .collect()
    }

    /// The first value of a query parameter.
    pub(super) fn query_parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The URL at which the caller reaches the simulator, without a slash at the end.
pub(super) fn base_url(headers: &HeaderMap, uri: &Uri) -> String {
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .or_else(|| uri.host())
        .unwrap_or("localhost");
    format!("http://{host}")
}

/// A body as JSON; an empty one is an empty object. `Err` is a sentence for the caller.
pub(super) fn parse_json_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let body = if body.trim_ascii().is_empty() {
        b"{}"
    } else {
        body
    };
    serde_json::from_slice(body).map_err(|error| format!("The body cannot be used: {error}."))
}

/// An answer of a simulated store.
#[derive(Clone, Debug, Default)]
pub(super) struct SimulatorResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// How long to wait before answering.
    pub delay: Duration,
    /// Break the connection in the middle of the body.
    pub cut: bool,
    /// Why the simulated store refused, where the real one gives no reason: for the request log.
    pub remark: Option<String>,
}

impl SimulatorResponse {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self::with_content_type(status, "application/json", body.to_string())
    }

    fn with_content_type(
        status: u16,
        content_type: &'static str,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            body: body.into(),
            ..Self::empty(status)
        }
        .with_header(header::CONTENT_TYPE, content_type)
    }

    pub(super) fn empty(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            ..Self::default()
        }
    }

    /// The answer of a gateway in front of a store: a page, not the store's JSON.
    pub(super) fn html_error_page(status: u16) -> Self {
        let page = format!("<html><body><h1>{status}</h1></body></html>\n");
        Self::with_content_type(status, "text/html; charset=utf-8", page)
    }

    /// The answer to a call that the simulator does not have.
    pub(super) fn not_simulated() -> Self {
        Self::html_error_page(404).with_remark("this call is not simulated")
    }

    /// The body that a fault was given, or a gateway's page of its status.
    pub(super) fn from_fault(fault: &Fault, status: Option<u16>) -> Self {
        let Some(body) = &fault.body else {
            return Self::html_error_page(status.unwrap_or(500));
        };
        let content_type = if body.trim_start().starts_with(['{', '[']) {
            "application/json"
        } else {
            "text/html; charset=utf-8"
        };
        Self::with_content_type(status.unwrap_or(200), content_type, body.as_str())
    }

    /// Delays the answer, breaks it off, and notes the fault in the request log.
    pub(super) fn apply_fault(&mut self, fault: &Fault) {
        self.delay = Duration::from_millis(fault.delay_ms);
        self.cut = fault.cut;
        self.remark = Some("as a fault asked for".to_owned());
    }

    /// Adds a header; a value that HTTP does not allow is left out.
    pub(super) fn with_header(mut self, name: HeaderName, value: impl AsRef<str>) -> Self {
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Notes the reason in the request log.
    pub(super) fn with_remark(mut self, remark: impl Into<String>) -> Self {
        self.remark = Some(remark.into());
        self
    }
}
