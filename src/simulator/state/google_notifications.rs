//! Real-time developer notifications: their content, where they are pushed, the log of those published. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::bounded_log::BoundedLog;
use super::google::{
    ProductChange, RefundedPurchases, SimulatedProductPurchase, SimulatedSubscription,
    SubscriptionChange,
};
use crate::base::clock::Timestamp;

/// The log keeps the newest messages only.
const MAX_MESSAGES: usize = 20_000;

/// A Pub/Sub push subscription of an app's topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PushSubscription {
    /// The URL to which messages are pushed.
    pub endpoint: String,
    /// The `aud` of the token; the endpoint when left out, as in Pub/Sub.
    #[serde(default)]
    pub audience: Option<String>,
    /// The email address in the token; the simulator's own when left out.
    #[serde(default)]
    pub account: Option<String>,
    /// Push messages on request only.
    #[serde(default)]
    pub manual: bool,
}

impl PushSubscription {
    /// Pushes to a URL at once, with Pub/Sub's defaults.
    pub fn for_endpoint(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            audience: None,
            account: None,
            manual: false,
        }
    }
}

/// A published message, and the answers to its pushes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedMessage {
    /// Pub/Sub's id, the same on every push.
    pub message_id: String,
    /// The package name of the app.
    pub package_name: String,
    /// The time of publication.
    pub publish_time: Timestamp,
    /// The notification in base64.
    pub data: String,
    /// The HTTP status of each push; 0 without an answer.
    pub answers: Vec<u16>,
}

impl PublishedMessage {
    /// Whether a push was answered with a status that Pub/Sub takes as an acknowledgement.
    pub fn is_acknowledged(&self) -> bool {
        let acknowledges = |status: &u16| matches!(status, 102 | 200 | 201 | 202 | 204);
        self.answers.iter().any(acknowledges)
    }

    /// The body of a push in Pub/Sub's form.
    pub(crate) fn to_push_body(&self) -> String {
        let time = self.publish_time.to_string();
        let body = json!({
            "message": {
                "data": self.data,
                "messageId": self.message_id,
                "message_id": self.message_id,
                "publishTime": time,
                "publish_time": time,
            },
            "subscription": "projects/simulator/subscriptions/attesto",
        });
        format!("{body:#}\n")
    }
}

/// The published messages.
pub(crate) type PublishedMessages = BoundedLog<PublishedMessage, MAX_MESSAGES>;

/// The fields of every real-time developer notification.
pub(crate) fn common_fields(package: &str, now: Timestamp) -> Map<String, Value> {
    let head = [
        ("version", "1.0".to_owned()),
        ("packageName", package.to_owned()),
        ("eventTimeMillis", now.as_millis().to_string()),
    ];
    head.map(|(name, text)| (name.to_owned(), Value::String(text)))
        .into_iter()
        .collect()
}

/// A notification with one block, such as `subscriptionNotification`.
pub(crate) fn build_notification(
    package: &str,
    now: Timestamp,
    block: &str,
    fields: Value,
) -> Value {
    let mut notification = common_fields(package, now);
    notification.insert(block.to_owned(), fields);
    Value::Object(notification)
}

/// A notification of Google's type `number`. It does not name the product: Google does not any more.
pub(crate) fn subscription_notification(
    subscription: &SimulatedSubscription,
    number: u8,
    now: Timestamp,
) -> Value {
    let fields = json!({
        "version": "1.0",
        "notificationType": number,
        "purchaseToken": subscription.purchase_token,
    });
    build_notification(
        &subscription.package_name,
        now,
        "subscriptionNotification",
        fields,
    )
}

/// The notifications of a change; `before` is the subscription's state name before it.
pub(crate) fn notifications_after_change(
    subscription: &SimulatedSubscription,
    before: &str,
    change: &SubscriptionChange,
    now: Timestamp,
) -> Vec<Value> {
    let number = match change {
        SubscriptionChange::Renew {} if matches!(before, "ON_HOLD" | "PAUSED") => 1,
        SubscriptionChange::Resume {} => 1,
        SubscriptionChange::Renew {} => 2,
        SubscriptionChange::Cancel { .. } => 3,
        SubscriptionChange::Complete {} => 4,
        SubscriptionChange::Hold {} => 5,
        SubscriptionChange::Grace { .. } => 6,
        SubscriptionChange::Restore {} => 7,
        SubscriptionChange::Defer { .. } => 9,
        SubscriptionChange::Pause { .. } => 10,
        SubscriptionChange::Revoke {} => 12,
        SubscriptionChange::Expire {} => 13,
        SubscriptionChange::Decline {} => 20,
        SubscriptionChange::Acknowledge {}
        | SubscriptionChange::Set { .. }
        | SubscriptionChange::Gone { .. }
        | SubscriptionChange::Forget {} => return Vec::new(),
    };
    let mut all = vec![subscription_notification(subscription, number, now)];
    if matches!(change, SubscriptionChange::Revoke {}) {
        let fields = json!({
            "purchaseToken": subscription.purchase_token,
            "orderId": subscription.latest_order_id(),
            "productType": 1,
            "refundType": 1,
        });
        let package = &subscription.package_name;
        all.push(build_notification(
            package,
            now,
            "voidedPurchaseNotification",
            fields,
        ));
    }
    all
}

/// The notifications of purchases that were refunded for lack of an acknowledgement.
pub(crate) fn notifications_of_refunds(refunded: &RefundedPurchases, now: Timestamp) -> Vec<Value> {
    let revoke = SubscriptionChange::Revoke {};
    let subscriptions = refunded.subscriptions.iter();
    let subscriptions =
        subscriptions.flat_map(|one| notifications_after_change(one, "ACTIVE", &revoke, now));
    let products = refunded.products.iter();
    let products = products.map(|one| voided_product(one, 1, now));
    subscriptions.chain(products).collect()
}

/// A notification of Google's type `number`.
pub(crate) fn product_notification(
    product: &SimulatedProductPurchase,
    number: u8,
    now: Timestamp,
) -> Value {
    let fields = json!({
        "version": "1.0",
        "notificationType": number,
        "purchaseToken": product.purchase_token,
        "sku": product.product_id,
    });
    build_notification(
        &product.package_name,
        now,
        "oneTimeProductNotification",
        fields,
    )
}

/// `refund_type` is Google's number: 1 all of it, 2 some of a quantity.
fn voided_product(product: &SimulatedProductPurchase, refund_type: u8, now: Timestamp) -> Value {
    let fields = json!({
        "purchaseToken": product.purchase_token,
        "orderId": product.order_id(),
        "productType": 2,
        "refundType": refund_type,
    });
    let package = &product.package_name;
    build_notification(package, now, "voidedPurchaseNotification", fields)
}

/// The notification of a change; `was_pending` is whether the payment was pending before it.
pub(crate) fn notification_after_product_change(
    product: &SimulatedProductPurchase,
    was_pending: bool,
    change: &ProductChange,
    now: Timestamp,
) -> Option<Value> {
    match change {
        ProductChange::Complete {} => Some(product_notification(product, 1, now)),
        ProductChange::Refund {} if was_pending => Some(product_notification(product, 2, now)),
        ProductChange::Refund {} => Some(voided_product(product, 1, now)),
        ProductChange::RefundQuantity { .. } => Some(voided_product(product, 2, now)),
        _ => None,
    }
}
