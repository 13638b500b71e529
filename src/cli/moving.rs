//! `attesto tenant export` and `import`: one tenant in a sealed file.

use std::path::{Path, PathBuf};

use super::context::{Context, Failure};
use super::upload;
use crate::credentials::canary;
use crate::crypto::sealed_file::{Identity, Passphrase, Recipient, To, With};
use crate::db::Database;
use crate::id::TenantId;
use crate::moving::content::History;
use crate::moving::{self, Exported, Imported, MoveError, Options};

/// The arguments of `tenant export`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("sealed").required(true).args(["passphrase_file", "recipient"])))]
pub struct Export {
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
pub struct Import {
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
fn text(path: &Path) -> Result<zeroize::Zeroizing<String>, Failure> {
    let bytes = upload::read(path)?;
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| Failure::usage(format!("{} is not text.", path.display())))?;
    Ok(zeroize::Zeroizing::new(text.to_owned()))
}

fn passphrase(path: &Path) -> Result<Passphrase, Failure> {
    Passphrase::parse(&text(path)?)
        .map_err(|short| Failure::usage(format!("{}: {short}.", path.display())))
}

/// Packs.
pub(super) async fn export(
    args: Export,
    database: &Database,
    context: &Context,
) -> Result<(), Failure> {
    let to = match (&args.passphrase_file, &args.recipient) {
        (Some(path), _) => To::Passphrase(passphrase(path)?),
        (None, Some(recipient)) => {
            let recipient: Recipient = recipient
                .parse()
                .map_err(|problem| Failure::usage(format!("--recipient: {problem}.")))?;
            To::Recipient(recipient)
        }
        (None, None) => return Err(Failure::usage("sealed how?")),
    };
    let keyring = context.keyring()?;
    canary::look(database, &keyring).await?;
    let history = if args.with_history {
        History::Whole
    } else {
        History::Needed
    };
    let (tenant, file) = (&args.tenant, &args.file);
    let exported = moving::export(database, &keyring, tenant, history, &to, file).await?;
    context
        .output
        .sentence(&exported, &told_of_export(&exported, file))?;
    if exported.label.is_active {
        eprintln!(
            "attesto: warning: the tenant is active: what arrives from now on is not in the file, and what waits would be delivered by both. To move it, deactivate it first; docs/moving.md has the order."
        );
    }
    Ok(())
}

fn told_of_export(exported: &Exported, file: &Path) -> String {
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
pub(super) async fn import(
    args: Import,
    database: &Database,
    context: &Context,
) -> Result<(), Failure> {
    let with = match (&args.passphrase_file, &args.identity_file) {
        (Some(path), _) => With::Passphrase(passphrase(path)?),
        (None, Some(path)) => {
            let identity = Identity::parse(&text(path)?);
            let identity = identity
                .map_err(|problem| Failure::usage(format!("{}: {problem}.", path.display())))?;
            With::Identity(identity)
        }
        (None, None) => return Err(Failure::usage("opened with what?")),
    };
    let keyring = if args.dry_run {
        let keyring = context.keyring()?;
        canary::look(database, &keyring).await?;
        keyring
    } else {
        context.keyring_for(database).await?
    };
    let options = Options {
        as_inactive: args.as_inactive,
        replace: args.replace,
        with_networks: args.with_networks,
        dry_run: args.dry_run,
    };
    let imported = moving::import(database, &keyring, &args.file, &with, options).await?;
    context
        .output
        .sentence(&imported, &told_of_import(&imported))?;
    Ok(())
}

fn told_of_import(imported: &Imported) -> String {
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

impl From<MoveError> for Failure {
    fn from(error: MoveError) -> Self {
        match error {
            MoveError::Database(error) => error.into(),
            told => Self::refused(format!("{told}.")),
        }
    }
}
