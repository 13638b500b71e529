//! Events and states that a backend reads back: `/v1/events`, `/v1/events/{id}`, `/v1/subjects/{source}/{key}` and the commands
//! that do the same.

use std::collections::BTreeSet;
use std::time::Duration;

use attesto::base::id::{EventId, TenantId};
use attesto::db::Database;
use attesto::events::{EventRecorder, EventSubject, NewEvent, PurchaseState, SubjectType};
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::state::google::{CanceledBy, SubscriptionChange};
use futures_util::future::{join_all, select_all};
use serde_json::{Value, json};

use crate::google_state::{Shop, users, yearly};
use crate::openapi::schema::objections;
use crate::webhook_end_to_end::{secret, set_callback};
use crate::world::attesto::{Answer, Tenant, World};
use crate::world::event::{event_body, test_event};
use crate::world::postgres::fresh_database;
use crate::world::wait::{finished, wait_until};

/// An id that no event has.
const NO_EVENT: &str = "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
const HALF_A_MINUTE: Duration = Duration::from_secs(30);

/// What stores events as another process does: the server is not told.
fn recorder(world: &World) -> EventRecorder {
    EventRecorder::new(world.database(), &world.clock, |_| {})
}

async fn store(world: &World, event: &NewEvent) -> EventId {
    let stored = recorder(world).record_event(event).await.unwrap();
    assert!(stored.is_new);
    stored.event_id
}

async fn get(world: &World, tenant: &Tenant, path: &str) -> Answer {
    world
        .ask("GET", path, Some(tenant.key.expose()), None)
        .await
}

/// Reads a page, which is as the API description says.
async fn page(world: &World, tenant: &Tenant, query: &str) -> Value {
    let answer = get(world, tenant, &format!("/v1/events?{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_described("/v1/events", &answer.body);
    answer.body
}

fn assert_described(path: &str, body: &Value) {
    let description = attesto::app::openapi_document();
    let answers = &description["paths"][path]["get"]["responses"];
    let schema = &answers["200"]["content"]["application/json"]["schema"];
    let found = objections(schema, body, &description);
    assert!(found.is_empty(), "{found:#?}");
}

fn ids(page: &Value) -> Vec<&str> {
    let events = page["events"].as_array().unwrap();
    events
        .iter()
        .map(|event| event["eventId"].as_str().unwrap())
        .collect()
}

/// Reads everything behind a cursor, in pages of `limit`.
async fn read_all(world: &World, tenant: &Tenant, limit: usize) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = page(world, tenant, &format!("limit={limit}&after={after}")).await;
        all.extend(ids(&page).iter().map(ToString::to_string));
        if let Some(next) = page["next"].as_str() {
            next.clone_into(&mut after);
        }
        if page["hasMore"] == false {
            return all;
        }
    }
}

/// Of this subject, with a state of this time.
fn about(tenant: &TenantId, key: &str, number: u32, as_of: Option<&str>) -> NewEvent {
    let state = as_of.map(|as_of| {
        serde_json::from_value::<PurchaseState>(json!({
            "status": "active", "entitled": true, "entitledUntil": null, "productId": format!("plan{number}"),
            "basePlanId": null, "offerId": null, "period": null, "willRenew": true, "renewsAs": null, "renewsAt": null,
            "ownership": null, "quantity": 1, "refundableQuantity": null, "acknowledgeBy": null, "basis": "store",
            "asOf": as_of,
        }))
        .unwrap()
    });
    NewEvent {
        state_error: state
            .is_none()
            .then_some(attesto::events::StateError::StoreUnavailable),
        state,
        subject: Some(EventSubject {
            key: key.to_owned(),
            product_id: None,
            r#type: SubjectType::Subscription,
            current: true,
            superseded_by: None,
        }),
        ..test_event(tenant, &format!("{key}-{number}"))
    }
}

#[tokio::test]
async fn events_are_read_in_pages_and_byte_for_byte_as_they_are_sent() {
    let world = World::new().await;
    let (tenant, other) = (world.stranger().await, world.stranger().await);
    let none = page(&world, &tenant, "").await;
    assert_eq!(
        none,
        json!({ "events": [], "next": null, "hasMore": false })
    );
    let mut stored = Vec::new();
    for number in 1..=5 {
        let mut event = test_event(&tenant.id, &number.to_string());
        event.raw = serde_json::value::RawValue::from_string(
            "{ \"message\" : {\"a\":1.0, \"b\":\"\\u00e9\"} }".into(),
        )
        .unwrap();
        stored.push(store(&world, &event).await.to_string());
    }
    store(&world, &test_event(&other.id, "1")).await;
    let first = page(&world, &tenant, "limit=2").await;
    assert_eq!(ids(&first), stored[..2]);
    assert_eq!(first["hasMore"], true);
    let after = first["next"].as_str().unwrap();
    let rest = page(&world, &tenant, &format!("after={after}")).await;
    assert_eq!(ids(&rest), stored[2..]);
    assert_eq!(rest["hasMore"], false);
    let after = rest["next"].as_str().unwrap();
    let end = page(&world, &tenant, &format!("after={after}")).await;
    assert_eq!(
        end,
        json!({ "events": [], "next": after, "hasMore": false })
    );

    let whole = world.ask_for_text("/v1/events", tenant.key.expose()).await;
    for id in &stored {
        let sent = event_body(world.database(), id).await;
        assert!(whole.contains(&sent), "{sent} is not in {whole}");
        let path = format!("/v1/events/{id}");
        assert_eq!(world.ask_for_text(&path, tenant.key.expose()).await, sent);
        let answer = get(&world, &tenant, &path).await;
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_described("/v1/events/{eventId}", &answer.body);
        let answer = get(&world, &other, &path).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (404, &json!("NOT_FOUND"))
        );
    }
    let said = world.shell().run(&["event", "list", tenant.id.as_str()]);
    assert_eq!(said.said.trim_end(), whole, "the command says the same");
    let said = world.shell().run(&[
        "event",
        "list",
        tenant.id.as_str(),
        "--after",
        after,
        "--limit",
        "1",
    ]);
    assert_eq!(said.json(), end);
    let said = world
        .shell()
        .run(&["--output", "table", "event", "list", tenant.id.as_str()]);
    assert!(
        said.said.contains(&format!("5 events; next: {after}")),
        "{}",
        said.said
    );
    world.end().await;
}

#[tokio::test]
async fn everything_wrong_with_a_question_is_told() {
    let world = World::new().await;
    let tenant = world.stranger().await;
    let query = format!("limit=101&wait=31&after=x&subject={}", "x".repeat(4097));
    let answer = get(&world, &tenant, &format!("/v1/events?{query}")).await;
    assert_eq!(answer.status, 400);
    let issues = answer.body["details"]["issues"].as_array().unwrap();
    let paths: BTreeSet<_> = issues
        .iter()
        .map(|issue| issue["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, BTreeSet::from(["after", "limit", "subject", "wait"]));
    for (path, field) in [
        ("/v1/events/evt_1", "eventId"),
        ("/v1/subjects/amazon/1", "source"),
        ("/v1/subjects/apple/1?refresh=yes", "refresh"),
    ] {
        let answer = get(&world, &tenant, path).await;
        assert_eq!(answer.status, 400, "{path}");
        assert_eq!(answer.body["details"]["issues"][0]["path"], field);
    }
    world.end().await;
}

#[tokio::test]
async fn an_event_that_is_committed_late_is_read_after_those_that_were_read_before_it() {
    let world = World::new().await;
    let tenant = world.stranger().await;
    let template = store(&world, &test_event(&tenant.id, "1")).await;
    let late = EventId::mint(world.clock.now());
    let mut transaction = world.database().pool().begin().await.unwrap();
    sqlx::query(
        "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, stored_body)
         select tenant_lane(tenant_id), $1, tenant_id, source, 'late', event_type, platform_event, '{}', '\\x00' || convert_to($2, 'UTF8') from webhook_events where id = $3",
    )
    .bind(late.as_str())
    .bind(json!({ "eventId": late }).to_string())
    .bind(template.as_str())
    .execute(&mut *transaction)
    .await
    .unwrap();
    let soon = store(&world, &test_event(&tenant.id, "2")).await;
    let before = get(&world, &tenant, "/v1/events").await.body;
    assert_eq!(ids(&before), [template.as_str(), soon.as_str()]);
    transaction.commit().await.unwrap();
    let last = store(&world, &test_event(&tenant.id, "3")).await;
    let after = before["next"].as_str().unwrap();
    let then = get(&world, &tenant, &format!("/v1/events?after={after}"))
        .await
        .body;
    let behind: BTreeSet<_> = ids(&then).into_iter().collect();
    assert_eq!(behind, BTreeSet::from([late.as_str(), last.as_str()]));
    let again = get(&world, &tenant, "/v1/events").await.body;
    assert_eq!(
        ids(&again),
        [ids(&before), ids(&then)].concat(),
        "the order stays"
    );
    world.end().await;
}

#[tokio::test]
async fn readers_at_the_same_time_get_each_event_once_and_in_one_order() {
    const EVENTS: usize = 120;
    let world = World::new().await;
    let replica = world.replica().await;
    let tenant = world.stranger().await;
    let writers = (0..4).map(|writer| {
        let (world, tenant) = (&world, &tenant);
        async move {
            for number in 0..EVENTS / 4 {
                let event = test_event(&tenant.id, &format!("{writer}-{number}"));
                store(world, &event).await;
            }
        }
    });
    let readers = (0..4).map(|reader| {
        let (world, tenant) = (&world, &tenant);
        let address = match reader % 2 {
            0 => world.address(),
            _ => replica.address(),
        };
        async move {
            let (mut got, mut after) = (Vec::new(), String::new());
            while got.len() < EVENTS {
                let url = format!("http://{address}/v1/events?limit=7&wait=5&after={after}");
                let answer = world
                    .ask_at(&url, "GET", Some(tenant.key.expose()), None)
                    .await;
                assert_eq!(answer.status, 200, "{}", answer.body);
                got.extend(ids(&answer.body).iter().map(ToString::to_string));
                if let Some(next) = answer.body["next"].as_str() {
                    next.clone_into(&mut after);
                }
            }
            got
        }
    });
    let (_, read) = finished("each reader has every event", async {
        futures_util::join!(join_all(writers), join_all(readers))
    })
    .await;
    for reader in &read {
        assert_eq!(reader, &read[0]);
    }
    assert_eq!(read[0].iter().collect::<BTreeSet<_>>().len(), EVENTS);
    replica.stop(Duration::from_secs(5)).await;
    world.end().await;
}

#[tokio::test]
async fn a_history_from_before_the_first_read_is_read_from_its_oldest_event_on() {
    const EVENTS: usize = 1205;
    let world = World::new().await;
    let tenant = world.stranger().await;
    sqlx::query(
        "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, stored_body,
            received_at, subject_key)
         select tenant_lane($1), 'evt_01J9ZQ4T5W6X7Y8Z9A0B1C' || lpad((9999 - n)::text, 4, '0'), $1, 'google', n::text, 'test', 'google.test', '{}',
            '\\x00' || convert_to('{\"eventId\":\"' || n || '\"}', 'UTF8'), now() - interval '1 hour' + n * interval '1 second',
            case when n % 1000 = 0 then 'rare' end
         from generate_series(1, $2) n",
    )
    .bind(tenant.id.as_str())
    .bind(i64::try_from(EVENTS).unwrap())
    .execute(world.database().pool())
    .await
    .unwrap();
    let rare = get(&world, &tenant, "/v1/events?subject=rare").await.body;
    assert_eq!(ids(&rare), ["1000"], "{rare}");
    assert_eq!(rare["hasMore"], true, "not all are numbered yet");
    let mut all = Vec::new();
    let mut after = String::new();
    while all.len() < EVENTS {
        let answer = get(
            &world,
            &tenant,
            &format!("/v1/events?limit=100&after={after}"),
        )
        .await;
        all.extend(ids(&answer.body).iter().map(ToString::to_string));
        answer.body["next"].as_str().unwrap().clone_into(&mut after);
    }
    let expected: Vec<_> = (1..=EVENTS).map(|number| number.to_string()).collect();
    assert_eq!(all, expected);
    world.end().await;
}

#[tokio::test]
async fn a_cursor_outlives_its_event_and_is_refused_by_another_database() {
    let world = World::new().await;
    let tenant = world.stranger().await;
    let mut stored = Vec::new();
    for number in 1..=3 {
        stored.push(store(&world, &test_event(&tenant.id, &number.to_string())).await);
    }
    let first = page(&world, &tenant, "limit=2").await;
    let after = first["next"].as_str().unwrap().to_owned();
    let (number, _) = after.split_once('-').unwrap();
    let elsewhere = NO_EVENT.trim_start_matches("evt_");
    let ahead = format!("99-{elsewhere}");
    for foreign in [format!("{number}-{elsewhere}"), ahead] {
        let answer = get(&world, &tenant, &format!("/v1/events?after={foreign}")).await;
        assert_eq!(answer.status, 400, "{foreign}");
        assert_eq!(answer.body["details"]["issues"][0]["path"], "after");
        let said = world
            .shell()
            .run(&["event", "list", tenant.id.as_str(), "--after", &foreign]);
        assert_eq!(said.exit, 2, "{}", said.complained);
    }
    sqlx::query("delete from webhook_events where id = $1")
        .bind(stored[1].as_str())
        .execute(world.database().pool())
        .await
        .unwrap();
    let rest = page(&world, &tenant, &format!("after={after}")).await;
    assert_eq!(ids(&rest), [stored[2].as_str()]);
    assert_eq!(read_all(&world, &tenant, 1).await.len(), 2);
    world.end().await;
}

/// A request of its own, for a test that ends the world meanwhile.
fn wait_for_events(
    world: &World,
    tenant: &Tenant,
    query: &str,
) -> tokio::task::JoinHandle<(u16, Value)> {
    let url = world.url(&format!("/v1/events?{query}"));
    let key = tenant.key.expose().to_owned();
    tokio::spawn(async move {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(url).bearer_auth(key).send().await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.bytes().await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    })
}

#[tokio::test]
async fn a_waiting_request_is_answered_when_an_event_is_stored_by_this_process_or_another() {
    let shop = Shop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    let token = shop.subscribe(users());
    let waiting = wait_for_events(world, tenant, "wait=30");
    let here = shop.notify(4, &token).await;
    let (status, body) = finished("the event is read", waiting).await.unwrap();
    assert_eq!(
        (status, ids(&body)),
        (200, vec![here["eventId"].as_str().unwrap()])
    );
    let after = body["next"].as_str().unwrap();
    let waiting = wait_for_events(
        world,
        tenant,
        &format!("wait=30&after={after}&subject=a%20b"),
    );
    store(world, &test_event(&tenant.id, "of no subject")).await;
    let there = store(world, &about(&tenant.id, "a b", 1, None)).await;
    let (status, body) = finished("the other event is read", waiting).await.unwrap();
    assert_eq!((status, ids(&body)), (200, vec![there.as_str()]));
    shop.world.end().await;
}

#[tokio::test]
async fn a_waiting_request_ends_with_its_time() {
    let world = World::new().await;
    let tenant = world.stranger().await;
    let waiting = wait_for_events(&world, &tenant, "wait=30");
    wait_until("its time is over", async || {
        world.pass(HALF_A_MINUTE).await;
        waiting.is_finished()
    })
    .await;
    let (status, body) = waiting.await.unwrap();
    assert_eq!((status, ids(&body)), (200, vec![]));
    world.end().await;
}

#[tokio::test]
async fn a_tenant_may_have_sixteen_requests_wait_which_end_with_the_process() {
    let world = World::new().await;
    let tenant = world.stranger().await;
    let waiting: Vec<_> = (0..17)
        .map(|_| wait_for_events(&world, &tenant, "wait=30"))
        .collect();
    let (refused, _, waiting) = finished("one is refused", select_all(waiting)).await;
    let (status, body) = refused.unwrap();
    assert_eq!((status, &body["error"]), (429, &json!("RATE_LIMITED")));
    assert_eq!(body["details"]["retryAfterSeconds"], 1);
    let one_more = page(&world, &tenant, "wait=0").await;
    assert_eq!(ids(&one_more).len(), 0, "without waiting it is answered");
    world.end().await;
    for answered in finished("the others are answered", join_all(waiting)).await {
        let (status, body) = answered.unwrap();
        assert_eq!((status, ids(&body)), (200, vec![]));
    }
}

#[tokio::test]
async fn the_newest_state_of_a_purchase_is_read_with_the_event_it_is_from() {
    let world = World::new().await;
    let (tenant, other) = (world.stranger().await, world.stranger().await);
    let key = "a/b?c d%2Fé";
    let path = "/v1/subjects/google/a%2Fb%3Fc%20d%252F%C3%A9";
    let answer = get(&world, &tenant, path).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (404, &json!("NOT_FOUND"))
    );
    let undecided = store(&world, &about(&tenant.id, key, 1, None)).await;
    let answer = get(&world, &tenant, path).await;
    assert_described("/v1/subjects/{source}/{key}", &answer.body);
    assert_eq!(
        answer.body,
        json!({
            "source": "google",
            "subject": { "key": key, "productId": null, "type": "subscription", "current": true, "supersededBy": null },
            "state": null, "stateError": "store_unavailable", "asOf": null,
            "eventId": undecided, "sequence": 1, "lastSequence": 1,
        })
    );
    let newest = about(&tenant.id, key, 2, Some("2026-04-10T12:00:00.000Z"));
    let newest = store(&world, &newest).await;
    store(
        &world,
        &about(&tenant.id, key, 3, Some("2026-04-10T11:59:59.999Z")),
    )
    .await;
    store(&world, &about(&tenant.id, key, 4, None)).await;
    let answer = get(&world, &tenant, path).await;
    assert_described("/v1/subjects/{source}/{key}", &answer.body);
    assert_eq!(answer.body["state"]["productId"], "plan2");
    assert_eq!(answer.body["asOf"], "2026-04-10T12:00:00.000Z");
    assert_eq!(answer.body["stateError"], Value::Null);
    assert_eq!(answer.body["eventId"], newest.as_str());
    assert_eq!(
        (&answer.body["sequence"], &answer.body["lastSequence"]),
        (&json!(2), &json!(4))
    );
    let said = world
        .shell()
        .run(&["subject", "show", tenant.id.as_str(), "google", key]);
    assert_eq!(said.json(), answer.body);
    let said = world.shell().run(&[
        "--output",
        "table",
        "subject",
        "show",
        tenant.id.as_str(),
        "google",
        key,
    ]);
    assert!(
        said.said.contains(&format!("{newest}, number 2")),
        "{}",
        said.said
    );
    let said = world
        .shell()
        .run(&["subject", "show", tenant.id.as_str(), "google", "another"]);
    assert_eq!(said.exit, 1);
    // Of equal times, the later event's.
    let equal = about(&tenant.id, key, 5, Some("2026-04-10T12:00:00.000Z"));
    store(&world, &equal).await;
    let answer = get(&world, &tenant, path).await;
    assert_eq!(answer.body["state"]["productId"], "plan5");
    for (who, path) in [
        (&other, path),
        (&tenant, "/v1/subjects/apple/a%2Fb%3Fc%20d%252F%C3%A9"),
    ] {
        assert_eq!(get(&world, who, path).await.status, 404);
    }
    world.end().await;
}

#[tokio::test]
async fn the_store_is_asked_about_a_subject_when_that_is_asked_for() {
    let shop = Shop::open().await;
    let (world, tenant) = (&shop.world, &shop.tenant);
    let old = shop.subscribe(users());
    shop.notify(4, &old).await;
    let path = format!("/v1/subjects/google/{old}");
    let cancel = SubscriptionChange::Cancel {
        by: CanceledBy::default(),
    };
    shop.play().change_subscription(&old, &cancel).unwrap();
    let known = get(world, tenant, &path).await.body;
    assert_eq!(known["state"]["willRenew"], true, "{known}");
    let now = get(world, tenant, &format!("{path}?refresh=true"))
        .await
        .body;
    assert_described("/v1/subjects/{source}/{key}", &now);
    assert_eq!(now["state"]["willRenew"], false, "{now}");
    assert_eq!(
        (&now["eventId"], &now["sequence"], &now["lastSequence"]),
        (&Value::Null, &Value::Null, &json!(1))
    );
    assert_eq!(now["asOf"], now["state"]["asOf"]);

    let new = shop.play().replace_subscription(&old, yearly()).unwrap();
    shop.notify(4, &new.purchase_token).await;
    let now = get(world, tenant, &format!("{path}?refresh=true"))
        .await
        .body;
    assert_eq!(now["subject"]["key"], old, "{now}");
    assert_eq!(
        now["state"]["status"], "active",
        "of the plan that runs: {now}"
    );

    let unknown = get(world, tenant, "/v1/subjects/google/nothing?refresh=true").await;
    assert_described("/v1/subjects/{source}/{key}", &unknown.body);
    assert_eq!(
        (unknown.status, &unknown.body["error"]),
        (200, &json!("PURCHASE_NOT_FOUND"))
    );
    let stranger = world.stranger().await;
    let answer = get(world, &stranger, &format!("{path}?refresh=true")).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("CREDENTIALS_MISSING"))
    );

    let bought = world
        .simulator
        .apple()
        .create_transaction(NewTransaction::default())
        .unwrap();
    let path = format!("/v1/subjects/apple/{}", bought.original_transaction_id);
    assert_eq!(get(world, tenant, &path).await.status, 404);
    let now = get(world, tenant, &format!("{path}?refresh=true"))
        .await
        .body;
    assert_described("/v1/subjects/{source}/{key}", &now);
    assert_eq!(now["state"]["entitled"], true, "{now}");
    assert_eq!(now["lastSequence"], Value::Null);
    shop.world.end().await;
}

#[tokio::test]
async fn a_backend_has_one_of_its_events_delivered_again() {
    let world = World::new().await;
    let (tenant, other) = (world.stranger().await, world.stranger().await);
    let event = store(&world, &test_event(&tenant.id, "1")).await;
    let path = format!("/v1/events/{event}/redeliver");
    let redeliver =
        async |who: &Tenant| world.ask("POST", &path, Some(who.key.expose()), None).await;
    let answer = redeliver(&tenant).await;
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("INVALID_REQUEST"))
    );
    assert!(
        answer.body["message"]
            .as_str()
            .unwrap()
            .contains("no active callback")
    );
    for who in [&tenant, &other] {
        let (database, keyring) = (world.database(), world.keyring());
        set_callback(
            database,
            keyring,
            &who.id,
            "https://example.com/a",
            &secret("s"),
        )
        .await;
    }
    assert_eq!(redeliver(&other).await.status, 404);
    let answer = redeliver(&tenant).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let (delivery, by): (String, String) =
        sqlx::query_as("select id, requested_by from webhook_deliveries where event_id = $1")
            .bind(event.as_str())
            .fetch_one(world.database().pool())
            .await
            .unwrap();
    let expected = json!({
        "tenantId": tenant.id, "eventId": event, "deliveryId": delivery,
        "deliveries": [{ "callback": 1, "deliveryId": delivery }],
    });
    assert_eq!(answer.body, expected);
    assert!(by.starts_with("API key key_"), "{by}");
    world.end().await;
}

/// Where almost no tenant reads its events back, the planner must still find the few that have no number.
#[tokio::test]
async fn reading_on_costs_no_scan_of_the_history() {
    let fresh = fresh_database().await;
    let (reader, other) = (fresh.create_tenant().await, fresh.create_tenant().await);
    for tenant in [&reader, &other] {
        insert_history(&fresh.database, tenant).await;
    }
    sqlx::query("select number_events($1, 100000)")
        .bind(reader.as_str())
        .execute(fresh.database.pool())
        .await
        .unwrap();
    let mut connection = fresh.database.pool().sqlx_pool().acquire().await.unwrap();
    // As in the functions of the migration.
    for statement in [
        "vacuum analyze webhook_events",
        "set plan_cache_mode = force_custom_plan",
        "set enable_seqscan = off",
        "set enable_bitmapscan = off",
    ] {
        sqlx::query(statement)
            .execute(&mut *connection)
            .await
            .unwrap();
    }
    let plan: Vec<String> = sqlx::query_scalar(
        "explain (analyze, costs off, timing off) select from webhook_events where tenant_id = (select min(tenant_id) from event_feeds)
            and feed_position is null limit 1000",
    )
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    let plan = plan.join("\n");
    assert!(
        plan.contains("webhook_events_without_feed_position"),
        "{plan}"
    );
    assert!(!plan.contains("Rows Removed by Filter"), "{plan}");
}

async fn insert_history(database: &Database, tenant: &TenantId) {
    sqlx::query(
        "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event, decoded_payload, stored_body)
         select tenant_lane($1), 'evt_' || $1 || n, $1, 'google', n::text, 'test', 'google.test', '{}', '\\x007b7d' from generate_series(1, 5000) n",
    )
    .bind(tenant.as_str())
    .execute(database.pool())
    .await
    .unwrap();
}
