//! The delivery hold: nothing is sent until an operator releases it.

use std::time::Duration;

use attesto::base::id::TenantId;
use attesto::db::Database;
use attesto::deliveries::endpoint::SigningSecret;
use attesto::deliveries::endpoint::store::{self, EndpointChange};
use attesto::deliveries::{
    Dispatcher, DispatcherSettings, Sender, SenderSettings, SigningSender, WorkNotifier,
};
use attesto::egress::EgressPolicy;
use attesto::events::EventRecorder;

use crate::world::attesto::World;
use crate::world::event::test_event;
use crate::world::receiver::Receiver;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Records events of a tenant, each with a delivery that is due now.
pub(crate) async fn events(world: &World, tenant: &TenantId, names: &[&str]) {
    let record = EventRecorder::new(world.database(), &world.clock, |_| {});
    record_events(&record, tenant, names).await;
}

/// The same with a given recorder.
pub(crate) async fn record_events(record: &EventRecorder, tenant: &TenantId, names: &[&str]) {
    for name in names {
        let event = test_event(tenant, name);
        record.record_event(&event).await.unwrap();
    }
}

pub(crate) async fn set_callback(world: &World, tenant: &TenantId, url: &str) {
    let secret = SigningSecret::parse(&"x".repeat(40)).unwrap();
    let change = EndpointChange {
        callback_url: Some(url),
        secret: Some(&secret),
        overlap: Duration::from_hours(24),
        ..EndpointChange::default()
    };
    store::change_endpoint(world.database(), world.keyring(), tenant, &change)
        .await
        .unwrap();
}

/// A dispatcher, as another replica would run it.
fn dispatcher(world: &World) -> Dispatcher {
    dispatcher_on(world, world.database())
}

/// A dispatcher on another database.
pub(crate) fn dispatcher_on(world: &World, database: &Database) -> Dispatcher {
    let settings = SenderSettings::new(Duration::from_secs(5), EgressPolicy::new(true));
    let sender = Sender::new(settings, &world.clock).unwrap();
    let sender = SigningSender::new(sender, database, world.keyring());
    let settings = DispatcherSettings {
        concurrency: 8,
        poll_interval: Duration::from_secs(10),
        max_retries: 5,
        shutdown_timeout: Duration::ZERO,
    };
    Dispatcher::new(
        database,
        &world.clock,
        sender,
        WorkNotifier::default(),
        settings,
    )
}

#[tokio::test]
async fn held_deliveries_are_not_sent_until_released() {
    let world = World::with(&[("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1")]).await;
    let receiver = Receiver::answering(OK).await;
    let tenant = world.stranger().await.id;
    set_callback(&world, &tenant, &receiver.url()).await;
    let shell = world.shell();
    let status = || shell.rows(&["deliveries", "status"]).remove(0);
    assert_eq!(shell.rows(&["deliveries", "hold"])[0]["held"], true);
    events(&world, &tenant, &["1", "2", "3"]).await;
    let shown = status();
    assert_eq!((&shown["due"], &shown["later"]), (&3.into(), &0.into()));
    assert_eq!(shown["heldBy"], attesto::replicas::host_name());
    assert!(shown["heldAt"].is_string());

    // Another process, which got no notification, finds nothing to do.
    assert_eq!(dispatcher(&world).run_until_idle().await.unwrap(), 0);
    let again = shell.run(&["deliveries", "hold"]);
    assert_eq!((again.exit, again.said.as_str()), (1, ""));
    assert!(again.complained.contains("held already"));
    assert_eq!(receiver.connections(), 0);

    let released = shell.rows(&["deliveries", "release"]).remove(0);
    assert_eq!(
        (&released["held"], &released["due"]),
        (&false.into(), &3.into())
    );
    // It is notified, and needs no restart.
    receiver.until(3).await;
    let twice = shell.run(&["deliveries", "release"]);
    assert_eq!(twice.exit, 1);
    assert!(
        twice.complained.contains("not held"),
        "{}",
        twice.complained
    );
}

#[tokio::test]
async fn the_hold_counts_what_a_release_would_send() {
    let world = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
    let receiver = Receiver::answering(OK).await;
    let (tenant, asleep) = (world.stranger().await.id, world.stranger().await.id);
    for id in [&tenant, &asleep] {
        set_callback(&world, id, &receiver.url()).await;
    }
    events(
        &world,
        &tenant,
        &["due", "under way", "later", "parked", "over"],
    )
    .await;
    events(&world, &asleep, &["1", "2"]).await;
    let shell = world.shell();
    shell.rows(&["tenant", "deactivate", asleep.as_str()]);
    for (name, change) in [
        ("under way", "lease_until = now() - interval '1 second'"),
        ("later", "next_attempt_at = now() + interval '1 hour'"),
        ("parked", "parked_at = now()"),
        (
            "over",
            "status = 'delivered', delivered_at = now(), next_attempt_at = null",
        ),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "update webhook_deliveries set {change}
              where event_id = (select id from webhook_events where external_id = '{name}')"
        )))
        .execute(world.database().pool())
        .await
        .unwrap();
    }
    let shown = shell.rows(&["deliveries", "hold"]).remove(0);
    let numbers = ["due", "later", "keptBack"].map(|name| shown[name].as_i64().unwrap());
    assert_eq!(numbers, [2, 1, 3], "{shown}");
    shell.rows(&["deliveries", "release"]);
    assert_eq!(dispatcher(&world).run_until_idle().await.unwrap(), 2);

    // Every hold and release is recorded.
    let noted: Vec<String> = sqlx::query_scalar(
        "select action from operator_audit where object = 'delivery_holds' order by seq",
    )
    .fetch_all(world.database().pool())
    .await
    .unwrap();
    assert_eq!(noted, ["insert", "update"]);
}
