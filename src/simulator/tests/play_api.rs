use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    IDENTITY, TestSimulator, google_assertion, google_assertion_signed_by, send, start_simulator,
    with,
};
use crate::simulator::Fault;
use crate::simulator::identity::SimulatedServiceAccount;
use crate::simulator::state::google::{
    Resubscription, SimulatedSubscription, SubscriptionReplacement,
};

const APP: &str = "com.example.app";
const DAY: Duration = Duration::from_hours(24);

fn subscription_path(token: &str) -> String {
    format!("{APP}/purchases/subscriptionsv2/tokens/{token}")
}

fn product_path(token: &str) -> String {
    format!("{APP}/purchases/products/coins_100/tokens/{token}")
}

async fn error_reason(world: &TestSimulator, path: &str) -> (u16, String) {
    let (status, body) = world.get_play(path).await;
    let error = &body["error"];
    assert_eq!(error["code"], status);
    (
        status,
        error["errors"][0]["reason"].as_str().unwrap().to_owned(),
    )
}

#[tokio::test]
async fn a_subscription_has_the_fields_of_googles_answer() {
    let world = start_simulator().await;
    let token = world
        .subscribe(json!({
            "addOns": [{"productId": "storage", "prepaid": true}],
            "obfuscatedExternalAccountId": "user-7",
            "testPurchase": true,
        }))
        .purchase_token;
    let path = subscription_path(&token);
    let (_, answer) = world.get_play(&path).await;
    let item = &answer["lineItems"][0];
    let ids = &answer["externalAccountIdentifiers"];
    #[rustfmt::skip]
    let cases = [
        (&answer["kind"], json!("androidpublisher#subscriptionPurchaseV2")),
        (&answer["subscriptionState"], json!("SUBSCRIPTION_STATE_ACTIVE")),
        (&answer["acknowledgementState"], json!("ACKNOWLEDGEMENT_STATE_PENDING")),
        (&answer["startTime"], json!("2026-04-10T12:00:00Z")),
        (&answer["testPurchase"], json!({})),
        (&ids["obfuscatedExternalAccountId"], json!("user-7")),
        (&item["productId"], json!("pro_monthly")),
        (&item["expiryTime"], json!("2026-05-10T12:00:00Z")),
        (&item["autoRenewingPlan"]["autoRenewEnabled"], json!(true)),
        (&item["autoRenewingPlan"]["recurringPrice"], json!({"currencyCode": "USD", "units": "4", "nanos": 990_000_000})),
        (&answer["lineItems"][1]["productId"], json!("storage")),
    ];
    for (found, expected) in cases {
        assert_eq!(*found, expected);
    }
    assert!(answer["lineItems"][1]["prepaidPlan"].is_object());

    world
        .change_subscription(&token, json!({"action": "cancel"}))
        .unwrap();
    let (_, answer) = world.get_play(&path).await;
    assert_eq!(answer["subscriptionState"], "SUBSCRIPTION_STATE_CANCELED");
    assert!(answer["canceledStateContext"]["userInitiatedCancellation"].is_object());
    let plan = &answer["lineItems"][0]["autoRenewingPlan"];
    assert!(
        plan.is_object() && plan.get("autoRenewEnabled").is_none(),
        "absent, not false"
    );
}

#[tokio::test]
async fn a_product_is_acknowledged_consumed_and_refunded() {
    let world = start_simulator().await;
    let token = world.buy_product(json!({"quantity": 2})).purchase_token;
    let path = product_path(&token);
    let (_, answer) = world.get_play(&path).await;
    for (name, value) in [
        ("purchaseTimeMillis", json!("1775822400000")),
        ("purchaseState", json!(0)),
        ("acknowledgementState", json!(0)),
        ("quantity", json!(2)),
    ] {
        assert_eq!(answer[name], value, "{name}");
    }
    let access = world.access_token().await;
    for (method, status, field) in [
        ("acknowledge", 204, "acknowledgementState"),
        ("consume", 204, "consumptionState"),
        ("consume", 400, "consumptionState"),
    ] {
        let request = world.play_request(Method::POST, &format!("{path}:{method}"), &access);
        assert_eq!(send(request).await.0, status);
        assert_eq!(world.get_play(&path).await.1[field], 1);
    }
    world.change_product(&token, json!({"action": "refund"}));
    assert_eq!(world.get_play(&path).await.1["purchaseState"], 1);

    let terse = world.buy_product(json!({"terse": true, "pending": true}));
    let (_, answer) = world.get_play(&product_path(&terse.purchase_token)).await;
    assert_eq!(answer["purchaseState"], 2);
    assert!(answer.get("purchaseToken").is_none());
}

#[tokio::test]
async fn a_wrong_assertion_gets_no_access_token() {
    let world = start_simulator().await;
    let now = world.clock.now().as_secs();
    let good = world.google_claims();
    let changed = |name: &str, value: Value| google_assertion(&with(&good, name, value));
    let own = IDENTITY.service_account();
    let other = SimulatedServiceAccount::new("other");
    let genuine = google_assertion(&good);
    #[rustfmt::skip]
    let cases = [
        ("x".to_owned(), "three parts"),
        (genuine[..genuine.len() - 4].to_owned(), "Signature"),
        (changed("iss", json!("stranger@example.com")), "not found"),
        (changed("scope", json!("openid")), "scope"),
        (changed("aud", json!("https://example.com/token")), "aud"),
        (changed("exp", json!(now)), "short-lived"),
        (changed("exp", json!(now + 3601)), "short-lived"),
        (changed("iat", json!(now + 120)), "short-lived"),
        (google_assertion_signed_by(&other.private_key, &own.private_key_id, &good), "Signature"),
        (google_assertion_signed_by(&own.private_key, "another", &good), "Signature"),
    ];
    for (assertion, reason) in cases {
        let (status, body) = world.request_access_token(&assertion).await;
        assert_eq!(
            (status, &body["error"]),
            (400, &json!("invalid_grant")),
            "{reason}"
        );
        assert!(
            body["error_description"].as_str().unwrap().contains(reason),
            "{body}"
        );
    }
    let real = changed("aud", json!("https://oauth2.googleapis.com/token"));
    assert_eq!(world.request_access_token(&real).await.0, 200);
    let url = world.simulator.google_token_url();
    let (_, body) = send(world.client.post(url).body("grant_type=password")).await;
    assert_eq!(body["error"], "unsupported_grant_type");
}

#[tokio::test]
async fn an_access_token_lasts_an_hour() {
    let world = start_simulator().await;
    let path = subscription_path(&world.subscribe(json!({})).purchase_token);
    let get = async |token: &str| send(world.play_request(Method::GET, &path, token)).await.0;
    let token = world.access_token().await;
    world.clock.advance(Duration::from_mins(59));
    assert_eq!(get(&token).await, 200);
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(get(&token).await, 401);
    assert!(world.last_remark().contains("expired"));
    assert_eq!(get("ya29.made.up").await, 401);
    let token = world.access_token().await;
    assert_eq!(get(&token).await, 200);
    world.google.expire_access_tokens();
    assert_eq!(get(&token).await, 401);
}

#[tokio::test]
async fn a_token_without_a_purchase_has_its_own_error() {
    let world = start_simulator().await;
    let subscription = world.subscribe(json!({})).purchase_token;
    let product = world.buy_product(json!({})).purchase_token;
    let gone = |how: &str| {
        let token = world.subscribe(json!({})).purchase_token;
        world
            .change_subscription(&token, json!({"action": "gone", "how": how}))
            .unwrap();
        subscription_path(&token)
    };
    let gone_product = world.buy_product(json!({})).purchase_token;
    world.change_product(&gone_product, json!({"action": "gone"}));
    #[rustfmt::skip]
    let cases = [
        (subscription_path("never.seen.before"), 404, "purchaseTokenNotFound"),
        (product_path("never.seen.before"), 404, "purchaseTokenNotFound"),
        (subscription_path("short"), 400, "invalid"),
        (subscription_path("with%20a%20space"), 400, "invalid"),
        (subscription_path(&product), 400, "subscriptionInvalidArgument"),
        (product_path(&subscription), 400, "subscriptionInvalidArgument"),
        (subscription_path(&subscription).replace(APP, "com.example.other"), 400, "purchaseTokenDoesNotMatchPackageName"),
        (product_path(&product).replace("coins_100", "coins_500"), 400, "purchaseTokenDoesNotMatchProductId"),
        (gone("no-longer-valid"), 410, "purchaseTokenNoLongerValid"),
        (gone("no-longer-available"), 410, "subscriptionPurchaseNoLongerAvailable"),
        (gone("expired-too-long"), 400, "failedPrecondition"),
        (product_path(&gone_product), 410, "purchaseTokenNoLongerValid"),
    ];
    for (path, status, reason) in cases {
        let found = error_reason(&world, &path).await;
        assert_eq!(found, (status, reason.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_subscription_is_forgotten_sixty_days_after_its_end() {
    let world = start_simulator().await;
    let path = subscription_path(&world.subscribe(json!({})).purchase_token);
    world.clock.advance(30 * DAY);
    let (_, answer) = world.get_play(&path).await;
    assert_eq!(answer["subscriptionState"], "SUBSCRIPTION_STATE_EXPIRED");
    world.clock.advance(60 * DAY);
    assert_eq!(world.get_play(&path).await.0, 200);
    world.clock.advance(Duration::from_millis(1));
    let forgotten = (400, "failedPrecondition".to_owned());
    assert_eq!(error_reason(&world, &path).await, forgotten);
}

#[tokio::test]
async fn service_accounts_lose_their_rights_and_get_them_back() {
    let world = start_simulator().await;
    let path = subscription_path(&world.subscribe(json!({})).purchase_token);
    let own = &IDENTITY.service_account().client_email;
    let act = async |action: &str| {
        let path = format!("/google/service-accounts/{own}/{action}");
        assert_eq!(world.call_control("POST", &path, "").await.0, 200);
    };
    act("deny").await;
    let denied = (403, "permissionDenied".to_owned());
    assert_eq!(error_reason(&world, &path).await, denied);
    act("allow").await;
    assert_eq!(world.get_play(&path).await.0, 200);
    let assertion = google_assertion(&world.google_claims());
    act("disable").await;
    let (_, refused) = world.request_access_token(&assertion).await;
    assert_eq!(refused["error"], "invalid_grant");
    act("enable").await;
    assert_eq!(world.request_access_token(&assertion).await.0, 200);

    let second = world.google.create_service_account("second").unwrap();
    let claims = with(&world.google_claims(), "iss", second.client_email);
    let assertion =
        google_assertion_signed_by(&second.private_key, &second.private_key_id, &claims);
    assert_eq!(world.request_access_token(&assertion).await.0, 200);
    assert!(world.google.create_service_account("second").is_err());
    assert!(world.google.create_service_account("No Name").is_err());
    assert!(
        world
            .google
            .set_account_denied("stranger@example.com", true)
            .is_err()
    );
}

#[tokio::test]
async fn a_fault_answers_with_googles_error() {
    let world = start_simulator().await;
    let path = subscription_path(&world.subscribe(json!({})).purchase_token);
    let token = world.access_token().await;
    for (reason, status) in [
        ("permissionDenied", 403),
        ("quotaExceeded", 403),
        ("rateLimitExceeded", 429),
        ("applicationNotFound", 404),
        ("backendError", 503),
    ] {
        world.fail(
            Fault::at_place("google/play")
                .reason(reason)
                .retry_after(12),
        );
        let request = world.play_request(Method::GET, &path, &token);
        let answer = request.send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["retry-after"]),
            (status, &"12".parse().unwrap())
        );
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["errors"][0]["reason"], reason);
    }
    let assertion = google_assertion(&world.google_claims());
    #[rustfmt::skip]
    let cases = [
        (Fault::at_place("google/token").status(502), 502),
        (Fault::at_place("google/token").reason("invalid_grant"), 400),
    ];
    for (fault, status) in cases {
        world.fail(fault);
        assert_eq!(world.request_access_token(&assertion).await.0, status);
    }
    assert_eq!(world.get_play(&path).await.0, 200);
    assert_eq!(world.simulator.count_requests_at("google/play"), 6);
}

#[tokio::test]
async fn googles_keys_are_published_with_a_lifetime() {
    let world = start_simulator().await;
    let url = world.simulator.google_jwks_url();
    let answer = world.client.get(url).send().await.unwrap();
    let cache = answer.headers()["cache-control"].to_str().unwrap();
    assert!(cache.contains("max-age="));
    let published: Value = answer.json().await.unwrap();
    assert_eq!(published, IDENTITY.google_jwk_set());
    let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_value(published).unwrap();
    assert!(jsonwebtoken::DecodingKey::from_jwk(&keys.keys[0]).is_ok());
}

#[tokio::test]
async fn a_subscription_goes_through_its_states() {
    let world = start_simulator().await;
    let pending = world.subscribe(json!({"pending": true}));
    let token = pending.purchase_token.as_str();
    let answer = pending.to_api_response(world.clock.now());
    assert_eq!(answer["subscriptionState"], "SUBSCRIPTION_STATE_PENDING");
    assert!(answer.get("startTime").is_none());
    assert!(answer["lineItems"][0].get("expiryTime").is_none());
    let change = |change: Value| world.change_subscription(token, change);
    assert!(change(json!({"action": "renew"})).is_err());
    world.clock.advance(DAY);
    let contexts = [
        "canceledStateContext",
        "inGracePeriodStateContext",
        "onHoldStateContext",
        "pausedStateContext",
    ];
    #[rustfmt::skip]
    let cases = [
        (json!({"action": "complete"}), "ACTIVE", ""),
        (json!({"action": "acknowledge"}), "ACTIVE", ""),
        (json!({"action": "renew"}), "ACTIVE", ""),
        (json!({"action": "cancel", "by": "developer"}), "CANCELED", contexts[0]),
        (json!({"action": "restore"}), "ACTIVE", ""),
        (json!({"action": "grace"}), "IN_GRACE_PERIOD", contexts[1]),
        (json!({"action": "hold"}), "ON_HOLD", contexts[2]),
        (json!({"action": "resume"}), "ACTIVE", ""),
        (json!({"action": "pause"}), "PAUSED", contexts[3]),
        (json!({"action": "resume"}), "ACTIVE", ""),
        (json!({"action": "defer", "days": 14}), "ACTIVE", ""),
        (json!({"action": "revoke"}), "EXPIRED", contexts[0]),
    ];
    for (fields, state, context) in cases {
        let changed = change(fields.clone()).unwrap();
        let answer = changed.to_api_response(world.clock.now());
        let expected = format!("SUBSCRIPTION_STATE_{state}");
        assert_eq!(answer["subscriptionState"], expected, "{fields}");
        for name in contexts {
            assert_eq!(answer[name].is_object(), name == context, "{fields} {name}");
        }
        world.clock.advance(Duration::from_secs(1));
    }
    let order = world
        .google
        .find_subscription(token)
        .unwrap()
        .latest_order_id();
    assert!(
        order.starts_with("GPA.33") && order.ends_with("..2"),
        "{order}"
    );
    assert!(change(json!({"action": "restore"})).is_err());
    assert!(change(json!({"action": "complete"})).is_err());
}

#[tokio::test]
async fn a_replacement_names_the_purchase_it_replaces() {
    let world = start_simulator().await;
    let old =
        world.subscribe(json!({"obfuscatedExternalAccountId": "user-7", "acknowledged": true}));
    let yearly = SubscriptionReplacement {
        product_id: Some("pro_yearly".to_owned()),
        ..SubscriptionReplacement::default()
    };
    let new = world
        .google
        .replace_subscription(&old.purchase_token, yearly)
        .unwrap();
    let new = new.to_api_response(world.clock.now());
    assert_eq!(new["linkedPurchaseToken"], json!(old.purchase_token));
    assert_eq!(new["lineItems"][0]["productId"], "pro_yearly");
    assert_eq!(new["acknowledgementState"], "ACKNOWLEDGEMENT_STATE_PENDING");
    let ids = &new["externalAccountIdentifiers"];
    assert_eq!(ids["obfuscatedExternalAccountId"], "user-7");
    let old = world.google.find_subscription(&old.purchase_token).unwrap();
    let old = old.to_api_response(world.clock.now());
    assert_eq!(old["subscriptionState"], "SUBSCRIPTION_STATE_EXPIRED");
    assert!(old["canceledStateContext"]["replacementCancellation"].is_object());
}

#[tokio::test]
async fn a_product_is_found_by_its_token_alone() {
    let world = start_simulator().await;
    let bought = world.buy_product(json!({
        "quantity": 5, "obfuscatedExternalAccountId": "user-7", "testPurchase": true,
        "fieldsV2": {"regionCode": null},
    }));
    let path = format!(
        "{APP}/purchases/productsv2/tokens/{}",
        bought.purchase_token
    );
    let (_, answer) = world.get_play(&path).await;
    let item = &answer["productLineItem"][0];
    let details = &item["productOfferDetails"];
    #[rustfmt::skip]
    let cases = [
        (&answer["kind"], json!("androidpublisher#productPurchaseV2")),
        (&answer["purchaseStateContext"]["purchaseState"], json!("PURCHASED")),
        (&answer["acknowledgementState"], json!("ACKNOWLEDGEMENT_STATE_PENDING")),
        (&answer["purchaseCompletionTime"], json!("2026-04-10T12:00:00Z")),
        (&answer["testPurchaseContext"]["fopType"], json!("TEST")),
        (&answer["obfuscatedExternalAccountId"], json!("user-7")),
        (&answer["regionCode"], Value::Null),
        (&item["productId"], json!("coins_100")),
        (&details["quantity"], json!(5)),
        (&details["refundableQuantity"], json!(5)),
        (&details["consumptionState"], json!("CONSUMPTION_STATE_YET_TO_BE_CONSUMED")),
    ];
    for (found, expected) in cases {
        assert_eq!(*found, expected);
    }

    let refund = json!({"action": "refund-quantity", "quantity": 2});
    world.change_product(&bought.purchase_token, refund);
    let (_, answer) = world.get_play(&path).await;
    let details = &answer["productLineItem"][0]["productOfferDetails"];
    assert_eq!(
        (&details["quantity"], &details["refundableQuantity"]),
        (&json!(5), &json!(3))
    );
    world.change_product(&bought.purchase_token, json!({"action": "consume"}));
    world.change_product(&bought.purchase_token, json!({"action": "refund"}));
    let (_, answer) = world.get_play(&path).await;
    assert_eq!(answer["purchaseStateContext"]["purchaseState"], "CANCELLED");
    let details = &answer["productLineItem"][0]["productOfferDetails"];
    assert_eq!(details["consumptionState"], "CONSUMPTION_STATE_CONSUMED");

    let pending = world.buy_product(json!({"pending": true}));
    let path = path.replace(&bought.purchase_token, &pending.purchase_token);
    let (_, answer) = world.get_play(&path).await;
    assert_eq!(answer["purchaseStateContext"]["purchaseState"], "PENDING");
    assert!(answer.get("purchaseCompletionTime").is_none());
}

#[tokio::test]
async fn an_order_names_its_purchase() {
    let world = start_simulator().await;
    let product = world.buy_product(json!({"quantity": 2}));
    let subscription = world.subscribe(json!({}));
    let renewed = world
        .change_subscription(&subscription.purchase_token, json!({"action": "renew"}))
        .unwrap();
    let order = async |id: &str| world.get_play(&format!("{APP}/orders/{id}")).await;
    for (id, token, product_id) in [
        (
            product.order_id().to_owned(),
            &product.purchase_token,
            "coins_100",
        ),
        (
            subscription.latest_order_id(),
            &subscription.purchase_token,
            "pro_monthly",
        ),
        (
            renewed.latest_order_id(),
            &subscription.purchase_token,
            "pro_monthly",
        ),
    ] {
        let (status, answer) = order(&id).await;
        assert_eq!((status, &answer["orderId"]), (200, &json!(id)));
        assert_eq!(answer["purchaseToken"], json!(token));
        assert_eq!(answer["state"], "PROCESSED");
        assert_eq!(answer["lineItems"][0]["productId"], product_id);
    }
    let refund = json!({"action": "refund-quantity", "quantity": 1});
    world.change_product(&product.purchase_token, refund);
    let (_, answer) = order(product.order_id()).await;
    assert_eq!(answer["state"], "PARTIALLY_REFUNDED");
    world
        .change_subscription(&subscription.purchase_token, json!({"action": "revoke"}))
        .unwrap();
    let (_, answer) = order(&renewed.latest_order_id()).await;
    assert_eq!(answer["state"], "REFUNDED");
    for unknown in [
        "GPA.3300-0000-0000-00000".to_owned(),
        format!("{}..1", subscription.latest_order_id()),
    ] {
        assert_eq!(order(&unknown).await.0, 404, "{unknown}");
    }
}

#[tokio::test]
async fn a_fault_can_say_what_play_says_of_a_fresh_purchase_an_unknown_app_and_a_refused_account() {
    let world = start_simulator().await;
    let not_found = || Fault::at_place("google/play").reason("purchaseTokenNotFound");
    world.fail(not_found().until_after_sale(Duration::from_millis(300)));
    let path = subscription_path(&world.subscribe(json!({})).purchase_token);
    for (passes, status) in [(0, 404), (299, 404), (1, 200)] {
        world.clock.advance(Duration::from_millis(passes));
        assert_eq!(world.get_play(&path).await.0, status, "after {passes} ms");
    }
    world.simulator.clear_faults();

    world.fail(not_found().times(2));
    for status in [404, 404, 200] {
        assert_eq!(world.get_play(&path).await.0, status);
    }

    world.fail(Fault::at_place("google/play").reason("notFound"));
    let (status, body) = world.get_play(&path).await;
    let message = &body["error"]["message"];
    assert_eq!(
        (status, message),
        (404, &json!("Package not found: com.example.app."))
    );
    assert_eq!(body["error"]["errors"][0]["reason"], "notFound");

    let refused = Fault::at_place("google/play").reason("permissionDenied");
    world.fail(refused.status(401));
    assert_eq!(
        error_reason(&world, &path).await,
        (401, "permissionDenied".to_owned())
    );
}

/// The notification types and tokens that were published since the log was cleared, oldest first.
fn published(world: &TestSimulator) -> Vec<(u64, String)> {
    let messages = world.google.published_messages();
    let decoded = messages.iter().filter_map(|message| {
        let text = STANDARD.decode(&message.data).unwrap();
        let notification: Value = serde_json::from_slice(&text).unwrap();
        let fields = &notification["subscriptionNotification"];
        let number = fields["notificationType"].as_u64()?;
        Some((number, fields["purchaseToken"].as_str().unwrap().to_owned()))
    });
    decoded.collect()
}

#[tokio::test]
async fn a_plan_change_by_control_publishes_the_new_purchase_and_then_the_end_of_the_old() {
    let world = start_simulator().await;
    let old = world.subscribe(json!({})).purchase_token;
    let path = format!("/google/subscriptions/{old}/replace");
    let body = r#"{"productId":"pro_yearly","period":"P1Y","replacementMode":"CHARGE_FULL_PRICE"}"#;
    let (status, new) = world.call_control("POST", &path, body).await;
    assert_eq!(status, 201, "{new}");
    let token = new["purchaseToken"].as_str().unwrap().to_owned();
    let expected = [(4, old.clone()), (4, token), (13, old)];
    assert_eq!(published(&world), expected);
    let replaced = &new["answer"]["lineItems"][0]["itemReplacement"];
    assert_eq!(replaced["productId"], "pro_monthly");
    assert_eq!(replaced["replacementMode"], "CHARGE_FULL_PRICE");
    world.clock.advance(61 * DAY);
    let token = new["purchaseToken"].as_str().unwrap();
    let later = world.google.find_subscription(token).unwrap();
    let later = later.to_api_response(world.clock.now());
    assert!(later["lineItems"][0].get("itemReplacement").is_none());
}

#[tokio::test]
async fn a_deferred_plan_change_begins_with_the_next_renewal() {
    let world = start_simulator().await;
    let old = world.subscribe(json!({"productId": "pro"}));
    world.clock.advance(DAY);
    let by = SubscriptionReplacement {
        product_id: Some("basic".to_owned()),
        deferred: true,
        ..SubscriptionReplacement::default()
    };
    let new = world
        .google
        .replace_subscription(&old.purchase_token, by)
        .unwrap();
    let items = &new.to_api_response(world.clock.now())["lineItems"];
    assert_eq!(items[0]["productId"], "pro");
    assert_eq!(items[0]["expiryTime"], "2026-05-10T12:00:00Z");
    assert_eq!(items[0]["deferredItemReplacement"]["productId"], "basic");
    assert_eq!(items[1]["productId"], "basic");
    assert!(items[1].get("expiryTime").is_none());
    world.clock.advance(29 * DAY);
    let renewed = world
        .change_subscription(&new.purchase_token, json!({"action": "renew"}))
        .unwrap();
    let items = &renewed.to_api_response(world.clock.now())["lineItems"];
    assert_eq!(items[0]["productId"], "basic");
    assert_eq!(items[0]["expiryTime"], "2026-06-10T12:00:00Z");
    assert!(items.get(1).is_none());
    assert!(items[0].get("deferredItemReplacement").is_none());
}

#[tokio::test]
async fn a_plan_that_has_ended_is_not_replaced_at_its_renewal() {
    let world = start_simulator().await;
    let add_on = json!({"productId": "storage", "period": "P1Y"});
    let old = world.subscribe(json!({"period": "P1M", "addOns": [add_on]}));
    world.clock.advance(40 * DAY);
    let deferred = SubscriptionReplacement {
        deferred: true,
        ..SubscriptionReplacement::default()
    };
    let refused = world
        .google
        .replace_subscription(&old.purchase_token, deferred);
    assert!(refused.unwrap_err().to_string().contains("has ended"));
}

#[tokio::test]
async fn a_pending_plan_change_ends_the_old_purchase_once_it_is_paid() {
    let world = start_simulator().await;
    let old = world.subscribe(json!({})).purchase_token;
    let by = SubscriptionReplacement {
        pending: true,
        ..SubscriptionReplacement::default()
    };
    let new = world.google.replace_subscription(&old, by).unwrap();
    let state_of_old = || {
        let old = world.google.find_subscription(&old).unwrap();
        old.state_name(world.clock.now())
    };
    assert_eq!(state_of_old(), "ACTIVE");
    world
        .change_subscription(&new.purchase_token, json!({"action": "complete"}))
        .unwrap();
    assert_eq!(state_of_old(), "EXPIRED");
}

#[tokio::test]
async fn a_prepaid_plan_is_topped_up() {
    let world = start_simulator().await;
    let old = world.subscribe(json!({"prepaid": true, "period": "P7D"}));
    world.clock.advance(2 * DAY);
    let new = world
        .google
        .replace_subscription(&old.purchase_token, SubscriptionReplacement::default())
        .unwrap();
    let answer = new.to_api_response(world.clock.now());
    let item = &answer["lineItems"][0];
    assert!(item["prepaidPlan"].is_object());
    assert_eq!(
        item["expiryTime"], "2026-04-24T12:00:00Z",
        "twice seven days"
    );
    assert_eq!(answer["linkedPurchaseToken"], json!(old.purchase_token));
}

#[tokio::test]
async fn a_purchase_made_in_play_names_the_lapsed_one_until_it_is_acknowledged() {
    let world = start_simulator().await;
    let old = world.subscribe(json!({"obfuscatedExternalAccountId": "user-7"}));
    let again = |in_app| Resubscription {
        in_app,
        ..Resubscription::default()
    };
    let token = &old.purchase_token;
    assert!(
        world.google.resubscribe(token, again(false)).is_err(),
        "it runs"
    );
    world
        .change_subscription(token, json!({"action": "expire"}))
        .unwrap();
    let new = world.google.resubscribe(token, again(false)).unwrap();
    let answer = new.to_api_response(world.clock.now());
    assert!(answer.get("externalAccountIdentifiers").is_none());
    assert!(answer.get("linkedPurchaseToken").is_none());
    let context = &answer["outOfAppPurchaseContext"];
    assert_eq!(context["expiredPurchaseToken"], json!(token));
    let ids = &context["expiredExternalAccountIdentifiers"];
    assert_eq!(ids["obfuscatedExternalAccountId"], "user-7");
    let acknowledged = world
        .change_subscription(&new.purchase_token, json!({"action": "acknowledge"}))
        .unwrap();
    let answer = acknowledged.to_api_response(world.clock.now());
    assert!(answer.get("outOfAppPurchaseContext").is_none());

    let in_app = world.google.resubscribe(token, again(true)).unwrap();
    let answer = in_app.to_api_response(world.clock.now());
    assert!(answer.get("outOfAppPurchaseContext").is_none());
    let ids = &answer["externalAccountIdentifiers"];
    assert_eq!(ids["obfuscatedExternalAccountId"], "user-7");
}

#[tokio::test]
async fn what_play_says_can_be_changed_and_an_offer_ends_with_a_renewal() {
    let world = start_simulator().await;
    let bought = world.subscribe(json!({"offerId": "o", "offerPhase": "freeTrial"}));
    let token = bought.purchase_token.as_str();
    let phase = |bought: &SimulatedSubscription| {
        bought.to_api_response(world.clock.now())["lineItems"][0]["offerPhase"].clone()
    };
    assert_eq!(phase(&bought), json!({"freeTrial": {}}));
    let renewed = world.change_subscription(token, json!({"action": "renew"}));
    assert_eq!(phase(&renewed.unwrap()), json!({"basePrice": {}}));
    let set = json!({"action": "set", "fields": {"regionCode": "DE"}, "itemFields": {"signupPromotion": {}}});
    let changed = world.change_subscription(token, set).unwrap();
    let answer = changed.to_api_response(world.clock.now());
    assert_eq!(answer["regionCode"], "DE");
    assert_eq!(answer["lineItems"][0]["signupPromotion"], json!({}));
}

#[tokio::test]
async fn refunds_are_listed() {
    let world = start_simulator().await;
    let full = world.buy_product(json!({})).purchase_token;
    let part = world.buy_product(json!({"quantity": 3})).purchase_token;
    let subscription = world.subscribe(json!({})).purchase_token;
    world.change_product(&full, json!({"action": "refund"}));
    world.clock.advance(DAY);
    world.change_product(&part, json!({"action": "refund-quantity", "quantity": 2}));
    world
        .change_subscription(&subscription, json!({"action": "revoke"}))
        .unwrap();
    let now = world.clock.now().as_millis();
    let partial = "includeQuantityBasedPartialRefund=true";
    for (query, expected) in [
        (String::new(), vec![&full]),
        (partial.to_owned(), vec![&full, &part]),
        (
            format!("type=1&{partial}"),
            vec![&full, &part, &subscription],
        ),
        (format!("type=1&startTime={now}"), vec![&subscription]),
    ] {
        let path = format!("{APP}/purchases/voidedpurchases?{query}");
        let (status, answer) = world.get_play(&path).await;
        assert_eq!(status, 200);
        let listed = answer["voidedPurchases"].as_array().unwrap();
        let tokens: Vec<&Value> = listed.iter().map(|it| &it["purchaseToken"]).collect();
        assert_eq!(json!(tokens), json!(expected), "{query}");
    }
}
