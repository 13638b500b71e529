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

use super::dial::{self, Connection, DialError, Trust};
use super::pool::Pool;
use super::request::{self, Attempt};
use super::retry_after;
use crate::clock::{Clock, Timestamp};
use crate::deliveries::guard::{AllowList, Guard, LookupError, Resolver, Target, Unvetted, Vetted};
use crate::deliveries::outcome::{Class, Outcome};

/// How much of an answer's body is read. What follows is not worth the time.
const MAX_BODY_BYTES: usize = 4 * 1024;
/// How much of it is kept.
const EXCERPT_BYTES: usize = 1024;
/// Everything that may arrive for one answer: all its heads, and its body with what the last read brought too much.
const MAX_ANSWER_BYTES: usize = 48 * 1024;
/// Less than any server's patience that we know of.
const KEPT_FOR: Duration = Duration::from_secs(4);
/// How long a name may take to resolve.
const RESOLVING: Duration = Duration::from_secs(3);

/// What a sender works with.
#[derive(Clone, Debug)]
pub struct SenderSettings {
    /// How long one attempt may take, from the first look at the name to the end of the answer.
    pub timeout: Duration,
    /// Which addresses may be called.
    pub guard: Guard,
    /// Who knows the addresses of names.
    pub resolver: Resolver,
    /// Which certificates convince.
    pub trust: Trust,
    /// How long a connection waits for its next request. Node's servers, the most common receivers, hang up after five
    /// seconds; a request that meets such a goodbye has to be sent again.
    pub kept_for: Duration,
}

impl SenderSettings {
    /// For the real world: the system's resolver and its authorities.
    pub fn new(timeout: Duration, guard: Guard) -> Self {
        Self {
            timeout,
            guard,
            resolver: Resolver::system(),
            trust: Trust::System,
            kept_for: KEPT_FOR,
        }
    }
}

/// Sends. Clones share what is kept of connections.
#[derive(Clone)]
pub struct Sender {
    timeout: Duration,
    guard: Guard,
    resolver: Resolver,
    tls: Arc<ClientConfig>,
    pool: Pool,
    clock: Clock,
}

impl Sender {
    /// A sender with nothing kept yet. Call it where a runtime is. Fails when the system has no certificates to trust.
    pub fn new(settings: SenderSettings, clock: &Clock) -> Result<Self, rustls::Error> {
        Ok(Self {
            timeout: settings.timeout,
            guard: settings.guard,
            resolver: settings.resolver,
            tls: settings.trust.client_config()?,
            pool: Pool::new(settings.kept_for),
            clock: clock.clone(),
        })
    }

    /// Sends once, and says how it went. Ends within the timeout.
    ///
    /// A 2xx counts when its body has ended, or 4 KiB of it have arrived, in time: a receiver that breaks off may have
    /// broken off its work too. Any other status counts as soon as it is there.
    pub async fn send(&self, attempt: &Attempt) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        match self.attempt(attempt, deadline).await {
            Ok(outcome) => outcome,
            Err(failure) => failure.outcome(self.timeout),
        }
    }

    /// Connects to where a callback is and shakes hands, as for a delivery, and hangs up. Nothing is asked, nothing that is
    /// kept of connections is used, and no delivery is the wiser. Ends within the timeout.
    pub async fn probe(&self, url: &str, allowed: &AllowList) -> Probe {
        let deadline = Instant::now() + self.timeout;
        let failure = match self.touch(url, allowed, deadline).await {
            Ok(certificate_ends_at) => {
                return Probe::Reachable {
                    certificate_ends_at,
                };
            }
            Err(failure) => failure,
        };
        match failure.outcome(self.timeout) {
            Outcome::Refused { class, detail, .. } => Probe::Unreachable { class, detail },
            _ => Probe::Unknown,
        }
    }

    async fn touch(
        &self,
        url: &str,
        allowed: &AllowList,
        deadline: Instant,
    ) -> Result<Option<Timestamp>, Failure> {
        let target = self
            .guard
            .target(url, allowed)
            .map_err(|problem| Failure::Refused(Class::Blocked, problem.to_string()))?;
        let patience = RESOLVING.min(self.timeout);
        let vetted = self
            .guard
            .admit(&target, allowed, &self.resolver, patience)
            .await?;
        let touching = timeout_at(deadline, dial::touch(&target, &vetted, &self.tls)).await;
        let shown = touching.map_err(|_| Failure::Late("connecting"))??;
        Ok(shown.and_then(|certificate| end_of(&certificate)))
    }

    async fn attempt(&self, attempt: &Attempt, deadline: Instant) -> Result<Outcome, Failure> {
        let blocked = |detail: String| Failure::Refused(Class::Blocked, detail);
        let target = self
            .guard
            .target(&attempt.url, &attempt.allowed)
            .map_err(|problem| blocked(problem.to_string()))?;
        let patience = RESOLVING.min(self.timeout);
        let vetted = self
            .guard
            .admit(&target, &attempt.allowed, &self.resolver, patience)
            .await?;
        let now = self.clock.now();
        let build = || {
            let request = request::build(attempt, &target, now);
            request.ok_or_else(|| blocked("a header cannot hold the event's name".to_owned()))
        };
        let (connection, response) = self.exchange(&target, &vetted, build, deadline).await?;
        let code = response.status().as_u16();
        let asked = response.headers().get(RETRY_AFTER);
        let retry_after = asked.and_then(|asked| retry_after::parse(asked, now));
        let (body, end) = read(response.into_body(), deadline).await;
        if end == End::Whole {
            self.pool.keep(&target, connection);
        }
        let excerpt = (!vetted.opened).then(|| excerpt(&body));
        let class = Class::of_status(code);
        match (class, end) {
            (Class::Success, End::Whole | End::Enough) => Ok(Outcome::Delivered { code, excerpt }),
            (Class::Success, End::Late) => Ok(Outcome::Refused {
                class: Class::Timeout,
                code: Some(code),
                retry_after,
                excerpt,
                detail: format!("{code}, but the body did not end in time"),
            }),
            (Class::Success, End::Broken) => Ok(Outcome::Refused {
                class: Class::Connect,
                code: Some(code),
                retry_after,
                excerpt,
                detail: format!("{code}, but the body broke off"),
            }),
            (class, _) => Ok(Outcome::Refused {
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
    async fn exchange(
        &self,
        target: &Target,
        vetted: &Vetted,
        build: impl Fn() -> Result<Request<Full<Bytes>>, Failure>,
        deadline: Instant,
    ) -> Result<(Connection, Response<Incoming>), Failure> {
        if let Some(mut kept) = self.pool.take(target, vetted) {
            let late = || Failure::Late("answering");
            let asked = ask(&mut kept, build()?);
            match timeout_at(deadline, asked).await.map_err(|_| late())? {
                Ok(response) => return Ok((kept, response)),
                // It said something, and that was not HTTP.
                Err(error) if error.is_parse() || kept.allowance.is_spent() => {
                    return Err(broken(&error, &kept));
                }
                Err(_) => {}
            }
        }
        let dialled = timeout_at(deadline, dial::dial(target, vetted, &self.tls)).await;
        let mut connection = dialled.map_err(|_| Failure::Late("connecting"))??;
        let asked = timeout_at(deadline, ask(&mut connection, build()?)).await;
        match asked.map_err(|_| Failure::Late("answering"))? {
            Ok(response) => Ok((connection, response)),
            Err(error) => Err(broken(&error, &connection)),
        }
    }
}

/// How a callback is that was not sent anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A delivery would get as far as its request.
    Reachable {
        /// When the certificate ends that the callback showed. `None`: it is plain http.
        certificate_ends_at: Option<Timestamp>,
    },
    /// It would not.
    Unreachable {
        /// Why, in a word.
        class: Class,
        /// The same in a sentence, without the URL.
        detail: String,
    },
    /// This machine could not find out.
    Unknown,
}

/// When a certificate ends.
fn end_of(certificate: &[u8]) -> Option<Timestamp> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let end = certificate.tbs_certificate().validity().not_after;
    let millis = i64::try_from(end.to_unix_duration().as_millis()).ok()?;
    Some(Timestamp::from_millis(millis))
}

/// Why there is no status.
enum Failure {
    Refused(Class, String),
    Late(&'static str),
    Ours(Class, String),
}

impl Failure {
    fn outcome(self, timeout: Duration) -> Outcome {
        let refused = |class, detail| Outcome::Refused {
            class,
            code: None,
            retry_after: None,
            excerpt: None,
            detail,
        };
        match self {
            Self::Refused(class, detail) => refused(class, detail),
            Self::Late(doing) => refused(
                Class::Timeout,
                format!("not done with {doing} after {timeout:?}"),
            ),
            Self::Ours(class, detail) => Outcome::NotAttempted { class, detail },
        }
    }
}

impl From<Unvetted> for Failure {
    fn from(problem: Unvetted) -> Self {
        let detail = problem.to_string();
        match problem {
            Unvetted::Refused(_) => Self::Refused(Class::Blocked, detail),
            Unvetted::Lookup(LookupError::Ours) => Self::Ours(Class::Dns, detail),
            Unvetted::Lookup(_) => Self::Refused(Class::Dns, detail),
        }
    }
}

impl From<DialError> for Failure {
    fn from(problem: DialError) -> Self {
        let class = match &problem {
            DialError::Connect { .. } | DialError::NoAddress | DialError::Http(_) => Class::Connect,
            DialError::Tls(_) => Class::Tls,
        };
        Self::Refused(class, problem.to_string())
    }
}

async fn ask(
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, hyper::Error> {
    connection.requests.ready().await?;
    connection.allowance.renew(MAX_ANSWER_BYTES);
    connection.requests.send_request(request).await
}

fn broken(error: &hyper::Error, connection: &Connection) -> Failure {
    if error.is_parse_too_large() || connection.allowance.is_spent() {
        let detail = "the head of the answer is too large".to_owned();
        return Failure::Refused(Class::BodyLimit, detail);
    }
    let detail = match error {
        error if error.is_parse() => format!("the answer is not HTTP: {error}"),
        error => format!("the connection ended before an answer: {error}"),
    };
    Failure::Refused(Class::Connect, detail)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its own: the connection can be used again.
    Whole,
    /// As much as we read.
    Enough,
    /// The receiver broke off.
    Broken,
    /// The time is over.
    Late,
}

async fn read(mut body: Incoming, deadline: Instant) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    loop {
        match timeout_at(deadline, body.frame()).await {
            Err(_) => return (bytes, End::Late),
            Ok(None) => return (bytes, End::Whole),
            Ok(Some(Err(_))) => return (bytes, End::Broken),
            Ok(Some(Ok(frame))) => {
                let Some(data) = frame.data_ref() else {
                    continue;
                };
                let room = MAX_BODY_BYTES - bytes.len();
                bytes.extend_from_slice(&data[..data.len().min(room)]);
                if bytes.len() == MAX_BODY_BYTES {
                    return (bytes, End::Enough);
                }
            }
        }
    }
}

/// The first kilobyte as text that Postgres takes: what is not UTF-8 is replaced, NUL is left out.
fn excerpt(body: &[u8]) -> String {
    let body = &body[..body.len().min(EXCERPT_BYTES)];
    let mut text = String::from_utf8_lossy(body).replace('\0', "");
    text.truncate(text.floor_char_boundary(EXCERPT_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_a_kilobyte_of_text() {
        assert_eq!(excerpt(b"a\0b\xff"), "ab\u{fffd}");
        assert_eq!(excerpt(&[b'x'; 5000]).len(), 1024);
        let replaced = excerpt(&[0xff; 5000]);
        assert_eq!(replaced.len(), 1023, "whole replacement characters only");
        assert!(replaced.chars().all(|letter| letter == '\u{fffd}'));
    }
}
