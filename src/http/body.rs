//! Reads a request's body whole, bounded in bytes and in time.
//!
//! Both bounds count what really arrives: a `Content-Length` is used only to refuse a body that is too large.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::http::request::Parts;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::body_budget::{BodyAdmission, BodyClaim, BodyKind};
use super::connection_info::ConnectionInfo;
use super::problem::{ErrorCode, Issue, Problem};

/// The most a body may weigh where its route does not say otherwise.
pub const DEFAULT_MAX_BODY_BYTES: usize = 16 * 1024;
/// How long a whole body may take where the server does not say otherwise.
const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(12);

/// How many bytes the body of this request may have, and whose it is. A request extension; see [`accept_notifications`].
#[derive(Clone, Copy, Debug)]
struct BodyLimit {
    max_bytes: usize,
    kind: BodyKind,
}

/// How long the whole body of this request may take. A request extension, set by the server.
#[derive(Clone, Copy, Debug)]
pub struct BodyTimeout(pub Duration);

/// A layer for a route without API keys, whose bodies may have up to `max_bytes` bytes: they share the part of the memory
/// that is for strangers.
pub fn accept_notifications(
    max_bytes: usize,
) -> axum::Extension<impl Clone + Send + Sync + 'static> {
    axum::Extension(BodyLimit {
        max_bytes,
        kind: BodyKind::Unauthenticated,
    })
}

/// Reads the body, or says which bound it broke. The rest of the request is dropped first: its head can weigh as much as a
/// body, and nothing counts it.
pub async fn read_body(parts: Parts, body: Body) -> Result<Bytes, Problem> {
    let Parts {
        headers,
        mut extensions,
        ..
    } = parts;
    let limit = extensions.remove().unwrap_or(BodyLimit {
        max_bytes: DEFAULT_MAX_BODY_BYTES,
        kind: BodyKind::Authenticated,
    });
    let timeout = extensions
        .remove::<BodyTimeout>()
        .map_or(DEFAULT_BODY_TIMEOUT, |timeout| timeout.0);
    // A body that announces too much is refused before its sender has to send it.
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit.max_bytes as u64) {
        return Err(body_too_large(limit.max_bytes));
    }
    let connection = extensions.remove::<ConnectionInfo>();
    let admission = extensions.remove::<BodyAdmission>();
    drop((headers, extensions));
    let mut receipt = BodyReceipt {
        max_bytes: limit.max_bytes,
        claim: admission.as_ref().map(|admission| {
            let peer = connection.as_ref().map(ConnectionInfo::network);
            admission.budget.start_claim(limit.kind, peer)
        }),
        received: Vec::new(),
        announced: announced.and_then(|length| usize::try_from(length).ok()),
    };
    // Until the answer is known, a newer connection may take this one's place.
    let _receiving = connection.as_ref().map(ConnectionInfo::start_receiving);
    // Requests with an API key are the most, and need no second reading of the clock.
    let start = (limit.kind == BodyKind::Unauthenticated).then(Instant::now);
    let read = tokio::time::timeout(timeout, receipt.receive(body)).await;
    let Ok(read) = read else {
        return Err(Problem::invalid_request(&[Issue::new(
            "",
            format!(
                "The body did not arrive within {} seconds.",
                timeout.as_secs_f64()
            ),
        )]));
    };
    if let (Some(admission), Some(claim)) = (admission, receipt.claim) {
        if let Some(start) = start
            && matches!(&read, Err(refusal) if refusal.code == ErrorCode::Unavailable)
        {
            drop((claim, receipt.received));
            admission.budget.delay_refusal(start).await;
        } else {
            admission.hold(claim);
        }
    }
    read
}

/// A body that is being received.
struct BodyReceipt {
    max_bytes: usize,
    claim: Option<BodyClaim>,
    /// Empty while there is one piece only.
    received: Vec<u8>,
    announced: Option<usize>,
}

impl BodyReceipt {
    async fn receive(&mut self, mut body: Body) -> Result<Bytes, Problem> {
        let mut first = Bytes::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|cause| {
                Problem::invalid_request(&[Issue::new("", "The body broke off before its end.")])
                    .with_cause(cause)
            })?;
            // Trailers say nothing that is wanted here.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let so_far = first.len() + self.received.len();
            if so_far + data.len() > self.max_bytes {
                return Err(body_too_large(self.max_bytes));
            }
            // Nearly every body arrives in one piece, which is then not copied.
            if so_far == 0 {
                self.take_bytes(data.len()).await?;
                first = data;
                continue;
            }
            self.reserve(so_far + data.len(), so_far).await?;
            self.received.extend_from_slice(&first);
            first = Bytes::new();
            self.received.extend_from_slice(&data);
        }
        Ok(if self.received.is_empty() {
            first
        } else {
            Bytes::from(std::mem::take(&mut self.received))
        })
    }

    /// Makes room for `needed` bytes, of which `claimed` at least are in the claim. What a vector has in reserve is claimed
    /// too, unless its length is known: then no page of it is touched before bytes arrive.
    async fn reserve(&mut self, needed: usize, claimed: usize) -> Result<(), Problem> {
        if let Some(announced) = self.announced.filter(|announced| *announced >= needed) {
            self.take_bytes(needed - claimed).await?;
            self.received
                .reserve_exact(announced.saturating_sub(self.received.len()));
            return Ok(());
        }
        let capacity = self.received.capacity();
        if capacity < needed {
            let grown = needed.next_power_of_two().min(self.max_bytes);
            self.take_bytes(grown - capacity.max(claimed)).await?;
            self.received.reserve_exact(grown - self.received.len());
        }
        Ok(())
    }

    async fn take_bytes(&mut self, bytes: usize) -> Result<(), Problem> {
        match &mut self.claim {
            Some(claim) => Ok(claim.take_bytes(bytes).await?),
            None => Ok(()),
        }
    }
}

/// The body has more than `max` bytes.
pub fn body_too_large(max: usize) -> Problem {
    Problem::new(
        ErrorCode::InvalidRequest,
        format!("The body is larger than {max} bytes."),
    )
    .with_detail("maxBytes", max)
}
