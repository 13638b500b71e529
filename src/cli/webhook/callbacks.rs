//! `webhook add`, `webhook list`, `webhook set-filter` and `webhook remove`.

use std::path::PathBuf;

use serde_json::json;

use super::super::context::{CommandContext, CommandError, ensure_tenant_exists};
use super::config::{WebhookView, check_callback_url, read_given_secret, show_configured};
use crate::base::id::{CallbackNumber, TenantId};
use crate::config::groups::WebhookSettings;
use crate::deliveries::endpoint::callbacks::store::{self, RemovalError};
use crate::deliveries::endpoint::{
    CallbackFilter, CallbackFilterChange, CallbackKind, NewEndpoint, SecretChange,
};
use crate::events::{EventEnvironment, EventSource, EventType};

/// The word that takes a filter away.
const ALL: &str = "all";

/// Which events a callback is sent.
#[derive(Debug, Default, clap::Args)]
struct FilterArgs {
    /// Only events of this type, such as subscription.renewed, or subscription.* for all that begin so; can be given several times
    #[arg(long = "event", value_name = "TYPE", value_delimiter = ',', value_parser = parse_event_filter)]
    events: Vec<String>,

    /// Only events from this store, apple or google
    #[arg(long = "source", value_name = "STORE", value_delimiter = ',', value_parser = parse_source_filter)]
    sources: Vec<String>,

    /// Only events of this environment, production or sandbox; events whose environment is not known are sent all the same
    #[arg(long = "environment", value_name = "ENVIRONMENT", value_delimiter = ',', value_parser = parse_environment_filter)]
    environments: Vec<String>,
}

impl FilterArgs {
    /// `all` beside other words means all too.
    fn into_change(self) -> CallbackFilterChange {
        let list = |words: Vec<String>| {
            if words.iter().any(|word| word == ALL) {
                return Some(Vec::new());
            }
            (!words.is_empty()).then_some(words)
        };
        CallbackFilterChange {
            events: list(self.events),
            sources: list(self.sources),
            environments: list(self.environments),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto webhook add tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E https://crm.example.com/attesto --event subscription.*\n  attesto webhook add tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E https://other.example.com/apple --kind raw --source apple"
)]
pub(crate) struct AddCallbackArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// URL of the callback, https://…
    #[arg(value_name = "URL")]
    callback_url: String,

    /// What it is sent
    #[arg(long, value_enum, default_value_t)]
    kind: CallbackKind,

    #[command(flatten)]
    filter: FilterArgs,

    /// File with its signing secret, `-` for standard input [default: a generated one, printed once]
    #[arg(long, value_name = "FILE")]
    secret_path: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto webhook set-filter tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E --callback 2 --event product.*,subscription.refunded\n  attesto webhook set-filter tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E --callback 2 --event all"
)]
pub(crate) struct SetFilterArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Number of the callback in `webhook list`
    #[arg(long, value_name = "N", default_value_t)]
    callback: CallbackNumber,

    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RemoveCallbackArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Number of the callback in `webhook list`; callback 1 cannot be removed
    #[arg(long, value_name = "N")]
    callback: CallbackNumber,

    /// Give up the deliveries that wait for it: they are marked as failed
    #[arg(long)]
    abandon_waiting: bool,
}

pub(super) async fn add_callback(
    arguments: AddCallbackArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let secret = read_given_secret(arguments.secret_path.as_deref(), None)?;
    let webhooks = context.read_settings(WebhookSettings::from_raw)?;
    let database = context.open_database().await?;
    let keyring = context.load_verified_keyring(&database).await?;
    let tenant = &arguments.tenant;
    ensure_tenant_exists(&database, tenant).await?;
    check_callback_url(&arguments.callback_url, &webhooks, &database, tenant).await?;
    let filter = arguments.filter.into_change();
    let new = NewEndpoint {
        callback_url: &arguments.callback_url,
        kind: arguments.kind,
        filter: CallbackFilter {
            events: filter.events.unwrap_or_default(),
            sources: filter.sources.unwrap_or_default(),
            environments: filter.environments.unwrap_or_default(),
        },
        secret: secret.as_ref(),
        is_active: true,
    };
    let (callback, changed) = store::add_endpoint(&database, &keyring, tenant, &new).await?;
    show_configured(&database, tenant, callback, &changed, None, context).await
}

pub(super) async fn list_callbacks(
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let mut callbacks = Vec::new();
    for callback in store::list_callback_numbers(&database, tenant).await? {
        callbacks.push(WebhookView::load(&database, tenant, callback).await?);
    }
    if callbacks.is_empty() {
        ensure_tenant_exists(&database, tenant).await?;
    }
    let columns = [
        "callback",
        "kind",
        "callbackUrl",
        "isActive",
        "events",
        "sources",
        "environments",
        "health.state",
        "health.pending",
        "health.lastError",
    ];
    context
        .output
        .write_rows(&callbacks, &columns, "No callbacks.")?;
    Ok(())
}

pub(super) async fn set_filter(
    arguments: SetFilterArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let change = arguments.filter.into_change();
    if change == CallbackFilterChange::default() {
        return Err(CommandError::usage_error(
            "give at least one of --event, --source and --environment; `all` takes a filter away.",
        ));
    }
    let database = context.open_database().await?;
    let (tenant, callback) = (&arguments.tenant, arguments.callback);
    store::change_filter(&database, tenant, callback, &change).await?;
    let unchanged = SecretChange::Unchanged;
    show_configured(&database, tenant, callback, &unchanged, None, context).await
}

pub(super) async fn remove_callback(
    arguments: &RemoveCallbackArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let (tenant, callback) = (&arguments.tenant, arguments.callback);
    let removed =
        store::remove_endpoint(&database, tenant, callback, arguments.abandon_waiting).await;
    let abandoned = removed.map_err(|error| match error {
        RemovalError::Database(error) => error.into(),
        RemovalError::FirstCallback(_) => CommandError::from_usage_cause(error),
        error => CommandError::from_cause(error),
    })?;
    let result = json!({ "tenantId": tenant, "callback": callback, "abandoned": abandoned });
    let prose = match abandoned {
        0 => format!("Removed callback {callback} of {tenant}. No delivery waited for it."),
        count => format!(
            "Removed callback {callback} of {tenant}. {count} deliveries that waited for it are marked as failed."
        ),
    };
    context.output.write_json_or_text(&result, &prose)?;
    Ok(())
}

/// A type of events, the first part of one with `.*` behind it, or `all`.
fn parse_event_filter(text: &str) -> Result<String, String> {
    let is_known = EventType::ALL.iter().any(|event| {
        let event = event.as_str();
        let family = event.split_once('.').map(|(family, _)| family);
        event == text || (family.is_some() && text.strip_suffix(".*") == family)
    });
    if is_known || text == ALL {
        return Ok(text.to_owned());
    }
    Err("it is not the type of an event, such as subscription.renewed or subscription.*: docs/events.md lists them".to_owned())
}

fn parse_source_filter(text: &str) -> Result<String, String> {
    let is_known = text == ALL || text.parse::<EventSource>().is_ok();
    let known = is_known.then(|| text.to_owned());
    known.ok_or_else(|| "must be apple, google or all".to_owned())
}

fn parse_environment_filter(text: &str) -> Result<String, String> {
    let is_known = text == ALL || text.parse::<EventEnvironment>().is_ok();
    let known = is_known.then(|| text.to_owned());
    known.ok_or_else(|| "must be production, sandbox or all".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_events_that_exist() {
        for good in ["subscription.renewed", "subscription.*", "test", "all"] {
            assert_eq!(parse_event_filter(good).as_deref(), Ok(good));
        }
        for bad in [
            "subscription",
            "subscription.renewd",
            "*",
            "test.*",
            ".*",
            "unknown.*",
        ] {
            assert!(parse_event_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_takes_a_filter_away_and_nothing_keeps_it() {
        let args = FilterArgs {
            events: vec!["test".to_owned(), ALL.to_owned()],
            sources: vec!["apple".to_owned()],
            environments: Vec::new(),
        };
        let change = args.into_change();
        assert_eq!(change.events, Some(Vec::new()));
        assert_eq!(change.sources, Some(vec!["apple".to_owned()]));
        assert_eq!(change.environments, None);
    }
}
