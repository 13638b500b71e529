//! `attesto google acknowledge` and `attesto google consume`: the routes of the same names, with the tenant's stored credentials.

use std::fmt::Write as _;

use super::super::context::{CommandContext, CommandError};
use super::super::verify::{GooglePurchaseArgs, print_rejection};
use crate::stores::google::{AcknowledgeRequest, ExternalAccountIds};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto google acknowledge tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --purchase-token-path token.txt"
)]
pub(crate) struct AcknowledgeArgs {
    #[command(flatten)]
    purchase: GooglePurchaseArgs,

    /// Obfuscated account id of the user, for a subscription that was bought again in Play and names none [default: the user
    /// of the purchase before it]
    #[arg(long, value_name = "ID")]
    bind_account_id: Option<String>,

    /// Obfuscated profile id of the user, for the same subscription
    #[arg(long, value_name = "ID")]
    bind_profile_id: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto google consume tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --purchase-token-path token.txt"
)]
pub(crate) struct ConsumeArgs {
    #[command(flatten)]
    purchase: GooglePurchaseArgs,
}

pub(super) async fn acknowledge_purchase(
    arguments: AcknowledgeArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let (google, tenant, purchase) = arguments.purchase.load(context).await?;
    let ids = ExternalAccountIds {
        obfuscated_account_id: arguments.bind_account_id,
        obfuscated_profile_id: arguments.bind_profile_id,
    };
    let request = AcknowledgeRequest {
        purchase,
        external_account_ids: Some(ids).filter(|ids| *ids != ExternalAccountIds::default()),
    };
    match google.acknowledge_purchase(&tenant, &request).await {
        Ok(done) => {
            let product = name_product(done.subject.product_id.as_deref());
            let mut text = if done.already_done {
                format!("{product} was acknowledged before.")
            } else {
                format!("Acknowledged {product}.")
            };
            if let (true, Some(user)) = (done.app_user_bound, &done.app_user_id) {
                let _ = write!(text, " It is now the purchase of {user}.");
            }
            Ok(context.output.write_json_or_text(&done, &text)?)
        }
        Err(outcome) => print_rejection(context, outcome.into()),
    }
}

pub(super) async fn consume_purchase(
    arguments: ConsumeArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let (google, tenant, request) = arguments.purchase.load(context).await?;
    match google.consume_purchase(&tenant, &request).await {
        Ok(done) => {
            let product = name_product(done.subject.product_id.as_deref());
            let text = if done.already_done {
                format!("{product} was consumed before.")
            } else {
                format!("Consumed {product}: its user can buy it again.")
            };
            Ok(context.output.write_json_or_text(&done, &text)?)
        }
        Err(outcome) => print_rejection(context, outcome.into()),
    }
}

fn name_product(product_id: Option<&str>) -> &str {
    product_id.unwrap_or("An unnamed product")
}
