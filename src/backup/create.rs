//! Makes a backup: the dump and its manifest, of one snapshot.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::error::BackupError;
use super::manifest::{FORMAT, Manifest, fingerprint};
use super::part::Part;
use super::programs::Programs;
use super::store::{self, Snapshot};
use crate::clock::Timestamp;
use crate::db::Database;
use crate::id::BackupId;
use crate::replicas::host;

/// Dumps the whole database into `output` and writes the manifest beside it. Neither may be there already; only their
/// owner can read them. The service goes on meanwhile.
pub async fn create(
    database: &Database,
    programs: &Programs,
    output: &Path,
) -> Result<Manifest, BackupError> {
    let manifest_path = Manifest::path_for(output);
    for path in [output, &manifest_path] {
        if path.exists() {
            return Err(BackupError::Exists(path.to_owned()));
        }
    }
    let server = store::server_major(database).await?;
    let part = Part::of(output).map_err(failed(output))?;

    let mut snapshot = Snapshot::take(database).await?;
    let content = snapshot.content().await?;
    let mut file = std::ffi::OsString::from("--file=");
    file.push(part.path());
    let arguments = [
        "--format=custom".into(),
        "--no-password".into(),
        format!("--snapshot={}", snapshot.name).into(),
        file,
    ];
    programs.run("pg_dump", server, database, arguments).await?;
    let taken_at = snapshot.taken_at;
    snapshot.end().await?;

    let (bytes, sha256) = fingerprint(part.path())?;
    let moment = Timestamp::from(taken_at);
    let manifest = Manifest {
        format: FORMAT,
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
    // The manifest last: where there is one, there is a whole dump.
    part.keep_as(output).map_err(failed(output))?;
    write(&manifest_path, &manifest)?;
    store::note_created(database, &manifest.id, taken_at, &host(), bytes).await?;
    Ok(manifest)
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> BackupError {
    move |cause| BackupError::File {
        path: path.to_owned(),
        cause,
    }
}

fn write(path: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    let failed = failed(path);
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
