//! `firstSeen` in verify answers: the same purchase was verified before for another user.

use std::time::Duration;

use attesto::credentials::sealed_columns::FIRST_SEEN_KEY;
use attesto::simulator::state::apple::NewTransaction;
use attesto::stores::apple::account::EnvironmentChoice;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::google_state::{Shop, USER, coins, users, yearly};
use crate::world::attesto::{APP, APP_APPLE_ID, Tenant, World};
use crate::world::postgres::begin_without_idle_timeout;
use crate::world::wait::wait_until;

const OWN: &str = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";
const OTHER: &str = "0b9d3c1e-7a52-4c0f-9d8e-2f6a1b3c4d5e";

/// Turns it on or off, and waits until the service knows.
fn set_first_seen(world: &World, tenant: &Tenant, switch: &str) -> Value {
    let shell = world.shell();
    let done = shell.rows(&["tenant", "set-first-seen", tenant.id.as_str(), switch]);
    done.into_iter().next().expect("an answer")
}

/// Verifies a transaction for a user.
async fn verify_for(world: &World, tenant: &Tenant, id: &str, user: Option<&str>) -> Value {
    let body = json!({ "transactionId": id, "forAppUserId": user });
    let answer = world.verify("apple", tenant, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["valid"], true, "{}", answer.body);
    answer.body
}

fn buy(world: &World, user: Option<&str>) -> String {
    let new = NewTransaction {
        app_account_token: user.map(str::to_owned),
        ..NewTransaction::default()
    };
    let bought = world.simulator.apple().create_transaction(new);
    bought.expect("a purchase").transaction_id
}

/// Everything that is stored of first verifications, as text.
async fn stored_text(world: &World) -> Vec<String> {
    sqlx::query_scalar("select seen::text from first_seen_purchases seen order by first_seen_at")
        .fetch_all(world.database().pool())
        .await
        .expect("rows")
}

async fn execute(world: &World, statement: String) {
    sqlx::query(AssertSqlSafe(statement))
        .execute(world.database().pool())
        .await
        .expect("it runs");
}

/// What an answer says of the oldest stored verification. Its time is the database's.
async fn first_stored(world: &World) -> Value {
    let oldest = r#"select to_char(min(first_seen_at) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
        from first_seen_purchases"#;
    let at: String = sqlx::query_scalar(oldest)
        .fetch_one(world.database().pool())
        .await
        .expect("a time");
    json!({ "at": at, "sameUser": false })
}

#[tokio::test]
async fn a_purchase_that_another_user_presented_first_says_when() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    assert_eq!(
        set_first_seen(&world, &tenant, "on"),
        json!({ "id": tenant.id, "firstSeen": true })
    );
    let id = buy(&world, None);
    let answer = verify_for(&world, &tenant, &id, Some("Anna")).await;
    assert!(answer.get("firstSeen").is_none(), "{answer}");
    let first = first_stored(&world).await;
    world.pass(Duration::from_hours(30)).await;
    for (user, expected) in [
        (Some("Anna"), None),
        (Some("Bert"), Some(&first)),
        (Some("anna"), Some(&first)),
        (Some("Anna"), None),
        (None, None),
    ] {
        let answer = verify_for(&world, &tenant, &id, user).await;
        assert_eq!(answer.get("firstSeen"), expected, "{user:?}: {answer}");
        assert!(answer.get("firstSeenError").is_none(), "{answer}");
    }
    let rows = stored_text(&world).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    for hidden in ["Anna", &id] {
        assert!(!rows[0].contains(hidden), "{rows:?}");
    }
    // Turned on again, the tenant keeps its key.
    set_first_seen(&world, &tenant, "on");
    let answer = verify_for(&world, &tenant, &id, Some("Bert")).await;
    assert_eq!(answer["firstSeen"], first);
    world.end().await;
}

#[tokio::test]
async fn the_user_is_the_purchases_own_where_the_request_names_none() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    set_first_seen(&world, &tenant, "on");
    let id = buy(&world, Some(OWN));
    verify_for(&world, &tenant, &id, None).await;
    let first = first_stored(&world).await;
    // Users of the App Store are UUIDs, in any case.
    let same = verify_for(&world, &tenant, &id, Some(&OWN.to_uppercase())).await;
    assert!(same.get("firstSeen").is_none(), "{same}");
    let other = verify_for(&world, &tenant, &id, Some(OTHER)).await;
    assert_eq!(other["firstSeen"], first);
    assert_eq!(other["appUserId"], OWN, "the purchase's user is as ever");

    // A user that the purchase does not have is refused, and not remembered.
    let fresh = buy(&world, None);
    let body = json!({ "transactionId": fresh, "expectedAppUserId": OTHER });
    let answer = world.verify("apple", &tenant, &body).await;
    assert_eq!(answer.body["error"], "APP_USER_MISMATCH");
    let answer = verify_for(&world, &tenant, &fresh, Some(OWN)).await;
    assert!(answer.get("firstSeen").is_none(), "{answer}");
    world.end().await;
}

#[tokio::test]
async fn a_google_subscription_is_the_same_purchase_over_its_changes_of_plan() {
    let shop = Shop::open().await;
    set_first_seen(&shop.world, &shop.tenant, "on");
    let verify = async |token: &str, user: &str| {
        let body = json!({ "packageName": APP, "purchaseToken": token, "forAppUserId": user });
        let answer = shop.world.verify("google", &shop.tenant, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    };
    let token = shop.subscribe(users());
    assert!(verify(&token, "Anna").await.get("firstSeen").is_none());
    let first = first_stored(&shop.world).await;
    shop.world.pass(Duration::from_hours(1)).await;
    let newer = shop.play().replace_subscription(&token, yearly());
    let newer = newer.expect("a plan").purchase_token;
    let answer = verify(&newer, "Bert").await;
    assert_eq!(answer["subject"]["key"], token, "{answer}");
    assert_eq!(answer["appUserId"], USER);
    assert_eq!(answer["firstSeen"], first);
    assert!(verify(&newer, "Anna").await.get("firstSeen").is_none());
    // Another purchase is not the same.
    let other = shop.subscribe(users());
    assert!(verify(&other, "Bert").await.get("firstSeen").is_none());
    // A one-time product is one too.
    let product = shop.play().buy_product(coins()).expect("a product");
    let product = product.purchase_token;
    assert!(verify(&product, "Anna").await.get("firstSeen").is_none());
    assert!(verify(&product, "Bert").await["firstSeen"].is_object());
    shop.world.end().await;
}

#[tokio::test]
async fn a_tenant_that_has_not_asked_for_it_costs_no_query_and_stores_nothing() {
    let world = World::new().await;
    let (asks, silent) = (world.tenant().await, world.stranger().await);
    world
        .set_apple(&silent, EnvironmentChoice::Auto, Some(APP_APPLE_ID))
        .await;
    set_first_seen(&world, &asks, "on");
    let id = buy(&world, None);
    verify_for(&world, &silent, &id, Some("Anna")).await;
    assert_eq!(stored_text(&world).await.len(), 0);
    // Another tenant's users are not compared.
    verify_for(&world, &asks, &id, Some("Anna")).await;
    let answer = verify_for(&world, &silent, &id, Some("Bert")).await;
    assert!(answer.get("firstSeen").is_none(), "{answer}");

    // A comparison that fails leaves the verdict, and says that there was none.
    execute(
        &world,
        "alter table first_seen_purchases rename to away".into(),
    )
    .await;
    let answer = verify_for(&world, &silent, &id, Some("Bert")).await;
    assert!(answer.get("firstSeenError").is_none(), "{answer}");
    let answer = verify_for(&world, &asks, &id, Some("Bert")).await;
    assert_eq!(answer["firstSeenError"], "unavailable");
    assert!(answer.get("firstSeen").is_none(), "{answer}");
    execute(
        &world,
        "alter table away rename to first_seen_purchases".into(),
    )
    .await;
    let answer = verify_for(&world, &asks, &id, Some("Bert")).await;
    assert!(answer["firstSeen"].is_object(), "{answer}");
    world.end().await;
}

#[tokio::test]
async fn of_first_verifications_at_once_one_is_the_first() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    set_first_seen(&world, &tenant, "on");
    let id = buy(&world, None);
    let names: Vec<String> = (0..8).map(|number| format!("user-{number}")).collect();
    let answers = futures_util::future::join_all(
        names
            .iter()
            .map(|name| verify_for(&world, &tenant, &id, Some(name))),
    )
    .await;
    let first = answers.iter().filter(|it| it.get("firstSeen").is_none());
    assert_eq!(first.count(), 1, "{answers:?}");
    assert_eq!(stored_text(&world).await.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_change_is_known_to_a_running_service_and_turned_off_it_forgets() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let id = buy(&world, None);
    // From here on the service has the tenant's API key in its cache.
    verify_for(&world, &tenant, &id, Some("Anna")).await;
    set_first_seen(&world, &tenant, "on");
    wait_until("the service knows that it is on", async || {
        verify_for(&world, &tenant, &id, Some("Anna")).await;
        let answer = verify_for(&world, &tenant, &id, Some("Bert")).await;
        answer.get("firstSeen").is_some()
    })
    .await;
    assert_eq!(
        set_first_seen(&world, &tenant, "off"),
        json!({ "id": tenant.id, "firstSeen": false, "removed": 1 })
    );
    assert_eq!(stored_text(&world).await.len(), 0);
    verify_for(&world, &tenant, &id, Some("Anna")).await;
    assert_eq!(
        stored_text(&world).await.len(),
        0,
        "without its key nothing is stored"
    );
    world.end().await;
}

#[tokio::test]
async fn a_verification_that_is_under_way_writes_nothing_after_it_was_turned_off() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    set_first_seen(&world, &tenant, "on");
    let id = buy(&world, None);
    // What is written waits for this row, behind the look at the key.
    for statement in [
        "create table gate (is_open boolean)",
        "insert into gate values (true)",
        "create function wait_for_gate() returns trigger language plpgsql as $$ \
             begin perform 1 from gate for update; return new; end $$",
        "create trigger gate before insert on first_seen_purchases for each row execute function wait_for_gate()",
    ] {
        execute(&world, statement.into()).await;
    }
    let pool = world.database().pool();
    let mut gate = begin_without_idle_timeout(world.database()).await;
    sqlx::query("select from gate for update")
        .execute(&mut *gate)
        .await
        .expect("it is locked");
    let waiting = async |statement: &'static str| {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity \
              where datname = current_database() and wait_event_type = 'Lock' and query like $1",
        )
        .bind(statement)
        .fetch_one(pool)
        .await
        .expect("a count");
        waiting > 0
    };
    let verifying = verify_for(&world, &tenant, &id, Some("Anna"));
    let turning_off = async {
        wait_until("the verification waits", async || {
            waiting("%into first_seen_purchases%").await
        })
        .await;
        let shell = world.shell();
        let words = ["tenant", "set-first-seen", tenant.id.as_str(), "off"];
        let off = shell.run_async(&words, "");
        let opening = async {
            wait_until("turning it off waits, or is done", async || {
                let keys: i64 = sqlx::query_scalar("select count(*) from first_seen_keys")
                    .fetch_one(pool)
                    .await
                    .expect("a count");
                keys == 0 || waiting("%delete from first_seen_keys%").await
            })
            .await;
            gate.commit().await.expect("the gate opens");
        };
        let (off, ()) = tokio::join!(off, opening);
        assert_eq!(off.exit, 0, "{off:?}");
    };
    tokio::join!(verifying, turning_off);
    assert_eq!(stored_text(&world).await, Vec::<String>::new());
    world.end().await;
}

#[tokio::test]
async fn a_rotation_of_the_encryption_key_changes_no_hash() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    set_first_seen(&world, &tenant, "on");
    let id = buy(&world, None);
    verify_for(&world, &tenant, &id, Some("Anna")).await;
    let sealed = async || -> Vec<u8> {
        sqlx::query_scalar("select key_enc from first_seen_keys")
            .fetch_one(world.database().pool())
            .await
            .expect("a key")
    };
    let before = sealed().await;
    let place = FIRST_SEEN_KEY.context_for(tenant.id.as_str());
    let opened = world.keyring().open(place, &before).expect("it opens");
    let again = world.keyring().seal(place, opened.expose_secret());
    sqlx::query("update first_seen_keys set key_enc = $1")
        .bind(&again)
        .execute(world.database().pool())
        .await
        .expect("it is written");
    assert_ne!(sealed().await, before);
    let answer = verify_for(&world, &tenant, &id, Some("Bert")).await;
    assert!(answer["firstSeen"].is_object(), "{answer}");
    world.end().await;
}

#[tokio::test]
async fn what_was_not_verified_for_the_retention_period_is_forgotten() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    set_first_seen(&world, &tenant, "on");
    let (kept, gone) = (buy(&world, None), buy(&world, None));
    for id in [&kept, &gone] {
        verify_for(&world, &tenant, id, Some("Anna")).await;
    }
    let aged = "update first_seen_purchases set first_seen_at = first_seen_at - interval '399 days', \
                last_seen_at = last_seen_at - interval '399 days'";
    execute(&world, aged.into()).await;
    let first = first_stored(&world).await;
    verify_for(&world, &tenant, &kept, Some("Anna")).await;
    assert_eq!(world.run_job("retention").await["firstSeen"], 0);
    world.pass(Duration::from_hours(24 + 1)).await;
    assert_eq!(world.run_job("retention").await["firstSeen"], 1);
    let answer = verify_for(&world, &tenant, &kept, Some("Bert")).await;
    assert_eq!(answer["firstSeen"], first);
    let answer = verify_for(&world, &tenant, &gone, Some("Bert")).await;
    assert!(answer.get("firstSeen").is_none(), "{answer}");
    world.end().await;
}
