//! `attesto tenant export` and `import`: one tenant in a sealed file.

use std::path::{Path, PathBuf};

use super::super::context::{CommandContext, CommandError};
use super::super::input_file;
use crate::base::id::TenantId;
use crate::credentials::canary;
use crate::crypto::sealed_file::{
    OpeningSecret, Passphrase, Recipient, RecipientIdentity, SealTarget,
};
use crate::db::Database;
use crate::tenant_transfer::tables::HistoryScope;
use crate::tenant_transfer::{self, ExportReport, ImportOptions, ImportReport, TransferError};

/// The arguments of `tenant export`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("sealed").required(true).args(["passphrase_file", "recipient"])))]
pub(crate) struct TenantExportArgs {
    /// Which: `tenant_…`
    tenant: TenantId,
    /// The file to write; never over another one
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Seal it under the passphrase in this file, or on standard input when it is `-`; at least 12 characters
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Seal it for this recipient: what `attesto encryption generate-identity` printed where it is to be imported
    #[arg(long, value_name = "RECIPIENT")]
    recipient: Option<String>,
    /// Take along every event and delivery, not only those that are not delivered or of the last 7 days
    #[arg(long)]
    with_history: bool,
}

/// The arguments of `tenant import`.
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own, and they go with each other in any way"
)]
#[command(group(clap::ArgGroup::new("sealed").required(true).args(["passphrase_file", "identity_file"])))]
pub(crate) struct TenantImportArgs {
    /// What `attesto tenant export` wrote
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The passphrase it was sealed under is in this file, or on standard input when it is `-`
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The identity it was sealed for is in this file
    #[arg(long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
    /// Leave the tenant inactive, whatever it was
    #[arg(long)]
    as_inactive: bool,
    /// Also when the tenant is here: its settings and credentials become those of the file; its keys and its history stay, and
    /// get what is missing
    #[arg(long)]
    replace: bool,
    /// Open the networks too that `attesto webhook allow` opened to the tenant's callback where it was: they may be others here
    #[arg(long)]
    with_networks: bool,
    /// Do all of it and take it back again
    #[arg(long)]
    dry_run: bool,
}

/// A secret from a file, as text.
fn read_text_file(path: &Path) -> Result<zeroize::Zeroizing<String>, CommandError> {
    let bytes = input_file::read_file_or_stdin(path)?;
    let text = std::str::from_utf8(&bytes);
    let text =
        text.map_err(|_| CommandError::usage_error(format!("{} is not text.", path.display())))?;
    Ok(zeroize::Zeroizing::new(text.to_owned()))
}

fn read_passphrase(path: &Path) -> Result<Passphrase, CommandError> {
    Passphrase::parse(&read_text_file(path)?)
        .map_err(|short| CommandError::usage_error(format!("{}: {short}.", path.display())))
}

/// Packs.
pub(super) async fn export_tenant(
    args: TenantExportArgs,
    database: &Database,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let to = match (&args.passphrase_file, &args.recipient) {
        (Some(path), _) => SealTarget::Passphrase(read_passphrase(path)?),
        (None, Some(recipient)) => {
            let recipient: Recipient = recipient
                .parse()
                .map_err(|problem| CommandError::usage_error(format!("--recipient: {problem}.")))?;
            SealTarget::Recipient(recipient)
        }
        (None, None) => return Err(CommandError::usage_error("sealed how?")),
    };
    let keyring = context.require_keyring()?;
    canary::check_canaries(database, &keyring).await?;
    let history = if args.with_history {
        HistoryScope::Whole
    } else {
        HistoryScope::Needed
    };
    let (tenant, file) = (&args.tenant, &args.file);
    let exported =
        tenant_transfer::export_tenant(database, &keyring, tenant, history, &to, file).await?;
    context
        .output
        .write_json_or_text(&exported, &format_export(&exported, file))?;
    if exported.label.is_active {
        eprintln!(
            "attesto: warning: the tenant is active: what arrives from now on is not in the file, and what waits would be delivered by both. To move it, deactivate it first; docs/moving.md has the order."
        );
    }
    Ok(())
}

fn format_export(exported: &ExportReport, file: &Path) -> String {
    let rows: u64 = exported.rows.values().sum();
    format!(
        "{} ({}) as of {}: {rows} rows, {} deliveries among them still to be sent, in {} ({} bytes), sealed for {}.\nSHA-256: {}",
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

/// Unpacks.
pub(super) async fn import_tenant(
    args: TenantImportArgs,
    database: &Database,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let with = match (&args.passphrase_file, &args.identity_file) {
        (Some(path), _) => OpeningSecret::Passphrase(read_passphrase(path)?),
        (None, Some(path)) => {
            let identity = RecipientIdentity::parse(&read_text_file(path)?);
            let identity = identity.map_err(|problem| {
                CommandError::usage_error(format!("{}: {problem}.", path.display()))
            })?;
            OpeningSecret::Identity(identity)
        }
        (None, None) => return Err(CommandError::usage_error("opened with what?")),
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
            " {} deliveries were left out: their events are here under other ids, with deliveries of their own.",
            imported.superseded
        )
    };
    let networks = match imported.networks.as_slice() {
        [] => String::new(),
        all if imported.networks_opened => format!("Open to its callback: {}\n", all.join(", ")),
        all => format!(
            "Not opened to its callback, since --with-networks was not given: {}\n",
            all.join(", ")
        ),
    };
    let next = if imported.active {
        String::new()
    } else {
        format!(
            "\nIt is inactive. When everybody calls here: attesto tenant activate {}",
            label.tenant
        )
    };
    format!(
        "{verb} {} ({}) as of {}:\n{}{kept} rows were here already.{superseded} {} deliveries are still to be sent.\n{networks}SHA-256 of the file: {}{next}",
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
            told => Self::failed(format!("{told}.")),
        }
    }
}
