//! From Google's words to Attesto's. Pure: the purchase or notification and the time go in, the meaning comes out.
//!
//! | Google says of a subscription | and | status |
//! |---|---|---|
//! | `PENDING` | | `pending` |
//! | `ACTIVE` | | `active` |
//! | `IN_GRACE_PERIOD` | | `in_grace_period` |
//! | `CANCELED` | its expiry lies ahead | `canceled`: paid for, and will not renew |
//! | `CANCELED` | its expiry has passed | `expired` |
//! | `ON_HOLD` | | `on_hold` |
//! | `PAUSED` | | `paused` |
//! | `EXPIRED` | | `expired` |
//! | `PENDING_PURCHASE_CANCELED` | | `expired`: it never began; not `canceled`, which is still paid for |
//! | `ACTIVE`, `IN_GRACE_PERIOD` | the item has expired while another item lasts | `expired`: the state is the other's |
//! | any other word | | `unknown` |
//!
//! | Google says of a product | and | status |
//! |---|---|---|
//! | 0, purchased | not consumed | `active` |
//! | 0, purchased | consumed | `consumed` |
//! | 1, cancelled | | `canceled`: refunded or never paid; Google does not say here which |
//! | 2, pending | | `pending` |
//! | anything else | | `unknown` |
//!
//! | Google notifies of | event | reason |
//! |---|---|---|
//! | subscription 1, 2, 3, 5, 6, 7 | `recovered`, `renewed`, `cancellation_scheduled`, `on_hold`, `in_grace_period`, `cancellation_revoked` | |
//! | subscription 4, the first, or after the last one had ended | `purchased` | `initial`, `resubscribe` |
//! | subscription 4, replaces one that was running, same product and base plan | `purchased` | `resubscribe` |
//! | subscription 4, replaces one that was running, same product, both prepaid | `renewed` | `top_up` |
//! | subscription 4, replaces one that was running, another plan | `upgraded` | |
//! | subscription 4, another plan follows at the next renewal | `renewal_pref_changed` | `downgrade` |
//! | any but 4 and 20, of a purchase that another one replaced | `replaced` | |
//! | subscription 8, 9, 10, 11, 12 | `price_change_accepted`, `deferred`, `paused`, `pause_schedule_changed`, `revoked` | |
//! | subscription 13 | `expired` | `voluntary`, `billing_retry`, `developer`, `replaced` |
//! | subscription 17, 19, 20 | `items_changed`, `price_change_updated`, `pending_purchase_canceled` | |
//! | subscription 18 | `cancellation_scheduled` | `installment` |
//! | subscription 22 | `price_change_pending` | `step_up_consent` |
//! | one-time 1, 2 | `product.purchased`, `product.pending_purchase_canceled` | |
//! | voided 1, 2 | `subscription.refunded`, `product.refunded` | `full`, `partial` |
//! | refund review, test | `product.refund_review`, `test` | |
//! | anything else | `unknown` | |
//!
//! So access is paid for in `active`, `in_grace_period` and `canceled` for a subscription, in `active` and `consumed` for a
//! product, and in no other status.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::payload::{
    DeveloperNotification, Int64, LineItem, Money, ProductPurchase, SubscriptionPurchase,
    VoidedPurchaseNotification,
};
use super::state;
use crate::base::clock::Timestamp;
use crate::events::EventType;

/// How long Google waits for an acknowledgement before it refunds.
pub(super) const ACKNOWLEDGEMENT_PERIOD: Duration = Duration::from_hours(72);

/// What a purchase is now. `active` and `in_grace_period` entitle; so does a subscription that is `canceled`, until it
/// expires.
///
/// - `active`: paid for.
/// - `in_grace_period`: a renewal failed; access goes on while Google tries again.
/// - `on_hold`: a renewal failed and the grace period is over; no access.
/// - `paused`: the subscriber paused it; no access.
/// - `pending`: not paid yet, such as cash at a shop; no access.
/// - `canceled`: a subscription that will not renew, and is paid for until it expires. A product that was cancelled or
///   refunded; no access.
/// - `expired`: over, or it never began.
/// - `consumed`: a product that was used up.
/// - `unknown`: Google uses a word that this release does not know; no access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = google::Status)]
pub enum PurchaseStatus {
    /// Paid for, and not ended.
    Active,
    /// A renewal failed; access goes on while Google tries again.
    InGracePeriod,
    /// A renewal failed and the grace period is over; no access.
    OnHold,
    /// The subscriber paused it; no access.
    Paused,
    /// Not paid yet, such as cash at a shop; no access.
    Pending,
    /// Subscription: will not renew, paid for until it expires. Product: cancelled or refunded; no access.
    Canceled,
    /// Over, or never began.
    Expired,
    /// A product that was used up.
    Consumed,
    /// Google uses a word this release does not know.
    Unknown,
}

/// The item that an answer describes: the one of the product `product_id`, else the one that lasts longest. Of several
/// items of one product the one that lasts longest. `None` when no item is of that product, or there are no items.
pub fn select_line_item<'a>(
    purchase: &'a SubscriptionPurchase,
    product_id: Option<&str>,
) -> Option<&'a LineItem> {
    purchase
        .line_items
        .iter()
        .filter(|item| product_id.is_none() || item.product_id.as_deref() == product_id)
        // The first of equals: `max_by_key` would take the last.
        .rev()
        .max_by_key(|item| item.expiry_time)
}

/// What `item` of a subscription is now. The table is at the top of this file.
pub fn subscription_status(
    purchase: &SubscriptionPurchase,
    item: Option<&LineItem>,
    now: Timestamp,
) -> PurchaseStatus {
    let lasts = |item: &LineItem| item.expiry_time.is_some_and(|expiry| expiry > now);
    let this_lasts = item.is_some_and(lasts);
    let state = purchase.subscription_state.as_deref().unwrap_or_default();
    match state.strip_prefix("SUBSCRIPTION_STATE_") {
        // The state is that of the purchase as a whole; an add-on can be over while the rest goes on.
        Some("ACTIVE" | "IN_GRACE_PERIOD")
            if item.is_some() && !this_lasts && purchase.line_items.iter().any(lasts) =>
        {
            PurchaseStatus::Expired
        }
        Some("ACTIVE") => PurchaseStatus::Active,
        Some("IN_GRACE_PERIOD") => PurchaseStatus::InGracePeriod,
        Some("CANCELED") if this_lasts => PurchaseStatus::Canceled,
        Some("CANCELED" | "EXPIRED" | "PENDING_PURCHASE_CANCELED") => PurchaseStatus::Expired,
        Some("ON_HOLD") => PurchaseStatus::OnHold,
        Some("PAUSED") => PurchaseStatus::Paused,
        Some("PENDING") => PurchaseStatus::Pending,
        _ => PurchaseStatus::Unknown,
    }
}

/// What a product is now. The table is at the top of this file.
pub fn product_status(purchase: &ProductPurchase) -> PurchaseStatus {
    match (purchase.purchase_state, purchase.consumption_state) {
        (Some(Int64(0)), Some(Int64(1))) => PurchaseStatus::Consumed,
        (Some(Int64(0)), _) => PurchaseStatus::Active,
        (Some(Int64(1)), _) => PurchaseStatus::Canceled,
        (Some(Int64(2)), _) => PurchaseStatus::Pending,
        _ => PurchaseStatus::Unknown,
    }
}

/// The payment state that version 1 of Google's API gave and version 2 no longer gives: 0 waiting for the money,
/// 1 received, 2 free trial, 3 another plan takes over at the next renewal. `None` when the subscription is cancelled,
/// over or unknown, as in version 1.
pub fn payment_state(status: PurchaseStatus, item: Option<&LineItem>) -> Option<u8> {
    match status {
        PurchaseStatus::Pending | PurchaseStatus::InGracePeriod | PurchaseStatus::OnHold => Some(0),
        PurchaseStatus::Active | PurchaseStatus::Paused => {
            let deferred = item.is_some_and(|item| item.deferred_item_replacement.is_some());
            let free = item
                .and_then(|item| item.offer_phase.as_ref())
                .is_some_and(|phase| phase.free_trial.is_some());
            Some(match (deferred, free) {
                (true, _) => 3,
                (false, true) => 2,
                (false, false) => 1,
            })
        }
        PurchaseStatus::Canceled
        | PurchaseStatus::Expired
        | PurchaseStatus::Consumed
        | PurchaseStatus::Unknown => None,
    }
}

/// 1 when the purchase was acknowledged, else 0. An unknown state is 0, because an acknowledgement too many does no harm,
/// and without one Google refunds the purchase.
pub(super) fn subscription_acknowledgement(purchase: &SubscriptionPurchase) -> u8 {
    u8::from(
        purchase.acknowledgement_state.as_deref() == Some("ACKNOWLEDGEMENT_STATE_ACKNOWLEDGED"),
    )
}

/// 1 when the purchase was acknowledged, else 0.
pub fn product_acknowledgement(purchase: &ProductPurchase) -> u8 {
    u8::from(purchase.acknowledgement_state == Some(Int64(1)))
}

/// An amount in millionths of a unit, rounded towards zero. `None` when it does not fit 64 bits, which no price does.
pub fn to_micros(money: &Money) -> Option<Int64> {
    let Int64(units) = money.units.unwrap_or(Int64(0));
    let Int64(nanos) = money.nanos.unwrap_or(Int64(0));
    let micros = i128::from(units) * 1_000_000 + i128::from(nanos) / 1_000;
    i64::try_from(micros).ok().map(Int64)
}

/// What a notification means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoogleTranslation {
    /// The event's type: what `event` says in the JSON.
    pub event_type: EventType,
    /// The event's `reason`, such as `resubscribe`.
    pub reason: Option<&'static str>,
    /// Google's number or block, such as `google.subscription.4`.
    pub platform_event: String,
}

/// What is known of the purchase that another one replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplacedPurchase {
    /// Google could not be asked.
    #[default]
    Unknown,
    /// The purchase replaces no other.
    Nothing,
    /// The other purchase was still running.
    Running(Replacement),
    /// The other purchase had ended before.
    Ended,
}

/// In which way a purchase replaced another one that was still running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// By another product or base plan.
    OtherPlan,
    /// By the same product and base plan.
    SamePlan,
    /// More time was paid in advance.
    TopUp,
}

/// In which way `purchase` replaced `earlier`.
pub(super) fn replacement_kind(
    purchase: &SubscriptionPurchase,
    earlier: &SubscriptionPurchase,
) -> Replacement {
    fn base_plan(item: &LineItem) -> Option<&str> {
        item.offer_details.as_ref()?.base_plan_id.as_deref()
    }
    let (Some(new), Some(old)) = (
        state::current_line_item(purchase),
        state::current_line_item(earlier),
    ) else {
        return Replacement::OtherPlan;
    };
    if new.product_id != old.product_id {
        Replacement::OtherPlan
    } else if new.prepaid_plan.is_some() && old.prepaid_plan.is_some() {
        Replacement::TopUp
    } else if base_plan(new) == base_plan(old) {
        Replacement::SamePlan
    } else {
        Replacement::OtherPlan
    }
}

/// What a notification means. `purchase` is the subscription it is about, as it is now, if Google could be asked;
/// `replaced` is what that one replaces. The table is at the top of this file.
pub fn translate_notification(
    notification: &DeveloperNotification,
    purchase: Option<&SubscriptionPurchase>,
    replaced: ReplacedPurchase,
) -> GoogleTranslation {
    let plain = |word, reason, platform_event: &str| GoogleTranslation {
        event_type: word,
        reason,
        platform_event: platform_event.to_owned(),
    };
    if let Some(details) = &notification.subscription_notification
        && let Some(Int64(number)) = details.notification_type
    {
        let (word, reason) = subscription_event(number, purchase, replaced);
        plain(word, reason, &format!("google.subscription.{number}"))
    } else if let Some(details) = &notification.one_time_product_notification
        && let Some(Int64(number)) = details.notification_type
    {
        let word = match number {
            1 => EventType::ProductPurchased,
            2 => EventType::ProductPendingPurchaseCanceled,
            _ => EventType::Unknown,
        };
        plain(word, None, &format!("google.product.{number}"))
    } else if let Some(details) = &notification.voided_purchase_notification {
        plain(
            voided_event(details),
            refund_extent(details),
            "google.voided",
        )
    } else if notification.pending_refund_review_notification.is_some() {
        plain(EventType::ProductRefundReview, None, "google.refund_review")
    } else if notification.test_notification.is_some() {
        plain(EventType::Test, None, "google.test")
    } else {
        plain(EventType::Unknown, None, "google.unknown")
    }
}

fn subscription_event(
    number: i64,
    purchase: Option<&SubscriptionPurchase>,
    replaced: ReplacedPurchase,
) -> (EventType, Option<&'static str>) {
    let word = match number {
        1 => EventType::SubscriptionRecovered,
        2 => EventType::SubscriptionRenewed,
        3 => EventType::SubscriptionCancellationScheduled,
        4 => return purchase_event(purchase, replaced),
        5 => EventType::SubscriptionOnHold,
        6 => EventType::SubscriptionInGracePeriod,
        7 => EventType::SubscriptionCancellationRevoked,
        8 => EventType::SubscriptionPriceChangeAccepted,
        9 => EventType::SubscriptionDeferred,
        10 => EventType::SubscriptionPaused,
        11 => EventType::SubscriptionPauseScheduleChanged,
        12 => EventType::SubscriptionRevoked,
        13 => {
            return (
                EventType::SubscriptionExpired,
                purchase.and_then(expiry_reason),
            );
        }
        17 => EventType::SubscriptionItemsChanged,
        18 => {
            return (
                EventType::SubscriptionCancellationScheduled,
                Some("installment"),
            );
        }
        19 => EventType::SubscriptionPriceChangeUpdated,
        20 => EventType::SubscriptionPendingPurchaseCanceled,
        22 => {
            return (
                EventType::SubscriptionPriceChangePending,
                Some("step_up_consent"),
            );
        }
        _ => EventType::Unknown,
    };
    (word, None)
}

fn purchase_event(
    purchase: Option<&SubscriptionPurchase>,
    replaced: ReplacedPurchase,
) -> (EventType, Option<&'static str>) {
    // Bought outside the app after the last one had expired: Google links those in another way.
    let again = purchase.is_some_and(|purchase| purchase.out_of_app_purchase_context.is_some());
    let is_deferred = purchase.is_some_and(|purchase| {
        let mut items = purchase.line_items.iter();
        purchase.linked_purchase_token.is_some()
            && items.any(|item| item.deferred_item_replacement.is_some())
    });
    match replaced {
        ReplacedPurchase::Running(_) | ReplacedPurchase::Unknown if is_deferred => {
            (EventType::SubscriptionRenewalPrefChanged, Some("downgrade"))
        }
        ReplacedPurchase::Running(Replacement::OtherPlan) => {
            (EventType::SubscriptionUpgraded, None)
        }
        ReplacedPurchase::Running(Replacement::SamePlan) => {
            (EventType::SubscriptionPurchased, Some("resubscribe"))
        }
        ReplacedPurchase::Running(Replacement::TopUp) => {
            (EventType::SubscriptionRenewed, Some("top_up"))
        }
        ReplacedPurchase::Ended => (EventType::SubscriptionPurchased, Some("resubscribe")),
        ReplacedPurchase::Nothing if again => {
            (EventType::SubscriptionPurchased, Some("resubscribe"))
        }
        ReplacedPurchase::Nothing => (EventType::SubscriptionPurchased, Some("initial")),
        ReplacedPurchase::Unknown => (EventType::SubscriptionPurchased, None),
    }
}

/// Why a subscription is over, if Google says.
fn expiry_reason(purchase: &SubscriptionPurchase) -> Option<&'static str> {
    let context = purchase.canceled_state_context.as_ref()?;
    if context.user_initiated_cancellation.is_some() {
        Some("voluntary")
    } else if context.system_initiated_cancellation.is_some() {
        Some("billing_retry")
    } else if context.developer_initiated_cancellation.is_some() {
        Some("developer")
    } else if context.replacement_cancellation.is_some() {
        Some("replaced")
    } else {
        None
    }
}

/// Whether a purchase says that another one took its place.
pub(super) fn is_replaced(purchase: &SubscriptionPurchase) -> bool {
    let context = purchase.canceled_state_context.as_ref();
    context.is_some_and(|context| context.replacement_cancellation.is_some())
}

/// Whether a purchase was still running when another took its place at `moment`. By the time of the notification
/// Google has ended it already, so its state now is not enough.
pub(super) fn was_running(replaced: &SubscriptionPurchase, moment: Timestamp) -> bool {
    let is_replaced = is_replaced(replaced);
    let lasts = select_line_item(replaced, None)
        .and_then(|item| item.expiry_time)
        .is_some_and(|expiry| expiry > moment);
    let state = replaced.subscription_state.as_deref().unwrap_or_default();
    match state.strip_prefix("SUBSCRIPTION_STATE_") {
        Some("ACTIVE" | "IN_GRACE_PERIOD") => true,
        Some("CANCELED" | "EXPIRED") => is_replaced || lasts,
        _ => false,
    }
}

fn voided_event(details: &VoidedPurchaseNotification) -> EventType {
    match details.product_type {
        Some(Int64(1)) => EventType::SubscriptionRefunded,
        Some(Int64(2)) => EventType::ProductRefunded,
        _ => EventType::Unknown,
    }
}

fn refund_extent(details: &VoidedPurchaseNotification) -> Option<&'static str> {
    match details.refund_type {
        Some(Int64(1)) => Some("full"),
        Some(Int64(2)) => Some("partial"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::payload::{
        AutoRenewingPlan, CanceledStateContext, DeferredItemReplacement, OfferPhase,
        OutOfAppPurchaseContext, PresenceMarker,
    };
    use super::*;

    const NOW: i64 = 1_775_830_930_000;

    fn now() -> Timestamp {
        Timestamp::from_millis(NOW)
    }

    fn item(product: &str, ends_in_ms: i64) -> LineItem {
        LineItem {
            product_id: Some(product.to_owned()),
            expiry_time: Some(Timestamp::from_millis(NOW + ends_in_ms)),
            ..LineItem::default()
        }
    }

    fn subscription(state: &str, line_items: Vec<LineItem>) -> SubscriptionPurchase {
        SubscriptionPurchase {
            subscription_state: Some(format!("SUBSCRIPTION_STATE_{state}")),
            start_time: Some(Timestamp::from_millis(NOW - 1000)),
            line_items,
            ..SubscriptionPurchase::default()
        }
    }

    #[test]
    fn every_state_of_a_subscription_has_its_status() {
        use PurchaseStatus::*;
        // state, expiry in ms from now, status, payment state
        for (state, ends_in_ms, status, payment) in [
            ("ACTIVE", 1, Active, Some(1)),
            // Google says it is active, and Google knows: the date may be a moment behind.
            ("ACTIVE", -1, Active, Some(1)),
            ("IN_GRACE_PERIOD", 1, InGracePeriod, Some(0)),
            ("IN_GRACE_PERIOD", -1, InGracePeriod, Some(0)),
            ("CANCELED", 1, Canceled, None),
            ("CANCELED", 0, Expired, None),
            ("CANCELED", -1, Expired, None),
            ("ON_HOLD", -1, OnHold, Some(0)),
            ("PAUSED", -1, Paused, Some(1)),
            ("PENDING", 1, Pending, Some(0)),
            ("EXPIRED", -1, Expired, None),
            ("EXPIRED", 1, Expired, None),
            ("PENDING_PURCHASE_CANCELED", 1, Expired, None),
            ("UNSPECIFIED", 1, Unknown, None),
            ("SOMETHING_NEW", 1, Unknown, None),
        ] {
            let purchase = subscription(state, vec![item("a", ends_in_ms)]);
            let item = select_line_item(&purchase, None);
            let found = subscription_status(&purchase, item, now());
            assert_eq!(found, status, "{state} {ends_in_ms}");
            assert_eq!(payment_state(found, item), payment, "{state} {ends_in_ms}");
        }
        let mut stateless = subscription("ACTIVE", vec![]);
        stateless.subscription_state = None;
        assert_eq!(subscription_status(&stateless, None, now()), Unknown);
        assert_eq!(
            subscription_status(&subscription("CANCELED", vec![]), None, now()),
            Expired,
            "without an expiry there is nothing left to use"
        );
    }

    #[test]
    fn an_add_on_can_expire_while_the_plan_continues() {
        let purchase = subscription("ACTIVE", vec![item("plan", 1000), item("add-on", -1000)]);
        let status = |product| {
            let item = select_line_item(&purchase, Some(product));
            assert!(item.is_some());
            subscription_status(&purchase, item, now())
        };
        assert_eq!(status("plan"), PurchaseStatus::Active);
        assert_eq!(status("add-on"), PurchaseStatus::Expired);
    }

    #[test]
    fn the_item_is_the_requested_one_or_the_longest() {
        let mut endless = item("no-date", 0);
        endless.expiry_time = None;
        let purchase = subscription(
            "ACTIVE",
            vec![
                endless,
                item("short", 1),
                item("long", 9),
                item("twin", 9),
                item("short", 5),
            ],
        );
        let pick =
            |product| select_line_item(&purchase, product).and_then(|item| item.product_id.clone());
        assert_eq!(pick(None).as_deref(), Some("long"), "the first of equals");
        assert_eq!(pick(Some("twin")).as_deref(), Some("twin"));
        assert_eq!(pick(Some("no-date")).as_deref(), Some("no-date"));
        assert_eq!(pick(Some("other")), None);
        assert_eq!(
            select_line_item(&purchase, Some("short")).and_then(|item| item.expiry_time),
            Some(Timestamp::from_millis(NOW + 5)),
            "the longest of one product"
        );
        assert!(select_line_item(&subscription("PENDING", vec![]), None).is_none());
    }

    #[test]
    fn a_trial_and_a_coming_change_show_in_the_payment_state() {
        let mut item = item("a", 1);
        item.offer_phase = Some(OfferPhase {
            free_trial: Some(PresenceMarker),
            ..OfferPhase::default()
        });
        assert_eq!(payment_state(PurchaseStatus::Active, Some(&item)), Some(2));
        item.deferred_item_replacement = Some(DeferredItemReplacement::default());
        assert_eq!(payment_state(PurchaseStatus::Active, Some(&item)), Some(3));
        item.offer_phase = Some(OfferPhase::default());
        item.auto_renewing_plan = Some(AutoRenewingPlan::default());
        assert_eq!(payment_state(PurchaseStatus::Active, Some(&item)), Some(3));
        assert_eq!(payment_state(PurchaseStatus::Active, None), Some(1));
    }

    #[test]
    fn every_state_of_a_product_has_its_status() {
        use PurchaseStatus::*;
        // purchase state, consumption state, acknowledgement state, status, must be acknowledged
        for (purchased, consumed, acknowledged, status, due) in [
            (Some(0), Some(0), Some(0), Active, true),
            (Some(0), None, None, Active, true),
            (Some(0), Some(0), Some(1), Active, false),
            (Some(0), Some(1), Some(1), Consumed, false),
            // To consume is to acknowledge.
            (Some(0), Some(1), Some(0), Consumed, false),
            (Some(1), Some(0), Some(0), Canceled, false),
            (Some(1), Some(1), Some(1), Canceled, false),
            (Some(2), Some(0), Some(0), Pending, false),
            (Some(3), Some(0), Some(0), Unknown, false),
            (None, Some(0), Some(0), Unknown, false),
        ] {
            let purchase = ProductPurchase {
                purchase_time_millis: Some(Int64(NOW)),
                purchase_state: purchased.map(Int64),
                consumption_state: consumed.map(Int64),
                acknowledgement_state: acknowledged.map(Int64),
                ..ProductPurchase::default()
            };
            let case = format!("{purchased:?} {consumed:?} {acknowledged:?}");
            assert_eq!(product_status(&purchase), status, "{case}");
            let by = due.then(|| now().plus(Duration::from_hours(72)));
            let state = state::product_state(&state::ProductFacts::from(&purchase), now());
            assert_eq!(state.acknowledge_by, by, "{case}");
        }
    }

    #[test]
    fn an_acknowledgement_is_a_number() {
        for (acknowledgement, number) in [
            (Some("ACKNOWLEDGEMENT_STATE_PENDING"), 0),
            (Some("ACKNOWLEDGEMENT_STATE_UNSPECIFIED"), 0),
            (None, 0),
            (Some("ACKNOWLEDGEMENT_STATE_ACKNOWLEDGED"), 1),
        ] {
            let mut purchase = subscription("ACTIVE", vec![]);
            purchase.acknowledgement_state = acknowledgement.map(str::to_owned);
            assert_eq!(subscription_acknowledgement(&purchase), number);
        }
    }

    #[test]
    fn a_replacement_is_another_plan_the_same_or_more_time() {
        let purchase = |product: &str, plan: &str, is_prepaid: bool| {
            let kind = if is_prepaid {
                "prepaidPlan"
            } else {
                "autoRenewingPlan"
            };
            serde_json::from_value::<SubscriptionPurchase>(json!({ "lineItems": [
                { "productId": product, "offerDetails": { "basePlanId": plan }, kind: {} },
            ] }))
            .expect("readable")
        };
        let old = purchase("a", "monthly", false);
        let old_prepaid = purchase("a", "week", true);
        for (earlier, product, plan, is_prepaid, expected) in [
            (&old, "a", "monthly", false, Replacement::SamePlan),
            (&old, "a", "yearly", false, Replacement::OtherPlan),
            (&old, "b", "monthly", false, Replacement::OtherPlan),
            (&old, "a", "week", true, Replacement::OtherPlan),
            (&old_prepaid, "a", "week", true, Replacement::TopUp),
            (&old_prepaid, "a", "month", true, Replacement::TopUp),
            (&old_prepaid, "b", "week", true, Replacement::OtherPlan),
            (&old_prepaid, "a", "monthly", false, Replacement::OtherPlan),
        ] {
            let found = replacement_kind(&purchase(product, plan, is_prepaid), earlier);
            assert_eq!(found, expected, "{product} {plan}");
        }
    }

    #[test]
    fn money_in_micros() {
        let amount = |units, nanos| {
            to_micros(&Money {
                currency_code: None,
                units,
                nanos,
            })
        };
        for (units, nanos, expected) in [
            (Some(9), Some(990_000_000), Some(9_990_000)),
            (Some(0), Some(990_000_000), Some(990_000)),
            (None, Some(990_000_000), Some(990_000)),
            (Some(1_200_000), None, Some(1_200_000_000_000)),
            (Some(-1), Some(-750_000_000), Some(-1_750_000)),
            (Some(0), Some(999), Some(0)),
            (None, None, Some(0)),
            (Some(i64::MAX), None, None),
            (
                Some(9_007_199_254),
                Some(740_993_000),
                Some(9_007_199_254_740_993),
            ),
        ] {
            assert_eq!(
                amount(units.map(Int64), nanos.map(Int64)),
                expected.map(Int64)
            );
        }
    }

    fn notification(block: &str, fields: &serde_json::Value) -> DeveloperNotification {
        serde_json::from_value(json!({ "packageName": "p", block: fields })).expect("readable")
    }

    /// Google's number, our event type, the reason.
    const SUBSCRIPTION_TABLE: &[(i64, &str, Option<&str>)] = &[
        (1, "subscription.recovered", None),
        (2, "subscription.renewed", None),
        (3, "subscription.cancellation_scheduled", None),
        (4, "subscription.purchased", None),
        (5, "subscription.on_hold", None),
        (6, "subscription.in_grace_period", None),
        (7, "subscription.cancellation_revoked", None),
        (8, "subscription.price_change_accepted", None),
        (9, "subscription.deferred", None),
        (10, "subscription.paused", None),
        (11, "subscription.pause_schedule_changed", None),
        (12, "subscription.revoked", None),
        (13, "subscription.expired", None),
        (14, "unknown", None),
        (15, "unknown", None),
        (16, "unknown", None),
        (17, "subscription.items_changed", None),
        (
            18,
            "subscription.cancellation_scheduled",
            Some("installment"),
        ),
        (19, "subscription.price_change_updated", None),
        (20, "subscription.pending_purchase_canceled", None),
        (21, "unknown", None),
        (
            22,
            "subscription.price_change_pending",
            Some("step_up_consent"),
        ),
        (23, "unknown", None),
        (0, "unknown", None),
        (-1, "unknown", None),
    ];
    const PRODUCT_TABLE: &[(i64, &str, Option<&str>)] = &[
        (1, "product.purchased", None),
        (2, "product.pending_purchase_canceled", None),
        (3, "unknown", None),
    ];

    #[test]
    fn every_number_has_its_event() {
        for (block, name, table) in [
            (
                "subscriptionNotification",
                "subscription",
                SUBSCRIPTION_TABLE,
            ),
            ("oneTimeProductNotification", "product", PRODUCT_TABLE),
        ] {
            for (number, word, reason) in table {
                let fields = json!({ "notificationType": number, "purchaseToken": "t" });
                let found = translate_notification(
                    &notification(block, &fields),
                    None,
                    ReplacedPurchase::Unknown,
                );
                assert_eq!(found.platform_event, format!("google.{name}.{number}"));
                assert_eq!((found.event_type.as_str(), found.reason), (*word, *reason));
            }
        }
    }

    #[test]
    fn every_other_block_has_its_event() {
        let voided = "voidedPurchaseNotification";
        let [full, part] = ["full", "partial"].map(Some);
        let refunded = "subscription.refunded";
        for (block, fields, name, word, reason) in [
            (
                voided,
                json!({ "productType": 1, "refundType": 1 }),
                "voided",
                refunded,
                full,
            ),
            (
                voided,
                json!({ "productType": 1, "refundType": 2 }),
                "voided",
                refunded,
                part,
            ),
            (
                voided,
                json!({ "productType": 2, "refundType": 2 }),
                "voided",
                "product.refunded",
                part,
            ),
            (
                voided,
                json!({ "productType": 2 }),
                "voided",
                "product.refunded",
                None,
            ),
            (
                voided,
                json!({ "productType": 3, "refundType": 9 }),
                "voided",
                "unknown",
                None,
            ),
            (
                "pendingRefundReviewNotification",
                json!({}),
                "refund_review",
                "product.refund_review",
                None,
            ),
            (
                "testNotification",
                json!({ "version": "1.0" }),
                "test",
                "test",
                None,
            ),
            (
                "subscriptionNotification",
                json!({}),
                "unknown",
                "unknown",
                None,
            ),
            (
                "oneTimeProductNotification",
                json!({}),
                "unknown",
                "unknown",
                None,
            ),
            (
                "somethingNewNotification",
                json!({}),
                "unknown",
                "unknown",
                None,
            ),
        ] {
            let found = translate_notification(
                &notification(block, &fields),
                None,
                ReplacedPurchase::Unknown,
            );
            assert_eq!(found.platform_event, format!("google.{name}"));
            assert_eq!(
                (found.event_type.as_str(), found.reason),
                (word, reason),
                "{fields}"
            );
        }
    }

    #[test]
    fn a_purchase_is_the_first_or_one_more_or_a_change_of_plan() {
        use ReplacedPurchase::*;
        let mut purchase = subscription("ACTIVE", vec![item("a", 1)]);
        let event = |purchase: &SubscriptionPurchase, replaced| {
            let fields = json!({ "notificationType": 4 });
            let notification = notification("subscriptionNotification", &fields);
            let found = translate_notification(&notification, Some(purchase), replaced);
            (found.event_type.as_str(), found.reason)
        };
        for (replaced, word, reason) in [
            (Nothing, "subscription.purchased", Some("initial")),
            (Ended, "subscription.purchased", Some("resubscribe")),
            (
                Running(Replacement::OtherPlan),
                "subscription.upgraded",
                None,
            ),
            (
                Running(Replacement::SamePlan),
                "subscription.purchased",
                Some("resubscribe"),
            ),
            (
                Running(Replacement::TopUp),
                "subscription.renewed",
                Some("top_up"),
            ),
            (Unknown, "subscription.purchased", None),
        ] {
            assert_eq!(event(&purchase, replaced), (word, reason), "{replaced:?}");
        }
        purchase.out_of_app_purchase_context = Some(OutOfAppPurchaseContext::default());
        assert_eq!(
            event(&purchase, Nothing),
            ("subscription.purchased", Some("resubscribe"))
        );
    }

    #[test]
    fn a_replaced_purchase_was_running_or_over() {
        let replacement = CanceledStateContext {
            replacement_cancellation: Some(PresenceMarker),
            ..CanceledStateContext::default()
        };
        // state, replaced, expiry in ms from the new purchase, was running
        for (state, replaced, ends_in_ms, running) in [
            ("ACTIVE", false, -1, true),
            ("IN_GRACE_PERIOD", false, 1, true),
            ("CANCELED", false, 1, true),
            ("CANCELED", false, -1, false),
            ("EXPIRED", false, 1, true),
            ("EXPIRED", false, 0, false),
            ("EXPIRED", true, 0, true),
            ("EXPIRED", true, -1, true),
            ("ON_HOLD", false, -1, false),
            ("PAUSED", false, -1, false),
            ("PENDING", false, 1, false),
            ("SOMETHING_NEW", true, 1, false),
        ] {
            let mut purchase = subscription(state, vec![item("a", ends_in_ms)]);
            purchase.canceled_state_context = replaced.then(|| replacement.clone());
            assert_eq!(
                was_running(&purchase, now()),
                running,
                "{state} {replaced} {ends_in_ms}"
            );
        }
    }

    #[test]
    fn an_expiry_has_its_reason() {
        for (context, reason) in [
            (
                json!({ "userInitiatedCancellation": { "cancelTime": "2026-04-10T14:22:10Z" } }),
                Some("voluntary"),
            ),
            (
                json!({ "systemInitiatedCancellation": {} }),
                Some("billing_retry"),
            ),
            (
                json!({ "developerInitiatedCancellation": {} }),
                Some("developer"),
            ),
            (json!({ "replacementCancellation": {} }), Some("replaced")),
            (json!({ "somethingNew": {} }), None),
            (serde_json::Value::Null, None),
        ] {
            let purchase: SubscriptionPurchase =
                serde_json::from_value(json!({ "canceledStateContext": context }))
                    .expect("readable");
            let fields = json!({ "notificationType": 13 });
            let found = translate_notification(
                &notification("subscriptionNotification", &fields),
                Some(&purchase),
                ReplacedPurchase::Unknown,
            );
            assert_eq!(
                (found.event_type.as_str(), found.reason),
                ("subscription.expired", reason)
            );
        }
    }

    proptest! {
        #[test]
        fn canceled_is_the_status_only_while_it_is_paid_for(state in "[A-Z_]{0,30}", ends in -10_i64..10) {
            let purchase = subscription(&state, vec![item("a", ends)]);
            let status = subscription_status(&purchase, select_line_item(&purchase, None), now());
            prop_assert!(status != PurchaseStatus::Canceled || ends > 0);
        }

        #[test]
        fn money_is_exact(units in -9_000_000_000_000_i64..9_000_000_000_000, micro in 0_i64..1_000_000) {
            let sign = if units < 0 { -1 } else { 1 };
            let money = Money { currency_code: None, units: Some(Int64(units)), nanos: Some(Int64(sign * micro * 1000)) };
            prop_assert_eq!(to_micros(&money), Some(Int64(units * 1_000_000 + sign * micro)));
        }
    }
}
