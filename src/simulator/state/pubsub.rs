//! What Play publishes when something happens to a purchase, and to whom it is pushed. Pure.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::google::{Change, Product, ProductChange, Subscription};
use crate::clock::Timestamp;

/// How many messages are remembered.
const REMEMBERED: usize = 20_000;

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
    pub fn to(endpoint: &str) -> Self {
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
pub struct Message {
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

impl Message {
    /// Whether a push was answered with what Pub/Sub takes for yes.
    pub fn is_acknowledged(&self) -> bool {
        let is_yes = |status: &u16| matches!(status, 102 | 200 | 201 | 202 | 204);
        self.answers.iter().any(is_yes)
    }

    /// The body of a push, as Pub/Sub writes it.
    pub(crate) fn body(&self) -> String {
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
pub(crate) struct Messages {
    all: VecDeque<Message>,
}

impl Messages {
    /// Adds one.
    pub(crate) fn add(&mut self, message: Message) {
        if self.all.len() == REMEMBERED {
            self.all.pop_front();
        }
        self.all.push_back(message);
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Message> {
        self.all.iter()
    }

    /// One of them.
    pub(crate) fn find(&self, id: &str) -> Option<&Message> {
        self.all.iter().find(|message| message.message_id == id)
    }

    /// Notes what a push was answered.
    pub(crate) fn answered(&mut self, id: &str, status: u16) {
        // The one that was pushed is mostly among the newest.
        if let Some(message) = self.all.iter_mut().rev().find(|one| one.message_id == id) {
            message.answers.push(status);
        }
    }

    /// Forgets them.
    pub(crate) fn clear(&mut self) {
        self.all.clear();
    }
}

/// What stands in every real-time developer notification.
pub(crate) fn head(package: &str, now: Timestamp) -> Map<String, Value> {
    let head = [
        ("version", "1.0".to_owned()),
        ("packageName", package.to_owned()),
        ("eventTimeMillis", now.millis().to_string()),
    ];
    head.map(|(name, text)| (name.to_owned(), Value::String(text)))
        .into_iter()
        .collect()
}

/// A real-time developer notification.
pub(crate) fn notification(package: &str, now: Timestamp, block: &str, fields: Value) -> Value {
    let mut notification = head(package, now);
    notification.insert(block.to_owned(), fields);
    Value::Object(notification)
}

/// What happened to a subscription, by Google's number. It does not name the product: Google no longer does.
pub(crate) fn of_subscription(subscription: &Subscription, number: u8, now: Timestamp) -> Value {
    let fields = json!({
        "version": "1.0",
        "notificationType": number,
        "purchaseToken": subscription.purchase_token,
    });
    notification(
        &subscription.package_name,
        now,
        "subscriptionNotification",
        fields,
    )
}

/// What Play publishes after a change; `before` is the subscription's state before it.
pub(crate) fn after_change(
    subscription: &Subscription,
    before: &str,
    change: &Change,
    now: Timestamp,
) -> Vec<Value> {
    let number = match change {
        Change::Renew {} if matches!(before, "ON_HOLD" | "PAUSED") => 1,
        Change::Resume {} => 1,
        Change::Renew {} => 2,
        Change::Cancel { .. } => 3,
        Change::Complete {} => 4,
        Change::Hold {} => 5,
        Change::Grace { .. } => 6,
        Change::Restore {} => 7,
        Change::Defer { .. } => 9,
        Change::Pause { .. } => 10,
        Change::Revoke {} => 12,
        Change::Expire {} => 13,
        Change::Decline {} => 20,
        Change::Acknowledge {} | Change::Gone { .. } | Change::Forget {} => return Vec::new(),
    };
    let mut all = vec![of_subscription(subscription, number, now)];
    if matches!(change, Change::Revoke {}) {
        let fields = json!({
            "purchaseToken": subscription.purchase_token,
            "orderId": subscription.latest_order_id(),
            "productType": 1,
            "refundType": 1,
        });
        let package = &subscription.package_name;
        all.push(notification(
            package,
            now,
            "voidedPurchaseNotification",
            fields,
        ));
    }
    all
}

/// What happened to a one-time product, by Google's number.
pub(crate) fn of_product(product: &Product, number: u8, now: Timestamp) -> Value {
    let fields = json!({
        "version": "1.0",
        "notificationType": number,
        "purchaseToken": product.purchase_token,
        "sku": product.product_id,
    });
    notification(
        &product.package_name,
        now,
        "oneTimeProductNotification",
        fields,
    )
}

/// What Play publishes after a change; `was_pending` is whether the product was not paid for before it.
pub(crate) fn after_product_change(
    product: &Product,
    was_pending: bool,
    change: &ProductChange,
    now: Timestamp,
) -> Option<Value> {
    match change {
        ProductChange::Complete {} => Some(of_product(product, 1, now)),
        ProductChange::Refund {} if was_pending => Some(of_product(product, 2, now)),
        ProductChange::Refund {} => {
            let fields = json!({
                "purchaseToken": product.purchase_token,
                "orderId": product.order_id(),
                "productType": 2,
                "refundType": 1,
            });
            let package = &product.package_name;
            Some(notification(
                package,
                now,
                "voidedPurchaseNotification",
                fields,
            ))
        }
        _ => None,
    }
}
