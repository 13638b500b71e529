//! `attesto audit`: what was asked, and what operators changed.

use std::path::PathBuf;

use serde::Serialize;

use super::context::{Context, Failure};
use super::upload;
use crate::audit::identifier::{HashKey, Identifier, NoHashKey};
use crate::audit::operators::{self, Broken, Head};
use crate::audit::store::{self, Noted};
use crate::clock::Timestamp;
use crate::crypto::token::hex;
use crate::id::TenantId;
use crate::tenants::store::{ChangeError, find_tenant};

/// The commands of `attesto audit`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List a tenant's verifications, newest first; kept while `ENABLE_VALIDATION_AUDIT_LOG` is on
    List(List),
    /// What operators changed
    #[command(subcommand)]
    Operators(Operators),
    /// Follow the chain of what operators changed, and find the first link that does not hold
    Verify {
        /// A row that must be in it, as an earlier run printed it: `SEQ:HASH`. Without one, newest rows that were taken
        /// away are not missed
        #[arg(long, value_name = "SEQ:HASH", value_parser = head)]
        expect: Option<Head>,
    },
}

/// The commands of `attesto audit operators`.
#[derive(Debug, clap::Subcommand)]
pub enum Operators {
    /// List what operators changed, newest first
    List {
        /// Only what belongs to this tenant
        #[arg(long)]
        tenant: Option<TenantId>,
        /// How many at most
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
}

/// Arguments of `list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Whose: the tenant's id
    tenant: TenantId,
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    /// Only those about this purchase: a file that holds its transaction id or purchase token, `-` for standard input
    #[arg(long, value_name = "FILE")]
    identifier_path: Option<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: String,
    tenant_id: TenantId,
    source: String,
    /// In hexadecimal.
    identifier_hash: String,
    valid: bool,
    error_code: Option<String>,
    latency_ms: i32,
    occurred_at: Timestamp,
}

impl Shown {
    fn of(tenant: &TenantId, row: Noted) -> Self {
        Self {
            id: row.id,
            tenant_id: tenant.clone(),
            source: row.source,
            identifier_hash: hex(&row.identifier_hash),
            valid: row.valid,
            error_code: row.error_code,
            latency_ms: row.latency_ms,
            occurred_at: row.occurred_at,
        }
    }
}

/// Runs one of them.
pub async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::List(arguments) => list(&arguments, context).await,
        Command::Operators(Operators::List { tenant, limit }) => {
            operations(tenant.as_ref(), limit, context).await
        }
        Command::Verify { expect } => verify(expect.as_ref(), context).await,
    }
}

async fn list(arguments: &List, context: &Context) -> Result<(), Failure> {
    let List {
        tenant,
        limit,
        identifier_path,
    } = arguments;
    let database = context.database().await?;
    let hash = match identifier_path {
        None => None,
        Some(path) => {
            let bytes = upload::read(path)?;
            let text = std::str::from_utf8(&bytes)
                .map_err(|_| Failure::usage(format!("{} is not text.", path.display())))?;
            let keyring = context.keyring_for(&database).await?;
            let key = HashKey::load(&database, &keyring).await?;
            // An editor's line end is not part of it.
            Some(key.hash(tenant, Identifier::of(text.trim_end())))
        }
    };
    let rows = store::list(&database, tenant, hash.as_deref(), *limit).await?;
    // An empty log and a mistyped tenant are different answers.
    if rows.is_empty() && find_tenant(&database, tenant).await?.is_none() {
        return Err(ChangeError::NoTenant(tenant.clone()).into());
    }
    let rows: Vec<_> = rows.into_iter().map(|row| Shown::of(tenant, row)).collect();
    let columns = [
        "occurredAt",
        "source",
        "valid",
        "errorCode",
        "latencyMs",
        "identifierHash",
    ];
    context.output.rows(
        &rows,
        &columns,
        "No verifications were noted. ENABLE_VALIDATION_AUDIT_LOG=true keeps them from now on.",
    )?;
    Ok(())
}

async fn operations(
    tenant: Option<&TenantId>,
    limit: u32,
    context: &Context,
) -> Result<(), Failure> {
    let database = context.database().await?;
    let entries = store::operations(&database, tenant, limit).await?;
    let columns = [
        "seq",
        "occurredAt",
        "actor",
        "host",
        "command",
        "action",
        "object",
        "target",
        "before",
        "after",
    ];
    context
        .output
        .rows(&entries, &columns, "Nothing was changed yet.")?;
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    valid: bool,
    rows: u64,
    /// The first row that is there.
    first: Option<i64>,
    /// The last row that holds, as `--expect` takes it.
    head: Option<String>,
    /// The first row that does not hold.
    broken_at: Option<i64>,
    problem: Option<String>,
}

async fn verify(expect: Option<&Head>, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let checked = operators::verify(&database, expect).await?;
    let verified = Verified {
        valid: checked.broken.is_none(),
        rows: checked.rows,
        first: checked.first,
        head: checked
            .head
            .map(|head| format!("{}:{}", head.seq, hex(&head.hash))),
        broken_at: checked.broken.map(Broken::seq),
        problem: checked.broken.map(|broken| broken.to_string()),
    };
    let prose = match &verified.head {
        Some(head) => format!(
            "Every link holds: {} rows. Keep this elsewhere, for `--expect`: {head}",
            verified.rows
        ),
        None => "Nothing was changed yet.".to_owned(),
    };
    match checked.broken {
        None => context.output.sentence(&verified, &prose)?,
        Some(broken) => {
            context.output.sentence(&verified, "The chain is broken.")?;
            return Err(Failure::refused(format!("{broken}.")));
        }
    }
    Ok(())
}

fn head(text: &str) -> Result<Head, String> {
    let parse = || {
        let (seq, hash) = text.split_once(':')?;
        let hash = unhex(hash).filter(|hash| hash.len() == 32)?;
        Some(Head {
            seq: seq.parse().ok()?,
            hash,
        })
    };
    parse().ok_or_else(|| "what `attesto audit verify` printed as head: <seq>:<hash>".to_owned())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

impl From<NoHashKey> for Failure {
    fn from(problem: NoHashKey) -> Self {
        match problem {
            NoHashKey::Database(error) => error.into(),
            sealed @ NoHashKey::Sealed(_) => Self::refused(format!("{sealed}.")),
        }
    }
}
