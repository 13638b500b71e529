//! `attesto verify`: asks one question for a tenant, as its backend would, and says the answer in words.
//!
//! It asks in this process, with the tenant's credentials, so that it needs no API key and shows what the service would
//! answer with the same settings.

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
use crate::http::Problem;
use crate::outbound::{self, Upstream};
use crate::stores::apple::account::EnvironmentChoice;
use crate::stores::apple::ocsp::{ResponderPolicy, RevocationChecker};
use crate::stores::apple::trust::JwsVerifier;
use crate::stores::apple::{self, AppleVerifier};
use crate::stores::google::{self, GoogleVerifier};

/// The commands of `attesto verify`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum VerifyCommand {
    /// Is this App Store transaction real, and what is it now?
    Apple(VerifyAppleArgs),
    /// Is this Google Play purchase real, and what is it now?
    Google(VerifyGoogleArgs),
}

/// Arguments of `verify apple`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("about").required(true).multiple(false).args(["transaction_id", "signed_transaction_path"]))]
pub(crate) struct VerifyAppleArgs {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// The transaction's id: Apple is asked
    #[arg(long, value_name = "ID")]
    transaction_id: Option<String>,

    /// A file with `StoreKit` 2's JWS, `-` for standard input: it is checked here, and nobody is asked
    #[arg(
        long,
        value_name = "FILE",
        help = "A file with StoreKit 2's JWS, `-` for standard input: it is checked here, and nobody is asked"
    )]
    signed_transaction_path: Option<PathBuf>,

    /// Where it must be [default: the tenant's setting]
    #[arg(long, value_enum)]
    environment: Option<EnvironmentChoice>,

    /// The user it must be of: the UUID that the app gave the store
    #[arg(long, value_name = "UUID")]
    expected_app_user_id: Option<String>,
}

/// Arguments of `verify google`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyGoogleArgs {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// A file with the purchase token, `-` for standard input
    #[arg(long, value_name = "FILE")]
    purchase_token_path: PathBuf,

    /// What it is said to have bought
    #[arg(long, value_enum)]
    r#type: PurchaseTypeArg,

    /// The product; a one-time product needs it
    #[arg(long, value_name = "ID", required_if_eq("type", "product"))]
    product_id: Option<String>,

    /// The app [default: the tenant's]
    #[arg(long, value_name = "NAME")]
    package_name: Option<String>,

    /// The user it must be of: what the app gave Google as the obfuscated account id
    #[arg(long, value_name = "ID")]
    expected_app_user_id: Option<String>,
}

/// What a purchase token may have bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PurchaseTypeArg {
    /// Something that runs for a time.
    Subscription,
    /// Something bought once.
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
        let client = outbound::build_http_client()
            .map_err(|problem| CommandError::failed(format!("{problem}.")))?;
        Ok(Self {
            changes: ChangeListener::new(&database),
            upstream: Upstream::new(client, stores.upstream_timeout),
            database,
            keyring,
            stores,
        })
    }
}

/// Runs one of them: exit 0 for a yes, else 1.
pub(crate) async fn run(
    command: VerifyCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        VerifyCommand::Apple(question) => verify_apple(question, context).await,
        VerifyCommand::Google(question) => verify_google(question, context).await,
    }
}

async fn verify_apple(
    asked: VerifyAppleArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let about = match (asked.transaction_id, asked.signed_transaction_path) {
        (Some(id), _) => apple::verify::PurchaseRef::TransactionId(id),
        (None, Some(path)) => {
            apple::verify::PurchaseRef::SignedTransaction(read_single_line(&path)?)
        }
        (None, None) => unreachable!("the parser asks for one of them"),
    };
    let tools = VerifyDependencies::load(context).await?;
    let verifier = match &tools.stores.apple_root_certificates {
        Some(path) => JwsVerifier::with_roots_from(path).map_err(|problem| {
            CommandError::usage_error(format!("APPLE_ROOT_CERTIFICATES: {problem}."))
        })?,
        None => JwsVerifier::with_apple_roots(),
    };
    let reach = ResponderPolicy::for_roots(tools.stores.apple_root_certificates.is_some());
    let revocations = RevocationChecker::new(&tools.upstream, &context.clock, reach);
    let settings = apple::AppleSettings {
        revocation_checker: tools.stores.is_apple_ocsp_enabled.then_some(revocations),
        production_url: tools.stores.apple_production_url,
        sandbox_url: tools.stores.apple_sandbox_url,
        credential_ttl: std::time::Duration::ZERO,
    };
    let apple = AppleVerifier::new(
        &tools.database,
        &tools.keyring,
        &tools.changes,
        tools.upstream,
        verifier,
        &context.clock,
        settings,
    );
    let question = apple::verify::AppleVerifyRequest {
        purchase: about,
        environment: asked.environment,
        expected_app_user_id: asked.expected_app_user_id,
    };
    match apple.verify_purchase(&asked.tenant, &question).await {
        Ok(found) => print_verified(context, &found, "transaction", "expiresDate"),
        Err(outcome) => print_rejection(context, outcome.into()),
    }
}

async fn verify_google(
    asked: VerifyGoogleArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let purchase_token = read_single_line(&asked.purchase_token_path)?;
    let tools = VerifyDependencies::load(context).await?;
    let package_name = match asked.package_name {
        Some(name) => name,
        // Without credentials the answer is the same whatever the name.
        None => google::store::find_credential_summary(&tools.database, &asked.tenant)
            .await?
            .map(|stored| stored.package_name)
            .unwrap_or_default(),
    };
    let settings = google::GoogleSettings {
        play_url: tools.stores.google_play_url,
        token_url: tools.stores.google_token_url,
        credential_ttl: std::time::Duration::ZERO,
    };
    let google = GoogleVerifier::new(
        &tools.database,
        &tools.keyring,
        &tools.changes,
        tools.upstream,
        &context.clock,
        settings,
    );
    let bought = match (asked.r#type, asked.product_id) {
        (PurchaseTypeArg::Subscription, product_id) => {
            google::verify::RequestedProduct::Subscription { product_id }
        }
        (PurchaseTypeArg::Product, Some(product_id)) => {
            google::verify::RequestedProduct::Product { product_id }
        }
        (PurchaseTypeArg::Product, None) => unreachable!("the parser asks for it"),
    };
    let question = google::verify::GoogleVerifyRequest {
        package_name,
        purchase_token,
        product: bought,
        expected_app_user_id: asked.expected_app_user_id,
    };
    match google.verify_purchase(&asked.tenant, &question).await {
        Ok(found) => print_verified(context, &found, "purchase", "expiryTime"),
        Err(outcome) => print_rejection(context, outcome.into()),
    }
}

/// The one line of a file, without its end.
fn read_single_line(path: &std::path::Path) -> Result<String, CommandError> {
    let bytes = input_file::read_file_or_stdin(path)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| CommandError::usage_error(format!("{} is no text.", path.display())))?
        .trim();
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
        .write_json_or_text(&answer, &format!("No verdict in favour: {code}."))?;
    Err(CommandError::failed(format!("{code}: {message}")))
}

/// A yes in words.
fn explain_verified(answer: &Value, facts: &Value, end: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("not said").to_owned();
    let status = text(&answer["status"]);
    let place = answer["environment"].as_str();
    let is_test = place == Some("sandbox") || facts["testPurchase"] == true;
    let what = match (facts["productId"].as_str(), facts["kind"].as_str()) {
        (Some(product), _) => product.to_owned(),
        (None, _) => "an unnamed product".to_owned(),
    };
    let until = facts[end].as_str();
    let worth = match status.as_str() {
        "active" => "It is paid for: grant it.",
        "in_grace_period" => "A payment failed and the store tries again: it is granted meanwhile.",
        "canceled" if until.is_some() => "It will not renew, and is granted until its end.",
        "canceled" => "It was cancelled, and grants nothing.",
        "consumed" => "It was used up, and grants nothing more.",
        "pending" => "It is not paid yet: grant nothing.",
        _ => "It grants nothing now.",
    };
    let mut lines = vec![
        format!("Yes, it is genuine: {what}, and it is {status}. {worth}"),
        format!("User: {}.", text(&answer["appUserId"])),
    ];
    if let Some(until) = until {
        lines.insert(1, format!("Until: {until}."));
    }
    if is_test {
        lines.push("It cost nothing: it was bought in the sandbox, or by a licence tester.".into());
    }
    lines.join("\n")
}
