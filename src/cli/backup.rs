//! `attesto backup`: creates, verifies and restores dumps of the database.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::context::{CommandContext, CommandError};
use super::progress::ProgressBar;
use crate::backup::{self, BackupError, BackupManifest, BackupVerifyReport, PostgresPrograms};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum BackupCommand {
    /// Create a dump of the whole database and a manifest of its content; the service may run; needs `pg_dump`
    Create {
        /// File to write, in `pg_dump`'s custom format; the manifest is FILE.manifest.json
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Verify a backup: restore it into a temporary database on the same server, and check that it is complete and that its
    /// secrets open; needs `pg_restore` and the encryption keys
    #[command(override_usage = "attesto backup verify [OPTIONS] <FILE>")]
    Verify(DumpArgs),
    /// Restore a backup into the database, which must be empty; deliveries are held until `attesto deliveries release`
    #[command(override_usage = "attesto backup restore [OPTIONS] <FILE>")]
    Restore(DumpArgs),
}

/// The dump that a command reads.
#[derive(Debug, clap::Args)]
pub(crate) struct DumpArgs {
    /// The dump; its manifest must be beside it
    #[arg(value_name = "FILE", required_unless_present = "named_file")]
    file: Option<PathBuf>,
    /// The same as FILE: `backup create` takes it with this flag
    #[arg(
        id = "named_file",
        long = "file",
        value_name = "FILE",
        hide = true,
        conflicts_with = "file"
    )]
    named_file: Option<PathBuf>,
}

impl DumpArgs {
    fn into_path(self) -> PathBuf {
        // clap accepts one of them only, and not none.
        self.file.or(self.named_file).unwrap_or_default()
    }
}

pub(crate) async fn run(
    command: BackupCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let options = context.read_embedded_options()?;
    let password_file = context.environment_variable("PGPASSFILE");
    let programs = PostgresPrograms {
        bin_folder: options.pg_bin,
        search_path: options.search_path,
        home: options.home.map(OsString::from),
        password_file: password_file.filter(|path| !path.is_empty()),
    };
    let (stop, _waiting) = context.cancel_on_signal()?;
    let bar = ProgressBar::for_output(&context.output);
    let report = |done, total, what: &str| bar.draw_progress(done, total, what);
    match command {
        BackupCommand::Create { file } => {
            let database = context.open_database().await?;
            let created = stop
                .run_until_cancelled(backup::create_backup(&database, &programs, &file, &report))
                .await;
            bar.clear();
            let manifest = created.unwrap_or_else(|| {
                Err(BackupError::ProgramFailed {
                    program: "pg_dump",
                    reason: "it was stopped; no file was kept".to_owned(),
                })
            })?;
            let text = format_manifest(&manifest, &file);
            context.output.write_json_or_text(&manifest, &text)?;
            Ok(())
        }
        BackupCommand::Restore(dump) => {
            let file = dump.into_path();
            let database = context.open_database().await?;
            let (manifest, problems) = backup::restore_backup(&database, &programs, &file).await?;
            let text = format!(
                "Restored {} rows of {} tables as of {}. Deliveries are held; to send them: attesto deliveries release.",
                manifest.total_rows(),
                manifest.tables.len(),
                manifest.created_at
            );
            context.output.write_json_or_text(&manifest, &text)?;
            if problems.is_empty() {
                Ok(())
            } else {
                Err(CommandError::failed(problems.join("\n")))
            }
        }
        BackupCommand::Verify(dump) => {
            let file = dump.into_path();
            let keyring = context.find_configured_keyring()?;
            let database = context.open_database().await?;
            let verified = backup::verify_backup(
                &database,
                keyring.as_ref(),
                &programs,
                &file,
                &context.clock,
                &stop,
                &report,
            )
            .await;
            bar.clear();
            let verified = verified?;
            context
                .output
                .write_json_or_text(&verified, &format_verification(&verified))?;
            if verified.sound {
                Ok(())
            } else {
                Err(CommandError::failed(verified.problems.join("\n")))
            }
        }
    }
}

fn format_manifest(manifest: &BackupManifest, file: &Path) -> String {
    let keys: Vec<_> = manifest.key_ids.iter().map(ToString::to_string).collect();
    let keys = if keys.is_empty() {
        "It holds no secrets.".to_owned()
    } else {
        format!(
            "Its secrets need encryption key {}: keep a copy of the key elsewhere.",
            keys.join(" and ")
        )
    };
    format!(
        "{} rows of {} tables in {} ({} bytes). {keys} To verify it: attesto backup verify {}",
        manifest.total_rows(),
        manifest.tables.len(),
        file.display(),
        manifest.bytes,
        file.display()
    )
}

fn format_verification(report: &BackupVerifyReport) -> String {
    if !report.conclusive {
        return format!(
            "Backup {} of {} was not verified: the encryption keys are not those that it was sealed with.",
            report.id, report.created_at
        );
    }
    if !report.sound {
        return format!(
            "Backup {} of {} is NOT usable.",
            report.id, report.created_at
        );
    }
    format!(
        "Backup {} is usable: {} rows of {} tables restored in {} ms, {} secrets opened, {} migrations applied. It holds the state of {}: restoring it loses the changes of the {} s since.",
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
            error if error.is_usage_error() => Self::from_usage_cause(error),
            error => Self::from_cause(error),
        }
    }
}
