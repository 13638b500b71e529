//! The headers of one attempt.

use std::sync::Arc;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::base::clock::Timestamp;
use crate::base::id::{DeliveryId, EventId};
use crate::deliveries::endpoint::SigningSecrets;
use crate::deliveries::signature;
use crate::egress::{AllowList, CallbackTarget};

/// What is sent, where, and what signs it.
#[derive(Clone, Debug)]
pub struct DeliveryAttempt {
    /// `X-Attesto-Delivery-Id`
    pub delivery_id: DeliveryId,
    /// `X-Attesto-Event-Id` and `webhook-id`: the same at every attempt and every redelivery.
    pub event_id: EventId,
    /// `X-Attesto-Event`: the event's word, such as `subscription.renewed`.
    pub event_type: String,
    /// `X-Attesto-Attempt`, counted from one.
    pub attempt_number: u32,
    /// The callback, frozen when the event was stored.
    pub callback_url: String,
    /// The body, as it was stored.
    pub body: Bytes,
    /// What signs it.
    pub secrets: Arc<SigningSecrets>,
    /// What an operator opened for this tenant.
    pub allow_list: Arc<AllowList>,
}

/// The request. `None` when a header cannot hold what it should, which no stored event causes.
pub(super) fn build_request(
    attempt: &DeliveryAttempt,
    target: &CallbackTarget,
    now: Timestamp,
) -> Option<Request<Full<Bytes>>> {
    const USER_AGENT: &str = concat!("Attesto/", env!("CARGO_PKG_VERSION"));
    let event = attempt.event_id.as_str();
    let signed = signature::sign_delivery(&attempt.secrets, event, now.as_secs(), &attempt.body);
    let text = |text: &str| HeaderValue::from_str(text).ok();
    let event = text(event)?;
    let timestamp = HeaderValue::from(now.as_secs());

    let mut request = Request::post(target.path_and_query.clone())
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
        ("x-attesto-event", text(&attempt.event_type)?),
        ("x-attesto-event-id", event.clone()),
        ("x-attesto-delivery-id", text(attempt.delivery_id.as_str())?),
        (
            "x-attesto-attempt",
            HeaderValue::from(attempt.attempt_number),
        ),
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
