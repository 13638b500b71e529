//! `attesto tail` shows the changes of a tenant.

use attesto::events::{EventRecorder, EventSubject, EventType, NewEvent, SubjectType};
use attesto::tail::TailWatcher;
use serde_json::{Value, json};

use crate::world::attesto::World;
use crate::world::event::test_event;

const QUIET: [(&str, &str); 1] = [("WEBHOOK_DISPATCHER_DISABLED", "true")];

struct Watched {
    world: World,
    tenant: attesto::base::id::TenantId,
    watcher: TailWatcher,
}

impl Watched {
    async fn new() -> Self {
        let world = World::with(&QUIET).await;
        let tenant = world.stranger().await.id;
        let watcher = TailWatcher::new(tenant.clone());
        Self {
            world,
            tenant,
            watcher,
        }
    }

    async fn happens(&self, external_id: &str) -> String {
        let event = NewEvent {
            event_type: EventType::SubscriptionRenewed,
            platform_event: "google.subscription_renewed".into(),
            subject: Some(EventSubject {
                key: "a subscription".into(),
                product_id: None,
                r#type: SubjectType::Subscription,
                current: true,
                superseded_by: None,
            }),
            ..test_event(&self.tenant, external_id)
        };
        let record = EventRecorder::new(self.world.database(), &self.world.clock, || {});
        record
            .record_event(&event)
            .await
            .unwrap()
            .event_id
            .to_string()
    }

    async fn sql(&self, text: &'static str) {
        sqlx::query(text)
            .bind(self.tenant.as_str())
            .execute(self.world.database().pool())
            .await
            .unwrap();
    }

    /// New changes as JSON, without times and ids.
    async fn news(&mut self) -> Vec<Value> {
        let lines = self
            .watcher
            .poll_lines(self.world.database())
            .await
            .unwrap();
        let lines = lines.iter().map(|line| {
            let mut line = serde_json::to_value(line).unwrap();
            let fields = line.as_object_mut().unwrap();
            for name in ["at", "eventId", "deliveryId", "nextAttemptAt", "event"] {
                fields.remove(name);
            }
            line
        });
        lines.collect()
    }
}

fn delivery(attempt: i32, status: &str, outcome: &str, code: Option<i32>) -> Value {
    json!({ "kind": "delivery", "attempt": attempt, "status": status, "outcome": outcome, "responseCode": code,
        "isParked": false })
}

#[tokio::test]
async fn each_change_is_shown_once() {
    let mut watched = Watched::new().await;
    let shell = watched.world.shell();
    let tenant = watched.tenant.to_string();
    let event = |has_delivery: bool| {
        json!({ "kind": "event", "platformEvent": "google.subscription_renewed", "subject": "a subscription",
            "hasDelivery": has_delivery })
    };
    assert_eq!(watched.news().await, Vec::<Value>::new());
    watched.happens("1").await;
    assert_eq!(watched.news().await, [event(false)]);
    assert_eq!(watched.news().await, Vec::<Value>::new());

    let set = [
        "webhook",
        "set-config",
        &tenant,
        "--callback-url",
        "https://app.example.com/hooks",
    ];
    assert_eq!(shell.run(&set).exit, 0);
    watched.happens("2").await;
    assert_eq!(watched.news().await, [event(true)]);

    watched
        .sql("update webhook_deliveries set attempt_count = 1, last_outcome = 'http_5xx', last_response_code = 503, last_attempt_at = now() where tenant_id = $1")
        .await;
    let tried = delivery(1, "pending", "http_5xx", Some(503));
    assert_eq!(watched.news().await, [tried]);
    assert_eq!(watched.news().await, Vec::<Value>::new());

    watched
        .sql("update webhook_deliveries set attempt_count = 2, status = 'delivered', delivered_at = now(), last_outcome = 'success', last_response_code = 204, last_attempt_at = now() where tenant_id = $1")
        .await;
    let delivered = delivery(2, "delivered", "success", Some(204));
    assert_eq!(watched.news().await, [delivered]);

    watched
        .sql("insert into validation_audit (id, tenant_id, source, identifier_hash, valid, error_code, latency_ms, occurred_at) values ('aud_1', $1, 'apple', '\\xab', false, 'SIGNATURE_INVALID', 3, now())")
        .await;
    let refused = json!({ "kind": "verification", "source": "apple", "valid": false, "errorCode": "SIGNATURE_INVALID",
        "latencyMs": 3, "identifierHash": "ab" });
    assert_eq!(watched.news().await, [refused]);
    assert_eq!(watched.news().await, Vec::<Value>::new());
    watched.world.end().await;
}

/// A delivery that is older than the watched window is followed as long as it is retried.
#[tokio::test]
async fn an_old_delivery_is_followed_until_it_ends() {
    let mut watched = Watched::new().await;
    watched.happens("old").await;
    watched
        .sql("insert into webhook_deliveries (id, event_id, tenant_id, callback_url, status, next_attempt_at, created_at) select 'del_old', id, $1, 'https://app.example.com/old', 'pending', now(), now() - interval '1 day' from webhook_events where tenant_id = $1")
        .await;
    watched
        .sql("insert into webhook_deliveries (id, event_id, tenant_id, callback_url, status, next_attempt_at, delivered_at, attempt_count) select 'del_' || n, id, $1, 'https://app.example.com/new', 'delivered', now(), now(), 1 from webhook_events, generate_series(1, 500) n where tenant_id = $1")
        .await;
    watched.news().await;
    watched
        .sql("update webhook_deliveries set status = 'failed', failed_at = now(), attempt_count = 6, last_outcome = 'timeout', last_attempt_at = now() where id = 'del_old' and tenant_id = $1")
        .await;
    let given_up = delivery(6, "failed", "timeout", None);
    assert_eq!(watched.news().await, [given_up]);
    assert_eq!(watched.news().await, Vec::<Value>::new());
    watched.world.end().await;
}

/// If more deliveries wait than are followed, the older ones are not shown; this is reported once.
#[tokio::test]
async fn too_many_waiting_deliveries_are_reported_once() {
    let mut watched = Watched::new().await;
    watched.happens("one").await;
    watched.news().await;
    watched
        .sql("insert into webhook_deliveries (id, event_id, tenant_id, callback_url, status, next_attempt_at) select 'del_' || n, id, $1, 'https://app.example.com/new', 'pending', now() from webhook_events, generate_series(1, 500) n where tenant_id = $1")
        .await;
    let told = watched.news().await;
    let waiting = json!({ "kind": "overflow", "of": "waiting deliveries" });
    assert_eq!(told.iter().filter(|line| **line == waiting).count(), 1);
    assert!(!watched.news().await.contains(&waiting));
    watched.world.end().await;
}

#[tokio::test]
async fn the_command_shows_the_latest_changes() {
    let watched = Watched::new().await;
    let shell = watched.world.shell();
    let tenant = watched.tenant.to_string();
    watched.happens("1").await;
    let second = watched.happens("2").await;
    let rows = shell.rows(&["tail", "--tenant", &tenant, "--no-follow", "--last", "1"]);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["eventId"], second.as_str());

    let told = shell.run(&[
        "tail",
        "--tenant",
        &tenant,
        "--no-follow",
        "--output",
        "table",
    ]);
    let line = told.said.lines().last().unwrap();
    assert!(
        line.contains("event         subscription.renewed  google.subscription_renewed  evt_"),
        "{line}"
    );
    assert!(
        line.ends_with("about a subscription  (no active callback: stored, not sent)"),
        "{line}"
    );

    let nobody = shell.run(&["tail", "--tenant", "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"]);
    assert_eq!(nobody.exit, 1, "{}", nobody.complained);
    watched.world.end().await;
}
