//! What a support desk asks: which purchases an order paid for, and what a customer was refunded.
//!
//! Every transaction in Apple's answer is verified, and must be of the tenant's app and of the environment that was asked.

use std::sync::Arc;

use serde::Serialize;

use super::account::{AppleCredentials, AppleEnvironment};
use super::error::AppleVerifyError;
use super::payload::RefundHistoryResponse;
use super::translate::{self, TransactionStatus};
use super::verify::{
    AppleVerifier, TransactionDetails, ask_environments, check_transaction, environments_to_query,
    transaction_details,
};
use crate::base::id::TenantId;

/// Apple's `status` of an order id that it knows.
const ORDER_VALID: i64 = 0;
/// Pages of refunds that are read, twenty refunds each.
const MAX_REFUND_PAGES: usize = 50;

/// The purchases of an order.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AppleOrder {
    /// Where Apple was asked.
    pub environment: AppleEnvironment,
    /// Whether Apple knows the order, as one of the app.
    pub valid: bool,
    /// What it paid for.
    pub transactions: Vec<ListedTransaction>,
}

/// What Apple gave back to a customer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AppleRefunds {
    /// Where the customer's purchases are.
    pub environment: AppleEnvironment,
    /// Whether these are all refunds. False: there are more than a thousand.
    pub complete: bool,
    /// The transactions that were refunded, in Apple's order.
    pub transactions: Vec<ListedTransaction>,
}

/// A verified transaction of a list.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedTransaction {
    /// What it is now.
    pub status: TransactionStatus,
    /// Whose it is, where the app named its user.
    pub app_user_id: Option<String>,
    /// What Apple says of it.
    pub transaction: TransactionDetails,
}

impl AppleVerifier {
    /// Look Up Order ID. Apple knows orders of production only; a tenant that has none is asked about in the sandbox.
    pub async fn look_up_order(
        &self,
        tenant: &TenantId,
        order_id: &str,
    ) -> Result<AppleOrder, AppleVerifyError> {
        let credentials = self.require_credentials(tenant).await?;
        let has_id = credentials.app_apple_id.is_some();
        let environments = environments_to_query(credentials.environment, has_id)?;
        let environment = *environments.first().ok_or(AppleVerifyError::NoAppAppleId)?;
        let answer = self
            .app_store
            .look_up_order(tenant, &credentials, environment, order_id)
            .await?;
        let mut transactions = Vec::new();
        for jws in answer.signed_transactions {
            transactions.push(self.read_listed(&credentials, environment, jws).await?);
        }
        Ok(AppleOrder {
            environment,
            valid: answer.status == Some(ORDER_VALID) && !transactions.is_empty(),
            transactions,
        })
    }

    /// Get Refund History: what was refunded to the customer of this transaction, in production, and where Apple does not know
    /// it there, in the sandbox.
    pub async fn fetch_refunds(
        &self,
        tenant: &TenantId,
        transaction_id: &str,
    ) -> Result<AppleRefunds, AppleVerifyError> {
        let credentials = self.require_credentials(tenant).await?;
        let choice = credentials.environment;
        let (environment, first) = ask_environments(choice, &credentials, |environment| {
            self.app_store.get_refund_history(
                tenant,
                &credentials,
                environment,
                transaction_id,
                None,
            )
        })
        .await?;
        self.read_refunds(tenant, &credentials, environment, transaction_id, first)
            .await
    }

    async fn read_refunds(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
        transaction_id: &str,
        first: RefundHistoryResponse,
    ) -> Result<AppleRefunds, AppleVerifyError> {
        let mut transactions = Vec::new();
        let mut page = first;
        for _ in 0..MAX_REFUND_PAGES {
            for jws in page.signed_transactions {
                transactions.push(self.read_listed(credentials, environment, jws).await?);
            }
            let next = page.revision.filter(|_| page.has_more == Some(true));
            let Some(revision) = next else {
                return Ok(AppleRefunds {
                    environment,
                    complete: true,
                    transactions,
                });
            };
            page = self
                .app_store
                .get_refund_history(
                    tenant,
                    credentials,
                    environment,
                    transaction_id,
                    Some(&revision),
                )
                .await?;
        }
        Ok(AppleRefunds {
            environment,
            complete: false,
            transactions,
        })
    }

    async fn read_listed(
        &self,
        credentials: &AppleCredentials,
        environment: AppleEnvironment,
        jws: String,
    ) -> Result<ListedTransaction, AppleVerifyError> {
        let (transaction, raw) = self
            .read_transaction(&jws)
            .await
            .map_err(AppleVerifyError::UntrustedResponse)?;
        check_transaction(credentials, Some(environment), &transaction)?;
        Ok(ListedTransaction {
            status: translate::transaction_status(&transaction, self.clock.now()),
            app_user_id: translate::app_user(transaction.app_account_token.as_deref())
                .map(str::to_owned),
            transaction: transaction_details(transaction, raw, jws),
        })
    }
}
