//! `attesto webhook`: where a tenant's events are sent, what signs them, and what became of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::builder::ValueParser;
use serde::Serialize;
use serde_json::json;

use super::context::{CommandContext, CommandError};
use super::{duration, input_file, verify_signature};
use crate::base::clock::Timestamp;
use crate::base::id::{DeliveryId, EventId, RedeliveryId, TenantId};
use crate::config::groups::WebhookSettings;
use crate::crypto::{ExposeSecret as _, SecretString};
use crate::db::Database;
use crate::deliveries::endpoint::store::{self, EndpointChange, EndpointChangeError, SecretChange};
use crate::deliveries::endpoint::{EndpointSummary, SigningSecret};
use crate::deliveries::history;
use crate::deliveries::probe;
use crate::deliveries::redelivery::{
    self, EventStatus, Redeliveries, RedeliveryError, RedeliveryFilter, RedeliveryRequest,
};
use crate::deliveries::{DeliveryJob, Sender, SenderSettings};
use crate::egress::{
    AllowList, AllowedNetwork, AllowedNetworkError, EgressError, EgressPolicy, LookupError,
    Resolver,
};
use crate::tenants;

/// How long a name may take to resolve when a callback is configured.
const DNS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a previous secret goes on signing where nobody says otherwise.
const DEFAULT_SECRET_OVERLAP: Duration = Duration::from_hours(24);
/// The longest overlap, in days.
const MAX_SECRET_OVERLAP_DAYS: u64 = 90;
/// How far back a redelivery may be asked for, in days.
const MAX_REDELIVERY_SINCE_DAYS: u64 = 3650;
/// Said beside a secret that was made here.
const ONE_TIME_SECRET_WARNING: &str = "Keep this secret now: it is stored sealed and never shown again. The receiver checks signatures with it.";

/// The commands of `attesto webhook`.
#[derive(Debug, clap::Subcommand)]
pub enum WebhookCommand {
    /// Say where a tenant's events are sent and what signs them
    SetConfig(SetWebhookArgs),
    /// Print everything but the secrets
    Get {
        /// Whose: the tenant's id
        tenant: TenantId,
    },
    /// End the overlap of previous secrets now, as after a leak
    RetireSecret {
        /// Whose: the tenant's id
        tenant: TenantId,
        /// Only this one, by its number in `webhook get`. Left out: all but the newest
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        number: Option<i32>,
    },
    /// Let a tenant's callback be at an address that is not public
    Allow {
        /// Whose: the tenant's id
        tenant: TenantId,
        /// A network and a port, like 10.1.0.0/16:443. Left out: what is allowed is listed
        #[arg(value_parser = parse_network)]
        network: Option<AllowedNetwork>,
    },
    /// Take that back
    Disallow {
        /// Whose: the tenant's id
        tenant: TenantId,
        /// A network and a port, as `webhook allow` lists them
        #[arg(value_parser = parse_network)]
        network: AllowedNetwork,
    },
    /// Send one signed event to the callback now and show what it answers; nothing is stored
    Ping {
        /// Whose: the tenant's id
        tenant: TenantId,
    },
    /// Check a signature as a receiver does, and say why it does not fit. Needs no database
    VerifySignature(verify_signature::VerifySignatureArgs),
    /// Deliver one event again, or all that a filter finds
    Redeliver(RedeliverArgs),
    /// Stop a redelivery of many: what it has not reached stays as it is
    StopRedelivery {
        /// Which: `red_…`, as `webhook redeliver` printed it
        redelivery: RedeliveryId,
    },
    /// List a tenant's events, newest first
    ListEvents(HistoryListArgs),
    /// List a tenant's deliveries, newest first
    ListDeliveries(HistoryListArgs),
}

/// Arguments of `set-config`.
#[derive(Debug, clap::Args)]
pub struct SetWebhookArgs {
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

/// Arguments of `redeliver`.
#[derive(Debug, clap::Args)]
pub struct RedeliverArgs {
    /// One event: `evt_…`
    #[arg(conflicts_with_all = ["status", "since", "event_type", "tenant"], required_unless_present = "tenant")]
    event: Option<EventId>,
    /// Or of this tenant, every event that the other arguments leave
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only those that stand here, all of their deliveries considered
    #[arg(long, value_enum)]
    status: Option<EventStatus>,
    /// Only those received within this time: 90s, 30m, 24h, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_up_to(MAX_REDELIVERY_SINCE_DAYS))]
    since: Option<Duration>,
    /// Only those with this word, such as subscription.renewed
    #[arg(long, value_name = "WORD")]
    event_type: Option<String>,
    /// Why, to be kept with the deliveries
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Say how many that are, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Arguments of both lists.
#[derive(Debug, clap::Args)]
pub struct HistoryListArgs {
    /// Whose: the tenant's id
    tenant: TenantId,
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    /// Only those that stand here
    #[arg(long, value_enum)]
    status: Option<EventStatus>,
}

/// Runs one of them.
pub async fn run(command: WebhookCommand, context: &CommandContext) -> Result<(), CommandError> {
    match command {
        WebhookCommand::SetConfig(arguments) => set_webhook_config(arguments, context).await,
        WebhookCommand::Get { tenant } => get_webhook(&tenant, context).await,
        WebhookCommand::RetireSecret { tenant, number } => {
            retire_secrets(&tenant, number, context).await
        }
        WebhookCommand::Allow { tenant, network } => allow_network(&tenant, network, context).await,
        WebhookCommand::Disallow { tenant, network } => {
            disallow_network(&tenant, network, context).await
        }
        WebhookCommand::Ping { tenant } => ping_callback(&tenant, context).await,
        WebhookCommand::VerifySignature(arguments) => verify_signature::run(arguments, context),
        WebhookCommand::Redeliver(arguments) => redeliver_events(arguments, context).await,
        WebhookCommand::StopRedelivery { redelivery } => {
            stop_redelivery(&redelivery, context).await
        }
        WebhookCommand::ListEvents(listing) => list_events(&listing, context).await,
        WebhookCommand::ListDeliveries(listing) => list_deliveries(&listing, context).await,
    }
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

async fn set_webhook_config(
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
        check_callback_url(url, &build_address_guard(&webhooks, &database), &allowed).await?;
    }
    let change = EndpointChange {
        callback_url: arguments.callback_url.as_deref(),
        secret: secret.as_ref(),
        is_active: arguments.is_active,
        overlap: arguments.overlap.unwrap_or(DEFAULT_SECRET_OVERLAP),
    };
    let changed = match store::change_endpoint(&database, &keyring, tenant, &change).await {
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

/// Which callbacks may be called: never our database. The service also refuses itself; where it listens is not known here.
fn build_address_guard(webhooks: &WebhookSettings, database: &Database) -> EgressPolicy {
    EgressPolicy::new(webhooks.is_private_callback_allowed)
        .with_denied_addresses(database.server_addresses())
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

async fn get_webhook(tenant: &TenantId, context: &CommandContext) -> Result<(), CommandError> {
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

async fn retire_secrets(
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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AllowedNetworkRow<'a> {
    tenant_id: &'a TenantId,
    network: AllowedNetwork,
}

async fn allow_network(
    tenant: &TenantId,
    network: Option<AllowedNetwork>,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let tenant_id = tenant;
    let Some(network) = network else {
        let openings = store::list_allowed_networks(&database, tenant).await?;
        if openings.is_empty() {
            ensure_tenant_exists(&database, tenant).await?;
        }
        let openings = openings
            .into_iter()
            .map(|network| AllowedNetworkRow { tenant_id, network });
        let openings: Vec<_> = openings.collect();
        context
            .output
            .write_rows(&openings, &["network"], "Nothing but public addresses.")?;
        return Ok(());
    };
    if !store::allow_network(&database, tenant, &network).await? {
        return Err(CommandError::failed(format!(
            "{network} is already allowed for {tenant}."
        )));
    }
    let prose = format!("Callbacks of {tenant} may be at {network}.");
    context
        .output
        .write_json_or_text(&AllowedNetworkRow { tenant_id, network }, &prose)?;
    Ok(())
}

async fn disallow_network(
    tenant: &TenantId,
    network: AllowedNetwork,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    if !store::disallow_network(&database, tenant, &network).await? {
        return Err(CommandError::failed(format!(
            "{network} is not allowed for {tenant}; `attesto webhook allow {tenant}` lists what is."
        )));
    }
    let prose = format!("Callbacks of {tenant} may be at {network} no more.");
    let result = AllowedNetworkRow {
        tenant_id: tenant,
        network,
    };
    context.output.write_json_or_text(&result, &prose)?;
    Ok(())
}

/// What `ping` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PingResult<'a> {
    tenant_id: &'a TenantId,
    event_id: &'a EventId,
    callback_url: &'a str,
    /// In one word, as in the log and the metrics.
    outcome: &'static str,
    status: Option<u16>,
    latency_ms: u128,
    /// The first kilobyte of what the callback said.
    body: Option<&'a str>,
    /// What went wrong.
    detail: Option<&'a str>,
}

async fn ping_callback(tenant: &TenantId, context: &CommandContext) -> Result<(), CommandError> {
    let webhooks = context.read_settings(WebhookSettings::from_raw)?;
    let database = context.open_database().await?;
    let keyring = context.require_keyring()?;
    let summary = load_endpoint_summary(&database, tenant).await?;
    let mut endpoints =
        store::load_endpoints(&database, &keyring, std::slice::from_ref(tenant)).await?;
    let endpoint = endpoints
        .remove(tenant)
        .ok_or_else(|| EndpointChangeError::EndpointNotFound(tenant.clone()))?
        .map_err(EndpointChangeError::from)?;
    let settings = SenderSettings::new(
        webhooks.callback_timeout,
        build_address_guard(&webhooks, &database),
    );
    let sender = Sender::new(settings, &context.clock)
        .map_err(|problem| CommandError::failed(format!("cannot call anybody: {problem}.")))?;
    let now = context.clock.now();
    let event = EventId::mint(now);
    let job = DeliveryJob {
        id: DeliveryId::mint(now),
        event_id: event.clone(),
        tenant_id: tenant.clone(),
        event_type: PING_EVENT_TYPE.to_owned(),
        attempt_number: 1,
        callback_url: summary.callback_url.clone(),
        body: ping_body(tenant, &event, now).into(),
    };
    let begun = Instant::now();
    let outcome = sender.send(&job, &endpoint).await;
    let latency = begun.elapsed();
    let detail = outcome.detail();
    let echo = PingResult {
        tenant_id: tenant,
        event_id: &event,
        callback_url: &summary.callback_url,
        outcome: outcome.class().as_str(),
        status: outcome.status_code(),
        latency_ms: latency.as_millis(),
        body: outcome.body_excerpt(),
        detail,
    };
    context.output.write_object(&echo)?;
    match detail {
        None => Ok(()),
        Some(detail) => Err(CommandError::failed(format!(
            "the callback did not take it: {detail}."
        ))),
    }
}

/// The word that both stores' own test notifications have too: a receiver knows already that nothing has happened.
const PING_EVENT_TYPE: &str = "test";

/// Like every event, in the order of the contract; no store said it.
fn ping_body(tenant: &TenantId, event: &EventId, now: Timestamp) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        event: &'static str,
        reason: &'static str,
        platform_event: &'static str,
        event_id: &'a EventId,
        external_id: &'a str,
        timestamp: Timestamp,
        tenant_id: &'a TenantId,
        source: &'static str,
        environment: Option<&'static str>,
        subject: Option<&'static str>,
        app_user_id: Option<&'static str>,
        data: serde_json::Value,
        raw: Option<&'static str>,
    }
    let body = Body {
        event: PING_EVENT_TYPE,
        reason: "ping",
        platform_event: "attesto.ping",
        event_id: event,
        external_id: event.as_str(),
        timestamp: now,
        tenant_id: tenant,
        source: "attesto",
        environment: None,
        subject: None,
        app_user_id: None,
        data: json!({ "message": "Sent by `attesto webhook ping`. Nothing has happened." }),
        raw: None,
    };
    serde_json::to_vec(&body).expect("plain texts become JSON")
}

async fn redeliver_events(
    arguments: RedeliverArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let redeliveries = Redeliveries::new(&database, &context.clock);
    let user = context.environment_variable("USER").unwrap_or_default();
    let by = match user.to_string_lossy().as_ref() {
        "" => "attesto webhook redeliver".to_owned(),
        user => format!("attesto webhook redeliver ({user})"),
    };
    let request = RedeliveryRequest {
        requested_by: by,
        reason: arguments.reason,
    };
    let output = &context.output;
    if let Some(event) = arguments.event {
        let tenant = history::store::find_event_tenant(&database, &event).await?;
        let tenant = tenant.ok_or_else(|| RedeliveryError::EventNotFound(event.clone()))?;
        if arguments.dry_run {
            let result =
                json!({ "tenantId": tenant, "eventId": event, "count": 1, "dryRun": true });
            let prose = format!("{event} would be delivered again.");
            output.write_json_or_text(&result, &prose)?;
            return Ok(());
        }
        let delivery = redeliveries.redeliver_event(&event, &request).await?;
        let result = json!({ "tenantId": tenant, "eventId": event, "deliveryId": delivery });
        let prose = format!("{event} is delivered again: {delivery}.");
        output.write_json_or_text(&result, &prose)?;
        return Ok(());
    }
    let tenant = arguments
        .tenant
        .ok_or_else(|| CommandError::usage_error("which event, or which --tenant?"))?;
    ensure_tenant_exists(&database, &tenant).await?;
    let filter = RedeliveryFilter {
        tenant: tenant.clone(),
        status: arguments.status,
        event_type: arguments.event_type,
        received_within: arguments.since,
    };
    let found = redeliveries.preview_matching(&filter).await?;
    let (count, oldest) = (found.count, found.oldest);
    let since = oldest.map_or(String::new(), |oldest| format!(", the first of {oldest}"));
    if arguments.dry_run || count == 0 {
        let result = json!({
            "tenantId": tenant, "count": count, "oldest": oldest, "dryRun": arguments.dry_run,
        });
        let prose = match count {
            0 => "No event is like that.".to_owned(),
            count => format!("{count} events would be delivered again{since}."),
        };
        output.write_json_or_text(&result, &prose)?;
        return Ok(());
    }
    let id = redeliveries.redeliver_matching(&filter, &request).await?;
    let result = json!({
        "tenantId": tenant, "count": count, "oldest": oldest, "redeliveryId": id,
    });
    let prose = format!(
        "{count} events are delivered again{since}: {id}. Whoever serves works them off, {} a second.",
        redelivery::REDELIVERIES_PER_SECOND
    );
    output.write_json_or_text(&result, &prose)?;
    Ok(())
}

async fn stop_redelivery(id: &RedeliveryId, context: &CommandContext) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let redeliveries = Redeliveries::new(&database, &context.clock);
    match redeliveries.stop_redelivery(id).await? {
        Some(enqueued) => {
            let result = json!({ "redeliveryId": id, "enqueued": enqueued, "stopped": true });
            let prose = format!("{id} is stopped; {enqueued} events had been enqueued by then.");
            context.output.write_json_or_text(&result, &prose)?;
            Ok(())
        }
        None => Err(CommandError::failed(format!(
            "there is no redelivery {id} that is still going on."
        ))),
    }
}

async fn list_events(
    listing: &HistoryListArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let HistoryListArgs {
        tenant,
        limit,
        status,
    } = listing;
    let events = history::store::list_events(&database, tenant, *status, *limit).await?;
    if events.is_empty() {
        ensure_tenant_exists(&database, tenant).await?;
    }
    let columns = [
        "id",
        "event",
        "reason",
        "source",
        "environment",
        "subject",
        "receivedAt",
        "status",
    ];
    context
        .output
        .write_rows(&events, &columns, "No events here.")?;
    Ok(())
}

async fn list_deliveries(
    listing: &HistoryListArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let HistoryListArgs {
        tenant,
        limit,
        status,
    } = listing;
    let deliveries =
        history::store::list_deliveries(&database, tenant, *status, None, *limit).await?;
    if deliveries.is_empty() {
        ensure_tenant_exists(&database, tenant).await?;
    }
    let columns = [
        "id",
        "eventId",
        "event",
        "status",
        "attemptCount",
        "lastResponseCode",
        "nextAttemptAt",
        "createdAt",
    ];
    context
        .output
        .write_rows(&deliveries, &columns, "No deliveries here.")?;
    Ok(())
}

async fn load_endpoint_summary(
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

/// An empty answer and a mistyped tenant are different answers.
async fn ensure_tenant_exists(database: &Database, tenant: &TenantId) -> Result<(), CommandError> {
    match tenants::store::find_tenant(database, tenant).await? {
        Some(_) => Ok(()),
        None => Err(CommandError::failed(format!(
            "there is no tenant {tenant}."
        ))),
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a value's parser may fail; this one must not, because the error would show the value"
)]
fn parse_hidden_secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

fn parse_network(text: &str) -> Result<AllowedNetwork, AllowedNetworkError> {
    text.parse()
}

impl From<RedeliveryError> for CommandError {
    fn from(refused: RedeliveryError) -> Self {
        match refused {
            RedeliveryError::Database(error) => error.into(),
            told => Self::failed(format!("{told}.")),
        }
    }
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
