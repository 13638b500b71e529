//! The demo tenant's callback: receives deliveries as a backend does, and checks their signatures.

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
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::deliveries::endpoint::{SigningSecret, SigningSecrets};
use crate::deliveries::signature;

/// No event is larger: it holds a notification of at most 1 MB twice.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) struct ReceivedDelivery {
    /// Whether both signature headers match the tenant's secret.
    pub(super) is_signature_valid: bool,
    /// Value of `X-Attesto-Attempt`.
    pub(super) attempt: String,
    /// The event's JSON.
    pub(super) body: Value,
}

impl ReceivedDelivery {
    /// A field of the event that is a string; empty when it is missing.
    pub(super) fn event_field(&self, name: &str) -> &str {
        self.body[name].as_str().unwrap_or_default()
    }

    pub(super) fn summary_line(&self) -> String {
        let signature = if self.is_signature_valid {
            "signature verified"
        } else {
            "SIGNATURE DOES NOT VERIFY"
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
pub(super) struct DemoCallback {
    address: SocketAddr,
    deliveries: mpsc::UnboundedReceiver<ReceivedDelivery>,
    _server_task: AbortOnDropHandle<()>,
}

impl DemoCallback {
    /// Answers 200 to deliveries signed with `secret`, and 401 to others.
    pub(super) fn start(listener: TcpListener, secret: SigningSecret) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, deliveries) = mpsc::unbounded_channel();
        let secrets = SigningSecrets::from(secret);
        let listening = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (sender, secrets) = (sender.clone(), secrets.clone());
                let service = service_fn(move |request| {
                    let (sender, secrets) = (sender.clone(), secrets.clone());
                    async move { Ok::<_, Infallible>(handle_delivery(request, &secrets, &sender).await) }
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
    secrets: &SigningSecrets,
    sender: &mpsc::UnboundedSender<ReceivedDelivery>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let answer = |status| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
        return answer(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let bytes = body.to_bytes();
    let is_signed = has_valid_signature(&head.headers, &bytes, secrets);
    let _ = sender.send(ReceivedDelivery {
        is_signature_valid: is_signed,
        attempt: header_text(&head.headers, "x-attesto-attempt").to_owned(),
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    });
    answer(if is_signed {
        StatusCode::OK
    } else {
        StatusCode::UNAUTHORIZED
    })
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

fn has_valid_signature(headers: &HeaderMap, body: &[u8], secrets: &SigningSecrets) -> bool {
    let Ok(timestamp) = header_text(headers, "x-attesto-timestamp").parse() else {
        return false;
    };
    let expected =
        signature::sign_delivery(secrets, header_text(headers, "webhook-id"), timestamp, body);
    header_text(headers, "x-attesto-signature") == expected.attesto
        && header_text(headers, "webhook-signature") == expected.standard
}
