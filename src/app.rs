//! Builds each feature with what it needs, and runs the tasks beside the requests.
//!
//! [`App::build`] makes the parts, [`App::serve`] starts them on a listener, [`RunningApp::stop`] ends them in the order in
//! which they need each other. Tests do the same with their own clock.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::audit::VerificationLog;
use crate::base::clock::Clock;
use crate::base::progress::ignore_progress;
use crate::checks;
use crate::checks::expiry::certificate_name;
use crate::checks::gauges::DatabaseGauges;
use crate::config::{AppSettings, WebhookSettings, compute_fingerprints};
use crate::credentials::canary::{self, CanaryError, UnusedKeys};
use crate::crypto::keyring::Keyring;
use crate::db::change_listener::ChangeListener;
use crate::db::{self, Database, DatabaseConnectError, SchemaState};
use crate::deliveries::{
    DeliveryMetrics, DispatchStatus, Dispatcher, DispatcherSettings, Sender, SenderSettings,
    SigningSender, WorkNotifier,
};
use crate::egress::EgressPolicy;
use crate::events::feed::{self, EventFeed};
use crate::events::{EventRecorder, NotificationMetrics};
use crate::http::body_budget::{BodyBudget, RefusalMetrics};
use crate::http::health::{HealthState, ReadinessCheck, ReadinessNotice};
use crate::http::request_layer::RequestLayer;
use crate::http::request_metrics::RequestMetrics;
use crate::http::trusted_proxies::TrustedProxies;
use crate::jobs::{Job, JobContext, JobScheduler, backfill, probe, reseal};
use crate::outbound::{HttpClientError, StoreClients, Upstream};
use crate::replicas::{
    CertificateExpiries, CertificateValidity, NoticeSource, ReplicaHeartbeat, ReplicaNotices,
};
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
use crate::stores::shared::refund_questions::routes as question_routes;
use crate::stores::shared::refund_questions::{
    DefaultAnswers, RefundAnswerMetrics, RefundAnswerWatch,
};
use crate::stores::shared::state_completer::{StateCompleter, StateSources};
use crate::stores::shared::subject_routes;
use crate::stores::shared::subject_source::SubjectSources;
use crate::stores::shared::worker::ListWorker as _;
use crate::telemetry::TraceMetrics;
use crate::telemetry::metrics::{Counter, MetricsRegistry};
use crate::tenants::{Authenticator, IntakeBudgets, RateLimitScope};

/// How long the role's limit of connections is asked for: it only explains.
const CONNECTION_LIMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The part of the shutdown grace that is kept for releasing the claims of deliveries that did not end.
const CLAIM_RELEASE_RESERVE: Duration = Duration::from_secs(2);
/// How long the background tasks may take to end.
const TASK_STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `/ready` waits for the database.
const DATABASE_PING_TIMEOUT: Duration = Duration::from_millis(1200);

/// Why a service cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The client that calls callbacks has no certificates to trust.
    #[error("callbacks cannot be called: {0}")]
    CallbackClient(#[from] rustls::Error),
    /// The client for calls to the stores cannot be built.
    #[error(transparent)]
    StoreClient(#[from] HttpClientError),
    /// The root certificates that Apple's signatures are checked against cannot be read.
    #[error("APPLE_ROOT_CERTIFICATES: {0}")]
    AppleRoots(#[from] RootCertificatesError),
}

/// Every feature, built but not running.
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
    recorder: EventRecorder,
    feed: EventFeed,
    verifications: VerificationLog,
    notification_metrics: NotificationMetrics,
    delivery_metrics: DeliveryMetrics,
    metrics: AppMetrics,
    body_budget: BodyBudget,
    trusted_proxies: TrustedProxies,
    presence: ReplicaHeartbeat,
    /// The expiry of the certificates that it depends on, other than its own.
    certificate_expiries: CertificateExpiries,
    sender: Sender,
    dispatch_status: DispatchStatus,
    wake: WorkNotifier,
    webhooks: WebhookSettings,
    jobs: Option<JobScheduler>,
    shutdown_grace: Duration,
    tls: Option<ReloadableTls>,
    trace_metrics: Option<TraceMetrics>,
    tls_metrics: tls::TlsMetrics,
    acknowledgements_due: Counter,
    refund_answers: RefundAnswerMetrics,
    /// Cancelled when deliveries and jobs may begin.
    prepared: CancellationToken,
}

/// The metrics of this process, and the listener that serves them.
struct AppMetrics {
    registry: MetricsRegistry,
    requests: RequestMetrics,
    statistics: Arc<DatabaseGauges>,
    listener: Option<TcpListener>,
}

impl AppMetrics {
    fn new(registry: &MetricsRegistry, gauges: DatabaseGauges) -> Self {
        Self {
            requests: RequestMetrics::new(registry),
            statistics: Arc::new(gauges),
            registry: registry.clone(),
            listener: None,
        }
    }
}

impl App {
    /// Builds every feature, within a Tokio runtime. The database is not used yet.
    pub fn build(
        settings: &AppSettings,
        database: &Database,
        clock: &Clock,
    ) -> Result<Self, BuildError> {
        let (keyring, stores) = (&settings.keyring, &settings.stores);
        let changes = ChangeListener::new(database);
        let upstream = Upstream::new(
            StoreClients::new(settings.egress_proxy.as_ref())?,
            stores.upstream_timeout,
        );
        let verifier = match &stores.apple_root_certificates {
            Some(path) => JwsVerifier::with_roots_from(path)?,
            None => JwsVerifier::with_apple_roots(),
        };
        let registry = MetricsRegistry::default();
        let body_budget =
            BodyBudget::with_metrics(settings.admission.body_budget_limits(), &registry);
        let refusals = body_budget.refusal_metrics();
        let responders = ResponderPolicy::for_roots(stores.apple_root_certificates.is_some());
        let revocations =
            RevocationChecker::new(&upstream, clock, responders).with_metrics(&registry);
        let certificate_expiries = apple_certificate_expiries(&verifier);
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
        let google = build_google(settings, database, &changes, upstream, clock);
        let wake = WorkNotifier::from_changes(&changes);
        let feed = EventFeed::new(database, clock);
        let record = build_recorder(database, clock, &wake, &feed).with_metrics(&registry);
        let sender = build_sender(settings, database, clock)?;
        let presence = build_heartbeat(settings, database, clock, &certificate_expiries);
        let intake = build_intake(settings, clock, refusals, &presence);
        let backfills = (
            apple::AppleBackfill::new(&apple, record.clone()),
            google::GoogleBackfill::new(&google, record.clone()),
        );
        let apple_notifications =
            apple::AppleNotifications::new(&apple, record.clone(), &changes, refusals, &intake);
        let google_notifications = google::GoogleNotifications::new(
            &google,
            google_keys,
            record.clone(),
            &changes,
            refusals,
            &intake,
        );
        let dispatch_status = build_dispatch_status(settings, &registry);
        let callers = Authenticator::new(database, &changes, clock, settings.rate_limit)
            .with_refusal_metrics(refusals)
            .with_rate_limit_scope(settings.admission.rate_limit_scope, &presence);
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
            recorder: record,
            feed,
            verifications: build_verifications(settings, database, clock).with_metrics(&registry),
            notification_metrics: NotificationMetrics::new(&registry),
            delivery_metrics: DeliveryMetrics::new(&registry),
            tls_metrics: tls::TlsMetrics::new(&registry),
            acknowledgements_due: google::AcknowledgementWatch::register_counter(&registry),
            refund_answers: RefundAnswerMetrics::new(&registry),
            body_budget,
            trusted_proxies: settings.admission.trusted_proxies.clone(),
            metrics: AppMetrics::new(
                &registry,
                DatabaseGauges::new(database, keyring, clock, &certificate_expiries, &registry),
            ),
            presence: presence.with_notices(replica_notices(&dispatch_status, &intake)),
            certificate_expiries,
            sender,
            dispatch_status,
            wake,
            webhooks: settings.webhooks,
            jobs: build_jobs(settings, database, clock, backfills),
            shutdown_grace: settings.shutdown_grace,
            tls: None,
            trace_metrics: None,
            prepared: cancelled_token(),
        })
    }

    /// The same, with deliveries and jobs beginning only when `prepared` is cancelled: a process whose key is wrong, or
    /// whose tables are missing, must not claim any work.
    #[must_use]
    pub fn with_start_signal(mut self, prepared: CancellationToken) -> Self {
        self.prepared = prepared;
        self
    }

    /// The same, with its metrics served at `listener`.
    #[must_use]
    pub fn with_metrics_listener(mut self, listener: TcpListener) -> Self {
        self.metrics.listener = Some(listener);
        self
    }

    /// The same, with requests arriving over TLS.
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

    /// The same, with its requests traced.
    #[must_use]
    pub fn with_trace_metrics(mut self, metrics: TraceMetrics) -> Self {
        self.trace_metrics = Some(metrics);
        self
    }

    /// Starts the background tasks, and serves requests that arrive at `listener`.
    pub fn serve(
        mut self,
        listener: TcpListener,
        limits: ConnectionLimits,
    ) -> io::Result<RunningApp> {
        let trace_metrics = self.trace_metrics.clone().unwrap_or_default();
        trace_metrics.register_in(&self.metrics.registry);
        let shutting_down = CancellationToken::new();
        let stop_deliveries = CancellationToken::new();
        let stop = CancellationToken::new();
        let requests = self.build_request_layer(shutting_down.clone());
        let server = server::start_server(requests, listener, limits, self.tls.clone())?;
        let metrics_listener = self.metrics.listener.as_ref();
        let metrics_address = metrics_listener.map(TcpListener::local_addr).transpose()?;
        let gauges = self.metrics.statistics.clone();
        let heartbeat = self.presence.clone();
        let deliveries = self.delivery_tasks(&stop_deliveries);
        Ok(RunningApp {
            server,
            shutting_down,
            delivery_tasks: RunningTasks::spawn(deliveries),
            stop_deliveries,
            background_tasks: RunningTasks::spawn(self.background_tasks(&stop)),
            stop,
            gauges,
            heartbeat,
            metrics_address,
        })
    }

    /// Deliveries, jobs, and what completes states, watches acknowledgements and answers questions about refunds, which begin nothing new
    /// once `stop` is cancelled. They begin when the process is prepared.
    fn delivery_tasks(&mut self, stop: &CancellationToken) -> Vec<NamedTask> {
        let start = CancellationToken::new();
        let mut tasks = vec![self.start_task(start.clone(), stop.clone())];
        if self.webhooks.is_dispatcher_enabled {
            // Its connections are not opened before: a role may have few, and a migration needs one beside the pools.
            let build = self.dispatcher_builder();
            let stopping = stop.clone();
            let run = async move { build().run(stopping).await };
            tasks.push(("dispatcher", run_after(start.clone(), stop.clone(), run)));
        }
        if let Some(jobs) = self.jobs.take() {
            let run = jobs.run(stop.clone());
            tasks.push(("jobs", run_after(start.clone(), stop.clone(), run)));
            let run = self.build_state_completer().run(stop.clone());
            tasks.push((
                "state_completer",
                run_after(start.clone(), stop.clone(), run),
            ));
            let run = self.build_acknowledgement_watch().run(stop.clone());
            tasks.push((
                "acknowledgement_watch",
                run_after(start.clone(), stop.clone(), run),
            ));
            let run = self.build_refund_answer_watch().run(stop.clone());
            tasks.push(("refund_answer_watch", run_after(start, stop.clone(), run)));
        }
        tasks
    }

    /// Cancels `start` when deliveries and jobs may begin.
    fn start_task(&self, start: CancellationToken, stop: CancellationToken) -> NamedTask {
        let (prepared, database) = (self.prepared.clone(), self.database.clone());
        let is_dispatcher_enabled = self.webhooks.is_dispatcher_enabled;
        let status = self.dispatch_status.clone();
        let (was_prepared, presence) = (prepared.is_cancelled(), self.presence.clone());
        status.set_unprepared(!was_prepared);
        let asking = {
            let (database, status, stop) = (database.clone(), status.clone(), stop.clone());
            async move {
                if is_dispatcher_enabled {
                    warn_of_connection_limit(&database, &status, &stop).await;
                }
            }
        };
        let starting = async move {
            if stop
                .run_until_cancelled(prepared.cancelled())
                .await
                .is_none()
            {
                return;
            }
            if !was_prepared {
                status.set_unprepared(false);
                // Its row says that it delivers nothing. If this fails, the next one follows soon.
                let _ = presence.send_heartbeat().await;
            }
            if is_dispatcher_enabled {
                let open = database.open_delivery_connections();
                stop.run_until_cancelled(open).await;
            }
            start.cancel();
        };
        // At once: a role with too few connections may not even get as far as to begin.
        let task = join(asking, starting).map(drop);
        ("delivery_start", task.boxed())
    }

    /// Everything that runs beside requests and deliveries until `stop` is cancelled.
    fn background_tasks(self, stop: &CancellationToken) -> Vec<NamedTask> {
        let Self {
            changes,
            callers,
            database,
            wake,
            feed,
            verifications,
            metrics,
            tls,
            tls_metrics,
            presence,
            recorder,
            ..
        } = self;
        let mut tasks: Vec<NamedTask> = vec![
            (
                "change_listener",
                run_with(
                    stop,
                    |stop| async move { changes.run_until_stopped(stop).await },
                ),
            ),
            (
                "write_heartbeat",
                run_with(stop, {
                    let database = database.clone();
                    |stop| async move { database.run_write_heartbeat(stop).await }
                }),
            ),
            (
                "api_key_usage",
                run_with(
                    stop,
                    |stop| async move { callers.run_usage_writer(stop).await },
                ),
            ),
            (
                "work_notifier",
                run_with(stop, |stop| async move {
                    wake.run_remote_notifications(&database, stop).await;
                }),
            ),
            (
                "event_feeds",
                run_with(stop, |stop| async move { feed.run_watcher(stop).await }),
            ),
            (
                "verification_log",
                run_with(
                    stop,
                    |stop| async move { verifications.run_writer(stop).await },
                ),
            ),
            ("replica_heartbeat", presence.run(stop.clone()).boxed()),
            (
                "event_writer",
                run_with(stop, |stop| async move {
                    stop.cancelled().await;
                    recorder.finish_writes().await;
                }),
            ),
        ];
        if let Some(listener) = metrics.listener {
            let gauges = metrics.statistics;
            tasks.push((
                "gauges",
                run_with(stop, |stop| async move { gauges.run(stop).await }),
            ));
            let serve = scrape::serve_metrics(listener, metrics.registry, stop.clone());
            tasks.push(("metrics_listener", serve.boxed()));
        }
        if let Some(tls) = tls {
            let watch = tls.watch_files(tls_metrics, stop.clone());
            tasks.push(("tls_files", watch.boxed()));
        }
        tasks
    }

    /// Builds the dispatcher when it is called, which opens its connections.
    fn dispatcher_builder(&self) -> impl FnOnce() -> Dispatcher + Send + use<> {
        let (database, keyring) = (self.database.clone(), self.keyring.clone());
        let (sender, clock, wake) = (self.sender.clone(), self.clock.clone(), self.wake.clone());
        let settings = DispatcherSettings {
            concurrency: self.webhooks.max_concurrent_deliveries,
            poll_interval: self.webhooks.dispatch_interval,
            max_retries: self.webhooks.max_retries,
            shutdown_timeout: self.shutdown_grace.saturating_sub(CLAIM_RELEASE_RESERVE),
        };
        let (metrics, status) = (self.delivery_metrics.clone(), self.dispatch_status.clone());
        let share = self.presence.lane_share();
        move || {
            let database = database.for_deliveries();
            let sender = SigningSender::new(sender, &database, &keyring);
            Dispatcher::new(&database, &clock, sender, wake, settings)
                .with_metrics(metrics)
                .with_status(status)
                .with_lane_share(share)
        }
    }

    /// What tells the states that were not known when their events were stored. It runs where the periodic jobs do.
    pub fn build_state_completer(&self) -> StateCompleter {
        let sources = StateSources {
            apple: Arc::new(apple::AppleStates::new(&self.apple)),
            google: Arc::new(google::GoogleStates::new(&self.google)),
        };
        StateCompleter::new(&self.database, &self.clock, self.recorder.clone(), sources)
    }

    /// What reads Apple's history of notifications.
    pub fn build_apple_backfill(&self) -> apple::AppleBackfill {
        apple::AppleBackfill::new(&self.apple, self.recorder.clone())
    }

    /// What reads Google's lists of refunds.
    pub fn build_google_backfill(&self) -> google::GoogleBackfill {
        google::GoogleBackfill::new(&self.google, self.recorder.clone())
    }

    /// What tells tenants which Google purchases they must acknowledge soon. It runs where the periodic jobs do.
    pub fn build_acknowledgement_watch(&self) -> google::AcknowledgementWatch {
        let told = self.acknowledgements_due.clone();
        google::AcknowledgementWatch::new(&self.google, self.recorder.clone(), told)
    }

    /// What answers the stores' questions about refunds that backends have not answered. It runs where the periodic jobs do.
    pub fn build_refund_answer_watch(&self) -> RefundAnswerWatch {
        let answers = DefaultAnswers {
            apple: Arc::new(apple::AppleRefundAnswers::new(&self.apple)),
            google: Arc::new(google::GoogleRefundAnswers::new(&self.google)),
        };
        RefundAnswerWatch::new(&self.database, answers, self.refund_answers.clone())
    }

    /// Every route, with the layer around each answer. `/ready` fails once `shutting_down` is cancelled.
    pub fn build_request_layer(&self, shutting_down: CancellationToken) -> RequestLayer {
        let features = [
            HealthState::new(self.readiness_checks(), shutting_down.clone())
                .with_notices(vec![("deliveries", self.delivery_notice())])
                .into_routes(),
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
            feed::event_routes(self.feed.clone(), self.callers.clone(), shutting_down),
            subject_routes::subject_routes(
                self.feed.clone(),
                self.subject_sources(),
                self.callers.clone(),
                self.verifications.clone(),
            ),
            question_routes::question_routes(&self.database, self.callers.clone()),
        ];
        let routes = server::routes::build_router(features);
        let layer = RequestLayer::new(routes, self.clock.clone(), BODY_TIMEOUT)
            .with_body_budget(self.body_budget.clone())
            .with_trusted_proxies(self.trusted_proxies.clone());
        let layer = match self.metrics.listener {
            Some(_) => layer.with_metrics(self.metrics.requests.clone()),
            None => layer,
        };
        match self.trace_metrics {
            Some(_) => layer.with_tracing(),
            None => layer,
        }
    }

    fn subject_sources(&self) -> SubjectSources {
        SubjectSources {
            apple: Arc::new(self.apple.clone()),
            google: Arc::new(self.google.clone()),
        }
    }

    fn readiness_checks(&self) -> Vec<(&'static str, ReadinessCheck)> {
        let keyring = self.keyring.clone();
        let prepared = Arc::new(AtomicBool::new(false));
        let database = self.database.clone();
        let db: ReadinessCheck =
            Arc::new(move || check_database(database.clone(), prepared.clone()).boxed());
        let database = self.database.for_readiness();
        let unused = Arc::new(UnusedKeys::new(&self.clock));
        let encryption: ReadinessCheck = Arc::new(move || {
            check_encryption_key(database.clone(), keyring.clone(), unused.clone()).boxed()
        });
        vec![("db", db), ("encryption", encryption)]
    }

    /// Says so when this process takes in notifications and does not deliver: because it should not, or because it cannot.
    fn delivery_notice(&self) -> ReadinessNotice {
        let status = self.dispatch_status.clone();
        Arc::new(move || status.notice())
    }
}

/// The document of `/openapi.json`, without a running service.
pub fn openapi_document() -> serde_json::Value {
    server::routes::build_openapi([
        HealthState::openapi_document(),
        apple::openapi_document(),
        google::openapi_document(),
        feed::openapi_document(),
        subject_routes::openapi_document(),
        question_routes::openapi_document(),
    ])
}

/// When Apple's certificates expire that this process depends on.
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

/// The context in which the jobs of a process with these settings run, without what calls Apple.
pub fn build_job_tools(settings: &AppSettings, database: &Database, clock: &Clock) -> JobContext {
    JobContext {
        database: database.clone(),
        keyring: Some(settings.keyring.clone()),
        sender: build_sender(settings, database, clock).ok(),
        apple_backfill: None,
        google_backfill: None,
        clock: clock.clone(),
        intervals: settings
            .job_intervals
            .with_probe_only_if_delivering(settings.webhooks.is_dispatcher_enabled),
        is_forced: false,
        retention: settings.retention,
        cadences: settings.expiry_thresholds,
        report: Arc::new(ignore_progress),
    }
}

/// Every job, in alphabetical order, as `attesto jobs list` shows them.
pub fn all_jobs(tools: &JobContext) -> Vec<Job> {
    let mut jobs = Vec::from(checks::jobs::check_jobs(tools));
    jobs.extend([
        backfill::backfill_job(tools),
        probe::probe_job(tools),
        reseal::reseal_job(tools),
        retention::retention_job(tools),
    ]);
    jobs.sort_by_key(|job| job.name);
    jobs
}

/// Stored events wake the dispatcher and the requests that wait for them.
fn build_recorder(
    database: &Database,
    clock: &Clock,
    wake: &WorkNotifier,
    feed: &EventFeed,
) -> EventRecorder {
    let (wake, feed) = (wake.clone(), feed.clone());
    EventRecorder::new(database, clock, move |tenant| wake.notify_work(tenant))
        .with_stored_hook(move |tenant| feed.notify_stored(tenant))
}

fn build_google(
    settings: &AppSettings,
    database: &Database,
    changes: &ChangeListener,
    upstream: Upstream,
    clock: &Clock,
) -> GoogleVerifier {
    let stores = &settings.stores;
    GoogleVerifier::new(
        database,
        &settings.keyring,
        changes,
        upstream,
        clock,
        google::GoogleSettings {
            play_url: stores.google_play_url.clone(),
            token_url: stores.google_token_url.clone(),
            credential_ttl: settings.credential_cache_ttl,
        },
    )
}

fn build_jobs(
    settings: &AppSettings,
    database: &Database,
    clock: &Clock,
    (apple_backfill, google_backfill): (apple::AppleBackfill, google::GoogleBackfill),
) -> Option<JobScheduler> {
    settings.job_intervals.is_enabled.then(|| {
        let tools = JobContext {
            apple_backfill: Some(apple_backfill),
            google_backfill: Some(google_backfill),
            ..build_job_tools(settings, database, clock)
        };
        JobScheduler::new(&tools, all_jobs(&tools))
    })
}

/// Says in the log, and in `/ready` while deliveries wait for a connection, that the role may have too few of them.
async fn warn_of_connection_limit(
    database: &Database,
    status: &DispatchStatus,
    stop: &CancellationToken,
) {
    let asking = database.find_connection_limit(CONNECTION_LIMIT_TIMEOUT);
    let Some(Some(limit)) = stop.run_until_cancelled(asking).await else {
        return;
    };
    tracing::warn!(
        cause = limit.describe(),
        causeClass = "too few connections",
        hint = limit.advise(),
        "role_connection_limit_too_low"
    );
    status.set_connection_advice(limit.advise());
}

fn build_dispatch_status(settings: &AppSettings, registry: &MetricsRegistry) -> DispatchStatus {
    let status = DispatchStatus::new(settings.webhooks.is_dispatcher_enabled);
    status.register_in(registry);
    status
}

/// What other processes are told that this one does not do.
fn replica_notices(dispatch_status: &DispatchStatus, intake: &IntakeBudgets) -> NoticeSource {
    let (status, intake) = (dispatch_status.clone(), intake.clone());
    Arc::new(move || ReplicaNotices {
        deliveries: status.notice(),
        throttled_tenants: intake.recent_refusals(),
    })
}

fn build_intake(
    settings: &AppSettings,
    clock: &Clock,
    refusals: &RefusalMetrics,
    presence: &ReplicaHeartbeat,
) -> IntakeBudgets {
    let limit = settings.admission.intake_limit();
    let intake = IntakeBudgets::new(clock, limit, refusals);
    match settings.admission.rate_limit_scope {
        RateLimitScope::Process => intake,
        RateLimitScope::Installation => intake.divided_among(presence.live_replica_count()),
    }
}

fn build_heartbeat(
    settings: &AppSettings,
    database: &Database,
    clock: &Clock,
    certificates: &CertificateExpiries,
) -> ReplicaHeartbeat {
    ReplicaHeartbeat::new(database, &settings.keyring, clock)
        .with_settings(compute_fingerprints(settings))
        .with_certificates(certificates.clone())
        .with_delivering(settings.webhooks.is_dispatcher_enabled)
}

/// Writes a row for each verification if the setting says so.
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

fn build_sender(
    settings: &AppSettings,
    database: &Database,
    clock: &Clock,
) -> Result<Sender, BuildError> {
    let timeout = settings.webhooks.callback_timeout;
    let address_guard = build_address_guard(settings, database);
    let sending =
        SenderSettings::new(timeout, address_guard).with_proxy(settings.egress_proxy.clone());
    Ok(Sender::new(sending, clock)?)
}

/// Which callback addresses may be called: never this service's own, and never the database's.
fn build_address_guard(settings: &AppSettings, database: &Database) -> EgressPolicy {
    let own = (settings.listen.port != 0).then(|| settings.listen.bind_addr());
    let own = [own, settings.metrics_address].into_iter().flatten();
    EgressPolicy::new(settings.webhooks.is_private_callback_allowed)
        .with_denied_addresses(own.chain(database.server_addresses()))
}

/// Whether the database answers and its tables fit this release. Once they did, they are not looked at again: a newer release
/// may migrate them while this process still runs, and if every old replica turned unready at that moment there would be an
/// outage.
async fn check_database(database: Database, prepared: Arc<AtomicBool>) -> Result<(), String> {
    database
        .check_writable(DATABASE_PING_TIMEOUT)
        .await
        .map_err(|problem| problem.to_string())?;
    if prepared.load(Ordering::Relaxed) {
        return Ok(());
    }
    match database.for_readiness().load_schema_state().await {
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

/// Whether the keys open the canaries. A key that did once, since this process started, stays the right one while the database
/// is away: what is wrong then stands in the check of the database, and looking for another key would be a mistake.
async fn check_encryption_key(
    database: Database,
    keyring: Arc<Keyring>,
    unused: Arc<UnusedKeys>,
) -> Result<(), String> {
    let checked = timeout(
        DATABASE_PING_TIMEOUT,
        canary::ensure_canaries_except(&database, &keyring, &unused),
    );
    match checked.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(CanaryError::Database(_))) | Err(_) if keyring.is_proved() => Ok(()),
        Ok(Err(CanaryError::Database(_))) | Err(_) => {
            Err("not checked, because the database does not answer".to_owned())
        }
        Ok(Err(problem)) => Err(problem.error_class().to_owned()),
    }
}

fn cancelled_token() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

/// A task and its name for the log.
type NamedTask = (&'static str, BoxFuture<'static, ()>);

fn run_with<F>(
    stop: &CancellationToken,
    run: impl FnOnce(CancellationToken) -> F,
) -> BoxFuture<'static, ()>
where
    F: Future<Output = ()> + Send + 'static,
{
    run(stop.clone()).boxed()
}

/// Runs `task` once `start` is cancelled, unless `stop` is cancelled before.
fn run_after(
    start: CancellationToken,
    stop: CancellationToken,
    task: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, ()> {
    let task = async move {
        if stop.run_until_cancelled(start.cancelled()).await.is_some() {
            task.await;
        }
    };
    task.boxed()
}

/// Tasks that run, by name.
struct RunningTasks(Vec<(&'static str, JoinHandle<()>)>);

impl RunningTasks {
    fn spawn(tasks: Vec<NamedTask>) -> Self {
        let spawn = |(name, task)| (name, tokio::spawn(task));
        Self(tasks.into_iter().map(spawn).collect())
    }

    /// Waits until all have ended, for up to `timeout`; returns whether they did. Those that did not are logged.
    async fn wait(self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut late = Vec::new();
        for (name, task) in self.0 {
            if timeout_at(deadline, task).await.is_err() {
                late.push(name);
            }
        }
        if !late.is_empty() {
            tracing::warn!(tasks = late.join(","), "tasks_not_stopped");
        }
        late.is_empty()
    }
}

/// A service that is running.
pub struct RunningApp {
    server: RunningServer,
    shutting_down: CancellationToken,
    stop_deliveries: CancellationToken,
    delivery_tasks: RunningTasks,
    stop: CancellationToken,
    background_tasks: RunningTasks,
    gauges: Arc<DatabaseGauges>,
    heartbeat: ReplicaHeartbeat,
    metrics_address: Option<SocketAddr>,
}

impl RunningApp {
    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The address of `/metrics`.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Refreshes the gauges now, which otherwise happens every few seconds.
    pub async fn refresh_gauges(&self) {
        self.gauges.refresh_gauges().await;
    }

    /// Writes the heartbeat now, which otherwise happens every ten seconds. The processes that serve are counted with it.
    pub async fn send_heartbeat(&self) -> Result<(), db::Error> {
        self.heartbeat.send_heartbeat().await
    }

    /// Makes `/ready` fail, so that a load balancer sends requests elsewhere. Requests are still served; no delivery
    /// begins any more.
    pub fn start_draining(&self) {
        self.shutting_down.cancel();
        self.stop_deliveries.cancel();
    }

    /// Finishes requests and deliveries for up to `grace`, then ends the background tasks. Returns whether everything was
    /// finished.
    pub async fn stop(self, grace: Duration) -> bool {
        self.start_draining();
        let (answered, delivered) = tokio::join!(
            self.server.stop(grace),
            self.delivery_tasks.wait(grace.max(TASK_STOP_TIMEOUT))
        );
        // After the last request, so that what is written now, usage of keys and the validation log, is complete.
        self.stop.cancel();
        let ended = self.background_tasks.wait(TASK_STOP_TIMEOUT).await;
        answered && delivered && ended
    }
}
