//! `attesto tail` shows the changes of a tenant.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use attesto::base::clock::Timestamp;
use attesto::events::purchase_state::{StateBasis, StateStatus};
use attesto::events::{
    EventRecorder, EventSubject, EventType, NewEvent, PurchaseState, StateError, SubjectType,
};
use attesto::tail::TailWatcher;
use serde_json::{Value, json};

use crate::world::attesto::World;
use crate::world::event::test_event;
use crate::world::wait::wait_for;

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
        self.happens_with(external_id, None).await
    }

    async fn happens_with(&self, external_id: &str, state: Option<PurchaseState>) -> String {
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
            state_error: state.is_none().then_some(StateError::StoreUnavailable),
            state,
            ..test_event(&self.tenant, external_id)
        };
        let record = EventRecorder::new(self.world.database(), &self.world.clock, |_| {});
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

fn active_state() -> PurchaseState {
    PurchaseState {
        status: StateStatus::Active,
        entitled: true,
        entitled_until: Some(Timestamp::from_millis(86_400_000)),
        product_id: Some("pro.monthly".into()),
        base_plan_id: None,
        offer_id: None,
        period: None,
        will_renew: Some(true),
        renews_as: None,
        renews_at: None,
        ownership: None,
        quantity: None,
        refundable_quantity: None,
        acknowledge_by: None,
        basis: StateBasis::Store,
        as_of: Timestamp::from_millis(0),
    }
}

fn delivery(attempt: i32, status: &str, outcome: &str, code: Option<i32>) -> Value {
    json!({ "kind": "delivery", "callback": 1, "attempt": attempt, "status": status, "outcome": outcome, "responseCode": code,
        "error": null, "isParked": false })
}

#[tokio::test]
async fn each_change_is_shown_once() {
    let mut watched = Watched::new().await;
    let shell = watched.world.shell();
    let tenant = watched.tenant.to_string();
    let event = |sequence: i64, has_delivery: bool| {
        json!({ "kind": "event", "platformEvent": "google.subscription_renewed", "subject": "a subscription",
            "sequence": sequence, "state": null, "stateError": "store_unavailable", "hasDelivery": has_delivery })
    };
    assert_eq!(watched.news().await, Vec::<Value>::new());
    watched.happens("1").await;
    assert_eq!(watched.news().await, [event(1, false)]);
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
    assert_eq!(watched.news().await, [event(2, true)]);

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
        .sql("insert into validation_audit (lane, id, tenant_id, source, identifier_hash, valid, error_code, latency_ms, occurred_at) values (tenant_lane($1), 'aud_1', $1, 'apple', '\\xab', false, 'SIGNATURE_INVALID', 3, now())")
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
        .sql("insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url, status, next_attempt_at, created_at) select tenant_lane($1), 'del_old', id, $1, 'https://app.example.com/old', 'pending', now(), now() - interval '1 day' from webhook_events where tenant_id = $1")
        .await;
    watched
        .sql("insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url, status, next_attempt_at, delivered_at, attempt_count) select tenant_lane($1), 'del_' || n, id, $1, 'https://app.example.com/new', 'delivered', now(), now(), 1 from webhook_events, generate_series(1, 500) n where tenant_id = $1")
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
        .sql("insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url, status, next_attempt_at) select tenant_lane($1), 'del_' || n, id, $1, 'https://app.example.com/new', 'pending', now() from webhook_events, generate_series(1, 500) n where tenant_id = $1")
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
        line.ends_with("about a subscription, sequence 2  state not known: store_unavailable  (no active callback: stored, not sent)"),
        "{line}"
    );

    let state = active_state();
    watched.happens_with("3", Some(state.clone())).await;
    let last = ["tail", "--tenant", &tenant, "--no-follow", "--last", "1"];
    let rows = shell.rows(&last);
    assert_eq!(rows[0]["sequence"], 3);
    assert_eq!(rows[0]["state"], json!(state));
    let told = shell.run(&[&last[..], &["--output", "table"]].concat());
    let about =
        "about a subscription, sequence 3  active, entitled until 1970-01-02T00:00:00.000Z  (no";
    assert!(told.said.contains(about), "{}", told.said);

    // The list of events shows the same, each fact in a column.
    let events = ["webhook", "list-events", &tenant];
    let rows = shell.rows(&events);
    assert_eq!(
        (&rows[0]["sequence"], &rows[0]["state"]),
        (&json!(3), &json!(state))
    );
    assert_eq!(
        (
            &rows[1]["sequence"],
            &rows[1]["state"],
            &rows[1]["stateError"]
        ),
        (&json!(2), &Value::Null, &json!("store_unavailable"))
    );
    let table = shell
        .run(&[&events[..], &["--output", "table"]].concat())
        .said;
    let mut lines = table.lines();
    let header = lines.next().unwrap();
    assert!(
        header.contains("SEQUENCE  STATE STATUS  STATE ENTITLED  STATE ENTITLED UNTIL"),
        "{table}"
    );
    let newest: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    let shown = ["3", "active", "yes", "1970-01-02T00:00:00.000Z"];
    assert!(newest.windows(4).any(|cells| cells == shown), "{table}");
    assert!(!table.contains(['{', '"']), "{table}");

    let nobody = shell.run(&["tail", "--tenant", "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"]);
    assert_eq!(nobody.exit, 1, "{}", nobody.complained);
    watched.world.end().await;
}

#[tokio::test]
async fn the_command_ends_when_its_output_is_no_longer_read() {
    let watched = Watched::new().await;
    watched.happens("1").await;
    let tenant = watched.tenant.to_string();
    let mut child = watched
        .world
        .shell()
        .command(&["tail", "--tenant", &tenant])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // As `head -1` does; nothing is written afterwards.
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert!(line.contains("google.subscription_renewed"), "{line}");
    drop(output);
    let status = wait_for("the command ends", async || child.try_wait().unwrap()).await;
    assert!(status.success(), "{status}");
    watched.world.end().await;
}
