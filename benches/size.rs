//! Measures whether ten million events are slower than ten thousand. `cargo bench --bench size`
//!
//! Two databases on one private, durable Postgres that differ only in their history are measured in
//! turns: rows are written by the production write path, claimed and finished by the real
//! dispatcher (its sender answers 200 at once), deleted by the real retention job, and listed as
//! the commands list them. It needs about 12 GB of disk for a quarter of an hour; `-- --rows
//! 1000000` makes the large database smaller.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "rates of small counts"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use attesto::base::clock::Clock;
use attesto::base::id::TenantId;
use attesto::base::progress::ignore_progress;
use attesto::config;
use attesto::db::Database;
use attesto::deliveries::redelivery::EventStatus;
use attesto::deliveries::{
    AttemptOutcome, DeliveryJob, Dispatcher, DispatcherSettings, WorkNotifier, history,
};
use attesto::embedded_postgres::{EmbeddedOptions, EmbeddedPostgres};
use attesto::events::{EventRecorder, EventSource, EventType, NewEvent};
use attesto::retention::{RetentionKind, prune_expired};
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const SMALL: i64 = 10_000;
const LARGE: i64 = 10_000_000;
/// Tenants that share the history.
const TENANTS: i64 = 100;
/// Rounds; the median is printed.
const ROUNDS: usize = 5;
/// Events of one round.
const EVENTS: usize = 1_000;
/// The history's length, in days.
const DAYS: f64 = 89.0;
/// Rows inserted by one statement, and concurrent statements.
const AT_ONCE: i64 = 25_000;
const WORKERS: i64 = 4;

/// Drops and recreates all indexes except primary keys: creating them after the inserts is faster.
const INDEXES: &str = "
    select case when rule.oid is null then format('drop index %I', index.relname)
                else format('alter table %s drop constraint %I', rule.conrelid::regclass, rule.conname) end,
           case when rule.oid is null then pg_get_indexdef(index.oid)
                else format('alter table %s add constraint %I %s', rule.conrelid::regclass, rule.conname,
                    pg_get_constraintdef(rule.oid)) end
    from pg_index
    join pg_class index on index.oid = indexrelid
    left join pg_constraint rule on rule.conindid = indexrelid and rule.contype in ('p', 'u')
    where indrelid in ('webhook_events'::regclass, 'webhook_deliveries'::regclass) and not indisprimary";

/// Part of the history: rows $1 to $2, of the tenants $3, over $4 days, of $5 rows in all.
const HISTORY: [&str; 2] = [
    "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event, environment,
         subject_key, subject_type, decoded_payload, stored_body, received_at)
     select tenant_lane(($3::text[])[1 + n % cardinality($3::text[])]), 'evt_' || lpad(n::text, 26, '0'), ($3::text[])[1 + n % cardinality($3::text[])], 'google',
         (n * 7919)::text, 'subscription.renewed', 'google.subscription.2', 'production',
         'token-' || n % 100000, 'subscription', '{}', '\\x00' || convert_to(repeat('x', 60), 'UTF8'),
         now() - make_interval(secs => $4 * 86400 * (1 - n / $5::float8))
     from generate_series($1::bigint, $2) n",
    "insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url, status, attempt_count,
         next_attempt_at, last_response_code, last_outcome, delivered_at, failed_at, created_at)
     select tenant_lane(($3::text[])[1 + n % cardinality($3::text[])]), 'del_' || lpad(n::text, 26, '0'), 'evt_' || lpad(n::text, 26, '0'),
         ($3::text[])[1 + n % cardinality($3::text[])],
         'https://receiver.example',
         case when n % 1000 = 0 then 'failed' else 'delivered' end, 1, null, 200, 'delivered',
         case when n % 1000 <> 0 then at end, case when n % 1000 = 0 then at end, at
     from generate_series($1::bigint, $2) n
     cross join lateral (select now() - make_interval(secs => $4 * 86400 * (1 - n / $5::float8)) as at) moment",
];

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut arguments = std::env::args();
    // `cargo test --all-targets` passes no `--bench`: a small share is enough to see that it still runs.
    let is_bench = arguments.any(|argument| argument == "--bench");
    let asked = std::env::args()
        .skip_while(|argument| argument != "--rows")
        .nth(1);
    let large = match asked {
        Some(rows) => rows.parse().expect("--rows takes a number"),
        None if is_bench => LARGE,
        None => SMALL,
    };
    runtime.block_on(measure(large, if is_bench { EVENTS } else { 100 }));
}

/// One of the two databases.
struct Side {
    database: Database,
    tenants: Vec<TenantId>,
    rows: i64,
    pruned: i64,
}

impl Side {
    async fn new(postgres: &EmbeddedPostgres, name: &str, rows: i64) -> Self {
        let server = Database::open(&postgres.connect_settings());
        let statement = format!("create database {name}");
        server
            .pool()
            .execute(AssertSqlSafe(statement))
            .await
            .expect("a database");
        let database = server.sibling_database(name);
        server.close_connections().await;
        database.migrate(false).await.expect("the tables are made");
        let clock = Clock::system();
        let mut tenants: Vec<_> = (0..TENANTS).map(|_| TenantId::mint(clock.now())).collect();
        tenants.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        let ids: Vec<String> = tenants.iter().map(ToString::to_string).collect();
        for statement in [
            "insert into tenants (id, name) select id, 'T' from unnest($1) id",
            "insert into webhook_configs (tenant_id, callback_url, secret_enc)
             select id, 'https://receiver.example', '' from unnest($1) id",
            "insert into webhook_health (lane, tenant_id, callback_url, allowed, last_success_at)
             select tenant_lane(id), id, 'https://receiver.example', 8, now() from unnest($1) id",
        ] {
            let inserting = sqlx::query(statement).bind(&ids).execute(database.pool());
            inserting.await.expect("our own statement");
        }
        let side = Self {
            database,
            tenants,
            rows,
            pruned: 0,
        };
        side.fill(&ids).await;
        side
    }

    /// A history of [`DAYS`], oldest first: all delivered, except one in a thousand that failed.
    async fn fill(&self, tenants: &[String]) {
        let begun = Instant::now();
        let indexes: Vec<(String, String)> = sqlx::query_as(INDEXES)
            .fetch_all(self.database.pool())
            .await
            .expect("the catalogue");
        for (drop, _) in &indexes {
            self.execute(drop).await;
        }
        let (rows, tenants) = (self.rows, tenants.to_vec());
        let mut filling = JoinSet::new();
        for worker in 0..WORKERS {
            let (database, tenants) = (self.database.clone(), tenants.clone());
            filling.spawn(async move {
                let mut connection = database
                    .connect_directly("attesto-bench")
                    .await
                    .expect("it answers");
                // Without foreign key checks and triggers: the rows are valid by construction.
                let quickly =
                    "set synchronous_commit = off; set session_replication_role = replica";
                connection.execute(quickly).await.expect("settings");
                for first in (worker * AT_ONCE..rows).step_by((WORKERS * AT_ONCE) as usize) {
                    for statement in HISTORY {
                        sqlx::query(statement)
                            .bind(first)
                            .bind((first + AT_ONCE).min(rows) - 1)
                            .bind(&tenants)
                            .bind(DAYS)
                            .bind(rows as f64)
                            .execute(&mut connection)
                            .await
                            .expect("our own statement");
                    }
                }
            });
        }
        filling.join_all().await;
        for (_, create) in &indexes {
            self.execute(create).await;
        }
        let mut connection = self
            .database
            .connect_directly("attesto-bench")
            .await
            .expect("it answers");
        connection
            .execute("vacuum (analyze) webhook_events, webhook_deliveries")
            .await
            .expect("vacuum");
        connection
            .execute("checkpoint")
            .await
            .expect("a checkpoint");
        let size: i64 = sqlx::query_scalar("select pg_database_size(current_database())")
            .fetch_one(&mut connection)
            .await
            .expect("a size");
        eprintln!(
            "{} rows: filled in {:.0} s, {:.1} GB",
            self.rows,
            begun.elapsed().as_secs_f64(),
            size as f64 / 1e9
        );
    }

    async fn execute(&self, statement: &str) {
        let connecting = self.database.connect_directly("attesto-bench");
        let mut connection = connecting.await.expect("it answers");
        let quickly = "set maintenance_work_mem = '512MB'";
        connection.execute(quickly).await.expect("a setting");
        let statement = AssertSqlSafe(statement.to_owned());
        connection
            .execute(statement)
            .await
            .expect("our own statement");
    }

    /// Events stored a second, sixteen at a time.
    async fn insert(&self, count: usize) -> f64 {
        let record = EventRecorder::new(&self.database, &Clock::system(), |_| {});
        let begun = Instant::now();
        let mut writing = JoinSet::new();
        for number in 0..count {
            let event = event(&self.tenants[number % self.tenants.len()]);
            let record = record.clone();
            if writing.len() >= 16 {
                writing.join_next().await;
            }
            writing
                .spawn(async move { record.record_event(&event).await.map(drop).expect("stored") });
        }
        while writing.join_next().await.is_some() {}
        count as f64 / begun.elapsed().as_secs_f64()
    }

    /// Deliveries claimed and finished a second.
    async fn deliver(&self, count: usize) -> f64 {
        let sender = |_: Arc<DeliveryJob>| async {
            AttemptOutcome::Delivered {
                code: 200,
                excerpt: None,
            }
        };
        let settings = DispatcherSettings {
            concurrency: 64,
            poll_interval: Duration::from_secs(10),
            max_retries: 5,
            shutdown_timeout: Duration::ZERO,
        };
        let mut dispatcher = Dispatcher::new(
            &self.database,
            &Clock::system(),
            sender,
            WorkNotifier::default(),
            settings,
        );
        let begun = Instant::now();
        let done = dispatcher.run_until_idle().await.expect("it delivers");
        assert_eq!(done, count, "all of them");
        count as f64 / begun.elapsed().as_secs_f64()
    }

    /// Rows deleted per second, without the pauses between batches: as many of the oldest as were
    /// added.
    async fn prune(&mut self, count: usize) -> f64 {
        self.pruned += count as i64;
        let share = 1.0 - self.pruned as f64 / self.rows as f64;
        let kept = Duration::from_secs_f64(DAYS * 86_400.0 * share);
        let never = CancellationToken::new();
        let begun = Instant::now();
        let gone = prune_expired(
            &self.database,
            RetentionKind::Events,
            kept,
            &never,
            &ignore_progress,
        )
        .await;
        let gone = gone.expect("it prunes");
        let pauses = Duration::from_millis(20) * u32::try_from(gone / 500).unwrap_or(0);
        gone as f64 / begun.elapsed().saturating_sub(pauses).as_secs_f64()
    }

    /// Duration of each listing command, in milliseconds.
    async fn lists(&self) -> [f64; 4] {
        let tenant = &self.tenants[self.tenants.len() / 2];
        let mut times = [0.0; 4];
        for (which, time) in times.iter_mut().enumerate() {
            let begun = Instant::now();
            let found = match which {
                0 => history::store::list_events(&self.database, tenant, None, None, 50)
                    .await
                    .expect("events")
                    .len(),
                1 => history::store::list_events(
                    &self.database,
                    tenant,
                    Some(EventStatus::Failed),
                    None,
                    50,
                )
                .await
                .expect("events")
                .len(),
                2 => history::store::list_deliveries(&self.database, tenant, None, None, None, 50)
                    .await
                    .expect("rows")
                    .len(),
                _ => history::store::list_deliveries(
                    &self.database,
                    tenant,
                    Some(EventStatus::Failed),
                    None,
                    None,
                    50,
                )
                .await
                .expect("rows")
                .len(),
            };
            assert!(found <= 50, "no more than asked for");
            *time = begun.elapsed().as_secs_f64() * 1000.0;
        }
        times
    }

    /// Sequential scans of large tables since statistics began.
    async fn whole_reads(&self) -> i64 {
        sqlx::query_scalar(
            "select sum(seq_scan)::bigint from pg_stat_user_tables \
              where relname in ('webhook_events', 'webhook_deliveries')",
        )
        .fetch_one(self.database.pool())
        .await
        .expect("statistics")
    }
}

async fn measure(large: i64, count: usize) {
    let folder = std::env::temp_dir().join(format!("attesto-size-{}", std::process::id()));
    let options = EmbeddedOptions {
        data_dir: Some(folder.clone()),
        ..EmbeddedOptions::from_env(config::read_env_var)
    };
    let postgres = EmbeddedPostgres::start(options)
        .await
        .expect("Postgres starts");
    let mut sides = [
        Side::new(&postgres, "small", SMALL).await,
        Side::new(&postgres, "large", large).await,
    ];
    let mut before = [0; 2];
    for (side, before) in sides.iter().zip(&mut before) {
        *before = side.whole_reads().await;
    }
    // By database: stored, delivered, pruned per second; the lists.
    let mut found: [[Vec<f64>; 7]; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (side, found) in sides.iter_mut().zip(&mut found) {
            found[0].push(side.insert(count).await);
            found[1].push(side.deliver(count).await);
            found[2].push(side.prune(count.min(1_000)).await);
            for (list, time) in found[3..].iter_mut().zip(side.lists().await) {
                list.push(time);
            }
        }
    }
    // Statistics are reported at the end of a transaction, at most once a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!(
        "{:<34}{:>14}{:>14}{:>8}",
        "", sides[0].rows, sides[1].rows, "ratio"
    );
    let words = [
        "stored a second",
        "claimed and finished a second",
        "pruned a second",
        "list-events, ms",
        "list-events --status failed, ms",
        "list-deliveries, ms",
        "list-deliveries --status failed, ms",
    ];
    let [small, large] = &mut found;
    for ((word, small), large) in words.iter().zip(small).zip(large) {
        let (small, large) = (median(small), median(large));
        println!("{word:<34}{small:>14.1}{large:>14.1}{:>8.2}", large / small);
    }
    let mut reads = [0; 2];
    for (side, (reads, before)) in sides.iter().zip(reads.iter_mut().zip(before)) {
        *reads = side.whole_reads().await - before;
    }
    println!(
        "{:<34}{:>14}{:>14}",
        "read from end to end", reads[0], reads[1]
    );
    for side in sides {
        side.database.close_connections().await;
    }
    postgres.stop().await;
    let _ = std::fs::remove_dir_all(folder);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// An event about the size of a renewal.
fn event(tenant: &TenantId) -> NewEvent {
    let raw = |length: usize| {
        let text = format!("{{\"signedPayload\":\"{}\"}}", "x".repeat(length));
        RawValue::from_string(text).expect("JSON")
    };
    NewEvent {
        tenant: tenant.clone(),
        source: EventSource::Google,
        external_id: format!("bench-{}", fastrand::u64(..)),
        event_type: EventType::SubscriptionRenewed,
        reason: None,
        platform_event: "google.subscription.2".into(),
        occurred_at: None,
        environment: None,
        subject: None,
        app_user_id: None,
        app_user_id_source: None,
        state: None,
        state_error: None,
        data: raw(800),
        facts: None,
        raw: raw(400),
        shared_content: None,
        answer_by: None,
        is_recovered: false,
    }
}
