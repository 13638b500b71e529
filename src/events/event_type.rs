//! The names of events: the same for both stores, so that a receiver needs one `switch`.

use serde::{Serialize, Serializer};

/// The store that an event is from.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, strum::IntoStaticStr, strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum EventSource {
    /// The App Store
    Apple,
    /// The Google Play store
    Google,
}

impl EventSource {
    /// The name in the database, in event JSON and in metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

macro_rules! define_event_types {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What happened to a purchase.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::VariantArray)]
        pub enum EventType {
            $($(#[$doc])* #[strum(serialize = $word)] $name,)*
        }
    };
}

define_event_types! {
    /// Bought. The event's reason tells a first purchase from a later one.
    SubscriptionPurchased = "subscription.purchased",
    /// One more period was paid for.
    SubscriptionRenewed = "subscription.renewed",
    /// Paid for again after a failed payment or a pause.
    SubscriptionRecovered = "subscription.recovered",
    /// It will not renew; access goes on until it expires.
    SubscriptionCancellationScheduled = "subscription.cancellation_scheduled",
    /// A scheduled cancellation was withdrawn: it renews.
    SubscriptionCancellationRevoked = "subscription.cancellation_revoked",
    /// The renewal status changed in a way that this release does not know.
    SubscriptionRenewalStatusChanged = "subscription.renewal_status_changed",
    /// Another plan replaced it at once.
    SubscriptionUpgraded = "subscription.upgraded",
    /// Another plan will replace it at the next renewal, or such a change was withdrawn.
    SubscriptionRenewalPrefChanged = "subscription.renewal_pref_changed",
    /// A payment failed. Access has ended and the store retries the payment.
    SubscriptionInBillingRetry = "subscription.in_billing_retry",
    /// A payment failed. Access continues and the store retries the payment.
    SubscriptionInGracePeriod = "subscription.in_grace_period",
    /// The grace period is over and access has ended.
    SubscriptionGracePeriodExpired = "subscription.grace_period_expired",
    /// A payment failed and access is suspended.
    SubscriptionOnHold = "subscription.on_hold",
    /// The subscriber paused it.
    SubscriptionPaused = "subscription.paused",
    /// The start or end of a pause changed.
    SubscriptionPauseScheduleChanged = "subscription.pause_schedule_changed",
    /// The next payment was moved to a later date.
    SubscriptionDeferred = "subscription.deferred",
    /// News about a purchase that another one replaced. Access is that of the other one.
    SubscriptionReplaced = "subscription.replaced",
    /// The subscription has ended.
    SubscriptionExpired = "subscription.expired",
    /// The subscriber redeemed an offer.
    SubscriptionOfferRedeemed = "subscription.offer_redeemed",
    /// The subscriber has not yet agreed to a new price.
    SubscriptionPriceChangePending = "subscription.price_change_pending",
    /// The subscriber agreed to a new price.
    SubscriptionPriceChangeAccepted = "subscription.price_change_accepted",
    /// A detail of a price change is new.
    SubscriptionPriceChangeUpdated = "subscription.price_change_updated",
    /// The purchase was refunded.
    SubscriptionRefunded = "subscription.refunded",
    /// The store declined a refund.
    SubscriptionRefundDeclined = "subscription.refund_declined",
    /// A refund was reversed: the purchase is paid for again.
    SubscriptionRefundReversed = "subscription.refund_reversed",
    /// The store revoked access.
    SubscriptionRevoked = "subscription.revoked",
    /// The developer extended the current period.
    SubscriptionRenewalExtended = "subscription.renewal_extended",
    /// An extension for many subscribers is complete.
    SubscriptionRenewalExtensionComplete = "subscription.renewal_extension_complete",
    /// The period could not be extended.
    SubscriptionRenewalExtensionFailed = "subscription.renewal_extension_failed",
    /// The store asks how much was consumed, to decide on a refund.
    SubscriptionConsumptionRequest = "subscription.consumption_request",
    /// The items of the subscription changed.
    SubscriptionItemsChanged = "subscription.items_changed",
    /// A purchase that was never paid for was canceled.
    SubscriptionPendingPurchaseCanceled = "subscription.pending_purchase_canceled",
    /// The store's metadata of the subscription changed.
    SubscriptionMetadataUpdated = "subscription.metadata_updated",
    /// The subscription was migrated to another product.
    SubscriptionMigrated = "subscription.migrated",
    /// A one-time product was bought.
    ProductPurchased = "product.purchased",
    /// A purchase that was never paid for was canceled.
    ProductPendingPurchaseCanceled = "product.pending_purchase_canceled",
    /// The purchase was refunded.
    ProductRefunded = "product.refunded",
    /// The store declined a refund.
    ProductRefundDeclined = "product.refund_declined",
    /// A refund was reversed: the purchase is paid for again.
    ProductRefundReversed = "product.refund_reversed",
    /// The store asks the developer about a refund.
    ProductRefundReview = "product.refund_review",
    /// The store revoked access.
    ProductRevoked = "product.revoked",
    /// The store asks how much was consumed, to decide on a refund.
    ProductConsumptionRequest = "product.consumption_request",
    /// The state of a purchase, which an earlier event could not tell.
    PurchaseState = "purchase.state",
    /// The purchase must be acknowledged soon, or the store refunds it.
    PurchaseAcknowledgeDue = "purchase.acknowledge_due",
    /// A token for a purchase made outside the store.
    ExternalPurchaseToken = "external_purchase.token",
    /// A parent withdrew consent to the app.
    AppConsentRescinded = "app.consent_rescinded",
    /// A test notification.
    Test = "test",
    /// An event that this release has no name for. `platformEvent` holds the store's own name.
    Unknown = "unknown",
}

impl EventType {
    /// Every event type.
    pub const ALL: &'static [Self] = <Self as strum::VariantArray>::VARIANTS;

    /// The name in the database and in event JSON.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Serialize for EventType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_event_type_is_unique_and_well_formed() {
        let words: HashSet<_> = EventType::ALL.iter().map(|word| word.as_str()).collect();
        assert_eq!(words.len(), EventType::ALL.len());
        for word in words {
            let good = word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte));
            assert!(good && word.matches('.').count() <= 1, "{word}");
        }
    }
}
