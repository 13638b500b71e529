//! The vocabulary: one word for both stores, so that a receiver writes one `switch`.

use serde::{Serialize, Serializer};

/// Which store an event is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventSource {
    /// Apple's App Store.
    Apple,
    /// Google Play.
    Google,
}

impl EventSource {
    /// As it is stored and sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apple => "apple",
            Self::Google => "google",
        }
    }
}

macro_rules! define_event_types {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Word {
            $($(#[$doc])* $name,)*
        }

        impl Word {
            /// Every word there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As it is stored and sent.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

define_event_types! {
    /// Bought; the reason says whether for the first time.
    SubscriptionPurchased = "subscription.purchased",
    /// One more period is paid for.
    SubscriptionRenewed = "subscription.renewed",
    /// Paid for again after a failed payment or a pause.
    SubscriptionRecovered = "subscription.recovered",
    /// It will not renew; access goes on until it expires.
    SubscriptionCancellationScheduled = "subscription.cancellation_scheduled",
    /// It will renew after all.
    SubscriptionCancellationRevoked = "subscription.cancellation_revoked",
    /// Whether it renews has changed, in a way unknown here.
    SubscriptionRenewalStatusChanged = "subscription.renewal_status_changed",
    /// Another plan has taken its place at once.
    SubscriptionUpgraded = "subscription.upgraded",
    /// Another plan will take its place at the next renewal, or no longer will.
    SubscriptionRenewalPrefChanged = "subscription.renewal_pref_changed",
    /// A payment failed, access has ended, the store tries again.
    SubscriptionInBillingRetry = "subscription.in_billing_retry",
    /// A payment failed, access goes on, the store tries again.
    SubscriptionInGracePeriod = "subscription.in_grace_period",
    /// The grace period is over, access has ended.
    SubscriptionGracePeriodExpired = "subscription.grace_period_expired",
    /// A payment failed and access is suspended.
    SubscriptionOnHold = "subscription.on_hold",
    /// The subscriber paused it.
    SubscriptionPaused = "subscription.paused",
    /// When a pause begins or ends has changed.
    SubscriptionPauseScheduleChanged = "subscription.pause_schedule_changed",
    /// The next payment was moved.
    SubscriptionDeferred = "subscription.deferred",
    /// It is over.
    SubscriptionExpired = "subscription.expired",
    /// An offer was used.
    SubscriptionOfferRedeemed = "subscription.offer_redeemed",
    /// A new price waits for the subscriber's consent.
    SubscriptionPriceChangePending = "subscription.price_change_pending",
    /// The subscriber agreed to a new price.
    SubscriptionPriceChangeAccepted = "subscription.price_change_accepted",
    /// Something about a change of price is new.
    SubscriptionPriceChangeUpdated = "subscription.price_change_updated",
    /// The money was given back.
    SubscriptionRefunded = "subscription.refunded",
    /// The money was not given back.
    SubscriptionRefundDeclined = "subscription.refund_declined",
    /// The money was given back, and is now taken again.
    SubscriptionRefundReversed = "subscription.refund_reversed",
    /// Access was taken away.
    SubscriptionRevoked = "subscription.revoked",
    /// The developer gave more time.
    SubscriptionRenewalExtended = "subscription.renewal_extended",
    /// More time was given to all who were to get it.
    SubscriptionRenewalExtensionComplete = "subscription.renewal_extension_complete",
    /// More time could not be given.
    SubscriptionRenewalExtensionFailed = "subscription.renewal_extension_failed",
    /// The store asks how much was used, to decide on a refund.
    SubscriptionConsumptionRequest = "subscription.consumption_request",
    /// What the subscription consists of has changed.
    SubscriptionItemsChanged = "subscription.items_changed",
    /// It was never paid for and is no longer waited for.
    SubscriptionPendingPurchaseCanceled = "subscription.pending_purchase_canceled",
    /// The store's data on it has changed.
    SubscriptionMetadataUpdated = "subscription.metadata_updated",
    /// It was moved to another product.
    SubscriptionMigrated = "subscription.migrated",
    /// A one-time product was bought.
    ProductPurchased = "product.purchased",
    /// It was never paid for and is no longer waited for.
    ProductPendingPurchaseCanceled = "product.pending_purchase_canceled",
    /// The money was given back.
    ProductRefunded = "product.refunded",
    /// The money was not given back.
    ProductRefundDeclined = "product.refund_declined",
    /// The money was given back, and is now taken again.
    ProductRefundReversed = "product.refund_reversed",
    /// The store asks the developer about a refund.
    ProductRefundReview = "product.refund_review",
    /// Access was taken away.
    ProductRevoked = "product.revoked",
    /// The store asks how much was used, to decide on a refund.
    ProductConsumptionRequest = "product.consumption_request",
    /// A token for a purchase outside the store.
    ExternalPurchaseToken = "external_purchase.token",
    /// A parent's consent to the app was taken back.
    AppConsentRescinded = "app.consent_rescinded",
    /// Somebody tries whether notifications arrive.
    Test = "test",
    /// Something this release has no word for; the platform's own name says what.
    Unknown = "unknown",
}

impl Serialize for Word {
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
        let words: HashSet<_> = Word::ALL.iter().map(|word| word.as_str()).collect();
        assert_eq!(words.len(), Word::ALL.len());
        for word in words {
            let good = word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte));
            assert!(good && word.matches('.').count() <= 1, "{word}");
        }
    }
}
