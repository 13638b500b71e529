//! The commands of `attesto webhook`.

use super::super::context::{CommandContext, CommandError};
use super::callbacks::{self, AddCallbackArgs, RemoveCallbackArgs, SetFilterArgs};
use super::config::{self, SetWebhookArgs};
use super::history::{self, HistoryListArgs};
use super::networks;
use super::ping;
use super::redelivery::{self, RedeliverArgs};
use super::show::{self, ShowEventArgs};
use super::signature::{self, VerifySignatureArgs};
use crate::base::id::{CallbackNumber, RedeliveryId, TenantId};
use crate::egress::{AllowedNetwork, AllowedNetworkError};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum WebhookCommand {
    /// Set a tenant's callback URL and signing secret
    SetConfig(SetWebhookArgs),
    /// Show a tenant's webhook configuration without its secrets
    Get {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
        /// Number of the callback in `webhook list`
        #[arg(long, value_name = "N", default_value_t)]
        callback: CallbackNumber,
    },
    /// Add a callback, which is sent events beside those that the tenant has
    Add(AddCallbackArgs),
    /// List a tenant's callbacks
    List {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
    },
    /// Change which events a callback is sent
    SetFilter(SetFilterArgs),
    /// Remove a callback with its secrets
    Remove(RemoveCallbackArgs),
    /// Retire previous signing secrets now, for example after a leak
    RetireSecret {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
        /// Number of the secret in `webhook get` [default: all but the newest]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        number: Option<i32>,
        /// Number of the callback in `webhook list`
        #[arg(long, value_name = "N", default_value_t)]
        callback: CallbackNumber,
    },
    /// Allow a tenant's callback in a private network, or list the allowed networks
    Allow {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
        /// Network and port, such as 10.1.0.0/16:443 [default: list the allowed networks]
        #[arg(value_parser = parse_network)]
        network: Option<AllowedNetwork>,
        /// Allow http:// there too, without TLS: what is sent is signed, and can be read on the way
        #[arg(long, requires = "network")]
        http: bool,
    },
    /// Remove a network that `webhook allow` added
    Disallow {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
        /// Network and port, as `webhook allow` lists them
        #[arg(value_parser = parse_network)]
        network: AllowedNetwork,
    },
    /// Send a signed test event to the callback now and show its answer; stores nothing
    Ping {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
        /// Number of the callback in `webhook list`
        #[arg(long, value_name = "N", default_value_t)]
        callback: CallbackNumber,
    },
    /// Check a delivery's signature as a receiver does, and explain a mismatch; needs no database
    VerifySignature(VerifySignatureArgs),
    /// Redeliver one event, or all events that match a filter
    Redeliver(RedeliverArgs),
    /// Stop a running redelivery; events it has not reached are not sent
    StopRedelivery {
        /// The redelivery's id, `red_…`, as `webhook redeliver` printed it
        redelivery: RedeliveryId,
    },
    /// List a tenant's events, newest first
    #[command(
        after_help = "Examples:\n  attesto webhook list-events tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E --status failed"
    )]
    ListEvents(HistoryListArgs),
    /// Show an event as the callback is sent it, or as the store sent it
    #[command(
        after_help = "Examples:\n  attesto webhook show evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E\n  attesto webhook show evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E --raw > notification.json"
    )]
    Show(ShowEventArgs),
    /// List a tenant's deliveries, newest first
    ListDeliveries(HistoryListArgs),
}

pub(crate) async fn run(
    command: WebhookCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        WebhookCommand::SetConfig(arguments) => {
            config::set_webhook_config(arguments, context).await
        }
        WebhookCommand::Get { tenant, callback } => {
            config::get_webhook(&tenant, callback, context).await
        }
        WebhookCommand::Add(arguments) => callbacks::add_callback(arguments, context).await,
        WebhookCommand::List { tenant } => callbacks::list_callbacks(&tenant, context).await,
        WebhookCommand::SetFilter(arguments) => callbacks::set_filter(arguments, context).await,
        WebhookCommand::Remove(arguments) => callbacks::remove_callback(&arguments, context).await,
        WebhookCommand::RetireSecret {
            tenant,
            number,
            callback,
        } => config::retire_secrets(&tenant, callback, number, context).await,
        WebhookCommand::Allow {
            tenant,
            network,
            http,
        } => {
            let network = network.map(|network| network.with_http(http));
            networks::allow_network(&tenant, network, context).await
        }
        WebhookCommand::Disallow { tenant, network } => {
            networks::disallow_network(&tenant, network, context).await
        }
        WebhookCommand::Ping { tenant, callback } => {
            ping::ping_callback(&tenant, callback, context).await
        }
        WebhookCommand::VerifySignature(arguments) => signature::run(arguments, context),
        WebhookCommand::Redeliver(arguments) => {
            redelivery::redeliver_events(arguments, context).await
        }
        WebhookCommand::StopRedelivery { redelivery: id } => {
            redelivery::stop_redelivery(&id, context).await
        }
        WebhookCommand::ListEvents(listing) => history::list_events(&listing, context).await,
        WebhookCommand::Show(arguments) => show::show_event(&arguments, context).await,
        WebhookCommand::ListDeliveries(listing) => {
            history::list_deliveries(&listing, context).await
        }
    }
}

fn parse_network(text: &str) -> Result<AllowedNetwork, AllowedNetworkError> {
    text.parse()
}
