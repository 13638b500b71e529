//! From a store notification to the delivery at the callback, with all production parts in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::TenantId;
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::db::Database;
use attesto::deliveries::endpoint::store::{self, EndpointChange};
use attesto::deliveries::endpoint::{SigningSecret, SigningSecrets};
use attesto::deliveries::{
    Dispatcher, DispatcherSettings, Sender, SenderSettings, SigningSender, WorkNotifier, signature,
};
use attesto::egress::EgressPolicy;
use attesto::events::{EventRecorder, EventSource, EventType, NewEvent};
use attesto::simulator::state::google::NewSubscription;
use attesto::simulator::state::google_notifications::PushSubscription;
use attesto::stores::google;
use attesto::stores::google::account::GoogleServiceAccount;
use attesto::tenants;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt as _;

use crate::world::attesto::{APP, World};
use crate::world::event::{event_body, test_event};
use crate::world::postgres::{fresh_database, pass_time};
use crate::world::receiver::{Place, Received, Receiver};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const NO: &[u8] = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno";

pub(crate) fn secret(letter: &str) -> SigningSecret {
    SigningSecret::parse(&letter.repeat(40)).unwrap()
}

pub(crate) async fn set_callback(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    url: &str,
    secret: &SigningSecret,
) {
    let change = EndpointChange {
        callback_url: Some(url),
        secret: Some(secret),
        overlap: Duration::from_hours(24),
        ..EndpointChange::default()
    };
    store::change_endpoint(database, keyring, tenant, &change)
        .await
        .unwrap();
}

/// Whether both signatures verify with these secrets, as a receiver would compute them.
pub(crate) fn convinces(request: &Received, secrets: &SigningSecrets) -> bool {
    let timestamp = request.headers["x-attesto-timestamp"].parse().unwrap();
    let id = &request.headers["webhook-id"];
    let signed = signature::sign_delivery(secrets, id, timestamp, &request.body);
    request.headers["x-attesto-signature"] == signed.attesto
        && request.headers["webhook-signature"] == signed.standard
        && request.headers["webhook-timestamp"] == request.headers["x-attesto-timestamp"]
}

#[tokio::test]
async fn every_attempt_sends_the_stored_body_with_current_signatures() {
    let fresh = fresh_database().await;
    let database = &fresh.database;
    let clock = Clock::fixed(Timestamp::parse("2026-04-10T14:22:10.000Z").unwrap());
    let key = MasterKey::parse("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", Some(1)).unwrap();
    let keyring = Arc::new(Keyring::new(key, Vec::new()).unwrap());
    let name = "Acme".parse().unwrap();
    let tenant = tenants::store::create_tenant(database, &name, clock.now())
        .await
        .unwrap()
        .id;
    let asked = Arc::new(AtomicUsize::new(0));
    let manner = move |mut wire: Box<dyn crate::world::receiver::Wire>| {
        let answer = match asked.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => NO,
            _ => OK,
        };
        let answered: futures_util::future::BoxFuture<'static, _> = Box::pin(async move {
            wire.write_all(answer).await.ok()?;
            Some(wire)
        });
        answered
    };
    let receiver = Receiver::new(Place::loopback(), Arc::new(manner)).await;
    set_callback(database, &keyring, &tenant, &receiver.url(), &secret("o")).await;

    let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
    let event = NewEvent {
        source: EventSource::Apple,
        event_type: EventType::SubscriptionRenewed,
        platform_event: "apple.did_renew".into(),
        app_user_id: Some("grüße \u{1f600}".into()),
        app_user_id_source: Some(attesto::events::AppUserIdSource::Purchase),
        state: None,
        state_error: None,
        data: raw("{\"z\":1.0,\"a\":123456789012345678901234567890,\"ü\":\"\\u00fc\"}"),
        raw: raw("{ \"spaced\" : 1e400 }"),
        ..test_event(&tenant, "1")
    };
    let record = EventRecorder::new(database, &clock, |_| {});
    let stored = record.record_event(&event).await.unwrap();
    let body = event_body(database, stored.event_id.as_str()).await;
    assert!(body.contains("\"raw\":{ \"spaced\" : 1e400 }"), "{body}");

    let settings = SenderSettings::new(Duration::from_secs(5), EgressPolicy::new(true));
    let sender = Sender::new(settings, &clock).unwrap();
    let sender = SigningSender::new(sender, database, &keyring);
    let settings = DispatcherSettings {
        concurrency: 8,
        poll_interval: Duration::from_secs(10),
        max_retries: 5,
        shutdown_timeout: Duration::ZERO,
    };
    let mut dispatcher =
        Dispatcher::new(database, &clock, sender, WorkNotifier::default(), settings);
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    pass_time(database, &clock, Duration::from_secs(33)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    // The secret changes between two attempts.
    set_callback(database, &keyring, &tenant, &receiver.url(), &secret("n")).await;
    pass_time(database, &clock, Duration::from_secs(132)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    pass_time(database, &clock, Duration::from_hours(24)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 0);

    let requests = receiver.requests();
    assert_eq!(requests.len(), 3);
    let old = SigningSecrets::from(secret("o"));
    let both = SigningSecrets {
        newest: secret("n"),
        previous: vec![secret("o")],
    };
    for ((request, number), secrets) in requests.iter().zip(1..).zip([&old, &old, &both]) {
        assert_eq!(request.body, body.as_bytes(), "attempt {number}");
        assert_eq!(request.headers["x-attesto-attempt"], number.to_string());
        assert_eq!(request.headers["webhook-id"], stored.event_id.as_str());
        assert!(convinces(request, secrets), "attempt {number}");
    }
    let moments: Vec<_> = requests
        .iter()
        .map(|request| request.headers["x-attesto-timestamp"].as_str())
        .collect();
    assert_eq!(moments, ["1775830930", "1775830963", "1775831095"]);
    let (status, excerpt): (String, String) =
        sqlx::query_as("select status, last_response_body from webhook_deliveries")
            .fetch_one(database.pool())
            .await
            .unwrap();
    assert_eq!((status.as_str(), excerpt.as_str()), ("delivered", "ok"));
}

/// A secret that cannot be opened is the operator's problem: nothing is sent, and no attempt is
/// counted.
#[tokio::test]
async fn a_delivery_that_cannot_be_signed_waits() {
    let world = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
    let (database, tenant) = (world.database(), world.stranger().await.id);
    let receiver = Receiver::answering(OK).await;
    let key = MasterKey::parse("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", Some(9)).unwrap();
    let stranger = Keyring::new(key, Vec::new()).unwrap();
    set_callback(database, &stranger, &tenant, &receiver.url(), &secret("x")).await;
    let event = test_event(&tenant, "1");
    let record = EventRecorder::new(database, &world.clock, |_| {});
    record.record_event(&event).await.unwrap();
    let settings = SenderSettings::new(Duration::from_secs(5), EgressPolicy::new(true));
    let sender = Sender::new(settings, &world.clock).unwrap();
    let sender = SigningSender::new(sender, database, world.keyring());
    let settings = DispatcherSettings {
        concurrency: 8,
        poll_interval: Duration::from_secs(10),
        max_retries: 5,
        shutdown_timeout: Duration::ZERO,
    };
    let mut dispatcher = Dispatcher::new(
        database,
        &world.clock,
        sender,
        WorkNotifier::default(),
        settings,
    );
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    let row: (String, i32, String) =
        sqlx::query_as("select status, attempt_count, last_outcome from webhook_deliveries")
            .fetch_one(database.pool())
            .await
            .unwrap();
    assert_eq!(row, ("pending".into(), 0, "unsigned".into()));
    assert_eq!(receiver.connections(), 0);
    world.end().await;
}

#[tokio::test]
async fn a_store_notification_reaches_the_callback_at_once() {
    let world = World::with(&[("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")]).await;
    let tenant = world.tenant().await;
    let receiver = Receiver::answering(OK).await;
    let mine = secret("m");
    set_callback(
        world.database(),
        world.keyring(),
        &tenant.id,
        &receiver.url(),
        &mine,
    )
    .await;
    let file = world.simulator.google_service_account().to_string();
    let play = world.simulator.google();
    let new = google::store::NewGoogleCredentials {
        package_name: APP,
        key_file: file.as_bytes(),
        account: &GoogleServiceAccount::parse(file.as_bytes()).unwrap(),
        pubsub_audience: None,
        pubsub_service_account: Some(play.push_account()),
        pubsub_topic: None,
    };
    google::store::set_credentials(world.database(), world.keyring(), &tenant.id, &new)
        .await
        .unwrap();
    let endpoint = world.url(&format!("/v1/webhooks/google/{}", tenant.id));
    let by_hand = PushSubscription {
        manual: true,
        ..PushSubscription::for_endpoint(&endpoint)
    };
    play.set_push_subscription(APP, by_hand).unwrap();
    play.buy_subscription(NewSubscription::default()).unwrap();
    let message = play.published_messages().pop().unwrap();
    let pushed = play.push_message(&message.message_id).await.unwrap();
    assert_eq!(pushed.status, 200, "{}", pushed.body);
    assert_eq!(pushed.body["enqueuedDelivery"], true);

    receiver.until(1).await;
    let requests = receiver.requests();
    assert!(convinces(&requests[0], &mine.into()));
    let body: Value = serde_json::from_slice(&requests[0].body).unwrap();
    assert_eq!(body["event"], "subscription.purchased");
    assert_eq!(body["eventId"], pushed.body["eventId"]);
    assert_eq!(
        requests[0].headers["x-attesto-event"],
        "subscription.purchased"
    );
    world.end().await;
    assert_eq!(receiver.requests().len(), 1);
}
