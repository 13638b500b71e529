//! `attesto webhook`: where a tenant's events are sent, what signs them, and what became of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::builder::ValueParser;
use serde::Serialize;
use serde_json::json;

use super::context::{Context, Failure};
use super::{duration, upload, verify_signature};
use crate::clock::Timestamp;
use crate::config::settings::Webhooks;
use crate::crypto::{ExposeSecret as _, SecretString};
use crate::db::Database;
use crate::deliveries::endpoint::store::{self, Change, ChangeError, Changed};
use crate::deliveries::endpoint::{SigningSecret, Summary};
use crate::deliveries::guard::{
    AllowList, BadOpening, Guard, LookupError, Opening, Resolver, Unvetted,
};
use crate::deliveries::history;
use crate::deliveries::probe;
use crate::deliveries::redelivery::{self, Filter, Redeliveries, Refused, Request, Status};
use crate::deliveries::{Attempt, Outcome, Sender, SenderSettings};
use crate::id::{DeliveryId, EventId, RedeliveryId, TenantId};
use crate::tenants;

/// The database's clock is the clock: an administrator does not live ahead of it.
const NO_LEAD: Duration = Duration::ZERO;
/// How long a name may take to resolve when a callback is configured.
const RESOLVING: Duration = Duration::from_secs(3);
/// How long a previous secret goes on signing where nobody says otherwise.
const USUAL_OVERLAP: Duration = Duration::from_hours(24);
/// The longest overlap, in days.
const LONGEST_OVERLAP: u64 = 90;
/// How far back a redelivery may be asked for, in days.
const LONGEST_SINCE: u64 = 3650;
/// Said beside a secret that was made here.
const ONCE: &str = "Keep this secret now: it is stored sealed and never shown again. The receiver checks signatures with it.";

/// The commands of `attesto webhook`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Say where a tenant's events are sent and what signs them
    SetConfig(SetConfig),
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
        #[arg(value_parser = opening)]
        network: Option<Opening>,
    },
    /// Take that back
    Disallow {
        /// Whose: the tenant's id
        tenant: TenantId,
        /// A network and a port, as `webhook allow` lists them
        #[arg(value_parser = opening)]
        network: Opening,
    },
    /// Send one signed event to the callback now and show what it answers; nothing is stored
    Ping {
        /// Whose: the tenant's id
        tenant: TenantId,
    },
    /// Check a signature as a receiver does, and say why it does not fit. Needs no database
    VerifySignature(verify_signature::Args),
    /// Deliver one event again, or all that a filter finds
    Redeliver(Redeliver),
    /// Stop a redelivery of many: what it has not reached stays as it is
    StopRedelivery {
        /// Which: `red_…`, as `webhook redeliver` printed it
        redelivery: RedeliveryId,
    },
    /// List a tenant's events, newest first
    ListEvents(Listing),
    /// List a tenant's deliveries, newest first
    ListDeliveries(Listing),
}

/// Arguments of `set-config`.
#[derive(Debug, clap::Args)]
pub struct SetConfig {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// Where events are sent: https://…. Left out: what is stored stays
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,

    /// What signs deliveries from now on, 32 to 512 characters. Left out: what is stored stays, and a tenant without one gets one that is made here and printed once
    // Not checked by the parser, which would repeat what it refuses.
    #[arg(long, value_name = "TEXT", value_parser = ValueParser::from(hidden))]
    secret: Option<SecretString>,

    /// The same from a file, `-` for standard input, which the list of processes does not show
    #[arg(long, value_name = "FILE", conflicts_with = "secret")]
    secret_path: Option<PathBuf>,

    /// Whether new events are sent at all
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    is_active: Option<bool>,

    /// How long the previous secret goes on signing beside a new one: 90s, 30m, 24h, 7d; 0s ends it at once [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_up_to(LONGEST_OVERLAP))]
    overlap: Option<Duration>,
}

/// Arguments of `redeliver`.
#[derive(Debug, clap::Args)]
pub struct Redeliver {
    /// One event: `evt_…`
    #[arg(conflicts_with_all = ["status", "since", "event_type", "tenant"], required_unless_present = "tenant")]
    event: Option<EventId>,
    /// Or of this tenant, every event that the other arguments leave
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only those that stand here, all of their deliveries considered
    #[arg(long, value_enum)]
    status: Option<Status>,
    /// Only those received within this time: 90s, 30m, 24h, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_up_to(LONGEST_SINCE))]
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
pub struct Listing {
    /// Whose: the tenant's id
    tenant: TenantId,
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    /// Only those that stand here
    #[arg(long, value_enum)]
    status: Option<Status>,
}

/// Runs one of them.
pub async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::SetConfig(arguments) => set(arguments, context).await,
        Command::Get { tenant } => get(&tenant, context).await,
        Command::RetireSecret { tenant, number } => retire(&tenant, number, context).await,
        Command::Allow { tenant, network } => allow(&tenant, network, context).await,
        Command::Disallow { tenant, network } => disallow(&tenant, network, context).await,
        Command::Ping { tenant } => ping(&tenant, context).await,
        Command::VerifySignature(arguments) => verify_signature::run(arguments, context),
        Command::Redeliver(arguments) => redeliver(arguments, context).await,
        Command::StopRedelivery { redelivery } => stop_redelivery(&redelivery, context).await,
        Command::ListEvents(listing) => list_events(&listing, context).await,
        Command::ListDeliveries(listing) => list_deliveries(&listing, context).await,
    }
}

/// What `set-config` prints: the endpoint, and a secret that was made here.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Configured<'a> {
    #[serde(flatten)]
    endpoint: &'a Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
}

async fn set(arguments: SetConfig, context: &Context) -> Result<(), Failure> {
    let secret = chosen_secret(&arguments)?;
    if arguments.overlap.is_some() && secret.is_none() {
        return Err(Failure::usage(
            "--overlap says how long the previous secret goes on signing beside a new one: give the new one with --secret-path or --secret. To end previous secrets now: attesto webhook retire-secret.",
        ));
    }
    let webhooks = context.settings(Webhooks::read)?;
    let database = context.database().await?;
    let keyring = context.keyring_for(&database).await?;
    let tenant = &arguments.tenant;
    if let Some(url) = &arguments.callback_url {
        let allowed = AllowList::new(store::openings(&database, tenant).await?);
        check_callback(url, &guard(&webhooks, &database), &allowed).await?;
    }
    let change = Change {
        callback_url: arguments.callback_url.as_deref(),
        secret: secret.as_ref(),
        is_active: arguments.is_active,
        overlap: arguments.overlap.unwrap_or(USUAL_OVERLAP),
    };
    let changed = match store::change(&database, &keyring, tenant, &change, NO_LEAD).await {
        Err(ChangeError::NoEndpoint(_)) => {
            known(&database, tenant).await?;
            return Err(Failure::usage(format!(
                "{tenant} has no webhook configuration yet: say where events are sent with --callback-url."
            )));
        }
        changed => changed?,
    };
    let endpoint = described(&database, tenant).await?;
    let made = match &changed {
        Changed::Generated(made) => Some(made.expose()),
        Changed::Kept | Changed::Rotated => None,
    };
    let configured = Configured {
        endpoint: &endpoint,
        secret: made,
        warning: made.map(|_| ONCE),
    };
    context
        .output
        .sentence(&configured, &in_words(&endpoint, made))?;
    Ok(())
}

fn in_words(endpoint: &Summary, made: Option<&str>) -> String {
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
        prose.push_str(ONCE);
    }
    prose
}

/// The secret that was given, by whichever way.
fn chosen_secret(arguments: &SetConfig) -> Result<Option<SigningSecret>, Failure> {
    let from_file = match &arguments.secret_path {
        None => None,
        Some(path) => {
            let bytes = upload::read(path)?;
            let text = std::str::from_utf8(&bytes)
                .map_err(|_| Failure::usage(format!("{} is not text.", path.display())))?;
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
        .map_err(|problem| Failure::usage(format!("{problem}.")))?;
    if secret.is_misleading() {
        eprintln!(
            "attesto: warning: the secret begins with whsec_ and the rest is not base64, so libraries of Standard Webhooks will not take it; its plain bytes sign both headers."
        );
    }
    Ok(Some(secret))
}

/// Which callbacks may be called: never our database. The service also refuses itself; where it listens is not known here.
fn guard(webhooks: &Webhooks, database: &Database) -> Guard {
    Guard::new(webhooks.allow_private).and_never(database.addresses())
}

/// Says now what every delivery would say later. A name that does not resolve yet is only remarked: it may be on its way.
async fn check_callback(url: &str, guard: &Guard, allowed: &AllowList) -> Result<(), Failure> {
    let target = guard
        .target(url, allowed)
        .map_err(|problem| Failure::usage(format!("{problem}.")))?;
    let admitted = guard
        .admit(&target, allowed, &Resolver::system(), RESOLVING)
        .await;
    match admitted {
        Ok(_) => Ok(()),
        Err(Unvetted::Refused(refusal)) => Err(Failure::usage(format!(
            "the callback must not be called: {refusal}. An operator can allow a private network for one tenant (attesto webhook allow); a developer sets WEBHOOK_ALLOW_PRIVATE_CALLBACKS=true, here and for the service."
        ))),
        Err(Unvetted::Lookup(problem)) => {
            let problem = match problem {
                LookupError::Ours => "this machine's resolver does not answer".to_owned(),
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
struct Shown<'a> {
    #[serde(flatten)]
    endpoint: &'a Summary,
    health: Option<history::CallbackRow>,
    /// What was found when it was last connected to without sending anything.
    probe: Option<probe::Found>,
}

async fn get(tenant: &TenantId, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let endpoint = &described(&database, tenant).await?;
    let health = history::store::callback(&database, tenant).await?;
    let probe = probe::store::last(&database, tenant).await?;
    context.output.object(&Shown {
        endpoint,
        health,
        probe,
    })?;
    Ok(())
}

async fn retire(tenant: &TenantId, number: Option<i32>, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let retired = store::retire(&database, tenant, number, NO_LEAD).await?;
    let numbers: Vec<_> = retired.iter().map(ToString::to_string).collect();
    let prose = format!(
        "Retired of {tenant}: secret {}. Nothing is signed with it any more.",
        numbers.join(", secret ")
    );
    let result = json!({ "tenantId": tenant, "retired": retired });
    context.output.sentence(&result, &prose)?;
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownOpening<'a> {
    tenant_id: &'a TenantId,
    network: Opening,
}

async fn allow(
    tenant: &TenantId,
    network: Option<Opening>,
    context: &Context,
) -> Result<(), Failure> {
    let database = context.database().await?;
    let tenant_id = tenant;
    let Some(network) = network else {
        let openings = store::openings(&database, tenant).await?;
        if openings.is_empty() {
            known(&database, tenant).await?;
        }
        let openings = openings
            .into_iter()
            .map(|network| ShownOpening { tenant_id, network });
        let openings: Vec<_> = openings.collect();
        context
            .output
            .rows(&openings, &["network"], "Nothing but public addresses.")?;
        return Ok(());
    };
    if !store::allow(&database, tenant, &network).await? {
        return Err(Failure::refused(format!(
            "{network} is already allowed for {tenant}."
        )));
    }
    let prose = format!("Callbacks of {tenant} may be at {network}.");
    context
        .output
        .sentence(&ShownOpening { tenant_id, network }, &prose)?;
    Ok(())
}

async fn disallow(tenant: &TenantId, network: Opening, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    if !store::disallow(&database, tenant, &network).await? {
        return Err(Failure::refused(format!(
            "{network} is not allowed for {tenant}; `attesto webhook allow {tenant}` lists what is."
        )));
    }
    let prose = format!("Callbacks of {tenant} may be at {network} no more.");
    let result = ShownOpening {
        tenant_id: tenant,
        network,
    };
    context.output.sentence(&result, &prose)?;
    Ok(())
}

/// What `ping` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Echo<'a> {
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

async fn ping(tenant: &TenantId, context: &Context) -> Result<(), Failure> {
    let webhooks = context.settings(Webhooks::read)?;
    let database = context.database().await?;
    let keyring = context.keyring()?;
    let summary = described(&database, tenant).await?;
    let mut endpoints =
        store::for_delivery(&database, &keyring, std::slice::from_ref(tenant), NO_LEAD).await?;
    let endpoint = endpoints
        .remove(tenant)
        .ok_or_else(|| ChangeError::NoEndpoint(tenant.clone()))?
        .map_err(ChangeError::from)?;
    let settings = SenderSettings::new(webhooks.timeout, guard(&webhooks, &database));
    let sender = Sender::new(settings, &context.clock)
        .map_err(|problem| Failure::refused(format!("cannot call anybody: {problem}.")))?;
    let now = context.clock.now();
    let event = EventId::mint(now);
    let attempt = Attempt {
        delivery: DeliveryId::mint(now),
        event: event.clone(),
        word: PING.to_owned(),
        number: 1,
        url: summary.callback_url.clone(),
        body: ping_body(tenant, &event, now).into(),
        secrets: endpoint.secrets,
        allowed: endpoint.allowed,
    };
    let begun = Instant::now();
    let outcome = sender.send(&attempt).await;
    let latency = begun.elapsed();
    let detail = match &outcome {
        Outcome::Delivered { .. } => None,
        Outcome::Refused { detail, .. } | Outcome::NotAttempted { detail, .. } => {
            Some(detail.as_str())
        }
    };
    let echo = Echo {
        tenant_id: tenant,
        event_id: &event,
        callback_url: &summary.callback_url,
        outcome: outcome.class().as_str(),
        status: outcome.code(),
        latency_ms: latency.as_millis(),
        body: outcome.excerpt(),
        detail,
    };
    context.output.object(&echo)?;
    match detail {
        None => Ok(()),
        Some(detail) => Err(Failure::refused(format!(
            "the callback did not take it: {detail}."
        ))),
    }
}

/// The word that both stores' own test notifications have too: a receiver knows already that nothing has happened.
const PING: &str = "test";

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
        event: PING,
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

async fn redeliver(arguments: Redeliver, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let redeliveries = Redeliveries::new(&database, &context.clock);
    let user = context.variable("USER").unwrap_or_default();
    let by = match user.to_string_lossy().as_ref() {
        "" => "attesto webhook redeliver".to_owned(),
        user => format!("attesto webhook redeliver ({user})"),
    };
    let request = Request {
        by,
        reason: arguments.reason,
    };
    let output = &context.output;
    if let Some(event) = arguments.event {
        let tenant = history::store::tenant_of(&database, &event).await?;
        let tenant = tenant.ok_or_else(|| Refused::NoEvent(event.clone()))?;
        if arguments.dry_run {
            let result =
                json!({ "tenantId": tenant, "eventId": event, "count": 1, "dryRun": true });
            let prose = format!("{event} would be delivered again.");
            output.sentence(&result, &prose)?;
            return Ok(());
        }
        let delivery = redeliveries.of_event(&event, &request).await?;
        let result = json!({ "tenantId": tenant, "eventId": event, "deliveryId": delivery });
        let prose = format!("{event} is delivered again: {delivery}.");
        output.sentence(&result, &prose)?;
        return Ok(());
    }
    let tenant = arguments
        .tenant
        .ok_or_else(|| Failure::usage("which event, or which --tenant?"))?;
    known(&database, &tenant).await?;
    let filter = Filter {
        tenant: tenant.clone(),
        status: arguments.status,
        word: arguments.event_type,
        since: arguments.since,
    };
    let found = redeliveries.find(&filter).await?;
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
        output.sentence(&result, &prose)?;
        return Ok(());
    }
    let id = redeliveries.of_all(&filter, &request).await?;
    let result = json!({
        "tenantId": tenant, "count": count, "oldest": oldest, "redeliveryId": id,
    });
    let prose = format!(
        "{count} events are delivered again{since}: {id}. Whoever serves works them off, {} a second.",
        redelivery::RATE
    );
    output.sentence(&result, &prose)?;
    Ok(())
}

async fn stop_redelivery(id: &RedeliveryId, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let redeliveries = Redeliveries::new(&database, &context.clock);
    match redeliveries.stop(id).await? {
        Some(enqueued) => {
            let result = json!({ "redeliveryId": id, "enqueued": enqueued, "stopped": true });
            let prose = format!("{id} is stopped; {enqueued} events had been enqueued by then.");
            context.output.sentence(&result, &prose)?;
            Ok(())
        }
        None => Err(Failure::refused(format!(
            "there is no redelivery {id} that is still going on."
        ))),
    }
}

async fn list_events(listing: &Listing, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let Listing {
        tenant,
        limit,
        status,
    } = listing;
    let events = history::store::events(&database, tenant, *status, *limit).await?;
    if events.is_empty() {
        known(&database, tenant).await?;
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
    context.output.rows(&events, &columns, "No events here.")?;
    Ok(())
}

async fn list_deliveries(listing: &Listing, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let Listing {
        tenant,
        limit,
        status,
    } = listing;
    let deliveries = history::store::deliveries(&database, tenant, *status, None, *limit).await?;
    if deliveries.is_empty() {
        known(&database, tenant).await?;
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
        .rows(&deliveries, &columns, "No deliveries here.")?;
    Ok(())
}

async fn described(database: &Database, tenant: &TenantId) -> Result<Summary, Failure> {
    if let Some(summary) = store::describe(database, tenant, NO_LEAD).await? {
        return Ok(summary);
    }
    known(database, tenant).await?;
    Err(Failure::refused(format!(
        "{tenant} has no webhook configuration: attesto webhook set-config {tenant} --callback-url URL"
    )))
}

/// An empty answer and a mistyped tenant are different answers.
async fn known(database: &Database, tenant: &TenantId) -> Result<(), Failure> {
    match tenants::store::find_tenant(database, tenant).await? {
        Some(_) => Ok(()),
        None => Err(Failure::refused(format!("there is no tenant {tenant}."))),
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a value's parser may fail; this one must not, because the error would show the value"
)]
fn hidden(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

fn opening(text: &str) -> Result<Opening, BadOpening> {
    text.parse()
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Database(error) => error.into(),
            told => Self::refused(format!("{told}.")),
        }
    }
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Database(error) => error.into(),
            newest @ ChangeError::Newest(_) => Self::usage(format!("{newest}.")),
            told => Self::refused(format!("{told}.")),
        }
    }
}
