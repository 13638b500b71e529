//! The commands of `attesto webhook`.

use super::super::context::{CommandContext, CommandError};
use super::config::{self, SetWebhookArgs};
use super::history::{self, HistoryListArgs};
use super::networks;
use super::ping;
use super::redelivery::{self, RedeliverArgs};
use super::signature::{self, VerifySignatureArgs};
use crate::base::id::{RedeliveryId, TenantId};
use crate::egress::{AllowedNetwork, AllowedNetworkError};

/// The commands of `attesto webhook`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum WebhookCommand {
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
    VerifySignature(VerifySignatureArgs),
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

/// Runs one of them.
pub(crate) async fn run(
    command: WebhookCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        WebhookCommand::SetConfig(arguments) => {
            config::set_webhook_config(arguments, context).await
        }
        WebhookCommand::Get { tenant } => config::get_webhook(&tenant, context).await,
        WebhookCommand::RetireSecret { tenant, number } => {
            config::retire_secrets(&tenant, number, context).await
        }
        WebhookCommand::Allow { tenant, network } => {
            networks::allow_network(&tenant, network, context).await
        }
        WebhookCommand::Disallow { tenant, network } => {
            networks::disallow_network(&tenant, network, context).await
        }
        WebhookCommand::Ping { tenant } => ping::ping_callback(&tenant, context).await,
        WebhookCommand::VerifySignature(arguments) => signature::run(arguments, context),
        WebhookCommand::Redeliver(arguments) => {
            redelivery::redeliver_events(arguments, context).await
        }
        WebhookCommand::StopRedelivery { redelivery: id } => {
            redelivery::stop_redelivery(&id, context).await
        }
        WebhookCommand::ListEvents(listing) => history::list_events(&listing, context).await,
        WebhookCommand::ListDeliveries(listing) => {
            history::list_deliveries(&listing, context).await
        }
    }
}

fn parse_network(text: &str) -> Result<AllowedNetwork, AllowedNetworkError> {
    text.parse()
}
