//! `attesto audit`: the log of verifications, and the log of operators' changes.

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

#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuditCommand {
    /// List a tenant's verifications, newest first; they are recorded while `ENABLE_VALIDATION_AUDIT_LOG` is on
    List(AuditListArgs),
    /// List operators' changes
    #[command(subcommand)]
    Operators(AuditOperatorsCommand),
    /// Verify the hash chain of operators' changes, and find the first broken row
    Verify {
        /// Row that must be in the chain, as an earlier run printed it; without it, the removal of the newest rows is not
        /// detected
        #[arg(long, value_name = "SEQ:HASH", value_parser = parse_chain_head)]
        expect: Option<ChainHead>,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuditOperatorsCommand {
    /// List operators' changes, newest first
    List {
        /// Only changes to this tenant
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Maximum number of rows
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct AuditListArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,
    /// Maximum number of rows
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    /// Only verifications of one purchase: file with its transaction id or purchase token, `-` for standard input
    #[arg(long, value_name = "FILE")]
    identifier_path: Option<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditListRow {
    id: String,
    tenant_id: TenantId,
    source: String,
    /// The hash of the transaction id or purchase token, in hexadecimal.
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
            let text = input_file::read_text(path)?;
            let keyring = context.load_verified_keyring(&database).await?;
            let key = PurchaseHashKey::load(&database, &keyring).await?;
            // Editors append a line end.
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
        "No verifications are recorded. ENABLE_VALIDATION_AUDIT_LOG=true records them from now on.",
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
        .write_rows(&entries, &columns, "No changes yet.")?;
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditChainView {
    valid: bool,
    rows: u64,
    /// Sequence number of the oldest row.
    first: Option<i64>,
    /// `SEQ:HASH` of the last valid row, for `--expect`.
    head: Option<String>,
    /// Sequence number of the first broken row.
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
            "The chain of {} rows is intact. Store this elsewhere, for `--expect`: {head}",
            verified.rows
        ),
        None => "No changes yet.".to_owned(),
    };
    match checked.error {
        None => context.output.write_json_or_text(&verified, &prose)?,
        Some(broken) => {
            context
                .output
                .write_json_or_text(&verified, "The chain is broken.")?;
            return Err(CommandError::from_cause(broken));
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
    parse().ok_or_else(|| "must be <seq>:<hash>, as `attesto audit verify` printed it".to_owned())
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
    fn from(error: HashKeyError) -> Self {
        match error {
            HashKeyError::Database(error) => error.into(),
            sealed @ HashKeyError::CannotOpen(_) => Self::from_cause(sealed),
        }
    }
}
