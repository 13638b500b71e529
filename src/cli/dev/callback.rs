//! The demo tenant's callback: takes what it is sent as a backend would, checks the signature first, and tells.

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

use crate::deliveries::endpoint::{Secrets, SigningSecret};
use crate::deliveries::signature;

/// No event is larger: a store's notification is at most 1 MB, and is in it twice.
const LARGEST: usize = 4 * 1024 * 1024;
/// How long a sender may take over its headers.
const HEADERS: Duration = Duration::from_secs(5);

/// A delivery that arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    /// Whether it is signed with the tenant's secret.
    pub(super) is_signed: bool,
    /// Which attempt it is.
    pub(super) attempt: String,
    /// The event.
    pub(super) body: Value,
}

impl Arrival {
    /// A field of the event that is a text.
    pub(super) fn text(&self, name: &str) -> &str {
        self.body[name].as_str().unwrap_or_default()
    }

    /// In one line.
    pub(super) fn line(&self) -> String {
        let signature = if self.is_signed {
            "signature verified"
        } else {
            "SIGNATURE DOES NOT VERIFY"
        };
        format!(
            "{}  {}  {}  attempt {}, {signature}",
            self.text("event"),
            self.text("platformEvent"),
            self.text("eventId"),
            self.attempt
        )
    }
}

/// Listens until it is dropped.
pub(super) struct Callback {
    address: SocketAddr,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    _listening: AbortOnDropHandle<()>,
}

impl Callback {
    /// Takes deliveries that are signed with `secret`.
    pub(super) fn start(listener: TcpListener, secret: SigningSecret) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (tell, arrivals) = mpsc::unbounded_channel();
        let secrets = Secrets::from(secret);
        let listening = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (tell, secrets) = (tell.clone(), secrets.clone());
                let service = service_fn(move |request| {
                    let (tell, secrets) = (tell.clone(), secrets.clone());
                    async move { Ok::<_, Infallible>(take(request, &secrets, &tell).await) }
                });
                tokio::spawn(
                    http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADERS)
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Ok(Self {
            address,
            arrivals,
            _listening: AbortOnDropHandle::new(listening),
        })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The next delivery. One that was waited for by somebody who gave up is not lost.
    pub(super) async fn next(&mut self) -> Option<Arrival> {
        self.arrivals.recv().await
    }
}

async fn take(
    request: Request<Incoming>,
    secrets: &Secrets,
    tell: &mpsc::UnboundedSender<Arrival>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let answer = |status| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    let Ok(body) = Limited::new(body, LARGEST).collect().await else {
        return answer(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let bytes = body.to_bytes();
    let is_signed = is_signed(&head.headers, &bytes, secrets);
    let _ = tell.send(Arrival {
        is_signed,
        attempt: text(&head.headers, "x-attesto-attempt").to_owned(),
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    });
    answer(if is_signed {
        StatusCode::OK
    } else {
        StatusCode::UNAUTHORIZED
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

/// Whether both signatures are those that the holder of these secrets computes.
fn is_signed(headers: &HeaderMap, body: &[u8], secrets: &Secrets) -> bool {
    let Ok(timestamp) = text(headers, "x-attesto-timestamp").parse() else {
        return false;
    };
    let expected = signature::sign(secrets, text(headers, "webhook-id"), timestamp, body);
    text(headers, "x-attesto-signature") == expected.attesto
        && text(headers, "webhook-signature") == expected.standard
}
