//! Verifies a backup: restores it into a scratch database and compares it with its manifest.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::error::BackupError;
use super::manifest::{BackupManifest, fingerprint_dump};
use super::programs::PostgresPrograms;
use super::report::BackupVerifyReport;
use super::store;
use crate::base::clock::{Clock, Timestamp};
use crate::base::error::to_sentence;
use crate::base::id::BackupId;
use crate::base::progress::{ReportProgress, report_while};
use crate::credentials::canary::{self, CanaryError};
use crate::credentials::sealed_value_check;
use crate::crypto::keyring::Keyring;
use crate::db::Database;

/// How many values of each sealed column are unsealed, chosen at random.
const SAMPLE_ROWS: i64 = 20;
const VERIFY_STEPS: u64 = 5;

/// Restores the dump into a scratch database, compares it with its manifest, applies the migrations of this release,
/// and unseals a sample of the sealed values. The scratch database is dropped before this returns. Nothing else on the
/// server is changed, and nothing is sent to callbacks or stores.
///
/// The result is recorded for `attesto doctor`, unless the given keys are the only problem: that says nothing about the backup.
pub async fn verify_backup(
    database: &Database,
    keyring: Option<&Keyring>,
    programs: &PostgresPrograms,
    dump: &Path,
    clock: &Clock,
    stop: &CancellationToken,
    progress: ReportProgress<'_>,
) -> Result<BackupVerifyReport, BackupError> {
    let manifest = BackupManifest::read_for(dump)?;
    let missing = missing_keys(&manifest.key_ids, keyring);
    if !missing.is_empty() {
        return Err(BackupError::MissingKeys(missing));
    }
    let now = clock.now();
    let created_at = Timestamp::parse(&manifest.created_at);
    let mut report = BackupVerifyReport {
        id: manifest.id.clone(),
        created_at: manifest.created_at.clone(),
        sound: false,
        conclusive: true,
        age_seconds: created_at.map_or(0, |moment| now.duration_since(moment).as_secs()),
        restored_in_ms: 0,
        tables: manifest.tables.len(),
        rows: manifest.total_rows(),
        migrations_applied: 0,
        opened: 0,
        problems: Vec::new(),
    };
    progress(0, VERIFY_STEPS, "computing the checksum");
    let (bytes, sha256) = fingerprint_dump(dump)?;
    if (bytes, &sha256) == (manifest.bytes, &manifest.sha256) {
        let name = BackupId::mint(now).to_string().to_lowercase();
        let name = name.replace(BackupId::PREFIX, "attesto_trial_");
        let schema = manifest.tables_schema();
        store::create_scratch_database(database, &name, schema.as_deref()).await?;
        let scratch = database.sibling_database(&name);
        let source = DumpSource {
            programs,
            dump,
            manifest: &manifest,
        };
        let check = restore_and_check(&scratch, keyring, &source, &mut report, progress);
        let outcome = stop.run_until_cancelled(check).await;
        scratch.close_connections().await;
        store::drop_scratch_database(database, &name).await?;
        outcome.unwrap_or(Err(BackupError::Interrupted))?;
    } else {
        report.problems.push(format!(
            "The file is not the one that was made: it has {bytes} bytes and SHA-256 {sha256}, and the manifest says {} and {}.",
            manifest.bytes, manifest.sha256
        ));
    }
    report.sound = report.problems.is_empty();
    if !report.conclusive {
        return Ok(report);
    }
    // The result is not needed: verifying on another server than the one that was backed up is normal, and only the
    // database that the backup was made of has a row for it.
    if let Err(error) = store::record_verified(database, &report).await {
        tracing::debug!(
            error = crate::db::describe_cause(&error),
            "backup_verification_not_recorded"
        );
    }
    Ok(report)
}

/// The dump that is restored.
struct DumpSource<'a> {
    programs: &'a PostgresPrograms,
    dump: &'a Path,
    manifest: &'a BackupManifest,
}

async fn restore_and_check(
    scratch: &Database,
    keyring: Option<&Keyring>,
    source: &DumpSource<'_>,
    report: &mut BackupVerifyReport,
    progress: ReportProgress<'_>,
) -> Result<(), BackupError> {
    let started_at = Instant::now();
    let restoring = restore_dump_into(scratch, source.programs, source.dump);
    let report_time = || {
        let what = format!("restoring, {} s", started_at.elapsed().as_secs());
        progress(1, VERIFY_STEPS, &what);
    };
    match report_while(restoring, report_time).await {
        Ok(()) => {}
        Err(BackupError::ProgramFailed { reason, .. }) => {
            let problem = to_sentence(format!("It cannot be restored: {reason}"));
            report.problems.push(problem);
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    report.restored_in_ms = u64::try_from(started_at.elapsed().as_millis()).unwrap_or(u64::MAX);

    progress(2, VERIFY_STEPS, "counting the rows");
    let found = store::load_database_content(scratch).await?;
    report
        .problems
        .extend(compare_with_manifest(source.manifest, &found));
    report
        .problems
        .extend(store::list_invalid_objects(scratch).await?);
    progress(3, VERIFY_STEPS, "applying migrations");
    report.migrations_applied = scratch.migrate(false).await?.applied.len();
    progress(4, VERIFY_STEPS, "opening secrets");
    let was_sound = report.problems.is_empty();
    if let Some(keyring) = keyring {
        match canary::check_canaries(scratch, keyring).await {
            Ok(()) => {}
            Err(CanaryError::Database(error)) => return Err(error.into()),
            // Nothing that is sealed with it would open.
            Err(wrong @ CanaryError::WrongKey { .. }) => {
                report.problems.push(to_sentence(wrong));
                report.conclusive = !was_sound;
                return Ok(());
            }
            Err(wrong) => report.problems.push(to_sentence(wrong)),
        }
        for check in sealed_value_check::check_sealed_values(scratch, keyring, SAMPLE_ROWS).await? {
            report.opened += check.opened;
            report.problems.extend(check.failures.iter().map(|it| {
                format!(
                    "{}.{} of {}: {}.",
                    it.column.table, it.column.column, it.row, it.cause
                )
            }));
        }
    }
    // The values themselves decide, not the manifest: a manifest that an earlier release wrote for tables outside `public`
    // names no key.
    let missing = missing_keys(&found.key_ids, keyring);
    if !missing.is_empty() {
        let problem = format!("{}.", BackupError::MissingKeys(missing));
        report.conclusive = !was_sound;
        report.problems.push(problem);
    } else if found.has_secrets && report.opened == 0 && report.problems.is_empty() {
        report.conclusive = keyring.is_some();
        report.problems.push(
            "It holds sealed values, and none of them was opened: give the encryption keys that the service runs with."
                .to_owned(),
        );
    }
    Ok(())
}

/// The ids of the keys that are not configured, ascending.
fn missing_keys(needed: &BTreeSet<u8>, keyring: Option<&Keyring>) -> Vec<u8> {
    let is_configured =
        |id: u8| keyring.is_some_and(|ring| ring.key_ids().any(|known| known == id));
    needed
        .iter()
        .copied()
        .filter(|id| !is_configured(*id))
        .collect()
}

/// Restores a dump into a database without tables. See [`BackupError::ProgramFailed`] for a dump that cannot be
/// restored.
pub(super) async fn restore_dump_into(
    database: &Database,
    programs: &PostgresPrograms,
    dump: &Path,
) -> Result<(), BackupError> {
    let server = store::server_major_version(database).await?;
    let arguments: [OsString; 7] = [
        "--dbname".into(),
        database.database_name().into(),
        "--no-owner".into(),
        "--no-privileges".into(),
        "--exit-on-error".into(),
        "--no-password".into(),
        dump.into(),
    ];
    programs
        .run_program("pg_restore", server, database, arguments)
        .await
}

/// Every difference between the manifest and the restored database, as sentences.
pub(super) fn compare_with_manifest(
    manifest: &BackupManifest,
    found: &store::DatabaseContent,
) -> Vec<String> {
    let mut problems = Vec::new();
    for (table, expected) in &manifest.tables {
        match found.tables.get(table) {
            Some(rows) if rows == expected => {}
            Some(rows) => problems.push(format!(
                "{table} has {rows} rows, and had {expected} when the backup was made."
            )),
            None => problems.push(format!("{table} is missing.")),
        }
    }
    if found.schema_version != manifest.schema_version {
        problems.push(format!(
            "Its tables are those of migration {}, and the manifest says {}.",
            found.schema_version, manifest.schema_version
        ));
    }
    if found.key_ids != manifest.key_ids {
        problems.push(format!(
            "It needs the encryption keys {:?}, and the manifest says {:?}.",
            found.key_ids, manifest.key_ids
        ));
    }
    problems
}
