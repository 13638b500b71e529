//! The control API's operations of Google Play.

use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::GoogleScenario;
use super::api::{
    BaseUrl, Body, Context, ControlResult, OperationTable, created, done, ok, parse_change,
};
use crate::base::clock::Timestamp;
use crate::simulator::state::google::{
    NewProduct, NewSubscription, PlayRules, Resubscription, SimulatedProductPurchase,
    SimulatedSubscription, SubscriptionReplacement, purchase_not_found,
};
use crate::simulator::state::google_notifications::{self as notifications, PushSubscription};

type Google = State<GoogleScenario>;

const NEW_SUBSCRIPTION: &str = r#"{"packageName":"com.example.app","productId":"pro_monthly","basePlanId":"monthly","period":"P1M","priceAmountMicros":4990000,"obfuscatedExternalAccountId":"7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55","addOns":[{"productId":"extra_storage"}]}"#;

#[rustfmt::skip]
const SUBSCRIPTION_ACTIONS: &[(&str, &str, &str)] = &[
    ("renew", "", "one more period"),
    ("cancel", r#"{"by":"user"}"#, "turn renewal off; by user, system or developer"),
    ("restore", "", "turn renewal on again"),
    ("expire", "", "end it now"),
    ("grace", r#"{"days":7}"#, "a payment fails; access continues"),
    ("hold", "", "a payment fails; access stops"),
    ("pause", r#"{"days":30}"#, "pause it"),
    ("resume", "", "end a hold or a pause"),
    ("revoke", "", "refund it and end it now"),
    ("defer", r#"{"days":14}"#, "move the next payment"),
    ("acknowledge", "", "acknowledge it"),
    ("complete", "", "pay a pending purchase"),
    ("decline", "", "cancel a pending purchase"),
    ("set", r#"{"itemFields":{"signupPromotion":{"oneTimeCode":{}}}}"#,
        "change what Play says of it, without a notification; fields are those of the whole"),
    ("gone", r#"{"how":"no-longer-valid"}"#,
        "answer 410, or 400; how is no-longer-valid, no-longer-available or expired-too-long"),
    ("forget", "", "delete it: the store does not know it any more"),
];

#[rustfmt::skip]
const PRODUCT_ACTIONS: &[(&str, &str, &str)] = &[
    ("consume", "", "consume it"),
    ("acknowledge", "", "acknowledge it"),
    ("refund", "", "refund it"),
    ("refund-quantity", r#"{"quantity":1}"#, "refund some of a quantity"),
    ("complete", "", "pay a pending purchase"),
    ("set", r#"{"fieldsV2":{"regionCode":null}}"#, "change what Play says of it, without a notification"),
    ("gone", "", "answer 410"),
    ("forget", "", "delete it: the store does not know it any more"),
];

pub(super) fn add_operations(table: OperationTable) -> OperationTable {
    add_accounts(add_notifications(add_purchases(table)))
}

#[rustfmt::skip]
fn add_purchases(table: OperationTable) -> OperationTable {
    let (subscriptions, products) = ("/control/google/subscriptions", "/control/google/products");
    table
        .heading("Play subscriptions")
        .post(subscriptions, buy_subscription, NEW_SUBSCRIPTION, "subscribe; every field may be left out")
        .get(subscriptions, list_subscriptions, "every subscription")
        .get("/control/google/subscriptions/{subscription}", get_subscription,
            "one subscription, with the answer of Play's API")
        .post_actions("/control/google/subscriptions/{subscription}/{action}", change_subscription,
            SUBSCRIPTION_ACTIONS)
        .post("/control/google/subscriptions/{subscription}/replace", replace_subscription,
            r#"{"productId":"pro_yearly","period":"P1Y"}"#,
            "change plans: a new token, linked to this one, which ends; publishes 4 for the new and 13 for the old")
        .more("/control/google/subscriptions/{subscription}/replace",
            r#"{"productId":"basic_monthly","deferred":true}"#,
            "the same at the next renewal; pending waits for complete; a prepaid plan without productId is topped up")
        .post("/control/google/subscriptions/{subscription}/resubscribe", resubscribe, r#"{"inApp":false}"#,
            "buy it again after its end: in Play, which names the lapsed purchase until the new one is acknowledged, or in the app")
        .heading("Play one-time products")
        .post(products, buy_product,
            r#"{"packageName":"com.example.app","productId":"coins_100","quantity":2}"#,
            "buy; every field may be left out")
        .get(products, list_products, "every purchase")
        .get("/control/google/products/{product}", get_product, "one purchase, with the answer of Play's API")
        .post_actions("/control/google/products/{product}/{action}", change_product, PRODUCT_ACTIONS)
        .post("/control/google/rules", set_rules, r#"{"refundUnacknowledged":true,"refuseOwnedProducts":true}"#,
            "refund by itself what is not acknowledged in time; do not sell a product again that its user has not consumed")
        .post("/control/google/refund-reviews", ask_refund_review, r#"{"purchaseToken":"{product}"}"#,
            "ask the developer about a refund; publishes a pendingRefundReviewNotification")
        .get("/control/google/refund-reviews", list_refund_reviews, "every such question, and its answer")
        .post("/control/google/refund-unacknowledged", refund_unacknowledged, "",
            "refund now what is not acknowledged in time")
}

#[rustfmt::skip]
fn add_notifications(table: OperationTable) -> OperationTable {
    table
        .heading("Play notifications")
        .post("/control/google/push/{package}", set_push_subscription,
            r#"{"endpoint":"http://127.0.0.1:8080/v1/webhooks/google/tenant_…"}"#,
            "push a notification of every change to this app's purchases; audience and account may be given too")
        .get("/control/google/push", list_push_subscriptions, "where notifications are pushed")
        .get("/control/google/messages", list_messages, "every message, and the answers to its pushes")
        .post("/control/google/messages/{package}/test", publish_test_notification, "",
            "publish the test notification of the Play Console")
        .post("/control/google/messages/{package}", publish_notification,
            r#"{"subscriptionNotification":{"version":"1.0","notificationType":17,"purchaseToken":"…"}}"#,
            "publish any notification; version, packageName and eventTimeMillis are added")
        .post("/control/google/redeliver", redeliver, "", "push every message again that was not acknowledged")
        .post("/control/google/keys/rotate", rotate_keys, r#"{"dropOld":false}"#, "sign with a new key")
}

#[rustfmt::skip]
fn add_accounts(table: OperationTable) -> OperationTable {
    table
        .heading("Google accounts")
        .post("/control/google/service-accounts", create_service_account, r#"{"name":"second"}"#,
            "one more service account: its key file")
        .post("/control/google/service-accounts/{email}/disable", set_account_disabled::<true>, "",
            "delete it: the token endpoint answers invalid_grant")
        .post("/control/google/service-accounts/{email}/enable", set_account_disabled::<false>, "", "undo that")
        .post("/control/google/service-accounts/{email}/deny", set_account_denied::<true>, "",
            "remove its permission: the API answers permissionDenied")
        .post("/control/google/service-accounts/{email}/allow", set_account_denied::<false>, "", "undo that")
        .post("/control/google/tokens/expire", expire_access_tokens, "", "expire every access token now")
}

fn token_url(base: &BaseUrl) -> String {
    format!("{}/google/token", base.0)
}

pub(super) async fn get_service_account(base: BaseUrl, context: Context) -> ControlResult {
    ok(context
        .identity
        .service_account()
        .to_key_file(&token_url(&base)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewServiceAccount {
    name: String,
}

async fn create_service_account(
    base: BaseUrl,
    google: Google,
    Body(new): Body<NewServiceAccount>,
) -> ControlResult {
    created(
        google
            .create_service_account(&new.name)?
            .to_key_file(&token_url(&base)),
    )
}

async fn set_account_disabled<const DISABLED: bool>(
    google: Google,
    email: Path<String>,
) -> ControlResult {
    google.set_account_disabled(&email, DISABLED)?;
    done()
}

async fn set_account_denied<const DENIED: bool>(
    google: Google,
    email: Path<String>,
) -> ControlResult {
    google.set_account_denied(&email, DENIED)?;
    done()
}

async fn expire_access_tokens(google: Google) -> ControlResult {
    google.expire_access_tokens();
    done()
}

async fn list_subscriptions(google: Google) -> ControlResult {
    let all: Vec<Value> = google
        .list_subscriptions()
        .iter()
        .map(|subscription| subscription_summary(subscription, google.now()))
        .collect();
    ok(json!({ "subscriptions": all }))
}

async fn buy_subscription(google: Google, Body(new): Body<NewSubscription>) -> ControlResult {
    let subscription = google.buy_subscription(new)?;
    created(subscription_details(&subscription, google.now()))
}

async fn get_subscription(google: Google, token: Path<String>) -> ControlResult {
    let subscription = google
        .find_subscription(&token)
        .ok_or_else(|| purchase_not_found("subscriptions", &token))?;
    ok(subscription_details(&subscription, google.now()))
}

async fn replace_subscription(
    google: Google,
    token: Path<String>,
    Body(replacement): Body<SubscriptionReplacement>,
) -> ControlResult {
    let pending = replacement.pending;
    let subscription = google.replace_subscription(&token, replacement)?;
    if !pending {
        google.publish_end_of_replaced(&token)?;
    }
    created(subscription_details(&subscription, google.now()))
}

async fn resubscribe(
    google: Google,
    token: Path<String>,
    Body(again): Body<Resubscription>,
) -> ControlResult {
    let subscription = google.resubscribe(&token, again)?;
    created(subscription_details(&subscription, google.now()))
}

async fn change_subscription(
    google: Google,
    Path((token, action)): Path<(String, String)>,
    Body(fields): Body<Map<String, Value>>,
) -> ControlResult {
    let changed = google.change_subscription(&token, &parse_change(&action, fields)?)?;
    ok(subscription_details(&changed, google.now()))
}

async fn list_products(google: Google) -> ControlResult {
    let all: Vec<Value> = google.list_products().iter().map(product_summary).collect();
    ok(json!({ "products": all }))
}

async fn buy_product(google: Google, Body(new): Body<NewProduct>) -> ControlResult {
    created(product_details(&google.buy_product(new)?))
}

async fn get_product(google: Google, token: Path<String>) -> ControlResult {
    let product = google
        .find_product(&token)
        .ok_or_else(|| purchase_not_found("products", &token))?;
    ok(product_details(&product))
}

async fn change_product(
    google: Google,
    Path((token, action)): Path<(String, String)>,
    Body(fields): Body<Map<String, Value>>,
) -> ControlResult {
    let changed = google.change_product(&token, &parse_change(&action, fields)?)?;
    ok(product_details(&changed))
}

async fn set_rules(google: Google, Body(rules): Body<PlayRules>) -> ControlResult {
    google.set_rules(rules)?;
    done()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RefundReviewQuestion {
    purchase_token: String,
}

async fn ask_refund_review(
    google: Google,
    Body(question): Body<RefundReviewQuestion>,
) -> ControlResult {
    created(google.ask_refund_review(&question.purchase_token)?)
}

async fn list_refund_reviews(google: Google) -> ControlResult {
    ok(json!({ "refundReviews": google.list_refund_reviews() }))
}

async fn refund_unacknowledged(google: Google) -> ControlResult {
    ok(json!({ "refunded": google.refund_unacknowledged()? }))
}

async fn list_push_subscriptions(context: Context, google: Google) -> ControlResult {
    let push = json!(context.lock_state().stores.google.push);
    ok(json!({ "push": push, "account": google.push_account() }))
}

async fn set_push_subscription(
    google: Google,
    package: Path<String>,
    Body(subscription): Body<PushSubscription>,
) -> ControlResult {
    google.set_push_subscription(&package, subscription)?;
    ok(json!({ "done": true, "account": google.push_account() }))
}

async fn list_messages(google: Google) -> ControlResult {
    ok(json!({ "messages": google.published_messages() }))
}

async fn publish_test_notification(google: Google, package: Path<String>) -> ControlResult {
    created(google.publish_test_notification(&package))
}

async fn publish_notification(
    google: Google,
    package: Path<String>,
    Body(blocks): Body<Map<String, Value>>,
) -> ControlResult {
    let mut notification = notifications::common_fields(&package, google.now());
    notification.extend(blocks);
    let text = Value::Object(notification).to_string();
    created(google.publish_message(&package, text.as_bytes()))
}

async fn redeliver(google: Google) -> ControlResult {
    ok(json!({ "messages": google.redeliver_unacknowledged() }))
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct KeyRotation {
    drop_old: bool,
}

async fn rotate_keys(google: Google, Body(rotation): Body<KeyRotation>) -> ControlResult {
    google.rotate_keys(rotation.drop_old);
    done()
}

fn subscription_summary(subscription: &SimulatedSubscription, now: Timestamp) -> Value {
    let product_ids: Vec<&str> = subscription
        .items
        .iter()
        .map(|item| item.product_id.as_str())
        .collect();
    json!({
        "purchaseToken": subscription.purchase_token,
        "packageName": subscription.package_name,
        "productIds": product_ids,
        "state": subscription.state_name(now),
        "startTime": subscription.start_time,
        "expiryTime": subscription.latest_expiry_time(),
        "acknowledged": subscription.acknowledged,
        "linkedPurchaseToken": subscription.linked_purchase_token,
        "orderId": subscription.latest_order_id(),
    })
}

fn subscription_details(subscription: &SimulatedSubscription, now: Timestamp) -> Value {
    let mut details = subscription_summary(subscription, now);
    details["answer"] = subscription.to_api_response(now);
    details
}

fn product_summary(product: &SimulatedProductPurchase) -> Value {
    json!({
        "purchaseToken": product.purchase_token,
        "packageName": product.package_name,
        "productId": product.product_id,
        "state": match product.purchase_state {
            0 => "purchased",
            1 => "cancelled",
            _ => "pending",
        },
        "consumed": product.consumed,
        "acknowledged": product.acknowledged,
        "purchaseTime": product.purchase_time,
        "orderId": product.order_id(),
    })
}

fn product_details(product: &SimulatedProductPurchase) -> Value {
    let mut details = product_summary(product);
    details["answer"] = product.to_api_response();
    details["answerV2"] = product.to_api_response_v2();
    details
}
