//! `webhook allow` and `webhook disallow`.

use serde::Serialize;

use super::super::context::{CommandContext, CommandError, ensure_tenant_exists};
use crate::base::id::TenantId;
use crate::deliveries::endpoint::store;
use crate::egress::AllowedNetwork;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AllowedNetworkRow<'a> {
    tenant_id: &'a TenantId,
    network: AllowedNetwork,
    /// Whether callbacks there may be called by http too.
    http: bool,
}

impl<'a> AllowedNetworkRow<'a> {
    fn new(tenant_id: &'a TenantId, network: AllowedNetwork) -> Self {
        Self {
            tenant_id,
            network,
            http: network.is_http_allowed(),
        }
    }
}

pub(super) async fn allow_network(
    tenant: &TenantId,
    network: Option<AllowedNetwork>,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let Some(network) = network else {
        let networks = store::list_allowed_networks(&database, tenant).await?;
        if networks.is_empty() {
            ensure_tenant_exists(&database, tenant).await?;
        }
        let networks = networks
            .into_iter()
            .map(|network| AllowedNetworkRow::new(tenant, network));
        let networks: Vec<_> = networks.collect();
        context.output.write_rows(
            &networks,
            &["network", "http"],
            "No private network is allowed.",
        )?;
        return Ok(());
    };
    if !store::allow_network(&database, tenant, &network).await? {
        return Err(CommandError::failed(format!(
            "{network} is already allowed for {tenant}."
        )));
    }
    let schemes = if network.is_http_allowed() {
        "by https and by http"
    } else {
        "by https"
    };
    let prose = format!("Callbacks of {tenant} in {network} are allowed {schemes}.");
    context
        .output
        .write_json_or_text(&AllowedNetworkRow::new(tenant, network), &prose)?;
    Ok(())
}

pub(super) async fn disallow_network(
    tenant: &TenantId,
    network: AllowedNetwork,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    if !store::disallow_network(&database, tenant, &network).await? {
        return Err(CommandError::failed(format!(
            "{network} is not allowed for {tenant}; `attesto webhook allow {tenant}` lists the allowed networks."
        )));
    }
    let prose = format!("Callbacks of {tenant} in {network} are no longer allowed.");
    context
        .output
        .write_json_or_text(&AllowedNetworkRow::new(tenant, network), &prose)?;
    Ok(())
}
