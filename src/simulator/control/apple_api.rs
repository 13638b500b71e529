//! The control API's operations of the App Store.

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::AppleScenario;
use super::api::{
    Body, Context, ControlResult, OperationTable, created, done, ok, parse_change, pem_response,
};
use crate::simulator::identity::SimulatedAppleKey;
use crate::simulator::pki::JwsForgery;
use crate::simulator::state::SimulatorError;
use crate::simulator::state::apple::{NewTransaction, SimulatedApp, SimulatedTransaction};
use crate::simulator::state::apple_notifications::{NewNotification, NotificationUrls};

type Apple = State<AppleScenario>;

const NEW_TRANSACTION: &str = r#"{"type":"subscription","bundleId":"com.example.app","productId":"com.example.app.pro.monthly","environment":"sandbox","period":"P1M","price":9990,"appAccountToken":"7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"}"#;

#[rustfmt::skip]
const TRANSACTION_ACTIONS: &[(&str, &str, &str)] = &[
    ("renew", "", "one more period: a new transaction"),
    ("cancel", "", "turn renewal off; the current period continues"),
    ("resume", "", "turn renewal on again"),
    ("expire", r#"{"intent":1}"#, "end it now"),
    ("grace", r#"{"days":16}"#, "a payment fails; access continues in a grace period"),
    ("billing-retry", "", "a payment fails; no grace period"),
    ("refund", r#"{"reason":1}"#, "refund it"),
    ("reverse-refund", "", "reverse a refund"),
    ("revoke", "", "end family sharing"),
    ("upgrade", r#"{"productId":"com.example.app.pro.yearly","period":"P1Y"}"#,
        "replace the product at once: a new transaction"),
    ("downgrade", r#"{"productId":"com.example.app.lite.monthly"}"#,
        "replace the product at the next renewal"),
    ("extend", r#"{"days":30}"#, "extend the period"),
    ("set", r#"{"fields":{"offerType":4},"renewalFields":{"priceIncreaseStatus":0}}"#,
        "change what the App Store says of it, without a notification"),
    ("forget", "", "delete it: the store does not know it any more"),
];

pub(super) fn add_operations(table: OperationTable) -> OperationTable {
    add_notifications(add_apps_and_keys(add_purchases(table)))
}

#[rustfmt::skip]
fn add_purchases(table: OperationTable) -> OperationTable {
    let path = "/control/apple/transactions";
    table
        .heading("App Store purchases")
        .post(path, create_transaction, NEW_TRANSACTION,
            "buy; every field may be left out; type is subscription, non-renewing, non-consumable or consumable")
        .get(path, list_transactions, "every transaction")
        .get("/control/apple/transactions/{id}", get_transaction, "one transaction, with the payload that is signed")
        .get("/control/apple/transactions/{id}/jws", sign_transaction,
            "the signed transaction alone, as StoreKit 2 gives it to an app")
        .post_actions("/control/apple/transactions/{id}/{action}", change_transaction, TRANSACTION_ACTIONS)
        .get("/control/apple/consumption", list_consumption,
            "what was sent about how purchases were used, as answers to CONSUMPTION_REQUEST")
        .get("/control/apple/forge?kind=altered-payload&transactionId={id}", forge_transaction,
            "a signed transaction that must be refused; without a kind, the list of kinds")
        .post("/control/apple/sign", sign_payload,
            r#"{"bundleId":"com.example.app","environment":"Sandbox","signedDate":1775830930000}"#,
            "sign any payload")
}

#[rustfmt::skip]
fn add_apps_and_keys(table: OperationTable) -> OperationTable {
    let app = "/control/apple/apps/{bundle}";
    table
        .heading("App Store apps and keys")
        .get(app, get_app, "an app's Apple id, and whether it was released")
        .post(app, change_app, r#"{"released":false}"#, "an app that was never released: production answers 401")
        .post("/control/apple/keys", create_key, "", "one more API key")
        .post("/control/apple/keys/{key}/revoke", set_key_revoked::<true>, "", "revoke an API key")
        .post("/control/apple/keys/{key}/restore", set_key_revoked::<false>, "", "undo that")
}

#[rustfmt::skip]
fn add_notifications(table: OperationTable) -> OperationTable {
    table
        .heading("App Store notifications")
        .post("/control/apple/push/{bundle}", set_notification_urls,
            r#"{"production":"http://127.0.0.1:8080/v1/webhooks/apple/tenant_…","sandbox":"http://127.0.0.1:8080/v1/webhooks/apple/tenant_…"}"#,
            "post a notification of every change to this app's purchases; with \"manual\":true, only on request")
        .get("/control/apple/push", list_notification_urls, "where notifications are posted")
        .get("/control/apple/notifications", list_notifications,
            "every notification, and the result of each attempt")
        .post("/control/apple/notifications/{bundle}", publish_notification,
            r#"{"notificationType":"PRICE_INCREASE","subtype":"PENDING","transactionId":"{id}"}"#,
            "post any notification; environment, block and fields may be given too")
        .post("/control/apple/redeliver", redeliver, "", "post every notification again that was not accepted")
}

pub(super) async fn get_root_certificate(context: Context) -> Response {
    pem_response(context.identity.certificate_authority().root_pem())
}

pub(super) async fn get_key(apple: Apple) -> ControlResult {
    ok(key_json(&apple.api_key()))
}

pub(super) async fn get_key_file(apple: Apple) -> Response {
    pem_response(apple.api_key().private_key)
}

async fn create_key(apple: Apple) -> ControlResult {
    created(key_json(&apple.create_api_key()?))
}

async fn set_key_revoked<const REVOKED: bool>(apple: Apple, key_id: Path<String>) -> ControlResult {
    apple.set_key_revoked(&key_id, REVOKED)?;
    done()
}

fn key_json(key: &SimulatedAppleKey) -> Value {
    json!({ "issuerId": key.issuer_id, "keyId": key.key_id, "privateKey": key.private_key })
}

async fn get_app(apple: Apple, bundle_id: Path<String>) -> ControlResult {
    ok(apple.get_app(&bundle_id))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AppChange {
    released: Option<bool>,
    app_apple_id: Option<u64>,
}

async fn change_app(
    apple: Apple,
    bundle_id: Path<String>,
    Body(change): Body<AppChange>,
) -> ControlResult {
    let current = apple.get_app(&bundle_id);
    let app = SimulatedApp {
        released: change.released.unwrap_or(current.released),
        app_apple_id: change.app_apple_id.unwrap_or(current.app_apple_id),
        ..current
    };
    apple.set_app(app.clone())?;
    ok(app)
}

async fn list_transactions(apple: Apple) -> ControlResult {
    let all: Vec<Value> = apple
        .list_transactions()
        .iter()
        .map(|transaction| transaction_summary(&apple, transaction))
        .collect();
    ok(json!({ "transactions": all }))
}

async fn create_transaction(apple: Apple, Body(new): Body<NewTransaction>) -> ControlResult {
    let transaction = apple.create_transaction(new)?;
    created(transaction_details(&apple, &transaction)?)
}

async fn get_transaction(apple: Apple, id: Path<String>) -> ControlResult {
    ok(transaction_details(&apple, &apple.find_transaction(&id)?)?)
}

async fn sign_transaction(apple: Apple, id: Path<String>) -> ControlResult<String> {
    apple.sign_transaction(&id)
}

async fn change_transaction(
    apple: Apple,
    Path((id, action)): Path<(String, String)>,
    Body(fields): Body<Map<String, Value>>,
) -> ControlResult {
    let changed = apple.change_transaction(&id, &parse_change(&action, fields)?)?;
    if action == "forget" {
        return done();
    }
    ok(transaction_details(&apple, &changed)?)
}

async fn list_consumption(apple: Apple) -> ControlResult {
    ok(json!({ "consumption": apple.list_consumption() }))
}

async fn sign_payload(apple: Apple, Body(payload): Body<Map<String, Value>>) -> String {
    apple.sign_payload(&payload)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ForgeQuery {
    kind: Option<String>,
    transaction_id: Option<String>,
}

async fn forge_transaction(
    apple: Apple,
    Query(query): Query<ForgeQuery>,
) -> ControlResult<Response> {
    let kinds = json!(JwsForgery::ALL);
    let Some(kind) = query.kind else {
        return ok(json!({ "kinds": kinds })).map(IntoResponse::into_response);
    };
    let forgery: JwsForgery = serde_json::from_value(json!(kind)).map_err(|_| {
        SimulatorError::invalid_request(format!(
            "There is no forgery of the kind {kind}. The kinds are: {kinds}"
        ))
    })?;
    let id = query.transaction_id.ok_or_else(|| {
        SimulatorError::invalid_request("Which transaction? Add &transactionId=… to the address.")
    })?;
    Ok(apple.forge_transaction(&id, forgery)?.into_response())
}

async fn list_notification_urls(context: Context) -> ControlResult {
    let urls = json!(context.lock_state().stores.apple.push);
    ok(json!({ "push": urls }))
}

async fn set_notification_urls(
    apple: Apple,
    bundle_id: Path<String>,
    Body(urls): Body<NotificationUrls>,
) -> ControlResult {
    apple.set_notification_urls(&bundle_id, urls)?;
    done()
}

async fn list_notifications(apple: Apple) -> ControlResult {
    ok(json!({ "notifications": apple.list_notifications() }))
}

async fn publish_notification(
    apple: Apple,
    bundle_id: Path<String>,
    Body(new): Body<NewNotification>,
) -> ControlResult {
    created(apple.publish_notification(&bundle_id, &new)?)
}

async fn redeliver(apple: Apple) -> ControlResult {
    ok(json!({ "notifications": apple.redeliver_undelivered() }))
}

fn transaction_summary(apple: &AppleScenario, transaction: &SimulatedTransaction) -> Value {
    let mut summary = json!({
        "transactionId": transaction.transaction_id,
        "originalTransactionId": transaction.original_transaction_id,
        "bundleId": transaction.bundle_id,
        "productId": transaction.product_id,
        "type": transaction.kind.payload_name(),
        "environment": transaction.environment,
        "purchaseDate": transaction.purchase_date,
        "expiresDate": transaction.expires_date,
        "revoked": transaction.revocation.is_some(),
        "upgraded": transaction.is_upgraded,
    });
    if let Some(status) = apple.subscription_status(transaction) {
        summary["subscription"] = json!(match status {
            1 => "active",
            2 => "expired",
            3 => "billing retry",
            4 => "grace period",
            _ => "revoked",
        });
    }
    if let Some(renewal) = apple.find_renewal(transaction) {
        summary["renewal"] = json!(renewal);
    }
    summary
}

fn transaction_details(
    apple: &AppleScenario,
    transaction: &SimulatedTransaction,
) -> Result<Value, SimulatorError> {
    let mut details = transaction_summary(apple, transaction);
    details["payload"] = json!(apple.transaction_payload(&transaction.transaction_id)?);
    Ok(details)
}
