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

use crate::apple::ocsp::{Reach, Revocations};
use crate::apple::trust::{BadRoots, Verifier, root_expiries, signing_expiry};
use crate::apple::{self, Apple};
use crate::audit::Verifications;
use crate::clock::Clock;
use crate::config::{Settings, Webhooks, fingerprints};
use crate::credentials::canary;
use crate::crypto::keyring::Keyring;
use crate::db::changes::Changes;
use crate::db::{Database, SchemaState, Unreachable};
use crate::deliveries::guard::Guard;
use crate::deliveries::{
    Dispatcher, DispatcherSettings, Sender, SenderSettings, Tally, Wake, hold, post,
};
use crate::events::{Received, Record};
use crate::google::trust::Keys;
use crate::google::{self, Google};
use crate::http::envelope::Envelope;
use crate::http::health::{Check, Health};
use crate::http::traffic::Traffic;
use crate::jobs::{Jobs, Tools};
use crate::metrics::Registry;
use crate::outbound::{self, NoClient, Upstream};
use crate::replicas::{Certificates, Presence, host};
use crate::server::tls::{self, Tls};
use crate::server::{self, Running, scrape};
use crate::server::{BODY_TIMEOUT, Manners};
use crate::statistics::Statistics;
use crate::tenants::Callers;
use crate::traces;
use crate::watch::expiry::certificate;

/// What is left of the grace for giving back deliveries that did not end within it.
const RESERVE: Duration = Duration::from_secs(2);
/// How long what runs beside the requests may take to end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long `/ready` waits for the database.
const DATABASE_PATIENCE: Duration = Duration::from_millis(1200);

/// Why a service cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What calls callbacks has no certificates to trust.
    #[error("callbacks cannot be called: {0}")]
    Trust(#[from] rustls::Error),
    /// The client for calls to the stores.
    #[error(transparent)]
    Client(#[from] NoClient),
    /// The root certificates that Apple's signatures are checked against.
    #[error("APPLE_ROOT_CERTIFICATES: {0}")]
    Roots(#[from] BadRoots),
}

/// Every feature, built and not yet running.
pub struct Service {
    database: Database,
    keyring: Arc<Keyring>,
    clock: Clock,
    changes: Changes,
    callers: Callers,
    apple: Apple,
    google: Google,
    apple_notifications: apple::Notifications,
    google_notifications: google::Notifications,
    verifications: Verifications,
    received: Received,
    tally: Tally,
    metrics: Metrics,
    presence: Presence,
    /// The certificates that it lives by, beside its own.
    living_by: Certificates,
    sender: Sender,
    wake: Wake,
    webhooks: Webhooks,
    jobs: Option<Jobs>,
    grace: Duration,
    tls: Option<Tls>,
    traces: Option<traces::Numbers>,
    certificates: tls::Numbers,
    /// Cancelled once nothing stands in the way of deliveries and jobs.
    prepared: CancellationToken,
}

/// What this process counts, and where that is shown.
struct Metrics {
    registry: Registry,
    traffic: Traffic,
    statistics: Arc<Statistics>,
    listener: Option<TcpListener>,
}

impl Service {
    /// Builds every feature. Call it where a runtime is; nothing is asked of the database yet.
    pub fn build(
        settings: &Settings,
        database: &Database,
        clock: &Clock,
    ) -> Result<Self, BuildError> {
        let keyring = &settings.keyring;
        let stores = &settings.stores;
        let changes = Changes::new(database);
        let upstream = Upstream::new(outbound::client()?, stores.timeout);
        let verifier = match &stores.apple_roots {
            Some(path) => Verifier::with_roots_at(path)?,
            None => Verifier::with_apple_roots(),
        };
        let registry = Registry::default();
        let reach = Reach::of(stores.apple_roots.is_some());
        let revocations = Revocations::new(&upstream, clock, reach).counted(&registry);
        let living_by = certificates(&verifier);
        let apple = Apple::new(
            database,
            keyring,
            &changes,
            upstream.clone(),
            verifier,
            clock,
            apple::Settings {
                production_url: stores.apple_production.clone(),
                sandbox_url: stores.apple_sandbox.clone(),
                credential_ttl: settings.credential_ttl,
                revocations: stores.apple_ocsp.then_some(revocations),
            },
        );
        let google_keys = Keys::new(&upstream, stores.google_jwks.clone(), clock.clone());
        let google = Google::new(
            database,
            keyring,
            &changes,
            upstream,
            clock,
            google::Settings {
                play_url: stores.google_play.clone(),
                token_url: stores.google_token.clone(),
                credential_ttl: settings.credential_ttl,
            },
        );
        let wake = Wake::listening(&changes);
        let told = wake.clone();
        let record = Record::new(database, clock, move || told.work_arrived());
        let sender = Sender::new(
            SenderSettings::new(settings.webhooks.timeout, guard(settings, database)),
            clock,
        )?;
        let apple_notifications = apple::Notifications::new(&apple, record.clone(), &changes);
        let google_notifications =
            google::Notifications::new(&google, google_keys, record, &changes);
        let callers = Callers::new(database, &changes, clock, settings.rate_limit);
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
            verifications: verifications(settings, database, clock).counted(&registry),
            received: Received::new(&registry),
            tally: Tally::new(&registry),
            certificates: tls::Numbers::new(&registry),
            metrics: Metrics {
                traffic: Traffic::new(&registry),
                statistics: Arc::new(Statistics::new(
                    database, keyring, clock, &living_by, &registry,
                )),
                registry,
                listener: None,
            },
            presence: Presence::new(database, keyring, clock)
                .with_settings(fingerprints(settings))
                .with_certificates(living_by.clone()),
            living_by,
            sender,
            wake,
            webhooks: settings.webhooks,
            jobs: settings
                .jobs
                .enabled
                .then(|| Jobs::new(&tools(settings, database, clock))),
            grace: settings.shutdown_grace,
            tls: None,
            traces: None,
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
    pub fn beginning_when(mut self, prepared: CancellationToken) -> Self {
        self.prepared = prepared;
        self
    }

    /// The same, and what it counts is shown at `listener`.
    #[must_use]
    pub fn showing_metrics(mut self, listener: TcpListener) -> Self {
        self.metrics.listener = Some(listener);
        self
    }

    /// The same, and requests arrive over TLS.
    #[must_use]
    pub fn with_certificate(mut self, tls: Tls) -> Self {
        let (others, own) = (self.living_by.clone(), tls.clone());
        self.presence = self.presence.with_certificates(Arc::new(move || {
            let mut ends = others();
            ends.insert(certificate::LISTENER, own.pair().not_after());
            ends
        }));
        self.tls = Some(tls);
        self
    }

    /// The same, and what it does is traced.
    #[must_use]
    pub fn with_traces(mut self, numbers: traces::Numbers) -> Self {
        self.traces = Some(numbers);
        self
    }

    /// Starts what runs beside the requests, and answers what arrives at `listener`.
    pub fn serve(self, listener: TcpListener, manners: Manners) -> io::Result<Serving> {
        let spans = self.traces.clone().unwrap_or_default();
        spans.register(&self.metrics.registry);
        let leaving = CancellationToken::new();
        let envelope = self.envelope(leaving.clone());
        let delivering = CancellationToken::new();
        let dispatcher = self.webhooks.dispatch.then(|| self.dispatcher());
        let running = server::start(envelope, listener, manners, self.tls.clone())?;
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
            certificates,
            presence,
            ..
        } = self;
        let (ear, pen, voice, log) = (stop.clone(), stop.clone(), stop.clone(), stop.clone());
        tasks.spawn(async move { changes.run(ear).await });
        tasks.spawn(async move { callers.run(pen).await });
        let teller = database.clone();
        tasks.spawn(async move { wake.run(&teller, voice).await });
        tasks.spawn(async move { verifications.run(log).await });
        let statistics = metrics.statistics.clone();
        let mut metrics_address = None;
        if let Some(listener) = metrics.listener {
            metrics_address = Some(listener.local_addr()?);
            let (eye, mouth) = (stop.clone(), stop.clone());
            let stocktaker = statistics.clone();
            tasks.spawn(async move { stocktaker.run(eye).await });
            tasks.spawn(scrape::serve(listener, metrics.registry, mouth));
        }
        if let Some(tls) = tls {
            tasks.spawn(tls.watch(certificates, stop.clone()));
        }
        tasks.spawn(presence.run(stop.clone()));
        tasks.close();
        let deliveries = TaskTracker::new();
        let holding = webhooks.hold.then(|| database.clone());
        let stop_delivering = delivering.clone();
        let settled = CancellationToken::new();
        let may_begin = settled.clone();
        deliveries.spawn(async move {
            let ready = prepared.cancelled();
            if stop_delivering.run_until_cancelled(ready).await.is_none() {
                return;
            }
            if let Some(database) = holding {
                hold::insist(&database, &host(), &stop_delivering).await;
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
        Ok(Serving {
            running,
            leaving,
            delivering,
            deliveries,
            stop,
            tasks,
            statistics,
            metrics_address,
        })
    }

    fn dispatcher(&self) -> Dispatcher {
        let database = self.database.for_deliveries();
        let courier = post::courier(self.sender.clone(), &database, &self.keyring, &self.clock);
        let settings = DispatcherSettings {
            concurrency: self.webhooks.concurrency,
            interval: self.webhooks.interval,
            max_retries: self.webhooks.max_retries,
            grace: self.grace.saturating_sub(RESERVE),
        };
        Dispatcher::new(&database, &self.clock, courier, self.wake.clone(), settings)
            .counting(self.tally.clone())
    }

    /// Every route, with what is around each answer. `/ready` fails once `leaving` is cancelled.
    pub fn envelope(&self, leaving: CancellationToken) -> Envelope {
        let features = [
            Health::new(self.checks(), leaving).routes(),
            apple::routes(
                self.apple.clone(),
                self.callers.clone(),
                self.verifications.clone(),
            ),
            google::routes(
                self.google.clone(),
                self.callers.clone(),
                self.verifications.clone(),
            ),
            apple::push_routes(self.apple_notifications.clone(), self.received.clone()),
            google::push_routes(self.google_notifications.clone(), self.received.clone()),
        ];
        let routes = server::routes::routes(features);
        let envelope = Envelope::new(routes, self.clock.clone(), BODY_TIMEOUT);
        let envelope = match self.metrics.listener {
            Some(_) => envelope.counted(self.metrics.traffic.clone()),
            None => envelope,
        };
        match self.traces {
            Some(_) => envelope.traced(),
            None => envelope,
        }
    }

    fn checks(&self) -> Vec<(&'static str, Check)> {
        let (database, keyring) = (self.database.clone(), self.keyring.clone());
        let prepared = Arc::new(AtomicBool::new(false));
        let db: Check = Arc::new({
            let database = database.clone();
            move || look_at_database(database.clone(), prepared.clone()).boxed()
        });
        let encryption: Check =
            Arc::new(move || look_at_encryption(database.clone(), keyring.clone()).boxed());
        vec![("db", db), ("encryption", encryption)]
    }
}

/// What `/openapi.json` answers, without a service.
pub fn description() -> serde_json::Value {
    server::routes::description([Health::described(), apple::described(), google::described()])
}

/// When the certificates end by which this process lives.
fn certificates(verifier: &Verifier) -> Certificates {
    let verifier = verifier.clone();
    Arc::new(move || {
        let root = root_expiries(&verifier).into_iter().max();
        let leaf = signing_expiry(&verifier);
        let ends = [
            (certificate::APPLE_ROOT, root),
            (certificate::APPLE_LEAF, leaf),
        ];
        let ends = ends
            .into_iter()
            .filter_map(|(name, end)| Some((name, end?)));
        ends.collect()
    })
}

/// What the jobs of a process with these settings work with.
pub fn tools(settings: &Settings, database: &Database, clock: &Clock) -> Tools {
    let sending = SenderSettings::new(settings.webhooks.timeout, guard(settings, database));
    Tools {
        database: database.clone(),
        keyring: Some(settings.keyring.clone()),
        sender: Sender::new(sending, clock).ok(),
        clock: clock.clone(),
        intervals: settings
            .jobs
            .of_one_that_delivers(settings.webhooks.dispatch),
        anew: false,
        retention: settings.retention,
        cadences: settings.cadences,
    }
}

/// A row for each verification, if somebody wants them.
fn verifications(settings: &Settings, database: &Database, clock: &Clock) -> Verifications {
    if settings.validation_audit {
        Verifications::noted(database, &settings.keyring, clock)
    } else {
        Verifications::unnoted(clock)
    }
}

/// Which callbacks may be called: never ourselves, and never our database.
fn guard(settings: &Settings, database: &Database) -> Guard {
    let own = (settings.listen.port != 0).then(|| settings.listen.socket());
    let own = [own, settings.metrics].into_iter().flatten();
    Guard::new(settings.webhooks.allow_private).and_never(own.chain(database.addresses()))
}

/// Is it there, and are its tables this release's? Once they were, a newer release may add to them while this process
/// still runs: its replacement is on the way, and turning all of the old ones away at once would be an outage.
async fn look_at_database(database: Database, prepared: Arc<AtomicBool>) -> Result<(), String> {
    database
        .ping(DATABASE_PATIENCE)
        .await
        .map_err(|problem| problem.to_string())?;
    if prepared.load(Ordering::Relaxed) {
        return Ok(());
    }
    match database.schema().await {
        Ok(SchemaState::UpToDate | SchemaState::AheadAndCompatible) => {
            prepared.store(true, Ordering::Relaxed);
            Ok(())
        }
        Ok(SchemaState::Behind(count)) => Err(format!("{count} migrations are missing")),
        Ok(SchemaState::Ahead) => Err("its tables are newer than this release".to_owned()),
        Ok(SchemaState::Different) => Err("its tables are not this release's".to_owned()),
        Err(problem) => Err(Unreachable::of(&problem).to_string()),
    }
}

async fn look_at_encryption(database: Database, keyring: Arc<Keyring>) -> Result<(), String> {
    canary::check(&database, &keyring)
        .await
        .map_err(|problem| problem.class().to_owned())
}

/// A service that serves.
pub struct Serving {
    running: Running,
    leaving: CancellationToken,
    delivering: CancellationToken,
    deliveries: TaskTracker,
    stop: CancellationToken,
    tasks: TaskTracker,
    statistics: Arc<Statistics>,
    metrics_address: Option<SocketAddr>,
}

impl Serving {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.running.address()
    }

    /// Where metrics are shown.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Looks now for what metrics otherwise look for every few seconds.
    pub async fn take_stock(&self) {
        self.statistics.look().await;
    }

    /// Makes `/ready` fail, so that whoever sends requests here sends them elsewhere. Everything is still answered;
    /// no delivery is begun any more.
    pub fn leave(&self) {
        self.leaving.cancel();
        self.delivering.cancel();
    }

    /// Finishes what is in hand, for up to `grace`, then what runs beside it. Whether everything was finished.
    pub async fn stop(self, grace: Duration) -> bool {
        self.leave();
        let patience = grace.max(LAST_WORDS);
        let (finished, delivered) = tokio::join!(
            self.running.stop(grace),
            tokio::time::timeout(patience, self.deliveries.wait())
        );
        // After the last request: usage and the validation log are written once more, and are complete.
        self.stop.cancel();
        let ended = tokio::time::timeout(LAST_WORDS, self.tasks.wait()).await;
        finished && delivered.is_ok() && ended.is_ok()
    }
}
