//! `attesto google`: a tenant's access to Google Play.

use std::path::PathBuf;
use std::sync::Arc;

use super::context::{CommandContext, CommandError};
use super::input_file;
use crate::base::id::TenantId;
use crate::config::StoreSettings;
use crate::config::settings::CredentialGracePeriod;
use crate::credentials::history::{PreviousOutcome, RollbackError};
use crate::outbound::{self, Upstream};
use crate::stores::google::GoogleApiError;
use crate::stores::google::account::{GoogleServiceAccount, TOKEN_URL};
use crate::stores::google::api::PlayClient;
use crate::stores::google::check_credentials;
use crate::stores::google::store::{self, NewGoogleCredentials};
use crate::stores::shared::credentials::SetCredentialsError;

/// The commands of `attesto google`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum GoogleCommand {
    /// Store what Attesto needs to ask Google Play, in place of what was stored before
    SetCredentials(SetGoogleCredentialsArgs),
    /// Print everything but the key
    GetCredentials {
        /// Whose: the tenant's id
        tenant: TenantId,
    },
    /// Go back to the credentials that were replaced last; once more leads forward again
    RollbackCredentials {
        /// Whose: the tenant's id
        tenant: TenantId,
    },
}

/// Arguments of `set-credentials`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetGoogleCredentialsArgs {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// The app's package name, such as com.example.app
    #[arg(long, value_name = "NAME", value_parser = parse_package_name)]
    package_name: String,

    /// The service account's JSON key file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    service_account_path: PathBuf,

    /// What a Pub/Sub push's token must be meant for. Left out: what is stored stays; empty: removed. Where none is
    /// stored it must be the push endpoint's own URL, as Pub/Sub has it by default
    #[arg(long, value_name = "TEXT", value_parser = parse_pubsub_audience)]
    pubsub_audience: Option<String>,

    /// The service account that Pub/Sub pushes as; without one every push is refused. Left out: what is stored stays;
    /// empty: removed
    #[arg(long, value_name = "EMAIL", value_parser = parse_service_account_email)]
    pubsub_service_account: Option<String>,

    /// Where Google publishes notifications: projects/…/topics/…. Left out: what is stored stays; empty: removed
    #[arg(long, value_name = "TOPIC", value_parser = parse_pubsub_topic)]
    pubsub_topic: Option<String>,

    /// Ask Google first whether it takes them, and store nothing when it does not
    #[arg(long)]
    check: bool,
}

/// Runs one of them.
pub(crate) async fn run(
    command: GoogleCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        GoogleCommand::SetCredentials(arguments) => set_credentials(arguments, context).await,
        GoogleCommand::GetCredentials { tenant } => get_credentials(&tenant, context).await,
        GoogleCommand::RollbackCredentials { tenant } => {
            rollback_credentials(&tenant, context).await
        }
    }
}

async fn set_credentials(
    arguments: SetGoogleCredentialsArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let file = input_file::read_file_or_stdin(&arguments.service_account_path)?;
    let account = GoogleServiceAccount::parse(&file).map_err(|problem| {
        let path = arguments.service_account_path.display();
        CommandError::usage_error(format!("{path}: {problem}."))
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
    let before = store::replace_credentials(&database, &keyring, &tenant, &new, grace)
        .await
        .map_err(|error| match error {
            SetCredentialsError::Database(error) => error.into(),
            told => CommandError::failed(format!("{told}.")),
        })?;
    if let PreviousOutcome::NotOpened(cause) = before {
        eprintln!("attesto: warning: there is no going back to the credentials before: {cause}.");
    }
    let used = context
        .environment_variable("GOOGLE_TOKEN_URL")
        .and_then(|url| url.into_string().ok())
        .unwrap_or_else(|| TOKEN_URL.to_owned());
    if let Some(written) = account.token_uri().filter(|written| *written != used) {
        eprintln!(
            "attesto: warning: the file's token_uri ({written}) is not used; access tokens are bought at {used} (GOOGLE_TOKEN_URL)."
        );
    }
    let stored = store::find_credential_summary(&database, &tenant)
        .await?
        .ok_or_else(|| CommandError::failed(format!("{tenant} has no Google credentials.")))?;
    let prose = format!(
        "{tenant} asks Google Play about {} as {} (key {}).",
        stored.package_name, stored.client_email, stored.key_fingerprint
    );
    context.output.write_json_or_text(&stored, &prose)?;
    Ok(())
}

/// Stores nothing when Google does not take them.
async fn check_credentials(
    tenant: &TenantId,
    account: &Arc<GoogleServiceAccount>,
    package_name: &str,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let stores = context.read_settings(StoreSettings::from_raw)?;
    let client = outbound::build_http_client()
        .map_err(|problem| CommandError::failed(format!("{problem}.")))?;
    let play = PlayClient::new(
        Upstream::new(client, stores.upstream_timeout),
        stores.google_play_url,
        stores.google_token_url,
        context.clock.clone(),
    );
    check_credentials::check_credentials(&play, tenant, account, package_name)
        .await
        .map_err(|failure| {
            let hint = match failure {
                GoogleApiError::Unauthorized { .. } => {
                    " Check that the key was not deleted, and that Play Console, Users and permissions, lets this service account see the app's orders and subscriptions; a permission takes up to a day to be in force."
                }
                GoogleApiError::UnknownApp { .. } => " Check --package-name.",
                _ => "",
            };
            CommandError::failed(format!("{failure}.{hint}\nNothing was stored."))
        })
}

async fn rollback_credentials(
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
            why => CommandError::failed(format!("the Google credentials of {tenant} stay: {why}.")),
        })?;
    let stored = store::find_credential_summary(&database, tenant)
        .await?
        .ok_or_else(|| CommandError::failed(format!("{tenant} has no Google credentials.")))?;
    let prose = format!(
        "{tenant} asks Google Play about {} as {} (key {}) again.",
        stored.package_name, stored.client_email, stored.key_fingerprint
    );
    context.output.write_json_or_text(&stored, &prose)?;
    Ok(())
}

async fn get_credentials(tenant: &TenantId, context: &CommandContext) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let stored = store::find_credential_summary(&database, tenant)
        .await?
        .ok_or_else(|| CommandError::failed(format!("{tenant} has no Google credentials.")))?;
    context.output.write_object(&stored)?;
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
        Err("a package name looks like com.example.app and has at most 200 characters".to_owned())
    }
}

fn parse_pubsub_audience(text: &str) -> Result<String, String> {
    if text.len() <= 1000 && !text.contains(|one: char| one.is_whitespace() || one.is_control()) {
        Ok(text.to_owned())
    } else {
        Err(
            "an audience is one word, usually the push endpoint's URL, of at most 1000 bytes"
                .to_owned(),
        )
    }
}

fn parse_service_account_email(text: &str) -> Result<String, String> {
    let is_address = text.split_once('@').is_some_and(|(name, host)| {
        !name.is_empty() && host.contains('.') && !text.contains(char::is_whitespace)
    });
    if text.is_empty() || (is_address && text.len() <= 320) {
        Ok(text.to_owned())
    } else {
        Err(
            "a service account's address looks like push@project.iam.gserviceaccount.com"
                .to_owned(),
        )
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
        Err("a topic looks like projects/my-project/topics/my-topic".to_owned())
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
    fn what_belongs_to_pubsub_is_checked_and_may_be_emptied() {
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
