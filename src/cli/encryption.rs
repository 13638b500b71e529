//! `attesto encryption`: the keys that secrets are sealed with.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::context::{Context, Failure};
use super::progress::Bar;
use crate::credentials::canary::{self, Verdict};
use crate::credentials::reseal::{self, Holding, Progress, Report, ResealError, Run};
use crate::credentials::sealed;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::MasterKey;
use crate::crypto::pasted;
use crate::crypto::sealed_file::Identity;
use crate::replicas::company::listed;
use crate::replicas::{Company, Replica};

/// The commands of `attesto encryption`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
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
pub async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::GenerateKey { id } => generate(id, context),
        Command::GenerateIdentity { file } => generate_identity(&file, context),
        Command::Status => status(context).await,
        Command::Rotate { dry_run } => rotate(dry_run, context).await,
    }
}

#[derive(Serialize)]
struct NewKey<'a> {
    id: u8,
    key: &'a str,
}

fn generate(id: Option<u8>, context: &Context) -> Result<(), Failure> {
    let id = match id {
        Some(id) => id,
        None => match context.configured_keyring()? {
            Some(keyring) => keyring
                .ids()
                .max()
                .and_then(|highest| highest.checked_add(1))
                .ok_or_else(|| {
                    Failure::usage(
                        "key 255 is configured, which is the highest id there is: give a free one with --id.",
                    )
                })?,
            None => 1,
        },
    };
    let key = MasterKey::generate(id).ok_or_else(|| Failure::usage("--id is 1 to 255."))?;
    let key = key.expose_secret();
    context.output.content(&NewKey { id, key }, key)?;
    eprintln!(
        "attesto: this is the only time the key is shown. Keep a copy where backups of the database are not: whoever has both can read everything, and without the key nobody can."
    );
    Ok(())
}

/// Makes a pair: what is kept, and what is given to whoever exports.
fn generate_identity(path: &Path, context: &Context) -> Result<(), Failure> {
    let (identity, recipient) = Identity::generate();
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
            Failure::refused(format!("cannot write {}: {error}.", pasted::told(path)))
        })?;
    let recipient = recipient.to_string();
    context.output.sentence(
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
struct ShownKey {
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
struct Status {
    sealing_key_id: u8,
    keys: Vec<ShownKey>,
    /// Secrets that are sealed with another key than the one that seals.
    to_reseal: u64,
    columns: Vec<Holding>,
    /// Who serves, and with which keys.
    replicas: Vec<Replica>,
}

async fn status(context: &Context) -> Result<(), Failure> {
    let keyring = context.keyring()?;
    let database = context.database().await?;
    let columns = reseal::holdings(&database).await?;
    let verdicts = canary::verdicts(&database, &keyring).await?;
    let company = Company::present(&database, context.clock.lead()).await?;
    let secrets = || columns.iter().filter(|held| held.column != sealed::CANARY);
    let in_use = secrets().filter_map(|held| held.key_id);
    let ids: BTreeSet<u8> = keyring.ids().chain(in_use).collect();
    let keys: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let verdict = verdicts.iter().find(|(it, _)| *it == id);
            ShownKey {
                id,
                role: if id == keyring.sealing_id() {
                    "seals"
                } else if keyring.ids().any(|known| known == id) {
                    "opens"
                } else {
                    "missing"
                },
                canary: match verdict {
                    None => "unused",
                    Some((_, Verdict::Right)) => "right",
                    Some((_, Verdict::Wrong)) => "wrong",
                    Some((_, Verdict::NotConfigured)) => "unknown",
                },
                rows: secrets()
                    .filter(|held| held.key_id == Some(id))
                    .map(|held| held.rows)
                    .sum(),
            }
        })
        .collect();
    let status = Status {
        sealing_key_id: keyring.sealing_id(),
        to_reseal: secrets()
            .filter(|held| held.key_id != Some(keyring.sealing_id()))
            .map(|held| held.rows)
            .sum(),
        keys,
        columns,
        replicas: company.replicas.clone(),
    };
    let output = &context.output;
    if output.is_for_people() {
        output.rows(&status.keys, &["id", "role", "canary", "rows"], "")?;
        output.remark("")?;
        output.rows(
            &status.columns,
            &["table", "column", "keyId", "rows"],
            "Nothing is sealed yet.",
        )?;
        output.remark("")?;
        output.rows(
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
        output.remark(&advice(&status, &company))?;
    } else {
        output.step(&status)?;
    }
    // What makes a service refuse to start, or fail, is no success here.
    canary::survey(&database, &keyring).await?;
    canary::look(&database, &keyring).await?;
    Ok(())
}

fn advice(status: &Status, company: &Company) -> String {
    let to_reseal = status.to_reseal;
    let behind = company.seal_otherwise(status.sealing_key_id);
    if !behind.is_empty() {
        return format!(
            "\nThe service on {} still seals with another key than {}: see docs/operations.md for the order of a rotation.",
            listed(&behind),
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
enum Told<'a> {
    Progress(&'a Progress),
    Finished(&'a Report),
}

async fn rotate(dry_run: bool, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let keyring = if dry_run {
        let keyring = context.keyring()?;
        canary::look(&database, &keyring).await?;
        keyring
    } else {
        context.keyring_for(&database).await?
    };
    canary::survey(&database, &keyring).await?;
    let company = Company::present(&database, context.clock.lead()).await?;
    let behind = company.seal_otherwise(keyring.sealing_id());
    if !behind.is_empty() {
        eprintln!(
            "attesto: warning: the service on {} still seals with another key; what it seals from now on is for the next run.",
            listed(&behind)
        );
    }
    let (stop, _waiting) = context.interruption()?;
    let run = if dry_run { Run::Dry } else { Run::ForReal };
    let bar = Bar::beside(&context.output);
    let mut heard = Ok(());
    let outcome = reseal::run(&database, &keyring, run, &stop, |progress| {
        let what = format!("{}.{}", progress.column.table, progress.column.column);
        bar.show(progress.looked_at, progress.total, &what);
        let told = context.output.step(&Told::Progress(progress));
        heard = std::mem::replace(&mut heard, Ok(())).and(told);
    })
    .await;
    bar.end();
    heard?;
    let report = outcome.map_err(|error| match error {
        ResealError::Database(error) => error.into(),
        unsound @ ResealError::Unsound(_) => Failure::refused(format!("{unsound}.")),
    })?;
    context
        .output
        .sentence(&Told::Finished(&report), &prose(&report))?;
    if stop.is_cancelled() {
        return Err(Failure::refused(
            "stopped; what was sealed anew stays so. Run it again for the rest.",
        ));
    }
    verdict(&report)
}

fn prose(report: &Report) -> String {
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
fn verdict(report: &Report) -> Result<(), Failure> {
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
                it.cause.beside_a_right_canary()
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
        Err(Failure::refused(problems.join("\n")))
    }
}
