//! `POST /v1/google/acknowledge` and `POST /v1/google/consume`, and their commands: what Google is told about a purchase.

use std::time::Duration;

use attesto::simulator::Fault;
use attesto::simulator::state::google::{
    NewProduct, NewSubscription, PlayRules, ProductChange, Resubscription, SubscriptionChange,
};
use attesto::stores::google::store::{AcknowledgePolicy, set_acknowledge_policy};
use serde_json::{Value, json};

use crate::google_state::{Shop, USER, users};
use crate::world::attesto::{APP, Answer, Tenant, World};

const DAY: Duration = Duration::from_hours(24);

/// Asks to `acknowledge` or `consume` as a tenant.
async fn ask_as(shop: &Shop, tenant: &Tenant, action: &str, token: &str, more: Value) -> Answer {
    let mut body = json!({ "packageName": APP, "purchaseToken": token });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let path = format!("/v1/google/{action}");
    let key = Some(tenant.key.expose());
    shop.world.ask("POST", &path, key, Some(&body)).await
}

async fn ask(shop: &Shop, action: &str, token: &str, more: Value) -> Value {
    let answer = ask_as(shop, &shop.tenant, action, token, more).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

/// How many calls Play got that change a purchase.
fn count_changes(shop: &Shop) -> usize {
    let calls = shop.world.simulator.recorded_requests();
    calls
        .iter()
        .filter(|call| call.method == "POST" && call.place == "google/play")
        .count()
}

fn buy_product(shop: &Shop, new: NewProduct) -> String {
    shop.play().buy_product(new).unwrap().purchase_token
}

fn users_product() -> NewProduct {
    NewProduct {
        obfuscated_external_account_id: Some(USER.to_owned()),
        ..NewProduct::default()
    }
}

#[tokio::test]
async fn an_acknowledged_purchase_is_not_refunded_and_another_one_is() {
    let shop = Shop::open().await;
    let rules = PlayRules {
        refund_unacknowledged: true,
        ..PlayRules::default()
    };
    shop.play().set_rules(rules).unwrap();
    let subscription = shop.subscribe(users());
    let product = buy_product(&shop, NewProduct::default());
    let (lost, lost_product) = (
        shop.subscribe(users()),
        buy_product(&shop, NewProduct::default()),
    );
    for (token, product_id, kind) in [
        (&subscription, "pro_monthly", "subscription"),
        (&product, "coins_100", "product"),
    ] {
        let answer = ask(&shop, "acknowledge", token, json!({})).await;
        let user = (kind == "subscription").then_some(USER);
        assert_eq!(
            answer,
            json!({
                "valid": true, "version": attesto::VERSION, "acknowledged": true, "alreadyDone": false,
                "appUserId": user, "appUserBound": false,
                "subject": {
                    "key": token, "productId": product_id, "type": kind, "current": true, "supersededBy": null,
                },
            })
        );
        let calls = count_changes(&shop);
        let again = ask(&shop, "acknowledge", token, json!({ "type": kind })).await;
        assert_eq!(
            (&again["acknowledged"], &again["alreadyDone"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(count_changes(&shop), calls, "Google was told a second time");
        let verified = shop.verify_token(token).await;
        assert_eq!(verified["purchase"]["acknowledgementState"], 1);
        assert_eq!(verified["state"]["acknowledgeBy"], Value::Null);
    }
    let owed = shop.verify_token(&lost).await;
    assert_eq!(
        owed["state"]["acknowledgeBy"],
        json!(shop.world.clock.now().plus(DAY * 3))
    );

    shop.world.pass(DAY * 3).await;
    assert_eq!(shop.verify_token(&lost).await["state"]["entitled"], true);
    shop.world.pass(Duration::from_millis(1)).await;
    for (token, entitled) in [
        (&subscription, true),
        (&product, true),
        (&lost, false),
        (&lost_product, false),
    ] {
        assert_eq!(
            shop.verify_token(token).await["state"]["entitled"],
            entitled,
            "{token}"
        );
    }
    for token in [&lost, &lost_product] {
        let refused = ask(&shop, "acknowledge", token, json!({})).await;
        assert_eq!(refused["error"], "PURCHASE_ENDED", "{refused}");
    }
    let published = shop.play().published_messages().len();
    assert_eq!(published, 4 + 3, "the sales, then 12 and two refunds");
    shop.world.end().await;
}

#[tokio::test]
async fn a_consumed_product_can_be_bought_again() {
    let shop = Shop::open().await;
    let rules = PlayRules {
        refuse_owned_products: true,
        ..PlayRules::default()
    };
    shop.play().set_rules(rules).unwrap();
    let token = buy_product(&shop, users_product());
    shop.play()
        .buy_product(users_product())
        .expect_err("it is owned");
    let acknowledged = ask(
        &shop,
        "acknowledge",
        &token,
        json!({ "productId": "coins_100" }),
    )
    .await;
    assert_eq!(acknowledged["alreadyDone"], false);
    shop.play()
        .buy_product(users_product())
        .expect_err("an acknowledgement changes nothing");
    let wanted = json!({ "type": "product", "productId": "coins_100", "expectedAppUserId": USER });
    for already_done in [false, true] {
        let answer = ask(&shop, "consume", &token, wanted.clone()).await;
        assert_eq!(
            answer,
            json!({
                "valid": true, "version": attesto::VERSION, "consumed": true, "alreadyDone": already_done, "appUserId": USER,
                "subject": {
                    "key": token, "productId": "coins_100", "type": "product", "current": true, "supersededBy": null,
                },
            })
        );
    }
    let verified = shop.verify_token(&token).await;
    assert_eq!(
        (&verified["status"], &verified["state"]["entitled"]),
        (&json!("consumed"), &json!(false))
    );
    // To consume is to acknowledge.
    assert_eq!(
        ask(&shop, "acknowledge", &token, json!({})).await["alreadyDone"],
        true
    );
    let again = buy_product(&shop, users_product());
    assert_eq!(
        ask(&shop, "consume", &again, json!({})).await["alreadyDone"],
        false
    );
    shop.world.end().await;
}

#[tokio::test]
async fn what_cannot_be_acknowledged_or_consumed_is_refused_and_google_is_not_told() {
    let shop = Shop::open().await;
    let pending = NewSubscription {
        pending: true,
        ..NewSubscription::default()
    };
    let pending = shop.subscribe(pending);
    let pending_product = buy_product(
        &shop,
        NewProduct {
            pending: true,
            ..NewProduct::default()
        },
    );
    let (running, over) = (shop.subscribe(users()), shop.subscribe(users()));
    let expire = SubscriptionChange::Expire {};
    shop.play().change_subscription(&over, &expire).unwrap();
    let (good, refunded, gone) = (
        buy_product(&shop, users_product()),
        buy_product(&shop, NewProduct::default()),
        buy_product(&shop, NewProduct::default()),
    );
    shop.play()
        .change_product(&refunded, &ProductChange::Refund {})
        .unwrap();
    let how = attesto::simulator::state::google::GoneReason::NoLongerValid;
    shop.play()
        .change_product(&gone, &ProductChange::Gone { how })
        .unwrap();
    let (none, other_app) = (json!({}), json!({ "packageName": "com.example.other" }));
    let (other_product, other_user) = (
        json!({ "productId": "gems" }),
        json!({ "expectedAppUserId": "user-8" }),
    );
    let unknown = "abcdefgh.unknown";
    #[rustfmt::skip]
    let cases = [
        ("acknowledge", &*pending, &none, "PURCHASE_PENDING", Value::Null),
        ("acknowledge", &pending_product, &none, "PURCHASE_PENDING", Value::Null),
        ("consume", &pending_product, &none, "PURCHASE_PENDING", Value::Null),
        ("acknowledge", &over, &none, "PURCHASE_ENDED", json!({ "status": "expired" })),
        ("acknowledge", &refunded, &none, "PURCHASE_ENDED", json!({ "status": "canceled" })),
        ("consume", &refunded, &none, "PURCHASE_ENDED", json!({ "status": "canceled" })),
        ("consume", &running, &none, "NOT_CONSUMABLE", Value::Null),
        ("acknowledge", &gone, &none, "PURCHASE_NOT_FOUND", json!({ "reason": "gone", "mayBeEarly": false })),
        ("acknowledge", unknown, &none, "PURCHASE_NOT_FOUND", json!({ "reason": "unknown", "mayBeEarly": true })),
        ("acknowledge", &running, &other_app, "PACKAGE_NAME_MISMATCH", json!({ "expected": APP })),
        ("consume", &good, &other_app, "PACKAGE_NAME_MISMATCH", json!({ "expected": APP })),
        ("acknowledge", &running, &other_product, "PRODUCT_ID_MISMATCH", json!({ "found": ["pro_monthly"] })),
        ("consume", &good, &other_product, "PRODUCT_ID_MISMATCH", json!({ "found": ["coins_100"] })),
        ("acknowledge", &running, &other_user, "APP_USER_MISMATCH", json!({ "reason": "another" })),
        ("consume", &good, &other_user, "APP_USER_MISMATCH", json!({ "reason": "another" })),
    ];
    for (action, token, more, error, details) in cases {
        let answer = ask(&shop, action, token, more.clone()).await;
        assert_eq!(
            (&answer["valid"], &answer["error"], &answer["details"]),
            (&json!(false), &json!(error), &details),
            "{action} {more}: {answer}"
        );
    }
    assert_eq!(count_changes(&shop), 0);
    // A pending purchase that is paid owes the acknowledgement from then on.
    let complete = SubscriptionChange::Complete {};
    shop.play()
        .change_subscription(&pending, &complete)
        .unwrap();
    assert_eq!(
        ask(&shop, "acknowledge", &pending, json!({})).await["alreadyDone"],
        false
    );
    shop.world.end().await;
}

#[tokio::test]
async fn another_tenant_cannot_acknowledge_or_consume() {
    let shop = Shop::open().await;
    let (subscription, product) = (
        shop.subscribe(users()),
        buy_product(&shop, NewProduct::default()),
    );
    let other = shop.world.stranger().await;
    shop.world.set_google_app(&other, "com.example.other").await;
    for (action, token) in [("acknowledge", &subscription), ("consume", &product)] {
        let refused = ask_as(&shop, &other, action, token, json!({})).await;
        assert_eq!(
            (
                refused.status,
                &refused.body["error"],
                &refused.body["details"]["expected"]
            ),
            (
                200,
                &json!("PACKAGE_NAME_MISMATCH"),
                &json!("com.example.other")
            )
        );
        // Google itself says that the token is of another app.
        let own_app = json!({ "packageName": "com.example.other" });
        let refused = ask_as(&shop, &other, action, token, own_app).await;
        assert_eq!(
            refused.body["error"], "PACKAGE_NAME_MISMATCH",
            "{}",
            refused.body
        );
    }
    assert_eq!(count_changes(&shop), 0);
    shop.world.end().await;
}

#[tokio::test]
async fn a_refusal_of_the_call_itself_is_no_verdict() {
    let shop = Shop::open().await;
    let token = buy_product(&shop, NewProduct::default());
    let fault = || Fault::at_place("google/play").for_id(&token).skip_calls(1);
    let details = |status: u16, code: &str| json!({ "status": status, "googleErrorCode": code });
    for (fault, status, error, expected) in [
        (
            fault().reason("permissionDenied"),
            502,
            "GOOGLE_API_ERROR",
            details(403, "permissionDenied"),
        ),
        (
            fault().reason("backendError").times(3),
            502,
            "GOOGLE_API_ERROR",
            details(503, "backendError"),
        ),
        (
            fault().reason("productNotOwnedByUser"),
            502,
            "GOOGLE_API_ERROR",
            details(400, "productNotOwnedByUser"),
        ),
        (
            fault().reason("rateLimitExceeded").retry_after(30),
            429,
            "RATE_LIMITED",
            json!({ "status": 429, "retryAfterSeconds": 30 }),
        ),
    ] {
        shop.world.simulator.add_fault(fault).unwrap();
        let product = json!({ "type": "product", "productId": "coins_100" });
        let answer = ask_as(&shop, &shop.tenant, "consume", &token, product).await;
        assert_eq!(
            (
                answer.status,
                &answer.body["error"],
                &answer.body["details"]
            ),
            (status, &json!(error), &expected)
        );
    }
    // Google refuses the call as if it did not know the purchase, which was verified before and is verified after it.
    for reason in ["invalid", "purchaseTokenDoesNotMatchProductId"] {
        shop.world
            .simulator
            .add_fault(fault().reason(reason))
            .unwrap();
        let product = json!({ "type": "product", "productId": "coins_100" });
        let answer = ask_as(&shop, &shop.tenant, "consume", &token, product).await;
        let found = (answer.status, &answer.body["error"]);
        assert_eq!(
            found,
            (502, &json!("GOOGLE_API_ERROR")),
            "{reason}: {}",
            answer.body
        );
    }
    assert!(!shop.play().find_product(&token).unwrap().consumed);
    // Two changes of one purchase at the same time are tried again at once.
    let busy = fault().reason("concurrentUpdate").status(409).times(2);
    shop.world.simulator.add_fault(busy).unwrap();
    let product = json!({ "type": "product", "productId": "coins_100" });
    assert_eq!(
        ask(&shop, "consume", &token, product).await["alreadyDone"],
        false
    );
    shop.world.end().await;
}

#[tokio::test]
async fn a_subscription_that_was_bought_again_in_play_is_bound_to_its_user() {
    let shop = Shop::open().await;
    let buy_again = |user: Option<&str>| {
        let old = shop.subscribe(NewSubscription {
            obfuscated_external_account_id: user.map(str::to_owned),
            ..NewSubscription::default()
        });
        let expire = SubscriptionChange::Expire {};
        shop.play().change_subscription(&old, &expire).unwrap();
        let again = Resubscription::default();
        shop.play().resubscribe(&old, again).unwrap().purchase_token
    };
    let bind = |user: &str| json!({ "externalAccountIds": { "obfuscatedAccountId": user } });
    for (earlier_user, more, bound_user) in [
        (Some(USER), json!({}), Some(USER)),
        (Some(USER), bind("user-8"), Some("user-8")),
        (None, bind("user-8"), Some("user-8")),
        (None, json!({}), None),
    ] {
        let token = buy_again(earlier_user);
        let answer = ask(&shop, "acknowledge", &token, more).await;
        assert_eq!(
            (&answer["appUserId"], &answer["appUserBound"]),
            (&json!(bound_user), &json!(bound_user.is_some())),
            "{answer}"
        );
        let play = shop.play();
        assert_eq!(
            play.find_subscription(&token).unwrap().account_id(),
            bound_user
        );
        // It is possible once.
        let late = ask(
            &shop,
            "acknowledge",
            &token,
            bind(bound_user.unwrap_or("user-9")),
        )
        .await;
        assert_eq!(
            (
                &late["alreadyDone"],
                &late["appUserBound"],
                &late["appUserId"]
            ),
            (&json!(true), &json!(false), &json!(bound_user))
        );
    }
    // A purchase that names its user stays that user's.
    let token = shop.subscribe(users());
    let refused = ask(&shop, "acknowledge", &token, bind("user-8")).await;
    assert_eq!(
        (&refused["error"], &refused["details"]["reason"]),
        (&json!("APP_USER_MISMATCH"), &json!("another"))
    );
    assert!(!shop.play().find_subscription(&token).unwrap().acknowledged);
    let own = ask(&shop, "acknowledge", &token, bind(USER)).await;
    assert_eq!(
        (&own["alreadyDone"], &own["appUserBound"]),
        (&json!(false), &json!(false))
    );
    shop.world.end().await;
}

/// The events that the tenant reads back, without those of the sales.
async fn due_events(shop: &Shop, tenant: &Tenant) -> Vec<Value> {
    let key = Some(tenant.key.expose());
    let answer = shop.world.ask("GET", "/v1/events", key, None).await;
    let mut events = answer.body["events"].as_array().unwrap().clone();
    events.retain(|event| event["event"] == "purchase.acknowledge_due");
    events
}

/// Sells and reports a subscription and a product.
async fn sell_both(shop: &Shop) -> [String; 2] {
    let subscription = shop.subscribe(users());
    let product = buy_product(shop, users_product());
    shop.notify(4, &subscription).await;
    let fields = json!({ "notificationType": 1, "purchaseToken": product, "sku": "coins_100" });
    shop.push("oneTimeProductNotification", fields).await;
    [subscription, product]
}

#[tokio::test]
async fn a_day_before_the_deadline_the_tenant_is_told_once() {
    let shop = Shop::open().await;
    let [subscription, product] = sell_both(&shop).await;
    let deadline = shop.world.clock.now().plus(DAY * 3);
    let (one, other) = (
        shop.world.acknowledgement_watch(),
        shop.world.acknowledgement_watch(),
    );
    shop.world.pass(Duration::from_hours(47)).await;
    assert_eq!(one.tick().await.unwrap().claimed, 0);
    shop.world.pass(Duration::from_hours(1)).await;
    // Each is told by one of two processes.
    let (first, second) = tokio::join!(one.tick(), other.tick());
    assert_eq!(first.unwrap().told + second.unwrap().told, 2);
    let events = due_events(&shop, &shop.tenant).await;
    assert_eq!(events.len(), 2, "{events:?}");
    for (token, product_id, kind) in [
        (&subscription, "pro_monthly", "subscription"),
        (&product, "coins_100", "product"),
    ] {
        let event = events
            .iter()
            .find(|event| event["subject"]["key"] == **token)
            .unwrap();
        let expected = json!({
            "packageName": APP, "purchaseToken": token, "productId": product_id, "acknowledgeBy": deadline,
        });
        assert_eq!(event["data"], expected);
        for (field, expected) in [
            ("reason", Value::Null),
            ("platformEvent", json!("attesto.acknowledge_due")),
            ("environment", json!("production")),
            ("appUserId", json!(USER)),
            ("sequence", json!(2)),
            ("raw", Value::Null),
        ] {
            assert_eq!(event[field], expected, "{field}");
        }
        assert_eq!(event["subject"]["type"], kind);
        assert_eq!(
            (
                &event["state"]["entitled"],
                &event["state"]["acknowledgeBy"]
            ),
            (&json!(true), &json!(deadline))
        );
    }
    // A repeated notification lists nothing again, before and after the deadline.
    for pass in [Duration::from_secs(1), DAY, DAY, DAY] {
        shop.world.pass(pass).await;
        shop.notify(4, &subscription).await;
        assert_eq!(one.tick().await.unwrap().claimed, 0, "{pass:?}");
    }
    let stranger = shop.world.stranger().await;
    assert_eq!(due_events(&shop, &stranger).await, Vec::<Value>::new());
    shop.world.end().await;
}

#[tokio::test]
async fn nothing_is_said_of_a_purchase_that_was_acknowledged_consumed_or_refunded() {
    let shop = Shop::open().await;
    let [acknowledged, consumed] = sell_both(&shop).await;
    let [refunded, refunded_product] = sell_both(&shop).await;
    ask(&shop, "acknowledge", &acknowledged, json!({})).await;
    ask(&shop, "consume", &consumed, json!({})).await;
    let revoke = SubscriptionChange::Revoke {};
    shop.play().change_subscription(&refunded, &revoke).unwrap();
    let refund = ProductChange::Refund {};
    shop.play()
        .change_product(&refunded_product, &refund)
        .unwrap();
    // Acknowledged when it was reported: not even asked about.
    let done = NewSubscription {
        acknowledged: true,
        ..NewSubscription::default()
    };
    let done = shop.subscribe(done);
    shop.notify(4, &done).await;
    shop.world.pass(DAY * 2 + Duration::from_secs(1)).await;
    let watch = shop.world.acknowledgement_watch();
    let round = watch.tick().await.unwrap();
    assert_eq!((round.claimed, round.told), (4, 0));
    assert_eq!(watch.tick().await.unwrap().claimed, 0);
    assert_eq!(due_events(&shop, &shop.tenant).await, Vec::<Value>::new());
    shop.world.end().await;
}

#[tokio::test]
async fn a_licence_tester_is_told_after_half_of_the_time_and_a_silent_google_is_asked_again() {
    let shop = Shop::open().await;
    let test = NewSubscription {
        test_purchase: true,
        ..users()
    };
    let token = shop.subscribe(test);
    shop.notify(4, &token).await;
    let watch = shop.world.acknowledgement_watch();
    let seconds = "select round(extract(epoch from next_check_at - created_at))::int from owed_acknowledgements";
    let seconds: i32 = sqlx::query_scalar(seconds)
        .fetch_one(shop.world.database().pool())
        .await
        .unwrap();
    assert_eq!(seconds, 90);
    let silent = Fault::at_place("google/play").status(503).times(0);
    shop.world.simulator.add_fault(silent).unwrap();
    shop.world.pass(Duration::from_secs(90)).await;
    let round = watch.tick().await.unwrap();
    assert_eq!((round.claimed, round.told), (1, 0));
    shop.world.simulator.clear_faults();
    shop.world.pass(Duration::from_secs(20)).await;
    assert_eq!(watch.tick().await.unwrap().told, 1);
    let events = due_events(&shop, &shop.tenant).await;
    assert_eq!(events[0]["environment"], "sandbox");

    // Where it stays silent until the deadline, nothing is known.
    let token = shop.subscribe(users());
    shop.notify(4, &token).await;
    let silent = Fault::at_place("google/play").status(503).times(0);
    shop.world.simulator.add_fault(silent).unwrap();
    shop.world.pass(DAY * 3 + Duration::from_secs(1)).await;
    assert_eq!(watch.tick().await.unwrap().claimed, 1);
    shop.world.simulator.clear_faults();
    shop.world.pass(Duration::from_hours(1)).await;
    assert_eq!(watch.tick().await.unwrap().claimed, 0);
    shop.world.end().await;
}

/// A shop whose tenant has its purchases acknowledged by verifications.
async fn acknowledging_shop() -> Shop {
    let shop = Shop::open().await;
    let policy = AcknowledgePolicy::Verify;
    set_acknowledge_policy(shop.world.database(), &shop.tenant.id, policy)
        .await
        .unwrap();
    shop
}

#[tokio::test]
async fn a_verification_acknowledges_where_the_tenant_has_chosen_that() {
    let shop = acknowledging_shop().await;
    let other = shop.world.tenant().await;
    let (subscription, product) = (
        shop.subscribe(users()),
        buy_product(&shop, NewProduct::default()),
    );
    for token in [&subscription, &product] {
        let asked = json!({ "packageName": APP, "purchaseToken": token });
        let answer = shop.world.verify("google", &other, &asked).await.body;
        assert_eq!(
            (
                &answer["acknowledgement"],
                &answer["purchase"]["acknowledgementState"]
            ),
            (&Value::Null, &json!(0))
        );
        // A "no" acknowledges nothing.
        let wrong =
            json!({ "packageName": APP, "purchaseToken": token, "expectedAppUserId": "user-8" });
        let refused = shop.world.verify("google", &shop.tenant, &wrong).await.body;
        assert_eq!(refused["error"], "APP_USER_MISMATCH");
        assert_eq!(count_changes(&shop), usize::from(token == &product));
        let answer = shop.verify_token(token).await;
        assert_eq!(answer["acknowledgement"], "done");
        assert_eq!(answer["purchase"]["acknowledgementState"], 1);
        assert_eq!(answer["purchase"]["acknowledgeBy"], Value::Null);
        assert_eq!(answer["state"]["acknowledgeBy"], Value::Null);
        assert_eq!(answer["state"]["entitled"], true);
        assert_eq!(
            shop.verify_token(token).await["acknowledgement"],
            Value::Null
        );
    }
    assert!(
        shop.play()
            .find_subscription(&subscription)
            .unwrap()
            .acknowledged
    );
    assert!(shop.play().find_product(&product).unwrap().acknowledged);
    assert_eq!(count_changes(&shop), 2);
    // Bought again in Play: Google takes the user with the acknowledgement.
    let expire = SubscriptionChange::Expire {};
    shop.play()
        .change_subscription(&subscription, &expire)
        .unwrap();
    let again = shop
        .play()
        .resubscribe(&subscription, Resubscription::default())
        .unwrap();
    let answer = shop.verify_token(&again.purchase_token).await;
    assert_eq!(
        (&answer["acknowledgement"], &answer["appUserId"]),
        (&json!("done"), &json!(USER))
    );
    let bound = shop
        .play()
        .find_subscription(&again.purchase_token)
        .unwrap();
    assert_eq!(bound.account_id(), Some(USER));
    let pending = buy_product(
        &shop,
        NewProduct {
            pending: true,
            ..NewProduct::default()
        },
    );
    assert_eq!(
        shop.verify_token(&pending).await["acknowledgement"],
        Value::Null
    );
    assert_eq!(count_changes(&shop), 3);
    shop.world.end().await;
}

#[tokio::test]
async fn an_acknowledgement_that_fails_leaves_the_verdict_and_is_tried_again() {
    let shop = acknowledging_shop().await;
    let (token, lost) = (shop.subscribe(users()), shop.subscribe(users()));
    let deny_second_call = |token: &str| {
        let denied = Fault::at_place("google/play").for_id(token).skip_calls(1);
        shop.world
            .simulator
            .add_fault(denied.reason("permissionDenied"))
            .unwrap();
    };
    let deadline = json!(shop.world.clock.now().plus(DAY * 3));
    for token in [&token, &lost] {
        deny_second_call(token);
        let answer = shop.verify_token(token).await;
        assert_eq!(answer["valid"], true);
        assert_eq!(
            (
                &answer["acknowledgement"],
                &answer["state"]["acknowledgeBy"]
            ),
            (&json!("retried"), &deadline)
        );
    }
    let watch = shop.world.acknowledgement_watch();
    deny_second_call(&lost);
    shop.world.pass(Duration::from_secs(16)).await;
    let round = watch.tick().await.unwrap();
    assert_eq!((round.claimed, round.told), (2, 0));
    let is_acknowledged = |token: &str| shop.play().find_subscription(token).unwrap().acknowledged;
    assert!(is_acknowledged(&token) && !is_acknowledged(&lost));
    // Near the deadline the tenant is told as well, and it is still tried.
    deny_second_call(&lost);
    shop.world.pass(DAY * 2).await;
    let round = watch.tick().await.unwrap();
    assert_eq!((round.claimed, round.told), (1, 1));
    let told = due_events(&shop, &shop.tenant).await;
    assert_eq!(told[0]["subject"]["key"], lost);
    shop.world.pass(Duration::from_mins(15)).await;
    let round = watch.tick().await.unwrap();
    assert_eq!((round.claimed, round.told), (1, 0));
    assert!(is_acknowledged(&lost));
    shop.world.pass(Duration::from_mins(15)).await;
    assert_eq!(watch.tick().await.unwrap().claimed, 0);
    shop.world.end().await;
}

#[tokio::test]
async fn a_command_chooses_who_acknowledges() {
    let world = World::new().await;
    let (tenant, shell) = (world.stranger().await, world.shell());
    let (id, file) = (
        tenant.id.as_str(),
        world.simulator.google_service_account().to_string(),
    );
    let set = async |more: &[&str]| {
        let words = [
            "google",
            "set-credentials",
            id,
            "--package-name",
            APP,
            "--service-account-path",
            "-",
        ];
        let ran = shell.run_async(&[&words, more].concat(), &file).await;
        assert_eq!(ran.exit, 0, "{ran:?}");
        shell.rows(&["google", "get-credentials", id])[0]["acknowledge"].clone()
    };
    assert_eq!(set(&[]).await, "never");
    assert_eq!(set(&["--acknowledge", "verify"]).await, "verify");
    // Left out, it stays.
    assert_eq!(set(&[]).await, "verify");
    assert_eq!(set(&["--acknowledge", "never"]).await, "never");
    world.end().await;
}

#[tokio::test]
async fn the_commands_do_what_the_routes_do() {
    // The commands' clock is the system's, and the simulated Google checks the time of their assertions.
    let world = World::today().await;
    let (tenant, play) = (world.tenant().await, world.simulator.google());
    let shell = world
        .shell()
        .set_all(world.simulator.environment_variables());
    let run = async |action: &str, token: &str, more: &[&str]| {
        let words = [
            "google",
            action,
            tenant.id.as_str(),
            "--purchase-token-path",
            "-",
        ];
        shell
            .run_async(&[&words, more].concat(), &format!("{token}\n"))
            .await
    };
    let subscription = play.buy_subscription(users()).unwrap().purchase_token;
    let product = play
        .buy_product(NewProduct::default())
        .unwrap()
        .purchase_token;
    for already_done in [false, true] {
        let answer = run("acknowledge", &subscription, &[])
            .await
            .rows()
            .remove(0);
        assert_eq!(
            (&answer["acknowledged"], &answer["alreadyDone"]),
            (&json!(true), &json!(already_done))
        );
        let answer = run("consume", &product, &["--product-id", "coins_100"])
            .await
            .rows()
            .remove(0);
        assert_eq!(
            (&answer["consumed"], &answer["alreadyDone"]),
            (&json!(true), &json!(already_done))
        );
    }
    let told = run("consume", &product, &["--output", "table"]).await;
    assert_eq!(told.said, "coins_100 was consumed before.\n");
    let refused = run("consume", &subscription, &[]).await;
    assert_eq!(refused.exit, 1);
    assert!(refused.said.contains("NOT_CONSUMABLE"), "{refused:?}");
    // Bought again in Play, and bound to a user.
    play.change_subscription(&subscription, &SubscriptionChange::Expire {})
        .unwrap();
    let again = play
        .resubscribe(&subscription, Resubscription::default())
        .unwrap();
    let bind = ["--bind-account-id", "user-8", "--output", "table"];
    let told = run("acknowledge", &again.purchase_token, &bind).await;
    assert_eq!(
        told.said, "Acknowledged pro_monthly. It is now the purchase of user-8.\n",
        "{told:?}"
    );
    world.end().await;
}
