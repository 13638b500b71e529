//! Refunds about which Play asks the developer, and the developers' answers. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::google::GoogleState;
use super::{SimulatorError, random_letters};
use crate::base::clock::Timestamp;

/// How long Play takes an answer, as Google documents it.
const ANSWER_PERIOD: Duration = Duration::from_hours(24);
/// As in the console's test message: a chargeback.
const REFUND_REASON: u8 = 7;

/// A refund about which Play asks the developer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedRefundReview {
    /// What the question is known by.
    pub pending_refund_token: String,
    /// The package name of the app.
    pub package_name: String,
    /// The order of the purchase.
    pub order_id: String,
    /// The app's user, where the purchase names one.
    pub obfuscated_account_id: Option<String>,
    /// When Play asked.
    pub asked_at: Timestamp,
    /// The body of the first answer.
    pub answer: Option<Value>,
}

impl SimulatedRefundReview {
    /// The block of its notification.
    pub(crate) fn to_block(&self) -> Value {
        let mut block = json!({
            "version": "1.0",
            "pendingRefundToken": self.pending_refund_token,
            "orderId": self.order_id,
            "refundReason": REFUND_REASON,
        });
        if let Some(user) = &self.obfuscated_account_id {
            block["obfuscatedAccountId"] = json!(user);
        }
        block
    }
}

impl GoogleState {
    /// Play asks about a refund of the newest order of a purchase.
    pub(crate) fn ask_refund_review(
        &mut self,
        purchase_token: &str,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Result<SimulatedRefundReview, SimulatorError> {
        let subscription = self.find_subscription(purchase_token).map(|one| {
            let user = one.sold.obfuscated_external_account_id.clone();
            (one.package_name.clone(), one.latest_order_id(), user)
        });
        let product = self.find_product(purchase_token).map(|one| {
            let user = one.sold.obfuscated_external_account_id.clone();
            (one.package_name.clone(), one.order_id().to_owned(), user)
        });
        let (package_name, order_id, obfuscated_account_id) =
            subscription.or(product).ok_or_else(|| {
                SimulatorError::not_found(format!("There is no purchase {purchase_token}."))
            })?;
        let review = SimulatedRefundReview {
            pending_refund_token: random_letters(random, b"abcdefghijklmnopqrstuvwxyz", 32),
            package_name,
            order_id,
            obfuscated_account_id,
            asked_at: now,
            answer: None,
        };
        self.refund_reviews.push(review.clone());
        Ok(review)
    }

    /// Takes a developer's answer; only the first one. `Err` is Google's reason.
    pub(crate) fn take_refund_review(
        &mut self,
        package_name: &str,
        order_id: &str,
        answer: Value,
        now: Timestamp,
    ) -> Result<(), &'static str> {
        let token = answer["pendingRefundToken"].as_str();
        let review = self
            .refund_reviews
            .iter_mut()
            .find(|one| Some(one.pending_refund_token.as_str()) == token)
            .filter(|one| one.order_id == order_id && one.package_name == package_name)
            .ok_or("invalidPendingRefundToken")?;
        let preferences = ["DECLINE", "APPROVE", "NEUTRAL"].map(Value::from);
        let share = &answer["consumptionPercentageMilliunits"];
        let events = answer["consumptionUsageEvents"].as_array();
        if !answer["sampleContentProvided"].is_boolean()
            || !preferences.contains(&answer["refundPreference"])
            || !share.is_null() && share.as_u64().is_none_or(|share| share > 100_000)
            || events.is_some_and(|events| events.len() > 1000)
        {
            return Err("badRequest");
        }
        if review.answer.is_some() || review.asked_at.plus(ANSWER_PERIOD) < now {
            return Err("refundReviewClosed");
        }
        review.answer = Some(answer);
        Ok(())
    }

    /// Every question, oldest first.
    pub(crate) fn list_refund_reviews(&self) -> &[SimulatedRefundReview] {
        &self.refund_reviews
    }
}
