//! The headers of one attempt.

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::base::clock::Timestamp;
use crate::deliveries::body::raw_message;
use crate::deliveries::endpoint::{CallbackKind, WebhookEndpoint};
use crate::deliveries::job::DeliveryJob;
use crate::deliveries::signature;
use crate::egress::CallbackTarget;

/// What the callback is sent: the event, or the store's message in it. `None`: the event has none.
pub(super) fn body_for(job: &DeliveryJob, kind: CallbackKind) -> Option<Bytes> {
    match kind {
        CallbackKind::Events => Some(job.body.clone()),
        CallbackKind::Raw => {
            let event = std::str::from_utf8(&job.body).ok()?;
            let message = raw_message(event).filter(|message| *message != "null")?;
            Some(job.body.slice_ref(message.as_bytes()))
        }
    }
}

/// `None` when a header cannot hold its value, which no stored event causes.
pub(super) fn build_request(
    job: &DeliveryJob,
    body: &Bytes,
    endpoint: &WebhookEndpoint,
    target: &CallbackTarget,
    now: Timestamp,
) -> Option<Request<Full<Bytes>>> {
    const USER_AGENT: &str = concat!("Attesto/", env!("CARGO_PKG_VERSION"));
    let event = job.event_id.as_str();
    let signed = signature::sign_delivery(&endpoint.secrets, event, now.as_secs(), body);
    let text = |text: &str| HeaderValue::from_str(text).ok();
    let event = text(event)?;
    let timestamp = HeaderValue::from(now.as_secs());

    let mut request = Request::post(target.path_and_query.clone())
        .body(Full::new(body.clone()))
        .ok()?;
    let headers: &mut HeaderMap = request.headers_mut();
    headers.insert(header::HOST, target.authority.clone());
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    for (name, value) in [
        ("x-attesto-event", text(&job.event_type)?),
        ("x-attesto-event-id", event.clone()),
        ("x-attesto-delivery-id", text(job.id.as_str())?),
        ("x-attesto-attempt", HeaderValue::from(job.attempt_number)),
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
    // A store's message does not say it.
    if endpoint.kind == CallbackKind::Raw {
        let name = HeaderName::from_static("x-attesto-tenant-id");
        headers.insert(name, text(job.tenant_id.as_str())?);
    }
    Some(request)
}
