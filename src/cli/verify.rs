//! `attesto verify`: verifies one purchase for a tenant and explains the answer.
//!
//! It verifies in this process with the tenant's stored credentials: it needs no API key, and answers as a service with
//! the same settings would.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::context::{CommandContext, CommandError};
use super::input_file;
use crate::base::id::TenantId;
use crate::config::StoreSettings;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::db::change_listener::ChangeListener;
use crate::events::SubjectType;
use crate::http::Problem;
use crate::outbound::{self, Upstream};
use crate::stores::apple::account::EnvironmentChoice;
use crate::stores::apple::ocsp::{ResponderPolicy, RevocationChecker};
use crate::stores::apple::trust::JwsVerifier;
use crate::stores::apple::{self, AppleVerifier};
use crate::stores::google::{self, GoogleVerifier};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum VerifyCommand {
    /// Verify an App Store transaction
    Apple(VerifyAppleArgs),
    /// Verify a Google Play purchase
    Google(VerifyGoogleArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto verify apple tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --transaction-id 2000000123456789"
)]
#[command(group = clap::ArgGroup::new("about").required(true).multiple(false).args(["transaction_id", "signed_transaction_path"]))]
pub(crate) struct VerifyAppleArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Transaction id, which is looked up at Apple
    #[arg(long, value_name = "ID")]
    transaction_id: Option<String>,

    /// File with the JWS of `StoreKit` 2, `-` for standard input; it is verified here, without a request to Apple
    #[arg(
        long,
        value_name = "FILE",
        help = "File with the JWS of StoreKit 2, `-` for standard input; it is verified here, without a request to Apple"
    )]
    signed_transaction_path: Option<PathBuf>,

    /// Environment of the transaction [default: the tenant's setting]
    #[arg(long, value_enum)]
    environment: Option<EnvironmentChoice>,

    /// User it must belong to: the UUID that the app passed to the store
    #[arg(long, value_name = "UUID")]
    expected_app_user_id: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto verify google tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --type subscription --purchase-token-path token.txt"
)]
pub(crate) struct VerifyGoogleArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// File with the purchase token, `-` for standard input
    #[arg(long, value_name = "FILE")]
    purchase_token_path: PathBuf,

    /// Type of the purchase
    #[arg(long, value_enum)]
    r#type: PurchaseTypeArg,

    /// Product id; required for a one-time product
    #[arg(long, value_name = "ID", required_if_eq("type", "product"))]
    product_id: Option<String>,

    /// Package name of the app [default: the tenant's]
    #[arg(long, value_name = "NAME")]
    package_name: Option<String>,

    /// User it must belong to: the obfuscated account id that the app passed to Google
    #[arg(long, value_name = "ID")]
    expected_app_user_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PurchaseTypeArg {
    /// A subscription.
    Subscription,
    /// A one-time product.
    Product,
}

/// What both stores need.
struct VerifyDependencies {
    database: Database,
    keyring: Arc<Keyring>,
    changes: ChangeListener,
    upstream: Upstream,
    stores: StoreSettings,
}

impl VerifyDependencies {
    async fn load(context: &CommandContext) -> Result<Self, CommandError> {
        let stores = context.read_settings(StoreSettings::from_raw)?;
        let database = context.open_database().await?;
        let keyring = context.load_verified_keyring(&database).await?;
        let client = outbound::build_http_client().map_err(CommandError::from_cause)?;
        Ok(Self {
            changes: ChangeListener::new(&database),
            upstream: Upstream::new(client, stores.upstream_timeout),
            database,
            keyring,
            stores,
        })
    }
}

/// Exit 0 for a valid purchase, else 1.
pub(crate) async fn run(
    command: VerifyCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        VerifyCommand::Apple(args) => verify_apple(args, context).await,
        VerifyCommand::Google(args) => verify_google(args, context).await,
    }
}

async fn verify_apple(args: VerifyAppleArgs, context: &CommandContext) -> Result<(), CommandError> {
    let purchase = match (args.transaction_id, args.signed_transaction_path) {
        (Some(id), _) => apple::verify::PurchaseRef::TransactionId(id),
        (None, Some(path)) => {
            apple::verify::PurchaseRef::SignedTransaction(read_single_line(&path)?)
        }
        (None, None) => unreachable!("clap requires one of them"),
    };
    let dependencies = VerifyDependencies::load(context).await?;
    let verifier = match &dependencies.stores.apple_root_certificates {
        Some(path) => JwsVerifier::with_roots_from(path).map_err(|problem| {
            CommandError::usage_error(format!("APPLE_ROOT_CERTIFICATES: {problem}."))
        })?,
        None => JwsVerifier::with_apple_roots(),
    };
    let policy = ResponderPolicy::for_roots(dependencies.stores.apple_root_certificates.is_some());
    let revocations = RevocationChecker::new(&dependencies.upstream, &context.clock, policy);
    let settings = apple::AppleSettings {
        revocation_checker: dependencies
            .stores
            .is_apple_ocsp_enabled
            .then_some(revocations),
        production_url: dependencies.stores.apple_production_url,
        sandbox_url: dependencies.stores.apple_sandbox_url,
        credential_ttl: std::time::Duration::ZERO,
    };
    let apple = AppleVerifier::new(
        &dependencies.database,
        &dependencies.keyring,
        &dependencies.changes,
        dependencies.upstream,
        verifier,
        &context.clock,
        settings,
    );
    let request = apple::verify::AppleVerifyRequest {
        purchase,
        environment: args.environment,
        expected_app_user_id: args.expected_app_user_id,
        refresh: false,
    };
    match apple.verify_purchase(&args.tenant, &request).await {
        Ok(found) => print_verified(context, &found, "transaction", "expiresDate"),
        Err(outcome) => print_rejection(context, outcome.into()),
    }
}

async fn verify_google(
    args: VerifyGoogleArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let purchase_token = read_single_line(&args.purchase_token_path)?;
    let dependencies = VerifyDependencies::load(context).await?;
    let package_name = match args.package_name {
        Some(name) => name,
        // Without credentials the answer does not depend on the name.
        None => google::store::find_credential_summary(&dependencies.database, &args.tenant)
            .await?
            .map(|stored| stored.package_name)
            .unwrap_or_default(),
    };
    let settings = google::GoogleSettings {
        play_url: dependencies.stores.google_play_url,
        token_url: dependencies.stores.google_token_url,
        credential_ttl: std::time::Duration::ZERO,
    };
    let google = GoogleVerifier::new(
        &dependencies.database,
        &dependencies.keyring,
        &dependencies.changes,
        dependencies.upstream,
        &context.clock,
        settings,
    );
    let kind = match args.r#type {
        PurchaseTypeArg::Subscription => SubjectType::Subscription,
        PurchaseTypeArg::Product => SubjectType::Product,
    };
    let request = google::verify::GoogleVerifyRequest {
        package_name,
        purchase_token,
        kind: Some(kind),
        product_id: args.product_id,
        expected_app_user_id: args.expected_app_user_id,
    };
    match google.verify_purchase(&args.tenant, &request).await {
        Ok(found) => print_verified(context, &found, "purchase", "expiryTime"),
        Err(outcome) => print_rejection(context, outcome.into()),
    }
}

/// The content of a file without surrounding blanks and line ends.
fn read_single_line(path: &std::path::Path) -> Result<String, CommandError> {
    let text = input_file::read_text(path)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(CommandError::usage_error(format!(
            "{} is empty.",
            path.display()
        )));
    }
    Ok(text.to_owned())
}

fn print_verified<T: Serialize>(
    context: &CommandContext,
    verified: &T,
    facts: &str,
    end: &str,
) -> Result<(), CommandError> {
    let answer = serde_json::to_value(verified).map_err(std::io::Error::from)?;
    context
        .output
        .write_json_or_text(verified, &explain_verified(&answer, &answer[facts], end))?;
    Ok(())
}

fn print_rejection(context: &CommandContext, problem: Problem) -> Result<(), CommandError> {
    let code = problem.code.as_str();
    let message = match problem.cause {
        // An operator may see the cause, which HTTP callers do not.
        Some(cause) => format!("{} ({})", problem.message, cause.text),
        None => problem.message,
    };
    let mut answer = json!({ "valid": false, "error": code, "message": message });
    if !problem.details.is_empty() {
        answer["details"] = Value::Object(problem.details);
    }
    context
        .output
        .write_json_or_text(&answer, &format!("Not valid: {code}."))?;
    Err(CommandError::failed(format!("{code}: {message}")))
}

/// A positive answer as text for an operator.
fn explain_verified(answer: &Value, facts: &Value, end: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let status = text(&answer["status"]);
    let environment = answer["environment"].as_str();
    let is_test = environment == Some("sandbox") || facts["testPurchase"] == true;
    let what = match (facts["productId"].as_str(), facts["kind"].as_str()) {
        (Some(product), _) => product.to_owned(),
        (None, _) => "an unnamed product".to_owned(),
    };
    let until = facts[end].as_str();
    let advice = match status.as_str() {
        "active" => "It is paid: grant it.",
        "in_grace_period" => "A payment failed and the store is retrying: keep granting it.",
        "canceled" if until.is_some() => "It will not renew: grant it until its end.",
        "canceled" => "It was canceled: grant nothing.",
        "consumed" => "It was consumed: grant nothing more.",
        "pending" => "It is not paid yet: grant nothing.",
        _ => "Grant nothing.",
    };
    let mut lines = vec![
        format!("Valid: {what}, status {status}. {advice}"),
        format!("User: {}.", text(&answer["appUserId"])),
    ];
    if let Some(until) = until {
        lines.insert(1, format!("Until: {until}."));
    }
    if is_test {
        lines.push("It is a test purchase: made in the sandbox or by a license tester.".into());
    }
    lines.join("\n")
}
