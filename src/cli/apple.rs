//! `attesto apple`: a tenant's access to the App Store.

use std::path::PathBuf;

use super::context::{Context, Failure};
use super::upload;
use crate::apple::account::{Credentials, Environment, EnvironmentChoice, SigningKey};
use crate::apple::store::{self, NewCredentials, PutError};
use crate::id::TenantId;

/// The commands of `attesto apple`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Store what Attesto needs to ask the App Store, in place of what was stored before
    SetCredentials(SetCredentials),
    /// Print everything but the key
    GetCredentials {
        /// Whose: the tenant's id
        tenant: TenantId,
    },
}

/// Arguments of `set-credentials`.
#[derive(Debug, clap::Args)]
pub struct SetCredentials {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// The app's bundle id, such as com.example.app
    #[arg(long, value_name = "ID", value_parser = bundle_id)]
    bundle_id: String,

    /// The key's id in App Store Connect: ten capital letters and digits
    #[arg(long, value_name = "ID", value_parser = key_id)]
    key_id: String,

    /// The issuer id in App Store Connect: a UUID
    #[arg(long, value_name = "UUID", value_parser = issuer_id)]
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
}

/// Runs one of them.
pub async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::SetCredentials(arguments) => set(arguments, context).await,
        Command::GetCredentials { tenant } => get(&tenant, context).await,
    }
}

async fn set(arguments: SetCredentials, context: &Context) -> Result<(), Failure> {
    let file = upload::read(&arguments.key_path)?;
    let key = SigningKey::parse(&file).map_err(|problem| {
        let path = arguments.key_path.display();
        Failure::usage(format!("{path}: {problem}."))
    })?;
    let database = context.database().await?;
    let keyring = context.keyring_for(&database).await?;
    let tenant = arguments.tenant;
    let credentials = Credentials {
        bundle_id: arguments.bundle_id,
        key_id: arguments.key_id,
        issuer_id: arguments.issuer_id,
        key,
        environment: arguments.environment,
        app_apple_id: arguments.app_apple_id,
    };
    let new = NewCredentials {
        file: &file,
        credentials: &credentials,
    };
    store::put(&database, &keyring, &tenant, &new)
        .await
        .map_err(|error| match error {
            PutError::UnknownTenant(_) => Failure::refused(format!("{error}.")),
            PutError::Database(error) => error.into(),
        })?;
    if let Some(consequence) = without_app_apple_id(&credentials) {
        eprintln!("attesto: warning: without --app-apple-id {consequence}.");
    }
    let stored = store::describe(&database, &tenant)
        .await?
        .ok_or_else(|| none(&tenant))?;
    let prose = format!(
        "{tenant} asks the App Store about {} with key {} (fingerprint {}).",
        stored.bundle_id, stored.key_id, stored.key_fingerprint
    );
    context.output.sentence(&stored, &prose)?;
    Ok(())
}

async fn get(tenant: &TenantId, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let stored = store::describe(&database, tenant)
        .await?
        .ok_or_else(|| none(tenant))?;
    context.output.object(&stored)?;
    Ok(())
}

fn none(tenant: &TenantId) -> Failure {
    Failure::refused(format!("{tenant} has no Apple credentials."))
}

/// What will not work for want of the app's Apple id. `None` when it is there, or not needed.
fn without_app_apple_id(credentials: &Credentials) -> Option<&'static str> {
    let is_needed = credentials.environment.allows(Environment::Production);
    match (is_needed, credentials.app_apple_id) {
        (false, _) | (true, Some(_)) => None,
        (true, None) if credentials.environment.allows(Environment::Sandbox) => {
            Some("production is passed over: only sandbox transactions are found")
        }
        (true, None) => Some("nothing can be verified, because production needs it"),
    }
}

/// Apple's rule: letters, digits, hyphens and periods, at most 155 of them.
fn bundle_id(text: &str) -> Result<String, String> {
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

fn key_id(text: &str) -> Result<String, String> {
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
fn issuer_id(text: &str) -> Result<String, String> {
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
            assert_eq!(bundle_id(good).as_deref(), Ok(good));
        }
        let long = "a".repeat(156);
        for bad in ["", "com.example_app", "com.*", "com.ä", " com.a", &long] {
            assert!(bundle_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_names_of_key_and_issuer_have_one_form_each() {
        assert_eq!(key_id("2X9R4HXF34").as_deref(), Ok("2X9R4HXF34"));
        for bad in [
            "",
            "2X9R4HXF3",
            "2X9R4HXF345",
            "2x9r4hxf34",
            "2X9R4HXF-4",
            "ÄX9R4HXF3",
        ] {
            assert!(key_id(bad).is_err(), "{bad}");
        }
        assert_eq!(
            issuer_id("57246542-96FE-1a63-e053-0824d011072a").as_deref(),
            Ok("57246542-96fe-1a63-e053-0824d011072a")
        );
        for bad in [
            "",
            "57246542",
            "57246542-96fe-1a63-e053-0824d011072",
            "57246542-96fe-1a63-e053-0824d011072g",
            "5724654296fe-1a63-e053-0824d011072a-",
        ] {
            assert!(issuer_id(bad).is_err(), "{bad}");
        }
    }
}
