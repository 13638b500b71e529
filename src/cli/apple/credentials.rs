//! `apple set-credentials`, `apple get-credentials` and `apple rollback-credentials`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::context::{CommandContext, CommandError};
use super::super::{input_file, store_credentials};
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::config::StoreSettings;
use crate::config::settings::CredentialGracePeriod;
use crate::db::Database;
use crate::http::json::parse_uuid;
use crate::stores::apple::account::{
    AppleCredentials, AppleEnvironment, EnvironmentChoice, SigningKey,
};
use crate::stores::apple::api::{self, AppStoreClient, AppleNotFound};
use crate::stores::apple::check_credentials::{self, BundleIdProof};
use crate::stores::apple::store::{self, AppleCredentialSummary, NewAppleCredentials};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple set-credentials tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --bundle-id com.example.app --app-apple-id 6448311069 \\\n    --key-id 2X9R4HXF34 --issuer-id 57246542-96fe-1a63-e053-0824d011072a \\\n    --key-path SubscriptionKey_2X9R4HXF34.p8"
)]
pub(crate) struct SetAppleCredentialsArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Bundle ID of the app, such as com.example.app
    #[arg(long, value_name = "ID", value_parser = parse_bundle_id)]
    bundle_id: String,

    /// Key ID in App Store Connect: ten capital letters and digits
    #[arg(long, value_name = "ID", value_parser = parse_key_id)]
    key_id: String,

    /// Issuer ID in App Store Connect: a UUID
    #[arg(long, value_name = "UUID", value_parser = parse_issuer_id)]
    issuer_id: String,

    /// File with the In-App Purchase key (.p8), `-` for standard input
    #[arg(long, value_name = "FILE")]
    key_path: PathBuf,

    /// Environment to search when a request names none; auto: production, then sandbox
    #[arg(long, value_enum, default_value = "auto")]
    environment: EnvironmentChoice,

    /// Apple ID of the app in App Store Connect, a number; production transactions cannot be verified without it
    #[arg(long, value_name = "NUMBER", value_parser = parse_app_apple_id)]
    app_apple_id: Option<i64>,

    /// Test the credentials with Apple first, and store nothing when Apple refuses them
    #[arg(long)]
    check: bool,

    /// ID of a transaction of the app: with --check Apple is asked for it, which proves the bundle ID
    #[arg(long, value_name = "ID", requires = "check")]
    transaction_id: Option<String>,
}

pub(super) async fn set_credentials(
    arguments: SetAppleCredentialsArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let file = input_file::read_file_or_stdin(&arguments.key_path)?;
    let key = SigningKey::parse(&file).map_err(|problem| {
        let path = arguments.key_path.display();
        CommandError::usage_error(to_sentence(format!("{path}: {problem}")))
    })?;
    if let Some(doubt) = key_file_name_warning(&arguments.key_path, &arguments.key_id) {
        eprintln!("attesto: warning: {doubt}.");
    }
    let database = context.open_database().await?;
    let keyring = context.load_verified_keyring(&database).await?;
    let tenant = arguments.tenant;
    let credentials = Arc::new(AppleCredentials {
        bundle_id: arguments.bundle_id,
        key_id: arguments.key_id,
        issuer_id: arguments.issuer_id,
        key,
        environment: arguments.environment,
        app_apple_id: arguments.app_apple_id,
    });
    if arguments.check {
        let id = arguments.transaction_id.as_deref();
        let is_proven = check_credentials(&tenant, &credentials, id, context).await?;
        let stored = store::find_credential_summary(&database, &tenant).await?;
        // With another key the app of the stored credentials is as right as it was.
        let is_app_unchanged =
            stored.is_some_and(|stored| stored.bundle_id == credentials.bundle_id);
        if !is_proven && !is_app_unchanged {
            eprintln!(
                "attesto: warning: Apple accepts the key, which does not prove the bundle id {}: with a wrong one Apple would answer alike. Give the id of a transaction of the app with --transaction-id.",
                credentials.bundle_id
            );
        }
    }
    let CredentialGracePeriod(grace) = context.read_settings(CredentialGracePeriod::from_raw)?;
    let new = NewAppleCredentials {
        key_file: &file,
        credentials: &credentials,
    };
    store_credentials::check_replacement(
        store::replace_credentials(&database, &keyring, &tenant, &new, grace).await,
    )?;
    if let Some(consequence) = missing_app_apple_id_warning(&credentials) {
        eprintln!("attesto: warning: without --app-apple-id {consequence}.");
    }
    write_summary("Stored", &database, &tenant, context).await
}

/// Why the name of the key's file, which App Store Connect chose, does not fit. `None` when it fits or was changed.
fn key_file_name_warning(path: &Path, key_id: &str) -> Option<String> {
    let stem = path.file_stem()?.to_str()?;
    let (kind, id) = stem.split_once('_')?;
    // A browser adds a number to the name of a second download.
    let id = id.split([' ', '(']).next().unwrap_or(id);
    match kind {
        "AuthKey" => Some(format!(
            "{stem} is the name of a key for the App Store Connect API, which Apple refuses here: the file of an In-App Purchase key is called SubscriptionKey_{key_id}.p8"
        )),
        "SubscriptionKey" if id != key_id => Some(format!(
            "the file's name says that its key ID is {id}, and --key-id is {key_id}"
        )),
        _ => None,
    }
}

/// Whether Apple's answers prove the bundle id. Fails when Apple accepts the credentials in no environment, and when it knows
/// the app or its transaction in none; warns when it refuses them in one environment of two.
async fn check_credentials(
    tenant: &TenantId,
    credentials: &Arc<AppleCredentials>,
    transaction_id: Option<&str>,
    context: &CommandContext,
) -> Result<bool, CommandError> {
    let app_store = build_app_store_client(context)?;
    let results =
        check_credentials::check_credentials(&app_store, tenant, credentials, transaction_id).await;
    let mut proofs = Vec::new();
    let mut refusals = Vec::new();
    for (environment, result) in results {
        match result {
            Ok(proof) => proofs.push(proof),
            Err(failure) => {
                let why = describe_api_error(
                    &credentials.bundle_id,
                    environment,
                    &failure,
                    "--environment",
                );
                refusals.push(format!("{}: {why}", environment.as_str()));
            }
        }
    }
    if proofs.is_empty() {
        refusals.push("Nothing was stored.".to_owned());
        return Err(CommandError::failed(refusals.join("\n")));
    }
    let is_proven = proofs.contains(&BundleIdProof::Proven);
    let is_possible = is_proven || proofs.contains(&BundleIdProof::Unproven);
    if let Some(proof) = proofs.first().filter(|_| !is_possible) {
        let app = &credentials.bundle_id;
        let id = transaction_id.unwrap_or_default();
        let why = match proof {
            BundleIdProof::TransactionUnknown(AppleNotFound::Unknown) => format!(
                "knows no transaction {id} of {app}: the bundle id is wrong, or the transaction is of another app"
            ),
            BundleIdProof::TransactionUnknown(reason) => {
                format!("says that {id} is {reason}: give the id of a purchase in the app {app}")
            }
            _ => format!(
                "knows no app {app}: the bundle id is wrong. It is in App Store Connect, under App Information"
            ),
        };
        return Err(CommandError::failed(format!(
            "Apple accepts the key, and {why}. Nothing was stored."
        )));
    }
    for refusal in refusals {
        eprintln!("attesto: warning: not accepted in {refusal}");
    }
    Ok(is_proven)
}

pub(super) async fn rollback_credentials(
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let history = store::CREDENTIAL_HISTORY;
    let database = store_credentials::rollback(history, "App Store", tenant, context).await?;
    write_summary("Restored", &database, tenant, context).await
}

pub(super) async fn get_credentials(
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let stored = require_summary(&database, tenant).await?;
    context.output.write_object(&stored)?;
    Ok(())
}

async fn require_summary(
    database: &Database,
    tenant: &TenantId,
) -> Result<AppleCredentialSummary, CommandError> {
    let stored = store::find_credential_summary(database, tenant).await?;
    stored.ok_or_else(|| no_credentials_error(tenant))
}

/// `done` is what was done with the credentials, as the first word of a sentence.
async fn write_summary(
    done: &str,
    database: &Database,
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let stored = require_summary(database, tenant).await?;
    let prose = format!(
        "{done} the App Store credentials of {tenant}: app {}, key {} (fingerprint {}).",
        stored.bundle_id, stored.key_id, stored.key_fingerprint
    );
    context.output.write_json_or_text(&stored, &prose)?;
    Ok(())
}

/// A client for the same addresses as the service's.
pub(super) fn build_app_store_client(
    context: &CommandContext,
) -> Result<AppStoreClient, CommandError> {
    let stores = context.read_settings(StoreSettings::from_raw)?;
    let upstream = context.build_upstream(&stores)?;
    Ok(AppStoreClient::new(
        upstream,
        stores.apple_production_url,
        stores.apple_sandbox_url,
        context.clock.clone(),
    ))
}

/// Apple's error in terms of the credentials to correct. `environment_flag` chooses the environment in this command.
pub(super) fn describe_api_error(
    app: &str,
    environment: AppleEnvironment,
    failure: &api::AppleApiError,
    environment_flag: &str,
) -> String {
    match failure {
        api::AppleApiError::Unauthorized { .. } => {
            let hint = match environment {
                AppleEnvironment::Production => format!(
                    " In production Apple also refuses an app that was never released: try {environment_flag} sandbox."
                ),
                AppleEnvironment::Sandbox => String::new(),
            };
            format!(
                "Apple refuses this tenant's key. Check the key ID, the issuer ID and the bundle ID, and that the key is for In-App Purchase and not revoked.{hint}"
            )
        }
        api::AppleApiError::RateLimited { retry_after } => format!(
            "Apple's rate limit for {app} is exceeded. Try again in {} seconds.",
            retry_after.as_secs().max(1)
        ),
        other => format!("{other}."),
    }
}

pub(super) fn no_credentials_error(tenant: &TenantId) -> CommandError {
    CommandError::failed(format!(
        "{tenant} has no App Store credentials. Set them: attesto apple set-credentials {tenant}"
    ))
}

/// The consequence of a missing `--app-apple-id`; `None` when it is set or not needed.
fn missing_app_apple_id_warning(credentials: &AppleCredentials) -> Option<&'static str> {
    let is_needed = credentials
        .environment
        .allows_environment(AppleEnvironment::Production);
    match (is_needed, credentials.app_apple_id) {
        (false, _) | (true, Some(_)) => None,
        (true, None)
            if credentials
                .environment
                .allows_environment(AppleEnvironment::Sandbox) =>
        {
            Some("production is skipped: only sandbox transactions are found")
        }
        (true, None) => Some("nothing can be verified, because production needs it"),
    }
}

/// Apple's rule: letters, digits, hyphens and periods, at most 155.
fn parse_bundle_id(text: &str) -> Result<String, String> {
    let is_allowed = |one: char| one.is_ascii_alphanumeric() || matches!(one, '-' | '.');
    if (1..=155).contains(&text.len()) && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(
            "must look like com.example.app: letters, digits, hyphens and periods, at most 155"
                .to_owned(),
        )
    }
}

fn parse_key_id(text: &str) -> Result<String, String> {
    let is_allowed = |one: char| one.is_ascii_uppercase() || one.is_ascii_digit();
    if text.len() == 10 && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(
            "must be ten capital letters and digits, like 2X9R4HXF34, as in the key file's name"
                .to_owned(),
        )
    }
}

/// The number of the app, which is easily confused with its bundle ID, its SKU, the team's ID and the `id…` of its web page.
pub(in crate::cli) fn parse_app_apple_id(text: &str) -> Result<i64, String> {
    const MEANT: &str = "the Apple ID of the app is meant, a number like 6448311069: App Store Connect, App Information, General Information. The bundle ID, the SKU and the team's ID are others";
    let digits = text.strip_prefix("id").unwrap_or(text);
    let number = digits.parse().ok().filter(|number: &i64| *number > 0);
    match number {
        Some(number) if digits == text => Ok(number),
        Some(number) => Err(format!(
            "must be a number, {number} without the letters: {MEANT}"
        )),
        None => Err(format!("must be a number: {MEANT}")),
    }
}

/// Returns lower case, which App Store Connect shows and Apple expects.
fn parse_issuer_id(text: &str) -> Result<String, String> {
    parse_uuid(text)
        .ok_or_else(|| "must be a UUID, like 57246542-96fe-1a63-e053-0824d011072a".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_id_is_what_apple_allows() {
        for good in ["com.example.app", "a", "com.example-2.App9", "9.b"] {
            assert_eq!(parse_bundle_id(good).as_deref(), Ok(good));
        }
        let long = "a".repeat(156);
        for bad in ["", "com.example_app", "com.*", "com.ä", " com.a", &long] {
            assert!(parse_bundle_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_apps_number_is_a_number() {
        assert_eq!(parse_app_apple_id("6448311069"), Ok(6_448_311_069));
        for bad in [
            "",
            "0",
            "-1",
            "com.example.app",
            "A1B2C3D4E5",
            "6448311069 ",
            "99999999999999999999",
        ] {
            let why = parse_app_apple_id(bad).unwrap_err();
            assert!(why.contains("App Information"), "{bad}: {why}");
        }
        let why = parse_app_apple_id("id6448311069").unwrap_err();
        assert!(why.contains("6448311069 without the letters"), "{why}");
    }

    #[test]
    fn key_ids_and_issuer_ids_are_checked() {
        assert_eq!(parse_key_id("2X9R4HXF34").as_deref(), Ok("2X9R4HXF34"));
        for bad in [
            "",
            "2X9R4HXF3",
            "2X9R4HXF345",
            "2x9r4hxf34",
            "2X9R4HXF-4",
            "ÄX9R4HXF3",
        ] {
            assert!(parse_key_id(bad).is_err(), "{bad}");
        }
        assert_eq!(
            parse_issuer_id("57246542-96FE-1a63-e053-0824d011072a").as_deref(),
            Ok("57246542-96fe-1a63-e053-0824d011072a")
        );
        for bad in [
            "",
            "57246542",
            "57246542-96fe-1a63-e053-0824d011072",
            "57246542-96fe-1a63-e053-0824d011072g",
            "5724654296fe-1a63-e053-0824d011072a-",
        ] {
            assert!(parse_issuer_id(bad).is_err(), "{bad}");
        }
    }
}
