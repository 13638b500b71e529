//! Packs a tenant.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::BufWriter;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::content::{History, MOVED};
use super::document::{FORMAT, Label, Line, Secret};
use super::error::MoveError;
use super::store::{self, Snapshot};
use crate::backup::manifest::digest;
use crate::backup::part::Part as Unfinished;
use crate::clock::Timestamp;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::Keyring;
use crate::crypto::sealed_file::{Sealer, To};
use crate::db::Database;
use crate::id::TenantId;

/// What was packed.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exported {
    /// Whose it is, and of when.
    #[serde(flatten)]
    pub label: Label,
    /// Rows, by their tables.
    pub rows: BTreeMap<String, u64>,
    /// Deliveries among them that are still to be sent.
    pub waiting: i64,
    /// For whom it is sealed.
    pub sealed_for: String,
    /// Of the file.
    pub bytes: u64,
    /// Of the file, in hexadecimal.
    pub sha256: String,
}

/// Writes the tenant into `file`, which must not be there and which only its owner can read. `keyring` opens what the database
/// holds; the caller has made sure that it is this database's. The service goes on meanwhile.
pub async fn export(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    history: History,
    to: &To,
    file: &Path,
) -> Result<Exported, MoveError> {
    if file.exists() {
        return Err(MoveError::FileExists(file.to_owned()));
    }
    let mut snapshot = Snapshot::take(database, tenant).await?;
    let owner = snapshot.owner(tenant).await?;
    let owner = owner.ok_or_else(|| MoveError::NoTenant(tenant.clone()))?;
    // Of one that is active this is a copy, which is never complete. Of one that is not, it is all there is: nobody may still be
    // sending what is in it.
    if !owner.is_active && owner.under_way > 0 {
        return Err(MoveError::UnderWay {
            tenant: tenant.clone(),
            count: owner.under_way,
        });
    }
    if owner.redelivering && history == History::Needed {
        return Err(MoveError::Redelivering(tenant.clone()));
    }
    let label = Label {
        format: FORMAT,
        tenant: tenant.clone(),
        name: owner.name,
        is_active: owner.is_active,
        exported_at: Timestamp::from(snapshot.taken_at).to_string(),
        attesto: crate::VERSION.to_owned(),
        schema_version: snapshot.schema_version,
        history,
    };
    let failed = |cause| MoveError::File {
        path: file.to_owned(),
        cause,
    };
    let unfinished = Unfinished::of(file).map_err(failed)?;
    let writer = OpenOptions::new().append(true).open(unfinished.path());
    let writer = BufWriter::new(writer.map_err(failed)?);
    let mut sealer = Sealer::new(writer, to).map_err(failed)?;

    Line::Label(label.clone())
        .write(&mut sealer)
        .map_err(failed)?;
    let mut rows = BTreeMap::new();
    for part in &MOVED {
        let columns = snapshot.columns(part.table).await?;
        let heading = Line::Table {
            name: part.table.to_owned(),
            columns: columns.clone(),
        };
        heading.write(&mut sealer).map_err(failed)?;
        let hidden = store::sealed_column(part.table);
        let mut count = 0;
        let each = |fields, blob: Option<Vec<u8>>| {
            let secret = match hidden.zip(blob) {
                None => None,
                Some((column, blob)) => {
                    let opened = keyring.open(column.of(tenant.as_str()), &blob);
                    let opened = opened.map_err(|cause| MoveError::Unopened {
                        column: format!("{}.{}", column.table, column.column),
                        tenant: tenant.clone(),
                        cause,
                    })?;
                    Some(Secret::of(opened.expose_secret()))
                }
            };
            count += 1;
            Line::Row { fields, secret }
                .write(&mut sealer)
                .map_err(failed)
        };
        snapshot.rows(part, history, tenant, &columns, each).await?;
        rows.insert(part.table.to_owned(), count);
    }
    snapshot.end().await?;
    Line::End { rows: rows.clone() }
        .write(&mut sealer)
        .map_err(failed)?;
    let writer = sealer.finish().map_err(failed)?;
    drop(
        writer
            .into_inner()
            .map_err(|error| failed(error.into_error()))?,
    );

    let (bytes, sha256) = digest(unfinished.path()).map_err(failed)?;
    let exported = Exported {
        label,
        rows,
        waiting: owner.waiting,
        sealed_for: to.to_string(),
        bytes,
        sha256,
    };
    // Noted before there is a file by that name: one that nobody knows of is not made.
    let note = json!({
        "history": history,
        "sealedFor": exported.sealed_for,
        "rows": exported.rows,
        "sha256": exported.sha256,
    });
    store::note_export(database, tenant, &note).await?;
    unfinished.keep_as(file).map_err(failed)?;
    Ok(exported)
}
