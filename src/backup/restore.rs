//! Restores a backup into an empty database. All deliveries are held until an operator releases them.

use std::path::Path;

use super::error::BackupError;
use super::manifest::{BackupManifest, fingerprint_dump};
use super::programs::PostgresPrograms;
use super::store;
use super::verify::{compare_with_manifest, restore_dump_into};
use crate::db::Database;
use crate::deliveries::hold;
use crate::replicas::host_name;

/// Restores the dump into a database without tables, applies the migrations of this release, and holds all deliveries.
/// Returns the manifest and every difference between it and the restored data, as sentences.
pub async fn restore_backup(
    database: &Database,
    programs: &PostgresPrograms,
    dump: &Path,
) -> Result<(BackupManifest, Vec<String>), BackupError> {
    let manifest = BackupManifest::read_for(dump)?;
    if fingerprint_dump(dump)? != (manifest.bytes, manifest.sha256.clone()) {
        return Err(BackupError::DumpMismatch(dump.to_owned()));
    }
    if store::has_tables(database).await? {
        return Err(BackupError::DatabaseNotEmpty);
    }
    database.check_encoding().await?;
    // Found before anything is restored: afterwards statements would not find the tables, and deliveries could not be held.
    if let Some(schema) = manifest.tables_schema()
        && !store::is_in_search_path(database, &schema).await?
    {
        return Err(BackupError::OtherSchema(schema));
    }
    restore_dump_into(database, programs, dump).await?;
    let problems = compare_with_manifest(&manifest, &store::load_database_content(database).await?);
    database.migrate(false).await?;
    hold::store::hold_deliveries(database, &host_name()).await?;
    Ok((manifest, problems))
}
