//! `apple set-credentials`, `apple get-credentials` and `apple rollback-credentials`.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::context::{CommandContext, CommandError};
use super::super::input_file;
use crate::base::id::TenantId;
use crate::config::StoreSettings;
use crate::config::settings::CredentialGracePeriod;
use crate::credentials::history::{PreviousOutcome, RollbackError};
use crate::outbound::{self, Upstream};
use crate::stores::apple::account::{
    AppleCredentials, AppleEnvironment, EnvironmentChoice, SigningKey,
};
use crate::stores::apple::api::{self, AppStoreClient};
use crate::stores::apple::check_credentials;
use crate::stores::apple::store::{self, NewAppleCredentials};
use crate::stores::shared::credentials::SetCredentialsError;

/// Arguments of `set-credentials`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetAppleCredentialsArgs {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// The app's bundle id, such as com.example.app
    #[arg(long, value_name = "ID", value_parser = parse_bundle_id)]
    bundle_id: String,

    /// The key's id in App Store Connect: ten capital letters and digits
    #[arg(long, value_name = "ID", value_parser = parse_key_id)]
    key_id: String,

    /// The issuer id in App Store Connect: a UUID
    #[arg(long, value_name = "UUID", value_parser = parse_issuer_id)]
    issuer_id: String,

    /// The In-App Purchase key's .p8 file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    key_path: PathBuf,

    /// Where transactions are looked for when a question does not say; auto: in production, then in the sandbox
    #[arg(long, value_enum, default_value = "auto")]
    environment: EnvironmentChoice,

    /// The app's Apple ID in App Store Connect, a number. Nothing of production is verified without it
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..))]
    app_apple_id: Option<i64>,

    /// Ask Apple first whether it takes them, and store nothing when it does not
    #[arg(long)]
    check: bool,
}

pub(super) async fn set_credentials(
    arguments: SetAppleCredentialsArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let file = input_file::read_file_or_stdin(&arguments.key_path)?;
    let key = SigningKey::parse(&file).map_err(|problem| {
        let path = arguments.key_path.display();
        CommandError::usage_error(format!("{path}: {problem}."))
    })?;
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
        check_credentials(&tenant, &credentials, context).await?;
    }
    let CredentialGracePeriod(grace) = context.read_settings(CredentialGracePeriod::from_raw)?;
    let new = NewAppleCredentials {
        key_file: &file,
        credentials: &credentials,
    };
    let before = store::replace_credentials(&database, &keyring, &tenant, &new, grace)
        .await
        .map_err(|error| match error {
            SetCredentialsError::Database(error) => error.into(),
            told => CommandError::failed(format!("{told}.")),
        })?;
    if let PreviousOutcome::NotOpened(cause) = before {
        eprintln!("attesto: warning: there is no going back to the credentials before: {cause}.");
    }
    if let Some(consequence) = missing_app_apple_id_warning(&credentials) {
        eprintln!("attesto: warning: without --app-apple-id {consequence}.");
    }
    let stored = store::find_credential_summary(&database, &tenant)
        .await?
        .ok_or_else(|| no_credentials_error(&tenant))?;
    let prose = format!(
        "{tenant} asks the App Store about {} with key {} (fingerprint {}).",
        stored.bundle_id, stored.key_id, stored.key_fingerprint
    );
    context.output.write_json_or_text(&stored, &prose)?;
    Ok(())
}

/// Stores nothing when nobody at Apple takes them.
pub(super) async fn check_credentials(
    tenant: &TenantId,
    credentials: &Arc<AppleCredentials>,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let app_store = build_app_store_client(context)?;
    let said = check_credentials::check_credentials(&app_store, tenant, credentials).await;
    let is_taken = said.iter().any(|(_, said)| said.is_ok());
    let mut refusals = Vec::new();
    for (environment, said) in said {
        if let Err(failure) = said {
            let why = describe_api_error(&credentials.bundle_id, environment, &failure);
            refusals.push(format!("{}: {why}", environment.as_str()));
        }
    }
    if is_taken {
        for refusal in refusals {
            eprintln!("attesto: warning: not taken in {refusal}");
        }
        return Ok(());
    }
    refusals.push("Nothing was stored.".to_owned());
    Err(CommandError::failed(refusals.join("\n")))
}

pub(super) async fn rollback_credentials(
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let keyring = context.load_verified_keyring(&database).await?;
    let CredentialGracePeriod(grace) = context.read_settings(CredentialGracePeriod::from_raw)?;
    store::rollback_credentials(&database, &keyring, tenant, grace)
        .await
        .map_err(|why| match why {
            RollbackError::Database(error) => error.into(),
            why => CommandError::failed(format!("the Apple credentials of {tenant} stay: {why}.")),
        })?;
    let stored = store::find_credential_summary(&database, tenant)
        .await?
        .ok_or_else(|| no_credentials_error(tenant))?;
    let prose = format!(
        "{tenant} asks the App Store about {} with key {} (fingerprint {}) again.",
        stored.bundle_id, stored.key_id, stored.key_fingerprint
    );
    context.output.write_json_or_text(&stored, &prose)?;
    Ok(())
}

pub(super) async fn get_credentials(
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let stored = store::find_credential_summary(&database, tenant)
        .await?
        .ok_or_else(|| no_credentials_error(tenant))?;
    context.output.write_object(&stored)?;
    Ok(())
}

/// Apple, where the service would ask it.
pub(super) fn build_app_store_client(
    context: &CommandContext,
) -> Result<AppStoreClient, CommandError> {
    let stores = context.read_settings(StoreSettings::from_raw)?;
    let client = outbound::build_http_client()
        .map_err(|problem| CommandError::failed(format!("cannot call anybody: {problem}.")))?;
    Ok(AppStoreClient::new(
        Upstream::new(client, stores.upstream_timeout),
        stores.apple_production_url,
        stores.apple_sandbox_url,
        context.clock.clone(),
    ))
}

/// What Apple's answer means to whoever set the credentials.
pub(super) fn describe_api_error(
    app: &str,
    environment: AppleEnvironment,
    failure: &api::AppleApiError,
) -> String {
    match failure {
        api::AppleApiError::Unauthorized { .. } => {
            let hint = match environment {
                AppleEnvironment::Production => {
                    " In production it also refuses an app that was never released: try --env sandbox."
                }
                AppleEnvironment::Sandbox => "",
            };
            format!(
                "Apple refuses this tenant's key. Check the key id, the issuer id and the bundle id, and that it is a key for In-App Purchase that was not revoked.{hint}"
            )
        }
        api::AppleApiError::RateLimited { retry_after } => format!(
            "Apple's limit for {app} is used up. Try again in {} seconds.",
            retry_after.as_secs().max(1)
        ),
        other => format!("{other}."),
    }
}

pub(super) fn no_credentials_error(tenant: &TenantId) -> CommandError {
    CommandError::failed(format!("{tenant} has no Apple credentials."))
}

/// What will not work for want of the app's Apple id. `None` when it is there, or not needed.
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
            Some("production is passed over: only sandbox transactions are found")
        }
        (true, None) => Some("nothing can be verified, because production needs it"),
    }
}

/// Apple's rule: letters, digits, hyphens and periods, at most 155 of them.
fn parse_bundle_id(text: &str) -> Result<String, String> {
    let is_allowed = |one: char| one.is_ascii_alphanumeric() || matches!(one, '-' | '.');
    if (1..=155).contains(&text.len()) && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(
            "a bundle id looks like com.example.app: letters, digits, hyphens and periods, at most 155"
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
            "a key id has ten capital letters and digits, like 2X9R4HXF34; it is in the file's name"
                .to_owned(),
        )
    }
}

/// In lower case, as App Store Connect shows it and Apple expects it.
fn parse_issuer_id(text: &str) -> Result<String, String> {
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if is_uuid {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("an issuer id is a UUID, like 57246542-96fe-1a63-e053-0824d011072a".to_owned())
    }
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
    fn the_names_of_key_and_issuer_have_one_form_each() {
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
