//! `attesto apple finish` and `attesto apple set-app-account-token`: the routes `POST /v1/apple/finish` and
//! `POST /v1/apple/app-account-token`, with the tenant's stored credentials.

use super::super::context::{CommandContext, CommandError};
use super::super::verify::{VerifyDependencies, print_rejection};
use super::offers::parse_app_account_token;
use crate::base::id::TenantId;
use crate::stores::apple::account::EnvironmentChoice;
use crate::stores::apple::{AppAccountTokenRequest, FinishRequest};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple finish tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E 2000000123456789"
)]
pub(crate) struct FinishArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Transaction whose content was delivered
    #[arg(value_name = "TRANSACTION_ID")]
    transaction_id: String,

    /// Environment to ask [default: that of the tenant's credentials]
    #[arg(long, value_enum)]
    environment: Option<EnvironmentChoice>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple set-app-account-token tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    2000000100000001 7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55"
)]
pub(crate) struct SetAppAccountTokenArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// First transaction of the purchase
    #[arg(value_name = "ORIGINAL_TRANSACTION_ID")]
    original_transaction_id: String,

    /// User of the purchase
    #[arg(value_name = "UUID", value_parser = parse_app_account_token)]
    app_account_token: String,

    /// Environment to ask [default: that of the tenant's credentials]
    #[arg(long, value_enum)]
    environment: Option<EnvironmentChoice>,
}

pub(super) async fn finish_transaction(
    arguments: FinishArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let request = FinishRequest {
        transaction_id: arguments.transaction_id,
        environment: arguments.environment,
    };
    let apple = VerifyDependencies::load(context)
        .await?
        .build_apple(context)?;
    match apple.finish_transaction(&arguments.tenant, &request).await {
        Ok(finished) => {
            let environment = finished.environment.as_str();
            let text = format!("Finished {} ({environment}).", request.transaction_id);
            Ok(context.output.write_json_or_text(&finished, &text)?)
        }
        Err(error) => print_rejection(context, error.into()),
    }
}

pub(super) async fn set_app_account_token(
    arguments: SetAppAccountTokenArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let request = AppAccountTokenRequest {
        original_transaction_id: arguments.original_transaction_id,
        app_account_token: arguments.app_account_token,
        environment: arguments.environment,
    };
    let apple = VerifyDependencies::load(context)
        .await?
        .build_apple(context)?;
    match apple
        .set_app_account_token(&arguments.tenant, &request)
        .await
    {
        Ok(bound) => {
            let text = format!(
                "{} ({}) is now the purchase of {}.",
                request.original_transaction_id,
                bound.environment.as_str(),
                request.app_account_token
            );
            Ok(context.output.write_json_or_text(&bound, &text)?)
        }
        Err(error) => print_rejection(context, error.into()),
    }
}
