use std::time::Duration;

use serde_json::{Value, json};

use super::{
    IDENTITY, TestSimulator, google_assertion, google_assertion_signed_by, json_body,
    start_simulator,
};
use crate::simulator::Fault;
use crate::simulator::identity::SimulatedServiceAccount;
use crate::simulator::state::google::{
    CanceledBy, GoneReason, NewProduct, NewSubscription, ProductChange, SubscriptionAddOn,
    SubscriptionChange, SubscriptionReplacement,
};

const APP: &str = "com.example.app";
const DAY: Duration = Duration::from_hours(24);

fn subscription_path(token: &str) -> String {
    format!("{APP}/purchases/subscriptionsv2/tokens/{token}")
}

fn product_path(token: &str) -> String {
    format!("{APP}/purchases/products/coins_100/tokens/{token}")
}

async fn fetch_error_reason(world: &TestSimulator, path: &str) -> (u16, String) {
    let answer = world.ask_play(path).await;
    let status = answer.status().as_u16();
    let error = json_body(answer).await["error"].clone();
    assert_eq!(error["code"], status);
    let reason = error["errors"][0]["reason"].as_str().unwrap();
    (status, reason.to_owned())
}

#[tokio::test]
async fn a_subscription_is_told_as_google_tells_it() {
    let world = start_simulator().await;
    let google = world.simulator.google();
    let bought = google
        .buy_subscription(NewSubscription {
            add_ons: vec![SubscriptionAddOn {
                product_id: "storage".to_owned(),
                prepaid: true,
                ..SubscriptionAddOn::default()
            }],
            obfuscated_external_account_id: Some("user-7".to_owned()),
            test_purchase: true,
            ..NewSubscription::default()
        })
        .unwrap();
    let path = subscription_path(&bought.purchase_token);
    let told = json_body(world.ask_play(&path).await).await;
    assert_eq!(told["kind"], "androidpublisher#subscriptionPurchaseV2");
    assert_eq!(told["subscriptionState"], "SUBSCRIPTION_STATE_ACTIVE");
    assert_eq!(
        told["acknowledgementState"],
        "ACKNOWLEDGEMENT_STATE_PENDING"
    );
    assert_eq!(told["startTime"], "2026-04-10T12:00:00Z");
    assert_eq!(told["testPurchase"], json!({}));
    assert_eq!(
        told["externalAccountIdentifiers"]["obfuscatedExternalAccountId"],
        "user-7"
    );
    let item = &told["lineItems"][0];
    assert_eq!(item["productId"], "pro_monthly");
    assert_eq!(item["expiryTime"], "2026-05-10T12:00:00Z");
    assert_eq!(item["autoRenewingPlan"]["autoRenewEnabled"], true);
    assert_eq!(
        item["autoRenewingPlan"]["recurringPrice"],
        json!({"currencyCode": "USD", "units": "4", "nanos": 990_000_000})
    );
    assert_eq!(told["lineItems"][1]["productId"], "storage");
    assert!(told["lineItems"][1]["prepaidPlan"].is_object());

    let cancel = SubscriptionChange::Cancel {
        by: CanceledBy::User,
    };
    google
        .change_subscription(&bought.purchase_token, &cancel)
        .unwrap();
    let told = json_body(world.ask_play(&path).await).await;
    assert_eq!(told["subscriptionState"], "SUBSCRIPTION_STATE_CANCELED");
    assert!(told["canceledStateContext"]["userInitiatedCancellation"].is_object());
    let plan = told["lineItems"][0]["autoRenewingPlan"]
        .as_object()
        .unwrap();
    assert!(
        !plan.contains_key("autoRenewEnabled"),
        "left out, not false"
    );
}

#[tokio::test]
async fn a_product_is_told_as_google_tells_it() {
    let world = start_simulator().await;
    let google = world.simulator.google();
    let bought = google
        .buy_product(NewProduct {
            quantity: Some(2),
            ..NewProduct::default()
        })
        .unwrap();
    let path = product_path(&bought.purchase_token);
    let told = json_body(world.ask_play(&path).await).await;
    assert_eq!(told["purchaseTimeMillis"], "1775822400000");
    assert_eq!(told["purchaseState"], 0);
    assert_eq!(told["acknowledgementState"], 0);
    assert_eq!(told["quantity"], 2);

    let token = world.access_token().await;
    let post = async |verb: &str| {
        let url = world.play_url(&format!("{path}:{verb}"));
        let request = world.client.post(url).bearer_auth(&token);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(post("acknowledge").await, 204);
    assert_eq!(
        json_body(world.ask_play(&path).await).await["acknowledgementState"],
        1
    );
    assert_eq!(post("consume").await, 204);
    assert_eq!(
        json_body(world.ask_play(&path).await).await["consumptionState"],
        1
    );
    assert_eq!(post("consume").await, 400, "only once");

    google
        .change_product(&bought.purchase_token, &ProductChange::Refund {})
        .unwrap();
    assert_eq!(
        json_body(world.ask_play(&path).await).await["purchaseState"],
        1
    );

    let terse = google
        .buy_product(NewProduct {
            terse: true,
            pending: true,
            ..NewProduct::default()
        })
        .unwrap();
    let told = json_body(world.ask_play(&product_path(&terse.purchase_token)).await).await;
    assert_eq!(told["purchaseState"], 2);
    assert!(told.get("purchaseToken").is_none());
}

#[tokio::test]
async fn an_assertion_that_is_not_right_gets_no_token() {
    let world = start_simulator().await;
    let now = world.clock.now().as_secs();
    let good = world.google_claims();
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        google_assertion(&claims)
    };
    let own = IDENTITY.service_account();
    let other = SimulatedServiceAccount::new("other");
    let genuine = google_assertion(&good);
    for (assertion, why) in [
        ("x".to_owned(), "three parts"),
        (genuine[..genuine.len() - 4].to_owned(), "Signature"),
        (with("iss", json!("nobody@example.com")), "not found"),
        (with("scope", json!("openid")), "scope"),
        (with("aud", json!("https://example.com/token")), "aud"),
        (with("exp", json!(now)), "short-lived"),
        (with("exp", json!(now + 3601)), "short-lived"),
        (with("iat", json!(now + 120)), "short-lived"),
        (
            google_assertion_signed_by(&other.private_key, &own.private_key_id, &good),
            "Signature",
        ),
        (
            google_assertion_signed_by(&own.private_key, "another", &good),
            "Signature",
        ),
    ] {
        let answer = world.request_access_token(&assertion).await;
        assert_eq!(answer.status(), 400, "{why}");
        let told = json_body(answer).await;
        assert_eq!(told["error"], "invalid_grant");
        let description = told["error_description"].as_str().unwrap();
        assert!(description.contains(why), "{description} should say {why}");
    }
    let real = with("aud", json!("https://oauth2.googleapis.com/token"));
    assert_eq!(world.request_access_token(&real).await.status(), 200);
    let url = world.simulator.google_token_url();
    let answer = world.client.post(url).body("grant_type=password").send();
    assert_eq!(
        json_body(answer.await.unwrap()).await["error"],
        "unsupported_grant_type"
    );
}

#[tokio::test]
async fn an_access_token_lasts_an_hour() {
    let world = start_simulator().await;
    let google = world.simulator.google();
    let bought = google.buy_subscription(NewSubscription::default()).unwrap();
    let path = subscription_path(&bought.purchase_token);
    let token = world.access_token().await;
    let ask = async |token: &str| world.ask_play_with_token(&path, token).await.status();
    assert_eq!(ask(&token).await, 200);
    world.clock.advance(Duration::from_mins(59));
    assert_eq!(ask(&token).await, 200);
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(ask(&token).await, 401);
    assert!(world.last_remark().contains("expired"));
    assert_eq!(ask("ya29.made.up").await, 401);
    let token = world.access_token().await;
    assert_eq!(ask(&token).await, 200);
    google.expire_access_tokens();
    assert_eq!(ask(&token).await, 401);
}

#[tokio::test]
async fn every_token_that_leads_nowhere_says_why() {
    let world = start_simulator().await;
    let google = world.simulator.google();
    let subscription = google.buy_subscription(NewSubscription::default()).unwrap();
    let product = google.buy_product(NewProduct::default()).unwrap();
    let gone = |how| {
        let bought = google.buy_subscription(NewSubscription::default()).unwrap();
        google
            .change_subscription(&bought.purchase_token, &SubscriptionChange::Gone { how })
            .unwrap();
        subscription_path(&bought.purchase_token)
    };
    let used = google.buy_product(NewProduct::default()).unwrap();
    let how = GoneReason::NoLongerValid;
    google
        .change_product(&used.purchase_token, &ProductChange::Gone { how })
        .unwrap();
    let (subscription, product) = (&subscription.purchase_token, &product.purchase_token);
    for (path, expected) in [
        (
            subscription_path("never.seen.before"),
            (404, "purchaseTokenNotFound"),
        ),
        (
            product_path("never.seen.before"),
            (404, "purchaseTokenNotFound"),
        ),
        (subscription_path("short"), (400, "invalid")),
        (subscription_path("with%20a%20space"), (400, "invalid")),
        (
            subscription_path(product),
            (400, "subscriptionInvalidArgument"),
        ),
        (
            product_path(subscription),
            (400, "subscriptionInvalidArgument"),
        ),
        (
            subscription_path(subscription).replace(APP, "com.example.other"),
            (400, "purchaseTokenDoesNotMatchPackageName"),
        ),
        (
            product_path(product).replace("coins_100", "coins_500"),
            (400, "purchaseTokenDoesNotMatchProductId"),
        ),
        (
            gone(GoneReason::NoLongerValid),
            (410, "purchaseTokenNoLongerValid"),
        ),
        (
            gone(GoneReason::NoLongerAvailable),
            (410, "subscriptionPurchaseNoLongerAvailable"),
        ),
        (
            gone(GoneReason::ExpiredTooLong),
            (400, "failedPrecondition"),
        ),
        (
            product_path(&used.purchase_token),
            (410, "purchaseTokenNoLongerValid"),
        ),
    ] {
        let (status, reason) = fetch_error_reason(&world, &path).await;
        assert_eq!((status, reason.as_str()), expected, "{path}");
    }
}

#[tokio::test]
async fn what_ended_long_ago_is_forgotten() {
    let world = start_simulator().await;
    let google = world.simulator.google();
    let bought = google.buy_subscription(NewSubscription::default()).unwrap();
    let path = subscription_path(&bought.purchase_token);
    world.clock.advance(30 * DAY);
    let told = json_body(world.ask_play(&path).await).await;
    assert_eq!(told["subscriptionState"], "SUBSCRIPTION_STATE_EXPIRED");
    world.clock.advance(60 * DAY);
    assert_eq!(world.ask_play(&path).await.status(), 200);
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(
        fetch_error_reason(&world, &path).await,
        (400, "failedPrecondition".to_owned())
    );
}

#[tokio::test]
async fn accounts_lose_their_rights() {
    let world = start_simulator().await;
    let google = world.simulator.google();
    let bought = google.buy_subscription(NewSubscription::default()).unwrap();
    let path = subscription_path(&bought.purchase_token);
    let own = &IDENTITY.service_account().client_email;
    google.set_account_denied(own, true).unwrap();
    assert_eq!(
        fetch_error_reason(&world, &path).await,
        (403, "permissionDenied".to_owned())
    );
    google.set_account_denied(own, false).unwrap();
    assert_eq!(world.ask_play(&path).await.status(), 200);
    google.set_account_disabled(own, true).unwrap();
    let refused = world
        .request_access_token(&google_assertion(&world.google_claims()))
        .await;
    assert_eq!(json_body(refused).await["error"], "invalid_grant");

    let second = google.create_service_account("second").unwrap();
    let mut claims = world.google_claims();
    claims["iss"] = json!(second.client_email);
    let assertion =
        google_assertion_signed_by(&second.private_key, &second.private_key_id, &claims);
    assert_eq!(world.request_access_token(&assertion).await.status(), 200);
    assert!(google.create_service_account("second").is_err());
    assert!(google.create_service_account("No Name").is_err());
    assert!(
        google
            .set_account_denied("nobody@example.com", true)
            .is_err()
    );
}

#[tokio::test]
async fn answers_go_wrong_as_they_were_told() {
    let world = start_simulator().await;
    let bought = world
        .simulator
        .google()
        .buy_subscription(NewSubscription::default())
        .unwrap();
    let path = subscription_path(&bought.purchase_token);
    for (wanted, status) in [
        ("permissionDenied", 403),
        ("quotaExceeded", 403),
        ("rateLimitExceeded", 429),
        ("applicationNotFound", 404),
        ("backendError", 503),
    ] {
        let fault = Fault::at_place("google/play")
            .reason(wanted)
            .retry_after(12);
        world.simulator.add_fault(fault).unwrap();
        let answer = world.ask_play(&path).await;
        assert_eq!(answer.headers()["retry-after"], "12");
        assert_eq!(answer.status(), status);
        assert_eq!(
            json_body(answer).await["error"]["errors"][0]["reason"],
            wanted
        );
    }
    world
        .simulator
        .add_fault(Fault::at_place("google/token").status(502))
        .unwrap();
    let assertion = google_assertion(&world.google_claims());
    assert_eq!(world.request_access_token(&assertion).await.status(), 502);
    world
        .simulator
        .add_fault(Fault::at_place("google/token").reason("invalid_grant"))
        .unwrap();
    assert_eq!(world.request_access_token(&assertion).await.status(), 400);
    assert_eq!(world.ask_play(&path).await.status(), 200);
    assert_eq!(world.simulator.count_requests_at("google/play"), 6);
}

#[tokio::test]
async fn googles_keys_are_published() {
    let world = start_simulator().await;
    let url = world.simulator.google_jwks_url();
    let answer = world.client.get(url).send().await.unwrap();
    let cache = answer.headers()["cache-control"].to_str().unwrap();
    assert!(cache.contains("max-age="));
    assert_eq!(json_body(answer).await, IDENTITY.google_jwk_set());
}

/// What happens to a subscription, in Play's words.
#[tokio::test]
async fn a_subscription_has_a_life() {
    let world = start_simulator().await;
    let google = world.simulator.google();
    let bought = google
        .buy_subscription(NewSubscription {
            pending: true,
            ..NewSubscription::default()
        })
        .unwrap();
    let token = bought.purchase_token.as_str();
    let told = bought.to_api_response(world.clock.now());
    assert_eq!(told["subscriptionState"], "SUBSCRIPTION_STATE_PENDING");
    assert!(told.get("startTime").is_none());
    assert!(told["lineItems"][0].get("expiryTime").is_none());
    assert!(
        google
            .change_subscription(token, &SubscriptionChange::Renew {})
            .is_err()
    );
    world.clock.advance(DAY);

    let (days, by) = (None, CanceledBy::Developer);
    for (change, state, context) in [
        (SubscriptionChange::Complete {}, "ACTIVE", ""),
        (SubscriptionChange::Acknowledge {}, "ACTIVE", ""),
        (SubscriptionChange::Renew {}, "ACTIVE", ""),
        (
            SubscriptionChange::Cancel { by },
            "CANCELED",
            "canceledStateContext",
        ),
        (SubscriptionChange::Restore {}, "ACTIVE", ""),
        (
            SubscriptionChange::Grace { days },
            "IN_GRACE_PERIOD",
            "inGracePeriodStateContext",
        ),
        (SubscriptionChange::Hold {}, "ON_HOLD", "onHoldStateContext"),
        (SubscriptionChange::Resume {}, "ACTIVE", ""),
        (
            SubscriptionChange::Pause { days },
            "PAUSED",
            "pausedStateContext",
        ),
        (SubscriptionChange::Resume {}, "ACTIVE", ""),
        (SubscriptionChange::Defer { days: 14 }, "ACTIVE", ""),
        (
            SubscriptionChange::Revoke {},
            "EXPIRED",
            "canceledStateContext",
        ),
    ] {
        let changed = google.change_subscription(token, &change).unwrap();
        let told = changed.to_api_response(world.clock.now());
        assert_eq!(
            told["subscriptionState"],
            format!("SUBSCRIPTION_STATE_{state}"),
            "{change:?}"
        );
        for name in [
            "canceledStateContext",
            "inGracePeriodStateContext",
            "onHoldStateContext",
            "pausedStateContext",
        ] {
            assert_eq!(told[name].is_object(), name == context, "{change:?} {name}");
        }
        world.clock.advance(Duration::from_secs(1));
    }
    let order = google.find_subscription(token).unwrap().latest_order_id();
    assert!(
        order.starts_with("GPA.33") && order.ends_with("..2"),
        "{order}"
    );
    assert!(
        google
            .change_subscription(token, &SubscriptionChange::Restore {})
            .is_err()
    );
    assert!(
        google
            .change_subscription(token, &SubscriptionChange::Complete {})
            .is_err()
    );
}

#[tokio::test]
async fn a_replacement_names_what_it_replaces() {
    let world = start_simulator().await;
    let google = world.simulator.google();
    let old = google
        .buy_subscription(NewSubscription {
            obfuscated_external_account_id: Some("user-7".to_owned()),
            acknowledged: true,
            ..NewSubscription::default()
        })
        .unwrap();
    let by = SubscriptionReplacement {
        product_id: Some("pro_yearly".to_owned()),
        ..SubscriptionReplacement::default()
    };
    let new = google
        .replace_subscription(&old.purchase_token, by)
        .unwrap();
    let told = new.to_api_response(world.clock.now());
    assert_eq!(told["linkedPurchaseToken"], json!(old.purchase_token));
    assert_eq!(told["lineItems"][0]["productId"], "pro_yearly");
    assert_eq!(
        told["acknowledgementState"],
        "ACKNOWLEDGEMENT_STATE_PENDING"
    );
    assert_eq!(
        told["externalAccountIdentifiers"]["obfuscatedExternalAccountId"],
        "user-7"
    );
    let old = google.find_subscription(&old.purchase_token).unwrap();
    let told = old.to_api_response(world.clock.now());
    assert_eq!(told["subscriptionState"], "SUBSCRIPTION_STATE_EXPIRED");
    assert!(told["canceledStateContext"]["replacementCancellation"].is_object());
}
