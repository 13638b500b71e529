//! `webhook set-config`, `webhook get` and `webhook retire-secret`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ValueParser;
use serde::Serialize;
use serde_json::json;

use super::super::context::{
    CommandContext, CommandError, build_egress_policy, ensure_tenant_exists,
};
use super::super::{duration, input_file};
use crate::base::id::TenantId;
use crate::config::groups::WebhookSettings;
use crate::crypto::{ExposeSecret as _, SecretString};
use crate::db::Database;
use crate::deliveries::endpoint::store::{self, EndpointChange, EndpointChangeError, SecretChange};
use crate::deliveries::endpoint::{EndpointSummary, SigningSecret};
use crate::deliveries::history;
use crate::deliveries::probe;
use crate::egress::{AllowList, EgressError, EgressPolicy, LookupError, Resolver};


/// How long a name may take to resolve when a callback is configured.
const DNS_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a previous secret goes on signing where nobody says otherwise.
const DEFAULT_SECRET_OVERLAP: Duration = Duration::from_hours(24);

/// The longest overlap, in days.
const MAX_SECRET_OVERLAP_DAYS: u64 = 90;

/// Said beside a secret that was made here.
const ONE_TIME_SECRET_WARNING: &str = "Keep this secret now: it is stored sealed and never shown again. The receiver checks signatures with it.";

/// Arguments of `set-config`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetWebhookArgs {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// Where events are sent: https://…. Left out: what is stored stays
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,

    /// What signs deliveries from now on, 32 to 512 characters. Left out: what is stored stays, and a tenant without one gets one that is made here and printed once
    // Not checked by the parser, which would repeat what it refuses.
    #[arg(long, value_name = "TEXT", value_parser = ValueParser::from(parse_hidden_secret))]
    secret: Option<SecretString>,

    /// The same from a file, `-` for standard input, which the list of processes does not show
    #[arg(long, value_name = "FILE", conflicts_with = "secret")]
    secret_path: Option<PathBuf>,

    /// Whether new events are sent at all
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    is_active: Option<bool>,

    /// How long the previous secret goes on signing beside a new one: 90s, 30m, 24h, 7d; 0s ends it at once [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_up_to(MAX_SECRET_OVERLAP_DAYS))]
    overlap: Option<Duration>,
}

/// What `set-config` prints: the endpoint, and a secret that was made here.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WebhookConfigView<'a> {
    #[serde(flatten)]
    endpoint: &'a EndpointSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
}

pub(super) async fn set_webhook_config(
    arguments: SetWebhookArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let secret = read_given_secret(&arguments)?;
    if arguments.overlap.is_some() && secret.is_none() {
        return Err(CommandError::usage_error(
            "--overlap says how long the previous secret goes on signing beside a new one: give the new one with --secret-path or --secret. To end previous secrets now: attesto webhook retire-secret.",
        ));
    }
    let webhooks = context.read_settings(WebhookSettings::from_raw)?;
    let database = context.open_database().await?;
    let keyring = context.load_verified_keyring(&database).await?;
    let tenant = &arguments.tenant;
    if let Some(url) = &arguments.callback_url {
        let allowed = AllowList::new(store::list_allowed_networks(&database, tenant).await?);
        check_callback_url(url, &build_egress_policy(&webhooks, &database), &allowed).await?;
    }
    let change = EndpointChange {
        callback_url: arguments.callback_url.as_deref(),
        secret: secret.as_ref(),
        is_active: arguments.is_active,
        overlap: arguments.overlap.unwrap_or(DEFAULT_SECRET_OVERLAP),
    };
    let changed = match store::change_endpoint(&database, &keyring, tenant, &change).await
    {
        Err(EndpointChangeError::EndpointNotFound(_)) => {
            ensure_tenant_exists(&database, tenant).await?;
            return Err(CommandError::usage_error(format!(
                "{tenant} has no webhook configuration yet: say where events are sent with --callback-url."
            )));
        }
        changed => changed?,
    };
    let endpoint = load_endpoint_summary(&database, tenant).await?;
    let made = match &changed {
        SecretChange::Generated(made) => Some(made.expose()),
        SecretChange::Unchanged | SecretChange::Rotated => None,
    };
    let configured = WebhookConfigView {
        endpoint: &endpoint,
        secret: made,
        warning: made.map(|_| ONE_TIME_SECRET_WARNING),
    };
    context
        .output
        .write_json_or_text(&configured, &format_webhook_config(&endpoint, made))?;
    Ok(())
}

fn format_webhook_config(endpoint: &EndpointSummary, made: Option<&str>) -> String {
    let tenant = &endpoint.tenant_id;
    let mut prose = if endpoint.is_active {
        format!("Events of {tenant} are sent to {}.", endpoint.callback_url)
    } else {
        format!("Events of {tenant} are stored and not sent: the callback is not active.")
    };
    for secret in &endpoint.secrets {
        let line = match secret.expires_at {
            None => format!("\nSecret {} signs.", secret.number),
            Some(end) => format!("\nSecret {} signs beside it until {end}.", secret.number),
        };
        prose.push_str(&line);
    }
    if let Some(made) = made {
        prose.push_str("\n\n  ");
        prose.push_str(made);
        prose.push_str("\n\n");
        prose.push_str(ONE_TIME_SECRET_WARNING);
    }
    prose
}

/// The secret that was given, by whichever way.
fn read_given_secret(arguments: &SetWebhookArgs) -> Result<Option<SigningSecret>, CommandError> {
    let from_file = match &arguments.secret_path {
        None => None,
        Some(path) => {
            let bytes = input_file::read_file_or_stdin(path)?;
            let text = std::str::from_utf8(&bytes).map_err(|_| {
                CommandError::usage_error(format!("{} is not text.", path.display()))
            })?;
            // An editor's line end is not part of it.
            let text = text.strip_suffix('\n').unwrap_or(text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            Some(SecretString::from(text))
        }
    };
    let Some(text) = from_file.as_ref().or(arguments.secret.as_ref()) else {
        return Ok(None);
    };
    let secret = SigningSecret::parse(text.expose_secret())
        .map_err(|problem| CommandError::usage_error(format!("{problem}.")))?;
    if secret.is_malformed_whsec() {
        eprintln!(
            "attesto: warning: the secret begins with whsec_ and the rest is not base64, so libraries of Standard Webhooks will not take it; its plain bytes sign both headers."
        );
    }
    Ok(Some(secret))
}

/// Says now what every delivery would say later. A name that does not resolve yet is only remarked: it may be on its way.
async fn check_callback_url(
    url: &str,
    guard: &EgressPolicy,
    allowed: &AllowList,
) -> Result<(), CommandError> {
    let target = guard
        .parse_target(url, allowed)
        .map_err(|problem| CommandError::usage_error(format!("{problem}.")))?;
    let admitted = guard
        .resolve_and_check(&target, allowed, &Resolver::from_system(), DNS_TIMEOUT)
        .await;
    match admitted {
        Ok(_) => Ok(()),
        Err(EgressError::Rejected(refusal)) => Err(CommandError::usage_error(format!(
            "the callback must not be called: {refusal}. An operator can allow a private network for one tenant (attesto webhook allow); a developer sets WEBHOOK_ALLOW_PRIVATE_CALLBACKS=true, here and for the service."
        ))),
        Err(EgressError::Lookup(problem)) => {
            let problem = match problem {
                LookupError::ResolverUnavailable => {
                    "this machine's resolver does not answer".to_owned()
                }
                problem => problem.to_string(),
            };
            eprintln!(
                "attesto: warning: the callback's host does not resolve now ({problem}); it is stored, and nothing arrives before it does."
            );
            Ok(())
        }
    }
}

/// What `get` prints.
#[derive(Serialize)]
struct WebhookView<'a> {
    #[serde(flatten)]
    endpoint: &'a EndpointSummary,
    health: Option<history::CallbackRow>,
    /// What was found when it was last connected to without sending anything.
    probe: Option<probe::LastProbe>,
}

pub(super) async fn get_webhook(
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let endpoint = &load_endpoint_summary(&database, tenant).await?;
    let health = history::store::load_callback(&database, tenant).await?;
    let probe = probe::store::load_last_probe(&database, tenant).await?;
    context.output.write_object(&WebhookView {
        endpoint,
        health,
        probe,
    })?;
    Ok(())
}

pub(super) async fn retire_secrets(
    tenant: &TenantId,
    number: Option<i32>,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let retired = store::retire_secrets(&database, tenant, number).await?;
    let numbers: Vec<_> = retired.iter().map(ToString::to_string).collect();
    let prose = format!(
        "Retired of {tenant}: secret {}. Nothing is signed with it any more.",
        numbers.join(", secret ")
    );
    let result = json!({ "tenantId": tenant, "retired": retired });
    context.output.write_json_or_text(&result, &prose)?;
    Ok(())
}

pub(super) async fn load_endpoint_summary(
    database: &Database,
    tenant: &TenantId,
) -> Result<EndpointSummary, CommandError> {
    if let Some(summary) = store::load_endpoint_summary(database, tenant).await? {
        return Ok(summary);
    }
    ensure_tenant_exists(database, tenant).await?;
    Err(CommandError::failed(format!(
        "{tenant} has no webhook configuration: attesto webhook set-config {tenant} --callback-url URL"
    )))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a value's parser may fail; this one must not, because the error would show the value"
)]
fn parse_hidden_secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

impl From<EndpointChangeError> for CommandError {
    fn from(error: EndpointChangeError) -> Self {
        match error {
            EndpointChangeError::Database(error) => error.into(),
            newest @ EndpointChangeError::NewestSecret(_) => {
                Self::usage_error(format!("{newest}."))
            }
            told => Self::failed(format!("{told}.")),
        }
    }
}
