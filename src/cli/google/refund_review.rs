//! `attesto google refund-review`: the route `POST /v1/google/refund-review`, with the tenant's stored credentials; and what Google is told
//! where the backend does not answer: `set-default-answer`, `remove-default-answer`.

use serde_json::json;

use super::super::context::{CommandContext, CommandError};
use super::super::verify::{VerifyDependencies, print_rejection};
use super::credentials::no_credentials_error;
use crate::base::id::TenantId;
use crate::stores::google::store;
use crate::stores::google::{
    GoogleRefundPreference, MAX_CONSUMPTION_MILLIUNITS, RefundReview, RefundReviewRequest,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto google refund-review tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    GPA.3345-1234-5678-90123 AO-J1OxKq3ld \\\n    --sample-content-provided true --refund-preference decline"
)]
pub(crate) struct RefundReviewArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Order that Google asked about
    #[arg(value_name = "ORDER_ID")]
    order_id: String,

    /// Token of Google's question, as in the event
    #[arg(value_name = "PENDING_REFUND_TOKEN")]
    pending_refund_token: String,

    #[command(flatten)]
    review: RefundReviewFlags,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto google set-default-answer tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --sample-content-provided true --refund-preference decline"
)]
pub(crate) struct SetGoogleDefaultArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    #[command(flatten)]
    review: RefundReviewFlags,
}

/// What the developer thinks of a refund.
#[derive(Debug, clap::Args)]
pub(super) struct RefundReviewFlags {
    /// Whether the customer could try the content before the purchase
    #[arg(long, value_name = "true|false", action = clap::ArgAction::Set)]
    sample_content_provided: bool,

    /// Decision that you want of Google
    #[arg(long, value_enum, value_name = "DECISION")]
    refund_preference: GoogleRefundPreference,

    /// How much was used, in thousandths of a percent: 45200 is 45.2 percent
    #[arg(
        long,
        value_name = "0-100000",
        value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_CONSUMPTION_MILLIUNITS))
    )]
    consumption_percentage: Option<u32>,
}

impl RefundReviewFlags {
    pub(super) fn into_review(self) -> RefundReview {
        RefundReview {
            sample_content_provided: self.sample_content_provided,
            refund_preference: self.refund_preference,
            consumption_percentage_milliunits: self.consumption_percentage,
        }
    }
}

pub(super) async fn set_default_answer(
    arguments: SetGoogleDefaultArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let review = arguments.review.into_review();
    change_default(&arguments.tenant, Some(&review), context).await
}

pub(super) async fn remove_default_answer(
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    change_default(tenant, None, context).await
}

async fn change_default(
    tenant: &TenantId,
    review: Option<&RefundReview>,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    if !store::set_default_review(&database, tenant, review).await? {
        return Err(no_credentials_error(tenant));
    }
    let what = match review {
        Some(_) => "Google is told this about a refund that the backend does not answer in time.",
        None => "Google is told nothing about a refund that the backend does not answer.",
    };
    let view = json!({ "tenantId": tenant, "defaultRefundReview": review });
    Ok(context.output.write_json_or_text(&view, what)?)
}

pub(super) async fn review_refund(
    arguments: RefundReviewArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let dependencies = VerifyDependencies::load(context).await?;
    let tenant = arguments.tenant;
    // Without credentials the answer does not depend on the name.
    let stored = store::find_credential_summary(&dependencies.database, &tenant).await?;
    let request = RefundReviewRequest {
        package_name: stored.map(|stored| stored.package_name).unwrap_or_default(),
        order_id: arguments.order_id,
        pending_refund_token: arguments.pending_refund_token,
        review: arguments.review.into_review(),
        usage_events: Vec::new(),
    };
    let google = dependencies.build_google(context);
    match google.answer_refund_review(&tenant, &request).await {
        Ok(sent) => {
            let text = format!(
                "Told Google what you think of the refund of {}. An event tells if the money is given back.",
                request.order_id
            );
            Ok(context.output.write_json_or_text(&sent, &text)?)
        }
        Err(error) => print_rejection(context, error.into()),
    }
}
