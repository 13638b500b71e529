//! `attesto tenant`: the teams whose apps Attesto answers for.

use serde::Serialize;

use super::context::{Context, Failure};
use super::moving;
use crate::clock::Timestamp;
use crate::id::TenantId;
use crate::tenants::store::{self, ChangeError};
use crate::tenants::{Name, Tenant};

/// The commands of `attesto tenant`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Create a tenant
    Create {
        /// What people call it, 1 to 200 characters
        #[arg(long)]
        name: Name,
    },
    /// List tenants, newest first
    List,
    /// Refuse a tenant's keys and webhooks from now on, without deleting anything
    Deactivate {
        /// Which: `tenant_…`
        tenant: TenantId,
    },
    /// Let a deactivated tenant in again
    Activate {
        /// Which: `tenant_…`
        tenant: TenantId,
    },
    /// Give a tenant another name
    Rename {
        /// Which: `tenant_…`
        tenant: TenantId,
        /// What people call it from now on, 1 to 200 characters
        #[arg(required_unless_present = "name", conflicts_with = "name")]
        new_name: Option<Name>,
        /// The same, as `tenant create` takes it
        #[arg(long)]
        name: Option<Name>,
    },
    /// Give a tenant limits of its own, or show those it has
    SetLimits {
        /// Which: `tenant_…`
        tenant: TenantId,
        /// Requests a second: a number, or `default` for the service's
        #[arg(long, value_name = "NUMBER|default", value_parser = parse_limit)]
        per_second: Option<Limit>,
        /// Requests at once after a pause: a number, or `default` for the service's
        #[arg(long, value_name = "NUMBER|default", value_parser = parse_limit)]
        burst: Option<Limit>,
    },
    /// Pack a tenant into a sealed file: to move it, or to be able to restore it alone
    Export(moving::Export),
    /// Unpack a tenant that was exported, here or elsewhere
    Import(moving::Import),
}

/// A limit of the tenant's own, or none.
#[derive(Clone, Copy, Debug)]
pub struct Limit(Option<u32>);

fn parse_limit(text: &str) -> Result<Limit, String> {
    const MOST: u32 = 1_000_000;
    if text == "default" {
        return Ok(Limit(None));
    }
    text.parse()
        .ok()
        .filter(|limit| (1..=MOST).contains(limit))
        .map(|limit| Limit(Some(limit)))
        .ok_or_else(|| format!("a whole number from 1 to {MOST}, or `default`"))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewTenant<'a> {
    id: &'a TenantId,
    name: &'a str,
    created_at: Timestamp,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: TenantId,
    name: String,
    is_active: bool,
    created_at: Timestamp,
}

impl From<Tenant> for Shown {
    fn from(tenant: Tenant) -> Self {
        Self {
            id: tenant.id,
            name: tenant.name,
            is_active: tenant.is_active,
            created_at: tenant.created_at,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownLimits {
    id: TenantId,
    /// `null`: the service's own.
    rate_limit_per_second: Option<u32>,
    rate_limit_burst: Option<u32>,
}

/// Runs one of them.
pub async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let now = context.clock.now();
    let output = &context.output;
    match command {
        Command::Create { name } => {
            let tenant = store::create_tenant(&database, &name, now).await?;
            output.sentence(
                &NewTenant {
                    id: &tenant.id,
                    name: &tenant.name,
                    created_at: tenant.created_at,
                },
                &format!(
                    "Created {} ({}).\nNext: attesto key create {}",
                    tenant.id, tenant.name, tenant.id
                ),
            )?;
        }
        Command::List => {
            let tenants = store::list_tenants(&database).await?;
            let tenants: Vec<_> = tenants.into_iter().map(Shown::from).collect();
            output.rows(
                &tenants,
                &["id", "name", "isActive", "createdAt"],
                "No tenants yet. Create one: attesto tenant create --name NAME",
            )?;
        }
        Command::Export(args) => moving::export(args, &database, context).await?,
        Command::Import(args) => moving::import(args, &database, context).await?,
        Command::Deactivate { tenant } => {
            let tenant = Shown::from(store::set_active(&database, &tenant, false, now).await?);
            let prose = format!(
                "Deactivated {} ({}). Its keys are refused from now on.",
                tenant.id, tenant.name
            );
            output.sentence(&tenant, &prose)?;
        }
        Command::Activate { tenant } => {
            let tenant = Shown::from(store::set_active(&database, &tenant, true, now).await?);
            let prose = format!("Activated {} ({}).", tenant.id, tenant.name);
            output.sentence(&tenant, &prose)?;
        }
        Command::Rename {
            tenant,
            new_name,
            name,
        } => {
            let name = new_name
                .or(name)
                .ok_or_else(|| Failure::usage("which name?"))?;
            let tenant = Shown::from(store::rename(&database, &tenant, &name, now).await?);
            let prose = format!("{} is now called {}.", tenant.id, tenant.name);
            output.sentence(&tenant, &prose)?;
        }
        Command::SetLimits {
            tenant: id,
            per_second,
            burst,
        } => {
            let tenant = if per_second.is_none() && burst.is_none() {
                store::find_tenant(&database, &id)
                    .await?
                    .ok_or(ChangeError::NoTenant(id))?
            } else {
                let (per_second, burst) = (per_second.map(|l| l.0), burst.map(|l| l.0));
                store::set_limits(&database, &id, per_second, burst, now).await?
            };
            let words = |limit: Option<u32>| {
                limit.map_or("the service's default".to_owned(), |limit| {
                    limit.to_string()
                })
            };
            let prose = format!(
                "Limits of {}: requests a second: {}; at once after a pause: {}.",
                tenant.id,
                words(tenant.limits.per_second),
                words(tenant.limits.burst),
            );
            output.sentence(
                &ShownLimits {
                    id: tenant.id,
                    rate_limit_per_second: tenant.limits.per_second,
                    rate_limit_burst: tenant.limits.burst,
                },
                &prose,
            )?;
        }
    }
    Ok(())
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Database(error) => error.into(),
            told => Self::refused(format!("{told}.")),
        }
    }
}
