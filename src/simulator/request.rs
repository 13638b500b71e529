//! One request and one answer, free of any HTTP library: what the simulated stores are written in.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::state::fault::Fault;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct SimulatorRequest {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path as sent, for the log.
    pub path: String,
    /// The path's segments, each percent-decoded.
    pub path_segments: Vec<String>,
    /// The query's pairs, decoded.
    pub query: Vec<(String, String)>,
    /// What follows `Bearer ` in `Authorization`.
    pub bearer_token: Option<String>,
    /// Whether the caller asks for JSON by name.
    pub wants_json: bool,
    /// The `Host` the caller knows us by.
    pub host: String,
    /// The body.
    pub body: Vec<u8>,
}

impl SimulatorRequest {
    /// Where the caller reaches us, without a slash at the end.
    pub(super) fn base_url(&self) -> String {
        format!("http://{}", self.host)
    }

    /// The first value of a query parameter.
    pub(super) fn query_parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON; an empty one is an empty object. `Err` is a sentence for the caller.
    pub(super) fn parse_json_body<T: DeserializeOwned>(&self) -> Result<T, String> {
        let body: &[u8] = if self.body.trim_ascii().is_empty() {
            b"{}"
        } else {
            &self.body
        };
        serde_json::from_slice(body).map_err(|error| format!("The body cannot be used: {error}."))
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub(super) struct SimulatorResponse {
    /// The HTTP status.
    pub status: u16,
    /// Headers beside those HTTP itself needs.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// How long to wait before answering.
    pub delay: Duration,
    /// Break the connection in the middle of the body.
    pub cut: bool,
    /// Why the simulated store refused, where the real one keeps silent: for the request log.
    pub remark: Option<String>,
}

impl SimulatorResponse {
    /// JSON.
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self::with_content_type(status, "application/json", body.to_string())
    }

    /// JSON for a person at a terminal.
    pub(super) fn pretty_json(status: u16, body: &Value) -> Self {
        Self::with_content_type(status, "application/json", format!("{body:#}\n"))
    }

    /// Text of any kind.
    pub(super) fn with_content_type(
        status: u16,
        content_type: &str,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            status,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            body: body.into(),
            ..Self::default()
        }
    }

    /// No body at all.
    pub(super) fn empty(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// What a gateway in front of a store answers: a page, not the store's JSON.
    pub(super) fn html_error_page(status: u16) -> Self {
        let page = format!("<html><body><h1>{status}</h1></body></html>\n");
        Self::with_content_type(status, "text/html; charset=utf-8", page)
    }

    /// The control API's own error.
    pub(super) fn control_error(status: u16, sentence: impl Into<String>) -> Self {
        Self::pretty_json(status, &json!({ "error": sentence.into() }))
    }

    /// The body that a fault was given, or a gateway's page of its status.
    pub(super) fn from_fault(fault: &Fault, status: Option<u16>) -> Self {
        match &fault.body {
            Some(body) => {
                let looks_like_json = body.trim_start().starts_with(['{', '[']);
                let content_type = if looks_like_json {
                    "application/json"
                } else {
                    "text/html; charset=utf-8"
                };
                Self::with_content_type(status.unwrap_or(200), content_type, body.as_str())
            }
            None => Self::html_error_page(status.unwrap_or(500)),
        }
    }

    /// Makes it late, breaks it off, and notes that this was asked for.
    pub(super) fn apply_fault(&mut self, fault: &Fault) {
        self.delay = Duration::from_millis(fault.delay_ms);
        self.cut = fault.cut;
        self.remark = Some("as a fault asked for".to_owned());
    }

    /// Adds a header.
    pub(super) fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Notes for the request log why.
    pub(super) fn with_remark(mut self, remark: impl Into<String>) -> Self {
        self.remark = Some(remark.into());
        self
    }
}

/// A segment of a path without its `%XX`; bytes that are no UTF-8 become the replacement character.
pub(super) fn percent_decode_segment(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|pair| std::str::from_utf8(pair).ok());
        match hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_decoded_once() {
        for (sent, meant) in [
            ("abc.AO-J1_x", "abc.AO-J1_x"),
            ("a%2Fb%3Ac", "a/b:c"),
            ("a%252Fb", "a%2Fb"),
            ("a+b", "a+b"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("%C3%A9", "é"),
            ("%FF", "\u{fffd}"),
        ] {
            assert_eq!(percent_decode_segment(sent), meant);
        }
    }
}
