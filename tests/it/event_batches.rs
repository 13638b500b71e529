//! Notifications that arrive at the same moment are stored in one transaction, each with an outcome of its own.
//!
//! On the one thread of these tests, events that are recorded together all wait when the writer begins.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use attesto::base::clock::Clock;
use attesto::base::id::{EventId, TenantId};
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::db::{self, Database};
use attesto::deliveries::endpoint::SigningSecret;
use attesto::deliveries::endpoint::store::{EndpointChange, change_endpoint};
use attesto::events::{
    EventRecorder, EventSubject, NewEvent, RecordError, StateError, StoredEvent, SubjectType,
};
use attesto::telemetry::metrics::MetricsRegistry;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use crate::world::event::test_event;
use crate::world::postgres::{Fresh, fresh_database};
use crate::world::wait::wait_until;

fn recorder(database: &Database) -> (EventRecorder, MetricsRegistry) {
    let registry = MetricsRegistry::default();
    let record = EventRecorder::new(database, &Clock::system(), |_| {});
    (record.with_metrics(&registry), registry)
}

/// An event about a purchase whose state is not known.
fn event_about(tenant: &TenantId, external_id: &str, subject: &str) -> NewEvent {
    NewEvent {
        subject: Some(EventSubject {
            key: subject.to_owned(),
            product_id: None,
            r#type: SubjectType::Subscription,
            current: true,
            superseded_by: None,
        }),
        state_error: Some(StateError::StoreUnavailable),
        ..test_event(tenant, external_id)
    }
}

async fn set_callback(fresh: &Fresh, tenant: &TenantId) {
    let master = MasterKey::parse(&STANDARD.encode([7; 32]), Some(1));
    let keyring = Keyring::new(master.unwrap(), Vec::new()).unwrap();
    let secret = SigningSecret::parse(&"x".repeat(40)).unwrap();
    let change = EndpointChange {
        callback_url: Some("https://callback.example/hook"),
        secret: Some(&secret),
        overlap: std::time::Duration::ZERO,
        ..EndpointChange::default()
    };
    change_endpoint(&fresh.database, &keyring, tenant, &change)
        .await
        .unwrap();
}

async fn record_all(
    record: &EventRecorder,
    events: &[NewEvent],
) -> Vec<Result<StoredEvent, RecordError>> {
    join_all(events.iter().map(|event| record.record_event(event))).await
}

async fn count(database: &Database, query: &'static str) -> i64 {
    let count = sqlx::query_scalar(query).fetch_one(database.pool());
    count.await.unwrap()
}

/// The numbers of each subject's events, in the order of the notifications' ids.
async fn sequences(database: &Database) -> BTreeMap<(String, String), Vec<i64>> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "select tenant_id, subject_key, sequence from webhook_events where subject_key is not null order by external_id",
    )
    .fetch_all(database.pool())
    .await
    .unwrap();
    let mut found = BTreeMap::<_, Vec<i64>>::new();
    for (tenant, subject, number) in rows {
        found.entry((tenant, subject)).or_default().push(number);
    }
    found
}

/// Asserts that every subject's events are numbered 1, 2, 3 and so on, and that the subject knows the last number.
async fn assert_no_gaps(database: &Database) {
    for (subject, mut numbers) in sequences(database).await {
        numbers.sort_unstable();
        let expected: Vec<i64> = (1..).take(numbers.len()).collect();
        assert_eq!(numbers, expected, "{subject:?}");
    }
    let ahead = "select count(*) from subjects s where last_sequence <> (select count(*) from webhook_events e
        where e.tenant_id = s.tenant_id and e.source = s.source and sha256(convert_to(e.subject_key, 'UTF8')) = s.key_hash)";
    assert_eq!(count(database, ahead).await, 0);
}

/// A session that lets no event be written until it ends its transaction.
async fn lock_events(database: &Database) -> PgConnection {
    let mut locking = database.connect_directly("locking").await.unwrap();
    let lock = "begin; lock table webhook_events in share mode";
    locking.execute(lock).await.unwrap();
    locking
}

/// Waits until a statement of the service waits for a lock, and returns the id of its session.
async fn blocked_session(database: &Database) -> i32 {
    let mut found = None;
    wait_until("a statement waits for the lock", async || {
        let blocked = "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        let blocked = sqlx::query_scalar(blocked).fetch_optional(database.pool());
        found = blocked.await.unwrap();
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test]
async fn events_that_wait_together_share_a_transaction_and_have_outcomes_of_their_own() {
    let fresh = fresh_database().await;
    let (with_callback, without, inactive) = (
        fresh.create_tenant().await,
        fresh.create_tenant().await,
        fresh.create_tenant().await,
    );
    set_callback(&fresh, &with_callback).await;
    let deactivate = format!("update tenants set is_active = false where id = '{inactive}'");
    let pool = fresh.database.pool();
    pool.execute(AssertSqlSafe(deactivate)).await.unwrap();
    let (record, registry) = recorder(&fresh.database);

    let mut events = Vec::new();
    for number in 10..40 {
        let subject = format!("subject {}", number % 3);
        events.push(event_about(&with_callback, &number.to_string(), &subject));
        // The same ids and subjects, of another tenant.
        events.push(event_about(&without, &number.to_string(), &subject));
    }
    events.push(test_event(&with_callback, "without a subject"));
    events.push(event_about(&inactive, "10", "subject 1"));
    let stored = record_all(&record, &events).await;
    for (event, stored) in events.iter().zip(&stored) {
        if event.tenant == inactive {
            assert!(matches!(stored, Err(RecordError::InactiveTenant)));
            continue;
        }
        let stored = stored.as_ref().unwrap();
        assert!(stored.is_new);
        assert_eq!(stored.enqueued, event.tenant == with_callback);
        let found = attesto::events::find_event(
            &fresh.database,
            &event.tenant,
            event.source,
            &event.external_id,
        );
        assert_eq!(found.await.unwrap().as_ref(), Some(&stored.event_id));
    }
    let transactions = "select count(distinct xmin::text) from webhook_events";
    assert_eq!(count(&fresh.database, transactions).await, 1);
    let page = registry.render_text();
    assert!(
        page.contains("attesto_event_batch_events_count 1\n"),
        "{page}"
    );
    assert!(
        page.contains("attesto_event_batch_events_sum 62.0\n"),
        "{page}"
    );
    // In the order in which they came.
    for (subject, numbers) in sequences(&fresh.database).await {
        assert_eq!(numbers, (1..=10).collect::<Vec<i64>>(), "{subject:?}");
    }
    assert_no_gaps(&fresh.database).await;
    assert_eq!(
        count(&fresh.database, "select count(*) from webhook_deliveries").await,
        31
    );
    assert_eq!(
        count(&fresh.database, "select count(*) from unresolved_states").await,
        60
    );

    // Some of them again, beside new ones, and twice each.
    let mut again: Vec<NewEvent> = events[..20].to_vec();
    again.extend((50..60).map(|number| event_about(&without, &number.to_string(), "subject 1")));
    again.extend(again.clone());
    let repeated = record_all(&record, &again).await;
    let mut ids: BTreeMap<String, HashSet<EventId>> = BTreeMap::new();
    let mut new = 0;
    for (event, repeated) in again.iter().zip(repeated) {
        let repeated = repeated.unwrap();
        new += usize::from(repeated.is_new);
        let key = format!("{} {}", event.tenant, event.external_id);
        ids.entry(key).or_default().insert(repeated.event_id);
    }
    assert_eq!(new, 10);
    assert_eq!(ids.len(), 30);
    assert!(ids.values().all(|ids| ids.len() == 1), "{ids:?}");
    for (event, stored) in events[..20].iter().zip(&stored) {
        let key = format!("{} {}", event.tenant, event.external_id);
        assert!(ids[&key].contains(&stored.as_ref().unwrap().event_id));
    }
    assert_no_gaps(&fresh.database).await;
}

#[tokio::test]
async fn an_event_that_postgres_refuses_fails_alone() {
    let fresh = fresh_database().await;
    let tenant = fresh.create_tenant().await;
    let pool = fresh.database.pool();
    let refuse =
        "alter table webhook_events add constraint no_poison check (external_id <> 'poison')";
    pool.execute(refuse).await.unwrap();
    let (record, _) = recorder(&fresh.database);
    let names = ["1", "2", "poison", "3", "4"];
    let events = names.map(|name| event_about(&tenant, name, "subject"));
    let stored = record_all(&record, &events).await;
    for (name, stored) in names.iter().zip(stored) {
        match stored {
            Ok(stored) => assert!(stored.is_new && *name != "poison"),
            Err(RecordError::Database(error)) => {
                assert_eq!(*name, "poison");
                assert!(!db::is_unavailable(&error), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_no_gaps(&fresh.database).await;
    assert_eq!(
        count(&fresh.database, "select count(*) from webhook_events").await,
        4
    );
}

#[tokio::test]
async fn a_database_that_goes_away_fails_all_of_them_and_repeats_are_stored_once() {
    let fresh = fresh_database().await;
    let tenant = fresh.create_tenant().await;
    let mut locking = lock_events(&fresh.database).await;
    let (record, _) = recorder(&fresh.database);
    let events: Vec<NewEvent> = (0..20)
        .map(|number| event_about(&tenant, &number.to_string(), "subject"))
        .collect();
    let ending = async {
        let session = blocked_session(&fresh.database).await;
        let end = sqlx::query("select pg_terminate_backend($1)").bind(session);
        end.execute(fresh.database.pool()).await.unwrap();
    };
    let (stored, ()) = tokio::join!(record_all(&record, &events), ending);
    for stored in stored {
        let Err(RecordError::Database(error)) = stored else {
            panic!("{stored:?}");
        };
        assert!(db::is_unavailable(&error), "{error}");
    }
    locking.execute("rollback").await.unwrap();
    let again = record_all(&record, &events).await;
    assert!(again.iter().all(|stored| stored.as_ref().unwrap().is_new));
    assert_eq!(
        count(&fresh.database, "select count(*) from webhook_events").await,
        20
    );
    assert_no_gaps(&fresh.database).await;
}

#[tokio::test]
async fn an_event_that_is_being_written_is_stored_although_its_caller_has_left() {
    let fresh = fresh_database().await;
    let tenant = fresh.create_tenant().await;
    let mut locking = lock_events(&fresh.database).await;
    set_callback(&fresh, &tenant).await;
    let woken = Arc::<AtomicUsize>::default();
    let record = EventRecorder::new(&fresh.database, &Clock::system(), {
        let woken = woken.clone();
        move |_| {
            woken.fetch_add(1, Ordering::Relaxed);
        }
    });
    let calling = tokio::spawn({
        let (record, event) = (record.clone(), event_about(&tenant, "1", "subject"));
        async move { record.record_event(&event).await.map(drop) }
    });
    blocked_session(&fresh.database).await;
    calling.abort();
    assert!(calling.await.unwrap_err().is_cancelled());
    locking.execute("rollback").await.unwrap();
    wait_until("the event is stored", async || {
        count(&fresh.database, "select count(*) from webhook_events").await == 1
    })
    .await;
    wait_until("the dispatcher is woken", async || {
        woken.load(Ordering::Relaxed) == 1
    })
    .await;
    assert_no_gaps(&fresh.database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_store_the_same_notifications_in_other_orders_store_each_once() {
    let fresh = fresh_database().await;
    let tenants = [fresh.create_tenant().await, fresh.create_tenant().await];
    let events: Vec<NewEvent> = (0..150)
        .map(|number: usize| {
            let tenant = &tenants[number % 2];
            let name = number.to_string();
            if number.is_multiple_of(7) {
                return test_event(tenant, &name);
            }
            event_about(tenant, &name, &format!("subject {}", number % 5))
        })
        .collect();
    let recorders = [0; 3].map(|_| recorder(&Database::open(&fresh.settings)).0);
    let mut recording = tokio::task::JoinSet::new();
    for record in recorders {
        let mut events = events.clone();
        fastrand::shuffle(&mut events);
        for event in events {
            let record = record.clone();
            recording.spawn(async move {
                let stored = record.record_event(&event).await.unwrap();
                (event.external_id, stored)
            });
        }
    }
    let stored = recording.join_all().await;
    assert_eq!(stored.len(), 450);
    let new: Vec<_> = stored.iter().filter(|(_, stored)| stored.is_new).collect();
    assert_eq!(new.len(), 150);
    let ids: HashSet<_> = stored
        .iter()
        .map(|(name, stored)| (name, &stored.event_id))
        .collect();
    assert_eq!(
        ids.len(),
        150,
        "a repeat is answered with the first event's id"
    );
    assert_eq!(
        count(&fresh.database, "select count(*) from webhook_events").await,
        150
    );
    assert_no_gaps(&fresh.database).await;
}
