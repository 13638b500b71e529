//! `attesto apple app-transaction`: the route `POST /v1/apple/app-transaction`, with the tenant's stored credentials.

use std::path::PathBuf;

use super::super::context::{CommandContext, CommandError};
use super::super::verify::{VerifyDependencies, print_rejection, read_single_line};
use crate::base::id::TenantId;
use crate::stores::apple::account::EnvironmentChoice;
use crate::stores::apple::{AppTransactionRef, AppTransactionRequest};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple app-transaction tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --transaction-id 2000000123456789"
)]
#[command(group = clap::ArgGroup::new("about").required(true).multiple(false).args(["transaction_id", "signed_app_transaction_path"]))]
pub(crate) struct AppTransactionArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Any transaction of the customer, or the app transaction's own id, which is looked up at Apple
    #[arg(long, value_name = "ID")]
    transaction_id: Option<String>,

    /// File with the JWS of StoreKit 2, `-` for standard input; it is verified here, without a request to Apple
    #[arg(long, value_name = "FILE")]
    signed_app_transaction_path: Option<PathBuf>,

    /// Environment of the app transaction [default: the tenant's setting]
    #[arg(long, value_enum)]
    environment: Option<EnvironmentChoice>,
}

pub(super) async fn verify_app_transaction(
    arguments: AppTransactionArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let id = arguments.transaction_id;
    let subject = match arguments.signed_app_transaction_path {
        Some(path) => AppTransactionRef::Signed(read_single_line(&path)?),
        None => AppTransactionRef::TransactionId(id.unwrap_or_default()),
    };
    let request = AppTransactionRequest {
        subject,
        environment: arguments.environment,
    };
    let apple = VerifyDependencies::load(context)
        .await?
        .build_apple(context)?;
    match apple
        .verify_app_transaction(&arguments.tenant, &request)
        .await
    {
        Ok(found) => {
            let details = &found.app_transaction;
            let version = details.original_application_version.as_deref();
            let text = format!(
                "Genuine ({}): first obtained in version {}, {}.",
                found.environment.as_str(),
                version.unwrap_or("that Apple does not say"),
                details.original_purchase_date.map_or_else(
                    || "Apple does not say when".to_owned(),
                    |date| date.to_string()
                ),
            );
            Ok(context.output.write_json_or_text(&found, &text)?)
        }
        Err(error) => print_rejection(context, error.into()),
    }
}
