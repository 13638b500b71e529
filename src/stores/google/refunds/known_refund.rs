//! Refunds that are known: the table `voided_purchases`. A refund that both a push and Google's list tell becomes one event.

use super::super::payload::{DeveloperNotification, Int64};
use super::store;
use crate::base::id::TenantId;
use crate::crypto::token;
use crate::db::{Database, Error};

/// Google's `refundType` of a refund of all of an order.
const FULL_REFUND: i64 = 1;
/// Google's `refundType` of a refund of a part of a quantity.
const PARTIAL_REFUND: i64 = 2;

/// A refund of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct KnownRefund {
    hash: [u8; 32],
    is_partial: bool,
}

impl KnownRefund {
    pub(super) fn new(purchase_token: &str, order_id: &str, is_partial: bool) -> Self {
        let kind = if is_partial {
            PARTIAL_REFUND
        } else {
            FULL_REFUND
        };
        Self {
            hash: token::sha256(format!("{purchase_token}\n{order_id}\n{kind}").as_bytes()),
            is_partial,
        }
    }

    /// The refund that a notification tells.
    pub(in super::super) fn of_notification(notification: &DeveloperNotification) -> Option<Self> {
        let details = notification.voided_purchase_notification.as_ref()?;
        let is_partial = match details.refund_type {
            Some(Int64(FULL_REFUND)) => false,
            Some(Int64(PARTIAL_REFUND)) => true,
            _ => return None,
        };
        let purchase_token = details.purchase_token.as_deref()?;
        let order_id = details.order_id.as_deref().unwrap_or_default();
        Some(Self::new(purchase_token, order_id, is_partial))
    }

    /// The external id of its event, where no push tells it.
    pub(super) fn external_id(&self) -> String {
        format!("voided:{}", token::encode_hex(&self.hash))
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
    /// one was noted before. A message about a part of a quantity always has an event of its own, because an order may have several.
    pub(in super::super) async fn note(
        &self,
        database: &Database,
        tenant: &TenantId,
        external_id: &str,
    ) -> Result<String, Error> {
        let noted = store::note_refund(database, tenant, &self.hash, external_id).await?;
        Ok(noted
            .filter(|_| !self.is_partial)
            .unwrap_or_else(|| external_id.to_owned()))
    }
}
