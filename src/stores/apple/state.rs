//! What an Apple purchase is worth. Pure: facts and the time go in, a [`PurchaseState`] comes out.
//!
//! A one-time product and a non-renewing subscription are decided by their transaction alone. An auto-renewable
//! subscription is decided by the newest period and the renewal info, which come with Get All Subscription Statuses and
//! with most notifications:
//!
//! | Apple's `status` | and | state | until |
//! |---|---|---|---|
//! | 1 active | the period's end lies ahead | `active` | the period's end |
//! | 1 active | the period's end has passed | `expired` | |
//! | 4 billing grace period | its end lies ahead | `in_grace_period` | `gracePeriodExpiresDate` |
//! | 4 billing grace period | its end has passed | `in_billing_retry` | |
//! | 3 billing retry | | `in_billing_retry` | |
//! | 2 expired, 5 revoked | `revocationDate` | `refunded` or `revoked` | |
//! | 2 expired, 5 revoked | | `expired`, `revoked` | |
//!
//! A period that was taken back says nothing of later periods: while Apple calls the subscription active, the end of the
//! current one is the renewal info's `renewalDate`.

use serde_json::Number;

use super::payload::{Millis, RenewalInfoPayload, TransactionPayload};
use super::translate::{TransactionStatus, transaction_status};
use crate::base::clock::Timestamp;
use crate::events::{Ownership, PricePeriod, PurchaseState, StateBasis, StateStatus};

/// Apple's `status` of an auto-renewable subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubscriptionStatus {
    Active,
    Expired,
    BillingRetry,
    GracePeriod,
    Revoked,
}

impl SubscriptionStatus {
    /// From Apple's number; `None` for one that is not known here.
    pub(crate) fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Active,
            2 => Self::Expired,
            3 => Self::BillingRetry,
            4 => Self::GracePeriod,
            5 => Self::Revoked,
            _ => return None,
        })
    }
}

/// What is known of a purchase: one period or product, and what Apple says of the subscription as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PurchaseFacts<'a> {
    pub(crate) transaction: &'a TransactionPayload,
    pub(crate) renewal: Option<&'a RenewalInfoPayload>,
    pub(crate) status: Option<SubscriptionStatus>,
    /// Whether the transaction is the newest of its subscription, as Apple's statuses guarantee and one transaction does not.
    pub(crate) is_newest: bool,
    /// When the facts were stated, where Apple signed no date.
    pub(crate) stated_at: Timestamp,
}

impl PurchaseFacts<'_> {
    pub(crate) fn is_auto_renewable(&self) -> bool {
        // Apple leaves the type out of nothing it signs today; old non-consumables have been seen without one.
        match self.transaction.r#type.as_deref() {
            Some(kind) => kind == "Auto-Renewable Subscription",
            None => self.transaction.expires_date.is_some(),
        }
    }

    /// Whether the transaction alone says what the purchase is worth at `now`: every product and non-renewing subscription
    /// does, and of an auto-renewable subscription a period that runs. A period that is over or was taken back does not: a
    /// later one may be running.
    pub(crate) fn transaction_decides(&self, now: Timestamp) -> bool {
        !self.is_auto_renewable()
            || transaction_status(self.transaction, now) == TransactionStatus::Active
    }

    /// Whether what a notification says decides. Of an auto-renewable subscription only with Apple's status of it, or with a renewal
    /// info that tells of failed payments: a period that runs may be followed by one that is paid already, and an event counts from
    /// when it was signed.
    pub(crate) fn notification_decides(&self) -> bool {
        let is_retried = self
            .renewal
            .is_some_and(|renewal| renewal.is_in_billing_retry_period == Some(true));
        !self.is_auto_renewable() || self.status.is_some() || is_retried
    }

    /// The newest `signedDate` of what the state is made of.
    fn as_of(&self) -> Timestamp {
        let signed = [
            self.transaction.signed_date,
            self.renewal.and_then(|renewal| renewal.signed_date),
        ];
        let newest = signed.into_iter().flatten().map(|Millis(at)| at).max();
        newest.unwrap_or(self.stated_at)
    }
}

/// What the purchase is worth at `now`. `None` where the facts do not decide: a period that was taken back while Apple calls
/// the subscription active or in its grace period, and nothing says when the current period ends.
pub(crate) fn purchase_state(facts: &PurchaseFacts<'_>, now: Timestamp) -> Option<PurchaseState> {
    let (status, entitled_until) = if facts.is_auto_renewable() {
        subscription_status(facts, now)?
    } else {
        product_status(facts.transaction, now)
    };
    let transaction = facts.transaction;
    let entitled = matches!(
        status,
        StateStatus::Active | StateStatus::InGracePeriod | StateStatus::Canceled
    );
    let renewal = RenewalOutlook::new(facts, status, now);
    // What Apple says of an earlier period is not true of the current one.
    let is_current = !facts.is_auto_renewable()
        || entitled_until.is_none()
        || status == StateStatus::InGracePeriod
            && transaction.is_upgraded != Some(true)
            && transaction.revocation_date.is_none()
        || entitled_until <= end_of_period(transaction)
            && transaction.is_upgraded != Some(true)
            && transaction.revocation_date.is_none()
        || prorated_end(transaction) == entitled_until;
    // The renewal info names the product of the current period.
    let product = facts
        .renewal
        .and_then(|renewal| renewal.product_id.as_ref());
    let is_of_current_product = !facts.is_auto_renewable()
        || product.is_none()
        || product == transaction.product_id.as_ref();
    let current = Some(transaction).filter(|_| is_current && is_of_current_product);
    Some(PurchaseState {
        status,
        entitled,
        entitled_until: entitled_until.filter(|_| entitled),
        product_id: match current {
            Some(current) => current.product_id.clone(),
            None => product.cloned(),
        },
        base_plan_id: None,
        offer_id: current.and_then(|current| current.offer_identifier.clone()),
        period: current
            .filter(|_| facts.is_auto_renewable())
            .map(price_period),
        will_renew: renewal.will_renew,
        renews_as: renewal.renews_as,
        renews_at: renewal.renews_at,
        ownership: match transaction.in_app_ownership_type.as_deref() {
            Some("PURCHASED") => Some(Ownership::Purchased),
            Some("FAMILY_SHARED") => Some(Ownership::FamilyShared),
            _ => None,
        },
        quantity: transaction.quantity.as_ref().and_then(Number::as_i64),
        refundable_quantity: None,
        acknowledge_by: None,
        basis: state_basis(facts),
        as_of: facts.as_of(),
    })
}

/// The state by what a notification says, with Apple's `status` in it. `None` where that does not decide.
pub(crate) fn notification_state(
    transaction: &TransactionPayload,
    renewal: Option<&RenewalInfoPayload>,
    status: Option<i64>,
    now: Timestamp,
) -> Option<PurchaseState> {
    let mut facts = PurchaseFacts {
        transaction,
        renewal,
        status: status.and_then(SubscriptionStatus::from_number),
        is_newest: false,
        stated_at: now,
    };
    // Of anything but a subscription that renews there is one transaction.
    facts.is_newest = !facts.is_auto_renewable();
    purchase_state(&facts, now).filter(|_| facts.notification_decides())
}

fn state_basis(facts: &PurchaseFacts<'_>) -> StateBasis {
    if facts.is_newest || facts.status.is_some() {
        StateBasis::Store
    } else {
        StateBasis::Transaction
    }
}

/// The end of access by a refund that gives back only the rest of a period.
fn prorated_end(transaction: &TransactionPayload) -> Option<Timestamp> {
    let is_prorated = transaction.revocation_type.as_deref() == Some("REFUND_PRORATED");
    let Millis(at) = transaction.revocation_date.filter(|_| is_prorated)?;
    Some(at)
}

fn product_status(
    transaction: &TransactionPayload,
    now: Timestamp,
) -> (StateStatus, Option<Timestamp>) {
    if let Some(end) = prorated_end(transaction).filter(|end| *end > now) {
        return (StateStatus::Active, Some(end));
    }
    // Apple gives a non-renewing subscription no end of its own; the app computes it.
    (
        from_transaction(transaction, now),
        end_of_period(transaction),
    )
}

fn end_of_period(transaction: &TransactionPayload) -> Option<Timestamp> {
    transaction.expires_date.map(|Millis(end)| end)
}

fn from_transaction(transaction: &TransactionPayload, now: Timestamp) -> StateStatus {
    match transaction_status(transaction, now) {
        TransactionStatus::Active => StateStatus::Active,
        TransactionStatus::Expired => StateStatus::Expired,
        TransactionStatus::Refunded => StateStatus::Refunded,
        TransactionStatus::Revoked => StateStatus::Revoked,
        TransactionStatus::Upgraded => StateStatus::Upgraded,
    }
}

/// The status of an auto-renewable subscription and the end of access.
fn subscription_status(
    facts: &PurchaseFacts<'_>,
    now: Timestamp,
) -> Option<(StateStatus, Option<Timestamp>)> {
    let transaction = facts.transaction;
    let is_superseded =
        transaction.revocation_date.is_some() || transaction.is_upgraded == Some(true);
    let by_transaction = from_transaction(transaction, now);
    let prorated = prorated_end(transaction).filter(|end| *end > now);
    let renewal_date = || facts.renewal.and_then(|renewal| renewal.renewal_date);
    let grace_end = facts
        .renewal
        .and_then(|renewal| renewal.grace_period_expires_date)
        .map(|Millis(end)| end)
        .filter(|end| *end > now);
    let status = facts
        .status
        .or_else(|| status_from_renewal(facts.renewal, by_transaction, grace_end));
    Some(match status {
        Some(SubscriptionStatus::Active) => {
            // The transaction of a notification can be an earlier period: the refund of one, a question about one.
            let own_end = end_of_period(transaction).filter(|_| !is_superseded);
            let current_end = renewal_date().map(|Millis(end)| end);
            match prorated.or(own_end.max(current_end)) {
                Some(end) if end > now => (StateStatus::Active, Some(end)),
                Some(_) if facts.renewal.is_some() || facts.is_newest => {
                    (StateStatus::Expired, None)
                }
                _ => return None,
            }
        }
        Some(SubscriptionStatus::GracePeriod) => match grace_end {
            Some(end) => (StateStatus::InGracePeriod, Some(end)),
            None if facts.renewal.is_none() => return None,
            None => (StateStatus::InBillingRetry, None),
        },
        Some(SubscriptionStatus::BillingRetry) => (StateStatus::InBillingRetry, None),
        Some(SubscriptionStatus::Expired) => match by_transaction {
            StateStatus::Refunded | StateStatus::Revoked => (by_transaction, None),
            _ => (StateStatus::Expired, None),
        },
        Some(SubscriptionStatus::Revoked) => match (prorated, by_transaction) {
            (Some(end), _) => (StateStatus::Active, Some(end)),
            (None, StateStatus::Refunded) => (StateStatus::Refunded, None),
            (None, _) => (StateStatus::Revoked, None),
        },
        None => match prorated {
            Some(end) => (StateStatus::Active, Some(end)),
            None => (by_transaction, end_of_period(transaction)),
        },
    })
}

/// What the renewal info says where Apple's status is absent, as in notifications of the first years.
fn status_from_renewal(
    renewal: Option<&RenewalInfoPayload>,
    by_transaction: StateStatus,
    grace_end: Option<Timestamp>,
) -> Option<SubscriptionStatus> {
    let is_retried = renewal?.is_in_billing_retry_period == Some(true);
    match by_transaction {
        StateStatus::Expired if is_retried && grace_end.is_some() => {
            Some(SubscriptionStatus::GracePeriod)
        }
        StateStatus::Expired if is_retried => Some(SubscriptionStatus::BillingRetry),
        _ => None,
    }
}

/// What comes after the current period.
struct RenewalOutlook {
    will_renew: Option<bool>,
    renews_as: Option<String>,
    renews_at: Option<Timestamp>,
}

impl RenewalOutlook {
    fn new(facts: &PurchaseFacts<'_>, status: StateStatus, now: Timestamp) -> Self {
        let will_renew = match status {
            _ if !facts.is_auto_renewable() => Some(false),
            StateStatus::Expired | StateStatus::Refunded | StateStatus::Revoked
                if state_basis(facts) == StateBasis::Store =>
            {
                Some(false)
            }
            _ => facts
                .renewal
                .and_then(|renewal| renewal.auto_renew_status.as_ref())
                .and_then(Number::as_i64)
                .map(|status| status == 1),
        };
        let renewal = facts.renewal.filter(|_| will_renew == Some(true));
        let due = renewal.map(|renewal| {
            let date = renewal.renewal_date.map(|Millis(date)| date);
            date.or_else(|| end_of_period(facts.transaction))
        });
        Self {
            will_renew,
            renews_as: renewal.and_then(|renewal| renewal.auto_renew_product_id.clone()),
            renews_at: due.flatten().filter(|due| *due > now),
        }
    }
}

/// `offerType` 1 is introductory; 2 promotional, 3 an offer code and 4 a win-back offer are promotional.
fn price_period(transaction: &TransactionPayload) -> PricePeriod {
    let offer = transaction.offer_type.as_ref().and_then(Number::as_i64);
    match (offer, transaction.offer_discount_type.as_deref()) {
        (Some(1), Some("FREE_TRIAL")) => PricePeriod::Trial,
        (Some(1), _) => PricePeriod::Introductory,
        (Some(2..=4), _) => PricePeriod::Promotional,
        _ => PricePeriod::Regular,
    }
}

/// Whether what was taken back is an earlier period of a subscription that goes on, by its current `state`. The current
/// period goes on too where only the rest of it is given back, until that begins.
pub(crate) fn is_earlier_period(transaction: &TransactionPayload, state: &PurchaseState) -> bool {
    transaction.revocation_date.is_some()
        && state.entitled
        && (state.entitled_until.is_none() || state.entitled_until != prorated_end(transaction))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    /// The state of a subscription's transaction with the given fields beside those of a plain one.
    fn state_of(
        transaction: &Value,
        renewal: Option<&Value>,
        status: Option<i64>,
    ) -> Option<Value> {
        let mut fields = json!({
            "transactionId": "2", "originalTransactionId": "1", "productId": "pro.monthly",
            "type": "Auto-Renewable Subscription", "signedDate": 900_000, "inAppOwnershipType": "PURCHASED", "quantity": 1,
        });
        for (name, value) in transaction.as_object().expect("an object") {
            fields[name] = value.clone();
        }
        let transaction: TransactionPayload = serde_json::from_value(fields).expect("readable");
        let renewal: Option<RenewalInfoPayload> =
            renewal.map(|renewal| serde_json::from_value(renewal.clone()).expect("readable"));
        let facts = PurchaseFacts {
            transaction: &transaction,
            renewal: renewal.as_ref(),
            status: status.and_then(SubscriptionStatus::from_number),
            is_newest: false,
            stated_at: NOW,
        };
        purchase_state(&facts, NOW).map(|state| serde_json::to_value(state).expect("writes"))
    }

    #[test]
    fn the_table_holds() {
        let later = "1970-01-01T00:33:20.000Z";
        let running = json!({"expiresDate": 2_000_000});
        let over = json!({"expiresDate": 500_000});
        let earlier_refunded = json!({"expiresDate": 500_000, "revocationDate": 600_000, "revocationType": "REFUND_FULL"});
        let on = json!({"autoRenewStatus": 1, "autoRenewProductId": "pro.monthly", "renewalDate": 2_000_000});
        let on_past = json!({"autoRenewStatus": 1, "renewalDate": 500_000});
        let grace = json!({"autoRenewStatus": 1, "isInBillingRetryPeriod": true, "gracePeriodExpiresDate": 2_000_000});
        let grace_over = json!({"autoRenewStatus": 1, "isInBillingRetryPeriod": true, "gracePeriodExpiresDate": 700_000});
        for (transaction, renewal, status, expected) in [
            (&running, None, None, ("active", true, Some(later))),
            (&running, Some(&on), Some(1), ("active", true, Some(later))),
            (&over, Some(&on), Some(1), ("active", true, Some(later))),
            (&over, Some(&on_past), Some(1), ("expired", false, None)),
            (&over, None, None, ("expired", false, None)),
            (
                &over,
                Some(&grace),
                Some(4),
                ("in_grace_period", true, Some(later)),
            ),
            (
                &over,
                Some(&grace),
                None,
                ("in_grace_period", true, Some(later)),
            ),
            (
                &over,
                Some(&grace_over),
                Some(4),
                ("in_billing_retry", false, None),
            ),
            (
                &over,
                Some(&grace_over),
                None,
                ("in_billing_retry", false, None),
            ),
            (
                &over,
                Some(&grace_over),
                Some(3),
                ("in_billing_retry", false, None),
            ),
            (&over, None, Some(2), ("expired", false, None)),
            (&earlier_refunded, None, Some(2), ("refunded", false, None)),
            (&earlier_refunded, None, Some(5), ("refunded", false, None)),
            (&over, None, Some(5), ("revoked", false, None)),
            (
                &earlier_refunded,
                Some(&on),
                Some(1),
                ("active", true, Some(later)),
            ),
        ] {
            let state = state_of(transaction, renewal, status).expect("decided");
            let found = (
                state["status"].as_str().expect("a word"),
                state["entitled"].as_bool().expect("yes or no"),
                state["entitledUntil"].as_str(),
            );
            assert_eq!(found, expected, "{transaction} {renewal:?} {status:?}");
        }
    }

    #[test]
    fn a_refunded_period_without_the_end_of_the_current_one_does_not_decide() {
        let refunded = json!({"expiresDate": 500_000, "revocationDate": 600_000});
        assert_eq!(state_of(&refunded, None, Some(1)), None);
        assert_eq!(
            state_of(&json!({"expiresDate": 500_000}), None, Some(4)),
            None
        );
    }

    #[test]
    fn an_earlier_period_lends_the_current_one_neither_product_nor_offer() {
        let upgraded = json!({"expiresDate": 2_000_000, "isUpgraded": true, "revocationDate": 1, "offerType": 1});
        let renewal =
            json!({"renewalDate": 3_000_000, "productId": "pro.yearly", "autoRenewStatus": 1});
        let state = state_of(&upgraded, Some(&renewal), Some(1)).expect("decided");
        assert_eq!(
            (&state["productId"], &state["period"]),
            (&json!("pro.yearly"), &Value::Null)
        );
        assert_eq!(state["entitledUntil"], "1970-01-01T00:50:00.000Z");
        // In the grace period of a later one, of which only the renewal info tells.
        let over = json!({"expiresDate": 500_000, "offerType": 1});
        let grace = |product: &str| {
            json!({
                "productId": product, "autoRenewStatus": 1, "isInBillingRetryPeriod": true, "gracePeriodExpiresDate": 2_000_000,
            })
        };
        for (product, period) in [
            ("lite", Value::Null),
            ("pro.monthly", json!("introductory")),
        ] {
            let state = state_of(&over, Some(&grace(product)), Some(4)).expect("decided");
            assert_eq!(
                (&state["status"], &state["productId"], &state["period"]),
                (&json!("in_grace_period"), &json!(product), &period)
            );
        }
    }

    #[test]
    fn a_notification_decides_of_a_subscription_only_by_what_it_says_of_the_whole() {
        let retried = json!({"isInBillingRetryPeriod": true, "gracePeriodExpiresDate": 2_000_000});
        let renews = json!({"autoRenewStatus": 1, "renewalDate": 2_000_000});
        for (kind, renewal, status, decides) in [
            ("Auto-Renewable Subscription", None, Some(1), true),
            // A period that runs, and another may follow it already.
            ("Auto-Renewable Subscription", None, None, false),
            ("Auto-Renewable Subscription", Some(&renews), None, false),
            ("Auto-Renewable Subscription", Some(&renews), Some(9), false),
            ("Auto-Renewable Subscription", Some(&retried), None, true),
            ("Non-Consumable", None, None, true),
            ("Non-Renewing Subscription", None, None, true),
        ] {
            let transaction = json!({
                "transactionId": "2", "originalTransactionId": "1", "productId": "pro", "type": kind,
                "signedDate": 900_000, "expiresDate": 2_000_000,
            });
            let transaction: TransactionPayload =
                serde_json::from_value(transaction).expect("readable");
            let renewal: Option<RenewalInfoPayload> =
                renewal.map(|renewal| serde_json::from_value(renewal.clone()).expect("readable"));
            let state = notification_state(&transaction, renewal.as_ref(), status, NOW);
            assert_eq!(state.is_some(), decides, "{kind} {renewal:?} {status:?}");
        }
    }

    #[test]
    fn a_product_is_decided_by_its_transaction() {
        for (fields, expected) in [
            (json!({"type": "Consumable"}), ("active", true)),
            (
                json!({"type": "Non-Consumable", "revocationDate": 1}),
                ("refunded", false),
            ),
            (
                json!({"type": "Non-Consumable", "revocationDate": 1, "revocationType": "FAMILY_REVOKE"}),
                ("revoked", false),
            ),
            (
                json!({"type": "Non-Renewing Subscription"}),
                ("active", true),
            ),
        ] {
            let state = state_of(&fields, None, None).expect("decided");
            assert_eq!(
                (state["status"].as_str(), state["entitled"].as_bool()),
                (Some(expected.0), Some(expected.1)),
                "{fields}"
            );
            assert_eq!(state["willRenew"], json!(false));
            assert_eq!(
                (&state["entitledUntil"], &state["period"]),
                (&Value::Null, &Value::Null)
            );
        }
    }

    #[test]
    fn a_prorated_refund_ends_access_at_its_date() {
        let ahead = json!({"expiresDate": 3_000_000, "revocationDate": 2_000_000, "revocationType": "REFUND_PRORATED"});
        for status in [None, Some(1), Some(5)] {
            let state = state_of(&ahead, None, status).expect("decided");
            assert_eq!(
                state["entitledUntil"], "1970-01-01T00:33:20.000Z",
                "{status:?}"
            );
            assert_eq!(state["status"], "active");
        }
        let past = json!({"expiresDate": 3_000_000, "revocationDate": 900_000, "revocationType": "REFUND_PRORATED"});
        assert_eq!(
            state_of(&past, None, None).expect("decided")["status"],
            "refunded"
        );
    }

    #[test]
    fn the_price_is_told_by_the_offer() {
        for (fields, expected) in [
            (json!({}), "regular"),
            (
                json!({"offerType": 1, "offerDiscountType": "FREE_TRIAL"}),
                "trial",
            ),
            (
                json!({"offerType": 1, "offerDiscountType": "PAY_UP_FRONT"}),
                "introductory",
            ),
            (
                json!({"offerType": 2, "offerDiscountType": "FREE_TRIAL"}),
                "promotional",
            ),
            (json!({"offerType": 3}), "promotional"),
            (json!({"offerType": 4}), "promotional"),
            (json!({"offerType": 9}), "regular"),
        ] {
            assert_eq!(
                state_of(&fields, None, None).expect("decided")["period"],
                expected,
                "{fields}"
            );
        }
    }

    #[test]
    fn the_renewal_is_told_by_the_renewal_info() {
        let running = json!({"expiresDate": 2_000_000});
        let unknown = state_of(&running, None, None).expect("decided");
        assert_eq!(
            (&unknown["willRenew"], &unknown["basis"]),
            (&Value::Null, &json!("transaction"))
        );
        let on = json!({"autoRenewStatus": 1, "autoRenewProductId": "pro.yearly", "signedDate": 950_000});
        let state = state_of(&running, Some(&on), Some(1)).expect("decided");
        assert_eq!(state["renewsAs"], "pro.yearly");
        assert_eq!(state["renewsAt"], "1970-01-01T00:33:20.000Z");
        assert_eq!(state["asOf"], "1970-01-01T00:15:50.000Z");
        assert_eq!(state["basis"], "store");
        let off = json!({"autoRenewStatus": 0, "autoRenewProductId": "pro.yearly"});
        let state = state_of(&running, Some(&off), Some(1)).expect("decided");
        assert_eq!(
            (&state["willRenew"], &state["renewsAs"], &state["renewsAt"]),
            (&json!(false), &Value::Null, &Value::Null)
        );
    }
}
