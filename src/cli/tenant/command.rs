//! The commands of `attesto tenant`.

use serde_json::json;

use super::super::context::{CommandContext, CommandError};
use super::transfer;
use crate::base::id::TenantId;
use crate::db::Database;
use crate::stores::shared::first_seen::setting;
use crate::tenants::DisplayName;
use crate::tenants::store::{self, LimitChanges, TenantChangeError};

/// The commands of `attesto tenant`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TenantCommand {
    /// Create a tenant
    #[command(after_help = "Examples:\n  attesto tenant create --name Acme")]
    Create {
        /// Display name, 1 to 200 characters
        #[arg(long)]
        name: DisplayName,
    },
    /// List tenants, newest first
    List,
    /// Deactivate a tenant: its API keys and notifications are refused, nothing is deleted
    Deactivate {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
    },
    /// Activate a deactivated tenant
    Activate {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
    },
    /// Rename a tenant
    Rename {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
        /// New display name, 1 to 200 characters
        #[arg(required_unless_present = "name", conflicts_with = "name")]
        new_name: Option<DisplayName>,
        /// The same as `NEW_NAME`
        #[arg(long)]
        name: Option<DisplayName>,
    },
    /// Set a tenant's limits, or show them when none is given
    SetLimits {
        /// The tenant's id, `tenant_…`
        tenant: TenantId,
        /// Requests per second: a number, or `default` for the service's setting
        #[arg(long, value_name = "NUMBER|default", value_parser = parse_limit)]
        per_second: Option<LimitOverride>,
        /// Requests in one burst: a number, or `default` for the service's setting
        #[arg(long, value_name = "NUMBER|default", value_parser = parse_limit)]
        burst: Option<LimitOverride>,
        /// Notifications that are taken in per minute: a number, or `default` for the service's setting
        #[arg(long, value_name = "NUMBER|default", value_parser = parse_limit)]
        intake_events: Option<LimitOverride>,
        /// Megabytes of notifications per minute: a number, or `default` for the service's setting
        #[arg(long, value_name = "NUMBER|default", value_parser = parse_limit)]
        intake_megabytes: Option<LimitOverride>,
    },
    /// Say in verify answers whether a purchase was verified before for another user, or stop it and forget what was seen
    SetFirstSeen(SetFirstSeenArgs),
    /// Export a tenant into an encrypted file, to move or to restore it
    Export(transfer::TenantExportArgs),
    /// Import a tenant from the file that `tenant export` wrote
    Import(transfer::TenantImportArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto tenant set-first-seen tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E on"
)]
pub(crate) struct SetFirstSeenArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,
    /// Whether answers say it
    #[arg(value_enum)]
    switch: Switch,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    /// It is done
    On,
    /// It is not done
    Off,
}

/// `None`: the service's setting applies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LimitOverride(Option<u32>);

fn parse_limit(text: &str) -> Result<LimitOverride, String> {
    const MAX_LIMIT: u32 = 1_000_000;
    if text == "default" {
        return Ok(LimitOverride(None));
    }
    text.parse()
        .ok()
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .map(|limit| LimitOverride(Some(limit)))
        .ok_or_else(|| format!("must be a whole number from 1 to {MAX_LIMIT}, or `default`"))
}

pub(crate) async fn run(
    command: TenantCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let now = context.clock.now();
    let output = &context.output;
    match command {
        TenantCommand::Create { name } => {
            let tenant = store::create_tenant(&database, &name, now).await?;
            output.write_json_or_text(
                &json!({ "id": tenant.id, "name": tenant.name, "createdAt": tenant.created_at }),
                &format!(
                    "Created {} ({}).\nNext: attesto key create {}",
                    tenant.id, tenant.name, tenant.id
                ),
            )?;
        }
        TenantCommand::List => {
            let tenants = store::list_tenants(&database).await?;
            output.write_rows(
                &tenants,
                &["id", "name", "isActive", "createdAt"],
                "No tenants yet. Create one: attesto tenant create --name NAME",
            )?;
        }
        TenantCommand::Export(args) => transfer::export_tenant(args, &database, context).await?,
        TenantCommand::Import(args) => transfer::import_tenant(args, &database, context).await?,
        TenantCommand::Deactivate { tenant } => {
            let tenant = store::set_tenant_active(&database, &tenant, false, now).await?;
            let prose = format!(
                "Deactivated {} ({}). Its API keys and notifications are refused from now on.",
                tenant.id, tenant.name
            );
            output.write_json_or_text(&tenant, &prose)?;
        }
        TenantCommand::Activate { tenant } => {
            let tenant = store::set_tenant_active(&database, &tenant, true, now).await?;
            let prose = format!("Activated {} ({}).", tenant.id, tenant.name);
            output.write_json_or_text(&tenant, &prose)?;
        }
        TenantCommand::Rename {
            tenant,
            new_name,
            name,
        } => {
            let name = new_name.or(name).ok_or_else(|| {
                CommandError::usage_error(
                    "give the new name: attesto tenant rename TENANT NEW_NAME.",
                )
            })?;
            let tenant = store::rename_tenant(&database, &tenant, &name, now).await?;
            let prose = format!("{} is now called {}.", tenant.id, tenant.name);
            output.write_json_or_text(&tenant, &prose)?;
        }
        TenantCommand::SetFirstSeen(args) => set_first_seen(args, &database, context).await?,
        TenantCommand::SetLimits {
            tenant: id,
            per_second,
            burst,
            intake_events,
            intake_megabytes,
        } => {
            let changes = LimitChanges {
                per_second: per_second.map(|limit| limit.0),
                burst: burst.map(|limit| limit.0),
                intake_events: intake_events.map(|limit| limit.0),
                intake_megabytes: intake_megabytes.map(|limit| limit.0),
            };
            let tenant = if changes == LimitChanges::default() {
                store::find_tenant(&database, &id)
                    .await?
                    .ok_or(TenantChangeError::TenantNotFound(id))?
            } else {
                store::set_limits(&database, &id, changes, now).await?
            };
            let words = |limit: Option<u32>| {
                limit.map_or("the service's setting".to_owned(), |limit| {
                    limit.to_string()
                })
            };
            let prose = format!(
                "Limits of {}: requests per second: {}; requests in one burst: {}; notifications per minute: {}; megabytes of notifications per minute: {}.",
                tenant.id,
                words(tenant.limits.per_second),
                words(tenant.limits.burst),
                words(tenant.intake.events_per_minute),
                words(tenant.intake.megabytes_per_minute),
            );
            output.write_json_or_text(
                // `null`: the service's setting applies.
                &json!({
                    "id": tenant.id,
                    "rateLimitPerSecond": tenant.limits.per_second,
                    "rateLimitBurst": tenant.limits.burst,
                    "intakeEventsPerMinute": tenant.intake.events_per_minute,
                    "intakeMegabytesPerMinute": tenant.intake.megabytes_per_minute,
                }),
                &prose,
            )?;
        }
    }
    Ok(())
}

async fn set_first_seen(
    args: SetFirstSeenArgs,
    database: &Database,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let tenant = &args.tenant;
    let (view, prose) = match args.switch {
        Switch::On => {
            let keyring = context.load_verified_keyring(database).await?;
            setting::enable(database, &keyring, tenant).await?;
            (
                json!({ "id": tenant, "firstSeen": true }),
                format!(
                    "Verify answers of {tenant} say from now on when a purchase was verified before for another user."
                ),
            )
        }
        Switch::Off => {
            let removed = setting::disable(database, tenant).await?;
            (
                json!({ "id": tenant, "firstSeen": false, "removed": removed }),
                format!(
                    "Verify answers of {tenant} no longer say whether a purchase was verified before. Forgot {removed} purchases."
                ),
            )
        }
    };
    Ok(context.output.write_json_or_text(&view, &prose)?)
}

impl From<TenantChangeError> for CommandError {
    fn from(error: TenantChangeError) -> Self {
        match error {
            TenantChangeError::Database(error) => error.into(),
            error => Self::from_cause(error),
        }
    }
}
