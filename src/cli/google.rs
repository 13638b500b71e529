//! `attesto google`: a tenant's access to Google Play.

use std::path::PathBuf;
use std::sync::Arc;

use super::context::{Context, Failure};
use super::upload;
use crate::config::Stores;
use crate::config::settings::Grace;
use crate::credentials::grace::{Before, NoWayBack};
use crate::google::account::{ServiceAccount, TOKEN_URL};
use crate::google::api::{self, Play};
use crate::google::store::{self, NewCredentials, PutError};
use crate::google::trial;
use crate::id::TenantId;
use crate::outbound::{self, Upstream};

/// The commands of `attesto google`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Store what Attesto needs to ask Google Play, in place of what was stored before
    SetCredentials(SetCredentials),
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
pub struct SetCredentials {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// The app's package name, such as com.example.app
    #[arg(long, value_name = "NAME", value_parser = package_name)]
    package_name: String,

    /// The service account's JSON key file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    service_account_path: PathBuf,

    /// What a Pub/Sub push's token must be meant for. Left out: what is stored stays; empty: removed. Where none is
    /// stored it must be the push endpoint's own URL, as Pub/Sub has it by default
    #[arg(long, value_name = "TEXT", value_parser = audience)]
    pubsub_audience: Option<String>,

    /// The service account that Pub/Sub pushes as; without one every push is refused. Left out: what is stored stays;
    /// empty: removed
    #[arg(long, value_name = "EMAIL", value_parser = email)]
    pubsub_service_account: Option<String>,

    /// Where Google publishes notifications: projects/…/topics/…. Left out: what is stored stays; empty: removed
    #[arg(long, value_name = "TOPIC", value_parser = topic)]
    pubsub_topic: Option<String>,

    /// Ask Google first whether it takes them, and store nothing when it does not
    #[arg(long)]
    check: bool,
}

/// Runs one of them.
pub async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::SetCredentials(arguments) => set(arguments, context).await,
        Command::GetCredentials { tenant } => get(&tenant, context).await,
        Command::RollbackCredentials { tenant } => roll_back(&tenant, context).await,
    }
}

async fn set(arguments: SetCredentials, context: &Context) -> Result<(), Failure> {
    let file = upload::read(&arguments.service_account_path)?;
    let account = ServiceAccount::parse(&file).map_err(|problem| {
        let path = arguments.service_account_path.display();
        Failure::usage(format!("{path}: {problem}."))
    })?;
    let account = Arc::new(account);
    let database = context.database().await?;
    let keyring = context.keyring_for(&database).await?;
    let tenant = arguments.tenant;
    if arguments.check {
        try_out(&tenant, &account, &arguments.package_name, context).await?;
    }
    let Grace(grace) = context.settings(Grace::read)?;
    let new = NewCredentials {
        package_name: &arguments.package_name,
        file: &file,
        account: &account,
        pubsub_audience: arguments.pubsub_audience.as_deref(),
        pubsub_service_account: arguments.pubsub_service_account.as_deref(),
        pubsub_topic: arguments.pubsub_topic.as_deref(),
    };
    let before = store::replace(&database, &keyring, &tenant, &new, grace)
        .await
        .map_err(|error| match error {
            PutError::Database(error) => error.into(),
            told => Failure::refused(format!("{told}.")),
        })?;
    if let Before::Unopened(cause) = before {
        eprintln!("attesto: warning: there is no going back to the credentials before: {cause}.");
    }
    let used = context
        .variable("GOOGLE_TOKEN_URL")
        .and_then(|url| url.into_string().ok())
        .unwrap_or_else(|| TOKEN_URL.to_owned());
    if let Some(written) = account.token_uri().filter(|written| *written != used) {
        eprintln!(
            "attesto: warning: the file's token_uri ({written}) is not used; access tokens are bought at {used} (GOOGLE_TOKEN_URL)."
        );
    }
    let stored = store::describe(&database, &tenant)
        .await?
        .ok_or_else(|| Failure::refused(format!("{tenant} has no Google credentials.")))?;
    let prose = format!(
        "{tenant} asks Google Play about {} as {} (key {}).",
        stored.package_name, stored.client_email, stored.key_fingerprint
    );
    context.output.sentence(&stored, &prose)?;
    Ok(())
}

/// Stores nothing when Google does not take them.
async fn try_out(
    tenant: &TenantId,
    account: &Arc<ServiceAccount>,
    package_name: &str,
    context: &Context,
) -> Result<(), Failure> {
    let stores = context.settings(Stores::read)?;
    let client = outbound::client().map_err(|problem| Failure::refused(format!("{problem}.")))?;
    let play = Play::new(
        Upstream::new(client, stores.timeout),
        stores.google_play,
        stores.google_token,
        context.clock.clone(),
    );
    trial::try_out(&play, tenant, account, package_name)
        .await
        .map_err(|failure| {
            let hint = match failure {
                api::Failure::Credentials { .. } => {
                    " Check that the key was not deleted, and that Play Console, Users and permissions, lets this service account see the app's orders and subscriptions; a permission takes up to a day to be in force."
                }
                api::Failure::Application { .. } => " Check --package-name.",
                _ => "",
            };
            Failure::refused(format!("{failure}.{hint}\nNothing was stored."))
        })
}

async fn roll_back(tenant: &TenantId, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let keyring = context.keyring_for(&database).await?;
    let Grace(grace) = context.settings(Grace::read)?;
    store::roll_back(&database, &keyring, tenant, grace)
        .await
        .map_err(|why| match why {
            NoWayBack::Database(error) => error.into(),
            why => Failure::refused(format!("the Google credentials of {tenant} stay: {why}.")),
        })?;
    let stored = store::describe(&database, tenant)
        .await?
        .ok_or_else(|| Failure::refused(format!("{tenant} has no Google credentials.")))?;
    let prose = format!(
        "{tenant} asks Google Play about {} as {} (key {}) again.",
        stored.package_name, stored.client_email, stored.key_fingerprint
    );
    context.output.sentence(&stored, &prose)?;
    Ok(())
}

async fn get(tenant: &TenantId, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let stored = store::describe(&database, tenant)
        .await?
        .ok_or_else(|| Failure::refused(format!("{tenant} has no Google credentials.")))?;
    context.output.object(&stored)?;
    Ok(())
}

/// Google's rule: two parts or more, each beginning with a letter, made of letters, digits and underscores.
fn package_name(text: &str) -> Result<String, String> {
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

fn audience(text: &str) -> Result<String, String> {
    if text.len() <= 1000 && !text.contains(|one: char| one.is_whitespace() || one.is_control()) {
        Ok(text.to_owned())
    } else {
        Err(
            "an audience is one word, usually the push endpoint's URL, of at most 1000 bytes"
                .to_owned(),
        )
    }
}

fn email(text: &str) -> Result<String, String> {
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

fn topic(text: &str) -> Result<String, String> {
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
            assert_eq!(package_name(good).as_deref(), Ok(good));
        }
        let long = format!("com.{}", "a".repeat(200));
        for bad in [
            "", "com", "com.", ".com", "com..app", "com.1app", "com.a-b", "com.ä", " com.a", &long,
        ] {
            assert!(package_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_belongs_to_pubsub_is_checked_and_may_be_emptied() {
        for good in ["", "projects/p/topics/t"] {
            assert!(topic(good).is_ok(), "{good}");
        }
        for bad in [
            "t",
            "projects//topics/t",
            "projects/p/topics/",
            "projects/p/topics/t/u",
            "projects/p/topics/ t",
        ] {
            assert!(topic(bad).is_err(), "{bad}");
        }
        for good in ["", "push@project.iam.example"] {
            assert!(email(good).is_ok(), "{good}");
        }
        for bad in ["push", "@project.example", "push@host", "a b@c.d"] {
            assert!(email(bad).is_err(), "{bad}");
        }
        assert!(audience("https://attesto.example/v1/webhooks/google/x").is_ok());
        assert!(audience("two words").is_err());
    }
}
