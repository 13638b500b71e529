//! `attesto backup`: a dump, and the proof that it can be restored.

use std::path::{Path, PathBuf};

use super::context::{CommandContext, CommandError};
use crate::backup::{self, BackupError, BackupManifest, BackupVerifyReport, PostgresPrograms};

/// The commands of `attesto backup`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BackupCommand {
    /// Dump the whole database, with a manifest of what is in it, while the service runs; needs `pg_dump`
    Create {
        /// The file to write, in `pg_dump`'s custom format; its manifest gets `.manifest.json` appended
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Restore a backup into a database of its own on the same server, look whether everything is in it and opens, and
    /// take that database away again; needs `pg_restore` and the encryption keys
    Verify {
        /// The dump; its manifest lies beside it
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Restore a backup into the database, which must be empty; deliveries are held until `deliveries release`
    Restore {
        /// The dump; its manifest lies beside it
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Runs one of them.
pub(crate) async fn run(
    command: BackupCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let variable = |name| {
        context
            .environment_variable(name)
            .filter(|value| !value.is_empty())
    };
    let programs = PostgresPrograms {
        bin_folder: variable("ATTESTO_PG_BIN").map(PathBuf::from),
        search_path: variable("PATH"),
        home: variable("HOME"),
        password_file: variable("PGPASSFILE"),
    };
    let (stop, _waiting) = context.cancel_on_signal()?;
    match command {
        BackupCommand::Create { file } => {
            let database = context.open_database().await?;
            let made = stop
                .run_until_cancelled(backup::create_backup(&database, &programs, &file))
                .await;
            let manifest = made.unwrap_or_else(|| {
                Err(BackupError::ProgramFailed {
                    program: "pg_dump",
                    said: "it was stopped; nothing was kept".to_owned(),
                })
            })?;
            let said = format_manifest(&manifest, &file);
            context.output.write_json_or_text(&manifest, &said)?;
            Ok(())
        }
        BackupCommand::Restore { file } => {
            let database = context.open_database().await?;
            let (manifest, problems) = backup::restore_backup(&database, &programs, &file).await?;
            let said = format!(
                "Restored {} rows of {} tables, the state of {}. Deliveries are held: see `attesto deliveries status`.",
                manifest.total_rows(),
                manifest.tables.len(),
                manifest.created_at
            );
            context.output.write_json_or_text(&manifest, &said)?;
            if problems.is_empty() {
                Ok(())
            } else {
                Err(CommandError::failed(problems.join("\n")))
            }
        }
        BackupCommand::Verify { file } => {
            let keyring = context.find_configured_keyring()?;
            let database = context.open_database().await?;
            let report = backup::verify_backup(
                &database,
                keyring.as_ref(),
                &programs,
                &file,
                &context.clock,
                &stop,
            )
            .await?;
            context
                .output
                .write_json_or_text(&report, &format_verification(&report))?;
            if report.sound {
                Ok(())
            } else {
                Err(CommandError::failed(report.problems.join("\n")))
            }
        }
    }
}

fn format_manifest(manifest: &BackupManifest, file: &Path) -> String {
    let keys: Vec<_> = manifest.key_ids.iter().map(ToString::to_string).collect();
    let keys = if keys.is_empty() {
        "It holds nothing sealed.".to_owned()
    } else {
        format!(
            "Without encryption key {} its secrets cannot be opened: keep that elsewhere.",
            keys.join(" and ")
        )
    };
    format!(
        "{} rows of {} tables in {} ({} bytes). {keys} Prove it: attesto backup verify {}",
        manifest.total_rows(),
        manifest.tables.len(),
        file.display(),
        manifest.bytes,
        file.display()
    )
}

fn format_verification(report: &BackupVerifyReport) -> String {
    if !report.sound {
        return format!(
            "Backup {} of {} is NOT sound.",
            report.id, report.created_at
        );
    }
    format!(
        "Backup {} is sound: {} rows of {} tables restored in {} ms, {} sealed values opened, {} migrations applied. It holds the state of {}: going back to it loses what came in the {} s since.",
        report.id,
        report.rows,
        report.tables,
        report.restored_in_ms,
        report.opened,
        report.migrations_applied,
        report.created_at,
        report.age_seconds
    )
}

impl From<BackupError> for CommandError {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Database(error) => error.into(),
            BackupError::Migration(problem) => problem.into(),
            error if error.is_usage_error() => Self::usage_error(format!("{error}.")),
            error => Self::failed(format!("{error}.")),
        }
    }
}
