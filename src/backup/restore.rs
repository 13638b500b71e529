//! Brings a backup back into an empty database, from which nothing is sent until somebody says so.

use std::path::Path;

use super::error::BackupError;
use super::manifest::{Manifest, fingerprint};
use super::programs::Programs;
use super::store;
use super::verify::{compare, restore_into};
use crate::db::Database;
use crate::deliveries::hold;
use crate::replicas::host;

/// Restores the dump into the database, which must have no tables, brings them to this release, and holds deliveries.
/// Gives the manifest and whatever is not as it says.
pub async fn restore(
    database: &Database,
    programs: &Programs,
    dump: &Path,
) -> Result<(Manifest, Vec<String>), BackupError> {
    let manifest = Manifest::read_for(dump)?;
    if fingerprint(dump)? != (manifest.bytes, manifest.sha256.clone()) {
        return Err(BackupError::Changed(dump.to_owned()));
    }
    if store::has_tables(database).await? {
        return Err(BackupError::NotEmpty);
    }
    restore_into(database, programs, dump).await?;
    let problems = compare(&manifest, &store::content_of(database).await?);
    database.migrate(false).await?;
    hold::store::hold(database, &host()).await?;
    Ok((manifest, problems))
}
