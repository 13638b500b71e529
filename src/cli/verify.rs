//! `attesto verify`: asks one question for a tenant, as its backend would, and says the answer in words.
//!
//! It asks in this process, with the tenant's credentials, so that it needs no API key and shows what the service would
//! answer with the same settings.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::context::{Context, Failure};
use super::upload;
use crate::apple::account::EnvironmentChoice;
use crate::apple::ocsp::{Reach, Revocations};
use crate::apple::trust::Verifier;
use crate::apple::{self, Apple};
use crate::config::Stores;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::db::changes::Changes;
use crate::google::{self, Google};
use crate::http::problem::Declined;
use crate::id::TenantId;
use crate::outbound::{self, Upstream};

/// The commands of `attesto verify`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Is this App Store transaction real, and what is it now?
    Apple(AppleQuestion),
    /// Is this Google Play purchase real, and what is it now?
    Google(GoogleQuestion),
}

/// Arguments of `verify apple`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("about").required(true).multiple(false).args(["transaction_id", "signed_transaction_path"]))]
pub struct AppleQuestion {
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
pub struct GoogleQuestion {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// A file with the purchase token, `-` for standard input
    #[arg(long, value_name = "FILE")]
    purchase_token_path: PathBuf,

    /// What it is said to have bought
    #[arg(long, value_enum)]
    r#type: Kind,

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
pub enum Kind {
    /// Something that runs for a time.
    Subscription,
    /// Something bought once.
    Product,
}

/// What both stores need.
struct Tools {
    database: Database,
    keyring: Arc<Keyring>,
    changes: Changes,
    upstream: Upstream,
    stores: Stores,
}

impl Tools {
    async fn gather(context: &Context) -> Result<Self, Failure> {
        let stores = context.settings(Stores::read)?;
        let database = context.database().await?;
        let keyring = context.keyring_for(&database).await?;
        let client =
            outbound::client().map_err(|problem| Failure::refused(format!("{problem}.")))?;
        Ok(Self {
            changes: Changes::new(&database),
            upstream: Upstream::new(client, stores.timeout),
            database,
            keyring,
            stores,
        })
    }
}

/// Runs one of them: exit 0 for a yes, else 1.
pub async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Apple(question) => about_apple(question, context).await,
        Command::Google(question) => about_google(question, context).await,
    }
}

async fn about_apple(asked: AppleQuestion, context: &Context) -> Result<(), Failure> {
    let about = match (asked.transaction_id, asked.signed_transaction_path) {
        (Some(id), _) => apple::verify::About::Id(id),
        (None, Some(path)) => apple::verify::About::Signed(line(&path)?),
        (None, None) => unreachable!("the parser asks for one of them"),
    };
    let tools = Tools::gather(context).await?;
    let verifier = match &tools.stores.apple_roots {
        Some(path) => Verifier::with_roots_at(path)
            .map_err(|problem| Failure::usage(format!("APPLE_ROOT_CERTIFICATES: {problem}.")))?,
        None => Verifier::with_apple_roots(),
    };
    let reach = Reach::of(tools.stores.apple_roots.is_some());
    let revocations = Revocations::new(&tools.upstream, &context.clock, reach);
    let settings = apple::Settings {
        revocations: tools.stores.apple_ocsp.then_some(revocations),
        production_url: tools.stores.apple_production,
        sandbox_url: tools.stores.apple_sandbox,
        credential_ttl: std::time::Duration::ZERO,
    };
    let apple = Apple::new(
        &tools.database,
        &tools.keyring,
        &tools.changes,
        tools.upstream,
        verifier,
        &context.clock,
        settings,
    );
    let question = apple::verify::Question {
        about,
        environment: asked.environment,
        expected_app_user_id: asked.expected_app_user_id,
    };
    match apple.verify(&asked.tenant, &question).await {
        Ok(found) => yes(context, &found, "transaction", "expiresDate"),
        Err(outcome) => no(context, outcome.into()),
    }
}

async fn about_google(asked: GoogleQuestion, context: &Context) -> Result<(), Failure> {
    let purchase_token = line(&asked.purchase_token_path)?;
    let tools = Tools::gather(context).await?;
    let package_name = match asked.package_name {
        Some(name) => name,
        // Without credentials the answer is the same whatever the name.
        None => google::store::describe(&tools.database, &asked.tenant)
            .await?
            .map(|stored| stored.package_name)
            .unwrap_or_default(),
    };
    let settings = google::Settings {
        play_url: tools.stores.google_play,
        token_url: tools.stores.google_token,
        credential_ttl: std::time::Duration::ZERO,
    };
    let google = Google::new(
        &tools.database,
        &tools.keyring,
        &tools.changes,
        tools.upstream,
        &context.clock,
        settings,
    );
    let bought = match (asked.r#type, asked.product_id) {
        (Kind::Subscription, product_id) => google::verify::Bought::Subscription { product_id },
        (Kind::Product, Some(product_id)) => google::verify::Bought::Product { product_id },
        (Kind::Product, None) => unreachable!("the parser asks for it"),
    };
    let question = google::verify::Question {
        package_name,
        purchase_token,
        bought,
        expected_app_user_id: asked.expected_app_user_id,
    };
    match google.verify(&asked.tenant, &question).await {
        Ok(found) => yes(context, &found, "purchase", "expiryTime"),
        Err(outcome) => no(context, outcome.into()),
    }
}

/// The one line of a file, without its end.
fn line(path: &std::path::Path) -> Result<String, Failure> {
    let bytes = upload::read(path)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Failure::usage(format!("{} is no text.", path.display())))?
        .trim();
    if text.is_empty() {
        return Err(Failure::usage(format!("{} is empty.", path.display())));
    }
    Ok(text.to_owned())
}

fn yes<T: Serialize>(
    context: &Context,
    verified: &T,
    facts: &str,
    end: &str,
) -> Result<(), Failure> {
    let answer = serde_json::to_value(verified).map_err(std::io::Error::from)?;
    context
        .output
        .sentence(verified, &explained(&answer, &answer[facts], end))?;
    Ok(())
}

fn no(context: &Context, declined: Declined) -> Result<(), Failure> {
    let (code, message, details) = match declined {
        Declined::No(refusal) => (refusal.code, refusal.message, refusal.details),
        Declined::Failed(problem) => {
            let problem = *problem;
            let why = match problem.cause {
                // Whoever runs this may know what a caller may not.
                Some(cause) => format!("{} ({})", problem.message, cause.text),
                None => problem.message,
            };
            (problem.code.as_str(), why, problem.details)
        }
    };
    let mut answer = json!({ "valid": false, "error": code, "message": message });
    if !details.is_empty() {
        answer["details"] = Value::Object(details);
    }
    context
        .output
        .sentence(&answer, &format!("No verdict in favour: {code}."))?;
    Err(Failure::refused(format!("{code}: {message}")))
}

/// A yes in words.
fn explained(answer: &Value, facts: &Value, end: &str) -> String {
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
