//! Reads a request's body whole, bounded in bytes and in time.
//!
//! Both bounds count what really arrives: a `Content-Length` is used only to refuse a body that is too large.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Extensions, HeaderMap, header};
use http_body_util::BodyExt as _;

use super::problem::{ErrorCode, Issue, Problem};

/// The most a body may weigh where its route does not say otherwise.
pub const DEFAULT_MAX_BODY_BYTES: usize = 16 * 1024;
/// How long a whole body may take where the server does not say otherwise.
const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(12);

/// How many bytes the body of this request may have. A request extension; see [`limit_body_size`].
#[derive(Clone, Copy, Debug)]
struct MaxBodyBytes(usize);

/// How long the whole body of this request may take. A request extension, set by the server.
#[derive(Clone, Copy, Debug)]
pub struct BodyTimeout(pub Duration);

/// A layer for a route whose bodies may have up to `max_bytes` bytes.
pub fn limit_body_size(max_bytes: usize) -> axum::Extension<impl Clone + Send + Sync + 'static> {
    axum::Extension(MaxBodyBytes(max_bytes))
}

/// Reads the body, or says which bound it broke.
pub async fn read_body(
    headers: &HeaderMap,
    extensions: &Extensions,
    body: Body,
) -> Result<Bytes, Problem> {
    let max = extensions
        .get::<MaxBodyBytes>()
        .map_or(DEFAULT_MAX_BODY_BYTES, |max| max.0);
    let timeout = extensions
        .get::<BodyTimeout>()
        .map_or(DEFAULT_BODY_TIMEOUT, |timeout| timeout.0);
    // A body that announces too much is refused before its sender has to send it.
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max as u64) {
        return Err(body_too_large(max));
    }
    match tokio::time::timeout(timeout, collect_body(body, max)).await {
        Ok(read) => read,
        Err(_) => Err(Problem::invalid_request(&[Issue::new(
            "",
            format!(
                "The body did not arrive within {} seconds.",
                timeout.as_secs_f64()
            ),
        )])),
    }
}

async fn collect_body(mut body: Body, max: usize) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|cause| {
            Problem::invalid_request(&[Issue::new("", "The body broke off before its end.")])
                .with_cause(cause)
        })?;
        // Trailers say nothing that is wanted here.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let so_far = if rest.is_empty() {
            first.len()
        } else {
            rest.len()
        };
        if so_far + data.len() > max {
            return Err(body_too_large(max));
        }
        // Nearly every body arrives in one piece, which is then not copied.
        if rest.is_empty() && first.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() {
        first
    } else {
        Bytes::from(rest)
    })
}

/// The body has more than `max` bytes.
pub fn body_too_large(max: usize) -> Problem {
    Problem::new(
        ErrorCode::InvalidRequest,
        format!("The body is larger than {max} bytes."),
    )
    .with_detail("maxBytes", max)
}
