//! Calls OCSP responders and caches their responses.
//!
//! | last valid response | action |
//! |---|---|
//! | none | wait for a new one; if there is none: [`RevocationError::OcspUnavailable`] |
//! | "good", received less than 15 minutes ago, before `nextUpdate` | use it |
//! | "good", older, before `nextUpdate` | use it, and refresh it in the background |
//! | "good", less than a day after `nextUpdate` | wait for a new one; if there is none, use it |
//! | any, more than a day after `nextUpdate` | as if there were none |
//! | "revoked" or "unknown" | use it for a minute, then wait for a new one; if there is none, use it |
//!
//! Of two responses, the one with the later `thisUpdate` is kept. After a failed attempt, no request about the same
//! certificate is sent for ten seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use url::{Host, Url};

use super::certificate::ChainCertificate;
use super::response::{self, OcspResponseError, RevocationStatus, VerifiedOcspResponse};
use crate::base::clock::Clock;
use crate::base::single_flight::SingleFlight;
use crate::outbound::{RetryDecision, Upstream, UpstreamError};
use crate::telemetry::metrics::{Counter, MetricVec, MetricsRegistry};

/// How long a response "good" is used without a new request, as in Apple's own libraries.
const GOOD_STATUS_TTL: Duration = Duration::from_mins(15);
/// The same for "revoked" and "unknown", which Apple may correct.
const NOT_GOOD_STATUS_TTL: Duration = Duration::from_mins(1);
/// How long after its `nextUpdate` a response is still used while there is no new one.
const STALE_STATUS_TTL: Duration = Duration::from_hours(24);
/// The delay after a failed attempt.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Short, because the caller of a verification or Apple waits for the result.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// A response with the responder's certificate has about 2 KB.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// The maximum number of certificates with a cached status. Only certificates of chains that lead to a trusted root are
/// checked.
const MAX_CACHED_CERTIFICATES: usize = 64;

/// Which responders may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponderPolicy {
    /// Only hosts of apple.com, for Apple's own roots.
    AppleHosts,
    /// Any host that a certificate names, for an operator's roots.
    AnyHost,
}

/// Why a certificate is not known to be good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationError {
    /// The certificate was revoked.
    Revoked,
    /// The responder does not know the certificate.
    Unknown,
    /// The certificate names no responder, or only one that may not be called.
    NoResponder,
    /// No response could be verified. The certificate may be good.
    OcspUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
}

/// Checks certificates for revocation. Clones share the cache.
#[derive(Clone)]
pub struct RevocationChecker {
    upstream: Upstream,
    clock: Clock,
    responder_policy: ResponderPolicy,
    cache: Arc<Mutex<HashMap<[u8; 32], CachedRevocationStatus>>>,
    in_flight: SingleFlight<[u8; 32], Option<RevocationStatus>>,
    outcome_counter: MetricVec<1, Counter>,
}

/// The cached status of a certificate.
#[derive(Clone, Copy, Default)]
struct CachedRevocationStatus {
    /// The last verified response, and the uptime of this process when it was received.
    response: Option<(VerifiedOcspResponse, Duration)>,
    /// The uptime at the last background refresh or failed attempt.
    attempted_at: Option<Duration>,
}

/// How the status of a certificate is determined.
enum RevocationLookup {
    /// A cached status that is still valid.
    Cached(RevocationStatus),
    /// This status is used, and a new one is requested in the background.
    Refresh(RevocationStatus),
    /// A new response is requested. Without one, this status is used.
    Query(Option<RevocationStatus>),
    /// There is no status, and the next attempt is only allowed after this time.
    WaitToRetry(Duration),
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum OcspRequestError {
    #[error("{0}")]
    Unreachable(#[from] UpstreamError),
    #[error("status {0}")]
    Status(StatusCode),
    #[error("{0}")]
    BadResponse(#[from] OcspResponseError),
}

impl OcspRequestError {
    fn outcome_label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Status(_) | Self::BadResponse(_) => "unusable",
        }
    }
}

impl RevocationChecker {
    /// A checker that may call the responders of `responder_policy`, through the client of `upstream`.
    pub fn new(upstream: &Upstream, clock: &Clock, responder_policy: ResponderPolicy) -> Self {
        Self {
            upstream: upstream.with_limits(REQUEST_TIMEOUT, MAX_RESPONSE_BYTES),
            clock: clock.clone(),
            responder_policy,
            cache: Arc::default(),
            in_flight: SingleFlight::default(),
            outcome_counter: register_outcome_counter(&MetricsRegistry::default()),
        }
    }

    /// Counts requests to responders in `registry`.
    #[must_use]
    pub fn with_metrics(self, registry: &MetricsRegistry) -> Self {
        Self {
            outcome_counter: register_outcome_counter(registry),
            ..self
        }
    }

    /// Checks that all of `subjects` are good. A definite error for one certificate takes precedence over an unknown
    /// status of another.
    pub async fn check_certificates(
        &self,
        subjects: &[ChainCertificate],
    ) -> Result<(), RevocationError> {
        let found = join_all(
            subjects
                .iter()
                .map(|subject| self.certificate_status(subject)),
        )
        .await;
        let found = found.into_iter().map(|found| match found? {
            RevocationStatus::Good => Ok(()),
            RevocationStatus::Revoked => Err(RevocationError::Revoked),
            RevocationStatus::Unknown => Err(RevocationError::Unknown),
        });
        let worst = found.filter_map(Result::err);
        worst
            .min_by_key(|why| match why {
                RevocationError::Revoked => 0,
                RevocationError::Unknown => 1,
                RevocationError::NoResponder => 2,
                RevocationError::OcspUnavailable { .. } => 3,
            })
            .map_or(Ok(()), Err)
    }

    async fn certificate_status(
        &self,
        subject: &ChainCertificate,
    ) -> Result<RevocationStatus, RevocationError> {
        let url = subject
            .responder_url()
            .filter(|url| self.responder_policy.allows_url(url))
            .ok_or(RevocationError::NoResponder)?;
        match self.decide_lookup(subject) {
            RevocationLookup::Cached(status) => Ok(status),
            RevocationLookup::Refresh(status) => {
                // Recorded before the task starts, so that concurrent requests start no second refresh.
                self.record_attempt(subject);
                let (this, subject, url) = (self.clone(), subject.clone(), url.clone());
                tokio::spawn(async move { this.query_responder(&subject, &url).await });
                Ok(status)
            }
            RevocationLookup::Query(fallback) => {
                let answered = self.query_responder(subject, url).await.or(fallback);
                answered.ok_or(RevocationError::OcspUnavailable {
                    retry_after: RETRY_INTERVAL,
                })
            }
            RevocationLookup::WaitToRetry(retry_after) => {
                Err(RevocationError::OcspUnavailable { retry_after })
            }
        }
    }

    fn decide_lookup(&self, subject: &ChainCertificate) -> RevocationLookup {
        let CachedRevocationStatus {
            response: answer,
            attempted_at: tried,
        } = self.cached_status(subject);
        let (now, uptime) = (self.clock.now(), self.clock.uptime());
        let wait = tried.and_then(|tried| {
            let left = (tried + RETRY_INTERVAL).saturating_sub(uptime);
            Some(left).filter(|left| !left.is_zero())
        });
        let answer = answer.filter(|(answer, _)| now <= answer.next_update.plus(STALE_STATUS_TTL));
        let Some((answer, answered)) = answer else {
            return wait.map_or(RevocationLookup::Query(None), RevocationLookup::WaitToRetry);
        };
        let status = answer.status;
        if wait.is_some() || self.is_fresh(answer, answered) {
            RevocationLookup::Cached(status)
        } else if status == RevocationStatus::Good && answer.is_current(now) {
            RevocationLookup::Refresh(status)
        } else {
            RevocationLookup::Query(Some(status))
        }
    }

    /// Whether the response is used without a new request.
    fn is_fresh(&self, answer: VerifiedOcspResponse, answered: Duration) -> bool {
        let lasts = match answer.status {
            RevocationStatus::Good => GOOD_STATUS_TTL,
            RevocationStatus::Revoked | RevocationStatus::Unknown => NOT_GOOD_STATUS_TTL,
        };
        answer.is_current(self.clock.now()) && self.clock.uptime().saturating_sub(answered) < lasts
    }

    /// Calls the responder, or waits for a running call about the same certificate.
    async fn query_responder(
        &self,
        subject: &ChainCertificate,
        url: &Url,
    ) -> Option<RevocationStatus> {
        let (this, subject_and_url) = (self.clone(), (subject.clone(), url.clone()));
        let call = move || async move {
            let (subject, url) = subject_and_url;
            // Another call may have stored a response since the lookup.
            let known = this.cached_status(&subject).response;
            if let Some((answer, _)) =
                known.filter(|(answer, answered)| this.is_fresh(*answer, *answered))
            {
                return Some(answer.status);
            }
            match this.fetch_response(&subject, &url).await {
                Ok(answer) => {
                    this.outcome_counter
                        .with_label_values([answer.status.as_str()])
                        .inc();
                    if answer.status != RevocationStatus::Good {
                        tracing::error!(
                            serialNumber = subject.serial_number(),
                            responder = url.as_str(),
                            status = answer.status.as_str(),
                            hint = "nothing that this certificate signed is believed",
                            "apple_certificate_not_good"
                        );
                    }
                    Some(this.store_response(&subject, answer))
                }
                Err(why) => {
                    this.outcome_counter
                        .with_label_values([why.outcome_label()])
                        .inc();
                    this.record_attempt(&subject);
                    tracing::warn!(
                        serialNumber = subject.serial_number(),
                        responder = url.as_str(),
                        error = %why,
                        hint = "a certificate that was good still is, for a day longer than its responder said; what a new one signed is answered with \"try again\"",
                        "apple_ocsp_unanswered"
                    );
                    None
                }
            }
        };
        self.in_flight.share_call(subject.digest(), call).await
    }

    async fn fetch_response(
        &self,
        subject: &ChainCertificate,
        url: &Url,
    ) -> Result<VerifiedOcspResponse, OcspRequestError> {
        let answer = self
            .upstream
            .send_with_retries(
                |client| {
                    client
                        .post(url.clone())
                        .header(CONTENT_TYPE, "application/ocsp-request")
                        .header(ACCEPT, "application/ocsp-response")
                        .body(subject.request_der().to_vec())
                },
                |answer| {
                    if answer.status.is_server_error() {
                        RetryDecision::Transient
                    } else {
                        RetryDecision::Final
                    }
                },
            )
            .await?;
        if answer.status != StatusCode::OK {
            return Err(OcspRequestError::Status(answer.status));
        }
        Ok(response::verify_response(
            &answer.body,
            subject,
            self.clock.now(),
        )?)
    }

    fn cached_status(&self, subject: &ChainCertificate) -> CachedRevocationStatus {
        let known = self.lock_cache();
        known.get(&subject.digest()).copied().unwrap_or_default()
    }

    /// Stores a response and returns the status to use. If the stored response has a later `thisUpdate`, it is kept: a
    /// cache in the network may serve old responses, and an attacker may replay one from before a revocation.
    fn store_response(
        &self,
        subject: &ChainCertificate,
        answer: VerifiedOcspResponse,
    ) -> RevocationStatus {
        let uptime = self.clock.uptime();
        let mut counts = answer;
        self.update_cache(subject, |known| {
            let newer = known.response.map(|(known, _)| known);
            let newer = newer.filter(|known| known.this_update > answer.this_update);
            counts = newer.unwrap_or(answer);
            *known = CachedRevocationStatus {
                response: Some((counts, uptime)),
                attempted_at: None,
            };
        });
        counts.status
    }

    fn record_attempt(&self, subject: &ChainCertificate) {
        let now = self.clock.uptime();
        self.update_cache(subject, |known| known.attempted_at = Some(now));
    }

    fn update_cache(
        &self,
        subject: &ChainCertificate,
        change: impl FnOnce(&mut CachedRevocationStatus),
    ) {
        let mut known = self.lock_cache();
        if known.len() >= MAX_CACHED_CERTIFICATES && !known.contains_key(&subject.digest()) {
            let answered =
                |known: &CachedRevocationStatus| known.response.map(|(_, answered)| answered);
            let oldest = known.iter().min_by_key(|(_, known)| answered(known));
            let oldest = oldest.map(|(digest, _)| *digest);
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        change(known.entry(subject.digest()).or_default());
    }

    fn lock_cache(&self) -> MutexGuard<'_, HashMap<[u8; 32], CachedRevocationStatus>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResponderPolicy {
    /// The policy for an operator's own roots, or else for Apple's.
    pub fn for_roots(own_roots: bool) -> Self {
        if own_roots {
            Self::AnyHost
        } else {
            Self::AppleHosts
        }
    }

    /// Whether the responder at `url` may be called.
    pub fn allows_url(self, url: &Url) -> bool {
        match (self, url.host()) {
            (Self::AnyHost, _) => true,
            (Self::AppleHosts, Some(Host::Domain(name))) => {
                url.port().is_none() && (name == "apple.com" || name.ends_with(".apple.com"))
            }
            (Self::AppleHosts, _) => false,
        }
    }
}

impl std::fmt::Debug for RevocationChecker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Revocations({:?})", self.responder_policy)
    }
}

fn register_outcome_counter(registry: &MetricsRegistry) -> MetricVec<1, Counter> {
    let outcomes = registry.register_counter_vec(
        "attesto_apple_ocsp_questions_total",
        "Questions to Apple's responders about a certificate, by what came back.",
        ["outcome"],
    );
    // All series exist from the start, because an alert needs a 0 to detect an increase.
    for outcome in ["good", "revoked", "unknown", "unusable", "unreachable"] {
        outcomes.with_label_values([outcome]);
    }
    outcomes
}
