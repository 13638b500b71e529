//! `attesto apple sign-offer`: the route `POST /v1/apple/offers/sign`, with the tenant's stored credentials.

use super::super::context::{CommandContext, CommandError};
use super::super::verify::{VerifyDependencies, print_rejection};
use crate::base::id::TenantId;
use crate::http::json::parse_uuid;
use crate::stores::apple::{OfferRequest, OfferTerms};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple sign-offer tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --product-id com.example.app.pro.monthly --offer-id spring_half_price"
)]
pub(crate) struct SignOfferArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Subscription that is offered
    #[arg(long, value_name = "ID")]
    product_id: String,

    /// Promotional offer's identifier in App Store Connect
    #[arg(
        long,
        value_name = "ID",
        required_unless_present = "introductory",
        conflicts_with = "introductory"
    )]
    offer_id: Option<String>,

    /// Sign whether the customer gets the introductory offer, instead of a promotional offer
    #[arg(long, value_enum, value_name = "DECISION", requires = "transaction_id")]
    introductory: Option<IntroductoryDecision>,

    /// Any transaction of the customer, or the id of the app's own transaction
    #[arg(long, value_name = "ID")]
    transaction_id: Option<String>,

    /// Customer's appAccountToken, which the earlier signature of a promotional offer names
    #[arg(long, value_name = "UUID", value_parser = parse_app_account_token, conflicts_with = "introductory")]
    app_account_token: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum IntroductoryDecision {
    /// The customer gets the introductory offer
    Allow,
    /// The customer pays the regular price
    Deny,
}

pub(super) fn parse_app_account_token(text: &str) -> Result<String, String> {
    parse_uuid(text)
        .ok_or_else(|| "must be a UUID, like 7b1c8e0a-5c1e-4f4e-9a54-0d6f5a3b2c1d".to_owned())
}

pub(super) async fn sign_offer(
    arguments: SignOfferArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let terms = match (arguments.offer_id, arguments.introductory) {
        (_, Some(decision)) => OfferTerms::Introductory {
            is_allowed: decision == IntroductoryDecision::Allow,
        },
        (offer_id, None) => OfferTerms::Promotional {
            offer_id: offer_id.unwrap_or_default(),
            app_account_token: arguments.app_account_token,
        },
    };
    let request = OfferRequest {
        product_id: arguments.product_id,
        transaction_id: arguments.transaction_id,
        terms,
    };
    let dependencies = VerifyDependencies::load(context).await?;
    let apple = dependencies.build_apple(context)?;
    match apple.sign_offer(&arguments.tenant, &request).await {
        Ok(signed) => Ok(context.output.write_object(&signed)?),
        Err(error) => print_rejection(context, error.into()),
    }
}
