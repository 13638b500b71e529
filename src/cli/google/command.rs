//! The commands of `attesto google`.

use super::super::context::{CommandContext, CommandError};
use super::answers::{self, AcknowledgeArgs, ConsumeArgs};
use super::backfill::{self, GoogleBackfillArgs};
use super::credentials::{self, SetGoogleCredentialsArgs};
use super::orders::{self, GoogleOrderArgs};
use super::refund_review::{self, RefundReviewArgs, SetGoogleDefaultArgs};
use crate::base::id::TenantId;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum GoogleCommand {
    /// Set a tenant's Google Play credentials, replacing the stored ones
    SetCredentials(SetGoogleCredentialsArgs),
    /// Show a tenant's Google Play credentials without the private key
    GetCredentials {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
    },
    /// Restore the previous Google Play credentials; a second rollback undoes the first
    RollbackCredentials {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
    },
    /// Acknowledge a purchase, so that Google does not refund it
    Acknowledge(AcknowledgeArgs),
    /// Consume a one-time product, so that its user can buy it again
    Consume(ConsumeArgs),
    /// Tell Google what you think of a refund, for its decision
    RefundReview(RefundReviewArgs),
    /// Set what Google is told about a refund that the backend does not answer in time
    SetDefaultAnswer(SetGoogleDefaultArgs),
    /// Tell Google nothing about a refund that the backend does not answer
    RemoveDefaultAnswer {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
    },
    /// Read Google's list of refunds, and subscriptions that should have changed, and store and deliver what is missing
    Backfill(GoogleBackfillArgs),
    /// Ask Google what an order paid for, and what became of it
    Order(GoogleOrderArgs),
}

pub(crate) async fn run(
    command: GoogleCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        GoogleCommand::SetCredentials(arguments) => {
            credentials::set_credentials(arguments, context).await
        }
        GoogleCommand::GetCredentials { tenant } => {
            credentials::get_credentials(&tenant, context).await
        }
        GoogleCommand::RollbackCredentials { tenant } => {
            credentials::rollback_credentials(&tenant, context).await
        }
        GoogleCommand::Acknowledge(arguments) => {
            answers::acknowledge_purchase(arguments, context).await
        }
        GoogleCommand::Consume(arguments) => answers::consume_purchase(arguments, context).await,
        GoogleCommand::RefundReview(arguments) => {
            refund_review::review_refund(arguments, context).await
        }
        GoogleCommand::SetDefaultAnswer(arguments) => {
            refund_review::set_default_answer(arguments, context).await
        }
        GoogleCommand::RemoveDefaultAnswer { tenant } => {
            refund_review::remove_default_answer(&tenant, context).await
        }
        GoogleCommand::Backfill(arguments) => backfill::backfill_refunds(arguments, context).await,
        GoogleCommand::Order(arguments) => orders::show_order(arguments, context).await,
    }
}
