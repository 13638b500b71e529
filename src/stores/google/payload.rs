//! Google Play's JSON as Google sends it, with no meaning added.
//!
//! Guarantees: every field may be absent, and `null` is the same as absent; enums to which Google may add are kept as text;
//! a 64-bit number is read as a string, which is Google's way, and as a number; unknown fields are ignored here and
//! survive in the raw answer.
//!
//! Source: the discovery document of androidpublisher v3.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::base::clock::Timestamp;

/// An answer to `purchases.subscriptionsv2.get`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionPurchase {
    /// Always `androidpublisher#subscriptionPurchaseV2` in Google's answers.
    pub kind: Option<String>,
    /// The buyer's country, ISO 3166-1 alpha-2.
    pub region_code: Option<String>,
    /// When it was granted; absent while the purchase is pending.
    pub start_time: Option<Timestamp>,
    /// The state, such as `SUBSCRIPTION_STATE_ACTIVE`.
    pub subscription_state: Option<String>,
    /// The order of the purchase as a whole; on its way out of Google's API, so often absent.
    pub latest_order_id: Option<String>,
    /// The token this purchase replaces.
    pub linked_purchase_token: Option<String>,
    /// Whether the purchase was acknowledged, such as `ACKNOWLEDGEMENT_STATE_PENDING`.
    pub acknowledgement_state: Option<String>,
    /// Why it was cancelled; only while it is cancelled or expired.
    pub canceled_state_context: Option<CanceledStateContext>,
    /// Present when it was bought outside the app, after an earlier one had expired; only until it is acknowledged.
    pub out_of_app_purchase_context: Option<OutOfAppPurchaseContext>,
    /// Present while the subscription is paused.
    pub paused_state_context: Option<PausedStateContext>,
    /// The user as the app named them.
    pub external_account_identifiers: Option<ExternalAccountIdentifiers>,
    /// Present when a licence tester bought it.
    pub test_purchase: Option<PresenceMarker>,
    /// What was bought: the subscription, and its add-ons.
    #[serde(deserialize_with = "null_is_empty")]
    pub line_items: Vec<LineItem>,
}

/// The purchase that a purchase made outside the app follows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutOfAppPurchaseContext {
    /// The token of the purchase that had expired.
    pub expired_purchase_token: Option<String>,
    /// The user of that one as the app named them.
    pub expired_external_account_identifiers: Option<ExternalAccountIdentifiers>,
}

/// When a pause ends.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PausedStateContext {
    /// When the subscription resumes by itself.
    pub auto_resume_time: Option<Timestamp>,
}

/// Who cancelled: exactly one field is present.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CanceledStateContext {
    /// By the subscriber.
    pub user_initiated_cancellation: Option<PresenceMarker>,
    /// By Google, after a payment failed.
    pub system_initiated_cancellation: Option<PresenceMarker>,
    /// By the app's developer.
    pub developer_initiated_cancellation: Option<PresenceMarker>,
    /// Because another purchase replaced it.
    pub replacement_cancellation: Option<PresenceMarker>,
}

/// The user of a purchase as the app named them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalAccountIdentifiers {
    /// What the app passed as `obfuscatedAccountId` when it started the purchase.
    pub obfuscated_external_account_id: Option<String>,
}

/// The user of a purchase, as `purchases.subscriptions.acknowledge` takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAccountIds {
    /// The user as the app names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obfuscated_account_id: Option<String>,
    /// The profile of the user as the app names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obfuscated_profile_id: Option<String>,
}

/// One product of a subscription. Its expiry is its own.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LineItem {
    /// The product's id in the Play Console.
    pub product_id: Option<String>,
    /// When it ends, ended or renews; in a grace period, when that ends.
    pub expiry_time: Option<Timestamp>,
    /// The order that last succeeded for this item.
    pub latest_successful_order_id: Option<String>,
    /// Absent for a prepaid plan.
    pub auto_renewing_plan: Option<AutoRenewingPlan>,
    /// The price phase it is in.
    pub offer_phase: Option<OfferPhase>,
    /// Present when another product replaces it at the next renewal.
    pub deferred_item_replacement: Option<DeferredItemReplacement>,
    /// Present when it ends at the next renewal.
    pub deferred_item_removal: Option<PresenceMarker>,
    /// Present for a plan that is paid in advance.
    pub prepaid_plan: Option<PresenceMarker>,
    /// The base plan and the offer it was sold with.
    pub offer_details: Option<OfferDetails>,
    /// What this item replaced, for 60 days after the replacement.
    pub item_replacement: Option<ItemReplacement>,
    /// Present when it was bought with a promotion code.
    pub signup_promotion: Option<PresenceMarker>,
}

/// The product that replaces an item at the next renewal.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeferredItemReplacement {
    /// The product's id.
    pub product_id: Option<String>,
}

/// The product that an item replaced.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ItemReplacement {
    /// The product's id.
    pub product_id: Option<String>,
    /// The base plan's id.
    pub base_plan_id: Option<String>,
    /// How: `WITH_TIME_PRORATION`, `DEFERRED` and the like.
    pub replacement_mode: Option<String>,
}

/// The base plan and offer of an item.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OfferDetails {
    /// The base plan's id.
    pub base_plan_id: Option<String>,
    /// The offer's id, if there was one.
    pub offer_id: Option<String>,
}

/// How an item renews.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoRenewingPlan {
    /// Left out by Google when false.
    pub auto_renew_enabled: Option<bool>,
    /// What each renewal costs.
    pub recurring_price: Option<Money>,
}

/// The price phase of an item: exactly one of these objects is present.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OfferPhase {
    /// Present during a free trial.
    pub free_trial: Option<PresenceMarker>,
    /// Present during an introductory price.
    pub introductory_price: Option<PresenceMarker>,
    /// Present at the full price.
    pub base_price: Option<PresenceMarker>,
    /// Present in the rest of a period of the plan that it replaced.
    pub proration_period: Option<PresenceMarker>,
}

/// An object whose presence is all that matters, whatever it contains.
#[derive(Clone, Copy, Debug)]
pub struct PresenceMarker;

impl<'de> Deserialize<'de> for PresenceMarker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// An amount of money.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Money {
    /// Three letters of ISO 4217.
    pub currency_code: Option<String>,
    /// Whole units of the currency.
    pub units: Option<Int64>,
    /// Billionths of a unit, of the same sign as `units`.
    pub nanos: Option<Int64>,
}

/// An answer to `purchases.products.get` (version 1, whose states are numbers).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProductPurchase {
    /// Always `androidpublisher#productPurchase` in Google's answers.
    pub kind: Option<String>,
    /// When it was bought, in milliseconds since the Unix epoch.
    pub purchase_time_millis: Option<Int64>,
    /// 0 purchased, 1 cancelled, 2 pending.
    pub purchase_state: Option<Int64>,
    /// 0 not consumed, 1 consumed.
    pub consumption_state: Option<Int64>,
    /// 0 not acknowledged, 1 acknowledged.
    pub acknowledgement_state: Option<Int64>,
    /// 0 licence test, 1 promotion code, 2 rewarded advertisement; absent for money.
    pub purchase_type: Option<Int64>,
    /// The order's id.
    pub order_id: Option<String>,
    /// The product's id; may be absent.
    pub product_id: Option<String>,
    /// How many; absent means one.
    pub quantity: Option<Int64>,
    /// How many of them can still be refunded.
    pub refundable_quantity: Option<Int64>,
    /// What the app passed as `obfuscatedAccountId` when it started the purchase.
    pub obfuscated_external_account_id: Option<String>,
    /// The offer it was sold with; only version 2 has it.
    #[serde(skip)]
    pub offer_id: Option<String>,
    /// Ordered before its release; only version 2 has it.
    #[serde(skip)]
    pub is_preorder: bool,
}

/// An answer to `purchases.productsv2.getproductpurchasev2`, whose states are words.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProductPurchaseV2 {
    /// Always `androidpublisher#productPurchaseV2` in Google's answers.
    pub kind: Option<String>,
    /// What was bought; in practice one product.
    #[serde(deserialize_with = "null_is_empty")]
    pub product_line_item: Vec<ProductLineItem>,
    /// How far the purchase has come.
    pub purchase_state_context: Option<PurchaseStateContext>,
    /// Present when a licence tester bought it.
    pub test_purchase_context: Option<PresenceMarker>,
    /// The order's id.
    pub order_id: Option<String>,
    /// What the app passed as `obfuscatedAccountId` when it started the purchase.
    pub obfuscated_external_account_id: Option<String>,
    /// When it was paid; absent while it is pending.
    pub purchase_completion_time: Option<Timestamp>,
    /// Whether the purchase was acknowledged, such as `ACKNOWLEDGEMENT_STATE_PENDING`.
    pub acknowledgement_state: Option<String>,
}

/// How far a purchase has come.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PurchaseStateContext {
    /// `PURCHASED`, `CANCELLED`, `PENDING`
    pub purchase_state: Option<String>,
}

/// One product of a purchase.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProductLineItem {
    /// The product's id in the Play Console.
    pub product_id: Option<String>,
    /// The offer, and what became of it.
    pub product_offer_details: Option<ProductOfferDetails>,
}

/// The offer of a product, and what became of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProductOfferDetails {
    /// The offer's id, if there was one.
    pub offer_id: Option<String>,
    /// How many; absent means one.
    pub quantity: Option<Int64>,
    /// How many of them can still be refunded.
    pub refundable_quantity: Option<Int64>,
    /// Whether the product was consumed, such as `CONSUMPTION_STATE_YET_TO_BE_CONSUMED`.
    pub consumption_state: Option<String>,
    /// Present when it was ordered before its release.
    pub preorder_offer_details: Option<PresenceMarker>,
}

impl From<ProductPurchaseV2> for ProductPurchase {
    /// The same facts in the numbers of version 1.
    fn from(purchase: ProductPurchaseV2) -> Self {
        let item = purchase.product_line_item.into_iter().next();
        let item = item.unwrap_or_default();
        let offer = item.product_offer_details.unwrap_or_default();
        let context = purchase.purchase_state_context.unwrap_or_default();
        let state = context.purchase_state.unwrap_or_default();
        let purchase_state = match state.trim_start_matches("PURCHASE_STATE_") {
            "PURCHASED" => Some(Int64(0)),
            "CANCELLED" | "CANCELED" => Some(Int64(1)),
            "PENDING" => Some(Int64(2)),
            _ => None,
        };
        let is = |word: Option<String>, expected: &str| {
            Some(Int64(i64::from(word.as_deref() == Some(expected))))
        };
        Self {
            kind: purchase.kind,
            purchase_time_millis: purchase
                .purchase_completion_time
                .map(|time| Int64(time.as_millis())),
            purchase_state,
            consumption_state: is(offer.consumption_state, "CONSUMPTION_STATE_CONSUMED"),
            acknowledgement_state: is(
                purchase.acknowledgement_state,
                "ACKNOWLEDGEMENT_STATE_ACKNOWLEDGED",
            ),
            purchase_type: purchase.test_purchase_context.map(|_| Int64(0)),
            order_id: purchase.order_id,
            product_id: item.product_id,
            quantity: offer.quantity,
            refundable_quantity: offer.refundable_quantity,
            obfuscated_external_account_id: purchase.obfuscated_external_account_id,
            offer_id: offer.offer_id,
            is_preorder: offer.preorder_offer_details.is_some(),
        }
    }
}

/// An answer to `orders.get`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Order {
    /// The token of the purchase that was paid with it.
    pub purchase_token: Option<String>,
    /// What was paid for.
    #[serde(deserialize_with = "null_is_empty")]
    pub line_items: Vec<OrderLineItem>,
}

/// One product of an order.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OrderLineItem {
    /// The product's id in the Play Console.
    pub product_id: Option<String>,
    /// Present for a subscription.
    pub subscription_details: Option<PresenceMarker>,
}

/// The message that is inside a Pub/Sub push: what Google calls a real-time developer notification. Exactly one of the
/// blocks is present.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeveloperNotification {
    /// The app's package name.
    pub package_name: Option<String>,
    /// When it happened, in milliseconds since the Unix epoch.
    pub event_time_millis: Option<Int64>,
    /// About a subscription.
    pub subscription_notification: Option<SubscriptionNotification>,
    /// About a one-time product.
    pub one_time_product_notification: Option<OneTimeProductNotification>,
    /// About a refund.
    pub voided_purchase_notification: Option<VoidedPurchaseNotification>,
    /// Google asks about a refund.
    pub pending_refund_review_notification: Option<PendingRefundReviewNotification>,
    /// Sent from the Play Console by hand.
    pub test_notification: Option<PresenceMarker>,
}

/// Something happened to a subscription.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionNotification {
    /// The number of what happened: see [`translate`](super::translate).
    pub notification_type: Option<Int64>,
    /// The purchase's token.
    pub purchase_token: Option<String>,
    /// The product's id; Google is about to remove it.
    pub subscription_id: Option<String>,
}

/// Something happened to a one-time product.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OneTimeProductNotification {
    /// 1 purchased, 2 a pending purchase was cancelled.
    pub notification_type: Option<Int64>,
    /// The purchase's token.
    pub purchase_token: Option<String>,
    /// The product's id.
    pub sku: Option<String>,
}

/// A purchase was voided.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VoidedPurchaseNotification {
    /// The purchase's token.
    pub purchase_token: Option<String>,
    /// The order that was refunded.
    pub order_id: Option<String>,
    /// 1 subscription, 2 one-time product.
    pub product_type: Option<Int64>,
    /// 1 full, 2 some of the quantity.
    pub refund_type: Option<Int64>,
}

/// A page of Google's list of voided purchases.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VoidedPurchasesResponse {
    /// Each a [`VoidedPurchase`].
    pub voided_purchases: Vec<Box<RawValue>>,
    /// Absent on the last page.
    pub token_pagination: Option<TokenPagination>,
}

/// Where the next page is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TokenPagination {
    /// What the next page is asked for with.
    pub next_page_token: Option<String>,
}

/// A refund of Google's list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VoidedPurchase {
    /// The purchase's token.
    pub purchase_token: Option<String>,
    /// The order that was refunded.
    pub order_id: Option<String>,
    /// When it was refunded.
    pub voided_time_millis: Option<Int64>,
    /// How many of the quantity were refunded. Absent where all of the order was.
    pub voided_quantity: Option<i64>,
}

/// Google asks about a refund.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PendingRefundReviewNotification {
    /// What the question is known by.
    pub pending_refund_token: Option<String>,
    /// The order that is to be refunded.
    pub order_id: Option<String>,
    /// What the app passed as `obfuscatedAccountId` when it started the purchase.
    pub obfuscated_account_id: Option<String>,
}

/// An error's body: `{"error":{"code","message","status","errors":[{"reason"}]}}`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct GoogleErrorBody {
    /// Absent when the body is not Google's.
    pub error: Option<GoogleErrorDetails>,
}

/// The error itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GoogleErrorDetails {
    /// A sentence for people.
    pub message: Option<String>,
    /// The class, such as `FAILED_PRECONDITION`; not always there.
    pub status: Option<String>,
    /// The reasons; in practice one.
    #[serde(deserialize_with = "null_is_empty")]
    pub errors: Vec<GoogleErrorReason>,
}

/// A reason of an error.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GoogleErrorReason {
    /// A code such as `purchaseTokenNotFound`.
    pub reason: Option<String>,
}

/// A 64-bit number: a string in Google's JSON, and read from a number too. Written as a string, because many readers of
/// JSON are exact only up to 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Int64(pub i64);

impl<'de> Deserialize<'de> for Int64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Int64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit whole number, as a string or a number")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Int64, E> {
                Ok(Int64(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Int64, E> {
                i64::try_from(value).map(Int64).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Int64, E> {
                value.parse().map(Int64).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for Int64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_whole_subscription_is_read() {
        let read: SubscriptionPurchase = serde_json::from_value(json!({
            "kind": "androidpublisher#subscriptionPurchaseV2",
            "startTime": "2026-04-10T14:22:10.123456Z",
            "regionCode": "US",
            "subscriptionState": "SUBSCRIPTION_STATE_ACTIVE",
            "latestOrderId": "GPA.1..0",
            "testPurchase": {},
            "acknowledgementState": "ACKNOWLEDGEMENT_STATE_PENDING",
            "externalAccountIdentifiers": { "obfuscatedExternalAccountId": "user" },
            "somethingNew": { "deep": [1, 2] },
            "lineItems": [{
                "productId": "premium",
                "expiryTime": "2026-05-10T14:22:10Z",
                "autoRenewingPlan": {
                    "recurringPrice": { "currencyCode": "USD", "units": "9", "nanos": 990_000_000 },
                },
                "offerPhase": { "freeTrial": {} },
                "deferredItemReplacement": { "productId": "basic" },
            }],
        }))
        .expect("readable");
        assert_eq!(
            read.start_time.map(Timestamp::as_millis),
            Some(1_775_830_930_123)
        );
        assert!(read.test_purchase.is_some());
        let item = &read.line_items[0];
        let plan = item.auto_renewing_plan.as_ref().expect("a plan");
        assert_eq!(plan.auto_renew_enabled, None);
        let price = plan.recurring_price.as_ref().expect("a price");
        assert_eq!(price.units, Some(Int64(9)));
        assert_eq!(price.nanos, Some(Int64(990_000_000)));
        assert!(
            item.offer_phase
                .as_ref()
                .expect("a phase")
                .free_trial
                .is_some()
        );
        assert!(item.deferred_item_replacement.is_some());
    }

    #[test]
    fn absent_and_null_are_the_same() {
        for body in [
            json!({}),
            json!({ "lineItems": null, "testPurchase": null, "startTime": null }),
        ] {
            let read: SubscriptionPurchase = serde_json::from_value(body).expect("readable");
            assert!(read.line_items.is_empty());
            assert!(read.test_purchase.is_none());
            assert!(read.start_time.is_none());
        }
        let product: ProductPurchase =
            serde_json::from_value(json!({ "purchaseState": null })).expect("readable");
        assert!(product.purchase_state.is_none());
    }

    proptest! {
        #[test]
        fn a_number_is_read_in_both_forms_and_written_as_a_string(value: i64) {
            let text = serde_json::to_string(&Int64(value)).expect("writes");
            prop_assert_eq!(&text, &format!("\"{value}\""));
            prop_assert_eq!(serde_json::from_str::<Int64>(&text).expect("reads"), Int64(value));
            prop_assert_eq!(serde_json::from_str::<Int64>(&value.to_string()).expect("reads"), Int64(value));
        }
    }

    #[test]
    fn anything_but_a_whole_number_of_64_bits_is_refused() {
        for text in [
            "1.5",
            "\"1.5\"",
            "\"\"",
            "true",
            "{}",
            "18446744073709551615",
            "\"9223372036854775808\"",
        ] {
            assert!(serde_json::from_str::<Int64>(text).is_err(), "{text}");
        }
    }
}
