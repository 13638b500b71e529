//! `attesto encryption`: manages the keys that seal secrets in the database.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::context::{CommandContext, CommandError};
use super::progress::ProgressBar;
use crate::base::error::to_sentence;
use crate::credentials::canary::{self, CanaryStatus};
use crate::credentials::reseal::{
    self, ResealError, ResealMode, ResealProgress, ResealReport, SealingKeyUsage,
};
use crate::credentials::sealed_columns;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::MasterKey;
use crate::crypto::redact;
use crate::crypto::sealed_file::RecipientIdentity;
use crate::replicas::live_replicas::format_name_list;
use crate::replicas::{LiveReplicas, Replica};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum EncryptionCommand {
    /// Generate an encryption key and print it once, as `<id>:<base64>`; needs no database
    GenerateKey {
        /// Id of the key, 1 to 255 [default: one more than the highest configured id]
        #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u8).range(1..))]
        id: Option<u8>,
    },
    /// Generate an identity, so that `tenant export` on another installation can encrypt for this one without a
    /// passphrase; needs no database
    GenerateIdentity {
        /// File to write; must not exist
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Show the configured keys, and how many secrets in the database each seals
    Status,
    /// Rotate the encryption key: reseal all secrets with `ATTESTO_ENCRYPTION_KEY` while the service runs; can be stopped
    /// and repeated
    Rotate {
        /// Open all secrets, and write nothing
        #[arg(long)]
        dry_run: bool,
    },
}

pub(crate) async fn run(
    command: EncryptionCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        EncryptionCommand::GenerateKey { id } => generate_key(id, context),
        EncryptionCommand::GenerateIdentity { file } => generate_identity(&file, context),
        EncryptionCommand::Status => print_encryption_status(context).await,
        EncryptionCommand::Rotate { dry_run } => rotate_keys(dry_run, context).await,
    }
}

#[derive(Serialize)]
struct GeneratedEncryptionKey<'a> {
    id: u8,
    key: &'a str,
}

fn generate_key(id: Option<u8>, context: &CommandContext) -> Result<(), CommandError> {
    let id = match id {
        Some(id) => id,
        None => match context.find_configured_keyring()? {
            Some(keyring) => keyring
                .key_ids()
                .max()
                .and_then(|highest| highest.checked_add(1))
                .ok_or_else(|| {
                    CommandError::usage_error(
                        "key id 255 is configured, which is the highest: give a free id with --id.",
                    )
                })?,
            None => 1,
        },
    };
    let key = MasterKey::generate_key(id)
        .ok_or_else(|| CommandError::usage_error("--id must be 1 to 255."))?;
    let key = key.expose_secret();
    context
        .output
        .write_raw_text(&GeneratedEncryptionKey { id, key }, key)?;
    eprintln!(
        "attesto: store this key now: it is shown only this once. Keep a copy, but not beside the database backups: both together reveal all secrets, and without the key the secrets are lost."
    );
    Ok(())
}

/// Writes the identity to `path` and prints its recipient.
fn generate_identity(path: &Path, context: &CommandContext) -> Result<(), CommandError> {
    let (identity, recipient) = RecipientIdentity::generate_identity();
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(identity.expose_secret().as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| {
            CommandError::failed(to_sentence(format!(
                "cannot write {}: {error}",
                redact::redact_path(path)
            )))
        })?;
    let recipient = recipient.to_string();
    context.output.write_json_or_text(
        &json!({ "recipient": recipient }),
        &format!(
            "{recipient}\nGive this recipient to the exporting installation. Keep {} secret: it opens what was encrypted for the recipient.",
            path.display()
        ),
    )?;
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EncryptionKeyRow {
    id: u8,
    /// `seals`, `opens` or `missing`.
    role: &'static str,
    /// `right`, `wrong`, `unknown` (not configured), or `unused`: nothing was sealed with it here.
    canary: &'static str,
    /// Number of secrets sealed with it.
    rows: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EncryptionStatusView {
    sealing_key_id: u8,
    keys: Vec<EncryptionKeyRow>,
    /// Number of secrets sealed with another key than `sealing_key_id`.
    to_reseal: u64,
    columns: Vec<SealingKeyUsage>,
    replicas: Vec<Replica>,
}

async fn print_encryption_status(context: &CommandContext) -> Result<(), CommandError> {
    let keyring = context.require_keyring()?;
    let database = context.open_database().await?;
    let columns = reseal::list_key_usage(&database).await?;
    let verdicts = canary::load_canary_statuses(&database, &keyring).await?;
    let live_replicas = LiveReplicas::load(&database).await?;
    let secrets = || {
        columns
            .iter()
            .filter(|held| held.column != sealed_columns::ENCRYPTION_CANARY)
    };
    let in_use = secrets().filter_map(|held| held.key_id);
    let ids: BTreeSet<u8> = keyring.key_ids().chain(in_use).collect();
    let keys: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let verdict = verdicts.iter().find(|(it, _)| *it == id);
            EncryptionKeyRow {
                id,
                role: if id == keyring.sealing_key_id() {
                    "seals"
                } else if keyring.key_ids().any(|known| known == id) {
                    "opens"
                } else {
                    "missing"
                },
                canary: match verdict {
                    None => "unused",
                    Some((_, CanaryStatus::Matches)) => "right",
                    Some((_, CanaryStatus::Mismatch)) => "wrong",
                    Some((_, CanaryStatus::NotConfigured)) => "unknown",
                },
                rows: secrets()
                    .filter(|held| held.key_id == Some(id))
                    .map(|held| held.rows)
                    .sum(),
            }
        })
        .collect();
    let status = EncryptionStatusView {
        sealing_key_id: keyring.sealing_key_id(),
        to_reseal: secrets()
            .filter(|held| held.key_id != Some(keyring.sealing_key_id()))
            .map(|held| held.rows)
            .sum(),
        keys,
        columns,
        replicas: live_replicas.replicas.clone(),
    };
    let output = &context.output;
    if output.is_human_readable() {
        output.write_rows(&status.keys, &["id", "role", "canary", "rows"], "")?;
        output.write_note("")?;
        output.write_rows(
            &status.columns,
            &["table", "column", "keyId", "rows"],
            "No secrets are sealed yet.",
        )?;
        output.write_note("")?;
        output.write_rows(
            &status.replicas,
            &[
                "host",
                "pid",
                "version",
                "sealingKeyId",
                "openingKeyIds",
                "seenAt",
            ],
            "No replica is running.",
        )?;
        output.write_note(&rotation_advice(&status, &live_replicas))?;
    } else {
        output.write_progress_json(&status)?;
    }
    // Exit 1 for a problem that makes a service refuse to start.
    canary::check_all_key_ids(&database, &keyring).await?;
    canary::check_canaries(&database, &keyring).await?;
    Ok(())
}

fn rotation_advice(status: &EncryptionStatusView, live_replicas: &LiveReplicas) -> String {
    let to_reseal = status.to_reseal;
    let behind = live_replicas.hosts_sealing_with_other_key(status.sealing_key_id);
    if !behind.is_empty() {
        return format!(
            "\nThe service on {} still seals with another key than {}: docs/operations.md has the steps of a rotation.",
            format_name_list(&behind),
            status.sealing_key_id
        );
    }
    let spare: Vec<_> = status
        .keys
        .iter()
        .filter(|key| key.role == "opens" && key.rows == 0 && key.canary != "unused")
        .map(|key| key.id.to_string())
        .collect();
    if to_reseal > 0 {
        format!(
            "\n{to_reseal} secrets are sealed with another key than {}: `attesto encryption rotate` reseals them.",
            status.sealing_key_id
        )
    } else if spare.is_empty() {
        format!(
            "\nAll secrets are sealed with key {}.",
            status.sealing_key_id
        )
    } else {
        format!(
            "\nAll secrets are sealed with key {}. No longer needed by this database, only by older backups of it: key {}.",
            status.sealing_key_id,
            spare.join(", ")
        )
    }
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "camelCase")]
enum RotationOutput<'a> {
    Progress(&'a ResealProgress),
    Finished(&'a ResealReport),
}

async fn rotate_keys(dry_run: bool, context: &CommandContext) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let keyring = if dry_run {
        let keyring = context.require_keyring()?;
        canary::check_canaries(&database, &keyring).await?;
        keyring
    } else {
        context.load_verified_keyring(&database).await?
    };
    canary::check_all_key_ids(&database, &keyring).await?;
    let live_replicas = LiveReplicas::load(&database).await?;
    let behind = live_replicas.hosts_sealing_with_other_key(keyring.sealing_key_id());
    if !behind.is_empty() {
        eprintln!(
            "attesto: warning: the service on {} still seals with another key; run this again after it was restarted.",
            format_name_list(&behind)
        );
    }
    let (stop, _waiting) = context.cancel_on_signal()?;
    let mode = if dry_run {
        ResealMode::DryRun
    } else {
        ResealMode::Apply
    };
    let bar = ProgressBar::for_output(&context.output);
    let mut written = Ok(());
    let outcome = reseal::reseal_values(&database, &keyring, mode, &stop, |progress| {
        let what = format!("{}.{}", progress.column.table, progress.column.column);
        bar.draw_progress(progress.looked_at, progress.total, &what);
        let result = context
            .output
            .write_progress_json(&RotationOutput::Progress(progress));
        written = std::mem::replace(&mut written, Ok(())).and(result);
    })
    .await;
    bar.clear();
    written?;
    let report = outcome.map_err(|error| match error {
        ResealError::Database(error) => error.into(),
        error @ ResealError::VerificationFailed(_) => CommandError::from_cause(error),
    })?;
    context.output.write_json_or_text(
        &RotationOutput::Finished(&report),
        &format_reseal_report(&report),
    )?;
    if stop.is_cancelled() {
        return Err(CommandError::failed(
            "stopped; the secrets resealed so far are kept. Run it again for the rest.",
        ));
    }
    check_reseal_report(&report)
}

fn format_reseal_report(report: &ResealReport) -> String {
    let (resealed, key) = (report.resealed, report.key_id);
    if report.dry_run {
        format!("{resealed} secrets would be resealed with key {key}. Nothing was written.")
    } else if report.remaining == 0 {
        format!("Resealed {resealed} secrets: all are sealed with key {key}.")
    } else {
        format!(
            "Resealed {resealed} secrets with key {key}; {} are still sealed with another key.",
            report.remaining
        )
    }
}

/// Fails when a secret could not be opened, or is still sealed with another key.
fn check_reseal_report(report: &ResealReport) -> Result<(), CommandError> {
    let mut problems: Vec<String> = report
        .failures
        .iter()
        .map(|it| {
            format!(
                "{}.{} of {} is unchanged ({}): {}.",
                it.column.table,
                it.column.column,
                it.row,
                it.class,
                it.cause.message_with_valid_canary()
            )
        })
        .collect();
    let unlisted = report.failed.saturating_sub(report.failures.len() as u64);
    if unlisted > 0 {
        problems.push(format!("{unlisted} more secrets cannot be opened."));
    }
    if problems.is_empty() && !report.dry_run && report.remaining > 0 {
        problems.push(format!(
            "{} secrets are still sealed with another key: they were changed during the run, or a replica that was not restarted sealed them. Run this again.",
            report.remaining
        ));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(CommandError::failed(problems.join("\n")))
    }
}
