//! The sender itself.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::http::header::RETRY_AFTER;
use hyper::{Request, Response};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::connect::{self, CallbackConnection, ConnectError, TlsTrust};
use super::pool::ConnectionPool;
use super::request::{self, DeliveryAttempt};
use super::retry_after;
use crate::base::clock::{Clock, Timestamp};
use crate::deliveries::outcome::{AttemptOutcome, OutcomeClass};
use crate::egress::{
    AllowList, AllowedAddresses, CallbackTarget, EgressError, EgressPolicy, LookupError, Resolver,
};

/// How much of an answer's body is read. What follows is not worth the time.
const MAX_RESPONSE_BODY_BYTES: usize = 4 * 1024;
/// How much of it is kept.
const MAX_EXCERPT_BYTES: usize = 1024;
/// Everything that may arrive for one answer: all its heads, and its body with what the last read brought too much.
const MAX_RESPONSE_BYTES: usize = 48 * 1024;
/// Less than any server's patience that we know of.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a sender works with.
#[derive(Clone, Debug)]
pub struct SenderSettings {
    /// How long one attempt may take, from the first look at the name to the end of the answer.
    pub timeout: Duration,
    /// Which addresses may be called.
    pub egress_policy: EgressPolicy,
    /// Who knows the addresses of names.
    pub resolver: Resolver,
    /// Which certificates convince.
    pub tls_trust: TlsTrust,
    /// How long a connection waits for its next request. Node's servers, the most common receivers, hang up after five
    /// seconds; a request that meets such a goodbye has to be sent again.
    pub idle_timeout: Duration,
}

impl SenderSettings {
    /// For the real world: the system's resolver and its authorities.
    pub fn new(timeout: Duration, egress_policy: EgressPolicy) -> Self {
        Self {
            timeout,
            egress_policy,
            resolver: Resolver::from_system(),
            tls_trust: TlsTrust::System,
            idle_timeout: IDLE_CONNECTION_TIMEOUT,
        }
    }
}

/// Sends. Clones share what is kept of connections.
#[derive(Clone)]
pub struct Sender {
    timeout: Duration,
    egress_policy: EgressPolicy,
    resolver: Resolver,
    tls_config: Arc<ClientConfig>,
    pool: ConnectionPool,
    clock: Clock,
}

impl Sender {
    /// A sender with nothing kept yet. Call it where a runtime is. Fails when the system has no certificates to trust.
    pub fn new(settings: SenderSettings, clock: &Clock) -> Result<Self, rustls::Error> {
        Ok(Self {
            timeout: settings.timeout,
            egress_policy: settings.egress_policy,
            resolver: settings.resolver,
            tls_config: settings.tls_trust.client_config()?,
            pool: ConnectionPool::new(settings.idle_timeout),
            clock: clock.clone(),
        })
    }

    /// Sends once, and says how it went. Ends within the timeout.
    ///
    /// A 2xx counts when its body has ended, or 4 KiB of it have arrived, in time: a receiver that breaks off may have
    /// broken off its work too. Any other status counts as soon as it is there.
    pub async fn send(&self, attempt: &DeliveryAttempt) -> AttemptOutcome {
        let deadline = Instant::now() + self.timeout;
        match self.send_once(attempt, deadline).await {
            Ok(outcome) => outcome,
            Err(failure) => failure.into_outcome(self.timeout),
        }
    }

    /// Connects to where a callback is and shakes hands, as for a delivery, and hangs up. Nothing is asked, nothing that is
    /// kept of connections is used, and no delivery is the wiser. Ends within the timeout.
    pub async fn probe_callback(&self, url: &str, allowed: &AllowList) -> ProbeOutcome {
        let deadline = Instant::now() + self.timeout;
        let failure = match self.probe_connection(url, allowed, deadline).await {
            Ok(certificate_ends_at) => {
                return ProbeOutcome::Reachable {
                    certificate_ends_at,
                };
            }
            Err(failure) => failure,
        };
        match failure.into_outcome(self.timeout) {
            AttemptOutcome::Refused { class, detail, .. } => {
                ProbeOutcome::Unreachable { class, detail }
            }
            _ => ProbeOutcome::Unknown,
        }
    }

    async fn probe_connection(
        &self,
        url: &str,
        allowed: &AllowList,
        deadline: Instant,
    ) -> Result<Option<Timestamp>, AttemptError> {
        let target = self
            .egress_policy
            .parse_target(url, allowed)
            .map_err(|problem| AttemptError::Refused(OutcomeClass::Blocked, problem.to_string()))?;
        let patience = RESOLVE_TIMEOUT.min(self.timeout);
        let vetted = self
            .egress_policy
            .resolve_and_check(&target, allowed, &self.resolver, patience)
            .await?;
        let touching = timeout_at(
            deadline,
            connect::fetch_certificate(&target, &vetted, &self.tls_config),
        )
        .await;
        let shown = touching.map_err(|_| AttemptError::TimedOut("connecting"))??;
        Ok(shown.and_then(|certificate| certificate_expiry(&certificate)))
    }

    async fn send_once(
        &self,
        attempt: &DeliveryAttempt,
        deadline: Instant,
    ) -> Result<AttemptOutcome, AttemptError> {
        let blocked = |detail: String| AttemptError::Refused(OutcomeClass::Blocked, detail);
        let target = self
            .egress_policy
            .parse_target(&attempt.callback_url, &attempt.allow_list)
            .map_err(|problem| blocked(problem.to_string()))?;
        let patience = RESOLVE_TIMEOUT.min(self.timeout);
        let vetted = self
            .egress_policy
            .resolve_and_check(&target, &attempt.allow_list, &self.resolver, patience)
            .await?;
        let now = self.clock.now();
        let build = || {
            let request = request::build_request(attempt, &target, now);
            request.ok_or_else(|| blocked("a header cannot hold the event's name".to_owned()))
        };
        let (connection, response) = self.send_request(&target, &vetted, build, deadline).await?;
        let code = response.status().as_u16();
        let asked = response.headers().get(RETRY_AFTER);
        let retry_after = asked.and_then(|asked| retry_after::parse_retry_after(asked, now));
        let (body, end) = read_body(response.into_body(), deadline).await;
        if end == BodyEnd::Complete {
            self.pool.keep_connection(&target, connection);
        }
        let excerpt = (!vetted.is_allow_listed).then(|| body_excerpt(&body));
        let class = OutcomeClass::from_status(code);
        match (class, end) {
            (OutcomeClass::Success, BodyEnd::Complete | BodyEnd::Truncated) => {
                Ok(AttemptOutcome::Delivered { code, excerpt })
            }
            (OutcomeClass::Success, BodyEnd::TimedOut) => Ok(AttemptOutcome::Refused {
                class: OutcomeClass::Timeout,
                code: Some(code),
                retry_after,
                excerpt,
                detail: format!("{code}, but the body did not end in time"),
            }),
            (OutcomeClass::Success, BodyEnd::Aborted) => Ok(AttemptOutcome::Refused {
                class: OutcomeClass::Connect,
                code: Some(code),
                retry_after,
                excerpt,
                detail: format!("{code}, but the body broke off"),
            }),
            (class, _) => Ok(AttemptOutcome::Refused {
                class,
                code: Some(code),
                retry_after,
                excerpt,
                detail: format!("the receiver answered {code}"),
            }),
        }
    }

    /// One request and the head of its answer. A kept connection that turns out to be gone costs nothing: the same
    /// attempt goes on with a new one.
    async fn send_request(
        &self,
        target: &CallbackTarget,
        vetted: &AllowedAddresses,
        build: impl Fn() -> Result<Request<Full<Bytes>>, AttemptError>,
        deadline: Instant,
    ) -> Result<(CallbackConnection, Response<Incoming>), AttemptError> {
        if let Some(mut kept) = self.pool.take_connection(target, vetted) {
            let late = || AttemptError::TimedOut("answering");
            let asked = send_on_connection(&mut kept, build()?);
            match timeout_at(deadline, asked).await.map_err(|_| late())? {
                Ok(response) => return Ok((kept, response)),
                // It said something, and that was not HTTP.
                Err(error) if error.is_parse() || kept.read_budget.is_exhausted() => {
                    return Err(connection_error(&error, &kept));
                }
                Err(_) => {}
            }
        }
        let dialled = timeout_at(
            deadline,
            connect::open_connection(target, vetted, &self.tls_config),
        )
        .await;
        let mut connection = dialled.map_err(|_| AttemptError::TimedOut("connecting"))??;
        let asked = timeout_at(deadline, send_on_connection(&mut connection, build()?)).await;
        match asked.map_err(|_| AttemptError::TimedOut("answering"))? {
            Ok(response) => Ok((connection, response)),
            Err(error) => Err(connection_error(&error, &connection)),
        }
    }
}

/// How a callback is that was not sent anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// A delivery would get as far as its request.
    Reachable {
        /// When the certificate ends that the callback showed. `None`: it is plain http.
        certificate_ends_at: Option<Timestamp>,
    },
    /// It would not.
    Unreachable {
        /// Why, in a word.
        class: OutcomeClass,
        /// The same in a sentence, without the URL.
        detail: String,
    },
    /// This machine could not find out.
    Unknown,
}

/// When a certificate ends.
fn certificate_expiry(certificate: &[u8]) -> Option<Timestamp> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let end = certificate.tbs_certificate().validity().not_after;
    let millis = i64::try_from(end.to_unix_duration().as_millis()).ok()?;
    Some(Timestamp::from_millis(millis))
}

/// Why there is no status.
enum AttemptError {
    Refused(OutcomeClass, String),
    TimedOut(&'static str),
    OwnFault(OutcomeClass, String),
}

impl AttemptError {
    fn into_outcome(self, timeout: Duration) -> AttemptOutcome {
        let refused = |class, detail| AttemptOutcome::Refused {
            class,
            code: None,
            retry_after: None,
            excerpt: None,
            detail,
        };
        match self {
            Self::Refused(class, detail) => refused(class, detail),
            Self::TimedOut(doing) => refused(
                OutcomeClass::Timeout,
                format!("not done with {doing} after {timeout:?}"),
            ),
            Self::OwnFault(class, detail) => AttemptOutcome::NotAttempted { class, detail },
        }
    }
}

impl From<EgressError> for AttemptError {
    fn from(problem: EgressError) -> Self {
        let detail = problem.to_string();
        match problem {
            EgressError::Rejected(_) => Self::Refused(OutcomeClass::Blocked, detail),
            EgressError::Lookup(LookupError::ResolverUnavailable) => {
                Self::OwnFault(OutcomeClass::Dns, detail)
            }
            EgressError::Lookup(_) => Self::Refused(OutcomeClass::Dns, detail),
        }
    }
}

impl From<ConnectError> for AttemptError {
    fn from(problem: ConnectError) -> Self {
        let class = match &problem {
            ConnectError::Connect { .. } | ConnectError::NoAddress | ConnectError::Http(_) => {
                OutcomeClass::Connect
            }
            ConnectError::Tls(_) => OutcomeClass::Tls,
        };
        Self::Refused(class, problem.to_string())
    }
}

async fn send_on_connection(
    connection: &mut CallbackConnection,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, hyper::Error> {
    connection.request_sender.ready().await?;
    connection.read_budget.reset_to(MAX_RESPONSE_BYTES);
    connection.request_sender.send_request(request).await
}

fn connection_error(error: &hyper::Error, connection: &CallbackConnection) -> AttemptError {
    if error.is_parse_too_large() || connection.read_budget.is_exhausted() {
        let detail = "the head of the answer is too large".to_owned();
        return AttemptError::Refused(OutcomeClass::BodyLimit, detail);
    }
    let detail = match error {
        error if error.is_parse() => format!("the answer is not HTTP: {error}"),
        error => format!("the connection ended before an answer: {error}"),
    };
    AttemptError::Refused(OutcomeClass::Connect, detail)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyEnd {
    /// Its own: the connection can be used again.
    Complete,
    /// As much as we read.
    Truncated,
    /// The receiver broke off.
    Aborted,
    /// The time is over.
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

/// The first kilobyte as text that Postgres takes: what is not UTF-8 is replaced, NUL is left out.
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
