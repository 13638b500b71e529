//! `attesto verify`: verifies one purchase for a tenant and explains the answer.
//!
//! It verifies in this process with the tenant's stored credentials: it needs no API key, and answers as a service with
//! the same settings would.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::context::{CommandContext, CommandError};
use super::input_file;
use super::state_text::{self, LABEL_WIDTH};
use super::verify_batch::{self, VerifyBatchArgs};
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::config::StoreSettings;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::db::change_listener::ChangeListener;
use crate::events::{EventSubject, PurchaseState, StateBasis, StateError, SubjectType};
use crate::http::Problem;
use crate::outbound::Upstream;
use crate::stores::apple::account::{AppleEnvironment, EnvironmentChoice};
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
    /// Verify all purchases of a file
    Batch(VerifyBatchArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto verify apple tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --transaction-id 2000000123456789\n  attesto verify apple tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --signed-transaction-path transaction.jws --refresh"
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

    /// Ask Apple for the whole subscription, even if the transaction itself decides
    #[arg(long)]
    refresh: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto verify google tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --purchase-token-path token.txt"
)]
pub(crate) struct VerifyGoogleArgs {
    #[command(flatten)]
    purchase: GooglePurchaseArgs,
}

/// Which purchase of Google Play a command is about, and what must be true of it.
#[derive(Debug, clap::Args)]
pub(super) struct GooglePurchaseArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// File with the purchase token, `-` for standard input
    #[arg(long, value_name = "FILE")]
    purchase_token_path: PathBuf,

    /// Type of the purchase, where it is known; it is asked about first
    #[arg(long, value_enum)]
    r#type: Option<PurchaseTypeArg>,

    /// Product id it must have
    #[arg(long, value_name = "ID")]
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
    /// A purchase that renews or ends
    Subscription,
    /// A one-time product
    Product,
}

impl GooglePurchaseArgs {
    /// Reads the token, and builds the request with the tenant's package name unless another one was given.
    pub(super) async fn load(
        self,
        context: &CommandContext,
    ) -> Result<(GoogleVerifier, TenantId, google::GoogleVerifyRequest), CommandError> {
        let purchase_token = read_single_line(&self.purchase_token_path)?;
        let dependencies = VerifyDependencies::load(context).await?;
        let package_name = match self.package_name {
            Some(name) => name,
            // Without credentials the answer does not depend on the name.
            None => google::store::find_credential_summary(&dependencies.database, &self.tenant)
                .await?
                .map(|stored| stored.package_name)
                .unwrap_or_default(),
        };
        let kind = self.r#type.map(|kind| match kind {
            PurchaseTypeArg::Subscription => SubjectType::Subscription,
            PurchaseTypeArg::Product => SubjectType::Product,
        });
        let request = google::GoogleVerifyRequest {
            package_name,
            purchase_token,
            kind,
            product_id: self.product_id,
            expected_app_user_id: self.expected_app_user_id,
            for_app_user_id: None,
        };
        Ok((dependencies.build_google(context), self.tenant, request))
    }
}

/// What both stores need.
pub(super) struct VerifyDependencies {
    pub(super) database: Database,
    keyring: Arc<Keyring>,
    changes: ChangeListener,
    upstream: Upstream,
    stores: StoreSettings,
}

impl VerifyDependencies {
    pub(super) async fn load(context: &CommandContext) -> Result<Self, CommandError> {
        let stores = context.read_settings(StoreSettings::from_raw)?;
        let database = context.open_database().await?;
        let keyring = context.load_verified_keyring(&database).await?;
        let upstream = context.build_upstream(&stores)?;
        Ok(Self {
            changes: ChangeListener::new(&database),
            upstream,
            database,
            keyring,
            stores,
        })
    }

    pub(super) fn build_apple(
        &self,
        context: &CommandContext,
    ) -> Result<AppleVerifier, CommandError> {
        let verifier = match &self.stores.apple_root_certificates {
            Some(path) => JwsVerifier::with_roots_from(path).map_err(|problem| {
                CommandError::usage_error(to_sentence(format!(
                    "APPLE_ROOT_CERTIFICATES: {problem}"
                )))
            })?,
            None => JwsVerifier::with_apple_roots(),
        };
        let policy = ResponderPolicy::for_roots(self.stores.apple_root_certificates.is_some());
        let revocations = RevocationChecker::new(&self.upstream, &context.clock, policy);
        let settings = apple::AppleSettings {
            revocation_checker: self.stores.is_apple_ocsp_enabled.then_some(revocations),
            production_url: self.stores.apple_production_url.clone(),
            sandbox_url: self.stores.apple_sandbox_url.clone(),
            credential_ttl: std::time::Duration::ZERO,
        };
        Ok(AppleVerifier::new(
            &self.database,
            &self.keyring,
            &self.changes,
            self.upstream.clone(),
            verifier,
            &context.clock,
            settings,
        ))
    }

    pub(super) fn build_google(&self, context: &CommandContext) -> GoogleVerifier {
        let settings = google::GoogleSettings {
            play_url: self.stores.google_play_url.clone(),
            token_url: self.stores.google_token_url.clone(),
            credential_ttl: std::time::Duration::ZERO,
        };
        GoogleVerifier::new(
            &self.database,
            &self.keyring,
            &self.changes,
            self.upstream.clone(),
            &context.clock,
            settings,
        )
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
        VerifyCommand::Batch(args) => verify_batch::run(args, context).await,
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
    let apple = dependencies.build_apple(context)?;
    let request = apple::verify::AppleVerifyRequest {
        purchase,
        environment: args.environment,
        expected_app_user_id: args.expected_app_user_id,
        for_app_user_id: None,
        refresh: args.refresh,
    };
    match apple.verify_purchase(&args.tenant, &request).await {
        Ok(found) => {
            let is_end_unknown =
                found.transaction.r#type.as_deref() == Some("Non-Renewing Subscription");
            let text = VerifiedText {
                state: found.state.as_ref(),
                state_error: found.state_error,
                subject: &found.subject,
                app_user_id: found.app_user_id.as_deref(),
                is_test: found.environment == AppleEnvironment::Sandbox,
                is_end_unknown,
                refresh_hint: (!args.refresh).then_some("--refresh asks Apple for it."),
            };
            let text = text.to_lines();
            Ok(context.output.write_json_or_text(&found, &text)?)
        }
        Err(outcome) => print_rejection(context, outcome.into()),
    }
}

async fn verify_google(
    args: VerifyGoogleArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let (google, tenant, request) = args.purchase.load(context).await?;
    match google.verify_purchase(&tenant, &request).await {
        Ok(found) => {
            let text = VerifiedText {
                state: found.state.as_ref(),
                state_error: found.state_error,
                subject: &found.subject,
                app_user_id: found.app_user_id.as_deref(),
                is_test: found.purchase.is_test(),
                is_end_unknown: false,
                refresh_hint: None,
            };
            let text = text.to_lines();
            Ok(context.output.write_json_or_text(&found, &text)?)
        }
        Err(outcome) => print_rejection(context, outcome.into()),
    }
}

/// The content of a file without surrounding blanks and line ends.
pub(super) fn read_single_line(path: &std::path::Path) -> Result<String, CommandError> {
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

pub(super) fn print_rejection(
    context: &CommandContext,
    problem: Problem,
) -> Result<(), CommandError> {
    let code = problem.code.as_str();
    let answer = rejection_json(problem);
    context
        .output
        .write_json_or_text(&answer, &format!("Not valid: {code}."))?;
    let message = answer["message"].as_str().unwrap_or_default();
    Err(CommandError::failed(format!("{code}: {message}")))
}

/// The answer of the verify route without its `requestId`.
pub(super) fn rejection_json(problem: Problem) -> Value {
    let message = match problem.cause {
        // An operator may see the cause, which HTTP callers do not.
        Some(cause) => format!("{} ({})", problem.message, cause.text),
        None => problem.message,
    };
    let mut answer = json!({ "valid": false, "error": problem.code.as_str(), "message": message });
    if !problem.details.is_empty() {
        answer["details"] = Value::Object(problem.details);
    }
    answer
}

/// A positive answer as text for an operator.
struct VerifiedText<'a> {
    state: Option<&'a PurchaseState>,
    state_error: Option<StateError>,
    subject: &'a EventSubject,
    app_user_id: Option<&'a str>,
    is_test: bool,
    /// Whether the purchase ends at a time that only the app knows.
    is_end_unknown: bool,
    /// How to learn what one transaction does not say.
    refresh_hint: Option<&'a str>,
}

impl VerifiedText<'_> {
    /// The conclusion, then what it rests on.
    fn to_lines(&self) -> String {
        let product = self
            .state
            .and_then(|state| state.product_id.as_deref())
            .or(self.subject.product_id.as_deref());
        let product = product.unwrap_or("an unnamed product");
        let mut lines = vec![format!("Valid: {product}. {}", self.conclusion())];
        let mut push = |label: &str, text: &str| {
            lines.push(format!("  {label:<LABEL_WIDTH$} {text}"));
        };
        for (label, text) in self.state.map(state_text::state_rows).unwrap_or_default() {
            push(label, &text);
        }
        if let Some(newer) = &self.subject.superseded_by {
            push("replaced by", newer);
        }
        push("user", self.app_user_id.unwrap_or("none"));
        if self.is_test {
            push("test", "bought in the sandbox or by a license tester");
        }
        lines.extend(self.caution());
        lines.join("\n")
    }

    fn conclusion(&self) -> String {
        let Some(state) = self.state else {
            let why = self
                .state_error
                .map_or("the store does not say", state_text::explain_state_error);
            return format!(
                "What it is worth is not known, because {why}: keep what the customer has."
            );
        };
        let why = state_text::explain_status(state);
        match (state.entitled, state.entitled_until) {
            (true, Some(end)) => to_sentence(format!("Grant it until {end}: {why}")),
            (true, None) if self.is_end_unknown => {
                "Grant it; the app computes when it ends.".to_owned()
            }
            (true, None) => "Grant it; it has no end.".to_owned(),
            (false, _) => to_sentence(format!("Grant nothing: {why}")),
        }
    }

    /// What the state does not cover.
    fn caution(&self) -> Option<String> {
        let state = self.state?;
        if let Some(error) = self.state_error {
            let why = state_text::explain_state_error(error);
            return Some(format!(
                "The whole subscription is not known, because {why}: ask again."
            ));
        }
        let is_narrow = state.basis == StateBasis::Transaction
            && !state.entitled
            && self.subject.r#type == SubjectType::Subscription;
        let hint = self.refresh_hint.filter(|_| is_narrow)?;
        Some(format!("A later period may be running: {hint}"))
    }
}
