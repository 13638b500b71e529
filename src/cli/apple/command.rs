//! The commands of `attesto apple`.

use super::super::context::{CommandContext, CommandError};
use super::app_transaction::{self, AppTransactionArgs};
use super::backfill::{self, AppleBackfillArgs};
use super::consumption::{self, ConsumptionArgs, SetAppleDefaultArgs};
use super::credentials::{self, SetAppleCredentialsArgs};
use super::offers::{self, SignOfferArgs};
use super::orders::{self, AppleOrderArgs, AppleRefundsArgs};
use super::test_notification::{self, RequestTestNotificationArgs};
use super::transaction_actions::{self, FinishArgs, SetAppAccountTokenArgs};
use crate::base::id::TenantId;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum AppleCommand {
    /// Set a tenant's App Store credentials, replacing the stored ones
    SetCredentials(SetAppleCredentialsArgs),
    /// Show a tenant's App Store credentials without the private key
    GetCredentials {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
    },
    /// Restore the previous App Store credentials; a second rollback undoes the first
    RollbackCredentials {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
    },
    /// Ask Apple to send a test notification, wait for the result and show it
    RequestTestNotification(RequestTestNotificationArgs),
    /// Read Apple's notification history, and store and deliver what is missing
    Backfill(AppleBackfillArgs),
    /// Ask Apple which purchases an order paid for
    Order(AppleOrderArgs),
    /// Ask Apple what a customer was refunded
    Refunds(AppleRefundsArgs),
    /// Verify an app transaction: when and in which version a customer obtained the app
    AppTransaction(AppTransactionArgs),
    /// Tell Apple how a purchase was used, for its decision on a refund
    Consumption(ConsumptionArgs),
    /// Set what Apple is told about a refund that the backend does not answer in time
    SetDefaultAnswer(SetAppleDefaultArgs),
    /// Tell Apple nothing about a refund that the backend does not answer
    RemoveDefaultAnswer {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
    },
    /// Finish a transaction whose content was delivered
    Finish(FinishArgs),
    /// Name the user of a purchase
    SetAppAccountToken(SetAppAccountTokenArgs),
    /// Sign an offer for a subscription, which the app passes to the App Store
    SignOffer(SignOfferArgs),
}

pub(crate) async fn run(
    command: AppleCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        AppleCommand::SetCredentials(arguments) => {
            credentials::set_credentials(arguments, context).await
        }
        AppleCommand::GetCredentials { tenant } => {
            credentials::get_credentials(&tenant, context).await
        }
        AppleCommand::RollbackCredentials { tenant } => {
            credentials::rollback_credentials(&tenant, context).await
        }
        AppleCommand::RequestTestNotification(arguments) => {
            test_notification::request_test_notification(arguments, context).await
        }
        AppleCommand::AppTransaction(arguments) => {
            app_transaction::verify_app_transaction(arguments, context).await
        }
        AppleCommand::Consumption(arguments) => {
            consumption::send_consumption(arguments, context).await
        }
        AppleCommand::SetDefaultAnswer(arguments) => {
            consumption::set_default_answer(arguments, context).await
        }
        AppleCommand::RemoveDefaultAnswer { tenant } => {
            consumption::remove_default_answer(&tenant, context).await
        }
        AppleCommand::Finish(arguments) => {
            transaction_actions::finish_transaction(arguments, context).await
        }
        AppleCommand::SetAppAccountToken(arguments) => {
            transaction_actions::set_app_account_token(arguments, context).await
        }
        AppleCommand::SignOffer(arguments) => offers::sign_offer(arguments, context).await,
        AppleCommand::Backfill(arguments) => {
            backfill::backfill_notifications(arguments, context).await
        }
        AppleCommand::Order(arguments) => orders::show_order(arguments, context).await,
        AppleCommand::Refunds(arguments) => orders::list_refunds(arguments, context).await,
    }
}
