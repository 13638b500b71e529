//! Refunds that are known: the table `voided_purchases`. A refund that both a push and Google's list tell becomes one event.

use super::super::payload::{DeveloperNotification, Int64, ProductPurchase};
use super::store;
use crate::base::id::TenantId;
use crate::crypto::token;
use crate::db::{Database, Error};

/// Google's `refundType` of a refund of all of an order.
const FULL_REFUND: i64 = 1;
/// Google's `refundType` of a refund of a part of a quantity.
const PARTIAL_REFUND: i64 = 2;

/// What the external id of an event begins with that no push has told.
const RECOVERED_PREFIX: &str = "voided:";

/// A refund of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct KnownRefund {
    hash: [u8; 32],
    is_partial: bool,
}

/// How much of an order was refunded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefundedPart {
    Whole,
    /// A part of a quantity. An order may have several such refunds, and Google names none of them: what tells one from the next is how much
    /// is refunded after it. `None`: not known.
    Quantity(Option<i64>),
}

impl KnownRefund {
    pub(super) fn new(purchase_token: &str, order_id: &str, part: RefundedPart) -> Self {
        let kind = match part {
            RefundedPart::Whole => FULL_REFUND.to_string(),
            RefundedPart::Quantity(None) => PARTIAL_REFUND.to_string(),
            RefundedPart::Quantity(Some(refunded)) => format!("{PARTIAL_REFUND}\n{refunded}"),
        };
        Self {
            hash: token::sha256(format!("{purchase_token}\n{order_id}\n{kind}").as_bytes()),
            is_partial: part != RefundedPart::Whole,
        }
    }

    /// The refund that a notification tells. `purchase`: Google's record of the product, which says how many of it are refunded.
    pub(in super::super) fn of_notification(
        notification: &DeveloperNotification,
        purchase: Option<&ProductPurchase>,
    ) -> Option<Self> {
        let details = notification.voided_purchase_notification.as_ref()?;
        let part = match details.refund_type {
            Some(Int64(FULL_REFUND)) => RefundedPart::Whole,
            Some(Int64(PARTIAL_REFUND)) => {
                RefundedPart::Quantity(purchase.and_then(refunded_quantity))
            }
            _ => return None,
        };
        let purchase_token = details.purchase_token.as_deref()?;
        let order_id = details.order_id.as_deref().unwrap_or_default();
        Some(Self::new(purchase_token, order_id, part))
    }

    /// The external id of its event, where no push tells it.
    pub(super) fn external_id(&self) -> String {
        format!("{RECOVERED_PREFIX}{}", token::encode_hex(&self.hash))
    }

    /// Whether an event tells it.
    pub(super) async fn is_known(
        &self,
        database: &Database,
        tenant: &TenantId,
    ) -> Result<bool, Error> {
        store::is_refund_told(database, tenant, &self.hash).await
    }

    /// Notes that an event with `external_id` tells the refund. Returns the external id of the event that tells it: another one where
    /// one was noted before. A message about a part of a quantity has an event of its own, because an order may have several; only if
    /// Google's list has told before that so many are refunded, nothing is left to tell.
    pub(in super::super) async fn note(
        &self,
        database: &Database,
        tenant: &TenantId,
        external_id: &str,
    ) -> Result<String, Error> {
        let noted = store::note_refund(database, tenant, &self.hash, external_id).await?;
        Ok(noted
            .filter(|noted| !self.is_partial || noted.starts_with(RECOVERED_PREFIX))
            .unwrap_or_else(|| external_id.to_owned()))
    }
}

/// How many of a product are refunded. `None`: Google does not say.
fn refunded_quantity(purchase: &ProductPurchase) -> Option<i64> {
    let Int64(left) = purchase.refundable_quantity?;
    let bought = purchase.quantity.map_or(1, |Int64(bought)| bought);
    Some(bought - left)
}
