//! Asks responders, remembers what they said, and asks again.
//!
//! | last believed answer | what is done |
//! |---|---|
//! | none | asked, and waited for; without an answer: [`NotGood::Unanswered`] |
//! | "good", not older than a quarter of an hour | it counts |
//! | "good", older, its responder still vouches for it | it counts; asked in the background |
//! | not vouched for any longer, for less than a day | asked, and waited for; without an answer it still counts |
//! | not vouched for for longer | as if there were none |
//! | "revoked", "unknown" | it counts for a minute, then asked, and waited for; without an answer it still counts |
//!
//! Of two answers the one that was true later counts. After an attempt that brought nothing, none is made about the same
//! certificate for ten seconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use url::{Host, Url};

use super::answer::{self, Answer, Status, Unusable};
use super::subject::Subject;
use crate::clock::Clock;
use crate::metrics::{Counter, Labelled, Registry};
use crate::outbound::{InFlight, SendError, Upstream, Verdict};

/// How long an answer counts without a new question: what Apple's own libraries do.
const FRESH_FOR: Duration = Duration::from_mins(15);
/// The same for a "no", which may be mended.
const NO_FOR: Duration = Duration::from_mins(1);
/// How long an answer counts after the responder ceased to vouch for it, while there is no new one.
const STALE_FOR: Duration = Duration::from_hours(24);
/// The pause after an attempt that brought nothing.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a question may take. Somebody waits for it, Apple for one.
const DEADLINE: Duration = Duration::from_secs(3);
/// An answer with the responder's certificate is some two kilobytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How many certificates are remembered. Only ones of chains that lead to a trusted root are asked about at all.
const MOST: usize = 64;

/// Which responders are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only hosts of apple.com: the roots are Apple's.
    Apple,
    /// Whatever the certificate says: the roots are the operator's own.
    Anywhere,
}

/// Why a certificate is not known to be good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotGood {
    /// It was revoked.
    Revoked,
    /// Its responder knows no such certificate.
    Unknown,
    /// It names no responder, or none that may be asked.
    NoResponder,
    /// There is no answer to believe. Nothing is said about the certificate.
    Unanswered {
        /// When another attempt may be made.
        retry_after: Duration,
    },
}

/// What is known of certificates. Clones share it.
#[derive(Clone)]
pub struct Revocations {
    upstream: Upstream,
    clock: Clock,
    reach: Reach,
    known: Arc<Mutex<HashMap<[u8; 32], Known>>>,
    asking: InFlight<[u8; 32], Option<Status>>,
    outcomes: Labelled<1, Counter>,
}

/// What is known of one certificate.
#[derive(Clone, Copy, Default)]
struct Known {
    /// The last answer that was believed, and this process' uptime then.
    answer: Option<(Answer, Duration)>,
    /// When, by uptime, an attempt was made that nobody waited for or that brought nothing.
    tried: Option<Duration>,
}

/// What to do about a certificate.
enum Look {
    /// This counts.
    Known(Status),
    /// This counts, and a new answer is due.
    Refresh(Status),
    /// Ask; without an answer this counts.
    Ask(Option<Status>),
    /// Nothing is known, and it is too soon to ask again.
    Wait(Duration),
}

/// Why an attempt brought nothing.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("{0}")]
    Unreachable(#[from] SendError),
    #[error("status {0}")]
    Status(StatusCode),
    #[error("{0}")]
    Unusable(#[from] Unusable),
}

impl NoAnswer {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Status(_) | Self::Unusable(_) => "unusable",
        }
    }
}

impl Revocations {
    /// Asks responders within `reach`, through the client of `upstream`.
    pub fn new(upstream: &Upstream, clock: &Clock, reach: Reach) -> Self {
        Self {
            upstream: upstream.within(DEADLINE, MAX_ANSWER_BYTES),
            clock: clock.clone(),
            reach,
            known: Arc::default(),
            asking: InFlight::default(),
            outcomes: outcomes(&Registry::default()),
        }
    }

    /// The same, and every question to a responder is counted into `registry`.
    #[must_use]
    pub fn counted(self, registry: &Registry) -> Self {
        Self {
            outcomes: outcomes(registry),
            ..self
        }
    }

    /// Whether all of `subjects` are good. What is certain about one goes before what is not known of another.
    pub async fn check(&self, subjects: &[Subject]) -> Result<(), NotGood> {
        let found = join_all(subjects.iter().map(|subject| self.status(subject))).await;
        let found = found.into_iter().map(|found| match found? {
            Status::Good => Ok(()),
            Status::Revoked => Err(NotGood::Revoked),
            Status::Unknown => Err(NotGood::Unknown),
        });
        let worst = found.filter_map(Result::err);
        worst
            .min_by_key(|why| match why {
                NotGood::Revoked => 0,
                NotGood::Unknown => 1,
                NotGood::NoResponder => 2,
                NotGood::Unanswered { .. } => 3,
            })
            .map_or(Ok(()), Err)
    }

    async fn status(&self, subject: &Subject) -> Result<Status, NotGood> {
        let url = subject
            .responder()
            .filter(|url| self.reach.includes(url))
            .ok_or(NotGood::NoResponder)?;
        match self.look(subject) {
            Look::Known(status) => Ok(status),
            Look::Refresh(status) => {
                // Whoever comes meanwhile has nothing to begin.
                self.tried(subject);
                let (this, subject, url) = (self.clone(), subject.clone(), url.clone());
                tokio::spawn(async move { this.ask(&subject, &url).await });
                Ok(status)
            }
            Look::Ask(fallback) => {
                let answered = self.ask(subject, url).await.or(fallback);
                answered.ok_or(NotGood::Unanswered { retry_after: PAUSE })
            }
            Look::Wait(retry_after) => Err(NotGood::Unanswered { retry_after }),
        }
    }

    fn look(&self, subject: &Subject) -> Look {
        let Known { answer, tried } = self.recall(subject);
        let (now, uptime) = (self.clock.now(), self.clock.uptime());
        let wait = tried.and_then(|tried| {
            let left = (tried + PAUSE).saturating_sub(uptime);
            Some(left).filter(|left| !left.is_zero())
        });
        let answer = answer.filter(|(answer, _)| now <= answer.next_update.plus(STALE_FOR));
        let Some((answer, answered)) = answer else {
            return wait.map_or(Look::Ask(None), Look::Wait);
        };
        let status = answer.status;
        if wait.is_some() || self.is_fresh(answer, answered) {
            Look::Known(status)
        } else if status == Status::Good && answer.is_vouched_for(now) {
            Look::Refresh(status)
        } else {
            Look::Ask(Some(status))
        }
    }

    /// Whether an answer need not be asked for again yet.
    fn is_fresh(&self, answer: Answer, answered: Duration) -> bool {
        let lasts = match answer.status {
            Status::Good => FRESH_FOR,
            Status::Revoked | Status::Unknown => NO_FOR,
        };
        answer.is_vouched_for(self.clock.now())
            && self.clock.uptime().saturating_sub(answered) < lasts
    }

    /// Asks, or waits for who is asking.
    async fn ask(&self, subject: &Subject, url: &Url) -> Option<Status> {
        let (this, whom) = (self.clone(), (subject.clone(), url.clone()));
        let asked = move || async move {
            let (subject, url) = whom;
            // Somebody may have brought it since this caller looked.
            let known = this.recall(&subject).answer;
            if let Some((answer, _)) =
                known.filter(|(answer, answered)| this.is_fresh(*answer, *answered))
            {
                return Some(answer.status);
            }
            match this.fetch(&subject, &url).await {
                Ok(answer) => {
                    this.outcomes.with([answer.status.as_str()]).count();
                    if answer.status != Status::Good {
                        tracing::error!(
                            serialNumber = subject.serial_number(),
                            responder = url.as_str(),
                            status = answer.status.as_str(),
                            "apple_certificate_not_good: nothing that this certificate signed is believed"
                        );
                    }
                    Some(this.answered(&subject, answer))
                }
                Err(why) => {
                    this.outcomes.with([why.outcome()]).count();
                    this.tried(&subject);
                    tracing::warn!(
                        serialNumber = subject.serial_number(),
                        responder = url.as_str(),
                        error = %why,
                        "apple_ocsp_unanswered: a certificate that was good still is, for a day longer than its responder said; what a new one signed is answered with \"try again\""
                    );
                    None
                }
            }
        };
        self.asking.share(subject.digest(), asked).await
    }

    async fn fetch(&self, subject: &Subject, url: &Url) -> Result<Answer, NoAnswer> {
        let answer = self
            .upstream
            .send(
                |client| {
                    client
                        .post(url.clone())
                        .header(CONTENT_TYPE, "application/ocsp-request")
                        .header(ACCEPT, "application/ocsp-response")
                        .body(subject.request().to_vec())
                },
                |answer| {
                    if answer.status.is_server_error() {
                        Verdict::Transient
                    } else {
                        Verdict::Final
                    }
                },
            )
            .await?;
        if answer.status != StatusCode::OK {
            return Err(NoAnswer::Status(answer.status));
        }
        Ok(answer::read(&answer.body, subject, self.clock.now())?)
    }

    fn recall(&self, subject: &Subject) -> Known {
        let known = self.known();
        known.get(&subject.digest()).copied().unwrap_or_default()
    }

    /// What counts from now on: what was said last, even when an older answer comes later, which is what a cache on the
    /// way may do, or somebody who kept one from before a revocation.
    fn answered(&self, subject: &Subject, answer: Answer) -> Status {
        let uptime = self.clock.uptime();
        let mut counts = answer;
        self.remember(subject, |known| {
            let newer = known.answer.map(|(known, _)| known);
            let newer = newer.filter(|known| known.this_update > answer.this_update);
            counts = newer.unwrap_or(answer);
            *known = Known {
                answer: Some((counts, uptime)),
                tried: None,
            };
        });
        counts.status
    }

    fn tried(&self, subject: &Subject) {
        let now = self.clock.uptime();
        self.remember(subject, |known| known.tried = Some(now));
    }

    fn remember(&self, subject: &Subject, change: impl FnOnce(&mut Known)) {
        let mut known = self.known();
        if known.len() >= MOST && !known.contains_key(&subject.digest()) {
            let answered = |known: &Known| known.answer.map(|(_, answered)| answered);
            let oldest = known.iter().min_by_key(|(_, known)| answered(known));
            let oldest = oldest.map(|(digest, _)| *digest);
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        change(known.entry(subject.digest()).or_default());
    }

    fn known(&self) -> MutexGuard<'_, HashMap<[u8; 32], Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reach {
    /// What may be asked when the roots are the operator's own, or Apple's.
    pub fn of(own_roots: bool) -> Self {
        if own_roots {
            Self::Anywhere
        } else {
            Self::Apple
        }
    }

    /// Whether the responder at `url` may be asked.
    pub fn includes(self, url: &Url) -> bool {
        match (self, url.host()) {
            (Self::Anywhere, _) => true,
            (Self::Apple, Some(Host::Domain(name))) => {
                url.port().is_none() && (name == "apple.com" || name.ends_with(".apple.com"))
            }
            (Self::Apple, _) => false,
        }
    }
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Revocations({:?})", self.reach)
    }
}

fn outcomes(registry: &Registry) -> Labelled<1, Counter> {
    let outcomes = registry.counters(
        "attesto_apple_ocsp_questions_total",
        "Questions to Apple's responders about a certificate, by what came back.",
        ["outcome"],
    );
    // There from the beginning: an alert that compares with 0 needs a 0.
    for outcome in ["good", "revoked", "unknown", "unusable", "unreachable"] {
        outcomes.with([outcome]);
    }
    outcomes
}
