//! The pair in use, and how another takes its place.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::pair::{BadPair, Files, Pair, Texts};
use crate::clock::Clock;
use crate::metrics::registry::as_number;
use crate::metrics::{Counter, Gauge, Registry};

/// How many readings in a row may differ before one is judged all the same.
const READINGS: usize = 4;

/// How often the files are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// How long between two looks.
    pub look_every: Duration,
    /// Two files are not written at one moment: what is read must be the same again after this.
    pub settle: Duration,
}

impl Default for Rhythm {
    /// What is written is in use, or refused, within seven seconds.
    fn default() -> Self {
        Self {
            look_every: Duration::from_secs(5),
            settle: Duration::from_millis(500),
        }
    }
}

/// What is counted of certificates. Clones share it.
#[derive(Clone, Debug)]
pub struct Numbers {
    not_after: Gauge,
    refused: Counter,
}

impl Numbers {
    /// Counts into `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            not_after: registry.gauge(
                "attesto_tls_cert_not_after_seconds",
                "When the certificate of this process' own listener expires, in seconds since the Unix epoch; 0 without one.",
            ),
            refused: registry.counter(
                "attesto_tls_pairs_refused_total",
                "Certificates and keys that were found in their files and not taken into use.",
            ),
        }
    }

    fn show(&self, pair: &Pair) {
        let seconds = u64::try_from(pair.not_after().seconds()).unwrap_or(0);
        self.not_after.set(as_number(seconds));
    }
}

/// The pair in use. Clones share it.
#[derive(Clone)]
pub struct Tls {
    files: Files,
    clock: Clock,
    rhythm: Rhythm,
    current: Arc<RwLock<Current>>,
}

struct Current {
    pair: Pair,
    /// Of the files it was read from.
    digest: [u8; 32],
}

/// What became of a look at the files.
enum Look {
    /// They hold what is in use.
    Same,
    /// They hold another pair, which is in use now.
    Taken(Pair),
    /// What they hold is no good.
    Refused {
        problem: BadPair,
        /// What they held, if they could be read.
        digest: Option<[u8; 32]>,
    },
}

impl Tls {
    /// Reads the pair for the first time.
    pub fn load(files: Files, clock: &Clock) -> Result<Self, BadPair> {
        let texts = files.read()?;
        let current = Current {
            pair: Pair::judge(&texts, clock.now())?,
            digest: texts.digest(),
        };
        Ok(Self {
            files,
            clock: clock.clone(),
            rhythm: Rhythm::default(),
            current: Arc::new(RwLock::new(current)),
        })
    }

    /// The same, and the files are looked at in this rhythm.
    #[must_use]
    pub fn looking(mut self, rhythm: Rhythm) -> Self {
        self.rhythm = rhythm;
        self
    }

    /// The pair that the next connection begins with.
    pub fn pair(&self) -> Pair {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.pair.clone()
    }

    /// What the next connection begins with.
    pub(in crate::server) fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(current.pair.config.clone())
    }

    /// Looks at the files again and again, and at once at SIGHUP, until `stop`. From this call on, not only from the first
    /// poll, SIGHUP does not end this process.
    pub fn watch(
        self,
        numbers: Numbers,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        numbers.show(&self.pair());
        let mut hangup = signal(SignalKind::hangup()).ok();
        let watching = async move {
            // What the log was told last, so that it is told once.
            let mut told: Option<(String, Option<[u8; 32]>)> = None;
            loop {
                let called = async {
                    match &mut hangup {
                        Some(hangup) => hangup.recv().await,
                        None => std::future::pending().await,
                    }
                };
                let called = tokio::select! {
                    () = sleep(self.rhythm.look_every) => false,
                    _ = called => true,
                };
                if called {
                    told = None;
                }
                match self.look().await {
                    Look::Same if called => tracing::info!("tls_certificate_unchanged"),
                    Look::Same => told = None,
                    Look::Taken(pair) => {
                        numbers.show(&pair);
                        told = None;
                        tracing::info!(
                            notAfter = %pair.not_after(),
                            sha256 = pair.fingerprint(),
                            "tls_certificate_changed"
                        );
                    }
                    Look::Refused { problem, digest } => {
                        // Nothing secret is in it: production's log says it too.
                        let refusal = (problem.to_string(), digest);
                        if told.as_ref() != Some(&refusal) {
                            numbers.refused.count();
                            tracing::error!(error = refusal.0, "tls_certificate_kept");
                            told = Some(refusal);
                        }
                    }
                }
            }
        };
        async move {
            stop.run_until_cancelled(watching).await;
        }
    }

    /// Reads the files and, when they hold another good pair, takes it into use.
    async fn look(&self) -> Look {
        let digest = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            current.digest
        };
        let texts = match self.settled(digest).await {
            Ok(Some(texts)) => texts,
            Ok(None) => return Look::Same,
            Err(problem) => {
                return Look::Refused {
                    problem,
                    digest: None,
                };
            }
        };
        let digest = texts.digest();
        match Pair::judge(&texts, self.clock.now()) {
            Ok(pair) => {
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *current = Current {
                    pair: pair.clone(),
                    digest,
                };
                Look::Taken(pair)
            }
            Err(problem) => Look::Refused {
                problem,
                digest: Some(digest),
            },
        }
    }

    /// What the files hold once nobody writes them any more; `None` when that is `known`.
    async fn settled(&self, known: [u8; 32]) -> Result<Option<Texts>, BadPair> {
        let mut before = None;
        let mut reading = 1;
        loop {
            let files = self.files.clone();
            let texts = spawn_blocking(move || files.read())
                .await
                .expect("reading files does not panic");
            let digest = texts.as_ref().ok().map(Texts::digest);
            if digest == Some(known) {
                return Ok(None);
            }
            if before == Some(digest) || reading == READINGS {
                return texts.map(Some);
            }
            before = Some(digest);
            reading += 1;
            sleep(self.rhythm.settle).await;
        }
    }
}
