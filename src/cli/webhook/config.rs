//! `webhook set-config`, `webhook get` and `webhook retire-secret`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::ValueParser;
use serde::Serialize;
use serde_json::json;

use super::super::context::{
    CommandContext, CommandError, build_egress_policy, ensure_tenant_exists,
};
use super::super::{duration, input_file};
use crate::base::clock::Timestamp;
use crate::base::id::{CallbackNumber, TenantId};
use crate::config::groups::WebhookSettings;
use crate::crypto::{ExposeSecret as _, SecretString};
use crate::db::Database;
use crate::deliveries::endpoint::store::{self, EndpointChange, EndpointChangeError, SecretChange};
use crate::deliveries::endpoint::{
    CallbackKind, ClientCertificate, ClientCertificateChange, ClientCertificateSummary,
    EndpointSummary, SigningSecret,
};
use crate::deliveries::history;
use crate::deliveries::probe;
use crate::deliveries::redelivery::{EventStatus, Redeliveries, RedeliveryFilter};
use crate::egress::{AllowList, EgressError, LookupError, RejectionRemedy, Resolver};

/// For resolving the callback's host when it is configured.
const DNS_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the previous secret signs beside a new one, without `--overlap`.
const DEFAULT_SECRET_OVERLAP: Duration = Duration::from_hours(24);

const MAX_SECRET_OVERLAP_DAYS: u64 = 90;

const ONE_TIME_SECRET_WARNING: &str =
    "Store this secret now: it is shown only this once. Your backend checks signatures with it.";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto webhook set-config tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --callback-url https://example.com/attesto\n  attesto webhook set-config tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --secret-path new-secret.txt --overlap 7d"
)]
pub(crate) struct SetWebhookArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Number of the callback in `webhook list`
    #[arg(long, value_name = "N", default_value_t)]
    callback: CallbackNumber,

    /// URL that events are sent to, https://… [default: unchanged]
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,

    /// New signing secret, 32 to 512 characters [default: unchanged; a tenant without a secret gets a generated one, printed once]
    // Not checked by clap, which repeats a value that it refuses.
    #[arg(long, value_name = "TEXT", value_parser = ValueParser::from(parse_hidden_secret))]
    secret: Option<SecretString>,

    /// File with the new signing secret, `-` for standard input; unlike --secret it does not appear in the process list
    #[arg(long, value_name = "FILE", conflicts_with = "secret")]
    secret_path: Option<PathBuf>,

    /// Whether new events are sent to the callback [default: unchanged]
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    is_active: Option<bool>,

    /// How long the previous secret signs beside the new one: 90s, 30m, 24h, 7d; 0s retires it at once [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_up_to(MAX_SECRET_OVERLAP_DAYS))]
    overlap: Option<Duration>,

    /// PEM file with the certificate that the callback is shown if it asks for a client certificate, and those between it and its root [default: unchanged]
    #[arg(long, value_name = "FILE", requires = "client_key_path")]
    client_certificate_path: Option<PathBuf>,

    /// PEM file with the private key of the client certificate, not encrypted; it is stored encrypted
    #[arg(long, value_name = "FILE", requires = "client_certificate_path")]
    client_key_path: Option<PathBuf>,

    /// Show no client certificate any more, and delete its key
    #[arg(long, conflicts_with_all = ["client_certificate_path", "client_key_path"])]
    no_client_certificate: bool,
}

/// The output of `set-config`. `secret` is set when one was generated.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WebhookConfigView<'a> {
    #[serde(flatten)]
    endpoint: &'a EndpointSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
    /// Set when events wait for a URL that the callback had before.
    #[serde(flatten)]
    waiting: Option<WaitingForPreviousUrl>,
}

/// Events that are still sent to a URL that the callback had before.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WaitingForPreviousUrl {
    waiting_for_previous_url: u64,
    /// The command that sends them to the new URL.
    redeliver_with: String,
}

pub(super) async fn set_webhook_config(
    arguments: SetWebhookArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let secret = read_given_secret(arguments.secret_path.as_deref(), arguments.secret.as_ref())?;
    if arguments.overlap.is_some() && secret.is_none() {
        return Err(CommandError::usage_error(
            "--overlap needs a new secret: give it with --secret-path or --secret. To retire previous secrets now: attesto webhook retire-secret.",
        ));
    }
    let client_certificate = read_client_certificate(&arguments, context.clock.now())?;
    let webhooks = context.read_settings(WebhookSettings::from_raw)?;
    let database = context.open_database().await?;
    let keyring = context.load_verified_keyring(&database).await?;
    let (tenant, callback) = (&arguments.tenant, arguments.callback);
    if let Some(url) = &arguments.callback_url {
        check_callback_url(url, &webhooks, &database, tenant).await?;
    }
    let client_certificate = match &client_certificate {
        Some(certificate) => Some(ClientCertificateChange::Set(certificate)),
        None => arguments
            .no_client_certificate
            .then_some(ClientCertificateChange::Remove),
    };
    let change = EndpointChange {
        callback,
        callback_url: arguments.callback_url.as_deref(),
        secret: secret.as_ref(),
        is_active: arguments.is_active,
        overlap: arguments.overlap.unwrap_or(DEFAULT_SECRET_OVERLAP),
        client_certificate,
    };
    let changed = match store::change_endpoint(&database, &keyring, tenant, &change).await {
        Err(EndpointChangeError::EndpointNotFound(_)) => {
            ensure_tenant_exists(&database, tenant).await?;
            return Err(CommandError::usage_error(format!(
                "{tenant} has no webhook configuration yet: give --callback-url."
            )));
        }
        changed => changed?,
    };
    let waiting = match arguments.callback_url {
        Some(_) => count_waiting_for_previous_url(&database, tenant, callback, context).await?,
        None => None,
    };
    show_configured(&database, tenant, callback, &changed, waiting, context).await
}

/// Prints a callback that was changed or added, with its secret if that was generated.
pub(super) async fn show_configured(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
    changed: &SecretChange,
    waiting: Option<WaitingForPreviousUrl>,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let endpoint = load_endpoint_summary(database, tenant, callback).await?;
    let made = match changed {
        SecretChange::Generated(made) => Some(made.expose()),
        SecretChange::Unchanged | SecretChange::Rotated => None,
    };
    let configured = WebhookConfigView {
        endpoint: &endpoint,
        secret: made,
        warning: made.map(|_| ONE_TIME_SECRET_WARNING),
        waiting,
    };
    let mut text = format_webhook_config(&endpoint, made);
    if let Some(waiting) = &configured.waiting {
        let WaitingForPreviousUrl {
            waiting_for_previous_url: count,
            redeliver_with,
        } = waiting;
        // Writing to a `String` cannot fail.
        let _ = write!(
            text,
            "\n\n{count} events still wait for a URL that the callback had before. To send them to the new one:\n  {redeliver_with}"
        );
    }
    if made.is_none() {
        context.output.write_json_or_text(&configured, &text)?;
        return Ok(());
    }
    let shown = context.output.write_one_time_secret(&configured, &text);
    shown.map_err(|error| {
        CommandError::failed(format!(
            "the new signing secret could not be shown ({error}), and deliveries are signed with it from now on: set one that you know with attesto webhook set-config {tenant} --secret-path FILE"
        ))
    })
}

/// `None`: none waits.
async fn count_waiting_for_previous_url(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
    context: &CommandContext,
) -> Result<Option<WaitingForPreviousUrl>, CommandError> {
    let filter = RedeliveryFilter {
        tenant: tenant.clone(),
        status: Some(EventStatus::Pending),
        event_type: None,
        received_within: None,
        callback: Some(callback),
        is_for_previous_callback: true,
    };
    let which = match callback {
        CallbackNumber::FIRST => String::new(),
        callback => format!(" --callback {callback}"),
    };
    let redeliveries = Redeliveries::new(database, &context.clock);
    let count = redeliveries.preview_matching(&filter).await?.count;
    Ok((count > 0).then(|| WaitingForPreviousUrl {
        waiting_for_previous_url: count,
        redeliver_with: format!(
            "attesto webhook redeliver --tenant {tenant} --status pending --previous-callback{which}"
        ),
    }))
}

fn format_webhook_config(endpoint: &EndpointSummary, made: Option<&str>) -> String {
    let (tenant, url) = (&endpoint.tenant_id, &endpoint.callback_url);
    let which = match endpoint.callback {
        CallbackNumber::FIRST => String::new(),
        callback => format!(" (callback {callback})"),
    };
    let mut prose = match (endpoint.is_active, endpoint.kind) {
        (true, CallbackKind::Events) => format!("Events of {tenant} are sent to {url}{which}."),
        (true, CallbackKind::Raw) => {
            format!("What the stores send for {tenant} is relayed to {url}{which}.")
        }
        (false, _) => {
            format!("Events of {tenant} are stored and not sent{which}: the callback is inactive.")
        }
    };
    for (what, words) in [
        ("event types", &endpoint.filter.events),
        ("stores", &endpoint.filter.sources),
        ("environments", &endpoint.filter.environments),
    ] {
        if !words.is_empty() {
            // Writing to a `String` cannot fail.
            let _ = write!(prose, "\nOnly for these {what}: {}.", words.join(", "));
        }
    }
    for secret in &endpoint.secrets {
        let line = match secret.expires_at {
            None => format!("\nSecret {} signs deliveries.", secret.number),
            Some(end) => format!("\nSecret {} signs too, until {end}.", secret.number),
        };
        prose.push_str(&line);
    }
    if let Some(certificate) = &endpoint.client_certificate {
        let ClientCertificateSummary {
            subject, not_after, ..
        } = certificate;
        let over_http = if endpoint.callback_url.starts_with("http:") {
            " It is not shown by plain http."
        } else {
            ""
        };
        // Writing to a `String` cannot fail.
        let _ = write!(
            prose,
            "\nIf the callback asks for a client certificate, it is shown {subject:?}, which expires at {not_after}.{over_http}"
        );
    }
    if let Some(made) = made {
        prose.push_str("\n\n  ");
        prose.push_str(made);
        prose.push_str("\n\n");
        prose.push_str(ONE_TIME_SECRET_WARNING);
    }
    prose
}

/// The content of `--secret-path` or the value of `--secret`.
pub(super) fn read_given_secret(
    path: Option<&Path>,
    given: Option<&SecretString>,
) -> Result<Option<SigningSecret>, CommandError> {
    let from_file = match path {
        None => None,
        Some(path) => {
            let text = input_file::read_text(path)?;
            // Editors append a line end.
            let text = text.strip_suffix('\n').unwrap_or(&text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            Some(SecretString::from(text))
        }
    };
    let Some(text) = from_file.as_ref().or(given) else {
        return Ok(None);
    };
    let secret =
        SigningSecret::parse(text.expose_secret()).map_err(CommandError::from_usage_cause)?;
    if secret.is_malformed_whsec() {
        eprintln!(
            "attesto: warning: the secret begins with whsec_ but the rest is not base64, so Standard Webhooks libraries will reject it; its bytes as written sign both headers."
        );
    }
    Ok(Some(secret))
}

/// `None`: none was given.
fn read_client_certificate(
    arguments: &SetWebhookArgs,
    now: Timestamp,
) -> Result<Option<ClientCertificate>, CommandError> {
    let (Some(certificate), Some(key)) = (
        &arguments.client_certificate_path,
        &arguments.client_key_path,
    ) else {
        return Ok(None);
    };
    let certificate = input_file::read_file_or_stdin(certificate)?;
    let key = input_file::read_file_or_stdin(key)?;
    ClientCertificate::from_pem(&certificate, &key, now)
        .map(Some)
        .map_err(CommandError::from_usage_cause)
}

/// Refuses now what every delivery would refuse. A host that does not resolve is only a warning: its DNS record may follow.
pub(super) async fn check_callback_url(
    url: &str,
    webhooks: &WebhookSettings,
    database: &Database,
    tenant: &TenantId,
) -> Result<(), CommandError> {
    let allowed = AllowList::new(store::list_allowed_networks(database, tenant).await?);
    let guard = build_egress_policy(webhooks, database);
    let target = guard
        .parse_target(url, &allowed)
        .map_err(CommandError::from_usage_cause)?;
    let admitted = guard
        .resolve_and_check(&target, &allowed, &Resolver::from_system(), DNS_TIMEOUT)
        .await;
    let port = target.port;
    match admitted {
        Ok(_) => Ok(()),
        Err(EgressError::Rejected(refusal)) => {
            let advice = match refusal.remedy {
                RejectionRemedy::AllowNetwork => format!(
                    "To allow a private network for this tenant: attesto webhook allow {tenant} NETWORK:{port}, and --http for a URL that begins with http://. In development, set WEBHOOK_ALLOW_PRIVATE_CALLBACKS=true here and for the service."
                ),
                RejectionRemedy::AllowHttp => format!(
                    "To allow http there for this tenant: attesto webhook allow {tenant} NETWORK:{port} --http"
                ),
                RejectionRemedy::Nothing => {
                    "It can never be a callback, and no setting changes that.".to_owned()
                }
            };
            Err(CommandError::usage_error(format!(
                "the callback URL is refused: {refusal}. {advice}"
            )))
        }
        Err(EgressError::Lookup(problem)) => {
            let problem = match problem {
                LookupError::ResolverUnavailable => {
                    "this machine's resolver does not answer".to_owned()
                }
                problem => problem.to_string(),
            };
            eprintln!(
                "attesto: warning: the callback's host does not resolve now ({problem}). The URL is stored; deliveries fail until the host resolves."
            );
            Ok(())
        }
    }
}

/// The output of `get`, and a row of `list`.
#[derive(Serialize)]
pub(super) struct WebhookView {
    #[serde(flatten)]
    endpoint: EndpointSummary,
    health: Option<history::CallbackRow>,
    /// The last test of the connection, which sends no event.
    probe: Option<probe::LastProbe>,
}

impl WebhookView {
    pub(super) async fn load(
        database: &Database,
        tenant: &TenantId,
        callback: CallbackNumber,
    ) -> Result<Self, CommandError> {
        Ok(Self {
            endpoint: load_endpoint_summary(database, tenant, callback).await?,
            health: history::store::load_callback(database, tenant, callback).await?,
            probe: probe::store::load_last_probe(database, tenant, callback).await?,
        })
    }
}

pub(super) async fn get_webhook(
    tenant: &TenantId,
    callback: CallbackNumber,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let view = WebhookView::load(&database, tenant, callback).await?;
    context.output.write_object(&view)?;
    Ok(())
}

pub(super) async fn retire_secrets(
    tenant: &TenantId,
    callback: CallbackNumber,
    number: Option<i32>,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let retired = store::retire_secrets(&database, tenant, callback, number).await?;
    let numbers: Vec<_> = retired.iter().map(ToString::to_string).collect();
    let prose = format!(
        "Retired secret {} of {tenant}. It signs nothing from now on.",
        numbers.join(", ")
    );
    let result = json!({ "tenantId": tenant, "callback": callback, "retired": retired });
    context.output.write_json_or_text(&result, &prose)?;
    Ok(())
}

pub(super) async fn load_endpoint_summary(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
) -> Result<EndpointSummary, CommandError> {
    if let Some(summary) = store::load_endpoint_summary(database, tenant, callback).await? {
        return Ok(summary);
    }
    ensure_tenant_exists(database, tenant).await?;
    if callback != CallbackNumber::FIRST {
        return Err(EndpointChangeError::CallbackNotFound(tenant.clone(), callback).into());
    }
    Err(CommandError::failed(format!(
        "{tenant} has no webhook configuration. Create one: attesto webhook set-config {tenant} --callback-url URL"
    )))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "clap expects a Result; an error would show the value"
)]
fn parse_hidden_secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

impl From<EndpointChangeError> for CommandError {
    fn from(error: EndpointChangeError) -> Self {
        match error {
            EndpointChangeError::Database(error) => error.into(),
            newest @ EndpointChangeError::NewestSecret(_) => Self::from_usage_cause(newest),
            error => Self::from_cause(error),
        }
    }
}
