//! From Apple's words to Attesto's. Pure: facts and the time go in, an answer comes out.
//!
//! | facts, first that holds | status |
//! |---|---|
//! | `revocationDate`, and `revocationType` is `FAMILY_REVOKE`, or it is family-shared and no refund is named | `revoked` |
//! | `revocationDate` | `refunded` |
//! | `isUpgraded` | `upgraded` |
//! | `expiresDate` is not after now | `expired` |
//! | none of these | `active` |
//!
//! A transaction alone does not say whether a renewal is being retried or in its grace period: Apple tells that in the
//! renewal info, which comes with notifications.
//!
//! | Apple notifies of | subtype | event | reason |
//! |---|---|---|---|
//! | `SUBSCRIBED` | `INITIAL_BUY` or none, `RESUBSCRIBE` | `purchased` | `initial`, `resubscribe` |
//! | `DID_RENEW` | none; `BILLING_RECOVERY` | `renewed`; `recovered` | |
//! | `DID_CHANGE_RENEWAL_STATUS` | `AUTO_RENEW_DISABLED`; `AUTO_RENEW_ENABLED`; any other | `cancellation_scheduled`; `cancellation_revoked`; `renewal_status_changed` | `installment` for a commitment with payments to come |
//! | `DID_CHANGE_RENEWAL_PREF` | `UPGRADE`; `DOWNGRADE`, none | `upgraded`; `renewal_pref_changed` | `downgrade`, `reverted` |
//! | `DID_FAIL_TO_RENEW` | none; `GRACE_PERIOD` | `in_billing_retry`; `in_grace_period` | |
//! | `GRACE_PERIOD_EXPIRED`, `RENEWAL_EXTENDED`, `METADATA_UPDATE`, `MIGRATION` | | `grace_period_expired`, `renewal_extended`, `metadata_updated`, `migrated` | |
//! | `EXPIRED` | `VOLUNTARY`, `BILLING_RETRY`, `PRICE_INCREASE`, `PRODUCT_NOT_FOR_SALE` | `expired` | the subtype |
//! | `OFFER_REDEEMED` | any | `offer_redeemed` | the subtype |
//! | `PRICE_INCREASE` | `PENDING` or none; `ACCEPTED` | `price_change_pending`; `price_change_accepted` | |
//! | `PRICE_CHANGE` | | `price_change_updated` | |
//! | `RENEWAL_EXTENSION` | `SUMMARY`; `FAILURE` | `renewal_extension_complete`; `renewal_extension_failed` | |
//! | `REFUND` of a period that is not the current one | | `refunded` | `earlier_period`, which [`super::notifications`] adds |
//! | `REFUND`, `REFUND_DECLINED`, `REFUND_REVERSED`, `REVOKE` | | `refunded`, `refund_declined`, `refund_reversed`, `revoked`, of a subscription or a product | |
//! | `CONSUMPTION_REQUEST` | | `consumption_request`, of a subscription or a product | why the refund is asked for |
//! | `ONE_TIME_CHARGE` | | `product.purchased` | |
//! | `EXTERNAL_PURCHASE_TOKEN` | any | `external_purchase.token` | the subtype |
//! | `RESCIND_CONSENT`, `TEST` | | `app.consent_rescinded`, `test` | |
//! | anything else | | `unknown` | |
//!
//! A subtype that is unknown here is passed over: the event is what its type says without one, with no reason. Where the
//! subtype alone tells good from bad news, it is `unknown`.

use std::borrow::Cow;

use serde::Serialize;
use utoipa::ToSchema;

use super::payload::{Millis, NotificationPayload, SignedPart, TransactionPayload};
use crate::base::clock::Timestamp;
use crate::events::EventType;

/// What a transaction is now. Only `active` entitles.
///
/// - `active`: paid for, and not over.
/// - `expired`: its time is over. A later transaction may have renewed it.
/// - `refunded`: the money was given back.
/// - `revoked`: the family member who shares it took it back, or left.
/// - `upgraded`: another product of the same group took its place at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = apple::Status)]
pub enum TransactionStatus {
    /// Paid for, and not over.
    Active,
    /// Its time is over. A later transaction may have renewed it.
    Expired,
    /// The money was given back.
    Refunded,
    /// The family member who shares it took it back, or left.
    Revoked,
    /// Another product of the same group took its place at once.
    Upgraded,
}

/// What `transaction` is at `now`.
pub fn transaction_status(transaction: &TransactionPayload, now: Timestamp) -> TransactionStatus {
    if transaction.revocation_date.is_some() {
        let kind = transaction.revocation_type.as_deref();
        let is_shared = transaction.in_app_ownership_type.as_deref() == Some("FAMILY_SHARED");
        return match kind {
            Some("FAMILY_REVOKE") => TransactionStatus::Revoked,
            None if is_shared => TransactionStatus::Revoked,
            _ => TransactionStatus::Refunded,
        };
    }
    if transaction.is_upgraded == Some(true) {
        return TransactionStatus::Upgraded;
    }
    match transaction.expires_date {
        Some(Millis(end)) if end <= now => TransactionStatus::Expired,
        _ => TransactionStatus::Active,
    }
}

/// What a notification says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppleTranslation {
    /// The event, in the words of both stores.
    pub event_type: EventType,
    /// The finer intent.
    pub reason: Option<Cow<'static, str>>,
    /// Apple's own name for it.
    pub platform_event: String,
}

/// Whether a transaction of this type is one of a subscription, renewing or not.
pub fn is_subscription(kind: Option<&str>) -> bool {
    matches!(
        kind,
        Some("Auto-Renewable Subscription" | "Non-Renewing Subscription")
    )
}

/// Whether a commitment of a year that is billed monthly has more payments to come.
fn has_payments_to_come(transaction: &SignedPart) -> bool {
    let commitment = transaction.commitment_info.as_ref();
    let numbers = commitment.and_then(|it| it.billing_period_number.zip(it.total_billing_periods));
    numbers.is_some_and(|(number, total)| number < total)
}

/// The app's user, if the token names one. An empty token and one of zeros alone, which some apps hand to StoreKit for a
/// customer who is not signed in, name no user.
pub(super) fn app_user(token: Option<&str>) -> Option<&str> {
    token.filter(|token| {
        token
            .bytes()
            .any(|byte| !matches!(byte, b'0' | b'-' | b' '))
    })
}

/// What a notification says; `transaction` is the one inside of it. The table stands at the top of this file.
pub fn translate_notification(
    notification: &NotificationPayload,
    transaction: Option<&SignedPart>,
) -> AppleTranslation {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (kind, subtype) = (
        given(&notification.notification_type),
        given(&notification.subtype),
    );
    let (word, reason) = map_event_type(
        kind.as_deref().unwrap_or_default(),
        subtype.as_deref(),
        notification,
        transaction,
    );
    let mut platform_event = format!("apple.{}", kind.as_deref().unwrap_or("unknown"));
    if let Some(subtype) = &subtype {
        platform_event.push('.');
        platform_event.push_str(subtype);
    }
    platform_event.make_ascii_lowercase();
    AppleTranslation {
        event_type: word,
        reason,
        platform_event,
    }
}

fn map_event_type(
    kind: &str,
    subtype: Option<&str>,
    notification: &NotificationPayload,
    transaction: Option<&SignedPart>,
) -> (EventType, Option<Cow<'static, str>>) {
    // Most of what Apple reports is about subscriptions, and where nothing says otherwise, so is this.
    let of = |subscription, product| match transaction {
        Some(transaction) if !is_subscription(transaction.r#type.as_deref()) => product,
        _ => subscription,
    };
    let word = match (kind, subtype) {
        ("SUBSCRIBED", Some("INITIAL_BUY") | None) => {
            return (EventType::SubscriptionPurchased, Some("initial".into()));
        }
        ("SUBSCRIBED", Some("RESUBSCRIBE")) => {
            return (EventType::SubscriptionPurchased, Some("resubscribe".into()));
        }
        ("SUBSCRIBED", Some(_)) => EventType::SubscriptionPurchased,
        ("DID_RENEW", Some("BILLING_RECOVERY")) => EventType::SubscriptionRecovered,
        ("DID_RENEW", _) => EventType::SubscriptionRenewed,
        ("DID_CHANGE_RENEWAL_STATUS", Some("AUTO_RENEW_DISABLED")) => {
            let is_committed = transaction.is_some_and(has_payments_to_come);
            return (
                EventType::SubscriptionCancellationScheduled,
                is_committed.then_some("installment".into()),
            );
        }
        ("DID_CHANGE_RENEWAL_STATUS", Some("AUTO_RENEW_ENABLED")) => {
            EventType::SubscriptionCancellationRevoked
        }
        ("DID_CHANGE_RENEWAL_STATUS", _) => EventType::SubscriptionRenewalStatusChanged,
        ("DID_CHANGE_RENEWAL_PREF", Some("UPGRADE")) => EventType::SubscriptionUpgraded,
        ("DID_CHANGE_RENEWAL_PREF", Some("DOWNGRADE")) => {
            return (
                EventType::SubscriptionRenewalPrefChanged,
                Some("downgrade".into()),
            );
        }
        ("DID_CHANGE_RENEWAL_PREF", None) => {
            return (
                EventType::SubscriptionRenewalPrefChanged,
                Some("reverted".into()),
            );
        }
        ("DID_CHANGE_RENEWAL_PREF", Some(_)) => EventType::SubscriptionRenewalPrefChanged,
        ("DID_FAIL_TO_RENEW", Some("GRACE_PERIOD")) => EventType::SubscriptionInGracePeriod,
        ("DID_FAIL_TO_RENEW", _) => EventType::SubscriptionInBillingRetry,
        ("GRACE_PERIOD_EXPIRED", _) => EventType::SubscriptionGracePeriodExpired,
        (
            "EXPIRED",
            Some("VOLUNTARY" | "BILLING_RETRY" | "PRICE_INCREASE" | "PRODUCT_NOT_FOR_SALE"),
        ) => return (EventType::SubscriptionExpired, lowercase_reason(subtype)),
        ("EXPIRED", _) => EventType::SubscriptionExpired,
        ("OFFER_REDEEMED", _) => {
            return (
                EventType::SubscriptionOfferRedeemed,
                lowercase_reason(subtype),
            );
        }
        ("PRICE_INCREASE", Some("ACCEPTED")) => EventType::SubscriptionPriceChangeAccepted,
        ("PRICE_INCREASE", _) => EventType::SubscriptionPriceChangePending,
        ("PRICE_CHANGE", _) => EventType::SubscriptionPriceChangeUpdated,
        ("REFUND", _) => of(EventType::SubscriptionRefunded, EventType::ProductRefunded),
        ("REFUND_DECLINED", _) => of(
            EventType::SubscriptionRefundDeclined,
            EventType::ProductRefundDeclined,
        ),
        ("REFUND_REVERSED", _) => of(
            EventType::SubscriptionRefundReversed,
            EventType::ProductRefundReversed,
        ),
        ("REVOKE", _) => of(EventType::SubscriptionRevoked, EventType::ProductRevoked),
        ("RENEWAL_EXTENDED", _) => EventType::SubscriptionRenewalExtended,
        ("RENEWAL_EXTENSION", Some("SUMMARY")) => EventType::SubscriptionRenewalExtensionComplete,
        ("RENEWAL_EXTENSION", Some("FAILURE")) => EventType::SubscriptionRenewalExtensionFailed,
        ("CONSUMPTION_REQUEST", _) => {
            let word = of(
                EventType::SubscriptionConsumptionRequest,
                EventType::ProductConsumptionRequest,
            );
            let block = notification.data.as_ref();
            let why = block.and_then(|block| block.consumption_request_reason.as_deref());
            return (word, lowercase_reason(why));
        }
        ("ONE_TIME_CHARGE", _) => EventType::ProductPurchased,
        ("EXTERNAL_PURCHASE_TOKEN", _) => {
            return (EventType::ExternalPurchaseToken, lowercase_reason(subtype));
        }
        ("RESCIND_CONSENT", _) => EventType::AppConsentRescinded,
        ("METADATA_UPDATE", _) => EventType::SubscriptionMetadataUpdated,
        ("MIGRATION", _) => EventType::SubscriptionMigrated,
        ("TEST", _) => EventType::Test,
        _ => EventType::Unknown,
    };
    (word, None)
}

fn lowercase_reason(text: Option<&str>) -> Option<Cow<'static, str>> {
    text.map(|text| text.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_holds() {
        let now = Timestamp::from_millis(1_000_000);
        for (facts, expected) in [
            (json!({}), TransactionStatus::Active),
            (json!({"expiresDate": 1_000_001}), TransactionStatus::Active),
            (
                json!({"expiresDate": 1_000_000}),
                TransactionStatus::Expired,
            ),
            (
                json!({"expiresDate": 999_999.9}),
                TransactionStatus::Expired,
            ),
            (
                json!({"isUpgraded": true, "expiresDate": 2_000_000}),
                TransactionStatus::Upgraded,
            ),
            (
                json!({"isUpgraded": false, "expiresDate": 2_000_000}),
                TransactionStatus::Active,
            ),
            (json!({"revocationDate": 1}), TransactionStatus::Refunded),
            (
                json!({"revocationDate": 1, "expiresDate": 2}),
                TransactionStatus::Refunded,
            ),
            (
                json!({"revocationDate": 1, "isUpgraded": true}),
                TransactionStatus::Refunded,
            ),
            (
                json!({"revocationDate": 1, "revocationType": "REFUND_FULL"}),
                TransactionStatus::Refunded,
            ),
            (
                json!({"revocationDate": 1, "revocationType": "REFUND_PRORATED"}),
                TransactionStatus::Refunded,
            ),
            (
                json!({"revocationDate": 1, "revocationType": "FAMILY_REVOKE"}),
                TransactionStatus::Revoked,
            ),
            (
                json!({"revocationDate": 1, "inAppOwnershipType": "FAMILY_SHARED"}),
                TransactionStatus::Revoked,
            ),
            (
                json!({"revocationDate": 1, "inAppOwnershipType": "FAMILY_SHARED", "revocationType": "REFUND_FULL"}),
                TransactionStatus::Refunded,
            ),
            (
                json!({"revocationDate": 1, "revocationType": "SOMETHING_NEW"}),
                TransactionStatus::Refunded,
            ),
        ] {
            let transaction: TransactionPayload =
                serde_json::from_value(facts.clone()).expect("readable");
            assert_eq!(transaction_status(&transaction, now), expected, "{facts}");
        }
    }

    fn translate_body(body: serde_json::Value, kind: Option<&str>) -> AppleTranslation {
        let notification: NotificationPayload = serde_json::from_value(body).expect("readable");
        let transaction = kind.map(|kind| SignedPart {
            r#type: Some(kind.to_owned()),
            ..SignedPart::default()
        });
        translate_notification(&notification, transaction.as_ref())
    }

    /// Type, subtype (empty for none), event and reason (empty for none).
    const TABLE: &[(&str, &str, &str, &str)] = &[
        (
            "SUBSCRIBED",
            "INITIAL_BUY",
            "subscription.purchased",
            "initial",
        ),
        ("SUBSCRIBED", "", "subscription.purchased", "initial"),
        (
            "SUBSCRIBED",
            "RESUBSCRIBE",
            "subscription.purchased",
            "resubscribe",
        ),
        ("SUBSCRIBED", "NEW", "subscription.purchased", ""),
        ("DID_RENEW", "", "subscription.renewed", ""),
        ("DID_RENEW", "NEW", "subscription.renewed", ""),
        (
            "DID_RENEW",
            "BILLING_RECOVERY",
            "subscription.recovered",
            "",
        ),
        (
            "DID_CHANGE_RENEWAL_STATUS",
            "AUTO_RENEW_DISABLED",
            "subscription.cancellation_scheduled",
            "",
        ),
        (
            "DID_CHANGE_RENEWAL_STATUS",
            "AUTO_RENEW_ENABLED",
            "subscription.cancellation_revoked",
            "",
        ),
        (
            "DID_CHANGE_RENEWAL_STATUS",
            "",
            "subscription.renewal_status_changed",
            "",
        ),
        (
            "DID_CHANGE_RENEWAL_STATUS",
            "NEW",
            "subscription.renewal_status_changed",
            "",
        ),
        (
            "DID_CHANGE_RENEWAL_PREF",
            "UPGRADE",
            "subscription.upgraded",
            "",
        ),
        (
            "DID_CHANGE_RENEWAL_PREF",
            "DOWNGRADE",
            "subscription.renewal_pref_changed",
            "downgrade",
        ),
        (
            "DID_CHANGE_RENEWAL_PREF",
            "",
            "subscription.renewal_pref_changed",
            "reverted",
        ),
        (
            "DID_CHANGE_RENEWAL_PREF",
            "NEW",
            "subscription.renewal_pref_changed",
            "",
        ),
        ("DID_FAIL_TO_RENEW", "", "subscription.in_billing_retry", ""),
        (
            "DID_FAIL_TO_RENEW",
            "NEW",
            "subscription.in_billing_retry",
            "",
        ),
        (
            "DID_FAIL_TO_RENEW",
            "GRACE_PERIOD",
            "subscription.in_grace_period",
            "",
        ),
        (
            "GRACE_PERIOD_EXPIRED",
            "",
            "subscription.grace_period_expired",
            "",
        ),
        ("EXPIRED", "VOLUNTARY", "subscription.expired", "voluntary"),
        (
            "EXPIRED",
            "BILLING_RETRY",
            "subscription.expired",
            "billing_retry",
        ),
        (
            "EXPIRED",
            "PRICE_INCREASE",
            "subscription.expired",
            "price_increase",
        ),
        (
            "EXPIRED",
            "PRODUCT_NOT_FOR_SALE",
            "subscription.expired",
            "product_not_for_sale",
        ),
        ("EXPIRED", "", "subscription.expired", ""),
        ("EXPIRED", "NEW", "subscription.expired", ""),
        (
            "OFFER_REDEEMED",
            "INITIAL_BUY",
            "subscription.offer_redeemed",
            "initial_buy",
        ),
        (
            "OFFER_REDEEMED",
            "RESUBSCRIBE",
            "subscription.offer_redeemed",
            "resubscribe",
        ),
        (
            "OFFER_REDEEMED",
            "UPGRADE",
            "subscription.offer_redeemed",
            "upgrade",
        ),
        (
            "OFFER_REDEEMED",
            "DOWNGRADE",
            "subscription.offer_redeemed",
            "downgrade",
        ),
        ("OFFER_REDEEMED", "", "subscription.offer_redeemed", ""),
        (
            "PRICE_INCREASE",
            "PENDING",
            "subscription.price_change_pending",
            "",
        ),
        (
            "PRICE_INCREASE",
            "",
            "subscription.price_change_pending",
            "",
        ),
        (
            "PRICE_INCREASE",
            "ACCEPTED",
            "subscription.price_change_accepted",
            "",
        ),
        ("PRICE_CHANGE", "", "subscription.price_change_updated", ""),
        (
            "PRICE_CHANGE",
            "NEW",
            "subscription.price_change_updated",
            "",
        ),
        ("REFUND", "", "subscription.refunded", ""),
        ("REFUND_DECLINED", "", "subscription.refund_declined", ""),
        ("REFUND_REVERSED", "", "subscription.refund_reversed", ""),
        ("REVOKE", "", "subscription.revoked", ""),
        ("RENEWAL_EXTENDED", "", "subscription.renewal_extended", ""),
        (
            "RENEWAL_EXTENSION",
            "SUMMARY",
            "subscription.renewal_extension_complete",
            "",
        ),
        (
            "RENEWAL_EXTENSION",
            "FAILURE",
            "subscription.renewal_extension_failed",
            "",
        ),
        ("RENEWAL_EXTENSION", "NEW", "unknown", ""),
        (
            "CONSUMPTION_REQUEST",
            "",
            "subscription.consumption_request",
            "",
        ),
        ("ONE_TIME_CHARGE", "", "product.purchased", ""),
        (
            "EXTERNAL_PURCHASE_TOKEN",
            "UNREPORTED",
            "external_purchase.token",
            "unreported",
        ),
        (
            "EXTERNAL_PURCHASE_TOKEN",
            "CREATED",
            "external_purchase.token",
            "created",
        ),
        (
            "EXTERNAL_PURCHASE_TOKEN",
            "ACTIVE_TOKEN_REMINDER",
            "external_purchase.token",
            "active_token_reminder",
        ),
        ("EXTERNAL_PURCHASE_TOKEN", "", "external_purchase.token", ""),
        ("RESCIND_CONSENT", "", "app.consent_rescinded", ""),
        ("METADATA_UPDATE", "", "subscription.metadata_updated", ""),
        ("MIGRATION", "", "subscription.migrated", ""),
        ("TEST", "", "test", ""),
        ("SOMETHING_NEW", "", "unknown", ""),
        ("SOMETHING_NEW", "AND_MORE", "unknown", ""),
        ("subscribed", "", "unknown", ""),
    ];

    #[test]
    fn every_notification_has_its_word() {
        for &(kind, subtype, word, reason) in TABLE {
            let mut body = json!({ "notificationType": kind });
            if !subtype.is_empty() {
                body["subtype"] = json!(subtype);
            }
            let found = translate_body(body, None);
            assert_eq!(found.event_type.as_str(), word, "{kind} {subtype}");
            assert_eq!(
                found.reason.as_deref().unwrap_or_default(),
                reason,
                "{kind} {subtype}"
            );
            let name = format!("apple.{kind}.{subtype}").to_lowercase();
            assert_eq!(found.platform_event, name.trim_end_matches('.'));
        }
    }

    #[test]
    fn what_concerns_money_tells_subscriptions_from_products() {
        for (kind, what) in [
            ("REFUND", "refunded"),
            ("REFUND_DECLINED", "refund_declined"),
            ("REFUND_REVERSED", "refund_reversed"),
            ("REVOKE", "revoked"),
            ("CONSUMPTION_REQUEST", "consumption_request"),
        ] {
            for (product, of) in [
                (Some("Auto-Renewable Subscription"), "subscription"),
                (Some("Non-Renewing Subscription"), "subscription"),
                (None, "subscription"),
                (Some("Consumable"), "product"),
                (Some("Non-Consumable"), "product"),
                (Some("Something New"), "product"),
            ] {
                let found = translate_body(json!({ "notificationType": kind }), product);
                assert_eq!(
                    found.event_type.as_str(),
                    format!("{of}.{what}"),
                    "{product:?}"
                );
                assert_eq!(found.reason, None);
            }
        }
        let asked = json!({
            "notificationType": "CONSUMPTION_REQUEST",
            "data": { "consumptionRequestReason": "UNINTENDED_PURCHASE" },
        });
        let found = translate_body(asked, Some("Consumable"));
        assert_eq!(found.reason.as_deref(), Some("unintended_purchase"));
        let bought = translate_body(
            json!({ "notificationType": "ONE_TIME_CHARGE" }),
            Some("Non-Renewing Subscription"),
        );
        assert_eq!(bought.event_type, EventType::ProductPurchased);
    }

    #[test]
    fn an_empty_token_and_one_of_zeros_name_no_user() {
        for (token, user) in [
            (None, None),
            (Some(""), None),
            (Some(" "), None),
            (Some("00000000-0000-0000-0000-000000000000"), None),
            (
                Some("00000000-0000-0000-0000-000000000001"),
                Some("00000000-0000-0000-0000-000000000001"),
            ),
            (Some("someone"), Some("someone")),
        ] {
            assert_eq!(app_user(token), user, "{token:?}");
        }
    }

    #[test]
    fn a_commitment_with_payments_to_come_is_an_installment() {
        for (info, reason) in [
            (
                json!({"billingPeriodNumber": 3, "totalBillingPeriods": 12}),
                Some("installment"),
            ),
            (
                json!({"billingPeriodNumber": 12, "totalBillingPeriods": 12}),
                None,
            ),
            (json!({"billingPeriodNumber": "3"}), None),
            (json!(null), None),
        ] {
            let body = json!({
                "notificationType": "DID_CHANGE_RENEWAL_STATUS", "subtype": "AUTO_RENEW_DISABLED",
            });
            let notification: NotificationPayload = serde_json::from_value(body).expect("readable");
            let transaction: SignedPart = serde_json::from_value(json!({
                "type": "Auto-Renewable Subscription", "commitmentInfo": info,
            }))
            .expect("readable");
            let found = translate_notification(&notification, Some(&transaction));
            assert_eq!(found.reason.as_deref(), reason, "{info}");
        }
    }

    #[test]
    fn what_is_not_a_word_is_no_word() {
        for body in [
            json!({}),
            json!({ "notificationType": null }),
            json!({ "notificationType": 7, "subtype": ["x"] }),
            json!({ "notificationType": "" }),
        ] {
            let found = translate_body(body.clone(), None);
            assert_eq!(
                (found.event_type, found.platform_event.as_str()),
                (EventType::Unknown, "apple.unknown"),
                "{body}"
            );
        }
        let found = translate_body(
            json!({ "notificationType": "DID_RENEW", "subtype": 7 }),
            None,
        );
        assert_eq!(found.platform_event, "apple.did_renew");
    }
}
