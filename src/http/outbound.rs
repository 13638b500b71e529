//! Calls to a store: pooled, bounded in time and size, retried a little, shared when identical.
//!
//! - [`client`] builds the one HTTP client: HTTP/2 where offered, no redirects, no proxy from the environment.
//! - [`Upstream::send`] makes one logical call: up to three attempts inside one deadline.
//! - [`InFlight`] lets identical callers share one call; [`Bulkhead`] bounds how many one tenant may have running.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, StatusCode};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio::time::error::Elapsed;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::clock::Timestamp;
use crate::crypto::token;

/// The most a store's answer may weigh. A subscription with its whole history of line items is a few kilobytes.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// A first attempt and two quick retries.
const MAX_ATTEMPTS: u32 = 3;
/// The first pause between attempts; the second is twice as long. Each varies by a quarter either way.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait that is passed on.
const LONGEST_WAIT: Duration = Duration::from_hours(24);
/// A `Retry-After` from here on is a moment in milliseconds, below it a number of seconds.
const FIRST_MOMENT: i64 = 1_000_000_000;
/// A connection that takes longer than this is not going to be useful to a caller who waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The HTTP client for calls to stores.
pub fn client() -> reqwest::Result<reqwest::Client> {
    builder().build()
}

/// The same for a service of one's own at this machine, whose certificate is judged by itself: not by who issued it, for
/// which name and until when.
pub fn client_believing(whom: Believed) -> reqwest::Result<reqwest::Client> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let judge = Arc::new(Judge {
        whom,
        algorithms: provider.signature_verification_algorithms,
    });
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(judge)
        .with_no_client_auth();
    builder().tls_backend_preconfigured(tls).build()
}

/// Whose certificate convinces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Believed {
    /// Exactly this one, to the byte.
    Only(CertificateDer<'static>),
    /// Whoever is there. Nothing may be sent that is not for everybody.
    Anybody,
}

/// Compares certificates. That the other side has the key is checked as always.
#[derive(Debug)]
struct Judge {
    whom: Believed,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.whom {
            Believed::Only(expected) if expected != certificate => Err(rustls::Error::General(
                "another certificate is there than expected".to_owned(),
            )),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(Duration::from_mins(1))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(concat!("Attesto/", env!("CARGO_PKG_VERSION")))
}

/// A store's answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers, for `Retry-After` and `Cache-Control`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

/// Why there is no answer at all. No message repeats a URL, which may hold a purchase token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The deadline passed first.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection failed or broke.
    #[error("the connection failed: {0}")]
    Connection(String),
    /// The answer is larger than any answer should be.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// What to do with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is final, whatever it says.
    Final,
    /// It may be better in a moment: try again while the deadline allows.
    Transient,
}

/// A way to call one store.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: reqwest::Client,
    deadline: Duration,
    most_bytes: usize,
}

impl Upstream {
    /// Calls through `client`; each logical call, retries included, ends within `deadline`.
    pub fn new(client: reqwest::Client, deadline: Duration) -> Self {
        Self {
            client,
            deadline,
            most_bytes: MAX_ANSWER_BYTES,
        }
    }

    /// The same through the same connections, for short answers: of at most `most_bytes` and within `deadline`, or
    /// sooner.
    #[must_use]
    pub fn within(&self, deadline: Duration, most_bytes: usize) -> Self {
        Self {
            client: self.client.clone(),
            deadline: deadline.min(self.deadline),
            most_bytes: most_bytes.min(self.most_bytes),
        }
    }

    /// The client, to build a request with.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Sends the request that `build` makes, again while `judge` calls the answer transient, a connection fails, and
    /// the deadline leaves room. The last answer is returned even when it is transient.
    pub async fn send(
        &self,
        build: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
        judge: impl Fn(&Answer) -> Verdict,
    ) -> Result<Answer, SendError> {
        let end = Instant::now() + self.deadline;
        let mut attempt = 1;
        loop {
            let Ok(outcome) = once(build(&self.client), self.most_bytes, end).await else {
                return Err(SendError::Timeout(self.deadline));
            };
            let again = match &outcome {
                Ok(answer) => judge(answer) == Verdict::Transient,
                Err(SendError::Connection(_)) => true,
                Err(_) => false,
            };
            let pause = FIRST_PAUSE.mul_f64(f64::from(attempt) * (0.75 + fastrand::f64() / 2.0));
            if !again || attempt == MAX_ATTEMPTS || Instant::now() + pause >= end {
                return outcome;
            }
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }
}

/// One attempt until `end`.
async fn once(
    request: reqwest::RequestBuilder,
    most_bytes: usize,
    end: Instant,
) -> Result<Result<Answer, SendError>, Elapsed> {
    let (client, request) = request.build_split();
    let request = match request {
        Ok(request) => request,
        Err(error) => return Ok(Err(broken(error))),
    };
    // Of the URL only the host: the rest may be a purchase.
    let host = request.url().host_str().unwrap_or_default();
    let span = tracing::info_span!(
        "store call",
        otel.name = format!("{} {host}", request.method()),
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = request.method().as_str(),
        server.address = host,
        http.response.status_code = Empty,
    );
    let exchange = exchange(client, request, most_bytes).instrument(span.clone());
    let outcome = tokio::time::timeout_at(end, exchange).await;
    match &outcome {
        Ok(Ok(answer)) => span.record(
            "http.response.status_code",
            i64::from(answer.status.as_u16()),
        ),
        Ok(Err(_)) | Err(_) => span.record("otel.status_code", "ERROR"),
    };
    outcome
}

fn broken(error: reqwest::Error) -> SendError {
    SendError::Connection(root_cause(&error.without_url()))
}

async fn exchange(
    client: reqwest::Client,
    request: reqwest::Request,
    most_bytes: usize,
) -> Result<Answer, SendError> {
    let mut response = client.execute(request).await.map_err(broken)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > most_bytes {
            return Err(SendError::TooLarge(most_bytes));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer {
        status: response.status(),
        headers: std::mem::take(response.headers_mut()),
        body,
    })
}

/// The innermost cause says "connection refused" where the outer ones say "error sending request".
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Writes `part` as one segment of a URL's path: everything but RFC 3986's unreserved characters becomes `%XX`, so that
/// a slash, a colon, a question mark or a line break stays part of the id. `None` for what a URL has no spelling for: a
/// segment that is empty or one or two dots. No purchase is called that.
pub fn push_segment(path: &mut String, part: &str) -> Option<()> {
    if matches!(part, "" | "." | "..") {
        return None;
    }
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push('%');
            path.push_str(&token::hex(&[byte]).to_ascii_uppercase());
        }
    }
    Some(())
}

/// `Retry-After` as a number of seconds, as a date, or, which is Apple's way, as the moment in milliseconds since the Unix
/// epoch; at least a second, at most a day. `None` when absent or nonsense.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<i64>() {
        Ok(moment) if moment >= FIRST_MOMENT => Timestamp::from_millis(moment).since(now),
        Ok(seconds) => Duration::from_secs(u64::try_from(seconds).ok()?),
        Err(_) => Timestamp::from(OffsetDateTime::parse(text, &Rfc2822).ok()?).since(now),
    };
    Some(wait.clamp(Duration::from_secs(1), LONGEST_WAIT))
}

/// What is wrong with a store's JSON, without `serde_json`'s own sentence, which repeats the value it did not expect.
pub fn unreadable(error: &serde_json::Error) -> String {
    format!(
        "{:?} error at line {}, column {}",
        error.classify(),
        error.line(),
        error.column()
    )
}

/// Callers who ask for the same thing at the same time share one call.
///
/// Whoever comes while the call runs gets its answer; whoever comes after starts a new one. The call goes on as long
/// as one of them still waits, whichever of them started it.
pub struct InFlight<K, V: Clone> {
    running: Arc<Mutex<HashMap<K, WeakShared<BoxFuture<'static, V>>>>>,
}

impl<K, V: Clone> Clone for InFlight<K, V> {
    fn clone(&self) -> Self {
        Self {
            running: self.running.clone(),
        }
    }
}

impl<K, V: Clone> Default for InFlight<K, V> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<K: Eq + Hash + Clone + Send + 'static, V: Clone + Send + Sync + 'static> InFlight<K, V> {
    /// Joins the call under `key`, or starts `call`.
    pub async fn share<F>(&self, key: K, call: impl FnOnce() -> F) -> V
    where
        F: Future<Output = V> + Send + 'static,
    {
        let shared: Shared<BoxFuture<'static, V>> = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            // A finished or abandoned call is not joined: its answer is of the past.
            let joined = running
                .get(&key)
                .and_then(WeakShared::upgrade)
                .filter(|call| call.peek().is_none());
            joined.unwrap_or_else(|| {
                let call = call().boxed().shared();
                if let Some(weak) = call.downgrade() {
                    running.insert(key.clone(), weak);
                }
                call
            })
        };
        let _tidy = Tidy {
            running: &self.running,
            key: &key,
        };
        shared.await
    }
}

/// Removes a call's entry when its last waiter leaves, also when that waiter is cancelled.
struct Tidy<'a, K: Eq + Hash, V: Clone> {
    running: &'a Mutex<HashMap<K, WeakShared<BoxFuture<'static, V>>>>,
    key: &'a K,
}

impl<K: Eq + Hash, V: Clone> Drop for Tidy<'_, K, V> {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = running
            .get(self.key)
            .is_some_and(|weak| weak.upgrade().is_none_or(|call| call.peek().is_some()));
        if ended {
            running.remove(self.key);
        }
    }
}

/// Bounds how much one owner may have running at once, so that one tenant's flood does not take every connection.
#[derive(Clone)]
pub struct Bulkhead<K> {
    width: usize,
    owners: Arc<Mutex<HashMap<K, Arc<Semaphore>>>>,
}

impl<K: Eq + Hash + Clone> Bulkhead<K> {
    /// At most `width` at once for each owner.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            owners: Arc::default(),
        }
    }

    /// Waits for a place of `owner`'s. `None` when none came free within `patience`.
    pub async fn enter(&self, owner: &K, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
            if owners.len() > 1024 {
                owners.retain(|_, places| {
                    Arc::strong_count(places) > 1 || places.available_permits() < self.width
                });
            }
            owners
                .entry(owner.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(self.width)))
                .clone()
        };
        tokio::time::timeout(patience, places.acquire_owned())
            .await
            .ok()?
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn callers_at_the_same_time_share_one_call() {
        let calls = Arc::new(AtomicU32::new(0));
        let in_flight = InFlight::<&str, u32>::default();
        let gate = Arc::new(Barrier::new(2));
        let ask = |gate: Arc<Barrier>| {
            let (calls, in_flight) = (calls.clone(), in_flight.clone());
            async move {
                in_flight
                    .share("key", || async move {
                        gate.wait().await;
                        calls.fetch_add(1, Ordering::SeqCst) + 1
                    })
                    .await
            }
        };
        let (one, two, ()) = tokio::join!(ask(gate.clone()), ask(gate.clone()), async {
            gate.wait().await;
        });
        assert_eq!((one, two), (1, 1));
        let (three, ()) = tokio::join!(ask(gate.clone()), async {
            gate.wait().await;
        });
        assert_eq!(three, 2, "a later caller asks again");
        assert!(
            in_flight.running.lock().expect("not poisoned").is_empty(),
            "nothing is left behind"
        );
    }

    #[tokio::test]
    async fn a_call_survives_the_caller_who_started_it() {
        let in_flight = InFlight::<u8, &str>::default();
        let (send, receive) = tokio::sync::oneshot::channel::<()>();
        let mut first = Box::pin(in_flight.share(1, || async {
            receive.await.ok();
            "answer"
        }));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(in_flight.share(1, || async { "another call" }));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        send.send(()).expect("the call still runs");
        assert_eq!(second.await, "answer");
    }

    #[tokio::test]
    async fn one_owner_waits_and_another_does_not() {
        let bulkhead = Bulkhead::new(1);
        let held = bulkhead.enter(&"a", Duration::ZERO).await;
        assert!(held.is_some());
        assert!(
            bulkhead
                .enter(&"a", Duration::from_millis(1))
                .await
                .is_none()
        );
        assert!(
            bulkhead
                .enter(&"b", Duration::from_millis(1))
                .await
                .is_some()
        );
        drop(held);
        assert!(
            bulkhead
                .enter(&"a", Duration::from_millis(1))
                .await
                .is_some()
        );
    }
}
