//! `attesto encryption`: the keys that secrets are sealed with.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::context::{CommandContext, CommandError};
use super::progress::ProgressBar;
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

/// The commands of `attesto encryption`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum EncryptionCommand {
    /// Make a new key and print it, once, as `<id>:<base64>`; needs no database
    GenerateKey {
        /// The key's id, 1 to 255 [default: one more than the highest that is configured here]
        #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u8).range(1..))]
        id: Option<u8>,
    },
    /// Make a pair of keys, so that `tenant export` elsewhere can seal for this installation without a passphrase; needs no
    /// database
    GenerateIdentity {
        /// The file to write; never over another one
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Which keys are configured here, and how much in the database is sealed with which
    Status,
    /// Seal everything anew with the newest key (`ATTESTO_ENCRYPTION_KEY`), while the service runs. Can be stopped and run
    /// again
    Rotate {
        /// Open everything and write nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs one of them.
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
                        "key 255 is configured, which is the highest id there is: give a free one with --id.",
                    )
                })?,
            None => 1,
        },
    };
    let key = MasterKey::generate_key(id)
        .ok_or_else(|| CommandError::usage_error("--id is 1 to 255."))?;
    let key = key.expose_secret();
    context
        .output
        .write_raw_text(&GeneratedEncryptionKey { id, key }, key)?;
    eprintln!(
        "attesto: this is the only time the key is shown. Keep a copy where backups of the database are not: whoever has both can read everything, and without the key nobody can."
    );
    Ok(())
}

/// Makes a pair: what is kept, and what is given to whoever exports.
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
            CommandError::failed(format!(
                "cannot write {}: {error}.",
                redact::redact_path(path)
            ))
        })?;
    let recipient = recipient.to_string();
    context.output.write_json_or_text(
        &json!({ "recipient": recipient }),
        &format!(
            "{recipient}\nGive this to whoever exports. {} opens what is sealed for it: keep it where secrets are kept.",
            path.display()
        ),
    )?;
    Ok(())
}

/// How a key stands, as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EncryptionKeyRow {
    id: u8,
    /// `seals`, `opens` or `missing`.
    role: &'static str,
    /// `right`, `wrong`, or `unused`: nothing was ever sealed with it here.
    canary: &'static str,
    /// Secrets that are sealed with it.
    rows: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EncryptionStatusView {
    sealing_key_id: u8,
    keys: Vec<EncryptionKeyRow>,
    /// Secrets that are sealed with another key than the one that seals.
    to_reseal: u64,
    columns: Vec<SealingKeyUsage>,
    /// Who serves, and with which keys.
    replicas: Vec<Replica>,
}

async fn print_encryption_status(context: &CommandContext) -> Result<(), CommandError> {
    let keyring = context.require_keyring()?;
    let database = context.open_database().await?;
    let columns = reseal::list_key_usage(&database).await?;
    let verdicts = canary::load_canary_statuses(&database, &keyring).await?;
    let company = LiveReplicas::load(&database).await?;
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
        replicas: company.replicas.clone(),
    };
    let output = &context.output;
    if output.is_human_readable() {
        output.write_rows(&status.keys, &["id", "role", "canary", "rows"], "")?;
        output.write_note("")?;
        output.write_rows(
            &status.columns,
            &["table", "column", "keyId", "rows"],
            "Nothing is sealed yet.",
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
            "No process serves.",
        )?;
        output.write_note(&rotation_advice(&status, &company))?;
    } else {
        output.write_progress_json(&status)?;
    }
    // What makes a service refuse to start, or fail, is no success here.
    canary::check_all_key_ids(&database, &keyring).await?;
    canary::check_canaries(&database, &keyring).await?;
    Ok(())
}

fn rotation_advice(status: &EncryptionStatusView, company: &LiveReplicas) -> String {
    let to_reseal = status.to_reseal;
    let behind = company.hosts_sealing_with_other_key(status.sealing_key_id);
    if !behind.is_empty() {
        return format!(
            "\nThe service on {} still seals with another key than {}: see docs/operations.md for the order of a rotation.",
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
            "\n{to_reseal} secrets are sealed with another key than {}: `attesto encryption rotate` seals them anew.",
            status.sealing_key_id
        )
    } else if spare.is_empty() {
        format!("\nEverything is sealed with key {}.", status.sealing_key_id)
    } else {
        format!(
            "\nEverything is sealed with key {}. No longer needed by this database, though by older backups of it: key {}.",
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
    let company = LiveReplicas::load(&database).await?;
    let behind = company.hosts_sealing_with_other_key(keyring.sealing_key_id());
    if !behind.is_empty() {
        eprintln!(
            "attesto: warning: the service on {} still seals with another key; what it seals from now on is for the next run.",
            format_name_list(&behind)
        );
    }
    let (stop, _waiting) = context.cancel_on_signal()?;
    let run = if dry_run {
        ResealMode::DryRun
    } else {
        ResealMode::Apply
    };
    let bar = ProgressBar::for_output(&context.output);
    let mut heard = Ok(());
    let outcome = reseal::reseal_values(&database, &keyring, run, &stop, |progress| {
        let what = format!("{}.{}", progress.column.table, progress.column.column);
        bar.draw_progress(progress.looked_at, progress.total, &what);
        let told = context
            .output
            .write_progress_json(&RotationOutput::Progress(progress));
        heard = std::mem::replace(&mut heard, Ok(())).and(told);
    })
    .await;
    bar.clear();
    heard?;
    let report = outcome.map_err(|error| match error {
        ResealError::Database(error) => error.into(),
        unsound @ ResealError::VerificationFailed(_) => CommandError::failed(format!("{unsound}.")),
    })?;
    context.output.write_json_or_text(
        &RotationOutput::Finished(&report),
        &format_reseal_report(&report),
    )?;
    if stop.is_cancelled() {
        return Err(CommandError::failed(
            "stopped; what was sealed anew stays so. Run it again for the rest.",
        ));
    }
    check_reseal_report(&report)
}

fn format_reseal_report(report: &ResealReport) -> String {
    let (resealed, key) = (report.resealed, report.key_id);
    if report.dry_run {
        format!("{resealed} secrets would be sealed anew with key {key}. Nothing was written.")
    } else if report.remaining == 0 {
        format!("Sealed {resealed} secrets anew: everything is sealed with key {key}.")
    } else {
        format!(
            "Sealed {resealed} secrets anew with key {key}; {} are still sealed with another.",
            report.remaining
        )
    }
}

/// Success is when nothing is left that should not be.
fn check_reseal_report(report: &ResealReport) -> Result<(), CommandError> {
    let mut problems: Vec<String> = report
        .failures
        .iter()
        .map(|it| {
            format!(
                "{}.{} of {} was left as it is ({}): {}.",
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
        problems.push(format!("{unlisted} more do not open."));
    }
    if problems.is_empty() && !report.dry_run && report.remaining > 0 {
        problems.push(format!(
            "{} secrets were being changed by others all the time, or are still sealed with another key by a process that was not restarted: run this again.",
            report.remaining
        ));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(CommandError::failed(problems.join("\n")))
    }
}
