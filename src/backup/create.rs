//! Makes a backup: a dump and its manifest, both from one snapshot.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::error::BackupError;
use super::manifest::{BackupManifest, MANIFEST_FORMAT, fingerprint_dump};
use super::partial_file::PartialFile;
use super::programs::PostgresPrograms;
use super::store::{self, BackupSnapshot};
use crate::base::clock::Timestamp;
use crate::base::id::BackupId;
use crate::base::progress::{ReportProgress, report_while};
use crate::db::Database;
use crate::replicas::host_name;

/// Dumps the whole database into `output` and writes the manifest beside it. Neither file may exist already. Both are
/// readable only by their owner. Other processes can use the database meanwhile.
pub async fn create_backup(
    database: &Database,
    programs: &PostgresPrograms,
    output: &Path,
    report: ReportProgress<'_>,
) -> Result<BackupManifest, BackupError> {
    const STEPS: u64 = 3;
    let manifest_path = BackupManifest::path_for(output);
    for path in [output, &manifest_path] {
        if path.exists() {
            return Err(BackupError::FileExists(path.to_owned()));
        }
    }
    if database.is_distributed().await? {
        return Err(BackupError::Distributed);
    }
    let server = store::server_major_version(database).await?;
    let part = PartialFile::create_for(output).map_err(file_error(output))?;

    report(0, STEPS, "counting the rows");
    let mut snapshot = BackupSnapshot::begin_snapshot(database).await?;
    let content = snapshot.load_content().await?;
    let mut file = std::ffi::OsString::from("--file=");
    file.push(part.path());
    let arguments = [
        "--format=custom".into(),
        "--no-password".into(),
        format!("--snapshot={}", snapshot.name).into(),
        file,
    ];
    let dumping = programs.run_program("pg_dump", server, database, arguments);
    let report_size = || {
        let bytes = std::fs::metadata(part.path()).map_or(0, |file| file.len());
        let what = format!("dumping, {} MB written", bytes / 1_000_000);
        report(1, STEPS, &what);
    };
    report_while(dumping, report_size).await?;
    let taken_at = snapshot.taken_at;
    snapshot.end_snapshot().await?;

    report(2, STEPS, "computing the checksum");
    let (bytes, sha256) = fingerprint_dump(part.path())?;
    let moment = Timestamp::from(taken_at);
    let manifest = BackupManifest {
        format: MANIFEST_FORMAT,
        id: BackupId::mint(moment).to_string(),
        created_at: moment.to_string(),
        attesto: crate::VERSION.to_owned(),
        postgres: server,
        schema_version: content.schema_version,
        key_ids: content.key_ids,
        tables: content.tables,
        bytes,
        sha256,
    };
    // The manifest is written last: if it exists, the dump is complete.
    part.persist_as(output).map_err(file_error(output))?;
    write_manifest(&manifest_path, &manifest)?;
    store::record_created(database, &manifest.id, taken_at, &host_name(), bytes).await?;
    Ok(manifest)
}

fn file_error(path: &Path) -> impl Fn(std::io::Error) -> BackupError {
    move |cause| BackupError::FileIo {
        path: path.to_owned(),
        cause,
    }
}

fn write_manifest(path: &Path, manifest: &BackupManifest) -> Result<(), BackupError> {
    let failed = file_error(path);
    let text = serde_json::to_string_pretty(manifest).map_err(|error| failed(error.into()))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(&failed)?;
    writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .map_err(&failed)
}
