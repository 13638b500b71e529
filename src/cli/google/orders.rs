//! `attesto google order`: shows what Google knows of an order.

use serde::Serialize;
use serde_json::value::RawValue;

use super::super::context::{CommandContext, CommandError};
use super::super::verify::{VerifyDependencies, print_rejection};
use crate::base::id::TenantId;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto google order tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    GPA.3345-1234-5678-90123"
)]
pub(crate) struct GoogleOrderArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Order ID, as on the customer's receipt by e-mail; of a renewal with `..0`, `..1` behind it
    #[arg(value_name = "ORDER_ID")]
    order_id: String,
}

/// The output of `google order`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OrderView<'a> {
    tenant_id: &'a TenantId,
    order_id: &'a str,
    /// As Google sent it.
    order: &'a RawValue,
}

pub(super) async fn show_order(
    arguments: GoogleOrderArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let GoogleOrderArgs { tenant, order_id } = arguments;
    let google = VerifyDependencies::load(context)
        .await?
        .build_google(context);
    match google.look_up_order(&tenant, &order_id).await {
        Ok(order) => Ok(context.output.write_object(&OrderView {
            tenant_id: &tenant,
            order_id: &order_id,
            order: &order,
        })?),
        Err(error) => print_rejection(context, error.into()),
    }
}
