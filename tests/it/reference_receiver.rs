//! docs/integrate.md as a receiver: its statements are run on Postgres with the answers and events that Attesto really sends.

use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::simulator::state::apple::{NewTransaction, SimulatedEnvironment, TransactionChange};
use attesto::simulator::state::google::{NewSubscription, SubscriptionReplacement};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::apple_notifications::{Event, Shop};
use crate::google_state;
use crate::histories::reference_receiver::PageStatements;
use crate::world::attesto::World;

const DAY: Duration = Duration::from_hours(24);

/// A backend that does what the page says.
struct Backend<'a> {
    world: &'a World,
    page: PageStatements,
}

impl<'a> Backend<'a> {
    async fn new(world: &'a World) -> Self {
        let page = PageStatements::read();
        page.create_table(world.database()).await;
        Self { world, page }
    }

    async fn keep(&self, store: &str, message: &Value) {
        sqlx::query(AssertSqlSafe(self.page.upsert.clone()))
            .bind(store)
            .bind(message.to_string())
            .execute(self.world.database().pool())
            .await
            .unwrap();
    }

    /// Whether the purchase is this user's from now on.
    async fn bind(&self, store: &str, key: &str, user: &str) -> bool {
        let bound = sqlx::query(AssertSqlSafe(self.page.bind.clone()))
            .bind(store)
            .bind(key)
            .bind(user)
            .execute(self.world.database().pool())
            .await
            .unwrap();
        bound.rows_affected() == 1
    }

    /// What the user may use at a time.
    async fn gate(&self, user: &str, at: Timestamp) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(self.page.gate_at_time()))
            .bind(user)
            .bind(at.to_string())
            .fetch_all(self.world.database().pool())
            .await
            .unwrap()
    }

    async fn forget(&self) {
        sqlx::query("delete from purchases")
            .execute(self.world.database().pool())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_change_of_plan_in_play_keeps_the_customer_in() {
    let shop = google_state::Shop::open().await;
    let backend = Backend::new(&shop.world).await;
    let user = "user-7";
    let old = NewSubscription {
        obfuscated_external_account_id: Some(user.to_owned()),
        ..NewSubscription::default()
    };
    let old = shop.subscribe(old);
    let mut messages = vec![shop.verify_token(&old).await, shop.notify(4, &old).await];
    shop.world.clock.advance(DAY);
    let yearly = SubscriptionReplacement {
        product_id: Some("pro_yearly".to_owned()),
        ..SubscriptionReplacement::default()
    };
    let new = shop.play().replace_subscription(&old, yearly).unwrap();
    // The end of the old purchase comes before the beginning of the new one: its state is null.
    let early = shop.notify(13, &old).await;
    assert_eq!(early["state"], Value::Null);
    messages.push(early);
    messages.push(shop.notify(4, &new.purchase_token).await);
    messages.push(shop.verify_token(&old).await);

    let end = new.latest_expiry_time();
    let (last, first) = (end.minus(Duration::from_millis(1)), shop.world.clock.now());
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 2, 4, 1, 3]] {
        backend.forget().await;
        for at in order {
            backend.keep("google", &messages[at]).await;
        }
        for (at, expected) in [
            (first, vec!["pro_yearly"]),
            (last, vec!["pro_yearly"]),
            (end, vec![]),
        ] {
            assert_eq!(backend.gate(user, at).await, expected, "{order:?} {at}");
        }
        assert_eq!(backend.gate("user-8", first).await, [""; 0]);
    }
    shop.world.end().await;
}

#[tokio::test]
async fn one_signed_transaction_opens_the_gate_and_never_closes_it() {
    let shop = Shop::open().await;
    shop.report_here(true);
    let backend = Backend::new(&shop.world).await;
    let user = "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55";
    let production = NewTransaction {
        environment: SimulatedEnvironment::Production,
        ..NewTransaction::default()
    };
    let first = shop.apple().create_transaction(production).unwrap();
    let id = &first.transaction_id;
    let ask = async |transaction: &str| {
        let jws = shop.apple().sign_transaction(transaction).unwrap();
        let question = json!({ "signedTransaction": jws });
        let answer = shop.world.verify("apple", &shop.tenant, &question).await;
        assert_eq!(answer.body["state"]["basis"], "transaction");
        answer.body
    };
    // Before any event, and of no user yet.
    let bought = ask(id).await;
    backend.keep("apple", &bought).await;
    assert!(backend.bind("apple", id, user).await);
    assert!(!backend.bind("apple", id, "another").await);
    assert!(backend.bind("apple", id, user).await);
    let now = || shop.world.clock.now();
    assert_eq!(backend.gate(user, now()).await.len(), 1);

    // Renewed an hour early; then the app presents the period before it, signed anew.
    let first_end = first.expires_date.unwrap();
    let hour = Duration::from_hours(1);
    shop.world
        .clock
        .advance(first_end.minus(hour).duration_since(now()));
    let renewal = TransactionChange::Renew {};
    let second = shop.apple().change_transaction(id, &renewal).unwrap();
    let Event(renewed) = shop.push().await;
    shop.world.clock.advance(hour / 2);
    let running = ask(id).await;
    assert_eq!(running["state"]["entitled"], true);
    shop.world.clock.advance(DAY);
    let over = ask(id).await;
    assert_eq!(over["state"]["entitled"], false);
    let second_end = second.expires_date.unwrap();
    let last = second_end.minus(Duration::from_millis(1));
    for order in [
        [&bought, &renewed, &running, &over],
        [&over, &running, &renewed, &bought],
        [&running, &renewed, &over, &bought],
    ] {
        backend.forget().await;
        for message in order {
            backend.keep("apple", message).await;
        }
        assert!(backend.bind("apple", id, user).await);
        assert_eq!(backend.gate(user, last).await.len(), 1);
        assert!(backend.gate(user, second_end).await.is_empty());
    }

    // What the store says of the whole subscription shuts out.
    let refund = TransactionChange::Refund {
        reason: 0,
        percentage: None,
    };
    shop.apple()
        .change_transaction(&second.transaction_id, &refund)
        .unwrap();
    let Event(refunded) = shop.push().await;
    backend.keep("apple", &refunded).await;
    backend.keep("apple", &bought).await;
    assert!(backend.gate(user, now()).await.is_empty());
    shop.world.end().await;
}

#[tokio::test]
async fn of_two_states_of_one_moment_the_later_event_is_newer_and_an_answer_is_older() {
    let shop = google_state::Shop::open().await;
    let backend = Backend::new(&shop.world).await;
    let message = |sequence: Value, product: &str| {
        json!({
            "subject": { "key": "token" }, "appUserId": "user-7", "sequence": sequence,
            "state": { "basis": "store", "entitled": true, "entitledUntil": null, "productId": product,
                       "asOf": "2026-04-10T14:22:10.000Z" },
        })
    };
    let (answer, first, second) = (
        message(Value::Null, "answer"),
        message(json!(9), "first"),
        message(json!(10), "second"),
    );
    for order in [
        [&answer, &first, &second],
        [&second, &first, &answer],
        [&first, &second, &answer],
    ] {
        backend.forget().await;
        for message in order {
            backend.keep("google", message).await;
        }
        let found = backend.gate("user-7", shop.world.clock.now()).await;
        assert_eq!(found, ["second"]);
    }
    shop.world.end().await;
}
