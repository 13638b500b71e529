//! The headers of one attempt.

use std::sync::Arc;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::clock::Timestamp;
use crate::deliveries::endpoint::Secrets;
use crate::deliveries::guard::{AllowList, Target};
use crate::deliveries::signature;
use crate::id::{DeliveryId, EventId};

/// What is sent, where, and what signs it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// `X-Attesto-Delivery-Id`
    pub delivery: DeliveryId,
    /// `X-Attesto-Event-Id` and `webhook-id`: the same at every attempt and every redelivery.
    pub event: EventId,
    /// `X-Attesto-Event`: the event's word, such as `subscription.renewed`.
    pub word: String,
    /// `X-Attesto-Attempt`, counted from one.
    pub number: u32,
    /// The callback, frozen when the event was stored.
    pub url: String,
    /// The body, as it was stored.
    pub body: Bytes,
    /// What signs it.
    pub secrets: Arc<Secrets>,
    /// What an operator opened for this tenant.
    pub allowed: Arc<AllowList>,
}

/// The request. `None` when a header cannot hold what it should, which no stored event causes.
pub(super) fn build(
    attempt: &Attempt,
    target: &Target,
    now: Timestamp,
) -> Option<Request<Full<Bytes>>> {
    const USER_AGENT: &str = concat!("Attesto/", env!("CARGO_PKG_VERSION"));
    let event = attempt.event.as_str();
    let signed = signature::sign(&attempt.secrets, event, now.seconds(), &attempt.body);
    let text = |text: &str| HeaderValue::from_str(text).ok();
    let event = text(event)?;
    let timestamp = HeaderValue::from(now.seconds());

    let mut request = Request::post(target.path.clone())
        .body(Full::new(attempt.body.clone()))
        .ok()?;
    let headers: &mut HeaderMap = request.headers_mut();
    headers.insert(header::HOST, target.authority.clone());
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    for (name, value) in [
        ("x-attesto-event", text(&attempt.word)?),
        ("x-attesto-event-id", event.clone()),
        ("x-attesto-delivery-id", text(attempt.delivery.as_str())?),
        ("x-attesto-attempt", HeaderValue::from(attempt.number)),
        ("x-attesto-timestamp", timestamp.clone()),
        (
            "x-attesto-version",
            HeaderValue::from_static(crate::VERSION),
        ),
        ("x-attesto-signature", text(&signed.attesto)?),
        ("webhook-id", event),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", text(&signed.standard)?),
    ] {
        headers.insert(HeaderName::from_static(name), value);
    }
    Some(request)
}
