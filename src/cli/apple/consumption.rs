//! `attesto apple consumption`: the route `POST /v1/apple/consumption`, with the tenant's stored credentials; and what Apple is told where
//! the backend does not answer: `set-default-answer`, `remove-default-answer`.

use serde_json::json;

use super::super::context::{CommandContext, CommandError};
use super::super::verify::{VerifyDependencies, print_rejection};
use super::credentials::no_credentials_error;
use crate::base::id::TenantId;
use crate::stores::apple::account::EnvironmentChoice;
use crate::stores::apple::store;
use crate::stores::apple::{
    AppleRefundPreference, ConsumptionInformation, ConsumptionRequest, DeliveryStatus,
    MAX_CONSUMPTION_PERCENTAGE,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple consumption tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E 2000000123456789 \\\n    --customer-consented --sample-content-provided false \\\n    --delivery-status delivered --consumption-percentage 50000 --refund-preference decline"
)]
pub(crate) struct ConsumptionArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Transaction that Apple asked about
    #[arg(value_name = "TRANSACTION_ID")]
    transaction_id: String,

    /// Environment of Apple's question [default: that of the tenant's credentials]
    #[arg(long, value_enum)]
    environment: Option<EnvironmentChoice>,

    /// Confirm that the customer consented to Apple being told
    #[arg(long, required = true)]
    customer_consented: bool,

    #[command(flatten)]
    information: ConsumptionInformationArgs,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple set-default-answer tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --customer-consented --sample-content-provided false \\\n    --delivery-status delivered --refund-preference decline"
)]
pub(crate) struct SetAppleDefaultArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Confirm that every customer consents to Apple being told, such as with the terms of the app
    #[arg(long, required = true)]
    customer_consented: bool,

    #[command(flatten)]
    information: ConsumptionInformationArgs,
}

/// How a purchase was used.
#[derive(Debug, clap::Args)]
pub(super) struct ConsumptionInformationArgs {
    /// Whether the customer could try the content before the purchase
    #[arg(long, value_name = "true|false", action = clap::ArgAction::Set)]
    sample_content_provided: bool,

    /// Whether the customer got what was bought
    #[arg(long, value_enum, value_name = "STATUS")]
    delivery_status: DeliveryStatus,

    /// How much was used, in thousandths of a percent: 50000 is a half
    #[arg(
        long,
        value_name = "0-100000",
        value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_CONSUMPTION_PERCENTAGE))
    )]
    consumption_percentage: Option<u32>,

    /// Decision that you want of Apple
    #[arg(long, value_enum, value_name = "DECISION")]
    refund_preference: Option<AppleRefundPreference>,
}

impl ConsumptionInformationArgs {
    pub(super) fn into_information(self) -> ConsumptionInformation {
        ConsumptionInformation {
            sample_content_provided: self.sample_content_provided,
            delivery_status: self.delivery_status,
            consumption_percentage: self.consumption_percentage,
            refund_preference: self.refund_preference,
        }
    }
}

pub(super) async fn set_default_answer(
    arguments: SetAppleDefaultArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let information = arguments.information.into_information();
    change_default(&arguments.tenant, Some(&information), context).await
}

pub(super) async fn remove_default_answer(
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    change_default(tenant, None, context).await
}

async fn change_default(
    tenant: &TenantId,
    information: Option<&ConsumptionInformation>,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    if !store::set_default_consumption(&database, tenant, information).await? {
        return Err(no_credentials_error(tenant));
    }
    let what = match information {
        Some(_) => "Apple is told this about a refund that the backend does not answer in time.",
        None => "Apple is told nothing about a refund that the backend does not answer.",
    };
    let view = json!({ "tenantId": tenant, "defaultConsumption": information });
    Ok(context.output.write_json_or_text(&view, what)?)
}

pub(super) async fn send_consumption(
    arguments: ConsumptionArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let request = ConsumptionRequest {
        transaction_id: arguments.transaction_id,
        environment: arguments.environment,
        information: arguments.information.into_information(),
    };
    let dependencies = VerifyDependencies::load(context).await?;
    let apple = dependencies.build_apple(context)?;
    match apple
        .answer_consumption_request(&arguments.tenant, &request)
        .await
    {
        Ok(sent) => {
            let text = format!(
                "Told Apple ({}) how {} was used. An event tells what Apple decides.",
                sent.environment.as_str(),
                request.transaction_id
            );
            Ok(context.output.write_json_or_text(&sent, &text)?)
        }
        Err(error) => print_rejection(context, error.into()),
    }
}
