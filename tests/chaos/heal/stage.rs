//! The installation and its stores: moves time step by step, lets customers act, begins and ends the outages, and collects
//! what was recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::db::{ConnectSettings, Database};
use attesto::simulator::Fault;
use attesto::simulator::state::google::PlayRules;
use attesto::stores::google::store::{AcknowledgePolicy, set_acknowledge_policy};
use fastrand::Rng;

use super::backend::Backend;
use super::customer::Customer;
use super::judge::{Evidence, Purchase, ReceivedEvent};
use super::ledger::{App, Store, StoreLedger};
use super::owed::OwedAcknowledgements;
use super::plan::{Extent, Outage, PlannedOutage};
use super::process::Process;
use super::timeline::Timeline;
use crate::chaos::judge::interrupted_events;
use crate::chaos::postgres::{Options, Postgres};
use crate::chaos::receivers::Receivers;
use crate::histories::actor::Records;
use crate::world::attesto::{Tenant, World, start};
use crate::world::postgres::{
    Fresh, move_database_time, take_over_database_time, take_over_default_times,
};
use crate::world::wait::pause;

/// Tenants, each with an app.
const TENANTS: usize = 4;
/// A step of time, in minutes. Never so long that it looks like a downtime.
const STEP_MINUTES: std::ops::RangeInclusive<u64> = 6..=14;
/// Something goes down so many milliseconds after the work of a step has begun, at most.
const MAX_OUTAGE_DELAY: u64 = 120;
/// What customers do at once, so that much is under way when something goes down.
const BURST: usize = 12;
const SETTINGS: [(&str, &str); 2] = [
    ("WEBHOOK_DISPATCHER_DISABLED", "true"),
    ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
];

/// Everything that takes part.
pub(crate) struct Stage {
    postgres: Postgres,
    world: World,
    tenants: Vec<Tenant>,
    apps: Vec<App>,
    receivers: Receivers,
    process: Option<Process>,
    customers: Vec<Customer>,
    ledger: StoreLedger,
    backend: Backend,
    owed: OwedAcknowledgements,
    timeline: Timeline,
    away: BTreeSet<Outage>,
    rng: Rng,
    complaints: Vec<String>,
    begun_at: Timestamp,
}

impl Stage {
    pub(crate) async fn set(seed: u64, extent: Extent) -> Self {
        let options = Options {
            // Processes are killed here, and no machine is.
            settings: vec!["fsync=off".to_owned()],
            ..Options::default()
        };
        let postgres = tokio::task::block_in_place(|| Postgres::start_with(options));
        let url = format!("{}&max=12", postgres.url());
        let connect = ConnectSettings::from_url(&url).expect("our own URL");
        let database = Database::open(&connect);
        database.migrate(false).await.expect("it is empty");
        take_over_database_time(&database).await;
        take_over_default_times(&database).await;
        let clock = Clock::fixed(start());
        move_database_time(&database, clock.now(), || {}).await;
        let fresh = Fresh {
            url,
            direct: None,
            settings: connect,
            database,
        };
        let world = World::upon(fresh, clock, &SETTINGS).await;
        let rules = PlayRules {
            refund_unacknowledged: true,
            ..PlayRules::default()
        };
        let set = world.simulator.google().set_rules(rules);
        set.expect("the simulated Play has these rules");

        let receivers = Receivers::keeping_bodies();
        let callbacks = receivers.start().await;
        let (mut tenants, mut apps) = (Vec::new(), Vec::new());
        for number in 0..TENANTS {
            let name = format!("com.example.heal{number}");
            let tenant = world.stranger().await;
            world.set_up_app(&tenant, &name).await;
            let callback = (number, callbacks);
            receivers
                .register(world.database(), world.keyring(), &tenant.id, callback)
                .await;
            set_default_answers(&world, &tenant).await;
            if acknowledges_at_once(number) {
                let policy = AcknowledgePolicy::Verify;
                set_acknowledge_policy(world.database(), &tenant.id, policy)
                    .await
                    .expect("the database is there");
            }
            let id = tenant.id.to_string();
            apps.push(App { name, tenant: id });
            tenants.push(tenant);
        }
        let mut rng = Rng::with_seed(seed);
        let customers = (0..extent.customers).map(|_| {
            let app = rng.usize(..TENANTS);
            let known = (app, apps[app].name.as_str());
            Customer::new(
                known,
                &world.simulator,
                &world.clock,
                extent.length,
                &mut rng,
            )
        });
        let customers = customers.collect();
        let keys = tenants.iter().map(|tenant| tenant.key.expose().to_owned());
        Self {
            backend: Backend::new(keys.collect()),
            begun_at: world.clock.now(),
            process: Some(Process::start(&world).await),
            postgres,
            world,
            tenants,
            apps,
            receivers,
            customers,
            ledger: StoreLedger::default(),
            owed: OwedAcknowledgements::default(),
            timeline: Timeline::default(),
            away: BTreeSet::new(),
            rng,
            complaints: Vec::new(),
        }
    }

    /// Everything that is planned, then time without outages.
    pub(crate) async fn play(&mut self, planned: &[PlannedOutage], extent: Extent) {
        while self.elapsed() < extent.length {
            self.step(planned, true).await;
        }
        while self.elapsed() < extent.length + extent.healing {
            self.step(planned, false).await;
        }
    }

    fn elapsed(&self) -> Duration {
        self.world.clock.now().duration_since(self.begun_at)
    }

    async fn step(&mut self, planned: &[PlannedOutage], is_open: bool) {
        let minutes = Duration::from_mins(self.rng.u64(STEP_MINUTES));
        self.world.clock.advance(minutes);
        let elapsed = self.elapsed();
        let wanted: BTreeSet<Outage> = planned
            .iter()
            .filter(|one| one.begin <= elapsed && elapsed < one.end)
            .map(|one| one.outage)
            .collect();
        let ending: Vec<Outage> = self.away.difference(&wanted).copied().collect();
        for outage in ending {
            self.away.remove(&outage);
            self.end(outage).await;
        }
        if !self.away.contains(&Outage::Database) {
            move_database_time(self.world.database(), self.world.clock.now(), || {}).await;
        }
        let beginning: Vec<Outage> = wanted.difference(&self.away).copied().collect();
        // What is lost on the way is lost from now on; what goes down goes down while the step's work is under way.
        let (down, lost): (Vec<Outage>, Vec<Outage>) =
            beginning.into_iter().partition(|outage| outage.goes_down());
        self.away.extend(lost);
        if is_open {
            self.let_customers_act(if down.is_empty() { 0 } else { BURST });
        }
        self.ledger.collect(&self.world.simulator, &self.away);
        self.work(&down).await;
        self.away.extend(down.iter().copied());
        self.ledger.collect(&self.world.simulator, &self.away);
        self.note_purchases();
        self.timeline
            .note(self.world.clock.now(), &self.away, !down.is_empty());
    }

    /// Those whose time has come, and some more.
    fn let_customers_act(&mut self, more: usize) {
        let now = self.world.clock.now();
        for customer in &mut self.customers {
            customer.act(now, &mut self.rng);
        }
        for _ in 0..more {
            let number = self.rng.usize(..self.customers.len());
            self.customers[number].act_early(now, &mut self.rng);
        }
    }

    /// The attempts of the stores, the requests of backends and a round of the process, all at the same time; meanwhile what is to go
    /// down goes down.
    async fn work(&mut self, down: &[Outage]) {
        let Self {
            world,
            ledger,
            backend,
            process,
            postgres,
            away,
            apps,
            rng,
            receivers,
            ..
        } = self;
        backend.take_events(receivers, apps);
        let mut round = process.as_mut().map(Process::begin_round);
        let address = process.as_ref().map(|it| it.address().to_owned());
        let (now, is_interrupted) = (world.clock.now(), !down.is_empty());
        let pushing = ledger.push_due(
            &world.simulator,
            apps,
            address.as_deref(),
            away,
            is_interrupted,
            now,
        );
        let asking = backend.ask(world, address.as_deref());
        let breaking = async {
            if !is_interrupted {
                return;
            }
            // Mostly soon: much of the work takes some milliseconds.
            let longest = rng.u64(1..MAX_OUTAGE_DELAY);
            pause(Duration::from_millis(rng.u64(..longest))).await;
            for outage in down {
                match outage {
                    Outage::Service => {
                        if let Some(process) = process.take() {
                            process.kill(round.take()).await;
                        }
                    }
                    Outage::Database => tokio::task::block_in_place(|| postgres.crash()),
                    _ => {}
                }
            }
            let silent: BTreeSet<Outage> = away.iter().chain(down).copied().collect();
            set_faults(world, &silent, rng);
        };
        tokio::join!(pushing, asking, breaking);
        if let (Some(process), Some(round)) = (process.as_mut(), round.take()) {
            process.end_round(round).await;
        }
    }

    async fn end(&mut self, outage: Outage) {
        match outage {
            Outage::Service => self.process = Some(Process::start(&self.world).await),
            Outage::Database => tokio::task::block_in_place(|| self.postgres.resume()),
            _ => {}
        }
        set_faults(&self.world, &self.away, &mut self.rng);
    }

    /// Purchases that are new are verified by their backend; what must be acknowledged is watched.
    fn note_purchases(&mut self) {
        let play = self.world.simulator.google();
        let now = self.world.clock.now();
        for customer in &self.customers {
            let App { name, .. } = &self.apps[customer.app];
            for token in customer.actor.play_purchases() {
                let is_new = self.owed.note(&play, token, customer.app, now);
                if is_new && acknowledges_at_once(customer.app) {
                    self.backend.verify_google(customer.app, name, token);
                }
            }
            if let Some(question) = customer.question() {
                self.backend.verify_once(customer.app, question);
            }
        }
        self.owed.look(&play, now);
    }

    /// What the stores, the callbacks and the database have recorded.
    pub(crate) async fn collect(mut self) -> Evidence {
        let database = self.world.database();
        let open: (i64, i64) = sqlx::query_as(
            "select (select count(*) from webhook_deliveries where status <> 'delivered'), (select count(*) from unresolved_states)",
        )
        .fetch_one(database.pool())
        .await
        .expect("the database is there");
        if open.0 > 0 {
            self.complaints
                .push(format!("{} deliveries have not ended", open.0));
        }
        if open.1 > 0 {
            self.complaints
                .push(format!("{} states are not told", open.1));
        }
        let rows: Vec<(String, time::OffsetDateTime)> =
            sqlx::query_as("select id, received_at from webhook_events")
                .fetch_all(database.pool())
                .await
                .expect("the database is there");
        let stored_at: BTreeMap<String, Timestamp> = rows
            .into_iter()
            .map(|(id, at)| (id, Timestamp::from(at)))
            .collect();
        let interrupted = interrupted_events(database).await;
        let process = self.process.as_ref().expect("nothing is away any more");
        let mut feed = BTreeSet::new();
        for tenant in &self.tenants {
            read_feed(&self.world, process.address(), tenant, &mut feed).await;
        }
        let events = self.receivers.seen(|seen| {
            let events = seen.bodies.iter().map(|(id, body)| {
                let event = ReceivedEvent {
                    body: serde_json::from_slice(body).unwrap_or_default(),
                    deliveries: seen.taken.get(id).map_or(0, Vec::len),
                    is_interrupted: interrupted.contains(id),
                    stored_at: stored_at.get(id).copied(),
                };
                (id.clone(), event)
            });
            events.collect()
        });
        let unsigned = self.receivers.seen(|seen| seen.unsigned);
        if unsigned > 0 {
            self.complaints
                .push(format!("{unsigned} signatures do not verify"));
        }
        let now = self.world.clock.now();
        let purchases = self.customers.iter().map(|customer| {
            let records = customer.actor.records();
            describe_purchase(customer, &records, now)
        });
        let purchases: Vec<Purchase> = purchases.collect();
        let evidence = Evidence {
            purchases,
            owed: std::mem::take(&mut self.owed).into_list(),
            consumption: self.world.simulator.apple().list_consumption(),
            reviews: self.world.simulator.google().list_refund_reviews(),
            changes: std::mem::take(&mut self.ledger.changes),
            events,
            feed,
            timeline: std::mem::take(&mut self.timeline),
            complaints: std::mem::take(&mut self.complaints),
            ended_at: now,
        };
        self.tear_down().await;
        evidence
    }

    async fn tear_down(self) {
        drop(self.process);
        let fresh = self.world.end().await;
        fresh.database.close_connections().await;
        drop(self.postgres);
    }
}

/// Whether a tenant's purchases are acknowledged at the first verification. The backends of others acknowledge when they are told
/// that it is due.
pub(crate) fn acknowledges_at_once(tenant: usize) -> bool {
    tenant.is_multiple_of(2)
}

async fn set_default_answers(world: &World, tenant: &Tenant) {
    let id = tenant.id.as_str();
    let sample = [
        "--sample-content-provided",
        "false",
        "--refund-preference",
        "decline",
    ];
    let apple = ["--customer-consented", "--delivery-status", "delivered"];
    for words in [
        [&["apple", "set-default-answer", id][..], &sample, &apple].concat(),
        [&["google", "set-default-answer", id][..], &sample].concat(),
    ] {
        let set = world.shell().run_async(&words, "").await;
        assert_eq!(set.exit, 0, "{set:?}");
    }
}

/// Calls to stores that are away fail, each outage in its own way.
fn set_faults(world: &World, away: &BTreeSet<Outage>, rng: &mut Rng) {
    world.simulator.clear_faults();
    for (outage, place) in [(Outage::AppleApi, "apple"), (Outage::GoogleApi, "google")] {
        if away.contains(&outage) {
            let fault = Fault::at_place(place).times(0);
            let fault = if rng.bool() {
                fault.status(503)
            } else {
                fault.cut()
            };
            world.simulator.add_fault(fault).expect("a good fault");
        }
    }
}

/// The ids of a tenant's events, as they are read back.
async fn read_feed(world: &World, service: &str, tenant: &Tenant, found: &mut BTreeSet<String>) {
    let mut cursor: Option<String> = None;
    loop {
        let after = cursor.map_or_else(String::new, |cursor| format!("&after={cursor}"));
        let url = format!("{service}/v1/events?limit=100{after}");
        let key = Some(tenant.key.expose());
        let answer = world.ask_at(&url, "GET", key, None).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        let page = answer.body["events"].as_array().expect("a page");
        if page.is_empty() {
            return;
        }
        let ids = page.iter().filter_map(|event| event["eventId"].as_str());
        found.extend(ids.map(str::to_owned));
        cursor = answer.body["next"].as_str().map(str::to_owned);
    }
}

/// What the stores' own records say of a customer's purchases.
fn describe_purchase(customer: &Customer, records: &Records, now: Timestamp) -> Purchase {
    let actor = &customer.actor;
    let keys: Vec<String> = match customer.store() {
        Store::Apple => actor.apple_transactions().map(str::to_owned).collect(),
        Store::Google => actor.play_purchases().map(str::to_owned).collect(),
    };
    let mut subjects: BTreeMap<usize, (Vec<String>, bool)> = BTreeMap::new();
    for key in keys {
        let subject = actor.subject_of(&key).expect("it is one of its own");
        let has_access = actor.has_access(records, subject, now, now);
        subjects
            .entry(subject)
            .or_insert_with(|| (Vec::new(), has_access))
            .0
            .push(key);
    }
    Purchase {
        subjects: subjects.into_values().collect(),
    }
}
