//! `attesto audit`: what was asked, and what operators changed.

use std::path::PathBuf;

use serde::Serialize;

use super::context::{CommandContext, CommandError, ensure_tenant_exists};
use super::input_file;
use crate::audit::operator_audit::{self, AuditChainError, ChainHead};
use crate::audit::purchase_hash::{HashKeyError, PurchaseDigest, PurchaseHashKey};
use crate::audit::store::{self, LoggedVerification};
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::crypto::token::encode_hex;

/// The commands of `attesto audit`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuditCommand {
    /// List a tenant's verifications, newest first; kept while `ENABLE_VALIDATION_AUDIT_LOG` is on
    List(AuditListArgs),
    /// What operators changed
    #[command(subcommand)]
    Operators(AuditOperatorsCommand),
    /// Follow the chain of what operators changed, and find the first link that does not hold
    Verify {
        /// A row that must be in it, as an earlier run printed it: `SEQ:HASH`. Without one, newest rows that were taken
        /// away are not missed
        #[arg(long, value_name = "SEQ:HASH", value_parser = parse_chain_head)]
        expect: Option<ChainHead>,
    },
}

/// The commands of `attesto audit operators`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuditOperatorsCommand {
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
pub(crate) struct AuditListArgs {
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
struct AuditListRow {
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

impl AuditListRow {
    fn new(tenant: &TenantId, row: LoggedVerification) -> Self {
        Self {
            id: row.id,
            tenant_id: tenant.clone(),
            source: row.source,
            identifier_hash: encode_hex(&row.identifier_hash),
            valid: row.valid,
            error_code: row.error_code,
            latency_ms: row.latency_ms,
            occurred_at: row.occurred_at,
        }
    }
}

/// Runs one of them.
pub(crate) async fn run(
    command: AuditCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        AuditCommand::List(arguments) => list_verifications(&arguments, context).await,
        AuditCommand::Operators(AuditOperatorsCommand::List { tenant, limit }) => {
            list_operator_changes(tenant.as_ref(), limit, context).await
        }
        AuditCommand::Verify { expect } => verify_audit_chain(expect.as_ref(), context).await,
    }
}

async fn list_verifications(
    arguments: &AuditListArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let AuditListArgs {
        tenant,
        limit,
        identifier_path,
    } = arguments;
    let database = context.open_database().await?;
    let hash = match identifier_path {
        None => None,
        Some(path) => {
            let bytes = input_file::read_file_or_stdin(path)?;
            let text = std::str::from_utf8(&bytes).map_err(|_| {
                CommandError::usage_error(format!("{} is not text.", path.display()))
            })?;
            let keyring = context.load_verified_keyring(&database).await?;
            let key = PurchaseHashKey::load(&database, &keyring).await?;
            // An editor's line end is not part of it.
            Some(key.hash_purchase(tenant, PurchaseDigest::from_identifier(text.trim_end())))
        }
    };
    let rows = store::list_verifications(&database, tenant, hash.as_deref(), *limit).await?;
    if rows.is_empty() {
        ensure_tenant_exists(&database, tenant).await?;
    }
    let rows: Vec<_> = rows
        .into_iter()
        .map(|row| AuditListRow::new(tenant, row))
        .collect();
    let columns = [
        "occurredAt",
        "source",
        "valid",
        "errorCode",
        "latencyMs",
        "identifierHash",
    ];
    context.output.write_rows(
        &rows,
        &columns,
        "No verifications were noted. ENABLE_VALIDATION_AUDIT_LOG=true keeps them from now on.",
    )?;
    Ok(())
}

async fn list_operator_changes(
    tenant: Option<&TenantId>,
    limit: u32,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let entries = store::list_operator_audit(&database, tenant, limit).await?;
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
        .write_rows(&entries, &columns, "Nothing was changed yet.")?;
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditChainView {
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

async fn verify_audit_chain(
    expect: Option<&ChainHead>,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let checked = operator_audit::verify_chain(&database, expect).await?;
    let verified = AuditChainView {
        valid: checked.error.is_none(),
        rows: checked.rows,
        first: checked.first_seq,
        head: checked
            .head
            .map(|head| format!("{}:{}", head.seq, encode_hex(&head.hash))),
        broken_at: checked.error.map(AuditChainError::seq),
        problem: checked.error.map(|broken| broken.to_string()),
    };
    let prose = match &verified.head {
        Some(head) => format!(
            "Every link holds: {} rows. Keep this elsewhere, for `--expect`: {head}",
            verified.rows
        ),
        None => "Nothing was changed yet.".to_owned(),
    };
    match checked.error {
        None => context.output.write_json_or_text(&verified, &prose)?,
        Some(broken) => {
            context
                .output
                .write_json_or_text(&verified, "The chain is broken.")?;
            return Err(CommandError::failed(format!("{broken}.")));
        }
    }
    Ok(())
}

fn parse_chain_head(text: &str) -> Result<ChainHead, String> {
    let parse = || {
        let (seq, hash) = text.split_once(':')?;
        let hash = decode_hex(hash).filter(|hash| hash.len() == 32)?;
        Some(ChainHead {
            seq: seq.parse().ok()?,
            hash,
        })
    };
    parse().ok_or_else(|| "what `attesto audit verify` printed as head: <seq>:<hash>".to_owned())
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

impl From<HashKeyError> for CommandError {
    fn from(problem: HashKeyError) -> Self {
        match problem {
            HashKeyError::Database(error) => error.into(),
            sealed @ HashKeyError::CannotOpen(_) => Self::failed(format!("{sealed}.")),
        }
    }
}
