//! `tenant export` and `tenant import`: one tenant in an encrypted file.

use std::path::{Path, PathBuf};

use super::super::context::{CommandContext, CommandError};
use super::super::input_file;
use super::super::progress::ProgressBar;
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::credentials::canary;
use crate::crypto::sealed_file::{
    OpeningSecret, Passphrase, Recipient, RecipientIdentity, SealTarget,
};
use crate::db::Database;
use crate::tenant_transfer::tables::HistoryScope;
use crate::tenant_transfer::{self, ExportReport, ImportOptions, ImportReport, TransferError};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("sealed").required(true).args(["passphrase_path", "recipient"])))]
pub(crate) struct TenantExportArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,
    /// File to write; must not exist
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// File with the passphrase to encrypt with, `-` for standard input; at least 12 characters
    #[arg(long, value_name = "FILE")]
    passphrase_path: Option<PathBuf>,
    /// Recipient to encrypt for: printed by `attesto encryption generate-identity` on the importing installation
    #[arg(long, value_name = "RECIPIENT")]
    recipient: Option<String>,
    /// Export all events and deliveries, not only the undelivered ones and those of the last 7 days
    #[arg(long)]
    with_history: bool,
}

#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own, and any may be combined"
)]
#[command(group(clap::ArgGroup::new("sealed").required(true).args(["passphrase_path", "identity_path"])))]
pub(crate) struct TenantImportArgs {
    /// File that `attesto tenant export` wrote
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// File with the passphrase it was encrypted with, `-` for standard input
    #[arg(long, value_name = "FILE")]
    passphrase_path: Option<PathBuf>,
    /// File with the identity it was encrypted for
    #[arg(long, value_name = "FILE")]
    identity_path: Option<PathBuf>,
    /// Import the tenant as inactive, whatever it was
    #[arg(long)]
    as_inactive: bool,
    /// Import although the tenant exists here: its settings and credentials are replaced by those in the file; missing API
    /// keys and history are added
    #[arg(long)]
    replace: bool,
    /// Import the networks that `attesto webhook allow` allowed; on this installation they may be other networks
    #[arg(long)]
    with_networks: bool,
    /// Run the whole import, and roll it back
    #[arg(long)]
    dry_run: bool,
}

fn read_passphrase(path: &Path) -> Result<Passphrase, CommandError> {
    Passphrase::parse(&input_file::read_text(path)?).map_err(|problem| {
        CommandError::usage_error(to_sentence(format!("{}: {problem}", path.display())))
    })
}

pub(super) async fn export_tenant(
    args: TenantExportArgs,
    database: &Database,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let to = match (&args.passphrase_path, &args.recipient) {
        (Some(path), _) => SealTarget::Passphrase(read_passphrase(path)?),
        (None, Some(recipient)) => {
            let recipient: Recipient = recipient.parse().map_err(|problem| {
                CommandError::usage_error(to_sentence(format!("--recipient: {problem}")))
            })?;
            SealTarget::Recipient(recipient)
        }
        (None, None) => {
            return Err(CommandError::usage_error(
                "give --passphrase-path or --recipient.",
            ));
        }
    };
    let keyring = context.require_keyring()?;
    canary::check_canaries(database, &keyring).await?;
    let history = if args.with_history {
        HistoryScope::Whole
    } else {
        HistoryScope::Needed
    };
    let (tenant, file) = (&args.tenant, &args.file);
    let bar = ProgressBar::for_output(&context.output);
    let report = |done, total, what: &str| bar.draw_progress(done, total, what);
    let exporting =
        tenant_transfer::export_tenant(database, &keyring, tenant, history, &to, file, &report);
    let exported = exporting.await;
    bar.clear();
    let exported = exported?;
    context
        .output
        .write_json_or_text(&exported, &format_export(&exported, file))?;
    if exported.label.is_active {
        eprintln!(
            "attesto: warning: the tenant is active: events that arrive from now on are not in the file, and both installations would send the waiting deliveries. To move it, deactivate it first; docs/moving.md has the steps."
        );
    }
    Ok(())
}

fn format_export(exported: &ExportReport, file: &Path) -> String {
    let rows: u64 = exported.rows.values().sum();
    format!(
        "Exported {} ({}) as of {}: {rows} rows, of which {} are waiting deliveries, to {} ({} bytes), encrypted for {}.\nSHA-256: {}",
        exported.label.tenant,
        exported.label.name,
        exported.label.exported_at,
        exported.waiting,
        file.display(),
        exported.bytes,
        exported.sealed_for,
        exported.sha256,
    )
}

pub(super) async fn import_tenant(
    args: TenantImportArgs,
    database: &Database,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let with = match (&args.passphrase_path, &args.identity_path) {
        (Some(path), _) => OpeningSecret::Passphrase(read_passphrase(path)?),
        (None, Some(path)) => {
            let identity = RecipientIdentity::parse(&input_file::read_text(path)?);
            let identity = identity.map_err(|problem| {
                CommandError::usage_error(to_sentence(format!("{}: {problem}", path.display())))
            })?;
            OpeningSecret::Identity(identity)
        }
        (None, None) => {
            return Err(CommandError::usage_error(
                "give --passphrase-path or --identity-path.",
            ));
        }
    };
    let keyring = if args.dry_run {
        let keyring = context.require_keyring()?;
        canary::check_canaries(database, &keyring).await?;
        keyring
    } else {
        context.load_verified_keyring(database).await?
    };
    let options = ImportOptions {
        as_inactive: args.as_inactive,
        replace: args.replace,
        with_networks: args.with_networks,
        dry_run: args.dry_run,
    };
    let imported =
        tenant_transfer::import_tenant(database, &keyring, &args.file, &with, options).await?;
    context
        .output
        .write_json_or_text(&imported, &format_import(&imported))?;
    Ok(())
}

fn format_import(imported: &ImportReport) -> String {
    let label = &imported.label;
    let rows: Vec<_> = imported
        .rows
        .iter()
        .filter(|(_, rows)| **rows > 0)
        .map(|(table, rows)| format!("  {table}: {rows}\n"))
        .collect();
    let kept: u64 = imported.kept.values().sum();
    let verb = if imported.dry_run {
        "Would import (nothing was written)"
    } else {
        "Imported"
    };
    let superseded = if imported.superseded == 0 {
        String::new()
    } else {
        format!(
            " {} deliveries were skipped: their events exist here under other ids, with deliveries of their own.",
            imported.superseded
        )
    };
    let abandoned = match imported.abandoned {
        0 => String::new(),
        count => format!(
            " {count} deliveries that waited are marked as failed, because the file does not have their callback."
        ),
    };
    let networks = match imported.networks.as_slice() {
        [] => String::new(),
        all if imported.networks_opened => {
            format!("Networks allowed for its callback: {}\n", all.join(", "))
        }
        all => format!(
            "Networks not allowed for its callback, because --with-networks was not given: {}\n",
            all.join(", ")
        ),
    };
    let next = if imported.active {
        String::new()
    } else {
        format!(
            "\nIt is inactive. When its backend and the stores use this installation: attesto tenant activate {}",
            label.tenant
        )
    };
    format!(
        "{verb} {} ({}) as of {}:\n{}{kept} rows existed already.{superseded}{abandoned} {} deliveries are waiting.\n{networks}SHA-256 of the file: {}{next}",
        label.tenant,
        label.name,
        label.exported_at,
        rows.concat(),
        imported.waiting,
        imported.sha256,
    )
}

impl From<TransferError> for CommandError {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Database(error) => error.into(),
            error => Self::from_cause(error),
        }
    }
}
