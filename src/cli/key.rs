//! `attesto key`: a tenant's API keys.

use std::io;

use serde_json::json;

use super::context::{CommandContext, CommandError, ensure_tenant_exists};
use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, MalformedIdError, TenantId};
use crate::db::Database;
use crate::tenants::api_key::ApiKeyHash;
use crate::tenants::store;
use crate::tenants::{ApiKeyEnvironment, DisplayName, RawApiKey};

const ONE_TIME_KEY_WARNING: &str = "Store this key now: it is shown only this once.";

/// The commands of `attesto key`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum KeyCommand {
    /// Create an API key for a tenant, and show it once
    #[command(
        after_help = "Examples:\n  attesto key create tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E --name backend\n  attesto key create tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E --name ci --env test"
    )]
    Create {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
        /// Display name, 1 to 200 characters
        #[arg(long)]
        name: Option<DisplayName>,
        /// Environment the key is for
        #[arg(long, value_enum, default_value = "live")]
        env: ApiKeyEnvironment,
    },
    /// List a tenant's API keys, newest first
    List {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
        /// Maximum number of keys
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        /// Number of keys to skip
        #[arg(long, default_value_t = 0)]
        offset: u32,
    },
    /// Revoke an API key, or all of a tenant's, on every replica within a second
    Revoke {
        /// The key's id, `key_…`, as `attesto key list` shows it; not the key itself
        // A `String`, not a `KeyId`: clap repeats a value that it refuses, and that may be the key itself.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        key: Option<String>,
        /// Tenant whose keys are revoked; with --all
        #[arg(long, requires = "all")]
        tenant: Option<TenantId>,
        /// Revoke every key of --tenant that is not revoked yet
        #[arg(long, requires = "tenant")]
        all: bool,
    },
}

pub(crate) async fn run(command: KeyCommand, context: &CommandContext) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let now = context.clock.now();
    let output = &context.output;
    match command {
        KeyCommand::Create { tenant, name, env } => {
            let raw = RawApiKey::generate(env);
            let key =
                store::create_api_key(&database, &tenant, name.as_ref(), env, &raw, now).await?;
            let shown = output.write_one_time_secret(
                &json!({
                    "id": key.id,
                    "tenantId": key.tenant,
                    "keyPrefix": key.prefix,
                    "name": key.name,
                    "rawKey": raw.expose(),
                    "warning": ONE_TIME_KEY_WARNING,
                }),
                &format!(
                    "Created {}:\n\n  {}\n\n{ONE_TIME_KEY_WARNING}",
                    key.id,
                    raw.expose()
                ),
            );
            if let Err(error) = shown {
                return Err(revoke_unshown_key(&database, &key.id, &error, now).await);
            }
        }
        KeyCommand::List {
            tenant,
            limit,
            offset,
        } => {
            let keys = store::list_api_keys(&database, &tenant, limit, offset).await?;
            if keys.is_empty() {
                ensure_tenant_exists(&database, &tenant).await?;
            }
            let columns = [
                "id",
                "keyPrefix",
                "name",
                "environment",
                "lastUsedAt",
                "createdAt",
                "revokedAt",
            ];
            output.write_rows(&keys, &columns, "The tenant has no API keys.")?;
        }
        KeyCommand::Revoke {
            tenant: Some(tenant),
            ..
        } => revoke_tenant_keys(&database, &tenant, context).await?,
        KeyCommand::Revoke { key, .. } => {
            let key = key.ok_or_else(|| {
                CommandError::usage_error(
                    "give a key id: attesto key revoke KEY, or --tenant TENANT --all.",
                )
            })?;
            let key: KeyId = key.parse().map_err(|problem: MalformedIdError| {
                let hint = match ApiKeyHash::from_raw_key(&key) {
                    Some(_) => " This is the key itself, and your shell's history has it now: consider revoking it.",
                    None => "",
                };
                CommandError::usage_error(format!("{problem}. `attesto key list` shows the ids.{hint}"))
            })?;
            let key = store::revoke_api_key(&database, &key, now).await?;
            let prose = format!(
                "Revoked {} ({}…). Every replica refuses it within a second.",
                key.id, key.prefix
            );
            output.write_json_or_text(&key, &prose)?;
        }
    }
    Ok(())
}

/// Revokes a key that could not be shown: it would stay valid, and nothing could use it.
async fn revoke_unshown_key(
    database: &Database,
    key: &KeyId,
    cause: &io::Error,
    now: Timestamp,
) -> CommandError {
    CommandError::failed(match store::revoke_api_key(database, key, now).await {
        Ok(_) => format!(
            "the new key {key} could not be shown ({cause}), so it was revoked: run the command again with an output that can be written."
        ),
        Err(_) => format!(
            "the new key {key} could not be shown ({cause}) and is still valid, because revoking it failed too: attesto key revoke {key}"
        ),
    })
}

async fn revoke_tenant_keys(
    database: &Database,
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let revoked = store::revoke_all_api_keys(database, tenant, context.clock.now()).await?;
    if revoked.is_empty() {
        ensure_tenant_exists(database, tenant).await?;
        return Err(CommandError::failed(format!(
            "all keys of {tenant} are already revoked."
        )));
    }
    let output = &context.output;
    output.write_rows(&revoked, &["id", "keyPrefix", "name", "revokedAt"], "")?;
    output.write_note("\nEvery replica refuses them within a second.")?;
    Ok(())
}
