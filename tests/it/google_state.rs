//! What a Google Play purchase is worth, in answers and events: the cases of plan changes, purchases made outside the app,
//! acknowledgements, refunds and fresh tokens.

use std::time::Duration;

use attesto::base::clock::Timestamp;
use attesto::simulator::Fault;
use attesto::simulator::control::GoogleScenario;
use attesto::simulator::state::google::{
    NewProduct, NewSubscription, ProductChange, SubscriptionChange, SubscriptionReplacement,
};
use serde_json::{Map, Value, json};

use crate::world::attesto::{APP, Answer, Tenant, World};
use crate::world::event::event_body;

pub(crate) const USER: &str = "user-7";
const DAY: Duration = Duration::from_hours(24);

/// A tenant whose app's notifications are pushed when a test says so.
pub(crate) struct Shop {
    pub(crate) world: World,
    pub(crate) tenant: Tenant,
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::open_with(&[]).await
    }

    /// With some settings, by the names of their variables.
    pub(crate) async fn open_with(settings: &[(&str, &str)]) -> Self {
        let world = World::with(settings).await;
        let tenant = world.tenant().await;
        let pusher = world.simulator.google().push_account();
        world.set_google_push(&tenant, None, Some(pusher)).await;
        world.push_google_manually(&tenant);
        Self { world, tenant }
    }

    pub(crate) fn play(&self) -> GoogleScenario {
        self.world.simulator.google()
    }

    fn now(&self) -> Timestamp {
        self.world.clock.now()
    }

    fn after(&self, time: Duration) -> Value {
        json!(self.now().plus(time))
    }

    /// Pushes a subscription's notification, and returns what the callback is sent.
    pub(crate) async fn notify(&self, number: u8, token: &str) -> Value {
        let fields = json!({ "notificationType": number, "purchaseToken": token });
        self.push("subscriptionNotification", fields).await
    }

    pub(crate) async fn push(&self, block: &str, fields: Value) -> Value {
        let message = self.play().publish_notification(APP, block, fields);
        self.push_message(&message.message_id).await
    }

    /// Pushes the newest message, and returns what the callback is sent.
    pub(crate) async fn push_newest(&self) -> Value {
        let newest = self.play().published_messages().pop().unwrap();
        self.push_message(&newest.message_id).await
    }

    async fn push_message(&self, id: &str) -> Value {
        let pushed = self.play().push_message(id).await.unwrap();
        assert_eq!(pushed.status, 200, "{}", pushed.body);
        let id = pushed.body["eventId"].as_str().unwrap();
        let body = event_body(self.world.database(), id).await;
        serde_json::from_str(&body).unwrap()
    }

    async fn verify(&self, token: &str, fields: &Value) -> Answer {
        let mut body = json!({ "packageName": APP, "purchaseToken": token });
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        self.world.verify("google", &self.tenant, &body).await
    }

    /// Asks about the token alone.
    pub(crate) async fn verify_token(&self, token: &str) -> Value {
        let answer = self.verify(token, &json!({})).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    pub(crate) fn subscribe(&self, new: NewSubscription) -> String {
        self.play().buy_subscription(new).unwrap().purchase_token
    }

    /// Sells a subscription that another one replaces: the tokens of the old and the new one.
    pub(crate) fn change_plan(
        &self,
        old: NewSubscription,
        new: SubscriptionReplacement,
    ) -> (String, String) {
        let old = self.subscribe(old);
        let new = self.play().replace_subscription(&old, new).unwrap();
        (old, new.purchase_token)
    }

    pub(crate) fn count_calls_at(&self, place: &str) -> usize {
        self.world.simulator.count_requests_at(place)
    }
}

pub(crate) fn users() -> NewSubscription {
    NewSubscription {
        obfuscated_external_account_id: Some(USER.to_owned()),
        ..NewSubscription::default()
    }
}

pub(crate) fn yearly() -> SubscriptionReplacement {
    SubscriptionReplacement {
        product_id: Some("pro_yearly".to_owned()),
        ..SubscriptionReplacement::default()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "called with `json!`")]
fn fields(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[tokio::test]
async fn g01_news_about_a_replaced_purchase_is_told_with_the_state_of_the_current_one() {
    let shop = Shop::open().await;
    let (old, new) = shop.change_plan(users(), yearly());
    let upgraded = shop.notify(4, &new).await;
    assert_eq!(upgraded["event"], "subscription.upgraded");
    let subject = json!({
        "key": old, "productId": "pro_yearly", "type": "subscription", "current": true, "supersededBy": null,
    });
    assert_eq!(upgraded["subject"], subject);
    let until = upgraded["state"]["entitledUntil"].clone();
    assert!(until.is_string());
    // 13 is what Google sends seconds later; the others have been seen too.
    for number in [13, 3, 5, 6, 12, 2] {
        let event = shop.notify(number, &old).await;
        assert_eq!(event["event"], "subscription.replaced", "{number}");
        assert_eq!(
            event["platformEvent"],
            format!("google.subscription.{number}")
        );
        assert_eq!(event["subject"]["key"], old);
        assert_eq!(event["subject"]["current"], false);
        assert_eq!(event["subject"]["supersededBy"], new);
        assert_eq!(event["state"]["status"], "active");
        assert_eq!(event["state"]["entitled"], true);
        assert_eq!(event["state"]["entitledUntil"], until);
        assert_eq!(event["state"]["productId"], "pro_yearly");
        assert_eq!(event["stateError"], Value::Null);
    }
    let voided =
        json!({ "purchaseToken": old, "orderId": "GPA.1", "productType": 1, "refundType": 1 });
    let event = shop.push("voidedPurchaseNotification", voided).await;
    assert_eq!(event["event"], "subscription.replaced");
    assert_eq!(event["state"]["entitled"], true);
    shop.world.end().await;
}

#[tokio::test]
async fn g01_a_replacement_that_is_not_known_yet_closes_no_gate() {
    let shop = Shop::open().await;
    let (old, new) = shop.change_plan(users(), yearly());
    let event = shop.notify(13, &old).await;
    assert_eq!(event["event"], "subscription.replaced");
    assert_eq!(event["subject"]["current"], false);
    assert_eq!(event["subject"]["supersededBy"], Value::Null);
    assert_eq!(
        (&event["state"], &event["stateError"]),
        (&Value::Null, &json!("replaced_by_unknown"))
    );
    let answer = shop.verify_token(&old).await;
    assert_eq!(
        (&answer["state"], &answer["stateError"]),
        (&Value::Null, &json!("replaced_by_unknown"))
    );
    let upgraded = shop.notify(4, &new).await;
    assert_eq!(upgraded["subject"]["key"], old);
    assert_eq!(upgraded["state"]["entitled"], true);
    assert_eq!(upgraded["sequence"], 2);
    let event = shop.notify(13, &old).await;
    assert_eq!(event["subject"]["supersededBy"], new);
    assert_eq!(event["state"]["entitled"], true);
    shop.world.end().await;
}

#[tokio::test]
async fn g02_the_answer_about_a_replaced_purchase_names_the_current_one() {
    let shop = Shop::open().await;
    let (old, new) = shop.change_plan(users(), yearly());
    // What is learned from an answer is as good as what a notification tells.
    let current = shop.verify_token(&new).await;
    assert_eq!(current["subject"]["key"], old);
    assert_eq!(current["subject"]["current"], true);
    let answer = shop.verify_token(&old).await;
    assert_eq!(answer["status"], "expired", "the purchase itself");
    assert_eq!(answer["state"]["status"], "replaced");
    assert_eq!(answer["state"]["entitled"], true);
    let until = &current["state"]["entitledUntil"];
    assert_eq!(answer["state"]["entitledUntil"], *until);
    assert_eq!(answer["state"]["productId"], "pro_yearly");
    assert_eq!(answer["subject"]["key"], old);
    assert_eq!(answer["subject"]["current"], false);
    assert_eq!(answer["subject"]["supersededBy"], new);
    // The newest of three, and not the next one.
    let third = shop
        .play()
        .replace_subscription(&new, SubscriptionReplacement::default())
        .unwrap();
    shop.notify(4, &third.purchase_token).await;
    let answer = shop.verify_token(&old).await;
    assert_eq!(answer["subject"]["supersededBy"], third.purchase_token);
    // A store that is silent about the newest is said to be.
    let silent = Fault::at_place("google/play").for_id(&third.purchase_token);
    shop.world
        .simulator
        .add_fault(silent.status(503).times(0))
        .unwrap();
    let answer = shop.verify_token(&old).await;
    assert_eq!(
        (&answer["state"], &answer["stateError"]),
        (&Value::Null, &json!("store_unavailable"))
    );
    shop.world.end().await;
}

#[tokio::test]
async fn g02_a_purchase_that_google_forgot_is_answered_with_the_one_that_replaced_it() {
    let shop = Shop::open().await;
    let (old, new) = shop.change_plan(users(), yearly());
    let current = shop.notify(4, &new).await;
    for (status, reason) in [
        (410, "subscriptionPurchaseNoLongerAvailable"),
        (404, "purchaseTokenNotFound"),
    ] {
        let forgotten = Fault::at_place("google/play").for_id(&old).reason(reason);
        shop.world
            .simulator
            .add_fault(forgotten.status(status).times(0))
            .unwrap();
        let expected = json!({ "expectedAppUserId": USER });
        let answer = shop.verify(&old, &expected).await.body;
        assert_eq!(answer["valid"], true, "{answer}");
        assert_eq!(answer["status"], "expired", "the purchase itself");
        assert_eq!(answer["state"]["status"], "replaced");
        assert_eq!(answer["state"]["entitled"], true);
        let until = &current["state"]["entitledUntil"];
        assert_eq!(answer["state"]["entitledUntil"], *until);
        assert_eq!(answer["subject"]["key"], old);
        assert_eq!(answer["subject"]["current"], false);
        assert_eq!(answer["subject"]["supersededBy"], new);
        assert_eq!(answer["purchase"]["purchaseToken"], old);
        assert_eq!(answer["purchase"]["rawResponse"], json!({}));
        let other = json!({ "expectedAppUserId": "user-8" });
        let answer = shop.verify(&old, &other).await.body;
        assert_eq!(answer["error"], "APP_USER_MISMATCH");
        shop.world.simulator.clear_faults();
    }
    shop.world.end().await;
}

#[tokio::test]
async fn g02_a_replacement_that_was_never_paid_changes_nothing() {
    let shop = Shop::open().await;
    let old = shop.subscribe(users());
    let pending = shop.subscribe(NewSubscription {
        pending: true,
        fields: fields(json!({ "linkedPurchaseToken": old })),
        ..users()
    });
    let answer = shop.verify_token(&pending).await;
    assert_eq!(answer["status"], "pending", "the purchase itself");
    assert_eq!(answer["subject"]["key"], old);
    assert_eq!(answer["subject"]["current"], false);
    assert_eq!(answer["state"]["entitled"], true);
    let event = shop.notify(2, &old).await;
    assert_eq!(event["event"], "subscription.renewed");
    assert_eq!(event["subject"]["current"], true);
    shop.play()
        .change_subscription(&pending, &SubscriptionChange::Decline {})
        .unwrap();
    let event = shop.notify(20, &pending).await;
    assert_eq!(event["event"], "subscription.pending_purchase_canceled");
    assert_eq!(event["subject"]["key"], old);
    assert_eq!(event["state"]["status"], "active");
    assert_eq!(event["state"]["entitled"], true);
    shop.world.end().await;
}

#[tokio::test]
async fn g03_a_change_at_the_next_renewal_is_no_upgrade() {
    let shop = Shop::open().await;
    let old = shop.subscribe(users());
    let until = shop.after(20 * DAY);
    let new = shop.subscribe(NewSubscription {
        fields: fields(json!({
            "linkedPurchaseToken": old,
            "lineItems": [
                { "productId": "pro", "expiryTime": until, "autoRenewingPlan": {},
                  "deferredItemReplacement": { "productId": "basic" } },
                { "productId": "basic", "autoRenewingPlan": { "autoRenewEnabled": true } },
            ],
        })),
        ..users()
    });
    let event = shop.notify(4, &new).await;
    assert_eq!(event["event"], "subscription.renewal_pref_changed");
    assert_eq!(event["reason"], "downgrade");
    assert_eq!(event["state"]["productId"], "pro");
    assert_eq!(event["state"]["renewsAs"], "basic");
    assert_eq!(event["state"]["entitledUntil"], until);
    // The scheduled product is asked about: the state is the whole purchase's.
    let answer = shop.verify(&new, &json!({ "productId": "basic" })).await;
    assert_eq!(answer.body["purchase"]["productId"], "basic");
    assert_eq!(answer.body["state"]["productId"], "pro");
    shop.world.end().await;
}

#[tokio::test]
async fn the_time_of_a_state_is_by_the_clock_that_all_processes_share() {
    let shop = Shop::open().await;
    let token = shop.subscribe(users());
    let database_time = async || {
        let now: time::OffsetDateTime = sqlx::query_scalar("select attesto_now()")
            .fetch_one(shop.world.database().pool())
            .await
            .unwrap();
        Timestamp::from(now)
    };
    let as_of = |told: &Value| Timestamp::parse(told["state"]["asOf"].as_str().unwrap()).unwrap();
    let before = database_time().await;
    // By then the difference of the clocks is measured anew.
    shop.world.clock.advance(Duration::from_mins(1));
    let event = shop.notify(2, &token).await;
    let time = as_of(&event);
    assert!(before <= time && time <= database_time().await, "{time}");
    assert!(time > shop.now().plus(DAY), "this process' clock is wrong");
    // A verification uses the difference as last measured.
    assert!(before <= as_of(&shop.verify_token(&token).await));
    let product = shop.play().buy_product(coins()).unwrap().purchase_token;
    assert!(before <= as_of(&shop.verify_token(&product).await));
    shop.world.end().await;
}

#[tokio::test]
async fn g04_the_same_plan_again_is_a_purchase() {
    let shop = Shop::open().await;
    let (_, new) = shop.change_plan(users(), SubscriptionReplacement::default());
    let event = shop.notify(4, &new).await;
    assert_eq!(event["event"], "subscription.purchased");
    assert_eq!(event["reason"], "resubscribe");
    shop.world.end().await;
}

#[tokio::test]
async fn g05_more_time_paid_in_advance_is_a_renewal() {
    let shop = Shop::open().await;
    let prepaid = NewSubscription {
        prepaid: true,
        ..users()
    };
    let (old, new) = shop.change_plan(prepaid, SubscriptionReplacement::default());
    let event = shop.notify(4, &new).await;
    assert_eq!(event["event"], "subscription.renewed");
    assert_eq!(event["reason"], "top_up");
    assert_eq!(event["subject"]["key"], old);
    assert_eq!(event["state"]["period"], "prepaid");
    shop.world.end().await;
}

#[tokio::test]
async fn g06_a_purchase_outside_the_app_belongs_to_the_user_of_the_lapsed_one() {
    let shop = Shop::open().await;
    let old = shop.subscribe(users());
    shop.play()
        .change_subscription(&old, &SubscriptionChange::Expire {})
        .unwrap();
    shop.world.clock.advance(DAY);
    let new = shop.subscribe(NewSubscription {
        fields: fields(json!({ "outOfAppPurchaseContext": {
            "expiredPurchaseToken": old,
            "expiredExternalAccountIdentifiers": { "obfuscatedExternalAccountId": USER },
        } })),
        ..NewSubscription::default()
    });
    let expected = json!({ "expectedAppUserId": USER });
    let check = |answer: &Value| {
        assert_eq!(answer["valid"], true, "{answer}");
        assert_eq!(answer["appUserId"], USER);
        assert_eq!(answer["appUserIdSource"], "earlier_purchase");
        assert_eq!(answer["subject"]["key"], old);
        assert_eq!(answer["subject"]["current"], true);
    };
    check(&shop.verify(&new, &expected).await.body);
    // Google forgets it as soon as the purchase is acknowledged.
    let forgotten = json!({
        "subscriptionState": "SUBSCRIPTION_STATE_ACTIVE",
        "acknowledgementState": "ACKNOWLEDGEMENT_STATE_ACKNOWLEDGED",
        "lineItems": [{ "productId": "pro", "expiryTime": shop.after(20 * DAY), "autoRenewingPlan": {} }],
    });
    let fault = Fault::at_place("google/play").for_id(&new);
    shop.world
        .simulator
        .add_fault(fault.body(&forgotten.to_string()).times(0))
        .unwrap();
    check(&shop.verify(&new, &expected).await.body);
    let event = shop.notify(2, &new).await;
    assert_eq!(event["appUserId"], USER);
    assert_eq!(event["appUserIdSource"], "earlier_purchase");
    assert_eq!(event["subject"]["key"], old);
    // The lapsed purchase leads to the one that followed it.
    let answer = shop.verify_token(&old).await;
    assert_eq!(answer["state"]["status"], "replaced");
    assert_eq!(answer["state"]["entitled"], true);
    assert_eq!(answer["subject"]["supersededBy"], new);
    shop.world.end().await;
}

#[tokio::test]
async fn g06_a_purchase_of_nobody_differs_from_one_of_another_user() {
    let shop = Shop::open().await;
    let expected = json!({ "expectedAppUserId": "user-8" });
    for (new, reason) in [(users(), "another"), (NewSubscription::default(), "none")] {
        let answer = shop.verify(&shop.subscribe(new), &expected).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body["error"], "APP_USER_MISMATCH");
        assert_eq!(answer.body["details"], json!({ "reason": reason }));
    }
    shop.world.end().await;
}

#[tokio::test]
async fn g07_a_short_prepaid_plan_is_acknowledged_within_half_its_length() {
    let shop = Shop::open().await;
    let token = shop.subscribe(NewSubscription {
        prepaid: true,
        expiry_time: Some(shop.now().plus(3 * DAY)),
        ..users()
    });
    let answer = shop.verify_token(&token).await;
    let by = shop.after(DAY * 3 / 2);
    assert_eq!(answer["state"]["acknowledgeBy"], by);
    assert_eq!(answer["purchase"]["acknowledgeBy"], by);
    shop.world.end().await;
}

#[tokio::test]
async fn g08_a_testers_purchase_is_acknowledged_within_minutes() {
    let shop = Shop::open().await;
    let token = shop.subscribe(NewSubscription {
        test_purchase: true,
        ..users()
    });
    let answer = shop.verify_token(&token).await;
    let by = shop.after(Duration::from_mins(3));
    assert_eq!(answer["state"]["acknowledgeBy"], by);
    assert_eq!(answer["purchase"]["acknowledgeBy"], by);
    shop.world.end().await;
}

#[tokio::test]
async fn g09_what_is_over_is_not_acknowledged() {
    let shop = Shop::open().await;
    let token = shop.subscribe(users());
    shop.play()
        .change_subscription(&token, &SubscriptionChange::Expire {})
        .unwrap();
    let answer = shop.verify_token(&token).await;
    assert_eq!(answer["purchase"]["acknowledgementState"], 0);
    assert_eq!(answer["state"]["status"], "expired");
    assert_eq!(answer["state"]["acknowledgeBy"], Value::Null);
    assert_eq!(answer["purchase"]["acknowledgeBy"], Value::Null);
    shop.world.end().await;
}

pub(crate) fn coins() -> NewProduct {
    NewProduct {
        product_id: Some("coins".to_owned()),
        obfuscated_external_account_id: Some(USER.to_owned()),
        ..NewProduct::default()
    }
}

#[tokio::test]
async fn g10_a_refunded_product_has_its_owner() {
    let shop = Shop::open().await;
    let token = shop.play().buy_product(coins()).unwrap().purchase_token;
    shop.play()
        .change_product(&token, &ProductChange::Refund {})
        .unwrap();
    let event = shop.push_newest().await;
    assert_eq!(event["event"], "product.refunded");
    assert_eq!(event["reason"], "full");
    assert_eq!(event["subject"]["key"], token);
    assert_eq!(event["subject"]["productId"], "coins");
    assert_eq!(event["appUserId"], USER);
    assert_eq!(event["state"]["status"], "refunded");
    assert_eq!(event["state"]["entitled"], false);
    shop.world.end().await;
}

#[tokio::test]
async fn g11_the_refund_of_a_part_leaves_the_rest() {
    let shop = Shop::open().await;
    let five = NewProduct {
        quantity: Some(5),
        ..coins()
    };
    let token = shop.play().buy_product(five).unwrap().purchase_token;
    shop.play()
        .change_product(&token, &ProductChange::RefundQuantity { quantity: 2 })
        .unwrap();
    for fields in [
        json!({}),
        json!({ "type": "product", "productId": "coins" }),
    ] {
        let state = shop.verify(&token, &fields).await.body["state"].clone();
        assert_eq!(state["quantity"], 5, "{fields}");
        assert_eq!(state["refundableQuantity"], 3, "{fields}");
        assert_eq!(state["entitled"], true, "{fields}");
    }
    let event = shop.push_newest().await;
    assert_eq!(event["event"], "product.refunded");
    assert_eq!(event["reason"], "partial");
    assert_eq!(event["state"]["entitled"], true);
    assert_eq!(event["state"]["refundableQuantity"], 3);
    shop.world.end().await;
}

#[tokio::test]
async fn g11_a_refund_review_has_its_purchase() {
    let shop = Shop::open().await;
    let sold = shop.play().buy_product(coins()).unwrap();
    let review = json!({ "version": "1.0", "orderId": sold.order_id(), "refundReason": 7 });
    let event = shop.push("pendingRefundReviewNotification", review).await;
    assert_eq!(event["event"], "product.refund_review");
    assert_eq!(event["subject"]["key"], sold.purchase_token);
    assert_eq!(event["subject"]["productId"], "coins");
    assert_eq!(event["appUserId"], USER);
    assert_eq!(event["state"]["entitled"], true);
    let subscription = shop.play().buy_subscription(users()).unwrap();
    let review = json!({ "version": "1.0", "orderId": subscription.latest_order_id() });
    let event = shop.push("pendingRefundReviewNotification", review).await;
    assert_eq!(event["subject"]["key"], subscription.purchase_token);
    assert_eq!(event["subject"]["type"], "subscription");
    shop.world.end().await;
}

#[tokio::test]
async fn g12_a_token_that_was_just_sold_is_asked_about_again() {
    let shop = Shop::open().await;
    let fresh = Fault::at_place("google/play").reason("purchaseTokenNotFound");
    shop.world
        .simulator
        .add_fault(fresh.until_after_sale(Duration::from_millis(500)))
        .unwrap();
    let token = shop.subscribe(users());
    assert_eq!(shop.verify_token(&token).await["valid"], true);
    let token = shop.play().buy_product(coins()).unwrap().purchase_token;
    assert_eq!(shop.verify_token(&token).await["valid"], true);

    shop.world.simulator.clear_requests();
    let unknown = "a-token-that-was-never-sold";
    let subscription = json!({ "type": "subscription" });
    let answer = shop.verify(unknown, &subscription).await.body;
    assert_eq!(answer["error"], "PURCHASE_NOT_FOUND");
    assert_eq!(
        answer["details"],
        json!({ "reason": "unknown", "mayBeEarly": true })
    );
    let three_tries_and_the_other_type = 4;
    let calls = shop.count_calls_at("google/play");
    assert_eq!(calls, three_tries_and_the_other_type);
    // A token that was seen before is not waited for.
    let answer = shop.verify(unknown, &subscription).await.body;
    assert_eq!(answer["details"]["mayBeEarly"], true);
    assert_eq!(shop.count_calls_at("google/play"), calls + 2);
    shop.world.clock.advance(Duration::from_mins(1));
    let answer = shop.verify(unknown, &subscription).await.body;
    assert_eq!(answer["details"]["mayBeEarly"], false);
    shop.world.end().await;
}

#[tokio::test]
async fn g13_an_unknown_package_is_an_error_of_the_settings() {
    let shop = Shop::open().await;
    let token = shop.subscribe(users());
    let fault = Fault::at_place("google/play").reason("notFound");
    shop.world.simulator.add_fault(fault.times(0)).unwrap();
    let answer = shop.verify(&token, &json!({})).await;
    assert_eq!(answer.status, 502, "{}", answer.body);
    assert_eq!(answer.body["error"], "GOOGLE_API_ERROR");
    shop.world.end().await;
}

#[tokio::test]
async fn g14_a_refused_account_costs_at_most_two_access_tokens() {
    let shop = Shop::open().await;
    let token = shop.subscribe(users());
    let fault = Fault::at_place("google/play").reason("permissionDenied");
    shop.world
        .simulator
        .add_fault(fault.status(401).times(0))
        .unwrap();
    for _ in 0..10 {
        let answer = shop.verify(&token, &json!({})).await;
        assert_eq!(answer.status, 502, "{}", answer.body);
        assert_eq!(answer.body["error"], "GOOGLE_API_ERROR");
    }
    assert_eq!(shop.count_calls_at("google/token"), 2);
    // As soon as the permission is given, the same token is good.
    shop.world.simulator.clear_faults();
    assert_eq!(shop.verify_token(&token).await["valid"], true);
    assert_eq!(shop.count_calls_at("google/token"), 2);
    shop.world.end().await;
}

#[tokio::test]
async fn g14_a_refused_access_token_is_not_taken_for_a_refused_account() {
    let shop = Shop::open().await;
    let token = shop.subscribe(users());
    let fault = Fault::at_place("google/play").reason("authError");
    shop.world
        .simulator
        .add_fault(fault.status(401).times(2))
        .unwrap();
    assert_eq!(shop.verify(&token, &json!({})).await.status, 502);
    assert_eq!(shop.count_calls_at("google/token"), 2);
    assert_eq!(shop.verify_token(&token).await["valid"], true);
    let calls = shop.count_calls_at("google/token");
    assert_eq!(calls, 3, "a token that Google refused is not used again");
    shop.world.end().await;
}

#[tokio::test]
async fn g15_a_token_is_enough() {
    let shop = Shop::open().await;
    let subscription = shop.subscribe(users());
    let product = shop.play().buy_product(coins()).unwrap().purchase_token;
    for (token, kind, product_id) in [
        (&subscription, "subscription", "pro_monthly"),
        (&product, "product", "coins"),
    ] {
        // A wrong type is no failure.
        for asked in [
            json!({}),
            json!({ "type": "subscription" }),
            json!({ "type": "product" }),
            json!({ "productId": product_id }),
            json!({ "type": "product", "productId": product_id }),
            json!({ "type": "subscription", "productId": product_id }),
        ] {
            let answer = shop.verify(token, &asked).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            assert_eq!(
                answer.body["valid"], true,
                "{kind} {asked}: {}",
                answer.body
            );
            assert_eq!(answer.body["subject"]["type"], kind, "{asked}");
            assert_eq!(answer.body["subject"]["productId"], product_id);
            assert_eq!(answer.body["state"]["entitled"], true, "{kind} {asked}");
            assert_eq!(answer.body["appUserId"], USER);
            assert_eq!(answer.body["appUserIdSource"], "purchase");
        }
    }
    let other = json!({ "productId": "gems" });
    for token in [&subscription, &product] {
        let answer = shop.verify(token, &other).await.body;
        assert_eq!(answer["error"], "PRODUCT_ID_MISMATCH");
    }
    shop.world.end().await;
}
