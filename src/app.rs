//! Builds each feature with just what it needs, and runs what runs beside the requests.
//!
//! [`Service::build`] makes the parts, [`Service::serve`] sets them going on a listener, [`Serving::stop`] ends them in
//! the order in which they need each other. A test does the same with a clock of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::VerificationLog;
use crate::base::clock::Clock;
use crate::checks;
use crate::checks::expiry::certificate_name;
use crate::checks::gauges::DatabaseGauges;
use crate::config::{AppSettings, WebhookSettings, compute_fingerprints};
use crate::credentials::canary;
use crate::crypto::keyring::Keyring;
use crate::db::change_listener::ChangeListener;
use crate::db::{Database, DatabaseConnectError, SchemaState};
use crate::deliveries::{
    DeliveryMetrics, Dispatcher, DispatcherSettings, Sender, SenderSettings, SigningSender,
    WorkNotifier, hold,
};
use crate::egress::EgressPolicy;
use crate::events::{EventRecorder, NotificationMetrics};
use crate::http::health::{HealthState, ReadinessCheck};
use crate::http::request_layer::RequestLayer;
use crate::http::request_metrics::RequestMetrics;
use crate::jobs::{Job, JobContext, JobScheduler, probe, reseal};
use crate::outbound::{self, HttpClientError, Upstream};
use crate::replicas::{CertificateExpiries, CertificateValidity, ReplicaHeartbeat, host_name};
use crate::retention;
use crate::server::tls::{self, ReloadableTls};
use crate::server::{self, RunningServer, scrape};
use crate::server::{BODY_TIMEOUT, ConnectionLimits};
use crate::stores::apple::ocsp::{ResponderPolicy, RevocationChecker};
use crate::stores::apple::trust::{
    JwsVerifier, RootCertificatesError, root_expiries, signing_chain_expiry,
};
use crate::stores::apple::{self, AppleVerifier};
use crate::stores::google::trust::GoogleKeys;
use crate::stores::google::{self, GoogleVerifier};
use crate::telemetry::TraceMetrics;
use crate::telemetry::metrics::MetricsRegistry;
use crate::tenants::Authenticator;

/// What is left of the grace for giving back deliveries that did not end within it.
const CLAIM_RELEASE_RESERVE: Duration = Duration::from_secs(2);
/// How long what runs beside the requests may take to end.
const TASK_STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `/ready` waits for the database.
const DATABASE_PING_TIMEOUT: Duration = Duration::from_millis(1200);

/// Why a service cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What calls callbacks has no certificates to trust.
    #[error("callbacks cannot be called: {0}")]
    CallbackClient(#[from] rustls::Error),
    /// The client for calls to the stores.
    #[error(transparent)]
    StoreClient(#[from] HttpClientError),
    /// The root certificates that Apple's signatures are checked against.
    #[error("APPLE_ROOT_CERTIFICATES: {0}")]
    AppleRoots(#[from] RootCertificatesError),
}

/// Every feature, built and not yet running.
pub struct App {
    database: Database,
    keyring: Arc<Keyring>,
    clock: Clock,
    changes: ChangeListener,
    callers: Authenticator,
    apple: AppleVerifier,
    google: GoogleVerifier,
    apple_notifications: apple::AppleNotifications,
    google_notifications: google::GoogleNotifications,
    verifications: VerificationLog,
    notification_metrics: NotificationMetrics,
    delivery_metrics: DeliveryMetrics,
    metrics: AppMetrics,
    presence: ReplicaHeartbeat,
    /// The certificates that it lives by, beside its own.
    certificate_expiries: CertificateExpiries,
    sender: Sender,
    wake: WorkNotifier,
    webhooks: WebhookSettings,
    jobs: Option<JobScheduler>,
    shutdown_grace: Duration,
    tls: Option<ReloadableTls>,
    trace_metrics: Option<TraceMetrics>,
    tls_metrics: tls::TlsMetrics,
    /// Cancelled once nothing stands in the way of deliveries and jobs.
    prepared: CancellationToken,
}

/// What this process counts, and where that is shown.
struct AppMetrics {
    registry: MetricsRegistry,
    requests: RequestMetrics,
    statistics: Arc<DatabaseGauges>,
    listener: Option<TcpListener>,
}

impl App {
    /// Builds every feature. Call it where a runtime is; nothing is asked of the database yet.
    pub fn build(
        settings: &AppSettings,
        database: &Database,
        clock: &Clock,
    ) -> Result<Self, BuildError> {
        let keyring = &settings.keyring;
        let stores = &settings.stores;
        let changes = ChangeListener::new(database);
        let upstream = Upstream::new(outbound::build_http_client()?, stores.upstream_timeout);
        let verifier = match &stores.apple_root_certificates {
            Some(path) => JwsVerifier::with_roots_from(path)?,
            None => JwsVerifier::with_apple_roots(),
        };
        let registry = MetricsRegistry::default();
        let reach = ResponderPolicy::for_roots(stores.apple_root_certificates.is_some());
        let revocations = RevocationChecker::new(&upstream, clock, reach).with_metrics(&registry);
        let living_by = apple_certificate_expiries(&verifier);
        let apple = AppleVerifier::new(
            database,
            keyring,
            &changes,
            upstream.clone(),
            verifier,
            clock,
            apple::AppleSettings {
                production_url: stores.apple_production_url.clone(),
                sandbox_url: stores.apple_sandbox_url.clone(),
                credential_ttl: settings.credential_cache_ttl,
                revocation_checker: stores.is_apple_ocsp_enabled.then_some(revocations),
            },
        );
        let google_keys = GoogleKeys::new(&upstream, stores.google_jwks_url.clone(), clock.clone());
        let google = GoogleVerifier::new(
            database,
            keyring,
            &changes,
            upstream,
            clock,
            google::GoogleSettings {
                play_url: stores.google_play_url.clone(),
                token_url: stores.google_token_url.clone(),
                credential_ttl: settings.credential_cache_ttl,
            },
        );
        let wake = WorkNotifier::from_changes(&changes);
        let told = wake.clone();
        let record = EventRecorder::new(database, clock, move || told.notify_work());
        let sender = Sender::new(
            SenderSettings::new(
                settings.webhooks.callback_timeout,
                build_address_guard(settings, database),
            ),
            clock,
        )?;
        let apple_notifications = apple::AppleNotifications::new(&apple, record.clone(), &changes);
        let google_notifications =
            google::GoogleNotifications::new(&google, google_keys, record, &changes);
        let callers = Authenticator::new(database, &changes, clock, settings.rate_limit);
        Ok(Self {
            database: database.clone(),
            keyring: keyring.clone(),
            clock: clock.clone(),
            changes,
            callers,
            apple,
            google,
            apple_notifications,
            google_notifications,
            verifications: build_verifications(settings, database, clock).with_metrics(&registry),
            notification_metrics: NotificationMetrics::new(&registry),
            delivery_metrics: DeliveryMetrics::new(&registry),
            tls_metrics: tls::TlsMetrics::new(&registry),
            metrics: AppMetrics {
                requests: RequestMetrics::new(&registry),
                statistics: Arc::new(DatabaseGauges::new(
                    database, keyring, clock, &living_by, &registry,
                )),
                registry,
                listener: None,
            },
            presence: ReplicaHeartbeat::new(database, keyring, clock)
                .with_settings(compute_fingerprints(settings))
                .with_certificates(living_by.clone()),
            certificate_expiries: living_by,
            sender,
            wake,
            webhooks: settings.webhooks,
            jobs: settings.job_intervals.is_enabled.then(|| {
                let tools = build_job_tools(settings, database, clock);
                JobScheduler::new(&tools, all_jobs(&tools))
            }),
            shutdown_grace: settings.shutdown_grace,
            tls: None,
            trace_metrics: None,
            prepared: {
                let prepared = CancellationToken::new();
                prepared.cancel();
                prepared
            },
        })
    }

    /// The same, and deliveries and jobs begin only when `prepared` is cancelled: a process whose key is wrong, or whose
    /// tables are not there, must not take anything in hand.
    #[must_use]
    pub fn with_start_signal(mut self, prepared: CancellationToken) -> Self {
        self.prepared = prepared;
        self
    }

    /// The same, and what it counts is shown at `listener`.
    #[must_use]
    pub fn with_metrics_listener(mut self, listener: TcpListener) -> Self {
        self.metrics.listener = Some(listener);
        self
    }

    /// The same, and requests arrive over TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: ReloadableTls) -> Self {
        let (others, own) = (self.certificate_expiries.clone(), tls.clone());
        self.presence = self.presence.with_certificates(Arc::new(move || {
            let mut ends = others();
            let certificate = own.current_certificate();
            ends.insert(
                certificate_name::LISTENER,
                CertificateValidity {
                    not_before: Some(certificate.not_before()),
                    not_after: certificate.not_after(),
                },
            );
            ends
        }));
        self.tls = Some(tls);
        self
    }

    /// The same, and what it does is traced.
    #[must_use]
    pub fn with_trace_metrics(mut self, numbers: TraceMetrics) -> Self {
        self.trace_metrics = Some(numbers);
        self
    }

    /// Starts what runs beside the requests, and answers what arrives at `listener`.
    pub fn serve(self, listener: TcpListener, manners: ConnectionLimits) -> io::Result<RunningApp> {
        let spans = self.trace_metrics.clone().unwrap_or_default();
        spans.register_in(&self.metrics.registry);
        let leaving = CancellationToken::new();
        let envelope = self.build_request_layer(leaving.clone());
        let delivering = CancellationToken::new();
        let dispatcher = self
            .webhooks
            .is_dispatcher_enabled
            .then(|| self.build_dispatcher());
        let running = server::start_server(envelope, listener, manners, self.tls.clone())?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let Self {
            changes,
            callers,
            database,
            wake,
            verifications,
            metrics,
            jobs,
            prepared,
            webhooks,
            tls,
            tls_metrics: certificates,
            presence,
            ..
        } = self;
        let (ear, pen, voice, log) = (stop.clone(), stop.clone(), stop.clone(), stop.clone());
        tasks.spawn(async move { changes.run_until_stopped(ear).await });
        tasks.spawn(async move { callers.run_usage_writer(pen).await });
        let teller = database.clone();
        tasks.spawn(async move { wake.run_remote_notifications(&teller, voice).await });
        tasks.spawn(async move { verifications.run_writer(log).await });
        let statistics = metrics.statistics.clone();
        let mut metrics_address = None;
        if let Some(listener) = metrics.listener {
            metrics_address = Some(listener.local_addr()?);
            let (eye, mouth) = (stop.clone(), stop.clone());
            let stocktaker = statistics.clone();
            tasks.spawn(async move { stocktaker.run(eye).await });
            tasks.spawn(scrape::serve_metrics(listener, metrics.registry, mouth));
        }
        if let Some(tls) = tls {
            tasks.spawn(tls.watch_files(certificates, stop.clone()));
        }
        tasks.spawn(presence.run(stop.clone()));
        tasks.close();
        let deliveries = TaskTracker::new();
        let holding = webhooks.is_hold_requested.then(|| database.clone());
        let stop_delivering = delivering.clone();
        let settled = CancellationToken::new();
        let may_begin = settled.clone();
        deliveries.spawn(async move {
            let ready = prepared.cancelled();
            if stop_delivering.run_until_cancelled(ready).await.is_none() {
                return;
            }
            if let Some(database) = holding {
                hold::hold_with_retry(&database, &host_name(), &stop_delivering).await;
            }
            settled.cancel();
            if let Some(dispatcher) = dispatcher {
                dispatcher.run(stop_delivering).await;
            }
        });
        // They begin nothing new, and end, when deliveries do; and not before these are held, if they are to be: one of them
        // connects to callbacks.
        if let Some(jobs) = jobs {
            let stop = delivering.clone();
            deliveries.spawn(async move {
                if stop
                    .run_until_cancelled(may_begin.cancelled())
                    .await
                    .is_some()
                {
                    jobs.run(stop).await;
                }
            });
        }
        deliveries.close();
        Ok(RunningApp {
            server: running,
            shutting_down: leaving,
            stop_deliveries: delivering,
            delivery_tasks: deliveries,
            stop,
            tasks,
            statistics,
            metrics_address,
        })
    }

    fn build_dispatcher(&self) -> Dispatcher {
        let database = self.database.for_deliveries();
        let sender = SigningSender::new(self.sender.clone(), &database, &self.keyring, &self.clock);
        let settings = DispatcherSettings {
            concurrency: self.webhooks.max_concurrent_deliveries,
            poll_interval: self.webhooks.dispatch_interval,
            max_retries: self.webhooks.max_retries,
            shutdown_timeout: self.shutdown_grace.saturating_sub(CLAIM_RELEASE_RESERVE),
        };
        Dispatcher::new(&database, &self.clock, sender, self.wake.clone(), settings)
            .with_metrics(self.delivery_metrics.clone())
    }

    /// Every route, with what is around each answer. `/ready` fails once `leaving` is cancelled.
    pub fn build_request_layer(&self, leaving: CancellationToken) -> RequestLayer {
        let features = [
            HealthState::new(self.readiness_checks(), leaving).into_routes(),
            apple::verify_routes(
                self.apple.clone(),
                self.callers.clone(),
                self.verifications.clone(),
            ),
            google::verify_routes(
                self.google.clone(),
                self.callers.clone(),
                self.verifications.clone(),
            ),
            apple::notification_routes(
                self.apple_notifications.clone(),
                self.notification_metrics.clone(),
            ),
            google::notification_routes(
                self.google_notifications.clone(),
                self.notification_metrics.clone(),
            ),
        ];
        let routes = server::routes::build_router(features);
        let envelope = RequestLayer::new(routes, self.clock.clone(), BODY_TIMEOUT);
        let envelope = match self.metrics.listener {
            Some(_) => envelope.with_metrics(self.metrics.requests.clone()),
            None => envelope,
        };
        match self.trace_metrics {
            Some(_) => envelope.with_tracing(),
            None => envelope,
        }
    }

    fn readiness_checks(&self) -> Vec<(&'static str, ReadinessCheck)> {
        let (database, keyring) = (self.database.clone(), self.keyring.clone());
        let prepared = Arc::new(AtomicBool::new(false));
        let db: ReadinessCheck = Arc::new({
            let database = database.clone();
            move || check_database(database.clone(), prepared.clone()).boxed()
        });
        let encryption: ReadinessCheck =
            Arc::new(move || check_encryption_key(database.clone(), keyring.clone()).boxed());
        vec![("db", db), ("encryption", encryption)]
    }
}

/// What `/openapi.json` answers, without a service.
pub fn openapi_document() -> serde_json::Value {
    server::routes::build_openapi([
        HealthState::openapi_document(),
        apple::openapi_document(),
        google::openapi_document(),
    ])
}

/// When the certificates end by which this process lives.
fn apple_certificate_expiries(verifier: &JwsVerifier) -> CertificateExpiries {
    let verifier = verifier.clone();
    Arc::new(move || {
        let root = root_expiries(&verifier).into_iter().max();
        let leaf = signing_chain_expiry(&verifier);
        let ends = [
            (certificate_name::APPLE_ROOT, root),
            (certificate_name::APPLE_LEAF, leaf),
        ];
        let ends = ends.into_iter().filter_map(|(name, end)| {
            Some((
                name,
                CertificateValidity {
                    not_before: None,
                    not_after: end?,
                },
            ))
        });
        ends.collect()
    })
}

/// What the jobs of a process with these settings work with.
pub fn build_job_tools(settings: &AppSettings, database: &Database, clock: &Clock) -> JobContext {
    let sending = SenderSettings::new(
        settings.webhooks.callback_timeout,
        build_address_guard(settings, database),
    );
    JobContext {
        database: database.clone(),
        keyring: Some(settings.keyring.clone()),
        sender: Sender::new(sending, clock).ok(),
        clock: clock.clone(),
        intervals: settings
            .job_intervals
            .with_probe_only_if_delivering(settings.webhooks.is_dispatcher_enabled),
        is_forced: false,
        retention: settings.retention,
        cadences: settings.expiry_thresholds,
    }
}

/// Every job, in alphabetical order, as `attesto jobs list` shows them.
pub fn all_jobs(tools: &JobContext) -> Vec<Job> {
    let mut jobs = Vec::from(checks::jobs::check_jobs(tools));
    jobs.extend([
        probe::probe_job(tools),
        reseal::reseal_job(tools),
        retention::retention_job(tools),
    ]);
    jobs.sort_by_key(|job| job.name);
    jobs
}

/// A row for each verification, if somebody wants them.
fn build_verifications(
    settings: &AppSettings,
    database: &Database,
    clock: &Clock,
) -> VerificationLog {
    if settings.is_validation_audit_enabled {
        VerificationLog::for_database(database, &settings.keyring, clock)
    } else {
        VerificationLog::disabled(clock)
    }
}

/// Which callbacks may be called: never ourselves, and never our database.
fn build_address_guard(settings: &AppSettings, database: &Database) -> EgressPolicy {
    let own = (settings.listen.port != 0).then(|| settings.listen.bind_addr());
    let own = [own, settings.metrics_address].into_iter().flatten();
    EgressPolicy::new(settings.webhooks.is_private_callback_allowed)
        .with_denied_addresses(own.chain(database.server_addresses()))
}

/// Is it there, and are its tables this release's? Once they were, a newer release may add to them while this process
/// still runs: its replacement is on the way, and turning all of the old ones away at once would be an outage.
async fn check_database(database: Database, prepared: Arc<AtomicBool>) -> Result<(), String> {
    database
        .ping(DATABASE_PING_TIMEOUT)
        .await
        .map_err(|problem| problem.to_string())?;
    if prepared.load(Ordering::Relaxed) {
        return Ok(());
    }
    match database.load_schema_state().await {
        Ok(SchemaState::UpToDate | SchemaState::AheadAndCompatible) => {
            prepared.store(true, Ordering::Relaxed);
            Ok(())
        }
        Ok(SchemaState::Behind(count)) => Err(format!("{count} migrations are missing")),
        Ok(SchemaState::Ahead) => Err("its tables are newer than this release".to_owned()),
        Ok(SchemaState::Diverged) => Err("its tables are not this release's".to_owned()),
        Err(problem) => Err(DatabaseConnectError::from_error(&problem).to_string()),
    }
}

async fn check_encryption_key(database: Database, keyring: Arc<Keyring>) -> Result<(), String> {
    canary::ensure_canaries(&database, &keyring)
        .await
        .map_err(|problem| problem.error_class().to_owned())
}

/// A service that serves.
pub struct RunningApp {
    server: RunningServer,
    shutting_down: CancellationToken,
    stop_deliveries: CancellationToken,
    delivery_tasks: TaskTracker,
    stop: CancellationToken,
    tasks: TaskTracker,
    statistics: Arc<DatabaseGauges>,
    metrics_address: Option<SocketAddr>,
}

impl RunningApp {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where metrics are shown.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Looks now for what metrics otherwise look for every few seconds.
    pub async fn refresh_gauges(&self) {
        self.statistics.refresh_gauges().await;
    }

    /// Makes `/ready` fail, so that whoever sends requests here sends them elsewhere. Everything is still answered;
    /// no delivery is begun any more.
    pub fn start_draining(&self) {
        self.shutting_down.cancel();
        self.stop_deliveries.cancel();
    }

    /// Finishes what is in hand, for up to `grace`, then what runs beside it. Whether everything was finished.
    pub async fn stop(self, grace: Duration) -> bool {
        self.start_draining();
        let patience = grace.max(TASK_STOP_TIMEOUT);
        let (finished, delivered) = tokio::join!(
            self.server.stop(grace),
            tokio::time::timeout(patience, self.delivery_tasks.wait())
        );
        // After the last request: usage and the validation log are written once more, and are complete.
        self.stop.cancel();
        let ended = tokio::time::timeout(TASK_STOP_TIMEOUT, self.tasks.wait()).await;
        finished && delivered.is_ok() && ended.is_ok()
    }
}
