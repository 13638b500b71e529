//! The pair in use, and how another takes its place.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::certificate::{PemContents, TlsCertificate, TlsCertificateError, TlsFiles};
use crate::base::clock::Clock;
use crate::telemetry::metrics::u64_to_f64;
use crate::telemetry::metrics::{Counter, Gauge, MetricsRegistry};

/// How many readings in a row may differ before one is judged all the same.
const MAX_SETTLE_READS: usize = 4;

/// How often the files are looked at.
#[derive(Clone, Copy, Debug)]
pub struct ReloadIntervals {
    /// How long between two looks.
    pub poll_interval: Duration,
    /// Two files are not written at one moment: what is read must be the same again after this.
    pub settle_interval: Duration,
}

impl Default for ReloadIntervals {
    /// What is written is in use, or refused, within seven seconds.
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_secs(5),
            settle_interval: Duration::from_millis(500),
        }
    }
}

/// Metrics of the listener's certificate. Clones share them.
#[derive(Clone, Debug)]
pub struct TlsMetrics {
    not_after: Gauge,
    rejected: Counter,
}

impl TlsMetrics {
    /// Counts into `registry`.
    pub fn new(registry: &MetricsRegistry) -> Self {
        Self {
            not_after: registry.register_gauge(
                "attesto_tls_cert_not_after_seconds",
                "When the certificate of this process' own listener expires, in seconds since the Unix epoch; 0 without one.",
            ),
            rejected: registry.register_counter(
                "attesto_tls_pairs_refused_total",
                "Certificates and keys that were found in their files and not taken into use.",
            ),
        }
    }

    fn record_certificate(&self, pair: &TlsCertificate) {
        let seconds = u64::try_from(pair.not_after().as_secs()).unwrap_or(0);
        self.not_after.set(u64_to_f64(seconds));
    }
}

/// The pair in use. Clones share it.
#[derive(Clone)]
pub struct ReloadableTls {
    files: TlsFiles,
    clock: Clock,
    intervals: ReloadIntervals,
    current: Arc<RwLock<CurrentCertificate>>,
}

struct CurrentCertificate {
    certificate: TlsCertificate,
    /// Of the files it was read from.
    digest: [u8; 32],
}

/// What became of a look at the files.
enum ReloadOutcome {
    /// They hold what is in use.
    Unchanged,
    /// They hold another pair, which is in use now.
    Reloaded(TlsCertificate),
    /// What they hold is no good.
    Rejected {
        problem: TlsCertificateError,
        /// What they held, if they could be read.
        digest: Option<[u8; 32]>,
    },
}

impl ReloadableTls {
    /// Reads the pair for the first time.
    pub fn load(files: TlsFiles, clock: &Clock) -> Result<Self, TlsCertificateError> {
        let texts = files.read_pem()?;
        let current = CurrentCertificate {
            certificate: TlsCertificate::from_pem(&texts, clock.now())?,
            digest: texts.content_digest(),
        };
        Ok(Self {
            files,
            clock: clock.clone(),
            intervals: ReloadIntervals::default(),
            current: Arc::new(RwLock::new(current)),
        })
    }

    /// The same, and the files are looked at in this rhythm.
    #[must_use]
    pub fn with_intervals(mut self, rhythm: ReloadIntervals) -> Self {
        self.intervals = rhythm;
        self
    }

    /// The pair that the next connection begins with.
    pub fn current_certificate(&self) -> TlsCertificate {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.certificate.clone()
    }

    /// What the next connection begins with.
    pub(in crate::server) fn tls_acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(current.certificate.config.clone())
    }

    /// Looks at the files again and again, and at once at SIGHUP, until `stop`. From this call on, not only from the first
    /// poll, SIGHUP does not end this process.
    pub fn watch_files(
        self,
        metrics: TlsMetrics,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        metrics.record_certificate(&self.current_certificate());
        let mut hangup = signal(SignalKind::hangup()).ok();
        let watching = async move {
            // The refusal that was logged last, so that each is logged once.
            let mut last_logged: Option<(String, Option<[u8; 32]>)> = None;
            loop {
                let called = async {
                    match &mut hangup {
                        Some(hangup) => hangup.recv().await,
                        None => std::future::pending().await,
                    }
                };
                let called = tokio::select! {
                    () = sleep(self.intervals.poll_interval) => false,
                    _ = called => true,
                };
                if called {
                    last_logged = None;
                }
                match self.reload_if_changed().await {
                    ReloadOutcome::Unchanged if called => {
                        tracing::info!("tls_certificate_unchanged");
                    }
                    ReloadOutcome::Unchanged => last_logged = None,
                    ReloadOutcome::Reloaded(pair) => {
                        metrics.record_certificate(&pair);
                        last_logged = None;
                        tracing::info!(
                            notAfter = %pair.not_after(),
                            sha256 = pair.fingerprint(),
                            "tls_certificate_changed"
                        );
                    }
                    ReloadOutcome::Rejected { problem, digest } => {
                        // Nothing secret is in it: production's log says it too.
                        let refusal = (problem.to_string(), digest);
                        if last_logged.as_ref() != Some(&refusal) {
                            metrics.rejected.inc();
                            tracing::error!(error = refusal.0, "tls_certificate_kept");
                            last_logged = Some(refusal);
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
    async fn reload_if_changed(&self) -> ReloadOutcome {
        let digest = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            current.digest
        };
        let texts = match self.read_settled(digest).await {
            Ok(Some(texts)) => texts,
            Ok(None) => return ReloadOutcome::Unchanged,
            Err(problem) => {
                return ReloadOutcome::Rejected {
                    problem,
                    digest: None,
                };
            }
        };
        let digest = texts.content_digest();
        match TlsCertificate::from_pem(&texts, self.clock.now()) {
            Ok(pair) => {
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *current = CurrentCertificate {
                    certificate: pair.clone(),
                    digest,
                };
                ReloadOutcome::Reloaded(pair)
            }
            Err(problem) => ReloadOutcome::Rejected {
                problem,
                digest: Some(digest),
            },
        }
    }

    /// The content of the files once they no longer change; `None` when it is `known`.
    async fn read_settled(
        &self,
        known: [u8; 32],
    ) -> Result<Option<PemContents>, TlsCertificateError> {
        let mut before = None;
        let mut reading = 1;
        loop {
            let files = self.files.clone();
            let texts = spawn_blocking(move || files.read_pem())
                .await
                .expect("reading files does not panic");
            let digest = texts.as_ref().ok().map(PemContents::content_digest);
            if digest == Some(known) {
                return Ok(None);
            }
            if before == Some(digest) || reading == MAX_SETTLE_READS {
                return texts.map(Some);
            }
            before = Some(digest);
            reading += 1;
            sleep(self.intervals.settle_interval).await;
        }
    }
}
