//! `apple order` and `apple refunds`.

use serde::Serialize;

use super::super::context::{CommandContext, CommandError};
use super::super::verify::{VerifyDependencies, print_rejection};
use crate::base::id::TenantId;
use crate::stores::apple::orders::{AppleOrder, AppleRefunds, ListedTransaction};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple order tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E MK5TTTVWJH"
)]
pub(crate) struct AppleOrderArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Order ID, as on the customer's receipt by e-mail
    #[arg(value_name = "ORDER_ID")]
    order_id: String,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple refunds tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    2000000123456789"
)]
pub(crate) struct AppleRefundsArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Id of any transaction of the customer
    #[arg(value_name = "TRANSACTION_ID")]
    transaction_id: String,
}

/// The output of `apple order`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OrderView<'a> {
    tenant_id: &'a TenantId,
    order_id: &'a str,
    #[serde(flatten)]
    order: &'a AppleOrder,
}

/// The output of `apple refunds`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RefundsView<'a> {
    tenant_id: &'a TenantId,
    transaction_id: &'a str,
    #[serde(flatten)]
    refunds: &'a AppleRefunds,
}

/// Exit 0 for an order that Apple knows, else 1.
pub(super) async fn show_order(
    arguments: AppleOrderArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let AppleOrderArgs { tenant, order_id } = arguments;
    let apple = VerifyDependencies::load(context)
        .await?
        .build_apple(context)?;
    let order = match apple.look_up_order(&tenant, &order_id).await {
        Ok(order) => order,
        Err(error) => return print_rejection(context, error.into()),
    };
    let count = order.transactions.len();
    let heading = if order.valid {
        format!(
            "{order_id}: {count} transactions, {}.",
            order.environment.as_str()
        )
    } else {
        format!("{order_id}: Apple knows no such order of this app.")
    };
    let view = OrderView {
        tenant_id: &tenant,
        order_id: &order_id,
        order: &order,
    };
    context
        .output
        .write_json_or_text(&view, &to_text(heading, &order.transactions))?;
    if order.valid {
        Ok(())
    } else {
        Err(CommandError::failed(
            "Apple knows no such order of this app. Only orders of production are known, by the id on the customer's receipt.",
        ))
    }
}

pub(super) async fn list_refunds(
    arguments: AppleRefundsArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let AppleRefundsArgs {
        tenant,
        transaction_id,
    } = arguments;
    let apple = VerifyDependencies::load(context)
        .await?
        .build_apple(context)?;
    let refunds = match apple.fetch_refunds(&tenant, &transaction_id).await {
        Ok(refunds) => refunds,
        Err(error) => return print_rejection(context, error.into()),
    };
    let count = refunds.transactions.len();
    let more = if refunds.complete { "" } else { ", and more" };
    let heading = format!(
        "The customer of {transaction_id}: {count} refunds{more}, {}.",
        refunds.environment.as_str()
    );
    let view = RefundsView {
        tenant_id: &tenant,
        transaction_id: &transaction_id,
        refunds: &refunds,
    };
    context
        .output
        .write_json_or_text(&view, &to_text(heading, &refunds.transactions))?;
    Ok(())
}

fn to_text(heading: String, transactions: &[ListedTransaction]) -> String {
    let mut lines = vec![heading];
    lines.extend(transactions.iter().map(transaction_line));
    lines.join("\n")
}

fn transaction_line(listed: &ListedTransaction) -> String {
    let ListedTransaction {
        status,
        app_user_id,
        transaction,
    } = listed;
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let status = serde_json::to_value(status).unwrap_or_default();
    let parts = [
        Some(text(&transaction.transaction_id)),
        Some(text(&transaction.product_id)),
        status.as_str().map(str::to_owned),
        transaction.purchase_date.map(|at| format!("bought {at}")),
        transaction
            .revocation_date
            .map(|at| format!("taken back {at}")),
        app_user_id.as_ref().map(|user| format!("user {user}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("  {}", parts.join("  "))
}
