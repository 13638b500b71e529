//! What a transaction is now, from the facts in hand. Pure.
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

use serde::Serialize;
use utoipa::ToSchema;

use super::payload::{Millis, Transaction};
use crate::clock::Timestamp;

/// What a transaction is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = apple::Status)]
pub enum Status {
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
pub fn status(transaction: &Transaction, now: Timestamp) -> Status {
    if transaction.revocation_date.is_some() {
        let kind = transaction.revocation_type.as_deref();
        let is_shared = transaction.in_app_ownership_type.as_deref() == Some("FAMILY_SHARED");
        return match kind {
            Some("FAMILY_REVOKE") => Status::Revoked,
            None if is_shared => Status::Revoked,
            _ => Status::Refunded,
        };
    }
    if transaction.is_upgraded == Some(true) {
        return Status::Upgraded;
    }
    match transaction.expires_date {
        Some(Millis(end)) if end <= now => Status::Expired,
        _ => Status::Active,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_holds() {
        let now = Timestamp::from_millis(1_000_000);
        for (facts, expected) in [
            (json!({}), Status::Active),
            (json!({"expiresDate": 1_000_001}), Status::Active),
            (json!({"expiresDate": 1_000_000}), Status::Expired),
            (json!({"expiresDate": 999_999.9}), Status::Expired),
            (
                json!({"isUpgraded": true, "expiresDate": 2_000_000}),
                Status::Upgraded,
            ),
            (
                json!({"isUpgraded": false, "expiresDate": 2_000_000}),
                Status::Active,
            ),
            (json!({"revocationDate": 1}), Status::Refunded),
            (
                json!({"revocationDate": 1, "expiresDate": 2}),
                Status::Refunded,
            ),
            (
                json!({"revocationDate": 1, "isUpgraded": true}),
                Status::Refunded,
            ),
            (
                json!({"revocationDate": 1, "revocationType": "REFUND_FULL"}),
                Status::Refunded,
            ),
            (
                json!({"revocationDate": 1, "revocationType": "REFUND_PRORATED"}),
                Status::Refunded,
            ),
            (
                json!({"revocationDate": 1, "revocationType": "FAMILY_REVOKE"}),
                Status::Revoked,
            ),
            (
                json!({"revocationDate": 1, "inAppOwnershipType": "FAMILY_SHARED"}),
                Status::Revoked,
            ),
            (
                json!({"revocationDate": 1, "inAppOwnershipType": "FAMILY_SHARED", "revocationType": "REFUND_FULL"}),
                Status::Refunded,
            ),
            (
                json!({"revocationDate": 1, "revocationType": "SOMETHING_NEW"}),
                Status::Refunded,
            ),
        ] {
            let transaction: Transaction = serde_json::from_value(facts.clone()).expect("readable");
            assert_eq!(status(&transaction, now), expected, "{facts}");
        }
    }
}
