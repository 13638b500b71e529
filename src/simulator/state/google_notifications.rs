//! What Play publishes when something happens to a purchase, and to whom it is pushed. Pure.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::google::{
    ProductChange, SimulatedProductPurchase, SimulatedSubscription, SubscriptionChange,
};
use crate::base::clock::Timestamp;

/// How many messages are remembered.
const MAX_MESSAGES: usize = 20_000;

/// A push subscription of an app's topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PushSubscription {
    /// Where messages are pushed.
    pub endpoint: String,
    /// What the token is meant for; the endpoint when left out, as in Pub/Sub.
    #[serde(default)]
    pub audience: Option<String>,
    /// The address in the token; the simulator's own when left out.
    #[serde(default)]
    pub account: Option<String>,
    /// Messages are pushed only when somebody asks for it.
    #[serde(default)]
    pub manual: bool,
}

impl PushSubscription {
    /// Pushes to an address at once, as Pub/Sub does where nothing else is set.
    pub fn for_endpoint(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            audience: None,
            account: None,
            manual: false,
        }
    }
}

/// A message on its way to a push subscription.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedMessage {
    /// Pub/Sub's id, the same on every push.
    pub message_id: String,
    /// The app.
    pub package_name: String,
    /// When it was published.
    pub publish_time: Timestamp,
    /// What it says, in base64.
    pub data: String,
    /// What each push of it was answered; 0 where there was no answer.
    pub answers: Vec<u16>,
}

impl PublishedMessage {
    /// Whether a push was answered with what Pub/Sub takes for yes.
    pub fn is_acknowledged(&self) -> bool {
        let is_yes = |status: &u16| matches!(status, 102 | 200 | 201 | 202 | 204);
        self.answers.iter().any(is_yes)
    }

    /// The body of a push, as Pub/Sub writes it.
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

/// The messages published, oldest first.
#[derive(Debug, Default)]
pub(crate) struct PublishedMessages {
    messages: VecDeque<PublishedMessage>,
}

impl PublishedMessages {
    /// Adds one.
    pub(crate) fn add(&mut self, message: PublishedMessage) {
        if self.messages.len() == MAX_MESSAGES {
            self.messages.pop_front();
        }
        self.messages.push_back(message);
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PublishedMessage> {
        self.messages.iter()
    }

    /// One of them.
    pub(crate) fn find_by_id(&self, id: &str) -> Option<&PublishedMessage> {
        self.messages
            .iter()
            .find(|message| message.message_id == id)
    }

    /// Notes what a push was answered.
    pub(crate) fn record_answer(&mut self, id: &str, status: u16) {
        // The one that was pushed is mostly among the newest.
        if let Some(message) = self
            .messages
            .iter_mut()
            .rev()
            .find(|one| one.message_id == id)
        {
            message.answers.push(status);
        }
    }

    /// Forgets them.
    pub(crate) fn clear(&mut self) {
        self.messages.clear();
    }
}

/// What stands in every real-time developer notification.
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

/// A real-time developer notification.
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

/// What happened to a subscription, by Google's number. It does not name the product: Google no longer does.
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

/// What Play publishes after a change; `before` is the subscription's state before it.
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

/// What happened to a one-time product, by Google's number.
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

/// What Play publishes after a change; `was_pending` is whether the product was not paid for before it.
pub(crate) fn notification_after_product_change(
    product: &SimulatedProductPurchase,
    was_pending: bool,
    change: &ProductChange,
    now: Timestamp,
) -> Option<Value> {
    match change {
        ProductChange::Complete {} => Some(product_notification(product, 1, now)),
        ProductChange::Refund {} if was_pending => Some(product_notification(product, 2, now)),
        ProductChange::Refund {} => {
            let fields = json!({
                "purchaseToken": product.purchase_token,
                "orderId": product.order_id(),
                "productType": 2,
                "refundType": 1,
            });
            let package = &product.package_name;
            Some(build_notification(
                package,
                now,
                "voidedPurchaseNotification",
                fields,
            ))
        }
        _ => None,
    }
}
