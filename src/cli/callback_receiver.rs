//! A callback for `attesto dev` and `attesto receive`: takes deliveries as a backend does, and checks their signatures.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::deliveries::endpoint::{SigningSecret, SigningSecrets};
use crate::deliveries::signature;

/// No event is larger: it holds a notification of at most 1 MB twice.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(5);
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Deliveries that were taken and not yet shown. More wait for their answer.
const MAX_UNSHOWN_DELIVERIES: usize = 16;

/// What the signature headers of a delivery say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum SignatureCheck {
    /// Both headers have a value that the secret makes.
    Verified,
    /// One of them has none.
    Mismatch,
    /// The secret is not known here.
    Unchecked,
}

#[derive(Clone, Debug)]
pub(super) struct ReceivedDelivery {
    pub(super) signature: SignatureCheck,
    /// The HTTP status of the answer.
    pub(super) answered: u16,
    /// Value of `X-Attesto-Delivery-Id`.
    pub(super) delivery_id: String,
    /// Value of `X-Attesto-Attempt`.
    pub(super) attempt: String,
    /// The event's JSON; null when the body is none.
    pub(super) body: Value,
}

impl ReceivedDelivery {
    /// A field of the event that is a string; empty when it is missing.
    pub(super) fn event_field(&self, name: &str) -> &str {
        self.body[name].as_str().unwrap_or_default()
    }

    pub(super) fn summary_line(&self) -> String {
        let signature = match self.signature {
            SignatureCheck::Verified => "signature verified",
            SignatureCheck::Mismatch => "SIGNATURE DOES NOT VERIFY",
            SignatureCheck::Unchecked => "signature not checked",
        };
        format!(
            "{}  {}  {}  attempt {}, {signature}",
            self.event_field("event"),
            self.event_field("platformEvent"),
            self.event_field("eventId"),
            self.attempt
        )
    }
}

/// A server that listens until it is dropped.
pub(super) struct CallbackReceiver {
    address: SocketAddr,
    deliveries: mpsc::Receiver<ReceivedDelivery>,
    _server_task: AbortOnDropHandle<()>,
}

impl CallbackReceiver {
    /// Answers `status` to deliveries signed with `secret`, and 401 to others. Without a secret, all are answered alike.
    pub(super) fn start(
        listener: TcpListener,
        secret: Option<SigningSecret>,
        status: StatusCode,
    ) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, deliveries) = mpsc::channel(MAX_UNSHOWN_DELIVERIES);
        let secrets = secret.map(SigningSecrets::from);
        let listening = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (sender, secrets) = (sender.clone(), secrets.clone());
                let service = service_fn(move |request| {
                    let (sender, secrets) = (sender.clone(), secrets.clone());
                    async move {
                        let handled = handle_delivery(request, secrets.as_ref(), status, &sender);
                        Ok::<_, Infallible>(handled.await)
                    }
                });
                tokio::spawn(
                    http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_READ_TIMEOUT)
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Ok(Self {
            address,
            deliveries,
            _server_task: AbortOnDropHandle::new(listening),
        })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Waits for the next delivery. Cancel safe: a dropped call loses none.
    pub(super) async fn next_delivery(&mut self) -> Option<ReceivedDelivery> {
        self.deliveries.recv().await
    }
}

async fn handle_delivery(
    request: Request<Incoming>,
    secrets: Option<&SigningSecrets>,
    status: StatusCode,
    sender: &mpsc::Sender<ReceivedDelivery>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let answer = |status| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    let reading = timeout(
        BODY_READ_TIMEOUT,
        Limited::new(body, MAX_BODY_BYTES).collect(),
    );
    let body = match reading.await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return answer(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => return answer(StatusCode::REQUEST_TIMEOUT),
    };
    let bytes = body.to_bytes();
    let signature = match secrets {
        Some(secrets) if has_valid_signature(&head.headers, &bytes, secrets) => {
            SignatureCheck::Verified
        }
        Some(_) => SignatureCheck::Mismatch,
        None => SignatureCheck::Unchecked,
    };
    let status = match signature {
        SignatureCheck::Verified | SignatureCheck::Unchecked => status,
        SignatureCheck::Mismatch => StatusCode::UNAUTHORIZED,
    };
    let received = ReceivedDelivery {
        signature,
        answered: status.as_u16(),
        delivery_id: header_text(&head.headers, "x-attesto-delivery-id").to_owned(),
        attempt: header_text(&head.headers, "x-attesto-attempt").to_owned(),
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    };
    let _ = sender.send(received).await;
    answer(status)
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

/// Each header has one value for each secret that signs at the moment, of which one must match.
fn has_valid_signature(headers: &HeaderMap, body: &[u8], secrets: &SigningSecrets) -> bool {
    let Ok(timestamp) = header_text(headers, "x-attesto-timestamp").parse() else {
        return false;
    };
    let expected =
        signature::sign_delivery(secrets, header_text(headers, "webhook-id"), timestamp, body);
    let Some((time, value)) = expected.attesto.split_once(',') else {
        return false;
    };
    let mut parts = header_text(headers, "x-attesto-signature").split(',');
    let mut standard = header_text(headers, "webhook-signature").split(' ');
    parts.next() == Some(time)
        && parts.any(|part| part == value)
        && standard.any(|value| value == expected.standard)
}
