//! `attesto google set-credentials`, `get-credentials` and `rollback-credentials`

use std::path::PathBuf;
use std::sync::Arc;

use super::super::context::{CommandContext, CommandError};
use super::super::{input_file, store_credentials};
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::config::StoreSettings;
use crate::config::settings::CredentialGracePeriod;
use crate::db::Database;
use crate::stores::google::GoogleApiError;
use crate::stores::google::account::{GoogleServiceAccount, TOKEN_URL};
use crate::stores::google::api::PlayClient;
use crate::stores::google::check_credentials;
use crate::stores::google::store::{
    self, AcknowledgePolicy, GoogleCredentialSummary, NewGoogleCredentials,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto google set-credentials tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --package-name com.example.app \\\n    --service-account-path service-account.json \\\n    --pubsub-service-account push@project.iam.gserviceaccount.com"
)]
pub(crate) struct SetGoogleCredentialsArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Package name of the app, such as com.example.app
    #[arg(long, value_name = "NAME", value_parser = parse_package_name)]
    package_name: String,

    /// JSON key file of the service account, `-` for standard input
    #[arg(long, value_name = "FILE")]
    service_account_path: PathBuf,

    /// Audience of the Pub/Sub push token; an empty value removes it [default: unchanged; without a stored one, the push
    /// endpoint's URL, as Pub/Sub sets it]
    #[arg(long, value_name = "TEXT", value_parser = parse_pubsub_audience)]
    pubsub_audience: Option<String>,

    /// Service account that Pub/Sub pushes as; every push is refused without one; an empty value removes it [default:
    /// unchanged]
    #[arg(long, value_name = "EMAIL", value_parser = parse_service_account_email)]
    pubsub_service_account: Option<String>,

    /// Topic that Google publishes notifications to, projects/…/topics/…; an empty value removes it [default: unchanged]
    #[arg(long, value_name = "TOPIC", value_parser = parse_pubsub_topic)]
    pubsub_topic: Option<String>,

    /// When purchases are acknowledged without a request for it [default: unchanged; at first, never]
    #[arg(long, value_name = "WHEN", value_enum)]
    acknowledge: Option<AcknowledgePolicy>,

    /// Test the credentials with Google first, and store nothing when Google refuses them
    #[arg(long)]
    check: bool,
}

pub(super) async fn set_credentials(
    arguments: SetGoogleCredentialsArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let file = input_file::read_file_or_stdin(&arguments.service_account_path)?;
    let account = GoogleServiceAccount::parse(&file).map_err(|problem| {
        let path = arguments.service_account_path.display();
        CommandError::usage_error(to_sentence(format!("{path}: {problem}")))
    })?;
    let account = Arc::new(account);
    let database = context.open_database().await?;
    let keyring = context.load_verified_keyring(&database).await?;
    let tenant = arguments.tenant;
    if arguments.check {
        check_credentials(&tenant, &account, &arguments.package_name, context).await?;
    }
    let CredentialGracePeriod(grace) = context.read_settings(CredentialGracePeriod::from_raw)?;
    let new = NewGoogleCredentials {
        package_name: &arguments.package_name,
        key_file: &file,
        account: &account,
        pubsub_audience: arguments.pubsub_audience.as_deref(),
        pubsub_service_account: arguments.pubsub_service_account.as_deref(),
        pubsub_topic: arguments.pubsub_topic.as_deref(),
    };
    store_credentials::check_replacement(
        store::replace_credentials(&database, &keyring, &tenant, &new, grace).await,
    )?;
    if let Some(policy) = arguments.acknowledge {
        store::set_acknowledge_policy(&database, &tenant, policy).await?;
    }
    let used = context
        .environment_variable("GOOGLE_TOKEN_URL")
        .and_then(|url| url.into_string().ok())
        .unwrap_or_else(|| TOKEN_URL.to_owned());
    if let Some(uri) = account.token_uri().filter(|uri| *uri != used) {
        eprintln!(
            "attesto: warning: the file's token_uri ({uri}) is not used; access tokens come from {used} (GOOGLE_TOKEN_URL)."
        );
    }
    write_summary("Stored", &database, &tenant, context).await
}

async fn check_credentials(
    tenant: &TenantId,
    account: &Arc<GoogleServiceAccount>,
    package_name: &str,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let stores = context.read_settings(StoreSettings::from_raw)?;
    let upstream = context.build_upstream(&stores)?;
    let play = PlayClient::new(
        upstream,
        stores.google_play_url,
        stores.google_token_url,
        context.clock.clone(),
    );
    check_credentials::check_credentials(&play, tenant, account, package_name)
        .await
        .map_err(|failure| {
            let hint = match failure {
                GoogleApiError::Unauthorized { .. } => {
                    " Check that the key was not deleted, and that Play Console, Users and permissions, grants this service account the app's orders and subscriptions; a new permission takes up to a day to apply."
                }
                GoogleApiError::UnknownApp { .. } => " Check --package-name.",
                _ => "",
            };
            CommandError::failed(format!("{failure}.{hint}\nNothing was stored."))
        })
}

pub(super) async fn rollback_credentials(
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let history = store::CREDENTIAL_HISTORY;
    let database = store_credentials::rollback(history, "Google Play", tenant, context).await?;
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
) -> Result<GoogleCredentialSummary, CommandError> {
    let stored = store::find_credential_summary(database, tenant).await?;
    stored.ok_or_else(|| no_credentials_error(tenant))
}

pub(super) fn no_credentials_error(tenant: &TenantId) -> CommandError {
    CommandError::failed(format!(
        "{tenant} has no Google Play credentials. Set them: attesto google set-credentials {tenant}"
    ))
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
        "{done} the Google Play credentials of {tenant}: app {}, service account {} (key {}).",
        stored.package_name, stored.client_email, stored.key_fingerprint
    );
    context.output.write_json_or_text(&stored, &prose)?;
    Ok(())
}

/// Google's rule: two parts or more, each beginning with a letter, made of letters, digits and underscores.
fn parse_package_name(text: &str) -> Result<String, String> {
    let is_part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic())
            && part
                .chars()
                .all(|one| one.is_ascii_alphanumeric() || one == '_')
    };
    if text.len() <= 200 && text.contains('.') && text.split('.').all(is_part) {
        Ok(text.to_owned())
    } else {
        Err("must look like com.example.app and have at most 200 characters".to_owned())
    }
}

fn parse_pubsub_audience(text: &str) -> Result<String, String> {
    if text.len() <= 1000 && !text.contains(|one: char| one.is_whitespace() || one.is_control()) {
        Ok(text.to_owned())
    } else {
        Err("must be at most 1000 bytes without blanks, usually the push endpoint's URL".to_owned())
    }
}

fn parse_service_account_email(text: &str) -> Result<String, String> {
    let is_address = text.split_once('@').is_some_and(|(name, host)| {
        !name.is_empty() && host.contains('.') && !text.contains(char::is_whitespace)
    });
    if text.is_empty() || (is_address && text.len() <= 320) {
        Ok(text.to_owned())
    } else {
        Err("must look like push@project.iam.gserviceaccount.com".to_owned())
    }
}

fn parse_pubsub_topic(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let is_topic = matches!(
        parts.as_slice(),
        ["projects", project, "topics", topic] if !project.is_empty() && !topic.is_empty()
    );
    if text.is_empty() || (is_topic && text.len() <= 400 && !text.contains(char::is_whitespace)) {
        Ok(text.to_owned())
    } else {
        Err("must look like projects/my-project/topics/my-topic".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_name_is_what_google_allows() {
        for good in ["com.example.app", "a.b", "com.example_2.App9", "c.a1"] {
            assert_eq!(parse_package_name(good).as_deref(), Ok(good));
        }
        let long = format!("com.{}", "a".repeat(200));
        for bad in [
            "", "com", "com.", ".com", "com..app", "com.1app", "com.a-b", "com.ä", " com.a", &long,
        ] {
            assert!(parse_package_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pubsub_settings_are_checked_and_may_be_empty() {
        for good in ["", "projects/p/topics/t"] {
            assert!(parse_pubsub_topic(good).is_ok(), "{good}");
        }
        for bad in [
            "t",
            "projects//topics/t",
            "projects/p/topics/",
            "projects/p/topics/t/u",
            "projects/p/topics/ t",
        ] {
            assert!(parse_pubsub_topic(bad).is_err(), "{bad}");
        }
        for good in ["", "push@project.iam.example"] {
            assert!(parse_service_account_email(good).is_ok(), "{good}");
        }
        for bad in ["push", "@project.example", "push@host", "a b@c.d"] {
            assert!(parse_service_account_email(bad).is_err(), "{bad}");
        }
        assert!(parse_pubsub_audience("https://attesto.example/v1/webhooks/google/x").is_ok());
        assert!(parse_pubsub_audience("two words").is_err());
    }
}
