//! A whole subscription as Apple knows it: Get All Subscription Statuses. What Apple signed in its answer is verified by the
//! same rules as anything else, and must be of the same subscription, app and environment.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::account::{AppleCredentials, AppleEnvironment};
use super::api::{AppleNotFound, TransactionLookupError};
use super::error::AppleVerifyError;
use super::payload::{LastTransactionsItem, RenewalInfoPayload, TransactionPayload};
use super::state::{PurchaseFacts, SubscriptionStatus};
use super::translate;
use super::trust::SignatureError;
use super::verify::AppleVerifier;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;

/// The newest period of a subscription, and what Apple says of the subscription.
pub(super) struct WholeSubscription {
    pub(super) transaction: TransactionPayload,
    pub(super) renewal: Option<RenewalInfoPayload>,
    status: Option<SubscriptionStatus>,
}

impl WholeSubscription {
    pub(super) fn app_user(&self) -> Option<&str> {
        let renewal = self.renewal.as_ref();
        translate::app_user(self.transaction.app_account_token.as_deref()).or_else(|| {
            translate::app_user(renewal.and_then(|renewal| renewal.app_account_token.as_deref()))
        })
    }

    pub(super) fn facts(&self, now: Timestamp) -> PurchaseFacts<'_> {
        PurchaseFacts {
            transaction: &self.transaction,
            renewal: self.renewal.as_ref(),
            status: self.status,
            is_newest: true,
            stated_at: now,
        }
    }
}

impl From<TransactionLookupError> for AppleVerifyError {
    fn from(error: TransactionLookupError) -> Self {
        match error {
            TransactionLookupError::NotFound(reason) => reason.into(),
            TransactionLookupError::Api(failure) => failure.into(),
        }
    }
}

impl AppleVerifier {
    /// Asks Apple for the subscription whose first transaction is `original_id`. [`AppleVerifyError::NotFound`] when the
    /// answer holds none.
    pub(super) async fn fetch_subscription(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        original_id: &str,
    ) -> Result<WholeSubscription, AppleVerifyError> {
        let statuses = self
            .app_store
            .get_subscription_statuses(tenant, credentials, environment, original_id)
            .await?;
        let item = statuses
            .data
            .into_iter()
            .flat_map(|group| group.last_transactions)
            .find(|item| item.original_transaction_id.as_deref() == Some(original_id))
            .ok_or(AppleNotFound::Unknown)?;
        self.read_subscription(credentials, environment, original_id, &item)
            .await
    }

    async fn read_subscription(
        &self,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
        original_id: &str,
        item: &LastTransactionsItem,
    ) -> Result<WholeSubscription, AppleVerifyError> {
        let signed = item.signed_transaction_info.as_deref();
        let signed = signed.ok_or(AppleVerifyError::ResponseMismatch)?;
        let transaction: TransactionPayload = self.read_signed(signed).await?;
        let is_right = transaction.transaction_id.is_some()
            && transaction.original_transaction_id.as_deref() == Some(original_id)
            && transaction.bundle_id.as_deref() == Some(&*credentials.bundle_id)
            && transaction.environment.as_deref() == Some(environment.as_apple_str());
        let renewal: Option<RenewalInfoPayload> = match &item.signed_renewal_info {
            Some(jws) => Some(self.read_signed(jws).await?),
            None => None,
        };
        // A renewal info names no app.
        let is_renewal_right = renewal.as_ref().is_none_or(|renewal| {
            renewal.original_transaction_id.as_deref() == Some(original_id)
                && renewal
                    .environment
                    .as_deref()
                    .is_none_or(|found| found == environment.as_apple_str())
        });
        if !is_right || !is_renewal_right {
            return Err(AppleVerifyError::ResponseMismatch);
        }
        Ok(WholeSubscription {
            transaction,
            renewal,
            status: item.status.and_then(SubscriptionStatus::from_number),
        })
    }

    async fn read_signed<T: DeserializeOwned>(&self, jws: &str) -> Result<T, AppleVerifyError> {
        let payload = self.verify_jws(jws).await;
        payload
            .and_then(|json| serde_json::from_slice(&json).map_err(|_| SignatureError::BadPayload))
            .map_err(AppleVerifyError::UntrustedResponse)
    }
}
