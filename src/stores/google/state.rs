//! What a Google Play purchase is worth. Pure: Google's record and the time go in, a [`PurchaseState`] comes out.
//!
//! | Google says of a subscription | and | state | until |
//! |---|---|---|---|
//! | `ACTIVE` | its expiry lies ahead | `active` | the expiry |
//! | `IN_GRACE_PERIOD` | its expiry lies ahead | `in_grace_period` | the expiry |
//! | `CANCELED` | its expiry lies ahead | `canceled` | the expiry |
//! | these three | its expiry has passed | `expired` | |
//! | `ON_HOLD`, `PAUSED`, `PENDING` | | `on_hold`, `paused`, `pending` | |
//! | `EXPIRED`, `PENDING_PURCHASE_CANCELED` | | `expired` | |
//! | a word that is not known here | | `unknown` | |
//!
//! | Google says of a one-time product | and | state |
//! |---|---|---|
//! | purchased | not consumed | `active`, without end |
//! | purchased | consumed | `consumed` |
//! | purchased or pending | pre-ordered, and not released | `scheduled` |
//! | pending, canceled | | `pending`, `canceled` |
//!
//! A purchase that was replaced by another is judged by the caller, who knows the other.

use std::time::Duration;

use super::payload::{Int64, LineItem, ProductPurchase, SubscriptionPurchase};
use super::translate::{ACKNOWLEDGEMENT_PERIOD, subscription_acknowledgement};
use crate::base::clock::Timestamp;
use crate::events::{Ownership, PricePeriod, PurchaseState, StateBasis, StateStatus};

/// How long Google waits for the acknowledgement of a licence tester's purchase. Its page says three minutes; five were
/// measured.
pub(super) const TEST_ACKNOWLEDGEMENT_PERIOD: Duration = Duration::from_mins(3);
/// A prepaid plan shorter than this must be acknowledged within half its length.
const SHORT_PREPAID_PLAN: Duration = Duration::from_hours(7 * 24);

/// The item that a subscription's state describes: of those that run the one that lasts longest, else the one that lasted
/// longest. An item without an expiry has not begun.
pub(crate) fn current_line_item(purchase: &SubscriptionPurchase) -> Option<&LineItem> {
    // The first of equals: `max_by_key` would take the last.
    purchase
        .line_items
        .iter()
        .rev()
        .max_by_key(|item| item.expiry_time)
}

/// What a subscription is worth at `now`, by Google's record of it as fetched at `fetched_at`. `extends_until` is the end
/// of the prepaid purchase that this one extends, if it is a top-up.
pub(crate) fn subscription_state(
    purchase: &SubscriptionPurchase,
    extends_until: Option<Timestamp>,
    fetched_at: Timestamp,
    now: Timestamp,
) -> PurchaseState {
    let item = current_line_item(purchase);
    let expiry = item.and_then(|item| item.expiry_time);
    let status = subscription_status(purchase, expiry, now);
    let entitled = matches!(
        status,
        StateStatus::Active | StateStatus::InGracePeriod | StateStatus::Canceled
    );
    let offer = item.and_then(|item| item.offer_details.as_ref());
    let replacement = item.and_then(|item| item.deferred_item_replacement.as_ref());
    let is_over = matches!(
        status,
        StateStatus::Canceled | StateStatus::Expired | StateStatus::Pending | StateStatus::Unknown
    );
    let plan = item.and_then(|item| item.auto_renewing_plan.as_ref());
    let is_on = plan.is_some_and(|plan| plan.auto_renew_enabled == Some(true))
        && item.is_some_and(|item| item.deferred_item_removal.is_none());
    let will_renew = !is_over && (is_on || replacement.is_some());
    let own_product = || item.and_then(|item| item.product_id.clone());
    let resumes_at = purchase
        .paused_state_context
        .as_ref()
        .and_then(|context| context.auto_resume_time);
    let renews_at = match status {
        StateStatus::Paused => resumes_at,
        StateStatus::OnHold => None,
        _ => expiry,
    };
    PurchaseState {
        status,
        entitled,
        entitled_until: expiry.filter(|_| entitled),
        product_id: own_product(),
        base_plan_id: offer.and_then(|offer| offer.base_plan_id.clone()),
        offer_id: offer.and_then(|offer| offer.offer_id.clone()),
        period: item.and_then(price_period),
        will_renew: Some(will_renew),
        renews_as: match replacement {
            Some(replacement) => replacement.product_id.clone(),
            None => own_product(),
        }
        .filter(|_| will_renew),
        renews_at: renews_at.filter(|_| will_renew),
        ownership: Some(Ownership::Purchased),
        quantity: Some(1),
        refundable_quantity: None,
        acknowledge_by: acknowledge_by(purchase, item, extends_until).filter(|_| entitled),
        basis: StateBasis::Store,
        as_of: fetched_at,
    }
}

fn subscription_status(
    purchase: &SubscriptionPurchase,
    expiry: Option<Timestamp>,
    now: Timestamp,
) -> StateStatus {
    let lasts = expiry.is_none_or(|expiry| expiry > now);
    let state = purchase.subscription_state.as_deref().unwrap_or_default();
    match state.strip_prefix("SUBSCRIPTION_STATE_") {
        Some("ACTIVE") if lasts => StateStatus::Active,
        Some("IN_GRACE_PERIOD") if lasts => StateStatus::InGracePeriod,
        Some("CANCELED") if expiry.is_some() && lasts => StateStatus::Canceled,
        Some(
            "ACTIVE" | "IN_GRACE_PERIOD" | "CANCELED" | "EXPIRED" | "PENDING_PURCHASE_CANCELED",
        ) => StateStatus::Expired,
        Some("ON_HOLD") => StateStatus::OnHold,
        Some("PAUSED") => StateStatus::Paused,
        Some("PENDING") => StateStatus::Pending,
        _ => StateStatus::Unknown,
    }
}

fn price_period(item: &LineItem) -> Option<PricePeriod> {
    if item.prepaid_plan.is_some() {
        return Some(PricePeriod::Prepaid);
    }
    if let Some(phase) = &item.offer_phase {
        if phase.free_trial.is_some() {
            return Some(PricePeriod::Trial);
        }
        if phase.introductory_price.is_some() {
            return Some(PricePeriod::Introductory);
        }
        if phase.base_price.is_some() || phase.proration_period.is_some() {
            return Some(PricePeriod::Regular);
        }
    }
    if item.signup_promotion.is_some() {
        return Some(PricePeriod::Promotional);
    }
    // An offer without a phase may be in any of them.
    let has_offer = item
        .offer_details
        .as_ref()
        .is_some_and(|offer| offer.offer_id.is_some());
    (item.auto_renewing_plan.is_some() && !has_offer).then_some(PricePeriod::Regular)
}

/// Until when a subscription must be acknowledged, whether or not access runs: three days from its purchase, minutes for a
/// licence tester, half its length for a prepaid plan under a week. `None` once it is acknowledged or before it is paid.
fn acknowledge_by(
    purchase: &SubscriptionPurchase,
    item: Option<&LineItem>,
    extends_until: Option<Timestamp>,
) -> Option<Timestamp> {
    let start = purchase.start_time?;
    if subscription_acknowledgement(purchase) == 1 {
        return None;
    }
    let mut period = ACKNOWLEDGEMENT_PERIOD;
    let prepaid = item.filter(|item| item.prepaid_plan.is_some());
    if let Some(expiry) = prepaid.and_then(|item| item.expiry_time) {
        let length = expiry.duration_since(extends_until.map_or(start, |end| end.max(start)));
        if length < SHORT_PREPAID_PLAN {
            period = period.min(length / 2);
        }
    }
    if purchase.test_purchase.is_some() {
        period = period.min(TEST_ACKNOWLEDGEMENT_PERIOD);
    }
    Some(start.plus(period))
}

/// Whether the length of the purchase decides until when it must be acknowledged: then the purchase that it extends matters.
pub(super) fn owes_by_length(purchase: &SubscriptionPurchase) -> bool {
    subscription_acknowledgement(purchase) == 0
        && current_line_item(purchase).is_some_and(|item| item.prepaid_plan.is_some())
}

/// What is known of one product of a one-time purchase, from either version of Google's API.
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts that Google states independently of each other"
)]
#[derive(Clone, Debug, Default)]
pub(crate) struct ProductFacts {
    pub(crate) product_id: Option<String>,
    pub(crate) offer_id: Option<String>,
    pub(crate) progress: ProductProgress,
    pub(crate) is_consumed: bool,
    pub(crate) is_acknowledged: bool,
    pub(crate) is_test: bool,
    /// Pre-ordered, and not released yet.
    pub(crate) is_preorder: bool,
    pub(crate) purchased_at: Option<Timestamp>,
    pub(crate) quantity: i64,
    pub(crate) refundable_quantity: Option<i64>,
}

impl From<&ProductPurchase> for ProductFacts {
    fn from(purchase: &ProductPurchase) -> Self {
        let progress = match purchase.purchase_state {
            Some(Int64(0)) => ProductProgress::Purchased,
            Some(Int64(1)) => ProductProgress::Canceled,
            Some(Int64(2)) => ProductProgress::Pending,
            _ => ProductProgress::Unknown,
        };
        Self {
            product_id: purchase.product_id.clone(),
            offer_id: purchase.offer_id.clone(),
            progress,
            is_consumed: purchase.consumption_state == Some(Int64(1)),
            is_acknowledged: purchase.acknowledgement_state == Some(Int64(1)),
            is_test: purchase.purchase_type == Some(Int64(0)),
            // Paid for on the day of its release.
            is_preorder: purchase.is_preorder && progress != ProductProgress::Purchased,
            purchased_at: purchase
                .purchase_time_millis
                .map(|Int64(millis)| Timestamp::from_millis(millis)),
            quantity: purchase.quantity.map_or(1, |Int64(quantity)| quantity),
            refundable_quantity: purchase.refundable_quantity.map(|Int64(quantity)| quantity),
        }
    }
}

/// How far a one-time purchase has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ProductProgress {
    Purchased,
    Canceled,
    Pending,
    /// Google uses a word or number that this release does not know.
    #[default]
    Unknown,
}

/// What a one-time product is worth, by Google's record of it as fetched at `fetched_at`.
pub(crate) fn product_state(facts: &ProductFacts, fetched_at: Timestamp) -> PurchaseState {
    let status = match facts.progress {
        ProductProgress::Purchased | ProductProgress::Pending if facts.is_preorder => {
            StateStatus::Scheduled
        }
        ProductProgress::Purchased if facts.is_consumed => StateStatus::Consumed,
        ProductProgress::Purchased => StateStatus::Active,
        ProductProgress::Canceled => StateStatus::Canceled,
        ProductProgress::Pending => StateStatus::Pending,
        ProductProgress::Unknown => StateStatus::Unknown,
    };
    let entitled = status == StateStatus::Active;
    let period = if facts.is_test {
        TEST_ACKNOWLEDGEMENT_PERIOD
    } else {
        ACKNOWLEDGEMENT_PERIOD
    };
    let is_owed = entitled && !facts.is_acknowledged;
    PurchaseState {
        status,
        entitled,
        entitled_until: None,
        product_id: facts.product_id.clone(),
        base_plan_id: None,
        offer_id: facts.offer_id.clone(),
        period: None,
        will_renew: Some(false),
        renews_as: None,
        renews_at: None,
        ownership: Some(Ownership::Purchased),
        quantity: Some(facts.quantity),
        refundable_quantity: facts.refundable_quantity,
        acknowledge_by: facts
            .purchased_at
            .filter(|_| is_owed)
            .map(|at| at.plus(period)),
        basis: StateBasis::Store,
        as_of: fetched_at,
    }
}

/// The state of a product that Google says was refunded, whatever its record says still.
pub(super) fn refunded_state(state: PurchaseState) -> PurchaseState {
    PurchaseState {
        status: StateStatus::Refunded,
        entitled: false,
        acknowledge_by: None,
        ..state
    }
}

/// The state that verification tells of a purchase that was replaced: that of the current purchase, called replaced.
pub(crate) fn replaced_state(current: PurchaseState) -> PurchaseState {
    PurchaseState {
        status: StateStatus::Replaced,
        ..current
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-04-20T00:00:00.000Z";

    fn now() -> Timestamp {
        Timestamp::parse(NOW).expect("a time")
    }

    /// The state of a subscription with these fields beside those of a plain one that has thirty days to go.
    fn state_of(fields: &Value, item: &Value) -> Value {
        let mut line_item = json!({
            "productId": "pro", "expiryTime": "2026-05-20T00:00:00.000Z",
            "autoRenewingPlan": {"autoRenewEnabled": true}, "offerDetails": {"basePlanId": "monthly"},
        });
        let mut purchase = json!({
            "startTime": "2026-04-19T00:00:00.000Z", "subscriptionState": "SUBSCRIPTION_STATE_ACTIVE",
            "acknowledgementState": "ACKNOWLEDGEMENT_STATE_ACKNOWLEDGED",
        });
        for (object, more) in [(&mut line_item, item), (&mut purchase, fields)] {
            for (name, value) in more.as_object().expect("an object") {
                object[name] = value.clone();
            }
        }
        if purchase.get("lineItems").is_none() {
            purchase["lineItems"] = json!([line_item]);
        }
        let purchase = serde_json::from_value(purchase).expect("readable");
        let state = subscription_state(&purchase, None, now(), now());
        serde_json::to_value(state).expect("writes")
    }

    #[test]
    fn the_table_of_subscriptions_holds() {
        let ahead = "2026-05-20T00:00:00.000Z";
        let past = json!({"expiryTime": "2026-04-19T23:59:59.999Z"});
        let none = json!({});
        for (state, item, expected) in [
            ("ACTIVE", &none, ("active", true, Some(ahead))),
            (
                "IN_GRACE_PERIOD",
                &none,
                ("in_grace_period", true, Some(ahead)),
            ),
            ("CANCELED", &none, ("canceled", true, Some(ahead))),
            ("CANCELED", &past, ("expired", false, None)),
            ("ACTIVE", &past, ("expired", false, None)),
            ("EXPIRED", &none, ("expired", false, None)),
            ("PENDING_PURCHASE_CANCELED", &none, ("expired", false, None)),
            ("ON_HOLD", &past, ("on_hold", false, None)),
            ("PAUSED", &past, ("paused", false, None)),
            ("PENDING", &none, ("pending", false, None)),
            ("NEW_WORD", &none, ("unknown", false, None)),
        ] {
            let fields = json!({"subscriptionState": format!("SUBSCRIPTION_STATE_{state}")});
            let told = state_of(&fields, item);
            let found = (
                told["status"].as_str().expect("a word"),
                told["entitled"].as_bool().expect("yes or no"),
                told["entitledUntil"].as_str(),
            );
            assert_eq!(found, expected, "{state} {item}");
        }
    }

    #[test]
    fn a_deferred_change_keeps_the_running_product_and_names_the_next() {
        let items = json!({"lineItems": [
            {"productId": "pro", "expiryTime": "2026-05-10T00:00:00.000Z", "autoRenewingPlan": {},
             "deferredItemReplacement": {"productId": "basic"}},
            {"productId": "basic", "autoRenewingPlan": {"autoRenewEnabled": true}},
        ]});
        let told = state_of(&items, &json!({}));
        assert_eq!(
            (&told["productId"], &told["renewsAs"], &told["willRenew"]),
            (&json!("pro"), &json!("basic"), &json!(true))
        );
        assert_eq!(told["entitledUntil"], "2026-05-10T00:00:00.000Z");
        assert_eq!(told["renewsAt"], "2026-05-10T00:00:00.000Z");
    }

    #[test]
    fn what_is_over_or_removed_does_not_renew() {
        for (fields, item) in [
            (
                json!({"subscriptionState": "SUBSCRIPTION_STATE_CANCELED"}),
                json!({}),
            ),
            (
                json!({"subscriptionState": "SUBSCRIPTION_STATE_EXPIRED"}),
                json!({}),
            ),
            (json!({}), json!({"autoRenewingPlan": {}})),
            (json!({}), json!({"deferredItemRemoval": {}})),
            (
                json!({}),
                json!({"autoRenewingPlan": null, "prepaidPlan": {}}),
            ),
        ] {
            let told = state_of(&fields, &item);
            assert_eq!(
                (&told["willRenew"], &told["renewsAs"], &told["renewsAt"]),
                (&json!(false), &Value::Null, &Value::Null),
                "{fields} {item}"
            );
        }
    }

    #[test]
    fn the_price_is_told_by_the_phase() {
        for (item, expected) in [
            (json!({}), json!("regular")),
            (json!({"offerPhase": {"freeTrial": {}}}), json!("trial")),
            (
                json!({"offerPhase": {"introductoryPrice": {}}}),
                json!("introductory"),
            ),
            (
                json!({"offerPhase": {"basePrice": {}}, "offerDetails": {"offerId": "o"}}),
                json!("regular"),
            ),
            (json!({"offerDetails": {"offerId": "o"}}), Value::Null),
            (json!({"signupPromotion": {}}), json!("promotional")),
            (
                json!({"autoRenewingPlan": null, "prepaidPlan": {}}),
                json!("prepaid"),
            ),
        ] {
            assert_eq!(state_of(&json!({}), &item)["period"], expected, "{item}");
        }
    }

    #[test]
    fn an_acknowledgement_is_owed_by_googles_rules() {
        let owed = "ACKNOWLEDGEMENT_STATE_PENDING";
        let prepaid = |expiry: &str| json!({"autoRenewingPlan": null, "prepaidPlan": {}, "expiryTime": expiry});
        for (fields, item, expected) in [
            (json!({}), json!({}), Value::Null),
            (
                json!({"acknowledgementState": owed}),
                json!({}),
                json!("2026-04-22T00:00:00.000Z"),
            ),
            (
                json!({"acknowledgementState": owed, "subscriptionState": "SUBSCRIPTION_STATE_CANCELED"}),
                json!({}),
                json!("2026-04-22T00:00:00.000Z"),
            ),
            (
                json!({"acknowledgementState": owed, "subscriptionState": "SUBSCRIPTION_STATE_EXPIRED"}),
                json!({}),
                Value::Null,
            ),
            (
                json!({"acknowledgementState": owed, "testPurchase": {}}),
                json!({}),
                json!("2026-04-19T00:03:00.000Z"),
            ),
            (
                json!({"acknowledgementState": owed}),
                prepaid("2026-04-22T00:00:00.000Z"),
                json!("2026-04-20T12:00:00.000Z"),
            ),
            (
                json!({"acknowledgementState": owed}),
                prepaid("2026-04-26T00:00:00.000Z"),
                json!("2026-04-22T00:00:00.000Z"),
            ),
        ] {
            assert_eq!(
                state_of(&fields, &item)["acknowledgeBy"],
                expected,
                "{fields} {item}"
            );
        }
    }

    #[test]
    fn a_top_up_is_as_long_as_what_it_adds() {
        let purchase: SubscriptionPurchase = serde_json::from_value(json!({
            "startTime": "2026-04-19T00:00:00.000Z", "subscriptionState": "SUBSCRIPTION_STATE_ACTIVE",
            "lineItems": [{"prepaidPlan": {}, "expiryTime": "2026-05-10T00:00:00.000Z"}],
        }))
        .expect("readable");
        let earlier = Timestamp::parse("2026-05-07T00:00:00.000Z");
        let state = subscription_state(&purchase, earlier, now(), now());
        assert_eq!(
            state.acknowledge_by,
            Timestamp::parse("2026-04-20T12:00:00.000Z")
        );
    }

    #[test]
    fn the_table_of_products_holds() {
        let facts = |progress, is_consumed, is_preorder| ProductFacts {
            progress,
            is_consumed,
            is_preorder,
            purchased_at: Some(now()),
            quantity: 5,
            refundable_quantity: Some(3),
            ..ProductFacts::default()
        };
        for (facts, status, entitled) in [
            (
                facts(ProductProgress::Purchased, false, false),
                StateStatus::Active,
                true,
            ),
            (
                facts(ProductProgress::Purchased, true, false),
                StateStatus::Consumed,
                false,
            ),
            (
                facts(ProductProgress::Purchased, false, true),
                StateStatus::Scheduled,
                false,
            ),
            (
                facts(ProductProgress::Pending, false, true),
                StateStatus::Scheduled,
                false,
            ),
            (
                facts(ProductProgress::Pending, false, false),
                StateStatus::Pending,
                false,
            ),
            (
                facts(ProductProgress::Canceled, false, false),
                StateStatus::Canceled,
                false,
            ),
            (
                facts(ProductProgress::Unknown, false, false),
                StateStatus::Unknown,
                false,
            ),
        ] {
            let state = product_state(&facts, now());
            assert_eq!(
                (state.status, state.entitled),
                (status, entitled),
                "{facts:?}"
            );
            assert_eq!(
                (state.quantity, state.refundable_quantity),
                (Some(5), Some(3))
            );
            assert_eq!(state.acknowledge_by.is_some(), entitled, "{facts:?}");
        }
    }
}
