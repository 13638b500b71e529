//! The process of Attesto that is killed: requests, deliveries and jobs, in a runtime of its own.
//!
//! It is the real service but for two things: its clock is moved by the run, and so its loops are ticked by the run. To be killed
//! means that its runtime ends: every task stops where it waits.

use std::time::Duration;

use attesto::app::{App, all_jobs, build_job_tools};
use attesto::base::clock::Clock;
use attesto::config::AppSettings;
use attesto::db::{ConnectSettings, Database};
use attesto::deliveries::WorkNotifier;
use attesto::deliveries::{Dispatcher, DispatcherSettings, Sender, SenderSettings, SigningSender};
use attesto::egress::EgressPolicy;
use attesto::jobs::{Job, run_job_now};
use attesto::server::ConnectionLimits;
use attesto::stores::google::AcknowledgementWatch;
use attesto::stores::shared::refund_questions::RefundAnswerWatch;
use attesto::stores::shared::state_completer::StateCompleter;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::world::attesto::World;
use crate::world::wait::pause;

/// Between two looks for what is due.
const DELIVERY_PAUSE: Duration = Duration::from_millis(5);
/// How often a loop is repeated at most, while there is more to do.
const MAX_ROUNDS: usize = 50;

/// A process that serves.
pub(crate) struct Process {
    /// Taken at its end only.
    runtime: Option<Runtime>,
    address: String,
    /// `None` while they work.
    workers: Option<Workers>,
}

impl Process {
    pub(crate) async fn start(world: &World) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let settings = world.settings.clone();
        let (connect, clock) = (world.fresh.settings.clone(), world.clock.clone());
        let started =
            runtime.spawn(async move { Box::pin(serve(&settings, &connect, &clock)).await });
        let (address, workers) = started.await.expect("it starts");
        Self {
            runtime: Some(runtime),
            address: format!("http://{address}"),
            workers: Some(workers),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Begins a round of everything that runs beside requests.
    pub(crate) fn begin_round(&mut self) -> Round {
        let mut workers = self.workers.take().expect("the last round has ended");
        let runtime = self.runtime.as_ref().expect("it runs").handle().clone();
        let (finished, killed) = (CancellationToken::new(), CancellationToken::new());
        let (is_finished, is_killed) = (finished.clone(), killed.clone());
        let task = tokio::task::spawn_blocking(move || {
            runtime.block_on(async move {
                let round = workers.run_round(&is_finished);
                is_killed.run_until_cancelled(round).await;
                workers
            })
        });
        Round {
            task,
            finished,
            killed,
        }
    }

    /// Lets a round do what is due now, and waits for its end.
    pub(crate) async fn end_round(&mut self, round: Round) {
        round.finished.cancel();
        let workers = round.task.await.expect("it does not panic");
        self.workers = Some(workers);
    }

    /// Ends it where it is, and the round that runs.
    pub(crate) async fn kill(mut self, round: Option<Round>) {
        if let Some(round) = round {
            round.killed.cancel();
            self.end_round(round).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A round that runs.
pub(crate) struct Round {
    task: JoinHandle<Workers>,
    finished: CancellationToken,
    killed: CancellationToken,
}

async fn serve(
    settings: &AppSettings,
    connect: &ConnectSettings,
    clock: &Clock,
) -> (std::net::SocketAddr, Workers) {
    let database = Database::open(connect);
    let app = App::build(settings, &database, clock).expect("the service is built");
    let mut tools = build_job_tools(settings, &database, clock);
    tools.apple_backfill = Some(app.build_apple_backfill());
    tools.google_backfill = Some(app.build_google_backfill());
    let mut jobs = all_jobs(&tools);
    jobs.retain(|job| job.name == "backfill");
    let workers = Workers {
        dispatcher: build_dispatcher(settings, &database, clock),
        completer: app.build_state_completer(),
        acknowledgements: app.build_acknowledgement_watch(),
        refund_answers: app.build_refund_answer_watch(),
        backfill: jobs.pop().expect("there is one"),
        database,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let running = app
        .serve(listener, ConnectionLimits::default())
        .expect("the service serves");
    (running.address(), workers)
}

fn build_dispatcher(settings: &AppSettings, database: &Database, clock: &Clock) -> Dispatcher {
    let sending = SenderSettings::new(settings.webhooks.callback_timeout, EgressPolicy::new(true));
    let sender = Sender::new(sending, clock).expect("a client");
    let sender = SigningSender::new(sender, database, &settings.keyring);
    let dispatching = DispatcherSettings {
        concurrency: settings.webhooks.max_concurrent_deliveries,
        poll_interval: settings.webhooks.dispatch_interval,
        max_retries: settings.webhooks.max_retries,
        shutdown_timeout: Duration::ZERO,
    };
    Dispatcher::new(
        database,
        clock,
        sender,
        WorkNotifier::default(),
        dispatching,
    )
}

/// What runs beside requests.
struct Workers {
    database: Database,
    dispatcher: Dispatcher,
    completer: StateCompleter,
    acknowledgements: AcknowledgementWatch,
    refund_answers: RefundAnswerWatch,
    backfill: Job,
}

impl Workers {
    /// Everything that is due, all at the same time, as in a process; deliveries go on until the round is finished. What fails is tried
    /// again by a later round.
    async fn run_round(&mut self, finished: &CancellationToken) {
        let Self {
            database,
            dispatcher,
            completer,
            acknowledgements,
            refund_answers,
            backfill,
        } = self;
        let stop = CancellationToken::new();
        let _ = tokio::join!(
            deliver(dispatcher, finished),
            repeat(async || completer.tick().await.is_ok_and(|round| round.claimed > 0)),
            repeat(async || acknowledgements
                .tick()
                .await
                .is_ok_and(|round| round.claimed > 0)),
            repeat(async || refund_answers
                .tick()
                .await
                .is_ok_and(|round| round.claimed > 0)),
            run_job_now(database, backfill, &stop),
        );
    }
}

/// Delivers what is due, and what becomes due until it is finished.
async fn deliver(dispatcher: &mut Dispatcher, finished: &CancellationToken) {
    loop {
        let is_last = finished.is_cancelled();
        // The database may be away.
        let _ = dispatcher.run_until_idle().await;
        if is_last {
            return;
        }
        let pausing = pause(DELIVERY_PAUSE);
        let _ = finished.run_until_cancelled(pausing).await;
    }
}

/// Repeats a round while it finds something to do.
async fn repeat(mut round: impl AsyncFnMut() -> bool) {
    for _ in 0..MAX_ROUNDS {
        if !round().await {
            return;
        }
    }
}
