//! The sender itself.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::http::header::RETRY_AFTER;
use hyper::{Request, Response};
use tokio::time::{Instant, timeout_at};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::connect::{CallbackConnection, Connector, TlsTrust};
use super::failure::{self, AttemptError};
use super::pool::ConnectionPool;
use super::request;
use super::retry_after;
use crate::base::certificate::validity_period;
use crate::base::clock::{Clock, Timestamp};
use crate::deliveries::endpoint::{ClientCertificate, WebhookEndpoint};
use crate::deliveries::job::DeliveryJob;
use crate::deliveries::outcome::{AttemptOutcome, OutcomeClass};
use crate::egress::{
    AllowList, AllowedAddresses, CallbackTarget, EgressPolicy, EgressProxy, Resolver,
};

/// How much of an answer's body is read.
const MAX_RESPONSE_BODY_BYTES: usize = 4 * 1024;
/// How much of an answer's body is kept.
const MAX_EXCERPT_BYTES: usize = 1024;
/// For all heads and the body of one answer together, including what the last read brought in excess.
pub(super) const MAX_RESPONSE_BYTES: usize = 48 * 1024;
/// Shorter than the idle timeout of every server that we know of.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(4);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How a [`Sender`] works.
#[derive(Clone, Debug)]
pub struct SenderSettings {
    /// For one attempt, from the DNS lookup to the end of the answer.
    pub timeout: Duration,
    /// The addresses that may be called.
    pub egress_policy: EgressPolicy,
    /// Resolves host names.
    pub resolver: Resolver,
    /// The certificate authorities that are trusted.
    pub tls_trust: TlsTrust,
    /// The proxy that every connection goes through.
    pub proxy: Option<EgressProxy>,
    /// How long an idle connection is kept. Node.js, the most common receiver, closes idle connections after five seconds,
    /// and a request that is sent at that moment has to be sent again.
    pub idle_timeout: Duration,
}

impl SenderSettings {
    /// With the DNS resolver and the certificate authorities of the operating system.
    pub fn new(timeout: Duration, egress_policy: EgressPolicy) -> Self {
        Self {
            timeout,
            egress_policy,
            resolver: Resolver::from_system(),
            tls_trust: TlsTrust::System,
            proxy: None,
            idle_timeout: IDLE_CONNECTION_TIMEOUT,
        }
    }

    /// The same, through a proxy if there is one.
    #[must_use]
    pub fn with_proxy(self, proxy: Option<EgressProxy>) -> Self {
        Self { proxy, ..self }
    }
}

/// Sends requests to callbacks. Clones share idle connections.
#[derive(Clone)]
pub struct Sender {
    timeout: Duration,
    egress_policy: EgressPolicy,
    resolver: Resolver,
    connector: Connector,
    pool: ConnectionPool,
    clock: Clock,
}

impl Sender {
    /// Needs a Tokio runtime. Fails when the operating system has no certificate authorities.
    pub fn new(settings: SenderSettings, clock: &Clock) -> Result<Self, rustls::Error> {
        Ok(Self {
            timeout: settings.timeout,
            egress_policy: settings.egress_policy,
            resolver: settings.resolver,
            connector: Connector {
                tls_config: settings.tls_trust.client_config()?,
                proxy: settings.proxy,
            },
            pool: ConnectionPool::new(settings.idle_timeout),
            clock: clock.clone(),
        })
    }

    /// Makes one attempt. Ends within the timeout.
    ///
    /// A 2xx counts when its body has ended, or 4 KiB of it have arrived, in time: a receiver that breaks off its answer
    /// may have broken off its work too. Any other status counts as soon as it has arrived.
    pub async fn send(&self, job: &DeliveryJob, endpoint: &WebhookEndpoint) -> AttemptOutcome {
        let deadline = Instant::now() + self.timeout;
        let attempt = self.send_once(job, endpoint, deadline).await;
        attempt.unwrap_or_else(|error| error.into_outcome(self.timeout, Some(&job.tenant_id)))
    }

    /// Connects to a callback as for a delivery and closes the connection without a request. Uses no idle connection and
    /// changes no delivery. Ends within the timeout.
    pub async fn probe_callback(
        &self,
        url: &str,
        allowed: &AllowList,
        client_certificate: Option<&ClientCertificate>,
    ) -> ProbeOutcome {
        let deadline = Instant::now() + self.timeout;
        let probing = self.probe_connection(url, allowed, client_certificate, deadline);
        match probing.await {
            Ok(certificate_ends_at) => ProbeOutcome::Reachable {
                certificate_ends_at,
            },
            Err(error) => match error.into_outcome(self.timeout, None) {
                AttemptOutcome::Refused { class, detail, .. } => {
                    ProbeOutcome::Unreachable { class, detail }
                }
                _ => ProbeOutcome::Unknown,
            },
        }
    }

    async fn probe_connection(
        &self,
        url: &str,
        allowed: &AllowList,
        client_certificate: Option<&ClientCertificate>,
        deadline: Instant,
    ) -> Result<Option<Timestamp>, AttemptError> {
        let (target, vetted) = self.resolve_callback(url, allowed).await?;
        let connecting =
            self.connector
                .fetch_certificate(&target, &vetted, client_certificate, deadline);
        let certificate = connecting
            .await
            .map_err(|error| AttemptError::from_connect_error(error, &target))?;
        Ok(certificate.and_then(|certificate| certificate_expiry(&certificate)))
    }

    /// Parses the URL, resolves its host and checks every address.
    async fn resolve_callback(
        &self,
        url: &str,
        allowed: &AllowList,
    ) -> Result<(CallbackTarget, AllowedAddresses), AttemptError> {
        let target = self
            .egress_policy
            .parse_target(url, allowed)
            .map_err(AttemptError::Url)?;
        let timeout = RESOLVE_TIMEOUT.min(self.timeout);
        let vetted = self
            .egress_policy
            .resolve_and_check(&target, allowed, &self.resolver, timeout)
            .await
            .map_err(|error| {
                AttemptError::from_egress_error(&error, &target, self.connector.proxy.as_ref())
            })?;
        Ok((target, vetted))
    }

    async fn send_once(
        &self,
        job: &DeliveryJob,
        endpoint: &WebhookEndpoint,
        deadline: Instant,
    ) -> Result<AttemptOutcome, AttemptError> {
        let (target, vetted) = self
            .resolve_callback(&job.callback_url, &endpoint.allow_list)
            .await?;
        let now = self.clock.now();
        let body = request::body_for(job, endpoint.kind).ok_or_else(|| {
            let detail = "the callback relays what stores send, and no store sent this event";
            AttemptError::Refused(OutcomeClass::Blocked, detail.to_owned())
        })?;
        let build = || {
            request::build_request(job, &body, endpoint, &target, now).ok_or_else(|| {
                let detail = "a header cannot hold the event's name".to_owned();
                AttemptError::Refused(OutcomeClass::Blocked, detail)
            })
        };
        let shown = endpoint.client_certificate.as_ref();
        let sending = self.send_request(&target, &vetted, shown, build, deadline);
        let (connection, response) = sending.await?;
        let code = response.status().as_u16();
        let client_certificate = connection.client_certificate;
        let asked = response.headers().get(RETRY_AFTER);
        let retry_after = asked.and_then(|asked| retry_after::parse_retry_after(asked, now));
        let location = failure::redirect_location(response.headers(), &job.callback_url);
        let (body, end) = read_body(response.into_body(), deadline).await;
        if end == BodyEnd::Complete {
            self.pool.keep_connection(&target, shown, connection);
        }
        let excerpt = (!vetted.is_allow_listed).then(|| body_excerpt(&body));
        let (class, detail) = match (OutcomeClass::from_status(code), end) {
            (OutcomeClass::Success, BodyEnd::Complete | BodyEnd::Truncated) => {
                return Ok(AttemptOutcome::Delivered { code, excerpt });
            }
            (OutcomeClass::Success, BodyEnd::TimedOut) => (
                OutcomeClass::Timeout,
                format!(
                    "{} answered {code}, but its body did not end within {:?}",
                    failure::server_text(&target),
                    self.timeout
                ),
            ),
            (OutcomeClass::Success, BodyEnd::Aborted) => (
                OutcomeClass::Connect,
                format!(
                    "{} answered {code}, but closed the connection before the end of the body",
                    failure::server_text(&target)
                ),
            ),
            (class, _) => {
                // The content of an answer from a private network is not kept.
                let (location, body) = if vetted.is_allow_listed {
                    (None, None)
                } else {
                    (location.as_deref(), Some(body.as_slice()))
                };
                (
                    class,
                    failure::describe_refusal(code, &target, location, body, client_certificate),
                )
            }
        };
        Ok(AttemptOutcome::Refused {
            class,
            code: Some(code),
            retry_after,
            excerpt,
            detail: failure::bounded(&detail),
        })
    }

    /// Sends the request and reads the head of the answer. When an idle connection turns out to be closed, the same attempt
    /// continues with a new one.
    async fn send_request(
        &self,
        target: &CallbackTarget,
        vetted: &AllowedAddresses,
        shown: Option<&ClientCertificate>,
        build: impl Fn() -> Result<Request<Full<Bytes>>, AttemptError>,
        deadline: Instant,
    ) -> Result<(CallbackConnection, Response<Incoming>), AttemptError> {
        let late = |_| AttemptError::no_answer(target);
        if let Some(mut idle) = self.pool.take_connection(target, shown, vetted) {
            let sending = send_on_connection(&mut idle, build()?);
            match timeout_at(deadline, sending).await.map_err(late)? {
                Ok(response) => return Ok((idle, response)),
                // The receiver did answer, but not in HTTP.
                Err(error) if error.is_parse() || idle.read_budget.is_exhausted() => {
                    return Err(AttemptError::from_exchange_error(&error, &idle, target));
                }
                Err(_) => {}
            }
        }
        let connecting = self
            .connector
            .open_connection(target, vetted, shown, deadline);
        let mut connection = connecting
            .await
            .map_err(|error| AttemptError::from_connect_error(error, target))?;
        let sending = send_on_connection(&mut connection, build()?);
        match timeout_at(deadline, sending).await.map_err(late)? {
            Ok(response) => Ok((connection, response)),
            Err(error) if error.is_canceled() || error.is_closed() => {
                let end = timeout_at(deadline, connection.wait_for_end()).await;
                let cause = end.ok().flatten().unwrap_or(error);
                Err(AttemptError::from_exchange_error(
                    &cause,
                    &connection,
                    target,
                ))
            }
            Err(error) => Err(AttemptError::from_exchange_error(
                &error,
                &connection,
                target,
            )),
        }
    }
}

/// What a probe found: a connection without a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// A delivery could send its request.
    Reachable {
        /// When the certificate of the callback expires. `None`: it is plain http.
        certificate_ends_at: Option<Timestamp>,
    },
    /// A delivery would fail.
    Unreachable {
        /// Why a delivery would fail.
        class: OutcomeClass,
        /// The reason in one sentence, without the URL.
        detail: String,
    },
    /// A fault on our side, so nothing is known about the callback.
    Unknown,
}

fn certificate_expiry(certificate: &[u8]) -> Option<Timestamp> {
    let certificate = Certificate::from_der(certificate).ok()?;
    Some(validity_period(&certificate).1)
}

async fn send_on_connection(
    connection: &mut CallbackConnection,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, hyper::Error> {
    connection.request_sender.ready().await?;
    connection.read_budget.reset_to(MAX_RESPONSE_BYTES);
    connection.request_sender.send_request(request).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyEnd {
    /// The connection can be used again.
    Complete,
    /// The limit was reached.
    Truncated,
    /// The receiver broke off.
    Aborted,
    TimedOut,
}

async fn read_body(mut body: Incoming, deadline: Instant) -> (Vec<u8>, BodyEnd) {
    let mut bytes = Vec::new();
    loop {
        match timeout_at(deadline, body.frame()).await {
            Err(_) => return (bytes, BodyEnd::TimedOut),
            Ok(None) => return (bytes, BodyEnd::Complete),
            Ok(Some(Err(_))) => return (bytes, BodyEnd::Aborted),
            Ok(Some(Ok(frame))) => {
                let Some(data) = frame.data_ref() else {
                    continue;
                };
                let room = MAX_RESPONSE_BODY_BYTES - bytes.len();
                bytes.extend_from_slice(&data[..data.len().min(room)]);
                if bytes.len() == MAX_RESPONSE_BODY_BYTES {
                    return (bytes, BodyEnd::Truncated);
                }
            }
        }
    }
}

/// The first kilobyte as text that Postgres can store: invalid UTF-8 is replaced, NUL is removed.
fn body_excerpt(body: &[u8]) -> String {
    let body = &body[..body.len().min(MAX_EXCERPT_BYTES)];
    let mut text = String::from_utf8_lossy(body).replace('\0', "");
    text.truncate(text.floor_char_boundary(MAX_EXCERPT_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_a_kilobyte_of_text() {
        assert_eq!(body_excerpt(b"a\0b\xff"), "ab\u{fffd}");
        assert_eq!(body_excerpt(&[b'x'; 5000]).len(), 1024);
        let replaced = body_excerpt(&[0xff; 5000]);
        assert_eq!(replaced.len(), 1023, "whole replacement characters only");
        assert!(replaced.chars().all(|letter| letter == '\u{fffd}'));
    }
}
