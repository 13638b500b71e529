//! The settings of traces: the collector, and the share of requests that is traced.

use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

/// Where spans are sent, and the share of requests that is traced.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// The value of `OTEL_EXPORTER_OTLP_ENDPOINT` with `/v1/traces` appended, as OTLP specifies.
    pub url: Url,
    /// The headers in `OTEL_EXPORTER_OTLP_HEADERS`. Their values are marked as sensitive.
    pub headers: HeaderMap,
    /// The value of `OTEL_SERVICE_NAME`.
    pub service_name: String,
    /// The value of `OTEL_TRACES_SAMPLER_ARG`: the share of requests that is traced, from 0 to 1, independent of
    /// `traceparent`.
    pub sample_ratio: f64,
}

/// The URL for traces at an OTLP endpoint.
pub fn traces_url(mut endpoint: Url) -> Url {
    let path = format!("{}/v1/traces", endpoint.path().trim_end_matches('/'));
    endpoint.set_path(&path);
    endpoint
}

/// Parses `name=value,name=value` with percent-encoded values. `None` if the text has another form or no header.
pub fn parse_headers(text: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let name = HeaderName::try_from(name.trim()).ok()?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let mut value = HeaderValue::try_from(&*value).ok()?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    (!headers.is_empty()).then_some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_base() {
        for (endpoint, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://otlp.test/x/", "https://otlp.test/x/v1/traces"),
        ] {
            assert_eq!(traces_url(endpoint.parse().unwrap()).as_str(), url);
        }
    }

    #[test]
    fn headers_are_pairs_and_are_not_printed() {
        let found = parse_headers("Authorization=Basic%20abc=, x-team = shop ,").unwrap();
        assert_eq!(found["authorization"], "Basic abc=");
        assert_eq!(found["x-team"], "shop");
        assert!(!format!("{found:?}").contains("abc"));
        for nonsense in ["", " , ", "abc", "a b=c", "a=%0a", "=b"] {
            assert!(parse_headers(nonsense).is_none(), "{nonsense}");
        }
    }
}
